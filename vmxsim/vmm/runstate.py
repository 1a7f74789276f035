"""Why a run ends, and the state that vCPU threads and the machine share under one lock.

QEMU: softmmu/runstate.c, and struct CPUState of include/hw/core/cpu.h. The lock is QEMU's "big QEMU
lock" (BQL): vCPU threads hold it except inside KVM_RUN, everyone else takes it to touch a device
or a vCPU's flags.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vmxsim.probes import Probes
from vmxsim.vmm.memory import AddressSpace

if TYPE_CHECKING:
    from vmxsim.clock import Clock
    from vmxsim.kvm.uapi import KvmRegs, KvmRun, KvmSregs
    from vmxsim.vmm.accel import Kvm, Vcpu, Vm

PORTS = 1 << 16
MEMORY_SIZE = 1 << 52


class Stop(Enum):
    """Why the guest does not run any more, each with the exit status it means for a process."""

    status: int
    by_guest: bool

    def __new__(cls, words: str, status: int, by_guest: bool) -> Stop:
        """Keep the words as the value; status and side are attributes."""
        self = object.__new__(cls)
        self._value_, self.status, self.by_guest = words, status, by_guest
        return self

    HALTED = ("halted with interrupts off", 0, True)
    RESET = ("asked for a reset", 0, True)
    SHUTDOWN = ("shut down", 0, True)
    DEBUG_EXIT = ("wrote to the debug exit port", 1, True)
    TRIPLE_FAULT = ("triple fault", 3, True)
    INTERNAL_ERROR = ("KVM could not go on", 2, True)
    FAIL_ENTRY = ("VM entry failed", 2, True)
    UNKNOWN_EXIT = ("an exit that userspace does not know", 2, True)
    IDLE = ("halted, and nothing can wake it", 124, True)
    TIMEOUT = ("out of time", 124, False)
    MAX_EXITS = ("out of exits", 125, False)
    STOPPED = ("stopped from outside", 0, False)


class Ending(NamedTuple):
    """A Stop with its particulars."""

    stop: Stop
    status: int
    detail: str = ""

    @property
    def final(self) -> bool:
        """Whether the guest itself is at its end, and cannot go on."""
        return self.stop.by_guest and self.stop is not Stop.IDLE

    def __str__(self) -> str:
        return f"{self.stop.value}: {self.detail}" if self.detail else str(self.stop.value)


def ending(stop: Stop, detail: str = "") -> Ending:
    """An ending with its Stop's own exit status."""
    return Ending(stop, stop.status, detail)


def debug_exit(value: int) -> Ending:
    """A write to isa-debug-exit: status (value << 1) | 1, cut to the 8 bits a process has."""
    return Ending(Stop.DEBUG_EXIT, (value << 1 | 1) & 0xFF, f"value {value:#x}")


class SystemState:
    """What all vCPUs of a machine share."""

    def __init__(self, clock: Clock, probes: Probes, strict: bool = False) -> None:
        self.clock = clock
        self.probes = probes
        self.strict = strict
        self.ports = AddressSpace("ports", PORTS)
        self.memory = AddressSpace("memory", MEMORY_SIZE)
        self.bql = threading.RLock()
        self.pause_cond = threading.Condition(self.bql)
        """Notified when a vCPU was created, stopped or destroyed, and when a run ended."""
        self.cpus: list[CPUState] = []
        self.kvm: KVMState | None = None
        self.ending: Ending | None = None
        self.failure: BaseException | None = None
        """What went wrong in a vCPU's thread, for whoever waits for the run."""
        self.attended = False
        """Somebody waits in run(): a guest that nothing can wake ends, rather than sleeps."""

    def request_stop(self, reason: Ending) -> None:
        """End the run. The first reason stands, but the guest's own goes before others."""
        with self.bql:
            if self.ending is None or (reason.stop.by_guest and not self.ending.stop.by_guest):
                self.ending = reason
            for cpu in self.cpus:
                cpu.stop = True
                cpu.kick()
            self.pause_cond.notify_all()


class KVMState:
    """QEMU's KVMState: the descriptors, and what was asked of them."""

    def __init__(self, kvm: Kvm, vm: Vm, irqchip: bool) -> None:
        self.kvm = kvm
        self.vm = vm
        self.irqchip = irqchip
        self.slots = 0


class CPUState:
    """One vCPU as userspace sees it. Flags are touched with the BQL held."""

    halt_cond: threading.Condition

    def __init__(self, system: SystemState, index: int = 0) -> None:
        self.system = system
        self.index = index
        self.vcpu: Vcpu | None = None
        self.kvm_run: KvmRun | None = None
        self.run: Callable[[], None] | None = None
        """KVM_RUN; bound once, so that the exit loop does not look it up."""
        self.thread: threading.Thread | None = None
        self.created = False
        self.unplug = False
        self.stop = False
        """Asked to stop; the vCPU's thread answers with `stopped`."""
        self.stopped = True
        self.halted = False
        self.exit_request = False
        self.interrupts: deque[int] = deque()
        """Vectors for KVM_INTERRUPT, without an in-kernel irqchip."""
        self.work: deque[Callable[[], None]] = deque()
        self.regs: KvmRegs | None = None
        self.sregs: KvmSregs | None = None
        self.vcpu_dirty = False
        """regs and sregs are newer than KVM's."""

    def kick(self) -> None:
        """Get the vCPU's thread out of KVM_RUN or out of its sleep; never lost."""
        self.exit_request = True
        self.halt_cond.notify_all()
        if self.vcpu is not None:
            self.vcpu.kick()
