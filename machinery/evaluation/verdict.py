"""From answers and a judge to verdicts in words: who won, how sure that is, and what it would take to be surer.

    outcomes = judge_all(judge, prompts, reference, [{"model": "runs/basic", "answers": answers, "measured": {}}])
    print(outcomes[0].word, outcomes[0].sentences)

Wins are averaged over a prompt's answers before anything else: prompts are what was drawn from the world. Glue between
judges/ and intervals.py.
"""

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.errors import is_out_of_memory
from ..common.intervals import (
    LANGUAGE_MODEL_JUDGE,
    OTHER_JUDGE,
    SURE,
    SlopePrior,
    holm,
    length_controlled_rate,
    length_shift,
    mean_interval,
    paired_test,
    prompts_needed,
    rate,
    smallest_difference,
    with_interval,
)
from ..common.safe_text import first_line
from ..judges.interface import BY_TEXT, FIRST, SECOND, Comparison, Judge, JudgeError, Verdict
from .entropy import Sureness, excess

MATCHED, GREEDY = "at matched entropy", "greedily"
ENTROPIES = ("entropy", "entropy_reference", "entropy_reply", "entropy_reply_reference", "matched_temperature")
ORDER = "order_decided"  # the share of verdicts that were asked for in both orders and turned with it
FURTHEST_SHIFT = 1.0  # standard deviations of mean length difference; beyond them length control extrapolates


class Reference(NamedTuple):
    """What every model is held against: the one they started from, and what it makes of the pairs and the prompts."""

    name: str
    model: PreTrainedModel | None  # None where its answers come from elsewhere
    tokenizer: PreTrainedTokenizerBase | None
    given: tuple | None = None  # of each pair: log-probs of the chosen and of the rejected answer, and both lengths
    answers: list[list] | None = None  # by prompt, what it writes itself
    logps: np.ndarray | None = None  # of these, (prompts, answers)
    greedy: list[list] | None = None  # by prompt, its likeliest answer, where entropy is controlled
    text_logps: np.ndarray | None = None  # of each piece of the user's texts


@dataclass
class Outcome:
    """One model's answers against another's, prompt by prompt."""

    model: str
    against: str
    verdicts: list[list[Verdict]]  # by prompt, one a judged answer
    wins: np.ndarray  # by prompt, 0 to 1; nan where nothing was judged
    longer_by: np.ndarray  # by prompt, tokens
    p_value: float = math.nan
    comparisons: int = 1  # of its kind, for which the p-value is corrected
    word: str = "not judged"
    sentences: list[str] = field(default_factory=list)
    measured: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    problem: str | None = None  # why the judge could not judge
    controls: dict[str, "Outcome"] = field(default_factory=dict)  # by what is held equal: MATCHED, GREEDY


def judge_all(judge: Judge | None, prompts: list, reference: Reference, results: list[dict]) -> list[Outcome]:
    """Every model against the reference, then each against each other.

    results: of each model its name as "model", its "answers" by prompt, and what was "measured"; by MATCHED and GREEDY,
    where entropy is controlled, answers of the reference and of the model under "controls". It gets its "outcome"
    against the reference, and among what was measured the rates of that and the mean scores of the judge.
    """
    written = {reference.name: reference.answers} | {result["model"]: result["answers"] for result in results}
    names = [result["model"] for result in results]
    matches = [(name, reference.name) for name in names] + [(new, old) for old, new in combinations(names, 2)]
    outcomes = [compare(judge, prompts, written[old], written[new], model=new, against=old) for new, old in matches]
    for result, outcome in zip(results, outcomes, strict=False):  # the first of them are those against the reference
        result["outcome"] = outcome
        outcome.measured |= {
            name: result["measured"][name] for name in ("kl", *ENTROPIES) if name in result["measured"]
        }
        for control, (old, new) in result.get("controls", {}).items():
            names = dict(model=outcome.model, against=f"{reference.name} {control}")
            controlled = compare(judge, prompts, old, new, **names)
            if judge is None or not np.isnan(controlled.wins).all():
                outcome.controls[control] = controlled
            outcome.problem = outcome.problem or controlled.problem
    decide(outcomes, LANGUAGE_MODEL_JUDGE if judge is not None and judge.is_language_model else OTHER_JUDGE)
    for result, outcome in zip(results, outcomes, strict=False):
        add_scores(result, outcome)
        for name, key in ((MATCHED, "win_rate_matched"), (GREEDY, "win_rate_greedy")):
            if name in outcome.controls and "win_rate" in outcome.controls[name].measured:
                result["measured"][key] = outcome.controls[name].measured["win_rate"]
        result["measured"] |= outcome.measured
    return outcomes


