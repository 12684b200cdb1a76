"""A row by its reading: a pair, answers to be compared, or the reason why there is none.

    convert({"q": "Why?", "a": "So.", "b": "No.", "v": 0}, reading)     # {"prompt": "Why?", "chosen": "So.", ...}
    convert({"q": "Why?", "a": "So.", "b": "No.", "v": 7}, reading)     # Unusable: unknown_verdict

Every row is held to the reading: a verdict that it does not explain is a fault of its own kind, and so is a cell that is
written otherwise than its column. Answers that are to be compared come as {"prompt", "answers": [(answer, score), ...]}.
"""

import json

from .reading import CARRIED, Reading, dig, names, pairs_of_names
from .texts import (
    Text,
    Unusable,
    as_text,
    as_turn,
    as_turns,
    assemble,
    check_roles,
    extras_of,
    from_json,
    interleave,
    turns_of_prompt,
    with_system,
)
from .values import BAD, FIRST, GOOD, SECOND, TIE, TIES, as_score, canonical, explains, marks_of

MOST_VALUES = 1000  # of a verdict that are counted; a column of texts taken for one must not fill the memory


def convert(row: dict, reading: Reading) -> dict | list[dict]:
    """One pair {prompt, chosen, rejected, ...}, or answers, or a list of such. Raises Unusable."""
    return CONVERTERS[reading.kind](with_carried(row, reading), reading)


def with_carried(row: dict, reading: Reading) -> dict:
    """A row in which tools and the like stand under the names that `extras_of` looks for."""
    carried = CARRIED & reading.parts.keys()
    return row | {part: dig(row, reading.parts[part]) for part in carried} if carried else row


def reading_of_function(function, name: str) -> Reading:
    """A reading by a function that makes {prompt, chosen, rejected} of a row, or raises on what it cannot use."""

    def checked(row: dict) -> dict:
        try:
            made = function(row)
        except Unusable:
            raise
        except Exception as error:
            raise Unusable("converter_failed", f"{name}: {type(error).__name__}: {error}") from error
        if not isinstance(made, dict) or not {"chosen", "rejected"} <= made.keys():
            raise Unusable("converter_failed", f"{name} returned {made!r:.60}, not prompt, chosen and rejected")
        prompt = None if made.get("prompt") is None else as_text(made["prompt"], "prompt")
        texts = (as_text(made[part], part) for part in ("chosen", "rejected"))
        return assemble(prompt, *texts, row=made) | _given_scores(made, "score_chosen", "score_rejected")

    return Reading({}, title=f"rows that {name} converts", convert=checked)


# --- The parts of a row ----------------------------------------------------------------------------------------------


def _cell(row: dict, reading: Reading, part: str) -> Text | list[str]:
    path = reading.parts[part]
    value = dig(row, path)
    if value is None:
        raise Unusable("missing_field", f"{path!r} is missing")
    text = as_text(value, path, reading.forms.get(part, "text"))
    is_word = isinstance(text, str) and len(text) < 60 and part in ("chosen", "rejected")
    if is_word and _names_a_column(text, row, reading):
        raise Unusable("names_a_column", f"{path!r} is {text!r}, which names a column and is no answer")
    return text


def _names_a_column(text: str, row: dict, reading: Reading) -> bool:
    """Whether a short text is the name of a column left behind, or the letter of one: B beside response_a and response_b."""
    word, read = canonical(text), reading.parts.values()
    if any(canonical(key) == word for key in row if key not in read and isinstance(row[key], (str, list, dict))):
        return True
    return len(word) == 1 and any(
        word in (marks_of(pair) or ()) for pair in pairs_of_names("two_outputs") if pair[0] in row and pair[1] in row
    )


def asked_in(row: dict, reading: Reading) -> Text | list[str] | None:
    """The prompt, with the input of an instruction below it and the history of a conversation before it."""
    if "prompt" not in reading.parts:
        return None
    prompt = _cell(row, reading, "prompt")
    if "input" in reading.parts and isinstance(prompt, str):
        more = dig(row, reading.parts["input"])
        if not isinstance(more, str | None):
            raise Unusable("wrong_type", f"{reading.parts['input']!r} is no text")
        prompt = f"{prompt}\n\n{more}" if more else prompt
    earlier = dig(row, reading.parts["history"]) if "history" in reading.parts else None
    return [*_earlier(earlier), *as_turns(prompt, "user")] if earlier and _earlier(earlier) else prompt


