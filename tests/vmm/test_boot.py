"""Start states: what registers and tables a guest finds in each mode, and where the tables go."""

from __future__ import annotations

import pytest

from vmxsim.arch.segments import AccessRights, Descriptor
from vmxsim.errors import InputError
from vmxsim.kvm.uapi import KvmSegment, KvmSregs
from vmxsim.vmm.boot import StartState, kvm_segment, start_state
from vmxsim.vmm.config import Mode
from vmxsim.vmm.image import Image, Segment

MEMORY = 64 << 20


def boot(
    mode: Mode, gpa: int, size: int = 16, memory: int = MEMORY
) -> tuple[StartState, bytearray]:
    ram = bytearray(min(memory, 1 << 20))

    def write(at: int, data: bytes) -> None:
        ram[at : at + len(data)] = data

    image = Image("guest", (Segment(gpa, bytes(size), size),), gpa, mode)
    return start_state(image, memory, write, KvmSregs(apic_base=0xFEE0_0900)), ram


def rights(segment: KvmSegment) -> int:
    return (
        segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
        | segment.l << 13 | segment.db << 14 | segment.g << 15
    )  # fmt: skip


class TestReal:
    @pytest.mark.parametrize(
        ("entry", "selector", "ip"),
        [
            (0x7C00, 0, 0x7C00),
            (0xFFFF, 0, 0xFFFF),
            (0x1_2345, 0x1000, 0x2345),
            (0xF_FFF0, 0xF000, 0xFFF0),
            (0x10_0000, 0xFFFF, 0x10),
            (0x10_FFEF, 0xFFFF, 0xFFFF),
        ],
    )
    def test_the_entry_becomes_cs_and_ip(self, entry: int, selector: int, ip: int) -> None:
        state, _ = boot(Mode.REAL, entry)
        cs = state.sregs.cs
        assert (cs.selector, cs.base, state.regs.rip) == (selector, selector << 4, ip)

    def test_beyond_its_reach(self) -> None:
        with pytest.raises(InputError, match="real mode cannot start at 0x10fff0"):
            boot(Mode.REAL, 0x10_FFF0)

    def test_registers(self) -> None:
        state, ram = boot(Mode.REAL, 0x7C00)
        regs, sregs = state.regs, state.sregs
        assert (sregs.cr0, sregs.cr4, sregs.efer, regs.rflags) == (0x10, 0, 0, 2)
        assert (regs.rsp, regs.rax, regs.rdx) == (0x7000, 0, 0)
        assert rights(sregs.cs) == AccessRights.REAL_CODE
        assert rights(sregs.ss) == AccessRights.REAL_DATA
        assert (sregs.idt.base, sregs.idt.limit) == (0, 0x3FF)
        assert sregs.apic_base == 0xFEE0_0900
        assert not any(ram)
        assert state.tables is None

    def test_the_stack_avoids_the_image(self) -> None:
        assert boot(Mode.REAL, 0x6FFF)[0].regs.rsp == 0xF000
        assert boot(Mode.REAL, 0x1000, memory=0x4000)[0].regs.rsp == 0x4000


class TestProtected:
    def test_registers(self) -> None:
        state, _ = boot(Mode.PROTECTED, 0x10_0000)
        regs, sregs = state.regs, state.sregs
        assert (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3) == (0x11, 0, 0, 0)
        assert (regs.rip, regs.rsp, regs.rflags) == (0x10_0000, 0x9_0000, 2)
        assert (sregs.cs.selector, rights(sregs.cs)) == (8, 0xC09B)
        for name in ("ds", "es", "ss", "fs", "gs"):
            segment = getattr(sregs, name)
            assert (segment.selector, rights(segment), segment.limit) == (16, 0xC093, 0xFFFF_FFFF)
        assert (sregs.idt.limit, sregs.ldt.unusable) == (0, 1)

    def test_the_gdt_says_the_same(self) -> None:
        state, ram = boot(Mode.PROTECTED, 0x10_0000)
        base = state.sregs.gdt.base
        assert (base, state.tables, state.sregs.gdt.limit) == (0x1000, 0x1000, 0x2F)
        for selector, segment in ((8, state.sregs.cs), (16, state.sregs.ds)):
            descriptor = Descriptor.from_bytes(bytes(ram[base + selector : base + selector + 8]))
            assert (descriptor.base, descriptor.limit) == (0, 0xFFFF_FFFF)
            assert descriptor.access_rights == rights(segment)
        assert not any(ram[base : base + 8])


