"""What a listing says of each exit: its name, what it was about, and who dealt with it.

One text is made when the exit happens and completed by the events that follow it (the value an
OUTS wrote, the MSR's number), up to the next exit. Exits that no instruction causes are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
)
from vmxsim.cpu.traps import InsnTrap, IoTrap
from vmxsim.kvm import uapi
from vmxsim.probes import ExitRecord, Instrument
from vmxsim.tools.trace import kvm_exit_name, reason_name, vector_name
from vmxsim.vmx.processor import VmExit

ASYNCHRONOUS: Final = frozenset(
    {
        ExitReason.EXTERNAL_INTERRUPT,
        ExitReason.INTERRUPT_WINDOW,
        ExitReason.NMI_WINDOW,
        ExitReason.INIT_SIGNAL,
        ExitReason.SIPI_SIGNAL,
        ExitReason.PREEMPTION_TIMER,
        ExitReason.PML_FULL,
        ExitReason.NOTIFY,
    }
)
"""Exits that hit an instruction without being its doing: they belong in no row of a listing."""

SHOWN_VALUES: Final = 4
"""How many values of one instruction's exits a row shows before it says ``..``."""

SHOWN_KINDS: Final = 3
"""How many different texts one cell has room for; a REP MOVS through MMIO would fill pages."""

Text = tuple[str, str]
"""What happened, and the value written ("" for none): only the values differ within one row."""


class Tally:
    """The texts of one cell, in order of first appearance, each with its count and its values."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.values: dict[str, list[str]] = {}

    def add(self, text: Text) -> None:
        """Count one exit, or one end of an exit."""
        head, value = text
        self.count[head] = self.count.get(head, 0) + 1
        if value:
            self.values.setdefault(head, []).append(value)

    def cell(self, counted: bool) -> str:
        """``IO_INSTRUCTION out 0x80 <- 2e x3``; several kinds are separated by commas."""
        told = [self._one(head, counted) for head in list(self.count)[:SHOWN_KINDS]]
        left = sum(list(self.count.values())[SHOWN_KINDS:])
        return ", ".join([*told, f".. x{left}"] if left else told)

    def _one(self, head: str, counted: bool) -> str:
        values, count = self.values.get(head, []), self.count[head]
        if values:
            shown = values[:1] if len(set(values)) == 1 else values[:SHOWN_VALUES]
            more = " .." if len(set(values)) > 1 and len(values) > SHOWN_VALUES else ""
            head += f" <- {' '.join(shown)}{more}"
        return f"{head} x{count}" if counted and count > 1 else head


class _Open:
    """An exit whose story is not over."""

    def __init__(self, rip: int, exit: ExitRecord) -> None:
        self.rip, self.reason = rip, exit.reason
        self.head, self.value = describe(exit)
        self.ends: list[Text] = []
        self.injected = ""

    def told(self) -> list[Text]:
        """Who dealt with it."""
        return self.ends or [(f"kernel {self.injected}".rstrip(), "")]


class ExitColumns(Instrument):
    """Collects both columns by address. Call finish() when the run is over.

    ``kvm_run`` gives a vCPU's kvm_run record, by vCPU number.
    """

    def __init__(self, kvm_run: Callable[[int], uapi.KvmRun | None]) -> None:
        self.kvm_run = kvm_run
        self.exits: dict[int, Tally] = {}
        self.ends: dict[int, Tally] = {}
        self._open: dict[int, _Open] = {}

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """Begin a text, and end the one before."""
        self._close(vcpu_id)
        if exit.reason not in ASYNCHRONOUS:
            self._open[vcpu_id] = _Open(rip, exit)

    def pio(
        self, vcpu_id: int, now: int, is_write: bool, port: int, size: int, count: int, value: int
    ) -> None:
        """Learn what OUTS took from memory."""
        exit = self._open.get(vcpu_id)
        if exit and is_write and exit.reason == ExitReason.IO_INSTRUCTION and not exit.value:
            exit.value = f"{value:0{2 * size}x}"

    def msr(
        self, vcpu_id: int, now: int, is_write: bool, index: int, value: int, fault: bool
    ) -> None:
        """Learn which MSR, and what was written."""
        exit = self._open.get(vcpu_id)
        if exit and exit.reason in (ExitReason.MSR_READ, ExitReason.MSR_WRITE):
            exit.head = f"{exit.head.split()[0]} {index:#x}"
            exit.value = f"{value:x}" if is_write else ""

    def cr(self, vcpu_id: int, now: int, is_write: bool, number: int, value: int) -> None:
        """Learn what was written to a control register."""
        exit = self._open.get(vcpu_id)
        if exit and exit.reason == ExitReason.CR_ACCESS and is_write and " mov " in exit.head:
            exit.value = f"{value:x}"

    def inj_exception(self, vcpu_id: int, now: int, vector: int, error_code: int | None) -> None:
        """Learn that the kernel's answer is an exception."""
        exit = self._open.get(vcpu_id)
        if exit:
            exit.injected = f"#{vector_name(vector)}"

    def userspace_exit(self, vcpu_id: int, now: int, exit_reason: int) -> None:
        """Learn that the kernel left it to userspace, perhaps in several pieces."""
        exit = self._open.get(vcpu_id)
        if exit and exit_reason not in (uapi.KVM_EXIT_INTR, uapi.KVM_EXIT_IRQ_WINDOW_OPEN):
            kvm_run = self.kvm_run(vcpu_id)
            record = kvm_run.exit if kvm_run is not None else None
            exit.ends.append(describe_userspace(exit_reason, record))

    def finish(self) -> None:
        """End the last text of every vCPU."""
        for vcpu_id in list(self._open):
            self._close(vcpu_id)

    def _close(self, vcpu_id: int) -> None:
        exit = self._open.pop(vcpu_id, None)
        if exit is None:
            return
        self.exits.setdefault(exit.rip, Tally()).add((exit.head, exit.value))
        for text in exit.told():
            self.ends.setdefault(exit.rip, Tally()).add(text)


