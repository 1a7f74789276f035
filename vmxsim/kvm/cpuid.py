"""CPUID from the table that userspace has set: one look into a dict, because guests ask often.

Linux: arch/x86/kvm/cpuid.c. Left out: leaf 2's repeated queries, PV features.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import E2BIG

from vmxsim.arch.cpuid import (
    FEATURES,
    SIGNIFICANT_INDEX,
    CpuidEntry,
    Register,
    default_model,
    find,
    has,
)
from vmxsim.arch.registers import Cr4
from vmxsim.errors import KvmError
from vmxsim.kvm.kvm_host import CpuidLeaf, KvmVcpu
from vmxsim.kvm.run import Run
from vmxsim.kvm.x86 import kvm_skip_emulated_instruction
from vmxsim.vmx.records import VmExit

KVM_MAX_CPUID_ENTRIES = 256
MASK_32 = 0xFFFF_FFFF
EXTENDED_TOPOLOGY = 0xB
ZEROS = (0, 0, 0, 0)

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""


def kvm_dev_ioctl_get_supported_cpuid() -> tuple[CpuidEntry, ...]:
    """KVM_GET_SUPPORTED_CPUID: everything the engine can do, and nothing it cannot."""
    return default_model()


def kvm_vcpu_ioctl_set_cpuid2(vcpu: KvmVcpu, entries: Sequence[CpuidEntry]) -> None:
    """KVM_SET_CPUID2: what the guest will see. E2BIG for more than 256 entries."""
    if len(entries) > KVM_MAX_CPUID_ENTRIES:
        raise KvmError(E2BIG, f"{len(entries)} CPUID entries: at most {KVM_MAX_CPUID_ENTRIES}")
    vcpu.arch.cpuid_entries = tuple(
        CpuidEntry(*(value & MASK_32 for value in entry)) for entry in entries
    )
    kvm_update_cpuid(vcpu)
    vcpu.x86_ops.cpuid_update(vcpu)


def kvm_update_cpuid(vcpu: KvmVcpu) -> None:
    """Make the table that CPUID exits look into; the OSXSAVE bit follows CR4.

    Leaves that do not look at ECX are a tuple, the others a dict by index.
    """
    osxsave = 1 << FEATURES["OSXSAVE"].bit
    table: dict[int, CpuidLeaf] = {}
    for entry in vcpu.arch.cpuid_entries:
        ecx = entry.ecx
        if entry.function == 1:
            ecx = ecx & ~osxsave | (osxsave if vcpu.arch.cr4 & Cr4.OSXSAVE else 0)
        registers = (entry.eax, entry.ebx, ecx, entry.edx)
        if entry.flags & SIGNIFICANT_INDEX:
            leaf = table.setdefault(entry.function, {})
            if isinstance(leaf, dict):
                leaf.setdefault(entry.index, registers)
        else:
            table.setdefault(entry.function, registers)
    vcpu.arch.cpuid = table


def guest_cpuid_has(vcpu: KvmVcpu, feature: str) -> bool:
    """Whether the guest was told that it has a feature, by Linux's X86_FEATURE_ name."""
    return has(vcpu.arch.cpuid_entries, feature)


def kvm_find_cpuid_entry(vcpu: KvmVcpu, function: int, index: int) -> Registers | None:
    """The row that answers, if there is one."""
    leaf = vcpu.arch.cpuid.get(function)
    return leaf.get(index) if isinstance(leaf, dict) else leaf


def kvm_cpuid(vcpu: KvmVcpu, function: int, index: int) -> tuple[Registers, bool]:
    """What CPUID answers, and whether the table has the row.

    As Intel has it, a leaf above the highest one is answered with the highest basic leaf.
    """
    found = kvm_find_cpuid_entry(vcpu, function, index)
    if found is not None:
        return found, True
    if function == EXTENDED_TOPOLOGY and (first := kvm_find_cpuid_entry(vcpu, function, 0)):
        return (0, 0, index & 0xFF, first[3]), False
    limit = find(vcpu.arch.cpuid_entries, function & 0x8000_0000)
    basic = find(vcpu.arch.cpuid_entries, 0)
    if limit is None or basic is None or function <= limit.eax:
        return ZEROS, False
    return kvm_find_cpuid_entry(vcpu, basic.eax, index) or ZEROS, False


def kvm_emulate_cpuid(vcpu: KvmVcpu, exit: VmExit) -> Run:
    """CPUID."""
    gpr = vcpu.processor.gpr
    leaf = vcpu.arch.cpuid.get(gpr[0] & MASK_32)
    if leaf.__class__ is not tuple or vcpu.probes.cpuid:
        leaf = emulate_rare_cpuid(vcpu, gpr[0] & MASK_32, gpr[1] & MASK_32)
    gpr[0], gpr[3], gpr[1], gpr[2] = leaf
    return kvm_skip_emulated_instruction(vcpu)


def emulate_rare_cpuid(vcpu: KvmVcpu, function: int, index: int) -> Registers:
    """CPUID with an index, without a row, or with somebody watching."""
    registers, found = kvm_cpuid(vcpu, function, index)
    for seen in vcpu.probes.cpuid:
        seen(vcpu.id, vcpu.clock.now(), function, index, *registers, found)
    return registers


def cpuid_maxphyaddr(vcpu: KvmVcpu) -> int:
    """Physical address bits that the guest was told: 36 when nobody told it anything."""
    entry = find(vcpu.arch.cpuid_entries, 0x8000_0008)
    return entry[3 + Register.EAX] & 0xFF if entry is not None else 36
