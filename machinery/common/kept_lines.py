"""A file of JSON lines that grows as answers come, so that none is sampled or paid for twice.

    kept = KeptLines(Path("judged.jsonl"), "The judge's answers")
    entries = kept.read()                          # {"a key": {"answer": "Yes.", ...}}; what is damaged is said, and left out
    kept.put("another key", answer="No.")          # one line, with its checksum

Several processes may write to one file. A disk that is full or read-only ends nothing.
"""

import json
import logging
from pathlib import Path

from .kept_files import going_on_without, is_as_signed, signed

logger = logging.getLogger("dpo")


class KeptLines:
    """What was put under each key; the last, where it was put twice."""

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
            logger.warning(f"{self.what} in {self.file}: {damaged} of them are damaged, and are asked for again.")
        return found

    def _going_on(self):
        return going_on_without(self.what, self.file)
