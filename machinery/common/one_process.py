"""Let a process of several compute by itself for a while: what would be gathered from all of them is only its own.

with without_gathering(accelerator):
    loss = trainer.compute_loss(model, batch)      # and the metrics that TRL notes are those of this process
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator


@contextmanager
def without_gathering(accelerator: Accelerator) -> Iterator[None]:
    """`gather` and `gather_for_metrics` return what they are given: the other processes may be elsewhere, or hold more."""
    accelerator.gather = accelerator.gather_for_metrics = lambda values, *args, **kwargs: values
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
