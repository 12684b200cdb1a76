"""What is measured where numbers leave what a float can hold: said, and never a traceback."""

import math

import numpy as np
import pytest

from machinery.common.errors import UserError
from machinery.common.intervals import mean_interval, rate
from machinery.evaluation.metrics import PairLogps, kl_interval, preference_metrics, prompt_numbers


def test_a_kl_is_a_mean_with_its_interval_and_infinite_where_one_is():
    assert kl_interval([1.0, 2.0, 4.0]) == mean_interval([1.0, 2.0, 4.0])
    mean, *ends = kl_interval(np.array([1.0, math.inf, 2.0]))
    assert mean == math.inf
    assert np.isnan(ends).all()


def test_a_kl_that_is_no_number_is_said_with_its_prompt():
    with pytest.raises(UserError, match=r"nan on 2 of 3 prompts \(the first: prompt 2\).*--dtype float32"):
        kl_interval([1.0, math.nan, math.nan])


def test_pairs_of_one_prompt_are_averaged_first():
    accuracies = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]])  # of four pairs each of three prompts
    chosen = np.where(accuracies.ravel(), -1.0, -3.0)
    logps = PairLogps(chosen, *np.full((3, 12), -2.0), *np.full((2, 12), 5))
    prompt_of = prompt_numbers(["why?"] * 4 + [[{"role": "user", "content": "who?"}]] * 4 + ["when?"] * 4)
    measured = preference_metrics(logps, 1.0, prompt_of=prompt_of)
    assert measured["reward_accuracy"] == rate(accuracies.mean(axis=1))
    assert measured["chosen_logp_change"] == mean_interval((2 * accuracies - 1).mean(axis=1))
    assert (
        measured["reward_accuracy"][2] > preference_metrics(logps, 1.0)["reward_accuracy"][2]
    )  # three draws, not twelve
    assert math.isnan(measured["margin_length_correlation"][1])
    assert prompt_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_perplexity_beyond_any_float_is_infinite():
    logps = [np.array([-5000.0, -5001.0]), np.zeros(2), np.array([-2.0, -3.0]), np.zeros(2)]
    measured = preference_metrics(PairLogps(*logps, np.full(2, 5), np.ones(2)), 0.1)
    assert measured["perplexity_chosen"][0] == math.inf
    assert measured["perplexity_chosen_reference"][0] == pytest.approx(math.exp(0.5))
