"""Run a script over many settings and seeds, keep what is finished, print a Markdown table.

    cases = {"beta_1": ("basic_dpo_training.py", ["--beta", "1"])}
    results = run_grid(cases, seeds=[0, 1, 2], folder=Path("runs/x"))
    results["beta_1"][0]["kl"]                             # the metrics.json of the first seed
    print(markdown({"beta 1": results["beta_1"]}, {"kl": "KL"}))

The script takes --seed and --output_dir and leaves a metrics.json. Each run is a process of its own: as many at a time
as there are cores, one core each; on a GPU one after the other. A run that is finished, and was made by the same
command, is not repeated. Of each run the metrics and the replies stay, the weights do not.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
import trl
from tqdm import tqdm

from ..common.errors import UserError
from ..common.kept_files import checksum, complete_file, going_on_without, is_as_signed, signed
from ..runs.ownership import OWN, hold, release

logger = logging.getLogger("dpo")

PROJECT = Path(__file__).resolve().parents[2]
NOTE = "made_by.json"
RUNS_AT_A_TIME = 1 if torch.accelerator.is_available() else min(8, os.cpu_count())


def run_grid(
    cases: dict[str, tuple[str, list[str]]], seeds: list[int], folder: Path, stamps: dict[str, str] | None = None
) -> dict[str, list[dict]]:
    """The metrics of every case, one dictionary a seed.

    cases: {name: (script, its flags)}; "{seed}" in a flag is the seed. stamps: for a case, whatever else its result
    depends on: with another stamp it is run again. Raises UserError for a run that fails.
    """

    def do(case: str, seed: int) -> dict:
        return run_once(*cases[case], seed, folder / f"{case}-seed{seed}", (stamps or {}).get(case, ""))

    outcomes = dict(as_they_end(do, [(case, seed) for seed in seeds for case in cases]))
    return {case: [outcomes[case, seed] for seed in seeds] for case in cases}


def as_they_end(do: Callable, jobs: list[tuple]) -> Iterator[tuple]:
    """Each job with what do(*job) returns, as many at a time as there are cores. One that fails ends the others."""
    with ThreadPoolExecutor(max_workers=RUNS_AT_A_TIME) as pool, tqdm(total=len(jobs), desc="runs") as bar:
        futures = {pool.submit(do, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                outcome = future.result()
                bar.update()
                yield futures[future], outcome
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(_children):  # they end their step, and the threads that wait for them end with them
                child.terminate()
            raise


@contextmanager
def claimed(folder: Path):
    """Keep other comparisons out of a folder for a while. Raises UserError where one is in it, or what is none's."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / OWN).is_dir():
        raise UserError(f"--output_dir {folder} holds what no comparison has left: name another folder.")
    try:
        hold(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"--output_dir: {error}.") from error
    try:
        yield
    finally:
        release(folder)


def run_once(script: str, flags: list[str], seed: int, folder: Path, stamp: str) -> dict:
    """The metrics of one run, made now if it is not there yet."""
    words = ["--seed", str(seed), "--eval_strategy", "no", "--save_strategy", "no"]
    words += [flag.replace("{seed}", str(seed)) for flag in flags]
    made_by = {"script": Path(script).name, "words": words, "stamp": stamp}
    made_by["versions"] = {library.__name__: library.__version__ for library in (torch, transformers, trl)}
    if (metrics := kept_metrics(folder, made_by)) is not None:
        return metrics
    (folder / "metrics.json").unlink(missing_ok=True)  # damaged, or of another command: what is there is replaced
    command = [sys.executable, str(PROJECT / script), "--output_dir", str(folder), "--overwrite_output_dir", *words]
    environment = alone() | ({"OMP_NUM_THREADS": "1"} if RUNS_AT_A_TIME > 1 else {})
    code, errors = run_child(command, environment, is_quiet=True)
    if code:
        last = errors.strip().splitlines()[-1:] or ["it printed nothing"]
        failure = f"{' '.join(command[1:])} ended with {code}: {last[0]}"
        raise UserError(f"A run failed, and those that are finished are kept: {failure}")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    content = (folder / "metrics.json").read_bytes()
    with going_on_without("Notes on finished runs", folder), complete_file(folder / NOTE) as file:
        json.dump(signed(made_by | {"metrics": checksum(content)}), file)
    return json.loads(content)


def kept_metrics(folder: Path, made_by: dict) -> dict | None:
    """The metrics of a run that the same command has finished in this folder; None, which is said, where they are damaged."""
    try:
        noted = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        content = (folder / "metrics.json").read_bytes()
        if is_as_signed(noted) and noted["metrics"] == checksum(content):
            return json.loads(content) if noted == signed(made_by | {"metrics": noted["metrics"]}) else None
    except FileNotFoundError:  # not finished
        return None
    except (OSError, ValueError, LookupError, AttributeError):
        pass
    logger.warning(f"What was kept of a run in {folder} is not what was written. The run is done anew.")
    return None


_children: set[subprocess.Popen] = set()


def run_child(command: list[str], environment: dict[str, str], is_quiet: bool = False) -> tuple[int, str]:
    """Run a script in a process of its own. Returns its exit code and, where it is quiet, what it said of errors.

    It hears of Ctrl-C from here alone: once, like of any other signal, and it is waited for while it ends by itself.
    """
    outputs = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) if is_quiet else {}
    how = dict(env=environment, text=True, errors="replace", start_new_session=True)
    with subprocess.Popen(command, **outputs, **how) as child:
        _children.add(child)
        try:
            _, errors = child.communicate()
        except BaseException:
            child.terminate()
            raise  # leaving waits
        finally:
            _children.discard(child)
    return child.returncode, errors or ""


def alone() -> dict[str, str]:
    """The environment without what a launcher tells its processes of each other: a child would wait for them."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_", "FSDP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(launchers)}


def markdown(results: dict[str, list[dict]], columns: dict[str, str], first: str = "case") -> str:
    """A table with a row a case; each cell is the mean over the seeds, and in brackets the lowest and the highest."""
    lines = [f"| {first} | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for label, outcomes in results.items():
        cells = [spread([outcome.get(column) for outcome in outcomes]) for column in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean (lowest to highest), of those that are known."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    digits = 0 if max(map(abs, values)) >= 100 else 2
    mean = sum(values) / len(values)
    if min(values) == max(values):
        return f"{mean:,.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def without(words: list[str], flags: set[str]) -> list[str]:
    """A command line less some flags and what belongs to them."""
    return [word for word, flag in _with_flags(words) if flag not in flags]


def only(words: list[str], flags: set[str]) -> list[str]:
    """Of a command line some flags and what belongs to them."""
    return [word for word, flag in _with_flags(words) if flag in flags]


def recipe_text(words: list[str]) -> str:
    """What stands in the recipe that a command line names; nothing without one."""
    named = [word.removeprefix("--config=") for word in only(words, {"--config"}) if word != "--config"]
    return "".join(Path(name).read_text(encoding="utf-8-sig") for name in named)


def _with_flags(words: list[str]) -> Iterator[tuple[str, str]]:
    """Each word with the flag it is or belongs to, written with underscores: the parser takes hyphens, too."""
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = "--" + word[2:].split("=")[0].replace("-", "_")
        yield word, flag
