"""Rounds: each from the model of the one before, none done twice, and one that was killed goes on."""

import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest

from machinery.common.errors import UserError
from machinery.own_pairs import rounds
from machinery.own_pairs.rounds import run_rounds, table


class Script:
    """Stands in for a script in a process of its own: writes what a run leaves, or is killed."""

    def __init__(self):
        self.words, self.killed_in = [], None

    def __call__(self, command, environment):
        self.words.append(command[2:])
        options = dict(pairwise(command))
        out = rounds.Path(options["--output_dir"])
        if self.killed_in == out.name:
            (out / "checkpoint-2").mkdir(parents=True)
            raise KeyboardInterrupt
        out.mkdir(parents=True, exist_ok=True)
        score = len(self.words)
        (out / "metrics.json").write_text(json.dumps({"score_before": score - 1.0, "score_after": float(score)}))
        return 0, ""

    def told(self, flag: str) -> list[str | None]:
        return [dict(pairwise(words)).get(flag) for words in self.words]


@pytest.fixture
def script(monkeypatch, tmp_path):
    script = Script()
    monkeypatch.setattr(rounds, "run_child", script)
    monkeypatch.setattr(rounds, "_held_out", lambda *args: ["?"])
    monkeypatch.setattr(rounds, "_moved", lambda *args: (1.0, 0.5, 1.5))
    return script


def run(tmp_path, monkeypatch, *words, first_reference=False, num_prompts=None, count=3):
    monkeypatch.setattr(sys, "argv", ["script.py", "--rounds", str(count), "--beta", "0.2", *words])
    args = SimpleNamespace(
        rounds=count, first_reference=first_reference, num_prompts=num_prompts, skip_prompts=0, num_eval_prompts=8
    )
    training_args = SimpleNamespace(
        output_dir=str(tmp_path / "out"), is_output_dir_given=True, learning_rate=3e-4, reads={}, seed=0
    )
    model_args = SimpleNamespace(model_name_or_path="demo/model")
    run_rounds("script.py", args, training_args, model_args, None, ["learning_rate"])


def test_each_round_starts_from_the_last_and_keeps_the_settings_of_the_first(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, "--seed", "5")
    folder = tmp_path / "out"
    assert script.told("--model_name_or_path") == ["demo/model", f"{folder}/round-1", f"{folder}/round-2"]
    assert script.told("--learning_rate") == ["0.0003"] * 3
    assert script.told("--seed") == ["5"] * 3 and script.told("--rounds") == [None] * 3
    assert script.told("--reference") == [None] * 3
    assert len(json.loads((folder / "rounds.json").read_text())["rounds"]) == 3


def test_what_is_finished_is_not_done_again_and_another_command_does_it_anew(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, count=2)
    run(tmp_path, monkeypatch, count=3)
    assert [rounds.Path(out).name for out in script.told("--output_dir")] == ["round-1", "round-2", "round-3"]
    run(tmp_path, monkeypatch, "--beta", "0.3", count=1)
    assert script.told("--output_dir")[-1].endswith("round-1") and script.told("--beta")[-1] == "0.3"


def test_a_round_after_one_that_was_done_anew_is_done_anew(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, count=2)
    (tmp_path / "out" / "round-1" / "metrics.json").unlink()
    run(tmp_path, monkeypatch, count=2)
    assert [rounds.Path(out).name for out in script.told("--output_dir")] == ["round-1", "round-2"] * 2


def test_a_round_that_was_killed_goes_on_from_its_own_checkpoint(script, tmp_path, monkeypatch):
    script.killed_in = "round-2"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch)
    script.killed_in = None
    run(tmp_path, monkeypatch)
    how = [("--resume_from_checkpoint" in words, "--overwrite_output_dir" in words) for words in script.words]
    assert how == [(False, True), (False, True), (True, False), (False, True)]


def test_a_checkpoint_of_another_command_is_not_gone_on_from(script, tmp_path, monkeypatch):
    script.killed_in = "round-1"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch)
    script.killed_in = None
    run(tmp_path, monkeypatch, "--seed", "9", count=1)
    assert "--overwrite_output_dir" in script.words[-1]


def test_the_first_model_as_the_reference_and_other_prompts_each_round(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, first_reference=True, num_prompts=100)
    assert script.told("--reference") == [None, "demo/model", "demo/model"]
    assert script.told("--skip_prompts") == ["0", "100", "200"]


def test_a_round_that_fails_ends_the_rounds(tmp_path, monkeypatch, script):
    monkeypatch.setattr(rounds, "run_child", lambda *args: (2, ""))
    with pytest.raises(UserError, match="round-1 ended with 2"):
        run(tmp_path, monkeypatch)


def test_the_table_has_a_row_a_round_and_one_before():
    made = [
        {
            "score_before": 1.0,
            "score_after": 2.0,
            "score_after_ci_low": 1.5,
            "score_after_ci_high": 2.5,
            "kl_first": 3.0,
        }
    ]
    assert table(made).splitlines() == [
        "| round | score | KL from the first |",
        "|---|---|---|",
        "| before | 1.00 |  |",
        "| 1 | 2.00 [1.50, 2.50] | 3.00 |",
    ]
