"""From KVM_RUN to the exit handlers and back, with a Processor that replays exits."""

from __future__ import annotations

import threading
from errno import EINTR, EINVAL

import pytest

from vmxsim.arch.events import Event, EventType, interruption_info
from vmxsim.arch.exit_reasons import NOT_MODELLED, ExitReason
from vmxsim.arch.instruction_errors import InstructionError
from vmxsim.arch.qualifications import CrAccess, CrQualification, DrQualification
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Efer, Gpr, Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.errors import KvmError
from vmxsim.kvm import uapi
from vmxsim.kvm.requests import (
    KVM_REQ_TRIPLE_FAULT,
    kvm_check_request,
    kvm_make_request,
    kvm_test_request,
)
from vmxsim.kvm.vmx import kvm_vmx_exit_handlers
from vmxsim.kvm.x86 import kvm_inject_gp, kvm_queue_exception, kvm_queue_exception_e
from vmxsim.probes import Probes
from vmxsim.vmx.records import VmExit, VmFail

from .conftest import CPUID, HLT, KICKED, Everything, Guest, simple

VALID = 1 << 31
HARDWARE = EventType.HARDWARE_EXCEPTION << 8
WINDOW = 1 << 2


def injected(vector: int, error_code: bool = False) -> int:
    return VALID | HARDWARE | (1 << 11 if error_code else 0) | vector


class TestEveryReason:
    def test_is_handled_or_excused(self) -> None:
        assert kvm_vmx_exit_handlers.keys() | NOT_MODELLED.keys() == set(ExitReason)
        assert not kvm_vmx_exit_handlers.keys() & NOT_MODELLED.keys()

    @pytest.mark.parametrize("reason", NOT_MODELLED, ids=lambda reason: reason.name)
    def test_an_excused_one_that_comes_all_the_same_is_an_internal_error(
        self, guest: Guest, reason: ExitReason
    ) -> None:
        assert guest.run(VmExit(reason)) == uapi.KvmExitInternalError(4, (reason, 0))


class TestEntering:
    def test_first_launch_then_resume(self, guest: Guest) -> None:
        assert guest.run(CPUID, CPUID, HLT) == uapi.KvmExitHlt()
        assert guest.log == ["vmlaunch", "vmresume", "vmresume"]
        assert guest.run(HLT) == uapi.KvmExitHlt()
        assert guest.log[3:] == ["vmresume"]

    def test_the_vmcs_is_loaded_when_the_vcpu_is_made(self) -> None:
        guest = Guest()
        assert guest.log == []
        again = type(guest.processor)()
        guest.kvm._processor = lambda _: again
        guest.vm.close()
        guest.kvm.create_vm().create_vcpu(0)
        assert again.log == ["vmxon", "vmclear", "vmptrld"]

    def test_a_refused_vmcs_is_fail_entry_with_the_error_number(self, guest: Guest) -> None:
        error = InstructionError.ENTRY_INVALID_CONTROL_FIELD
        assert guest.run(VmFail(error)) == uapi.KvmExitFailEntry(7, 0)
        assert guest.run(HLT) == uapi.KvmExitHlt()
        assert guest.log == ["vmlaunch", "vmlaunch"]

    def test_bad_guest_state_is_fail_entry_with_bit_31(self, guest: Guest) -> None:
        failed = VmExit(ExitReason.INVALID_STATE, failed_entry=True)
        assert guest.run(failed) == uapi.KvmExitFailEntry(0x8000_0021, 0)

    def test_a_failed_entry_keeps_what_was_to_be_injected(self, guest: Guest) -> None:
        guest.vcpu.interrupt(0x20)
        guest.run(VmExit(ExitReason.INVALID_STATE, failed_entry=True))
        assert guest.inner.arch.interrupt.injected


