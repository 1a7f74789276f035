"""The IA32_VMX_* capability MSRs, computed from one list of what this processor models.

SDM Vol. 3, appendix "VMX Capability Reporting Facility". A control that is not listed here is
refused by VM entry, so a hypervisor finds out by reading, not by a guest that misbehaves.
"""

from __future__ import annotations

from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4
from vmxsim.arch.vmcs_fields import VmcsField

MAXPHYADDR = 39
"""Physical-address width that guests are told; the engine keeps what lies above for itself."""

VMCS_REVISION = 0x766D78
"""VMCS revision identifier: bits 30:0 of the first word of a VMXON region or VMCS."""

VMCS_SIZE = 4096
MAX_MSR_LIST = 512
"""Recommended maximum length of the MSR-load and MSR-store lists."""

CR3_TARGETS = 4

PIN_BASED = PinBased.EXTERNAL_INTERRUPT_EXITING

CPU_BASED = (
    CpuBased.INTERRUPT_WINDOW_EXITING
    | CpuBased.USE_TSC_OFFSETTING
    | CpuBased.HLT_EXITING
    | CpuBased.INVLPG_EXITING
    | CpuBased.MWAIT_EXITING
    | CpuBased.RDPMC_EXITING
    | CpuBased.RDTSC_EXITING
    | CpuBased.CR3_LOAD_EXITING
    | CpuBased.CR3_STORE_EXITING
    | CpuBased.CR8_LOAD_EXITING
    | CpuBased.CR8_STORE_EXITING
    | CpuBased.MOV_DR_EXITING
    | CpuBased.UNCONDITIONAL_IO_EXITING
    | CpuBased.USE_IO_BITMAPS
    | CpuBased.USE_MSR_BITMAPS
    | CpuBased.MONITOR_EXITING
    | CpuBased.PAUSE_EXITING
    | CpuBased.ACTIVATE_SECONDARY_CONTROLS
)

SECONDARY = (
    Secondary.ENABLE_EPT
    | Secondary.DESCRIPTOR_TABLE_EXITING
    | Secondary.ENABLE_RDTSCP
    | Secondary.ENABLE_VPID
    | Secondary.WBINVD_EXITING
    | Secondary.UNRESTRICTED_GUEST
    | Secondary.RDRAND_EXITING
    | Secondary.ENABLE_INVPCID
    | Secondary.RDSEED_EXITING
    | Secondary.ENABLE_XSAVES
)

EXIT = (
    ExitControls.SAVE_DEBUG_CONTROLS
    | ExitControls.HOST_ADDRESS_SPACE_SIZE
    | ExitControls.ACKNOWLEDGE_INTERRUPT_ON_EXIT
    | ExitControls.SAVE_PAT
    | ExitControls.LOAD_PAT
    | ExitControls.SAVE_EFER
    | ExitControls.LOAD_EFER
)

ENTRY = (
    EntryControls.LOAD_DEBUG_CONTROLS
    | EntryControls.IA32E_MODE_GUEST
    | EntryControls.LOAD_PAT
    | EntryControls.LOAD_EFER
)

# The default1 classes: reserved bits that must be 1, and controls so old that software may
# not know them. Clear only through the TRUE MSRs: CR3-load and CR3-store exiting, debug controls.
PIN_BASED_DEFAULT1 = 1 << 1 | 1 << 2 | 1 << 4
CPU_BASED_DEFAULT1 = 0x0401_E172
EXIT_DEFAULT1 = 0x0003_6DFF
ENTRY_DEFAULT1 = 0x0000_11FF

CPU_BASED_TRUE1 = CPU_BASED_DEFAULT1 & ~(CpuBased.CR3_LOAD_EXITING | CpuBased.CR3_STORE_EXITING)
EXIT_TRUE1 = EXIT_DEFAULT1 & ~ExitControls.SAVE_DEBUG_CONTROLS
ENTRY_TRUE1 = ENTRY_DEFAULT1 & ~EntryControls.LOAD_DEBUG_CONTROLS

CR0_FIXED0 = Cr0.PE | Cr0.NE | Cr0.PG
"""Must be 1 in VMX operation; with unrestricted guest a guest's PE and PG may be 0."""
CR0_FIXED1 = 0xFFFF_FFFF
CR4_FIXED0 = Cr4.VMXE
CR4_FIXED1 = (
    Cr4.TSD
    | Cr4.DE
    | Cr4.PSE
    | Cr4.PAE
    | Cr4.MCE
    | Cr4.PGE
    | Cr4.PCE
    | Cr4.OSFXSR
    | Cr4.OSXMMEXCPT
    | Cr4.LA57
    | Cr4.VMXE
    | Cr4.SMXE
    | Cr4.FSGSBASE
    | Cr4.OSXSAVE
    | Cr4.SMEP
    | Cr4.SMAP
)
"""May be 1: what the processor knows. No VME, PVI, UMIP, PCIDE, PKE, CET, PKS."""


class Basic:
    """Bits of IA32_VMX_BASIC."""

    REVISION = 0x7FFF_FFFF
    SIZE_SHIFT = 32
    PHYSICAL_ADDRESSES_32 = 1 << 48
    DUAL_MONITOR = 1 << 49
    MEMORY_TYPE_SHIFT = 50
    WRITE_BACK = 6
    INS_OUTS_INFORMATION = 1 << 54
    TRUE_CONTROLS = 1 << 55


