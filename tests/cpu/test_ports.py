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


def test_an_answer_may_ask_to_leave_the_guest(start: Start) -> None:
    cpu = start(16, "e6804343f4")
    cpu.ports.enabled = True
    cpu.ports.fast_out[0x80] = lambda port, size, value: True
    trap = cpu.run()
    assert isinstance(trap, IoTrap)
    assert (trap.kind, trap.port, cpu.rip, cpu.gpr[3]) == (TrapKind.BOUNCED, 0x80, 0x1000, 0)
    cpu.rip += 2
    assert cpu.run().kind is TrapKind.HLT


def test_a_string_instruction_that_is_to_leave_has_done_its_turn(start: Start) -> None:
    cpu = start(16, "f36ef4")
    cpu.gpr[1], cpu.gpr[2], cpu.gpr[6] = 2, 0x80, 0x8000
    cpu.ports.enabled = True
    cpu.ports.fast_out[0x80] = lambda port, size, value: True
    assert cpu.run() == EventTrap(TrapKind.KICK, 0x1000)
    assert (cpu.gpr[1], cpu.gpr[6]) == (1, 0x8001)
    assert cpu.run() == EventTrap(TrapKind.KICK, 0x1002)
    assert (cpu.gpr[1], cpu.gpr[6]) == (0, 0x8002)
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


def test_a_bounced_out_comes_up_as_the_same_record(start: Start) -> None:
    cpu = start(64, "e680" * 3 + "ebf8")  # L: out 0x80, al (three times); jmp L
    cpu.gpr[0] = 0x1155
    seen: list[tuple[int, int, int]] = []
    cpu.ports.enabled = True
    cpu.ports.bounce_out = lambda port, size, value: seen.append((port, size, value))
    first = cpu.run()
    assert isinstance(first, IoTrap)
    assert (first.kind, first.value, seen) == (TrapKind.IO, 0x55, [])
    bounced = []
    for _ in range(2):
        cpu.rip = 0x1000
        trap = cpu.run()
        assert isinstance(trap, IoTrap)
        assert (trap.kind, trap.rip, trap.port) == (TrapKind.BOUNCED, 0x1000, 0x80)
        assert not trap.is_in
        assert (cpu.rip, cpu.gpr[0]) == (0x1000, 0x1155)
        bounced.append(trap)
    assert bounced[0] is bounced[1]
    assert seen == [(0x80, 1, 0x55)] * 2


def test_a_bounced_in_leaves_rax_alone(start: Start) -> None:
    cpu = start(64, "ed")
    cpu.gpr[0], cpu.gpr[2] = 0x1122334455667788, 0x3F8
    seen: list[tuple[int, int]] = []
    cpu.ports.enabled = True
    cpu.ports.bounce_in = lambda port, size: seen.append((port, size))
    assert cpu.run().kind is TrapKind.IO
    assert cpu.run().kind is TrapKind.BOUNCED
    assert (cpu.gpr[0], cpu.rip, seen) == (0x1122334455667788, 0x1000, [(0x3F8, 4)])


@pytest.mark.parametrize("change", ["code", "port", "ring", "string"])
def test_what_is_not_the_same_access_does_not_bounce(start: Start, change: str) -> None:
    ram = bytearray(1 << 20)
    cpu = start(32, "ee90" if change != "string" else "6e90", ram)
    cpu.gpr[2], cpu.gpr[6] = 0x3F8, 0x8000
    cpu.ports.enabled = True
    cpu.ports.bounce_out = lambda port, size, value: None
    assert cpu.run().kind is TrapKind.IO
    if change == "code":
        cpu.memory.write(0x1000, b"\x6e")
    elif change == "port":
        cpu.gpr[2] = 0x3F9
    elif change == "ring":
        cpu.set_segment(2, SegmentRegister(0x23, 0, 0xFFFFFFFF, 0xC0F3))
    trap = cpu.run()
    assert isinstance(trap, IoTrap)
    assert trap.kind is TrapKind.IO
    assert (cpu.gpr[6], cpu.rip) == (0x8000, 0x1000)
