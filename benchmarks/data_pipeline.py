"""How fast preference data is read, converted and examined, and in how much memory, over the number of pairs.

    python benchmarks/data_pipeline.py                       # 10,000, 100,000 and 1,000,000 pairs of about 1 KB
    python benchmarks/data_pipeline.py --pairs 10000 --tokenizer demo/model --num_proc 2

Each size runs in a process of its own, on rows made from a seed: a question, two answers of different words, one row in
a hundred a duplicate. It prints pairs a second and the peak of resident memory above that after the imports, and writes
both to benchmarks/results/.
"""

import argparse
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
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokenizer", help="also bring the pairs into this model's form and examine them in tokens")
    parser.add_argument("--num_proc", type=int, help="processes for that")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.tokenizer, options.num_proc)))
        return
    rows = []
    print(f"{'pairs':>10}  {'MB':>6}  {'seconds':>8}  {'pairs/s':>8}  {'peak MiB above start':>20}")
    for count in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.jsonl"
            write_rows(path, count)
            extra = [f"--tokenizer={options.tokenizer}"] if options.tokenizer else []
            extra += [f"--num_proc={options.num_proc}"] if options.num_proc else []
            command = [sys.executable, __file__, "--one", str(path), *extra]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
            result = {"pairs": count, "bytes": path.stat().st_size} | json.loads(done.stdout.splitlines()[-1])
        rows.append(result)
        print(
            f"{count:>10,}  {result['bytes'] / 1e6:>6.0f}  {result['seconds']:>8.1f}  "
            f"{count / result['seconds']:>8,.0f}  {result['peak_mib_above_start']:>20,.0f}"
        )
    results = PROJECT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    how = {"tokenizer": options.tokenizer, "num_proc": options.num_proc}
    name = "data_pipeline_tokens.json" if options.tokenizer else "data_pipeline.json"
    (results / name).write_text(json.dumps({**how, "rows": rows}, indent=2) + "\n")


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


def measure(path: Path, tokenizer_name: str | None, num_proc: int | None) -> dict:
    """Load one file as the scripts do. Returns seconds and memory."""
    sys.path.insert(0, str(PROJECT))
    from dpo_utils import load_preferences, load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name) if tokenizer_name else None
    start_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pairs, _, reports = load_preferences(str(path), tokenizer, num_proc=num_proc, max_length=1024)
    seconds = time.perf_counter() - start
    report = reports["train"]
    assert report["rows_read"] == report["rows_used"] + report["rows_dropped"]
    assert len(pairs) == report["pairs"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mib_above_start": (peak - start_memory) / 1024, "pairs_kept": len(pairs)}


if __name__ == "__main__":
    main()
