"""Says what an access that left guest-physical memory looks like as an EPT violation.

The engine maps memory slots directly, so an entry either is missing or grants all but writing
(a read-only slot); there are no misconfigurations. SDM Vol. 3, "Exit Qualification for EPT
Violations". Left out: bits 9 to 11 (advanced information), and telling a paging-structure access
from the page's own when the engine names a linear address.
"""

from __future__ import annotations

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.cpu.traps import MemoryTrap
from vmxsim.vmx.records import VmExit

READ = 1 << 0
WRITE = 1 << 1
FETCH = 1 << 2
READABLE = 1 << 3
WRITABLE = 1 << 4
EXECUTABLE = 1 << 5
LINEAR_VALID = 1 << 7
TRANSLATED = 1 << 8

_EPT_VIOLATION = ExitReason.EPT_VIOLATION
_new = tuple.__new__


def ept_violation(trap: MemoryTrap) -> VmExit:
    """The VM exit for one access; instruction length is undefined for it and left 0."""
    _, _, gpa, _, access, _, gva, present = trap
    qualification = 1 << access
    if present:
        qualification |= READABLE | EXECUTABLE
    if gva is None:
        gva = 0
    else:
        qualification |= LINEAR_VALID | TRANSLATED
    return _new(VmExit, (_EPT_VIOLATION, qualification, 0, 0, gva, gpa, 0, 0, 0, 0, trap, False))
