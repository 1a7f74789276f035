"""RDMSR and WRMSR of what the engine holds, when the MSR bitmaps let the guest at it directly.

Any other MSR is #GP: a hypervisor that passes it through asks for what this processor does not
have. SDM Vol. 2, "RDMSR", "WRMSR"; Vol. 4 for reserved bits.
"""

from __future__ import annotations

from vmxsim.arch.bits import canonical
from vmxsim.arch.controls import CpuBased
from vmxsim.arch.events import Event
from vmxsim.arch.msrs import CANONICAL_MSRS, WRITABLE_BITS, Msr, valid_pat
from vmxsim.arch.registers import Cr0, Cr4, Efer, Gpr
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap
from vmxsim.vmx.execute_common import MASK_32, MASK_64, edx_eax, retire, set_edx_eax
from vmxsim.vmx.guest_access import raise_gp
from vmxsim.vmx.vmcs import Vmcs

_TSC_OFFSET = int(VmcsField.TSC_OFFSET)
_TSC = int(Msr.IA32_TIME_STAMP_COUNTER)
_EFER = int(Msr.IA32_EFER)
_WRITABLE = {int(msr): bits for msr, bits in WRITABLE_BITS.items()}
_CANONICAL = frozenset(int(msr) for msr in CANONICAL_MSRS)


def guest_tsc(vmcs: Vmcs, clock: Clock) -> int:
    """The time-stamp counter as the guest reads it."""
    tsc = clock.tsc()
    if vmcs.cpu_based & CpuBased.USE_TSC_OFFSETTING:
        tsc += vmcs.fields[_TSC_OFFSET]
    return tsc & MASK_64


def rdmsr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Read the MSR that ECX names into EDX:EAX."""
    index = cpu.gpr[Gpr.RCX] & MASK_32
    if index == _TSC:
        value = guest_tsc(vmcs, clock)
    else:
        try:
            value = cpu.msr(index)
        except KeyError:
            raise_gp()
    set_edx_eax(cpu, value)
    return retire(cpu, trap.insn)


def wrmsr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """Write EDX:EAX to the MSR that ECX names."""
    index = cpu.gpr[Gpr.RCX] & MASK_32
    value = edx_eax(cpu)
    check_msr_value(cpu, index, value)
    if index == _EFER:
        value = value & ~Efer.LMA | cpu.efer & Efer.LMA
    try:
        cpu.set_msr(index, value)
    except KeyError:
        raise_gp()
    return retire(cpu, trap.insn)


def check_msr_value(cpu: Cpu, index: int, value: int) -> None:
    """#GP for reserved bits, bad addresses and memory types, and LME changed under paging."""
    if value & ~_WRITABLE.get(index, MASK_64):
        raise_gp()
    if index in _CANONICAL and not canonical(value, 57 if cpu.cr4 & Cr4.LA57 else 48):
        raise_gp()
    if index == Msr.IA32_PAT and not valid_pat(value):
        raise_gp()
    if index == _EFER and cpu.cr0 & Cr0.PG and (value ^ cpu.efer) & Efer.LME:
        raise_gp()
