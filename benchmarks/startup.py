"""How long until something happens: the help text, the libraries, the first step; beside `trl dpo`.

    python benchmarks/startup.py                      # three rounds, about two minutes
    python benchmarks/startup.py --show               # what was measured then, once more
    python benchmarks/startup.py --against ../older   # beside another clone of this project, of an older commit

Each figure is the wall time of a process of its own, from its start to its end, the contenders in turn. The basic
script asks the reference about its pairs before the first step, `trl dpo` does so step by step; with
--no_precompute_ref_log_probs they do the same. Prints medians, lowest and highest in brackets, and writes
benchmarks/results/startup.json. Beside another clone: the help text, and a training of 24 steps of 32 pairs, as a whole and
its steps alone; ratios of each round, below 1 where this one is faster. Nothing is written.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results" / "startup.json"
ONE_STEP = "--max_steps 1 --eval_strategy no --save_strategy no --report_to none --use_cpu --bf16 false".split()


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="measure nothing, show what startup.json has")
    parser.add_argument("--against", type=Path, metavar="CLONE", help="another clone of this project")
    options = parser.parse_args()
    if options.against:
        return show_against(options.against.resolve(), options.rounds)
    if not options.show:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(measure(options.rounds), indent=1) + "\n")
    print("| process, from its start to its end | seconds |\n|---|---|")
    for name, values in json.loads(RESULTS.read_text()).items():
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}) |")


def show_against(other: Path, rounds: int) -> None:
    """This clone beside another, in turn: the median ratio of seconds, and the rounds' lowest and highest."""
    ratios = {"the help text": [], "a training, from its start to its end": [], "its steps alone": []}
    for clone in (PROJECT, other):
        seconds_of(clone)  # whatever a first run makes and keeps
    for number in tqdm(range(rounds), desc="rounds"):
        seconds = {clone: seconds_of(clone) for clone in ((PROJECT, other) if number % 2 else (other, PROJECT))}
        for name, ours, theirs in zip(ratios, seconds[PROJECT], seconds[other], strict=True):
            ratios[name].append(ours / theirs)
    print(f"| seconds here, as a share of those in {other} | {rounds} rounds |\n|---|---|")
    for name, values in ratios.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


def seconds_of(clone: Path) -> tuple[float, float, float]:
    """Of a clone's basic script: its help text, a training, and the steps of the training."""
    script = [sys.executable, "basic_dpo_training.py"]
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *script,
            *ONE_STEP,
            "--max_steps",
            "24",
            "--per_device_train_batch_size",
            "32",
            "--num_eval_prompts",
            "1",
        ]
        words += ["--output_dir", f"{folder}/out", "--reference_cache", f"{folder}/cache"]
        walls = [timed(command, clone) for command in ([*script, "--help"], words)]
        return *walls, json.loads(Path(folder, "out", "metrics.json").read_text())["train_seconds"]


def timed(command: list, folder: Path) -> float:
    """Seconds of a process that has to end well."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))} in {folder}: {done.stderr}")
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of every process, one number a round."""
    trl = Path(sys.executable).with_name("trl")
    script = [sys.executable, "basic_dpo_training.py"]
    demo = ["--model_name_or_path", "demo/model", "--dataset_name", "demo"]
    imports = "import torch, transformers, datasets, peft; from trl import DPOTrainer"
    commands = {
        "`import torch, trl, transformers, datasets, peft`": [sys.executable, "-c", imports],
        "`trl dpo --help`": [trl, "dpo", "--help"],
        "`basic_dpo_training.py --help`": [*script, "--help"],
        "`trl dpo`, the demo, one step": [trl, "dpo", *demo, *ONE_STEP],
        "`basic_dpo_training.py`, one step, the reference asked at every step as there": [
            *script, *ONE_STEP, "--num_eval_prompts", "1", "--no_precompute_ref_log_probs",
        ],
        "`basic_dpo_training.py`, one step, the reference asked beforehand, about the held-out pairs too": [
            *script, *ONE_STEP, "--num_eval_prompts", "1",
        ],
    }  # fmt: skip
    seconds = {name: [] for name in commands}
    for name in tqdm([name for _ in range(rounds) for name in commands], desc="processes"):
        with tempfile.TemporaryDirectory() as folder:
            extra = ["--output_dir", folder] if "one step" in name else []
            extra += ["--reference_cache", f"{folder}/cache"] if "basic" in name and extra else []
            seconds[name].append(timed([*commands[name], *extra], PROJECT))
    return seconds


if __name__ == "__main__":
    main()
