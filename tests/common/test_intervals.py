"""Intervals hold the truth, tests keep their level, and lengths are taken out: by hand and by simulation."""

import sys

import numpy as np
import pytest
from conftest import PROJECT

from machinery.common import intervals
from machinery.common.intervals import (
    bootstrap_mean,
    correlation,
    holm,
    length_controlled_rate,
    paired_test,
    prompts_needed,
    rate,
    smallest_difference,
    wilson,
)

sys.path.insert(0, str(PROJECT / "benchmarks"))
from interval_coverage import KINDS, coverage


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.thorough) if "length" in kind else kind for kind in KINDS]
)
def test_a_95_percent_interval_holds_the_truth_in_about_95_of_100_evaluations(kind):
    # 200 here, 2,000 in benchmarks/interval_coverage.py: three standard errors of 200 draws are 0.046
    held, estimate, truth = coverage(KINDS[kind], repetitions=200, prompts=200)
    assert 0.90 <= held <= 0.995
    assert estimate == pytest.approx(truth, rel=0.03)


def test_the_bootstrap_is_over_what_it_is_given():
    mean, low, high = bootstrap_mean([0.0, 1.0] * 200)
    assert mean == 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.05)  # two standard errors of 400 coin tosses
    assert bootstrap_mean([3.0]) == (3.0, 3.0, 3.0)


def test_draws_in_small_parts_are_the_same_draws(monkeypatch):
    values, others = np.random.default_rng(0).normal(size=(2, 60))
    measures = (
        lambda: bootstrap_mean(values),
        lambda: correlation(values, others),
        lambda: length_controlled_rate((values > 0) * 1.0, others),
        lambda: paired_test(values),
    )
    at_once = [measure() for measure in measures]
    monkeypatch.setattr(intervals, "MOST_DRAWS", 1_000)  # 16 repetitions at a time
    assert [measure() for measure in measures] == at_once


def test_a_share_without_ties_has_wilsons_interval_and_one_with_ties_the_bootstraps():
    assert rate([1, 1, 1, 0]) == (0.75, *wilson(0.75, 4))
    share, low, high = rate([1, 0.5, 0.5, 0])
    assert share == 0.5
    assert (low, high) != wilson(0.5, 4)


def test_the_paired_test_by_hand():
    # Of the 16 ways to give four equal differences a sign, two have a sum as large: p = 2 / 16.
    assert paired_test([1.0, 1.0, 1.0, 1.0], repetitions=100_000) == pytest.approx(2 / 16, abs=0.005)
    assert paired_test([0.0] * 50) == 1.0
    assert paired_test([0.5] * 50) == pytest.approx(1 / 10_001)


def test_the_paired_test_finds_nothing_where_there_is_nothing_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    p_values = [paired_test(rng.choice([-0.5, 0.0, 0.5], size=40), repetitions=400) for _ in range(200)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.046)


def test_holms_correction_by_hand():
    # 0.01 * 3 = 0.03; 0.02 * 2 = 0.04; 0.04 * 1 = 0.04, and no later one may be below an earlier one
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]


def test_how_many_prompts_are_needed_by_hand():
    # a win rate of 0.6 of prompts that are won or lost: sd of win - 0.5 is 0.49, (2.8 * 0.49 / 0.1)^2 = 188
    differences = np.array([0.5] * 600 + [-0.5] * 400)
    assert prompts_needed(differences) == pytest.approx((2.8 * 0.4899 / 0.1) ** 2, rel=0.01)
    assert smallest_difference(differences) == pytest.approx(2.8 * 0.4899 / np.sqrt(1000), rel=0.01)
    assert prompts_needed(np.array([0.5, -0.5])) == np.inf


def test_that_many_prompts_find_it_four_times_out_of_five():
    rng = np.random.default_rng(1)
    count = round(prompts_needed(np.array([0.5] * 600 + [-0.5] * 400)))
    found = [paired_test(rng.choice([0.5, -0.5], p=[0.6, 0.4], size=count), repetitions=300) < 0.05 for _ in range(150)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


@pytest.mark.thorough
def test_a_planted_liking_for_length_is_taken_out():
    rng = np.random.default_rng(0)
    longer_by = rng.normal(20, 20, size=5000)  # this model writes more
    wins = rng.random(5000) < 1 / (1 + np.exp(-1.5 * np.tanh(longer_by / longer_by.std())))  # and wins by that alone
    assert wins.mean() > 0.65
    fair, low, high = length_controlled_rate(wins, longer_by)
    assert fair == pytest.approx(0.5, abs=0.03)
    assert low < 0.5 < high


def test_equal_lengths_leave_the_win_rate_as_it_is():
    assert length_controlled_rate([1, 0, 1, 1], [3, 3, 3, 3]) == rate([1, 0, 1, 1])


def test_where_all_are_won_length_explains_nothing():
    for count in (3, 200):
        assert length_controlled_rate(np.ones(count), np.arange(count)) == rate(np.ones(count))


def test_wilsons_interval_stays_between_0_and_1():
    for share in (0.0, 1.0):
        low, high = wilson(share, 20)
        assert 0 <= low < high <= 1


def test_one_sided_outcomes_have_an_end():
    fair, low, high = length_controlled_rate([0.0] * 15 + [1.0] * 15, np.arange(30) - 14.5)  # told apart by length
    assert fair == pytest.approx(0.5)
    assert 0.05 < low < fair < high < 0.95


def test_the_rank_correlation_by_hand():
    value, low, high = correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert value == pytest.approx(1 - 6 * 2 / (5 * 24))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert low <= value <= high
    assert np.isnan(correlation([1, 1, 1], [1, 2, 3])[0])
    assert correlation([1, 1, 2, 2], [5, 5, 9, 9])[0] == pytest.approx(1)  # ties share a rank
