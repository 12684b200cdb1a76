"""Scores of several answers to each prompt, and a file of both that is read as any other data.

    judge = scoring_judge(args, training_args, prompts, are_texts, known_truth)  # tried on two answers before any long work
    score_and_write(judge, splits, answers, folder, args)                  # folder/train.jsonl, and one for each other split

A row of the file: {"prompt": ..., "answers": [{"text": ..., "score": 1.0, "model": ..., "finish_reason": "stop"}, ...]}.
"""

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import pstdev

from accelerate import PartialState

from ..answers.kept import KeptAnswers, digest_of, from_the_first
from ..common.errors import UserError
from ..common.intervals import mean_interval, with_interval
from ..common.kept_files import complete_file
from ..common.safe_text import progress_bar, say
from ..judges.flags import judge_from_flags
from ..judges.interface import TRIED_ANSWER, TRUTH, Comparison, Judge, Verdict
from .answering import Sampled
from .flags import DELTA

# How `load_preferences` is to read what `write_scored` has written, whatever was said of the prompts' own file.
AS_WRITTEN = {
    "dataset_format": "auto", "columns": None, "verdict": None, "encoding": "utf-8", "config": None,
    "train_split": "train", "test_split": "test",
}  # fmt: skip
AT_A_TIME = 64  # answers that are scored, then kept


class Delta(Judge):
    """Knows only who wrote an answer: those of the first model are better than those of the second.

    The better model need not be good, and nobody looks at the answers: delta learning, arXiv:2507.06187.
    """

    name, gives_scores = "delta: who wrote the answer", False


def scoring_judge(args, training_args, prompts: list, are_texts: bool, known_truth: Callable) -> Judge:
    """The judge that --judge names, tried on two answers. are_texts: see `function_judge`. Raises UserError."""
    if args.judge == DELTA:
        return Delta()
    truth = known_truth(prompts)
    score = None if truth is None else lambda prompt, answer: float(sum(truth.score(prompt, answer).values()))
    judge = judge_from_flags(args, training_args, score, are_texts)
    if judge is None:
        raise UserError(
            "--sample_answers needs a judge: --judge rules.py:score (your own function of prompt and answer), "
            "--judge_model (a reward model), or --judge_url and --judge_model (a language model)."
        )
    judge.try_on(prompts[:2], [TRIED_ANSWER] * len(prompts[:2]))
    return judge


def asked_again(judge: Judge) -> Judge | None:
    """The judge, where it scores at no cost that counts, and says something else than the demo's truth does."""
    return judge if judge.is_free and judge.name != TRUTH else None


def score_and_write(judge: Judge, splits: dict, answers: dict, folder: Path, args) -> None:
    """Score the answers to the prompts of each split, and write them to a file of its name in the folder."""
    for split, prompts in splits.items():
        write_scored(folder, split, prompts, answers[split], score_answers(judge, prompts, answers[split], args))


def score_answers(judge: Judge, prompts: list, answers: list[list[Sampled]], args) -> list[list[float | None]]:
    """By prompt, a number for each answer, higher is better; None where the judge had none.

    Of a judge that only compares, every two answers to a prompt are compared, and an answer's number is the share of the
    others that it beats, ties half. The first of several processes asks the judge.
    """
    scores = None
    if PartialState().is_main_process:
        if isinstance(judge, Delta):
            names = list(dict.fromkeys(answer.model for row in answers for answer in row))
            scores = [[float(-names.index(answer.model)) for answer in row] for row in answers]
        else:
            scores = (_given if judge.gives_scores else _compared)(judge, prompts, answers, args)
    return from_the_first(scores)


def _given(judge: Judge, prompts: list, answers: list[list[Sampled]], args) -> list[list[float]]:
    """Scores that the judge gives, kept as they come."""
    flat = [(prompt, answer.text) for prompt, row in zip(prompts, answers, strict=True) for answer in row]
    kept, found = _kept_for(judge, args), []
    starts = range(0, len(flat), AT_A_TIME)
    for start in progress_bar(starts, desc="scores", disable=len(flat) < 10 * AT_A_TIME):
        some = flat[start : start + AT_A_TIME]
        scores = kept.get(digest_of(some)) if kept else None
        if scores is None:
            scores = judge.scores(*map(list, zip(*some, strict=True)))
            if kept:
                kept.put(digest_of(some), scores)
        found += scores
    numbers = iter(found)
    return [[next(numbers) for _ in row] for row in answers]


def _kept_for(judge: Judge, args) -> KeptAnswers | None:
    """Under the judge's name, and the sizes and times of what it is made of; None for the demo's truth, which is quick."""
    file = args.judge.rpartition(":")[0] if ".py" in args.judge else args.judge_model
    if not file:
        return None
    path = Path(file).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path] * path.is_file()
    facts = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in files]
    return KeptAnswers(digest_of(judge.name, args.judge, facts))


