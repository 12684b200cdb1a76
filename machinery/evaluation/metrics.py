"""What log-probs of given pairs say about a model: accuracy, margins, calibration. Nothing is generated for it.

    logps = PairLogps(policy_chosen, policy_rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)
    measured = preference_metrics(logps, beta=0.1)
    measured["reward_accuracy"]                      # (mean, low, high), the ends of a 95% interval over the prompts

All of it is about the answers that are in the file. A model can rank those well and write badly.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..common.errors import UserError
from ..common.intervals import correlation, mean_interval, one_a_prompt, rate

BINS = 5  # of confidence, from 0.5 to 1
NO_INTERVAL = (math.nan, math.nan)


class PairLogps(NamedTuple):
    """Summed log-probs of both answers under policy and reference, and their lengths in tokens; arrays of shape (N,)."""

    policy_chosen: np.ndarray
    policy_rejected: np.ndarray
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    chosen_lengths: np.ndarray
    rejected_lengths: np.ndarray


def kl_interval(kls) -> tuple[float, float, float]:
    """The mean KL from the reference, one value a prompt, and its 95% interval; infinite and without one where one value is.

    That happens where a reply holds a token to which the reference gives no chance at all, as where its vocabulary is
    masked. Raises UserError for nan.
    """
    kls = np.asarray(kls, dtype=float)
    wrong = np.flatnonzero(np.isnan(kls))
    if len(wrong):
        raise UserError(
            f"The KL from the reference is nan on {len(wrong)} of {len(kls)} prompts (the first: prompt {wrong[0] + 1}): "
            "log-probs overflow, or weights are broken. Load both models in float32 (--dtype float32), or take others."
        )
    return mean_interval(kls) if np.isfinite(kls).all() else (math.inf, *NO_INTERVAL)


def margins(logps: PairLogps, beta: float) -> np.ndarray:
    """chosen_reward - rejected_reward of each pair (equation 7 of arXiv:2305.18290)."""
    return beta * ((logps.policy_chosen - logps.ref_chosen) - (logps.policy_rejected - logps.ref_rejected))


def preference_metrics(
    logps: PairLogps, beta: float, scores: tuple[list, list] | None = None, prompt_of: np.ndarray | None = None
) -> dict[str, tuple[float, float, float]]:
    """By name: the value and the ends of its 95% interval over the prompts, nan where it has none.

    scores: what the chosen and the rejected answers are worth; None or nan where that is not known. prompt_of: of each
    pair the number of its prompt, whose pairs are averaged first; None: each pair has its own. A margin of exactly 0 is a
    tie and counts half; `ties` is their share. Raises UserError where a log-prob is nan or infinite.
    """
    for name, values in logps._asdict().items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise UserError(
                f"{name} of pair {wrong[0] + 1} is {values[wrong[0]]} ({len(wrong)} of {len(values)} pairs): the model's "
                "log-probs overflow or its weights are broken. Load it in float32 (--dtype float32), or take another one."
            )
    margin = margins(logps, beta)
    chosen_change, rejected_change = logps.policy_chosen - logps.ref_chosen, logps.policy_rejected - logps.ref_rejected
    nll = -logps.policy_chosen / logps.chosen_lengths  # a token, answer by answer
    ref_nll = -logps.ref_chosen / logps.chosen_lengths
    longer = logps.chosen_lengths - logps.rejected_lengths

    def mean(values) -> tuple[float, float, float]:
        return mean_interval(one_a_prompt(values, prompt_of))

    def share(values, of=prompt_of) -> tuple[float, float, float]:
        return rate(one_a_prompt(half_for_ties(values), of))

    def together(
        *sides,
    ) -> tuple[float, float, float]:  # pairs of one prompt are no two draws: then without an interval
        found = correlation(*sides)
        return found if prompt_of is None or len(set(prompt_of)) == len(prompt_of) else (found[0], *NO_INTERVAL)

    measured = {
        "eval_loss": mean(np.logaddexp(0, -margin)),
        "reward_accuracy": share(margin),
        "ties": (float((margin == 0).mean()), *NO_INTERVAL),
        "reward_margin": mean(margin),
        "chosen_logp_change": mean(chosen_change),
        "rejected_logp_change": mean(rejected_change),
        "perplexity_chosen": _perplexity(mean(nll)),
        "perplexity_chosen_reference": _perplexity(mean(ref_nll)),
        "length_only_accuracy": share(longer),
        "margin_length_correlation": together(margin, longer),
        "calibration_error": (calibration_error(margin), *NO_INTERVAL),
    }
    if scores is not None:
        difference = np.asarray(scores[0], dtype=float) - np.asarray(scores[1], dtype=float)
        is_scored = np.isfinite(difference)
        if is_scored.any():
            measured["margin_score_correlation"] = together(margin[is_scored], difference[is_scored])
        known = is_scored & (difference != 0)
        if known.any():  # against the truth instead of the label, which is wrong now and then
            of = None if prompt_of is None else prompt_of[known]
            measured["true_accuracy"] = share(margin[known] * np.sign(difference[known]), of)
    return measured


def prompt_numbers(prompts: Sequence) -> np.ndarray:
    """Of each prompt, a text or turns, a number: equal for equal prompts."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(json.dumps(prompt, sort_keys=True), len(numbers)) for prompt in prompts])


