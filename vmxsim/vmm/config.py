"""The frozen configuration of one machine: everything that can be chosen, with its default.

None means "what the image says, or else the default of its mode", so that a listing can carry its
own settings and a caller can still overrule each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

MIB = 1 << 20
DEFAULT_MEMORY = 64 * MIB

Sink = Callable[[bytes], object]
"""Where a device's output goes: called with the bytes as they come, from the vCPU's thread."""


class Mode(Enum):
    """The processor mode a guest starts in; what it does then is its own business."""

    REAL = "real"
    PROTECTED = "protected"
    LONG = "long"


class ClockKind(Enum):
    """Whose time the guest sees."""

    VIRTUAL = "virtual"
    HOST = "host"


class Config(NamedTuple):
    """What a machine is made of. Change one thing with ``config._replace(memory=1 << 20)``."""

    memory: int | None = None
    """Guest RAM in bytes, from address 0 up; whole pages. None: the image's wish, or 64 MiB."""

    mode: Mode | None = None
    """Start state; None: the image's, or real mode."""

    irqchip: bool | None = None
    """Interrupt controllers and timer in the kernel; None: the image's wish, or none of them."""

    clock: ClockKind = ClockKind.VIRTUAL
    load_address: int | None = None
    """Where a flat image or a listing goes; None: the image's wish, or boot.DEFAULT_BASE."""

    entry: int | None = None
    """Where the guest starts; None: the image's wish, or the load address."""

    max_exits: int | None = None
    """End the run after so many VM exits (userspace exits, where the kernel shows no others)."""

    timeout_s: float | None = None
    """End the run after so many seconds of the host's time."""

    strict: bool = False
    """Raise UnclaimedAccess when the guest touches a port or an address that nobody claims."""

    serial: Sink | None = None
    """Output of the first serial port; None: only collected in Machine.serial_output."""

    debugcon: Sink | None = None
    """Output of ports 0xe9 and 0x402; None: only collected in Machine.debugcon_output."""

    trace: bool = False
    """Keep every VM exit in Machine.trace."""


MachineConfig = Config
