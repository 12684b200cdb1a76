"""Turn rows of every usual shape of preference data into pairs: a prompt, a chosen and a rejected answer.

    shape = recognise([{"question": "Why?", "response_j": "So.", "response_k": "No."}])
    print(shape.title)                                   # "question with response_j preferred to response_k"
    for made in make_pairs(rows, shape):                 # rows have .where, .value and .fault
        made["prompt"], made["chosen"], made["rejected"], made["rows"]      # a pair and the numbers of its rows
        made["fault"], made["text"], made["rows"]                           # or why a row gives none

A text is a string or a list of turns {"role", "content"}. What is converted is the form: the words of a text are never
changed, cut or stripped; only the marks of a transcript ("Human: ") become roles. Every row ends up in a pair or in a
fault. `SHAPES` at the end lists what is recognised, each with its converter; to add one, write a function from a row to
{"prompt", "chosen", "rejected"} and pass it to `shape_of_converter`.
"""

import difflib
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

# The names under which people keep these columns, the most telling first.
PROMPTS = ("prompt", "question", "instruction", "query", "user_input", "input", "history")
CONVERSATIONS = ("conversations", "conversation", "messages", "dialogue")
SYSTEMS = ("system", "system_prompt", "system_message")
ANSWER_PAIRS = (
    ("chosen", "rejected"),
    ("response_chosen", "response_rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_response", "dispreferred_response"),
    ("preferred_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_answer", "rejected_answer"),
    ("answer_chosen", "answer_rejected"),
    ("chosen_output", "rejected_output"),
    ("output_chosen", "output_rejected"),
    ("chosen_text", "rejected_text"),
    ("chosen_completion", "rejected_completion"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("win", "lose"),
    ("better", "worse"),
    ("good", "bad"),
    ("positive", "negative"),
)
TWO_OUTPUTS = tuple(
    (f"{name}{first}", f"{name}{second}")
    for name in ("response", "output", "answer", "completion", "conversation", "generation", "text", "messages")
    for first, second in (("_a", "_b"), ("_A", "_B"), ("_1", "_2"), ("_0", "_1"), ("_j", "_k"), ("1", "2"), ("0", "1"))
)
VERDICTS = ("preference", "preferred", "winner", "verdict", "choice", "better", "better_response_id", "label")
ANSWER_LISTS = ("completions", "responses", "answers", "candidates", "outputs", "generations")
SCORE_LISTS = ("scores", "ratings", "rewards", "ranks", "rankings", "score", "rating", "reward", "rank", "ranking")
ANSWERS = ("completion", "response", "answer", "output", "generation", "text")
SCORES = ("score", "rating", "reward", "overall_score", "quality", "rank", "ranking")
LABELS = ("label", "kto_tag", "is_good", "desirable", "thumbs_up")

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
KNOWN_ROLES = {"system", "developer", "user", "assistant", "tool"}
# kept beside role and content
TURN_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking", "function_call")
CARRIED = ("category", "score_chosen", "score_rejected")  # columns that evaluation reads
TRANSCRIPT_TURN = re.compile(r"(?:^\s*|\n\n|\r\n\r\n)(Human|User|Assistant|System):")

Text = str | list[dict]


class Unusable(ValueError):
    """A row that gives no pair; `fault` is the kind, the message what was seen."""

    def __init__(self, fault: str, message: str):
        super().__init__(message)
        self.fault = fault


class Shape(NamedTuple):
    """A recognised shape: how it is announced, and its converter."""

    name: str
    title: str
    convert: Callable[[dict], dict]  # a row to {prompt, chosen, rejected} or {prompt, answers: [(answer, score), ...]}
    is_grouped: bool = False  # the answers to a prompt stand in several rows
    ignored: tuple[str, ...] = ()  # columns that are left behind


# --- Recognising -----------------------------------------------------------------------------------------------------


def recognise(rows: list[dict], columns: dict[str, str] | None = None, name: str | None = None) -> Shape:
    """The shape of some rows, told by the columns they have between them.

    columns: {the name used here: the user's own, "a.b" for b inside a}. name: one of SHAPES, to settle it by hand.
    Raises ValueError that says what is missing.
    """
    columns = dict(columns or {})
    for ours, theirs in columns.items():
        if ours not in KNOWN_NAMES:
            nearest = difflib.get_close_matches(ours, KNOWN_NAMES, n=1)
            raise ValueError(
                f"{ours}={theirs}: there is no {ours} here" + (f"; did you mean {nearest[0]}?" if nearest else "")
            )
        if not any(_dig(row, theirs) is not None for row in rows):
            raise ValueError(f"{ours}={theirs}: there is no column {theirs}; there are {_names(rows)}")
    for key in dict.fromkeys(key for row in rows for key in row):  # " Chosen" is chosen
        usual = re.sub(r"[\s-]+", "_", key.strip().lower())
        if usual != key and usual in KNOWN_NAMES and usual not in columns and not any(usual in row for row in rows):
            columns[usual] = key
    renamed = [_rename(row, columns) for row in rows]
    have = {key for row in renamed for key, value in row.items() if value is not None}  # a column of nulls is none
    for shape_name in [name] if name else SHAPES:
        at = SHAPES[shape_name].match(have, renamed)
        if at:
            return _shape(shape_name, at, columns, have)
    if name is None:
        raise ValueError(
            f"the columns {_names(rows)} are of no shape that is known. Say which is which by --columns "
            "prompt=...,chosen=...,rejected=... (or completion and score, or output_1, output_2 and preference); "
            "docs/data.md has all shapes"
        )
    raise ValueError(f"the columns {_names(rows)} are not of the shape {name}, which has {SHAPES[name].needs}")


def shape_of_converter(convert: Callable[[dict], dict], name: str) -> Shape:
    """A shape from a function that makes {prompt, chosen, rejected} of a row, or raises on what it cannot use."""

    def checked(row: dict) -> dict:
        try:
            made = convert(row)
        except Unusable:
            raise
        except Exception as error:
            raise Unusable("converter_failed", f"{name}: {type(error).__name__}: {error}") from error
        if not isinstance(made, dict) or not {"chosen", "rejected"} <= made.keys():
            raise Unusable("converter_failed", f"{name} returned {made!r:.60}, not prompt, chosen and rejected")
        return assemble(made.get("prompt"), made["chosen"], made["rejected"], row=made)

    return Shape(name, f"rows that {name} converts", checked)


def _shape(name: str, at: dict, columns: dict[str, str], have: set[str]) -> Shape:
    kind = SHAPES[name]
    theirs = {part: columns.get(ours, ours) for part, ours in at.items()}
    is_instruction = "instruction" in (at.get("prompt"), theirs.get("prompt"))
    reads_input = is_instruction or columns.get("input", "input").strip().lower() != "input"  # named by the user
    used = {*at.values(), *at.get("named", ()), "tools", "chat_template_kwargs", *SYSTEMS, *CARRIED}
    if "prompt" in at:
        used.add("history")  # see _prompt_of
    if reads_input:
        used.add("input")
    ranks = [theirs[part] for part in ("score", "scores") if part in theirs and RANK.search(theirs[part])]
    title = kind.title.format(**theirs) + "".join(f" ({column}: the lowest is the best)" for column in ranks)
    at = at | {"theirs": theirs, "reads_input": reads_input}

    def convert(row: dict) -> dict:
        return kind.convert(_rename(row, columns), at)

    return Shape(name, title, convert, kind.is_grouped, tuple(sorted(have - used)))


def _names(rows: list[dict]) -> str:
    keys = dict.fromkeys(key for row in rows for key in row)
    return ", ".join(key if _values(rows, key) else f"{key} (always null)" for key in keys)


def _dig(row: dict, path: str):
    if path in row:
        return row[path]
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _rename(row: dict, columns: dict[str, str]) -> dict:
    """The row with the user's columns under our names; a column of ours that they replace gives way."""
    if not columns:
        return row
    taken = set(columns.values())
    kept = {key: value for key, value in row.items() if key not in taken and key not in columns}
    return kept | {ours: value for ours, theirs in columns.items() if (value := _dig(row, theirs)) is not None}


def _first(names: Iterable[str], have: set[str]) -> str | None:
    return next((name for name in names if name in have), None)


def _values(rows: list[dict], name: str) -> list:
    return [row[name] for row in rows if row.get(name) is not None]


def _first_pair(pairs: Iterable[tuple[str, str]], have: set[str]) -> tuple[str, str] | None:
    return next((pair for pair in pairs if have.issuperset(pair)), None)


# --- Texts and turns -------------------------------------------------------------------------------------------------


def as_text(value, name: str) -> Text:
    """A string, or a list of turns {"role", "content"}, from all the ways in which people write them."""
    if isinstance(value, str):
        return value if not value.startswith("[{") else _turns_in(value, name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unusable("missing_field", f"{name!r} is missing")
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            return as_text(value["messages"], name)
        return [as_turn(value, name)]
    if not isinstance(value, list):
        kind = (
            "true or false" if isinstance(value, bool) else "a number" if isinstance(value, (int, float)) else "no text"
        )
        raise Unusable("wrong_type", f"{name!r} is {kind}; text or a list of turns is needed")
    if not value:
        raise Unusable("wrong_type", f"{name!r} is an empty list")
    if len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return [as_turn(turn, name) for turn in value]


def _turns_in(text: str, name: str) -> Text:
    """The turns that a string holds as JSON, as tables have to; any other text as it is."""
    if re.match(r"\[\{'(role|content|from|value)'", text):
        raise Unusable("wrong_type", f"{name!r} is a conversation written as Python writes it; write it as JSON")
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_conversation = all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in turns)
    return as_text(turns, name) if is_conversation else text


def as_turn(turn, name: str) -> dict:
    """One turn as {"role", "content"} and, where there are some, its tool calls and the like."""
    if not isinstance(turn, dict):
        raise Unusable("wrong_type", f"{name!r} holds {turn!r:.40}, which is no turn with a role and a content")
    role = turn.get("role", turn.get("from"))
    role = ROLES.get(str(role).strip().lower(), str(role).strip().lower())
    if role not in KNOWN_ROLES:
        raise Unusable("roles", f"{name!r} has a turn of role {turn.get('role', turn.get('from'))!r:.40}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts = [
            part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise Unusable("wrong_type", f"{name!r} has a part that is no text, such as an image")
        content = "".join(parts)
    extras = {key: turn[key] for key in TURN_KEYS if turn.get(key)}
    if content is None and extras.keys() & {"tool_calls", "function_call"}:
        content = ""
    if not isinstance(content, str):
        fault = "missing_field" if content is None else "wrong_type"
        raise Unusable(fault, f"{name!r} has a turn of role {role} without text")
    return {"role": role, "content": content, **extras}


def assemble(prompt, chosen, rejected, row: dict, system=None) -> dict:
    """One pair: three strings or three lists of turns, with tools and the like from the row."""
    chosen, rejected = as_text(chosen, "chosen"), as_text(rejected, "rejected")
    prompt = None if prompt is None else as_text(prompt, "prompt")
    both = (chosen, rejected)
    if all(isinstance(text, str) for text in both) and (prompt is None or all(map(is_transcript, both))):
        chosen, rejected = parse_transcript(chosen, "chosen"), parse_transcript(rejected, "rejected")
    if _is_conversation(chosen) and _is_conversation(rejected):
        named = prompt
        prompt, chosen, rejected = split_conversations(chosen, rejected)
        if named is not None and plain(named).strip() not in plain(prompt) and not is_transcript(plain(named)):
            raise Unusable("different_prompts", "'prompt' is another than that of the conversations")
    if prompt is None:
        raise Unusable("missing_field", "'prompt' is missing")
    if turns := turns_of_prompt(prompt):
        prompt = turns
        chosen, rejected = (a.removeprefix(" ") if isinstance(a, str) else a for a in (chosen, rejected))
    if system is not None and system != "":
        prompt = _with_system(prompt, system)
    if not all(isinstance(text, str) for text in (prompt, chosen, rejected)):
        prompt, chosen, rejected = _as_turns(prompt, "user"), *(_as_turns(a, "assistant") for a in (chosen, rejected))
        for answer in (chosen, rejected):
            check_roles(prompt, answer)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_extras(row)}


def _with_system(prompt: Text, system) -> list[dict]:
    turn = {"role": "system", "content": plain(as_text(system, "system"))}
    turns = _as_turns(prompt, "user")
    return turns if turns[0] == turn else [turn, *turns]


def plain(text: Text) -> str:
    """The words of a text, its turns one below the other."""
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)


