"""Train with many losses, over seeds, betas and kinds of data, and put what comes out into tables and figures.

It is what `custom_loss_dpo.py --compare` runs; each training is that script in a process of its own. Finished runs are
kept in FOLDER/cells and not repeated, unless the formula or a setting has changed. The best of n replies of the
untrained model, chosen by the true reward itself, stands beside them: what choosing alone can reach.
"""

import inspect
import json
import logging
import math
import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers.hf_argparser import HfArg

from demo.world import is_known, true_reward

from ..common.errors import UserError
from ..common.intervals import mean_interval, with_interval
from ..common.kept_files import checksum, complete_file, going_on_without, is_as_signed, signed
from ..training.losses import check_names, choose_loss
from .grid import PROJECT, claimed, recipe_text, run_grid, without

logger = logging.getLogger("dpo")

OWN_FLAGS = {
    "--compare", "--losses", "--betas", "--seeds", "--output_dir", "--overwrite_output_dir", "--seed", "--loss_type"
}  # fmt: skip
# What is compared where --losses does not say.
DEFAULT_LOSSES = {
    "noise": ["sigmoid", "cdpo", "robust", "ipo"],
    "length": ["sigmoid", "rdpo", "sigmoid_norm", "ipo", "simpo"],
    "alike": ["sigmoid", "ipo", "nca_pair", "dpop"],
}
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)  # of labels that are flipped
LONGER_SHARE = 0.5  # of pairs in which length alone decides
BEST_OF = (2, 4, 8, 16)
COLUMNS = {
    "true_reward_after": "true reward",
    "win_rate": "win rate",
    "kl": "KL",
    "reward_accuracy": "accuracy",
    "chosen_logp_change": "chosen logp change",
    "reply_tokens_after": "tokens a reply",
    "train_seconds": "training, s",
}


@dataclass
class CompareArguments:
    """What a script with losses takes besides, to train with more than one."""

    beside: str | None = HfArg(default=None, help="another loss to train too, and put beside; none: no other")
    compare: str | None = HfArg(
        default=None,
        metadata={"nargs": "?", "const": "losses"},
        help="train the demo with many losses; noise: with flipped labels; length: with labels that favour length; "
        "alike: with answers that differ in one word",
    )
    losses: list[str] = HfArg(default_factory=list, help="with --compare: these losses")
    betas: list[str] = HfArg(
        default_factory=list, help="with --compare: these values, or x0.3 x3 as multiples of each loss's own"
    )
    seeds: list[int] = HfArg(default_factory=lambda: [0], help="with --compare: these seeds")


def compare(
    args: CompareArguments,
    script: str,
    known: dict[str, Callable],
    own: dict[str, dict],
    prompts: list,
    reply: Callable[[int], list[str]],
    folder: Path,
) -> None:
    """Run what is missing, print a table, write table.md, results.json and the figures into the folder.

    script: trains once, with this process's flags and those that are put behind them. known: losses by name. own: by
    loss, its settings on this data, beta and learning_rate among them. reply(seed): the untrained model's replies to
    the prompts, whose true reward has to be known.
    """
    kind, losses, betas, seeds = args.compare, args.losses, args.betas, args.seeds
    if not prompts or not all(is_known(prompt) for prompt in prompts):
        raise UserError("--compare asks for the true reward of replies, which is known in the demo only.")
    if kind not in ("losses", *DEFAULT_LOSSES):
        raise UserError(f"--compare {kind}: there are losses (the default), {', '.join(DEFAULT_LOSSES)}")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"--seeds {seed}: a seed is at least 0 and below 2**32")
    losses = losses or DEFAULT_LOSSES.get(kind) or [name for name in known if name != "your_loss"]
    check_names(losses, known, "--losses")
    cells = _cells(kind, losses, betas, known, own)
    with claimed(folder):
        _write_data(kind, seeds, folder / "data")
        cases, stamps, own_words = {}, {}, without(sys.argv[1:], OWN_FLAGS)
        recipe = recipe_text(sys.argv[1:])
        for case, cell in cells.items():
            cases[case] = (script, own_words + _flags(kind, cell, folder))
            stamps[case] = inspect.getsource(known[cell["loss"]]) + json.dumps(own[cell["loss"]], sort_keys=True)
            stamps[case] += recipe
        print(f"{len(cases)} settings, {len(seeds)} seed(s); finished runs are kept in {folder / 'cells'}", flush=True)
        results = run_grid(cases, seeds, folder / "cells", stamps)
        rows = [
            cells[case] | {key: [run.get(key) for run in runs] for key in COLUMNS} for case, runs in results.items()
        ]
        report = {
            "kind": kind,
            "seeds": seeds,
            "before": [metrics.get("true_reward_before") for metrics in next(iter(results.values()))],
            "best_of_n": best_of_n(prompts, reply, seeds, folder / "best_of_n.json", own_words)
            if kind == "losses"
            else {},
            "runs": rows,
        }
        with complete_file(folder / "results.json") as file:
            json.dump(report, file, indent=1)
        table = noise_table(report) if kind == "noise" else loss_table(report)
        with complete_file(folder / "table.md") as file:
            file.write(table + "\n")
        from . import loss_figures  # here: Matplotlib takes half a second, and --help draws nothing

        print(f"\n{table}\n")
        print("In brackets: the 95% interval of the mean over the seeds (Student's t), where there are several.")
        if kind == "noise":
            loss_figures.plot_noise(report, folder / "noise.png")
        elif kind == "losses":
            loss_figures.plot_frontier(report, folder / "frontier.png")
            loss_figures.plot_shapes(
                _filled(losses, known, own), {name: own[name]["beta"] for name in losses}, folder / "shapes.png"
            )
        print(f"\nWhat to look at   {', '.join(map(str, [*sorted(folder.glob('*.png')), folder / 'table.md']))}")


