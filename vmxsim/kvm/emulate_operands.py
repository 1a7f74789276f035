"""What an emulated instruction touches: registers, flags and memory, the latter through a context.

Nothing here decides whether an address is RAM or a device; the context does, and may answer a read
with a fault or with "ask userspace first".
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias

MASK = (0, 0xFF, 0xFFFF, 0, 0xFFFF_FFFF, 0, 0, 0, 0xFFFF_FFFF_FFFF_FFFF)
"""All ones, by operand size in bytes."""

SIGN = (0, 0x80, 0x8000, 0, 0x8000_0000, 0, 0, 0, 0x8000_0000_0000_0000)
"""The sign bit, by operand size in bytes."""

RSP = 4
RIP_RELATIVE = 16
FIRST_HIGH_BYTE = 16
"""Byte registers 16 to 19 stand for AH, CH, DH and BH."""

VECTOR_DE, VECTOR_UD, VECTOR_GP = 0, 6, 13


class Fault(NamedTuple):
    """An exception to inject instead of finishing the instruction; address is CR2 for #PF."""

    vector: int
    error_code: int | None = None
    address: int | None = None


class MmioNeeded(NamedTuple):
    """A read that only userspace can answer. Supply it, and run the instruction again."""

    gpa: int
    length: int


class Written(Enum):
    """What became of a write that did not fault, where a REP instruction must know."""

    QUEUED = "waits for userspace; stop repeating, so that reads do not overtake it"


class Outcome(Enum):
    """How an emulation ended."""

    DONE = "finished, or (REP) some iterations are: enter the guest again"
    NEED_MMIO = "payload: the MmioNeeded that the context answered"
    FAULT = "payload: the Fault to inject; RIP is still on the instruction"
    UNHANDLED = "not an instruction this emulator knows: KVM_INTERNAL_ERROR_EMULATION"


class Emulation(NamedTuple):
    """An outcome with its payload."""

    outcome: Outcome
    payload: Fault | MmioNeeded | None = None


DONE = Emulation(Outcome.DONE)
UNHANDLED = Emulation(Outcome.UNHANDLED)


class EmulateContext(Protocol):
    """The vCPU as the emulator sees it. Linear addresses in, translation is the context's.

    A call of emulate_instruction asks for the same reads in the same order when it is run again
    after NEED_MMIO, so the context may answer by position what it was given before; it forgets
    those answers after any other outcome.
    """

    @property
    def mode_bits(self) -> int:
        """Code size: 16, 32 or 64."""
        ...

    @property
    def stack_bits(self) -> int:
        """Width of the stack pointer: 64 in 64-bit code, else by SS.B."""
        ...

    @property
    def gpr(self) -> MutableSequence[int]:
        """Sixteen live 64-bit registers."""
        ...

    rip: int
    rflags: int

    def segment_base(self, segment: int) -> int:
        """Base of ES CS SS DS FS GS (0 to 5)."""
        ...

    def segment_selector(self, segment: int) -> int:
        """Selector of a segment register."""
        ...

    def xmm(self, index: int) -> bytes:
        """Sixteen bytes."""
        ...

    def set_xmm(self, index: int, value: bytes) -> None:
        """Sixteen bytes."""
        ...

    def fetch(self, length: int) -> bytes:
        """Code at RIP; fewer bytes where the mapping ends."""
        ...

    def read(self, gva: int, length: int) -> bytes | Fault | MmioNeeded:
        """Data at a linear address, or why it cannot be had yet."""
        ...

    def write(self, gva: int, data: bytes) -> Fault | Written | None:
        """Write to a linear address. Called last, in order, and only if every read succeeded."""
        ...


class Decoded(NamedTuple):
    """One instruction, ready to run. Registers are numbers; -1 means absent."""

    run: Callable[[EmulateContext, Decoded], Emulation]
    length: int
    bits: int
    size: int
    """Operand size in bytes."""
    width: int
    """Size of the r/m operand where it differs (MOVZX, SSE)."""
    what: int
    """Which of the operations that `run` does: ALU operation, condition, shift ..."""
    reg: int
    rm: int
    """Register of the r/m operand, -1 when it is in memory."""
    base: int
    index_reg: int
    scale: int
    disp: int
    segment: int
    address_size: int
    immediate: int
    rep: int
    mnemonic: str


Operation: TypeAlias = Callable[[EmulateContext, Decoded], Emulation]


def fault(vector: int, error_code: int | None = None) -> Emulation:
    """End with an exception of the emulator's own finding."""
    return Emulation(Outcome.FAULT, Fault(vector, error_code))


def unread(answer: Fault | MmioNeeded) -> Emulation:
    """End because a read was not answered."""
    return Emulation(Outcome.FAULT if isinstance(answer, Fault) else Outcome.NEED_MMIO, answer)


