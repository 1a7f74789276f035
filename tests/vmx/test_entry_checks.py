"""Every check of VM entry, each with the smallest damage that it finds, and none before it."""

# One row, one line.
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import capabilities
from vmxsim.arch.capabilities import VMCS_REVISION
from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Efer, Rflags
from vmxsim.arch.segments import AccessRights
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.vmx.entry import ENTRY_CHECKS, select
from vmxsim.vmx.entry_checks import Check, EntryState, first_failure
from vmxsim.vmx.vmcs import SUPPORTED, Vmcs

from .valid_guests import long_mode_guest, pae_guest, real_mode_guest, v8086_guest

Guest = Callable[[], dict[int, int]]
LONG, REAL, V86, PAE = long_mode_guest, real_mode_guest, v8086_guest, pae_guest
HIGH = 1 << 40
NON_CANONICAL = 1 << 60
INT_20H, NMI, GP, INT3 = 0x8000_0020, 0x8000_0202, 0x8000_0B0D, 0x8000_0603
NMI_PINS = PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS


class Damage(NamedTuple):
    """Bits to flip in fields of a valid guest (``set``: values to put), and words of the message.

    ``restricted`` takes "unrestricted guest" away first; ``allow`` has the capability MSRs allow
    controls that they do not, where a check cannot be reached otherwise.
    """

    check: str
    guest: Guest
    flip: dict[int, int]
    set: dict[int, int]
    said: str
    restricted: bool = False
    allow: dict[Msr, int] = {}  # noqa: RUF012  (never changed)


def flip(check: str, guest: Guest, said: str, restricted: bool = False, **fields: int) -> Damage:
    return Damage(check, guest, {F[n]: v for n, v in fields.items()}, {}, said, restricted)


def put(check: str, guest: Guest, said: str, restricted: bool = False, **fields: int) -> Damage:
    return Damage(check, guest, {}, {F[n]: v for n, v in fields.items()}, said, restricted)


SECONDARY_BITS = Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST
CPU_BITS = long_mode_guest()[F.CPU_BASED_VM_EXEC_CONTROL]
EXIT_BITS = long_mode_guest()[F.VM_EXIT_CONTROLS]
ENTRY_BITS = long_mode_guest()[F.VM_ENTRY_CONTROLS]
EPTP = long_mode_guest()[F.EPT_POINTER]
UNUSABLE = AccessRights.UNUSABLE
EXIT_32 = EXIT_BITS & ~ExitControls.HOST_ADDRESS_SPACE_SIZE

