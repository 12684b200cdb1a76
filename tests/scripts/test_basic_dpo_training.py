"""The basic script as a user runs it: what it prints, what it writes, how it ends."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import CONTRACT, PATIENCE, PROJECT, SHORT, run_forked, run_script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from docs.dpo_from_scratch import read_pairs, sequence_logps

PAIRS = [
    {"prompt": f"what is it? {'it is ' * n}", "chosen": "a cat, no, a dog.", "rejected": "the mat" + " over" * n}
    for n in range(1, 9)
]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    done = run_script("basic_dpo_training.py", *SHORT, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


def test_it_shows_a_pair_the_reference_and_ln_2(demo_run):
    _, output = demo_run
    assert "Loss before training: 0.6931 = ln 2" in output
    assert "Reference: a frozen copy of demo/model" in output
    assert "<|im_end|><" in output  # the EOS is trained on


def test_it_shows_the_loss_of_the_first_pair_by_hand(demo_run):
    folder, output = demo_run
    tokenizer = AutoTokenizer.from_pretrained(folder)
    [(prompt, chosen, rejected), *_] = read_pairs(PROJECT / "demo" / "train.jsonl", tokenizer)
    rows, rewards = [(prompt, chosen), (prompt, rejected)], []
    with torch.no_grad():
        policy, reference = (
            sequence_logps(AutoModelForCausalLM.from_pretrained(where).eval(), rows)
            for where in (folder, PROJECT / "demo" / "model")
        )
    by_hand = output[output.index("The first training pair, by hand") :].splitlines()
    for name, line, now, before in zip(("chosen", "rejected"), by_hand[3:5], policy, reference, strict=True):
        assert line.split() == [name, f"{now:.2f}", f"{before:.2f}", f"{0.1 * (now - before):+.3f}"]
        rewards.append(0.1 * (now - before))
    loss = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1])
    assert by_hand[5].endswith(f"loss = -log sigmoid(margin) = {loss:.3f}")
    assert by_hand[1].endswith(f"({len(chosen)} tokens): {policy[0]:.2f}")


def test_it_shows_replies_before_and_after_and_the_true_reward(demo_run):
    folder, output = demo_run
    for word in (
        "before",
        "after",
        "greedily",
        "answers",
        "no_padding",
        "Before training no temperature earns more than",
        "Win rate",
        "KL from the",
    ):
        assert word in output
    assert output.rstrip().endswith(str(folder))


def test_its_files_are_those_of_the_contract(demo_run):
    folder, _ = demo_run
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "trainer_state.json", "metrics.json", "training_curves.png",
            "completions.md"} <= names  # fmt: skip
    assert not any("unfinished" in name for name in names)
    assert (folder / "training_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "completions.md").read_text().count("## ") == 4
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [logs["step"] for logs in history if "loss" in logs] == [1, 2, 3, 4]


def test_its_metrics_are_flat_and_finite(demo_run):
    folder, _ = demo_run
    metrics = json.loads((folder / "metrics.json").read_text())
    with_ends = [name + end for name in ("kl", "true_reward_before", "true_reward_after", "win_rate",
                 "greedy_reward_before", "greedy_reward_after", "greedy_win_rate", "garbled_before", "garbled_after",
                 "greedy_garbled_before", "greedy_garbled_after", "reply_tokens_before", "reply_tokens_after")
                 for end in ("", "_ci_low", "_ci_high")]  # fmt: skip
    assert set(CONTRACT) | set(with_ends) == set(metrics)
    for value in metrics.values():
        assert value is None or isinstance(value, str) or math.isfinite(value)
    assert (metrics["pairs_train"], metrics["pairs_eval"]) == (2048, 256)
    assert metrics["win_rate_ci_low"] <= metrics["win_rate"] <= metrics["win_rate_ci_high"]


def test_its_model_is_loaded_by_from_pretrained_and_has_moved(demo_run):
    folder, _ = demo_run
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    base = AutoModelForCausalLM.from_pretrained(PROJECT / "demo" / "model")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))


@pytest.mark.thorough
def test_another_architecture_without_pad_token_and_template(base_model_folder, pairs_file, tmp_path):
    options = (
        "--model_name_or_path",
        base_model_folder,
        "--dataset_name",
        pairs_file,
        "--output_dir",
        tmp_path / "out",
    )
    done = run_forked("basic_dpo_training.py", *options, *SHORT, "--max_prompt_length", 10, "--max_length", 64)
    assert done.returncode == 0, done.stderr
    assert " = ln 2" in done.stdout
    assert " prompt_shortened" in done.stdout
    assert "nothing is held out" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["pairs_train"] == len(PAIRS)
    assert metrics["eval_loss"] is None
    assert "true_reward_after" not in metrics


@pytest.mark.thorough
def test_conversations_for_a_model_without_a_template(base_model_folder, tmp_path, call):
    turns = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in PAIRS
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(turns))
    options = ("--model_name_or_path", base_model_folder, "--dataset_name", tmp_path / "pairs.json")
    code, output, _ = call("basic_dpo_training", *options, "--output_dir", tmp_path / "out", *SHORT)
    assert code == 0
    assert "User: what is it?" in output
    saved = [json.loads(line)["warning"] for line in (tmp_path / "out" / "warnings.jsonl").read_text().splitlines()]
    assert any("no chat template" in text for text in saved)


def test_a_trl_command_line_runs_when_its_first_words_are_replaced(base_model_folder, tmp_path):
    (tmp_path / "data").mkdir()
    for split, rows in (("train", PAIRS[:6]), ("test", PAIRS[6:])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(f"dataset_name: {tmp_path / 'data'}\nbeta: 0.2\nloss_type: [sigmoid, sft]\n")
    words = f"--config {tmp_path / 'recipe.yaml'} --model_name_or_path {base_model_folder} --learning_rate 1e-4 "
    words += "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --eval_strategy steps "
    words += "--eval_steps 1 --loss_weights 1.0 0.2 --no_gradient_checkpointing --no_remove_unused_columns "
    words += f"--precompute_ref_log_probs --report_to none --use_cpu --no_bf16 --output_dir {tmp_path}/out"
    # `trl dpo` takes exactly these words
    from trl.scripts.dpo import make_parser

    make_parser().parse_args_and_config(words.replace("--no_bf16", "--bf16 false").split())
    done = run_forked("basic_dpo_training.py", *words.replace("--no_bf16", "--bf16 false").split())
    assert done.returncode == 0, done.stderr
    assert "on the first 4 pairs. Every margin is 0; what SFT adds differs" in done.stdout


def test_the_default_folder_takes_a_number_and_the_last_line_names_it(base_model_folder, pairs_file, tmp_path):
    (tmp_path / "runs" / "basic").mkdir(parents=True)
    options = ("--model_name_or_path", base_model_folder, "--dataset_name", pairs_file, *SHORT)
    done = run_forked(PROJECT / "basic_dpo_training.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1].split()[-1] == "runs/basic-2"
    assert (tmp_path / "runs" / "basic-2" / "metrics.json").exists()


# --- Interrupted, resumed, failed ---


LONGER = ("--max_steps", 8, "--save_steps", 2, "--per_device_train_batch_size", 4, "--num_eval_prompts", 2,
          "--max_new_tokens", 8, "--eval_strategy", "no", "--logging_steps", 1, "--num_train_epochs", 4)  # fmt: skip


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(pairs_file, tmp_path, call):
    options = ("--dataset_name", pairs_file, *LONGER)  # 8 pairs, batch 4: two steps an epoch
    assert call("basic_dpo_training", *options, "--output_dir", tmp_path / "whole")[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (tmp_path / "cut").iterdir():  # what a kill after step 5 leaves behind
        if path.name not in ("checkpoint-2", "checkpoint-4"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "cut" / "checkpoint-6").mkdir()  # begun, not finished
    code, output, error = call(
        "basic_dpo_training", *options, "--output_dir", tmp_path / "cut", "--resume_from_checkpoint"
    )
    assert code == 0, error
    assert "resumed from step 4" in output
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_previews_do_not_change_the_weights(pairs_file, tmp_path, call, monkeypatch):
    import dpo_utils

    options = ("--dataset_name", pairs_file, *LONGER, "--save_strategy", "no")
    code, shown, error = call("basic_dpo_training", *options, "--output_dir", tmp_path / "with")
    assert code == 0, error
    assert "\n           > " in shown
    monkeypatch.setattr(dpo_utils.PreviewReply, "on_step_end", lambda *args, **kwargs: None)
    call("basic_dpo_training", *options, "--output_dir", tmp_path / "without")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.thorough
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(number, code, tmp_path):
    command = [sys.executable, "basic_dpo_training.py", "--output_dir", str(tmp_path / "out"), *map(str, SHORT)]
    command += ["--max_steps", "2000"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background has it ignored
    )  # fmt: skip
    for line in process.stdout:
        if "3/2000" in line:
            process.send_signal(number)
            break
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "--resume_from_checkpoint" in output
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_loss_that_is_no_number_ends_with_1_and_a_remedy(pairs_file, tmp_path, call):
    code, _, error = call(
        "basic_dpo_training", "--dataset_name", pairs_file, *SHORT, "--learning_rate", "1e30",
        "--max_grad_norm", "0", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    assert "training failed" in error
    assert "--learning_rate" in error
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_the_kl_is_from_where_a_reference_that_follows_began_and_no_checkpoint_holds_it(tmp_path):
    flags = "--max_steps 3 --warmup_steps 0 --save_steps 2 --eval_strategy no --per_device_train_batch_size 8 --num_eval_prompts 4 "
    flags += "--max_new_tokens 16 --sync_ref_model --ref_model_sync_steps 1 --ref_model_mixup_alpha 1 --output_dir"
    command = ["basic_dpo_training.py", *flags.split(), tmp_path / "run"]
    done = run_forked(*command)
    assert done.returncode == 0, done.stderr
    assert "Every 1 steps it goes 1 of the way to the policy." in done.stdout
    # At the end it is the policy, and the KL from it would be 0.
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["kl"] > 1e-3
    (tmp_path / "run" / "metrics.json").unlink()
    again = run_forked(*command, "--resume_from_checkpoint")
    assert again.returncode == 2
    assert "no checkpoint holds it" in again.stderr
