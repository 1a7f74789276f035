"""What every loader returns: where which bytes go, and what the image wishes of its machine."""

from __future__ import annotations

from typing import NamedTuple

from vmxsim.errors import InputError
from vmxsim.vmm.config import Mode


class Segment(NamedTuple):
    """A run of bytes at a guest-physical address; `size` beyond the bytes is filled with zeros."""

    gpa: int
    code: bytes
    size: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.gpa + self.size


class Image(NamedTuple):
    """A guest program, placed. None: the image does not say."""

    name: str
    segments: tuple[Segment, ...]
    entry: int
    mode: Mode
    irqchip: bool | None = None
    memory: int | None = None

    def overlaps(self, gpa: int, size: int) -> bool:
        """Whether any of the image stands in this range."""
        return any(part.gpa < gpa + size and gpa < part.end for part in self.segments)

    def describe(self) -> str:
        """Where it stands, for messages: 0x7c00..0x7c3f, 0x100000..0x1000ff."""
        return ", ".join(f"{part.gpa:#x}..{part.end - 1:#x}" for part in self.segments)

    def check(self, memory: int) -> None:
        """Refuse an image that does not fit into the memory, or starts where nothing was loaded."""
        for part in self.segments:
            if part.end > memory:
                raise InputError(
                    f"{self.name}: {part.gpa:#x}..{part.end - 1:#x} does not fit into "
                    f"{memory:#x} bytes of memory"
                )
        if not self.overlaps(self.entry, 1):
            raise InputError(
                f"{self.name}: nothing is loaded at the entry {self.entry:#x} "
                f"(the image stands at {self.describe()})"
            )
