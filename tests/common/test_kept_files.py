"""What is written is whole or not there, whoever is killed or writes beside; what is kept is as written, or made anew."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT, spoil

from machinery.common import kept_files
from machinery.common.kept_files import (
    complete_file,
    dispensable,
    forget_damaged,
    going_on_without,
    is_as_signed,
    seal,
    signed,
)

WRITER = """
import sys
from pathlib import Path
from machinery.common.kept_files import complete_file, forget_damaged, seal
path, letter = Path(sys.argv[1]), sys.argv[2]
for _ in range(int(sys.argv[3])):
    with complete_file(path) as file:
        for _ in range(20):
            file.write(letter * 5_000)
            file.flush()
    kept = path.with_name(f"kept-{letter}")
    forget_damaged([kept])
    if not kept.exists():
        kept.write_text(letter * 100_000)
        seal(kept)
    kept.unlink()  # and once more
"""


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(kept_files, "_said", set())


def writer(path: Path, letter: str, times: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter, str(times)], cwd=PROJECT)


def test_writers_of_one_file_do_not_disturb_each_other_and_a_reader_sees_whole_files(tmp_path):
    path = tmp_path / "both.txt"
    writers = [writer(path, letter, 40) for letter in "abc"]
    seen = set()
    while any(one.poll() is None for one in writers):
        if path.exists():
            text = path.read_text()
            assert len(text) == 100_000
            assert len(set(text)) == 1
            seen.add(text[0])
    assert [one.returncode for one in writers] == [0, 0, 0]
    assert len(seen) > 1
    assert not list(tmp_path.glob(".*"))


def test_30_kills_leave_the_old_file_or_the_new_one_and_their_leftovers_go(tmp_path):
    path, moment, kills = tmp_path / "one.txt", random.Random(0), 0
    for _ in range(30):
        one = writer(path, moment.choice("abc"), 10_000)
        time.sleep(moment.uniform(0.05, 0.4))
        one.kill()
        kills += one.wait() < 0
        if path.exists():
            text = path.read_text()
            assert len(text) == 100_000
            assert len(set(text)) == 1
        for kept in tmp_path.glob("kept-?"):
            whole = kept.read_text() == kept.name[-1] * 100_000
            forget_damaged([kept])
            assert whole or not kept.exists()  # half a file is never taken for one
    assert kills == 30
    for left in tmp_path.glob(".*"):
        os.utime(left, (1e9, 1e9))
    with complete_file(path) as file:
        file.write("x")
    assert not list(tmp_path.glob(".one.txt*"))


@pytest.mark.skipif(kept_files.fcntl is None, reason="without locks only a day tells")
def test_what_another_is_still_writing_is_left_alone_however_old(tmp_path):
    path = tmp_path / "slow.txt"
    with complete_file(path) as slow:
        slow.write("slow")
        [unfinished] = tmp_path.iterdir()
        os.utime(unfinished, (1e9, 1e9))
        subprocess.run([sys.executable, "-c", WRITER, str(path), "a", "1"], cwd=PROJECT, check=True)
        assert unfinished.exists()
    assert path.read_text() == "slow"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "its seal", "unreadable"])
def test_damage_is_said_and_the_file_removed(damage, tmp_path, caplog, monkeypatch):
    path = tmp_path / "kept.bin"
    path.write_bytes(os.urandom(1000))
    seal(path)
    forget_damaged([path])
    assert path.exists()
    assert not caplog.text
    if damage == "its seal":
        spoil(tmp_path / "kept.bin.sum", "flipped")
    elif damage == "unreadable":
        monkeypatch.setattr(kept_files, "checksum", refuse)  # permissions do not hold back root
    else:
        spoil(path, damage)
    forget_damaged([path])
    assert not list(tmp_path.iterdir())
    assert caplog.text.count("It is made anew.") == 1
    assert ("Permission denied" in caplog.text) == (damage == "unreadable")


def refuse(*args):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_folder_in_a_file_s_place_is_not_removed(tmp_path):
    (tmp_path / "kept.bin").mkdir()
    (tmp_path / "kept.bin" / "mine").write_text("")
    with pytest.raises(OSError):
        forget_damaged([tmp_path / "kept.bin"])
    assert (tmp_path / "kept.bin" / "mine").exists()


def test_what_was_never_sealed_goes_without_a_word(tmp_path, caplog):
    (tmp_path / "kept.bin").write_bytes(b"half")
    forget_damaged([tmp_path / "kept.bin"])
    assert not list(tmp_path.iterdir())
    assert not caplog.text


def test_any_bit_of_a_signed_line_counts():
    line = json.dumps(signed({"key": "a question", "answer": "Verdict: A", "number": 0.1})).encode()
    assert is_as_signed(json.loads(line))
    for place in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[place // 8] ^= 1 << place % 8
        try:
            entry = json.loads(flipped)
        except ValueError:
            continue
        assert not is_as_signed(entry) or entry == json.loads(line)


def test_what_cannot_be_kept_is_said_once_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for _ in range(3):
        for place in (tmp_path / "file" / "below", tmp_path / "missing" / "parent", tmp_path):
            with going_on_without("Answers", place), complete_file(place) as file:
                file.write("x")
    assert caplog.text.count("Answers cannot be kept in") == 3
    assert "Not a directory. The run goes on" in caplog.text


def test_a_full_disk_costs_a_dispensable_file_and_leaves_no_half(tmp_path, caplog):
    with dispensable(tmp_path / "curves.png") as path:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
    assert "curves.png could not be written, and is left out: No space left on device." in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(name, mode, **how):
        return open("/dev/full", "w")

    monkeypatch.setattr(kept_files, "open", full, raising=False)
    with pytest.raises(OSError) as failed, complete_file(tmp_path / "metrics.json") as file:
        file.write("{}")
    assert failed.value.filename == str(tmp_path / "metrics.json")
    assert failed.value.errno == errno.ENOSPC


def test_files_that_are_written_together_take_the_place_of_folders_too(tmp_path):
    for text in ("old", "new"):
        with kept_files.complete_files(tmp_path / "run") as unfinished:
            (unfinished / "templates").mkdir()
            (unfinished / "templates" / "tool_use.jinja").write_text(text)
    assert (tmp_path / "run" / "templates" / "tool_use.jinja").read_text() == "new"
