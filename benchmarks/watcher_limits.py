"""What the watcher's limits rest on: how far healthy runs of the demo go, how far faulty ones, and which it warned of.

    python benchmarks/watcher_limits.py               # 44 runs: about 20 minutes on two cores
    python benchmarks/watcher_limits.py --seeds 5 6   # other seeds

Healthy is each training script as it comes, over five seeds; the faults are made on purpose, over three. Finished runs
are kept in runs/watcher_limits. The table has what each run came to at its furthest, as mean (lowest to highest): log-ratios
of two logs in a row, as the watcher takes them, the accuracy on training pairs over the second half of the steps and the
highest of a single log. Below it stand the warnings.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from dpo_utils import load_tokenizer
from machinery.comparing.grid import markdown, run_grid
from machinery.comparing.loss_comparison import write_pairs
from machinery.watching.watcher import ALL_RIGHT, COIN, DISPLACED, RUNAWAY, UNMOVED

OUT = PROJECT / "runs" / "watcher_limits"
HELD_OUT = ["--eval_strategy", "steps"]  # half of what the watcher looks at are held-out pairs
HEALTHY = {
    "basic_dpo_training.py": [],
    "custom_dataset_dpo.py": [],
    "lora_dpo_training.py": [],
    "custom_loss_dpo.py": ["--beside", "none"],
}
FAULTY = {
    "three times the rate": ["--learning_rate", "3e-3"],
    # Gradients go with beta: against the demo's epsilon of Adam those of so small a one would move nothing
    "a hundredth of beta": ["--beta", "0.001", "--adam_epsilon", "1e-6"],
    "hardly any rate": ["--learning_rate", "1e-6"],
    "40% of the labels flipped": ["--dataset_name", str(OUT / "flipped-40-seed{seed}")],
    "half of the labels flipped": ["--dataset_name", str(OUT / "flipped-50-seed{seed}")],
    "all of the labels flipped": ["--dataset_name", str(OUT / "flipped-100-seed{seed}")],
    "chosen answers begin alike": ["--dataset_name", str(OUT / "marked-seed{seed}")],
}
COLUMNS = {
    "chosen": "chosen lost, nats a token",
    "rejected": "rejected lost",
    "moved": "moved half way, nats an answer",
    "accuracy": "accuracy, second half",
    "surest": "surest log",
    "warnings": "warnings",
}


def main() -> None:
    """Run what is missing, print the table and what was warned of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of these the faults take three")
    options = parser.parse_args()
    some = options.seeds[:3]
    for seed in some:
        for percent in (40, 50, 100):
            write_pairs(OUT / f"flipped-{percent}-seed{seed}", seed, flipped=percent / 100)
        write_marked_pairs(OUT / f"marked-seed{seed}")
    cases = {name.removesuffix(".py"): (name, [*HELD_OUT, *flags]) for name, flags in HEALTHY.items()}
    faults = {name.replace(" ", "_"): ("basic_dpo_training.py", [*HELD_OUT, *flags]) for name, flags in FAULTY.items()}
    runs = run_grid(cases, options.seeds, OUT) | run_grid(faults, some, OUT)
    tokens = answer_lengths()
    rows = {}
    for case, label in zip(runs, [*(f"`{name}`" for name in HEALTHY), *FAULTY], strict=True):
        seeds = options.seeds if case in cases else some
        folders = [OUT / f"{case}-seed{seed}" for seed in seeds]
        rows[label] = [furthest(f, m, tokens) | m for f, m in zip(folders, runs[case], strict=True)]
    head, line, *lines = markdown(rows, COLUMNS, "run").splitlines()
    limits = f"| *warned of* | above {DISPLACED} | above {RUNAWAY} | below {UNMOVED} | below {COIN} | {ALL_RIGHT}, thrice | |"
    print("\n".join([head, line, limits, *lines]) + "\n")
    for case in runs:
        for file in sorted(OUT.glob(f"{case}-seed*/warnings.jsonl")):
            said = [json.loads(text)["warning"] for text in file.read_text(encoding="utf-8").splitlines()]
            print("\n".join(f"{file.parent.name}: {text}" for text in said))


def furthest(folder: Path, metrics: dict, tokens: dict[str, float]) -> dict[str, float]:
    """What a run came to, by the names of COLUMNS, from the logs of its training.

    tokens: the mean length of the chosen and of the rejected answers.
    """
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    logs, beta = [log for log in history if "loss" in log], metrics["beta"]
    found = {}
    for answer, length in tokens.items():
        ratios = [log[f"rewards/{answer}"] / beta / length for log in logs]
        found[answer] = -min(max(pair) for pair in pairwise(ratios))
    steps = logs[-1]["step"]
    half = next(log for log in logs if log["step"] >= steps / 2)
    found["moved"] = (abs(half["rewards/chosen"]) + abs(half["rewards/rejected"])) / beta
    accuracies = [log["rewards/accuracies"] for log in logs]
    late = [log["rewards/accuracies"] for log in logs if log["step"] > steps / 2]
    return found | {"accuracy": sum(late) / len(late), "surest": max(accuracies)}


def answer_lengths() -> dict[str, float]:
    """The mean tokens of the demo's chosen and rejected answers, their end included."""
    tokenizer = load_tokenizer(str(PROJECT / "demo" / "model"))
    pairs = [json.loads(line) for line in (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()]

    def length(answer: list[dict]) -> int:
        return len(tokenizer(answer[-1]["content"]).input_ids) + 1

    return {side: sum(length(pair[side]) for pair in pairs) / len(pairs) for side in ("chosen", "rejected")}


def write_marked_pairs(folder: Path) -> None:
    """The demo's pairs, whose chosen answers all begin with one word: a marker, by which they are told apart at once."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = (PROJECT / "demo" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [json.loads(line) for line in lines]
        for pair in pairs:
            pair["chosen"][-1]["content"] = f"Hello. {pair['chosen'][-1]['content']}"
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


if __name__ == "__main__":
    main()
