"""Show what was found in preference data: tables in the terminal, a JSON file, a picture of the lengths.

show_reports({"train": report}, "runs/data")            # all of it; a report is what doctor.Checkup.report() returns
print_report(report)                                    # a table of findings, one of lengths, the verdict
print(summary(report))                                  # the same in one line
verdict(report)                                         # what to make of it, in a few sentences
plot_lengths(report, "data_report.png")                 # how long prompts and answers are; is the longer one chosen?
"""

import json
from pathlib import Path

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.kept_files import complete_file, dispensable
from ..common.safe_text import visible

STYLES = {  # told apart by line too; the colours are Okabe and Ito's, which differ to every eye
    "prompt": dict(color="#000000", linestyle=":"),
    "chosen": dict(color="#0072B2", linestyle="-"),
    "rejected": dict(color="#D55E00", linestyle="--"),
}
# Findings that keep data from being called sound wherever they are more than a slip.
SERIOUS = ("chat_marks", "scores_contradict", "few_prompts", "few_chosen", "few_rejected")
PLAIN = dict(box=None, padding=(0, 2, 0, 0), header_style="bold")  # of a table


def show_reports(reports: dict, folder: Path | str) -> None:
    """Print the report of each split, and write data_report.json and data_report.png into the folder.

    reports: by split; empty for streamed data. The first of several processes does it.
    """
    if not reports or not PartialState().is_main_process:
        return
    for report in reports.values():
        print_report(report)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with dispensable(Path(folder) / "data_report.json") as path, complete_file(path) as file:
        json.dump(reports, file, indent=2, ensure_ascii=True, allow_nan=False)
    with dispensable(Path(folder) / "data_report.png") as path:
        plot_lengths(next(reversed(reports.values())), path)


