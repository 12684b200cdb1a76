"""What README and docs say can be done can be done: commands parse, links and figures exist, settings agree."""

import re
import shlex

import pytest
from conftest import PROJECT

import basic_dpo_training
from dpo_utils import parse_args

PAGES = [PROJECT / "README.md", PROJECT / "demo" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
SCRIPTS = {"basic_dpo_training.py": basic_dpo_training.DEMO}


def commands():
    for page in [*PAGES, PROJECT / "basic_dpo_training.py"]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^    +(python .*)$", text, flags=re.MULTILINE):
            yield pytest.param(line.split("#")[0].strip(), id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("command", commands())
def test_every_command_names_a_file_and_flags_that_exist(command):
    _, what, *words = shlex.split(command)
    if what == "-m":
        module = words[0]
        assert module == "pytest" or (PROJECT / (module.replace(".", "/") + ".py")).exists()
        return
    assert (PROJECT / what).exists()
    if what in SCRIPTS and not {"--help", "--help_all"} & set(words):
        parse_args("", SCRIPTS[what], words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).resolve().exists(), target


def test_nothing_is_promised_about_files_that_are_not_there():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|txt|yaml|toml))`", readme):
        assert (PROJECT / name).exists(), name


def test_every_metric_of_a_run_is_defined():
    from test_basic_dpo_training import CONTRACT

    page = (PROJECT / "docs" / "reading_the_logs.md").read_text(encoding="utf-8")
    described = {"script", "model", "reference", "dataset", "seed"}  # say what they are by their names
    for name in [*CONTRACT, "true_reward_before", "true_reward_after", "win_rate"]:
        assert name in described or f"`{name}`" in page, name