def _compared(judge: Judge, prompts: list, answers: list[list[Sampled]], args) -> list[list[float | None]]:
    compared, places = [], []
    for number, (prompt, row) in enumerate(zip(prompts, answers, strict=True)):
        for first, second in combinations(range(len(row)), 2):
            compared.append(Comparison(prompt, row[first].text, row[second].text))
            places.append((number, first, second))
    say(f"{judge.name} compares {len(compared):,} pairs of answers.")
    wins = [[[] for _ in row] for row in answers]
    verdicts: list[Verdict] = judge.judge(compared, "comparing answers")
    if judge.gave_up:  # pairs of what it has happened to judge would be few, and pass for a finished round
        raise UserError(f"{judge.name} {judge.gave_up}. Its verdicts are kept: the same command asks for the others.")
    for (number, first, second), verdict in zip(places, verdicts, strict=True):
        if verdict.win is not None:
            wins[number][second].append(verdict.win)
            wins[number][first].append(1 - verdict.win)
    missing = sum(verdict.win is None for verdict in verdicts)
    if missing:
        reason = next(verdict.reason for verdict in verdicts if verdict.win is None)
        say(f"{missing:,} of them have no verdict ({reason}): an answer's score is its share of the others.")
    return [[sum(won) / len(won) if won else None for won in row] for row in wins]


def write_scored(folder: Path, split: str, prompts: list, answers: list[list[Sampled]], scores: list[list]) -> None:
    """Write folder/split.jsonl, and say what is in it. Raises UserError where it makes no pair.

    An answer that was cut off counts as worse than every whole one, by a standard deviation of whole ones' scores at
    least: it has no end, and chosen it would teach to stop in the middle of a sentence.
    """
    step, file = _one_deviation(answers, scores), folder / f"{split}.jsonl"
    ranked = [_below(row, numbers, step) for row, numbers in zip(answers, scores, strict=True)]
    if PartialState().is_main_process:
        _write(file, prompts, answers, ranked)
    PartialState().wait_for_everyone()  # all read the file
    means = [sum(known) / len(known) for row in scores if (known := [score for score in row if score is not None])]
    flat = [answer for row in answers for answer in row]
    cut = sum(not answer.is_finished for answer in flat)
    of_them = f"; {cut:,} were cut off by --max_new_tokens, and count as worse than whole ones" if cut else ""
    mean = f", {with_interval(mean_interval(means))} on average" if means and math.isfinite(means[0]) else ""
    say(f"Answers: {file}: {len(flat):,} to {len(prompts):,} prompts, scored{mean}{of_them}.")
    useless = sum(sum(score is not None for score in row) < 2 for row in ranked)
    if useless == len(ranked):
        way_out = ": raise --max_new_tokens." if cut else "."
        raise UserError(f"{file}: no prompt has two scored answers, one of them whole, so there is no pair{way_out}")
    if useless:
        say(f"{useless:,} of the prompts have no two scored answers, one of them whole, and make no pair.")


def _write(file: Path, prompts: list, answers: list[list[Sampled]], scores: list[list[float | None]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(file) as lines:
        for prompt, row, numbers in zip(prompts, answers, scores, strict=True):
            found = [
                {
                    "text": answer.text,
                    "score": score,
                    "model": answer.model,
                    "finish_reason": "stop" if answer.is_finished else "length",
                }
                for answer, score in zip(row, numbers, strict=True)
                if score is not None
            ]
            extras = {
                "tools": getattr(prompt, "tools", None),
                "chat_template_kwargs": getattr(prompt, "template_kwargs", None),
            }
            asked = {"prompt": prompt} | {name: value for name, value in extras.items() if value}
            lines.write(json.dumps(asked | {"answers": found}) + "\n")


def _one_deviation(answers: list[list[Sampled]], scores: list[list[float | None]]) -> float:
    """The standard deviation of the scores of whole answers: what counts as one step on this judge's scale."""
    pairs = ((a, n) for row, numbers in zip(answers, scores, strict=True) for a, n in zip(row, numbers, strict=True))
    whole = [number for answer, number in pairs if answer.is_finished and number is not None]
    return (pstdev(whole) if whole else 0.0) or 1.0


def _below(row: list[Sampled], scores: list[float | None], step: float) -> list[float | None]:
    whole = [score for answer, score in zip(row, scores, strict=True) if answer.is_finished and score is not None]
    if not whole:
        return [None] * len(row)  # and none of them can be chosen
    return [
        score if answer.is_finished or score is None else min(score, min(whole) - step)
        for answer, score in zip(row, scores, strict=True)
    ]
