"""A Cpu that is a list of traps: the floors above are tested with it, and no engine is loaded.

All state is plain and public. ``run`` notes in ``entered`` what a real engine would have started
from, then gives the next trap of the script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence
from typing import NamedTuple, TypeAlias

from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Cr0, Dr6, Dr7, Rflags
from vmxsim.arch.segments import (
    NULL_SEGMENT,
    AccessRights,
    Segment,
    SegmentRegister,
    TableRegister,
    real_mode_segment,
)
from vmxsim.cpu.interface import READ, Buffer, FastIn, FastOut
from vmxsim.cpu.traps import (
    RIP_BASE,
    EventTrap,
    Instruction,
    MemoryTrap,
    Operand,
    Trap,
    TrapKind,
)
from vmxsim.errors import EngineError

PAGE = 0x1000
ENGINE_MSRS = {
    0x174: "sysenter_cs",
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0x277: "pat",
    0xC000_0081: "star",
    0xC000_0082: "lstar",
    0xC000_0083: "cstar",
    0xC000_0084: "fmask",
    0xC000_0102: "kernel_gs_base",
    0xC000_0103: "tsc_aux",
}
PAT_RESET = 0x0007_0406_0007_0406


class Entered(NamedTuple):
    """What the cpu looked like when ``run`` was called."""

    rip: int
    rflags: int
    cr0: int
    shadow: int
    interrupt_window: bool
    gpr: tuple[int, ...]


Step: TypeAlias = "Trap | Callable[[ScriptedCpu], Trap]"
"""A trap to hand up, or a function that changes the cpu as a guest would and then gives one."""


class ScriptedMemory:
    """Guest-physical memory made of the buffers mapped into it."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[memoryview, bool]] = {}

    def map(self, gpa: int, buffer: Buffer, readonly: bool = False) -> None:
        """Back guest-physical addresses by the caller's buffer."""
        self.slots[gpa] = (memoryview(buffer), readonly)

    def unmap(self, gpa: int, size: int) -> None:
        """Take away what was mapped at this address."""
        del self.slots[gpa]

    def _find(self, gpa: int, size: int) -> memoryview | None:
        for start, (view, _) in self.slots.items():
            if start <= gpa and gpa + size <= start + len(view):
                return view[gpa - start : gpa - start + size]
        return None

    def backed(self, gpa: int, size: int) -> bool:
        """Whether one buffer holds the whole range."""
        return self._find(gpa, size) is not None

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes; LookupError where nothing is mapped."""
        view = self._find(gpa, size)
        if view is None:
            raise LookupError(f"nothing at {gpa:#x}")
        return bytes(view)

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes; LookupError where nothing is mapped."""
        view = self._find(gpa, len(data))
        if view is None:
            raise LookupError(f"nothing at {gpa:#x}")
        view[:] = data


def _nothing() -> None:
    """A script has no translated code."""


class ScriptedPorts:
    """The port tables, kept and never used: a script's I/O always traps."""

    def __init__(self) -> None:
        self.fast_out: dict[int, FastOut] = {}
        self.fast_in: dict[int, FastIn] = {}
        self.enabled = False
        self.bounce_out: Callable[[int, int, int], None] | None = None
        self.bounce_in: Callable[[int, int], None] | None = None


