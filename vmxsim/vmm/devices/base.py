"""What every device is: offsets in, values out. It is told no address, no bus and no machine."""

from __future__ import annotations

from collections.abc import Callable

ReadFn = Callable[[int, int], int]
"""(offset, size in bytes) to the value."""
WriteFn = Callable[[int, int, int], None]
"""(offset, size in bytes, value)."""
IrqLine = Callable[[int], None]
"""An interrupt line: called with its level, 0 or 1."""


def unconnected(level: int) -> None:
    """An interrupt line that ends nowhere."""


class Device:
    """A chip. Subclasses override what they have; what they lack reads as all ones.

    Devices are called with the machine's lock held, from any vCPU's thread.
    """

    max_access: int = 1
    """The widest access it takes at once, in bytes; wider ones reach it split into bytes."""

    def read(self, offset: int, size: int) -> int:
        """Answer an access. Reading may have side effects, as on the real chip."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Take an access."""

    def reset(self) -> None:
        """Go back to the state after power-on; what is wired to the device stays wired."""
