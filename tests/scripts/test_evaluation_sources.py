"""The evaluation script with prompts, answers and texts from elsewhere: two processes, kills, a real server."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, PROJECT, SHORT, fork_server, run_forked
from fake_server import FakeServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

DEMO = PROJECT / "demo"
FEW = ("--num_eval_prompts", 10, "--num_samples", 2, "--max_new_tokens", 12, "--per_device_eval_batch_size", 4)


@pytest.fixture(scope="module")
def on_demo(tmp_path_factory) -> tuple:
    """Flags: the demo's reference, and a few of its pairs."""
    pairs = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = (DEMO / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    pairs.write_text("".join(lines[:16]), encoding="utf-8")
    return "--dataset_name", pairs, *FEW, "--output_dir", "out"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps, long enough to be another model."""
    folder = tmp_path_factory.mktemp("runs") / "basic"
    done = run_forked("basic_dpo_training.py", *SHORT, "--learning_rate", "2e-3", "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def start(words, cwd: Path, **more) -> list[int]:
    return fork_server().start("dpo_evaluation", words, cwd / "log", cwd / "errors", cwd=str(cwd), **more)


def report_of(cwd: Path) -> tuple[dict, str]:
    """What an evaluation found, without when and how it was made."""
    metrics = json.loads((cwd / "out" / "metrics.json").read_text())
    made = {name: value for name, value in metrics.items() if name not in ("command", "date", "seconds")}
    return made, (cwd / "out" / "generations.jsonl").read_text()


def kept_in(cwd: Path) -> list[str]:
    files = (cwd / "runs" / ".cache" / "answers").glob("*.jsonl")
    return sorted(json.loads(line)["key"] for file in files for line in file.read_text().splitlines())


def wait_for(what, seconds: float = PATIENCE) -> None:
    end = time.time() + seconds
    while not what():
        assert time.time() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(on_demo, trained, tmp_path_factory):
    """An evaluation that nothing has interrupted."""
    cwd = tmp_path_factory.mktemp("whole")
    done = run_forked("dpo_evaluation.py", "--models", trained, "--reference", DEMO / "model", *on_demo, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.mark.thorough
def test_two_processes_sample_a_share_each_and_report_what_one_does(on_demo, whole, trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start(["--models", trained, "--reference", DEMO / "model", *on_demo, "--use_cpu"], tmp_path, processes=2, port=port)
    assert fork_server().wait() == [0, 0], (tmp_path / "errors").read_text()
    assert report_of(tmp_path) == report_of(whole)
    assert kept_in(tmp_path) == kept_in(whole)
    assert "What the models write" not in (tmp_path / "log.1").read_text()


@pytest.mark.thorough
def test_a_killed_evaluation_samples_nothing_twice_and_reports_the_same(on_demo, whole, trained, tmp_path):
    words = ["--models", trained, "--reference", DEMO / "model", *on_demo]
    [pid] = start(words, tmp_path)
    wait_for(lambda: len(list((tmp_path / "runs").rglob("*.jsonl"))) and len(kept_lines(tmp_path)) >= 4)
    os.kill(pid, signal.SIGKILL)
    assert fork_server().wait() == [-signal.SIGKILL]
    before = kept_lines(tmp_path)
    done = run_forked("dpo_evaluation.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Answers that were kept are used again" in done.stdout
    assert report_of(tmp_path) == report_of(whole)
    assert kept_in(tmp_path) == kept_in(whole)  # each batch once
    assert len(before) < len(kept_in(whole))


def kept_lines(cwd: Path) -> list[str]:
    files = (cwd / "runs" / ".cache" / "answers").glob("*.jsonl")
    return [line for file in files for line in file.read_text().splitlines()]


def test_the_answers_in_a_report_are_judged_again_without_a_model(on_demo, whole, trained, tmp_path):
    done = run_forked(
        "dpo_evaluation.py", "--answers_from", whole / "out" / "generations.jsonl", *on_demo,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again, first = report_of(tmp_path)[0], report_of(whole)[0]
    assert (again["model"], again["reference"]) == (first["model"], first["reference"])
    for name in ("win_rate", "score", "score_reference"):
        assert again[name] == pytest.approx(first[name]), name
    assert "kl" not in again
    assert "no log-prob can be compared" in done.stdout
    assert "lengths are counted in words" in done.stdout
    assert not (tmp_path / "runs" / ".cache").exists()


def test_prompts_alone_are_answered_and_what_needs_pairs_is_left_out(trained, tmp_path):
    rows = [{"prompt": "My parcel is late."}, {"prompt": "The box is broken."}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text("My parcel is late.\n\nPlease send it back, and we pay for it.\n")
    done = run_forked(
        "dpo_evaluation.py", "--models", trained, "--reference", DEMO / "model", "--dataset_name", "prompts.jsonl", "--texts", "texts.txt", *FEW,
        "--output_dir", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = report_of(tmp_path)[0]
    assert (metrics["prompts"], metrics["pairs"]) == (2, 0)
    assert metrics["kl"] > 0
    assert "reward_accuracy" not in metrics
    assert "that takes pairs" in done.stdout
    assert metrics["text_loss_change"] == pytest.approx(metrics["text_loss"] - metrics["text_loss_reference"])
    assert metrics["text_loss_change_ci_low"] <= metrics["text_loss_change"] <= metrics["text_loss_change_ci_high"]
    lines = re.findall(r"lm_eval --model hf --model_args pretrained=(\S+) --tasks", done.stdout)
    assert len(lines) == 2
    assert lines[1] == str(trained)


# --- A server ---


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.stop()


@pytest.mark.thorough
def test_a_killed_evaluation_asks_a_server_nothing_twice(on_demo, fake, tmp_path):
    words = ["--answers_url", fake.url, "--answers_model", "m", "--reference", DEMO / "model", *on_demo]
    fake.act = lambda body: time.sleep(0.05)
    [pid] = start(words, tmp_path)
    wait_for(lambda: len(kept_lines(tmp_path)) >= 6)
    os.kill(pid, signal.SIGKILL)
    fork_server().wait()
    done = run_forked("dpo_evaluation.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = {body: fake.asked.count(body) for body in fake.asked}
    assert len(asked) == 20
    assert sum(count - 1 for count in asked.values()) <= 8  # those that were in flight
    answers = [json.loads(line)["answers"][1] for line in report_of(tmp_path)[1].splitlines()]
    assert {answer["model"] for answer in answers} == {"m"}
    assert {answer["text"].rpartition(" ")[2] for answer in answers} == {"42", "43"}  # the seeds


def test_a_reference_that_is_not_here_is_asked_at_the_server_too(on_demo, fake, tmp_path):
    words = ["--answers_url", fake.url, "--answers_model", "tuned", "--reference", "org/base", *on_demo]
    done = run_forked("dpo_evaluation.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {json.loads(body)["model"] for body in fake.asked} == {"tuned", "org/base"}
    assert "org/base is no folder here, so it is asked at" in done.stdout
    assert report_of(tmp_path)[0]["win_rate"] == 0.5  # both say the same


def a_judge(folder: Path) -> Path:
    """A model that answers every conversation by "Verdict: A": each of its tokens decides the next one."""
    words = ["<unk>", "<go>", "Verdict: A", "</s>"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", additional_special_tokens=["<go>"])
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}<go>"
    size = len(words)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=size, n_layer=1, n_head=1, n_positions=4096, eos_token_id=3, bos_token_id=3,
                   tie_word_embeddings=False)
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(size))
        model.transformer.ln_f.weight.fill_(1)
        model.lm_head.weight.zero_()
        for before, after in ((0, 2), (1, 2), (2, 3), (3, 3)):
            model.lm_head.weight[after, before] = 10
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transformers_serve():
    """The address of a `transformers serve`, which loads the model that a request names."""
    command = Path(sys.executable).with_name("transformers")
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing or not command.exists():
        pytest.skip(f"transformers serve is not here: {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([command, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"])
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert process.poll() is None, "transformers serve has ended"
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
        except OSError:
            return False

    try:
        wait_for(is_up, 120)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.thorough
def test_a_real_server_answers_and_judges(on_demo, transformers_serve, trained, tmp_path):
    judge = a_judge(tmp_path / "judge")
    words = ["--answers_url", transformers_serve, "--answers_model", trained, "--reference", DEMO / "model", *on_demo]
    words += ["--judge_url", transformers_serve, "--judge_model", judge]
    done = run_forked("dpo_evaluation.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in report_of(tmp_path)[1].splitlines()]
    assert all(row["answers"][1]["text"].strip() for row in rows)
    judged = [row for row in rows if row["win"] is not None]
    assert len(judged) == 10  # the first answer of each prompt
    assert {row["win"] for row in judged} == {0.5}  # it always says A, so the order decides
    assert report_of(tmp_path)[0]["order_took_first"] == 1
