"""VM exit: what VMREAD shows of it, what is saved of the guest, what root mode gets."""

from __future__ import annotations

import pytest

from vmxsim.arch.controls import CpuBased, EntryControls, ExitControls, PinBased
from vmxsim.arch.events import Vector
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Efer
from vmxsim.arch.segments import AccessRights, Segment, SegmentRegister, TableRegister
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import EventTrap, ExceptionTrap, MemoryTrap, TrapKind
from vmxsim.vmx.exit import EXIT_INFO, HostState, during_delivery, load_host_state
from vmxsim.vmx.guest_state import LOADED
from vmxsim.vmx.processor import VmExit, VmxAbort

from .conftest import MakeProcessor
from .test_entry import CPUID, EXIT_CPUID, HANDLER, VALID, gate, instruction, pushed
from .valid_guests import OTHER_VMCS, VMCS, host_state, long_mode_guest, pae_guest

KICK = EventTrap(TrapKind.KICK, 0x1000)


def exception(vector: int, error_code: int = 0, address: int = 0) -> ExceptionTrap:
    return ExceptionTrap(TrapKind.EXCEPTION, 0x1000, vector, error_code, address, None)


class TestExitInformation:
    def test_is_zero_before_any_exit(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([])
        assert [processor.vmread(field) for field in EXIT_INFO] == [0] * len(EXIT_INFO)

    def test_is_the_record_of_the_last_exit(self, processor_with: MakeProcessor) -> None:
        record = VmExit(ExitReason.EPT_VIOLATION, 1, 2, 3, 4, 5, 6, 7, 8, 9)
        processor, _ = processor_with([])
        assert processor.current is not None
        processor.current.last_exit = record
        shown = {
            F.VM_EXIT_REASON: 48, F.EXIT_QUALIFICATION: 1, F.VM_EXIT_INSTRUCTION_LEN: 2,
            F.VMX_INSTRUCTION_INFO: 3, F.GUEST_LINEAR_ADDRESS: 4, F.GUEST_PHYSICAL_ADDRESS: 5,
            F.VM_EXIT_INTR_INFO: 6, F.VM_EXIT_INTR_ERROR_CODE: 7, F.IDT_VECTORING_INFO_FIELD: 8,
            F.IDT_VECTORING_ERROR_CODE: 9,
        }  # fmt: skip
        assert set(shown) == set(EXIT_INFO)
        assert {field: processor.vmread(field) for field in shown} == shown
        assert processor.vmread(F.GUEST_PHYSICAL_ADDRESS_HIGH) == 0

    def test_belongs_to_its_vmcs(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID])
        processor.vmlaunch()
        processor.vmptrld(OTHER_VMCS)
        assert processor.vmread(F.VM_EXIT_REASON) == 0
        processor.vmptrld(VMCS)
        assert processor.vmread(F.VM_EXIT_REASON) == 10


