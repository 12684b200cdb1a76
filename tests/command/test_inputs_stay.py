"""Whatever a run is given, under whatever flag and by whatever way, it is not where the run writes: refused, untouched."""

import json
import shutil

import pytest
import torch
from conftest import PROJECT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from machinery.runs import ownership
from machinery.runs.folder import choose_folder

DEMO = PROJECT / "demo"
PAIR = {"prompt": "why?", "chosen": "a cat, no, a dog.", "rejected": "the mat"}
TRAINING = ("basic_dpo_training", "lora_dpo_training", "custom_loss_dpo", "custom_dataset_dpo")
# By flag: what of a run's folder it is given, and the scripts that take it.
FLAGS = {
    "--model_name_or_path": ("", (*TRAINING, "dpo_evaluation")),
    "--dataset_name": ("generations.jsonl", (*TRAINING, "dpo_evaluation")),
    "--config": ("tokenizer_config.json", (*TRAINING, "dpo_evaluation")),
    "--adapter": ("", ("lora_dpo_training",)),
    "--loss_file": ("README.md:loss", ("custom_loss_dpo",)),
    "--reference": ("", ("dpo_evaluation", "custom_dataset_dpo")),
    "--models": ("", ("dpo_evaluation",)),
    "--judge": ("README.md:score", ("dpo_evaluation", "custom_dataset_dpo")),
    "--sample_from": ("", ("custom_dataset_dpo",)),
    "--judge_model": ("merged", ("dpo_evaluation",)),
    "--judge_prompt": ("README.md", ("dpo_evaluation",)),
    "--answers": ("blind.csv", ("dpo_evaluation",)),
    "--answers_from": ("generations.jsonl", ("dpo_evaluation",)),
    "--texts": ("README.md", ("dpo_evaluation",)),
    "--accelerator_config": ("my_config.json", TRAINING),
}
CASES = [(script, flag, part) for flag, (part, scripts) in FLAGS.items() for script in scripts]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A folder as a run has left it, with something of every kind that a flag can name."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    choose_folder(str(folder), None, None, False)
    shutil.copytree(DEMO / "model", folder, dirs_exist_ok=True)
    shutil.copytree(DEMO / "model", folder / "merged")
    (folder / "tokenizer_config.json").write_text("beta: 0.2\n")
    (folder / "my_config.json").write_text('{"even_batches": true}')
    (folder / "README.md").write_text("def loss(): pass\n")
    (folder / "blind.csv").write_text("row,prompt,answer 1,answer 2,verdict\n")
    (folder / "generations.jsonl").write_text(json.dumps(PAIR) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"reference": "demo/model", "dataset": "demo"}))
    ownership.let_go(folder, is_finished=True)
    return folder


@pytest.fixture(scope="module")
def an_adapter(a_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "out"
    choose_folder(str(folder), None, None, False)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(DEMO / "model"), config).save_pretrained(folder)
    ownership.let_go(folder, is_finished=True)
    return folder


def state(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["itself", "a link to it", "the folder by a link", "a link in the folder's place"])
@pytest.mark.parametrize(("script", "flag", "part"), CASES, ids=[f"{script}{flag}" for script, flag, _ in CASES])
def test_what_a_run_is_given_is_not_where_it_writes(script, flag, part, way, a_run, an_adapter, tmp_path, call):
    out = an_adapter if flag == "--adapter" else a_run
    given, output, there = out / part.split(":")[0], out, state(out)
    if way == "a link to it":
        (tmp_path / given.name).symlink_to(given)
        given = tmp_path / given.name
    elif way == "the folder by a link":
        (tmp_path / "link").symlink_to(out)
        output = tmp_path / "link"
    elif way == "a link in the folder's place":
        (tmp_path / "link").symlink_to(out)
        given = tmp_path / "link" / part.split(":")[0]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    name = f"{given}:{part.split(':')[1]}" if ":" in part else str(given)
    words = [flag, name, "--output_dir", output, "--overwrite_output_dir"]
    words += ["--sample_answers", 2] if script == "custom_dataset_dpo" and flag in ("--judge", "--sample_from") else []
    words += [] if flag == "--dataset_name" else ["--dataset_name", tmp_path / "pairs.jsonl"]
    code, _, error = call(script, *words)
    assert code == 2, error
    assert f"{output} is where {flag} {given}" in error
    assert state(out) == there
    assert not ownership.is_held(out)


def test_the_base_of_an_adapter_is_not_where_a_run_writes(a_run, tmp_path, call):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(a_run), config).save_pretrained(tmp_path / "adapter")
    there, words = state(a_run), ("--dataset_name", PROJECT / "demo", "--output_dir", a_run, "--overwrite_output_dir")
    code, _, error = call("dpo_evaluation", "--models", tmp_path / "adapter", *words)
    assert code == 2
    assert f"{a_run} is where the base of --models {tmp_path / 'adapter'} is" in error
    assert state(a_run) == there


@pytest.mark.parametrize("script", TRAINING)
def test_the_users_files_in_the_output_folder_are_a_refusal(script, tmp_path, call):
    """Before the model is loaded, whether a run is to be replaced or not."""
    (tmp_path / "README.md").write_text("mine")
    for words in ((), ("--overwrite_output_dir",), ("--resume_from_checkpoint",)):
        code, _, error = call(script, "--output_dir", tmp_path, *words)
        assert code == 2
        assert "holds README.md, under names that a run writes and not as a run has left them" in error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"README.md": "mine"}


def test_a_cleaned_file_is_not_where_the_run_writes(tmp_path, call):
    words = ("--check_only", "--output_dir", tmp_path, "--save_cleaned", tmp_path / "generations.jsonl")
    code, _, error = call("custom_dataset_dpo", *words)
    assert code == 2
    assert "is where the run writes a file of its own" in error
    assert not list(tmp_path.iterdir())


def test_a_cache_is_not_where_the_model_is(a_run, tmp_path, call):
    there = state(a_run)
    words = (
        "--model_name_or_path",
        a_run,
        "--dataset_name",
        "demo",
        "--output_dir",
        tmp_path,
        "--reference_cache",
        a_run,
    )
    code, _, error = call("basic_dpo_training", *words)
    assert code == 2
    assert "name a folder that only caches use" in error
    assert state(a_run) == there
