"""Put two finished runs side by side, by their metrics.json.

full, folder = newest_run(Path("runs"), "basic", model="demo/model", dataset="demo")
print(side_by_side({"adapter": run_facts("runs/lora"), "all weights": full}))
"""

import json
import math
import sys
from pathlib import Path

import yaml
from accelerate import PartialState

from ..common.errors import UserError
from .grid import PROJECT, alone, only, recipe_text, run_child, without

BASIC = PROJECT / "basic_dpo_training.py"

# What a run of all weights is to have in common with the adapter's, besides model, data, seed and beta, where the command
# line or the recipe says it. The rest of a recipe is the adapter's own, its rate first.
IN_COMMON = {
    "--dataset_config", "--dataset_train_split", "--dataset_test_split", "--dataset_format", "--columns", "--verdict",
    "--pairing", "--encoding",
    "--min_margin", "--held_out_share", "--skip_bad_rows", "--keep_findings", "--keep_plain", "--dataset_num_proc",
    "--max_length", "--max_prompt_length", "--num_train_epochs", "--max_steps", "--per_device_train_batch_size",
    "--gradient_accumulation_steps", "--max_tokens_per_batch", "--loss_type", "--loss_weights", "--label_smoothing",
    "--ld_alpha", "--f_divergence_type", "--f_alpha_divergence_coef", "--use_weighting", "--discopop_tau",
    "--truncation_mode", "--num_eval_prompts", "--max_new_tokens", "--model_revision", "--trust_remote_code",
    "--attn_implementation", "--dtype", "--bf16", "--fp16", "--use_cpu",
}  # fmt: skip

ALONE = "the other processes would wait for it until they give up. Make it by itself, and name its --output_dir."

ROWS = (
    ("beta", "beta", ".3g"),
    ("trainable_parameters", "trained parameters", ",.0f"),
    ("true_reward_after", "true reward", ".2f"),
    ("greedy_reward_after", "of greedy replies", ".2f"),
    ("win_rate", "win rate", ".2f"),
    ("garbled_after", "garbled replies", ".2f"),
    ("kl", "KL, nats a reply", ".2f"),
    ("reward_accuracy", "held-out accuracy", ".2f"),
    ("chosen_logp_change", "chosen logp change", ".2f"),
    ("rejected_logp_change", "rejected logp change", ".2f"),
    ("reply_tokens_after", "tokens a reply", ".1f"),
    ("size_on_disk_bytes", "size on disk, MB", ".1f"),
    ("train_seconds", "training, seconds", ".0f"),
)


def beside_full_run(metrics: dict, folder: Path, make_it: bool) -> str:
    """This run beside the newest of the basic script on the same model and data, as a table, or why there is none.

    make_it: make such a run now, in folder/full.
    """
    where, model, dataset = Path("runs"), metrics["model"], metrics["dataset"]
    if dataset is None:
        return "Not compared with a run of all weights: the pairs are a recipe's mixture, which has no one name."
    if make_it:
        if PartialState().num_processes > 1:
            return f"--compare_full: {ALONE}"
        where = folder / "full"
        words = ["--model_name_or_path", model, "--dataset_name", dataset, "--seed", metrics["seed"]]
        words += ["--beta", metrics["beta"], "--output_dir", where / "basic", "--overwrite_output_dir"]
        words += _recipe_in_common(where)
        command = [sys.executable, str(BASIC), *map(str, words), *only(sys.argv[1:], IN_COMMON)]
        print("\nNow all weights, by", BASIC.name, flush=True)
        if run_child(command, alone())[0]:
            return f"The run of all weights failed: {' '.join(command[1:])}"
    full = newest_run(where, "basic", model, dataset)
    if full is None:
        return "No run of the basic script to compare with; --compare_full makes one."
    runs = {"this adapter": (metrics, folder), f"all weights ({full[1]})": full}
    return side_by_side({name: m | {"size_on_disk_bytes": model_size(path)} for name, (m, path) in runs.items()})


