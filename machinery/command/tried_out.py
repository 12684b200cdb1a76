"""What only its library can judge, tried on something tiny before any data is read: keywords, packages, optimizers.

    check_dictionaries(values)        # ValueError: "--accelerator_config: there is no split_batch; did you mean ..."
    try_out(training_args, model_args)            # ValueError: "--lr_scheduler_kwargs: linear takes no num_cycles"

A learning-rate schedule is made for a number, an optimizer for one layer, checkpointing for one product. It takes some
milliseconds, and says what would otherwise end a run after its reference was asked.
"""

import difflib
import importlib.util
import inspect
import json
import math
import re
from pathlib import Path
from typing import get_type_hints

import torch
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig

from ..common.bounds import check_file
from ..common.errors import UserError
from ..common.masking import leaves
from ..common.safe_text import first_line
from ..models.checks import FROM_SAFETENSORS

IN_JSON = (
    "model_init_kwargs gradient_checkpointing_kwargs activation_checkpointing_kwargs lr_scheduler_kwargs "
    "liger_kernel_config"
).split()
IN_FILES = "accelerator_config fsdp_config deepspeed".split()  # or JSON on the command line
MOST_BYTES = 2**20
# What Transformers 5.23 reads of --fsdp_config; it passes over anything else in silence.
OF_FSDP = (
    "min_num_params transformer_layer_cls_to_wrap xla xla_fsdp_v2 xla_fsdp_grad_ckpt xla_fsdp_settings version cpu_offload "
    "auto_wrap_policy cpu_ram_efficient_loading state_dict_type activation_checkpointing reshard_after_forward "
    "forward_prefetch backward_prefetch use_orig_params sync_module_states limit_all_gathers"
).split()
# Keywords of torch.utils.checkpoint that can be written as JSON; of another type they are taken, and mean something else.
OF_CHECKPOINT = {
    "use_reentrant": bool, "preserve_rng_state": bool, "debug": bool, "early_stop": bool, "determinism_check": str
}  # fmt: skip
# What Transformers reads of --optim_args for the optimizers of PyTorch; it passes over anything else in silence.
OF_OPTIMIZERS = {
    "sgd": "momentum dampening weight_decay nesterov", "adagrad": "lr_decay weight_decay eps",
    "rmsprop": "momentum alpha eps weight_decay centered", "adamw_torch": "", "adamw_torch_fused": "", "adafactor": "",
}  # fmt: skip
# What a reporter imports (one of these), and what pip calls it.
REPORTERS = {
    "azure_ml": ("azureml.core", "azureml-sdk"), "comet_ml": ("comet_ml", "comet-ml"), "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"), "tensorboard": ("tensorboard tensorboardX", "tensorboard"),
    "trackio": ("trackio", "trackio"), "wandb": ("wandb", "wandb"), "codecarbon": ("codecarbon", "codecarbon"),
    "clearml": ("clearml", "clearml"), "dagshub": ("dagshub", "dagshub mlflow"), "flyte": ("flytekit", "flytekit"),
    "dvclive": ("dvclive", "dvclive"), "swanlab": ("swanlab", "swanlab"), "kubeflow": ("kubeflow", "kubeflow"),
}  # fmt: skip


def check_dictionaries(values: dict) -> None:
    """Look at flags that are written as JSON or name a JSON file. Raises ValueError that names the flag and the keyword."""
    for flag in (*IN_JSON, *IN_FILES):
        content = _dictionary(flag, values.get(flag))
        if content is None:
            continue
        if not all(math.isfinite(value) for _, value in leaves(content) if isinstance(value, float)):
            raise ValueError(f"--{flag} {content} holds a number that is none (NaN or infinity)")
        secret = next((keyword for keyword, value in leaves(content) if keyword and value), None)
        if secret and flag != "model_init_kwargs":
            raise ValueError(
                f"--{flag} holds a secret, {secret}, which would be written beside the weights: give it as a variable of "
                "the environment"
            )
        if flag == "model_init_kwargs":
            for name in {"config", "state_dict", *FROM_SAFETENSORS} & set(content):
                raise ValueError(f"--{flag}: {name} is settled here, and cannot be another")
        elif flag == "accelerator_config":
            _check_accelerator(content)
        elif flag == "fsdp_config":
            _check_keywords(flag, {name.removeprefix("fsdp_"): value for name, value in content.items()}, OF_FSDP)
    if values.get("deepspeed"):
        _need("deepspeed", "deepspeed", "--deepspeed")


