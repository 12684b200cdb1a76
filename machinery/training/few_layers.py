"""Run a model with only its first layers, on the device it will be trained on: enough to see what it makes of a mask.

    with few_layers(model, torch.device("cuda")):
        outputs = model(...)            # of the embedding, two layers and the head

Before FSDP cuts it up a large model is whole on a CPU, where one forward pass takes hours. What its layers make of a mask
and of positions shows in the first few; where layers are of several kinds, in the first of each kind.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def few_layers(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """On `device` with two layers at least, and one of each kind; None leaves the model as it is. Restores everything."""
    if device is None:
        yield
        return
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["all"] * count
    most = max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))
    stacks = [
        (module, name, layers)
        for module in model.modules()
        for name, layers in module.named_children()
        if isinstance(layers, nn.ModuleList) and len(layers) == count
    ]
    was_on = next(model.parameters()).device
    try:
        for module, name, layers in stacks:
            setattr(module, name, layers[:most])
        config.num_hidden_layers = most
        yield model.to(device)
    finally:
        model.to(was_on)
        config.num_hidden_layers = count
        for module, name, layers in stacks:
            setattr(module, name, layers)
