"""Counts exits and the host time they cost, in the columns of ``perf kvm stat report``.

Kernel time runs from the exit to the re-entry, or to KVM_RUN's return; userspace time from that
return to the next KVM_RUN. Both are host time and differ from run to run; the counts do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import sqrt
from time import perf_counter_ns
from typing import Final

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.probes import ExitRecord, Instrument
from vmxsim.tools.trace import kvm_exit_name, reason_name

HEADING: Final = "Analyze events for all VMs, all VCPUs:"
IO_INSTRUCTION: Final = int(ExitReason.IO_INSTRUCTION)
NEVER: Final = 1 << 63


class Row:
    """What is known of one kind of event: how often, how long, and who dealt with it."""

    __slots__ = ("kernel", "kernel_ns", "longest", "open_ns", "shortest", "squares", "userspace",
                 "userspace_ns")  # fmt: skip

    def __init__(self) -> None:
        self.kernel = 0
        self.userspace = 0
        self.kernel_ns = 0
        self.userspace_ns = 0
        self.shortest = NEVER
        self.longest = 0
        self.squares = 0
        self.open_ns = 0

    @property
    def samples(self) -> int:
        """Events in all."""
        return self.kernel + self.userspace

    @property
    def total_ns(self) -> int:
        """Host time in all."""
        return self.kernel_ns + self.userspace_ns

    @property
    def mean_ns(self) -> float:
        """Average host time."""
        return self.total_ns / self.samples if self.samples else 0.0

    @property
    def error_percent(self) -> float:
        """The standard error of the mean, in percent of it; 0 for fewer than two samples."""
        count, mean = self.samples, self.mean_ns
        if count < 2 or not mean:
            return 0.0
        variance = max(0.0, (self.squares - count * mean * mean) / (count - 1))
        return 100 * sqrt(variance / count) / mean

    def in_kernel(self, ns: int) -> None:
        """Account one event that the kernel finished."""
        self.kernel += 1
        self.kernel_ns += ns
        self.squares += ns * ns
        if ns > self.longest:
            self.longest = ns
        if ns < self.shortest:
            self.shortest = ns

    def left(self, ns: int) -> None:
        """Account the kernel's part of one that userspace has to finish."""
        self.userspace += 1
        self.kernel_ns += ns
        self.open_ns = ns

    def returned(self, ns: int) -> None:
        """Account userspace's part; the event is over."""
        whole = self.open_ns + ns
        self.userspace_ns += ns
        self.squares += whole * whole
        if whole > self.longest:
            self.longest = whole
        if whole < self.shortest:
            self.shortest = whole

    def add(self, other: Row) -> None:
        """Account everything that another row has."""
        for name in ("kernel", "userspace", "kernel_ns", "userspace_ns", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.shortest = min(self.shortest, other.shortest)


class Stat(Instrument):
    """Add it to a machine's probes, run, and print report()."""

    def __init__(self) -> None:
        self._returns: defaultdict[int, int] = defaultdict(int)
        self.ports: dict[tuple[int, bool], Row] = {}
        """I/O exits by port and direction (True: OUT)."""
        self._others: dict[int, Row] = {}
        self._names: dict[int, str] = {}
        self._last: Row | None = None
        self._left: Row | None = None
        self._since = 0

    @property
    def exits(self) -> dict[str, Row]:
        """Exits by reason."""
        found = {self._names[reason]: row for reason, row in self._others.items()}
        if self.ports:
            io = found[ExitReason.IO_INSTRUCTION.name] = Row()
            for row in self.ports.values():
                io.add(row)
        return found

    def handled(
        self, vcpu_id: int, exit: ExitRecord, in_kernel: bool, elapsed_host_ns: int
    ) -> None:
        """An exit is dealt with: by the kernel, or by leaving for userspace."""
        reason = exit.reason
        if reason == IO_INSTRUCTION:
            asked = exit.qualification
            key = asked >> 16, not asked & 8
            row = self.ports.get(key) or self._port(*key)
        else:
            row = self._others.get(reason) or self._row(exit)
        if in_kernel:
            row.in_kernel(elapsed_host_ns)
        else:
            row.left(elapsed_host_ns)
            self._last = row

    def fast_pio(self, vcpu_id: int, is_write: bool, port: int, elapsed_host_ns: int) -> None:
        """An I/O exit that the engine answered by itself with a chip of the kernel."""
        row = self.ports.get((port, is_write)) or self._port(port, is_write)
        row.kernel += 1
        row.kernel_ns += elapsed_host_ns
        row.squares += elapsed_host_ns * elapsed_host_ns
        if elapsed_host_ns > row.longest:
            row.longest = elapsed_host_ns
        if elapsed_host_ns < row.shortest:
            row.shortest = elapsed_host_ns

    def to_userspace(self, vcpu_id: int, exit_reason: int) -> None:
        """Userspace's time begins, on the account of the exit that led there."""
        self._returns[exit_reason] += 1
        row = self._last
        if row is not None:
            self._last = None
            self._left, self._since = row, perf_counter_ns()

    def from_userspace(self, vcpu_id: int) -> None:
        """Userspace's time ends."""
        row = self._left
        if row is not None:
            row.returned(perf_counter_ns() - self._since)
            self._left = None

    @property
    def userspace(self) -> dict[str, int]:
        """How often KVM_RUN returned, by what it said."""
        return {kvm_exit_name(reason): count for reason, count in self._returns.items()}

    def _port(self, port: int, is_write: bool) -> Row:
        return self.ports.setdefault((port, is_write), Row())

    def _row(self, exit: ExitRecord) -> Row:
        self._names[exit.reason] = reason_name(exit)
        return self._others.setdefault(exit.reason, Row())

    def report(self) -> str:
        """Every table: exits, ports, and why KVM_RUN returned."""
        if self._left is not None:
            self._left.returned(0)  # userspace never came back: the run ended
            self._left = None
        ports = {
            f"{'POUT' if is_write else 'PIN'} {port:#x}": row
            for (port, is_write), row in sorted(self.ports.items())
        }
        lines = [HEADING, "", *table("VM-EXIT", self.exits), "", *total(self.exits)]
        if ports:
            lines += ["", *table("IO port", ports)]
        return "\n".join((*lines, *userspace_table(self.userspace))) + "\n"


def table(title: str, rows: dict[str, Row]) -> Iterator[str]:
    """The columns of perf kvm stat, and two more: who dealt with it. The most frequent first."""
    samples = sum(row.samples for row in rows.values())
    time_ns = sum(row.total_ns for row in rows.values())
    yield (f"{title:>20} {'Samples':>10} {'Samples%':>9} {'Time%':>9} {'Min Time':>11} "
           f"{'Max Time':>11} {'Avg time':>26} {'Kernel':>10} {'Userspace':>10}")  # fmt: skip
    yield ""
    for name, row in sorted(rows.items(), key=lambda item: (-item[1].samples, item[0])):
        average = f"{row.mean_ns / 1000:.2f}us ( +- {row.error_percent:6.2f}% )"
        shortest = 0 if row.shortest == NEVER else row.shortest
        yield (
            f"{name:>20} {row.samples:>10} {percent(row.samples, samples)} "
            f"{percent(row.total_ns, time_ns)} {microseconds(shortest)} "
            f"{microseconds(row.longest)} {average:>26} {row.kernel:>10} {row.userspace:>10}"
        )


def total(rows: dict[str, Row]) -> Iterator[str]:
    """Sum everything up, as perf does, and split the time."""
    samples = sum(row.samples for row in rows.values())
    kernel_ns = sum(row.kernel_ns for row in rows.values())
    left_ns = sum(row.userspace_ns for row in rows.values())
    time = (kernel_ns + left_ns) / 1000
    yield f"Total Samples:{samples}, Total events handled time:{time:.2f}us."
    yield f"In the kernel {kernel_ns / 1000:.2f}us, in userspace {left_ns / 1000:.2f}us."


def userspace_table(returns: dict[str, int]) -> Iterable[str]:
    """Why KVM_RUN returned, and how often."""
    if returns:
        yield ""
        yield f"{'KVM_RUN returned':>28} {'Times':>10}"
    for name, times in sorted(returns.items(), key=lambda item: (-item[1], item[0])):
        yield f"{name:>28} {times:>10}"


def percent(part: int, whole: int) -> str:
    """A share as perf prints it, in nine columns."""
    return f"{100 * part / whole if whole else 0:>8.2f}%"


def microseconds(ns: int) -> str:
    """Nanoseconds as perf prints a time, in eleven columns."""
    return f"{ns / 1000:>9.2f}us"
