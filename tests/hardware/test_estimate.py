"""What a training will need is counted or tried out, changes nothing, and is held against what it took."""

import gc
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from lora_trainers import losses, sft_adapter, trainer_for
from peft import PeftModel

from dpo_utils import load_model
from machinery.common.token_rows import row_lengths
from machinery.hardware import memory
from machinery.hardware.estimate import (
    PARTS,
    MemoryMeter,
    choose_checkpointing,
    estimate_memory,
    kept_for_backward,
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


def test_the_trial_leaves_no_tensor_behind(base_model_folder, tmp_path):
    trainer = trainer_for(base_model_folder, tmp_path)

    def living() -> int:
        gc.collect()
        tensors = (
            thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)
        )  # no fake ones
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    estimate_memory(trainer)  # what is made once stays
    before = living()
    estimate = estimate_memory(trainer)
    assert living() - before < estimate["activations"] / 100


def test_what_a_batch_keeps_is_what_its_estimate_says(base_model_folder, tmp_path):
    trainer = trainer_for(base_model_folder, tmp_path, bf16=True)  # whose copies of the weights are kept once a batch
    trainer.model.config.get_text_config().num_hidden_layers = 10**9  # no share of the backward pass
    memory.keep_freed_memory(False)  # nor pieces of memory that no tensor fits
    count = trainer.args.per_device_train_batch_size
    longest = trainer.train_dataset[int(row_lengths(trainer.train_dataset).argmax())]
    kept = kept_for_backward(trainer, [longest] * count, checkpointing=False)
    assert estimate_memory(trainer)["activations"] == pytest.approx(kept, rel=0.01)
    assert count * kept_for_backward(trainer, [longest], checkpointing=False) > 1.1 * kept


def test_freed_memory_stays_where_there_is_room_for_it(base_model_folder, tmp_path, monkeypatch):
    memory.keep_freed_memory(True)
    if not memory.freed_memory_stays():
        pytest.skip("freed memory does what it wants on this system")
    stays = []
    monkeypatch.setattr("machinery.hardware.estimate.SMALL", 0)
    for free in (10**12, 10**5):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        trainer = trainer_for(base_model_folder, tmp_path)
        assert choose_checkpointing(trainer) == "Gradient checkpointing: off."  # nobody asked for a choice
        stays.append(memory.freed_memory_stays())
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()  # what it needs cannot be foreseen
    choose_checkpointing(trainer)
    assert [*stays, memory.freed_memory_stays()] == [True, False, False]


def test_freed_memory_goes_back_where_it_gets_tight(monkeypatch):
    memory.keep_freed_memory(True)
    if not memory.freed_memory_stays():
        pytest.skip("freed memory does what it wants on this system")
    monkeypatch.setattr(memory, "LOOKS_EVERY", 0.01)
    held = memory.memory_in_use()
    for left, stays in ((held, True), (held // 4, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda left=left: left)
        time.sleep(1.0)
        assert memory.freed_memory_stays() == stays


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
    memory.keep_freed_memory(False)  # no pieces of memory that no tensor fits
    longest = trainer.train_dataset[int(row_lengths(trainer.train_dataset).argmax())]
    one, two = (kept_for_backward(trainer, [longest] * count, checkpointing=False) for count in (1, 2))
    whole = one + (trainer.args.per_device_train_batch_size - 1) * (two - one)
    layers = trainer.model.config.get_text_config().num_hidden_layers  # the backward pass works on one at a time
    assert estimate_memory(trainer)["activations"] == whole + whole // layers
    trainer.args.max_tokens_per_batch = 1  # then each pair is by itself
    assert estimate_memory(trainer)["activations"] == one + one // layers


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's own count")
def test_the_peak_is_this_processs_own_and_not_that_of_the_one_that_started_it():
    ask = "from machinery.hardware.memory import peak_memory_bytes; print(peak_memory_bytes())"
    code = f"import subprocess, sys; held = b'1' * 10**9; subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert 50_000_000 < int(done.stdout) < 900_000_000
