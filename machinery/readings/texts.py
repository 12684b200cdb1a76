"""What a cell says: a text, or turns, from all the ways in which people write them; and a pair put together of such.

    as_text('[{"role": "user", "content": "Why?"}]', "prompt", "turns")       # [{"role": "user", "content": "Why?"}]
    assemble("Why?", "So.", "No.", row={})                                   # {"prompt": ..., "chosen": ..., "rejected": ...}
    form_of(cells)                                                           # "text", "turns" or "lists"

A text is a string or a list of turns {"role", "content"}. What is converted is the form: the words of a text are never
changed, cut or stripped; only the marks of a transcript ("Human: ") become roles. Tables hold turns as JSON in a string.
Whether a column does is settled for the column, not for the cell: an answer may well be JSON.
"""

import json
import math
import re
from collections.abc import Iterable

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
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text", "parts")
# kept beside role and content
TURN_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking", "function_call")
TRANSCRIPT_TURN = re.compile(r"(?:^\s*|\n\n|\r\n\r\n)(Human|User|Assistant|System):")
SINGLE_NEWLINES = re.compile(r"\s*(Human|User):.*\n(Assistant|AI|Bot):", re.DOTALL)
# How a list of turns, a turn, or an object of messages begins, as JSON or as Python or numpy writes it; or JSON in JSON.
LIKE_TURNS = re.compile(r"""\s*(?:(?:np\.)?array\(\s*)?(?:"\s*)?\[?\s*\{\s*\\?['"]\w+\\?['"]\s*:""")
A_ROLE = re.compile(r"""(['"])(?:role|from)\\?\1\s*:\s*\\?(['"])(\w+)\\?\2""", re.IGNORECASE)

Text = str | list[dict]


class Unusable(ValueError):
    """A row that gives no pair; `fault` is the kind, the message what was seen."""

    def __init__(self, fault: str, message: str):
        super().__init__(message)
        self.fault = fault


# --- What the cells of a column are ----------------------------------------------------------------------------------


def form_of(cells: Iterable) -> str:
    """How a column's strings are to be read: "turns" (written as JSON), "lists" (of texts, as JSON), else "text"."""
    written = [kind_of_cell(cell) for cell in cells if isinstance(cell, str) and cell.strip()]
    for form, kinds in (("turns", ("turns", "broken turns")), ("lists", ("list",))):
        if sum(kind in kinds for kind in written) > len(written) / 2:
            return form
    return "text"


def kind_of_cell(text: str) -> str:
    """What a string holds: "turns", "broken turns" (cut off, or in Python's writing), "list" (of texts), or "text"."""
    if LIKE_TURNS.match(text):
        try:
            value = json.loads(text)
            if isinstance(value, str):  # JSON in JSON
                return "text" if kind_of_cell(value) == "text" else "broken turns"
            return "turns" if _are_turns(value) else "text"
        except (ValueError, RecursionError):
            roles = {found[2].lower() for found in A_ROLE.findall(text)}
            return "broken turns" if roles & {*KNOWN_ROLES, *ROLES} else "text"
    if text.lstrip()[:1] == "[":
        try:
            texts = json.loads(text)
        except (ValueError, RecursionError):
            return "text"
        return "list" if texts and all(isinstance(one, str | None) for one in texts) else "text"
    return "text"


def _are_turns(value) -> bool:
    if isinstance(value, dict):
        return _are_turns(value["messages"]) if isinstance(value.get("messages"), list) else _is_turn(value)
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value) -> bool:
    """A role that is known, and a content; a turn that calls a tool may be without."""
    if not isinstance(value, dict):
        return False
    role = next((value[key] for key in ROLE_KEYS if key in value), None)
    is_known = isinstance(role, str) and role.strip().lower() in {*KNOWN_ROLES, *ROLES}
    return is_known and bool(value.keys() & {*CONTENT_KEYS, "tool_calls", "function_call"})


