"""Takes an event through the IVT or the IDT to its handler, or says which fault stopped it.

SDM Vol. 3, chapter "Interrupt and Exception Handling", and the operation section of "INT n/INTO/
INT3/INT1". Nothing the guest could restart from changes unless delivery succeeds, but what the
event itself sets (CR2, DR6) is set first and stays, as "Architectural State Before a VM Exit"
says. Left out: task gates (a #GP for the gate), CR4.VME's interrupt redirection, shadow stacks,
FRED.
"""

from __future__ import annotations

from typing import NamedTuple

from vmxsim.arch.bits import canonical
from vmxsim.arch.events import Event, EventType, Vector, has_error_code
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Dr7, Efer, Gpr, Rflags
from vmxsim.arch.segments import (
    NULL_SEGMENT,
    AccessRights,
    Descriptor,
    Gate,
    Segment,
    SegmentRegister,
    SystemType,
)
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import ExceptionTrap, MemoryTrap
from vmxsim.vmx.guest_access import (
    NULL_MASK,
    GuestFault,
    fits,
    mark_accessed,
    raise_fault,
    raise_gp,
    read,
    read_descriptor,
    read_int,
    write,
)

_IDT = 2
"""Bit 1 of an error code: the selector index is an IDT vector."""

_GATES = frozenset(
    {
        SystemType.INTERRUPT_GATE16,
        SystemType.TRAP_GATE16,
        SystemType.INTERRUPT_GATE,
        SystemType.TRAP_GATE,
    }
)
_LONG_GATES = frozenset({SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE})
_RSP0 = 4
_IST = 28
"""Offsets in a 64-bit TSS: RSP0, and where IST0 would be."""


class _Stack(NamedTuple):
    """Where a frame goes; ``error_code`` is what a #SS for it carries."""

    segment: SegmentRegister
    pointer: int
    mask: int
    user: bool
    error_code: int


def event_of(trap: ExceptionTrap, cpu: Cpu) -> Event:
    """The event an engine's exception is. In real mode exceptions have no error code."""
    vector = trap.vector
    error_code = trap.error_code if has_error_code(vector) and cpu.cr0 & Cr0.PE else None
    address = trap.address if vector in (Vector.PF, Vector.DB) else None
    return Event(EventType.HARDWARE_EXCEPTION, vector, error_code, 0, address)


def deliver(event: Event, cpu: Cpu) -> Event | MemoryTrap | None:
    """Deliver through the guest's IVT or IDT: None when done, else what happened on the way.

    A nested exception is not combined with the first one here; a MemoryTrap is an access outside
    guest memory, for which nothing was delivered.
    """
    _note_cause(event, cpu)
    try:
        if not cpu.cr0 & Cr0.PE:
            _through_ivt(event, cpu)
        elif cpu.efer & Efer.LMA:
            _through_idt64(event, cpu)
        else:
            _through_idt32(event, cpu)
    except GuestFault as stopped:
        return stopped.seen_by(cpu)
    cpu.shadow = 0
    return None


def _note_cause(event: Event, cpu: Cpu) -> None:
    """CR2 of a page fault; DR6 and DR7.GD of a debug exception."""
    if event.address is None or event.type != EventType.HARDWARE_EXCEPTION:
        return
    if event.vector == Vector.PF:
        cpu.cr2 = event.address
    elif event.vector == Vector.DB:
        cpu.dr[6] = cpu.dr[6] & ~0xF | event.address | Dr6.FIXED
        cpu.dr[7] &= ~Dr7.GD


def _external(event: Event) -> int:
    """EXT, bit 0 of error codes: not for what the program asked for by INT n, INT3 or INTO."""
    asked = event.type in (EventType.SOFTWARE_INTERRUPT, EventType.SOFTWARE_EXCEPTION)
    return 0 if asked else 1


def _return_address(event: Event, cpu: Cpu) -> int:
    """RIP for the frame: software events return behind their instruction."""
    if not event.software:
        return cpu.rip
    return cpu.rip + event.length & (1 << cpu.mode_bits) - 1


def _flags_image(event: Event, cpu: Cpu) -> int:
    """RFLAGS for the frame, its RF by SDM Vol. 3, "Instruction-Breakpoint Exception Condition"."""
    flags = cpu.rflags
    if event.software:
        return flags & ~Rflags.RF
    if event.type != EventType.HARDWARE_EXCEPTION or event.vector in (Vector.DF, Vector.MC):
        return flags
    if event.vector == Vector.DB and not (event.address or 0) & Dr6.BD:
        return flags
    return flags | Rflags.RF


