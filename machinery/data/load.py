"""From any source of preference rows to datasets of sound pairs: read, convert, examine, format, hold out, save.

    splits, _ = find_splits("pairs.csv", "train", "test")
    [train, held_out], reports, notes = load_pairs(splits, tokenizer, format_pair, held_out_share=0.1)
    train                            # a Dataset of prompt, chosen, rejected and the rows they came from
    reports["train"]["verdict"]      # what the examination says

It stands on others: data_files.py reads, preference_shapes.py converts, data_doctor.py examines, data_tables.py sums
up, pair_store.py keeps, shorten.py shortens, kept_files.py bounds what stays on disk, safe_text.py words errors.
`format_pair(pair, tokenizer, as_turns, max_prompt_length)` writes a pair in the tokenizer's form.
What the user can put right is `Refused`, one sentence. Nothing is printed: what is to be said comes back as notes.
"""

import inspect
import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import datasets
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from ..common.kept_files import forget_oldest
from ..common.safe_text import first_line
from . import doctor as data_doctor
from . import shorten
from . import store as pair_store
from .doctor import KEEPABLE, TEMPLATE_ERRORS, Checkup, token_facts
from .files import RowSource, open_splits, wrap_splits
from .report import summary, to_look_at
from .shapes import PAIRINGS, SHAPES, Shape, make_pairs, recognise, shape_of_converter

logger = logging.getLogger("dpo")

MOST_BYTES = 2_000_000_000  # of formatted pairs that are kept on disk

# For base models: no token is added, because its embedding would be random. The EOS ends what is trained on.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


class Refused(ValueError):
    """The data cannot be used as they are; the message says why, and the way out."""


def find_splits(source, train: str, test: str, config: str | None = None, streaming: bool = False):
    """The training split and, where there is one, the test split, as {name: RowSource}, in this order; other splits' names.

    source: a path or hub name, or a dictionary of datasets that are loaded already.
    """
    try:
        splits = open_splits(source, config, streaming) if isinstance(source, str) else wrap_splits(source, "mixture")
    except (ValueError, OSError) as error:
        raise Refused(f"{error}.") from error
    if train not in splits:
        raise Refused(f"there is no split {train!r} in it, but {', '.join(splits)}. Choose by --dataset_train_split.")
    return {split: splits[split] for split in (train, test) if split in splits}, splits.keys() - {train, test}


def find_shape(rows: RowSource, dataset_format: str | Callable = "auto", columns: dict | None = None) -> Shape:
    """The shape of a split, from its first rows, or as the user says."""
    if callable(dataset_format):
        return shape_of_converter(dataset_format, getattr(dataset_format, "__name__", "your converter"))
    if dataset_format != "auto" and dataset_format not in SHAPES:
        raise Refused(f"--dataset_format {dataset_format}: there are auto, {', '.join(SHAPES)}.")
    try:
        read = list(islice(rows, 100))
        first = [row.value for row in read if row.fault is None and isinstance(row.value, dict)]
        if not first and read:
            fault = read[0].fault or "is no object with named columns"
            raise Refused(f"{read[0].where}: {fault}.")
        if not first:
            raise Refused(f"{rows.name}: there are no rows in it.")
        return recognise(first, columns, None if dataset_format == "auto" else dataset_format)
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"{rows.name}: {error}.") from error


