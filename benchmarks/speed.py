"""How many pairs a second, against TRL as `trl dpo` sets it and against TRL tuned by hand, on the same model and rows?

    python benchmarks/speed.py                                    # the main case, three rounds: 18 minutes
    python benchmarks/speed.py --cases long_prompt short_prompt --rounds 1
    python benchmarks/speed.py --cases shapes --out shapes        # every shape of data, vocabulary and training
    python benchmarks/speed.py --cases length batch --out growth  # how it grows
    python benchmarks/speed.py --small                            # a model of two million parameters: does it run at all?
    python benchmarks/speed.py --show --out growth                # what was measured then, once more

A round trains the same few batches with each contender in a process of its own, in turn:

    stock    TRL with its own settings: gradient checkpointing, the reference asked at every step
    tuned    TRL without checkpointing, the reference asked beforehand
    ours     this project's trainer: prompts once, rows of like length, the reference beforehand
    exact    ours with the batches of stock, the reference asked at every step; to compare the losses

All in bfloat16, as TRL has it, or in float32 where that is faster.

Prints pairs and tokens a second (the time to ask the reference of a first run counted in), peak memory, and useful
operations a second as a share of what a large matrix product reaches on this machine: each prompt counted once, nothing
that is computed again counted at all. Medians over the rounds, lowest and highest in brackets. Writes
benchmarks/results/NAME.json and NAME.png.
"""

import argparse
import copy
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
OUT = PROJECT / "benchmarks" / "results"
CONTENDERS = ("stock", "tuned", "ours", "exact")
LABELS = {
    "stock": "TRL, as `trl dpo` sets it",
    "tuned": "TRL, tuned by hand",
    "ours": "this project",
    "exact": "the same on TRL's batches",
}

# Tokens of prompts and completions on average (the first two: shapes as of HH's dialogues and of short questions),
# and what differs from 23 million parameters, 32,000 tokens and 8 pairs a batch.
SHAPES = {
    "long_prompt": dict(label="long prompts", prompt=226, completion=68),
    "short_prompt": dict(label="short prompts", prompt=68, completion=68),
    "long_completion": dict(label="long answers", prompt=48, completion=192),
    "multi_turn": dict(label="several turns", prompt=640, completion=64),
    "small_vocabulary": dict(label="a vocabulary of 4,000", prompt=226, completion=68, vocabulary=4_000),
    "large_vocabulary": dict(label="a vocabulary of 128,000", prompt=226, completion=68, vocabulary=128_000),
    "lora": dict(label="an adapter of rank 16", prompt=226, completion=68, lora=True),
}
TINY = dict(size="small", vocabulary=2_000)
LENGTH = {
    f"length_{n}": dict(label=f"{n:,} tokens a pair", prompt=n * 3 // 5, completion=n // 5, batch=4, **TINY)
    for n in (64, 256, 1024, 4096)
}
BATCH = {
    f"batch_{n}": dict(label=f"a batch of {n}", prompt=226, completion=68, batch=n, **TINY) for n in (1, 4, 16, 64)
}
ROWS = {
    f"rows_{n}": dict(label=f"{n:,} rows", prompt=12, completion=4, rows=n, **TINY)
    for n in (1_000, 10_000, 100_000, 1_000_000)
}
GROUPS = {"shapes": list(SHAPES), "length": list(LENGTH), "batch": list(BATCH), "rows": list(ROWS)}
CASES = SHAPES | LENGTH | BATCH | ROWS
SIZES = {  # 23 million parameters with 32,000 tokens, one to try things on, and two for benchmarks/gpu.py
    "normal": dict(hidden_size=384, intermediate_size=1152, num_hidden_layers=6, num_attention_heads=6, head_dim=64),
    "small": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, head_dim=32),
    "0.5B": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, head_dim=64),
    "1.5B": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, head_dim=128),
}


