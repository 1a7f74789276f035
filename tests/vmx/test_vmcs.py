"""The VMCS: which fields there are, how wide, and the copies the exit path reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import capabilities
from vmxsim.arch.controls import CpuBased, Secondary
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.vmcs import (
    FIELDS_OF_CONTROLS,
    MASKS,
    SUPPORTED,
    LaunchState,
    Vmcs,
    is_guest_state,
    is_high,
    is_read_only,
)

from .valid_guests import long_mode_guest


def test_a_new_vmcs_is_clear_and_zero() -> None:
    vmcs = Vmcs(0x3000)
    assert vmcs.address == 0x3000
    assert vmcs.launch_state is LaunchState.CLEAR
    assert vmcs.last_exit is None
    assert set(vmcs.fields) == set(SUPPORTED)
    assert not any(vmcs.fields.values())


@given(st.sampled_from([F(field) for field in SUPPORTED]), st.integers(0, (1 << 70) - 1))
def test_a_field_keeps_as_many_bits_as_it_is_wide(field: F, value: int) -> None:
    vmcs = Vmcs()
    vmcs.write(field, value)
    assert vmcs.read(field) == value & (1 << field.width.bits) - 1


def test_the_high_half_of_a_64_bit_field_is_a_field_of_its_own() -> None:
    vmcs = Vmcs()
    vmcs.write(F.TSC_OFFSET, 0x1111_1111_2222_2222)
    vmcs.write(F.TSC_OFFSET_HIGH, 0x9_3333_3333)
    assert vmcs.read(F.TSC_OFFSET) == 0x3333_3333_2222_2222
    assert vmcs.read(F.TSC_OFFSET_HIGH) == 0x3333_3333
    assert F.TSC_OFFSET_HIGH not in vmcs.fields


@pytest.mark.parametrize(
    ("field", "supported"),
    [
        (F.GUEST_RIP, True),
        (F.EPT_POINTER, True),
        (F.EPT_POINTER_HIGH, True),
        (F.GUEST_RIP + 1, False),
        (F.TPR_THRESHOLD, False),
        (F.POSTED_INTR_NV, False),
        (F.SHARED_EPT_POINTER, False),
        (0x6FFE, False),
        (0x1_0000, False),
    ],
)
def test_only_fields_of_this_processor_are_supported(field: int, supported: bool) -> None:
    assert Vmcs().supports(field) is supported


def test_fields_go_with_the_controls_they_belong_to() -> None:
    for msr, control, fields in FIELDS_OF_CONTROLS:
        allowed = capabilities.value(msr) >> 32 & control != 0
        for field in fields:
            assert (field in SUPPORTED) is (allowed and not field.high), field.name


def test_the_copies_follow_the_fields() -> None:
    vmcs = Vmcs()
    for field, value in long_mode_guest().items():
        vmcs.write(field, value)
    assert vmcs.pin_based == vmcs.fields[F.PIN_BASED_VM_EXEC_CONTROL]
    assert vmcs.cpu_based == vmcs.fields[F.CPU_BASED_VM_EXEC_CONTROL]
    assert vmcs.exit_controls == vmcs.fields[F.VM_EXIT_CONTROLS]
    assert vmcs.entry_controls == vmcs.fields[F.VM_ENTRY_CONTROLS]
    assert vmcs.secondary == Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST
    vmcs.write(F.EXCEPTION_BITMAP, 1 << 14)
    assert vmcs.exception_bitmap == 1 << 14


def test_secondary_controls_count_only_when_activated() -> None:
    vmcs = Vmcs()
    vmcs.write(F.SECONDARY_VM_EXEC_CONTROL, Secondary.ENABLE_EPT)
    assert vmcs.secondary == 0
    vmcs.write(F.CPU_BASED_VM_EXEC_CONTROL, CpuBased.ACTIVATE_SECONDARY_CONTROLS)
    assert vmcs.secondary == Secondary.ENABLE_EPT


@pytest.mark.parametrize("field", [F(field) for field in SUPPORTED], ids=lambda field: field.name)
def test_the_encoding_tells_the_area(field: F) -> None:
    assert is_high(field) is False
    assert is_read_only(field) is field.read_only
    assert is_guest_state(field) is (field.area == 2)
    assert MASKS[field] == (1 << field.width.bits) - 1
