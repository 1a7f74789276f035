"""Delivery through IVT and IDT: frames byte for byte, every check, and what stays as it was."""

from __future__ import annotations

import struct

import pytest

from vmxsim.arch.events import Event, EventType, Vector, fault
from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Dr7, Gpr, Rflags
from vmxsim.arch.segments import (
    NULL_SEGMENT,
    AccessRights,
    Descriptor,
    Gate,
    Segment,
    SegmentRegister,
    SystemType,
    TableRegister,
)
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import ExceptionTrap, MemoryTrap, TrapKind
from vmxsim.vmx.delivery import deliver, event_of

from .vmx_guests import (
    COMPATIBILITY,
    DATA,
    GDT,
    IDT,
    KERNEL_STACK,
    LONG,
    PROTECTED,
    RAM,
    REAL,
    RIP,
    STACK,
    TASK,
    TSS,
    USER32,
    USER64,
    USER_DATA,
    V8086,
    cpu_in,
)

KERNEL_CS, KERNEL_CS64, CONFORMING_CS = 0x10, 0x18, 0x48
HANDLER = 0x4000
FLAT = 0xFFFF_FFFF
IRQ = Event(EventType.EXTERNAL_INTERRUPT, 0x20)
INT_30 = Event(EventType.SOFTWARE_INTERRUPT, 0x30, None, 2)
INTERRUPT, TRAP = SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE
INTERRUPT16, TRAP16 = SystemType.INTERRUPT_GATE16, SystemType.TRAP_GATE16


def install(cpu: ScriptedCpu, vector: int, gate: Gate) -> None:
    size = 16 if cpu.efer else 8
    cpu.memory.write(IDT + vector * size, gate.to_bytes(size))


def describe(
    cpu: ScriptedCpu, selector: int, rights: int, limit: int = FLAT, base: int = 0
) -> None:
    cpu.memory.write(GDT + (selector & 0xFFF8), Descriptor(0, limit, rights).to_bytes())


def guest(
    mode: str, cpl: int = 0, gate: int = INTERRUPT, dpl: int = 0, ist: int = 0
) -> ScriptedCpu:
    """A guest with GDT, IDT (every vector to HANDLER, at level 0) and TSS in place."""
    cpu = cpu_in(mode, cpl)
    cpu.rflags |= Rflags.IF
    if mode == REAL:
        return cpu
    cpu.gdtr, cpu.idtr = TableRegister(GDT, 0x7F), TableRegister(IDT, 0xFFF)
    describe(cpu, KERNEL_CS, AccessRights.FLAT_CODE32)
    describe(cpu, KERNEL_CS64, AccessRights.FLAT_CODE64)
    describe(cpu, USER32, AccessRights.FLAT_CODE32 | 3 << 5)
    describe(cpu, USER64, AccessRights.FLAT_CODE64 | 3 << 5)
    describe(cpu, DATA, AccessRights.FLAT_DATA32)
    describe(cpu, USER_DATA, AccessRights.FLAT_DATA32 | 3 << 5)
    describe(cpu, CONFORMING_CS, AccessRights.FLAT_CODE32 | AccessRights.CONFORMING)
    selector = KERNEL_CS64 if cpu.efer else KERNEL_CS
    for vector in range(256):
        install(cpu, vector, Gate(HANDLER, selector, gate, dpl, True, ist))
    if cpu.efer:
        stacks = [0, KERNEL_STACK, 0, 0, 0] + [KERNEL_STACK + 0x100 * n for n in range(1, 8)]
        tss = struct.pack("<I12Q", 0, *stacks[1:4], 0, *stacks[5:], 0)
        cpu.memory.write(TSS, tss[:100])
    else:
        cpu.memory.write(TSS + 4, struct.pack("<IH", KERNEL_STACK, DATA))
    return cpu


def frame(cpu: ScriptedCpu, form: str, top: int) -> tuple[int, ...]:
    """The words between RSP and ``top``, lowest address first; checks that they fill it."""
    size = struct.calcsize("<" + form)
    assert cpu.gpr[Gpr.RSP] == top - size
    return struct.unpack("<" + form, cpu.memory.read(top - size, size))