def load_pairs(
    splits: dict[str, RowSource],
    tokenizer,
    format_pair: Callable,
    *,
    dataset_format: str | Callable = "auto",
    columns: dict[str, str] | None = None,
    pairing: str = "best_worst",
    min_margin: float = 0.0,
    held_out_share: float = 0.0,
    skip_bad_rows: bool = False,
    keep_findings=(),
    look_at: int | None = None,
    seed: int = 0,
    save_cleaned: str | None = None,
    num_proc: int | None = None,
    **form,
) -> tuple[list[Dataset | None], dict, list[str]]:
    """The sound pairs of the training split and of the held-out one, a report by split, and what is to be said.

    splits: the training split first. See dpo_utils.load_preferences for the rest.
    """
    for name, values, known in (("pairing", [pairing], PAIRINGS), ("keep_findings", keep_findings or (), KEEPABLE)):
        for value in values:
            if value not in known:
                raise Refused(f"--{name} {value}: there are {', '.join(known)}.")
    if not 0 <= held_out_share < 1:
        raise Refused(f"--held_out_share must be at least 0 and below 1, not {held_out_share}.")
    train, *others = splits
    cleaned = {split: _cleaned_files(save_cleaned, split, train) for split in splits} if save_cleaned else {}
    checkups: dict[str, Checkup] = {}
    pairs: dict[str, Dataset] = {}
    reports, notes = {}, []
    # On Windows a file that is still mapped cannot be deleted.
    with tempfile.TemporaryDirectory(prefix="dpo-", ignore_cleanup_errors=True) as scratch:
        for split in (*others, train):  # the test split first: its prompts must not be trained on
            rows = splits[split]
            shape = find_shape(rows, dataset_format, columns)
            checkup = checkups[split] = Checkup(checkups[others[0]].prompts if checkups else (), keep_findings)
            made = make_pairs(_with_bar(rows), shape, pairing, min_margin, seed)
            see = checkup.see if skip_bad_rows else _refusing_unreadable(checkup.see)
            try:
                found, digest = pair_store.spool(made, see, Path(scratch) / f"{split}.arrow")
            except ValueError as error:
                raise Refused(str(error).rstrip(".") + ".") from error
            sound = checkup.sound()
            found = found.select(sound)
            if tokenizer is not None and sound:
                step = 1 if look_at is None else max(1, len(found) // look_at)
                found = _format(found, digest, rows.name, checkup, tokenizer, format_pair, step, num_proc, notes, form)
                found = found.select([place for place, number in enumerate(sound) if checkup.fate[number] is None])
            pairs[split] = found
            about = {"source": rows.name, "shape": shape.title, "columns_left_behind": list(shape.ignored)}
            reports[split] = about | checkup.report()
            if not reports[split]["pairs"]:
                raise Refused(f"{rows.name}: no pair can be used. {_what_fails(reports[split])}")
            notes += _what_to_say(rows.name, reports[split])
            if split in cleaned:
                notes.append(_save(*cleaned[split], pairs[split], checkup, rows))
        if not others:
            sound = checkups[train].sound()
            kept, held = pair_store.hold_out(sound, checkups[train].prompt_of, held_out_share, seed)
            if held:
                notes.append(f"Held out: {len(held):,} pairs, by prompt: no prompt is on both sides.")
                return [pairs[train].select(kept), pairs[train].select(held)], reports, notes
    return [pairs[train], pairs[others[0]] if others else None], reports, notes


def _what_to_say(name: str, report: dict) -> list[str]:
    """What was found in a split, for the reader."""
    notes = [f"Data: {name}: {summary(report)}.{to_look_at(report)}"]
    lonely = report["findings"].get("no_partner", {"share": 0.0})
    if lonely["share"] > 0.5:
        notes.append(f"  {lonely['meaning']}")
    if report["columns_left_behind"]:
        notes.append(f"  columns not used: {', '.join(report['columns_left_behind'])}")
    return notes


def _what_fails(report: dict) -> str:
    name, finding = max(report["findings"].items(), key=lambda found: found[1]["count"] * found[1]["drops"])
    first = finding["first"] + (f": {finding['detail']}" if finding["detail"] else "")
    way_out = f" --keep_findings {name} would keep them." if name in KEEPABLE else ""
    return f"{finding['count']:,} x {finding['title']}; the first is {first}. {finding['meaning']}{way_out}"


def _with_bar(rows: RowSource):
    return tqdm(rows, f"reading {rows.name}", delay=2, leave=False, disable=not PartialState().is_main_process)


def _refusing_unreadable(see: Callable[[dict], bool]) -> Callable[[dict], bool]:
    def checked(made: dict) -> bool:
        if made.get("fault") == "unreadable":
            raise Refused(f"{made['where']}: {made['text']}. --skip_bad_rows goes on without such rows.")
        return see(made)

    return checked


def _cleaned_files(name: str, split: str, train: str) -> tuple[Path, Path]:
    """Where the sound pairs of a split go, and the rows that were dropped; neither may be there."""
    whole = Path(name)
    if whole.suffix != ".jsonl":  # a name with other dots keeps them
        whole = whole.with_name(whole.name.removesuffix(".json") + ".jsonl")
    path = whole if split == train else whole.with_suffix(f".{split}.jsonl")
    beside = path.with_suffix(".dropped.jsonl")
    for file in (path, beside):
        if file.exists():
            raise Refused(f"--save_cleaned: {file} is there already.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--save_cleaned: {path.parent} cannot be made: {error.strerror}.") from error
    return path, beside


def _save(path: Path, beside: Path, pairs: Dataset, checkup: Checkup, rows: RowSource) -> str:
    """Write the sound pairs, and beside them every row that was dropped, with its reason."""
    dropped = checkup.dropped_rows()
    if PartialState().is_main_process:
        read = (json.loads(row["pair"]) if "pair" in row else row for row in pairs)
        pair_store.write_lines(path, ({k: v for k, v in row.items() if k != "where" and v is not None} for row in read))
        lines = (
            {"row": number, "where": row.where, "reason": dropped[number], "data": row.value}
            for number, row in enumerate(rows)
            if number in dropped
        )
        pair_store.write_lines(beside, lines)
    return f"Saved: {path}, {len(pairs):,} sound pairs; {beside}, {len(dropped):,} rows with the reason to drop each."


# --- In the tokenizer's form -----------------------------------------------------------------------------------------


def _form_for(tokenizer, kinds: set[str], name: str, notes: list[str], keep_plain: bool) -> bool:
    """Whether pairs are to be turns; gives the tokenizer a template where they must be and it has none."""
    has_turns = bool(kinds & {"turns", "rich turns"})
    if has_turns and tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        logger.warning("The tokenizer has no chat template: turns are written as 'User: ...' and 'Assistant: ...'.")
    if not has_turns and tokenizer.chat_template is not None and not keep_plain:
        notes.append(f"{name}: plain strings become a user's and an assistant's turn (--keep_plain leaves them plain).")
        return True
    return has_turns


def _format(found, digest, name, checkup, tokenizer, format_pair, step, num_proc, notes, form) -> Dataset:
    """Pairs from JSON to the columns that TRL reads; every `step`th is examined in tokens."""
    as_turns = _form_for(tokenizer, checkup.kinds, name, notes, form.get("keep_plain", False))
    facts = {"lengths": List(Value("int64")), "unknown": Value("int64"), "flags": List(Value("string"))}
    features = Features(
        pair_store.pair_features(checkup.kinds, as_turns)
        | {"facts": facts | {"text": Value("string"), "where": Value("string")}}
    )
    how = {"as_turns": as_turns, "step": step, "columns": list(features)}
    how |= {name: form.get(name) for name in ("max_prompt_length", "max_length")}
    # shorten: by which the scripts' format_pair shortens prompts
    code = [Path(file).read_bytes() for file in (__file__, data_doctor.__file__, shorten.__file__)]
    try:
        code.append(inspect.getsource(format_pair))
    except (OSError, TypeError):  # typed into a session
        code += [format_pair.__code__.co_code, repr(format_pair.__code__.co_consts)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else [tokenizer.name_or_path, len(tokenizer)]
    sound = checkup.sound()  # which of the pairs that were read these are: the same file, other findings kept
    key = Hasher.hash([digest, sound, how, code, words, tokenizer.chat_template, tokenizer.eos_token])
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "dpo_pairs" / f"{key}.arrow"
    kept.parent.mkdir(parents=True, exist_ok=True)
    if PartialState().is_main_process:
        with suppress(FileNotFoundError):
            os.utime(kept)  # what is used is not old
        forget_oldest(kept.parent, "*.arrow", MOST_BYTES)
    with PartialState().main_process_first():
        found = found.map(
            _format_row,
            with_indices=True,
            fn_kwargs={"tokenizer": tokenizer, "format_pair": format_pair, **how},
            features=features,
            remove_columns=["pair"],
            num_proc=num_proc if num_proc and len(found) >= 1000 else None,
            new_fingerprint=key,
            cache_file_name=str(kept),
            desc=f"formatting {name}",
        )
    for number, facts in zip(sound, found["facts"], strict=True):
        checkup.see_tokens(number, facts)
    return found.remove_columns("facts")


def _format_row(row, index, tokenizer, format_pair, as_turns, step, max_prompt_length, max_length, columns) -> dict:
    pair = json.loads(row["pair"])
    facts = {"lengths": [], "flags": [], "text": "", "unknown": 0}
    if not pair_store.survives(pair):
        facts["flags"].append("number_changed")
    try:
        formatted = format_pair(pair, tokenizer, as_turns, max_prompt_length)
    except TEMPLATE_ERRORS as error:
        formatted = format_pair(pair, tokenizer, as_turns)
        flag = "prompt_too_long" if isinstance(error, ValueError) else "template_error"
        facts |= {"flags": [*facts["flags"], flag], "text": first_line(error)}
    if index % step == 0 and not facts["flags"]:
        texts = [formatted[part] for part in ("prompt", "chosen", "rejected")]
        facts = token_facts(*texts, tokenizer, max_length, pair.get("tools"), pair.get("chat_template_kwargs"))
    if formatted.pop("is_shortened"):
        facts["flags"].append("prompt_shortened")
    made = {"chat_template_kwargs": {}} | pair | formatted | {"facts": facts | {"where": pair["where"]}}
    return {name: made.get(name) for name in columns}


def stream_pairs(rows: RowSource, tokenizer, format_pair: Callable, *, dataset_format="auto", columns=None, **how):
    """Pairs as they are read, an IterableDataset. Nothing is compared between rows, so duplicates go unseen."""
    if tokenizer is None:
        raise Refused("--check_only reads all rows, so it goes without --dataset_streaming.")
    shape = find_shape(rows, dataset_format, columns)
    if shape.is_grouped:
        raise Refused(f"{rows.name}: the answers to a prompt stand in several rows, so it cannot be streamed.")
    pairing = {name: how[name] for name in ("pairing", "min_margin", "seed") if name in how}
    keep = how.get("keep_findings") or ()
    checkup, notes = Checkup(keep=keep), []
    for made in islice(make_pairs(rows, shape, **pairing), 100):
        checkup.see(made)
    if not checkup.sound():
        raise Refused(f"{rows.name}: none of the first 100 pairs can be used. {_what_fails(checkup.report())}")
    as_turns = _form_for(tokenizer, checkup.kinds, rows.name, notes, how.get("keep_plain", False))
    features = pair_store.pair_features({"rich turns", *pair_store.OPTIONAL}, as_turns)
    nothing = dict.fromkeys(features) | {"chat_template_kwargs": {}}

    def read():
        for made in make_pairs(rows, shape, **pairing):
            seen = Checkup(keep=keep)
            seen.see(made)
            try:
                if not seen.sound():
                    raise ValueError(made.get("text") or seen.fate[0])
                if not as_turns and "text" not in seen.kinds:
                    raise ValueError("it has turns where the first rows are plain text")
                if not pair_store.survives(made):
                    raise ValueError("number_changed")
                formatted = format_pair(made, tokenizer, as_turns, how.get("max_prompt_length"))
                yield {name: (nothing | made | formatted)[name] for name in features}
            except ValueError as error:
                logger.warning(f"{made['where']} is skipped: {error}.")

    key = f"{rows.name} {dataset_format} {columns} {how} {tokenizer.name_or_path}"
    stream = IterableDataset.from_generator(_Named(read, key), features=features)
    return stream, [f"Data: {rows.name}: {shape.title}.", *notes]


class _Named:
    """A generator function that is pickled as its name: `datasets` would pickle all that it refers to, for a hash."""

    def __init__(self, read: Callable, name: str):
        self.read, self.name = read, name

    def __call__(self):
        return self.read()

    def __getstate__(self):
        return self.name
