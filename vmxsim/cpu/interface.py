"""The seam between silicon and engine: what vmx/ may ask of whatever runs guest instructions.

``UnicornCpu`` runs them; ``ScriptedCpu`` replays a list of traps. Both satisfy these Protocols.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from vmxsim.cpu.traps import Instruction, MemoryTrap, Operand, Trap, TrapKind

if TYPE_CHECKING:
    from vmxsim.arch.paging import PageFault
    from vmxsim.arch.segments import SegmentRegister, TableRegister

READ, WRITE, EXECUTE = 0, 1, 2

FastOut: TypeAlias = Callable[[int, int, int], bool]
FastIn: TypeAlias = Callable[[int, int], int]
Buffer: TypeAlias = bytearray | memoryview

OPTIONAL_KINDS: frozenset[TrapKind] = frozenset(
    {
        TrapKind.INVLPG,
        TrapKind.MOV_FROM_CR,
        TrapKind.SMSW,
        TrapKind.PAUSE,
        TrapKind.WBINVD,
        TrapKind.LGDT,
        TrapKind.LIDT,
        TrapKind.SGDT,
        TrapKind.SIDT,
        TrapKind.LLDT,
        TrapKind.LTR,
        TrapKind.SLDT,
        TrapKind.STR,
        TrapKind.RSM,
    }
)
"""The kinds ``Cpu.arm`` may ask for; every other kind is always handed up.

An implementation may hand up more: Unicorn's always does INVLPG, RSM and WBINVD.
"""


class Memory(Protocol):
    """Guest-physical memory. Reading what nothing backs raises LookupError."""

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a guest-physical address."""
        ...

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes; code translated from them is thrown away."""
        ...

    def map(self, gpa: int, buffer: Buffer, readonly: bool = False) -> None:
        """Back guest-physical addresses by the caller's buffer, without a copy."""
        ...

    def unmap(self, gpa: int, size: int) -> None:
        """Take the backing away."""
        ...

    def backed(self, gpa: int, size: int) -> bool:
        """Whether every byte of the range can be read."""
        ...


class PortTable(Protocol):
    """Ports answered inside the engine, without a trap, while ``enabled``.

    A ``fast_out`` function takes (port, size, value) and says True when the guest must be left
    after the instruction; a ``fast_in`` function takes (port, size) and gives the value.
    """

    fast_out: dict[int, FastOut]
    fast_in: dict[int, FastIn]
    enabled: bool
    bounce_out: Callable[[int, int, int], None] | None
    """Told (port, size, value) of an OUT to a port that is not in the table, at CPL 0."""
    bounce_in: Callable[[int, int], None] | None
    """Told (port, size) of such an IN. Both come up as an IoTrap of kind BOUNCED."""


