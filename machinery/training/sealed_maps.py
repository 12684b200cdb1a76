"""What TRL itself keeps on disk of a data set, tokens and reference log-probs, held to checksums as our own files are.

    class MyTrainer(SealedMaps, DPOTrainer): ...

TRL maps a data set with the `datasets` library, which takes a file of an earlier run by its name alone. Here it is
taken only if it is, byte for byte, what was written. Where the folder can no longer be written, the tokens go to a
temporary one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.fingerprint import get_temporary_cache_files_directory
from filelock import FileLock

from ..common.kept_files import forget_damaged, going_on_without, seal


class SealedMaps:
    """Before TRL's DPOTrainer among a class's bases: tokens that an earlier run has kept are compared with their seals."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        def prepare():
            return super(SealedMaps, self)._prepare_dataset(dataset, processing_class, args, dataset_name)

        if not isinstance(dataset, Dataset) or not dataset.cache_files:
            return prepare()
        if args.world_size > 1:  # whose first process makes what all others wait for
            with sealed_maps(dataset):
                return prepare()
        return made_with_seals(dataset, prepare)


def made_with_seals(dataset: Dataset, make: Callable[[], Dataset]) -> Dataset:
    """What a single process makes of a data set by maps: taken from disk as it was sealed, or made anew, kept or not."""
    if dataset.cache_files:
        with going_on_without("Tokens", Path(dataset.cache_files[0]["filename"]).parent), sealed_maps(dataset):
            return make()
    with nothing_kept():
        return make()


@contextmanager
def sealed_maps(dataset: Dataset) -> Iterator[None]:
    """Each file in which a map of this data set, or of one made from it, is kept is compared with its seal, or sealed.

    The first of several processes does that; what it has not made, each makes for itself. dataset: one with files. Raises OSError.
    """
    find, found, intact = Dataset._get_cache_file_path, [], []

    def find_sound(self, fingerprint: str) -> str:
        path = find(self, fingerprint)
        if path not in found and self.cache_files:
            found.append(path)
            forget_damaged(_files(path))
            intact.extend(_files(path))
        return path

    def find_made(self, fingerprint: str) -> str:
        path = Path(find(self, fingerprint))
        return str(path if path.exists() else Path(get_temporary_cache_files_directory(), path.name))

    if not PartialState().is_main_process:
        with _found_by(find_made):
            yield
        return
    lock = Path(dataset.cache_files[0]["filename"]).parent / f"{dataset._fingerprint}.map.lock"
    with FileLock(lock):  # between another run's writing and sealing
        with _found_by(find_sound):
            yield
        for file in (file for path in found for file in _files(path) if file not in intact):
            seal(file)


@contextmanager
def one_file_for_all(dataset: Dataset) -> Iterator[None]:
    """What the first of several processes keeps of one map, all others read; nobody else knows the file, and it goes.

    By themselves they would look where each keeps its own data, which is not one place where a cache cannot be written.
    """
    [path] = broadcast_object_list([dataset._get_cache_file_path(uuid4().hex)])
    with _found_by(lambda self, fingerprint: path):
        yield
    PartialState().wait_for_everyone()  # until all have read it
    if PartialState().is_main_process:
        with suppress(OSError):  # Windows keeps what is open
            Path(path).unlink(missing_ok=True)


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Maps of data sets go to a temporary folder, which this process takes with it, and come from nowhere else."""
    was_enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_caching()


@contextmanager
def _found_by(find: Callable[[Dataset, str], str]) -> Iterator[None]:
    """The `datasets` library asks this function where a map with a fingerprint is kept."""
    before = Dataset._get_cache_file_path
    Dataset._get_cache_file_path = find
    try:
        yield
    finally:
        Dataset._get_cache_file_path = before


def _files(path: str) -> list[Path]:
    """The file of a map, or one for each of the processes that made it."""
    kept = Path(path)
    return sorted(kept.parent.glob(f"{kept.stem}*{kept.suffix}"))
