"""From any source of preference rows to datasets of sound pairs: read, convert, examine, format, hold out, save.

    train, held_out, reports, notes = load_pairs("pairs.csv", tokenizer, format_pair, held_out_share=0.1)
    train                            # a Dataset of prompt, chosen, rejected and the rows they came from
    reports["train"]["verdict"]      # what the examination says

A row walks down this room: files.py reads it, pairs.py makes a pair of it by a reading, doctor.py examines the pair,
store.py keeps it, formatting.py writes it in the tokenizer's form, report.py sums up. What the user can put right is a
UserError of one sentence. Nothing is printed: what is to be said comes back as notes.
"""

import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState
from datasets import Dataset
from trl import get_dataset

from ..common.errors import UserError
from ..common.kept_files import size_on_disk
from ..common.safe_text import first_line, progress_bar
from ..readings.convert import reading_of_function
from ..readings.reading import KINDS, Reading, schemas
from ..readings.recognise import belonging, doubt, recognise
from . import store
from .doctor import KEEPABLE, Checkup, what_fails
from .files import RowSource, open_splits, wrap_splits
from .formatting import form_for, format_pairs
from .pairs import PAIRINGS, make_pairs, refuse_unreadable
from .report import summary, to_look_at
from .stream import first_kinds, stream_pairs


def load_pairs(
    source,
    tokenizer,
    format_pair: Callable,
    *,
    train_split: str = "train",
    test_split: str = "test",
    config: str | None = None,
    streaming: bool = False,
    encoding: str = "utf-8",
    **how,
) -> tuple[Dataset | None, Dataset | None, dict, list[str]]:
    """The pairs to train on, those held out (None where nothing is), a report by split, and what is to be said.

    source: a file, folder or hub name, or a mixture as TRL's recipes describe it (DatasetMixtureConfig). tokenizer: gets
    a plain chat template if it has none and the pairs are conversations; None only examines the texts.
    format_pair(pair, tokenizer, as_turns, max_prompt_length): writes a pair in the tokenizer's form, see
    `formatting.format_pairs`. config: of a hub dataset. encoding: of text files. streaming: pairs as they are read,
    without a report.
    how: dataset_format ("auto", one of KINDS, a schema, or a function from a row to {"prompt", "chosen", "rejected"}),
    columns ({our name: yours}), verdict ({value: what it means}), pairing and min_margin (of several scored answers),
    held_out_share (of the prompts, where there is no test split), keep_findings (which drop nothing), skip_bad_rows,
    keep_plain, max_prompt_length, max_length, look_at (how many pairs to examine in tokens; all by default), num_proc, seed, save_cleaned (a .jsonl
    file to write).
    """
    # Bars for what takes seconds, none for what takes a moment.
    is_small = isinstance(source, str) and Path(source).exists() and size_on_disk(Path(source)) < 20e6
    is_quiet = is_small or not sys.stderr.isatty()
    (datasets.disable_progress_bars if is_quiet else datasets.enable_progress_bars)()
    try:
        splits, others = find_splits(
            source, train_split, test_split, config, streaming, encoding, seed=how.get("seed", 0)
        )
        if streaming:
            if how.get("save_cleaned"):
                raise UserError("--save_cleaned writes what was read whole, so it goes without --dataset_streaming.")
            _check(how.get("pairing", PAIRINGS[0]), how.get("keep_findings") or (), how.get("held_out_share", 0.0))
            if tokenizer is None:
                raise UserError("--check_only reads all rows, so it goes without --dataset_streaming.")
            notes, pairs, reports = [], [None, None], {}
            asked = {name: how[name] for name in ("dataset_format", "columns", "verdict") if name in how}
            readings = [find_reading(rows, **asked) for rows in splits.values()]
            seen = [first_kinds(rows, reading, **how) for rows, reading in zip(splits.values(), readings, strict=True)]
            kinds = set().union(*seen)  # all splits get one form
            for number, (rows, reading) in enumerate(zip(splits.values(), readings, strict=True)):
                pairs[number], said = stream_pairs(rows, reading, kinds, tokenizer, format_pair, **how)
                settled = (how.get("pairing", PAIRINGS[0]), how.get("min_margin", 0.0), how.get("columns") or {})
                notes += [*said, *without_effect(reading, *settled)]
        else:
            pairs, reports, notes = _load_whole(splits, tokenizer, format_pair, **how)
    except UserError as error:
        text = str(error)
        is_named = str(source) in text or text.startswith(("--", "datasets,"))
        raise UserError(text if is_named else f"--dataset_name {source}: {text}") from error
    if pairs[1] is None:
        notes.append(f"No split {test_split!r}: nothing is held out, and the prompts shown are training prompts.")
        if others:
            notes.append(f"There is {', '.join(sorted(others))}: name it by --dataset_test_split.")
    return *pairs, reports, notes


