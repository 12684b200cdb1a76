"""Bound what is kept on disk for later runs.

forget_oldest(Path("runs/.cache"), "*.safetensors", most_bytes=10**9)
"""

from pathlib import Path


def forget_oldest(folder: Path, pattern: str, most_bytes: int, but: Path | None = None) -> None:
    """Remove the files of this pattern that were used longest ago, beyond so many bytes in all; `but` stays."""
    kept = 0
    for file in sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True):
        kept += file.stat().st_size
        if kept > most_bytes and file != but:
            file.unlink(missing_ok=True)
