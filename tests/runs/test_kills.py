"""SIGKILL at random moments: the rerun goes on from the newest complete checkpoint, and ends with the same bits.

    python -m pytest tests/runs/test_kills.py -m thorough   # 20 kills
    python -m pytest tests/runs/test_kills.py -m slow       # 200 kills, and 100 of two runs in one folder

What is complete is judged here anew, from the files, not by the code under test.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from conftest import PROJECT
from fork_server import ForkServer

from machinery.runs.ownership import hold, release

SAVE_STEPS, PAIRS, STEPS = 3, 48, 20
SHORT = f"--max_steps {STEPS} --save_steps {SAVE_STEPS} --num_train_epochs 2 --num_eval_prompts 1 --max_new_tokens 2 "
SHORT += "--eval_strategy no --logging_steps 1"  # 48 pairs, 4 a step: the second epoch begins after step 12
CASES = {  # name: (script, flags, processes)
    "full": ("basic_dpo_training", "--per_device_train_batch_size 4", 1),
    "lora": ("lora_dpo_training", "--per_device_train_batch_size 4", 1),
    "stock": (
        "basic_dpo_training",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --train_sampling_strategy random "
        "--no_shared_prompt --precompute_ref_log_probs --save_total_limit 2",
        1,
    ),
    "loss": ("custom_loss_dpo", "--per_device_train_batch_size 4 --beside none --save_total_limit 1", 1),
    "data": ("custom_dataset_dpo", "--per_device_train_batch_size 4", 1),
    "full, two processes": ("basic_dpo_training", "--per_device_train_batch_size 2", 2),
    "lora, two processes": ("lora_dpo_training", "--per_device_train_batch_size 2", 2),
}


class Runs:
    """Starts scripts through the fork server, and remembers what an uninterrupted run of each case ends with."""

    def __init__(self, folder: Path):
        self.folder = folder
        lines = (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "pairs.jsonl").write_text("".join(lines[:PAIRS]), encoding="utf-8")
        self.server = ForkServer()
        self.whole: dict[str, tuple[bytes, float]] = {}

    def start(self, case: str, out: Path, *more, file_size: int = 0) -> list[int]:
        script, flags, processes = CASES[case]
        words = [*SHORT.split(), *flags.split(), "--dataset_name", f"{self.folder}/pairs.jsonl"]
        words += ["--reference_cache", f"{self.folder}/cache of {processes}", "--output_dir", str(out), *more]
        more = {"processes": processes, "port": free_port(), "file_size": file_size}
        return self.server.start(script, words, out.with_suffix(".log"), **more)

    def wait(self, out: Path) -> tuple[list[int], str]:
        """The exit codes, and what the run said."""
        return self.server.wait(), out.with_suffix(".log").read_text(encoding="utf-8")

    def uninterrupted(self, case: str) -> tuple[bytes, float]:
        """The weights that a run ends with, and the seconds it takes."""
        if case not in self.whole:
            out, started = self.folder / f"whole {case}", time.time()
            self.start(case, out)
            codes, said = self.wait(out)
            assert not any(codes), said
            self.whole[case] = weights(out), time.time() - started
            shutil.rmtree(out)
        return self.whole[case]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("kills"))
    yield runs
    runs.server.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def weights(out: Path) -> bytes:
    [file] = out.glob("*model.safetensors")
    return file.read_bytes()


def steps_on_disk(out: Path) -> tuple[list[int], list[int]]:
    """The steps of the complete checkpoints, and of the others: by this file's own reading of a manifest."""
    complete, damaged = [], []
    for checkpoint in out.glob("checkpoint-*"):
        files = {path.name: path for path in checkpoint.iterdir()}
        manifest = files.pop("manifest.json", None)
        holds = manifest is not None and all(
            name in files and hashlib.sha256(files[name].read_bytes()).hexdigest() == noted["sha256"]
            for name, noted in json.loads(manifest.read_text())["files"].items()
        )
        (complete if holds else damaged).append(int(checkpoint.name.split("-")[1]))
    return sorted(complete), sorted(damaged)


