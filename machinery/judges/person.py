"""A person as the judge: a blind table to fill in, and its verdicts read back.

write_blind_csv(Path("blind.csv"), Path("blind_key.json"), comparisons, seed=0)     # a person fills in the last column
verdicts = read_blind_csv(Path("blind.csv"), Path("blind_key.json"), comparisons)
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

from ..common.bounds import check_file
from ..common.chat import as_text
from ..common.errors import UserError
from ..common.safe_text import defused
from .interface import Comparison, Judge, JudgeError, Verdict

COLUMNS = ("number", "prompt", "answer_1", "answer_2", "verdict")


def write_blind_csv(path: Path, key_path: Path, comparisons: list[Comparison], seed: int) -> None:
    """Write a table in which a person fills in the column verdict (1, 2 or tie), and apart from it which answer is which.

    Rows and answers are in random order. Raises JudgeError where a file is there already: it may hold somebody's work.
    """
    for file in (path, key_path):
        if file.exists():
            raise JudgeError(f"{file} is there already, and may hold verdicts: move it away")
    generator = random.Random(seed)
    numbers = generator.sample(range(len(comparisons)), len(comparisons))
    rows = [{"comparison": number, "swapped": generator.random() < 0.5} for number in numbers]
    # Excel needs the mark at the start to read UTF-8; half a character (a lone surrogate) cannot be written.
    with open(path, "w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row, entry in enumerate(rows, start=1):
            prompt, first, second = comparisons[entry["comparison"]]
            answers = (second, first) if entry["swapped"] else (first, second)
            writer.writerow([row, *map(defused, (as_text(prompt), *answers)), ""])
    key = {"answers": digest_of(comparisons), "rows": rows}
    key_path.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def digest_of(comparisons: list[Comparison]) -> str:
    """Tells the answers of one evaluation from those of another."""
    return hashlib.sha256(json.dumps(comparisons, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_blind_csv(path: Path, key_path: Path, comparisons: list[Comparison]) -> list[Verdict]:
    """The verdicts of `write_blind_csv`'s table in the order of its comparisons; None for rows that were left empty.

    Rows may be in any order, columns separated by comma, semicolon or tab. Raises JudgeError that names the line, or
    where the table was written for other answers than these.
    """
    try:
        check_file(key_path)
        key = json.loads(key_path.read_text(encoding="utf-8"))
        written_for = key["answers"]
        places = {str(row): (entry["comparison"], entry["swapped"]) for row, entry in enumerate(key["rows"], start=1)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise JudgeError(f"{key_path} cannot be read as the key of {path}") from error
    if written_for != digest_of(comparisons) or len(places) != len(comparisons):
        raise JudgeError(
            f"{path} was written for other answers: the model, the prompts or a setting of the sampling has changed"
        )
    verdicts = [Verdict(None, "not judged: left empty", None)] * len(places)
    seen = {}
    try:
        check_file(path)
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            names = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator), [])]
            if not {"number", "verdict"} <= set(names):
                raise JudgeError(f"{path}, line 1: no columns number and verdict")
            reader, line = csv.reader(file, delimiter=separator), 2
            for cells in reader:
                row, where = dict(zip(names, map(str.strip, cells), strict=False)), f"{path}, line {line}"
                line = reader.line_num + 2
                if not any(row.values()):
                    continue
                number, verdict = row.get("number", ""), row.get("verdict", "").lower()
                if number not in places or number in seen:
                    problem = f"is in {seen[number]} too" if number in seen else f"is not in {key_path}"
                    raise JudgeError(f"{where}: the number '{number}' {problem}")
                seen[number] = where
                comparison, swapped = places[number]
                wins = {"1": float(swapped), "2": float(not swapped), "tie": 0.5}
                if verdict in wins:
                    verdicts[comparison] = Verdict(wins[verdict], None, None)
                elif verdict:
                    raise JudgeError(
                        f"{where}, number {number}: '{verdict}' is no verdict; write 1, 2 or tie, or nothing"
                    )
    except UserError as error:
        raise JudgeError(str(error)) from error
    except (OSError, csv.Error) as error:
        raise JudgeError(f"{path} cannot be read as a table: {error}") from error
    return verdicts


class HumanJudge(Judge):
    """Writes a blind table for a person, or reads the one that was filled in."""

    name = "a person"

    def __init__(self, folder: Callable[[], Path], filled: str | None, seed: int, most_answers: int = 1):
        """folder: where a new table goes, asked for when it does. filled: the table that was filled in.

        Raises JudgeError where that is not there.
        """
        self.folder, self.filled, self.seed, self.most_answers = folder, filled, seed, most_answers
        if filled is not None and not Path(filled).is_file():
            raise JudgeError(f"--answers {filled}: there is no such file")

    def judge(self, comparisons: list[Comparison], progress: str | None = None) -> list[Verdict]:
        """What the person decided; nothing yet where the table is only now written."""
        if self.filled is None:
            table = self.folder() / "blind.csv"
            write_blind_csv(table, table.with_name("blind_key.json"), comparisons, self.seed)
            print(
                f"To judge: fill the column verdict of {table} with 1, 2 or tie, then run the same command with --answers"
            )
            return [Verdict(None, None, None) for _ in comparisons]
        table = Path(self.filled)
        return read_blind_csv(table, table.with_name("blind_key.json"), comparisons)
