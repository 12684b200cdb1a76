"""Ctrl-C and SIGTERM during training: finish the step, write a checkpoint, leave.

    trainer.add_callback(SaveOnSignal())

The process exits with 130 (Ctrl-C) or 143 (SIGTERM), as shells expect. A second signal ends it at once, unless there are
several processes: what launched them repeats the first one to each. They stop after the same step, whoever heard it.
"""

import signal

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback


class SaveOnSignal(TrainerCallback):
    """Stops training at the end of the step in which a signal comes, with a checkpoint."""

    def __init__(self):
        self.signal = None
        self._previous = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)

    def on_step_end(self, args, state, control, **kwargs):
        heard = [number for number in gather_object([self.signal]) if number is not None]
        if heard:
            self.signal = heard[0]
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.signal is not None:
            if state.is_world_process_zero:
                print(
                    f"\nStopped by {self.signal.name} after step {state.global_step} of {state.max_steps}; "
                    f"a checkpoint is in {args.output_dir}.\n"
                    f"Go on with the same command and --output_dir {args.output_dir} --resume_from_checkpoint"
                )
            raise SystemExit(128 + self.signal)

    def _remember(self, number, frame):
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif PartialState().num_processes == 1:
            raise SystemExit(128 + number)
