"""Every VM exit as one line of ftrace's kvm events (Linux 5.15's wording), or as JSON lines.

With the virtual clock two runs of the same guest give the same file, byte for byte.

    vmxsim-1000 [000] 0.000001: kvm_exit: vcpu 0 reason CPUID rip 0x7c05 info1 0x0000...
    comm-tid    CPU   seconds   event     what the kernel's TP_printk writes

The thread number is 1000 plus the vCPU's, the CPU is the vCPU's; time is the machine's clock.
Left out: the blank that Linux leaves at the end of kvm_pio.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from vmxsim.arch.events import Vector
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.errors import InputError
from vmxsim.kvm.uapi import KVM_EXIT_INTR, KVM_EXIT_NAMES
from vmxsim.probes import ExitRecord, Instrument

EINTR: Final = 4
THREAD_BASE: Final = 1000

Write = Callable[[str], object]


def reason_name(exit: ExitRecord) -> str:
    """The exit reason as Linux prints it, FAILED_VMENTRY included."""
    reason = exit.reason
    name = reason.name if isinstance(reason, ExitReason) else f"0x{reason & 0xFFFF:x}"
    return f"{name} FAILED_VMENTRY" if exit.failed_entry else name


def kvm_exit_name(number: int) -> str:
    """KVM_EXIT_IO for 2, and so on; the bare number for one that the header does not have."""
    return KVM_EXIT_NAMES.get(number, f"0x{number:x}")


def exit_line(vcpu_id: int, rip: int, exit: ExitRecord) -> str:
    """What follows ``kvm_exit:``. info1 is the qualification, info2 the IDT-vectoring info."""
    return (
        f"vcpu {vcpu_id} reason {reason_name(exit)} rip 0x{rip:x} "
        f"info1 0x{exit.qualification:016x} info2 0x{exit.idt_vectoring_info:016x} "
        f"intr_info 0x{exit.intr_info:08x} error_code 0x{exit.intr_error_code:08x}"
    )


class TextTrace(Instrument):
    """Writes one line per event, as ``trace-cmd report`` shows them."""

    def __init__(self, write: Write) -> None:
        self.write = write

    def line(self, vcpu_id: int, now: int, event: str, text: str) -> None:
        """Write one event with ftrace's prefix in front."""
        stamp = f"{now // 1_000_000_000}.{now // 1000 % 1_000_000:06}"
        self.write(f"vmxsim-{THREAD_BASE + vcpu_id} [{vcpu_id:03}] {stamp}: {event}: {text}\n")

    def vm_entry(self, vcpu_id: int, now: int, rip: int) -> None:
        """kvm_entry."""
        self.line(vcpu_id, now, "kvm_entry", f"vcpu {vcpu_id}, rip 0x{rip:x}")

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """kvm_exit."""
        self.line(vcpu_id, now, "kvm_exit", exit_line(vcpu_id, rip, exit))

    def pio(
        self, vcpu_id: int, now: int, is_write: bool, port: int, size: int, count: int, value: int
    ) -> None:
        """kvm_pio."""
        text = f"pio_{_rw(is_write)} at 0x{port:x} size {size} count {count} val 0x{value:x}"
        self.line(vcpu_id, now, "kvm_pio", text + (" (...)" if count > 1 else ""))

    def mmio(
        self, vcpu_id: int, now: int, is_write: bool, length: int, gpa: int, value: int
    ) -> None:
        """kvm_mmio."""
        text = f"mmio {_rw(is_write)} len {length} gpa 0x{gpa:x} val 0x{value:x}"
        self.line(vcpu_id, now, "kvm_mmio", text)

    def msr(
        self, vcpu_id: int, now: int, is_write: bool, index: int, value: int, fault: bool
    ) -> None:
        """kvm_msr."""
        text = f"msr_{_rw(is_write)} {index:x} = 0x{value:x}" + (" (#GP)" if fault else "")
        self.line(vcpu_id, now, "kvm_msr", text)

    def cr(self, vcpu_id: int, now: int, is_write: bool, number: int, value: int) -> None:
        """kvm_cr."""
        self.line(vcpu_id, now, "kvm_cr", f"cr_{_rw(is_write)} {number:x} = 0x{value:x}")

    def cpuid(
        self,
        vcpu_id: int,
        now: int,
        function: int,
        index: int,
        eax: int,
        ebx: int,
        ecx: int,
        edx: int,
        found: bool,
    ) -> None:
        """kvm_cpuid."""
        text = f"func {function:x} idx {index:x} rax {eax:x} rbx {ebx:x} rcx {ecx:x} rdx {edx:x}"
        told = "found" if found else "not found"
        self.line(vcpu_id, now, "kvm_cpuid", f"{text}, cpuid entry {told}")

    def inj_virq(self, vcpu_id: int, now: int, vector: int) -> None:
        """kvm_inj_virq."""
        self.line(vcpu_id, now, "kvm_inj_virq", f"irq {vector}")

    def inj_exception(self, vcpu_id: int, now: int, vector: int, error_code: int | None) -> None:
        """kvm_inj_exception. Linux prints error code 0 for an exception without one."""
        text = f"#{vector_name(vector)} (0x{error_code or 0:x})"
        self.line(vcpu_id, now, "kvm_inj_exception", text)

    def userspace_exit(self, vcpu_id: int, now: int, exit_reason: int) -> None:
        """kvm_userspace_exit. A kick reads ``restart (4)``: KVM_RUN returned -EINTR."""
        if exit_reason == KVM_EXIT_INTR:
            text = f"reason restart ({EINTR})"
        else:
            text = f"reason {kvm_exit_name(exit_reason)} ({exit_reason})"
        self.line(vcpu_id, now, "kvm_userspace_exit", text)


