"""What the values of a column say: which of two answers is better, good or bad, how good.

    canonical("Response A ")                        # "response_a": the form in which values are compared
    explains({"1..1.5": "first"}, "1.25")           # "1..1.5": the value, or the range, that a meaning has for it
    meanings([0, 1, 2], names, "winner")            # every reading of a verdict that fits: none, one, or several
    as_score("3.5", "rating"), as_score(1, "rank")  # 3.5, and -1.0: rank 1 is the best

A verdict is never guessed where its values fit two readings: numbers beside columns that are not numbered so, true and
false, a scale with a sign. `meanings` then returns both, and the user is asked.
"""

import math
import re

from .texts import Unusable

FIRST, SECOND, TIE, GOOD, BAD = "first", "second", "tie", "good", "bad"
TIES = (
    "tie ties tied draw both both_bad both_good bothbad both_are_bad both_are_good equal equally_good same neither "
    "tie_(bothbad) tie_(both_bad) a=b b=a [[c]] [[tie]] [[a=b]] no_preference"
).split()
GOOD_WORDS = "true good desirable chosen yes up thumbs_up like positive accept accepted preferred".split()
BAD_WORDS = "false bad undesirable rejected no down thumbs_down dislike negative reject dispreferred".split()
WHAT = ("model", "response", "output", "answer", "assistant", "completion", "candidate", "option", "conversation")
# Names of a verdict that hold the number of the better answer. In others (preference, win, label) 1 may be yes to the first.
AN_INDEX = re.compile(r"winn|choice|chosen|best|(better|preferred|safer)_|verdict|judg")
RANGE = re.compile(r"(-?\d+(?:\.\d+)?)?\.\.(-?\d+(?:\.\d+)?)?")  # 0..0.5, or 0.. and ..0
YES_OR_NO = re.compile(r"(label|target|class|win$|accepted)")
# rank, pos_rank, answerRank, RANK_1; and no reranker's score, nor a rank_score
RANK = re.compile(
    r"((?<![A-Za-z])rank|(?<![A-Za-z])RANK|(?<![A-Z])Rank)(s|ed|ing|ings|S|ED|ING|INGS)?(?![a-z])"
    r"(?![ _-]?(?i:score|reward|rating|logit))"
)
LOSS = re.compile(r"(?<![a-z])(loss|nll|perplexity|ppl|error|errors|cost|toxicity|distance|wer|cer)(?![a-z])", re.I)


def canonical(value) -> str:
    """A value as it is compared: 1, 1.0 and "1" are "1", "Response A" is "response_a", True is "true"; "" for none."""
    if isinstance(value, str):
        word = re.sub(r"[\s-]+(?=\D)|\s+", "_", value.strip().casefold())
        if not word or not (word[0].isdigit() or word[0] in "+-."):
            return word
    elif value is None:
        return ""
    elif isinstance(value, bool):
        return str(value).lower()
    elif not isinstance(value, (int, float)):
        return repr(value)[:60]
    try:
        return f"{float(value):.12g}" if math.isfinite(float(value)) else ""
    except (ValueError, OverflowError):
        return str(value).strip().casefold()