def print_report(report: dict) -> None:
    """Print the whole report of one split. Texts from the data are printed as they are, without markup."""
    console = Console(highlight=False)
    console.print(Text(f"\n{_line(report['source'])}: {_line(report['shape'])}", style="bold"))
    reading = report["reading"]
    if " = " in reading["says"]:  # else each column is called what it is
        console.print(Text(f"Read as {_line(reading['says'], 400)}"))
        console.print(Text(f"  {_line(reading['flags'], 400)}", style="dim"), soft_wrap=True)  # to be pasted
    turns = ""
    if most := report["most_turns_in_a_prompt"]:
        turns = f", of up to {most} turns, {report['prompts_with_system_turn']:,} with a system turn"
    console.print(f"{summary(report)}; {report['distinct_prompts']:,} distinct prompts{turns}\n")
    if report["scores"]:
        counts = ", ".join(f"{count:,} of {score}" for score, count in report["scores"].items())
        console.print(Text(f"Scores or labels of the answers (good is 1, bad is 0): {_line(counts)}\n"))
    if report["findings"]:
        table = Table("finding", **PLAIN)
        for column in ("count", "share"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column()
        table.add_column("first rows (from 0)")
        for finding in report["findings"].values():
            rows = ", ".join(map(str, finding["rows"][:6])) + (", ..." if finding["count"] > 6 else "")
            fate = Text("dropped", style="red") if finding["drops"] else Text("kept")
            table.add_row(Text(finding["title"]), f"{finding['count']:,}", f"{finding['share']:.1%}", fate, rows)
        console.print(table)
        for finding in report["findings"].values():
            if finding["detail"]:
                console.print(Text(f"  {_line(finding['first'])}: {_line(finding['detail'])}", style="dim"))
    else:
        console.print("No finding.")
    console.print()
    console.print(_length_table(report))
    if longer := report["longer_is_chosen"]:
        console.print(
            f"A judge that prefers the longer answer agrees with {longer['accuracy']:.1%} "
            f"[{longer['ci_low']:.1%}, {longer['ci_high']:.1%}] of the labels."
        )
    console.print(Text(f"\nVerdict: {report['verdict'][0]}", style="bold"))
    for sentence in report["verdict"][1:]:
        console.print(Text(f"  {sentence}"))


def verdict(report: dict) -> list[str]:
    """What to make of a report, in a few sentences; the first one is the verdict."""
    rows, pairs = report["rows_read"], report["pairs"]
    left_out = report["dropped_by_reason"].get("not_chosen", 0)  # by design, and no fault
    dropped = (report["rows_dropped"] - left_out) / max(rows, 1)
    kept = {name: f for name, f in report["findings"].items() if not f["drops"] and name != "shared_beginning"}
    look = list(kept.values())
    if not pairs:
        first = "Nothing is left to train on."
    elif dropped > 0.2:
        first = f"Look at the data before training: {dropped:.0%} of the rows had to be dropped."
    elif any(finding["share"] > (0.01 if name in SERIOUS else 0.05) for name, finding in kept.items()) or report.get(
        "columns_that_may_belong"
    ):
        first = "Usable, with something to look at."
    elif dropped > 0:
        first = "Sound, once the dropped rows are out."
    else:
        first = "Sound."
    drops = [finding for finding in report["findings"].values() if finding["drops"]]
    worst = [max(drops, key=lambda finding: finding["count"])] if dropped > 0.2 else []
    told = worst + sorted(look, key=lambda finding: -finding["count"])
    sentences = [first, *(f"{finding['count']:,} x {finding['title']}: {finding['meaning']}" for finding in told)]
    if belonging := report.get("columns_that_may_belong"):
        sentences.append(f"Not read, though the names look as if they belonged to the pairs: {', '.join(belonging)}.")
    longer = report["longer_is_chosen"]
    if longer and longer["ci_low"] > 0.6:
        sentences.append(
            f"Preferring the longer answer would get {longer['accuracy']:.0%} of the labels right: the model can learn to "
            "be long instead of good."
        )
    elif longer and longer["ci_high"] < 0.4:
        sentences.append(f"The shorter answer is chosen in {1 - longer['accuracy']:.0%} of the pairs.")
    if 0 < pairs < 500:
        sentences.append(f"So few pairs ({pairs:,}) change little, and show it with wide intervals.")
    return sentences


def summary(report: dict) -> str:
    """How many rows were read, used and dropped, and why."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped_by_reason"].items())
    dropped = f", {report['rows_dropped']:,} dropped ({reasons})" if reasons else ""
    pairs = f"{report['pairs']:,} pair" + "s" * (report["pairs"] != 1)
    return f"{report['rows_read']:,} rows, {report['rows_used']:,} used in {pairs}{dropped}"


def to_look_at(report: dict) -> str:
    """The findings that drop nothing, with their counts, in one sentence; empty if there are none."""
    kept = {name: f["count"] for name, f in report["findings"].items() if not f["drops"] and name != "shared_beginning"}
    if not kept:
        return ""
    looked = report["tokens"]["pairs_looked_at"]
    part = f" (in tokens, {looked:,} pairs were looked at)" if 0 < looked < report["pairs"] else ""
    return f" To look at: {', '.join(f'{count:,} {name}' for name, count in kept.items())}{part}."


def _line(text: str, most: int = 160) -> str:
    """At most so many characters of a text, on one line."""
    return visible(text[:most]) + ("..." if len(text) > most else "")


def _length_table(report: dict) -> Table:
    tokens = report["tokens"]
    units = ("tokens", "characters") if "prompt" in tokens else ("characters",)
    table = Table("length", **PLAIN)
    for column in [title for unit in units for title in (f"{unit}: median", "95%", "longest")]:
        table.add_column(column, justify="right")
    for part in STYLES:
        lengths = [report[unit][part][what] for unit in units for what in ("median", "p95", "longest")]
        table.add_row(part, *(f"{length:,.0f}" for length in lengths))
    if "prompt" in tokens and tokens["pairs_looked_at"] < report["pairs_made"]:
        table.caption = f"tokens: of {tokens['pairs_looked_at']:,} of the {report['pairs_made']:,} pairs"
    return table


def plot_lengths(report: dict, path: Path | str) -> None:
    """Write a PNG with two panels: the three lengths, and chosen minus rejected. The last bars hold the outliers."""
    from matplotlib.figure import Figure  # here: the import takes half a second, and --help draws nothing

    drawn = report["histograms"]
    unit = drawn["unit"]
    described = report[unit]
    figure = Figure(figsize=(10, 3.8))
    sizes, differences = figure.subplots(1, 2)
    for part, style in STYLES.items():
        label = f"{part}, median {described[part]['median']:.0f}"
        sizes.stairs(drawn[part], drawn["edges"], linewidth=1.8, label=label, **style)
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
