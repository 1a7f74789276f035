from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import capabilities
from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.vmcs_fields import VmcsField

CONTROL_MSRS = [
    Msr.IA32_VMX_PINBASED_CTLS,
    Msr.IA32_VMX_PROCBASED_CTLS,
    Msr.IA32_VMX_EXIT_CTLS,
    Msr.IA32_VMX_ENTRY_CTLS,
    Msr.IA32_VMX_PROCBASED_CTLS2,
    Msr.IA32_VMX_TRUE_PINBASED_CTLS,
    Msr.IA32_VMX_TRUE_PROCBASED_CTLS,
    Msr.IA32_VMX_TRUE_EXIT_CTLS,
    Msr.IA32_VMX_TRUE_ENTRY_CTLS,
]


def bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# SDM Vol. 3, "Reserved Controls and Default Settings".
@pytest.mark.parametrize(
    ("msr", "default1"),
    [
        (Msr.IA32_VMX_PINBASED_CTLS, bits(1, 2, 4)),
        (Msr.IA32_VMX_PROCBASED_CTLS, bits(1, 4, 5, 6, 8, 13, 14, 15, 16, 26)),
        (Msr.IA32_VMX_EXIT_CTLS, bits(*range(9), 10, 11, 13, 14, 16, 17)),
        (Msr.IA32_VMX_ENTRY_CTLS, bits(*range(9), 12)),
        (Msr.IA32_VMX_TRUE_PINBASED_CTLS, bits(1, 2, 4)),
        (Msr.IA32_VMX_TRUE_PROCBASED_CTLS, bits(1, 4, 5, 6, 8, 13, 14, 26)),
        (Msr.IA32_VMX_TRUE_EXIT_CTLS, bits(0, 1, *range(3, 9), 10, 11, 13, 14, 16, 17)),
        (Msr.IA32_VMX_TRUE_ENTRY_CTLS, bits(0, 1, *range(3, 9), 12)),
        (Msr.IA32_VMX_PROCBASED_CTLS2, 0),
    ],
)
def test_default1_class(msr: Msr, default1: int) -> None:
    assert capabilities.value(msr) & 0xFFFF_FFFF == default1


@given(st.sampled_from(CONTROL_MSRS), st.integers(0, 0xFFFF_FFFF))
def test_adjusting_gives_controls_that_are_accepted_and_changes_no_free_bit(
    msr: Msr, wanted: int
) -> None:
    capability = capabilities.value(msr)
    adjusted = capabilities.adjust(capability, wanted)
    assert capabilities.violations(capability, adjusted) == 0
    free = capability >> 32 & ~capability
    assert adjusted & free == wanted & free
    assert capabilities.violations(capability, wanted) == adjusted ^ wanted


@pytest.mark.parametrize(
    ("msr", "allowed", "refused"),
    [
        (
            Msr.IA32_VMX_TRUE_PINBASED_CTLS,
            PinBased.EXTERNAL_INTERRUPT_EXITING,
            PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS | PinBased.ACTIVATE_PREEMPTION_TIMER,
        ),
        (
            Msr.IA32_VMX_TRUE_PROCBASED_CTLS,
            CpuBased.HLT_EXITING | CpuBased.USE_IO_BITMAPS | CpuBased.ACTIVATE_SECONDARY_CONTROLS,
            CpuBased.USE_TPR_SHADOW | CpuBased.MONITOR_TRAP_FLAG | CpuBased.NMI_WINDOW_EXITING,
        ),
        (
            Msr.IA32_VMX_PROCBASED_CTLS2,
            Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST | Secondary.ENABLE_XSAVES,
            Secondary.ENABLE_VM_FUNCTIONS | Secondary.VMCS_SHADOWING | Secondary.ENABLE_PML,
        ),
        (
            Msr.IA32_VMX_TRUE_EXIT_CTLS,
            ExitControls.HOST_ADDRESS_SPACE_SIZE | ExitControls.ACKNOWLEDGE_INTERRUPT_ON_EXIT,
            ExitControls.LOAD_PERF_GLOBAL_CTRL | ExitControls.SAVE_PREEMPTION_TIMER,
        ),
        (
            Msr.IA32_VMX_TRUE_ENTRY_CTLS,
            EntryControls.IA32E_MODE_GUEST | EntryControls.LOAD_EFER,
            EntryControls.ENTRY_TO_SMM | EntryControls.LOAD_PERF_GLOBAL_CTRL,
        ),
    ],
)
def test_what_is_modelled_is_allowed_and_the_rest_refused(
    msr: Msr, allowed: int, refused: int
) -> None:
    may_be_1 = capabilities.value(msr) >> 32
    assert may_be_1 & allowed == allowed
    assert may_be_1 & refused == 0


@pytest.mark.parametrize("name", ["PINBASED", "PROCBASED", "EXIT", "ENTRY"])
def test_true_msrs_differ_only_in_what_may_be_0(name: str) -> None:
    plain = capabilities.value(Msr[f"IA32_VMX_{name}_CTLS"])
    true = capabilities.value(Msr[f"IA32_VMX_TRUE_{name}_CTLS"])
    assert plain >> 32 == true >> 32
    assert true & ~plain == 0


def test_vmcs_enum_names_the_highest_index() -> None:
    highest = max(field.index for field in VmcsField)
    assert capabilities.value(Msr.IA32_VMX_VMCS_ENUM) == highest << 1


def test_what_must_be_1_may_be_1() -> None:
    assert capabilities.CR0_FIXED0 & ~capabilities.CR0_FIXED1 == 0
    assert capabilities.CR4_FIXED0 & ~capabilities.CR4_FIXED1 == 0


def test_basic() -> None:
    basic = capabilities.value(Msr.IA32_VMX_BASIC)
    assert basic & 0x7FFF_FFFF == capabilities.VMCS_REVISION
    assert basic >> 31 & 1 == 0
    assert basic >> 32 & 0x1FFF == 4096
    assert basic >> 50 & 0xF == 6
    assert basic >> 54 == 3


def test_an_msr_that_is_not_there_has_no_value() -> None:
    for msr in (Msr.IA32_VMX_VMFUNC, Msr.IA32_VMX_PROCBASED_CTLS3, Msr.IA32_EFER):
        with pytest.raises(KeyError):
            capabilities.value(msr)
