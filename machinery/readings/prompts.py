"""Rows that hold no pair: prompts alone, or prompts with their answers, by the names and cells that pairs have.

    reading = prompts_reading(rows)                        # Reading({"prompt": "question", "system": "system"})
    convert_prompt(row, reading)                           # {"prompt": [{"role": "user", ...}], "category": ...}
    reading = answers_reading(rows)
    convert_answers(row, reading)                          # {"prompt": ..., "answers": [{"text": "So.", ...}]}

A conversation brings its prompt along: all turns up to the last that is the user's.
"""

from .convert import answer_in, asked_in, list_at, system_of, with_carried
from .guesses import Names, listed, prompt_parts
from .reading import CARRIED, Reading, dig, filled
from .texts import Unusable, as_text, assemble, form_of, plain

MODEL_NAMES = ("model", "generator", "model_name", "model_id")  # who has answered
ENDINGS = ("finish_reason", "stop_reason")


def holds_prompts_alone(rows: list[dict]) -> bool:
    """Whether rows have a prompt and, by the usual names, no answer to it."""
    look = Names(rows, {})
    prompt = prompt_parts(look)
    if "prompt" not in prompt:
        return False
    pairs = ("answer_pairs", ("chosen", "rejected")), ("two_outputs", ("first", "second"))
    answers = [*look.all("answers"), *(path for path in look.all("answer") if path not in prompt.values())]
    return not answers and not any(True for kind, parts in pairs for _ in look.pairs(kind, parts))


def prompts_reading(rows: list[dict], columns: dict[str, str] | None = None) -> Reading:
    """Which columns make the prompt. columns: {part or usual name: the user's own path}. Raises ValueError."""
    look = Names(rows, columns or {})
    parts = prompt_parts(look)
    if "prompt" not in parts:
        raise ValueError(
            f"the columns {listed(rows)} hold no prompt that is known; say which does by --columns prompt=..."
        )
    parts |= {part: path for part, path in look.columns.items() if part in CARRIED}
    return Reading(parts, forms=_forms(rows, parts))


def answers_reading(rows: list[dict]) -> Reading:
    """Which columns hold prompts and answers to them: several in a list, or one. Raises ValueError."""
    look = Names(rows, {})
    parts = prompt_parts(look)
    several, one = look.first("answers", parts.values()), look.first("answer", parts.values())
    whole = look.first("conversation")
    if several or one:
        parts |= {"answers" if several else "answer": several or one}
    elif whole:
        parts = {"answer": whole}
    if not parts.keys() & {"answer", "answers"} or ("prompt" not in parts and parts.get("answer") != whole):
        raise ValueError(
            f"the columns {listed(rows)} are no prompts and answers; call them prompt and answer (or answers, for a list)"
        )
    return Reading(parts, forms=_forms(rows, parts))


def _forms(rows: list[dict], parts: dict[str, str]) -> dict[str, str]:
    return {part: form_of(filled(rows, path)) for part, path in parts.items() if part in ("prompt", "answer")}


def convert_prompt(row: dict, reading: Reading) -> dict:
    """A row's prompt, a text or turns, and what goes with it: tools, keywords of the template, a category.

    Raises Unusable.
    """
    row = with_carried(row, reading)
    prompt = asked_in(row, reading)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        while prompt and prompt[-1]["role"] == "assistant":
            prompt = prompt[:-1]
    if not prompt or not isinstance(prompt, (str, list)) or not plain(prompt).strip():
        raise Unusable("missing_field", f"{reading.parts['prompt']!r} holds no prompt")
    made = assemble(prompt, "", "", row, system_of(row, reading))
    return {name: value for name, value in made.items() if name not in ("chosen", "rejected")}


def convert_answers(row: dict, reading: Reading) -> dict:
    """A row's prompt and the answers to it, each {"text", "model", "finish_reason"}, None where the row does not say.

    Where the answer is null, as of a request that failed, there is none. Raises Unusable.
    """
    about = {"model": _first(row, MODEL_NAMES), "finish_reason": _first(row, ENDINGS)}
    if "prompt" not in reading.parts:  # a conversation
        turns = as_text(dig(row, reading.parts["answer"]), reading.parts["answer"], reading.forms["answer"])
        if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise Unusable("wrong_type", f"{reading.parts['answer']!r} is no conversation that ends with an answer")
        prompt = assemble(turns[:-1], "", "", row)["prompt"]
        return {"prompt": prompt, "answers": [about | {"text": turns[-1]["content"]}]}
    [part] = reading.parts.keys() & {"answer", "answers"}
    path = reading.parts[part]
    given = dig(row, path)
    if given is None:
        return {"prompt": convert_prompt(row, reading)["prompt"], "answers": []}
    is_list = part == "answers" and (not isinstance(given, str) or given.lstrip()[:1] == "[")
    given = (list_at(row, path) or []) if is_list else [given]
    answers = []
    for cell in given:
        own = {name: _first(cell, keys) for name, keys in (("model", MODEL_NAMES), ("finish_reason", ENDINGS))}
        text = plain(answer_in(cell, path, reading))
        answers.append({name: own[name] or about[name] for name in about} | {"text": text})
    if not answers:
        raise Unusable("missing_field", f"{path!r} holds no answer")
    return {"prompt": convert_prompt(row, reading)["prompt"], "answers": answers}


def _first(holder, keys: tuple[str, ...]) -> str | None:
    """The first of some values that is a text."""
    found = (holder.get(key) for key in keys) if isinstance(holder, dict) else ()
    return next((value for value in found if isinstance(value, str) and value), None)
