"""The data script as a user runs it: what it reports, writes, saves, trains on and refuses."""

import json

import pytest
from conftest import PROJECT, SHORT, run_script

import custom_dataset_dpo
from dpo_utils import load_tokenizer
from machinery.data.store import cleaned_files

ROWS = [
    {"question": f"what is it? {n}", "response_j": "a cat, no, a dog.", "response_k": f"the mat {n}"} for n in range(40)
]


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    return path


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "custom"
    done = run_script("custom_dataset_dpo.py", *SHORT, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_reports_on_the_spoilt_demo_and_trains_on_what_is_sound(demo_run):
    folder, output = demo_run
    metrics = json.loads((folder / "metrics.json").read_text())
    report = json.loads((folder / "data_report.json").read_text())["train"]
    assert metrics["pairs_train"] == report["pairs"] == report["rows_read"] - report["rows_dropped"]
    assert "Verdict: Sound, once the dropped rows are out." in output
    assert "[<|im_end|>]" in output
    assert "Loss before training: 0.6931 = ln 2" in output
    assert (folder / "data_report.png").read_bytes()[:4] == b"\x89PNG"
    assert output.rstrip().endswith(str(folder))


def test_check_only_asks_for_the_revision_that_training_would(call, monkeypatch, tmp_path, data_file):
    asked = []
    monkeypatch.setattr(
        custom_dataset_dpo, "load_tokenizer", lambda name, **hub: asked.append(hub) or load_tokenizer(name)
    )
    words = ("--check_only", "--dataset_name", data_file, "--model_name_or_path", PROJECT / "demo" / "model")
    code, _, error = call("custom_dataset_dpo", *words, "--model_revision", "v2", "--output_dir", tmp_path / "out")
    assert code == 0, error
    assert asked == [{"revision": "v2", "trust_remote_code": False}]


def test_check_only_reports_and_trains_nothing(call, tmp_path, data_file):
    folder = tmp_path / "out"
    code, output, error = call(
        "custom_dataset_dpo", "--check_only", "--dataset_name", data_file, "--output_dir", folder
    )
    assert (code, error) == (0, "")
    assert "read as prompt = question, chosen = response_j, rejected = response_k" in output
    assert {path.name for path in folder.glob("[!.]*")} == {"data_report.json", "data_report.png"}
    report = json.loads((folder / "data_report.json").read_text())["train"]
    assert report["dropped_by_reason"] == {"duplicate": 1}
    assert report["tokens"] == {"pairs_looked_at": 0}  # no model was named, so there are no tokens to speak of


def test_check_only_with_a_model_looks_at_tokens(call, tmp_path, data_file, base_model_folder):
    code, output, _ = call("custom_dataset_dpo", "--check_only", "--dataset_name", data_file, "--model_name_or_path",
                           base_model_folder, "--output_dir", tmp_path / "out", "--show", 1)  # fmt: skip
    assert code == 0
    assert "[</s>]" in output
    assert "tokens: median" in output


def test_what_is_saved_adds_up_and_is_read_again(call, tmp_path, data_file):
    cleaned = tmp_path / "cleaned.jsonl"
    words = ("--check_only", "--output_dir", tmp_path / "out")
    assert call("custom_dataset_dpo", *words, "--dataset_name", data_file, "--save_cleaned", cleaned)[0] == 0
    pairs = [json.loads(line) for line in cleaned.read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "__dropped__" / "cleaned.jsonl").read_text().splitlines()]
    assert len(pairs) + len(dropped) == 41
    assert pairs[3] == {"prompt": "what is it? 3", "chosen": "a cat, no, a dog.", "rejected": "the mat 3", "rows": [3]}
    assert dropped == [{"row": 40, "where": f"{data_file}, line 41", "reason": "duplicate", "data": ROWS[0]}]
    code, output, _ = call("custom_dataset_dpo", *words, "--dataset_name", cleaned)
    assert code == 0
    assert "40 rows, 40 used in 40 pairs." in output
    code, _, error = call("custom_dataset_dpo", *words, "--dataset_name", data_file, "--save_cleaned", cleaned)
    assert (code, error) == (2, f"error: --save_cleaned: {cleaned} is there already.\n")


