"""What goes wrong outside the code: damaged checkpoints, full disks, the wrong command, no memory, no numbers."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, PROJECT, SCRIPTS_ON_DEMO, make_llama
from safetensors import SafetensorError
from safetensors.torch import load_file

import dpo_utils
from machinery.common.errors import is_out_of_memory
from machinery.runs import failures
from machinery.runs.checkpoints import (
    checkpoints,
    delete_older,
    is_checkpoint,
    newest_complete,
    read_manifest,
    why_incomplete,
    write_manifest,
)
from machinery.runs.failures import explain, httpx, remedies, why_write_failed
from machinery.runs.identity import differences, start_weights
from machinery.watching.log_lines import NonFiniteLoss

FLAGS = ("--max_steps", 4, "--save_steps", 1, "--per_device_train_batch_size", 4, "--num_eval_prompts", 1,
         "--max_new_tokens", 2, "--eval_strategy", "no", "--logging_steps", 1)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
        "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
        "MPS backend out of memory (MPS allocated: 17 GB, other allocations: 1 GB, max allowed: 18 GB)",
    ],
)
def test_memory_runs_out_in_other_words_elsewhere(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("a shape is wrong"))


def test_a_hub_that_cannot_be_reached_is_a_sentence():
    code, text = explain(httpx.ConnectError("Name or service not known"), None)
    assert code == 2 and text.startswith("error: the hub cannot be reached") and "Name or service" in text


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """32 pairs of the demo: four steps are half an epoch."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:32]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(pairs_file, tmp_path_factory):
    """A finished run with all its checkpoints. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    words = ("basic_dpo_training.py", "--dataset_name", pairs_file, *FLAGS, "--output_dir", folder)
    done = subprocess.run([sys.executable, *map(str, words)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cut(finished, tmp_path):
    """The same run, killed after step 3."""
    folder = tmp_path / "cut"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-4"))
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    return folder


# --- Checkpoints that are not what was written ---


def truncate(checkpoint):
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(checkpoint):
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGES = [
    (truncate, "optimizer.pt has 99 bytes of 100"),
    (flip_a_bit, "model.safetensors is not what was written"),
    (lambda checkpoint: (checkpoint / "optimizer.pt").unlink(), "optimizer.pt cannot be read"),
    (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "was not written to its end"),
    (lambda checkpoint: (checkpoint / "manifest.json").write_text('{"files": {'), "manifest.json is damaged"),
    (lambda checkpoint: (checkpoint / "manifest.json").write_text('{"run": {}, "files": {}}'), "manifest.json is damaged"),
    (lambda checkpoint: write_manifest(checkpoint, {"save_only_model": True}), "without its optimizer"),
]  # fmt: skip


def make_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for name in ("model.safetensors", "optimizer.pt"):
        (checkpoint / name).write_bytes(os.urandom(100))
    write_manifest(checkpoint, {})
    return checkpoint


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_the_damage_named(damage, words, tmp_path):
    good, bad = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)  # as names, 10 comes before 9
    assert newest_complete(tmp_path) == (bad, [])
    damage(bad)
    newest, [sentence] = newest_complete(tmp_path)
    assert newest == good
    assert str(bad) in sentence
    assert words in sentence


def test_old_checkpoints_go_only_when_two_newer_ones_are_whole(tmp_path):
    for step in range(1, 6):
        make_checkpoint(tmp_path, step)
    flip_a_bit(tmp_path / "checkpoint-4")
    delete_older(tmp_path, keep=2, known=set(), best=str(tmp_path / "checkpoint-1"))
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (1, 3, 4, 5)]


def test_what_somebody_put_into_an_old_checkpoint_stays(tmp_path):
    for step in range(1, 5):
        make_checkpoint(tmp_path, step)
    noted, unfinished = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    (noted / "notes.txt").write_text("keep this one")
    (unfinished / "manifest.json").unlink()
    part = unfinished / "global_step2" / "zero.pt"  # as DeepSpeed writes it
    part.parent.mkdir()
    part.write_text("")
    (tmp_path / "checkpoint-4" / "global_step4").mkdir()
    (tmp_path / "checkpoint-4" / "global_step4" / "zero.pt").write_text("")
    write_manifest(tmp_path / "checkpoint-4", {})
    delete_older(tmp_path, keep=2, known=set())
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert [path.name for path in noted.iterdir()] == ["notes.txt"]


def test_a_damaged_checkpoint_that_is_named_is_refused(cut, pairs_file, call):
    flip_a_bit(cut / "checkpoint-3")
    words = ("--dataset_name", pairs_file, *FLAGS, "--resume_from_checkpoint", cut / "checkpoint-3")
    code, _, error = call("basic_dpo_training", *words)
    assert code == 2
    assert "model.safetensors is not what was written" in error


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_planted_pickle_is_not_run(name, cut, pairs_file, tmp_path, call):
    """Whoever can plant one can write a manifest for it too."""

    class Trace:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trace",))

    torch.save({"state": Trace()}, cut / "checkpoint-3" / name)
    write_manifest(cut / "checkpoint-3", read_manifest(cut / "checkpoint-3")["run"])
    words = ("--dataset_name", pairs_file, *FLAGS, "--output_dir", cut, "--resume_from_checkpoint")
    code, _, error = call("basic_dpo_training", *words)
    assert not (tmp_path / "trace").exists()
    assert code == 2
    assert "could run code" in error


# --- Going on ---


def test_a_run_cut_after_its_last_step_takes_no_further_step(finished, pairs_file, tmp_path, call):
    shutil.copytree(finished, tmp_path / "cut")
    (tmp_path / "cut" / "metrics.json").unlink()
    (tmp_path / "cut" / "model.safetensors").unlink()
    words = ("--dataset_name", pairs_file, *FLAGS, "--output_dir", tmp_path / "cut", "--resume_from_checkpoint")
    code, output, error = call("basic_dpo_training", *words)
    assert code == 0, error
    assert "resumed from step 4" in output
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "cut" / "checkpoint-5").exists()


@pytest.mark.thorough
def test_a_run_killed_on_the_command_line_resumes_to_the_same_weights(finished, pairs_file, tmp_path):
    """As test_kills.py does many times, without its fork server."""
    out = tmp_path / "out"
    words = ("basic_dpo_training.py", "--dataset_name", pairs_file, *FLAGS, "--output_dir", out)
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "checkpoint-3" / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = subprocess.run([*command, "--resume_from_checkpoint"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_without_a_checkpoint_it_starts_from_the_beginning_and_says_so(tmp_path, pairs_file, call):
    words = ("--dataset_name", pairs_file, *FLAGS, "--output_dir", tmp_path / "out", "--resume_from_checkpoint")
    code, output, error = call("basic_dpo_training", *words)
    assert code == 0, error
    assert "resumed from step 0: there is no complete checkpoint yet, so it starts from the beginning" in output


@pytest.fixture
def other_model(tmp_path):
    """The demo's model with one weight changed."""
    folder = tmp_path / "other"
    model, tokenizer = dpo_utils.load_model(str(PROJECT / "demo" / "model"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(1e-3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--seed", 0), ["--seed is 0, and was 42"]),
        (("--beta", 0.2, "--learning_rate", 1e-5), ["--beta is 0.2, and was 0.1", "--learning_rate is 1e-05, and was 0.001"]),
        (("--gradient_accumulation_steps", 2), ["the number of pairs a step is 8, and was 4"]),
        (("--dataset_name", "demo"), ["the training pairs are others (2048 now, 32 then)"]),
    ],
)  # fmt: skip
def test_going_on_with_another_command_is_refused_and_the_difference_named(changed, words, cut, pairs_file, call):
    code, _, error = call(
        "basic_dpo_training", "--dataset_name", pairs_file, *FLAGS, "--output_dir", cut, "--resume_from_checkpoint", *changed
    )  # fmt: skip
    assert code == 2
    assert "belongs to another run" in error
    assert all(word in error for word in words)
    assert "Traceback" not in error


def test_when_to_log_and_to_save_may_change_and_the_command_line_counts(cut, pairs_file, tmp_path, call):
    words = (
        "--dataset_name",
        pairs_file,
        *FLAGS,
        "--logging_steps",
        3,
        "--save_steps",
        0.5,
        "--output_dir",
        tmp_path / "on",
    )
    code, output, error = call("basic_dpo_training", *words, "--resume_from_checkpoint", cut / "checkpoint-1")
    assert code == 0, error
    assert "do not match" not in output + error
    logs = json.loads((tmp_path / "on" / "trainer_state.json").read_text())["log_history"]
    assert [log["step"] for log in logs if "loss" in log] == [1, 3]
    assert sorted(path.name for path in (tmp_path / "on").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_going_on_with_another_model_is_refused(other_model, cut, pairs_file, call):
    code, _, error = call(
        "basic_dpo_training", "--dataset_name", pairs_file, *FLAGS, "--output_dir", cut, "--resume_from_checkpoint",
        "--model_name_or_path", other_model, "--learning_rate", 5e-4, "--beta", 0.1,
    )  # fmt: skip
    assert code == 2
    assert f"the model is {other_model}, and was demo/model: their weights differ" in error


def test_another_hyperparameter_of_the_loss_is_another_run(pairs_file, tmp_path, call):
    words = ("--dataset_name", pairs_file, *FLAGS, "--beside", "none", "--output_dir", tmp_path / "out")
    assert call("custom_loss_dpo", *words, "--loss_kwargs", "lambda_=1")[0] == 0
    code, _, error = call("custom_loss_dpo", *words, "--loss_kwargs", "lambda_=2", "--resume_from_checkpoint")
    assert code == 2
    assert "--loss_kwargs is lambda_=2.0, and was lambda_=1.0" in error


def test_batches_split_otherwise_are_the_same_run(cut, pairs_file, call):
    code, output, error = call(
        "basic_dpo_training", "--dataset_name", pairs_file, *FLAGS, "--output_dir", cut, "--resume_from_checkpoint",
        "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2,
    )  # fmt: skip
    assert code == 0, error
    assert "resumed from step 3" in output


def test_the_start_weights_are_told_apart_without_their_random_adapter():
    from peft import LoraConfig, get_peft_model

    models = []
    for seed in (0, 1):
        base = make_llama()
        torch.manual_seed(seed)  # A is drawn
        models.append(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])))
    first, second = models
    assert not torch.equal(*(next(p for n, p in m.named_parameters() if "lora_A" in n) for m in models))
    assert start_weights(first) == start_weights(second) != start_weights(make_llama(seed=1))
    assert start_weights(make_llama()) != start_weights(make_llama().bfloat16().float().bfloat16())


