"""What a stranger's file may look like: it is read rightly, or refused with the flags that settle it."""

import json
import shlex

import pytest

from machinery.data.files import Row
from machinery.data.load import find_reading, load_pairs
from machinery.data.pairs import make_pairs
from machinery.readings.convert import reading_of_function
from machinery.readings.recognise import recognise
from machinery.readings.texts import form_of, kind_of_cell


def made_of(rows, head=100, **how):
    reading = recognise(rows[:head], **how)
    return list(make_pairs([Row(f"row {n}", row) for n, row in enumerate(rows)], reading))


def two(number, better="a", **more):
    texts = (f"It rains {number}.", f"No idea {number}.")
    a, b = texts if better == "a" else texts[::-1]
    return {"prompt": f"Weather {number}?", "response_a": a, "response_b": b, **more}


def sound(pair):
    return pair["chosen"].startswith("It rains") and pair["rejected"].startswith("No idea")


def test_letters_of_a_winner_and_a_loser_name_the_columns():
    rows = [two(n, side, winner=side.upper(), loser="AB".replace(side.upper(), "")) for n, side in enumerate("abba")]
    assert all(map(sound, made_of(rows)))
    rows.append(two(9, "a", winner="A", loser="A"))
    assert made_of(rows)[-1]["fault"] == "unknown_verdict"


def test_one_tie_among_names_of_columns_is_one_tie():
    rows = [two(n, side, chosen=f"response_{side}", rejected="response_" + "ba"["ab".index(side)])
            for n, side in enumerate("abba")]  # fmt: skip
    rows.insert(1, two(8, chosen="tie", rejected="tie"))
    assert [pair.get("fault") for pair in made_of(rows)] == [None, "tie", None, None, None]


def test_names_of_any_columns_may_stand_in_chosen_and_rejected():
    rows = [{"prompt": f"Weather {n}?", "gpt": f"It rains {n}.", "llama": f"No idea {n}.", "chosen": "gpt", "rejected": "llama"}
            for n in range(3)]  # fmt: skip
    rows.append(rows[0] | {"chosen": "mistral"})
    made = made_of(rows)
    assert all(map(sound, made[:3]))
    assert made[3]["fault"] == "unknown_verdict"


def test_names_of_models_are_no_answers():
    rows = [{"prompt": f"Weather {n}?", "chosen": "x-large", "rejected": "y-small", "chosen_response": f"It rains {n}.",
             "rejected_response": f"No idea {n}."} for n in range(5)]  # fmt: skip
    assert all(map(sound, made_of(rows)))
    unnamed = [{"prompt": r["prompt"], "chosen": "x-large", "rejected": "y-small", "left": r["chosen_response"],
                "right": r["rejected_response"]} for r in rows]  # fmt: skip
    with pytest.raises(ValueError, match=r"chosen and rejected hold names .* left, right hold texts"):
        recognise(unnamed)


def test_what_names_a_column_only_in_later_rows_is_a_fault():
    rows = [{"prompt": f"Weather {n}?", "chosen": f"It rains {n}.", "rejected": f"No idea {n}."} for n in range(5)]
    rows += [two(7, chosen="response_a", rejected="response_b"), two(8, chosen="B", rejected="A")]
    assert [pair.get("fault") for pair in made_of(rows, head=5)[5:]] == ["names_a_column"] * 2


def test_numbers_in_later_rows_are_no_reading_of_words():
    rows = [two(n, side, winner=f"response_{side}") for n, side in enumerate("abab")]
    rows += [two(n, "a", winner=1) for n in range(5, 8)]
    assert [pair.get("fault") for pair in made_of(rows, head=4)] == [None] * 4 + ["unknown_verdict"] * 3