def _perplexity(nll: tuple[float, float, float]) -> tuple[float, float, float]:
    with np.errstate(over="ignore"):  # beyond 709 nats a token it is infinite
        return tuple(np.exp(nll).tolist())


def half_for_ties(values) -> np.ndarray:
    """1 above 0, 0 below, 0.5 at 0."""
    return (np.sign(values) + 1) / 2


def calibration_bins(margin: np.ndarray, prompt_of: np.ndarray | None = None) -> list[dict]:
    """How often the label is right where the policy claims sigmoid(|margin|) for the answer it prefers.

    prompt_of: as for `preference_metrics`; the intervals are over the prompts. Returns low, high, count, predicted, observed, ci_low, ci_high a bin; empty bins are left out.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margin).clip(max=500)))
    is_right = half_for_ties(margin)
    edges = np.linspace(0.5, 1, BINS + 1)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            observed, count = float(is_right[inside].mean()), int(inside.sum())
            _, low, high = rate(one_a_prompt(is_right[inside], None if prompt_of is None else prompt_of[inside]))
            found.append({
                "low": float(edges[number]), "high": float(edges[number + 1]), "count": count,
                "predicted": float(confidence[inside].mean()), "observed": observed, "ci_low": low, "ci_high": high,
            })  # fmt: skip
    return found


def calibration_error(margin: np.ndarray) -> float:
    """The expected calibration error: |observed - predicted| averaged over the bins by their counts (arXiv:1706.04599, Eq. 3).

    It is above 0 by chance alone, the more the fewer pairs there are, so it has no interval here.
    """
    return sum(b["count"] * abs(b["observed"] - b["predicted"]) for b in calibration_bins(margin)) / len(margin)


def by_category(outcomes: np.ndarray, categories: Sequence) -> list[tuple[str, float, float, float, int]]:
    """A rate in each category, (name, value, low, high, count), the lowest first.

    outcomes: 0 to 1, one a row. categories: of each row, None where it has none.
    """
    found = []
    for category in sorted(set(categories) - {None}):
        inside = np.array([name == category for name in categories])
        found.append((category, *rate(outcomes[inside]), int(inside.sum())))
    return sorted(found, key=lambda row: row[1])


# --- Of texts that were generated -----------------------------------------------------------------------------------


def reply_metrics(answers: list[list], suffix: str = "") -> dict[str, tuple[float, float, float]]:
    """Length, repetition, variety and endings of answers that were sampled.

    answers: by prompt, completions with ids and is_finished; where that is None nobody knows how they ended. suffix: put behind each name. Intervals are over prompts.
    """
    by_prompt = {
        "reply_tokens": [[len(answer.ids) for answer in row] for row in answers],
        "stopped_share": [[answer.is_finished for answer in row] for row in answers],
        "repeated_share": [[repeated_share(answer.ids) for answer in row] for row in answers],
    }
    if any(answer.is_finished is None for row in answers for answer in row):
        del by_prompt["stopped_share"]
    means = {name: [np.mean(row) for row in rows] for name, rows in by_prompt.items()}
    measured = {name: mean_interval(values) for name, values in means.items()}
    if "stopped_share" in means:
        measured["stopped_share"] = rate(means["stopped_share"])
    together = [answer.ids for row in answers for answer in row]
    measured["distinct_share"] = (distinct_share(together), *NO_INTERVAL)
    return {name + suffix: values for name, values in measured.items()}


def distinct_share(texts: list[list[int]]) -> float:
    """The share of trigrams over all texts that are different ones (distinct-3, arXiv:1510.03055); nan without any."""
    grams = [gram for ids in texts for gram in zip(ids, ids[1:], ids[2:], strict=False)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repeated_share(ids: list[int]) -> float:
    """The share of a text's trigrams that it has said before; 0 for a text that is too short."""
    return 0.0 if len(ids) < 3 else 1 - distinct_share([ids])
