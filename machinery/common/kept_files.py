"""Files that are whole or not there; and what is kept between runs: as it was written, or made anew, and worth no run.

with complete_file(Path("metrics.json")) as file:      # written under another name, renamed at the end
    file.write("{}")
with going_on_without("The answers", folder):           # a full disk ends no run where only time would be saved
    ...
seal(path)                                              # its checksum, beside it
forget_damaged([path])                                  # what is not as it was sealed is made anew
line = json.dumps(signed({"key": 1}))                   # small things carry their checksum themselves
KeptLines(Path("answers.jsonl"), "The answers").put("a key", text="Yes.")  # many of them in one file, as they come
forget_oldest(Path("runs/.cache"), "*.safetensors", most_bytes=10**9)
"""

import errno
import glob
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger("dpo")

UNFINISHED = ".unfinished"  # where files wait that are to appear together
NO_ROOM = [errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)]
_said: set[tuple[str, str]] = set()  # what cannot be kept, and where


@contextmanager
def complete_file(path: Path, mode: str = "w"):
    """Open a file that appears under its name only when it is complete; after an error there is none, or the old one.

    Each writer has a name of its own until then, so the last one to end wins. An error of a full disk names the file.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
        _clear_if_dead(left)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}{UNFINISHED}")
    try:
        with named(path), open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            with suppress(OSError):  # some network file systems know no locks
                _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An error that a full disk raises within, and which names no file, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def dispensable(path: Path) -> Iterator[Path]:
    """A file beside the result, which a full disk may cost: that is said, nothing half is left, and the run goes on."""
    was_there = path.exists()
    try:
        yield path
    except OSError as error:
        if not was_there:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        logger.warning(f"{path.name} could not be written, and is left out: {error.strerror or error}.")


def _clear_if_dead(left: Path) -> None:
    """Remove what a killed process left unfinished: it holds no lock any more; without locks, after a day."""
    if fcntl is None:
        forget_untouched([left])
        return
    with suppress(OSError):
        if time.time() - left.stat().st_mtime > 60:  # not between another's opening and locking
            with open(left, "rb") as file:
                _lock(file)
                left.unlink()


def forget_untouched(files: Iterable[Path]) -> None:
    """Remove temporary files that nobody has written to for a day: what made them was killed."""
    for file in files:
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > 86_400:
                file.unlink()


def _lock(file) -> None:
    """Hold a lock that ends with this process, however it ends. Raises OSError where another holds it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def going_on_without(what: str, where: Path) -> Iterator[None]:
    """A write that fails in here is said once, and ends nothing: `what` would be kept in `where` only to save time."""
    try:
        yield
    except OSError as error:
        if (what, str(where)) not in _said:
            _said.add((what, str(where)))
            reason = error.strerror or str(error) or type(error).__name__
            logger.warning(f"{what} cannot be kept in {where}: {reason}. The run goes on without keeping them.")


@contextmanager
def complete_files(folder: Path):
    """A folder to write several files into; they move to `folder` together when all of them are complete."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with named(folder):
            yield unfinished
        for path in sorted(unfinished.iterdir()):
            if path.is_dir():  # no folder takes the place of one that holds something
                shutil.rmtree(folder / path.name, ignore_errors=True)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def forget_oldest(folder: Path, pattern: str, most_bytes: int, but: Path | None = None) -> None:
    """Remove the oldest files of this pattern, beyond so many bytes in all; `but` stays. Other runs may do the same."""
    files, kept = [], 0
    for file in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another run was faster
            facts = file.stat()
            files.append((facts.st_mtime, facts.st_size, file))
    for _, size, file in sorted(files, reverse=True):
        kept += size
        if kept > most_bytes and file != but:
            file.unlink(missing_ok=True)
            _seal_of(file).unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Write the checksum of a file that is kept, beside it."""
    with complete_file(_seal_of(path)) as file:
        file.write(checksum(path))


def forget_damaged(files: Iterable[Path]) -> None:
    """Remove those files that are not, byte for byte, what was sealed, so that they are made anew.

    One without a seal goes without a word: its run was killed before it could seal. Raises OSError for what cannot be
    removed, as a folder in a file's place.
    """
    for path in files:
        if not os.path.lexists(path):  # another run was faster
            continue
        try:
            sealed, now = _seal_of(path).read_text(encoding="utf-8", errors="replace"), checksum(path)
            damage = "has changed on disk since it was written" if sealed != now else None
        except FileNotFoundError:
            damage = ""
        except OSError as error:
            damage = f"cannot be read ({error.strerror})"
        if damage:
            logger.warning(f"{path} {damage}. It is made anew.")
        if damage is not None:
            path.unlink(missing_ok=True)
            _seal_of(path).unlink(missing_ok=True)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sum")


def checksum(content: Path | bytes, is_new: bool = False) -> str:
    """The SHA-256 of a file or of bytes, in hexadecimal digits.

    is_new: the file was just written, and is read once the disk has it: a full one may say so only now.
    """
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    with open(content, "r+b" if is_new else "rb") as file:
        if is_new:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def signed(entry: dict) -> dict:
    """An entry for JSON with the checksum of all else in it."""
    return entry | {"checksum": checksum(json.dumps(entry, sort_keys=True).encode())}


def is_as_signed(entry: dict) -> bool:
    """Whether an entry read from JSON is what was signed. Raises AttributeError for what is no dictionary."""
    rest = {name: value for name, value in entry.items() if name != "checksum"}
    return signed(rest)["checksum"] == entry.get("checksum")


class KeptLines:
    """A file of JSON lines that grows as answers come, so that none is sampled or paid for twice.

    Of a key that was put twice the last counts. Several processes may write to one file.
    """

    def __init__(self, file: Path, what: str):
        """what: its lines hold, for messages."""
        self.file, self.what = Path(file), what

    def put(self, key: str, **values) -> None:
        """Add a line of what JSON can write."""
        line = json.dumps(signed({"key": key} | values)).encode() + b"\n"
        with self._going_on(), open(self.file, "ab", buffering=0) as file:  # one write: others write to it, too
            file.write(line)

    def read(self) -> dict[str, dict]:
        """The values of each key, as far as they are sound. A line that was cut off is ended."""
        text = ""
        with self._going_on():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a+", encoding="utf-8", errors="replace") as file:
                file.seek(0)
                text = file.read()
                file.write("" if text.endswith("\n") or not text else "\n")
        found, damaged = {}, 0
        for line in filter(None, text.split("\n")):
            try:
                entry = json.loads(line)
                is_sound = is_as_signed(entry)
                if is_sound:
                    found[entry["key"]] = entry
            except (ValueError, LookupError, TypeError, AttributeError):
                is_sound = False
            damaged += not is_sound
        if damaged:
            what = self.what[:1].lower() + self.what[1:]
            logger.warning(f"{damaged} of {what} in {self.file} are damaged, and are asked for again.")
        return found

    def _going_on(self):
        return going_on_without(self.what, self.file)


def size_on_disk(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
