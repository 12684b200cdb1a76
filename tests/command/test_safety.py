"""What came from somewhere else is data: it runs nothing, it is obeyed by nothing that shows it, and nothing is sent.

The page of an evaluation has its tests in test_html_report.py, the judge's key and the blind table in tests/judges/.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from conftest import PATIENCE, PROJECT, SHORT, run_forked
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from dpo_utils import load_model, load_preferences, parse_args
from machinery.common.errors import UserError
from machinery.common.masking import without_secrets
from machinery.common.safe_text import completions_page, printable
from machinery.judges.interface import JudgeError
from machinery.judges.reward_model import load_reward_model
from machinery.models.adapters import load_adapter

DEMO_MODEL = PROJECT / "demo" / "model"
# A colour, a title of the window, a link, a bell, a line that is written over, a text that runs backwards, an end of page.
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x1b]8;;http://x\x1b\\ \r over \u202eback\u2066 \x9b31m <script>alert(1)</script> =cmd() # [a](b)"


def is_inert(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


# --- Text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile_files(tmp_path):
    """Pairs whose texts, columns and file name are hostile, and the demo's model under a hostile name, with a tensor of one."""
    turns = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows = [
        {"prompt": turns("user", f"{HOSTILE} {n}"), "chosen": turns("assistant", f"{HOSTILE}!"),
         "rejected": turns("assistant", "the mat"), f"extra {HOSTILE.replace('/', '|')}": HOSTILE}
        for n in range(8)
    ]  # fmt: skip
    name = "\x1b[31m\u202e<script>"
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    model = tmp_path / f"{name}model"
    shutil.copytree(DEMO_MODEL, model)
    weights = load_file(model / "model.safetensors") | {f"model.{HOSTILE}.weight": torch.zeros(2)}  # is unexpected
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / f"{name}.jsonl", model


def test_a_training_on_hostile_text_shows_and_writes_nothing_that_is_obeyed(hostile_files, tmp_path, call):
    pairs, model = hostile_files
    words = ("--dataset_name", pairs, "--model_name_or_path", model, *SHORT, "--max_length", 1024)
    code, output, error = call("basic_dpo_training", *words, "--output_dir", tmp_path / "out", "--disable_tqdm", "true")
    assert code == 0, error
    assert is_inert(output) and is_inert(error.replace("\r", ""))  # progress bars go back to the start of their line
    assert "\\x1b[31m" in output
    for name in ("metrics.json", "completions.md", "warnings.jsonl", "trainer_state.json"):
        path = tmp_path / "out" / name
        assert not path.exists() or is_inert(path.read_text()), name
    page = (tmp_path / "out" / "completions.md").read_text().split("\n")
    assert [line for line in page if "script" in line]
    assert all(line.startswith("    ") for line in page if "script" in line or "[a]" in line)


