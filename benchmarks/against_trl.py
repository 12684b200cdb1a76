"""The demo trained by `trl dpo` and by the basic script: the same settings, the same files, in turn.

    python benchmarks/against_trl.py           # three rounds, about twelve minutes on two cores
    python benchmarks/against_trl.py --rounds 1
    python benchmarks/against_trl.py --show    # what was measured then, once more

A round runs TRL's own script, the basic script with the same settings (the reference asked at every step too), and the
basic script with its own batches, of rows of like length, and with the reference asked beforehand, nothing kept from
earlier runs. Timed are whole processes, start-up and saving included; the basic script samples short replies to four
prompts before and after besides. Prints medians, lowest and highest in brackets, and the largest difference between
the losses of the first two, which see the same batches. Writes benchmarks/results/against_trl.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results" / "against_trl.json"
OURS_ALONE = ("num_eval_prompts", "max_new_tokens", "train_sampling_strategy")  # `trl dpo` has no use for these
STOCK, SAME, OURS = (
    "`trl dpo`",
    "the basic script, with the same settings",
    "the basic script with its own batches, the reference asked beforehand",
)


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="measure nothing, show what against_trl.json has")
    options = parser.parse_args()
    if not options.show:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(measure(options.rounds), indent=1) + "\n")
    report = json.loads(RESULTS.read_text())
    print("| training the demo | seconds | times as fast |\n|---|---|---|")
    for name, times in report["seconds"].items():
        ratios = [stock / own for stock, own in zip(report["seconds"][STOCK], times, strict=True)]
        print(f"| {name} | {spread(times, 1)} | {spread(ratios, 2)} |")
    gap = max(abs(a - b) for a, b in zip(report["losses"][STOCK], report["losses"][SAME], strict=True))
    print(
        f"\nThe largest difference between the losses of the first two, over {len(report['losses'][STOCK])} logs: {gap:.1e}"
    )


def spread(values: list[float], digits: int) -> str:
    """Median (lowest to highest)."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if min(values) == max(values) else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every process, one number a round, and the losses that the last round has logged."""
    sys.path.insert(0, str(PROJECT))
    import trl.scripts.dpo

    from basic_dpo_training import DEMO

    settings = [w for name, value in DEMO.items() if name not in OURS_ALONE for w in (f"--{name}", str(value))]
    settings += ["--model_name_or_path", "demo/model", "--use_cpu", "--bf16", "false", "--save_strategy", "no"]
    ours = ["basic_dpo_training.py", *settings, "--num_eval_prompts", "4", "--max_new_tokens", "32"]
    commands = {
        STOCK: [trl.scripts.dpo.__file__, *settings],
        SAME: [*ours, "--train_sampling_strategy", "random", "--no_precompute_ref_log_probs"],
        OURS: [*ours, "--train_sampling_strategy", DEMO["train_sampling_strategy"]],
    }
    seconds, losses = {name: [] for name in commands}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in tqdm(range(rounds * len(commands)), desc="runs"):
            name, folder = list(commands)[turn % len(commands)], Path(scratch) / str(turn)
            seconds[name].append(run(commands[name], folder))
            [state, *_] = sorted(folder.rglob("trainer_state.json"))
            losses[name] = [logs["loss"] for logs in json.loads(state.read_text())["log_history"] if "loss" in logs]
    return {"seconds": seconds, "losses": losses}


def run(command: list[str], folder: Path) -> float:
    """Run one command into a folder; returns the seconds it took."""
    command = [sys.executable, *command, "--output_dir", str(folder)]
    if "scripts" in command[1]:
        command[command.index("--save_strategy") + 1] = "epoch"  # TRL's script leaves its log in a checkpoint only
    else:
        command += ["--reference_cache", str(folder.with_name(f"{folder.name}-reference"))]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
