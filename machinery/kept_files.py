"""Bound what is kept on disk for later runs.

forget_oldest(Path("runs/.cache"), "*.safetensors", most_bytes=10**9)
"""

from contextlib import suppress
from pathlib import Path


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
