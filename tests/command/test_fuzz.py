"""Recipes and rows that nobody would write: each is taken or refused in a sentence, and nothing in it is run.

Forty examples a test in the ordinary suite; `python -m pytest tests/command/test_fuzz.py --hypothesis-profile=long` for an hour.
"""

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from odd_rows import likely_rows, odd_values, texts

import basic_dpo_training
import lora_dpo_training
from dpo_utils import load_preferences, load_tokenizer, parse_args
from machinery.common.errors import UserError
from machinery.data.tokens import tokenise
from machinery.readings.reading import KINDS, schemas

# --- Recipes ---------------------------------------------------------------------------------------------------------

NAMES = [*lora_dpo_training.DEMO, *(yaml.safe_load((PROJECT / "recipes" / "llama3-8b-qlora.yaml").read_text()))]
NAMES += (
    "datasets env loss_weights max_prompt_length model_init_kwargs keep_findings columns report_to config <<".split()
)
RECIPES = [path.read_text() for path in sorted((PROJECT / "recipes").glob("*.yaml"))]
HOSTILE = [
    "!!python/object/apply:os.system ['touch {trace}']",
    "!!python/object/apply:subprocess.check_output [['touch', '{trace}']]",
    "!!python/object/new:os.system ['touch {trace}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "&a [*a]",
    "!!binary aGVsbG8=",
    "!!set {{a, b}}",
    ".nan",
    "1e999",
    "0x_",
    "2020-13-45",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates() | st.binary(max_size=4)
values = scalars | st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=6
)
names = st.sampled_from(NAMES) | texts


@st.composite
def cut_and_pasted(draw) -> str:
    """A real recipe with a piece of it replaced by something else."""
    text = draw(st.sampled_from(RECIPES))
    start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 40))
    return (
        text[:start]
        + draw(texts | st.sampled_from(["\t", ": ", "- ", "\n", "{", "&a ", "*a", "!!", "|\n"]))
        + text[start + length :]
    )


recipes = (
    st.dictionaries(names, values, max_size=4).map(lambda recipe: yaml.dump(recipe, allow_unicode=True))
    | st.builds("{}: {}\n".format, st.sampled_from(NAMES), st.sampled_from(HOSTILE))
    | cut_and_pasted()
    | texts
)


@given(recipes)
def test_any_recipe_is_read_or_refused_and_none_is_run(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("recipe")
    path, trace = folder / "r.yaml", folder / "trace"
    path.write_bytes(text.replace("{trace}", str(trace)).encode("utf-8", "surrogatepass"))
    how = dict(arguments=lora_dpo_training.LoraArguments, defaults=lora_dpo_training.LORA, takes_adapters=True)
    with patch.dict(os.environ):
        try:
            parse_args("", lora_dpo_training.DEMO, ["--config", str(path)], **how)
        except UserError as error:
            assert str(error).strip()
    assert [file.name for file in folder.iterdir()] == ["r.yaml"]


@given(st.lists(names | texts | st.sampled_from([f"--{name}" for name in NAMES]), max_size=5))
def test_any_command_line_is_read_or_refused(words):
    with patch.dict(os.environ):
        try:
            parse_args("", basic_dpo_training.DEMO, [word for word in words if "help" not in word])
        except UserError as error:
            assert str(error).strip()


# --- Data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(base_model_folder):
    return load_tokenizer(str(base_model_folder)), load_tokenizer(str(PROJECT / "demo" / "model"))


def said(answer) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer)


@given(
    rows=st.lists(likely_rows | odd_values, min_size=1, max_size=6),
    more=st.lists(likely_rows, max_size=3),
    has_template=st.booleans(),
    how=st.fixed_dictionaries({
        "dataset_format": st.sampled_from(["auto", "auto", *KINDS, *schemas()]),
        "skip_bad_rows": st.booleans(),
        "keep_plain": st.booleans(),
        "held_out_share": st.sampled_from([0.0, 0.5]),
        "max_prompt_length": st.sampled_from([None, 12]),
        "max_length": st.sampled_from([None, 40]),
    }),
)  # fmt: skip
def test_any_rows_become_sound_pairs_or_are_refused(tokenizers, tmp_path_factory, rows, more, has_template, how):
    folder = tmp_path_factory.mktemp("rows")
    for name, part in (("train", rows), ("test", more)):
        if part:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = tokenizers[has_template]
    template = tokenizer.chat_template
    try:
        train, held_out, reports = load_preferences(str(folder), tokenizer, **how)
    except UserError as error:
        assert str(folder) in str(error)
        return
    finally:
        template, tokenizer.chat_template = tokenizer.chat_template, template
    assert len(train) + (len(held_out) if held_out and not more else 0) == reports["train"]["pairs"] > 0
    tokenizer.chat_template, template = template, tokenizer.chat_template  # the one that the turns were written for
    for pair in [*train, *(held_out or [])]:
        parts = [pair["prompt"], pair["chosen"], pair["rejected"]]
        assert len({isinstance(part, str) for part in parts}) == 1
        assert all(said(part).strip() for part in parts[1:])
        assert said(parts[1]) != said(parts[2])
        prompt, chosen, rejected, _ = tokenise(*parts, tokenizer, pair.get("tools"), pair.get("chat_template_kwargs"))
        assert chosen and rejected and chosen != rejected
        assert how["max_length"] is None or len(prompt) < how["max_length"]
        assert how["max_prompt_length"] is None or len(prompt) <= how["max_prompt_length"]
    tokenizer.chat_template = template


@given(content=st.binary(max_size=60) | likely_rows.map(lambda row: json.dumps(row).encode()), where=st.integers(0, 60))
def test_any_damage_to_a_file_is_named(tokenizers, tmp_path_factory, content, where):
    """Bytes put into the middle of a sound file."""
    path: Path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    line = json.dumps({"prompt": "why?", "chosen": "a cat", "rejected": "the mat"}).encode() + b"\n"
    path.write_bytes(line + line[:where] + content + line[where:])
    try:
        pairs, _, _ = load_preferences(str(path), tokenizers[0], skip_bad_rows=True)
    except UserError as error:
        assert "a.jsonl" in str(error)
    else:
        assert 1 <= len(pairs) <= 3
