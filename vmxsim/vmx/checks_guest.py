"""The checks of the guest-state area but for segments: the first that fails is exit reason 33.

SDM Vol. 3, "Checking and Loading Guest State". In the manual the segment checks of
``checks_segments`` come between the two tuples of this module.
"""

from __future__ import annotations

from vmxsim.arch.bits import MASK_32, MASK_64
from vmxsim.arch.capabilities import Misc
from vmxsim.arch.controls import Activity, EntryControls, Interruptibility, PendingDebug
from vmxsim.arch.events import EventType, InterruptionInfo, Vector
from vmxsim.arch.msrs import Msr, valid_pat
from vmxsim.arch.registers import Cr0, Cr4, Efer, Rflags
from vmxsim.arch.segments import AccessRights
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.entry_checks import (
    LINEAR_BITS,
    PAE_PAGING,
    PHYSICAL_MASK,
    SECONDARY,
    EntryState,
    canonical_address,
    check,
    checks_in,
    fixed_bits,
    must_be_zero,
    physical_address,
    wrong,
)
from vmxsim.vmx.vmcs import NO_LINK

CR0_FIXED = (Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1)
CR4_FIXED = (Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1)
DEBUGCTL_BITS = 0b1101_1100_0011
"""LBR, BTF, TR, BTS, BTINT, FREEZE_LBRS, FREEZE_PERFMON: the bits IA32_DEBUGCTL has."""
DEBUGCTL_BTF = 1 << 1
PDPTE_RESERVED = 0x1E6 | ~PHYSICAL_MASK & MASK_64
BAD_PDPTE, BAD_LINK_POINTER = 2, 4
"""Exit qualifications of exit reason 33."""
STI_OR_MOV_SS = Interruptibility.BLOCKING_BY_STI | Interruptibility.BLOCKING_BY_MOV_SS


# "Checks on Guest Control Registers, Debug Registers, and MSRs"


@check(F.GUEST_CR0, *SECONDARY)
def guest_cr0_fixed_bits(state: EntryState) -> str | None:
    """The CR0 field must not set a bit to a value not supported, but for NW, CD (and PE, PG)."""
    free = Cr0.NW | Cr0.CD | (Cr0.PE | Cr0.PG if state.unrestricted else 0)
    return fixed_bits(state, F.GUEST_CR0, CR0_FIXED, free)


@check(F.GUEST_CR0)
def guest_paging_needs_protection(state: EntryState) -> str | None:
    """If bit 31 of CR0 (PG) is 1, bit 0 (PE) must be 1."""
    value = state[F.GUEST_CR0]
    if value & Cr0.PG and not value & Cr0.PE:
        return wrong(F.GUEST_CR0, value, "bit 0, PE, must be 1 as PG is")
    return None


@check(F.GUEST_CR4)
def guest_cr4_fixed_bits(state: EntryState) -> str | None:
    """The CR4 field must not set any bit to a value not supported in VMX operation."""
    return fixed_bits(state, F.GUEST_CR4, CR4_FIXED)


