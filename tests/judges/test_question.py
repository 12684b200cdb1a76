"""What a language model is asked: places that are there, braces that stay, and a verdict that can be read."""

import pytest

from machinery.judges.interface import Comparison, JudgeError
from machinery.judges.question import Question, read_verdict

PAIR = Comparison("why?", "so {number}", "{prompt}")


def test_the_question_that_is_asked_by_default_has_every_place_and_marks_that_carry_the_number():
    asked = Question().about(PAIR, "17")
    for marked in ("conversation 17>\nwhy?\n</", "answer A 17>\nso {number}\n</", "answer B 17>\n{prompt}\n</"):
        assert f"<{marked}{marked.partition('>')[0]}>" in asked
    assert asked.count("17") == 6
    assert read_verdict(asked) is None  # who repeats the question has decided nothing


def test_a_question_without_a_place_is_refused_and_the_place_named(tmp_path):
    file = tmp_path / "rubric.txt"
    file.write_text("{prompt}: {answer_a}? Verdict: A or B. {number} {other}")
    with pytest.raises(
        JudgeError, match=r"--judge_prompt .*rubric.txt: the question has no place \{answer_b\}: the conv"
    ):
        Question.read(str(file))
    file.write_text("")
    with pytest.raises(JudgeError, match=r"no place \{prompt\} and no \{answer_a\} and no \{answer_b\}"):
        Question.read(str(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe\x00", "cannot be read: it is no text in UTF-8"),
        ("folder", "is no regular file"),
        (b" " * 1_100_000, "MiB large"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, words):
    file = tmp_path / "rubric.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(JudgeError, match=rf"--judge_prompt \S*rubric.txt .*{words}"):
        Question.read(str(file))


def test_a_question_that_does_not_say_how_to_answer_is_told_and_says_it_then(tmp_path, capsys):
    file = tmp_path / "rubric.txt"
    file.write_text("Which is kinder?\n{prompt}\n{answer_a}\n{answer_b}\n", encoding="utf-8-sig")
    asked = Question.read(str(file)).about(PAIR, "17")
    assert asked.startswith("Which is kinder?\nwhy?\nso {number}\n{prompt}\n\nWrite a short reason")
    assert asked.endswith("Verdict: A\nVerdict: B\nVerdict: tie\n")
    assert "it is added" in capsys.readouterr().out
    file.write_text("End with VERDICT: A, B or tie.\n{prompt}\n{answer_a}\n{answer_b}\n")
    assert "short reason" not in Question.read(str(file)).text
    assert capsys.readouterr().out == ""