def _earlier(history) -> list[dict]:
    """Earlier turns: a list of turns, or of [question, answer]."""
    history = from_json(history, list, "'history' is no list, nor a list written as JSON")
    if all(isinstance(turn, dict) for turn in history):
        return [as_turn(turn, "history") for turn in history]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in history):
        raise Unusable("wrong_type", "'history' holds neither turns nor pairs of question and answer")
    return [turn for question, answer in history for turn in interleave([question], [answer], "history")]


def system_of(row: dict, reading: Reading):
    """What stands in the column of system prompts; None where the reading has none."""
    return dig(row, reading.parts["system"]) if "system" in reading.parts else None


def _asked(row: dict, reading: Reading, answers: list[tuple[Text, float]]) -> dict:
    """A prompt with the answers to it that are to be compared, each with its score or label."""
    prompt, system = asked_in(row, reading), system_of(row, reading)
    if prompt is None:
        raise Unusable("missing_field", "'prompt' is missing")
    if turns := turns_of_prompt(prompt):  # as `assemble` does, before a system turn makes it turns of another kind
        prompt = turns
        answers = [(a.removeprefix(" ") if isinstance(a, str) else a, worth) for a, worth in answers]
    return {"prompt": with_system(prompt, system) if system else prompt, "answers": answers, **extras_of(row)}


def _given_scores(row: dict, chosen: str | None, rejected: str | None) -> dict:
    """The scores of both answers, where there are some. They are carried along; the pair does not depend on them."""
    scores = {}
    for name, path in (("score_chosen", chosen), ("score_rejected", rejected)):
        try:
            scores[name] = as_score(dig(row, path), path) if path else None
        except Unusable:
            scores[name] = None
    return {name: score for name, score in scores.items() if score is not None}


def meant_by(value, reading: Reading) -> str:
    """What a value of the verdict or label means. Raises Unusable where the reading does not say."""
    word = canonical(value)
    key = explains(reading.meaning, word)
    if key or word in reading.tally or len(reading.tally) < MOST_VALUES:
        reading.tally[key or word] += 1
    if key:
        return reading.meaning[key]
    if not word:
        raise Unusable("missing_field", f"{reading.verdict!r} is missing")
    raise Unusable("unknown_verdict", f"{reading.verdict!r} is {value!r:.40}, which this reading gives no meaning")


# --- The kinds -------------------------------------------------------------------------------------------------------


def _preference(row: dict, reading: Reading) -> dict:
    if reading.forms.get("rejected") == "several" or reading.forms.get("chosen") == "several":
        answers = [(text, 1.0) for text in _several(row, reading, "chosen")]
        answers += [(text, 0.0) for text in _several(row, reading, "rejected")]
        return _asked(row, reading, answers)
    chosen, rejected = _cell(row, reading, "chosen"), _cell(row, reading, "rejected")
    scores = (reading.parts.get("score_chosen"), reading.parts.get("score_rejected"))
    return _pair(row, reading, chosen, rejected) | _given_scores(row, *scores)


def _several(row: dict, reading: Reading, part: str) -> list[Text]:
    path = reading.parts[part]
    values = dig(row, path)
    if isinstance(values, str) and values.lstrip()[:1] == "[" and reading.forms.get(part) == "several":
        values = from_json(values, list, f"{path!r} is no list written as JSON")
    if isinstance(values, str) or (isinstance(values, list) and values and isinstance(values[0], dict)):
        values = [values]
    if not values:
        raise Unusable("missing_field", f"{path!r} holds no answer")
    if not isinstance(values, list):
        raise Unusable("wrong_type", f"{path!r} is no list of answers")
    return [as_text(value, path) for value in values]


def _pair(row: dict, reading: Reading, chosen, rejected) -> dict:
    # Whole conversations bring their prompt along, also where this row's prompt is empty.
    is_left_out = isinstance(chosen, list) and dig(row, reading.parts.get("prompt", "")) is None
    prompt = None if is_left_out else asked_in(row, reading)
    if reading.forms.get("prompt") == "lists":
        asked, prompt = [prompt] if isinstance(prompt, str) else prompt, prompt if isinstance(prompt, str) else None
        if prompt is None:
            answers = [[answer] if isinstance(answer, str) else answer for answer in (chosen, rejected)]
            chosen, rejected = (interleave(asked, answer, "the answers") for answer in answers)
    return assemble(prompt, chosen, rejected, row, system_of(row, reading))