@pytest.mark.parametrize("late", [0, "response_3"])
def test_a_number_that_a_guess_does_not_explain_is_refused_when_it_turns_up(tmp_path, late):
    first = (lambda n: 1 + n % 2) if late == 0 else (lambda n: f"response_{1 + n % 2}")
    rows = [two(n, "a", preference=first(n)) for n in range(150)]
    rows += [two(n, "a", preference=late) for n in range(150, 160)]
    rows = [{key.replace("_a", "_1").replace("_b", "_2"): value for key, value in row.items()} for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"preference holds {late} too, in later rows"):
        load_pairs(str(path), None, None)
    meaning = {str(first(0)): "response_1", str(first(1)): "response_1", str(late): "tie"}
    assert len(load_pairs(str(path), None, None, verdict=meaning)[0]) == 150


def test_a_verdict_that_nobody_understands_is_named():
    rows = [two(n, rating_text="x", winner="the longer one") for n in range(3)]
    with pytest.raises(
        ValueError, match="winner holds 'the longer one', which names neither response_a nor response_b"
    ):
        recognise(rows)


def test_remarks_called_good_and_bad_are_not_taken_for_answers():
    rows = [
        {"question": f"Weather {n}?", "answer": f"It rains {n}.", "good": "clear", "bad": "a bit short"}
        for n in range(3)
    ]
    with pytest.raises(ValueError, match="good and bad may be answers, or remarks about answer"):
        recognise(rows)


def test_a_constant_instruction_beside_a_question_is_asked_about():
    rows = [{"instruction": "Be true.", "question": f"Weather {n}?", "chosen": f"It rains {n}.", "rejected": f"No idea {n}."}
            for n in range(3)]  # fmt: skip
    with pytest.raises(ValueError, match="--columns prompt=instruction,input=question"):
        recognise(rows)
    [first, *_] = made_of(rows, columns={"prompt": "instruction", "input": "question"})
    assert first["prompt"] == "Be true.\n\nWeather 0?"


def test_two_verdicts_that_contradict_each_other_are_both_shown():
    rows = [two(n, side, winner=f"response_{side}", judgment="[[A]]") for n, side in enumerate("abab")]
    with pytest.raises(ValueError, match="two ways") as error:
        recognise(rows)
    assert "verdict=winner" in str(error.value) and "verdict=judgment" in str(error.value)


def test_a_ranking_that_may_be_ranks_or_an_order_is_asked_about():
    row = {"prompt": "Weather?", "responses": ["No idea.", "Well.", "It rains."], "ranking": [2, 3, 1]}
    with pytest.raises(ValueError, match="the answers' numbers from the best one"):
        recognise([row])
    assert made_of([row], columns={"scores": "ranking"})[0]["chosen"] == "It rains."
    assert sound(made_of([row | {"ranking": [3, 2, 1]}])[0])  # the same both ways


def test_a_model_that_is_called_like_the_other_side_is_asked_about():
    rows = [two(n, "a", winner="model_b", model_a="model_b", model_b="model_c") for n in range(3)]
    with pytest.raises(ValueError, match="two ways") as error:
        recognise(rows)
    flags = "verdict=winner,model_first=model_a,model_second=model_b"
    assert flags in str(error.value)
    columns = dict(part.split("=") for part in flags.split(","))
    assert all(map(sound, made_of(rows, columns=columns)))


def test_scores_of_two_answers_decide_where_there_is_no_verdict():
    rows = [
        two(n, side, score_a=9 if side == "a" else 2, score_b=2 if side == "a" else 9) for n, side in enumerate("abba")
    ]
    made = made_of([*rows, two(9, score_a=4, score_b=4)])
    assert all(map(sound, made[:4]))
    assert (made[0]["score_chosen"], made[0]["score_rejected"], made[4]["fault"]) == (9, 2, "tie")


def test_an_answer_that_was_cut_off_is_not_chosen():
    """An evaluation writes how each answer ended; one that was cut off may well be the better one so far."""

    def row(win: float, first: str, second: str) -> dict:
        ended = {"first": first, "second": second}
        answers = [{"model": name, "text": name, "finish_reason": reason} for name, reason in ended.items()]
        return {"prompt": f"Weather {win} {first} {second}?", "win": win, "reason": None, "answers": answers}

    rows = [
        row(1.0, "length", "stop"),
        row(0.0, "length", "stop"),
        row(1.0, "stop", "length"),
        row(0.0, "stop", "stop"),
    ]
    made = made_of(rows)
    assert [pair.get("fault") for pair in made] == [None, "cut_off", "cut_off", None]
    assert [made[0]["chosen"], made[3]["chosen"]] == ["second", "first"]