def as_text(value, name: str, form: str = "text") -> Text:
    """A string, or a list of turns {"role", "content"}. name: for the faults. form: of the column, see `form_of`."""
    if isinstance(value, str):
        return _read(value, name, form) if form != "text" or LIKE_TURNS.match(value) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unusable("missing_field", f"{name!r} is missing")
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            return as_text(value["messages"], name)
        if not value.keys() & set(ROLE_KEYS) and value.keys() & set(CONTENT_KEYS):  # a text in an object
            return as_turn({"role": "assistant", **value}, name)["content"]
        if not value.keys() & {*ROLE_KEYS, *CONTENT_KEYS}:
            inside = ", ".join(map(str, value))
            raise Unusable("wrong_type", f"{name!r} is an object of {inside:.60}; name the one in it, as {name}.x")
        return [as_turn(value, name)]
    if not isinstance(value, list):
        kind = {bool: "true or false", int: "a number", float: "a number"}.get(type(value), "no text")
        raise Unusable("wrong_type", f"{name!r} is {kind}; text or a list of turns is needed")
    if not value:
        raise Unusable("wrong_type", f"{name!r} is an empty list")
    if len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if all(isinstance(part, dict) and part.keys() == {"text"} for part in value):  # the content of a turn
        return "".join(part["text"] for part in value if isinstance(part["text"], str))
    return [as_turn(turn, name) for turn in value]


def _read(text: str, name: str, form: str) -> Text:
    """A string as its column is to be read; a cell that is of another kind than the column is a fault."""
    kind = kind_of_cell(text)
    if form == "text" and kind in ("text", "list"):
        return text
    if form == "turns" and kind == "turns":
        return as_text(json.loads(text), name)
    if form == "lists" and kind == "list":
        texts = json.loads(text)
        if None in texts:
            raise Unusable("missing_field", f"{name!r} has a turn without text")
        return texts[0] if len(texts) == 1 else texts
    if not text.strip():
        raise Unusable("missing_field", f"{name!r} is missing")
    if kind == "broken turns":
        is_twice = text.lstrip().startswith('"')
        how = "as Python writes it" if "'" in text[:40] else f"as JSON {'in JSON' if is_twice else 'that is cut off'}"
        raise Unusable("broken_turns", f"{name!r} is a conversation {how}; write it as whole JSON")
    raise Unusable("other_form", f"{name!r} is {kind}, where the column holds {form}: {text:.40}")


def interleave(questions: list[str], answers: list[str], name: str) -> list[dict]:
    """Turns of a conversation whose questions and answers stand in two lists, as in the arenas' tables."""
    if len(questions) != len(answers):
        raise Unusable("roles", f"{name!r} has {len(answers)} turns for {len(questions)} questions")
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text}
        for pair in zip(questions, answers, strict=True)
        for role, text in zip(roles, pair, strict=True)
    ]


def as_turn(turn, name: str) -> dict:
    """One turn as {"role", "content"} and, where there are some, its tool calls and the like."""
    if not isinstance(turn, dict):
        raise Unusable("wrong_type", f"{name!r} holds {turn!r:.40}, which is no turn with a role and a content")
    given = turn.get("role", turn.get("from"))
    role = ROLES.get(str(given).strip().lower(), str(given).strip().lower())
    if role not in KNOWN_ROLES:
        raise Unusable("roles", f"{name!r} has a turn of role {given!r:.40}")
    content = next((turn[key] for key in CONTENT_KEYS if turn.get(key) is not None), None)
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


# --- A pair ----------------------------------------------------------------------------------------------------------


