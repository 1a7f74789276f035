"""Rows of the intercept table that consult bitmaps: I/O instructions, RDMSR and WRMSR.

The hottest rows of all: qualifications are built by arithmetic, enumeration members are looked up
at import, exits are made by ``tuple.__new__`` (half the price of calling a NamedTuple), and the
permission of a port is looked into only above CPL 0.
"""

from __future__ import annotations

from vmxsim.arch.controls import CpuBased
from vmxsim.arch.events import Event
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Gpr, Rflags
from vmxsim.arch.segments import Segment
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import InsnTrap, IoTrap
from vmxsim.errors import ConfigError
from vmxsim.vmx import operands as info
from vmxsim.vmx.bitmaps import msr_exits, port_exits
from vmxsim.vmx.guest_access import GuestFault, raise_gp, read_int
from vmxsim.vmx.intercept_common import InsnHandler, Outcome, prebuilt, stopped_at
from vmxsim.vmx.records import VmExit
from vmxsim.vmx.vmcs import Vmcs

_IO = ExitReason.IO_INSTRUCTION
_USE_IO_BITMAPS = CpuBased.USE_IO_BITMAPS
_UNCONDITIONAL = CpuBased.UNCONDITIONAL_IO_EXITING
_USE_MSR_BITMAPS = CpuBased.USE_MSR_BITMAPS
_BOUNCED_KEPT = 4096
_new = tuple.__new__


def msr_access(reason: ExitReason, write: bool) -> InsnHandler:
    """RDMSR and WRMSR: always, unless the MSR bitmaps are used and the bit is 0."""
    exits = prebuilt(reason)

    def handler(trap: InsnTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
        if vmcs.cpu_based & _USE_MSR_BITMAPS and not msr_exits(
            vmcs, cpu, cpu.gpr[1] & 0xFFFF_FFFF, write
        ):
            return None
        return exits[trap[2][2]]

    return handler


def io_instruction(trap: IoTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """IN, OUT, INS, OUTS: permission first, then the bitmaps or unconditional I/O exiting."""
    _, _, insn, is_in, port, size, _, string, _ = trap
    if cpu.cpl:
        refused = _port_refused(cpu, port, size)
        if refused is not None:
            return refused
    controls = vmcs.cpu_based
    if controls & _USE_IO_BITMAPS:
        if not port_exits(vmcs, cpu, port, size):
            return None
    elif not controls & _UNCONDITIONAL:
        return None
    qualification = port << 16 | size - 1
    if is_in:
        qualification |= 1 << 3
    if string:
        return _string_io(trap, cpu, qualification)
    length = insn[2]
    if length > 1 and insn[1][-2] & 0xFC == 0xE4:  # E4-E7: the port is an immediate
        qualification |= 1 << 6
    return _new(VmExit, (_IO, qualification, length, 0, 0, 0, 0, 0, 0, 0, trap, False))


def bounced_io(trap: IoTrap, vmcs: Vmcs, cpu: Cpu) -> Outcome:
    """IN and OUT that root mode's bounce function has seen: CPL 0, unconditional I/O exiting.

    The exit of an instruction that bounced before is the same exit again.
    """
    before = vmcs.bounced.get(trap[1])
    if before is not None and before.trap is trap:
        return before
    outcome = io_instruction(trap, vmcs, cpu)
    if not isinstance(outcome, VmExit):
        raise ConfigError("ports bounce, but the VMCS has no unconditional I/O exiting")
    if len(vmcs.bounced) >= _BOUNCED_KEPT:
        vmcs.bounced.clear()
    vmcs.bounced[trap[1]] = outcome
    return outcome


def _string_io(trap: IoTrap, cpu: Cpu, qualification: int) -> VmExit | None:
    """INS and OUTS; with a count of 0 they do no I/O, and do not exit."""
    insn = trap.insn
    mask = (1 << 8 * insn.address_size) - 1
    qualification |= 1 << 4
    if trap.rep:
        if not cpu.gpr[Gpr.RCX] & mask:
            return None
        qualification |= 1 << 5
    return VmExit(
        ExitReason.IO_INSTRUCTION,
        qualification,
        insn.length,
        info.string_io_info(insn, trap.is_in),
        string_io_address(trap, cpu),
        trap=trap,
    )


def string_io_address(trap: IoTrap, cpu: Cpu) -> int:
    """The linear address INS writes to or OUTS reads from."""
    insn = trap.insn
    mask = (1 << 8 * insn.address_size) - 1
    if trap.is_in:
        segment, offset = int(Segment.ES), cpu.gpr[Gpr.RDI] & mask
    else:
        segment, offset = info.source_segment(insn), cpu.gpr[Gpr.RSI] & mask
    if insn.bits == 64 and segment < Segment.FS:
        return offset
    address = cpu.segment(segment).base + offset
    return address & (0xFFFF_FFFF_FFFF_FFFF if insn.bits == 64 else 0xFFFF_FFFF)


def _port_refused(cpu: Cpu, port: int, size: int) -> VmExit | Event | None:
    """#GP where neither IOPL nor the TSS's permission bitmap allows the port.

    SDM Vol. 1, "I/O Privilege Level" and "I/O Permission Bit Map".
    """
    flags = cpu.rflags
    if not flags & Rflags.VM and cpu.cpl <= flags >> Rflags.IOPL_SHIFT & 3:
        return None
    task = cpu.segment(Segment.TR)
    try:
        if task.unusable or task.type & 9 != 9 or task.limit < 103:
            raise_gp()
        offset = read_int(cpu, task.base + 102, 2, user=False) + (port >> 3)
        if offset + 1 > task.limit:
            raise_gp()
        bits = read_int(cpu, task.base + offset, 2, user=False) >> (port & 7)
        if bits & (1 << size) - 1:
            raise_gp()
    except GuestFault as stopped:
        return stopped_at(stopped, cpu)
    return None
