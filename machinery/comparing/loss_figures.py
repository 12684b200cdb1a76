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

TOKENS = 40  # of each answer in plot_shapes
# Where a label may stand, in points from its point: the first of these that covers nothing
PLACES = [(dx * far, dy * far) for far in (5, 14, 24, 36) for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1))]


def plot_frontier(report: dict, path: Path | str) -> None:
    """True reward over KL from the reference: a curve a loss over beta, with 95% intervals over the seeds.

    Beside them the untrained model, SFT on the chosen answers (where it is among the runs) and the best of n.
    """
    figure, axes = plt.subplots(figsize=(9, 6))
    losses = list(dict.fromkeys(run["loss"] for run in report["runs"]))
    colours = plt.get_cmap("tab10" if len(losses) <= 10 else "tab20")
    labels = []
    for number, name in enumerate(losses):
        runs = sorted((run for run in report["runs"] if run["loss"] == name), key=lambda run: run["beta"] or 0)
        is_curve, colour = len(runs) > 1, colours(number % colours.N)
        kl, kl_bars = _means(runs, "kl")
        rewards, reward_bars = _means(runs, "true_reward_after")
        kl = [max(value, 0.01) for value in kl]
        label = name if is_curve else None  # a single point has its name beside it
        style = dict(fmt="D" if name == "sft" else "o-", markersize=4, linewidth=1.3, elinewidth=0.4, color=colour)
        axes.errorbar(kl, rewards, xerr=kl_bars, yerr=reward_bars, label=label, **style)
        for run, *point in zip(runs, kl, rewards, strict=True):
            labels.append((f"{run['beta']:g}", *point, colour) if is_curve else (name, *point, "black"))
    before = mean_interval(report["before"])[0]
    axes.axhline(before, color="grey", linewidth=0.8, linestyle=":", label="before training")
    best = {n: (entry["kl"], mean_interval(entry["true_reward"])[0]) for n, entry in report["best_of_n"].items()}
    if best:
        axes.plot(*zip(*best.values(), strict=True), "k^--", markersize=5, label="best of n, by the truth")
        labels += [(f"n={n}", *point, "black") for n, point in best.items()]
    means, _ = _means(report["runs"], "true_reward_after")
    axes.set_ylim(min(before, *means) - 0.4, max(means) + 0.7)  # an interval of three seeds can be wider than the scale
    axes.set_xscale("log")
    scale = "log scale" + ("; the numbers at the points are beta" if len(report["runs"]) > len(losses) else "")
    x_label = f"KL from the reference, nats a reply ({scale})"
    _describe(axes, x_label, "What is won, and how far from the reference", report, legend="lower right")
    figure.tight_layout()  # places are found on the finished page
    _place_labels(axes, labels)
    _save(figure, path)


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
        axes.errorbar(shares, means, yerr=bars, fmt="o-", markersize=4, elinewidth=0.7, label=label)
    before = mean_interval(report["before"])[0]
    axes.axhline(before, color="grey", linewidth=0.8, linestyle=":", label="before training")
    _describe(axes, "share of labels flipped, besides the 14% that are wrong anyway", "Wrong labels", report)
    _save(figure, path)


def _means(runs: list[dict], key: str) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """The mean of each run over its seeds, and half of its interval; nan where its seeds agree, None for one seed."""
    means, _, highs = zip(*(mean_interval(run[key]) for run in runs), strict=True)
    halves = tuple(high - mean for mean, high in zip(means, highs, strict=True))
    return means, None if all(map(math.isnan, halves)) else halves


def _describe(axes, x_label: str, title: str, report: dict, legend: str = "best") -> None:
    count = len(report["seeds"])
    axes.set_xlabel(x_label)
    axes.set_ylabel("true reward of held-out replies")
    axes.set_title(f"{title} ({f'{count} seeds, 95% intervals' if count > 1 else '1 seed'})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc=legend)


def plot_shapes(losses: dict[str, Callable], betas: dict[str, float], path: Path | str) -> None:
    """Each loss, and how hard it pulls on either answer, while chosen rises and rejected falls by the same amount.

    losses: with their hyperparameters filled in. The pull is minus the gradient by the answer's log-prob: above 0 the
    answer is made likelier. Both have 40 tokens and start at -1 a token.
    """
    columns = min(4, len(losses))
    lines = math.ceil(len(losses) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.1 * columns, 2.3 * lines), squeeze=False)
    margin = torch.linspace(-60, 60, 481)  # chosen - rejected, in nats
    for axes, (name, loss) in zip(grid.flat, losses.items(), strict=False):
        values, for_chosen, for_rejected = loss_and_pull(loss, betas[name], margin)
        axes.plot(margin, values, color="black", linewidth=1.4)
        has_beta = "beta" in inspect.signature(loss).parameters
        axes.set_title(f"{name}, beta {betas[name]:g}" if has_beta else name, fontsize=9)
        axes.tick_params(labelsize=6)
        axes.axvline(0, color="grey", linewidth=0.5)
        pull = axes.twinx()
        pull.plot(margin, for_chosen, color="tab:green", linewidth=1)
        pull.plot(margin, for_rejected, color="tab:red", linewidth=1)
        pull.tick_params(labelsize=6)
        largest = max(for_chosen.abs().max(), for_rejected.abs().max()).item()
        pull.set_ylim(-1.15 * largest, 1.15 * largest)
    for axes in grid.flat[len(losses) :]:
        axes.axis("off")
    figure.suptitle(
        "black, left scale: loss; right scale: pull on the chosen (green) and the rejected (red) answer, above 0 upwards\n"
        "over chosen - rejected in nats (log policy - log reference, half of it each)",
        fontsize=9,
    )
    _save(figure, path)


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