def _named(row: dict, reading: Reading) -> dict:
    """chosen and rejected name the columns that hold the answers."""
    paths = [meant_by(dig(row, reading.parts["chosen"]), reading)]
    word = canonical(dig(row, reading.parts["rejected"]))
    paths.append(reading.meaning.get(word))
    if TIE in paths:
        raise Unusable("tie", "neither answer is preferred")
    if paths[1] is None or paths[0] == paths[1]:
        what = "the same column" if paths[1] else "no column"
        raise Unusable("unknown_verdict", f"{reading.parts['rejected']!r} is {word!r:.40}, which names {what}")
    texts = [dig(row, path) for path in paths]
    if None in texts:
        raise Unusable("missing_field", f"{paths[texts.index(None)]!r} is missing")
    form = reading.forms.get("chosen", "text")
    return _pair(row, reading, *(as_text(text, path, form) for text, path in zip(texts, paths, strict=True)))


def _side(row: dict, reading: Reading) -> str:
    """Which of two answers is better: "first" or "second"."""
    value = dig(row, reading.parts["verdict"])
    if reading.models:
        models = [dig(row, model) for model in reading.models]
        if canonical(value) in TIES and value not in models:
            raise Unusable("tie", "neither answer is preferred")
        if value in (None, "") or models.count(value) != 1:
            fault = "missing_field" if value in (None, "") else "unknown_verdict"
            raise Unusable(fault, f"{reading.verdict!r} is {value!r:.40}, and the models are {models!r:.80}")
        return (FIRST, SECOND)[models.index(value)]
    side = meant_by(value, reading)
    if side == TIE:
        raise Unusable("tie", "neither answer is preferred")
    if "other" in reading.parts:
        other = dig(row, reading.parts["other"])
        if other not in (None, "") and reading.meaning.get(canonical(other)) not in {FIRST, SECOND} - {side}:
            seen = f"{reading.verdict!r} is {value!r:.40} and {reading.parts['other']!r} is {other!r:.40}"
            raise Unusable("unknown_verdict", f"{seen}: they do not name one answer each")
    return side


def _two_outputs(row: dict, reading: Reading) -> dict:
    return _sided(row, reading, _side(row, reading))


def _two_scores(row: dict, reading: Reading) -> dict:
    one, two = (reading.parts["score_first"], reading.parts["score_second"])
    first, second = as_score(dig(row, one), one), as_score(dig(row, two), two)
    if first == second:
        raise Unusable("tie", "both answers have the same score")
    return _sided(row, reading, FIRST if first > second else SECOND)


def _sided(row: dict, reading: Reading, side: str) -> dict:
    holder, _, name = reading.parts[side].rpartition(".")
    if holder and name == "text" and dig(row, f"{holder}.finish_reason") == "length":
        raise Unusable("cut_off", f"{reading.parts[side]!r} is preferred, and was cut off before its end")
    texts = {part: _cell(row, reading, part) for part in (FIRST, SECOND)}
    if "turn" in reading.parts:  # the verdict is about so many exchanges of the conversations
        end = 2 * int(as_score(dig(row, reading.parts["turn"]), reading.parts["turn"]))
        if end < 2:
            raise Unusable("wrong_type", f"{reading.parts['turn']!r} is below 1, and counts exchanges from 1")
        if not all(isinstance(text, list) for text in texts.values()):
            raise Unusable(
                "wrong_type", f"{reading.parts['turn']!r} counts exchanges, and the answers are no conversations"
            )
        texts = {part: text[:end] for part, text in texts.items()}
    other = SECOND if side == FIRST else FIRST
    scores = (reading.parts.get(f"score_{side}"), reading.parts.get(f"score_{other}"))
    return _pair(row, reading, texts[side], texts[other]) | _given_scores(row, *scores)


def _answers(row: dict, reading: Reading) -> dict:
    listed = reading.parts["answers"]
    scored = reading.parts.get("scores") or reading.parts["labels"]
    answers, scores = (list_at(row, path) for path in (listed, scored))
    if not answers:
        raise Unusable("missing_field", f"{listed!r} holds no answer")
    if scores is None or len(scores) != len(answers):
        raise Unusable("wrong_type", f"there are {len(answers)} answers, and as many scores are needed in {scored!r}")
    worth = [_label(score, reading) if "labels" in reading.parts else as_score(score, scored) for score in scores]
    texts = [answer_in(answer, listed, reading) for answer in answers]
    return _asked(row, reading, list(zip(texts, worth, strict=True)))