def _as_turns(text: Text, role: str) -> list[dict]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _is_conversation(text) -> bool:
    return isinstance(text, list) and text[0]["role"] in ("system", "developer", "user")


def is_transcript(text) -> bool:
    """Whether a text is paragraphs of "Human: ..." and "Assistant: ...", from its beginning."""
    mark = TRANSCRIPT_TURN.match(text) if isinstance(text, str) else None
    return (
        mark is not None
        and mark[1] != "Assistant"
        and any(later[1] == "Assistant" for later in TRANSCRIPT_TURN.finditer(text, mark.end()))
    )


def _extras(row: dict) -> dict:
    extras = {}
    tools = row.get("tools")
    if tools is None and isinstance(row.get("input"), dict):
        tools = row["input"].get("tools")
    if tools and (tools := _from_json(tools, list, "'tools' is no list, nor a list written as JSON")):
        extras["tools"] = json.dumps(tools)
    if kwargs := row.get("chat_template_kwargs"):
        refusal = "'chat_template_kwargs' is no object, nor one written as JSON"
        extras["chat_template_kwargs"] = _from_json(kwargs, dict, refusal)
    if isinstance(row.get("category"), str):
        extras["category"] = row["category"]
    for name in ("score_chosen", "score_rejected"):
        try:
            extras[name] = as_score(row[name], name)
        except (KeyError, Unusable):
            continue  # they are carried along for evaluation, and nothing depends on them here
    return extras


