"""annotate and tidy, without a guest: a machine that only replays events into the probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.qualifications import (
    ApicAccess,
    CrAccess,
    CrQualification,
    Direction,
    DrQualification,
    EptQualification,
    IoQualification,
    TaskSwitch,
    TaskSwitchSource,
)
from vmxsim.cpu.traps import InsnTrap, Instruction, IoTrap, TrapKind
from vmxsim.errors import InputError
from vmxsim.kvm import uapi
from vmxsim.probes import Probes
from vmxsim.tools.exit_columns import ExitColumns, Tally, describe, describe_userspace
from vmxsim.tools.listing import annotate, tidy
from vmxsim.vmm.config import Config
from vmxsim.vmx.processor import VmExit

BASE = 0x7C00
OUT, IN = Direction.OUT, Direction.IN
Event = Callable[[Probes], None]


class Replay:
    """A machine whose run is a list of events."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.config, self.probes, self.events = Config(), Probes(), events
        self.kvm_run = SimpleNamespace(exit=uapi.KvmExitHlt())
        self.system = SimpleNamespace(cpus=[self])

    def load(self, image: object) -> None:
        self.image = image

    def run(self) -> None:
        for event in self.events:
            event(self.probes)


def insn(mnemonic: str) -> Instruction:
    return Instruction(mnemonic, b"", 1, 16, 2, 2, 0, False, -1, ())


def out_exit(port: int, value: int, size: int = 1) -> VmExit:
    trap = IoTrap(TrapKind.IO, BASE, insn("out"), False, port, size, value, False, False)
    return VmExit(
        ExitReason.IO_INSTRUCTION, IoQualification(size, OUT, port=port).encode(), 1, trap=trap
    )


def exits(offset: int, exit: VmExit) -> Event:
    def fire(probes: Probes) -> None:
        for seen in probes.vm_exit:
            seen(0, 0, BASE + offset, exit)

    return fire


def userspace(machine: Replay, record: object, number: int) -> Event:
    def fire(probes: Probes) -> None:
        machine.kvm_run.exit = record
        for seen in probes.userspace_exit:
            seen(0, 0, number)

    return fire


LISTING = """
; a comment
  bytes     guest            | VM exit                          | ends in
again:
  e6 80     out 0x80, al     | IO_INSTRUCTION out 0x80 <- 2e x2 | KVM_EXIT_IO out 0x80 <- 2e
  0f a2     cpuid            | CPUID                            | kernel
  90        nop
"""


def test_exits_attach_to_addresses_and_are_counted() -> None:
    machine = Replay([])
    to_userspace = userspace(machine, uapi.KvmExitIo(uapi.Direction.OUT, 0x80, 1, 1, b"\x2e"), 2)
    machine.events = [
        exits(0, out_exit(0x80, 0x2E)), to_userspace,
        exits(0, out_exit(0x80, 0x2E)), to_userspace,
        exits(2, VmExit(ExitReason.CPUID, 0, 2)),
    ]  # fmt: skip
    assert annotate(LISTING, machine) == tidy(LISTING)
    assert machine.probes.vm_exit == ()


def test_a_wrong_expectation_shows_the_corrected_row() -> None:
    machine = Replay([exits(2, VmExit(ExitReason.CPUID, 0, 2))])
    assert annotate("0f a2  cpuid | HLT | kernel\n" * 2, machine).split("\n")[1:3] == [
        "0f a2  cpuid",
        "0f a2  cpuid | CPUID   | kernel",
    ]


def test_asynchronous_exits_are_in_no_row() -> None:
    window, irq = VmExit(ExitReason.INTERRUPT_WINDOW), VmExit(ExitReason.EXTERNAL_INTERRUPT)
    machine = Replay([])
    machine.events = [exits(0, window), exits(0, irq), userspace(machine, uapi.KvmExitIntr(), 10)]
    assert "90  nop" in annotate("90  nop\n", machine).split("\n")


def test_an_exit_in_two_pieces_ends_in_both() -> None:
    machine = Replay([])
    machine.events = [
        exits(0, VmExit(ExitReason.EPT_VIOLATION, 1, guest_physical_address=0xD0000000)),
        userspace(machine, uapi.KvmExitMmio(0xD0000000, 4, None), 6),
        userspace(machine, uapi.KvmExitMmio(0xD0000000, 4, b"\1\0\0\0"), 6),
    ]
    row = annotate("90  nop\n", machine).split("\n")[1]
    assert row.endswith(
        "| EPT_VIOLATION read 0xd0000000 | KVM_EXIT_MMIO read 0xd0000000, "
        "KVM_EXIT_MMIO write 0xd0000000 <- 00000001"
    )