class TestInterrupts:
    @pytest.mark.parametrize("kind", [TrapKind.KICK, TrapKind.BUDGET])
    def test_of_the_host_exit(self, processor_with: MakeProcessor, kind: TrapKind) -> None:
        processor, _ = processor_with([EventTrap(kind, 0x1000)])
        assert processor.vmlaunch() == VmExit(ExitReason.EXTERNAL_INTERRUPT)

    def test_are_acknowledged_on_exit_if_wanted(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest()
        fields[F.VM_EXIT_CONTROLS] |= ExitControls.ACKNOWLEDGE_INTERRUPT_ON_EXIT
        processor, _ = processor_with([KICK], fields)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert outcome.intr_info & ~0xFF == VALID

    def test_without_external_interrupt_exiting_pass_by(
        self, processor_with: MakeProcessor
    ) -> None:
        fields = long_mode_guest()
        fields[F.PIN_BASED_VM_EXEC_CONTROL] &= ~PinBased.EXTERNAL_INTERRUPT_EXITING
        processor, cpu = processor_with([KICK, CPUID], fields)
        assert processor.vmlaunch() == EXIT_CPUID
        assert len(cpu.entered) == 2

    def test_window_exits_when_wanted(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest()
        fields[F.CPU_BASED_VM_EXEC_CONTROL] |= CpuBased.INTERRUPT_WINDOW_EXITING
        processor, cpu = processor_with([], fields)
        assert processor.vmlaunch() == VmExit(ExitReason.INTERRUPT_WINDOW)
        assert cpu.interrupt_window


class TestExceptions:
    def test_are_delivered_when_the_bitmap_does_not_want_them(
        self, processor_with: MakeProcessor
    ) -> None:
        processor, cpu = processor_with([exception(14, 2, 0xABC000), CPUID])
        gate(cpu, 14)
        assert processor.vmlaunch() == EXIT_CPUID
        assert (cpu.cr2, pushed(cpu, 2)) == (0xABC000, [2, 0x1000])
        assert cpu.entered[1].rip == HANDLER

    def test_exit_when_it_does(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {F.EXCEPTION_BITMAP: 1 << 14}
        trap = exception(14, 2, 0xABC000)
        processor, cpu = processor_with([trap], fields)
        assert processor.vmlaunch() == VmExit(
            ExitReason.EXCEPTION_NMI,
            0xABC000,
            intr_info=VALID | 0xB0E,
            intr_error_code=2,
            trap=trap,
        )
        assert cpu.cr2 == 0

    def test_on_the_short_way_too(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID, exception(6), CPUID])
        gate(cpu, 6)
        processor.vmlaunch()
        assert processor.vmresume() == EXIT_CPUID
        assert (cpu.entered[2].rip, processor._dirty) == (HANDLER, False)

    def test_in_delivery_exit_with_the_first_one_as_vectoring_information(
        self, processor_with: MakeProcessor
    ) -> None:
        fields = long_mode_guest() | {F.EXCEPTION_BITMAP: 1 << 13}
        processor, _ = processor_with([exception(14, 2, 0xABC000)], fields)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert (outcome.intr_info, outcome.idt_vectoring_info) == (VALID | 0xB0D, VALID | 0xB0E)
        assert outcome.idt_vectoring_error_code == 2

    def test_two_make_a_double_fault(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([exception(14, 2, 0xABC000), CPUID])
        gate(cpu, Vector.DF)
        assert processor.vmlaunch() == EXIT_CPUID
        assert pushed(cpu, 2) == [0, 0x1000]

    def test_a_double_fault_exits_without_vectoring_information(
        self, processor_with: MakeProcessor
    ) -> None:
        fields = long_mode_guest() | {F.EXCEPTION_BITMAP: 1 << Vector.DF}
        processor, _ = processor_with([exception(13)], fields)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert (outcome.intr_info, outcome.idt_vectoring_info) == (VALID | 0xB08, 0)

    def test_three_are_a_triple_fault(self, processor_with: MakeProcessor) -> None:
        trap = exception(13)
        processor, _ = processor_with([trap])
        assert processor.vmlaunch() == VmExit(ExitReason.TRIPLE_FAULT, trap=trap)

    def test_a_fault_after_a_benign_one_stands_by_itself(
        self, processor_with: MakeProcessor
    ) -> None:
        processor, cpu = processor_with([exception(6), CPUID])
        gate(cpu, 13)
        assert processor.vmlaunch() == EXIT_CPUID
        assert pushed(cpu, 2) == [6 << 3 | 2 | 1, 0x1000]

    def test_a_second_page_fault_sets_cr2(self, processor_with: MakeProcessor) -> None:
        from vmxsim.arch.paging import PageFault

        processor, cpu = processor_with([exception(6), CPUID])
        gate(cpu, 6)
        gate(cpu, 14)
        faults = iter([PageFault(0x4060, 0)])
        really = cpu.read_linear

        def read(gva: int, size: int, access: int = 0, user: bool | None = None) -> object:
            if gva == 0x4060 and (fault := next(faults, None)) is not None:
                return fault
            return really(gva, size, access, user)

        cpu.read_linear = read  # type: ignore[method-assign, assignment]
        assert processor.vmlaunch() == EXIT_CPUID
        assert (cpu.cr2, pushed(cpu, 1)) == (0x4060, [0])


class TestSaving:
    def test_shows_the_cpu_while_the_guest_is_loaded(self, processor_with: MakeProcessor) -> None:
        def guest_works(cpu: ScriptedCpu) -> object:
            cpu.cr0 |= Cr0.TS
            cpu.gpr[4], cpu.rflags, cpu.dr[7] = 0x7FF8, 0x246, 0x401
            cpu.set_msr(Msr.IA32_SYSENTER_EIP, 0x99)
            cpu.set_segment(Segment.FS, SegmentRegister(0x2B, 5, 0xFFFF, 0xF3))
            cpu.idtr = TableRegister(0x123, 0x45)
            return CPUID._replace(rip=0x1234)

        processor, _ = processor_with([guest_works])  # type: ignore[list-item]
        processor.vmlaunch()
        wanted = {
            F.GUEST_RIP: 0x1234, F.GUEST_RSP: 0x7FF8, F.GUEST_RFLAGS: 0x246, F.GUEST_DR7: 0x401,
            F.GUEST_CR0: long_mode_guest()[F.GUEST_CR0] | Cr0.TS, F.GUEST_SYSENTER_EIP: 0x99,
            F.GUEST_FS_SELECTOR: 0x2B, F.GUEST_FS_BASE: 5, F.GUEST_FS_LIMIT: 0xFFFF,
            F.GUEST_FS_AR_BYTES: 0xF3, F.GUEST_IDTR_BASE: 0x123, F.GUEST_IDTR_LIMIT: 0x45,
        }  # fmt: skip
        assert {field: processor.vmread(field) for field in wanted} == wanted
        processor.vmclear(VMCS)
        fields = processor.regions[VMCS].fields
        assert {field: fields[field] for field in wanted} == wanted

    def test_survives_another_vmcs_in_between(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID, CPUID, CPUID])
        processor.vmlaunch()
        cpu.set_segment(Segment.GS, SegmentRegister(0x33, 7, 0xFFFF, 0xF3))
        processor.vmptrld(OTHER_VMCS)
        for field, value in (long_mode_guest() | {F.GUEST_GS_BASE: 0x5555}).items():
            processor.vmwrite(field, value)
        processor.vmlaunch()
        assert processor.vmread(F.GUEST_GS_BASE) == cpu.segment(Segment.GS).base == 0x5555
        processor.vmptrld(VMCS)
        assert processor.vmread(F.GUEST_GS_BASE) == 7
        assert processor.vmresume() == EXIT_CPUID
        assert cpu.segment(Segment.GS) == SegmentRegister(0x33, 7, 0xFFFF, 0xF3)

    def test_of_the_ia32e_control_follows_efer_lma(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID])
        processor.vmlaunch()
        cpu.efer &= ~Efer.LMA
        controls = processor.vmread(F.VM_ENTRY_CONTROLS)
        assert isinstance(controls, int)
        assert not controls & EntryControls.IA32E_MODE_GUEST
        cpu.efer |= Efer.LMA
        assert processor.vmread(F.VM_ENTRY_CONTROLS) == long_mode_guest()[F.VM_ENTRY_CONTROLS]

    def test_of_interruptibility_mixes_cpu_and_field(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with(
            [CPUID], long_mode_guest() | {F.GUEST_INTERRUPTIBILITY_INFO: 8}
        )
        processor.vmlaunch()
        cpu.shadow = 2
        assert processor.vmread(F.GUEST_INTERRUPTIBILITY_INFO) == 8 | 2

    def test_without_its_control_keeps_the_field(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest()
        fields[F.VM_EXIT_CONTROLS] &= ~(
            ExitControls.SAVE_DEBUG_CONTROLS | ExitControls.SAVE_PAT | ExitControls.SAVE_EFER
        )
        processor, cpu = processor_with([CPUID], fields)
        processor.vmlaunch()
        cpu.dr[7], cpu.efer = 0x555, 0
        cpu.set_msr(Msr.IA32_PAT, 0)
        assert processor.vmread(F.GUEST_DR7) == 0x400
        assert processor.vmread(F.GUEST_IA32_PAT) == 0x0007_0406_0007_0406
        assert processor.vmread(F.GUEST_IA32_EFER) == Efer.LME | Efer.LMA

    def test_of_access_rights_has_what_loading_sets(self, processor_with: MakeProcessor) -> None:
        """An engine that leaves a descriptor's accessed or busy bit alone must not break entry."""
        processor, cpu = processor_with([CPUID])
        processor.vmlaunch()
        cpu.set_segment(
            Segment.CS, SegmentRegister(8, 0, 0xFFFF_FFFF, AccessRights.FLAT_CODE64 & ~1)
        )
        cpu.set_segment(Segment.TR, SegmentRegister(0x18, 0, 0x67, 0x89))
        assert processor.vmread(F.GUEST_CS_AR_BYTES) == AccessRights.FLAT_CODE64
        assert processor.vmread(F.GUEST_TR_AR_BYTES) == AccessRights.BUSY_TSS

    def test_of_pdptes_is_what_memory_has(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID], pae_guest())
        cpu.memory.write(0x2008, (0x7001).to_bytes(8, "little"))
        processor.vmlaunch()
        assert [processor.vmread(F.GUEST_PDPTR0), processor.vmread(F.GUEST_PDPTR1)] == [0, 0x7001]

    def test_covers_every_field_that_entry_loads(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID])
        processor.vmlaunch()
        assert set(processor._live) >= set(LOADED)


class TestHostState:
    def test_is_loaded_from_the_vmcs(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID])
        before = processor.host
        processor.vmlaunch()
        fields = host_state()
        assert before != processor.host
        assert processor.host.rip == fields[F.HOST_RIP]
        assert processor.host.selectors == (0x10, 8, 0x10, 0x10, 0, 0, 0, 0x18)
        assert (processor.host.efer, processor.host.dr7) == (Efer.LME | Efer.LMA, 0x400)

    def test_stays_when_the_vmcs_goes(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID])
        processor.vmlaunch()
        host = processor.host
        processor.vmptrld(OTHER_VMCS)
        assert processor.host == host

    def test_efer_and_pat_need_their_controls(self) -> None:
        fields = dict.fromkeys(map(int, F), 0)
        before = HostState(efer=Efer.SCE | Efer.LME | Efer.LMA, pat=5)
        assert load_host_state(fields, before).efer == Efer.SCE
        assert load_host_state(fields, before).pat == 5
        fields[F.VM_EXIT_CONTROLS] = ExitControls.LOAD_PAT | ExitControls.HOST_ADDRESS_SPACE_SIZE
        loaded = load_host_state(fields, before)
        assert (loaded.efer, loaded.pat) == (before.efer, 0)


