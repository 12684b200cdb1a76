"""Each usual shape of preference data becomes the same pair; what is no pair is named, and no text is changed."""

import json
import shlex

import pytest

from machinery.data.files import Row
from machinery.data.pairs import make_pairs
from machinery.readings.convert import reading_of_function
from machinery.readings.recognise import recognise
from machinery.readings.texts import parse_transcript
from machinery.readings.values import canonical, meanings

SYSTEM = {"role": "system", "content": "Be brief."}
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Why?"), ("assistant", "So."), ("assistant", "No."))
)
THANKS = {"role": "user", "content": "And now?"}
TURNS = ([USER], [GOOD], [BAD])
TEXTS = ("Why?", "So.", "No.")


def convert(*rows, columns=None, verdict=None, name=None, **pairing):
    """What the rows give, and how they were read."""
    shape = recognise(list(rows), columns, verdict, name)
    return shape, list(make_pairs([Row(f"row {n}", row) for n, row in enumerate(rows)], shape, **pairing))


def parts(made):
    return made["prompt"], made["chosen"], made["rejected"]


# One row of each shape, and the pair it is.
ROWS = {
    "preference, text": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "preference", TEXTS),
    "preference, turns": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "preference", TURNS),
    "a prompt beside one-turn answers": ({"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD]}, "preference", TURNS),
    "turns as single objects": ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, "preference", TURNS),
    "content as text parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], "chosen": "So.", "rejected": "No."},
        "preference",
        TURNS,
    ),
    "stack exchange": ({"question": "Why?", "response_j": "So.", "response_k": "No."}, "preference", TEXTS),
    "response_chosen": ({"query": "Why?", "response_chosen": "So.", "response_rejected": "No."}, "preference", TEXTS),
    "orca": (
        {"system": "Be brief.", "question": "Why?", "chosen": "So.", "rejected": "No."},
        "preference",
        ([SYSTEM, USER], [GOOD], [BAD]),
    ),
    "instruction without input": (
        {"instruction": "Why?", "input": "", "output": "x", "chosen": "So.", "rejected": "No."},
        "preference",
        TEXTS,
    ),
    "instruction with input": (
        {"instruction": "Why?", "input": "Now.", "output": "x", "chosen": "So.", "rejected": "No."},
        "preference",
        ("Why?\n\nNow.", "So.", "No."),
    ),
    "whole conversations": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "preference", TURNS),
    "longer conversations": (
        {"chosen": [SYSTEM, USER, BAD, THANKS, GOOD], "rejected": [SYSTEM, USER, BAD, THANKS, BAD]},
        "preference",
        ([SYSTEM, USER, BAD, THANKS], [GOOD], [BAD]),
    ),
    "chosen_messages": (
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        "preference",
        TURNS,
    ),
    "a prompt repeated in the conversations": (
        {"prompt": "Why?", "prompt_id": "7", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "preference",
        TURNS,
    ),
    "transcripts": (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        "preference",
        TURNS,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "So."},
         "rejected": {"from": "gpt", "value": "No."}},
        "preference",
        TURNS,
    ),
    "sharegpt with lists": (
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": [{"from": "gpt", "value": "So."}],
         "rejected": [{"from": "gpt", "value": "No."}]},
        "preference",
        TURNS,
    ),
    "sharegpt with strings": (
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": "So.", "rejected": ["No."]},
        "preference",
        TURNS,
    ),
    "hosted fine-tuning": (
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        "preference",
        TURNS,
    ),
    "two outputs, 1 or 2": (
        {"instruction": "Why?", "input": "", "output_1": "No.", "output_2": "So.", "preference": 2},
        "two_outputs",
        TEXTS,
    ),
    "two outputs, a or b": (
        {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "model_a"},
        "two_outputs",
        TEXTS,
    ),
    "two conversations": (
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
        "two_outputs",
        TURNS,
    ),
    "two outputs, 0 or 1": (
        {"prompt": "Why?", "response_0": "So.", "response_1": "No.", "better_response_id": 0},
        "two_outputs",
        TEXTS,
    ),
    "a list of answers with scores": (
        {"prompt": "Why?", "completions": ["No.", "Hm.", "So."], "scores": [1, 2, 3]},
        "scored_answers",
        TEXTS,
    ),
    "a list of answers with ranks": (
        {"prompt": "Why?", "answers": ["No.", "Hm.", "So."], "ranks": [3, 2, 1]},
        "scored_answers",
        TEXTS,
    ),
    "answers that hold their score": (
        {"instruction": "Why?", "completions": [{"response": "No.", "overall_score": 1}, {"response": "So.", "overall_score": 9}]},
        "scored_answers",
        TEXTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", ROWS)
def test_a_row_of_every_shape_becomes_the_pair_it_is(shape):
    row, name, pair = ROWS[shape]
    recognised, [made] = convert(row)
    assert recognised.kind == name
    assert parts(made) == pair
    assert made["rows"] == [0]


def test_answers_in_rows_of_their_own_are_paired_within_equal_prompts():
    rows = [{"prompt": p, "completion": a, "score": s}
            for p, a, s in (("Why?", "No.", 1), ("Who?", "Me.", 5), ("Why?", "So.", 3), ("Who?", "You.", 5))]  # fmt: skip
    shape, made = convert(*rows)
    assert shape.kind == "scored_rows"
    assert parts(made[0]) == TEXTS
    assert made[0]["rows"] == [0, 2]
    assert (made[0]["score_chosen"], made[0]["score_rejected"]) == (3, 1)
    assert [(m["rows"], m["fault"]) for m in made[1:]] == [([1], "tie"), ([3], "tie")]


def test_unpaired_labels_are_paired_where_prompts_are_equal_and_said_to_be_alone_where_not():
    rows = [{"messages": [USER, GOOD], "label": True}, {"messages": [USER, BAD], "label": False},
            {"messages": [THANKS, GOOD], "label": True}]  # fmt: skip
    shape, (pair, alone) = convert(*rows)
    assert shape.kind == "unpaired"
    assert parts(pair) == TURNS
    assert (alone["rows"], alone["fault"]) == ([2], "no_partner")


def test_the_users_own_names_are_mapped_also_inside_objects():
    row = {"meta": {"ask": "Why?"}, "yes": "So.", "no": "No.", "prompt": "an id"}
    _, [made] = convert(row, columns={"prompt": "meta.ask", "chosen": "yes", "rejected": "no"})
    assert parts(made) == TEXTS


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"prompt=ask: there is no column ask; there are question, chosen"):
        recognise([{"question": "Why?", "chosen": "So."}], columns={"prompt": "ask"})
    with pytest.raises(ValueError, match="the columns text, number are of no shape that is known"):
        recognise([{"text": "a", "number": 1}])
    with pytest.raises(ValueError, match="not of the shape sharegpt"):
        recognise([{"prompt": "a", "chosen": "b", "rejected": "c"}], name="sharegpt")


