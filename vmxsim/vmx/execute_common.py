"""What completing an instruction ends with: RIP past it, shadow and RF cleared, single step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vmxsim.arch.events import Event, Vector, fault
from vmxsim.arch.registers import Dr6, Gpr, Rflags
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, Instruction, Trap
from vmxsim.vmx.vmcs import Vmcs

Completer: TypeAlias = Callable[[Trap, Vmcs, Cpu, Clock], "Event | None"]
InsnCompleter: TypeAlias = Callable[[InsnTrap, Vmcs, Cpu, Clock], "Event | None"]

MASK_32 = 0xFFFF_FFFF
MASK_64 = 0xFFFF_FFFF_FFFF_FFFF


def next_rip(cpu: Cpu, insn: Instruction) -> int:
    """The address after an instruction, wrapped to its code size."""
    return cpu.rip + insn.length & (1 << insn.bits) - 1


def retire(cpu: Cpu, insn: Instruction) -> Event | None:
    """Finish an instruction that goes on with the next one: the #DB of a single step, or None."""
    cpu.rip = next_rip(cpu, insn)
    return retired(cpu)


def retired(cpu: Cpu) -> Event | None:
    """Finish an instruction that has set RIP itself."""
    if cpu.shadow:
        cpu.shadow = 0
    flags = cpu.rflags
    if flags & Rflags.RF:
        cpu.rflags = flags & ~Rflags.RF
    if flags & Rflags.TF:
        return fault(Vector.DB, None, Dr6.BS)
    return None


def set_edx_eax(cpu: Cpu, value: int) -> None:
    """Store 64 bits into EDX:EAX; the upper halves of RDX and RAX become 0."""
    cpu.gpr[Gpr.RAX] = value & MASK_32
    cpu.gpr[Gpr.RDX] = value >> 32 & MASK_32


def edx_eax(cpu: Cpu) -> int:
    """The 64 bits in EDX:EAX."""
    return (cpu.gpr[Gpr.RDX] & MASK_32) << 32 | cpu.gpr[Gpr.RAX] & MASK_32