def assemble(prompt: Text | None, chosen: Text, rejected: Text, row: dict, system=None) -> dict:
    """One pair: three strings or three lists of turns, with tools and the like from the row.

    prompt: None where whole conversations bring it along.
    """
    both = (chosen, rejected)
    if any(isinstance(text, list) and not isinstance(text[0], dict) for text in both):
        raise Unusable("wrong_type", "an answer is a list of texts, and neither a text nor turns")
    if all(isinstance(text, str) for text in both) and (prompt is None or all(map(is_transcript, both))):
        chosen, rejected = parse_transcript(chosen, "chosen"), parse_transcript(rejected, "rejected")
    if is_conversation(chosen) and is_conversation(rejected):
        named = prompt
        prompt, chosen, rejected = split_conversations(chosen, rejected)
        prompt = _with_what_only_the_prompt_says(prompt, named)
    if prompt is None:
        raise Unusable("missing_field", "'prompt' is missing")
    if turns := turns_of_prompt(prompt):
        prompt = turns
        chosen, rejected = (a.removeprefix(" ") if isinstance(a, str) else a for a in (chosen, rejected))
    if system is not None and system != "":
        prompt = with_system(prompt, system)
    if not all(isinstance(text, str) for text in (prompt, chosen, rejected)):
        prompt, chosen, rejected = as_turns(prompt, "user"), *(as_turns(a, "assistant") for a in (chosen, rejected))
        for answer in (chosen, rejected):
            check_roles(prompt, answer)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extras_of(row)}


def _with_what_only_the_prompt_says(shared: list[dict], named: Text | None) -> list[dict]:
    """The prompt of two conversations, with the system turn of a prompt column that they leave out."""
    if named is None:
        return shared
    told = [turn for turn in named if turn["role"] in ("system", "developer")] if isinstance(named, list) else []
    asked = [turn for turn in named if turn not in told] if told else turns_of_prompt(named) or named
    if plain(asked).strip() not in plain(shared) and not is_transcript(plain(asked)):
        raise Unusable("different_prompts", "'prompt' is another than that of the conversations")
    return shared if not told or shared[0]["role"] in ("system", "developer") else [*told, *shared]


def with_system(prompt: Text, system) -> list[dict]:
    """The prompt with a system turn before it, if it has not that turn already."""
    turn = {"role": "system", "content": plain(as_text(system, "system"))}
    turns = as_turns(prompt, "user")
    return turns if turns[0] == turn else [turn, *turns]


def plain(text: Text) -> str:
    """The words of a text, its turns one below the other."""
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)


def as_turns(text: Text, role: str) -> list[dict]:
    """A text as turns: a string is one turn of this role."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def is_conversation(text) -> bool:
    """Whether a text is turns that begin with a question, so that its prompt is in it."""
    return isinstance(text, list) and isinstance(text[0], dict) and text[0]["role"] in ("system", "developer", "user")


def is_transcript(text) -> bool:
    """Whether a text is paragraphs of "Human: ..." and "Assistant: ...", from its beginning."""
    mark = TRANSCRIPT_TURN.match(text) if isinstance(text, str) else None
    return (
        mark is not None
        and mark[1] != "Assistant"
        and any(later[1] == "Assistant" for later in TRANSCRIPT_TURN.finditer(text, mark.end()))
    )


def extras_of(row: dict) -> dict:
    """What a row carries along for templates and evaluation: tools, template keywords, a category."""
    extras = {}
    tools = row.get("tools")
    for holder in ("input", "prompt"):
        if tools is None and isinstance(row.get(holder), dict):
            tools = row[holder].get("tools")
    if tools and (tools := from_json(tools, list, "'tools' is no list, nor a list written as JSON")):
        extras["tools"] = json.dumps(tools)
    if kwargs := row.get("chat_template_kwargs"):
        refusal = "'chat_template_kwargs' is no object, nor one written as JSON"
        extras["chat_template_kwargs"] = from_json(kwargs, dict, refusal)
    if isinstance(row.get("category"), str):
        extras["category"] = row["category"]
    return extras


def from_json(value, kind: type, refusal: str):
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
    is_one_turn = len(marks) == 1 and SINGLE_NEWLINES.match(text)
    if not marks or marks[0].start() > 0 or is_one_turn:
        raise Unusable(
            "no_prompt",
            f"there is no prompt, and {name!r} is no transcript of 'Human:' and 'Assistant:' turns, so nobody can tell "
            "where its prompt ends" + _of_single_newlines(text),
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


def _of_single_newlines(text: str) -> str:
    said = "; its turns stand below each other without an empty line between, so a line of a text could be one"
    return said if SINGLE_NEWLINES.match(text) else ""
