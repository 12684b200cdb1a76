"""What a training will need is counted or tried out, changes nothing, and is held against what it took."""

import pytest
import torch
from lora_trainers import losses, sft_adapter, trainer_for
from peft import PeftModel

from dpo_utils import load_model
from machinery.hardware import memory
from machinery.hardware.estimate import (
    PARTS,
    MemoryMeter,
    choose_checkpointing,
    estimate_memory,
    measure_memory,
    memory_table,
)


def test_the_parts_that_can_be_counted_are_estimated_exactly(base_model_folder, tmp_path):
    trainer = trainer_for(base_model_folder, tmp_path)
    estimate = estimate_memory(trainer)
    trainer.train()
    measured = measure_memory(trainer)
    for part in ("weights", "gradients", "reference"):
        assert estimate[part] == measured[part]
    assert measured["optimizer"] == pytest.approx(estimate["optimizer"], rel=0.05)  # and a step counter a tensor
    assert all(estimate[part] >= 0 for part in PARTS)
    assert estimate["activations"] > 0
    assert memory_table(estimate, measured).count("\n") == len(PARTS) + 1


def test_activations_are_counted_where_no_gradient_is_asked_for_and_no_process_is_waited_for(
    base_model_folder, tmp_path, monkeypatch
):
    trainer = trainer_for(base_model_folder, tmp_path)
    expected = estimate_memory(trainer)["activations"]

    def wait(*_, **__):
        raise AssertionError("another process may be elsewhere")

    monkeypatch.setattr(type(trainer.accelerator), "gather", wait)
    with torch.no_grad():
        assert estimate_memory(trainer)["activations"] == expected > 0


def test_checkpointing_is_chosen_where_the_activations_would_not_fit(base_model_folder, tmp_path, monkeypatch):
    for free, chosen in ((10**12, "off"), (10**5, "on")):
        trainer = trainer_for(base_model_folder, tmp_path)
        trainer.args.checkpointing_if_needed, trainer.args.gradient_checkpointing = True, False
        others = sum(estimate_memory(trainer)[part] for part in ("gradients", "optimizer"))
        monkeypatch.setattr(memory, "free_bytes", lambda room=others + free: room)
        with torch.no_grad():  # as show_start has it
            assert choose_checkpointing(trainer).startswith(f"Gradient checkpointing: {chosen}: about")


def test_a_budget_of_tokens_bounds_the_activations(base_model_folder, tmp_path):
    trainer = trainer_for(base_model_folder, tmp_path)
    whole = estimate_memory(trainer)["activations"]
    trainer.args.max_tokens_per_batch = 1  # then each pair is by itself
    assert estimate_memory(trainer)["activations"] * trainer.args.per_device_train_batch_size == whole


def test_a_trial_that_does_not_fit_is_no_reason_not_to_train(base_model_folder, tmp_path, monkeypatch):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError

    trainer = trainer_for(base_model_folder, tmp_path)
    monkeypatch.setattr("machinery.hardware.estimate.kept_for_backward", run_out)
    meter = MemoryMeter(trainer)
    assert "the trial did not fit" in meter.table()
    assert meter.metrics() == {}


def test_a_frozen_copy_counts_as_the_reference_and_not_as_weights(base_model_folder, tmp_path):
    new = estimate_memory(trainer_for(base_model_folder, tmp_path))
    model = PeftModel.from_pretrained(
        load_model(str(base_model_folder))[0], sft_adapter(base_model_folder, tmp_path), is_trainable=True
    )
    on = estimate_memory(trainer_for(base_model_folder, tmp_path, model=model, peft_config=None))
    assert on["weights"] == new["weights"]
    assert on["reference"] == on["gradients"]


def test_what_cannot_be_foreseen_is_said(base_model_folder, tmp_path):
    trainer = trainer_for(base_model_folder, tmp_path)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()  # no longest pair
    assert estimate_memory(trainer) == {}
    assert "not estimated" in memory_table({})


def test_a_trial_that_runs_out_of_memory_leaves_the_trainer_as_it_was(base_model_folder, tmp_path, monkeypatch):
    trainer = trainer_for(base_model_folder, tmp_path)
    trainer.model.eval()

    def run_out(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "compute_loss", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        estimate_memory(trainer)
    assert not trainer.model.training


def test_the_trial_changes_nothing_that_the_training_sees(base_model_folder, tmp_path):
    results = []
    for tries in (0, 2):
        torch.manual_seed(0)
        trainer = trainer_for(base_model_folder, tmp_path, disable_dropout=False)
        for _ in range(tries):
            estimate_memory(trainer)
        torch.manual_seed(1)
        results.append((losses(trainer), [logs.get("num_tokens") for logs in trainer.state.log_history]))
    assert results[0] == results[1]
