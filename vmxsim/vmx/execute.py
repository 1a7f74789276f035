"""Does what no control asked to see, exactly as hardware would in VMX non-root operation.

The engine hands up more than any one VMCS wants, and executes some instructions not at all; here
they take effect, with RIP advanced, or raise the fault they raise. SDM Vol. 2, and Vol. 3,
"Changes to Instruction Behavior in VMX Non-Root Operation". Left out: address-range monitoring
(MWAIT goes on at once), performance counters (RDPMC is #GP), devices (I/O reads all ones).
"""

from __future__ import annotations

from typing import cast

from vmxsim.arch.bits import canonical
from vmxsim.arch.controls import Activity
from vmxsim.arch.events import Event, Vector, fault
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr4, Gpr, Rflags
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import EventTrap, ExceptionTrap, InsnTrap, IoTrap, MemoryTrap, Trap, TrapKind
from vmxsim.errors import EngineError
from vmxsim.vmx import execute_calls as calls
from vmxsim.vmx import execute_control as control
from vmxsim.vmx import execute_tables as tables
from vmxsim.vmx.delivery import event_of
from vmxsim.vmx.execute_common import (
    MASK_32,
    MASK_64,
    Completer,
    InsnCompleter,
    retire,
    set_edx_eax,
)
from vmxsim.vmx.execute_exchange import cmpxchg8b
from vmxsim.vmx.execute_msr import guest_tsc, rdmsr, wrmsr
from vmxsim.vmx.guest_access import (
    GuestFault,
    operand_address,
    raise_gp,
    raise_ud,
    read,
    write,
    write_operand,
)
from vmxsim.vmx.intercept_io import string_io_address
from vmxsim.vmx.vmcs import Vmcs

_ACTIVITY = int(VmcsField.GUEST_ACTIVITY_STATE)
_TSC_AUX = int(Msr.IA32_TSC_AUX)


