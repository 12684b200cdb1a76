"""Intervals, tests and verdicts for what is measured on a sample of prompts.

    mean, low, high = bootstrap_mean([0.2, 0.9, ...])      # one value a prompt
    p = paired_test([0.5, -0.5, 0.0, ...])                 # differences: could their mean be 0?
    rate, low, high = length_controlled_rate(wins, length_differences)

Two prompts are two draws from the world; two answers to one prompt are not. So average over a prompt's answers first,
and pass one value a prompt. `benchmarks/interval_coverage.py` measures how often the intervals hold the truth.
"""

import math
from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
# A test at 5% finds a true difference of (1.96 + 0.84) standard errors four times out of five.
FOUND_IN_FOUR_OF_FIVE = 1.96 + 0.84
MOST_DRAWS = 2**20  # of a bootstrap in memory at once


def bootstrap_mean(values, level: float = LEVEL, repetitions: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of `values` and its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    values: one number a prompt, at least one. Returns (mean, low, high).
    """
    values = np.asarray(values, dtype=float)
    means = [values[drawn].mean(axis=1) for drawn in _draws(len(values), repetitions, seed)]
    return float(values.mean()), *_ends(np.concatenate(means), level)


def with_interval(measured: tuple[float, float, float], digits: int = 2) -> str:
    """A mean and the ends of its interval, as in 0.88 [0.83, 0.92]."""
    mean, low, high = (f"{value:.{digits}f}" for value in measured)
    return f"{mean} [{low}, {high}]"


def _draws(count: int, repetitions: int, seed: int) -> Iterator[np.ndarray]:
    """Which prompts each repetition of a bootstrap holds, some repetitions at a time: (some, count)."""
    rng, at_once = np.random.default_rng(seed), max(1, MOST_DRAWS // count)
    for start in range(0, repetitions, at_once):
        yield rng.integers(count, size=(min(at_once, repetitions - start), count))


def _ends(estimates: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval for a share of `count` independent draws (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)  # rounding leads out of [0, 1]


def rate(outcomes) -> tuple[float, float, float]:
    """A share and its interval: Wilson's where every outcome is 0 or 1, the bootstrap's where some lie between.

    outcomes: one number a prompt, 0.5 for a tie. Returns (share, low, high).
    """
    outcomes = np.asarray(outcomes, dtype=float)
    if np.isin(outcomes, (0.0, 1.0)).all():
        share = float(outcomes.mean())
        return share, *wilson(share, len(outcomes))
    return bootstrap_mean(outcomes)


def correlation(xs, ys, repetitions: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rank correlation and its percentile bootstrap interval; nan where one side does not vary."""
    ranks = np.stack([_ranks(np.asarray(values, dtype=float)) for values in (xs, ys)])
    if min(ranks.std(axis=1)) == 0 or len(ranks[0]) < 3:
        return math.nan, math.nan, math.nan
    estimates = []
    for draws in _draws(ranks.shape[1], repetitions, seed):
        drawn = ranks[:, draws]  # (2, some, count)
        centred = drawn - drawn.mean(axis=2, keepdims=True)
        norms = np.sqrt((centred**2).sum(axis=2))
        estimates.append((centred[0] * centred[1]).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-12))
    return float(np.corrcoef(ranks)[0, 1]), *_ends(np.concatenate(estimates))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[places]


# --- Is there a difference? ------------------------------------------------------------------------------------------


def paired_test(differences, repetitions: int = 10_000, seed: int = 0) -> float:
    """The p-value of a mean difference: how often chance signs reach one as large (Fisher's sign-flip permutation test).

    differences: one a prompt, such as win - 0.5. At least 1 / (repetitions + 1).
    """
    differences = np.asarray(differences, dtype=float)
    observed, rng, reached = abs(differences.sum()), np.random.default_rng(seed), 0
    at_once = max(1, MOST_DRAWS // len(differences))
    for start in range(0, repetitions, at_once):
        signs = rng.choice((-1.0, 1.0), size=(min(at_once, repetitions - start), len(differences)))
        reached += int((abs(signs @ differences) >= observed - 1e-9).sum())
    return (reached + 1) / (repetitions + 1)


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction for several tests (Holm 1979): each p-value as it may be read beside the others."""
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def smallest_difference(differences) -> float:
    """The true mean difference that so many prompts would show in four evaluations of five."""
    differences = np.asarray(differences, dtype=float)
    return FOUND_IN_FOUR_OF_FIVE * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def prompts_needed(differences) -> float:
    """How many prompts would show the difference that was seen, if it is the true one, in four evaluations of five."""
    differences = np.asarray(differences, dtype=float)
    mean = float(differences.mean())
    return math.inf if mean == 0 else (FOUND_IN_FOUR_OF_FIVE * float(differences.std(ddof=1)) / mean) ** 2


# --- Length ----------------------------------------------------------------------------------------------------------


def length_controlled_rate(
    wins, length_differences, repetitions: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The win rate that answers of equal length would have, with its bootstrap interval over prompts.

    wins: one a prompt, 0 to 1. length_differences: of the answer's length to that of the other one, one a prompt. A
    logistic regression of winning on tanh of the standardised difference, read off at a difference of 0, as in
    AlpacaEval's length-controlled rate (arXiv:2404.04475); its term for a prompt's difficulty is left out, since
    it needs many models on the same prompts. Returns (rate, low, high); the plain rate where all lengths, or all
    outcomes, are equal.
    """
    wins, lengths = np.asarray(wins, dtype=float), np.asarray(length_differences, dtype=float)
    if lengths.std() == 0 or wins.std() == 0:
        return rate(wins)
    feature = np.tanh(lengths / lengths.std())
    fits = [_fit_logistic(wins[draws], feature[draws]) for draws in _draws(len(wins), repetitions, seed)]
    [weights] = _fit_logistic(wins[None], feature[None])
    return float(_sigmoid(weights[0])), *_ends(_sigmoid(np.concatenate(fits)[:, 0]))


def _fit_logistic(wins: np.ndarray, feature: np.ndarray, ridge: float = 1e-2, steps: int = 25) -> np.ndarray:
    """Intercept and slope of many logistic regressions at once by Newton's method: (R, n), (R, n) to (R, 2).

    ridge: a slight pull to 0, so that outcomes which can be told apart fully have an end.
    """
    design = np.stack([np.ones_like(feature), feature], axis=-1)  # (R, n, 2)
    weights = np.zeros((len(wins), 2))
    for _ in range(steps):
        chance = _sigmoid((design @ weights[..., None])[..., 0])  # (R, n)
        slope = ((wins - chance)[..., None] * design).sum(axis=1) - ridge * weights
        curvature = np.einsum("rn,rni,rnj->rij", chance * (1 - chance), design, design) + ridge * np.eye(2)
        weights = weights + np.linalg.solve(curvature, slope[..., None])[..., 0].clip(-2, 2)
    return weights


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))
