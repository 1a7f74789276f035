"""What guests may write to CR0, CR3, CR4, CR8, XCR0 and EFER, and what it comes to.

Linux: kvm_set_cr0 and its relatives in arch/x86/kvm/x86.c. True means refused: the instruction
raises #GP. Left out: PCIDs, SMM, nested paging, protection keys.
"""

from __future__ import annotations

from vmxsim.arch.capabilities import CR4_FIXED1, MAXPHYADDR
from vmxsim.arch.paging import Entry
from vmxsim.arch.registers import Cr0, Cr4, Efer, Xcr0
from vmxsim.arch.segments import AccessRights
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.kvm.cpuid import guest_cpuid_has, kvm_update_cpuid
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.vmx_ops import vmcs_readl, vmcs_writel

KVM_GUEST_OWNED_CR0 = Cr0.TS
"""Bits of CR0 that the guest changes without an exit."""
KVM_GUEST_OWNED_CR4 = (
    Cr4.DE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.PGE | Cr4.TSD | Cr4.FSGSBASE
)
"""Bits of CR4 that the guest changes without an exit; FSGSBASE only if it was told of it."""

CR4_KNOWN = CR4_FIXED1 & ~(Cr4.VMXE | Cr4.SMXE)
CR4_FEATURES = {
    Cr4.FSGSBASE: "FSGSBASE",
    Cr4.SMEP: "SMEP",
    Cr4.SMAP: "SMAP",
    Cr4.LA57: "LA57",
    Cr4.OSXSAVE: "XSAVE",
}
"""Bits of CR4 that need a CPUID feature."""
EFER_FEATURES = {Efer.NXE: "NX", Efer.SCE: "SYSCALL", Efer.LME: "LM"}
"""Bits of EFER that need a CPUID feature."""
XCR0_KNOWN = Xcr0.X87 | Xcr0.SSE
PDPTE_RESERVED = (1 << 63) - (1 << MAXPHYADDR) | 1 << 63 | 0x1E6
LOW_32 = 0xFFFF_FFFF


def kvm_read_cr0(vcpu: KvmVcpu) -> int:
    """CR0 as the guest sees it."""
    real = vmcs_readl(vcpu, VmcsField.GUEST_CR0)
    return vcpu.arch.cr0 & ~KVM_GUEST_OWNED_CR0 | real & KVM_GUEST_OWNED_CR0


def kvm_read_cr3(vcpu: KvmVcpu) -> int:
    """CR3, which the guest changes without an exit."""
    return vmcs_readl(vcpu, VmcsField.GUEST_CR3)


def kvm_read_cr4(vcpu: KvmVcpu) -> int:
    """CR4 as the guest sees it."""
    owned = cr4_guest_owned_bits(vcpu)
    return vcpu.arch.cr4 & ~owned | vmcs_readl(vcpu, VmcsField.GUEST_CR4) & owned


def cr4_guest_owned_bits(vcpu: KvmVcpu) -> int:
    """The bits of CR4 that do not exit."""
    if guest_cpuid_has(vcpu, "FSGSBASE"):
        return KVM_GUEST_OWNED_CR4
    return KVM_GUEST_OWNED_CR4 & ~Cr4.FSGSBASE


def is_long_mode(vcpu: KvmVcpu) -> bool:
    """Whether EFER.LMA is set."""
    return vcpu.arch.efer & Efer.LMA != 0


def is_pae_paging(vcpu: KvmVcpu) -> bool:
    """Whether the guest uses 32-bit PAE paging, with PDPTEs in registers."""
    paging = vcpu.arch.cr0 & Cr0.PG and vcpu.arch.cr4 & Cr4.PAE
    return bool(paging) and not is_long_mode(vcpu)


def load_pdptrs(vcpu: KvmVcpu, cr3: int) -> bool:
    """Load the four PDPTEs of PAE paging; False when one has a reserved bit set."""
    memory, table = vcpu.processor.memory, cr3 & 0xFFFF_FFE0
    if not memory.backed(table, 32):
        return False
    raw = memory.read(table, 32)
    entries = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 32, 8)]
    if any(entry & Entry.P and entry & PDPTE_RESERVED for entry in entries):
        return False
    for number, entry in enumerate(entries):
        vmcs_writel(vcpu, VmcsField.GUEST_PDPTR0 + 2 * number, entry)
    return True