def describe(exit: ExitRecord) -> Text:
    """One VM exit in the silicon's words, as far as its own fields tell."""
    name = reason_name(exit)
    detail = _DETAILS.get(exit.reason)
    if detail is None or exit.failed_entry:
        return name, ""
    text, value = detail(exit)
    return f"{name} {text}".rstrip(), value


def describe_userspace(exit_reason: int, exit: uapi.KvmExit | None) -> Text:
    """One exit to userspace in KVM's words; without its record, its name alone."""
    name = kvm_exit_name(exit_reason)
    if isinstance(exit, uapi.KvmExitIo):
        way = "out" if exit.direction is uapi.Direction.OUT else "in"
        times = f" *{exit.count}" if exit.count > 1 else ""
        return f"{name} {way} {exit.port:#x}{times}", _little_endian(exit.data, exit.size)
    if isinstance(exit, uapi.KvmExitMmio):
        way = "read" if exit.data is None else "write"
        return f"{name} {way} {exit.gpa:#x}", _little_endian(exit.data or b"", exit.size)
    if isinstance(exit, uapi.KvmExitInternalError):
        return f"{name} {exit.suberror}", ""
    return name, ""


def _little_endian(data: bytes, size: int) -> str:
    """Give the first element as one hexadecimal number."""
    return f"{int.from_bytes(data[:size], 'little'):0{2 * size}x}" if data else ""


def _io(exit: ExitRecord) -> Text:
    io = IoQualification.decode(exit.qualification)
    name = ("in" if io.direction is Direction.IN else "out") + "s" * io.string
    text = f"{'rep ' * io.rep}{name} {io.port:#x}"
    trap = exit.trap if isinstance(exit, VmExit) else None
    if isinstance(trap, IoTrap) and not trap.is_in and not trap.string:
        return text, f"{trap.value:0{2 * trap.size}x}"
    return text, ""


def _cr(exit: ExitRecord) -> Text:
    cr = CrQualification.decode(exit.qualification)
    if cr.access is CrAccess.CLTS:
        return "clts", ""
    if cr.access is CrAccess.LMSW:
        return "lmsw", f"{cr.lmsw_source:x}"
    return f"mov cr{cr.cr}" + " ->" * (cr.access is CrAccess.MOV_FROM), ""


def _dr(exit: ExitRecord) -> Text:
    dr = DrQualification.decode(exit.qualification)
    return f"mov dr{dr.dr} {'->' if dr.from_dr else '<-'}", ""


def _exception(exit: ExitRecord) -> Text:
    return f"#{vector_name(exit.intr_info & 0xFF)}", ""


def _ept(exit: ExitRecord) -> Text:
    ept = EptQualification.decode(exit.qualification)
    ways = [way for way, on in zip(("read", "write", "fetch"), ept, strict=False) if on]
    return f"{'+'.join(ways)} {exit.guest_physical_address:#x}", ""


def _gpa(exit: ExitRecord) -> Text:
    return f"{exit.guest_physical_address:#x}", ""


def _gva(exit: ExitRecord) -> Text:
    return f"{exit.qualification:#x}", ""


def _apic(exit: ExitRecord) -> Text:
    return f"{ApicAccess.decode(exit.qualification).offset:#x}", ""


def _task(exit: ExitRecord) -> Text:
    task = TaskSwitch.decode(exit.qualification)
    return f"{task.source.name.lower()} {task.selector:#x}", ""


def _mnemonic(exit: ExitRecord) -> Text:
    trap = exit.trap if isinstance(exit, VmExit) else None
    return (trap.insn.mnemonic if isinstance(trap, InsnTrap) else ""), ""


_DETAILS: Final[dict[int, Callable[[ExitRecord], Text]]] = {
    ExitReason.IO_INSTRUCTION: _io,
    ExitReason.CR_ACCESS: _cr,
    ExitReason.DR_ACCESS: _dr,
    ExitReason.EXCEPTION_NMI: _exception,
    ExitReason.EPT_VIOLATION: _ept,
    ExitReason.EPT_MISCONFIG: _gpa,
    ExitReason.INVLPG: _gva,
    ExitReason.APIC_ACCESS: _apic,
    ExitReason.TASK_SWITCH: _task,
    ExitReason.GDTR_IDTR: _mnemonic,
    ExitReason.LDTR_TR: _mnemonic,
}
