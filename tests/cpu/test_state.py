"""Registers in place: what is set is read back, and the guest sees it natively."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.segments import SegmentRegister, TableRegister
from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.cpu.traps import TrapKind

Start = Callable[..., UnicornCpu]
CPU = UnicornCpu()


@given(st.integers(0, (1 << 22) - 1))
def test_rflags_come_back(value: int) -> None:
    defined = 0x3F7FD7 & ~(1 << 17)
    CPU.rflags = value & defined
    assert CPU.rflags == value & defined | 2


@given(st.integers(0, 5), st.integers(0, 0xFFFF), st.integers(0, (1 << 32) - 1))
def test_segments_come_back(segment: int, selector: int, base: int) -> None:
    register = SegmentRegister(selector, base, 0xFFFFF, 0x4093)
    CPU.set_segment(segment, register)
    assert CPU.segment(segment) == register


def test_an_unusable_segment_comes_back_unusable() -> None:
    CPU.set_segment(3, SegmentRegister(0, 0, 0, 0x10000))
    assert CPU.segment(3).unusable


@pytest.mark.parametrize(
    "index", [0x174, 0x175, 0x176, 0x277, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083,
              0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103],
)  # fmt: skip
def test_msrs_come_back(index: int) -> None:
    value = 0xD01 if index == 0xC0000080 else 0x1234 if index == 0x174 else 0x12345678
    CPU.set_msr(index, value)
    assert CPU.msr(index) == value
    CPU.set_msr(index, 0)


def test_an_msr_the_engine_does_not_hold() -> None:
    with pytest.raises(KeyError):
        CPU.msr(0x1B)
    with pytest.raises(KeyError):
        CPU.set_msr(0x1B, 0)


def test_the_rest_comes_back() -> None:
    CPU.gdtr, CPU.idtr = TableRegister(0x1000, 0x7F), TableRegister(0x2000, 0xFFF)
    assert (CPU.gdtr, CPU.idtr) == ((0x1000, 0x7F), (0x2000, 0xFFF))
    CPU.cr2, CPU.cr8 = 0xFFFF_8000_0000_1234, 9
    assert (CPU.cr2, CPU.cr8) == (0xFFFF_8000_0000_1234, 9)
    CPU.set_xmm(3, bytes(range(16)))
    assert CPU.xmm(3) == bytes(range(16))


def test_fxsave_is_what_fxrstor_loads() -> None:
    image = bytearray(CPU.fxsave())
    image[0:2], image[24:28] = b"\x7f\x02", b"\x80\x3f\0\0"
    image[32:42] = bytes.fromhex("00000000000000c0ff3f")  # st(0) = 1.5
    image[4] = 0x80
    image[160:176] = bytes(range(16))
    CPU.fxrstor(bytes(image))
    assert CPU.fxsave() == bytes(image)


def test_fxsave_is_what_the_guest_would_store(start: Start) -> None:
    # fld1; fldpi; movq xmm1, rax; fxsave [0x8000]; hlt
    ram = bytearray(1 << 20)
    cpu = start(64, "d9e8d9eb66480f6ec80fae042500800000f4", ram)
    cpu.gpr[0] = 0x1122334455667788
    assert cpu.run().kind is TrapKind.HLT
    ours, theirs = cpu.fxsave(), bytes(ram[0x8000:0x8200])
    assert ours[0:6] == theirs[0:6]
    assert ours[24:28] == theirs[24:28]
    assert ours[32:416] == theirs[32:416]


def test_cr4_hides_osxsave_from_the_engine_only(start: Start) -> None:
    cpu = start(64, "0f01d1")  # xsetbv
    cpu.cr4 |= 1 << 18 | 1 << 13
    assert cpu.cr4 & (1 << 18 | 1 << 13) == 1 << 18 | 1 << 13
    assert cpu.run().kind is TrapKind.XSETBV


def test_a_guest_switches_modes_by_itself(start: Start) -> None:
    """lgdt; mov cr0 (completed by hand); far jump to 32-bit code; load segments; hlt."""
    ram = bytearray(1 << 20)
    code = "0f0116002e" + "0f20c0" + "0c01" + "0f22c0" + "66ea20100000" + "0800"
    cpu = start(16, code, ram)
    ram[0x1020:0x1027] = bytes.fromhex("66b810008ed840f4"[:14])
    ram[0x1027] = 0xF4
    ram[0x2E00:0x2E06] = bytes.fromhex("1700002f0000")
    ram[0x2F08:0x2F18] = bytes.fromhex("ffff0000009bcf00" "ffff00000093cf00")
    trap = cpu.run()
    assert (trap.kind, trap.rip) == (TrapKind.MOV_TO_CR, 0x100A)
    cpu.cr0 = cpu.gpr[0]
    cpu.rip += 3
    trap = cpu.run()
    assert (trap.kind, trap.rip, cpu.mode_bits) == (TrapKind.HLT, 0x1027, 32)
    assert cpu.segment(3) == SegmentRegister(0x10, 0, 0xFFFFFFFF, 0xC093)
    assert (cpu.gpr[0], cpu.cpl) == (0x60000011, 0)


def test_user_mode_and_back_natively(start: Start) -> None:
    """IRETQ to ring 3; there HLT is #GP."""
    ram = bytearray(1 << 20)
    cpu = start(64, "48cf", ram)  # iretq
    table = bytes(8) + bytes.fromhex("000000000000af00" "000000000000cf00")
    table = bytes(8) + (0x00AF9B000000FFFF).to_bytes(8, "little")
    table += (0x00CF93000000FFFF).to_bytes(8, "little")
    table += (0x00CFF3000000FFFF).to_bytes(8, "little") + (0x00AFFB000000FFFF).to_bytes(8, "little")
    ram[0x3000 : 0x3000 + len(table)] = table
    cpu.gdtr = TableRegister(0x3000, len(table) - 1)
    frame = [0x2000, 0x23, 0x202, 0x6000, 0x1B]
    for i, value in enumerate(frame):
        ram[0x6F00 + 8 * i : 0x6F08 + 8 * i] = value.to_bytes(8, "little")
    ram[0x2000] = 0xF4
    cpu.gpr[4] = 0x6F00
    trap = cpu.run()
    assert (trap.kind, cpu.rip, cpu.cpl) == (TrapKind.EXCEPTION, 0x2000, 3)
    assert trap[2:4] == (13, 0)


def test_five_level_paging(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(64, "488b042500005500f4", ram)  # mov rax, [0x550000]; hlt
    ram[0xC000:0xC008] = (0x9007).to_bytes(8, "little")
    cpu.cr0 = 0x11
    cpu.efer = 0xD01
    cpu.cr4 = 0x1620
    cpu.cr3 = 0xC000
    cpu.cr0 = 0x80000011
    trap = cpu.run()
    assert (trap.kind, trap[2]) == (TrapKind.MEMORY, 0x550000)


def test_an_engine_that_was_closed_says_so() -> None:
    from vmxsim.errors import EngineError

    cpu = UnicornCpu()
    cpu.close()
    cpu.close()
    with pytest.raises(EngineError, match="closed"):
        cpu.kick()
