"""Address spaces: which device answers at a port or a guest-physical address, and RAM itself.

QEMU: softmmu/physmem.c (exec.c in 4.1), softmmu/memory.c. Left out: overlapping priorities, aliases
and subregions (two claims to one address are a ConfigError), endianness, IOMMUs, coalesced MMIO.

Accesses wider than a device takes at once are split into bytes, and each goes to the device that
claims its address. Nobody's address reads as all ones and ignores writes; address_space_rw says so
(DECODE_ERROR), and whoever asked applies the policy: a probe, or `UnclaimedAccess`.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from enum import Enum
from typing import NamedTuple

from vmxsim.errors import ConfigError, PortConflict, VmxsimError
from vmxsim.vmm.devices.base import Device, ReadFn, WriteFn

PAGE_SIZE = 4096
MAX_DATA_LEN = 8
"""The widest single access: eight bytes of MMIO."""


class UnclaimedAccess(VmxsimError):
    """The guest used a port or address that nobody claims. Add the device, or leave strict off."""


class MemTxResult(Enum):
    """How an access went. QEMU: MEMTX_OK, MEMTX_DECODE_ERROR."""

    OK = "every byte was somebody's"
    DECODE_ERROR = "some byte was nobody's"


class Region(NamedTuple):
    """A device, or RAM, at a range of addresses."""

    name: str
    base: int
    size: int
    device: Device | None = None
    ram: memoryview | None = None
    first: int = 0
    """The device's own offset of the first address: a device may answer in several regions."""

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.base + self.size

    def __str__(self) -> str:
        return f"{self.name} {self.base:#x}..{self.end - 1:#x}"


class AddressSpace:
    """Regions of one kind of addresses. `ports` and `memory` of a machine are two of them."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.regions: list[Region] = []
        self._bases: list[int] = []
        self.reads: dict[int, tuple[ReadFn, int]] = {}
        """(address << 4 | size) to the device's read and the offset: the exit loop's short cut.

        Filled for regions of devices up to a page; whatever it lacks goes through
        address_space_rw."""
        self.writes: dict[int, tuple[WriteFn, int]] = {}

    def add(self, region: Region) -> None:
        """Let a region answer. PortConflict (ConfigError for memory) names both that collide."""
        if region.size <= 0 or region.base < 0 or region.end > self.size:
            raise ConfigError(f"{region} is no part of {self.name} 0x0..{self.size - 1:#x}")
        for old in self.regions:
            if old.base < region.end and region.base < old.end:
                conflict = PortConflict if self.name == "ports" else ConfigError
                raise conflict(f"{self.name}: {region} overlaps {old}")
        at = bisect_right(self._bases, region.base)
        self._bases.insert(at, region.base)
        self.regions.insert(at, region)
        self._shorten(region)

    def add_device(self, name: str, base: int, size: int, device: Device, first: int = 0) -> None:
        """Let a device answer at a range, from its offset `first` on."""
        self.add(Region(name, base, size, device, first=first))

    def add_ram(self, name: str, base: int, memory: memoryview) -> None:
        """Let a buffer answer at a range."""
        self.add(Region(name, base, len(memory), ram=memory))

    def remove(self, name: str) -> None:
        """Take away every region of this name. One that is not there is no error."""
        for region in [region for region in self.regions if region.name == name]:
            at = self.regions.index(region)
            del self.regions[at], self._bases[at]
            for table in (self.reads, self.writes):
                for key in [key for key in table if region.base <= key >> 4 < region.end]:
                    del table[key]

    def find(self, address: int) -> Region | None:
        """The region that claims an address."""
        at = bisect_right(self._bases, address) - 1
        if at >= 0 and address < self.regions[at].end:
            return self.regions[at]
        return None

    def _shorten(self, region: Region) -> None:
        device = region.device
        if device is None or region.size > PAGE_SIZE:
            return
        for offset in range(region.size):
            size = 1
            while size <= device.max_access and offset + size <= region.size:
                key = region.base + offset << 4 | size
                self.reads[key] = device.read, region.first + offset
                self.writes[key] = device.write, region.first + offset
                size *= 2


def address_space_rw(
    space: AddressSpace, address: int, data: bytearray | memoryview, is_write: bool
) -> MemTxResult:
    """Move bytes between `data` and whatever answers at the address."""
    result, done, length = MemTxResult.OK, 0, len(data)
    while done < length:
        at = address + done
        region = space.find(at)
        if region is None:
            if not is_write:
                data[done] = 0xFF
            result, done = MemTxResult.DECODE_ERROR, done + 1
            continue
        room = min(length - done, region.end - at)
        if region.ram is not None:
            offset = at - region.base
            if is_write:
                region.ram[offset : offset + room] = data[done : done + room]
            else:
                data[done : done + room] = region.ram[offset : offset + room]
        elif region.device is not None:
            offset = at - region.base + region.first
            room = _access_size(region.device, offset, room)
            _device_rw(region.device, offset, data, done, room, is_write)
        done += room
    return result


def _access_size(device: Device, offset: int, room: int) -> int:
    """The widest access that the device takes here. QEMU: memory_access_size."""
    size = device.max_access
    while size > room or offset % size:
        size //= 2
    return size


def _device_rw(
    device: Device, offset: int, data: bytearray | memoryview, at: int, size: int, is_write: bool
) -> None:
    if is_write:
        device.write(offset, size, int.from_bytes(data[at : at + size], "little"))
    else:
        value = device.read(offset, size) & (1 << 8 * size) - 1
        data[at : at + size] = value.to_bytes(size, "little")


def address_space_read(space: AddressSpace, address: int, size: int) -> bytes:
    """Read bytes; all ones where nobody answers."""
    data = bytearray(size)
    address_space_rw(space, address, data, is_write=False)
    return bytes(data)


def address_space_write(space: AddressSpace, address: int, data: bytes) -> None:
    """Write bytes; those that nobody claims are lost."""
    address_space_rw(space, address, bytearray(data), is_write=True)


class Ram:
    """Guest memory from address 0 up: anonymous, zero, and the host's only once it is touched."""

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ConfigError(f"memory of {size:#x} bytes: it has whole pages of 4096")
        try:
            self.buffer = mmap.mmap(-1, size)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(f"the host has no {size:#x} bytes of memory: {error}") from None
        self.size = size
        self.view = memoryview(self.buffer)

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a guest-physical address; IndexError outside."""
        self._inside(gpa, size)
        return bytes(self.view[gpa : gpa + size])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write as the host does; the guest runs what was written the next time it is entered."""
        self._inside(gpa, len(data))
        self.view[gpa : gpa + len(data)] = data

    def _inside(self, gpa: int, size: int) -> None:
        if gpa < 0 or gpa + size > self.size:
            raise IndexError(
                f"{gpa:#x}..{gpa + size - 1:#x} is outside {self.size:#x} bytes of RAM"
            )
