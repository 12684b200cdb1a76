"""Make weights whole for a while that DeepSpeed's ZeRO-3 has cut into pieces, one a process.

    @on_whole_weights
    def answer(model, prompt):
        return model.generate(...)

Under ZeRO-3 a model is in pieces from the moment it is loaded. During the training DeepSpeed's engine puts each layer
together when its turn comes; before it, and for a model that is never trained, nobody does.
"""

from collections.abc import Callable
from functools import wraps

from torch import nn


def on_whole_weights(function: Callable) -> Callable:
    """A function of a model, and of whatever else, that finds its weights whole on every process."""

    @wraps(function)
    def on_whole(model: nn.Module, *args, **kwargs):
        pieces = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
        has_engine = any(hasattr(module, "ds_id") for module in model.modules())
        if not pieces or has_engine:  # they are whole, or an engine sees to it
            return function(model, *args, **kwargs)
        import deepspeed  # it is there, or there would be no pieces

        with deepspeed.zero.GatheredParameters(pieces):
            return function(model, *args, **kwargs)

    return on_whole
