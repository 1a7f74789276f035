"""VM-exit instruction information: the operands of the instruction that exited, in 32 bits.

SDM Vol. 3, "Information for VM Exits Due to Instruction Execution". Undefined bits are encoded as
0 and ignored in decoding.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


def _address_size_code(size: int) -> int:
    return size.bit_length() - 2


class MemoryAddress(NamedTuple):
    """How an instruction names its memory operand; the displacement is the exit qualification.

    27 no base   26:23 base   22 no index   21:18 index   17:15 segment   9:7 address size
    1:0 scaling
    """

    segment: int = 3
    base: int | None = None
    index_reg: int | None = None
    scale: int = 1
    address_size: int = 8
    """In bytes: 2, 4 or 8."""

    def encode(self) -> int:
        """Its bits of the instruction information."""
        info = self.segment << 15 | _address_size_code(self.address_size) << 7
        info |= 1 << 27 if self.base is None else self.base << 23
        if self.index_reg is None:
            return info | 1 << 22
        return info | self.index_reg << 18 | self.scale.bit_length() - 1

    @classmethod
    def decode(cls, info: int) -> MemoryAddress:
        """Read its bits of the instruction information."""
        indexed = not info & 1 << 22
        return cls(
            segment=info >> 15 & 7,
            base=None if info & 1 << 27 else info >> 23 & 0xF,
            index_reg=info >> 18 & 0xF if indexed else None,
            scale=1 << (info & 3) if indexed else 1,
            address_size=2 << (info >> 7 & 3),
        )


class VmxInstructionInfo(NamedTuple):
    """VMREAD and VMWRITE; without registers also VMCLEAR, VMPTRLD, VMPTRST, VMXON, XSAVES, XRSTORS,
    INVEPT, INVVPID and INVPCID.

    31:28 second register   10 register operand (then 6:3 is the register)   else: memory address
    """

    address: MemoryAddress | None = None
    reg1: int = 0
    reg2: int = 0

    def encode(self) -> int:
        """The instruction information."""
        if self.address is None:
            return self.reg2 << 28 | 1 << 10 | self.reg1 << 3
        return self.reg2 << 28 | self.address.encode()

    @classmethod
    def decode(cls, info: int) -> VmxInstructionInfo:
        """Read an instruction information."""
        if info & 1 << 10:
            return cls(None, info >> 3 & 0xF, info >> 28 & 0xF)
        return cls(MemoryAddress.decode(info), 0, info >> 28 & 0xF)


class TableInstruction(IntEnum):
    """Which instruction a GDTR_IDTR exit is about."""

    SGDT = 0
    SIDT = 1
    LGDT = 2
    LIDT = 3


class GdtrIdtrInfo(NamedTuple):
    """LGDT, LIDT, SGDT, SIDT.

    29:28 instruction   11 operand size (0: 16 bits; 1: 32)   else: memory address
    """

    instruction: TableInstruction
    address: MemoryAddress
    operand_32: bool = True

    def encode(self) -> int:
        """The instruction information."""
        return self.instruction << 28 | self.operand_32 << 11 | self.address.encode()

    @classmethod
    def decode(cls, info: int) -> GdtrIdtrInfo:
        """Read an instruction information."""
        return cls(
            TableInstruction(info >> 28 & 3), MemoryAddress.decode(info), bool(info & 1 << 11)
        )


class SystemSegmentInstruction(IntEnum):
    """Which instruction an LDTR_TR exit is about."""

    SLDT = 0
    STR = 1
    LLDT = 2
    LTR = 3


class LdtrTrInfo(NamedTuple):
    """LLDT, LTR, SLDT, STR.

    29:28 instruction   10 register operand (then 6:3 is the register)   else: memory address
    """

    instruction: SystemSegmentInstruction
    address: MemoryAddress | None = None
    reg1: int = 0

    def encode(self) -> int:
        """The instruction information."""
        if self.address is None:
            return self.instruction << 28 | 1 << 10 | self.reg1 << 3
        return self.instruction << 28 | self.address.encode()

    @classmethod
    def decode(cls, info: int) -> LdtrTrInfo:
        """Read an instruction information."""
        instruction = SystemSegmentInstruction(info >> 28 & 3)
        if info & 1 << 10:
            return cls(instruction, None, info >> 3 & 0xF)
        return cls(instruction, MemoryAddress.decode(info))


class RandomInfo(NamedTuple):
    """RDRAND and RDSEED.

    12:11 operand size (0: 16 bits; 1: 32; 2: 64)   6:3 destination register
    """

    reg: int
    operand_size: int
    """In bytes: 2, 4 or 8."""

    def encode(self) -> int:
        """The instruction information."""
        return _address_size_code(self.operand_size) << 11 | self.reg << 3

    @classmethod
    def decode(cls, info: int) -> RandomInfo:
        """Read an instruction information."""
        return cls(info >> 3 & 0xF, 2 << (info >> 11 & 3))


class StringIoInfo(NamedTuple):
    """INS and OUTS.

    17:15 segment (OUTS only)   9:7 address size
    """

    address_size: int
    """In bytes: 2, 4 or 8."""
    segment: int = 0

    def encode(self) -> int:
        """The instruction information."""
        return self.segment << 15 | _address_size_code(self.address_size) << 7

    @classmethod
    def decode(cls, info: int) -> StringIoInfo:
        """Read an instruction information."""
        return cls(2 << (info >> 7 & 3), info >> 15 & 7)