def retire(context: EmulateContext, insn: Decoded) -> Emulation:
    """RIP past the instruction."""
    context.rip = (context.rip + insn.length) & MASK[insn.bits >> 3]
    return DONE


def get(gpr: MutableSequence[int], number: int, size: int) -> int:
    """A register's low part, or a high byte."""
    if number >= FIRST_HIGH_BYTE:
        return gpr[number - FIRST_HIGH_BYTE] >> 8 & 0xFF
    return gpr[number] & MASK[size]


def put(gpr: MutableSequence[int], number: int, size: int, value: int) -> None:
    """Write a register: 32 bits clear the upper half, 8 and 16 leave the rest alone."""
    if size >= 4:
        gpr[number] = value
    elif number >= FIRST_HIGH_BYTE:
        number -= FIRST_HIGH_BYTE
        gpr[number] = gpr[number] & ~0xFF00 | value << 8
    else:
        gpr[number] = gpr[number] & ~MASK[size] | value


def address(context: EmulateContext, insn: Decoded, extra: int = 0) -> int:
    """The linear address of the memory operand; `extra` is added before truncation."""
    offset = insn.disp + extra
    if insn.base >= 0:
        if insn.base == RIP_RELATIVE:
            offset += context.rip + insn.length
        else:
            offset += context.gpr[insn.base]
    if insn.index_reg >= 0:
        offset += context.gpr[insn.index_reg] * insn.scale
    return linear(context, insn, insn.segment, offset)


def linear(context: EmulateContext, insn: Decoded, segment: int, offset: int) -> int:
    """Segment base plus an offset cut to the address size; segment -1 has no base."""
    offset &= MASK[insn.address_size]
    if segment < 0:
        return offset
    return (offset + context.segment_base(segment)) & MASK[8 if insn.bits == 64 else 4]


def load_at(context: EmulateContext, gva: int, size: int) -> int | Emulation:
    """An unsigned integer from memory."""
    data = context.read(gva, size)
    if isinstance(data, bytes):
        return int.from_bytes(data, "little")
    return unread(data)


def store_at(context: EmulateContext, gva: int, size: int, value: int) -> Emulation | None:
    """An unsigned integer to memory; None when all is well."""
    failed = context.write(gva, value.to_bytes(size, "little"))
    return Emulation(Outcome.FAULT, failed) if isinstance(failed, Fault) else None


def load(context: EmulateContext, insn: Decoded) -> int | Emulation:
    """The r/m operand, `width` bytes of it."""
    if insn.rm >= 0:
        return get(context.gpr, insn.rm, insn.width)
    return load_at(context, address(context, insn), insn.width)


def modify(
    context: EmulateContext, insn: Decoded, gva: int, value: int
) -> Emulation | None:
    """Write the r/m operand; gva is ignored for a register."""
    if insn.rm >= 0:
        put(context.gpr, insn.rm, insn.width, value)
        return None
    return store_at(context, gva, insn.width, value)


def load_for_update(
    context: EmulateContext, insn: Decoded, extra: int = 0
) -> tuple[int, int] | Emulation:
    """The r/m operand and where it is, for modify()."""
    if insn.rm >= 0:
        return get(context.gpr, insn.rm, insn.width), 0
    gva = address(context, insn, extra)
    value = load_at(context, gva, insn.width)
    return (value, gva) if isinstance(value, int) else value


def push(context: EmulateContext, insn: Decoded, value: int) -> Emulation | None:
    """Push `size` bytes; RSP moves only if the write did not fault."""
    mask = MASK[context.stack_bits >> 3]
    old = context.gpr[RSP]
    top = (old - insn.size) & mask
    failed = store_at(context, _stack(context, insn, top), insn.size, value)
    if failed is not None:
        return failed
    context.gpr[RSP] = top if mask > 0xFFFF else old & ~mask | top
    return None


def top_of_stack(context: EmulateContext, insn: Decoded, size: int) -> int | Emulation:
    """What a pop would give; follow with drop()."""
    mask = MASK[context.stack_bits >> 3]
    return load_at(context, _stack(context, insn, context.gpr[RSP] & mask), size)


def drop(context: EmulateContext, size: int) -> None:
    """Move the stack pointer up."""
    mask = MASK[context.stack_bits >> 3]
    old = context.gpr[RSP]
    top = (old + size) & mask
    context.gpr[RSP] = top if mask > 0xFFFF else old & ~mask | top


def _stack(context: EmulateContext, insn: Decoded, offset: int) -> int:
    if insn.bits == 64:
        return offset
    return (offset + context.segment_base(2)) & MASK[4]