class JsonTrace(Instrument):
    """Writes one JSON object per event: ``t`` in nanoseconds, ``vcpu``, ``event``, its fields."""

    def __init__(self, write: Write) -> None:
        self.write = write

    def record(self, event: str, vcpu_id: int, now: int, **fields: int | str | bool | None) -> None:
        """Write one object on one line."""
        row = {"t": now, "vcpu": vcpu_id, "event": event, **fields}
        self.write(json.dumps(row, separators=(",", ":")) + "\n")

    def vm_entry(self, vcpu_id: int, now: int, rip: int) -> None:
        """kvm_entry."""
        self.record("kvm_entry", vcpu_id, now, rip=rip)

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """kvm_exit, with every field that the processor recorded."""
        self.record(
            "kvm_exit",
            vcpu_id,
            now,
            rip=rip,
            reason=reason_name(exit),
            number=exit.reason & 0xFFFF,
            failed_entry=exit.failed_entry,
            qualification=exit.qualification,
            instruction_length=exit.instruction_length,
            instruction_info=exit.instruction_info,
            guest_linear_address=exit.guest_linear_address,
            guest_physical_address=exit.guest_physical_address,
            intr_info=exit.intr_info,
            intr_error_code=exit.intr_error_code,
            idt_vectoring_info=exit.idt_vectoring_info,
            idt_vectoring_error_code=exit.idt_vectoring_error_code,
        )

    def pio(
        self, vcpu_id: int, now: int, is_write: bool, port: int, size: int, count: int, value: int
    ) -> None:
        """kvm_pio."""
        self.record(
            "kvm_pio", vcpu_id, now, write=is_write, port=port, size=size, count=count, value=value
        )

    def mmio(
        self, vcpu_id: int, now: int, is_write: bool, length: int, gpa: int, value: int
    ) -> None:
        """kvm_mmio."""
        self.record("kvm_mmio", vcpu_id, now, write=is_write, len=length, gpa=gpa, value=value)

    def msr(
        self, vcpu_id: int, now: int, is_write: bool, index: int, value: int, fault: bool
    ) -> None:
        """kvm_msr."""
        self.record(
            "kvm_msr", vcpu_id, now, write=is_write, index=index, value=value, fault=fault
        )

    def cr(self, vcpu_id: int, now: int, is_write: bool, number: int, value: int) -> None:
        """kvm_cr."""
        self.record("kvm_cr", vcpu_id, now, write=is_write, cr=number, value=value)

    def cpuid(
        self,
        vcpu_id: int,
        now: int,
        function: int,
        index: int,
        eax: int,
        ebx: int,
        ecx: int,
        edx: int,
        found: bool,
    ) -> None:
        """kvm_cpuid."""
        leaf = {"function": function, "index": index, "found": found}
        self.record("kvm_cpuid", vcpu_id, now, **leaf, eax=eax, ebx=ebx, ecx=ecx, edx=edx)

    def inj_virq(self, vcpu_id: int, now: int, vector: int) -> None:
        """kvm_inj_virq."""
        self.record("kvm_inj_virq", vcpu_id, now, vector=vector)

    def inj_exception(self, vcpu_id: int, now: int, vector: int, error_code: int | None) -> None:
        """kvm_inj_exception."""
        self.record("kvm_inj_exception", vcpu_id, now, vector=vector, error_code=error_code)

    def userspace_exit(self, vcpu_id: int, now: int, exit_reason: int) -> None:
        """kvm_userspace_exit."""
        name = kvm_exit_name(exit_reason)
        self.record("kvm_userspace_exit", vcpu_id, now, reason=name, number=exit_reason)