def test_cleaned_pairs_are_read_by_trl_itself(tmp_path, base_model_folder, data_file, call):
    """From their folder, as `trl dpo --dataset_name` takes it: what was dropped lies there and is no data file."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    cleaned = tmp_path / "pairs" / "train.jsonl"
    call("custom_dataset_dpo", "--check_only", "--output_dir", tmp_path / "out", "--dataset_name", data_file,
         "--save_cleaned", cleaned)  # fmt: skip
    assert len(list(cleaned.parent.iterdir())) == 2
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(base_model_folder),
        args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1),
        train_dataset=load_dataset(str(cleaned.parent), split="train"),
        processing_class=AutoTokenizer.from_pretrained(base_model_folder),
    )
    assert trainer.train().training_loss > 0


def test_it_trains_on_a_users_file_and_holds_out_by_prompt(call, tmp_path, data_file, base_model_folder):
    folder = tmp_path / "out"
    code, output, error = call("custom_dataset_dpo", *SHORT[:-4], "--dataset_name", data_file, "--model_name_or_path",
                               base_model_folder, "--output_dir", folder, "--report_to", "none")  # fmt: skip
    assert code == 0, error
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["pairs_train"], metrics["pairs_eval"]) == (36, 4)
    assert metrics["script"] == "custom_dataset"
    assert "Held out: 4 pairs, by prompt" in output


def test_a_converter_in_the_script_is_named_by_the_format(call, tmp_path):
    row = {"ticket": {"title": "Kettle", "body": "It is cold."}, "answers": ["Turn it on.", "Hm.", "No."]}
    path = tmp_path / "tickets.jsonl"
    path.write_text(json.dumps(row) + "\n")
    cleaned = tmp_path / "cleaned.jsonl"
    code, _, _ = call("custom_dataset_dpo", "--check_only", "--dataset_name", path, "--dataset_format", "mine",
                      "--save_cleaned", cleaned, "--output_dir", tmp_path / "out")  # fmt: skip
    assert code == 0
    assert json.loads(cleaned.read_text()) == {
        "prompt": "Kettle\n\nIt is cold.", "chosen": "Turn it on.", "rejected": "No.", "rows": [0]
    }  # fmt: skip


def test_every_training_script_takes_every_shape(call, tmp_path, data_file, base_model_folder):
    code, _, error = call("basic_dpo_training", *SHORT, "--dataset_name", data_file, "--model_name_or_path",
                          base_model_folder, "--output_dir", tmp_path / "out", "--report_to", "none")  # fmt: skip
    assert code == 0, error


def test_its_help_names_its_own_flags(call):
    code, output, _ = call("custom_dataset_dpo", "--help")
    assert code == 0
    for flag in ("--check_only", "--save_cleaned", "--show", "--columns", "--pairing", "--beta"):
        assert f"  {flag} " in output


def test_the_diff_from_the_basic_script_is_what_comes_before_the_pairs():
    import difflib
    import inspect

    import basic_dpo_training

    basic, custom = (
        (PROJECT / name).read_text().splitlines() for name in ("basic_dpo_training.py", "custom_dataset_dpo.py")
    )
    body = [
        lines[next(n for n, line in enumerate(lines) if line.startswith("from demo.world")) :]
        for lines in (basic, custom)
    ]
    by_hand = inspect.getsource(basic_dpo_training.show_loss).splitlines()  # the basic script's alone, and its call
    calls = ("show_loss(", "pair_logps,", "describe_logp,", 'loss_type == ["sigmoid"]')
    body[0] = [
        line for line in body[0] if not line or (line not in by_hand and not any(call in line for call in calls))
    ]
    changed = [
        line
        for line in difflib.unified_diff(*body, n=0, lineterm="")
        if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert len(changed) <= 105  # looking at data, and making them


def test_cleaned_pairs_are_saved_under_the_name_that_was_given(tmp_path):
    for given, written in (("a.jsonl", "a.jsonl"), ("a", "a.jsonl"), ("a.json", "a.jsonl"), ("my.v2", "my.v2.jsonl")):
        assert cleaned_files(str(tmp_path / given), "train", "train")[0] == tmp_path / written
    assert cleaned_files(str(tmp_path / "my.v2"), "test", "train")[0] == tmp_path / "my.v2.test.jsonl"