class TestMsrAreas:
    AREA = 0x9000

    def enter(
        self, processor_with: MakeProcessor, address: F, count: F, index: int, value: int = 0
    ) -> tuple[VmExit, ScriptedCpu, dict[int, int]]:
        fields = long_mode_guest() | {address: self.AREA, count: 1}
        processor, cpu = processor_with([CPUID], fields)
        cpu.set_msr(Msr.IA32_LSTAR, 0x1234)
        cpu.memory.write(self.AREA, index.to_bytes(8, "little") + value.to_bytes(8, "little"))
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        return outcome, cpu, processor.root_msrs

    def test_guest_msrs_are_stored(self, processor_with: MakeProcessor) -> None:
        where = (F.VM_EXIT_MSR_STORE_ADDR, F.VM_EXIT_MSR_STORE_COUNT)
        outcome, cpu, _ = self.enter(processor_with, *where, Msr.IA32_LSTAR)
        assert outcome == EXIT_CPUID
        assert cpu.memory.read(self.AREA + 8, 8) == (0x1234).to_bytes(8, "little")

    def test_the_time_stamp_counter_too(self, processor_with: MakeProcessor) -> None:
        where = (F.VM_EXIT_MSR_STORE_ADDR, F.VM_EXIT_MSR_STORE_COUNT)
        _, cpu, _ = self.enter(processor_with, *where, Msr.IA32_TIME_STAMP_COUNTER)
        assert int.from_bytes(cpu.memory.read(self.AREA + 8, 8), "little") == 1000

    def test_root_msrs_are_loaded_beside_the_guest(self, processor_with: MakeProcessor) -> None:
        where = (F.VM_EXIT_MSR_LOAD_ADDR, F.VM_EXIT_MSR_LOAD_COUNT)
        _, cpu, loaded = self.enter(processor_with, *where, Msr.IA32_LSTAR, 7)
        assert (loaded, cpu.msr(Msr.IA32_LSTAR)) == ({Msr.IA32_LSTAR: 7}, 0x1234)

    @pytest.mark.parametrize(
        ("address", "count", "index", "indicator"),
        [
            (F.VM_EXIT_MSR_STORE_ADDR, F.VM_EXIT_MSR_STORE_COUNT, 0xDEAD, 1),
            (F.VM_EXIT_MSR_STORE_ADDR, F.VM_EXIT_MSR_STORE_COUNT, 0x808, 1),
            (F.VM_EXIT_MSR_LOAD_ADDR, F.VM_EXIT_MSR_LOAD_COUNT, Msr.IA32_GS_BASE, 4),
        ],
    )
    def test_a_bad_entry_aborts(
        self, processor_with: MakeProcessor, address: F, count: F, index: int, indicator: int
    ) -> None:
        with pytest.raises(VmxAbort, match=f"{index:#x}") as raised:
            self.enter(processor_with, address, count, index)
        assert raised.value.indicator == indicator

    def test_pages_of_root_mode_hold_areas_as_well(self, processor_with: MakeProcessor) -> None:
        page, address = bytearray(4096), 0x60_0000_0000
        page[0:8] = Msr.IA32_LSTAR.to_bytes(8, "little")
        fields = long_mode_guest() | {
            F.VM_EXIT_MSR_STORE_ADDR: address, F.VM_EXIT_MSR_STORE_COUNT: 1,
        }  # fmt: skip
        processor, cpu = processor_with([CPUID], fields)
        processor.host_pages.register(address, page)
        cpu.set_msr(Msr.IA32_LSTAR, 0x77)
        assert processor.vmlaunch() == EXIT_CPUID
        assert page[8] == 0x77


