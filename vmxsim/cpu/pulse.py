"""A heartbeat that lets Ctrl-C through while the main thread is inside the engine.

Python runs signal handlers only between its own instructions, and a guest that spins never gives it
one. So a thread pokes the engine a few times a second: run() comes up for air, and goes on.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

PERIOD_S = 0.05


class Pokable(Protocol):
    """Anything whose run can be made to come up for air."""

    def poke(self) -> None:
        """Come up for air."""
        ...

    @property
    def counting(self) -> bool:
        """Whether blocks are being counted: such runs come up for air by themselves."""
        ...


class Pulse:
    """Pokes one CPU until it is closed or gone."""

    def __init__(self, cpu: Pokable) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_beat, args=(weakref.ref(cpu), self._stopped), name="vmxsim-pulse", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop poking, and wait until the last poke is over."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _beat(cpu: weakref.ref[Pokable], stopped: threading.Event) -> None:
    """Poke until stopped."""
    while not stopped.wait(PERIOD_S):
        one = cpu()
        if one is None:
            return
        if not one.counting:
            one.poke()
        del one