# -- real mode ----------------------------------------------------------------------------------


def real_guest() -> ScriptedCpu:
    cpu = guest(REAL)
    cpu.memory.write(0x20 * 4, struct.pack("<HH", 0x1234, 0x0F00))
    cpu.set_segment(Segment.CS, SegmentRegister(0x50, 0x500, 0xFFFF, AccessRights.REAL_CODE))
    cpu.set_segment(Segment.SS, SegmentRegister(0x100, 0x1000, 0xFFFF, AccessRights.REAL_DATA))
    cpu.gpr[Gpr.RSP] = 0xAB_0000_4000
    return cpu


def test_real_mode_through_the_ivt() -> None:
    cpu = real_guest()
    cpu.rflags |= Rflags.TF | Rflags.AC | Rflags.CF
    flags = cpu.rflags & 0xFFFF
    cpu.shadow = 1
    assert deliver(IRQ, cpu) is None
    assert struct.unpack("<3H", cpu.memory.read(0x4FFA, 6)) == (RIP, 0x50, flags)
    assert cpu.gpr[Gpr.RSP] == 0xAB_0000_3FFA
    assert cpu.segment(Segment.CS) == SegmentRegister(0xF00, 0xF000, 0xFFFF, 0x9B)
    assert (cpu.rip, cpu.rflags, cpu.shadow) == (0x1234, Rflags.FIXED | Rflags.CF, 0)


def test_real_mode_pushes_no_error_code() -> None:
    cpu = real_guest()
    cpu.memory.write(13 * 4, struct.pack("<HH", 0x1234, 0x0F00))
    assert deliver(fault(Vector.GP, 0), cpu) is None
    assert cpu.gpr[Gpr.RSP] == 0xAB_0000_3FFA
    assert struct.unpack("<H", cpu.memory.read(0x4FFE, 2))[0] == Rflags.FIXED | Rflags.IF


def test_real_mode_software_interrupt_returns_behind_itself() -> None:
    cpu = real_guest()
    cpu.rip = 0xFFFF
    assert deliver(Event(EventType.SOFTWARE_INTERRUPT, 0x20, None, 2), cpu) is None
    assert cpu.memory.read(0x4FFA, 2) == b"\x01\x00"


def test_a_real_mode_stack_wraps() -> None:
    cpu = real_guest()
    cpu.gpr[Gpr.RSP] = 2
    assert deliver(IRQ, cpu) is None
    assert cpu.gpr[Gpr.RSP] == 0xFFFC
    assert cpu.memory.read(0x1000, 2) == struct.pack("<H", Rflags.FIXED | Rflags.IF)
    assert cpu.memory.read(0x1000 + 0xFFFC, 4) == struct.pack("<HH", RIP, 0x50)


@pytest.mark.parametrize(
    ("prepare", "outcome"),
    [
        ({"idtr": TableRegister(0, 0x20 * 4 + 2)}, fault(Vector.GP)),
        ({"idtr": TableRegister(0, 0x20 * 4 + 3)}, None),
        ({"gpr": [0, 0, 0, 0, 1] + [0] * 11}, fault(Vector.SS)),
    ],
)
def test_real_mode_limits(prepare: dict[str, object], outcome: Event | None) -> None:
    cpu = real_guest()
    for name, value in prepare.items():
        setattr(cpu, name, value)
    assert deliver(IRQ, cpu) == outcome


def test_real_mode_handler_beyond_the_code_limit() -> None:
    cpu = real_guest()
    cpu.set_segment(Segment.CS, cpu.segment(Segment.CS)._replace(limit=0xFFF))
    assert deliver(IRQ, cpu) == fault(Vector.GP)


# -- protected mode: frames ---------------------------------------------------------------------

FLAGS = Rflags.FIXED | Rflags.IF


