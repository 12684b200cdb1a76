"""Whether config.json describes a model that its files can hold, found before anything is built.

    check_counts(json.loads(text), "my_model")    # ValueError: "my_model/config.json: num_hidden_layers is 10,000,000, ..."
    check_size(config, Path("my_model"))          # ValueError: "config.json describes a model of 64,000,629,000 weights, ..."

A library makes what a configuration says: a layer as often as it is told, a table as large as it is told. Counts are
held against bounds, as they are before a library has read them; sizes against the bytes of the weights.
"""

import copy
import re
from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

# What is made one by one, by the names that configurations have for it, and the most of it. Public models have up to
# 130 layers and 512 experts.
MOST = {
    re.compile(r"(\w+_)?(n|num)_(\w+_)?(layers?|blocks?)|(en|de)coder_layers|depths?"): 1_000,
    re.compile(r"(\w+_)?(n|num)_(\w+_)?(experts?|codebooks?|labels)"): 100_000,
}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
UNSEEN = 2**28  # of buffers, which no file holds: masks, tables of angles


def check_counts(config: dict, name: str) -> None:
    """Accept the numbers in a configuration by which layers, experts and labels are made. Raises ValueError that names one.

    config: as it stands in the file, with the parts in it (text_config and others). name: of the folder.
    """
    parts = [config]
    while parts:
        part = parts.pop()
        for key, value in part.items():
            if isinstance(value, dict):
                parts.append(value)
            elif isinstance(value, (int, float)):
                most = next((most for pattern, most in MOST.items() if pattern.fullmatch(key)), value)
                if value > most:
                    shown = f"{value:,}" if value < 10**15 else f"{value:.0e}"
                    raise ValueError(f"{name}/config.json: {key} is {shown}, and no model has more than {most:,}")
                if value < 1 and key in LAYERS:
                    raise ValueError(f"{name}/config.json: {key} is {value}, and a model has one layer at least")


def check_size(config: PreTrainedConfig, folder: Path) -> None:
    """Accept a model whose weights can be in the folder's safetensors files. Raises ValueError with both numbers.

    The model is made without memory (on the device "meta"). A weight takes a byte at least, and an eighth where it is
    quantised. Models of remote code are not looked at.
    """
    try:
        with torch.device("meta"):
            model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config))
    except Exception:  # what is wrong with it is said where it is loaded
        return
    weights = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    per_byte = 8 if getattr(config, "quantization_config", None) else 1
    if weights > held * per_byte + UNSEEN:
        raise ValueError(
            f"config.json describes a model of {weights:,} weights, and its safetensors files hold {held:,} bytes"
        )
