"""What is this GPU worth with this project, and with TRL? Equality, speed, memory, in calls of under nine minutes.

    python benchmarks/gpu.py            # measures what is not yet in the results, the most telling first; call it again
    python benchmarks/gpu.py --show     # what has been measured so far
    python benchmarks/gpu.py --tiny     # small sizes, for a CPU: does it run at all?

First one batch through TRL's trainer and this project's, in float32 and in bfloat16, for a dense model, one with windows
and soft caps, and one of experts. Then models in the shapes of Qwen2.5 0.5B and 1.5B, made on the spot with random
weights, trained on prompts of 512, 2,048 and 8,192 tokens and answers of 64 and 512, whole and with an adapter, by

    stock    TRL as `trl dpo` sets it: gradient checkpointing, the reference asked at every step
    tuned    TRL tuned by hand: FlashAttention where it is installed, else SDPA, no checkpointing where that fits, the
             reference asked beforehand
    ours     this project's trainer, with what it chooses for the device, the reference asked beforehand
    kernel   the same with --shared_prompt_attention flex

Each cell is a process of its own. Its pairs a second count the time to ask the reference in; operations a second are
those of the tokens that were computed (a prompt twice for TRL), what is computed again not counted, as a share of what a
large matrix product reaches on this machine. The memory estimate stands beside what was used. Writes
benchmarks/results/gpu.json and gpu.png; a cell that ran out of memory or of time says so, and is not tried again.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
from benchmarks import families, speed

RESULTS = PROJECT / "benchmarks" / "results"
CONTENDERS = ("ours", "tuned", "stock", "kernel")
EQUAL = ("qwen3", "gemma2", "mixtral")
TOKENS = 16_384  # a step, as TRL counts them: a prompt twice
STEPS, UNTIMED = 4, 2
MINUTES_A_CELL = 4
# prompt and answer, the most telling first: where sharing should gain most, where nearly nothing, and what lies between
SHAPES = ((2048, 512), (8192, 64), (512, 512), (2048, 64), (8192, 512), (512, 64))


def main() -> None:
    """Measure until the time is up, then show all there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="start no cell that may not end by then")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json", metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    if not options.show:
        report = go_on(report, options)
    show(report)
    plot(report, options.out.with_suffix(".png"))


