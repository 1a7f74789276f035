"""Fixtures for tests that need a whole machine, a clock, or a record of what happened when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from vmxsim.clock import VirtualClock
from vmxsim.probes import Instrument

if TYPE_CHECKING:
    from vmxsim.vmm.machine import Machine


class Log(Instrument):
    """Interrupts, exceptions and userspace exits as (virtual nanoseconds, words)."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def inj_virq(self, vcpu_id: int, now: int, vector: int) -> None:
        self.lines.append((now, f"irq {vector}"))

    def inj_exception(self, vcpu_id: int, now: int, vector: int, error_code: int | None) -> None:
        self.lines.append((now, f"exception {vector}"))

    def userspace_exit(self, vcpu_id: int, now: int, exit_reason: int) -> None:
        self.lines.append((now, f"userspace {exit_reason}"))


@pytest.fixture
def clock() -> VirtualClock:
    """Virtual time: it moves when charge() or jump_to() says so."""
    return VirtualClock()


@pytest.fixture
def log() -> Log:
    """An instrument to add to a machine's probes."""
    return Log()


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    """Make machines: ``machine(irqchip=True)``; every option of Config, none has a default here."""
    from vmxsim.vmm.config import Config
    from vmxsim.vmm.machine import Machine

    made: list[Machine] = []

    def make(**options: object) -> Machine:
        made.append(Machine(Config(**{"timeout_s": 30.0, **options})))
        return made[-1]

    yield make
    for one in made:
        one.close()