def test_another_reference_is_another_run():
    run = {"model": {"name": "m", "weights": "w"}, "reference": "w", "pairs": None, "settings": {}}
    assert differences(run, run) == []
    assert differences(run | {"reference": "other"}, run) == ["the reference has other weights"]


def test_a_checkpoint_as_the_model_is_refused_and_a_finished_run_is_not(finished, pairs_file, tmp_path, call):
    words = ("--dataset_name", pairs_file, *FLAGS, "--output_dir", tmp_path / "out", "--model_name_or_path")
    code, _, error = call("basic_dpo_training", *words, finished / "checkpoint-2")
    assert code == 2
    assert "would become the reference too" in error
    assert f"--output_dir {finished} --resume_from_checkpoint" in error
    assert not is_checkpoint(finished)


# --- No room, no memory, no numbers ---


@pytest.mark.thorough
def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(cut, pairs_file):
    """The system refuses files beyond 6 MB, in the middle of the optimizer's 8.7."""
    before = {path: path.read_bytes() for path in (cut / "checkpoint-3").iterdir()}
    words = [
        "basic_dpo_training.py",
        "--dataset_name",
        pairs_file,
        *FLAGS,
        "--output_dir",
        cut,
        "--resume_from_checkpoint",
    ]
    limited = ["bash", "-c", 'ulimit -f 5860; exec "$@"', "-"]  # KiB
    done = subprocess.run(
        [*limited, sys.executable, *map(str, words)], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1, done.stderr
    assert "writing failed" in done.stderr
    assert f"{cut / 'checkpoint-3'} is complete" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in (cut / "checkpoint-3").iterdir()} == before
    assert not (cut / "metrics.json").exists()


