"""Files that are whole or not there, whatever ends the writing, and folders that do not grow without end.

with complete_file(Path("metrics.json")) as file:      # written under another name, renamed at the end
    file.write("{}")
forget_oldest(Path("runs/.cache"), "*.safetensors", most_bytes=10**9)
seal(path)                                              # its checksum, beside it
forget_damaged([path])                                  # what is not as it was sealed is made anew
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger("dpo")

UNFINISHED = ".unfinished"  # where files wait that are to appear together


@contextmanager
def complete_file(path: Path, mode: str = "w"):
    """Open a file that appears under its name only when it is complete; after an error there is none, or the old one."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def complete_files(folder: Path):
    """A folder to write several files into; they move to `folder` together when all of them are complete."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in sorted(unfinished.iterdir()):
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
        file.write(_checksum(path))


def forget_damaged(files: Iterable[Path]) -> None:
    """Remove those files that are not, byte for byte, what was sealed, so that they are made anew."""
    for path in files:
        with suppress(FileNotFoundError):  # another run was faster
            sealed = _seal_of(path).read_text(encoding="utf-8", errors="replace") if _seal_of(path).exists() else None
            if sealed != _checksum(path):
                if sealed is not None:  # else a run was killed before it could seal
                    logger.warning(f"{path} has changed on disk since it was written. It is made anew.")
                path.unlink()


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sum")


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def size_on_disk(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
