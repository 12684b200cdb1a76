"""Keep every warning that a run logs, so that none scrolls past unread.

    warnings = WarningList("dpo", "trl", "transformers")   # the loggers to listen to
    ...
    warnings.texts                                          # what was said, each text once

It adds itself to the loggers and leaves what they print as it is.
"""

import logging


class WarningList(logging.Handler):
    """A logging handler that remembers the texts of warnings and errors."""

    def __init__(self, *loggers: str):
        super().__init__(level=logging.WARNING)
        self.texts: list[str] = []
        for name in loggers:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts:
            self.texts.append(text)
