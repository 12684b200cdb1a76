"""Is there room on the disk for what a run will write? Asked before the reference is, hours before the last file.

    check_room(training_args, policy, train_pairs)
    # UserError: "out will take about 16.0 GB (3 checkpoints of 4.0 GB, the model 4.0 GB), and 9.1 GB are free ..."

A checkpoint holds the weights that are trained and what the optimizer keeps of each: with Adam twice as much again.
What cannot fit is refused; a warning where it will hardly fit, or where nobody can know.
"""

import logging
import math
import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn

from ..common.errors import UserError
from ..common.kept_files import size_on_disk
from ..hardware.estimate import least_states
from ..models.adapters import adapter_bytes
from .checkpoints import LEAST_KEPT, checkpoints
from .ownership import aside

logger = logging.getLogger("dpo")

LIKELY = 0.9  # of what is free: other programs write too


def check_room(training_args, policy: nn.Module, train_pairs, peft_config=None, whole_models: int = 0) -> None:
    """Hold what the run will write against what is free on the disk of its folder. Raises UserError where it cannot fit.

    policy: the model, with the adapter that is trained on where there is one. peft_config: of the adapter that is still
    to be put on it. whole_models: full models that are written besides. The first process looks, and all raise.
    """
    refusal = None
    if PartialState().is_main_process:
        said, is_certain = _too_much(training_args, policy, train_pairs, peft_config, whole_models)
        refusal = said if is_certain else None
        if said and not is_certain:
            logger.warning(f"{said}.")
    [refusal] = broadcast_object_list([refusal])
    if refusal is not None:
        raise UserError(refusal)


def _too_much(training_args, policy, train_pairs, peft_config, whole_models: int) -> tuple[str | None, bool]:
    """The arithmetic in a sentence, and whether it is certain; None where there is room."""
    weights = _bytes(policy.parameters())
    trained = (
        adapter_bytes(policy, peft_config) if peft_config else _bytes(p for p in policy.parameters() if p.requires_grad)
    )
    states = 0 if training_args.save_only_model else trained * least_states(training_args.optim)
    count, is_known = count_checkpoints(training_args, train_pairs)
    folder = Path(training_args.output_dir)
    there = sum(map(size_on_disk, checkpoints(folder)))  # of the run that goes on
    needed = count * (trained + states) + trained + whole_models * weights - there
    free = shutil.disk_usage(folder.resolve()).free
    if not whole_models:  # which may be written before what is replaced is gone, when training begins
        free += size_on_disk(aside(folder))
    if needed <= LIKELY * free:
        return None, False
    parts = [f"{count} checkpoint{'s' * (count != 1)} of {_size(trained + states)}"] if count else []
    parts += [f"{'the adapter' if trained < weights else 'the model'} {_size(trained)}"]
    parts += [f"{whole_models} full model{'s' * (whole_models != 1)} of {_size(weights)}"] if whole_models else []
    parts += [f"less {_size(there)} that are there"] if there else []
    said = (
        f"--output_dir {folder} will take about {_size(needed)} ({', '.join(parts)}), and {_size(free)} are free on that disk. "
        f"Less: --save_total_limit {LEAST_KEPT}, larger --save_steps, --save_strategy no; or another disk"
    )
    return said, needed > free and is_known


def count_checkpoints(training_args, train_pairs) -> tuple[int, bool]:
    """How many checkpoints will be on the disk at once, at the most, and whether that is certain.

    Where the number of steps is not known, as of a stream, it is the least that there can be.
    """
    args, strategy = training_args, getattr(training_args.save_strategy, "value", training_args.save_strategy)
    if strategy == "no":
        return 0, True
    steps = None
    if isinstance(train_pairs, Dataset):
        at_once = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        an_epoch = math.ceil(len(train_pairs) / at_once)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(an_epoch * args.num_train_epochs)
    elif args.max_steps > 0:
        steps = args.max_steps
    count = 1  # Transformers writes one after the last step
    if strategy == "steps" and steps is not None:
        every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(steps * args.save_steps))
        count = max(1, math.ceil(steps / every))
    elif strategy == "epoch" and steps is not None:
        count = max(1, math.ceil(args.num_train_epochs if args.max_steps <= 0 else 1))
    if args.save_total_limit is not None:
        count = min(count, max(LEAST_KEPT, args.save_total_limit) + 1)  # a new one is whole before an old one goes
    return count, steps is not None and strategy != "best"


def _bytes(parameters) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
