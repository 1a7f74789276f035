"""A page walk as a pure function: no engine, no state, memory through the caller's two functions.

SDM Vol. 3, chapter "Paging": 32-bit paging with PSE-36, PAE paging, 4-level and 5-level paging;
"Access Rights", "Page-Fault Exceptions", "Accessed and Dirty Flags". PCIDs and protection keys
are not modelled. PAE's PDPTEs are read from memory on each walk, not from registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmxsim.arch.registers import Cr0, Cr4, Efer

Reader = Callable[[int, int], int]
"""(guest-physical address, 4 or 8) -> entry. Raises LookupError where nothing backs the address."""

Writer = Callable[[int, int, int], None]
"""(guest-physical address, 4 or 8, entry) -> None."""


class Access:
    """What a walk is for."""

    READ = 0
    WRITE = 1
    EXECUTE = 2


class Entry:
    """Bits of a paging-structure entry."""

    P = 1 << 0
    RW = 1 << 1
    US = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PS = 1 << 7
    G = 1 << 8
    XD = 1 << 63


class ErrorCode:
    """Bits of a page fault's error code."""

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    RSVD = 1 << 3
    ID = 1 << 4
    PK = 1 << 5
    SS = 1 << 6
    SGX = 1 << 15


class PageFault(NamedTuple):
    """A translation that faults: what goes into CR2, and the error code."""

    address: int
    error_code: int


class Translation(NamedTuple):
    """A translation that succeeds; the rights are those of the entries, whatever CR0.WP says."""

    gpa: int
    page_size: int
    writable: bool = True
    user: bool = True
    executable: bool = True
    entries: tuple[tuple[int, int, int], ...] = ()
    """(guest-physical address, width, value) of each entry used, before A and D were set."""


class _Level(NamedTuple):
    shift: int
    index_mask: int
    width: int
    may_map_page: bool
    reserved_as_table: int = 0
    reserved_as_page: int = 0
    has_rights: bool = True


_PTE = _Level(12, 0x1FF, 8, True)
_PDE = _Level(21, 0x1FF, 8, True, 0, 0x1F_E000)
_PDPTE = _Level(30, 0x1FF, 8, True, 0, 0x3FFF_E000)
_PML4E = _Level(39, 0x1FF, 8, False, Entry.PS)
_PML5E = _Level(48, 0x1FF, 8, False, Entry.PS)
# Only P, PWT and PCD below the address; R/W, U/S and XD are reserved and take no part.
_PAE_PDPTE = _Level(30, 3, 8, False, 0x1E6 | Entry.XD, 0, False)
_PTE_32 = _Level(12, 0x3FF, 4, True)
_PDE_32 = _Level(22, 0x3FF, 4, False)
_PDE_32_PSE = _Level(22, 0x3FF, 4, True)

_FIVE_LEVELS = (_PML5E, _PML4E, _PDPTE, _PDE, _PTE)
_FOUR_LEVELS = (_PML4E, _PDPTE, _PDE, _PTE)
_PAE_LEVELS = (_PAE_PDPTE, _PDE, _PTE)
_LEVELS_32 = (_PDE_32, _PTE_32)
_LEVELS_32_PSE = (_PDE_32_PSE, _PTE_32)


def walk(
    read: Reader,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    rflags_ac: bool,
    gva: int,
    access: int,
    cpl_user: bool,
    maxphyaddr: int = 39,
    write: Writer | None = None,
) -> Translation | PageFault:
    """Translate a linear address, or say how it faults.

    The caller has checked that the address is canonical; outside IA-32e mode only its low 32 bits
    count. rflags_ac must be False for implicit supervisor accesses (descriptor tables, the TSS),
    which SMAP never lets through. With ``write``, A and D are set as the processor would, and
    only when the translation succeeds. LookupError from ``read`` passes through.
    """
    if not efer & Efer.LMA:
        gva &= 0xFFFF_FFFF
    if not cr0 & Cr0.PG:
        return Translation(gva, 4096)
    found = _descend(read, cr3, cr4, efer, gva, maxphyaddr)
    if isinstance(found, Translation) and _permitted(
        found, access, cpl_user, bool(cr0 & Cr0.WP), cr4, rflags_ac
    ):
        if write is not None:
            _set_accessed_and_dirty(found, access, write, bool(efer & Efer.LMA))
        return found
    code = ErrorCode.P if isinstance(found, Translation) else found
    code |= ErrorCode.W if access == Access.WRITE else 0
    code |= ErrorCode.U if cpl_user else 0
    if access == Access.EXECUTE and (cr4 & Cr4.SMEP or (cr4 & Cr4.PAE and efer & Efer.NXE)):
        code |= ErrorCode.ID
    return PageFault(gva, code)


