"""Weights that are cut into pieces, one a process: made whole for a while under ZeRO-3, waited for under FSDP.

    @on_whole_weights
    def answer(model, prompt):
        return model.generate(...)

Under ZeRO-3 a model is in pieces from the moment it is loaded. During the training DeepSpeed's engine puts each layer
together when its turn comes; before it, and for a model that is never trained, nobody does. Under FSDP it is the other
way round: until the training begins the model is whole, on a CPU and often on the first process alone, where a forward
pass of seventy billion parameters takes hours.
"""

import os
from collections.abc import Callable
from functools import wraps

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..common.errors import UserError


def waits_for_shards(model: nn.Module) -> bool:
    """Whether FSDP will cut a model up when its training begins, and has not yet; accelerate ignores FSDP on a CPU."""
    will_be = os.environ.get("ACCELERATE_USE_FSDP") == "true" and torch.accelerator.is_available()
    return will_be and not any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_whole(what: str) -> None:
    """Raise UserError where each process has a piece of the weights, or none: each is to answer by itself."""
    zero_3 = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if is_fsdp or (zero_3 and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"):
        engine = "FSDP" if is_fsdp else "ZeRO-3"
        raise UserError(
            f"{what} takes whole weights on every process, and {engine} cuts them up: launch it by "
            "recipes/accelerate/ddp.yaml"
        )


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
