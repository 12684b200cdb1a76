"""Metrics of a batch that was computed in parts, or on several processes with unequal shares: as of the whole batch.

    noted = defaultdict(list)                        # TRL notes one number a name: a mean over what it has seen
    merged = merge([(noted, count(part_inputs)), ...], accelerator)

TRL's means are over pairs, over the answers' tokens, or over those of the chosen answers. The mean of unequal parts'
means is none of these; weighted by what each was taken over, it is.
"""

import torch
from accelerate import Accelerator

# What each of TRL's metrics is a mean over; all others are over pairs.
OVER = {
    "entropy": "tokens",
    "logits/chosen": "chosen_tokens",
    "logits/rejected": "rejected_tokens",
    "mean_token_accuracy": "chosen_tokens",
}


def count(inputs: dict) -> dict[str, int]:
    """Pairs, and tokens that are predicted, of a batch of [chosen rows; rejected rows]."""
    chosen, rejected = (int(mask.sum()) for mask in inputs["completion_mask"][:, 1:].chunk(2))
    return {
        "pairs": len(inputs["input_ids"]) // 2,
        "tokens": chosen + rejected,
        "chosen_tokens": chosen,
        "rejected_tokens": rejected,
    }


def merge(parts: list[tuple[dict[str, list[float]], dict[str, int]]], accelerator: Accelerator) -> dict[str, float]:
    """Each metric over all parts of all processes. parts: the last number noted of each metric, and `count` of the part."""
    names = sorted({name for noted, _ in parts for name in noted} - {"num_tokens"})  # a running total, no mean
    sums = [
        [sum(noted[name][-1] * counted[OVER.get(name, "pairs")] for noted, counted in parts) for name in names],
        [sum(counted[OVER.get(name, "pairs")] for _, counted in parts) for name in names],
    ]
    if accelerator.num_processes > 1:
        exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
        sums = accelerator.reduce(torch.tensor(sums, dtype=exact, device=accelerator.device)).tolist()
    return {name: total / over if over else 0.0 for name, total, over in zip(names, *sums, strict=True)}
