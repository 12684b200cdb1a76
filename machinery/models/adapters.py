"""Adapters on disk: which base they belong to, whether this is it, and merging them into it with proof.

    folder = check_adapter("my_adapter")               # UserError: "--adapter my_adapter holds a full model, not an adapter"
    base_of_adapter(folder)                            # "Qwen/Qwen3-0.6B"
    check_targets(model, ["q_proj", "v_porj"], 8)      # UserError: "... match nothing; there are q_proj, k_proj, ..."
    policy = load_adapter(model, "my_adapter")         # UserError: "... was trained on another base ..."
    note_base(folder, describe_base(model, "Qwen/Qwen3-0.6B", None))
    print(merge_adapter(load, "Qwen/Qwen3-0.6B", folder, tokenizer, rows))

An adapter is a difference from its base. It is of no use on another, and nothing in the files says so: shapes fit all
models of one family and size. So a run writes a fingerprint of the base beside its adapter, and it is compared before use.
"""

import copy
import hashlib
import json
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import DPOConfig, ModelConfig, get_peft_config

from ..common.bounds import ends_within
from ..common.errors import UserError, is_out_of_memory
from ..common.kept_files import complete_files
from ..common.safe_text import first_line, say
from .checks import check_files, check_model_folder, check_weights, read_object


class Base(NamedTuple):
    """The model that an adapter belongs to."""

    name: str
    revision: str | None
    fingerprint: str | None


NOTE = "base_model.json"
MOST_LAYERS = 1_000  # that an adapter may make of its base's
SECONDS = 10  # for patterns: those of known adapters take a moment
# The most by which logits may differ after merging, as a share of the largest: rounding, and no more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def check_adapter(name: str) -> Path:
    """The folder of an adapter with its weights in safetensors. Raises UserError that says what it is instead."""
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"--adapter {name} is no folder")
    files = check_files(folder)
    if "adapter_config.json" not in files:
        full = "a full model, not an adapter: name it by --model_name_or_path"
        raise UserError(f"--adapter {name} holds {full if 'config.json' in files else 'no adapter'}")
    if "adapter_model.safetensors" not in files:
        pickled = " (adapter_model.bin can run code when it is loaded)" if "adapter_model.bin" in files else ""
        raise UserError(f"--adapter {name} holds no adapter_model.safetensors{pickled}")
    return folder


def base_of_adapter(folder: Path) -> str | None:
    """The name or path of the base model, as the adapter has it."""
    base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise UserError(f"{folder}/adapter_config.json: base_model_name_or_path is {str(base)[:50]}, and no name.")
    return base


def base_of(name: str) -> str | None:
    """The base of an adapter's folder; None for a full model. Raises UserError where neither can be loaded."""
    if not (Path(name) / "adapter_config.json").is_file():
        try:
            check_model_folder(name)
        except ValueError as error:
            raise UserError(f"{str(error).rstrip('.')}.") from error
        return None
    base = base_of_adapter(check_adapter(name))
    if base is None:
        raise UserError(f"The adapter {name} does not name its base.")
    if not Path(base).is_dir() and Path(base).is_absolute():
        raise UserError(f"The base of the adapter {name} is gone: {base}.")
    return base


def noted_beside(name: str) -> dict[str, str]:
    """What `load_model` is to take of an adapter's folder: its tokenizer and the revision of its base, where they are there."""
    noted, config = {}, Path(name) / "adapter_config.json"
    if config.is_file() and isinstance(revision := _read(config).get("revision"), str):
        noted["revision"] = revision
    if config.with_name("tokenizer_config.json").is_file():
        noted["tokenizer_from"] = name
    return noted


def _read(path: Path) -> dict:
    content = read_object(path)
    if content is None:
        raise UserError(f"{path} is no JSON object")
    return content