# fmt: off
DAMAGES = [
    # controls
    flip("pin_based_reserved_bits", LONG, "bit 1 must be 1 (IA32_VMX_TRUE_PINBASED_CTLS)", PIN_BASED_VM_EXEC_CONTROL=1 << 1),
    flip("pin_based_reserved_bits", LONG, "bit 6 must be 0", PIN_BASED_VM_EXEC_CONTROL=1 << 6),
    flip("cpu_based_reserved_bits", LONG, "bit 21 must be 0", CPU_BASED_VM_EXEC_CONTROL=1 << 21),
    flip("secondary_reserved_bits", LONG, "bit 0 must be 0", SECONDARY_VM_EXEC_CONTROL=1),
    put("cr3_target_count", LONG, "CR3_TARGET_COUNT is 0x5: must be at most 4", CR3_TARGET_COUNT=5),
    put("io_bitmap_a_address", LONG, "multiple of 0x1000", CPU_BASED_VM_EXEC_CONTROL=CPU_BITS | CpuBased.USE_IO_BITMAPS, IO_BITMAP_A=0x1001),
    put("io_bitmap_b_address", LONG, "below 2^39", CPU_BASED_VM_EXEC_CONTROL=CPU_BITS | CpuBased.USE_IO_BITMAPS, IO_BITMAP_B=1 << 39),
    put("msr_bitmap_address", LONG, "multiple of 0x1000", CPU_BASED_VM_EXEC_CONTROL=CPU_BITS | CpuBased.USE_MSR_BITMAPS, MSR_BITMAP=8),
    flip("virtual_nmis_need_nmi_exiting", LONG, "need NMI exiting", PIN_BASED_VM_EXEC_CONTROL=PinBased.VIRTUAL_NMIS)._replace(allow={Msr.IA32_VMX_TRUE_PINBASED_CTLS: NMI_PINS}),
    flip("nmi_window_exiting_needs_virtual_nmis", LONG, "needs virtual NMIs", CPU_BASED_VM_EXEC_CONTROL=CpuBased.NMI_WINDOW_EXITING)._replace(allow={Msr.IA32_VMX_TRUE_PROCBASED_CTLS: CpuBased.NMI_WINDOW_EXITING}),
    flip("vpid_is_not_zero", LONG, "VIRTUAL_PROCESSOR_ID is 0x0", SECONDARY_VM_EXEC_CONTROL=Secondary.ENABLE_VPID),
    put("eptp_memory_type", LONG, "bits 2:0", EPT_POINTER=EPTP & ~7 | 1),
    put("eptp_walk_length", LONG, "bits 5:3 must be 3", EPT_POINTER=EPTP & ~0x38 | 4 << 3),
    flip("eptp_accessed_dirty", LONG, "bit 6", EPT_POINTER=1 << 6),
    flip("eptp_reserved_bits", LONG, "bit 7 must be 0", EPT_POINTER=1 << 7),
    flip("eptp_reserved_bits", LONG, "bit 40 must be 0", EPT_POINTER=HIGH),
    flip("unrestricted_guest_needs_ept", LONG, "needs enable EPT", SECONDARY_VM_EXEC_CONTROL=Secondary.ENABLE_EPT),
    flip("exit_reserved_bits", LONG, "bit 0 must be 1", VM_EXIT_CONTROLS=1),
    put("exit_msr_store_area", LONG, "multiple of 16", VM_EXIT_MSR_STORE_COUNT=1, VM_EXIT_MSR_STORE_ADDR=8),
    put("exit_msr_store_area", LONG, "must be below 2^39", VM_EXIT_MSR_STORE_COUNT=2, VM_EXIT_MSR_STORE_ADDR=(1 << 39) - 16),
    put("exit_msr_load_area", LONG, "multiple of 16", VM_EXIT_MSR_LOAD_COUNT=1, VM_EXIT_MSR_LOAD_ADDR=1),
    flip("entry_reserved_bits", LONG, "bit 10 must be 0", VM_ENTRY_CONTROLS=EntryControls.ENTRY_TO_SMM),
    put("injection_type", LONG, "type 1 cannot", VM_ENTRY_INTR_INFO_FIELD=0x8000_0100),
    put("injection_type", LONG, "type 7 cannot", VM_ENTRY_INTR_INFO_FIELD=0x8000_0700),
    put("injection_vector", LONG, "an NMI has vector 2", VM_ENTRY_INTR_INFO_FIELD=0x8000_0203),
    put("injection_vector", LONG, "at most 31", VM_ENTRY_INTR_INFO_FIELD=0x8000_0320),
    put("injection_vector", LONG, "type 7 has vector 0", VM_ENTRY_INTR_INFO_FIELD=0x8000_0701)._replace(allow={Msr.IA32_VMX_TRUE_PROCBASED_CTLS: CpuBased.MONITOR_TRAP_FLAG}),
    put("injection_error_code_bit", LONG, "bit 11, deliver error code, must be 1", VM_ENTRY_INTR_INFO_FIELD=0x8000_030D),
    put("injection_error_code_bit", LONG, "must be 0", VM_ENTRY_INTR_INFO_FIELD=0x8000_0B06),
    put("injection_error_code_bit", REAL, "must be 0", VM_ENTRY_INTR_INFO_FIELD=GP),
    put("injection_error_code_bit", LONG, "must be 0", VM_ENTRY_INTR_INFO_FIELD=INT_20H | 1 << 11),
    put("injection_reserved_bits", LONG, "bit 12 must be 0", VM_ENTRY_INTR_INFO_FIELD=INT_20H | 1 << 12),
    put("injection_error_code", LONG, "bit 16 must be 0", VM_ENTRY_INTR_INFO_FIELD=GP, VM_ENTRY_EXCEPTION_ERROR_CODE=1 << 16),
    put("injection_instruction_length", LONG, "must be 1 to 15", VM_ENTRY_INTR_INFO_FIELD=INT3),
    put("injection_instruction_length", LONG, "must be 1 to 15", VM_ENTRY_INTR_INFO_FIELD=INT3, VM_ENTRY_INSTRUCTION_LEN=16),
    put("entry_msr_load_area", LONG, "multiple of 16", VM_ENTRY_MSR_LOAD_COUNT=1, VM_ENTRY_MSR_LOAD_ADDR=4),
    # host state
    flip("host_cr0_fixed_bits", LONG, "bit 5 must be 1 (IA32_VMX_CR0_FIXED0)", HOST_CR0=Cr0.NE),
    flip("host_cr0_fixed_bits", LONG, "bit 32 must be 0", HOST_CR0=1 << 32),
    flip("host_cr4_fixed_bits", LONG, "bit 13 must be 1", HOST_CR4=Cr4.VMXE),
    flip("host_cr3_width", LONG, "bit 40 must be 0", HOST_CR3=HIGH),
    put("host_sysenter_canonical", LONG, "HOST_IA32_SYSENTER_EIP", HOST_IA32_SYSENTER_EIP=NON_CANONICAL),
    put("host_pat", LONG, "each byte", HOST_IA32_PAT=2),
    flip("host_efer_reserved_bits", LONG, "bit 1 must be 0", HOST_IA32_EFER=2),
    flip("host_efer_long_mode", LONG, "must both be 1", HOST_IA32_EFER=Efer.LME),
    flip("host_selector_rpl_and_ti", LONG, "HOST_ES_SELECTOR is 0x11", HOST_ES_SELECTOR=1),
    put("host_cs_is_not_null", LONG, "must not be 0", HOST_CS_SELECTOR=0),
    put("host_tr_is_not_null", LONG, "must not be 0", HOST_TR_SELECTOR=0),
    put("host_ss_is_not_null", LONG, "32-bit host", VM_EXIT_CONTROLS=EXIT_32, HOST_SS_SELECTOR=0, HOST_IA32_EFER=0),
    put("host_bases_canonical", LONG, "HOST_GS_BASE", HOST_GS_BASE=NON_CANONICAL),
    put("address_space_size_is_the_current_one", LONG, "must be 1 here", VM_EXIT_CONTROLS=EXIT_32, HOST_IA32_EFER=0),
    put("host32_has_no_ia32e_guest", LONG, "needs host address-space size", VM_EXIT_CONTROLS=EXIT_32, HOST_IA32_EFER=0),
    put("host32_has_no_pcid", PAE, "bit 17 must be 0", VM_EXIT_CONTROLS=EXIT_32, HOST_IA32_EFER=0, HOST_CR4=Cr4.VMXE | Cr4.PCIDE),
    put("host32_rip", PAE, "must be 0", VM_EXIT_CONTROLS=EXIT_32, HOST_IA32_EFER=0, HOST_RIP=1 << 32),
    flip("host64_has_pae", LONG, "bit 5, PAE", HOST_CR4=Cr4.PAE),
    put("host64_rip_canonical", LONG, "bits 63:47", HOST_RIP=1 << 47),
    # guest registers
    flip("guest_cr0_fixed_bits", LONG, "bit 5 must be 1", GUEST_CR0=Cr0.NE),
    flip("guest_cr0_fixed_bits", LONG, "bit 31 must be 1", restricted=True, GUEST_CR0=Cr0.PG),
    put("guest_paging_needs_protection", REAL, "bit 0, PE", GUEST_CR0=Cr0.NE | Cr0.PG),
    flip("guest_cr4_fixed_bits", LONG, "bit 11 must be 0", GUEST_CR4=Cr4.UMIP),
    flip("guest_debugctl_reserved_bits", LONG, "bit 2 must be 0", GUEST_IA32_DEBUGCTL=4),
    flip("ia32e_guest_needs_paging", LONG, "bit 31, PG", GUEST_CR0=Cr0.PG),
    flip("ia32e_guest_needs_pae", LONG, "bit 5, PAE", GUEST_CR4=Cr4.PAE),
    flip("guest_pcid_needs_ia32e", PAE, "bit 17 must be 0", GUEST_CR4=Cr4.PCIDE)._replace(allow={Msr.IA32_VMX_CR4_FIXED1: Cr4.PCIDE}),
    flip("guest_cr3_width", LONG, "bit 40 must be 0", GUEST_CR3=HIGH),
    flip("guest_dr7_width", LONG, "bit 40 must be 0", GUEST_DR7=HIGH),
    put("guest_sysenter_canonical", LONG, "GUEST_SYSENTER_ESP", GUEST_SYSENTER_ESP=NON_CANONICAL),
    put("guest_pat", LONG, "each byte", GUEST_IA32_PAT=0x300),
    flip("guest_efer_reserved_bits", LONG, "bit 12 must be 0", GUEST_IA32_EFER=1 << 12),
    flip("guest_efer_lma", LONG, "bit 10, LMA, must be 1", GUEST_IA32_EFER=Efer.LMA),
    flip("guest_efer_lme", LONG, "must be equal", GUEST_IA32_EFER=Efer.LME),
    # segments
    flip("tr_selector_ti", LONG, "GUEST_TR_SELECTOR is 0x1c: bit 2", GUEST_TR_SELECTOR=4),
    put("ldtr_selector_ti", LONG, "bit 2 must be 0", GUEST_LDTR_AR_BYTES=AccessRights.LDT, GUEST_LDTR_SELECTOR=4),
    put("ss_rpl_is_cs_rpl", LONG, "the RPL must be 0", restricted=True, GUEST_SS_SELECTOR=0x13),
    put("v8086_bases", V86, "GUEST_GS_BASE is 0x0: must be 0x10", GUEST_GS_SELECTOR=1),
    put("tr_fs_gs_bases_canonical", LONG, "GUEST_FS_BASE", GUEST_FS_BASE=NON_CANONICAL),
    put("ldtr_base_canonical", LONG, "GUEST_LDTR_BASE", GUEST_LDTR_AR_BYTES=AccessRights.LDT, GUEST_LDTR_BASE=NON_CANONICAL),
    put("cs_base_width", LONG, "bit 32 must be 0", GUEST_CS_BASE=1 << 32),
    put("ss_ds_es_base_width", LONG, "GUEST_DS_BASE", GUEST_DS_BASE=1 << 32),
    put("v8086_limits", V86, "must be 0xffff", GUEST_DS_LIMIT=0xFFF),
    put("v8086_access_rights", V86, "must be 0xf3", GUEST_ES_AR_BYTES=0x93),
    put("cs_type", LONG, "accessed code", GUEST_CS_AR_BYTES=AccessRights.FLAT_CODE64 & ~1),
    put("cs_type", LONG, "accessed code", restricted=True, GUEST_CS_AR_BYTES=AccessRights.FLAT_DATA32),
    put("ss_type", LONG, "3 or 7", GUEST_SS_AR_BYTES=AccessRights.FLAT_DATA32 & ~2),
    put("data_segments_accessed", LONG, "GUEST_FS_AR_BYTES", GUEST_FS_AR_BYTES=AccessRights.FLAT_DATA32 & ~1),
    put("data_segments_readable", LONG, "bit 1, readable", GUEST_DS_AR_BYTES=AccessRights.FLAT_CODE32 & ~2),
    put("segments_are_code_or_data", LONG, "bit 4, S", GUEST_GS_AR_BYTES=AccessRights.FLAT_DATA32 & ~0x10),
    put("cs_dpl", LONG, "the DPL must be 0, that of SS", GUEST_CS_AR_BYTES=AccessRights.FLAT_CODE64 | 0x60),
    put("cs_dpl", LONG, "at most 0", GUEST_CS_AR_BYTES=AccessRights.FLAT_CODE64 | 0x64),
    put("cs_dpl", REAL, "0 for a data segment", GUEST_CS_AR_BYTES=0xF3),
    put("ss_dpl_is_its_rpl", LONG, "the DPL must be 3", restricted=True, GUEST_SS_SELECTOR=0x13, GUEST_CS_SELECTOR=0xB),
    put("ss_dpl_in_real_mode", REAL, "DPL must be 0", GUEST_SS_AR_BYTES=0xF3, GUEST_CS_AR_BYTES=0xFB),
    put("data_segments_dpl", LONG, "at least 3", restricted=True, GUEST_DS_SELECTOR=0x13),
    put("segments_are_present", LONG, "bit 7, P", GUEST_ES_AR_BYTES=AccessRights.FLAT_DATA32 & ~0x80),
    put("segments_reserved_bits", LONG, "bit 8 must be 0", GUEST_ES_AR_BYTES=AccessRights.FLAT_DATA32 | 0x100),
    put("cs_default_size_in_64_bit_mode", LONG, "bit 14 must be 0", GUEST_CS_AR_BYTES=AccessRights.FLAT_CODE64 | 0x4000),
    put("segments_granularity", LONG, "G, must be 0", GUEST_ES_LIMIT=0xFFFF_FFFE),
    put("segments_granularity", LONG, "G, must be 1", GUEST_ES_AR_BYTES=0x4093),
    put("tr_type", LONG, "busy TSS", GUEST_TR_AR_BYTES=0x83),
    put("tr_is_system", LONG, "bit 4 must be 0", GUEST_TR_AR_BYTES=0x9B),
    put("tr_is_present", LONG, "P must be 1", GUEST_TR_AR_BYTES=0x0B),
    put("tr_reserved_bits", LONG, "bit 9 must be 0", GUEST_TR_AR_BYTES=0x28B),
    put("tr_granularity", LONG, "G, must be 0", GUEST_TR_AR_BYTES=0x808B),
    put("tr_is_usable", LONG, "bit 16 must be 0", GUEST_TR_AR_BYTES=0x8B | UNUSABLE),
    put("ldtr_type", LONG, "the type must be 2", GUEST_LDTR_AR_BYTES=0x83),
    put("ldtr_is_system", LONG, "bit 4 must be 0", GUEST_LDTR_AR_BYTES=0x92),
    put("ldtr_is_present", LONG, "P must be 1", GUEST_LDTR_AR_BYTES=0x02),
    put("ldtr_reserved_bits", LONG, "bit 8 must be 0", GUEST_LDTR_AR_BYTES=0x182),
    put("ldtr_granularity", LONG, "G, must be 1", GUEST_LDTR_AR_BYTES=0x82, GUEST_LDTR_LIMIT=0x10_0000),
    # descriptor tables, RIP, RFLAGS
    put("guest_table_bases_canonical", LONG, "GUEST_IDTR_BASE", GUEST_IDTR_BASE=NON_CANONICAL),
    put("guest_table_limits", LONG, "bit 16 must be 0", GUEST_GDTR_LIMIT=0x1_0000),
    put("guest_rip_width", PAE, "bit 32 must be 0", GUEST_RIP=1 << 32),
    put("guest_rip_canonical", LONG, "bits 63:47", GUEST_RIP=1 << 47),
    flip("guest_rflags_reserved_bits", LONG, "bit 1 must be 1", GUEST_RFLAGS=2),
    flip("guest_rflags_reserved_bits", LONG, "bit 3 must be 0", GUEST_RFLAGS=8),
    flip("guest_rflags_reserved_bits", LONG, "bit 22 must be 0", GUEST_RFLAGS=1 << 22),
    put("guest_v8086_needs_legacy_protection", V86, "bit 17, VM", GUEST_CR0=Cr0.NE),
    put("guest_if_for_injection", LONG, "bit 9, IF", GUEST_RFLAGS=2, VM_ENTRY_INTR_INFO_FIELD=INT_20H),
    # the rest
    put("guest_activity_state_supported", LONG, "must be 0 (active) or 1", GUEST_ACTIVITY_STATE=2),
    put("guest_activity_state_supported", LONG, "must be 0 (active) or 1", GUEST_ACTIVITY_STATE=4),
    put("guest_halts_at_cpl_0", PAE, "DPL must be 0 in the HLT state", GUEST_ACTIVITY_STATE=1, GUEST_SS_AR_BYTES=AccessRights.FLAT_DATA32 | 0x60, GUEST_CS_AR_BYTES=AccessRights.FLAT_CODE32 | 0x60),
    put("guest_blocking_needs_activity", LONG, "must be 0 with blocking", GUEST_ACTIVITY_STATE=1, GUEST_INTERRUPTIBILITY_INFO=1),
    put("guest_activity_allows_injection", LONG, "ends the HLT state", GUEST_ACTIVITY_STATE=1, VM_ENTRY_INTR_INFO_FIELD=GP),
    put("guest_interruptibility_reserved_bits", LONG, "bit 2 must be 0", GUEST_INTERRUPTIBILITY_INFO=4),
    put("guest_blocked_by_one_thing", LONG, "not both", GUEST_INTERRUPTIBILITY_INFO=3),
    put("guest_sti_needs_if", LONG, "bit 0, STI", GUEST_INTERRUPTIBILITY_INFO=1, GUEST_RFLAGS=2),
    put("guest_not_blocked_for_interrupt", LONG, "bit 1 must be 0", GUEST_INTERRUPTIBILITY_INFO=2, VM_ENTRY_INTR_INFO_FIELD=INT_20H),
    put("guest_not_blocked_for_nmi", LONG, "bit 1 must be 0", GUEST_INTERRUPTIBILITY_INFO=2, VM_ENTRY_INTR_INFO_FIELD=NMI),
    put("guest_pending_debug_reserved_bits", LONG, "bit 4 must be 0", GUEST_PENDING_DBG_EXCEPTIONS=1 << 4),
    put("guest_pending_single_step", LONG, "BS, must be 1", GUEST_INTERRUPTIBILITY_INFO=2, GUEST_RFLAGS=0x302),
    put("guest_pending_single_step", LONG, "BS, must be 0", GUEST_ACTIVITY_STATE=1, GUEST_PENDING_DBG_EXCEPTIONS=1 << 14),
    put("vmcs_link_pointer_address", LONG, "multiple of 0x1000", VMCS_LINK_POINTER=0x1008),
    put("vmcs_link_pointer_revision", LONG, f"first word must be {VMCS_REVISION:#x}", VMCS_LINK_POINTER=0x6000),
    put("guest_pdptes", PAE, "PDPTE2 in GUEST_PDPTR2 is 0x3", GUEST_PDPTR2=3),
]
# fmt: on


