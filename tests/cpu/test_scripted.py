"""ScriptedCpu: a script of traps that otherwise behaves as the floors above expect of a Cpu."""

from __future__ import annotations

import pytest

from vmxsim.arch.paging import PageFault
from vmxsim.arch.registers import Cr0, Efer, Rflags
from vmxsim.arch.segments import AccessRights, Segment, SegmentRegister
from vmxsim.cpu.interface import OPTIONAL_KINDS, Cpu, Memory, PortTable
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import (
    EventTrap,
    InsnTrap,
    Instruction,
    MemoryTrap,
    Operand,
    OperandKind,
    Trap,
    TrapKind,
)
from vmxsim.errors import EngineError

HLT = Instruction("hlt", b"\xf4", 1, 16, 2, 2, 0, False, -1, ())


def hlt(rip: int) -> InsnTrap:
    return InsnTrap(TrapKind.HLT, rip, HLT)


def test_it_is_a_cpu() -> None:
    cpu: Cpu = ScriptedCpu()
    memory: Memory = cpu.memory
    ports: PortTable = cpu.ports
    assert not ports.enabled
    assert not memory.backed(0, 1)
    assert TrapKind.INVLPG in OPTIONAL_KINDS


def test_traps_come_in_order_with_rip_on_them() -> None:
    cpu = ScriptedCpu([hlt(5), hlt(9)], rip=3)
    assert [cpu.run(), cpu.rip, cpu.run(), cpu.rip] == [hlt(5), 5, hlt(9), 9]
    assert [each.rip for each in cpu.entered] == [3, 5]


def test_a_function_changes_state_and_gives_the_trap() -> None:
    def step(cpu: ScriptedCpu) -> Trap:
        cpu.gpr[0] = 7
        return hlt(8)

    cpu = ScriptedCpu([step])
    assert (cpu.run(), cpu.gpr[0], cpu.rip) == (hlt(8), 7, 8)


def test_the_end_of_the_script_is_an_error() -> None:
    with pytest.raises(EngineError, match="the script is over, and the guest goes on at 0x7c00"):
        ScriptedCpu(rip=0x7C00).run()


def test_unknown_state_is_refused() -> None:
    with pytest.raises(TypeError, match="a cpu has no 'rax'"):
        ScriptedCpu(rax=1)


def test_a_kick_is_not_lost_and_comes_once() -> None:
    cpu = ScriptedCpu([hlt(1)])
    cpu.kick()
    assert [cpu.run(), cpu.run()] == [EventTrap(TrapKind.KICK, 0), hlt(1)]


@pytest.mark.parametrize(
    ("rflags", "shadow", "opens"),
    [(Rflags.IF | 2, 0, True), (2, 0, False), (Rflags.IF | 2, 1, False), (Rflags.IF | 2, 2, False)],
)
def test_the_interrupt_window(rflags: int, shadow: int, opens: bool) -> None:
    cpu = ScriptedCpu([hlt(0)], interrupt_window=True, rflags=rflags, shadow=shadow)
    assert (cpu.run().kind is TrapKind.INTERRUPT_WINDOW) is opens


@pytest.mark.parametrize(
    ("efer", "rights", "bits"),
    [
        (0, AccessRights.REAL_CODE, 16),
        (0, AccessRights.FLAT_CODE32, 32),
        (Efer.LMA, AccessRights.FLAT_CODE64, 64),
        (Efer.LMA, AccessRights.FLAT_CODE32, 32),
    ],
)
def test_the_code_size(efer: int, rights: int, bits: int) -> None:
    cpu = ScriptedCpu(efer=efer)
    cpu.set_segment(Segment.CS, SegmentRegister(8, 0, 0xFFFF_FFFF, rights))
    assert cpu.mode_bits == bits


def test_the_privilege_level() -> None:
    cpu = ScriptedCpu()
    assert cpu.cpl == 0
    cpu.set_segment(Segment.SS, SegmentRegister(0x33, 0, 0xFFFF_FFFF, 0xC0F3))
    assert cpu.cpl == 3
    assert ScriptedCpu(rflags=Rflags.VM | 2).cpl == 3


