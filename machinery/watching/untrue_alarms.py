"""What Transformers says on resuming that is not so: taken away by name and reason, so that true alarms are heard.

    drop_untrue_alarms(trainer.model)

A weight that is tied to another (an output layer that is the embedding) is written once. Going on from a checkpoint,
Transformers 5.23 loads the file as it is, calls the second name missing, and ties it again. And it says where the steps
between two logs or checkpoints, or the pairs on a device, are others than before: also of a share of all steps, which it
holds against the number that it has made of it. Here they may differ, and the command line's hold.
"""

import logging
import re

MISSING = "There were missing keys in the checkpoint model loaded:"
CHANGED = "Warning: The following arguments do not match the ones in the `trainer_state.json`"
LOGGERS = [logging.getLogger(f"transformers.{module}") for module in ("trainer", "trainer_utils")]


class UntrueAlarms(logging.Filter):
    """Lets every message pass but that on changes, and the one that calls nothing missing than tied weights."""

    def __init__(self, tied: dict[str, str]):
        """tied: the weights that are not written, and those that they are."""
        super().__init__()
        self.tied = tied

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        missing = re.findall(r"'([^']+)'", text) if text.startswith(MISSING) else []
        all_tied = all(name in self.tied and self.tied[name] not in missing for name in missing)
        return not text.startswith(CHANGED) and not (missing and all_tied)


def drop_untrue_alarms(model) -> None:
    """Take such messages away for this model, and no other message."""
    for logger in LOGGERS:
        for old in [filter for filter in logger.filters if isinstance(filter, UntrueAlarms)]:
            logger.removeFilter(old)
        logger.addFilter(UntrueAlarms(dict(getattr(model, "all_tied_weights_keys", None) or {})))
