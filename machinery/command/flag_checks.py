"""Refuse values of flags that would fail late, or pass in silence and spoil the run.

    check_environment()                            # ValueError: "The environment variable RANK is 'x', no number ..."
    check_values({"beta": -1.0})                   # ValueError: "--beta must be above 0, not -1.0"

Transformers and TRL check some of theirs when the configuration is built; these are the others. Every message names the
flag, the value, and what it may be.
"""

import math
import os
from collections.abc import Callable

ABOVE_0 = (
    "beta num_train_epochs per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_length "
    "max_tokens_per_batch max_prompt_length num_eval_prompts max_new_tokens num_samples logging_steps save_steps "
    "save_total_limit"
).split()
AT_LEAST_0 = (
    "learning_rate weight_decay max_grad_norm adam_epsilon min_margin temperature judge_budget dataset_num_proc "
    "dataloader_num_workers show"
).split()
SHARES = "held_out_share adam_beta1 adam_beta2".split()
SEEDS = "seed data_seed".split()  # NumPy takes no others
RANGES: dict[str, tuple[Callable, str]] = (
    dict.fromkeys(ABOVE_0, (lambda value: 0 < value < math.inf, "above 0"))
    | dict.fromkeys(AT_LEAST_0, (lambda value: 0 <= value < math.inf, "at least 0"))
    | dict.fromkeys(SHARES, (lambda value: 0 <= value < 1, "at least 0 and below 1"))
    | dict.fromkeys(SEEDS, (lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"))
    | {
        "max_steps": (lambda value: value > 0 or value == -1, "above 0, or -1 for whole epochs"),
        "label_smoothing": (lambda value: 0 <= value < 0.5, "at least 0 and below 0.5"),
        "ld_alpha": (lambda value: 0 <= value <= 1, "between 0 and 1"),
        "loss_weights": (math.isfinite, "a finite number"),
    }
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
NEVER_EMPTY = (
    "model_name_or_path dataset_name dataset_train_split dataset_test_split output_dir adapter reference save_cleaned "
    "answers judge_model judge_url models"
).split()
DICTIONARIES = "model_init_kwargs gradient_checkpointing_kwargs lr_scheduler_kwargs".split()
# What Transformers may choose the best checkpoint by, with or without eval_ before it.
METRICS = "loss entropy mean_token_accuracy rewards/accuracies rewards/margins rewards/chosen rewards/rejected".split()


def check_environment() -> None:
    """Refuse an environment that says what no launcher would: accelerate fails on it with a bare conversion error."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        value = os.environ.get(name, "0")
        if not value.removeprefix("-").isdigit():
            raise ValueError(
                f"The environment variable {name} is {value!r}, no number: unset it, or use accelerate launch"
            )


def check_values(values: dict) -> None:
    """Look at the values of flags by their names. Raises ValueError for the first that cannot be."""
    for name, value in values.items():
        if value is None:
            continue
        if name in NEVER_EMPTY and (value == "" or (isinstance(value, list) and "" in value)):
            raise ValueError(f"--{name} is empty: leave it out, or give it a value")
        if name in DICTIONARIES and not (isinstance(value, dict) or str(value).startswith("{")):
            raise ValueError(f'--{name} {value}: it is written as JSON, as in {{"name": 1}}')
        if name in RANGES:
            is_right, words = RANGES[name]
            for number in value if isinstance(value, list) else [value]:
                if not is_right(number):
                    raise ValueError(f"--{name} must be {words}, not {number}")
    divergence = values.get("f_divergence_type")
    if divergence and divergence not in DIVERGENCES:
        raise ValueError(f"--f_divergence_type {divergence}: there are {', '.join(DIVERGENCES)}")
    metric = values.get("metric_for_best_model")
    if metric and metric.removeprefix("eval_") not in METRICS:
        raise ValueError(f"--metric_for_best_model {metric}: there are {', '.join(METRICS)}")
