"""SIGKILL while answers are sampled, scored or trained on, and between rounds: nothing is done twice, no bit changes.

python -m pytest tests/own_pairs/test_killed_rounds.py -m thorough   # 4 kills
python -m pytest tests/own_pairs/test_killed_rounds.py -m slow       # 100
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT

from machinery.own_pairs.scored import AT_A_TIME

RULES = """
import os
def score(prompt, answer):
    with open({log!r}, "a") as log:
        log.write(f"{{hash((prompt, answer))}}\\n")
    return float(len(answer.split()) <= 20) + ("sorry" in answer)
"""
WORDS = (
    "--sample_answers 3 --rounds 2 --first_reference --num_prompts 40 --max_steps 4 --save_steps 2 "
    "--per_device_train_batch_size 4 --per_device_eval_batch_size 2 --num_eval_prompts 4 --max_new_tokens 24 --eval_strategy no --logging_steps 1 --show 0"
).split()


class Runs:
    """One command in a folder of its own, as often as it takes."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "scored.log"
        folder.mkdir()
        lines = (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        prompts = {json.loads(line)["prompt"][-1]["content"]: None for line in lines[:60]}
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        (folder / "rules.py").write_text(RULES.format(log=str(self.log)))

    def start(self) -> subprocess.Popen:
        command = [sys.executable, str(PROJECT / "custom_dataset_dpo.py"), "--dataset_name", "prompts.jsonl"]
        command += ["--judge", "rules.py:score", "--output_dir", "out", *WORDS]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        with open(self.folder / "said.txt", "a", encoding="utf-8") as said:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=said, stderr=said)

    def weights(self) -> list[bytes]:
        return [(self.folder / "out" / f"round-{n}" / "model.safetensors").read_bytes() for n in (1, 2)]

    def pairs(self) -> list[bytes]:
        return [(self.folder / "out" / f"round-{n}" / "answers" / "train.jsonl").read_bytes() for n in (1, 2)]

    def batches(self) -> list[str]:
        """The keys of what was sampled and scored, in the files that keep it."""
        files = (self.folder / "runs" / ".cache" / "answers").glob("*.jsonl")
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line]
        return sorted(json.loads(line)["key"] for line in lines if line.endswith("}"))


def kill_all(process: subprocess.Popen) -> None:
    """The process and those that it has started, which have sessions of their own."""
    family = [process.pid]
    for parent in family:
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                    family.append(int(path.parent.name))  # whose children come later in the list
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def kill_until(tmp_path: Path, kills: int, seed: int) -> None:
    whole = Runs(tmp_path / "whole")
    started = time.time()
    assert whole.start().wait() == 0, (whole.folder / "said.txt").read_text()
    seconds, moment, done, number = time.time() - started, random.Random(seed), 0, 0
    scored = len(whole.log.read_text().splitlines())
    check_rounds(whole)
    while done < kills:
        killed, here = Runs(tmp_path / f"killed-{number}"), 0
        number += 1
        for _ in range(3):
            process = killed.start()
            try:
                process.wait(timeout=moment.uniform(0.1, 0.9) * seconds)
                break
            except subprocess.TimeoutExpired:
                kill_all(process)
                here += 1
        code = killed.start().wait()
        assert code == 0, (killed.folder / "said.txt").read_text()
        assert killed.pairs() == whole.pairs()
        assert killed.weights() == whole.weights()
        assert killed.batches() == whole.batches()  # each once: what was kept is not sampled or scored again
        again = len(killed.log.read_text().splitlines()) - scored
        tried_and_shown = 2 + 4 * 4  # answers on which the judge is tried, and replies before and after
        assert again <= here * (AT_A_TIME + tried_and_shown) + tried_and_shown
        done += here
        print(f"{done} kills")


def check_rounds(whole: Runs) -> None:
    """What the rounds say of themselves: each from the last model, held to the first, on the same held-out prompts."""
    made = json.loads((whole.folder / "out" / "rounds.json").read_text())["rounds"]
    demo = made[0]["model"]
    assert demo.endswith("demo/model") and made[1]["model"] == "out/round-1"
    assert [metrics["reference"] for metrics in made] == [demo] * 2
    assert made[0]["kl_first"] == made[0]["kl_last"] > 0 and made[1]["kl_first"] > 0
    assert made[0]["score_after"] == made[1]["score_before"]
    said = (whole.folder / "said.txt").read_text()
    assert "| round | true reward |" in said and "| score |" in said and "\n| 2 | " in said
    first, second = (
        {json.loads(line)["prompt"][-1]["content"] for line in pairs.decode().splitlines()} for pairs in whole.pairs()
    )
    assert len(first) == len(second) == 40 and first != second


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_4_kills_of_rounds_lose_a_batch_and_change_no_bit(tmp_path):
    kill_until(tmp_path, 4, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_100_kills_of_rounds_lose_a_batch_and_change_no_bit(tmp_path):
    kill_until(tmp_path, 100, seed=100)
