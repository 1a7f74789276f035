"""Address spaces: who answers, who collides, what is split, and what nobody's address reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.errors import ConfigError, PortConflict
from vmxsim.vmm.devices.base import Device
from vmxsim.vmm.memory import (
    AddressSpace,
    MemTxResult,
    Ram,
    Region,
    address_space_read,
    address_space_rw,
    address_space_write,
)


class Cells(Device):
    """Bytes that remember how they were touched."""

    def __init__(self, widest: int, size: int = 16) -> None:
        self.max_access = widest
        self.cells = bytearray(range(size))
        self.seen: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("r", offset, size))
        return int.from_bytes(self.cells[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("w", offset, size))
        self.cells[offset : offset + size] = value.to_bytes(size, "little")


def ports() -> AddressSpace:
    return AddressSpace("ports", 1 << 16)


@pytest.mark.parametrize(
    ("base", "size", "message"),
    [
        (0x3FF, 2, "ports: new 0x3ff..0x400 overlaps serial 0x3f8..0x3ff"),
        (0x3F0, 9, "new 0x3f0..0x3f8 overlaps serial"),
        (0x3FA, 1, "new 0x3fa..0x3fa overlaps serial"),
        (0x000, 0x10000, "new 0x0..0xffff overlaps serial"),
    ],
)
def test_two_claims_to_a_port(base: int, size: int, message: str) -> None:
    space = ports()
    space.add_device("serial", 0x3F8, 8, Cells(1))
    with pytest.raises(PortConflict, match=message):
        space.add_device("new", base, size, Cells(1))
    assert [str(region) for region in space.regions] == ["serial 0x3f8..0x3ff"]


@pytest.mark.parametrize(("base", "size"), [(0xFFFF, 2), (-1, 1), (5, 0), (0x10000, 1)])
def test_regions_lie_inside_the_space(base: int, size: int) -> None:
    with pytest.raises(ConfigError, match="is no part of ports 0x0..0xffff"):
        ports().add_device("new", base, size, Cells(1))


def test_memory_conflicts_are_not_about_ports() -> None:
    space = AddressSpace("memory", 1 << 40)
    space.add_ram("RAM", 0, memoryview(bytearray(0x1000)))
    with pytest.raises(ConfigError, match="memory: VGA 0xfff..0xfff overlaps RAM 0x0") as caught:
        space.add_device("VGA", 0xFFF, 1, Cells(1))
    assert not isinstance(caught.value, PortConflict)


def test_neighbours_do_not_collide() -> None:
    space, low, high = ports(), Cells(1), Cells(1)
    space.add_device("high", 0x72, 2, high)
    space.add_device("low", 0x70, 2, low)
    found = [space.find(port) for port in range(0x6F, 0x75)]
    names = [region.name if region else None for region in found]
    assert names == [None, "low", "low", "high", "high", None]
    address_space_write(space, 0x71, b"\x11\x22")
    assert (low.cells[1], high.cells[0]) == (0x11, 0x22)


@pytest.mark.parametrize(
    ("widest", "offset", "size", "seen"),
    [
        (1, 0, 4, [(0, 1), (1, 1), (2, 1), (3, 1)]),
        (4, 0, 4, [(0, 4)]),
        (4, 1, 4, [(1, 1), (2, 2), (4, 1)]),
        (2, 0, 8, [(0, 2), (2, 2), (4, 2), (6, 2)]),
        (8, 8, 8, [(8, 8)]),
    ],
)
def test_wide_accesses_are_split(
    widest: int, offset: int, size: int, seen: list[tuple[int, int]]
) -> None:
    space, cells = ports(), Cells(widest)
    space.add_device("cells", 0x100, 16, cells)
    data = bytes(range(offset, offset + size))
    assert address_space_read(space, 0x100 + offset, size) == data
    assert cells.seen == [("r", *access) for access in seen]
    address_space_write(space, 0x100 + offset, data[::-1])
    assert cells.cells[offset : offset + size] == data[::-1]


def test_nobodys_address_floats_high_and_says_so() -> None:
    space = ports()
    space.add_device("one", 0x10, 1, Cells(1))
    data = bytearray(3)
    assert address_space_rw(space, 0x0F, data, is_write=False) is MemTxResult.DECODE_ERROR
    assert data == b"\xff\x00\xff"
    assert address_space_rw(space, 0x0F, data, is_write=True) is MemTxResult.DECODE_ERROR
    assert address_space_rw(space, 0x10, bytearray(1), is_write=True) is MemTxResult.OK


def test_a_device_may_answer_in_several_regions() -> None:
    space, cells = ports(), Cells(1)
    space.add_device("keyboard", 0x60, 1, cells)
    space.add_device("keyboard", 0x64, 1, cells, first=4)
    assert address_space_read(space, 0x60, 5) == b"\x00\xff\xff\xff\x04"
    assert space.reads[0x64 << 4 | 1] == (cells.read, 4)


def test_the_short_cut_holds_what_one_device_takes_at_once() -> None:
    space, cells = ports(), Cells(2, 4)
    space.add_device("cells", 0x10, 3, cells)
    keys = {(key >> 4, key & 15): at for key, (_, at) in space.writes.items()}
    assert keys == {(0x10, 1): 0, (0x11, 1): 1, (0x12, 1): 2, (0x10, 2): 0, (0x11, 2): 1}
    space.add_device("huge", 0x2000, 0x2000, Cells(1))
    assert 0x2000 << 4 | 1 not in space.reads
    space.remove("cells")
    space.remove("never there")
    assert (space.reads, space.writes, space.find(0x10)) == ({}, {}, None)


def test_ram_and_devices_side_by_side() -> None:
    space, ram, cells = AddressSpace("memory", 1 << 40), Ram(0x1000), Cells(1)
    space.add_ram("RAM", 0, ram.view)
    space.add(Region("cells", 0x1000, 16, cells))
    address_space_write(space, 0xFFE, b"\xaa\xbb\xcc")
    assert (ram.read(0xFFE, 2), cells.cells[0]) == (b"\xaa\xbb", 0xCC)
    assert address_space_read(space, 0xFFF, 3) == b"\xbb\xcc\x01"


class TestRam:
    def test_starts_as_zeros_and_keeps_what_is_written(self) -> None:
        ram = Ram(0x2000)
        ram.write(0x1FFE, b"ab")
        assert ram.read(0x1FFC, 4) == b"\0\0ab"

    @pytest.mark.parametrize(("gpa", "size"), [(-1, 1), (0x1FFF, 2), (0x2000, 1)])
    def test_outside(self, gpa: int, size: int) -> None:
        ram = Ram(0x2000)
        with pytest.raises(IndexError, match="is outside 0x2000 bytes of RAM"):
            ram.read(gpa, size)
        with pytest.raises(IndexError, match="is outside"):
            ram.write(gpa, bytes(size))

    @pytest.mark.parametrize("size", [0, -4096, 1000])
    def test_whole_pages(self, size: int) -> None:
        with pytest.raises(ConfigError, match="whole pages"):
            Ram(size)

    def test_more_than_the_host_has(self) -> None:
        with pytest.raises(ConfigError, match="the host has no 0x"):
            Ram(1 << 62)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 6), st.sampled_from([1, 2, 4, 8]))),
    st.integers(0, 60),
    st.integers(1, 8),
)
def test_bytes_come_from_whoever_claims_them(
    claims: list[tuple[int, int, int]], address: int, size: int
) -> None:
    space, owner = AddressSpace("ports", 128), {}
    for base, length, widest in claims:
        cells = Cells(widest, length)
        cells.cells[:] = bytes((base * 7 + i) & 0x7F for i in range(length))
        try:
            space.add_device("cells", base, length, cells)
        except PortConflict:
            continue
        owner.update({base + i: cells.cells[i] for i in range(length)})
    expected = bytes(owner.get(at, 0xFF) for at in range(address, address + size))
    assert address_space_read(space, address, size) == expected
