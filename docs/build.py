"""Makes every marked figure, table and block of output in the documents anew, and says which of them are out of date.

    python docs/build.py                  # everything: hours
    python docs/build.py --quick          # what takes seconds
    python docs/build.py --outdated       # what is older than its code
    python docs/build.py --only losses    # the pages of these names
    python docs/build.py --check          # change nothing, list what is wrong; the tests do the same

What stands in a document because a command has printed or drawn it has a mark above it, which a reader does not see:

    <!-- block: coverage -->

Next comes a fenced block (all that the command prints), a table (among what it prints the first that has these columns;
others it may have besides are left out) or a figure (a file that it writes). The command stands in the page too, for
the reader. Where the block comes from is said in docs/blocks.json, by page and name:

    "coverage": {"run": "python benchmarks/interval_coverage.py", "speed": "slow",
                 "depends": ["benchmarks/interval_coverage.py", "machinery/common/intervals.py"],
                 "made": "2026-11-24", "code": "0123456789"}

    run         one command, or several with && between them, which share a folder. It is a fresh copy of the project, so
                nothing is taken from earlier runs. "snippet" runs the ```python block below; the block behind it is what
                it prints. The snippets of a page share their variables.
    speed       quick: seconds; the tests run it, and compare the text. slow: minutes and more; the tests only look
                whether the code has changed since, and fail. A snippet has none: it is quick.
    from        the file the command leaves the text or the figure in, or stderr for its warnings; without it, its output,
                or the figure's own path
    within      how far numbers may be off, as in 5%; without it, one in the last digit behind a point
    depends     of all but quick text: the code and data whose change would change what is shown
    made, code  when, and a hash of depends at that time. Only a run writes them; there is no way to date without running.

A block may leave out lines ("..." alone on a line) and ends of lines ("..." at the end). Made anew it has the same
gaps: behind each gap it goes on at the next line that reads like the one there now but for its numbers, and is as long.

Why depends is written by hand. A hash over all that a script imports would call three hours of tables old for a word in
an error message of dpo_utils.py; nobody would run them again, and the warning would be worth nothing. So an entry names
what its block comes from: a file or a folder by its path, and a function, class or constant at the top level of the
project's code by its name, wherever it stands, with its file's name before it where several have one of that name, as
in "speed.LABELS". Something of its script must be among them. The hash is over the syntax tree without docstrings and
imports, and no path is in it: neither comments nor layout count, nor where the code stands. Other files count byte by
byte. What is left out is a judgement, which stands where everybody can read it.
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "demo" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
ENTRIES = "docs/blocks.json"
KEYS = ("run", "speed", "from", "within", "depends", "made", "code")
MARK = r"<!-- block: ([\w-]+) -->"
CODE = ("*.py", *(f"{folder}/**/*.py" for folder in ("machinery", "demo", "benchmarks", "docs")))  # what has names
OLD_IS_WRONG = True  # whether a slow block that is older than its code is a failure, or a warning
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
GAP = "..."
WIDTH = 110  # of the terminal that commands print for


class BuildError(Exception):
    """A block that cannot be read, or a command that does not give what the page shows."""


@dataclass
class Block:
    """A mark, its entry, and what it stands above. Line numbers count from 0; body is lines[start:end]."""

    page: Path
    name: str
    entry: dict
    where: str
    kind: str  # text, table, figure or snippet
    start: int
    end: int
    lines: list[str]  # of the page
    snippet: str  # its Python

    @property
    def body(self) -> list[str]:
        return self.lines[self.start : self.end]

    @property
    def is_quick(self) -> bool:
        return self.entry.get("speed") != "slow"

    @property
    def is_compared(self) -> bool:
        """Text that the tests make anew; all else is dated."""
        return self.is_quick and self.kind != "figure"


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_entries() -> dict[str, dict[str, dict]]:
    """What is said of the blocks, by page and name."""
    return json.loads((PROJECT / ENTRIES).read_text(encoding="utf-8"))


def write_entries(entries: dict) -> None:
    """Lists are filled like a paragraph: what a block depends on is read as one."""
    fill = textwrap.TextWrapper(102, subsequent_indent=" " * 8, break_on_hyphens=False).fill
    text = json.dumps(entries, indent=2)
    text = re.sub(r"\[\s+([^]]*?)\s+\]", lambda found: fill(f"[{' '.join(found[1].split())}]"), text)
    (PROJECT / ENTRIES).write_text(text + "\n", encoding="utf-8")


def read_blocks(page: Path) -> dict[str, Block]:
    """The blocks of a page by name, from top to bottom; each mark must have an entry and each entry a mark."""
    lines, blocks = page.read_text(encoding="utf-8").splitlines(), {}
    entries = read_entries().get(path_of(page), {})
    for number, line in enumerate(lines):
        where, mark = f"{path_of(page)}, line {number + 1}", re.fullmatch(MARK, line)
        if mark:
            name = mark[1]
            if name in blocks or name not in entries:
                raise BuildError(f"{where}: {name} is {'a second mark' if name in blocks else f'not in {ENTRIES}'}")
            blocks[name] = _read_block(page, name, entries[name], f"{where}, {name}", lines, number)
        elif "<!--" in line:
            raise BuildError(f"{where}: a comment that is no mark")
    if unmarked := [name for name in entries if name not in blocks]:
        raise BuildError(f"{path_of(page)} has no mark for what {ENTRIES} calls {', '.join(unmarked)}")
    return blocks


def _read_block(page: Path, name: str, entry: dict, where: str, lines: list[str], number: int) -> Block:
    is_snippet = entry.get("run") == "snippet"
    speeds = [None] if is_snippet else ["quick", "slow"]
    if not {"run"} <= set(entry) <= set(KEYS) or entry.get("speed") not in speeds:
        raise BuildError(f"{where}: run, a speed (a snippet has none), and of others only {', '.join(KEYS[2:])}")

    start = _next_line(lines, number + 1)
    head = lines[start] if start < len(lines) else ""
    snippet = ""
    if is_snippet:
        if head != "```python":
            raise BuildError(f"{where}: a snippet is a ```python block")
        first, last = start + 1, lines.index("```", start)
        snippet = "\n" * first + "\n".join(lines[first:last])  # errors name the line of the page
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
    return Block(page, name, entry, where, kind, start, end, lines, snippet)


def _next_line(lines: list[str], number: int) -> int:
    """The next line that is not empty."""
    while number < len(lines) and not lines[number].strip():
        number += 1
    return number


def figure_path(block: Block) -> Path:
    """The picture a figure shows."""
    return (block.page.parent / re.match(r"!\[[^]]*\]\(([^)]+)\)", block.body[0])[1]).resolve()


def path_of(file: Path) -> str:
    """As it is written in docs/blocks.json and in messages."""
    return file.relative_to(PROJECT).as_posix()


# --- What a block depends on -----------------------------------------------------------------------------------------


def code_hash(depends: list[str], project: Path) -> str:
    """Ten hex digits over what depends names, in whatever order and wherever it stands."""
    pieces = sorted(piece for _, piece in sources(depends, project))
    return hashlib.sha256(b"\0".join(pieces)).hexdigest()[:10]


def sources(depends: list[str], project: Path) -> list[tuple[Path, bytes]]:
    """The files in which stands what depends names, each with what counts of it."""
    code = {file: outlines(file.read_text("utf-8")) for pattern in CODE for file in project.glob(pattern)}
    found = []
    for word in depends:
        path = project / word
        if "/" in word or path.is_file():
            here = [
                (file, code[file][""] if file in code else bytes(file.relative_to(path)) + file.read_bytes())
                for file in [path, *path.rglob("*")]
                if file.is_file() and "__pycache__" not in file.parts
            ]
        else:
            home, _, name = word.replace(".", "/").rpartition("/")
            here = [
                (file, names[name]) for file, names in code.items() if name in names and file.match(f"{home or '*'}.py")
            ]
            if len(here) > 1:
                files = " and ".join(sorted(str(file.relative_to(project)) for file, _ in here))
                raise BuildError(f"depends names {word}, which stands in {files}; file.{name} says in which")
        if not here:
            raise BuildError(f"depends names {word}, which is no file, no folder and no name in the code")
        found += here
    return found


@functools.cache
def outlines(text: str) -> dict[str, bytes]:
    """What Python code does, whatever it looks like: each name of its top level, and under "" the whole of it."""
    found = {"": (nodes := ast.parse(text).body)}
    for node in nodes:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        for name in [getattr(node, "name", None), *(target.id for target in targets if isinstance(target, ast.Name))]:
            if name:
                found.setdefault(name, []).append(node)
    return {name: repr(_outline(nodes)).encode() for name, nodes in found.items()}


def _outline(node):
    """Nested tuples without positions and empty fields, so that Python's versions agree on them."""
    if isinstance(node, list):
        return [_outline(item) for item in node if not _is_left_out(item)]
    if isinstance(node, ast.AST):
        return type(node).__name__, [(k, _outline(v)) for k, v in ast.iter_fields(node) if v is not None and v != []]
    return repr(node)