def weights_fingerprint(model: nn.Module) -> str | None:
    """A hash of the names, shapes and 64 values of every weight; None where these are not at hand.

    A quantised model has others, one in float16 may have rounded them otherwise than bfloat16 does, and one that ZeRO-3
    has cut up has none. Adapters that are on the model do not count.
    """
    parameters = list(model.parameters())
    is_rounded = getattr(model, "is_quantized", False) or any(p.dtype == torch.float16 for p in parameters)
    if is_rounded or not all(parameter.numel() for parameter in parameters):
        return None
    weights, adapters = {}, {*getattr(model, "peft_config", {})}
    for name, tensor in model.state_dict().items():
        if not adapters & set(name.split(".")):
            name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
            weights[name] = tensor.detach()
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        flat = tensor.reshape(-1)
        some = flat[:: max(1, len(flat) // 64)].float().cpu().to(torch.bfloat16)  # the same in float32 and bfloat16
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def describe_base(model: nn.Module, name: str, revision: str | None) -> Base:
    """What is to be noted beside an adapter on this model, a folder by its whole path."""
    local = Path(name)
    return Base(str(local.resolve()) if local.is_dir() else name, revision, weights_fingerprint(model))


def save_base(model: nn.Module, tokenizer, folder: Path) -> str:
    """Keep a base that is nowhere else, whole, by the first of several processes. Returns the folder's name."""
    if PartialState().is_main_process:
        with complete_files(folder) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    PartialState().wait_for_everyone()
    return str(folder)


def note_base(folder: Path, base: Base) -> None:
    """Write beside an adapter which base it was trained on, also into its own configuration."""
    (folder / NOTE).write_text(json.dumps(base._asdict(), indent=2) + "\n", encoding="utf-8")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def check_base(folder: Path, fingerprint: str | None) -> None:
    """Compare a base with the one noted beside the adapter, where one is. Raises UserError where they differ."""
    if not (folder / NOTE).is_file() or fingerprint is None:
        return
    noted = _read(folder / NOTE)
    if noted.get("fingerprint") not in (None, fingerprint):
        raise UserError(f"{folder} was trained on another base, {noted.get('name')}: the weights differ")


def load_adapter(base: PreTrainedModel, name: str) -> PeftModel:
    """Put a trained adapter on its base, to be trained on. Raises UserError where it is none, or not of this base."""
    try:
        folder = check_adapter(name)
        check_base(folder, weights_fingerprint(base))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check_patterns(PeftConfig.from_pretrained(folder), base, f"{folder}/adapter_config.json")
            model = PeftModel.from_pretrained(base, folder, is_trainable=True)
        if any("missing adapter keys" in str(warning.message) for warning in said):
            raise UserError("it lacks some of the adapter's weights; they would be random")
        check_weights(model)
        return model
    except Exception as error:  # a broken file makes the libraries fail anywhere
        if is_out_of_memory(error):
            raise
        raise UserError(f"--adapter {name} on {base.config._name_or_path}: {first_line(error)}.") from error


def check_patterns(config: PeftConfig, model: nn.Module, where: str) -> None:
    """Try an adapter's patterns on the names of the model's modules, as PEFT will. Raises UserError where they do not end, or
    where it would copy layers without end.

    Most adapters name their modules; target_modules, exclude_modules, layers_pattern and the keys of rank_pattern and
    alpha_pattern may also be regular expressions, and one like (a+)+b takes twice as long for every letter more. They
    are tried by `re` itself, which looks out for signals: the `regex` package, which has a time limit of its own, proves
    nothing, because it ends at once on patterns by which `re` runs for ever.
    """
    if sum(end - start for start, end in getattr(config, "layer_replication", None) or []) > MOST_LAYERS:
        raise UserError(f"{where}: layer_replication makes more than {MOST_LAYERS:,} layers")
    patterns = [key for name in ("rank_pattern", "alpha_pattern") for key in getattr(config, name, None) or {}]
    with ends_within(SECONDS, f"{where}: trying its patterns on the names of the model's modules"):
        for name, _ in model.named_modules():
            if getattr(config, "target_modules", None) is not None:
                check_target_module_exists(config, name)
            get_pattern_key(patterns, name)


def new_adapter(base: PreTrainedModel, model_args: ModelConfig, training_args: DPOConfig) -> PeftConfig | None:
    """The adapter that the flags describe, to be put on this model; None without --use_peft.

    Raises UserError where its target modules are none of the model's.
    """
    if not model_args.use_peft:
        return None
    config, targets = get_peft_config(model_args), model_args.lora_target_modules or []
    if isinstance(targets, str):  # TRL makes one name a string, which PEFT takes for a pattern
        targets = [targets]
        config.target_modules = config.target_modules if targets == ["all-linear"] else set(targets)
    as_run = in_this_transformers(config, base)
    moved = set(targets) - set(as_run.target_modules or [])
    check_targets(base, model_args.lora_target_modules, model_args.lora_r, model_args.lora_modules_to_save, moved)
    check_parameters(base, model_args, training_args.disable_dropout)
    if as_run.target_parameters and training_args.disable_dropout:
        config.lora_dropout = 0.0  # as it will be; PEFT refuses any other beside parameters
    elif config.lora_dropout and training_args.disable_dropout:
        say(f"--lora_dropout {config.lora_dropout} does nothing: TRL switches dropout off (--no_disable_dropout).")
    if config.target_modules == "all-linear":
        if taboo := forbidden_targets(base):
            config.target_modules = set(linear_names(base)) - taboo
            names = ", ".join(sorted(config.target_modules))
            say(f"all-linear is {names}: PEFT takes no adapter on {' and '.join(sorted(taboo))} of this model.")
        if (fused := fused_experts(base)) and not as_run.target_parameters:
            say(f"all-linear leaves the experts out: --lora_target_parameters {' '.join(fused)} adapts them too.")
    is_tied = base.get_output_embeddings() is not None and (
        base.get_output_embeddings().weight is getattr(base.get_input_embeddings(), "weight", None)
    )
    own = {module_name(base, base.get_output_embeddings()), module_name(base, base.get_input_embeddings())}
    if is_tied and own & set(targets):
        told = "head and embedding are one weight here, and an adapter on one of them cannot be merged"
        if getattr(training_args, "merges", False):
            raise UserError(f"--merge: {told}. Leave it out, or take them out of --lora_target_modules")
        say(f"{told.capitalize()}.")
    return config


def adapter_bytes(model: nn.Module, config: PeftConfig) -> int:
    """The bytes of an adapter that is still to be put on a model: A and B of each target, (r, in) and (out, r) in float32."""
    config, targets = copy.copy(config), config.target_modules or []
    config.target_modules = linear_names(model) if targets == "all-linear" else targets
    linear = [(name, module) for name, module in model.named_modules() if _is_linear(module)]
    adapted = [module for name, module in linear if check_target_module_exists(config, name)]
    return sum(4 * config.r * sum(_sides(module)) for module in adapted)


def in_this_transformers(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """What PEFT makes of a configuration: where experts have become one tensor, their old names (w1, gate_proj) mean it."""
    resolved = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(resolved, model, get_model_conversion_mapping(model))
    except ValueError as error:  # one of two that are fused
        raise UserError(f"--lora_target_modules: {first_line(error)}") from error
    return resolved


def module_name(model: nn.Module, module: nn.Module | None) -> str:
    """The last part of a module's name, such as lm_head."""
    return next((name.rsplit(".", 1)[-1] for name, other in model.named_modules() if other is module), "")


def linear_names(model: nn.Module) -> list[str]:
    """What PEFT's all-linear adapts: the last names of the linear layers, the head aside."""
    linear = filter(_is_linear, model.modules())
    return sorted({module_name(model, module) for module in linear if module is not model.get_output_embeddings()})


def forbidden_targets(model: nn.Module) -> set[str]:
    """Modules that PEFT takes no adapter on: a Mamba layer's kernel reads their weights past any adapter."""
    kinds = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")  # as in PEFT's tuners_utils.py
    return {"out_proj", "conv1d"} if getattr(model.config, "model_type", None) in kinds else set()


def fused_experts(model: nn.Module) -> list[str]:
    """The weights of a mixture's experts that are one tensor for all, no modules: as --lora_target_parameters names them."""
    found = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parameter.ndim == 3 and "experts" in parts[-2]:
            last_number = max((at for at, part in enumerate(parts) if part.isdigit()), default=-1)
            found[".".join(parts[last_number + 1 :])] = None
    return list(found)


def check_parameters(model: nn.Module, model_args: ModelConfig, has_no_dropout: bool) -> None:
    """Accept names of parameters that are there, and what PEFT can do with them. Raises UserError."""
    for target in model_args.lora_target_parameters or []:
        if not any(name == target or name.endswith("." + target) for name, _ in model.named_parameters()):
            there = ", ".join(fused_experts(model)) or "no experts in one tensor; name modules by --lora_target_modules"
            raise UserError(f"--lora_target_parameters {target} matches nothing; there are {there}")
    for flag in ("use_dora",) if has_no_dropout else ("use_dora", "lora_dropout"):
        if model_args.lora_target_parameters and getattr(model_args, flag):
            raise UserError(f"--lora_target_parameters: PEFT adapts parameters without --{flag}")


def check_targets(
    model: nn.Module, targets: str | list[str] | None, rank: int, saved: list[str] | None = None, moved: Collection = ()
) -> None:
    """Accept "all-linear" and names of modules that are there. Raises UserError that lists those there are.

    saved: modules to be trained whole. moved: targets that PEFT finds elsewhere, see `in_this_transformers`.
    """
    if rank < 1:
        raise UserError(f"--lora_r must be at least 1, not {rank}")
    modules = dict(model.named_modules())
    # PEFT adapts other kinds too, which language models do not have
    names = [name for name, module in modules.items() if _is_linear(module) or isinstance(module, nn.Embedding)]
    head = next((name for name, module in modules.items() if module is model.get_output_embeddings()), "lm_head")
    sides = [side for name in set(names) - {head} for side in _sides(modules[name])]
    if sides and rank > max(sides):
        raise UserError(
            f"--lora_r {rank} is more than the longest side of the model's matrices, {max(sides)}: use less"
        )
    works = ", ".join(sorted(set(linear_names(model)) - forbidden_targets(model)))
    for target in [targets] if isinstance(targets, str) else targets or []:
        if target in forbidden_targets(model):
            raise UserError(
                f"--lora_target_modules {target}: PEFT takes no adapter on it in a {model.config.model_type}, whose kernel reads "
                f"the weight itself; {works} work, and all-linear takes those"
            )
        if (
            target != "all-linear"
            and target not in moved
            and not any(name == target or name.endswith("." + target) for name in names)
        ):
            fused = fused_experts(model)
            experts = (
                f". The experts' weights are no modules: --lora_target_parameters {' '.join(fused)}" if fused else ""
            )
            raise UserError(
                f"--lora_target_modules {target} matches nothing; there are {works}, or all-linear{experts}"
            )
        if target == head:
            raise UserError(
                f"--lora_target_modules {target}: TRL's DPO trainer reads the head's weight past any adapter on it. "
                f"--lora_modules_to_save {target} trains the head whole"
            )
    for name in saved or []:
        if not any(module.endswith(name) for module in modules):  # as PEFT looks for it
            raise UserError(f"--lora_modules_to_save {name}: the model has no such module")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or "Conv1D" in type(module).__name__  # GPT-2's


def _sides(module: nn.Module) -> list[int]:
    """How many numbers go into a module and out of it, however its weight is packed."""
    return [
        side for side in (getattr(module, name, None) for name in ("in_features", "out_features", "nx", "nf")) if side
    ]


@torch.no_grad()
def merge_adapter(load_model, base_name: str, folder: Path, tokenizer, rows: list[list[int]], **init_kwargs) -> str:
    """Add an adapter to its base, write the full model to folder/merged, load it again, and compare the logits.

    load_model(name, **init_kwargs): a model and its tokenizer. rows: token ids of some texts. Returns a sentence with
    the largest difference; raises UserError, and leaves nothing, where it is more than rounding.
    """
    init_kwargs.pop("quantization_config", None)  # rounded weights are no place to add anything to
    # The first of several processes does this alone, so ZeRO-3 must not cut up what is loaded from now on.
    unset_hf_deepspeed_config()

    def load(name: str) -> PreTrainedModel:
        return load_model(name, **init_kwargs)[0]

    def logits_of(model) -> list[torch.Tensor]:
        return [model(torch.tensor([row], device=model.device)).logits.float().cpu() for row in rows]

    out = folder / "merged"
    model = PeftModel.from_pretrained(load(base_name), folder).eval()
    before = logits_of(model)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.merge_and_unload(safe_merge=True).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        again = load(str(unfinished)).eval()
        difference = max((a - b).abs().max().item() for a, b in zip(before, logits_of(again), strict=True))
        largest = max(logits.abs().max().item() for logits in before)
        explained = TOLERANCE.get(again.dtype, 1e-4) * largest
        if not difference <= explained:
            raise UserError(
                f"--merge: the merged model is not the base with its adapter: logits differ by up to {difference:.3g}, and rounding "
                f"explains {explained:.3g} in {str(again.dtype).removeprefix('torch.')}"
            )
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return f"Merged: {out}; its logits differ from base and adapter by {difference:.2g} at the most, of {largest:.3g}"
