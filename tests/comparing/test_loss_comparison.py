"""Many losses beside each other: the labels that are made, what is kept and not repeated, tables and figures."""

import json
import math
import signal
import subprocess
import sys
import time
from itertools import combinations

import pytest
import torch
from conftest import PROJECT, SHORT, run_forked, spoil
from matplotlib.text import Text
from torch.nn.functional import logsigmoid

from custom_loss_dpo import LOSSES
from demo.world import true_reward
from machinery.comparing import grid, loss_figures
from machinery.comparing.grid import only, run_grid, without
from machinery.comparing.loss_comparison import SHARES, best_of_n, write_alike_pairs, write_pairs
from machinery.comparing.loss_figures import loss_and_pull


def test_flipped_labels_are_as_many_as_asked_and_grow_with_the_share(tmp_path):
    rows = [json.loads(line) for line in (PROJECT / "demo" / "train.jsonl").read_text().splitlines()]
    flipped_before = set()
    for share in SHARES:
        write_pairs(tmp_path / str(share), seed=3, flipped=share)
        changed = [json.loads(line) for line in (tmp_path / str(share) / "train.jsonl").read_text().splitlines()]
        flipped = {n for n, (old, new) in enumerate(zip(rows, changed, strict=True)) if old["chosen"] != new["chosen"]}
        assert len(flipped) / len(rows) == pytest.approx(share, abs=0.03)
        assert flipped_before <= flipped
        flipped_before = flipped


def test_labels_that_favour_length_only_ever_make_the_chosen_answer_longer(tmp_path):
    write_pairs(tmp_path, seed=0, longer=0.5)
    rows = [json.loads(line) for line in (PROJECT / "demo" / "train.jsonl").read_text().splitlines()]
    changed = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    flipped = [new for old, new in zip(rows, changed, strict=True) if old["chosen"] != new["chosen"]]
    assert 0.2 < len(flipped) / len(rows) < 0.35
    assert all(len(row["chosen"][-1]["content"]) > len(row["rejected"][-1]["content"]) for row in flipped)


def test_pairs_that_are_alike_differ_in_one_word_of_the_rejected_answer(tmp_path):
    write_alike_pairs(tmp_path, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) > 1_900
    for row in rows:
        chosen, rejected = (row[answer][-1]["content"] for answer in ("chosen", "rejected"))
        assert sum(one != other for one, other in zip(chosen.split(), rejected.split(), strict=True)) == 1
        assert true_reward(row["prompt"], rejected) < true_reward(row["prompt"], chosen)


def test_best_of_n_takes_the_best_of_the_first_n_and_is_kept(tmp_path, monkeypatch):
    asked = []

    def reply(seed):
        asked.append(seed)
        return [str(seed % 100), "1"]  # the reply to the first of two prompts gets better from draw to draw

    monkeypatch.setattr("machinery.comparing.loss_comparison.true_reward", lambda prompt, text: float(text))
    kept = tmp_path / "kept.json"
    best = best_of_n(["one", "two"], reply, [0], kept, [])
    assert best["4"]["true_reward"] == [(3 + 1) / 2]
    assert best["4"]["kl"] == pytest.approx(math.log(4) - 3 / 4)
    assert best_of_n(["one", "two"], reply, [0], kept, []) == best
    assert len(asked) == 16
    best_of_n(["one", "two"], reply, [0], kept, ["--model_name_or_path", "another"])
    assert len(asked) == 32


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "a folder"])
def test_damaged_rewards_are_said_and_sampled_anew(damage, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("machinery.comparing.loss_comparison.true_reward", lambda prompt, text: float(text))

    def best():
        return best_of_n(["one"], lambda seed: [str(seed % 7)], [0], tmp_path / "kept.json", [])

    first = best()
    spoil(tmp_path / "kept.json", damage)
    assert best() == first
    assert "is not what was written" in caplog.text
    caplog.clear()
    assert best() == first
    assert bool(caplog.text) == (damage == "a folder")  # a file is healed; a folder is not ours to remove


def test_a_signal_is_told_to_the_runs_of_a_grid_and_they_are_waited_for(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\nfrom pathlib import Path\nfolder = Path(sys.argv[2])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (folder / 'told').touch(), sys.exit(143)))\n"
        "folder.mkdir(parents=True)\n(folder / 'started').touch()\ntime.sleep(600)\n"
    )
    grid_of_two = (
        "import sys\nfrom pathlib import Path\nfrom machinery.comparing.grid import run_grid\n"
        "from machinery.runs.interrupts import signals_stop\n"
        f"with signals_stop(): run_grid({{'a': ({str(script)!r}, []), 'b': ({str(script)!r}, [])}}, [0], Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", grid_of_two], cwd=PROJECT)
    while len(list(tmp_path.glob("*/started"))) < min(2, grid.RUNS_AT_A_TIME):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert len(list(tmp_path.glob("*/told"))) == len(list(tmp_path.glob("*/started")))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage"])
