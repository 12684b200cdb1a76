"""Answers from anywhere: prompts without pairs, answers in files, a server's, and those that were kept on disk."""

import asyncio
import json
import logging
import math
import shutil
from itertools import count
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_llama, spoil
from fake_server import FakeServer
from peft import LoraConfig, get_peft_model

from dpo_utils import format_pair, load_preferences, pick_prompts
from machinery.answers import kept as kept_module
from machinery.answers.kept import KeptAnswers, sample_kept
from machinery.answers.prompts import load_prompts, prompts_alone
from machinery.answers.server import AnswerServer
from machinery.answers.sources import Sources, sources_from_flags
from machinery.answers.texts import Windows, read_texts, text_losses, text_windows
from machinery.answers.written import Answer, read_written
from machinery.common.errors import UserError
from machinery.models.sharded_weights import check_whole
from machinery.readings.reading import schemas


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- Prompts ---


def prompts_in(path, tokenizer=None, **how):
    pairs, rows, is_held_out, _ = load_prompts(str(path), tokenizer, load_preferences, format_pair, **how)
    return pairs, [list(p) if isinstance(p, list) else p for p in pick_prompts(rows, 100)], is_held_out


ASKED = [{"role": "user", "content": "where is it?"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "where is it?"},
        {"question": "where is it?", "id": 3, "source": "web"},
        {"messages": ASKED},
        {"prompt": json.dumps(ASKED)},
        {"prompt": "Human: where is it?\n\nAssistant:"},
    ],
)
def test_prompts_alone_are_recognised_in_the_shapes_of_pairs(tmp_path, base_tokenizer, row, capsys):
    base_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other = json.loads(json.dumps(row).replace("where is it", "who is it"))
    path = write(tmp_path / "prompts.jsonl", row, other)
    pairs, prompts, is_held_out = prompts_in(path, base_tokenizer)
    assert (pairs, is_held_out) == (None, False)
    assert prompts == [ASKED, [{"role": "user", "content": "who is it?"}]]
    assert "2 prompts and no pairs" in capsys.readouterr().out


def test_a_system_turn_and_a_category_come_with_the_prompt(tmp_path):
    path = write(tmp_path / "p.jsonl", {"system": "Be brief.", "prompt": "why?", "category": "causes"})
    _, rows, *_ = load_prompts(path, None, load_preferences, format_pair)
    assert rows[0]["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}]
    assert rows["category"] == ["causes"]


def test_rows_with_answers_are_prompts_only_where_that_is_asked_for(tmp_path):
    path = write(tmp_path / "sft.jsonl", {"prompt": "why?", "completion": "so"}, {"prompt": "who?", "completion": "I"})
    with pytest.raises(UserError, match=r"no shape that is known.* --dataset_format prompts"):
        prompts_in(path)
    assert prompts_in(path, dataset_format="prompts")[1] == ["why?", "who?"]


def test_a_share_of_the_prompts_is_held_out_and_none_is_on_both_sides(tmp_path):
    path = write(tmp_path / "p.jsonl", *({"prompt": f"number {n % 10}"} for n in range(20)))
    _, prompts, is_held_out = prompts_in(path, held_out_share=0.3)
    assert is_held_out
    assert len(prompts) == 3


def test_prompts_alone_hold_out_those_that_their_pairs_hold_out(tmp_path, base_tokenizer):
    asked = [f"number {n} of them?" for n in range(40)]
    pairs = write(tmp_path / "pairs.jsonl", *({"prompt": p, "chosen": f"So {p}", "rejected": "No."} for p in asked))
    how = dict(held_out_share=0.25, seed=3)
    _, held_of_pairs, _ = prompts_in(pairs, base_tokenizer, **how)
    _, held_alone, _ = prompts_in(pairs, base_tokenizer, dataset_format="prompts", **how)
    assert len(held_alone) == 10
    assert held_alone == held_of_pairs


@pytest.mark.parametrize("name", ["shp", "ms_swift", "openpipe", "nova", "oasst_trees"])
def test_a_public_shape_of_pairs_is_no_file_of_prompts(tmp_path, name):
    assert not prompts_alone(write(tmp_path / "pairs.jsonl", *schemas()[name]["rows"]))


@pytest.mark.parametrize(
    "launched",
    [{"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}],
)
def test_weights_in_pieces_answer_nothing_by_themselves(launched, monkeypatch):
    check_whole("An evaluation")
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="An evaluation takes whole weights on every process"):
        check_whole("An evaluation")


def test_a_row_without_a_prompt_is_named_or_left_out(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "why?"}, {"prompt": " "}, {"prompt": 7})
    with pytest.raises(UserError, match=r"line 2: 'prompt' holds no prompt. --skip_bad_rows"):
        prompts_in(path)
    assert prompts_in(path, skip_bad_rows=True)[1] == ["why?"]


# --- Answers in files ---


def texts_of(written, prompt):
    return [answer["text"] for answer in written.to(prompt)]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "why?", "answer": "so"}, {"prompt": "why?", "answer": "no"}],
        [{"prompt": "why?", "outputs": [{"text": "so", "finish_reason": "stop"}, {"text": "no"}]}],  # vLLM
        [{"instruction": "why?", "output": "so"}, {"instruction": "why?", "output": "no"}],  # AlpacaEval
        [
            {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": a}]}
            for a in ("so", "no")
        ],
        [{"prompt": [{"role": "user", "content": " why? "}], "completions": ["so", "no"]}],
        [{"prompt": "user: why?", "answers": [{"model": "m", "text": "so"}, {"model": "m", "text": "no"}]}],
    ],
)
def test_answers_are_found_by_the_text_of_their_prompt(tmp_path, rows):
    path = write(tmp_path / "answers.jsonl", *rows)
    [written] = read_written([path]).values()
    assert texts_of(written, [{"role": "user", "content": "why?"}]) == ["so", "no"]
    assert written.to("who?") == []


