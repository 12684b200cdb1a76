"""The LoRA script: three references that are what they claim, adapters on the right base, merges that are checked."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import PATIENCE, PROJECT, SHORT, run_forked, run_script
from datasets import Dataset
from lora_trainers import PAIRS, losses, sft_adapter, trainer_for
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from dpo_utils import load_model, sample_completions, sequence_kl
from machinery.common.errors import UserError
from machinery.models.adapters import weights_fingerprint
from machinery.runs.start import show_start
from machinery.training.losses import TRL_LOSSES


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    done = run_script("lora_dpo_training.py", *SHORT, "--output_dir", folder, "--merge")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


# --- What it shows and writes ---


def test_it_shows_what_is_trained_the_reference_and_the_memory(demo_run):
    folder, output = demo_run
    assert "Trained: 88,064 parameters, 7.9% of the model's" in output
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


WTE = "base_model.model.transformer.wte"


@pytest.mark.parametrize("beforehand", [True, False])
def test_what_an_adapter_has_on_the_embedding_is_in_its_frozen_copy(base_model_folder, tmp_path, beforehand):
    """TRL copies by names with `.default.` in them, and lora_embedding_B.default ends in it."""
    torch.manual_seed(3)
    config = LoraConfig(target_modules=["c_attn", "wte"], r=4, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(str(base_model_folder))[0], config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    how = dict(learning_rate=0.0, precompute_ref_log_probs=beforehand)
    trainer = trainer_for(base_model_folder, tmp_path, model=model, peft_config=None, **how)
    assert losses(trainer) == pytest.approx([math.log(2)] * 2, abs=1e-6)
    frozen, own = (trainer.model.get_parameter(f"{WTE}.lora_embedding_B.{name}") for name in ("ref", "default"))
    before = frozen.clone()
    own.data += 1  # as after a training
    trainer.evaluate(Dataset.from_list(PAIRS))  # which asks the reference of other pairs
    assert torch.equal(frozen, before)


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


# --- Bad input ---


def test_all_weights_are_another_script_s(call, tmp_path):
    code, _, error = call("lora_dpo_training", "--use_peft", "false", "--output_dir", tmp_path / "out")
    assert code == 2
    assert "basic_dpo_training.py" in error


def test_dropout_that_does_nothing_is_said(call, tmp_path):
    _, output, _ = call("lora_dpo_training", *SHORT, "--lora_dropout", 0.1, "--output_dir", tmp_path / "out")
    assert "--lora_dropout 0.1 does nothing" in output
