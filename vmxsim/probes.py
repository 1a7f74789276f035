"""Watching a run costs nothing until someone watches: per event one tuple, empty by default.

The floors test ``if probes.vm_exit:`` and loop over it. An instrument's methods that it does not
override are never called, so an instrument pays only for what it wants to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ExitRecord(Protocol):
    """What a VM exit looks like from here; the record itself belongs to a floor above."""

    @property
    def reason(self) -> int:
        """Basic exit reason."""

    @property
    def qualification(self) -> int:
        """Exit qualification."""

    @property
    def instruction_length(self) -> int:
        """VM-exit instruction length."""

    @property
    def instruction_info(self) -> int:
        """VM-exit instruction information."""

    @property
    def guest_linear_address(self) -> int:
        """Guest-linear address."""

    @property
    def guest_physical_address(self) -> int:
        """Guest-physical address."""

    @property
    def intr_info(self) -> int:
        """VM-exit interruption information."""

    @property
    def intr_error_code(self) -> int:
        """VM-exit interruption error code."""

    @property
    def idt_vectoring_info(self) -> int:
        """IDT-vectoring information."""

    @property
    def idt_vectoring_error_code(self) -> int:
        """IDT-vectoring error code."""

    @property
    def failed_entry(self) -> bool:
        """Whether the VM entry failed (bit 31 of the exit reason field)."""


class Instrument:
    """Override what you want to see. ``now`` is the machine's clock, in nanoseconds."""

    def vm_entry(self, vcpu_id: int, now: int, rip: int) -> None:
        """The guest is about to run."""

    def vm_exit(self, vcpu_id: int, now: int, rip: int, exit: ExitRecord) -> None:
        """The guest stopped; nobody has looked at the exit yet."""

    def handled(
        self, vcpu_id: int, exit: ExitRecord, in_kernel: bool, elapsed_host_ns: int
    ) -> None:
        """An exit is dealt with, by the kernel or (in_kernel False) by leaving for userspace."""

    def to_userspace(self, vcpu_id: int, exit_reason: int) -> None:
        """KVM_RUN is about to return. Without the time of day, as is from_userspace."""

    def from_userspace(self, vcpu_id: int) -> None:
        """KVM_RUN was called."""

    def pio(
        self, vcpu_id: int, now: int, is_write: bool, port: int, size: int, count: int, value: int
    ) -> None:
        """Port input or output; for strings, value is the first element."""

    def fast_pio(self, vcpu_id: int, is_write: bool, port: int, elapsed_host_ns: int) -> None:
        """The engine answered an in-kernel port by itself: an I/O exit, and all that is told of it.

        It does so while nobody watches vm_entry, vm_exit or pio, and whoever watches handled has
        this method too. There is no time of day: reading it would cost as much as the access.
        """

    def mmio(
        self, vcpu_id: int, now: int, is_write: bool, length: int, gpa: int, value: int
    ) -> None:
        """An access to guest-physical memory that is no RAM."""

    def unclaimed(
        self,
        vcpu_id: int,
        now: int,
        is_port: bool,
        is_write: bool,
        address: int,
        size: int,
        value: int,
    ) -> None:
        """Nobody claims this port or guest-physical address; a read gave all ones."""

    def msr(
        self, vcpu_id: int, now: int, is_write: bool, index: int, value: int, fault: bool
    ) -> None:
        """RDMSR or WRMSR was handled; fault says that the guest got #GP."""

    def cr(self, vcpu_id: int, now: int, is_write: bool, number: int, value: int) -> None:
        """A control register access was handled."""

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
        """CPUID was answered; found says whether the leaf is in the table."""

    def inj_virq(self, vcpu_id: int, now: int, vector: int) -> None:
        """An interrupt will be injected at the next entry."""

    def inj_exception(self, vcpu_id: int, now: int, vector: int, error_code: int | None) -> None:
        """An exception will be injected at the next entry."""

    def userspace_exit(self, vcpu_id: int, now: int, exit_reason: int) -> None:
        """Vcpu.run() returns with this KVM_EXIT_* number."""

    def userspace_entry(self, vcpu_id: int, now: int) -> None:
        """Userspace called Vcpu.run()."""


class Probes:
    """Who watches what: for each method of Instrument a tuple of bound methods to call."""

    def __init__(self) -> None:
        self.vm_entry: tuple[Callable[[int, int, int], None], ...] = ()
        self.vm_exit: tuple[Callable[[int, int, int, ExitRecord], None], ...] = ()
        self.handled: tuple[Callable[[int, ExitRecord, bool, int], None], ...] = ()
        self.to_userspace: tuple[Callable[[int, int], None], ...] = ()
        self.from_userspace: tuple[Callable[[int], None], ...] = ()
        self.pio: tuple[Callable[[int, int, bool, int, int, int, int], None], ...] = ()
        self.fast_pio: tuple[Callable[[int, bool, int, int], None], ...] = ()
        self.mmio: tuple[Callable[[int, int, bool, int, int, int], None], ...] = ()
        self.unclaimed: tuple[
            Callable[[int, int, bool, bool, int, int, int], None], ...
        ] = ()
        self.msr: tuple[Callable[[int, int, bool, int, int, bool], None], ...] = ()
        self.cr: tuple[Callable[[int, int, bool, int, int], None], ...] = ()
        self.cpuid: tuple[Callable[[int, int, int, int, int, int, int, int, bool], None], ...] = ()
        self.inj_virq: tuple[Callable[[int, int, int], None], ...] = ()
        self.inj_exception: tuple[Callable[[int, int, int, int | None], None], ...] = ()
        self.userspace_exit: tuple[Callable[[int, int, int], None], ...] = ()
        self.userspace_entry: tuple[Callable[[int, int], None], ...] = ()

        self.generation = 0
        """Counts add() and remove(), for those who keep what they found here."""
        self.watching = False
        """Whether anybody watches anything."""

    def add(self, instrument: Instrument) -> None:
        """Start calling the methods that the instrument overrides."""
        self.generation += 1
        for event in self._events():
            method = getattr(instrument, event)
            if getattr(method, "__func__", method) is not getattr(Instrument, event):
                setattr(self, event, (*getattr(self, event), method))
                self.watching = True

    def remove(self, instrument: Instrument) -> None:
        """Stop calling the instrument. One that was never added is no error."""
        self.generation += 1
        for event in self._events():
            method = getattr(instrument, event)
            setattr(self, event, tuple(m for m in getattr(self, event) if m != method))
        self.watching = any(getattr(self, event) for event in self._events())

    def _events(self) -> list[str]:
        return [name for name, methods in vars(self).items() if isinstance(methods, tuple)]
