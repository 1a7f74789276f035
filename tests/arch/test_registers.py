from __future__ import annotations

import pytest

from vmxsim.arch.registers import Cr0, Cr4, Dr6, Efer, Gpr, Rflags


def test_registers_are_numbered_as_instructions_encode_them() -> None:
    assert [register.name for register in Gpr][:8] == [
        "RAX",
        "RCX",
        "RDX",
        "RBX",
        "RSP",
        "RBP",
        "RSI",
        "RDI",
    ]
    assert Gpr.R15 == 15


@pytest.mark.parametrize(
    ("bits", "value"),
    [
        (Rflags.IF, 0x200),
        (Rflags.VM, 0x2_0000),
        (Cr0.PG | Cr0.WP | Cr0.PE, 0x8001_0001),
        (Cr0.RESET, 0x6000_0010),
        (Cr4.PAE | Cr4.VMXE | Cr4.SMEP | Cr4.SMAP, 0x30_2020),
        (Efer.LME | Efer.LMA | Efer.NXE | Efer.SCE, 0xD01),
        (Dr6.BS, 0x4000),
    ],
)
def test_bits_stand_where_the_manual_puts_them(bits: int, value: int) -> None:
    assert bits == value


@pytest.mark.parametrize("word", [Rflags, Cr0, Cr4, Efer])
def test_single_bits_differ_and_all_count_as_defined(word: type) -> None:
    single = [
        bit for name, bit in vars(word).items() if name.isupper() and bit and not bit & bit - 1
    ]
    assert len(set(single)) == len(single)
    assert all(word.DEFINED & bit == bit for bit in single)
