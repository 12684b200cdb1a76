"""Judges that score: the higher number wins, what is no number is named, and so is what a function raises."""

import numpy as np
import pytest
import torch

from machinery.common.errors import UserError
from machinery.judges.interface import Comparison, JudgeError
from machinery.judges.scores import ScoreJudge, function_judge

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]


def wins(verdicts):
    return [verdict.win for verdict in verdicts]


def test_the_higher_score_wins_and_equal_scores_tie():
    judge = ScoreJudge("length", lambda prompts, answers: [float(len(answer)) for answer in answers])
    verdicts = judge.judge([Comparison("p", "a", "bb"), Comparison("p", "aa", "b"), Comparison("p", "a", "b")])
    assert judge.name == "length"
    assert [(verdict.win, verdict.scores) for verdict in verdicts] == [(1, (1, 2)), (0, (2, 1)), (0.5, (1, 1))]
    assert judge.judge([]) == []


def test_the_same_answer_twice_ties_whatever_the_last_digit_says():
    scores = iter([1.0, 1.0000001])
    judge = ScoreJudge("noisy", lambda prompts, answers: [next(scores) for _ in answers])
    assert wins(judge.judge([Comparison("p", "a", "a")])) == [0.5]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, "3", [1.0], 1j, np.float32("nan"), torch.ones(1)])
def test_a_score_that_is_no_finite_number_is_named_with_its_row(score):
    judge = ScoreJudge("broken", lambda prompts, answers: [score if answer == "b" else 1 for answer in answers])
    with pytest.raises(JudgeError, match=r"broken gave .* in row 1, for the answer 'b' to 'why\?'; a finite number"):
        judge.judge([Comparison("p", "a", "c"), Comparison(CHAT, "b", "d")])


@pytest.mark.parametrize("score", [True, 2, 0.5, np.float32(1), torch.tensor(1.0)])
def test_what_counts_as_a_number(score):
    [found] = ScoreJudge("fine", lambda prompts, answers: [score]).scores(["why?"], ["so"])
    assert (type(found), found) == (float, float(score))


def test_as_many_scores_as_answers():
    with pytest.raises(JudgeError, match="sums gave 1 scores for 2 answers"):
        ScoreJudge("sums", lambda prompts, answers: [1.0]).scores(["p", "q"], ["a", "b"])


# --- A function of the user's ---


@pytest.fixture
def rules(tmp_path):
    def _rules(code: str) -> str:
        (tmp_path / "rules.py").write_text(code)
        return f"{tmp_path}/rules.py:score"

    return _rules


def test_a_function_scores_one_answer_at_a_time_and_any_callable_will_do(rules, tmp_path):
    (tmp_path / "beside_the_rules.py").write_text("MOST = 3")
    judge = function_judge(rules(
        "from functools import cache\nimport beside_the_rules\n"
        "@cache\ndef score(prompt, answer):\n    return min(len(answer), beside_the_rules.MOST)"
    ))  # fmt: skip
    assert judge.name == f"--judge {tmp_path}/rules.py:score"
    assert judge.gives_scores
    assert wins(judge.judge([Comparison("p", "a", "bb"), Comparison("p", "aaaa", "bbb")])) == [1, 0.5]


@pytest.mark.parametrize(
    ("prompt", "are_texts", "given"),
    [
        ("why?", True, "why?"),
        (CHAT[1:], True, "why?"),  # the models have turns, the user's file a text
        (CHAT[1:], False, CHAT[1:]),
        (CHAT, False, CHAT),
    ],
)
def test_a_function_is_given_prompts_as_the_file_has_them(rules, prompt, are_texts, given):
    judge = function_judge(rules(f"def score(prompt, answer):\n    return prompt == {given!r}"), are_texts)
    assert judge.scores([prompt], ["so"]) == [1.0]


def test_what_a_function_raises_is_said_with_its_row_and_what_it_was_given(rules):
    judge = function_judge(rules("def score(prompt, answer):\n    return {'why?': 1}[prompt]"))
    with pytest.raises(
        JudgeError, match=r"rules.py:score failed in row 1, for the answer 'so' to 'who\?': KeyError: 'who\?'"
    ):
        judge.scores(["why?", "who?"], ["so", "so"])
    with pytest.raises(
        JudgeError, match="the prompt as a list of turns with role and content, and the answer as a text"
    ):
        judge.scores([CHAT], ["so"])


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("rules.py", "--judge .*rules.py: name a file and a function in it"),
        ("gone.py:score", "--judge .*gone.py: there is no such file"),
        ("rules.py:scor", "rules.py has no function scor: it has score"),
        ("rules.py:Rules", "rules.py has no function Rules"),
        ("broken.py:score", "broken.py cannot be run: ZeroDivisionError: division by zero"),
        ("quits.py:score", "quits.py cannot be run: SystemExit: 3"),
    ],
)
def test_a_function_that_is_not_there_is_said(rules, tmp_path, where, words):
    rules("from math import log\nclass Rules: pass\ndef score(prompt, answer): return 1")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "quits.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=words):
        function_judge(f"{tmp_path}/{where}")


def test_a_function_that_asks_a_language_model_can_say_so(rules):
    code = "def score(prompt, answer): return 1\n"
    assert not function_judge(rules(code)).is_language_model
    assert function_judge(rules(code + "score.is_language_model = True")).is_language_model
