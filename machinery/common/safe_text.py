"""Show text that a model or a data file wrote so that nothing in it is obeyed, and no secret that a user gave at all.

print(visible(reply))                                   # one line, control characters as \\n, \\x1b
print(printable(message))                               # the same, with its lines as they are
say("Held out:", 12, "pairs")                           # that, on the first of several processes
for row in progress_bar(rows, "rows"): ...              # as tqdm; into a file whole lines, and few
print(first_line(error))                                # what went wrong, in one line
logger.addFilter(inert_record)                          # and for all that a logger says
make_libraries_inert()                                  # and the libraries
csv.writer(file).writerow(map(defused, cells))          # a spreadsheet that opens it runs nothing
page = completions_page(prompts, replies_before, replies_after)
"""

import logging
import re
import sys
import warnings

from accelerate import PartialState
from tqdm.auto import tqdm

from .masking import without_known

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")
COLOUR = re.compile("\x1b\\[[0-9;]*m")  # of a library's own, too


def visible(text: str) -> str:
    """A text on one line, with what does not print written as Python writes it, and secrets as ***."""
    text = without_known(text)
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def printable(text: str) -> str:
    """A text of several lines, with what does not print written as Python writes it."""
    return "\n".join(map(visible, text.split("\n")))


def say(*words) -> None:
    """Print, on the first of several processes only, and nothing that a terminal would obey."""
    if PartialState().is_main_process:
        print(printable(" ".join(map(str, words))), flush=True)


class _WholeLines:
    """A file for bars that is no terminal: where those would be drawn over, and cleared, it gets lines."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(*args, **options) -> tqdm:
    """tqdm's bar, which goes when it is done; where standard error is no terminal a line at first and every half a minute."""
    options |= {"desc": printable(options["desc"])} if options.get("desc") else {}  # it may name a model
    if not sys.stderr.isatty():
        lines = "{desc}: {n_fmt} of {total_fmt}, {elapsed}"
        options |= dict(file=_WholeLines(), bar_format=lines, mininterval=30, maxinterval=60)
    return tqdm(*args, leave=False, **options)


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that explain it and without a full stop."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return (f"{first} {others[0].strip()}" if first.endswith(":") and others else first).rstrip(".")


def inert_record(record: logging.LogRecord) -> bool:
    """A filter for a logger: everything is let through, with names of files and texts of rows made inert, uncoloured."""
    record.msg, record.args = printable(COLOUR.sub("", record.getMessage())), ()
    return True


def make_libraries_inert() -> None:
    """Make what libraries log and warn inert: names of tensors, of files and of columns come from files.

    A logger's filter sees only what is said to that very logger, so it is the handlers that get one: those of the
    libraries, and Python's last resort. The colours that Transformers puts around such a name on a terminal are lost.
    """
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    for handler in {*(handler for logger in loggers for handler in logger.handlers), logging.lastResort}:
        handler.addFilter(inert_record)
    stock = warnings.formatwarning
    if not getattr(stock, "is_inert", False):

        def formatwarning(*args, **kwargs) -> str:
            return printable(stock(*args, **kwargs))

        formatwarning.is_inert = True
        warnings.formatwarning = formatwarning


def defused(cell):
    """A cell of a table for spreadsheets: a text that begins like a formula would be run; after an apostrophe it is text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def completions_page(prompts: list, before: list, after: list) -> str:
    """The same prompts with the reply before and after training, as Markdown.

    prompts: texts or lists of turns; before, after: replies with a `text`. Every text is indented by four spaces, which
    makes it a block of code: no markup in it counts.
    """
    page = ["# Replies to the same prompts, before and after training\n"]
    for number, (prompt, old, new) in enumerate(zip(prompts, before, after, strict=True), start=1):
        turns = [{"role": "prompt", "content": prompt}] if isinstance(prompt, str) else prompt
        labelled = [(turn["role"], turn.get("content")) for turn in turns]
        page.append(f"## {number}\n")
        for label, text in [*labelled, ("before", old.text), ("after", new.text)]:
            lines = (visible(line) for line in str(text).split("\n"))
            page.append(
                re.sub(r"[^\w -]", "?", str(label)) + "\n\n" + "\n".join(f"    {line}" for line in lines) + "\n"
            )
    return "\n".join(page)
