"""What a file brings has an end: a template and a pattern are programs, and a number can be larger than any machine.

    with ends_within(10, "my_model: its chat template"):     # UserError: "... has not ended after 10 seconds"
        text = template.render(messages=turns)
    with fits_within(2**31, "my_model: its chat template"):  # UserError: "... takes more than 2.0 GiB of memory"
        text = template.render(messages=turns)
    config = read_json(folder / "config.json", 2**22)        # no pipe, no device, not too large, not too deep

No process of its own is started for it. Both bounds are the operating system's, so they hold where it has them, and for
code that Python runs: a single call into a library ends when it likes. What cannot be interrupted is refused by its size.
"""

import json
import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

MOST_NESTED = 100  # objects and lists inside one another: no file of a model has more than ten


@contextmanager
def ends_within(seconds: float, what: str) -> Iterator[None]:
    """Raise UserError about `what` in a block that takes longer.

    The clock is an interval timer (SIGALRM). There is none on Windows and none for any thread but the main one: there a
    block takes as long as it takes. So it does where another timer runs already, which stays as it is: one of these
    blocks inside another is bounded by the outer one.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and hasattr(signal, "setitimer")) or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    late = UserError(f"{what} has not ended after {seconds:g} seconds.")
    heard, is_over = [], False

    def stop(number, frame):
        heard.append(number)
        if not is_over:
            raise late

    previous = signal.signal(signal.SIGALRM, stop)
    # Again every second: what a destructor raises is lost, and who is interrupted may handle it.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    except Exception as error:
        if heard and error is not late:  # Jinja fails at rewriting a traceback that ends between two lines
            raise late from error
        raise
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if heard:
        raise late


@contextmanager
def fits_within(size: int, what: str) -> Iterator[None]:
    """Raise UserError about `what` in a block that asks for so many bytes more than the process has now.

    Bounded are the addresses of the whole process, which Linux counts; on other systems nothing is. A limit that stands
    already stays where it is lower.
    """
    addresses = Path("/proc/self/statm")
    if resource is None or not addresses.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(addresses.read_text().split()[0]) * resource.getpagesize() + size
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    except MemoryError as error:
        raise UserError(f"{what} takes more than {size / 2**30:.1f} GiB of memory.") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_file(path: Path, most_bytes: int | None = None) -> None:
    """Accept a regular file of a size that its kind has. Raises UserError: a pipe would be waited for, a device never ends."""
    try:
        facts = path.stat()
    except OSError as error:
        is_lost = path.is_symlink()
        what = f"is a link to {os.readlink(path)}, where no file is" if is_lost else f"cannot be read: {error.strerror}"
        raise UserError(f"{path} {what}.") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path} is no regular file.")
    if most_bytes is not None and facts.st_size > most_bytes:
        raise UserError(
            f"{path} is {facts.st_size / 2**20:,.3g} MiB large; a file of this kind has at most {most_bytes / 2**20:,.3g}."
        )


def read_json(path: Path, most_bytes: int):
    """What a JSON file holds. Raises UserError that names the file and what is wrong with it."""
    check_file(path, most_bytes)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested more than {MOST_NESTED} deep.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    level = [content]
    for _ in range(MOST_NESTED):
        level = [part for value in level if isinstance(value, (dict, list)) for part in _parts(value)]
        if not level:
            return content
    raise UserError(f"{path} is nested more than {MOST_NESTED} deep.")


def _parts(value: dict | list):
    return value.values() if isinstance(value, dict) else value
