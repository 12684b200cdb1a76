"""Print a data report: a table of findings, one of lengths, the verdict.

print_report({"rows_read": ..., "findings": ..., ...}, "pairs.jsonl")      # as data_doctor.Checkup.report makes it
print(summary(report))                                                     # the same in one line
"""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.safe_text import visible


def print_report(report: dict, name: str, console: Console | None = None) -> None:
    """Print the whole report of one split. Texts from the data are printed as they are, without markup."""
    console = console or Console(highlight=False)
    console.print(Text(f"\n{_line(name)}: {_line(report['shape'])}", style="bold"))
    console.print(f"{summary(report)}; {report['distinct_prompts']:,} distinct prompts{_turns(report)}\n")
    if report["scores"]:
        counts = ", ".join(f"{count:,} of {score}" for score, count in report["scores"].items())
        console.print(Text(f"Scores or labels of the answers (good is 1, bad is 0): {_line(counts)}\n"))
    if report["findings"]:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column, justify in (("finding", "left"), ("count", "right"), ("share", "right"), ("", "left")):
            table.add_column(column, justify=justify, no_wrap=column in ("count", "share"))
        table.add_column("first rows (from 0)")
        for finding in report["findings"].values():
            rows = ", ".join(map(str, finding["rows"][:6])) + (", ..." if finding["count"] > 6 else "")
            fate = Text("dropped", style="red") if finding["drops"] else Text("kept")
            table.add_row(Text(finding["title"]), f"{finding['count']:,}", f"{finding['share']:.1%}", fate, rows)
        console.print(table)
        for finding in report["findings"].values():
            if finding["detail"]:
                text = f"  {_line(finding['first'])}: {_line(finding['detail'])}"
                console.print(Text(text, style="dim"))
    else:
        console.print("No finding.")
    console.print()
    console.print(_length_table(report))
    if report["longer_is_chosen"]:
        longer = report["longer_is_chosen"]
        console.print(
            f"A judge that prefers the longer answer agrees with {longer['accuracy']:.1%} "
            f"[{longer['ci_low']:.1%}, {longer['ci_high']:.1%}] of the labels."
        )
    console.print(Text(f"\nVerdict: {report['verdict'][0]}", style="bold"))
    for sentence in report["verdict"][1:]:
        console.print(Text(f"  {sentence}"))


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


def _line(text: str) -> str:
    """At most 160 characters of a text, on one line."""
    return visible(text[:160]) + ("..." if len(text) > 160 else "")


def _turns(report: dict) -> str:
    if not report["most_turns_in_a_prompt"]:
        return ""
    return f", of up to {report['most_turns_in_a_prompt']} turns, {report['prompts_with_system_turn']:,} with a system turn"


def _length_table(report: dict) -> Table:
    tokens, characters = report["tokens"], report["characters"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("length")
    for unit in (["tokens"] if "prompt" in tokens else []) + ["characters"]:
        for what in ("median", "95%", "longest"):
            table.add_column(f"{unit}: {what}" if what == "median" else what, justify="right")
    for part in ("prompt", "chosen", "rejected"):
        cells = [
            f"{lengths[part][what]:,.0f}"
            for lengths in (tokens, characters)
            if part in lengths
            for what in ("median", "p95", "longest")
        ]
        table.add_row(part, *cells)
    if "prompt" in tokens and tokens["pairs_looked_at"] < report["pairs_made"]:
        table.caption = f"tokens: of {tokens['pairs_looked_at']:,} of the {report['pairs_made']:,} pairs"
    return table