@pytest.mark.parametrize(("gate", "after"), [(INTERRUPT, Rflags.FIXED), (TRAP, FLAGS)])
def test_same_privilege(gate: int, after: int) -> None:
    cpu = guest(PROTECTED, gate=gate)
    cpu.rflags |= Rflags.TF | Rflags.NT
    before = cpu.segment(Segment.SS)
    assert deliver(IRQ, cpu) is None
    assert frame(cpu, "III", STACK) == (RIP, KERNEL_CS, FLAGS | Rflags.TF | Rflags.NT)
    assert (cpu.rip, cpu.rflags) == (HANDLER, after)
    assert cpu.segment(Segment.SS) == before


def test_an_error_code_lies_lowest() -> None:
    cpu = guest(PROTECTED)
    assert deliver(fault(Vector.GP, 0x123), cpu) is None
    assert frame(cpu, "IIII", STACK) == (0x123, RIP, KERNEL_CS, FLAGS | Rflags.RF)


def test_inner_privilege_switches_the_stack() -> None:
    cpu = guest(PROTECTED, cpl=3)
    assert deliver(IRQ, cpu) is None
    assert frame(cpu, "IIIII", KERNEL_STACK) == (RIP, USER32, FLAGS, STACK, USER_DATA)
    assert cpu.segment(Segment.CS) == SegmentRegister(KERNEL_CS, 0, FLAT, AccessRights.FLAT_CODE32)
    assert cpu.segment(Segment.SS) == SegmentRegister(DATA, 0, FLAT, AccessRights.FLAT_DATA32)
    assert cpu.cpl == 0


def test_inner_privilege_with_an_error_code() -> None:
    cpu = guest(PROTECTED, cpl=3)
    assert deliver(fault(Vector.PF, 6, 0xDEAD_B000), cpu) is None
    words = (6, RIP, USER32, FLAGS | Rflags.RF, STACK, USER_DATA)
    assert frame(cpu, "IIIIII", KERNEL_STACK) == words
    assert cpu.cr2 == 0xDEAD_B000


def test_a_conforming_handler_keeps_the_callers_level() -> None:
    cpu = guest(PROTECTED, cpl=3, dpl=3)
    install(cpu, 0x30, Gate(HANDLER, CONFORMING_CS, TRAP, 3, True))
    assert deliver(INT_30, cpu) is None
    assert frame(cpu, "III", STACK) == (RIP + 2, USER32, FLAGS)
    assert cpu.segment(Segment.CS).selector == CONFORMING_CS | 3
    assert cpu.cpl == 3


@pytest.mark.parametrize("cpl", [0, 3])
def test_a_16_bit_gate_pushes_words(cpl: int) -> None:
    cpu = guest(PROTECTED, cpl=cpl, gate=INTERRUPT16)
    cpu.rip = 0xABCD_1000
    assert deliver(fault(Vector.GP, 0x8), cpu) is None
    flags = FLAGS & 0xFFFF
    if cpl:
        words = (8, 0x1000, USER32, flags, STACK, USER_DATA)
        assert frame(cpu, "6H", KERNEL_STACK) == words
    else:
        assert frame(cpu, "4H", STACK) == (8, 0x1000, KERNEL_CS, flags)
    assert cpu.rip == HANDLER


def test_a_16_bit_tss_holds_word_stacks() -> None:
    cpu = guest(PROTECTED, cpl=3)
    cpu.set_segment(Segment.TR, SegmentRegister(TASK, TSS, 0x2B, AccessRights.BUSY_TSS16))
    cpu.memory.write(TSS + 2, struct.pack("<HH", KERNEL_STACK, DATA))
    assert deliver(IRQ, cpu) is None
    assert frame(cpu, "IIIII", KERNEL_STACK) == (RIP, USER32, FLAGS, STACK, USER_DATA)


def test_a_16_bit_stack_leaves_the_rest_of_esp_alone() -> None:
    cpu = guest(PROTECTED)
    cpu.set_segment(Segment.SS, SegmentRegister(DATA, 0, 0xFFFF, 0x93))
    cpu.gpr[Gpr.RSP] = 0x55_0000 | STACK
    assert deliver(IRQ, cpu) is None
    assert cpu.gpr[Gpr.RSP] == 0x55_0000 | STACK - 12
    assert struct.unpack("<3I", cpu.memory.read(STACK - 12, 12)) == (RIP, KERNEL_CS, FLAGS)


