"""Write the report of an evaluation as one HTML file that needs no network.

    write_report("report.html", {
        "title": "What training did", "subtitle": "200 held-out prompts",
        "verdicts": [{"model": "policy", "word": "better", "sentences": ["It wins 64% of the pairs."],
                      "figures": [("win rate", "0.64 [0.57, 0.70]")]}],
        "caveats": ["One seed."],
        "tables": [{"title": "Means", "caption": "", "columns": ["", "reward"], "rows": [["policy", "1.05"]]}],
        "figures": [{"title": "Rewards", "caption": "", "svg": histogram_svg({"policy": [0.9, 1.2]}, "reward")}],
        "generations": [{"prompt": "Hello?", "category": None, "win": 1.0, "reason": "It is polite.", "answers": [
            {"model": "reference", "text": "What?", "tokens": 2, "score": 0.1},
            {"model": "policy", "text": "Hello.", "tokens": 2, "score": 0.9}]}],
        "made": {"command": "python evaluate.py", "seed": 42},
    })

A part that is missing or empty is left out; a table, a figure or a pair of answers is whole. Every text is shown as it
is and nothing in it is obeyed; what figures.py draws is `Markup`, and nothing else is taken for it. The page is made
from page/, where its template, style and script are. Without JavaScript it shows the first pairs only.
"""

import base64
import hashlib
import re
from collections import Counter
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..common.chat import as_text
from ..common.kept_files import complete_file
from .figures import is_finite, shown

PAGE = Path(__file__).with_name("page")
STATIC_PAIRS = 20  # in the page for readers without JavaScript
NUMBER = re.compile(r"[<>~±+\-\u2212\s]*\d.{0,40}|[-\u2013\u2014]?|n/a|none|nan", re.IGNORECASE | re.DOTALL)
OUTCOMES = {"win": "Wins", "loss": "Losses", "tie": "Ties", "unjudged": "Not judged"}
LOOKS = {"better": "better", "worse": "worse", "mixed": "mixed"}  # of a verdict, by its word; else "unclear"
LOOKS |= dict.fromkeys(("only surer of itself", "only less sure of itself"), "surer")
EMPTY = {"title": "Report", "subtitle": "", "verdicts": [], "caveats": [], "figures": [], "made": {}}
PARTS = {"tables": "Tables", "figures": "Figures", "generations": "Generations", "made": "How it was made"}


def write_report(path: Path | str, report: dict) -> None:
    """Write the whole page; the file appears under its name only when it is complete.

    report: as in the example above. The first of a pair's answers is the reference's, and `win` (1.0, 0.5, 0.0 or None)
    is that of the second against it. Cells of tables are texts; the first column heads its row. `made` says how the
    report was made, in any words.
    """
    page = _page(report).encode()
    with complete_file(Path(path), "wb") as file:
        file.write(page)


def _page(report: dict) -> str:
    pairs = [_pair(number, pair) for number, pair in enumerate(report.get("generations") or [], start=1)]
    style, script = (Markup((PAGE / f"report.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    template = _environment().get_template("report.html.jinja")
    return template.render(
        EMPTY | {name: part for name, part in report.items() if part},
        style=style,
        script=script,
        # Nothing may be loaded, and of scripts and styles only these two may run, whatever else got into the page.
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'",
        parts={name: heading for name, heading in PARTS.items() if report.get(name)},
        tables=[_table(table) for table in report.get("tables") or []],
        pairs=pairs,
        counts=Counter(pair["kind"] for pair in pairs),
        is_scored=any(pair["difference"] is not None for pair in pairs),
        OUTCOMES=OUTCOMES,
        LOOKS=LOOKS,
        STATIC_PAIRS=STATIC_PAIRS,
    )


def _environment() -> Environment:
    """Jinja that escapes every text, after `shown` has made it one that a page can hold."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else shown(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _hash(code: str) -> Markup:
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'")


def _table(table: dict) -> dict:
    """A table whose rows are all as long as the longest, and the kind of each column: words or numbers."""
    rows = [table["columns"], *table["rows"]]
    width = max(map(len, rows))
    columns, *rows = ([*row, *[""] * (width - len(row))] for row in rows)
    kinds = ["words"] * width
    for place, column in enumerate(zip(*rows, strict=True)):
        if place and any(map(str.strip, column)) and all(NUMBER.fullmatch(cell.strip()) for cell in column):
            kinds[place] = "number"
    return table | {"columns": columns, "rows": rows, "kinds": kinds}


def _pair(number: int, pair: dict) -> dict:
    """What is shown of a pair, as texts, and what it is sorted and filtered by, for page and script alike."""
    win, answers = pair["win"], []
    for answer in pair["answers"]:
        tokens, score = answer["tokens"], answer["score"]
        facts = f"{tokens:,} token{'s' * (tokens != 1)}" + (f", score {score:.4g}" if is_finite(score) else "")
        answers.append({"model": shown(answer["model"]), "text": shown(answer["text"]), "facts": facts})
    second = answers[1]["model"] if len(answers) > 1 else ""
    scores = [answer["score"] for answer in pair["answers"][:2]]
    if not is_finite(win):
        kind, outcome = "unjudged", "not judged"
    elif win == 0.5:
        kind, outcome = "tie", "tie"
    else:
        kind, outcome = ("win", f"{second} wins") if win > 0.5 else ("loss", f"{second} loses")
    return {
        "number": number,
        "kind": kind,
        "outcome": outcome,
        "category": shown(pair["category"] or ""),
        "prompt": shown(as_text(pair["prompt"])),
        "answers": answers,
        "reason": shown(pair["reason"] or ""),
        "longest": max((answer["tokens"] for answer in pair["answers"]), default=0),
        "difference": float(abs(scores[1] - scores[0])) if len(scores) == 2 and is_finite(*scores) else None,
    }
