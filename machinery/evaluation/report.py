"""What an evaluation found, in the terminal, in report.html, metrics.json and generations.jsonl.

    report = Report(results, outcomes, "demo/model", judge, prompts, written, pairs)
    report.show()
    print(report.write(Path("runs/evaluation"), {"seed": "42"}))      # the names of the files

Glue between the measurements (verdict.py, metrics.py) and the page (html_report.py).
"""

import json
import math
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..common.kept_files import complete_file
from ..common.safe_text import printable
from .html_report import bars_svg, calibration_svg, histogram_svg, scatter_svg, write_report
from .judges import as_text
from .metrics import by_category, calibration_bins, half_for_ties, margins
from .verdict import Outcome

# key, what it is, how it is written; a _reference twin stands in the reference's column
WRITTEN = (
    ("score", "score of the judge", ".2f"),
    ("win_rate", "win rate against the reference, ties half", ".2f"),
    ("win_rate_length_controlled", "the same at equal length", ".2f"),
    ("score_change", "change of the score", ".2f"),
    ("score_best_of_n", "score of the reference's best by implicit reward", ".2f"),
    ("kl", "KL from the reference, nats a reply", ".2f"),
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
MOST_SHOWN = 2000  # pairs of answers in report.html; generations.jsonl has all


@dataclass
class Report:
    """Everything that was measured, and the ways to put it before a reader."""

    results: list[dict]  # a model each: model, measured, and given, scores where they could be had
    outcomes: list[Outcome]  # of each model against the reference, in the same order; then of each against each other
    reference: str
    judge: object | None
    prompts: list
    written: dict[str, list[list]]  # by model, by prompt, its answers
    pairs: object  # the held-out pairs
    is_held_out: bool = True

    def show(self) -> None:
        """Print the tables and the verdicts, and nothing that a terminal would obey."""

        for title, rows in (("What the models write", WRITTEN), ("What they make of the given pairs", GIVEN)):
            table = self.table(rows)
            if not table:
                continue
            widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
            _say(f"\n{title}")
            for row in table:
                _say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if self.has_round_robin():
            _say("\nEach against each other, win rate of the row against the column")
            _say(self.round_robin())
        print()
        for outcome in self.outcomes:
            _say(f"{outcome.model} against {outcome.against}: {outcome.word.upper()}")
            for sentence in outcome.sentences:
                _say(f"  {sentence}")
        for caveat in self.caveats():
            _say(f"Note: {caveat}")

    def table(self, rows: tuple) -> list[list[str]]:
        """Header and rows of strings: the reference's column first, where it has its own figures."""
        lines, measured = [], [r["measured"] | o.measured for r, o in zip(self.results, self.outcomes, strict=False)]
        for key, label, form in rows:
            cells = [_cell(values.get(key), form) for values in measured]
            if any(cells):
                own = next((values[f"{key}_reference"] for values in measured if f"{key}_reference" in values), None)
                lines.append([label, _cell(own, form), *cells])
        return [["", "reference", *(result["model"] for result in self.results)], *lines] if lines else []

    def has_round_robin(self) -> bool:
        """Whether several models were judged against each other."""
        return len(self.results) > 1 and any("win_rate" in outcome.measured for outcome in self.outcomes)

    def round_robin(self) -> str:
        """Win rates of every model against every other one."""
        names = [self.reference, *(result["model"] for result in self.results)]
        shares = {}
        for outcome in self.outcomes:
            share = outcome.measured.get("win_rate", (math.nan,))[0]
            shares[outcome.model, outcome.against], shares[outcome.against, outcome.model] = share, 1 - share
        width = max(map(len, names)) + 2
        lines = ["  " + " " * width + "".join(name.ljust(width) for name in names)]
        for row in names:
            cells = ["-" if row == column else f"{shares.get((row, column), math.nan):.2f}" for column in names]
            lines.append("  " + row.ljust(width) + "".join(cell.ljust(width) for cell in cells))
        return "\n".join(line.rstrip() for line in lines)

    def caveats(self) -> list[str]:
        """What a reader should hold against these numbers."""
        found = []
        if self.judge is None:
            found.append("nobody judged the answers, so there is no verdict: see --judge.")
        elif self.judge.name != "the true reward":
            found.append(f"the verdicts are those of {self.judge.name}, with its own likings.")
        if not self.is_held_out:
            found.append("nothing was held out: these prompts may have been trained on.")
        if "tools" in self.pairs.column_names and any(self.pairs["tools"]):
            found.append("the pairs have tools, and the answers were sampled without them.")
        for outcome in self.outcomes[: len(self.results)]:
            missing = int(np.isnan(outcome.wins).sum())
            if missing and self.judge is not None:
                found.append(f"{missing} of {len(outcome.wins)} prompts were not judged for {outcome.model}.")
            raw, fair = (outcome.measured.get(name) for name in ("win_rate", "win_rate_length_controlled"))
            if raw and fair and not fair[1] <= raw[0] <= fair[2]:
                found.append(
                    f"length matters to the judge: at equal length {outcome.model} would win {fair[0]:.2f}, not {raw[0]:.2f}."
                )
        for result in self.results:
            start = result.get("trained_from")
            if start is not None and Path(start).resolve() != Path(self.reference).resolve():
                found.append(f"{result['model']} was trained from {start}, not from {self.reference}.")
            kl = result["measured"].get("kl")
            if kl and kl[0] > 20:
                found.append(
                    f"{result['model']} is far from its reference (KL {kl[0]:.0f}): read its answers, not its accuracy."
                )
        return found

    # --- Files ---

    def write(self, folder: Path, made: dict[str, str]) -> str:
        """Write report.html, generations.jsonl and, last, metrics.json. made: how it was made. Returns their names."""
        made = made | {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": _commit(),
            "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
            + f", Python {platform.python_version()}",
        }
        write_report(folder / "report.html", self.page(made))
        with complete_file(folder / "generations.jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.generations())
        with complete_file(folder / "metrics.json") as file:
            json.dump(self.metrics() | made, file, indent=2, allow_nan=False)
        return f"{folder}/report.html (open it in a browser), generations.jsonl, metrics.json"

    def metrics(self) -> dict:
        """Flat: numbers, strings and null. With several models their names stand before those of the figures."""
        flat = {
            "script": "evaluation",
            "reference": self.reference,
            "judge": self.judge.name if self.judge else None,
            "prompts": len(self.prompts),
            "pairs": len(self.pairs),
        }
        for result, outcome in zip(self.results, self.outcomes, strict=False):
            before = f"{result['model']}/" if len(self.results) > 1 else ""
            flat |= {
                f"{before}model": result["model"],
                f"{before}beta": result["beta"],
                f"{before}verdict": outcome.word,
                f"{before}p_value": outcome.p_value,
            }
            for name, (value, low, high) in (result["measured"] | outcome.measured).items():
                flat[before + name] = value
                if not math.isnan(low):
                    flat |= {f"{before}{name}_ci_low": low, f"{before}{name}_ci_high": high}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in flat.items()}

    def generations(self) -> list[dict]:
        """A row an answer of each model, beside the reference's, with the verdict."""
        categories, rows = self.categories(), []
        for number, prompt in enumerate(self.prompts):  # all models' answers to one prompt stand together
            for outcome in self.outcomes[: len(self.results)]:
                pair = zip(self.written[self.reference][number], self.written[outcome.model][number], strict=True)
                for place, (old, new) in enumerate(pair):
                    judged = outcome.verdicts[number]
                    verdict = judged[place] if place < len(judged) else None
                    scores = verdict.scores if verdict and verdict.scores else (None, None)
                    scores = [score if score is None or math.isfinite(score) else None for score in scores]
                    rows.append({
                        "prompt": as_text(prompt),
                        "category": categories[number],
                        "win": verdict.win if verdict else None,
                        "reason": verdict.reason if verdict else None,
                        "answers": [
                            {"model": model, "text": answer.text, "tokens": len(answer.ids), "score": score}
                            for model, answer, score in zip((self.reference, outcome.model), (old, new), scores, strict=True)
                        ],
                    })  # fmt: skip
        return rows

    def categories(self) -> list[str | None]:
        """The category of each prompt, where the pairs have one."""
        if "category" not in self.pairs.column_names:
            return [None] * len(self.prompts)
        known = {json.dumps(row["prompt"], sort_keys=True): row["category"] for row in self.pairs}
        return [known.get(json.dumps(prompt, sort_keys=True)) for prompt in self.prompts]

    def page(self, made: dict[str, str]) -> dict:
        """What html_report makes a page of."""
        generations = self.generations()
        caveats = [caveat[0].upper() + caveat[1:] for caveat in self.caveats()]
        if len(generations) > MOST_SHOWN:
            caveats.append(
                f"The first {MOST_SHOWN:,} of {len(generations):,} answers are shown; generations.jsonl has all."
            )
        tables = [
            {"title": title, "caption": caption, "columns": head, "rows": rows}
            for title, caption, lines in (
                (
                    "What the models write",
                    f"{len(self.prompts)} prompts. In brackets 95% intervals over the prompts.",
                    WRITTEN,
                ),
                (
                    "What they make of the given pairs",
                    f"{len(self.pairs)} {'held-out' if self.is_held_out else 'training'} pairs. A reward is beta * (log policy - log reference), with each run's own beta, or --beta.",
                    GIVEN,
                ),
            )
            if (table := self.table(lines))
            for head, *rows in [table]
        ]
        if self.has_round_robin():
            tables.append(self._round_robin_table())
        return {
            "title": "Did it get better?",
            "subtitle": f"{', '.join(r['model'] for r in self.results)} against {self.reference}; judged by {self.judge.name if self.judge else 'nobody'}",
            "verdicts": [
                {"model": f"{o.model} against {o.against}", "word": o.word, "sentences": o.sentences} for o in self.outcomes
            ],
            "caveats": caveats,
            "tables": tables,
            "figures": [figure for result, outcome in zip(self.results, self.outcomes, strict=False) for figure in self._figures(result, outcome)],
            "generations": generations[:MOST_SHOWN],
            "made": made,
        }  # fmt: skip

    def _round_robin_table(self) -> dict:
        rows = [
            [
                outcome.model,
                outcome.against,
                _cell(outcome.measured.get("win_rate"), ".2f"),
                f"{outcome.p_value:.3f}",
                outcome.word,
            ]
            for outcome in self.outcomes
        ]
        columns = ["model", "against", "win rate", "p, corrected", "verdict"]
        return {
            "title": "Each against each other",
            "caption": "Holm's correction for all of them.",
            "columns": columns,
            "rows": rows,
        }

    def _figures(self, result: dict, outcome: Outcome) -> list[dict]:
        name, figures = result["model"], []
        if "scores" in result:
            old, new = (scores.mean(axis=1).tolist() for scores in result["scores"])
            svg = histogram_svg({"reference": old, name: new}, "score of a prompt's answers, mean")
            figures.append({"title": "Scores before and after", "caption": "One value a prompt.", "svg": svg})
        categories = self.categories()
        judged = [n for n in range(len(self.prompts)) if not math.isnan(outcome.wins[n]) and categories[n] is not None]
        if judged:
            rows = by_category(outcome.wins[judged], [categories[n] for n in judged])
            caption = "Where it wins least comes first. Few prompts make wide intervals."
            figures.append(
                {"title": "Win rate by category", "caption": caption, "svg": bars_svg(rows, "win rate", 0.5)}
            )
        if "given" in result:
            given = result["given"]
            margin = margins(given, result["beta"])
            named = list(self.pairs["category"]) if "category" in self.pairs.column_names else []
            known = [number for number, category in enumerate(named) if category is not None]
            if known:
                rows = by_category(half_for_ties(margin[known]), [named[number] for number in known])
                caption = "Of the given pairs: how often the chosen answer has the higher reward."
                figures.append(
                    {"title": "Reward accuracy by category", "caption": caption, "svg": bars_svg(rows, "accuracy", 0.5)}
                )
            caption = "Where sigmoid(margin) says 0.8, eight labels of ten should agree. Above the line it is too modest, below too sure."
            figures.append(
                {"title": "Calibration", "caption": caption, "svg": calibration_svg(calibration_bins(margin))}
            )
            longer = (given.chosen_lengths - given.rejected_lengths).tolist()
            svg = scatter_svg(
                {name: list(zip(map(float, longer), margin.tolist(), strict=True))},
                "chosen longer by, tokens",
                "margin",
            )
            caption = "A slope would mean that length alone earns reward."
            figures.append({"title": "Margin by length", "caption": caption, "svg": svg})
        for figure in figures if len(self.results) > 1 else []:
            figure["title"] += f": {name}"
        return figures


def _say(text: str) -> None:
    print(printable(text))


def _cell(values: tuple[float, float, float] | None, form: str) -> str:
    if values is None or not math.isfinite(values[0]):
        return ""
    value, low, high = values
    return format(value, form) if math.isnan(low) or low == high else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _commit() -> str:
    """The commit of this project, and whether its files have been changed since; "unknown" without git."""
    here = Path(__file__).resolve().parent
    try:
        done = [
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done[0] + (" with changes" if done[1] else "")
