"""Batches of rows of like length, in an order that nothing but seed and epoch decides."""

import torch

from machinery.training.length_groups import LengthGroups


def test_length_groups_hold_every_row_once_and_like_lengths_together():
    lengths = torch.randint(10, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(LengthGroups(torch.tensor(lengths), group=8, seed=1, epoch=lambda: 0))
    assert sorted(order) == list(range(1000))
    batches = [order[start : start + 8] for start in range(0, 1000, 8)]
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches)
    assert spread < 25  # at random it would be about 150


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(LengthGroups(torch.arange(50), group=4, seed=seed, epoch=lambda epoch=epoch: epoch))
        for seed, epoch in [(1, 0), (1, 1), (2, 5)]
    }
    assert len(set(orders.values())) == 3
    assert orders[1, 0] == tuple(LengthGroups(torch.arange(50), group=4, seed=1, epoch=lambda: 0))
