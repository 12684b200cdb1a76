"""What an evaluation found: in the terminal, in report.html, metrics.json and generations.jsonl, and as tables in CSV.

    report = Report(results, outcomes, reference, judge, prompts, pairs)
    report.show()
    print(report.write(Path("runs/evaluation"), {"seed": "42"}))      # the names of the files

Glue between the measurements (verdict.py, metrics.py) and the page (html_report.py).
"""

import csv
import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from io import StringIO
from itertools import compress, zip_longest
from pathlib import Path

import numpy as np

from ..common.chat import as_text
from ..common.intervals import SURE, holm, mean_interval, one_a_prompt, paired_test
from ..common.kept_files import complete_file, complete_files, dispensable
from ..common.masking import masked, without_secrets
from ..common.safe_text import defused, say
from ..judges.interface import TRUTH, Judge, Verdict
from .figures import FEW, bars_svg, calibration_svg, histogram_svg, scatter_svg
from .html_report import write_report
from .metrics import by_category, calibration_bins, half_for_ties, margins, prompt_numbers
from .verdict import ORDER, Outcome, Reference, extrapolates

# key, what it is, how it is written; a _reference twin stands in the reference's column
WRITTEN = (
    ("score", "score of the judge", ".2f"),
    ("win_rate", "win rate against the reference, ties half", ".2f"),
    ("order_decided", "verdicts that the order of the answers decided", ".1%"),
    ("win_rate_matched", "the same at matched entropy", ".2f"),
    ("win_rate_greedy", "the same greedily", ".2f"),
    ("win_rate_length_controlled", "the same at equal length", ".2f"),
    ("length_shift", "answers longer by, in standard deviations", ".2f"),
    ("score_change", "change of the score", ".2f"),
    ("score_best_of_n", "score of the reference's best by implicit reward", ".2f"),
    ("kl", "KL from the reference, nats a reply", ".2f"),
    ("entropy", "entropy, nats a token", ".2f"),
    ("entropy_reply", "entropy, nats a reply", ".2f"),
    ("matched_temperature", "temperature at which the reference is as sure", ".2f"),
    ("reply_tokens", "tokens a reply", ".1f"),
    ("stopped_share", "replies that stop by themselves", ".1%"),
    ("repeated_share", "share of a reply that repeats itself (trigrams)", ".1%"),
    ("distinct_share", "different trigrams among all replies", ".1%"),
)
GIVEN = (
    ("eval_loss", "DPO loss", ".3f"),
    ("reward_accuracy", "reward accuracy: chosen above rejected, ties half", ".3f"),
    ("ties", "ties among them", ".1%"),
    ("true_accuracy", "the same against the true scores", ".3f"),
    ("length_only_accuracy", "accuracy of preferring the longer answer", ".3f"),
    ("reward_margin", "margin of the rewards", ".3f"),
    ("chosen_logp_change", "chosen answers: log policy - log reference", ".2f"),
    ("rejected_logp_change", "rejected answers: the same", ".2f"),
    ("perplexity_chosen", "perplexity of the chosen answers, a token", ".2f"),
    ("margin_score_correlation", "rank correlation of margin and score difference", ".2f"),
    ("margin_length_correlation", "rank correlation of margin and length difference", ".2f"),
    ("calibration_error", "calibration error of sigmoid(margin)", ".3f"),
)
MOST_BY_ORDER = 0.1  # of the verdicts; beyond, a judge looks at the place more than it should
TEXTS = (
    ("text_loss", "loss per token", ".3f"),
    ("text_loss_change", "its change, text by text", ".3f"),
)
MOST_SHOWN = 2000  # pairs of answers in report.html; generations.jsonl has all
MOST_CATEGORIES = 30  # in a figure
FILES = ("report.html", "generations.jsonl", "generations.csv", "metrics.csv", "metrics.json")


