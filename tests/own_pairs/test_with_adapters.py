"""Rounds with adapters, by the commands of docs/pairs.md: sample and save, train an adapter, merge it, again."""

import json
import shlex

import pytest
from conftest import PROJECT, run_forked

SHORT = (
    "--max_steps 6 --per_device_train_batch_size 4 --num_eval_prompts 2 --max_new_tokens 16 --eval_strategy no "
    "--save_strategy no --learning_rate 1e-2 --adam_epsilon 1e-5"  # so that six steps change what is said
).split()


@pytest.mark.thorough
def test_two_rounds_with_adapters_as_the_page_says(tmp_path):
    lines = (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = {json.loads(line)["prompt"][-1]["content"]: None for line in lines[:24]}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    (tmp_path / "rules.py").write_text("def score(prompt, answer):\n    return -len(answer)\n")
    page = (PROJECT / "docs" / "pairs.md").read_text(encoding="utf-8")
    part = page.split("## Rounds with adapters\n")[1].replace("\\\n", "")  # a command of several lines is one
    commands = [line.strip() for line in part.splitlines() if "    python " in line]
    assert len(commands) == 4
    for command in commands:
        _, script, *words = shlex.split(command)
        rest = ["--max_new_tokens", "16"] if "--check_only" in words else SHORT
        done = run_forked(script, *words, *rest, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = ((tmp_path / f"round-{n}.jsonl").read_text() for n in (1, 2))
    assert first and second and first != second
    made = json.loads((tmp_path / "runs" / "lora-2" / "metrics.json").read_text())
    assert made["model"] == "runs/lora-1/merged"
    assert (tmp_path / "runs" / "lora-2" / "merged" / "model.safetensors").exists()
