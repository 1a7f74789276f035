"""A kvm.api that replays kvm_runs: each KVM_RUN plays the next exit of a script.

After the script, KVM_RUN sleeps until a kick, as a guest without exits would keep running.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from errno import EINTR

from vmxsim.errors import KvmError
from vmxsim.kvm import uapi
from vmxsim.kvm.uapi import KvmRegs, KvmRun, KvmSregs

Exit = Callable[["FakeVcpu"], None]


def out(port: int, data: bytes, size: int = 1) -> Exit:
    """OUT, or OUTS when data holds several items."""

    def play(vcpu: FakeVcpu) -> None:
        vcpu.io(uapi.KVM_EXIT_IO_OUT, port, size, len(data) // size)
        vcpu.kvm_run.shared[4096 : 4096 + len(data)] = data

    return play


def in_(port: int, size: int = 1, count: int = 1) -> Exit:
    """IN or INS: what userspace answers is kept in FakeVcpu.answers."""

    def play(vcpu: FakeVcpu) -> None:
        vcpu.io(uapi.KVM_EXIT_IO_IN, port, size, count)
        vcpu.answer = (4096, size * count)

    return play


def mmio(gpa: int, data: bytes | int) -> Exit:
    """An MMIO write of bytes, or a read of so many."""

    def play(vcpu: FakeVcpu) -> None:
        run = vcpu.kvm_run
        run.exit_reason = uapi.KVM_EXIT_MMIO
        run.mmio.phys_addr = gpa
        run.mmio.is_write = int(not isinstance(data, int))
        run.mmio.len = data if isinstance(data, int) else len(data)
        start = uapi.MMIO_DATA_OFFSET
        if isinstance(data, int):
            vcpu.answer = (start, data)
        else:
            run.shared[start : start + len(data)] = data

    return play


def hlt(interrupts: bool = False) -> Exit:
    """KVM_EXIT_HLT."""

    def play(vcpu: FakeVcpu) -> None:
        vcpu.kvm_run.if_flag = int(interrupts)
        vcpu.kvm_run.ready_for_interrupt_injection = int(interrupts)
        vcpu.kvm_run.exit_reason = uapi.KVM_EXIT_HLT

    return play


def plain(reason: int) -> Exit:
    """An exit without particulars."""

    def play(vcpu: FakeVcpu) -> None:
        vcpu.kvm_run.exit_reason = reason

    return play


def window() -> Exit:
    """KVM_EXIT_IRQ_WINDOW_OPEN."""

    def play(vcpu: FakeVcpu) -> None:
        vcpu.kvm_run.exit_reason = uapi.KVM_EXIT_IRQ_WINDOW_OPEN
        vcpu.kvm_run.ready_for_interrupt_injection = 1

    return play


class FakeVcpu:
    """Plays exits; records every call in `calls`."""

    def __init__(self, script: Iterable[Exit], calls: list[str]) -> None:
        self.script = iter(script)
        self.calls = calls
        self.kvm_run = KvmRun.over(bytearray(uapi.VCPU_MMAP_SIZE))
        self.answer: tuple[int, int] | None = None
        self.answers: list[bytes] = []
        self.regs, self.sregs = KvmRegs(rip=0xFFF0), KvmSregs()
        self.kicked = threading.Event()
        self.asleep = threading.Event()
        self.runs = 0
        self.threads: set[str] = set()

    def io(self, direction: int, port: int, size: int, count: int) -> None:
        run = self.kvm_run
        run.exit_reason = uapi.KVM_EXIT_IO
        run.io.direction, run.io.port, run.io.size = direction, port, size
        run.io.count, run.io.data_offset = count, 4096

    def run(self) -> None:
        self.runs += 1
        self.threads.add(threading.current_thread().name)
        if self.answer is not None:
            start, size = self.answer
            self.answers.append(bytes(self.kvm_run.shared[start : start + size]))
            self.answer = None
        if self.kvm_run.immediate_exit or self.kicked.is_set():
            self._interrupted()
        step = next(self.script, None)
        if step is None:
            self.asleep.set()
            assert self.kicked.wait(10), "nobody kicked the guest"
            self.asleep.clear()
            self._interrupted()
        else:
            step(self)

    def _interrupted(self) -> None:
        self.kicked.clear()
        self.kvm_run.exit_reason = uapi.KVM_EXIT_INTR
        raise KvmError(EINTR)

    def kick(self) -> None:
        self.kicked.set()

    def get_regs(self) -> KvmRegs:
        return self.regs

    def set_regs(self, regs: KvmRegs) -> None:
        self.calls.append("set_regs")
        self.regs = regs

    def get_sregs(self) -> KvmSregs:
        return self.sregs

    def set_sregs(self, sregs: KvmSregs) -> None:
        self.calls.append("set_sregs")
        self.sregs = sregs

    def set_cpuid2(self, entries: Sequence[object]) -> None:
        self.calls.append(f"set_cpuid2 {list(entries)}")

    def interrupt(self, vector: int) -> None:
        self.calls.append(f"interrupt {vector:#x}")

    def close(self) -> None:
        self.calls.append("close vcpu")


class FakeVm:
    """Records every call in `calls`."""

    def __init__(self, script: Iterable[Exit], calls: list[str]) -> None:
        self.script = script
        self.calls = calls
        self.report_dead_halt = False
        self.memory = memoryview(b"")
        self.vcpu: FakeVcpu | None = None

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: memoryview, flags: int = 0
    ) -> None:
        self.memory = memory
        self.calls.append(f"slot {slot} at {guest_phys_addr:#x}: {len(memory):#x}")

    def create_irqchip(self) -> None:
        self.calls.append("create_irqchip")

    def irq_line(self, irq: int, level: int) -> None:
        self.calls.append(f"irq {irq} = {level}")

    def create_vcpu(self, id: int) -> FakeVcpu:
        self.calls.append(f"create_vcpu {id}")
        self.vcpu = FakeVcpu(self.script, self.calls)
        return self.vcpu

    def close(self) -> None:
        self.calls.append("close vm")


class FakeKvm:
    """Opens VMs whose guests play `script`."""

    def __init__(self, *script: Exit, version: int = uapi.KVM_API_VERSION) -> None:
        self.script = script
        self.version = version
        self.calls: list[str] = []
        self.vm = FakeVm((), self.calls)

    @property
    def vcpu(self) -> FakeVcpu:
        assert self.vm.vcpu is not None
        return self.vm.vcpu

    def get_api_version(self) -> int:
        return self.version

    def get_supported_cpuid(self) -> Sequence[object]:
        return ("supported",)

    def create_vm(self) -> FakeVm:
        self.calls.append("create_vm")
        self.vm = FakeVm(self.script, self.calls)
        return self.vm
