"""Exceptions, injection and delivery on the real engine, in all three modes.

Where the exception bitmap lets an event through, it is delivered by the guest's own IVT or IDT, and
the guest is next seen at the handler's VMCALL.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from vmxsim.arch.controls import CpuBased, PinBased
from vmxsim.arch.events import Event, EventType, InterruptionInfo, Vector, interruption_info
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.vmx.processor import VmExit

from .harness import (
    ABSENT,
    ALL,
    CODE,
    CODE_SELECTOR,
    DATA,
    DATA32,
    IDT,
    LONG,
    NOWHERE,
    PML4,
    PROTECTED,
    REAL,
    STACK0,
    STACK3,
    TSS,
    USER_CODE,
    USER_DATA,
    Guest,
    gate32,
    gate64,
    handler,
    parse,
)

PM = (PROTECTED, LONG)
HARDWARE, SOFTWARE = EventType.HARDWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION
PRIVILEGED = EventType.PRIVILEGED_SOFTWARE_EXCEPTION
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
NONE = {F.EXCEPTION_BITMAP: 0}


class Fault(NamedTuple):
    """An instruction that raises an exception; ``pushed`` is RIP on the stack, from CODE."""

    guest: str
    vector: Vector
    modes: tuple[str, ...] = ALL
    type: EventType = HARDWARE
    error_code: int | None = None
    qualification: int = 0
    pushed: int = 0
    registers: dict[int, int] = {}  # noqa: RUF012  (never changed)
    fields: dict[F, int] = {}  # noqa: RUF012


FAULTS = [
    Fault("0f 0b       ud2",                Vector.UD),
    Fault("f7 f1       div ecx",            Vector.DE, registers={RCX: 0}),
    Fault("cc          int3",               Vector.BP, type=SOFTWARE, pushed=1),
    Fault("ce          into",               Vector.OF, (REAL, PROTECTED), SOFTWARE, pushed=1,
          fields={F.GUEST_RFLAGS: 1 << 11}),
    Fault("f1          int1",               Vector.DB, type=PRIVILEGED, pushed=1),
    Fault("62 07       bound eax, [rdi]",   Vector.BR, (REAL, PROTECTED), registers={RAX: 0x7000}),
    Fault("d9 d0       fnop",               Vector.NM, fields={F.GUEST_CR0: 8}),
    Fault("0f 22 e0    mov cr4, eax",       Vector.GP, (PROTECTED, LONG), error_code=0,
          registers={RAX: 1 << 30}),
    Fault("0f 22 c0    mov cr0, eax",       Vector.GP, error_code=0,
          registers={RAX: 0x8000_0030}, modes=(PROTECTED,)),
    Fault("8e d8       mov ds, ax",         Vector.NP, (PROTECTED,), error_code=ABSENT,
          registers={RAX: ABSENT}),
    Fault("8e d8       mov ds, ax",         Vector.GP, PM, error_code=0x1F8,
          registers={RAX: 0x1F8}),
    Fault("8e d0       mov ss, ax",         Vector.GP, (PROTECTED,), error_code=0,
          registers={RAX: 0}),
    Fault("8a 07       mov al, [rdi]",      Vector.PF, (LONG,), error_code=0,
          qualification=0x40_0000, registers={RDI: 0x40_0000}),
    Fault("88 07       mov [rdi], al",      Vector.PF, (LONG,), error_code=2,
          qualification=0x40_0123, registers={RDI: 0x40_0123}),
    Fault("8a 07       mov al, [rdi]",      Vector.GP, (LONG,), error_code=0,
          registers={RDI: 1 << 63}),
]  # fmt: skip
ROWS = [(fault, mode) for fault in FAULTS for mode in fault.modes]


def name(row: Fault | str) -> str:
    return row if isinstance(row, str) else f"{row.vector.name}-{row.guest.split('  ')[-1].strip()}"


def guest_for(fault: Fault, mode: str, *more: dict[F, int]) -> Guest:
    guest = Guest(mode, parse(fault.guest), fault.fields, *more)
    for number, value in {RDI: DATA, **fault.registers}.items():
        guest.cpu.gpr[number] = value
    return guest


@pytest.mark.parametrize(("fault", "mode"), ROWS, ids=name)
def test_in_the_bitmap_it_exits(fault: Fault, mode: str) -> None:
    guest = guest_for(fault, mode)
    exit = guest.run()
    error_code = None if mode == REAL else fault.error_code
    length = fault.pushed if fault.type is not HARDWARE else 0
    assert exit.reason is ExitReason.EXCEPTION_NMI
    assert exit.intr_info == interruption_info(Event(fault.type, fault.vector, error_code))
    assert exit.intr_error_code == (error_code or 0)
    assert exit.qualification == fault.qualification
    assert guest.read(F.VM_EXIT_INTR_INFO) == exit.intr_info
    assert guest.read(F.GUEST_RIP) == CODE
    assert guest.cpu.cr2 == 0
    if fault.type is not HARDWARE:
        assert exit.instruction_length == length


@pytest.mark.parametrize(("fault", "mode"), ROWS, ids=name)
def test_out_of_the_bitmap_the_guest_handles_it(fault: Fault, mode: str) -> None:
    guest = guest_for(fault, mode, NONE)
    exit = guest.run()
    assert exit.reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == handler(fault.vector)
    stack = guest.stack(4)
    if fault.error_code is not None and mode != REAL:
        assert stack.pop(0) == fault.error_code
    assert stack[:2] == [CODE + fault.pushed, CODE_SELECTOR[mode]]
    assert guest.cpu.cr2 == (fault.qualification if fault.vector == Vector.PF else 0)


@pytest.mark.parametrize("mode", ALL)
def test_the_same_exception_twice_is_no_double_fault(mode: str) -> None:
    guest = Guest(mode, bytes.fromhex("0f0b 0f0b 0f0b 0f0b"), NONE)
    for number in range(4):
        guest.write(F.GUEST_RIP, CODE + 2 * number)
        guest.write(F.GUEST_RSP, STACK0)
        assert guest.run().reason is ExitReason.VMCALL
        assert guest.read(F.GUEST_RIP) == handler(Vector.UD)


# ---- INT n, injection, external interrupts -------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
def test_int_n_is_no_exit(mode: str) -> None:
    guest = Guest(mode, bytes.fromhex("cd 80"), {F.GUEST_RFLAGS: 1 << 9})
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == handler(0x80)
    assert guest.stack(3)[:2] == [CODE + 2, CODE_SELECTOR[mode]]
    assert guest.stack(3)[2] & 0xFFFF == 0x202
    assert guest.read(F.GUEST_RFLAGS) & 1 << 9 == 0, "an interrupt gate clears IF"


@pytest.mark.parametrize("mode", ALL)
def test_an_injected_interrupt_arrives_before_the_first_instruction(mode: str) -> None:
    injected = interruption_info(Event(EventType.EXTERNAL_INTERRUPT, 0x31))
    fields = {F.VM_ENTRY_INTR_INFO_FIELD: injected, F.GUEST_RFLAGS: 1 << 9}
    guest = Guest(mode, b"\x0f\x0b", fields)
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == handler(0x31)
    assert guest.stack(2) == [CODE, CODE_SELECTOR[mode]]
    assert guest.read(F.VM_ENTRY_INTR_INFO_FIELD) & InterruptionInfo.VALID == 0


@pytest.mark.parametrize("mode", PM)
def test_an_injected_page_fault_brings_its_error_code(mode: str) -> None:
    injected = interruption_info(Event(HARDWARE, Vector.PF, 2))
    fields = {F.VM_ENTRY_INTR_INFO_FIELD: injected, F.VM_ENTRY_EXCEPTION_ERROR_CODE: 2}
    guest = Guest(mode, b"\x90", fields)
    assert guest.run().reason is ExitReason.VMCALL, "injection asks no bitmap"
    assert guest.read(F.GUEST_RIP) == handler(Vector.PF)
    assert guest.stack(3) == [2, CODE, CODE_SELECTOR[mode]]


@pytest.mark.parametrize("mode", ALL)
def test_a_kick_is_an_external_interrupt_of_the_host(mode: str) -> None:
    exiting = {F.PIN_BASED_VM_EXEC_CONTROL: PinBased.EXTERNAL_INTERRUPT_EXITING}
    guest = Guest(mode, b"\xeb\xfe", exiting)
    guest.processor.kick()
    assert guest.run() == VmExit(ExitReason.EXTERNAL_INTERRUPT)
    assert guest.read(F.GUEST_RIP) == CODE


@pytest.mark.parametrize("mode", ALL)
def test_the_interrupt_window_opens_one_instruction_after_sti(mode: str) -> None:
    window = {F.CPU_BASED_VM_EXEC_CONTROL: CpuBased.INTERRUPT_WINDOW_EXITING}
    guest = Guest(mode, bytes.fromhex("90 fb 90 90"), window)
    exit = guest.run()
    assert exit.reason is ExitReason.INTERRUPT_WINDOW
    assert guest.read(F.GUEST_RIP) == CODE + 3
    assert guest.read(F.GUEST_INTERRUPTIBILITY_INFO) == 0


@pytest.mark.parametrize("mode", ALL)
def test_an_open_window_exits_before_the_first_instruction(mode: str) -> None:
    window = {F.CPU_BASED_VM_EXEC_CONTROL: CpuBased.INTERRUPT_WINDOW_EXITING}
    guest = Guest(mode, b"\x90", window, {F.GUEST_RFLAGS: 1 << 9})
    assert guest.run().reason is ExitReason.INTERRUPT_WINDOW
    assert guest.read(F.GUEST_RIP) == CODE


@pytest.mark.parametrize("mode", ALL)
def test_hlt_that_exits(mode: str) -> None:
    guest = Guest(mode, b"\xf4", {F.CPU_BASED_VM_EXEC_CONTROL: CpuBased.HLT_EXITING})
    assert guest.run() == VmExit(ExitReason.HLT, instruction_length=1)
    assert guest.read(F.GUEST_RIP) == CODE
    assert guest.read(F.GUEST_ACTIVITY_STATE) == 0


@pytest.mark.parametrize("mode", ALL)
def test_hlt_that_does_not_exit_waits_for_the_host(mode: str) -> None:
    exiting = {F.PIN_BASED_VM_EXEC_CONTROL: PinBased.EXTERNAL_INTERRUPT_EXITING}
    guest = Guest(mode, b"\xf4", exiting)
    assert guest.run().reason is ExitReason.EXTERNAL_INTERRUPT
    assert guest.read(F.GUEST_RIP) == CODE + 1
    assert guest.read(F.GUEST_ACTIVITY_STATE) == 1
    guest.write(F.VM_ENTRY_INTR_INFO_FIELD, interruption_info(Event(EventType.NMI, Vector.NMI)))
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == handler(Vector.NMI)
    assert guest.read(F.GUEST_ACTIVITY_STATE) == 0


# ---- delivery: stacks, classes, what goes wrong on the way --------------------------------------


@pytest.mark.parametrize("mode", PM)
def test_from_user_mode_the_tss_gives_the_stack(mode: str) -> None:
    guest = Guest(mode, bytes.fromhex("cd 80"), NONE, user=True)
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.stack(5)[:2] == [CODE + 2, USER_CODE[mode]]
    assert guest.stack(5)[3:] == [STACK3, USER_DATA | 3]
    assert guest.read(F.GUEST_CS_SELECTOR) == CODE_SELECTOR[mode]
    assert guest.read(F.GUEST_RSP) == STACK0 - 5 * (8 if mode == LONG else 4)
    assert guest.read(F.GUEST_SS_SELECTOR) == (0 if mode == LONG else DATA32)


@pytest.mark.parametrize("mode", PM)
def test_int_n_obeys_the_gates_privilege(mode: str) -> None:
    guest = Guest(mode, bytes.fromhex("cd 80"), NONE, user=True)
    guest.put(IDT + 0x80 * (16 if mode == LONG else 8), gate(mode, 0x80, dpl=0))
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == handler(Vector.GP)
    assert guest.stack(1) == [0x80 << 3 | 2]


def test_an_ist_gate_has_its_own_stack() -> None:
    guest = Guest(LONG, b"\x0f\x0b", NONE)
    guest.put(IDT + 16 * Vector.UD, gate64(Vector.UD, ist=1))
    guest.put(TSS + 0x24, (STACK3).to_bytes(8, "little"))
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RSP) == STACK3 - 40
    assert guest.stack(5)[3:] == [STACK0, 0x10]


@pytest.mark.parametrize("mode", PM)
def test_a_gate_that_is_not_present_makes_a_double_fault(mode: str) -> None:
    """#GP, then #NP for its gate, is contributory after contributory."""
    guest = Guest(mode, parse("8e d8  mov ds, ax"), NONE)
    guest.cpu.gpr[RAX] = 0x1F8
    size = 16 if mode == LONG else 8
    guest.put(IDT + size * Vector.GP + 5, b"\x0e")
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == handler(Vector.DF)
    assert guest.stack(2) == [0, CODE]


