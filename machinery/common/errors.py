"""What the user can put right, and what only more memory can.

raise UserError("--beta must be above 0, not -1.")       # a script ends with this sentence and exit code 2
"""

import torch

# What PyTorch says where memory runs out on a CPU of Linux or Windows, and on MPS; it raises a bare RuntimeError.
MEMORY_MARKS = ("can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory")


class UserError(ValueError):
    """Something the user can put right: one or a few sentences that name it and the way out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or elsewhere."""
    is_elsewhere = isinstance(error, RuntimeError) and any(mark in str(error) for mark in MEMORY_MARKS)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_elsewhere
