"""DPO on one page is what the basic script trains, step by step."""

import json

import pytest
import torch
from conftest import run_forked
from transformers import AutoModelForCausalLM, AutoTokenizer

from docs.dpo_from_scratch import DEMO, batches, dpo_loss, read_pairs, train
from dpo_utils import load_model, load_preferences, pair_ids

STEPS, SIZE, BETA, RATE = 20, 8, 0.1, 1e-3


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO / "model")


@pytest.fixture
def models():
    return [AutoModelForCausalLM.from_pretrained(DEMO / "model").eval() for _ in range(2)]


def test_its_losses_are_those_of_the_basic_script(tmp_path, tokenizer, models):
    flags = f"--train_sampling_strategy sequential --max_steps {STEPS} --per_device_train_batch_size {SIZE} --logging_steps 1"
    flags += " --eval_strategy no --num_eval_prompts 1 --max_new_tokens 4 --seed 1 --output_dir"
    done = run_forked("basic_dpo_training.py", *flags.split(), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies")
    theirs = torch.tensor([[log[name] for name in names] for log in history if "loss" in log])
    pairs = read_pairs(DEMO / "train.jsonl", tokenizer)
    in_order = [pairs[start : start + SIZE] for start in range(0, STEPS * SIZE, SIZE)]
    ours = torch.tensor(list(train(*models, in_order, BETA, RATE)))
    assert len(theirs) == STEPS
    assert ours[0, 0] == pytest.approx(0.693147, abs=1e-6)
    assert ours[-1, 0] < 0.68  # it has learnt something to be compared
    torch.testing.assert_close(ours[:, :3], theirs[:, :3], atol=1e-5, rtol=0)
    # The first step has a rate of 0, so until the third all margins are 0 but for rounding, which says nothing.
    torch.testing.assert_close(ours[2:], theirs[2:], atol=1e-5, rtol=0)


def test_its_pairs_are_those_of_the_scripts(tokenizer):
    pairs, _, _ = load_preferences("demo", load_model("demo/model")[1])
    assert read_pairs(DEMO / "train.jsonl", tokenizer) == [pair_ids(row, tokenizer) for row in pairs]


def test_the_loss_of_a_pair_turned_around_is_that_of_a_negative_margin(tokenizer, models):
    policy, reference = models
    torch.manual_seed(0)
    for weight in policy.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    batch = read_pairs(DEMO / "test.jsonl", tokenizer)[:4]
    turned = [(prompt, rejected, chosen) for prompt, chosen, rejected in batch]
    (_, chosen, rejected), (loss, *others) = (dpo_loss(policy, reference, rows, BETA) for rows in (batch, turned))
    torch.testing.assert_close(others, [rejected, chosen])
    torch.testing.assert_close(loss, (1 + (chosen - rejected).exp()).log().mean())


def test_batches_hold_each_pair_once():
    pairs = [([0] * n, [1], [2]) for n in range(10)]
    found = batches(pairs, 4)
    assert sorted(len(batch) for batch in found) == [2, 4, 4]
    assert sorted(pair for batch in found for pair in batch) == sorted(pairs)
