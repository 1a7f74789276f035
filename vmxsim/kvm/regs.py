"""The vCPU's state as userspace reads and writes it: KVM_GET_REGS and everything of that kind.

Linux: the kvm_vcpu_ioctl_* and kvm_arch_vcpu_ioctl_* functions of arch/x86/kvm/x86.c, segments from
vmx.c. Left out: KVM_GET_XSAVE, KVM_GET_LAPIC, SMM state, KVM_SET_GUEST_DEBUG.
"""

from __future__ import annotations

import struct
from ctypes import memmove, sizeof
from errno import EINVAL, ENXIO

from vmxsim.arch.paging import Access, PageFault
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Dr7, Efer, Gpr, Rflags
from vmxsim.arch.segments import AccessRights, Segment
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import KvmError
from vmxsim.kvm.control_regs import (
    CR4_KNOWN,
    is_pae_paging,
    kvm_read_cr0,
    kvm_read_cr3,
    kvm_read_cr4,
    kvm_set_xcr,
    load_pdptrs,
)
from vmxsim.kvm.cpuid import kvm_update_cpuid
from vmxsim.kvm.guest_memory import kvm_mmu_gva_to_gpa
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.msr import kvm_set_apic_base
from vmxsim.kvm.requests import KVM_REQ_EVENT, kvm_make_request
from vmxsim.kvm.uapi import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    KVM_VCPUEVENT_VALID_SMM,
    KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI,
    KvmDebugregs,
    KvmDtable,
    KvmFpu,
    KvmRegs,
    KvmSegment,
    KvmSregs,
    KvmTranslation,
    KvmVcpuEvents,
    KvmXcrs,
)
from vmxsim.kvm.vmx_ops import vmcs_readl, vmcs_writel
from vmxsim.kvm.x86 import kvm_queue_interrupt

F = VmcsField
_STEP = F.GUEST_CS_BASE - F.GUEST_ES_BASE
_STI, _MOV_SS = 1, 2
EVENT_FLAGS = (
    KVM_VCPUEVENT_VALID_NMI_PENDING
    | KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | KVM_VCPUEVENT_VALID_SHADOW
    | KVM_VCPUEVENT_VALID_SMM
)
MXCSR_KNOWN = 0xFFFF

REGS: tuple[tuple[str, Gpr], ...] = tuple(
    (gpr.name.lower(), gpr) for gpr in Gpr
)  # fmt: skip
SEGMENTS: tuple[tuple[str, Segment], ...] = (
    ("cs", Segment.CS), ("ds", Segment.DS), ("es", Segment.ES), ("fs", Segment.FS),
    ("gs", Segment.GS), ("ss", Segment.SS), ("tr", Segment.TR), ("ldt", Segment.LDTR),
)  # fmt: skip

# -- general registers -----------------------------------------------------------------------------


def kvm_arch_vcpu_ioctl_get_regs(vcpu: KvmVcpu) -> KvmRegs:
    """KVM_GET_REGS."""
    regs, gpr = KvmRegs(), vcpu.processor.gpr
    for name, number in REGS:
        setattr(regs, name, gpr[number])
    regs.rip = vcpu.processor.rip
    regs.rflags = vmcs_readl(vcpu, F.GUEST_RFLAGS)
    return regs


def kvm_arch_vcpu_ioctl_set_regs(vcpu: KvmVcpu, regs: KvmRegs) -> None:
    """KVM_SET_REGS. An exception that was pending is forgotten."""
    gpr = vcpu.processor.gpr
    for name, number in REGS:
        gpr[number] = getattr(regs, name)
    vmcs_writel(vcpu, F.GUEST_RSP, regs.rsp)  # the first entry loads it from the VMCS
    if regs.rip != vcpu.processor.rip:
        vcpu.arch.rip_moved = True
        vcpu.processor.rip = regs.rip
    vmcs_writel(vcpu, F.GUEST_RFLAGS, regs.rflags | Rflags.FIXED)
    vcpu.arch.exception.pending = False
    kvm_make_request(KVM_REQ_EVENT, vcpu)