def find_splits(
    source,
    train: str,
    test: str,
    config: str | None = None,
    streaming: bool = False,
    encoding: str = "utf-8",
    seed: int = 0,
):
    """The training split and, where there is one, the test split, as {name: RowSource}, in this order; other splits' names."""
    try:
        if isinstance(source, str):
            splits = open_splits(source, config, streaming, encoding)
        else:
            splits = wrap_splits(_mixture(source, seed), "mixture")
    except (ValueError, OSError) as error:
        raise UserError(f"{str(error).rstrip('.')}.") from error
    if train not in splits:
        raise UserError(f"there is no split {train!r} in it, but {', '.join(splits)}. Choose by --dataset_train_split.")
    return {split: splits[split] for split in (train, test) if split in splits}, splits.keys() - {train, test}


def _mixture(source, seed: int) -> dict:
    """TRL's, which draws its `test_split_size` from NumPy's state: with the seed, and so in every process the same."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        return get_dataset(source)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"datasets, the mixture of the recipe: {first_line(error)}.") from error
    finally:
        np.random.set_state(state)


def find_reading(
    rows: RowSource, dataset_format: str | Callable = "auto", columns: dict | None = None, verdict: dict | None = None
) -> Reading:
    """The reading of a split, from its first rows, or as the user says."""
    if callable(dataset_format):
        return reading_of_function(dataset_format, getattr(dataset_format, "__name__", "your converter"))
    known = ["auto", *KINDS, *(name for name in schemas() if name not in KINDS)]
    if dataset_format not in known:
        raise UserError(f"--dataset_format {dataset_format}: there are {', '.join(known)}.")
    try:
        read = list(islice(rows, 100))
        first = [row.value for row in read if row.fault is None and isinstance(row.value, dict)]
        if not first and read:
            fault = read[0].fault or "is no object with named columns"
            raise UserError(f"{read[0].where}: {fault}.")
        if not first:
            raise UserError(f"{rows.name}: there are no rows in it.")
        return recognise(first, columns, verdict, None if dataset_format == "auto" else dataset_format)
    except UserError:
        raise
    except ValueError as error:
        text = str(error)
        raise UserError(f"{rows.name}: {text}" + "." * ("\n" not in text)) from error


def _load_whole(
    splits: dict[str, RowSource],
    tokenizer,
    format_pair: Callable,
    *,
    held_out_share: float = 0.0,
    keep_findings=(),
    keep_plain: bool = False,
    save_cleaned: str | None = None,
    seed: int = 0,
    **how,
) -> tuple[list[Dataset | None], dict, list[str]]:
    """The sound pairs of the training split and of the held-out one, a report by split, and what is to be said.

    splits: the training split first. how: see `load_pairs`.
    """
    _check(how.get("pairing", PAIRINGS[0]), keep_findings or (), held_out_share)
    train, *others = splits
    cleaned = {split: store.cleaned_files(save_cleaned, split, train) for split in splits} if save_cleaned else {}
    lengths = {
        name: how.pop(name) for name in ("look_at", "num_proc", "max_prompt_length", "max_length") if name in how
    }
    checkups, read, pairs, reports, notes = {}, {}, {}, {}, []
    # On Windows a file that is still mapped cannot be deleted.
    with tempfile.TemporaryDirectory(prefix="dpo-", ignore_cleanup_errors=True) as scratch:
        for split in (*others, train):  # the test split first: its prompts must not be trained on
            rows, elsewhere = splits[split], checkups[others[0]].prompts if checkups else ()
            checkup = checkups[split] = Checkup(elsewhere, keep_findings, keep_plain)
            read[split] = _read_split(rows, checkup, Path(scratch) / f"{split}.arrow", seed=seed, **how)
        kinds = set().union(*(checkup.kinds for checkup in checkups.values()))  # all splits get one form
        for split in read:
            rows, checkup = splits[split], checkups[split]
            pairs[split], reports[split], said = _format_split(
                rows, checkup, read[split], kinds, tokenizer, format_pair, keep_plain=keep_plain, **lengths, **how
            )
            notes += said
            if split in cleaned:
                dropped = checkup.dropped_rows()
                if PartialState().is_main_process:
                    store.save_cleaned(*cleaned[split], pairs[split], dropped, rows)
                path, beside = cleaned[split]
                why = "rows with the reason to drop each"
                notes.append(f"Saved: {path}, {len(pairs[split]):,} sound pairs; {beside}, {len(dropped):,} {why}.")
        if not others:
            kept, held = store.hold_out(checkups[train].sound(), checkups[train].prompt_of, held_out_share, seed)
            if held:
                notes.append(f"Held out: {len(held):,} pairs, by prompt: no prompt is on both sides.")
                return [pairs[train].select(kept), pairs[train].select(held)], reports, notes
    return [pairs[train], pairs[others[0]] if others else None], reports, notes


def _check(pairing: str, keep_findings, held_out_share: float) -> None:
    for name, values, known in (("pairing", [pairing], PAIRINGS), ("keep_findings", keep_findings, KEEPABLE)):
        for value in values:
            if value not in known:
                raise UserError(f"--{name} {value}: there are {', '.join(known)}.")
    if not 0 <= held_out_share < 1:
        raise UserError(f"--held_out_share must be at least 0 and below 1, not {held_out_share}.")


def _read_split(
    rows: RowSource,
    checkup: Checkup,
    kept: Path,
    *,
    dataset_format: str | Callable = "auto",
    columns: dict[str, str] | None = None,
    verdict: dict[str, str] | None = None,
    pairing: str = PAIRINGS[0],
    min_margin: float = 0.0,
    skip_bad_rows: bool = False,
    seed: int = 0,
) -> tuple[Reading, Dataset, str]:
    """How a split is read, its sound pairs as they were read, and a hash of all that were.

    kept: a file for its pairs. See `load_pairs` for the rest.
    """
    reading = find_reading(rows, dataset_format, columns, verdict)
    made = make_pairs(_with_bar(rows), reading, pairing, min_margin, seed)
    try:
        found, digest = store.spool(made, checkup.see if skip_bad_rows else _refusing_unreadable(checkup.see), kept)
    except ValueError as error:
        raise UserError(str(error).rstrip(".") + ".") from error
    if said := doubt(reading, checkup, columns, verdict):
        raise UserError(f"{rows.name}: {said}")
    return reading, found.select(checkup.sound()), digest


def _format_split(
    rows: RowSource,
    checkup: Checkup,
    read: tuple[Reading, Dataset, str],
    kinds: set[str],
    tokenizer,
    format_pair: Callable,
    *,
    columns: dict[str, str] | None = None,
    pairing: str = PAIRINGS[0],
    min_margin: float = 0.0,
    look_at: int | None = None,
    num_proc: int | None = None,
    keep_plain: bool = False,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    **of_reading,
) -> tuple[Dataset, dict, list[str]]:
    """The sound pairs of one split in the form that training takes, its report, and what is to be said.

    read: of `_read_split`, whose arguments of_reading are. kinds: what was seen in all splits, so that one form fits all.
    """
    (reading, found, digest), sound, notes = read, checkup.sound(), []
    if tokenizer is not None and sound:
        as_turns, notes = form_for(tokenizer, kinds, rows.name, keep_plain)
        # sound: which of the pairs that were read; the same file may come with other findings kept
        key = [digest, sound]
        step = 1 if look_at is None else max(1, len(found) // look_at)
        found, facts = format_pairs(
            found,
            key,
            rows.name,
            checkup.kinds,
            tokenizer,
            format_pair,
            as_turns,
            step,
            num_proc,
            max_prompt_length,
            max_length,
        )
        for number, seen in zip(sound, facts, strict=True):
            checkup.see_tokens(number, seen)
        found = found.select([place for place, number in enumerate(sound) if checkup.fate[number] is None])
    about = {"source": rows.name, "shape": reading.heading, "reading": in_report(reading)}
    left = {"columns_left_behind": list(reading.left_behind), "columns_that_may_belong": belonging(reading)}
    report = about | checkup.report(left)
    if not report["pairs"]:
        raise UserError(f"{rows.name}: no pair can be used. {what_fails(report)}")
    notes += _what_to_say(rows.name, report) + without_effect(reading, pairing, min_margin, columns or {})
    return found, report, notes


def in_report(reading: Reading) -> dict:
    """A reading as data_report.json keeps it."""
    values = dict(reading.tally.most_common(20))
    facts = {"says": reading.says, "flags": reading.flags, "schema": reading.schema or None, "values": values}
    return facts | {"is_guess": reading.is_guess and bool(reading.meaning)}


def without_effect(reading: Reading, pairing: str, min_margin: float, columns: dict[str, str]) -> list[str]:
    """The flags that do nothing on this data."""
    if reading.kind == "converter":
        given = ["--columns"] * bool(columns) + [f"--pairing {pairing}"] * (pairing != PAIRINGS[0])
        return [f"{' and '.join(given)} has no effect: {reading.title}."] if given else []
    read = {*reading.parts.values(), *reading.meaning.values()}
    unread = [f"{ours}={theirs}" for ours, theirs in columns.items() if theirs not in read]
    notes = [f"--columns {','.join(unread)} has no effect: read as {reading.says}."] if unread else []
    if pairing != "best_worst" and not reading.has_choice:
        notes.append(f"--pairing {pairing} has no effect: a row has one better and one worse answer.")
    if min_margin and not reading.has_scores:
        notes.append(f"--min_margin {min_margin:g} has no effect: there are no scores.")
    return notes


def _what_to_say(name: str, report: dict) -> list[str]:
    """What was found in a split, for the reader."""
    reading = report["reading"]
    told = " (told from names and values)" * reading["is_guess"]
    notes = [f"Data: {name}: {summary(report)}.{to_look_at(report)}"]
    if " = " in reading["says"]:  # else each column is called what it is
        notes.append(f"  read as {reading['says']}{told}")
    lonely = report["findings"].get("no_partner", {"share": 0.0})
    if lonely["share"] > 0.5:
        notes.append(f"  {lonely['meaning']}")
    if report["columns_left_behind"]:
        notes.append(f"  columns not used: {', '.join(report['columns_left_behind'])}")
    return notes


def _with_bar(rows: RowSource):
    return progress_bar(rows, f"reading {rows.name}", delay=2, disable=not PartialState().is_main_process)


def _refusing_unreadable(see: Callable[[dict], bool]) -> Callable[[dict], bool]:
    def checked(made: dict) -> bool:
        refuse_unreadable(made)
        return see(made)

    return checked