def complete(trap: Trap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | MemoryTrap | None:
    """Do what the trapped instruction does: None when done, an Event it raises (software
    interrupts too), or the access of its own that left guest memory.

    After a HLT the VMCS's activity state is HLT, and the caller waits.
    """
    try:
        return complete_table[trap[0]](trap, vmcs, cpu, clock)
    except GuestFault as stopped:
        return stopped.seen_by(cpu)


def _hlt(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    vmcs.fields[_ACTIVITY] = Activity.HLT
    return retire(cpu, trap.insn)


def _nothing(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """WBINVD and PAUSE: nothing a guest could see."""
    return retire(cpu, trap.insn)


def _undefined(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    raise_ud()


def _always_exits(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    raise EngineError(f"{trap.kind.name} always exits: ask intercept first")


# -- translations -------------------------------------------------------------------------------


def _invlpg(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    insn = trap.insn
    cpu.invlpg(cpu.linear_address(insn, insn.operands[0]))
    return retire(cpu, insn)


def _invpcid(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """The engine has one address space, so all but a single address flushes everything."""
    insn = trap.insn
    kind = cpu.gpr[insn.operands[0].index] & (MASK_64 if insn.bits == 64 else MASK_32)
    raw = read(cpu, operand_address(cpu, insn, insn.operands[1], 16), 16)
    pcid, address = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
    if kind > 3 or pcid >> 12:
        raise_gp()
    if kind < 2 and pcid and not cpu.cr4 & Cr4.PCIDE:
        raise_gp()
    if kind == 0:
        if not canonical(address, 57 if cpu.cr4 & Cr4.LA57 else 48):
            raise_gp()
        cpu.invlpg(address)
    else:
        cpu.flush_tlb()
    return retire(cpu, insn)


# -- counters and random numbers ----------------------------------------------------------------


def _rdtsc(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    if cpu.cr4 & Cr4.TSD and cpu.cpl:
        raise_gp()
    set_edx_eax(cpu, guest_tsc(vmcs, clock))
    if trap.kind == TrapKind.RDTSCP:
        cpu.gpr[Gpr.RCX] = cpu.msr(_TSC_AUX) & MASK_32
    return retire(cpu, trap.insn)


def _rdpid(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    cpu.gpr[trap.insn.operands[0].index] = cpu.msr(_TSC_AUX)
    return retire(cpu, trap.insn)


def _rdpmc(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    raise_gp()


def _random(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """RDRAND and RDSEED: always successful; repeatable, since drawn from the guest's own time."""
    insn = trap.insn
    operand = insn.operands[0]
    value = _mix(guest_tsc(vmcs, clock) ^ _mix(cpu.rip ^ cpu.gpr[operand.index]))
    write_operand(cpu, insn, operand, operand.size, value)
    cpu.rflags = cpu.rflags & ~Rflags.ARITHMETIC | Rflags.CF
    return retire(cpu, insn)


def _mix(value: int) -> int:
    """SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value = value + 0x9E37_79B9_7F4A_7C15 & MASK_64
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & MASK_64
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & MASK_64
    return value ^ value >> 31


# -- extended states, monitoring ----------------------------------------------------------------


def _xgetbv(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    if not cpu.cr4 & Cr4.OSXSAVE:
        raise_ud()
    if cpu.gpr[Gpr.RCX] & MASK_32:
        raise_gp()
    set_edx_eax(cpu, cpu.xcr0)
    return retire(cpu, trap.insn)


def _monitor(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """MONITOR and MWAIT as hints; extensions in ECX are not supported (MWAIT: bit 0 is)."""
    extensions = cpu.gpr[Gpr.RCX] & MASK_32
    if extensions and (trap.kind == TrapKind.MONITOR or extensions != 1):
        raise_gp()
    return retire(cpu, trap.insn)


# -- I/O with nobody at the other end of the bus ------------------------------------------------


def _io(trap: IoTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    insn = trap.insn
    if trap.string:
        return _string_io(trap, cpu)
    if trap.is_in:
        ones = (1 << 8 * trap.size) - 1
        kept = cpu.gpr[Gpr.RAX] & ~ones if trap.size < 4 else 0
        cpu.gpr[Gpr.RAX] = kept | ones
    return retire(cpu, insn)


def _string_io(trap: IoTrap, cpu: Cpu) -> Event | None:
    """One iteration; RIP stays while REP has more to do, so interrupts get between."""
    insn = trap.insn
    bits = 8 * insn.address_size
    if trap.rep and not cpu.gpr[Gpr.RCX] & (1 << bits) - 1:
        return retire(cpu, insn)
    address = string_io_address(trap, cpu)
    if trap.is_in:
        write(cpu, address, b"\xff" * trap.size)
    else:
        read(cpu, address, trap.size)
    step = -trap.size if cpu.rflags & Rflags.DF else trap.size
    _add(cpu, Gpr.RDI if trap.is_in else Gpr.RSI, step, bits)
    if trap.rep and _add(cpu, Gpr.RCX, -1, bits):
        return None
    return retire(cpu, insn)


def _add(cpu: Cpu, register: int, step: int, bits: int) -> int:
    """Step a register of the address size; returns what that part of it is now."""
    mask = (1 << bits) - 1
    value = cpu.gpr[register] + step & mask
    cpu.gpr[register] = cpu.gpr[register] & ~mask | value if bits == 16 else value
    return value


# -- what is no instruction ---------------------------------------------------------------------


def _exception(trap: ExceptionTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    return event_of(trap, cpu)


def _memory(trap: MemoryTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Without EPT an address nobody answers reads all ones: give it a page that does.

    A machine check where the write is to read-only memory: only EPT makes memory so.
    """
    if trap.present:
        return fault(Vector.MC)
    page = trap.gpa & ~0xFFF
    cpu.memory.map(page, bytearray(b"\xff" * 4096))
    return None


def _event(trap: EventTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """A kick, a spent budget or an open window that no control asks for changes nothing."""
    return None


# fmt: off
INSTRUCTIONS: dict[TrapKind, InsnCompleter] = {
    TrapKind.HLT:         _hlt,
    TrapKind.WBINVD:      _nothing,
    TrapKind.PAUSE:       _nothing,
    TrapKind.INVLPG:      _invlpg,
    TrapKind.INVPCID:     _invpcid,
    TrapKind.RDPMC:       _rdpmc,
    TrapKind.RDTSC:       _rdtsc,
    TrapKind.RDTSCP:      _rdtsc,
    TrapKind.RDPID:       _rdpid,
    TrapKind.RDRAND:      _random,
    TrapKind.RDSEED:      _random,
    TrapKind.RDMSR:       rdmsr,
    TrapKind.WRMSR:       wrmsr,
    TrapKind.MOV_TO_CR:   control.mov_to_cr,
    TrapKind.MOV_FROM_CR: control.mov_from_cr,
    TrapKind.CLTS:        control.clts,
    TrapKind.LMSW:        control.lmsw,
    TrapKind.SMSW:        control.smsw,
    TrapKind.MOV_DR:      control.mov_dr,
    TrapKind.LGDT:        tables.load_table,
    TrapKind.LIDT:        tables.load_table,
    TrapKind.SGDT:        tables.store_table,
    TrapKind.SIDT:        tables.store_table,
    TrapKind.LLDT:        tables.load_selector,
    TrapKind.LTR:         tables.load_selector,
    TrapKind.SLDT:        tables.store_selector,
    TrapKind.STR:         tables.store_selector,
    TrapKind.MONITOR:     _monitor,
    TrapKind.MWAIT:       _monitor,
    TrapKind.XGETBV:      _xgetbv,
    TrapKind.INT_N:       calls.int_n,
    TrapKind.INT3:        calls.int3,
    TrapKind.INTO:        calls.into,
    TrapKind.ICEBP:       calls.int1,
    TrapKind.SYSCALL:     calls.syscall,
    TrapKind.SYSENTER:    calls.sysenter,
    TrapKind.CMPXCHG8B:   cmpxchg8b,
    **dict.fromkeys((TrapKind.RSM, TrapKind.XSAVES, TrapKind.XRSTORS, TrapKind.ENCLS), _undefined),
    **dict.fromkeys(
        (
            TrapKind.CPUID, TrapKind.INVD, TrapKind.XSETBV, TrapKind.GETSEC, TrapKind.VMCALL,
            TrapKind.VMCLEAR, TrapKind.VMLAUNCH, TrapKind.VMPTRLD, TrapKind.VMPTRST,
            TrapKind.VMREAD, TrapKind.VMRESUME, TrapKind.VMWRITE, TrapKind.VMXOFF, TrapKind.VMXON,
            TrapKind.INVEPT, TrapKind.INVVPID, TrapKind.VMFUNC,
        ),
        _always_exits,
    ),
}

complete_table: dict[TrapKind, Completer] = cast(
    "dict[TrapKind, Completer]",
    {
        **INSTRUCTIONS,
        TrapKind.IO:               _io,
        TrapKind.BOUNCED:          _io,
        TrapKind.EXCEPTION:        _exception,
        TrapKind.MEMORY:           _memory,
        TrapKind.KICK:             _event,
        TrapKind.BUDGET:           _event,
        TrapKind.INTERRUPT_WINDOW: _event,
    },
)
"""Each row is given traps of its own kind only; that is what the cast says."""
# fmt: on