class ScriptedCpu:
    """Replays traps. Starts as a processor in real mode at 0:0; keyword arguments set attributes.

    ``linear_faults`` maps a page number to the PageFault or MemoryTrap that touching it gives;
    every other linear address is the physical one.
    """

    def __init__(self, traps: Iterable[Step] = (), **state: object) -> None:
        self.traps: list[Step] = list(traps)
        self.entered: list[Entered] = []
        self.armed: frozenset[TrapKind] = frozenset()
        self.kicked = False
        self.tlb_flushes = 0
        self.invalidated: list[int] = []
        self.linear_faults: dict[int, PageFault | MemoryTrap] = {}
        self.memory = ScriptedMemory()
        self.ports = ScriptedPorts()
        self.enter_from_host: Callable[[], None] = _nothing
        self.leave_to_host: Callable[[], None] = _nothing
        self.gpr: MutableSequence[int] = [0] * 16
        self.dr: list[int] = [0, 0, 0, 0, 0, 0, Dr6.FIXED, Dr7.FIXED]
        self.rip, self.rflags = 0, int(Rflags.FIXED)
        self.cr0, self.cr2, self.cr3, self.cr4, self.cr8 = int(Cr0.ET), 0, 0, 0, 0
        self.efer, self.xcr0 = 0, 1
        self.shadow = 0
        self.interrupt_window = False
        self.budget, self.blocks = 0, 0
        self.gdtr = self.idtr = TableRegister(0, 0xFFFF)
        self.segments = [real_mode_segment(0, code=i == Segment.CS) for i in range(6)]
        self.segments += [NULL_SEGMENT, SegmentRegister(0, 0, 0xFFFF, AccessRights.BUSY_TSS)]
        self.msrs = dict.fromkeys(ENGINE_MSRS, 0) | {0x277: PAT_RESET}
        self._xmm = [bytes(16)] * 16
        self._fx = bytes(512)
        for name, value in state.items():
            if not hasattr(self, name):
                raise TypeError(f"a cpu has no {name!r}")
            setattr(self, name, value)

    def run(self) -> Trap:
        """The next trap of the script; a kick or an open interrupt window comes before it."""
        self.entered.append(
            Entered(
                self.rip, self.rflags, self.cr0, self.shadow, self.interrupt_window,
                tuple(self.gpr),
            )
        )  # fmt: skip
        if self.kicked:
            self.kicked = False
            return EventTrap(TrapKind.KICK, self.rip)
        if self.interrupt_window and self.rflags & Rflags.IF and not self.shadow:
            return EventTrap(TrapKind.INTERRUPT_WINDOW, self.rip)
        if not self.traps:
            raise EngineError(f"the script is over, and the guest goes on at {self.rip:#x}")
        step = self.traps.pop(0)
        trap = step(self) if callable(step) else step
        self.rip = trap.rip
        return trap

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF."""
        return self.rflags & Rflags.IF != 0

    def skip(self, length: int) -> None:
        """Move RIP on, and end the interrupt shadow."""
        self.rip += length
        self.shadow = 0

    @property
    def cpl(self) -> int:
        """SS.DPL; 3 in virtual-8086 mode."""
        return 3 if self.rflags & Rflags.VM else self.segments[Segment.SS].dpl

    @property
    def mode_bits(self) -> int:
        """16, 32 or 64, from EFER.LMA and CS."""
        rights = self.segments[Segment.CS].access_rights
        if self.efer & 0x400 and rights & AccessRights.L:
            return 64
        return 32 if rights & AccessRights.DB else 16

    def segment(self, segment: int) -> SegmentRegister:
        """One segment register."""
        return self.segments[segment]

    def set_segment(self, segment: int, value: SegmentRegister) -> None:
        """Load one segment register."""
        self.segments[segment] = value

    def msr(self, index: int) -> int:
        """The MSRs an engine holds; FS and GS base are their segments', EFER is ``efer``."""
        if index in (0xC000_0100, 0xC000_0101):
            return self.segments[Segment.FS + (index & 1)].base
        return self.efer if index == 0xC000_0080 else self.msrs[index]

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR an engine holds; KeyError for any other."""
        if index in (0xC000_0100, 0xC000_0101):
            segment = Segment.FS + (index & 1)
            self.segments[segment] = self.segments[segment]._replace(base=value)
        elif index == 0xC000_0080:
            self.efer = value
        elif index not in self.msrs:
            raise KeyError(index)
        else:
            self.msrs[index] = value

    def xmm(self, number: int) -> bytes:
        """Sixteen bytes."""
        return self._xmm[number]

    def set_xmm(self, number: int, value: bytes) -> None:
        """Set sixteen bytes."""
        self._xmm[number] = value

    def fxsave(self) -> bytes:
        """What fxrstor was given last."""
        return self._fx

    def fxrstor(self, image: bytes) -> None:
        """Keep the image for fxsave."""
        self._fx = image

    def flush_tlb(self) -> None:
        """Count the flush."""
        self.tlb_flushes += 1

    def invlpg(self, gva: int) -> None:
        """Note the address."""
        self.invalidated.append(gva)

    def arm(self, kinds: frozenset[TrapKind]) -> None:
        """Note which optional kinds were asked for."""
        self.armed = kinds

    def keep_interruptible(self) -> None:
        """A script never spins."""

    def close(self) -> None:
        """A script holds nothing."""

    def kick(self) -> None:
        """The next run() gives KICK."""
        self.kicked = True

    def _linear_fault(self, gva: int, size: int) -> PageFault | MemoryTrap | None:
        for page in range(gva // PAGE, (gva + max(size, 1) - 1) // PAGE + 1):
            if page in self.linear_faults:
                return self.linear_faults[page]
        if self.memory.backed(gva, size):
            return None
        return MemoryTrap(TrapKind.MEMORY, self.rip, gva, size, READ, 0, gva, False)

    def read_linear(
        self, gva: int, size: int, access: int = READ, user: bool | None = None
    ) -> bytes | PageFault | MemoryTrap:
        """Memory at the same physical address, or the fault planted there."""
        fault = self._linear_fault(gva, size)
        if fault is None:
            return self.memory.read(gva, size)
        return fault._replace(access=access) if isinstance(fault, MemoryTrap) else fault

    def write_linear(
        self, gva: int, data: bytes, user: bool | None = None
    ) -> PageFault | MemoryTrap | None:
        """Write at the same physical address, or give the fault planted there."""
        fault = self._linear_fault(gva, len(data))
        if fault is None:
            self.memory.write(gva, data)
            return None
        return fault._replace(access=1) if isinstance(fault, MemoryTrap) else fault

    def linear_address(self, insn: Instruction, operand: Operand) -> int:
        """Segment base plus base, index and displacement, truncated."""
        offset = operand.disp
        if operand.base == RIP_BASE:
            offset += self.rip + insn.length
        elif operand.base >= 0:
            offset += self.gpr[operand.base]
        if operand.index_reg >= 0:
            offset += self.gpr[operand.index_reg] * operand.scale
        offset &= (1 << 8 * insn.address_size) - 1
        if insn.bits == 64:
            base = self.segments[operand.index].base if operand.index >= Segment.FS else 0
            return (base + offset) & (1 << 64) - 1
        return (self.segments[operand.index].base + offset) & 0xFFFF_FFFF
