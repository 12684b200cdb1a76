"""Every public schema of the table is read as its own rows say: by itself, by its name, and by the flags it announces."""

import shlex

import pytest
from conftest import PROJECT

from machinery.data.files import Row
from machinery.data.pairs import make_pairs
from machinery.readings.reading import KINDS, pairs_of_names, schemas, table
from machinery.readings.recognise import recognise
from machinery.readings.texts import plain


def pairs_of(rows, reading):
    made = make_pairs([Row(f"row {number}", row) for number, row in enumerate(rows)], reading)
    return [[plain(pair[part]) for part in ("prompt", "chosen", "rejected")] for pair in made if "fault" not in pair]


@pytest.mark.parametrize("name", schemas())
def test_the_rows_of_a_schema_give_the_pairs_that_stand_beside_them(name):
    schema = schemas()[name]
    reading = recognise(schema["rows"])
    assert pairs_of(schema["rows"], reading) == schema["pairs"]
    assert reading.schema == ("" if "usual" in schema else name)
    assert pairs_of(schema["rows"], recognise(schema["rows"], name=name)) == schema["pairs"]


@pytest.mark.parametrize("name", schemas())
def test_the_flags_that_a_reading_announces_give_the_same_pairs(name):
    schema = schemas()[name]
    reading = recognise(schema["rows"], name=name)
    pairs_of(schema["rows"], reading)  # the flags name the values that were met
    words = dict(zip(*[iter(shlex.split(reading.flags))] * 2, strict=True))
    columns = dict(part.split("=", 1) for part in words["--columns"].split(","))
    verdict = dict(part.rsplit("=", 1) for part in words.get("--verdict", "").split(",") if part)
    assert pairs_of(schema["rows"], recognise(schema["rows"], columns, verdict)) == schema["pairs"]


def test_a_schema_says_where_its_encoding_is_documented_and_what_it_is():
    for schema in table()["schemas"]:
        source = schema["source"]  # of our own files: a page of docs/
        assert source.startswith("https://") or (PROJECT / "docs" / source).is_file(), schema["name"]
        assert schema["title"] and schema["rows"] and schema["pairs"], schema["name"]
        assert schema["name"] not in KINDS
        assert set(schema.get("meaning", {}).values()) <= {"first", "second", "tie", "good", "bad"}
    assert len(schemas()) == len(table()["schemas"])


def test_a_value_that_a_schema_does_not_know_is_a_fault_and_no_other_reading():
    rows = [row | {"label": "neither of them"} for row in schemas()["judgebench"]["rows"]] + schemas()["autoj"]["rows"]
    rows = [*schemas()["autoj"]["rows"], rows[1] | {"label": 3}, rows[1] | {"label": None}]
    made = list(make_pairs([Row(f"row {n}", row) for n, row in enumerate(rows)], recognise(rows)))
    assert [pair.get("fault") for pair in made] == [None, None, "tie", "unknown_verdict", "missing_field"]


def test_the_usual_names_of_two_outputs_tell_them_apart_by_their_endings():
    assert ("response_a", "response_b") in pairs_of_names("two_outputs")
    assert ("answer1", "answer2") in pairs_of_names("two_outputs")
