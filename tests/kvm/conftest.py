"""A Processor that replays VM exits, and virtual machines that run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from vmxsim.arch import capabilities
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import Clock, VirtualClock
from vmxsim.kvm import uapi
from vmxsim.kvm.api import Kvm, Vcpu, Vm
from vmxsim.probes import Instrument, Probes
from vmxsim.vmx.records import VmExit, VmFail

SHARED = {0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102, 0xC000_0103}

Step = VmExit | VmFail | Callable[["FakeProcessor"], VmExit]


class FakeMemory:
    """Guest-physical memory as a list of mapped buffers."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, memoryview, bool]] = []

    def map(self, gpa: int, buffer: memoryview, readonly: bool = False) -> None:
        self.ranges.append((gpa, memoryview(buffer), readonly))

    def unmap(self, gpa: int, size: int) -> None:
        self.ranges = [each for each in self.ranges if each[0] != gpa]

    def at(self, gpa: int, size: int) -> tuple[memoryview, int]:
        for base, buffer, _readonly in self.ranges:
            if base <= gpa and gpa + size <= base + len(buffer):
                return buffer, gpa - base
        raise LookupError(f"{gpa:#x}")

    def backed(self, gpa: int, size: int) -> bool:
        try:
            self.at(gpa, size)
        except LookupError:
            return False
        return True

    def read(self, gpa: int, size: int) -> bytes:
        buffer, offset = self.at(gpa, size)
        return bytes(buffer[offset : offset + size])

    def write(self, gpa: int, data: bytes) -> None:
        buffer, offset = self.at(gpa, len(data))
        buffer[offset : offset + len(data)] = data


class FakeProcessor:
    """Registers, a VMCS as a dict, and a script of VM exits.

    A step of the script is the exit, or a function that changes the guest and returns it. `log`
    says what was asked: "vmxon", "vmptrld", "vmlaunch", "vmresume" ...; `injected` what each entry
    carried.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock
        self.gpr = [0] * 16
        self.dr = [0] * 8
        self.fields: dict[int, int] = {}
        self.msrs = dict.fromkeys(SHARED, 0)
        self.memory = FakeMemory()
        self.ports = SimpleNamespace(fast_out={}, fast_in={}, enabled=False)
        self.host_pages = SimpleNamespace(register=lambda address, page: None)
        self.cr2 = self.cr8 = self.xcr0 = 0
        self.budget = self.blocks = 0
        self.xmms = [bytes(16)] * 16
        self.fx = bytes(512)
        self.script: list[Step] = []
        self.log: list[str] = []
        self.injected: list[int] = []
        self.kicks = 0

    # -- what KVM calls

    def vmxon(self, address: int) -> None:
        self.log.append("vmxon")

    def vmclear(self, address: int) -> None:
        self.log.append("vmclear")

    def vmptrld(self, address: int) -> None:
        self.log.append("vmptrld")

    def vmread(self, field: int) -> int:
        return self.fields.get(int(field), 0)

    def vmwrite(self, field: int, value: int) -> None:
        self.fields[int(field)] = value & F(field).mask

    @property
    def rip(self) -> int:
        return self.vmread(F.GUEST_RIP)

    @rip.setter
    def rip(self, value: int) -> None:
        self.vmwrite(F.GUEST_RIP, value)

    def skip(self, length: int) -> None:
        self.rip += length
        self.vmwrite(F.GUEST_INTERRUPTIBILITY_INFO, 0)

    @property
    def interrupts_enabled(self) -> bool:
        return self.vmread(F.GUEST_RFLAGS) & Rflags.IF != 0

    def vmlaunch(self) -> VmExit | VmFail:
        return self._enter("vmlaunch")

    def vmresume(self) -> VmExit | VmFail:
        return self._enter("vmresume")

    def _enter(self, how: str) -> VmExit | VmFail:
        self.log.append(how)
        info = self.vmread(F.VM_ENTRY_INTR_INFO_FIELD)
        self.injected.append(info if info >> 31 else 0)
        self.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, info & 0x7FFF_FFFF)
        if isinstance(self.clock, VirtualClock):
            self.clock.exits += 1
        if self.kicks:
            self.kicks -= 1
            return VmExit(ExitReason.EXTERNAL_INTERRUPT)
        assert self.script, f"the script is over, and the guest goes on at {self.rip:#x}"
        step = self.script.pop(0)
        return step(self) if callable(step) else step

    def kick(self) -> None:
        self.kicks += 1

    def enter_from_host(self) -> None:
        """The thread goes in; a real engine prepares itself for that."""

    def leave_to_host(self) -> None:
        """The thread comes out."""

    def keep_interruptible(self) -> None:
        """The main thread goes in: Ctrl-C must get through."""

    def capability_msr(self, index: int) -> int:
        return capabilities.value(index)

    def msr(self, index: int) -> int:
        return self.msrs[index]

    def set_msr(self, index: int, value: int) -> None:
        assert index in self.msrs
        self.msrs[index] = value

    def xmm(self, number: int) -> bytes:
        return self.xmms[number]

    def set_xmm(self, number: int, value: bytes) -> None:
        self.xmms[number] = value

    def fxsave(self) -> bytes:
        return self.fx

    def fxrstor(self, image: bytes) -> None:
        self.fx = image


class Everything(Instrument):
    """Records every event as a tuple that begins with its name."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        for name in vars(Probes()):
            setattr(self, name, partial(self.note, name))

    def note(self, name: str, *values: object) -> None:
        self.events.append((name, *values))

    def of(self, name: str) -> list[tuple[object, ...]]:
        return [event[1:] for event in self.events if event[0] == name]


