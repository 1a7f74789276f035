"""Standard input as a serial line: keys one by one from a terminal, bytes from a pipe or a file.

A file is read before the guest starts, so that a run with input from a file repeats itself. Keys
and pipes come when they come. The end of the input is no event on a serial line, and none here.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

CHUNK = 4096


class Keyboard:
    """Feeds standard input to ``receive`` within a with statement; a terminal is put back after."""

    def __init__(self, receive: Callable[[bytes], object]) -> None:
        self.receive = receive
        self._restore: Callable[[], None] | None = None

    def __enter__(self) -> Keyboard:
        descriptor = _stdin()
        if descriptor is None:
            return self
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            while data := os.read(descriptor, CHUNK):
                self.receive(data)
            return self
        if os.isatty(descriptor):
            self._restore = keys_one_by_one(descriptor)
            if self._restore is None:
                return self
        threading.Thread(
            target=self._feed, args=(descriptor,), name="keyboard", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._restore is not None:
            self._restore()

    def _feed(self, descriptor: int) -> None:
        """Pass on what comes, until it ends; a terminal that goes away is an end, too."""
        with suppress(OSError):
            while data := os.read(descriptor, CHUNK):
                self.receive(data)


def _stdin() -> int | None:
    """The descriptor of standard input; None when it is closed or replaced by something else."""
    try:
        descriptor = sys.stdin.fileno()
        os.fstat(descriptor)
    except (AttributeError, OSError, ValueError):
        return None
    return descriptor


def keys_one_by_one(descriptor: int) -> Callable[[], None] | None:
    """Have a terminal hand over keys as they are struck, Enter as CR, without echo.

    Ctrl-C still interrupts. Returns what puts the terminal back; None when it is not for this
    process, which runs in the background: reading from it would stop the process.
    """
    try:
        import termios
    except ImportError:
        return lambda: None  # no such terminals here: keys come line by line
    with suppress(OSError, termios.error):
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            return None
        before = termios.tcgetattr(descriptor)
        after = termios.tcgetattr(descriptor)
        after[0] &= ~termios.ICRNL
        after[3] &= ~(termios.ICANON | termios.ECHO)
        after[6][termios.VMIN], after[6][termios.VTIME] = 1, 0
        termios.tcsetattr(descriptor, termios.TCSANOW, after)
        return lambda: termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
    return None
