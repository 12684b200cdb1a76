"""Every recipe is read to its last key, and several processes train what one does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import PATIENCE, PROJECT, SHORT, run_forked
from safetensors.torch import load_file

import basic_dpo_training
import lora_dpo_training
from dpo_utils import parse_args
from machinery.command.command_line import CommandLine
from machinery.command.settings import _device_settings
from machinery.common.errors import function_from

LAUNCHERS = sorted((PROJECT / "recipes" / "accelerate").glob("*.yaml"))
RECIPES = sorted({*(PROJECT / "recipes").rglob("*.yaml")} - {*LAUNCHERS})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_means_what_it_says(recipe):
    said = yaml.safe_load(recipe.read_text())
    command = next(line for line in recipe.read_text().splitlines() if "--config recipes/" in line)
    assert f"--config {recipe.relative_to(PROJECT)}" in command
    how = {}
    script = basic_dpo_training
    if "lora_dpo_training.py" in command:
        script = lora_dpo_training
        how = dict(arguments=lora_dpo_training.LoraArguments, defaults=lora_dpo_training.LORA, takes_adapters=True)
    parsed = parse_args("", script.DEMO, ["--config", str(recipe)], **how)
    for name, value in said.items():
        holders = [part for part in parsed if hasattr(part, name)]
        assert holders, name
        got = getattr(holders[0], name)
        assert (got[0] if isinstance(got, list) and not isinstance(value, list) else got) == value, name
    if "--config_file" in command:
        assert (PROJECT / command.split("--config_file ")[1].split()[0]).exists()


# What a tiny model on a CPU cannot take from a recipe, or its data do not have.
ON_A_CPU = (
    "--model_name_or_path demo/model --model_revision main --load_in_4bit false --dtype float32 --dataset_name demo "
)
ON_A_CPU += "--dataset_config default --dataset_train_split train --dataset_test_split test --max_length 512 --max_prompt_length 256 "
ON_A_CPU += "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --eval_strategy no --num_eval_prompts 2 --max_new_tokens 4"


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_three_steps(recipe, tmp_path):
    script = re.search(r"(\w+\.py) --config", recipe.read_text())[1]
    short = ["--max_steps", 3, "--logging_steps", 1, "--save_strategy", "no", "--output_dir", tmp_path / "out"]
    done = run_forked(script, "--config", recipe, *ON_A_CPU.split(), *short)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "out")) == 3


def test_the_rules_for_smollm2_know_a_good_answer():
    rules = function_from(f"{PROJECT}/recipes/smollm2/rules.py:holds", "--judge").__globals__
    good, long = "Put it in a bowl of rice overnight.", "Yes, " * 40 + "and so on."
    bad = [long, f"{long} {long}", "Put it in", "", "Dry it and", f"Sorry! {good}"]
    assert rules["score"]("", good) == rules["holds"]("", good) == 1
    assert not any(rules["holds"]("", answer) for answer in bad)
    assert max(rules["score"]("", answer) for answer in bad) < 1
    assert rules["score"]("", bad[0]) > rules["score"]("", bad[1])
    asked = [prompt for prompt in rules["_facts"]() if 'tense of "go"' in prompt or "inches are in a foot" in prompt]
    assert [rules["knows"](prompt, "It is Went.") + rules["knows"](prompt, "There are 12.") for prompt in asked] == [
        1,
        1,
    ]
    assert not any(rules["knows"](prompt, "It is 112, or 12.5, or wented.") for prompt in asked)


def test_the_prompts_for_smollm2_are_apart():
    folder = PROJECT / "recipes" / "smollm2"
    files = [folder / "prompts" / "train.jsonl", folder / "prompts" / "test.jsonl", folder / "facts.jsonl"]
    prompts = [json.loads(line)["prompt"].lower() for file in files for line in file.read_text("utf-8").splitlines()]
    assert len(prompts) == len(set(prompts)) == 500


@pytest.mark.parametrize("config", LAUNCHERS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_launcher_s_file(config):
    loaded = load_config_from_file(str(config))
    assert loaded.num_processes >= 2
    for name, value in yaml.safe_load(config.read_text()).items():
        assert hasattr(loaded, name), name
        if isinstance(value, dict):
            assert getattr(loaded, name) == value


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [logs["loss"] for logs in state["log_history"] if "loss" in logs]


def launch(script, *words, launcher=None):
    start = [sys.executable]
    if launcher:
        start += ["-m", "accelerate.commands.launch", "--config_file", str(launcher), "--main_process_port", "0"]
    return subprocess.run([*start, script, *map(str, words)], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.mark.thorough
def test_two_processes_are_one_with_the_same_global_batch_and_one_writer(tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", 2]
    # In two processes: batches of two pairs, some of them in two parts.
    ways = {
        "one": ([*SHORT, *saving], None),
        "two": (
            [*SHORT, *saving, "--per_device_train_batch_size", 2, "--max_tokens_per_batch", 200],
            PROJECT / "recipes" / "accelerate" / "cpu.yaml",
        ),
    }
    for name, (words, launcher) in ways.items():
        own = ["--output_dir", tmp_path / name, "--reference_cache", tmp_path / f"cache of {name}"]
        done = launch("basic_dpo_training.py", *words, *own, launcher=launcher)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("The model is in") == 1
    expected = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(expected, abs=1e-5)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["pairs_train"] == 2048

    for begun, gone_on in (("two", "one"), ("one", "two")):  # a checkpoint of two goes on in one, and the reverse
        folder, (words, launcher) = tmp_path / begun, ways[gone_on]
        (folder / "metrics.json").unlink()
        shutil.rmtree(folder / "checkpoint-4")
        done = launch(
            "basic_dpo_training.py", *words, "--output_dir", folder, "--resume_from_checkpoint", launcher=launcher
        )
        assert done.returncode == 0, done.stderr
        assert "resumed from step 2" in done.stdout
        assert losses(folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_as_one_process_on_two_cpus(stage, tmp_path):
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed, which is no requirement of ours")
    recipe = yaml.safe_load((PROJECT / "recipes" / "accelerate" / f"zero{stage}.yaml").read_text())
    on_cpus = tmp_path / "on_cpus.yaml"
    on_cpus.write_text(yaml.safe_dump(recipe | {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"}))
    words = [*SHORT, "--save_strategy", "steps", "--save_steps", 2, "--train_sampling_strategy", "sequential"]
    histories = []
    for name, size, launcher in (("one", 4, None), ("two", 2, on_cpus)):
        own = ["--per_device_train_batch_size", size, "--output_dir", tmp_path / name, "--merge"]
        done = launch("lora_dpo_training.py", *words, *own, launcher=launcher)
        assert done.returncode == 0, done.stderr
        assert "Merged: " in done.stdout
        histories.append(losses(tmp_path / name))
    assert histories[0] == pytest.approx(histories[1], abs=1e-5)
    whole = load_file(tmp_path / "two" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    (tmp_path / "two" / "metrics.json").unlink()
    done = launch("lora_dpo_training.py", *words, *own, "--resume_from_checkpoint", launcher=on_cpus)
    assert "resumed from step 2" in done.stdout, done.stderr
    resumed = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_where_weights_are_to_be_cut_up_checkpointing_is_on_from_the_start(engine, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    names = "use_cpu bf16 fp16 dataset_streaming sync_ref_model gradient_checkpointing activation_checkpointing"
    settings = _device_settings(dict.fromkeys(names.split()))
    assert settings["gradient_checkpointing"] is True
    assert settings.get("precompute_ref_log_probs") is (False if engine == "FSDP" else None)  # TRL's DeepSpeed can


def test_processes_that_do_not_know_of_each_other_are_refused(call, monkeypatch):
    build = CommandLine.build

    def build_alone(self):
        built = build(self)  # here a process finds out how many others there are
        monkeypatch.setenv("WORLD_SIZE", "2")
        return built

    monkeypatch.setattr(CommandLine, "build", build_alone)
    code, _, error = call("basic_dpo_training", *SHORT)
    assert code == 2
    assert "2 processes were started, and this one knows of 1" in error
