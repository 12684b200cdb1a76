"""What a reply is to be like, as a program can check it; and whether the model still knows simple facts.

    --judge recipes/smollm2/rules.py:score    # for pairs: how near an answer comes to the rule
    --judge recipes/smollm2/rules.py:holds    # to evaluate: whether the rule holds, 1 or 0
    --judge recipes/smollm2/rules.py:knows    # whether an answer has the fact that facts.jsonl asks for, 1 or 0

The rule: finished, in four to thirty words, four of them different, without an apology and without speaking of itself as
a machine. A program cannot see whether such an answer is true, or of use.
"""

import json
import re
from functools import cache
from pathlib import Path

FEWEST_WORDS, MOST_WORDS = 4, 30
EXCUSE = re.compile(
    r"\b(sorry|apolog\w+|(as|am|i'm) an? (ai|artificial)|(language|ai) model|ai assistant"
    r"|i (can't|cannot|am unable to|am not able to) (assist|help))\b",
    re.I,
)
END = re.compile(r"""[.!?]["')\]]*$""")
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
FACTS = Path(__file__).with_name("facts.jsonl")


def score(prompt: str, answer: str) -> float:
    """1 where the rule holds; else the further below, the more is wrong: so of two bad answers one is better."""
    answer = answer.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    too_many = max(0, len(answer.split()) - MOST_WORDS) / MOST_WORDS  # 1 for twice as many
    too_few = len(set(WORD.findall(answer.lower()))) < FEWEST_WORDS
    return 1.0 - too_many - too_few - (not END.search(answer)) - bool(EXCUSE.search(answer))


def holds(prompt: str, answer: str) -> float:
    """1 where the whole rule holds, else 0."""
    return float(score(prompt, answer) == 1)


def knows(prompt: str, answer: str) -> float:
    """1 where an accepted word stands in the answer by itself (12 is not in 112, nor in 12.5), alone or among others."""
    accepted = _facts()[prompt]
    return float(
        any(re.search(rf"(?<![\w])(?<!\d[.,]){re.escape(fact)}(?!\w|[.,]\d)", answer, re.I) for fact in accepted)
    )


@cache
def _facts() -> dict[str, list[str]]:
    lines = FACTS.read_text(encoding="utf-8").splitlines()
    return {row["prompt"]: row["accepted"] for row in map(json.loads, lines)}