def test_the_kernels_answer_may_be_an_exception() -> None:
    machine = Replay([exits(0, VmExit(ExitReason.MSR_READ, 0, 2))])
    machine.events = [
        *machine.events,
        lambda probes: [seen(0, 0, False, 0x123, 0, True) for seen in probes.msr],
        lambda probes: [seen(0, 0, 13, 0) for seen in probes.inj_exception],
    ]
    row = annotate("0f 32  rdmsr\n", machine).split("\n")[1]
    assert row == "0f 32  rdmsr | MSR_READ 0x123 | kernel #GP"


def test_values_come_from_later_events() -> None:
    columns = ExitColumns(lambda vcpu_id: None)
    outs = IoQualification(1, OUT, string=True, rep=True, port=0x80).encode()
    to_cr0 = CrQualification(0, CrAccess.MOV_TO).encode()
    columns.vm_exit(0, 0, 1, VmExit(ExitReason.IO_INSTRUCTION, outs))
    columns.pio(0, 0, True, 0x80, 1, 1, 0x41)
    columns.vm_exit(0, 0, 2, VmExit(ExitReason.CR_ACCESS, to_cr0))
    columns.cr(0, 0, True, 0, 0x80000011)
    columns.vm_exit(0, 0, 3, VmExit(ExitReason.MSR_WRITE))
    columns.msr(0, 0, True, 0xC0000080, 0x500, False)
    columns.finish()
    assert [columns.exits[rip].cell(True) for rip in (1, 2, 3)] == [
        "IO_INSTRUCTION rep outs 0x80 <- 41",
        "CR_ACCESS mov cr0 <- 80000011",
        "MSR_WRITE 0xc0000080 <- 500",
    ]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        (["2e"], "out <- 2e"),
        (["2e"] * 3, "out <- 2e x3"),
        (["1", "2"], "out <- 1 2 x2"),
        (["1", "2", "1", "2"], "out <- 1 2 1 2 x4"),
        (["1", "2", "3", "4", "5"], "out <- 1 2 3 4 .. x5"),
        ([""] * 2, "out x2"),
    ],
)
def test_values_of_one_row(values: list[str], cell: str) -> None:
    tally = Tally()
    for value in values:
        tally.add(("out", value))
    assert tally.cell(True) == cell
    assert " x" not in tally.cell(False)


def test_many_kinds_in_one_row_are_cut_short() -> None:
    tally = Tally()
    for page in range(7):
        tally.add((f"write {page}000", ""))
    assert tally.cell(True) == "write 0000, write 1000, write 2000, .. x4"


def named(reason: ExitReason, qualification: int = 0, **fields: int) -> VmExit:
    return VmExit(reason, qualification, **fields)


