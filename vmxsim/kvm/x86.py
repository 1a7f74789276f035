"""The run path: from KVM_RUN to VM entry and back, in the book's order and under its names.

Linux: arch/x86/kvm/x86.c (4.19). Its ioctls for registers are in regs.py, its control-register
rules in control_regs.py, its emulator callbacks in emulator.py.
"""

from __future__ import annotations

from errno import EAGAIN, EINTR, EINVAL
from struct import Struct
from threading import main_thread
from time import perf_counter_ns
from typing import NoReturn

from vmxsim.arch.events import (
    Event,
    EventType,
    Vector,
    combine,
    has_error_code,
)
from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Cr0, Dr6, Dr7, Rflags
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import KvmError
from vmxsim.kvm.fast_pio import use_fast_ports
from vmxsim.kvm.guest_memory import kvm_mmu_reload
from vmxsim.kvm.irq import (
    kvm_cpu_get_interrupt,
    kvm_cpu_has_injectable_intr,
    kvm_cpu_has_interrupt,
)
from vmxsim.kvm.kvm_host import KvmVcpu, dr6_with
from vmxsim.kvm.kvm_main import (
    kvm_io_bus_read,
    kvm_io_bus_write,
    kvm_vcpu_block,
    vcpu_load,
    vcpu_put,
)
from vmxsim.kvm.requests import (
    KVM_REQ_EVENT,
    KVM_REQ_PENDING_TIMER,
    KVM_REQ_TRIPLE_FAULT,
    KVM_REQ_UNHALT,
    REQ_EVENT,
    REQ_SIGNAL,
    SIGNAL_PENDING,
    kvm_check_request,
    kvm_clear_request,
    kvm_make_request,
    kvm_test_request,
)
from vmxsim.kvm.run import EXIT_USERSPACE, REENTER_GUEST, Run
from vmxsim.kvm.timers import arm_budget, run_timers
from vmxsim.kvm.uapi import (
    EXIT_OFFSET,
    IO_EXIT,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_HLT,
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_IO_IN,
    KVM_EXIT_IO_OUT,
    KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_SHUTDOWN,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
    PIO_DATA_OFFSET,
)
from vmxsim.kvm.vmx_ops import vmcs_readl, vmcs_writel
from vmxsim.vmx.records import VmExit, VmFail

_MAIN_THREAD = main_thread().ident
_MAIN_THREAD = main_thread().ident
_RFLAGS = VmcsField.GUEST_RFLAGS
_DR7 = VmcsField.GUEST_DR7
_INTERRUPTIBILITY = VmcsField.GUEST_INTERRUPTIBILITY_INFO
_CS_AR = VmcsField.GUEST_CS_AR_BYTES
_KVM_ENOSYS = -1000 & (1 << 64) - 1

_IMMEDIATE_EXIT, _EXIT_REASON, _READY, _IF_FLAG, _CR8 = 1, 8, 12, 13, 16
"""Offsets in kvm_run; exit reasons are below 256, so one byte of theirs says all."""
_RUN_APIC = Struct("<QQ")
"""kvm_run's cr8 and apic_base."""
_ITEM = {1: Struct("<B"), 2: Struct("<H"), 4: Struct("<I")}
"""One item of the port data page, by size."""
_MASKS = (0, 0xFF, 0xFFFF, 0, 0xFFFF_FFFF)

# -- KVM_RUN ---------------------------------------------------------------------------------------


