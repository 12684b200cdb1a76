"""What pairs of one's own win, in rounds and otherwise: on the demo, where the true reward of every reply is known.

    python benchmarks/own_pairs.py                                  # all cases, three seeds: hours on two cores
    python benchmarks/own_pairs.py --cases rounds --seeds 0 1 2 3 4
    python benchmarks/own_pairs.py --show                           # what was measured then, once more

Each case is custom_dataset_dpo.py with --sample_answers 4 and the flags below, as many at a time as there are cores;
best_of trains nothing, and takes the best of several answers of the first model. Rounds that are finished are kept in
runs/own_pairs and not repeated. Prints mean, lowest and highest over the seeds, after the last round, and writes all
rounds to benchmarks/results/own_pairs.json.
"""

import argparse
import json
import shlex
import sys
from itertools import chain
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from demo.world import true_reward
from dpo_utils import load_model, load_preferences, pick_prompts, sample_completions
from machinery.common.intervals import with_interval
from machinery.comparing.grid import alone, as_they_end, markdown, run_child

OUT = PROJECT / "runs" / "own_pairs"
RESULTS = PROJECT / "benchmarks" / "results" / "own_pairs.json"
# Of the demo's 2,047 prompts: three rounds of it are nearly all of them once.
THIRD = "--num_prompts 680"
# case: (what it is, flags)
CASES = {
    "rounds": ("three rounds, each of 1,000 prompts", "--rounds 3 --num_prompts 1000"),
    "thirds": ("three rounds, each of a third of the prompts", f"--rounds 3 {THIRD}"),
    "one_round": ("one round of all prompts: as many pairs", "--rounds 1 --num_prompts 2040"),
    "stale": ("one round of a third, three epochs: as many steps", f"--rounds 1 {THIRD} --num_train_epochs 3"),
    "first": ("thirds, held to the first model", f"--rounds 3 {THIRD} --first_reference"),
    "beta_0.03": ("thirds, beta 0.03", f"--rounds 3 {THIRD} --beta 0.03"),
    "beta_0.3": ("thirds, beta 0.3", f"--rounds 3 {THIRD} --beta 0.3"),
    "noisy": ("thirds, a judge with noise", f"--rounds 3 {THIRD} --judge JUDGES:noisy"),
    "polite": ("thirds, a rule that counts polite words", f"--rounds 3 {THIRD} --judge JUDGES:polite"),
    "long": ("thirds, a rule that counts words", f"--rounds 3 {THIRD} --judge JUDGES:long"),
    "fast": (
        "thirds, rate and epsilon about three times as high",
        f"--rounds 3 {THIRD} --learning_rate 3e-3 --adam_epsilon 1e-2",
    ),
    "too_fast": ("three rounds of 1,000, three times the rate", "--rounds 3 --num_prompts 1000 --learning_rate 3e-3"),
    "ten_words": ("one round, at most ten words", "--rounds 1 --judge JUDGES:ten_words"),
}
BEST_OF = (1, 4, 16)
COLUMNS = {
    "true_reward_after": "true reward",
    "greedy_reward_after": "greedily",
    "win_rate": "win rate over the last",
    "garbled_after": "garbled",
    "kl_first": "KL from the first",
    "reply_tokens_after": "tokens a reply",
}
ENDS = ("", "_ci_low", "_ci_high")


def main() -> None:
    """Run what is missing, write, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "best_of"], default=[*CASES, "best_of"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--show", action="store_true", help="measure nothing, show what was measured")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.show:
        jobs = [(case, seed) for case in options.cases if case != "best_of" for seed in options.seeds]
        in_turn = ((("best_of", seed), best_of(seed)) for seed in options.seeds if "best_of" in options.cases)
        for (case, seed), rounds in chain(as_they_end(run, jobs), in_turn):
            found.setdefault(case, {})[str(seed)] = rounds
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    tables = [case for case in CASES if case in found and case != "ten_words"]
    print(markdown({CASES[case][0]: _last(found, case) for case in tables}, COLUMNS))
    if "rounds" in found:
        count = max(map(len, found["rounds"].values()))
        by_round = {f"round {n + 1}": [rounds[n] for rounds in found["rounds"].values()] for n in range(count)}
        print("\n" + markdown(by_round, COLUMNS, "three rounds of 1,000 prompts"))
    if "ten_words" in found:
        print("\n" + ten_words(found["ten_words"]))
    if "best_of" in found:
        columns = {f"best_of_{count}": f"best of {count}" for count in BEST_OF}
        print("\n" + markdown({"the first model": _last(found, "best_of")}, columns, "true reward"))


def ten_words(seeds: dict[str, list[dict]]) -> str:
    """By seed: how often the rule of ten words is kept on held-out prompts, and the win rate by it with its interval."""
    lines = ["| seed | kept before | after | win rate | KL, nats a reply |", "|---|---|---|---|---|"]
    for seed, rounds in sorted(seeds.items()):
        last = rounds[-1]
        win_rate = with_interval([last[f"score_win_rate{end}"] for end in ENDS])
        lines.append(
            f"| {seed} | {last['score_before']:.2f} | {last['score_after']:.2f} | {win_rate} | {last['kl_first']:.2f} |"
        )
    return "\n".join(lines)


def _last(found: dict, case: str) -> list[dict]:
    """The metrics after the last round, by seed."""
    return [found[case][seed][-1] for seed in sorted(found[case])]


def best_of(seed: int) -> list[dict]:
    """The mean over the held-out prompts of the best true reward among so many answers of the first model."""
    model, tokenizer = load_model(str(PROJECT / "demo" / "model"))
    pairs = load_preferences(str(PROJECT / "demo"), tokenizer)[1]
    prompts = pick_prompts(pairs, 200)
    repeated = [prompt for prompt in prompts for _ in range(max(BEST_OF))]
    replies = sample_completions(model, tokenizer, repeated, max_new_tokens=96, seed=seed)
    rewards = [true_reward(prompt, reply.text) for prompt, reply in zip(repeated, replies, strict=True)]
    rows = [rewards[start : start + max(BEST_OF)] for start in range(0, len(rewards), max(BEST_OF))]
    return [{f"best_of_{count}": sum(max(row[:count]) for row in rows) / len(rows) for count in BEST_OF}]


def run(case: str, seed: int) -> list[dict]:
    """The metrics of each round of a case."""
    flags = shlex.split(
        CASES[case][1].replace("JUDGES", shlex.quote(str(PROJECT / "benchmarks/judges_of_the_demo.py")))
    )
    flags = flags if "--judge" in flags else [*flags, "--judge", "truth"]
    folder = OUT / f"{case}-{seed}"
    command = [sys.executable, str(PROJECT / "custom_dataset_dpo.py"), "--dataset_name", str(PROJECT / "demo"), *flags]
    command += ["--sample_answers", "4", "--seed", str(seed), "--output_dir", str(folder), "--show", "0"]
    code, errors = run_child(command, alone() | {"OMP_NUM_THREADS": "1"}, is_quiet=True)
    if code:
        raise SystemExit(f"{shlex.join(command)} ended with {code}: {errors.strip().splitlines()[-1:]}")
    rounds = json.loads((folder / "rounds.json").read_text())["rounds"]
    kept = [*COLUMNS, "true_reward_before", "greedy_reward_before", "score_before", "score_after"]
    kept += ["kl_last", "pairs_train", "kl", *(f"score_win_rate{end}" for end in ENDS)]
    return [{name: metrics[name] for name in kept if name in metrics} for metrics in rounds]


if __name__ == "__main__":
    main()
