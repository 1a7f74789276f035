"""The VMCS as KVM sets it up, and the guest registers that live in it.

Linux: the part of arch/x86/kvm/vmx.c (4.19) from setup_vmcs_config to vmx_vcpu_reset, with
vmx_set_cr0 and its relatives. The host here is Python, so its state only has to be a legal one.
"""

from __future__ import annotations

from vmxsim.arch.capabilities import adjust
from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary
from vmxsim.arch.events import Vector
from vmxsim.arch.msrs import APIC_BASE_RESET, PAT_RESET, Msr
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Dr7, Efer, Gpr, Rflags
from vmxsim.arch.segments import AccessRights, Segment
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.kvm.control_regs import KVM_GUEST_OWNED_CR0, cr4_guest_owned_bits
from vmxsim.kvm.cpuid import guest_cpuid_has
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.msr import (
    SHARED_MSRS,
    VMCS_MSRS,
    kvm_get_msr_common,
    kvm_set_msr_common,
    write_tsc_offset,
)
from vmxsim.kvm.vmx_ops import vmcs_readl, vmcs_writel

F = VmcsField

HOST_PAGES = 0x7F_FFFF_0000
"""Where this host keeps its own pages, in physical addresses above any guest memory."""
VMXON_REGION = HOST_PAGES
VMCS_REGION = HOST_PAGES + 0x1000
MSR_BITMAP_PAGE = HOST_PAGES + 0x2000
EPT_ROOT = HOST_PAGES + 0x3000
HOST_CS, HOST_DS, HOST_TSS = 0x10, 0x18, 0x40
HOST_RIP = 0xFFFF_FFFF_8100_0000
EPTP_WRITE_BACK_4_LEVELS = 6 | 3 << 3

FXSAVE_RESET = b"\x7f\x03".ljust(24, b"\0") + (0x1F80).to_bytes(4, "little") + bytes(484)
"""What Linux gives a vCPU for x87 and SSE: FNINIT's control word, an empty stack (fx_init)."""

PIN_BASED = PinBased.EXTERNAL_INTERRUPT_EXITING
CPU_BASED = (
    CpuBased.HLT_EXITING
    | CpuBased.CR8_LOAD_EXITING
    | CpuBased.CR8_STORE_EXITING
    | CpuBased.UNCONDITIONAL_IO_EXITING
    | CpuBased.MOV_DR_EXITING
    | CpuBased.USE_TSC_OFFSETTING
    | CpuBased.MWAIT_EXITING
    | CpuBased.MONITOR_EXITING
    | CpuBased.RDPMC_EXITING
    | CpuBased.USE_MSR_BITMAPS
    | CpuBased.ACTIVATE_SECONDARY_CONTROLS
)
"""setup_vmcs_config with EPT: no exits for CR3 and INVLPG. No TPR shadow, hence CR8 exits."""
SECONDARY = (
    Secondary.ENABLE_EPT
    | Secondary.UNRESTRICTED_GUEST
    | Secondary.ENABLE_VPID
    | Secondary.WBINVD_EXITING
    | Secondary.RDRAND_EXITING
    | Secondary.RDSEED_EXITING
)
"""vmx_compute_secondary_exec_control, for a guest without any CPUID features."""
EXIT_CONTROLS = (
    ExitControls.SAVE_DEBUG_CONTROLS
    | ExitControls.HOST_ADDRESS_SPACE_SIZE
    | ExitControls.ACKNOWLEDGE_INTERRUPT_ON_EXIT
    | ExitControls.SAVE_PAT
    | ExitControls.LOAD_PAT
    | ExitControls.LOAD_EFER
)
ENTRY_CONTROLS = (
    EntryControls.LOAD_DEBUG_CONTROLS | EntryControls.LOAD_PAT | EntryControls.LOAD_EFER
)
EXCEPTIONS = (1 << Vector.UD) | (1 << Vector.MC) | (1 << Vector.DB) | (1 << Vector.AC)
"""update_exception_bitmap with EPT: #PF is the guest's own affair."""