def test_memory_traps_of_an_instruction_exit_like_the_engines(
    processor_with: MakeProcessor,
) -> None:
    trap = MemoryTrap(TrapKind.MEMORY, 0x1000, 0xFEE0_0000, 4, 1, 5, 0xFEE0_0000, False)
    processor, _ = processor_with([trap])
    outcome = processor.vmlaunch()
    assert isinstance(outcome, VmExit)
    assert (outcome.reason, outcome.guest_physical_address) == (
        ExitReason.EPT_VIOLATION,
        0xFEE0_0000,
    )
    assert outcome.trap is trap


def test_vectoring_information_of_an_external_interrupt_keeps_the_length() -> None:
    from vmxsim.arch.events import Event, EventType

    interrupt = Event(EventType.EXTERNAL_INTERRUPT, 0x20)
    exit = during_delivery(VmExit(ExitReason.EPT_VIOLATION, instruction_length=3), interrupt)
    assert (exit.idt_vectoring_info, exit.instruction_length) == (VALID | 0x20, 3)


def test_completed_instructions_let_the_guest_go_on(processor_with: MakeProcessor) -> None:
    rdtsc = instruction(TrapKind.RDTSC, "rdtsc", "0f31")
    processor, cpu = processor_with([rdtsc, CPUID._replace(rip=0x1002)])
    assert processor.vmlaunch() == EXIT_CPUID
    assert [each.rip for each in cpu.entered] == [0x1000, 0x1002]
