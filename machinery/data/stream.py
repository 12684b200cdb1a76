"""Pairs as they are read, for data that fit on no disk: nothing is compared between rows, and nothing is kept.

stream, notes = stream_pairs(rows, reading, tokenizer, format_pair, min_margin=0.5)
"""

import logging
from collections.abc import Callable
from itertools import islice

from datasets import IterableDataset

from ..common.chat import TEMPLATE_ERRORS
from ..common.errors import UserError
from ..readings.reading import Reading
from ..readings.recognise import doubt
from . import store
from .doctor import Checkup, what_fails
from .files import RowSource
from .formatting import form_for
from .pairs import make_pairs
from .tokens import TemplateTrial

logger = logging.getLogger("dpo")


def stream_pairs(rows: RowSource, reading: Reading, tokenizer, format_pair: Callable, **how):
    """An IterableDataset, and what is to be said. Duplicates go unseen. Raises UserError where there can be none.

    how: as for `load.load_pairs`.
    """
    if tokenizer is None:
        raise UserError("--check_only reads all rows, so it goes without --dataset_streaming.")
    if reading.is_grouped:
        raise UserError(f"{rows.name}: the answers to a prompt stand in several rows, so it cannot be streamed.")
    pairing = {name: how[name] for name in ("pairing", "min_margin", "seed") if name in how}
    keep = how.get("keep_findings") or ()
    checkup = Checkup(keep=keep)
    for made in islice(make_pairs(rows, reading, **pairing), 100):
        checkup.see(made)
    if said := doubt(reading, checkup, how.get("columns"), how.get("verdict")):
        raise UserError(f"{rows.name}: {said}")
    if not checkup.sound():
        raise UserError(f"{rows.name}: none of the first 100 pairs can be used. {what_fails(checkup.report())}")
    as_turns, notes = form_for(tokenizer, checkup.kinds, rows.name, how.get("keep_plain", False))
    features = store.pair_features({"rich turns", *store.OPTIONAL}, as_turns)
    nothing, trial = dict.fromkeys(features) | {"chat_template_kwargs": {}}, TemplateTrial(tokenizer)

    def read():
        for made in make_pairs(rows, reading, **pairing):
            seen = Checkup(keep=keep)
            seen.see(made)
            if said := doubt(reading):
                raise UserError(f"{made['where']}: {said}")
            try:
                if not seen.sound():
                    raise ValueError(made.get("text") or seen.fate[0])
                if not as_turns and "text" not in seen.kinds:
                    raise ValueError("it has turns where the first rows are plain text")
                if not store.survives(made):
                    raise ValueError("number_changed")
                formatted = format_pair(made, tokenizer, as_turns, how.get("max_prompt_length"))
                if refusal := trial.refusal(made | formatted):
                    raise ValueError(f"the chat template refuses its turns ({refusal})")
                yield {name: (nothing | made | formatted)[name] for name in features}
            except UserError:  # the template does not end
                raise
            except TEMPLATE_ERRORS as error:
                logger.warning(f"{made['where']} is skipped: {error}.")

    stream = IterableDataset.from_generator(
        _Named(read, f"{rows.name} {how} {tokenizer.name_or_path}"), features=features
    )
    return stream, [f"Data: {rows.name}: {reading.says}.", *notes]


class _Named:
    """A generator function that is pickled as its name: `datasets` would pickle all that it refers to, for a hash."""

    def __init__(self, read: Callable, name: str):
        self.read, self.name = read, name

    def __call__(self):
        return self.read()

    def __getstate__(self):
        return self.name
