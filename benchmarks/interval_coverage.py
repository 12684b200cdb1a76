"""Do the intervals hold the truth as often as they say? Simulated evaluations whose truth is known, for each kind.

    python benchmarks/interval_coverage.py                             # 2,000 evaluations a cell: two minutes
    python benchmarks/interval_coverage.py --prompts 20 100            # other numbers of prompts

A 95% interval should hold the truth in 95% of evaluations.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery.common.intervals import (
    LANGUAGE_MODEL_JUDGE,
    OTHER_JUDGE,
    correlation,
    length_controlled_rate,
    mean_interval,
    rate,
)

SAMPLES = 4  # answers a prompt


def normal_mean(rng: np.random.Generator, prompts: int):
    """Scores of a normal distribution."""
    return mean_interval(rng.normal(3.0, 2.0, size=prompts)), 3.0


def skewed_mean(rng: np.random.Generator, prompts: int):
    """Log-ratios as those of the KL, four answers a prompt: most of them small, a few large."""
    return mean_interval(rng.gamma(1.5, 2.0, size=(prompts, SAMPLES)).mean(axis=1)), 3.0


def very_skewed_mean(rng: np.random.Generator, prompts: int):
    """One log-normal value a prompt: a few values make most of the mean."""
    return mean_interval(rng.lognormal(0.0, 1.0, size=prompts)), float(np.exp(0.5))


def share(truth: float, ties: float = 0.0):
    """One answer a prompt that wins, loses or, in a share of `ties`, neither."""

    def simulate(rng: np.random.Generator, prompts: int):
        drawn, won = rng.random(prompts), truth - ties / 2
        return rate(np.where(drawn < won, 1.0, np.where(drawn < won + ties, 0.5, 0.0))), truth

    return simulate


def answers_rate(rng: np.random.Generator, prompts: int):
    """Four answers a prompt, of which prompts differ in how often they are won; some ties."""
    chance = rng.beta(1.5, 1.0, size=(prompts, 1))
    is_tie, is_won = rng.random((prompts, SAMPLES)) < 0.2, rng.random((prompts, SAMPLES)) < chance
    return rate(np.where(is_tie, 0.5, is_won).mean(axis=1)), 0.8 * 0.6 + 0.2 * 0.5


def rank_correlation(pearson: float):
    """Two scores of a normal distribution: where Pearson's correlation is r Spearman's is 6 / pi * asin(r / 2)."""

    def simulate(rng: np.random.Generator, prompts: int):
        one, other = rng.normal(size=(2, prompts))
        return correlation(one, pearson * one + np.sqrt(1 - pearson**2) * other), 6 / np.pi * np.arcsin(pearson / 2)

    return simulate


def equal_length(prior, slope, slope_sd=0.0):
    """At equal length the win rate is sigmoid(0.4); answers are longer by three quarters of a standard deviation."""

    def simulate(rng: np.random.Generator, prompts: int):
        longer_by = rng.normal(15, 20, size=prompts)
        chance = 1 / (1 + np.exp(-(0.4 + rng.normal(slope, slope_sd) * np.tanh(longer_by / 20))))
        return length_controlled_rate(rng.random(prompts) < chance, longer_by, prior), 1 / (1 + np.exp(-0.4))

    return simulate


KINDS = {
    "mean, normal (t)": normal_mean,
    "mean, skewed as the KL (t)": skewed_mean,
    "mean, log-normal (t)": very_skewed_mean,
    **{f"rate of {truth}, no ties (Wilson)": share(truth) for truth in (0.5, 0.7, 0.9)},
    **{f"rate of {truth}, a fifth ties (Wilson)": share(truth, 0.2) for truth in (0.5, 0.7, 0.9)},
    "rate of 0.58, four answers a prompt (Wilson)": answers_rate,
    **{f"rank correlation, Pearson's {pearson} (Fisher)": rank_correlation(pearson) for pearson in (0.0, 0.5, 0.9)},
    "equal length, another judge, slope 0": equal_length(OTHER_JUDGE, 0.0),
    "equal length, another judge, slope 1": equal_length(OTHER_JUDGE, 1.0),
    "equal length, language model as judge, the slope of its prior": equal_length(
        LANGUAGE_MODEL_JUDGE, *LANGUAGE_MODEL_JUDGE
    ),
}
# A language model that likes length less than the prior says: these do not hold, and the reader is to know by how much.
OUTSIDE = {
    f"equal length, language model as judge, slope {slope:g}": equal_length(LANGUAGE_MODEL_JUDGE, slope)
    for slope in (0.5, 0.0)
}


def coverage(simulate, repetitions: int, prompts: int, seed: int = 0) -> tuple[float, float, float]:
    """The share of intervals that hold the truth, the mean of the estimates, and the truth."""
    rng = np.random.default_rng(seed)
    held, estimates = 0, []
    for _ in tqdm(range(repetitions), leave=False):
        (estimate, low, high), truth = simulate(rng, prompts)
        held += low <= truth <= high
        estimates.append(estimate)
    return held / repetitions, float(np.nanmean(estimates)), float(truth)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 8, 30, 50, 200])
    options = parser.parse_args()
    first, *others = options.prompts
    print(
        " | ".join(["| interval", f"{first} prompts", *map(str, others)]) + " |\n|---|" + "---|" * len(options.prompts)
    )
    for name, simulate in (KINDS | OUTSIDE).items():
        shares = [coverage(simulate, options.repetitions, prompts)[0] for prompts in options.prompts]
        print(f"| {name} | " + " | ".join(f"{held:.1%}" for held in shares) + " |", flush=True)
    error = np.sqrt(0.95 * 0.05 / options.repetitions)
    print(
        f"\nEach cell: {options.repetitions:,} evaluations, a standard error of {100 * error:.1f} points where 95% hold."
    )


if __name__ == "__main__":
    main()
