"""What a person sees of a training: a progress bar, a short aligned line, a reply now and then.

    show_log_lines(trainer)                                       # instead of the dictionaries that TRL prints
    trainer.add_callback(PreviewReply(lambda model: answer(model, "Hello")))

A loss that is no number ends the training with `NonFiniteLoss`, before anything is saved over the last checkpoint.
"""

import math

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class NonFiniteLoss(Exception):
    """The loss is NaN or infinite: the weights are lost from here on."""


def show_log_lines(trainer) -> None:
    """Replace what a trainer prints by a progress bar (unless it was turned off) and one line a log."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar())
    trainer.add_callback(LogLine())


class ProgressBar(ProgressCallback):
    """Transformers' bar without its dictionaries."""

    def on_log(self, *args, **kwargs):
        pass


class LogLine(TrainerCallback):
    """Prints step, loss, margin and accuracy, aligned, of the training and of the held-out pairs."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            tqdm.write(f"{'step':>9}  {'loss':>8}  {'margin':>8}  {'accuracy':>8}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        for prefix, label in (("", f"{state.global_step}/{state.max_steps}"), ("eval_", "held-out")):
            if f"{prefix}loss" not in logs:
                continue
            names = ("loss", "rewards/margins", "rewards/accuracies")
            loss, margin, accuracy = (logs.get(prefix + name, math.nan) for name in names)
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"the loss is {loss} at step {state.global_step}")
            if state.is_world_process_zero:
                tqdm.write(f"{label:>9}  {loss:>8.4f}  {margin:>+8.3f}  {accuracy:>8.2f}")


class PreviewReply(TrainerCallback):
    """Prints one reply after an eighth, a quarter and half of the training."""

    def __init__(self, reply, shares: tuple[float, ...] = (0.125, 0.25, 0.5)):
        """reply(model): the text to print; it must leave the random generators as they are."""
        self.reply, self.shares = reply, shares

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in {max(1, round(share * state.max_steps)) for share in self.shares}:
            text = self.reply(model)
            if state.is_world_process_zero:
                tqdm.write(f"{'':>9}  > {text}")
