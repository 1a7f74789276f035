"""VMCSs that enter, one for each kind of guest, as plain dictionaries of fields."""

from __future__ import annotations

from vmxsim.arch.capabilities import adjust, value
from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Efer
from vmxsim.arch.segments import AccessRights
from vmxsim.arch.vmcs_fields import VmcsField as F

VMXON, VMCS, OTHER_VMCS = 0x70_0000_0000, 0x70_0000_1000, 0x70_0000_2000
"""Regions where no memory is: root mode's own."""

MEMORY = 0x10000


def controls(msr: Msr, wanted: int) -> int:
    """A control word: what is wanted, and what is required."""
    return adjust(value(msr), wanted)


def host_state() -> dict[int, int]:
    """A 64-bit host."""
    return {
        F.HOST_CR0: Cr0.PE | Cr0.NE | Cr0.PG | Cr0.ET,
        F.HOST_CR3: 0x1000,
        F.HOST_CR4: Cr4.PAE | Cr4.VMXE,
        F.HOST_CS_SELECTOR: 0x8,
        F.HOST_SS_SELECTOR: 0x10,
        F.HOST_DS_SELECTOR: 0x10,
        F.HOST_ES_SELECTOR: 0x10,
        F.HOST_TR_SELECTOR: 0x18,
        F.HOST_FS_BASE: 0xFFFF_8000_0000_0000,
        F.HOST_RIP: 0xFFFF_8000_0000_1000,
        F.HOST_RSP: 0xFFFF_8000_0000_2000,
        F.HOST_IA32_PAT: 0x0007_0406_0007_0406,
        F.HOST_IA32_EFER: Efer.LME | Efer.LMA,
    }


def long_mode_guest() -> dict[int, int]:
    """A 64-bit guest at CPL 0, with everything loaded and saved that the controls offer."""
    fields = {
        F.PIN_BASED_VM_EXEC_CONTROL: controls(
            Msr.IA32_VMX_TRUE_PINBASED_CTLS, PinBased.EXTERNAL_INTERRUPT_EXITING
        ),
        F.CPU_BASED_VM_EXEC_CONTROL: controls(
            Msr.IA32_VMX_TRUE_PROCBASED_CTLS,
            CpuBased.HLT_EXITING | CpuBased.ACTIVATE_SECONDARY_CONTROLS,
        ),
        F.SECONDARY_VM_EXEC_CONTROL: Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST,
        F.EPT_POINTER: 0x5000 | 3 << 3 | 6,
        F.VM_EXIT_CONTROLS: controls(
            Msr.IA32_VMX_TRUE_EXIT_CTLS,
            ExitControls.HOST_ADDRESS_SPACE_SIZE | ExitControls.SAVE_DEBUG_CONTROLS
            | ExitControls.SAVE_PAT | ExitControls.LOAD_PAT
            | ExitControls.SAVE_EFER | ExitControls.LOAD_EFER,
        ),
        F.VM_ENTRY_CONTROLS: controls(
            Msr.IA32_VMX_TRUE_ENTRY_CTLS,
            EntryControls.IA32E_MODE_GUEST | EntryControls.LOAD_DEBUG_CONTROLS
            | EntryControls.LOAD_PAT | EntryControls.LOAD_EFER,
        ),
        F.GUEST_CR0: Cr0.PE | Cr0.NE | Cr0.PG | Cr0.ET,
        F.GUEST_CR3: 0x2000,
        F.GUEST_CR4: Cr4.PAE | Cr4.VMXE,
        F.GUEST_DR7: 0x400,
        F.GUEST_IA32_PAT: 0x0007_0406_0007_0406,
        F.GUEST_IA32_EFER: Efer.LME | Efer.LMA,
        F.GUEST_RIP: 0x1000,
        F.GUEST_RSP: 0x8000,
        F.GUEST_RFLAGS: 0x202,
        F.GUEST_GDTR_LIMIT: 0xFF,
        F.GUEST_IDTR_LIMIT: 0xFFF,
        F.GUEST_IDTR_BASE: 0x4000,
        F.VMCS_LINK_POINTER: (1 << 64) - 1,
    }  # fmt: skip
    for segment in range(6):
        fields[F.GUEST_ES_SELECTOR + 2 * segment] = 0x10
        fields[F.GUEST_ES_LIMIT + 2 * segment] = 0xFFFF_FFFF
        fields[F.GUEST_ES_AR_BYTES + 2 * segment] = AccessRights.FLAT_DATA32
    fields[F.GUEST_CS_SELECTOR] = 0x8
    fields[F.GUEST_CS_AR_BYTES] = AccessRights.FLAT_CODE64
    fields[F.GUEST_LDTR_AR_BYTES] = AccessRights.UNUSABLE
    fields[F.GUEST_TR_SELECTOR] = 0x18
    fields[F.GUEST_TR_LIMIT] = 0x67
    fields[F.GUEST_TR_AR_BYTES] = AccessRights.BUSY_TSS
    return host_state() | fields


def real_mode_guest() -> dict[int, int]:
    """A guest in real mode, as unrestricted guest allows."""
    fields = long_mode_guest()
    fields[F.VM_ENTRY_CONTROLS] &= ~EntryControls.IA32E_MODE_GUEST
    fields |= {
        F.GUEST_CR0: Cr0.NE | Cr0.ET,
        F.GUEST_CR3: 0,
        F.GUEST_CR4: Cr4.VMXE,
        F.GUEST_IA32_EFER: 0,
        F.GUEST_IDTR_BASE: 0,
        F.GUEST_IDTR_LIMIT: 0x3FF,
        F.GUEST_RFLAGS: 0x202,
    }
    for segment in range(6):
        fields[F.GUEST_ES_SELECTOR + 2 * segment] = 0
        fields[F.GUEST_ES_LIMIT + 2 * segment] = 0xFFFF
        fields[F.GUEST_ES_AR_BYTES + 2 * segment] = AccessRights.REAL_DATA
    fields[F.GUEST_CS_AR_BYTES] = AccessRights.REAL_CODE
    return fields


def v8086_guest() -> dict[int, int]:
    """A guest in virtual-8086 mode, with 32-bit paging."""
    fields = real_mode_guest()
    fields |= {F.GUEST_CR0: Cr0.PE | Cr0.NE | Cr0.PG | Cr0.ET, F.GUEST_RFLAGS: 0x2_0202}
    for segment in range(6):
        fields[F.GUEST_ES_AR_BYTES + 2 * segment] = 0xF3
    return fields


def pae_guest() -> dict[int, int]:
    """A 32-bit guest with PAE paging, its PDPTEs in the VMCS."""
    fields = long_mode_guest()
    fields[F.VM_ENTRY_CONTROLS] &= ~EntryControls.IA32E_MODE_GUEST
    fields |= {F.GUEST_IA32_EFER: 0, F.GUEST_CS_AR_BYTES: AccessRights.FLAT_CODE32}
    return fields | {F.GUEST_PDPTR0: 0x3001}
