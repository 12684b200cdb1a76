"""Pairs take the form that their tokenizer needs; prompts are shortened where it hurts least."""

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest
from conftest import spoil
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template

from dpo_utils import format_pair, load_preferences, load_tokenizer, prompt_ids, show_pairs
from machinery.common import kept_files
from machinery.common.errors import UserError
from machinery.data import formatting
from machinery.data.formatting import PLAIN_CHAT_TEMPLATE, format_row
from machinery.data.tokens import TemplateTrial, shorten_prompt, tokenise

USER, REPLY = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}
CURT = {"role": "assistant", "content": "What"}


@pytest.fixture(scope="module")
def chat_tokenizer():
    return AutoTokenizer.from_pretrained("demo/model")


TURNS = {"prompt": [USER], "chosen": [REPLY], "rejected": [CURT]}
TEXTS = {"prompt": "Hello", "chosen": "Good day", "rejected": "What"}


def load(rows, tokenizer, folder, **how):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, held_out, _ = load_preferences(str(path), tokenizer, **how)
    return pairs, held_out


def parts(pair):
    return {name: pair[name] for name in ("prompt", "chosen", "rejected")}


def test_strings_become_turns_on_demand_and_turns_stay(chat_tokenizer):
    assert parts(format_pair(TEXTS, chat_tokenizer)) == TURNS
    assert parts(format_pair(TEXTS, chat_tokenizer, as_turns=False)) == TEXTS
    assert parts(format_pair(TURNS, chat_tokenizer)) == TURNS


def test_plain_strings_become_turns_where_there_is_a_template(chat_tokenizer, tmp_path, capsys):
    assert parts(load([TEXTS], chat_tokenizer, tmp_path)[0][0]) == TURNS
    assert "plain strings become a user's and an assistant's turn" in capsys.readouterr().out
    assert parts(load([TEXTS], chat_tokenizer, tmp_path, keep_plain=True)[0][0]) == TEXTS
    assert "--keep_plain does nothing" not in capsys.readouterr().out


def test_where_nothing_is_to_be_kept_plain_the_flag_is_named(chat_tokenizer, base_model_folder, tmp_path, capsys):
    load([TURNS], chat_tokenizer, tmp_path, keep_plain=True)
    assert "--keep_plain does nothing: there are turns among the pairs" in capsys.readouterr().out
    load([TEXTS], load_tokenizer(str(base_model_folder)), tmp_path, keep_plain=True)
    assert "--keep_plain does nothing: the tokenizer has no chat template" in capsys.readouterr().out


def test_pairs_that_are_kept_on_disk_are_not_those_of_another_formatting(chat_tokenizer, tmp_path, monkeypatch):
    def format_otherwise(*args):
        return format_pair(*args) | {"prompt": [{"role": "user", "content": "Otherwise"}]}

    assert parts(load([TEXTS], chat_tokenizer, tmp_path)[0][0]) == TURNS
    monkeypatch.setattr("dpo_utils.format_pair", format_otherwise)
    assert load([TEXTS], chat_tokenizer, tmp_path)[0][0]["prompt"][0]["content"] == "Otherwise"


def test_plain_strings_stay_plain_where_there_is_none(base_model_folder, tmp_path):
    assert parts(load([TEXTS], load_tokenizer(str(base_model_folder)), tmp_path)[0][0]) == TEXTS


def test_conversations_give_a_base_model_a_plain_template(base_model_folder, tmp_path):
    tokenizer = load_tokenizer(str(base_model_folder))
    assert parts(load([TURNS], tokenizer, tmp_path)[0][0]) == TURNS
    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE


def test_text_and_turns_in_one_file_become_turns(base_model_folder, tmp_path):
    rows = [TEXTS, TURNS | {"prompt": [{"role": "user", "content": "Else"}]}]
    pairs, _ = load(rows, load_tokenizer(str(base_model_folder)), tmp_path)
    assert [parts(pair) for pair in pairs] == [TURNS, rows[1]]


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_pairs_take_the_form_of_those_to_train_on(streaming, base_model_folder, tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(TEXTS) + "\n" + json.dumps(TURNS) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "Where?", "chosen": "Here.", "rejected": "No."}) + "\n")
    tokenizer = load_tokenizer(str(base_model_folder))
    train, held_out, _ = load_preferences(str(tmp_path), tokenizer, streaming=streaming)
    assert isinstance(next(iter(train))["prompt"], list)
    assert next(iter(held_out))["prompt"] == [{"role": "user", "content": "Where?"}]


