"""Output that cannot be written costs what it said, and nothing else."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import PATIENCE, PROJECT, SCRIPTS_ON_DEMO, fork_server

from machinery.command.outlets import Outlet, lasting_outlets

TALKER = """
import logging, sys, time
from pathlib import Path
from tqdm.auto import tqdm
early = logging.StreamHandler()  # holds the stream that was there before
logging.getLogger().addHandler(early)
from machinery.command.outlets import lasting_outlets
with lasting_outlets():
    for number in tqdm(range(300), desc="h\\u00e4lfte"):
        print(number, "\\u2019 \\u4f60 \\U0001f600", "x" * 100)
        logging.warning("logged \\u2019")
        print("error \\u2019", file=sys.stderr)
        if number == 3:
            print("flushed", flush=True)
            time.sleep(0.3)
    Path(sys.argv[1]).write_text("done")
"""


def talk(tmp_path: Path, plumbing: str, **environment) -> subprocess.CompletedProcess:
    """Run the talker under a shell's redirections; it has to reach its end, whatever happens to its words."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {plumbing}; exit ${{PIPESTATUS[0]}}', sys.executable, TALKER, str(tmp_path / "end")],
        cwd=PROJECT, capture_output=True, env=os.environ | environment, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "end").read_text() == "done"
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Exception" not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("plumbing", "said"),
    [
        ("| head -1", "Standard output cannot be written: Broken pipe."),
        (">/dev/full", "Standard output cannot be written: No space left on device."),
        ("2>/dev/full", "Standard error cannot be written: No space left on device."),
        ("2> >(head -c 9 >/dev/null)", "Standard error cannot be written: Broken pipe."),
        (">&-", None),
        ("2>&-", None),
        (">&- 2>&-", None),
        (">/dev/full 2>/dev/full", None),
        ("2>&1 | head -1", None),
        ("| true", "Standard output cannot be written: Broken pipe."),
    ],
)
def test_a_process_goes_on_to_its_end(plumbing, said, unbuffered, tmp_path):
    done = talk(tmp_path, plumbing, PYTHONUNBUFFERED=unbuffered)
    if said is not None:
        assert (done.stdout + done.stderr).decode().count(f"{said} What is said there is lost, and nothing else.") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_a_terminal_lacks_are_replaced(encoding, tmp_path):
    done = talk(tmp_path, "", PYTHONIOENCODING=encoding)
    lines = done.stdout.decode(encoding).splitlines()
    assert len(lines) == 301
    shown = {
        "ascii": "\\u2019 \\u4f60 \\U0001f600",
        "cp1252": "\u2019 \\u4f60 \\U0001f600",
        "utf-8": "\u2019 \u4f60 \U0001f600",
    }
    assert all(line.split(" ", 1)[1].startswith(shown[encoding]) for line in lines if line != "flushed")


def test_a_plain_locale_is_ascii(tmp_path):
    talk(tmp_path, "", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")


def test_streams_are_given_back_and_those_of_a_test_left_alone():
    before = sys.stdout, sys.stderr
    with lasting_outlets():
        assert not isinstance(sys.stdout, Outlet)  # pytest's are no files of this process
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.thorough
@pytest.mark.parametrize("script", SCRIPTS_ON_DEMO)
def test_a_script_whose_reader_goes_in_the_middle_writes_its_files(script, tmp_path):
    log = tmp_path / "log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    server = fork_server()
    words = [*SCRIPTS_ON_DEMO[script], "--output_dir", tmp_path / "out"]
    server.start(script, words, log, Path("/dev/full"), encoding="ascii")
    heard = b""
    while not heard:
        time.sleep(0.01)
        with suppress(BlockingIOError):
            heard = os.read(reader, 10)
    os.close(reader)
    assert server.wait() == [0]
    assert (tmp_path / "out" / "metrics.json").exists()
