"""Answers that others have written: read from files, matched to prompts by their text.

    written = read_written(["generations.jsonl"])          # {"runs/basic": WrittenAnswers, "demo/model": ...}
    written["runs/basic"].to(prompt)                       # [Answer("Restart it.", ...), ...], empty where there is none

A row has a prompt and an answer, or several in a list, in any columns of docs/evaluation.md; where rows name who has
answered, a file holds several models, else one that is called as the file is. The answers are texts: their tokens are
counted by the tokenizer at hand, and where there is none their words are.
"""

import json
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from ..common.chat import MARKS, as_text, split_thought
from ..common.errors import UserError
from ..data.files import open_splits
from ..readings.prompts import answers_reading, convert_answers
from ..readings.texts import Unusable, as_turns


class Answer(NamedTuple):
    """An answer that was not sampled here; the fields of dpo_utils' Completion that can be had."""

    text: str
    ids: list  # its tokens, or its words
    is_finished: bool | None  # None: nobody has said
    thought: str = ""
    prompt_ids: tuple = ()

    @classmethod
    def of(cls, text: str, finish_reason: str | None, tokenizer=None, thought: str = "") -> "Answer":
        """An answer as a text; a thought in it stands apart. finish_reason: as OpenAI has it; "length" was cut off."""
        is_finished = None if finish_reason is None else finish_reason != "length"
        found, text = split_thought(text, *MARKS, is_finished is not False)
        ids = text.split()
        if tokenizer is not None:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = ids if is_finished is False else [*ids, tokenizer.eos_token_id]  # as one that was sampled has it
        return cls(text, ids, is_finished, thought or found)

    @classmethod
    def counted_by(cls, tokenizer, answer) -> "Answer":
        """A completion that was sampled in other tokens, with its thought."""
        finish_reason = "stop" if answer.is_finished else "length"
        made = cls.of(f"{answer.thought}{answer.text}", finish_reason, tokenizer)
        return made._replace(text=answer.text, thought=answer.thought)


class WrittenAnswers:
    """What one model has answered, by prompt."""

    def __init__(self, name: str):
        self.name = name
        self._by_prompt: dict[str, list[dict]] = {}

    def add(self, prompt, answer: dict) -> None:
        """answer: {"text", "finish_reason"}."""
        self._by_prompt.setdefault(_key(prompt), []).append(answer)

    def to(self, prompt) -> list[dict]:
        """The answers to a prompt: its turns have the same roles and texts, or it is written as `as_text` writes it."""
        keys = _key(prompt), _key(as_text(prompt))
        return next((self._by_prompt[key] for key in keys if key in self._by_prompt), [])

    def fewest(self, prompts: Iterable) -> int:
        """Answers to that one of some prompts which has the fewest."""
        return min(len(self.to(prompt)) for prompt in prompts)


def _key(prompt) -> str:
    turns = [(turn["role"], str(turn.get("content") or "").strip()) for turn in as_turns(prompt, "user")]
    return json.dumps(turns)


def read_written(files: list[str], encoding: str = "utf-8") -> dict[str, WrittenAnswers]:
    """The answers in some files, by the name of their model, in the order in which they are met. Raises UserError."""
    by_model: dict[str, WrittenAnswers] = {}
    for file in files:
        try:
            [rows] = list(open_splits(file, encoding=encoding).values())[:1]
            first = [row.value for row in islice(rows, 100) if row.fault is None and isinstance(row.value, dict)]
            if not first:
                raise ValueError("there are no rows with named columns in it")
            reading = answers_reading(first)
            for row in rows:
                _read_row(row, reading, file, by_model)
        except ValueError as error:  # also what cannot be used of a row
            text = str(error).rstrip(".")
            named = "" if file in text else f"{file}: "
            raise UserError(f"--answers_from {named}{text}.") from error
    return by_model


def _read_row(row, reading, file: str, by_model: dict[str, WrittenAnswers]) -> None:
    try:
        if row.fault is not None or not isinstance(row.value, dict):
            raise Unusable("unreadable", row.fault or "is no object with named columns")
        made = convert_answers(row.value, reading)
    except Unusable as error:
        raise ValueError(f"{row.where}: {error}") from error
    for answer in made["answers"]:
        name = answer.get("model") or file
        by_model.setdefault(name, WrittenAnswers(name)).add(made["prompt"], answer)