def kvm_set_cr0(vcpu: KvmVcpu, cr0: int) -> bool:
    """MOV to CR0, LMSW."""
    old = kvm_read_cr0(vcpu)
    cr0 |= Cr0.ET
    if cr0 > LOW_32:
        return True
    cr0 &= Cr0.DEFINED
    if (cr0 & Cr0.NW and not cr0 & Cr0.CD) or (cr0 & Cr0.PG and not cr0 & Cr0.PE):
        return True
    if cr0 & Cr0.PG and not old & Cr0.PG:
        pae = vcpu.arch.cr4 & Cr4.PAE
        if vcpu.arch.efer & Efer.LME:
            if not pae or vmcs_readl(vcpu, VmcsField.GUEST_CS_AR_BYTES) & AccessRights.L:
                return True
        elif pae and not load_pdptrs(vcpu, kvm_read_cr3(vcpu)):
            return True
    if not cr0 & Cr0.PG and old & Cr0.PG and is_long_mode(vcpu) and in_64_bit_code(vcpu):
        return True
    vcpu.x86_ops.set_cr0(vcpu, cr0)
    return False


def in_64_bit_code(vcpu: KvmVcpu) -> bool:
    """Whether CS.L is set, which forbids leaving long mode. (KVM does not look.)"""
    return vmcs_readl(vcpu, VmcsField.GUEST_CS_AR_BYTES) & AccessRights.L != 0


def kvm_lmsw(vcpu: KvmVcpu, msw: int) -> bool:
    """LMSW: the low four bits of CR0, and PE can only be set."""
    return kvm_set_cr0(vcpu, kvm_read_cr0(vcpu) & ~0xE | msw & 0xF)


def kvm_set_cr3(vcpu: KvmVcpu, cr3: int) -> bool:
    """MOV to CR3."""
    if is_long_mode(vcpu):
        if cr3 >> MAXPHYADDR:
            return True
    else:
        cr3 &= LOW_32
        if is_pae_paging(vcpu) and not load_pdptrs(vcpu, cr3):
            return True
    vmcs_writel(vcpu, VmcsField.GUEST_CR3, cr3)
    return False


def cr4_is_valid(vcpu: KvmVcpu, cr4: int) -> bool:
    """Whether every bit is one the processor has and the guest was told of."""
    if cr4 & ~CR4_KNOWN:
        return False
    return all(guest_cpuid_has(vcpu, name) for bit, name in CR4_FEATURES.items() if cr4 & bit)


def kvm_set_cr4(vcpu: KvmVcpu, cr4: int) -> bool:
    """MOV to CR4."""
    old = kvm_read_cr4(vcpu)
    if not cr4_is_valid(vcpu, cr4):
        return True
    if is_long_mode(vcpu):
        if not cr4 & Cr4.PAE or (cr4 ^ old) & Cr4.LA57:
            return True
    elif vcpu.arch.cr0 & Cr0.PG and cr4 & Cr4.PAE:
        changed = (cr4 ^ old) & (Cr4.PAE | Cr4.PSE | Cr4.PGE | Cr4.SMEP)
        if changed and not load_pdptrs(vcpu, kvm_read_cr3(vcpu)):
            return True
    vcpu.x86_ops.set_cr4(vcpu, cr4)
    if (cr4 ^ old) & Cr4.OSXSAVE:
        kvm_update_cpuid(vcpu)
    return False


def kvm_set_cr8(vcpu: KvmVcpu, cr8: int) -> bool:
    """MOV to CR8. It goes to userspace's local APIC; the kernel's PIC has no priorities to mask."""
    if cr8 & ~0xF:
        return True
    vcpu.arch.cr8 = cr8
    return False


def set_efer(vcpu: KvmVcpu, efer: int, host_initiated: bool = False) -> bool:
    """WRMSR to EFER. LMA follows LME and paging, and is not written."""
    if efer & ~Efer.DEFINED:
        return True
    if not host_initiated:
        for bit, feature in EFER_FEATURES.items():
            if efer & bit and not guest_cpuid_has(vcpu, feature):
                return True
    old = vcpu.arch.efer
    if kvm_read_cr0(vcpu) & Cr0.PG and (efer ^ old) & Efer.LME:
        return True
    vcpu.x86_ops.set_efer(vcpu, efer & ~Efer.LMA | old & Efer.LMA)
    return False


def kvm_set_xcr(
    vcpu: KvmVcpu, index: int, value: int, host_initiated: bool = False
) -> bool:
    """XSETBV: only XCR0, only x87 and SSE, and x87 always."""
    user = vmcs_readl(vcpu, VmcsField.GUEST_SS_AR_BYTES) & AccessRights.DPL
    if (user and not host_initiated) or index != 0 or value & ~XCR0_KNOWN or not value & Xcr0.X87:
        return True
    vcpu.arch.guest_xcr0 = value
    vcpu.processor.xcr0 = value
    return False