def compare(
    judge: Judge | None, prompts: list, first: list[list], second: list[list], model: str, against: str
) -> Outcome:
    """Let a judge compare the answers of two models to the same prompts.

    first, second: by prompt, the completions (text, ids) of the one it is compared `against` and of the `model`. A
    judge sees the first of each prompt, pair by pair, as many as it compares.
    """
    count = min(map(len, first))
    count = 1 if judge is None else min(count, judge.most_answers or count)
    first, second = ([answers[:count] for answers in side] for side in (first, second))
    lengths = [[[len(answer.ids) for answer in answers] for answers in side] for side in (first, second)]
    old_length, new_length = np.array(lengths).mean(axis=2)  # (prompts,) each
    verdicts, problem = [[] for _ in prompts], None
    if judge is not None:
        comparisons = [
            Comparison(prompt, old[n].text, new[n].text)
            for prompt, old, new in zip(prompts, first, second, strict=True)
            for n in range(count)
        ]
        try:
            flat = judge.judge(comparisons, progress=f"judging {model}")
            verdicts = [flat[start : start + count] for start in range(0, len(flat), count)]
        except JudgeError as error:  # all that needs no judge is still to be written
            problem = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = f"the judge ran out of memory: {first_line(error)}"
    judged = [[verdict.win for verdict in row if verdict.win is not None] for row in verdicts]
    wins = np.array([np.mean(row) if row else math.nan for row in judged])
    outcome = Outcome(model, against, verdicts, wins, longer_by=new_length - old_length, problem=problem)
    outcome.measured |= what_decided(verdicts)
    return outcome


def what_decided(verdicts: list[list[Verdict]]) -> dict[str, tuple[float, float, float]]:
    """Of the verdicts that were asked for in both orders: how many there are, and the shares that turned with the order.

    verdicts: by prompt. Nothing where none was asked for so. The interval is over the prompts.
    """
    asked = [[v.decided for v in row if v.decided is not None] for row in verdicts]
    asked = [row for row in asked if row]
    if not asked:
        return {}
    flat = [decided for row in asked for decided in row]
    return {
        ORDER: rate([np.mean([decided != BY_TEXT for decided in row]) for row in asked]),
        "order_took_first": (flat.count(FIRST) / len(flat), math.nan, math.nan),
        "order_took_second": (flat.count(SECOND) / len(flat), math.nan, math.nan),
        "asked_in_both_orders": (float(len(flat)), math.nan, math.nan),
    }


def decide(outcomes: list[Outcome], prior: SlopePrior = OTHER_JUDGE) -> None:
    """Give each outcome its rates, a p-value that is corrected for all of its kind, a verdict and the sentences behind it.

    prior: how the judge's verdicts go with length, see `length_controlled_rate`.
    """
    for control in (None, MATCHED, GREEDY):
        of_a_kind = outcomes if control is None else [o.controls[control] for o in outcomes if control in o.controls]
        judged = [outcome for outcome in of_a_kind if not np.isnan(outcome.wins).all()]
        for outcome in judged:
            is_judged = ~np.isnan(outcome.wins)
            wins, longer_by = outcome.wins[is_judged], outcome.longer_by[is_judged]
            outcome.measured["win_rate"] = rate(wins)
            shift = length_shift(longer_by)
            if len(wins) > 2 and math.isfinite(shift):  # else all are longer by the same: nothing tells what that does
                outcome.measured["win_rate_length_controlled"] = length_controlled_rate(wins, longer_by, prior)
                outcome.measured["length_shift"] = (shift, math.nan, math.nan)
            outcome.p_value = paired_test(wins - 0.5)
        for outcome, p_value in zip(judged, holm([outcome.p_value for outcome in judged]), strict=True):
            outcome.p_value, outcome.comparisons = p_value, len(judged)
    for outcome in outcomes:
        if "win_rate" in outcome.measured:
            outcome.word, outcome.sentences = in_words(outcome)
            outcome.sentences += about_length(outcome, prior)


