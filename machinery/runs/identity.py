"""What decides the weights that a run ends with, so that a checkpoint is not gone on with as another run.

    keep_checkpoints(trainer)                            # each from now on with the identity of the run
    run = describe_run(trainer)                          # before training: start weights, pairs, settings
    differences(run, run_of_the_checkpoint)              # ["--seed is 43, and was 42"]; empty where it is the same run

What changes nothing but speed, memory, logs or files is not in it, so those may differ: the number of processes too, as
long as all of them together take as many pairs a step.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn

from ..common.errors import UserError
from ..common.token_rows import TOKEN_COLUMNS, hash_rows
from ..watching.untrue_alarms import drop_untrue_alarms
from .checkpoints import complete_checkpoints, read_manifest

SETTINGS = """
    seed data_seed train_sampling_strategy dataloader_drop_last num_train_epochs max_steps
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm neftune_noise_alpha
    bf16 fp16 max_length truncation_mode disable_dropout
    loss_type loss_weights beta label_smoothing f_divergence_type f_alpha_divergence_coef ld_alpha use_weighting
    discopop_tau router_aux_loss_coef sync_ref_model ref_model_mixup_alpha ref_model_sync_steps
""".split()
ADAPTER_SETTINGS = (
    "r lora_alpha target_modules lora_dropout use_rslora use_dora modules_to_save target_parameters".split()
)
FLAG_OF = {
    "pairs_a_step": "the number of pairs a step",
    **{name: f"--lora_{name}" for name in ("r", "target_modules", "modules_to_save")},
}


def keep_checkpoints(trainer) -> None:
    """Record in every checkpoint which run it belongs to. Raises UserError where this one is to go on from another's."""
    checkpoint, found = trainer.args.resume_from_checkpoint, [None, []]
    if PartialState().is_main_process:
        found[0] = describe_run(trainer)
        found[1] = differences(found[0], read_manifest(Path(checkpoint))["run"]) if checkpoint else []
    run_now, others = broadcast_object_list(found)
    if others:
        raise UserError(
            f"{checkpoint} belongs to another run: {'; '.join(others)}. Go on with the command it was started by, or begin a "
            "new run in another --output_dir."
        )
    complete_checkpoints(trainer, run_now)
    drop_untrue_alarms(trainer.model)  # on going on


def describe_run(trainer) -> dict:
    """The run's identity, as it will be when it comes back from JSON. Call it before training, on one process.

    trainer: TRL's DPOTrainer. The model's name is for the reader; its weights are compared by a hash.
    """
    args = trainer.args
    settings = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    settings["pairs_a_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings["loss_kwargs"] = [f"{name}={value}" for name, value in _keywords(getattr(trainer, "loss", None)).items()]
    for config in list(getattr(trainer.model, "peft_config", {}).values())[:1]:
        settings |= {name: getattr(config, name, None) for name in ADAPTER_SETTINGS}
    weights, reference = start_weights(trainer.model), getattr(trainer, "ref_model", None)
    reference = weights if reference is None else start_weights(trainer.accelerator.unwrap_model(reference))
    return {
        "model": {"name": trainer.model.config._name_or_path, "weights": weights},
        "reference": reference,
        "pairs": pairs_digest(trainer.train_dataset),
        "settings": json.loads(json.dumps(settings, default=_plain)),
    }


def differences(now: dict, then: dict) -> list[str]:
    """What differs between two descriptions, one clause each, with both values."""
    found = []
    model, pairs, settings = then.get("model", {}), then.get("pairs"), then.get("settings", {})
    if now["model"]["weights"] != model.get("weights"):  # a folder may move, so its name alone is no difference
        found.append(f"the model is {now['model']['name']}, and was {model.get('name')}: their weights differ")
    elif now["reference"] != then.get("reference"):
        found.append("the reference has other weights")
    if now["pairs"] != pairs:
        found.append(f"the training pairs are others ({_count(now['pairs'])} now, {_count(pairs)} then)")
    for name, value in now["settings"].items():
        if value != settings.get(name):
            ours, theirs = _shown(value), _shown(settings.get(name))
            found.append(f"{FLAG_OF.get(name, '--' + name)} is {ours}, and was {theirs}")
    return found


def start_weights(model: nn.Module) -> str:
    """A hash of names, shapes, precisions and about 64 values of each weight that the run starts from.

    An adapter that is drawn at random does not count (the seed does); one that is trained on counts by its frozen copy.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if "lora_" in name and ".ref." not in name:
            continue
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 64)].cpu().double()  # MPS has no float64
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:32]


def pairs_digest(dataset) -> dict | None:
    """The number of pairs and a hash of their tokens, in their order; None for a stream, which nobody has read yet."""
    if not isinstance(dataset, Dataset) or not set(TOKEN_COLUMNS) <= set(dataset.column_names):
        return None
    digest = hashlib.sha256()
    hash_rows(dataset, digest)
    return {"count": len(dataset), "tokens": digest.hexdigest()[:32]}


def _count(pairs: dict | None) -> int | str:
    return pairs["count"] if pairs else "a stream"


def _shown(value) -> str:
    """A setting as one would write it behind its flag."""
    if isinstance(value, list):
        value = " ".join(map(str, value)) or None
    return "not set" if value is None else str(value)


def _keywords(loss) -> dict:
    """The hyperparameters that a loss, or each of a sum of losses, was given beforehand."""
    if not isinstance(loss, partial):
        return {}
    inner = [item for argument in loss.args if isinstance(argument, list) for item in argument]
    return loss.keywords | {name: value for item in inner for name, value in _keywords(item).items()}


def _plain(value):
    """What JSON cannot hold, as what it can: a set as a list, an enumeration as its value, all else as text."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
