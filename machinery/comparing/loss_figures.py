"""Draw preference losses: their shape, what they reach at which distance, and what wrong labels do to them.

    plot_shapes({"sigmoid": sigmoid}, {"sigmoid": 0.1}, "shapes.png")

A loss is a function as training/losses.py describes it. `plot_frontier` and `plot_noise` take the report that
`loss_comparison` writes as results.json.
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw into files; there may be no screen
import matplotlib.pyplot as plt
import torch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ..common.intervals import mean_interval
from ..watching.curves import CHOSEN, REJECTED

TOKENS = 40  # of each answer in plot_shapes
PANELS = 12  # of one figure of shapes: more could not be read on a page
# Told apart by marker and line too; the colours are Okabe and Ito's, which differ to every eye (jfly.uni-koeln.de/color).
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#E69F00")
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")
# Where a label may stand, in points from its point: the first of these that covers nothing
PLACES = [(dx * far, dy * far) for far in (5, 14, 24, 36) for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1))]


def plot_frontier(report: dict, path: Path | str) -> None:
    """True reward over KL from the reference: a curve a loss over beta, means over the seeds.

    Beside them the untrained model, SFT on the chosen answers (where it is among the runs) and the best of n. Intervals
    of few seeds would cover the figure; they stand in its table.
    """
    figure, axes = plt.subplots(figsize=(9, 6))
    losses = list(dict.fromkeys(run["loss"] for run in report["runs"]))
    labels = []
    for number, name in enumerate(losses):
        runs = sorted((run for run in report["runs"] if run["loss"] == name), key=lambda run: run["beta"] or 0)
        kl = [max(value, 0.01) for value in _means(runs, "kl")[0]]
        rewards, _ = _means(runs, "true_reward_after")
        is_curve = len(runs) > 1
        style = _style(number) if is_curve else dict(color="black", marker="D" if name == "sft" else "o", linestyle="")
        axes.plot(kl, rewards, label=name if is_curve else None, **style)  # a single point has its name beside it
        for run, *point in zip(runs, kl, rewards, strict=True):
            labels.append((f"{run['beta']:g}", *point, style["color"]) if is_curve else (name, *point, "black"))
    before = mean_interval(report["before"])[0]
    axes.axhline(before, color="grey", linewidth=0.8, linestyle=":", label="before training")
    best = {n: (entry["kl"], mean_interval(entry["true_reward"])[0]) for n, entry in report["best_of_n"].items()}
    if best:
        axes.plot(*zip(*best.values(), strict=True), "*--", color="grey", markersize=9, label="best of n, by the truth")
        labels += [(f"n={n}", *point, "dimgrey") for n, point in best.items()]
    axes.set_xscale("log")
    scale = "log scale" + ("; the numbers at the points are beta" if len(report["runs"]) > len(losses) else "")
    x_label = f"KL from the reference, nats a reply ({scale})"
    seeds = f"means of {len(report['seeds'])} seeds" if len(report["seeds"]) > 1 else "1 seed"
    _describe(axes, x_label, f"What is won, and how far from the reference ({seeds})", legend="lower right")
    axes.margins(y=0.12)
    figure.tight_layout()  # places are found on the finished page
    _place_labels(axes, labels)
    _save(figure, path)


def _style(number: int) -> dict:
    """How the curve of this number is drawn, unlike the others in colour, marker and mostly in dashes."""
    these = [these[number % len(these)] for these in (COLOURS, MARKERS, DASHES)]
    return dict(zip(("color", "marker", "linestyle"), these, strict=True)) | dict(markersize=5, linewidth=1.3)


def _place_labels(axes, labels: list[tuple]) -> None:
    """Write each (text, x, y, colour) beside its point, where it covers neither a point nor another label."""
    renderer, dots = axes.figure.canvas.get_renderer(), axes.transData.transform([label[1:3] for label in labels])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    style = dict(textcoords="offset points", fontsize=8)
    style["path_effects"] = [withStroke(linewidth=2, foreground="white")]  # readable across the intervals
    for text, x, y, colour in labels:
        for dx, dy in PLACES:
            side = dict(ha="left" if dx > 0 else "right", va="bottom" if dy > 0 else "top")
            line = dict(arrowstyle="-", linewidth=0.4, color="grey") if abs(dx) > 5 else None
            note = axes.annotate(text, (x, y), xytext=(dx, dy), color=colour, arrowprops=line, **side, **style)
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer)  # without the line to its point
            if not any(box.overlaps(other) for other in taken):
                break
            if (dx, dy) != PLACES[-1]:
                note.remove()
        taken.append(box)


def plot_noise(report: dict, path: Path | str) -> None:
    """True reward over the share of flipped labels, a line a loss, with 95% intervals over the seeds."""
    figure, axes = plt.subplots(figsize=(8, 5))
    losses = list(dict.fromkeys((run["loss"], run["beta"]) for run in report["runs"]))
    for number, (name, beta) in enumerate(losses):
        runs = [run for run in report["runs"] if (run["loss"], run["beta"]) == (name, beta)]
        means, bars = _means(runs, "true_reward_after")
        shares = [run["share"] + 0.004 * (number - len(losses) / 2) for run in runs]  # side by side, to be told apart
        label = name if beta is None else f"{name}, beta {beta:g}"  # sft has none
        axes.errorbar(shares, means, yerr=bars, elinewidth=0.7, label=label, **_style(number))
    before = mean_interval(report["before"])[0]
    axes.axhline(before, color="grey", linewidth=0.8, linestyle=":", label="before training")
    count = len(report["seeds"])
    title = f"Wrong labels ({f'{count} seeds, 95% intervals' if count > 1 else '1 seed'})"
    _describe(axes, "share of labels flipped, besides the 15% that are wrong anyway", title)
    _save(figure, path)


def _means(runs: list[dict], key: str) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """The mean of each run over its seeds, and half of its interval; nan where its seeds agree, None for one seed.

    A figure that a run does not have, such as an infinite KL, is left out.
    """
    known = [[value for value in run[key] if value is not None] for run in runs]
    found = [mean_interval(values) if values else (math.nan,) * 3 for values in known]
    means, _, highs = zip(*found, strict=True)
    halves = tuple(high - mean for mean, high in zip(means, highs, strict=True))
    return means, None if all(map(math.isnan, halves)) else halves


def _describe(axes, x_label: str, title: str, legend: str = "best") -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel("true reward of held-out replies")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc=legend)


def plot_shapes(losses: dict[str, Callable], betas: dict[str, float], path: Path) -> None:
    """Each loss, and how hard it pulls on either answer, while chosen rises and rejected falls by the same amount.

    losses: with their hyperparameters filled in; those behind the first twelve are drawn into a second file, shapes-2.png
    beside shapes.png. One whose beta is large is drawn nearer to 0, but for those with a parameter chosen_lengths, which
    take means. The pull is minus the gradient by the answer's log-prob: above 0 the answer is made likelier. Both have 40
    tokens and start at -1 a token.
    """
    names = list(losses)
    for page, start in enumerate(range(0, len(names), PANELS), start=1):
        shown = {name: losses[name] for name in names[start : start + PANELS]}
        _plot_page_of_shapes(shown, betas, path if page == 1 else path.with_stem(f"{path.stem}-{page}"))


def _plot_page_of_shapes(losses: dict[str, Callable], betas: dict[str, float], path: Path) -> None:
    columns = min(3, len(losses))
    lines = math.ceil(len(losses) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.4 * columns, 2.5 * lines + 0.6), squeeze=False)
    for axes, (name, loss) in zip(grid.flat, losses.items(), strict=False):
        has_beta = "beta" in (takes := inspect.signature(loss).parameters)
        # Most of a loss of sums happens where beta times the difference is below 10.
        reach = min(60, 10 / betas[name]) if has_beta and "chosen_lengths" not in takes else 60
        margin = torch.linspace(-reach, reach, 481)  # chosen - rejected, in nats
        values, for_chosen, for_rejected = loss_and_pull(loss, betas[name], margin)
        [of_loss] = axes.plot(margin, values, color="black", linewidth=1.6)
        axes.set_title(f"{name}, beta {betas[name]:g}" if has_beta else name, fontsize=10)
        axes.axvline(0, color="grey", linewidth=0.5)
        pull = axes.twinx()
        [of_chosen] = pull.plot(margin, for_chosen, color=CHOSEN, linewidth=1.2)
        [of_rejected] = pull.plot(margin, for_rejected, color=REJECTED, linestyle="--", linewidth=1.2)
        for scale in (axes, pull):
            scale.tick_params(labelsize=8)
            scale.locator_params(axis="y", nbins=5)
        largest = max(for_chosen.abs().max(), for_rejected.abs().max()).item()
        pull.set_ylim(-1.15 * largest, 1.15 * largest)
    for axes in grid.flat[len(losses) :]:
        axes.axis("off")
    for axes in grid.flat[max(0, len(losses) - columns) : len(losses)]:  # the lowest of each column
        axes.set_xlabel("chosen - rejected, nats", fontsize=9)
    words = (
        "loss (left scale)",
        "pull on the chosen answer (right scale)",
        "pull on the rejected one, above 0 upwards",
    )
    figure.legend((of_loss, of_chosen, of_rejected), words, loc="upper center", ncols=3, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.45 / figure.get_figheight()))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def loss_and_pull(loss: Callable, beta: float, margin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A loss at each margin, and minus its gradient by the chosen and the rejected answer's log-prob; each (len(margin),)."""
    values = []
    for half in (margin / 2).tolist():  # one pair at a time: some losses sort the pairs of a batch
        chosen = torch.tensor([-TOKENS + half], requires_grad=True)
        rejected = torch.tensor([-TOKENS - half], requires_grad=True)
        value = loss(
            beta=beta,
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            ref_chosen_logps=torch.tensor([-float(TOKENS)]),
            ref_rejected_logps=torch.tensor([-float(TOKENS)]),
            chosen_lengths=torch.tensor([TOKENS]),
            rejected_lengths=torch.tensor([TOKENS]),
        )
        slopes = torch.autograd.grad(value.sum(), [chosen, rejected], allow_unused=True)
        values.append([value.item(), *(0.0 if slope is None else -slope.item() for slope in slopes)])
    return torch.tensor(values).unbind(1)


def _save(figure, path: Path | str) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
