"""A secret that a user gives, in whatever keyword, is in no file that a run writes and in nothing that it prints.

Planted are words that stand nowhere else; what a run leaves is searched for them byte by byte, good run or not.
"""

import json
import os

import pytest
from conftest import PROJECT, SHORT, run_forked

from dpo_utils import parse_args
from machinery.common import masking
from machinery.common.masking import masked, names_secret, remember_secrets, without_secrets
from machinery.common.safe_text import printable

DEMO = PROJECT / "demo"
PLANTED = ("plantedAlpha", "plantedBeta", "plantedGamma", "plantedDelta")
PAIRS = [{"prompt": f"why {n}?", "chosen": "a cat, no, a dog.", "rejected": f"the mat {n}"} for n in range(8)]


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(masking, "_secrets", set())
    monkeypatch.setenv("HF_TOKEN", "")


@pytest.mark.parametrize(
    "keyword", "token hub_token hf-token apiKey api_key OPENAI_API_KEY AWS_SECRET_ACCESS_KEY password passwd client_secret "
    "credentials Authorization auth".split()
)  # fmt: skip
def test_a_keyword_names_a_secret(keyword):
    assert names_secret(keyword)


@pytest.mark.parametrize(
    "keyword", "pad_token eos_token_id max_new_tokens max_tokens_per_batch tokenizer include_num_input_tokens_seen "
    "mean_token_accuracy average_tokens_across_devices keep_findings monkey author".split()
)  # fmt: skip
def test_a_keyword_of_texts_names_none(keyword):
    assert not names_secret(keyword)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"token": "x1", "n": 1}', '{"token": ***, "n": 1}'),
        ("{'a': {'password': 'x1'}, 'n': 1}", "{'a': {'password': ***}, 'n': 1}"),
        ('{"credentials": {"user": "x1", "more": [1]}, "n": 1}', '{"credentials": ***, "n": 1}'),
        ('{broken "apiKey": "x1', '{broken "apiKey": ***'),
        ('"{\\"token\\": \\"x1\\", \\"n\\": 1}"', '"{\\"token\\": ***, \\"n\\": 1}"'),
        ('{"token": "x\\"1", "n": 1}', '{"token": ***, "n": 1}'),
        ("--hub_token=x1", "--hub_token=***"),
        ("hf_token: x1", "hf_token: ***"),
        ("Authorization: Bearer x1", "Authorization: ***"),
        ("https://me:x1@host/v1", "https://***@host/v1"),
        ("https://x1@host/v1", "https://***@host/v1"),
        ("http://host/v1?api_key=x1&n=1", "http://host/v1?api_key=***&n=1"),
        ("hub_token: &tok x1: y", "hub_token: *** y"),
        ("hub_token: !!str 'x1'", "hub_token: ***"),
        ("token:\n  - x1\n  - x2\nn: 1", "token:\n  ***\nn: 1"),
        ("token: |\n  x1\n  x2\nn: 1", "token: ***\nn: 1"),
        ("user@host: --pad_token=<pad> 3 tokens: 4", "user@host: --pad_token=<pad> 3 tokens: 4"),
    ],
)
def test_a_text_is_masked_by_its_keywords(text, shown):
    assert masked(text) == shown


def test_a_command_line_is_masked():
    words = ["a.py", "--hub_token", "x1", "--hub-token=x1 x2", "--model_init_kwargs", '{"token": "x1"}', "--hub_token"]
    shown = ["a.py", "--hub_token", "***", "--hub-token=***", "--model_init_kwargs", '{"token": ***}', "--hub_token"]
    assert without_secrets(words) == shown


def test_a_secret_that_was_given_once_is_masked_wherever_it_stands():
    remember_secrets(
        ["--x", '{"n": {"token": ["plantedAlpha"]}}', "--hub_token=plantedBeta", "--y", "http://me:planted%2FGamma@h"],
        {"env": {"MY_KEY": "plantedDelta"}, "z": '{"secret": "plantedEps'},
    )
    text = printable("plantedAlpha plantedBeta planted%2FGamma planted/Gamma plantedDelta plantedEps stays")
    assert text == "*** *** *** *** *** *** stays"


def test_secrets_of_a_recipe_that_cannot_be_read_are_masked_line_by_line():
    remember_secrets(["a: [\ntoken:\n  - plantedAlpha\n  - plantedBeta\nkey: >-\n  plantedGamma\nb: &c plantedDelta"])
    text = printable("- plantedAlpha, - plantedBeta, plantedGamma, plantedDelta")
    assert text == "- ***, - ***, ***, plantedDelta"


def test_a_recipe_that_holds_itself_has_an_end():
    recipe = {"token": []}
    recipe["token"] += [recipe, "plantedAlpha"]
    remember_secrets([], recipe)
    assert printable("plantedAlpha") == "***"


def test_a_long_text_is_masked_in_a_moment():
    for text in ("x" * 10**6, "x:" * 10**5, "token:" * 10**4, 'token:"' * 10**4, '{"token":' * 10**4):
        masked(text)


def test_a_token_for_the_model_goes_to_the_environment_alone():
    words = ["--model_init_kwargs", '{"token": "plantedAlpha", "dtype": "float32"}']
    args, training_args, _ = parse_args("", {"dataset_name": "demo"}, words)
    assert os.environ["HF_TOKEN"] == "plantedAlpha"
    assert args.model_kwargs["dtype"] == "float32"
    assert "plantedAlpha" not in repr(vars(args)) + repr(vars(training_args))