def _is_left_out(node) -> bool:
    """Docstrings, and imports: they change when code moves, and what is imported is named by itself."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


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
        shutil.copytree(PROJECT, scratch, ignore=what_is_made)
    program, *words = shlex.split(last)
    if program != "python":
        raise BuildError(f"a block's command begins with python, not with {program}")
    environment = os.environ | {"COLUMNS": str(WIDTH)}
    done = subprocess.run([sys.executable, *words], cwd=scratch, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing printed"]
        raise BuildError(f"{last} ended with {done.returncode}: {told[0]}")
    warned += re.sub(r"[^\n]*\r", "", done.stderr)  # a progress bar goes back to the start of its line
    return printed + done.stdout, warned, scratch


def what_is_made(folder: str, names: list[str]) -> list[str]:
    """What a copy of the project goes without: hidden folders, caches, and at the top runs and environments."""
    at_top = ("runs", "venv") if Path(folder) == PROJECT else ()
    return [name for name in names if name.startswith(".") or name == "__pycache__" or name in at_top]


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="docs-build-")


@functools.cache
def run_snippets(page: Path) -> dict[str, str]:
    """What each snippet of a page prints, by name; they share their variables, as in one session."""
    namespace, printed = {}, {}
    for block in read_blocks(page).values():
        if block.kind == "snippet":
            output = io.StringIO()
            try:
                with contextlib.redirect_stdout(output):
                    exec(compile(block.snippet, str(page), "exec"), namespace)
            except Exception as error:
                raise BuildError(f"{block.where}: {type(error).__name__}: {error}") from error
            printed[block.name] = output.getvalue()
    return printed


def make(block: Block) -> list[str]:
    """The lines that belong below the mark, from a run now. Of a figure the file is written too."""
    if block.kind == "snippet":
        made = [line.rstrip() for line in run_snippets(block.page)[block.name].rstrip().splitlines()]
        if made and not block.start:
            raise BuildError(f"{block.where}: behind a snippet that prints stands a ``` block")
        return made
    printed, warned, scratch = run(block.entry["run"])
    source = block.entry.get("from")
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
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip()[1:-1])]


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


def complaints(block: Block) -> tuple[list[str], list[str]]:
    """What is wrong with a block, and what is only old, without running anything."""
    wrong, old = [], []
    if block.kind == "snippet":
        return wrong, old
    command, mend = block.entry["run"], f"python docs/build.py --only {page_name(block.page)}"
    seen = " ".join("\n".join(block.lines).replace("\\\n", " ").split())
    for part in command.split(" && "):
        if " ".join(part.split()) not in seen:
            wrong.append(f"{block.where}: the page does not show its reader the command {part}")
    if block.kind == "figure" and not figure_path(block).exists():
        wrong.append(f"{block.where}: there is no {path_of(figure_path(block))}; {mend} makes it")
    if block.is_compared:
        return wrong, old
    depends, script = block.entry.get("depends", []), shlex.split(command)[1]
    try:
        files, code = {file for file, _ in sources(depends, PROJECT)}, code_hash(depends, PROJECT)
    except BuildError as error:
        return [*wrong, f"{block.where}: {error}"], old
    if PROJECT / script not in files:
        wrong.append(f"{block.where}: depends must name {script}, or something in it, among what the block comes from")
    elif "code" not in block.entry:
        wrong.append(f"{block.where}: not yet made by its command; {mend} --outdated makes it")
    elif block.entry["code"] != code:
        text = f"made {block.entry['made']}, and the code has changed since; {mend} --outdated makes it anew"
        (wrong if block.is_quick or OLD_IS_WRONG else old).append(f"{block.where}: {text}")
    return wrong, old


def check(block: Block) -> tuple[list[str], list[str]]:
    """What is wrong with a block, and what is only old; quick text is made anew and compared."""
    wrong, old = complaints(block)
    if block.is_compared and not wrong:
        difference = differs(block.body, make(block), block.entry.get("within", ""))
        if difference:
            wrong.append(f"{block.where}: {difference}; python docs/build.py --only {page_name(block.page)} --quick")
    return wrong, old


def rebuild(page: Path, name: str) -> bool:
    """Make one block of a page anew and write the page. Whether anything has changed."""
    body = make(read_blocks(page)[name])
    block = read_blocks(page)[name]  # read again: a run takes long, and somebody may have written on
    if block.is_compared and not differs(block.body, body, block.entry.get("within", "")):
        return False  # the same within the tolerance: the page stays
    lines = [*block.lines[: block.start], *body, *block.lines[block.end :]]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not block.is_compared:
        code = code_hash(block.entry.get("depends", []), run(block.entry["run"])[-1])  # of the copy: the code that ran
        entries = read_entries()
        entries[path_of(page)][name] |= {"made": date.today().isoformat(), "code": code}
        write_entries(entries)
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
    return build(parser.parse_args())


def build(options: argparse.Namespace) -> int:
    """Check or make the blocks that the options ask for; 1 where something is wrong."""
    todo, old, start = [], [], time.monotonic()
    wrong = [f"{ENTRIES}: {name} is no page" for name in read_entries() if name not in map(path_of, PAGES)]
    for page in PAGES:
        if not options.only or page_name(page) in options.only:
            try:
                todo += read_blocks(page).values()
            except BuildError as error:
                wrong.append(str(error))
    todo = [block for block in todo if block.is_quick or not options.quick]
    todo = [block for block in todo if any(complaints(block)) or not options.outdated]
    for done, block in enumerate(todo, start=1):
        print(f"[{done}/{len(todo)}] {block.where}: {block.entry['run']}", flush=True)
        try:
            if options.check:
                for found, said in zip((wrong, old), check(block), strict=True):
                    found += said
            else:
                changed = rebuild(block.page, block.name)
                print(f"    {'made anew' if changed else 'as it was'}, {time.monotonic() - start:.0f} s", flush=True)
        except BuildError as error:
            wrong.append(str(error))
            print(f"    {error}", flush=True)
    for heading, found in (("Wrong:", wrong), ("Older than their code, which is a warning only:", old)):
        if found:
            print("\n".join(["", heading, *found]))
    if not wrong and not old:
        print(f"\nAll {len(todo)} are as they should be.")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the documents' own commands need no network
    sys.path.insert(0, str(PROJECT))  # for the snippets
    sys.exit(main())
