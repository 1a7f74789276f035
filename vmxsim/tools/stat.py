"""Counts exits and the host time they cost, in the columns of ``perf kvm stat report``.

Kernel time runs from the exit to the re-entry, or to KVM_RUN's return; userspace time from that
return to the next KVM_RUN. Both are host time and differ from run to run; the counts do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import sqrt
from time import perf_counter_ns

from vmxsim.probes import ExitRecord, Instrument
from vmxsim.tools.trace import kvm_exit_name, reason_name


class Row:
    """What is known of one kind of event: how often, how long, and who dealt with it."""

    __slots__ = ("kernel", "kernel_ns", "longest", "open_ns", "shortest", "squares", "userspace",
                 "userspace_ns")  # fmt: skip

    def __init__(self) -> None:
        self.kernel = 0
        self.userspace = 0
        self.kernel_ns = 0
        self.userspace_ns = 0
        self.shortest = -1
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

    def spent(self, ns: int) -> None:
        """Account one event's whole time."""
        self.squares += ns * ns
        self.longest = max(self.longest, ns)
        self.shortest = ns if self.shortest < 0 else min(self.shortest, ns)


class PortRow:
    """How often a port was read and written, and by whom it was served."""

    __slots__ = ("kernel", "reads", "userspace", "writes")

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0
        self.kernel = 0
        self.userspace = 0


class Stat(Instrument):
    """Add it to a machine's probes, run, and print report()."""

    def __init__(self) -> None:
        self.exits: dict[str, Row] = {}
        self.ports: dict[int, PortRow] = {}
        self.userspace: dict[str, int] = {}
        self._rows: dict[tuple[int, bool], Row] = {}
        self._left: dict[int, tuple[Row, int]] = {}
        self._port: dict[int, PortRow] = {}
        self._last: dict[int, Row] = {}

    def handled(
        self, vcpu_id: int, now: int, exit: ExitRecord, in_kernel: bool, elapsed_host_ns: int
    ) -> None:
        """An exit is dealt with: by the kernel, or by leaving for userspace."""
        row = self._rows.get((exit.reason, exit.failed_entry)) or self._row(exit)
        row.kernel_ns += elapsed_host_ns
        port = self._port.pop(vcpu_id, None)
        if in_kernel:
            row.kernel += 1
            row.squares += elapsed_host_ns * elapsed_host_ns
            if elapsed_host_ns > row.longest:
                row.longest = elapsed_host_ns
            if elapsed_host_ns < row.shortest or row.shortest < 0:
                row.shortest = elapsed_host_ns
            if port is not None:
                port.kernel += 1
        else:
            row.userspace += 1
            row.open_ns = elapsed_host_ns
            self._last[vcpu_id] = row
            if port is not None:
                port.userspace += 1

    def pio(
        self, vcpu_id: int, now: int, is_write: bool, port: int, size: int, count: int, value: int
    ) -> None:
        """Count the port; handled() will say whether the kernel had it."""
        row = self.ports.get(port)
        if row is None:
            row = self.ports[port] = PortRow()
        if is_write:
            row.writes += count
        else:
            row.reads += count
        self._port[vcpu_id] = row

    def userspace_exit(self, vcpu_id: int, now: int, exit_reason: int) -> None:
        """Userspace's time begins, on the account of the exit that led there."""
        name = kvm_exit_name(exit_reason)
        self.userspace[name] = self.userspace.get(name, 0) + 1
        row = self._last.pop(vcpu_id, None)
        if row is not None:
            self._left[vcpu_id] = (row, perf_counter_ns())

    def userspace_entry(self, vcpu_id: int, now: int) -> None:
        """Userspace's time ends."""
        left = self._left.pop(vcpu_id, None)
        if left is not None:
            row, since = left
            spent = perf_counter_ns() - since
            row.userspace_ns += spent
            row.spent(row.open_ns + spent)

    def finish(self) -> None:
        """Close the accounts of exits that userspace never returned from (the run ended)."""
        for row, _since in self._left.values():
            row.spent(row.open_ns)
        self._left.clear()

    def _row(self, exit: ExitRecord) -> Row:
        name = reason_name(exit)
        row = self._rows[exit.reason, exit.failed_entry] = self.exits.setdefault(name, Row())
        return row

    def report(self) -> str:
        """Every table: exits, ports, and why KVM_RUN returned."""
        self.finish()
        return "\n".join((*exit_table(self.exits), *port_table(self.ports),
                          *userspace_table(self.userspace))) + "\n"  # fmt: skip


def exit_table(exits: dict[str, Row]) -> Iterator[str]:
    """The table of perf kvm stat, with two more columns: who dealt with it."""
    samples = sum(row.samples for row in exits.values())
    time_ns = sum(row.total_ns for row in exits.values())
    yield "Analyze events for all VMs, all VCPUs:"
    yield ""
    yield (f"{'VM-EXIT':>20} {'Samples':>10} {'Samples%':>9} {'Time%':>9} {'Min Time':>11} "
           f"{'Max Time':>11} {'Avg time':>26} {'Kernel':>10} {'Userspace':>10}")  # fmt: skip
    yield ""
    for name, row in sorted(exits.items(), key=lambda item: (-item[1].samples, item[0])):
        average = f"{row.mean_ns / 1000:.2f}us ( +- {row.error_percent:6.2f}% )"
        yield (
            f"{name:>20} {row.samples:>10} {percent(row.samples, samples)} "
            f"{percent(row.total_ns, time_ns)} {microseconds(max(row.shortest, 0))} "
            f"{microseconds(row.longest)} {average:>26} {row.kernel:>10} {row.userspace:>10}"
        )
    yield ""
    kernel_ns = sum(row.kernel_ns for row in exits.values())
    yield f"Total Samples:{samples}, Total events handled time:{time_ns / 1000:.2f}us."
    left_ns = time_ns - kernel_ns
    yield f"In the kernel {kernel_ns / 1000:.2f}us, in userspace {left_ns / 1000:.2f}us."


def port_table(ports: dict[int, PortRow]) -> Iterator[str]:
    """One line per I/O port: elements read and written, exits by who served them."""
    if ports:
        yield ""
        yield f"{'IO port':>20} {'Reads':>10} {'Writes':>10} {'Kernel':>10} {'Userspace':>10}"
    for port, row in sorted(ports.items()):
        yield (f"{hex(port):>20} {row.reads:>10} {row.writes:>10} {row.kernel:>10} "
               f"{row.userspace:>10}")  # fmt: skip


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
