"""What a reply is to be like, as a program can check it; and whether the model still knows simple facts.

    --judge recipes/smollm2/rules.py:score    # for pairs: how near an answer comes to the rule
    --judge recipes/smollm2/rules.py:holds    # to evaluate: whether the rule holds, 1 or 0
    --judge recipes/smollm2/rules.py:knows    # whether an answer has the fact that facts.jsonl asks for, 1 or 0

The rule: finished, of at most thirty words and at least four different ones, without an apology, without a refusal to help
and without speaking of itself as a machine. A program cannot see whether such an answer is true, or of use.
"""

import json
import re
from functools import cache
from pathlib import Path

FEWEST_WORDS, MOST_WORDS = 4, 30
MACHINE = r"(an? )?(ai|artificial intelligence|language model|chatbot|computer program|smollm)"
EXCUSE = re.compile(
    rf"\b(i('m| am) (very |so |truly )?sorry|^sorry|apologi[sz]\w*|apology|my apologies|(as|i'm|i am) (just |only |simply )?{MACHINE}"
    r"|(ai|language) model|ai assistant|(can't|cannot|can not|couldn't|unable to|not able to) (assist|help (you|with))"
    r"|i (don't|do not) have (personal|feelings))\b",
    re.I,
)
END = re.compile(r"""(?<!\.)[.!?]["')\]*_]*$""")
NO_END = re.compile(r"(\n\s*\d+|\b(dr|mr|mrs|ms|e\.g|i\.e|etc))\.$", re.I)  # a number of a list, an abbreviation
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
FACTS = Path(__file__).with_name("facts.jsonl")


def score(prompt: str, answer: str) -> float:
    """1 where the rule holds; else mostly the further below, the more is wrong: so of two bad answers one is better."""
    answer = answer.strip().translate(STRAIGHT)
    too_many = max(0, len(answer.split()) - MOST_WORDS) / MOST_WORDS  # 1 for twice as many
    words = set(WORD.findall(answer.lower()))
    too_few = len(words) < FEWEST_WORDS or sum(not word.isdigit() for word in words) < 2
    is_cut = not END.search(answer) or bool(NO_END.search(answer))
    return 1.0 - too_many - too_few - is_cut - bool(EXCUSE.search(answer))


def holds(prompt: str, answer: str) -> float:
    """1 where the whole rule holds, else 0."""
    return float(score(prompt, answer) == 1)


def knows(prompt: str, answer: str) -> float:
    """1 where an accepted word stands in the answer by itself (12 is not in 112, nor in 12.5), alone or among others."""
    answer = re.sub(r"\\text|</?sub>|[{}$_]", "", answer)  # formulas: H_2O, $\text{H}_2\text{O}$, H<sub>2</sub>O
    accepted = _facts()[prompt]
    return float(
        any(
            re.search(rf"(?<![\w])(?<!\d[.,]){re.escape(fact)}(?![^\W\u00ba]|[.,]\d)", answer, re.I)
            for fact in accepted
        )
    )


@cache
def _facts() -> dict[str, list[str]]:
    lines = FACTS.read_text(encoding="utf-8").splitlines()
    return {row["prompt"]: row["accepted"] for row in map(json.loads, lines)}
