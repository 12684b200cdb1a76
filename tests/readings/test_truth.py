"""Whatever is drawn, no pair that comes out is another than its rows say; flags that tell the truth give every pair."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reading_draws import judge


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_no_draw_ends_in_a_wrong_pair(seed):
    problem, _ = judge(random.Random(seed))
    assert problem is None


@pytest.mark.thorough
def test_no_draw_of_thousands_ends_in_a_wrong_pair():
    for seed in range(5000):
        problem, _ = judge(random.Random(f"thorough {seed}"))
        assert problem is None, seed
