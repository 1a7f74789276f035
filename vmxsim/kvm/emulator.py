"""Ties the instruction emulator to a vCPU: its registers, its memory, and userspace for MMIO.

Linux: x86_emulate_instruction, the emulate_ops callbacks and complete_emulated_mmio of
arch/x86/kvm/x86.c. MMIO goes to userspace in fragments of at most eight bytes: reads one by one
until the instruction has all it asks for, writes after it is done. Left out: in-kernel MMIO.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import NamedTuple

from vmxsim.arch.events import Vector
from vmxsim.arch.paging import Access, PageFault
from vmxsim.arch.registers import Dr6, Rflags
from vmxsim.arch.segments import AccessRights
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.kvm.emulate import (
    Fault,
    MmioNeeded,
    Outcome,
    Written,
    emulate_instruction,
)
from vmxsim.kvm.guest_memory import Mmio, is_mmio, kvm_mmu_gva_to_gpa, kvm_read_guest_virt, pages
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.run import Run
from vmxsim.kvm.uapi import (
    EXIT_OFFSET,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_MMIO,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    MMIO_DATA_OFFSET,
    MMIO_EXIT,
)
from vmxsim.kvm.vmx_ops import vmcs_readl, vmcs_writel
from vmxsim.kvm.x86 import (
    is_64_bit_mode,
    kvm_inject_page_fault,
    kvm_multiple_exception,
    kvm_queue_debug,
    kvm_queue_exception,
)

FRAGMENT = 8
"""Bytes of MMIO that one exit to userspace carries at most."""
MAX_INSTRUCTION = 15

_RFLAGS = VmcsField.GUEST_RFLAGS
_CS_AR = VmcsField.GUEST_CS_AR_BYTES
_SS_AR = VmcsField.GUEST_SS_AR_BYTES
_CS_BASE = VmcsField.GUEST_CS_BASE
_STEP = VmcsField.GUEST_CS_BASE - VmcsField.GUEST_ES_BASE


class Fragment(NamedTuple):
    """One exit's worth of MMIO; `data` is None for a read. Linux: struct kvm_mmio_fragment."""

    gpa: int
    length: int
    data: bytes | None


def fragments(gpa: int, length: int, data: bytes | None) -> list[Fragment]:
    """Cut an access into what kvm_run.mmio can carry."""
    return [
        Fragment(
            gpa + start,
            min(FRAGMENT, length - start),
            None if data is None else data[start : start + FRAGMENT],
        )
        for start in range(0, length, FRAGMENT)
    ]


class Emulation:
    """One instruction under emulation: an EmulateContext over the vCPU.

    `answers` are the MMIO reads that userspace has answered, in the order they are asked for.
    """

    def __init__(self, vcpu: KvmVcpu) -> None:
        self.vcpu = vcpu
        self.is_64_bit = is_64_bit_mode(vcpu)
        self.answers: list[bytes] = []
        self.position = 0
        self.queue: list[Fragment] = []
        self.partial = b""

    @property
    def mode_bits(self) -> int:
        """Code size: 16, 32 or 64."""
        if self.is_64_bit:
            return 64
        return 32 if vmcs_readl(self.vcpu, _CS_AR) & AccessRights.DB else 16

    @property
    def stack_bits(self) -> int:
        """Width of the stack pointer."""
        if self.is_64_bit:
            return 64
        return 32 if vmcs_readl(self.vcpu, _SS_AR) & AccessRights.DB else 16

    @property
    def gpr(self) -> MutableSequence[int]:
        """The general registers, live."""
        return self.vcpu.processor.gpr

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return self.vcpu.processor.rip

    @rip.setter
    def rip(self, value: int) -> None:
        self.vcpu.processor.rip = value

    @property
    def rflags(self) -> int:
        """RFLAGS."""
        return vmcs_readl(self.vcpu, _RFLAGS)

    @rflags.setter
    def rflags(self, value: int) -> None:
        vmcs_writel(self.vcpu, _RFLAGS, value)

    def segment_base(self, segment: int) -> int:
        """Base of a segment as addresses use it: in 64-bit mode only FS and GS have one."""
        if self.is_64_bit and segment < 4:
            return 0
        return vmcs_readl(self.vcpu, VmcsField.GUEST_ES_BASE + _STEP * segment)

    def segment_selector(self, segment: int) -> int:
        """A selector."""
        return vmcs_readl(self.vcpu, VmcsField.GUEST_ES_SELECTOR + _STEP * segment)

    def xmm(self, index: int) -> bytes:
        """An XMM register."""
        return self.vcpu.processor.xmm(index)

    def set_xmm(self, index: int, value: bytes) -> None:
        """Set an XMM register."""
        self.vcpu.processor.set_xmm(index, value)

    def fetch(self, length: int) -> bytes:
        """Code at RIP; fewer bytes where the mapping ends."""
        gva = self.rip if self.is_64_bit else vmcs_readl(self.vcpu, _CS_BASE) + self.rip
        code = b""
        for _, address, part in pages(gva, length):
            piece = kvm_read_guest_virt(self.vcpu, address, part, Access.EXECUTE)
            if isinstance(piece, (PageFault, Mmio)):
                break
            code += piece
        return code

    def read(self, gva: int, length: int) -> bytes | Fault | MmioNeeded:
        """Data at a linear address, from RAM or from what userspace has answered."""
        data = b""
        for _, address, part in pages(gva, length):
            gpa = kvm_mmu_gva_to_gpa(self.vcpu, address, Access.READ)
            if isinstance(gpa, PageFault):
                return Fault(Vector.PF, gpa.error_code, gpa.address)
            if not is_mmio(self.vcpu, gpa, False):
                data += self.vcpu.processor.memory.read(gpa, part)
            elif self.position < len(self.answers):
                data += self.answers[self.position]
                self.position += 1
            else:
                return MmioNeeded(gpa, part)
        return data

    def write(self, gva: int, data: bytes) -> Fault | Written | None:
        """Write to RAM now, to a device when the instruction is done."""
        targets: list[tuple[int, bytes]] = []
        for start, address, part in pages(gva, len(data)):
            gpa = kvm_mmu_gva_to_gpa(self.vcpu, address, Access.WRITE)
            if isinstance(gpa, PageFault):
                return Fault(Vector.PF, gpa.error_code, gpa.address)
            targets.append((gpa, data[start : start + part]))
        queued: Written | None = None
        for gpa, piece in targets:
            if is_mmio(self.vcpu, gpa, True):
                self.queue += fragments(gpa, len(piece), piece)
                queued = Written.QUEUED
            else:
                self.vcpu.processor.memory.write(gpa, piece)
        return queued


