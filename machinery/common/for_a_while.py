"""What is otherwise for a while, and afterwards as it was.

with in_mode(model, training=False):
    logps = sequence_logps(model, rows)            # without dropout
with without_gathering(accelerator):
    loss = trainer.compute_loss(model, batch)      # and the metrics that TRL notes are those of this process
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """A model in training mode or out of it, and afterwards each of its parts as it was.

    They need not be in one mode: PEFT puts an adapter that is new into training mode, on a base that is not. To give the
    whole its own mode back would give it to the base, and with it the base's dropout.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def without_gathering(accelerator: Accelerator) -> Iterator[None]:
    """`gather` and `gather_for_metrics` return what they are given: the other processes may be elsewhere, or hold more."""
    accelerator.gather = accelerator.gather_for_metrics = lambda values, *args, **kwargs: values
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
