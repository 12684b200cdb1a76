"""Ctrl-C, SIGTERM and SIGHUP anywhere: one sentence, the right exit code, nothing half, and the same weights in the end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, PROJECT, fork_server
from safetensors import safe_open
from transformers import TrainerControl

from machinery.runs.failures import local_value
from machinery.runs.interrupts import SIGNALS, SaveOnSignal, Stopped, finished_first, signals_stop

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# Long enough in each of its parts to be met there.
FLAGS = "--max_steps 6 --save_steps 3 --per_device_train_batch_size 4 --num_eval_prompts 8 --max_new_tokens 40 "
FLAGS += "--eval_strategy no --logging_steps 1"
DEMO = str(PROJECT / "demo")
EVALUATION = ["--models", f"{DEMO}/model", "--reference", f"{DEMO}/model", "--dataset_name", DEMO]
EVALUATION += "--num_eval_prompts 16 --num_samples 2 --max_new_tokens 40".split()


def own(number):
    """A signal to this process, heard at once."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture
def listening():
    """SIGINT as a shell in the foreground has it, and all signals given back at the end."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_what_is_being_done_with_the_code_of_the_contract(number, listening):
    with pytest.raises(Stopped) as stopped, signals_stop():
        own(number)
    assert stopped.value.code == CODES[number]
    assert stopped.value.signal == number


def test_what_fails_because_a_signal_cut_it_off_is_the_signal(listening):
    """As a Condition that is waited in does: its lock is not held where it would be released."""
    trainer = None
    with pytest.raises(Stopped, match="143") as stopped, signals_stop():
        trainer = "a trainer"
        with threading.Lock():
            try:
                own(signal.SIGTERM)
            finally:
                threading.Lock().release()
    assert stopped.value.__suppress_context__
    assert local_value(stopped.value, "trainer") == trainer  # what is said of it names what it has kept
    with pytest.raises(RuntimeError, match="unlocked"), signals_stop():
        threading.Lock().release()


@pytest.mark.parametrize("number", CODES)
def test_what_holds_the_result_is_finished_first(number, listening):
    done = []
    with pytest.raises(Stopped, match=str(CODES[number])) as stopped, signals_stop():
        with finished_first("It is saved."):
            own(number)
            done.append("saved")
        done.append("never")
    assert done == ["saved"]
    assert stopped.value.kept == "It is saved."


def test_a_second_signal_does_not_wait(listening):
    done = []
    with pytest.raises(Stopped), signals_stop(), finished_first("It is saved."):
        own(signal.SIGTERM)
        own(signal.SIGINT)
        done.append("never")
    assert not done


def test_what_nohup_has_ignored_stays_ignored(listening):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    saver = SaveOnSignal()
    with signals_stop(), finished_first(""):
        saver.on_train_begin(None, None, None)
        own(signal.SIGHUP)
    assert saver.signal is None
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def test_a_stop_within_an_epoch_is_no_end_of_it(listening, tmp_path, capsys):
    saver, control = SaveOnSignal(), TrainerControl()
    state = SimpleNamespace(global_step=3, max_steps=9, is_world_process_zero=True)
    saver.on_train_begin(None, None, None)
    own(signal.SIGTERM)
    control.should_evaluate = True  # of this very step, by which --save_strategy best would decide about saving
    saver.on_step_end(None, state, control)
    assert (control.should_save, control.should_training_stop, control.should_evaluate) == (True, True, False)
    control.should_save = control.should_evaluate = True  # as TRL's strategies by epoch set them
    saver.on_epoch_end(None, state, control)
    assert not control.should_save and not control.should_evaluate
    args = SimpleNamespace(output_dir=str(tmp_path))
    with pytest.raises(SystemExit):
        saver.on_train_end(args, state, control)
    assert "checkpoint" not in capsys.readouterr().out  # there is none
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(SystemExit):
        saver.on_train_end(args, state, control)
    said = capsys.readouterr().out
    assert "A checkpoint is in" in said and "--resume_from_checkpoint" in said
    args.sync_ref_model = True  # TR-DPO: going on would be refused
    with pytest.raises(SystemExit):
        saver.on_train_end(args, state, control)
    said = capsys.readouterr().out
    assert "A checkpoint is in" in said and "No run goes on from it" in said and "resume" not in said


def test_a_worker_that_was_forked_ends_without_a_word():
    code = (
        "import os, signal, time\n"
        "from machinery.runs.interrupts import signals_stop\n"
        "with signals_stop():\n"
        "    worker = os.fork()\n"
        "    if not worker:\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    time.sleep(0.3)\n"
        "    os.kill(worker, signal.SIGTERM)\n"
        "    assert os.WTERMSIG(os.waitpid(worker, 0)[1]) == signal.SIGTERM\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


class Run:
    """A script in a fork, with caches of its own."""

    def __init__(self, folder: Path, name: str, script: str, flags: str | list[str], caches: Path, **how):
        self.out, self.log, self.errors = folder / name, folder / f"{name}.log", folder / f"{name}.err"
        words = [*(flags.split() if isinstance(flags, str) else flags), "--output_dir", self.out]
        if script != "dpo_evaluation":
            words += ["--reference_cache", caches / "reference", "--dataset_name", folder.parent / "pairs.jsonl"]
        self.started = time.time()
        how |= {"caches": str(caches / "datasets")}
        [self.pid] = fork_server().start(script, words, self.log, self.errors, **how)
        self.pairs = caches / "datasets" / "dpo_pairs"

    def said(self) -> str:
        return "".join(file.read_text(errors="replace") for file in (self.log, self.errors) if file.exists())

    def runs(self) -> bool:
        return Path(f"/proc/{self.pid}/fd/1").exists()

    def signal_when(self, number: int, moment) -> None:
        """Send a signal as soon as moment() is true."""
        while self.runs() and not moment():
            time.sleep(0.002)
        if self.runs():
            os.kill(self.pid, number)

    def end(self) -> int:
        [code] = fork_server().wait()
        return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupts")
    lines = (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(lines[:48]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """The weights of a run that nobody stops, and the seconds it takes."""
    (folder / "whole").mkdir()
    run = Run(folder / "whole", "out", "basic_dpo_training", FLAGS, folder / "whole")
    assert run.end() == 0, run.said()
    return (run.out / "model.safetensors").read_bytes(), time.time() - run.started


def nothing_half(out: Path) -> None:
    """Every file with a final name can be read to its end."""
    for file in [*out.glob("*.json"), *out.glob("*.jsonl")]:
        text = file.read_text(encoding="utf-8")
        [json.loads(part) for part in (text.splitlines() if file.suffix == ".jsonl" else [text])]
    for file in out.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            assert list(weights.keys())


MOMENTS = {  # in the order in which a run comes to them
    "reading": lambda run: run.pairs.exists(),
    "tokenizing": lambda run: [*run.pairs.glob("cache-*.arrow")],
    "the reference": lambda run: "Computing reference" in run.said(),
    "sampling before": lambda run: "replies before" in run.said(),
    "training": lambda run: "2/6  " in run.said(),
    "sampling after": lambda run: "replies after" in run.said(),
    "measuring": lambda run: "The same prompts before and after" in run.said(),
    "saving": lambda run: (run.out / ".unfinished").exists(),
}


@pytest.mark.thorough
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_of_a_training_loses_nothing(moment, folder, whole):
    number = list(CODES)[list(MOMENTS).index(moment) % 3]
    place = folder / moment
    place.mkdir()
    run = Run(place, "out", "basic_dpo_training", FLAGS, place)
    run.signal_when(number, lambda: MOMENTS[moment](run))
    assert run.end() == CODES[number], run.said()
    said = run.said()
    assert "Traceback" not in said
    name = "Ctrl-C" if number == signal.SIGINT and moment != "training" else number.name
    assert said.lower().count(f"stopped by {name}".lower()) == 1
    assert not list(place.glob("out/.*unfinished"))
    if run.out.exists():
        nothing_half(run.out)
    if moment == "saving":
        assert "The run is finished, and its files are in" in said
    elif moment in ("training", "sampling after", "measuring"):
        assert "--resume_from_checkpoint" in said
        assert not (run.out / "metrics.json").exists()
    if moment != "saving":
        again = Run(place, "out", "basic_dpo_training", f"{FLAGS} --resume_from_checkpoint", place)
        assert again.end() == 0, again.said()
        assert "is not what was written" not in again.said()
        assert "has changed on disk" not in again.said()
    assert (run.out / "model.safetensors").read_bytes() == whole[0]


HOW_MANY = pytest.mark.parametrize(
    "kills", [pytest.param(16, marks=pytest.mark.thorough), pytest.param(100, marks=pytest.mark.slow)]
)


@HOW_MANY
def test_kills_of_caches_and_runs_leave_nothing_half_and_change_no_bit(kills, folder, whole):
    """SIGKILL, SIGTERM or SIGHUP; each time the caches are used again, and half of the time they are made anew."""
    weights, seconds = whole
    moment, hits = random.Random(kills), 0
    place = folder / f"{kills} kills"
    for attempt in range(5 * kills):
        if attempt % 2 == 0:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        run = Run(place, "out", "basic_dpo_training", f"{FLAGS} --resume_from_checkpoint", place)
        hits += stopped_by(run, moment, [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], seconds) != 0
        last = Run(place, "out", "basic_dpo_training", f"{FLAGS} --resume_from_checkpoint", place)
        assert last.end() == 0, last.said()
        assert "has changed on disk" not in last.said()  # what a kill cut off was never taken for whole
        assert "is not what was written" not in last.said()
        assert (last.out / "model.safetensors").read_bytes() == weights
        shutil.rmtree(last.out)
        if hits == kills:
            return
    pytest.fail("the kills come too late")


@HOW_MANY
def test_a_stopped_evaluation_leaves_no_half_report_and_says_the_same_afterwards(kills, folder):
    """Any signal; half of the time with answers that are kept from before."""
    moment, hits, place = random.Random(kills), 0, folder / f"{kills} evaluations"
    place.mkdir()
    first = Run(place, "whole", "dpo_evaluation", EVALUATION, place, cwd=str(place))
    assert first.end() == 0, first.said()
    seconds, answers = time.time() - first.started, (first.out / "generations.jsonl").read_bytes()
    for attempt in range(5 * kills):
        if attempt % 2 == 0:
            shutil.rmtree(place / "runs")
        run = Run(place, f"{attempt}", "dpo_evaluation", EVALUATION, place, cwd=str(place))
        code = stopped_by(run, moment, [*CODES, signal.SIGKILL], seconds)
        if code in CODES.values():
            assert run.said().count("stopped by ") == 1
        if run.out.exists():
            nothing_half(run.out)
            assert code or (run.out / "metrics.json").exists()
        if code:
            hits += 1
            again = Run(place, f"{attempt} again", "dpo_evaluation", EVALUATION, place, cwd=str(place))
            assert again.end() == 0, again.said()
            assert "damaged" not in again.said()
            assert (again.out / "generations.jsonl").read_bytes() == answers
        if hits == kills:
            return
    pytest.fail("the signals come too late")


def stopped_by(run: "Run", moment: random.Random, numbers: list, seconds: float) -> int:
    """The exit code of a run that hears one of the signals at some moment, or has ended before."""
    deadline, number = time.time() + moment.uniform(0, seconds), moment.choice(numbers)
    run.signal_when(number, lambda: time.time() > deadline)
    code = run.end()
    assert code in (0, *CODES.values(), -number), run.said()  # the last: at its very end, or before it listens
    assert "Traceback" not in run.said()
    return code


@pytest.mark.thorough
def test_a_run_under_nohup_does_not_hear_that_the_terminal_has_gone(folder, whole):
    place = folder / "nohup"
    place.mkdir()
    run = Run(place, "out", "basic_dpo_training", FLAGS, place, ignored=["SIGHUP"])
    run.signal_when(signal.SIGHUP, lambda: "replies before" in run.said())
    assert run.end() == 0, run.said()
    assert (run.out / "model.safetensors").read_bytes() == whole[0]
