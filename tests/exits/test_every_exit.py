"""Every instruction that can exit, on the real engine: asked for, not asked for, at CPL 3."""

from __future__ import annotations

import pytest

from vmxsim.arch.controls import CpuBased
from vmxsim.arch.events import Vector
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.vmcs_fields import VmcsField as F

from .cases import CASES, EXIT, ROWS, USER_ROWS, Case, name
from .harness import ALL, CODE, CR0, CR4, DATA, LONG, PROTECTED, REAL, TSS, Guest, parse

POINTERS = {3: DATA, 6: DATA, 7: DATA}
CLEAR_ROWS = [(case, mode) for case, mode in ROWS if case.clear]


def guest_for(case: Case, mode: str, *, control: bool, user: bool = False) -> Guest:
    fields = [case.base, case.control] if control else [case.base]
    guest = Guest(mode, parse(case.guest), *fields, user=user)
    for number, value in {**POINTERS, **case.registers}.items():
        guest.cpu.gpr[number] = value
    return guest


def of_mode(value: object, mode: str) -> int:
    return value(mode) if callable(value) else value


@pytest.mark.parametrize(("case", "mode"), ROWS, ids=name)
def test_control_set(case: Case, mode: str) -> None:
    guest = guest_for(case, mode, control=True)
    before = list(guest.cpu.gpr)
    exit = guest.run()
    length = len(parse(case.guest))
    assert exit.reason is case.reason
    assert exit.qualification == of_mode(case.qualification, mode)
    assert exit.instruction_length == length
    assert guest.read(F.VM_EXIT_REASON) == case.reason
    assert guest.read(F.EXIT_QUALIFICATION) == exit.qualification
    assert guest.read(F.VM_EXIT_INSTRUCTION_LEN) == length
    assert guest.read(F.GUEST_RIP) == CODE
    assert list(guest.cpu.gpr)[:4] == before[:4]
    assert guest.read(F.IDT_VECTORING_INFO_FIELD) == 0
    if case.info is not None:
        assert exit.instruction_info == of_mode(case.info, mode)


@pytest.mark.parametrize(("case", "mode"), ROWS, ids=name)
def test_the_guest_goes_on_after_it(case: Case, mode: str) -> None:
    guest = guest_for(case, mode, control=True)
    after = CODE + guest.run().instruction_length
    guest.write(F.GUEST_RIP, after)
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.read(F.GUEST_RIP) == after


@pytest.mark.parametrize(("case", "mode"), CLEAR_ROWS, ids=name)
def test_control_clear(case: Case, mode: str) -> None:
    guest = guest_for(case, mode, control=False)
    exit = guest.run()
    assert exit.reason is ExitReason.VMCALL, exit
    assert guest.read(F.GUEST_RIP) == CODE + len(parse(case.guest))
    assert case.clear is not None
    assert case.clear(guest)


@pytest.mark.parametrize(("case", "mode"), USER_ROWS, ids=name)
def test_user_mode(case: Case, mode: str) -> None:
    guest = guest_for(case, mode, control=True, user=True)
    exit = guest.run()
    if case.user == EXIT:
        assert exit.reason is case.reason
    else:
        assert exit.reason is ExitReason.EXCEPTION_NMI
        assert exit.intr_info & 0xFF == case.user
    assert guest.read(F.GUEST_RIP) == CODE


def test_every_row_with_a_control_says_what_happens_without_it() -> None:
    silent = [case.guest for case in CASES if case.control and case.clear is None]
    assert silent == ["0f 33       rdpmc"], "RDPMC alone has no defined result: no counters"


# ---- what a row cannot say -----------------------------------------------------------------------

