"""Read rows from wherever the user says they are, and say of each row where it stood and whether it could be read.

    splits = open_splits("pairs.jsonl.gz")            # one file: {"train": RowSource}
    splits = open_splits("my_folder")                 # shards, told apart by their names; or a dataset saved to disk
    splits = open_splits("org/name", config="en")     # a name on the hub
    for row in splits["train"]:                       # as often as you like; rows are read one at a time
        print(row.where, row.value, row.fault)        # "pairs.jsonl, line 12", {...}, None

A file that is not what its name says (a pointer of Git LFS, another compression, another encoding, a web page) is
called what it is. JSON is read by `json`, CSV by `csv`, Parquet by `pyarrow`, saved and hub datasets by `datasets`.
`datasets` could read the files too, but it stops at the first row whose types differ from those before it, fills in the
keys that other rows have, and seldom names the line. Every error is a `ValueError` of one sentence; a row that cannot be read is a `Row`
with a `fault`, and the reading goes on behind it where the format allows.
"""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from datasets import load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError

from ..common.bounds import check_file, fits_within, read_json
from ..common.kept_files import size_on_disk
from ..common.safe_text import first_line
from .limits import MOST_BLANK_LINES, MOST_OF_A_ROW, Lines, half_of_memory, whole, widest_row

logger = logging.getLogger("dpo")


class Row(NamedTuple):
    """A row as it was read."""

    where: str  # "pairs.jsonl, line 12"
    value: Any  # usually a dictionary; the raw text where it could not be read
    fault: str | None = None  # why it could not be read


class RowSource:
    """Rows that can be gone through more than once."""

    def __init__(self, name: str, read: Callable[[], Iterable[Row]]):
        self.name, self._read = name, read

    def __iter__(self) -> Iterator[Row]:
        return iter(self._read())


