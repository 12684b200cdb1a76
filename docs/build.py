"""Makes every marked figure, table and block of output in the documents anew, and says which of them are out of date.

    python docs/build.py                  # everything: hours
    python docs/build.py --quick          # what takes seconds
    python docs/build.py --outdated       # what is older than its code
    python docs/build.py --only losses    # the pages of these names
    python docs/build.py --check          # change nothing, list what is wrong; the tests do the same

What stands in a document because a command has printed or drawn it has a mark above it, which a reader does not see:

    <!-- run: python benchmarks/interval_coverage.py | slow | depends: benchmarks/interval_coverage.py machinery/common/intervals.py | made: 2026-11-24 | code: 0123456789 -->

Next comes a fenced block (all that the command prints), a table (among what it prints the first that has these columns;
others it may have besides are left out) or a figure (a file that it writes). The command stands in the page too, for
the reader. The words of a mark:

    run         one command, or several with && between them, which share a folder. It is a fresh copy of the project, so
                nothing is taken from earlier runs. "snippet" runs the ```python block below; the block behind it is what
                it prints. The snippets of a page share their variables.
    quick       seconds: the tests run it, and compare the text
    slow        minutes and more: the tests only look whether the code has changed since
    from        the file the command leaves the text or the figure in, or stderr for its warnings; without it, its output,
                or the figure's own path
    within      how far numbers may be off, as in 5%; without it, one in the last digit behind a point
    depends     of all but quick text: the code and data whose change would change what is shown
    made, code  when, and a hash of depends at that time. Only a run writes them; there is no way to mark without running.

A block may leave out lines ("..." alone on a line) and ends of lines ("..." at the end). Made anew it has the same
gaps: behind each gap it goes on at the next line that reads like the one there now but for its numbers, and is as long.

Why depends is written by hand. A hash over all that a script imports would call three hours of tables old for a word in
an error message of dpo_utils.py; nobody would run them again, and the warning would be worth nothing. So a mark names
what its figures come from: files, folders, or "file.py:name" for a function, class or constant in a file. Its script
must be among them. The hash is over the syntax tree without docstrings, so comments and layout do not count; other
files count byte by byte. What is left out is a judgement, which stands where everybody can read it.
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "demo" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
KEYS = ("from", "within", "depends", "made", "code")
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
GAP = "..."
WIDTH = 110  # of the terminal that commands print for


class BuildError(Exception):
    """A mark that cannot be read, or a command that does not give what the page shows."""


@dataclass
class Block:
    """A mark and what it stands above. Line numbers count from 0; body is lines[start:end]."""

    page: Path
    mark_line: int
    command: str
    is_quick: bool
    options: dict[str, str]
    kind: str  # text, table, figure or snippet
    start: int
    end: int
    lines: list[str]  # of the page
    code: str = ""  # of a snippet

    @property
    def body(self) -> list[str]:
        return self.lines[self.start : self.end]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(PROJECT)}, line {self.mark_line + 1}"

    @property
    def is_compared(self) -> bool:
        """Text that the tests make anew; all else is dated."""
        return self.is_quick and self.kind != "figure"

    def mark(self) -> str:
        words = [f"run: {self.command}"]
        if self.kind != "snippet":
            words += [
                "quick" if self.is_quick else "slow",
                *(f"{k}: {self.options[k]}" for k in KEYS if k in self.options),
            ]
        return f"<!-- {' | '.join(words)} -->"


# --- Reading a page --------------------------------------------------------------------------------------------------


def read_blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, from top to bottom."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [_read_block(page, lines, number) for number, line in enumerate(lines) if line.startswith("<!-- run:")]


def _read_block(page: Path, lines: list[str], number: int) -> Block:
    where = f"{page.relative_to(PROJECT)}, line {number + 1}"
    if not lines[number].endswith("-->"):
        raise BuildError(f"{where}: the mark does not end on its line")
    command, *words = (word.strip() for word in lines[number][len("<!-- run:") : -len("-->")].split(" | "))
    options = dict(word.split(": ", 1) for word in words if ": " in word)
    speeds = [word for word in words if ": " not in word]
    if set(options) - set(KEYS) or (command != "snippet" and speeds not in (["quick"], ["slow"])):
        raise BuildError(f"{where}: a mark has quick or slow, and of the others only {', '.join(KEYS)}")

    start = _next_line(lines, number + 1)
    head = lines[start] if start < len(lines) else ""
    code = ""
    if command == "snippet":
        if head != "```python":
            raise BuildError(f"{where}: a snippet is a ```python block")
        first, last = start + 1, lines.index("```", start)
        code = "\n" * first + "\n".join(lines[first:last])  # errors name the line of the page
        following = _next_line(lines, last + 1)
        kind, start, end = "snippet", 0, 0  # nothing is printed
        if following < len(lines) and lines[following] == "```":
            start, end = following + 1, lines.index("```", following + 1)
    elif head.startswith("```"):
        kind, start, end = "text", start + 1, lines.index("```", start + 1)
    elif head.startswith("|"):
        kind, end = "table", start
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
    elif head.startswith("!["):
        kind, end = "figure", start + 1
    else:
        raise BuildError(f"{where}: below a mark stands a fenced block, a table or a figure")
    is_quick = command == "snippet" or speeds == ["quick"]
    return Block(page, number, command, is_quick, options, kind, start, end, lines, code)


def _next_line(lines: list[str], number: int) -> int:
    """The next line that is not empty."""
    while number < len(lines) and not lines[number].strip():
        number += 1
    return number


def figure_path(block: Block) -> Path:
    """The picture a figure shows."""
    return (block.page.parent / re.match(r"!\[[^]]*\]\(([^)]+)\)", block.body[0])[1]).resolve()


# --- What a block depends on -----------------------------------------------------------------------------------------


def code_hash(depends: str, project: Path | None = None) -> str:
    """Ten hex digits over files, folders and "file.py:one,other"; Python by its syntax tree without docstrings."""
    project = project or PROJECT
    digest = hashlib.sha256()
    for word in depends.split():
        path, _, names = word.partition(":")
        if not (project / path).exists():
            raise BuildError(f"depends names {path}, which does not exist")
        files = sorted((project / path).rglob("*")) if (project / path).is_dir() else [project / path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.relative_to(project).as_posix().encode())
                for name in names.split(","):
                    digest.update(python_outline(file, name) if file.suffix == ".py" else file.read_bytes())
    return digest.hexdigest()[:10]


def python_outline(file: Path, name: str = "") -> bytes:
    """What a Python file does, whatever it looks like: the whole of it, or what is called `name` at its top level."""
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    if name:
        nodes = [node for node in nodes if name in _names(node)]
        if not nodes:
            raise BuildError(f"depends names {name}, which {file.name} does not have")
    return repr(_outline(nodes)).encode()


def _names(node: ast.AST) -> list[str]:
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [getattr(node, "name", ""), *(target.id for target in targets if isinstance(target, ast.Name))]


def _outline(node):
    """Nested tuples without positions, docstrings and empty fields, so that Python's versions agree on them."""
    if isinstance(node, list):
        return [
            _outline(item)
            for item in node
            if not (
                isinstance(item, ast.Expr)
                and isinstance(item.value, ast.Constant)
                and isinstance(item.value.value, str)
            )
        ]
    if isinstance(node, ast.AST):
        return type(node).__name__, [(k, _outline(v)) for k, v in ast.iter_fields(node) if v is not None and v != []]
    return repr(node)


