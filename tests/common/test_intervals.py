"""Intervals hold the truth, tests keep their level, and lengths are taken out: by hand, by simulation, by referees.

The referees are scipy and statsmodels. They are imported where they are asked, since that takes seconds.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT

from machinery.common import intervals
from machinery.common.intervals import (
    LANGUAGE_MODEL_JUDGE,
    OTHER_JUDGE,
    SlopePrior,
    correlation,
    holm,
    length_controlled_rate,
    length_shift,
    mean_interval,
    paired_test,
    prompts_needed,
    rate,
    smallest_difference,
    t_quantile,
    wilson,
    with_interval,
)

sys.path.insert(0, str(PROJECT / "benchmarks"))
from interval_coverage import KINDS, coverage


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.thorough) if "length" in kind else kind for kind in KINDS]
)
def test_a_95_percent_interval_holds_the_truth_in_about_95_of_100_evaluations(kind):
    # 200 here, 2,000 in benchmarks/interval_coverage.py: three standard errors of 200 draws are 0.046
    held, estimate, truth = coverage(KINDS[kind], repetitions=200, prompts=200)
    assert (0.87 if "log-normal" in kind else 0.90) <= held <= 0.995
    assert estimate == pytest.approx(truth, rel=0.03, abs=0.02)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("mean, normal", "rate of"))])
@pytest.mark.parametrize("prompts", [4, 8])
def test_few_prompts_make_intervals_wide_enough(kind, prompts):
    held, _, _ = coverage(KINDS[kind], repetitions=400, prompts=prompts)
    assert held >= 0.90 - 3 * 0.015  # three standard errors of 400 draws


# --- Means and rates ---


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 29, 199, 700, 100_000])
@pytest.mark.parametrize("probability", [0.75, 0.975, 0.995])
def test_students_quantiles_are_those_of_scipy(degrees, probability):
    from scipy import stats

    assert t_quantile(degrees, probability) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-5)


@pytest.mark.parametrize("count", [2, 4, 8, 50])
def test_the_interval_of_a_mean_is_that_of_scipy_and_statsmodels(count):
    from scipy import stats
    from statsmodels.stats.weightstats import DescrStatsW

    values = np.random.default_rng(count).normal(3, 2, size=count)
    mean, *ends = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert mean == pytest.approx(values.mean())
    assert ends == pytest.approx([expected.low, expected.high], rel=1e-5)
    assert ends == pytest.approx(DescrStatsW(values).tconfint_mean(), rel=1e-5)


def test_a_mean_by_hand():
    # 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees 4.303
    assert mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-4)


@pytest.mark.parametrize("values", [[3.0], [3.0] * 10, [0.1] * 7])
def test_where_no_two_values_differ_nothing_tells_how_sure_their_mean_is(values):
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values[0])
    assert np.isnan([low, high]).all()
    assert with_interval((mean, low, high), 1) == f"{values[0]}"


@pytest.mark.parametrize(("won", "count"), [(0, 4), (3, 4), (8, 8), (27, 50), (180, 200)])
def test_a_share_without_ties_has_wilsons_interval_as_statsmodels_has_it(won, count):
    from statsmodels.stats.proportion import proportion_confint

    expected = proportion_confint(won, count, method="wilson")
    assert rate([1] * won + [0] * (count - won)) == pytest.approx((won / count, *expected))
    assert wilson(won / count, count) == pytest.approx(expected)


def test_one_tie_moves_an_interval_by_little():
    _, low, high = rate([1] * 13 + [0] * 7)
    share, low_tied, high_tied = rate([1] * 12 + [0.5] + [0] * 7)
    assert share == 12.5 / 20
    assert (low_tied, high_tied) == pytest.approx((low, high), abs=0.025)  # half a win of twenty


def test_many_ties_make_an_interval_as_narrow_as_the_outcomes_are_steady():
    from scipy import stats

    outcomes = np.array([1.0] * 60 + [0.5] * 100 + [0.0] * 40)
    share, low, high = rate(outcomes)
    assert share == 0.55
    standard_error = stats.sem(outcomes)
    assert (high - low) / (2 * 1.96 * standard_error) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("count", [1, 4, 8, 200])
def test_nothing_but_ties_still_has_an_interval(count):
    # as wide as if all that could still be wins were wins: Wilson's lower bound of the share of ties is n / (n + z^2)
    share, low, high = rate([0.5] * count)
    assert share == 0.5
    assert 0.5 - low == pytest.approx(high - 0.5)
    assert high == pytest.approx(1 - 0.5 * count / (count + 1.96**2), abs=0.06)


@pytest.mark.parametrize("outcomes", [[0], [1], [0.5], [1] * 4, [0, 1], [0.25] * 4, [1, 1, 0.5], [1e-9] * 30])
def test_no_rate_has_an_interval_without_width_or_outside_of_0_to_1(outcomes):
    share, low, high = rate(outcomes)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0.01


# --- What is not a number ---


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("values", mean_interval),
        ("outcomes", rate),
        ("xs", lambda values: correlation(values, range(5))),
        ("ys", lambda values: correlation(range(5), values)),
        ("differences", paired_test),
        ("differences", smallest_difference),
        ("differences", prompts_needed),
        ("wins", lambda values: length_controlled_rate(values, range(5))),
        ("length_differences", lambda values: length_controlled_rate([0, 1, 0, 1, 1], values)),
        ("length_differences", length_shift),
    ],
)
def test_what_is_not_a_number_is_an_error_that_names_it(name, measure, wrong):
    with pytest.raises(ValueError, match=rf"^{name}\[2\] is {wrong}"):
        measure([0.0, 1.0, wrong, 0.5, 0.0])
    with pytest.raises(ValueError, match=f"^{name}: there are none"):
        measure([])


def test_a_rate_is_of_outcomes_between_0_and_1():
    with pytest.raises(ValueError, match="between 0 and 1, not between 0 and 2"):
        rate([0, 1, 2])


def test_the_referees_are_not_needed_to_run():
    code = "import sys; sys.modules['scipy'] = sys.modules['statsmodels'] = None; import machinery.common.intervals"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


# --- Is there a difference? ---


def test_a_permutation_in_small_parts_is_the_same_permutation(monkeypatch):
    values = np.random.default_rng(0).normal(size=60)
    at_once = paired_test(values)
    monkeypatch.setattr(intervals, "MOST_DRAWS", 1_000)  # 16 repetitions at a time
    assert paired_test(values) == at_once


@pytest.mark.parametrize("count", [6, 12, 40])
def test_the_paired_test_is_that_of_scipy(count):
    from scipy import stats

    differences = np.random.default_rng(count).normal(0.4, 1, size=count)
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    assert paired_test(differences, repetitions=20_000) == pytest.approx(expected.pvalue, abs=0.012)


def test_holms_correction_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(0).random(9) ** 3
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


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
    assert smallest_difference(differences) == pytest.approx(2.8 * 0.5 / np.sqrt(1000), rel=0.01)
    assert prompts_needed(np.array([0.5, -0.5])) == np.inf
    # what one run won always, another has to win somewhat more often than not: the spread is that of a coin
    assert smallest_difference(np.array([0.5] * 190 + [-0.5] * 10)) == pytest.approx(0.10, abs=0.002)


def test_that_many_prompts_find_it_four_times_out_of_five():
    rng = np.random.default_rng(1)
    count = round(prompts_needed(np.array([0.5] * 600 + [-0.5] * 400)))
    found = [paired_test(rng.choice([0.5, -0.5], p=[0.6, 0.4], size=count), repetitions=300) < 0.05 for _ in range(150)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


# --- Length ---


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


def test_outcomes_that_length_tells_apart_have_an_end():
    fair, low, high = length_controlled_rate([0.0] * 15 + [1.0] * 15, np.arange(30) - 14.5)
    assert fair == pytest.approx(0.5)
    assert 0.05 < low < fair < high < 0.95


@pytest.mark.parametrize("prior", [LANGUAGE_MODEL_JUDGE, OTHER_JUDGE])
def test_length_control_is_a_logistic_regression_of_statsmodels_with_the_prior_as_penalty(prior):
    import statsmodels.api as sm
    from scipy import optimize

    rng = np.random.default_rng(2)
    longer_by = rng.normal(10, 20, size=120)
    feature = np.tanh(longer_by / longer_by.std())
    wins = (rng.random(120) < 1 / (1 + np.exp(-feature))) * 1.0
    design = sm.add_constant(feature)
    model = sm.Logit(wins, design)

    def penalised(weights):
        return -model.loglike(weights) + (weights[1] - prior.mean) ** 2 / (2 * prior.sd**2) + weights[0] ** 2 / 200

    found = optimize.minimize(penalised, [0.0, prior.mean], tol=1e-10).x
    expected = 1 / (1 + np.exp(-found[0]))
    assert length_controlled_rate(wins, longer_by, prior)[0] == pytest.approx(expected, abs=1e-4)


def test_without_a_prior_the_interval_is_the_sandwich_of_statsmodels():
    import statsmodels.api as sm
    from scipy import stats

    rng = np.random.default_rng(3)
    longer_by = rng.normal(10, 20, size=120)
    wins = (rng.random(120) < 0.6) * 1.0
    design = sm.add_constant(np.tanh(longer_by / longer_by.std()))
    fit = sm.GLM(wins, design, family=sm.families.Binomial()).fit(cov_type="HC1")  # n / (n - 2), as ours
    half = stats.t.ppf(0.975, 118) * fit.bse[0]
    expected = 1 / (1 + np.exp(-(fit.params[0] + np.array([0, -half, half]))))
    assert length_controlled_rate(wins, longer_by, SlopePrior(0.0, 100.0)) == pytest.approx(tuple(expected), abs=2e-3)


def test_a_strong_prior_decides_where_little_is_seen():
    longer_by = np.random.default_rng(0).normal(20, 20, size=25).repeat(2)
    wins = np.array([0.0, 1.0] * 25)  # as often won at any length: the data says that the slope is 0
    shift = np.tanh(longer_by / longer_by.std()).mean()
    by_model, by_truth = (
        length_controlled_rate(wins, longer_by, prior)[0] for prior in (LANGUAGE_MODEL_JUDGE, OTHER_JUDGE)
    )
    assert by_truth == pytest.approx(0.5)
    assert by_model == pytest.approx(1 / (1 + np.exp(1.1 * shift)), abs=0.02)  # 1.1 logits a unit are taken away


def test_how_far_lengths_are_shifted_by_hand():
    assert length_shift([1, 3]) == 2  # mean 2, standard deviation 1
    assert length_shift([-1, -3]) == -2
    assert length_shift([0, 0]) == 0
    assert length_shift([5, 5]) == math.inf


# --- Correlation ---


@pytest.mark.parametrize("count", [4, 8, 50])
def test_the_rank_correlation_is_that_of_scipy(count):
    from scipy import stats

    xs, ys = np.random.default_rng(count).integers(0, 10, size=(2, count))  # with ties
    value, low, high = correlation(xs, ys)
    assert value == pytest.approx(stats.spearmanr(xs, ys).statistic)
    z, half = np.arctanh(value), stats.norm.ppf(0.975) * np.sqrt((1 + value**2 / 2) / (count - 3))
    assert (low, high) == pytest.approx((np.tanh(z - half), np.tanh(z + half)))


def test_the_rank_correlation_by_hand():
    value, low, high = correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert value == pytest.approx(1 - 6 * 2 / (5 * 24))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert low < value < high
    assert np.isnan(correlation([1, 1, 1], [1, 2, 3])[0])
    assert correlation([1, 1, 2, 2], [5, 5, 9, 9])[0] == pytest.approx(1)  # ties share a rank


@pytest.mark.parametrize("count", [4, 10, 300])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_is_not_certain(count, sign):
    value, *ends = correlation(range(count), sign * np.arange(count))
    assert value == pytest.approx(sign)
    near, far = sorted(ends, key=lambda end: abs(end - sign))
    assert near == pytest.approx(sign)
    assert 0 < abs(far - sign) < 12 / count  # the fewer, the wider


def test_three_pairs_have_a_correlation_and_no_interval():
    value, low, high = correlation([1, 2, 3], [1, 3, 2])
    assert value == pytest.approx(0.5)
    assert np.isnan([low, high]).all()