def all_cells(tiny: bool) -> list[dict]:
    """What there is to measure, in order."""
    if tiny:
        shapes = [dict(size="small", vocabulary=300, prompt=24, answer=8, batch=2, way=way) for way in ("full", "lora")]
        equal = [dict(family="qwen3", precision="fp32")]
    else:
        equal = [dict(family=family, precision=precision) for family in EQUAL for precision in ("fp32", "bf16")]
        shapes = [
            dict(size=size, vocabulary=151_936, prompt=prompt, answer=answer, way=way,
                 batch=max(1, TOKENS // (2 * (prompt + answer))))
            for size, way in (("1.5B", "full"), ("0.5B", "full"), ("1.5B", "lora"), ("0.5B", "lora"))
            for prompt, answer in SHAPES
        ]  # fmt: skip
    names = CONTENDERS[:3] if tiny else CONTENDERS
    return [*equal, *(shape | dict(contender=name) for shape in shapes for name in names)]


def go_on(report: dict, options) -> dict:
    """Measure cells that the report has not, until the minutes are over; the report is written after each."""
    until = time.monotonic() + 60 * options.minutes
    here = speed.machine()
    if report and report["machine"] != here:
        raise SystemExit(f"{options.out} is of another machine ({report['machine']}); name another file with --out.")
    report = report or {"machine": here, "peaks": speed.matrix_peaks(), "cells": {}}
    for cell in all_cells(options.tiny):
        key = json.dumps(cell, sort_keys=True)
        left = until - time.monotonic()
        if key in report["cells"]:
            continue
        if left < min(60 * MINUTES_A_CELL, 60 * options.minutes / 2):
            print("There is more to measure: call it again.\n")
            break
        report["cells"][key] = run(key, min(left, 60 * MINUTES_A_CELL))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def run(key: str, seconds: float) -> dict:
    """One cell in a process of its own; what it measured, or why it did not."""
    command = [sys.executable, __file__, "--one", key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {seconds:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        is_memory = "out of memory" in done.stderr.lower() or done.returncode == -9
        return {"failed": "out of memory" if is_memory else last[0][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(cell: dict) -> dict:
    """One cell, in this process."""
    return equality(**cell) if "family" in cell else training(**cell)


def equality(family: str, precision: str) -> dict:
    """How far loss and gradient of one batch are from TRL's, and in bf16 how far TRL's own are from those in float32."""
    import copy

    import torch
    from trl import DPOTrainer

    from machinery.training.shared_prompt import SharedPromptDPOTrainer

    families.quiet()
    model = families.tiny_model(families.tiny_config(family))
    coefficient = 0.01 if hasattr(model.config, "output_router_logits") else None

    def step(trainer_class, is_bf16: bool) -> dict:
        settings = dict(bf16=is_bf16, use_cpu=not torch.accelerator.is_available())
        return families.one_step(trainer_class, copy.deepcopy(model), coefficient, lora=False, **settings)

    stock = step(DPOTrainer, precision == "bf16")
    ours = step(SharedPromptDPOTrainer, precision == "bf16")
    result = {"rows": ours["rows"], "why": ours["why"]} | apart(stock, ours)
    return result | ({"TRL's own rounding": apart(step(DPOTrainer, False), stock)} if precision == "bf16" else {})


def apart(one: dict, other: dict) -> dict:
    """The difference of two losses, and the largest of their gradients as a share of the largest entry."""
    largest = max(gradient.abs().max().item() for gradient in one["gradients"])
    gaps = [(a - b).abs().max().item() for a, b in zip(one["gradients"], other["gradients"], strict=True)]
    return {"loss": abs(one["loss"] - other["loss"]), "gradient": max(gaps) / largest}


def training(size: str, vocabulary: int, prompt: int, answer: int, batch: int, way: str, contender: str) -> dict:
    """A few steps of one contender: speed, operations, memory, and what it chose."""
    import torch

    from machinery.common.errors import is_out_of_memory
    from machinery.hardware import estimate, memory

    name = "ours" if contender == "kernel" else contender
    shape = dict(size=size, vocabulary=vocabulary, prompt=prompt, completion=answer, batch=batch, rows=0)
    shape |= dict(lora=way == "lora", spread=0, kernel="flex" if contender == "kernel" else None)
    if contender == "tuned" and torch.cuda.is_available() and importlib.util.find_spec("flash_attn"):
        shape["attention"] = "flash_attention_2"

    def train(checkpointing: bool) -> dict:
        trainer, asked, tokens, ticks = speed.contender(name, shape, STEPS + UNTIMED)
        foreseen = {}
        trainer.args.gradient_checkpointing = checkpointing or name == "stock"
        if name == "ours":
            trainer.args.checkpointing_if_needed = True
            estimate.choose_checkpointing(trainer)
            foreseen = estimate.estimate_memory(trainer)
        memory.reset_peak()
        trainer.train()
        peak = memory.peak_since_reset() - (0 if memory.uses_gpu() else memory.START)
        timed = sum(tokens[UNTIMED:])
        lengths = speed.part_lengths(trainer.train_dataset)
        pairs = timed / (sum(map(sum, lengths)) / len(lengths))
        seconds = ticks[-1] - ticks[UNTIMED - 1] + sum(asked) * timed / sum(tokens)
        refusal = getattr(trainer, "shared_prompt_refusal", "as in TRL")
        flops = speed.useful_flops(trainer.model, lengths, way == "lora", prompts=1 if refusal is None else 2)
        return {
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": timed / seconds,
            "flops_per_second": pairs * flops / seconds,
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "peak": peak,
            "estimated": sum(foreseen.values()),
            "checkpointing": trainer.args.gradient_checkpointing,
            "two rows": refusal,
            "kernel": getattr(trainer, "shared_prompt_kernel", None),
            "losses": [logs["loss"] for logs in trainer.state.log_history if "loss" in logs],
        }

    try:
        return train(checkpointing=False)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or name == "stock":
            raise
    torch.cuda.empty_cache()
    return train(checkpointing=True)


def show(report: dict) -> None:
    """Print what has been measured: equality, then a line a shape and contender."""
    cells = [(SimpleNamespace(**json.loads(key)), result) for key, result in report.get("cells", {}).items()]
    print("| family | precision | loss apart | gradient apart | TRL's own rounding |\n|---|---|---|---|---|")
    for cell, result in cells:
        if hasattr(cell, "family"):
            own = result.get("TRL's own rounding", {})
            numbers = [f"{values[part]:.0e}" if part in values else result.get("failed", "")
                       for values, part in ((result, "loss"), (result, "gradient"), (own, "gradient"))]  # fmt: skip
            print(f"| {cell.family} | {cell.precision} | {' | '.join(numbers)} |")
    print("\n| model | tokens | | pairs/s | tokens/s | times stock | times tuned | of the peak | memory | estimated |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    speeds = {(*shape_of(cell), cell.contender): result for cell, result in cells if hasattr(cell, "contender")}
    for (*shape, contender), result in speeds.items():
        size, way, prompt, answer = shape
        line = f"| {size}, {way} | {prompt:,} + {answer:,} | {contender} | "
        if "failed" in result:
            print(line + f"{result['failed']} | | | | | | |")
            continue
        ratios = [ratio(result, speeds.get((*shape, other), {})) for other in ("stock", "tuned")]
        share = result["flops_per_second"] / report["peaks"].get(result["precision"], float("inf"))
        foreseen = f"{result['estimated'] / 1e9:.1f} GB" if result["estimated"] else ""
        speed_cells = f"{result['pairs_per_second']:.2f} | {result['tokens_per_second']:,.0f} | {' | '.join(ratios)}"
        print(f"{line}{speed_cells} | {share:.0%} | {result['peak'] / 1e9:.1f} GB | {foreseen} |")
    print(f"\nOn {report.get('machine', 'no machine yet')}.")


def shape_of(cell) -> tuple:
    """Model, way of training, prompt and answer of a cell."""
    return cell.size, cell.way, cell.prompt, cell.answer


def ratio(result: dict, other: dict) -> str:
    """How many times as fast as another contender of the same shape."""
    return f"{result['pairs_per_second'] / other['pairs_per_second']:.2f}" if "pairs_per_second" in other else ""


def plot(report: dict, path: Path) -> None:
    """Bars of speed against TRL tuned by hand, shape by shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    speeds: dict[tuple, dict[str, float]] = {}
    for key, result in report.get("cells", {}).items():
        cell = SimpleNamespace(**json.loads(key))
        if "pairs_per_second" in result:
            speeds.setdefault(shape_of(cell), {})[cell.contender] = result["pairs_per_second"]
    shapes = {shape: by_name for shape, by_name in speeds.items() if "tuned" in by_name}
    if not shapes:
        return
    figure, axes = plt.subplots(figsize=(3 + 0.9 * len(shapes), 4.2))
    for place, (name, hatch) in enumerate((("stock", "//"), ("ours", ""), ("kernel", ".."))):
        heights = [by_name.get(name, 0) / by_name["tuned"] for by_name in shapes.values()]
        axes.bar([n + 0.27 * (place - 1) for n in range(len(shapes))], heights, 0.25, hatch=hatch, label=name)
    axes.axhline(1, color="black", linewidth=0.8, label="TRL, tuned by hand")
    labels = [f"{size} {way}\n{prompt}+{answer}" for size, way, prompt, answer in shapes]
    axes.set_xticks(range(len(shapes)), labels, fontsize=7)
    axes.set_ylabel("times as fast as TRL tuned by hand")
    axes.set_title(f"Training on {report['machine']}", fontsize=9)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
