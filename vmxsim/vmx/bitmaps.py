"""The bitmaps a VMCS points at: which ports, MSRs and exceptions the hypervisor wants to see.

SDM Vol. 3, "I/O-Bitmap Addresses", "MSR-Bitmap Address", "Exception Bitmap". The pages belong to
root mode: HostPages holds those of root-mode software that is Python, and where it holds none the
physical address means guest memory, as it does for a hypervisor that is guest code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from vmxsim.arch.controls import PinBased
from vmxsim.arch.events import Event, EventType, Vector
from vmxsim.arch.vmcs_fields import VmcsField

if TYPE_CHECKING:
    from vmxsim.cpu.interface import Cpu
    from vmxsim.vmx.vmcs import Vmcs

Page: TypeAlias = bytes | bytearray | memoryview
PAGE_SIZE = 4096

_IO_BITMAP_A = int(VmcsField.IO_BITMAP_A)
_IO_BITMAP_B = int(VmcsField.IO_BITMAP_B)
_MSR_BITMAP = int(VmcsField.MSR_BITMAP)
_PF_MASK = int(VmcsField.PAGE_FAULT_ERROR_CODE_MASK)
_PF_MATCH = int(VmcsField.PAGE_FAULT_ERROR_CODE_MATCH)

_MSR_WRITE = 2048
_MSR_HIGH = 1024
"""Offsets in the MSR bitmap: the half for WRMSR, and in each half the quarter for 0xc0000000 up."""


class HostPages:
    """Physical pages that only root mode sees, by address. Register one before a VMCS names it.

    The page is used in place: what its owner changes in it holds from the next access on.
    """

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    def register(self, address: int, page: Page) -> None:
        """Put 4096 bytes at a page-aligned physical address."""
        if address % PAGE_SIZE or len(page) != PAGE_SIZE:
            raise ValueError(f"not a page: {len(page)} bytes at {address:#x}")
        self.pages[address] = page

    def forget(self, address: int) -> None:
        """Take a page away."""
        self.pages.pop(address, None)

    def read_byte(self, address: int, offset: int, cpu: Cpu) -> int:
        """One byte of the page at ``address``; all ones where nothing answers."""
        page = self.pages.get(address)
        if page is not None:
            return page[offset]
        if cpu.memory.backed(address + offset, 1):
            return cpu.memory.read(address + offset, 1)[0]
        return 0xFF


def port_exits(vmcs: Vmcs, cpu: Cpu, port: int, size: int) -> bool:
    """Whether the I/O bitmaps want an access: any byte's bit, and every access that wraps."""
    shift = port & 7
    page = vmcs.fields[_IO_BITMAP_B if port & 0x8000 else _IO_BITMAP_A]
    bits = vmcs.host_pages.read_byte(page, (port & 0x7FFF) >> 3, cpu) >> shift
    if shift + size > 8:
        if port + size > 0x1_0000:
            return True
        port = port + 7 & 0xFFF8
        page = vmcs.fields[_IO_BITMAP_B if port & 0x8000 else _IO_BITMAP_A]
        bits |= vmcs.host_pages.read_byte(page, (port & 0x7FFF) >> 3, cpu) << 8 - shift
    return bits & (1 << size) - 1 != 0


def msr_exits(vmcs: Vmcs, cpu: Cpu, index: int, write: bool) -> bool:
    """Whether the MSR bitmaps want an access; those outside both ranges are always wanted."""
    if index <= 0x1FFF:
        offset = index >> 3
    elif 0xC000_0000 <= index <= 0xC000_1FFF:
        offset = (index & 0x1FFF) >> 3 | _MSR_HIGH
    else:
        return True
    if write:
        offset += _MSR_WRITE
    byte = vmcs.host_pages.read_byte(vmcs.fields[_MSR_BITMAP], offset, cpu)
    return byte >> (index & 7) & 1 != 0


def event_exits(vmcs: Vmcs, event: Event) -> bool:
    """Whether an event exits instead of being delivered. INT n and external interrupts that the
    guest is given never do.
    """
    kind, vector, error_code = event[:3]
    if kind == EventType.NMI:
        return vmcs.pin_based & PinBased.NMI_EXITING != 0
    if kind in (EventType.EXTERNAL_INTERRUPT, EventType.SOFTWARE_INTERRUPT, EventType.OTHER):
        return False
    wanted = vmcs.exception_bitmap >> vector & 1 != 0
    if vector != Vector.PF:
        return wanted
    fields = vmcs.fields
    return wanted == ((error_code or 0) & fields[_PF_MASK] == fields[_PF_MATCH])
