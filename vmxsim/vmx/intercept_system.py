"""Rows of the intercept table for system instructions: control registers, tables, VMX itself.

Checked rows raise GuestFault for what ranks above their exit ("Relative Priority of Faults and
VM Exits"); VMX instructions exit at any privilege level, and only their mode is checked.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.arch.controls import CpuBased, Secondary
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Cr0, Cr4, Efer, Rflags
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, Instruction, OperandKind, Trap
from vmxsim.vmx import operands as info
from vmxsim.vmx.guest_access import raise_gp, raise_ud, read_operand
from vmxsim.vmx.intercept_common import InsnHandler, Outcome, fault_first, prebuilt
from vmxsim.vmx.records import VmExit
from vmxsim.vmx.vmcs import Vmcs

_CR0_MASK = int(VmcsField.CR0_GUEST_HOST_MASK)
_CR4_MASK = int(VmcsField.CR4_GUEST_HOST_MASK)
_CR0_SHADOW = int(VmcsField.CR0_READ_SHADOW)
_CR4_SHADOW = int(VmcsField.CR4_READ_SHADOW)
_CR3_TARGET_COUNT = int(VmcsField.CR3_TARGET_COUNT)
_CR3_TARGET_VALUE0 = int(VmcsField.CR3_TARGET_VALUE0)


# -- control and debug registers ----------------------------------------------------------------


def _cr_exit(trap: InsnTrap, qualification: int) -> VmExit:
    return VmExit(ExitReason.CR_ACCESS, qualification, trap.insn.length, trap=trap)


def mov_to_cr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """CR0 and CR4 by mask and shadow, CR3 by its targets, CR8 by its control."""
    insn = trap.insn
    number, register = insn.operands[0].index, insn.operands[1].index
    value = cpu.gpr[register] if insn.bits == 64 else cpu.gpr[register] & 0xFFFF_FFFF
    fields = vmcs.fields
    if number == 0:
        exits = (fields[_CR0_SHADOW] ^ value) & fields[_CR0_MASK] != 0
    elif number == 4:
        exits = (fields[_CR4_SHADOW] ^ value) & fields[_CR4_MASK] != 0
    elif number == 3:
        exits = vmcs.cpu_based & CpuBased.CR3_LOAD_EXITING != 0 and not _is_target(fields, value)
    else:
        exits = number == 8 and vmcs.cpu_based & CpuBased.CR8_LOAD_EXITING != 0
    return _cr_exit(trap, register << 8 | number) if exits else None


def _is_target(fields: dict[int, int], value: int) -> bool:
    """Whether a value is among the CR3-target values in use."""
    return any(
        fields[_CR3_TARGET_VALUE0 + 2 * number] == value
        for number in range(min(fields[_CR3_TARGET_COUNT], 4))
    )


def mov_from_cr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """CR3 and CR8 by their controls; CR0 and CR4 never exit."""
    register, number = trap.insn.operands[0].index, trap.insn.operands[1].index
    control = {3: CpuBased.CR3_STORE_EXITING, 8: CpuBased.CR8_STORE_EXITING}.get(number, 0)
    if not vmcs.cpu_based & control:
        return None
    return _cr_exit(trap, register << 8 | 1 << 4 | number)


def clts(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """When CR0.TS is the hypervisor's and the guest sees it set."""
    if not vmcs.fields[_CR0_MASK] & vmcs.fields[_CR0_SHADOW] & Cr0.TS:
        return None
    return _cr_exit(trap, 2 << 4)


