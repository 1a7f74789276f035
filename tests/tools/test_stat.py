from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.kvm.uapi import KVM_EXIT_HLT, KVM_EXIT_IO
from vmxsim.tools.stat import Row, Stat
from vmxsim.vmx.records import VmExit

CPUID = VmExit(ExitReason.CPUID, instruction_length=2)
OUT = VmExit(ExitReason.IO_INSTRUCTION, instruction_length=1)
HLT = VmExit(ExitReason.HLT, instruction_length=1)


def columns(report: str, first: str) -> list[str]:
    """The words of the table row that begins with a name."""
    rows = [line.split() for line in report.splitlines()]
    return next(row for row in rows if row and row[0] == first)


@pytest.fixture
def stat() -> Stat:
    """Two CPUIDs and a kernel port, a userspace port twice, and the end."""
    stat = Stat()
    stat.handled(0, 0, CPUID, True, 1000)
    stat.handled(0, 0, CPUID, True, 3000)
    stat.pio(0, 0, True, 0x20, 1, 1, 0x20)
    stat.handled(0, 0, OUT, True, 2000)
    for _ in range(2):
        stat.pio(0, 0, False, 0x3F8, 1, 4, 0)
        stat.handled(0, 0, OUT, False, 500)
        stat.userspace_exit(0, 0, KVM_EXIT_IO)
        stat.userspace_entry(0, 0)
    stat.handled(0, 0, HLT, False, 700)
    stat.userspace_exit(0, 0, KVM_EXIT_HLT)
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
    assert columns(report, "0x20") == ["0x20", "0", "1", "1", "0"]
    assert columns(report, "0x3f8") == ["0x3f8", "8", "0", "0", "2"]


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
    stat.handled(0, 0, VmExit(ExitReason.INVALID_STATE, failed_entry=True), False, 10)
    assert set(stat.exits) == {"INVALID_STATE FAILED_VMENTRY"}


def test_no_exits_make_an_empty_table() -> None:
    assert "Total Samples:0, Total events handled time:0.00us." in Stat().report()


def test_one_sample_has_no_error() -> None:
    row = Row()
    row.kernel = 1
    row.kernel_ns = 5
    row.spent(5)
    assert (row.mean_ns, row.error_percent, row.shortest, row.longest) == (5.0, 0.0, 5, 5)