def _from_json(value, kind: type, refusal: str):
    """A list or object that a column holds as it is or written as JSON; Unusable with the refusal for all else."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise Unusable("wrong_type", refusal)
    return value


def split_conversations(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """Split two whole conversations before the last answer; where tools were called in it, before its first turn."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    rest = chosen[shared:] + rejected[shared:]
    if shared == 0 or any(turn["role"] not in ("assistant", "tool") for turn in rest):
        what = "begin differently" if shared == 0 else "differ before the last answer"
        raise Unusable("different_prompts", f"the two conversations {what}, so they have no prompt in common")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def parse_transcript(text: str, name: str) -> list[dict]:
    """The turns of "Human: ...", "Assistant: ..." paragraphs; the one space behind the colon belongs to the mark."""
    marks = list(TRANSCRIPT_TURN.finditer(text))
    if not marks or marks[0].start() > 0:
        raise Unusable(
            "no_prompt",
            f"there is no prompt, and {name!r} is no transcript of 'Human:' and 'Assistant:' turns, so nobody can tell "
            "where its prompt ends",
        )
    turns = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : following.start() if following else None]
        role = ROLES.get(mark[1].lower(), mark[1].lower())
        turns.append({"role": role, "content": content.removeprefix(" ")})
    return turns


def turns_of_prompt(prompt: Text) -> list[dict] | None:
    """The turns of a prompt that is a transcript, up to the "Assistant:" which the answer follows; else None."""
    if not is_transcript(prompt):
        return None
    *turns, last = parse_transcript(prompt, "prompt")
    try:
        check_roles(turns, [last])
    except Unusable:  # a text that quotes one
        return None
    return None if last["content"].strip() else turns