class Misc:
    """Bits of IA32_VMX_MISC."""

    STORE_LMA_ON_EXIT = 1 << 5
    ACTIVITY_HLT = 1 << 6
    ACTIVITY_SHUTDOWN = 1 << 7
    ACTIVITY_WAIT_FOR_SIPI = 1 << 8
    CR3_TARGETS_SHIFT = 16
    VMWRITE_ANY_FIELD = 1 << 29
    INJECT_LENGTH_0 = 1 << 30


class EptVpidCap:
    """Bits of IA32_VMX_EPT_VPID_CAP."""

    EXECUTE_ONLY = 1 << 0
    WALK_LENGTH_4 = 1 << 6
    WALK_LENGTH_5 = 1 << 7
    UNCACHEABLE = 1 << 8
    WRITE_BACK = 1 << 14
    PAGES_2M = 1 << 16
    PAGES_1G = 1 << 17
    INVEPT = 1 << 20
    ACCESSED_DIRTY = 1 << 21
    ADVANCED_EXIT_INFORMATION = 1 << 22
    INVEPT_SINGLE_CONTEXT = 1 << 25
    INVEPT_ALL_CONTEXTS = 1 << 26
    INVVPID = 1 << 32
    INVVPID_INDIVIDUAL_ADDRESS = 1 << 40
    INVVPID_SINGLE_CONTEXT = 1 << 41
    INVVPID_ALL_CONTEXTS = 1 << 42
    INVVPID_RETAINING_GLOBALS = 1 << 43


def _controls(must_be_1: int, may_be_1: int) -> int:
    return (must_be_1 | may_be_1) << 32 | must_be_1


# fmt: off
CAPABILITIES: dict[int, int] = {
    Msr.IA32_VMX_BASIC: (
        VMCS_REVISION | VMCS_SIZE << Basic.SIZE_SHIFT | Basic.WRITE_BACK << Basic.MEMORY_TYPE_SHIFT
        | Basic.INS_OUTS_INFORMATION | Basic.TRUE_CONTROLS
    ),
    Msr.IA32_VMX_PINBASED_CTLS: _controls(PIN_BASED_DEFAULT1, PIN_BASED),
    Msr.IA32_VMX_PROCBASED_CTLS: _controls(CPU_BASED_DEFAULT1, CPU_BASED),
    Msr.IA32_VMX_EXIT_CTLS: _controls(EXIT_DEFAULT1, EXIT),
    Msr.IA32_VMX_ENTRY_CTLS: _controls(ENTRY_DEFAULT1, ENTRY),
    Msr.IA32_VMX_MISC: (
        Misc.STORE_LMA_ON_EXIT | Misc.ACTIVITY_HLT | CR3_TARGETS << Misc.CR3_TARGETS_SHIFT
    ),
    Msr.IA32_VMX_CR0_FIXED0: CR0_FIXED0,
    Msr.IA32_VMX_CR0_FIXED1: CR0_FIXED1,
    Msr.IA32_VMX_CR4_FIXED0: CR4_FIXED0,
    Msr.IA32_VMX_CR4_FIXED1: CR4_FIXED1,
    # Bits 9:1: the highest index of any field.
    Msr.IA32_VMX_VMCS_ENUM: VmcsField.INJECTED_EVENT_DATA & 0x3FE,
    Msr.IA32_VMX_PROCBASED_CTLS2: _controls(0, SECONDARY),
    Msr.IA32_VMX_EPT_VPID_CAP: (
        EptVpidCap.WALK_LENGTH_4 | EptVpidCap.UNCACHEABLE | EptVpidCap.WRITE_BACK
        | EptVpidCap.PAGES_2M | EptVpidCap.PAGES_1G
        | EptVpidCap.INVEPT | EptVpidCap.INVEPT_SINGLE_CONTEXT | EptVpidCap.INVEPT_ALL_CONTEXTS
        | EptVpidCap.INVVPID | EptVpidCap.INVVPID_INDIVIDUAL_ADDRESS
        | EptVpidCap.INVVPID_SINGLE_CONTEXT | EptVpidCap.INVVPID_ALL_CONTEXTS
        | EptVpidCap.INVVPID_RETAINING_GLOBALS
    ),
    Msr.IA32_VMX_TRUE_PINBASED_CTLS: _controls(PIN_BASED_DEFAULT1, PIN_BASED),
    Msr.IA32_VMX_TRUE_PROCBASED_CTLS: _controls(CPU_BASED_TRUE1, CPU_BASED),
    Msr.IA32_VMX_TRUE_EXIT_CTLS: _controls(EXIT_TRUE1, EXIT),
    Msr.IA32_VMX_TRUE_ENTRY_CTLS: _controls(ENTRY_TRUE1, ENTRY),
}
"""Every capability MSR of this processor. It has no VM functions and no tertiary controls."""
# fmt: on


def value(msr: int) -> int:
    """What RDMSR of a capability MSR reads. KeyError for one that this processor does not have."""
    return CAPABILITIES[msr]


def adjust(capability: int, wanted: int) -> int:
    """The control word nearest to what is wanted: required bits added, unsupported ones dropped."""
    return (wanted | capability & 0xFFFF_FFFF) & capability >> 32


def violations(capability: int, controls: int) -> int:
    """The bits of a control word that VM entry would refuse: 0 where 1 is required, or 1 for 0."""
    must_be_1, may_be_1 = capability & 0xFFFF_FFFF, capability >> 32
    return must_be_1 & ~controls | controls & ~may_be_1
