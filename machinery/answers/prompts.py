"""Prompts from a file without pairs, in the form of their tokenizer.

    pairs, rows, is_held_out, are_texts = load_prompts("prompts.jsonl", tokenizer, load_preferences, format_pair, **how)

Files, columns and cells are read as those of pairs are: what fits is said, what does not is refused with its row.
"""

import json
from collections.abc import Callable
from itertools import islice

from datasets import Dataset, Features

from ..common.errors import UserError
from ..common.safe_text import say
from ..data import store
from ..data.doctor import prompt_key
from ..data.files import RowSource
from ..data.formatting import form_for
from ..data.load import find_splits
from ..readings.prompts import convert_prompt, holds_prompts_alone, prompts_reading
from ..readings.recognise import UNKNOWN, by_schema
from ..readings.texts import Unusable, plain

SPLITS = ("train_split", "test_split", "config", "encoding", "seed")


def prompts_alone(source, dataset_format="auto", columns: dict | None = None, **how) -> bool:
    """Whether a source is to be read as prompts: --dataset_format says so, or it has prompts, and no answers to them."""
    if dataset_format == "prompts":
        return True
    if dataset_format != "auto" or not isinstance(source, str) or (columns or {}).keys() - {"prompt", "system"}:
        return False
    try:
        rows = _splits(source, how)
        first = _first_rows(next(iter(rows.values())))
        return bool(first) and by_schema(first) is None and holds_prompts_alone(first)
    except (UserError, ValueError):
        return False  # whoever reads pairs says what is wrong


def load_prompts(source, tokenizer, load_preferences: Callable, format_pair: Callable, **how):
    """The held-out pairs, or None where there are prompts alone; a Dataset with the prompts; whether they are held out;
    and whether the source has them as texts, whatever form the tokenizer gives them.

    tokenizer: None where no model is here: prompts stay as they are written, and pairs are no pairs to anybody.
    load_preferences, format_pair, how: see those in dpo_utils. Raises UserError.
    """
    if prompts_alone(source, **how):
        return None, *_load_alone(source, tokenizer, format_pair, **how)
    train_pairs, eval_pairs, reports = _as_pairs(source, tokenizer, load_preferences, how)
    pairs = train_pairs if eval_pairs is None else eval_pairs
    are_texts = not any(report["most_turns_in_a_prompt"] for report in reports.values())
    if tokenizer is None:
        rows = [json.loads(row["pair"]) for row in pairs]
        names = ("prompt", *store.OPTIONAL)
        rows = as_dataset([{k: v for k, v in row.items() if k in names} for row in rows])
        return None, rows, eval_pairs is not None, are_texts
    return pairs, pairs, eval_pairs is not None, are_texts


def all_prompts(
    source, tokenizer, load_preferences: Callable, format_pair: Callable, **how
) -> tuple[dict[str, Dataset], bool]:
    """The prompts of every split, those to train on first, of pairs or of prompts alone; and whether the source has them as
    texts. Where there is no test split, the same share of the prompts is held out each time.

    For the rest see `load_prompts`.
    """
    if not prompts_alone(source, **how):
        train_pairs, eval_pairs, reports = _as_pairs(source, tokenizer, load_preferences, how)
        are_texts = not any(report["most_turns_in_a_prompt"] for report in reports.values())
        return {"train": train_pairs} | ({} if eval_pairs is None else {"test": eval_pairs}), are_texts
    splits = _splits(source, how)
    found = {split: _read(source, rows, how) for split, rows in splits.items()}
    notes = [_what_was_read(splits[split], *read) for split, read in found.items()]
    rows = {split: read[0] for split, read in found.items()}
    if len(rows) == 1:
        [alone] = rows.values()
        train, held = _hold_out(alone, **how)
        rows = {"train": train} | ({"test": held} if held else {})
    formed, said = _in_form(rows, source, tokenizer, format_pair, how)
    for note in notes + said:
        say(note)
    are_texts = all(_kinds(some) == {"text"} for some in rows.values())
    return dict(zip(("train", "test"), formed.values(), strict=False)), are_texts


def _as_pairs(source, tokenizer, load_preferences: Callable, how: dict):
    """`load_preferences`, which knows nothing of prompts alone where it says what would help."""
    try:
        return load_preferences(source, tokenizer, **how)
    except UserError as error:
        if UNKNOWN not in str(error):
            raise
        raise UserError(f"{error} Where prompts are all that is wanted of them: --dataset_format prompts.") from error


