"""Does the demo show what a reader is to learn from it? Every lesson, over three seeds, by the basic script itself.

    python benchmarks/demo_curriculum.py                       # all cases: about 15 minutes on two cores
    python benchmarks/demo_curriculum.py --cases dpo beta_1    # some of them
    python benchmarks/demo_curriculum.py --relatives           # DPO as other papers change it
    python benchmarks/demo_curriculum.py --seeds 0 1 2 3 4     # more seeds

Each run is a subprocess on one core, as many at a time as there are cores. Finished runs are kept in runs/curriculum
and not repeated. Prints the mean over the seeds and, in brackets, the lowest and the highest: first the lessons of the
README with their commands, then all cases: what was won, and how.
"""

import argparse
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from machinery.comparing.grid import markdown, run_grid, spread
from machinery.comparing.loss_comparison import write_alike_pairs, write_pairs

OUT = PROJECT / "runs" / "curriculum"
# What is done to the training pairs of some cases, by seed.
SPOILT = {
    "flipped": lambda folder, seed: write_pairs(folder, seed, flipped=0.3),
    "longer": lambda folder, seed: write_pairs(folder, seed, longer=0.6),
    "alike": write_alike_pairs,
}

# case: (what it is to show, flags beside those of the demo, what is done to the pairs)
CASES = {
    "dpo": ("the demo's settings", "", None),
    "beta_1": ("beta 1", "--beta 1", None),
    "sft": ("SFT on the chosen replies", "--loss_type sft", None),
    "sft_rate_x3": ("SFT, rate 3 times as high", "--loss_type sft --learning_rate 3e-3", None),
    "rate_x3": ("rate 3 times too high", "--learning_rate 3e-3", None),
    "sigmoid_sft": ("sigmoid + 1.0 sft", "--loss_type sigmoid sft --loss_weights 1 1", None),
    "flipped": ("30% of labels flipped: sigmoid", "", "flipped"),
    "flipped_robust": ("30% flipped: robust (0.3)", "--loss_type robust --label_smoothing 0.3", "flipped"),
    "flipped_ipo": ("30% flipped: ipo (beta 0.5)", "--loss_type ipo --beta 0.5", "flipped"),
    "longer": ("60% of labels by length alone", "", "longer"),
    "alike": ("pairs one word apart", "", "alike"),
}
RELATIVES = {
    "ld_dpo": ("LD-DPO, alpha 0.5", "--ld_alpha 0.5", None),
    "wpo": ("WPO", "--use_weighting", None),
    "js_divergence": ("f-DPO, Jensen-Shannon", "--f_divergence_type js_divergence", None),
    "forward_kl": ("f-DPO, forward KL", "--f_divergence_type forward_kl", None),
    "tr_dpo": ("TR-DPO, alpha 0.6, every 16 steps", "--sync_ref_model --ref_model_sync_steps 16", None),
    "mpo": ("MPO", "--loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0", None),
}
# of the README: what to look at, by case
LESSONS = {
    "dpo": "the replies before and after",
    "beta_1": "nearer to the reference, and less gained",
    "rate_x3": "accuracy hardly notices that the text breaks",
}
WON = {
    "true_reward_after": "true reward",
    "greedy_reward_after": "greedy reward",
    "win_rate": "win rate",
    "greedy_win_rate": "greedy win rate",
    "kl": "KL",
    "garbled_after": "garbled",
    "reward_accuracy": "accuracy",
}
HOW = {
    "chosen_logp_change": "chosen logp change",
    "rejected_logp_change": "rejected logp change",
    "reply_tokens_after": "tokens a reply",
}


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--relatives", action="store_true", help="DPO and what other papers change of it, by flag")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    known = {"dpo": CASES["dpo"]} | RELATIVES if options.relatives else {case: CASES[case] for case in options.cases}
    cases = {}
    for case, (_, flags, how) in known.items():
        data = ["--dataset_name", str(OUT / f"data-{how}-seed{{seed}}")] if how else []
        cases[case] = ("basic_dpo_training.py", [*flags.split(), *data])
    for how in {how for *_, how in known.values()} - {None}:
        for seed in options.seeds:
            SPOILT[how](OUT / f"data-{how}-seed{seed}", seed)
    results = run_grid(cases, options.seeds, OUT)
    first = next(iter(results.values()))
    sampled, greedily = (spread([run[f"{name}_before"] for run in first]) for name in ("true_reward", "greedy_reward"))
    garbled = spread([run["garbled_before"] for run in first])
    untrained = f"before training | {{}}{sampled} | {greedily} | 0.50 | 0.50 | 0.00 | {garbled} | |"
    lessons = {f"`{' '.join(['python', cases[case][0], *cases[case][1]])}` | {look}": results[case]
               for case, look in LESSONS.items() if case in cases}  # fmt: skip
    named = {known[case][0]: results[case] for case in cases}
    head, line, *rows = markdown(lessons, WON, "command | what to look at").splitlines()
    print("\n".join([head, line + "---|", f"| {untrained.format('| ')}", *rows, ""]))
    head, line, *rows = markdown(named, WON).splitlines()
    print("\n".join([head, line, f"| {untrained.format('')}", *rows, ""]))
    print(markdown(named, HOW))


if __name__ == "__main__":
    main()
