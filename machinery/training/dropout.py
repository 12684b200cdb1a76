"""Switch off the dropout that is no module: numbers in a model's own code, which TRL's `disable_dropout` does not find.

    there = switch_off_dropout(model)          # ["OPTDecoderLayer.dropout 0.1", ...]

DPO compares the policy with its reference; dropout in the policy alone is noise in every margin, and the loss starts above
ln 2. OPT, BioGPT and XGLM keep it as `self.dropout = config.dropout`, most others so for attention, and some leave out
whole layers (`layerdrop`). The model's configuration stays as it is.
"""

from torch import nn


def switch_off_dropout(model: nn.Module) -> list[str]:
    """Set every number called dropout in a model's modules to 0. Returns what was above 0, once for each kind of module."""
    there = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and type(value) is float and value > 0:
                there[f"{type(module).__name__}.{name} {value:g}"] = None
                setattr(module, name, 0.0)
    return list(there)
