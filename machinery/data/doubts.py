"""Doubts about a reading that only all rows together raise, where nobody but the user can tell what is meant.

refuse_unexplained(reading, "pairs.jsonl")                      # UserError with the flags that settle it
refuse_contradiction(reading, checkup, "pairs.jsonl")
"""

from ..common.errors import UserError
from ..readings.reading import Reading
from .doctor import Checkup


def refuse_unexplained(reading: Reading, name: str) -> None:
    """Refuse a meaning told from the first rows that does not explain a number met later, so that it may be another."""
    if odd := reading.unexplained():
        raise UserError(
            f"{name}: {reading.verdict} holds {', '.join(odd)} too, in later rows, so the meaning told from the first ones "
            f"({reading.says}) may be wrong. Say what each value means: {reading.flags},{odd[0]}=..."
        )


def refuse_contradiction(
    reading: Reading, checkup: Checkup, name: str, columns: dict | None = None, verdict: dict | None = None
) -> None:
    """Refuse labels that most of the scores contradict, unless the user names the labels himself by a flag."""
    against, label = checkup.counts["scores_contradict"], reading.parts.get("chosen", reading.verdict)
    is_settled = verdict or reading.convert is not None or label in (columns or {}).values()
    if against * 2 > checkup.scored and not is_settled:
        raise UserError(
            f"{name}: in {against:,} of {checkup.scored:,} pairs the rejected answer has the higher score, first in "
            f"{checkup.firsts['scores_contradict']['first']}, so either the scores or the labels are turned around. Say which "
            f"to go by:\n  {reading.flags}\n  {reading.by_scores().flags}"
        )
