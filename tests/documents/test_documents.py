"""What README and docs say can be done can be done: commands parse, links and figures exist, settings agree."""

import ast
import functools
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from conftest import CONTRACT, PROJECT
from trl import DatasetMixtureConfig, ModelConfig

import basic_dpo_training
import custom_dataset_dpo
import custom_loss_dpo
import dpo_evaluation
import lora_dpo_training
from docs import build as docs_build
from docs.build import PAGES
from dpo_utils import TutorialArguments, TutorialConfig, parse_args
from machinery.command.command_line import CommandLine
from machinery.comparing.grid import without

# how each script reads its command line
SCRIPTS = {
    "basic_dpo_training.py": (basic_dpo_training, {}),
    "custom_dataset_dpo.py": (custom_dataset_dpo, {"arguments": custom_dataset_dpo.DataArguments}),
    "lora_dpo_training.py": (lora_dpo_training, {"arguments": lora_dpo_training.LoraArguments, "takes_adapters": True}),
    "custom_loss_dpo.py": (
        custom_loss_dpo,
        {"arguments": custom_loss_dpo.LossArguments, "takes_adapters": True, "losses": custom_loss_dpo.LOSSES},
    ),
    "dpo_evaluation.py": (
        dpo_evaluation,
        {"arguments": dpo_evaluation.EvaluationArguments, "takes_adapters": True, "needs_data": False},
    ),
}


# Flags of other programs that a page names.
FOREIGN_FLAGS = {"--config_file", "--hypothesis"}  # accelerate launch; pytest's --hypothesis-profile
MISTAKEN_FLAGS = {"--bata", "--evaluation_strategy"}  # shown with the error that they give
# Files that runs write: they are named in the pages, and not there in a fresh copy.
WRITTEN_BY_RUNS = {"base_model.json", "blind.csv", "cleaned.jsonl", "cleaned.dropped.jsonl", "completions.md",
                   "data_report.json", "data_report.png", "generations.jsonl", "judge_answers.jsonl", "manifest.json", "metrics.json", "report.html",
                   "trainer_state.json", "training_curves.png", "warnings.jsonl", "results.json"}  # fmt: skip
EXAMPLES = {"my_pairs.jsonl", "my_losses.py", "mine.py", "my_pairs.csv"}  # the reader's own files


def visible(page) -> str:
    """What a reader sees of a page: no marks, and lines that go on put together."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return text.replace("\\\n", " ")


def names_of(page) -> str:
    return str(page.relative_to(PROJECT))


def commands():
    """Every command of the pages and docstrings: on a line of its own, in a block of shell, in backticks."""
    for page in [*PAGES, *(PROJECT / script for script in SCRIPTS)]:
        text = visible(page)
        found = re.findall(r"^ {4,}((?:python|accelerate launch) .*)$", text, flags=re.MULTILINE)
        for block in re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            found += re.findall(r"^(?:python|accelerate launch) .*$", block, flags=re.MULTILINE)
        if page.suffix == ".md":
            found += [" ".join(code.split()) for code in re.findall(r"`(python [^`]+)`", text)]
        for line in dict.fromkeys(found):
            yield pytest.param(line.split(" #")[0].strip(), id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("command", commands())
def test_every_command_names_a_file_and_flags_that_exist(command):
    words = shlex.split(command)
    if words[0] == "accelerate":
        assert words[2] == "--config_file"
        assert (PROJECT / words[3]).exists()
        words = words[3:]
    _, what, *words = words
    if what == "-m":
        what = words.pop(0).replace(".", "/") + ".py"
        if what == "pytest.py":
            return
    assert (PROJECT / what).exists()
    if "--help" in words or "--help_all" in words:
        return
    if what in SCRIPTS:
        script, how = SCRIPTS[what]
        words = without(words, {"--adapter"})  # it is looked at at once, and comes from the command before
        parse_args("", script.DEMO, words, **how)
    else:
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert flags <= argparse_flags(PROJECT / what)


def argparse_flags(file) -> set[str]:
    return set(re.findall(r'add_argument\(\s*"(--\w+)"', file.read_text(encoding="utf-8")))


@functools.cache
def known_flags() -> set[str]:
    """All flags of all scripts, benchmarks and tools."""
    flags = {"--help", "--help_all", "--config"} | FOREIGN_FLAGS
    for _, how in SCRIPTS.values():
        dataclasses = (how.get("arguments", TutorialArguments), TutorialConfig, ModelConfig, DatasetMixtureConfig)
        flags |= set(CommandLine(dataclasses, "", {})._option_string_actions)
    for folder in ("benchmarks", "demo", "docs"):
        for file in (PROJECT / folder).glob("*.py"):
            flags |= argparse_flags(file)
    return flags


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_every_flag_that_a_page_names_exists(page):
    flags = set(re.findall(r"(?<![\w-])--[a-z]\w+", visible(page)))
    assert not flags - known_flags() - MISTAKEN_FLAGS


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_every_link_within_the_project_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", visible(page)):
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(page) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", visible(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_every_file_that_a_page_names_exists(page):
    names = re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|txt|ya?ml|toml|jsonl?|csv|png|md|html))`", visible(page))
    for name in set(names) - EXAMPLES:
        is_there = (PROJECT / name).exists() or (page.parent / name).exists()
        assert is_there or name.rpartition("/")[2] in WRITTEN_BY_RUNS, name


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_no_page_takes_longer_than_a_quarter_of_an_hour_to_read(page):
    words = [word for word in visible(page).split() if re.search("[a-zA-Z]", word)]  # numbers in tables are looked up
    assert (
        len(words) <= 15 * 238
    )  # words a minute: Brysbaert, Journal of Memory and Language 109 (2019), for non-fiction


@pytest.mark.parametrize("file", sorted((PROJECT / "machinery").glob("*.py")), ids=lambda file: file.name)
def test_a_file_of_the_machinery_names_the_others_that_it_needs(file):
    tree, needed = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "machinery":
            needed |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("machinery."):
            needed.add(node.module.partition(".")[2])
    assert needed <= set(re.findall(r"(\w+)\.py", ast.get_docstring(tree) or ""))


@functools.cache
def known_words() -> set[str]:
    """Every name in the project's code and in what TRL and PEFT call their settings, metrics and data."""
    files = [file for file in PROJECT.rglob("*.py") if not {".venv", "venv", "runs"} & set(file.parts)]
    files += [PROJECT / "demo" / "train.jsonl", *PROJECT.glob("recipes/**/*.yaml")]
    for package, pattern in {"trl": "trainer/[dk][pt]o*.py", "peft": "tuners/lora/config.py"}.items():
        files += Path(importlib.util.find_spec(package).origin).parent.glob(pattern)
    return set(re.findall(r"\w+", " ".join(file.read_text(encoding="utf-8") for file in files)))


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_every_function_and_name_in_backticks_exists(page):
    code = re.sub(r"^```.*?^```", "", visible(page), flags=re.MULTILINE | re.DOTALL)
    for name in set(re.findall(r"`(\w+)(?:\(\))?`", code)):
        is_code = "_" in name or re.search(r"[a-z][A-Z]", name)  # snake_case or CamelCase; other words are words
        assert not is_code or name in known_words(), name