def test_one_chosen_and_several_rejected_answers():
    row = {"prompt": "Weather?", "chosen": "It rains.", "rejected": ["No idea.", "No idea at all."]}
    assert [sound(pair) for pair in made_of([row])] == [True]
    reading = recognise([row])
    made = list(make_pairs([Row("row 0", row)], reading, "all"))
    assert [pair["rejected"] for pair in made] == row["rejected"]


def test_a_question_may_have_a_score_of_its_own():
    row = {
        "question": "Weather?",
        "score": 12,
        "answers": [{"text": "No idea.", "score": 1}, {"text": "It rains.", "score": 7}],
    }
    assert [sound(pair) for pair in made_of([row, row])] == [True, True]


def test_a_loss_counts_from_the_lowest():
    rows = [
        {"prompt": "Weather?", "completion": text, "eval_loss": loss}
        for text, loss in (("No idea.", 3.1), ("It rains.", 0.2))
    ]
    assert sound(made_of(rows, columns={"score": "eval_loss"})[0])


def test_a_system_turn_that_only_the_prompt_has_is_kept():
    system, ask = {"role": "system", "content": "Be true."}, {"role": "user", "content": "Weather?"}
    answers = {
        side: [ask, {"role": "assistant", "content": text}] for side, text in (("chosen", "A"), ("rejected", "B"))
    }
    [made] = made_of([{"prompt": [system, ask], **answers}])
    assert made["prompt"] == [system, ask]


# --- Cells -----------------------------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "It rains."}]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (json.dumps(TURNS), "turns"),
        (json.dumps(TURNS, indent=2), "turns"),
        ("\n " + json.dumps(TURNS[1]), "turns"),
        (json.dumps({"messages": TURNS}, indent=1), "turns"),
        (json.dumps([{"from": "human", "value": "Weather?"}]), "turns"),
        (json.dumps(TURNS)[:60], "broken turns"),
        (str(TURNS), "broken turns"),
        ("array([{'content': 'Weather?', 'role': 'user'}], dtype=object)", "broken turns"),
        (json.dumps([{"id": 7, "role": "assistant", "content": "It rains."}]), "turns"),
        (json.dumps({"id": 7, "messages": TURNS}), "turns"),
        (str([{"id": 7, "role": "assistant", "content": "It rains."}]), "broken turns"),
        (json.dumps([{"id": 7, "role": "assistant", "content": "It rains."}])[:-4], "broken turns"),
        (json.dumps(json.dumps(TURNS)), "broken turns"),
        (json.dumps("It rains."), "text"),
        ('["It rains."]', "list"),
        ('[{"from": "Paris", "to": "Rome"}]', "text"),
        ('[{"role": "clerk", "content": "Anna"}]', "text"),
        ('{"role": "clerk"}', "text"),
        ("[1, 2]", "text"),
        ("It rains.", "text"),
    ],
)
def test_what_a_cell_holds(cell, kind):
    assert kind_of_cell(cell) == kind


def test_the_column_decides_and_its_other_cells_are_faults():
    cells = [json.dumps(TURNS[1:])] * 3 + ["It rains."]
    assert form_of(cells) == "turns"
    rows = [{"prompt": f"Weather {n}?", "chosen": cell, "rejected": "No idea."} for n, cell in enumerate(cells)]
    assert [pair.get("fault") for pair in made_of(rows)] == [None, None, None, "other_form"]
    rows = [
        {"prompt": f"Weather {n}?", "chosen": cell, "rejected": "No idea."}
        for n, cell in enumerate([*["It rains."] * 3, cells[0]])
    ]
    assert [pair.get("fault") for pair in made_of(rows)] == [None, None, None, "other_form"]


