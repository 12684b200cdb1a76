"""Intervals for what is measured on a sample of prompts.

    mean, low, high = bootstrap_mean([0.2, 0.9, ...])   # one value a prompt

Two prompts are two draws from the world; two answers to one prompt are not. So average over a prompt's answers first,
and pass one value a prompt.
"""

import numpy as np


def bootstrap_mean(values, level: float = 0.95, repetitions: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of `values` and its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    values: one number a prompt, at least one. Returns (mean, low, high).
    """
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(values), size=(repetitions, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
