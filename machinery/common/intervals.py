"""Intervals, tests and verdicts for what is measured on a sample of prompts.

    mean, low, high = mean_interval([2.1, 0.9, ...])       # one value a prompt
    share, low, high = rate([1, 0, 0.5, ...])              # one outcome a prompt, a tie is 0.5
    p = paired_test([0.5, -0.5, 0.0, ...])                 # differences: could their mean be 0?
    share, low, high = length_controlled_rate(wins, length_differences, LANGUAGE_MODEL_JUDGE)

Two prompts are two draws from the world; two answers to one prompt are not. So average over a prompt's answers first,
and pass one value a prompt. What is nan or infinite is an error here: leave it out where it arises, and say so. Where
the values cannot tell how sure they are (one value, or all the same) the ends of an interval are nan, never equal.
`benchmarks/interval_coverage.py` measures how often the intervals hold the truth.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
SURE = 1 - LEVEL  # a p-value below it is more than chance
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96
MOST_DRAWS = 2**20  # of a permutation test in memory at once


def mean_interval(values, level: float = LEVEL) -> tuple[float, float, float]:
    """The mean of `values` and its interval by Student's t (Student 1908).

    values: one number a prompt, at least one. Returns (mean, low, high), the ends nan where no two values differ.
    """
    values = _finite(values, "values")
    mean, count = float(values.mean()), len(values)
    if (values == values[0]).all():
        return mean, math.nan, math.nan
    half = t_quantile(count - 1, (1 + level) / 2) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def one_a_prompt(values, prompt_of) -> np.ndarray:
    """The mean of each prompt's values. prompt_of: of each value a number, equal for equal prompts; None: each has its own."""
    values = np.asarray(values, dtype=float)
    if prompt_of is None:
        return values
    _, places, counts = np.unique(prompt_of, return_inverse=True, return_counts=True)
    return np.bincount(places, weights=values) / counts


def with_interval(measured: tuple[float, float, float], digits: int = 2, sign: str = "") -> str:
    """A mean and the ends of its interval, as in 0.88 [0.83, 0.92]; the mean alone where the ends are not known.

    sign: "+" for a change, which is then shown with its sign.
    """
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in measured)
    return mean if math.isnan(measured[1]) else f"{mean} [{low}, {high}]"


def wilson(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """Wilson's 95% interval for a share of `count` independent draws (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)  # rounding leads out of [0, 1]


def rate(outcomes) -> tuple[float, float, float]:
    """A share and Wilson's interval, with halves for ties; between 0 and 1 too where prompts have several answers.

    outcomes: one number a prompt, 0 to 1. Ties vary less than wins and losses do, as more draws would: the count is
    Kish's effective one (Survey Sampling, 1965), which is the count itself without ties. Returns (share, low, high).
    """
    outcomes = _finite(outcomes, "outcomes")
    if outcomes.min() < 0 or outcomes.max() > 1:
        raise ValueError(f"outcomes lie between 0 and 1, not between {outcomes.min():g} and {outcomes.max():g}.")
    share, count = float(outcomes.mean()), len(outcomes)
    binomial = share * (1 - share)  # the variance, were every outcome 0 or 1
    # What ties take from it. Few of them prove little: as Wilson's lower bound, nothing but ties counts n / (n + z^2).
    less = float((outcomes * (1 - outcomes)).mean()) * count / (count + Z * Z)
    return share, *wilson(share, count * binomial / (binomial - less) if less else count)


def correlation(xs, ys) -> tuple[float, float, float]:
    """Spearman's rank correlation and its interval by Fisher's z, with Bonett and Wright's standard error (2000).

    Returns (correlation, low, high): nan where one side does not vary or there are fewer than three pairs; with three
    pairs the ends alone are nan.
    """
    ranks = np.stack([_ranks(_finite(xs, "xs")), _ranks(_finite(ys, "ys"))])
    count = ranks.shape[1]
    if count < 3 or min(ranks.std(axis=1)) == 0:
        return math.nan, math.nan, math.nan
    value = float(np.corrcoef(ranks)[0, 1].clip(-1, 1))
    if count == 3:
        return value, math.nan, math.nan
    # Fisher's z of 1 is infinite: a perfect order is taken for one with two neighbours swapped, the nearest to it.
    most = 1 - 12 / (count * (count * count - 1))
    within = min(max(value, -most), most)
    half = Z * math.sqrt((1 + within * within / 2) / (count - 3))
    low, high = math.tanh(math.atanh(within) - half), math.tanh(math.atanh(within) + half)
    return value, min(low, value), max(high, value)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[places]


def _finite(values, name: str) -> np.ndarray:
    """As an array of floats; a ValueError that names the first one that is nan or infinite."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError(f"{name}: there are none.")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"{name}[{wrong[0]}] is {values[wrong[0]]}{more}: leave out what was not measured.")
    return values


@lru_cache(maxsize=1024)
def t_quantile(degrees: int, probability: float) -> float:
    """Where Student's t distribution reaches a probability above 0.5; within 1e-5 of itself.

    With t = sqrt(degrees) * tan(angle) its density is cos(angle)^(degrees - 1), which trapezoids integrate well.
    """
    angles = np.linspace(0, min(math.pi / 2, 40 / math.sqrt(degrees)), 20_001)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp(2 * probability - 1, mass / mass[-1], angles))


