"""Ctrl-C and SIGTERM during training: finish the step, write a checkpoint, leave.

    trainer.add_callback(SaveOnSignal())

The process exits with 130 (Ctrl-C) or 143 (SIGTERM), as shells expect. A second signal ends it at once.
"""

import signal

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
        if self.signal is not None:
            control.should_save = True
            control.should_training_stop = True

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
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = signal.Signals(number)