def test_tool_calls_come_through_whole(chat_tokenizer, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    result = {"role": "tool", "content": "4"}
    rows = [TURNS, TURNS | {"prompt": [USER, call, result], "tools": [{"type": "function"}]}]
    pairs, _ = load(rows, chat_tokenizer, tmp_path)
    assert pairs[1]["prompt"] == [USER, call, result]
    assert [pair["tools"] for pair in pairs] == [None, '[{"type": "function"}]']


def test_what_is_kept_of_a_file_is_not_that_of_other_rows_of_it(chat_tokenizer, tmp_path):
    rows = [TURNS | {"prompt": [{"role": "user", "content": f"Hello {n}"}]} for n in range(6)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for held_out in (3, 4):
        (folder / "test.jsonl").write_text(json.dumps(rows[held_out]) + "\n")
        pairs, test, _ = load_preferences(str(folder), chat_tokenizer)
        assert [pair["rows"] for pair in pairs] == [[n] for n in range(6) if n != held_out]
        assert [pair["prompt"] for pair in pairs] == [row["prompt"] for n, row in enumerate(rows) if n != held_out]
        assert test[0]["prompt"] == rows[held_out]["prompt"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "a folder"])
def test_damage_to_what_is_kept_is_said_and_made_anew(damage, chat_tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(kept_files, "_said", set())
    rows = [TURNS | {"prompt": [{"role": "user", "content": f"Damaged: {damage} {n}"}]} for n in range(3)]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dpo_pairs"
    before = set(folder.glob("*.arrow"))
    load(rows, chat_tokenizer, tmp_path)
    [kept] = set(folder.glob("*.arrow")) - before
    spoil(kept, damage)
    for _ in range(2):
        assert [pair["prompt"] for pair in load(rows, chat_tokenizer, tmp_path)[0]] == [row["prompt"] for row in rows]
    said = "cannot be kept in" if damage == "a folder" else "has changed on disk since it was written. It is made anew."
    assert caplog.text.count(said) == 1
    if damage == "a folder":
        kept.rmdir()


@pytest.mark.parametrize("place", ["missing", "a file", "full"])
def test_pairs_that_cannot_be_kept_are_formatted_all_the_same(place, chat_tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(kept_files, "_said", set())
    (tmp_path / "file").write_text("")
    places = {"missing": "/proc/nowhere", "a file": str(tmp_path / "file"), "full": str(tmp_path / "full")}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", places[place])
    if place == "full":
        monkeypatch.setattr(formatting, "seal", no_room)
    rows = [TURNS | {"prompt": [{"role": "user", "content": f"Unkept in {place} {n}"}]} for n in range(3)]
    for _ in range(2):
        assert [pair["prompt"] for pair in load(rows, chat_tokenizer, tmp_path)[0]] == [row["prompt"] for row in rows]
    assert caplog.text.count("Formatted pairs cannot be kept in") == 1


def test_what_a_killed_run_was_still_writing_goes_after_a_day(chat_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    folder = tmp_path / "dpo_pairs"
    folder.mkdir()
    for name, seconds in (("tmpdead", 100_000), ("tmpalive", 10)):
        (folder / name).write_text("half")
        os.utime(folder / name, (time.time() - seconds,) * 2)
    load([TEXTS], chat_tokenizer, tmp_path)
    assert [file.name for file in folder.glob("tmp*")] == ["tmpalive"]


def no_room(file):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_runs_at_once_on_the_same_pairs_do_not_take_them_from_each_other(chat_tokenizer, tmp_path, monkeypatch):
    rows = [TURNS | {"prompt": [{"role": "user", "content": f"Two at once {n}"}]} for n in range(3)]
    seal, forget = formatting.seal, formatting.forget_damaged
    is_written, has_looked, seen = threading.Event(), threading.Event(), []

    def seal_late(file):  # the file is there, and its checksum not yet
        is_written.set()
        seen.append(has_looked.wait(1))
        seal(file)

    def look(files):
        if is_written.is_set():
            has_looked.set()
        forget(files)

    monkeypatch.setattr(formatting, "seal", seal_late)
    monkeypatch.setattr(formatting, "forget_damaged", look)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(load, rows, chat_tokenizer, tmp_path)
        assert is_written.wait(60)
        second = threads.submit(load, rows, chat_tokenizer, tmp_path)
        assert [len(run.result()[0]) for run in (first, second)] == [3, 3]
    assert seen[0] is False  # the second did not look before the first had done


def test_findings_that_are_kept_come_back(chat_tokenizer, tmp_path):
    rows = [TURNS, TURNS, TURNS | {"prompt": [{"role": "user", "content": "Hello you"}]}]
    assert len(load(rows, chat_tokenizer, tmp_path)[0]) == 2
    assert len(load(rows, chat_tokenizer, tmp_path, keep_findings=["duplicate"])[0]) == 3


def test_prompts_stay_on_their_side_when_others_are_dropped(chat_tokenizer, tmp_path):
    rows = [TURNS | {"prompt": [{"role": "user", "content": f"Hello {n}"}]} for n in range(60)]
    sides = [load(some, chat_tokenizer, tmp_path, held_out_share=0.2) for some in (rows, rows[:5] + rows[9:])]
    (all_trained, _), (_, held_out) = [[{str(p["prompt"]) for p in side} for side in both] for both in sides]
    assert len(held_out) == 11
    assert len(held_out & all_trained) <= 2  # at the edge: the share is of fewer prompts


def test_something_is_left_to_train_on(chat_tokenizer, tmp_path):
    rows = [TURNS | {"prompt": [{"role": "user", "content": f"Hello {n}"}]} for n in range(3)]
    pairs, held_out = load(rows, chat_tokenizer, tmp_path, held_out_share=0.9)
    assert (len(pairs), len(held_out)) == (1, 2)


def test_a_share_of_the_prompts_is_held_out_and_none_is_on_both_sides(chat_tokenizer, tmp_path):
    rows = [TEXTS | {"prompt": f"Hello {n // 3}", "chosen": f"Good day {n}"} for n in range(60)]
    pairs, held_out = load(rows, chat_tokenizer, tmp_path, held_out_share=0.1)
    sides = [{json.dumps(pair["prompt"]) for pair in side} for side in (pairs, held_out)]
    assert (len(pairs), len(held_out)) == (54, 6)
    assert not sides[0] & sides[1]
    again = load(rows, chat_tokenizer, tmp_path, held_out_share=0.1)[1]
    other = load(rows, chat_tokenizer, tmp_path, held_out_share=0.1, seed=1)[1]
    assert held_out["rows"] == again["rows"] != other["rows"]


def test_a_prompt_that_cannot_be_shortened_is_dropped_and_counted(chat_tokenizer, tmp_path):
    system = {"role": "system", "content": "Be brief. " * 50}
    rows = [TURNS, TURNS | {"prompt": [system, USER]}, TURNS | {"prompt": [{"role": "user", "content": "so " * 60}]}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, _, reports = load_preferences(str(path), chat_tokenizer, max_prompt_length=30)
    findings = reports["train"]["findings"]
    assert findings["prompt_too_long"]["rows"] == [1]
    assert findings["prompt_shortened"]["rows"] == [2]
    assert pairs["rows"] == [[0], [2]]


def test_several_processes_format_the_same_pairs(chat_tokenizer, tmp_path):
    rows = [TEXTS | {"prompt": f"Hello {n}"} for n in range(1200)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, _, first = load_preferences(str(path), chat_tokenizer, max_length=100)
    two, _, second = load_preferences(str(path), chat_tokenizer, max_length=101, num_proc=2)  # not from the cache
    assert one.to_list() == two.to_list()
    assert first["train"]["tokens"] == second["train"]["tokens"]


def test_streamed_pairs_are_those_of_the_file_and_bad_ones_are_skipped(chat_tokenizer, tmp_path, caplog):
    rows = [TEXTS | {"prompt": f"Hello {n}"} for n in range(5)] + [TEXTS | {"chosen": ""}]
    pairs, held_out = load(rows, chat_tokenizer, tmp_path, streaming=True)
    assert held_out is None
    assert [pair["prompt"][0]["content"] for pair in pairs] == [f"Hello {n}" for n in range(5)]
    assert "line 6 is skipped: empty_answer" in caplog.text


def test_many_rows_that_are_skipped_are_named_a_few_times(chat_tokenizer, tmp_path, caplog):
    rows = [TEXTS | {"prompt": f"Hello {n}"} for n in range(3)] + [TEXTS | {"chosen": "What"}] * 20
    pairs, _ = load(rows, chat_tokenizer, tmp_path, streaming=True)
    assert len(list(pairs)) == 3
    skipped = [record.message for record in caplog.records if "is skipped" in record.message]
    assert len(skipped) == 5 and skipped[-1].endswith("Others like it are skipped without a word.")


def test_a_streamed_row_that_cannot_be_read_ends_the_run_unless_it_may_be_skipped(chat_tokenizer, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(TEXTS)}\n" * 120 + "{broken\n")
    pairs, *_ = load_preferences(str(tmp_path / "pairs.jsonl"), chat_tokenizer, streaming=True)
    with pytest.raises(UserError, match="--skip_bad_rows goes on"):
        list(pairs)
    pairs, *_ = load_preferences(str(tmp_path / "pairs.jsonl"), chat_tokenizer, streaming=True, skip_bad_rows=True)
    assert len(list(pairs)) == 120


def test_streamed_turns_may_carry_tool_calls_from_any_row_on(chat_tokenizer, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    rich = TURNS | {"prompt": [USER, call, {"role": "tool", "content": "4"}], "tools": [{"type": "function"}]}
    pairs, _ = load([TURNS] * 150 + [rich], chat_tokenizer, tmp_path, streaming=True)
    *_, last = pairs
    assert last["prompt"] == rich["prompt"]
    assert last["tools"] == '[{"type": "function"}]'


def test_streamed_turns_behind_plain_rows_are_skipped(base_model_folder, tmp_path, caplog):
    pairs, _ = load([TEXTS] * 150 + [TURNS], load_tokenizer(str(base_model_folder)), tmp_path, streaming=True)
    assert {type(pair["prompt"]) for pair in pairs} == {str}
    assert "turns where the first rows are plain text" in caplog.text


def test_a_number_that_arrow_would_change_drops_its_pair(chat_tokenizer, tmp_path):
    def calling(number):
        arguments = {"function": {"name": "f", "arguments": {"latitude": number}}}
        return TURNS | {"chosen": [{"role": "assistant", "content": "", "tool_calls": [arguments]}]}

    pairs, _ = load([calling(48.858370123456789), calling(48.85)], chat_tokenizer, tmp_path)
    assert pairs["rows"] == [[1]]


def test_every_trained_token_is_shown_in_brackets(chat_tokenizer, tmp_path, capsys):
    show_pairs(load([TURNS], chat_tokenizer, tmp_path)[0], chat_tokenizer, 1)
    shown = capsys.readouterr().out.splitlines()
    assert "Pair 0, from row 0" in shown
    [chosen] = [line for line in shown if line.startswith("  chosen")]
    assert chosen.split("  ")[-2].replace("][", "").endswith("Good day<|im_end|>]")


def test_what_max_length_cuts_is_not_shown_as_trained_on(chat_tokenizer, tmp_path, capsys):
    pairs = load([TURNS], chat_tokenizer, tmp_path)[0]
    prompt = len(chat_tokenizer.apply_chat_template(pairs[0]["prompt"], add_generation_prompt=True)["input_ids"])
    show_pairs(pairs, chat_tokenizer, 1, max_length=prompt + 2)
    [chosen] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  chosen")]
    assert "  2 tokens, " in chosen
    assert chosen.endswith(f" are cut by --max_length {prompt + 2}")
    assert "<|im_end|>]" not in chosen


def test_a_reply_ends_where_the_template_ends_a_turn(chat_tokenizer, tmp_path):
    other = AutoTokenizer.from_pretrained("demo/model")
    other.eos_token = "<|pad|>"  # as Gemma's, whose turns end with another token than its EOS
    other.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|pad|>"
    assert load_tokenizer(str(tmp_path)).eos_token == chat_tokenizer.eos_token == "<|im_end|>"
    other.chat_template = other.chat_template.replace("+ '<|im_end|>'", "+ '<|im_end|>' + eos_token")
    other.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).eos_token == "<|pad|>"  # as Phi-3's, which writes both


def test_an_empty_prompt_has_a_token_to_begin_from(base_tokenizer):
    assert len(prompt_ids(base_tokenizer, "")) == 1


def test_a_thinking_model_replies_where_the_answers_of_the_pairs_begin():
    tokenizer = AutoTokenizer.from_pretrained("demo/model")
    tokenizer.chat_template = qwen3_chat_template
    prompt, chosen, _, rest = tokenise([USER], [REPLY], [CURT], tokenizer)
    asked = prompt_ids(tokenizer, [USER])
    assert rest == []
    assert "<think>" in tokenizer.decode(asked)
    assert tokenizer.decode((prompt + chosen)[len(asked) :]).startswith(REPLY["content"])
    assert (prompt + chosen)[: len(asked)] == asked


def test_the_plain_template_ends_a_reply_with_the_eos_and_keeps_the_prompt_a_prefix(base_tokenizer):
    base_tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    try:
        prompt = base_tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
        whole = base_tokenizer.apply_chat_template([USER, REPLY])["input_ids"]
    finally:
        base_tokenizer.chat_template = None
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == base_tokenizer.eos_token_id
    assert base_tokenizer.decode(prompt) == "User: Hello\n\nAssistant:"


SYSTEM = {"role": "system", "content": "Be brief."}
LONG = {"role": "user", "content": "one two three four five six seven eight nine ten " * 5 + "What now?"}


def length(tokenizer, prompt):
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])


def test_a_prompt_that_fits_is_left_alone(chat_tokenizer):
    prompt = [SYSTEM, USER, REPLY, LONG]
    assert shorten_prompt(prompt, chat_tokenizer, length(chat_tokenizer, prompt)) == prompt


def test_the_oldest_exchanges_go_first_and_the_system_turn_stays(chat_tokenizer):
    prompt = [SYSTEM, USER, REPLY, USER, CURT, LONG]
    kept = [SYSTEM, USER, CURT, LONG]
    assert shorten_prompt(prompt, chat_tokenizer, length(chat_tokenizer, kept)) == kept
    assert shorten_prompt(prompt, chat_tokenizer, length(chat_tokenizer, kept) - 1) == [SYSTEM, LONG]


def test_then_the_question_loses_its_start(chat_tokenizer):
    shortened = shorten_prompt([SYSTEM, USER, REPLY, LONG], chat_tokenizer, 60)
    assert length(chat_tokenizer, shortened) <= 60
    assert shortened[0] == SYSTEM
    assert LONG["content"].endswith(shortened[1]["content"])
    assert shortened[1]["content"].endswith("What now?")


def test_a_tool_call_and_its_result_stay(chat_tokenizer):
    call = {"role": "assistant", "content": "call weather"}
    result = {"role": "tool", "content": "rain"}
    shortened = shorten_prompt([USER, REPLY, LONG, call, result], chat_tokenizer, 60)
    assert shortened[-2:] == [call, result]
    assert shortened[0]["role"] == "user"


def test_plain_text_loses_its_start(base_tokenizer):
    text = "the cat sat on the mat and the dog ran over the hill"
    shortened = shorten_prompt(text, base_tokenizer, 5)
    assert text.endswith(shortened)
    assert 0 < len(base_tokenizer(shortened)["input_ids"]) <= 5


def test_a_prompt_that_cannot_be_shortened_is_refused(chat_tokenizer):
    with pytest.raises(ValueError, match="without its question"):
        shorten_prompt([SYSTEM, LONG], chat_tokenizer, 8)


def test_a_template_that_refuses_a_prompt_is_not_called_a_prompt_that_is_too_long(base_tokenizer):
    base_tokenizer.chat_template = "{{ raise_exception('only one system turn') }}"
    pair = {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c", "where": "row 0"}
    how = dict(as_turns=True, step=2, max_prompt_length=5, max_length=None, columns=["facts"])
    how |= {"format_pair": format_pair, "trial": TemplateTrial(base_tokenizer)}
    made = format_row({"pair": json.dumps(pair)}, 1, base_tokenizer, **how)
    assert (made["facts"]["flags"], made["facts"]["text"]) == (["template_error"], "only one system turn")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_pair_that_the_template_refuses_goes_though_nobody_looks_at_its_tokens(
    is_streamed, base_tokenizer, tmp_path, caplog
):
    base_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    )
    file = tmp_path / "pairs.jsonl"
    with open(file, "w") as lines:
        for number in range(40):
            prompt = [SYSTEM] * (number == 37) + [{"role": "user", "content": f"What is {number}?"}]
            answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
            lines.write(json.dumps({"prompt": prompt, **answers}) + "\n")
    how = {"streaming": True} if is_streamed else {"look_at": 4}
    pairs, _, reports = load_preferences(str(file), base_tokenizer, **how)
    assert len([row for row in pairs if row["prompt"][0]["role"] == "system"]) == 0
    assert len(list(pairs)) == 39
    if is_streamed:
        assert "is skipped: the chat template refuses its turns (System role not supported)" in caplog.text
    else:
        assert reports["train"]["findings"]["template_error"]["rows"] == [37]
