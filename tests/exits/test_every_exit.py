"""Every instruction that can exit, on the real engine: asked for, not asked for, at CPL 3."""

from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.vmcs_fields import VmcsField as F

from .cases import CASES, EXIT, ROWS, USER_ROWS, Case, name
from .harness import CODE, DATA, Guest, parse

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
