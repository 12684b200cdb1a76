"""What can be wrong with a model on disk, said in one sentence before anything is trained on it.

    with said_in_a_sentence("my_model"):   # UserError: "--model_name_or_path my_model cannot be loaded: ..."
        config = look_at("my_model")       # "it is BertForMaskedLM, which is not a causal language model"
        model, report = AutoModelForCausalLM.from_pretrained("my_model", config=config, **FROM_SAFETENSORS)
        check_loaded(model, report, tokenizer)     # "it lacks 2 of the model's weights ...; they would be random"

Weights are read from safetensors alone: a pickled file can run any code when it is loaded.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from ..common.bounds import check_file, ends_within, read_json
from ..common.errors import UserError, is_out_of_memory
from ..common.kept_files import size_on_disk
from ..common.safe_text import first_line
from .sizes import check_counts, check_size

# For `from_pretrained`. Weights of another shape than config.json says are refused by name in `check_loaded`.
FROM_SAFETENSORS = dict(use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
# The most bytes of what else a model's folder holds. The largest known: a tokenizer.json of 33 MB, an index of 9 MB.
MOST_BYTES = {
    "config.json": 2**22, "generation_config.json": 2**22, "adapter_config.json": 2**24, "base_model.json": 2**20,
    "tokenizer_config.json": 2**24, "special_tokens_map.json": 2**22, "added_tokens.json": 2**24,
    "tokenizer.json": 2**28, "vocab.json": 2**26, "merges.txt": 2**26, "tokenizer.model": 2**26,
    "chat_template.jinja": 2**20, "model.safetensors.index.json": 2**26,
}  # fmt: skip
SECONDS = 30  # for a configuration: the largest known models take one


@contextmanager
def said_in_a_sentence(name: str) -> Iterator[None]:
    """Whatever a broken model makes the libraries raise becomes a UserError about it; want of memory stays what it is."""
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{name}: a safetensors file is damaged ({error}). Copy it again.") from error
    except Exception as error:  # a broken configuration makes the libraries fail anywhere
        if is_out_of_memory(error):
            raise
        raise UserError(f"--model_name_or_path {name} cannot be loaded: {first_line(error)}.") from error


def look_at(name: str, **hub_kwargs) -> PreTrainedConfig:
    """The configuration of a model that can be loaded and trained. Raises UserError and ValueError for any other.

    Loading shows a bar from here on, unless the model is small or nobody looks at it.
    """
    try:
        check_model_folder(name)
    except ValueError as error:
        raise UserError(f"--model_name_or_path: {str(error).rstrip('.')}.") from error
    is_local = Path(name).is_dir()
    is_small = is_local and size_on_disk(Path(name)) < 1e9
    is_quiet = is_small or not sys.stderr.isatty()
    (transformers_logging.disable_progress_bar if is_quiet else transformers_logging.enable_progress_bar)()
    if not is_local:  # a download takes its time
        config = AutoConfig.from_pretrained(name, **hub_kwargs)
        check_architecture(config)
        return config
    with ends_within(SECONDS, f"Reading {name}/config.json"):
        config = AutoConfig.from_pretrained(name, **hub_kwargs)
        check_architecture(config)
        check_size(config, Path(name))
    return config


def check_loaded(model: nn.Module, report: dict, tokenizer) -> None:
    """Accept a model whose weights are all there, and all numbers, and whose tokenizer is its own. Raises ValueError.

    report: of `from_pretrained` with output_loading_info.
    """
    for key, in_file, in_config in sorted(report["mismatched_keys"])[:1]:
        raise ValueError(f"{key} is {tuple(in_file)} in the file, and {tuple(in_config)} by config.json")
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"it lacks {len(missing)} of the model's weights (first: {missing[0]}); they would be random")
    if unused := unused_weights(model, report["unexpected_keys"]):
        raise ValueError(
            f"its files hold {len(unused)} weights of layers that config.json leaves out (first: {unused[0]}); without them "
            "it is another model"
        )
    check_weights(model)
    check_vocabulary(model, tokenizer)


def check_model_folder(name: str) -> None:
    """Accept hub names and folders with a model in safetensors. Raises ValueError for every other path."""
    path = Path(name)
    if not path.is_dir():
        if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"{name} is no model folder")
        return
    files = check_files(path)
    if "config.json" not in files:
        if "adapter_config.json" in files:
            raise ValueError(f"{name} holds an adapter without its base model; lora_dpo_training.py takes adapters")
        raise ValueError(f"{name} holds no model: there is no config.json in it")
    if "adapter_config.json" in files:
        raise ValueError(
            f"{name} holds an adapter beside a model's config.json, and Transformers would put the one on the other: "
            "keep each in a folder of its own (lora_dpo_training.py takes adapters)"
        )
    config = read_object(path / "config.json")
    if config is None:
        raise ValueError(f"{name}/config.json is no JSON object")
    check_counts(config, name)
    if "model.safetensors.index.json" in files:
        shards = (read_object(path / "model.safetensors.index.json") or {}).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{name}/model.safetensors.index.json has no weight_map")
        for shard in set(map(str, shards.values())):
            if PurePath(shard).is_absolute() or ".." in re.split(r"[/\\]", shard) or "\0" in shard:
                raise ValueError(f"{name}/model.safetensors.index.json leads out of its folder, to {shard}")
            if not shard.endswith(".safetensors"):
                raise ValueError(f"{name}/model.safetensors.index.json names {shard}, which is no safetensors file")
    if not any(file.endswith(".safetensors") for file in files):
        if any(file.endswith((".bin", ".pt", ".pth")) for file in files):
            raise ValueError(
                f"{name} holds pickled weights only, and loading those can run any code. Convert them to safetensors "
                "where you trust them: load them, then save_pretrained"
            )
        raise ValueError(f"{name} holds no weights: there is no .safetensors file in it")


def check_files(folder: Path) -> set[str]:
    """The names in a model's folder, once all that is loaded from it is known to be files. Raises UserError.

    A pipe in their place would be waited for without end, and a device read without end.
    """
    names = {path.name for path in folder.iterdir()}
    for name in sorted(names):
        if name in MOST_BYTES or name.endswith((".safetensors", ".jinja")):
            check_file(folder / name, MOST_BYTES.get(name))
        if name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            read_json(folder / name, MOST_BYTES[name])
    for path in folder.glob("additional_chat_templates/*"):
        check_file(path, MOST_BYTES["chat_template.jinja"])
    return names


def check_architecture(config: PreTrainedConfig) -> None:
    """Accept causal language models, also those of remote code. Raises ValueError that names the architecture."""
    named = config.architectures
    architecture = named[0] if isinstance(named, list) and named else "a model that does not say what it is"
    is_remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and not is_remote:
        raise ValueError(f"it is {architecture}, which is not a causal language model")
    if config.is_encoder_decoder:
        raise ValueError("by config.json it is an encoder with a decoder (is_encoder_decoder)")
    if config.output_attentions:
        raise ValueError(
            "its config.json asks for attentions (output_attentions), which sdpa cannot give; take that out"
        )
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions < 2:
        raise ValueError(
            f"by config.json it has {positions} positions (max_position_embeddings), and no room for a reply"
        )


def unused_weights(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Of the weights in the files that a model has no place for, those of its own stack of layers, sorted.

    What stands elsewhere is another head, or a part for images; what has these endings is computed anew.
    """
    stacks = {name[: place.start() + 1] for name in model.state_dict() if (place := re.search(r"\.\d+\.", name))}
    of_layers = (name for name in unexpected if any(name.startswith(stack) for stack in stacks))
    return sorted(name for name in of_layers if not name.endswith((".inv_freq", ".masked_bias", ".attn.bias")))


