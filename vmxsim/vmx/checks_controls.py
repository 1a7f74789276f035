"""The checks of the VMX controls; the first that fails makes VM entry fail with error 7.

SDM Vol. 3, "Checks on VMX Controls". Controls that the capability MSRs never allow (TPR shadow,
APIC virtualization, preemption timer, VM functions, PML, SMM ...) have no further
checks here: setting one fails its word's reserved-bit check.
"""

from __future__ import annotations

from vmxsim.arch import capabilities
from vmxsim.arch.bits import MASK_64, bits
from vmxsim.arch.capabilities import EptVpidCap, Misc
from vmxsim.arch.controls import CpuBased, PinBased, Secondary
from vmxsim.arch.events import EventType, InterruptionInfo, Vector, has_error_code
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.interface import Cpu
from vmxsim.vmx.entry_checks import (
    PHYSICAL_MASK,
    SECONDARY,
    EntryState,
    allowed_bits,
    bit_list,
    check,
    checks_in,
    first_failure,
    msr_area,
    must_be_zero,
    physical_address,
    wrong,
)

PAGE = 0x1000
SOFTWARE_TYPES = frozenset(
    {
        EventType.SOFTWARE_INTERRUPT,
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
        EventType.SOFTWARE_EXCEPTION,
    }
)

# "VM-Execution Control Fields"


@check(F.PIN_BASED_VM_EXEC_CONTROL)
def pin_based_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits in the pin-based VM-execution controls must be set properly."""
    return allowed_bits(state, F.PIN_BASED_VM_EXEC_CONTROL, Msr.IA32_VMX_TRUE_PINBASED_CTLS)


@check(F.CPU_BASED_VM_EXEC_CONTROL)
def cpu_based_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits in the primary processor-based controls must be set properly."""
    return allowed_bits(state, F.CPU_BASED_VM_EXEC_CONTROL, Msr.IA32_VMX_TRUE_PROCBASED_CTLS)


@check(*SECONDARY)
def secondary_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits in the secondary controls must be cleared, if those are activated."""
    if not state[F.CPU_BASED_VM_EXEC_CONTROL] & CpuBased.ACTIVATE_SECONDARY_CONTROLS:
        return None
    return allowed_bits(state, F.SECONDARY_VM_EXEC_CONTROL, Msr.IA32_VMX_PROCBASED_CTLS2)


@check(F.CR3_TARGET_COUNT)
def cr3_target_count(state: EntryState) -> str | None:
    """The CR3-target count must not be greater than IA32_VMX_MISC says."""
    value, most = state[F.CR3_TARGET_COUNT], bits(state.capability(Msr.IA32_VMX_MISC), 16, 24)
    return wrong(F.CR3_TARGET_COUNT, value, f"must be at most {most}") if value > most else None


@check(F.CPU_BASED_VM_EXEC_CONTROL, F.IO_BITMAP_A)
def io_bitmap_a_address(state: EntryState) -> str | None:
    """With "use I/O bitmaps", the address of bitmap A must be a page's."""
    if not state[F.CPU_BASED_VM_EXEC_CONTROL] & CpuBased.USE_IO_BITMAPS:
        return None
    return physical_address(state, F.IO_BITMAP_A, PAGE)


@check(F.CPU_BASED_VM_EXEC_CONTROL, F.IO_BITMAP_B)
def io_bitmap_b_address(state: EntryState) -> str | None:
    """With "use I/O bitmaps", the address of bitmap B must be a page's."""
    if not state[F.CPU_BASED_VM_EXEC_CONTROL] & CpuBased.USE_IO_BITMAPS:
        return None
    return physical_address(state, F.IO_BITMAP_B, PAGE)


@check(F.CPU_BASED_VM_EXEC_CONTROL, F.MSR_BITMAP)
def msr_bitmap_address(state: EntryState) -> str | None:
    """With "use MSR bitmaps", the bitmaps' address must be a page's."""
    if not state[F.CPU_BASED_VM_EXEC_CONTROL] & CpuBased.USE_MSR_BITMAPS:
        return None
    return physical_address(state, F.MSR_BITMAP, PAGE)