def test_a_file_of_several_models_holds_them_apart(tmp_path):
    rows = [
        {"prompt": "user: why?", "answers": [{"model": "base", "text": "no"}, {"model": "tuned", "text": t}]}
        for t in "ab"
    ]
    found = read_written([write(tmp_path / "generations.jsonl", *rows)])
    prompt = [{"role": "user", "content": "why?"}]
    assert list(found) == ["base", "tuned"]
    assert texts_of(found["base"], prompt) == ["no", "no"]
    assert texts_of(found["tuned"], prompt) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "why?"}, "no prompts and answers"),
        ({"prompt": "why?", "answers": []}, "line 1: 'answers' holds no answer"),
        ({"prompt": "why?", "answers": [3]}, "line 1: 'answers' is a number"),
        ({"prompt": "", "answer": "so"}, "line 1: 'prompt' holds no prompt"),
        ({"prompt": "", "answer": None}, "line 2: 'prompt' holds no prompt"),
    ],
)
def test_a_row_that_is_no_answer_is_named(tmp_path, row, words):
    rows = [row] if row.get("answer", row) else [{"prompt": "why?", "answer": "so"}, row]
    with pytest.raises(UserError, match=words) as caught:
        read_written([write(tmp_path / "a.jsonl", *rows)])
    assert "--answers_from" in str(caught.value)


@pytest.mark.parametrize("name", ["answer", "answers"])
def test_an_answer_that_is_null_costs_its_prompt(tmp_path, name):
    """As scripts write of a request that has failed."""
    said = "so" if name == "answer" else ["so"]
    rows = [{"prompt": "why?", name: said}, {"prompt": "who?", name: None}]
    [found] = read_written([write(tmp_path / "a.jsonl", *rows)]).values()
    assert texts_of(found, "why?") == ["so"] and found.to("who?") == []


def test_an_answer_is_as_long_as_its_tokens_and_stands_apart_from_its_thought(base_tokenizer):
    words = base_tokenizer("the cat", add_special_tokens=False)["input_ids"]
    done = Answer.of("<think>well</think>the cat", "stop", base_tokenizer)
    assert (done.text, done.thought, done.is_finished) == ("the cat", "well", True)
    assert done.ids == [*words, base_tokenizer.eos_token_id]
    assert Answer.of("the cat", "length", base_tokenizer).ids == words  # cut off, so without its end
    assert Answer.of("<think>still", "length", base_tokenizer).text == ""
    assert Answer.of("the cat", None).ids == ["the", "cat"]


