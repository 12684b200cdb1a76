"""docs/pieces.md holds in an empty folder: what it says to take is copied or cut out under another name, and used."""

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
from conftest import PATIENCE, PROJECT

from custom_loss_dpo import LOSSES
from machinery.training.losses import hyperparameters, made_up_pairs, name_of, uses_reference
from machinery.watching.watcher import NO_REFERENCE, first_loss

PAGE = (PROJECT / "docs" / "pieces.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
PAIRS = (
    '{"prompt": "Is it in stock?", "chosen": "Yes.", "rejected": "No."}\n' * 3
    + '{"prompt": "When?", "chosen": "Soon.", "rejected": "Why?"}\n'
)
# What the lines print, or warn of, where they do what the section says.
SEEN = {
    "A trainer that computes each prompt once": "Each prompt once: True",
    "Any loss on TRL's own trainer": "train_loss",
    "The watcher": "--learning_rate is 0.",
    "Replies and log-probs of a model": r"^ *-\d+\.\d\d  \w",
    "Preference data of any usual shape": "Held out: 1 pairs",
    "The doctor alone": r"\[0\].*\n(.*\n)*empty_answer 1 row 1",
    "A win rate that says how sure it is": r"win rate +0\.\d\d \[0\.\d\d, 0\.\d\d\]",
    "Judges": r"win rate of the second answers \(1\.0, ",
}


def code_of(section: str) -> str:
    [code] = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return code


def take(section: str, folder) -> None:
    """Do what the section says behind *Take*, and no more."""
    said = re.search(r"\*Take\* (.*?)(?=\n\n)", section, flags=re.DOTALL)[1]
    folder.mkdir()
    for name in re.findall(r"`(machinery/[\w/.]+)`", said):
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    cut = re.search(r"of\s+`(\w+\.py)`,\s+into\s+`mine/(\w+\.py)`:\s+(.*?)\.(?:\s|$)", said, flags=re.DOTALL)
    if cut:
        head = "\n".join(re.findall(r"^    ((?:import|from) .*)$", section, flags=re.MULTILINE))
        (folder / cut[2]).write_text(head + "\n\n" + cut_out(PROJECT / cut[1], re.findall(r"`(\w+)`", cut[3])) + "\n")


def cut_out(file, names: list[str]) -> str:
    """The source of what is called so at the top level of a file, decorators included."""
    text, found = file.read_text(encoding="utf-8"), {}
    lines = text.splitlines()
    for node in ast.parse(text).body:
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        for name in [getattr(node, "name", None), *targets]:
            start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            found[name] = "\n".join(lines[start - 1 : node.end_lineno])
    return "\n\n\n".join(found[name] for name in names)


QUICK = ("The watcher", "The doctor alone", "A win rate that says how sure it is")


@pytest.mark.parametrize(
    "title", [title if title in QUICK else pytest.param(title, marks=pytest.mark.thorough) for title in SEEN]
)
def test_a_piece_works_in_an_empty_folder_under_another_name(title, tmp_path):
    section = SECTIONS[title]
    take(section, tmp_path / "mine")
    (tmp_path / "my_pairs.jsonl").write_text(PAIRS)
    code = code_of(section).replace("Qwen/Qwen3-0.6B", str(PROJECT / "demo" / "model"))
    (tmp_path / "use.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SEEN[title], done.stdout + done.stderr, flags=re.MULTILINE), done.stdout + done.stderr


def test_every_formula_can_be_cut_out_as_the_page_says():
    section = SECTIONS["Any loss on TRL's own trainer"]
    head = "\n".join(re.findall(r"^    ((?:import|from) .*)$", section, flags=re.MULTILINE))
    for name in LOSSES:
        cut, given = {}, {"label_smoothing": 0.1, "discopop_tau": 0.05}
        exec(f"{head}\n{cut_out(PROJECT / 'custom_loss_dpo.py', ['logratios', name])}", cut)
        loss = partial(cut[name], **{key: given[key] for key in hyperparameters(cut[name]) if key in given})
        assert loss(beta=0.1, **made_up_pairs()).isfinite().all()
        assert uses_reference(loss) == (name not in NO_REFERENCE)
        assert name_of(loss) == name
        first_loss(name, beta=0.1)  # a number or None, whatever the name


def test_every_piece_of_the_page_is_tried_and_short():
    assert set(SECTIONS) == set(SEEN)
    for section in SECTIONS.values():
        code = [line for line in code_of(section).splitlines() if line and not line.startswith(("import", "from"))]
        assert len(code) <= 15
