"""A run beside another that was made for it: the same experiment but for what is compared."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from machinery.comparing import side_by_side
from machinery.comparing.side_by_side import beside_full_run

METRICS = {"script": "lora", "model": "demo/model", "dataset": "demo", "beta": 0.3, "seed": 7}


@pytest.mark.parametrize("config", [["--config", "recipe.yaml"], ["--config=recipe.yaml"], []])
def test_the_run_of_all_weights_is_the_recipes_too_but_for_what_is_the_adapters(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("num_train_epochs: 1\nheld_out_share: 0.1\nlearning_rate: 5.0e-5\nlora_r: 4\n")
    monkeypatch.setattr(sys, "argv", ["lora_dpo_training.py", *config, "--max_length", "64", "--compare_full"])
    commands = []

    def run_child(command, environment):
        commands.append(command)
        out = Path(command[command.index("--output_dir") + 1])
        out.mkdir(parents=True)
        (out / "metrics.json").write_text(json.dumps(METRICS | {"script": "basic"}))
        return 0, ""

    monkeypatch.setattr(side_by_side, "run_child", run_child)
    table = beside_full_run(METRICS, tmp_path / "out", make_it=True)
    assert "all weights" in table
    [[_, script, *words]] = commands
    assert Path(script).name == "basic_dpo_training.py"
    said = dict(pairwise(words))
    assert (said["--max_length"], said["--beta"], said["--seed"]) == ("64", "0.3", "7")
    shared = yaml.safe_load(Path(said["--config"]).read_text()) if "--config" in said else {}
    assert shared == ({"num_train_epochs": 1, "held_out_share": 0.1} if config else {})
