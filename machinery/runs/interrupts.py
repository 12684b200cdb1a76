"""Ctrl-C, SIGTERM and SIGHUP: what is there is kept, one sentence, and the exit code that shells expect.

    with signals_stop():                                # around a whole script: a signal raises Stopped, wherever it is
        main()
    trainer.add_callback(SaveOnSignal())                # in training: finish the step, write a checkpoint, leave
    with finished_first("The model is saved."):         # what takes seconds and holds the result is written to its end
        save()

The process exits with 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP, unless `nohup` has it ignored). A second signal ends
what the first one waits for, unless there are several processes: what launched them repeats the first one to each. In
training they stop after the same step, whoever heard it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal asks this process to end. Its code is what to exit with; `kept`, a sentence on what is there."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(128 + number)
        self.signal, self.kept = signal.Signals(number), kept


@contextmanager
def signals_stop() -> Iterator[None]:
    """Within, a signal raises Stopped, except where SaveOnSignal or finished_first has it wait."""

    def stop(number, frame):
        raise Stopped(number)

    with _heard_by(stop):
        try:
            yield
        except Exception as error:
            if (stopped := _before(error)) is None:
                raise
            raise stopped.with_traceback(error.__traceback__) from None


def _before(error: BaseException) -> Stopped | None:
    """The signal that an error came of: what is cut off anywhere may fail to tidy up, as a lock that was waited for."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


@contextmanager
def finished_first(kept: str) -> Iterator[None]:
    """Within, the first signal waits for the end, which then raises Stopped; a second one of a single process does not.

    kept: what is there then, in a sentence.
    """
    first = []

    def wait(number, frame):
        if first and PartialState().num_processes == 1:
            raise Stopped(number)
        first.append(number)

    with _heard_by(wait):
        yield
    if first:
        raise Stopped(first[0], kept)


@contextmanager
def _heard_by(handler: Callable) -> Iterator[None]:
    previous = _listen(handler)
    try:
        yield
    finally:
        _restore(previous)


def _listen(handler: Callable) -> dict:
    """Let a function hear the signals that are not ignored; returns who heard them before.

    A process that was forked from this one (a worker that reads data) ends as if nobody listened.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # no other may listen
    own = os.getpid()

    def hear(number, frame):
        if os.getpid() == own:
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, hear) for number in heard}


def _restore(previous: dict) -> None:
    for number, handler in previous.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class SaveOnSignal(TrainerCallback):
    """Stops training at the end of the step in which a signal comes, with a checkpoint."""

    def __init__(self):
        self.signal = None
        self._previous = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = _listen(self._remember)

    def on_step_end(self, args, state, control, **kwargs):
        heard = [number for number in gather_object([self.signal]) if number is not None]
        if heard:
            self.signal = heard[0]
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # which takes long, and with --save_strategy best decides about saving

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.signal is not None:  # what is due at the end of an epoch: this one has not ended
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        _restore(self._previous)
        if self.signal is not None:
            if state.is_world_process_zero:
                print(f"\nStopped by {self.signal.name} after step {state.global_step} of {state.max_steps}.")
                if (Path(args.output_dir) / f"checkpoint-{state.global_step}").exists():
                    way_on = f"Go on with the same command and --output_dir {args.output_dir} --resume_from_checkpoint"
                    if getattr(args, "sync_ref_model", False):
                        way_on = "No run goes on from it: under --sync_ref_model the reference has moved, and it is not saved."
                    print(f"A checkpoint is in {args.output_dir}.\n{way_on}")
            raise SystemExit(128 + self.signal)

    def _remember(self, number, frame):
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif PartialState().num_processes == 1:
            raise Stopped(number)