@pytest.mark.parametrize("mode", PM)
def test_the_second_exception_exits_with_what_was_being_delivered(mode: str) -> None:
    guest = Guest(mode, parse("0f 0b  ud2"), {F.EXCEPTION_BITMAP: 1 << Vector.NP})
    size = 16 if mode == LONG else 8
    guest.put(IDT + size * Vector.UD + 5, b"\x0e")
    exit = guest.run()
    assert exit.reason is ExitReason.EXCEPTION_NMI
    assert exit.intr_info & 0xFF == Vector.NP
    assert exit.intr_error_code == Vector.UD << 3 | 2 | 1, "in the IDT, by an earlier exception"
    assert exit.idt_vectoring_info == interruption_info(Event(HARDWARE, Vector.UD))
    assert guest.read(F.GUEST_RIP) == CODE


@pytest.mark.parametrize("mode", ALL)
def test_without_an_idt_every_exception_is_a_triple_fault(mode: str) -> None:
    guest = Guest(mode, b"\x0f\x0b", NONE, {F.GUEST_IDTR_LIMIT: 0})
    assert guest.run().reason is ExitReason.TRIPLE_FAULT
    assert guest.read(F.GUEST_RIP) == CODE


def test_delivery_into_memory_that_is_not_there_is_an_ept_violation() -> None:
    guest = Guest(LONG, b"\x0f\x0b", NONE, {F.GUEST_RSP: NOWHERE + 0x1000})
    exit = guest.run()
    assert exit.reason is ExitReason.EPT_VIOLATION
    assert exit.idt_vectoring_info == interruption_info(Event(HARDWARE, Vector.UD))
    assert exit.guest_physical_address & ~0xFFF == NOWHERE


