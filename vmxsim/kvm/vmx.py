"""KVM's driver for VMX: sets up the VMCS, enters the guest, and has a handler for every exit.

Linux: arch/x86/kvm/vmx.c (4.19; newer: vmx/vmx.c). What the processor itself does is in vmxsim.vmx.
Left out: nested guests, posted interrupts, preemption timer, PML, APICv, task switches, real mode
without "unrestricted guest", and everything for processors that lack EPT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vmxsim.arch.controls import CpuBased
from vmxsim.arch.events import EventType, InterruptionInfo, Vector
from vmxsim.arch.exit_reasons import FAILED_VMENTRY, ExitReason
from vmxsim.arch.msrs import Msr
from vmxsim.arch.paging import ErrorCode
from vmxsim.arch.qualifications import CrAccess, CrQualification, EptQualification
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Gpr
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import EngineError
from vmxsim.kvm.control_regs import (
    kvm_lmsw,
    kvm_read_cr0,
    kvm_read_cr3,
    kvm_read_cr4,
    kvm_set_cr0,
    kvm_set_cr3,
    kvm_set_cr4,
    kvm_set_cr8,
    kvm_set_xcr,
)
from vmxsim.kvm.cpuid import kvm_emulate_cpuid
from vmxsim.kvm.kvm_host import KvmVcpu, KvmX86Ops
from vmxsim.kvm.mmu import kvm_mmu_page_fault
from vmxsim.kvm.msr import (
    get_tsc,
    kvm_get_msr,
    kvm_set_msr,
)
from vmxsim.kvm.pio import handle_string_io
from vmxsim.kvm.requests import KVM_REQ_EVENT, kvm_make_request
from vmxsim.kvm.run import EXIT_USERSPACE, Run
from vmxsim.kvm.uapi import (
    KVM_EXIT_EXCEPTION,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
)
from vmxsim.kvm.vmcs_setup import (
    VMCS_REGION,
    VMXON_REGION,
    vmx_cpuid_update,
    vmx_get_msr,
    vmx_set_cr0,
    vmx_set_cr4,
    vmx_set_efer,
    vmx_set_msr,
    vmx_vcpu_reset,
    vmx_vcpu_setup,
)
from vmxsim.kvm.vmx_ops import vmcs_readl, vmcs_writel
from vmxsim.kvm.x86 import (
    complete_fast_pio_out,
    complete_fast_pio_out_port_0x7e,
    entry_failed,
    is_64_bit_mode,
    kvm_complete_insn_gp,
    kvm_emulate_halt,
    kvm_emulate_hypercall,
    kvm_fast_pio,
    kvm_inject_gp,
    kvm_queue_debug,
    kvm_queue_exception,
    kvm_queue_exception_e,
    kvm_queue_interrupt,
    kvm_skip_emulated_instruction,
)
from vmxsim.vmx.records import VmExit, VmFail

F = VmcsField
Handler: TypeAlias = Callable[[KvmVcpu, VmExit], Run]

EPT_PERMISSIONS = 7
"""Bits 5:3 of an EPT violation's qualification: what the entry would have allowed."""

_WINDOW = CpuBased.INTERRUPT_WINDOW_EXITING
_MASK_32 = 0xFFFF_FFFF

# -- entering --------------------------------------------------------------------------------------


def vmx_vcpu_load(vcpu: KvmVcpu) -> None:
    """Make the vCPU's VMCS the current one, the first time vcpu_load is called; set it up, too.

    It stays current: no other vCPU shares this processor. Linux also moves it between CPUs here.
    """
    processor = vcpu.processor
    failed = (
        processor.vmxon(VMXON_REGION)
        or processor.vmclear(VMCS_REGION)
        or processor.vmptrld(VMCS_REGION)
    )
    if failed is not None:
        raise EngineError(f"VMX cannot be used: {failed.message or failed.error}")
    vcpu.loaded = True
    vmx_vcpu_setup(vcpu)
    vmx_vcpu_reset(vcpu)


def vmx_prepare_switch_to_guest(vcpu: KvmVcpu) -> None:
    """Save what of the host VM exits do not bring back by themselves: FS, GS and their bases.

    Newer than the book: 4.19 calls it vmx_save_host_state in places. This host has nothing there.
    """
    vcpu.guest_state_loaded = True
    for field in (
        F.HOST_FS_SELECTOR, F.HOST_GS_SELECTOR, F.HOST_FS_BASE, F.HOST_GS_BASE,
    ):  # fmt: skip
        vmcs_writel(vcpu, field, 0)


