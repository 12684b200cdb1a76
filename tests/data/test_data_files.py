"""Rows are read from every kind of path, each with its place; what is broken is named with its file and line."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from dpo_utils import load_preferences
from machinery.common.errors import UserError
from machinery.data import files as data_files
from machinery.data.files import open_splits

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}
LINES = "".join(json.dumps(ROW) + "\n" for _ in range(3))


def read(path):
    return list(open_splits(str(path))["train"])


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("Dataset scripts are no longer supported"), "Dataset scripts are no longer supported"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ConnectionError("Couldn't reach it"), "the hub cannot be reached"),
    ],
)
def test_what_the_hub_library_raises_is_told_as_it_is(error, words, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(data_files, "load_dataset", fail)
    with pytest.raises(ValueError, match=words):
        open_splits("some/dataset")


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def test_every_file_format_gives_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "bom.jsonl").write_text("\ufeff" + LINES, encoding="utf-8")
    (tmp_path / "blank.jsonl").write_text("\n" + LINES + "\n\n")
    (tmp_path / "windows.jsonl").write_bytes(LINES.replace("\n", "\r\n").encode())
    (tmp_path / "lines.json").write_text(LINES)
    (tmp_path / "list.json").write_text(json.dumps([ROW] * 3, indent=2))
    (tmp_path / "inside.json").write_text(json.dumps({"data": [ROW] * 3}))
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "a,b,c\n" * 3)
    (tmp_path / "bom.csv").write_text("\ufeffprompt,chosen,rejected\n" + '"a","b","c"\n' * 3, encoding="utf-8")
    (tmp_path / "semicolons.csv").write_text("prompt;chosen;rejected\n" + "a;b;c\n" * 3)
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\n" + "a\tb\tc\n" * 3)
    Dataset.from_list([ROW] * 3).to_parquet(tmp_path / "a.parquet")
    for ending, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)):
        (tmp_path / f"b.jsonl{ending}").write_bytes(compress(LINES.encode()))
        (tmp_path / f"b.csv{ending}").write_bytes(compress(b"prompt,chosen,rejected\n" + b"a,b,c\n" * 3))
    for path in tmp_path.iterdir():
        assert [row.value for row in read(path)] == [ROW] * 3, path
        assert all(row.fault is None for row in read(path)), path


def test_a_row_knows_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + LINES)
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n"a\n\nb",b,c\nd,e,f\n')
    assert [row.where for row in read(tmp_path / "a.jsonl")] == [f"{tmp_path / 'a.jsonl'}, line {n}" for n in (2, 3, 4)]
    assert [row.where for row in read(tmp_path / "a.csv")] == [f"{tmp_path / 'a.csv'}, line {n}" for n in (2, 5)]


def test_a_folder_has_the_splits_that_its_files_name(tmp_path):
    (tmp_path / "my_train-0.jsonl").write_text(LINES)
    (tmp_path / "my_train-1.csv").write_text("prompt,chosen,rejected\na,b,c\n")
    (tmp_path / "test.jsonl").write_text(LINES[: len(LINES) // 3])
    (tmp_path / "notes.json").write_text("[]")
    splits = open_splits(str(tmp_path))
    assert {name: len(list(rows)) for name, rows in splits.items()} == {"train": 4, "test": 1}


def test_a_folder_of_shards_without_split_names_is_the_training_split(tmp_path):
    for number in range(3):
        (tmp_path / f"shard{number}.jsonl").write_text(LINES)
    assert {name: len(list(rows)) for name, rows in open_splits(str(tmp_path)).items()} == {"train": 9}


def test_folders_below_may_name_the_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "part.jsonl").write_text(LINES)
    assert list(open_splits(str(tmp_path))) == ["train", "test"]


def test_datasets_saved_to_disk_are_read(tmp_path):
    Dataset.from_list([ROW] * 3).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list([ROW]), test=Dataset.from_list([ROW] * 2)).save_to_disk(tmp_path / "two")
    assert len(read(tmp_path / "one")) == 3
    assert {name: len(list(rows)) for name, rows in open_splits(str(tmp_path / "two")).items()} == {
        "train": 1,
        "test": 2,
    }


def test_a_dataset_saved_as_arrays_or_with_some_columns_shown_is_read_whole(tmp_path):
    saved = Dataset.from_list([ROW | {"score_chosen": 1.0}] * 2)
    saved.with_format("numpy", columns=["score_chosen"]).save_to_disk(tmp_path / "one")
    assert [row.value for row in read(tmp_path / "one")] == [ROW | {"score_chosen": 1.0}] * 2


def test_nan_in_a_row_is_nothing(tmp_path):
    line = json.dumps(ROW | {"system": float("nan"), "score_chosen": float("inf")})
    (tmp_path / "a.jsonl").write_text(line + "\n")
    assert read(tmp_path / "a.jsonl")[0].value == ROW | {"system": None, "score_chosen": float("inf")}


def test_a_table_can_hold_conversations_as_json(tmp_path):
    turns, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    (tmp_path / "a.tsv").write_text(f"prompt\tchosen\trejected\n{json.dumps(turns)}\t{json.dumps(answer)}\tc\n")
    pairs, _, _ = load_preferences(str(tmp_path / "a.tsv"), None)
    assert json.loads(pairs[0]["pair"])["prompt"] == turns


def test_a_table_may_have_a_column_without_a_name(tmp_path):
    (tmp_path / "a.csv").write_text(",prompt,chosen,rejected\n0,a,b,c\n")
    assert len(load_preferences(str(tmp_path / "a.csv"), None)[0]) == 1


def test_a_table_in_quotes_and_semicolons_is_read(tmp_path):
    (tmp_path / "a.csv").write_text('"prompt";"chosen";"rejected"\n"a";"b";"c"\n')
    assert read(tmp_path / "a.csv")[0].value == ROW


def test_lines_that_begin_with_a_long_row_are_lines(tmp_path):
    long = {"conversations": [{"from": "human", "value": "a" * 70_000}], "chosen": "b", "rejected": "c"}
    (tmp_path / "a.json").write_text(json.dumps(long) + "\n" + json.dumps(long) + "\n")
    assert [row.fault for row in read(tmp_path / "a.json")] == [None, None]


def test_a_list_inside_an_object_is_the_rows_whatever_stands_beside_it(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": [ROW]}))
    assert read(tmp_path / "a.json")[0].value == ROW
    (tmp_path / "a.json").write_text(json.dumps({"train": [ROW], "test": [ROW]}))
    with pytest.raises(ValueError, match="several splits"):
        read(tmp_path / "a.json")
    row = {"instruction": "a", "completions": [{"text": "b", "score": 1}, {"text": "c", "score": 0}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
    assert [found.value for found in read(tmp_path / "a.json")] == [row]


def test_files_about_a_dataset_are_not_its_rows(tmp_path):
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.jsonl").write_text(LINES)
    assert list(open_splits(str(tmp_path))) == ["train"]


BROKEN_LINES = {  # what stands in line 4 of 5, and what is said of it
    "{oops}": "is not JSON",
    '{"prompt": "a", "chosen": "b", "rejected": "c"': "is not JSON",
    "[" * 100_000: "nested too deeply",
    '{"prompt": "a\x00"}': "is not JSON",
    '{"prompt": ' + "1" * 5000 + "}": "cannot be read",
}


@pytest.mark.parametrize("broken", BROKEN_LINES, ids=range(len(BROKEN_LINES)))
def test_a_broken_line_is_named_and_can_be_skipped(broken, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps(ROW | {"prompt": f"a{n}"}) for n in range(4)]
    path.write_text("\n".join([*rows[:3], broken, rows[3]]) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: .*" + BROKEN_LINES[broken] + ".*--skip_bad_rows"):
        load_preferences(str(path), None)
    pairs, _, reports = load_preferences(str(path), None, skip_bad_rows=True)
    assert len(pairs) == 4
    assert reports["train"]["findings"]["unreadable"]["rows"] == [3]


def test_a_byte_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + b'{"prompt": "\xff"}\n')
    *good, bad = read(tmp_path / "a.jsonl")
    assert len(good) == 3
    assert "line 4" in bad.where
    assert "UTF-8 text (byte 12)" in bad.fault


def test_a_truncated_archive_gives_its_whole_rows_and_says_where_it_ends(tmp_path):
    lines = "".join(json.dumps(ROW | {"prompt": f"{n} " * 50}) + "\n" for n in range(2000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-2000])
    *good, bad = read(tmp_path / "a.jsonl.gz")
    assert 0 < len(good) < 2000
    assert bad.where == f"{tmp_path / 'a.jsonl.gz'}, after line {len(good)}"
    assert "cannot be unpacked further" in bad.fault
    (tmp_path / "b.json.gz").write_bytes(
        gzip.compress(json.dumps([ROW | {"n": n} for n in range(2000)]).encode())[:-200]
    )
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read(tmp_path / "b.json.gz")


def test_a_runaway_quote_is_named_with_the_line_it_opens_in(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\na,b,c\na,"b,c\n' + "a,b,c\n" * 5)
    good, bad = read(tmp_path / "a.csv")
    assert good.value == ROW
    assert "line 3" in bad.where
    assert "quote that is never closed" in bad.fault


def test_a_row_of_too_few_or_too_many_fields_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\na,b\na,b,c,d\na,b,c\n")
    assert [row.fault for row in read(tmp_path / "a.csv")] == [
        "has 2 fields where the header has 3",
        "has 4 fields where the header has 3",
        None,
    ]


def test_a_field_of_ten_megabytes_is_read(tmp_path):
    long = "word " * 2_000_000
    (tmp_path / "a.csv").write_text(f'prompt,chosen,rejected\n"{long}",b,c\n')
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | {"prompt": long}) + "\n" + LINES)
    assert read(tmp_path / "a.csv")[0].value["prompt"] == long
    assert [row.fault for row in read(tmp_path / "a.jsonl")] == [None] * 4


def test_types_may_differ_from_row_to_row(tmp_path):
    turns = [{"role": "user", "content": "a"}]
    rows = [
        ROW,
        ROW | {"prompt": turns},
        ROW | {"chosen": 3},
        ROW | {"chosen": float("nan")},
        ROW | {"prompt": "other"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, reports = load_preferences(str(path), None)
    report = reports["train"]
    assert report["rows_used"] == 3
    assert report["dropped_by_reason"] == {"wrong_type": 1, "missing_field": 1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"[{]", "line 1: not JSON"),
        ("a.json", b'[\n{"prompt": "a",\n}]', "line 3: not JSON"),
        ("a.json", b"3", "holds no rows"),
        ("a.json", b'{"columns": ["prompt", "chosen"], "data": [1, 2]}', "a value for each of its columns"),
        ("a.json", b'["a", "b"]', "no object with named columns"),
        ("a.txt", LINES.encode(), ".jsonl"),
        ("a.jsonl.gz", LINES.encode(), "is not compressed by gzip, as its name says"),
        ("a.csv", b"prompt,prompt\na,b\n", "stands twice"),
        ("a.csv", "prompt,chosen\na,b\n".encode("utf-16"), "--encoding utf-16"),
        ("a.csv", b"prompt,chosen,rejected\n", "no rows"),
        ("a.csv", b'prompt,"cho"sen,rejected\na,b,c\n', "line 1"),
        ("a.parquet", b"PAR1 but no more", "cannot be read as Parquet"),
        ("a.jsonl.zst", b"no zstd", "is not compressed by zstd"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_preferences(str(tmp_path / name), None)
    assert words in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        open_splits(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match="holds no data"):
        open_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "a pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "a pointer of Git LFS"),
        (
            "a.jsonl",
            gzip.compress(b'{"prompt": "a"}\n', mtime=0),
            "compressed by gzip; give it a name that ends in .gz",
        ),
        ("a.csv", lzma.compress(b"prompt\na\n"), "compressed by xz"),
        ("a.csv", b"PK\x03\x04...", "a spreadsheet; unpack it"),
        ("a.json", b"<!DOCTYPE html><html>", "a web page"),
        ("a.jsonl", b"PAR1....PAR1", "is Parquet"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "--encoding utf-16"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), "--encoding utf-16"),
    ],
)
def test_a_file_that_is_another_than_its_name_says_is_called_what_it_is(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(open_splits(str(tmp_path / name))["train"])


ROWS = [{"prompt": f"Größe {n}?", "chosen": "groß", "rejected": "klein"} for n in range(3)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("form", ["a.jsonl", "a.json", "a.csv"])
def test_another_encoding_is_read_by_a_flag_and_offered_where_it_can_be_guessed(encoding, form, tmp_path):
    texts = {
        "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
        "a.json": json.dumps(ROWS, ensure_ascii=False),
        "a.csv": "prompt,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in ROWS),
    }
    path = tmp_path / form
    path.write_bytes(texts[form].encode(encoding))
    assert [row.value for row in open_splits(str(path), encoding=encoding)["train"]] == ROWS
    try:
        faults = [row.fault for row in open_splits(str(path))["train"]]
    except ValueError as error:
        faults = [str(error)]
    assert f"--encoding {encoding.removesuffix('-le')}" in faults[0]


def test_objects_over_several_lines_are_rows_under_any_name(tmp_path):
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
        assert [row.value for row in open_splits(str(tmp_path / name))["train"]] == ROWS


@pytest.mark.parametrize(
    "table",
    [
        {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]},
        {str(n): row for n, row in enumerate(ROWS)},
        {"columns": list(ROWS[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
    ],
)
def test_a_table_that_pandas_wrote_is_read(table, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(table))
    assert [row.value for row in open_splits(str(tmp_path / "a.json"))["train"]] == ROWS


def test_one_row_of_turns_is_no_table(tmp_path):
    row = {part: [{"role": "user", "content": part}] * 2 for part in ("prompt", "chosen", "rejected")}
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert [row.value for row in open_splits(str(tmp_path / "a.json"))["train"]] == [row]


def test_a_key_or_a_column_that_stands_twice_is_a_fault(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "chosen": "c"}\n{"prompt": {"x": 1, "x": 2}}\n{"a": 1}\n'
    )
    faults = [row.fault for row in open_splits(str(tmp_path / "a.jsonl"))["train"]]
    assert faults == [f"cannot be read (the key {name!r} stands twice in an object)" for name in ("chosen", "x")] + [
        None
    ]
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["chosen", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="the column chosen stands twice"):
        list(open_splits(str(tmp_path / "a.parquet"))["train"])


def test_a_transcript_with_single_newlines_is_called_one(tmp_path):
    row = {side: f"Human: Why?\nAssistant: {text}" for side, text in (("chosen", "So."), ("rejected", "No."))}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="its turns stand below each other without an empty line"):
        load_preferences(str(tmp_path / "a.jsonl"), None)


def test_a_flag_that_has_no_effect_is_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    load_preferences(str(tmp_path / "a.jsonl"), None, pairing="all", min_margin=2.0)
    said = capsys.readouterr().out
    assert "--pairing all has no effect" in said and "--min_margin 2 has no effect" in said
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row | {"eval_loss": 0.1}) + "\n" for row in ROWS))
    load_preferences(str(tmp_path / "c.jsonl"), None, columns={"score": "eval_loss"})
    assert "--columns score=eval_loss has no effect" in capsys.readouterr().out
    scored = [row | {"score_chosen": 5, "score_rejected": 5 - n} for n, row in enumerate(ROWS)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    pairs, _, reports = load_preferences(str(tmp_path / "b.jsonl"), None, min_margin=2.0)
    assert (len(pairs), reports["train"]["dropped_by_reason"]) == (1, {"not_chosen": 2})
    assert "--min_margin" not in capsys.readouterr().out


def test_what_a_mixture_holds_out_is_drawn_by_the_seed(base_tokenizer, tmp_path):
    """TRL draws it from NumPy's state, which differs from run to run and from process to process."""
    (tmp_path / "pairs").mkdir()
    rows = [{"prompt": f"Question {n}?", "chosen": f"Yes, {n}.", "rejected": f"No, {n}."} for n in range(40)]
    (tmp_path / "pairs" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(tmp_path / "pairs"))], test_split_size=0.25)
    held = []
    for state, seed in ((1, 0), (2, 0), (2, 5)):
        np.random.seed(state)
        expected = np.random.get_state()[1].copy()
        _, held_out, _ = load_preferences(mixture, base_tokenizer, seed=seed)
        held.append(sorted(held_out["prompt"]))
        assert (np.random.get_state()[1] == expected).all()
    assert len(held[0]) == 10
    assert held[0] == held[1] != held[2]
