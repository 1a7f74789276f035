"""Our side of every ratio: the same guests through the KVM interface, or a whole machine."""

from __future__ import annotations

from time import perf_counter

from benchmarks.guests import (
    CODE,
    CPUID,
    MEMORY,
    OUT,
    PAGE_TABLES,
    STACK,
    Guest,
    page_tables,
)
from vmxsim.kvm.api import Kvm, Vcpu
from vmxsim.kvm.uapi import KVM_EXIT_HLT, KVM_EXIT_IO
from vmxsim.probes import Probes
from vmxsim.tools.stat import Stat
from vmxsim.vmm.config import Config, Mode
from vmxsim.vmm.image import Image, Segment
from vmxsim.vmm.machine import Machine

KERNEL_PORT, USERSPACE_PORT, END_PORT = 0x21, 0x80, 0xF4
"""The interrupt controller's mask; the diagnostic port; where a run ends."""

CR0_LONG, CR4_LONG, EFER_LONG = 0x8000_0031, 0x620, 0xD00


def code_of(guest: Guest, port: int) -> bytes:
    """The guest's code; for OUT, with DX and AL set, and an OUT to END_PORT before the HLT."""
    if guest is not OUT:
        return guest.code
    setup = b"\xba" + port.to_bytes(4, "little") + b"\xb0\xff"
    return setup + guest.code[:-1] + bytes((0xE6, END_PORT)) + b"\xf4"


class Simulated:
    """One vCPU in 64-bit mode at a guest's code. ``stat`` counts its exits as --stat does."""

    def __init__(self, guest: Guest, *, irqchip: bool = False, stat: bool = False) -> None:
        probes = Probes()
        if stat:
            probes.add(Stat())
        self.memory = bytearray(MEMORY)
        code = code_of(guest, KERNEL_PORT)
        self.memory[CODE : CODE + len(code)] = code
        tables = page_tables()
        self.memory[PAGE_TABLES : PAGE_TABLES + len(tables)] = tables
        self.vm = Kvm(probes=probes).create_vm()
        self.vm.set_user_memory_region(0, 0, self.memory)
        if irqchip:
            self.vm.create_irqchip()
        self.vcpu = self.vm.create_vcpu(0)
        start_in_long_mode(self.vcpu)

    def seconds(self) -> float:
        """The guest from its start to its end."""
        began = perf_counter()
        self.vcpu.run()
        spent = perf_counter() - began
        reason = self.vcpu.kvm_run.exit_reason
        self.vm.close()
        if reason not in (KVM_EXIT_HLT, KVM_EXIT_IO):
            raise RuntimeError(f"the guest ended with KVM exit {reason}")
        return spent


def start_in_long_mode(vcpu: Vcpu) -> None:
    """Set the registers as firmware would have: flat segments, paging, RIP at the code."""
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = CR0_LONG, PAGE_TABLES, CR4_LONG, EFER_LONG
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, 0x10
        segment.type, segment.present, segment.dpl, segment.s, segment.g = 3, 1, 0, 1, 1
        segment.db, segment.l, segment.unusable = 1, 0, 0
    sregs.cs.type, sregs.cs.db, sregs.cs.l, sregs.cs.selector = 11, 0, 1, 8
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rsp, regs.rflags = CODE, STACK, 2
    vcpu.set_regs(regs)


def loop_seconds(guest: Guest) -> float:
    """The whole loop."""
    return Simulated(guest).seconds()


def cpuid_seconds(stat: bool = False) -> float:
    """One CPUID exit, answered in the kernel."""
    return Simulated(CPUID, stat=stat).seconds() / CPUID.turns


def kernel_out_seconds(stat: bool = False) -> float:
    """One OUT that kernel_pio gives to the interrupt controller."""
    return Simulated(OUT, irqchip=True, stat=stat).seconds() / OUT.turns


def userspace_out_seconds(stat: bool = False) -> float:
    """One OUT through KVM_EXIT_IO to a device of the machine, and back into the guest."""
    code = code_of(OUT, USERSPACE_PORT)
    image = Image("OUT", (Segment(CODE, code, len(code)),), CODE, Mode.LONG)
    with Machine(Config(memory=MEMORY, irqchip=False)) as machine:
        if stat:
            machine.probes.add(Stat())
        machine.load(image)
        began = perf_counter()
        machine.run()
        return (perf_counter() - began) / OUT.turns
