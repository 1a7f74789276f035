"""VM entry in the manual's order: check, load, inject. Only what changed is checked and loaded.

SDM Vol. 3, chapter "VM Entries". A check runs again only if one of the fields it reads was written
since the last successful entry: what the guest itself does to its state cannot break a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

from vmxsim.arch.controls import CpuBased, Secondary
from vmxsim.arch.events import Event, InterruptionInfo
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.traps import TrapKind
from vmxsim.vmx.checks_controls import CONTROL_CHECKS
from vmxsim.vmx.checks_guest import REGISTER_CHECKS, REST_CHECKS
from vmxsim.vmx.checks_host import HOST_CHECKS
from vmxsim.vmx.checks_segments import SEGMENT_CHECKS
from vmxsim.vmx.entry_checks import Check
from vmxsim.vmx.guest_state import LOADED
from vmxsim.vmx.vmcs import Vmcs

GUEST_CHECKS: tuple[Check, ...] = REGISTER_CHECKS + SEGMENT_CHECKS + REST_CHECKS
ENTRY_CHECKS: tuple[Check, ...] = CONTROL_CHECKS + HOST_CHECKS + GUEST_CHECKS
"""Every check, in the manual's order."""

CHECKED: frozenset[int] = frozenset().union(*(each.reads for each in ENTRY_CHECKS))
ARMING: frozenset[int] = frozenset(
    {
        int(F.CPU_BASED_VM_EXEC_CONTROL),
        int(F.SECONDARY_VM_EXEC_CONTROL),
        int(F.CR0_GUEST_HOST_MASK),
    }
)
"""Fields that decide what the engine hands up."""

WATCHED: frozenset[int] = CHECKED | LOADED | ARMING
"""Fields whose change VM entry must look at; the others just hold from the next exit on."""


class Selection(NamedTuple):
    """The checks that a set of changed fields calls for."""

    controls: tuple[Check, ...]
    host: tuple[Check, ...]
    guest: tuple[Check, ...]


def select(changed: Set[int]) -> Selection:
    """The checks that read any of these fields, in order."""
    return Selection(
        *(
            tuple(each for each in checks if not each.reads.isdisjoint(changed))
            for checks in (CONTROL_CHECKS, HOST_CHECKS, GUEST_CHECKS)
        )
    )


def armed_kinds(vmcs: Vmcs) -> frozenset[TrapKind]:
    """The optional kinds of trap that the controls may ask an exit for.

    With a CR0 mask, reads of CR0 must trap so that the guest gets bits of the read shadow.
    Loads of GDTR, IDTR, LDTR and TR always do: the engine takes what a processor refuses.
    """
    kinds = {TrapKind.LGDT, TrapKind.LIDT, TrapKind.LLDT, TrapKind.LTR}
    primary, secondary = vmcs.cpu_based, vmcs.secondary
    if primary & CpuBased.INVLPG_EXITING:
        kinds.add(TrapKind.INVLPG)
    if primary & CpuBased.PAUSE_EXITING or secondary & Secondary.PAUSE_LOOP_EXITING:
        kinds.add(TrapKind.PAUSE)
    mask = vmcs.fields[F.CR0_GUEST_HOST_MASK]
    if primary & CpuBased.CR3_STORE_EXITING or mask:
        kinds.add(TrapKind.MOV_FROM_CR)
    if mask:
        kinds.add(TrapKind.SMSW)
    if secondary & Secondary.WBINVD_EXITING:
        kinds.add(TrapKind.WBINVD)
    if secondary & Secondary.DESCRIPTOR_TABLE_EXITING:
        kinds |= {
            TrapKind.LGDT, TrapKind.LIDT, TrapKind.SGDT, TrapKind.SIDT,
            TrapKind.LLDT, TrapKind.LTR, TrapKind.SLDT, TrapKind.STR,
        }  # fmt: skip
    return frozenset(kinds)


def injected_event(fields: Mapping[int, int]) -> Event | None:
    """The event that the VM-entry interruption information asks for.

    CR2 and DR6 stay as they are: the hypervisor has set them.
    """
    info = fields[F.VM_ENTRY_INTR_INFO_FIELD]
    if not info & InterruptionInfo.VALID:
        return None
    return Event.from_interruption_info(
        info, fields[F.VM_ENTRY_EXCEPTION_ERROR_CODE], fields[F.VM_ENTRY_INSTRUCTION_LEN]
    )