def kvm_arch_vcpu_ioctl_run(vcpu: KvmVcpu) -> None:
    """KVM_RUN: finish what userspace was asked for, then run until it is needed again.

    Raises KvmError(EINTR) for a kick or `immediate_exit`. Deviation: the latter sets KVM_EXIT_INTR
    too, where Linux leaves the old exit_reason. Left out: signal masks, guest FPU loading (the
    processor holds only the guest's), sync regs.
    """
    vcpu_load(vcpu)
    vcpu.enter_from_host()
    if vcpu.thread == _MAIN_THREAD:
        vcpu.processor.keep_interruptible()
    vcpu.running = True
    arch, shared, probes = vcpu.arch, vcpu.shared, vcpu.probes
    try:
        if probes.watching:
            for back in probes.from_userspace:
                back(vcpu.id)
            for entered in probes.userspace_entry:
                entered(vcpu.id, vcpu.clock.now())
        if arch.mp_state == KVM_MP_STATE_UNINITIALIZED:
            run_uninitialized(vcpu)
        if (shared[0] or shared[_CR8] != arch.cr8 or vcpu.want_window) and not vcpu.irqchip:
            accept_userspace_apic(vcpu)
        if probes.generation != vcpu.probes_seen:
            use_fast_ports(vcpu)
        complete = arch.complete_userspace_io
        if complete is not None:
            arch.complete_userspace_io = None
            if complete(vcpu) is EXIT_USERSPACE:
                return
        if shared[_IMMEDIATE_EXIT]:
            interrupted(vcpu, "immediate_exit is set")
        vcpu_run(vcpu)
    finally:
        vcpu.in_guest = vcpu.running = False
        vcpu.leave_to_host()
        post_kvm_run_save(vcpu)
        vcpu_put(vcpu)


def accept_userspace_apic(vcpu: KvmVcpu) -> None:
    """Without the irqchip, userspace has the local APIC: take its CR8 and its wish for a window."""
    kvm_run = vcpu.kvm_run
    vcpu.want_window = kvm_run.request_interrupt_window != 0
    if kvm_run.cr8 != vcpu.arch.cr8:
        if kvm_run.cr8 & ~0xF:
            raise KvmError(EINVAL, f"kvm_run.cr8 is {kvm_run.cr8:#x}: only bits 3:0 exist")
        vcpu.arch.cr8 = kvm_run.cr8


def run_uninitialized(vcpu: KvmVcpu) -> NoReturn:
    """A vCPU that waits for INIT and SIPI: nobody sends them yet, so only a kick ends the wait."""
    if vcpu.kvm_run.immediate_exit:
        interrupted(vcpu, "immediate_exit is set")
    kvm_vcpu_block(vcpu, kvm_arch_vcpu_runnable)
    kvm_clear_request(KVM_REQ_UNHALT, vcpu)
    if kvm_test_request(SIGNAL_PENDING, vcpu):
        interrupted(vcpu, "kicked")
    raise KvmError(EAGAIN, "the vCPU is not initialized: set its mp_state")


def interrupted(vcpu: KvmVcpu, why: str) -> NoReturn:
    """Leave KVM_RUN with EINTR. The signal that asked for it is delivered by that."""
    kvm_clear_request(SIGNAL_PENDING, vcpu)
    vcpu.kvm_run.exit_reason = KVM_EXIT_INTR
    vcpu.stat.signal_exits += 1
    raise KvmError(EINTR, f"KVM_RUN was interrupted: {why}")


def post_kvm_run_save(vcpu: KvmVcpu) -> None:
    """Tell userspace what it needs in order to inject interrupts. Count and report the exit."""
    arch, shared = vcpu.arch, vcpu.shared
    if_flag = vcpu.processor.interrupts_enabled
    shared[_IF_FLAG] = if_flag
    shared[_READY] = vcpu.irqchip or (
        if_flag and kvm_vcpu_ready_for_interrupt_injection(vcpu)
    )
    if arch.cr8 != vcpu.saved_cr8 or arch.apic_base != vcpu.saved_apic_base:
        vcpu.saved_cr8, vcpu.saved_apic_base = arch.cr8, arch.apic_base
        _RUN_APIC.pack_into(shared, _CR8, arch.cr8, arch.apic_base)
    reason = shared[_EXIT_REASON]
    vcpu.stat.userspace_exits[reason] += 1
    probes = vcpu.probes
    if probes.watching:
        for leaves in probes.to_userspace:
            leaves(vcpu.id, reason)
        for left in probes.userspace_exit:
            left(vcpu.id, vcpu.clock.now(), reason)


def vcpu_run(vcpu: KvmVcpu) -> None:
    """The outer loop: enter the guest or sleep, until userspace is needed or a signal is pending.

    Left out: asynchronous page faults, rescheduling, in-kernel APIC timers.
    """
    while True:
        run = vcpu_enter_guest(vcpu) if kvm_vcpu_running(vcpu) else vcpu_block(vcpu)
        if run is not REENTER_GUEST:
            return
        if vcpu.want_window and kvm_vcpu_ready_for_interrupt_injection(vcpu):
            vcpu.kvm_run.exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN
            vcpu.stat.request_irq_exits += 1
            return
        if vcpu.requests & REQ_SIGNAL:
            interrupted(vcpu, "kicked")


