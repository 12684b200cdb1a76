"""Refuse values of flags that would fail late, or pass in silence and spoil the run.

    check_environment()                            # ValueError: "The environment variable RANK is 'x', no number ..."
    check_values({"beta": -1.0})                   # ValueError: "--beta must be above 0, not -1.0"
    check_paths({"adapter": 300 * "x"})            # ValueError: "--adapter xxx... has a part of 300 bytes ..."

Transformers and TRL check some of theirs when the configuration is built; these are the others. Every message names the
flag, the value, and what it may be. What only its library can judge is in tried_out.py.
"""

import math
import os
import tempfile
from collections.abc import Callable

ABOVE_0 = (
    "beta num_train_epochs per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_length "
    "max_tokens_per_batch max_prompt_length num_eval_prompts max_new_tokens num_samples logging_steps save_steps eval_steps "
    "save_total_limit eval_accumulation_steps precompute_ref_batch_size ref_model_sync_steps discopop_tau ddp_timeout "
    "ddp_bucket_cap_mb dataset_num_proc lora_alpha judge_max_tokens judge_samples"
).split()
AT_LEAST_0 = (
    "learning_rate weight_decay max_grad_norm adam_epsilon min_margin judge_budget dataloader_num_workers show "
    "warmup_steps eval_delay router_aux_loss_coef neftune_noise_alpha"
).split()
SHARES = "held_out_share adam_beta1 adam_beta2 lora_dropout label_smoothing_factor test_split_size".split()
BETWEEN_0_AND_1 = "ld_alpha ref_model_mixup_alpha".split()
SEEDS = "seed data_seed".split()  # NumPy takes no others
PROCESSES = "dataset_num_proc dataloader_num_workers".split()
COUNTS = "num_train_epochs warmup_steps logging_steps save_steps eval_steps eval_delay".split()  # that may be fractions
MOST = 2**31 - 1  # no count is larger
LARGEST = 3e38  # in float32 what is larger is infinite
MOST_PROCESSES, MOST_RANK = 1024, 2**14
RANGES: dict[str, tuple[Callable, str]] = (
    dict.fromkeys(ABOVE_0, (lambda value: 0 < value < math.inf, "above 0"))
    | dict.fromkeys(AT_LEAST_0, (lambda value: 0 <= value < math.inf, "at least 0"))
    | dict.fromkeys(SHARES, (lambda value: 0 <= value < 1, "at least 0 and below 1"))
    | dict.fromkeys(BETWEEN_0_AND_1, (lambda value: 0 <= value <= 1, "between 0 and 1"))
    | dict.fromkeys(SEEDS, (lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"))
    | {
        "max_steps": (lambda value: value > 0 or value == -1, "above 0, or -1 for whole epochs"),
        "label_smoothing": (lambda value: 0 <= value < 0.5, "at least 0 and below 0.5"),
        # what divides logits by less is infinite in float32, or nearly
        "temperature": (
            lambda value: value == 0 or 1e-3 <= value < math.inf,
            "at least 0, and 0.001 where it is not 0",
        ),
        "lora_r": (lambda value: 1 <= value <= MOST_RANK, f"at least 1 and at most {MOST_RANK:,}"),
    }
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
NEVER_EMPTY = (
    "model_name_or_path dataset_name dataset_train_split dataset_test_split output_dir adapter reference save_cleaned "
    "answers judge judge_model judge_url judge_prompt models answers_from answers_url answers_model texts"
).split()
# Flags that are names of files or folders, or may be.
PATHS = (
    "model_name_or_path dataset_name output_dir reference_cache resume_from_checkpoint adapter reference answers models "
    "save_cleaned loss_file judge judge_model judge_prompt answers_from texts deepspeed fsdp_config accelerator_config"
).split()
# What a run writes below its folders: checkpoint-1000000/.model-00001-of-00002.safetensors.unfinished, and room to spare.
LONGEST_BELOW = 128
# What Transformers may choose the best checkpoint by, with or without eval_ before it.
METRICS = "loss entropy mean_token_accuracy rewards/accuracies rewards/margins rewards/chosen rewards/rejected".split()


def check_environment() -> None:
    """Refuse an environment that says what no launcher would, or names a temporary folder that is not there."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        value = os.environ.get(name, "0")
        if not value.removeprefix("-").isdigit():
            raise ValueError(
                f"The environment variable {name} is {value!r}, no number: unset it, or use accelerate launch"
            )
    for name in ("TMPDIR", "TEMP", "TMP"):
        folder = os.environ.get(name)
        if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
            raise ValueError(f"The environment variable {name} is {folder}, no folder that can be written: unset it")
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ValueError("There is no folder for temporary files: name one in the variable TMPDIR") from error


def check_values(values: dict) -> None:
    """Look at the values of flags by their names. Raises ValueError for the first that cannot be."""
    for name, value in values.items():
        if value is None:
            continue
        if name in NEVER_EMPTY and (value == "" or (isinstance(value, list) and "" in value)):
            raise ValueError(f"--{name} is empty: leave it out, or give it a value")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                _check_number(name, number)
    divergence = values.get("f_divergence_type")
    if divergence is not None and divergence not in DIVERGENCES:
        raise ValueError(f"--f_divergence_type {divergence}: there are {', '.join(DIVERGENCES)}")
    task = values.get("lora_task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(f"--lora_task_type {task}: DPO trains CAUSAL_LM")
    multiple = str(values.get("pad_to_multiple_of") or "auto").lower()
    if multiple not in ("auto", "none", "null") and not (multiple.isdigit() and 0 < int(multiple) <= MOST):
        raise ValueError(f"--pad_to_multiple_of {multiple}: it is auto, none, or a whole number above 0")
    for flag in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        if values.get(flag) and not values.get("dataloader_num_workers"):
            raise ValueError(f"--{flag} needs --dataloader_num_workers")
    metric = values.get("metric_for_best_model")
    if metric and metric.removeprefix("eval_") not in METRICS:
        raise ValueError(f"--metric_for_best_model {metric}: there are {', '.join(METRICS)}")


def _check_number(name: str, number: float) -> None:
    is_right, words = RANGES.get(name, (math.isfinite, "a finite number"))
    if not is_right(number):
        raise ValueError(f"--{name} must be {words}, not {number}")
    is_count = isinstance(number, int) or name in COUNTS
    most = MOST_PROCESSES if name in PROCESSES else MOST if is_count else LARGEST
    if abs(number) > most and name not in SEEDS:
        raise ValueError(f"--{name} must be at most {most:,}, not {number}")


def check_paths(values: dict) -> None:
    """Look at the flags that name files and folders. Raises ValueError for a name that no file can have."""
    for name in PATHS:
        value = values.get(name)
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and not path.startswith("{"):  # JSON instead of a file
                check_path(name, path)


def check_path(flag: str, path: str) -> None:
    """Raises ValueError for a name that no file can have."""
    longest, longest_part = _longest_name()
    shown = f"--{flag} {path[:40]}{'...' * (len(path) > 40)}"
    if "\0" in path:
        raise ValueError(f"{shown} holds a character that no name has (code 0)")
    parts = [len(os.fsencode(part)) for part in os.path.abspath(os.path.expanduser(path)).split(os.sep)]
    if max(parts) > longest_part:
        raise ValueError(f"{shown} has a part of {max(parts)} bytes; the system takes {longest_part}")
    if (length := sum(parts) + len(parts)) + LONGEST_BELOW > longest:
        raise ValueError(f"{shown} is {length:,} bytes long; the system takes {longest:,} with what is below it")


def _longest_name() -> tuple[int, int]:
    """The bytes that the system takes in a path and in one part of it."""
    try:
        return os.pathconf("/", "PC_PATH_MAX"), os.pathconf("/", "PC_NAME_MAX")
    except (AttributeError, ValueError, OSError):  # Windows
        return 4096, 255