def _push(cpu: Cpu, stack: _Stack, width: int, words: list[int]) -> int:
    """Push words in the order given; returns the new stack pointer.

    One write normally. Where that fails (having written nothing) or the frame wraps, word by
    word, so that the reported address is that of the first push to fail.
    """
    size = width * len(words)
    mask = stack.mask
    low = stack.pointer - size & mask
    base = stack.segment.base
    address_mask = (1 << 64) - 1 if mask > 0xFFFF_FFFF else 0xFFFF_FFFF
    whole = low + size - 1 <= mask
    if mask <= 0xFFFF_FFFF:
        for number in range(1, len(words) + 1):
            if not fits(stack.segment, stack.pointer - number * width & mask, width):
                raise_fault(Vector.SS, stack.error_code)
    if whole:
        word_mask = (1 << 8 * width) - 1
        data = b"".join((word & word_mask).to_bytes(width, "little") for word in reversed(words))
        if cpu.write_linear(base + low & address_mask, data, stack.user) is None:
            return low
    pointer = stack.pointer
    for word in words:
        pointer = pointer - width & mask
        data = (word & (1 << 8 * width) - 1).to_bytes(width, "little")
        write(cpu, base + pointer & address_mask, data, stack.user)
    return low


def _current_stack(cpu: Cpu, cpl: int, error_code: int) -> _Stack:
    """The stack in use, for a handler at ``cpl``."""
    ss = cpu.segment(Segment.SS)
    if ss.unusable:
        raise_fault(Vector.SS, error_code)
    mask = 0xFFFF_FFFF if ss.access_rights & AccessRights.DB else 0xFFFF
    return _Stack(ss, cpu.gpr[Gpr.RSP] & mask, mask, cpl == 3, error_code)


def _set_stack_pointer(cpu: Cpu, pointer: int, mask: int) -> None:
    """A 16-bit push leaves the rest of RSP alone."""
    kept = cpu.gpr[Gpr.RSP] & ~mask if mask == 0xFFFF else 0
    cpu.gpr[Gpr.RSP] = kept | pointer


# -- real mode ----------------------------------------------------------------------------------


def _through_ivt(event: Event, cpu: Cpu) -> None:
    """SDM Vol. 3, "Interrupt and Exception Handling" of the 8086-emulation chapter."""
    base, limit = cpu.idtr
    if event.vector * 4 + 3 > limit:
        raise_gp(event.vector * 8 + _IDT + _external(event))
    entry = read_int(cpu, base + event.vector * 4, 4, user=False)
    cs = cpu.segment(Segment.CS)
    if entry & 0xFFFF > cs.limit:
        raise_gp(_external(event))
    stack = _current_stack(cpu, 0, _external(event))
    words = [_flags_image(event, cpu), cs.selector, _return_address(event, cpu)]
    pointer = _push(cpu, stack, 2, words)
    cpu.rflags &= ~(Rflags.IF | Rflags.TF | Rflags.AC | Rflags.RF)
    selector = entry >> 16
    cpu.set_segment(Segment.CS, cs._replace(selector=selector, base=selector << 4))
    _set_stack_pointer(cpu, pointer, stack.mask)
    cpu.rip = entry & 0xFFFF


# -- what protected and IA-32e mode share -------------------------------------------------------


def _gate(event: Event, cpu: Cpu, size: int, types: frozenset[int]) -> Gate:
    """The IDT's gate for a vector, once limit, type, DPL and presence are right."""
    base, limit = cpu.idtr
    external = _external(event)
    error_code = event.vector * 8 | _IDT | external
    if event.vector * size + size - 1 > limit:
        raise_gp(error_code)
    gate = Gate.from_bytes(read(cpu, base + event.vector * size, size, user=False))
    if not gate.system or gate.type not in types:
        raise_gp(error_code)
    if not external and gate.dpl < cpu.cpl:
        raise_gp(error_code)
    if not gate.present:
        raise_fault(Vector.NP, error_code)
    return gate


def _code_segment(gate: Gate, cpu: Cpu, external: int, long: bool) -> tuple[int, Descriptor, int]:
    """The handler's code descriptor, where it lies, and the privilege level it runs at."""
    if not gate.selector & NULL_MASK:
        raise_gp(external)
    gva, code = read_descriptor(cpu, gate.selector, Vector.GP, external)
    error_code = gate.selector & NULL_MASK | external
    cpl = cpu.cpl
    if not code.code or code.dpl > cpl:
        raise_gp(error_code)
    if long and code.access_rights & (AccessRights.L | AccessRights.DB) != AccessRights.L:
        raise_gp(error_code)
    if not code.present:
        raise_fault(Vector.NP, error_code)
    return gva, code, cpl if code.conforming else code.dpl


def _enter_handler(cpu: Cpu, gate: Gate, code: Descriptor, cpl: int) -> None:
    """Flags, CS and RIP of the handler."""
    cleared = Rflags.TF | Rflags.NT | Rflags.RF | Rflags.VM
    if not gate.type & 1:
        cleared |= Rflags.IF
    cpu.rflags &= ~cleared
    cpu.set_segment(Segment.CS, code.register(gate.selector & NULL_MASK | cpl))
    cpu.rip = gate.offset


# -- protected mode -----------------------------------------------------------------------------


