"""Stopping from another thread: soon, never lost, never in the middle of an instruction."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.cpu.traps import EventTrap, TrapKind

Start = Callable[..., UnicornCpu]

# L: inc rcx; lock inc qword [0x5000]; inc qword [0x5008]; jmp L
COUNTING = "48ffc1f048ff04250050000048ff042508500000ebea"
SPINNING = "ebfe"


def test_an_instruction_is_never_run_twice(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(64, COUNTING, ram)
    running = True

    def kicker() -> None:
        while running:
            time.sleep(0.0002)
            cpu.kick()

    thread = threading.Thread(target=kicker)
    thread.start()
    where = set()
    for _ in range(1500):
        trap = cpu.run()
        assert trap.kind is TrapKind.KICK
        where.add(cpu.rip)
    running = False
    thread.join()
    locked, plain = struct.unpack_from("<QQ", ram, 0x5000)
    assert where == {0x1000}
    assert locked == plain == cpu.gpr[1] > 1500


def test_a_kick_before_the_run_is_not_lost(start: Start) -> None:
    cpu = start(64, SPINNING)
    cpu.kick()
    assert cpu.run() == EventTrap(TrapKind.KICK, 0x1000)


def test_two_kicks_are_one(start: Start) -> None:
    cpu = start(64, "90f4")
    cpu.kick()
    cpu.kick()
    assert cpu.run().kind is TrapKind.KICK
    assert cpu.run().kind is TrapKind.HLT


def test_a_poke_is_not_seen(start: Start) -> None:
    cpu = start(64, "90f4")
    cpu.poke()
    assert cpu.run().kind is TrapKind.HLT


def test_interrupts_off_do_not_keep_a_kick_out(start: Start) -> None:
    cpu = start(64, "fa" + SPINNING)
    timer = threading.Timer(0.01, cpu.kick)
    timer.start()
    assert cpu.run().kind is TrapKind.KICK
    timer.join()


def test_interrupt_window_opens_after_the_shadow_of_sti(start: Start) -> None:
    cpu = start(64, "90fb9090f4")  # nop; sti; nop; nop; hlt
    cpu.interrupt_window = True
    assert cpu.run() == EventTrap(TrapKind.INTERRUPT_WINDOW, 0x1003)
    cpu.interrupt_window = False
    assert cpu.run().kind is TrapKind.HLT


def test_interrupt_window_that_is_open_traps_at_once(start: Start) -> None:
    cpu = start(64, "90f4")
    cpu.rflags |= 0x200
    cpu.interrupt_window = True
    assert cpu.run() == EventTrap(TrapKind.INTERRUPT_WINDOW, 0x1000)


def test_the_shadow_can_be_set_and_seen(start: Start) -> None:
    cpu = start(64, "90f4")
    cpu.rflags |= 0x200
    cpu.shadow = 1
    cpu.interrupt_window = True
    assert cpu.shadow == 1
    assert cpu.run() == EventTrap(TrapKind.INTERRUPT_WINDOW, 0x1001)
    assert cpu.shadow == 0


def test_sti_hlt_halts_in_its_shadow(start: Start) -> None:
    cpu = start(64, "fbf4")
    cpu.interrupt_window = True
    trap = cpu.run()
    assert (trap.kind, trap.rip, cpu.shadow) == (TrapKind.HLT, 0x1001, 1)
