"""The checks of the host-state area; the first that fails makes VM entry fail with error 8.

SDM Vol. 3, "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host Segment and
Descriptor-Table Registers", "Checks Related to Address-Space Size".
"""

from __future__ import annotations

from vmxsim.arch.bits import MASK_32, MASK_64
from vmxsim.arch.controls import EntryControls, ExitControls
from vmxsim.arch.msrs import Msr, valid_pat
from vmxsim.arch.registers import Cr4, Efer
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.entry_checks import (
    LINEAR_BITS,
    PHYSICAL_MASK,
    EntryState,
    canonical_address,
    check,
    checks_in,
    fixed_bits,
    must_be_zero,
    wrong,
)

HOST_SELECTORS = (
    F.HOST_CS_SELECTOR, F.HOST_SS_SELECTOR, F.HOST_DS_SELECTOR, F.HOST_ES_SELECTOR,
    F.HOST_FS_SELECTOR, F.HOST_GS_SELECTOR, F.HOST_TR_SELECTOR,
)  # fmt: skip
HOST_BASES = (
    F.HOST_FS_BASE, F.HOST_GS_BASE, F.HOST_GDTR_BASE, F.HOST_IDTR_BASE, F.HOST_TR_BASE,
)  # fmt: skip


def _host64(state: EntryState) -> bool:
    return state[F.VM_EXIT_CONTROLS] & ExitControls.HOST_ADDRESS_SPACE_SIZE != 0


@check(F.HOST_CR0)
def host_cr0_fixed_bits(state: EntryState) -> str | None:
    """The CR0 field must not set any bit to a value not supported in VMX operation."""
    return fixed_bits(state, F.HOST_CR0, (Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1))


@check(F.HOST_CR4)
def host_cr4_fixed_bits(state: EntryState) -> str | None:
    """The CR4 field must not set any bit to a value not supported in VMX operation."""
    return fixed_bits(state, F.HOST_CR4, (Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1))


@check(F.HOST_CR3)
def host_cr3_width(state: EntryState) -> str | None:
    """Bits of CR3 beyond the physical-address width must be 0."""
    return must_be_zero(state, F.HOST_CR3, ~PHYSICAL_MASK & MASK_64)


@check(F.HOST_IA32_SYSENTER_ESP, F.HOST_IA32_SYSENTER_EIP)
def host_sysenter_canonical(state: EntryState) -> str | None:
    """IA32_SYSENTER_ESP and IA32_SYSENTER_EIP must each contain a canonical address."""
    return canonical_address(state, F.HOST_IA32_SYSENTER_ESP) or canonical_address(
        state, F.HOST_IA32_SYSENTER_EIP
    )


@check(F.VM_EXIT_CONTROLS, F.HOST_IA32_PAT)
def host_pat(state: EntryState) -> str | None:
    """With "load IA32_PAT", each byte of the PAT must be a memory type."""
    value = state[F.HOST_IA32_PAT]
    if not state[F.VM_EXIT_CONTROLS] & ExitControls.LOAD_PAT or valid_pat(value):
        return None
    return wrong(F.HOST_IA32_PAT, value, "each byte must be 0, 1, 4, 5, 6 or 7")


@check(F.VM_EXIT_CONTROLS, F.HOST_IA32_EFER)
def host_efer_reserved_bits(state: EntryState) -> str | None:
    """With "load IA32_EFER", reserved bits of the EFER field must be 0."""
    if not state[F.VM_EXIT_CONTROLS] & ExitControls.LOAD_EFER:
        return None
    return must_be_zero(state, F.HOST_IA32_EFER, ~Efer.DEFINED & MASK_64)


@check(F.VM_EXIT_CONTROLS, F.HOST_IA32_EFER)
def host_efer_long_mode(state: EntryState) -> str | None:
    """With "load IA32_EFER", LMA and LME must each be equal to "host address-space size"."""
    if not state[F.VM_EXIT_CONTROLS] & ExitControls.LOAD_EFER:
        return None
    value, wanted = state[F.HOST_IA32_EFER], Efer.LMA | Efer.LME if _host64(state) else 0
    if value & (Efer.LMA | Efer.LME) == wanted:
        return None
    both = f"LMA and LME must both be {int(wanted != 0)}, as host address-space size is"
    return wrong(F.HOST_IA32_EFER, value, both)


# "Checks on Host Segment and Descriptor-Table Registers"


