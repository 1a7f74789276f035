"""The processor's own accesses to guest memory, which either succeed or stop what it was doing.

Delivery, descriptor loads and memory operands all read or write in the middle of something. A
helper here returns plain bytes, or raises GuestFault with the one outcome the caller must return:
the exception the guest gets, or the access that left guest memory (an EPT violation).
"""

from __future__ import annotations

from typing import NoReturn

from vmxsim.arch.events import Event, Vector, fault
from vmxsim.arch.paging import PageFault
from vmxsim.arch.segments import Descriptor, Segment, SegmentRegister
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import Instruction, MemoryTrap, Operand

NULL_MASK = 0xFFFC
"""A selector without its RPL: what error codes carry, and zero for every null selector."""


class GuestFault(Exception):
    """Unwinds to the function that was called; never leaves floor 3. Return its ``outcome``."""

    def __init__(self, outcome: Event | MemoryTrap) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def seen_by(self, cpu: Cpu) -> Event | MemoryTrap:
        """The outcome as this guest gets it: in real mode exceptions have no error code."""
        if isinstance(self.outcome, Event) and not cpu.cr0 & 1:
            return self.outcome._replace(error_code=None)
        return self.outcome


def raise_fault(vector: int, error_code: int | None = None) -> NoReturn:
    """Stop with a hardware exception."""
    raise GuestFault(fault(vector, error_code))


def raise_gp(error_code: int = 0) -> NoReturn:
    """Stop with #GP."""
    raise GuestFault(fault(Vector.GP, error_code))


def raise_ud() -> NoReturn:
    """Stop with #UD."""
    raise GuestFault(fault(Vector.UD))


def _stop(result: PageFault | MemoryTrap) -> NoReturn:
    if isinstance(result, MemoryTrap):
        raise GuestFault(result)
    raise GuestFault(fault(Vector.PF, result.error_code, result.address))


def read(cpu: Cpu, gva: int, size: int, user: bool | None = None) -> bytes:
    """Read linear memory; ``user`` False is the implicit supervisor access of SDM Vol. 3, "Access
    Rights", None goes by the current privilege level.
    """
    result = cpu.read_linear(gva, size, 0, user)
    if isinstance(result, bytes):
        return result
    _stop(result)


def read_int(cpu: Cpu, gva: int, size: int, user: bool | None = None) -> int:
    """Read a little-endian number."""
    return int.from_bytes(read(cpu, gva, size, user), "little")


def write(cpu: Cpu, gva: int, data: bytes, user: bool | None = None) -> None:
    """Write linear memory."""
    result = cpu.write_linear(gva, data, user)
    if result is not None:
        _stop(result)


def fits(segment: SegmentRegister, offset: int, size: int) -> bool:
    """Whether an access lies within the limit. SDM Vol. 3, "Limit Checking"."""
    last = offset + size - 1
    if segment.access_rights & 0x1C != 0x14:
        return last <= segment.limit
    upper = 0xFFFF_FFFF if segment.access_rights & 1 << 14 else 0xFFFF
    return offset > segment.limit and last <= upper


def operand_address(cpu: Cpu, insn: Instruction, operand: Operand, size: int) -> int:
    """The linear address of a memory operand, once it is known to be canonical and in its limit."""
    gva = cpu.linear_address(insn, operand)
    vector = Vector.SS if operand.index == Segment.SS else Vector.GP
    if insn.bits == 64:
        width = 56 if cpu.cr4 & 1 << 12 else 47
        if gva >> width not in (0, (1 << 64 - width) - 1):
            raise_fault(vector, 0)
        return gva
    segment = cpu.segment(operand.index)
    if segment.unusable:
        raise_fault(vector, 0)
    if not fits(segment, gva - segment.base & 0xFFFF_FFFF, size):
        raise_fault(vector, 0)
    return gva


def read_operand(cpu: Cpu, insn: Instruction, operand: Operand, size: int) -> int:
    """The value of a register or memory operand, cut to ``size`` bytes."""
    if operand.kind == 0:
        return cpu.gpr[operand.index] & (1 << 8 * size) - 1
    return read_int(cpu, operand_address(cpu, insn, operand, size), size)


def write_operand(cpu: Cpu, insn: Instruction, operand: Operand, size: int, value: int) -> None:
    """Store to memory or a register: 32-bit results are zero-extended, shorter ones merged."""
    value &= (1 << 8 * size) - 1
    if operand.kind == 0:
        if size < 4:
            value |= cpu.gpr[operand.index] & ~((1 << 8 * size) - 1)
        cpu.gpr[operand.index] = value
        return
    write(cpu, operand_address(cpu, insn, operand, size), value.to_bytes(size, "little"))


def descriptor_address(cpu: Cpu, selector: int, size: int, vector: int, ext: int = 0) -> int:
    """Where a selector's descriptor lies, or the fault for one beyond its table's limit."""
    offset = selector & 0xFFF8
    if selector & 4:
        table = cpu.segment(Segment.LDTR)
        base, limit = table.base, -1 if table.unusable else table.limit
    else:
        base, limit = cpu.gdtr
    if offset + size - 1 > limit:
        raise_fault(vector, selector & NULL_MASK | ext)
    return base + offset


def read_descriptor(
    cpu: Cpu, selector: int, vector: int, ext: int = 0, size: int = 8
) -> tuple[int, Descriptor]:
    """The linear address and the content of a selector's descriptor."""
    gva = descriptor_address(cpu, selector, size, vector, ext)
    return gva, Descriptor.from_bytes(read(cpu, gva, size, user=False))


def mark_accessed(cpu: Cpu, gva: int, descriptor: Descriptor) -> Descriptor:
    """Set the accessed bit in a code or data descriptor's memory, as loading it does."""
    if descriptor.access_rights & 1:
        return descriptor
    rights = descriptor.access_rights | 1
    write(cpu, gva + 5, bytes((rights & 0xFF,)), user=False)
    return descriptor._replace(access_rights=rights)
