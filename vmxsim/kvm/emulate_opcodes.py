"""The opcode tables of the emulator: one row per encoding, and nothing but rows.

SDM Vol. 2, appendix "Opcode Map". What is not here is not emulated.
"""

from __future__ import annotations

from typing import NamedTuple

from vmxsim.kvm import emulate_bits as bits
from vmxsim.kvm import emulate_ops as ops
from vmxsim.kvm import emulate_sse as sse
from vmxsim.kvm import emulate_stack as stack
from vmxsim.kvm import emulate_string as strings
from vmxsim.kvm.emulate_flags import CMP
from vmxsim.kvm.emulate_operands import Operation

# Operand sizes that are rules rather than numbers of bytes.
OSZ = 0
"""2, 4 or 8 by mode, 0x66 and REX.W."""
STACK = -1
"""As OSZ, but 8 instead of 4 in 64-bit mode."""
NEAR = -2
"""8 in 64-bit mode whatever the prefixes, else OSZ."""
DWORD_UP = -3
"""4, or 8 with REX.W: no 16-bit form."""

NO_IMM, IMM8, IMMZ, IMM16, MOFFS = range(5)


class Row(NamedTuple):
    """One encoding."""

    mnemonic: str
    run: Operation
    size: int = OSZ
    what: int = 0
    imm: int = NO_IMM
    width: int = 0
    """Size of the r/m operand; 0 for the operand size, -1 for at most 4."""
    modrm: bool = True
    lock: bool = False
    memory_only: bool = False
    long_only: bool = False
    reg_is_low_bits: bool = False
    """The register is in the opcode's low three bits, as in PUSH r."""


Group = tuple[Row | None, ...]
"""Rows by ModRM.reg."""

ALU_NAMES = ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")
SHIFT_NAMES = ("rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar")
BIT_NAMES = ("bt", "bts", "btr", "btc")
CONDITIONS = (
    "o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g",
)  # fmt: skip


def _alu() -> dict[int, Row | Group]:
    rows: dict[int, Row | Group] = {}
    for what, name in enumerate(ALU_NAMES):
        lock = what != CMP
        rows[8 * what] = Row(name, ops.alu_store, 1, what, lock=lock)
        rows[8 * what + 1] = Row(name, ops.alu_store, OSZ, what, lock=lock)
        rows[8 * what + 2] = Row(name, ops.alu_load, 1, what)
        rows[8 * what + 3] = Row(name, ops.alu_load, OSZ, what)
    for opcode, size, imm in ((0x80, 1, IMM8), (0x81, OSZ, IMMZ), (0x83, OSZ, IMM8)):
        rows[opcode] = tuple(
            Row(name, ops.alu_immediate, size, what, imm, lock=what != CMP)
            for what, name in enumerate(ALU_NAMES)
        )
    return rows


def _shifts() -> dict[int, Row | Group]:
    rows: dict[int, Row | Group] = {}
    for opcode, run, imm in (
        (0xC0, ops.shift_immediate, IMM8),
        (0xD0, ops.shift_one, NO_IMM),
        (0xD2, ops.shift_cl, NO_IMM),
    ):
        for size in (1, OSZ):
            rows[opcode + (size != 1)] = tuple(
                Row(name, run, size, what, imm) for what, name in enumerate(SHIFT_NAMES)
            )
    return rows


def _group3(size: int, imm: int) -> Group:
    test = Row("test", ops.test_immediate, size, imm=imm)
    return (
        test,
        test,
        Row("not", ops.unary, size, ops.NOT, lock=True),
        Row("neg", ops.unary, size, ops.NEG, lock=True),
        Row("mul", ops.multiply_accumulator, size, 0),
        Row("imul", ops.multiply_accumulator, size, 1),
        Row("div", ops.divide_accumulator, size, 0),
        Row("idiv", ops.divide_accumulator, size, 1),
    )


def _strings() -> dict[int, Row | Group]:
    rows: dict[int, Row | Group] = {}
    for opcode, what, name in (
        (0xA4, strings.MOVS, "movs"),
        (0xA6, strings.CMPS, "cmps"),
        (0xAA, strings.STOS, "stos"),
        (0xAC, strings.LODS, "lods"),
        (0xAE, strings.SCAS, "scas"),
    ):
        rows[opcode] = Row(name, strings.string, 1, what, modrm=False)
        rows[opcode + 1] = Row(name, strings.string, OSZ, what, modrm=False)
    return rows