def test_what_libraries_say_of_a_hostile_name_is_inert(hostile_files, tmp_path):
    """In a process of its own: their handlers hold the error output that was there when they were imported."""
    _, model = hostile_files
    done = run_forked("custom_dataset_dpo.py", "--check_only", "--sample_answers", "2", "--judge", "truth",
                      "--max_new_tokens", "40", "--dataset_name", str(PROJECT / "demo"), "--num_prompts", "4",
                      "--model_name_or_path", str(model), cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" in done.stderr
    assert is_inert(done.stderr.replace("\r", ""))


def test_a_report_on_hostile_data_is_inert(hostile_files, tmp_path, call):
    pairs, _ = hostile_files
    words = ("--check_only", "--dataset_name", pairs, "--output_dir", tmp_path / "out")
    code, output, error = call("custom_dataset_dpo", *words)
    assert code == 0, error
    assert is_inert(output) and is_inert(error)
    assert is_inert((tmp_path / "out" / "data_report.json").read_text())


def test_an_error_about_hostile_input_is_inert(tmp_path, call):
    for words in (("--dataset_name", f"./{HOSTILE}.jsonl"), ("--columns", HOSTILE), (HOSTILE,), (f"--{HOSTILE}", "1")):
        code, _, error = call("basic_dpo_training", *words, "--output_dir", tmp_path / "out", "--traceback")
        assert code == 2
        assert is_inert(error)


def test_a_warning_about_a_hostile_name_is_inert(caplog):
    logging.getLogger("dpo").warning("%s is not read", HOSTILE)
    assert is_inert(caplog.records[-1].getMessage())


def test_a_role_cannot_end_the_block_of_code():
    class Reply:
        text = "fine"

    page = completions_page([[{"role": "user\n\n# <script>", "content": "why?"}]], [Reply], [Reply])
    assert "<script>" not in page and "\n# <" not in page


def test_lines_stay_lines():
    assert printable("a\nb\x1b[0m\tc") == "a\nb\\x1b[0m\\tc"


# --- Code ------------------------------------------------------------------------------------------------------------


class Trace:
    """A pickle that would leave a file behind if it were loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_is_loaded_leaves_its_trace(tmp_path):
    """That the tests below can fail."""
    torch.save({"weight": Trace(tmp_path / "trace")}, tmp_path / "a.bin")
    torch.load(tmp_path / "a.bin", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_pickled_weights_are_not_even_opened(tmp_path):
    shutil.copytree(DEMO_MODEL, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    for name in ("m/pytorch_model.bin", "a/adapter_model.bin"):
        torch.save({"weight": Trace(tmp_path / "trace")}, tmp_path / name)
    with pytest.raises(UserError, match="pickled"):
        load_model(str(tmp_path / "m"))
    with pytest.raises(JudgeError, match="--judge_model"):
        load_reward_model(str(tmp_path / "m"), "cpu")
    with pytest.raises(UserError, match="can run code"):
        load_adapter(load_model(str(DEMO_MODEL))[0], str(tmp_path / "a"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "own.M"}}),
        ("tokenizer_config.json", {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", None]}}),
    ],
    ids=["unknown_model", "known_model", "tokenizer"],
)
def test_code_in_a_model_folder_runs_only_when_it_is_trusted(file, values, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copytree(DEMO_MODEL, tmp_path / "m")
    of_a_llama = {"config.json": {"model_type": "llama"}}  # whose tokenizer Transformers looks for by its class
    for name, changes in ({file: values} if file == "config.json" else of_a_llama | {file: values}).items():
        path = tmp_path / "m" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (tmp_path / "m" / "own.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    if "model_type" not in values and file == "config.json":
        load_model(str(tmp_path / "m"))  # it is a Qwen3, which needs no code
    else:
        with pytest.raises(UserError, match="custom code"):
            load_model(str(tmp_path / "m"))
    assert not (tmp_path / "trace").exists()
    with pytest.raises(UserError):  # the code defines nothing
        load_model(str(tmp_path / "m"), trust_remote_code=True)
    assert (tmp_path / "trace").exists()


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["../other/data-00000-of-00001.arrow", "{tmp}/other/data-00000-of-00001.arrow"])
def test_a_saved_dataset_cannot_name_files_outside_its_folder(place, tmp_path):
    for name in ("saved", "other"):
        rows = [{"prompt": name, "chosen": "a", "rejected": "b"}]
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name)
    state = tmp_path / "saved" / "state.json"
    named = [{"filename": place.replace("{tmp}", str(tmp_path))}]
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": named}))
    with pytest.raises(UserError, match="leads out of its folder"):
        load_preferences(str(tmp_path / "saved"), None)


# --- Network and secrets ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_run_of_the_demo_asks_the_network_for_nothing(tmp_path):
    """Not even a name is looked up, with every switch of the environment as a newcomer has it, TRL's usage report too."""
    assert "HF_HUB_DISABLE_TELEMETRY=0" in (PROJECT / "README.md").read_text()
    (tmp_path / "listen.py").write_text(
        "import socket\n"
        f"def report(*args, **kwargs):\n    open({str(tmp_path / 'asked')!r}, 'a').write(repr(args) + '\\n')\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = report\n"
        "import basic_dpo_training\n"
        "basic_dpo_training.run(basic_dpo_training.main)\n"
    )
    switches = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "CI", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= {"PYTHONPATH": str(PROJECT), "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, tmp_path / "listen.py", *map(str, SHORT), "--output_dir", tmp_path / "out"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()


def test_a_token_on_the_command_line_is_written_nowhere(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    _, training_args, _ = parse_args("", {"dataset_name": "demo"}, ["--hub_token", "hf_secret"])
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in repr(vars(training_args))
    shown = without_secrets(["a.py", "--hub_token", "hf_secret", "--hub-token=hf_secret", "--pad_token", "x"])
    assert shown == ["a.py", "--hub_token", "***", "--hub-token=***", "--pad_token", "x"]


def test_the_judges_key_is_in_no_traceback(call, tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_JUDGE_API_KEY", "sk-very-secret")
    demo = PROJECT / "demo"
    words = ["--model_name_or_path", DEMO_MODEL, "--reference", DEMO_MODEL, "--dataset_name", demo, "--traceback"]
    words += ["--judge_url", "http://example.org/v1", "--judge_model", "m", "--output_dir", tmp_path / "out"]
    code, output, error = call("dpo_evaluation", *words)
    assert code == 2
    assert "Traceback" in error
    assert "sk-very-secret" not in output + error