def test_only_prompts_that_everybody_has_answered_are_compared(tmp_path):
    rows = [{"prompt": f"p{n}", "answers": [str(n)] * (1 + n % 2)} for n in range(4)]
    [written] = read_written([write(tmp_path / "a.jsonl", *rows)]).values()
    sources = Sources([written.name], "base", "data", {written.name: written}, {})
    how = dict(most_prompts=3, tokenizer=None, temperature=1.0)
    prompts, count, answers = sources.answers_of_others(["x", "p0", "p1", "p2", "p3"], count=2, **how)
    assert (prompts, count) == (["p0", "p1", "p2"], 1)
    assert [[answer.text for answer in row] for row in answers[written.name]] == [["0"], ["1"], ["2"]]
    assert "no answer to 1 of 5 prompts" in sources.notes[0]
    assert "1 answer to a prompt" in sources.notes[1]
    with pytest.raises(UserError, match="no answer to any prompt of data"):
        sources.answers_of_others(["x", "y"], count=2, **how)


# --- Who is evaluated


def sources_of(tmp_path, *answers_from, **flags):
    """What the flags name, with no run and no model anywhere."""
    args = dict(models=[], reference=None, is_model_given=False, is_data_given=True, source="data", encoding="utf-8")
    args |= dict(dataset_streaming=False, answers_url=None, answers_model=None, answers=None, judge="auto")
    args = SimpleNamespace(**args | {"answers_from": list(answers_from), "data_kwargs": {}} | flags)
    training_args = SimpleNamespace(reads={}, seed=42)
    return sources_from_flags(args, training_args, SimpleNamespace(model_name_or_path=None))


@pytest.fixture
def files(tmp_path):
    """Answers that name no model, of two files; and of a model by name."""
    rows = {name: {"prompt": "why?", "answer": name} for name in ("one", "two")}
    made = {name: write(tmp_path / f"{name}.jsonl", row) for name, row in rows.items()}
    return made | {"m": write(tmp_path / "m.jsonl", rows["one"] | {"model": "m"})}


def test_a_file_that_names_no_model_is_of_the_one_that_is_evaluated(tmp_path, files):
    sources = sources_of(tmp_path, files["one"], models=["mine"], reference="base")
    assert list(sources.written) == ["mine"]
    assert sources.local == ["base"]
    sources = sources_of(tmp_path, files["one"], files["m"], models=["mine"], reference="m")
    assert list(sources.written) == ["m", "mine"]
    assert sources.local == []


def test_the_first_of_two_files_is_the_reference(tmp_path, files):
    sources = sources_of(tmp_path, files["one"], files["two"])
    assert (sources.reference, sources.names) == (files["one"], [files["two"]])


@pytest.mark.parametrize(
    ("seed", "share", "dataset"), [(7, 0.1, "data"), (42, 0.1, "data"), (7, 0, "data"), (7, 0.1, "b")]
)
def test_a_model_that_was_trained_on_other_prompts_is_named(base_model_folder, tmp_path, seed, share, dataset):
    run = shutil.copytree(base_model_folder, tmp_path / "run")
    (run / "metrics.json").write_text(json.dumps({"seed": seed, "dataset": dataset}))
    flags = dict(models=[str(run)], reference=str(base_model_folder), data_kwargs={"held_out_share": share})
    notes = sources_of(tmp_path, **flags).notes
    assert any("was trained with --seed 7" in note for note in notes) is ((seed, share, dataset) == (7, 0.1, "data"))


@pytest.mark.parametrize(
    ("given", "flags", "words"),
    [
        # not another evaluation, of the newest run or of a model that is trained now
        (
            ["one"],
            {"reference": "{one}"},
            "has answers of .*one.jsonl alone, and none to hold against it: add --models",
        ),
        (["m"], {"reference": "m"}, "has answers of m alone"),
        (["m"], {"reference": "m", "models": ["m"]}, "has answers of m alone"),
        # not left out in silence while the model that it is of answers once more
        (["one", "two"], {"reference": "{one}", "models": ["mine", "other"]}, "two.jsonl does not say whose answers"),
        (["one", "two"], {"reference": "base", "models": ["mine"]}, "one.jsonl does not say whose answers"),
        (["m"], {"reference": "base", "models": ["mine"]}, "has answers of m, and not of base, mine"),
    ],
)
def test_answers_that_belong_to_nobody_are_said(tmp_path, files, given, flags, words):
    flags = {flag: value.format(**files) if isinstance(value, str) else value for flag, value in flags.items()}
    with pytest.raises(UserError, match=words):
        sources_of(tmp_path, *(files[name] for name in given), **flags)


# --- Answers of a server ---


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.stop()


async def no_wait(seconds):
    await asyncio.sleep(0)


HOW = dict(temperature=1.0, max_tokens=16, seed=5)


def make(fake, tmp_path, **how):
    return AnswerServer(fake.url, "m", None, folder=tmp_path / "kept", wait=no_wait, **how)