PASSED_THROUGH = (
    Msr.IA32_FS_BASE,
    Msr.IA32_GS_BASE,
    Msr.IA32_KERNEL_GS_BASE,
    Msr.IA32_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP,
)
"""MSRs that never exit, as in vmx_create_vcpu."""

_SEGMENT_STEP = F.GUEST_CS_BASE - F.GUEST_ES_BASE

# -- set-up ----------------------------------------------------------------------------------------


def vmx_vcpu_setup(vcpu: KvmVcpu) -> None:
    """Fill in the control fields. Linux calls it from vmx_create_vcpu."""
    capability = vcpu.processor.capability_msr
    vcpu.processor.host_pages.register(MSR_BITMAP_PAGE, msr_bitmap())
    vcpu.exec_control = adjust(capability(Msr.IA32_VMX_TRUE_PROCBASED_CTLS), CPU_BASED)
    eptp = construct_eptp(EPT_ROOT)
    for field, value in {
        F.PIN_BASED_VM_EXEC_CONTROL: adjust(
            capability(Msr.IA32_VMX_TRUE_PINBASED_CTLS), PIN_BASED
        ),
        F.CPU_BASED_VM_EXEC_CONTROL: vcpu.exec_control,
        F.VM_EXIT_CONTROLS: adjust(capability(Msr.IA32_VMX_TRUE_EXIT_CTLS), EXIT_CONTROLS),
        F.VM_ENTRY_CONTROLS: adjust(capability(Msr.IA32_VMX_TRUE_ENTRY_CTLS), ENTRY_CONTROLS),
        F.MSR_BITMAP: MSR_BITMAP_PAGE,
        F.EPT_POINTER: eptp,
        F.VIRTUAL_PROCESSOR_ID: vcpu.id + 1,
        F.VMCS_LINK_POINTER: (1 << 64) - 1,
        F.EXCEPTION_BITMAP: EXCEPTIONS,
        F.PAGE_FAULT_ERROR_CODE_MASK: 0,
        F.PAGE_FAULT_ERROR_CODE_MATCH: 0,
        F.CR3_TARGET_COUNT: 0,
        F.CR0_GUEST_HOST_MASK: ~KVM_GUEST_OWNED_CR0 & (1 << 64) - 1,
    }.items():
        vmcs_writel(vcpu, field, value)
    vmx_cpuid_update(vcpu)
    vmx_set_constant_host_state(vcpu)


def construct_eptp(root: int) -> int:
    """The EPT pointer: four levels, write-back. There are no tables; the slots stand for them."""
    return root | EPTP_WRITE_BACK_4_LEVELS


def msr_bitmap() -> bytearray:
    """A page that lets the guest at some MSRs and makes all others exit.

    SDM Vol. 3, "MSR-Bitmap Address": reads of low MSRs, reads of high ones, then writes.
    """
    page = bytearray(b"\xff" * 4096)
    for msr in PASSED_THROUGH:
        offset = (0 if msr < 0x2000 else 1024) + ((msr & 0x1FFF) >> 3)
        for half in (0, 2048):
            page[half + offset] &= ~(1 << (msr & 7)) & 0xFF
    return page


def vmx_cpuid_update(vcpu: KvmVcpu) -> None:
    """Give the guest the instructions that its CPUID promises; the others are #UD."""
    secondary = SECONDARY
    for feature, enable in {
        "RDTSCP": Secondary.ENABLE_RDTSCP,
        "INVPCID": Secondary.ENABLE_INVPCID,
        "XSAVES": Secondary.ENABLE_XSAVES,
    }.items():
        if guest_cpuid_has(vcpu, feature):
            secondary |= enable
    for feature, exiting in {
        "RDRAND": Secondary.RDRAND_EXITING,
        "RDSEED": Secondary.RDSEED_EXITING,
    }.items():
        if guest_cpuid_has(vcpu, feature):
            secondary &= ~exiting
    capability = vcpu.processor.capability_msr(Msr.IA32_VMX_PROCBASED_CTLS2)
    vmcs_writel(vcpu, F.SECONDARY_VM_EXEC_CONTROL, adjust(capability, secondary))
    set_cr4_guest_host_mask(vcpu)


