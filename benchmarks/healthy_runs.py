"""Does the watcher stay silent while nothing is wrong? Every training script as it comes, over five seeds.

    python benchmarks/healthy_runs.py               # 20 runs: about ten minutes on two cores
    python benchmarks/healthy_runs.py --seeds 5 6   # other seeds

Finished runs are kept in runs/healthy. Prints a table, and every warning that was given.
"""

import argparse
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from machinery.comparing.grid import markdown, run_grid

OUT = PROJECT / "runs" / "healthy"
HELD_OUT = ["--eval_strategy", "steps"]  # half of what the watcher looks at are held-out pairs
CASES = {
    "basic": ("basic_dpo_training.py", HELD_OUT),
    "custom_dataset": ("custom_dataset_dpo.py", HELD_OUT),
    "lora": ("lora_dpo_training.py", HELD_OUT),
    "custom_loss": ("custom_loss_dpo.py", [*HELD_OUT, "--beside", "none"]),
}
COLUMNS = {"warnings": "warnings", "true_reward_after": "true reward", "win_rate": "win rate", "kl": "KL"}


def main() -> None:
    """Run what is missing, print the table and what was warned of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    results = run_grid(CASES, options.seeds, OUT)
    print(markdown({f"`{CASES[case][0]}`": results[case] for case in CASES}, COLUMNS, "script"))
    for file in sorted(OUT.glob("*/warnings.jsonl")):
        print(f"{file.parent.name}: {file.read_text(encoding='utf-8').strip()}")


if __name__ == "__main__":
    main()
