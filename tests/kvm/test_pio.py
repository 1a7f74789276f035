"""Ports: by a chip in the kernel, by userspace, item by item and as strings."""

from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.qualifications import Direction, IoQualification, StringIoInfo
from vmxsim.arch.registers import Gpr, Rflags
from vmxsim.arch.segments import Segment
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.errors import KvmError
from vmxsim.kvm import uapi
from vmxsim.kvm.kvm_main import kvm_io_bus_register_dev
from vmxsim.probes import Probes
from vmxsim.vmx.records import VmExit

from .conftest import HLT, Everything, Guest

IN, OUT = Direction.IN, Direction.OUT


class Latch:
    """A chip with one register; remembers how it was accessed."""

    def __init__(self) -> None:
        self.value = 0
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size))
        self.value = value


def io(direction: Direction, port: int, size: int = 1) -> VmExit:
    qualification = IoQualification(size, direction, port=port).encode()
    return VmExit(ExitReason.IO_INSTRUCTION, qualification, 2)


def string(
    direction: Direction,
    port: int,
    size: int = 1,
    rep: bool = True,
    address_size: int = 4,
    segment: int = Segment.DS,
) -> VmExit:
    qualification = IoQualification(size, direction, True, rep, port=port).encode()
    info = StringIoInfo(address_size, segment).encode()
    return VmExit(ExitReason.IO_INSTRUCTION, qualification, 2, info)


@pytest.fixture
def latch(guest: Guest) -> Latch:
    """A chip at port 0x300."""
    chip = Latch()
    kvm_io_bus_register_dev(guest.inner.vm.pio_bus, 0x300, 2, chip)
    return chip


class TestKernel:
    def test_a_chip_takes_an_out_without_userspace(self, guest: Guest, latch: Latch) -> None:
        guest.gpr[0] = 0x1234_5678
        assert guest.run(io(OUT, 0x301), HLT) == uapi.KvmExitHlt()
        assert latch.log == [("write", 1, 1)]
        assert latch.value == 0x78
        assert guest.processor.rip == 0x1003
        assert guest.vcpu.stat.ports[0x301].kernel_out == 1

    @pytest.mark.parametrize(
        ("size", "rax"),
        [
            (1, 0x1122_3344_5566_77DD),
            (2, 0x1122_3344_5566_CCDD),
            (4, 0xAABB_CCDD),
        ],
    )
    def test_an_in_merges_into_rax(
        self, guest: Guest, latch: Latch, size: int, rax: int
    ) -> None:
        guest.gpr[0] = 0x1122_3344_5566_7788
        latch.value = 0xAABB_CCDD
        guest.run(io(IN, 0x300, size), HLT)
        assert guest.gpr[0] == rax

    def test_two_chips_cannot_share_a_port(self, guest: Guest, latch: Latch) -> None:
        with pytest.raises(KvmError, match=r"port 0x301 is taken by .*Latch"):
            kvm_io_bus_register_dev(guest.inner.vm.pio_bus, 0x301, 4, Latch())
        assert 0x302 not in guest.inner.vm.pio_bus

    def test_rep_outs_to_a_chip_is_one_exit(self, guest: Guest, latch: Latch) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RSI] = 3, 0x2000
        guest.ram[0x2000:0x2003] = b"abc"
        guest.run(string(OUT, 0x300), HLT)
        assert latch.log == [("write", 0, 1)] * 3
        assert latch.value == ord("c")
        assert (guest.gpr[Gpr.RCX], guest.gpr[Gpr.RSI]) == (0, 0x2003)
        assert guest.processor.rip == 0x1003

    def test_rep_ins_from_a_chip_is_one_exit_over_a_page_border(
        self, guest: Guest, latch: Latch
    ) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI] = 4, 0x2FFE
        latch.value = 0x5A
        guest.run(string(IN, 0x300), HLT)
        assert guest.ram[0x2FFD:0x3003] == b"\0ZZZZ\0"
        assert guest.gpr[Gpr.RDI] == 0x3002


