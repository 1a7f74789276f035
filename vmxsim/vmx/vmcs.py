"""One virtual-machine control structure: every supported field by encoding, in one flat dict.

While a VMCS is current and its guest has run, the guest-state area may be newer in the processor
than in ``fields`` (SDM Vol. 3, "Software Use of Virtual-Machine Control Structures" lets a
processor keep VMCS data on itself): whoever executes VMREAD asks ``Processor.vmread``. The control
fields in ``fields`` are always up to date, and what the exit path asks of them are attributes.
"""

from __future__ import annotations

from enum import Enum

from vmxsim.arch import capabilities
from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.vmcs_fields import Area, Width
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.bitmaps import HostPages
from vmxsim.vmx.records import VmExit

NO_LINK = (1 << 64) - 1
"""The VMCS link pointer of a VMCS that has no shadow."""

# Each range of fields exists only on processors that allow the control it belongs to.
# SDM Vol. 3, appendix "Field Encoding in VMCS", its notes.
# fmt: off
FIELDS_OF_CONTROLS: tuple[tuple[Msr, int, tuple[F, ...]], ...] = (
    (Msr.IA32_VMX_TRUE_PINBASED_CTLS, PinBased.PROCESS_POSTED_INTERRUPTS,
     (F.POSTED_INTR_NV, F.POSTED_INTR_DESC_ADDR)),
    (Msr.IA32_VMX_TRUE_PINBASED_CTLS, PinBased.ACTIVATE_PREEMPTION_TIMER,
     (F.VMX_PREEMPTION_TIMER_VALUE,)),
    (Msr.IA32_VMX_TRUE_PROCBASED_CTLS, CpuBased.USE_MSR_BITMAPS, (F.MSR_BITMAP,)),
    (Msr.IA32_VMX_TRUE_PROCBASED_CTLS, CpuBased.USE_TPR_SHADOW,
     (F.VIRTUAL_APIC_PAGE_ADDR, F.TPR_THRESHOLD)),
    (Msr.IA32_VMX_TRUE_PROCBASED_CTLS, CpuBased.ACTIVATE_SECONDARY_CONTROLS,
     (F.SECONDARY_VM_EXEC_CONTROL,)),
    (Msr.IA32_VMX_TRUE_PROCBASED_CTLS, CpuBased.ACTIVATE_TERTIARY_CONTROLS,
     (F.TERTIARY_VM_EXEC_CONTROL, F.HLAT_PREFIX_SIZE, F.HLAT_POINTER, F.LAST_PID_POINTER_INDEX,
      F.PID_POINTER_TABLE, F.IA32_SPEC_CTRL_MASK, F.IA32_SPEC_CTRL_SHADOW,
      F.GUEST_APIC_TIMER_VECTOR, F.GUEST_DEADLINE_VIR, F.GUEST_DEADLINE_PHY)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_VPID, (F.VIRTUAL_PROCESSOR_ID,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.EPT_VIOLATION_VE,
     (F.EPTP_INDEX, F.VIRT_EXCEPTION_INFO)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.VIRTUAL_INTERRUPT_DELIVERY,
     (F.GUEST_INTR_STATUS, F.EOI_EXIT_BITMAP0, F.EOI_EXIT_BITMAP1, F.EOI_EXIT_BITMAP2,
      F.EOI_EXIT_BITMAP3)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_PML, (F.GUEST_PML_INDEX, F.PML_ADDRESS)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.VIRTUALIZE_APIC_ACCESSES, (F.APIC_ACCESS_ADDR,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_VM_FUNCTIONS,
     (F.VM_FUNCTION_CONTROL, F.EPTP_LIST_ADDRESS)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_EPT,
     (F.EPT_POINTER, F.GUEST_PHYSICAL_ADDRESS, F.GUEST_PDPTR0, F.GUEST_PDPTR1, F.GUEST_PDPTR2,
      F.GUEST_PDPTR3)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.VMCS_SHADOWING, (F.VMREAD_BITMAP, F.VMWRITE_BITMAP)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_XSAVES, (F.XSS_EXIT_BITMAP,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_ENCLS_EXITING, (F.ENCLS_EXITING_BITMAP,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_ENCLV_EXITING, (F.ENCLV_EXITING_BITMAP,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.SUB_PAGE_WRITE_PERMISSIONS, (F.SPPTP,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.USE_TSC_SCALING, (F.TSC_MULTIPLIER,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.ENABLE_PCONFIG, (F.PCONFIG_EXITING_BITMAP,)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.PASID_TRANSLATION,
     (F.LOW_PASID_DIRECTORY, F.HIGH_PASID_DIRECTORY)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.PAUSE_LOOP_EXITING, (F.PLE_GAP, F.PLE_WINDOW)),
    (Msr.IA32_VMX_PROCBASED_CTLS2, Secondary.INSTRUCTION_TIMEOUT, (F.NOTIFY_WINDOW,)),
    (Msr.IA32_VMX_TRUE_EXIT_CTLS, ExitControls.ACTIVATE_SECONDARY_CONTROLS,
     (F.SECONDARY_VM_EXIT_CONTROLS,)),
    (Msr.IA32_VMX_TRUE_EXIT_CTLS, ExitControls.LOAD_PAT, (F.HOST_IA32_PAT,)),
    (Msr.IA32_VMX_TRUE_EXIT_CTLS, ExitControls.LOAD_EFER, (F.HOST_IA32_EFER,)),
    (Msr.IA32_VMX_TRUE_EXIT_CTLS, ExitControls.LOAD_PERF_GLOBAL_CTRL,
     (F.HOST_IA32_PERF_GLOBAL_CTRL,)),
    (Msr.IA32_VMX_TRUE_EXIT_CTLS, ExitControls.LOAD_PKRS, (F.HOST_IA32_PKRS,)),
    (Msr.IA32_VMX_TRUE_EXIT_CTLS, ExitControls.LOAD_CET_STATE,
     (F.HOST_S_CET, F.HOST_SSP, F.HOST_INTR_SSP_TABLE)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_PAT, (F.GUEST_IA32_PAT,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_EFER, (F.GUEST_IA32_EFER,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_PERF_GLOBAL_CTRL,
     (F.GUEST_IA32_PERF_GLOBAL_CTRL,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_BNDCFGS, (F.GUEST_BNDCFGS,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_RTIT_CTL, (F.GUEST_IA32_RTIT_CTL,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_LBR_CTL, (F.GUEST_IA32_LBR_CTL,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_PKRS, (F.GUEST_IA32_PKRS,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_UINV, (F.GUEST_UINV,)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_CET_STATE,
     (F.GUEST_S_CET, F.GUEST_SSP, F.GUEST_INTR_SSP_TABLE)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_FRED,
     tuple(field for field in F if "FRED" in field.name or "EVENT_DATA" in field.name)),
    (Msr.IA32_VMX_TRUE_ENTRY_CTLS, EntryControls.LOAD_SPEC_CTRL,
     (F.GUEST_IA32_SPEC_CTRL, F.HOST_IA32_SPEC_CTRL)),
)
# fmt: on
TDX_FIELDS = frozenset({F.SHARED_EPT_POINTER, F.SEAM_GUEST_KEYID, F.MSR_DATA})


def _supported() -> tuple[int, ...]:
    absent = {int(field) for field in TDX_FIELDS}
    for msr, control, fields in FIELDS_OF_CONTROLS:
        if not capabilities.value(msr) >> 32 & control:
            absent.update(int(field) for field in fields)
    return tuple(int(field) for field in F if not field & 1 and field not in absent)


SUPPORTED: tuple[int, ...] = _supported()
"""The full encodings this processor has, in the order of the appendix."""

MASKS: dict[int, int] = {field: F(field).mask for field in SUPPORTED}
LOW_32 = 0xFFFF_FFFF

_PIN = int(F.PIN_BASED_VM_EXEC_CONTROL)
_CPU = int(F.CPU_BASED_VM_EXEC_CONTROL)
_SECONDARY = int(F.SECONDARY_VM_EXEC_CONTROL)
_EXIT = int(F.VM_EXIT_CONTROLS)
_ENTRY = int(F.VM_ENTRY_CONTROLS)
_BITMAP = int(F.EXCEPTION_BITMAP)
_CACHED = frozenset({_PIN, _CPU, _SECONDARY, _EXIT, _ENTRY, _BITMAP})
_ACTIVATE_SECONDARY = CpuBased.ACTIVATE_SECONDARY_CONTROLS


class LaunchState(Enum):
    """Which of VMLAUNCH and VMRESUME may enter with this VMCS."""

    CLEAR = "clear: VMLAUNCH"
    LAUNCHED = "launched: VMRESUME"


class Vmcs:
    """The data of one VMCS region; ``address`` is where root mode keeps it.

    ``pin_based``, ``cpu_based``, ``secondary``, ``exit_controls``, ``entry_controls`` and
    ``exception_bitmap`` copy the fields of those names; ``secondary`` is 0 while the primary
    controls do not activate it. Change fields with ``write`` only, which keeps the copies.
    ``host_pages`` is what physical addresses in it mean first; its Processor puts its own here.
    """

    __slots__ = (
        "address", "bounced", "cpu_based", "entry_controls", "exception_bitmap", "exit_controls",
        "fields", "host_pages", "last_exit", "launch_state", "pin_based", "secondary",
    )  # fmt: skip

    def __init__(self, address: int = 0, host_pages: HostPages | None = None) -> None:
        self.address = address
        self.host_pages = HostPages() if host_pages is None else host_pages
        self.launch_state = LaunchState.CLEAR
        self.fields: dict[int, int] = dict.fromkeys(SUPPORTED, 0)
        self.last_exit: VmExit | None = None
        self.bounced: dict[int, VmExit] = {}
        """Exits of bounced I/O by RIP, kept while the controls are."""
        self.refresh()

    def refresh(self) -> None:
        """Copy the controls out of ``fields`` again."""
        fields = self.fields
        self.pin_based = fields[_PIN]
        self.cpu_based = fields[_CPU]
        self.secondary = fields[_SECONDARY] if self.cpu_based & _ACTIVATE_SECONDARY else 0
        self.exit_controls = fields[_EXIT]
        self.entry_controls = fields[_ENTRY]
        self.exception_bitmap = fields[_BITMAP]
        self.bounced.clear()

    def supports(self, field: int) -> bool:
        """Whether the encoding, of either access type, names a field of this processor."""
        return field in self.fields or (is_high(field) and field - 1 in self.fields)

    def read(self, field: int) -> int:
        """A supported field as ``fields`` has it; bits 63:32 for a high encoding."""
        if field in self.fields:
            return self.fields[field]
        return self.fields[field - 1] >> 32

    def write(self, field: int, value: int) -> None:
        """Store into a supported field, truncated to its width."""
        field = int(field)
        if field in self.fields:
            self.fields[field] = value & MASKS[field]
        else:
            field -= 1
            self.fields[field] = merge_high(self.fields[field], value)
        if field in _CACHED:
            self.refresh()


def is_high(field: int) -> bool:
    """Whether the encoding names bits 63:32 of a 64-bit field."""
    return field & 1 == 1 and field >> 13 & 3 == Width.W64


def merge_high(low: int, high: int) -> int:
    """A 64-bit value with its upper half replaced."""
    return low & LOW_32 | (high & LOW_32) << 32


def is_guest_state(field: int) -> bool:
    """Whether the encoding lies in the guest-state area."""
    return field >> 10 & 3 == Area.GUEST_STATE


def is_read_only(field: int) -> bool:
    """Whether the encoding lies in the VM-exit information area."""
    return field >> 10 & 3 == Area.EXIT_INFO
