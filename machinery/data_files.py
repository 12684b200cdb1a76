"""Read a dataset from wherever the user says it is, and say which line or file is to blame where that fails.

    splits = read_splits("pairs.jsonl.gz")         # one file: {"train": Dataset}
    splits = read_splits("my_folder")              # files named after their split, or a dataset saved to disk
    splits = read_splits("org/name", config="en")  # a name on the hub

The reading is done by `datasets`; this file adds the kinds of path it does not take and replaces its errors, which
seldom name the line, by one sentence in a `ValueError`.
"""

import json
from pathlib import Path

import fsspec
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

READERS = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


def read_splits(name: str, config: str | None = None, streaming: bool = False) -> dict[str, Dataset | IterableDataset]:
    """The splits of a dataset by their names; a single file is the split "train".

    name: a file, a folder of files, a folder written by `save_to_disk`, or a name on the hub.
    config: the hub dataset's configuration. streaming: read rows as they are needed, not all at once.
    Raises ValueError with one sentence that names the file and, where there is one, the line.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _read_file(path, streaming)
    if path.is_dir():
        return _read_folder(path, config, streaming)
    if is_path_like(name):
        raise ValueError(f"there is no file or folder {name}")
    try:
        return load_dataset(name, name=config, streaming=streaming)
    except DatasetNotFoundError:
        raise ValueError(f"{name} is no file or folder here, and the hub has no dataset of that name for you") from None
    except (ConnectionError, OSError):
        raise ValueError(f"{name} is no file or folder here, and the hub cannot be reached") from None


def is_path_like(name: str) -> bool:
    """Whether a name can only be a path: hub names have at most one slash, and no ending of a data file."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or data_suffix(Path(name)) in READERS


def data_suffix(path: Path) -> str:
    """The ending that tells the format, that of a compression left aside: ".jsonl" for pairs.jsonl.gz."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() in COMPRESSIONS else path.suffix.lower()


def _read_file(path: Path, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    if data_suffix(path) not in READERS:
        raise ValueError(f"{path} is none of {', '.join(READERS)} (or one of these with {', '.join(COMPRESSIONS)})")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    reader, options = READERS[data_suffix(path)]
    try:
        return load_dataset(reader, data_files={"train": str(path)}, streaming=streaming, **options)
    except Exception as error:  # `datasets` raises what its readers raise: a dozen kinds
        raise ValueError(_find_fault(path) or f"{path} cannot be read: {_first_line(error)}") from error


def _read_folder(path: Path, config: str | None, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    if (path / "dataset_dict.json").is_file():
        return load_from_disk(str(path))
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return {"train": load_from_disk(str(path))}
    files = sorted(file for file in path.rglob("*") if file.is_file() and data_suffix(file) in READERS)
    if not files:
        raise ValueError(f"the folder {path} holds no data: no file that ends in {', '.join(READERS)}")
    try:
        return load_dataset(str(path), name=config, streaming=streaming)
    except Exception as error:
        fault = next(filter(None, map(_find_fault, files)), None)
        raise ValueError(fault or f"the folder {path} cannot be read: {_first_line(error)}") from error


def _find_fault(path: Path) -> str | None:
    """Read a JSON file again, slowly, to find the line that `datasets` stumbled over."""
    if data_suffix(path) not in (".json", ".jsonl", ".ndjson"):
        return None
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 text (byte {error.start})"
    except (OSError, EOFError) as error:
        return f"{path} cannot be unpacked: {_first_line(error)}"
    if not text.strip() or text.strip() in ("[]", "{}"):
        return f"{path} holds no rows"
    lines = [text] if text.lstrip().startswith("[") else text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            return f"{path}, line {number + error.lineno - 1}: not JSON ({error.msg})"
        if len(lines) > 1 and not isinstance(row, dict):
            return f"{path}, line {number}: a JSON object is needed, this is a {type(row).__name__}"
    return None


def _first_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
