"""Keep preference pairs on disk while they are examined, and give them the column types that training needs.

    rows, digest = spool(pairs, keep=lambda pair: True, path="pairs.arrow")   # one column "pair": each pair as JSON
    features = pair_features({"turns", "category"}, are_turns=True)           # for rows.map(..., features=features)
    train, held_out = hold_out(numbers, prompt_of, share=0.1, seed=0)         # no prompt on both sides
    write_lines(Path("cleaned.jsonl"), pairs)                                 # whole, or not there

The pairs go through a file, so memory does not grow with the texts. Turns that carry more than role and content (tool
calls) are kept as JSON in Arrow: a struct would give every turn every key.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from datasets import Dataset, Features, Json, List, Value
from datasets.arrow_writer import ArrowWriter

from ..common.errors import UserError
from ..common.kept_files import complete_file, named

SURROGATE = re.compile("[\ud800-\udfff]")
OPTIONAL = {
    "tools": Value("string"),
    "chat_template_kwargs": Json(),
    "category": Value("string"),
    "score_chosen": Value("float64"),
    "score_rejected": Value("float64"),
}


def spool(pairs: Iterable[dict], keep: Callable[[dict], bool], path: Path | str) -> tuple[Dataset, str]:
    """Write those pairs for which `keep(pair)` is true to an Arrow file, as JSON. Returns them and their digest."""
    digest = hashlib.blake2b(digest_size=16)
    with named(Path(path)), ArrowWriter(path=str(path), features=Features({"pair": Value("string")})) as writer:
        for pair in pairs:
            if keep(pair):
                line = json.dumps(pair)
                digest.update(line.encode())
                writer.write({"pair": line})
        writer.finalize()
    return Dataset.from_file(str(path)), digest.hexdigest()


def pair_features(kinds: set[str], are_turns: bool) -> Features:
    """The columns of pairs. kinds: "rich turns" where turns have more keys, and the names of optional columns."""
    turn = Json() if "rich turns" in kinds else {"role": Value("string"), "content": Value("string")}
    text = List(turn) if are_turns else Value("string")
    columns = {"prompt": text, "chosen": text, "rejected": text, "rows": List(Value("int64"))}
    return Features(columns | {name: kind for name, kind in OPTIONAL.items() if name in kinds})


def survives(pair: dict) -> bool:
    """Whether every turn comes back from Arrow as it went in; `datasets` stores numbers with ten digits."""
    turns = [turn for part in ("prompt", "chosen", "rejected") if isinstance(pair[part], list) for turn in pair[part]]
    store = Json()
    return all(len(turn) == 2 or store.decode_example(store.encode_example(turn)) == turn for turn in turns)


def hold_out(numbers: list[int], prompt_of, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide pairs into those to train on and a share to hold out, by prompt: at least one prompt each, if there are two.

    numbers: the pairs. prompt_of[number]: an integer, equal for equal prompts. Returns places in `numbers`, both in order.
    The order in which prompts are drawn is their own: where a few pairs more are dropped, the others stay where they are.
    """
    prompts = sorted(
        {prompt_of[number] for number in numbers},
        key=lambda prompt: hashlib.blake2b(f"{seed} {prompt}".encode(), digest_size=8).digest(),
    )
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1) if share > 0 else 0
    held = set(prompts[:count])
    places = range(len(numbers))
    is_held = [prompt_of[number] in held for number in numbers]
    return [n for n in places if not is_held[n]], [n for n in places if is_held[n]]


def cleaned_files(name: str, split: str, train: str) -> tuple[Path, Path]:
    """Where the sound pairs of a split go, and the rows that were dropped. Raises UserError where one is there."""
    whole = Path(name)
    if whole.suffix != ".jsonl":  # a name with other dots keeps them
        whole = whole.with_name(whole.name.removesuffix(".json") + ".jsonl")
    path = whole if split == train else whole.with_suffix(f".{split}.jsonl")
    beside = path.parent / "__dropped__" / path.name  # where `datasets` does not look, if it is given the folder
    for file in (path, beside):
        if file.exists():
            raise UserError(f"--save_cleaned: {file} is there already.")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save_cleaned: {beside.parent} cannot be made: {error.strerror}.") from error
    return path, beside


def save_cleaned(path: Path, beside: Path, pairs: Dataset, dropped: dict[int, str], rows: Iterable) -> None:
    """Write the sound pairs, and beside them every row that was dropped, with its reason."""
    read = (json.loads(row["pair"]) if "pair" in row else row for row in pairs)
    write_lines(path, ({k: v for k, v in row.items() if k != "where" and v is not None} for row in read))
    lines = (
        {"row": number, "where": row.where, "reason": dropped[number], "data": row.value}
        for number, row in enumerate(rows)
        if number in dropped
    )
    write_lines(beside, lines)


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write rows as JSONL; the file is whole or not there. Letters stand as they are, but for half a character."""
    with complete_file(path) as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, default=str)  # a date in a column that is not used, say
            if SURROGATE.search(line):  # which cannot be written but with escapes
                line = json.dumps(row, default=str)
            file.write(line + "\n")
