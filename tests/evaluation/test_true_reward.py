"""The table of true rewards: each column from its own replies, each win from its own pair."""

import math
from types import SimpleNamespace

import pytest

from machinery.evaluation.true_reward import show_true_rewards

TRUTH = SimpleNamespace(
    score=lambda prompt, text: {"length": float(len(text)), "polite": 2.0 * ("please" in text)},
    maxima={"length": 9.0, "polite": 2.0},
    is_well_formed=lambda text: text != "abc",
    without_training="No temperature earns that.",
)


def replies(*texts):
    return [SimpleNamespace(text=text) for text in texts]


def test_each_column_is_the_mean_of_its_own_replies_and_wins_are_pair_by_pair(capsys):
    before = {1: replies("a", "abc"), 0: replies("ab", "ab")}
    after = {1: replies("please", "ab"), 0: replies("ab", "abcd")}
    measured = show_true_rewards(TRUTH, ["p", "q"], before, after)
    means = {name: values[0] for name, values in measured.items()}
    assert means == pytest.approx(
        {"true_reward_before": 2, "true_reward_after": (8 + 2) / 2, "win_rate": 0.5}
        | {"greedy_reward_before": 2, "greedy_reward_after": 3, "greedy_win_rate": 0.75}
        | {"garbled_before": 0.5, "garbled_after": 0, "greedy_garbled_before": 0, "greedy_garbled_after": 0}
    )
    both_2 = measured.pop("greedy_reward_before")  # which tells nothing of their spread
    assert math.isnan(both_2[1]) and math.isnan(both_2[2])
    assert all(low <= mean <= high and low < high for mean, low, high in measured.values())
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:-3]}
    assert rows["length"] == ["2.00", "4.00", "2.00", "3.00", "9"]
    assert rows["polite"] == ["0.00", "1.00", "0.00", "0.00", "2"]
    assert rows["all"] == ["2.00", "5.00", "2.00", "3.00", "11"]