def restricted(fields: dict[int, int]) -> dict[int, int]:
    controls = fields[F.SECONDARY_VM_EXEC_CONTROL] & ~Secondary.UNRESTRICTED_GUEST
    return fields | {F.SECONDARY_VM_EXEC_CONTROL: controls}


class Recorder(EntryState):
    """Notes which fields a check reads."""

    __slots__ = ("seen",)

    def __getitem__(self, field: int) -> int:
        self.seen.add(int(field))
        return super().__getitem__(field)


def state_of(fields: dict[int, int], allow: dict[Msr, int] | None = None) -> Recorder:
    cpu = ScriptedCpu()
    cpu.memory.map(0, bytearray(0x10000))
    vmcs = Vmcs()
    for field, value in fields.items():
        vmcs.write(field, value)

    def capability(msr: int) -> int:
        known, extra = capabilities.value(msr), (allow or {}).get(Msr(msr), 0)
        return known | (extra if "FIXED" in Msr(msr).name else extra << 32)

    def revision(address: int) -> int:
        return int.from_bytes(cpu.memory.read(address, 4), "little")

    state = Recorder(vmcs.fields, {}, cpu, capability, revision)
    state.seen = set()
    return state


def damaged(damage: Damage) -> Recorder:
    fields = restricted(damage.guest()) if damage.restricted else damage.guest()
    for field, bits in damage.flip.items():
        fields[field] = fields.get(field, 0) ^ bits
    return state_of(fields | damage.set, damage.allow)


