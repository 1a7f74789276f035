"""Bytes to a Decoded: prefixes, REX, opcode, ModRM, SIB, displacement, immediate, for all modes.

SDM Vol. 2, chapter "Instruction Format". The device's guest executes the same few instructions
again and again, so decode() remembers them by their bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from vmxsim.kvm.emulate_opcodes import (
    DWORD_UP,
    IMM8,
    IMM16,
    IMMZ,
    MOFFS,
    NEAR,
    OPCODES,
    SSE_OPCODES,
    STACK,
    Row,
)
from vmxsim.kvm.emulate_operands import FIRST_HIGH_BYTE, RIP_RELATIVE, Decoded
from vmxsim.kvm.emulate_ops import mov_from_segment, undefined

SEGMENT_PREFIXES = {0x26: 0, 0x2E: 1, 0x36: 2, 0x3E: 3, 0x64: 4, 0x65: 5}
SS, DS, FS = 2, 3, 4
REX_W, REX_R, REX_X, REX_B = 8, 4, 2, 1

BASES_16 = ((3, 6), (3, 7), (5, 6), (5, 7), (6, -1), (7, -1), (5, -1), (3, -1))
"""Base and index of 16-bit addressing: BX+SI, BX+DI, BP+SI, BP+DI, SI, DI, BP, BX."""


class Prefixes(NamedTuple):
    """What stands before the opcode."""

    end: int
    segment: int
    operand: bool
    address: bool
    lock: bool
    rep: int
    rex: int


class Memory(NamedTuple):
    """Where a ModRM operand is: a register, or the parts of an address."""

    end: int
    rm: int = -1
    base: int = -1
    index_reg: int = -1
    scale: int = 1
    disp: int = 0


@lru_cache(maxsize=4096)
def decode(code: bytes, bits: int) -> Decoded | None:
    """The instruction at the start of `code`, or None for one that the emulator does not know."""
    try:
        return _decode(code[:15], bits)
    except IndexError:  # ran off the end
        return None


def _decode(code: bytes, bits: int) -> Decoded | None:
    prefixes = _prefixes(code, bits)
    opcode, at = _opcode(code, prefixes.end)
    row = _row(code, at, opcode, prefixes)
    if row is None or (row.long_only and bits != 64):
        return None
    address_size = _address_size(bits, prefixes.address)
    operand_size = _operand_size(bits, prefixes)
    size = _row_size(row, bits, operand_size, prefixes.rex)
    width = row.width or size
    if width < 0:
        width = min(size, 4)
    reg, memory = 0, Memory(at)
    if row.modrm:
        reg = _register(code[at] >> 3 & 7 | (prefixes.rex & REX_R) << 1, size, prefixes.rex)
        memory = _modrm(code, at, bits, address_size, prefixes.rex)
        if row.memory_only and memory.rm >= 0:
            return None
    elif row.reg_is_low_bits:
        memory = Memory(at, rm=opcode & 7 | (prefixes.rex & REX_B) << 3)
    elif row.imm == MOFFS:
        memory = Memory(at + address_size, disp=_unsigned(code, at, address_size))
    immediate, end = _immediate(code, memory.end, row, operand_size)
    rm = _register(memory.rm, width, prefixes.rex)
    return Decoded(
        undefined if prefixes.lock and not (row.lock and rm < 0) else row.run,
        end,
        bits,
        size,
        2 if row.run is mov_from_segment and rm < 0 else width,
        row.what,
        reg,
        rm,
        *memory[2:],  # base, index_reg, scale, disp
        segment=_segment(prefixes.segment, bits, memory.base),
        address_size=address_size,
        immediate=immediate,
        rep=prefixes.rep,
        mnemonic=row.mnemonic,
    )


def _prefixes(code: bytes, bits: int) -> Prefixes:
    segment, operand, address, lock, rep, rex = -1, False, False, False, 0, 0
    at = 0
    while True:
        byte = code[at]
        if byte == 0x66:
            operand = True
        elif byte == 0x67:
            address = True
        elif byte == 0xF0:
            lock = True
        elif byte in (0xF2, 0xF3):
            rep = byte
        elif byte in SEGMENT_PREFIXES:
            # In 64-bit mode only FS and GS count, and the others do not undo them.
            if bits != 64 or byte >= 0x64:
                segment = SEGMENT_PREFIXES[byte]
        elif bits == 64 and byte & 0xF0 == 0x40:
            rex = byte
            at += 1
            continue
        else:
            return Prefixes(at, segment, operand, address, lock, rep, rex)
        rex = 0  # REX counts only right before the opcode
        at += 1


def _opcode(code: bytes, at: int) -> tuple[int, int]:
    if code[at] != 0x0F:
        return code[at], at + 1
    if code[at + 1] in (0x38, 0x3A):
        return 0x0F0000 | code[at + 1] << 8 | code[at + 2], at + 3
    return 0x0F00 | code[at + 1], at + 2


def _row(code: bytes, at: int, opcode: int, prefixes: Prefixes) -> Row | None:
    mandatory = prefixes.rep or (0x66 if prefixes.operand else 0)
    entry = SSE_OPCODES.get(mandatory << 24 | opcode)
    if entry is None:
        if opcode >> 8 == 0x0F38 and prefixes.rep:  # CRC32 and friends
            return None
        entry = OPCODES.get(opcode)
    if isinstance(entry, Row) or entry is None:
        return entry
    return entry[code[at] >> 3 & 7]


def _register(number: int, size: int, rex: int) -> int:
    """AH, CH, DH and BH are what 4 to 7 mean for bytes without REX."""
    return number + FIRST_HIGH_BYTE - 4 if size == 1 and not rex and 4 <= number <= 7 else number


def _address_size(bits: int, override: bool) -> int:
    if bits == 64:
        return 4 if override else 8
    return 4 if (bits == 32) != override else 2


def _operand_size(bits: int, prefixes: Prefixes) -> int:
    if bits == 64 and prefixes.rex & REX_W:
        return 8
    return 4 if (bits != 16) != prefixes.operand else 2


def _row_size(row: Row, bits: int, operand_size: int, rex: int) -> int:
    if row.size > 0:
        return row.size
    if bits == 64 and (row.size == NEAR or (row.size == STACK and operand_size == 4)):
        return 8
    if row.size == DWORD_UP:
        return 8 if rex & REX_W else 4
    return operand_size


def _modrm(code: bytes, at: int, bits: int, address_size: int, rex: int) -> Memory:
    modrm = code[at]
    mod, rm = modrm >> 6, modrm & 7
    at += 1
    if mod == 3:
        return Memory(at, rm=rm | (rex & REX_B) << 3)
    if address_size == 2:
        return _modrm_16(code, at, mod, rm)
    base, index, scale = rm | (rex & REX_B) << 3, -1, 1
    if rm == 4:
        sib = code[at]
        at += 1
        base = sib & 7 | (rex & REX_B) << 3
        index = sib >> 3 & 7 | (rex & REX_X) << 2
        scale = 1 << (sib >> 6)
        if index == 4:
            index = -1
    if mod == 0 and base & 7 == 5:
        base = RIP_RELATIVE if rm == 5 and bits == 64 else -1
        return Memory(at + 4, -1, base, index, scale, _signed(code, at, 4))
    size = (0, 1, 4)[mod]
    return Memory(at + size, -1, base, index, scale, _signed(code, at, size))


def _modrm_16(code: bytes, at: int, mod: int, rm: int) -> Memory:
    base, index = BASES_16[rm]
    if mod == 0 and rm == 6:
        return Memory(at + 2, disp=_signed(code, at, 2))
    return Memory(at + mod, -1, base, index, 1, _signed(code, at, mod))


def _segment(override: int, bits: int, base: int) -> int:
    """The segment whose base counts: -1 in 64-bit mode unless FS or GS."""
    if override >= 0:
        return override
    if bits == 64:
        return -1
    return SS if base in (4, 5) else DS


def _immediate(code: bytes, at: int, row: Row, operand_size: int) -> tuple[int, int]:
    if row.imm == IMM8:
        return _signed(code, at, 1), at + 1
    if row.imm == IMM16:
        return _unsigned(code, at, 2), at + 2
    if row.imm == IMMZ:
        size = min(operand_size, 4)
        return _signed(code, at, size), at + size
    return 0, at


def _unsigned(code: bytes, at: int, size: int) -> int:
    if at + size > len(code):
        raise IndexError(at)
    return int.from_bytes(code[at : at + size], "little")


def _signed(code: bytes, at: int, size: int) -> int:
    value = _unsigned(code, at, size)
    return value - (1 << 8 * size) if size and value >> 8 * size - 1 else value
