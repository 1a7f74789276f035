"""The debug console: one port that prints what is written and says 0xe9 when read.

Bochs put it at port 0xe9, SeaBIOS and OVMF use 0x402. QEMU: hw/char/debugcon.c.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.vmm.devices.base import Device

READBACK = 0xE9
"""How a guest finds out that the port is there."""


class DebugCon(Device):
    """Output only; wider accesses print one byte after another, like QEMU's."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self.sink = sink

    def read(self, offset: int, size: int) -> int:
        """0xe9."""
        return READBACK

    def write(self, offset: int, size: int, value: int) -> None:
        """Print the low byte."""
        self.sink(bytes((value & 0xFF,)))
