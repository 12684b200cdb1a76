"""Pairs and faults from rows, each row by one reading; of several scored answers, which are compared.

    for made in make_pairs(rows, reading):                # rows have .where, .value and .fault
        made["prompt"], made["chosen"], made["rejected"], made["rows"]      # a pair and the numbers of its rows
        made["fault"], made["text"], made["rows"]                           # or why a row gives none

Every row ends up in a pair or in a fault.
"""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import combinations
from statistics import fmean, pstdev

from ..common.errors import UserError
from ..readings.convert import convert
from ..readings.reading import Reading
from ..readings.texts import Unusable, assemble

PAIRINGS = ("best_worst", "best_random", "best_2sigma", "all")


def make_pairs(
    rows: Iterable, reading: Reading, pairing: str = "best_worst", min_margin: float = 0.0, seed: int = 0
) -> Iterator[dict]:
    """Pairs and faults, with the numbers of the rows they come from, counted from 0.

    rows: objects with where, value and fault; the first item of a prompt whose answers stand in several rows has their
    "scores". pairing: which of several answers to a prompt make pairs; "best_worst", "best_random" (against any worse one,
    by the seed), "best_2sigma" (against the one nearest to two standard deviations below the mean score, as
    arXiv:2502.16825 found best where there are many) or "all". min_margin: the least difference of two scores.
    """
    groups: dict[str, list[tuple[int, str, dict]]] = {}
    messages: dict[str, tuple[int, str, dict]] = {}
    is_grouped = reading.is_grouped
    if not reading.has_scores and reading.convert is None:
        min_margin = 0.0  # labels are not apart by so much
    for number, row in enumerate(rows):
        try:
            if row.fault is not None:
                raise Unusable("unreadable", row.fault)
            if not isinstance(row.value, dict):
                raise Unusable("unreadable", f"is {row.value!r:.40}; an object with named columns is needed")
            made = convert(row.value, reading)
            if (
                reading.kind == "messages"
                and messages.setdefault(made["message"], (number, row.where, made))[0] != number
            ):
                raise Unusable(
                    "wrong_type", f"{reading.parts['message']!r} is {made['message']!r}, as in an earlier row"
                )
            if min_margin and isinstance(made, dict) and "answers" not in made:
                _check_margin(made, reading, min_margin)
        except Unusable as error:
            yield {"rows": [number], "where": row.where, "fault": error.fault, "text": str(error)}
            continue
        if reading.kind == "messages":
            continue
        if isinstance(made, list):
            yield from _of_one_row(made, number, row.where, pairing, min_margin, seed)
        elif "answers" not in made:
            yield made | {"rows": [number], "where": row.where}
        elif is_grouped:
            key = json.dumps([made["prompt"], made.get("tools")], sort_keys=True)
            groups.setdefault(key, []).append((number, row.where, made))
        else:
            yield from _pairs_of([(number, row.where, made)], pairing, min_margin, seed)
    yield from _of_messages(messages, pairing, min_margin, seed)
    for group in groups.values():
        first, *rest = _pairs_of(group, pairing, min_margin, seed)
        yield first | {"scores": [score for _, _, made in group for _, score in made["answers"]]}
        yield from rest


def refuse_unreadable(made: dict) -> None:
    """Raise UserError for a row that cannot be read at all."""
    if made.get("fault") == "unreadable":
        raise UserError(f"{made['where']}: {made['text']}. --skip_bad_rows goes on without such rows.")


def _check_margin(made: dict, reading: Reading, min_margin: float) -> None:
    """Raise Unusable for a pair whose scores are too near to each other, or of which one is missing."""
    scores = [made[name] for name in ("score_chosen", "score_rejected") if name in made]
    if len(scores) < 2 and (scores or reading.has_scores):
        raise Unusable("missing_field", "--min_margin compares two scores, and one of them is missing")
    if scores and not _is_apart(scores[0] - scores[1], min_margin):
        raise Unusable("not_chosen", f"the scores are less than {min_margin:g} apart")


def _of_one_row(
    groups: list[dict], number: int, where: str, pairing: str, min_margin: float, seed: int
) -> Iterator[dict]:
    """The pairs of a row that has answers to several prompts, such as a tree; a fault only if there is none at all."""
    made = [one for group in groups for one in _pairs_of([(number, where, group)], pairing, min_margin, seed)]
    yield from [one for one in made if "fault" not in one] or made[:1]


def _of_messages(messages: dict, pairing: str, min_margin: float, seed: int) -> Iterator[dict]:
    """The pairs among the ranked replies to one message, where each message is a row of its own.

    messages: (row number, where, {"message", "parent", "turn", "score"}) by name. The rows of a pair are all that it says.
    """
    replies: dict[str, list] = {}
    for node in messages.values():
        if node[2]["score"] is not None and node[2]["parent"] in messages:
            replies.setdefault(node[2]["parent"], []).append(node)
    used, faults = set(), {}
    for parent, nodes in replies.items():
        above, name = [], parent
        while name in messages and messages[name] not in above:
            above.insert(0, messages[name])
            name = above[0][2]["parent"]
        has_root = name is None or (name == 0 and 0 not in messages)  # which some write for no parent
        if len(nodes) < 2 or not has_root or above[-1][2]["turn"]["role"] != "user":
            continue
        prompt = [made["turn"] for _, _, made in above]
        group = [
            (number, where, {"prompt": prompt, "answers": [([made["turn"]], made["score"])]})
            for number, where, made in nodes
        ]
        for made in _pairs_of(group, pairing, min_margin, seed):
            if "fault" in made:
                faults[made["rows"][0]] = made
            else:
                made["rows"] = sorted({*made["rows"], *(number for number, _, _ in above)})
                used.update(made["rows"])
                yield made
    alone = {"fault": "no_partner", "text": "it is compared with no other reply to the same message"}
    for number, where, _ in messages.values():
        if number not in used:
            yield faults.get(number, alone | {"rows": [number], "where": where})


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


def _is_apart(difference: float, min_margin: float) -> bool:
    """Whether two scores differ by the margin as it is written: in binary 0.3 - 0.2 is less than 0.1."""
    return difference >= min_margin - 1e-9


def choose_pairs(
    scores: list[float], pairing: str, min_margin: float, seed: str, texts: list[str] | None = None
) -> list[tuple[int, int]]:
    """Which answers to compare, as (better, worse); never two of the same score, nor one text that was scored twice."""

    def may_pair(better: int, worse: int) -> bool:
        is_one_text = texts is not None and texts[better] == texts[worse]
        difference = scores[better] - scores[worse]
        return not is_one_text and difference > 0 and _is_apart(difference, min_margin)

    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    if pairing == "all":
        return [(better, worse) for better, worse in combinations(order, 2) if may_pair(better, worse)]
    worse = [number for number in order[1:] if may_pair(order[0], number)]
    if not worse:
        return []
    rejected = worse[-1]
    if pairing == "best_random":
        rejected = random.Random(seed).choice(worse)
    elif pairing == "best_2sigma":
        aimed_at = fmean(scores) - 2 * pstdev(scores)
        rejected = min(worse, key=lambda number: abs(scores[number] - aimed_at))
    return [(order[0], rejected)]