class TestLeaving:
    def test_hlt_without_irqchip_has_rip_behind_it(self, guest: Guest) -> None:
        assert guest.run(HLT) == uapi.KvmExitHlt()
        assert guest.processor.rip == 0x1001

    def test_triple_fault_is_shutdown(self, guest: Guest) -> None:
        assert guest.run(VmExit(ExitReason.TRIPLE_FAULT)) == uapi.KvmExitShutdown()

    def test_an_unexpected_exception_goes_to_userspace(self, guest: Guest) -> None:
        exit = VmExit(
            ExitReason.EXCEPTION_NMI, intr_info=injected(14, True), intr_error_code=2
        )
        assert guest.run(exit) == uapi.KvmExitException(14, 2)

    def test_an_exit_during_delivery_is_an_internal_error(self, guest: Guest) -> None:
        exit = VmExit(ExitReason.EPT_VIOLATION, 0x182, idt_vectoring_info=injected(6),
                      guest_physical_address=0xF0000)  # fmt: skip
        assert guest.run(exit) == uapi.KvmExitInternalError(3, (injected(6), 48, 0x182, 0xF0000))
        exit = VmExit(ExitReason.CPUID, idt_vectoring_info=injected(6))
        assert guest.run(exit) == uapi.KvmExitInternalError(3, (injected(6), 10, 0, 0))

    def test_counts_exits_by_reason_and_by_kvm_exit(self, guest: Guest) -> None:
        guest.run(CPUID, CPUID, HLT)
        assert guest.vcpu.stat.by_reason() == {ExitReason.CPUID: 2, ExitReason.HLT: 1}
        assert guest.vcpu.stat.userspace_exits == {uapi.KVM_EXIT_HLT: 1}
        assert guest.vcpu.stat.halt_exits == 1


class TestInterrupting:
    def test_immediate_exit_never_enters(self, guest: Guest) -> None:
        guest.kvm_run.immediate_exit = 1
        with pytest.raises(KvmError, match="immediate_exit") as caught:
            guest.vcpu.run()
        assert caught.value.errno == EINTR
        assert guest.kvm_run.exit == uapi.KvmExitIntr()
        assert guest.log == []

    def test_a_kick_before_run_is_not_lost_and_counts_once(self, guest: Guest) -> None:
        guest.vcpu.kick()
        with pytest.raises(KvmError) as caught:
            guest.vcpu.run()
        assert caught.value.errno == EINTR
        assert guest.run(HLT) == uapi.KvmExitHlt()
        assert guest.vcpu.stat.signal_exits == 1

    def test_a_kick_while_the_guest_runs_reaches_the_processor(self, guest: Guest) -> None:
        def kicked_from_elsewhere(processor: object) -> VmExit:
            thread = threading.Thread(target=guest.vcpu.kick)
            thread.start()
            thread.join()
            assert guest.processor.kicks == 1
            guest.processor.kicks = 0
            return KICKED

        guest.processor.script = [kicked_from_elsewhere]
        with pytest.raises(KvmError) as caught:
            guest.vcpu.run()
        assert caught.value.errno == EINTR
        assert guest.kvm_run.exit == uapi.KvmExitIntr()

    def test_a_kick_of_the_vcpus_own_thread_needs_no_exit(self, guest: Guest) -> None:
        def kicked_from_a_probe(processor: object) -> VmExit:
            guest.vcpu.kick()
            assert guest.processor.kicks == 0
            return CPUID

        guest.processor.script = [kicked_from_a_probe]
        with pytest.raises(KvmError):
            guest.vcpu.run()

    def test_a_spurious_external_interrupt_is_passed_over(self, guest: Guest) -> None:
        assert guest.run(KICKED, KICKED, HLT) == uapi.KvmExitHlt()
        assert guest.processor.rip == 0x1001

    def test_a_request_to_shut_down_is_obeyed_before_entry(self, guest: Guest) -> None:
        kvm_make_request(KVM_REQ_TRIPLE_FAULT, guest.inner)
        assert guest.run() == uapi.KvmExitShutdown()
        assert guest.log == []


