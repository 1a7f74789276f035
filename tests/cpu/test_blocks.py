"""Counting blocks: the same count on every run, whatever else happens."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu.conftest import RAM, enter_mode
from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.cpu.traps import EventTrap, TrapKind

Start = Callable[..., UnicornCpu]
LOOP = "48ffc1ebfb"  # L: inc rcx; jmp L


def test_the_budget_is_exact(start: Start) -> None:
    cpu = start(64, LOOP)
    cpu.budget = 1000
    assert cpu.run() == EventTrap(TrapKind.BUDGET, 0x1000)
    assert (cpu.gpr[1], cpu.blocks) == (1000, 1000)
    cpu.budget = 3_000_000
    assert cpu.run().kind is TrapKind.BUDGET
    assert (cpu.gpr[1], cpu.blocks) == (3_001_000, 3_001_000)


def test_nothing_is_counted_without_a_budget(start: Start) -> None:
    cpu = start(64, "b96400000048ffc975fbf4")
    assert cpu.run().kind is TrapKind.HLT
    assert cpu.blocks == 0


def test_the_rest_of_a_block_behind_a_trap_is_not_another_block(start: Start) -> None:
    cpu = start(64, "48ffc10fa2ebf9")  # L: inc rcx; cpuid; jmp L
    cpu.budget = 10
    kinds = []
    while True:
        trap = cpu.run()
        kinds.append(trap.kind)
        if trap.kind is TrapKind.BUDGET:
            break
        cpu.rip += 2
    assert kinds.count(TrapKind.CPUID) == 10
    assert (cpu.gpr[1], cpu.blocks, cpu.rip) == (10, 10, 0x1000)


def test_ports_answered_inside_cost_the_blocks_that_exits_cost(start: Start) -> None:
    counts = []
    for enabled in (False, True):
        cpu = start(64, "48ffc1e680ffc975f6f4")  # L: inc rcx; out 0x80, al; dec ecx; jnz L; hlt
        cpu.budget = 1000
        cpu.ports.enabled = enabled
        cpu.ports.fast_out[0x80] = lambda port, size, value: False
        cpu.gpr[1] = 0
        while (trap := cpu.run()).kind is TrapKind.IO:
            cpu.rip += 2
        counts.append((trap.kind, cpu.blocks, cpu.rip))
    assert counts[0] == counts[1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_slices_add_up(slices: list[int]) -> None:
    cpu = UnicornCpu()
    try:
        ram = bytearray(RAM)
        ram[0x1000:0x1005] = bytes.fromhex(LOOP)
        cpu.memory.map(0, ram)
        enter_mode(cpu, ram, 64)
        for blocks in slices:
            cpu.budget = blocks
            assert cpu.run().kind is TrapKind.BUDGET
        assert cpu.gpr[1] == cpu.blocks == sum(slices)
    finally:
        cpu.close()
