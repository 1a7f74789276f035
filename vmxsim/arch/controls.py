"""VMX controls as integer bits, named as the SDM names them; their meanings are in explanations.

SDM Vol. 3, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields".
"""

from __future__ import annotations

# fmt: off


class PinBased:
    """Pin-based VM-execution controls."""

    EXTERNAL_INTERRUPT_EXITING       = 1 << 0
    NMI_EXITING                      = 1 << 3
    VIRTUAL_NMIS                     = 1 << 5
    ACTIVATE_PREEMPTION_TIMER        = 1 << 6
    PROCESS_POSTED_INTERRUPTS        = 1 << 7


class CpuBased:
    """Primary processor-based VM-execution controls."""

    INTERRUPT_WINDOW_EXITING         = 1 << 2
    USE_TSC_OFFSETTING               = 1 << 3
    HLT_EXITING                      = 1 << 7
    INVLPG_EXITING                   = 1 << 9
    MWAIT_EXITING                    = 1 << 10
    RDPMC_EXITING                    = 1 << 11
    RDTSC_EXITING                    = 1 << 12
    CR3_LOAD_EXITING                 = 1 << 15
    CR3_STORE_EXITING                = 1 << 16
    ACTIVATE_TERTIARY_CONTROLS       = 1 << 17
    CR8_LOAD_EXITING                 = 1 << 19
    CR8_STORE_EXITING                = 1 << 20
    USE_TPR_SHADOW                   = 1 << 21
    NMI_WINDOW_EXITING               = 1 << 22
    MOV_DR_EXITING                   = 1 << 23
    UNCONDITIONAL_IO_EXITING         = 1 << 24
    USE_IO_BITMAPS                   = 1 << 25
    MONITOR_TRAP_FLAG                = 1 << 27
    USE_MSR_BITMAPS                  = 1 << 28
    MONITOR_EXITING                  = 1 << 29
    PAUSE_EXITING                    = 1 << 30
    ACTIVATE_SECONDARY_CONTROLS      = 1 << 31


class Secondary:
    """Secondary processor-based VM-execution controls."""

    VIRTUALIZE_APIC_ACCESSES         = 1 << 0
    ENABLE_EPT                       = 1 << 1
    DESCRIPTOR_TABLE_EXITING         = 1 << 2
    ENABLE_RDTSCP                    = 1 << 3
    VIRTUALIZE_X2APIC_MODE           = 1 << 4
    ENABLE_VPID                      = 1 << 5
    WBINVD_EXITING                   = 1 << 6
    UNRESTRICTED_GUEST               = 1 << 7
    APIC_REGISTER_VIRTUALIZATION     = 1 << 8
    VIRTUAL_INTERRUPT_DELIVERY       = 1 << 9
    PAUSE_LOOP_EXITING               = 1 << 10
    RDRAND_EXITING                   = 1 << 11
    ENABLE_INVPCID                   = 1 << 12
    ENABLE_VM_FUNCTIONS              = 1 << 13
    VMCS_SHADOWING                   = 1 << 14
    ENABLE_ENCLS_EXITING             = 1 << 15
    RDSEED_EXITING                   = 1 << 16
    ENABLE_PML                       = 1 << 17
    EPT_VIOLATION_VE                 = 1 << 18
    CONCEAL_VMX_FROM_PT              = 1 << 19
    ENABLE_XSAVES                    = 1 << 20
    PASID_TRANSLATION                = 1 << 21
    MODE_BASED_EXECUTE_CONTROL       = 1 << 22
    SUB_PAGE_WRITE_PERMISSIONS       = 1 << 23
    PT_USES_GUEST_PHYSICAL_ADDRESSES = 1 << 24
    USE_TSC_SCALING                  = 1 << 25
    ENABLE_USER_WAIT_AND_PAUSE       = 1 << 26
    ENABLE_PCONFIG                   = 1 << 27
    ENABLE_ENCLV_EXITING             = 1 << 28
    BUS_LOCK_DETECTION               = 1 << 30
    INSTRUCTION_TIMEOUT              = 1 << 31


