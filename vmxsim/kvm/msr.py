"""Model-specific registers: a table of those a guest finds, and #GP for every other one.

Linux: kvm_get_msr_common and kvm_set_msr_common of arch/x86/kvm/x86.c, mtrr.c. None and True mean
refused: the guest's instruction raises #GP. Not offered, so #GP: VMX capabilities, KVM clock and
the other paravirtual MSRs, x2APIC, performance counters, machine-check banks.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL

from vmxsim.arch.bits import MASK_64, canonical
from vmxsim.arch.capabilities import MAXPHYADDR
from vmxsim.arch.msrs import (
    APIC_BASE_BSP,
    APIC_BASE_ENABLE,
    CANONICAL_MSRS,
    MTRR_CAP,
    WRITABLE_BITS,
    Msr,
    valid_mtrr_type,
    valid_pat,
)
from vmxsim.arch.registers import Cr4
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.errors import KvmError
from vmxsim.kvm.control_regs import set_efer
from vmxsim.kvm.cpuid import guest_cpuid_has
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.vmx_ops import vmcs_writel

FAST_STRING = 1
MTRR_VARIABLE = range(Msr.IA32_MTRR_PHYSBASE0, Msr.IA32_MTRR_PHYSBASE0 + 16)
MTRR_FIXED = frozenset(
    {
        Msr.IA32_MTRR_FIX64K_00000,
        Msr.IA32_MTRR_FIX16K_80000,
        Msr.IA32_MTRR_FIX16K_A0000,
        *range(Msr.IA32_MTRR_FIX4K_C0000, Msr.IA32_MTRR_FIX4K_F8000 + 1),
    }
)

VMCS_MSRS: dict[int, VmcsField] = {
    Msr.IA32_FS_BASE: VmcsField.GUEST_FS_BASE,
    Msr.IA32_GS_BASE: VmcsField.GUEST_GS_BASE,
    Msr.IA32_SYSENTER_CS: VmcsField.GUEST_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP: VmcsField.GUEST_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP: VmcsField.GUEST_SYSENTER_EIP,
    Msr.IA32_PAT: VmcsField.GUEST_IA32_PAT,
    Msr.IA32_DEBUGCTL: VmcsField.GUEST_IA32_DEBUGCTL,
}
"""MSRs that VM entry loads."""

SHARED_MSRS = frozenset(
    {
        Msr.IA32_STAR,
        Msr.IA32_LSTAR,
        Msr.IA32_CSTAR,
        Msr.IA32_FMASK,
        Msr.IA32_KERNEL_GS_BASE,
        Msr.IA32_TSC_AUX,
    }
)
"""MSRs that VM entries and exits leave alone. Linux switches them when it leaves for userspace."""

CONSTANT_MSRS: dict[int, int] = {
    Msr.IA32_P5_MC_ADDR: 0,
    Msr.IA32_P5_MC_TYPE: 0,
    Msr.IA32_PLATFORM_ID: 0,
    Msr.EBL_CR_POWERON: 0,
    Msr.IA32_FEATURE_CONTROL: 0,
    Msr.IA32_PMC0: 0,
    Msr.IA32_PMC0 + 1: 0,
    Msr.MSR_FSB_FREQ: 3,
    Msr.MSR_PLATFORM_INFO: 0,
    Msr.IA32_MTRRCAP: MTRR_CAP,
    Msr.IA32_MCG_CAP: 0,
    Msr.IA32_MCG_STATUS: 0,
    Msr.IA32_PERFEVTSEL0: 0,
    Msr.IA32_PERFEVTSEL0 + 1: 0,
    Msr.IA32_PERF_STATUS: 1000 | 4 << 40,
    Msr.IA32_PERF_CTL: 0,
    Msr.MSR_RAPL_POWER_UNIT: 0,
    Msr.MSR_PKG_ENERGY_STATUS: 0,
    Msr.AMD_SYSCFG: 0,
    Msr.AMD_HWCR: 0,
    Msr.AMD_NB_CFG: 0,
    Msr.AMD_VM_HSAVE_PA: 0,
}
"""MSRs that read as one value for ever. Writing that value is allowed where IGNORED says so."""

IGNORED = frozenset(
    {
        Msr.IA32_BIOS_UPDT_TRIG,
        Msr.IA32_PMC0,
        Msr.IA32_PMC0 + 1,
        Msr.IA32_MCG_STATUS,
        Msr.IA32_PERFEVTSEL0,
        Msr.IA32_PERFEVTSEL0 + 1,
        Msr.AMD_PATCH_LOADER,
        Msr.AMD_VM_HSAVE_PA,
        Msr.IA32_PERF_CTL,
        Msr.AMD_NB_CFG,
    }
)
"""MSRs that take a write and forget it."""

HWCR_IGNORED = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18
"""Bits of AMD's HWCR that Linux takes from a guest and forgets; any other is #GP."""

