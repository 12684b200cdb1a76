"""Columns that are called as in a public schema, in a file that is none of it: read by its values, or refused."""

import pytest

from machinery.data.files import Row
from machinery.data.pairs import make_pairs
from machinery.readings.reading import schemas
from machinery.readings.recognise import belonging, recognise


def made_of(rows, **how):
    reading = recognise(rows)
    return list(make_pairs([Row(f"row {n}", row) for n, row in enumerate(rows)], reading, **how))


def two(number, better, names=("response_1", "response_2"), **more):
    """A row of which the answer numbered better (1 or 2) is the right one."""
    texts = (f"It rains {number}.", f"No idea {number}.")
    return (
        {"prompt": f"Weather {number}?"} | dict(zip(names, texts if better == 1 else texts[::-1], strict=True)) | more
    )


def sound(pair):
    return pair["chosen"].startswith("It rains") and pair["rejected"].startswith("No idea")


def test_the_strength_of_a_preference_that_is_named_beside_it_is_no_verdict():
    rows = [two(n, 1 + n % 2, preference=f"response_{1 + n % 2}", preference_strength=1 + n % 3) for n in range(12)]
    assert all(map(sound, made_of(rows)))


@pytest.mark.parametrize("strengths", [(1, 2, 3), (1, 2, 3, 4, 5)])
def test_a_strength_without_a_sign_names_no_answer(strengths):
    rows = [two(n, 1, preference_strength=strengths[n % len(strengths)]) for n in range(20)]
    with pytest.raises(ValueError, match="preference_strength"):
        recognise(rows)


def test_one_and_nought_are_no_ones_and_twos():
    rows = [two(n, 1 + n % 2, ("output_1", "output_2"), preference=n % 2) for n in range(12)]
    rows = [{"instruction": row.pop("prompt"), **row} for row in rows]
    with pytest.raises(ValueError, match="--verdict"):
        recognise(rows)


def test_a_winner_that_contradicts_the_verdict_of_a_schema_is_asked_about():
    rows = [two(n, 1 + n % 2, ("output_1", "output_2"), preference=1 + n % 2) for n in range(12)]
    rows = [{"instruction": row.pop("prompt"), **row} for row in rows]
    assert all(map(sound, made_of(rows)))
    for row in rows:
        row["winner"] = f"output_{3 - row['preference']}"
    with pytest.raises(ValueError, match="two ways"):
        recognise(rows)


def test_a_changed_order_is_asked_about_in_the_shape_of_a_schema_too():
    rows = [two(n, 1 + n % 2, ("output_1", "output_2"), preference=1 + n % 2, is_swapped=n % 3 == 0) for n in range(12)]
    with pytest.raises(ValueError, match="is_swapped differs from row to row"):
        recognise([{"instruction": row.pop("prompt"), **row} for row in rows])


@pytest.mark.parametrize("name", ["webgpt", "ultrafeedback_binarized"])
def test_a_verdict_for_a_schema_that_has_none_is_refused(name):
    with pytest.raises(ValueError, match="--verdict has no effect"):
        recognise(schemas()[name]["rows"], verdict={"0": "first"}, name=name)


@pytest.mark.parametrize("column", ["system", "history", "context", "input"])
def test_what_a_schema_does_not_read_of_a_prompt_is_named(column):
    rows = [
        {"prompt": f"Q{n}?", "answers": [{"text": "So.", "score": 2}, {"text": "No.", "score": 1}]} for n in range(3)
    ]
    reading = recognise([row | {column: "The sky is green."} for row in rows])
    assert column in reading.parts.values() or belonging(reading) == [column]


def test_an_article_beside_an_instruction_is_named():
    asked = ("Summarise.", "Translate.")
    rows = [{"prompt": asked[n], "input": f"Text {n}", "chosen": "So.", "rejected": "No."} for n in range(2)]
    assert belonging(recognise(rows)) == ["input"]


def test_every_public_schema_reads_all_that_its_rows_are_asked():
    for name, schema in schemas().items():
        assert not belonging(recognise(schema["rows"], name=name)), name


def test_ties_of_an_arena_with_judges_are_ties():
    [row] = schemas()["mt_bench"]["rows"]
    rows = [row, row | {"winner": "tie (bothbad)"}, row | {"winner": "tie (inconsistent)"}]
    assert [pair.get("fault") for pair in made_of(rows)] == [None, "tie", "tie"]


def test_safety_may_be_the_verdict_of_pku_saferlhf():
    rows = schemas()["pku_saferlhf"]["rows"]
    columns = {"prompt": "prompt", "first": "response_0", "second": "response_1", "verdict": "safer_response_id"}
    reading = recognise(rows * 4, columns)
    assert {value: reading.meaning[value] for value in ("0", "1")} == {"0": "first", "1": "second"}


def test_two_answers_with_scores_are_held_to_the_margin_and_a_missing_score_is_a_fault():
    names = ("response_a", "response_b")
    rows = [two(n, 1, names, score_a=9, score_b=gap) for n, gap in enumerate((1, 8, None))]
    assert recognise(rows).has_scores
    faults = [pair.get("fault") for pair in made_of(rows, min_margin=3.0)]
    assert faults == [None, "not_chosen", "missing_field"]
    scored = {"prompt": "Q?", "chosen": "So.", "rejected": "No.", "score_chosen": None, "score_rejected": -3}
    assert [pair.get("fault") for pair in made_of([scored, scored | {"score_chosen": 1}], min_margin=1.0)] == [
        "missing_field",
        None,
    ]


def test_earlier_turns_in_a_transcript_are_not_lost_beside_lists_of_turns():
    prompt = "\n\nHuman: first\n\nAssistant: ok\n\nHuman: second\n\nAssistant:"
    asked = {"role": "user", "content": "second"}
    answers = {
        side: [asked, {"role": "assistant", "content": text}] for side, text in (("chosen", "So."), ("rejected", "No."))
    }
    [pair] = made_of([{"prompt": prompt} | answers])
    assert pair["fault"] == "different_prompts"


def test_a_count_of_exchanges_does_not_cut_texts():
    rows = [{"q": "Why?", "a": "Since so.", "b": "No idea.", "w": "a", "turn": 1}]
    columns = {"prompt": "q", "first": "a", "second": "b", "verdict": "w", "turn": "turn"}
    [pair] = make_pairs([Row("row 1", rows[0])], recognise(rows, columns))
    assert pair["fault"] == "wrong_type" and "'turn' counts exchanges" in pair["text"]
