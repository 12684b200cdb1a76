"""Draw what a DPO training logged: loss, rewards, margin and accuracy, held-out beside training.

    plot_training(trainer.state.log_history, "training_curves.png")
    plot_beside({"rate 1e-3": history, "rate 3e-3": another}, "curves.png")      # on the same axes

A history is the list of dictionaries that Transformers also keeps in trainer_state.json.
"""

from pathlib import Path

# Told apart by marker and line too; the colours are Okabe and Ito's, which differ to every eye (jfly.uni-koeln.de/color).
CHOSEN, REJECTED, TRAINING, HELD_OUT = "#0072B2", "#D55E00", "#000000", "#CC79A7"
UP, DOWN, PLAIN, ROUND = "^", "v", "", "o"
LINES = (  # of each panel: key, label, colour, marker
    ("loss", [("loss", "", TRAINING, PLAIN)]),
    (
        "rewards: beta * (log policy - log reference)",
        [("rewards/chosen", "chosen", CHOSEN, UP), ("rewards/rejected", "rejected", REJECTED, DOWN)],
    ),
    ("margin: chosen reward - rejected reward", [("rewards/margins", "", TRAINING, PLAIN)]),
    ("accuracy: share of pairs with a margin above 0", [("rewards/accuracies", "", TRAINING, PLAIN)]),
)


def plot_training(log_history: list[dict], path: Path | str) -> None:
    """Write a PNG with four panels over the training step."""
    figure = _figure(10, 6.5)
    for axes, (title, lines) in zip(figure.subplots(2, 2, sharex=True).flat, LINES, strict=True):
        _draw(axes, title, lines, log_history)
    for axes in figure.axes[2:]:
        axes.set_xlabel("step")
    _save(figure, path)


def plot_beside(histories: dict[str, list[dict]], path: Path | str) -> None:
    """Write a PNG with a column a run, by its label, and the four panels below each other, each row on one scale."""
    figure = _figure(4.6 * len(histories), 10)
    rows = figure.subplots(len(LINES), len(histories), sharex="col", sharey="row", squeeze=False)
    for number, (title, lines) in enumerate(LINES):
        for axes, (label, history) in zip(rows[number], histories.items(), strict=True):
            _draw(axes, title if number else f"{label}\n\n{title}", lines, history)
    for axes in rows[-1]:
        axes.set_xlabel("step")
    _save(figure, path)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # here: the import takes half a second, and --help draws nothing

    return Figure(figsize=(width, height))


def _draw(axes, title: str, lines: list[tuple], log_history: list[dict]) -> None:
    for key, label, colour, marker in lines:
        for logged, where in ((key, "training"), (f"eval_{key}", "held-out")):
            points = [(logs["step"], logs[logged]) for logs in log_history if logged in logs]
            if not points:
                continue
            style = dict(color=colour, marker=marker, markevery=max(1, len(points) // 10), linewidth=1.5, markersize=5)
            if where == "held-out":  # dashed and hollow, and of another colour where a panel has one line only
                style |= dict(linestyle="--", markerfacecolor="white")
                style |= {} if label else dict(color=HELD_OUT, marker=ROUND)
            name = label if where == "training" else f"{label}, {where}"
            axes.plot(*zip(*points, strict=True), label=name if label else where, **style)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.axhline(0, color="grey", linewidth=0.8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _save(figure, path: Path | str) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
