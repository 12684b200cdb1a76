"""The stories of a real model, on the demo's and for two steps: they run, go on after a stop, and are shown."""

import json
import shlex
import sys

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT))
from benchmarks import real_model

SMALL = {
    real_model.MODEL: str(PROJECT / "demo" / "model"),
    "--config recipes/smollm2/cpu.yaml": f"--config recipes/smollm2/cpu.yaml --model_name_or_path {PROJECT}/demo/model "
    "--max_steps 2 --per_device_train_batch_size 2 --num_eval_prompts 2 --eval_strategy epoch --save_strategy no",
    "--max_new_tokens 48": "--max_new_tokens 4 --num_eval_prompts 4",
}


@pytest.mark.thorough
def test_a_story_is_told_once_and_shown(tmp_path, monkeypatch, capsys):
    pairs = [{"instruction": f"Say {n}.", "input": "", "chosen": f"Here is {n}.", "rejected": "No."} for n in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    commands = real_model.STORIES["given"]
    for long, short in SMALL.items():
        commands = [command.replace(long, short) for command in commands]
    monkeypatch.setitem(real_model.STORIES, "given", commands)
    monkeypatch.setattr(real_model, "OUT", tmp_path / "out")
    monkeypatch.setattr(real_model, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--pairs", str(tmp_path / "pairs.json"), "--stories", "given"])
    real_model.main()
    first = capsys.readouterr().out
    assert first.count("python ") == len(commands)
    assert "| the same, three epochs |" in first and "| all weights |" in first
    real_model.main()
    assert "python " not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--show", "given"])
    real_model.main()
    assert capsys.readouterr().out.strip() in first


def test_every_command_of_a_story_writes_where_a_later_one_reads():
    for commands in real_model.STORIES.values():
        outs = [command.split()[-1] for command in commands]
        assert all(" --output_dir " in command for command in commands)
        assert len({*outs}) == len(outs)
    for name in ("own", "own_plain", "too_far"):
        words = " ".join(real_model.STORIES[name]).split()
        made = {word for command in real_model.STORIES["own"] for word in command.split()}
        assert {word.removesuffix("/merged") for word in words if word.startswith("runs/")} <= made | {
            command.split()[-1] for command in real_model.STORIES[name]
        }


def test_a_command_is_shown_in_lines_that_a_shell_puts_together():
    for command in (command for commands in real_model.STORIES.values() for command in commands):
        shown = real_model.in_lines(command)
        assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)
        assert max(map(len, shown.splitlines())) <= 120
