"""A batch in parts has the gradient of the whole, and no part more tokens than allowed."""

import pytest
import torch
from conftest import make_llama
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import DPOConfig, DPOTrainer

from custom_loss_dpo import LOSSES
from machinery.common.errors import UserError
from machinery.training.losses import choose_loss, couples_pairs
from machinery.training.shared_prompt import SharedPromptDPOTrainer, plan_shared_rows
from machinery.training.token_budget import COUPLED, pair_lengths, plan_parts, split_further, take_pairs

ROWS = [
    {"prompt": "what is it? " * (1 + n % 3), "chosen": " a cat" * (1 + n % 5), "rejected": " a dog" * (1 + n % 4)}
    for n in range(16)
]


def trainer_for(model_folder, tmp_path, budget, shared=True, **options):
    settings = dict(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_steps=3, per_device_train_batch_size=8,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=1, learning_rate=1e-3, save_strategy="no", seed=3,
    )  # fmt: skip
    args = DPOConfig(**settings | options)
    args.max_tokens_per_batch, args.shared_prompt = budget, shared
    torch.manual_seed(0)
    return SharedPromptDPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )


def history(trainer, *names):
    trainer.train()
    return [logs[name] for logs in trainer.state.log_history for name in names if name in logs]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "sppo_hard"])
def test_losses_and_gradients_are_those_of_whole_batches(loss_type, shared, base_model_folder, tmp_path):
    whole = history(trainer_for(base_model_folder, tmp_path, None, shared, loss_type=[loss_type]), "loss", "grad_norm")
    parts = history(trainer_for(base_model_folder, tmp_path, 60, shared, loss_type=[loss_type]), "loss", "grad_norm")
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)


MADE = ("entropy", "num_tokens", "logits/chosen", "logits/rejected", "mean_token_accuracy", "rewards/chosen",
        "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_logged_metric_is_that_of_whole_batches(accumulation, base_model_folder, tmp_path):
    options = dict(per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation)
    whole = history(trainer_for(base_model_folder, tmp_path, None, **options), *MADE)
    parts = history(trainer_for(base_model_folder, tmp_path, 60, **options), *MADE)
    assert len(whole) == 3 * len(MADE)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_a_router_loss_couples_the_pairs_of_a_batch(tmp_path):
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    args.max_tokens_per_batch = 60
    with pytest.raises(UserError, match="--router_aux_loss_coef 0"):
        SharedPromptDPOTrainer(MixtralForCausalLM(config), args=args)


def test_accumulation_and_parts_add_up(base_model_folder, tmp_path):
    whole = history(trainer_for(base_model_folder, tmp_path, None), "loss", "grad_norm")
    options = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    parts = history(trainer_for(base_model_folder, tmp_path, 60, **options), "loss", "grad_norm")
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("ends_a_step", [True, False])
def test_deepspeed_is_told_of_one_step_and_not_of_one_a_part(ends_a_step, base_model_folder, tmp_path, monkeypatch):
    trainer = trainer_for(base_model_folder, tmp_path, 60)
    inputs = next(iter(trainer.get_train_dataloader()))
    state, told = trainer.accelerator.gradient_state, []
    monkeypatch.setattr(DPOTrainer, "training_step", lambda *args: told.append(state.sync_gradients) or 0.0)
    trainer.is_deepspeed_enabled = True
    state._set_sync_gradients(ends_a_step)
    trainer.training_step(trainer.model, inputs)
    assert len(told) > 1
    assert told == [False] * (len(told) - 1) + [ends_a_step]  # accelerate makes DeepSpeed's step where it is True
    assert state.sync_gradients is ends_a_step
    state._set_sync_gradients(True)


def test_no_part_has_more_tokens_than_allowed_unless_it_is_one_pair():
    lengths = [7, 30, 12, 12, 50, 9, 9, 31]
    parts = plan_parts(lengths, 40)
    assert sorted(pair for part in parts for pair in part) == list(range(8))
    for part in parts:
        assert len(part) * max(lengths[pair] for pair in part) <= 40 or len(part) == 1


def test_lengths_count_a_shared_prompt_once():
    # prompt 3, chosen 2, rejected 1
    inputs = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "completion_mask": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]),
    }
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 4, 0]])
    planned = plan_shared_rows(ids, inputs["attention_mask"], ids.masked_fill(inputs["completion_mask"] == 0, -100))
    assert pair_lengths(inputs, is_shared=True) == [planned["inputs"]["input_ids"].shape[1]] == [7]
    assert pair_lengths(inputs, is_shared=False) == [10]


def test_pairs_are_taken_with_both_rows_and_without_padding():
    inputs = {
        "input_ids": torch.tensor([[1, 2, 0], [3, 4, 5], [1, 6, 0], [3, 7, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]]),
        "ref_chosen_logps": torch.tensor([-1.0, -2.0]),
    }
    taken = take_pairs(inputs, [0])
    assert taken["input_ids"].tolist() == [[1, 2], [1, 6]]
    assert taken["ref_chosen_logps"].tolist() == [-1.0]


def test_processes_get_as_many_parts_as_the_one_with_most():
    assert [len(part) for part in split_further([[0, 1, 2, 3], [4]], 4)] == [1, 1, 2, 1]
    with pytest.raises(ValueError, match="1 pairs cannot make 2 parts"):
        split_further([[0]], 2)


def test_which_losses_couple_pairs_is_found_out():
    settings = {"label_smoothing": 0.1, "discopop_tau": 0.05}
    coupled = {name for name in LOSSES if couples_pairs(choose_loss([name], LOSSES, settings=settings))}
    assert coupled == set(COUPLED)


def test_a_loss_that_couples_pairs_is_refused(call, tmp_path):
    for script in ("basic_dpo_training", "custom_loss_dpo"):
        code, _, error = call(script, "--loss_type", "aot", "--max_tokens_per_batch", 500, "--output_dir", tmp_path)
        assert code == 2
        assert "aot couples the pairs" in error


def test_activations_shrink_with_the_budget():
    """The longest part decides, so a model sees fewer tokens at a time."""
    seen = []
    model = make_llama()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    inputs = {"input_ids": torch.ones(8, 6, dtype=torch.long), "attention_mask": torch.ones(8, 6, dtype=torch.long)}
    for part in plan_parts([12] * 4, 24):
        model(**take_pairs(inputs, part))
    assert seen == [24, 24]
