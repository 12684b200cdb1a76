"""What Transformers says on resuming that is not so: taken away by name and reason, so that true alarms are heard.

    drop_untrue_alarms(trainer.model)

A weight that is tied to another (an output layer that is the embedding) is written once. Going on from a checkpoint,
Transformers 5.23 loads the file as it is, calls the second name missing, and ties it again.
"""

import logging
import re

SAYS = "There were missing keys in the checkpoint model loaded:"


class TiedAreNotMissing(logging.Filter):
    """Lets every message pass but the one that calls nothing missing than names of weights that are tied to others."""

    def __init__(self, tied: dict[str, str]):
        """tied: the weights that are not written, and those that they are."""
        super().__init__()
        self.tied = tied

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        missing = re.findall(r"'([^']+)'", text) if text.startswith(SAYS) else []
        return not missing or not all(name in self.tied and self.tied[name] not in missing for name in missing)


def drop_untrue_alarms(model) -> None:
    """Take the message away for this model, and no other message."""
    logger = logging.getLogger("transformers.trainer")
    for old in [filter for filter in logger.filters if isinstance(filter, TiedAreNotMissing)]:
        logger.removeFilter(old)
    logger.addFilter(TiedAreNotMissing(dict(getattr(model, "all_tied_weights_keys", None) or {})))
