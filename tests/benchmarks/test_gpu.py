"""The command that measures a GPU runs anywhere with small sizes, and goes on from what it has."""

import json
import sys

import pytest
from conftest import PROJECT, run_script

sys.path.insert(0, str(PROJECT))
from benchmarks import speed


@pytest.mark.thorough
def test_a_second_call_measures_nothing_that_the_first_has(tmp_path):
    file = tmp_path / "gpu.json"
    first = run_script("benchmarks/gpu.py", "--tiny", "--minutes", "30", "--out", file)
    assert first.returncode == 0, first.stderr
    written = file.read_text()
    cells = json.loads(written)["cells"]
    assert len(cells) == 7
    assert not [result for result in cells.values() if "failed" in result]
    second = run_script("benchmarks/gpu.py", "--tiny", "--out", file)
    assert second.stdout == first.stdout
    assert file.read_text() == written


def test_no_benchmark_multiplies_in_a_precision_that_trainings_leave_out(monkeypatch):
    monkeypatch.setattr("machinery.hardware.precision.prefers_bf16", lambda device: False)
    assert speed.matrix_peaks().keys() == {"fp32"}
