"""Write the report of an evaluation as one HTML file that needs no network, and draw its figures as SVG.

    svg = histogram_svg({"reference": [0.1, 0.4], "policy": [0.9, 1.2]}, "reward")
    write_report("report.html", {
        "title": "What training did", "subtitle": "200 held-out prompts",
        "verdicts": [{"model": "policy", "word": "better", "sentences": ["It wins 64% of the pairs."]}],
        "caveats": ["One seed."],
        "tables": [{"title": "Means", "caption": "", "columns": ["", "reward"], "rows": [["policy", "1.05"]]}],
        "figures": [{"title": "Rewards", "caption": "", "svg": svg}],
        "generations": [{"prompt": "Hello?", "category": None, "win": 1.0, "reason": "It is polite.", "answers": [
            {"model": "reference", "text": "What?", "tokens": 2, "score": 0.1},
            {"model": "policy", "text": "Hello.", "tokens": 2, "score": 0.9}]}],
        "made": {"command": "python evaluate.py", "seed": "42"},
    })

A part that is missing or empty is left out of the page; a table, a figure or a pair of answers is whole. Every text is shown as it is and nothing in it is obeyed,
except `svg`, which is trusted: take it from the functions below. The page works without JavaScript too, but shows only
the first 20 pairs of generations then.
"""

import base64
import hashlib
import json
import math
import re
import unicodedata
from html import escape
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ..common.kept_files import complete_file

STATIC_PAIRS = 20  # in the page for readers without JavaScript
MOST_POINTS = 2000  # of a series in a scatter plot: more cannot be told apart
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
NUMBER = re.compile(r"[<>~±+\-\u2212\s]*\d.{0,40}|[-\u2013\u2014]?|n/a|none|nan", re.IGNORECASE | re.DOTALL)
OUTCOMES = {"win": "Wins", "loss": "Losses", "tie": "Ties", "unjudged": "Not judged"}

