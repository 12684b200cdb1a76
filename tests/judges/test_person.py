"""A person as the judge: a blind table, what comes back from a spreadsheet, and what is refused."""

import csv
import os
import re

import pytest

from machinery.judges.interface import Comparison, JudgeError
from machinery.judges.person import read_blind_csv, write_blind_csv


def wins(verdicts):
    return [verdict.win for verdict in verdicts]


MANY = [Comparison(f"why {number}?", f"bad {number}", f"good {number}") for number in range(30)]


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(path, rows, separator=","):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def table(tmp_path):
    path, key = tmp_path / "blind.csv", tmp_path / "key.json"
    write_blind_csv(path, key, MANY, seed=1)
    return path, key


def test_what_a_person_fills_in_comes_back_in_the_original_order(table):
    path, key = table
    rows = rows_of(path)
    assert list(rows[0]) == ["number", "prompt", "answer_1", "answer_2", "verdict"]
    expected = [1.0] * 30
    for row in rows:
        row["verdict"] = "1" if "good" in row["answer_1"] else "2"
        number = int(re.search(r"\d+", row["prompt"])[0])
        if number % 3 == 0:
            row["verdict"], expected[number] = {"1": "2", "2": "1"}[row["verdict"]], 0.0
        if number % 5 == 0:
            row["verdict"], expected[number] = " Tie ", 0.5
        if number == 7:
            row["verdict"], expected[number] = "", None
    save(path, rows)
    verdicts = read_blind_csv(path, key, MANY)
    assert wins(verdicts) == expected
    assert verdicts[7].reason == "not judged: left empty"


def test_rows_and_answers_are_in_random_order_that_the_seed_decides(table, tmp_path):
    rows = rows_of(table[0])
    assert [row["prompt"] for row in rows] != [pair.prompt for pair in MANY]
    assert sorted(row["prompt"] for row in rows) == sorted(pair.prompt for pair in MANY)
    assert 5 < sum("good" in row["answer_1"] for row in rows) < 25
    for seed in (1, 2):
        write_blind_csv(tmp_path / f"{seed}.csv", tmp_path / f"{seed}.json", MANY, seed)
    assert (tmp_path / "1.csv").read_bytes() == table[0].read_bytes() != (tmp_path / "2.csv").read_bytes()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_spreadsheet_may_sort_the_rows_and_change_the_separator(table, separator):
    path, key = table
    rows = rows_of(path)
    for row in rows:
        row["verdict"] = "1" if "good" in row["answer_1"] else "2"
    save(path, sorted(rows, key=lambda row: row["prompt"]), separator)
    assert wins(read_blind_csv(path, key, MANY)) == [1.0] * 30


def test_nothing_in_the_table_is_run_as_a_formula(tmp_path):
    path = tmp_path / "blind.csv"
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
    pairs = [Comparison(text, text, 'fine, "quoted"\nin two lines; \ud800 é') for text in texts]
    write_blind_csv(path, tmp_path / "key.json", pairs, seed=0)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    rows = rows_of(path)
    assert sorted(row["prompt"] for row in rows) == sorted("'" + text for text in texts)
    for row in rows:
        assert sorted([row["answer_1"], row["answer_2"]]) == sorted(
            [row["prompt"], 'fine, "quoted"\nin two lines; \\ud800 é']
        )


def test_a_wrong_entry_is_named_with_its_line(tmp_path):
    path, key = tmp_path / "blind.csv", tmp_path / "key.json"
    pairs = [Comparison("two\nlines", "a", "b"), Comparison("two\nlines", "c", "d")]
    write_blind_csv(path, key, pairs, seed=0)
    rows = rows_of(path)
    rows[1]["verdict"] = "3"
    save(path, rows)
    with pytest.raises(JudgeError, match=rf"{path}, line 4, number 2: '3' is no verdict; write 1, 2 or tie"):
        read_blind_csv(path, key, pairs)


def test_numbers_that_occur_twice_or_are_unknown_are_refused(table):
    path, key = table
    rows = rows_of(path)
    save(path, [*rows, rows[3]])
    with pytest.raises(JudgeError, match=r"line 32: the number '4' is in .*line 5 too"):
        read_blind_csv(path, key, MANY)
    save(path, [rows[0] | {"number": "31"}])
    with pytest.raises(JudgeError, match="line 2: the number '31' is not in"):
        read_blind_csv(path, key, MANY)
    save(path, rows[:2])  # deleted rows are not judged
    assert wins(read_blind_csv(path, key, MANY)) == [None] * 30


def test_files_that_are_no_table_or_no_key_are_named(table, tmp_path):
    path, key = table
    with pytest.raises(JudgeError, match=r"gone\.csv cannot be read"):
        read_blind_csv(tmp_path / "gone.csv", key, MANY)
    with pytest.raises(JudgeError, match="cannot be read as the key"):
        read_blind_csv(path, path, MANY)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(JudgeError, match="line 1: no columns number and verdict"):
        read_blind_csv(path, key, MANY)


def test_a_table_that_somebody_may_have_worked_on_is_not_replaced(table, tmp_path):
    path, key = table
    before = path.read_bytes(), key.read_bytes()
    for files in ((path, tmp_path / "new.json"), (tmp_path / "new.csv", key)):
        with pytest.raises(JudgeError, match="is there already"):
            write_blind_csv(*files, MANY, seed=3)
    assert (path.read_bytes(), key.read_bytes()) == before
    assert sorted(os.listdir(tmp_path)) == ["blind.csv", "key.json"]


def test_verdicts_on_other_answers_are_refused(table):
    path, key = table
    others = [*MANY[:-1], MANY[-1]._replace(first="another answer")]
    with pytest.raises(JudgeError, match="was written for other answers"):
        read_blind_csv(path, key, others)
