"""How long until something happens: the help text, the libraries, the first step; beside `trl dpo`.

    python benchmarks/startup.py               # three rounds, about two minutes

Each figure is the wall time of a process of its own, from its start to its end, the contenders in turn. The basic
script asks the reference about all pairs before the first step, `trl dpo` does so step by step; with
--no_precompute_ref_log_probs they do the same. Prints the medians and their range, and writes
benchmarks/results/startup.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "benchmarks" / "results"
ONE_STEP = "--max_steps 1 --eval_strategy no --save_strategy no --report_to none --use_cpu --bf16 false".split()


def main() -> None:
    """Time every command in turn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trl = Path(sys.executable).with_name("trl")
    script = [sys.executable, "basic_dpo_training.py"]
    demo = ["--model_name_or_path", "demo/model", "--dataset_name", "demo"]
    commands = {
        "python -c 'import torch, trl, transformers, datasets, peft'": [
            sys.executable, "-c", "import torch, transformers, datasets, peft; from trl import DPOTrainer",
        ],
        "trl dpo --help": [trl, "dpo", "--help"],
        "basic_dpo_training.py --help": [*script, "--help"],
        "trl dpo, one step": [trl, "dpo", *demo, *ONE_STEP],
        "basic_dpo_training.py --no_precompute_ref_log_probs, one step": [
            *script, *ONE_STEP, "--num_eval_prompts", "1", "--no_precompute_ref_log_probs",
        ],
        "basic_dpo_training.py, one step": [*script, *ONE_STEP, "--num_eval_prompts", "1"],
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for name in tqdm([name for _ in range(options.rounds) for name in commands], desc="processes"):
        with tempfile.TemporaryDirectory() as folder:
            extra = ["--output_dir", folder] if name.endswith("one step") else []
            extra += ["--reference_cache", f"{folder}/cache"] if extra and name.startswith("basic") else []
            started = time.perf_counter()
            done = subprocess.run([*commands[name], *extra], cwd=PROJECT, capture_output=True, text=True)
            seconds[name].append(time.perf_counter() - started)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")
    for name, values in seconds.items():
        print(f"  {name:<62}{statistics.median(values):>6.1f} s   ({min(values):.1f} to {max(values):.1f})")
    OUT.mkdir(exist_ok=True)
    (OUT / "startup.json").write_text(json.dumps(seconds, indent=1) + "\n")


if __name__ == "__main__":
    main()