def set_cr4_guest_host_mask(vcpu: KvmVcpu) -> None:
    """Say which bits of CR4 exit when the guest changes them."""
    owned = cr4_guest_owned_bits(vcpu)
    vmcs_writel(vcpu, F.CR4_GUEST_HOST_MASK, ~owned & (1 << 64) - 1)


def vmx_set_constant_host_state(vcpu: KvmVcpu) -> None:
    """The host to come back to. It is Python, so the values only have to be a legal host's."""
    for field, value in {
        F.HOST_CR0: Cr0.PG | Cr0.AM | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE,
        F.HOST_CR3: HOST_PAGES + 0x8000,
        F.HOST_CR4: Cr4.PAE | Cr4.PSE | Cr4.PGE | Cr4.MCE | Cr4.OSFXSR | Cr4.VMXE,
        F.HOST_CS_SELECTOR: HOST_CS,
        F.HOST_SS_SELECTOR: HOST_DS,
        F.HOST_TR_SELECTOR: HOST_TSS,
        F.HOST_RIP: HOST_RIP,
        F.HOST_RSP: HOST_RIP + 0x10_0000,
        F.HOST_GDTR_BASE: HOST_RIP + 0x20_0000,
        F.HOST_IDTR_BASE: HOST_RIP + 0x20_1000,
        F.HOST_TR_BASE: HOST_RIP + 0x20_2000,
        F.HOST_IA32_PAT: PAT_RESET,
        F.HOST_IA32_EFER: Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE,
    }.items():
        vmcs_writel(vcpu, field, value)


def vmx_vcpu_reset(vcpu: KvmVcpu) -> None:
    """The guest's registers after RESET. SDM Vol. 3, "Processor State After Reset"."""
    processor, arch = vcpu.processor, vcpu.arch
    for number in range(16):
        processor.gpr[number] = 0
    processor.gpr[Gpr.RDX] = 0x600
    for segment in Segment:
        seg_setup(vcpu, segment)
    vmcs_writel(vcpu, F.GUEST_CS_SELECTOR, 0xF000)
    vmcs_writel(vcpu, F.GUEST_CS_BASE, 0xFFFF_0000)
    for field, value in {
        F.GUEST_CS_AR_BYTES: AccessRights.REAL_CODE,
        F.GUEST_LDTR_AR_BYTES: AccessRights.LDT,
        F.GUEST_TR_AR_BYTES: AccessRights.BUSY_TSS,
        F.GUEST_RFLAGS: Rflags.FIXED,
        F.GUEST_RIP: 0xFFF0,
        F.GUEST_GDTR_LIMIT: 0xFFFF,
        F.GUEST_IDTR_LIMIT: 0xFFFF,
        F.GUEST_DR7: Dr7.FIXED,
        F.GUEST_IA32_PAT: PAT_RESET,
        F.GUEST_CR3: 0,
    }.items():
        vmcs_writel(vcpu, field, value)
    arch.apic_base = APIC_BASE_RESET
    arch.guest_xcr0 = processor.xcr0 = 1
    processor.cr2 = 0
    processor.dr[:4] = [0, 0, 0, 0]
    processor.dr[6] = Dr6.FIXED
    processor.fxrstor(FXSAVE_RESET)
    write_tsc_offset(vcpu, -vcpu.clock.tsc())
    vmx_set_cr0(vcpu, Cr0.NW | Cr0.CD | Cr0.ET)
    vmx_set_cr4(vcpu, 0)
    vmx_set_efer(vcpu, 0)