@dataclass
class Report:
    """Everything that was measured, and the ways to put it before a reader."""

    results: list[dict]  # of each model: model, beta, answers, measured, outcome; given, scores where they could be had
    outcomes: list[Outcome]  # of each model against the reference, then of each against each other
    reference: Reference
    judge: Judge | None
    prompts: list
    pairs: object  # the held-out pairs, or prompts alone
    is_held_out: bool = True
    notes: list[str] = field(default_factory=list)  # on answers that come from elsewhere

    def __post_init__(self):
        self.names = [result["model"] for result in self.results]
        self.judged_by = self.judge.name if self.judge else None
        # Each against each other says something where several were judged.
        self.has_round_robin = len(self.names) > 1 and any("win_rate" in outcome.measured for outcome in self.outcomes)

    def show(self) -> None:
        """Print the tables and the verdicts, and nothing that a terminal would obey."""
        for table in self.tables():
            rows = [table["columns"], *table["rows"]]
            _say_table(table["title"], rows, [max(map(len, column)) for column in zip(*rows, strict=True)])
        if self.has_round_robin:
            rows = self.round_robin()
            widths = [max(len(cell) for row in rows for cell in row)] * len(rows)
            _say_table("Each against each other, win rate of the row against the column", rows, widths)
        print()
        for outcome in self.outcomes:
            say(f"{outcome.model} against {outcome.against}: {outcome.word.upper()}")
            for sentence in outcome.sentences:
                say(f"  {sentence}")
        for caveat in self.caveats():
            say(f"Note: {caveat}")

    def tables(self) -> Iterator[dict]:
        """What was measured, as html_report takes tables: the reference's own figures stand in the first column."""
        written = f"{len(self.prompts)} prompts. In brackets 95% intervals over the prompts."
        given = (
            f"{len(self.pairs)} {'held-out ' if self.is_held_out else ''}pairs. A reward is beta * (log policy - "
            "log reference), with each run's own beta, or --beta."
        )
        others = [result["model"] for result in self.results if "given" not in result]
        if others:
            given += f" Not those of {', '.join(others)}, whose tokens are other than the reference's."
        for title, caption, figures in (
            ("What the models write", written, WRITTEN),
            ("What they make of the given pairs", given, GIVEN),
            ("What they make of your texts", "In brackets 95% intervals over the texts. Above 0: forgotten.", TEXTS),
        ):
            rows = []
            for key, label, form in figures:
                cells = [_cell(result["measured"].get(key), form) for result in self.results]
                if key == "win_rate_length_controlled":
                    marks = (" extrapolated" * extrapolates(result["measured"]) for result in self.results)
                    cells = [cell and cell + mark for cell, mark in zip(cells, marks, strict=True)]
                if any(cells):
                    twins = (result["measured"].get(f"{key}_reference") for result in self.results)
                    rows.append([label, _cell(next(filter(None, twins), None), form), *cells])
            if rows:
                filled = [any(row[place] for row in rows) for place in range(len(rows[0]))]
                columns, *rows = (list(compress(row, filled)) for row in (["", "reference", *self.names], *rows))
                yield {"title": title, "caption": caption, "columns": columns, "rows": rows}

    def round_robin(self) -> list[list[str]]:
        """Header and rows: the win rate of every model against every other one."""
        names, shares = [self.reference.name, *self.names], {}
        for outcome in self.outcomes:
            share = outcome.measured.get("win_rate", (math.nan,))[0]
            shares[outcome.model, outcome.against], shares[outcome.against, outcome.model] = share, 1 - share
        rows = [
            [row, *("-" if row == column else f"{shares.get((row, column), math.nan):.2f}" for column in names)]
            for row in names
        ]
        return [["", *names], *rows]

    def caveats(self) -> Iterator[str]:
        """What a reader should hold against these numbers."""
        if self.judge is None:
            yield "nobody judged the answers, so there is no verdict: see --judge."
        else:
            if self.judged_by != TRUTH:
                yield f"the verdicts are those of {self.judged_by}, with its own likings."
            if not any(outcome.controls for outcome in self.outcomes):
                yield "entropy was not controlled: a model that is only surer of itself, as at a lower temperature, may win."
            elif self.has_round_robin:
                yield "entropy is controlled against the reference, and not between the models."
        for outcome in self.outcomes:
            share = outcome.measured.get(ORDER, (0.0,))[0]
            if share > MOST_BY_ORDER:
                yield (
                    f"the order of the answers decided {share:.0%} of the judge's verdicts on {outcome.model} against "
                    f"{outcome.against}. They count as ties, so the win rate is nearer to 0.5 than the answers are: take "
                    "another judge, or another question (--judge_prompt)."
                )
        if not self.is_held_out:
            yield "the data has no test split: for a model that was trained on these prompts, this says nothing of new ones."
        for result in self.results:
            name, wins = result["model"], result["outcome"].wins
            missing = int(np.isnan(wins).sum())
            if missing and self.judge is not None:
                yield f"{missing} of {len(wins)} prompts were not judged for {name}."
        yield from self.notes
        yield from filter(None, (result.get("left_out") for result in self.results))
        if "chosen" not in self.pairs.column_names:
            yield "nothing is said about given answers: that takes pairs, and models that are loaded."
        if self.reference.tokenizer is None:
            yield "no model was loaded, so lengths are counted in words and not in tokens."
        for result in self.results:
            name, start, kl = result["model"], result["trained_from"], result["measured"].get("kl")
            if start is not None and Path(start).resolve() != Path(self.reference.name).resolve():
                yield f"{name} was trained from {start}, not from {self.reference.name}."
            if kl and math.isinf(kl[0]):
                yield f"{name} writes tokens to which {self.reference.name} gives no chance at all: the KL is infinite."
            elif kl and kl[0] > 20:
                yield f"{name} is far from its reference (KL {kl[0]:.0f}): read its answers, not its accuracy."

    # --- Files ---

    def write(self, folder: Path, made: dict[str, str | float | None]) -> str:
        """Write `FILES`, metrics.json last. Returns their names.

        made: how it was made, besides the judge, the command, the date, the commit and the versions.
        """
        versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")]
        made = {
            "judge": self.judged_by,
            **{name: masked(fact) if isinstance(fact, str) else fact for name, fact in made.items()},
            "command": " ".join(["python", *without_secrets(sys.argv)]),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": _commit(),
            "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
        }
        generations = list(self.generations())
        with complete_files(folder) as unfinished:
            with dispensable(unfinished / "report.html") as page:
                write_report(page, self.page(generations, made))
            with dispensable(unfinished / "generations.jsonl") as path, open(path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in generations)
            for name, rows in (("generations.csv", _as_rows(generations)), ("metrics.csv", self.metrics_rows())):
                with dispensable(unfinished / name) as path:
                    # A spreadsheet knows UTF-8 by its mark; half a character cannot be written, and a NUL not be read.
                    text = StringIO(newline="")
                    csv.writer(text).writerows([defused(cell) for cell in row] for row in rows)
                    path.write_bytes(text.getvalue().replace("\0", "\\x00").encode("utf-8-sig", "backslashreplace"))
        with complete_file(folder / "metrics.json") as file:
            json.dump(self.metrics() | made, file, indent=2, allow_nan=False)
        written = [name for name in FILES if (folder / name).exists()]
        return f"{folder}/{', '.join(written)}".replace("report.html", "report.html (open it in a browser)", 1)

    def metrics_rows(self) -> Iterator[list]:
        """Header and rows of metrics.csv: a figure of a model a row, with its interval."""
        labels = {key: label for key, label, _ in (*WRITTEN, *GIVEN, *TEXTS)}
        yield ["model", "figure", "value", "ci_low", "ci_high", "what it is"]
        for result in self.results:
            for key, values in result["measured"].items():
                twin = key.removesuffix("_reference")
                whose = ", of the reference" if twin != key else ""
                numbers = [value if math.isfinite(value) else "" for value in values]
                yield [result["model"], key, *numbers, labels[twin] + whose if twin in labels else ""]

    def metrics(self) -> dict:
        """Flat: numbers, strings and null. With several models their names stand before those of the figures."""
        flat = dict(script="evaluation", reference=self.reference.name, judge=self.judged_by)
        has_pairs = "chosen" in self.pairs.column_names
        flat |= dict(prompts=len(self.prompts), pairs=len(self.pairs) if has_pairs else 0)
        for result in self.results:
            model, outcome = result["model"], result["outcome"]
            found = dict(model=model, beta=result["beta"], verdict=outcome.word, p_value=outcome.p_value)
            for name, (value, low, high) in result["measured"].items():
                found[name] = value
                if not math.isnan(low):
                    found |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
            flat |= {f"{model}/{name}" if len(self.names) > 1 else name: value for name, value in found.items()}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in flat.items()}

    def generations(self) -> Iterator[dict]:
        """A row an answer of each model, beside the reference's, with the verdict."""
        not_judged = Verdict(None, None, None)
        prompts = zip(self.prompts, self.categories(), strict=True)
        for number, (prompt, category) in enumerate(prompts):  # all models' answers to one prompt stand together
            for result in self.results:
                models, verdicts = (self.reference.name, result["model"]), result["outcome"].verdicts[number]
                answers = zip(self.reference.answers[number], result["answers"][number], strict=True)
                # Of no answer, of the first or of all of them there is a verdict.
                for pair, verdict in zip_longest(answers, verdicts, fillvalue=not_judged):
                    scores = [s if s is None or math.isfinite(s) else None for s in verdict.scores or (None, None)]
                    yield {
                        "prompt": prompt,
                        **({"tools": prompt.tools} if getattr(prompt, "tools", None) else {}),
                        "category": category,
                        "win": verdict.win,
                        "reason": verdict.reason,
                        "answers": [
                            {
                                "model": model,
                                "text": answer.text,
                                "tokens": len(answer.ids),
                                "finish_reason": {True: "stop", False: "length", None: None}[answer.is_finished],
                                "score": score,
                            }
                            for model, answer, score in zip(models, pair, scores, strict=True)
                        ],
                    }

    def categories(self) -> list[str | None]:
        """The category of each prompt, where the pairs have one."""
        if "category" not in self.pairs.column_names:
            return [None] * len(self.prompts)
        known = {json.dumps(row["prompt"], sort_keys=True): row["category"] for row in self.pairs}
        return [known.get(json.dumps(prompt, sort_keys=True)) for prompt in self.prompts]

    def page(self, generations: list[dict], made: dict[str, str]) -> dict:
        """What html_report makes a page of."""
        caveats = [caveat[0].upper() + caveat[1:] for caveat in self.caveats()]
        if len(generations) > MOST_SHOWN:
            shown = f"The first {MOST_SHOWN:,} of {len(generations):,} answers are shown"
            caveats.append(f"{shown}; generations.jsonl has all.")
        tables = list(self.tables())
        if self.has_round_robin:
            tables.append({
                "title": "Each against each other",
                "caption": "Holm's correction for all of them.",
                "columns": ["model", "against", "win rate", "p, corrected", "verdict"],
                "rows": [
                    [o.model, o.against, _cell(o.measured.get("win_rate"), ".2f"), f"{o.p_value:.3f}", o.word]
                    for o in self.outcomes
                ],
            })  # fmt: skip
        return {
            "title": "Did it get better?",
            "subtitle": f"{', '.join(self.names)} against {self.reference.name}; judged by {self.judged_by or 'nobody'}",
            "verdicts": [
                {
                    "model": f"{o.model} against {o.against}",
                    "word": o.word,
                    "figures": list(_key_figures(o)),
                    "sentences": o.sentences or [o.problem or "Nobody judged these answers."],
                }
                for o in self.outcomes
            ],
            "caveats": caveats,
            "tables": tables,
            "figures": [
                {"title": f"{title}: {result['model']}" if len(self.names) > 1 else title, "caption": caption, "svg": svg}
                for result in self.results
                for title, caption, svg in self.figures(result)
            ],
            "generations": generations[:MOST_SHOWN],
            "made": {name: fact for name, fact in made.items() if fact is not None},
        }  # fmt: skip

    def figures(self, result: dict) -> Iterator[tuple[str, str, str]]:
        """Title, caption and SVG of each figure of one model."""
        name, wins = result["model"], result["outcome"].wins
        if "scores" in result:
            old, new = (scores.mean(axis=1).tolist() for scores in result["scores"])
            svg = histogram_svg({"reference": old, name: new}, "score of a prompt's answers, mean")
            yield "Scores before and after", "One value a prompt.", svg
        is_judged = ~np.isnan(wins)
        categories = np.array(self.categories(), dtype=object)[is_judged]
        yield from _by_category("Win rate", wins[is_judged], categories, "Where it wins least comes first.")
        if "given" not in result:
            return
        given = result["given"]
        margin, prompt_of = margins(given, result["beta"]), prompt_numbers(self.pairs["prompt"])
        if "category" in self.pairs.column_names:
            said = "Of the given pairs: how often the chosen answer has the higher reward."
            accuracies = one_a_prompt(half_for_ties(margin), prompt_of)
            firsts = np.unique(prompt_of, return_index=True)[1]
            yield from _by_category(
                "Reward accuracy", accuracies, [self.pairs[n]["category"] for n in firsts.tolist()], said
            )
        caption = "Where sigmoid(margin) says 0.8, eight labels of ten should agree. Above the line it is too modest, below too sure."
        yield "Calibration", caption, calibration_svg(calibration_bins(margin, prompt_of))
        longer = (given.chosen_lengths - given.rejected_lengths).tolist()
        points = list(zip(longer, margin.tolist(), strict=True))
        svg = scatter_svg({name: points}, "chosen longer by, tokens", "margin")
        yield "Margin by length", "A slope would mean that length alone earns reward.", svg


