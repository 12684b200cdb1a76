"""From answers and a judge to verdicts in words: who won, how sure that is, and what it would take to be surer.

    judge = choose_judge("auto", truth=true_reward)
    outcome = compare(judge, prompts, answers_of_reference, answers_of_policy, "runs/basic", "reference")
    decide([outcome])                      # p-values corrected for all comparisons, a verdict in each outcome
    print(outcome.verdict, outcome.sentences)

Wins are averaged over a prompt's answers before anything else: prompts are what was drawn from the world. Glue between
judges.py and intervals.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..common.errors import is_out_of_memory
from ..common.intervals import (
    bootstrap_mean,
    holm,
    length_controlled_rate,
    paired_test,
    prompts_needed,
    rate,
    smallest_difference,
)
from ..common.safe_text import first_line
from .judges import (
    Comparison,
    EndpointJudge,
    JudgeError,
    ScoreJudge,
    Verdict,
    key_from_environment,
    read_blind_csv,
    reward_model_score,
    write_blind_csv,
)

SURE = 0.05
JUDGES = ("auto", "truth", "reward_model", "endpoint", "human", "none")


@dataclass
class Outcome:
    """One model's answers against another's, prompt by prompt."""

    model: str
    against: str
    verdicts: list[list[Verdict]]  # by prompt, one a judged answer
    wins: np.ndarray  # by prompt, 0 to 1; nan where nothing was judged
    longer_by: np.ndarray  # by prompt, tokens
    p_value: float = math.nan
    word: str = "not judged"
    sentences: list[str] = field(default_factory=list)
    measured: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    problem: str | None = None  # why the judge could not judge


class HumanJudge:
    """Writes a blind table for a person, or reads the one that was filled in."""

    name = "a person"

    def __init__(self, folder: Path, filled: str | None, seed: int):
        self.folder, self.filled, self.seed = folder, filled, seed
        if filled is not None and not Path(filled).is_file():
            raise JudgeError(f"--answers {filled}: there is no such file")

    def judge(self, comparisons: list[Comparison], progress: str | None = None) -> list[Verdict]:
        """What the person decided; nothing yet where the table is only now written."""
        if self.filled is None:
            table = self.folder / "blind.csv"
            write_blind_csv(table, self.folder / "blind_key.json", comparisons, self.seed)
            print(
                f"To judge: fill the column verdict of {table} with 1, 2 or tie, then run the same command with --answers"
            )
            return [Verdict(None, None, None) for _ in comparisons]
        table = Path(self.filled)
        return read_blind_csv(table, table.with_name("blind_key.json"), comparisons)


def choose_judge(
    kind: str,
    *,
    truth: Callable | None = None,
    model: str | None = None,
    url: str | None = None,
    budget: int | None = None,
    answers: str | None = None,
    folder: Path = Path("."),
    cache: Path = Path("runs/.cache/judge_answers.jsonl"),
    seed: int = 0,
    device=None,
):
    """The judge that is asked for, or None. "auto": what the other arguments speak for, and else the truth.

    truth(prompt, answer): the true reward, where it is known. model: a reward model, or with url the name of a language
    model behind it. folder: where a blind table goes. cache: where an endpoint's answers are kept, across evaluations.
    """
    if kind not in JUDGES:
        raise JudgeError(f"--judge {kind}: there are {', '.join(JUDGES)}")
    if kind == "auto":
        asked = [("human", answers), ("endpoint", url), ("reward_model", model), ("truth", truth)]
        kind = next((name for name, value in asked if value is not None), "none")
    if kind == "none":
        return None
    if kind == "human":
        return HumanJudge(folder, answers, seed)
    if kind == "truth":
        if truth is None:
            raise JudgeError("--judge truth: the true reward is known in the demo only")
        return ScoreJudge(
            "the true reward", lambda prompts, texts: [truth(*pair) for pair in zip(prompts, texts, strict=True)]
        )
    if kind == "reward_model":
        if model is None:
            raise JudgeError("--judge reward_model needs --judge_model, a folder or a hub name")
        return ScoreJudge(f"the reward model {model}", _load_reward_model(model, device))
    if url is None or model is None:
        raise JudgeError("--judge endpoint needs --judge_url and --judge_model")
    return EndpointJudge(url, model, key_from_environment(), cache, budget)


def _load_reward_model(name: str, device) -> Callable:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a broken file makes the libraries fail anywhere
        raise JudgeError(f"--judge_model {name} cannot be loaded: {first_line(error)}") from error
    if report["missing_keys"]:
        raise JudgeError(
            f"--judge_model {name} is no reward model: its head ({min(report['missing_keys'])}) is missing"
        )
    return reward_model_score(model.to(device), tokenizer)


def compare(judge, prompts: list, first: list[list], second: list[list], model: str, against: str) -> Outcome:
    """Let a judge compare the answers of two models to the same prompts.

    first, second: by prompt, the completions (text, ids) of the one it is compared `against` and of the `model`. A
    judge that gives scores sees all of them, pair by pair; any other the first of each prompt.
    """
    count = min(map(len, first)) if isinstance(judge, ScoreJudge) else 1
    first, second = ([answers[:count] for answers in side] for side in (first, second))
    longer_by = np.array([_mean_length(new) - _mean_length(old) for old, new in zip(first, second, strict=True)])
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
    return Outcome(model, against, verdicts, wins, longer_by, problem=problem)


def _mean_length(completions: list) -> float:
    return sum(len(completion.ids) for completion in completions) / len(completions)


def decide(outcomes: list[Outcome]) -> None:
    """Give each outcome its rates, a p-value that is corrected for all of them, a verdict and the sentences behind it."""
    judged = [outcome for outcome in outcomes if not np.isnan(outcome.wins).all()]
    for outcome in judged:
        is_judged = ~np.isnan(outcome.wins)
        wins, longer_by = outcome.wins[is_judged], outcome.longer_by[is_judged]
        outcome.measured["win_rate"] = rate(wins)
        if len(wins) > 2:
            outcome.measured["win_rate_length_controlled"] = length_controlled_rate(wins, longer_by)
        outcome.p_value = paired_test(wins - 0.5)
    for outcome, p_value in zip(judged, holm([outcome.p_value for outcome in judged]), strict=True):
        outcome.p_value = p_value
        outcome.word, outcome.sentences = in_words(outcome, len(judged))


def in_words(outcome: Outcome, comparisons: int) -> tuple[str, list[str]]:
    """ "better", "worse" or "cannot tell", and why."""
    wins = outcome.wins[~np.isnan(outcome.wins)]
    count, (share, low, high) = len(wins), outcome.measured["win_rate"]
    word = "cannot tell" if outcome.p_value >= SURE else "better" if share > 0.5 else "worse"
    p_value = "below 0.001" if outcome.p_value < 0.001 else f"{outcome.p_value:.3f}"
    holms = f", corrected for {comparisons} comparisons" if comparisons > 1 else ""
    sentences = [
        f"Win rate of {outcome.model} against {outcome.against}: {share:.2f} [{low:.2f}, {high:.2f}] on {count} "
        f"prompt{'s' if count > 1 else ''}, ties half (paired test: p {p_value}{holms})."
    ]
    if count < 2:
        return word, sentences
    has_spread = wins.std() > 0  # without one nothing tells how many prompts would be needed
    if word == "cannot tell":
        if share == 0.5:
            seen = "No difference was seen"
        elif has_spread:
            needed = prompts_needed(wins - 0.5)
            many = "more than 100,000" if needed > 1e5 else f"about {math.ceil(needed / 10) * 10:,}"
            seen = f"For a difference as small as this {many} would be needed"
        else:
            more = ", and more with several comparisons" if comparisons > 1 else ""
            seen = f"Where all go one way six are the fewest that can tell{more}"
        sentences.append(f"Cannot tell with {count} prompts. {seen}.")
    if has_spread:
        least = smallest_difference(wins - 0.5)
        sentences.append(
            f"So many prompts show a win rate {least:.2f} away from 0.5 four times out of five; a smaller one goes unseen."
        )
    return word, sentences


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
    result["measured"]["score_reference"] = bootstrap_mean(old.mean(axis=1))
    result["measured"]["score"] = bootstrap_mean(new.mean(axis=1))
    result["measured"]["score_change"] = bootstrap_mean((new - old).mean(axis=1))
    if "implicit" in result:
        picked = result["implicit"].argmax(axis=1)
        result["measured"]["score_best_of_n"] = bootstrap_mean(old[np.arange(len(old)), picked])