@pytest.mark.parametrize(
    ("follows", "words"), [(False, "go on from it by --output_dir"), (True, "no run goes on from it")]
)
def test_a_failure_names_the_way_on_only_where_there_is_one(follows, words, tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "newest_complete", lambda folder: (folder / "checkpoint-3", []))
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path), sync_ref_model=follows))
    code, text = failures.explain(NonFiniteLoss("the loss is nan at step 4"), trainer)
    assert code == 1
    assert words in text


def test_a_folder_that_is_taken_away_is_one_sentence(pairs_file, tmp_path, call, monkeypatch):
    out, moved = tmp_path / "out", tmp_path / "moved"

    def take_away(self, args, state, control, **kwargs):
        if state.global_step == 3:
            out.rename(moved)
            out.write_text("a file")  # what root, too, cannot write into

    monkeypatch.setattr(dpo_utils.PreviewReply, "on_step_end", take_away)
    code, _, error = call("basic_dpo_training", "--dataset_name", pairs_file, *FLAGS, "--output_dir", out)
    assert code == 1
    assert "writing failed" in error
    assert newest_complete(moved)[0] == moved / "checkpoint-2"


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system", "out/metrics.json"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "out/checkpoint-3/optimizer.pt"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a_file_of_the_user.txt"), False),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while deserializing header: incomplete metadata"), False),
    ],
)
def test_failed_writes_are_told_from_other_errors(error, is_one):
    assert bool(why_write_failed(error, Path("out"))) == is_one