def _dictionary(flag: str, value) -> dict | None:
    """What a flag says, or the file that it names. Raises ValueError where that is no JSON object."""
    if value is None or isinstance(value, dict):
        return value
    is_file = not str(value).lstrip().startswith("{")
    if is_file and flag in IN_JSON:
        raise ValueError(f'--{flag} {value}: it is written as JSON, as in {{"name": 1}}')
    text = str(value)
    if is_file:
        try:
            check_file(Path(text), MOST_BYTES)
            text = Path(text).read_text(encoding="utf-8")
        except UserError as error:  # which names the file
            raise ValueError(f"--{flag} {str(error).rstrip('.')}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ValueError(f"--{flag} {value} cannot be read: {reason}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--{flag} {value} is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"--{flag} is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f'--{flag} {value} is no JSON object, as in {{"name": 1}}')
    return content


def _check_keywords(flag: str, content: dict, known) -> None:
    for name in content:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            ways_out = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known) or 'none'}"
            raise ValueError(f"--{flag}: there is no {name}: {ways_out}")


def _check_kind(flag: str, name: str, value, kind: type) -> None:
    if not isinstance(value, kind):
        words = {dict: "a dictionary", bool: "true or false", str: "a text"}[kind]
        raise ValueError(f"--{flag}: {name} is {words}, not {json.dumps(value)}")


def _check_accelerator(content: dict) -> None:
    flag, known = "accelerator_config", get_type_hints(AcceleratorConfig)
    _check_keywords(flag, content, list(known))
    for name, value in content.items():
        kind = dict if name == "gradient_accumulation_kwargs" else bool
        if isinstance(value, str) and kind is bool and value.lower() in ("true", "false"):
            continue  # as Transformers reads it
        if value is not None or type(None) not in getattr(known[name], "__args__", ()):
            _check_kind(flag, name, value, kind)
    accumulation = content.get("gradient_accumulation_kwargs") or {}
    _check_keywords(
        f"{flag}, gradient_accumulation_kwargs", accumulation, list(get_type_hints(GradientAccumulationPlugin))
    )
    if "num_steps" in accumulation:
        raise ValueError(f"--{flag}: num_steps is --gradient_accumulation_steps here")


def try_out(training_args, model_args) -> None:
    """Make what a training makes, for one number or layer. Raises ValueError that names the flag."""
    _try_schedule(training_args)
    _try_optimizer(training_args)
    if training_args.activation_checkpointing_kwargs:
        _try_checkpointing(training_args.activation_checkpointing_kwargs)
    for reporter in training_args.report_to or []:
        if reporter not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"--report_to {reporter} is not known: there are {', '.join(INTEGRATION_TO_CALLBACK)}")
        if reporter in REPORTERS:
            _need(*REPORTERS[reporter], f"--report_to {reporter}")
    if training_args.use_liger_kernel:
        _need("liger_kernel", "liger-kernel", "--use_liger_kernel")
    if training_args.activation_offloading and not torch.accelerator.is_available():
        raise ValueError("--activation_offloading moves activations from a GPU to the CPU, and there is no GPU")
    is_on_cpu = training_args.use_cpu or not torch.accelerator.is_available()
    if is_on_cpu and model_args.attn_implementation == "flex_attention":
        raise ValueError("--attn_implementation flex_attention: on a CPU it cannot be trained")
    storage = model_args.bnb_4bit_quant_storage
    if storage is not None and not isinstance(getattr(torch, storage, None), torch.dtype):
        raise ValueError(f"--bnb_4bit_quant_storage {storage} is no type of numbers: uint8, bfloat16, ...")
    if training_args.torch_compile:
        _try_compiler(training_args)


