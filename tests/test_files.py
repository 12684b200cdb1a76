"""Datasets are read from every kind of path, faults are found by line; a run's files are whole or not there."""

import gzip
import json

import pytest
from datasets import Dataset

from machinery.data_files import read_splits
from machinery.run_folder import choose_folder, complete_file, complete_files, newest_checkpoint
from machinery.safe_text import completions_page, visible
from machinery.statistics import bootstrap_mean

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}
LINES = "".join(json.dumps(ROW) + "\n" for _ in range(3))


def test_every_file_format_gives_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "a.json").write_text(json.dumps([ROW] * 3))
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "a,b,c\n" * 3)
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\n" + "a\tb\tc\n" * 3)
    Dataset.from_list([ROW] * 3).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    for path in tmp_path.iterdir():
        assert read_splits(str(path))["train"].to_list() == [ROW] * 3, path


def test_a_folder_has_the_splits_that_its_files_name(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / "test.jsonl").write_text(LINES[: len(LINES) // 3])
    splits = read_splits(str(tmp_path))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3, "test": 1}


def test_a_dataset_saved_to_disk_is_read(tmp_path):
    Dataset.from_list([ROW] * 3).save_to_disk(tmp_path / "saved")
    assert len(read_splits(str(tmp_path / "saved"))["train"]) == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", LINES + "{oops}\n", ["line 4", "not JSON"]),
        ("a.json", "[{]", ["line 1", "not JSON"]),
        ("a.jsonl", "", ["empty"]),
        ("a.json", "[]", ["no rows"]),
        ("a.txt", LINES, [".jsonl"]),
        ("a.jsonl.gz", LINES, ["unpacked"]),
    ],
)
def test_a_broken_file_is_named_with_its_line(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_splits(str(tmp_path / name))
    assert all(word in str(error.value) for word in [name, *words])


def test_a_truncated_gz_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(ValueError, match=r"a.jsonl.gz cannot be unpacked"):
        read_splits(str(tmp_path / "a.jsonl.gz"))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        read_splits(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match="holds no data"):
        read_splits(str(tmp_path))


def test_default_folders_take_numbers(tmp_path):
    default = str(tmp_path / "basic")
    folders = [choose_folder(None, default, None, False)[0] for _ in range(3)]
    assert folders == [default, f"{default}-2", f"{default}-3"]


def checkpoint(folder, step, whole=True):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if whole:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def test_a_resumed_run_takes_the_newest_whole_checkpoint_of_the_newest_unfinished_folder(tmp_path):
    finished, begun = tmp_path / "basic", tmp_path / "basic-2"
    checkpoint(finished, 90)
    (finished / "metrics.json").write_text("{}")
    checkpoint(begun, 8)
    checkpoint(begun, 16)
    checkpoint(begun, 24, whole=False)
    folder, found = choose_folder(None, str(tmp_path / "basic"), "newest", False)
    assert (folder, found) == (str(begun), str(begun / "checkpoint-16"))
    assert newest_checkpoint(tmp_path) is None


def test_replacing_a_run_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    checkpoint(tmp_path, 8)
    for name in ("metrics.json", "model.safetensors", "my_notes.txt"):
        (tmp_path / name).write_text("x")
    choose_folder(str(tmp_path), None, None, True)
    assert [path.name for path in tmp_path.iterdir()] == ["my_notes.txt"]


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises(RuntimeError), complete_file(tmp_path / "metrics.json") as file:
        file.write("half of the n")
        raise RuntimeError
    with pytest.raises(RuntimeError), complete_files(tmp_path) as folder:
        (folder / "metrics.json").write_text("half of the n")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("metrics.json", "old")]


def test_what_a_model_wrote_is_inert_in_terminal_and_page():
    class Reply:
        text = "<script>alert(1)</script>\n\x1b[31m# heading"

    assert "\x1b" not in visible(Reply.text)
    page = completions_page(["[link](x)"], [Reply], [Reply])
    assert "\x1b" not in page
    lines = [line for line in page.split("\n") if "script" in line or "heading" in line or "link" in line]
    assert len(lines) == 5
    assert all(line.startswith("    ") for line in lines)


def test_bootstrap_intervals_hold_the_truth_in_95_of_100():
    import numpy as np

    generator = np.random.default_rng(0)
    held = 0
    for repetition in range(400):
        _, low, high = bootstrap_mean(generator.normal(1.0, 2.0, size=100), repetitions=400, seed=repetition)
        held += low <= 1.0 <= high
    assert 0.92 <= held / 400 <= 0.98