@pytest.mark.parametrize(
    ("exit", "text"),
    [
        (out_exit(0x3F8, 0x48), ("IO_INSTRUCTION out 0x3f8", "48")),
        (out_exit(0x3F8, 0x48, 4), ("IO_INSTRUCTION out 0x3f8", "00000048")),
        (named(ExitReason.IO_INSTRUCTION, IoQualification(1, IN, port=0x60).encode()),
         ("IO_INSTRUCTION in 0x60", "")),
        (named(ExitReason.IO_INSTRUCTION, IoQualification(1, IN, True, True, False, 5).encode()),
         ("IO_INSTRUCTION rep ins 0x5", "")),
        (named(ExitReason.CPUID), ("CPUID", "")),
        (named(ExitReason.HLT), ("HLT", "")),
        (named(ExitReason.CR_ACCESS, CrQualification(3, CrAccess.MOV_FROM).encode()),
         ("CR_ACCESS mov cr3 ->", "")),
        (named(ExitReason.CR_ACCESS, CrQualification(0, CrAccess.CLTS).encode()),
         ("CR_ACCESS clts", "")),
        (named(ExitReason.CR_ACCESS, CrQualification(0, CrAccess.LMSW, lmsw_source=1).encode()),
         ("CR_ACCESS lmsw", "1")),
        (named(ExitReason.DR_ACCESS, DrQualification(7, False, 0).encode()),
         ("DR_ACCESS mov dr7 <-", "")),
        (named(ExitReason.DR_ACCESS, DrQualification(6, True, 0).encode()),
         ("DR_ACCESS mov dr6 ->", "")),
        (named(ExitReason.EXCEPTION_NMI, intr_info=0x80000306), ("EXCEPTION_NMI #UD", "")),
        (named(ExitReason.EXCEPTION_NMI, intr_info=0x80000B0E), ("EXCEPTION_NMI #PF", "")),
        (named(ExitReason.EPT_VIOLATION, EptQualification(write=True).encode(),
               guest_physical_address=0xFEE000B0), ("EPT_VIOLATION write 0xfee000b0", "")),
        (named(ExitReason.EPT_VIOLATION, EptQualification(read=True, write=True).encode()),
         ("EPT_VIOLATION read+write 0x0", "")),
        (named(ExitReason.EPT_MISCONFIG, guest_physical_address=0x1000),
         ("EPT_MISCONFIG 0x1000", "")),
        (named(ExitReason.INVLPG, 0x4000), ("INVLPG 0x4000", "")),
        (named(ExitReason.APIC_ACCESS, ApicAccess(0xB0, 1).encode()), ("APIC_ACCESS 0xb0", "")),
        (named(ExitReason.TASK_SWITCH, TaskSwitch(0x28, TaskSwitchSource.JMP).encode()),
         ("TASK_SWITCH jmp 0x28", "")),
        (VmExit(ExitReason.GDTR_IDTR, trap=InsnTrap(TrapKind.LGDT, 0, insn("lgdt"))),
         ("GDTR_IDTR lgdt", "")),
        (VmExit(ExitReason.INVALID_STATE, failed_entry=True),
         ("INVALID_STATE FAILED_VMENTRY", "")),
        (named(ExitReason.TRIPLE_FAULT), ("TRIPLE_FAULT", "")),
    ],
)  # fmt: skip
def test_every_kind_of_exit_in_words(exit: VmExit, text: tuple[str, str]) -> None:
    assert describe(exit) == text


@pytest.mark.parametrize("reason", list(ExitReason), ids=lambda reason: reason.name)
def test_no_reason_is_without_words(reason: ExitReason) -> None:
    assert describe(VmExit(reason))[0].startswith(reason.name)


@pytest.mark.parametrize(
    ("number", "record", "text"),
    [
        (2, uapi.KvmExitIo(uapi.Direction.IN, 0x60, 1, 4, b""), ("KVM_EXIT_IO in 0x60 *4", "")),
        (2, uapi.KvmExitIo(uapi.Direction.OUT, 0x80, 2, 1, b"\x34\x12"),
         ("KVM_EXIT_IO out 0x80", "1234")),
        (6, uapi.KvmExitMmio(0xD0000000, 4, None), ("KVM_EXIT_MMIO read 0xd0000000", "")),
        (6, uapi.KvmExitMmio(0xD0000000, 1, b"\x11"), ("KVM_EXIT_MMIO write 0xd0000000", "11")),
        (5, uapi.KvmExitHlt(), ("KVM_EXIT_HLT", "")),
        (8, uapi.KvmExitShutdown(), ("KVM_EXIT_SHUTDOWN", "")),
        (17, uapi.KvmExitInternalError(1, ()), ("KVM_EXIT_INTERNAL_ERROR 1", "")),
        (8, None, ("KVM_EXIT_SHUTDOWN", "")),
    ],
)  # fmt: skip
def test_userspace_exits_in_words(
    number: int, record: uapi.KvmExit | None, text: tuple[str, str]
) -> None:
    assert describe_userspace(number, record) == text


def test_tidy_aligns_and_changes_nothing_twice() -> None:
    crooked = "  b0 7c  mov al, '|'\n  f4  hlt|HLT|KVM_EXIT_HLT\n"
    assert tidy(crooked).split("\n")[1:3] == [
        "  b0 7c  mov al, '|'",
        "  f4  hlt      | HLT     | KVM_EXIT_HLT",
    ]
    assert tidy(tidy(crooked)) == tidy(crooked)


def test_a_line_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="listing:2: cannot read"):
        annotate("90  nop\nnop\n", Replay([]))
