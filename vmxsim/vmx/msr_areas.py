"""The MSR-load and MSR-store areas: lists in memory that VM entries and VM exits work through.

SDM Vol. 3, "Loading MSRs", "Saving MSRs", "VM-Entry Controls for MSRs". Each entry is 16 bytes:

    31:0 index   63:32 reserved   127:64 value
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmxsim.arch.bits import MASK_64, canonical
from vmxsim.arch.msrs import CANONICAL_MSRS, READ_ONLY_MSRS, WRITABLE_BITS, Msr, valid_pat
from vmxsim.arch.registers import Cr0, Efer
from vmxsim.cpu.interface import Cpu, Memory
from vmxsim.vmx.bitmaps import PAGE_SIZE, HostPages

ENTRY_SIZE = 16
NEVER_LOADED = frozenset(
    {Msr.IA32_FS_BASE, Msr.IA32_GS_BASE, Msr.IA32_SMM_MONITOR_CTL, Msr.IA32_BIOS_UPDT_TRIG}
)
NEVER_STORED = frozenset({Msr.IA32_SMBASE})


class MsrEntry(NamedTuple):
    """One entry of an area."""

    number: int
    reserved: int
    value: int


class RootMemory:
    """Physical memory as root mode sees it: its own pages, then the guest's memory.

    Reads of nothing give all ones, and writes to it are lost, as on a bus.
    """

    def __init__(self, host_pages: HostPages, memory: Memory) -> None:
        self.host_pages, self.memory = host_pages, memory

    def read(self, address: int, size: int) -> bytes:
        """Bytes that do not cross a page."""
        page = self.host_pages.pages.get(address & ~(PAGE_SIZE - 1))
        if page is not None:
            offset = address & PAGE_SIZE - 1
            return bytes(page[offset : offset + size])
        if not self.memory.backed(address, size):
            return b"\xff" * size
        return self.memory.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store bytes that do not cross a page."""
        page = self.host_pages.pages.get(address & ~(PAGE_SIZE - 1))
        if page is not None:
            offset = address & PAGE_SIZE - 1
            memoryview(page)[offset : offset + len(data)] = data
        elif self.memory.backed(address, len(data)):
            self.memory.write(address, data)

    def backed(self, address: int, size: int) -> bool:
        """Whether anything answers."""
        page = address & ~(PAGE_SIZE - 1)
        return page in self.host_pages.pages or self.memory.backed(address, size)


def read_area(memory: RootMemory, address: int, count: int) -> list[MsrEntry]:
    """The entries of an area, in order."""
    entries = []
    for number in range(count):
        raw = memory.read(address + ENTRY_SIZE * number, ENTRY_SIZE)
        entries.append(
            MsrEntry(*(int.from_bytes(raw[a:b], "little") for a, b in ((0, 4), (4, 8), (8, 16))))
        )
    return entries


def writable(index: int, value: int) -> bool:
    """Whether WRMSR at CPL 0 would take this value, as far as the number alone decides."""
    if index in READ_ONLY_MSRS or value & ~WRITABLE_BITS.get(Msr(index), MASK_64):
        return False
    if index == Msr.IA32_PAT:
        return valid_pat(value)
    return index not in CANONICAL_MSRS or canonical(value)


def loadable(entry: MsrEntry, holds: Callable[[int], bool]) -> bool:
    """Whether VM entry or VM exit may load this MSR; ``holds`` says which ones there are."""
    index = entry.number
    if index in NEVER_LOADED or index >> 8 == 0x8 or entry.reserved:
        return False
    return holds(index) and writable(index, entry.value)


def first_unloadable(
    entries: list[MsrEntry], holds: Callable[[int], bool], fixed_efer: int
) -> int | None:
    """The number of the first entry that cannot be loaded, counted from 1.

    ``fixed_efer`` is EFER as loaded, with paging on: its LME cannot change. -1: paging is off.
    """
    for number, entry in enumerate(entries, 1):
        if not loadable(entry, holds):
            return number
        changed = (entry.value ^ fixed_efer) & Efer.LME
        if entry.number == Msr.IA32_EFER and fixed_efer >= 0 and changed:
            return number
    return None


def load_guest_msrs(entries: list[MsrEntry], cpu: Cpu) -> None:
    """Load MSRs that first_unloadable found no fault with; EFER.LMA is not writable."""
    for entry in entries:
        value = entry.value
        if entry.number == Msr.IA32_EFER:
            value = value & ~Efer.LMA | cpu.efer & Efer.LMA
        cpu.set_msr(entry.number, value)


def efer_with_paging(cr0: int, efer: int) -> int:
    """The ``fixed_efer`` of a guest."""
    return efer if cr0 & Cr0.PG else -1


def storable(entry: MsrEntry) -> bool:
    """Whether a VM exit may store this MSR."""
    return entry.number >> 8 != 0x8 and entry.number not in NEVER_STORED and not entry.reserved
