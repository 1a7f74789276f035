"""The diagnostic port 0x80: takes power-on codes, and the delays that guests make with it.

QEMU: ioport80_io_ops in hw/i386/pc.c, where reads float high and writes do nothing.
"""

from __future__ import annotations

from vmxsim.vmm.devices.base import Device


class Port80(Device):
    """Remembers the last code, for whoever debugs a guest; the guest itself reads 0xff."""

    def __init__(self) -> None:
        self.code = 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a code."""
        self.code = value

    def reset(self) -> None:
        """Forget the code."""
        self.code = 0
