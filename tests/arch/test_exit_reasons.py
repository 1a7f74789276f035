from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import DIALECTS, NOT_MODELLED, ExitReason

RESERVED = {35, 38, 42, 71, 82, 83}
PRODUCED = """
    EXCEPTION_NMI EXTERNAL_INTERRUPT TRIPLE_FAULT INTERRUPT_WINDOW CPUID GETSEC HLT INVD INVLPG
    RDPMC RDTSC VMCALL VMCLEAR VMLAUNCH VMPTRLD VMPTRST VMREAD VMRESUME VMWRITE VMOFF VMON
    CR_ACCESS DR_ACCESS IO_INSTRUCTION MSR_READ MSR_WRITE INVALID_STATE MSR_LOAD_FAIL
    MWAIT_INSTRUCTION MONITOR_INSTRUCTION PAUSE_INSTRUCTION GDTR_IDTR LDTR_TR EPT_VIOLATION INVEPT
    RDTSCP INVVPID WBINVD XSETBV RDRAND INVPCID VMFUNC RDSEED
"""


def test_every_number_but_the_reserved_ones_is_a_row() -> None:
    assert {int(reason) for reason in ExitReason} == set(range(86)) - RESERVED


@pytest.mark.parametrize("reason", ExitReason, ids=lambda reason: reason.name)
def test_a_row_says_what_it_is_in_one_sentence(reason: ExitReason) -> None:
    assert reason.summary.endswith(".")
    assert reason.summary[0].isupper()
    assert reason.when.value


def test_trap_like_exits() -> None:
    trap_like = [reason.name for reason in ExitReason if reason.trap_like]
    assert trap_like == ["TPR_BELOW_THRESHOLD", "EOI_INDUCED", "APIC_WRITE", "BUS_LOCK"]


def test_what_is_produced_and_what_is_excused_is_everything() -> None:
    produced = {ExitReason[name] for name in PRODUCED.split()}
    assert not produced & NOT_MODELLED.keys()
    assert produced | NOT_MODELLED.keys() == set(ExitReason)


# ARCHITECTURE's five dialects.
@pytest.mark.parametrize(
    ("number", "name", "hvf", "whpx", "kvm"),
    [
        (30, "IO_INSTRUCTION", "IO", "X64IoPortAccess", "KVM_EXIT_IO"),
        (12, "HLT", "HLT", "X64Halt", "KVM_EXIT_HLT"),
        (48, "EPT_VIOLATION", "EPT_VIOLATION", "MemoryAccess", "KVM_EXIT_MMIO"),
        (10, "CPUID", "CPUID", "X64Cpuid", ""),
        (31, "MSR_READ", "RDMSR", "X64MsrAccess", "KVM_EXIT_X86_RDMSR"),
        (7, "INTERRUPT_WINDOW", "IRQ_WND", "X64InterruptWindow", "KVM_EXIT_IRQ_WINDOW_OPEN"),
        (2, "TRIPLE_FAULT", "TRIPLE_FAULT", "UnrecoverableException", "KVM_EXIT_SHUTDOWN"),
    ],
)
def test_dialects(number: int, name: str, hvf: str, whpx: str, kvm: str) -> None:
    reason = ExitReason(number)
    assert reason.name == name
    assert DIALECTS[reason] == (hvf, whpx, kvm)