def check_roles(prompt: list[dict], answer: list[dict]) -> None:
    """Accept [system], then user and assistant in turn, with tool results behind an assistant's turn."""
    allowed = {
        None: {"system", "developer", "user"},
        "system": {"user"},
        "developer": {"user"},
        "user": {"assistant"},
        "assistant": {"user", "tool"},
        "tool": {"tool", "assistant", "user"},
    }
    before = None
    for number, turn in enumerate(prompt + answer):
        if turn["role"] not in allowed[before]:
            raise Unusable("roles", f"turn {number} is the {turn['role']}'s, behind {before or 'nothing'}")
        before = turn["role"]
    if prompt[-1]["role"] not in ("user", "tool") or any(turn["role"] not in ("assistant", "tool") for turn in answer):
        raise Unusable("roles", "the prompt must end before the assistant's turn, and the answers be the assistant's")
    if answer[-1]["role"] != "assistant":
        raise Unusable("roles", f"an answer ends with a turn of the {answer[-1]['role']}")


# --- Numbers, labels, verdicts ---------------------------------------------------------------------------------------


# rank, pos_rank, answerRank, RANK_1; and no reranker's score, nor a rank_score
RANK = re.compile(
    r"((?<![A-Za-z])rank|(?<![A-Za-z])RANK|(?<![A-Z])Rank)(s|ed|ing|ings|S|ED|ING|INGS)?(?![a-z])"
    r"(?![ _-]?(?i:score|reward|rating|logit))"
)


def as_score(value, name: str) -> float:
    """A finite number, also one written as text."""
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        fault = "missing_field" if value in (None, "") else "wrong_type"
        raise Unusable(fault, f"{name!r} is {value!r:.40}; a number is needed") from None
    if not math.isfinite(score):
        raise Unusable("missing_field", f"{name!r} is {score}; a finite number is needed")
    return -score if RANK.search(name) else score  # rank 1 is the best


GOOD, BAD = {"true", "1", "good", "desirable", "yes", "up"}, {"false", "0", "-1", "bad", "undesirable", "no", "down"}


