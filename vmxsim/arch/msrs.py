"""Model-specific registers by name, and which of their bits software may write.

SDM Vol. 4, "Architectural MSRs". Numbers from 0x40000000 up are the hypervisor's own.
"""

from __future__ import annotations

from enum import IntEnum

# fmt: off


class Msr(IntEnum):
    """MSR numbers that some floor of this house knows."""

    IA32_P5_MC_ADDR               = 0x0000_0000
    IA32_P5_MC_TYPE               = 0x0000_0001
    IA32_TIME_STAMP_COUNTER       = 0x0000_0010
    IA32_PLATFORM_ID              = 0x0000_0017
    IA32_APIC_BASE                = 0x0000_001B
    EBL_CR_POWERON                = 0x0000_002A
    SMI_COUNT                     = 0x0000_0034
    IA32_FEATURE_CONTROL          = 0x0000_003A
    IA32_TSC_ADJUST               = 0x0000_003B
    IA32_SPEC_CTRL                = 0x0000_0048
    IA32_PRED_CMD                 = 0x0000_0049
    IA32_BIOS_UPDT_TRIG           = 0x0000_0079
    IA32_BIOS_SIGN_ID             = 0x0000_008B
    IA32_SMM_MONITOR_CTL          = 0x0000_009B
    IA32_SMBASE                   = 0x0000_009E
    IA32_PMC0                     = 0x0000_00C1
    MSR_FSB_FREQ                  = 0x0000_00CD
    MSR_PLATFORM_INFO             = 0x0000_00CE
    IA32_UMWAIT_CONTROL           = 0x0000_00E1
    IA32_MPERF                    = 0x0000_00E7
    IA32_APERF                    = 0x0000_00E8
    IA32_MTRRCAP                  = 0x0000_00FE
    IA32_ARCH_CAPABILITIES        = 0x0000_010A
    IA32_FLUSH_CMD                = 0x0000_010B
    MSR_MISC_FEATURES_ENABLES     = 0x0000_0140
    IA32_SYSENTER_CS              = 0x0000_0174
    IA32_SYSENTER_ESP             = 0x0000_0175
    IA32_SYSENTER_EIP             = 0x0000_0176
    IA32_MCG_CAP                  = 0x0000_0179
    IA32_MCG_STATUS               = 0x0000_017A
    IA32_MCG_CTL                  = 0x0000_017B
    IA32_PERFEVTSEL0              = 0x0000_0186
    IA32_PERF_STATUS              = 0x0000_0198
    IA32_PERF_CTL                 = 0x0000_0199
    IA32_CLOCK_MODULATION         = 0x0000_019A
    IA32_THERM_INTERRUPT          = 0x0000_019B
    IA32_THERM_STATUS             = 0x0000_019C
    IA32_MISC_ENABLE              = 0x0000_01A0
    IA32_ENERGY_PERF_BIAS         = 0x0000_01B0
    IA32_DEBUGCTL                 = 0x0000_01D9
    IA32_MTRR_PHYSBASE0           = 0x0000_0200
    IA32_MTRR_PHYSMASK0           = 0x0000_0201
    IA32_MTRR_FIX64K_00000        = 0x0000_0250
    IA32_MTRR_FIX16K_80000        = 0x0000_0258
    IA32_MTRR_FIX16K_A0000        = 0x0000_0259
    IA32_MTRR_FIX4K_C0000         = 0x0000_0268
    IA32_MTRR_FIX4K_C8000         = 0x0000_0269
    IA32_MTRR_FIX4K_D0000         = 0x0000_026A
    IA32_MTRR_FIX4K_D8000         = 0x0000_026B
    IA32_MTRR_FIX4K_E0000         = 0x0000_026C
    IA32_MTRR_FIX4K_E8000         = 0x0000_026D
    IA32_MTRR_FIX4K_F0000         = 0x0000_026E
    IA32_MTRR_FIX4K_F8000         = 0x0000_026F
    IA32_PAT                      = 0x0000_0277
    IA32_MTRR_DEF_TYPE            = 0x0000_02FF
    IA32_FIXED_CTR0               = 0x0000_0309
    IA32_PERF_CAPABILITIES        = 0x0000_0345
    IA32_FIXED_CTR_CTRL           = 0x0000_038D
    IA32_PERF_GLOBAL_STATUS       = 0x0000_038E
    IA32_PERF_GLOBAL_CTRL         = 0x0000_038F
    IA32_PERF_GLOBAL_OVF_CTRL     = 0x0000_0390
    IA32_MC0_CTL                  = 0x0000_0400
    IA32_MC0_STATUS               = 0x0000_0401
    IA32_MC0_ADDR                 = 0x0000_0402
    IA32_MC0_MISC                 = 0x0000_0403
    IA32_VMX_BASIC                = 0x0000_0480
    IA32_VMX_PINBASED_CTLS        = 0x0000_0481
    IA32_VMX_PROCBASED_CTLS       = 0x0000_0482
    IA32_VMX_EXIT_CTLS            = 0x0000_0483
    IA32_VMX_ENTRY_CTLS           = 0x0000_0484
    IA32_VMX_MISC                 = 0x0000_0485
    IA32_VMX_CR0_FIXED0           = 0x0000_0486
    IA32_VMX_CR0_FIXED1           = 0x0000_0487
    IA32_VMX_CR4_FIXED0           = 0x0000_0488
    IA32_VMX_CR4_FIXED1           = 0x0000_0489
    IA32_VMX_VMCS_ENUM            = 0x0000_048A
    IA32_VMX_PROCBASED_CTLS2      = 0x0000_048B
    IA32_VMX_EPT_VPID_CAP         = 0x0000_048C
    IA32_VMX_TRUE_PINBASED_CTLS   = 0x0000_048D
    IA32_VMX_TRUE_PROCBASED_CTLS  = 0x0000_048E
    IA32_VMX_TRUE_EXIT_CTLS       = 0x0000_048F
    IA32_VMX_TRUE_ENTRY_CTLS      = 0x0000_0490
    IA32_VMX_VMFUNC               = 0x0000_0491
    IA32_VMX_PROCBASED_CTLS3      = 0x0000_0492
    IA32_VMX_EXIT_CTLS2           = 0x0000_0493
    IA32_RTIT_CTL                 = 0x0000_0570
    IA32_DS_AREA                  = 0x0000_0600
    MSR_RAPL_POWER_UNIT           = 0x0000_0606
    MSR_PKG_ENERGY_STATUS         = 0x0000_0611
    IA32_U_CET                    = 0x0000_06A0
    IA32_S_CET                    = 0x0000_06A2
    IA32_TSC_DEADLINE             = 0x0000_06E0
    IA32_PKRS                     = 0x0000_06E1
    X2APIC_FIRST                  = 0x0000_0800
    X2APIC_APICID                 = 0x0000_0802
    X2APIC_EOI                    = 0x0000_080B
    X2APIC_ICR                    = 0x0000_0830
    X2APIC_LAST                   = 0x0000_08FF
    IA32_DEBUG_INTERFACE          = 0x0000_0C80
    IA32_BNDCFGS                  = 0x0000_0D90
    IA32_XSS                      = 0x0000_0DA0
    KVM_WALL_CLOCK                = 0x0000_0011
    KVM_SYSTEM_TIME               = 0x0000_0012
    HV_GUEST_OS_ID                = 0x4000_0000
    HV_HYPERCALL                  = 0x4000_0001
    KVM_WALL_CLOCK_NEW            = 0x4B56_4D00
    KVM_SYSTEM_TIME_NEW           = 0x4B56_4D01
    KVM_ASYNC_PF_EN               = 0x4B56_4D02
    KVM_STEAL_TIME                = 0x4B56_4D03
    KVM_PV_EOI_EN                 = 0x4B56_4D04
    KVM_POLL_CONTROL              = 0x4B56_4D05
    IA32_EFER                     = 0xC000_0080
    IA32_STAR                     = 0xC000_0081
    IA32_LSTAR                    = 0xC000_0082
    IA32_CSTAR                    = 0xC000_0083
    IA32_FMASK                    = 0xC000_0084
    IA32_FS_BASE                  = 0xC000_0100
    IA32_GS_BASE                  = 0xC000_0101
    IA32_KERNEL_GS_BASE           = 0xC000_0102
    IA32_TSC_AUX                  = 0xC000_0103
    AMD_SYSCFG                    = 0xC001_0010
    AMD_HWCR                      = 0xC001_0015
    AMD_PATCH_LEVEL               = 0xC000_008B
    AMD_PATCH_LOADER              = 0xC001_0020
    AMD_NB_CFG                    = 0xC001_001F
    AMD_VM_HSAVE_PA               = 0xC001_0117
