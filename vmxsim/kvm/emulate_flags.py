"""Arithmetic as the ALU does it: operands in, result and the six arithmetic flags out, no state.

SDM Vol. 2, the "Flags Affected" and "Operation" parts of each instruction. Flags that the manual
leaves undefined come out as most processors have them.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.arch.registers import Rflags
from vmxsim.kvm.emulate_operands import MASK, SIGN

CF, PF, AF, ZF, SF, OF = (
    Rflags.CF, Rflags.PF, Rflags.AF, Rflags.ZF, Rflags.SF, Rflags.OF,
)  # fmt: skip
ARITHMETIC = Rflags.ARITHMETIC

PARITY = tuple(0 if bin(byte).count("1") & 1 else PF for byte in range(256))

ADD, OR, ADC, SBB, AND, SUB, XOR, CMP = range(8)
ROL, ROR, RCL, RCR, SHL, SHR, SAL, SAR = range(8)


def signed(value: int, size: int) -> int:
    """The two's complement reading of `size` bytes."""
    return value - (value >> 8 * size - 1 << 8 * size)


def _result_flags(result: int, size: int) -> int:
    flags = PARITY[result & 0xFF]
    if not result:
        return flags | ZF
    return flags | SF if result & SIGN[size] else flags


def add(a: int, b: int, size: int, carry: int = 0) -> tuple[int, int]:
    """ADD, ADC with a carry in."""
    total = a + b + carry
    result = total & MASK[size]
    flags = _result_flags(result, size) | (a ^ b ^ result) & AF
    if total > result:
        flags |= CF
    if (a ^ result) & (b ^ result) & SIGN[size]:
        flags |= OF
    return result, flags


def subtract(a: int, b: int, size: int, borrow: int = 0) -> tuple[int, int]:
    """SUB, CMP, NEG (from 0), SBB with a borrow in."""
    total = a - b - borrow
    result = total & MASK[size]
    flags = _result_flags(result, size) | (a ^ b ^ result) & AF
    if total < 0:
        flags |= CF
    if (a ^ b) & (a ^ result) & SIGN[size]:
        flags |= OF
    return result, flags


def _plain_add(a: int, b: int, size: int, carry: int) -> tuple[int, int]:
    return add(a, b, size)


def _plain_subtract(a: int, b: int, size: int, carry: int) -> tuple[int, int]:
    return subtract(a, b, size)


def _or(a: int, b: int, size: int, carry: int) -> tuple[int, int]:
    return a | b, _result_flags(a | b, size)


def logical_and(a: int, b: int, size: int, carry: int = 0) -> tuple[int, int]:
    """AND, TEST."""
    return a & b, _result_flags(a & b, size)


def _xor(a: int, b: int, size: int, carry: int) -> tuple[int, int]:
    return a ^ b, _result_flags(a ^ b, size)


ALU: tuple[Callable[[int, int, int, int], tuple[int, int]], ...] = (
    _plain_add, _or, add, subtract, logical_and, _plain_subtract, _xor, _plain_subtract,
)  # fmt: skip
"""By ADD to CMP: (a, b, size, carry flag) to (result, flags). CMP's result is not for storing."""


def shift(kind: int, value: int, count: int, size: int, flags: int) -> tuple[int, int]:
    """A shift or rotate by a count already masked to 5 (or 6) bits; all flags kept for count 0."""
    if count == 0:
        return value, flags
    if kind < SHL:
        return _rotate(kind, value, count, size, flags)
    mask, top = MASK[size], 8 * size - 1
    if kind == SHR:
        result, carry = value >> count, value >> count - 1 & 1
        overflow = value >> top & 1
    elif kind == SAR:
        wide = signed(value, size)
        result, carry, overflow = wide >> count & mask, wide >> count - 1 & 1, 0
    else:
        result, carry = value << count & mask, value << count >> top + 1 & 1
        overflow = result >> top ^ carry
    return result, _result_flags(result, size) | carry | (OF if overflow else 0)


def _rotate(kind: int, value: int, count: int, size: int, flags: int) -> tuple[int, int]:
    bits = 8 * size
    top = bits - 1
    if kind >= RCL:  # through carry: a ring of one bit more
        ring, value = bits + 1, value | (flags & CF) << bits
    else:
        ring = bits
    count %= ring
    left = count if kind in (ROL, RCL) else (ring - count) % ring
    turned = (value << left | value >> ring - left) & (1 << ring) - 1
    if kind >= RCL:
        if count == 0:
            return value & MASK[size], flags
        result, carry = turned & MASK[size], turned >> bits
    else:
        result, carry = turned, turned & 1 if kind == ROL else turned >> top
    other = carry if kind in (ROL, RCL) else result >> top - 1 & 1
    overflow = OF if result >> top ^ other else 0
    return result, flags & ~(CF | OF) | carry | overflow


def double_shift(
    left: int, value: int, filler: int, count: int, size: int, flags: int
) -> tuple[int, int]:
    """SHLD (left) or SHRD: bits come in from `filler`."""
    bits = 8 * size
    if count == 0 or count > bits:
        return value, flags
    if left:
        wide = (value << bits | filler) << count
        result, carry = wide >> bits & MASK[size], wide >> 2 * bits & 1
    else:
        wide = (filler << bits | value) >> count - 1
        result, carry = wide >> 1 & MASK[size], wide & 1
    overflow = OF if (result ^ value) & SIGN[size] else 0
    return result, _result_flags(result, size) | carry | overflow


def multiply(a: int, b: int, size: int, is_signed: bool) -> tuple[int, int]:
    """The double-width product, and CF = OF = its upper half matters."""
    if is_signed:
        wide = signed(a, size) * signed(b, size)
        fits = signed(wide & MASK[size], size) == wide
    else:
        wide = a * b
        fits = wide <= MASK[size]
    low = wide & MASK[size]
    flags = _result_flags(low, size) | (0 if fits else CF | OF)
    return wide & (1 << 16 * size) - 1, flags


def divide(dividend: int, divisor: int, size: int, is_signed: bool) -> tuple[int, int] | None:
    """Quotient and remainder of a double-width dividend; None means #DE."""
    if divisor == 0:
        return None
    if not is_signed:
        quotient, remainder = divmod(dividend, divisor)
        return (quotient, remainder) if quotient <= MASK[size] else None
    dividend, divisor = signed(dividend, 2 * size), signed(divisor, size)
    quotient, remainder = divmod(abs(dividend), abs(divisor))  # truncates towards zero
    if (dividend < 0) != (divisor < 0):
        quotient = -quotient
    if dividend < 0:
        remainder = -remainder
    if not -SIGN[size] <= quotient < SIGN[size]:
        return None
    return quotient & MASK[size], remainder & MASK[size]


def condition(code: int, flags: int) -> bool:
    """Condition 0 to 15 of Jcc, SETcc and CMOVcc: O B Z BE S P L LE and their opposites."""
    which = code >> 1
    if which < 6:
        held = bool(flags & (OF, CF, ZF, CF | ZF, SF, PF)[which])
    else:
        held = bool(flags & SF) != bool(flags & OF) or (which == 7 and bool(flags & ZF))
    return held != bool(code & 1)