COMPRESSIONS = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")),
}
BROKEN_ARCHIVE = (EOFError, OSError, zlib.error, lzma.LZMAError)
WORDS_FOR = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
SPLIT_WORDS = {word: split for split, words in WORDS_FOR.items() for word in words}
ABOUT = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "metadata.json"}  # not rows
OF_A_ROW = {"prompt", "question", "instruction", "query", "chosen", "rejected", "messages", "conversations"}
# How files begin, by the ending of their names; and what else may stand there.
MAGIC = {
    ".gz": (b"\x1f\x8b", "compressed by gzip"),
    ".bz2": (b"BZh", "compressed by bzip2"),
    ".xz": (b"\xfd7zXZ", "compressed by xz"),
    ".zst": (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    ".parquet": (b"PAR1", "Parquet"),
}
STRANGE = {
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself; fetch that by git lfs pull",
    b"pk\x03\x04": "is a zip archive, or a spreadsheet; unpack it, or save it as CSV",
    b"<!doctype html": "is a web page and no data; a download needed a login, perhaps",
    b"<html": "is a web page and no data; a download needed a login, perhaps",
}


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return made


# pandas writes NaN where a row has nothing
JSON = json.JSONDecoder(
    parse_constant=lambda name: None if name == "NaN" else float(name), object_pairs_hook=_no_key_twice
)
csv.field_size_limit(MOST_OF_A_ROW)  # the default refuses fields over 131,072 characters


def open_splits(
    name: str, config: str | None = None, streaming: bool = False, encoding: str = "utf-8"
) -> dict[str, RowSource]:
    """The splits of a dataset by their names; a single file is the split "train".

    name: a file, a folder of files, a folder written by `save_to_disk`, or a name on the hub. encoding: of text files.
    config, streaming: for names on the hub, as `datasets.load_dataset` has them; files are read row by row anyway.
    """
    try:
        "".encode(encoding)  # also refuses codecs that are no text encodings, such as zlib
    except (LookupError, UnicodeError):
        raise ValueError(
            f"--encoding {encoding[:50]}: there is no such encoding; there are utf-16, cp1252 and others"
        ) from None
    path = Path(name).expanduser()
    if os.path.lexists(path) and not path.is_dir():
        check_file(path)
        return {"train": _open_files(name, [path], encoding)}
    if path.is_dir():
        return _open_folder(name, path, encoding)
    # Names on the hub have at most one slash, and no ending of a data file.
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or data_suffix(path) in READERS:
        raise ValueError(f"there is no file or folder {name}")
    try:
        return wrap_splits(load_dataset(name, name=config, streaming=streaming), name)
    except DatasetNotFoundError:
        raise ValueError(f"{name} is no file or folder here, and the hub has no dataset of that name for you") from None
    except DatasetGenerationError as error:
        raise ValueError(f"{name} cannot be read: {first_line(error.__cause__ or error)}") from error
    except (RuntimeError, DatasetsError, OSError) as error:
        if isinstance(error, ConnectionError) or "connect" in str(error).lower():
            raise ValueError(f"{name} is no file or folder here, and the hub cannot be reached") from None
        raise ValueError(f"{name} cannot be loaded: {first_line(error)}") from error


def wrap_splits(splits: dict, name: str) -> dict[str, RowSource]:
    """Splits that `datasets` has loaded, as sources of rows."""

    def source(split: str, dataset) -> RowSource:
        where, rows = f"{name}, {split}", dataset.with_format(None)  # saved as arrays or tables, it would give no texts
        return RowSource(where, lambda: (Row(f"{where}, row {n}", drop_fillings(row)) for n, row in enumerate(rows)))

    return {split: source(split, dataset) for split, dataset in splits.items()}


def drop_fillings(value):
    """A value without the None that Arrow puts where another row has a key and this one has not."""
    if isinstance(value, dict):
        return {key: drop_fillings(part) for key, part in value.items() if part is not None}
    return [drop_fillings(part) for part in value] if isinstance(value, list) else value


def data_suffix(path: Path) -> str:
    """The ending that tells the format, that of a compression left aside: ".jsonl" for pairs.jsonl.gz."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() in COMPRESSIONS else path.suffix.lower()


def _open_files(name: str, files: list[Path], encoding: str = "utf-8") -> RowSource:
    for path in files:
        if data_suffix(path) not in READERS:
            raise ValueError(f"{path} is none of {', '.join(READERS)} (or one of these with {', '.join(COMPRESSIONS)})")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty")
        _check_beginning(path, encoding)
    return RowSource(name, lambda: (row for path in files for row in READERS[data_suffix(path)](path, encoding)))


def _check_beginning(path: Path, encoding: str) -> None:
    """Refuse a file that is something else than its name says."""
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, what in STRANGE.items():
        if head.lstrip().lower().startswith(magic):
            raise ValueError(f"{path} {what}")
    named = path.suffix.lower()
    begins = next((ending for ending, (magic, _) in MAGIC.items() if head.startswith(magic)), "")
    if begins not in ("", named):
        raise ValueError(f"{path} is {MAGIC[begins][1]}; give it a name that ends in {begins}")
    if named in MAGIC and not begins:
        raise ValueError(f"{path} is not {MAGIC[named][1]}, as its name says")
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[1::2].count(0) > len(head) / 4
    if not begins and encoding == "utf-8" and is_wide:
        raise ValueError(f"{path} is written in UTF-16; read it by --encoding utf-16")


def _guess(content: bytes) -> str:
    """A word about the encoding that bytes may be in, and the flag."""
    foreign = sum(byte > 127 for byte in content)
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        foreign = len(content)
    if foreign < len(content) / 4:  # accents here and there
        return "; it may be Windows-1252: --encoding cp1252"
    return "; say which encoding it is by --encoding (gb18030, cp932, cp1251, ...)"


def _open_folder(name: str, path: Path, encoding: str = "utf-8") -> dict[str, RowSource]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _check_inside(path)
        try:
            with fits_within(half_of_memory() + size_on_disk(path), str(path)):
                saved = load_from_disk(str(path))
        except (OSError, ValueError, KeyError, RecursionError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} is a saved dataset that cannot be read: {first_line(error)}") from error
        return wrap_splits(saved if isinstance(saved, dict) else {"train": saved}, name)
    files = _data_files(path.glob("*"), path) or _data_files(path.rglob("*"), path)
    if not files:
        raise ValueError(f"the folder {path} holds no data: no file that ends in {', '.join(READERS)}")
    shards: dict[str, list[Path]] = {}
    for file in files:
        shards.setdefault(split_of(file.relative_to(path)) or "", []).append(file)
    if list(shards) == [""]:
        return {"train": _open_files(name, files, encoding)}
    for file in shards.pop("", []):
        logger.warning(f"{file} is not read: its name does not say to which split it belongs, as those beside it do.")
    return {split: _open_files(f"{name}, {split}", shards[split], encoding) for split in WORDS_FOR if split in shards}


def _check_inside(folder: Path) -> None:
    """Refuse a saved dataset that names splits or files outside of its own folder."""
    for about in (*folder.rglob("dataset_dict.json"), *folder.rglob("state.json")):
        try:
            content = read_json(about, 2**26)
            named = content["splits"] if "splits" in content else [file["filename"] for file in content["_data_files"]]
            inside = [".." not in Path(name).parts and not Path(name).is_absolute() for name in named]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{folder} is a saved dataset that cannot be read: {about.name} is broken") from error
        if not all(inside):
            raise ValueError(f"{about} leads out of its folder, to {named[inside.index(False)]}")


def _data_files(paths: Iterable[Path], folder: Path) -> list[Path]:
    files = [path for path in paths if path.is_file() and data_suffix(path) in READERS and path.name not in ABOUT]
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def split_of(path: Path) -> str | None:
    """The split that a file's name, or the name of a folder around it, speaks of."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def _open(path: Path):
    return COMPRESSIONS[path.suffix.lower()](path) if path.suffix.lower() in COMPRESSIONS else open(path, "rb")


@contextmanager
def _unpacked(path: Path):
    """A file's bytes, unpacked. Raises ValueError where a broken archive ends them early."""
    try:
        with _open(path) as file:
            yield file
    except BROKEN_ARCHIVE as error:
        raise ValueError(f"{path} cannot be unpacked: {first_line(error)}") from error


def _json_rows(path: Path, encoding: str) -> Iterator[Row]:
    """One object a line, or objects over several lines, or one list of objects, or a table; the content tells which."""
    with _unpacked(path) as file:
        head = file.read(65536)
    head = head.decode(encoding, "ignore").removeprefix("\ufeff").lstrip()
    if not head:
        return
    first, _, rest = head.partition("\n")
    is_whole = not rest.strip() or not first.rstrip().endswith(
        ("{", ",", "[", ":")
    )  # an object over several lines is not
    is_lines = head[:1] != "[" and (
        is_whole if data_suffix(path) != ".json" else bool(rest.strip()) and _is_object(first)
    )
    yield from _json_lines(path, encoding) if is_lines else _json_document(path, encoding)


def _is_object(text: str) -> bool:
    try:
        return isinstance(JSON.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path, encoding: str) -> Iterator[Row]:
    number = 0
    try:
        with _open(path) as file:
            # Bytes where lines are bytes: so the line that is not UTF-8 is known, and those behind it are read.
            source = file if encoding == "utf-8" else io.TextIOWrapper(file, encoding=encoding, newline="\n")
            lines, last = Lines(path, source), 0
            for number, line in enumerate(lines, start=1):
                lines.taken = 0
                where = f"{path}, line {number}"
                try:
                    text = line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text := text.strip().removeprefix("\ufeff"):
                        last = number
                        yield Row(where, JSON.decode(text))
                except UnicodeDecodeError as error:
                    fault = f"is not UTF-8 text (byte {error.start}){_guess(line)}"
                    yield Row(where, line.decode("utf-8", "replace"), fault)
                except json.JSONDecodeError as error:
                    yield Row(where, text, f"is not JSON ({error.msg}, column {error.colno})")
                except ValueError as error:  # a key twice, or a number of thousands of digits
                    yield Row(where, text, f"cannot be read ({first_line(error)})")
                except RecursionError:
                    yield Row(where, text, "is nested too deeply")
                if number - last > MOST_BLANK_LINES:
                    raise ValueError(f"{path}: a million blank lines follow line {last}")
    except UnicodeError as error:
        raise ValueError(f"{path} is not {encoding} text, behind line {number}") from error
    except BROKEN_ARCHIVE as error:
        yield Row(f"{path}, after line {number}", "", f"cannot be unpacked further ({first_line(error)})")


def _json_document(path: Path, encoding: str) -> Iterator[Row]:
    with _unpacked(path) as file:
        content = whole(path, file)
    try:
        text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding).removeprefix("\ufeff")
        documents = list(_objects_in(text))
    except UnicodeError as error:
        raise ValueError(f"{path} is not {encoding.upper()} text (byte {error.start}){_guess(content)}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    for number, value in enumerate(_rows_of(documents[0], path) if len(documents) == 1 else documents):
        yield Row(f"{path}, row {number}", value)


def _objects_in(text: str) -> Iterator[Any]:
    """A JSON document, or several objects one after another, over as many lines as they take."""
    place = len(text) - len(text.lstrip())
    while True:
        value, end = JSON.raw_decode(text, place)
        yield value
        place = end + len(text[end:]) - len(text[end:].lstrip())
        if place >= len(text):
            return
        if not isinstance(value, dict):
            raise json.JSONDecodeError("Extra data", text, place)


def _rows_of(document, path: Path) -> list:
    """The rows of a document: a list, an object that holds such a list, or a table as pandas writes it."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no rows: a list of objects is needed")
    lists = {k: v for k, v in document.items() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)}
    if len(lists) > 1 and len(lists) == len(document) and lists.keys() <= SPLIT_WORDS.keys():
        raise ValueError(f"{path} holds several splits ({', '.join(lists)}); put each into a file of its own name")
    if len(lists) == 1 and not document.keys() & OF_A_ROW:
        return next(iter(lists.values()))
    values = list(document.values())
    if {"columns", "data"} <= document.keys() <= {"columns", "data", "index"}:  # df.to_json(orient="split")
        names, rows = document["columns"], document["data"]
        is_table = isinstance(names, list) and isinstance(rows, list)
        if not is_table or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
            raise ValueError(f"{path} holds no rows: each under data needs a value for each of its columns")
        return [dict(zip(names, row, strict=True)) for row in rows]
    if values and all(isinstance(value, dict) and all(key.isdigit() for key in value) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)  # df.to_json()
        return [{name: value.get(key) for name, value in document.items()} for key in keys] or [document]
    if values and all(key.isdigit() and isinstance(value, dict) for key, value in document.items()):
        return values  # df.to_json(orient="index")
    is_table = len(values) > 1 and all(isinstance(v, list) and len(v) == len(values[0]) > 1 for v in values)
    if is_table and not any(isinstance(item, dict) for value in values for item in value):  # those would be turns
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return [document]


def _csv_rows(path: Path, encoding: str, delimiter: str = ",") -> Iterator[Row]:
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    try:
        with _unpacked(path) as content, io.TextIOWrapper(content, encoding=codec, newline="") as lines:
            lines = Lines(path, lines)
            first = next(lines, "").removeprefix("\ufeff")
            if delimiter == "," not in first:  # spreadsheets write ; where 1,5 is a number
                delimiter = next((mark for mark in ";\t" if mark in first), ",")
            try:
                header = next(csv.reader([first], strict=True, delimiter=delimiter), [])
            except csv.Error as error:
                raise ValueError(f"{path}, line 1: is not CSV: {error}") from error
            if len(set(header)) < len(header):
                raise ValueError(f"{path}: a column name stands twice in the first line ({', '.join(header)})")
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            while True:
                where = f"{path}, line {reader.line_num + 2}"  # it counts from 0, and has not seen the header
                lines.taken = 0
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    is_open = "end of data" in str(error)
                    yield Row(where, "", "opens a quote that is never closed" if is_open else f"is not CSV: {error}")
                    continue
                if cells is None:
                    return
                if len(cells) == len(header):
                    yield Row(where, dict(zip(header, cells, strict=True)))
                elif cells:
                    yield Row(where, cells, f"has {len(cells)} fields where the header has {len(header)}")
    except UnicodeError as error:
        with _unpacked(path) as content:
            hint = _guess(content.read(2**20)) or "; save it as UTF-8"
        raise ValueError(f"{path} is not {encoding.upper()} text ({first_line(error)}){hint}") from error


def _parquet_rows(path: Path, _: str) -> Iterator[Row]:
    number = 0
    try:
        with _open(path) as file:
            source = file if path.suffix.lower() not in COMPRESSIONS else io.BytesIO(whole(path, file))
            table = pyarrow.parquet.ParquetFile(source)
            columns = table.schema_arrow.names
            if twice := [name for name in columns if columns.count(name) > 1]:
                raise ValueError(f"{path}: the column {twice[0]} stands twice in it")
            # One value that a column holds a thousand times is kept once, and comes out of Arrow a thousand times.
            batches = iter(
                table.iter_batches(
                    batch_size=1000 if widest_row(table) * 1000 < MOST_OF_A_ROW else 1, use_threads=False
                )
            )
            while True:
                with fits_within(half_of_memory(), f"{path}, behind row {number}"):
                    rows = next(batches, None)
                    if rows is not None and rows.nbytes > MOST_OF_A_ROW * rows.num_rows:
                        raise ValueError(
                            f"{path}, row {number}: a row of more than {MOST_OF_A_ROW / 2**20:.0f} MiB is no pair"
                        )
                    rows = None if rows is None else rows.to_pylist()
                if rows is None:
                    return
                for value in rows:
                    yield Row(f"{path}, row {number}", drop_fillings(value))
                    number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError, *BROKEN_ARCHIVE) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".ndjson": _json_rows,
    ".csv": _csv_rows,
    ".tsv": lambda path, encoding: _csv_rows(path, encoding, "\t"),
    ".parquet": _parquet_rows,
}
