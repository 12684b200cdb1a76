"""Does the memory estimate hold, and what does an adapter save? A model of 100 million parameters, made on the spot.

    python benchmarks/lora_memory.py          # four trainings of seven steps: about five minutes on two cores

Each training runs in a process of its own: all weights with a second model as the reference, and an adapter of rank 16
on all linear layers, whose reference is the base; both with freed memory going back to the system, and with freed memory
that stays. It prints the estimate made before the training beside what was measured after it, the share of full
training's weights, gradients, optimizer and reference that the adapter takes, and what freed memory that stays costs and
saves.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAIRS, BATCH, STEPS = 64, 8, 7


def main() -> None:
    """Train both ways and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=["full", "lora"], help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(PROJECT))
    if options.one:
        print(json.dumps(train(options.one, options.keep)))
        return
    from machinery.hardware.estimate import PARTS, memory_table

    static, results, effects = {}, {}, []
    for kind in ("full", "lora"):
        estimate, measured, seconds = results[kind] = in_a_process(kind)
        _, with_kept, seconds_kept = results[f"{kind}, freed memory stays"] = in_a_process(kind, "--keep")
        static[kind] = sum(measured[part] for part in PARTS[:4])
        error = sum(estimate[part] for part in PARTS) / measured["total"] - 1
        print(f"{kind}: the estimate is off by {error:+.0%}\n{memory_table(estimate, measured)}\n")
        effects.append(f"{kind} {seconds_kept / seconds:.2f} and {with_kept['total'] / measured['total']:.2f}")
    print(f"Where freed memory stays, a step's time and the peak are, times as here: {'; '.join(effects)}")
    share = static["lora"] / static["full"]
    print(f"Weights, gradients, optimizer and reference of the adapter: {share:.0%} of full training's")
    (PROJECT / "benchmarks" / "results").mkdir(exist_ok=True)
    path = PROJECT / "benchmarks" / "results" / "lora_memory.json"
    path.write_text(json.dumps({"share": share, **results}, indent=2) + "\n")


def in_a_process(kind: str, *flags: str) -> list:
    """The results of `train` in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, *flags]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def train(kind: str, keep: bool) -> tuple[dict, dict, float]:
    """A short training. Returns the estimate and what was measured, in bytes by part, and the fastest step's seconds."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
    from trl import DPOConfig

    from dpo_utils import load_tokenizer
    from machinery.hardware import memory
    from machinery.hardware.estimate import estimate_memory, measure_memory
    from machinery.training.shared_prompt import SharedPromptDPOTrainer

    rows = [json.loads(line) for line in (PROJECT / "demo" / "train.jsonl").read_text().splitlines()[:PAIRS]]
    pairs = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows])
    torch.manual_seed(0)
    shape = dict(hidden_size=640, intermediate_size=1728, num_hidden_layers=14, num_attention_heads=10)
    config = LlamaConfig(vocab_size=32_000, tie_word_embeddings=False, **shape)
    policy, reference = LlamaForCausalLM(config), None
    memory.keep_freed_memory(keep)
    if kind == "full":
        reference = LlamaForCausalLM(config)
        reference.load_state_dict(policy.state_dict())
    trainer = SharedPromptDPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir="/tmp/lora_memory",
            use_cpu=not torch.accelerator.is_available(),
            bf16=torch.accelerator.is_available(),
            gradient_checkpointing=False,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        processing_class=load_tokenizer(str(PROJECT / "demo" / "model")),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if kind == "lora" else None,
    )
    estimate = estimate_memory(trainer)
    ticks = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ticks.append(time.perf_counter())

    trainer.add_callback(Clock)
    memory.reset_peak()
    trainer.train()
    seconds = min(later - earlier for earlier, later in pairwise(ticks))  # other work on the machine only adds
    return estimate, measure_memory(trainer), seconds


if __name__ == "__main__":
    main()