# ---- page-fault mask and match -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bit", "mask", "match", "exits"),
    [(1, 0, 0, True), (1, 2, 0, True), (1, 2, 2, False),
     (0, 0, 0, False), (0, 2, 2, True), (0, 2, 0, False)],
)  # fmt: skip
def test_page_fault_mask_and_match(bit: int, mask: int, match: int, exits: bool) -> None:
    fields = {
        F.EXCEPTION_BITMAP: bit << Vector.PF,
        F.PAGE_FAULT_ERROR_CODE_MASK: mask,
        F.PAGE_FAULT_ERROR_CODE_MATCH: match,
    }
    guest = Guest(LONG, parse("8a 07  mov al, [rdi]"), fields)
    guest.cpu.gpr[RDI] = 0x40_0000
    reason = guest.run().reason
    assert reason is (ExitReason.EXCEPTION_NMI if exits else ExitReason.VMCALL)


# ---- guest-physical memory -----------------------------------------------------------------------

READ, WRITE, FETCH = 1, 2, 4
LINEAR, PAGE = 1 << 7, 1 << 8


@pytest.mark.parametrize("mode", PM)
@pytest.mark.parametrize(
    ("guest_code", "access", "size"),
    [("8a 07  mov al, [rdi]", READ, 1), ("88 07  mov [rdi], al", WRITE, 1),
     ("8b 07  mov eax, [rdi]", READ, 4), ("ff 37  push [rdi]", READ, 8)],
)  # fmt: skip
def test_an_access_to_nothing(mode: str, guest_code: str, access: int, size: int) -> None:
    guest = Guest(mode, parse(guest_code))
    guest.cpu.gpr[RDI] = NOWHERE + 0x123
    exit = guest.run()
    assert exit.reason is ExitReason.EPT_VIOLATION
    assert exit.qualification == access | LINEAR | PAGE
    assert exit.guest_physical_address == NOWHERE + 0x123
    assert exit.guest_linear_address == NOWHERE + 0x123
    assert guest.read(F.GUEST_PHYSICAL_ADDRESS) == NOWHERE + 0x123
    assert guest.read(F.GUEST_RIP) == CODE
    assert guest.read(F.GUEST_RSP) == STACK0


