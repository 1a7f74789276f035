"""INS and OUTS: memory on one side, a port on the other, and userspace in between.

Linux does these in its instruction emulator (em_in, em_out, complete_emulated_pio). REP OUTS gives
one exit per item, REP INS one exit for as many items as fit, as there; RCX, RSI and RDI move after
each of them, and RIP stays on the instruction while REP has items left.
"""

from __future__ import annotations

from vmxsim.arch.paging import Access, PageFault
from vmxsim.arch.qualifications import IoQualification, StringIoInfo
from vmxsim.arch.registers import Gpr, Rflags
from vmxsim.arch.segments import Segment
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.kvm.guest_memory import (
    Mmio,
    kvm_mmu_gva_to_gpa,
    kvm_read_guest_virt,
    kvm_write_guest_virt,
)
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.run import Run
from vmxsim.kvm.uapi import PAGE_SIZE, PIO_DATA_OFFSET
from vmxsim.kvm.vmx_ops import vmcs_readl
from vmxsim.kvm.x86 import (
    emulator_pio_in_emulated,
    emulator_pio_out_emulated,
    is_64_bit_mode,
    kvm_inject_page_fault,
    kvm_skip_emulated_instruction,
)
from vmxsim.vmx.records import VmExit

READ_AHEAD = 1024
"""Bytes that one REP INS exit asks for at most, as in Linux."""

_STEP = VmcsField.GUEST_CS_BASE - VmcsField.GUEST_ES_BASE


class StringIo:
    """One INS or OUTS, decoded from the exit. Linux: its part of struct x86_emulate_ctxt."""

    def __init__(self, vcpu: KvmVcpu, exit: VmExit) -> None:
        self.vcpu = vcpu
        io = IoQualification.decode(exit.qualification)
        info = StringIoInfo.decode(exit.instruction_info)
        self.size, self.port, self.rep = io.size, io.port, io.rep
        self.mask = (1 << 8 * info.address_size) - 1
        self.keep = 0 if info.address_size > 2 else ~self.mask
        down = vmcs_readl(vcpu, VmcsField.GUEST_RFLAGS) & Rflags.DF
        self.step = -io.size if down else io.size
        self.is_in = bool(io.direction)
        self.pointer = Gpr.RDI if self.is_in else Gpr.RSI
        segment = Segment.ES if self.is_in else info.segment
        self.wide = is_64_bit_mode(vcpu)
        flat = self.wide and segment < Segment.FS
        self.base = 0 if flat else vmcs_readl(vcpu, VmcsField.GUEST_ES_BASE + _STEP * segment)

    @property
    def gva(self) -> int:
        """The linear address of the next item."""
        address = self.base + (self.vcpu.processor.gpr[self.pointer] & self.mask)
        return address & (0xFFFF_FFFF_FFFF_FFFF if self.wide else 0xFFFF_FFFF)

    @property
    def left(self) -> int:
        """Items to go."""
        return self.vcpu.processor.gpr[Gpr.RCX] & self.mask if self.rep else 1

    def advance(self) -> None:
        """One item is done."""
        self._add(self.pointer, self.step)
        if self.rep:
            self._add(Gpr.RCX, -1)

    def _add(self, register: int, step: int) -> None:
        gpr = self.vcpu.processor.gpr
        gpr[register] = gpr[register] & self.keep | (gpr[register] + step) & self.mask

    def failed(self, why: PageFault | Mmio) -> Run:
        """The memory side faults, or is a device, which KVM does not do either."""
        if isinstance(why, PageFault):
            kvm_inject_page_fault(self.vcpu, why)
            return Run.REENTER_GUEST
        from vmxsim.kvm.emulator import Emulation, handle_emulation_failure

        return handle_emulation_failure(self.vcpu, Emulation(self.vcpu))


def handle_string_io(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """INS or OUTS."""
    string = StringIo(vcpu, exit)
    return emulate_ins(string) if string.is_in else emulate_outs(string)


def emulate_outs(string: StringIo) -> Run:
    """OUTS, item by item. When the last one of a REP is with userspace, RIP is still on it."""
    vcpu = string.vcpu
    while string.left:
        data = kvm_read_guest_virt(vcpu, string.gva, string.size)
        if not isinstance(data, bytes):
            return string.failed(data)
        string.advance()
        value = int.from_bytes(data, "little")
        if not emulator_pio_out_emulated(vcpu, string.size, string.port, value):
            vcpu.arch.complete_userspace_io = complete_emulated_outs
            if not string.rep:
                kvm_skip_emulated_instruction(vcpu)
            return Run.EXIT_USERSPACE
        if not string.rep:
            break
    return kvm_skip_emulated_instruction(vcpu)


def complete_emulated_outs(vcpu: KvmVcpu) -> Run:
    """Userspace has taken an item of OUTS. The guest executes the rest of REP again."""
    vcpu.arch.pio.count = 0
    return Run.REENTER_GUEST


def emulate_ins(string: StringIo) -> Run:
    """INS: ask for as many items as REP has left, up to the end of the page."""
    vcpu = string.vcpu
    while string.left:
        gva = string.gva
        target = kvm_mmu_gva_to_gpa(vcpu, gva, Access.WRITE)
        if isinstance(target, PageFault):
            return string.failed(target)
        offset = gva % PAGE_SIZE
        room = offset if string.step < 0 else PAGE_SIZE - offset
        count = max(1, min(string.left, room // string.size, READ_AHEAD // string.size))
        if not emulator_pio_in_emulated(vcpu, string.size, string.port, count):
            vcpu.arch.complete_userspace_io = lambda _: complete_emulated_ins(string)
            return Run.EXIT_USERSPACE
        run = store_items(string, count)
        if run is not None:
            return run
    return kvm_skip_emulated_instruction(vcpu)


def complete_emulated_ins(string: StringIo) -> Run:
    """Userspace has answered INS."""
    vcpu, count = string.vcpu, string.vcpu.arch.pio.count
    emulator_pio_in_emulated(vcpu, string.size, string.port, count)
    run = store_items(string, count)
    if run is not None:
        return run
    return Run.REENTER_GUEST if string.rep and string.left else kvm_skip_emulated_instruction(vcpu)


def store_items(string: StringIo, count: int) -> Run | None:
    """Write items of the PIO page to memory; a Run when that ends the instruction."""
    size = string.size
    for start in range(PIO_DATA_OFFSET, PIO_DATA_OFFSET + size * count, size):
        item = bytes(string.vcpu.shared[start : start + size])
        failed = kvm_write_guest_virt(string.vcpu, string.gva, item)
        if failed is not None:
            return string.failed(failed)
        string.advance()
        if not string.rep:
            return kvm_skip_emulated_instruction(string.vcpu)
    return None
