"""EPT violations: qualification and addresses."""

from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.qualifications import EptQualification
from vmxsim.cpu.traps import MemoryTrap, TrapKind
from vmxsim.vmx.ept import ept_violation

LINEAR = {"linear_address_valid": True, "translated": True}
READ_ONLY = {"readable": True, "executable": True}


@pytest.mark.parametrize(
    ("access", "gva", "present", "expected"),
    [
        (0, 0x5000, False, EptQualification(read=True, **LINEAR)),
        (1, 0x5000, False, EptQualification(write=True, **LINEAR)),
        (2, 0x5000, False, EptQualification(fetch=True, **LINEAR)),
        (1, 0x5000, True, EptQualification(write=True, **READ_ONLY, **LINEAR)),
        (0, None, False, EptQualification(read=True)),
        (0, 0, False, EptQualification(read=True, **LINEAR)),
    ],
)
def test_qualification_and_addresses(
    access: int, gva: int | None, present: bool, expected: EptQualification
) -> None:
    trap = MemoryTrap(TrapKind.MEMORY, 0x1000, 0xFED0_0000, 4, access, 7, gva, present)
    vm_exit = ept_violation(trap)
    assert vm_exit.reason is ExitReason.EPT_VIOLATION
    assert EptQualification.decode(vm_exit.qualification) == expected
    assert vm_exit.guest_physical_address == 0xFED0_0000
    assert vm_exit.guest_linear_address == (gva or 0)
    assert vm_exit.trap is trap