# --- Running ---------------------------------------------------------------------------------------------------------


@functools.cache
def run(command: str) -> tuple[str, str, Path]:
    """What a command prints, its warnings, and the copy of the project that it ran in. A command runs once.

    Of several, joined by &&, the last runs in a copy of what the others have left.
    """
    others, _, last = command.rpartition(" && ")
    scratch = Path(tempfile.mkdtemp(dir=_scratch().name)) / "project"
    if others:
        printed, warned, left = run(others)
        shutil.copytree(left, scratch)
    else:
        printed = warned = ""
        shutil.copytree(PROJECT, scratch, ignore=shutil.ignore_patterns(".*", "runs", "venv", "__pycache__"))
    program, *words = shlex.split(last)
    if program != "python":
        raise BuildError(f"a mark's command begins with python, not with {program}")
    environment = os.environ | {"COLUMNS": str(WIDTH)}
    done = subprocess.run([sys.executable, *words], cwd=scratch, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing printed"]
        raise BuildError(f"{last} ended with {done.returncode}: {told[0]}")
    warned += re.sub(r"[^\n]*\r", "", done.stderr)  # a progress bar goes back to the start of its line
    return printed + done.stdout, warned, scratch


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="docs-build-")


@functools.cache
def run_snippets(page: Path) -> list[str]:
    """What each snippet of a page prints; they share their variables, as in one session."""
    namespace, printed = {}, []
    for block in read_blocks(page):
        if block.kind == "snippet":
            output = io.StringIO()
            try:
                with contextlib.redirect_stdout(output):
                    exec(compile(block.code, str(page), "exec"), namespace)
            except Exception as error:
                raise BuildError(f"{block.where}: {type(error).__name__}: {error}") from error
            printed.append(output.getvalue())
    return printed