def test_virtual_8086_mode_pushes_its_segments() -> None:
    cpu = guest(V8086)
    for segment, selector in enumerate((0xE5, 0xC5, 0x55, 0xD5, 0xF5, 0x65)):
        cpu.set_segment(segment, SegmentRegister(selector, selector << 4, 0xFFFF, 0xF3))
    cpu.gpr[Gpr.RSP] = 0xFFE
    assert deliver(fault(Vector.GP, 0), cpu) is None
    flags = FLAGS | Rflags.VM | Rflags.RF
    words = (0, RIP, 0xC5, flags, 0xFFE, 0x55, 0xE5, 0xD5, 0xF5, 0x65)
    assert frame(cpu, "10I", KERNEL_STACK) == words
    for segment in (Segment.ES, Segment.DS, Segment.FS, Segment.GS):
        assert cpu.segment(segment) == NULL_SEGMENT
    assert (cpu.rflags, cpu.cpl) == (Rflags.FIXED, 0)


def test_from_virtual_8086_mode_only_to_level_0() -> None:
    cpu = guest(V8086)
    install(cpu, 0x20, Gate(HANDLER, USER32, INTERRUPT, 0, True))
    assert deliver(IRQ, cpu) == fault(Vector.GP, USER32 & ~3 | 1)
    install(cpu, 0x20, Gate(HANDLER, CONFORMING_CS, INTERRUPT, 0, True))
    assert deliver(IRQ, cpu) == fault(Vector.GP, CONFORMING_CS | 1)


# -- IA-32e mode: frames ------------------------------------------------------------------------


@pytest.mark.parametrize(("gate", "after"), [(INTERRUPT, Rflags.FIXED), (TRAP, FLAGS)])
def test_64_bit_same_privilege_aligns_and_pushes_the_stack(gate: int, after: int) -> None:
    cpu = guest(LONG, gate=gate)
    cpu.gpr[Gpr.RSP] = STACK - 3
    assert deliver(IRQ, cpu) is None
    top = STACK - 16
    assert frame(cpu, "5Q", top) == (RIP, KERNEL_CS64, FLAGS, STACK - 3, DATA)
    assert (cpu.rip, cpu.rflags) == (HANDLER, after)
    assert cpu.segment(Segment.SS).selector == DATA


def test_64_bit_inner_privilege() -> None:
    cpu = guest(LONG, cpl=3)
    assert deliver(fault(Vector.PF, 7, 0xFFFF_8000_0000_0123), cpu) is None
    words = (7, RIP, USER64, FLAGS | Rflags.RF, STACK, USER_DATA)
    assert frame(cpu, "6Q", KERNEL_STACK) == words
    assert cpu.cr2 == 0xFFFF_8000_0000_0123
    ss = cpu.segment(Segment.SS)
    assert (ss.selector, ss.unusable, ss.dpl) == (0, True, 0)
    assert (cpu.cpl, cpu.mode_bits) == (0, 64)


def test_a_null_stack_segment_has_the_handlers_level() -> None:
    cpu = guest(LONG, cpl=3)
    describe(cpu, 0x50, AccessRights.FLAT_CODE64 | 1 << 5)
    install(cpu, 0x20, Gate(HANDLER, 0x50, INTERRUPT, 0, True))
    cpu.memory.write(TSS + 12, struct.pack("<Q", KERNEL_STACK))
    assert deliver(IRQ, cpu) is None
    ss = cpu.segment(Segment.SS)
    assert (ss.selector, ss.dpl, cpu.segment(Segment.CS).selector) == (1, 1, 0x51)


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("ist", range(1, 8))
def test_ist(ist: int, cpl: int) -> None:
    cpu = guest(LONG, cpl=cpl, ist=ist)
    assert deliver(IRQ, cpu) is None
    selectors = (USER64, USER_DATA) if cpl else (KERNEL_CS64, DATA)
    top = KERNEL_STACK + 0x100 * ist
    assert frame(cpu, "5Q", top) == (RIP, selectors[0], FLAGS, STACK, selectors[1])


