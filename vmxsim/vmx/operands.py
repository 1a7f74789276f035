"""Writes down which instruction exited: its instruction information and its displacement.

Integer arithmetic on the decoded instruction, in the formats that arch.qualifications names.
SDM Vol. 3, "Information for VM Exits Due to Instruction Execution".
"""

from __future__ import annotations

from vmxsim.cpu.traps import RIP_BASE, Instruction, Operand, OperandKind

NO_OPERAND = Operand(OperandKind.OTHER, 0)
_REGISTER_FORM = 1 << 10
_NO_INDEX = 1 << 22
_NO_BASE = 1 << 27
_SCALE = {1: 0, 2: 1, 4: 2, 8: 3}
_SIZE = {2: 0, 4: 1, 8: 2}


def memory_operand(insn: Instruction) -> Operand:
    """The memory operand of an instruction, or one of kind OTHER if it has none."""
    for operand in insn.operands:
        if operand.kind == OperandKind.MEMORY:
            return operand
    return NO_OPERAND


def register_operand(insn: Instruction) -> int:
    """The number of the first general register among the operands."""
    for operand in insn.operands:
        if operand.kind == OperandKind.GPR:
            return operand.index
    return 0


def address_info(insn: Instruction, operand: Operand) -> int:
    """How the memory operand is addressed: scale, address size, segment, index and base."""
    info = _SIZE[insn.address_size] << 7 | operand.index << 15
    if operand.index_reg < 0:
        info |= _NO_INDEX
    else:
        info |= operand.index_reg << 18 | _SCALE[operand.scale]
    if operand.base < 0 or operand.base == RIP_BASE:
        return info | _NO_BASE
    return info | operand.base << 23


def memory_info(insn: Instruction) -> int:
    """VMCLEAR, VMPTRLD, VMPTRST, VMXON, XSAVES, XRSTORS: the address alone."""
    return address_info(insn, memory_operand(insn))


def register_and_memory_info(insn: Instruction) -> int:
    """INVEPT, INVVPID, INVPCID: the address, and the type's register in bits 31:28."""
    return register_operand(insn) << 28 | memory_info(insn)


def vmread_info(insn: Instruction) -> int:
    """VMREAD: first operand the destination, second the register with the field's encoding."""
    return _two_operands(insn, insn.operands[0], insn.operands[1])


def vmwrite_info(insn: Instruction) -> int:
    """VMWRITE: first operand the register with the field's encoding, second the source."""
    return _two_operands(insn, insn.operands[1], insn.operands[0])


def _two_operands(insn: Instruction, data: Operand, field: Operand) -> int:
    if data.kind == OperandKind.GPR:
        return field.index << 28 | _REGISTER_FORM | data.index << 3
    return field.index << 28 | address_info(insn, data)


def table_info(insn: Instruction, identity: int) -> int:
    """LGDT, LIDT, SGDT, SIDT: the address, bit 11 for 32-bit operands, who it is in 29:28."""
    info = memory_info(insn) | identity << 28
    return info | 1 << 11 if insn.operand_size == 4 else info


def selector_info(insn: Instruction, identity: int) -> int:
    """LLDT, LTR, SLDT, STR: the address or the register, and who it is in 29:28."""
    operand = insn.operands[0]
    if operand.kind == OperandKind.GPR:
        return identity << 28 | _REGISTER_FORM | operand.index << 3
    return identity << 28 | address_info(insn, operand)


def random_info(insn: Instruction) -> int:
    """RDRAND, RDSEED: the destination and its size."""
    operand = insn.operands[0]
    return operand.index << 3 | _SIZE[operand.size] << 11


def string_io_info(insn: Instruction, is_in: bool) -> int:
    """INS and OUTS: the address size, and for OUTS the segment."""
    info = _SIZE[insn.address_size] << 7
    return info if is_in else info | source_segment(insn) << 15


def source_segment(insn: Instruction) -> int:
    """The segment OUTS reads from: DS unless overridden."""
    return insn.segment_override if insn.segment_override >= 0 else 3


def displacement(insn: Instruction, rip: int) -> int:
    """The exit qualification of instructions with a memory operand; 0 where there is none.

    Sign-extended, and relative to the next instruction for RIP-relative addressing. Outside
    64-bit mode it is cut to the address size, above which the manual leaves it undefined.
    """
    operand = memory_operand(insn)
    if operand.kind != OperandKind.MEMORY:
        return 0
    value = operand.disp
    if operand.base == RIP_BASE:
        value += rip + insn.length
    return value & (1 << (64 if insn.bits == 64 else 8 * insn.address_size)) - 1
