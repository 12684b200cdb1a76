"""Before any long work the model is tried, and what cannot be trained is said in a sentence."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    GPT2LMHeadModel,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from trl import DPOConfig

from machinery.common.errors import UserError
from machinery.shared_rows import probe
from machinery.training.shared_prompt import SharedPromptDPOTrainer

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, pad_token_id=0)  # fmt: skip


def trainer_of(model, tokenizer, folder, prompt="the cat sat on", **options):
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.ndim >= 2:
            torch.nn.init.normal_(weight, 0, 0.3)
    settings = dict(use_cpu=True, bf16=False, max_steps=1, report_to="none", disable_tqdm=True) | options
    pairs = Dataset.from_list([{"prompt": prompt, "chosen": " the mat", "rejected": " a hill, a dog"}] * 4)
    return SharedPromptDPOTrainer(
        model=model, ref_model=copy.deepcopy(model), args=DPOConfig(str(folder), **settings), train_dataset=pairs,
        processing_class=tokenizer,
    )  # fmt: skip


def test_a_soft_cap_that_trls_head_leaves_out_is_named(base_tokenizer, tmp_path):
    config = RecurrentGemmaConfig(vocab_size=len(base_tokenizer), lru_width=32, logits_soft_cap=5.0,
                                  attention_window_size=8, **SIZES)  # fmt: skip
    with pytest.raises(UserError, match=r"RecurrentGemmaForCausalLM cannot be trained .* leaves out logits_soft_cap"):
        trainer_of(RecurrentGemmaForCausalLM(config), base_tokenizer, tmp_path)


def test_a_router_loss_that_trl_cannot_compute_leads_to_the_flag_that_does_without(base_tokenizer, tmp_path):
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    config = GraniteMoeConfig(vocab_size=len(base_tokenizer), num_local_experts=4, num_experts_per_tok=2, **sizes)
    with pytest.raises(UserError, match=r"router loss of GraniteMoeForCausalLM .* --router_aux_loss_coef 0"):
        trainer_of(GraniteMoeForCausalLM(config), base_tokenizer, tmp_path, router_aux_loss_coef=0.01)
    trainer = trainer_of(GraniteMoeForCausalLM(config), base_tokenizer, tmp_path, router_aux_loss_coef=0.0)
    assert trainer.shared_prompt_refusal is None


def test_tf32_makes_products_coarse_and_no_error(base_tokenizer, base_model_folder, tmp_path, monkeypatch):
    trainer = trainer_of(GPT2LMHeadModel.from_pretrained(base_model_folder), base_tokenizer, tmp_path)
    assert probe._tolerance(trainer) == probe.FINE
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")  # as Transformers does for --tf32
    assert probe._tolerance(trainer) == probe.COARSE


def test_a_model_without_a_backbone_of_its_name_is_refused_in_words(base_tokenizer, tmp_path):
    config = Llama4TextConfig(vocab_size=len(base_tokenizer), intermediate_size_mlp=64, num_local_experts=2, **SIZES)
    with pytest.raises(UserError, match=r"Llama4ForCausalLM cannot be trained .* backbone"):
        trainer_of(Llama4ForCausalLM(config), base_tokenizer, tmp_path)


def test_what_fails_in_a_step_is_said_with_its_place(base_model_folder, base_tokenizer, tmp_path, monkeypatch):
    model = GPT2LMHeadModel.from_pretrained(base_model_folder)
    forward = model.transformer.h[0].forward

    def fails_in_training(*args, **kwargs):
        if model.training:
            raise KeyError("no such expert")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.transformer.h[0], "forward", fails_in_training)
    with pytest.raises(UserError, match=r"KeyError in .*test_probe.py, line \d+: 'no such expert'"):
        trainer_of(model, base_tokenizer, tmp_path)


def test_the_trial_leaves_no_gradient_and_draws_no_number(base_model_folder, base_tokenizer, tmp_path):
    trainer = trainer_of(GPT2LMHeadModel.from_pretrained(base_model_folder), base_tokenizer, tmp_path)
    state, was_training = torch.get_rng_state(), trainer.model.training
    probe.try_step(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.model.training == was_training


@pytest.mark.parametrize("words", [4, 40])
def test_pairs_shorter_than_others_are_lengthened_until_a_window_shows(words, base_tokenizer, tmp_path):
    config = MistralConfig(vocab_size=len(base_tokenizer), sliding_window=10, **SIZES)
    trainer = trainer_of(MistralForCausalLM(config), base_tokenizer, tmp_path, prompt="the cat " * words)
    own = len(trainer.train_dataset[0]["prompt_ids"])
    trainer.eval_dataset = Dataset.from_list(
        [{"prompt_ids": [5] * 90, "chosen_ids": [6], "rejected_ids": [7]}]
    )  # longer than any pair to train on
    *whole, short = probe._rows_to_compare(trainer)
    for need, rows in (*((20, rows) for rows in whole), (4 * probe.SHORT, short)):  # 20: twice the window
        for row in rows:
            answers = min(len(row["chosen_ids"]), len(row["rejected_ids"]))
            assert len(row["prompt_ids"]) == max(own, need - answers)
