"""Control and debug registers as non-root operation sees them: through masks and read shadows.

Changes that nobody intercepts happen here with every check of the manual, because the engine's
setters make none. SDM Vol. 2, "MOV - Move to/from Control Registers", "MOV - Move to/from Debug
Registers", "LMSW", "SMSW", "CLTS"; Vol. 3, "Initializing IA-32e Mode", "PDPTE Registers", and
"Changes to Instruction Behavior in VMX Non-Root Operation".
"""

from __future__ import annotations

from vmxsim.arch.capabilities import CR0_FIXED0, CR4_FIXED0, CR4_FIXED1, MAXPHYADDR
from vmxsim.arch.controls import Secondary
from vmxsim.arch.events import Event, Vector, fault
from vmxsim.arch.registers import Cr0, Cr3, Cr4, Dr6, Dr7, Efer
from vmxsim.arch.segments import Segment
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, MemoryTrap, OperandKind, TrapKind
from vmxsim.vmx.execute_common import MASK_32, retire
from vmxsim.vmx.guest_access import (
    GuestFault,
    raise_fault,
    raise_gp,
    raise_ud,
    read_operand,
    write_operand,
)
from vmxsim.vmx.vmcs import Vmcs

_CR0_MASK = int(VmcsField.CR0_GUEST_HOST_MASK)
_CR4_MASK = int(VmcsField.CR4_GUEST_HOST_MASK)
_CR0_SHADOW = int(VmcsField.CR0_READ_SHADOW)
_CR4_SHADOW = int(VmcsField.CR4_READ_SHADOW)

_PDPTE_RESERVED = 0x1E6 | (1 << 64) - (1 << MAXPHYADDR)
_PDPTE_CR0 = Cr0.PG | Cr0.CD | Cr0.NW
_PDPTE_CR4 = Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP
"""Changing one of these loads the PDPTEs again under PAE paging."""


def guest_cr0(vmcs: Vmcs, cpu: Cpu) -> int:
    """CR0 as the guest reads it."""
    mask = vmcs.fields[_CR0_MASK]
    return cpu.cr0 & ~mask | vmcs.fields[_CR0_SHADOW] & mask


def guest_cr4(vmcs: Vmcs, cpu: Cpu) -> int:
    """CR4 as the guest reads it."""
    mask = vmcs.fields[_CR4_MASK]
    return cpu.cr4 & ~mask | vmcs.fields[_CR4_SHADOW] & mask


def mov_from_cr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Read a control register."""
    insn = trap.insn
    register, number = insn.operands[0].index, insn.operands[1].index
    if number == 0:
        value = guest_cr0(vmcs, cpu)
    elif number == 4:
        value = guest_cr4(vmcs, cpu)
    else:
        value = {2: cpu.cr2, 3: cpu.cr3, 8: cpu.cr8}[number]
    cpu.gpr[register] = value if insn.bits == 64 else value & MASK_32
    return retire(cpu, insn)


def mov_to_cr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Write a control register; bits of CR0 and CR4 that the hypervisor owns stay."""
    insn = trap.insn
    number = insn.operands[0].index
    value = cpu.gpr[insn.operands[1].index]
    if insn.bits != 64:
        value &= MASK_32
    if number == 0:
        mask = vmcs.fields[_CR0_MASK]
        load_cr0(vmcs, cpu, cpu.cr0 & mask | value & ~mask, insn.bits == 64)
    elif number == 2:
        cpu.cr2 = value
    elif number == 3:
        load_cr3(cpu, value)
    elif number == 4:
        mask = vmcs.fields[_CR4_MASK]
        load_cr4(cpu, cpu.cr4 & mask | value & ~mask)
    else:
        if value > 0xF:
            raise_gp()
        cpu.cr8 = value
    return retire(cpu, insn)


