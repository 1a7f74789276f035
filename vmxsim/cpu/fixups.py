"""Where the engine raises another exception, or another error code, than an Intel processor does.

SDM Vol. 3, "Interrupt 14 - Page-Fault Exception (#PF)"; Vol. 2, "SYSRET" and the appendix of SSE
exceptions. What the engine runs without any exception cannot be put right here.
"""

from __future__ import annotations

from vmxsim.arch.registers import Cr4
from vmxsim.cpu.traps import Instruction, OperandKind

WRITE, FETCH = 1 << 1, 1 << 4
"""Bits of a page fault's error code."""

READ_MODIFY_WRITE = frozenset(
    {
        "add", "or", "adc", "sbb", "and", "sub", "xor", "inc", "dec", "neg", "not",
        "rol", "ror", "rcl", "rcr", "shl", "sal", "shr", "sar", "shld", "shrd",
        "bts", "btr", "btc", "xadd", "xchg", "cmpxchg", "cmpxchg8b", "cmpxchg16b",
    }
)  # fmt: skip
"""Mnemonics whose first operand, when in memory, is written as well as read."""

_UD, _NM, _GP = 6, 7, 13


def page_fault_code(error_code: int, insn: Instruction | None) -> int:
    """The error code of a #PF: one who reads in order to write is asked about the write at once."""
    if insn is None or error_code & (WRITE | FETCH) or not insn.operands:
        return error_code
    if insn.mnemonic in READ_MODIFY_WRITE and insn.operands[0].kind == OperandKind.MEMORY:
        return error_code | WRITE
    return error_code


def vector_of(vector: int, insn: Instruction | None, cr4: int) -> int:
    """The vector an Intel processor raises where the engine raises this one.

    SSE without CR4.OSFXSR is #UD before it is #NM; SYSRET exists in 64-bit mode only.
    """
    if insn is None:
        return vector
    if vector == _NM and not cr4 & Cr4.OSFXSR:
        sse = any(operand.kind == OperandKind.XMM for operand in insn.operands)
        return _UD if sse else vector
    if vector == _GP and insn.mnemonic == "sysret" and insn.bits != 64:
        return _UD
    return vector
