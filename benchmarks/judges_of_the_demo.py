"""Judges that are not the truth: one that errs, and rules that can be gamed, as `--judge FILE:function` takes them."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.world import true_reward


def noisy(prompt: list[dict], answer: str) -> float:
    """The true reward and as much noise again: the same for the same answer, as a judge's whims are."""
    return true_reward(prompt, answer) + random.Random(f"{prompt[-1]['content']} {answer}").gauss(0, 2)


def polite(prompt: list[dict], answer: str) -> float:
    """How often a rule of politeness finds its words: a person means the courtesy, and counts the words."""
    return float(sum(answer.lower().count(word) for word in ("sorry", "thank you", "please")))


def long(prompt: list[dict], answer: str) -> float:
    """The number of words: many a judge takes length for care."""
    return float(len(answer.split()))


def ten_words(prompt: list[dict], answer: str) -> float:
    """Whether an answer has at most ten words."""
    return float(len(answer.split()) <= 10)