def main() -> None:
    """Run the rounds, print the table, write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*GROUPS, *CASES], default=["long_prompt"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed, after one that is not")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", default="speed", metavar="NAME")
    parser.add_argument("--show", action="store_true", help="measure nothing, show what NAME.json has")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(*options.one, options)))
        return
    file = OUT / f"{options.out}.json"
    if not options.show:
        OUT.mkdir(exist_ok=True)
        file.write_text(json.dumps(measure(options), indent=1) + "\n")
    report = json.loads(file.read_text())
    show(report)
    plot(report, file.with_suffix(".png"))


def measure(options) -> dict:
    """Every case with every contender, in turn: what each training gives, by case and contender, a list over the rounds."""
    cases = [case for name in options.cases for case in GROUPS.get(name, [name])]
    jobs = [(case, name) for case in cases for _ in range(options.rounds) for name in options.contenders]
    results = {case: {name: [] for name in options.contenders} for case in cases}
    peaks = matrix_peaks()
    for case, name in tqdm(jobs, desc="trainings"):
        results[case][name].append(run(case, name, options))
    return {"machine": machine(), "peaks": peaks, "steps": options.steps, "cases": results}


def run(case: str, name: str, options) -> dict:
    """One training in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--one",
        case,
        name,
        "--steps",
        str(options.steps),
        *["--small"] * options.small,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    if done.returncode:
        raise SystemExit(f"{case}, {name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show(report: dict) -> None:
    """Print Markdown tables: of one case the contenders, of several the speeds case by case."""
    cases = report["cases"]
    if len(cases) == 1:
        [results] = cases.values()
        rows = {LABELS[name]: contender_row(name, results, report["peaks"]) for name in results}
    else:
        rows = {CASES[case]["label"]: case_row(case, results) for case, results in cases.items()}
    columns = list(next(iter(rows.values())))
    print("\n".join(["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]))
    for label, row in rows.items():
        print(f"| {label} | " + " | ".join(row[column] for column in columns) + " |")
    gaps = [
        abs(a - b) / abs(a)
        for results in cases.values()
        for one, other in zip(results.get("stock", ()), results.get("exact", ()), strict=False)
        for a, b in zip(one["losses"], other["losses"], strict=True)
    ]
    left_out = (
        "" if "bf16" in report["peaks"] else " bf16 is left out: it is slower here than fp32, which all trainings use."
    )
    print(f"\nOn {report['machine']}, {report['steps']} steps timed.{left_out}")
    if gaps:
        print(f"The largest relative difference of the losses from TRL's on the same batches: {max(gaps):.1e}.")


def contender_row(name: str, results: dict[str, list[dict]], peaks: dict[str, float]) -> dict[str, str]:
    """What one contender needs in one case."""
    rounds = results[name]
    useful = statistics.median(turn["useful_flops_per_second"] / peaks[turn["precision"]] for turn in rounds)
    return {
        "pairs/s": f"{median(rounds, 'pairs_per_second'):.2f}",
        "tokens/s": f"{median(rounds, 'tokens_per_second'):,.0f}",
        "peak memory": f"{median(rounds, 'peak') / 1e9:.1f} GB",
        "kept for the backward pass": f"{median(rounds, 'kept') / 1e6:,.0f} MB",
        "useful operations": f"{useful:.0%}",
        **ratios(rounds, results),
    }


def case_row(case: str, results: dict[str, list[dict]]) -> dict[str, str]:
    """The contenders' speeds in one case, and how ours compares."""
    shape = CASES[case]
    row = {"prompt and answer, tokens": f"{shape['prompt']} and {shape['completion']}"}
    for unit, key, digits in (("pairs/s", "pairs_per_second", 2), ("tokens/s", "tokens_per_second", 0)):
        row |= {f"{LABELS[name]}, {unit}": f"{median(rounds, key):,.{digits}f}" for name, rounds in results.items()}
    return row | (ratios(results["ours"], results) if "ours" in results else {})


def median(rounds: list[dict], key: str) -> float:
    """One figure's median over the rounds."""
    return statistics.median(turn[key] for turn in rounds)


def ratios(ours: list[dict], results: dict[str, list[dict]]) -> dict[str, str]:
    """How many times as fast as TRL's own and as TRL tuned by hand: the median over the rounds, lowest and highest."""
    row = {}
    for other, column in (("stock", "times as fast as stock"), ("tuned", "as tuned")):
        if other in results:
            speeds = (
                (turn["pairs_per_second"], theirs["pairs_per_second"])
                for turn, theirs in zip(ours, results[other], strict=True)
            )
            values = sorted(a / b for a, b in speeds)
            spread = f" ({values[0]:.2f} to {values[-1]:.2f})" if values[0] < values[-1] else ""
            row[column] = f"{statistics.median(values):.2f}{spread}"
    return row


# --- One training ----------------------------------------------------------------------------------------------------


def train(case: str, name: str, options) -> dict:
    """Train a few steps with one contender, and measure."""
    from machinery.hardware import memory
    from machinery.hardware.estimate import kept_for_backward

    shape = dict(vocabulary=32_000, lora=False, batch=8, rows=0, size="normal") | CASES[case]
    if options.small:
        shape |= TINY
    trainer, asked, tokens, ticks = contender(name, shape, options.steps + 1)
    trainer.train()
    peak = memory.peak_since_reset() - (0 if memory.uses_gpu() else memory.START)
    rows = trainer.train_dataset
    lengths = part_lengths(rows)
    # The contenders take the rows in other orders, so what is timed is tokens, and a pair is its mean number of them.
    timed = sum(tokens[1:])
    pairs = timed / (sum(map(sum, lengths)) / len(lengths))  # each prompt once
    seconds = ticks[-1] - ticks[0] + sum(asked) * timed / sum(tokens)
    batch = [rows[number] for number in range(shape["batch"])]
    return {
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": timed / seconds,
        "peak": peak,
        "kept": kept_for_backward(trainer, batch, checkpointing=name == "stock"),
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "useful_flops_per_second": pairs * useful_flops(trainer.model, lengths, shape["lora"]) / seconds,
        "losses": [logs["loss"] for logs in trainer.state.log_history if "loss" in logs],
        "steps_aside": getattr(trainer, "shared_prompt_refusal", None),
    }


def part_lengths(rows, most: int = 1_000) -> list[list[int]]:
    """The tokens of prompt, chosen and rejected answer of each of the first rows."""
    first = rows.select(range(min(len(rows), most)))
    return [[len(row[column]) for column in ("prompt_ids", "chosen_ids", "rejected_ids")] for row in first]


def contender(name: str, shape: dict, steps: int) -> tuple:
    """A trainer, and three lists that fill while it works: seconds that asking the reference beforehand took; tokens a
    step, prompts once; the time at the end of every step."""
    import torch
    from peft import LoraConfig
    from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback
    from trl import DPOTrainer

    from machinery.hardware import memory
    from machinery.training.shared_prompt import SharedPromptDPOTrainer
    from machinery.training.token_budget import pair_lengths

    asked, tokens, ticks = [], [], []
    is_ours = name in ("ours", "exact")
    # Many rows would take hours, and all of them are alike.
    asks_beforehand = name in ("tuned", "ours") and not shape["rows"]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"

    class Contender(SharedPromptDPOTrainer if is_ours else DPOTrainer):
        def _precompute_ref_logps(self, *args, **kwargs):
            started = time.perf_counter()
            pairs = super()._precompute_ref_logps(*args, **kwargs)
            asked.append(time.perf_counter() - started)
            return pairs

        def training_step(self, model, inputs, *args, **kwargs):
            tokens.append(sum(pair_lengths(inputs, is_shared=True)))
            return super().training_step(model, inputs, *args, **kwargs)

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ticks.append(time.perf_counter())

    pairs = made_up_pairs(shape, max(shape["batch"] * steps, shape["rows"]), shape["vocabulary"])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape["vocabulary"], num_key_value_heads=2, tie_word_embeddings=True, **SIZES[shape["size"]]
    )
    config._attn_implementation = shape.get("attention", "sdpa")
    with torch.device(device):  # where random weights take no time
        policy, reference = Qwen3ForCausalLM(config), None
    if is_ours:
        memory.keep_freed_memory(True)  # as load_model does
    if not asks_beforehand and not shape["lora"]:
        reference = copy.deepcopy(policy)
    memory.reset_peak()
    arguments = configuration(name, shape, steps, device, asks_beforehand)
    arguments.shared_prompt_attention = shape.get("kernel")
    trainer = Contender(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=pairs,
        processing_class=word_tokenizer(shape["vocabulary"]),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if shape["lora"] else None,
        callbacks=[Clock()],
    )
    return trainer, asked, tokens, ticks


def configuration(name: str, shape: dict, steps: int, device, asks_beforehand: bool):
    """TRL's settings of a contender; what is not named is as `trl dpo` has it."""
    from trl import DPOConfig

    from machinery.hardware.precision import prefers_bf16

    return DPOConfig(
        output_dir="/tmp/speed",
        use_cpu=device == "cpu",
        bf16=prefers_bf16(device),  # as TRL has it, but where it crawls
        gradient_checkpointing=name == "stock",
        precompute_ref_log_probs=asks_beforehand,
        per_device_train_batch_size=shape["batch"],
        max_length=16_384,
        max_steps=steps,
        train_sampling_strategy="group_by_length" if name == "ours" else "sequential",
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def word_tokenizer(vocabulary: int):
    """A tokenizer for which a word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0, "<unk>": 1} | {f"w{n}": n for n in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def made_up_pairs(shape: dict, count: int, vocabulary: int):
    """Pairs whose lengths scatter as real ones do: log-normal, a standard deviation of half the mean."""
    from datasets import Dataset

    rng = random.Random(0)
    spread = math.sqrt(math.log(1 + shape.get("spread", 0.5) ** 2))

    def text(mean: float) -> str:
        length = max(2, round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)))
        return " ".join(f"w{rng.randrange(2, vocabulary)}" for _ in range(length))

    rows = [
        {
            "prompt": text(shape["prompt"]),
            "chosen": " " + text(shape["completion"]),
            "rejected": " " + text(shape["completion"]),
        }
        for _ in range(count)
    ]
    return Dataset.from_list(rows)


def useful_flops(policy, lengths: list[list[int]], is_lora: bool, prompts: int = 1) -> float:
    """Operations that a pair takes at least, on average: one forward of the reference, and forward and backward of the policy.

    prompts: how often a pair's prompt is computed.

    Two a parameter and token of the blocks, two a parameter of the head and completion token, four a layer, dimension
    and pair of positions that attend to each other. A backward pass is two forwards; with an adapter one, since the
    frozen weights need no gradient.
    """
    config = policy.config
    blocks = sum(p.numel() for name, p in policy.named_parameters() if "embed" not in name and "lora" not in name)
    width = config.num_attention_heads * config.head_dim
    total = 0.0
    for prompt, chosen, rejected in lengths:
        seen = prompts * prompt**2 / 2 + sum(answer * prompt + answer**2 / 2 for answer in (chosen, rejected))
        forward = 2 * blocks * (prompts * prompt + chosen + rejected) + 4 * config.num_hidden_layers * width * seen
        forward += 2 * config.hidden_size * config.vocab_size * (chosen + rejected)
        total += forward * (3 if is_lora else 4)
    return total / len(lengths)


# --- The machine -----------------------------------------------------------------------------------------------------


def matrix_peaks() -> dict[str, float]:
    """Operations a second of a large matrix product, the best of several, by precision.

    bf16 only where trainings use it: a CPU without units for it emulates it, and would stand still for minutes.
    """
    import torch

    from machinery.hardware.precision import prefers_bf16

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    size = 8192 if device.type != "cpu" else 2048
    peaks, precisions = {}, {"fp32": torch.float32}
    if prefers_bf16(device):
        precisions["bf16"] = torch.bfloat16
    for name, dtype in precisions.items():
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = 0.0
        for _ in range(8):
            started = time.perf_counter()
            (a @ b)[0, 0].item()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
        peaks[name] = best
    return peaks


def machine() -> str:
    """What it was measured on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or 'a CPU'}"


def plot(report: dict, path: Path) -> None:
    """Bars of pairs a second, a group a case, with the range over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(report["cases"])
    figure, axes = plt.subplots(figsize=(2.5 + 1.6 * len(cases), 4))
    for place, name in enumerate(("stock", "tuned", "ours")):
        for number, case in enumerate(cases):
            speeds = [round_["pairs_per_second"] for round_ in report["cases"][case].get(name, [])]
            if speeds:
                middle = statistics.median(speeds)
                bars = [[middle - min(speeds)], [max(speeds) - middle]]
                x = number + 0.27 * (place - 1)
                axes.bar(
                    x,
                    middle,
                    0.25,
                    yerr=bars,
                    color=("#000000", "#E69F00", "#0072B2")[place],  # Okabe and Ito's
                    hatch=("", "//", "..")[place],
                    edgecolor="white",
                    label=LABELS[name].replace("`", "") if number == 0 else None,
                )
                axes.text(x, max(speeds), f"{middle:.2f}", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(cases)), [CASES[case]["label"] for case in cases])
    axes.set_ylabel("pairs a second")
    axes.set_title(f"Training on {report['machine']}", fontsize=9)
    axes.legend()
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