def _cells(kind: str, losses: list[str], betas: list[str], known: dict[str, Callable], own: dict) -> dict[str, dict]:
    """What is to be trained, by name: loss, beta (None where the loss has none), share of flipped labels."""
    cells = {}
    for name in losses:
        has_beta = "beta" in inspect.signature(known[name]).parameters
        for beta in (betas if has_beta else None) or [None]:
            value = own[name]["beta"] if beta is None else _beta(beta, own[name]["beta"])
            for share in SHARES if kind == "noise" else (None,):
                case = f"{name}-beta{value:g}" + ("" if share is None else f"-flipped{share:g}")
                cells[case] = {"loss": name, "beta": value if has_beta else None, "share": share}
    return cells


def _flags(kind: str, cell: dict, folder: Path) -> list[str]:
    """What is said on the command line of one training; "{seed}" stands for the seed."""
    flags = ["--compare", "", "--push_to_hub", "false"]  # whatever a recipe says
    flags += ["--loss_type", cell["loss"], "--beside", "none", "--precompute_ref_log_probs"]
    if cell["beta"] is not None:
        flags += ["--beta", f"{cell['beta']:g}"]
    if kind == "noise":
        flags += ["--dataset_name", str(folder / "data" / f"flipped{cell['share']:g}-seed{{seed}}")]
        if cell["loss"] in ("cdpo", "robust"):
            flags += ["--label_smoothing", f"{cell['share']:g}"]  # as if the share were known
    if kind in ("length", "alike"):
        flags += ["--dataset_name", str(folder / "data" / "seed{seed}")]
    return flags


def _write_data(kind: str, seeds: list[int], folder: Path) -> None:
    """The training pairs of each seed, where they are not the demo's own."""
    for seed in seeds:
        for share in SHARES if kind == "noise" else ():
            write_pairs(folder / f"flipped{share:g}-seed{seed}", seed, flipped=share)
        if kind == "length":
            write_pairs(folder / f"seed{seed}", seed, longer=LONGER_SHARE)
        if kind == "alike":
            write_alike_pairs(folder / f"seed{seed}", seed)


def _filled(losses: list[str], known: dict[str, Callable], own: dict[str, dict]) -> dict[str, Callable]:
    """Losses with the hyperparameters they have on this data."""
    filled, defaults = {}, {"label_smoothing": 0.0, "discopop_tau": 0.05}
    for name in losses:
        settings = {parameter: own[name].get(parameter, value) for parameter, value in defaults.items()}
        filled[name] = choose_loss([name], known, loss_kwargs=own[name].get("loss_kwargs", []), settings=settings)
    return filled


def _beta(word: str, own: float) -> float:
    """0.3 as it is; x0.3 as a multiple of the loss's own."""
    try:
        value = own * float(word[1:]) if word.startswith("x") else float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--betas {word}: numbers above 0 are wanted, or x0.3 for a multiple of each loss's own beta")
    return value