PRIMARY = F.CPU_BASED_VM_EXEC_CONTROL
OUT_80 = bytes.fromhex("e6 80")


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
@pytest.mark.parametrize(
    ("code", "open_bits", "iopl", "exits"),
    [
        ("e6 80", 0b0001, 0, True),
        ("e6 80", 0b0000, 0, False),
        ("e6 80", 0b0000, 3, True),
        ("e6 80", 0b0000, 2, False),
        ("66 e7 80", 0b0011, 0, True),
        ("66 e7 80", 0b0001, 0, False),
        ("66 e7 80", 0b0010, 0, False),
    ],
)
def test_user_code_needs_iopl_or_a_clear_bit_for_every_port(
    mode: str, code: str, open_bits: int, iopl: int, exits: bool
) -> None:
    control = {PRIMARY: CpuBased.UNCONDITIONAL_IO_EXITING, F.GUEST_RFLAGS: iopl << 12}
    guest = Guest(mode, bytes.fromhex(code), control, user=True)
    guest.put(TSS + 0x68 + 0x80 // 8, bytes((0xFF & ~open_bits,)))
    exit = guest.run()
    assert exit.reason is (ExitReason.IO_INSTRUCTION if exits else ExitReason.EXCEPTION_NMI)
    assert exits or exit.intr_info & 0xFF == Vector.GP


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(
    ("port", "bit", "exits"),
    [(0x80, 0x80, True), (0x80, 0x81, True), (0x80, 0x82, False), (0x80, 0x7F, False),
     (0x8000, 0x8000, True), (0x8000, 0, False), (0x7FFF, 0x7FFF, True), (0x7FFF, 0x8000, True),
     (0xFFFE, 0xFFFF, True), (0xFFFF, 0x20, True)],
)  # fmt: skip
def test_io_bitmaps(mode: str, port: int, bit: int, exits: bool) -> None:
    """A word at ``port`` when only ``bit`` is set; one that wraps at the end always exits."""
    code = b"\xef" if mode == REAL else b"\x66\xef"
    control = {PRIMARY: CpuBased.USE_IO_BITMAPS | CpuBased.UNCONDITIONAL_IO_EXITING,
               F.IO_BITMAP_A: 0x40000, F.IO_BITMAP_B: 0x41000}  # fmt: skip
    guest = Guest(mode, code, control)
    guest.put(0x40000 + bit // 8, bytes((1 << bit % 8,)))
    guest.cpu.gpr[2] = port
    assert guest.run().reason is (ExitReason.IO_INSTRUCTION if exits else ExitReason.VMCALL)


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
def test_reads_of_cr0_and_cr4_see_mask_and_shadow(mode: str) -> None:
    code = bytes.fromhex("0f20c0 0f20e1 660f01e2")  # mov eax, cr0; mov ecx, cr4; smsw dx
    fields = {F.CR0_GUEST_HOST_MASK: 0x2A, F.CR0_READ_SHADOW: 0x08,
              F.CR4_GUEST_HOST_MASK: 0x2008, F.CR4_READ_SHADOW: 0x0008}  # fmt: skip
    guest = Guest(mode, code, fields)
    assert guest.run().reason is ExitReason.VMCALL
    assert guest.cpu.gpr[0] == CR0[mode] & ~0x2A | 0x08
    assert guest.cpu.gpr[1] == CR4[mode] & ~0x2008 | 0x0008
    assert guest.cpu.gpr[2] & 0xFFFF == (CR0[mode] & ~0x2A | 0x08) & 0xFFFF


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(("count", "exits"), [(0, True), (1, True), (2, False), (4, False)])
def test_cr3_targets(mode: str, count: int, exits: bool) -> None:
    fields = {PRIMARY: CpuBased.CR3_LOAD_EXITING, F.CR3_TARGET_COUNT: count,
              F.CR3_TARGET_VALUE1: 0x10000}  # fmt: skip
    guest = Guest(mode, bytes.fromhex("0f22d8"), fields)
    guest.cpu.gpr[0] = 0x10000
    assert guest.run().reason is (ExitReason.CR_ACCESS if exits else ExitReason.VMCALL)


@pytest.mark.parametrize("mode", ALL)
def test_an_exit_can_be_taken_again_and_again(mode: str) -> None:
    """RIP stays, so the same instruction exits each time; nothing of it ever happens."""
    guest = Guest(mode, OUT_80, {PRIMARY: CpuBased.UNCONDITIONAL_IO_EXITING})
    first = guest.run()
    before = list(guest.cpu.gpr)
    assert [guest.run() for _ in range(5)] == [first] * 5
    assert list(guest.cpu.gpr) == before