@check(F.PIN_BASED_VM_EXEC_CONTROL)
def virtual_nmis_need_nmi_exiting(state: EntryState) -> str | None:
    """If "NMI exiting" is 0, "virtual NMIs" must be 0."""
    value = state[F.PIN_BASED_VM_EXEC_CONTROL]
    if value & PinBased.VIRTUAL_NMIS and not value & PinBased.NMI_EXITING:
        return wrong(F.PIN_BASED_VM_EXEC_CONTROL, value, "virtual NMIs need NMI exiting")
    return None


@check(F.PIN_BASED_VM_EXEC_CONTROL, F.CPU_BASED_VM_EXEC_CONTROL)
def nmi_window_exiting_needs_virtual_nmis(state: EntryState) -> str | None:
    """If "virtual NMIs" is 0, "NMI-window exiting" must be 0."""
    value = state[F.CPU_BASED_VM_EXEC_CONTROL]
    if not value & CpuBased.NMI_WINDOW_EXITING:
        return None
    if state[F.PIN_BASED_VM_EXEC_CONTROL] & PinBased.VIRTUAL_NMIS:
        return None
    return wrong(F.CPU_BASED_VM_EXEC_CONTROL, value, "NMI-window exiting needs virtual NMIs")


@check(*SECONDARY, F.VIRTUAL_PROCESSOR_ID)
def vpid_is_not_zero(state: EntryState) -> str | None:
    """With "enable VPID", the VPID must not be 0000H."""
    if state.secondary & Secondary.ENABLE_VPID and not state[F.VIRTUAL_PROCESSOR_ID]:
        return wrong(F.VIRTUAL_PROCESSOR_ID, 0, "must not be 0 with enable VPID")
    return None


@check(*SECONDARY, F.EPT_POINTER)
def eptp_memory_type(state: EntryState) -> str | None:
    """With "enable EPT", the EPTP's memory type must be a supported one."""
    eptp, cap = state[F.EPT_POINTER], state.capability(Msr.IA32_VMX_EPT_VPID_CAP)
    kind = eptp & 7
    supported = (kind == 0 and cap & EptVpidCap.UNCACHEABLE) or (
        kind == 6 and cap & EptVpidCap.WRITE_BACK
    )
    if not state.secondary & Secondary.ENABLE_EPT or supported:
        return None
    return wrong(F.EPT_POINTER, eptp, "bits 2:0, the memory type, must be 6 (write-back) or 0")


@check(*SECONDARY, F.EPT_POINTER)
def eptp_walk_length(state: EntryState) -> str | None:
    """With "enable EPT", bits 5:3 of the EPTP must be 1 less than a supported walk length."""
    eptp, cap = state[F.EPT_POINTER], state.capability(Msr.IA32_VMX_EPT_VPID_CAP)
    length = (eptp >> 3 & 7) + 1
    supported = (length == 4 and cap & EptVpidCap.WALK_LENGTH_4) or (
        length == 5 and cap & EptVpidCap.WALK_LENGTH_5
    )
    if not state.secondary & Secondary.ENABLE_EPT or supported:
        return None
    return wrong(F.EPT_POINTER, eptp, "bits 5:3 must be 3, for a walk of 4 levels")


@check(*SECONDARY, F.EPT_POINTER)
def eptp_accessed_dirty(state: EntryState) -> str | None:
    """With "enable EPT", bit 6 of the EPTP must be 0 without accessed and dirty flags for EPT."""
    eptp, cap = state[F.EPT_POINTER], state.capability(Msr.IA32_VMX_EPT_VPID_CAP)
    if not state.secondary & Secondary.ENABLE_EPT or not eptp & 1 << 6:
        return None
    if cap & EptVpidCap.ACCESSED_DIRTY:
        return None
    return wrong(F.EPT_POINTER, eptp, "bit 6, accessed and dirty flags, is not supported")


