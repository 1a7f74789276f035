"""CMPXCHG8B and CMPXCHG16B, which the engine does not do by itself: it spoils RFLAGS.

Unicorn 2.1.4 works their flags out of a state it has not brought up to date, and the garbage
reaches IF, TF and IOPL. SDM Vol. 2, "CMPXCHG8B/CMPXCHG16B".
"""

from __future__ import annotations

from vmxsim.arch.events import Event, Vector, fault
from vmxsim.arch.paging import Access, PageFault
from vmxsim.arch.registers import Gpr, Rflags
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, MemoryTrap
from vmxsim.vmx.execute_common import retire
from vmxsim.vmx.guest_access import GuestFault
from vmxsim.vmx.vmcs import Vmcs

PAIR_SIZE = 16


def cmpxchg8b(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Compare EDX:EAX (RDX:RAX) with memory; store ECX:EBX, or load what is there. ZF tells.

    Memory is written in either case, so it must be writable.
    """
    operand = trap.insn.operands[0]
    size = PAIR_SIZE if trap.insn.mnemonic == "cmpxchg16b" else PAIR_SIZE // 2
    address = cpu.linear_address(trap.insn, operand)
    if size == PAIR_SIZE and address % PAIR_SIZE:
        return fault(Vector.GP, 0)
    found = cpu.read_linear(address, size, Access.WRITE)
    if isinstance(found, PageFault):
        return fault(Vector.PF, found.error_code, found.address)
    if isinstance(found, MemoryTrap):
        raise GuestFault(found)
    half, gpr = size // 2, cpu.gpr
    mask = (1 << 8 * half) - 1

    def pair(high: Gpr, low: Gpr) -> bytes:
        return b"".join((gpr[each] & mask).to_bytes(half, "little") for each in (low, high))

    equal = found == pair(Gpr.RDX, Gpr.RAX)
    cpu.write_linear(address, pair(Gpr.RCX, Gpr.RBX) if equal else found)
    if not equal:
        gpr[Gpr.RAX] = int.from_bytes(found[:half], "little")
        gpr[Gpr.RDX] = int.from_bytes(found[half:], "little")
    cpu.rflags = cpu.rflags & ~Rflags.ZF | (Rflags.ZF if equal else 0)
    return retire(cpu, trap.insn)