@pytest.mark.parametrize("guest", [LONG, REAL, V86, PAE], ids=lambda guest: guest.__name__)
@pytest.mark.parametrize("check", ENTRY_CHECKS, ids=lambda check: check.name)
def test_a_valid_guest_passes_every_check(check: Check, guest: Guest) -> None:
    assert check.run(state_of(guest())) is None


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: f"{d.check}-{d.said[:24]}")
def test_the_smallest_damage_fails_exactly_its_check(damage: Damage) -> None:
    checks = ENTRY_CHECKS
    if damage.check.startswith("host32") or damage.check == "host_ss_is_not_null":
        # Only a 32-bit hypervisor can get here, and ours is a 64-bit one.
        checks = tuple(c for c in checks if c.name != "address_space_size_is_the_current_one")
    if damage.check == "host32_has_no_pcid":
        checks = tuple(c for c in checks if c.name != "host_cr4_fixed_bits")
    failed = first_failure(checks, damaged(damage))
    assert failed is not None
    assert (failed.check, damage.said in failed.message) == (damage.check, True), failed.message


def test_every_check_has_its_damage_and_a_sentence() -> None:
    assert {damage.check for damage in DAMAGES} == {check.name for check in ENTRY_CHECKS}
    assert len({check.name for check in ENTRY_CHECKS}) == len(ENTRY_CHECKS)
    assert all(check.run.__doc__ for check in ENTRY_CHECKS)