def test_msrs_that_are_registers_too() -> None:
    cpu = ScriptedCpu()
    cpu.set_msr(0xC000_0101, 0x1234)
    cpu.set_msr(0xC000_0080, Efer.SCE)
    cpu.set_msr(0x174, 8)
    assert (cpu.segment(Segment.GS).base, cpu.efer, cpu.msr(0x174)) == (0x1234, Efer.SCE, 8)
    assert (cpu.msr(0xC000_0101), cpu.msr(0xC000_0080)) == (0x1234, Efer.SCE)
    with pytest.raises(KeyError):
        cpu.msr(0x10)
    with pytest.raises(KeyError):
        cpu.set_msr(0x10, 0)


def test_memory_is_the_callers_buffer() -> None:
    cpu, ram = ScriptedCpu(), bytearray(16)
    cpu.memory.map(0x100, ram)
    cpu.memory.write(0x104, b"ab")
    assert (ram[4:6], cpu.memory.read(0x104, 2)) == (b"ab", b"ab")
    assert cpu.memory.backed(0x100, 16)
    assert not cpu.memory.backed(0x101, 16)
    with pytest.raises(LookupError, match="nothing at 0x200"):
        cpu.memory.read(0x200, 1)
    with pytest.raises(LookupError, match="nothing at 0x10f"):
        cpu.memory.write(0x10F, b"ab")
    cpu.memory.unmap(0x100, 16)
    assert not cpu.memory.backed(0x100, 1)


def test_linear_addresses_are_physical_unless_a_fault_is_planted() -> None:
    cpu = ScriptedCpu()
    cpu.memory.map(0, bytearray(0x3000))
    cpu.linear_faults[1] = PageFault(0x1000, 2)
    assert cpu.write_linear(0x10, b"hi") is None
    assert cpu.read_linear(0x10, 2) == b"hi"
    assert cpu.write_linear(0xFFF, b"hi") == PageFault(0x1000, 2)
    assert cpu.read_linear(0x1800, 1) == PageFault(0x1000, 2)
    assert cpu.read_linear(0x5000, 4, access=2) == MemoryTrap(
        TrapKind.MEMORY, 0, 0x5000, 4, 2, 0, 0x5000, False
    )
    assert cpu.write_linear(0x5000, b"a") == MemoryTrap(
        TrapKind.MEMORY, 0, 0x5000, 1, 1, 0, 0x5000, False
    )


@pytest.mark.parametrize(
    ("bits", "operand", "address"),
    [
        (16, Operand(OperandKind.MEMORY, 2, Segment.DS, base=3, index_reg=6, disp=-1), 0x2_000E),
        (32, Operand(OperandKind.MEMORY, 4, Segment.DS, base=3, index_reg=6, scale=4), 0x2_0023),
        (64, Operand(OperandKind.MEMORY, 8, Segment.DS, base=16, disp=8), 0x100C),
        (64, Operand(OperandKind.MEMORY, 8, Segment.GS, base=3), 0x7_000B),
    ],
)
def test_effective_addresses(bits: int, operand: Operand, address: int) -> None:
    cpu = ScriptedCpu(rip=0x1000)
    cpu.gpr[3], cpu.gpr[6] = 0xB, 4
    if bits == 32:
        cpu.gpr[6] = 6
    cpu.set_segment(Segment.DS, SegmentRegister(0x2000, 0x2_0000, 0xFFFF, AccessRights.REAL_DATA))
    cpu.set_segment(Segment.GS, SegmentRegister(0, 0x7_0000, 0xFFFF, AccessRights.REAL_DATA))
    insn = Instruction("mov", b"\x90" * 4, 4, bits, bits // 8, bits // 8, 0, False, -1, (operand,))
    assert cpu.linear_address(insn, operand) == address


def test_arming_flushing_and_wide_registers_are_noted() -> None:
    cpu = ScriptedCpu(cr0=Cr0.ET | Cr0.PE)
    cpu.arm(frozenset({TrapKind.PAUSE}))
    cpu.flush_tlb()
    cpu.invlpg(0x1000)
    cpu.set_xmm(2, b"x" * 16)
    cpu.fxrstor(b"f" * 512)
    assert (cpu.armed, cpu.tlb_flushes, cpu.invalidated) == ({TrapKind.PAUSE}, 1, [0x1000])
    assert (cpu.xmm(2), cpu.fxsave(), cpu.cr0) == (b"x" * 16, b"f" * 512, 0x11)