STORED_MSRS: dict[int, int] = {
    Msr.IA32_MISC_ENABLE: FAST_STRING,
    Msr.IA32_BIOS_SIGN_ID: 0x1_0000_0000,
    Msr.MSR_MISC_FEATURES_ENABLES: 0,
    Msr.IA32_MTRR_DEF_TYPE: 0,
    **dict.fromkeys(MTRR_VARIABLE, 0),
    **dict.fromkeys(MTRR_FIXED, 0),
}
"""MSRs that keep what is written, with their values after reset."""

FEATURE_OF: dict[int, str] = {Msr.IA32_TSC_AUX: "RDTSCP", Msr.IA32_TSC_ADJUST: "TSC_ADJUST"}
"""MSRs that exist only with a CPUID feature, unless userspace asks."""

MSR_INDEX_LIST: tuple[int, ...] = (
    Msr.IA32_TIME_STAMP_COUNTER,
    Msr.IA32_APIC_BASE,
    Msr.IA32_TSC_ADJUST,
    Msr.IA32_EFER,
    *VMCS_MSRS,
    *sorted(SHARED_MSRS),
    *sorted(STORED_MSRS),
)
"""KVM_GET_MSR_INDEX_LIST: the MSRs with state worth saving."""


def kvm_get_msr_common(vcpu: KvmVcpu, index: int) -> int | None:
    """RDMSR of what is not special to VMX; None for #GP."""
    special = GETTERS.get(index)
    if special is not None:
        return special(vcpu)
    if index in STORED_MSRS:
        return vcpu.arch.msrs.get(index, STORED_MSRS[index])
    return CONSTANT_MSRS.get(index)


def kvm_set_msr_common(vcpu: KvmVcpu, index: int, value: int, host_initiated: bool) -> bool:
    """WRMSR of what is not special to VMX; True for #GP."""
    if index == Msr.IA32_EFER:
        return set_efer(vcpu, value, host_initiated)
    special = SETTERS.get(index)
    if special is not None:
        return special(vcpu, value)
    if index == Msr.AMD_HWCR:
        return value & ~HWCR_IGNORED != 0
    if index == Msr.IA32_BIOS_SIGN_ID and not host_initiated:
        return False  # writing it asks for the revision to be read again
    if index in STORED_MSRS:
        if not valid_stored(index, value):
            return True
        vcpu.arch.msrs[index] = value
        return False
    if host_initiated and CONSTANT_MSRS.get(index) == value:
        return False
    return index not in IGNORED


def valid_stored(index: int, value: int) -> bool:
    """Whether a stored MSR takes the value: memory types and reserved bits of MTRRs.

    SDM Vol. 3, "Memory Type Range Registers (MTRRs)".
    """
    if index in MTRR_FIXED:
        return all(valid_mtrr_type(value >> shift & 0xFF) for shift in range(0, 64, 8))
    if index == Msr.IA32_MTRR_DEF_TYPE:
        return not value & ~0xCFF and valid_mtrr_type(value & 0xFF)
    if index in MTRR_VARIABLE:
        if value >> MAXPHYADDR:
            return False
        mask = (index - MTRR_VARIABLE.start) & 1
        return not value & 0x7FF if mask else not value & 0xF00 and valid_mtrr_type(value & 0xFF)
    if index == Msr.MSR_MISC_FEATURES_ENABLES:
        return value == 0
    return True


def get_tsc(vcpu: KvmVcpu) -> int:
    """The guest's time-stamp counter."""
    return (vcpu.clock.tsc() + vcpu.arch.tsc_offset) & MASK_64


def set_tsc(vcpu: KvmVcpu, value: int) -> bool:
    """Move the guest's time-stamp counter by its offset."""
    offset = (value - vcpu.clock.tsc()) & MASK_64
    moved = offset - vcpu.arch.tsc_offset
    write_tsc_offset(vcpu, offset)
    adjust = vcpu.arch.msrs.get(Msr.IA32_TSC_ADJUST, 0)
    vcpu.arch.msrs[Msr.IA32_TSC_ADJUST] = (adjust + moved) & MASK_64
    return False