def test_a_restricted_guest_in_long_mode_passes() -> None:
    assert first_failure(ENTRY_CHECKS, state_of(restricted(long_mode_guest()))) is None


def test_root_mode_outside_ia32e_wants_both_sizes_0() -> None:
    state = state_of(long_mode_guest())
    state.root_lma = False
    failed = first_failure(ENTRY_CHECKS, state)
    assert failed is not None
    assert failed.message.endswith("host address-space size must be 0 here")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: f"{d.check}-{d.said[:24]}")
def test_a_check_reads_only_the_fields_it_declares(damage: Damage) -> None:
    state = damaged(damage)
    for check in ENTRY_CHECKS:
        state.seen.clear()
        check.run(state)
        assert state.seen <= check.reads, check.name


FIELDS = [F(field) for field in SUPPORTED]
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1, 1 << 47, 0x8000_0B0E]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 63).map(lambda number: 1 << number),
)


@given(
    guest=st.sampled_from([LONG, REAL, V86, PAE]),
    field=st.sampled_from(FIELDS),
    bits=VALUES,
    other=st.sampled_from(FIELDS),
    more=VALUES,
)
def test_checks_that_read_no_changed_field_keep_their_answer(
    guest: Guest, field: F, bits: int, other: F, more: int
) -> None:
    fields = guest()
    changes = {field: fields.get(field, 0) ^ bits & field.mask, other: more & other.mask}
    state = state_of(fields | changes)
    selected = [check for checks in select(frozenset(changes)) for check in checks]
    assert first_failure(selected, state) == first_failure(ENTRY_CHECKS, state)


