"""Every program in fixtures/programs: its exits as written beside it, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmxsim.tools.listing import annotate, tidy
from vmxsim.tools.stat import Stat
from vmxsim.tools.trace import TextTrace

from . import MakeMachine

PROGRAMS = Path(__file__).resolve().parents[2] / "fixtures" / "programs"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.lst"))
OUTPUT = {
    "hello": b"Hello, world!\n",
    "io_bench": b"",
    "mmio": b"ok\n",
    "modes": b"real\nprotected\nPAE\ncompatibility\n64-bit\n",
    "page_fault": b"-W40001234 k\n",
    "self_modifying": b"abcde!\n",
    "syscall": b"syscall\nint 80\n3\n",
    "timer": b"..........\n",
}


@pytest.mark.parametrize("name", NAMES)
def test_exits_are_as_written_and_output_as_promised(machine: MakeMachine, name: str) -> None:
    text = (PROGRAMS / f"{name}.lst").read_text()
    guest = machine()
    assert annotate(text, guest) == tidy(text)
    assert guest.serial_output == OUTPUT[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_tidy(name: str) -> None:
    text = (PROGRAMS / f"{name}.lst").read_text()
    assert text == tidy(text)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_leave_the_same_trace_byte_for_byte(machine: MakeMachine, name: str) -> None:
    def trace() -> str:
        told: list[str] = []
        guest = machine()
        guest.probes.add(TextTrace(told.append))
        guest.load(str(PROGRAMS / f"{name}.lst"))
        guest.run()
        return "".join(told)

    first = trace()
    assert first.count("kvm_exit") > 1
    assert trace() == first


def test_stat_counts_every_exit_of_the_timer_once(machine: MakeMachine) -> None:
    stat, guest = Stat(), machine()
    guest.probes.add(stat)
    guest.load(PROGRAMS / "timer.lst")
    guest.run()
    counted = {reason.name: n for reason, n in guest.vcpus[0].stat.by_reason().items()}
    assert {name: row.samples for name, row in stat.exits.items()} == counted