def write_tsc_offset(vcpu: KvmVcpu, offset: int) -> None:
    """Set the TSC offset of the VMCS. Linux: vmx_write_tsc_offset."""
    vcpu.arch.tsc_offset = offset & MASK_64
    vmcs_writel(vcpu, VmcsField.TSC_OFFSET, vcpu.arch.tsc_offset)


def set_tsc_adjust(vcpu: KvmVcpu, value: int) -> bool:
    """IA32_TSC_ADJUST: the counter moves by as much as this does."""
    moved = value - vcpu.arch.msrs.get(Msr.IA32_TSC_ADJUST, 0)
    write_tsc_offset(vcpu, vcpu.arch.tsc_offset + moved)
    vcpu.arch.msrs[Msr.IA32_TSC_ADJUST] = value
    return False


def kvm_set_apic_base(vcpu: KvmVcpu, value: int) -> bool:
    """IA32_APIC_BASE: stored. There is no local APIC here yet, and no x2APIC mode."""
    known = (1 << MAXPHYADDR) - 0x1000 | APIC_BASE_BSP | APIC_BASE_ENABLE
    if value & ~known:
        return True
    vcpu.arch.apic_base = value
    return False


GETTERS: dict[int, Callable[[KvmVcpu], int]] = {
    Msr.IA32_EFER: lambda vcpu: vcpu.arch.efer,
    Msr.IA32_APIC_BASE: lambda vcpu: vcpu.arch.apic_base,
    Msr.IA32_TIME_STAMP_COUNTER: get_tsc,
    Msr.IA32_TSC_ADJUST: lambda vcpu: vcpu.arch.msrs.get(Msr.IA32_TSC_ADJUST, 0),
}

SETTERS: dict[int, Callable[[KvmVcpu, int], bool]] = {
    Msr.IA32_APIC_BASE: kvm_set_apic_base,
    Msr.IA32_TIME_STAMP_COUNTER: set_tsc,
    Msr.IA32_TSC_ADJUST: set_tsc_adjust,
}


def value_allowed(vcpu: KvmVcpu, index: int, value: int) -> bool:
    """Reserved bits, canonical addresses and memory types that WRMSR checks."""
    if index in CANONICAL_MSRS:
        return canonical(value, 57 if vcpu.arch.cr4 & Cr4.LA57 else 48)
    if index == Msr.IA32_PAT:
        return valid_pat(value)
    if index == Msr.IA32_EFER:
        return True  # set_efer knows better
    bits = WRITABLE_BITS.get(Msr(index)) if index in WRITABLE_BITS else None
    return bits is None or not value & ~bits


def msr_exists(vcpu: KvmVcpu, index: int, host_initiated: bool) -> bool:
    """Whether the guest has the feature that the MSR belongs to."""
    feature = FEATURE_OF.get(index)
    return feature is None or host_initiated or guest_cpuid_has(vcpu, feature)


def kvm_get_msr(vcpu: KvmVcpu, index: int, host_initiated: bool = False) -> int | None:
    """RDMSR; None for #GP."""
    if not msr_exists(vcpu, index, host_initiated):
        return None
    return vcpu.x86_ops.get_msr(vcpu, index)


def kvm_set_msr(vcpu: KvmVcpu, index: int, value: int, host_initiated: bool = False) -> bool:
    """WRMSR; True for #GP."""
    if not msr_exists(vcpu, index, host_initiated) or not value_allowed(vcpu, index, value):
        return True
    return vcpu.x86_ops.set_msr(vcpu, index, value, host_initiated)


def kvm_vcpu_ioctl_get_msrs(vcpu: KvmVcpu, indices: list[int]) -> dict[int, int]:
    """KVM_GET_MSRS: as many as could be read before the first that could not."""
    values: dict[int, int] = {}
    for index in indices:
        value = kvm_get_msr(vcpu, index, host_initiated=True)
        if value is None:
            break
        values[index] = value
    return values


def kvm_vcpu_ioctl_set_msrs(vcpu: KvmVcpu, values: list[tuple[int, int]]) -> int:
    """KVM_SET_MSRS: how many were set before the first that was refused."""
    for done, (index, value) in enumerate(values):
        if not 0 <= value <= MASK_64:
            raise KvmError(EINVAL, f"MSR {index:#x}: {value:#x} does not fit 64 bits")
        if kvm_set_msr(vcpu, index, value, host_initiated=True):
            return done
    return len(values)


