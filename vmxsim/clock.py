"""Time as a parameter: one clock repeats itself to the nanosecond, the other is the host's.

All times are nanoseconds since the machine was switched on. Alarms may be set from any thread;
their callbacks run in the thread that calls run_due(), which is the vCPU's.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

NS_PER_S = 1_000_000_000
TSC_KHZ = 1_000_000
"""The time-stamp counter ticks once per nanosecond."""

EXIT_NS = 1_000
"""What one trap out of the guest costs on the virtual clock."""

BLOCK_NS = 2
"""What one translated block of guest code costs on the virtual clock."""

Y2K_UNIX_S = 946_684_800


class WallTime(NamedTuple):
    """A moment in UTC, as a real-time clock chip counts it."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int


class Alarm:
    """One callback to come. It is called at most once, and never after cancel() returned."""

    __slots__ = ("_clock", "callback", "cancelled", "deadline")

    def __init__(self, clock: Clock, deadline: int, callback: Callable[[], None]) -> None:
        self._clock = clock
        self.deadline = deadline
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Forget the callback. Cancelling twice, or after it was called, does nothing."""
        self._clock._cancel(self)


class Clock:
    """What both clocks share: a heap of alarms. Subclasses say what time it is."""

    virtual: bool = False

    def __init__(self) -> None:
        self.on_alarm_change: Callable[[], None] | None = None
        self._heap: list[tuple[int, int, Alarm]] = []
        self._sequence = 0
        self._next: int | None = None
        self._lock = threading.Lock()

    def now(self) -> int:
        """Nanoseconds since power-on."""
        raise NotImplementedError

    def wall(self) -> WallTime:
        """The date and time in UTC, for the real-time clock."""
        raise NotImplementedError

    def wait(self, cond_wait: Callable[[float | None], None]) -> None:
        """Let a halted vCPU pass the time until the next alarm, or until it is notified.

        cond_wait blocks on the caller's condition for that many seconds (None: for ever); it may
        return early. Call run_due() afterwards.
        """
        raise NotImplementedError

    def tsc(self) -> int:
        """The host's time-stamp counter; a guest's adds TSC_OFFSET."""
        return self.now() * TSC_KHZ // 1_000_000

    def call_at(self, deadline_ns: int, callback: Callable[[], None]) -> Alarm:
        """Have callback called by the first run_due() at or after the deadline."""
        alarm = Alarm(self, deadline_ns, callback)
        with self._lock:
            heapq.heappush(self._heap, (deadline_ns, self._sequence, alarm))
            self._sequence += 1
            changed = self._settle()
        self._tell(changed)
        return alarm

    def next_deadline(self) -> int | None:
        """When the earliest alarm is due, which may be in the past; None without alarms."""
        return self._next

    def run_due(self) -> bool:
        """Call every alarm that is due, in order of deadline, then of setting. False if none was.

        An alarm set by a callback is called in the same run if it is due already.
        """
        due = self._next
        if due is None or self.now() < due:
            return False
        ran = False
        while (alarm := self._pop_due(self.now())) is not None:
            alarm.callback()
            ran = True
        return ran

    def _pop_due(self, now: int) -> Alarm | None:
        with self._lock:
            if self._next is None or now < self._next:
                return None
            alarm = heapq.heappop(self._heap)[2]
            alarm.cancelled = True
            changed = self._settle()
        self._tell(changed)
        return alarm

    def _cancel(self, alarm: Alarm) -> None:
        with self._lock:
            alarm.cancelled = True
            changed = self._settle()
        self._tell(changed)

    def _settle(self) -> bool:
        """Drop cancelled alarms from the top. True when the next deadline is another one."""
        heap = self._heap
        while heap and heap[0][2].cancelled:
            heapq.heappop(heap)
        before, self._next = self._next, heap[0][0] if heap else None
        return self._next != before

    def _tell(self, changed: bool) -> None:
        if changed and self.on_alarm_change is not None:
            self.on_alarm_change()


class VirtualClock(Clock):
    """Time made of the guest's own work, so that the same inputs give the same times.

    Counts EXIT_NS for every trap (the run loop adds to ``exits``) and BLOCK_NS for every translated
    block (``blocks`` says how many). Starts at 2000-01-01 00:00:00 UTC.
    """

    virtual = True

    def __init__(self) -> None:
        super().__init__()
        self.exits = 0
        self.blocks: Callable[[], int] = _no_blocks
        self._base = 0

    def now(self) -> int:
        """Nanoseconds since power-on: what was charged, plus exits, plus blocks."""
        return self._base + self.exits * EXIT_NS + self.blocks() * BLOCK_NS

    def charge(self, ns: int) -> None:
        """Let time pass without an exit."""
        self._base += ns

    def jump_to(self, ns: int) -> None:
        """Move on to a moment. Time never goes back: a moment in the past changes nothing."""
        self._base += max(0, ns - self.now())

    def wait(self, cond_wait: Callable[[float | None], None]) -> None:
        """Jump to the next alarm at once; without one only another thread can end the wait."""
        deadline = self._next
        if deadline is None:
            cond_wait(None)
        else:
            self.jump_to(deadline)

    def wall(self) -> WallTime:
        """2000-01-01 00:00:00 UTC plus the virtual time."""
        return WallTime(*time.gmtime(Y2K_UNIX_S + self.now() // NS_PER_S)[:6])


class HostClock(Clock):
    """The host's monotonic clock: guests feel real time, runs do not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.perf_counter_ns()

    def now(self) -> int:
        """Nanoseconds of host time since this clock was made."""
        return time.perf_counter_ns() - self._start

    def wait(self, cond_wait: Callable[[float | None], None]) -> None:
        """Block until the next alarm is due or the condition is notified."""
        deadline = self._next
        if deadline is None:
            cond_wait(None)
        elif (left := deadline - self.now()) > 0:
            cond_wait(left / NS_PER_S)

    def wall(self) -> WallTime:
        """The host's UTC."""
        return WallTime(*time.gmtime()[:6])


def _no_blocks() -> int:
    return 0
