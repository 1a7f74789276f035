"""isa-debug-exit: writing v ends the run with status (v << 1) | 1, so that 0 is never a status.

QEMU: hw/misc/debugexit.c, there with `-device isa-debug-exit,iobase=0xf4,iosize=4`.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.vmm.devices.base import Device


class DebugExit(Device):
    """Four ports; any of them, written with 1, 2 or 4 bytes, ends the run. Reads give 0."""

    max_access = 4

    def __init__(self, exit: Callable[[int], None]) -> None:
        self.exit = exit
        """Called with the value written."""

    def read(self, offset: int, size: int) -> int:
        """Give 0, as QEMU's does."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the run with a value."""
        self.exit(value)
