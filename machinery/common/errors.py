"""What the user can put right, in code of their own too, and what only more memory can.

raise UserError("--beta must be above 0, not -1.")       # a script ends with this sentence and exit code 2
score = function_from("rules.py:score", "--judge")       # runs that file, as an import would
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch

# What PyTorch says where memory runs out on a CPU of Linux or Windows, and on MPS; it raises a bare RuntimeError.
MEMORY_MARKS = ("can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory")


class UserError(ValueError):
    """Something the user can put right: one or a few sentences that name it and the way out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or elsewhere."""
    is_elsewhere = isinstance(error, RuntimeError) and any(mark in str(error) for mark in MEMORY_MARKS)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_elsewhere


def function_from(where: str, flag: str) -> Callable:
    """The function NAME of a file, from "file.py:NAME". Raises UserError that begins with the flag.

    The file may import its neighbours, as when it is run by itself.
    """
    path, colon, name = where.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise UserError(f"{flag} {where}: name a file and a function in it, as in my_file.py:my_function")
    if not Path(path).is_file():
        raise UserError(f"{flag} {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    if (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)  # last, so that a neighbour takes the place of no library
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise UserError(f"{flag} {path} cannot be run: {in_one_line(error)}") from error
    found = getattr(module, name, None)
    if not callable(found) or isinstance(found, type):
        own = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == spec.name]
        own = [n for n in own if callable(vars(module)[n]) and not isinstance(vars(module)[n], type)]
        has = f"it has {', '.join(own)}" if own else "it has none"
        raise UserError(f"{flag} {path} has no function {name or '(no name given)'}: {has}")
    return found


def in_one_line(error: BaseException) -> str:
    """The kind of an error and what it says, without a full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