def is_number(word: str) -> bool:
    """Whether a canonical value is a number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def lowest_is_best(name: str) -> bool:
    """Whether numbers of a column of this name count from the best: ranks and losses."""
    return bool(RANK.search(name) or LOSS.search(name))


def as_score(value, name: str) -> float:
    """A finite number, also one written as text; of ranks and losses the negative, so that higher is better."""
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        fault = "missing_field" if value in (None, "") else "wrong_type"
        raise Unusable(fault, f"{name!r} is {value!r:.40}; a number is needed") from None
    if not math.isfinite(score):
        raise Unusable("wrong_type", f"{name!r} is {score}; a finite number is needed")
    return -score if lowest_is_best(name) else score


def marks_of(names: tuple[str, str]) -> tuple[str, str] | None:
    """What tells two columns apart: a and b of answer_a and answer_b, 1 and 2 of response1 and response2."""
    marks = [re.search(r"(\d+|[a-z])$", canonical(name)) for name in names]
    return (marks[0][1], marks[1][1]) if all(marks) and marks[0][1] != marks[1][1] else None


def words_for(names: tuple[str, str], other_names: tuple[str, str] | None = None) -> dict[str, str]:
    """Every word that names one of two columns, or a tie: {"response_a": "first", "a": "first", "a>b": "first", ...}.

    names: the columns. other_names: what they are called besides.
    """
    words = dict.fromkeys(TIES, TIE) | {"first": FIRST, "second": SECOND}
    marks = marks_of(names)
    spelled = [marks] if marks else []
    if marks in (None, ("1", "2"), ("0", "1")):
        spelled.append(("a", "b"))  # judges write A and B whatever the columns are called
    for one, two in spelled:
        for mark, other, side in ((one, two, FIRST), (two, one, SECOND)):
            if not mark.isdigit():  # 1 may count from 0 or from 1, whatever the columns are called
                words |= dict.fromkeys((mark, f"[[{mark}]]", f"[{mark}]", f"({mark})"), side)
            words |= dict.fromkeys((f"{mark}>{other}", f"{mark}>>{other}", f"{other}<{mark}", f"{other}<<{mark}"), side)
            words |= dict.fromkeys((f"[[{mark}>{other}]]", f"[[{mark}>>{other}]]", f"{mark}_is_better"), side)
            words |= {f"{what}{gap}{mark}": side for what in WHAT for gap in ("_", "")}
    for pair in (names, other_names or ()):
        for name, side in zip(pair, (FIRST, SECOND), strict=False):
            words |= {canonical(name): side, canonical(name.rpartition(".")[2]): side}
    return words


def explains(meaning: dict[str, str], word: str) -> str | None:
    """The key of a meaning that a canonical value falls under: itself, or the one range (0..0.5, or 0.. ) that it is in."""
    if word in meaning or not is_number(word):
        return word if word in meaning else None
    ranges = [(key, *found.groups()) for key in meaning if (found := RANGE.fullmatch(key))]
    inside = [key for key, low, high in ranges if float(low or "-inf") <= float(word) <= float(high or "inf")]
    return inside[0] if len(inside) == 1 else None  # on the border of two it is neither


def meanings(values: list, names: tuple[str, str], column: str, other_names=None) -> list[dict[str, str]]:
    """Every reading of a verdict that its values fit, as {value: first, second or tie}; none if it is no verdict.

    values: those of some rows. names: the two columns. column: the verdict's own name. other_names: see `words_for`.
    """
    seen = [word for word in map(canonical, values) if word]
    numbers = {float(word) for word in seen if is_number(word)}
    words = {word: side for word, side in words_for(names, other_names).items() if not is_number(word)}
    counted = {word for word in seen if is_numbered(word)} - set(map(canonical, names))
    from_1 = marks_of(names) == ("0", "1") and not any(word.endswith("0") for word in counted)
    if not seen or counted - words.keys() or (counted and from_1):
        return []  # model_1 beside response_0 and response_1
    if sum(word in words for word in seen) >= len(seen) / 2:
        return [words]
    if sum(word in ("true", "false") for word in seen) >= len(seen) / 2:
        return _both({"true": FIRST, "false": SECOND})
    if sum(map(is_number, seen)) < len(seen) / 2:
        return []
    return _readings_of_numbers(numbers, marks_of(names), canonical(column))


def is_numbered(word: str) -> bool:
    """Whether a canonical value names something by its number: model_2, response1."""
    return bool(re.fullmatch(rf"({'|'.join(WHAT)})_?\d+", word))


def _readings_of_numbers(numbers: set[float], marks: tuple[str, str] | None, column: str) -> list[dict[str, str]]:
    from_0, from_1 = {"0": FIRST, "1": SECOND}, {"1": FIRST, "2": SECOND, "1.5": TIE}
    if numbers <= {0, 1}:
        is_said = marks == ("0", "1") and 0 in numbers and AN_INDEX.search(column)
        return [from_0] if is_said else [from_0, {"1": FIRST, "0": SECOND}]
    if numbers <= {1, 1.5, 2}:
        is_said = 1.5 in numbers or (marks == ("1", "2") and not YES_OR_NO.match(column))  # 1.5 is between 1 and 2
        return [from_1] if is_said else [from_1, from_0 | {"2": TIE}]  # of which no 0 has turned up
    if numbers <= {0, 1, 2}:
        return [from_0 | {"2": TIE}, {"0": TIE, "1": FIRST, "2": SECOND}]
    if numbers <= {1, 2, 3}:
        return [{"1": FIRST, "2": SECOND, "3": TIE}, {"1": FIRST, "2": TIE, "3": SECOND}]
    if min(numbers) < 0:
        return _both({"..0": FIRST, "0": TIE, "0..": SECOND})
    if max(numbers) <= 1:
        return _both({"0..0.5": FIRST, "0.5": TIE, "0.5..1": SECOND})
    return []


def _both(meaning: dict[str, str]) -> list[dict[str, str]]:
    """A meaning, and the one turned around."""
    turned = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
    return [meaning, {word: turned[side] for word, side in meaning.items()}]


def labels(values: list) -> list[dict[str, str]]:
    """Every meaning of good and bad labels that some values fit; none if they are no such thing, or a scale.

    Of numbers there are two: 1 is yes to a question that nobody knows, and may be good or bad.
    """
    seen = [canonical(value) for value in values if canonical(value)]
    words = dict.fromkeys(GOOD_WORDS, GOOD) | dict.fromkeys(BAD_WORDS, BAD)
    numbers = {word for word in seen if is_number(word)}
    if numbers:
        low = "-1" if "-1" in numbers else "0"
        return [{"1": GOOD, low: BAD} | words, {"1": BAD, low: GOOD} | words] if numbers <= {"1", low} else []
    return [words] if seen and sum(word in words for word in seen) >= len(seen) / 2 else []