def _recipe_in_common(folder: Path) -> list[str]:
    """What of this process's recipe is to be in common, as a recipe of its own; nothing where there is none."""
    recipe = yaml.safe_load(recipe_text(sys.argv[1:])) or {}
    shared = {name: value for name, value in recipe.items() if f"--{name}" in IN_COMMON}
    if not shared:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(shared), encoding="utf-8")
    return ["--config", file]


def show_other_loss(other: str | None, metrics: dict, script: str, folder: Path) -> None:
    """Print this run beside one of the same command with another loss, made now; nothing where none is asked for."""
    if other in (None, "none", metrics["loss_type"]) or not PartialState().is_main_process:
        return
    print(f"\nNow the same with {other}", flush=True)
    words = ["--loss_type", other, "--loss_weights", "1", "--loss_kwargs", "", "--loss_file", "", "--beside", "none"]
    others = run_again(script, words, folder / f"beside-{other}")
    print("\n" + side_by_side({metrics["loss_type"]: metrics, other: others}), flush=True)


def run_again(script: str, words: list[str], folder: Path) -> dict:
    """Run this process's command line once more, with other words in the place of its own, into a folder of its own.

    Returns its metrics; nothing where it failed or was not made, which is said.
    """
    if PartialState().num_processes > 1:
        print(f"No second run: {ALONE}", flush=True)
        return {}
    words = [*words, "--push_to_hub", "false"]  # one repository is not for both
    flags = {word for word in words if word.startswith("--")}
    own = without(sys.argv[1:], {"--resume_from_checkpoint", "--overwrite_output_dir", "--output_dir", *flags})
    command = [sys.executable, script, *own, *words, "--output_dir", str(folder), "--overwrite_output_dir"]
    return run_facts(folder) if run_child(command, alone())[0] == 0 else {}


def newest_run(folder: Path, script: str, model: str, dataset: str) -> tuple[dict, Path] | None:
    """The metrics of the newest finished run of a script on this model and dataset, and its folder."""
    for run in _newest_first(folder):
        facts = run_facts(run)
        if facts.get("script") == script and _same(facts.get("model"), model) and _same(facts.get("dataset"), dataset):
            return facts, run
    return None


def newest_trained(folder: Path) -> str | None:
    """The newest finished run that left a model."""
    return next((str(run) for run in _newest_first(folder) if any(run.glob("*.safetensors"))), None)


def _newest_first(folder: Path) -> list[Path]:
    """The folders of all finished runs in this one."""
    notes = sorted(folder.glob("*/metrics.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [note.parent for note in notes]


def run_facts(folder: str | Path) -> dict:
    """What a run's metrics.json says about it; nothing where there is none."""
    try:
        facts = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(facts, dict):
        return {}
    if facts.get("reference") == "none":  # it was trained without one: what it started from is the measure
        facts["reference"] = facts["model"]
    return facts


def train_basic() -> str:
    """Run the basic script in runs/basic, and return where."""
    print("There is no run yet, so the basic one is trained first.\n", flush=True)
    code, _ = run_child([sys.executable, str(BASIC)], alone())
    if code:
        raise UserError(f"The basic run ended with {code}; what it said stands above.")
    return newest_trained(Path("runs"))


def model_size(folder: Path) -> int:
    """The bytes of a model's or an adapter's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def side_by_side(runs: dict[str, dict]) -> str:
    """A table with a column a run; what has an interval shows it, what is missing is a dash."""
    lines = [" " * 24 + "".join(f"{name:<22}" for name in runs)]
    for key, label, form in ROWS:
        cells = []
        for metrics in runs.values():
            value = metrics.get(key)
            if value is None or not math.isfinite(value):
                cells.append("-")
                continue
            text = format(value / 1e6 if key.endswith("bytes") else value, form)
            low, high = metrics.get(f"{key}_ci_low"), metrics.get(f"{key}_ci_high")
            cells.append(text if low is None else f"{text} [{low:{form}}, {high:{form}}]")
        if any(cell != "-" for cell in cells):
            lines.append(f"  {label:<22}" + "".join(f"{cell:<22}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _same(one: str | None, other: str) -> bool:
    """Whether two names mean the same model or dataset: the same hub name, or the same path."""
    return one == other or (one is not None and Path(one).exists() and Path(one).resolve() == Path(other).resolve())
