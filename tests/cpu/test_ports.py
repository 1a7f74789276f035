"""Ports answered inside the engine, and what happens when that goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmxsim.arch.segments import SegmentRegister
from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.cpu.traps import EventTrap, IoTrap, TrapKind

Start = Callable[..., UnicornCpu]


def test_a_port_in_the_table_costs_no_trap(start: Start) -> None:
    cpu = start(16, "b042e680e481f4")  # mov al, 0x42; out 0x80, al; in al, 0x81; hlt
    seen: list[tuple[int, int, int]] = []
    cpu.ports.enabled = True
    cpu.ports.fast_out[0x80] = lambda port, size, value: bool(seen.append((port, size, value)))
    cpu.ports.fast_in[0x81] = lambda port, size: 0x99
    assert cpu.run().kind is TrapKind.HLT
    assert seen == [(0x80, 1, 0x42)]
    assert cpu.gpr[0] & 0xFF == 0x99


def test_an_answer_may_ask_to_leave_behind_the_instruction(start: Start) -> None:
    cpu = start(16, "e6804343f4")
    cpu.ports.enabled = True
    cpu.ports.fast_out[0x80] = lambda port, size, value: True
    assert cpu.run() == EventTrap(TrapKind.KICK, 0x1002)
    assert cpu.gpr[3] == 0
    assert cpu.run().kind is TrapKind.HLT


def test_a_disabled_table_is_not_asked(start: Start) -> None:
    cpu = start(16, "e680f4")
    cpu.ports.fast_out[0x80] = lambda port, size, value: False
    assert cpu.run().kind is TrapKind.IO


def test_user_code_always_traps_because_its_rights_are_not_known(start: Start) -> None:
    cpu = start(32, "e680f4")
    cpu.set_segment(2, SegmentRegister(0x23, 0, 0xFFFFFFFF, 0xC0F3))
    cpu.ports.enabled = True
    cpu.ports.fast_out[0x80] = lambda port, size, value: False
    assert cpu.cpl == 3
    assert cpu.run().kind is TrapKind.IO


def test_what_an_answer_raises_comes_out_of_run(start: Start) -> None:
    cpu = start(16, "e6804343f4")

    def broken(port: int, size: int, value: int) -> bool:
        raise KeyError("a broken chip")

    cpu.ports.enabled = True
    cpu.ports.fast_out[0x80] = broken
    with pytest.raises(KeyError, match="a broken chip"):
        cpu.run()
    assert cpu.gpr[3] == 0
    assert cpu.run().kind is TrapKind.HLT


def test_a_guest_breakpoint_register_does_not_disturb_ports(start: Start) -> None:
    cpu = start(16, "e680" * 3 + "f4")
    cpu.dr[0], cpu.dr[7] = 0x80, 0x402
    for _ in range(3):
        trap = cpu.run()
        assert isinstance(trap, IoTrap)
        cpu.rip += 2
    assert cpu.run().kind is TrapKind.HLT