@torch.no_grad()
def check_weights(model: nn.Module) -> None:
    """Accept weights that are all finite numbers. Raises ValueError that names the first that is not."""
    for name, weight in model.named_parameters():
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16) or weight.is_meta:
            continue  # quantised, or not here
        if not weight.sum(dtype=torch.float32).isfinite():  # one NaN or infinity makes the sum one
            raise ValueError(f"its weights are not all numbers: there is a NaN or an infinity in {name}")


def check_vocabulary(model: nn.Module, tokenizer) -> None:
    """Accept a tokenizer whose tokens the model embeds. Raises ValueError where it belongs to another model.

    Some models carry a few tokens, for images say, beyond their embedding. One in a hundred is none of these.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    ends = [token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None]
    if rows is not None and (len(tokenizer) > 1.01 * rows or max(ends) >= rows):
        raise ValueError(
            f"its tokenizer has {len(tokenizer):,} tokens, and the model embeds {rows:,}: it belongs to another model, or a "
            "token was added to it and not to the model (model.resize_token_embeddings)"
        )


def is_same_tokenizer(one, other) -> bool:
    """Whether two tokenizers write a conversation in the same tokens, so that log-probs under two models can be compared."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template


def read_object(path: Path) -> dict | None:
    """The object in a JSON file; None where it holds something else. Raises UserError for what is no JSON file at all."""
    content = read_json(path, MOST_BYTES[path.name])
    return content if isinstance(content, dict) else None
