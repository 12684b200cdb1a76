"""machinery/README.md is the map of machinery/: its files, and which room uses which, are those of the code."""

import ast
import re
import sys

import pytest
from conftest import PROJECT

MACHINERY = PROJECT / "machinery"
ROOMS = sorted(path.parent.name for path in MACHINERY.glob("*/__init__.py"))
MAP = (MACHINERY / "README.md").read_text(encoding="utf-8")


def files_of(room: str) -> list:
    return [path for path in sorted((MACHINERY / room).glob("*.py")) if path.name != "__init__.py"]


def imports_of(file) -> list[tuple[int, str]]:
    """The level of each import (1: from this room, 2: from another) and what it names."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module or name.name) for name in node.names]
        elif isinstance(node, ast.Import):
            found += [(0, name.name) for name in node.names]
    return found


def used_by(room: str) -> set[str]:
    return {name.partition(".")[0] for file in files_of(room) for level, name in imports_of(file) if level == 2}


def test_the_map_shows_every_file_where_it_is_in_about_six_words():
    shown, room = [], None
    for line in re.findall(r"^    (.*\S)", MAP.partition("\n## ")[0], flags=re.MULTILINE):
        name, words = line.split(maxsplit=1)
        if name.endswith("/"):
            room = name.rstrip("/")
        else:
            shown.append((room, name))
            assert 2 <= len(words.split()) <= 8, line
    there = [(room, file.name) for room in ROOMS for file in files_of(room)]
    assert sorted(shown) == sorted(there)


def test_the_tree_of_the_readme_is_the_top_of_the_project():
    tree = (
        (PROJECT / "README.md").read_text(encoding="utf-8").partition("## The tree\n")[2].partition("\n\nYou need")[0]
    )
    shown = {line.split()[0].rstrip("/") for line in tree.strip().splitlines()}
    there = {path.name for path in PROJECT.iterdir() if path.suffix == ".py" or path.is_dir()} | {"requirements.txt"}
    assert shown == {name for name in there if not name.startswith((".", "__")) and name not in ("runs", "venv")}


def test_the_arrows_of_the_map_are_those_of_the_imports():
    drawn = dict(re.findall(r"^    (\w+) +uses +(.+)$", MAP, flags=re.MULTILINE))
    assert drawn == {room: ", ".join(sorted(used_by(room) - {"common"})) or "none" for room in ROOMS}


def test_no_arrows_run_in_a_circle():
    open_rooms = {room: used_by(room) for room in ROOMS}
    while open_rooms:
        free = [room for room, used in open_rooms.items() if not used & open_rooms.keys()]
        assert free, f"a circle among {', '.join(open_rooms)}"
        for room in free:
            del open_rooms[room]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_of_the_project_but_relatively(room):
    ours = {path.stem for path in PROJECT.glob("*.py")} | {"machinery", "benchmarks", "docs", "tests"}
    ours |= set() if room == "comparing" else {"demo"}  # whose true rewards it asks for
    for file in files_of(room):
        assert not [name for level, name in imports_of(file) if level == 0 and name.partition(".")[0] in ours], file


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_has_no_code_at_its_door_and_few_files(room):
    [docstring] = ast.parse((MACHINERY / room / "__init__.py").read_text(encoding="utf-8")).body
    assert len(docstring.value.value.split()) > 20
    assert len(files_of(room)) <= 10


def test_no_module_is_called_like_one_of_the_standard_library():
    names = {file.stem for room in ROOMS for file in files_of(room)}
    assert not names & sys.stdlib_module_names