def test_lists_of_questions_and_of_answers_are_one_conversation():
    row = {
        "prompt": '["Hi", "Weather?"]',
        "response_a": '["Hello", "It rains."]',
        "response_b": '["Hello", "No idea."]',
        "winner": "model_a",
    }
    [made] = made_of([row])
    assert [turn["content"] for turn in made["prompt"] + made["chosen"]] == ["Hi", "Hello", "Weather?", "It rains."]
    row |= {"prompt": "Say it as JSON.", "response_a": '["rain"]', "response_b": '["sun"]'}
    assert made_of([row])[0]["chosen"] == '["rain"]'  # an answer, since the question is no list


def test_a_converter_of_ones_own_may_not_hand_on_turns_as_json():
    reading = reading_of_function(lambda row: {"prompt": "a", "chosen": json.dumps(TURNS[1:]), "rejected": "b"}, "mine")
    [made] = make_pairs([Row("row 0", {})], reading)
    assert made["fault"] == "other_form"


class Rows(list):
    name = "rows"


def test_a_verdict_flag_without_a_verdict_is_refused():
    rows = Rows([Row("row 0", {"prompt": "Weather?", "chosen": "It rains.", "rejected": "No idea."})])
    with pytest.raises(ValueError, match="there is no verdict"):
        find_reading(rows, verdict={"1": "first"})


# --- What fits two readings ------------------------------------------------------------------------------------------


def refused(rows, words, **how):
    with pytest.raises(ValueError, match=words) as error:
        recognise(rows, **how)
    return str(error.value)


def test_one_and_nought_as_a_mere_label_may_mean_a_fault_that_was_found():
    rows = [{"question": "Weather?", "answer": text, "label": n} for n, text in enumerate(("It rains.", "No idea."))]
    said = refused(rows, "two ways")
    assert "--verdict 1=good,0=bad" in said
    assert "--verdict 1=bad,0=good" in said
    assert all(map(sound, made_of(rows, verdict={"0": "good", "1": "bad"})))
    assert made_of([row | {"label": bool(row["label"])} for row in rows])[0]["chosen"] == "No idea."
    rows = [{"prompt": "Weather?", "completion": row["answer"], "label": 1 - row["label"]} for row in rows]
    assert all(map(sound, made_of(rows)))  # TRL's own names


def test_one_and_nought_in_a_list_of_labels_too():
    rows = [{"prompt": "Weather?", "responses": ["It rains.", "No idea."], "labels": [0, 1]}]
    assert "answers=responses,labels=labels --verdict 1=good,0=bad" in refused(rows, "two ways")
    how = {"columns": {"answers": "responses", "labels": "labels"}, "verdict": {"0": "good", "1": "bad"}}
    assert all(map(sound, made_of(rows, **how)))
    assert made_of([rows[0] | {"labels": [False, True]}])[0]["chosen"] == "No idea."


def test_a_column_that_says_where_the_order_was_changed_is_asked_about():
    rows = [two(n, "a", winner="A", swapped=n % 2 == 0) for n in range(4)]
    refused(rows, "swapped differs from row to row")
    assert all(map(sound, made_of(rows, columns={"verdict": "winner"})))
    assert all(map(sound, made_of([row | {"swapped": False} for row in rows])))


def test_answers_that_are_named_by_another_count_are_asked_about():
    rows = [{"prompt": "Weather?", "response_0": "It rains.", "response_1": "No idea.", "winner": "model_1"}]
    refused(rows, "winner holds 'model_1', which names neither")
    assert made_of([rows[0] | {"winner": "model_0"}, *rows])[1]["chosen"] == "No idea."
    refused([rows[0] | {"winner": "model_2"}, *rows], "winner holds 'model_2'")