def side(outcome: Outcome) -> int:
    """1 where the model won beyond chance, -1 where it lost, 0 where nobody can tell."""
    if outcome.p_value >= SURE:
        return 0
    return 1 if outcome.measured["win_rate"][0] > 0.5 else -1


def word_of(outcome: Outcome) -> str:
    """ "better" and "worse" hold at matched entropy and greedily, where those were judged."""
    sampled, controlled = side(outcome), {side(control) for control in outcome.controls.values()}
    if not controlled or (len(controlled) == 1 and controlled != {0}):
        return ("worse", "cannot tell", "better")[1 + (controlled or {sampled}).pop()]
    if controlled != {0}:
        return "mixed"
    token, other_token, reply, other_reply = (outcome.measured[name][0] for name in ENTROPIES[:4])
    surer = excess(Sureness(other_token, other_reply), Sureness(token, reply)) > 1
    if sampled == (1 if surer else -1):
        return "only surer of itself" if surer else "only less sure of itself"
    return "cannot tell"


def in_words(outcome: Outcome) -> tuple[str, list[str]]:
    """What `word_of` says, and why."""
    count, (share, low, high) = int((~np.isnan(outcome.wins)).sum()), outcome.measured["win_rate"]
    word = word_of(outcome)
    holms = f", corrected for {outcome.comparisons} comparisons" if outcome.comparisons > 1 else ""
    sentences = [
        f"Win rate of {outcome.model} against {outcome.against}: {share:.2f} [{low:.2f}, {high:.2f}] on {count} "
        f"prompt{'s' if count > 1 else ''}, ties half (paired test: p {_p(outcome)}{holms})."
    ]
    sentences += _of_order(outcome) + _of_controls(outcome, word) + _price(outcome)
    if count < 2:
        return word, sentences
    # What the verdict rests on: the controls, where there are any. The one that shows least decides what can be told.
    rests_on = outcome.controls or {"": outcome}
    tested = {name: (o.wins[~np.isnan(o.wins)] - 0.5, o.comparisons) for name, o in rests_on.items()}
    if word == "cannot tell":
        if even := [name for name, (differences, _) in tested.items() if differences.mean() == 0]:
            seen = f"No difference was seen {' and '.join(even)}".rstrip()
        elif all(differences.std() > 0 for differences, _ in tested.values()):
            needed = max(prompts_needed(*of_one) for of_one in tested.values())
            many = "more than 100,000" if needed > 1e5 else f"about {math.ceil(needed / 10) * 10:,}"
            seen = f"For a difference as small as this {many} would be needed"
        else:  # without a spread nothing tells how many prompts would be needed
            more = ", and more with several comparisons" if outcome.comparisons > 1 else ""
            seen = f"Where all go one way six are the fewest that can tell{more}"
        sentences.append(f"Cannot tell with {count} prompts. {seen}.")
    least = max(smallest_difference(*of_one) for of_one in tested.values())
    if 0 < least <= 0.5:
        where = f" {' and '.join(filter(None, tested))}".rstrip()
        sentences.append(
            f"So many prompts show a win rate {least:.2f} away from 0.5{where} four times out of five; a smaller one "
            "goes unseen."
        )
    return word, sentences


def _of_order(outcome: Outcome) -> list[str]:
    """How many verdicts turned with the order of the answers, and in whose favour."""
    decided = [v.decided for row in outcome.verdicts for v in row if v.decided not in (None, BY_TEXT)]
    if "asked_in_both_orders" not in outcome.measured:
        return []
    asked = int(outcome.measured["asked_in_both_orders"][0])
    said = f"The order of the answers decided {len(decided)} of {asked} verdicts"
    if not decided:
        return [f"{said}."]
    kinds = {f"{place} won both ways": decided.count(place) for place in (FIRST, SECOND)}
    kinds["it was a tie in one order only"] = len(decided) - sum(kinds.values())
    return [f"{said}, and those are ties: " + ", ".join(f"{n} times {kind}" for kind, n in kinds.items() if n) + "."]