def vmx_vcpu_run(vcpu: KvmVcpu) -> VmExit | VmFail:
    """Enter the guest: VMLAUNCH the first time, VMRESUME from then on. Back at its next VM exit.

    Left out: host debug registers, PKRU, PEBS, speculation controls, the registers that Linux
    saves and loads around the instruction.
    """
    if vcpu.launched:
        exit = vcpu.processor.vmresume()
    else:
        exit = vcpu.processor.vmlaunch()
        vcpu.launched = isinstance(exit, VmExit) and not exit.failed_entry
    if vcpu.arch.injecting or (isinstance(exit, VmExit) and exit.idt_vectoring_info):
        vmx_complete_interrupts(vcpu, exit)
    return exit


def vmx_complete_interrupts(vcpu: KvmVcpu, exit: VmExit | VmFail) -> None:
    """What was injected is delivered now, unless the exit cut it short: then it is queued again."""
    arch = vcpu.arch
    arch.injecting = False
    if isinstance(exit, VmFail) or exit.failed_entry:
        return
    arch.nmi_injected = arch.exception.injected = arch.interrupt.injected = False
    info = exit.idt_vectoring_info
    if not info & InterruptionInfo.VALID:
        return
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    vector, kind = info & InterruptionInfo.VECTOR, info >> InterruptionInfo.TYPE_SHIFT & 7
    if kind == EventType.NMI:
        arch.nmi_injected = True
    elif kind in (EventType.EXTERNAL_INTERRUPT, EventType.SOFTWARE_INTERRUPT):
        arch.event_exit_inst_len = exit.instruction_length
        kvm_queue_interrupt(vcpu, vector, kind == EventType.SOFTWARE_INTERRUPT)
    else:
        arch.event_exit_inst_len = exit.instruction_length
        exception = arch.exception
        exception.pending, exception.injected, exception.nr = False, True, vector
        has_code = info & InterruptionInfo.ERROR_CODE
        exception.error_code = exit.idt_vectoring_error_code if has_code else None


def vmx_queue_exception(vcpu: KvmVcpu) -> None:
    """Have the next VM entry deliver vcpu.arch.exception; in real mode none has an error code."""
    exception = vcpu.arch.exception
    info = exception.nr | InterruptionInfo.VALID
    if exception.error_code is not None and vcpu.arch.cr0 & Cr0.PE:
        vmcs_writel(vcpu, F.VM_ENTRY_EXCEPTION_ERROR_CODE, exception.error_code)
        info |= InterruptionInfo.ERROR_CODE
    if exception.nr in (Vector.BP, Vector.OF):
        vmcs_writel(vcpu, F.VM_ENTRY_INSTRUCTION_LEN, vcpu.arch.event_exit_inst_len)
        info |= EventType.SOFTWARE_EXCEPTION << InterruptionInfo.TYPE_SHIFT
    else:
        info |= EventType.HARDWARE_EXCEPTION << InterruptionInfo.TYPE_SHIFT
    vmcs_writel(vcpu, F.VM_ENTRY_INTR_INFO_FIELD, info)
    vcpu.arch.injecting = True


def vmx_inject_irq(vcpu: KvmVcpu) -> None:
    """Have the next VM entry deliver vcpu.arch.interrupt."""
    interrupt = vcpu.arch.interrupt
    for seen in vcpu.probes.inj_virq:
        seen(vcpu.id, vcpu.clock.now(), interrupt.nr)
    vcpu.stat.irq_injections += 1
    info = interrupt.nr | InterruptionInfo.VALID
    if interrupt.soft:
        info |= EventType.SOFTWARE_INTERRUPT << InterruptionInfo.TYPE_SHIFT
        vmcs_writel(vcpu, F.VM_ENTRY_INSTRUCTION_LEN, vcpu.arch.event_exit_inst_len)
    vmcs_writel(vcpu, F.VM_ENTRY_INTR_INFO_FIELD, info)
    vcpu.arch.injecting = True


def vmx_inject_nmi(vcpu: KvmVcpu) -> None:
    """Have the next VM entry deliver an NMI."""
    info = Vector.NMI | EventType.NMI << InterruptionInfo.TYPE_SHIFT | InterruptionInfo.VALID
    vmcs_writel(vcpu, F.VM_ENTRY_INTR_INFO_FIELD, info)
    vcpu.arch.injecting = True