def write_pairs(folder: Path, seed: int, flipped: float = 0.0, longer: float = 0.0) -> None:
    """The demo's training pairs with other labels, and its held-out pairs as they are.

    flipped: the share of pairs in which chosen and rejected change places. longer: the share in which the longer answer
    is chosen, whatever it is worth. Which pairs those are depends on the seed; a larger share holds those of a smaller.
    """
    source = PROJECT / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    rows = [json.loads(line) for line in (source / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        draw = rng.random()
        lengths = [len(row[answer][-1]["content"]) for answer in ("chosen", "rejected")]
        if draw < flipped or (draw < longer and lengths[0] < lengths[1]):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "test.jsonl").write_bytes((source / "test.jsonl").read_bytes())


def write_alike_pairs(folder: Path, seed: int) -> None:
    """The demo's chosen answers, each against itself with one word put in place of another; the held-out pairs as they are.

    Words are drawn until the true reward falls, so every label is right. An answer that 100 draws do not make worse is
    left out.
    """
    write_pairs(folder, seed)
    file, rng = folder / "train.jsonl", random.Random(seed)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    vocabulary = sorted({word for row in rows for word in row["chosen"][-1]["content"].split()})
    alike = []
    for row in rows:
        words = row["chosen"][-1]["content"].split()
        for _ in range(100):
            place = rng.randrange(len(words))
            changed = " ".join([*words[:place], rng.choice(vocabulary), *words[place + 1 :]])
            score = true_reward(row["prompt"], changed)
            if score < row["score_chosen"]:
                rejected = [{"role": "assistant", "content": changed}]
                alike.append(row | {"rejected": rejected, "score_rejected": score})
                break
    file.write_text("".join(json.dumps(row) + "\n" for row in alike), encoding="utf-8")


def best_of_n(
    prompts: list, reply: Callable[[int], list[str]], seeds: list[int], cache: Path, settings: list[str]
) -> dict[str, dict]:
    """By n: the mean true reward of the best of n replies, one number a seed, and the KL of choosing so.

    reply(seed): one reply to each prompt. settings: what the replies depend on besides prompts and seeds; what was kept
    of others is not taken. KL: log n - (n - 1) / n, an upper bound (arXiv:2401.01879).
    """
    versions = [torch.__version__, transformers.__version__]
    made_from = checksum(json.dumps([prompts, settings, BEST_OF, versions], default=str).encode())
    kept = _kept_rewards(cache, made_from)
    for seed in tqdm([seed for seed in seeds if str(seed) not in kept], desc="best of n"):
        replies = [reply(10_000 + 100 * seed + number) for number in range(max(BEST_OF))]
        draws = [[true_reward(*pair) for pair in zip(prompts, texts, strict=True)] for texts in replies]
        kept[str(seed)] = {str(n): sum(map(max, zip(*draws[:n], strict=True))) / len(draws[0]) for n in BEST_OF}
        with going_on_without("Rewards of the best of n", cache.parent):
            cache.parent.mkdir(parents=True, exist_ok=True)
            with complete_file(cache) as file:
                json.dump(signed({"made_from": made_from, "rewards": kept}), file)
    return {
        str(n): {"kl": math.log(n) - (n - 1) / n, "true_reward": [kept[str(seed)][str(n)] for seed in seeds]}
        for n in BEST_OF
    }


def _kept_rewards(cache: Path, made_from: str) -> dict[str, dict[str, float]]:
    """By seed and n; nothing where there are none, or only of other replies, or they are damaged, which is said."""
    if not os.path.lexists(cache):
        return {}
    with suppress(OSError, ValueError, LookupError, AttributeError):
        noted = json.loads(cache.read_text(encoding="utf-8"))
        if is_as_signed(noted):
            return noted["rewards"] if noted["made_from"] == made_from else {}
    logger.warning(f"{cache} is not what was written to it: the replies are sampled anew.")
    return {}


# --- Tables ----------------------------------------------------------------------------------------------------------


def loss_table(report: dict) -> str:
    """A row a loss and beta."""
    rows = {"before training | ": {"true_reward_after": report["before"], "win_rate": [0.5], "kl": [0.0]}}
    for run in report["runs"]:
        # Of the time the mean alone: how busy the machine was is no draw from anything.
        rows[_name(run)] = run | {"train_seconds": [mean_interval(run["train_seconds"])[0]]}
    return _table(rows, COLUMNS)


def noise_table(report: dict) -> str:
    """True reward: a row a loss, a column a share of flipped labels."""
    rows = {}
    for run in report["runs"]:
        rows.setdefault(_name(run), {})[run["share"]] = run["true_reward_after"]
    return _table(rows, {share: f"{share:.0%} flipped" for share in SHARES})


def _name(run: dict) -> str:
    return f"{run['loss']} | " + ("" if run["beta"] is None else f"{run['beta']:g}")


def _table(rows: dict[str, dict], columns: dict) -> str:
    """Markdown. rows: by loss and beta, and by column, one value a seed."""
    lines = ["| loss | beta | " + " | ".join(columns.values()) + " |", "|---|---|" + "---|" * len(columns)]
    for label, row in rows.items():
        cells = [_cell(row.get(column, [None])) for column in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    """The mean over seeds and, in brackets, its 95% interval; empty where nothing was measured."""
    if None in values:
        return ""
    measured = mean_interval(values)
    return with_interval(measured, 1 if abs(measured[0]) >= 20 else 2)
