"""Of several scored answers the clearest, a random or every pair; never two that are equal."""

import json

import pytest

from machinery.common.errors import UserError
from machinery.data.files import Row
from machinery.data.load import load_pairs
from machinery.data.pairs import choose_pairs, make_pairs
from machinery.data.report import verdict
from machinery.readings.recognise import recognise


def test_pairing_by_hand():
    scores = [3.0, 1.0, 3.0, 2.0]  # two are best, so they are never compared with each other
    assert choose_pairs(scores, "best_worst", 0.0, "0") == [(0, 1)]
    assert choose_pairs(scores, "all", 0.0, "0") == [(0, 3), (0, 1), (2, 3), (2, 1), (3, 1)]
    assert choose_pairs(scores, "all", 1.5, "0") == [(0, 1), (2, 1)]
    assert choose_pairs(scores, "best_worst", 2.5, "0") == []
    assert choose_pairs([1.0, 1.0], "all", 0.0, "0") == []


def test_a_least_margin_counts_as_it_is_written():
    assert choose_pairs([0.3, 0.2], "all", 0.1, "0") == [(0, 1)]  # in binary 0.3 - 0.2 is below 0.1
    pair = {"prompt": "Why?", "chosen": "It is so.", "rejected": "It is not."}
    rows = [Row("row 0", pair | {"score_chosen": 0.3, "score_rejected": 0.2})]
    reading = recognise([row.value for row in rows])
    assert ["chosen" in made for margin in (0.1, 0.11) for made in make_pairs(rows, reading, min_margin=margin)] == [
        True,
        False,
    ]


def test_pairs_left_out_by_a_margin_are_no_fault_of_the_data(tmp_path, capsys):
    rows = [
        {"prompt": f"Why {n}?", "response_a": f"So {n}.", "response_b": f"No {n}.", "score_a": 9, "score_b": n}
        for n in range(9)
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = load_pairs(str(path), None, None, min_margin=5.0)[2]["train"]
    assert report["dropped_by_reason"] == {"not_chosen": 4}
    assert verdict(report)[0].startswith("Sound")
    assert "has no effect" not in capsys.readouterr().out


def test_streaming_takes_the_same_flags(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Why {n}?", "chosen": "So.", "rejected": f"No {n}."}) + "\n" for n in range(9))
    )
    for flags, words in (
        (dict(pairing="best_wrost"), "--pairing best_wrost: there are"),
        (dict(keep_findings=["dupplicate"]), "--keep_findings dupplicate: there are"),
        (dict(save_cleaned="clean.jsonl"), "--save_cleaned writes what was read whole"),
    ):
        with pytest.raises(UserError, match=words):
            load_pairs(str(path), None, None, streaming=True, **flags)


def test_best_against_random_is_a_worse_one_and_the_same_for_the_same_seed():
    scores = [0.0, 5.0, 2.0, 3.0, 5.0]
    drawn = {choose_pairs(scores, "best_random", 0.0, str(seed))[0] for seed in range(50)}
    assert drawn == {(1, 0), (1, 2), (1, 3)}
    assert choose_pairs(scores, "best_random", 0.0, "7") == choose_pairs(scores, "best_random", 0.0, "7")


def test_best_against_two_standard_deviations_below_the_mean_passes_over_the_worst_of_many():
    scores = [10.0] + [5.0] * 30 + [4.9, 2.0, -20.0]  # mean 4.6, standard deviation 4.4: aimed at -4.2
    assert choose_pairs(scores, "best_2sigma", 0.0, "") == [(0, 32)]
    assert choose_pairs([0.0, 1.0, 2.0, 5.0], "best_2sigma", 0.0, "") == [(3, 0)]  # none of four can lie so far out
    assert choose_pairs([1.0, 1.0], "best_2sigma", 0.0, "") == []
