"""VM entry: what a failed check becomes, what is loaded, what injection does, what is armed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmxsim.arch.controls import (
    Activity,
    CpuBased,
    EntryControls,
    ExitControls,
    PinBased,
    Secondary,
)
from vmxsim.arch.events import Event, EventType, interruption_info
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Efer
from vmxsim.arch.segments import AccessRights, Gate, Segment, SegmentRegister, TableRegister
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import EventTrap, InsnTrap, Instruction, MemoryTrap, TrapKind
from vmxsim.errors import ConfigError
from vmxsim.vmx.entry import ENTRY_CHECKS, armed_kinds
from vmxsim.vmx.entry_checks import first_failure
from vmxsim.vmx.processor import VmExit, VmFail
from vmxsim.vmx.vmcs import SUPPORTED, Vmcs

from .conftest import MakeProcessor
from .valid_guests import long_mode_guest, pae_guest, real_mode_guest, v8086_guest

IDT, STACK, HANDLER = 0x4000, 0x8000, 0x3000
VALID = 1 << 31


def instruction(kind: TrapKind, mnemonic: str, code: str, rip: int = 0x1000) -> InsnTrap:
    raw = bytes.fromhex(code)
    return InsnTrap(kind, rip, Instruction(mnemonic, raw, len(raw), 64, 4, 8, 0, False, -1, ()))


CPUID = instruction(TrapKind.CPUID, "cpuid", "0fa2")
EXIT_CPUID = VmExit(ExitReason.CPUID, instruction_length=2)


def gate(cpu: ScriptedCpu, vector: int, offset: int = HANDLER) -> None:
    """A present 64-bit interrupt gate to CPL 0, and the code segment it names."""
    cpu.memory.write(8, bytes.fromhex("ffff0000009baf00 ffff00000093cf00"))
    cpu.memory.write(IDT + 16 * vector, Gate(offset, 8, 14, 0, True).to_bytes(16))


def pushed(cpu: ScriptedCpu, words: int) -> list[int]:
    return [int.from_bytes(cpu.memory.read(cpu.gpr[4] + 8 * n, 8), "little") for n in range(words)]


class TestFailure:
    def test_of_a_control_is_error_7(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID], long_mode_guest() | {F.CR3_TARGET_COUNT: 5})
        message = "CR3_TARGET_COUNT is 0x5: must be at most 4"
        error = InstructionError.ENTRY_INVALID_CONTROL_FIELD
        assert processor.vmlaunch() == VmFail(error, "cr3_target_count", message)
        assert processor.vmread(F.VM_INSTRUCTION_ERROR) == 7
        assert processor.last_failure == ("cr3_target_count", message, 0)
        assert cpu.entered == []

    def test_of_host_state_is_error_8(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID], long_mode_guest() | {F.HOST_CS_SELECTOR: 0})
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmFail)
        assert (outcome.error, outcome.check) == (
            InstructionError.ENTRY_INVALID_HOST_STATE_FIELD, "host_cs_is_not_null",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("guest", "damage", "qualification"),
        [
            (long_mode_guest(), {F.GUEST_RFLAGS: 0}, 0),
            (pae_guest(), {F.GUEST_PDPTR0: 3}, 2),
            (long_mode_guest(), {F.VMCS_LINK_POINTER: 8}, 4),
        ],
    )
    def test_of_guest_state_is_exit_reason_33(
        self,
        processor_with: MakeProcessor,
        guest: dict[int, int],
        damage: dict[int, int],
        qualification: int,
    ) -> None:
        processor, cpu = processor_with([CPUID], guest | damage)
        outcome = processor.vmlaunch()
        assert outcome == VmExit(ExitReason.INVALID_STATE, qualification, failed_entry=True)
        assert processor.vmread(F.VM_EXIT_REASON) == 1 << 31 | 33
        assert processor.vmread(F.EXIT_QUALIFICATION) == qualification
        assert cpu.entered == []

    def test_leaves_the_other_exit_information_and_the_injection(
        self, processor_with: MakeProcessor
    ) -> None:
        processor, _ = processor_with([CPUID])
        processor.vmlaunch()
        processor.vmwrite(F.GUEST_RFLAGS, 0)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x306)
        assert processor.vmresume() == VmExit(ExitReason.INVALID_STATE, failed_entry=True)
        assert processor.vmread(F.VM_EXIT_INSTRUCTION_LEN) == 2
        assert processor.vmread(F.VM_ENTRY_INTR_INFO_FIELD) == VALID | 0x306

    def test_is_forgotten_by_a_good_entry(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID], long_mode_guest() | {F.GUEST_RFLAGS: 0})
        processor.vmlaunch()
        assert processor.last_failure is not None
        processor.vmwrite(F.GUEST_RFLAGS, 2)
        assert processor.vmlaunch() == EXIT_CPUID
        assert processor.last_failure is None


FIELDS = [F(field) for field in SUPPORTED if not F(field).read_only]
WRITES = st.lists(
    st.tuples(
        st.sampled_from(FIELDS),
        st.one_of(
            st.sampled_from([0, 1, 2, 0x8000_0B0D, 0x8000_0020, (1 << 64) - 1]),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, 63).map(lambda number: 1 << number),
        ),
    ),
    max_size=3,
)
AREAS = {F.VM_ENTRY_MSR_LOAD_COUNT, F.VM_EXIT_MSR_LOAD_COUNT, F.VM_EXIT_MSR_STORE_COUNT}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    guest=st.sampled_from([long_mode_guest, real_mode_guest, v8086_guest, pae_guest]),
    before=WRITES,
    after=WRITES,
)
def test_any_vmcs_enters_or_names_the_first_failed_check(
    processor_with: MakeProcessor, guest: object, before: list[tuple[F, int]],
    after: list[tuple[F, int]],
) -> None:  # fmt: skip
    """And an entry that checks only what changed finds what checking everything finds."""
    assert callable(guest)
    kick = EventTrap(TrapKind.KICK, 0x1000)
    processor, cpu = processor_with([kick] * 4, guest())
    enter = processor.vmlaunch
    for writes in (before, after):
        for field, value in writes:
            if field not in AREAS:
                processor.vmwrite(field, value)
        state = processor.entry_state
        expected = first_failure(ENTRY_CHECKS, state)
        try:
            outcome = enter()
        except ConfigError:
            break
        assert processor.last_failure == expected
        failed = isinstance(outcome, VmFail) or outcome.failed_entry
        assert failed is (expected is not None)
        if isinstance(outcome, VmExit) and not failed:
            enter = processor.vmresume


class TestLoading:
    def test_every_register_arrives(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {
            F.GUEST_FS_BASE: 0xFFFF_8000_0000_0000,
            F.GUEST_GS_SELECTOR: 0x20,
            F.GUEST_SYSENTER_CS: 1,
            F.GUEST_SYSENTER_ESP: 2,
            F.GUEST_SYSENTER_EIP: 3,
            F.GUEST_IA32_PAT: 0x0606_0606_0606_0606,
            F.GUEST_DR7: 0xD401,
            F.GUEST_RFLAGS: 0x202,
            F.GUEST_INTERRUPTIBILITY_INFO: 1,
            F.GUEST_GDTR_BASE: 0x100,
        }
        processor, cpu = processor_with([CPUID], fields)
        assert processor.vmlaunch() == EXIT_CPUID
        assert cpu.entered[0].rip == 0x1000
        assert (cpu.rflags, cpu.shadow, cpu.gpr[4]) == (0x202, 1, 0x8000)
        assert (cpu.cr0, cpu.cr3) == (Cr0.PE | Cr0.NE | Cr0.PG | Cr0.ET, 0x2000)
        assert (cpu.cr4, cpu.efer) == (Cr4.PAE | Cr4.VMXE, Efer.LME | Efer.LMA)
        assert cpu.dr[7] == 0x401
        assert cpu.segment(Segment.FS).base == 0xFFFF_8000_0000_0000
        assert cpu.segment(Segment.GS).selector == 0x20
        assert cpu.segment(Segment.CS) == SegmentRegister(
            8, 0, 0xFFFF_FFFF, AccessRights.FLAT_CODE64
        )
        assert cpu.segment(Segment.TR) == SegmentRegister(0x18, 0, 0x67, AccessRights.BUSY_TSS)
        assert (cpu.gdtr, cpu.idtr) == (TableRegister(0x100, 0xFF), TableRegister(IDT, 0xFFF))
        assert [cpu.msr(index) for index in (0x174, 0x175, 0x176)] == [1, 2, 3]
        assert cpu.msr(Msr.IA32_PAT) == 0x0606_0606_0606_0606

    def test_cr0_keeps_what_root_mode_has_of_et_nw_cd(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest()
        fields[F.GUEST_CR0] = fields[F.GUEST_CR0] & ~Cr0.ET | Cr0.NW | Cr0.CD | 1 << 17 | 1 << 6
        processor, cpu = processor_with([CPUID], fields)
        processor.vmlaunch()
        assert cpu.cr0 == Cr0.PE | Cr0.NE | Cr0.PG | Cr0.ET == processor.vmread(F.GUEST_CR0)

    def test_without_load_efer_the_mode_comes_from_the_entry_control(
        self, processor_with: MakeProcessor
    ) -> None:
        fields = long_mode_guest() | {F.GUEST_IA32_EFER: 0}
        fields[F.VM_ENTRY_CONTROLS] &= ~EntryControls.LOAD_EFER
        processor, cpu = processor_with([CPUID, CPUID], fields)
        cpu.efer = Efer.SCE
        processor.vmlaunch()
        assert cpu.efer == Efer.SCE | Efer.LME | Efer.LMA
        processor.vmwrite(
            F.VM_ENTRY_CONTROLS, fields[F.VM_ENTRY_CONTROLS] & ~EntryControls.IA32E_MODE_GUEST
        )
        processor.vmwrite(F.GUEST_CS_AR_BYTES, AccessRights.FLAT_CODE32)
        processor.vmwrite(F.GUEST_CR0, Cr0.PE | Cr0.NE)
        assert processor.vmresume() == EXIT_CPUID
        assert cpu.efer == Efer.SCE | Efer.LME

    def test_pat_and_dr7_stay_without_their_controls(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {F.GUEST_DR7: 0x455, F.GUEST_IA32_PAT: 0}
        fields[F.VM_ENTRY_CONTROLS] &= ~(EntryControls.LOAD_PAT | EntryControls.LOAD_DEBUG_CONTROLS)
        processor, cpu = processor_with([CPUID], fields)
        processor.vmlaunch()
        assert (cpu.dr[7], cpu.msr(Msr.IA32_PAT)) == (0x400, 0x0007_0406_0007_0406)

    def test_only_what_changed_is_loaded_again(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID, CPUID])
        processor.vmlaunch()
        cpu.segments[Segment.ES] = SegmentRegister(0x33, 0, 0xFFFF_FFFF, 0xC0F3)
        cpu.cr2 = 77
        processor.vmwrite(F.GUEST_CR4, Cr4.PAE | Cr4.VMXE | Cr4.PGE)
        processor.vmresume()
        assert (cpu.cr4, cpu.segment(Segment.ES).selector) == (Cr4.PAE | Cr4.VMXE | Cr4.PGE, 0x33)


class TestInjection:
    def test_of_an_interrupt_goes_through_the_idt(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([instruction(TrapKind.CPUID, "cpuid", "0fa2", HANDLER)])
        gate(cpu, 0x20)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x20)
        assert processor.vmlaunch() == EXIT_CPUID
        assert (cpu.entered[0].rip, cpu.entered[0].rflags) == (HANDLER, 2)
        assert pushed(cpu, 5) == [0x1000, 8, 0x202, STACK, 0x10]
        assert processor.vmread(F.VM_ENTRY_INTR_INFO_FIELD) == 0x20

    def test_happens_once(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID, CPUID])
        gate(cpu, 0x20)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x20)
        processor.vmlaunch()
        assert not processor._dirty
        before = cpu.gpr[4]
        processor.vmresume()
        assert cpu.gpr[4] == before

    def test_between_two_runs(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID, CPUID])
        gate(cpu, 0x30)
        processor.vmlaunch()
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x30)
        assert processor.vmresume() == EXIT_CPUID
        assert cpu.entered[1].rip == HANDLER

    def test_of_an_exception_with_error_code(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID])
        gate(cpu, 14)
        cpu.cr2 = 0x1234
        processor.vmwrite(F.VM_ENTRY_EXCEPTION_ERROR_CODE, 6)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0xB0E)
        assert processor.vmlaunch() == EXIT_CPUID
        assert pushed(cpu, 3) == [6, 0x1000, 8]
        assert cpu.cr2 == 0x1234

    @pytest.mark.parametrize("kind", [4, 5, 6])
    def test_of_software_events_returns_behind_the_instruction(
        self, processor_with: MakeProcessor, kind: int
    ) -> None:
        processor, cpu = processor_with([CPUID])
        gate(cpu, 3)
        processor.vmwrite(F.VM_ENTRY_INSTRUCTION_LEN, 2)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | kind << 8 | 3)
        assert processor.vmlaunch() == EXIT_CPUID
        assert pushed(cpu, 1) == [0x1002]

    def test_is_not_subject_to_the_exception_bitmap(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID])
        gate(cpu, 6)
        processor.vmwrite(F.EXCEPTION_BITMAP, 1 << 6)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x306)
        assert processor.vmlaunch() == EXIT_CPUID
        assert cpu.entered[0].rip == HANDLER

    def test_in_real_mode_uses_the_ivt(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID], real_mode_guest())
        cpu.memory.write(4 * 0x20, bytes.fromhex("34120000"))
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x20)
        assert processor.vmlaunch() == EXIT_CPUID
        assert (cpu.entered[0].rip, cpu.gpr[4]) == (0x1234, STACK - 6)
        assert cpu.memory.read(STACK - 6, 6) == bytes.fromhex("001000000202")

    def test_that_faults_exits_with_idt_vectoring_information(
        self, processor_with: MakeProcessor
    ) -> None:
        processor, _ = processor_with([])
        processor.vmwrite(F.EXCEPTION_BITMAP, 1 << 13)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x20)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert outcome.reason is ExitReason.EXCEPTION_NMI
        assert outcome.intr_info == interruption_info(Event(EventType.HARDWARE_EXCEPTION, 13, 0))
        assert outcome.idt_vectoring_info == VALID | 0x20
        assert outcome.intr_error_code == (0x20 << 3 | 2 | 1)

    def test_of_a_software_interrupt_that_faults_gives_its_length(
        self, processor_with: MakeProcessor
    ) -> None:
        processor, _ = processor_with([])
        processor.vmwrite(F.EXCEPTION_BITMAP, 1 << 13)
        processor.vmwrite(F.VM_ENTRY_INSTRUCTION_LEN, 2)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x480)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert (outcome.idt_vectoring_info, outcome.instruction_length) == (VALID | 0x480, 2)

    def test_that_leaves_memory_is_an_ept_violation(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([], long_mode_guest() | {F.GUEST_IDTR_BASE: 0x10_0000})
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x20)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert outcome.reason is ExitReason.EPT_VIOLATION
        assert outcome.guest_physical_address == 0x10_0200
        assert outcome.idt_vectoring_info == VALID | 0x20

    def test_ends_the_hlt_state(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([CPUID], long_mode_guest() | {F.GUEST_ACTIVITY_STATE: 1})
        gate(cpu, 0x20)
        processor.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, VALID | 0x20)
        assert processor.vmlaunch() == EXIT_CPUID
        assert processor.vmread(F.GUEST_ACTIVITY_STATE) == Activity.ACTIVE


class TestPendingDebugExceptions:
    def test_are_delivered_before_the_first_instruction(
        self, processor_with: MakeProcessor
    ) -> None:
        processor, cpu = processor_with(
            [CPUID], long_mode_guest() | {F.GUEST_PENDING_DBG_EXCEPTIONS: 0x1001}
        )
        gate(cpu, 1)
        assert processor.vmlaunch() == EXIT_CPUID
        assert cpu.entered[0].rip == HANDLER
        assert cpu.dr[6] & 0xF == 1
        assert processor.vmread(F.GUEST_PENDING_DBG_EXCEPTIONS) == 0

    def test_exit_by_the_exception_bitmap(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {
            F.GUEST_PENDING_DBG_EXCEPTIONS: 1 << 14,
            F.EXCEPTION_BITMAP: 2,
        }
        processor, cpu = processor_with([], fields)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert (outcome.intr_info, outcome.qualification) == (VALID | 0x301, 1 << 14)
        assert cpu.entered == []


class TestHlt:
    def test_state_runs_nothing_until_an_interrupt(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([], long_mode_guest() | {F.GUEST_ACTIVITY_STATE: 1})
        for enter in (processor.vmlaunch, processor.vmresume, processor.vmresume):
            outcome = enter()
            assert isinstance(outcome, VmExit)
            assert outcome.reason is ExitReason.EXTERNAL_INTERRUPT
        assert cpu.entered == []
        assert processor.vmread(F.GUEST_ACTIVITY_STATE) == Activity.HLT

    def test_state_is_left_when_root_mode_says_so(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([CPUID], long_mode_guest() | {F.GUEST_ACTIVITY_STATE: 1})
        processor.vmlaunch()
        processor.vmwrite(F.GUEST_ACTIVITY_STATE, 0)
        assert processor.vmresume() == EXIT_CPUID
        assert not processor._dirty

    @pytest.mark.parametrize(
        ("rflags", "reason"),
        [(0x202, ExitReason.INTERRUPT_WINDOW), (2, ExitReason.EXTERNAL_INTERRUPT)],
    )
    def test_state_sees_the_interrupt_window(
        self, processor_with: MakeProcessor, rflags: int, reason: ExitReason
    ) -> None:
        fields = long_mode_guest() | {F.GUEST_ACTIVITY_STATE: 1, F.GUEST_RFLAGS: rflags}
        fields[F.CPU_BASED_VM_EXEC_CONTROL] |= CpuBased.INTERRUPT_WINDOW_EXITING
        processor, _ = processor_with([], fields)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert outcome.reason is reason

    def test_without_exiting_halts_the_guest(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest()
        fields[F.CPU_BASED_VM_EXEC_CONTROL] &= ~CpuBased.HLT_EXITING
        hlt = instruction(TrapKind.HLT, "hlt", "f4")
        processor, cpu = processor_with([CPUID, hlt], fields)
        processor.vmlaunch()
        outcome = processor.vmresume()
        assert isinstance(outcome, VmExit)
        assert outcome.reason is ExitReason.EXTERNAL_INTERRUPT
        assert (processor.rip, processor.vmread(F.GUEST_ACTIVITY_STATE)) == (0x1001, 1)
        assert len(cpu.entered) == 2
        processor.vmresume()
        assert len(cpu.entered) == 2

    def test_ends_with_the_single_step_that_follows_it(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {F.GUEST_RFLAGS: 0x302, F.EXCEPTION_BITMAP: 2}
        fields[F.CPU_BASED_VM_EXEC_CONTROL] &= ~CpuBased.HLT_EXITING
        processor, _ = processor_with([instruction(TrapKind.HLT, "hlt", "f4"), CPUID], fields)
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert (outcome.intr_info, outcome.qualification) == (VALID | 0x301, 1 << 14)
        assert processor.vmread(F.GUEST_ACTIVITY_STATE) == Activity.ACTIVE
        assert processor.vmresume() == EXIT_CPUID

    def test_for_ever_is_a_mistake_of_the_hypervisor(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {F.GUEST_ACTIVITY_STATE: 1}
        fields[F.PIN_BASED_VM_EXEC_CONTROL] &= ~PinBased.EXTERNAL_INTERRUPT_EXITING
        processor, _ = processor_with([], fields)
        with pytest.raises(ConfigError, match="nothing can wake it: set external-interrupt"):
            processor.vmlaunch()


class TestMsrLoadArea:
    AREA = 0x9000

    def load(
        self, processor_with: MakeProcessor, *entries: tuple[int, int]
    ) -> tuple[VmExit | VmFail, ScriptedCpu]:
        fields = long_mode_guest() | {
            F.VM_ENTRY_MSR_LOAD_ADDR: self.AREA, F.VM_ENTRY_MSR_LOAD_COUNT: len(entries),
        }  # fmt: skip
        processor, cpu = processor_with([CPUID, CPUID], fields)
        for number, (index, value) in enumerate(entries):
            raw = index.to_bytes(8, "little") + value.to_bytes(8, "little")
            cpu.memory.write(self.AREA + 16 * number, raw)
        return processor.vmlaunch(), cpu

    def test_is_loaded_in_order(self, processor_with: MakeProcessor) -> None:
        outcome, cpu = self.load(
            processor_with, (Msr.IA32_LSTAR, 1), (Msr.IA32_LSTAR, 2), (Msr.IA32_EFER, 0xD01)
        )
        assert outcome == EXIT_CPUID
        assert (cpu.msr(Msr.IA32_LSTAR), cpu.efer) == (2, 0xD01)

    @pytest.mark.parametrize(
        ("index", "value"),
        [
            (Msr.IA32_FS_BASE, 0),
            (0x808, 0),
            (Msr.IA32_LSTAR | 1 << 32, 0),
            (Msr.IA32_LSTAR, 1 << 60),
            (Msr.IA32_PAT, 2),
            (Msr.IA32_EFER, 0),
            (Msr.IA32_EFER, 1 << 12 | 0x500),
            (Msr.IA32_VMX_BASIC, 0),
            (0xDEAD, 0),
        ],
    )
    def test_a_bad_entry_is_exit_reason_34(
        self, processor_with: MakeProcessor, index: int, value: int
    ) -> None:
        outcome, cpu = self.load(processor_with, (Msr.IA32_LSTAR, 1), (index, value))
        assert outcome == VmExit(ExitReason.MSR_LOAD_FAIL, 2, failed_entry=True)
        assert cpu.entered == []

    def test_is_loaded_at_every_entry(self, processor_with: MakeProcessor) -> None:
        fields = long_mode_guest() | {
            F.VM_ENTRY_MSR_LOAD_ADDR: self.AREA, F.VM_ENTRY_MSR_LOAD_COUNT: 1,
        }  # fmt: skip
        processor, cpu = processor_with([CPUID, CPUID], fields)
        cpu.memory.write(self.AREA, Msr.IA32_LSTAR.to_bytes(8, "little") + bytes(8))
        processor.vmlaunch()
        cpu.set_msr(Msr.IA32_LSTAR, 9)
        assert processor.vmresume() == EXIT_CPUID
        assert cpu.msr(Msr.IA32_LSTAR) == 0


TABLES = {
    TrapKind.LGDT, TrapKind.LIDT, TrapKind.SGDT, TrapKind.SIDT,
    TrapKind.LLDT, TrapKind.LTR, TrapKind.SLDT, TrapKind.STR,
}  # fmt: skip
LOADS = {TrapKind.LGDT, TrapKind.LIDT, TrapKind.LLDT, TrapKind.LTR}
"""Always: the engine loads from null selectors and bases that are not canonical."""


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, set()),
        ({F.CPU_BASED_VM_EXEC_CONTROL: CpuBased.INVLPG_EXITING}, {TrapKind.INVLPG}),
        ({F.CPU_BASED_VM_EXEC_CONTROL: CpuBased.PAUSE_EXITING}, {TrapKind.PAUSE}),
        ({F.CPU_BASED_VM_EXEC_CONTROL: CpuBased.CR3_STORE_EXITING}, {TrapKind.MOV_FROM_CR}),
        ({F.CR0_GUEST_HOST_MASK: Cr0.TS}, {TrapKind.MOV_FROM_CR, TrapKind.SMSW}),
        ({F.SECONDARY_VM_EXEC_CONTROL: Secondary.WBINVD_EXITING}, {TrapKind.WBINVD}),
        ({F.SECONDARY_VM_EXEC_CONTROL: Secondary.DESCRIPTOR_TABLE_EXITING}, TABLES),
    ],
)
def test_the_engine_hands_up_what_the_controls_may_ask_for(
    processor_with: MakeProcessor, fields: dict[int, int], kinds: set[TrapKind]
) -> None:
    guest = long_mode_guest()
    for field, bits in fields.items():
        guest[field] = guest.get(field, 0) | bits
    processor, cpu = processor_with([CPUID], guest)
    processor.vmlaunch()
    assert cpu.armed == kinds | LOADS


def test_arming_follows_a_change_of_the_controls(processor_with: MakeProcessor) -> None:
    processor, cpu = processor_with([CPUID, CPUID])
    processor.vmlaunch()
    assert cpu.armed == LOADS
    processor.vmwrite(F.CR0_GUEST_HOST_MASK, 1)
    processor.vmresume()
    assert cpu.armed == {TrapKind.MOV_FROM_CR, TrapKind.SMSW} | LOADS
    assert armed_kinds(Vmcs()) == LOADS


class TestWhatNoExitSaves:
    """EFER loaded at entry, but not saved at exit: every entry starts from the field again."""

    def test_is_loaded_again_after_the_guest_changed_it(
        self, processor_with: MakeProcessor
    ) -> None:
        fields = long_mode_guest()
        fields[F.VM_EXIT_CONTROLS] &= ~ExitControls.SAVE_EFER
        fields[F.CPU_BASED_VM_EXEC_CONTROL] |= CpuBased.USE_MSR_BITMAPS
        fields[F.MSR_BITMAP] = 0xA000
        wrmsr = instruction(TrapKind.WRMSR, "wrmsr", "0f30")
        processor, cpu = processor_with([wrmsr, CPUID, CPUID], fields)
        cpu.gpr[1], cpu.gpr[0] = Msr.IA32_EFER, Efer.LME | Efer.SCE
        assert processor.vmlaunch() == EXIT_CPUID
        assert cpu.efer == Efer.LME | Efer.LMA | Efer.SCE
        assert processor.vmread(F.GUEST_IA32_EFER) == Efer.LME | Efer.LMA
        assert processor.vmresume() == EXIT_CPUID
        assert cpu.efer == Efer.LME | Efer.LMA


def test_a_memory_trap_without_ept_is_answered_and_the_guest_goes_on(
    processor_with: MakeProcessor,
) -> None:
    fields = long_mode_guest()
    fields[F.SECONDARY_VM_EXEC_CONTROL] = 0
    nothing = MemoryTrap(TrapKind.MEMORY, 0x1000, 0x20_0000, 4, 0, 0, None, False)
    processor, cpu = processor_with([nothing, CPUID], fields)
    assert processor.vmlaunch() == EXIT_CPUID
    assert cpu.memory.read(0x20_0000, 4) == b"\xff\xff\xff\xff"