def test_from_compatibility_mode() -> None:
    cpu = guest(COMPATIBILITY, cpl=3, dpl=3)
    assert deliver(INT_30, cpu) is None
    assert frame(cpu, "5Q", KERNEL_STACK) == (RIP + 2, USER32, FLAGS, STACK, USER_DATA)
    assert cpu.mode_bits == 64


def test_64_bit_gates_reach_the_upper_half() -> None:
    cpu = guest(LONG)
    install(cpu, 0x20, Gate(0xFFFF_8000_1234_5678, KERNEL_CS64, INTERRUPT, 0, True))
    assert deliver(IRQ, cpu) is None
    assert cpu.rip == 0xFFFF_8000_1234_5678


# -- flags --------------------------------------------------------------------------------------

DB_TRAP, DB_FAULT = fault(Vector.DB, None, Dr6.BS), fault(Vector.DB, None, Dr6.BD)


# fmt: off
RESUME_FLAG = [
    # event, RF before, RF in the frame
    (fault(Vector.UD),        0, 1),
    (fault(Vector.GP, 0),     0, 1),
    (DB_FAULT,                0, 1),
    (DB_TRAP,                 0, 0),
    (fault(Vector.DF, 0),     0, 0),
    (fault(Vector.MC),        0, 0),
    (IRQ,                     0, 0),
    (IRQ,                     1, 1),
    (INT_30,                  1, 0),
    (Event(EventType.SOFTWARE_EXCEPTION, Vector.BP, None, 1), 1, 0),
    (Event(EventType.NMI, Vector.NMI), 0, 0),
]
# fmt: on


@pytest.mark.parametrize(("event", "before", "pushed"), RESUME_FLAG, ids=str)
def test_the_resume_flag_in_the_frame(event: Event, before: int, pushed: int) -> None:
    cpu = guest(LONG)
    cpu.rflags |= before * Rflags.RF
    assert deliver(event, cpu) is None
    flags = struct.unpack("<Q", cpu.memory.read(STACK - 24, 8))[0]
    assert bool(flags & Rflags.RF) == pushed
    assert not cpu.rflags & Rflags.RF


@pytest.mark.parametrize(
    ("event", "length"),
    [
        (IRQ, 0),
        (fault(Vector.GP, 0)._replace(length=7), 0),
        (INT_30, 2),
        (Event(EventType.SOFTWARE_EXCEPTION, Vector.BP, None, 1), 1),
        (Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, Vector.DB, None, 1), 1),
    ],
    ids=str,
)
def test_only_software_events_return_behind_their_instruction(event: Event, length: int) -> None:
    cpu = guest(PROTECTED)
    assert deliver(event, cpu) is None
    offset = 16 if event.error_code is not None else 12
    lowest = cpu.memory.read(STACK - 12, 4)
    assert cpu.gpr[Gpr.RSP] == STACK - offset
    assert int.from_bytes(lowest, "little") == RIP + length


def test_a_debug_exception_sets_dr6_and_clears_gd() -> None:
    cpu = guest(LONG)
    cpu.dr[6] = Dr6.FIXED | Dr6.B0 | Dr6.BT
    cpu.dr[7] |= Dr7.GD | Dr7.L1
    assert deliver(fault(Vector.DB, None, Dr6.BS | Dr6.B1), cpu) is None
    assert cpu.dr[6] == Dr6.FIXED | Dr6.B1 | Dr6.BS | Dr6.BT
    assert cpu.dr[7] == Dr7.FIXED | Dr7.L1


def test_an_injected_exception_leaves_cr2_and_dr6() -> None:
    cpu = guest(LONG, cpl=3)
    cpu.cr2 = 0x77
    before = list(cpu.dr)
    assert deliver(fault(Vector.PF, 4), cpu) is None
    assert deliver(fault(Vector.DB), cpu) is None
    assert (cpu.cr2, cpu.dr) == (0x77, before)


# -- checks -------------------------------------------------------------------------------------

