from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.errors import InputError
from vmxsim.kvm.uapi import KVM_EXIT_INTR, KVM_EXIT_IO
from vmxsim.probes import Probes
from vmxsim.tools.trace import FirstExits, JsonTrace, TextTrace, TraceFile, kvm_exit_name
from vmxsim.vmx.records import VmExit

OUT = VmExit(ExitReason.IO_INSTRUCTION, qualification=0x3F80000, instruction_length=1)
SECOND = 1_000_000_000


def watch(trace: TextTrace | JsonTrace) -> Probes:
    probes = Probes()
    probes.add(trace)
    return probes


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def text(lines: list[str]) -> TextTrace:
    return TextTrace(lambda line: lines.append(line.split(": ", 1)[1]))


def test_the_prefix_is_ftraces(lines: list[str]) -> None:
    TextTrace(lines.append).vm_entry(1, 6868 * SECOND + 995_053_999, 0x7C00)
    assert lines == ["vmxsim-1001 [001] 6868.995053: kvm_entry: vcpu 1, rip 0x7c00\n"]


def test_an_exit_shows_its_fields_as_linux_prints_them(text: TextTrace, lines: list[str]) -> None:
    text.vm_exit(0, 0, 0x7C05, OUT)
    assert lines == [
        "kvm_exit: vcpu 0 reason IO_INSTRUCTION rip 0x7c05 info1 0x0000000003f80000 "
        "info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000\n"
    ]


def test_a_failed_entry_carries_its_flag(text: TextTrace, lines: list[str]) -> None:
    text.vm_exit(0, 0, 0, VmExit(ExitReason.INVALID_STATE, failed_entry=True))
    assert "reason INVALID_STATE FAILED_VMENTRY rip" in lines[0]


@pytest.mark.parametrize(
    ("event", "values", "line"),
    [
        ("pio", (True, 0x3F8, 1, 1, 0x48), "kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x48"),
        ("pio", (False, 0x60, 2, 4, 1), "kvm_pio: pio_read at 0x60 size 2 count 4 val 0x1 (...)"),
        ("mmio", (True, 4, 0xFEE000B0, 0), "kvm_mmio: mmio write len 4 gpa 0xfee000b0 val 0x0"),
        ("msr", (False, 0x10, 0x1234, False), "kvm_msr: msr_read 10 = 0x1234"),
        ("msr", (True, 0x123, 0, True), "kvm_msr: msr_write 123 = 0x0 (#GP)"),
        ("cr", (True, 0, 0x11), "kvm_cr: cr_write 0 = 0x11"),
        ("cpuid", (1, 0, 0xA, 0xB, 0xC, 0xD, True),
         "kvm_cpuid: func 1 idx 0 rax a rbx b rcx c rdx d, cpuid entry found"),
        ("cpuid", (7, 1, 0, 0, 0, 0, False),
         "kvm_cpuid: func 7 idx 1 rax 0 rbx 0 rcx 0 rdx 0, cpuid entry not found"),
        ("inj_virq", (32,), "kvm_inj_virq: irq 32"),
        ("inj_exception", (14, 2), "kvm_inj_exception: #PF (0x2)"),
        ("inj_exception", (6, None), "kvm_inj_exception: #UD (0x0)"),
        ("userspace_exit", (KVM_EXIT_IO,), "kvm_userspace_exit: reason KVM_EXIT_IO (2)"),
        ("userspace_exit", (KVM_EXIT_INTR,), "kvm_userspace_exit: reason restart (4)"),
    ],
)  # fmt: skip
def test_every_event_has_linuxs_wording(
    text: TextTrace, lines: list[str], event: str, values: tuple[int, ...], line: str
) -> None:
    probes = watch(text)
    for probe in getattr(probes, event):
        probe(0, 0, *values)
    assert lines == [line + "\n"]


def test_an_exit_code_without_a_name_is_a_number() -> None:
    assert kvm_exit_name(2) == "KVM_EXIT_IO"
    assert kvm_exit_name(0x99) == "0x99"


def test_json_lines_carry_every_field(lines: list[str]) -> None:
    trace = JsonTrace(lines.append)
    trace.vm_exit(0, 1500, 0x7C05, OUT)
    trace.pio(0, 1500, True, 0x3F8, 1, 1, 0x48)
    trace.userspace_exit(0, 1500, KVM_EXIT_IO)
    exit_row, pio_row, left_row = map(json.loads, lines)
    assert exit_row["t"] == 1500
    assert (exit_row["event"], exit_row["reason"]) == ("kvm_exit", "IO_INSTRUCTION")
    assert (exit_row["rip"], exit_row["qualification"]) == (0x7C05, 0x3F80000)
    assert pio_row == {"t": 1500, "vcpu": 0, "event": "kvm_pio", "write": True, "port": 0x3F8,
                       "size": 1, "count": 1, "value": 0x48}  # fmt: skip
    assert (left_row["reason"], left_row["number"]) == ("KVM_EXIT_IO", 2)


def test_both_forms_watch_the_same_events() -> None:
    def watched(probes: Probes) -> set[str]:
        return {event for event, methods in vars(probes).items() if methods}

    assert watched(watch(TextTrace(str))) == watched(watch(JsonTrace(str)))


def test_the_first_exits_are_kept_and_the_rest_only_counted() -> None:
    first = FirstExits(limit=2)
    for rip in range(5):
        first.vm_entry(0, 0, rip)
        first.vm_exit(0, 0, rip, OUT)
        first.pio(0, 0, True, 0x3F8, 1, 1, rip)
    assert first.exits == 5
    assert len(first.lines) == 4
    assert first.lines[-1].endswith("val 0x1\n")


@pytest.mark.parametrize(("name", "start"), [("t.txt", "vmxsim-1000 ["), ("t.jsonl", '{"t":7')])
def test_the_files_name_chooses_the_form(tmp_path: Path, name: str, start: str) -> None:
    file = TraceFile(str(tmp_path / name))
    file.instrument().vm_entry(0, 7, 0x7C00)
    file.close()
    file.close()
    assert (tmp_path / name).read_text().startswith(start)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write the trace to .*nowhere/t: No such file"):
        TraceFile(str(tmp_path / "nowhere" / "t"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_named() -> None:
    file = TraceFile("/dev/full")
    file.instrument().vm_entry(0, 0, 0)
    with pytest.raises(InputError, match="cannot write the trace to /dev/full: No space left"):
        file.close()
    file.close()
