"""How fast preference data is read, converted and examined, and in how much memory, over the number of pairs.

    python benchmarks/data_pipeline.py                       # 10,000, 100,000 and 1,000,000 pairs of about 1 KB
    python benchmarks/data_pipeline.py --pairs 10000 --tokenizer demo/model --num_proc 1 2
    python benchmarks/data_pipeline.py --show                # what was measured then, once more

Each size runs in a process of its own, on rows made from a seed: a question, two answers of different words, one row in
a hundred a duplicate. It prints pairs a second and the peak of resident memory above that after the imports, and writes
both to benchmarks/results/, data_pipeline_tokens.json where a tokenizer is given and else data_pipeline.json.
"""

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "s", "ll", "")]


def main() -> None:
    """Measure every size, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokenizer", help="also bring the pairs into this model's form and examine them in tokens")
    parser.add_argument("--num_proc", type=int, nargs="+", default=[1], help="so many processes for that")
    parser.add_argument("--show", action="store_true", help="measure nothing, show what was measured")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.tokenizer, options.num_proc[0])))
        return
    file = PROJECT / "benchmarks" / "results" / f"data_pipeline{'_tokens' * bool(options.tokenizer)}.json"
    if not options.show:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"tokenizer": options.tokenizer, "rows": measure_all(options)}, indent=2) + "\n")
    print("| pairs | processes | seconds | pairs/s | peak memory above the start |\n|---|---|---|---|---|")
    for row in json.loads(file.read_text())["rows"]:
        print(
            f"| {row['pairs']:,} | {row['num_proc']} | {row['seconds']:.1f} | {row['pairs'] / row['seconds']:,.0f} "
            f"| {row['peak_mib_above_start']:,.0f} MiB |"
        )


def measure_all(options: argparse.Namespace) -> list[dict]:
    """Every size with every number of processes, each in a process of its own."""
    rows = []
    for count, num_proc in itertools.product(options.pairs, options.num_proc):
        with tempfile.TemporaryDirectory() as folder:  # a path of its own, so that nothing kept on disk is found
            path = Path(folder) / "pairs.jsonl"
            write_rows(path, count)
            command = [sys.executable, __file__, "--one", str(path), "--num_proc", str(num_proc)]
            command += ["--tokenizer", options.tokenizer] if options.tokenizer else []
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
            facts = {"pairs": count, "num_proc": num_proc, "bytes": path.stat().st_size}
            rows.append(facts | json.loads(done.stdout.splitlines()[-1]))
    return rows


def write_rows(path: Path, count: int) -> None:
    """Rows of about 1 KB with question, response_j and response_k, so that they have to be converted."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        line = ""
        for number in tqdm(range(count), f"writing {count:,} rows", leave=False):
            if not line or number % 100:
                question, good, bad = (" ".join(rng.choices(WORDS, k=k)) for k in (90, 80, 80))
                row = {"question": f"{question} {number}?", "response_j": good, "response_k": bad}
                line = json.dumps(row) + "\n"
            file.write(line)


def measure(path: Path, tokenizer_name: str | None, num_proc: int) -> dict:
    """Load one file as the scripts do. Returns seconds and memory."""
    sys.path.insert(0, str(PROJECT))
    from dpo_utils import load_preferences, load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name) if tokenizer_name else None
    start_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pairs, _, reports = load_preferences(
        str(path), tokenizer, num_proc=num_proc if num_proc > 1 else None, max_length=1024
    )
    seconds = time.perf_counter() - start
    report = reports["train"]
    assert report["rows_read"] == report["rows_used"] + report["rows_dropped"]
    assert len(pairs) == report["pairs"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib_above_start": (peak - start_memory) / 1024, "pairs_kept": len(pairs)}


if __name__ == "__main__":
    main()
