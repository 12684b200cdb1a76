"""The faults of planted_faults.py can be planted still: what they change stands in the code, and their tests are there."""

import pytest
from conftest import PROJECT
from planted_faults import FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_can_be_planted(name):
    fault = FAULTS[name]
    assert (PROJECT / fault.file).read_text(encoding="utf-8").count(fault.right) == 1
    assert fault.wrong != fault.right
    assert (PROJECT / "tests" / fault.tests).exists()


def test_every_room_has_a_fault():
    rooms = {path.parent.name for path in (PROJECT / "machinery").glob("*/__init__.py")}
    assert rooms - {fault.file.split("/")[1] for fault in FAULTS.values() if "/" in fault.file} == set()
