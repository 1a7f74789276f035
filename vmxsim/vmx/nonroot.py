"""VMX non-root operation: from a VM entry through the guest's traps to the VM exit.

The state that entry and exit share: the current VMCS, which of its fields were written since the
guest last ran (``_changed``), and for which fields the cpu has the value (``_live``). When nothing
changed, an entry is one test and ``cpu.run()``; see ``Processor.vmresume``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vmxsim.arch import capabilities
from vmxsim.arch.controls import (
    Activity,
    CpuBased,
    EntryControls,
    ExitControls,
    Interruptibility,
    PendingDebug,
)  # fmt: skip
from vmxsim.arch.events import TRIPLE, Event, InterruptionInfo, Vector, combine, fault
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import Clock, VirtualClock
from vmxsim.cpu.interface import Cpu
from vmxsim.cpu.traps import EventTrap, MemoryTrap, Trap, TrapKind
from vmxsim.errors import ConfigError
from vmxsim.vmx import entry, msr_areas
from vmxsim.vmx.bitmaps import HostPages
from vmxsim.vmx.delivery import deliver
from vmxsim.vmx.entry_checks import EntryState, Failure, first_failure
from vmxsim.vmx.execute import complete
from vmxsim.vmx.exit import (
    EXIT_INFO,
    HostState,
    during_delivery,
    failed_entry,
    load_host_state,
)  # fmt: skip
from vmxsim.vmx.guest_state import Reader, guest_readers, load_guest_state
from vmxsim.vmx.intercept import event_exit, intercept_table
from vmxsim.vmx.intercept_common import Outcome
from vmxsim.vmx.records import VmExit, VmFail, VmxAbort
from vmxsim.vmx.shared_registers import SharedRegisters
from vmxsim.vmx.vmcs import LaunchState, Vmcs

_INTR_INFO = int(F.VM_ENTRY_INTR_INFO_FIELD)
_ACTIVITY = int(F.GUEST_ACTIVITY_STATE)
_PENDING_DEBUG = int(F.GUEST_PENDING_DBG_EXCEPTIONS)
_STORE_COUNT = int(F.VM_EXIT_MSR_STORE_COUNT)
_EXIT_LOAD_COUNT = int(F.VM_EXIT_MSR_LOAD_COUNT)
_ENTRY_LOAD_COUNT = int(F.VM_ENTRY_MSR_LOAD_COUNT)
_EVERY_TIME = (_ACTIVITY, _PENDING_DEBUG, _STORE_COUNT, _EXIT_LOAD_COUNT, _ENTRY_LOAD_COUNT)
"""While one of these is not zero, no entry can take the short way."""

_UNSAVED = (
    (ExitControls.SAVE_DEBUG_CONTROLS, EntryControls.LOAD_DEBUG_CONTROLS, int(F.GUEST_DR7)),
    (ExitControls.SAVE_PAT, EntryControls.LOAD_PAT, int(F.GUEST_IA32_PAT)),
    (ExitControls.SAVE_EFER, EntryControls.LOAD_EFER, int(F.GUEST_IA32_EFER)),
)
_CHANGES_UNSAVED = frozenset({TrapKind.WRMSR, TrapKind.MOV_DR, TrapKind.MOV_TO_CR})
_SELECTIONS_KEPT = 64
ABORT_STORE, ABORT_LOAD = 1, 4
"""VMX-abort indicators. SDM Vol. 3, section "VMX Aborts"."""


class NonRoot(SharedRegisters):
    """What ``Processor`` runs guests with."""

    def __init__(self, cpu: Cpu, clock: Clock) -> None:
        super().__init__(cpu)
        self.clock = clock
        self.host_pages = HostPages()
        self.root_memory = msr_areas.RootMemory(self.host_pages, cpu.memory)
        self.root_msrs: dict[int, int] = {}
        self.current: Vmcs | None = None
        self.last_failure: Failure | None = None
        self.entry_state = EntryState({}, {}, cpu, capabilities.value, self._region_revision)
        self._root = HostState()
        self._vmcs = Vmcs()
        self._fields: dict[int, int] = {}
        self._guest: dict[int, Reader] = {
            int(field): reader for field, reader in guest_readers(cpu, lambda: self._vmcs).items()
        }
        self._live: dict[int, Reader] = {}
        self._changed: set[int] = set(entry.WATCHED)
        self._dirty = True
        self._selections: dict[frozenset[int], entry.Selection] = {}
        self._ticks = clock if isinstance(clock, VirtualClock) else VirtualClock()
        self._run = cpu.run

    # ---- the current VMCS

    def _make_current(self, vmcs: Vmcs) -> None:
        """Its guest state is in the VMCS, not in the cpu: all is to be checked and loaded."""
        self.current = self._vmcs = vmcs
        self._fields = vmcs.fields
        self._live = {field: partial(self._exit_info, get) for field, get in EXIT_INFO.items()}
        self.entry_state.fields, self.entry_state.live = self._fields, self._live
        self._changed = set(entry.WATCHED)
        self._dirty = True

    def _exit_info(self, get: Callable[[VmExit], int]) -> int:
        last = self._vmcs.last_exit
        return 0 if last is None else get(last)

    def _region_revision(self, address: int) -> int:
        """The first word of a VMXON or VMCS region.

        Root-mode software that is Python may leave a region to nobody's memory: it counts as
        prepared with our revision identifier.
        """
        if not self.root_memory.backed(address, 4):
            return capabilities.VMCS_REVISION
        return int.from_bytes(self.root_memory.read(address, 4), "little")

    def _fail(self, error: InstructionError, failure: Failure | None = None) -> VmFail:
        """VMfail: VMfailValid with a current VMCS, which records the number; else VMfailInvalid."""
        check, message = ("", "") if failure is None else failure[:2]
        if self.current is None:
            return VmFail(None, check, message)
        self._fields[F.VM_INSTRUCTION_ERROR] = int(error)
        return VmFail(error, check, message or error.message)

    @property
    def host(self) -> HostState:
        """Root mode's registers: as it set them, or as the last VM exit loaded them."""
        if self.current is None or self.current.last_exit is None:
            return self._root
        return load_host_state(self._fields, self._root)

    # ---- VM entry

    def _enter(self, wanted: LaunchState) -> VmExit | VmFail:
        """VMLAUNCH and VMRESUME with anything to look at."""
        vmcs = self._vmcs
        if vmcs.launch_state is not wanted:
            if wanted is LaunchState.CLEAR:
                return self._fail(InstructionError.VMLAUNCH_NONCLEAR_VMCS)
            return self._fail(InstructionError.VMRESUME_NONLAUNCHED_VMCS)
        checks, state = self._select(), self.entry_state
        # "Checks on VMX Controls and Host-State Area"
        self.last_failure = failed = first_failure(checks.controls, state)
        if failed is not None:
            return self._fail(InstructionError.ENTRY_INVALID_CONTROL_FIELD, failed)
        self.last_failure = failed = first_failure(checks.host, state)
        if failed is not None:
            return self._fail(InstructionError.ENTRY_INVALID_HOST_STATE_FIELD, failed)
        # "Checking and Loading Guest State"; what "Loading MSRs" will find is looked at first
        self.last_failure = failed = first_failure(checks.guest, state)
        if failed is not None:
            return self._failed_entry(ExitReason.INVALID_STATE, failed)
        msrs = self._msr_area(F.VM_ENTRY_MSR_LOAD_ADDR, _ENTRY_LOAD_COUNT)
        self.last_failure = failed = self._unloadable_msr(msrs)
        if failed is not None:
            return self._failed_entry(ExitReason.MSR_LOAD_FAIL, failed)
        self._load()
        msr_areas.load_guest_msrs(msrs, self.cpu)
        vmcs.launch_state = LaunchState.LAUNCHED
        exit = self._begin()
        if exit is None:
            exit = self._next_exit()
        vmcs.last_exit = exit
        fields = self._fields
        self._dirty = bool(self._changed) or any(fields.get(each) for each in _EVERY_TIME)
        if fields[_STORE_COUNT] or fields[_EXIT_LOAD_COUNT]:
            self._exit_msrs()
        return exit

    def _select(self) -> entry.Selection:
        key = frozenset(self._changed)
        selection = self._selections.get(key)
        if selection is None:
            if len(self._selections) >= _SELECTIONS_KEPT:
                self._selections.clear()
            selection = self._selections[key] = entry.select(key)
        return selection

    def _failed_entry(self, reason: ExitReason, failure: Failure) -> VmExit:
        """ "VM-Entry Failures During or After Loading Guest State"."""
        self._vmcs.last_exit = failed_entry(reason, failure.qualification, self._vmcs.last_exit)
        return VmExit(reason, failure.qualification, failed_entry=True)

    def _load(self) -> None:
        """Load what changed, and let the cpu answer for it again."""
        changed, vmcs, cpu = self._changed, self._vmcs, self.cpu
        load_guest_state(self.entry_state, cpu, changed)
        if not changed.isdisjoint(entry.ARMING):
            cpu.arm(entry.armed_kinds(vmcs))
            window = vmcs.cpu_based & CpuBased.INTERRUPT_WINDOW_EXITING
            cpu.interrupt_window = window != 0
        self._live.update(self._guest)
        changed.clear()

    def _begin(self) -> VmExit | None:
        """ "Event Injection", "Delivery of Pending Debug Exceptions", "Activity State"."""
        fields = self._fields
        event = entry.injected_event(fields)
        pending = fields[_PENDING_DEBUG]
        if event is not None:
            fields[_INTR_INFO] &= ~InterruptionInfo.VALID
            fields[_ACTIVITY], fields[_PENDING_DEBUG] = Activity.ACTIVE, 0
            return self._deliver(event, None)
        wakes = pending & (PendingDebug.ENABLED_BREAKPOINT | PendingDebug.BS)
        if wakes and not self.cpu.shadow & Interruptibility.BLOCKING_BY_MOV_SS:
            fields[_ACTIVITY], fields[_PENDING_DEBUG] = Activity.ACTIVE, 0
            bits = pending & (PendingDebug.B0_TO_B3 | PendingDebug.BS)
            return self._raise(fault(Vector.DB, address=bits), None)
        return self._halted() if fields[_ACTIVITY] == Activity.HLT else None

    # ---- the guest runs

    def _next_exit(self) -> VmExit:
        """Run the guest up to its next VM exit."""
        trap = self._run()
        self._ticks.exits += 1
        return self._go_on(trap, intercept_table[trap[0]](trap, self._vmcs, self.cpu))

    def _go_on(self, trap: Trap, outcome: Outcome) -> VmExit:
        """What a trap comes to when it is no VM exit by itself, and so on up to one that is."""
        vmcs, cpu = self._vmcs, self.cpu
        while not isinstance(outcome, VmExit):
            exit: VmExit | None
            if outcome is None:
                result = complete(trap, vmcs, cpu, self.clock)
                if isinstance(result, MemoryTrap):
                    trap, outcome = result, intercept_table[TrapKind.MEMORY](result, vmcs, cpu)
                    continue
                if result is None:
                    exit = self._completed(trap[0])
                else:
                    vmcs.fields[_ACTIVITY] = Activity.ACTIVE
                    exit = self._raise(result, trap)
            else:
                exit = self._raise(outcome, trap)
            if exit is not None:
                outcome = exit
                break
            trap = self._run()
            self._ticks.exits += 1
            outcome = intercept_table[trap[0]](trap, vmcs, cpu)
        vmcs.last_exit = outcome
        return outcome

    def _completed(self, kind: TrapKind) -> VmExit | None:
        """An instruction took effect; it may have halted, or changed what no exit saves."""
        vmcs = self._vmcs
        if kind is TrapKind.HLT:
            self._dirty = True
            return self._halted()
        if kind in _CHANGES_UNSAVED:
            for save, load, field in _UNSAVED:
                if vmcs.entry_controls & load and not vmcs.exit_controls & save:
                    self._changed.add(field)
                    self._dirty = True
        return None

    def _halted(self) -> VmExit:
        """The HLT state: nothing runs until an interrupt comes, which the host has always soon."""
        vmcs, cpu = self._vmcs, self.cpu
        kind = TrapKind.KICK
        if vmcs.cpu_based & CpuBased.INTERRUPT_WINDOW_EXITING and cpu.rflags & Rflags.IF:
            kind = TrapKind.INTERRUPT_WINDOW
        trap = EventTrap(kind, cpu.rip)
        exit = intercept_table[kind](trap, vmcs, cpu)
        if not isinstance(exit, VmExit):
            raise ConfigError(
                "the guest halted and nothing can wake it: set external-interrupt exiting"
            )
        return exit._replace(trap=trap)

    # ---- events

    def _raise(self, event: Event, trap: Trap | None) -> VmExit | None:
        """An event of the guest's own: a VM exit if the exception bitmap says so, else delivery."""
        exit = event_exit(event, self._vmcs, self.cpu)
        if exit is not None:
            return exit._replace(trap=trap)
        return self._deliver(event, trap)

    def _deliver(self, event: Event, trap: Trap | None) -> VmExit | None:
        """Deliver an event, and what its delivery raises. None when a handler has been reached.

        An exit that a #DF causes directly, and a triple fault, are not "during event delivery".
        """
        vmcs, cpu = self._vmcs, self.cpu
        while (result := self._try(event)) is not None:
            if isinstance(result, VmExit):
                return during_delivery(result, event)
            exit = event_exit(result, vmcs, cpu)
            if exit is not None:
                return during_delivery(exit, event)._replace(trap=trap)
            if result.vector == Vector.PF and result.address is not None:
                cpu.cr2 = result.address
            vector = combine(event, result.vector)
            if vector is TRIPLE:
                return VmExit(ExitReason.TRIPLE_FAULT, trap=trap)
            if vector != result.vector:
                result = fault(Vector.DF, 0)
                exit = event_exit(result, vmcs, cpu)
                if exit is not None:
                    return exit._replace(trap=trap)
            event = result
        cpu.shadow = 0
        self._fields[_ACTIVITY] = Activity.ACTIVE
        return None

    def _try(self, event: Event) -> Event | VmExit | None:
        """Deliver once; an access outside guest memory is an EPT violation, or answered."""
        vmcs, cpu = self._vmcs, self.cpu
        while isinstance(result := deliver(event, cpu), MemoryTrap):
            outcome = intercept_table[TrapKind.MEMORY](result, vmcs, cpu)
            if outcome is not None:
                return outcome
            answer = complete(result, vmcs, cpu, self.clock)
            if isinstance(answer, Event):
                return answer
        return result

    # ---- MSR areas

    def _msr_area(self, address: F, count: int) -> list[msr_areas.MsrEntry]:
        entries = self._fields[count]
        if not entries:
            return []
        return msr_areas.read_area(self.root_memory, self._fields[address], entries)

    def _holds(self, index: int) -> bool:
        try:
            self.cpu.msr(index)
        except KeyError:
            return False
        return True

    def _unloadable_msr(self, msrs: list[msr_areas.MsrEntry]) -> Failure | None:
        """ "Loading MSRs": the qualification is the number of the first bad entry, from 1."""
        if not msrs:
            return None
        state = self.entry_state
        fixed = msr_areas.efer_with_paging(state[F.GUEST_CR0], state[F.GUEST_IA32_EFER])
        number = msr_areas.first_unloadable(msrs, self._holds, fixed)
        if number is None:
            return None
        bad = msrs[number - 1]
        message = f"entry {number} cannot load {bad.value:#x} into MSR {bad.number:#x}"
        return Failure("entry_msr_load", message, number)

    def _exit_msrs(self) -> None:
        """ "Saving MSRs", then "Loading MSRs" of root mode; a bad entry aborts VMX operation."""
        where = self._fields[F.VM_EXIT_MSR_STORE_ADDR]
        area = self._msr_area(F.VM_EXIT_MSR_STORE_ADDR, _STORE_COUNT)
        for number, each in enumerate(area):
            known = each.number == Msr.IA32_TIME_STAMP_COUNTER or self._holds(each.number)
            if not known or not msr_areas.storable(each):
                message = f"entry {number + 1} cannot store MSR {each.number:#x}"
                raise VmxAbort(ABORT_STORE, message)
            tsc = each.number == Msr.IA32_TIME_STAMP_COUNTER
            value = self.clock.tsc() if tsc else self.cpu.msr(each.number)
            offset = msr_areas.ENTRY_SIZE * number + 8
            self.root_memory.write(where + offset, value.to_bytes(8, "little"))
        for each in self._msr_area(F.VM_EXIT_MSR_LOAD_ADDR, _EXIT_LOAD_COUNT):
            if not msr_areas.loadable(each, self._holds):
                message = f"cannot load {each.value:#x} into MSR {each.number:#x}"
                raise VmxAbort(ABORT_LOAD, message)
            self.root_msrs[each.number] = each.value
