"""The whole "does it exit?" table: one row per TrapKind, each a function of trap, VMCS and cpu.

A row answers with the VM exit; or with an Event, a fault that the SDM ranks above the exit
("Relative Priority of Faults and VM Exits"); or None, when no control asks for an exit and
execute.complete has to do the instruction. Privilege checks that the engine itself makes (HLT,
MOV CR, RDMSR, LGDT...) arrive as EXCEPTION and are not repeated. SDM Vol. 3, "Instructions That
Cause VM Exits Unconditionally", "Instructions That Cause VM Exits Conditionally", "Other Causes
of VM Exits".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from vmxsim.arch.controls import CpuBased, ExitControls, PinBased, Secondary
from vmxsim.arch.events import Event, InterruptionInfo, Vector, interruption_info
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Cr0
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import EventTrap, ExceptionTrap, MemoryTrap, OperandKind, Trap, TrapKind
from vmxsim.vmx import intercept_system as system
from vmxsim.vmx import operands as info
from vmxsim.vmx.bitmaps import event_exits
from vmxsim.vmx.delivery import event_of
from vmxsim.vmx.ept import ept_violation
from vmxsim.vmx.intercept_common import (
    Handler,
    InsnHandler,
    Outcome,
    always,
    if_primary,
    if_secondary,
    never,
    undefined,
)
from vmxsim.vmx.intercept_io import bounced_io, io_instruction, msr_access
from vmxsim.vmx.records import VmExit
from vmxsim.vmx.vmcs import Vmcs

HOST_KICK_VECTOR = 0xFD
HOST_TIMER_VECTOR = 0xEC
"""What an interrupt-acknowledging exit reports: Linux's reschedule IPI and local timer."""


