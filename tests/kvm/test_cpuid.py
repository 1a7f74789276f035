"""CPUID: zeros by default, the table when there is one, OSXSAVE by CR4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.cpuid import SIGNIFICANT_INDEX, CpuidEntry, find, has
from vmxsim.arch.registers import Cr4, Gpr
from vmxsim.errors import KvmError

from .conftest import CPUID, HLT, Guest


def ask(guest: Guest, function: int, index: int = 0) -> tuple[int, ...]:
    guest.gpr[Gpr.RAX], guest.gpr[Gpr.RCX] = function, index
    guest.run(CPUID, HLT)
    return tuple(guest.gpr[each] for each in (Gpr.RAX, Gpr.RBX, Gpr.RCX, Gpr.RDX))


def test_without_a_table_every_leaf_is_zero(guest: Guest) -> None:
    assert ask(guest, 0) == (0, 0, 0, 0)
    assert ask(guest, 0x4000_0000) == (0, 0, 0, 0)


def test_answers_with_the_row(guest: Guest) -> None:
    guest.vcpu.set_cpuid2([CpuidEntry(0, 0, 0, 1, 2, 3, 4)])
    assert ask(guest, 0) == (1, 2, 3, 4)
    assert guest.processor.rip == 0x1003


def test_only_the_low_halves_are_looked_at_and_the_upper_ones_cleared(guest: Guest) -> None:
    guest.vcpu.set_cpuid2([CpuidEntry(7, 1, SIGNIFICANT_INDEX, 1, 2, 3, 4)])
    assert ask(guest, 0xAAAA_AAAA_0000_0007, 0xBBBB_BBBB_0000_0001) == (1, 2, 3, 4)


def test_an_index_matters_only_where_the_row_says_so(guest: Guest) -> None:
    rows = [CpuidEntry(2, 0, 0, 9), CpuidEntry(4, 0, 1, 5), CpuidEntry(4, 1, 1, 6)]
    guest.vcpu.set_cpuid2(rows)
    assert ask(guest, 2, 77)[0] == 9
    assert [ask(guest, 4, index)[0] for index in (0, 1, 2)] == [5, 6, 0]


def test_above_the_highest_leaf_the_highest_basic_one_answers(guest: Guest) -> None:
    rows = [CpuidEntry(0, 0, 0, 0xD), CpuidEntry(0xD, 0, 1, 0xAA), CpuidEntry(0xD, 1, 1, 0xBB),
            CpuidEntry(0x8000_0000, 0, 0, 0x8000_0008)]  # fmt: skip
    guest.vcpu.set_cpuid2(rows)
    assert ask(guest, 0x1234)[0] == 0xAA
    assert ask(guest, 0x8000_0009, 1)[0] == 0xBB
    assert ask(guest, 5)[0] == 0


def test_an_unknown_topology_level_names_itself(guest: Guest) -> None:
    guest.vcpu.set_cpuid2([CpuidEntry(0xB, 0, 1, 0, 1, 0x100, 42)])
    assert ask(guest, 0xB, 9) == (0, 0, 9, 42)


def test_osxsave_follows_cr4(guest: Guest) -> None:
    osxsave, xsave = 1 << 27, 1 << 26
    guest.vcpu.set_cpuid2([CpuidEntry(1, 0, 0, 0, 0, xsave | osxsave, 0)])
    assert ask(guest, 1)[2] == xsave
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 = Cr4.OSXSAVE
    guest.vcpu.set_sregs(sregs)
    assert ask(guest, 1)[2] == xsave | osxsave


def test_what_is_offered_is_honest(guest: Guest) -> None:
    table = guest.kvm.get_supported_cpuid()
    for feature in ("LM", "NX", "HYPERVISOR", "SYSCALL"):
        assert has(table, feature), feature
    for feature in ("VMX", "AVX", "X2APIC", "PCID"):
        assert not has(table, feature), feature
    assert find(table, 0x4000_0000).ebx == int.from_bytes(b"KVMK", "little")
    assert find(table, 0x8000_0008).eax & 0xFF <= 39


def test_the_table_can_be_read_back_and_has_a_limit(guest: Guest) -> None:
    table = guest.kvm.get_supported_cpuid()
    guest.vcpu.set_cpuid2(table)
    assert guest.vcpu.get_cpuid2() == table
    with pytest.raises(KvmError, match="at most 256"):
        guest.vcpu.set_cpuid2([CpuidEntry(0, 0)] * 257)


ENTRIES = st.builds(
    CpuidEntry,
    st.sampled_from([0, 1, 4, 7, 0xB, 0xD, 0x8000_0000, 0x8000_0001]),
    st.integers(0, 3),
    st.integers(0, 1),
    *[st.integers(0, 0xFFFF_FFFF)] * 4,
)


@given(st.lists(ENTRIES, max_size=12), st.integers(0, 0x10), st.integers(0, 4))
def test_a_row_that_the_facts_find_is_the_answer(
    table: list[CpuidEntry], function: int, index: int
) -> None:
    guest = Guest()
    # Rows of one function agree whether the index matters, as in every real table.
    flags = {entry.function: entry.flags for entry in reversed(table)}
    table = [entry._replace(flags=flags[entry.function]) for entry in table]
    guest.vcpu.set_cpuid2(table)
    expected = find(table, function, index)
    if expected is not None and function != 1:
        assert ask(guest, function, index) == expected[3:]
    guest.vm.close()
