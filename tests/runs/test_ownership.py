"""What a run has left in a folder is replaced; what anybody else has left there stays, or is a refusal."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import PROJECT

from machinery.runs import ownership
from machinery.runs.checkpoints import write_manifest
from machinery.runs.folder import choose_folder, why_not

A_RUN = ("metrics.json", "config.json", "model.safetensors", "README.md", "checkpoint-8/model.safetensors")


def write(folder, *names, text="a run's"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def finished_run(folder, *names):
    """A folder in which a run came to its end."""
    choose_folder(str(folder), None, None, False)
    write(folder, *(names or A_RUN))
    ownership.let_go(folder, is_finished=True)


def everything(folder):
    own = folder / ownership.OWN
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_relative_to(own)}  # fmt: skip


def test_a_run_replaces_a_run_and_leaves_what_is_the_users(tmp_path):
    write(tmp_path, "notes.txt", "photo.png", "data/pairs.jsonl", text="mine")
    mine = everything(tmp_path)
    finished_run(tmp_path)
    assert everything(tmp_path) == mine | dict.fromkeys(A_RUN, "a run's")
    choose_folder(str(tmp_path), None, None, True)
    assert everything(tmp_path) == mine
    write(tmp_path, "metrics.json", text="the second's")
    ownership.let_go(tmp_path, is_finished=True)
    assert everything(tmp_path) == mine | {"metrics.json": "the second's"}


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "adapter_config.json", "checkpoint-8/mine.txt",
                                  "model-00001-of-00002.safetensors", "report.html", "merged/a/b.txt"])  # fmt: skip
@pytest.mark.parametrize("how", ["at the start", "after a run", "changed since"])
def test_a_file_of_the_users_under_a_name_that_a_run_writes_is_a_refusal(tmp_path, how, name):
    if how == "after a run":
        finished_run(tmp_path, "metrics.json")
    elif how == "changed since":
        finished_run(tmp_path, "metrics.json", name)
    write(tmp_path, name, text="mine, and longer")
    there = everything(tmp_path)
    for replace in (True, False):
        with pytest.raises(ValueError, match=f"holds {name}"):
            choose_folder(str(tmp_path), None, None, replace)
    if not name.startswith("checkpoint-"):  # to go on writes nothing there
        with pytest.raises(ValueError, match=f"holds {name}"):
            choose_folder(str(tmp_path), None, "newest", False)
    assert everything(tmp_path) == there


def test_a_run_that_is_not_to_be_replaced_is_named(tmp_path):
    finished_run(tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        choose_folder(str(tmp_path), None, None, False)


def test_what_was_to_be_replaced_comes_back_where_the_new_run_never_trained(tmp_path):
    finished_run(tmp_path)
    there = everything(tmp_path)
    choose_folder(str(tmp_path), None, None, True)
    write(tmp_path, "data_report.json", "base/config.json", text="the new one's")
    ownership.let_go(tmp_path, is_finished=False)
    assert everything(tmp_path) == there
    assert not ownership.in_the_way(tmp_path)  # and it is the old run's as before


@pytest.mark.parametrize("moves", range(9))
def test_and_where_it_was_killed_in_the_middle_of_moving(tmp_path, monkeypatch, moves):
    """A process that ends after so many moves, and another that looks at what it has left."""
    finished_run(tmp_path)
    there, left = everything(tmp_path), moves
    move = ownership.Path.rename

    def rename(path, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return move(path, target)

    monkeypatch.setattr(ownership.Path, "rename", rename)
    for _ in range(2):  # on the way there, or on the way back
        try:
            choose_folder(str(tmp_path), None, None, True)
            ownership.let_go(tmp_path, is_finished=False)
        except KeyboardInterrupt:
            ownership.release(tmp_path)
            left = moves // 2
    monkeypatch.undo()
    ownership.hold(tmp_path)
    ownership.release(tmp_path)
    assert everything(tmp_path) == there


def test_what_is_replaced_is_gone_once_the_new_run_trains(tmp_path):
    finished_run(tmp_path)
    choose_folder(str(tmp_path), None, None, True)
    ownership.drop_older(tmp_path)
    write(tmp_path, "checkpoint-2/model.safetensors", text="the new one's")
    ownership.let_go(tmp_path, is_finished=False)
    assert everything(tmp_path) == {"checkpoint-2/model.safetensors": "the new one's"}
    choose_folder(str(tmp_path), None, None, True)  # one that did not come to its end may be replaced as well
    assert everything(tmp_path) == {}
    ownership.release(tmp_path)


CARD = "It has been trained using [TRL](https://github.com/huggingface/trl)."
OF_A_KILLED_RUN = {
    "data_report.json": "{}",
    "answers/train.jsonl": "{}",
    "base/model.safetensors": "weights",
    "README.md": CARD,
    "checkpoint-2/model.safetensors": "weights",
    "checkpoint-2/manifest.json": '{"files": {"model.safetensors": {}}}',
    "checkpoint-4/model.safetensors": "half of the wei",
}


def killed_run(folder, files=OF_A_KILLED_RUN):
    choose_folder(str(folder), None, None, False)
    for name, text in files.items():
        write(folder, name, text=text)
    ownership.release(folder)


def test_a_checkpoint_that_was_copied_by_hand_stays_whatever_becomes_of_runs(tmp_path):
    killed_run(tmp_path)
    mine = ("checkpoint-2-keep/manifest.json", "checkpoint-mine/notes.txt")
    write(tmp_path, *mine, text="mine")
    for _ in range(2):  # over a run that was killed, then over one that came to its end
        choose_folder(str(tmp_path), None, None, True)
        write(tmp_path, "metrics.json")
        ownership.let_go(tmp_path, is_finished=True)
        assert everything(tmp_path) == dict.fromkeys(mine, "mine") | {"metrics.json": "a run's"}


def test_what_a_killed_run_has_left_is_replaced(tmp_path):
    killed_run(tmp_path)
    choose_folder(str(tmp_path), None, None, True)
    assert everything(tmp_path) == {}
    ownership.release(tmp_path)


@pytest.mark.parametrize("resume", [None, "newest"])
def test_what_was_copied_for_the_hub_is_the_runs(tmp_path, resume):
    """With --push_to_hub Transformers writes a model beside the checkpoints while it trains."""
    killed_run(tmp_path)
    ownership.note_push(tmp_path)
    copied = {"model.safetensors": "weights", "config.json": "{}", "training_args.bin": "x", "tokenizer.json": "{}"}
    for name, text in copied.items():
        write(tmp_path, name, text=text)
    choose_folder(str(tmp_path), None, resume, resume is None)
    assert everything(tmp_path) == (OF_A_KILLED_RUN | copied if resume else {})
    ownership.release(tmp_path)
    assert (tmp_path / ".run" / "pushed").exists() is bool(resume)


@pytest.mark.parametrize("name", ["README.md", "my_config.json", "model.safetensors", "answers/mine.txt", "base/a/b.txt",
                                  "checkpoint-2/notes.txt", "merged/model.safetensors"])  # fmt: skip
def test_what_the_user_has_put_beside_a_killed_run_stays(tmp_path, name):
    killed_run(tmp_path)
    write(tmp_path, name, text="mine")
    there = everything(tmp_path)
    with pytest.raises(ValueError, match=f"holds {name}"):
        choose_folder(str(tmp_path), None, None, True)
    if not name.startswith("checkpoint-"):
        with pytest.raises(ValueError, match=f"holds {name}"):
            choose_folder(str(tmp_path), None, "newest", False)
    assert everything(tmp_path) == there


@pytest.mark.parametrize("last", [".unfinished/config.json", "metrics.json"])
def test_a_run_that_was_killed_while_it_wrote_its_last_files_is_replaced(tmp_path, last):
    killed_run(tmp_path, OF_A_KILLED_RUN | {"model.safetensors": "weights", last: "{}"})
    choose_folder(str(tmp_path), None, None, True)
    assert everything(tmp_path) == {}
    ownership.release(tmp_path)


def test_a_checkpoint_of_another_folder_is_no_leave_to_write_over_a_run(tmp_path):
    killed_run(tmp_path / "x", {"checkpoint-2/trainer_state.json": "{}"})
    write_manifest(tmp_path / "x" / "checkpoint-2", {})
    finished_run(tmp_path / "y")
    there = everything(tmp_path / "y")
    checkpoint = str(tmp_path / "x" / "checkpoint-2")
    with pytest.raises(ValueError, match="already holds a run"):
        choose_folder(str(tmp_path / "y"), None, checkpoint, False)
    assert everything(tmp_path / "y") == there
    assert choose_folder(str(tmp_path / "z"), None, checkpoint, False)[:2] == (str(tmp_path / "z"), checkpoint)
    ownership.release(tmp_path / "z")


def test_a_run_that_wrote_nothing_leaves_no_trace(tmp_path):
    write(tmp_path, "notes.txt", text="mine")
    choose_folder(str(tmp_path), None, None, False)
    ownership.let_go(tmp_path, is_finished=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_links_are_not_followed_and_not_replaced(tmp_path):
    write(tmp_path / "theirs", "model.safetensors", text="mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "checkpoint-8").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="holds checkpoint-8"):
        choose_folder(str(folder), None, None, True)
    assert everything(tmp_path / "theirs") == {"model.safetensors": "mine"}


INPUTS = {
    "the folder itself": lambda out: out,
    "one of its checkpoints": lambda out: out / "checkpoint-8",
    "a file in it": lambda out: out / "README.md",
    "the merged model in it": lambda out: out / "merged",
}


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("way", ["as it is", "by a link", "by a detour", "through a folder of links"])
def test_what_a_run_reads_is_not_where_it_writes(tmp_path, given, way):
    out = tmp_path / "out"
    finished_run(out, *A_RUN, "merged/model.safetensors")
    there, path = everything(out), given(out)
    if way == "by a link":
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    elif way == "by a detour":
        (tmp_path / "other").mkdir()
        path = tmp_path / "other" / ".." / path.relative_to(tmp_path)
    elif way == "through a folder of links":  # as the hub's cache has them
        (tmp_path / "links").mkdir()
        for file in [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]:
            (tmp_path / "links" / file.name).symlink_to(file)
        path = tmp_path / "links"
    for replace, goes_on in ((True, False), (False, True), (False, False)):
        assert "--reference x is, which this run reads" in why_not(out, replace, goes_on, {"--reference x": str(path)})
    assert everything(out) == there


def test_what_a_run_reads_may_stand_beside_what_it_writes(tmp_path):
    write(tmp_path, "pairs.jsonl", "recipe.yaml", "my_model/model.safetensors", text="mine")
    given = {name: str(tmp_path / name) for name in ("pairs.jsonl", "recipe.yaml", "my_model", "not there")}
    assert why_not(tmp_path, False, False, given) is None
    assert why_not(tmp_path / "my_model" / "out", False, False, {"m": str(tmp_path / "my_model")}) is None


HOLDS = """
import sys, time
from pathlib import Path
from machinery.runs import ownership
from machinery.runs.checkpoints import write_manifest
ownership.hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_in_use_is_refused_and_free_again_after_a_kill(tmp_path):
    out = tmp_path / "out"
    finished_run(out)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], cwd=PROJECT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        for replace, resume in ((True, None), (False, "newest")):
            with pytest.raises(ValueError, match="in use by another run"):
                choose_folder(str(out), None, resume, replace)
        other.kill()
    deadline = time.time() + 10
    while ownership.is_held(out) and time.time() < deadline:
        time.sleep(0.1)
    choose_folder(str(out), None, None, True)
    ownership.release(out)


def test_a_copy_of_a_run_is_as_its_run_has_left_it(tmp_path):
    finished_run(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")  # keeps the times, as cp -a does
    assert not ownership.in_the_way(tmp_path / "copy")
    os.utime(tmp_path / "copy" / "README.md")
    assert ownership.in_the_way(tmp_path / "copy") == ["README.md"]


def test_a_note_that_cannot_be_read_is_no_permission(tmp_path):
    finished_run(tmp_path)
    (tmp_path / ownership.OWN / "left.json").write_text("{")
    assert set(ownership.in_the_way(tmp_path)) == set(A_RUN)


def test_a_report_on_data_is_made_anew_unasked(tmp_path):
    finished_run(tmp_path, "data_report.json", "data_report.png")
    choose_folder(str(tmp_path), None, None, False)
    ownership.let_go(tmp_path, is_finished=True)
    write(tmp_path, "data_report.json", text="mine")
    with pytest.raises(ValueError, match=r"holds data_report\.json"):
        choose_folder(str(tmp_path), None, None, False)
