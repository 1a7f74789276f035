"""What rows of the intercept table are made of: their types, and the rows for the simple cases.

Exits that say no more than their reason and instruction length are built once, at import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vmxsim.arch.events import Event, EventType, Vector
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, MemoryTrap, Trap
from vmxsim.vmx.ept import ept_violation
from vmxsim.vmx.guest_access import GuestFault
from vmxsim.vmx.records import VmExit
from vmxsim.vmx.vmcs import Vmcs

Outcome: TypeAlias = VmExit | Event | None
Handler: TypeAlias = Callable[[Trap, Vmcs, Cpu], Outcome]
InsnHandler: TypeAlias = Callable[[InsnTrap, Vmcs, Cpu], Outcome]


def stopped_at(stopped: GuestFault, cpu: Cpu) -> VmExit | Event:
    """What a row answers when one of its own checks or memory accesses stops it."""
    outcome = stopped.seen_by(cpu)
    return ept_violation(outcome) if isinstance(outcome, MemoryTrap) else outcome


def fault_first(handler: InsnHandler) -> InsnHandler:
    """A row whose checks raise GuestFault."""

    def checked(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        try:
            return handler(trap, vmcs, cpu)
        except GuestFault as stopped:
            return stopped_at(stopped, cpu)

    return checked


def prebuilt(reason: ExitReason) -> tuple[VmExit, ...]:
    """One exit for every instruction length."""
    return tuple(VmExit(reason, 0, length) for length in range(16))


def never(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """No control makes it exit."""
    return None


def undefined(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """This processor does not have it."""
    return Event(EventType.HARDWARE_EXCEPTION, Vector.UD)


def always(reason: ExitReason) -> InsnHandler:
    """No control is needed."""
    exits = prebuilt(reason)

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        return exits[trap[2][2]]

    return handler


def if_primary(bit: int, reason: ExitReason) -> InsnHandler:
    """A primary processor-based control decides."""
    exits = prebuilt(reason)

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        return exits[trap[2][2]] if vmcs.cpu_based & bit else None

    return handler


def if_secondary(bit: int, reason: ExitReason) -> InsnHandler:
    """A secondary processor-based control decides."""
    exits = prebuilt(reason)

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        return exits[trap[2][2]] if vmcs.secondary & bit else None

    return handler
