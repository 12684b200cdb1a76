"""Rounds: a script again and again, each time from the model that it has just trained, on answers of that model.

    run_rounds(__file__, args, training_args, model_args, dpo_utils, DEMO)

Each round is a run of its own, FOLDER/round-1 and so on. A round that is finished is not repeated, one that was killed
goes on.
"""

import json
import math
import os
import sys
from collections.abc import Collection
from itertools import count
from pathlib import Path

from accelerate import PartialState

from ..common.errors import UserError
from ..common.intervals import with_interval
from ..common.kept_files import checksum, complete_file, is_as_signed, signed
from ..common.safe_text import say
from ..comparing.grid import claimed, only, run_child, without
from ..runs.checkpoints import checkpoints
from .answering import held_out, prompts_by_split

OF_ALL_ROUNDS = {"--rounds", "--first_reference", "--output_dir", "--overwrite_output_dir"}
OF_A_ROUND = {"--model_name_or_path", "--model_revision", "--skip_prompts"}
ALONE = ["--rounds", "0", "--first_reference", "false"]  # for a round by itself, whatever a recipe says
# What metrics.json calls it, and the table.
COLUMNS = {
    "true_reward_after": "true reward", "greedy_reward_after": "true reward, greedily",
    "score_after": "score", "greedy_score_after": "score, greedily",
    "win_rate": "win rate over the last", "greedy_win_rate": "greedily",
    "score_win_rate": "win rate by the score", "greedy_score_win_rate": "by the score, greedily",
    "garbled_after": "garbled", "kl_last": "KL from the last", "kl_first": "KL from the first",
}  # fmt: skip


def run_rounds(script: str, args, training_args, model_args, utils, settings: Collection[str]) -> None:
    """Train --rounds times with this process's flags, and print a table of all rounds. Raises UserError.

    With --num_prompts every round answers others, as long as there are some. utils: see answering.py. settings: names of those
    that depend on the first model, and are to stay the same.
    """
    if PartialState().num_processes > 1:
        raise UserError("--rounds starts each round as a process of its own: start one round at a time by accelerate.")
    if training_args.resume_from_checkpoint:
        raise UserError("--rounds goes on by itself where it was stopped: leave out --resume_from_checkpoint.")
    first = last = model_args.model_name_or_path
    words = without(sys.argv[1:], OF_ALL_ROUNDS | OF_A_ROUND)
    words = _as_flags(settings, args, training_args) + words + ALONE  # what is said last, by the user, counts
    revision = only(sys.argv[1:], {"--model_revision"})
    reads = _files_of(training_args.reads)

    def made_by(number: int, last: str) -> dict:
        own = [*words, "--model_name_or_path", last]
        own += ["--reference", first] if args.first_reference and last != first else []
        own += revision if last == first or args.first_reference else []  # which a folder does not have
        own += ["--skip_prompts", str(args.skip_prompts + (number - 1) * (args.num_prompts or 0))]
        return {"words": own, "from": _weights_of(last), "reads": reads}

    folder = _folder_of(training_args, made_by(1, first))
    rows, prompts = [], []
    with claimed(folder):
        for number in range(1, args.rounds + 1):
            out, made = folder / f"round-{number}", made_by(number, last)
            metrics = None if training_args.overwrite_output_dir else _finished(out, made)
            say(f"\n=== Round {number} of {args.rounds}, from {last}" + (": it is finished" if metrics else ""))
            if metrics is None:
                metrics = _run(script, out, made, training_args)
            if "kl_first" not in metrics:
                prompts = prompts or _held_out(first, args, training_args, utils)
                for name, other in (("kl_last", last), ("kl_first", first)):
                    metrics |= _measured(name, _moved(str(out), other, prompts, args, training_args, utils))
                _note(out, made | {"metrics": metrics})
            rows.append(metrics)
            last = str(out)
        with complete_file(folder / "rounds.json") as file:
            json.dump({"from": first, "rounds": rows}, file, indent=1)
    say("\n" + table(rows))
    say(f"\nWhat to look at   {folder}/rounds.json, and each round's own files\nThe model is in   {last}")


def _folder_of(training_args, made_by: dict) -> Path:
    """The user's, or runs/rounds, or with a number the first that is free or has rounds of the same command.

    made_by: of the first round. Raises UserError where the user's has other rounds, or what the rounds are to read.
    """
    named = training_args.output_dir if training_args.is_output_dir_given else None
    for number in count(1):
        folder = Path(named or ("runs/rounds" if number == 1 else f"runs/rounds-{number}"))
        given = [what for what, name in training_args.reads.items() if _is_in(folder, Path(name))]
        is_free = not (folder / "round-1").exists() or (named and training_args.overwrite_output_dir)
        if not given and (is_free or _is_of(_noted(folder / "round-1"), made_by)):
            return folder
        if named and given:
            raise UserError(
                f"--output_dir {folder} is where {given[0]} is, and rounds are written there: name another."
            )
        if named:
            raise UserError(
                f"--output_dir {folder} has rounds of another command, of other data or of another judge: name another "
                "folder, or replace them by --overwrite_output_dir."
            )