def seg_setup(vcpu: KvmVcpu, segment: Segment) -> None:
    """A segment register after RESET."""
    step = _SEGMENT_STEP * segment
    vmcs_writel(vcpu, F.GUEST_ES_SELECTOR + step, 0)
    vmcs_writel(vcpu, F.GUEST_ES_BASE + step, 0)
    vmcs_writel(vcpu, F.GUEST_ES_LIMIT + step, 0xFFFF)
    vmcs_writel(vcpu, F.GUEST_ES_AR_BYTES + step, AccessRights.REAL_DATA)


# -- registers -------------------------------------------------------------------------------------


def vmx_set_cr0(vcpu: KvmVcpu, cr0: int) -> None:
    """CR0 as the guest wants it in the shadow, and as VMX allows it in the register."""
    old, arch = vcpu.arch.cr0, vcpu.arch
    if arch.efer & Efer.LME:
        if cr0 & Cr0.PG and not old & Cr0.PG:
            enter_lmode(vcpu)
        elif old & Cr0.PG and not cr0 & Cr0.PG:
            vmx_set_efer(vcpu, arch.efer & ~Efer.LMA)
    vmcs_writel(vcpu, F.CR0_READ_SHADOW, cr0)
    vmcs_writel(vcpu, F.GUEST_CR0, cr0 & ~(Cr0.NW | Cr0.CD) | Cr0.NE)
    arch.cr0 = cr0


def enter_lmode(vcpu: KvmVcpu) -> None:
    """Paging goes on with EFER.LME: LMA, and a 64-bit TSS, which VM entry insists on."""
    rights = vmcs_readl(vcpu, F.GUEST_TR_AR_BYTES)
    if rights & AccessRights.TYPE != AccessRights.BUSY_TSS & AccessRights.TYPE:
        vmcs_writel(vcpu, F.GUEST_TR_AR_BYTES, rights & ~AccessRights.TYPE | 0xB)
    vmx_set_efer(vcpu, vcpu.arch.efer | Efer.LMA)


def vmx_set_cr4(vcpu: KvmVcpu, cr4: int) -> None:
    """CR4 as the guest wants it in the shadow, with VMXE, which VMX needs, in the register."""
    vcpu.arch.cr4 = cr4
    vmcs_writel(vcpu, F.CR4_READ_SHADOW, cr4)
    vmcs_writel(vcpu, F.GUEST_CR4, cr4 | Cr4.VMXE)


def vmx_set_efer(vcpu: KvmVcpu, efer: int) -> None:
    """EFER, and the entry control that must agree with its LMA."""
    vcpu.arch.efer = efer
    controls = vmcs_readl(vcpu, F.VM_ENTRY_CONTROLS) & ~EntryControls.IA32E_MODE_GUEST
    if efer & Efer.LMA:
        controls |= EntryControls.IA32E_MODE_GUEST
    vmcs_writel(vcpu, F.VM_ENTRY_CONTROLS, controls)
    vmcs_writel(vcpu, F.GUEST_IA32_EFER, efer)


def vmx_get_msr(vcpu: KvmVcpu, index: int) -> int | None:
    """RDMSR of what the VMCS or the processor holds; None for #GP."""
    if index in VMCS_MSRS:
        return vmcs_readl(vcpu, VMCS_MSRS[index])
    if index in SHARED_MSRS:
        return vcpu.processor.msr(index)
    return kvm_get_msr_common(vcpu, index)


def vmx_set_msr(vcpu: KvmVcpu, index: int, value: int, host_initiated: bool) -> bool:
    """WRMSR of what the VMCS or the processor holds; True for #GP."""
    if index in VMCS_MSRS:
        vmcs_writel(vcpu, VMCS_MSRS[index], value)
        return False
    if index in SHARED_MSRS:
        vcpu.processor.set_msr(index, value)
        return False
    return kvm_set_msr_common(vcpu, index, value, host_initiated)
