from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import explanations
from vmxsim.arch.exit_reasons import NOT_MODELLED, ExitReason, When
from vmxsim.arch.explanations import (
    CAUSES,
    CONTROL_WORDS,
    CONTROLS,
    FIELDS,
    INSTRUCTION_INFORMATION,
    KVM,
    QUALIFICATIONS,
    Bits,
)
from vmxsim.arch.instruction_info import (
    GdtrIdtrInfo,
    LdtrTrInfo,
    MemoryAddress,
    RandomInfo,
    StringIoInfo,
    SystemSegmentInstruction,
    TableInstruction,
    VmxInstructionInfo,
)
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
from vmxsim.arch.vmcs_fields import VmcsField

EVENTS_AND_ENTRIES = {When.ALWAYS, When.EVENT, When.ENTRY}
FULL = MemoryAddress(segment=7, base=15, index_reg=15, scale=8, address_size=8)
NONE = MemoryAddress(segment=0)


def covered(bits: tuple[Bits, ...]) -> int:
    mask = 0
    for row in bits:
        mask |= (1 << row.high + 1) - (1 << row.low)
    return mask


# Records with every field at its largest: each bit they set has a row, and each row has its bit.
@pytest.mark.parametrize(
    ("reason", "largest"),
    [
        (
            ExitReason.IO_INSTRUCTION,
            IoQualification(8, Direction.IN, True, True, True, 0xFFFF).encode(),
        ),
        (
            ExitReason.CR_ACCESS,
            CrQualification(15, CrAccess.LMSW, True, 15, 0xFFFF).encode(),
        ),
        (ExitReason.DR_ACCESS, DrQualification(7, True, 15).encode()),
        (ExitReason.EPT_VIOLATION, EptQualification(*[True] * 17).encode()),
        (ExitReason.TASK_SWITCH, TaskSwitch(0xFFFF, TaskSwitchSource.TASK_GATE).encode()),
        (ExitReason.MWAIT_INSTRUCTION, MwaitQualification(True).encode()),
        (ExitReason.APIC_ACCESS, ApicAccess(0xFFF, 15).encode() | 1 << 16),
    ],
)
def test_qualification_rows_cover_what_the_record_encodes(reason: ExitReason, largest: int) -> None:
    assert covered(QUALIFICATIONS[reason]) == largest


def test_debug_exceptions_have_their_rows_beside_the_page_faults() -> None:
    rows = tuple(row for row in QUALIFICATIONS[ExitReason.EXCEPTION_NMI] if row.high < 63)
    assert covered(rows) == DebugQualification(15, True, True, True, True).encode()


@pytest.mark.parametrize(
    ("reason", "largest"),
    [
        (ExitReason.VMCLEAR, FULL.encode() | NONE.encode()),
        (ExitReason.INVEPT, VmxInstructionInfo(FULL, 0, 15).encode() | NONE.encode()),
        (
            ExitReason.VMREAD,
            FULL.encode() | NONE.encode() | VmxInstructionInfo(None, 15, 15).encode(),
        ),
        (
            ExitReason.GDTR_IDTR,
            GdtrIdtrInfo(TableInstruction.LIDT, FULL).encode() | NONE.encode(),
        ),
        (
            ExitReason.LDTR_TR,
            LdtrTrInfo(SystemSegmentInstruction.LTR, FULL).encode()
            | NONE.encode()
            | LdtrTrInfo(SystemSegmentInstruction.LTR, None, 15).encode(),
        ),
        (ExitReason.RDRAND, RandomInfo(15, 8).encode() | RandomInfo(0, 4).encode()),
        (ExitReason.IO_INSTRUCTION, StringIoInfo(8, 7).encode()),
    ],
)
def test_instruction_rows_cover_what_the_record_encodes(reason: ExitReason, largest: int) -> None:
    address_size = 7 << 7 if reason is not ExitReason.RDRAND else 0
    assert covered(INSTRUCTION_INFORMATION[reason]) == largest | address_size


@given(st.sampled_from(sorted(QUALIFICATIONS) + sorted(INSTRUCTION_INFORMATION)))
def test_rows_overlap_only_where_formats_share_the_field(reason: ExitReason) -> None:
    for table in (QUALIFICATIONS, INSTRUCTION_INFORMATION):
        seen = 0
        for row in table.get(reason, ()):
            assert 0 <= row.low <= row.high <= 63
            mask = covered((row,))
            assert not seen & mask or reason is ExitReason.EXCEPTION_NMI
            seen |= mask


def test_positions_read_like_the_manuals() -> None:
    assert Bits(31, 16, "").position == "31:16"
    assert Bits(3, 3, "").position == "3"


@pytest.mark.parametrize("word", CONTROL_WORDS)
def test_every_control_is_explained_and_nothing_else(word: type) -> None:
    names = {name for name in vars(word) if name.isupper()}
    assert CONTROLS[word].keys() == names


def test_every_control_word_is_explained() -> None:
    assert CONTROLS.keys() == CONTROL_WORDS.keys()


def test_every_cause_names_its_controls() -> None:
    assert CAUSES.keys() | EVENTS_AND_ENTRIES == set(When)
    for controls in CAUSES.values():
        assert all(name in CONTROLS[word] for word, name in controls)


@pytest.mark.parametrize("when", CAUSES, ids=lambda when: when.name)
def test_the_words_of_a_cause_are_those_of_its_first_control(when: When) -> None:
    wording = CONTROLS[CAUSES[when][0][0]][CAUSES[when][0][1]].wording
    assert wording.casefold() in when.value.casefold()


def test_every_exit_that_runs_produce_says_what_kvm_does() -> None:
    assert {reason for reason in ExitReason if reason not in NOT_MODELLED} <= KVM.keys()
    assert explanations.kvm_handling(ExitReason.PCONFIG).handler == ""


def test_every_field_is_explained_and_halves_by_their_wholes() -> None:
    assert FIELDS.keys() == {field for field in VmcsField if not field.high}
    assert explanations.field_meaning(VmcsField.TSC_OFFSET) + " (bits 63:32)" == (
        explanations.field_meaning(VmcsField.TSC_OFFSET_HIGH)
    )
