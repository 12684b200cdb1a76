"""Which precision is faster on this device: found by trying, since it differs by ten times between two CPUs.

    training_args.bf16 = prefers_bf16("cpu")

A CPU with matrix units for bfloat16 (AMX) multiplies three times as fast in it; one without needs many times as long as
in float32, because every product is converted back and forth. The same holds for old GPUs.
"""

from functools import cache
from timeit import Timer

import torch

LEAST_GAIN = 1.5  # below it conversions eat up what the products win


def prefers_bf16(device: str | torch.device) -> bool:
    """Whether to compute in bfloat16: on NVIDIA's and AMD's GPUs that have it, and on CPUs where it is measurably faster."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and bf16_gain() >= LEAST_GAIN


@cache
def bf16_gain(size: int = 768, repeats: int = 5) -> float:
    """How many times as fast a CPU multiplies matrices in bfloat16 as in float32; takes about a twentieth of a second."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype)
        product = Timer("matrix @ matrix", globals={"matrix": matrix})
        first = product.timeit(1)
        others = product.repeat(repeats - 1, 1) if first <= 1.0 else []  # a CPU that emulates bfloat16 takes longer
        best[dtype] = min([first, *others])
    return best[torch.float32] / best[torch.bfloat16]