class Cpu(Protocol):
    """One guest processor: ``run`` it up to the next trap, and read or change all it holds.

    Setters make no architectural checks. Values are the guest's real ones, masks and shadows of
    the VMCS not applied.
    """

    dr: list[int]
    """DR0..DR7, plain storage."""
    interrupt_window: bool
    """Trap INTERRUPT_WINDOW as soon as RFLAGS.IF is 1 and nothing blocks interrupts."""
    enter_from_host: Callable[[], None]
    """The host had its turn: see whether it wrote to translated code."""
    leave_to_host: Callable[[], None]
    """The host gets its turn: remember what the translated code looks like."""
    budget: int
    """Trap BUDGET after so many translated blocks; 0 means never."""

    @property
    def gpr(self) -> MutableSequence[int]:
        """The sixteen general registers, live, indexed by arch.registers.Gpr."""
        ...

    @property
    def memory(self) -> Memory:
        """Guest-physical memory."""
        ...

    @property
    def ports(self) -> PortTable:
        """Ports answered inside the engine."""
        ...

    @property
    def blocks(self) -> int:
        """Translated blocks executed, counted only once a budget was ever set."""
        ...

    def run(self) -> Trap:
        """Run guest instructions up to the next trap; RIP is still on the trapping instruction."""
        ...

    @property
    def rip(self) -> int:
        """The instruction pointer, an offset in CS."""
        ...

    @rip.setter
    def rip(self, value: int) -> None: ...

    @property
    def rflags(self) -> int:
        """RFLAGS."""
        ...

    @rflags.setter
    def rflags(self, value: int) -> None: ...

    @property
    def cr0(self) -> int:
        """CR0."""
        ...

    @cr0.setter
    def cr0(self, value: int) -> None: ...

    @property
    def cr2(self) -> int:
        """CR2, the linear address of the last delivered page fault."""
        ...

    @cr2.setter
    def cr2(self, value: int) -> None: ...

    @property
    def cr3(self) -> int:
        """CR3."""
        ...

    @cr3.setter
    def cr3(self, value: int) -> None: ...

    @property
    def cr4(self) -> int:
        """CR4, with the OSXSAVE and VMXE the guest really has."""
        ...

    @cr4.setter
    def cr4(self, value: int) -> None: ...

    @property
    def cr8(self) -> int:
        """CR8, the task priority."""
        ...

    @cr8.setter
    def cr8(self, value: int) -> None: ...

    @property
    def efer(self) -> int:
        """IA32_EFER."""
        ...

    @efer.setter
    def efer(self, value: int) -> None: ...

    @property
    def xcr0(self) -> int:
        """XCR0."""
        ...

    @xcr0.setter
    def xcr0(self, value: int) -> None: ...

    @property
    def gdtr(self) -> TableRegister:
        """GDTR."""
        ...

    @gdtr.setter
    def gdtr(self, value: TableRegister) -> None: ...

    @property
    def idtr(self) -> TableRegister:
        """IDTR."""
        ...

    @idtr.setter
    def idtr(self, value: TableRegister) -> None: ...

    @property
    def shadow(self) -> int:
        """Interruptibility in the VMCS's bits: 1 is blocking by STI, 2 blocking by MOV SS."""
        ...

    @shadow.setter
    def shadow(self, value: int) -> None: ...

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF, for less than the whole of RFLAGS costs."""
        ...

    def skip(self, length: int) -> None:
        """Move RIP past an instruction, and end the interrupt shadow that it stood in."""
        ...

    @property
    def cpl(self) -> int:
        """The current privilege level: SS.DPL, and 3 in virtual-8086 mode."""
        ...

    @property
    def mode_bits(self) -> int:
        """The code size: 16, 32 or 64."""
        ...

    def segment(self, segment: int) -> SegmentRegister:
        """One segment register by arch.segments.Segment, access rights in the VMCS's form."""
        ...

    def set_segment(self, segment: int, value: SegmentRegister) -> None:
        """Load one segment register with its hidden part."""
        ...

    def msr(self, index: int) -> int:
        """An MSR the engine itself holds; KeyError for any other."""
        ...

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR the engine itself holds; KeyError for any other."""
        ...

    def xmm(self, number: int) -> bytes:
        """The sixteen bytes of an XMM register."""
        ...

    def set_xmm(self, number: int, value: bytes) -> None:
        """Set the sixteen bytes of an XMM register."""
        ...

    def fxsave(self) -> bytes:
        """The 512 bytes FXSAVE would store."""
        ...

    def fxrstor(self, image: bytes) -> None:
        """Load x87 and SSE state from 512 bytes."""
        ...

    def flush_tlb(self) -> None:
        """Forget every cached translation."""
        ...

    def invlpg(self, gva: int) -> None:
        """Forget the translation of one linear address."""
        ...

    def arm(self, kinds: frozenset[TrapKind]) -> None:
        """Say which of the optional kinds to hand up; the others run natively."""
        ...

    def keep_interruptible(self) -> None:
        """Let signals through while this thread runs the guest: for the main thread's use."""
        ...

    def close(self) -> None:
        """Free what the cpu holds; it must not run again."""
        ...

    def kick(self) -> None:
        """Make run() return EventTrap(KICK) soon; safe from any thread, never lost."""
        ...

    def read_linear(
        self, gva: int, size: int, access: int = READ, user: bool | None = None
    ) -> bytes | PageFault | MemoryTrap:
        """Read through the guest's page tables; ``user`` None means by CPL."""
        ...

    def write_linear(
        self, gva: int, data: bytes, user: bool | None = None
    ) -> PageFault | MemoryTrap | None:
        """Write through the guest's page tables; nothing is written when it faults."""
        ...

    def linear_address(self, insn: Instruction, operand: Operand) -> int:
        """Segment base plus effective address of a memory operand, truncated as the mode asks."""
        ...