def kvm_vcpu_running(vcpu: KvmVcpu) -> bool:
    """Whether the vCPU executes instructions, rather than sleep in HLT or wait for INIT."""
    return vcpu.arch.mp_state == KVM_MP_STATE_RUNNABLE


def kvm_vcpu_has_events(vcpu: KvmVcpu) -> bool:
    """Whether something would be delivered if the guest were entered now."""
    arch = vcpu.arch
    if arch.exception.pending or arch.nmi_pending:
        return True
    return vcpu.x86_ops.interrupt_allowed(vcpu) and kvm_cpu_has_interrupt(vcpu)


def kvm_arch_vcpu_runnable(vcpu: KvmVcpu) -> bool:
    """Whether a sleeping vCPU should wake."""
    return kvm_vcpu_running(vcpu) or (
        vcpu.arch.mp_state == KVM_MP_STATE_HALTED and kvm_vcpu_has_events(vcpu)
    )


def vcpu_block(vcpu: KvmVcpu) -> Run:
    """HLT with the in-kernel irqchip: sleep until an event ends it."""
    if not kvm_arch_vcpu_runnable(vcpu):
        kvm_vcpu_block(vcpu, kvm_arch_vcpu_runnable)
        if not kvm_check_request(KVM_REQ_UNHALT, vcpu):
            return REENTER_GUEST
    if vcpu.arch.mp_state == KVM_MP_STATE_HALTED:
        vcpu.arch.mp_state = KVM_MP_STATE_RUNNABLE
    elif vcpu.arch.mp_state not in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_INIT_RECEIVED):
        interrupted(vcpu, "the vCPU is not runnable")
    return REENTER_GUEST


# -- one turn --------------------------------------------------------------------------------------


def vcpu_enter_guest(vcpu: KvmVcpu) -> Run:
    """One turn: requests, pending events, enter, handle the exit.

    `in_guest` is set before the requests are looked at, so a kick that comes too late for them
    stops the guest, and nothing injected has to be taken back. Left out: preemption, FPU
    switching, SRCU, APICv, cancel_injection.
    """
    vcpu.in_guest = True
    if vcpu.requests or vcpu.timer_armed or vcpu.want_window:
        run = before_entry(vcpu)
        if run is not None:
            vcpu.in_guest = False
            return run
    x86_ops, probes = vcpu.x86_ops, vcpu.probes
    if not vcpu.guest_state_loaded:
        x86_ops.prepare_switch_to_guest(vcpu)
    if probes.watching and probes.vm_entry:
        now, rip = vcpu.clock.now(), vcpu.processor.rip
        for entry in probes.vm_entry:
            entry(vcpu.id, now, rip)
    exit = x86_ops.run(vcpu)
    vcpu.in_guest = False
    if isinstance(exit, VmFail):
        return entry_failed(vcpu, int(exit.error or 0))
    vcpu.exit = exit
    vcpu.exits[exit.reason] += 1
    if vcpu.arch.dr_wont_exit:
        x86_ops.sync_dirty_debug_regs(vcpu)
    if probes.watching and (probes.vm_exit or probes.handled):
        return watched_exit(vcpu, exit)
    return x86_ops.handle_exit(vcpu, exit)