def test_the_free_space_said_is_that_of_the_disk_that_is_full(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=3 * 2**20))
    elsewhere = tmp_path / "another disk"
    elsewhere.mkdir()
    text = why_write_failed(OSError(errno.ENOSPC, "No space left", str(elsewhere / "pairs.arrow")), tmp_path / "out")
    assert asked == [elsewhere]
    assert f"with 3 MiB free in {elsewhere}" in text
    why_write_failed(OSError(errno.ENOSPC, "No space left"), tmp_path / "out" / "not made yet")
    assert asked[1:] == [tmp_path]


def test_a_disk_too_full_for_curves_and_replies_keeps_the_model(pairs_file, tmp_path, call, monkeypatch):
    def full(*args):
        args[-1].write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("machinery.runs.saving.plot_training", full)
    out = tmp_path / "out"
    code, _, _ = call("basic_dpo_training", "--dataset_name", pairs_file, *FLAGS, "--output_dir", out)
    assert code == 0
    assert not (out / "training_curves.png").exists()
    assert all((out / name).exists() for name in ("model.safetensors", "completions.md", "metrics.json"))
    assert "training_curves.png could not be written" in (out / "warnings.jsonl").read_text()


def test_an_evaluation_whose_page_does_not_fit_has_its_numbers(tmp_path, call, monkeypatch):
    def full(path, page):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("machinery.evaluation.report.write_report", full)
    words = SCRIPTS_ON_DEMO["dpo_evaluation"]
    code, output, _ = call("dpo_evaluation", *words, "--output_dir", tmp_path)
    assert code == 0
    assert "generations.jsonl, generations.csv, metrics.csv, metrics.json" in output
    assert "report.html" not in output
    assert (tmp_path / "metrics.json").exists()


def test_a_checkpoint_whose_manifest_has_changed_is_passed_over(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 1)
    write_manifest(checkpoint, {"seed": 42})
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text().replace("42", "43"))
    assert why_incomplete(checkpoint) == "its manifest.json is damaged"


def test_weights_that_are_no_numbers_never_become_a_complete_checkpoint(pairs_file, tmp_path, call):
    """Nothing is logged before the end, so the loss cannot give it away."""
    words = ("--dataset_name", pairs_file, *FLAGS, "--logging_steps", 100, "--learning_rate", "1e9")
    code, _, error = call(
        "basic_dpo_training", *words, "--max_grad_norm", 0, "--warmup_steps", 0, "--output_dir", tmp_path / "out"
    )
    assert code == 1
    assert "training failed" in error
    assert "--learning_rate" in error
    for checkpoint in checkpoints(tmp_path / "out"):
        assert why_incomplete(checkpoint) is None
        tensors = load_file(checkpoint / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def fail_for_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("script", "flags", "ladder"),
    [
        (
            "basic_dpo_training", "--gradient_accumulation_steps 3 --no_precompute_ref_log_probs",
            ["--per_device_train_batch_size 2 --gradient_accumulation_steps 6 (about", "--gradient_checkpointing true (about",
             "--precompute_ref_log_probs (about 4 MiB less)", "--max_length", "lora_dpo_training.py", "fsdp2.yaml"],
        ),
        (
            "lora_dpo_training", "--per_device_train_batch_size 1 --gradient_checkpointing true",
            ["--max_length", "fsdp2.yaml"],
        ),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_need_and_what_is_left_to_do(
    script, flags, ladder, pairs_file, tmp_path, call, monkeypatch
):
    monkeypatch.setattr("transformers.Trainer.training_step", fail_for_memory)
    words = ("--dataset_name", pairs_file, *FLAGS, *flags.split(), "--output_dir", tmp_path / "out")
    code, _, error = call(script, *words)
    assert code == 1
    assert "out of memory. By estimate this run needs" in error
    steps = [line for line in error.splitlines() if line.strip()[:1].isdigit()]
    assert len(steps) == len(ladder)
    for number, (step, words) in enumerate(zip(steps, ladder, strict=True), 1):
        assert step.strip().startswith(f"{number}. ")
        assert words in step


def test_memory_that_runs_out_while_the_reference_is_asked_has_a_remedy_of_its_own():
    def _precompute_ref_logps():
        raise MemoryError

    with pytest.raises(MemoryError) as ran_out:
        _precompute_ref_logps()
    assert "--precompute_ref_batch_size" in remedies(None, ran_out.value)
