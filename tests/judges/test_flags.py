"""The judge that a command line names; what it is, as far as others ask; and flags that do nothing are said."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from machinery.common.errors import UserError
from machinery.judges.endpoint import MOST_TOKENS
from machinery.judges.flags import BELONG, JudgeArguments, judge_from_flags
from machinery.judges.interface import Comparison, JudgeError

URL = dict(judge_url="http://localhost:1", judge_model="m")


def judge_of(truth=None, **flags):
    training_args = SimpleNamespace(output_dir="before", seed=0, device="cpu", trust_remote_code=False)
    return judge_from_flags(replace(JudgeArguments(), **flags), training_args, truth), training_args


def true_reward(prompt, answer):
    return len(answer)


@pytest.mark.parametrize(
    ("flags", "name", "gives_scores", "is_language_model", "most_answers"),
    [
        ({}, "the true reward", True, False, None),
        (URL, "m at localhost", False, True, 1),
        (URL | {"judge_samples": 4}, "m at localhost", False, True, 4),
        ({"judge": "human"}, "a person", False, False, 1),
        ({"judge": "{rules}:score"}, "--judge {rules}:score", True, False, None),
    ],
)
def test_what_a_judge_is(flags, name, gives_scores, is_language_model, most_answers, tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def score(prompt, answer): return 1")
    flags = {flag: value.format(rules=rules) if isinstance(value, str) else value for flag, value in flags.items()}
    judge, _ = judge_of(true_reward, **flags)
    assert judge.name == name.format(rules=rules)
    assert (judge.gives_scores, judge.is_language_model) == (gives_scores, is_language_model)
    assert judge.most_answers == most_answers


def test_without_truth_and_flags_there_is_no_judge():
    assert judge_of()[0] is None
    assert judge_of(true_reward, judge="none")[0] is None


def test_the_endpoint_gets_its_question_and_bounds(tmp_path):
    (tmp_path / "rubric.txt").write_text("Verdict: ? {prompt}{answer_a}{answer_b}")
    judge, _ = judge_of(**URL, judge_prompt=str(tmp_path / "rubric.txt"), judge_max_tokens=7, judge_budget=3)
    assert (judge.question.text[:9], judge.most_tokens, judge.budget) == ("Verdict: ", 7, 3)
    assert judge_of(**URL)[0].most_tokens == MOST_TOKENS


def test_a_judge_is_tried_before_any_long_work():
    judge, _ = judge_of(lambda prompt, answer: float("nan"))
    with pytest.raises(JudgeError, match="the true reward gave nan in row 0"):
        judge.try_on(["why?"], ["so"])
    judge_of(**URL)[0].try_on(["why?"], ["so"])  # nobody is asked: nothing is there at that address


def test_a_blind_table_goes_where_the_output_goes_by_then(tmp_path):
    judge, training_args = judge_of(judge="human")
    training_args.output_dir = tmp_path
    judge.judge([Comparison("why?", "so", "no")])
    assert (tmp_path / "blind.csv").exists()


@pytest.mark.parametrize("flag", sorted(BELONG))
def test_a_flag_that_does_nothing_is_said(flag, capsys):
    judge_of(true_reward, judge="truth", **{flag: 4 if flag in ("judge_samples", "judge_budget") else "x"})
    assert f"--{flag} does nothing here: it counts with --judge {BELONG[flag][0]}" in capsys.readouterr().out
    judge_of(**URL, judge_samples=2, judge_budget=2, judge_max_tokens=5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"judge": "oracle"}, "--judge oracle: there are auto, .*, and your own as file.py:function"),
        ({"judge": "rules:score"}, "your own as file.py:function"),
        ({"judge": "rules.py"}, "--judge rules.py: name a file and a function in it"),
        ({"judge": "truth"}, "in the demo only"),
        ({"judge": "endpoint", "judge_model": "m"}, "needs --judge_url and --judge_model"),
        ({"judge": "reward_model"}, "needs --judge_model"),
        (URL | {"judge_prompt": "gone.txt"}, "--judge_prompt gone.txt cannot be read"),
    ],
)
def test_what_names_no_judge_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        judge_of(**flags)