def _moves() -> dict[int, Row | Group]:
    return {
        0x63: Row("movsxd", ops.mov_sign_extended, width=-1, long_only=True),
        0x88: Row("mov", ops.mov_store, 1),
        0x89: Row("mov", ops.mov_store),
        0x8A: Row("mov", ops.mov_load, 1),
        0x8B: Row("mov", ops.mov_load),
        0x8C: Row("mov", ops.mov_from_segment),
        0xA0: Row("mov", ops.mov_load, 1, imm=MOFFS, modrm=False),
        0xA1: Row("mov", ops.mov_load, imm=MOFFS, modrm=False),
        0xA2: Row("mov", ops.mov_store, 1, imm=MOFFS, modrm=False),
        0xA3: Row("mov", ops.mov_store, imm=MOFFS, modrm=False),
        0xC6: (Row("mov", ops.mov_immediate, 1, imm=IMM8), *[None] * 7),
        0xC7: (Row("mov", ops.mov_immediate, imm=IMMZ), *[None] * 7),
    }


def _stack() -> dict[int, Row | Group]:
    rows: dict[int, Row | Group] = {
        0x68: Row("push", stack.push_immediate, STACK, imm=IMMZ, modrm=False),
        0x6A: Row("push", stack.push_immediate, STACK, imm=IMM8, modrm=False),
        0x8F: (Row("pop", stack.pop_rm, STACK), *[None] * 7),
        0xC2: Row("ret", stack.ret, NEAR, imm=IMM16, modrm=False),
        0xC3: Row("ret", stack.ret, NEAR, modrm=False),
        0xC9: Row("leave", stack.leave, STACK, modrm=False),
        0xE8: Row("call", stack.call_relative, NEAR, imm=IMMZ, modrm=False),
    }
    for number in range(8):
        rows[0x50 + number] = Row("push", stack.push_rm, STACK, modrm=False, reg_is_low_bits=True)
        rows[0x58 + number] = Row("pop", stack.pop_rm, STACK, modrm=False, reg_is_low_bits=True)
    return rows


def _one_byte() -> dict[int, Row | Group]:
    byte, full = (
        (Row("inc", ops.unary, size, ops.INC, lock=True),
         Row("dec", ops.unary, size, ops.DEC, lock=True))
        for size in (1, OSZ)
    )  # fmt: skip
    rows: dict[int, Row | Group] = {
        0x69: Row("imul", ops.multiply_immediate, imm=IMMZ),
        0x6B: Row("imul", ops.multiply_immediate, imm=IMM8),
        0x84: Row("test", ops.test_register, 1),
        0x85: Row("test", ops.test_register),
        0x86: Row("xchg", bits.xchg, 1, lock=True),
        0x87: Row("xchg", bits.xchg, lock=True),
        0xF6: _group3(1, IMM8),
        0xF7: _group3(OSZ, IMMZ),
        0xFE: (*byte, *[None] * 6),
        0xFF: (
            *full,
            Row("call", stack.call_rm, NEAR),
            None,
            Row("jmp", stack.jmp_rm, NEAR),
            None,
            Row("push", stack.push_rm, STACK),
            None,
        ),
    }
    return rows | _alu() | _shifts() | _strings() | _moves() | _stack()


