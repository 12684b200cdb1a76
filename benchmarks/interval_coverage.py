"""Do the intervals hold the truth as often as they say? Simulated evaluations whose truth is known, for each kind.

    python benchmarks/interval_coverage.py                       # 2,000 evaluations of 200 prompts each: two minutes
    python benchmarks/interval_coverage.py --prompts 50          # fewer prompts

A 95% interval should hold the truth in 95% of repetitions; 93 to 97% is what 2,000 repetitions and its own
approximation leave room for.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery.common.intervals import bootstrap_mean, correlation, length_controlled_rate, rate

SAMPLES = 4  # answers a prompt


def win_rate(rng: np.random.Generator, prompts: int):
    """Four answers a prompt, of which prompts differ in how often they are won; some ties. Truth 0.6."""
    chance = rng.beta(1.5, 1.0, size=(prompts, 1))
    outcomes = np.where(rng.random((prompts, SAMPLES)) < 0.2, 0.5, rng.random((prompts, SAMPLES)) < chance)
    return bootstrap_mean(outcomes.mean(axis=1), repetitions=500), 0.8 * 0.6 + 0.2 * 0.5


def share(rng: np.random.Generator, prompts: int):
    """One answer a prompt that is right or wrong: Wilson's interval. Truth 0.85."""
    return rate(rng.random(prompts) < 0.85), 0.85


def skewed_mean(rng: np.random.Generator, prompts: int):
    """Log-ratios as those of the KL: most of them small, a few large. Truth 3."""
    return bootstrap_mean(rng.gamma(1.5, 2.0, size=(prompts, SAMPLES)).mean(axis=1), repetitions=500), 3.0


def rank_correlation(rng: np.random.Generator, prompts: int):
    """Two scores of a normal distribution with correlation 0.5: Spearman's is 6 / pi * asin(0.5 / 2)."""
    one, other = rng.normal(size=(2, prompts))
    return correlation(one, 0.5 * one + np.sqrt(0.75) * other, repetitions=500), 6 / np.pi * np.arcsin(0.25)


def length_controlled(rng: np.random.Generator, prompts: int):
    """A judge that likes length: at equal length the win rate is sigmoid(0.4), the answers are 15 tokens longer."""
    difference = rng.normal(15, 20, size=prompts)
    chance = 1 / (1 + np.exp(-(0.4 + 1.2 * np.tanh(difference / difference.std()))))
    return length_controlled_rate(rng.random(prompts) < chance, difference, repetitions=500), 1 / (1 + np.exp(-0.4))


KINDS = {
    "mean over prompts (bootstrap)": win_rate,
    "skewed mean, as the KL (bootstrap)": skewed_mean,
    "share (Wilson)": share,
    "rank correlation (bootstrap)": rank_correlation,
    "length-controlled win rate (bootstrap)": length_controlled,
}


def coverage(simulate, repetitions: int, prompts: int, seed: int = 0) -> tuple[float, float, float]:
    """The share of intervals that hold the truth, the mean of the estimates, and the truth."""
    rng = np.random.default_rng(seed)
    held, estimates = 0, []
    for _ in tqdm(range(repetitions), desc=simulate.__name__, leave=False):
        (estimate, low, high), truth = simulate(rng, prompts)
        held += low <= truth <= high
        estimates.append(estimate)
    return held / repetitions, float(np.mean(estimates)), float(truth)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=200)
    options = parser.parse_args()
    print("| interval | truth | mean estimate | holds the truth in |\n|---|---|---|---|")
    for name, simulate in KINDS.items():
        held, estimate, truth = coverage(simulate, options.repetitions, options.prompts)
        print(f"| {name} | {truth:.3f} | {estimate:.3f} | {held:.1%} |", flush=True)


if __name__ == "__main__":
    main()