@check(*SECONDARY, F.EPT_POINTER)
def eptp_reserved_bits(state: EntryState) -> str | None:
    """With "enable EPT", reserved bits 11:7 and those above the address width must all be 0."""
    if not state.secondary & Secondary.ENABLE_EPT:
        return None
    return must_be_zero(state, F.EPT_POINTER, 0xF80 | ~PHYSICAL_MASK & MASK_64)


def eptp_fault(eptp: int, cpu: Cpu) -> str | None:
    """What VM entry would have against an EPT pointer: INVEPT has the same against it."""
    fields = {
        int(F.EPT_POINTER): eptp,
        int(F.CPU_BASED_VM_EXEC_CONTROL): CpuBased.ACTIVATE_SECONDARY_CONTROLS,
        int(F.SECONDARY_VM_EXEC_CONTROL): Secondary.ENABLE_EPT,
    }
    state = EntryState(fields, {}, cpu, capabilities.value, lambda address: 0)
    checks = (eptp_memory_type, eptp_walk_length, eptp_accessed_dirty, eptp_reserved_bits)
    failed = first_failure(checks, state)
    return None if failed is None else failed.message


@check(*SECONDARY)
def unrestricted_guest_needs_ept(state: EntryState) -> str | None:
    """If "unrestricted guest" is 1, "enable EPT" must be 1."""
    if state.unrestricted and not state.secondary & Secondary.ENABLE_EPT:
        value = state[F.SECONDARY_VM_EXEC_CONTROL]
        return wrong(F.SECONDARY_VM_EXEC_CONTROL, value, "unrestricted guest needs enable EPT")
    return None


# "VM-Exit Control Fields"


@check(F.VM_EXIT_CONTROLS)
def exit_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits in the VM-exit controls must be set properly."""
    return allowed_bits(state, F.VM_EXIT_CONTROLS, Msr.IA32_VMX_TRUE_EXIT_CTLS)


@check(F.VM_EXIT_MSR_STORE_COUNT, F.VM_EXIT_MSR_STORE_ADDR)
def exit_msr_store_area(state: EntryState) -> str | None:
    """Where the VM-exit MSR-store area lies, if its count is not zero."""
    return msr_area(state, F.VM_EXIT_MSR_STORE_ADDR, F.VM_EXIT_MSR_STORE_COUNT)


@check(F.VM_EXIT_MSR_LOAD_COUNT, F.VM_EXIT_MSR_LOAD_ADDR)
def exit_msr_load_area(state: EntryState) -> str | None:
    """Where the VM-exit MSR-load area lies, if its count is not zero."""
    return msr_area(state, F.VM_EXIT_MSR_LOAD_ADDR, F.VM_EXIT_MSR_LOAD_COUNT)


# "VM-Entry Control Fields"


@check(F.VM_ENTRY_CONTROLS)
def entry_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits in the VM-entry controls must be set properly."""
    return allowed_bits(state, F.VM_ENTRY_CONTROLS, Msr.IA32_VMX_TRUE_ENTRY_CTLS)


@check(F.VM_ENTRY_INTR_INFO_FIELD)
def injection_type(state: EntryState) -> str | None:
    """The interruption type must not be reserved; "other" needs the monitor trap flag control."""
    info = state[F.VM_ENTRY_INTR_INFO_FIELD]
    kind = info >> 8 & 7
    if not info & InterruptionInfo.VALID or kind not in (1, EventType.OTHER):
        return None
    mtf = state.capability(Msr.IA32_VMX_TRUE_PROCBASED_CTLS) >> 32 & CpuBased.MONITOR_TRAP_FLAG
    if kind == EventType.OTHER and mtf:
        return None
    return wrong(F.VM_ENTRY_INTR_INFO_FIELD, info, f"type {kind} cannot be injected")


