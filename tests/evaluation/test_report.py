"""What is written of an evaluation: tables without empty columns, CSV that a spreadsheet cannot run, categories by chance."""

import csv
import json
import math
import re

import numpy as np
import pytest
from datasets import Dataset

from dpo_utils import Completion
from machinery.evaluation.report import FILES, Report
from machinery.evaluation.verdict import Reference, decide, judge_all
from machinery.judges.interface import BY_TEXT, FIRST, PARTLY, SECOND, Judge, JudgeError, Verdict
from machinery.judges.scores import ScoreJudge

NO_LOG_PROBS = dict(beta=0.1, trained_from=None, measured={})


def completion(text: str) -> Completion:
    return Completion(text, [1], [2] * len(text), True)


def report_of(texts: dict[str, list[str]], categories=None, judge=None) -> Report:
    """A report on models that wrote these texts, one a prompt; the first is the reference, the longer text better."""
    prompts = [f"question {n}" for n in range(len(next(iter(texts.values()))))]
    columns = {"prompt": prompts, "chosen": ["a"] * len(prompts), "rejected": ["b"] * len(prompts)}
    pairs = Dataset.from_dict(columns | ({"category": categories} if categories else {}))
    (name, own), *others = [(name, [[completion(text)] for text in row]) for name, row in texts.items()]
    reference = Reference(name, None, None, (), own, np.zeros((len(prompts), 1)))
    results = [dict(NO_LOG_PROBS, model=model, answers=answers, measured={}) for model, answers in others]
    judge = judge or ScoreJudge("length", lambda prompts, answers: [float(len(answer)) for answer in answers])
    return Report(results, judge_all(judge, prompts, reference, results), reference, judge, prompts, pairs)


def rows_of(path) -> list[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_for_spreadsheets_hold_what_the_json_holds_and_run_nothing(tmp_path):
    odd = ["=1+1", "@SUM(A1)", "-2", "\tx", 'a "quote", and\nlines', "\ud800\0", "", "שלום"]
    report = report_of({"reference": ["x"] * len(odd), "+policy": odd})
    said = report.write(tmp_path, {"temperature": 1.0})
    assert all(name in said for name in FILES)
    rows = rows_of(tmp_path / "generations.csv")
    kept = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [row["pair"] for row in rows] == [str(n + 1) for n in range(len(kept))]
    assert [float(row["win"]) for row in rows] == [row["win"] for row in kept]
    assert {answer["finish_reason"] for row in kept for answer in row["answers"]} == {"stop"}
    written = [row["answer"] for row in rows]
    assert written[:6] == ["'=1+1", "'@SUM(A1)", "'-2", "'\tx", odd[4], "\\ud800\\x00"]
    assert written[6:] == odd[6:]
    for name in ("generations.csv", "metrics.csv"):
        cells = [cell for row in rows_of(tmp_path / name) for cell in row.values()]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "-")) and not cell[1:2].isdigit()]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["judge"] == "length" and metrics["temperature"] == 1.0
    figures = {row["figure"]: row for row in rows_of(tmp_path / "metrics.csv")}
    assert float(figures["win_rate"]["value"]) == metrics["win_rate"]
    assert float(figures["score"]["ci_high"]) == metrics["score_ci_high"]
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"<dt>judge</dt><dd>length</dd>", page) and "<dt>temperature</dt><dd>1.0</dd>" in page


def test_a_column_that_holds_nothing_goes():
    report = report_of({"reference": ["x"] * 4, "policy": ["xx"] * 4})
    [table] = report.tables()
    assert table["columns"] == ["", "reference", "policy"]  # the reference has a score
    for result in report.results:
        del result["measured"]["score_reference"]
    [table] = report.tables()
    assert table["columns"] == ["", "policy"]
    assert all(len(row) == 2 and row[1] for row in table["rows"])


def test_the_block_of_a_verdict_carries_the_price():
    report = report_of({"reference": ["x"] * 12, "policy": ["xxx"] * 12})
    [outcome] = report.outcomes
    outcome.measured["kl"] = (3.5, 3.0, 4.0)
    decide([outcome])
    [verdict] = report.page([], {})["verdicts"]
    figures = dict(verdict["figures"])
    assert figures["KL from the reference"] == "3.50 [3.00, 4.00] nats a reply"
    assert figures["change of length"].startswith("+2.0")
    assert figures["prompts"] == "12"
    assert "The price: KL 3.50 nats a reply; replies 2.0 tokens longer." in verdict["sentences"]