# fmt: on


MASK_32 = 0xFFFF_FFFF
MASK_64 = (1 << 64) - 1

PAT_RESET = 0x0007_0406_0007_0406
MTRR_CAP = 0x508
"""8 variable ranges, fixed ranges, write-combining."""
APIC_BASE_RESET = 0xFEE0_0000 | 1 << 11 | 1 << 8
"""Enabled, on the bootstrap processor."""
APIC_BASE_BSP = 1 << 8
APIC_BASE_X2APIC = 1 << 10
APIC_BASE_ENABLE = 1 << 11

FEATURE_CONTROL_LOCKED = 1 << 0
FEATURE_CONTROL_VMX_INSIDE_SMX = 1 << 1
FEATURE_CONTROL_VMX_OUTSIDE_SMX = 1 << 2

CANONICAL_MSRS = frozenset(
    {
        Msr.IA32_SYSENTER_ESP,
        Msr.IA32_SYSENTER_EIP,
        Msr.IA32_FS_BASE,
        Msr.IA32_GS_BASE,
        Msr.IA32_KERNEL_GS_BASE,
        Msr.IA32_LSTAR,
        Msr.IA32_CSTAR,
        Msr.IA32_DS_AREA,
    }
)
"""WRMSR of a non-canonical address to one of these is #GP."""

