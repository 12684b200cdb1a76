"""What README and docs say can be done can be done: commands parse, links and figures exist, settings agree."""

import argparse
import functools
import importlib.util
import re
import shlex
import warnings
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
from machinery.command.flag_help import DATA_FLAGS
from machinery.comparing.grid import without
from machinery.own_pairs.flags import RARE

# how each script reads its command line
SCRIPTS = {
    "basic_dpo_training.py": (basic_dpo_training, {}),
    "custom_dataset_dpo.py": (
        custom_dataset_dpo,
        {"arguments": custom_dataset_dpo.DataArguments, "flags": DATA_FLAGS, "rare": RARE},
    ),
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
OF_LM_EVAL = {"--model", "--model_args", "--tasks", "--batch_size", "--output_path", "--apply_chat_template"}
FOREIGN_FLAGS = {"--config_file", "--hypothesis"} | OF_LM_EVAL  # accelerate launch; pytest's --hypothesis-profile
MISTAKEN_FLAGS = {"--bata", "--evaluation_strategy"}  # shown with the error that they give
# Files that runs write: they are named in the pages, and not there in a fresh copy.
WRITTEN_BY_RUNS = {"generation_config.json", "base_model.json", "blind.csv", "metrics.csv", "generations.csv", "cleaned.jsonl", "completions.md",
                   "data_report.json", "data_report.png", "generations.jsonl", "judge_answers.jsonl", "manifest.json", "metrics.json", "report.html",
                   "trainer_state.json", "training_curves.png", "warnings.jsonl", "results.json", "train.jsonl", "round-1.jsonl", "round-2.jsonl", "rounds.json"}  # fmt: skip
EXAMPLES = {
    "my_pairs.jsonl",
    "prompts.jsonl",
    "rules.py",
    "vllm.jsonl",
    "my_texts.txt",
    "my_losses.py",
    "mine.py",
    "my_pairs.csv",
    "mine/formulas.py",
    "mine/sampling.py",
}  # the reader's own files


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
def test_no_page_takes_longer_than_a_quarter_of_an_hour_to_read_and_the_first_one_less(page):
    words = [word for word in visible(page).split() if re.search("[a-zA-Z]", word)]  # numbers in tables are looked up
    minutes = 12 if page == PROJECT / "README.md" else 15
    assert (
        len(words) <= minutes * 238
    )  # a minute: Brysbaert, Journal of Memory and Language 109 (2019), for non-fiction


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_code_fits_the_width_of_a_page(page):
    is_fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            is_fenced = not is_fenced
        if is_fenced or line.startswith("    "):
            assert len(line) <= 120 or "https://" in line, line


@functools.cache
def known_words() -> set[str]:
    """Every name in the project's code and in what TRL and PEFT call their settings, metrics and data."""
    files = [file for file in PROJECT.rglob("*.py") if not {".venv", "venv", "runs"} & set(file.parts)]
    files += [
        PROJECT / "demo" / "train.jsonl",
        *PROJECT.glob("recipes/**/*.yaml"),
        *PROJECT.glob("machinery/**/*.yaml"),
    ]
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


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_marks_are_a_small_part_of_a_page_and_its_only_comments(page):
    text = page.read_text(encoding="utf-8")
    comments = re.findall(r"<!--.*?-->", text, flags=re.DOTALL)
    assert all(re.fullmatch(docs_build.MARK, comment) for comment in comments)
    assert sum(map(len, comments)) <= 0.03 * len(text)


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_each_mark_has_an_entry_and_each_entry_a_mark(page):
    assert list(docs_build.read_blocks(page)) == list(docs_build.read_entries().get(names_of(page), {}))


def test_each_page_that_has_entries_is_a_page():
    assert set(docs_build.read_entries()) <= set(map(names_of, PAGES))


def blocks():
    for page, entries in docs_build.read_entries().items():
        for name, entry in entries.items():
            takes_long = (
                entry.get("speed") == "quick" and "--show" not in entry["run"]
            )  # seconds, and a command's start
            marks = [pytest.mark.thorough] if takes_long else []
            yield pytest.param(PROJECT / page, name, id=f"{page}: {name}", marks=marks)


@pytest.mark.parametrize(("page", "name"), blocks())
def test_what_a_page_shows_is_what_its_command_prints_and_no_older_than_its_code(page, name):
    wrong, old = docs_build.check(docs_build.read_blocks(page)[name])
    for text in old:
        warnings.warn(text, stacklevel=1)
    assert not wrong


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


def test_a_hash_of_code_sees_code_and_neither_comments_docstrings_nor_imports():
    text = '"""What."""\nimport math\nRATE = 1\n\n\ndef f(x):\n    """Doc."""\n    import json\n\n    return x  # why\n'
    outlines = docs_build.outlines(text)
    assert outlines == docs_build.outlines("RATE = 1\ndef f( x ):\n    return x\n")
    turned = docs_build.outlines(text.replace("return x", "return -x"))
    assert outlines[""] != turned[""]
    assert outlines["f"] != turned["f"]
    assert outlines["RATE"] == turned["RATE"]  # only what is named counts


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A script, and a page with one block."""
    monkeypatch.setattr(docs_build, "PROJECT", tmp_path)
    monkeypatch.setattr(docs_build, "PAGES", [tmp_path / "page.md"])
    (tmp_path / "docs").mkdir()
    (tmp_path / "make.py").write_text("print(1)\n")
    (tmp_path / "page.md").write_text("<!-- block: one -->\n```\n1\n```\n\nMade by `python make.py`.\n")
    return tmp_path


def enter(name: str = "one", **keys):
    """Write an entry for the page's block; a key that is None is left out."""
    entry = {"run": "python make.py", "speed": "slow", "depends": ["make.py"], "made": "2026-01-01", **keys}
    docs_build.write_entries({"page.md": {name: {key: value for key, value in entry.items() if value is not None}}})


def checked(project) -> tuple[list[str], list[str]]:
    return docs_build.check(docs_build.read_blocks(project / "page.md")["one"])


def test_code_that_has_moved_keeps_its_hash(project):
    def hashes(file: str, text: str) -> list[str]:
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).write_text(text)
        found = [docs_build.code_hash([word], project) for word in ("f", "RATE", f"{Path(file).stem}.f", file)]
        (project / file).unlink()
        return found

    text = "from one import g\n\nRATE = 1\n\n\ndef f(x):\n    from two import h\n\n    return h(g(x))\n"
    before = hashes("whole.py", text)
    assert before == hashes("machinery/room/part.py", text.replace("one", "rooms.one").replace("two", "rooms.two"))
    assert len(set(before)) == 3  # f is f, with its file's name before it or not
    changed = hashes("whole.py", text.replace("g(x)", "g(-x)"))
    assert [one == other for one, other in zip(before, changed, strict=True)] == [False, True, False, False]