def watched_exit(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """vmx_handle_exit with somebody looking."""
    probes = vcpu.probes
    if probes.vm_exit:
        now, rip = vcpu.clock.now(), vcpu.processor.rip
        for left in probes.vm_exit:
            left(vcpu.id, now, rip, exit)
    start = perf_counter_ns()
    run = vcpu.x86_ops.handle_exit(vcpu, exit)
    elapsed = perf_counter_ns() - start
    for handled in probes.handled:
        handled(vcpu.id, exit, run is REENTER_GUEST, elapsed)
    return run


def entry_failed(vcpu: KvmVcpu, reason: int) -> Run:
    """The processor refused the VMCS: KVM_EXIT_FAIL_ENTRY with the VM-instruction error."""
    vcpu.kvm_run.exit_reason = KVM_EXIT_FAIL_ENTRY
    vcpu.kvm_run.fail_entry.hardware_entry_failure_reason = reason
    vcpu.kvm_run.fail_entry.cpu = 0
    return EXIT_USERSPACE


def before_entry(vcpu: KvmVcpu) -> Run | None:
    """The first half of Linux's vcpu_enter_guest: requests, then events. None means go on."""
    if vcpu.timer_armed or kvm_test_request(KVM_REQ_PENDING_TIMER, vcpu):
        run_timers(vcpu)
    if vcpu.requests:
        if vcpu.requests & REQ_SIGNAL:
            return REENTER_GUEST
        if kvm_check_request(KVM_REQ_TRIPLE_FAULT, vcpu):
            vcpu.kvm_run.exit_reason = KVM_EXIT_SHUTDOWN
            return EXIT_USERSPACE
        if vcpu.requests & ~REQ_EVENT:
            kvm_mmu_reload(vcpu)
            kvm_clear_request(KVM_REQ_UNHALT, vcpu)
    event = kvm_check_request(KVM_REQ_EVENT, vcpu)
    if event or vcpu.want_window:
        inject_pending_event(vcpu)
        if kvm_cpu_has_injectable_intr(vcpu) or vcpu.want_window:
            vcpu.x86_ops.enable_irq_window(vcpu)
    if vcpu.timer_armed:
        arm_budget(vcpu)
    return None


def inject_pending_event(vcpu: KvmVcpu) -> None:
    """Put one event into the VMCS: first what was cut short, then exceptions, NMIs, interrupts.

    Newer Linux: kvm_check_and_inject_events. Left out: SMIs, nested guests.
    """
    arch, ops = vcpu.arch, vcpu.x86_ops
    exception, interrupt = arch.exception, arch.interrupt
    if exception.injected:
        ops.queue_exception(vcpu)
    elif not exception.pending:
        if arch.nmi_injected:
            ops.set_nmi(vcpu)
        elif interrupt.injected:
            ops.set_irq(vcpu)
    if exception.pending:
        for seen in vcpu.probes.inj_exception:
            seen(vcpu.id, vcpu.clock.now(), exception.nr, exception.error_code)
        exception.pending, exception.injected = False, True
        prepare_fault_delivery(vcpu, exception.nr)
        ops.queue_exception(vcpu)
    if kvm_event_needs_reinjection(vcpu):
        return
    if arch.nmi_pending:
        arch.nmi_pending, arch.nmi_injected = False, True
        ops.set_nmi(vcpu)
    elif kvm_cpu_has_injectable_intr(vcpu) and ops.interrupt_allowed(vcpu):
        kvm_queue_interrupt(vcpu, kvm_cpu_get_interrupt(vcpu), False)
        ops.set_irq(vcpu)


def prepare_fault_delivery(vcpu: KvmVcpu, vector: int) -> None:
    """What the processor does to RF and DR7 when an exception is its own, and VMX leaves to us."""
    if exception_is_fault(vector):
        vmcs_writel(vcpu, _RFLAGS, vmcs_readl(vcpu, _RFLAGS) | Rflags.RF)
    if vector == Vector.DB:
        dr7 = vmcs_readl(vcpu, _DR7)
        if dr7 & Dr7.GD:
            vmcs_writel(vcpu, _DR7, dr7 & ~Dr7.GD)


def exception_is_fault(vector: int) -> bool:
    """Whether RF is pushed as 1. #DB is left to whoever raises it: it may be a trap."""
    return vector not in (Vector.DB, Vector.BP, Vector.OF, Vector.DF, Vector.MC)


def kvm_event_needs_reinjection(vcpu: KvmVcpu) -> bool:
    """Whether an event is in the VMCS, or must go there again."""
    arch = vcpu.arch
    return arch.exception.injected or arch.interrupt.injected or arch.nmi_injected


def kvm_cpu_accept_dm_intr(vcpu: KvmVcpu) -> bool:
    """Whether an interrupt from userspace would be taken, as far as the irqchip goes."""
    return vcpu.vm.pic is None


def kvm_vcpu_ready_for_interrupt_injection(vcpu: KvmVcpu) -> bool:
    """Whether KVM_INTERRUPT would find the interrupt window open."""
    return (
        vcpu.x86_ops.interrupt_allowed(vcpu)
        and not kvm_cpu_has_interrupt(vcpu)
        and not kvm_event_needs_reinjection(vcpu)
        and kvm_cpu_accept_dm_intr(vcpu)
    )


# -- events to come --------------------------------------------------------------------------------


def kvm_queue_interrupt(vcpu: KvmVcpu, vector: int, soft: bool) -> None:
    """Have an interrupt injected at the next entry."""
    interrupt = vcpu.arch.interrupt
    interrupt.injected, interrupt.soft, interrupt.nr = True, soft, vector


def kvm_multiple_exception(
    vcpu: KvmVcpu, vector: int, error_code: int | None, reinject: bool
) -> None:
    """Queue an exception; with one under way they make a double fault, or shut the guest down.

    In real mode no exception has an error code.
    """
    kvm_make_request(KVM_REQ_EVENT, vcpu)
    if not vcpu.arch.cr0 & Cr0.PE:
        error_code = None
    exception = vcpu.arch.exception
    if not exception.pending and not exception.injected:
        exception.injected, exception.pending = reinject, not reinject
        exception.nr, exception.error_code = vector, error_code
        return
    outcome = combine(Event(EventType.HARDWARE_EXCEPTION, exception.nr), vector)
    if not isinstance(outcome, int):
        kvm_make_request(KVM_REQ_TRIPLE_FAULT, vcpu)
        return
    exception.pending, exception.injected = True, False
    exception.nr = outcome
    exception.error_code = error_code if outcome == vector else 0
    if not has_error_code(outcome) or not vcpu.arch.cr0 & Cr0.PE:
        exception.error_code = None


def kvm_queue_exception(vcpu: KvmVcpu, vector: int) -> None:
    """Raise an exception without an error code in the guest."""
    kvm_multiple_exception(vcpu, vector, None, False)


def kvm_queue_exception_e(vcpu: KvmVcpu, vector: int, error_code: int) -> None:
    """Raise an exception with an error code in the guest."""
    kvm_multiple_exception(vcpu, vector, error_code, False)


def kvm_inject_gp(vcpu: KvmVcpu, error_code: int = 0) -> None:
    """Raise #GP in the guest."""
    kvm_multiple_exception(vcpu, Vector.GP, error_code, False)


def kvm_inject_page_fault(vcpu: KvmVcpu, fault: PageFault) -> None:
    """Raise #PF in the guest, with CR2."""
    vcpu.processor.cr2 = fault.address
    kvm_multiple_exception(vcpu, Vector.PF, fault.error_code, False)


def kvm_complete_insn_gp(vcpu: KvmVcpu, failed: bool) -> Run:
    """End an instruction that either is done or raises #GP(0)."""
    if failed:
        kvm_inject_gp(vcpu, 0)
        return REENTER_GUEST
    return kvm_skip_emulated_instruction(vcpu)


def kvm_queue_debug(vcpu: KvmVcpu, causes: int) -> None:
    """Raise #DB in the guest, with DR6."""
    debug = vcpu.processor.dr
    debug[6] = dr6_with(debug[6], causes)
    kvm_queue_exception(vcpu, Vector.DB)


# -- instructions done in software -----------------------------------------------------------------


def kvm_skip_emulated_instruction(vcpu: KvmVcpu) -> Run:
    """The instruction that exited is done: RIP behind it, its STI or MOV SS shadow gone.

    RFLAGS.TF is looked at only while the guest is known to single-step, because reading RFLAGS
    costs as much as the whole exit.
    """
    exit = vcpu.exit
    assert exit is not None
    vcpu.processor.skip(exit.instruction_length)
    if vcpu.arch.singlestep:
        if vmcs_readl(vcpu, _RFLAGS) & Rflags.TF:
            kvm_queue_debug(vcpu, Dr6.BS)
        else:
            vcpu.arch.singlestep = False
    return REENTER_GUEST


def kvm_emulate_halt(vcpu: KvmVcpu) -> Run:
    """HLT: sleep in the kernel if it has the irqchip, else let userspace do it."""
    kvm_skip_emulated_instruction(vcpu)
    return kvm_vcpu_halt(vcpu)


def kvm_vcpu_halt(vcpu: KvmVcpu) -> Run:
    """Stop executing until an event. Newer Linux: kvm_emulate_halt_noskip.

    `Vm.report_dead_halt`, which KVM has not, turns a HLT that no interrupt can end into
    KVM_EXIT_HLT, so that a program knows the guest has ended.
    """
    vcpu.stat.halt_exits += 1
    vm = vcpu.vm
    if vm.pic is not None and not (
        vm.report_dead_halt and not vmcs_readl(vcpu, _RFLAGS) & Rflags.IF
    ):
        vcpu.arch.mp_state = KVM_MP_STATE_HALTED
        return REENTER_GUEST
    vcpu.kvm_run.exit_reason = KVM_EXIT_HLT
    return EXIT_USERSPACE


def kvm_emulate_hypercall(vcpu: KvmVcpu) -> Run:
    """VMCALL: no paravirtual call is offered, so RAX is -KVM_ENOSYS. Not from user mode: -EPERM."""
    processor = vcpu.processor
    user = vmcs_readl(vcpu, VmcsField.GUEST_SS_AR_BYTES) >> 5 & 3
    value = _EPERM if user else _KVM_ENOSYS
    processor.gpr[0] = value if is_64_bit_mode(vcpu) else value & 0xFFFF_FFFF
    return kvm_skip_emulated_instruction(vcpu)


_EPERM = -1 & (1 << 64) - 1


def is_64_bit_mode(vcpu: KvmVcpu) -> bool:
    """Whether the guest runs 64-bit code."""
    return vmcs_readl(vcpu, _CS_AR) >> 13 & 1 != 0 and vcpu.arch.efer >> 10 & 1 != 0


# -- port I/O --------------------------------------------------------------------------------------


def kvm_fast_pio(vcpu: KvmVcpu, size: int, port: int, is_in: bool) -> Run:
    """IN or OUT of one item, without the instruction emulator.

    At KVM_EXIT_IO RIP is still on an OUT; it moves at the next KVM_RUN. Except for port 0x7e
    (KVM_X86_QUIRK_OUT_7E_INC_RIP): old userspace wants RIP behind it at once. Linux's
    kvm_fast_pio_out and emulator_pio_out_emulated are folded into this, to save calls.
    """
    if is_in:
        return kvm_fast_pio_in(vcpu, size, port)
    value = vcpu.processor.gpr[0] & _MASKS[size]
    _ITEM[size].pack_into(vcpu.shared, PIO_DATA_OFFSET, value)
    if vcpu.probes.pio:
        trace_pio(vcpu, True, size, port, 1)
    if emulator_pio_in_out(vcpu, size, port, 1, False):
        return kvm_skip_emulated_instruction(vcpu)
    arch = vcpu.arch
    if port == 0x7E:
        arch.complete_userspace_io = complete_fast_pio_out_port_0x7e
        kvm_skip_emulated_instruction(vcpu)
    else:
        arch.rip_moved = False
        arch.complete_userspace_io = complete_fast_pio_out
    return EXIT_USERSPACE


def complete_fast_pio_out(vcpu: KvmVcpu) -> Run:
    """Userspace has taken an OUT. If it moved RIP, the instruction is not ours to skip."""
    arch = vcpu.arch
    arch.pio.count = 0
    if arch.rip_moved:
        return REENTER_GUEST
    return kvm_skip_emulated_instruction(vcpu)


def complete_fast_pio_out_port_0x7e(vcpu: KvmVcpu) -> Run:
    """Userspace has taken an OUT to 0x7e, which was skipped already."""
    vcpu.arch.pio.count = 0
    return REENTER_GUEST


def kvm_fast_pio_in(vcpu: KvmVcpu, size: int, port: int) -> Run:
    """IN. At KVM_EXIT_IO nothing has changed in the guest."""
    if emulator_pio_in_emulated(vcpu, size, port, 1):
        return finish_fast_pio_in(vcpu, size)
    vcpu.arch.rip_moved = False
    vcpu.arch.complete_userspace_io = complete_fast_pio_in
    return EXIT_USERSPACE


def complete_fast_pio_in(vcpu: KvmVcpu) -> Run:
    """Userspace has answered an IN."""
    pio = vcpu.arch.pio
    if vcpu.arch.rip_moved:
        pio.count = 0
        return REENTER_GUEST
    emulator_pio_in_emulated(vcpu, pio.size, pio.port, 1)
    return finish_fast_pio_in(vcpu, pio.size)


def finish_fast_pio_in(vcpu: KvmVcpu, size: int) -> Run:
    """Put the answer into AL, AX or EAX."""
    (answer,) = _ITEM[size].unpack_from(vcpu.shared, PIO_DATA_OFFSET)
    gpr = vcpu.processor.gpr
    gpr[0] = answer if size == 4 else gpr[0] & ~_MASKS[size] | answer
    return kvm_skip_emulated_instruction(vcpu)


def emulator_pio_in_emulated(vcpu: KvmVcpu, size: int, port: int, count: int) -> bool:
    """Input into the PIO page; False when userspace must put it there. Call again afterwards."""
    pio = vcpu.arch.pio
    if not pio.count:
        if count == 1:
            _ITEM[size].pack_into(vcpu.shared, PIO_DATA_OFFSET, 0)
        else:
            end = PIO_DATA_OFFSET + size * count
            vcpu.shared[PIO_DATA_OFFSET:end] = bytes(size * count)
        if not emulator_pio_in_out(vcpu, size, port, count, True):
            return False
    if vcpu.probes.pio:
        trace_pio(vcpu, False, size, port, count)
    pio.count = 0
    return True


def emulator_pio_out_emulated(vcpu: KvmVcpu, size: int, port: int, value: int) -> bool:
    """Output of one item; False when userspace must take it. (Linux: of `count` items.)"""
    _ITEM[size].pack_into(vcpu.shared, PIO_DATA_OFFSET, value)
    if vcpu.probes.pio:
        trace_pio(vcpu, True, size, port, 1)
    return emulator_pio_in_out(vcpu, size, port, 1, False)


def emulator_pio_in_out(vcpu: KvmVcpu, size: int, port: int, count: int, is_in: bool) -> bool:
    """Port I/O by a chip in the kernel, or else ask userspace (False). Data is in the PIO page."""
    pio = vcpu.arch.pio
    pio.port, pio.is_in, pio.count, pio.size = port, is_in, count, size
    if port in vcpu.vm.pio_bus and kernel_pio(vcpu):
        pio.count = 0
        return True
    row = vcpu.stat.ports.get(port) or vcpu.stat.port(port)
    if is_in:
        row.userspace_in += count
        direction = KVM_EXIT_IO_IN
    else:
        row.userspace_out += count
        direction = KVM_EXIT_IO_OUT
    vcpu.kvm_run.exit_reason = KVM_EXIT_IO
    IO_EXIT.pack_into(vcpu.shared, EXIT_OFFSET, direction, size, port, count, PIO_DATA_OFFSET)
    return False


def kernel_pio(vcpu: KvmVcpu) -> bool:
    """Try the chips in the kernel. Newer Linux has folded this into emulator_pio_in_out.

    The caller has looked whether any chip is at the port.
    """
    pio, bus, shared = vcpu.arch.pio, vcpu.vm.pio_bus, vcpu.shared
    size, port = pio.size, pio.port
    row = vcpu.stat.port(port)
    for start in range(PIO_DATA_OFFSET, PIO_DATA_OFFSET + size * pio.count, size):
        if pio.is_in:
            value = kvm_io_bus_read(bus, port, size)
            if value is None:
                return False
            shared[start : start + size] = (value & _MASKS[size]).to_bytes(size, "little")
            row.kernel_in += 1
        else:
            data = int.from_bytes(shared[start : start + size], "little")
            if not kvm_io_bus_write(bus, port, size, data):
                return False
            row.kernel_out += 1
    return True


def trace_pio(vcpu: KvmVcpu, is_write: bool, size: int, port: int, count: int) -> None:
    """The pio probe: the first item's value stands for a string."""
    value = int.from_bytes(vcpu.shared[PIO_DATA_OFFSET : PIO_DATA_OFFSET + size], "little")
    now = vcpu.clock.now()
    for seen in vcpu.probes.pio:
        seen(vcpu.id, now, is_write, port, size, count, value)
