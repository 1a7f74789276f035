"""Guest-physical memory: the callers' own buffers, mapped into the engine without a copy."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from unicorn import UC_PROT_ALL
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.cpu.interface import Buffer
from vmxsim.cpu.nested import NestedPages
from vmxsim.errors import ConfigError, EngineError

PAGE = 4096
GPA_LIMIT = 1 << 39
"""Guest-physical addresses have 39 bits, one less than the engine's own."""


class Region(NamedTuple):
    """One mapped buffer. ``address`` is where it lies in this process."""

    gpa: int
    size: int
    address: int
    readonly: bool
    keep: object


class GuestMemory:
    """The engine's guest-physical address space."""

    def __init__(self, handle: int, nested: NestedPages, changed: Callable[[], None]) -> None:
        self._handle = handle
        self._nested = nested
        self._changed = changed
        self._starts: list[int] = []
        self._regions: list[Region] = []
        self.on_write: Callable[[int, int], None] | None = None
        """Told (gpa, size) of every write(), to drop code translated from those bytes."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is mapped, by rising address."""
        return tuple(self._regions)

    def map(self, gpa: int, buffer: Buffer, readonly: bool = False) -> None:
        """Back ``[gpa, gpa + len(buffer))`` by the caller's buffer.

        Both must be multiples of 4096 bytes, and the buffer writable (the engine needs its
        address); ``readonly`` keeps the guest from writing. The buffer is held until unmap.
        """
        size = memoryview(buffer).nbytes
        if gpa % PAGE or size % PAGE or not size:
            raise ConfigError(
                f"memory at {gpa:#x} of {size:#x} bytes: address and size must be multiples of 4096"
            )
        if gpa + size > GPA_LIMIT:
            raise ConfigError(f"memory at {gpa:#x} ends above the 39 bits of a guest address")
        if self._overlaps(gpa, size):
            raise ConfigError(
                f"memory at {gpa:#x} of {size:#x} bytes overlaps memory that is there"
            )
        if memoryview(buffer).readonly:
            raise ConfigError(f"memory at {gpa:#x}: the buffer must be writable (use a bytearray)")
        keep = (ctypes.c_char * size).from_buffer(buffer)
        address = ctypes.addressof(keep)
        error = uclib.uc_mem_map_ptr(
            self._handle,
            ctypes.c_uint64(gpa),
            ctypes.c_size_t(size),
            UC_PROT_ALL,
            ctypes.c_void_p(address),
        )
        if error:
            raise EngineError(f"Unicorn refused memory at {gpa:#x} of {size:#x} bytes ({error})")
        at = bisect_right(self._starts, gpa)
        self._starts.insert(at, gpa)
        self._regions.insert(at, Region(gpa, size, address, readonly, keep))
        self._nested.map(gpa, size, readonly)
        self._changed()

    def unmap(self, gpa: int, size: int) -> None:
        """Take away the region that map() put there; the whole of it, or ConfigError."""
        here = self.region_at(gpa)
        if here is None or (here.gpa, here.size) != (gpa, size):
            raise ConfigError(f"no memory of {size:#x} bytes was mapped at {gpa:#x}")
        self._nested.unmap(gpa, size)
        error = uclib.uc_mem_unmap(self._handle, ctypes.c_uint64(gpa), ctypes.c_size_t(size))
        if error:
            raise EngineError(f"Unicorn refused to unmap {gpa:#x} ({error})")
        position = self._regions.index(here)
        del self._starts[position], self._regions[position]
        self._changed()

    def _overlaps(self, gpa: int, size: int) -> bool:
        return any(r.gpa < gpa + size and gpa < r.gpa + r.size for r in self._regions)

    def region_at(self, gpa: int) -> Region | None:
        """The region that holds a guest-physical address."""
        at = bisect_right(self._starts, gpa) - 1
        if at < 0:
            return None
        region = self._regions[at]
        return region if gpa < region.gpa + region.size else None

    def backed(self, gpa: int, size: int) -> bool:
        """Whether every byte of the range has memory behind it."""
        while size > 0:
            region = self.region_at(gpa)
            if region is None:
                return False
            step = region.gpa + region.size - gpa
            gpa, size = gpa + step, size - step
        return True

    def writable(self, gpa: int, size: int) -> bool:
        """Whether the guest may write every byte of the range."""
        while size > 0:
            region = self.region_at(gpa)
            if region is None or region.readonly:
                return False
            step = region.gpa + region.size - gpa
            gpa, size = gpa + step, size - step
        return True

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a guest-physical address; LookupError where nothing backs them."""
        region = self.region_at(gpa)
        if region is None:
            raise LookupError(f"no memory at guest-physical {gpa:#x}")
        offset = gpa - region.gpa
        data = ctypes.string_at(region.address + offset, min(size, region.size - offset))
        if len(data) < size:
            data += self.read(gpa + len(data), size - len(data))
        return data

    def read_word(self, gpa: int, size: int) -> int:
        """A little-endian number of ``size`` bytes; LookupError where nothing backs it."""
        return int.from_bytes(self.read(gpa, size), "little")

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes, read-only regions included: this is the host's hand, not the guest's."""
        if self.on_write is not None:
            self.on_write(gpa, len(data))
        self._store(gpa, data)

    def _store(self, gpa: int, data: bytes) -> None:
        region = self.region_at(gpa)
        if region is None:
            raise LookupError(f"no memory at guest-physical {gpa:#x}")
        offset = gpa - region.gpa
        count = min(len(data), region.size - offset)
        ctypes.memmove(region.address + offset, data, count)
        if count < len(data):
            self._store(gpa + count, data[count:])

    def host_address(self, gpa: int) -> int:
        """Where a guest-physical byte lies in this process, and 0 for nowhere."""
        region = self.region_at(gpa)
        return region.address + gpa - region.gpa if region is not None else 0

    def close(self) -> None:
        """Let go of every buffer; the engine must not run again."""
        self._regions.clear()
        self._starts.clear()