RECIPE = """
env: {{MY_API_KEY: plantedAlpha, HF_TOKEN: plantedBeta}}
hub_token: plantedGamma
model_init_kwargs: {{token: plantedDelta}}
{more}
"""
BROKEN = [
    ("--model_init_kwargs", '{bad "token": "plantedAlpha"'),
    ("--model_init_kwargs", '{"token": "plantedAlpha", "nonsense": 1}'),
    ("--lr_scheduler_kwargs", '{"api_key": "plantedAlpha"}'),
    ("--lr_scheduler_kwargs", "{'password': 'plantedAlpha'}"),
    ("--accelerator_config", '{"a": {"secret": "plantedAlpha"}}'),
    ("--deepspeed", '{"comet": {"api_key": "plantedAlpha"}}'),
    ("--optim_args", "token=plantedAlpha"),
    ("--liger_kernel_config", '{"token": "plantedAlpha"'),
    ("--dataset_name", "https://me:plantedAlpha@host/pairs.jsonl"),
    ("--columns", "token=plantedAlpha"),
    ("--hub_token", "plantedAlpha", "stray"),
    ("--hub_tokn", "plantedAlpha", "--hub_tokn=plantedAlpha"),
    ("--adapter", "x?token=plantedAlpha"),
    ("--loss_kwargs", "token=plantedAlpha"),
    ("--judge_url", "http://me:plantedAlpha@host/v1", "--judge_model", "m"),
    ("--judge_url", "ftp://host/v1?api_key=plantedAlpha", "--judge_model", "m"),
]  # fmt: skip
SCRIPT_OF = {"--adapter": "lora_dpo_training", "--loss_kwargs": "custom_loss_dpo", "--judge_url": "dpo_evaluation"}


@pytest.fixture
def place(tmp_path):
    """A folder with pairs, and what checks that no planted word is in it or in what was said."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "r.yaml").write_text("")

    def holds_none(*said: str) -> None:
        found = {"what was printed": "".join(said).encode()}
        found |= {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        found.pop("r.yaml")
        assert not [(name, word) for name, text in found.items() for word in PLANTED if word.encode() in text]

    return tmp_path, holds_none


@pytest.mark.parametrize("words", BROKEN, ids=lambda words: " ".join(words)[:40])
@pytest.mark.parametrize("traceback", [(), ("--traceback",)], ids=["sentence", "traceback"])
def test_a_refusal_quotes_no_secret(words, traceback, place, call, monkeypatch):
    folder, holds_none = place
    monkeypatch.chdir(folder)
    script = SCRIPT_OF.get(words[0], "basic_dpo_training")
    of_evaluation = ("--model_name_or_path", DEMO / "model", "--reference", DEMO / "model") * (
        script == "dpo_evaluation"
    )
    given = ("--dataset_name", DEMO) if script == "dpo_evaluation" else ("--dataset_name", "pairs.jsonl")
    code, output, error = call(script, *given, "--output_dir", "out", *of_evaluation, *words, *traceback)
    assert code == 2, error
    holds_none(output, error)


def test_a_broken_recipe_is_quoted_without_its_secrets(place, call, monkeypatch):
    folder, holds_none = place
    monkeypatch.chdir(folder)
    for more in ("beta: [", "beta: x", "bata: 1", "lr_scheduler_kwargs: {token: plantedAlpha}", "token: [plantedAlpha"):
        (folder / "r.yaml").write_text(RECIPE.format(more=more))
        code, output, error = call("basic_dpo_training", "--config", "r.yaml", "--traceback")
        assert code == 2, error
        holds_none(output, error)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("basic_dpo_training", ("--save_steps", 2)),
        ("lora_dpo_training", ("--save_steps", 2, "--merge")),
        ("custom_loss_dpo", ("--loss_type", "dpop")),
        ("custom_dataset_dpo", ("--save_cleaned", "clean.jsonl")),
        ("dpo_evaluation", ("--num_eval_prompts", 2, "--max_new_tokens", 4)),
    ],
)
@pytest.mark.parametrize("way", ["flags", "recipe"])
def test_a_run_writes_and_prints_no_secret(script, more, way, place):
    folder, holds_none = place
    (folder / "r.yaml").write_text(RECIPE.format(more=""))
    kwargs = json.dumps({"token": "plantedDelta"})
    words = (
        ("--config", "r.yaml") if way == "recipe" else ("--hub_token", "plantedGamma", "--model_init_kwargs", kwargs)
    )
    on = ("--dataset_name", "pairs.jsonl", "--reference_cache", "kept", *SHORT)
    if script == "dpo_evaluation":
        on = ("--dataset_name", DEMO, "--model_name_or_path", DEMO / "model", "--reference", DEMO / "model")
    done = run_forked(f"{script}.py", *on, *words, *more, "--output_dir", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "metrics.json").exists()
    holds_none(done.stdout, done.stderr)


@pytest.mark.thorough
def test_a_run_that_fails_prints_no_secret(place):
    """A fault with its traceback: a loss of the user's raises, and quotes what is in the environment."""
    folder, holds_none = place
    (folder / "bad.py").write_text(
        "import os\n\n\ndef loss(policy_chosen_logps, **others):\n    raise KeyError(os.environ['HF_TOKEN'])\n"
    )
    words = ("--loss_file", "bad.py:loss", "--hub_token", "plantedGamma", "--dataset_name", "pairs.jsonl", *SHORT)
    done = run_forked("custom_loss_dpo.py", *words, "--traceback", "--output_dir", "out", cwd=folder)
    assert done.returncode in (1, 2)
    assert "***" in done.stderr
    holds_none(done.stdout, done.stderr)
