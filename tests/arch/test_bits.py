from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import bits


@given(st.integers(0, bits.MASK_64), st.integers(0, 63), st.integers(0, 63))
def test_a_field_is_what_its_bits_say_one_by_one(value: int, a: int, b: int) -> None:
    low, high = min(a, b), max(a, b)
    naive = sum((value >> n & 1) << n - low for n in range(low, high + 1))
    assert bits.bits(value, low, high) == naive


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_sign_extension_and_signed_are_inverse(number: int) -> None:
    extended = bits.sign_extend(number & bits.MASK_32, 32)
    assert extended == number & bits.MASK_64
    assert bits.signed(extended, 64) == number


@pytest.mark.parametrize(
    ("address", "width", "expected"),
    [
        (0, 48, True),
        (0x7FFF_FFFF_FFFF, 48, True),
        (0x8000_0000_0000, 48, False),
        (0xFFFF_7FFF_FFFF_FFFF, 48, False),
        (0xFFFF_8000_0000_0000, 48, True),
        (0x8000_0000_0000, 57, True),
        (0x0100_0000_0000_0000, 57, False),
        (0xFF00_0000_0000_0000, 57, True),
    ],
)
def test_canonical(address: int, width: int, expected: bool) -> None:
    assert bits.canonical(address, width) is expected


def test_bit_and_mask() -> None:
    assert bits.bit(5) == 32
    assert bits.mask(5) == 31