@check(F.VM_ENTRY_CONTROLS, F.GUEST_IA32_DEBUGCTL)
def guest_debugctl_reserved_bits(state: EntryState) -> str | None:
    """With "load debug controls", reserved bits of IA32_DEBUGCTL must be 0."""
    if not state[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_DEBUG_CONTROLS:
        return None
    return must_be_zero(state, F.GUEST_IA32_DEBUGCTL, ~DEBUGCTL_BITS & MASK_64)


@check(F.VM_ENTRY_CONTROLS, F.GUEST_CR0)
def ia32e_guest_needs_paging(state: EntryState) -> str | None:
    """If "IA-32e mode guest" is 1, bit 31 of CR0 (PG) must be 1."""
    value = state[F.GUEST_CR0]
    if not state.ia32e or value & Cr0.PG:
        return None
    return wrong(F.GUEST_CR0, value, "bit 31, PG, must be 1 for an IA-32e mode guest")


@check(F.VM_ENTRY_CONTROLS, F.GUEST_CR4)
def ia32e_guest_needs_pae(state: EntryState) -> str | None:
    """If "IA-32e mode guest" is 1, bit 5 of CR4 (PAE) must be 1."""
    value = state[F.GUEST_CR4]
    if not state.ia32e or value & Cr4.PAE:
        return None
    return wrong(F.GUEST_CR4, value, "bit 5, PAE, must be 1 for an IA-32e mode guest")


@check(F.VM_ENTRY_CONTROLS, F.GUEST_CR4)
def guest_pcid_needs_ia32e(state: EntryState) -> str | None:
    """If "IA-32e mode guest" is 0, bit 17 of CR4 (PCIDE) must be 0."""
    return None if state.ia32e else must_be_zero(state, F.GUEST_CR4, Cr4.PCIDE)


@check(F.GUEST_CR3)
def guest_cr3_width(state: EntryState) -> str | None:
    """Bits of CR3 beyond the physical-address width must be 0."""
    return must_be_zero(state, F.GUEST_CR3, ~PHYSICAL_MASK & MASK_64)


@check(F.VM_ENTRY_CONTROLS, F.GUEST_DR7)
def guest_dr7_width(state: EntryState) -> str | None:
    """With "load debug controls", bits 63:32 of DR7 must be 0."""
    if not state[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_DEBUG_CONTROLS:
        return None
    return must_be_zero(state, F.GUEST_DR7, MASK_64 & ~MASK_32)


@check(F.GUEST_SYSENTER_ESP, F.GUEST_SYSENTER_EIP)
def guest_sysenter_canonical(state: EntryState) -> str | None:
    """IA32_SYSENTER_ESP and IA32_SYSENTER_EIP must each contain a canonical address."""
    return canonical_address(state, F.GUEST_SYSENTER_ESP) or canonical_address(
        state, F.GUEST_SYSENTER_EIP
    )


@check(F.VM_ENTRY_CONTROLS, F.GUEST_IA32_PAT)
def guest_pat(state: EntryState) -> str | None:
    """With "load IA32_PAT", each byte of the PAT must be a memory type."""
    value = state[F.GUEST_IA32_PAT]
    if not state[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_PAT or valid_pat(value):
        return None
    return wrong(F.GUEST_IA32_PAT, value, "each byte must be 0, 1, 4, 5, 6 or 7")


@check(F.VM_ENTRY_CONTROLS, F.GUEST_IA32_EFER)
def guest_efer_reserved_bits(state: EntryState) -> str | None:
    """With "load IA32_EFER", reserved bits of the EFER field must be 0."""
    if not state[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_EFER:
        return None
    return must_be_zero(state, F.GUEST_IA32_EFER, ~Efer.DEFINED & MASK_64)


@check(F.VM_ENTRY_CONTROLS, F.GUEST_IA32_EFER)
def guest_efer_lma(state: EntryState) -> str | None:
    """With "load IA32_EFER", LMA must be equal to "IA-32e mode guest"."""
    value = state[F.GUEST_IA32_EFER]
    if not state[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_EFER:
        return None
    if bool(value & Efer.LMA) == state.ia32e:
        return None
    wanted = f"bit 10, LMA, must be {int(state.ia32e)}, as IA-32e mode guest is"
    return wrong(F.GUEST_IA32_EFER, value, wanted)


@check(F.VM_ENTRY_CONTROLS, F.GUEST_IA32_EFER, F.GUEST_CR0)
def guest_efer_lme(state: EntryState) -> str | None:
    """With "load IA32_EFER", LMA must be equal to LME if bit 31 of CR0 (PG) is 1."""
    value = state[F.GUEST_IA32_EFER]
    loads = state[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_EFER
    if not loads or not state[F.GUEST_CR0] & Cr0.PG:
        return None
    if bool(value & Efer.LMA) == bool(value & Efer.LME):
        return None
    return wrong(F.GUEST_IA32_EFER, value, "LMA and LME must be equal as CR0.PG is 1")


REGISTER_CHECKS = checks_in(globals())


# "Checks on Guest Descriptor-Table Registers"


@check(F.GUEST_GDTR_BASE, F.GUEST_IDTR_BASE)
def guest_table_bases_canonical(state: EntryState) -> str | None:
    """The bases of GDTR and IDTR must be canonical."""
    return canonical_address(state, F.GUEST_GDTR_BASE) or canonical_address(
        state, F.GUEST_IDTR_BASE
    )


@check(F.GUEST_GDTR_LIMIT, F.GUEST_IDTR_LIMIT)
def guest_table_limits(state: EntryState) -> str | None:
    """Bits 31:16 of the limits of GDTR and IDTR must be 0."""
    return must_be_zero(state, F.GUEST_GDTR_LIMIT, 0xFFFF_0000) or must_be_zero(
        state, F.GUEST_IDTR_LIMIT, 0xFFFF_0000
    )


# "Checks on Guest RIP, RFLAGS, and SSP"


def _code64(state: EntryState) -> bool:
    return state.ia32e and state[F.GUEST_CS_AR_BYTES] & AccessRights.L != 0


@check(F.GUEST_RIP, F.VM_ENTRY_CONTROLS, F.GUEST_CS_AR_BYTES)
def guest_rip_width(state: EntryState) -> str | None:
    """Bits 63:32 of RIP must be 0 outside 64-bit mode."""
    return None if _code64(state) else must_be_zero(state, F.GUEST_RIP, MASK_64 & ~MASK_32)


@check(F.GUEST_RIP, F.VM_ENTRY_CONTROLS, F.GUEST_CS_AR_BYTES, F.GUEST_CR4)
def guest_rip_canonical(state: EntryState) -> str | None:
    """In 64-bit mode RIP must be canonical."""
    width = LINEAR_BITS if state[F.GUEST_CR4] & Cr4.LA57 else 48
    return canonical_address(state, F.GUEST_RIP, width) if _code64(state) else None


@check(F.GUEST_RFLAGS)
def guest_rflags_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits 63:22, 15, 5 and 3 of RFLAGS must be 0, and bit 1 must be 1."""
    if not state[F.GUEST_RFLAGS] & Rflags.FIXED:
        return wrong(F.GUEST_RFLAGS, state[F.GUEST_RFLAGS], "bit 1 must be 1")
    return must_be_zero(state, F.GUEST_RFLAGS, ~Rflags.DEFINED & MASK_64)


@check(F.GUEST_RFLAGS, F.VM_ENTRY_CONTROLS, F.GUEST_CR0)
def guest_v8086_needs_legacy_protection(state: EntryState) -> str | None:
    """The VM flag must be 0 for an IA-32e mode guest, and if bit 0 of CR0 (PE) is 0."""
    if state.v8086 and (state.ia32e or not state[F.GUEST_CR0] & Cr0.PE):
        wanted = "bit 17, VM, must be 0 in IA-32e mode and in real mode"
        return wrong(F.GUEST_RFLAGS, state[F.GUEST_RFLAGS], wanted)
    return None


@check(F.GUEST_RFLAGS, F.VM_ENTRY_INTR_INFO_FIELD)
def guest_if_for_injection(state: EntryState) -> str | None:
    """The IF flag must be 1 if an external interrupt is injected."""
    value = state[F.GUEST_RFLAGS]
    if not _injected(state, EventType.EXTERNAL_INTERRUPT) or value & Rflags.IF:
        return None
    return wrong(F.GUEST_RFLAGS, value, "bit 9, IF, must be 1 to inject an external interrupt")


# "Checks on Guest Non-Register State"


def _injected(state: EntryState, kind: EventType) -> bool:
    info = state[F.VM_ENTRY_INTR_INFO_FIELD]
    return info & InterruptionInfo.VALID != 0 and info >> 8 & 7 == kind


@check(F.GUEST_ACTIVITY_STATE)
def guest_activity_state_supported(state: EntryState) -> str | None:
    """The activity state must be 0 to 3, and one that IA32_VMX_MISC supports."""
    value, misc = state[F.GUEST_ACTIVITY_STATE], state.capability(Msr.IA32_VMX_MISC)
    if value == Activity.ACTIVE or (value <= 3 and misc & Misc.ACTIVITY_HLT << value - 1):
        return None
    return wrong(F.GUEST_ACTIVITY_STATE, value, "must be 0 (active) or 1 (HLT)")


@check(F.GUEST_ACTIVITY_STATE, F.GUEST_SS_AR_BYTES)
def guest_halts_at_cpl_0(state: EntryState) -> str | None:
    """The activity state must not be HLT if the DPL of SS is not 0."""
    rights = state[F.GUEST_SS_AR_BYTES]
    if state[F.GUEST_ACTIVITY_STATE] != Activity.HLT or not rights & AccessRights.DPL:
        return None
    return wrong(F.GUEST_SS_AR_BYTES, rights, "the DPL must be 0 in the HLT state")


@check(F.GUEST_ACTIVITY_STATE, F.GUEST_INTERRUPTIBILITY_INFO)
def guest_blocking_needs_activity(state: EntryState) -> str | None:
    """The activity state must be active if there is blocking by STI or by MOV SS."""
    value = state[F.GUEST_ACTIVITY_STATE]
    if value == Activity.ACTIVE or not state[F.GUEST_INTERRUPTIBILITY_INFO] & STI_OR_MOV_SS:
        return None
    return wrong(F.GUEST_ACTIVITY_STATE, value, "must be 0 with blocking by STI or MOV SS")


@check(F.GUEST_ACTIVITY_STATE, F.VM_ENTRY_INTR_INFO_FIELD)
def guest_activity_allows_injection(state: EntryState) -> str | None:
    """What is injected into the HLT state must be able to end it."""
    info, value = state[F.VM_ENTRY_INTR_INFO_FIELD], state[F.GUEST_ACTIVITY_STATE]
    if not info & InterruptionInfo.VALID or value != Activity.HLT:
        return None
    kind, vector = info >> 8 & 7, info & 0xFF
    if kind in (EventType.EXTERNAL_INTERRUPT, EventType.NMI):
        return None
    if kind == EventType.HARDWARE_EXCEPTION and vector in (Vector.DB, Vector.MC):
        return None
    if kind == EventType.OTHER and not vector:
        return None
    wanted = "an interrupt, an NMI, #DB or #MC is all that ends the HLT state"
    return wrong(F.VM_ENTRY_INTR_INFO_FIELD, info, wanted)


@check(F.GUEST_INTERRUPTIBILITY_INFO)
def guest_interruptibility_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits 31:5 must be 0; so must blocking by SMI, and enclaves, that we do not have."""
    field, also = F.GUEST_INTERRUPTIBILITY_INFO, Interruptibility
    reserved = also.RESERVED | also.BLOCKING_BY_SMI | also.ENCLAVE_INTERRUPTION
    return must_be_zero(state, field, reserved)


@check(F.GUEST_INTERRUPTIBILITY_INFO)
def guest_blocked_by_one_thing(state: EntryState) -> str | None:
    """Blocking by STI and blocking by MOV SS cannot both be 1."""
    value = state[F.GUEST_INTERRUPTIBILITY_INFO]
    if value & STI_OR_MOV_SS != STI_OR_MOV_SS:
        return None
    return wrong(F.GUEST_INTERRUPTIBILITY_INFO, value, "bits 0 and 1 must not both be 1")


@check(F.GUEST_INTERRUPTIBILITY_INFO, F.GUEST_RFLAGS)
def guest_sti_needs_if(state: EntryState) -> str | None:
    """Blocking by STI must be 0 if the IF flag is 0."""
    value = state[F.GUEST_INTERRUPTIBILITY_INFO]
    if state[F.GUEST_RFLAGS] & Rflags.IF or not value & Interruptibility.BLOCKING_BY_STI:
        return None
    return wrong(F.GUEST_INTERRUPTIBILITY_INFO, value, "bit 0, STI, must be 0 as RFLAGS.IF is")


@check(F.GUEST_INTERRUPTIBILITY_INFO, F.VM_ENTRY_INTR_INFO_FIELD)
def guest_not_blocked_for_interrupt(state: EntryState) -> str | None:
    """Blocking by STI and by MOV SS must be 0 if an external interrupt is injected."""
    if not _injected(state, EventType.EXTERNAL_INTERRUPT):
        return None
    return must_be_zero(state, F.GUEST_INTERRUPTIBILITY_INFO, STI_OR_MOV_SS)


@check(F.GUEST_INTERRUPTIBILITY_INFO, F.VM_ENTRY_INTR_INFO_FIELD)
def guest_not_blocked_for_nmi(state: EntryState) -> str | None:
    """Blocking by MOV SS must be 0 if an NMI is injected."""
    if not _injected(state, EventType.NMI):
        return None
    blocking = Interruptibility.BLOCKING_BY_MOV_SS
    return must_be_zero(state, F.GUEST_INTERRUPTIBILITY_INFO, blocking)


@check(F.GUEST_PENDING_DBG_EXCEPTIONS)
def guest_pending_debug_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits of the pending debug exceptions must be 0; so must RTM's and bus locks'."""
    allowed = PendingDebug.B0_TO_B3 | PendingDebug.ENABLED_BREAKPOINT | PendingDebug.BS
    return must_be_zero(state, F.GUEST_PENDING_DBG_EXCEPTIONS, ~allowed & MASK_64)


@check(
    F.GUEST_PENDING_DBG_EXCEPTIONS, F.GUEST_INTERRUPTIBILITY_INFO, F.GUEST_ACTIVITY_STATE,
    F.GUEST_RFLAGS, F.GUEST_IA32_DEBUGCTL,
)  # fmt: skip
def guest_pending_single_step(state: EntryState) -> str | None:
    """With blocking or HLT, BS must be 1 exactly if TF is 1 and IA32_DEBUGCTL.BTF is 0."""
    blocked = state[F.GUEST_INTERRUPTIBILITY_INFO] & STI_OR_MOV_SS
    if not blocked and state[F.GUEST_ACTIVITY_STATE] != Activity.HLT:
        return None
    value, flags = state[F.GUEST_PENDING_DBG_EXCEPTIONS], state[F.GUEST_RFLAGS]
    stepping = bool(flags & Rflags.TF) and not state[F.GUEST_IA32_DEBUGCTL] & DEBUGCTL_BTF
    if bool(value & PendingDebug.BS) == stepping:
        return None
    wanted = f"bit 14, BS, must be {int(stepping)}, as TF is {int(bool(flags & Rflags.TF))}"
    return wrong(F.GUEST_PENDING_DBG_EXCEPTIONS, value, wanted)


@check(F.VMCS_LINK_POINTER, qualification=BAD_LINK_POINTER)
def vmcs_link_pointer_address(state: EntryState) -> str | None:
    """The VMCS link pointer must be all ones, or a page's address."""
    if state[F.VMCS_LINK_POINTER] == NO_LINK:
        return None
    return physical_address(state, F.VMCS_LINK_POINTER, 0x1000)


@check(F.VMCS_LINK_POINTER, qualification=BAD_LINK_POINTER)
def vmcs_link_pointer_revision(state: EntryState) -> str | None:
    """The region it points to must hold our revision identifier, and bit 31 as VMCS shadowing."""
    value = state[F.VMCS_LINK_POINTER]
    wanted = state.capability(Msr.IA32_VMX_BASIC) & 0x7FFF_FFFF
    if value == NO_LINK or state.region_revision(value) == wanted:
        return None
    return wrong(F.VMCS_LINK_POINTER, value, f"the region's first word must be {wanted:#x}")


# "Checks on Guest Page-Directory-Pointer-Table Entries"


@check(
    *PAE_PAGING, *SECONDARY, F.GUEST_CR3, F.GUEST_PDPTR0, F.GUEST_PDPTR1, F.GUEST_PDPTR2,
    F.GUEST_PDPTR3, qualification=BAD_PDPTE,
)  # fmt: skip
def guest_pdptes(state: EntryState) -> str | None:
    """With PAE paging, no present PDPTE may set a reserved bit."""
    if not state.pae_paging:
        return None
    for number, (source, entry) in enumerate(state.pdptes()):
        if entry & 1 and entry & PDPTE_RESERVED:
            return f"PDPTE{number} in {source} is {entry:#x}: reserved bits must be 0"
    return None


REST_CHECKS = tuple(each for each in checks_in(globals()) if each not in REGISTER_CHECKS)