def as_label(value, name: str) -> float:
    """1.0 for good, 0.0 for bad."""
    word = str(value).strip().lower().removesuffix(".0")
    if word not in GOOD | BAD:
        fault = "missing_field" if value in (None, "") else "wrong_type"
        raise Unusable(fault, f"{name!r} is {value!r:.40}; true or false is needed")
    return float(word in GOOD)


TIES = ("tie", "both", "equal", "same", "neither")


def marks_of(names: tuple[str, str]) -> tuple[str, ...]:
    """What tells two columns apart: a and b of answer_a and answer_b, 1 and 2 of response1 and response2."""
    return tuple(re.search(r"(\d+|[a-z])$", name.lower())[1] for name in names)


def verdict_scale(values: list, names: tuple[str, str], column: str) -> int | None:
    """The number that stands for the first of two columns, told from the numbers in use; None where words are used.

    Raises ValueError where they can be read in two ways: 0 and 1 beside columns that are numbered 1 and 2, or nothing
    but 1, as at the head of a file that is sorted by its verdict.
    """
    numbers = {float(value) for value in values if _is_number(value)}
    if not numbers:
        return None
    if not numbers <= {0.0, 0.5, 1.0, 1.5, 2.0}:
        odd = next(iter(numbers - {0.0, 0.5, 1.0, 1.5, 2.0}))
        raise ValueError(
            f"{column} holds {odd:g}, which is neither 1 nor 2 nor a tie. Write a converter (docs/data.md)"
        )
    marks = marks_of(names)
    if marks == ("0", "1") and numbers & {0.0, 0.5} and 2.0 not in numbers:
        return 0
    if numbers & {1.5, 2.0}:
        return 1
    raise ValueError(
        f"{column} holds {', '.join(f'{number:g}' for number in sorted(numbers))} beside {names[0]} and {names[1]}, "
        "which can be read in two ways. Write the column's name in it instead, or a converter (docs/data.md)"
    )


def _is_number(value) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def as_verdict(value, names: tuple[str, str], column: str, first: int | None) -> int:
    """0 or 1: which of two columns is preferred. first: see verdict_scale. A tie is a fault of its own."""
    word = str(value).strip().lower()
    if _is_number(value) and first is not None:
        if float(value) - first in (0.0, 1.0):
            return int(float(value) - first)
        if float(value) in (0.0, 0.5, 1.5):
            raise Unusable("tie", "neither answer is preferred")
    if word.startswith(TIES):
        raise Unusable("tie", "neither answer is preferred")
    for number, (name, mark) in enumerate(zip(names, marks_of(names), strict=True)):
        known = {f"{what}_{mark}" for what in ("model", "response", "output", "answer", "assistant", "completion")}
        if word in {name.lower(), mark, *known}:
            return number
    fault = "missing_field" if value in (None, "") else "wrong_type"
    raise Unusable(fault, f"{column!r} is {value!r:.40}, which names neither {names[0]} nor {names[1]}")


# --- The converters --------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What is known of a shape: its columns in words, how to find them, its converter."""

    title: str
    needs: str
    match: Callable[[set, list], dict | None]  # (columns, rows) -> {part: column, and what else convert needs}, or None
    convert: Callable[[dict, dict], dict]  # (row, what match found) -> pair or answers
    is_grouped: bool = False


def _match_pair(prompts: tuple[str, ...], unless: str | None = None) -> Callable:
    def match(have, rows):
        prompt, pair = _first(prompts, have), _first_pair(ANSWER_PAIRS, have)
        if not prompt or not pair or unless in have:
            return None
        answers = _values(rows, pair[0]) + _values(rows, pair[1])
        if prompt != "prompt" and all(is_transcript(answer) or _is_whole(answer) for answer in answers):
            return None  # the conversations bring their prompt along, and this column may be about anything
        at = {"prompt": prompt, "chosen": pair[0], "rejected": pair[1]}
        if all(isinstance(answer, str) and answer in have for answer in answers):
            at["named"] = frozenset(answers)  # chosen and rejected name the columns that hold the answers
        return at

    return match


def _is_whole(answer) -> bool:
    turns = isinstance(answer, list) and answer and isinstance(answer[0], dict)
    return bool(turns) and str(answer[0].get("role", answer[0].get("from"))).lower() in ("user", "human", "system")


