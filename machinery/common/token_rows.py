"""The lengths of all rows of a tokenised preference dataset, or a hash of them, for a million rows in seconds.

What is computed from rows and weights is kept under hashes of both.

lengths = row_lengths(trainer.train_dataset)      # (rows,)
longest = trainer.train_dataset[int(lengths.argmax())]
digest = hashlib.sha256(); hash_rows(trainer.train_dataset, digest); hash_weights(model.state_dict(), digest)
"""

from collections.abc import Iterator

import pyarrow.compute as pc
import torch
from datasets import Dataset

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def row_lengths(dataset: Dataset) -> torch.Tensor:
    """The tokens of each row, its prompt and both answers, (len(dataset),)."""
    return torch.cat([torch.from_numpy(sum(lengths)).long() for lengths, _ in _arrays(dataset)])


def hash_rows(dataset: Dataset, digest) -> None:
    """Put all tokens, and where each part of each row ends, into a hash of hashlib's."""
    for lengths, tokens in _arrays(dataset):
        for part_lengths, part_tokens in zip(lengths, tokens, strict=True):
            digest.update(part_lengths)
            digest.update(part_tokens)


def hash_weights(weights: dict[str, torch.Tensor], digest) -> None:
    """Put the names, shapes, types and bytes of tensors into a hash of hashlib's, in the order of their names."""
    for name, tensor in sorted(weights.items()):
        if isinstance(tensor, torch.Tensor):  # a quantised layer's state holds other things, too
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).cpu().view(torch.uint8).numpy())


def _arrays(dataset: Dataset) -> Iterator[tuple[list, list]]:
    """Batch by batch, for prompts, chosen and rejected answers: NumPy arrays of the rows' lengths and of their tokens.

    No token becomes a Python number.
    """
    for batch in dataset.select_columns(TOKEN_COLUMNS).with_format("arrow").iter(batch_size=10_000):
        columns = [column.combine_chunks() for column in batch.columns]
        yield (
            [pc.list_value_length(column).to_numpy(zero_copy_only=False) for column in columns],
            [pc.list_flatten(column).to_numpy(zero_copy_only=False) for column in columns],
        )