def make(block: Block) -> list[str]:
    """The lines that belong below the mark, from a run now. Of a figure the file is written too."""
    if block.kind == "snippet":
        number = [other.mark_line for other in read_blocks(block.page) if other.kind == "snippet"].index(
            block.mark_line
        )
        made = [line.rstrip() for line in run_snippets(block.page)[number].rstrip().splitlines()]
        if made and not block.start:
            raise BuildError(f"{block.where}: behind a snippet that prints stands a ``` block")
        return made
    printed, warned, scratch = run(block.command)
    source = block.options.get("from")
    if block.kind == "figure":
        shutil.copy(scratch / (source or figure_path(block).relative_to(PROJECT)), figure_path(block))
        return block.body
    if source and source != "stderr":
        printed = (scratch / source).read_text(encoding="utf-8")
    text = warned if source == "stderr" else printed
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    try:
        return pick_table(lines, block.body[0]) if block.kind == "table" else shorten(lines, block.body)
    except BuildError as error:
        raise BuildError(f"{block.where}: {error}") from None


def pick_table(lines: list[str], head: str) -> list[str]:
    """The first Markdown table that has the columns of this head; of its columns those, in the head's order."""
    wanted = _cells(head)
    for start, line in enumerate(lines):
        is_head = line.startswith("|") and (start == 0 or not lines[start - 1].startswith("|"))
        if is_head and set(wanted) <= set(columns := _cells(line)):
            end = start
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            places = [columns.index(name) for name in wanted]
            rows = [[_cells(row)[place] for place in places] for row in lines[start + 2 : end]]
            return [_row(wanted), "|---" * len(wanted) + "|", *map(_row, rows)]
    raise BuildError("the command prints no table with these columns any more")


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip()[1:-1].split("|")]


