"""Exceptions and interrupts, and the one 32-bit format in which VMX talks about them.

SDM Vol. 3, "Exception and Interrupt Vectors", "Interrupt 8 - Double Fault Exception (#DF)",
"VM-Entry Controls for Event Injection", "Information for VM Exits Due to Vectored Events":

    31 valid   12 NMI unblocking   11 error code   10:8 type   7:0 vector
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, Literal, NamedTuple


class Vector(IntEnum):
    """Vectors that the architecture defines."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    COPROCESSOR_OVERRUN = 9
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21
    HV = 28
    VC = 29
    SX = 30


class EventType(IntEnum):
    """Interruption type, bits 10:8."""

    EXTERNAL_INTERRUPT = 0
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER = 7


class InterruptionInfo:
    """Bits of the interruption-information fields."""

    VECTOR = 0xFF
    TYPE = 7 << 8
    TYPE_SHIFT = 8
    ERROR_CODE = 1 << 11
    NMI_UNBLOCKING = 1 << 12
    """In VM-exit information: IRET was unblocking NMIs. Undefined in IDT-vectoring information."""
    VALID = 1 << 31

    RESERVED = 0x7FFF_F000
    """Bits 30:12, which must be 0 at VM entry."""


_WITH_ERROR_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21})


def has_error_code(vector: int) -> bool:
    """Whether this exception pushes an error code (in protected mode; real mode never does)."""
    return vector in _WITH_ERROR_CODE


class Event(NamedTuple):
    """Something to deliver through the IDT, or that was being delivered.

    ``length`` is the instruction's, for software interrupts and exceptions. ``address`` is what
    goes with it: CR2 for #PF, the DR6 bits to set for #DB.
    """

    type: EventType
    vector: int
    error_code: int | None = None
    length: int = 0
    address: int | None = None

    @classmethod
    def from_interruption_info(cls, info: int, error_code: int = 0, length: int = 0) -> Event:
        """Read an interruption-information field. The caller has looked at its valid bit."""
        return cls(
            EventType(info >> 8 & 7),
            info & 0xFF,
            error_code if info & InterruptionInfo.ERROR_CODE else None,
            length,
        )

    @property
    def software(self) -> bool:
        """Whether an instruction asked for it: INT n, INT1, INT3 or INTO."""
        return self.type in (
            EventType.SOFTWARE_INTERRUPT,
            EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
            EventType.SOFTWARE_EXCEPTION,
        )


def interruption_info(event: Event) -> int:
    """The event as an interruption-information field, with its valid bit."""
    info = InterruptionInfo.VALID | event.type << 8 | event.vector
    return info if event.error_code is None else info | InterruptionInfo.ERROR_CODE


def fault(vector: int, error_code: int | None = None, address: int | None = None) -> Event:
    """A hardware exception."""
    return Event(EventType.HARDWARE_EXCEPTION, vector, error_code, 0, address)


class ExceptionClass(Enum):
    """How exceptions combine when one arises during delivery of another."""

    BENIGN = "handled one after the other"
    CONTRIBUTORY = "two of them make a double fault"
    PAGE_FAULT = "a double fault after a page fault, or with a contributory exception after it"


class Triple(Enum):
    """The outcome of a fault while a double fault is delivered: the processor shuts down."""

    TRIPLE = "triple fault"


TRIPLE: Final = Triple.TRIPLE

_CONTRIBUTORY: Final = frozenset({0, 10, 11, 12, 13, 21})
_PAGE_FAULTS: Final = frozenset({14, 20})


def exception_class(vector: int) -> ExceptionClass:
    """The class of an exception's vector. Interrupts are benign: pass no vector of theirs."""
    if vector in _CONTRIBUTORY:
        return ExceptionClass.CONTRIBUTORY
    return ExceptionClass.PAGE_FAULT if vector in _PAGE_FAULTS else ExceptionClass.BENIGN


def combine(first: Event, second: int) -> int | Literal[Triple.TRIPLE]:
    """What exception ``second``, raised while ``first`` was delivered, turns into.

    Gives the vector to deliver (``second`` itself, or #DF) or TRIPLE. Only hardware exceptions
    combine: after an interrupt or INT n the second exception stands by itself.
    """
    if first.type is not EventType.HARDWARE_EXCEPTION:
        return second
    kind = exception_class(second)
    if first.vector == Vector.DF:
        return second if kind is ExceptionClass.BENIGN else TRIPLE
    earlier = exception_class(first.vector)
    if earlier is ExceptionClass.CONTRIBUTORY and kind is ExceptionClass.CONTRIBUTORY:
        return Vector.DF
    if earlier is ExceptionClass.PAGE_FAULT and kind is not ExceptionClass.BENIGN:
        return Vector.DF
    return second