def lmsw(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Load CR0 bits 3:0, of which PE can be set but not cleared."""
    insn = trap.insn
    source = read_operand(cpu, insn, insn.operands[0], 2)
    real = cpu.cr0
    changeable = 0xF & ~vmcs.fields[_CR0_MASK]
    value = real & ~changeable | source & changeable | real & Cr0.PE
    load_cr0(vmcs, cpu, value, insn.bits == 64)
    return retire(cpu, insn)


def smsw(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Store the machine status word, 16 bits of it to memory."""
    insn = trap.insn
    operand = insn.operands[0]
    size = 2 if operand.kind == OperandKind.MEMORY else operand.size
    write_operand(cpu, insn, operand, size, guest_cr0(vmcs, cpu))
    return retire(cpu, insn)


def clts(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Clear CR0.TS, unless it is the hypervisor's (who then shows it clear already)."""
    if not vmcs.fields[_CR0_MASK] & Cr0.TS:
        cpu.cr0 &= ~Cr0.TS
    return retire(cpu, trap.insn)


# -- the checks of a load -----------------------------------------------------------------------


def load_cr0(vmcs: Vmcs, cpu: Cpu, value: int, in_64bit: bool) -> None:
    """Check and load CR0 with all that hangs on it: IA-32e mode comes and goes with PG."""
    fixed = CR0_FIXED0
    if vmcs.secondary & Secondary.UNRESTRICTED_GUEST:
        fixed &= ~(Cr0.PE | Cr0.PG)
    if value >> 32 or fixed & ~value:
        raise_gp()
    value = value & Cr0.DEFINED | Cr0.ET
    if value & Cr0.PG and not value & Cr0.PE or value & Cr0.NW and not value & Cr0.CD:
        raise_gp()
    old, efer = cpu.cr0, cpu.efer
    if value & ~old & Cr0.PG and efer & Efer.LME:
        _check_entering_ia32e(cpu)
        efer |= Efer.LMA
    elif old & ~value & Cr0.PG:
        if in_64bit or cpu.cr4 & Cr4.PCIDE:
            raise_gp()
        efer &= ~Efer.LMA
    if value & Cr0.PG and not efer & Efer.LMA and (value ^ old) & _PDPTE_CR0:
        check_pdptes(cpu, cpu.cr3, cpu.cr4)
    if efer != cpu.efer:
        cpu.efer = efer
    cpu.cr0 = value


def _check_entering_ia32e(cpu: Cpu) -> None:
    """Paging turns into IA-32e paging only with PAE, from 32-bit code, without a 16-bit TSS."""
    if not cpu.cr4 & Cr4.PAE or cpu.segment(Segment.CS).access_rights & 1 << 13:
        raise_gp()
    task = cpu.segment(Segment.TR)
    if not task.unusable and task.type == 3:
        raise_gp()


def load_cr3(cpu: Cpu, value: int) -> None:
    """Check and load CR3; bit 63 only says, with CR4.PCIDE, that nothing need be flushed."""
    if cpu.cr4 & Cr4.PCIDE:
        value &= ~Cr3.NO_FLUSH
    if value >> MAXPHYADDR:
        raise_gp()
    if cpu.cr0 & Cr0.PG and not cpu.efer & Efer.LMA:
        check_pdptes(cpu, value, cpu.cr4)
    cpu.cr3 = value


def load_cr4(cpu: Cpu, value: int) -> None:
    """Check and load CR4."""
    old = cpu.cr4
    if value & ~CR4_FIXED1 or CR4_FIXED0 & ~value:
        raise_gp()
    if cpu.efer & Efer.LMA:
        if not value & Cr4.PAE or (value ^ old) & Cr4.LA57:
            raise_gp()
    elif value & Cr4.PCIDE:
        raise_gp()
    if value & ~old & Cr4.PCIDE and cpu.cr3 & Cr3.PCID:
        raise_gp()
    if cpu.cr0 & Cr0.PG and not cpu.efer & Efer.LMA and (value ^ old) & _PDPTE_CR4:
        check_pdptes(cpu, cpu.cr3, value)
    cpu.cr4 = value


def check_pdptes(cpu: Cpu, cr3: int, cr4: int) -> None:
    """Under PAE paging: #GP for a present PDPTE with reserved bits. The walk reads them again."""
    if not cr4 & Cr4.PAE:
        return
    table = cr3 & 0xFFFF_FFE0
    if not cpu.memory.backed(table, 32):
        raise GuestFault(MemoryTrap(TrapKind.MEMORY, cpu.rip, table, 8, 0, 0, None, False))
    raw = cpu.memory.read(table, 32)
    for offset in range(0, 32, 8):
        entry = int.from_bytes(raw[offset : offset + 8], "little")
        if entry & 1 and entry & _PDPTE_RESERVED:
            raise_gp()


# -- debug registers ----------------------------------------------------------------------------


def mov_dr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Move to or from a debug register; DR4 and DR5 are DR6 and DR7 unless CR4.DE is 1."""
    insn = trap.insn
    first, second = insn.operands[0], insn.operands[1]
    to_dr = first.kind == OperandKind.DR
    number, register = (first.index, second.index) if to_dr else (second.index, first.index)
    if number in (4, 5):
        if cpu.cr4 & Cr4.DE:
            raise_ud()
        number += 2
    if number > 7:
        raise_ud()
    if cpu.cpl:
        raise_gp()
    if cpu.dr[7] & Dr7.GD:
        raise GuestFault(fault(Vector.DB, None, Dr6.BD))
    if to_dr:
        value = cpu.gpr[register]
        _write_dr(cpu, number, value if insn.bits == 64 else value & MASK_32)
    else:
        value = cpu.dr[number]
        cpu.gpr[register] = value if insn.bits == 64 else value & MASK_32
    return retire(cpu, insn)


def _write_dr(cpu: Cpu, number: int, value: int) -> None:
    if number < 4:
        cpu.dr[number] = value
        return
    if value >> 32:
        raise_fault(Vector.GP, 0)
    if number == 6:
        cpu.dr[6] = value & Dr6.VOLATILE | Dr6.FIXED
    else:
        cpu.dr[7] = value & ~(Dr7.RESERVED_ZERO | Dr7.RTM) & MASK_32 | Dr7.FIXED
