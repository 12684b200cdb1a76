"""A run's files are whole or not there; what a model wrote is inert wherever it is shown."""

import os

import pytest

from machinery.common.kept_files import complete_file, complete_files, forget_oldest
from machinery.common.safe_text import completions_page, visible
from machinery.runs.checkpoints import write_manifest
from machinery.runs.folder import choose_folder


def test_default_folders_take_numbers(tmp_path):
    default = str(tmp_path / "basic")
    folders = [choose_folder(None, default, None, False)[0] for _ in range(3)]
    assert folders == [default, f"{default}-2", f"{default}-3"]


def checkpoint(folder, step, whole=True):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if whole:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        write_manifest(folder / f"checkpoint-{step}", {})


def test_a_resumed_run_takes_the_newest_complete_checkpoint_of_the_newest_unfinished_folder(tmp_path):
    finished, begun = tmp_path / "basic", tmp_path / "basic-2"
    checkpoint(finished, 90)
    (finished / "metrics.json").write_text("{}")
    checkpoint(begun, 8)
    checkpoint(begun, 16)
    checkpoint(begun, 24, whole=False)
    folder, found, [passed_over] = choose_folder(None, str(tmp_path / "basic"), "newest", False)
    assert (folder, found) == (str(begun), str(begun / "checkpoint-16"))
    assert "checkpoint-24" in passed_over


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


def test_what_is_kept_is_bounded_also_while_another_run_tidies_up(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / f"{name}.arrow").write_bytes(b"0" * 100)
        os.utime(tmp_path / f"{name}.arrow", (1e9 - age, 1e9 - age))
    (tmp_path / "gone.arrow").symlink_to(tmp_path / "deleted by the other")  # listed, and not there any more
    forget_oldest(tmp_path, "*.arrow", 250)
    assert {path.stem for path in tmp_path.glob("*.arrow")} == {"new", "middle", "gone"}
