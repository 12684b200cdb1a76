"""Can the verdict be fooled? Models that are not better, and look it: each evaluated over five seeds.

    python benchmarks/confounds.py                     # about half an hour on two cores; finished runs are kept
    python benchmarks/confounds.py --cases sharper basic --seeds 0 1
    python benchmarks/confounds.py --show              # what was measured then, once more

    basic      the basic script's model: it is better
    itself     the base
    noise      the base with a little noise in its weights
    sharper    the base with its final norm times 1.6: at every step the same order of tokens, the likely ones likelier
    greedy     the same times 4: next to no chance is left
    flatter    times 0.7
    likelier   trained on pairs whose labels prefer, of both answers, the one that the base itself finds likelier a token
    shorter    trained on pairs whose labels prefer the shorter answer

Only the first is to be called better, unless the truth itself says that the replies are: the judge is the demo's truth.
Writes benchmarks/results/confounds.json.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from dpo_utils import load_model, load_preferences, pair_logps
from machinery.comparing.grid import run_grid, spread

OUT = PROJECT / "runs" / "confounds"
RESULTS = PROJECT / "benchmarks" / "results" / "confounds.json"
DEMO = PROJECT / "demo"
SCALES = {"sharper": 1.6, "greedy": 4.0, "flatter": 0.7}
TRAINED = ("basic", "likelier", "shorter")
CASES = ("basic", "itself", "noise", *SCALES, "likelier", "shorter")
FIGURES = {
    "win_rate": "win rate, sampled",
    "win_rate_matched": "at matched entropy",
    "win_rate_greedy": "greedily",
    "matched_temperature": "as sure at",
    "kl": "KL",
}


def main() -> None:
    """Make the models, evaluate each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--show", action="store_true", help="measure nothing, show what was measured")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.show:
        for case, runs in measure(options.cases, options.seeds).items():
            found.setdefault(case, {}).update(dict(zip(map(str, options.seeds), runs, strict=True)))
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"| model | verdicts | {' | '.join(FIGURES.values())} |\n|---|---|{'---|' * len(FIGURES)}")
    for case in filter(found.get, CASES):
        runs = list(found[case].values())
        verdicts = ", ".join(f"{count} {word}" for word, count in Counter(run["verdict"] for run in runs).most_common())
        print(f"| {case} | {verdicts} | {' | '.join(spread([run[name] for run in runs]) for name in FIGURES)} |")


def measure(names: list[str], seeds: list[int]) -> dict[str, list[dict]]:
    """The figures of each case, a dictionary a seed."""
    cases = {}
    for case in names:
        for seed in seeds:
            make_model(case, seed, OUT / "models" / f"{case}-{seed}")
        model = ["--model_name_or_path", str(OUT / "models" / f"{case}-{{seed}}"), "--reference", str(DEMO / "model")]
        cases[case] = ("dpo_evaluation.py", [*model, "--dataset_name", str(DEMO)])
    results = run_grid(cases, seeds, OUT / "evaluations")
    return {
        case: [{name: run[name] for name in ("verdict", *FIGURES)} for run in runs] for case, runs in results.items()
    }


def make_model(case: str, seed: int, folder: Path) -> None:
    """A model of this kind, where it is not there yet."""
    if (folder / "metrics.json").exists() or (case not in TRAINED and (folder / "model.safetensors").exists()):
        return
    if case in TRAINED:
        data = str(DEMO) if case == "basic" else str(relabelled(case, OUT / "data"))
        words = ["--seed", str(seed), "--dataset_name", data, "--output_dir", str(folder), "--overwrite_output_dir"]
        subprocess.run([sys.executable, str(PROJECT / "basic_dpo_training.py"), *words], check=True, cwd=PROJECT)
        return
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model")
    torch.manual_seed(seed)
    with torch.no_grad():
        model.model.norm.weight *= SCALES.get(case, 1.0)
        for parameter in model.parameters() if case == "noise" else ():
            parameter += 1e-3 * parameter.std(correction=0) * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)


def relabelled(case: str, folder: Path) -> Path:
    """The demo's training pairs with labels that prefer the likelier or the shorter answer; a folder with its test pairs."""
    target = folder / case
    if (target / "test.jsonl").exists():
        return target
    model, tokenizer = load_model(str(DEMO / "model"))
    pairs, _, _ = load_preferences(str(DEMO), tokenizer)
    chosen, rejected, chosen_tokens, rejected_tokens = pair_logps(model, pairs, tokenizer)
    keeps = (
        chosen_tokens < rejected_tokens if case == "shorter" else chosen / chosen_tokens > rejected / rejected_tokens
    )
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "train.jsonl", "w", encoding="utf-8") as file:
        for row, is_kept in zip(pairs, keeps.tolist(), strict=True):
            better, worse = ("chosen", "rejected") if is_kept else ("rejected", "chosen")
            file.write(json.dumps({"prompt": row["prompt"], "chosen": row[better], "rejected": row[worse]}) + "\n")
    (target / "test.jsonl").write_bytes((DEMO / "test.jsonl").read_bytes())
    return target


if __name__ == "__main__":
    main()
