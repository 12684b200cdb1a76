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


def run(tmp_path, monkeypatch, *words, first_reference=False, num_prompts=None, count=3, out="out", model="demo/model"):
    monkeypatch.setattr(sys, "argv", ["script.py", "--rounds", str(count), "--beta", "0.2", *words])
    monkeypatch.chdir(tmp_path)
    args = SimpleNamespace(
        rounds=count, first_reference=first_reference, num_prompts=num_prompts, skip_prompts=0, num_eval_prompts=8
    )
    training_args = SimpleNamespace(
        output_dir=str(tmp_path / (out or "")),
        is_output_dir_given=out is not None,
        overwrite_output_dir="--overwrite_output_dir" in words,
        sync_ref_model="--sync_ref_model" in words,
        resume_from_checkpoint=None,
        learning_rate=3e-4,
        reads={"--model_name_or_path": model, "--judge": str(tmp_path / "rules.py")},
        seed=0,
    )
    model_args = SimpleNamespace(model_name_or_path=model)
    run_rounds("script.py", args, training_args, model_args, None, ["learning_rate"])


def test_each_round_starts_from_the_last_and_keeps_the_settings_of_the_first(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, "--seed", "5")
    folder = tmp_path / "out"
    assert script.told("--model_name_or_path") == ["demo/model", f"{folder}/round-1", f"{folder}/round-2"]
    assert script.told("--learning_rate") == ["0.0003"] * 3
    assert script.told("--seed") == ["5"] * 3
    assert script.told("--rounds") == ["0"] * 3 and script.told("--first_reference") == ["false"] * 3  # of a recipe
    assert script.told("--reference") == [None] * 3
    assert len(json.loads((folder / "rounds.json").read_text())["rounds"]) == 3


def test_what_is_finished_is_not_done_again(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, count=2)
    run(tmp_path, monkeypatch, count=3)
    assert [rounds.Path(out).name for out in script.told("--output_dir")] == ["round-1", "round-2", "round-3"]


def test_rounds_of_another_command_or_another_rule_stay_unless_they_are_to_go(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, count=2)
    for words in ((), ("--beta", "0.3")):
        (tmp_path / "rules.py").write_text("def score(prompt, answer): return 1")  # for the first of them
        with pytest.raises(UserError, match="has rounds of another command, of other data or of another judge"):
            run(tmp_path, monkeypatch, *words, count=2)
    assert len(script.words) == 2
    for _ in range(2):  # what is asked for is done, also to what the same command has made
        run(tmp_path, monkeypatch, "--beta", "0.3", "--overwrite_output_dir", count=1)
    assert script.told("--beta")[2:] == ["0.3"] * 2 and len(script.words) == 4


def test_without_a_folder_another_command_gets_one_with_a_number(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, count=2, out=None)
    run(tmp_path, monkeypatch, "--beta", "0.3", count=1, out=None)
    run(tmp_path, monkeypatch, "--beta", "0.3", count=2, out=None)
    run(tmp_path, monkeypatch, count=2, out=None, model="runs/rounds/round-2")
    folders = ["rounds/round-1", "rounds/round-2", "rounds-2/round-1", "rounds-2/round-2"]
    folders += ["rounds-3/round-1", "rounds-3/round-2"]
    assert script.told("--output_dir") == [f"runs/{folder}" for folder in folders]


@pytest.mark.parametrize("words", [(), ("--overwrite_output_dir",)])
def test_rounds_never_write_over_the_model_that_they_start_from(script, tmp_path, monkeypatch, words):
    (tmp_path / "out" / "round-2").mkdir(parents=True)
    (tmp_path / "out" / "round-2" / "model.safetensors").write_text("weights")
    with pytest.raises(UserError, match="out is where --model_name_or_path is"):
        run(tmp_path, monkeypatch, *words, model=str(tmp_path / "out" / "round-2"))
    assert not script.words


def test_a_note_that_is_not_what_was_written_is_not_believed(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, count=2)
    note = tmp_path / "out" / "round-2.json"
    note.write_text(note.read_text().replace('"score_after": 2.0', '"score_after": 3.0'))
    run(tmp_path, monkeypatch, count=2)
    assert [rounds.Path(out).name for out in script.told("--output_dir")] == ["round-1", "round-2", "round-2"]


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
    assert how == [(False, True), (False, True), (True, True), (False, True)]
    assert script.told("--overwrite_output_dir")[2] == "false"


def test_a_round_whose_reference_moves_begins_anew(script, tmp_path, monkeypatch):
    """No checkpoint holds that reference, so its own run would refuse to go on."""
    script.killed_in = "round-2"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, "--sync_ref_model")
    script.killed_in = None
    run(tmp_path, monkeypatch, "--sync_ref_model")
    assert [rounds.Path(out).name for out in script.told("--output_dir")] == [
        "round-1",
        "round-2",
        "round-2",
        "round-3",
    ]
    assert not any("--resume_from_checkpoint" in words for words in script.words)


def test_a_checkpoint_of_another_command_is_not_gone_on_from(script, tmp_path, monkeypatch):
    script.killed_in = "round-1"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch)
    script.killed_in = None
    run(tmp_path, monkeypatch, "--seed", "9", "--overwrite_output_dir", count=1)
    assert "--resume_from_checkpoint" not in script.words[-1]


def test_the_first_model_as_the_reference_and_other_prompts_each_round(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, first_reference=True, num_prompts=100)
    assert script.told("--reference") == [None, "demo/model", "demo/model"]
    assert script.told("--skip_prompts") == ["0", "100", "200"]


def test_a_revision_of_the_first_model_goes_where_that_model_goes(script, tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, "--model_revision", "v7", out="one")
    run(tmp_path, monkeypatch, "--model_revision", "v7", out="two", first_reference=True)
    assert script.told("--model_revision") == ["v7", None, None, "v7", "v7", "v7"]


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