IDT_30 = 0x30 * 8 | 2
"""Error code: the IDT's entry 0x30, with EXT clear."""


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
@pytest.mark.parametrize(
    ("event", "external"),
    [
        (INT_30, 0),
        (Event(EventType.EXTERNAL_INTERRUPT, 0x30), 1),
        (Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, 0x30, None, 1), 1),
    ],
    ids=["int 0x30", "interrupt", "int1"],
)
@pytest.mark.parametrize(
    ("gate", "vector", "code"),
    [
        (Gate(HANDLER, KERNEL_CS64, INTERRUPT, 3, False), Vector.NP, IDT_30),
        (Gate(HANDLER, KERNEL_CS64, SystemType.CALL_GATE, 3, True), Vector.GP, IDT_30),
        (Gate(HANDLER, KERNEL_CS64, SystemType.TASK_GATE, 3, True), Vector.GP, IDT_30),
        (Gate(HANDLER, KERNEL_CS64, INTERRUPT, 3, True, 0, False), Vector.GP, IDT_30),
        (Gate(HANDLER, 0x0003, INTERRUPT, 3, True), Vector.GP, 0),
        (Gate(HANDLER, 0x0FF8, INTERRUPT, 3, True), Vector.GP, 0xFF8),
        (Gate(HANDLER, 0x0014, INTERRUPT, 3, True), Vector.GP, 0x14),
        (Gate(HANDLER, DATA, INTERRUPT, 3, True), Vector.GP, DATA),
        (Gate(HANDLER, 0x5B, INTERRUPT, 3, True), Vector.NP, 0x58),
        (Gate(HANDLER, USER64, INTERRUPT, 3, True), Vector.GP, USER64 & ~3),
    ],
    ids=[
        "not present", "a call gate", "a task gate", "no gate", "null CS", "CS beyond the GDT",
        "CS in no LDT", "CS is data", "CS not present", "CS of an outer level",
    ],
)  # fmt: skip
def test_bad_gates(
    mode: str, event: Event, external: int, gate: Gate, vector: Vector, code: int
) -> None:
    cpu = guest(mode)
    describe(cpu, 0x58, AccessRights.FLAT_CODE64 & ~AccessRights.P)
    install(cpu, 0x30, gate)
    before = (list(cpu.gpr), cpu.rip, cpu.rflags, list(cpu.segments), cpu.memory.read(0, RAM))
    assert deliver(event, cpu) == fault(vector, code | external)
    assert before == (cpu.gpr, cpu.rip, cpu.rflags, cpu.segments, cpu.memory.read(0, RAM))


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
def test_the_idt_has_a_limit(mode: str) -> None:
    cpu = guest(mode)
    size = 16 if mode == LONG else 8
    cpu.idtr = TableRegister(IDT, 0x21 * size - 2)
    assert deliver(IRQ, cpu) == fault(Vector.GP, 0x20 * 8 | 3)
    cpu.idtr = TableRegister(IDT, 0x21 * size - 1)
    assert deliver(IRQ, cpu) is None


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
@pytest.mark.parametrize(
    ("event", "passes"),
    [
        (INT_30, False),
        (Event(EventType.SOFTWARE_EXCEPTION, Vector.BP, None, 1), False),
        (Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, Vector.DB, None, 1), True),
        (IRQ, True),
        (fault(Vector.UD), True),
    ],
    ids=str,
)
def test_a_gates_dpl_is_for_those_who_ask(mode: str, event: Event, passes: bool) -> None:
    cpu = guest(mode, cpl=3, dpl=2)
    outcome = deliver(event, cpu)
    assert outcome == (None if passes else fault(Vector.GP, event.vector * 8 | 2))


def test_the_ldt_serves_selectors_too() -> None:
    cpu = guest(PROTECTED)
    cpu.set_segment(Segment.LDTR, SegmentRegister(0x60, 0x2800, 0x0F, AccessRights.LDT))
    raw = Descriptor(0, FLAT, AccessRights.FLAT_CODE32).to_bytes()
    cpu.memory.write(0x2808, raw)
    install(cpu, 0x20, Gate(HANDLER, 0x0C, INTERRUPT, 0, True))
    assert deliver(IRQ, cpu) is None
    assert cpu.segment(Segment.CS).selector == 0x0C


