"""What Transformers says on resuming that is not so: taken away by name and reason, so that true alarms are heard.

    drop_untrue_alarms(trainer)

A weight that is tied to another (an output layer that is the embedding) is written once. Going on from a checkpoint,
Transformers 5.23 loads the file as it is, calls the second name missing, and ties it again. And it holds steps that are
given as a share of all (--save_steps 0.2) against the number that it has made of them, as if one had been changed.
"""

import logging
import math
import re

MISSING = "There were missing keys in the checkpoint model loaded:"
CHANGED = "Warning: The following arguments do not match the ones in the `trainer_state.json`"


class UntrueAlarms(logging.Filter):
    """Lets every message pass but what calls nothing missing than tied weights, and nothing changed than shares."""

    def __init__(self, trainer):
        super().__init__()
        self.trainer = trainer
        # The weights that are not written, and those that they are.
        self.tied = dict(getattr(trainer.model, "all_tied_weights_keys", None) or {})

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(MISSING):
            missing = re.findall(r"'([^']+)'", text)
            return not missing or not all(name in self.tied and self.tied[name] not in missing for name in missing)
        if text.startswith(CHANGED):
            heading, *changes = text.split("\n\t")
            true = [change for change in changes if not self._is_a_share(change)]
            record.msg, record.args = "\n\t".join([heading, *true]), None
            return bool(true)
        return True

    def _is_a_share(self, change: str) -> bool:
        found = re.match(r"\w+_steps: (0\.\d+|\S+e-\d+) \(from args\) != (\d+) ", change)
        return bool(found) and math.ceil(self.trainer.state.max_steps * float(found[1])) == int(found[2])


def drop_untrue_alarms(trainer) -> None:
    """Take such messages away for this trainer, and no other message."""
    for logger in (logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")):
        for old in [filter for filter in logger.filters if isinstance(filter, UntrueAlarms)]:
            logger.removeFilter(old)
        logger.addFilter(UntrueAlarms(trainer))
