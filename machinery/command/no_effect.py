"""Flags that were given and do nothing beside the others: each is named, with what would make it count.

    for sentence in without_effect({"label_smoothing"}, values):
        print(sentence)      # "--label_smoothing does nothing: sigmoid has none. ... --loss_type cdpo"

Most come from TRL and Transformers, which pass over them in silence. What depends on the data or the model is named where
those are known: --pairing and --min_margin in data/, --lora_dropout in models/.
"""

from collections.abc import Callable

SMOOTHED = {"exo_pair", "robust", "aot", "aot_unpaired", "cdpo"}
WITHOUT_BETA = {"sft", "orpo"}
WITHOUT_REFERENCE = {"sft", "simpo", "orpo"}
ADAPTED = (
    "lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save use_rslora use_dora"
).split()
ADAM = "adam_beta1 adam_beta2 adam_epsilon".split()


def _losses(values: dict) -> set[str]:
    """The losses by name; none where the formula is the user's own, which may use anything."""
    return set() if values.get("loss_file") else set(values["loss_type"])


def _smoothing(values: dict) -> str | None:
    names = _losses(values)
    if not names or names & SMOOTHED or not values["label_smoothing"]:
        return None
    return (
        f"{' + '.join(sorted(names))} has no such term. DPO with a share of wrong labels is cDPO: "
        "custom_loss_dpo.py --loss_type cdpo"
    )


def _only_with(flag: str, is_on: Callable[[dict], object], needs: str):
    return flag, lambda values: None if is_on(values) else f"it counts with {needs} only"


# A flag, and why it does nothing where that is so.
RULES: list[tuple[str, Callable[[dict], str | None]]] = [
    ("label_smoothing", _smoothing),
    ("label_smoothing_factor", lambda values: "it is of other trainers. For DPO: --label_smoothing with --loss_type cdpo"),
    ("beta", lambda values: (
        "the loss has none" if _losses(values) and _losses(values) <= WITHOUT_BETA and not values.get("models") else None
    )),
    _only_with("discopop_tau", lambda v: not _losses(v) or "discopop" in _losses(v), "--loss_type discopop"),
    _only_with(
        "f_alpha_divergence_coef", lambda v: v["f_divergence_type"] == "alpha_divergence",
        "--f_divergence_type alpha_divergence",
    ),
    *(
        (flag, lambda values, flag=flag: (
            "sft knows no reference" if values[flag] and _losses(values) == {"sft"} else None
        ))
        for flag in ("f_divergence_type", "ld_alpha")
    ),
    ("sync_ref_model", lambda values: (
        "the loss knows no reference"
        if values["sync_ref_model"] and _losses(values) and _losses(values) <= WITHOUT_REFERENCE else None
    )),
    *(
        _only_with(flag, lambda v: v["sync_ref_model"], "--sync_ref_model")
        for flag in ("ref_model_mixup_alpha", "ref_model_sync_steps")
    ),
    *(
        _only_with(flag, lambda v: v["precompute_ref_log_probs"], "--precompute_ref_log_probs")
        for flag in ("precompute_ref_batch_size", "reference_cache")
    ),
    ("num_train_epochs", lambda values: (
        f"--max_steps {values['max_steps']} decides" if values["max_steps"] > 0 else None
    )),
    _only_with("eval_steps", lambda v: v["eval_strategy"] == "steps", "--eval_strategy steps"),
    _only_with("save_steps", lambda v: v["save_strategy"] == "steps", "--save_strategy steps"),
    _only_with("logging_steps", lambda v: v["logging_strategy"] == "steps", "--logging_strategy steps"),
    ("warmup_steps", lambda values: (
        "--lr_scheduler_type constant has no warm-up; constant_with_warmup has"
        if values["lr_scheduler_type"] == "constant" and values["warmup_steps"]
        else None
    )),
    *(
        (flag, lambda values: (
            f"--optim {values['optim']} has none" if values["optim"] in ("sgd", "adafactor", "rmsprop", "adagrad") else None
        ))
        for flag in ADAM
    ),
    *(
        _only_with(flag, lambda v: v["load_best_model_at_end"], "--load_best_model_at_end")
        for flag in ("metric_for_best_model", "greater_is_better")
    ),
    ("gradient_checkpointing_kwargs", lambda values: (
        "--gradient_checkpointing is off" if values["gradient_checkpointing"] is False else None
    )),
    _only_with("fsdp_config", lambda v: v["fsdp"], "--fsdp"),
    _only_with("liger_kernel_config", lambda v: v["use_liger_kernel"], "--use_liger_kernel"),
    _only_with(
        "optim_target_modules", lambda v: str(v["optim"]).startswith(("galore", "apollo")),
        "--optim galore_adamw, apollo_adamw and their kin",
    ),
    ("length_column_name", lambda values: "rows are grouped by their tokens, which are counted here"),
    *(
        (flag, lambda values, flag=flag: (
            "it would round the weights that are saved; pairs are measured in training's precision" if values[flag] else None
        ))
        for flag in ("bf16_full_eval", "fp16_full_eval")
    ),
    ("ignore_bias_buffers", lambda values: (
        "it is for masks that older versions of Transformers kept in a model" if values["ignore_bias_buffers"] else None
    )),
    ("padding_free", lambda values: "TRL has taken it out for now" if values["padding_free"] else None),
    *(
        (flag, lambda values: (
            f"--adapter {values['adapter']} brings its own"
            if values.get("adapter") and not values.get("merge_first")
            else None if values["use_peft"] else "no adapter is trained; lora_dpo_training.py trains one"
        ))
        for flag in ADAPTED
    ),
    *(
        _only_with(flag, lambda v: v["load_in_4bit"], "--load_in_4bit")
        for flag in ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
    ),
    ("held_out_share", lambda values: (
        "streamed rows are not held out" if values["dataset_streaming"] and values["held_out_share"] else None
    )),
]  # fmt: skip


def without_effect(given: set[str], values: dict) -> list[str]:
    """A sentence for each flag that the user gave and that does nothing. values: of all flags, by name."""
    found = []
    for flag, why in RULES:
        if flag in given and flag in values and (reason := why(values)):
            found.append(f"--{flag} does nothing here: {reason}.")
    return found