@check(*HOST_SELECTORS)
def host_selector_rpl_and_ti(state: EntryState) -> str | None:
    """In each selector the RPL (bits 1:0) and the TI flag (bit 2) must be 0."""
    return next((bad for field in HOST_SELECTORS if (bad := must_be_zero(state, field, 7))), None)


@check(F.HOST_CS_SELECTOR)
def host_cs_is_not_null(state: EntryState) -> str | None:
    """The selector of CS cannot be 0000H."""
    value = state[F.HOST_CS_SELECTOR]
    return None if value else wrong(F.HOST_CS_SELECTOR, value, "must not be 0")


@check(F.HOST_TR_SELECTOR)
def host_tr_is_not_null(state: EntryState) -> str | None:
    """The selector of TR cannot be 0000H."""
    value = state[F.HOST_TR_SELECTOR]
    return None if value else wrong(F.HOST_TR_SELECTOR, value, "must not be 0")


@check(F.VM_EXIT_CONTROLS, F.HOST_SS_SELECTOR)
def host_ss_is_not_null(state: EntryState) -> str | None:
    """The selector of SS cannot be 0000H if "host address-space size" is 0."""
    if state[F.HOST_SS_SELECTOR] or _host64(state):
        return None
    return wrong(F.HOST_SS_SELECTOR, 0, "must not be 0 for a 32-bit host")


@check(*HOST_BASES)
def host_bases_canonical(state: EntryState) -> str | None:
    """The bases of FS, GS, GDTR, IDTR and TR must be canonical."""
    return next((bad for field in HOST_BASES if (bad := canonical_address(state, field))), None)


# "Checks Related to Address-Space Size"


@check(F.VM_EXIT_CONTROLS, F.VM_ENTRY_CONTROLS)
def address_space_size_is_the_current_one(state: EntryState) -> str | None:
    """If root mode is in IA-32e mode, "host address-space size" must be 1; else both must be 0."""
    entry, value = state[F.VM_ENTRY_CONTROLS], state[F.VM_EXIT_CONTROLS]
    if state.root_lma:
        if _host64(state):
            return None
        return wrong(F.VM_EXIT_CONTROLS, value, "host address-space size must be 1 here")
    if _host64(state):
        return wrong(F.VM_EXIT_CONTROLS, value, "host address-space size must be 0 here")
    if entry & EntryControls.IA32E_MODE_GUEST:
        return wrong(F.VM_ENTRY_CONTROLS, entry, "IA-32e mode guest must be 0 here")
    return None


@check(F.VM_EXIT_CONTROLS, F.VM_ENTRY_CONTROLS)
def host32_has_no_ia32e_guest(state: EntryState) -> str | None:
    """If "host address-space size" is 0, "IA-32e mode guest" must be 0."""
    entry = state[F.VM_ENTRY_CONTROLS]
    if _host64(state) or not entry & EntryControls.IA32E_MODE_GUEST:
        return None
    return wrong(F.VM_ENTRY_CONTROLS, entry, "IA-32e mode guest needs host address-space size")


@check(F.VM_EXIT_CONTROLS, F.HOST_CR4)
def host32_has_no_pcid(state: EntryState) -> str | None:
    """If "host address-space size" is 0, bit 17 of CR4 (PCIDE) must be 0."""
    return None if _host64(state) else must_be_zero(state, F.HOST_CR4, Cr4.PCIDE)


@check(F.VM_EXIT_CONTROLS, F.HOST_RIP)
def host32_rip(state: EntryState) -> str | None:
    """If "host address-space size" is 0, bits 63:32 of RIP must be 0."""
    return None if _host64(state) else must_be_zero(state, F.HOST_RIP, MASK_64 & ~MASK_32)


@check(F.VM_EXIT_CONTROLS, F.HOST_CR4)
def host64_has_pae(state: EntryState) -> str | None:
    """If "host address-space size" is 1, bit 5 of CR4 (PAE) must be 1."""
    value = state[F.HOST_CR4]
    if not _host64(state) or value & Cr4.PAE:
        return None
    return wrong(F.HOST_CR4, value, "bit 5, PAE, must be 1 for a 64-bit host")


@check(F.VM_EXIT_CONTROLS, F.HOST_RIP, F.HOST_CR4)
def host64_rip_canonical(state: EntryState) -> str | None:
    """If "host address-space size" is 1, RIP must be canonical."""
    width = LINEAR_BITS if state[F.HOST_CR4] & Cr4.LA57 else 48
    return canonical_address(state, F.HOST_RIP, width) if _host64(state) else None


HOST_CHECKS = checks_in(globals())
