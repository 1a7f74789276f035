from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.qualifications import (
    ApicAccess,
    CrAccess,
    CrQualification,
    DebugQualification,
    Direction,
    DrQualification,
    EptQualification,
    IoQualification,
    MwaitQualification,
    TaskSwitch,
    TaskSwitchSource,
)

Qualification = (
    IoQualification
    | CrQualification
    | DrQualification
    | EptQualification
    | ApicAccess
    | TaskSwitch
    | DebugQualification
    | MwaitQualification
)
FLAG = st.booleans()
GPR = st.integers(0, 15)
WORD = st.integers(0, 0xFFFF)
QUALIFICATIONS = st.one_of(
    st.builds(
        IoQualification,
        st.sampled_from([1, 2, 4]),
        st.sampled_from(Direction),
        FLAG,
        FLAG,
        FLAG,
        WORD,
    ),
    st.builds(CrQualification, GPR, st.sampled_from(CrAccess), FLAG, GPR, WORD),
    st.builds(DrQualification, st.integers(0, 7), FLAG, GPR),
    st.lists(FLAG, min_size=17, max_size=17).map(lambda flags: EptQualification(*flags)),
    st.builds(ApicAccess, st.integers(0, 0xFFF), st.integers(0, 15)),
    st.builds(TaskSwitch, WORD, st.sampled_from(TaskSwitchSource)),
    st.builds(DebugQualification, GPR, FLAG, FLAG, FLAG, FLAG),
    st.builds(MwaitQualification, FLAG),
)


@given(QUALIFICATIONS)
def test_decode_undoes_encode(qualification: Qualification) -> None:
    decoded = type(qualification).decode(qualification.encode())
    assert decoded == qualification
    assert [type(value) for value in decoded] == [type(value) for value in qualification]


@given(QUALIFICATIONS, st.integers(0, (1 << 64) - 1))
def test_any_number_decodes_and_then_stays(qualification: Qualification, number: int) -> None:
    kind = type(qualification)
    decoded = kind.decode(number)
    assert kind.decode(decoded.encode()) == decoded


@pytest.mark.parametrize(
    ("qualification", "number"),
    [
        (IoQualification(1, Direction.OUT, port=0x3F8), 0x3F8_0000),
        (IoQualification(1, Direction.IN, immediate=True, port=0x60), 0x60_0048),
        (IoQualification(4, Direction.IN, string=True, rep=True, port=0x1F0), 0x1F0_003B),
        (CrQualification(0, CrAccess.MOV_TO, gpr=3), 0x300),
        (CrQualification(3, CrAccess.MOV_FROM, gpr=0), 0x13),
        (CrQualification(0, CrAccess.CLTS), 0x20),
        (CrQualification(0, CrAccess.LMSW, True, 0, 0x1234), 0x1234_0070),
        (DrQualification(7, True, 1), 0x117),
        (EptQualification(write=True, linear_address_valid=True, translated=True), 0x182),
        (EptQualification(fetch=True, readable=True, writable=True), 0x1C),
        (TaskSwitch(0x28, TaskSwitchSource.TASK_GATE), 0xC000_0028),
        (DebugQualification(breakpoints=1, single_step=True), 0x4001),
        (ApicAccess(0xB0, 1), 0x10B0),
    ],
)
def test_known_qualifications(qualification: Qualification, number: int) -> None:
    assert qualification.encode() == number
