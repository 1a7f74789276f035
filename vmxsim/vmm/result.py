"""How a run ended, and the instruments a machine itself uses: one keeps exits, one limits them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmxsim.kvm.uapi import KvmRegs, KvmSregs
from vmxsim.probes import ExitRecord, Instrument
from vmxsim.vmm.dump import dump_registers
from vmxsim.vmm.runstate import Ending, Stop, SystemState, ending


class RunResult(NamedTuple):
    """How a run ended."""

    stop: Stop
    status: int
    """Exit status of a process that stands for this run."""
    detail: str
    regs: KvmRegs
    sregs: KvmSregs

    @property
    def registers(self) -> str:
        """Register dump, several lines."""
        return dump_registers(self.regs, self.sregs)

    def __str__(self) -> str:
        return str(Ending(self.stop, self.status, self.detail))


class ExitLog(Instrument):
    """Keeps every VM exit."""

    def __init__(self, kept: list[ExitRecord]) -> None:
        self.kept = kept

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """Keep one."""
        self.kept.append(exit)


class ExitLimit(Instrument):
    """Ends the run when the guest has exited so many times. `left` counts down."""

    def __init__(self, system: SystemState, limit: int) -> None:
        self.system = system
        self.left = limit
        self.limit = limit

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """Count one."""
        self._count("VM exits")

    def counting(self, run: Callable[[], None]) -> Callable[[], None]:
        """KVM_RUN that counts its own returns, for a KVM that shows no VM exits."""

        def counted() -> None:
            run()
            self._count("userspace exits")

        return counted

    def _count(self, what: str) -> None:
        self.left -= 1
        if self.left <= 0:
            self.system.request_stop(ending(Stop.MAX_EXITS, f"{self.limit} {what}"))
