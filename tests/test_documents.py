"""What README and docs say can be done can be done: commands parse, links and figures exist, settings agree."""

import re
import shlex

import pytest
from conftest import PROJECT

import basic_dpo_training
import custom_dataset_dpo
import custom_loss_dpo
import dpo_evaluation
import lora_dpo_training
from dpo_utils import parse_args
from machinery.grid import without

PAGES = [PROJECT / "README.md", PROJECT / "demo" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
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


def commands():
    for page in [*PAGES, *(PROJECT / script for script in SCRIPTS)]:
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
        script, how = SCRIPTS[what]
        words = without(words, {"--adapter"})  # it is looked at at once, and comes from the command before
        parse_args("", script.DEMO, words, **how)


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
