"""Draw the figures of an evaluation as SVG: a histogram, a scatter plot, a calibration curve, bars with intervals.

    svg = histogram_svg({"reference": [0.1, 0.4], "policy": [0.9, 1.2]}, "reward")

Every text is escaped, what is not finite is left out and counted, and no series is known by its colour alone. Colours
are those of the page (page/report.css), with others where an SVG stands by itself.
"""

import math
import re
import unicodedata
from statistics import median
from typing import NamedTuple

from markupsafe import Markup, escape

from ..common.intervals import SURE

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
MOST_POINTS = 2000  # of a series in a scatter plot: more cannot be told apart
FEW = 10  # values behind a bar: fewer are marked
# On a phone of 390 px a figure is about this many px wide, so a unit is a px there and the text has at least 12.
WIDTH, TEXT, LINE, PLOT = 360, 12.5, 18, 190
COLOURS = ("var(--reference, #5d6268)", "var(--policy, #1d5c9e)", "var(--third, #a34a12)", "var(--fourth, #35103f)")
RULE, PAPER = "var(--rule, #bbb)", "var(--paper, #fff)"
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


def histogram_svg(series: dict[str, list[float]], x_label: str, bins: int = 20) -> Markup:
    """Draw which share of each series lies where: the first filled, the others as outlines over it.

    bins: at most about so many; their edges are round numbers, the same for all series.
    """
    kept = {name: [float(value) for value in values if is_finite(value)] for name, values in series.items()}
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


def scatter_svg(points: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> Markup:
    """Draw points, a series a model, with a line at y = 0.

    Colours begin with the second, which `histogram_svg` gives to the first policy. Of a series of more than MOST_POINTS
    an even choice is drawn, and the legend says how many.
    """
    kept = {name: [(float(a), float(b)) for a, b in pairs if is_finite(a, b)] for name, pairs in points.items()}
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


def calibration_svg(bins: list[dict]) -> Markup:
    """Draw how often what was predicted came true, against the diagonal on which the two agree.

    bins: dictionaries with low, high, count, predicted (mean), observed (share), ci_low, ci_high. The bars at the foot
    show how many pairs each holds. The axis begins at 0.5 where all bins lie above it.
    """
    title = "Observed share by predicted probability"
    kept = [b for b in bins if is_finite(b["predicted"], b["observed"])]
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


def bars_svg(
    rows: list[tuple[str, float, float, float, int]],
    x_label: str,
    reference: float = 0.5,
    p_values: list[float] | None = None,
) -> Markup:
    """Draw a value and its interval a row, as bars that begin at the reference.

    rows: (label, value, ci_low, ci_high, count). The axis goes from 0 to 1 where all values do. A count below FEW is
    called few, and its interval dashed. p_values: of each row against the reference; a dot is hollow where that is not
    below SURE.
    """
    ends = [float(end) for _, *values, _ in rows for end in values if is_finite(end)]
    if not any(is_finite(row[1]) for row in rows):
        return _nothing(x_label)
    low, high = min(*ends, reference), max(*ends, reference)
    low, high = (0, 1) if low >= 0 and high <= 1 else _widened(low, high, share=0.04)
    x, height = Scale(low, high, 10, WIDTH - 12), 40 * len(rows)
    drawn, words = [], []
    for number, (label, value, ci_low, ci_high, count) in enumerate(rows):
        top, middle = 40 * number + 12, 40 * number + 25
        interval, said = _interval(ci_low, ci_high)
        few, sure = count < FEW, p_values is None or p_values[number] < SURE
        facts = f"{value:.2f}{said}" if is_finite(value) else "no value"
        facts += f", n {count:,}" + " (few)" * few
        chance = "" if p_values is None else ", beyond chance" if sure else ", may be chance"
        words.append(f"{label}: {facts}{chance}")
        marks = _path(f"M{x.start} {middle}H{x.end}", f'stroke="{RULE}"')
        if is_finite(value):
            colour = COLOURS[1] if value >= reference else COLOURS[2]
            thick = f'stroke="{colour}" stroke-width="10" stroke-opacity="0.3"'
            marks += _path(f"M{x(reference)} {middle}H{x(value)}", thick)
            if interval:
                line = f'stroke="{colour}" stroke-width="2"' + ' stroke-dasharray="3 3"' * few
                marks += _path(f"M{x(interval[0])} {middle}H{x(interval[1])}", line)
            fill = colour if sure else PAPER
            marks += f'<circle cx="{x(value)}" cy="{middle}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
        marks += _path(f"M{x(reference)} {middle - 7}v14", 'stroke="currentColor" stroke-width="1.5"')
        text = _label(0, top, _short(label, 18 if few else 24), "start") + _label(WIDTH, top, facts, "end")
        drawn.append(f"<g><title>{_text(words[-1])}</title>{text}{marks}</g>")
    axis = _x_axis(x, height, f"{x_label}; upright line: {reference:g}")
    return _svg(x_label, words, height + 44, [*drawn, axis])


def shown(value) -> str:
    """A text with what no page can hold or show written as Python writes it."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], str(value).replace("\r\n", "\n"))


def _text(value) -> Markup:
    return escape(shown(value))


def is_finite(*values) -> bool:
    """Whether all are numbers that can be drawn; what is larger than 1e30 counts as infinite."""
    return all(value is not None and abs(value) < 1e30 for value in values)  # not so for NaN


def _interval(low, high) -> tuple[tuple[float, float] | None, str]:
    return ((low, high), f" [{low:.2f}, {high:.2f}]") if is_finite(low, high) else (None, "")


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
    text, room = " ".join(shown(text).split()), most
    for place, letter in enumerate(text):
        room -= 1 + (unicodedata.east_asian_width(letter) in "WF")
        if room < 0:
            return text[: max(0, place - 2)] + "…"
    return text


def _nothing(title: str) -> Markup:
    return _svg(title, ["Nothing to draw"], 40, [_label(0, 24, "Nothing to draw: no finite values.", "start")])


def _svg(title: str, words: list[str], height: float, parts: list[str]) -> Markup:
    """A figure of these parts; the words are what a screen reader says of it."""
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" fill="currentColor" '
        f'font-family="system-ui, sans-serif" font-size="{TEXT}"><title>{_text(title)}</title>'
        f"<desc>{_text('; '.join(words))}</desc>{''.join(parts)}</svg>"
    )
