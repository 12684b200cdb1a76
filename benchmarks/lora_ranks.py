"""What does a higher rank buy, and what do adapters on attention alone lose? The demo over ranks and target modules.

    python benchmarks/lora_ranks.py                   # 10 settings, three seeds: about 20 minutes on two cores
    python benchmarks/lora_ranks.py --ranks 2 8       # some of them

Each run is lora_dpo_training.py as it comes, with alpha equal to the rank, so that only the rank differs; finished runs
are kept in runs/lora-ranks. Prints a Markdown table.
"""

import argparse
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from machinery.comparing.grid import markdown, run_grid

TARGETS = {"all-linear": ["all-linear"], "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}
COLUMNS = {
    "trainable_parameters": "trained parameters",
    "true_reward_after": "true reward",
    "win_rate": "win rate",
    "kl": "KL",
    "reward_accuracy": "accuracy",
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 2, 32, 4, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    cases, labels = {}, {}
    for rank in options.ranks:
        for where, targets in TARGETS.items():
            flags = ["--lora_r", str(rank), "--lora_alpha", str(rank), "--lora_target_modules", *targets]
            cases[f"{where}-r{rank}"] = ("lora_dpo_training.py", flags)
            labels[f"{where}-r{rank}"] = f"{where}, rank {rank}"
    results = run_grid(cases, options.seeds, PROJECT / "runs" / "lora-ranks")
    ordered = sorted(results, key=lambda case: (case.split("-r")[0], int(case.rsplit("-r", 1)[1])))
    print(markdown({labels[case]: results[case] for case in ordered}, COLUMNS, "adapter"))


if __name__ == "__main__":
    main()
