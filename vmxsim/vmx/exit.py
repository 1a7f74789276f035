"""VM exit: what is recorded, what is saved, what root mode gets, each only when somebody asks.

SDM Vol. 3, chapter "VM Exits". The VM-exit information fields are read out of the last VmExit, the
guest-state area out of the cpu; an exit itself stores one reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import NamedTuple

from vmxsim.arch.controls import ExitControls
from vmxsim.arch.events import Event, interruption_info
from vmxsim.arch.exit_reasons import FAILED_VMENTRY, ExitReason
from vmxsim.arch.registers import Cr0, Cr4, Dr7, Efer
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.guest_state import Reader
from vmxsim.vmx.records import VmExit

# "Recording VM-Exit Information and Updating VM-Entry Control Fields"


def _reason(exit: VmExit) -> int:
    return exit.reason | FAILED_VMENTRY if exit.failed_entry else int(exit.reason)


EXIT_INFO: dict[int, Callable[[VmExit], int]] = {
    int(F.VM_EXIT_REASON): _reason,
    int(F.EXIT_QUALIFICATION): lambda exit: exit.qualification,
    int(F.VM_EXIT_INSTRUCTION_LEN): lambda exit: exit.instruction_length,
    int(F.VMX_INSTRUCTION_INFO): lambda exit: exit.instruction_info,
    int(F.GUEST_LINEAR_ADDRESS): lambda exit: exit.guest_linear_address,
    int(F.GUEST_PHYSICAL_ADDRESS): lambda exit: exit.guest_physical_address,
    int(F.VM_EXIT_INTR_INFO): lambda exit: exit.intr_info,
    int(F.VM_EXIT_INTR_ERROR_CODE): lambda exit: exit.intr_error_code,
    int(F.IDT_VECTORING_INFO_FIELD): lambda exit: exit.idt_vectoring_info,
    int(F.IDT_VECTORING_ERROR_CODE): lambda exit: exit.idt_vectoring_error_code,
}
"""Where each VM-exit information field stands in the record of the exit."""


def during_delivery(exit: VmExit, event: Event) -> VmExit:
    """An exit that happened while an event was being delivered, with IDT-vectoring information."""
    return exit._replace(
        idt_vectoring_info=interruption_info(event),
        idt_vectoring_error_code=event.error_code or 0,
        instruction_length=event.length if event.software else exit.instruction_length,
    )


def failed_entry(reason: ExitReason, qualification: int, before: VmExit | None) -> VmExit:
    """The exit of a VM entry that failed late: it changes reason and qualification only."""
    failed = VmExit(reason, qualification, failed_entry=True)
    if before is None:
        return failed
    return before._replace(reason=reason, qualification=qualification, failed_entry=True, trap=None)


# "Saving Guest State"


def save_guest_state(
    live: Mapping[int, Reader], guest: Mapping[int, Reader], fields: MutableMapping[int, int]
) -> None:
    """Store into the VMCS what the cpu still has for it: the fields with a live reader."""
    for field in guest.keys() & live.keys():
        if field in fields:
            fields[field] = live[field]()


# "Loading Host State"


class HostState(NamedTuple):
    """The registers of root mode, as far as a VM exit sets them."""

    cr0: int = Cr0.PE | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.PG
    cr3: int = 0
    cr4: int = Cr4.PAE | Cr4.VMXE
    efer: int = Efer.LME | Efer.LMA
    dr7: int = Dr7.FIXED
    rip: int = 0
    rsp: int = 0
    rflags: int = 2
    selectors: tuple[int, ...] = (0, 8, 0, 0, 0, 0, 0, 16)
    """By arch.segments.Segment; LDTR is always null."""
    fs_base: int = 0
    gs_base: int = 0
    tr_base: int = 0
    gdtr_base: int = 0
    idtr_base: int = 0
    sysenter_cs: int = 0
    sysenter_esp: int = 0
    sysenter_eip: int = 0
    pat: int = 0x0007_0406_0007_0406


def load_host_state(fields: Mapping[int, int], before: HostState) -> HostState:
    """Root mode's registers after a VM exit; ``before`` gives what the exit does not load."""
    controls = fields[F.VM_EXIT_CONTROLS]
    wide = Efer.LMA | Efer.LME if controls & ExitControls.HOST_ADDRESS_SPACE_SIZE else 0
    efer = before.efer & ~(Efer.LMA | Efer.LME) | wide
    order = (
        F.HOST_ES_SELECTOR, F.HOST_CS_SELECTOR, F.HOST_SS_SELECTOR, F.HOST_DS_SELECTOR,
        F.HOST_FS_SELECTOR, F.HOST_GS_SELECTOR,
    )  # fmt: skip
    return HostState(
        cr0=fields[F.HOST_CR0],
        cr3=fields[F.HOST_CR3],
        cr4=fields[F.HOST_CR4],
        efer=fields[F.HOST_IA32_EFER] if controls & ExitControls.LOAD_EFER else efer,
        rip=fields[F.HOST_RIP],
        rsp=fields[F.HOST_RSP],
        selectors=(*(fields[field] for field in order), 0, fields[F.HOST_TR_SELECTOR]),
        fs_base=fields[F.HOST_FS_BASE],
        gs_base=fields[F.HOST_GS_BASE],
        tr_base=fields[F.HOST_TR_BASE],
        gdtr_base=fields[F.HOST_GDTR_BASE],
        idtr_base=fields[F.HOST_IDTR_BASE],
        sysenter_cs=fields[F.HOST_IA32_SYSENTER_CS],
        sysenter_esp=fields[F.HOST_IA32_SYSENTER_ESP],
        sysenter_eip=fields[F.HOST_IA32_SYSENTER_EIP],
        pat=fields[F.HOST_IA32_PAT] if controls & ExitControls.LOAD_PAT else before.pat,
    )
