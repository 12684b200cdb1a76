"""Readings that the usual names of columns propose and that the values allow.

    look = Names(rows, {"prompt": "ask"})          # columns under the names that are looked for
    answer_pairs(look, set())                      # readings of a column of better and one of worse answers
    two_outputs(look)                              # for each verdict on two answers, every reading that its values fit
    one_by_one(look)                               # answers with a score or a label each

Names propose and values decide: a verdict is a column whose values name the answers, a score is a number, and columns that
hold a few names again and again are no answers.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace

from .reading import Reading, dig, filled, known_names, names, pairs_of_names
from .texts import Unusable, as_text, form_of, is_conversation, is_transcript
from .values import BAD, BAD_WORDS, FIRST, GOOD, GOOD_WORDS, SECOND, TIE, TIES, canonical, marks_of, meanings

TO_BE_SAID = {"?": "?"}  # the meaning of a verdict where the user says it
FEW_NAMES = 20  # so many different values at most are taken for names of models or columns rather than for answers


def listed(rows: list[dict]) -> str:
    """The columns of some rows, to be said."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return ", ".join(key if filled(rows, key) else f"{key} (always null)" for key in keys)


class Names:
    """The columns of some rows under the names that are looked for: the user's, the usual ones, or nearly those."""

    def __init__(self, rows: list[dict], columns: dict[str, str]):
        self.rows, self.columns, known = rows, columns, known_names()
        for ours, theirs in columns.items():
            if ours not in known:
                nearest = difflib.get_close_matches(ours, known, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                raise ValueError(f"{ours}={theirs}: there is no {ours} here{hint}")
            if not filled(rows, theirs):
                raise ValueError(f"{ours}={theirs}: there is no column {theirs}; there are {listed(rows)}")
        there = dict.fromkeys(key for row in rows for key in row if row[key] is not None)  # a column of nulls is none
        alike = {}
        for key in there:  # " Chosen" is chosen
            usual = re.sub(r"[\s-]+", "_", key.strip().lower())
            if usual in known and usual not in there:
                alike.setdefault(usual, key)
        taken = set(columns.values())
        self.path = {name: key for name, key in (alike | {key: key for key in there}).items() if key not in taken}
        self.path |= columns

    def all(self, part: str) -> list[str]:
        """The paths under which a part may stand, the most telling first; what the user named alone, if he did."""
        if part in self.columns:
            return [self.columns[part]]
        given = [self.columns[name] for name in names(part) if name in self.columns]
        return given or [self.path[name] for name in (part, *names(part)) if name in self.path]

    def first(self, part: str) -> str | None:
        """The path of a part; None if there is none."""
        return next(iter(self.all(part)), None)

    def pairs(self, kind: str, parts: tuple[str, str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """The pairs of columns that are there, each as paths and as the names they go by."""
        usual = [parts, *pairs_of_names(kind)]
        given = [pair for pair in usual if self.columns.keys() & set(pair)]
        for one, two in given or usual:
            if one in self.path and two in self.path:
                yield (self.path[one], self.path[two]), (one, two)

    def values(self, path: str) -> list:
        return filled(self.rows, path)


def _prompt_parts(look: Names, answers: tuple[str, ...] = ()) -> dict[str, str]:
    """The columns of the prompt: its own, and those of its input, the system turn and earlier turns.

    answers: columns of answers; whole conversations bring their prompt along, and other columns may be about anything.
    """
    found = [path for path in look.all("prompt") if path not in answers]
    conversation = next((path for path in look.all("conversation") if path not in answers), None)
    is_named = bool({"prompt", *names("prompt")} & look.columns.keys())
    prompt = found[0] if found else conversation
    if conversation and not is_named and answers and "prompt" not in look.path:
        prompt = conversation
    if "instruction" in look.path and "prompt" not in look.path and prompt != conversation:
        prompt = look.path["instruction"]
    if not is_named and prompt and look.path.get("prompt") != prompt and _are_whole(look, answers):
        prompt = None
    parts = {"prompt": prompt} if prompt else {}
    reads_input = prompt is not None and prompt in (look.path.get("instruction"), "instruction")
    is_read = reads_input or "input" in look.columns
    if is_read and look.path.get("input") not in (None, prompt, *answers):
        parts["input"] = look.path["input"]
    if system := look.first("system"):
        parts["system"] = system
    if "history" in look.path and prompt not in (None, look.path["history"]):
        parts["history"] = look.path["history"]
    if not is_named and prompt and prompt != conversation:
        _refuse_constant(look, parts, [path for path in found if path not in parts.values()])
    return parts


def _refuse_constant(look: Names, parts: dict[str, str], others: list[str]) -> None:
    """A constant instruction beside a question that varies: nobody can tell whether the question belongs below it."""
    values = look.values(parts["prompt"])
    varied = [path for path in others if len({str(value) for value in look.values(path)}) > 1]
    if len(values) > 1 and len({str(value) for value in values}) == 1 and varied and "input" not in parts:
        flags = [f"prompt={varied[0]}", f"prompt={parts['prompt']},input={varied[0]}"]
        raise ValueError(
            f"{parts['prompt']} is the same in every row, and {varied[0]} is not; say which is the prompt by one of these\n"
            + "\n".join(f"  --columns {columns}" for columns in flags)
            + f"\n  --columns prompt={parts['prompt']} (and {varied[0]} is left out)"
        )


def _are_whole(look: Names, answers: tuple[str, ...]) -> bool:
    cells = [cell for path in answers for cell in look.values(path)]
    form = form_of(cells)
    return bool(cells) and all(_is_whole(cell, form) for cell in cells)


def _is_whole(cell, form: str) -> bool:
    try:
        text = as_text(cell, "answer", form) if form != "lists" else cell
    except Unusable:
        return False
    return is_transcript(text) or (isinstance(text, list) and isinstance(text[0], dict) and is_conversation(text))


# --- chosen and rejected ---


def answer_pairs(look: Names, verdicts: set, has_meaning: bool = False) -> list[Reading]:
    """Readings of two columns, one of better and one of worse answers. verdicts: columns that are verdicts."""
    found, of_names = [], []
    for paths, called in look.pairs("answer_pairs", ("chosen", "rejected")):
        parts = {"chosen": paths[0], "rejected": paths[1]}
        if paths[0] in verdicts:
            continue
        if has_meaning and set(called) <= look.columns.keys():
            found.append(Reading(_prompt_parts(look) | parts, TO_BE_SAID))
            continue
        if list(called) in _weak() and not look.columns and (rest := _answers_beside(look, paths)):
            raise ValueError(
                f"{paths[0]} and {paths[1]} may be answers, or remarks about {rest[0]}; if they are the answers, say so by "
                f"--columns chosen={paths[0]},rejected={paths[1]}"
            )
        columns = {canonical(key): key for key in _columns_of_texts(look, paths)}
        cells = [canonical(cell) for path in paths for cell in look.values(path) if isinstance(cell, str)]
        if sum(cell in columns for cell in cells) > len(cells) / 2:
            meaning = dict.fromkeys(TIES, TIE) | columns
            found.append(Reading(_prompt_parts(look) | parts, meaning, is_guess=True))
        else:
            scores = _score_columns(look, paths, ("chosen", "rejected")) or {}
            reading = Reading(_prompt_parts(look, paths) | parts | scores, is_guess=True)
            (of_names if _hold_names(look, paths) else found).append(reading)
    if of_names and not found:
        read = of_names[0].parts
        beside = [key for key in _columns_of_texts(look, ()) if key not in read.values()]
        if len(beside) > 1 and not look.columns:
            name = look.values(read["chosen"])[0]
            raise ValueError(
                f"{read['chosen']} and {read['rejected']} hold names ({name!r:.30}), and {', '.join(beside)} hold texts: "
                "say which are the answers by --columns chosen=...,rejected=..., or first=...,second=...,verdict=..."
            )
    return found or of_names[:1]


def _weak() -> list[list[str]]:
    return [pair.split() for pair in ("good bad", "better worse", "positive negative", "win lose")]


def _columns_of_texts(look: Names, but: tuple[str, ...]) -> list[str]:
    """Columns that hold texts of several words, or turns."""
    keys = dict.fromkeys(key for row in look.rows for key in row)
    return [key for key in keys if key not in but and _hold_texts(look.values(key))]


def _hold_texts(values: list) -> bool:
    words = [value for value in values if not isinstance(value, str) or " " in value.strip()]
    return len([value for value in words if isinstance(value, (str, list, dict))]) > len(values) / 2


def _hold_names(look: Names, paths: tuple[str, ...]) -> bool:
    """Whether columns hold a few short words again and again: names of models, say, and no answers."""
    cells = [cell for path in paths for cell in look.values(path)]
    if len(cells) < 4 or not all(isinstance(cell, str) and len(cell) < 60 for cell in cells):
        return False
    return len(set(cells)) <= min(FEW_NAMES, len(cells) // 2)


def _answers_beside(look: Names, paths: tuple[str, ...]) -> list[str]:
    return [look.path[name] for name in names("answer") if look.path.get(name) not in (None, *paths)]


# --- Two outputs and a verdict ---


def two_outputs(look: Names, has_meaning: bool = False) -> list[list[Reading]]:
    """For each verdict on two answers, the readings that its values fit, the clearest first; or by a score of each.

    has_meaning: the user says what the values mean.
    """
    for paths, called in look.pairs("two_outputs", (FIRST, SECOND)):
        if not any(isinstance(value, (str, list, dict)) for path in paths for value in look.values(path)):
            continue
        scores = _score_columns(look, paths, called) or {}
        options = [
            _verdicts(look, column, paths, called, has_meaning) for column in look.all("verdict") if column not in paths
        ]
        options = sorted(filter(None, [*options, _one_hot(look, paths, called)]), key=len)
        if not options and scores:
            options = [[Reading({})]]
        if options:
            base = _prompt_parts(look, paths) | {FIRST: paths[0], SECOND: paths[1]}
            return [[replace(r, parts=base | r.parts | scores, is_guess=True) for r in option] for option in options]
    return []


def _is_given(look: Names, part: str) -> bool:
    return bool({part, *names(part)} & look.columns.keys())


def _verdicts(look: Names, column: str, paths, called, has_meaning: bool) -> list[Reading]:
    """The readings of one verdict column: by model names, by words, or by numbers."""
    if has_meaning:
        return [Reading({"verdict": column}, TO_BE_SAID)]
    values, other = look.values(column), {}
    for one, two in pairs_of_names("answer_pairs"):  # the winner's column has a loser's beside it
        if look.path.get(one) == column and two in look.path and look.path[two] not in paths:
            other = {"other": look.path[two]}
    options = [Reading({"verdict": column} | other, meaning) for meaning in meanings(values, paths, column, called)]
    if models := _model_columns(look, called):
        named = [row for row in look.rows if canonical(dig(row, column)) not in ("", *TIES)]
        hits = sum(dig(row, column) in [dig(row, model) for model in models] for row in named)
        if named and hits >= len(named) / 2:
            by_model = Reading({"verdict": column, "model_first": models[0], "model_second": models[1]})
            return [by_model, *options] if "model_first" not in look.columns else [by_model]
    return options


def _model_columns(look: Names, called: tuple[str, str]) -> tuple[str, str] | None:
    if {"model_first", "model_second"} <= look.columns.keys():
        return look.columns["model_first"], look.columns["model_second"]
    marks = marks_of(called)
    for form in ("model_{}", "model{}", "model_name_{}", "{}_model"):
        columns = tuple(look.path.get(form.format(mark)) for mark in marks or ())
        if columns and None not in columns:
            return columns
    return None


def _one_hot(look: Names, paths, called) -> list[Reading]:
    """A column for each outcome, such as winner_model_a, winner_model_b and winner_tie."""
    marks = marks_of(called)
    keys = [key for key in dict.fromkeys(key for row in look.rows for key in row) if key not in paths]
    if not marks:
        return []
    said = [key for key in keys if re.search(r"win|prefer|better|best|chosen|tie|draw", key.lower())]
    said = [key for key in said if {canonical(v) for v in look.values(key)} <= {"0", "1", "true", "false"}]
    ties = [key for key in said if re.search(r"(^|_)(ties?|draw|both)(_|$)", canonical(key))][:1]
    for key in said:
        words = canonical(key).split("_")
        swapped = [marks[1] if word == marks[0] else word for word in words]
        twin = next((other for other in said if other != key and canonical(other).split("_") == swapped), None)
        if twin:
            columns = [key, twin, *ties]
            meaning = dict(zip(map(canonical, columns), (FIRST, SECOND, TIE), strict=False))
            return [Reading({"verdict": "|".join(columns)}, meaning | {"none": TIE})]
    return []


def _score_columns(look: Names, paths: tuple[str, str], called: tuple[str, str]) -> dict[str, str] | None:
    """The columns of the scores of two answers, by the names of the answers or by what tells those apart."""
    parts = ("score_chosen", "score_rejected") if called == ("chosen", "rejected") else ("score_first", "score_second")
    if set(parts) <= look.path.keys():
        return {part: look.path[part] for part in parts}
    marks = called if called == ("chosen", "rejected") else marks_of(called)
    spelled = [pair for pair in (marks, called, paths) if pair]
    for score in names("score"):
        for pair in spelled:
            for form in ("{1}_{0}", "{0}_{1}", "{1}{0}", "{0}-{1}"):
                columns = [look.path.get(form.format(one, score)) for one in pair]
                if None not in columns and all(_are_numbers(look.values(column)) for column in columns):
                    return dict(zip(parts, columns, strict=True))
    return None


def _are_numbers(values: list) -> bool:
    def is_number(value) -> bool:
        try:
            return not isinstance(value, bool) and value is not None and float(value) == float(value)
        except (TypeError, ValueError, OverflowError):
            return False

    return bool(values) and sum(map(is_number, values)) >= len(values) / 2


# --- Answers that are scored or labelled one by one ---


def one_by_one(look: Names, has_meaning: bool = False) -> list[Reading]:
    """Readings of answers that are scored or labelled one by one: in a list, or each in a row."""
    return [guess for guess in (_listed_answers(look), _scored_rows(look), _unpaired(look, has_meaning)) if guess]


def _listed_answers(look: Names) -> Reading | None:
    prompt = _prompt_parts(look)
    for answers in look.all("answers"):
        lists = [cell for cell in look.values(answers) if isinstance(cell, list) or str(cell).lstrip()[:1] == "["]
        if not lists or "prompt" not in prompt:
            continue
        scored = look.columns.get("labels") or next((path for path in look.all("scores") if any(
            isinstance(cell, list) or str(cell).lstrip()[:1] == "[" for cell in look.values(path))), None)  # fmt: skip
        inside = {
            key for cell in lists if isinstance(cell, list) for item in cell if isinstance(item, dict) for key in item
        }
        if scored is None and (name := next((name for name in names("score") if name in inside), None)):
            scored = f"{answers}[].{name}"
        if scored is None:
            continue
        if scored in look.all("scores") and scored not in look.columns.values():
            _refuse_order(scored, look.values(scored))
        cells = [item for cell in look.values(scored) for item in (cell if isinstance(cell, list) else [])]
        if "labels" in look.columns or (cells and not _are_numbers(cells) and _labels(cells)):
            meaning = _labels(cells) or TO_BE_SAID
            return Reading(prompt | {"answers": answers, "labels": scored}, meaning, is_guess=True)
        return Reading(prompt | {"answers": answers, "scores": scored}, is_guess=True)
    return None


def _refuse_order(column: str, cells: list) -> None:
    """A ranking such as 2, 3, 1 may hold each answer's rank, or the answers' numbers from the best one."""
    for cell in cells if "ranking" in canonical(column) else []:
        if not isinstance(cell, list) or len(cell) < 3 or not all(isinstance(place, int) for place in cell):
            continue
        ranks = [place - min(cell) for place in cell]
        if sorted(ranks) == list(range(len(ranks))) and any(ranks[ranks[place]] != place for place in ranks):
            raise ValueError(
                f"{column} holds {cell}, which may be each answer's rank, or the answers' numbers from the best one. If it is "
                f"the rank, say so by --columns scores={column}; else write a converter (docs/data.md)"
            )


def _scored_rows(look: Names) -> Reading | None:
    prompt = _prompt_parts(look)
    answer = next((path for path in look.all("answer") if path not in prompt.values()), None)
    score = next(
        (path for path in look.all("score") if _are_numbers(look.values(path)) or _is_given(look, "score")), None
    )
    if "prompt" not in prompt or not answer or not score:
        return None
    return Reading(prompt | {"answer": answer, "score": score}, is_guess=True)


def _unpaired(look: Names, has_meaning: bool) -> Reading | None:
    prompt = _prompt_parts(look)
    answer = next((path for path in look.all("answer") if path not in prompt.values()), None)
    whole = look.first("conversation")
    for label in look.all("label"):
        meaning = _labels(look.values(label)) or (TO_BE_SAID if has_meaning else None)
        if meaning and answer and "prompt" in prompt and prompt["prompt"] != whole:
            return Reading(prompt | {"answer": answer, "label": label}, meaning, is_guess=True)
        if meaning and whole:
            return Reading({"answer": whole, "label": label}, meaning, is_guess=True)
    return None


def _labels(values: list) -> dict[str, str] | None:
    """The meaning of good and bad labels; None where they are no such thing, or a scale."""
    seen = {canonical(value) for value in values} - {""}
    numbers = {word for word in seen if re.fullmatch(r"-?[\d.]+", word)}
    meaning = dict.fromkeys(GOOD_WORDS, GOOD) | dict.fromkeys(BAD_WORDS, BAD)
    words = {word: side for word, side in meaning.items() if word not in ("1", "0", "-1")}
    if numbers:
        return None if numbers - {"1", "0"} and numbers - {"1", "-1"} else {
            "1": GOOD, "-1" if "-1" in numbers else "0": BAD} | words  # fmt: skip
    known = sum(canonical(value) in words for value in values)
    return words if known and known >= len(values) / 2 else None
