"""Keep a reference's log-probs of given pairs on disk, so that the next run on the same pairs asks it nothing.

    key = reference_key(model, dataset, {"max_length": 1024})
    logps = load_logps(folder, key, count=len(dataset))           # None where there are none, or they are damaged
    save_logps(folder, key, ref_chosen_logps, ref_rejected_logps)

or, in a trainer of TRL's with `args.precompute_ref_log_probs` and the folder as `args.reference_cache`:

    class MyTrainer(CachedReference, DPOTrainer): ...

The key is a hash of all weights that the reference is made of, of the tokens of all rows and of the settings, so
another model, another row or another length is another file. A file names its own checksum. Old files go when the
folder grows beyond 1 GB (some 100 million pairs).
"""

import hashlib
import json
import os
import struct
from pathlib import Path

import torch
import transformers
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..common.kept_files import forget_oldest
from ..common.token_rows import hash_rows, row_lengths

MOST_BYTES = 1_000_000_000
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
SETTINGS = ("max_length", "truncation_mode", "ld_alpha", "bf16", "fp16")  # of TRL's that decide a log-prob


def reference_key(model: nn.Module, dataset: Dataset, settings: dict, adapter: str | None = None) -> str:
    """What decides the log-probs, as one hash.

    model: the reference, or a policy with adapters whose base is the reference. adapter: the name of the adapter that
    belongs to the reference; the others do not count. dataset: with the columns prompt_ids, chosen_ids, rejected_ids.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    weights = {}
    for name, tensor in model.state_dict().items():
        is_adapter = "lora_" in name or "modules_to_save" in name
        if not is_adapter or (adapter is not None and f".{adapter}." in f"{name}."):
            weights[name.removeprefix("base_model.model.").replace(".base_layer", "")] = tensor  # as without adapters
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).cpu().view(torch.uint8).numpy())
    hash_rows(dataset, digest)
    return digest.hexdigest()


def load_logps(folder: Path, key: str, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The chosen and the rejected log-probs kept under this key, (count,) each; None where there are no sound ones."""
    path = folder / f"{key}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            chosen, rejected = file.get_tensor("chosen"), file.get_tensor("rejected")
            noted = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    if chosen.shape != (count,) or rejected.shape != (count,) or noted != _checksum(chosen, rejected):
        return None
    os.utime(path)  # what is used is not old
    return chosen, rejected


def save_logps(folder: Path, key: str, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
    """Keep log-probs under a key; the file appears when it is whole. Removes the oldest files beyond 1 GB."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.safetensors"
    unfinished = folder / f".{key}.{os.getpid()}.unfinished"
    chosen, rejected = chosen.float().contiguous(), rejected.float().contiguous()
    try:
        save_file({"chosen": chosen, "rejected": rejected}, unfinished, {"checksum": _checksum(chosen, rejected)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    forget_oldest(folder, "*.safetensors", MOST_BYTES, but=path)


class CachedReference:
    """Before TRL's DPOTrainer among a class's bases: its precomputation in batches of like length, and kept on disk."""

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if not isinstance(dataset, Dataset) or self._is_vision_dataset:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        settings = {setting: getattr(self.args, setting) for setting in SETTINGS}
        settings |= {"torch": torch.__version__, "transformers": transformers.__version__}
        folder, key, kept = getattr(self.args, "reference_cache", None), None, None
        if folder and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # whose weights may be in pieces
            if self.accelerator.is_main_process:
                model = self.accelerator.unwrap_model(self.ref_model or self.model)
                adapter = "ref" if self.ref_model is None and "ref" in getattr(model, "peft_config", {}) else None
                key = reference_key(model, dataset, settings | {"config": model.config.to_dict()}, adapter)
                kept = load_logps(Path(folder), key, len(dataset))
            [kept] = broadcast_object_list([kept])
        if kept is None:
            order = row_lengths(dataset).argsort(descending=True, stable=True)  # too little memory shows at once
            ordered = dataset.select(order.tolist())
            # TRL keeps log-probs too, by rows and weights alone; so the settings become part of the rows' name.
            ordered._fingerprint = Hasher.hash([ordered._fingerprint, settings])
            done = super()._precompute_ref_logps(ordered, name, batch_size)
            kept = [torch.tensor(done[column])[order.argsort()] for column in COLUMNS]
            if key is not None:
                save_logps(Path(folder), key, *kept)
        for column, logps in zip(COLUMNS, kept, strict=True):
            dataset = dataset.add_column(column, logps.tolist())
        return dataset


def _checksum(chosen: torch.Tensor, rejected: torch.Tensor) -> str:
    digest = hashlib.blake2b(struct.pack("<q", len(chosen)), digest_size=16)
    for values in (chosen, rejected):
        digest.update(values.numpy())
    return digest.hexdigest()