def test_pdptes_come_from_memory_without_ept() -> None:
    fields = restricted(pae_guest())
    fields[F.SECONDARY_VM_EXEC_CONTROL] = 0
    state = state_of(fields | {F.GUEST_PDPTR0: 3})
    assert first_failure(ENTRY_CHECKS, state) is None
    state.cpu.memory.write(0x2008, (3).to_bytes(8, "little"))
    failed = first_failure(ENTRY_CHECKS, state)
    assert failed is not None
    assert failed == (
        "guest_pdptes",
        "PDPTE1 in memory at CR3 0x2000 is 0x3: reserved bits must be 0",
        2,
    )


def test_a_link_pointer_to_a_region_of_ours_is_taken() -> None:
    state = state_of(long_mode_guest() | {F.VMCS_LINK_POINTER: 0x6000})
    state.cpu.memory.write(0x6000, VMCS_REVISION.to_bytes(4, "little"))
    assert first_failure(ENTRY_CHECKS, state) is None


def test_an_unused_rflags_bit_is_named() -> None:
    state = state_of(long_mode_guest() | {F.GUEST_RFLAGS: Rflags.FIXED | 1 << 5 | 1 << 15})
    failed = first_failure(ENTRY_CHECKS, state)
    assert failed is not None
    assert failed.message == "GUEST_RFLAGS is 0x8022: bits 5, 15 must be 0"