@check(F.VM_ENTRY_INTR_INFO_FIELD)
def injection_vector(state: EntryState) -> str | None:
    """The vector must fit the type: 2 for NMI, at most 31 for exceptions, 0 for "other"."""
    info = state[F.VM_ENTRY_INTR_INFO_FIELD]
    if not info & InterruptionInfo.VALID:
        return None
    kind, vector, field = info >> 8 & 7, info & 0xFF, F.VM_ENTRY_INTR_INFO_FIELD
    if kind == EventType.NMI and vector != Vector.NMI:
        return wrong(field, info, "an NMI has vector 2")
    if kind == EventType.HARDWARE_EXCEPTION and vector > 31:
        return wrong(field, info, "a hardware exception has a vector of at most 31")
    if kind == EventType.OTHER and vector:
        return wrong(field, info, "type 7 has vector 0")
    return None


@check(F.VM_ENTRY_INTR_INFO_FIELD, F.GUEST_CR0, *SECONDARY)
def injection_error_code_bit(state: EntryState) -> str | None:
    """Bit 11 must be 1 exactly for exceptions that push an error code, delivered with PE = 1."""
    info = state[F.VM_ENTRY_INTR_INFO_FIELD]
    if not info & InterruptionInfo.VALID:
        return None
    protected = not state.unrestricted or state[F.GUEST_CR0] & Cr0.PE
    hardware = info >> 8 & 7 == EventType.HARDWARE_EXCEPTION
    given = info & InterruptionInfo.ERROR_CODE != 0
    either = state.capability(Msr.IA32_VMX_BASIC) >> 56 & 1
    if hardware and protected and (either or given == has_error_code(info & 0xFF)):
        return None
    if not given and not (hardware and protected):
        return None
    wanted = f"bit 11, deliver error code, must be {int(not given)}"
    return wrong(F.VM_ENTRY_INTR_INFO_FIELD, info, wanted)


@check(F.VM_ENTRY_INTR_INFO_FIELD)
def injection_reserved_bits(state: EntryState) -> str | None:
    """Reserved bits 30:12 of the interruption information must be 0."""
    info = state[F.VM_ENTRY_INTR_INFO_FIELD]
    reserved = info & InterruptionInfo.RESERVED
    if not info & InterruptionInfo.VALID or not reserved:
        return None
    return wrong(F.VM_ENTRY_INTR_INFO_FIELD, info, f"{bit_list(reserved)} must be 0")


@check(F.VM_ENTRY_INTR_INFO_FIELD, F.VM_ENTRY_EXCEPTION_ERROR_CODE)
def injection_error_code(state: EntryState) -> str | None:
    """Bits 31:16 of the error code must be 0, if it is delivered."""
    info = state[F.VM_ENTRY_INTR_INFO_FIELD]
    if not info & InterruptionInfo.VALID or not info & InterruptionInfo.ERROR_CODE:
        return None
    return must_be_zero(state, F.VM_ENTRY_EXCEPTION_ERROR_CODE, 0xFFFF_0000)


@check(F.VM_ENTRY_INTR_INFO_FIELD, F.VM_ENTRY_INSTRUCTION_LEN)
def injection_instruction_length(state: EntryState) -> str | None:
    """For software events the instruction length must be 1 to 15, or 0 where that is allowed."""
    info, length = state[F.VM_ENTRY_INTR_INFO_FIELD], state[F.VM_ENTRY_INSTRUCTION_LEN]
    if not info & InterruptionInfo.VALID or info >> 8 & 7 not in SOFTWARE_TYPES:
        return None
    least = 0 if state.capability(Msr.IA32_VMX_MISC) & Misc.INJECT_LENGTH_0 else 1
    if least <= length <= 15:
        return None
    return wrong(F.VM_ENTRY_INSTRUCTION_LEN, length, f"must be {least} to 15")


@check(F.VM_ENTRY_MSR_LOAD_COUNT, F.VM_ENTRY_MSR_LOAD_ADDR)
def entry_msr_load_area(state: EntryState) -> str | None:
    """Where the VM-entry MSR-load area lies, if its count is not zero."""
    return msr_area(state, F.VM_ENTRY_MSR_LOAD_ADDR, F.VM_ENTRY_MSR_LOAD_COUNT)


CONTROL_CHECKS = checks_in(globals())