def test_an_infinite_kl_is_said_and_leaves_the_rest(tmp_path):
    report = report_of({"reference": ["x"] * 12, "policy": ["xxx"] * 12})
    [outcome], infinite = report.outcomes, (math.inf, math.nan, math.nan)
    outcome.measured["kl"] = report.results[0]["measured"]["kl"] = infinite
    decide([outcome])
    [verdict] = report.page([], {})["verdicts"]
    assert dict(verdict["figures"])["KL from the reference"] == "infinite nats a reply"
    assert any(sentence.startswith("The price: an infinite KL; replies") for sentence in verdict["sentences"])
    assert "policy writes tokens to which reference gives no chance at all: the KL is infinite." in report.caveats()
    report.write(tmp_path, {})
    assert json.loads((tmp_path / "metrics.json").read_text())["kl"] is None


def test_where_nobody_judged_the_block_says_so():
    class Nobody(ScoreJudge):
        def judge(self, comparisons, progress=None):
            raise JudgeError("the endpoint never answered")

    report = report_of({"reference": ["x"] * 3, "policy": ["xx"] * 3}, judge=Nobody("n", None))
    [verdict] = report.page([], {})["verdicts"]
    assert "never answered" in verdict["sentences"][0]


class InBothOrders(Judge):
    """Says of each comparison in turn what decided it; a text decides for the second answer."""

    name, is_language_model = "m at localhost", True

    def __init__(self, *decided):
        self.decided = decided

    def judge(self, comparisons, progress=None):
        assert len(comparisons) == len(self.decided)
        return [Verdict(1.0 if d in (BY_TEXT, None) else 0.5, None, None, d) for d in self.decided]


def test_a_judge_that_looks_at_the_place_alone_is_found_out(tmp_path, capsys):
    report = report_of({"reference": ["x"] * 40, "policy": ["xx"] * 40}, judge=InBothOrders(*[FIRST] * 40))
    [outcome] = report.outcomes
    assert outcome.word == "cannot tell"
    assert outcome.sentences[1] == (
        "The order of the answers decided 40 of 40 verdicts, and those are ties: 40 times the answer shown first won both ways."
    )
    report.show()
    shown = capsys.readouterr().out
    assert re.search(r"verdicts that the order of the answers decided +100.0% \[91.2%, 100.0%\]", shown)
    caveat = "the order of the answers decided 100% of the judge's verdicts on policy against reference"
    assert f"Note: {caveat}" in shown
    report.write(tmp_path, {})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["win_rate"], metrics["order_decided"], metrics["order_took_first"]) == (0.5, 1, 1)
    assert metrics["asked_in_both_orders"] == 40
    assert caveat[1:] in (tmp_path / "report.html").read_text().replace("&#39;", "'")


@pytest.mark.parametrize(("by_order", "is_said"), [(4, False), (5, True)])
def test_a_tenth_of_the_verdicts_is_the_most_that_goes_without_a_caveat(by_order, is_said):
    decided = [FIRST, SECOND, SECOND, PARTLY, PARTLY][:by_order] + [BY_TEXT] * (40 - by_order)
    report = report_of({"reference": ["x"] * 42, "policy": ["xx"] * 42}, judge=InBothOrders(*decided, None, None))
    said = f"The order of the answers decided {by_order} of 40 verdicts, and those are ties: 1 times the answer shown first"
    assert report.outcomes[0].sentences[1].startswith(said)
    assert any("the order of the answers decided" in caveat for caveat in report.caveats()) == is_said


def test_a_judge_that_is_asked_once_has_no_figure_of_the_order():
    report = report_of({"reference": ["x"] * 4, "policy": ["xx"] * 4})
    assert not [name for name in report.metrics() if "order" in name]


@pytest.mark.parametrize(("count", "sure"), [(1, 1), (40, 0)])
def test_many_categories_are_corrected_for(count, sure):
    """Six wins of six: p is 2/64 by itself, and nothing among forty."""
    names = [f"kind {n % count}" for n in range(6 * count)]
    report = report_of({"reference": ["x"] * len(names), "policy": ["xx"] * len(names)}, names)
    [caption] = [caption for title, caption, _ in report.figures(report.results[0]) if title == "Win rate by category"]
    [svg] = [svg for title, _, svg in report.figures(report.results[0]) if title == "Win rate by category"]
    assert svg.count("beyond chance") == 2 * sure  # once to hover over, once for a screen reader
    assert ("Holm's correction for 40 categories" in caption) == (count > 1)
    assert ("The 30 largest are drawn." in caption) == (count > 30)
    assert "fewer than 10" in caption
