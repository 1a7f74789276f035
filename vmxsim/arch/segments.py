"""Segment registers in the VMCS's form, and descriptors and gates in memory's.

SDM Vol. 3, "Segment Descriptors", "System Descriptor Types", "IDT Descriptors",
"64-Bit Mode IDT"; "Guest Register State" for the access-rights layout:

     16  15  14  13  12  11..8  7   6:5   4   3:0
    UNUS  G  D/B  L  AVL   0    P   DPL   S   TYPE
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Segment(IntEnum):
    """Segment registers in the order that instructions and the VMCS encode."""

    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5
    LDTR = 6
    TR = 7


class AccessRights:
    """Bits of the VMCS access-rights format, and common values."""

    TYPE = 0xF
    ACCESSED = 1 << 0
    WRITABLE = 1 << 1
    """Data segments; for code segments the same bit says readable."""
    READABLE = 1 << 1
    EXPAND_DOWN = 1 << 2
    CONFORMING = 1 << 2
    CODE = 1 << 3
    S = 1 << 4
    DPL = 3 << 5
    DPL_SHIFT = 5
    P = 1 << 7
    AVL = 1 << 12
    L = 1 << 13
    DB = 1 << 14
    G = 1 << 15
    UNUSABLE = 1 << 16

    RESERVED = 0xFFFE_0F00

    REAL_DATA = 0x93
    REAL_CODE = 0x9B
    FLAT_DATA32 = 0xC093
    FLAT_CODE32 = 0xC09B
    FLAT_CODE64 = 0xA09B
    LDT = 0x82
    BUSY_TSS16 = 0x83
    BUSY_TSS = 0x8B


class SystemType:
    """Types of system descriptors and gates (S = 0)."""

    TSS16 = 1
    LDT = 2
    TSS16_BUSY = 3
    CALL_GATE16 = 4
    TASK_GATE = 5
    INTERRUPT_GATE16 = 6
    TRAP_GATE16 = 7
    TSS = 9
    TSS_BUSY = 11
    CALL_GATE = 12
    INTERRUPT_GATE = 14
    TRAP_GATE = 15


class SegmentRegister(NamedTuple):
    """A segment register with its hidden part; limit is in bytes, already scaled by G."""

    selector: int
    base: int
    limit: int
    access_rights: int

    @property
    def unusable(self) -> bool:
        """Whether the register holds no segment: using it faults."""
        return self.access_rights & AccessRights.UNUSABLE != 0

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.access_rights >> 5 & 3

    @property
    def type(self) -> int:
        """Descriptor type, bits 3:0."""
        return self.access_rights & 0xF


class TableRegister(NamedTuple):
    """GDTR or IDTR."""

    base: int
    limit: int


NULL_SEGMENT = SegmentRegister(0, 0, 0, AccessRights.UNUSABLE)
"""What a null selector leaves in a register."""


def real_mode_segment(selector: int, code: bool = False) -> SegmentRegister:
    """What real mode's loading of a selector leaves in a register."""
    rights = AccessRights.REAL_CODE if code else AccessRights.REAL_DATA
    return SegmentRegister(selector, selector << 4, 0xFFFF, rights)


class Descriptor(NamedTuple):
    """A segment or system descriptor; limit in bytes, rights in VMCS form."""

    base: int
    limit: int
    access_rights: int

    @classmethod
    def from_bytes(cls, raw: bytes) -> Descriptor:
        """Parse 8 bytes of a GDT or LDT, or 16 for a system descriptor of IA-32e mode."""
        low = int.from_bytes(raw[:8], "little")
        base = low >> 16 & 0xFF_FFFF | low >> 32 & 0xFF00_0000
        if len(raw) >= 16:
            base |= int.from_bytes(raw[8:12], "little") << 32
        limit = low & 0xFFFF | low >> 32 & 0xF_0000
        rights = low >> 40 & 0xF0FF
        if rights & AccessRights.G:
            limit = limit << 12 | 0xFFF
        return cls(base, limit, rights)

    def to_bytes(self, size: int = 8) -> bytes:
        """The descriptor as memory has it. With G, limit must end in 0xfff."""
        limit = self.limit >> 12 if self.access_rights & AccessRights.G else self.limit
        low = limit & 0xFFFF | (limit & 0xF_0000) << 32
        low |= (self.base & 0xFF_FFFF) << 16 | (self.base & 0xFF00_0000) << 32
        low |= (self.access_rights & 0xF0FF) << 40
        raw = low.to_bytes(8, "little")
        return raw if size == 8 else raw + (self.base >> 32).to_bytes(8, "little")

    @property
    def present(self) -> bool:
        """Whether P is set."""
        return self.access_rights & AccessRights.P != 0

    @property
    def system(self) -> bool:
        """Whether it describes a TSS, an LDT or a gate rather than code or data."""
        return self.access_rights & AccessRights.S == 0

    @property
    def code(self) -> bool:
        """Whether it describes code."""
        return self.access_rights & (AccessRights.S | AccessRights.CODE) == 0x18

    @property
    def conforming(self) -> bool:
        """Whether it is conforming code."""
        return self.access_rights & 0x1C == 0x1C

    @property
    def writable(self) -> bool:
        """Whether it is writable data."""
        return self.access_rights & 0x1A == 0x12

    @property
    def readable(self) -> bool:
        """Whether it is data, or readable code."""
        return self.access_rights & 0x18 == 0x10 or self.access_rights & 0x1A == 0x1A

    @property
    def type(self) -> int:
        """Type, bits 3:0."""
        return self.access_rights & 0xF

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.access_rights >> 5 & 3

    def register(self, selector: int) -> SegmentRegister:
        """The segment register that loading this descriptor gives."""
        return SegmentRegister(selector, self.base, self.limit, self.access_rights)


class Gate(NamedTuple):
    """An interrupt, trap, task or call gate."""

    offset: int
    selector: int
    type: int
    dpl: int
    present: bool
    ist: int = 0
    system: bool = True
    """S = 0; an IDT entry with S = 1 is no gate at all, whatever its type says."""

    @classmethod
    def from_bytes(cls, raw: bytes) -> Gate:
        """Parse 8 bytes of an IDT, or 16 of IA-32e mode's."""
        low = int.from_bytes(raw[:8], "little")
        offset = low & 0xFFFF | low >> 32 & 0xFFFF_0000
        ist = 0
        if len(raw) >= 16:
            offset |= int.from_bytes(raw[8:12], "little") << 32
            ist = low >> 32 & 7
        system = not low >> 44 & 1
        present = bool(low >> 47 & 1)
        return cls(offset, low >> 16 & 0xFFFF, low >> 40 & 0xF, low >> 45 & 3, present, ist, system)

    def to_bytes(self, size: int = 8) -> bytes:
        """The gate as memory has it; 16 bytes for IA-32e mode."""
        low = self.offset & 0xFFFF | self.selector << 16 | (self.offset & 0xFFFF_0000) << 32
        low |= (self.type & 0xF) << 40 | (self.dpl & 3) << 45 | int(self.present) << 47
        low |= int(not self.system) << 44
        if size == 8:
            return low.to_bytes(8, "little")
        low |= (self.ist & 7) << 32
        return low.to_bytes(8, "little") + (self.offset >> 32).to_bytes(8, "little")
