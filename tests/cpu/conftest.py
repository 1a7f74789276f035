"""A bare CPU in each mode, with code at 0x1000 and identity-mapped memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from vmxsim.arch.segments import SegmentRegister, real_mode_segment
from vmxsim.cpu.cpu import UnicornCpu

CODE, STACK, TABLES = 0x1000, 0x7000, 0x9000
RAM = 1 << 20
FLAT_DATA = 0xC093
CODE_RIGHTS = {32: 0xC09B, 64: 0xA09B}


def enter_mode(cpu: UnicornCpu, ram: bytearray, bits: int) -> None:
    """Put the CPU into real mode (16), flat protected mode (32) or long mode (64)."""
    if bits == 16:
        for segment in range(6):
            cpu.set_segment(segment, real_mode_segment(0, code=segment == 1))
    else:
        cpu.cr0 = 0x11
        for segment in range(6):
            rights = CODE_RIGHTS[bits] if segment == 1 else FLAT_DATA
            selector = 0x08 if segment == 1 else 0x10
            cpu.set_segment(segment, SegmentRegister(selector, 0, 0xFFFFFFFF, rights))
    if bits == 64:
        struct.pack_into("<Q", ram, TABLES, TABLES + 0x1007)
        struct.pack_into("<Q", ram, TABLES + 0x1000, TABLES + 0x2007)
        for i in range(512):
            struct.pack_into("<Q", ram, TABLES + 0x2000 + 8 * i, i << 21 | 0x87)
        cpu.cr4, cpu.cr3, cpu.efer, cpu.cr0 = 0x620, TABLES, 0xD01, 0x80000011
        for segment in range(6):
            cpu.set_segment(segment, cpu.segment(segment))
    cpu.rip = CODE
    cpu.gpr[4] = STACK


@pytest.fixture
def start() -> Iterator[Callable[..., UnicornCpu]]:
    """start(bits, code, ram=None) gives a CPU about to run the code."""
    cpus: list[UnicornCpu] = []

    def make(bits: int, code: str, ram: bytearray | None = None) -> UnicornCpu:
        memory = bytearray(RAM) if ram is None else ram
        raw = bytes.fromhex(code)
        memory[CODE : CODE + len(raw)] = raw
        cpu = UnicornCpu()
        cpus.append(cpu)
        cpu.memory.map(0, memory)
        enter_mode(cpu, memory, bits)
        return cpu

    yield make
    for cpu in cpus:
        cpu.close()