class TestLong:
    def test_registers(self) -> None:
        state, _ = boot(Mode.LONG, 0x10_0000)
        regs, sregs = state.regs, state.sregs
        assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x8001_0033, 0x620, 0xD00)
        assert (sregs.cr3, regs.rip, regs.rsp) == (0x2000, 0x10_0000, 0x9_0000)
        assert (sregs.cs.selector, rights(sregs.cs)) == (8, 0xA09B)
        assert (sregs.tr.selector, sregs.tr.base, sregs.tr.limit) == (0x20, 0x1080, 103)

    def test_four_gigabytes_are_mapped_to_themselves(self) -> None:
        state, ram = boot(Mode.LONG, 0x10_0000)

        def entry(table: int, index: int) -> int:
            return int.from_bytes(ram[table + 8 * index : table + 8 * index + 8], "little")

        for gva in (0, 0x7C00, 0x20_0000, 0x4000_0000, 0xFEE0_0000, 0xFFFF_FFFF):
            table = state.sregs.cr3
            for shift in (39, 30):
                found = entry(table, gva >> shift & 511)
                assert found & 0x87 == 0x03
                table = found & ~0xFFF
            assert entry(table, gva >> 21 & 511) == gva & ~0x1F_FFFF | 0x83
        assert entry(state.sregs.cr3, 1) == 0
        assert entry(state.sregs.cr3 + 0x1000, 4) == 0

    def test_the_tss_describes_the_kernel_stack(self) -> None:
        state, ram = boot(Mode.LONG, 0x10_0000)
        tss = state.sregs.tr.base
        assert int.from_bytes(ram[tss + 4 : tss + 12], "little") == state.regs.rsp
        assert int.from_bytes(ram[tss + 102 : tss + 104], "little") == 104
        gdt = state.sregs.gdt.base
        descriptor = Descriptor.from_bytes(bytes(ram[gdt + 0x20 : gdt + 0x30]))
        assert (descriptor.base, descriptor.limit, descriptor.type) == (tss, 103, 11)

    def test_tables_avoid_the_image(self) -> None:
        assert boot(Mode.LONG, 0x1000)[0].tables == 0x2000
        assert boot(Mode.LONG, 0x7FFF)[0].tables == 0x8000 + 0x1000 * 1
        assert boot(Mode.LONG, 0x8000)[0].tables == 0x1000

    def test_no_room_for_tables(self) -> None:
        with pytest.raises(InputError, match="no 7 free pages below 0xa0000 for"):
            boot(Mode.LONG, 0x1000, 0x9_F000)
        with pytest.raises(InputError, match="no 7 free pages"):
            boot(Mode.LONG, 0x100, memory=0x4000)

    def test_a_stack_beyond_memory_is_at_its_end(self) -> None:
        assert boot(Mode.LONG, 0x100, memory=0x2_0000)[0].regs.rsp == 0x2_0000


def test_access_rights_become_single_bytes() -> None:
    segment = kvm_segment(0x33, 5, 6, 0x1F0FB | 0x1000)
    assert [getattr(segment, name) for name in
            ("type", "s", "dpl", "present", "avl", "l", "db", "g", "unusable")] == [
        0xB, 1, 3, 1, 1, 1, 1, 1, 1,
    ]  # fmt: skip
