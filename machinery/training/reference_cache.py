"""Keep a reference's log-probs of given pairs on disk, so that the next run on the same pairs asks it nothing.

    key = reference_key(model, dataset, {"max_length": 1024})
    logps = load_logps(folder, key, count=len(dataset))           # None where there are none, or they are damaged
    save_logps(folder, key, ref_chosen_logps, ref_rejected_logps)

or, in a trainer of TRL's with `args.precompute_ref_log_probs` and the folder as `args.reference_cache`:

    class MyTrainer(CachedReference, DPOTrainer): ...

which asks only about pairs that the training will draw: of twenty steps' worth, where `max_steps` is 20. What was not
asked is NaN; a longer run finds the rest, and asks about no more than that.

The key is a hash of all weights that the reference is made of, of the tokens of all rows and of the settings, so
another model, another row or another length is another file. A file names its own checksum. Old files go when the
folder grows beyond 1 GB (some 100 million pairs).
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import transformers
import trl
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.data import RandomSampler, SequentialSampler

from ..common.kept_files import checksum, complete_file, forget_oldest, going_on_without
from ..common.token_rows import hash_rows, hash_weights, row_lengths
from .sealed_maps import made_with_seals, nothing_kept, one_file_for_all

logger = logging.getLogger("dpo")

MOST_BYTES = 1_000_000_000
NAME = "dpo-logps-{}.safetensors"  # a name that nobody else gives a file
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
SCALE = (
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
)  # what decides an adapter's besides its weights
SETTINGS = ("max_length", "truncation_mode", "ld_alpha", "bf16", "fp16")  # of TRL's that decide a log-prob


def reference_key(model: nn.Module, dataset: Dataset, settings: dict, adapter: str | None = None) -> str:
    """What decides the log-probs, as one hash.

    model: the reference, or a policy with adapters whose base is the reference. adapter: the name of the adapter that
    belongs to the reference; the others do not count. dataset: with the columns prompt_ids, chosen_ids, rejected_ids.
    """
    if adapter is not None:
        settings = settings | {name: getattr(model.peft_config[adapter], name, None) for name in SCALE}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    weights = {}
    for name, tensor in model.state_dict().items():
        is_adapter = "lora_" in name or "modules_to_save" in name
        if not is_adapter or (adapter is not None and f".{adapter}." in f"{name}."):
            weights[name.removeprefix("base_model.model.").replace(".base_layer", "")] = tensor  # as without adapters
    hash_weights(weights, digest)
    hash_rows(dataset, digest)
    return digest.hexdigest()


def load_logps(folder: Path, key: str, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The chosen and the rejected log-probs kept under this key, (count,) each, NaN where they were not asked for.

    None where there are no sound ones.
    """
    path = folder / NAME.format(key)
    if not os.path.lexists(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            chosen, rejected = file.get_tensor("chosen"), file.get_tensor("rejected")
            noted = (file.metadata() or {}).get("checksum")
        is_sound = chosen.shape == rejected.shape == (count,) and noted == _checksum(chosen, rejected)
    except (OSError, SafetensorError):
        is_sound = False
    if not is_sound:
        logger.warning(f"{path} is not what was written to it: the reference is asked anew.")
        return None
    with suppress(OSError):
        os.utime(path)  # what is used is not old
    return chosen, rejected


def save_logps(folder: Path, key: str, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
    """Keep log-probs under a key; the file appears when it is whole. Removes the oldest files beyond 1 GB.

    Where that cannot be done it is said, and nothing else happens.
    """
    path = folder / NAME.format(key)
    chosen, rejected = chosen.float().contiguous(), rejected.float().contiguous()
    with going_on_without("The reference's log-probs", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with complete_file(path, "wb") as file:
            noted = {"checksum": _checksum(chosen, rejected)}
            file.write(save({"chosen": chosen, "rejected": rejected}, noted))
        forget_oldest(folder, NAME.format("[0-9a-f]" * 32), MOST_BYTES, but=path)


class CachedReference:
    """Before TRL's DPOTrainer among a class's bases: its precomputation for the pairs that are drawn, and kept on disk."""

    is_asked_in_part = False
    _answers: list | None = None  # of the reference so far, a pair of tensors a batch

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if not isinstance(dataset, Dataset) or self._is_vision_dataset:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        settings = {setting: getattr(self.args, setting) for setting in SETTINGS}
        settings |= {library.__name__: library.__version__ for library in (torch, transformers, trl)}
        settings |= {"device": self.accelerator.device.type, "shared_prompt": getattr(self.args, "shared_prompt", None)}
        settings["mode"] = "eval"  # older files have log-probs in which an adapter's dropout may be on
        folder, key, kept = getattr(self.args, "reference_cache", None), None, None
        if folder and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # whose weights may be in pieces
            if self.accelerator.is_main_process:
                model = self.accelerator.unwrap_model(self.ref_model or self.model)
                adapter = "ref" if self.ref_model is None and "ref" in getattr(model, "peft_config", {}) else None
                about = {"config": model.config.to_dict(), "attention": model.config._attn_implementation}
                key = reference_key(model, dataset, settings | about, adapter)
                kept = load_logps(Path(folder), key, len(dataset))
            [kept] = broadcast_object_list([kept])
        kept = kept or tuple(torch.full((len(dataset),), torch.nan) for _ in COLUMNS)
        wanted = torch.zeros(len(dataset), dtype=torch.bool)
        wanted[drawn_rows(self, dataset) if dataset is self.train_dataset else slice(None)] = True
        missing = (wanted & kept[0].isnan()).nonzero().squeeze(1)
        if len(missing):
            missing = missing[row_lengths(dataset)[missing].argsort(descending=True, stable=True)]
            with nothing_kept():  # else all processes would write one file of it at once
                # the longest first: too little memory shows at once
                ordered = dataset.select(missing.tolist()).flatten_indices()
            self._answers = []
            try:  # TRL would keep them too, by rows and weights alone
                with nothing_kept() if self.args.world_size == 1 else one_file_for_all(dataset):
                    done = super()._precompute_ref_logps(ordered, name, batch_size)
                    answers = [torch.tensor(done[column]) for column in COLUMNS]
            except BaseException:  # what was answered before a signal or a want of memory need not be asked again
                if key is not None and self.args.world_size == 1 and self._answers:
                    answers = [torch.cat(parts) for parts in zip(*self._answers, strict=True)]
                    _fill(kept, missing[: len(answers[0])], answers)
                    save_logps(Path(folder), key, *kept)
                raise
            finally:
                self._answers = None
            _fill(kept, missing, answers)
            if key is not None:
                save_logps(Path(folder), key, *kept)
        if dataset is self.train_dataset:
            self.is_asked_in_part = not wanted.all()

        def with_columns():
            made = dataset
            for column, logps in zip(COLUMNS, kept, strict=True):
                made = made.add_column(column, logps.tolist())  # a row that was dropped before makes this a map
            return made

        if self.args.world_size == 1:
            return made_with_seals(dataset, with_columns)
        with nothing_kept():  # by each process
            return with_columns()

    def compute_ref_log_probs(self, model, inputs):
        """TRL's, noted batch by batch while the reference is asked about all pairs."""
        logps = super().compute_ref_log_probs(model, inputs)
        if self._answers is not None:
            self._answers.append([values.cpu() for values in logps])
        return logps

    def training_step(self, model, inputs, *args, **kwargs):
        """TRL's; RuntimeError where the order of the rows has become another than when the reference was asked."""
        if self.is_asked_in_part and inputs["ref_chosen_logps"].isnan().any():
            raise RuntimeError(
                "A pair was drawn that the reference was not asked about: the seed or the sampler was changed after the trainer "
                "was made. Set data_seed, which fixes the order, or precompute_ref_log_probs=False"
            )
        return super().training_step(model, inputs, *args, **kwargs)


def drawn_rows(trainer, dataset: Dataset) -> list[int] | slice:
    """The rows that the training will draw before `max_steps`, or a share of an epoch, ends it; all where that is unsure."""
    args, everything = trainer.args, slice(None)
    at_once = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    steps = (
        args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * math.ceil(len(dataset) / at_once))
    )
    if steps * at_once >= len(dataset) or args.auto_find_batch_size:
        return everything
    sampler = trainer._get_train_sampler(dataset)
    if type(sampler) is RandomSampler:
        if not args.accelerator_config.use_seedable_sampler:
            return everything
        # what accelerate makes of it; the trainer's constructor has set the seed
        sampler = SeedableRandomSampler(dataset, data_seed=args.data_seed)
    elif not isinstance(sampler, SequentialSampler) and not getattr(sampler, "is_reproducible", False):
        return everything
    return list(sampler)[: steps * at_once]


def _fill(kept: Sequence[torch.Tensor], rows: torch.Tensor, answers: Sequence[torch.Tensor]) -> None:
    for logps, answered in zip(kept, answers, strict=True):
        logps[rows] = answered


def _checksum(chosen: torch.Tensor, rejected: torch.Tensor) -> str:
    return checksum(b"".join(values.numpy().tobytes() for values in (chosen, rejected)))