def test_tools_as_a_list_or_as_json_come_out_as_json_and_tool_calls_stay():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    result = {"role": "tool", "content": "4"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools)):
        row = {"prompt": [USER, call, result], "chosen": [GOOD], "rejected": [BAD], "tools": given}
        _, [made] = convert(row)
        assert json.loads(made["tools"]) == tools
        assert made["prompt"][1] == {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]}


def test_an_answer_may_call_a_tool_before_it_ends():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    result = {"role": "tool", "content": "4"}
    _, [made] = convert({"chosen": [USER, call, result, GOOD], "rejected": [USER, BAD]})
    assert parts(made) == ([USER], [call, result, GOOD], [BAD])


def test_texts_that_begin_alike_are_not_split_there():
    _, [made] = convert({"chosen": "The city is Paris", "rejected": "The city is Panama"})
    assert made["fault"] == "no_prompt"


@pytest.mark.parametrize(
    ("row", "fault", "words"),
    [
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "missing_field", "'prompt' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "missing_field", "'rejected' is missing"),
        ({"prompt": "a", "chosen": float("nan"), "rejected": "c"}, "missing_field", "'chosen' is missing"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "wrong_type", "'chosen' is a number"),
        ({"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}, "b"], "rejected": "c"}, "wrong_type", "no turn"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "wrong_type", "empty list"),
        ({"prompt": [{"role": "narrator", "content": "a"}], "chosen": "b", "rejected": "c"}, "roles", "'narrator'"),
        ({"prompt": [USER, GOOD], "chosen": "b", "rejected": "c"}, "roles", "behind assistant"),
        ({"prompt": [USER, SYSTEM], "chosen": "b", "rejected": "c"}, "roles", "turn 1 is the system's"),
        ({"prompt": [USER], "chosen": [GOOD, THANKS], "rejected": "c"}, "roles", "the answers be the assistant's"),
        ({"chosen": [USER, GOOD], "rejected": [THANKS, BAD]}, "different_prompts", "begin differently"),
        ({"chosen": [USER, GOOD, THANKS, GOOD], "rejected": [USER, BAD, THANKS, BAD]}, "different_prompts", "differ"),
        ({"prompt": "Who?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "different_prompts", "another"),
        ({"prompt": [USER], "chosen": "b", "rejected": "c", "tools": "{"}, "wrong_type", "'tools'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "b", "rejected": "c"}, "wrong_type",
         "image"),
        ({"prompt": "a", "output_1": "b", "output_2": "c", "preference": 1.5}, "tie", "neither"),
        ({"prompt": "a", "completions": ["b", "c"], "scores": [1]}, "wrong_type", "as many scores"),
        ({"prompt": "a", "completions": ["b", "c"], "scores": [1, "x"]}, "wrong_type", "'scores' is 'x'"),
        ({"prompt": "a", "completions": ["b", "c"], "scores": [1, 1]}, "tie", "same score"),
    ],
)  # fmt: skip
def test_a_row_that_gives_no_pair_is_named_with_its_reason(row, fault, words):
    shape = recognise([{name: "x" if value is None else value for name, value in row.items()}])
    [made] = make_pairs([Row("row 0", row)], shape)
    assert made["fault"] == fault
    assert words in made["text"]
    assert made["rows"] == [0]


def test_a_row_that_is_no_object_or_could_not_be_read_is_a_fault():
    shape = recognise([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    rows = [Row("line 1", ["a"]), Row("line 2", "{", "is not JSON")]
    assert [(made["fault"], made["where"]) for made in make_pairs(rows, shape)] == [
        ("unreadable", "line 1"),
        ("unreadable", "line 2"),
    ]


def test_one_text_that_was_scored_twice_makes_no_pair_with_itself():
    row = {"prompt": "Why?", "completions": ["So.", "So.", "No.", "No."], "scores": [5, 2, 4, 3]}
    _, [made] = convert(row)
    assert parts(made) == TEXTS


@pytest.mark.parametrize(
    ("values", "names", "sides"),
    [
        ([1, "2", 2.0], ("output_1", "output_2"), ["first", "second", "second"]),
        ([0, 1, 1.0], ("response_0", "response_1"), ["first", "second", "second"]),
        ([1, 2, 1.5] * 10, ("answer_a", "answer_b"), ["first", "second", "tie"] * 10),
        (["A", "answer_b", "model_a", "Response B"], ("answer_a", "answer_b"), ["first", "second", "first", "second"]),
        (["A", "[[B]]"], ("response_0", "response_1"), ["first", "second"]),
        (["j", "response_k"], ("response_j", "response_k"), ["first", "second"]),
        (["A>B", "B>>A", "A=B"], ("response_A", "response_B"), ["first", "second", "tie"]),
        (["[[A]]", "[[B]]", "[[C]]"], ("answer1", "answer2"), ["first", "second", "tie"]),
        (["model_a", "tie (bothbad)", "both_bad"], ("conversation_a", "conversation_b"), ["first", "tie", "tie"]),
    ],
)
def test_a_verdict_names_one_of_two_columns(values, names, sides):
    [meaning] = meanings(values, names, "winner")
    assert [meaning[canonical(value)] for value in values] == sides


@pytest.mark.parametrize(
    ("values", "names", "column"),
    [([0, 1], ("output_1", "output_2"), "preference"), ([1], ("answer_a", "answer_b"), "preference"),
     ([0, 1, 2], ("response_a", "response_b"), "label"), ([0, 1, 2], ("response_1", "response_2"), "label"),
     ([-3, 2], ("response_1", "response_2"), "preference"), ([1, 2, 3], ("output_1", "output_2"), "preference"),
     ([1, 1.0], ("response_1", "response_2"), "preference"), ([1], ("response_0", "response_1"), "preference"),
     ([True, False], ("response_0", "response_1"), "preference"), ([0, 1], ("response_0", "response_1"), "label"),
     ([1, 2], ("response_0", "response_1"), "winner"), ([0, 1], ("response_0", "response_1"), "preference"),
     ([0, 1], ("response_0", "response_1"), "win"), ([1, 2] * 30, ("response_a", "response_b"), "winner"),
     ([1, 2], ("response_1", "response_2"), "label"), ([0, 0.5, 1], ("response_0", "response_1"), "winner"),
     ([0.9, 0.2], ("response_a", "response_b"), "preference"), ([-0.5, 1.25], ("response_a", "response_b"), "preference")],
)  # fmt: skip
def test_values_that_can_be_read_in_two_ways_are_shown_both_with_the_flags_that_settle_it(values, names, column):
    assert len(meanings(values, names, column)) == 2
    rows = [
        {"prompt": f"Why {n}?", names[0]: f"So {n}.", names[1]: f"No {n}.", "winner": v} for n, v in enumerate(values)
    ]
    rows = [{column if key == "winner" else key: value for key, value in row.items()} for row in rows]
    with pytest.raises(ValueError, match="two ways") as error:
        recognise(rows)
    flags = [line for line in str(error.value).splitlines() if "--verdict" in line]
    assert len(flags) == len(set(flags)) == 2
    made = []
    for line in flags:
        given, told = (dict(p.split("=") for p in words.split(",")) for words in shlex.split(line)[1::2])
        _, pairs = convert(*rows, columns=given, verdict=told)
        made.append([(pair.get("chosen"), pair.get("fault")) for pair in pairs])
    assert made[0] != made[1]


def test_the_winner_of_an_arena_may_be_named_by_its_model():
    row = {"prompt": "Why?", "model_a": "phi_b", "model_b": "llama_2", "response_a": "So.", "response_b": "No."}
    for winner, pair in (("phi_b", TEXTS), ("llama_2", ("Why?", "No.", "So."))):
        _, [made] = convert(row | {"winner": winner})
        assert parts(made) == pair
    _, [_, made] = convert(row | {"winner": "phi_b"}, row | {"winner": "gpt_a"})
    assert made["fault"] == "unknown_verdict"


def test_a_column_that_only_says_where_a_row_is_from_is_no_prompt():
    transcript = "\n\nHuman: Why?\n\nAssistant: {}"
    _, [made] = convert({"source": "helpful", "chosen": transcript.format("So."), "rejected": transcript.format("No.")})
    assert parts(made) == TURNS
    shape, [made] = convert({"source": "helpful", "query": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert parts(made) == TURNS
    assert shape.left_behind == ("query", "source")


def test_transcripts_beside_their_prompt_are_split_too():
    transcript = "\n\nHuman: Why?\n\nAssistant: {}"
    _, [made] = convert({"prompt": "Why?", "chosen": transcript.format("So."), "rejected": transcript.format("No.")})
    assert parts(made) == TURNS


def test_a_prompt_that_is_a_transcript_is_read_as_turns():
    prompt = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And now?\n\nAssistant:"
    _, [made] = convert({"prompt": prompt, "chosen": " So.", "rejected": " No."})
    assert parts(made) == ([USER, GOOD, THANKS], [GOOD], [BAD])
    _, [made] = convert({"prompt": prompt.replace("\n", "\r\n"), "chosen": " So.", "rejected": " No."})
    assert parts(made) == ([USER, GOOD, THANKS], [GOOD], [BAD])
    answers = [{"answer": "No.", "rank": 2}, {"answer": "So.", "rank": 1}]
    _, [made] = convert({"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": answers})
    assert parts(made) == TURNS
    for quoted in (
        prompt.removesuffix("\n\nAssistant:"),
        "Human: a\n\nHuman: b\n\nAssistant: ",
        "Human: Why?\n\nAssistant: Be",
        "Why?\n\nAssistant: ",
    ):
        _, [made] = convert({"prompt": quoted, "chosen": " So.", "rejected": " No."})
        assert parts(made) == (quoted, " So.", " No.")


@pytest.mark.parametrize("column", ["input", "context"])
def test_the_input_of_an_instruction_is_read_under_any_name_of_the_instruction(column):
    row = {"task": "Why?", column: "Now.", "chosen": "So.", "rejected": "No."}
    columns = {"prompt": "task"} | ({"input": "context"} if column == "context" else {})
    shape, [made] = convert(row, columns=columns)
    is_read = column == "context"  # named by the user; another prompt's column "input" may be about anything
    assert made["prompt"] == ("Why?\n\nNow." if is_read else "Why?")
    assert shape.left_behind == (() if is_read else ("input",))
    row = {"instruction": "Why?", "input": "Now.", "good": "So.", "bad": "No."}
    shape, [made] = convert(row, columns={"prompt": "instruction", "chosen": "good", "rejected": "bad"})
    assert made["prompt"] == "Why?\n\nNow."
    assert shape.left_behind == ()
    for name, columns in (("Instruction", None), ("task", {"instruction": "task"})):
        _, [made] = convert({name: "Why?", "input": "Now.", "chosen": "So.", "rejected": "No."}, columns=columns)
        assert made["prompt"] == "Why?\n\nNow."
    _, [made] = convert({"Prompt": "Why?", "Input": "Now.", "chosen": "So.", "rejected": "No."})
    assert made["prompt"] == "Why?"  # as with small letters


def test_a_conversation_written_as_json_is_read_and_one_written_as_python_is_refused():
    row = {"prompt": "Why?", "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])}
    _, [made] = convert(row)
    assert parts(made) == TURNS
    _, [made] = convert(row | {"chosen": str([GOOD])})
    assert (made["fault"], made["text"]) == (
        "broken_turns", "'chosen' is a conversation as Python writes it; write it as whole JSON"
    )  # fmt: skip
    _, [made] = convert({"prompt": "Why?", "chosen": '[{"a": 1}]', "rejected": "No."})
    assert made["chosen"] == '[{"a": 1}]'


@pytest.mark.parametrize("name", ["pos_rank", "rank", "answerRank", "RANK_1", "Ranking", "ranks"])
def test_ranks_count_from_the_best_under_any_name(name):
    rows = [{"prompt": "Why?", "completion": a, name: r} for a, r in (("No.", 2), ("So.", 1))]
    shape, [made] = convert(*rows, columns={"score": name})
    assert parts(made) == TEXTS
    assert shape.says.endswith(f"score = {name} (the lowest is the best)")


@pytest.mark.parametrize("name", ["reranker_score", "frank", "rerank", "rank_score", "RankReward"])
def test_a_score_whose_name_merely_holds_the_word_rank_is_a_score(name):
    rows = [{"prompt": "Why?", "completion": a, name: score} for a, score in (("No.", 0.1), ("So.", 0.9))]
    _, [made] = convert(*rows, columns={"score": name})
    assert parts(made) == TEXTS


def test_an_earlier_conversation_stands_before_the_prompt():
    for history in (
        [["Hi", "Hello"]],
        '[["Hi", "Hello"]]',
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    ):
        _, [made] = convert({"question": "Why?", "history": history, "chosen": "So.", "rejected": "No."})
        assert [turn["content"] for turn in made["prompt"]] == ["Hi", "Hello", "Why?"]
    for history in ([], "[]"):
        _, [made] = convert({"instruction": "Why?", "history": history, "chosen": "So.", "rejected": "No."})
        assert parts(made) == TEXTS


def test_chosen_and_rejected_may_name_the_columns_of_the_answers():
    row = {"question": "Why?", "answer_a": "No.", "answer_b": "So.", "chosen": "answer_b", "rejected": "answer_a"}
    shape, [made] = convert(row)
    assert parts(made) == TEXTS
    assert shape.left_behind == ()


def test_names_may_differ_in_case_and_space():
    _, [made] = convert({"Prompt": "Why?", " Chosen": "So.", "REJECTED": "No."})
    assert parts(made) == TEXTS


def test_a_system_turn_that_is_there_already_is_not_doubled():
    row = {"system": "Be brief.", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    _, [made] = convert(row)
    assert made["prompt"] == [SYSTEM, USER]


def test_a_column_of_nulls_is_none():
    _, [made] = convert({"prompt": None, "messages": None, "question": "Why?", "chosen": "So.", "rejected": "No."})
    assert parts(made) == TEXTS


def test_a_mistyped_name_of_ours_is_refused():
    with pytest.raises(ValueError, match="there is no promt here; did you mean prompt"):
        recognise([{"ask": "a", "chosen": "b", "rejected": "c"}], columns={"promt": "ask"})


def test_thousands_of_answers_to_one_prompt_take_a_moment():
    import time

    start = time.process_time()
    rows = [{"prompt": "Why?", "completion": str(n), "score": n} for n in range(20_000)]
    _, made = convert(*rows)
    assert len(made) == 19_999  # one pair of two rows, and a fault for each other row
    assert time.process_time() - start < 10  # quadratic, it took minutes


def test_transcripts_keep_their_words():
    text = "\n\nHuman: One: two?\n\nAnd three?\n\nAssistant:  Yes. \n\nHuman: Sure\n\nAssistant: "
    assert parse_transcript(text, "chosen") == [
        {"role": "user", "content": "One: two?\n\nAnd three?"},
        {"role": "assistant", "content": " Yes. "},
        {"role": "user", "content": "Sure"},
        {"role": "assistant", "content": ""},
    ]


def test_a_converter_of_ones_own_is_enough_and_its_errors_are_faults():
    def mine(row):
        return {"prompt": row["ask"], "chosen": row["yes"], "rejected": row["no"]}

    shape = reading_of_function(mine, "mine")
    rows = [Row("row 0", {"ask": "Why?", "yes": "So.", "no": "No."}), Row("row 1", {"ask": "Why?"})]
    good, bad = make_pairs(rows, shape)
    assert parts(good) == TEXTS
    assert (bad["fault"], bad["text"]) == ("converter_failed", "mine: KeyError: 'yes'")


# --- What looks like something else ---


def test_the_steps_of_one_answer_are_not_taken_for_answers():
    row = {
        "prompt": "How much is 2+2*3?",
        "completions": ["2*3 is 6.", "2+6 is 9.", "So 9."],
        "labels": [True, False, False],
    }
    with pytest.raises(ValueError, match="may be the steps of one answer"):
        convert(row)
    _, [made] = convert(row, columns={"answers": "completions", "labels": "labels"})
    assert made["chosen"] == "2*3 is 6."
    whole = row | {"chosen": "So 8.", "rejected": "So 9."}  # beside pairs they are no matter
    assert convert(whole)[0].kind == "preference"
    assert convert(whole, columns={"chosen": "rejected", "rejected": "chosen"})[1][0]["chosen"] == "So 9."


def test_tools_and_category_are_found_under_the_names_that_are_given():
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "functions": tools, "topic": "reasons"}
    _, [made] = convert(row, columns={"tools": "functions", "category": "topic"})
    assert (json.loads(made["tools"]), made["category"]) == (tools, "reasons")
    _, [made] = convert({"prompt": {"messages": [USER], "tools": tools}, "chosen": [GOOD], "rejected": [BAD]})
    assert json.loads(made["tools"]) == tools


def test_a_transcript_below_a_system_column_is_turns_for_scored_answers_too():
    asked = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And now?\n\nAssistant:"
    row = {"system": "Be brief.", "prompt": asked, "responses": [" Then.", " No."], "scores": [2.0, 1.0]}
    _, [made] = convert(row)
    assert made["prompt"] == [SYSTEM, USER, GOOD, THANKS]
    assert (made["chosen"], made["rejected"]) == tuple(
        [{"role": "assistant", "content": said}] for said in ("Then.", "No.")
    )


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": '["Why?"]', "chosen": '["So.", "No."]', "rejected": '["No.", "So."]'}, None),
        ({"system": "S", "chosen": ["a b", "c"], "rejected": ["d", "e f"]}, None),
        (
            {"a": [USER, GOOD], "b": [USER, BAD], "w": "a", "n": 0},
            {"first": "a", "second": "b", "verdict": "w", "turn": "n"},
        ),
    ],
)
def test_what_nobody_can_read_is_a_fault_and_no_accident(row, columns):
    _, [made] = convert(row, columns=columns)
    assert made["fault"] in ("wrong_type", "missing_field")


def test_a_message_may_be_called_0():
    for first, no_parent in ((0, None), (5, 0), (5, None)):  # and 0 may stand for none
        rows = [
            {"message_id": first, "parent_id": no_parent, "role": "prompter", "text": "Why?", "rank": None},
            {"message_id": 1, "parent_id": first, "role": "assistant", "text": "So.", "rank": 0},
            {"message_id": 2, "parent_id": first, "role": "assistant", "text": "No.", "rank": 1},
        ]
        assert [parts(made) for made in convert(*rows)[1] if "fault" not in made] == [TURNS]


def test_a_margin_counts_where_there_are_scores_only():
    rows = [{"prompt": "Why?", "completion": text, "label": label} for text, label in (("So.", True), ("No.", False))]
    shape, made = convert(*rows, min_margin=1.5)
    assert not shape.has_scores
    assert [parts(one) for one in made if "fault" not in one] == [TEXTS]