def _say_table(title: str, rows: list[list[str]], widths: list[int]) -> None:
    say(f"\n{title}")
    for row in rows:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _by_category(title: str, outcomes: np.ndarray, categories, said: str) -> Iterator[tuple[str, str, str]]:
    """Title, caption and figure of a rate in each category, tested against 0.5 with Holm's correction for all of them."""
    categories = np.array(list(categories), dtype=object)
    rates = by_category(outcomes, categories)
    if not rates:
        return
    p_values = holm([paired_test(outcomes[categories == category] - 0.5) for category, *_ in rates])
    drawn = sorted(range(len(rates)), key=lambda place: -rates[place][-1])[:MOST_CATEGORIES]  # with the most prompts
    rates, p_values = zip(*[(rates[place], p_values[place]) for place in sorted(drawn)], strict=True)
    count = len(set(categories) - {None})
    caption = [said, f"A hollow dot may be chance: p is not below {SURE:g}"]
    caption[-1] += f", with Holm's correction for {count} categories." if count > 1 else "."
    if any(row[-1] < FEW for row in rates):
        caption.append(f"Dashed: fewer than {FEW}, too few to say much.")
    if len(rates) < count:
        caption.append(f"The {len(rates)} largest are drawn.")
    yield f"{title} by category", " ".join(caption), bars_svg(rates, title.lower(), p_values=p_values)