READ_ONLY_MSRS = frozenset(
    {
        Msr.IA32_MTRRCAP,
        Msr.IA32_PLATFORM_ID,
        Msr.IA32_PERF_STATUS,
        Msr.IA32_MCG_CAP,
        Msr.IA32_ARCH_CAPABILITIES,
        Msr.IA32_PERF_CAPABILITIES,
        *(msr for msr in Msr if Msr.IA32_VMX_BASIC <= msr <= Msr.IA32_VMX_EXIT_CTLS2),
    }
)
"""WRMSR to one of these is #GP, whatever the value."""

WRITABLE_BITS: dict[Msr, int] = {
    Msr.IA32_EFER: 0xD01,
    Msr.IA32_SYSENTER_CS: MASK_32,
    Msr.IA32_TSC_AUX: MASK_32,
    Msr.IA32_FMASK: MASK_32,
    Msr.IA32_MTRR_DEF_TYPE: 0xCFF,
    Msr.IA32_XSS: 0,
    Msr.IA32_SPEC_CTRL: 0x7,
    Msr.IA32_DEBUGCTL: 0,
    Msr.IA32_BIOS_SIGN_ID: MASK_64,
}
"""Bits that WRMSR may set where that is not all 64; another bit set is #GP.

IA32_EFER: SCE, LME, LMA (ignored unless it would change), NXE. IA32_DEBUGCTL: neither last branch
records nor single-step on branches. IA32_XSS: no supervisor states.
"""


def valid_pat(value: int) -> bool:
    """Whether each of the eight entries is a memory type: UC, WC, WT, WP, WB or UC-."""
    return all(value >> shift & 0xFF in (0, 1, 4, 5, 6, 7) for shift in range(0, 64, 8))


def valid_mtrr_type(memory_type: int) -> bool:
    """Whether MTRRs know the type: UC, WC, WT, WP or WB."""
    return memory_type in (0, 1, 4, 5, 6)


def name(index: int) -> str:
    """The MSR's name, or its number in hexadecimal."""
    return Msr._value2member_map_[index].name if index in Msr._value2member_map_ else f"{index:#x}"