class Tertiary:
    """Tertiary processor-based VM-execution controls (64 bits)."""

    LOADIWKEY_EXITING                = 1 << 0
    ENABLE_HLAT                      = 1 << 1
    EPT_PAGING_WRITE_CONTROL         = 1 << 2
    GUEST_PAGING_VERIFICATION        = 1 << 3
    IPI_VIRTUALIZATION               = 1 << 4
    ENABLE_MSR_LIST                  = 1 << 6
    VIRTUALIZE_SPEC_CTRL             = 1 << 7
    APIC_TIMER_VIRTUALIZATION        = 1 << 8


class ExitControls:
    """Primary VM-exit controls."""

    SAVE_DEBUG_CONTROLS              = 1 << 2
    HOST_ADDRESS_SPACE_SIZE          = 1 << 9
    LOAD_PERF_GLOBAL_CTRL            = 1 << 12
    ACKNOWLEDGE_INTERRUPT_ON_EXIT    = 1 << 15
    SAVE_PAT                         = 1 << 18
    LOAD_PAT                         = 1 << 19
    SAVE_EFER                        = 1 << 20
    LOAD_EFER                        = 1 << 21
    SAVE_PREEMPTION_TIMER            = 1 << 22
    CLEAR_BNDCFGS                    = 1 << 23
    CONCEAL_VMX_FROM_PT              = 1 << 24
    CLEAR_RTIT_CTL                   = 1 << 25
    CLEAR_LBR_CTL                    = 1 << 26
    CLEAR_UINV                       = 1 << 27
    LOAD_CET_STATE                   = 1 << 28
    LOAD_PKRS                        = 1 << 29
    SAVE_PERF_GLOBAL_CTRL            = 1 << 30
    ACTIVATE_SECONDARY_CONTROLS      = 1 << 31


class SecondaryExitControls:
    """Secondary VM-exit controls (64 bits)."""

    SAVE_FRED                        = 1 << 0
    LOAD_FRED                        = 1 << 1
    LOAD_SPEC_CTRL                   = 1 << 2
    PREMATURELY_BUSY_SHADOW_STACK    = 1 << 3


class EntryControls:
    """VM-entry controls."""

    LOAD_DEBUG_CONTROLS              = 1 << 2
    IA32E_MODE_GUEST                 = 1 << 9
    ENTRY_TO_SMM                     = 1 << 10
    DEACTIVATE_DUAL_MONITOR          = 1 << 11
    LOAD_PERF_GLOBAL_CTRL            = 1 << 13
    LOAD_PAT                         = 1 << 14
    LOAD_EFER                        = 1 << 15
    LOAD_BNDCFGS                     = 1 << 16
    CONCEAL_VMX_FROM_PT              = 1 << 17
    LOAD_RTIT_CTL                    = 1 << 18
    LOAD_UINV                        = 1 << 19
    LOAD_CET_STATE                   = 1 << 20
    LOAD_LBR_CTL                     = 1 << 21
    LOAD_PKRS                        = 1 << 22
    LOAD_FRED                        = 1 << 23
    LOAD_SPEC_CTRL                   = 1 << 24
# fmt: on


class Interruptibility:
    """Bits of GUEST_INTERRUPTIBILITY_INFO. SDM Vol. 3, "Guest Non-Register State"."""

    BLOCKING_BY_STI = 1 << 0
    BLOCKING_BY_MOV_SS = 1 << 1
    BLOCKING_BY_SMI = 1 << 2
    BLOCKING_BY_NMI = 1 << 3
    ENCLAVE_INTERRUPTION = 1 << 4

    RESERVED = 0xFFFF_FFE0


class Activity:
    """Values of GUEST_ACTIVITY_STATE."""

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


class PendingDebug:
    """Bits of GUEST_PENDING_DBG_EXCEPTIONS."""

    B0_TO_B3 = 0xF
    BLD = 1 << 11
    ENABLED_BREAKPOINT = 1 << 12
    BS = 1 << 14
    RTM = 1 << 16

    DEFINED = B0_TO_B3 | BLD | ENABLED_BREAKPOINT | BS | RTM
    RESERVED = ~DEFINED & (1 << 64) - 1


def names(controls: type, value: int) -> list[str]:
    """The names of the bits of one control word that are 1, from bit 0 up."""
    bits = {bit: name for name, bit in vars(controls).items() if name.isupper()}
    return [name for bit, name in sorted(bits.items()) if value & bit]