@pytest.mark.parametrize("mode", PM)
def test_a_jump_to_nothing(mode: str) -> None:
    guest = Guest(mode, parse("ff e7  jmp rdi"))
    guest.cpu.gpr[RDI] = NOWHERE + 0x40
    exit = guest.run()
    assert exit.reason is ExitReason.EPT_VIOLATION
    assert exit.qualification & (READ | WRITE | FETCH) == FETCH
    assert exit.guest_physical_address == NOWHERE + 0x40
    assert guest.read(F.GUEST_RIP) == NOWHERE + 0x40


@pytest.mark.parametrize("mode", PM)
def test_a_write_to_read_only_memory(mode: str) -> None:
    guest = Guest(mode, parse("88 07  mov [rdi], al"))
    rom = bytearray(b"\x55" * 4096)
    guest.cpu.memory.map(NOWHERE, rom, readonly=True)
    guest.cpu.gpr[RDI] = NOWHERE + 8
    exit = guest.run()
    assert exit.reason is ExitReason.EPT_VIOLATION
    assert exit.qualification & 0x3F == WRITE | 1 << 3 | 1 << 5, "readable and executable"
    assert exit.guest_physical_address == NOWHERE + 8
    assert rom[8] == 0x55


def test_a_page_table_that_is_not_there() -> None:
    guest = Guest(LONG, parse("8a 07  mov al, [rdi]"))
    guest.put(PML4 + 0x1000 + 8, (NOWHERE | 7).to_bytes(8, "little"))
    guest.cpu.gpr[RDI] = 1 << 30
    exit = guest.run()
    assert exit.reason is ExitReason.EPT_VIOLATION
    assert exit.guest_physical_address == NOWHERE
    assert exit.guest_linear_address == 1 << 30


def gate(mode: str, vector: int, dpl: int) -> bytes:
    return gate64(vector, dpl) if mode == LONG else gate32(vector, dpl)