class TestRequests:
    def test_check_takes_it_and_test_does_not(self, guest: Guest) -> None:
        kvm_make_request(7, guest.inner)
        assert kvm_test_request(7, guest.inner)
        assert kvm_check_request(7, guest.inner)
        assert not kvm_check_request(7, guest.inner)

    def test_none_is_lost_between_threads(self, guest: Guest) -> None:
        def make(first: int) -> None:
            for number in range(first, 64, 4):
                kvm_make_request(number, guest.inner)

        threads = [threading.Thread(target=make, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert guest.inner.requests == (1 << 64) - 1 | guest.inner.requests
        guest.inner.requests = 0


class TestInjection:
    def test_an_exception_goes_in_with_its_error_code(self, guest: Guest) -> None:
        protected(guest)
        kvm_inject_gp(guest.inner, 0x18)
        guest.run(HLT)
        assert guest.processor.injected == [injected(13, True)]
        assert guest.field(F.VM_ENTRY_EXCEPTION_ERROR_CODE) == 0x18
        assert not guest.inner.arch.exception.injected

    def test_real_mode_has_no_error_codes(self, guest: Guest) -> None:
        kvm_inject_gp(guest.inner, 0)
        guest.run(HLT)
        assert guest.processor.injected == [injected(13)]

    def test_faults_push_rf_and_debug_exceptions_clear_gd(self, guest: Guest) -> None:
        kvm_queue_exception(guest.inner, 6)
        guest.run(HLT)
        assert guest.field(F.GUEST_RFLAGS) & Rflags.RF
        guest.set_rflags(0)
        guest.processor.vmwrite(F.GUEST_DR7, 0x2400)
        kvm_queue_exception(guest.inner, 1)
        guest.run(HLT)
        assert not guest.field(F.GUEST_RFLAGS) & Rflags.RF
        assert guest.field(F.GUEST_DR7) == 0x400

    def test_two_contributory_faults_are_a_double_fault(self, guest: Guest) -> None:
        protected(guest)
        kvm_inject_gp(guest.inner, 0)
        kvm_queue_exception_e(guest.inner, 11, 0x10)
        guest.run(HLT)
        assert guest.processor.injected == [injected(8, True)]
        assert guest.field(F.VM_ENTRY_EXCEPTION_ERROR_CODE) == 0

    def test_a_fault_after_a_double_fault_shuts_down(self, guest: Guest) -> None:
        kvm_queue_exception_e(guest.inner, 8, 0)
        kvm_queue_exception_e(guest.inner, 13, 0)
        assert guest.run() == uapi.KvmExitShutdown()

    def test_what_was_cut_short_is_injected_again(self, guest: Guest) -> None:
        kvm_queue_exception(guest.inner, 6)
        cut_short = KICKED._replace(idt_vectoring_info=injected(6))
        guest.run(cut_short, CPUID, HLT)
        assert guest.processor.injected == [injected(6), injected(6), 0]

    def test_an_interrupt_that_was_cut_short_too(self, guest: Guest) -> None:
        guest.vcpu.interrupt(0x31)
        external = VALID | 0x31
        guest.run(KICKED._replace(idt_vectoring_info=external), HLT)
        assert guest.processor.injected == [external, external]

    def test_a_software_interrupt_keeps_its_length(self, guest: Guest) -> None:
        info = interruption_info(Event(EventType.SOFTWARE_INTERRUPT, 0x80, None, 2))
        guest.run(simple(ExitReason.EXTERNAL_INTERRUPT, 2, idt_vectoring_info=info), HLT)
        assert guest.processor.injected == [0, info]
        assert guest.field(F.VM_ENTRY_INSTRUCTION_LEN) == 2

    def test_an_nmi_that_was_cut_short_is_injected_again(self, guest: Guest) -> None:
        info = VALID | EventType.NMI << 8 | 2
        guest.run(KICKED._replace(idt_vectoring_info=info), HLT)
        assert guest.processor.injected == [0, info]

    def test_an_exception_goes_before_an_interrupt(self, irq_guest: Guest) -> None:
        guest = irq_guest
        guest.set_rflags(Rflags.IF)
        program_pic(guest)
        guest.vm.irq_line(1, 1)
        kvm_queue_exception(guest.inner, 6)
        guest.set_rflags(Rflags.IF)
        guest.processor.script = [CPUID, simple(ExitReason.INTERRUPT_WINDOW), CPUID]
        guest.processor.script.append(VmExit(ExitReason.TRIPLE_FAULT))
        guest.vcpu.run()
        assert guest.processor.injected == [injected(6), 0, VALID | 0x21, 0]


def protected(guest: Guest) -> None:
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 = 0x11
    guest.vcpu.set_sregs(sregs)


def program_pic(guest: Guest) -> None:
    """Vectors from 0x20 and 0x28, everything unmasked."""
    pic = guest.inner.vm.pic
    assert pic is not None
    for chip, base in ((pic.master, 0x20), (pic.slave, 0x28)):
        for offset, value in ((0, 0x11), (1, base), (1, 4), (1, 1), (1, 0)):
            chip.write(offset, 1, value)


class TestUserspaceInterrupts:
    def test_interrupt_is_injected_at_the_next_entry(self, guest: Guest) -> None:
        guest.set_rflags(Rflags.IF)
        guest.vcpu.interrupt(0x20)
        assert guest.run(HLT) == uapi.KvmExitHlt()
        assert guest.processor.injected == [VALID | 0x20]
        assert guest.vcpu.stat.irq_injections == 1

    def test_a_closed_window_opens_with_an_exit(self, guest: Guest) -> None:
        guest.kvm_run.request_interrupt_window = 1

        def sti(processor: object) -> VmExit:
            assert guest.field(F.CPU_BASED_VM_EXEC_CONTROL) & WINDOW
            guest.set_rflags(Rflags.IF)
            return simple(ExitReason.INTERRUPT_WINDOW)

        assert guest.run(CPUID, sti) == uapi.KvmExitIrqWindowOpen()
        assert not guest.field(F.CPU_BASED_VM_EXEC_CONTROL) & WINDOW
        assert guest.kvm_run.ready_for_interrupt_injection == 1
        assert guest.kvm_run.if_flag == 1
        assert guest.vcpu.stat.irq_window_exits == 1

    def test_an_open_window_is_reported_without_an_entry_in_between(self, guest: Guest) -> None:
        guest.set_rflags(Rflags.IF)
        guest.kvm_run.request_interrupt_window = 1
        assert guest.run(CPUID) == uapi.KvmExitIrqWindowOpen()

    def test_sti_shadow_counts_as_closed(self, guest: Guest) -> None:
        guest.set_rflags(Rflags.IF)
        guest.kvm_run.request_interrupt_window = 1
        blocked = [False]

        def blocked_by_sti(processor: object) -> VmExit:
            guest.processor.vmwrite(F.GUEST_INTERRUPTIBILITY_INFO, 1)
            blocked[0] = True
            return KICKED

        assert guest.run(blocked_by_sti, CPUID) == uapi.KvmExitIrqWindowOpen()
        assert blocked == [True]

    def test_ready_is_zero_with_interrupts_off(self, guest: Guest) -> None:
        guest.run(HLT)
        assert guest.kvm_run.ready_for_interrupt_injection == 0
        assert guest.kvm_run.if_flag == 0

    def test_cr8_comes_from_kvm_run_and_goes_back(self, guest: Guest) -> None:
        guest.kvm_run.cr8 = 5
        guest.run(HLT)
        assert guest.vcpu.get_sregs().cr8 == 5
        guest.kvm_run.cr8 = 16
        with pytest.raises(KvmError, match=r"cr8 is 0x10") as caught:
            guest.vcpu.run()
        assert caught.value.errno == EINVAL

    def test_a_lower_cr8_is_userspaces_business(self, guest: Guest) -> None:
        write = VmExit(
            ExitReason.CR_ACCESS,
            CrQualification(cr=8, access=CrAccess.MOV_TO, gpr=Gpr.RBX).encode(),
            instruction_length=4,
        )
        guest.gpr[Gpr.RBX] = 7
        guest.run(write, HLT)
        guest.gpr[Gpr.RBX] = 3
        assert guest.run(write) == uapi.KvmExitOther(uapi.KVM_EXIT_SET_TPR)
        assert guest.kvm_run.cr8 == 3
        guest.gpr[Gpr.RBX] = 0x10
        guest.run(write, HLT)
        assert guest.processor.injected[-1] == injected(13)


class TestExceptions:
    @pytest.mark.parametrize(("vector", "code"), [(6, None), (17, 0)])
    def test_what_kvm_intercepts_is_handed_on(
        self, guest: Guest, vector: int, code: int | None
    ) -> None:
        protected(guest)
        info = injected(vector, code is not None)
        guest.run(VmExit(ExitReason.EXCEPTION_NMI, intr_info=info), HLT)
        assert guest.processor.injected == [0, info]

    def test_a_debug_exception_sets_dr6(self, guest: Guest) -> None:
        guest.processor.dr[6] = Dr6.FIXED | Dr6.B3
        exit = VmExit(ExitReason.EXCEPTION_NMI, Dr6.B0 | Dr6.BS, intr_info=injected(1))
        guest.run(exit, HLT)
        assert guest.processor.dr[6] == Dr6.FIXED | Dr6.B0 | Dr6.BS
        assert guest.processor.injected == [0, injected(1)]

    def test_icebp_is_skipped_before_its_debug_exception(self, guest: Guest) -> None:
        info = VALID | EventType.PRIVILEGED_SOFTWARE_EXCEPTION << 8 | 1
        guest.run(simple(ExitReason.EXCEPTION_NMI, 1, intr_info=info), HLT)
        assert guest.processor.rip == 0x1002

    def test_a_single_stepped_guest_steps_over_emulated_instructions(self, guest: Guest) -> None:
        guest.set_rflags(Rflags.TF)
        step = VmExit(ExitReason.EXCEPTION_NMI, Dr6.BS, intr_info=injected(1))
        guest.run(step, CPUID, HLT)
        assert guest.processor.injected == [0, injected(1), injected(1)]
        guest.set_rflags(0)
        guest.run(CPUID, HLT)
        assert guest.processor.injected[3:] == [injected(1), 0]
        assert not guest.inner.arch.singlestep


class TestControlRegisters:
    def access(self, cr: int, access: CrAccess, gpr: int = 0, lmsw: int = 0) -> VmExit:
        qualification = CrQualification(cr, access, gpr=gpr, lmsw_source=lmsw).encode()
        return VmExit(ExitReason.CR_ACCESS, qualification, instruction_length=3)

    def test_cr0_keeps_what_the_guest_wrote_in_the_shadow(self, guest: Guest) -> None:
        guest.gpr[Gpr.RBX] = Cr0.PE | Cr0.ET
        guest.run(self.access(0, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.field(F.CR0_READ_SHADOW) == Cr0.PE | Cr0.ET
        assert guest.field(F.GUEST_CR0) == Cr0.PE | Cr0.ET | Cr0.NE
        assert guest.vcpu.get_sregs().cr0 == Cr0.PE | Cr0.ET

    def test_paging_with_lme_makes_long_mode_and_back(self, guest: Guest) -> None:
        guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
        assert guest.vcpu.set_msrs([(0xC000_0080, Efer.LME)]) == 1
        guest.gpr[Gpr.RBX] = Cr4.PAE
        guest.run(self.access(4, CrAccess.MOV_TO, Gpr.RBX), HLT)
        guest.gpr[Gpr.RBX] = Cr0.PE | Cr0.PG | Cr0.ET
        guest.run(self.access(0, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.vcpu.get_sregs().efer == Efer.LME | Efer.LMA
        assert guest.field(F.VM_ENTRY_CONTROLS) & 1 << 9
        guest.gpr[Gpr.RBX] = Cr0.PE | Cr0.ET
        guest.run(self.access(0, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.vcpu.get_sregs().efer == Efer.LME
        assert not guest.field(F.VM_ENTRY_CONTROLS) & 1 << 9

    @pytest.mark.parametrize(
        ("cr", "value"),
        [
            (0, Cr0.PG),
            (0, Cr0.NW),
            (4, Cr4.SMEP),
            (4, Cr4.VMXE),
            (4, Cr4.PCIDE),
            (4, 1 << 31),
        ],
    )
    def test_an_illegal_value_is_a_general_protection_fault(
        self, guest: Guest, cr: int, value: int
    ) -> None:
        guest.gpr[Gpr.RBX] = value
        guest.run(self.access(cr, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.processor.injected == [0, injected(13)]
        assert guest.processor.rip == 0x1001

    def test_long_mode_needs_pae(self, guest: Guest) -> None:
        guest.vcpu.set_msrs([(0xC000_0080, Efer.LME)])
        guest.gpr[Gpr.RBX] = Cr0.PE | Cr0.PG
        guest.run(self.access(0, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.processor.injected == [0, injected(13)]

    def test_pae_paging_loads_and_checks_the_pdptes(self, guest: Guest) -> None:
        guest.processor.vmwrite(F.GUEST_CR3, 0x2000)
        guest.ram[0x2000:0x2008] = (0x3001).to_bytes(8, "little")
        guest.gpr[Gpr.RBX] = Cr4.PAE
        guest.run(self.access(4, CrAccess.MOV_TO, Gpr.RBX), HLT)
        guest.gpr[Gpr.RBX] = Cr0.PE | Cr0.PG
        guest.run(self.access(0, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.field(F.GUEST_PDPTR0) == 0x3001
        guest.ram[0x4000:0x4008] = (0x3003).to_bytes(8, "little")
        guest.gpr[Gpr.RBX] = 0x4000
        guest.run(self.access(3, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.processor.injected[-1] == injected(13, True)
        assert guest.field(F.GUEST_CR3) == 0x2000

    def test_clts_and_lmsw(self, guest: Guest) -> None:
        guest.processor.vmwrite(F.GUEST_CR0, Cr0.ET | Cr0.NE | Cr0.TS)
        guest.run(self.access(0, CrAccess.CLTS), HLT)
        assert not guest.field(F.GUEST_CR0) & Cr0.TS
        guest.run(self.access(0, CrAccess.LMSW, lmsw=0xF), HLT)
        assert guest.vcpu.get_sregs().cr0 & 0xF == 0xF
        guest.run(self.access(0, CrAccess.LMSW, lmsw=0), HLT)
        assert guest.vcpu.get_sregs().cr0 & 0xF == 1

    def test_reading(self, guest: Guest) -> None:
        guest.processor.vmwrite(F.GUEST_CR3, 0x5000)
        guest.run(self.access(3, CrAccess.MOV_FROM, Gpr.RSI), HLT)
        assert guest.gpr[Gpr.RSI] == 0x5000

    def test_outside_long_mode_only_32_bits_count(self, guest: Guest) -> None:
        guest.gpr[Gpr.RBX] = 1 << 40 | Cr0.PE
        guest.run(self.access(0, CrAccess.MOV_TO, Gpr.RBX), HLT)
        assert guest.vcpu.get_sregs().cr0 == Cr0.PE | Cr0.ET


class TestDebugRegisters:
    MOV_DR0 = VmExit(
        ExitReason.DR_ACCESS, DrQualification(0, False, 0).encode(), instruction_length=3
    )

    def test_the_guest_has_them_until_its_next_exit(self, guest: Guest) -> None:
        exiting = 1 << 23

        def runs_it(processor: object) -> VmExit:
            assert not guest.field(F.CPU_BASED_VM_EXEC_CONTROL) & exiting
            return CPUID

        def exits_again(processor: object) -> VmExit:
            assert guest.field(F.CPU_BASED_VM_EXEC_CONTROL) & exiting
            return HLT

        guest.run(self.MOV_DR0, runs_it, exits_again)
        assert guest.processor.rip == 0x1003

    def test_dr4_with_debugging_extensions_is_undefined(self, guest: Guest) -> None:
        guest.processor.vmwrite(F.GUEST_CR4, Cr4.DE)
        exit = self.MOV_DR0._replace(qualification=DrQualification(4, False, 0).encode())
        guest.run(exit, HLT)
        assert guest.processor.injected == [0, injected(6)]


class TestOtherInstructions:
    @pytest.mark.parametrize(
        "reason",
        ["INVD", "WBINVD", "INVLPG", "PAUSE_INSTRUCTION", "MONITOR_INSTRUCTION",
         "MWAIT_INSTRUCTION"],
    )  # fmt: skip
    def test_skipped(self, guest: Guest, reason: str) -> None:
        guest.run(simple(ExitReason[reason], 3), HLT)
        assert guest.processor.rip == 0x1004
        assert guest.processor.injected == [0, 0]

    @pytest.mark.parametrize(
        "reason",
        ["VMCLEAR", "VMLAUNCH", "VMPTRLD", "VMPTRST", "VMREAD", "VMRESUME", "VMWRITE", "VMOFF",
         "VMON", "INVEPT", "INVVPID", "VMFUNC", "GETSEC", "RDRAND", "RDSEED", "INVPCID"],
    )  # fmt: skip
    def test_undefined(self, guest: Guest, reason: str) -> None:
        guest.run(simple(ExitReason[reason], 3), HLT)
        assert guest.processor.injected == [0, injected(6)]
        assert guest.processor.rip == 0x1001

    def test_vmcall_offers_nothing(self, guest: Guest) -> None:
        guest.run(simple(ExitReason.VMCALL, 3), HLT)
        assert guest.gpr[0] == -1000 & 0xFFFF_FFFF  # -KVM_ENOSYS
        assert guest.processor.rip == 0x1004

    def test_vmcall_of_user_code_is_not_permitted(self, guest: Guest) -> None:
        guest.processor.vmwrite(F.GUEST_SS_AR_BYTES, 0x60 | 0x93)
        guest.run(simple(ExitReason.VMCALL, 3), HLT)
        assert guest.gpr[0] == 0xFFFF_FFFF

    def test_rdpmc_has_no_counter(self, guest: Guest) -> None:
        guest.run(simple(ExitReason.RDPMC, 2), HLT)
        assert guest.processor.injected == [0, injected(13)]

    @pytest.mark.parametrize(
        ("index", "value", "fine"), [(0, 1, True), (0, 3, True), (0, 2, False), (0, 7, False),
                                     (1, 1, False)]
    )  # fmt: skip
    def test_xsetbv(self, guest: Guest, index: int, value: int, fine: bool) -> None:
        guest.gpr[:3] = [value, index, 0]
        guest.run(simple(ExitReason.XSETBV, 3), HLT)
        assert guest.processor.injected == [0, 0 if fine else injected(13)]
        assert guest.processor.xcr0 == (value if fine else 1)

    def test_rdtsc_if_it_exits(self, guest: Guest) -> None:
        guest.clock.charge(5 << 32)
        guest.run(simple(ExitReason.RDTSC, 2), HLT)
        assert guest.gpr[Gpr.RDX] == 5


class TestProbes:
    def test_each_sees_its_event_in_order(self) -> None:
        probes, seen = Probes(), Everything()
        probes.add(seen)
        guest = Guest(probes=probes)
        guest.run(CPUID, HLT)
        expected = [
            "userspace_entry", "vm_entry", "vm_exit", "cpuid", "handled",
            "vm_entry", "vm_exit", "handled", "userspace_exit",
        ]  # fmt: skip
        assert [event[0] for event in seen.events if event[0] in expected] == expected
        assert [event[2:] for event in seen.of("vm_exit")] == [(0x1000, CPUID), (0x1002, HLT)]
        in_kernel = [any(value is True for value in each) for each in seen.of("handled")]
        assert in_kernel == [True, False]
        assert seen.of("userspace_exit")[0][2] == uapi.KVM_EXIT_HLT

    def test_injections_and_registers_are_seen(self) -> None:
        probes, seen = Probes(), Everything()
        probes.add(seen)
        guest = Guest(probes=probes)
        guest.set_rflags(Rflags.IF)
        guest.vcpu.interrupt(0x33)
        guest.gpr[Gpr.RCX] = 0x1234_5678
        guest.run(simple(ExitReason.MSR_READ, 2), HLT)
        assert seen.of("inj_virq")[0][2:] == (0x33,)
        assert seen.of("msr")[0][2:] == (False, 0x1234_5678, 0, True)
        assert seen.of("inj_exception")[0][2:] == (13, None)
