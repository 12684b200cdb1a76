"""The LoRA script: three references that are what they claim, adapters on the right base, merges that are checked."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import PATIENCE, PROJECT, SHORT, run_forked, run_script
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, ModelConfig

from dpo_utils import load_any, load_model, load_tokenizer, sample_completions, sequence_kl
from machinery.common.errors import UserError
from machinery.hardware import memory
from machinery.hardware.estimate import (
    PARTS,
    MemoryMeter,
    choose_checkpointing,
    estimate_memory,
    measure_memory,
    memory_table,
)
from machinery.models.adapters import check_targets, merge_adapter, new_adapter, weights_fingerprint
from machinery.runs.start import show_start
from machinery.training.losses import TRL_LOSSES
from machinery.training.shared_prompt import SharedPromptDPOTrainer

PAIRS = [
    {"prompt": f"what is it? {n}", "chosen": "a cat, no, a dog.", "rejected": "the mat" + " over" * n}
    for n in range(1, 9)
]
LORA = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    done = run_script("lora_dpo_training.py", *SHORT, "--output_dir", folder, "--merge")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def trainer_for(folder, tmp_path, model=None, peft_config=LORA, kind=SharedPromptDPOTrainer, ref_model=None, **options):
    model = model or load_model(str(folder))[0]
    settings = dict(output_dir=str(tmp_path / "t"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
                    gradient_checkpointing=False, per_device_train_batch_size=4, logging_steps=1, save_strategy="no",
                    learning_rate=1e-2, max_steps=2)  # fmt: skip
    return kind(
        model,
        ref_model=ref_model,
        args=DPOConfig(**settings | options),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=load_tokenizer(str(folder)),
        peft_config=peft_config,
    )


def sft_adapter(folder, tmp_path, name="sft"):
    """An adapter that does something, as supervised training leaves it."""
    torch.manual_seed(3)
    model = get_peft_model(load_model(str(folder))[0], LORA)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path / name)
    return tmp_path / name


def losses(trainer):
    trainer.train()
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


# --- What it shows and writes ---


def test_it_shows_what_is_trained_the_reference_and_the_memory(demo_run):
    folder, output = demo_run
    assert "Trained: 88,064 parameters, 7.5% of the model's" in output
    assert "Reference: the base, which is the policy with its adapter off" in output
    assert "Loss before training: 0.6931 = ln 2" in output
    assert "estimated  measured" in output
    assert output.rstrip().endswith(str(folder))


def test_it_writes_an_adapter_that_knows_its_base(demo_run):
    folder, _ = demo_run
    names = {path.name for path in folder.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "base_model.json",
        "tokenizer.json",
        "metrics.json",
    } <= names
    assert "model.safetensors" not in names
    note = json.loads((folder / "base_model.json").read_text())
    assert note["name"] == str((PROJECT / "demo" / "model").resolve())
    assert note["fingerprint"] == weights_fingerprint(AutoModelForCausalLM.from_pretrained("demo/model"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["trainable_parameters"] == 88_064
    assert metrics["memory_weights_bytes"] == metrics["memory_weights_bytes_estimated"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), torch.nn.Module)  # also from another folder


def test_the_merged_model_is_the_base_with_its_adapter(demo_run):
    folder, output = demo_run
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("demo/model"), folder)
    ids = torch.tensor([[5, 9, 200, 31]])
    assert torch.allclose(merged(ids).logits, both(ids).logits, atol=1e-4)
    assert not torch.allclose(
        merged(ids).logits, AutoModelForCausalLM.from_pretrained("demo/model")(ids).logits, atol=1e-4
    )
    assert f"Merged: {folder}/merged" in output


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(base_model_folder, tmp_path):
    adapter = sft_adapter(base_model_folder, tmp_path)

    def load(name):
        model, tokenizer = load_model(name)
        if name != str(base_model_folder):
            model.lm_head.weight.data *= 1.5
        return model, tokenizer

    tokenizer = load_tokenizer(str(base_model_folder))
    with pytest.raises(UserError, match="not the base with its adapter"):
        merge_adapter(load, str(base_model_folder), adapter, tokenizer, [[1, 2, 3]])
    assert not any("merged" in path.name for path in adapter.iterdir())


# --- The three references ---


def test_the_base_with_the_adapter_off_is_the_reference(base_model_folder, tmp_path, capsys):
    trainer = trainer_for(base_model_folder, tmp_path)
    show_start(trainer, "the base")
    assert " = ln 2" in capsys.readouterr().out
    losses(trainer)
    base, _ = load_model(str(base_model_folder))
    tokenizer = trainer.processing_class
    replies = sample_completions(trainer.model, tokenizer, ["what is it?"] * 4, max_new_tokens=8)
    underneath = sequence_kl(trainer.model, None, replies, tokenizer.pad_token_id)
    assert underneath == pytest.approx(sequence_kl(trainer.model, base, replies, tokenizer.pad_token_id), abs=1e-4)
    assert underneath[0] != 0


def test_an_adapter_that_is_trained_on_has_its_frozen_copy_as_reference(base_model_folder, tmp_path, call):
    adapter = sft_adapter(base_model_folder, tmp_path)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    out = tmp_path / "out"
    code, output, error = call(
        "lora_dpo_training", *SHORT, "--adapter", adapter, "--dataset_name", data, "--output_dir", out
    )
    assert code == 0, error
    assert f"Reference: a frozen copy of the adapter {adapter}" in output
    assert " = ln 2" in output
    assert not (out / "ref").exists()
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, out))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_that_is_merged_first_is_part_of_the_reference(base_model_folder, tmp_path, call):
    adapter = sft_adapter(base_model_folder, tmp_path)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    out = tmp_path / "out"
    code, output, error = call("lora_dpo_training", *SHORT, "--adapter", adapter, "--merge_first", "--merge",
                               "--dataset_name", data, "--output_dir", out)  # fmt: skip
    assert code == 0, error
    assert "merged into it, which is the policy with its new adapter off" in output
    assert " = ln 2" in output
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out / "base")
    ids = torch.tensor([[1, 2, 3]])
    both = PeftModel.from_pretrained(load_model(str(base_model_folder))[0], adapter)
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(out / "base")(ids).logits, both(ids).logits, atol=1e-4)


def test_a_reference_that_has_lost_the_sft_adapter_is_refused(base_model_folder, tmp_path):
    base, _ = load_model(str(base_model_folder))
    policy = PeftModel.from_pretrained(base, sft_adapter(base_model_folder, tmp_path), is_trainable=True)
    lost, _ = load_model(str(base_model_folder))
    trainer = trainer_for(base_model_folder, tmp_path, model=policy, peft_config=None, ref_model=lost)
    with pytest.raises(UserError, match="The policy is not the reference"):
        show_start(trainer, "the base without its adapter")


def test_pissa_is_refused_because_its_base_with_the_adapter_off_is_not_the_base(base_model_folder, tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="pissa")
    with pytest.raises(UserError, match="The policy is not the reference"):
        show_start(trainer_for(base_model_folder, tmp_path, peft_config=config), "the base")


# --- With everything else ---


@pytest.mark.parametrize("loss_type", TRL_LOSSES)
def test_every_loss_trains_an_adapter_with_trls_numbers(loss_type, base_model_folder, tmp_path):
    options = {"loss_type": [loss_type], "label_smoothing": 0.1 if loss_type in ("exo_pair", "robust") else 0.0}
    ours = trainer_for(base_model_folder, tmp_path, **options)
    assert ours.shared_prompt_refusal is None
    stock = trainer_for(base_model_folder, tmp_path, kind=DPOTrainer, **options)
    for one, other in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        other.data.copy_(one.data)  # the same random A
    assert losses(ours) == pytest.approx(losses(stock), abs=2e-4)


def test_reference_log_probs_computed_beforehand_give_the_same_losses(base_model_folder, tmp_path):
    torch.manual_seed(0)
    live = losses(trainer_for(base_model_folder, tmp_path))
    torch.manual_seed(0)
    assert losses(trainer_for(base_model_folder, tmp_path, precompute_ref_log_probs=True)) == pytest.approx(
        live, abs=1e-5
    )


@pytest.mark.thorough
def test_a_killed_run_resumes_to_the_same_adapter(tmp_path, base_model_folder):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    options = [*SHORT, "--max_steps", 60, "--save_steps", 20, "--model_name_or_path", base_model_folder, "--dataset_name", data,
               "--learning_rate", 1e-2]  # fmt: skip
    done = run_forked("lora_dpo_training.py", *options, "--output_dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "lora_dpo_training.py", *map(str, options), "--output_dir", str(tmp_path / "cut")]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
    for line in process.stdout:
        if "25/60" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    done = run_forked("lora_dpo_training.py", *options, "--output_dir", tmp_path / "cut", "--resume_from_checkpoint")
    assert re.search(r"resumed from step [24]0", done.stdout), done.stderr  # a busy reader may kill it late
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.thorough
def test_two_processes_train_the_same_adapter_as_one(tmp_path):
    options = [*SHORT, "--learning_rate", "1e-3", "--train_sampling_strategy", "sequential"]
    one = [sys.executable, "lora_dpo_training.py", *options, "--output_dir", tmp_path / "one"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "lora_dpo_training.py", *options,
              "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "two",
              "--reference_cache", tmp_path / "cache"]  # fmt: skip  # not the one that the first run has filled
    histories = []
    for command, name in ((one, "one"), (launch, "two")):
        done = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=PATIENCE)  # fmt: skip
        assert done.returncode == 0, done.stderr
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        histories.append([logs["loss"] for logs in state["log_history"] if "loss" in logs])
    assert histories[0] == pytest.approx(histories[1], abs=1e-4)


# --- Memory ---


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


# --- Bad input ---


def test_the_fingerprint_of_a_base_is_the_same_with_an_adapter_on_it(base_model_folder):
    base, _ = load_model(str(base_model_folder))
    alone = weights_fingerprint(base)
    config = LoraConfig(target_modules=["c_attn"], modules_to_save=["ln_f"], use_dora=True, task_type="CAUSAL_LM")
    assert weights_fingerprint(get_peft_model(base, config)) == alone
    other, _ = load_model(str(base_model_folder))
    other.transformer.ln_f.weight.data += 1
    assert weights_fingerprint(other) != alone
    other.transformer.ln_f.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    assert weights_fingerprint(other) is None


def test_a_single_target_is_a_name_and_no_pattern(base_model_folder):
    base, _ = load_model(str(base_model_folder))
    model_args = ModelConfig(use_peft=True, lora_target_modules=["c_attn"])
    config = new_adapter(base, model_args, DPOConfig(output_dir="unused", bf16=False, use_cpu=True))
    names = [name for name, _ in get_peft_model(base, config).named_parameters() if "lora_A" in name]
    assert len(names) == base.config.n_layer


def test_a_module_to_save_that_is_not_there_is_refused(base_model_folder):
    base, _ = load_model(str(base_model_folder))
    check_targets(base, None, 8, ["wte"])
    with pytest.raises(UserError, match="--lora_modules_to_save wteX: the model has no such module"):
        check_targets(base, None, 8, ["wteX"])


def test_on_a_quantised_base_an_adapter_stays_beside_it(base_model_folder, tmp_path, monkeypatch):
    def load_quantised(name, **kwargs):
        model, tokenizer = load_model(name, **kwargs)
        model.is_quantized = True  # rounded weights are no place to add anything to
        return model, tokenizer

    monkeypatch.setattr("dpo_utils.load_model", load_quantised)
    model, _ = load_any(str(sft_adapter(base_model_folder, tmp_path)))
    assert isinstance(model, PeftModel)


def test_all_weights_are_another_script_s(call, tmp_path):
    code, _, error = call("lora_dpo_training", "--use_peft", "false", "--output_dir", tmp_path / "out")
    assert code == 2
    assert "basic_dpo_training.py" in error


def test_targets_that_match_nothing_are_named_with_those_there_are(base_model_folder):
    model, _ = load_model(str(base_model_folder))
    with pytest.raises(ValueError, match="q_porj matches nothing; there are c_attn, c_fc, c_proj, or all-linear"):
        check_targets(model, ["c_attn", "q_porj"], 8)
    check_targets(model, "all-linear", 8)


def test_dropout_that_does_nothing_is_said(call, tmp_path):
    _, output, _ = call("lora_dpo_training", *SHORT, "--lora_dropout", 0.1, "--output_dir", tmp_path / "out")
    assert "--lora_dropout 0.1 does nothing" in output