def test_a_finished_run_whose_metrics_are_damaged_is_done_anew(damage, tmp_path, monkeypatch, caplog):
    started = []

    def run_child(command, environment, is_quiet):
        started.append(command)
        tmp_path.joinpath("cell").mkdir(exist_ok=True)
        (tmp_path / "cell" / "metrics.json").write_text('{"kl": 1.5}')
        return 0, ""

    monkeypatch.setattr(grid, "run_child", run_child)
    for count, (spoilt, flags) in enumerate(
        [(None, []), ("metrics.json", []), ("made_by.json", []), (None, ["--beta"])], 1
    ):
        if spoilt:
            spoil(tmp_path / "cell" / spoilt, damage)
        for _ in range(2):  # the second time it is kept
            assert grid.run_once("script.py", flags, 0, tmp_path / "cell", "") == {"kl": 1.5}
        assert len(started) == count
        assert ("is not what was written" in caplog.text) == (spoilt is not None)
        caplog.clear()


def test_flags_are_taken_out_with_what_belongs_to_them():
    words = "--compare noise --losses sigmoid ipo --beta 0.3 --seeds=1 --max_steps 4".split()
    assert without(words, {"--compare", "--losses", "--seeds"}) == ["--beta", "0.3", "--max_steps", "4"]
    assert only(words, {"--losses"}) == ["--losses", "sigmoid", "ipo"]
    assert without(["--output-dir=x", "--max-steps", "4"], {"--output_dir"}) == ["--max-steps", "4"]


def test_a_grid_repeats_nothing_that_is_finished_and_runs_again_what_has_changed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])\n"
        "folder.mkdir(parents=True, exist_ok='--overwrite_output_dir' in sys.argv)\n"
        "(folder / 'metrics.json').write_text(json.dumps({'made': time.time_ns()}))\n"
    )

    def go(stamp):
        return run_grid({"a": (str(script), ["--x", "{seed}"])}, [0, 1], tmp_path / "grid", {"a": stamp})["a"]

    first = go("one")
    assert go("one") == first
    assert all(new["made"] != old["made"] for new, old in zip(go("two"), first, strict=True))


def test_the_pull_on_an_answer_is_minus_the_slope():
    margin = torch.linspace(-4, 4, 41)
    value, for_chosen, for_rejected = loss_and_pull(LOSSES["sigmoid"], 0.5, margin)
    assert torch.allclose(value, -logsigmoid(0.5 * margin), atol=1e-6)
    assert torch.allclose(for_chosen, 0.5 * torch.sigmoid(-0.5 * margin), atol=1e-6)
    assert torch.allclose(for_rejected, -for_chosen, atol=1e-6)


def test_losses_that_end_at_one_place_can_be_told_apart_in_the_figure(monkeypatch):
    names = list(LOSSES)[:6]
    runs = [{"loss": name, "beta": 0.1, "kl": [2 + n / 100], "true_reward_after": [5]} for n, name in enumerate(names)]
    figures = []
    monkeypatch.setattr(loss_figures, "_save", lambda figure, path: figures.append(figure))
    loss_figures.plot_frontier({"runs": runs, "before": [2.8], "best_of_n": {}, "seeds": [0]}, "unused.png")
    [axes] = figures[0].axes
    boxes = [Text.get_window_extent(label) for label in axes.texts]
    assert [label.get_text() for label in axes.texts] == names
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.thorough
def test_a_comparison_makes_tables_and_figures_and_goes_on_where_it_stopped(tmp_path):
    words = ["--compare", "--losses", "sigmoid", "sft", "--seeds", 0, *SHORT, "--output_dir", tmp_path]
    first = run_forked("custom_loss_dpo.py", *words)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert [run["loss"] for run in report["runs"]] == ["sigmoid", "sft"]
    assert report["best_of_n"]["16"]["true_reward"] >= report["best_of_n"]["2"]["true_reward"]
    for name in ("frontier.png", "shapes.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/metrics.json")}
    assert len(made) == 2
    words[3] = "ipo"
    more = run_forked("custom_loss_dpo.py", *words)
    assert more.returncode == 0, more.stderr
    for path, written in made.items():
        assert path.stat().st_mtime_ns == written, path
    assert len(list(tmp_path.glob("cells/*/metrics.json"))) == 3
