"""walk() against a second, naive reading of the manual: per mode, per flag, per level."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.paging import Access, PageFault, Translation, walk
from vmxsim.arch.registers import Cr0, Cr4, Efer

P, RW, US, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
XD = 1 << 63
ALL = P | RW | US
PG = Cr0.PG | Cr0.PE
LONG = Efer.LME | Efer.LMA


class Mode(NamedTuple):
    """A paging mode: the index fields of its levels, top first, and the control bits."""

    fields: tuple[tuple[int, int], ...]  # (shift, bits) of each index
    width: int
    cr4: int
    efer: int
    rightless_top: bool = False


MODES = {
    "32-bit": Mode(((22, 10), (12, 10)), 4, 0, 0),
    "32-bit PSE": Mode(((22, 10), (12, 10)), 4, Cr4.PSE, 0),
    "PAE": Mode(((30, 2), (21, 9), (12, 9)), 8, Cr4.PAE, 0, True),
    "4-level": Mode(((39, 9), (30, 9), (21, 9), (12, 9)), 8, Cr4.PAE, LONG),
    "LA57": Mode(((48, 9), (39, 9), (30, 9), (21, 9), (12, 9)), 8, Cr4.PAE | Cr4.LA57, LONG),
}
BY_MODE = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
ADDRESS = 0x40_7FC0_3123


class Tables:
    """One chain of tables at 0x1000, 0x2000, ...; the last entry maps the frame 0x5a000."""

    def __init__(self, mode: Mode, address: int, flags: list[int], leaf_level: int = -1) -> None:
        self.memory: dict[tuple[int, int], int] = {}
        self.entries: list[tuple[int, int]] = []
        levels = len(mode.fields) if leaf_level < 0 else leaf_level + 1
        self.size = 1 << mode.fields[levels - 1][0]
        self.frame = 0x5A000 if self.size == 4096 else self.size * 3
        for level in range(levels):
            shift, bits = mode.fields[level]
            at = 0x1000 * (level + 1) + (address >> shift & (1 << bits) - 1) * mode.width
            last = level == levels - 1
            target = self.frame if last else 0x1000 * (level + 2)
            entry = target | flags[level] | (PS if last and self.size > 4096 else 0)
            self.memory[at, mode.width] = entry
            self.entries.append((at, mode.width))
        self.written: list[tuple[int, int, int]] = []

    def read(self, gpa: int, size: int) -> int:
        return self.memory[gpa, size]

    def write(self, gpa: int, size: int, value: int) -> None:
        self.written.append((gpa, size, value))
        self.memory[gpa, size] = value


def translate(
    mode: Mode,
    tables: Tables,
    access: int = Access.READ,
    *,
    user: bool = False,
    wp: bool = True,
    nxe: bool = False,
    cr4: int = 0,
    ac: bool = False,
    address: int = ADDRESS,
    maxphyaddr: int = 39,
) -> Translation | PageFault:
    return walk(
        tables.read,
        PG | (Cr0.WP if wp else 0),
        0x1000,
        mode.cr4 | cr4,
        mode.efer | (Efer.NXE if nxe else 0),
        ac,
        address,
        access,
        user,
        maxphyaddr,
        tables.write,
    )


def flags_of(mode: Mode, value: int) -> list[int]:
    flags = [value] * len(mode.fields)
    return [P, *flags[1:]] if mode.rightless_top else flags


def seen(mode: Mode, address: int = ADDRESS) -> int:
    return address if mode.efer else address & 0xFFFF_FFFF


@BY_MODE
class TestEveryMode:
    def test_everything_allowed(self, mode: Mode) -> None:
        tables = Tables(mode, ADDRESS, flags_of(mode, ALL))
        found = translate(mode, tables, user=True)
        assert isinstance(found, Translation)
        assert (found.gpa, found.page_size) == (0x5A123, 4096)
        assert (found.writable, found.user, found.executable) == (True, True, True)
        assert [(gpa, width) for gpa, width, _ in found.entries] == tables.entries

    def test_each_level_can_be_absent(self, mode: Mode) -> None:
        for level in range(len(mode.fields)):
            flags = flags_of(mode, ALL)
            flags[level] = 0
            tables = Tables(mode, ADDRESS, flags)
            assert translate(mode, tables, Access.WRITE, user=True) == PageFault(seen(mode), 6)
            assert tables.written == []

    def test_a_missing_table_is_the_callers_business(self, mode: Mode) -> None:
        tables = Tables(mode, ADDRESS, flags_of(mode, ALL))
        del tables.memory[tables.entries[-1]]
        with pytest.raises(LookupError):
            translate(mode, tables)

    def test_accessed_and_dirty(self, mode: Mode) -> None:
        tables = Tables(mode, ADDRESS, flags_of(mode, ALL))
        before = dict(tables.memory)
        translate(mode, tables)
        flagged = tables.entries[1:] if mode.rightless_top else tables.entries
        assert tables.written == [(gpa, w, before[gpa, w] | A) for gpa, w in flagged]
        tables.written.clear()
        translate(mode, tables)
        assert tables.written == []
        translate(mode, tables, Access.WRITE)
        gpa, width = tables.entries[-1]
        assert tables.written == [(gpa, width, before[gpa, width] | A | D)]

    def test_a_refused_write_leaves_no_flags(self, mode: Mode) -> None:
        tables = Tables(mode, ADDRESS, flags_of(mode, P | US))
        assert translate(mode, tables, Access.WRITE, user=True) == PageFault(seen(mode), 7)
        assert tables.written == []

    @pytest.mark.parametrize("nxe", [False, True])
    @pytest.mark.parametrize("smep", [0, Cr4.SMEP])
    def test_the_fetch_bit_of_the_error_code(self, mode: Mode, nxe: bool, smep: int) -> None:
        tables = Tables(mode, ADDRESS, flags_of(mode, 0))
        fault = translate(mode, tables, Access.EXECUTE, nxe=nxe, cr4=smep)
        told = smep or (nxe and mode.width == 8)
        assert fault.error_code == (0x10 if told else 0)


@given(
    mode=st.sampled_from(list(MODES.values())),
    rights=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=5, max_size=5),
    access=st.sampled_from([Access.READ, Access.WRITE, Access.EXECUTE]),
    user=st.booleans(),
    wp=st.booleans(),
    nxe=st.booleans(),
    smep=st.booleans(),
    smap=st.booleans(),
    ac=st.booleans(),
)
def test_rights_are_what_all_levels_grant(
    mode: Mode,
    rights: list[tuple[bool, bool, bool]],
    access: int,
    user: bool,
    wp: bool,
    nxe: bool,
    smep: bool,
    smap: bool,
    ac: bool,
) -> None:
    flags, counted = [], []
    for level in range(len(mode.fields)):
        writable, for_users, no_execute = rights[level]
        no_execute = no_execute and nxe and mode.width == 8
        if mode.rightless_top and level == 0:
            flags.append(P)
            continue
        counted.append((writable, for_users, no_execute))
        flags.append(P | writable * RW | for_users * US | no_execute * XD)
    tables = Tables(mode, ADDRESS, flags)
    cr4 = smep * Cr4.SMEP | smap * Cr4.SMAP
    found = translate(mode, tables, access, user=user, wp=wp, nxe=nxe, cr4=cr4, ac=ac)

    page_writable = all(writable for writable, _, _ in counted)
    page_user = all(for_users for _, for_users, _ in counted)
    page_nx = any(no_execute for _, _, no_execute in counted)
    refused = [
        user and not page_user,
        access == Access.WRITE and not page_writable and (user or wp),
        access == Access.EXECUTE and page_nx,
        access == Access.EXECUTE and not user and page_user and smep,
        access != Access.EXECUTE and not user and page_user and smap and not ac,
    ]
    if any(refused):
        code = 1 | 2 * (access == Access.WRITE) | 4 * user
        if access == Access.EXECUTE and (smep or (nxe and mode.width == 8)):
            code |= 0x10
        assert found == PageFault(seen(mode), code)
    else:
        assert found[:5] == (0x5A123, 4096, page_writable, page_user, not page_nx)


@pytest.mark.parametrize(
    ("name", "leaf_level", "size"),
    [
        ("32-bit PSE", 0, 4 << 20),
        ("PAE", 1, 2 << 20),
        ("4-level", 1, 1 << 30),
        ("4-level", 2, 2 << 20),
        ("LA57", 2, 1 << 30),
        ("LA57", 3, 2 << 20),
    ],
)
class TestLargePages:
    def test_translation_and_dirty_flag(self, name: str, leaf_level: int, size: int) -> None:
        mode = MODES[name]
        tables = Tables(mode, ADDRESS, flags_of(mode, ALL), leaf_level)
        found = translate(mode, tables, Access.WRITE)
        assert found.page_size == size == tables.size
        assert found.gpa == tables.frame | ADDRESS & size - 1
        assert tables.memory[tables.entries[-1]] & (A | D) == A | D

    def test_address_bits_below_the_page_are_reserved(
        self, name: str, leaf_level: int, size: int
    ) -> None:
        mode = MODES[name]
        if size == 4 << 20:
            low, high = 20, 22  # bits 19:13 are address bits 38:32 (PSE-36)
        else:
            low, high = 13, size.bit_length() - 1
        for bit in range(low, high):
            tables = Tables(mode, ADDRESS, flags_of(mode, ALL), leaf_level)
            tables.memory[tables.entries[-1]] |= 1 << bit
            assert translate(mode, tables) == PageFault(seen(mode), 9)


def test_pse36_reaches_above_4_gigabytes() -> None:
    mode = MODES["32-bit PSE"]
    tables = Tables(mode, ADDRESS, [ALL, ALL], 0)
    tables.memory[tables.entries[0]] |= 0x7F << 13
    found = translate(mode, tables)
    assert found.gpa == 0x7F << 32 | tables.frame | ADDRESS & 0x3F_FFFF


def test_without_pse_the_page_size_bit_is_ignored() -> None:
    mode = MODES["32-bit"]
    tables = Tables(mode, ADDRESS, [ALL | PS, ALL])
    assert translate(mode, tables).gpa == 0x5A123


@pytest.mark.parametrize("name", ["PAE", "4-level", "LA57"])
class TestReservedBits:
    def levels(self, mode: Mode) -> range:
        return range(len(mode.fields))

    def fault_with(
        self, mode: Mode, level: int, bit: int, **options: bool
    ) -> Translation | PageFault:
        tables = Tables(mode, ADDRESS, flags_of(mode, ALL))
        tables.memory[tables.entries[level]] |= 1 << bit
        return translate(mode, tables, **options)

    def test_above_maxphyaddr(self, name: str) -> None:
        mode = MODES[name]
        top = 62 if name == "PAE" else 51
        for level in self.levels(mode):
            for bit in (39, 45, top):
                assert self.fault_with(mode, level, bit) == PageFault(seen(mode), 9)

    def test_ignored_bits_are_ignored(self, name: str) -> None:
        mode = MODES[name]
        if name != "PAE":
            for level in self.levels(mode):
                for bit in (9, 11, 52, 62):
                    assert self.fault_with(mode, level, bit).gpa == 0x5A123

    def test_execute_disable_without_nxe(self, name: str) -> None:
        mode = MODES[name]
        for level in self.levels(mode):
            assert self.fault_with(mode, level, 63, user=True) == PageFault(seen(mode), 0xD)

    def test_page_size_where_there_are_no_such_pages(self, name: str) -> None:
        mode = MODES[name]
        for level in range(len(mode.fields) - (2 if name == "PAE" else 3)):
            assert self.fault_with(mode, level, 7) == PageFault(seen(mode), 9)


def test_a_pae_pdpte_has_no_rights_and_no_execute_disable() -> None:
    mode = MODES["PAE"]
    for bit in (1, 2, 5, 6, 8, 63):
        tables = Tables(mode, ADDRESS, [P | 1 << bit, ALL, ALL])
        assert translate(mode, tables, nxe=True) == PageFault(seen(mode), 9)


def test_reserved_bits_count_before_rights() -> None:
    mode = MODES["4-level"]
    tables = Tables(mode, ADDRESS, [P, P, P, P | 1 << 51])
    fault = translate(mode, tables, Access.WRITE, user=True)
    assert fault.error_code == 0xF


@given(st.integers(0, (1 << 64) - 1), st.sampled_from([Access.READ, Access.WRITE]))
def test_without_paging_addresses_are_32_bits_and_everything_is_allowed(
    address: int, access: int
) -> None:
    found = walk(lambda gpa, size: 0, Cr0.PE, 0x1000, 0, 0, False, address, access, True)
    assert found == Translation(address & 0xFFFF_FFFF, 4096)


def test_legacy_modes_see_32_bits_of_address() -> None:
    mode = MODES["PAE"]
    tables = Tables(mode, ADDRESS & 0xFFFF_FFFF, flags_of(mode, ALL))
    assert translate(mode, tables, address=ADDRESS | 0xFFFF_0000_0000_0000).gpa == 0x5A123


def test_flag_bits_of_cr3_are_no_address() -> None:
    mode = MODES["4-level"]
    tables = Tables(mode, ADDRESS, flags_of(mode, ALL))
    found = walk(tables.read, PG, 0x1018, mode.cr4, mode.efer, False, ADDRESS, 0, False)
    assert found.gpa == 0x5A123
    assert tables.written == []
