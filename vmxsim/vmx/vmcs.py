"""One virtual-machine control structure: every supported field by encoding, in one flat dict.

While a VMCS is current and its guest has run, the guest-state area may be newer in the processor
than in ``fields`` (SDM Vol. 3, "Software Use of Virtual-Machine Control Structures" lets a
processor keep VMCS data on itself): whoever executes VMREAD asks ``Processor.vmread``. The control
fields in ``fields`` are always up to date, and what the exit path asks of them are attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from vmxsim.arch.controls import CpuBased
from vmxsim.arch.vmcs_fields import Area, VmcsField, Width
from vmxsim.vmx.bitmaps import HostPages
from vmxsim.vmx.records import VmExit

REVISION_ID = 0x0001_0004
"""What bits 30:0 of the first word of a VMXON or VMCS region must say."""

NO_LINK = (1 << 64) - 1
"""The VMCS link pointer of a VMCS that has no shadow."""

FULL_FIELDS: tuple[VmcsField, ...] = tuple(field for field in VmcsField if not field & 1)
MASKS: dict[int, int] = {int(field): field.mask for field in FULL_FIELDS}
LOW_32 = 0xFFFF_FFFF

_PIN = int(VmcsField.PIN_BASED_VM_EXEC_CONTROL)
_CPU = int(VmcsField.CPU_BASED_VM_EXEC_CONTROL)
_SECONDARY = int(VmcsField.SECONDARY_VM_EXEC_CONTROL)
_EXIT = int(VmcsField.VM_EXIT_CONTROLS)
_ENTRY = int(VmcsField.VM_ENTRY_CONTROLS)
_BITMAP = int(VmcsField.EXCEPTION_BITMAP)
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
        "address", "cpu_based", "entry_controls", "exception_bitmap", "exit_controls", "fields",
        "host_pages", "last_exit", "launch_state", "pin_based", "secondary",
    )  # fmt: skip

    def __init__(self, address: int = 0, supported: Iterable[int] = FULL_FIELDS) -> None:
        self.address = address
        self.launch_state = LaunchState.CLEAR
        self.fields: dict[int, int] = dict.fromkeys((int(field) for field in supported), 0)
        self.last_exit: VmExit | None = None
        self.host_pages = HostPages()
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