def kill_at_random(pids: list[int], out: Path, seconds: float, moment: random.Random) -> None:
    """SIGKILL all processes: half of the time at any moment, else while a checkpoint is being written."""
    deadline = time.time() + moment.uniform(0, 1.1 * seconds)
    if moment.random() < 0.5:
        awaited = out / f"checkpoint-{moment.randrange(1, STEPS // SAVE_STEPS + 1) * SAVE_STEPS}"
        while not awaited.exists() and time.time() < deadline + seconds and Path(f"/proc/{pids[0]}/fd/1").exists():
            time.sleep(0.0005)
        deadline = time.time() + moment.uniform(0, 0.15)  # it takes about a tenth of a second
    while time.time() < deadline and Path(f"/proc/{pids[0]}/fd/1").exists():
        time.sleep(0.0005)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)


def kill_and_resume(runs: Runs, case: str, seed: int) -> int:
    """Kill a run at random moments, each time going on, until it ends; returns the number of kills that hit it."""
    expected, seconds = runs.uninterrupted(case)
    moment, out, kills = random.Random(seed), runs.folder / f"killed-{seed}", 0
    more, complete, damaged = (), [], []
    for attempt in range(4):
        pids = runs.start(case, out, *more)
        if attempt < 3 and (attempt == 0 or moment.random() < 0.4):
            kill_at_random(pids, out, seconds, moment)
        codes, said = runs.wait(out)
        found = re.search(r"resumed from step (\d+)(.*)", said)
        if more and found:
            newest = complete[-1] if complete else 0
            assert int(found[1]) == newest
            assert bool(complete) != ("starts from the beginning" in found[2])
            for step in damaged:
                assert step < newest or f"checkpoint-{step} is passed over: " in said
        elif more:
            assert codes[0] == -signal.SIGKILL, said
        complete, damaged = steps_on_disk(out)
        logged = [int(step) for step in re.findall(rf"^ *(\d+)/{STEPS}  ", said, re.M)]
        if logged:  # nothing is lost that was done before the last checkpoint
            assert complete or logged[-1] <= SAVE_STEPS
            assert not complete or complete[-1] >= (logged[-1] - 1) // SAVE_STEPS * SAVE_STEPS
        if "--save_total_limit" in CASES[case][1]:
            assert len(complete) >= min(2, max(logged, default=0) // (SAVE_STEPS + 1)), (complete, logged)
            assert len(complete) <= 3  # the third goes when the newest is known to be complete
        if not any(codes):
            break
        assert -signal.SIGKILL in codes, said
        kills += 1
        more = ("--resume_from_checkpoint",)
    assert not any(codes), said
    assert weights(out) == expected
    shutil.rmtree(out)
    return kills


def kill_until(runs: Runs, kills: int, seed: int) -> None:
    cases, done, last = list(CASES), 0, seed + 10 * kills
    while done < kills:
        assert seed < last, "the kills come too late"
        done += kill_and_resume(runs, cases[seed % len(cases)], seed)
        print(f"seed {seed}: {done} kills")
        seed += 1


@pytest.mark.thorough
def test_20_kills_lose_nothing_and_change_no_bit(runs):
    kill_until(runs, 20, seed=0)


@pytest.mark.thorough
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(runs):
    out = runs.folder / "signalled"
    pids = runs.start("full, two processes", out)
    while not (out / f"checkpoint-{SAVE_STEPS}").exists() and Path(f"/proc/{pids[0]}/fd/1").exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    codes, said = runs.wait(out)
    assert codes == [143, 143], said
    complete, damaged = steps_on_disk(out)
    assert not damaged
    assert f"Stopped by SIGTERM after step {complete[-1]} of {STEPS}" in said
    alone = shutil.copytree(out, runs.folder / "alone")
    runs.start("full", alone, "--resume_from_checkpoint")  # twice the batch, half the processes
    codes, said = runs.wait(alone)
    assert codes == [0], said
    assert f"resumed from step {complete[-1]}" in said
    runs.start("full, two processes", out, "--resume_from_checkpoint")
    assert runs.wait(out)[0] == [0, 0]
    assert weights(out) == runs.uninterrupted("full, two processes")[0]


@pytest.mark.thorough
@pytest.mark.parametrize("heard_by", ["both", "one"])
def test_a_signal_outside_of_training_leaves_neither_of_two_processes_waiting(heard_by, runs):
    out = runs.folder / f"outside, {heard_by}"
    pids = runs.start("full, two processes", out, "--num_eval_prompts", "16", "--max_new_tokens", "60")
    log = out.with_suffix(".log")
    while "replies before" not in log.read_text(errors="replace"):
        time.sleep(0.01)
    for pid in pids if heard_by == "both" else pids[1:]:
        os.kill(pid, signal.SIGTERM)
    started = time.time()
    codes, said = runs.wait(out)
    assert codes[1] == 143, said
    assert codes[0] == 143 if heard_by == "both" else codes[0] != 0  # it misses the other, and says so
    assert time.time() - started < 120
    if heard_by == "both":
        assert said.count("stopped by SIGTERM") == 1
        assert "Traceback" not in said


@pytest.mark.slow
def test_200_kills_lose_nothing_and_change_no_bit(runs):
    kill_until(runs, 200, seed=1000)


# --- Two runs in one folder ---


def two_in_one_folder(runs: Runs, second: ForkServer, seed: int) -> int:
    """A second run comes at a random moment, is refused, and takes over from the first when that is killed.

    Half of them replace a finished run: killed before it trains, that one is back; afterwards all is the new one's.
    Returns the number of kills.
    """
    expected, seconds = runs.uninterrupted("full")
    moment, out = random.Random(seed), runs.folder / f"shared-{seed}"
    before, more = {}, ()
    if moment.random() < 0.5:
        runs.start("full", out)
        assert runs.wait(out)[0] == [0]
        before, more = contents(out), ("--overwrite_output_dir",)
    pids = runs.start("full", out, *more)
    script, flags, _ = CASES["full"]
    words = [*SHORT.split(), *flags.split(), "--dataset_name", f"{runs.folder}/pairs.jsonl", "--output_dir", str(out)]
    time.sleep(moment.uniform(0, 0.4 * seconds))  # it is to come while the first one lives
    how = "--resume_from_checkpoint" if moment.random() < 0.5 else "--overwrite_output_dir"
    second.start(script, [*words, "--reference_cache", f"{runs.folder}/another cache", how], out.with_suffix(".second"))
    [code] = second.wait()
    said = out.with_suffix(".second").read_text(encoding="utf-8")
    if Path(f"/proc/{pids[0]}/fd/1").exists():
        assert code == 2, said
        assert "is in use by another run" in said
    kill_at_random(pids, out, 0.2 * seconds, moment)
    [code], _ = runs.wait(out)
    if code == -signal.SIGKILL and before and not (out / ".run" / "dropped").exists():
        hold(out)  # as the next run does
        release(out)
        assert contents(out) == before or any(out.glob("checkpoint-*")) or not any(contents(out))
    runs.start("full", out, "--resume_from_checkpoint" if any(out.glob("checkpoint-*")) else "--overwrite_output_dir")
    codes, said = runs.wait(out)
    assert codes == [0], said
    assert weights(out) == expected
    shutil.rmtree(out)
    return code == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    """All files but a run's own notes."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".run" not in path.relative_to(folder).parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_100_kills_of_two_runs_in_one_folder_lose_nothing(runs, kills=100):
    second, done, seed = ForkServer(), 0, 0
    try:
        while done < kills:
            assert seed < 10 * kills, "the kills come too late"
            done += two_in_one_folder(runs, second, seed)
            print(f"seed {seed}: {done} kills")
            seed += 1
    finally:
        second.close()
