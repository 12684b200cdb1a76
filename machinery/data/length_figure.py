"""Draw how long prompts and answers are, and whether the chosen answer tends to be the longer one.

    plot_lengths(report, "data_report.png")     # the report of data_doctor.Checkup, also read back from JSON

It needs report["histograms"]: unit, edges, counts of prompt, chosen, rejected; difference_edges and difference.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw into files; there may be no screen
import matplotlib.pyplot as plt

COLOURS = {"prompt": "tab:blue", "chosen": "tab:green", "rejected": "tab:red"}


def plot_lengths(report: dict, path: Path | str) -> None:
    """Write a PNG with two panels: the three lengths, and chosen minus rejected. The last bars hold the outliers."""
    drawn = report["histograms"]
    unit = drawn["unit"]
    described = report[unit]
    figure, (sizes, differences) = plt.subplots(1, 2, figsize=(10, 3.8))
    for part, colour in COLOURS.items():
        label = f"{part}, median {described[part]['median']:.0f}"
        sizes.stairs(drawn[part], drawn["edges"], color=colour, linewidth=1.8, label=label)
    sizes.set(title="length", xlabel=f"{unit} (the last bar holds the longest hundredth)", ylabel="pairs")
    sizes.legend(fontsize=8)

    longer = report["longer_is_chosen"]["accuracy"]
    differences.stairs(drawn["difference"], drawn["difference_edges"], fill=True, color="tab:grey")
    differences.axvline(0, color="black", linewidth=0.8)
    differences.set(title=f"chosen - rejected: the longer is chosen in {longer:.0%}", xlabel=unit, ylabel="pairs")
    for axes in (sizes, differences):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