# --- Is there a difference? ------------------------------------------------------------------------------------------


def paired_test(differences, repetitions: int = 10_000, seed: int = 0) -> float:
    """The p-value of a mean difference: how often chance signs reach one as large (Fisher's sign-flip permutation test).

    differences: one a prompt, such as win - 0.5. At least 1 / (repetitions + 1).
    """
    differences = _finite(differences, "differences")
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


def smallest_difference(differences, comparisons: int = 1) -> float:
    """The true mean difference that so many prompts would show in four evaluations of five.

    comparisons: among so many tests, of which Holm's correction asks most of the first. The spread is that around 0, as
    where the difference is small, and not around the mean that was seen: wins of a model that wins always do not vary.
    """
    differences = _finite(differences, "differences")
    spread = math.sqrt(float((differences**2).mean()))
    return _found_in_four_of_five(comparisons) * spread / math.sqrt(len(differences))


def prompts_needed(differences, comparisons: int = 1) -> float:
    """How many prompts would show the difference that was seen, if it is the true one, in four evaluations of five."""
    differences = _finite(differences, "differences")
    mean = float(differences.mean())
    return math.inf if mean == 0 else (_found_in_four_of_five(comparisons) * float(differences.std(ddof=1)) / mean) ** 2


def _found_in_four_of_five(comparisons: int) -> float:
    """So many standard errors from 0 a test at 5%, corrected for its number, finds four times out of five: 2.8 alone."""
    return NormalDist().inv_cdf(1 - SURE / 2 / comparisons) + NormalDist().inv_cdf(0.8)


# --- Length ----------------------------------------------------------------------------------------------------------


class SlopePrior(NamedTuple):
    """What is known of a judge before it judges: by how many logits a win is likelier at one unit of tanh length."""

    mean: float
    sd: float


# AlpacaEval draws the slope of every model towards a common one by adding answers that were made longer or shorter on
# purpose (arXiv:2404.04475); the 199 published ones are 1.5 in the mean. Those are slopes for a question of known
# difficulty. Averaged over questions, whose difficulty is spread by about 1.6 logits, they are flatter by
# sqrt(1 + 0.346 * 1.6^2) = 1.37 (Zeger, Liang and Albert 1988): 1.1, at the end of the ridge of means and widths that
# come nearest to AlpacaEval's published rates (benchmarks/length_control.py).
LANGUAGE_MODEL_JUDGE = SlopePrior(mean=1.1, sd=0.1)
# Of truth, scores and people nothing is known: the data says, within what a judge may plausibly do.
OTHER_JUDGE = SlopePrior(mean=0.0, sd=1.0)


def length_controlled_rate(wins, length_differences, prior: SlopePrior = OTHER_JUDGE) -> tuple[float, float, float]:
    """The win rate where both answers are equally long, by a logistic regression, with its 95% interval over prompts.

    wins: one a prompt, 0 to 1. length_differences: the answer's length less that of the other one, one a prompt.
    prior: of the regression's slope on tanh of the standardised difference; the rate is read off at a difference of 0,
    as AlpacaEval does (arXiv:2404.04475). Its term for a question's difficulty is left out: it needs many models on the
    same prompts. Returns (rate, low, high); the plain rate where all lengths, or all outcomes, are equal. It says how
    win rate and length go together, not why; and beyond one `length_shift` it extrapolates.
    """
    wins, lengths = _finite(wins, "wins"), _finite(length_differences, "length_differences")
    if lengths.std() == 0 or wins.std() == 0:
        return rate(wins)
    design = np.stack([np.ones_like(lengths), np.tanh(lengths / lengths.std())], axis=1)  # (n, 2)
    weights, covariance = _fit_logistic(wins, design, prior)
    half = t_quantile(max(1, len(wins) - 2), (1 + LEVEL) / 2) * math.sqrt(covariance[0, 0])
    return tuple(float(_sigmoid(weights[0] + by)) for by in (0, -half, half))


def length_shift(length_differences) -> float:
    """By how many standard deviations answers are longer in the mean, which is how far length control must reach."""
    lengths = _finite(length_differences, "length_differences")
    mean, sd = float(lengths.mean()), float(lengths.std())
    return mean / sd if sd else math.copysign(math.inf, mean) if mean else 0.0


def _fit_logistic(
    wins: np.ndarray, design: np.ndarray, prior: SlopePrior, steps: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope with the highest posterior by Newton's method, (2,), and their covariance, (2, 2).

    The covariance is the sandwich estimator (Huber 1967), in which the prior is one more observation of the slope with
    an error of its own. The intercept has a prior so wide that it only gives an end to outcomes that all go one way.
    """
    centre, precision = np.array([0.0, prior.mean]), np.diag([1e-2, prior.sd**-2])
    weights = centre
    for _ in range(steps):
        chance = _sigmoid(design @ weights)
        curvature = (design.T * (chance * (1 - chance))) @ design + precision
        step = np.linalg.solve(curvature, design.T @ (wins - chance) - precision @ (weights - centre))
        weights = weights + step.clip(-2, 2)
    scores = design * (wins - chance)[:, None]  # (n, 2)
    count = len(wins)
    inverse = np.linalg.inv(curvature)
    return weights, inverse @ (scores.T @ scores * count / max(1, count - 2) + precision) @ inverse


def _sigmoid(values):
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))
