from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import msrs
from vmxsim.arch.msrs import Msr


@given(st.lists(st.sampled_from([0, 1, 4, 5, 6, 7]), min_size=8, max_size=8), st.integers(0, 7))
def test_a_pat_is_valid_until_one_entry_is_not_a_memory_type(types: list[int], at: int) -> None:
    pat = int.from_bytes(bytes(types), "little")
    assert msrs.valid_pat(pat)
    for bad in (2, 3, 8, 0xFF):
        damaged = bytes([*types[:at], bad, *types[at + 1 :]])
        assert not msrs.valid_pat(int.from_bytes(damaged, "little"))


def test_names() -> None:
    assert msrs.name(0xC000_0080) == "IA32_EFER"
    assert msrs.name(0x1234_5678) == "0x12345678"


def test_reset_values_are_valid() -> None:
    assert msrs.valid_pat(msrs.PAT_RESET)
    assert msrs.APIC_BASE_RESET == 0xFEE0_0900


def test_capability_msrs_cannot_be_written() -> None:
    assert Msr.IA32_VMX_BASIC in msrs.READ_ONLY_MSRS
    assert Msr.IA32_VMX_EXIT_CTLS2 in msrs.READ_ONLY_MSRS
    assert Msr.IA32_EFER not in msrs.READ_ONLY_MSRS
    assert not msrs.READ_ONLY_MSRS & msrs.WRITABLE_BITS.keys()


def test_memory_types_of_mtrrs() -> None:
    assert [kind for kind in range(256) if msrs.valid_mtrr_type(kind)] == [0, 1, 4, 5, 6]