def test_a_hash_of_data_sees_bytes_and_names_and_no_order(project):
    (project / "data").mkdir()
    (project / "data" / "one.txt").write_text("1")
    before = docs_build.code_hash(["data/", "make.py"], project)
    (project / "data").rename(project / "moved")
    assert docs_build.code_hash(["make.py", "moved/"], project) == before
    (project / "moved" / "one.txt").rename(project / "moved" / "two.txt")
    assert docs_build.code_hash(["moved/", "make.py"], project) != before


def test_a_name_that_two_files_have_or_none_is_refused(project):
    for file in ("one.py", "two.py"):
        (project / file).write_text(f"def f():\n    return {file!r}\n")
    with pytest.raises(docs_build.BuildError, match=r"one\.py and two\.py"):
        docs_build.code_hash(["f"], project)
    assert docs_build.code_hash(["one.f"], project) != docs_build.code_hash(["two.f"], project)
    for word in ("g", "three.f", "three.py", "data/one.txt"):
        with pytest.raises(docs_build.BuildError, match=re.escape(word)):
            docs_build.code_hash([word], project)


def test_a_block_without_a_run_of_this_code_is_refused(project, monkeypatch):
    monkeypatch.setattr(docs_build, "OLD_IS_WRONG", True)
    code = docs_build.code_hash(["make.py"], project)
    enter(code=code)
    assert checked(project) == ([], [])
    enter(code="0123456789")
    assert "made 2026-01-01, and the code has changed" in checked(project)[0][0]
    enter(code=None)
    assert "not yet made" in checked(project)[0][0]
    enter(code=code)
    (project / "make.py").write_text("print(2)\n")
    assert checked(project)[0]
    docs_build.rebuild(project / "page.md", "one")
    assert (project / "page.md").read_text().splitlines()[2] == "2"
    assert checked(project) == ([], [])


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_slow_block_that_is_older_than_its_code_is_a_warning_until_it_is_wrong(
    project, monkeypatch, capsys, is_wrong
):
    monkeypatch.setattr(docs_build, "OLD_IS_WRONG", is_wrong)
    enter(code="0123456789")
    options = argparse.Namespace(check=True, quick=False, outdated=False, only=None)
    assert docs_build.build(options) == is_wrong
    heading, line = capsys.readouterr().out.splitlines()[-2:]
    assert heading.startswith("Wrong" if is_wrong else "Older")
    assert "page.md, line 1, one: made 2026-01-01" in line


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"depends": None}, "depends must name make.py"),
        ({"depends": ["docs/gone.py"]}, "docs/gone.py"),
        ({"run": "python make.py --loud"}, "does not show its reader the command python make.py --loud"),
    ],
)
def test_an_entry_that_does_not_fit_its_block_is_refused(project, keys, says, monkeypatch):
    monkeypatch.setattr(docs_build, "OLD_IS_WRONG", False)  # which would be said besides
    enter(code="0123456789", **keys)
    [wrong], _ = checked(project)
    assert says in wrong


def test_a_figure_that_is_missing_or_old_is_refused_also_where_it_is_quick(project):
    (project / "page.md").write_text("<!-- block: one -->\n![One](one.png)\n\nMade by `python make.py`.\n")
    enter(code="0123456789", speed="quick")
    missing, old = checked(project)[0]
    assert "there is no one.png" in missing
    assert "the code has changed since" in old


@pytest.mark.parametrize(
    ("name", "keys", "page", "says"),
    [
        ("one", {"colour": "red"}, "{}", "line 1, one: run"),
        ("one", {"speed": "fast"}, "{}", "line 1, one: run"),
        ("one", {"run": "snippet"}, "{}", "line 1, one: run"),
        ("two", {}, "{}", "line 1: one is not in docs/blocks.json"),
        ("one", {}, "{}{}", "line 7: one is a second mark"),
        ("one", {}, "One.\n", "no mark for what docs/blocks.json calls one"),
        ("one", {}, "{}<!-- run: python make.py -->\n", "line 7: a comment that is no mark"),
    ],
)
def test_what_is_wrong_with_marks_and_entries_is_named(project, capsys, name, keys, page, says):
    file = project / "page.md"
    file.write_text(page.replace("{}", file.read_text()))
    enter(name, **keys)
    assert docs_build.build(argparse.Namespace(check=True, quick=False, outdated=False, only=None)) == 1
    assert says in capsys.readouterr().out


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
