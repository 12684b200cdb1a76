"""Does the demo show what a reader is to learn from it? Every lesson, over three seeds, by the basic script itself.

    python benchmarks/demo_curriculum.py                       # all cases: about 15 minutes on two cores
    python benchmarks/demo_curriculum.py --cases dpo beta_1    # some of them
    python benchmarks/demo_curriculum.py --seeds 0 1 2 3 4     # more seeds

Each run is a subprocess on one core, as many at a time as there are cores. Finished runs are kept in runs/curriculum
and not repeated. Prints a Markdown table of the mean over the seeds and, in brackets, the lowest and the highest.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "runs" / "curriculum"
FLIPPED = 0.3

# case: (what it is to show, flags beside those of the demo, whether 30% of the training labels are flipped)
CASES = {
    "dpo": ("the demo's settings: beta 0.1", "", False),
    "beta_1": ("beta 1", "--beta 1", False),
    "sft": ("SFT on the chosen replies", "--loss_type sft", False),
    "sft_rate_x3": ("SFT, rate 3 times as high", "--loss_type sft --learning_rate {rate3}", False),
    "rate_x3": ("rate 3 times too high", "--learning_rate {rate3}", False),
    "sigmoid_sft": ("sigmoid + 1.0 sft", "--loss_type sigmoid sft --loss_weights 1 1", False),
    "flipped": ("30% of labels flipped: sigmoid", "", True),
    "flipped_robust": ("30% flipped: robust (0.3)", "--loss_type robust --label_smoothing 0.3", True),
    "flipped_ipo": ("30% flipped: ipo", "--loss_type ipo --beta 0.1", True),
}
COLUMNS = {
    "true_reward_after": "true reward",
    "win_rate": "win rate",
    "kl": "KL",
    "reward_accuracy": "accuracy",
    "chosen_logp_change": "chosen logp",
    "rejected_logp_change": "rejected logp",
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    jobs = [(case, seed) for seed in options.seeds for case in options.cases]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        metrics = list(tqdm(pool.map(lambda job: run_case(*job), jobs), total=len(jobs), desc="runs"))
    results = {}
    for (case, _), outcome in zip(jobs, metrics, strict=True):
        results.setdefault(case, []).append(outcome)
    print("| case | " + " | ".join(COLUMNS.values()) + " |\n|---|" + "---|" * len(COLUMNS))
    before = [outcome["true_reward_before"] for outcomes in results.values() for outcome in outcomes]
    print(f"| before training | {spread(before)} | 0.50 | 0.00 | | | |")
    for case, outcomes in results.items():
        cells = [spread([outcome[column] for outcome in outcomes]) for column in COLUMNS]
        print(f"| {CASES[case][0]} | " + " | ".join(cells) + " |")


def run_case(case: str, seed: int) -> dict:
    """The metrics of one run, made now if it is not there yet."""
    folder = OUT / f"{case}-seed{seed}"
    if not (folder / "metrics.json").exists():
        _, flags, is_flipped = CASES[case]
        flags = flags.format(rate3=3 * demo_settings()["learning_rate"]).split()
        command = [sys.executable, str(PROJECT / "basic_dpo_training.py"), "--output_dir", str(folder)]
        command += [
            "--overwrite_output_dir",
            "--seed",
            str(seed),
            "--eval_strategy",
            "no",
            "--save_strategy",
            "no",
            *flags,
        ]
        if is_flipped:
            command += ["--dataset_name", str(flipped_data(seed))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{case}, seed {seed}: {done.stderr}")
    return json.loads((folder / "metrics.json").read_text())


def demo_settings() -> dict:
    """The settings at the top of the basic script."""
    sys.path.insert(0, str(PROJECT))
    from basic_dpo_training import DEMO

    return DEMO


def flipped_data(seed: int) -> Path:
    """The demo's pairs with chosen and rejected exchanged in 30% of the training rows."""
    folder = OUT / f"data-flipped-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    rows = [json.loads(line) for line in (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if rng.random() < FLIPPED:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "test.jsonl").write_bytes((PROJECT / "demo" / "test.jsonl").read_bytes())
    return folder


def spread(values: list[float]) -> str:
    """Mean (lowest to highest)."""
    digits = 0 if max(map(abs, values)) >= 100 else 2
    mean = sum(values) / len(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
