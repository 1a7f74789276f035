from __future__ import annotations

import pytest

from vmxsim.arch import controls
from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary

WORDS = [
    PinBased,
    CpuBased,
    Secondary,
    controls.Tertiary,
    ExitControls,
    controls.SecondaryExitControls,
    EntryControls,
]


@pytest.mark.parametrize("word", WORDS)
def test_every_control_is_one_bit_of_its_own(word: type) -> None:
    bits = [bit for name, bit in vars(word).items() if name.isupper()]
    assert all(bit and not bit & bit - 1 for bit in bits)
    assert len(set(bits)) == len(bits)
    assert len(controls.names(word, sum(bits))) == len(bits)


@pytest.mark.parametrize(
    ("control", "value"),
    [
        (PinBased.EXTERNAL_INTERRUPT_EXITING, 0x1),
        (CpuBased.HLT_EXITING, 0x80),
        (CpuBased.USE_IO_BITMAPS, 0x0200_0000),
        (CpuBased.ACTIVATE_SECONDARY_CONTROLS, 0x8000_0000),
        (Secondary.ENABLE_EPT, 0x2),
        (Secondary.UNRESTRICTED_GUEST, 0x80),
        (ExitControls.HOST_ADDRESS_SPACE_SIZE, 0x200),
        (ExitControls.SAVE_DEBUG_CONTROLS, 0x4),
        (EntryControls.IA32E_MODE_GUEST, 0x200),
        (EntryControls.LOAD_EFER, 0x8000),
    ],
)
def test_known_controls(control: int, value: int) -> None:
    assert control == value


def test_names_come_from_bit_0_up() -> None:
    value = CpuBased.USE_MSR_BITMAPS | CpuBased.HLT_EXITING
    assert controls.names(CpuBased, value) == ["HLT_EXITING", "USE_MSR_BITMAPS"]
