"""The stories of a real model, on the demo's and for two steps: they run, go on after a stop, and are shown."""

import json
import shlex
import sys

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT))
from benchmarks import real_model
from machinery.common.errors import function_from

SMALL = {
    real_model.MODEL: str(PROJECT / "demo" / "model"),
    "--config recipes/smollm2/cpu.yaml": f"--config recipes/smollm2/cpu.yaml --model_name_or_path {PROJECT}/demo/model "
    "--max_steps 2 --per_device_train_batch_size 2 --num_eval_prompts 2 --eval_strategy epoch --save_strategy no",
    "--max_new_tokens 48": "--max_new_tokens 1",
}


@pytest.mark.thorough
def test_a_story_is_told_once_and_shown(tmp_path, monkeypatch, capsys):
    pairs = [{"instruction": f"Say {n}.", "input": "", "chosen": f"Here is {n}.", "rejected": "No."} for n in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    commands = real_model.STORIES["given"]
    for long, short in SMALL.items():
        commands = [command.replace(long, short) for command in commands]
    monkeypatch.setitem(real_model.STORIES, "given", commands)
    monkeypatch.setattr(real_model, "OUT", tmp_path / "out")
    monkeypatch.setattr(real_model, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--pairs", str(tmp_path / "pairs.json"), "--stories", "given"])
    real_model.main()
    first = capsys.readouterr().out
    assert first.count("python ") == len(commands)
    assert "| the same, three epochs |" in first and "| all weights |" in first
    real_model.main()
    assert "python " not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--show", "given"])
    real_model.main()
    assert capsys.readouterr().out.strip() in first
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--replies", "given"])
    real_model.main()
    quoted = capsys.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text())["given"]["0"]["given-facts"]["replies"]
    assert kept and quoted.count("  runs/lora-3: ") == len(kept)
    assert all(prompt in quoted for prompt in kept)


def test_the_prompts_whose_replies_are_shown_are_asked():
    for output, quoted in real_model.QUOTED.items():
        file = "prompts/test.jsonl" if output.endswith("rule") else "facts.jsonl"
        rows = map(json.loads, (PROJECT / "recipes" / "smollm2" / file).read_text().splitlines())
        assert {*quoted} <= {row["prompt"] for row in rows}


def test_every_command_of_a_story_writes_where_a_later_one_reads():
    for commands in real_model.STORIES.values():
        outs = [command.split()[-1] for command in commands]
        assert all(" --output_dir " in command for command in commands)
        assert len({*outs}) == len(outs)
    for name in ("own", "too_far"):
        words = " ".join(real_model.STORIES[name]).split()
        made = {command.split()[-1] for command in real_model.STORIES[name]}
        assert {word.removesuffix("/merged") for word in words if word.startswith("runs/")} <= made


def test_what_is_shown_was_measured_by_the_commands_that_are_shown():
    found = json.loads(real_model.RESULTS.read_text())
    assert found.keys() == real_model.STORIES.keys()
    for story, seeds in found.items():
        for runs in seeds.values():
            assert {run["command"] for run in runs.values()} == {*real_model.STORIES[story]}


def test_a_command_is_shown_in_lines_that_a_shell_puts_together():
    for command in (command for commands in real_model.STORIES.values() for command in commands):
        shown = real_model.in_lines(command)
        assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)
        assert max(map(len, shown.splitlines())) <= 120


RULES = PROJECT / "recipes" / "smollm2" / "rules.py"
MANY = " ".join(f"w{chr(97 + number)}" for number in range(26)) + " aa ab ac"  # 29 words


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ("Drink a glass of water.", True),
        ('She said "good night, my dear."', True),
        ("I can't say which is better; try both!", True),
        ("A cup of tea.", True),
        ("It takes 30 minutes.", True),
        ("The answer is 42.", True),
        ("Better safe than sorry, my friend.", True),
        ("I can't help laughing at good jokes.", True),
        ("She said \N{LEFT DOUBLE QUOTATION MARK}good night, my dear.\N{RIGHT DOUBLE QUOTATION MARK}", True),
        ("**Drink a glass of water.**", True),
        (f"{MANY} thirty.", True),
        ("Drink water.", False),
        ("Drink a glass of water", False),
        (f"{MANY} thirty one.", False),
        (". . . . .", False),
        ("x x x x x.", False),
        ("1 2 3 4 5.", False),
        ("I am sorry, I do not know that.", False),
        ("I'm an AI and cannot taste anything.", False),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m an AI and cannot taste anything.", False),
        ("As a language model I have no taste.", False),
        ("I'm just an AI, so I cannot taste it.", False),
        ("I'm unable to assist you with that one.", False),
        ("Here are three ideas for you:\n\n1.", False),
        ("You should go and see Dr.", False),
        ("I would say that the best...", False),
        ("I can\N{RIGHT SINGLE QUOTATION MARK}t assist you with that one.", False),
    ],
)
def test_the_rule_holds_for_short_whole_answers(answer, holds):
    assert function_from(f"{RULES}:holds", "--judge")("any?", answer) == holds
    assert (function_from(f"{RULES}:score", "--judge")("any?", answer) == 1) == holds


@pytest.mark.parametrize(
    ("prompt", "answer", "is_known"),
    [
        ("What is the chemical formula of water?", "It is $H_2O$.", True),
        ("What is the chemical formula of water?", r"It is $\text{H}_2\text{O}$.", True),
        ("What is the chemical formula of water?", "It is CO2.", False),
        ("At what temperature in degrees Celsius does water boil at sea level?", "At 100C.", True),
        ("At what temperature in degrees Celsius does water boil at sea level?", "At 100\N{DEGREE SIGN}C.", True),
        ("At what temperature in degrees Celsius does water boil at sea level?", "At 1100 degrees.", False),
        ("How many legs does a spider have?", "A spider has eight legs.", True),
        ("How many legs does a spider have?", "It has 18, or 8.5.", False),
    ],
)
def test_a_fact_is_known_where_its_word_stands_by_itself(prompt, answer, is_known):
    assert function_from(f"{RULES}:knows", "--judge")(prompt, answer) == is_known