# --- The page --------------------------------------------------------------------------------------------------------


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
    report = {name: value for name, value in report.items() if value}
    pairs = [_pair(number, pair) for number, pair in enumerate(report.get("generations", []), start=1)]
    parts = [
        ("tables", "Tables", "".join(_table(number, table) for number, table in enumerate(report.get("tables", [])))),
        ("figures", "Figures", "".join(map(_figure, report.get("figures", [])))),
        ("generations", "Generations", _generations(pairs) if pairs else ""),
        ("made", "How it was made", _made(report.get("made", {}))),
    ]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, content in parts if content)
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""
    *sections, made = (_section(*part) for part in parts)
    verdicts, caveats = _verdicts(report.get("verdicts", [])), _caveats(report.get("caveats", []))
    title, subtitle = _text(report.get("title", "Report")), _text(report.get("subtitle", ""))
    # Nothing may be loaded, and of scripts and styles only these two may run, whatever else got into the page.
    policy = (
        f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(STYLE)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p class="subtitle">{subtitle}</p></header>
<main>
{verdicts}{caveats}{contents}
{"".join(sections)}</main>
<footer>{made}</footer>
<script type="application/json" id="data">{_json(pairs)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _visible(value) -> str:
    """A text with what no page can hold or show written as Python writes it."""
    text = str(value).replace("\r\n", "\n")
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def _text(value) -> str:
    return escape(_visible(value))


def _json(data) -> str:
    """JSON that cannot end the script element it stands in; everything beyond ASCII is escaped too."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _section(name: str, heading: str, content: str) -> str:
    if not content:
        return ""
    return f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{heading}</h2>{content}</section>\n'


def _verdicts(verdicts: list[dict]) -> str:
    articles = ""
    for verdict in verdicts:
        kind = verdict["word"] if verdict["word"] in ("better", "worse") else "unclear"
        sentences = "".join(f"<p>{_text(sentence)}</p>" for sentence in verdict["sentences"])
        word = f'<span class="word {kind}">{_text(verdict["word"])}</span>'
        heading = f'<h3><span class="model">{_text(verdict["model"])}</span> {word}</h3>'
        articles += f"<article>{heading}<div>{sentences}</div></article>"
    return _section("verdicts", "Verdicts" if len(verdicts) > 1 else "Verdict", articles)


def _caveats(caveats: list[str]) -> str:
    items = "".join(f"<li>{_text(caveat)}</li>" for caveat in caveats)
    return _section("caveats", "Before you rely on this", f"<ul>{items}</ul>" * bool(items))


def _table(number: int, table: dict) -> str:
    rows = [table["columns"], *table["rows"]]
    width = max(map(len, rows))
    cells = [[*row, *[""] * (width - len(row))] for row in rows]
    kinds = [' class="words"'] * width  # of the columns
    for place, column in enumerate(zip(*cells[1:], strict=True)):
        if place and any(map(str.strip, column)) and all(NUMBER.fullmatch(cell.strip()) for cell in column):
            kinds[place] = ' class="number"'
    head = "".join(f'<th scope="col"{kind}>{_text(c)}</th>' for c, kind in zip(cells[0], kinds, strict=True))
    body = ""
    for first, *others in cells[1:]:
        data = "".join(f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
        body += f'<tr><th scope="row">{_text(first)}</th>{data}</tr>'
    caption = f"<p>{_text(table['caption'])}</p>" if table["caption"] else ""
    # The box can be scrolled with the arrow keys once it has the focus.
    return (
        f'<h3 id="table-{number}">{_text(table["title"])}</h3>{caption}<div class="scroll" tabindex="0" role="region" '
        f'aria-labelledby="table-{number}"><table aria-labelledby="table-{number}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _figure(figure: dict) -> str:
    caption = f"<p>{_text(figure['caption'])}</p>" if figure["caption"] else ""
    return f"<figure><figcaption><h3>{_text(figure['title'])}</h3>{caption}</figcaption>{figure['svg']}</figure>\n"


def _made(made: dict) -> str:
    rows = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in made.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _pair(number: int, pair: dict) -> dict:
    """What is shown of a pair, as texts, and what it is sorted and filtered by, for page and script alike."""
    win, answers = pair["win"], []
    for answer in pair["answers"]:
        tokens, score = answer["tokens"], answer["score"]
        facts = f"{tokens:,} token{'s' * (tokens != 1)}" + (f", score {score:.4g}" if _is_finite(score) else "")
        answers.append({"model": _visible(answer["model"]), "text": _visible(answer["text"]), "facts": facts})
    second = answers[1]["model"] if len(answers) > 1 else ""
    scores = [answer["score"] for answer in pair["answers"][:2]]
    if not _is_finite(win):
        kind, outcome = "unjudged", "not judged"
    elif win == 0.5:
        kind, outcome = "tie", "tie"
    else:
        kind, outcome = ("win", f"{second} wins") if win > 0.5 else ("loss", f"{second} loses")
    return {
        "number": number,
        "kind": kind,
        "outcome": outcome,
        "category": _visible(pair["category"] or ""),
        "prompt": _visible(pair["prompt"]),
        "answers": answers,
        "reason": _visible(pair["reason"] or ""),
        "longest": max((answer["tokens"] for answer in pair["answers"]), default=0),
        "difference": float(abs(scores[1] - scores[0])) if len(scores) == 2 and _is_finite(*scores) else None,
    }


def _generations(pairs: list[dict]) -> str:
    """The controls, which the script shows, and the first pairs as they stand."""
    counts = {kind: sum(pair["kind"] == kind for pair in pairs) for kind in OUTCOMES}
    kinds = "".join(
        f'<option value="{kind}"{" disabled" * (not counts[kind])}>{name} ({counts[kind]:,})</option>'
        for kind, name in OUTCOMES.items()
    )
    scored = any(pair["difference"] is not None for pair in pairs)
    articles = ""
    for pair in pairs[:STATIC_PAIRS]:
        p = {key: escape(value) for key, value in pair.items() if isinstance(value, str)}
        category = f'<span class="category">{p["category"]}</span>' if p["category"] else ""
        answers = "".join(
            f'<section><h4>{escape(a["model"])} <span class="facts">{a["facts"]}</span></h4>'
            f'<p class="text" dir="auto">{escape(a["text"])}</p></section>'
            for a in pair["answers"]
        )
        reason = f'<p class="reason" dir="auto">{p["reason"]}</p>' if p["reason"] else ""
        articles += (
            f'<article class="pair" tabindex="-1"><h3><span class="place">{pair["number"]}</span>'
            f'<span class="{p["kind"]}">{p["outcome"]}</span>{category}</h3>'
            f'<p class="prompt text" dir="auto">{p["prompt"]}</p><div class="answers">{answers}</div>'
            f"{reason}</article>\n"
        )
    shown = f"The first {STATIC_PAIRS} of " if len(pairs) > STATIC_PAIRS else ""
    rest = " The others, and searching, need JavaScript." if shown else ""
    count = f"{shown}{len(pairs):,} pair{'s' * (len(pairs) != 1)}.{rest}"
    return f"""<form id="controls" role="search" autocomplete="off" hidden>
<label class="wide">Search <input id="search" type="search" spellcheck="false"></label>
<label>Show <select id="filter"><option value="">All ({len(pairs):,})</option>{kinds}</select></label>
<label>Order <select id="sort"><option value="">As they came</option>
<option value="longest">Longest answer first</option>
<option value="difference"{" disabled" * (not scored)}>Largest score difference first</option></select></label>
</form>
<p id="status" role="status">{count}</p>
<div id="pairs">{articles}</div>
<button id="more" type="button" hidden>Show more</button>"""


# --- Figures ---------------------------------------------------------------------------------------------------------

# On a phone of 390 px a figure is about this many px wide, so a unit is a px there and the text has at least 12.
WIDTH, TEXT, LINE, PLOT = 360, 12.5, 18, 190
COLOURS = ("var(--reference, #5d6268)", "var(--policy, #1d5c9e)", "var(--third, #a34a12)", "var(--fourth, #7a3d96)")
RULE = "var(--rule, #bbb)"
# No series is known by colour alone: an outline has its dashes, and points are dots, crosses, boxes or triangles.
DASHES = ("none", "none", "7 3", "2 2")
MARKS = ("h0", "m-3-3l6 6m-6 0l6-6", "m-3-3h6v6h-6z", "m0-4l4 7h-8z")


class Scale(NamedTuple):
    """A straight axis; called with a value, it says where on the page that is."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def histogram_svg(series: dict[str, list[float]], x_label: str, bins: int = 20) -> str:
    """Draw which share of each series lies where: the first filled, the others as outlines over it.

    bins: at most about so many; their edges are round numbers, the same for all series.
    """
    kept = {name: [float(value) for value in values if _is_finite(value)] for name, values in series.items()}
    together = [value for values in kept.values() for value in values]
    if not together:
        return _nothing(x_label)
    low, high = _widened(min(together), max(together))
    step = _round_step((high - low) / max(1, bins))
    first, last = (math.floor(end / step + 1e-9) for end in (low, high))
    columns, legend = [], []
    for number, (name, values) in enumerate(kept.items()):
        counts = [0] * (last - first + 1)
        for value in values:
            counts[math.floor(value / step + 1e-9) - first] += 1
        columns.append([100 * count / max(1, len(values)) for count in counts])
        facts = _counted(values, series[name]) + (f", median {median(values):.3g}" if values else "")
        colour, (fill, width) = COLOURS[number % 4], (0.3, 1) if number == 0 else (0, 2)
        style = f'fill="{colour}" fill-opacity="{fill}" stroke="{colour}" stroke-width="{width}"'
        legend.append((f'{style} stroke-dasharray="{DASHES[number % 4]}"', "m-9-4h18v8h-18z", name, facts))
    edges = (first * step, (last + 1) * step)
    frame, x, y, height = _frame(edges, (0, max(map(max, columns))), x_label, "percent of each", len(legend))
    drawn = []
    for (style, *_), column in zip(legend, columns, strict=True):
        steps = "".join(f"V{y(share)}H{x((first + n) * step)}" for n, share in enumerate(column, start=1))
        drawn.append(_path(f"M{x(edges[0])} {y(0)}{steps}V{y(0)}", style))
    return _svg(x_label, [f"{name}: {facts}" for *_, name, facts in legend], height, [_legend(legend), frame, *drawn])


def scatter_svg(points: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Draw points, a series a model, with a line at y = 0.

    Colours begin with the second, which `histogram_svg` gives to the first policy. Of a series of more than MOST_POINTS
    an even choice is drawn, and the legend says how many.
    """
    kept = {name: [(float(a), float(b)) for a, b in pairs if _is_finite(a, b)] for name, pairs in points.items()}
    together = [pair for pairs in kept.values() for pair in pairs]
    if not together:
        return _nothing(f"{y_label} by {x_label}")
    xs, ys = zip(*together, strict=True)
    x_range, y_range = (_widened(min(values), max(values), share=0.04) for values in (xs, (*ys, 0.0)))
    frame, x, y, height = _frame(x_range, y_range, x_label, y_label, len(kept))
    legend, drawn, words = [], [], []
    for number, (name, pairs) in enumerate(kept.items(), start=1):
        some = pairs[:: max(1, math.ceil(len(pairs) / MOST_POINTS))]
        facts = _counted(pairs, points[name]) + (f", {len(some):,} drawn" if len(some) < len(pairs) else "")
        if pairs:
            facts += f", {sum(b > 0 for _, b in pairs) / len(pairs):.0%} above 0"
        dot = 'stroke-width="5" stroke-linecap="round"' if MARKS[number % 4] == "h0" else 'stroke-width="1.2"'
        style = f'fill="none" stroke="{COLOURS[number % 4]}" {dot}'
        legend.append((style, MARKS[number % 4], name, facts))
        words.append(f"{name}: {facts}")
        marks = "".join(_path(f"M{x(a)} {y(b)}{MARKS[number % 4]}") for a, b in some)
        drawn.append(f'<g {style} stroke-opacity="{1 if len(some) <= 100 else 0.6}">{marks}</g>')
    drawn.append(_path(f"M{x.start} {y(0)}H{x.end}", 'stroke="currentColor"'))
    return _svg(f"{y_label} by {x_label}", words, height, [_legend(legend), frame, *drawn])


def calibration_svg(bins: list[dict]) -> str:
    """Draw how often what was predicted came true, against the diagonal on which the two agree.

    bins: dictionaries with low, high, count, predicted (mean), observed (share), ci_low, ci_high. The bars at the foot
    show how many pairs each holds. The axis begins at 0.5 where all bins lie above it.
    """
    title = "Observed share by predicted probability"
    kept = [b for b in bins if _is_finite(b["predicted"], b["observed"])]
    if not kept:
        return _nothing(title)
    most = max(b["count"] for b in kept)
    legend = [
        (f'stroke="{COLOURS[1]}" stroke-width="2"', "m-9 0h18", "observed", "with intervals"),
        (f'stroke="{COLOURS[0]}" stroke-dasharray="5 4"', "m-9 0h18", "perfect agreement", ""),
        (f'fill="{COLOURS[0]}" fill-opacity="0.3"', "m-9-4h18v8h-18z", "pairs in each bin", f"at most {most:,}"),
    ]
    start = 0.5 if min(b["low"] for b in kept) >= 0.5 else 0
    frame, x, y, height = _frame((start, 1), (0, 1), "predicted probability", "observed share", len(legend))
    line = "L".join(f"{x(b['predicted'])} {y(b['observed'])}" for b in kept)
    drawn = [_path(f"M{x(start)} {y(start)}L{x(1)} {y(1)}", legend[1][0])]
    drawn.append(_path(f"M{line}", f'fill="none" stroke="{COLOURS[1]}" stroke-opacity="0.5"'))
    words = []
    for b in kept:
        place, foot = x(b["predicted"]), y(0) - 28 * b["count"] / most
        marks = _path(f"M{x(b['low']) + 1:.1f} {y(0)}V{foot:.1f}H{x(b['high']) - 1:.1f}V{y(0)}z", legend[2][0])
        interval, said = _interval(b["ci_low"], b["ci_high"])
        marks += _path(f"M{place} {y(interval[0])}V{y(interval[1])}", legend[0][0]) if interval else ""
        marks += f'<circle cx="{place}" cy="{y(b["observed"])}" r="4" fill="{COLOURS[1]}"/>'
        words.append(f"predicted {b['predicted']:.2f}: observed {b['observed']:.2f}{said} of {b['count']:,}")
        drawn.append(f"<g><title>{_text(words[-1])}</title>{marks}</g>")
    return _svg(title, words, height, [_legend(legend), frame, *drawn])


def bars_svg(rows: list[tuple[str, float, float, float, int]], x_label: str, reference: float = 0.5) -> str:
    """Draw a value and its interval a row, as bars that begin at the reference.

    rows: (label, value, ci_low, ci_high, count). The axis goes from 0 to 1 where all values do.
    """
    ends = [float(end) for _, *values, _ in rows for end in values if _is_finite(end)]
    if not any(_is_finite(row[1]) for row in rows):
        return _nothing(x_label)
    low, high = min(*ends, reference), max(*ends, reference)
    low, high = (0, 1) if low >= 0 and high <= 1 else _widened(low, high, share=0.04)
    x, height = Scale(low, high, 10, WIDTH - 12), 40 * len(rows)
    drawn, words = [], []
    for number, (label, value, ci_low, ci_high, count) in enumerate(rows):
        top, middle = 40 * number + 12, 40 * number + 25
        interval, said = _interval(ci_low, ci_high)
        facts = f"{value:.2f}{said}, n {count:,}" if _is_finite(value) else f"no value, n {count:,}"
        words.append(f"{label}: {facts}")
        marks = _path(f"M{x.start} {middle}H{x.end}", f'stroke="{RULE}"')
        if _is_finite(value):
            colour = COLOURS[1] if value >= reference else COLOURS[2]
            thick = f'stroke="{colour}" stroke-width="10" stroke-opacity="0.3"'
            marks += _path(f"M{x(reference)} {middle}H{x(value)}", thick)
            if interval:
                marks += _path(f"M{x(interval[0])} {middle}H{x(interval[1])}", f'stroke="{colour}" stroke-width="2"')
            marks += f'<circle cx="{x(value)}" cy="{middle}" r="4.5" fill="{colour}"/>'
        marks += _path(f"M{x(reference)} {middle - 7}v14", 'stroke="currentColor" stroke-width="1.5"')
        text = _label(0, top, _short(label, 24), "start") + _label(WIDTH, top, facts, "end")
        drawn.append(f"<g><title>{_text(words[-1])}</title>{text}{marks}</g>")
    axis = _x_axis(x, height, f"{x_label}; upright line: {reference:g}")
    return _svg(x_label, words, height + 44, [*drawn, axis])


def _is_finite(*values) -> bool:
    """Whether all are numbers that can be drawn; what is larger than 1e30 counts as infinite."""
    return all(value is not None and abs(value) < 1e30 for value in values)  # not so for NaN


def _interval(low, high) -> tuple[tuple[float, float] | None, str]:
    return ((low, high), f" [{low:.2f}, {high:.2f}]") if _is_finite(low, high) else (None, "")


def _counted(kept: list, given: list) -> str:
    return f"n {len(kept):,}" + (f" ({len(given) - len(kept):,} not finite)" if len(kept) < len(given) else "")


def _widened(low: float, high: float, share: float = 0.0) -> tuple[float, float]:
    """A range with a margin of this share at either end; one that is hardly there becomes one that can be drawn."""
    most = max(abs(low), abs(high))
    pad = share * (high - low) if high - low > max(1e-12, 1e-9 * most) else max(0.5, 0.1 * most)
    return low - pad, high + pad


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    step = _round_step((high - low) / 5)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    form = f".{decimals}f" if decimals <= 5 and max(map(abs, values)) < 1e6 else ".2g"
    return [(value, f"{value:{form}}".replace("-", "\u2212")) for value in values]


def _frame(x_range, y_range, x_label: str, y_label: str, lines: int) -> tuple[str, Scale, Scale, int]:
    """Axes with round ticks below a legend of `lines` lines: their marks, both scales, and the height of it all."""
    y_ticks = _ticks(*y_range)
    top, left = LINE * lines + 30, 8 + 7.5 * max(len(tick) for _, tick in y_ticks)
    x, y = Scale(*x_range, left, WIDTH - 10), Scale(*y_range, top + PLOT, top)
    parts = [_label(0, top - 10, _short(y_label, 56), "start")]
    for value, tick in y_ticks:
        parts.append(_path(f"M{left} {y(value)}H{x.end}", f'stroke="{RULE}"'))
        parts.append(_label(left - 6, y(value) + 4, tick, "end"))
    return "".join(parts) + _x_axis(x, y.start, x_label), x, y, top + PLOT + 44


def _x_axis(x: Scale, top: float, label: str) -> str:
    ticks = "".join(
        _path(f"M{x(value)} {top}v5", f'stroke="{RULE}"') + _label(x(value), top + 18, tick, "middle")
        for value, tick in _ticks(x.low, x.high)
    )
    return ticks + _label(x.end, top + 36, _short(label, 56), "end")


def _path(course: str, style: str = "") -> str:
    return f'<path d="{course}" {style}/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _legend(entries: list[tuple[str, str, str, str]]) -> str:
    """A line a series: its mark, its name, what is to be known of it. An entry is (style, path, name, facts)."""
    lines = []
    for number, (style, mark, name, facts) in enumerate(entries):
        y = LINE * number + 10
        text = f"{_short(name, 22)}: {facts}" if facts else _short(name, 50)
        lines.append(_path(f"M11 {y}{mark}", style) + _label(28, y + 4, text, "start"))
    return "".join(lines)


def _short(text: str, most: int) -> str:
    """A text on one line that takes the place of at most so many letters; those of East Asia take that of two."""
    text, room = " ".join(_visible(text).split()), most
    for place, letter in enumerate(text):
        room -= 1 + (unicodedata.east_asian_width(letter) in "WF")
        if room < 0:
            return text[: max(0, place - 2)] + "…"
    return text


def _nothing(title: str) -> str:
    return _svg(title, ["Nothing to draw"], 40, [_label(0, 24, "Nothing to draw: no finite values.", "start")])


def _svg(title: str, words: list[str], height: float, parts: list[str]) -> str:
    """A figure of these parts; the words are what a screen reader says of it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" fill="currentColor" '
        f'font-family="system-ui, sans-serif" font-size="{TEXT}"><title>{_text(title)}</title>'
        f"<desc>{_text('; '.join(words))}</desc>{''.join(parts)}</svg>"
    )


# --- Style and script ------------------------------------------------------------------------------------------------

# Every text colour has a contrast of at least 4.5 with what is behind it, in both schemes; print takes the light one.
STYLE = """
:root { color-scheme: light dark; --paper: #fdfcfa; --box: #f4f2ed; --ink: #1c1e20; --soft: #595e63; --rule: #d8d5cd;
  --edge: #85827a; --link: #1d5c9e; --good: #17663f; --bad: #9c3117; --mark: #ffe9a3;
  --reference: #5d6268; --policy: #1d5c9e; --third: #a34a12; --fourth: #7a3d96; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #16181a; --box: #1f2225; --ink: #e7e5e0; --soft: #a6aaad; --rule: #3a3e42;
    --edge: #7d8287; --link: #8ab8ef; --good: #7fcba3; --bad: #f2977f; --mark: #5c4a10;
    --reference: #a9adb1; --policy: #7fb2ec; --third: #eb9f66; --fourth: #c79be0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3, h4, p, ul, dl, dd, figure { margin: 0; padding: 0; font-weight: 400; }
h1 { font-size: clamp(1.5rem, 5vw, 2rem); font-weight: 650; line-height: 1.2; letter-spacing: -0.015em; }
h2 { margin: 4rem 0 1rem; padding-top: 0.75rem; border-top: 1px solid var(--rule); font-size: 1.25rem;
  font-weight: 650; }
h3 { font-size: 1.05rem; font-weight: 650; line-height: 1.35; }
p, #caveats li { max-width: 44rem; }
a { color: var(--link); text-underline-offset: 0.2em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; }
.subtitle, figcaption p, #tables > p, .facts, .category, .place, #status, dt, #verdicts h2, #caveats h2 {
  color: var(--soft); }
.subtitle { margin-top: 0.4rem; font-size: 1.05rem; }
#verdicts h2, #caveats h2 { margin: 2.5rem 0 0.75rem; padding: 0; border: 0; font-size: 1rem; font-weight: 400; }
#verdicts article { padding: 0.9rem 0 1.3rem; border-top: 2px solid var(--ink); }
#verdicts article + article { border-top: 1px solid var(--rule); }
#verdicts p:first-child { font-size: 1.1rem; }
#verdicts p + p { margin-top: 0.45rem; }
@media (min-width: 52rem) { #verdicts article { display: grid; grid-template-columns: 2fr 3fr; gap: 2rem; }
  #verdicts article > div { padding-top: 1.6rem; } }
.model, .word { display: block; }
.word { margin: 0.1rem 0 0.7rem; font-size: clamp(2.5rem, 9vw, 3.75rem); font-weight: 650; line-height: 1.05;
  letter-spacing: -0.03em; }
.better, .win { color: var(--good); }
.worse, .loss { color: var(--bad); }
#caveats ul { padding-left: 1.1rem; }
#caveats li + li { margin-top: 0.35rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.5rem; margin-top: 2.5rem; list-style: none; }
nav a { display: block; padding: 0.35rem 0; }
#tables h3 { margin-top: 1.75rem; }
.scroll { margin-top: 0.6rem; overflow-x: auto;  /* the shade at the right is covered once the end is in sight */
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem calc(100% + 1px) no-repeat local,
    linear-gradient(to left, var(--rule), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0 0.4rem 1.6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { font-weight: 500; }
thead th { color: var(--soft); vertical-align: bottom; border-color: var(--edge); }
th:first-child { position: sticky; left: 0; padding: 0.4rem 0.5rem 0.4rem 0; min-width: 7rem;
  max-width: min(16rem, 42vw); background: var(--paper); overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
td.words { min-width: 11rem; max-width: 32rem; }
#figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2.5rem 3.5rem; }
#figures h2 { grid-column: 1 / -1; margin-bottom: -1.5rem; }
figure { min-width: 0; }
figcaption { margin-bottom: 0.9rem; }
svg { display: block; width: 100%; max-width: 31rem; height: auto; overflow: visible; }
@media (min-width: 34rem) { svg text { font-size: 10.5px; } }  /* figures are larger here, and units with them */
form { display: flex; flex-wrap: wrap; gap: 0.8rem 1rem; align-items: end; }
form[hidden] { display: none; }
label { flex: 1 1 9rem; color: var(--soft); font-size: 0.9rem; }
label.wide { flex: 3 1 16rem; }
input, select, button { display: block; width: 100%; min-height: 2.75rem; padding: 0.4rem 0.7rem;
  border: 1px solid var(--edge); border-radius: 4px; background: var(--paper); color: var(--ink);
  font: inherit; font-size: 1rem; }
button { width: auto; margin-top: 1.5rem; padding: 0.4rem 1.4rem; cursor: pointer; }
button[hidden] { display: none; }
#status { margin: 0.8rem 0 0.5rem; }
.pair { padding: 1.4rem 0 1.6rem; border-top: 1px solid var(--rule); }
.pair h3 { display: flex; flex-wrap: wrap; gap: 0 0.9rem; align-items: baseline; margin-bottom: 0.6rem; }
.place, .category { font-weight: 400; }
.text { white-space: pre-wrap; unicode-bidi: isolate; max-width: none; }
.text:empty::before { content: "(empty)"; color: var(--soft); font-style: italic; }
.prompt { max-width: 60rem; padding-left: 0.9rem; border-left: 2px solid var(--edge); color: var(--soft); }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0.8rem;
  margin: 0.9rem 0; }
.answers section { min-width: 0; padding: 0.8rem 1rem 0.9rem; border-radius: 4px; background: var(--box); }
h4 { margin-bottom: 0.3rem; font-size: 0.95rem; font-weight: 650; }
.facts { font-weight: 400; white-space: nowrap; }
.reason { font-size: 0.95rem; }
.reason::before { content: "Judge: "; color: var(--soft); }
mark { background: var(--mark); color: var(--ink); }
dl div { display: grid; grid-template-columns: minmax(6rem, 1fr) 4fr; gap: 0 1rem; padding: 0.4rem 0; }
dl div + div { border-top: 1px solid var(--rule); }
dd { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.9rem; white-space: pre-wrap; }
@media print { body { padding: 0; max-width: none; font-size: 10pt; } nav, form, button { display: none; }
  .scroll { overflow: visible; } figure, .answers section, tr { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; } }
"""

# Builds what `_generations` builds. Texts from the data only ever become text nodes.
SCRIPT = r"""
"use strict";
if (document.getElementById("pairs")) {
  const PAGE = 50;
  const [data, controls, search, filter, sort, status, list, more] =
    ["data", "controls", "search", "filter", "sort", "status", "pairs", "more"]
      .map((id) => document.getElementById(id));
  const pairs = JSON.parse(data.textContent);
  let found = pairs, shown = 0, wanted = null, timer = 0;

  const add = (parent, tag, name, text = "") => {
    const node = parent.appendChild(document.createElement(tag));
    node.className = name;
    node.textContent = text;
    return node;
  };
  const addText = (parent, name, text) => {
    const node = add(parent, "p", name);
    node.dir = "auto";
    // Split at what is searched for, every second part is what was found.
    (wanted ? text.split(wanted) : [text]).forEach((part, place) => {
      if (part) (place % 2 ? add(node, "mark", "") : node).append(part);
    });
  };
  const addPair = (pair) => {
    const article = add(list, "article", "pair");
    article.tabIndex = -1;
    const heading = add(article, "h3", "");
    add(heading, "span", "place", pair.number);
    add(heading, "span", pair.kind, pair.outcome);
    if (pair.category) add(heading, "span", "category", pair.category);
    addText(article, "prompt text", pair.prompt);
    const answers = add(article, "div", "answers");
    for (const answer of pair.answers) {
      const box = add(answers, "section", "");
      add(add(box, "h4", "", answer.model + " "), "span", "facts", answer.facts);
      addText(box, "text", answer.text);
    }
    if (pair.reason) add(article, "p", "reason", pair.reason).dir = "auto";
  };
  const showMore = () => {
    found.slice(shown, shown + PAGE).forEach(addPair);
    shown = Math.min(found.length, shown + PAGE);
    status.textContent = `${found.length.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} pairs` +
      (shown < found.length ? `, ${shown.toLocaleString("en")} shown` : "");
    more.hidden = shown === found.length;
    more.textContent = `Show ${Math.min(PAGE, found.length - shown)} more`;
  };
  const choose = () => {
    const text = search.value.trim().replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
    wanted = text ? new RegExp(`(${text})`, "iu") : null;
    found = pairs.filter((pair) => (!filter.value || pair.kind === filter.value) &&
      (!wanted || wanted.test(pair.prompt) || pair.answers.some((answer) => wanted.test(answer.text))));
    if (sort.value) found.sort((a, b) => (b[sort.value] ?? -1) - (a[sort.value] ?? -1));
    list.replaceChildren();
    shown = 0;
    showMore();
  };
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(choose, 120); });  // after typing
  more.addEventListener("click", () => {
    const before = shown;
    showMore();
    list.children[before].focus();
  });
  choose();
}
"""
