"""The frozen records VMX operation hands up: a VM exit, or the failure of a VMX instruction."""

from __future__ import annotations

from typing import NamedTuple

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.cpu.traps import Trap
from vmxsim.errors import VmxsimError


class VmExit(NamedTuple):
    """One VM exit: the VM-exit information fields, and the trap it came from.

    ``failed_entry`` means bit 31 of the exit reason is set: the guest never ran.
    """

    reason: ExitReason
    qualification: int = 0
    instruction_length: int = 0
    instruction_info: int = 0
    guest_linear_address: int = 0
    guest_physical_address: int = 0
    intr_info: int = 0
    intr_error_code: int = 0
    idt_vectoring_info: int = 0
    idt_vectoring_error_code: int = 0
    trap: Trap | None = None
    failed_entry: bool = False


class VmFail(NamedTuple):
    """A VMX instruction failed: VMfailValid with its number, or VMfailInvalid (``error`` None).

    ``check`` names the failed VM-entry check, ``message`` says which field, its value, and what
    would satisfy the check.
    """

    error: InstructionError | None
    check: str = ""
    message: str = ""


class VmxFault(VmxsimError):
    """A VMX instruction raised an exception in root mode: put the processor in the mode it needs.

    ``vector`` is the exception: 6 for #UD (not in VMX operation), 13 for #GP.
    """

    def __init__(self, vector: int, message: str) -> None:
        super().__init__(message)
        self.vector = vector


class VmxAbort(VmxsimError):
    """A VM exit could not complete, and the processor shut down: mend the VM-exit MSR areas.

    ``indicator`` is the VMX-abort indicator. SDM Vol. 3, section "VMX Aborts".
    """

    def __init__(self, indicator: int, message: str) -> None:
        super().__init__(message)
        self.indicator = indicator
