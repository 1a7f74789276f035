"""Register states that are set by rule: after RESET, and after one turn of a string output.

SDM Vol. 3, "Processor State After Reset"; Vol. 2, "OUTS".
"""

from __future__ import annotations

from vmxsim.arch.registers import Gpr, Rflags
from vmxsim.arch.segments import (
    AccessRights,
    Segment,
    SegmentRegister,
    TableRegister,
    real_mode_segment,
)
from vmxsim.cpu.state import CpuState
from vmxsim.cpu.traps import Instruction


def reset(cpu: CpuState) -> None:
    """Put the registers in the state after RESET."""
    for number in range(16):
        cpu.gpr[number] = 0
    cpu.gpr[Gpr.RDX] = 0x600
    cpu.efer = cpu.cr4 = cpu.cr3 = cpu.cr2 = 0
    cpu.cr0 = 0x6000_0010
    cpu.rflags = Rflags.FIXED
    cpu.shadow = 0
    cpu.rip = 0xFFF0
    for segment in range(Segment.LDTR):
        cpu.set_segment(segment, real_mode_segment(0))
    code = SegmentRegister(0xF000, 0xFFFF_0000, 0xFFFF, AccessRights.REAL_CODE)
    cpu.set_segment(Segment.CS, code)
    cpu.set_segment(Segment.LDTR, SegmentRegister(0, 0, 0xFFFF, AccessRights.LDT))
    cpu.set_segment(Segment.TR, SegmentRegister(0, 0, 0xFFFF, AccessRights.BUSY_TSS))
    cpu.gdtr = cpu.idtr = TableRegister(0, 0xFFFF)
    cpu.dr[:] = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]
    cpu.xcr0 = 1


def finish_outs(cpu: CpuState, insn: Instruction, size: int) -> None:
    """Complete one turn of OUTS, or an OUT, whose output is done. The engine would end REP here."""
    gpr = cpu.gpr
    if insn.mnemonic == "out":
        cpu.skip(insn.length)
        return
    mask = (1 << 8 * insn.address_size) - 1
    keep = 0 if insn.address_size == 4 else ~mask
    step = -size if cpu.rflags & Rflags.DF else size
    gpr[Gpr.RSI] = gpr[Gpr.RSI] & keep | gpr[Gpr.RSI] + step & mask
    if insn.rep:
        left = gpr[Gpr.RCX] - 1 & mask
        gpr[Gpr.RCX] = gpr[Gpr.RCX] & keep | left
        if left:
            return
    cpu.skip(insn.length)
