"""Pairs as they are read, for data that fit on no disk: nothing is compared between rows, and nothing is kept.

kinds = first_kinds(rows, reading, min_margin=0.5)
stream, notes = stream_pairs(rows, reading, kinds, tokenizer, format_pair, min_margin=0.5)
"""

import logging
from collections import Counter
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
from .pairs import make_pairs, refuse_unreadable
from .tokens import TemplateTrial

logger = logging.getLogger("dpo")

MOST_NAMED = 5  # rows that are skipped for one reason


def first_kinds(rows: RowSource, reading: Reading, **how) -> set[str]:
    """What is seen among the first 100 pairs: "text", "turns", "rich turns". Raises UserError where none can be used.

    how: as for `load.load_pairs`.
    """
    if reading.is_grouped:
        raise UserError(f"{rows.name}: the answers to a prompt stand in several rows, so it cannot be streamed.")
    checkup = Checkup(keep=how.get("keep_findings") or ())
    for made in islice(make_pairs(rows, reading, **_pairing(how)), 100):
        if not how.get("skip_bad_rows"):
            refuse_unreadable(made)
        checkup.see(made)
    if said := doubt(reading, checkup, how.get("columns"), how.get("verdict")):
        raise UserError(f"{rows.name}: {said}")
    if not checkup.sound():
        raise UserError(f"{rows.name}: none of the first 100 pairs can be used. {what_fails(checkup.report())}")
    return checkup.kinds


def _pairing(how: dict) -> dict:
    return {name: how[name] for name in ("pairing", "min_margin", "seed") if name in how}


def stream_pairs(rows: RowSource, reading: Reading, kinds: set[str], tokenizer, format_pair: Callable, **how):
    """An IterableDataset, and what is to be said. Duplicates go unseen.

    kinds: of all splits, see `first_kinds`. how: as for `load.load_pairs`.
    """
    pairing, keep = _pairing(how), how.get("keep_findings") or ()
    as_turns, notes = form_for(tokenizer, kinds, rows.name, how.get("keep_plain", False))
    features = store.pair_features({"rich turns", *store.OPTIONAL}, as_turns)
    nothing, trial = dict.fromkeys(features) | {"chat_template_kwargs": {}}, TemplateTrial(tokenizer)

    skipped = Counter()

    def read():
        for made in make_pairs(rows, reading, **pairing):
            if not how.get("skip_bad_rows"):
                refuse_unreadable(made)
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
                kind = made.get("fault") or seen.fate[0] or str(error).partition("(")[0]  # without what is of one row
                skipped[kind] += 1
                if skipped[kind] <= MOST_NAMED:
                    more = " Others like it are skipped without a word." if skipped[kind] == MOST_NAMED else ""
                    logger.warning(f"{made['where']} is skipped: {error}.{more}")

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