def _through_idt32(event: Event, cpu: Cpu) -> None:
    """8-byte gates, with the stack of an inner level from the TSS."""
    external = _external(event)
    gate = _gate(event, cpu, 8, _GATES)
    gva, code, cpl = _code_segment(gate, cpu, external, long=False)
    flags = _flags_image(event, cpu)
    v8086 = flags & Rflags.VM != 0
    if v8086 and cpl != 0:
        raise_gp(gate.selector & NULL_MASK | external)
    inner = cpl < cpu.cpl
    stack = _inner_stack(cpu, cpl, external) if inner else _current_stack(cpu, cpl, external)
    width = 4 if gate.type & 8 else 2
    if width == 2:
        gate = gate._replace(offset=gate.offset & 0xFFFF)
    if gate.offset > code.limit:
        raise_gp(external)
    words = _outer_words(cpu, v8086) if inner else []
    words += [flags, cpu.segment(Segment.CS).selector, _return_address(event, cpu)]
    if event.error_code is not None:
        words.append(event.error_code)
    code = mark_accessed(cpu, gva, code)
    pointer = _push(cpu, stack, width, words)
    _enter_handler(cpu, gate, code, cpl)
    if inner:
        cpu.set_segment(Segment.SS, stack.segment)
        if v8086:
            for segment in (Segment.ES, Segment.DS, Segment.FS, Segment.GS):
                cpu.set_segment(segment, NULL_SEGMENT)
        cpu.gpr[Gpr.RSP] = pointer
    else:
        _set_stack_pointer(cpu, pointer, stack.mask)


def _outer_words(cpu: Cpu, v8086: bool) -> list[int]:
    """What a change of privilege pushes first: the outer stack, and virtual-8086 segments."""
    order = (Segment.GS, Segment.FS, Segment.DS, Segment.ES) if v8086 else ()
    words = [cpu.segment(segment).selector for segment in order]
    return [*words, cpu.segment(Segment.SS).selector, cpu.gpr[Gpr.RSP] & 0xFFFF_FFFF]


def _inner_stack(cpu: Cpu, cpl: int, external: int) -> _Stack:
    """SS:ESP of an inner privilege level, from a 16- or 32-bit TSS, fully checked."""
    task = cpu.segment(Segment.TR)
    wide = task.type & 8 != 0
    offset, size = (cpl * 8 + 4, 6) if wide else (cpl * 4 + 2, 4)
    if offset + size - 1 > task.limit:
        raise_fault(Vector.TS, task.selector & NULL_MASK | external)
    entry = read_int(cpu, task.base + offset & 0xFFFF_FFFF, size, user=False)
    half = 32 if wide else 16
    pointer, selector = entry & (1 << half) - 1, entry >> half
    if not selector & NULL_MASK:
        raise_fault(Vector.TS, external)
    gva, data = read_descriptor(cpu, selector, Vector.TS, external)
    error_code = selector & NULL_MASK | external
    if selector & 3 != cpl or data.dpl != cpl or not data.writable:
        raise_fault(Vector.TS, error_code)
    if not data.present:
        raise_fault(Vector.SS, error_code)
    data = mark_accessed(cpu, gva, data)
    mask = 0xFFFF_FFFF if data.access_rights & AccessRights.DB else 0xFFFF
    return _Stack(data.register(selector), pointer, mask, cpl == 3, error_code)


# -- IA-32e mode --------------------------------------------------------------------------------


def _through_idt64(event: Event, cpu: Cpu) -> None:
    """16-byte gates: 64-bit handlers, aligned stack, SS:RSP always pushed, IST."""
    external = _external(event)
    gate = _gate(event, cpu, 16, _LONG_GATES)
    gva, code, cpl = _code_segment(gate, cpu, external, long=True)
    if not canonical(gate.offset, _linear_width(cpu)):
        raise_gp(external)
    inner = cpl < cpu.cpl
    pointer = cpu.gpr[Gpr.RSP]
    if gate.ist:
        pointer = _stack_from_tss(cpu, _IST + 8 * gate.ist, external)
    elif inner:
        pointer = _stack_from_tss(cpu, _RSP0 + 8 * cpl, external)
    ss = cpu.segment(Segment.SS).selector
    words = [ss, cpu.gpr[Gpr.RSP], _flags_image(event, cpu), cpu.segment(Segment.CS).selector]
    words.append(_return_address(event, cpu))
    if event.error_code is not None:
        words.append(event.error_code)
    if not canonical(pointer, _linear_width(cpu)):
        raise_fault(Vector.SS, external)
    code = mark_accessed(cpu, gva, code)
    stack = _Stack(NULL_SEGMENT, pointer & ~0xF, (1 << 64) - 1, cpl == 3, external)
    pointer = _push(cpu, stack, 8, words)
    _enter_handler(cpu, gate, code, cpl)
    if inner:
        null = SegmentRegister(cpl, 0, 0, AccessRights.UNUSABLE | cpl << AccessRights.DPL_SHIFT)
        cpu.set_segment(Segment.SS, null)
    cpu.gpr[Gpr.RSP] = pointer


def _stack_from_tss(cpu: Cpu, offset: int, external: int) -> int:
    """RSP0-2 or IST1-7 of the 64-bit TSS."""
    task = cpu.segment(Segment.TR)
    if offset + 7 > task.limit:
        raise_fault(Vector.TS, task.selector & NULL_MASK | external)
    return read_int(cpu, task.base + offset, 8, user=False)


def _linear_width(cpu: Cpu) -> int:
    return 57 if cpu.cr4 & Cr4.LA57 else 48
