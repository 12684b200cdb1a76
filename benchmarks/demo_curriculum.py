"""Does the demo show what a reader is to learn from it? Every lesson, over three seeds, by the basic script itself.

    python benchmarks/demo_curriculum.py                       # all cases: about 15 minutes on two cores
    python benchmarks/demo_curriculum.py --cases dpo beta_1    # some of them
    python benchmarks/demo_curriculum.py --seeds 0 1 2 3 4     # more seeds

Each run is a subprocess on one core, as many at a time as there are cores. Finished runs are kept in runs/curriculum
and not repeated. Prints the mean over the seeds and, in brackets, the lowest and the highest: first the lessons of the
README with their commands, then all cases.
"""

import argparse
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from machinery.comparing.grid import markdown, run_grid, spread
from machinery.comparing.loss_comparison import write_pairs

OUT = PROJECT / "runs" / "curriculum"
FLIPPED = 0.3

# case: (what it is to show, flags beside those of the demo, whether 30% of the training labels are flipped)
CASES = {
    "dpo": ("the demo's settings: beta 0.1", "", False),
    "beta_1": ("beta 1", "--beta 1", False),
    "sft": ("SFT on the chosen replies", "--loss_type sft", False),
    "sft_rate_x3": ("SFT, rate 3 times as high", "--loss_type sft --learning_rate 1.2e-3", False),
    "rate_x3": ("rate 3 times too high", "--learning_rate 1.2e-3", False),
    "sigmoid_sft": ("sigmoid + 1.0 sft", "--loss_type sigmoid sft --loss_weights 1 1", False),
    "flipped": ("30% of labels flipped: sigmoid", "", True),
    "flipped_robust": ("30% flipped: robust (0.3)", "--loss_type robust --label_smoothing 0.3", True),
    "flipped_ipo": ("30% flipped: ipo (beta 0.5)", "--loss_type ipo --beta 0.5", True),
}
# of the README: what to look at, by case
LESSONS = {
    "dpo": "the replies before and after",
    "beta_1": "nearer to the reference, and less gained",
    "rate_x3": "accuracy hardly notices that the text breaks",
}
COLUMNS = {
    "true_reward_after": "true reward",
    "win_rate": "win rate",
    "kl": "KL",
    "reward_accuracy": "accuracy",
    "chosen_logp_change": "chosen logp change",
    "rejected_logp_change": "rejected logp change",
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    cases = {}
    for case in options.cases:
        _, flags, is_flipped = CASES[case]
        data = ["--dataset_name", str(OUT / "data-flipped-seed{seed}")] if is_flipped else []
        cases[case] = ("basic_dpo_training.py", [*flags.split(), *data])
    for seed in options.seeds:
        write_pairs(OUT / f"data-flipped-seed{seed}", seed, flipped=FLIPPED)
    results = run_grid(cases, options.seeds, OUT)
    before = [outcome["true_reward_before"] for outcomes in results.values() for outcome in outcomes]
    unchanged = f"{spread(before)} | 0.50 | 0.00"
    lessons = {f"`{' '.join(['python', cases[case][0], *cases[case][1]])}` | {look}": results[case]
               for case, look in LESSONS.items() if case in cases}  # fmt: skip
    head, line, *rows = markdown(lessons, COLUMNS, "command | what to look at").splitlines()
    print("\n".join([head, line + "---|", f"| before training | | {unchanged} | | | |", *rows, ""]))
    head, line, *rows = markdown({CASES[case][0]: results[case] for case in cases}, COLUMNS).splitlines()
    print("\n".join([head, line, f"| before training | {unchanged} | | | |", *rows]))


if __name__ == "__main__":
    main()