def test_each_answer_is_asked_for_with_its_settings_and_a_seed_of_its_own(fake, tmp_path):
    answers = make(fake, tmp_path).ask(["why?", ASKED], 2, **HOW)
    assert [[answer["text"] for answer in row] for row in answers] == [
        ["why? 5", "why? 6"],
        ["where is it? 5", "where is it? 6"],
    ]
    body = json.loads(fake.asked[0])
    assert {name: body[name] for name in ("model", "temperature", "max_tokens", "top_p")} == {
        "model": "m", "temperature": 1.0, "max_tokens": 16, "top_p": 1.0,
    }  # fmt: skip


def test_what_has_come_is_not_asked_for_again_and_what_decides_it_is_in_its_key(fake, tmp_path):
    make(fake, tmp_path).ask(["why?"], 2, **HOW)
    make(fake, tmp_path).ask(["why?", "who?"], 2, **HOW)
    assert len(fake.asked) == len(set(fake.asked)) == 4
    make(fake, tmp_path).ask(["why?"], 1, **HOW | {"temperature": 0.5})
    AnswerServer(fake.url, "other", None, folder=tmp_path / "kept").ask(["why?"], 1, **HOW)
    assert len(fake.asked) == 6


def test_a_prompt_that_is_refused_costs_itself_alone(fake, tmp_path):
    fake.act = lambda body: (400, b"too long") if "bad" in str(body["messages"]) else None
    answers = make(fake, tmp_path).ask(["good", "bad", "fine"], 1, **HOW)
    assert [isinstance(row, str) for row in answers] == [False, True, False]
    assert "HTTP 400: too long" in answers[1]


def test_a_busy_server_is_asked_again(fake, tmp_path):
    left = iter([503, 429, 500])
    fake.act = lambda body: (status, b"busy") if (status := next(left, None)) else None
    [[answer]] = make(fake, tmp_path).ask(["why?"], 1, **HOW)
    assert answer["text"] == "why? 5"
    assert len(fake.asked) == 4


def test_a_server_that_is_gone_ends_it_and_what_came_is_kept(fake, tmp_path):
    prompts, numbers = [f"p{n}" for n in range(40)], count(1)  # of requests, which come side by side
    fake.act = lambda body: (500, b"gone") if next(numbers) > 12 else None
    with pytest.raises(UserError, match=r"gave up after \d+ failures in a row, the last: HTTP 500: gone"):
        make(fake, tmp_path, attempts=2).ask(prompts, 1, **HOW)
    fake.act, before = lambda body: None, len(fake.asked)
    assert len(make(fake, tmp_path).ask(prompts, 1, **HOW)) == 40
    assert len(fake.asked) - before == 40 - 12


@pytest.mark.parametrize("apart", [1, 9])
def test_prompts_that_are_refused_end_nothing_however_they_stand_and_however_often_it_is_asked(fake, tmp_path, apart):
    fake.act = lambda body: (400, b"too long") if "long" in str(body["messages"]) else None
    prompts = [f"long prompt {n}" if n % apart == 0 and n // apart < 6 else f"p{n}" for n in range(60)]
    for _ in range(2):  # the second time nothing is left to ask for but those
        answers = make(fake, tmp_path).ask(prompts, 1, **HOW)
        assert sum(isinstance(row, str) for row in answers) == 6
        assert answers[59][0]["text"] == "p59 5"
    assert len(fake.asked) == 60 + 6


def test_a_server_that_refuses_everything_is_given_up(fake, tmp_path):
    fake.act = lambda body: (400, b"no such model")
    with pytest.raises(UserError, match=r"gave up after 5 failures in a row, the last: HTTP 400: no such model"):
        make(fake, tmp_path).ask([f"p{n}" for n in range(60)], 1, **HOW)
    assert len(fake.asked) < 20


@pytest.mark.parametrize(
    ("message", "text", "thought"),
    [
        (
            {"content": None, "tool_calls": [{"function": {"name": "look_up", "arguments": '{"id": 7}'}}]},
            '<tool_call>\n{"name": "look_up", "arguments": {"id": 7}}\n</tool_call>',
            "",
        ),
        (
            {"content": "One moment.", "tool_calls": [{"function": {"name": "stop", "arguments": ""}}]},
            'One moment.\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
            "",
        ),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "well"}]},
                    {"type": "text", "text": "Yes"},
                    {"type": "text", "text": "."},
                ]
            },
            "Yes.",
            "well",
        ),
    ],
)
def test_calls_of_tools_are_written_out_and_typed_parts_are_put_together(fake, tmp_path, message, text, thought):
    fake.act = lambda body: (200, {"choices": [{"message": message, "finish_reason": "stop"}]})
    [[answer]] = make(fake, tmp_path).ask(["why?"], 1, **HOW)
    assert (answer["text"], answer["thought"]) == (text, thought)


