"""The reading of some rows: by a public schema, by the user's flags, or by the usual names and what the values allow.

    reading = recognise(rows)                                  # some first rows of the data
    reading = recognise(rows, {"first": "a", "second": "b", "verdict": "v"}, {"0": "a", "1": "b", "2": "tie"})

The columns of a public schema settle it, if the verdict holds values that it knows. Else names propose and values decide:
a verdict is a column whose values name the answers, and columns of names are no answers. Where two readings fit, ValueError
shows both, each with the flags that settle it and the first pair as it would come out.
"""

import re
from collections import Counter
from dataclasses import replace

from .convert import convert, shown
from .guesses import Names, answer_pairs, listed, one_by_one, refuse_steps, refuse_swapped, two_outputs
from .reading import (
    BELONGING,
    BESIDE,
    CARRIED,
    KINDS,
    PART_OF_PROMPT,
    TEXTS,
    Reading,
    filled,
    known_names,
    names,
    schemas,
)
from .texts import Unusable, form_of
from .values import BAD, FIRST, GOOD, SECOND, TIE, canonical, explains, is_number

UNKNOWN = "are of no shape that is known"


def recognise(
    rows: list[dict],
    columns: dict[str, str] | None = None,
    verdict: dict[str, str] | None = None,
    name: str | None = None,
) -> Reading:
    """The reading of some rows.

    columns: {part or usual name: the user's own path}. verdict: {value: what it means}. name: of a schema or a kind, to
    settle it by hand. Raises ValueError that says what is missing, or shows the readings that fit.
    """
    columns = dict(columns or {})
    look = Names(rows, columns)
    reading = None
    if name in schemas() or (name is None and not columns):
        reading = by_schema(rows, name)
        if reading is None and name is not None:
            raise ValueError(f"the columns {listed(rows)} are not of the shape {name}, which has {_needs(name)}")
        if reading is not None and reading.kind == "two_outputs" and name is None:
            refuse_swapped(look)
    if reading is None or (verdict and not reading.verdict and name is None):
        reading = _by_names(look, name, verdict or {})
    if verdict:
        parts = {part: path for part, path in reading.parts.items() if not part.startswith("model_")}
        reading = replace(reading, parts=parts, meaning=_meant(reading, verdict), is_guess=False)
    return _finish(reading, rows)


def _finish(reading: Reading, rows: list[dict]) -> Reading:
    """A reading with what some rows tell besides: how cells are written, which columns stay behind."""
    forms = {part: form_of(_flat(filled(rows, reading.parts[part]))) for part in TEXTS if part in reading.parts}
    if reading.kind == "named":
        forms["chosen"] = form_of([cell for path in set(reading.meaning.values()) for cell in filled(rows, path)])
    if "lists" in forms.values() and len(set(forms.values())) > 1:
        forms = {part: "text" if form == "lists" else form for part, form in forms.items()}  # answers that are JSON
    if reading.kind == "preference" and "lists" not in forms.values():
        for part in ("chosen", "rejected"):
            cells = filled(rows, reading.parts[part])
            if reading.parts[part].endswith("*") or sum(map(_is_several, cells)) > len(cells) / 2:
                forms[part] = "several"
    have = list(dict.fromkeys(key for row in rows for key in row if row[key] not in (None, "", [])))
    read = [*reading.parts.values(), *CARRIED]
    read += reading.meaning.values() if reading.kind == "named" else []
    tops = {top for path in read for one in path.split("|") for top in (one, _top(one))}
    left = tuple(sorted(key for key in have if key not in tops and key.rstrip("0123456789") + "*" not in tops))
    return replace(reading, forms=forms, left_behind=left, tally=Counter())


def _is_several(cell) -> bool:
    are_turns = isinstance(cell, list) and all(
        isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in cell
    )
    return isinstance(cell, list) and len(cell) > 1 and not are_turns


def belonging(reading: Reading) -> list[str]:
    """Columns left behind whose names say that they belong to the pair."""
    pattern = PART_OF_PROMPT if reading.schema else BELONGING  # what else a public schema has besides is known
    return [name for name in reading.left_behind if pattern.search(canonical(name))]


def _flat(values: list) -> list:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _needs(name: str) -> str:
    return ", ".join(path for path in schemas()[name]["columns"].values() if not path.endswith("?"))


# --- Public schemas --------------------------------------------------------------------------------------------------