# -- segments, tables, control registers -----------------------------------------------------------


def vmx_get_segment(vcpu: KvmVcpu, segment: int) -> KvmSegment:
    """A segment register as struct kvm_segment has it."""
    step = _STEP * segment
    rights = vmcs_readl(vcpu, F.GUEST_ES_AR_BYTES + step)
    unusable = rights >> 16 & 1
    return KvmSegment(
        base=vmcs_readl(vcpu, F.GUEST_ES_BASE + step),
        limit=vmcs_readl(vcpu, F.GUEST_ES_LIMIT + step),
        selector=vmcs_readl(vcpu, F.GUEST_ES_SELECTOR + step),
        type=rights & 0xF,
        s=rights >> 4 & 1,
        dpl=rights >> 5 & 3,
        present=1 - unusable,
        avl=rights >> 12 & 1,
        l=rights >> 13 & 1,
        db=rights >> 14 & 1,
        g=rights >> 15 & 1,
        unusable=unusable,
    )


def vmx_segment_access_rights(segment: KvmSegment) -> int:
    """The VMCS's access rights; a segment that is not present is unusable."""
    if segment.unusable or not segment.present:
        return AccessRights.UNUSABLE
    return (
        segment.type & 15
        | (segment.s & 1) << 4
        | (segment.dpl & 3) << 5
        | AccessRights.P
        | (segment.avl & 1) << 12
        | (segment.l & 1) << 13
        | (segment.db & 1) << 14
        | (segment.g & 1) << 15
    )


def vmx_set_segment(vcpu: KvmVcpu, number: int, segment: KvmSegment) -> None:
    """Load a segment register. Code and data count as accessed, which VM entry insists on."""
    step = _STEP * number
    rights = vmx_segment_access_rights(segment)
    if number not in (Segment.LDTR, Segment.TR) and not rights & AccessRights.UNUSABLE:
        rights |= AccessRights.ACCESSED
    vmcs_writel(vcpu, F.GUEST_ES_BASE + step, segment.base)
    vmcs_writel(vcpu, F.GUEST_ES_LIMIT + step, segment.limit)
    vmcs_writel(vcpu, F.GUEST_ES_SELECTOR + step, segment.selector)
    vmcs_writel(vcpu, F.GUEST_ES_AR_BYTES + step, rights)


def kvm_arch_vcpu_ioctl_get_sregs(vcpu: KvmVcpu) -> KvmSregs:
    """KVM_GET_SREGS."""
    sregs, interrupt = KvmSregs(), vcpu.arch.interrupt
    for name, segment in SEGMENTS:
        setattr(sregs, name, vmx_get_segment(vcpu, segment))
    sregs.gdt = KvmDtable(
        vmcs_readl(vcpu, F.GUEST_GDTR_BASE), vmcs_readl(vcpu, F.GUEST_GDTR_LIMIT)
    )
    sregs.idt = KvmDtable(
        vmcs_readl(vcpu, F.GUEST_IDTR_BASE), vmcs_readl(vcpu, F.GUEST_IDTR_LIMIT)
    )
    sregs.cr0, sregs.cr2 = kvm_read_cr0(vcpu), vcpu.processor.cr2
    sregs.cr3, sregs.cr4, sregs.cr8 = kvm_read_cr3(vcpu), kvm_read_cr4(vcpu), vcpu.arch.cr8
    sregs.efer, sregs.apic_base = vcpu.arch.efer, vcpu.arch.apic_base
    if interrupt.injected and not interrupt.soft:
        sregs.interrupt_bitmap[interrupt.nr >> 6] |= 1 << (interrupt.nr & 63)
    return sregs


