"""Linear memory: the guest's page tables walked in Python, for whoever acts in the guest's name."""

from __future__ import annotations

from vmxsim.arch import paging
from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Cr0, Efer, Rflags
from vmxsim.cpu.memory import PAGE, GuestMemory
from vmxsim.cpu.state import CpuState
from vmxsim.cpu.traps import (
    RIP_BASE,
    Instruction,
    MemoryTrap,
    Operand,
    OperandKind,
    TrapKind,
)

MAXPHYADDR = 39
_FULL = 0xFFFF_FFFF_FFFF_FFFF


class LinearMemory:
    """Reads and writes at linear addresses, by the CPU's present registers."""

    def __init__(self, state: CpuState, memory: GuestMemory) -> None:
        self._state = state
        self._memory = memory

    def translate(
        self, gva: int, access: int = 0, user: bool | None = None, mark: bool = True
    ) -> int | PageFault:
        """The guest-physical address behind a linear one; ``mark`` sets accessed and dirty."""
        state = self._state
        cr0 = state.cr0
        if not cr0 & Cr0.PG:
            return gva & 0xFFFF_FFFF
        found = paging.walk(
            self._read_entry,
            cr0,
            state.cr3,
            state.cr4,
            state.efer,
            state.rflags & Rflags.AC != 0,
            gva,
            access,
            state.cpl == 3 if user is None else user,
            maxphyaddr=MAXPHYADDR,
            write=self._write_entry if mark else None,
        )
        return found if isinstance(found, PageFault) else found.gpa

    def _read_entry(self, gpa: int, size: int) -> int:
        return self._memory.read_word(gpa, size)

    def _write_entry(self, gpa: int, size: int, value: int) -> None:
        self._memory.write(gpa, value.to_bytes(size, "little"))

    def _mask(self) -> int:
        return _FULL if self._state.efer & Efer.LMA else 0xFFFF_FFFF

    def _pieces(
        self, gva: int, size: int, access: int, user: bool | None
    ) -> list[tuple[int, int]] | PageFault | MemoryTrap:
        """Translate every page of a range before any of it is touched: (gpa, length) each."""
        pieces: list[tuple[int, int]] = []
        mask = self._mask()
        while size > 0:
            step = min(size, PAGE - gva % PAGE)
            try:
                gpa = self.translate(gva, access, user)
            except LookupError:
                gpa = PageFault(gva, 1 if access != 1 else 3)
            if isinstance(gpa, PageFault):
                return gpa
            readable = self._memory.backed(gpa, step)
            if not readable or (access == 1 and not self._memory.writable(gpa, step)):
                rip = self._state.rip
                return MemoryTrap(TrapKind.MEMORY, rip, gpa, step, access, 0, gva, readable)
            pieces.append((gpa, step))
            gva, size = gva + step & mask, size - step
        return pieces

    def read(
        self, gva: int, size: int, access: int = 0, user: bool | None = None
    ) -> bytes | PageFault | MemoryTrap:
        """Read bytes, or say what stands in the way."""
        pieces = self._pieces(gva & self._mask(), size, access, user)
        if isinstance(pieces, (PageFault, MemoryTrap)):
            return pieces
        return b"".join(self._memory.read(gpa, length) for gpa, length in pieces)

    def write(
        self, gva: int, data: bytes, user: bool | None = None
    ) -> PageFault | MemoryTrap | None:
        """Write bytes, all of them or none."""
        pieces = self._pieces(gva & self._mask(), len(data), 1, user)
        if isinstance(pieces, (PageFault, MemoryTrap)):
            return pieces
        done = 0
        for gpa, length in pieces:
            self._memory.write(gpa, data[done : done + length])
            done += length
        return None

    def address(self, insn: Instruction, operand: Operand) -> int:
        """The linear address of a memory operand, truncated as mode and address size ask."""
        state = self._state
        gpr = state.gpr
        offset = operand.disp
        if operand.base == RIP_BASE:
            offset += state.rip + insn.length
        elif operand.base >= 0:
            offset += gpr[operand.base]
        if operand.index_reg >= 0:
            offset += gpr[operand.index_reg] * operand.scale
        offset &= (1 << 8 * insn.address_size) - 1
        segment = operand.index
        if insn.bits == 64:
            base = state.segment(segment).base if segment >= 4 else 0
            return base + offset & _FULL
        return state.segment(segment).base + offset & 0xFFFF_FFFF

    def guess(self, insn: Instruction, gpa: int) -> tuple[int | None, int]:
        """Which linear address and how many bytes of an instruction's the access to ``gpa`` was.

        The low twelve bits are the same on both sides of the translation; where no operand has
        them, the address is None.
        """
        state = self._state
        mask = self._mask()
        for operand in insn.operands:
            if operand.kind is OperandKind.MEMORY:
                gva = self.address(insn, operand)
                if gva % PAGE == gpa % PAGE:
                    return gva, operand.size
                if (gva + operand.size - 1) % PAGE >= gpa % PAGE == 0:
                    return (gva | PAGE - 1) + 1 & mask, operand.size
        base = 0 if insn.bits == 64 else state.segment(2).base
        top = base + state.gpr[4] & mask
        for step in (0, insn.operand_size, 8):
            if (top - step) % PAGE == gpa % PAGE:
                return top - step & mask, step or insn.operand_size
        return None, insn.operand_size
