"""Counters of what a vCPU did, cheap enough to be always on.

Linux: struct kvm_vcpu_stat, and what ``perf kvm stat`` counts from outside. Times are not here:
whoever wants them watches the `handled` probe.
"""

from __future__ import annotations

from collections import defaultdict

from vmxsim.arch.exit_reasons import ExitReason


class PortStat:
    """Accesses to one port, by direction and by who answered them."""

    __slots__ = ("kernel_in", "kernel_out", "userspace_in", "userspace_out")

    def __init__(self) -> None:
        self.kernel_in = 0
        self.kernel_out = 0
        self.userspace_in = 0
        self.userspace_out = 0


class VcpuStat:
    """Exits by reason, exits to userspace by KVM_EXIT_* code, accesses by port."""

    __slots__ = (
        "exits", "halt_exits", "halt_wakeup", "io_exits", "irq_injections", "irq_window_exits",
        "mmio_exits", "ports", "request_irq_exits", "signal_exits", "userspace_exits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.exits = [0] * (max(ExitReason) + 1)
        self.userspace_exits: defaultdict[int, int] = defaultdict(int)
        self.ports: dict[int, PortStat] = {}
        self.io_exits = 0
        self.mmio_exits = 0
        self.halt_exits = 0
        self.halt_wakeup = 0
        self.irq_injections = 0
        self.irq_window_exits = 0
        self.request_irq_exits = 0
        self.signal_exits = 0

    def port(self, port: int) -> PortStat:
        """The row of one port."""
        row = self.ports.get(port)
        if row is None:
            row = self.ports[port] = PortStat()
        return row

    def by_reason(self) -> dict[ExitReason, int]:
        """Exits that happened at least once."""
        return {reason: self.exits[reason] for reason in ExitReason if self.exits[reason]}