class Guest:
    """A VM with one vCPU on a FakeProcessor, and 64 KB of memory at 0."""

    def __init__(
        self, irqchip: bool = False, clock: Clock | None = None, probes: Probes | None = None
    ) -> None:
        self.clock = clock if clock is not None else VirtualClock()
        self.processor = FakeProcessor(self.clock)
        self.kvm = Kvm(self.clock, probes, processor=lambda _: self.processor)
        self.vm: Vm = self.kvm.create_vm()
        if irqchip:
            self.vm.create_irqchip()
        self.ram = bytearray(0x10000)
        self.vm.set_user_memory_region(0, 0, self.ram)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.inner = self.vcpu._vcpu
        self.kvm_run = self.vcpu.kvm_run
        self.processor.rip = 0x1000
        self.log = self.processor.log
        self.log.clear()

    @property
    def gpr(self) -> list[int]:
        return self.processor.gpr

    def field(self, field: F) -> int:
        return self.processor.vmread(field)

    def set_rflags(self, flags: int) -> None:
        self.processor.vmwrite(F.GUEST_RFLAGS, flags | 2)

    def flat_real_mode(self) -> None:
        """CS base 0, as after a jump."""
        self.processor.vmwrite(F.GUEST_CS_BASE, 0)
        self.processor.vmwrite(F.GUEST_CS_SELECTOR, 0)

    def run(self, *script: Step) -> uapi.KvmExit:
        """Replay these exits in one KVM_RUN, and give what it returned with."""
        self.processor.script += script
        self.vcpu.run()
        assert not self.processor.script
        return self.kvm_run.exit


def simple(reason: ExitReason, length: int = 0, **fields: int) -> VmExit:
    """An exit with an instruction length."""
    return VmExit(reason, instruction_length=length, **fields)


HLT = simple(ExitReason.HLT, 1)
CPUID = simple(ExitReason.CPUID, 2)
KICKED = simple(ExitReason.EXTERNAL_INTERRUPT)


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A guest whose userspace has the interrupt controller: HLT comes back from KVM_RUN."""
    one = Guest()
    yield one
    one.vm.close()


@pytest.fixture
def irq_guest() -> Iterator[Guest]:
    """A guest with the in-kernel irqchip and PIT."""
    one = Guest(irqchip=True)
    one.vm.report_dead_halt = True
    yield one
    one.vm.close()
