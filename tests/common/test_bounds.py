"""What a file brings has an end, and whoever waits for it keeps their own clock."""

import re
import signal
import threading
import time

import pytest

from machinery.common.bounds import check_file, ends_within, fits_within, read_json
from machinery.common.chat import check_template, template_ids
from machinery.common.errors import UserError

LOOPS = 2 * "{% for a in range(99999) %}" + "{% if a %}x{% endif %}" + 2 * "{% endfor %}"


def test_a_block_that_does_not_end_is_ended():
    start = time.monotonic()
    with pytest.raises(UserError, match=r"a loop has not ended after 0\.2 seconds"), ends_within(0.2, "a loop"):
        while True:
            pass
    assert time.monotonic() - start < 60


def test_so_is_a_pattern_that_takes_twice_as_long_for_every_letter():
    with pytest.raises(UserError, match="a pattern"), ends_within(0.2, "a pattern"):
        re.fullmatch("(([a-z.]+)+)+!", "model.layers.self_attn.q_proj.of.many.letters")


def test_who_handles_the_interruption_is_interrupted_again():
    with pytest.raises(UserError, match="stubborn"), ends_within(0.2, "stubborn"):
        try:
            while True:
                pass
        except UserError:
            pass  # as code does that looks for a TypeError, and finds one
    with pytest.raises(UserError, match="turned"), ends_within(0.2, "turned into another"):
        try:
            while True:
                pass
        except UserError as error:
            raise TypeError("no line number") from error


def test_a_block_that_ends_leaves_no_clock_behind():
    handler = signal.getsignal(signal.SIGALRM)
    with ends_within(0.1, "a moment"):
        pass
    with pytest.raises(KeyError), ends_within(0.1, "a failure"):
        raise KeyError
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    time.sleep(0.2)


def test_the_clock_of_somebody_else_goes_on():
    heard = []
    previous = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with ends_within(0.1, "a block"):
            time.sleep(0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert heard == [1]


def test_ctrl_c_still_ends_a_block():
    with pytest.raises(KeyboardInterrupt), ends_within(60, "a block"):
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_a_block_is_not_bounded_and_runs():
    done = []

    def work():
        with ends_within(0.1, "a block"):
            time.sleep(0.2)
        done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_a_block_that_asks_for_all_memory_is_refused():
    with pytest.raises(UserError, match=r"a text takes more than 1\.0 GiB"), fits_within(2**30, "a text"):
        "a" * 2**40
    assert len("a" * 2**20) == 2**20


def test_a_deep_or_large_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    for content, says in (("[" * 90000, "nested"), ("[" * 101 + "]" * 101, "nested"), ("{x", "not JSON")):
        path.write_text(content)
        with pytest.raises(UserError, match=f"a.json is .*{says}"):
            read_json(path, 2**20)
    path.write_text("[" * 99 + "1" + "]" * 99)
    assert read_json(path, 2**20)
    with pytest.raises(UserError, match=r"a.json is .* MiB large"):
        check_file(path, 10)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LOOPS, "not ended after 5 seconds"),
        ("{% if messages[0].role == 'system' %}" + LOOPS + "{% endif %}", "not ended"),
        ("{{ 'a' * 10000000000000 }}", "takes more than"),
        ("{{ 'a' * 2000000 }}", "writes 2,000,000 characters about 1 short turns"),
        ("{{ 9 ** (9 ** 9) }}", "raises to a power"),
        ({"default": "x", "../x": "y"}, r"called '\.\./x'"),
        ({"default": "x", "..": "y"}, r"called '\.\.'"),
        ({"default": "x", "a/b": "y"}, "called 'a/b'"),
        ({"default": "x", "c:\\b": "y"}, "no name of a file"),
        ({"default": 5}, "no text"),
        ("a" * 2_000_000, "2,000,000 characters"),
    ],
)
def test_a_template_is_tried_before_it_meets_data(template, says, base_tokenizer):
    base_tokenizer.chat_template = template
    with pytest.raises(UserError, match=says):
        check_template(base_tokenizer)


def test_sound_templates_pass_and_keywords_are_no_powers(base_tokenizer):
    for template in (
        "{{ dict(**{'a': 1}) }}{{ dict(b=2, **{'a': 1}) }}",
        {"default": "x", "tool_use": "y", "rag": "z"},
        None,
    ):
        base_tokenizer.chat_template = template
        check_template(base_tokenizer)
    base_tokenizer.chat_template = "{{ raise_exception('no') }}"  # said where data are read
    check_template(base_tokenizer)


def test_a_template_that_runs_on_for_one_row_alone_is_ended(base_tokenizer, monkeypatch):
    monkeypatch.setattr("machinery.common.chat.template_ends", lambda _: ends_within(0.3, "the template"))
    base_tokenizer.chat_template = (
        "{% if messages[0].content == 'b' %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    )
    assert template_ids(base_tokenizer, [{"role": "user", "content": "a"}])
    with pytest.raises(UserError, match="the template has not ended"):
        template_ids(base_tokenizer, [{"role": "user", "content": "b"}])
