"""Standard output and error that end no run: letters that they cannot write are replaced, and readers may go.

with lasting_outlets():
    main()                                              # python script.py | head -1 goes on, and writes its files

What is printed after its reader has gone is lost, which is said once on the other of the two. On a full disk a text is
lost and the next one tried again.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO, errno.ECONNRESET)  # for good


class Outlet:
    """A text stream of which no write fails. What it does not know itself is asked of the stream."""

    _stream = None

    def __init__(self, stream, name: str):
        """name: of it in a sentence."""
        self._stream, self._name, self.other, self._is_said = stream, name, None, False

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """All of the text, or none where the system takes none."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self._give_up(error)
            return len(text)

    def writelines(self, lines) -> None:
        """Each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """What was written, as far as it can be."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def finish(self) -> None:
        """Flush for the last time: what still cannot be written is dropped, and Python has nothing to complain of."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)
            self._point_nowhere()

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, ValueError) or error.errno in GONE or os.name == "nt":  # Windows says EINVAL of a pipe
            self._point_nowhere()
        if not self._is_said:
            self._is_said = True
            reason = getattr(error, "strerror", None) or error
            if self.other is not None:
                self.other.write(
                    f"{self._name} cannot be written: {reason}. What is said there is lost, and nothing else.\n"
                )

    def _point_nowhere(self) -> None:
        with suppress(OSError, ValueError):  # also for those who hold the stream itself, or write beside Python
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextmanager
def lasting_outlets() -> Iterator[None]:
    """sys.stdout and sys.stderr as outlets; those of a notebook or of a test, which are no files, stay as they are."""
    before = sys.stdout, sys.stderr
    outlets = []
    for name, number, said in (("stdout", 1, "Standard output"), ("stderr", 2, "Standard error")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, _nowhere(number))
        elif _is_file(stream, number):
            stream.reconfigure(errors="backslashreplace")
            outlets.append(Outlet(stream, said))
            setattr(sys, name, outlets[-1])
    if len(outlets) == 2:
        outlets[0].other, outlets[1].other = outlets[1], outlets[0]
    try:
        yield
    finally:
        for outlet in outlets:
            outlet.finish()
        sys.stdout, sys.stderr = before


def _is_file(stream, number: int) -> bool:
    """Whether a stream writes to the process's own output; one of a notebook or a test does not."""
    try:
        return stream.fileno() == number and hasattr(stream, "reconfigure")
    except (AttributeError, OSError, ValueError):
        return False


def _nowhere(number: int) -> TextIO:
    """A stream that keeps nothing, also for what writes to this number beside Python, and lest a file gets it."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_WRONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
    return open(os.devnull, "w", encoding="utf-8")