def _match_openai(have, rows):
    at = {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    return at if have.issuperset(at.values()) else None


def _match_instruction(have, rows):
    pair = _first_pair(ANSWER_PAIRS, have)
    if "instruction" not in have or "prompt" in have or not pair:
        return None
    return {"prompt": "instruction", "chosen": pair[0], "rejected": pair[1], "input": "input"}


def _match_whole(have, rows):
    pair = _first_pair(ANSWER_PAIRS, have)
    return pair and {"chosen": pair[0], "rejected": pair[1]}


def _match_two_outputs(have, rows):
    pair, verdict = _first_pair(TWO_OUTPUTS, have), _first(VERDICTS, have)
    if not pair or not verdict:
        return None
    prompt, scale = _first(PROMPTS, have), verdict_scale(_values(rows, verdict), pair, verdict)
    at = {"first": pair[0], "second": pair[1], "verdict": verdict, "scale": scale}
    return at | ({"prompt": prompt} if prompt else {})


def _match_answer_list(have, rows):
    prompt, answers = _first((*PROMPTS[:-1], *CONVERSATIONS, PROMPTS[-1]), have), _first(ANSWER_LISTS, have)
    if not prompt or not answers or not any(isinstance(row.get(answers), list) for row in rows):
        return None
    scores = _first(SCORE_LISTS, have)
    return {"prompt": prompt, "answers": answers} | ({"scores": scores} if scores else {})


def _match_scored_rows(have, rows):
    prompt, answer, score = _first(PROMPTS, have), _first(ANSWERS, have), _first(SCORES, have)
    return prompt and answer and score and {"prompt": prompt, "answer": answer, "score": score}


def _match_unpaired(have, rows):
    label = _first(LABELS, have)
    whole, prompt, answer = _first(CONVERSATIONS, have), _first(PROMPTS, have), _first(ANSWERS, have)
    if not label or not (whole or (prompt and answer)):
        return None
    return {"label": label} | ({"prompt": prompt, "answer": answer} if prompt and answer else {"whole": whole})


def _prompt_of(row, at):
    """The prompt column, with the input of an instruction below it and the history of a conversation before it."""
    prompt, more, history = row.get(at["prompt"]), row.get("input"), row.get("history")
    if prompt is None:
        raise Unusable("missing_field", f"{at['prompt']!r} is missing")
    if at["reads_input"] and at["prompt"] != "input" and isinstance(prompt, str) and more is not None:
        if not isinstance(more, str):
            raise Unusable("wrong_type", "'input' is no text")
        prompt = f"{prompt}\n\n{more}" if more else prompt
    earlier = _history(history) if history and at["prompt"] != "history" else []
    return [*earlier, *_as_turns(as_text(prompt, at["prompt"]), "user")] if earlier else prompt


def _history(history) -> list[dict]:
    """Earlier turns: a list of turns, or of [question, answer]."""
    history = _from_json(history, list, "'history' is no list, nor a list written as JSON")
    if all(isinstance(turn, dict) for turn in history):
        return [as_turn(turn, "history") for turn in history]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in history):
        raise Unusable("wrong_type", "'history' holds neither turns nor pairs of question and answer")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in history for role, text in zip(roles, pair, strict=True)]


def _system_of(row):
    return next((row[name] for name in SYSTEMS if row.get(name)), None)


def _convert_pair(row, at):
    chosen, rejected = (_present(row, at[side]) for side in ("chosen", "rejected"))
    if "named" in at:
        chosen, rejected = _present(row, str(chosen)), _present(row, str(rejected))
    # whole conversations bring their prompt along
    prompt = None if row.get(at["prompt"]) is None and isinstance(chosen, list) else _prompt_of(row, at)
    return assemble(prompt, chosen, rejected, row, _system_of(row))


def _convert_whole(row, at):
    return assemble(None, _present(row, at["chosen"]), _present(row, at["rejected"]), row, _system_of(row))


def _convert_two_outputs(row, at):
    names, value = (at["first"], at["second"]), row.get(at["verdict"])
    models = [row.get(f"model_{mark}") for mark in marks_of(names)]  # arenas name the winner by its model
    better = models.index(value) if value in models and value else as_verdict(value, names, at["verdict"], at["scale"])
    prompt = _prompt_of(row, at) if "prompt" in at else None
    return assemble(prompt, _present(row, names[better]), _present(row, names[1 - better]), row, _system_of(row))


