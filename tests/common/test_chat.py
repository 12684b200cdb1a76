"""Training, sampling and judging see one and the same prompt, whatever the template makes of thoughts and tools."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dpo_utils import load_preferences, pair_ids, pick_prompts, prompt_ids, sample_completions
from machinery.common.chat import Turns, as_text, read_reply, split_thought, thought_marks
from machinery.data.tokens import shorten_prompt, token_facts

# It thinks like Qwen3: an empty thought before an answer that has none, and behind a prompt only where it is asked for.
THINKS = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
    "{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ASK = {"role": "user", "content": "Where is my parcel?"}
TOOLS = [{"type": "function", "function": {"name": "track", "parameters": {}}}]


def answer(text: str, thought: str | None = None) -> list[dict]:
    return [{"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})]


KINDS = {
    "plain": {"chosen": answer("On its way."), "rejected": answer("No idea.")},
    "told not to think": {
        "chosen": answer("On its way."), "rejected": answer("No idea."),
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "told to think, and does not": {
        "chosen": answer("On its way."), "rejected": answer("No idea."),
        "chat_template_kwargs": {"enable_thinking": True},
    },
    "thinks": {
        "chosen": answer("On its way.", "Look it up."), "rejected": answer("No idea.", "Say nothing."),
        "chat_template_kwargs": {"enable_thinking": True},
    },
    "tools": {"chosen": answer("On its way."), "rejected": answer("No idea."), "tools": json.dumps(TOOLS)},
}  # fmt: skip


@pytest.fixture
def tokenizer():
    loaded = AutoTokenizer.from_pretrained("demo/model")
    loaded.chat_template = THINKS
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_begins_where_the_trained_answers_do(kind, tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": [ASK], **KINDS[kind]}) + "\n")
    pairs, _, _ = load_preferences(str(path), tokenizer)
    [prompt] = pick_prompts(pairs, 4)
    start = tokenizer.decode(prompt_ids(tokenizer, prompt))
    trained, chosen, _ = pair_ids(pairs[0], tokenizer)
    assert tokenizer.decode(trained + chosen).startswith(start)
    assert ("track" in start) == (kind == "tools")
    rest = tokenizer.decode(trained + chosen)[len(start) :]
    assert rest.startswith("<think>\nLook it up." if kind == "thinks" else "On its way.")


def test_a_prompt_is_shortened_as_it_is_trained_on(tokenizer):
    tokenizer.chat_template = "{% if wide %}{{ 'a ' * 30 }}{% endif %}" + THINKS
    long = [{"role": "user", "content": "please " * 60 + "help"}]
    narrow, wide = (shorten_prompt(long, tokenizer, 80, None, kwargs) for kwargs in (None, {"wide": True}))
    assert len(wide[0]["content"]) < len(narrow[0]["content"]) < len(long[0]["content"])


def test_thought_and_answer_are_told_apart():
    marks = ("<think>", "</think>")
    assert split_thought("<think>\nHm.\n</think>\n\nYes.", *marks) == ("Hm.", "Yes.")
    assert split_thought("<think>\nHm, and", *marks, is_finished=False) == ("Hm, and", "")
    assert split_thought("Yes.", *marks) == ("", "Yes.")
    assert split_thought("Yes, and", *marks, is_finished=False) == ("", "Yes, and")
    assert split_thought("Hm, and", "", "</think>", is_finished=False) == ("Hm, and", "")  # the prompt opened it


def test_the_marks_of_a_thought_are_the_template_s(tokenizer):
    assert thought_marks(tokenizer) == ("<think>", "</think>")
    tokenizer.chat_template = THINKS.replace("<think>", "<seed:think>").replace("</think>", "</seed:think>")
    assert thought_marks(tokenizer) == ("<seed:think>", "</seed:think>")


def test_a_thought_that_was_cut_off_is_said_and_is_no_answer(tokenizer, caplog):
    model = AutoModelForCausalLM.from_pretrained("demo/model")
    prompt = Turns([ASK], thinks=True)
    tokenizer.chat_template = THINKS.replace(
        "assistant\n{% if en", "assistant\n<think>{% if en"
    )  # opened by the prompt
    with caplog.at_level(logging.WARNING, "dpo"):
        [reply] = sample_completions(model, tokenizer, [prompt], max_new_tokens=3, progress="replies")
    assert (reply.text, reply.is_finished) == ("", False)
    assert reply.thought
    assert "1 of 1 ended inside their thought" in caplog.text
    assert "--max_new_tokens 3" in caplog.text


def test_a_template_that_drops_thoughts_is_found(tokenizer):
    facts = token_facts([ASK], *(KINDS["thinks"][part] for part in ("chosen", "rejected")), tokenizer)
    assert "thought_left_out" not in facts["flags"]
    tokenizer.chat_template = THINKS.replace("{{ m.reasoning_content | default('') }}", "")
    facts = token_facts([ASK], *(KINDS["thinks"][part] for part in ("chosen", "rejected")), tokenizer)
    assert "thought_left_out" in facts["flags"]


def test_any_of_several_eos_tokens_ends_a_reply(tokenizer):
    model = AutoModelForCausalLM.from_pretrained("demo/model")
    asked = dict(max_new_tokens=12, temperature=0)
    [whole] = sample_completions(model, tokenizer, [[ASK]], **asked)
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, whole.ids[4]])
    [ended] = sample_completions(model, tokenizer, [[ASK]], **asked)
    assert ended.is_finished
    assert ended.ids == whole.ids[: whole.ids.index(whole.ids[4]) + 1]


@pytest.mark.parametrize("asked", [None, {"enable_thinking": False}, {"enable_thinking": True}])
def test_of_prompts_alone_those_that_ask_for_a_thought_get_one(tokenizer, asked):
    [prompt] = pick_prompts([{"prompt": [ASK], "chat_template_kwargs": asked}], 1)
    start = tokenizer.decode(prompt_ids(tokenizer, prompt))
    assert prompt.thinks is start.endswith("assistant\n") is bool(asked and asked["enable_thinking"])


@pytest.mark.parametrize(
    ("said", "is_finished", "thought", "text"),
    [
        ("<think>Hm.</think>On its way.", True, "Hm.", "On its way."),
        ("Hm.</think>On its way.", True, "Hm.", "On its way."),
        ("<think>Hm", False, "Hm", ""),
        ("On its way.", True, "", "On its way."),
    ],
)
def test_a_model_that_thinks_unasked_is_not_judged_by_its_thought(tokenizer, said, is_finished, thought, text):
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert read_reply(tokenizer, [ASK], ids, is_finished) == (thought, text)


def test_judges_read_the_tools():
    assert as_text(Turns([ASK], tools=json.dumps(TOOLS))).startswith('tools: [{"type"')
    assert as_text([ASK]) == "user: Where is my parcel?"


def test_sampling_draws_nothing_from_the_random_numbers_of_training(tokenizer):
    model = AutoModelForCausalLM.from_pretrained("demo/model")
    before = torch.get_rng_state()
    sample_completions(model, tokenizer, [Turns([ASK], thinks=True)], max_new_tokens=3)
    assert torch.equal(before, torch.get_rng_state())
