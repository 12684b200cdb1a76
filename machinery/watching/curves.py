"""Draw what a DPO training logged: loss, rewards, margin and accuracy, held-out beside training.

    plot_training(trainer.state.log_history, "training_curves.png")

log_history is the list of dictionaries that Transformers also keeps in trainer_state.json.
"""

from pathlib import Path

CHOSEN, REJECTED, TRAINING, HELD_OUT = "tab:green", "tab:red", "tab:blue", "tab:orange"


def plot_training(log_history: list[dict], path: Path | str) -> None:
    """Write a PNG with four panels over the training step."""
    from matplotlib.figure import Figure  # here: the import takes half a second, and --help draws nothing

    def line(axes, key: str, label: str, colour: str, style: str) -> None:
        points = [(logs["step"], logs[key]) for logs in log_history if key in logs]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.5, markersize=4)

    figure = Figure(figsize=(10, 6.5))
    (loss, rewards), (margin, accuracy) = figure.subplots(2, 2, sharex=True)
    for axes, key, title in (
        (loss, "loss", "loss"),
        (margin, "rewards/margins", "margin: chosen reward - rejected reward"),
        (accuracy, "rewards/accuracies", "accuracy: share of pairs with a margin above 0"),
    ):
        line(axes, key, "training", TRAINING, "-")
        line(axes, f"eval_{key}", "held-out", HELD_OUT, "o-")
        axes.set_title(title)
    for key, label, colour in (("rewards/chosen", "chosen", CHOSEN), ("rewards/rejected", "rejected", REJECTED)):
        line(rewards, key, label, colour, "-")
        line(rewards, f"eval_{key}", f"{label}, held-out", colour, "o--")
    rewards.set_title("rewards: beta * (log policy - log reference)")
    rewards.axhline(0, color="grey", linewidth=0.8)
    for axes in (margin, accuracy):
        axes.set_xlabel("step")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
