from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.kvm.uapi import KVM_EXIT_HLT, KVM_EXIT_IO
from vmxsim.tools.stat import Row, Stat
from vmxsim.tools.trace import FirstExits
from vmxsim.vmm.config import Config
from vmxsim.vmm.machine import Machine
from vmxsim.vmx.records import VmExit

CPUID = VmExit(ExitReason.CPUID, instruction_length=2)
OUT_20 = VmExit(ExitReason.IO_INSTRUCTION, 0x20_0040, 2)
IN_3F8 = VmExit(ExitReason.IO_INSTRUCTION, 0x3F8_0008, 1)
HLT = VmExit(ExitReason.HLT, instruction_length=1)


def columns(report: str, first: str) -> list[str]:
    """The words of the table row that begins with a name."""
    rows = [line.split() for line in report.splitlines()]
    return next(row for row in rows if row and row[0] == first)


@pytest.fixture
def stat() -> Stat:
    """Two CPUIDs and a kernel port, a userspace port twice, and the end."""
    stat = Stat()
    stat.handled(0, CPUID, True, 1000)
    stat.handled(0, CPUID, True, 3000)
    stat.handled(0, OUT_20, True, 2000)
    for _ in range(2):
        stat.handled(0, IN_3F8, False, 500)
        stat.to_userspace(0, KVM_EXIT_IO)
        stat.from_userspace(0)
    stat.handled(0, HLT, False, 700)
    stat.to_userspace(0, KVM_EXIT_HLT)
    return stat


def test_counts_are_split_between_kernel_and_userspace(stat: Stat) -> None:
    report = stat.report()
    assert columns(report, "CPUID")[1] == "2"
    assert columns(report, "CPUID")[-2:] == ["2", "0"]
    assert columns(report, "IO_INSTRUCTION")[-2:] == ["1", "2"]
    assert columns(report, "HLT")[-2:] == ["0", "1"]
    assert "Total Samples:6, Total events handled time:" in report


def test_times_are_perfs(stat: Stat) -> None:
    row = columns(stat.report(), "CPUID")
    assert row[4:7] == ["1.00us", "3.00us", "2.00us"]
    assert row[7:11] == ["(", "+-", "50.00%", ")"]


def test_every_port_is_counted_by_who_served_it(stat: Stat) -> None:
    report = stat.report()
    rows = [line.split() for line in report.splitlines()]
    split = {tuple(row[:2]): row[-2:] for row in rows if row[:1] in (["POUT"], ["PIN"])}
    assert split == {("POUT", "0x20"): ["1", "0"], ("PIN", "0x3f8"): ["0", "2"]}


def test_a_port_that_the_engine_answers_counts_as_the_exit_it_is() -> None:
    stat = Stat()
    stat.fast_pio(0, True, 0x20, 100)
    stat.fast_pio(0, False, 0x20, 300)
    assert (stat.exits["IO_INSTRUCTION"].kernel, stat.exits["IO_INSTRUCTION"].mean_ns) == (2, 200)
    assert set(stat.ports) == {(0x20, True), (0x20, False)}


def test_watching_keeps_the_engine_fast_and_misses_no_exit() -> None:
    guest = bytes.fromhex("b9 64 00 e6 21 e4 21 e2 fa e6 f4")  # 100 times out and in 0x21
    stat = Stat()
    with Machine(Config(irqchip=True)) as machine:
        machine.load(guest)
        machine.probes.add(stat)
        machine.run()
    assert stat.ports[0x21, True].kernel == 100
    assert stat.ports[0x21, False].kernel == 100
    assert stat.ports[0xF4, True].userspace == 1
    assert stat.exits["IO_INSTRUCTION"].samples == 201


def test_a_second_watcher_who_wants_exits_sees_them_all() -> None:
    stat, first = Stat(), FirstExits(1000)
    with Machine(Config(irqchip=True)) as machine:
        machine.probes.add(stat)
        machine.probes.add(first)
        machine.load(bytes.fromhex("b9 64 00 e6 21 e2 fc e6 f4"))
        machine.run()
    assert first.counts == {"IO_INSTRUCTION": 101}
    assert stat.exits["IO_INSTRUCTION"].samples == 101


def test_the_returns_of_kvm_run_are_counted(stat: Stat) -> None:
    report = stat.report()
    assert columns(report, "KVM_EXIT_IO") == ["KVM_EXIT_IO", "2"]
    assert columns(report, "KVM_EXIT_HLT") == ["KVM_EXIT_HLT", "1"]


def test_userspaces_time_goes_to_the_exit_that_led_there(stat: Stat) -> None:
    assert stat.exits["IO_INSTRUCTION"].userspace_ns > 0
    assert stat.exits["CPUID"].userspace_ns == 0
    assert stat.exits["IO_INSTRUCTION"].kernel_ns == 3000


def test_a_failed_entry_has_its_own_row() -> None:
    stat = Stat()
    stat.handled(0, VmExit(ExitReason.INVALID_STATE, failed_entry=True), False, 10)
    assert set(stat.exits) == {"INVALID_STATE FAILED_VMENTRY"}


def test_no_exits_make_an_empty_table() -> None:
    assert "Total Samples:0, Total events handled time:0.00us." in Stat().report()


def test_one_sample_has_no_error() -> None:
    row = Row()
    row.in_kernel(5)
    assert (row.mean_ns, row.error_percent, row.shortest, row.longest) == (5.0, 0.0, 5, 5)