def _convert_answer_list(row, at):
    answers, scores = row.get(at["answers"]), row.get(at.get("scores"))
    if not isinstance(answers, list) or not answers:
        raise Unusable("missing_field" if not answers else "wrong_type", f"{at['answers']!r} is no list of answers")
    if scores is None:
        name = _first(SCORES, set().union(*(answer for answer in answers if isinstance(answer, dict))))
        if name is None:
            raise Unusable("missing_field", f"there are no scores, neither in a column nor in {at['answers']!r}")
        scores = [answer.get(name) if isinstance(answer, dict) else None for answer in answers]
    else:
        name = at["theirs"]["scores"]
    if not isinstance(scores, list) or len(scores) != len(answers):
        raise Unusable("wrong_type", f"there are {len(answers)} answers, and as many scores are needed")
    scored = [(_answer_of(answer), as_score(score, name)) for answer, score in zip(answers, scores, strict=True)]
    return {"prompt": _full_prompt(row, at), "answers": scored, **_extras(row)}


def _answer_of(answer) -> Text:
    if isinstance(answer, dict) and not answer.keys() & {"role", "from"}:
        name = _first((*ANSWERS, "content", "value"), set(answer))
        answer = answer[name] if name else None
    return as_text(answer, "answer")


def _full_prompt(row, at) -> Text:
    prompt = as_text(_prompt_of(row, at), at["prompt"])
    return _with_system(prompt, _system_of(row)) if _system_of(row) else prompt


def _convert_scored_row(row, at):
    answer = as_text(row.get(at["answer"]), at["answer"])
    return {
        "prompt": _full_prompt(row, at),
        "answers": [(answer, as_score(row.get(at["score"]), at["theirs"]["score"]))],
        **_extras(row),
    }


def _convert_unpaired(row, at):
    label = as_label(row.get(at["label"]), at["label"])
    if "answer" in at:
        answer = as_text(row.get(at["answer"]), at["answer"])
        return {"prompt": _full_prompt(row, at), "answers": [(answer, label)], **_extras(row)}
    turns = as_text(row.get(at["whole"]), at["whole"])
    if isinstance(turns, str) or len(turns) < 2:
        raise Unusable("wrong_type", f"{at['whole']!r} is no conversation of a question and its answer")
    check_roles(turns[:-1], turns[-1:])
    return {"prompt": turns[:-1], "answers": [(turns[-1:], label)], **_extras(row)}


def _present(row: dict, name: str):
    if row.get(name) is None:
        raise Unusable("missing_field", f"{name!r} is missing")
    return row[name]


KNOWN_NAMES = {
    *PROMPTS, *CONVERSATIONS, *SYSTEMS, *ANSWER_LISTS, *SCORE_LISTS, *ANSWERS, *SCORES, *LABELS, *VERDICTS, *CARRIED,
    *(name for pair in ANSWER_PAIRS + TWO_OUTPUTS for name in pair), "tools", "chat_template_kwargs", "input",
}  # fmt: skip
SHAPES: dict[str, Kind] = {
    "openai": Kind(
        "hosted fine-tuning rows: input.messages with preferred_output and non_preferred_output",
        "input, preferred_output, non_preferred_output",
        _match_openai,
        _convert_pair,
    ),
    "sharegpt": Kind(
        "ShareGPT {prompt} with one {chosen} and one {rejected} turn",
        "conversations (or messages), chosen, rejected",
        _match_pair(CONVERSATIONS, unless="prompt"),
        _convert_pair,
    ),
    "instruction": Kind(
        "instruction and input with {chosen} and {rejected} answers",
        "instruction, input, chosen, rejected",
        _match_instruction,
        _convert_pair,
    ),
    "preference": Kind(
        "{prompt} with {chosen} preferred to {rejected}",
        "prompt, chosen, rejected (or question, response_j, response_k, and the like)",
        _match_pair(PROMPTS),
        _convert_pair,
    ),
    "whole_conversations": Kind(
        "whole conversations, {chosen} and {rejected}, split before the last answer",
        "chosen, rejected (lists of turns, or 'Human: ... Assistant: ...' transcripts)",
        _match_whole,
        _convert_whole,
    ),
    "two_outputs": Kind(
        "{first} and {second}, with {verdict} saying which is better",
        "prompt, output_1, output_2, preference (or the like)",
        _match_two_outputs,
        _convert_two_outputs,
    ),
    "scored_answers": Kind(
        "{prompt} with several scored {answers}",
        "prompt, completions (a list), scores (a list, or inside each completion)",
        _match_answer_list,
        _convert_answer_list,
    ),
    "scored_rows": Kind(
        "one {answer} a row with its {score}, to be compared within equal {prompt}",
        "prompt, completion, score",
        _match_scored_rows,
        _convert_scored_row,
        is_grouped=True,
    ),
    "unpaired": Kind(
        "unpaired answers with a good or bad {label}",
        "prompt and completion (or messages), label",
        _match_unpaired,
        _convert_unpaired,
        is_grouped=True,
    ),
}


