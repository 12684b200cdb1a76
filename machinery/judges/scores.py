"""A judge that gives each answer a number: the true reward, a reward model, or a function of the user's.

judge = ScoreJudge("politeness", politeness)             # politeness(prompts, answers): a number for each answer
judge = function_judge("rules.py:score")                 # score(prompt, answer): a number for one answer
judge.scores(prompts, answers)                           # [3.0, 1.0, ...], all of them finite
judge.judge(comparisons)                                 # the higher score wins
"""

import math
from collections.abc import Callable
from numbers import Real

from ..common.errors import function_from, in_one_line
from ..common.safe_text import progress_bar
from .interface import Comparison, Judge, JudgeError, Prompt, Verdict

Score = Callable[[list[Prompt], list[str]], list[float]]


class ScoreJudge(Judge):
    """Prefers the answer with the higher score; equal scores are a tie."""

    gives_scores = True

    def __init__(self, name: str, score: Score, is_language_model: bool = False):
        """name: as it is to be shown. score: of prompts and answers, a number for each answer, higher is better."""
        self.name, self._score, self.is_language_model = name, score, is_language_model

    def scores(self, prompts: list[Prompt], answers: list[str]) -> list[float]:
        """A number for each answer, to the prompt at its place. Raises JudgeError where one is no finite number."""
        found = self._score(prompts, answers)
        if len(found) != len(answers):
            raise JudgeError(f"{self.name} gave {len(found)} scores for {len(answers)} answers")
        return [self._as_number(score, row, prompts[row], answers[row]) for row, score in enumerate(found)]

    def judge(self, comparisons: list[Comparison], progress: str | None = None) -> list[Verdict]:
        """One verdict a comparison, with both scores. Raises JudgeError where a score is no finite number."""
        prompts = [comparison.prompt for comparison in comparisons]
        sides = [[comparison.first for comparison in comparisons], [comparison.second for comparison in comparisons]]
        bar = progress_bar(sides, desc=progress, disable=progress is None)
        firsts, seconds = [self.scores(prompts, answers) for answers in bar]
        return [_by_score(*triple) for triple in zip(comparisons, firsts, seconds, strict=True)]

    def try_on(self, prompts: list[Prompt], answers: list[str]) -> None:
        self.scores(prompts, answers)

    def _as_number(self, score, row: int, prompt: Prompt, answer: str) -> float:
        # One value of NumPy or torch is as good as a number of Python's.
        number = score.item() if getattr(score, "shape", None) == () else score
        if isinstance(number, Real) and math.isfinite(number):
            return float(number)
        raise JudgeError(f"{self.name} gave {in_short(score)} {_where(row, prompt, answer)}; a finite number is wanted")


def _by_score(comparison: Comparison, first: float, second: float) -> Verdict:
    # The same answer in another batch can score differently in the last digit.
    is_tie = first == second or comparison.first == comparison.second
    return Verdict(0.5 if is_tie else float(second > first), None, (first, second))


def function_judge(where: str, are_texts: bool = False) -> ScoreJudge:
    """A judge from "file.py:function", a function of one prompt and one answer that returns a number, higher is better.

    are_texts: whether the user's file has its prompts as texts. Then the function gets them so, though the models see
    turns; else it gets the turns of each. The answer is a text. Where the function has an attribute is_language_model, it
    counts as one. Raises UserError.
    """
    function, name = function_from(where, "--judge"), f"--judge {where}"

    def score(prompts: list[Prompt], answers: list[str]) -> list:
        found = []
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            given = as_written(prompt, are_texts)
            try:
                found.append(function(given, answer))
            except (Exception, SystemExit) as error:  # whatever a user's function may raise
                form = "a text" if isinstance(given, str) else "a list of turns with role and content"
                raise JudgeError(
                    f"{name} failed {_where(row, prompt, answer)}: {in_one_line(error)}. It is given the prompt as {form}, "
                    "and the answer as a text"
                ) from error
        return found

    return ScoreJudge(name, score, bool(getattr(function, "is_language_model", False)))


def as_written(prompt: Prompt, are_texts: bool) -> Prompt:
    """A prompt as the user's file has it: a text again where it is one, else its turns."""
    if not isinstance(prompt, str) and are_texts and len(prompt) == 1:
        return prompt[0]["content"]
    return prompt


def _where(row: int, prompt: Prompt, answer: str) -> str:
    asked = prompt if isinstance(prompt, str) else (prompt[-1].get("content") or "" if prompt else "")
    return f"in row {row}, for the answer {in_short(answer)} to {in_short(asked)}"


def in_short(value, most: int = 60) -> str:
    """A value as Python writes it, its beginning."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