class TestUserspace:
    def test_out_leaves_rip_until_the_next_run(self, guest: Guest) -> None:
        guest.gpr[0] = 0x48
        out = guest.run(io(OUT, 0x3F8))
        assert out == uapi.KvmExitIo(uapi.Direction.OUT, 0x3F8, 1, 1, b"H")
        assert guest.kvm_run.io.data_offset == 4096
        assert guest.processor.rip == 0x1000
        guest.run(HLT)
        assert guest.processor.rip == 0x1003
        assert guest.vcpu.stat.ports[0x3F8].userspace_out == 1

    def test_port_7e_has_rip_behind_it_at_once(self, guest: Guest) -> None:
        guest.run(io(OUT, 0x7E))
        assert guest.processor.rip == 0x1002
        guest.run(HLT)
        assert guest.processor.rip == 0x1003

    def test_out_is_not_skipped_if_userspace_moved_rip(self, guest: Guest) -> None:
        guest.run(io(OUT, 0x3F8))
        regs = guest.vcpu.get_regs()
        regs.rip = 0x2000
        guest.vcpu.set_regs(regs)
        guest.run(HLT)
        assert guest.processor.rip == 0x2001

    def test_in_is_completed_by_the_next_run(self, guest: Guest) -> None:
        guest.gpr[0] = 0xFFFF_FFFF_FFFF_FFFF
        asked = guest.run(io(IN, 0x60, 2))
        assert asked == uapi.KvmExitIo(uapi.Direction.IN, 0x60, 2, 1, b"")
        assert (guest.processor.rip, guest.gpr[0]) == (0x1000, 0xFFFF_FFFF_FFFF_FFFF)
        guest.kvm_run.answer(b"\x34\x12")
        guest.run(HLT)
        assert (guest.processor.rip, guest.gpr[0]) == (0x1003, 0xFFFF_FFFF_FFFF_1234)

    def test_in_of_four_bytes_clears_the_upper_half(self, guest: Guest) -> None:
        guest.gpr[0] = 0xFFFF_FFFF_FFFF_FFFF
        guest.run(io(IN, 0x60, 4))
        guest.kvm_run.answer(b"\x78\x56\x34\x12")
        guest.run(HLT)
        assert guest.gpr[0] == 0x1234_5678

    def test_immediate_exit_completes_first(self, guest: Guest) -> None:
        guest.run(io(IN, 0x60))
        guest.kvm_run.answer(b"\x42")
        guest.kvm_run.immediate_exit = 1
        with pytest.raises(KvmError, match="immediate_exit"):
            guest.vcpu.run()
        assert (guest.processor.rip, guest.gpr[0]) == (0x1002, 0x42)

    def test_in_is_dropped_if_userspace_moved_rip(self, guest: Guest) -> None:
        guest.run(io(IN, 0x60))
        regs = guest.vcpu.get_regs()
        regs.rip = 0x2000
        guest.vcpu.set_regs(regs)
        guest.run(HLT)
        assert (guest.processor.rip, guest.gpr[0]) == (0x2001, 0)
        assert guest.inner.arch.pio.count == 0