def test_the_key_goes_to_the_server_and_into_no_file(fake, tmp_path):
    key = "sk-a-very-secret-key-0123456789"
    fake.act = lambda body: (200, {"choices": [{"message": {"content": f"your key is {key}"}}]})
    server = AnswerServer(fake.url, "m", key, folder=tmp_path / "kept")
    assert server.ask(["why?"], 1, **HOW)[0][0]["text"] == "your key is [key]"
    assert key not in "".join(file.read_text() for file in (tmp_path / "kept").iterdir())


def test_a_wrong_key_is_named_by_its_variable(fake, tmp_path):
    fake.act = lambda body: (401, b"no")
    with pytest.raises(UserError, match="DPO_ANSWERS_API_KEY"):
        make(fake, tmp_path).ask(["why?"], 1, **HOW)


def test_a_server_that_always_says_the_same_is_told(fake, tmp_path):
    fake.act = lambda body: (200, {"choices": [{"message": {"content": "same"}}]})
    sources = Sources(["m"], "base", "data", {}, {"m": make(fake, tmp_path)})
    sources.answers_of_others(["why?"], most_prompts=9, count=2, tokenizer=None, **HOW)
    assert "ignore temperature or seed" in sources.notes[0]


@pytest.mark.parametrize(
    ("refused", "sent"), [("temperature", None), ("seed", None), ("max_tokens", "max_completion_tokens")]
)
def test_a_setting_that_a_server_does_not_know_is_left_out(fake, tmp_path, refused, sent):
    told = f"Unsupported parameter: '{refused}'".encode()
    fake.act = lambda body: (400, told) if refused in body else None
    assert make(fake, tmp_path).ask(["why?"], 1, **HOW)[0][0]["text"].startswith("why?")
    body = json.loads(fake.asked[-1])
    assert refused not in body
    assert sent is None or body[sent] == 16
    sources = Sources(["m"], "base", "data", {}, {"m": make(fake, tmp_path)})
    sources.answers_of_others(["who?"], most_prompts=9, count=1, tokenizer=None, **HOW)
    assert sources.notes == ([] if sent else [f"the server of m takes no {refused}, and samples by its own."])


def test_an_answer_cut_off_in_its_thought_is_an_answer_without_text(fake, tmp_path):
    message = {"content": None, "reasoning": "well, well"}
    fake.act = lambda body: (200, {"choices": [{"message": message, "finish_reason": "length"}]})
    [[answer]] = make(fake, tmp_path).ask(["why?"], 1, **HOW)
    assert answer == {"text": "", "finish_reason": "length", "thought": "well, well"}
    assert len(fake.asked) == 1


# --- Kept on disk ---


class Said(NamedTuple):
    text: str
    ids: list


@pytest.fixture
def sampling(tmp_path, monkeypatch, base_tokenizer):
    """sample_kept with a model that counts, in a folder of its own; calls, and what ends it."""
    monkeypatch.setattr(kept_module.KeptAnswers.__init__, "__defaults__", (tmp_path,))
    model, calls = make_llama(), []

    def sample(model, tokenizer, prompts, *, seed, batch_size, temperature):
        if len(calls) == sampling.ends_at:
            raise KeyboardInterrupt
        calls.append(seed)
        return [Said(f"{prompt} {seed} {temperature}", [1]) for prompt in prompts]

    def sampling(prompts, fresh=False, model=model, **how):
        if fresh:
            kept_module._by_model.clear()
        how = dict(seed=1, batch_size=2, temperature=1.0) | how
        return [row[0] for row in sample_kept(sample, model, base_tokenizer, prompts, **how)]

    sampling.calls, sampling.ends_at, sampling.model = calls, math.inf, model
    return sampling


PROMPTS = ["aaa", "b", "cc", "dddd", "b"]


def test_answers_come_in_the_order_of_their_prompts_and_each_batch_has_a_seed_of_its_own(sampling):
    said = sampling(PROMPTS)
    assert [text.split()[0] for text in said] == PROMPTS
    assert len(sampling.calls) == len(set(sampling.calls)) == 3