def _need(modules: str, package: str, flag: str) -> None:
    if not any(_is_there(module) for module in modules.split()):
        raise ValueError(f"{flag} needs a package that is not installed: pip install {package}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # the package it would be in is not there, or is broken
        return False


def _try_schedule(training_args) -> None:
    """Make the schedule, and ask it for the rate at its beginning, its middle and its end."""
    name, kwargs = training_args.lr_scheduler_type, training_args.lr_scheduler_kwargs or {}
    takes = list(inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters)
    own = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs")
    takes = [keyword for keyword in takes if keyword not in own]
    is_open = name.value in ("reduce_lr_on_plateau", "greedy")  # they hand on to a class
    for keyword in [] if is_open else kwargs:
        if keyword not in takes:
            raise ValueError(
                f"--lr_scheduler_kwargs: {name.value} takes no {keyword}, but {', '.join(takes) or 'nothing'}"
            )
    steps = training_args.max_steps if training_args.max_steps > 0 else 1000
    warmup = training_args.get_warmup_steps(steps)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training_args.learning_rate or 1.0)
    try:
        schedule = get_scheduler(name, optimizer, warmup, steps, dict(kwargs))
        factors = [rate(step) for rate in getattr(schedule, "lr_lambdas", []) for step in (0, steps // 2, steps)]
        if is_open:
            schedule.step(1.0)
    except Exception as error:  # a value of a wrong type fails anywhere
        told = f", --lr_scheduler_kwargs {kwargs}" if kwargs else ""
        raise ValueError(
            f"--lr_scheduler_type {name.value}{told}: no rate can be computed for {steps} steps, {warmup} of them warm-up: "
            f"{first_line(error)}"
        ) from error
    if not all(isinstance(factor, (int, float)) and math.isfinite(factor) for factor in factors):
        raise ValueError(f"--lr_scheduler_kwargs {kwargs}: the rate would be {factors[0]}, {factors[1]}, {factors[2]}")


def _try_optimizer(training_args) -> None:
    """Make the optimizer for one layer."""
    name, said, targets = training_args.optim.value, training_args.optim_args, training_args.optim_target_modules
    for part in said.replace(" ", "").split(",") if said else []:
        if not re.fullmatch(r"\w+=[^=]+", part):
            raise ValueError(f"--optim_args {said}: settings are given as in momentum=0.9,nesterov=true")
        keyword = part.partition("=")[0]
        if keyword not in (known := OF_OPTIMIZERS.get(name, keyword).split()):
            raise ValueError(f"--optim_args {keyword}: {name} takes {', '.join(known) or 'none'}")
    try:
        [re.compile(target) for target in ([targets] if isinstance(targets, str) else targets or [])]
    except re.error as error:
        raise ValueError(f"--optim_target_modules {targets} is no pattern of names: {error}") from error
    layer = nn.Sequential(nn.Linear(1, 1))
    try:
        make, kwargs = Trainer.get_optimizer_cls_and_kwargs(training_args, layer)
        make(**{"params": layer.parameters(), **kwargs})
    except Exception as error:
        if not str(error).startswith("No target modules found"):  # the model's own names are known later
            told = f" --optim_args {said}" if said else ""
            raise ValueError(f"--optim {name}{told}: {first_line(error)}") from error


def _try_checkpointing(kwargs: dict) -> None:
    """Compute a product with its activations computed again, as the model's layers are."""
    flag = "gradient_checkpointing_kwargs"
    _check_keywords(flag, kwargs, OF_CHECKPOINT)
    for name, value in kwargs.items():
        _check_kind(flag, name, value, OF_CHECKPOINT[name])
    try:
        checkpoint(nn.Linear(1, 1), torch.ones(1, requires_grad=True), **{"use_reentrant": False, **kwargs}).backward()
    except Exception as error:
        raise ValueError(f"--{flag}: {first_line(error)}") from error


def _try_compiler(training_args) -> None:
    from torch import _dynamo, _inductor  # heavy where PyTorch has not loaded them yet

    backend, mode = training_args.torch_compile_backend, training_args.torch_compile_mode
    if backend not in _dynamo.list_backends(exclude_tags=()):
        raise ValueError(f"--torch_compile_backend {backend}: there are {', '.join(_dynamo.list_backends())}")
    modes = list(_inductor.list_mode_options())
    if mode is not None and mode not in modes:
        raise ValueError(f"--torch_compile_mode {mode}: there are {', '.join(modes)}")