# --- From rows to pairs ----------------------------------------------------------------------------------------------

PAIRINGS = ("best_worst", "best_random", "all")


def make_pairs(
    rows: Iterable, shape: Shape, pairing: str = "best_worst", min_margin: float = 0.0, seed: int = 0
) -> Iterator[dict]:
    """Pairs and faults, with the numbers of the rows they come from, counted from 0.

    rows: objects with where, value and fault; the first item of a prompt whose answers stand in several rows has their
    "scores". pairing: which of several answers to a prompt make pairs; "best_worst",
    "best_random" (against any worse one, by the seed) or "all". min_margin: the least difference of their scores.
    """
    groups: dict[str, list[tuple[int, str, dict]]] = {}
    for number, row in enumerate(rows):
        try:
            if row.fault is not None:
                raise Unusable("unreadable", row.fault)
            if not isinstance(row.value, dict):
                raise Unusable("unreadable", f"is {row.value!r:.40}; an object with named columns is needed")
            made = shape.convert(row.value)
        except Unusable as error:
            yield {"rows": [number], "where": row.where, "fault": error.fault, "text": str(error)}
            continue
        if "answers" not in made:
            yield made | {"rows": [number], "where": row.where}
        elif shape.is_grouped:
            key = json.dumps([made["prompt"], made.get("tools")], sort_keys=True)
            groups.setdefault(key, []).append((number, row.where, made))
        else:
            yield from _pairs_of([(number, row.where, made)], pairing, min_margin, seed)
    for group in groups.values():
        first, *rest = _pairs_of(group, pairing, min_margin, seed)
        yield first | {"scores": [score for _, _, made in group for _, score in made["answers"]]}
        yield from rest


def _pairs_of(group: list[tuple[int, str, dict]], pairing: str, min_margin: float, seed: int) -> Iterator[dict]:
    """The pairs among the answers to one prompt, and a fault for each row that is in none."""
    answers = [(answer, score, number) for number, _, made in group for answer, score in made["answers"]]
    places = {number: where for number, where, _ in group}
    scores = [score for _, score, _ in answers]
    texts = [json.dumps(answer, sort_keys=True) for answer, _, _ in answers]
    used, faults = set(), {}
    for better, worse in choose_pairs(scores, pairing, min_margin, f"{seed} {answers[0][2]}", texts):
        (chosen, score_chosen, row), (rejected, score_rejected, other) = answers[better], answers[worse]
        try:
            pair = assemble(group[0][2]["prompt"], chosen, rejected, row={})
        except Unusable as error:
            faults |= {row: error, other: error}
            continue
        used |= {row, other}
        extras = {key: value for key, value in group[0][2].items() if key not in ("prompt", "answers")}
        given = {"score_chosen": score_chosen, "score_rejected": score_rejected}
        yield pair | extras | given | {"rows": sorted({row, other}), "where": places[row]}
    if len(answers) == 1:
        reason = Unusable("no_partner", "it is the only answer to its prompt")
    elif len(set(scores)) == 1:
        reason = Unusable("tie", "all answers to its prompt have the same score")
    else:
        reason = Unusable("not_chosen", f"no pair was made of it ({pairing}, margin {min_margin:g})")
    for number in places.keys() - used:
        error = faults.get(number, reason)
        yield {"rows": [number], "where": places[number], "fault": error.fault, "text": str(error)}


def choose_pairs(
    scores: list[float], pairing: str, min_margin: float, seed: str, texts: list[str] | None = None
) -> list[tuple[int, int]]:
    """Which answers to compare, as (better, worse); never two of the same score, nor one text that was scored twice."""

    def is_apart(better: int, worse: int) -> bool:
        is_one_text = texts is not None and texts[better] == texts[worse]
        difference = scores[better] - scores[worse]
        return not is_one_text and difference > 0 and difference >= min_margin - 1e-9  # 0.3 - 0.2 is less than 0.1

    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    if pairing == "all":
        return [(better, worse) for better, worse in combinations(order, 2) if is_apart(better, worse)]
    worse = [number for number in order[1:] if is_apart(order[0], number)]
    if not worse:
        return []
    return [(order[0], random.Random(seed).choice(worse) if pairing == "best_random" else worse[-1])]
