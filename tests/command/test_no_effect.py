"""A flag that was given and does nothing is named, with what would make it count; none that counts is."""

import pytest

from basic_dpo_training import DEMO
from dpo_utils import parse_args
from lora_dpo_training import LORA, LoraArguments
from machinery.command.no_effect import RULES, without_effect

# What is given, and the flag that must be named for it.
IDLE = {
    "--label_smoothing 0.1": "label_smoothing",
    "--loss_type ipo --label_smoothing 0.1": "label_smoothing",
    "--label_smoothing_factor 0.1": "label_smoothing_factor",
    "--discopop_tau 0.1": "discopop_tau",
    "--loss_type sft --beta 0.3": "beta",
    "--loss_type sft --ld_alpha 0.5": "ld_alpha",
    "--f_alpha_divergence_coef 0.5": "f_alpha_divergence_coef",
    "--loss_type sft --sync_ref_model": "sync_ref_model",
    "--ref_model_sync_steps 8": "ref_model_sync_steps",
    "--no_precompute_ref_log_probs --precompute_ref_batch_size 8": "precompute_ref_batch_size",
    "--max_steps 3 --num_train_epochs 2": "num_train_epochs",
    "--eval_strategy epoch --eval_steps 3": "eval_steps",
    "--save_strategy no --save_steps 3": "save_steps",
    "--lr_scheduler_type constant --warmup_steps 3": "warmup_steps",
    "--optim sgd --adam_beta1 0.8": "adam_beta1",
    "--metric_for_best_model loss": "metric_for_best_model",
    "--bf16_full_eval": "bf16_full_eval",
    "--ignore_bias_buffers": "ignore_bias_buffers",
    "--lora_r 4": "lora_r",
    "--bnb_4bit_quant_type nf4": "bnb_4bit_quant_type",
}
COUNTS = (
    "--loss_type robust --label_smoothing 0.1", "--beta 0.3", "--loss_type discopop --discopop_tau 0.1",
    "--max_steps 3", "--eval_strategy steps --eval_steps 3", "--warmup_steps 3", "--loss_type sigmoid sft --beta 0.3",
)  # fmt: skip


@pytest.mark.parametrize("words", IDLE)
def test_what_does_nothing_is_named(words, capsys):
    parse_args("", DEMO, words.split())
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [f"--{IDLE[words]}"]


@pytest.mark.parametrize("words", COUNTS)
def test_what_counts_is_not(words, capsys):
    parse_args("", DEMO, words.split())
    assert capsys.readouterr().out == ""


def test_smoothing_points_to_the_loss_that_has_it(capsys):
    parse_args("", DEMO, ["--label_smoothing", "0.1"])
    assert "--loss_type cdpo" in capsys.readouterr().out


def test_a_recipe_is_heard_too(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("label_smoothing: 0.1\n")
    parse_args("", DEMO, ["--config", str(tmp_path / "recipe.yaml")])
    assert "--label_smoothing does nothing" in capsys.readouterr().out


def test_flags_of_an_adapter_count_where_one_is_made_and_not_where_one_is_brought(capsys):
    parse_args("", DEMO, ["--lora_r", "4"], LoraArguments, defaults=LORA, takes_adapters=True)
    assert capsys.readouterr().out == ""
    values = {"adapter": "mine", "merge_first": False, "use_peft": True, "lora_r": 4}
    assert without_effect({"lora_r"}, values) == ["--lora_r does nothing here: --adapter mine brings its own."]
    assert without_effect({"lora_r"}, values | {"merge_first": True}) == []


def test_nothing_is_said_of_what_nobody_gave():
    values = {flag: None for flag, _ in RULES}
    assert without_effect(set(), values) == []