def _is_in(folder: Path, given: Path) -> bool:
    return given.exists() and given.resolve().is_relative_to(folder.resolve())


def _as_flags(names: Collection[str], *holders) -> list[str]:
    """Settings as they are now, for a command line; what was left open stays open."""
    values = {name: next(getattr(holder, name) for holder in holders if hasattr(holder, name)) for name in names}
    values = {name: getattr(value, "value", value) for name, value in values.items() if value is not None}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _held_out(model: str, args, training_args, utils) -> list:
    """The prompts on which each round measures itself."""
    splits, _ = prompts_by_split(args, training_args.seed, utils.load_tokenizer(model, **args.model_kwargs), utils)
    return held_out(splits, args.num_eval_prompts)


def _moved(model: str, other: str, prompts: list, args, training_args, utils) -> tuple[float, float, float]:
    """KL(model || other) over whole replies, in nats, with its 95% interval."""
    policy, tokenizer = utils.load_model(model, **args.model_kwargs)
    reference, _ = utils.load_model(other, **args.model_kwargs)
    for loaded in (policy, reference):
        loaded.to(training_args.device)
    how = dict(max_new_tokens=args.max_new_tokens, seed=training_args.seed, progress="replies")
    replies = utils.sample_completions(policy, tokenizer, prompts, **how)
    return utils.sequence_kl(policy, reference, replies, tokenizer.pad_token_id)


def table(rounds: list[dict]) -> str:
    """A row a round, as Markdown; each figure with its 95% interval over prompts."""
    columns = [name for name in COLUMNS if any(metrics.get(name) is not None for metrics in rounds)]
    lines = ["| round | " + " | ".join(COLUMNS[name] for name in columns) + " |", "|---|" + "---|" * len(columns)]
    before = [name.replace("_after", "_before") for name in columns]
    lines.append(
        "| before | " + " | ".join(_cell(rounds[0], name) if "_before" in name else "" for name in before) + " |"
    )
    for number, metrics in enumerate(rounds, start=1):
        lines.append(f"| {number} | " + " | ".join(_cell(metrics, name) for name in columns) + " |")
    return "\n".join(lines)


def _run(script: str, out: Path, made_by: dict, training_args) -> dict:
    """The metrics of a round that is run now, or goes on from a checkpoint that it has written itself."""
    began, anew = math.inf, training_args.overwrite_output_dir or training_args.sync_ref_model  # see `claim_output_dir`
    if not anew and _is_of(_noted(out), made_by):
        began = out.with_suffix(".json").stat().st_mtime
    how = ["--resume_from_checkpoint", "newest", "--overwrite_output_dir", "false"]
    if not any(checkpoint.stat().st_mtime >= began for checkpoint in checkpoints(out)):
        how = ["--overwrite_output_dir"]
        _note(out, made_by)
    code, _ = run_child([sys.executable, script, *made_by["words"], "--output_dir", str(out), *how], dict(os.environ))
    if code:
        raise UserError(f"{out} ended with {code}, see above. The same command goes on from there")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    _note(out, made_by | {"metrics": metrics})
    return metrics


def _finished(out: Path, made_by: dict) -> dict | None:
    """The metrics of a round that was finished by the same command from the same weights."""
    noted = _noted(out)
    return noted.get("metrics") if _is_of(noted, made_by) and _weights_of(str(out)) else None


def _is_of(noted: dict | None, made_by: dict) -> bool:
    return noted is not None and {name: noted.get(name) for name in made_by} == made_by


def _weights_of(model: str) -> str | None:
    """A checksum of what a round has written about itself; None for a model that no round has made."""
    try:
        return checksum((Path(model) / "metrics.json").read_bytes())
    except OSError:
        return None


def _files_of(reads: dict[str, str]) -> dict[str, list[int]]:
    """Sizes and times of the files that a run is given, data and a judge of the user's; of folders what lies in them."""
    given = [Path(name) for name in reads.values() if os.path.exists(name)]
    files = [part for path in given for part in (sorted(path.glob("*")) if path.is_dir() else [path]) if part.is_file()]
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _noted(out: Path) -> dict | None:
    """What is noted of a round; None where nothing is, or not what was written."""
    try:
        noted = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        return noted if is_as_signed(noted) else None
    except (OSError, ValueError, AttributeError):
        return None


def _note(out: Path, facts: dict) -> None:
    with complete_file(out.with_suffix(".json")) as file:
        json.dump(signed(facts), file)


def _measured(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_ci_low", f"{name}_ci_high"), interval, strict=True))


def _of(metrics: dict, name: str) -> tuple:
    return tuple(metrics.get(key) for key in (name, f"{name}_ci_low", f"{name}_ci_high"))


def _cell(metrics: dict, name: str) -> str:
    value, low, high = _of(metrics, name)
    if value is None:
        return ""
    return with_interval((value, *(math.nan if end is None else end for end in (low, high))))
