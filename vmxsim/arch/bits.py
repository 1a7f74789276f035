"""Bit arithmetic in the manual's notation: fields, masks, sign extension, canonical form."""

from __future__ import annotations

MASK_16 = 0xFFFF
MASK_32 = 0xFFFF_FFFF
MASK_64 = 0xFFFF_FFFF_FFFF_FFFF


def bit(number: int) -> int:
    """The value with only this bit set."""
    return 1 << number


def mask(width: int) -> int:
    """The value with the low ``width`` bits set."""
    return (1 << width) - 1


def bits(value: int, low: int, high: int) -> int:
    """The field that the manual writes as high:low, both ends included."""
    return value >> low & (1 << high - low + 1) - 1


def sign_extend(value: int, width: int, to: int = 64) -> int:
    """Copy bit ``width - 1`` upwards; the result is unsigned, ``to`` bits wide."""
    value &= (1 << width) - 1
    if value >> width - 1:
        value |= (1 << to) - (1 << width)
    return value


def signed(value: int, width: int) -> int:
    """The value read as a two's-complement number of ``width`` bits."""
    value &= (1 << width) - 1
    return value - (1 << width) if value >> width - 1 else value


def canonical(address: int, width: int = 48) -> bool:
    """Whether bits 63 to ``width - 1`` are all the same; 57 is the width with LA57."""
    return sign_extend(address, width) == address