def _row(cells: list[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def shorten(lines: list[str], shown: list[str]) -> list[str]:
    """The lines with the gaps that the block has now."""
    if not any(line.strip() == GAP for line in shown):
        return [_cut(line, shown[number] if number < len(shown) else "") for number, line in enumerate(lines)]
    made, position, is_behind_gap = [], 0, False
    for number, line in enumerate(shown):
        if line.strip() == GAP:
            made.append(line)
            is_behind_gap = True
            continue
        if is_behind_gap and not line.strip():
            made.append(line)  # space around the gap; it says nothing about where to go on
            continue
        if is_behind_gap or number == 0:
            while position < len(lines) and not _reads_like(lines[position], line):
                position += 1
            is_behind_gap = False
        if position == len(lines):
            raise BuildError(f"the output has no line like {line.strip()!r} any more: choose the lines to show again")
        made.append(_cut(lines[position], line))
        position += 1
    return made


def _cut(line: str, shown: str) -> str:
    is_cut = shown.endswith(GAP) and len(line) > len(shown)
    return line[: len(shown) - len(GAP)] + GAP if is_cut else line


def _reads_like(line: str, shown: str) -> bool:
    words, wanted = (re.sub(NUMBER, "0", text).split() for text in (line, shown.removesuffix(GAP)))
    if not shown.endswith(GAP):
        return words == wanted
    return words[: len(wanted) - 1] == wanted[:-1]  # the last word may be cut


def differs(shown: list[str], made: list[str], within: str = "") -> str:
    """The first line of the page that is not what the command gives, and what it gives; empty if they agree.

    within: a share of the number, as in 5%; without it, one in the last digit behind a point.
    """
    share = float(within.removesuffix("%")) / 100 if within else 0.0
    for old, new in zip([*shown, *[""] * (len(made) - len(shown))], [*made, *[""] * len(shown)], strict=False):
        words, others = (re.findall(rf"{NUMBER}|[^\s\d]+", line) for line in (old, new))
        if len(words) != len(others) or not all(_agree(*pair, share) for pair in zip(words, others, strict=True)):
            return f"{old.strip()!r} is now {new.strip()!r}"
    return ""


def _agree(old: str, new: str, share: float) -> bool:
    if not (re.fullmatch(NUMBER, old) and re.fullmatch(NUMBER, new)):
        return old == new
    one, other = (float(word.replace(",", "")) for word in (old, new))
    unit = 10.0 ** -len(old.partition(".")[2].partition("e")[0]) if "." in old and "e" not in old else 0.0
    return abs(one - other) <= max(unit, share * abs(one)) * 1.001


# --- The command line ------------------------------------------------------------------------------------------------


def complaints(block: Block) -> list[str]:
    """What is wrong with a block without running anything."""
    mend = f"python docs/build.py --only {page_name(block.page)}"
    if block.kind == "snippet":
        return []
    wrong, script = [], shlex.split(block.command.split(" && ")[0])[1]
    seen = re.sub(r"<!--.*?-->", "", "\n".join(block.lines), flags=re.DOTALL).replace("\\\n", " ")
    for part in block.command.split(" && "):
        if " ".join(part.split()) not in " ".join(seen.split()):
            wrong.append(f"{block.where}: the page does not show its reader the command {part}")
    if block.kind == "figure" and not figure_path(block).exists():
        wrong.append(f"{block.where}: there is no {figure_path(block).relative_to(PROJECT)}; {mend} makes it")
    if block.is_compared:
        return wrong
    depends = block.options.get("depends", "")
    if script not in {word.partition(":")[0] for word in depends.split()}:
        wrong.append(f"{block.where}: depends must name {script} among what the block comes from")
    elif block.options.get("code") != code_hash(depends):
        made = block.options.get("made")
        why = f"made {made}, and the code has changed since" if made else "marked, and not yet made from its mark"
        wrong.append(f"{block.where}: {why}; {mend} --outdated makes it anew")
    return wrong


def check(block: Block) -> list[str]:
    """What is wrong with a block; quick text is made anew and compared."""
    wrong = complaints(block)
    if block.is_compared and not wrong:
        difference = differs(block.body, make(block), block.options.get("within", ""))
        if difference:
            wrong.append(f"{block.where}: {difference}; python docs/build.py --only {page_name(block.page)} --quick")
    return wrong


def rebuild(page: Path, number: int) -> bool:
    """Make one block of a page anew and write the page. Whether anything has changed."""
    body = make(read_blocks(page)[number])
    block = read_blocks(page)[number]  # read again: a run takes long, and somebody may have written on
    if block.is_compared and not differs(block.body, body, block.options.get("within", "")):
        return False  # the same within the tolerance: the page stays
    if not block.is_compared:
        code = code_hash(block.options["depends"], run(block.command)[-1])  # of the copy: the code that ran
        block.options |= {"made": date.today().isoformat(), "code": code}
    lines = [*block.lines[: block.start], *body, *block.lines[block.end :]]
    lines[block.mark_line] = block.mark()
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return True


def page_name(page: Path) -> str:
    """losses for docs/losses.md; README and demo for the two others."""
    return "demo" if page.parent.name == "demo" else page.stem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what takes seconds")
    parser.add_argument("--check", action="store_true", help="list what is wrong and change nothing; quick text is run")
    parser.add_argument("--outdated", action="store_true", help="only what is older than its code")
    parser.add_argument("--only", nargs="+", choices=[page_name(page) for page in PAGES], help="these pages")
    options = parser.parse_args()
    try:
        return build(options)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1


def build(options: argparse.Namespace) -> int:
    todo = [
        (page, number, block)
        for page in PAGES
        if not options.only or page_name(page) in options.only
        for number, block in enumerate(read_blocks(page))
        if block.is_quick or not options.quick
        if complaints(block) or not options.outdated
    ]
    wrong, start = [], time.monotonic()
    for done, (page, number, block) in enumerate(todo, start=1):
        print(f"[{done}/{len(todo)}] {block.where}: {block.command}", flush=True)
        try:
            if options.check:
                wrong += check(block)
            else:
                changed = rebuild(page, number)
                print(f"    {'made anew' if changed else 'as it was'}, {time.monotonic() - start:.0f} s", flush=True)
        except BuildError as error:
            wrong.append(str(error))
            print(f"    {error}", flush=True)
    print("\n".join(["", *wrong]) if wrong else f"\nAll {len(todo)} are as they should be.")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the documents' own commands need no network
    sys.path.insert(0, str(PROJECT))  # for the snippets
    sys.exit(main())
