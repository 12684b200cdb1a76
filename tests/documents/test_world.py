"""The demo's world scores replies as its docstring says, and the shipped data are what the card says."""

import json
import math
import random
from pathlib import Path

import pytest

from demo.world import (
    MAX_REWARD,
    PROBLEMS,
    PRODUCTS,
    QUALITIES,
    is_known,
    is_well_formed,
    known_truth,
    read_prompt,
    score_reply,
    true_reward,
    write_prompt,
    write_reply,
)

PROMPT = [{"role": "user", "content": "Hello. My kettle will not turn on. What now?"}]
SORRY, REMEDY = "Sorry to hear about the kettle.", "Hold the power button of the kettle for ten seconds."
NEXT = "If the trouble stays, call us and we will take care of it."


def score(reply):
    return score_reply(PROMPT, reply)


def test_a_good_reply_earns_everything():
    assert score(f"{SORRY} {REMEDY} {NEXT}") == QUALITIES
    assert true_reward(PROMPT, f"{SORRY} {REMEDY} {NEXT}") == MAX_REWARD == 7


@pytest.mark.parametrize(
    ("reply", "lost"),
    [
        (f"{REMEDY} {NEXT}", {"courtesy"}),
        (f"{SORRY} {REMEDY}", {"next_step"}),
        (f"{SORRY} Put the kettle on a flat surface. {NEXT}", {"answers"}),
        (f"{SORRY} {REMEDY.replace('kettle', 'toaster')} {NEXT}", {"answers"}),
        (f"{SORRY} This only happens to people who are careless. {REMEDY} {NEXT}", {"no_blame"}),
        (f"{SORRY} {REMEDY} {REMEDY} {NEXT}", {"no_padding"}),
        (f"{SORRY} {REMEDY} Put the kettle on a flat surface. {NEXT}", {"no_padding"}),
        (f"{SORRY} {REMEDY} Blue kettle the. {NEXT}", {"no_padding"}),
        ("", set(QUALITIES)),
        ("kettle kettle kettle", set(QUALITIES)),
    ],
)
def test_each_quality_is_lost_by_what_it_names(reply, lost):
    assert {name for name, points in score(reply).items() if points < QUALITIES[name]} == lost


def test_the_last_question_counts_and_not_the_earlier_one():
    rng = random.Random(0)
    for _ in range(300):
        product, problem = rng.choice(PRODUCTS), rng.choice(list(PROBLEMS))
        assert read_prompt(write_prompt(rng, product, problem)) == (product, problem)


def test_a_question_of_another_world_is_refused():
    assert not is_known([{"role": "user", "content": "What is the capital of France?"}])
    assert not is_known("My kettle")
    with pytest.raises(ValueError, match="capital of France"):
        score_reply([{"role": "user", "content": "What is the capital of France?"}], "Paris.")


def test_the_truth_is_known_of_this_world_alone_and_says_what_the_best_temperature_earns():
    truth = known_truth([PROMPT, PROMPT])
    earned = json.loads(Path("demo/model/temperatures.json").read_text())
    assert truth.score is score_reply and f"earns more than {max(earned.values()):.2f} (at " in truth.without_training
    assert known_truth([PROMPT, [{"role": "user", "content": "What is the capital of France?"}]]) is None
    assert known_truth([]) is None


def test_no_temperature_of_the_base_earns_much():
    earned = json.loads(Path("demo/model/temperatures.json").read_text())
    assert {"0", "0.25", "0.5", "0.625", "0.75", "1"} == set(earned)
    assert max(earned.values()) <= 0.45 * MAX_REWARD


def test_written_replies_are_well_formed_and_earn_about_a_third():
    rng = random.Random(0)
    rewards = []
    for _ in range(2000):
        combination = rng.choice(PRODUCTS), rng.choice(list(PROBLEMS))
        reply = write_reply(rng, *combination)
        assert is_well_formed(reply)
        rewards.append(true_reward(write_prompt(rng, *combination), reply))
    assert 0.30 < sum(rewards) / len(rewards) / MAX_REWARD < 0.40


def test_there_are_at_least_500_distinct_questions():
    rng = random.Random(0)
    texts = {
        write_prompt(rng, product, problem)[-1]["content"] for product in PRODUCTS for problem in PROBLEMS for _ in "ab"
    }
    assert len(texts) >= 500


@pytest.fixture(scope="module")
def pairs():
    files = {split: Path(f"demo/{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "test")}
    return {split: [json.loads(line) for line in text.splitlines()] for split, text in files.items()}


def test_the_shipped_scores_are_the_worlds_scores(pairs):
    for row in pairs["train"] + pairs["test"]:
        for side in ("chosen", "rejected"):
            assert true_reward(row["prompt"], row[side][0]["content"]) == row[f"score_{side}"]
        assert row["score_chosen"] != row["score_rejected"]


def test_no_held_out_combination_occurs_in_training(pairs):
    combinations = {split: {read_prompt(row["prompt"]) for row in rows} for split, rows in pairs.items()}
    assert not combinations["train"] & combinations["test"]


def test_labels_are_wrong_as_often_as_bradley_terry_says(pairs):
    rows = pairs["train"]
    expected = [1 / (1 + math.exp(abs(row["score_chosen"] - row["score_rejected"]))) for row in rows]
    wrong = sum(row["score_chosen"] < row["score_rejected"] for row in rows)
    spread = math.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(wrong - sum(expected)) < 3.5 * spread