@pytest.mark.parametrize("selector", [KERNEL_CS, CONFORMING_CS], ids=["32-bit", "conforming"])
def test_ia32e_mode_wants_64_bit_handlers(selector: int) -> None:
    cpu = guest(LONG)
    install(cpu, 0x20, Gate(HANDLER, selector, INTERRUPT, 0, True))
    assert deliver(IRQ, cpu) == fault(Vector.GP, selector | 1)


def test_ia32e_mode_has_no_16_bit_gates() -> None:
    assert deliver(IRQ, guest(LONG, gate=TRAP16)) == fault(Vector.GP, 0x20 * 8 | 3)


def test_a_handler_must_be_canonical_or_inside_its_segment() -> None:
    cpu = guest(LONG)
    install(cpu, 0x20, Gate(1 << 47, KERNEL_CS64, INTERRUPT, 0, True))
    assert deliver(IRQ, cpu) == fault(Vector.GP, 1)
    cpu.cr4 |= Cr4.LA57
    assert deliver(IRQ, cpu) is None
    cpu = guest(PROTECTED)
    describe(cpu, KERNEL_CS, 0x409B, limit=HANDLER - 1)
    assert deliver(IRQ, cpu) == fault(Vector.GP, 1)


# fmt: off
STACK_FAULTS = [
    # SS in the TSS, rights of descriptor 0x68, outcome
    ("null",             0x00, 0,      fault(Vector.TS, 1)),
    ("beyond the GDT",   0x80, 0,      fault(Vector.TS, 0x81)),
    ("RPL is not 0",     0x6B, 0xC093, fault(Vector.TS, 0x69)),
    ("DPL is not 0",     0x68, 0xC0F3, fault(Vector.TS, 0x69)),
    ("read-only",        0x68, 0xC091, fault(Vector.TS, 0x69)),
    ("code",             0x68, 0xC09B, fault(Vector.TS, 0x69)),
    ("system",           0x68, 0x0082, fault(Vector.TS, 0x69)),
    ("not present",      0x68, 0xC013, fault(Vector.SS, 0x69)),
]
# fmt: on


@pytest.mark.parametrize(
    ("selector", "rights", "outcome"),
    [r[1:] for r in STACK_FAULTS],
    ids=[r[0] for r in STACK_FAULTS],
)
def test_bad_inner_stacks(selector: int, rights: int, outcome: Event) -> None:
    cpu = guest(PROTECTED, cpl=3)
    describe(cpu, 0x68, rights)
    cpu.memory.write(TSS + 8, struct.pack("<H", selector))
    before = (list(cpu.gpr), cpu.rip, cpu.rflags, list(cpu.segments))
    assert deliver(IRQ, cpu) == outcome
    assert before == (cpu.gpr, cpu.rip, cpu.rflags, cpu.segments)


@pytest.mark.parametrize(("mode", "limit"), [(PROTECTED, 8), (LONG, 10)])
def test_a_tss_too_short_for_the_stack(mode: str, limit: int) -> None:
    cpu = guest(mode, cpl=3)
    cpu.set_segment(Segment.TR, cpu.segment(Segment.TR)._replace(limit=limit))
    assert deliver(IRQ, cpu) == fault(Vector.TS, TASK | 1)
    cpu.set_segment(Segment.TR, cpu.segment(Segment.TR)._replace(limit=limit + 1))
    assert deliver(IRQ, cpu) is None


def test_no_room_on_the_stack() -> None:
    cpu = guest(PROTECTED)
    cpu.set_segment(Segment.SS, cpu.segment(Segment.SS)._replace(limit=STACK - 5))
    assert deliver(IRQ, cpu) == fault(Vector.SS, 1)
    cpu = guest(PROTECTED, cpl=3)
    describe(cpu, DATA, 0x4093, limit=KERNEL_STACK - 5)
    assert deliver(INT_30._replace(type=EventType.EXTERNAL_INTERRUPT), cpu) == fault(
        Vector.SS, DATA | 1
    )


@pytest.mark.parametrize(
    ("limit", "outcome"), [(STACK - 13, None), (STACK - 12, fault(Vector.SS, 1))]
)
def test_an_expand_down_stack(limit: int, outcome: Event | None) -> None:
    cpu = guest(PROTECTED)
    cpu.set_segment(Segment.SS, SegmentRegister(DATA, 0, limit, 0x4097))
    assert deliver(IRQ, cpu) == outcome