def _of_controls(outcome: Outcome, word: str) -> list[str]:
    """What is left of the win where the model is no surer of itself than the reference."""
    if not outcome.controls:
        return []
    said = []
    for name, control in outcome.controls.items():
        share, low, high = control.measured["win_rate"]
        said.append(f"{name}: {share:.2f} [{low:.2f}, {high:.2f}] (p {_p(control)})")
    token, other_token, reply, other_reply, at = (outcome.measured[name][0] for name in ENTROPIES)
    sentences = [
        f"{'; '.join(said)}.".capitalize().replace("greedily", "greedily, the likeliest token each time"),
        f"Its entropy is {token:.2f} nats a token and {reply:.1f} a reply, that of {outcome.against} {other_token:.2f} and "
        f"{other_reply:.1f}, which is as sure of itself at temperature {at:.2f}.",
    ]
    if word.startswith("only"):
        less = "lower" if "less" not in word else "higher"
        sentences.append(f"No more was seen than what a {less} temperature of {outcome.against} does too.")
    elif word == "mixed":
        held = [name for name, control in outcome.controls.items() if side(control) > 0]
        lost = [name for name, control in outcome.controls.items() if side(control) < 0]
        sentences.append(
            f"Better {' and '.join(held) or 'in neither'}" + f", worse {' and '.join(lost)}" * bool(lost) + "."
        )
    return sentences


def _price(outcome: Outcome) -> list[str]:
    """How far the model went from its reference, where that is known, and how much longer its replies became."""
    if "kl" not in outcome.measured:
        return []
    longer = outcome.longer_by.mean()
    by = f"{abs(longer):.1f} tokens {'longer' if longer > 0 else 'shorter'}" if longer else "of the same length"
    kl = outcome.measured["kl"][0]
    far = f"KL {kl:.2f} nats a reply" if math.isfinite(kl) else "an infinite KL"
    return [f"The price: {far}; replies {by}."]


def _p(outcome: Outcome) -> str:
    return "below 0.001" if outcome.p_value < 0.001 else f"{outcome.p_value:.3f}"


def extrapolates(measured: dict[str, tuple[float, float, float]]) -> bool:
    """Whether answers differ so much in length that a rate at equal length lies outside of what was seen."""
    return abs(measured.get("length_shift", (0.0,))[0]) > FURTHEST_SHIFT


def about_length(outcome: Outcome, prior: SlopePrior) -> list[str]:
    """A sentence on win rate and length, where length could change the verdict or too little tells whether it does."""
    raw, fair = (outcome.measured.get(key) for key in ("win_rate", "win_rate_length_controlled"))
    if fair is None or fair == raw:
        return []
    is_judged = ~np.isnan(outcome.wins)
    longer_by, shift = outcome.longer_by[is_judged].mean(), outcome.measured["length_shift"][0]
    lengths = (
        f"Answers of {outcome.model} are {abs(longer_by):.1f} tokens {'longer' if shift > 0 else 'shorter'} in the mean"
    )
    source = " The slope is near that of AlpacaEval's judge." if prior is LANGUAGE_MODEL_JUDGE else ""
    if extrapolates(outcome.measured):
        return [
            f"{lengths}, {abs(shift):.1f} standard deviations of that difference: few prompts have answers of equal length, "
            f"and a win rate at equal length is extrapolation, {with_interval(fair)} beside {with_interval(raw)} as "
            f"judged.{source}"
        ]
    if fair[1] <= raw[0] <= fair[2]:
        return []
    return [
        f"Win rate and length go together: {lengths[0].lower()}{lengths[1:]}, and at equal length the win rate would be "
        f"{with_interval(fair)} beside {with_interval(raw)} as judged.{source} Whether length itself or what comes with "
        f"it decides, this cannot tell."
    ]


def add_scores(result: dict, outcome: Outcome) -> None:
    """Put what a judge's scores tell into a result: means before and after, and what choosing among the old ones wins.

    result: "measured" is added to; "implicit", if there, holds the policy's implicit reward of the reference's answers,
    (prompts, answers).
    """
    pairs = [[verdict.scores for verdict in row] for row in outcome.verdicts]
    if not pairs or not pairs[0] or any(scores is None for row in pairs for scores in row):
        return
    old, new = np.moveaxis(np.array(pairs, dtype=float), 2, 0)  # (prompts, answers) each
    result["scores"] = old, new
    by_name = {"score_reference": old, "score": new, "score_change": new - old}
    result["measured"] |= {name: mean_interval(scores.mean(axis=1)) for name, scores in by_name.items()}
    if "implicit" in result:
        picked = result["implicit"].argmax(axis=1)
        result["measured"]["score_best_of_n"] = mean_interval(old[np.arange(len(old)), picked])
