"""Keep every warning that a run logs, so that none scrolls past unread.

    WarningList("dpo", "trl", "transformers")   # the loggers to listen to
    ...
    heard_warnings()                             # what was said, each text once

A logger that has a way to print keeps it. One that has none would have been printed by Python as a last resort, which
ends where a handler listens; so it is printed here: on standard error, in lines, beside a progress bar and not into it,
and by the first of several processes only.
"""

import logging
import os
import shutil
import sys
import textwrap

from tqdm.auto import tqdm

from ..common.safe_text import printable


def heard_warnings(logger: str = "dpo") -> list[str]:
    """The texts of all warnings that the list of this logger has heard."""
    lists = [handler for handler in logging.getLogger(logger).handlers if isinstance(handler, WarningList)]
    return lists[0].texts if lists else []


class WarningList(logging.Handler):
    """A logging handler that remembers the texts of warnings and errors."""

    def __init__(self, *loggers: str):
        super().__init__(level=logging.WARNING)
        self.texts: list[str] = []
        for name in loggers:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        if text not in self.texts:
            self.texts.append(text)
        if not self._is_printed(record.name) and os.environ.get("RANK", "0") == "0":
            width, indent = min(120, shutil.get_terminal_size().columns), " " * len("warning  ")
            text = textwrap.fill(f"warning  {text}", width, subsequent_indent=indent, break_on_hyphens=False)
            tqdm.write(text, file=sys.stderr)

    def _is_printed(self, name: str) -> bool:
        """Whether a logger, or one above it, has another handler."""
        logger = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False
