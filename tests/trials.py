"""One trial of a script: in a folder of its own, timed, everything that it said and left compared with what it may."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
            code = _run(server, trial.script, trial.first, Path(place) / "first", **how)
            assert code == 0, f"the run before ended with {code}: {_read(Path(place, 'first'))}"
            trial.between(folder)
        log, errors = Path(place) / "log", Path(place) / "errors"
        reader = threading.Thread(target=_read_a_line, args=[log], daemon=True)
        if trial.reader_goes:
            os.mkfifo(log)
            reader.start()
        with trial.beside(folder):
            before = everything_in(folder)
            began = time.monotonic()
            with _environment(trial.environment):
                code = _run(server, trial.script, trial.words, log, errors, **how | trial.how)
        seconds = round(time.monotonic() - began, 1)
        said = _read(errors) + ("" if trial.reader_goes else _read(log))
        after = everything_in(folder)
        must_say = trial.says if code == 2 or len(trial.codes) == 1 else ()
        found = {
            "code": code,
            "seconds": seconds,
            "traceback": "Traceback (most recent" in said,
            "missing": [words for words in must_say if words not in " ".join(said.split())],
            "said": next((line for line in reversed(said.splitlines()) if "error:" in line), said[-300:])[-700:],
            "left": sorted({path.relative_to(folder).parts[0] for path in after.keys() - before.keys()}),
            "changed": sorted(str(path.name) for path in before if after.get(path) != before[path]),
            "betrayed": _holders(trial.hides, folder, said),
        }
        wrong = found["traceback"] or found["missing"] or found["changed"] or found["betrayed"]
        return found | {"bad": bool(wrong or code not in trial.codes or (code == 2 and found["left"]))}


def _run(server: ForkServer, script: str, words: list[str], log: Path, errors: Path | None = None, **how) -> int:
    """The exit code of a run, which is ended when it takes too long."""
    filled = [word.replace("{demo}", str(PROJECT / "demo")) for word in words]
    [pid] = server.start(script, filled, log, errors, **how)
    timer = threading.Timer(SECONDS, os.kill, (pid, signal.SIGKILL))
    timer.start()
    [code] = server.wait()
    timer.cancel()
    return code


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    old = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= old


def _read_a_line(pipe: Path) -> None:
    with open(pipe, "rb") as file:  # waits for the run to open it
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
