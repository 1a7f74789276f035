from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import DIALECTS, NOT_MODELLED, ExitReason
from vmxsim.arch.explanations import CONTROLS
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import InputError
from vmxsim.tools import cli
from vmxsim.tools.explain import explain


@pytest.mark.parametrize(
    "what",
    ["30", "0x1e", "IO_INSTRUCTION", "io_instruction", "EXIT_REASON_IO_INSTRUCTION", "exit 30",
     "VMX_REASON_IO", "WHvRunVpExitReasonX64IoPortAccess", "X64IoPortAccess", "handle_io"],
)  # fmt: skip
def test_an_exit_by_any_of_its_names(what: str) -> None:
    told = explain(what)
    assert told.startswith("IO_INSTRUCTION: VM-exit reason 30 (0x1e)\n")
    assert "(UNCONDITIONAL_IO_EXITING, bit 24 of CPU_BASED_VM_EXEC_CONTROL)" in told
    assert "31:16  port number" in told
    assert "in KVM          handle_io:" in told
    assert "VMX_REASON_IO (macOS" in told
    assert "KVM_EXIT_IO (what" in told


def test_an_exit_that_is_not_modelled_says_why() -> None:
    assert f"not modelled: {NOT_MODELLED[ExitReason.PML_FULL]}" in explain("PML_FULL")


def test_a_failed_entry_is_told_apart() -> None:
    assert "FAILED_VMENTRY" in explain("0x80000021")
    assert "FAILED_VMENTRY" not in explain("33")


def test_a_trap_like_exit_leaves_rip_behind_the_instruction() -> None:
    assert "after the instruction (trap-like)" in explain("TPR_BELOW_THRESHOLD")


@pytest.mark.parametrize("what", ["GUEST_RIP", "guest-rip", "0x681e", "field 0x681e"])
def test_a_field_by_name_and_encoding(what: str) -> None:
    told = explain(what)
    assert told.startswith("GUEST_RIP: VMCS field 0x681e\n")
    assert "natural width, guest-state area, index 15; read and written" in told


def test_a_control_field_lists_its_bits() -> None:
    assert "7  HLT exiting (HLT_EXITING)" in explain("CPU_BASED_VM_EXEC_CONTROL")


def test_exit_information_is_read_only() -> None:
    assert "read-only" in explain("VM_EXIT_REASON")


@pytest.mark.parametrize("what", ["error 7", "ENTRY_INVALID_CONTROL_FIELD", "error 0x7"])
def test_an_instruction_error(what: str) -> None:
    assert explain(what).startswith("ENTRY_INVALID_CONTROL_FIELD: VM-instruction error 7\n")


@pytest.mark.parametrize("what", ["HLT_EXITING", "HLT exiting", "hlt-exiting"])
def test_a_control(what: str) -> None:
    told = explain(what)
    assert "bit             7 of CPU_BASED_VM_EXEC_CONTROL (0x4002)" in told
    assert "may be 1 (IA32_VMX_TRUE_PROCBASED_CTLS" in told
    assert "exits it causes HLT (12)" in told


def test_a_control_that_may_not_be_set_says_so() -> None:
    assert "must be 0: reported as not allowed" in explain("ENABLE_PML")


def test_a_name_of_two_things_explains_both() -> None:
    told = explain("ACTIVATE_SECONDARY_CONTROLS")
    assert "of CPU_BASED_VM_EXEC_CONTROL" in told
    assert "of VM_EXIT_CONTROLS" in told


def test_what_leads_to_a_userspace_exit() -> None:
    told = explain("KVM_EXIT_MMIO")
    assert "EPT_VIOLATION (48)" in told
    assert "EPT_MISCONFIG (49)" in told


@pytest.mark.parametrize("what", ["#PF", "PF", "vector 14"])
def test_an_exception(what: str) -> None:
    assert explain(what).startswith("#PF: exception, vector 14\n  error code      yes\n")


def test_an_msr_and_what_it_holds_here() -> None:
    told = explain("0x480")
    assert told.startswith("IA32_VMX_BASIC: model-specific register 0x480\n  value here")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("IO_INSTRUCTON", "nothing is known of 'IO_INSTRUCTON': close to it: IO_INSTRUCTION"),
        ("999", "nothing is known of '999': give an exit reason"),
        ("error 99", "nothing is known of 'error 99'"),
        ("0xfffff", "nothing is known of '0xfffff'"),
        ("", "nothing is known of ''"),
        ("🙂", "nothing is known of"),
    ],
)
def test_the_unknown_is_one_line_with_help(
    what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="nothing is known of"):
        explain(what)
    assert cli.main(["explain", what]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"vmxsim: {message}")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("word", ["30", "error"])
def test_the_command_joins_its_words(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word, "7"] if word == "error" else [word]
    assert cli.main(["explain", *words]) == 0
    assert capsys.readouterr().out == explain(" ".join(words))


def test_everything_with_a_name_can_be_explained() -> None:
    names = [reason.name for reason in ExitReason] + [str(int(reason)) for reason in ExitReason]
    names += [field.name for field in VmcsField] + [hex(field) for field in VmcsField]
    names += [f"error {int(error)}" for error in InstructionError]
    names += [name for rows in CONTROLS.values() for name in rows]
    names += [dialect.hvf for dialect in DIALECTS.values() if dialect.hvf]
    for name in names:
        told = explain(name)
        assert told.endswith("\n"), name
        assert "\n\n\n" not in told, name
