"""How a guest asks its own kernel: SYSCALL, SYSENTER, INT n, INT3, INTO and INT1.

SYSCALL and SYSENTER switch at once; the others become events for delivery, which checks gates.
SDM Vol. 2, the instructions' pages (an Intel processor: SYSCALL exists in 64-bit mode only).
Left out: CR4.VME's redirection of INT n in virtual-8086 mode, FRED, shadow stacks.
"""

from __future__ import annotations

from vmxsim.arch.events import Event, EventType, Vector
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Efer, Gpr, Rflags
from vmxsim.arch.segments import AccessRights, Segment, SegmentRegister
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap
from vmxsim.vmx.execute_common import MASK_32, next_rip, retire, retired
from vmxsim.vmx.guest_access import raise_gp, raise_ud
from vmxsim.vmx.vmcs import Vmcs

_STAR = int(Msr.IA32_STAR)
_LSTAR = int(Msr.IA32_LSTAR)
_FMASK = int(Msr.IA32_FMASK)
_SYSENTER_CS = int(Msr.IA32_SYSENTER_CS)
_SYSENTER_ESP = int(Msr.IA32_SYSENTER_ESP)
_SYSENTER_EIP = int(Msr.IA32_SYSENTER_EIP)


def syscall(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """To LSTAR at CPL 0, flags masked; a TF that the mask clears gives no single step."""
    insn = trap.insn
    if not cpu.efer & Efer.SCE or insn.bits != 64:
        raise_ud()
    flags = cpu.rflags & ~Rflags.RF
    selector = cpu.msr(_STAR) >> 32 & 0xFFFC
    cpu.gpr[Gpr.RCX] = next_rip(cpu, insn)
    cpu.gpr[Gpr.R11] = flags
    cpu.rflags = flags & ~cpu.msr(_FMASK) | Rflags.FIXED
    _flat_kernel(cpu, selector, AccessRights.FLAT_CODE64)
    cpu.rip = cpu.msr(_LSTAR)
    return retired(cpu)


def sysenter(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """To SYSENTER_EIP at CPL 0, interrupts off; a 64-bit kernel's in IA-32e mode."""
    selector = cpu.msr(_SYSENTER_CS) & 0xFFFC
    if not cpu.cr0 & Cr0.PE or not selector:
        raise_gp()
    ia32e = cpu.efer & Efer.LMA != 0
    mask = (1 << 64) - 1 if ia32e else MASK_32
    cpu.rflags &= ~(Rflags.VM | Rflags.IF)
    _flat_kernel(cpu, selector, AccessRights.FLAT_CODE64 if ia32e else AccessRights.FLAT_CODE32)
    cpu.gpr[Gpr.RSP] = cpu.msr(_SYSENTER_ESP) & mask
    cpu.rip = cpu.msr(_SYSENTER_EIP) & mask
    return retired(cpu)


def _flat_kernel(cpu: Cpu, selector: int, code_rights: int) -> None:
    """CS and the SS eight above it, flat and of level 0, without a look at the GDT."""
    cpu.set_segment(Segment.CS, SegmentRegister(selector, 0, MASK_32, code_rights))
    data = SegmentRegister(selector + 8 & 0xFFFF, 0, MASK_32, AccessRights.FLAT_DATA32)
    cpu.set_segment(Segment.SS, data)


def int_n(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """INT n: sensitive to IOPL in virtual-8086 mode."""
    flags = cpu.rflags
    if flags & Rflags.VM and flags & Rflags.IOPL != Rflags.IOPL:
        raise_gp()
    insn = trap.insn
    vector = insn.operands[0].value & 0xFF
    return Event(EventType.SOFTWARE_INTERRUPT, vector, None, insn.length)


def int3(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """INT3."""
    return Event(EventType.SOFTWARE_EXCEPTION, Vector.BP, None, trap.insn.length)


def into(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """INTO: nothing without OF, and no such instruction in 64-bit mode."""
    insn = trap.insn
    if insn.bits == 64:
        raise_ud()
    if not cpu.rflags & Rflags.OF:
        return retire(cpu, insn)
    return Event(EventType.SOFTWARE_EXCEPTION, Vector.OF, None, insn.length)


def int1(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu, clock: Clock) -> Event | None:
    """INT1, once ICEBP: a #DB that passes its gate whatever the DPL."""
    return Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, Vector.DB, None, trap.insn.length)