def test_a_stack_that_is_not_canonical() -> None:
    cpu = guest(LONG)
    cpu.gpr[Gpr.RSP] = 1 << 50
    assert deliver(IRQ, cpu) == fault(Vector.SS, 1)


# -- memory on the way --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
@pytest.mark.parametrize(("page", "cpl"), [(IDT, 3), (GDT, 0), (TSS, 3), (STACK - 1, 0)])
def test_a_page_fault_on_the_way(mode: str, page: int, cpl: int) -> None:
    cpu = guest(mode, cpl=cpl)
    cpu.linear_faults[page >> 12] = PageFault(page, 2)
    before = (list(cpu.gpr), cpu.rip, cpu.rflags, list(cpu.segments))
    assert deliver(IRQ, cpu) == fault(Vector.PF, 2, page)
    assert before == (cpu.gpr, cpu.rip, cpu.rflags, cpu.segments)


def test_an_access_outside_memory_is_passed_up() -> None:
    cpu = guest(LONG)
    cpu.gpr[Gpr.RSP] = RAM + 0x1000
    outcome = deliver(IRQ, cpu)
    assert isinstance(outcome, MemoryTrap)
    assert (outcome.gpa, outcome.size, outcome.access) == (RAM + 0x1000 - 8, 8, 1)


def test_the_reported_address_is_that_of_the_first_push_to_fail() -> None:
    cpu = guest(LONG)
    cpu.gpr[Gpr.RSP] = RAM + 0x10  # two words beyond memory, three inside it
    outcome = deliver(IRQ, cpu)
    assert isinstance(outcome, MemoryTrap)
    assert outcome.gpa == RAM + 8
    cpu.gpr[Gpr.RSP] = STACK + 0x10
    cpu.linear_faults[(STACK >> 12) - 1] = PageFault(STACK - 8, 2)
    assert deliver(IRQ, cpu) == fault(Vector.PF, 2, STACK - 8)
    assert cpu.memory.read(STACK, 8) == struct.pack("<Q", STACK + 0x10)


def test_a_page_fault_keeps_its_address_when_its_delivery_fails() -> None:
    cpu = guest(PROTECTED)
    install(cpu, Vector.PF, Gate(HANDLER, KERNEL_CS, INTERRUPT, 0, False))
    assert deliver(fault(Vector.PF, 2, 0x1234_5000), cpu) == fault(Vector.NP, 14 * 8 | 3)
    assert cpu.cr2 == 0x1234_5000


def test_descriptors_get_their_accessed_bit() -> None:
    cpu = guest(PROTECTED, cpl=3)
    describe(cpu, KERNEL_CS, AccessRights.FLAT_CODE32 & ~1)
    describe(cpu, DATA, AccessRights.FLAT_DATA32 & ~1)
    assert deliver(IRQ, cpu) is None
    assert cpu.memory.read(GDT + KERNEL_CS + 5, 1) == b"\x9b"
    assert cpu.memory.read(GDT + DATA + 5, 1) == b"\x93"
    assert cpu.segment(Segment.CS).access_rights & 1
    assert cpu.segment(Segment.SS).access_rights & 1


# -- events from traps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "code", "address", "event"),
    [
        (Vector.PF, 5, 0, fault(Vector.PF, 5, 0)),
        (Vector.DB, 0, Dr6.BS, DB_TRAP),
        (Vector.AC, 0, 0, fault(Vector.AC, 0)),
        (Vector.MF, 0, 0, fault(Vector.MF)),
    ],
)
def test_the_event_of_an_engines_exception(
    vector: Vector, code: int, address: int, event: Event
) -> None:
    trap = ExceptionTrap(TrapKind.EXCEPTION, RIP, vector, code, address, None)
    cpu = guest(PROTECTED)
    assert event_of(trap, cpu) == event
    cpu.cr0 &= ~Cr0.PE
    assert event_of(trap, cpu) == event._replace(error_code=None)
