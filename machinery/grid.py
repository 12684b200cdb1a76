"""Run a script over many settings and seeds, keep what is finished, print a Markdown table. For the benchmarks here.

    rows = run_grid({"beta_1": ("basic_dpo_training.py", ["--beta", "1"])}, seeds=[0, 1, 2], folder=Path("runs/x"))
    rows["beta_1"][0]["kl"]                             # the metrics.json of the first seed
    print(markdown({"beta 1": rows["beta_1"]}, {"kl": "KL"}))

Each run is a subprocess on one core, as many at a time as there are cores. Finished runs are not repeated.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent


def run_grid(cases: dict[str, tuple[str, list[str]]], seeds: list[int], folder: Path) -> dict[str, list[dict]]:
    """The metrics of every case and seed. cases: {name: (script, its flags)}; "{seed}" in a flag is the seed."""
    jobs = [(case, seed) for seed in seeds for case in cases]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        runs = pool.map(lambda job: run_once(*cases[job[0]], job[1], folder / f"{job[0]}-seed{job[1]}"), jobs)
        metrics = list(tqdm(runs, total=len(jobs), desc="runs"))
    results = {}
    for (case, _), outcome in zip(jobs, metrics, strict=True):
        results.setdefault(case, []).append(outcome)
    return results


def run_once(script: str, flags: list[str], seed: int, folder: Path) -> dict:
    """The metrics of one run, made now if it is not there yet."""
    if not (folder / "metrics.json").exists():
        command = [sys.executable, str(PROJECT / script), "--output_dir", str(folder), "--overwrite_output_dir"]
        command += ["--seed", str(seed), "--eval_strategy", "no", "--save_strategy", "no"]
        command += [flag.format(seed=seed) for flag in flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return json.loads((folder / "metrics.json").read_text())


def markdown(results: dict[str, list[dict]], columns: dict[str, str], first: str = "case") -> str:
    """A table with a row a case; each cell is the mean over the seeds, and in brackets the lowest and the highest."""
    lines = [f"| {first} | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for label, outcomes in results.items():
        cells = [spread([outcome[column] for outcome in outcomes]) for column in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean (lowest to highest)."""
    digits = 0 if max(map(abs, values)) >= 100 else 2
    mean = sum(values) / len(values)
    if min(values) == max(values):
        return f"{mean:,.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
