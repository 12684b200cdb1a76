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
from ..data.files import RowSource
from ..data.formatting import form_for
from ..data.load import find_splits
from ..readings.prompts import convert_prompt, holds_prompts_alone, prompts_reading
from ..readings.texts import Unusable

SPLITS = ("train_split", "test_split", "config", "encoding")


def prompts_alone(source, dataset_format="auto", columns: dict | None = None, **how) -> bool:
    """Whether a source is to be read as prompts: --dataset_format says so, or it has prompts, and no answers to them."""
    if dataset_format == "prompts":
        return True
    if dataset_format != "auto" or not isinstance(source, str) or (columns or {}).keys() - {"prompt", "system"}:
        return False
    try:
        rows = _splits(source, how)
        first = _first_rows(next(iter(rows.values())))
        return bool(first) and holds_prompts_alone(first)
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
    train_pairs, eval_pairs, reports = load_preferences(source, tokenizer, **how)
    pairs = train_pairs if eval_pairs is None else eval_pairs
    are_texts = not any(report["most_turns_in_a_prompt"] for report in reports.values())
    if tokenizer is None:
        rows = [json.loads(row["pair"]) for row in pairs]
        names = ("prompt", *store.OPTIONAL)
        rows = as_dataset([{k: v for k, v in row.items() if k in names} for row in rows])
        return None, rows, eval_pairs is not None, are_texts
    return pairs, pairs, eval_pairs is not None, are_texts


def _load_alone(
    source,
    tokenizer,
    format_pair: Callable,
    *,
    columns: dict[str, str] | None = None,
    held_out_share: float = 0.0,
    skip_bad_rows: bool = False,
    keep_plain: bool = False,
    max_prompt_length: int | None = None,
    seed: int = 0,
    **how,
) -> tuple[Dataset, bool, bool]:
    """The prompts of the test split, of a share that is held out, or of the whole file; see `load_prompts`."""
    splits = _splits(source, how)
    rows = list(splits.values())[-1]  # the test split, where there is one
    try:
        reading = prompts_reading(_first_rows(rows), columns)
    except ValueError as error:
        raise UserError(f"--dataset_name {source}: {error}.") from error
    found, bad = [], 0
    for number, row in enumerate(rows):
        try:
            if row.fault is not None or not isinstance(row.value, dict):
                raise Unusable("unreadable", row.fault or "is no object with named columns")
            found.append(convert_prompt(row.value, reading) | {"rows": [number]})
        except Unusable as error:
            if not skip_bad_rows:
                said = f"{row.where}: {error}. --skip_bad_rows goes on without such rows."
                raise UserError(said) from error
            bad += 1
    if not found:
        raise UserError(f"--dataset_name {source}: no row of it holds a prompt.")
    is_held_out = len(splits) > 1
    texts = [json.dumps(row["prompt"], sort_keys=True) for row in found]
    notes = [f"Data: {rows.name}: {len(set(texts)):,} prompts and no pairs (prompt: {reading.columns})."]
    notes += [f"  {bad:,} rows hold no prompt, and are left out"] if bad else []
    if not is_held_out and held_out_share:
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        places = list(range(len(found)))
        held = store.hold_out(places, [numbers[text] for text in texts], held_out_share, seed)[1]
        found, is_held_out = [found[place] for place in held], bool(held)
    kinds = {"text" if isinstance(row["prompt"], str) else "turns" for row in found}
    as_turns = "turns" in kinds
    if tokenizer is not None:
        as_turns, said = form_for(tokenizer, kinds, rows.name, keep_plain)
        notes += said
    for note in notes:
        say(note)
    rows = as_dataset(_formed(found, tokenizer, format_pair, as_turns, max_prompt_length))
    return rows, is_held_out, kinds == {"text"}


def _formed(found: list[dict], tokenizer, format_pair: Callable, as_turns: bool, most: int | None) -> list[dict]:
    """Prompts as pairs without answers are formatted."""
    rows = []
    for row in found:
        try:
            how = (as_turns, None if tokenizer is None else most)
            made = format_pair(row | {"chosen": "", "rejected": ""}, tokenizer, *how)
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
