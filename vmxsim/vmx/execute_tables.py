"""LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT and STR, for guests whose hypervisor asks for no exit.

The loads always come here, because the engine's own check too little; the engine runs the stores
unless they are armed. SDM Vol. 2, the instructions' pages.
"""

from __future__ import annotations

from vmxsim.arch.bits import canonical
from vmxsim.arch.events import Event, Vector
from vmxsim.arch.registers import Cr4, Efer
from vmxsim.arch.segments import (
    AccessRights,
    Descriptor,
    Segment,
    SegmentRegister,
    SystemType,
    TableRegister,
)
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, OperandKind, TrapKind
from vmxsim.vmx.execute_common import retire
from vmxsim.vmx.guest_access import (
    NULL_MASK,
    operand_address,
    raise_fault,
    raise_gp,
    read,
    read_descriptor,
    read_operand,
    write,
    write_operand,
)
from vmxsim.vmx.vmcs import Vmcs


def load_table(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """LGDT and LIDT: limit and base; with 16-bit operands the base has 24 bits."""
    insn = trap.insn
    size = 8 if insn.bits == 64 else 4
    raw = read(cpu, operand_address(cpu, insn, insn.operands[0], 2 + size), 2 + size)
    limit = int.from_bytes(raw[:2], "little")
    base = int.from_bytes(raw[2:], "little")
    if insn.bits == 64:
        if not canonical(base, 57 if cpu.cr4 & Cr4.LA57 else 48):
            raise_gp()
    elif insn.operand_size == 2:
        base &= 0xFF_FFFF
    if trap.kind == TrapKind.LGDT:
        cpu.gdtr = TableRegister(base, limit)
    else:
        cpu.idtr = TableRegister(base, limit)
    return retire(cpu, insn)


def store_table(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """SGDT and SIDT: limit and the whole base, whatever the operand size."""
    insn = trap.insn
    base, limit = cpu.gdtr if trap.kind == TrapKind.SGDT else cpu.idtr
    size = 8 if insn.bits == 64 else 4
    raw = limit.to_bytes(2, "little") + (base & (1 << 8 * size) - 1).to_bytes(size, "little")
    write(cpu, operand_address(cpu, insn, insn.operands[0], len(raw)), raw)
    return retire(cpu, insn)


def store_selector(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """SLDT and STR: zero-extended to a register, 16 bits to memory."""
    insn = trap.insn
    operand = insn.operands[0]
    segment = Segment.LDTR if trap.kind == TrapKind.SLDT else Segment.TR
    size = 2 if operand.kind == OperandKind.MEMORY else operand.size
    write_operand(cpu, insn, operand, size, cpu.segment(segment).selector)
    return retire(cpu, insn)


def load_selector(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """LLDT and LTR; LTR marks the TSS busy in the GDT."""
    insn = trap.insn
    selector = read_operand(cpu, insn, insn.operands[0], 2)
    ldt = trap.kind == TrapKind.LLDT
    if not selector & NULL_MASK:
        if not ldt:
            raise_gp()
        cpu.set_segment(Segment.LDTR, SegmentRegister(selector, 0, 0, AccessRights.UNUSABLE))
        return retire(cpu, insn)
    if selector & 4:
        raise_gp(selector & NULL_MASK)
    ia32e = cpu.efer & Efer.LMA != 0
    gva, descriptor = read_descriptor(cpu, selector, Vector.GP, size=16 if ia32e else 8)
    _check_system(descriptor, selector, ldt, ia32e)
    if ldt:
        cpu.set_segment(Segment.LDTR, descriptor.register(selector))
        return retire(cpu, insn)
    rights = descriptor.access_rights | SystemType.TSS16_BUSY & ~SystemType.TSS16
    write(cpu, gva + 5, bytes((rights & 0xFF,)), user=False)
    cpu.set_segment(Segment.TR, descriptor._replace(access_rights=rights).register(selector))
    return retire(cpu, insn)


def _check_system(descriptor: Descriptor, selector: int, ldt: bool, ia32e: bool) -> None:
    """The right type of system descriptor, and present."""
    error_code = selector & NULL_MASK
    if ldt:
        types: tuple[int, ...] = (SystemType.LDT,)
    else:
        types = (SystemType.TSS,) if ia32e else (SystemType.TSS16, SystemType.TSS)
    if not descriptor.system or descriptor.type not in types:
        raise_gp(error_code)
    if not descriptor.present:
        raise_fault(Vector.NP, error_code)
