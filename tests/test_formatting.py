"""Rows of several forms become prompt, chosen and rejected; prompts are shortened where it hurts least."""

import pytest
from transformers import AutoTokenizer

from dpo_utils import PLAIN_CHAT_TEMPLATE, UserError, format_pair
from machinery.conversations import split_text
from machinery.shorten import shorten_prompt

USER, REPLY = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}
CURT = {"role": "assistant", "content": "What"}


@pytest.fixture(scope="module")
def chat_tokenizer():
    return AutoTokenizer.from_pretrained("demo/model")


def formatted(row, tokenizer, **options):
    pair = format_pair(row, 0, tokenizer, **options)
    return pair["prompt"], pair["chosen"], pair["rejected"]


def test_conversations_stay_as_they_are(chat_tokenizer):
    row = {"prompt": [USER], "chosen": [REPLY], "rejected": [CURT]}
    assert formatted(row, chat_tokenizer) == ([USER], [REPLY], [CURT])


def test_plain_strings_become_turns_where_there_is_a_template(chat_tokenizer):
    row = {"prompt": "Hello", "chosen": "Good day", "rejected": "What"}
    assert formatted(row, chat_tokenizer) == ([USER], [REPLY], [CURT])
    assert formatted(row, chat_tokenizer, keep_plain=True) == ("Hello", "Good day", "What")


def test_plain_strings_stay_plain_where_there_is_none(base_tokenizer):
    row = {"prompt": "Hello", "chosen": "Good day", "rejected": "What"}
    assert formatted(row, base_tokenizer) == ("Hello", "Good day", "What")


def test_whole_conversations_are_split_at_the_last_turn(chat_tokenizer):
    row = {"chosen": [USER, REPLY, USER, REPLY], "rejected": [USER, REPLY, USER, CURT]}
    assert formatted(row, chat_tokenizer) == ([USER, REPLY, USER], [REPLY], [CURT])


def test_a_prompt_repeated_in_the_conversations_is_not_doubled(chat_tokenizer):
    row = {"prompt": "Hello", "chosen": [USER, REPLY], "rejected": [USER, CURT]}
    assert formatted(row, chat_tokenizer) == ([USER], [REPLY], [CURT])


def test_texts_are_never_split_inside_a_word():
    assert split_text("The city is Paris", "The city is Panama") == ("The city is", " Paris", " Panama")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, ["row 0", "'chosen'", "a number"]),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, ["row 0", "'prompt'", "null"]),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, ["'chosen'", "empty list"]),
        ({"prompt": "a", "chosen": [REPLY], "rejected": "c"}, ["some are text and some are lists"]),
        ({"prompt": "a", "chosen": [{"from": "gpt"}], "rejected": [CURT]}, ["no turn with a role"]),
        ({"chosen": [USER, REPLY], "rejected": [CURT, CURT]}, ["no beginning in common"]),
    ],
)
def test_a_bad_row_is_named(row, words, chat_tokenizer):
    with pytest.raises(UserError) as error:
        format_pair(row, 0, chat_tokenizer)
    assert all(word in str(error.value) for word in words)


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