def x86_emulate_instruction(vcpu: KvmVcpu) -> Run:
    """Do by hand the instruction at RIP, or go on with it after userspace has answered a read."""
    arch = vcpu.arch
    emulation = arch.emulation or Emulation(vcpu)
    arch.emulation = None
    emulation.position = 0
    rip, tf = emulation.rip, emulation.rflags & Rflags.TF
    outcome, payload = emulate_instruction(emulation)
    if outcome is Outcome.NEED_MMIO and isinstance(payload, MmioNeeded):
        arch.emulation = emulation
        emulation.queue = fragments(payload.gpa, payload.length, None)
        return exit_for_mmio(vcpu, emulation)
    if outcome is Outcome.UNHANDLED:
        return handle_emulation_failure(vcpu, emulation)
    if outcome is Outcome.FAULT and isinstance(payload, Fault):
        inject_emulated_exception(vcpu, payload)
    else:
        vmcs_writel(vcpu, VmcsField.GUEST_INTERRUPTIBILITY_INFO, 0)
        if tf and emulation.rip != rip:
            kvm_queue_debug(vcpu, Dr6.BS)
    if emulation.queue:
        arch.emulation = emulation
        return exit_for_mmio(vcpu, emulation)
    return Run.REENTER_GUEST


def inject_emulated_exception(vcpu: KvmVcpu, fault: Fault) -> None:
    """Raise in the guest what its instruction has run into."""
    if fault.vector == Vector.PF:
        kvm_inject_page_fault(vcpu, PageFault(fault.address or 0, fault.error_code or 0))
    else:
        kvm_multiple_exception(vcpu, fault.vector, fault.error_code, False)


def exit_for_mmio(vcpu: KvmVcpu, emulation: Emulation) -> Run:
    """Hand the next fragment to userspace: KVM_EXIT_MMIO."""
    gpa, length, data = emulation.queue[0]
    vcpu.kvm_run.exit_reason = KVM_EXIT_MMIO
    MMIO_EXIT.pack_into(vcpu.shared, EXIT_OFFSET, gpa, data or b"", length, data is not None)
    vcpu.stat.mmio_exits += 1
    vcpu.arch.complete_userspace_io = complete_emulated_mmio
    if data is not None:
        trace_mmio(vcpu, emulation.queue[0], data)
    return Run.EXIT_USERSPACE


def complete_emulated_mmio(vcpu: KvmVcpu) -> Run:
    """Userspace has dealt with a fragment: take its answer, hand out the next, or finish."""
    emulation = vcpu.arch.emulation
    assert emulation is not None
    fragment = emulation.queue.pop(0)
    if fragment.data is None:
        data = bytes(vcpu.shared[MMIO_DATA_OFFSET : MMIO_DATA_OFFSET + fragment.length])
        trace_mmio(vcpu, fragment, data)
        emulation.partial += data
    if emulation.queue:
        return exit_for_mmio(vcpu, emulation)
    if fragment.data is not None:
        vcpu.arch.emulation = None
        return Run.REENTER_GUEST
    emulation.answers.append(emulation.partial)
    emulation.partial = b""
    return x86_emulate_instruction(vcpu)


def trace_mmio(vcpu: KvmVcpu, fragment: Fragment, data: bytes) -> None:
    """The mmio probe."""
    if vcpu.probes.mmio:
        now, value = vcpu.clock.now(), int.from_bytes(data, "little")
        for seen in vcpu.probes.mmio:
            seen(vcpu.id, now, fragment.data is not None, fragment.length, fragment.gpa, value)


def handle_emulation_failure(vcpu: KvmVcpu, emulation: Emulation) -> Run:
    """Nobody can execute this: #UD for user code, KVM_EXIT_INTERNAL_ERROR for a guest kernel.

    The instruction's bytes go to userspace as newer kernels do it, if any can be read.
    """
    if vmcs_readl(vcpu, _SS_AR) >> AccessRights.DPL_SHIFT & 3:
        kvm_queue_exception(vcpu, Vector.UD)
        return Run.REENTER_GUEST
    code = emulation.fetch(MAX_INSTRUCTION)
    vcpu.kvm_run.exit_reason = KVM_EXIT_INTERNAL_ERROR
    failure = vcpu.kvm_run.emulation_failure
    failure.suberror = KVM_INTERNAL_ERROR_EMULATION
    failure.ndata = 3 if code else 0
    failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES if code else 0
    failure.insn_size = len(code)
    failure.insn_bytes[:] = list(code.ljust(MAX_INSTRUCTION, b"\0"))
    return Run.EXIT_USERSPACE
