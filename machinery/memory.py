"""How much memory a run has taken.

    peak = peak_memory_bytes()

On a GPU it is what PyTorch had allocated there at the most; elsewhere what the process had resident at the most.
"""

import sys

import psutil
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory_bytes() -> int:
    """The peak so far, in bytes."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