def _plan(cr3: int, cr4: int, efer: int, maxphyaddr: int) -> tuple[tuple[_Level, ...], int, int]:
    """The levels, the address of the first table, and the bits reserved in every entry."""
    no_xd = 0 if efer & Efer.NXE else Entry.XD
    if efer & Efer.LMA:
        levels = _FIVE_LEVELS if cr4 & Cr4.LA57 else _FOUR_LEVELS
        table = cr3 & (1 << maxphyaddr) - 0x1000
        return levels, table, (1 << 52) - (1 << maxphyaddr) | no_xd
    if cr4 & Cr4.PAE:
        return _PAE_LEVELS, cr3 & 0xFFFF_FFE0, (1 << 63) - (1 << maxphyaddr) | no_xd
    return _LEVELS_32_PSE if cr4 & Cr4.PSE else _LEVELS_32, cr3 & 0xFFFF_F000, 0


def _descend(
    read: Reader, cr3: int, cr4: int, efer: int, gva: int, maxphyaddr: int
) -> Translation | int:
    """Follow the entries down to a page; an int is the P and RSVD bits of the fault."""
    levels, table, reserved_always = _plan(cr3, cr4, efer, maxphyaddr)
    rights, no_execute = Entry.RW | Entry.US, 0
    entries: list[tuple[int, int, int]] = []
    for level in levels:
        address = table + (gva >> level.shift & level.index_mask) * level.width
        entry = read(address, level.width)
        if not entry & Entry.P:
            return 0
        entries.append((address, level.width, entry))
        is_page = level.shift == 12 or (level.may_map_page and bool(entry & Entry.PS))
        reserved = level.reserved_as_page if is_page else level.reserved_as_table
        if level is _PDE_32_PSE and is_page:
            reserved = (1 << 22) - (1 << min(40, maxphyaddr) - 19)
        if entry & (reserved | reserved_always):
            return ErrorCode.P | ErrorCode.RSVD
        if level.has_rights:
            rights &= entry
            no_execute |= entry & Entry.XD
        if is_page:
            break
        table = entry & (1 << maxphyaddr) - 0x1000
    size = 1 << level.shift
    page = entry & (1 << maxphyaddr) - size
    if level is _PDE_32_PSE:
        page = entry & 0xFFC0_0000 | (entry & 0x1F_E000) << 19
    return Translation(
        page | gva & size - 1,
        size,
        bool(rights & Entry.RW),
        bool(rights & Entry.US),
        not no_execute,
        tuple(entries),
    )


def _permitted(
    page: Translation, access: int, cpl_user: bool, write_protect: bool, cr4: int, ac: bool
) -> bool:
    """SDM Vol. 3, "Determination of Access Rights"."""
    if access == Access.EXECUTE and not page.executable:
        return False
    if cpl_user:
        return page.user and (page.writable or access != Access.WRITE)
    if access == Access.EXECUTE:
        return not (page.user and cr4 & Cr4.SMEP)
    if page.user and cr4 & Cr4.SMAP and not ac:
        return False
    return access != Access.WRITE or page.writable or not write_protect


def _set_accessed_and_dirty(page: Translation, access: int, write: Writer, ia32e: bool) -> None:
    last = len(page.entries) - 1
    for depth, (address, width, entry) in enumerate(page.entries):
        if width == 8 and depth == 0 and not ia32e:
            continue  # PAE's PDPTEs have neither flag
        flags = Entry.A
        if depth == last and access == Access.WRITE:
            flags |= Entry.D
        if entry & flags != flags:
            write(address, width, entry | flags)