class TestStrings:
    def test_rep_outs_is_an_exit_per_item(self, guest: Guest) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RSI] = 4, 0x2000
        guest.ram[0x2000:0x2004] = b"wxyz"
        for left, item in ((3, b"w"), (2, b"x"), (1, b"y"), (0, b"z")):
            exit = guest.run(string(OUT, 0x3F8))
            assert exit == uapi.KvmExitIo(uapi.Direction.OUT, 0x3F8, 1, 1, item)
            assert guest.gpr[Gpr.RCX] == left
            assert guest.processor.rip == 0x1000
        assert guest.gpr[Gpr.RSI] == 0x2004

    def test_outs_without_rep_is_done_at_its_exit(self, guest: Guest) -> None:
        guest.gpr[Gpr.RSI] = 0x2000
        guest.ram[0x2000:0x2004] = b"wxyz"
        exit = guest.run(string(OUT, 0x3F8, 4, rep=False))
        assert exit == uapi.KvmExitIo(uapi.Direction.OUT, 0x3F8, 4, 1, b"wxyz")
        assert guest.processor.rip == 0x1002
        guest.run(HLT)
        assert guest.processor.rip == 0x1003

    def test_rep_ins_is_one_exit(self, guest: Guest) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI] = 4, 0x2000
        exit = guest.run(string(IN, 0x60, 2))
        assert exit == uapi.KvmExitIo(uapi.Direction.IN, 0x60, 2, 4, b"")
        assert guest.gpr[Gpr.RCX] == 4
        guest.kvm_run.answer(b"aabbccdd")
        guest.run(HLT)
        assert guest.ram[0x2000:0x2009] == b"aabbccdd\0"
        assert (guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI]) == (0, 0x2008)
        assert guest.processor.rip == 0x1003

    def test_rep_ins_stops_at_the_end_of_the_page(self, guest: Guest) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI] = 4, 0x2FFD
        assert guest.run(string(IN, 0x60)).count == 3
        guest.kvm_run.answer(b"abc")
        assert guest.run(string(IN, 0x60)).count == 1
        guest.kvm_run.answer(b"d")
        guest.run(HLT)
        assert guest.ram[0x2FFD:0x3001] == b"abcd"

    def test_rep_ins_asks_for_a_kilobyte_at_most(self, guest: Guest) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI] = 2000, 0x2000
        assert guest.run(string(IN, 0x60)).count == 1024

    def test_downwards(self, guest: Guest) -> None:
        guest.set_rflags(Rflags.DF)
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI] = 2, 0x2010
        guest.run(string(IN, 0x60, 2))
        guest.kvm_run.answer(b"aabb")
        guest.run(HLT)
        assert guest.ram[0x200E:0x2012] == b"bbaa"
        assert guest.gpr[Gpr.RDI] == 0x200C

    def test_sixteen_bit_addresses_wrap_and_keep_the_upper_half(self, guest: Guest) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RSI] = 0xAAAA_0002, 0xBBBB_FFFF
        guest.ram[0xFFFF], guest.ram[0] = b"pq"
        assert guest.run(string(OUT, 0x3F8, address_size=2)).data == b"p"
        assert guest.gpr[Gpr.RSI] == 0xBBBB_0000
        assert guest.run(string(OUT, 0x3F8, address_size=2)).data == b"q"
        assert guest.gpr[Gpr.RCX] == 0xAAAA_0000

    def test_the_segment_is_the_exits(self, guest: Guest) -> None:
        guest.processor.vmwrite(F.GUEST_FS_BASE, 0x3000)
        guest.ram[0x3004] = ord("f")
        guest.gpr[Gpr.RSI], guest.gpr[Gpr.RCX] = 4, 1
        assert guest.run(string(OUT, 0x3F8, segment=Segment.FS)).data == b"f"

    def test_a_page_fault_comes_before_the_port_is_read(
        self, guest: Guest, latch: Latch
    ) -> None:
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr3 = 0x8000_0011, 0x4000
        guest.vcpu.set_sregs(sregs)
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RDI] = 1, 0x0040_0000
        guest.run(string(IN, 0x300), HLT)
        assert latch.log == []
        assert guest.processor.cr2 == 0x0040_0000
        assert guest.processor.injected == [0, 0x8000_0B0E]
        assert guest.field(F.VM_ENTRY_EXCEPTION_ERROR_CODE) == 2

    def test_ins_into_nothing_is_an_emulation_error(self, guest: Guest) -> None:
        guest.gpr[Gpr.RCX], guest.gpr[Gpr.RSI] = 1, 0x9000_0000
        exit = guest.run(string(OUT, 0x3F8))
        assert isinstance(exit, uapi.KvmExitInternalError)
        assert exit.suberror == uapi.KVM_INTERNAL_ERROR_EMULATION


class TestFastPorts:
    """What the engine answers by itself, called as the engine calls it."""

    def test_every_in_kernel_port_is_handed_down(self, irq_guest: Guest) -> None:
        ports = irq_guest.processor.ports
        expected = {0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61}
        assert ports.fast_out.keys() == ports.fast_in.keys() == expected

    def test_none_without_the_irqchip(self, guest: Guest) -> None:
        assert guest.processor.ports.fast_out == {}

    def test_they_count_as_the_exits_they_stand_for(self, irq_guest: Guest) -> None:
        guest = irq_guest
        exits = guest.clock.exits
        assert guest.processor.ports.fast_out[0x21](0x21, 1, 0xFB) is False
        assert guest.processor.ports.fast_in[0x21](0x21, 1) == 0xFB
        assert guest.clock.exits == exits + 2
        assert guest.vcpu.stat.exits[ExitReason.IO_INSTRUCTION] == 2
        assert guest.vcpu.stat.ports[0x21].kernel_out == 1
        assert guest.vcpu.stat.ports[0x21].kernel_in == 1

    def test_the_guest_is_left_when_an_interrupt_became_pending(self, irq_guest: Guest) -> None:
        guest = irq_guest
        guest.vm.irq_line(3, 1)
        out = guest.processor.ports.fast_out
        guest.inner.requests = 0
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4)):
            assert out[port](port, 1, value) is False
        guest.vm.irq_line(3, 0)
        out[0x21](0x21, 1, 1)
        guest.vm.irq_line(3, 1)
        assert out[0x21](0x21, 1, 0) is True

    def test_they_are_off_while_exits_are_watched(self) -> None:
        probes, seen = Probes(), Everything()
        guest = Guest(irqchip=True, probes=probes)
        guest.vm.report_dead_halt = True
        guest.run(HLT)
        assert guest.processor.ports.enabled is True
        probes.add(seen)
        guest.run(HLT)
        assert guest.processor.ports.enabled is False
        guest.gpr[0] = 0xFE
        guest.run(io(OUT, 0x21), HLT)
        assert seen.of("pio")[0][2:] == (True, 0x21, 1, 1, 0xFE)
        probes.remove(seen)
        guest.run(HLT)
        assert guest.processor.ports.enabled is True
        guest.vm.close()