def list_at(row: dict, path: str) -> list | None:
    """A list at a path, also where the column that holds it is JSON."""
    column, _, inside = path.partition("[]")
    value = dig(row, column)
    value = from_json(value, list, f"{column!r} is no list, nor one written as JSON") if value is not None else None
    return [dig(item, inside[1:]) for item in value] if inside and value else value


def answer_in(answer, path: str, reading: Reading) -> Text:
    """An answer as text or turns, out of the object that holds it where it is one."""
    if isinstance(answer, dict) and not answer.keys() & {"role", "from"}:
        name = next((name for name in (*names("answer"), "content", "value") if name in answer), None)
        answer = answer[name] if name else None
    return as_text(answer, path, reading.forms.get("answers", "text"))


def _label(value, reading: Reading) -> float:
    return {GOOD: 1.0, BAD: 0.0}[meant_by(value, reading)]


def _single(row: dict, reading: Reading) -> dict:
    """An answer in a row of its own, with its score or its label; it may be a conversation that brings its prompt along."""
    parts = reading.parts
    worth = (
        as_score(dig(row, parts["score"]), parts["score"])
        if "score" in parts
        else _label(dig(row, parts["label"]), reading)
    )
    answer = _cell(row, reading, "answer")
    if "prompt" in parts:
        return _asked(row, reading, [(answer, worth)])
    if isinstance(answer, str) or len(answer) < 2:
        raise Unusable("wrong_type", f"{parts['answer']!r} is no conversation of a question and its answer")
    prompt, answer = answer[:-1], answer[-1:]
    check_roles(prompt, answer)
    return {"prompt": prompt, "answers": [(answer, worth)], **extras_of(row)}


def _tree(row: dict, reading: Reading) -> list[dict]:
    """Every place of a tree of messages where several answers are ranked: {"role", "text", "rank", "replies"}."""
    root, found = dig(row, reading.parts["tree"]), []
    if not isinstance(root, dict):
        raise Unusable("missing_field", f"{reading.parts['tree']!r} is no tree of messages")
    open_nodes = [([], root)]
    while open_nodes:
        before, node = open_nodes.pop()
        turns = [*before, as_turn(node, reading.parts["tree"])]
        replies = [reply for reply in node.get("replies") or [] if isinstance(reply, dict)]
        open_nodes += [(turns, reply) for reply in reversed(replies)]
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if turns[-1]["role"] == "user" and len(ranked) > 1:
            answers = [([as_turn(reply, "replies")], as_score(reply["rank"], "rank")) for reply in ranked]
            found.append({"prompt": turns, "answers": answers})
    if not found:
        raise Unusable("no_partner", "no message of the tree has two ranked answers")
    return found


def _message(row: dict, reading: Reading) -> dict:
    """One message of a tree whose messages are rows: its turn, its name and its parent's, its score if it has one."""
    name, parent, text, rank, role = (
        dig(row, reading.parts[part]) for part in ("message", "parent", "answer", "score", "role")
    )
    for part, identity in (("message", name), ("parent", parent)):
        if not isinstance(identity, str | int | float | None):
            raise Unusable("wrong_type", f"{reading.parts[part]!r} is no name of a message")
    score = None if rank in (None, "") else as_score(rank, reading.parts["score"])
    turn = as_turn({"role": role, "content": text}, reading.parts["answer"])
    return {"message": name, "parent": None if parent == "" else parent, "turn": turn, "score": score}


CONVERTERS = {
    "messages": _message,
    "preference": _preference,
    "named": _named,
    "two_outputs": _two_outputs,
    "two_scores": _two_scores,
    "scored_answers": _answers,
    "labelled_answers": _answers,
    "scored_rows": _single,
    "unpaired": _single,
    "tree": _tree,
    "converter": lambda row, reading: reading.convert(row),
}


def shown(row: dict, reading: Reading) -> str:
    """The pair of a row in one line, for a person who has to choose between readings."""
    try:
        made = convert(row, reading)
    except Unusable as error:
        return f"{error.fault}: {error}"
    made = made[0] if isinstance(made, list) else made
    said = {part: _short(made[part]) for part in ("prompt", "chosen", "rejected") if part in made}
    said |= {f"answer of {score:g}": _short(text) for text, score in made.get("answers", ())}
    return ", ".join(f"{part} {text}" for part, text in said.items())


def _short(text) -> str:
    words = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if isinstance(text, list) and text and isinstance(text[-1], dict):
        words = str(text[-1].get("content"))
    return repr(words[:40] + "..." * (len(words) > 40))