def _two_byte() -> dict[int, Row | Group]:
    pair = Row("cmpxchg8b", bits.cmpxchg_pair, DWORD_UP, lock=True)
    rows: dict[int, Row | Group] = {
        0x0FA4: Row("shld", ops.double_shift_immediate, what=1, imm=IMM8),
        0x0FA5: Row("shld", ops.double_shift_cl, what=1),
        0x0FAC: Row("shrd", ops.double_shift_immediate, what=0, imm=IMM8),
        0x0FAD: Row("shrd", ops.double_shift_cl, what=0),
        0x0FAF: Row("imul", ops.multiply_register),
        0x0FB0: Row("cmpxchg", bits.cmpxchg, 1, lock=True),
        0x0FB1: Row("cmpxchg", bits.cmpxchg, lock=True),
        0x0FB6: Row("movzx", ops.mov_load, width=1),
        0x0FB7: Row("movzx", ops.mov_load, width=2),
        0x0FBC: Row("bsf", bits.bit_scan),
        0x0FBD: Row("bsr", bits.bit_scan, what=1),
        0x0FBE: Row("movsx", ops.mov_sign_extended, width=1),
        0x0FBF: Row("movsx", ops.mov_sign_extended, width=2),
        0x0FC0: Row("xadd", bits.xadd, 1, lock=True),
        0x0FC1: Row("xadd", bits.xadd, lock=True),
        0x0FC3: Row("movnti", ops.mov_store, DWORD_UP, memory_only=True),
        0x0FC7: (None, pair, *[None] * 6),
        0x0F38F0: Row("movbe", ops.movbe_load, memory_only=True),
        0x0F38F1: Row("movbe", ops.movbe_store, memory_only=True),
        0x0FBA: (
            *[None] * 4,
            *(
                Row(name, bits.bit_immediate, OSZ, what, IMM8, lock=what != bits.BT)
                for what, name in enumerate(BIT_NAMES)
            ),
        ),
    }
    for what, name in enumerate(BIT_NAMES):
        rows[0x0FA3 + 8 * what] = Row(name, bits.bit_register, OSZ, what, lock=what != bits.BT)
    for code, name in enumerate(CONDITIONS):
        rows[0x0F40 + code] = Row("cmov" + name, ops.cmov, OSZ, code)
        rows[0x0F90 + code] = Row("set" + name, ops.setcc, 1, code)
    return rows


def _sse_move(name: str, load: int, store: int, what: int) -> dict[int, Row | Group]:
    return {
        load: Row(name, sse.xmm_load, 16, what),
        store: Row(name, sse.xmm_store, 16, what),
    }


def _sse() -> dict[int, Row | Group]:
    """Keyed with the mandatory prefix in bits 31:24."""
    p66, pf2, pf3 = 0x66 << 24, 0xF2 << 24, 0xF3 << 24
    rows = (
        _sse_move("movups", 0x0F10, 0x0F11, sse.ANY)
        | _sse_move("movupd", p66 | 0x0F10, p66 | 0x0F11, sse.ANY)
        | _sse_move("movaps", 0x0F28, 0x0F29, sse.ALIGNED)
        | _sse_move("movapd", p66 | 0x0F28, p66 | 0x0F29, sse.ALIGNED)
        | _sse_move("movdqa", p66 | 0x0F6F, p66 | 0x0F7F, sse.ALIGNED)
        | _sse_move("movdqu", pf3 | 0x0F6F, pf3 | 0x0F7F, sse.ANY)
    )
    for prefix, name, width in ((pf3, "movss", 4), (pf2, "movsd", 8)):
        rows[prefix | 0x0F10] = Row(name, sse.xmm_load_scalar, width)
        rows[prefix | 0x0F11] = Row(name, sse.xmm_store, width)
    for prefix, letter in ((0, "s"), (p66, "d")):
        for opcode, name, at in ((0x0F12, "movlp", 0), (0x0F16, "movhp", 8)):
            rows[prefix | opcode] = Row(
                name + letter, sse.xmm_load_half, 8, at, memory_only=True
            )
            rows[prefix | opcode + 1] = Row(
                name + letter, sse.xmm_store_half, 8, at, memory_only=True
            )
        rows[prefix | 0x0F2B] = Row(
            "movntp" + letter, sse.xmm_store, 16, sse.ALIGNED, memory_only=True
        )
    rows[p66 | 0x0FE7] = Row("movntdq", sse.xmm_store, 16, sse.ALIGNED, memory_only=True)
    rows[p66 | 0x0F382A] = Row("movntdqa", sse.xmm_load, 16, sse.ALIGNED, memory_only=True)
    rows[pf2 | 0x0FF0] = Row("lddqu", sse.xmm_load, 16, sse.ANY, memory_only=True)
    rows[p66 | 0x0F6E] = Row("movd", sse.xmm_from_integer, DWORD_UP)
    rows[p66 | 0x0F7E] = Row("movd", sse.xmm_to_integer, DWORD_UP)
    rows[pf3 | 0x0F7E] = Row("movq", sse.xmm_load, 8)
    rows[p66 | 0x0FD6] = Row("movq", sse.xmm_store_low, 8)
    return rows


OPCODES: dict[int, Row | Group] = _one_byte() | _two_byte()
"""By opcode, with 0x0f or 0x0f38 in front."""

SSE_OPCODES: dict[int, Row | Group] = _sse()
"""By mandatory prefix << 24 | opcode."""