@fault_first
def lmsw(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """When it sets PE, or changes MP, EM or TS, where those are the hypervisor's."""
    insn = trap.insn
    operand = insn.operands[0]
    source = read_operand(cpu, insn, operand, 2)
    mask, shadow = vmcs.fields[_CR0_MASK], vmcs.fields[_CR0_SHADOW]
    sets_pe = mask & source & ~shadow & Cr0.PE
    if not sets_pe and not (shadow ^ source) & mask & (Cr0.MP | Cr0.EM | Cr0.TS):
        return None
    qualification = source << 16 | 3 << 4
    if operand.kind != OperandKind.MEMORY:
        return _cr_exit(trap, qualification)
    return VmExit(
        ExitReason.CR_ACCESS,
        qualification | 1 << 6,
        insn.length,
        guest_linear_address=cpu.linear_address(insn, operand),
        trap=trap,
    )


def mov_dr(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """One control for both directions."""
    if not vmcs.cpu_based & CpuBased.MOV_DR_EXITING:
        return None
    return dr_exit(trap.insn, trap)


def dr_exit(insn: Instruction, trap: Trap) -> VmExit:
    """The DR_ACCESS exit of a MOV DR."""
    first, second = insn.operands[0], insn.operands[1]
    if first.kind == OperandKind.DR:
        qualification = second.index << 8 | first.index
    else:
        qualification = first.index << 8 | 1 << 4 | second.index
    return VmExit(ExitReason.DR_ACCESS, qualification, insn.length, trap=trap)


# -- instructions with a memory operand or more to check ----------------------------------------


def invlpg(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """The qualification is the linear address."""
    if not vmcs.cpu_based & CpuBased.INVLPG_EXITING:
        return None
    insn = trap.insn
    address = cpu.linear_address(insn, insn.operands[0])
    return VmExit(ExitReason.INVLPG, address, insn.length, trap=trap)


def _described(trap: InsnTrap, reason: ExitReason, information: int) -> VmExit:
    insn = trap.insn
    return VmExit(reason, info.displacement(insn, trap.rip), insn.length, information, trap=trap)


@fault_first
def invpcid(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """The INVLPG control, once INVPCID is enabled."""
    if not vmcs.secondary & Secondary.ENABLE_INVPCID:
        raise_ud()
    if cpu.cpl:
        raise_gp()
    if not vmcs.cpu_based & CpuBased.INVLPG_EXITING:
        return None
    return _described(trap, ExitReason.INVPCID, info.register_and_memory_info(trap.insn))


def table(identity: int) -> InsnHandler:
    """LGDT, LIDT, SGDT, SIDT; the two that store are refused by CR4.UMIP first."""
    stores = identity < 2

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        if stores:
            check_umip(cpu)
        if not vmcs.secondary & Secondary.DESCRIPTOR_TABLE_EXITING:
            return None
        return _described(trap, ExitReason.GDTR_IDTR, info.table_info(trap.insn, identity))

    return fault_first(handler)


def selector(identity: int) -> InsnHandler:
    """LLDT, LTR, SLDT, STR; the two that store are refused by CR4.UMIP first."""
    stores = identity < 2

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        if not cpu.cr0 & Cr0.PE or cpu.rflags & Rflags.VM:
            raise_ud()
        if stores:
            check_umip(cpu)
        if not vmcs.secondary & Secondary.DESCRIPTOR_TABLE_EXITING:
            return None
        return _described(trap, ExitReason.LDTR_TR, info.selector_info(trap.insn, identity))

    return fault_first(handler)


def check_umip(cpu: Cpu) -> None:
    """User-mode instruction prevention: SGDT, SIDT, SLDT, STR and SMSW are for CPL 0."""
    if cpu.cr4 & Cr4.UMIP and cpu.cpl:
        raise_gp()


def random_number(bit: int, reason: ExitReason) -> InsnHandler:
    """RDRAND and RDSEED."""

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        if not vmcs.secondary & bit:
            return None
        insn = trap.insn
        return VmExit(reason, 0, insn.length, info.random_info(insn), trap=trap)

    return handler


@fault_first
def rdtscp(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """The RDTSC control, once RDTSCP is enabled."""
    if not vmcs.secondary & Secondary.ENABLE_RDTSCP:
        raise_ud()
    if cpu.cr4 & Cr4.TSD and cpu.cpl:
        raise_gp()
    if not vmcs.cpu_based & CpuBased.RDTSC_EXITING:
        return None
    return VmExit(ExitReason.RDTSCP, 0, trap.insn.length)


@fault_first
def rdpmc(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Its control, and CR4.PCE above CPL 0."""
    if cpu.cpl and not cpu.cr4 & Cr4.PCE:
        raise_gp()
    if not vmcs.cpu_based & CpuBased.RDPMC_EXITING:
        return None
    return VmExit(ExitReason.RDPMC, 0, trap.insn.length)


@fault_first
def monitor(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Its control, at CPL 0."""
    if cpu.cpl:
        raise_ud()
    if not vmcs.cpu_based & CpuBased.MONITOR_EXITING:
        return None
    return VmExit(ExitReason.MONITOR_INSTRUCTION, 0, trap.insn.length)


@fault_first
def mwait(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Qualification 0: address-range monitoring is never armed here."""
    if cpu.cpl:
        raise_ud()
    if not vmcs.cpu_based & CpuBased.MWAIT_EXITING:
        return None
    return VmExit(ExitReason.MWAIT_INSTRUCTION, 0, trap.insn.length)


@fault_first
def xsetbv(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Always, once CR4.OSXSAVE and CPL allow it."""
    if not cpu.cr4 & Cr4.OSXSAVE:
        raise_ud()
    if cpu.cpl:
        raise_gp()
    return VmExit(ExitReason.XSETBV, 0, trap.insn.length)


@fault_first
def getsec(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Always, once CR4.SMXE allows it."""
    if not cpu.cr4 & Cr4.SMXE:
        raise_ud()
    return VmExit(ExitReason.GETSEC, 0, trap.insn.length)


# -- VMX instructions: in non-root operation they exit at any privilege level -------------------


def _check_vmx_mode(cpu: Cpu) -> None:
    """They do not exist in real, virtual-8086 and compatibility mode."""
    if not cpu.cr0 & Cr0.PE or cpu.rflags & Rflags.VM:
        raise_ud()
    if cpu.efer & Efer.LMA and cpu.mode_bits != 64:
        raise_ud()


def vmx(reason: ExitReason, information: Callable[[Instruction], int] | None = None) -> InsnHandler:
    """Always, in a mode that has VMX instructions."""
    exits = prebuilt(reason)

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        _check_vmx_mode(cpu)
        if information is None:
            return exits[trap.insn.length]
        return _described(trap, reason, information(trap.insn))

    return fault_first(handler)


@fault_first
def vmxon(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Always, as the other VMX instructions; CR4.VMXE must be 1."""
    if not cpu.cr4 & Cr4.VMXE:
        raise_ud()
    _check_vmx_mode(cpu)
    return _described(trap, ExitReason.VMON, info.memory_info(trap.insn))


@fault_first
def vmfunc(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """No function is ever enabled, so with the control it exits for every EAX."""
    if not vmcs.secondary & Secondary.ENABLE_VM_FUNCTIONS:
        raise_ud()
    return VmExit(ExitReason.VMFUNC, 0, trap.insn.length)


@fault_first
def enable_rdtscp(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """RDPID never exits; it exists with RDTSCP."""
    if not vmcs.secondary & Secondary.ENABLE_RDTSCP:
        raise_ud()
    return None


@fault_first
def smsw(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """Never exits: it reads CR0 through mask and shadow."""
    check_umip(cpu)
    return None
