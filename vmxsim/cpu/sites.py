"""Where the guest exits: instructions decoded once, and valid while their bytes and mode stay.

A site is checked with one read of its first eight bytes where they lie in the caller's buffer, so
that self-modified code and host writes are seen. Linear addresses of code are remembered until the
guest's translations may change, as a processor's TLB would.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from vmxsim.arch.paging import PageFault
from vmxsim.cpu import image
from vmxsim.cpu.decode import Decoder
from vmxsim.cpu.linear import LinearMemory
from vmxsim.cpu.memory import PAGE, GuestMemory
from vmxsim.cpu.state import CpuState
from vmxsim.cpu.traps import InsnTrap, Instruction, IoTrap, TrapKind

MODE = image.HF_CS64 | image.HF_CS32
MOST_SITES = 65536
MOST_DECODED = 4096


class Site(NamedTuple):
    """A decoded instruction where it stands: valid while its bytes and the mode are the same."""

    trap: InsnTrap | None
    insn: Instruction
    kind: TrapKind | None
    mode: int
    cs_base: int
    word: ctypes.c_uint64
    mask: int
    bytes: int


class PlainIo:
    """One IN or OUT that is no string instruction: how to know it again, and its record."""

    __slots__ = ("bytes", "cs_base", "mask", "mode", "port", "size", "trap", "word")

    def __init__(self, site: Site, rip: int, is_in: bool, port: int, size: int) -> None:
        self.word, self.mask, self.bytes = site.word, site.mask, site.bytes
        self.mode, self.cs_base = site.mode, site.cs_base
        self.port, self.size = port, size
        insn = site.insn
        self.trap = IoTrap(TrapKind.BOUNCED, rip, insn, is_in, port, size, 0, False, insn.rep != 0)


class Sites:
    """The decoded instructions of one guest CPU, by RIP."""

    def __init__(self, state: CpuState, linear: LinearMemory, memory: GuestMemory) -> None:
        self._state = state
        self._linear = linear
        self._memory = memory
        self._decoder = Decoder()
        self._decoded: dict[tuple[bytes, int], tuple[TrapKind | None, Instruction] | None] = {}
        self._code_pages: dict[int, int] = {}
        self.known: dict[int, Site] = {}
        self.plain: dict[int, PlainIo] = {}
        """IN and OUT that are no string instructions and have trapped before, by RIP."""

    def forget(self) -> None:
        """Forget where code lies; what bytes mean stays known."""
        self.known.clear()
        self.plain.clear()
        self._code_pages.clear()

    def at(self, rip: int) -> Site | None:
        """Decode the instruction at RIP; None when its bytes cannot be read or are none."""
        mode = self._state.hflags & MODE
        base = self._state.cs_base
        site = self.known.get(rip)
        if (
            site is not None
            and site.mode == mode
            and site.cs_base == base
            and site.word.value & site.mask == site.bytes
        ):
            return site
        linear = rip if mode & image.HF_CS64 else (base + rip) & 0xFFFFFFFF
        code = self._fetch(linear)
        bits = self._state.mode_bits
        key = (code, bits)
        decoded = self._decoded.get(key)
        if decoded is None:
            decoded = self._decoder.decode(code, bits)
            if decoded is None:
                return None
            if len(self._decoded) > MOST_DECODED:
                self._decoded.clear()
            self._decoded[key] = decoded
        return self._remember(rip, linear, mode, base, decoded)

    def _remember(
        self,
        rip: int,
        linear: int,
        mode: int,
        base: int,
        decoded: tuple[TrapKind | None, Instruction],
    ) -> Site:
        """Keep a decoded instruction at its RIP if its bytes can be watched with one read."""
        kind, insn = decoded
        lockable = kind is TrapKind.CMPXCHG8B
        trap = None
        if kind is not None and (lockable or not insn.lock):
            trap = InsnTrap(kind, rip, insn)
        gpa = self.locate(linear)
        region = self._memory.region_at(gpa) if gpa >= 0 else None
        length = min(insn.length, 8)
        fits = region is not None and linear % PAGE + 8 <= PAGE and insn.length <= 8
        word = ctypes.c_uint64(0)
        if fits and region is not None:
            word = ctypes.c_uint64.from_address(region.address + gpa - region.gpa)
        mask = (1 << 8 * length) - 1
        value = int.from_bytes(insn.code[:8], "little") & mask
        site = Site(trap, insn, kind, mode, base, word, mask, value)
        if fits:
            if len(self.known) > MOST_SITES:
                self.known.clear()
            self.known[rip] = site
        return site

    def _fetch(self, linear: int) -> bytes:
        """Up to fifteen bytes of code at a linear address, fewer where memory ends."""
        code = b""
        while len(code) < 15:
            gpa = self.locate(linear)
            if gpa < 0 or self._memory.region_at(gpa) is None:
                break
            step = min(15 - len(code), PAGE - linear % PAGE)
            try:
                code += self._memory.read(gpa, step)
            except LookupError:
                break
            linear += step
        return code

    def locate(self, linear: int) -> int:
        """The guest-physical address of code at a linear address, -1 for none; remembered."""
        page = linear & -PAGE
        gpa = self._code_pages.get(page)
        if gpa is None:
            try:
                found = self._linear.translate(page, 0, False, mark=False)
            except LookupError:
                return -1
            if isinstance(found, PageFault):
                return -1
            gpa = self._code_pages[page] = found
        return gpa + linear % PAGE