def test_a_preference_that_is_a_number_is_read_by_ranges():
    rows = [two(n, side, preference=value) for n, (side, value) in enumerate([("a", 0.9), ("b", 0.2), ("a", 0.51)])]
    rows.append(two(9, "a", preference=0.5))
    meaning = {"0..0.5": "response_b", "0.5..1": "response_a", "0.5": "tie"}
    made = made_of(rows, verdict=meaning)
    assert all(map(sound, made[:3]))
    assert made[3]["fault"] == "tie"
    del meaning["0.5"]
    assert made_of(rows, verdict=meaning)[3]["fault"] == "unknown_verdict"  # on the border of both ranges
    assert made_of([*rows, two(8, "a", preference=1.2)], verdict=meaning)[4]["fault"] == "unknown_verdict"


@pytest.mark.parametrize("kind", ["chosen", "winner"])
def test_labels_that_most_scores_contradict_are_refused_with_flags_for_both(tmp_path, kind):
    rows = [two(n, "ab"[n % 2], winner="AB"[n % 2], score_a=1 + n % 2, score_b=2 - n % 2) for n in range(5)]
    if kind == "chosen":
        rows = [{"prompt": f"Weather {n}?", "chosen": f"It rains {n}.", "rejected": f"No idea {n}.", "score_chosen": 1,
                 "score_rejected": 2} for n in range(5)]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="in 5 of 5 pairs the rejected answer has the higher score") as error:
        load_pairs(str(path), None, None)
    ends = []
    for line in str(error.value).splitlines()[1:]:
        words = dict(zip(*[iter(shlex.split(line))] * 2, strict=True))
        columns = dict(part.split("=") for part in words["--columns"].split(","))
        verdict = dict(part.split("=") for part in words.get("--verdict", "").split(",") if part)
        saved = tmp_path / f"saved{len(ends)}.jsonl"
        load_pairs(str(path), None, None, columns=columns, verdict=verdict, save_cleaned=str(saved))
        ends.append([json.loads(row)["chosen"].startswith("It rains") for row in saved.read_text().splitlines()])
    assert ends == [[True] * 5, [False] * 5]


def test_scores_that_contradict_fewer_labels_are_named_row_by_row(tmp_path):
    rows = [{"prompt": f"Weather {n}?", "chosen": f"It rains {n}.", "rejected": f"No idea {n}.", "score_chosen": 1,
             "score_rejected": 2 * (n < 2)} for n in range(5)]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = load_pairs(str(path), None, None)[2]["train"]
    assert report["findings"]["scores_contradict"]["rows"] == [0, 1]
    assert report["verdict"][0].startswith("Usable")


def test_numbered_columns_of_rejected_answers_are_all_read():
    row = {"prompt": "Weather?", "chosen": "It rains.", "rejected_1": "No idea.", "rejected_2": "No idea at all."}
    reading = recognise([row])
    assert reading.left_behind == ()
    made = list(make_pairs([Row("row 0", row), Row("row 1", row | {"rejected_2": None})], reading, "all"))
    assert [pair["rejected"] for pair in made] == ["No idea.", "No idea at all.", "No idea."]


def test_messages_in_rows_are_joined_to_their_thread_and_every_row_is_accounted_for():
    names = ("message_id", "parent_id", "role", "text", "rank")
    rows = [dict(zip(names, row, strict=True)) for row in (
        ("b", "p", "assistant", "No idea.", 1), ("p", None, "prompter", "Weather?", None), ("a", "p", "assistant", "It rains.", 0),
        ("c", "lost", "assistant", "Who?", 0), ("d", "c", "prompter", "You.", None), ("a", "p", "assistant", "Twice.", 2),
        ("x", "y", "prompter", "Round", None), ("y", "x", "prompter", "and round", None), ("q", "y", "assistant", "1", 0),
        ("r", "y", "assistant", "2", 1))]  # fmt: skip
    made = made_of(rows)
    assert sound({part: made[1][part][0]["content"] for part in ("chosen", "rejected")})
    assert made[1]["rows"] == [0, 1, 2]
    assert (made[0]["rows"], made[0]["fault"]) == ([5], "wrong_type")
    assert [(pair["rows"], pair["fault"]) for pair in made[2:]] == [([n], "no_partner") for n in (3, 4, 6, 7, 8, 9)]
