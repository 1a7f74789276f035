"""The processor as root-mode software sees it: the VMX instructions, and nothing who runs them.

SDM Vol. 3, chapter "VMX Instruction Reference". Outcomes are values: None or a number for
VMsucceed, VmFail, VmExit for an entry that succeeded. An exception that the instruction would
raise in root mode is a VmxFault.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.arch import capabilities
from vmxsim.arch.bits import MASK_32, MASK_64, canonical
from vmxsim.arch.capabilities import EptVpidCap
from vmxsim.arch.controls import CpuBased
from vmxsim.arch.events import InterruptionInfo, Vector
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Efer, Gpr, Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import Clock
from vmxsim.cpu.interface import Cpu
from vmxsim.errors import ConfigError
from vmxsim.vmx import entry
from vmxsim.vmx.checks_controls import eptp_fault
from vmxsim.vmx.entry_checks import PHYSICAL_MASK, Failure
from vmxsim.vmx.exit import HostState, save_guest_state
from vmxsim.vmx.intercept import intercept_table
from vmxsim.vmx.nonroot import NonRoot
from vmxsim.vmx.records import VmExit, VmFail, VmxAbort, VmxFault
from vmxsim.vmx.vmcs import (
    MASKS,
    LaunchState,
    Vmcs,
    is_high,
    is_read_only,
    merge_high,
)  # fmt: skip

__all__ = [
    "Failure", "HostState", "LaunchState", "Processor", "VmExit", "VmFail", "VmxAbort", "VmxFault",
]  # fmt: skip

NO_POINTER = MASK_64
"""VMPTRST without a current VMCS."""

_RIP = int(F.GUEST_RIP)
_RFLAGS = int(F.GUEST_RFLAGS)
_RSP = int(F.GUEST_RSP)
_CR3 = int(F.GUEST_CR3)
_INTERRUPTIBILITY = int(F.GUEST_INTERRUPTIBILITY_INFO)
_INTR_INFO = int(F.VM_ENTRY_INTR_INFO_FIELD)
_ERROR_CODE = int(F.VM_ENTRY_EXCEPTION_ERROR_CODE)
_INSTRUCTION_LEN = int(F.VM_ENTRY_INSTRUCTION_LEN)
_CPU_BASED = int(F.CPU_BASED_VM_EXEC_CONTROL)
_WINDOW = CpuBased.INTERRUPT_WINDOW_EXITING
_VALID = InterruptionInfo.VALID
_LOW_CANONICAL, _HIGH_CANONICAL = 1 << 47, MASK_64 - (1 << 47) + 1
_PLAIN_RFLAGS = Rflags.DEFINED & ~(Rflags.VM | Rflags.TF)
_LAUNCHED = LaunchState.LAUNCHED


class Processor(NonRoot):
    """One logical processor with VMX. Not for two threads at once, except for kick()."""

    def __init__(self, cpu: Cpu, clock: Clock) -> None:
        super().__init__(cpu, clock)
        self.regions: dict[int, Vmcs] = {}
        self.vmxon_pointer: int | None = None
        self._all_short_writes: dict[int, Callable[[int], bool]] = {
            _RIP: self._write_rip,
            _RFLAGS: self._write_rflags,
            _RSP: self._write_rsp,
            _CR3: self._write_cr3,
            _INTERRUPTIBILITY: self._write_interruptibility,
            _INTR_INFO: self._write_intr_info,
            _ERROR_CODE: self._write_error_code,
            _INSTRUCTION_LEN: self._write_instruction_length,
            _CPU_BASED: self._write_cpu_based,
        }
        self._short_writes: dict[int, Callable[[int], bool]] = {}

    @classmethod
    def create(cls, clock: Clock) -> Processor:
        """A processor that runs guests in the engine, which is loaded now and not before."""
        from vmxsim.cpu.cpu import UnicornCpu

        return cls(UnicornCpu(), clock)

    # ---- entering and leaving VMX operation

    def vmxon(self, address: int) -> VmFail | None:
        """Enter VMX operation; ``address`` is the VMXON region's."""
        if not self.host.cr4 & Cr4.VMXE:
            raise VmxFault(Vector.UD, "VMXON needs CR4.VMXE")
        if self.vmxon_pointer is not None:
            return self._fail(InstructionError.VMXON_IN_VMX_ROOT)
        if _bad_region(address) or self._region_revision(address) != capabilities.VMCS_REVISION:
            return VmFail(None)
        self.vmxon_pointer = address
        return None

    def vmxoff(self) -> VmFail | None:
        """Leave VMX operation. VMCSs that are active stay so: VMCLEAR them before."""
        self._require_vmx_operation()
        self._put_away()
        self.vmxon_pointer = None
        return None

    def _require_vmx_operation(self) -> None:
        if self.vmxon_pointer is None:
            raise VmxFault(Vector.UD, "not in VMX operation: VMXON first")

    def _require_current(self) -> None:
        self._require_vmx_operation()
        if self.current is None:
            raise ConfigError("no current VMCS: VMPTRLD first")

    # ---- VMCS pointers

    def vmclear(self, address: int) -> VmFail | None:
        """Write a VMCS back to its region and make its launch state clear."""
        self._require_vmx_operation()
        if _bad_region(address):
            return self._fail(InstructionError.VMCLEAR_INVALID_ADDRESS)
        if address == self.vmxon_pointer:
            return self._fail(InstructionError.VMCLEAR_VMXON_POINTER)
        vmcs = self._region(address)
        if vmcs is self.current:
            self._put_away()
        vmcs.launch_state = LaunchState.CLEAR
        return None

    def vmptrld(self, address: int) -> VmFail | None:
        """Make a VMCS active and current."""
        self._require_vmx_operation()
        if _bad_region(address):
            return self._fail(InstructionError.VMPTRLD_INVALID_ADDRESS)
        if address == self.vmxon_pointer:
            return self._fail(InstructionError.VMPTRLD_VMXON_POINTER)
        if self._region_revision(address) != capabilities.VMCS_REVISION:
            return self._fail(InstructionError.VMPTRLD_INCORRECT_VMCS_REVISION_ID)
        vmcs = self._region(address)
        if vmcs is not self.current:
            self._put_away()
            self._make_current(vmcs)
            self._short_writes = self._all_short_writes
        return None

    def vmptrst(self) -> int:
        """The current-VMCS pointer; all ones when there is none."""
        self._require_vmx_operation()
        return NO_POINTER if self.current is None else self.current.address

    def _region(self, address: int) -> Vmcs:
        if address not in self.regions:
            self.regions[address] = Vmcs(address, self.host_pages)
        return self.regions[address]

    def _put_away(self) -> None:
        """Move the current VMCS's guest state out of the cpu; no VMCS is current then."""
        if self.current is not None:
            self._root = self.host
            save_guest_state(self._live, self._guest, self._fields)
            self.current.refresh()
        self.current = None
        self._fields, self._live, self._short_writes = {}, {}, {}
        self._changed = set(entry.WATCHED)
        self._dirty = True

    # ---- VMREAD, VMWRITE

    def vmread(self, field: int) -> int | VmFail:
        """A field of the current VMCS."""
        read = self._live.get(field)
        if read is not None:
            return read()
        value = self._fields.get(field)
        return self._vmread_rare(field) if value is None else value

    def _vmread_rare(self, field: int) -> int | VmFail:
        self._require_vmx_operation()
        if self.current is None:
            return VmFail(None)
        if not self.current.supports(field):
            return self._fail(InstructionError.UNSUPPORTED_VMCS_COMPONENT)
        read = self._live.get(field - 1)
        return (self._fields[field - 1] if read is None else read()) >> 32

    def vmwrite(self, field: int, value: int) -> VmFail | None:
        """Change a field of the current VMCS; the value is cut to the field's width."""
        write = self._short_writes.get(field)
        if write is not None and write(value):
            return None
        return self._vmwrite(int(field), value)

    def _vmwrite(self, field: int, value: int) -> VmFail | None:
        self._require_vmx_operation()
        vmcs = self.current
        if vmcs is None:
            return VmFail(None)
        if not vmcs.supports(field):
            return self._fail(InstructionError.UNSUPPORTED_VMCS_COMPONENT)
        if is_read_only(field):
            return self._fail(InstructionError.VMWRITE_READ_ONLY_VMCS_COMPONENT)
        full = field - 1 if is_high(field) else field
        read = self._live.get(full)
        before = self._fields[full] if read is None else read()
        value = merge_high(before, value) if field != full else value & MASKS[full]
        if value == before and full not in self._changed:
            return None
        self._live.pop(full, None)
        vmcs.write(full, value)
        if full in entry.WATCHED:
            self._changed.add(full)
            self._dirty = True
        return None

    # ---- fields that are written often: the short way, or False for the long one

    def _write_rip(self, value: int) -> bool:
        if _RIP in self._changed:
            return False
        if not 0 <= value <= MASK_32 and not self._canonical_code(value):
            return False
        self.cpu.rip = value
        return True

    def _canonical_code(self, value: int) -> bool:
        low_or_high = value < _LOW_CANONICAL or _HIGH_CANONICAL <= value <= MASK_64
        return low_or_high and self.cpu.mode_bits == 64

    def _write_rflags(self, value: int) -> bool:
        cpu = self.cpu
        if value & ~_PLAIN_RFLAGS or not value & Rflags.FIXED or _RFLAGS in self._changed:
            return False
        if cpu.shadow or cpu.rflags & (Rflags.VM | Rflags.TF):
            return False
        cpu.rflags = value
        return True

    def _write_rsp(self, value: int) -> bool:
        if _RSP in self._changed:
            return False
        self.cpu.gpr[Gpr.RSP] = value & MASK_64
        return True

    def _write_cr3(self, value: int) -> bool:
        cpu = self.cpu
        if value > PHYSICAL_MASK or _CR3 in self._changed:
            return False
        if cpu.cr0 & Cr0.PG and cpu.cr4 & Cr4.PAE and not cpu.efer & Efer.LMA:
            return False
        cpu.cr3 = value
        return True

    def _write_interruptibility(self, value: int) -> bool:
        if value or _INTERRUPTIBILITY in self._changed:
            return False
        self.cpu.shadow = 0
        self._fields[_INTERRUPTIBILITY] = 0
        return True

    def _write_intr_info(self, value: int) -> bool:
        self._fields[_INTR_INFO] = value & MASK_32
        if value & _VALID:
            self._changed.add(_INTR_INFO)
            self._dirty = True
        return True

    def _write_error_code(self, value: int) -> bool:
        self._fields[_ERROR_CODE] = value & MASK_32
        return True

    def _write_instruction_length(self, value: int) -> bool:
        self._fields[_INSTRUCTION_LEN] = value & MASK_32
        return True

    def _write_cpu_based(self, value: int) -> bool:
        """Only interrupt-window exiting changes: always allowed, and nothing depends on it."""
        if (self._fields[_CPU_BASED] ^ value) & ~_WINDOW or _CPU_BASED in self._changed:
            return False
        self._fields[_CPU_BASED] = self._vmcs.cpu_based = value
        self.cpu.interrupt_window = value & _WINDOW != 0
        return True

    @property
    def rip(self) -> int:
        """GUEST_RIP of the current VMCS; setting it is what skipping an instruction costs."""
        if self._changed and _RIP in self._changed:
            self._require_current()
            return self._fields[_RIP]
        return self.cpu.rip

    @rip.setter
    def rip(self, value: int) -> None:
        if not self._changed and 0 <= value <= MASK_32:
            self.cpu.rip = value
        elif not self._write_rip(value):
            self._require_current()
            self._vmwrite(_RIP, value & MASK_64)

    def skip(self, length: int) -> None:
        """Move GUEST_RIP past an instruction that root mode has done for the guest.

        Blocking by STI and MOV SS ends with it, as it does when the instruction runs.
        """
        if self._changed or self.current is None:
            self.rip += length
            self.vmwrite(_INTERRUPTIBILITY, 0)
        else:
            self.cpu.skip(length)

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF of the guest, for less than reading GUEST_RFLAGS costs."""
        if self._changed and _RFLAGS in self._changed or self.current is None:
            return self._fields.get(_RFLAGS, 0) & Rflags.IF != 0
        return self.cpu.interrupts_enabled

    # ---- VM entry

    def vmlaunch(self) -> VmExit | VmFail:
        """Enter the guest of the current VMCS for the first time; returns at its next VM exit."""
        self._require_vmx_operation()
        return VmFail(None) if self.current is None else self._enter(LaunchState.CLEAR)

    def vmresume(self) -> VmExit | VmFail:
        """Enter the guest again; returns at its next VM exit.

        The short way is taken when no field that matters was written since the last exit.
        """
        if self._dirty:
            self._require_vmx_operation()
            return VmFail(None) if self.current is None else self._enter(_LAUNCHED)
        trap = self._run()
        self._ticks.exits += 1
        vmcs = self._vmcs
        outcome = intercept_table[trap[0]](trap, vmcs, self.cpu)
        if type(outcome) is VmExit:
            vmcs.last_exit = outcome
            return outcome
        return self._go_on(trap, outcome)

    # ---- translations

    def invept(self, kind: int, eptp: int = 0) -> VmFail | None:
        """Invalidate mappings of one EPT pointer (kind 1) or of all (2)."""
        self._require_vmx_operation()
        capability = self.capability_msr(Msr.IA32_VMX_EPT_VPID_CAP)
        allowed = {
            1: EptVpidCap.INVEPT_SINGLE_CONTEXT, 2: EptVpidCap.INVEPT_ALL_CONTEXTS,
        }.get(kind, 0)  # fmt: skip
        if not capability & allowed or (kind == 1 and eptp_fault(eptp, self.cpu)):
            return self._fail(InstructionError.INVALID_OPERAND_TO_INVEPT_INVVPID)
        self.cpu.flush_tlb()
        return None

    def invvpid(self, kind: int, vpid: int = 0, address: int = 0) -> VmFail | None:
        """Invalidate mappings of one address (0), one VPID (1), all (2), one but globals (3)."""
        self._require_vmx_operation()
        capability = self.capability_msr(Msr.IA32_VMX_EPT_VPID_CAP)
        bad = not 0 <= kind <= 3 or not capability & EptVpidCap.INVVPID_INDIVIDUAL_ADDRESS << kind
        bad = bad or vpid > 0xFFFF or (kind != 2 and not vpid)
        if bad or (kind == 0 and not canonical(address, 57)):
            return self._fail(InstructionError.INVALID_OPERAND_TO_INVEPT_INVVPID)
        if kind == 0:
            self.cpu.invlpg(address)
        else:
            self.cpu.flush_tlb()
        return None

    def capability_msr(self, index: int) -> int:
        """RDMSR of an IA32_VMX_* MSR; KeyError for one this processor does not have."""
        return capabilities.value(index)


def _bad_region(address: int) -> bool:
    return address & 0xFFF != 0 or not 0 <= address <= PHYSICAL_MASK