# --- What the documents show is what their commands print --------------------------------------------------------------


def blocks():
    for page in PAGES:
        for block in docs_build.read_blocks(page):
            yield pytest.param(block, id=block.where)


@pytest.mark.parametrize("block", blocks())
def test_what_a_page_shows_is_what_its_command_prints_and_no_older_than_its_code(block):
    assert not docs_build.check(block)


@pytest.mark.parametrize(
    ("shown", "made", "within", "is_alike"),
    [
        ("loss 0.693", "loss 0.694", "", True),  # one in the last digit
        ("loss 0.693", "loss 0.695", "", False),
        ("2,048 rows", "2,049 rows", "", False),  # counts are exact
        ("2,048 rows", "2,100 rows", "5%", True),
        ("[1.80, 8.59]", "[1.85, 8.70]", "5%", True),
        ("beta 0.1", "rate 0.1", "5%", False),
        ("a", "a b", "", False),
    ],
)
def test_numbers_may_be_off_by_so_much_and_words_not_at_all(shown, made, within, is_alike):
    assert (docs_build.differs([shown], [made], within) == "") == is_alike


def test_a_block_made_anew_keeps_its_gaps():
    shown = ["step 1", "  ...", "", "done in 3 s, written to the fol...", "bye"]
    printed = ["step 1", "step 2", "", "step 3", "", "done in 4 s, written to the folder runs/1", "bye", "bye"]
    kept = ["step 1", "  ...", "", "done in 4 s, written to the fol...", "bye"]
    assert docs_build.shorten(printed, shown) == kept
    with pytest.raises(docs_build.BuildError):
        docs_build.shorten(["step 1", "something else"], shown)


def test_a_hash_of_code_sees_code_and_neither_comments_nor_docstrings(tmp_path):
    def outline(text: str, name: str = "") -> bytes:
        file = tmp_path / "code.py"
        file.write_text(text)
        return docs_build.python_outline(file, name)

    text = '"""What."""\nRATE = 1\n\n\ndef f(x):\n    """Doc."""\n    return x  # why\n'
    assert outline(text) == outline("RATE = 1\ndef f( x ):\n    return x\n")
    assert outline(text) != outline(text.replace("return x", "return -x"))
    assert outline(text, "f") == outline(text.replace("1", "2"), "f")  # only the function counts
    assert outline(text, "RATE") != outline(text.replace("1", "2"), "RATE")


def test_a_mark_without_a_run_of_this_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_build, "PROJECT", tmp_path)
    (tmp_path / "make.py").write_text("print(1)\n")
    page, mark = (
        tmp_path / "page.md",
        "<!-- run: python make.py | slow | depends: make.py | made: 2026-01-01 | code: {} -->",
    )

    def wrong(code: str) -> list[str]:
        page.write_text(mark.format(code) + "\n```\n1\n```\n\nMade by `python make.py`.\n")
        return docs_build.check(docs_build.read_blocks(page)[0])

    code = docs_build.code_hash("make.py")
    assert wrong(code) == []
    assert "made 2026-01-01, and the code has changed" in wrong("0123456789")[0]
    (tmp_path / "make.py").write_text("print(2)\n")
    assert wrong(code)
    docs_build.rebuild(page, 0)
    assert page.read_text().splitlines()[2] == "2"
    assert docs_build.check(docs_build.read_blocks(page)[0]) == []


def test_every_metric_of_a_run_is_defined():
    page = (PROJECT / "docs" / "reading_the_logs.md").read_text(encoding="utf-8")
    described = {
        "script",
        "model",
        "reference",
        "dataset",
        "beta",
        "loss_type",
        "seed",
    }  # say what they are by their names
    for name in [*CONTRACT, "true_reward_before", "true_reward_after", "win_rate", "reply_tokens_after"]:
        assert name in described or f"`{name}`" in page, name