def valid_sregs(sregs: KvmSregs) -> str:
    """What is wrong with them; empty when nothing is. Linux: kvm_valid_sregs."""
    if sregs.efer & Efer.LME and sregs.cr0 & Cr0.PG:
        if not sregs.cr4 & Cr4.PAE or not sregs.efer & Efer.LMA:
            return "long mode needs CR4.PAE and EFER.LMA"
    elif sregs.efer & Efer.LMA or sregs.cs.l:
        return "EFER.LMA and CS.L need EFER.LME and CR0.PG"
    if sregs.cr4 & ~CR4_KNOWN:
        return f"CR4 {sregs.cr4:#x} has bits this processor does not know"
    if sregs.efer & ~Efer.DEFINED:
        return f"EFER {sregs.efer:#x} has bits this processor does not know"
    if sregs.cr0 >> 32 or (sregs.cr0 & Cr0.PG and not sregs.cr0 & Cr0.PE):
        return f"CR0 {sregs.cr0:#x} is no legal value"
    if sregs.cr8 & ~0xF:
        return f"CR8 {sregs.cr8:#x} has more than four bits"
    return ""


def kvm_arch_vcpu_ioctl_set_sregs(vcpu: KvmVcpu, sregs: KvmSregs) -> None:
    """KVM_SET_SREGS. Control registers that contradict each other are EINVAL."""
    if wrong := valid_sregs(sregs):
        raise KvmError(EINVAL, wrong)
    if kvm_set_apic_base(vcpu, sregs.apic_base):
        raise KvmError(EINVAL, f"IA32_APIC_BASE cannot be {sregs.apic_base:#x}")
    for table, base, limit in (
        (sregs.gdt, F.GUEST_GDTR_BASE, F.GUEST_GDTR_LIMIT),
        (sregs.idt, F.GUEST_IDTR_BASE, F.GUEST_IDTR_LIMIT),
    ):
        vmcs_writel(vcpu, base, table.base)
        vmcs_writel(vcpu, limit, table.limit)
    set_control_registers(vcpu, sregs)
    for name, segment in SEGMENTS:
        vmx_set_segment(vcpu, segment, getattr(sregs, name))
    pending = sum(word << 64 * at for at, word in enumerate(sregs.interrupt_bitmap))
    if pending:
        kvm_queue_interrupt(vcpu, (pending & -pending).bit_length() - 1, False)
    reset = vcpu.processor.rip == 0xFFF0 and sregs.cs.selector == 0xF000
    if reset and not sregs.cr0 & Cr0.PE:  # old userspace forgets mp_state when it resets
        vcpu.arch.mp_state = KVM_MP_STATE_RUNNABLE
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def set_control_registers(vcpu: KvmVcpu, sregs: KvmSregs) -> None:
    """CR0 to CR8 and EFER, in Linux's order. EFER goes first, so that LMA stays as given."""
    ops = vcpu.x86_ops
    vcpu.processor.cr2 = sregs.cr2
    vcpu.arch.cr8 = sregs.cr8
    vcpu.kvm_run.cr8 = sregs.cr8
    vcpu.arch.cr0 = sregs.cr0  # so that set_cr0 sees no change of paging and leaves EFER alone
    ops.set_efer(vcpu, sregs.efer)
    vmcs_writel(vcpu, F.GUEST_CR3, sregs.cr3)
    ops.set_cr0(vcpu, sregs.cr0)
    ops.set_cr4(vcpu, sregs.cr4)
    kvm_update_cpuid(vcpu)
    if is_pae_paging(vcpu):
        load_pdptrs(vcpu, sregs.cr3)


# -- floating point, debug registers, XCRs ---------------------------------------------------------

_FX_HEAD = struct.Struct("<HHBxHQQI")
"""FXSAVE: FCW, FSW, abridged tag, FOP, FIP, FDP, MXCSR."""
_FX_FPR, _FX_XMM = slice(32, 160), slice(160, 416)


def kvm_arch_vcpu_ioctl_get_fpu(vcpu: KvmVcpu) -> KvmFpu:
    """KVM_GET_FPU."""
    image, fpu = vcpu.processor.fxsave(), KvmFpu()
    (
        fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp, fpu.mxcsr,
    ) = _FX_HEAD.unpack_from(image)  # fmt: skip
    memmove(fpu.fpr, image[_FX_FPR], sizeof(fpu.fpr))
    memmove(fpu.xmm, image[_FX_XMM], sizeof(fpu.xmm))
    return fpu


