"""Training time of the basic script against `trl dpo`: the same settings, the same files, in turn.

    python benchmarks/against_trl.py               # three rounds, about twelve minutes on two cores
    python benchmarks/against_trl.py --rounds 1

A round runs (A) TRL's own script, (B) the basic script with the same settings, (C) the basic script as it comes, which
also makes batches of rows of like length. Only the training is timed (Transformers' train_runtime: the steps, the
evaluations and, in B and C, the three preview replies), not start-up nor the sampling before and after. Prints each
round's ratio to A and the largest difference between the losses of A and B, which see the same batches.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
OURS_ALONE = ("num_eval_prompts", "max_new_tokens", "train_sampling_strategy")  # `trl dpo` has no use for these


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    sys.path.insert(0, str(PROJECT))
    import trl.scripts.dpo

    from basic_dpo_training import DEMO

    settings = [w for name, value in DEMO.items() if name not in OURS_ALONE for w in (f"--{name}", str(value))]
    settings += ["--model_name_or_path", "demo/model", "--use_cpu", "--bf16", "false", "--save_strategy", "no"]
    ours = ["basic_dpo_training.py", *settings, "--num_eval_prompts", "4", "--max_new_tokens", "32"]
    commands = {
        "A  trl dpo": [trl.scripts.dpo.__file__, *settings],
        "B  basic, same settings": [*ours, "--train_sampling_strategy", "random"],
        "C  basic as it comes": [*ours, "--train_sampling_strategy", DEMO["train_sampling_strategy"]],
    }
    seconds = {name: [] for name in commands}
    losses = {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in tqdm(range(rounds * len(commands)), desc="runs"):
            name = list(commands)[turn % len(commands)]
            folder = Path(scratch) / str(turn)
            seconds[name].append(run(commands[name], folder))
            state = next(iter(sorted(folder.rglob("trainer_state.json"))), None)
            if state is not None:
                losses[name] = [logs["loss"] for logs in json.loads(state.read_text())["log_history"] if "loss" in logs]
    stock = seconds["A  trl dpo"]
    for name, times in seconds.items():
        ratios = ", ".join(f"{a / t:.2f}" for a, t in zip(stock, times, strict=True))
        print(f"{name:<26} median {statistics.median(times):6.1f} s   times as fast as A in each round: {ratios}")
    gap = max(abs(a - b) for a, b in zip(losses["A  trl dpo"], losses["B  basic, same settings"], strict=True))
    print(f"largest difference between the losses of A and B over {len(losses['A  trl dpo'])} logs: {gap:.1e}")


def run(command: list[str], folder: Path) -> float:
    """Run one command into a folder; returns the seconds its training took."""
    command = [sys.executable, *command, "--output_dir", str(folder)]
    if "scripts" in command[1]:
        command[command.index("--save_strategy") + 1] = "epoch"  # TRL's script leaves its log in a checkpoint only
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    if (folder / "metrics.json").exists():
        return json.loads((folder / "metrics.json").read_text())["train_seconds"]
    return float(re.search(r"'train_runtime': '?([\d.]+)", done.stdout).group(1))


if __name__ == "__main__":
    main()