class FirstExits(TextTrace):
    """Keeps the lines of the first ``limit`` exits, for a run whose length nobody knows."""

    def __init__(self, limit: int) -> None:
        self.lines: list[str] = []
        self.limit = limit
        self.exits = 0
        self.counts: dict[str, int] = {}
        super().__init__(self.lines.append)

    def line(self, vcpu_id: int, now: int, event: str, text: str) -> None:
        """Keep the line, while the limit is not passed; entries say nothing new here."""
        if self.exits <= self.limit and event != "kvm_entry":
            super().line(vcpu_id, now, event, text)

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """Count it, and keep it when it is among the first."""
        self.exits += 1
        name = reason_name(exit)
        self.counts[name] = self.counts.get(name, 0) + 1
        if self.exits <= self.limit:
            super().vm_exit(vcpu_id, now, rip, exit)

    def report(self) -> str:
        """Give the lines that were kept, how many exits were not, and all of them by reason."""
        told = list(self.lines)
        if self.exits > self.limit:
            told.append(f"... and {self.exits - self.limit} more (-v shows every one)\n")
        counts = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count} {name}" for name, count in counts)
        noun = "VM exit" if self.exits == 1 else "VM exits"
        told.append(f"{self.exits} {noun}" + (f": {reasons}\n" if reasons else "\n"))
        return "".join(told)


class TraceFile:
    """The file behind ``--trace``: whatever the disk refuses is an InputError that names it."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            # Closed by close(): the run lies between.
            self.file = open(name, "w", encoding="ascii", newline="\n")  # noqa: SIM115
        except OSError as error:
            raise self._refused(error) from error

    def instrument(self) -> Instrument:
        """JSON lines when the file is named ``.jsonl``, ftrace text otherwise."""
        return JsonTrace(self.write) if self.name.endswith(".jsonl") else TextTrace(self.write)

    def write(self, text: str) -> None:
        """Write, buffered: a full disk may show later, or on close()."""
        try:
            self.file.write(text)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Flush and close. Closing twice does nothing."""
        try:
            self.file.close()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> InputError:
        return InputError(f"cannot write the trace to {self.name}: {error.strerror}")


def vector_name(vector: int) -> str:
    """GP for 13; the number for a vector the manual does not name."""
    try:
        return Vector(vector).name
    except ValueError:
        return str(vector)


def _rw(is_write: bool) -> str:
    return "write" if is_write else "read"