def vmx_interrupt_allowed(vcpu: KvmVcpu) -> bool:
    """Whether the guest would take an interrupt: IF is 1, and neither STI nor MOV SS blocks."""
    if not vcpu.processor.interrupts_enabled:
        return False
    return vmcs_readl(vcpu, F.GUEST_INTERRUPTIBILITY_INFO) & 3 == 0


def enable_irq_window(vcpu: KvmVcpu) -> None:
    """Ask for an exit as soon as the guest can take an interrupt."""
    if not vcpu.exec_control & _WINDOW:
        vcpu.exec_control |= _WINDOW
        vmcs_writel(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, vcpu.exec_control)


def vmx_sync_dirty_debug_regs(vcpu: KvmVcpu) -> None:
    """The guest had its debug registers for one turn: from now on they exit again."""
    vcpu.arch.dr_wont_exit = False
    vcpu.exec_control |= CpuBased.MOV_DR_EXITING
    vmcs_writel(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, vcpu.exec_control)


# -- leaving ---------------------------------------------------------------------------------------


def vmx_handle_exit(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """Find the handler. What nobody here can deal with, like a failed entry, goes to userspace."""
    if exit.failed_entry:
        return entry_failed(vcpu, exit.reason | FAILED_VMENTRY)
    if exit.idt_vectoring_info and exit.reason not in DELIVERY_MAY_EXIT:
        return delivery_failed(vcpu, exit)
    handler = kvm_vmx_exit_handlers.get(exit.reason)
    if handler is None:
        return unexpected_exit(vcpu, exit)
    return handler(vcpu, exit)


DELIVERY_MAY_EXIT = frozenset(
    {ExitReason.EXCEPTION_NMI, ExitReason.EPT_VIOLATION, ExitReason.TRIPLE_FAULT,
     ExitReason.EXTERNAL_INTERRUPT}
)  # fmt: skip
"""Exits during event delivery that KVM can go on from: the event is injected again."""


def internal_error(vcpu: KvmVcpu, suberror: int, *data: int) -> Run:
    """KVM_EXIT_INTERNAL_ERROR."""
    vcpu.kvm_run.exit_reason = KVM_EXIT_INTERNAL_ERROR
    internal = vcpu.kvm_run.internal
    internal.suberror, internal.ndata = suberror, len(data)
    for at, word in enumerate(data):
        internal.data[at] = word
    return Run.EXIT_USERSPACE


def delivery_failed(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """An event could not be delivered, for instance because its stack is no memory."""
    return internal_error(
        vcpu,
        KVM_INTERNAL_ERROR_DELIVERY_EV,
        exit.idt_vectoring_info,
        exit.reason,
        exit.qualification,
        exit.guest_physical_address,
    )


def unexpected_exit(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """A reason without a handler. (Linux 4.19 raises #UD in the guest; newer ones do this.)"""
    return internal_error(vcpu, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, exit.reason, vcpu.id)


def handle_exception(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """#UD, #DB and #AC, handed on to the guest. Newer Linux: handle_exception_nmi."""
    vector = exit.intr_info & InterruptionInfo.VECTOR
    if exit.intr_info >> InterruptionInfo.TYPE_SHIFT & 7 == EventType.NMI:
        return Run.REENTER_GUEST
    if vector == Vector.UD:
        kvm_queue_exception(vcpu, Vector.UD)
    elif vector == Vector.AC:
        kvm_queue_exception_e(vcpu, Vector.AC, exit.intr_error_code)
    elif vector == Vector.DB:
        if exit.intr_info >> 8 & 7 == EventType.PRIVILEGED_SOFTWARE_EXCEPTION:
            kvm_skip_emulated_instruction(vcpu)
        vcpu.arch.singlestep |= bool(exit.qualification & Dr6.BS)
        kvm_queue_debug(vcpu, exit.qualification & Dr6.VOLATILE)
    else:
        vcpu.kvm_run.exit_reason = KVM_EXIT_EXCEPTION
        vcpu.kvm_run.ex.exception = vector
        vcpu.kvm_run.ex.error_code = exit.intr_error_code
        return Run.EXIT_USERSPACE
    return Run.REENTER_GUEST


def handle_external_interrupt(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """The host wanted the processor: a kick, or an alarm of the clock. vcpu_run sees why.

    Or an OUTS raised a request on its way through fast_pio: nothing of it is left to do.
    """
    vcpu.arch.pio_done = False
    return Run.REENTER_GUEST


def handle_triple_fault(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """The guest is past help; userspace may reset it."""
    vcpu.kvm_run.exit_reason = KVM_EXIT_SHUTDOWN
    return Run.EXIT_USERSPACE


def handle_interrupt_window(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """The guest takes interrupts now: close the window, and look what is pending."""
    vcpu.exec_control &= ~_WINDOW
    vmcs_writel(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, vcpu.exec_control)
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    vcpu.stat.irq_window_exits += 1
    return Run.REENTER_GUEST


def handle_io(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """IN, OUT, INS, OUTS. Linux returns 1, 0 or -errno here."""
    qualification = exit.qualification
    vcpu.stat.io_exits += 1
    if vcpu.arch.pio_done or vcpu.arch.complete_userspace_io is not None:
        return bounced_pio(vcpu, qualification >> 16)
    if qualification & 16:
        return handle_string_io(vcpu, exit)
    return kvm_fast_pio(
        vcpu, (qualification & 7) + 1, qualification >> 16, qualification & 8 != 0
    )


def bounced_pio(vcpu: KvmVcpu, port: int) -> Run:
    """IN or OUT that was prepared, or an OUT that was done, where it was met (fast_pio.py)."""
    if vcpu.arch.pio_done:
        vcpu.arch.pio_done = False
        return kvm_skip_emulated_instruction(vcpu)
    if port == 0x7E and vcpu.arch.complete_userspace_io is complete_fast_pio_out:
        vcpu.arch.complete_userspace_io = complete_fast_pio_out_port_0x7e
        kvm_skip_emulated_instruction(vcpu)
    return EXIT_USERSPACE


def handle_halt(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """HLT. Linux: handle_halt."""
    return kvm_emulate_halt(vcpu)


def handle_cr(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """MOV to and from CR0, CR3, CR4 and CR8, CLTS, LMSW, as far as they exit."""
    access = CrQualification.decode(exit.qualification)
    if access.access is CrAccess.MOV_TO:
        value = vcpu.processor.gpr[access.gpr]
        if not is_64_bit_mode(vcpu):
            value &= _MASK_32
        trace_cr(vcpu, True, access.cr, value)
        return write_cr(vcpu, access.cr, value)
    if access.access is CrAccess.MOV_FROM:
        value = CR_READERS[access.cr](vcpu)
        trace_cr(vcpu, False, access.cr, value)
        vcpu.processor.gpr[access.gpr] = value
        return kvm_skip_emulated_instruction(vcpu)
    if access.access is CrAccess.CLTS:
        value = kvm_read_cr0(vcpu) & ~Cr0.TS
        trace_cr(vcpu, True, 0, value)
        vmx_set_cr0(vcpu, value)
        return kvm_skip_emulated_instruction(vcpu)
    trace_cr(vcpu, True, 0, kvm_read_cr0(vcpu) & ~0xF | access.lmsw_source & 0xF)
    return kvm_complete_insn_gp(vcpu, kvm_lmsw(vcpu, access.lmsw_source))


CR_READERS: dict[int, Callable[[KvmVcpu], int]] = {
    0: kvm_read_cr0,
    3: kvm_read_cr3,
    4: kvm_read_cr4,
    8: lambda vcpu: vcpu.arch.cr8,
}
CR_WRITERS: dict[int, Callable[[KvmVcpu, int], bool]] = {
    0: kvm_set_cr0,
    3: kvm_set_cr3,
    4: kvm_set_cr4,
    8: kvm_set_cr8,
}


def write_cr(vcpu: KvmVcpu, number: int, value: int) -> Run:
    """MOV to a control register. A lower CR8 is userspace's business, if it has the APIC."""
    before = vcpu.arch.cr8
    failed = CR_WRITERS[number](vcpu, value)
    run = kvm_complete_insn_gp(vcpu, failed)
    if number == 8 and not failed and vcpu.vm.pic is None and value < before:
        vcpu.kvm_run.exit_reason = KVM_EXIT_SET_TPR
        return Run.EXIT_USERSPACE
    return run


def trace_cr(vcpu: KvmVcpu, is_write: bool, number: int, value: int) -> None:
    """The cr probe."""
    for seen in vcpu.probes.cr:
        seen(vcpu.id, vcpu.clock.now(), is_write, number, value)


def handle_dr(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """MOV DR: let the guest have its debug registers until its next exit, and try again.

    DR4 and DR5 are #UD with CR4.DE. Left out: userspace's own use of them (KVM_SET_GUEST_DEBUG).
    """
    if exit.qualification & 7 in (4, 5) and kvm_read_cr4(vcpu) & Cr4.DE:
        kvm_queue_exception(vcpu, Vector.UD)
        return Run.REENTER_GUEST
    vcpu.arch.dr_wont_exit = True
    vcpu.exec_control &= ~CpuBased.MOV_DR_EXITING
    vmcs_writel(vcpu, F.CPU_BASED_VM_EXEC_CONTROL, vcpu.exec_control)
    return Run.REENTER_GUEST


def handle_rdmsr(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """RDMSR: EDX:EAX, or #GP. Newer Linux: kvm_emulate_rdmsr."""
    gpr = vcpu.processor.gpr
    index = gpr[Gpr.RCX] & _MASK_32
    value = kvm_get_msr(vcpu, index)
    trace_msr(vcpu, False, index, value or 0, value is None)
    if value is None:
        kvm_inject_gp(vcpu, 0)
        return Run.REENTER_GUEST
    gpr[Gpr.RAX], gpr[Gpr.RDX] = value & _MASK_32, value >> 32
    return kvm_skip_emulated_instruction(vcpu)


def handle_wrmsr(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """WRMSR. Newer Linux: kvm_emulate_wrmsr."""
    gpr = vcpu.processor.gpr
    index = gpr[Gpr.RCX] & _MASK_32
    value = gpr[Gpr.RDX] << 32 & _MASK_32 << 32 | gpr[Gpr.RAX] & _MASK_32
    failed = kvm_set_msr(vcpu, index, value)
    trace_msr(vcpu, True, index, value, failed)
    return kvm_complete_insn_gp(vcpu, failed)


def trace_msr(vcpu: KvmVcpu, is_write: bool, index: int, value: int, fault: bool) -> None:
    """The msr probe."""
    for seen in vcpu.probes.msr:
        seen(vcpu.id, vcpu.clock.now(), is_write, index, value, fault)


def handle_ept_violation(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """An access to guest-physical memory that no slot takes: MMIO."""
    if exit.idt_vectoring_info:
        return delivery_failed(vcpu, exit)
    access = EptQualification.decode(exit.qualification)
    error_code = (
        (ErrorCode.W if access.write else 0)
        | (ErrorCode.ID if access.fetch else 0)
        | (ErrorCode.P if exit.qualification >> 3 & EPT_PERMISSIONS else 0)
    )
    return kvm_mmu_page_fault(vcpu, exit.guest_physical_address, error_code)


def handle_rdtsc(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """RDTSC and RDTSCP, should they exit. KVM lets the guest read the counter itself."""
    gpr, value = vcpu.processor.gpr, get_tsc(vcpu)
    gpr[Gpr.RAX], gpr[Gpr.RDX] = value & _MASK_32, value >> 32
    if exit.reason is ExitReason.RDTSCP:
        gpr[Gpr.RCX] = vcpu.processor.msr(Msr.IA32_TSC_AUX) & _MASK_32
    return kvm_skip_emulated_instruction(vcpu)


def handle_nop(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """INVD, WBINVD, INVLPG, PAUSE, MONITOR, MWAIT: nothing to do, and the guest goes on.

    Linux: handle_invd, handle_wbinvd, handle_invlpg, handle_pause, handle_monitor, handle_mwait.
    Caches are always coherent, page tables are the guest's own, and MWAIT may end at any time.
    """
    return kvm_skip_emulated_instruction(vcpu)


def handle_rdpmc(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """RDPMC: there is no counter, so #GP."""
    return kvm_complete_insn_gp(vcpu, True)


def handle_xsetbv(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """XSETBV."""
    gpr = vcpu.processor.gpr
    value = gpr[Gpr.RDX] << 32 & _MASK_32 << 32 | gpr[Gpr.RAX] & _MASK_32
    return kvm_complete_insn_gp(vcpu, kvm_set_xcr(vcpu, gpr[Gpr.RCX] & _MASK_32, value))


def handle_vmcall(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """VMCALL."""
    return kvm_emulate_hypercall(vcpu)


def handle_vmx_instruction(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """VMXON and the like: the guest has no VMX, so #UD."""
    kvm_queue_exception(vcpu, Vector.UD)
    return Run.REENTER_GUEST


def handle_invalid_op(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """An instruction of a feature that the guest was not given: #UD."""
    kvm_queue_exception(vcpu, Vector.UD)
    return Run.REENTER_GUEST


def handle_desc(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """LGDT and the like, should they exit. KVM wants them only to emulate UMIP."""
    from vmxsim.kvm.emulator import x86_emulate_instruction

    return x86_emulate_instruction(vcpu)


kvm_vmx_exit_handlers: dict[ExitReason, Handler] = {
    ExitReason.EXCEPTION_NMI: handle_exception,
    ExitReason.EXTERNAL_INTERRUPT: handle_external_interrupt,
    ExitReason.TRIPLE_FAULT: handle_triple_fault,
    ExitReason.INTERRUPT_WINDOW: handle_interrupt_window,
    ExitReason.CPUID: kvm_emulate_cpuid,
    ExitReason.GETSEC: handle_invalid_op,
    ExitReason.HLT: handle_halt,
    ExitReason.INVD: handle_nop,
    ExitReason.INVLPG: handle_nop,
    ExitReason.RDPMC: handle_rdpmc,
    ExitReason.RDTSC: handle_rdtsc,
    ExitReason.VMCALL: handle_vmcall,
    ExitReason.VMCLEAR: handle_vmx_instruction,
    ExitReason.VMLAUNCH: handle_vmx_instruction,
    ExitReason.VMPTRLD: handle_vmx_instruction,
    ExitReason.VMPTRST: handle_vmx_instruction,
    ExitReason.VMREAD: handle_vmx_instruction,
    ExitReason.VMRESUME: handle_vmx_instruction,
    ExitReason.VMWRITE: handle_vmx_instruction,
    ExitReason.VMOFF: handle_vmx_instruction,
    ExitReason.VMON: handle_vmx_instruction,
    ExitReason.CR_ACCESS: handle_cr,
    ExitReason.DR_ACCESS: handle_dr,
    ExitReason.IO_INSTRUCTION: handle_io,
    ExitReason.MSR_READ: handle_rdmsr,
    ExitReason.MSR_WRITE: handle_wrmsr,
    ExitReason.INVALID_STATE: unexpected_exit,
    ExitReason.MSR_LOAD_FAIL: unexpected_exit,
    ExitReason.MWAIT_INSTRUCTION: handle_nop,
    ExitReason.MONITOR_INSTRUCTION: handle_nop,
    ExitReason.PAUSE_INSTRUCTION: handle_nop,
    ExitReason.GDTR_IDTR: handle_desc,
    ExitReason.LDTR_TR: handle_desc,
    ExitReason.EPT_VIOLATION: handle_ept_violation,
    ExitReason.INVEPT: handle_vmx_instruction,
    ExitReason.RDTSCP: handle_rdtsc,
    ExitReason.INVVPID: handle_vmx_instruction,
    ExitReason.WBINVD: handle_nop,
    ExitReason.XSETBV: handle_xsetbv,
    ExitReason.RDRAND: handle_invalid_op,
    ExitReason.INVPCID: handle_invalid_op,
    ExitReason.VMFUNC: handle_vmx_instruction,
    ExitReason.RDSEED: handle_invalid_op,
}
"""Who deals with which exit. Reasons without a row are in arch.exit_reasons.NOT_MODELLED.

INVALID_STATE and MSR_LOAD_FAIL come with bit 31 set and never get here as exits of their own.
"""

vmx_x86_ops = KvmX86Ops(
    vcpu_load=vmx_vcpu_load,
    run=vmx_vcpu_run,
    prepare_switch_to_guest=vmx_prepare_switch_to_guest,
    handle_exit=vmx_handle_exit,
    interrupt_allowed=vmx_interrupt_allowed,
    queue_exception=vmx_queue_exception,
    set_irq=vmx_inject_irq,
    set_nmi=vmx_inject_nmi,
    enable_irq_window=enable_irq_window,
    sync_dirty_debug_regs=vmx_sync_dirty_debug_regs,
    set_cr0=vmx_set_cr0,
    set_cr4=vmx_set_cr4,
    set_efer=vmx_set_efer,
    get_msr=vmx_get_msr,
    set_msr=vmx_set_msr,
    cpuid_update=vmx_cpuid_update,
)
"""This module for the rest of KVM. Linux: vmx_x86_ops, a struct kvm_x86_ops."""
