"""Can any data be made that ends in a wrong pair? Draws rows whose truth is known, and holds what is read to it.

    python benchmarks/reading_draws.py                      # 100,000 draws; goes on where it was stopped
    python benchmarks/reading_draws.py --draws 2000 --fresh

A draw takes a public schema or the usual names of columns, an encoding of the verdict, cells as texts, turns or JSON, an
order of the rows (shuffled, or sorted by verdict, so that the first rows show one value only), and odd rows: ties, empty,
missing and unknown verdicts, capitals, cells that are cut off, numbers where words were. The first rows are recognised, as
the scripts do with the first hundred, and all of them read. Two ways: as it is, where a refusal is right and a wrong pair is
not; and under random column names with the flags that say what is what, where each sound row must give its pair. The
tests draw a few hundred. The count so far is kept in benchmarks/results/reading_draws.json.
"""

import argparse
import json
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from machinery.data.files import Row
from machinery.data.pairs import make_pairs
from machinery.readings.reading import Reading, names, pairs_of_names, schemas
from machinery.readings.recognise import recognise
from machinery.readings.texts import plain
from machinery.readings.values import AN_INDEX, canonical, explains, lowest_is_best, marks_of

KEPT = PROJECT / "benchmarks" / "results" / "reading_draws.json"
HEAD = 6  # so many first rows are looked at, where the scripts look at a hundred
TIED = ("tie", "Tie", "both_bad")
FORMS = ("text", "text", "text", "json", "pretty", "turn", "messages")
ODD = ("", None, "?", "unknown", "both are fine", 7, "A or B", [])