def test_an_interrupted_sampling_goes_on_where_it_was(sampling):
    sampling.ends_at = 2
    with pytest.raises(KeyboardInterrupt):
        sampling(PROMPTS)
    sampling.ends_at = math.inf
    resumed = sampling(PROMPTS, fresh=True)
    assert len(sampling.calls) == len(set(sampling.calls)) == 3
    assert resumed == sampling(PROMPTS, fresh=True, seed=1)
    assert len(sampling.calls) == 3


def test_what_decides_an_answer_is_in_its_key(sampling):
    sampling(PROMPTS)
    for how in ({"seed": 2}, {"temperature": 0.5}):
        before = len(sampling.calls)
        sampling(PROMPTS, fresh=True, **how)
        assert len(sampling.calls) == before + 3, how
    sampling.model.lm_head.weight.data[0, 0] += 1e-3
    sampling(PROMPTS, fresh=True)
    assert len(sampling.calls) == 12


def test_a_model_that_was_trained_in_between_answers_anew(sampling):
    """In one process: nothing is loaded again that would tell."""
    sampling(PROMPTS)
    optimizer = torch.optim.AdamW(sampling.model.parameters(), lr=0.1)
    sampling.model.lm_head.weight.sum().backward()
    optimizer.step()
    sampling(PROMPTS)
    assert len(sampling.calls) == 6
    sampling(PROMPTS, fresh=True)
    assert len(sampling.calls) == 6  # under the weights of now


def test_a_model_with_its_adapter_off_is_another_one(sampling):
    model = get_peft_model(sampling.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    sampling(PROMPTS, model=model)
    with model.disable_adapter():
        sampling(PROMPTS, model=model)
    assert len(sampling.calls) == 6
    sampling(PROMPTS, model=model)
    assert len(sampling.calls) == 6


@pytest.mark.parametrize("damage", ["flipped", "cut", "garbage"])
def test_what_is_damaged_is_said_and_made_anew(sampling, tmp_path, damage, caplog):
    whole = sampling(PROMPTS)
    [file] = tmp_path.glob("*.jsonl")
    spoil(file, damage)
    with caplog.at_level(logging.WARNING, "dpo"):
        assert sampling(PROMPTS, fresh=True) == whole
    assert "damaged" in caplog.text
    assert len(sampling.calls) > 3


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    kept = KeptAnswers("m", tmp_path / "file")
    kept.put("key", ["a"])
    assert "cannot be kept" in caplog.text


# --- The user's texts ---


def test_a_text_file_is_paragraphs_and_a_table_has_a_column(tmp_path):
    (tmp_path / "t.txt").write_text("One\nline.\n\n\n\nTwo.\n")
    assert read_texts(str(tmp_path / "t.txt")) == ["One\nline.", "Two."]
    assert read_texts(write(tmp_path / "t.jsonl", {"text": "a"}, {"text": "b", "id": 1})) == ["a", "b"]
    with pytest.raises(UserError, match=r"--texts .*line 1: there is no text in a column called text"):
        read_texts(write(tmp_path / "u.jsonl", {"body": "a"}))
    assert read_texts(None) is None


def test_texts_are_cut_into_pieces_and_their_first_tokens_are_not_predicted(base_tokenizer, tiny_llama):
    ids = base_tokenizer("the cat sat on the mat")["input_ids"]
    windows = text_windows(["the cat sat on the mat", "x"], tiny_llama, base_tokenizer, 4)
    assert windows.rows[0] == (ids[:1], ids[1:4])
    assert windows.count == 1  # one token has nothing to predict
    pieces = [ids[start : start + 4] for start in range(0, len(ids), 4)]
    assert windows.tokens.tolist() == [sum(len(piece) - 1 for piece in pieces)]


def test_the_loss_per_token_by_hand():
    rows = [([0], [1, 2, 3]), ([0], [1]), ([0], [1, 2])]
    windows = Windows(rows, np.array([0, 0, 1]), 2)  # texts of 4 and 2 predicted tokens
    measured = text_losses(np.array([-6.0, -2.0, -4.0]), np.array([-3.0, -1.0, -2.0]), windows)
    assert measured["text_loss"][0] == pytest.approx(12 / 6)
    assert measured["text_loss_reference"][0] == pytest.approx(6 / 6)
    assert measured["text_loss_change"][0] == pytest.approx(1.0)