def intercept(trap: Trap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Say whether a trap is a VM exit (VmExit), a fault that comes first (Event), or nothing to
    the hypervisor (None). Changes nothing.
    """
    return intercept_table[trap[0]](trap, vmcs, cpu)


def event_exit(event: Event, vmcs: Vmcs, cpu: Cpu) -> VmExit | None:
    """The exit an exception or NMI causes by the exception bitmap or NMI exiting, or None.

    CR2, DR6 and DR7 stay as they are: what they would have got is the qualification. The caller
    adds IDT-vectoring information when it was delivering something else.
    """
    if not event_exits(vmcs, event):
        return None
    information = interruption_info(event)
    if not cpu.cr0 & Cr0.PE:
        information &= ~InterruptionInfo.ERROR_CODE
    return VmExit(
        ExitReason.EXCEPTION_NMI,
        qualification=event.address or 0,
        instruction_length=event.length if event.software else 0,
        intr_info=information,
        intr_error_code=event.error_code or 0 if information & InterruptionInfo.ERROR_CODE else 0,
    )


def _exception(trap: ExceptionTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """The event, for the processor to raise. MOV DR exits before its own faults do:
    "Instructions That Cause VM Exits Conditionally" puts it above CPL and CR4.DE.
    """
    insn = trap.insn
    if (
        insn is not None
        and vmcs.cpu_based & CpuBased.MOV_DR_EXITING
        and trap.vector in (Vector.GP, Vector.UD, Vector.DB)
        and len(insn.operands) == 2
        and any(operand.kind == OperandKind.DR and operand.index < 8 for operand in insn.operands)
    ):
        return system.dr_exit(insn, trap)
    return event_of(trap, cpu)


def _memory(trap: MemoryTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    return ept_violation(trap) if vmcs.secondary & Secondary.ENABLE_EPT else None


def _host_interrupt(vector: int) -> Callable[[EventTrap, Vmcs, Cpu], Outcome]:
    """A kick or a spent budget is an interrupt of the host's; the vector only if acknowledged."""
    plain = VmExit(ExitReason.EXTERNAL_INTERRUPT)
    acknowledged = plain._replace(intr_info=InterruptionInfo.VALID | vector)

    def handler(trap: EventTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        if not vmcs.pin_based & PinBased.EXTERNAL_INTERRUPT_EXITING:
            return None
        if vmcs.exit_controls & ExitControls.ACKNOWLEDGE_INTERRUPT_ON_EXIT:
            return acknowledged
        return plain

    return handler


_WINDOW_EXIT = VmExit(ExitReason.INTERRUPT_WINDOW)


def _interrupt_window(trap: EventTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    return _WINDOW_EXIT if vmcs.cpu_based & CpuBased.INTERRUPT_WINDOW_EXITING else None


# -- the table ----------------------------------------------------------------------------------

# fmt: off
INSTRUCTIONS: dict[TrapKind, InsnHandler] = {
    TrapKind.CPUID:       always(ExitReason.CPUID),
    TrapKind.HLT:         if_primary(CpuBased.HLT_EXITING, ExitReason.HLT),
    TrapKind.INVD:        always(ExitReason.INVD),
    TrapKind.WBINVD:      if_secondary(Secondary.WBINVD_EXITING, ExitReason.WBINVD),
    TrapKind.INVLPG:      system.invlpg,
    TrapKind.INVPCID:     system.invpcid,
    TrapKind.RDPMC:       system.rdpmc,
    TrapKind.RDTSC:       if_primary(CpuBased.RDTSC_EXITING, ExitReason.RDTSC),
    TrapKind.RDTSCP:      system.rdtscp,
    TrapKind.RDRAND:      system.random_number(Secondary.RDRAND_EXITING, ExitReason.RDRAND),
    TrapKind.RDSEED:      system.random_number(Secondary.RDSEED_EXITING, ExitReason.RDSEED),
    TrapKind.RDMSR:       msr_access(ExitReason.MSR_READ, write=False),
    TrapKind.WRMSR:       msr_access(ExitReason.MSR_WRITE, write=True),
    TrapKind.MOV_TO_CR:   system.mov_to_cr,
    TrapKind.MOV_FROM_CR: system.mov_from_cr,
    TrapKind.CLTS:        system.clts,
    TrapKind.LMSW:        system.lmsw,
    TrapKind.SMSW:        system.smsw,
    TrapKind.MOV_DR:      system.mov_dr,
    TrapKind.SGDT:        system.table(0),
    TrapKind.SIDT:        system.table(1),
    TrapKind.LGDT:        system.table(2),
    TrapKind.LIDT:        system.table(3),
    TrapKind.SLDT:        system.selector(0),
    TrapKind.STR:         system.selector(1),
    TrapKind.LLDT:        system.selector(2),
    TrapKind.LTR:         system.selector(3),
    TrapKind.MONITOR:     system.monitor,
    TrapKind.MWAIT:       system.mwait,
    TrapKind.PAUSE:       if_primary(CpuBased.PAUSE_EXITING, ExitReason.PAUSE_INSTRUCTION),
    TrapKind.XSETBV:      system.xsetbv,
    TrapKind.XGETBV:      never,
    TrapKind.GETSEC:      system.getsec,
    TrapKind.VMCALL:      always(ExitReason.VMCALL),
    TrapKind.VMCLEAR:     system.vmx(ExitReason.VMCLEAR, info.memory_info),
    TrapKind.VMLAUNCH:    system.vmx(ExitReason.VMLAUNCH),
    TrapKind.VMPTRLD:     system.vmx(ExitReason.VMPTRLD, info.memory_info),
    TrapKind.VMPTRST:     system.vmx(ExitReason.VMPTRST, info.memory_info),
    TrapKind.VMREAD:      system.vmx(ExitReason.VMREAD, info.vmread_info),
    TrapKind.VMRESUME:    system.vmx(ExitReason.VMRESUME),
    TrapKind.VMWRITE:     system.vmx(ExitReason.VMWRITE, info.vmwrite_info),
    TrapKind.VMXOFF:      system.vmx(ExitReason.VMOFF),
    TrapKind.VMXON:       system.vmxon,
    TrapKind.INVEPT:      system.vmx(ExitReason.INVEPT, info.register_and_memory_info),
    TrapKind.INVVPID:     system.vmx(ExitReason.INVVPID, info.register_and_memory_info),
    TrapKind.VMFUNC:      system.vmfunc,
    TrapKind.RDPID:       system.enable_rdtscp,
    TrapKind.INT_N:       never,
    TrapKind.CMPXCHG8B:   never,
    TrapKind.INT3:        never,
    TrapKind.INTO:        never,
    TrapKind.ICEBP:       never,
    TrapKind.SYSCALL:     never,
    TrapKind.SYSENTER:    never,
    TrapKind.RSM:         undefined,
    TrapKind.XSAVES:      undefined,
    TrapKind.XRSTORS:     undefined,
    TrapKind.ENCLS:       undefined,
}
"""INT n and its kin never exit as instructions; what they raise may, by the exception bitmap.
RSM outside SMM, SGX, and the XSAVE family with IA32_XSS (no state is supported) are #UD.
"""

intercept_table: dict[TrapKind, Handler] = cast(
    "dict[TrapKind, Handler]",
    {
        **INSTRUCTIONS,
        TrapKind.IO:               io_instruction,
        TrapKind.BOUNCED:          bounced_io,
        TrapKind.EXCEPTION:        _exception,
        TrapKind.MEMORY:           _memory,
        TrapKind.KICK:             _host_interrupt(HOST_KICK_VECTOR),
        TrapKind.BUDGET:           _host_interrupt(HOST_TIMER_VECTOR),
        TrapKind.INTERRUPT_WINDOW: _interrupt_window,
    },
)
"""Each row is given traps of its own kind only; that is what the cast says."""
# fmt: on
