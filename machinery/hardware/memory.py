"""How much memory a run has taken, and what becomes of freed memory on a CPU.

    peak = peak_memory_bytes()           # of the run so far
    reset_peak(); ...; peak_since_reset()  # of a part of it
    keep_freed_memory(False)             # on a CPU: less memory and more time

On a GPU it is what PyTorch had allocated there at the most; elsewhere what the process had resident at the most.
"""

import ctypes
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

START = psutil.Process().memory_info().rss  # when this file was imported: Python and its libraries
_highest = 0  # the peak before the last reset
_stays = False  # as `keep_freed_memory` was told
_watcher: threading.Thread | None = None
LOOKS_EVERY = 0.5  # seconds


def uses_gpu() -> bool:
    """Whether memory is counted on the GPU."""
    return torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0


def peak_memory_bytes() -> int:
    """The peak so far, in bytes."""
    return max(_highest, peak_since_reset())


def peak_since_reset() -> int:
    """The peak since `reset_peak`, or of the whole process where the system cannot forget it (macOS, Windows)."""
    if uses_gpu():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    # Linux keeps two: getrusage's is at least what the process held that started this one, and is never reset.
    if Path("/proc/self/status").exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Begin a new peak from what is in use now."""
    global _highest
    _highest = peak_memory_bytes()
    if uses_gpu():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: see proc(5)


def free_bytes() -> int:
    """What is left: of the GPU's memory, or of what the system or the process's control group allows."""
    if uses_gpu():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = psutil.virtual_memory().available
    for folder, limit, used, cache in (  # control groups, version 2 and 1
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # no such group, or "max"
            limit, used = (int(Path(folder, name).read_text()) for name in (limit, used))
            told = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            cached = int(told[cache])  # files that were read, held while nobody wants the room
            free = min(free, limit - used + cached)
    return max(free, 1)


def memory_in_use() -> int:
    """What is allocated on the GPU, or resident, now."""
    return torch.cuda.memory_allocated() if uses_gpu() else psutil.Process().memory_info().rss


def before_all() -> int:
    """What Python and its libraries held before there was a model; on a GPU nothing."""
    return 0 if uses_gpu() else START


def keep_freed_memory(keep: bool) -> None:
    """On a CPU under glibc, let freed memory stay with the process, or go back to the system at once.

    Staying is faster: what goes back comes again page by page, each one cleared, which takes a third of a step with
    an adapter on 110 million parameters. Going back takes less: the pieces that stay seldom fit the next tensor.
    `benchmarks/lora_memory.py` measures both. The largest tensors, such as the gradient of an embedding, find no piece at
    all, and go back in either case. How much lies in pieces differs from run to run, so a thread looks on: where less is
    left than half of what the process holds, what is freed goes back after all.
    """
    global _stays, _watcher
    if libc := _glibc():
        _stays = keep
        if keep and _watcher is None:
            _watcher = threading.Thread(target=_give_back_where_tight, name="freed memory", daemon=True)
            _watcher.start()
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1 if keep else 2**20)
        libc.mallopt(mmap_threshold, 2**25 if keep else 2**20)  # glibc takes no higher one


def _give_back_where_tight() -> None:
    while True:
        if _stays and free_bytes() < memory_in_use() / 2:
            keep_freed_memory(False)
            give_back_freed_memory()
        time.sleep(LOOKS_EVERY)


def freed_memory_stays() -> bool:
    """Whether `keep_freed_memory(True)` was said last, on a system where it has an effect."""
    return _stays


def give_back_freed_memory() -> None:
    """On a CPU under glibc, hand back to the system what is free now: the rest is what the process holds."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" and not torch.accelerator.is_available() else None
    return libc if hasattr(libc, "mallopt") else None