def kvm_arch_vcpu_ioctl_set_fpu(vcpu: KvmVcpu, fpu: KvmFpu) -> None:
    """KVM_SET_FPU. Reserved bits of MXCSR are dropped; LDMXCSR would fault on them."""
    image = bytearray(vcpu.processor.fxsave())
    _FX_HEAD.pack_into(
        image, 0, fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp,
        fpu.mxcsr & MXCSR_KNOWN,
    )  # fmt: skip
    image[_FX_FPR] = bytes(fpu.fpr)
    image[_FX_XMM] = bytes(fpu.xmm)
    vcpu.processor.fxrstor(bytes(image))


def kvm_vcpu_ioctl_x86_get_debugregs(vcpu: KvmVcpu) -> KvmDebugregs:
    """KVM_GET_DEBUGREGS."""
    debug = KvmDebugregs(dr6=vcpu.processor.dr[6], dr7=vmcs_readl(vcpu, F.GUEST_DR7))
    for number, value in enumerate(vcpu.processor.dr[:4]):
        debug.db[number] = value
    return debug


def kvm_vcpu_ioctl_x86_set_debugregs(vcpu: KvmVcpu, debug: KvmDebugregs) -> None:
    """KVM_SET_DEBUGREGS. EINVAL for flags, and for DR6 or DR7 above 32 bits."""
    if debug.flags or debug.dr6 >> 32 or debug.dr7 >> 32:
        raise KvmError(EINVAL, "flags must be 0, DR6 and DR7 have 32 bits")
    vcpu.processor.dr[:4] = [int(value) for value in debug.db]
    vcpu.processor.dr[6] = debug.dr6 & Dr6.VOLATILE | Dr6.FIXED
    vmcs_writel(vcpu, F.GUEST_DR7, debug.dr7 & ~Dr7.RESERVED_ZERO | Dr7.FIXED)


def kvm_vcpu_ioctl_x86_get_xcrs(vcpu: KvmVcpu) -> KvmXcrs:
    """KVM_GET_XCRS."""
    xcrs = KvmXcrs(nr_xcrs=1)
    xcrs.xcrs[0].value = vcpu.arch.guest_xcr0
    return xcrs


def kvm_vcpu_ioctl_x86_set_xcrs(vcpu: KvmVcpu, xcrs: KvmXcrs) -> None:
    """KVM_SET_XCRS. Only XCR0 is looked at."""
    if xcrs.nr_xcrs > len(xcrs.xcrs) or xcrs.flags:
        raise KvmError(EINVAL, "flags must be 0, and there are at most 16 XCRs")
    for xcr in xcrs.xcrs[: xcrs.nr_xcrs]:
        if xcr.xcr == 0 and kvm_set_xcr(vcpu, 0, xcr.value, host_initiated=True):
            raise KvmError(EINVAL, f"XCR0 cannot be {xcr.value:#x}")


# -- events, interrupts, run state, translation ----------------------------------------------------


def kvm_vcpu_ioctl_interrupt(vcpu: KvmVcpu, vector: int) -> None:
    """KVM_INTERRUPT: queue an external interrupt. It is injected whether or not IF is 1.

    ENXIO with the in-kernel irqchip: its interrupts come by KVM_IRQ_LINE.
    """
    if not 0 <= vector < 256:
        raise KvmError(EINVAL, f"vector {vector} is not one of 0 to 255")
    if vcpu.vm.pic is not None:
        raise KvmError(ENXIO, "the in-kernel irqchip delivers interrupts: use irq_line()")
    kvm_queue_interrupt(vcpu, vector, False)
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def kvm_vcpu_ioctl_x86_get_vcpu_events(vcpu: KvmVcpu) -> KvmVcpuEvents:
    """KVM_GET_VCPU_EVENTS. As in Linux, a pending exception shows as injected."""
    arch, events = vcpu.arch, KvmVcpuEvents()
    exception, interrupt = arch.exception, arch.interrupt
    events.exception.injected = exception.pending or exception.injected
    events.exception.nr = exception.nr
    events.exception.has_error_code = exception.error_code is not None
    events.exception.error_code = exception.error_code or 0
    events.interrupt.injected = interrupt.injected and not interrupt.soft
    events.interrupt.nr = interrupt.nr
    blocking = vmcs_readl(vcpu, F.GUEST_INTERRUPTIBILITY_INFO)
    events.interrupt.shadow = (KVM_X86_SHADOW_INT_STI if blocking & _STI else 0) | (
        KVM_X86_SHADOW_INT_MOV_SS if blocking & _MOV_SS else 0
    )
    events.nmi.injected, events.nmi.pending = arch.nmi_injected, arch.nmi_pending
    events.flags = EVENT_FLAGS & ~KVM_VCPUEVENT_VALID_SIPI_VECTOR
    return events


