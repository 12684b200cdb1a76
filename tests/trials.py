"""One trial of a script: in a folder of its own, timed, everything that it said and left compared with what it may."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from command.test_bad_input import everything_in
from fork_server import PROJECT, ForkServer

SECONDS = 60  # the most that a run may take


class Trial(NamedTuple):
    """A command line that holds a wrong value or names a wrong file, or one to which something else happens.

    Of several `says` a refusal must hold each, and so must any end where `codes` names a single one.
    """

    script: str
    words: list[str]
    environment: dict[str, str] = {}  # noqa: RUF012
    make: Callable[[Path], None] = lambda folder: None  # writes the files of the trial
    says: tuple[str, ...] = ("error: ",)
    codes: tuple[int, ...] = (0, 2)  # the exit codes that it may have
    first: list[str] = []  # noqa: RUF012  # the command line of a run before it, with the same caches
    between: Callable[[Path], None] = lambda folder: None  # what happens after that one; the caches are in ../caches
    beside: Callable[[Path], AbstractContextManager] = nullcontext  # what goes on during the run
    how: dict = {}  # noqa: RUF012  # for the server: encoding, file_size
    reader_goes: bool = False  # whoever reads its output leaves after the first line
    hides: str = ""  # what stands in no file and in nothing that was said


def attempt(server: ForkServer, trial: Trial) -> dict:
    """Run a trial; what was found, with "bad" for whether it is something that may not be."""
    with tempfile.TemporaryDirectory(prefix="trial-") as place:
        folder = Path(place) / "in"
        folder.mkdir()
        trial.make(folder)
        how = {"cwd": str(folder)} | ({"caches": f"{place}/caches"} if trial.first else {})
        if trial.first:
            server.start(trial.script, _filled(trial.first), f"{place}/first", **how)
            if server.wait() != [0]:
                raise RuntimeError(f"The run before failed:\n{Path(place, 'first').read_text()}")
            trial.between(folder)
        with trial.beside(folder):
            before = everything_in(folder)
            began = time.monotonic()
            code = _run(server, trial, Path(place), how | trial.how)
        seconds = round(time.monotonic() - began, 1)
        errors, output = (_read(Path(place) / name) for name in ("errors", "log"))
        after = everything_in(folder)
        must_say = trial.says if code == 2 or len(trial.codes) == 1 else ()
        found = {
            "code": code,
            "seconds": seconds,
            "traceback": "Traceback (most recent" in errors + output,
            "missing": [words for words in must_say if words not in " ".join((errors + output).split())],
            "said": next((line for line in reversed(errors.splitlines()) if "error:" in line), errors[-300:])[-700:],
            "left": sorted({path.relative_to(folder).parts[0] for path in after.keys() - before.keys()}),
            "changed": sorted(str(path.name) for path in before if after.get(path) != before[path]),
            "betrayed": _holders(trial.hides, folder, errors + output),
        }
        wrong = found["traceback"] or found["missing"] or found["changed"] or found["betrayed"]
        return found | {"bad": bool(wrong or code not in trial.codes or (code == 2 and found["left"]))}


def _filled(words: list[str]) -> list[str]:
    return [word.replace("{demo}", str(PROJECT / "demo")) for word in words]


def _run(server: ForkServer, trial: Trial, place: Path, how: dict) -> int:
    """The exit code of the trial's own run, which is ended when it takes too long."""
    log, reader = place / "log", None
    if trial.reader_goes:
        os.mkfifo(log)
        reader = threading.Thread(target=_read_a_line, args=[log])
        reader.start()
    old = dict(os.environ)
    os.environ |= trial.environment
    [pid] = server.start(trial.script, _filled(trial.words), log, place / "errors", **how)
    os.environ.clear()
    os.environ |= old
    timer = threading.Timer(SECONDS, os.kill, (pid, signal.SIGKILL))
    timer.start()
    [code] = server.wait()
    timer.cancel()
    if reader:
        reader.join()
        log.unlink()
    return code


def _read_a_line(pipe: Path) -> None:
    with open(pipe, "rb") as file:
        file.readline()


def _read(path: Path) -> str:
    return path.read_text(errors="replace").replace("\r", "\n") if path.exists() else ""


def _holders(hidden: str, folder: Path, said: str) -> list[str]:
    """Where something stands that is to stand nowhere."""
    if not hidden:
        return []
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("given")]
    found = [str(path.relative_to(folder)) for path in files if hidden.encode() in path.read_bytes()]
    return found + ["what was said"] * (hidden in said)
