"""What is said in a file reads as it does on a terminal: bars become lines, and nothing is drawn over."""

import io
import sys

import pytest

from machinery.common.safe_text import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def what_is_written(outlet, monkeypatch, **options) -> str:
    monkeypatch.setattr(sys, "stderr", outlet)
    assert list(progress_bar(range(3), desc="replies", **options)) == [0, 1, 2]
    return outlet.getvalue()


def test_a_bar_in_a_file_is_one_line_and_on_a_terminal_it_is_drawn_over(monkeypatch):
    assert what_is_written(io.StringIO(), monkeypatch) == "replies: 0 of 3, 00:00\n"
    assert "\r" in what_is_written(Terminal(), monkeypatch)


@pytest.mark.parametrize("outlet", [io.StringIO, Terminal])
def test_a_bar_that_is_off_says_nothing(outlet, monkeypatch):
    assert what_is_written(outlet(), monkeypatch, disable=True) == ""


def test_a_long_stage_says_now_and_then_how_far_it_is(monkeypatch):
    outlet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", outlet)
    bar = progress_bar(total=3, desc="replies")
    bar.last_print_t -= 31  # as if half a minute had passed
    bar.update(2)
    bar.close()
    first, second = outlet.getvalue().splitlines()
    assert first.startswith("replies: 0 of 3")
    assert second.startswith("replies: 2 of 3")