def by_schema(rows: list[dict], only: str | None = None) -> Reading | None:
    """The reading of the public schema whose columns these are, or of the one named; of several the one that asks for most."""
    have = {key for row in rows for key in row}
    fitting = []
    for name, schema in schemas().items():
        if name != only and (only is not None or "usual" in schema):
            continue
        needed = [path for path in schema["columns"].values() if not path.endswith("?")]
        if not have.issuperset([*schema.get("needs", ()), *map(_top, needed)]):
            continue
        parts = {part: path.rstrip("?") for part, path in schema["columns"].items()}
        others = have - set(map(_top, parts.values()))
        if "alone" in schema and any(key in known_names() or BELONGING.search(key) for key in others):
            continue
        if not all(filled(rows, path) for path in needed):
            continue
        parts = {part: path for part, path in parts.items() if filled(rows, path)}
        meaning = {canonical(value): meant for value, meant in schema.get("meaning", {}).items()}
        reading = Reading(parts, meaning, name, schema["title"])
        needs = schema.get("needs", ())
        if not meaning or _is_its_verdict(reading, needs, rows, others if only is None else set()):
            fitting.append((len({*needed, *needs}), reading))
    return max(fitting, key=lambda fit: fit[0])[1] if fitting else None


def _is_its_verdict(reading: Reading, needs: tuple[str, ...], rows: list[dict], others: set[str]) -> bool:
    """Whether a column that is called like a schema's verdict is one: the names that schemas have are everybody's.

    others: the columns besides, among which another verdict may be. Unless the schema is told by columns of its own
    (needs), numbers on another scale are none of its values; and where all rows say the same side, 1 may be yes and no
    number of an answer.
    """
    met = [canonical(value) for value in _flat(filled(rows, reading.verdict))]
    meant = [reading.meaning.get(explains(reading.meaning, value)) for value in met]
    is_scale = all(meant[place] for place, value in enumerate(met) if is_number(value))
    is_one_sided = len(met) >= 10 and len({FIRST, SECOND} & set(meant)) == 1
    is_told = bool(needs) or (is_scale and not is_one_sided)
    return any(meant) and is_told and not others & set(names("verdict")) - set(needs)


def _top(path: str) -> str:
    """The column that a path begins in."""
    return re.split(r"[.\[|]", path)[0]


# --- The usual names -------------------------------------------------------------------------------------------------


def _by_names(look: Names, kind: str | None, verdict: dict[str, str]) -> Reading:
    """The reading that names propose and values allow. kind: one of KINDS, where the user says so."""
    for trees in ("tree", "messages"):
        if look.columns.keys() >= set(KINDS[trees]):
            return Reading({part: look.columns[part] for part in KINDS[trees]})
    verdicts = two_outputs(look, bool(verdict))
    outputs = verdicts[0] if verdicts else []
    if len(outputs) == 1 and "verdict" not in look.columns:  # other verdicts that say otherwise
        outputs = outputs + [v[0] for v in verdicts[1:] if len(v) == 1 and _differ(outputs[0], v[0], look.rows)]
    pairs = answer_pairs(look, {guess.parts.get("verdict") for guess in outputs}, bool(verdict))
    others = one_by_one(look, bool(verdict))
    others = [guess for guess in others if guess.kind in (kind or others[0].kind)]
    if kind is not None:
        pairs, outputs, others = ([g for g in guesses if g.kind == kind] for guesses in (pairs, outputs, others))
        if not pairs + outputs + others:
            needs = ", ".join(KINDS[kind])
            raise ValueError(f"the columns {listed(look.rows)} are not of the shape {kind}, which has {needs}")
    if pairs and outputs:
        answers = {pairs[0].parts["chosen"], pairs[0].parts["rejected"]}
        if answers == {outputs[0].parts[FIRST], outputs[0].parts[SECOND]}:
            pairs = []  # response_j and response_k with a verdict about them
        elif len(outputs) == 1 and _differ(pairs[0], outputs[0], look.rows):
            raise ValueError(_two_ways([pairs[0], outputs[0]], look.rows))
    if pairs and not outputs and _nearly(look, tuple(pairs[0].parts[part] for part in ("chosen", "rejected"))):
        pairs = []  # a verdict about response_j and response_k that nobody understands
    fitting = pairs or outputs or others
    if len(fitting) > 1 and any(_differ(fitting[0], other, look.rows, faults=True) for other in fitting[1:]):
        raise ValueError(_two_ways(fitting, look.rows))
    if fitting:
        found = fitting[0]
        if kind is None:
            refuse_steps(look, found)
        return replace(found, parts=found.parts | {part: path for part, path in look.columns.items() if part in BESIDE})
    raise ValueError(
        f"the columns {listed(look.rows)} {UNKNOWN}{_nearly(look)}. Say which is which by --columns "
        "prompt=...,chosen=...,rejected=... (or completion and score, or first, second and verdict); docs/data.md has all "
        "shapes"
    )


