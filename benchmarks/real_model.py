"""A real model trained to its end: four stories, each from data to verdict by commands that a reader can type.

    python benchmarks/real_model.py --pairs instruction-data-with-preference.json      # all: hours on two cores
    python benchmarks/real_model.py --pairs ... --stories own --seeds 0 1
    python benchmarks/real_model.py --show own                                         # what was measured then
    python benchmarks/real_model.py --show costs                                       # in which time and memory
    python benchmarks/real_model.py --replies own                                      # what the models wrote
    python benchmarks/real_model.py --commands own                                     # and by which commands
    python benchmarks/real_model.py --figure docs/figures/real_model.png               # the given pairs at two rates

The model is HuggingFaceTB/SmolLM2-135M-Instruct, from the hub or its cache; the pairs are a book's, by
https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/04_preference-tuning-with-dpo/ and the name above.
Each seed has a folder of its own in runs/real_model, where the commands run one after the other; one that is finished is
not repeated. What they measured goes to benchmarks/results/real_model.json.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
import textwrap
import time
from datetime import datetime
from functools import partial
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.speed import machine
from machinery.common.intervals import with_interval
from machinery.comparing.grid import markdown
from machinery.watching.curves import plot_beside

OUT = PROJECT / "runs" / "real_model"
RESULTS = PROJECT / "benchmarks" / "results" / "real_model.json"
LINKED = ("recipes", *(path.name for path in PROJECT.glob("*.py")))  # what commands name
PAIRS = "instruction-data-with-preference.json"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RULES = "recipes/smollm2/rules.py"
SAMPLE = f"python custom_dataset_dpo.py --check_only --dataset_name recipes/smollm2/prompts/train.jsonl --sample_answers 4 --judge {RULES}:score --max_new_tokens 96 --temperature 0.7"
TRAIN = "python lora_dpo_training.py --config recipes/smollm2/cpu.yaml"
JUDGE = f"python dpo_evaluation.py --reference {MODEL}"
HOLDS = f"--dataset_name recipes/smollm2/prompts/test.jsonl --judge {RULES}:holds --num_samples 1 --max_new_tokens 96"
KNOWS = f"--dataset_name recipes/smollm2/facts.jsonl --judge {RULES}:knows --num_samples 1 --max_new_tokens 48 --temperature 0 --texts recipes/smollm2/kept.txt"
FAR = "--learning_rate 1e-4 --num_train_epochs 3"  # twice the recipe's rate, for three times as long
OWN = f"{FAR} --loss_type sigmoid sft --loss_weights 1 1"  # the chosen answers count by themselves too
PARTS = ("chosen", "rejected", "margins", "accuracies")
PLAIN = "--max_steps 10 --logging_steps 1 --per_device_train_batch_size 4 --learning_rate 1e-5 --use_cpu --bf16 false"
# Of the evaluations, by what stands in the name of their output: the prompts whose replies are kept.
QUOTED = {
    "given-facts": ('The plural of "foot" is what?', "What is the capital of France?"),
    "too-far-facts": ("What is the opposite of hot?", "A full day lasts how many hours?"),
    "held-facts": ("What is the opposite of hot?", "A full day lasts how many hours?"),
    "own-rule": ("How do I say no without feeling guilty?", "Which sport is good for a beginner who is out of shape?"),
    "own-facts": ('What animal says "moo"?', "What is the capital of France?"),
}
LOGGED = {"step", *(kind + name for kind in ("", "eval_") for name in ("loss", *(f"rewards/{part}" for part in PARTS)))}


# Each command writes to --output_dir. What a later one reads, an earlier one of its story has written.
STORIES = {
    "given": [
        f"{TRAIN} --output_dir runs/lora",
        f"{TRAIN} --num_train_epochs 3 --output_dir runs/lora-3",
        "python basic_dpo_training.py --config recipes/smollm2/cpu.yaml --learning_rate 1e-5 --output_dir runs/full",
        f"{JUDGE} --models runs/lora runs/lora-3 runs/full {KNOWS} --output_dir runs/given-facts",
    ],
    "beside_trl": [
        f"python custom_dataset_dpo.py --check_only --dataset_name {PAIRS} --held_out_share 0 --save_cleaned pairs/train.jsonl --output_dir runs/pairs",
        f"trl dpo --model_name_or_path {MODEL} --dataset_name pairs {PLAIN} --save_steps 10 --output_dir runs/trl",
        f"python basic_dpo_training.py --model_name_or_path {MODEL} --dataset_name pairs {PLAIN} --keep_plain --no_precompute_ref_log_probs --num_eval_prompts 4 --output_dir runs/ours",
    ],
    "own": [
        f"{SAMPLE} --model_name_or_path {MODEL} --save_cleaned round-1.jsonl --output_dir runs/answers-1",
        f"{TRAIN} {OWN} --dataset_name round-1.jsonl --merge --output_dir runs/round-1",
        f"{SAMPLE} --model_name_or_path runs/round-1/merged --save_cleaned round-2.jsonl --output_dir runs/answers-2",
        f"{TRAIN} {OWN} --dataset_name round-2.jsonl --model_name_or_path runs/round-1/merged --merge --output_dir runs/round-2",
        f"{JUDGE} --models runs/round-1/merged runs/round-2/merged {HOLDS} --output_dir runs/own-rule",
        f"{JUDGE} --models runs/round-1/merged runs/round-2/merged {KNOWS} --output_dir runs/own-facts",
    ],
    "too_far": [
        f"{TRAIN} {FAR} --output_dir runs/too-far",
        f"{JUDGE} --models runs/too-far {KNOWS} --output_dir runs/too-far-facts",
        f"{TRAIN} {OWN} --output_dir runs/held",
        f"{JUDGE} --models runs/held {KNOWS} --output_dir runs/held-facts",
    ],
}


def main() -> None:
    """Run what is missing, write, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=Path, help=f"where {PAIRS} is; the stories given, beside_trl and too_far read it"
    )
    parser.add_argument("--stories", nargs="+", choices=STORIES, default=list(STORIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--show", choices=[*STORIES, "costs"], help="measure nothing, show what was measured")
    parser.add_argument("--commands", choices=STORIES, help="print the commands of a story")
    parser.add_argument("--replies", choices=STORIES, help="print what the models of a story wrote, of one seed")
    parser.add_argument("--figure", type=Path, help="draw the given pairs' curves at both rates from what was measured")
    options = parser.parse_args()
    if options.commands:
        print("\n".join(map(in_lines, STORIES[options.commands])))
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.replies:
        for seed, runs in list(found.get(options.replies, {}).items())[:1]:
            for name in (command.rpartition("/")[2] for command in STORIES[options.replies]):
                if "replies" in runs[name]:
                    print(f"seed {seed}, {name}\n\n{in_paragraphs(runs[name]['replies'])}\n")
        return
    if options.figure:
        runs = {"rate 5e-5": found["given"]["0"]["lora-3"], "rate 1e-4": found["too_far"]["0"]["too-far"]}
        plot_beside({label: run["logs"] for label, run in runs.items()}, options.figure)
        return
    if not options.show:
        for seed in options.seeds:
            for story in options.stories:
                for name, result in run_story(story, seed, options.pairs):
                    found.setdefault(story, {}).setdefault(str(seed), {})[name] = result
                    RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for story in [options.show] if options.show else [*options.stories, "costs"]:
        if story == "costs":
            print(costs(found))
        elif whole := {seed: runs for seed, runs in found.get(story, {}).items() if len(runs) == len(STORIES[story])}:
            print("\n\n".join(TABLES[story](whole)) + "\n")


def in_lines(command: str, width: int = 112) -> str:
    """A command as a page shows it: lines that a shell puts together, each beginning with a flag."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def in_paragraphs(replies: dict[str, dict[str, str]], width: int = 110) -> str:
    """Prompts, and below each what every model wrote."""
    wrap = partial(textwrap.fill, width=width, subsequent_indent=4 * " ")
    lines = []
    for prompt, by_model in replies.items():
        lines += [prompt, *(wrap(f"  {model}: {' '.join(text.split())}") for model, text in by_model.items()), ""]
    return "\n".join(lines[:-1])


def run_story(story: str, seed: int, pairs: Path | None):
    """Run the commands of a story, one after the other; yields the name of each output folder and what was measured."""
    folder = OUT / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(PROJECT / name)
    if pairs is not None:
        (folder / PAIRS).unlink(missing_ok=True)
        (folder / PAIRS).symlink_to(pairs.resolve())
    done_file = folder / "done.json"
    done = json.loads(done_file.read_text()) if done_file.exists() else {}
    for command in STORIES[story]:
        words = shlex.split(command)
        out = Path(words[-1])
        if done.get(out.name, {}).get("command") != command:
            program = words[1:] if words[0] == "python" else [_trl_script(), *words[2:]]
            if (folder / out).exists() and words[0] == "python":
                program.append("--overwrite_output_dir")  # of a run that was killed
            log = folder / f"{out.name}.log"
            print(f"{datetime.now():%H:%M} seed {seed}: {command}", flush=True)
            started = time.perf_counter()
            with log.open("w") as output:
                whole = [sys.executable, *program, "--seed", str(seed)]
                code = subprocess.run(whole, cwd=folder, stdout=output, stderr=subprocess.STDOUT).returncode
            if code:
                raise SystemExit(f"{command} ended with {code}, see {log}")
            seconds = time.perf_counter() - started
            done[out.name] = {"command": command, "seconds": seconds, "machine": machine()} | measured(folder / out)
            done_file.write_text(json.dumps(done))
        yield out.name, done[out.name]


def _trl_script() -> str:
    import trl.scripts.dpo

    return trl.scripts.dpo.__file__


def measured(folder: Path) -> dict:
    """What a command has left in its folder: figures, warnings, and the logs of a training."""
    found = {}
    if (folder / "metrics.json").exists():
        found["metrics"] = json.loads((folder / "metrics.json").read_text())
    if (folder / "warnings.jsonl").exists():
        found["warnings"] = [json.loads(line)["warning"] for line in (folder / "warnings.jsonl").open()]
    if quoted := QUOTED.get(folder.name):
        found["replies"] = first_replies(folder / "generations.jsonl", quoted)
    if states := sorted(folder.rglob("trainer_state.json")):  # TRL's script leaves it in a checkpoint only
        history = json.loads(states[-1].read_text())["log_history"]
        found["logs"] = [{name: value for name, value in logs.items() if name in LOGGED} for logs in history]
    return found


def first_replies(generations: Path, prompts: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Of some prompts, what each model wrote first."""
    replies = {prompt: {} for prompt in prompts}
    for row in map(json.loads, generations.open(encoding="utf-8")):
        by_model = replies.get(row["prompt"][-1]["content"])
        for answer in row["answers"] if by_model is not None else ():
            by_model.setdefault(answer["model"], answer["text"])
    return {prompt: by_model for prompt, by_model in replies.items() if by_model}


def given(seeds: dict) -> list[str]:
    """What the training on given pairs did: to held-out pairs, to facts, to a text that has nothing to do with them."""
    names = {"an adapter": "lora", "the same, three epochs": "lora-3", "all weights": "full"}
    facts = {label: ("given-facts", f"runs/{name}") for label, name in names.items()}
    return [_held_out(seeds, names), _prices(seeds, facts)]


def beside_trl(seeds: dict) -> list[str]:
    """The losses of the first steps by TRL's own script and by ours, and how long both took."""
    [runs, *_] = seeds.values()
    theirs, ours = ([logs["loss"] for logs in runs[name]["logs"] if "loss" in logs] for name in ("trl", "ours"))
    lines = ["| step | `trl dpo` | the basic script |", "|---|---|---|"]
    for step, pair in enumerate(zip(theirs, ours, strict=True), start=1):
        lines.append(f"| {step} | {pair[0]:.6f} | {pair[1]:.6f} |")
    lines.append(f"| seconds, from start to end | {runs['trl']['seconds']:.0f} | {runs['ours']['seconds']:.0f} |")
    return ["\n".join(lines)]


def own(seeds: dict) -> list[str]:
    """What two rounds of the model's own pairs did to held-out prompts, and to facts."""
    names = {f"round {number}": f"runs/round-{number}/merged" for number in (1, 2)}
    facts = {label: ("own-facts", model) for label, model in names.items()}
    return [*_by_rule(seeds, "own-rule", names), _prices(seeds, facts)]


def too_far(seeds: dict) -> list[str]:
    """The given pairs at too high a rate, by each measurement on held-out pairs; with the SFT term, which holds it; what
    the watcher said of both.
    """
    lines = [
        "| step | held-out loss | accuracy | margin | chosen, nats | rejected, nats |",
        "|---|---|---|---|---|---|",
    ]
    [runs, *_] = seeds.values()
    run = runs["too-far"]
    for log in (log for log in run["logs"] if "eval_loss" in log):
        moved = [log[f"eval_rewards/{part}"] / run["metrics"]["beta"] for part in ("chosen", "rejected")]
        numbers = [log["eval_loss"], log["eval_rewards/accuracies"], log["eval_rewards/margins"], *moved]
        lines.append(f"| {log['step']} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    names = {"too far": "too-far", "with SFT's term": "held"}
    facts = {label: (f"{name}-facts", f"runs/{name}") for label, name in names.items()}
    said = [
        f"seed {seed}, {name}: {text}"
        for seed, runs in seeds.items()
        for name in names.values()
        for text in runs[name].get("warnings", [])
    ]
    return ["\n".join(lines), _held_out(seeds, names), _prices(seeds, facts), "\n".join(said)]


def _held_out(seeds: dict, names: dict[str, str]) -> str:
    """What trainings did to held-out pairs; names: by label, the output folder's."""
    columns = {"reward_accuracy": "held-out accuracy", "reward_margin": "margin", "chosen_logp_change": "chosen, nats"}
    columns |= {"rejected_logp_change": "rejected, nats", "kl": "KL, nats a reply"}
    rows = {label: [runs[name]["metrics"] for runs in seeds.values()] for label, name in names.items()}
    return markdown(rows, columns, "trained")


def _by_rule(seeds: dict, name: str, models: dict[str, str]) -> list[str]:
    """Held-out prompts: how often the rule holds, and at what price; and by seed how much more often than before."""
    columns = {"score": "rule holds", "greedy": "greedily wins", "reply_tokens": "tokens a reply"}
    columns |= {"stopped_share": "finished", "kl": "KL, nats a reply"}
    [a_model, *_] = models.values()
    start = [_of(runs[name], a_model, twin=True) | {"kl": 0.0, "greedy": 0.5} for runs in seeds.values()]
    rows = {"before": start} | {
        label: [(m := _of(runs[name], model)) | {"greedy": m["win_rate_greedy"]} for runs in seeds.values()]
        for label, model in models.items()
    }
    lines = [f"| seed | {' | '.join(models)} |", "|---|" + "---|" * len(models)]
    for seed, runs in seeds.items():
        cells = [_with_interval(_of(runs[name], model), "score_change") for model in models.values()]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return [markdown(rows, columns, "held-out prompts"), "\n".join(lines)]


def _prices(seeds: dict, models: dict[str, tuple[str, str]]) -> str:
    """Facts that were known and are known, and how much less a text that has nothing to do with it all is expected.

    models: by label, the evaluation that has it and its name there.
    """
    [(evaluation, a_model), *_] = models.values()
    lines = ["| seed | model | facts known | change | change of the loss on a kept text |", "|---|---|---|---|---|"]
    for seed, runs in seeds.items():
        before = _with_interval(_of(runs[evaluation], a_model, twin=True), "score")
        lines.append(f"| {seed} | before | {before} | | |")
        for label, (name, model) in models.items():
            figures = _of(runs[name], model)
            cells = [_with_interval(figures, key) for key in ("score", "score_change", "text_loss_change")]
            lines.append(f"| {seed} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(run: dict, model: str, twin: bool = False) -> dict:
    """The figures of a model in an evaluation of one or several; twin: those of the reference beside it."""
    prefix = f"{model}/" if any(name.startswith(f"{model}/") for name in run["metrics"]) else ""
    figures = {key.removeprefix(prefix): value for key, value in run["metrics"].items() if key.startswith(prefix)}
    return {key.replace("_reference", ""): v for key, v in figures.items() if "_reference" in key} if twin else figures


def _with_interval(figures: dict, name: str) -> str:
    """A mean and its interval, and no interval where every prompt gave the same; a change with its sign."""
    measured = tuple(figures.get(name + end, math.nan) for end in ("", "_ci_low", "_ci_high"))
    return with_interval(measured, sign="+" if name.endswith("change") else "")


def costs(found: dict) -> str:
    """Minutes and memory of each command, of one seed, and beside the memory what the command had expected of its training.

    The process also holds Python, and samples replies; the training alone is measured by the adapter's script.
    """
    columns = {"minutes": "minutes", "process": "process, GB", "process_estimated": "estimated"}
    columns |= {"training": "training alone, GB", "training_estimated": "estimated of it"}
    lines, machines = [f"| output | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)], set()
    for seeds in found.values():
        for name, run in next(iter(seeds.values())).items():
            cost = _cost(run)
            cells = [f"{cost[column]:.1f}" if cost[column] else "" for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            machines.add(run["machine"])
    return "\n".join([*lines, "", f"on {', '.join(sorted(machines))}"])


def _cost(run: dict) -> dict[str, float]:
    """Minutes and gigabytes of one command; 0 is not known."""
    metrics = run.get("metrics", {})
    parts = [size for name, size in metrics.items() if re.fullmatch(r"memory_\w+_bytes_estimated", name)]
    sizes = {"process": metrics.get("peak_memory_bytes", 0), "training": metrics.get("memory_total_bytes", 0)}
    sizes |= {"process_estimated": metrics.get("peak_memory_bytes_estimated", 0), "training_estimated": sum(parts)}
    return {"minutes": run["seconds"] / 60} | {name: size / 1e9 for name, size in sizes.items()}


TABLES = {"given": given, "beside_trl": beside_trl, "own": own, "too_far": too_far}

if __name__ == "__main__":
    main()
