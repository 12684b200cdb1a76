"""Whatever stands in the rows: no traceback, every row accounted for, and no text changed."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_rows import likely_rows, odd_values, texts

from dpo_utils import load_preferences
from machinery.common.errors import UserError
from machinery.data.doctor import Checkup
from machinery.data.files import READERS, Row, open_splits
from machinery.data.pairs import PAIRINGS, make_pairs
from machinery.data.tokens import token_facts
from machinery.readings.reading import KINDS, pairs_of_names, schemas
from machinery.readings.recognise import recognise
from machinery.readings.texts import parse_transcript

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(EXAMPLES, max_examples=25)


def strings_in(value):
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return set().union(*map(strings_in, value.values()))
    return set().union(*map(strings_in, value)) if isinstance(value, list) else set()


@EXAMPLES
@given(
    st.lists(likely_rows | odd_values, min_size=1, max_size=6),
    st.sampled_from(["auto", *KINDS, *schemas()]),
    st.sampled_from(PAIRINGS),
)
def test_no_row_breaks_a_converter_and_all_are_accounted_for(rows, name, pairing):
    try:
        shape = recognise([row for row in rows if isinstance(row, dict)], None, None, None if name == "auto" else name)
    except ValueError:
        return
    checkup = Checkup()
    for made in make_pairs([Row(f"row {n}", row) for n, row in enumerate(rows)], shape, pairing):
        checkup.see(made)
    report = checkup.report()
    assert report["rows_read"] == len(rows) == report["rows_used"] + report["rows_dropped"]
    assert report["rows_dropped"] == sum(report["dropped_by_reason"].values()) == len(checkup.dropped_rows())
    json.dumps(report, allow_nan=False)


one_turn = st.builds(lambda text: [{"role": "assistant", "content": text}], texts)
prompts = texts | st.builds(lambda text: [{"role": "user", "content": text}], texts)


@EXAMPLES
@given(st.sampled_from(pairs_of_names("answer_pairs")), prompts, texts | one_turn, texts | one_turn)
def test_no_converter_changes_a_text(columns, prompt, chosen, rejected):
    row = {"prompt": prompt, columns[0]: chosen, columns[1]: rejected}
    [made] = make_pairs([Row("row 0", row)], recognise([row]))
    assert strings_in([made["prompt"], made["chosen"], made["rejected"]]) - {"user", "assistant"} == strings_in(
        [prompt, chosen, rejected]
    ) - {"user", "assistant"}


@EXAMPLES
@given(st.lists(texts, min_size=1, max_size=4))
def test_a_transcript_says_what_its_turns_say(contents):
    contents = [text.replace(":", ";") for text in contents]
    marks = ["Human", "Assistant"] * 2
    text = "".join(f"\n\n{mark}: {content}" for mark, content in zip(marks, contents, strict=False))
    assert [turn["content"] for turn in parse_transcript(text, "chosen")] == contents


@FEW
@given(
    st.sampled_from(list(READERS)),
    st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace")),
)
def test_no_bytes_break_a_reader(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("bytes") / f"a{suffix}"
    path.write_bytes(content)
    try:
        for row in open_splits(str(path))["train"]:
            assert row.where.startswith(str(path))
    except ValueError as error:
        assert str(path) in str(error)


@pytest.fixture(scope="module")
def tokenizers(base_model_folder):
    from dpo_utils import load_tokenizer

    return load_tokenizer(str(base_model_folder)), load_tokenizer("demo/model")


@FEW
@given(data=st.data())
def test_texts_come_through_arrow_as_they_were(data, tokenizers, tmp_path_factory):
    """Written to a file, read, examined, stored, formatted: the words are those of the file."""
    chat = data.draw(st.booleans())
    rows = data.draw(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5))
    path = tmp_path_factory.mktemp("pairs") / "a.jsonl"
    path.write_text(
        "".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) + "\n" for row in rows)
    )
    try:
        pairs, _, reports = load_preferences(str(path), tokenizers[chat], max_length=512)
    except UserError as error:
        assert "no pair can be used" in str(error)
        return
    assert len(pairs) == reports["train"]["pairs"]
    for pair in pairs:
        said = [
            pair[part] if isinstance(pair[part], str) else pair[part][0]["content"]
            for part in ("prompt", "chosen", "rejected")
        ]
        assert tuple(said) == rows[pair["rows"][0]]
        assert isinstance(pair["prompt"], str) is not chat


@FEW
@given(st.tuples(texts, texts, texts))
def test_token_facts_never_fail(tokenizers, row):
    facts = token_facts(*row, tokenizers[0])
    assert len(facts["lengths"]) == 3 or (facts["flags"] == ["template_error"] and facts["text"])