def _nearly(look: Names, but: tuple[str, str] | None = None) -> str:
    """What is missing, where two answers or several are there and nothing says which is better.

    but: two columns for which only a verdict that is there and not understood counts.
    """
    for paths, _ in look.pairs("two_outputs", (FIRST, SECOND)):
        if but not in (None, paths):
            continue
        for column in look.all("verdict"):
            if column not in paths and (values := look.values(column)):
                said = f"{column} holds {values[0]!r:.40}, which names neither {paths[0]} nor {paths[1]}"
                return f": {said}; say what its values mean by --verdict VALUE={paths[0]},..."
        return f": nothing says which of {paths[0]} and {paths[1]} is better" if but is None else ""
    if but is None and (answers := look.first("answers")):
        return f": there are no scores for the answers in {answers}"
    if but is None and look.first("prompt") and not look.all("answer"):
        return ": there are prompts, and no two answers to them"
    return ""


def _differ(one: Reading, other: Reading, rows: list[dict], faults: bool = False) -> bool:
    """Whether two readings make different pairs of some row. faults: also where only one of them makes a pair."""
    readings = [_finish(reading, rows) for reading in (one, other)]
    for row in rows:
        made = []
        for reading in readings:
            try:
                pair = convert(row, reading)
                made.append([str(pair.get(part)) for part in ("chosen", "rejected", "answers")])
            except Unusable:
                made.append(None)
        if made[0] != made[1] and (faults or None not in made):
            return True
    return False


def _two_ways(readings: list[Reading], rows: list[dict]) -> str:
    """What to say where several readings fit: each with its flags and the first pair that it would make."""
    lines = ["the columns can be read in two ways; say which is meant by one of these"]
    if public := by_schema(rows):
        lines.append(f"  --dataset_format {public.schema}, whose columns these are")
    for reading in [_finish(reading, rows) for reading in readings[:3]]:
        pairs = [line for row in rows[:100] if not (line := shown(row, reading)).startswith(("tie", "unknown_v"))]
        for row in rows:  # so that the flags name the values that are there
            shown(row, reading)
        lines.append(f"  {reading.flags}\n      {pairs[0] if pairs else 'gives no pair'}")
    return "\n".join(lines)


def doubt(
    reading: Reading, checkup=None, columns: dict[str, str] | None = None, verdict: dict[str, str] | None = None
) -> str | None:
    """What to say where all rows together raise a doubt that only the user can settle; None where there is none.

    A number that a meaning told from the first rows does not explain; labels that most of the scores contradict, unless
    the user names the labels himself. checkup: has scored, counts and firsts, as doctor.Checkup. columns, verdict: the flags.
    """
    if odd := reading.unexplained():
        return (
            f"{reading.verdict} holds {', '.join(odd)} too, in later rows, so the meaning told from the first ones "
            f"({reading.says}) may be wrong. Say what each value means: {reading.flags},{odd[0]}=..."
        )
    against = checkup.counts["scores_contradict"] if checkup is not None else 0
    is_settled = verdict or reading.parts.get("chosen", reading.verdict) in (columns or {}).values()
    if not against or against * 2 <= checkup.scored or is_settled or reading.kind == "converter":
        return None
    return (
        f"in {against:,} of {checkup.scored:,} pairs the rejected answer has the higher score, first in "
        f"{checkup.firsts['scores_contradict']['first']}, so either the scores or the labels are turned around. Say which to "
        f"go by:\n  {reading.flags}\n  {reading.by_scores().flags}"
    )


def _meant(reading: Reading, verdict: dict[str, str]) -> dict[str, str]:
    """What the user says each value means, as the sides of the reading."""
    if not reading.verdict:
        raise ValueError(f"--verdict has no effect: there is no verdict and no label in {reading.says}")
    if reading.kind == "named":
        return {canonical(value): meant for value, meant in verdict.items()}
    known = {GOOD: GOOD, BAD: BAD} if reading.kind in ("unpaired", "labelled_answers") else {TIE: TIE}
    for side in (FIRST, SECOND):
        if path := reading.parts.get(side):
            known |= {side: side, canonical(path): side, canonical(path.rpartition(".")[2]): side}
    for value, meant in verdict.items():
        if canonical(meant) not in known:
            raise ValueError(f"--verdict {value}={meant}: {meant} is none of {', '.join(known)}")
    return {canonical(value): known[canonical(meant)] for value, meant in verdict.items()}