def main() -> None:
    """Draw, and stop at the first wrong pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--fresh", action="store_true", help="begin at 0 again")
    options = parser.parse_args()
    done = {"draws": 0, "refused": 0, "pairs": 0}
    if KEPT.exists() and not options.fresh:
        done = json.loads(KEPT.read_text(encoding="utf-8"))
    for number in tqdm(range(done["draws"], options.draws), "draws", initial=done["draws"], total=options.draws):
        problem, pairs = judge(random.Random(number))
        if problem:
            raise SystemExit(f"draw {number}: {problem}")
        done = {"draws": number + 1, "refused": done["refused"] + (pairs == 0), "pairs": done["pairs"] + pairs}
        if number % 500 == 499 or number + 1 == options.draws:
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps(done) + "\n", encoding="utf-8")
    print(f"{done['draws']:,} draws: {done['pairs']:,} pairs, none wrong; {done['refused']:,} draws gave none")


def judge(rng: random.Random) -> tuple[str | None, int]:
    """What is wrong with the pairs of one draw, None if nothing is, and how many were made of it as it is."""
    rows, truth, parts, meaning, needed = draw(rng)
    made, _ = read(rows)
    if problem := wrong(made, truth, rows):
        return problem, 0
    if parts is not None:
        renamed, columns = rename(rng, rows, parts)
        flagged, refusal = read(renamed, columns, meaning)
        if problem := wrong(flagged, truth, renamed):
            return f"with flags {columns} {meaning}: {problem}", 0
        missing = needed - sum("fault" not in pair for pair in flagged)
        if missing > 0:
            faults = [pair for pair in flagged if "fault" in pair]
            return (
                f"with flags {columns} {meaning}: {missing} pairs are missing: {refusal or faults[:3]} of {renamed[:2]}",
                0,
            )
    return None, sum("fault" not in pair for pair in made)


def read(rows: list[dict], columns=None, meaning=None) -> tuple[list[dict], str]:
    """The pairs and faults of rows, or none and the refusal."""
    try:
        reading = recognise(rows[:HEAD], columns, meaning)
        made = list(make_pairs([Row(f"row {n}", row) for n, row in enumerate(rows)], reading))
    except ValueError as error:
        return [], str(error)
    if odd := reading.unexplained():
        return [], f"{odd} is not explained"
    return made, ""


def wrong(made: list[dict], truth: dict[str, tuple | None], rows: list[dict]) -> str | None:
    """The first pair that is not as its rows have it."""
    for pair in made:
        if "fault" not in pair:
            said = tuple(plain(pair[part]) for part in ("prompt", "chosen", "rejected"))
            if truth.get(said[0]) != said[1:]:
                return f"{said} is made of {[rows[number] for number in pair['rows']]}; right is {truth.get(said[0])}"
    return None


# --- Drawing ---------------------------------------------------------------------------------------------------------


def draw(rng: random.Random) -> tuple[list[dict], dict, dict | None, dict | None, int]:
    """Rows, the pair that each question may give (None: no pair), the parts and meaning that flags would say, and how
    many questions must give their pair."""
    kind = rng.choice((_public, _two_outputs, _two_outputs, _pair, _references, _scored))
    reading, form = kind(rng), rng.choice(FORMS)
    truth, groups, needed = {}, [], 0
    count = rng.randint(2, 14)
    late = rng.randint(HEAD, count) if count > HEAD and rng.random() < 0.3 else count  # from here on all is otherwise
    other = Reading(reading.parts, reading.meaning, reading.schema)
    is_scale = any(".." in str(value) for value in reading.meaning)  # which may well explain what another would not
    if reading.kind == "two_outputs" and not reading.schema and "other" not in reading.parts and not is_scale:
        said = {canonical(value): meant for value, meant in reading.meaning.items()}
        others = _encodings(*(reading.parts[part] for part in ("first", "second", "verdict")))
        others = [e for e in others if all(said.get(explains(said, canonical(value)), meant) == meant and ".." not in str(value)
                                           for value, meant in e.items())]  # fmt: skip
        other = Reading(reading.parts, rng.choice(others))
    other_form = rng.choice(FORMS)
    for number in range(count):
        is_late = number >= late
        question, good, bad = f"Question {number}?", _answer(rng, "good", number), _answer(rng, "bad", number)
        asked = Question(question, good, bad, other_form if is_late else form, rng.random())
        made, is_sound = _rows(rng, other if is_late else reading, asked)
        if is_late and kind is _pair and rng.random() < 0.5:  # names of columns where answers were
            [row] = made
            row |= {"response_a": good, "response_b": bad}
            word = rng.choice(("response_{}", "{}", "Response_{}"))
            row |= {reading.parts["chosen"]: word.format("a"), reading.parts["rejected"]: word.format("b")}
        truth[question] = (good, bad) if is_sound else None
        needed += is_sound and not is_late
        groups.append(made)
    if late == count and rng.random() < 0.4 and reading.verdict:  # sorted by verdict
        groups.sort(key=lambda group: str(_top(group[0], reading.verdict)))
    rows = [row for group in groups for row in group]
    is_flat = not any(mark in path for path in reading.parts.values() for mark in ".[|")
    return rows, truth, reading.parts if is_flat else None, _flags_for(reading), needed


def _flags_for(reading: Reading) -> dict | None:
    return dict(reading.meaning) or None


def _public(rng) -> Reading:
    name, schema = rng.choice(list(schemas().items()))
    parts = {part: path for part, path in schema["columns"].items() if part in MADE and not path.endswith("?")}
    return Reading(parts, {str(value): meant for value, meant in schema.get("meaning", {}).items()}, schema=name)


MADE = ("prompt", "chosen", "rejected", "first", "second", "verdict", "score_first", "score_second", "answers", "scores",
        "labels", "answer", "score", "label", "tree", "message", "parent", "role")  # fmt: skip


def _prompt(rng) -> dict:
    return {"prompt": rng.choice([name for name in names("prompt") if name not in ("input", "history")])}


def _two_outputs(rng) -> Reading:
    first, second = rng.choice(pairs_of_names("two_outputs"))
    one, two = marks_of((first, second))
    parts = _prompt(rng) | {"first": first, "second": second}
    if rng.random() < 0.2:
        return Reading(parts | {"score_first": f"score_{one}", "score_second": f"score_{two}"})
    column = rng.choice([name for name in names("verdict") if name not in parts.values()])
    return Reading(parts | {"verdict": column}, rng.choice(_encodings(first, second, column)))


def _encodings(first: str, second: str, column: str) -> list[dict]:
    """What the values of a verdict on two columns may mean, as far as the names leave it open."""
    one, two = marks_of((first, second))
    encodings = [
        {first: "first", second: "second", "tie": "tie"},
        {f"model_{one}": "first", f"model_{two}": "second", "tie": "tie"},
        {0: "first", 1: "second", 2: "tie"},
        {0: "tie", 1: "first", 2: "second"},
        {1: "first", 0: "second"},
        {0: "first", 1: "second", 0.5: "tie"},
        {1: "first", 2: "second", 1.5: "tie"},
        {True: "first", False: "second"},
        {False: "first", True: "second"},
        {"..0": "first", 0: "tie", "0..": "second"},
        {"0..0.5": "second", 0.5: "tie", "0.5..1": "first"},
        {-2: "first", -1: "first", 0: "tie", 1: "second", 2: "second"},
        {-1: "second", 0: "tie", 1: "first"},
    ]
    if not one.isdigit():
        encodings += [{one.upper(): "first", two.upper(): "second"}, {f"[[{one}]]": "first", f"[[{two}]]": "second"}]
        encodings += [{f"{one}>{two}": "first", f"{two}>{one}": "second", f"{one}={two}": "tie"}]
    says_which = not column.startswith("label") and column != "win"
    if (one, two) == ("1", "2") and says_which:  # there 1 is the first
        encodings = [e for e in encodings if e.get(1) != "second" or isinstance(next(iter(e)), bool)]
    if (one, two) == ("0", "1") and AN_INDEX.search(column):  # there 0 is the first
        words = [e for e in encodings if all(isinstance(value, (str, bool)) for value in e)]
        encodings = [{0: "first", 1: "second"}, *words]
    return encodings


def _pair(rng) -> Reading:
    chosen, rejected = rng.choice(pairs_of_names("answer_pairs"))
    return Reading(_prompt(rng) | {"chosen": chosen, "rejected": rejected})


def _references(rng) -> Reading:
    """chosen and rejected name the columns of the answers, or their letters."""
    first, second = rng.choice(pairs_of_names("two_outputs"))
    one, two = marks_of((first, second))
    chosen, rejected = rng.choice((("chosen", "rejected"), ("winner", "loser"), ("preferred", "dispreferred")))
    words = {first: "first", second: "second"} if one.isdigit() or rng.random() < 0.5 else {one: "first", two: "second"}
    return Reading(_prompt(rng) | {"first": first, "second": second, "verdict": chosen, "other": rejected}, words)


def _scored(rng) -> Reading:
    score = rng.choice([*names("score"), "loss", "pos_rank"])
    if rng.random() < 0.4:
        return Reading(_prompt(rng) | {"answer": rng.choice(names("answer")), "score": score})
    if rng.random() < 0.3:
        parts = _prompt(rng) | {"answer": rng.choice(names("answer")), "label": rng.choice(names("label"))}
        meanings = [{True: "good", False: "bad"}, {1: "good", 0: "bad"}, {"desirable": "good", "undesirable": "bad"},
                    {1: "good", -1: "bad"}]  # fmt: skip
        is_open = parts["label"] == "label" and parts["answer"] != "completion"
        return Reading(parts, rng.choice([*meanings, *[{1: "bad", 0: "good"}] * is_open]))
    answers = rng.choice(names("answers"))
    return Reading(
        _prompt(rng)
        | {"answers": answers, "scores": rng.choice(("scores", "ratings", "ranks", f"{answers}[].{score}"))}
    )


def _answer(rng, kind: str, number: int) -> str:
    text = f"A {kind} answer {number}"
    return rng.choice((text, text, f" {text}.\n", f'[{{"from": "{text}", "to": "Rome"}}]', f'{{"role": "clerk", "text": "{text}"}}',
                       f'["{text}", "more"]', f"{text}\n\n- a list"))  # fmt: skip


class Question(NamedTuple):
    """One question with a better and a worse answer, the form in which cells are written, and a number from 0 to 1."""

    text: str
    good: str
    bad: str
    form: str
    odd: float


def _rows(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    """The rows of one question, and whether a pair must come of them."""
    return DRAWN[reading.kind](rng, reading, asked)


def _prompt_of(reading: Reading, asked: Question) -> dict:
    row, path = {}, reading.parts.get("prompt")
    if path and ".:-1" not in path:
        _put(row, path, _write(reading, asked, asked.text, "user"))
    return row


def _answers(reading: Reading, asked: Question, *texts: str) -> list:
    """Answers as cells; whole conversations where there is no column for the prompt."""
    if "prompt" in reading.parts:
        return [_write(reading, asked, text, "assistant") for text in texts]
    return [[{"role": "user", "content": asked.text}, {"role": "assistant", "content": text}] for text in texts]


def _preference(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    parts, row = reading.parts, _prompt_of(reading, asked)
    if ".:-1" in parts.get("prompt", ""):
        turns = [{"role": "user", "content": asked.text}, {"role": "assistant", "content": asked.good}]
        return [row | {"messages": turns, parts["rejected"]: asked.bad}], True
    if "." in parts["chosen"]:
        return [row | {parts["chosen"].split(".")[0]: [asked.good, asked.bad]}], True
    chosen, rejected = _answers(reading, asked, asked.good, asked.bad)
    is_json = "prompt" in parts and asked.form in ("json", "pretty")
    if asked.odd < 0.05:
        chosen = None
    elif asked.odd < 0.1 and is_json:
        chosen = chosen[: len(chosen) * 2 // 3]  # as a spreadsheet cuts a cell
    elif asked.odd < 0.15 and is_json:
        chosen = str(json.loads(chosen))  # in Python's writing
    return [row | {parts["chosen"]: chosen, parts["rejected"]: rejected}], asked.odd >= (0.15 if is_json else 0.05)


def _two(rng, reading: Reading, asked: Question) -> tuple[str, dict]:
    """Which of two answers is the better, and a row of them."""
    side, row = rng.choice(("first", "second")), _prompt_of(reading, asked)
    texts = (asked.good, asked.bad) if side == "first" else (asked.bad, asked.good)
    for part, cell in zip(("first", "second"), _answers(reading, asked, *texts), strict=True):
        _put(row, reading.parts[part], cell)
    return side, row | _needed(reading)


def _two_scores(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    side, row = _two(rng, reading, asked)
    scores = (5, 5) if asked.odd < 0.1 else (9, 2) if side == "first" else (2, 9)
    row |= {reading.parts["score_first"]: scores[0], reading.parts["score_second"]: scores[1]}
    return [row], scores[0] != scores[1]


def _two_outputs_and_verdict(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    side, row = _two(rng, reading, asked)
    parts, meaning, path = reading.parts, reading.meaning, reading.parts["verdict"]
    value = rng.choice([value for value, meant in meaning.items() if meant == side])
    ties = [value for value, meant in meaning.items() if meant == "tie" and ".." not in str(value)]
    if asked.odd < 0.1 and ties:
        value = rng.choice(ties)
    elif asked.odd < 0.2:
        value = rng.choice([word for word in (*ODD, *TIED) if explains(_canonical(meaning), canonical(word)) is None])
    elif asked.odd < 0.3 and isinstance(value, str) and "|" not in path:
        value = value.upper()
    if ".." in str(value):
        low, high = (float(end or sign) for end, sign in zip(value.split(".."), (-9, 9), strict=True))
        value = rng.choice((low + 0.1 * (high - low), high - 0.1 * (high - low)))
    if "|" in path:
        row |= {name: int(name == value) for name in path.split("|")}
    else:
        is_number = isinstance(value, str) and value.lstrip("-").replace(".", "").isdigit()
        _put(row, path, float(value) if is_number else value)
    if "other" in parts:
        row[parts["other"]] = rng.choice([word for word, meant in meaning.items() if meant not in (side, "tie")])
    return [row], asked.odd > 0.2


def _canonical(meaning: dict) -> dict[str, str]:
    return {canonical(value): meant for value, meant in meaning.items()}


def _listed(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    parts, row = reading.parts, _prompt_of(reading, asked)
    middling = [(f"middling {asked.good}", 2)] if "scores" in parts else []
    texts = [(asked.bad, 1), *middling, (asked.good, 3)]
    rng.shuffle(texts)
    if "labels" in parts:
        words = {3: "preferred", 1: "non-preferred"}
        messages = [{"role": "user", "content": [{"text": asked.text}]}]
        candidates = [{"content": [{"text": text}], "preferenceLabel": words[value]} for text, value in texts]
        return [{"messages": [*messages, {"role": "assistant", "candidates": candidates}]}], True
    column, _, inner = parts["scores"].partition("[].")
    if lowest_is_best(inner or column):
        texts = [(text, 4 - value) for text, value in texts]
    if not inner:
        lists = {parts["answers"]: [text for text, _ in texts], column: [value for _, value in texts]}
        return [row | lists], True
    key = parts["answers"].partition("[].")[2] or rng.choice(("text", "response", "content"))
    turn = key == "completion" and reading.schema == "vertex"
    cells = [{"role": "model", "parts": [{"text": text}]} if turn else text for text, _ in texts]
    return [row | {column: [{key: cell, inner: value} for cell, (_, value) in zip(cells, texts, strict=True)]}], True


def _tree(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    replies = [{"role": "assistant", "text": text, "rank": rank} for rank, text in enumerate((asked.good, asked.bad))]
    rng.shuffle(replies)
    return [
        {"message_tree_id": "x", reading.parts["tree"]: {"role": "prompter", "text": asked.text, "replies": replies}}
    ], True


def _messages(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    replies = [{"parent_id": asked.text, "role": "assistant", "text": text, "rank": rank, "message_id": asked.text + text}
               for rank, text in enumerate((asked.good, asked.bad))]  # fmt: skip
    root = {"message_id": asked.text, "parent_id": None, "role": "prompter", "text": asked.text, "rank": None}
    rows = [root, *replies]
    rng.shuffle(rows)
    return rows, True


def _one_a_row(rng, reading: Reading, asked: Question) -> tuple[list[dict], bool]:
    parts, rows = reading.parts, []
    path = parts.get("score") or parts["label"]
    for text, is_good in ((asked.bad, False), (asked.good, True)):
        if "score" in parts:
            value = int(is_good != lowest_is_best(path))
        else:
            value = rng.choice([value for value, meant in reading.meaning.items() if (meant == "good") == is_good])
        [cell] = _answers(reading, asked, text)
        rows.append(_prompt_of(reading, asked) | {parts["answer"]: cell, path: value} | _needed(reading))
    return rows, True


DRAWN = {
    "preference": _preference,
    "two_outputs": _two_outputs_and_verdict,
    "two_scores": _two_scores,
    "scored_answers": _listed,
    "labelled_answers": _listed,
    "scored_rows": _one_a_row,
    "unpaired": _one_a_row,
    "tree": _tree,
    "messages": _messages,
}


def _needed(reading: Reading) -> dict:
    return dict.fromkeys(schemas().get(reading.schema, {}).get("needs", ()), "x") | (
        {"turn": 1} if reading.schema == "mt_bench" else {}
    )


def _write(reading: Reading, asked: Question, text: str, role: str):
    """A text as a cell, in the form of its column."""
    if reading.schema == "lmsys_one_hot":
        return json.dumps([text])
    turn = {"role": role, "content": text}
    return {"text": text, "json": json.dumps([turn]), "pretty": json.dumps([turn], indent=1),
            "turn": json.dumps(turn), "messages": json.dumps({"messages": [turn]})}[asked.form]  # fmt: skip


def _put(row: dict, path: str, value) -> None:
    """Write a value at a path such as a.b or a.0.b."""
    if path in row or not any(mark in path for mark in "."):
        row[path] = value
        return
    steps = path.split(".")
    for step, following in pairwise(steps):
        kind = list if following.isdigit() else dict
        if isinstance(row, list):
            while len(row) <= int(step):
                row.append(kind())
            row = row[int(step)]
        else:
            row = row.setdefault(step, kind())
    row.append(value) if isinstance(row, list) else row.__setitem__(steps[-1], value)


def _top(row: dict, path: str):
    return row.get(path.split("|")[0].split(".")[0])


def rename(rng, rows: list[dict], parts: dict[str, str]) -> tuple[list[dict], dict]:
    """The rows under made-up column names, and the columns that say which is which."""
    new = {
        # whether the lowest is the best is in the name
        path: path if lowest_is_best(path) else f"{rng.choice(('col', 'Spalte', 'x y', 'f'))}{number}"
        for number, path in enumerate(parts.values())
    }
    columns = {part: new[path] for part, path in parts.items()}
    return [{new.get(key, key): value for key, value in row.items()} for row in rows], columns


if __name__ == "__main__":
    main()
