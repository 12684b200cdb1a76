"""A reading: which column of some data is what, and what the values of a verdict mean, said in one line.

    reading = Reading({"prompt": "q", "first": "a", "second": "b", "verdict": "v"}, {"0": "first", "1": "second"})
    reading.says                       # "prompt = q, first = a, second = b, verdict = v; v: 0 = a (520 rows), 1 = b (507)"
    reading.flags                      # "--columns prompt=q,first=a,second=b,verdict=v --verdict 0=a,1=b"
    dig(row, "question.full_text")     # what stands at a path

A reading names columns by their part: prompt, chosen, rejected; or first, second and a verdict with the meaning of its
values; or answers with scores or labels. A part is a path into a row: `question`, `question.full_text`, `summaries.0.text`,
`answers[].text` (of each item of a list), `messages.:-1` (all but the last), `won_a|won_b|tied` (the one column that is
true), `rejected_*` (rejected_1, rejected_2 and so on). Public schemas and the usual names are data, in schemas.yaml; adding
one is adding a few lines there.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import yaml

from .values import canonical, is_number, is_numbered, lowest_is_best

TABLE = Path(__file__).with_name("schemas.yaml")
# Which parts make a kind, in the order in which they are looked for; the prompt is left out where turns bring it along.
KINDS = {
    "messages": ("message", "parent", "role", "answer", "score"),
    "preference": ("chosen", "rejected"),
    "two_outputs": ("first", "second", "verdict"),
    "two_scores": ("first", "second", "score_first", "score_second"),
    "tree": ("tree",),
    "labelled_answers": ("answers", "labels"),
    "scored_answers": ("answers", "scores"),
    "scored_rows": ("answer", "score"),
    "unpaired": ("answer", "label"),
}
PARTS = tuple(dict.fromkeys(part for parts in KINDS.values() for part in parts))
BESIDE = ("prompt", "input", "system", "history", "turn", "score_chosen", "score_rejected", "other", "model_first", "model_second", "tools",
          "chat_template_kwargs", "category")  # fmt: skip
TEXTS = ("prompt", "chosen", "rejected", "first", "second", "answer", "answers")
CARRIED = {"tools", "chat_template_kwargs", "category"}
# Columns that look as if they belonged to the pair, where nothing reads them.
ABOUT = r"(?!.*(ids?|model|length|hash|source|tokens|name|type|policy)$)"  # what a column's name may end in that only tells of it
PART_OF_PROMPT = re.compile(
    r"(^|_)(images?|pictures?|videos?|audios?)(_|$)|(^|_)(contexts?|history|system|inputs?|dialogue)(_|$)" + ABOUT
)
BELONGING = re.compile(
    PART_OF_PROMPT.pattern
    + r"|(^|_)(conversations?|passage|document|article|post|prompt|question|query|instruction|scores?|ratings?|rewards?|"
    r"margins?|ranks?|ranking|preference|preferred|winner|verdict|labels?|swapped|flipped)(_|$)" + ABOUT
)


@dataclass(frozen=True)
class Reading:
    """Which column is what, and what the values of a verdict or a label mean."""

    parts: dict[str, str]  # path by part
    meaning: dict[str, str] = field(default_factory=dict)  # canonical value -> first, second, tie; good, bad; a column
    schema: str = ""  # its name in schemas.yaml
    title: str = ""
    forms: dict[str, str] = field(default_factory=dict)  # of each text part, see texts.form_of
    is_guess: bool = False  # told from names and values, neither given nor a public schema
    left_behind: tuple[str, ...] = ()  # columns that are not read
    convert: Callable[[dict], dict] | None = None  # the user's own function
    tally: Counter = field(default_factory=Counter, compare=False)  # how often each value of the verdict was met

    @cached_property  # asked for every row
    def kind(self) -> str:
        """One of KINDS, "named" (chosen and rejected name columns) or "converter"."""
        if self.convert is not None:
            return "converter"
        if "chosen" in self.parts and self.meaning:
            return "named"
        return next(kind for kind, parts in KINDS.items() if self.parts.keys() >= set(parts))

    @property
    def is_grouped(self) -> bool:
        """Whether the answers to a prompt stand in several rows."""
        return self.kind in ("scored_rows", "unpaired", "messages")

    @property
    def has_scores(self) -> bool:
        """Whether --min_margin has scores to compare."""
        if "several" in self.forms.values():  # scores of lists are no scores of answers
            return False
        is_scored = self.kind in ("scored_answers", "scored_rows", "messages", "tree")
        return is_scored or bool(self.parts.keys() & {"score_chosen", "score_first"})

    @property
    def has_choice(self) -> bool:
        """Whether --pairing has answers to choose from."""
        kinds = ("scored_answers", "scored_rows", "labelled_answers", "unpaired", "tree", "messages")
        return self.kind in kinds or "several" in self.forms.values()

    @property
    def verdict(self) -> str | None:
        """The column whose values have a meaning."""
        part = {"two_outputs": "verdict", "named": "chosen", "unpaired": "label", "labelled_answers": "labels"}
        return self.parts.get(part.get(self.kind, ""))

    def name_of(self, meant: str) -> str:
        """A side as the user knows it: the name of its column."""
        return self.parts.get(meant, meant)

    @cached_property
    def models(self) -> tuple[str, str] | None:
        """The columns that name the models of both answers, where the verdict names one of those."""
        both = (self.parts.get("model_first"), self.parts.get("model_second"))
        return both if None not in both else None

    @property
    def heading(self) -> str:
        """What kind of data this is, for a headline: a public schema, or the kind."""
        return self.title or self.kind.replace("_", " ")

    @property
    def _told(self) -> dict[str, str]:
        """The parts that a reader is to know of: tools and the like under their usual names are read anyway."""
        return {part: path for part, path in self.parts.items() if part not in CARRIED or path != part}

    @property
    def columns(self) -> str:
        """The columns by their parts; a column that is called like its part stands alone."""
        roles = [part for part in (*PARTS, *BESIDE) if part in self._told]
        return ", ".join(
            part
            + f" = {self.parts[part]}" * (part != self.parts[part])
            + " (the lowest is the best)" * (part.startswith("score") and lowest_is_best(self.parts[part]))
            for part in sorted(roles, key=lambda part: part != "prompt")
        )

    @property
    def says(self) -> str:
        """The reading in one line, with the values that were met and their counts."""
        columns = self.columns or self.title
        if not self.verdict:
            return columns
        if self.models:
            return f"{columns}; {self.verdict} names one of the two models"
        counts, met = self.tally, sorted(value for value in self.meaning if self.tally[value])
        values = (
            f"{value} = {self.name_of(self.meaning[value])} ({counts[value]:,}{' rows' * (not number)})"
            for number, value in enumerate(met)
        )
        return f"{columns}; {self.verdict}: {', '.join(values) or 'no value of it is known'}"

    @property
    def flags(self) -> str:
        """The reading as flags to paste; by the name of its schema where columns alone do not give it."""
        if self.kind == "converter":
            return ""
        columns = ",".join(f"{part}={path}" for part, path in self._told.items())
        is_all = any(".." in value for value in self.meaning)  # a tie between two ranges may yet come
        used = [value for value in self.meaning if is_all or self.tally[value]] or list(self.meaning)
        told = ",".join(f"{value}={self.name_of(self.meaning[value])}" for value in used if not self.models)
        return f"--columns {shlex.quote(columns)}" + (f" --verdict {shlex.quote(told)}" if told else "")

    def by_scores(self) -> "Reading":
        """The same two answers by their scores alone, whatever a verdict or the names of the columns say."""
        one, two = ("chosen", "rejected") if "chosen" in self.parts else ("first", "second")
        sides = {"first": one, "second": two, "score_first": f"score_{one}", "score_second": f"score_{two}"}
        asked = {part: path for part, path in self.parts.items() if part in ("prompt", "input", "system", "history")}
        return Reading(asked | {part: self.parts[side] for part, side in sides.items()})

    def unexplained(self) -> list[str]:
        """Numbers, or names by number, that a guessed meaning of such does not explain, so that it may be another."""
        for is_such in (is_number, is_numbered) if self.is_guess else ():
            if any(map(is_such, self.tally & Counter(dict.fromkeys(self.meaning, 1)))):
                return [value for value in self.tally if is_such(value) and value not in self.meaning]
        return []


# --- Paths -----------------------------------------------------------------------------------------------------------


def dig(row, path: str):
    """What stands at a path in a row; None where there is nothing."""
    if isinstance(row, dict) and path in row:
        return row[path]
    if path.endswith("*"):
        several = [row[key] for key in row if re.fullmatch(re.escape(path[:-1]) + r"\d+", key)]
        return [value for value in several if value is not None] or None
    if "|" in path:
        marked = [name for name in path.split("|") if canonical(dig(row, name)) in ("1", "true", "yes")]
        known = any(dig(row, name) is not None for name in path.split("|"))
        return marked[0] if len(marked) == 1 else ", ".join(marked) or ("none" if known else None)
    return _walk(row, _steps(path))


@cache
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.replace("[]", ".[]").split("."))


def _walk(value, steps: tuple[str, ...]):
    for number, step in enumerate(steps):
        if step == "[]":
            rest = steps[number + 1 :]
            return [_walk(item, rest) for item in value] if isinstance(value, list) else None
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step == ":-1":
            value = value[:-1] or None
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", step) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def filled(rows: list[dict], path: str) -> list:
    """The values at a path that are there, over some rows."""
    found = (dig(row, path) for row in rows)
    return [
        v for v in found if v not in (None, "", []) and not (isinstance(v, list) and all(item is None for item in v))
    ]


# --- The table -------------------------------------------------------------------------------------------------------


@cache
def table() -> dict:
    """schemas.yaml: "names", the usual names of each part, and "schemas", the public ones."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it was built: ten times as fast
    return yaml.load(TABLE.read_text(encoding="utf-8"), loader)


@cache
def schemas() -> dict[str, dict]:
    """The public schemas by name."""
    return {schema["name"]: schema for schema in table()["schemas"]}


def names(part: str) -> tuple[str, ...]:
    """The names under which people keep a part, the most telling first."""
    return tuple(table()["names"][part])


@cache
def pairs_of_names(part: str) -> list[tuple[str, str]]:
    """The pairs of names for "answer_pairs" and "two_outputs"."""
    pairs = [tuple(pair.split()) for pair in table()["names"][part]]
    if part != "two_outputs":
        return pairs
    stems, marks = table()["names"]["stems"], pairs
    return [(f"{stem}{first}", f"{stem}{second}") for stem in stems for first, second in marks]


@cache
def known_names() -> frozenset[str]:
    """All that may stand on the left of --columns."""
    usual = {name for part in ("prompt", "conversation", "system", "verdict", "answers", "scores", "answer", "score",
                               "label") for name in names(part)}  # fmt: skip
    pairs = {name for part in ("answer_pairs", "two_outputs") for pair in pairs_of_names(part) for name in pair}
    return frozenset({*PARTS, *BESIDE} | usual | pairs)
