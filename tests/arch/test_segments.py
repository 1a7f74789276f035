from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.segments import (
    AccessRights,
    Descriptor,
    Gate,
    Segment,
    SegmentRegister,
    SystemType,
    real_mode_segment,
)

RIGHTS = st.integers(0, 0xFFFF).map(lambda value: value & 0xF0FF)


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xF_FFFF), RIGHTS)
def test_descriptors_survive_memory(base: int, limit: int, rights: int) -> None:
    if rights & AccessRights.G:
        limit = limit << 12 | 0xFFF
    descriptor = Descriptor(base, limit, rights)
    assert Descriptor.from_bytes(descriptor.to_bytes()) == descriptor


@given(st.integers(0, (1 << 64) - 1))
def test_a_system_descriptor_of_ia32e_mode_has_64_bits_of_base(base: int) -> None:
    descriptor = Descriptor(base, 0x67, 0x8B)
    raw = descriptor.to_bytes(16)
    assert len(raw) == 16
    assert Descriptor.from_bytes(raw) == descriptor


@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0xFFFF),
    st.integers(0, 15),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 7),
    st.booleans(),
)
def test_gates_survive_memory(
    offset: int, selector: int, kind: int, dpl: int, present: bool, ist: int, system: bool
) -> None:
    gate = Gate(offset, selector, kind, dpl, present, ist, system)
    assert Gate.from_bytes(gate.to_bytes(16)) == gate
    short = gate._replace(offset=offset & 0xFFFF_FFFF, ist=0)
    assert Gate.from_bytes(short.to_bytes(8)) == short


@pytest.mark.parametrize(
    ("raw", "base", "limit", "rights"),
    [
        ("ffff0000009bcf00", 0, 0xFFFF_FFFF, 0xC09B),
        ("ffff00000093cf00", 0, 0xFFFF_FFFF, 0xC093),
        ("000000000098 2000", 0, 0, 0x2098),
        ("67000010 56890012", 0x1256_1000, 0x67, 0x0089),
    ],
)
def test_known_descriptors(raw: str, base: int, limit: int, rights: int) -> None:
    assert Descriptor.from_bytes(bytes.fromhex(raw)) == (base, limit, rights)


def test_what_a_descriptor_is() -> None:
    code = Descriptor(0, 0xFFFF_FFFF, 0xC09B)
    data = Descriptor(0, 0xFFFF_FFFF, 0xC0F3)
    tss = Descriptor(0, 0x67, 0x89)
    conforming = Descriptor(0, 0xFFFF, 0x9C)
    assert (code.code, code.readable, code.writable, code.conforming) == (True, True, False, False)
    assert (data.code, data.readable, data.writable, data.dpl) == (False, True, True, 3)
    assert (tss.system, tss.present, tss.type) == (True, True, SystemType.TSS)
    assert (conforming.conforming, conforming.readable) == (True, False)
    assert code.register(8) == SegmentRegister(8, 0, 0xFFFF_FFFF, 0xC09B)


def test_a_64_bit_interrupt_gate() -> None:
    gate = Gate.from_bytes(bytes.fromhex("34120800 018e 7856 f0debc9a 00000000"))
    assert gate == Gate(0x9ABC_DEF0_5678_1234, 8, SystemType.INTERRUPT_GATE, 0, True, 1)


def test_segment_registers() -> None:
    assert [segment.name for segment in Segment] == [
        "ES",
        "CS",
        "SS",
        "DS",
        "FS",
        "GS",
        "LDTR",
        "TR",
    ]
    assert real_mode_segment(0xF000, code=True) == (0xF000, 0xF0000, 0xFFFF, 0x9B)
    null = SegmentRegister(0, 0, 0, AccessRights.UNUSABLE)
    user = SegmentRegister(0x1B, 0, 0xFFFF_FFFF, 0xC0FB)
    assert (null.unusable, user.unusable, user.dpl, user.type) == (True, False, 3, 0xB)