def _hold_out(rows: list[dict], held_out_share: float = 0.0, seed: int = 0, **_) -> tuple[list[dict], list[dict]]:
    """Rows to train on, and a share of the prompts that is held out: those that pairs of the same prompts hold out."""
    keys = [prompt_key(plain(row["prompt"])) for row in rows]
    parts = store.hold_out(list(range(len(rows))), keys, held_out_share, seed)
    return tuple([rows[place] for place in part] for part in parts)


def _load_alone(source, tokenizer, format_pair: Callable, **how) -> tuple[Dataset, bool, bool]:
    """The prompts of the test split, of a share that is held out, or of the whole file; see `load_prompts`."""
    splits = _splits(source, how)
    rows = list(splits.values())[-1]  # the test split, where there is one
    read = _read(source, rows, how)
    found, is_held_out = read[0], len(splits) > 1
    notes = [_what_was_read(rows, *read)]
    if not is_held_out:
        held = _hold_out(found, **how)[1]
        found, is_held_out = held or found, bool(held)
    formed, said = _in_form({"": found}, rows.name, tokenizer, format_pair, how)
    for note in notes + said:
        say(note)
    return formed[""], is_held_out, _kinds(found) == {"text"}


def _read(source, rows: RowSource, how: dict) -> tuple[list[dict], int, str]:
    """The rows that hold a prompt, how many hold none, and the columns that were read."""
    try:
        reading = prompts_reading(_first_rows(rows), how.get("columns"))
    except ValueError as error:
        raise UserError(f"--dataset_name {source}: {error}.") from error
    found, bad = [], 0
    for number, row in enumerate(rows):
        try:
            if row.fault is not None or not isinstance(row.value, dict):
                raise Unusable("unreadable", row.fault or "is no object with named columns")
            found.append(convert_prompt(row.value, reading) | {"rows": [number]})
        except Unusable as error:
            if not how.get("skip_bad_rows"):
                said = f"{row.where}: {error}. --skip_bad_rows goes on without such rows."
                raise UserError(said) from error
            bad += 1
    if not found:
        raise UserError(f"--dataset_name {source}: no row of it holds a prompt.")
    return found, bad, reading.columns


def _what_was_read(rows: RowSource, found: list[dict], bad: int, columns: str) -> str:
    count = len({json.dumps(row["prompt"], sort_keys=True) for row in found})
    left = f"\n  {bad:,} rows hold no prompt, and are left out" if bad else ""
    return f"Data: {rows.name}: {count:,} prompts and no pairs (prompt: {columns}).{left}"


def _in_form(splits: dict[str, list[dict]], name: str, tokenizer, format_pair: Callable, how: dict):
    """Rows of prompts by split in their tokenizer's form, one form for all, and what is to be said."""
    kinds = set().union(*map(_kinds, splits.values()))
    as_turns, notes, most = "turns" in kinds, [], None
    if tokenizer is not None:
        as_turns, notes = form_for(tokenizer, kinds, name, how.get("keep_plain", False))
        most = how.get("max_prompt_length")
    formed = {
        split: as_dataset(_formed(rows, tokenizer, format_pair, as_turns, most)) for split, rows in splits.items()
    }
    return formed, notes


def _kinds(rows: list[dict]) -> set[str]:
    return {"text" if isinstance(row["prompt"], str) else "turns" for row in rows}


def _formed(found: list[dict], tokenizer, format_pair: Callable, as_turns: bool, most: int | None) -> list[dict]:
    """Prompts as pairs without answers are formatted."""
    rows = []
    for row in found:
        try:
            made = format_pair(row | {"chosen": "", "rejected": ""}, tokenizer, as_turns, most)
        except ValueError as error:
            raise UserError(f"row {row['rows'][0]}: {error}.") from error
        rows.append(row | {"prompt": made["prompt"]})
    return rows


def as_dataset(rows: list[dict]) -> Dataset:
    """Rows of a prompt, texts in all of them or turns, and of what goes with it."""
    turns = [turn for row in rows if isinstance(row["prompt"], list) for turn in row["prompt"]]
    kinds = {name for row in rows for name in row} | {"rich turns" for turn in turns if len(turn) > 2}
    features = store.pair_features(kinds, bool(turns))
    columns = Features({name: kind for name, kind in features.items() if name in kinds})
    nothing = dict.fromkeys(columns) | {"chat_template_kwargs": {}}
    return Dataset.from_list([{name: (nothing | row)[name] for name in columns} for row in rows], features=columns)


def _splits(source, how: dict) -> dict[str, RowSource]:
    given = {name: how[name] for name in SPLITS if name in how}
    train, test = given.pop("train_split", "train"), given.pop("test_split", "test")
    return find_splits(source, train, test, **given)[0]


def _first_rows(rows: RowSource) -> list[dict]:
    return [row.value for row in islice(rows, 100) if row.fault is None and isinstance(row.value, dict)]