def _key_figures(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What a decision turns on: how often it wins, on equal terms too, and at what price."""
    controls = {name: control.measured.get("win_rate") for name, control in outcome.controls.items()}
    for name, values in {"win rate": outcome.measured.get("win_rate"), **controls}.items():
        if values:
            yield name, _cell(values, ".2f")
    if ORDER in outcome.measured:
        yield "decided by the order", f"{outcome.measured[ORDER][0]:.0%} of verdicts"
    if "kl" in outcome.measured:
        yield "KL from the reference", f"{_cell(outcome.measured['kl'], '.2f') or 'infinite'} nats a reply"
    if len(outcome.longer_by):
        yield "change of length", f"{_cell(mean_interval(outcome.longer_by), '+.1f')} tokens"
    yield "prompts", f"{int((~np.isnan(outcome.wins)).sum()):,}"


def _as_rows(generations: list[dict]) -> Iterator[list]:
    """Header and rows of generations.csv; the number of a pair is that of its link in report.html."""
    columns = ("model", "answer", "tokens", "score")
    names = [*(f"reference_{name}" if n else "reference" for n, name in enumerate(columns)), *columns]
    yield ["pair", "category", "prompt", "win", "reason", *names]
    for number, row in enumerate(generations, start=1):
        answers = [answer[key] for answer in row["answers"] for key in ("model", "text", "tokens", "score")]
        yield [number, row["category"], as_text(row["prompt"]), row["win"], row["reason"], *answers]


def _cell(values: tuple[float, float, float] | None, form: str) -> str:
    if values is None or not math.isfinite(values[0]):
        return ""
    value, low, high = values
    return format(value, form) if math.isnan(low) or low == high else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _commit() -> str:
    """The commit of this project, and whether its files have been changed since; "unknown" without git."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty= with changes"]  # the commit's hash and no tag
    here = Path(__file__).parent
    try:
        return subprocess.check_output(command, cwd=here, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
