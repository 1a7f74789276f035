"""The VMX instructions: every outcome of each, and that a bare VMRESUME takes the short way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmxsim.arch import capabilities
from vmxsim.arch.capabilities import VMCS_REVISION
from vmxsim.arch.controls import CpuBased
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.msrs import Msr
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import HostClock, VirtualClock
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import InsnTrap, Instruction, TrapKind
from vmxsim.errors import ConfigError
from vmxsim.vmx.processor import LaunchState, Processor, VmExit, VmFail, VmxFault
from vmxsim.vmx.vmcs import SUPPORTED

from .conftest import MakeProcessor
from .valid_guests import OTHER_VMCS, VMCS, VMXON, long_mode_guest

CPUID = Instruction("cpuid", b"\x0f\xa2", 2, 64, 4, 8, 0, False, -1, ())
INVALID = VmFail(None)


def cpuid(rip: int = 0x1000) -> InsnTrap:
    return InsnTrap(TrapKind.CPUID, rip, CPUID)


def failed(error: InstructionError) -> VmFail:
    return VmFail(error, "", error.message)


@pytest.fixture
def outside(clock: VirtualClock) -> Processor:
    """A processor that has not executed VMXON."""
    cpu = ScriptedCpu()
    cpu.memory.map(0, bytearray(0x10000))
    return Processor(cpu, clock)


@pytest.fixture
def root(outside: Processor) -> Processor:
    """In VMX root operation, without a current VMCS."""
    assert outside.vmxon(VMXON) is None
    return outside


@pytest.fixture
def loaded(root: Processor) -> Processor:
    """With an empty current VMCS."""
    assert root.vmptrld(VMCS) is None
    return root


class TestVmxon:
    def test_enters_vmx_operation_once(self, outside: Processor) -> None:
        assert outside.vmxon(VMXON) is None
        assert outside.vmxon_pointer == VMXON
        assert outside.vmxon(VMXON) == INVALID

    def test_in_vmx_root_operation_with_a_current_vmcs_is_error_15(self, loaded: Processor) -> None:
        assert loaded.vmxon(VMXON) == failed(InstructionError.VMXON_IN_VMX_ROOT)
        assert loaded.vmread(F.VM_INSTRUCTION_ERROR) == 15

    @pytest.mark.parametrize("address", [0x1008, 1 << 39, -0x1000])
    def test_wants_a_page_inside_the_address_width(self, outside: Processor, address: int) -> None:
        assert outside.vmxon(address) == INVALID
        assert outside.vmxon_pointer is None

    @pytest.mark.parametrize(
        ("word", "outcome"),
        [(VMCS_REVISION, None), (5, INVALID), (VMCS_REVISION | 1 << 31, INVALID)],
    )
    def test_looks_at_the_revision_identifier(
        self, outside: Processor, word: int, outcome: VmFail | None
    ) -> None:
        outside.memory.write(0x3000, word.to_bytes(4, "little"))
        assert outside.vmxon(0x3000) == outcome

    def test_needs_cr4_vmxe(self, outside: Processor) -> None:
        outside._root = outside.host._replace(cr4=0)
        with pytest.raises(VmxFault, match=r"VMXON needs CR4\.VMXE"):
            outside.vmxon(VMXON)


INSTRUCTIONS: list[Callable[[Processor], object]] = [
    lambda p: p.vmxoff(),
    lambda p: p.vmclear(VMCS),
    lambda p: p.vmptrld(VMCS),
    lambda p: p.vmptrst(),
    lambda p: p.vmread(F.GUEST_RIP),
    lambda p: p.vmwrite(F.GUEST_RIP, 0),
    lambda p: p.vmlaunch(),
    lambda p: p.vmresume(),
    lambda p: p.invept(2),
    lambda p: p.invvpid(2),
    lambda p: setattr(p, "rip", 0),
]


@pytest.mark.parametrize("number", range(len(INSTRUCTIONS)))
def test_everything_else_is_undefined_outside_vmx_operation(
    outside: Processor, number: int
) -> None:
    with pytest.raises(VmxFault, match="not in VMX operation: VMXON first") as raised:
        INSTRUCTIONS[number](outside)
    assert raised.value.vector == 6


class TestVmxoff:
    def test_leaves_vmx_operation(self, loaded: Processor) -> None:
        assert loaded.vmxoff() is None
        assert loaded.current is None
        assert loaded.vmxon(VMXON) is None
        assert loaded.vmptrst() == (1 << 64) - 1


class TestVmclear:
    @pytest.mark.parametrize(
        ("address", "error"),
        [
            (0x1001, InstructionError.VMCLEAR_INVALID_ADDRESS),
            (1 << 39, InstructionError.VMCLEAR_INVALID_ADDRESS),
            (VMXON, InstructionError.VMCLEAR_VMXON_POINTER),
        ],
    )
    def test_refuses(self, loaded: Processor, address: int, error: InstructionError) -> None:
        assert loaded.vmclear(address) == failed(error)
        assert loaded.vmread(F.VM_INSTRUCTION_ERROR) == error

    def test_refuses_without_a_current_vmcs_by_vmfailinvalid(self, root: Processor) -> None:
        assert root.vmclear(0x1001) == INVALID

    def test_of_the_current_vmcs_leaves_none_current_and_keeps_its_data(
        self, loaded: Processor
    ) -> None:
        loaded.vmwrite(F.GUEST_RIP, 0x1234)
        assert loaded.vmclear(VMCS) is None
        assert loaded.vmptrst() == (1 << 64) - 1
        assert loaded.vmread(F.GUEST_RIP) == INVALID
        loaded.vmptrld(VMCS)
        assert loaded.vmread(F.GUEST_RIP) == 0x1234

    def test_of_another_vmcs_leaves_the_current_one(self, loaded: Processor) -> None:
        assert loaded.vmclear(OTHER_VMCS) is None
        assert loaded.vmptrst() == VMCS

    def test_makes_the_launch_state_clear(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([cpuid(), cpuid()])
        processor.vmlaunch()
        assert processor.regions[VMCS].launch_state is LaunchState.LAUNCHED
        processor.vmclear(VMCS)
        processor.vmptrld(VMCS)
        assert processor.vmresume() == failed(InstructionError.VMRESUME_NONLAUNCHED_VMCS)
        assert isinstance(processor.vmlaunch(), VmExit)


class TestVmptrld:
    @pytest.mark.parametrize(
        ("address", "error"),
        [
            (0x1001, InstructionError.VMPTRLD_INVALID_ADDRESS),
            (1 << 39, InstructionError.VMPTRLD_INVALID_ADDRESS),
            (VMXON, InstructionError.VMPTRLD_VMXON_POINTER),
            (0x3000, InstructionError.VMPTRLD_INCORRECT_VMCS_REVISION_ID),
        ],
    )
    def test_refuses(self, loaded: Processor, address: int, error: InstructionError) -> None:
        assert loaded.vmptrld(address) == failed(error)
        assert loaded.vmptrst() == VMCS

    def test_takes_a_region_with_our_revision_identifier(self, root: Processor) -> None:
        root.memory.write(0x3000, VMCS_REVISION.to_bytes(4, "little"))
        assert root.vmptrld(0x3000) is None
        assert root.vmptrst() == 0x3000

    def test_takes_a_region_in_a_page_of_root_mode(self, root: Processor) -> None:
        page = bytearray(4096)
        root.host_pages.register(OTHER_VMCS, page)
        assert root.vmptrld(OTHER_VMCS) == INVALID
        page[:4] = VMCS_REVISION.to_bytes(4, "little")
        assert root.vmptrld(OTHER_VMCS) is None


class TestVmreadVmwrite:
    def test_fail_without_a_current_vmcs(self, root: Processor) -> None:
        assert root.vmread(F.GUEST_RIP) == INVALID
        assert root.vmwrite(F.GUEST_RIP, 1) == INVALID
        assert root.vmwrite(F.VM_ENTRY_INTR_INFO_FIELD, 1) == INVALID

    @pytest.mark.parametrize("field", [F.GUEST_RIP + 1, F.TPR_THRESHOLD, 0x6FFE])
    def test_unsupported_fields_are_error_12(self, loaded: Processor, field: int) -> None:
        assert loaded.vmread(field) == failed(InstructionError.UNSUPPORTED_VMCS_COMPONENT)
        assert loaded.vmwrite(field, 0) == failed(InstructionError.UNSUPPORTED_VMCS_COMPONENT)
        assert loaded.vmread(F.VM_INSTRUCTION_ERROR) == 12

    @pytest.mark.parametrize(
        "field", [F(each) for each in SUPPORTED if F(each).read_only], ids=lambda field: field.name
    )
    def test_exit_information_is_read_only(self, loaded: Processor, field: F) -> None:
        error = InstructionError.VMWRITE_READ_ONLY_VMCS_COMPONENT
        assert loaded.vmwrite(field, 1) == failed(error)
        assert loaded.vmread(field) == (13 if field is F.VM_INSTRUCTION_ERROR else 0)

    @pytest.mark.parametrize(
        "field", [F(e) for e in SUPPORTED if not F(e).read_only], ids=lambda field: field.name
    )
    def test_a_written_field_reads_back(self, loaded: Processor, field: F) -> None:
        assert loaded.vmwrite(field, 0x1_2345_6789_ABCD_EF01) is None
        assert loaded.vmread(field) == 0x2345_6789_ABCD_EF01 & field.mask

    def test_high_halves_of_live_fields(self, processor_with: MakeProcessor) -> None:
        processor, cpu = processor_with([cpuid()])
        processor.vmlaunch()
        cpu.set_msr(Msr.IA32_PAT, 0x0606_0606_0505_0505)
        assert processor.vmread(F.GUEST_IA32_PAT_HIGH) == 0x0606_0606
        processor.vmwrite(F.GUEST_IA32_PAT_HIGH, 0x0101_0101)
        assert processor.vmread(F.GUEST_IA32_PAT) == 0x0101_0101_0505_0505


class TestLaunchState:
    def test_fail_without_a_current_vmcs(self, root: Processor) -> None:
        assert root.vmlaunch() == INVALID
        assert root.vmresume() == INVALID

    def test_vmlaunch_then_vmresume(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([cpuid(), cpuid()])
        assert processor.vmresume() == failed(InstructionError.VMRESUME_NONLAUNCHED_VMCS)
        assert isinstance(processor.vmlaunch(), VmExit)
        assert processor.vmlaunch() == failed(InstructionError.VMLAUNCH_NONCLEAR_VMCS)
        assert isinstance(processor.vmresume(), VmExit)

    def test_a_failed_entry_does_not_launch(self, processor_with: MakeProcessor) -> None:
        processor, _ = processor_with([cpuid()], long_mode_guest() | {F.GUEST_RFLAGS: 0})
        outcome = processor.vmlaunch()
        assert isinstance(outcome, VmExit)
        assert outcome.reason is ExitReason.INVALID_STATE
        assert processor.regions[VMCS].launch_state is LaunchState.CLEAR
        processor.vmwrite(F.GUEST_RFLAGS, 2)
        assert processor.vmlaunch() == VmExit(ExitReason.CPUID, instruction_length=2)


class TestInvept:
    @pytest.mark.parametrize(("kind", "eptp"), [(1, 0x501E), (2, 0)])
    def test_flushes(self, loaded: Processor, kind: int, eptp: int) -> None:
        cpu = loaded.cpu
        assert isinstance(cpu, ScriptedCpu)
        assert loaded.invept(kind, eptp) is None
        assert cpu.tlb_flushes == 1

    @pytest.mark.parametrize(
        ("kind", "eptp"), [(0, 0), (3, 0), (1, 0), (1, 0x5019), (1, 0x505E), (1, 1 << 40 | 0x1E)]
    )
    def test_bad_operands_are_error_28(self, loaded: Processor, kind: int, eptp: int) -> None:
        error = InstructionError.INVALID_OPERAND_TO_INVEPT_INVVPID
        assert loaded.invept(kind, eptp) == failed(error)


class TestInvvpid:
    def test_one_address(self, loaded: Processor) -> None:
        cpu = loaded.cpu
        assert isinstance(cpu, ScriptedCpu)
        assert loaded.invvpid(0, 1, 0x1000) is None
        assert (cpu.invalidated, cpu.tlb_flushes) == ([0x1000], 0)

    @pytest.mark.parametrize(("kind", "vpid"), [(1, 1), (2, 0), (3, 1)])
    def test_a_context(self, loaded: Processor, kind: int, vpid: int) -> None:
        cpu = loaded.cpu
        assert isinstance(cpu, ScriptedCpu)
        assert loaded.invvpid(kind, vpid) is None
        assert cpu.tlb_flushes == 1

    @pytest.mark.parametrize(
        ("kind", "vpid", "address"),
        [(-1, 1, 0), (4, 1, 0), (0, 0, 0), (1, 0, 0), (3, 0, 0), (1, 0x10000, 0), (0, 1, 1 << 60)],
    )
    def test_bad_operands_are_error_28(
        self, loaded: Processor, kind: int, vpid: int, address: int
    ) -> None:
        error = InstructionError.INVALID_OPERAND_TO_INVEPT_INVVPID
        assert loaded.invvpid(kind, vpid, address) == failed(error)


class TestTheShortWay:
    """What a hypervisor does between two exits must not make the next entry check anything."""

    @pytest.fixture
    def running(self, processor_with: MakeProcessor) -> Processor:
        processor, _ = processor_with([cpuid() for _ in range(9)])
        assert isinstance(processor.vmlaunch(), VmExit)
        assert not processor._dirty
        return processor

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (F.GUEST_RIP, 0x1002),
            (F.GUEST_RIP, 0xFFFF_FFFF_8100_0000),
            (F.GUEST_RFLAGS, 0x246),
            (F.GUEST_RSP, 0x7000),
            (F.GUEST_CR3, 0x9000),
            (F.GUEST_INTERRUPTIBILITY_INFO, 0),
            (F.VM_ENTRY_EXCEPTION_ERROR_CODE, 3),
            (F.VM_ENTRY_INSTRUCTION_LEN, 2),
            (F.VM_ENTRY_INTR_INFO_FIELD, 0),
            (F.EXCEPTION_BITMAP, 1 << 14),
            (F.TSC_OFFSET, 5),
            (F.CR4_READ_SHADOW, 0x20),
            (F.HOST_RSP, 0x1234),
        ],
        ids=lambda value: value.name if isinstance(value, F) else hex(value),
    )
    def test_writes_that_need_no_check(self, running: Processor, field: F, value: int) -> None:
        assert running.vmwrite(field, value) is None
        assert not running._dirty
        assert running.vmread(field) == value

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (F.GUEST_RIP, 1 << 47),
            (F.GUEST_RFLAGS, 0),
            (F.GUEST_RFLAGS, 0x102),
            (F.GUEST_CR3, 1 << 40),
            (F.GUEST_INTERRUPTIBILITY_INFO, 1),
            (F.VM_ENTRY_INTR_INFO_FIELD, 0x8000_0020),
            (F.GUEST_CR0, 0x8000_0021),
            (F.CPU_BASED_VM_EXEC_CONTROL, 0),
            (F.EPT_POINTER, 0),
            (F.HOST_CR0, 0),
        ],
        ids=lambda value: value.name if isinstance(value, F) else hex(value),
    )
    def test_writes_that_do(self, running: Processor, field: F, value: int) -> None:
        assert running.vmwrite(field, value) is None
        assert running._dirty
        assert running.vmread(field) == value

    def test_writing_what_is_there_changes_nothing(self, running: Processor) -> None:
        for field in (each for each in SUPPORTED if not F(each).read_only):
            value = running.vmread(field)
            assert isinstance(value, int)
            assert running.vmwrite(field, value) is None
        assert not running._dirty

    def test_the_interrupt_window_opens_and_closes_at_once(self, running: Processor) -> None:
        controls = running.vmread(F.CPU_BASED_VM_EXEC_CONTROL)
        assert isinstance(controls, int)
        running.vmwrite(F.CPU_BASED_VM_EXEC_CONTROL, controls | CpuBased.INTERRUPT_WINDOW_EXITING)
        assert (running.cpu.interrupt_window, running._dirty) == (True, False)
        outcome = running.vmresume()
        assert isinstance(outcome, VmExit)
        assert outcome.reason is ExitReason.INTERRUPT_WINDOW
        running.vmwrite(F.CPU_BASED_VM_EXEC_CONTROL, controls)
        assert (running.cpu.interrupt_window, running._dirty) == (False, False)
        assert running.vmresume() == VmExit(ExitReason.CPUID, instruction_length=2)

    def test_rip_is_a_register_while_the_guest_is_loaded(self, running: Processor) -> None:
        running.rip += 2
        assert running.cpu.rip == running.rip == running.vmread(F.GUEST_RIP) == 0x1002
        assert not running._dirty

    def test_a_bad_rip_waits_for_the_next_entry(self, running: Processor) -> None:
        running.rip = 1 << 47
        assert (running.rip, running.cpu.rip) == (1 << 47, 0x1000)
        outcome = running.vmresume()
        assert isinstance(outcome, VmExit)
        assert (outcome.reason, outcome.failed_entry) == (ExitReason.INVALID_STATE, True)
        assert running.last_failure is not None
        assert running.last_failure.check == "guest_rip_canonical"
        running.rip = 0x2000
        assert running.vmresume() == VmExit(ExitReason.CPUID, instruction_length=2)
        assert not running._dirty


def test_rip_before_the_first_entry_is_the_field(processor_with: MakeProcessor) -> None:
    processor, cpu = processor_with([cpuid(0x4000)])
    assert processor.rip == 0x1000
    processor.rip = 0x4000
    assert (processor.vmread(F.GUEST_RIP), cpu.rip) == (0x4000, 0)
    processor.vmlaunch()
    assert cpu.entered[0].rip == 0x4000


def test_rip_needs_a_current_vmcs(root: Processor) -> None:
    with pytest.raises(ConfigError, match="no current VMCS: VMPTRLD first"):
        assert root.rip
    with pytest.raises(ConfigError, match="no current VMCS: VMPTRLD first"):
        root.rip = 5


def test_time_passes_with_every_trap(processor_with: MakeProcessor, clock: VirtualClock) -> None:
    processor, _ = processor_with([cpuid(), cpuid()])
    processor.vmlaunch()
    processor.vmresume()
    assert clock.exits == 2


def test_a_host_clock_will_do() -> None:
    processor = Processor(ScriptedCpu(), HostClock())
    assert processor.vmxon(VMXON) is None


def test_capability_msrs(root: Processor) -> None:
    assert root.capability_msr(Msr.IA32_VMX_BASIC) & 0x7FFF_FFFF == capabilities.VMCS_REVISION
    with pytest.raises(KeyError):
        root.capability_msr(Msr.IA32_VMX_VMFUNC)


def test_kicks_and_registers_pass_through(processor_with: MakeProcessor) -> None:
    processor, cpu = processor_with([])
    processor.kick()
    processor.cr2, processor.cr8, processor.xcr0, processor.budget = 1, 2, 3, 4
    processor.gpr[3] = 5
    processor.set_xmm(1, b"x" * 16)
    processor.fxrstor(b"f" * 512)
    processor.set_msr(Msr.IA32_LSTAR, 6)
    assert (cpu.kicked, cpu.cr2, cpu.cr8, cpu.xcr0, cpu.budget) == (True, 1, 2, 3, 4)
    assert (cpu.gpr[3], cpu.xmm(1), processor.xmm(1)) == (5, b"x" * 16, b"x" * 16)
    assert (processor.fxsave(), processor.msr(Msr.IA32_LSTAR)) == (b"f" * 512, 6)
    assert (processor.cr2, processor.cr8, processor.xcr0) == (1, 2, 3)
    assert (processor.budget, processor.blocks, processor.dr is cpu.dr) == (4, 0, True)
    assert processor.vmlaunch() == VmExit(ExitReason.EXTERNAL_INTERRUPT)
