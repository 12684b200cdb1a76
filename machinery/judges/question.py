"""What a language model is asked about two answers, and what its own answer says.

    question = Question.read("my_rubric.txt")                     # Question() is the one in judge_prompt.txt
    text = question.about(Comparison("Why?", "Because.", "Since it rained."), number="1f09")
    read_verdict("It says when.\\nVerdict: B")                     # ("B", "It says when."); None where it is not clear

A question is a text with places for the conversation and both answers, and one that may be there for a number which no
answer can foresee: with it, marks around an answer cannot be closed from within.
"""

import re
from pathlib import Path

from ..common.bounds import check_file
from ..common.chat import as_text
from ..common.errors import UserError
from ..common.safe_text import say
from .interface import Comparison, JudgeError

NEEDED_PLACES = ("prompt", "answer_a", "answer_b")  # and {number}, which may be there
PLACE = re.compile(r"\{(prompt|answer_a|answer_b|number)\}")
FILE = Path(__file__).with_name("judge_prompt.txt")
MOST_BYTES = 10**6
HOW_TO_ANSWER = "Write a short reason, then a last line that is one of\nVerdict: A\nVerdict: B\nVerdict: tie"

# Bold, brackets and the like may stand around the letter. `(?![^\W_])`: no letter or digit follows.
VERDICT = re.compile(
    r"(?<![^\W_])verdict[\s*_]*[:\uff1a=-][\W_]*(?:answer|response)?[\W_]*(a\s+tie|tie|a|b)(?![^\W_])", re.IGNORECASE
)


class Question:
    """A text with places, into which a comparison is written."""

    def __init__(self, text: str | None = None):
        """text: with each of `NEEDED_PLACES` in braces; by default that of judge_prompt.txt. Raises JudgeError without one."""
        self.text = FILE.read_text(encoding="utf-8") if text is None else text
        if missing := [f"{{{place}}}" for place in NEEDED_PLACES if f"{{{place}}}" not in self.text]:
            raise JudgeError(
                f"the question has no place {' and no '.join(missing)}: the conversation goes where {{prompt}} stands, the "
                "answers where {answer_a} and {answer_b} do"
            )

    @classmethod
    def read(cls, file: str) -> "Question":
        """The question in a text file. One that does not say how to answer is told, and says it then. Raises JudgeError."""
        try:
            check_file(Path(file), MOST_BYTES)
            text = Path(file).read_text(encoding="utf-8-sig")
        except UserError as error:  # which names the file
            raise JudgeError(f"--judge_prompt {error}") from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise JudgeError(f"--judge_prompt {file} cannot be read: {why}.") from error
        if "verdict:" not in text.lower():
            say(
                f'--judge_prompt {file} asks for no "Verdict: A", B or tie, without which none can be read: it is added.'
            )
            text = f"{text.rstrip()}\n\n{HOW_TO_ANSWER}\n"
        try:
            return cls(text)
        except JudgeError as error:
            raise JudgeError(f"--judge_prompt {file}: {error}") from error

    def about(self, order: Comparison, number: str) -> str:
        """The text with a comparison in its places; other braces, and those in the answers, stay what they are."""
        parts = {"prompt": as_text(order.prompt), "answer_a": order.first, "answer_b": order.second, "number": number}
        return PLACE.sub(lambda place: parts[place[1]], self.text)


def read_verdict(answer: str) -> tuple[str, str] | None:
    """A, B or tie, and the words before; None where an answer names several, or goes on in the same line."""
    answer = answer.rpartition("</think>")[2]
    found = list(VERDICT.finditer(answer))
    said = {match[1].split()[-1].lower() for match in found}
    if len(said) != 1 or "<think>" in answer:  # a thought that was cut off is no answer
        return None
    rest = answer[found[-1].end() :].partition("\n")[0]
    if re.search(r"[^\W_]", rest):  # "Verdict: A is worse"
        return None
    return {"a": "A", "b": "B", "tie": "tie"}[said.pop()], answer[: found[0].start()].strip(" \n*_#")


def why_unclear(answer: str, is_cut: bool, most_tokens: int) -> str:
    """Why an answer holds no verdict: it is empty, was cut off, or what it says instead."""
    if is_cut:
        return f"it was cut off after {most_tokens} tokens, see --judge_max_tokens" + (
            "" if answer.strip() else ", all of them thought"
        )
    words = " ".join(answer.split())
    if not words:
        return "it is empty"
    return f'it ends with "{words if len(words) <= 100 else "..." + words[-100:]}"'