def kvm_vcpu_ioctl_x86_set_vcpu_events(vcpu: KvmVcpu, events: KvmVcpuEvents) -> None:
    """KVM_SET_VCPU_EVENTS. EINVAL for unknown flags, SMM, and vectors that are no exceptions."""
    if events.flags & ~EVENT_FLAGS:
        raise KvmError(EINVAL, f"flags {events.flags:#x}: only {EVENT_FLAGS:#x} are modelled")
    if events.exception.injected and (events.exception.nr > 31 or events.exception.nr == 2):
        raise KvmError(EINVAL, f"vector {events.exception.nr} is no exception")
    if events.flags & KVM_VCPUEVENT_VALID_SMM and events.smi.smm:
        raise KvmError(EINVAL, "there is no system-management mode")
    arch = vcpu.arch
    arch.exception.pending, arch.exception.injected = False, bool(events.exception.injected)
    arch.exception.nr = events.exception.nr
    has_code = events.exception.has_error_code
    arch.exception.error_code = events.exception.error_code if has_code else None
    arch.interrupt.injected = bool(events.interrupt.injected)
    arch.interrupt.nr, arch.interrupt.soft = events.interrupt.nr, bool(events.interrupt.soft)
    if events.flags & KVM_VCPUEVENT_VALID_SHADOW:
        shadow = events.interrupt.shadow
        blocking = (_STI if shadow & KVM_X86_SHADOW_INT_STI else 0) | (
            _MOV_SS if shadow & KVM_X86_SHADOW_INT_MOV_SS else 0
        )
        vmcs_writel(vcpu, F.GUEST_INTERRUPTIBILITY_INFO, blocking)
    arch.nmi_injected = bool(events.nmi.injected)
    if events.flags & KVM_VCPUEVENT_VALID_NMI_PENDING:
        arch.nmi_pending = bool(events.nmi.pending)
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def kvm_arch_vcpu_ioctl_get_mpstate(vcpu: KvmVcpu) -> int:
    """KVM_GET_MP_STATE."""
    return vcpu.arch.mp_state


def kvm_arch_vcpu_ioctl_set_mpstate(vcpu: KvmVcpu, mp_state: int) -> None:
    """KVM_SET_MP_STATE. Without the irqchip only RUNNABLE exists; SIPIs are not modelled."""
    most = KVM_MP_STATE_RUNNABLE if vcpu.vm.pic is None else KVM_MP_STATE_HALTED
    if not KVM_MP_STATE_RUNNABLE <= mp_state <= most:
        what = "SIPI_RECEIVED" if mp_state == KVM_MP_STATE_SIPI_RECEIVED else str(mp_state)
        raise KvmError(EINVAL, f"mp_state cannot be {what} here")
    vcpu.arch.mp_state = mp_state
    kvm_make_request(KVM_REQ_EVENT, vcpu)


def kvm_arch_vcpu_ioctl_translate(vcpu: KvmVcpu, gva: int) -> KvmTranslation:
    """KVM_TRANSLATE: where a linear address leads, for a supervisor read."""
    found = KvmTranslation(linear_address=gva, writeable=1)
    gpa = kvm_mmu_gva_to_gpa(vcpu, gva, Access.READ, user=False)
    if not isinstance(gpa, PageFault):
        found.physical_address, found.valid = gpa, 1
    return found
