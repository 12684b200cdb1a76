"""What every judge is, and all that others know of it.

    judge = ScoreJudge("politeness", politeness)                          # or any other of this room
    verdicts = judge.judge([Comparison("Why?", "Because.", "Since it rained."), ...])
    verdicts[0].win                                                       # of the second answer: 1, 0.5 (a tie), 0, None

Every verdict is about the second answer against the first, and None where there is none, with the reason.
"""

from typing import NamedTuple

from ..common.errors import UserError

Prompt = str | list[dict]  # a text, or turns {"role": "user", "content": "..."}
TRIED_ANSWER = "I do not know."  # what a judge is tried on
FIRST, SECOND, PARTLY, BY_TEXT = "the answer shown first", "the answer shown second", "in part", "the texts"


class JudgeError(UserError):
    """A judge cannot work as it was set up; one sentence that says what to change."""


class Comparison(NamedTuple):
    """Two answers to one prompt."""

    prompt: Prompt
    first: str
    second: str


TRUTH = "the true reward"  # the name of the judge that knows the demo's world


class Verdict(NamedTuple):
    """What a judge says of the second answer against the first."""

    win: float | None  # 1, 0.5 (a tie) or 0; None: not judged
    reason: str | None
    scores: tuple[float, float] | None
    # Asked in both orders, what decided: BY_TEXT; FIRST or SECOND, whichever text stood there; PARTLY, a tie in one order
    decided: str | None = None


class Judge:
    """Compares answers. A subclass says what it is, and implements `judge`."""

    name: str  # as it is to be shown
    gives_scores = False  # one number an answer
    is_language_model = False  # verdicts of language models are known to go with length: see `length_controlled_rate`
    most_answers: int | None = None  # to a prompt, that it compares; None: all
    gave_up: str | None = None  # why it left comparisons unanswered that it may answer another time

    @property
    def is_free(self) -> bool:
        """Whether it may be asked about any number of answers, at no cost that counts."""
        return self.gives_scores and not self.is_language_model

    def judge(self, comparisons: list[Comparison], progress: str | None = None) -> list[Verdict]:
        """One verdict a comparison, in their order. progress: a label for a bar. Raises JudgeError."""
        raise NotImplementedError

    def try_on(self, prompts: list[Prompt], answers: list[str]) -> None:
        """Find out what can be found out before any long work. Raises JudgeError."""
