"""Guest-physical memory: the caller's buffer, seen from both sides."""

from __future__ import annotations

import ctypes
import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.errors import ConfigError


@pytest.fixture
def cpu() -> UnicornCpu:
    return UnicornCpu()


def test_no_copy_is_made(cpu: UnicornCpu) -> None:
    ram = bytearray(8192)
    cpu.memory.map(0x1000, ram)
    ram[5] = 7
    assert cpu.memory.read(0x1005, 1) == b"\x07"
    cpu.memory.write(0x1006, b"\x08\x09")
    assert ram[6:8] == b"\x08\x09"


@pytest.mark.parametrize(
    "buffer",
    [bytearray(4096), mmap.mmap(-1, 4096), memoryview(bytearray(4096)), (ctypes.c_uint8 * 4096)()],
    ids=["bytearray", "mmap", "memoryview", "ctypes"],
)
def test_any_writable_buffer_will_do(cpu: UnicornCpu, buffer: bytearray) -> None:
    cpu.memory.map(0, buffer)
    cpu.memory.write(10, b"abc")
    assert bytes(memoryview(buffer).cast("B")[10:13] if not isinstance(
        buffer, ctypes.Array) else buffer[10:13]) == b"abc"  # fmt: skip


@pytest.mark.parametrize(
    ("gpa", "buffer", "words"),
    [
        (0x10, bytearray(4096), "multiples of 4096"),
        (0, bytearray(4095), "multiples of 4096"),
        (0, bytearray(), "multiples of 4096"),
        (1 << 39, bytearray(4096), "39 bits"),
        (0, bytes(4096), "writable"),
    ],
)
def test_what_cannot_be_mapped_is_named(
    cpu: UnicornCpu, gpa: int, buffer: bytearray, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        cpu.memory.map(gpa, buffer)


def test_overlap_and_unmap(cpu: UnicornCpu) -> None:
    cpu.memory.map(0x2000, bytearray(8192))
    with pytest.raises(ConfigError, match="overlaps"):
        cpu.memory.map(0x3000, bytearray(4096))
    with pytest.raises(ConfigError, match="no memory of 0x1000 bytes"):
        cpu.memory.unmap(0x2000, 4096)
    cpu.memory.unmap(0x2000, 8192)
    assert not cpu.memory.backed(0x2000, 1)
    cpu.memory.map(0x3000, bytearray(4096))


def test_reads_cross_regions_and_stop_at_holes(cpu: UnicornCpu) -> None:
    cpu.memory.map(0, bytearray(b"a" * 4096))
    cpu.memory.map(4096, bytearray(b"b" * 4096))
    assert cpu.memory.read(4094, 4) == b"aabb"
    cpu.memory.write(4094, b"1234")
    assert cpu.memory.read(4094, 4) == b"1234"
    assert cpu.memory.backed(4094, 4)
    assert not cpu.memory.backed(8190, 4)
    with pytest.raises(LookupError, match="0x2000"):
        cpu.memory.read(8190, 4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(1, 700)), max_size=5))
def test_the_nested_tables_agree_with_what_is_mapped(regions: list[tuple[int, int]]) -> None:
    cpu = UnicornCpu()
    pages: set[int] = set()
    mapped = []
    for first, count in regions:
        span = set(range(first, first + count))
        if span & pages:
            with pytest.raises(ConfigError):
                cpu.memory.map(first * 4096, bytearray(count * 4096))
            continue
        cpu.memory.map(first * 4096, bytearray(count * 4096))
        pages |= span
        mapped.append((first, count))
    assert nested_pages(cpu) == pages
    for first, count in mapped[::2]:
        cpu.memory.unmap(first * 4096, count * 4096)
        pages -= set(range(first, first + count))
    assert nested_pages(cpu) == pages
    cpu.close()


def nested_pages(cpu: UnicornCpu) -> set[int]:
    """The page numbers below 8 MByte that the nested page tables hold, read naively."""
    nested = cpu._running.nested
    words, base = nested._words, nested.root
    found: set[int] = set()
    directory = words[512]
    if not directory:
        return found
    table = ((directory & ~0xFFF) - base) // 8
    for i in range(4):
        entry = words[table + i]
        if entry & 0x80:
            found |= set(range(i * 512, i * 512 + 512))
        elif entry:
            leaf = ((entry & ~0xFFF) - base) // 8
            found |= {i * 512 + j for j in range(512) if words[leaf + j]}
    return found
