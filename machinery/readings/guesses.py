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
from .values import FIRST, SECOND, TIE, TIES, canonical, is_number, labels, marks_of, meanings

TO_BE_SAID = {"?": "?"}  # the meaning of a verdict where the user says it
FEW_NAMES = 20  # so many different values at most are taken for names of models or columns rather than for answers
MAY_BE_REMARKS = ("good bad", "better worse", "positive negative", "win lose")


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
        self.keys = list(dict.fromkeys(key for row in rows for key in row if row[key] is not None))  # of nulls: none
        self.path = {}
        for key in self.keys:  # " Chosen" is chosen
            usual = re.sub(r"[\s-]+", "_", key.strip().lower())
            if usual in known and usual not in self.keys and key not in columns.values():
                self.path.setdefault(usual, key)
        self.path |= {key: key for key in self.keys if key not in columns.values()} | columns
        numbered = [key for key in self.keys if re.fullmatch(r"rejected_?\d+", key)]
        if len(numbered) > 1 and "rejected" not in self.path:
            self.path["rejected"] = numbered[0].rstrip("0123456789") + "*"

    def all(self, part: str) -> list[str]:
        """The paths under which a part may stand, the most telling first; what the user named alone, if he did."""
        if part in self.columns:
            return [self.columns[part]]
        given = [self.columns[name] for name in names(part) if name in self.columns]
        return given or [self.path[name] for name in (part, *names(part)) if name in self.path]

    def first(self, part: str, but=()) -> str | None:
        """The most telling path of a part that is not among others; None if there is none."""
        return next((path for path in self.all(part) if path not in but), None)

    def is_given(self, part: str) -> bool:
        """Whether the user named a part, by its own or a usual name."""
        return bool({part, *names(part)} & self.columns.keys())

    def pairs(self, kind: str, parts: tuple[str, str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """The pairs of columns that are there, each as paths and as the names they go by."""
        usual = [parts, *pairs_of_names(kind)]
        given = [pair for pair in usual if self.columns.keys() & set(pair)]
        for one, two in given or usual:
            if one in self.path and two in self.path:
                yield (self.path[one], self.path[two]), (one, two)

    def values(self, path: str) -> list:
        return filled(self.rows, path)

    def texts(self) -> list[str]:
        """The columns that hold texts of several words, or turns."""
        return [key for key in self.keys if _most(self.values(key), lambda value: isinstance(value, (list, dict))
                                                  or (isinstance(value, str) and " " in value.strip()))]  # fmt: skip


def _most(values: list, is_such) -> bool:
    return sum(map(is_such, values)) > len(values) / 2


# --- The prompt ---


def prompt_parts(look: Names, answers: tuple[str, ...] = ()) -> dict[str, str]:
    """The columns of the prompt: its own, and those of its input, the system turn and earlier turns.

    answers: columns of answers; whole conversations bring their prompt along, and other columns may be about anything.
    """
    found = [path for path in look.all("prompt") if path not in answers]
    conversation, instruction = look.first("conversation", answers), look.path.get("instruction")
    prompt = found[0] if found else conversation
    if "prompt" not in look.path and not look.is_given("prompt"):
        if conversation and answers:
            prompt = conversation
        elif instruction and prompt != conversation:
            prompt = instruction
        if prompt and _are_whole(look, answers):
            prompt = None
    parts = {"prompt": prompt} if prompt else {}
    reads_input = "input" in look.columns or (prompt is not None and prompt in (instruction, "instruction"))
    for part, is_read in (("input", reads_input), ("system", True), ("history", prompt is not None)):
        path = look.first("system") if part == "system" else look.path.get(part)
        if is_read and path and path not in (prompt, *answers):
            parts[part] = path
    if prompt and prompt != conversation and not look.is_given("prompt") and "input" not in parts:
        _refuse_constant(look, prompt, [path for path in found if path not in parts.values()])
    return parts


def _refuse_constant(look: Names, prompt: str, others: list[str]) -> None:
    """A constant instruction beside a question that varies: nobody can tell whether the question belongs below it."""
    varied = [path for path in others if len({str(value) for value in look.values(path)}) > 1]
    values = [str(value) for value in look.values(prompt)]
    if varied and len(values) > 1 and len(set(values)) == 1:
        raise ValueError(
            f"{prompt} is the same in every row, and {varied[0]} is not; say which is the prompt by one of these\n"
            f"  --columns prompt={varied[0]}\n  --columns prompt={prompt},input={varied[0]}\n"
            f"  --columns prompt={prompt} (and {varied[0]} is left out)"
        )


def _are_whole(look: Names, answers: tuple[str, ...]) -> bool:
    """Whether all answers are whole conversations, or transcripts of such."""
    cells = [cell for path in answers for cell in look.values(path)]
    form = form_of(cells)

    def is_whole(cell) -> bool:
        try:
            text = as_text(cell, "answer", form) if form != "lists" else cell
        except Unusable:
            return False
        return is_transcript(text) or (isinstance(text, list) and isinstance(text[0], dict) and is_conversation(text))

    return bool(cells) and all(map(is_whole, cells))


# --- chosen and rejected ---


def answer_pairs(look: Names, verdicts: set, has_meaning: bool = False) -> list[Reading]:
    """Readings of two columns, one of better and one of worse answers. verdicts: columns that are verdicts."""
    found, of_names = [], []
    for paths, called in look.pairs("answer_pairs", ("chosen", "rejected")):
        parts = {"chosen": paths[0], "rejected": paths[1]}
        if paths[0] in verdicts:
            continue
        if has_meaning and set(called) <= look.columns.keys():
            found.append(Reading(prompt_parts(look) | parts, TO_BE_SAID))
            continue
        answer = look.first("answer", paths)
        if " ".join(called) in MAY_BE_REMARKS and answer and not look.columns:
            raise ValueError(
                f"{paths[0]} and {paths[1]} may be answers, or remarks about {answer}; if they are the answers, say so by "
                f"--columns chosen={paths[0]},rejected={paths[1]}"
            )
        columns = {canonical(key): key for key in look.texts() if key not in paths}
        cells = [canonical(cell) for path in paths for cell in look.values(path) if isinstance(cell, str)]
        if _most(cells, columns.__contains__) and cells:
            meaning = dict.fromkeys(TIES, TIE) | columns
            found.append(Reading(prompt_parts(look) | parts, meaning, is_guess=True))
        else:
            scores = _score_columns(look, paths, called)
            reading = Reading(prompt_parts(look, paths) | parts | scores, is_guess=True)
            (of_names if _hold_names(look, paths) else found).append(reading)
    if of_names and not found and not look.columns:
        read = of_names[0].parts
        beside = [key for key in look.texts() if key not in read.values()]
        if len(beside) > 1:
            name = look.values(read["chosen"])[0]
            raise ValueError(
                f"{read['chosen']} and {read['rejected']} hold names ({name!r:.30}), and {', '.join(beside)} hold texts: "
                "say which are the answers by --columns chosen=...,rejected=..., or first=...,second=...,verdict=..."
            )
    return found or of_names[:1]


def _hold_names(look: Names, paths: tuple[str, ...]) -> bool:
    """Whether columns hold a few short words again and again: names of models, say, and no answers."""
    cells = [cell for path in paths for cell in look.values(path)]
    if len(cells) < 4 or not all(isinstance(cell, str) and len(cell) < 60 for cell in cells):
        return False
    return len(set(cells)) <= min(FEW_NAMES, len(cells) // 2)


# --- Two outputs and a verdict ---


def two_outputs(look: Names, has_meaning: bool = False) -> list[list[Reading]]:
    """For each verdict on two answers, the readings that its values fit, the clearest first; or by a score of each.

    has_meaning: the user says what the values mean.
    """
    for paths, called in look.pairs("two_outputs", (FIRST, SECOND)):
        if not any(isinstance(value, (str, list, dict)) for path in paths for value in look.values(path)):
            continue
        scores = _score_columns(look, paths, called)
        by_scores = set(scores) <= look.columns.keys() and scores and not look.is_given("verdict")
        if not look.is_given("verdict") and not by_scores:
            refuse_swapped(look)
        columns = [] if by_scores else [column for column in look.all("verdict") if column not in paths]
        options = [_verdicts(look, column, paths, called, has_meaning) for column in columns]
        options += [] if by_scores else [_one_hot(look, paths, called)]
        options = sorted(filter(None, options), key=len)
        if options or scores:
            base = prompt_parts(look, paths) | {FIRST: paths[0], SECOND: paths[1]}
            return [[replace(r, parts=base | r.parts | scores, is_guess=True) for r in option]
                    for option in options or [[Reading({})]]]  # fmt: skip
    return []


def refuse_swapped(look: Names) -> None:
    """A column that says where the answers were shown in another order: nobody can tell which order the verdict means."""
    for key in look.keys:
        if re.search(r"swap|flipped|reversed", key.lower()) and len({canonical(v) for v in look.values(key)}) > 1:
            raise ValueError(
                f"{key} differs from row to row, so a verdict may be about the answers as they stand, or in the other order. "
                "If as they stand, name it by --columns verdict=...; else turn those rows around, or write a converter"
            )


def _verdicts(look: Names, column: str, paths, called, has_meaning: bool) -> list[Reading]:
    """The readings of one verdict column: by model names, by words, or by numbers."""
    if has_meaning:
        return [Reading({"verdict": column}, TO_BE_SAID)]
    other = {}
    for one, two in pairs_of_names("answer_pairs"):  # the winner's column has a loser's beside it
        if look.path.get(one) == column and look.path.get(two) not in (None, *paths):
            other = {"other": look.path[two]}
    told = meanings(look.values(column), paths, column, called)
    options = [Reading({"verdict": column} | other, meaning) for meaning in told]
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
    for form in ("model_{}", "model{}", "model_name_{}", "{}_model"):
        columns = tuple(look.path.get(form.format(mark)) for mark in marks_of(called) or ())
        if columns and None not in columns:
            return columns
    return None


def _one_hot(look: Names, paths, called) -> list[Reading]:
    """A column for each outcome, such as winner_model_a, winner_model_b and winner_tie."""
    marks = marks_of(called)
    said = [
        key
        for key in look.keys
        if key not in paths and re.search(r"win|prefer|better|best|chosen|tie|draw", key.lower())
    ]
    said = [key for key in said if {canonical(v) for v in look.values(key)} <= {"0", "1", "true", "false"}]
    ties = [key for key in said if re.search(r"(^|_)(ties?|draw|both)(_|$)", canonical(key))][:1]
    for key in said if marks else ():
        swapped = [marks[1] if word == marks[0] else word for word in canonical(key).split("_")]
        twin = next((other for other in said if other != key and canonical(other).split("_") == swapped), None)
        if twin:
            columns = [key, twin, *ties]
            meaning = dict(zip(map(canonical, columns), (FIRST, SECOND, TIE), strict=False))
            return [Reading({"verdict": "|".join(columns)}, meaning | {"none": TIE})]
    return []


def _score_columns(look: Names, paths: tuple[str, str], called: tuple[str, str]) -> dict[str, str]:
    """The columns of the scores of two answers, by the names of the answers or by what tells those apart; {} if none."""
    sides = called if called == ("chosen", "rejected") else (FIRST, SECOND)
    parts = [f"score_{side}" for side in sides]
    if set(parts) <= look.path.keys():
        return {part: look.path[part] for part in parts}
    marks = called if sides == called else marks_of(called)
    for score in names("score"):
        for pair in filter(None, (marks, called, paths)):
            for form in ("{1}_{0}", "{0}_{1}", "{1}{0}", "{0}-{1}"):
                columns = [look.path.get(form.format(one, score)) for one in pair]
                if None not in columns and all(_are_numbers(look.values(column)) for column in columns):
                    return dict(zip(parts, columns, strict=True))
    return {}


def _are_numbers(values: list) -> bool:
    numbers = [value for value in values if not isinstance(value, bool) and is_number(canonical(value))]
    return bool(values) and len(numbers) >= len(values) / 2


# --- Answers that are scored or labelled one by one ---


def one_by_one(look: Names, has_meaning: bool = False) -> list[Reading]:
    """Readings of answers that are scored or labelled one by one: in a list, or each in a row."""
    parts = prompt_parts(look)
    rows = [*_scored_rows(look, parts), *_unpaired(look, parts, has_meaning)]
    return [*_listed_answers(look, parts, has_meaning), *rows]


def _is_list(cell) -> bool:
    return isinstance(cell, list) or str(cell).lstrip()[:1] == "["


def _listed_answers(look: Names, prompt: dict[str, str], has_meaning: bool) -> list[Reading]:
    for answers in look.all("answers") if "prompt" in prompt else ():
        lists = [cell for cell in look.values(answers) if _is_list(cell)]
        scores = [path for path in look.all("scores") if any(map(_is_list, look.values(path)))]
        inside = {
            key for cell in lists if isinstance(cell, list) for item in cell if isinstance(item, dict) for key in item
        }
        scores = [look.columns["labels"]] if "labels" in look.columns else scores
        scores += [f"{answers}[].{name}" for name in names("score") if name in inside]
        if not lists or not scores:
            continue
        scored = scores[0]
        if scored not in look.columns.values():
            _refuse_order(scored, look.values(scored))
        cells = [item for cell in look.values(scored) if isinstance(cell, list) for item in cell]
        is_label = "labels" in look.columns or canonical(scored) in ("label", "labels") or not _are_numbers(cells)
        told = labels(cells) if is_label else []
        if "labels" in look.columns and (has_meaning or not told):
            told = [TO_BE_SAID]
        if told:
            return [
                Reading(prompt | {"answers": answers, "labels": scored}, meaning, is_guess=True) for meaning in told
            ]
        return [Reading(prompt | {"answers": answers, "scores": scored}, is_guess=True)]
    return []


def refuse_steps(look: Names, reading: Reading) -> None:
    """TRL's stepwise supervision: the steps of one answer, each right or wrong, look like answers, each good or bad."""
    if reading.kind != "labelled_answers" or look.columns.keys() & {"answers", "labels"}:
        return
    answers, labels = reading.parts["answers"], reading.parts["labels"]
    cells = [item for cell in look.values(labels) if isinstance(cell, list) for item in cell]
    if (canonical(answers), canonical(labels)) == ("completions", "labels") and all(isinstance(c, bool) for c in cells):
        raise ValueError(
            f"{answers} and {labels} may be the steps of one answer, each right or wrong, which make no pair. If they are "
            f"answers to one prompt, say so by --columns answers={answers},labels={labels}"
        )


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


def _scored_rows(look: Names, prompt: dict[str, str]) -> list[Reading]:
    answer = look.first("answer", prompt.values())
    score = next(
        (path for path in look.all("score") if look.is_given("score") or _are_numbers(look.values(path))), None
    )
    if "prompt" not in prompt or not answer or not score:
        return []
    return [Reading(prompt | {"answer": answer, "score": score}, is_guess=True)]


def _unpaired(look: Names, prompt: dict[str, str], has_meaning: bool) -> list[Reading]:
    """Answers labelled good or bad; two readings where the label is called nothing more than that and holds numbers."""
    answer, whole = look.first("answer", prompt.values()), look.first("conversation")
    if answer and prompt.get("prompt") not in (None, whole):
        parts = prompt | {"answer": answer}
    elif whole:
        parts = {"answer": whole}
    else:
        return []
    for label in look.all("label"):
        told = [TO_BE_SAID] if has_meaning else labels(look.values(label))
        if canonical(label) != "label" or canonical(parts["answer"]) == "completion":
            told = told[:1]  # is_good says what 1 is, and so does TRL of a completion's label
        if told:
            return [Reading(parts | {"label": label}, meaning, is_guess=True) for meaning in told]
    return []
