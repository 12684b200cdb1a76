"""Batches of rows of like length for `train_sampling_strategy="group_by_length"`, which TRL's DPO trainer cannot do.

    class MyTrainer(LengthGrouping, DPOTrainer): ...

For rows of this form Transformers wants a column of lengths; here they are counted.
"""

from collections.abc import Callable, Iterator

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from ..common.token_rows import row_lengths


class LengthGrouping:
    """Before TRL's DPOTrainer among a class's bases: its batches, for training and evaluation, by length."""

    def _get_train_sampler(self, train_dataset=None):
        pairs = self.train_dataset if train_dataset is None else train_dataset
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return self._length_groups(pairs, group) or super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        return self._length_groups(eval_dataset, self.args.eval_batch_size) or super()._get_eval_sampler(eval_dataset)

    def _length_groups(self, pairs, group: int) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(pairs, Dataset):
            return None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # What all processes together take for a step is one group, so their number changes no batch.
        group *= self.args.world_size
        return LengthGroups(row_lengths(pairs), group, seed, epoch=lambda: int(self.state.epoch or 0))


class LengthGroups(Sampler):
    """Batches of rows of like length, still in random order: less padding.

    Shuffles, sorts by length within stretches of several batches, then shuffles the batches of a stretch. The order is
    a function of the seed and the epoch alone: the same on every process and after a resume.
    """

    def __init__(self, lengths: torch.Tensor, group: int, seed: int, epoch: Callable[[], int], batches: int = 16):
        """lengths: one a row, (rows,). group: rows that belong together. batches: how many make a stretch."""
        self.lengths = lengths
        self.group, self.seed, self.epoch, self.batches = group, seed, epoch, batches

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator)
        for stretch in order.split(self.group * self.batches):
            stretch = stretch[self.lengths[stretch].argsort(stable=True)]
            groups = list(stretch.split(self.group))
            # Only whole groups change places: a shorter one in the middle would shift all batches behind it.
            whole = [group for group in groups if len(group) == self.group]
            for number in torch.randperm(len(whole), generator=generator).tolist():
                yield from whole[number].tolist()
            yield from (row for group in groups[len(whole) :] for row in group.tolist())
