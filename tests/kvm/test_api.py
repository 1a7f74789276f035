"""The ioctls as methods: what they refuse, with which errno, and what a new vCPU looks like."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from errno import EBADF, EEXIST, EINVAL

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Cr0, Cr4, Efer, Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import VirtualClock
from vmxsim.errors import ConfigError, KvmError
from vmxsim.kvm import uapi
from vmxsim.kvm.api import CAPABILITIES, Kvm, Vm
from vmxsim.vmx.records import VmExit

from .conftest import HLT, FakeProcessor, Guest

PAGE = 4096


def refusal(call: object, *args: object, **kwargs: object) -> int:
    """The errno a call is refused with."""
    with pytest.raises(KvmError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value.errno


@pytest.fixture
def kvm() -> Kvm:
    return Kvm(processor=FakeProcessor)


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as one:
        yield one


class TestKvm:
    def test_version_and_sizes(self, kvm: Kvm) -> None:
        assert kvm.get_api_version() == 12
        assert kvm.get_vcpu_mmap_size() == 12288

    def test_extensions_are_what_is_there(self, kvm: Kvm, vm: Vm) -> None:
        assert kvm.check_extension(uapi.KVM_CAP_IRQCHIP) == 1
        assert kvm.check_extension(uapi.KVM_CAP_SET_GUEST_DEBUG) == 0
        assert kvm.check_extension(12345) == 0
        assert vm.check_extension(uapi.KVM_CAP_USER_MEMORY) == 1
        assert 0 not in CAPABILITIES.values()

    def test_one_clock_drives_one_vm(self) -> None:
        kvm = Kvm(VirtualClock(), processor=FakeProcessor)
        first = kvm.create_vm()
        with pytest.raises(ConfigError, match="one clock drives one VM"):
            kvm.create_vm()
        first.close()
        assert kvm.create_vm().clock is first.clock

    def test_without_a_clock_every_vm_has_its_own(self, kvm: Kvm) -> None:
        assert kvm.create_vm().clock is not kvm.create_vm().clock

    def test_closed_is_ebadf_and_closing_twice_is_fine(self, kvm: Kvm) -> None:
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu(0)
        vm.close()
        vm.close()
        assert refusal(vm.create_vcpu, 0) == EBADF
        assert refusal(vm.irq_line, 0, 0) == EBADF
        assert refusal(vcpu.run) == EBADF
        assert refusal(vcpu.get_regs) == EBADF
        with kvm:
            pass
        assert refusal(kvm.create_vm) == EBADF


class TestMemory:
    def test_any_writable_buffer_is_mapped_without_a_copy(self) -> None:
        guest = Guest()
        array = (ctypes.c_char * PAGE)()
        with mmap.mmap(-1, PAGE) as mapped:
            for slot, buffer in enumerate((bytearray(PAGE), array, memoryview(bytearray(PAGE)),
                                           mapped), 1):  # fmt: skip
                gpa = 0x10_0000 * slot
                guest.vm.set_user_memory_region(slot, gpa, buffer)
                guest.processor.memory.write(gpa + 5, b"x")
                assert bytes(memoryview(buffer).cast("B")[5:6]) == b"x"
                guest.vm.set_user_memory_region(slot, gpa, None)
            for kept in guest.processor.memory.ranges:
                assert kept[0] == 0

    @pytest.mark.parametrize(
        ("slot", "gpa", "size", "flags", "errno"),
        [
            (1, 0x1_0800, PAGE, 0, EINVAL),
            (1, 0x1_0000, 100, 0, EINVAL),
            (509, 0x1_0000, PAGE, 0, EINVAL),
            (-1, 0x1_0000, PAGE, 0, EINVAL),
            (1, 0x1_0000, PAGE, 1, EINVAL),
            (1, 0x7F_FFFF_0000, PAGE, 0, EINVAL),
            (1, -PAGE, PAGE, 0, EINVAL),
            (1, 0xF000, 2 * PAGE, 0, EEXIST),
            (1, 0, PAGE, 0, EEXIST),
            (1, 0x1_0000, 0, 0, EINVAL),
        ],
    )
    def test_what_is_refused(
        self, guest: Guest, slot: int, gpa: int, size: int, flags: int, errno: int
    ) -> None:
        assert refusal(guest.vm.set_user_memory_region, slot, gpa, bytearray(size), flags) == errno

    def test_the_message_names_both_slots(self, guest: Guest) -> None:
        with pytest.raises(KvmError, match=r"slot 3 at 0xf000\.\.0x10fff overlaps slot 0 at 0x0"):
            guest.vm.set_user_memory_region(3, 0xF000, bytearray(2 * PAGE))

    def test_read_only_buffers_are_refused(self, vm: Vm) -> None:
        assert refusal(vm.set_user_memory_region, 0, 0, bytes(PAGE)) == EINVAL

    def test_an_existing_slot_may_move_but_not_change_its_memory(self, guest: Guest) -> None:
        guest.vm.set_user_memory_region(0, 0x10_0000, guest.ram)
        assert [each[0] for each in guest.processor.memory.ranges] == [0x10_0000]
        assert refusal(
            guest.vm.set_user_memory_region, 0, 0x10_0000, bytearray(0x10000)
        ) == EINVAL  # fmt: skip
        assert refusal(
            guest.vm.set_user_memory_region, 0, 0, guest.ram, uapi.KVM_MEM_READONLY
        ) == EINVAL  # fmt: skip

    def test_slots_made_before_the_vcpu_are_mapped_with_it(self, vm: Vm) -> None:
        vm.set_user_memory_region(0, 0x4000, bytearray(PAGE), uapi.KVM_MEM_READONLY)
        processor = vm.create_vcpu(0)._vcpu.processor
        ((gpa, _, readonly),) = processor.memory.ranges
        assert (gpa, readonly) == (0x4000, True)

    def test_a_change_while_the_guest_runs_waits_for_the_vcpu(self, guest: Guest) -> None:
        inside, changed = threading.Event(), threading.Event()

        def change() -> None:
            assert inside.wait(5)
            guest.vm.set_user_memory_region(5, 0x20_0000, bytearray(PAGE))
            changed.set()

        def busy(processor: FakeProcessor) -> VmExit:
            inside.set()
            deadline = 500
            while not processor.kicks and deadline:
                threading.Event().wait(0.01)
                deadline -= 1
            assert not changed.is_set()
            processor.kicks = 0
            return VmExit(ExitReason.EXTERNAL_INTERRUPT)

        thread = threading.Thread(target=change)
        thread.start()
        guest.run(busy, HLT)
        thread.join(5)
        assert changed.is_set()
        assert guest.processor.memory.backed(0x20_0000, PAGE)


class TestVcpu:
    def test_only_vcpu_0_and_only_once(self, guest: Guest) -> None:
        assert refusal(guest.vm.create_vcpu, 0) == EEXIST
        with pytest.raises(KvmError, match="SMP is not modelled yet") as caught:
            guest.vm.create_vcpu(1)
        assert caught.value.errno == EINVAL

    def test_a_new_one_is_at_the_reset_vector(self, vm: Vm) -> None:
        vcpu = vm.create_vcpu(0)
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        assert (regs.rip, regs.rflags, regs.rdx, regs.rax) == (0xFFF0, 2, 0x600, 0)
        assert (sregs.cs.selector, sregs.cs.base, sregs.cs.type) == (0xF000, 0xFFFF_0000, 0xB)
        assert (sregs.ds.type, sregs.ds.limit, sregs.ds.present) == (3, 0xFFFF, 1)
        assert (sregs.tr.type, sregs.ldt.type, sregs.tr.s, sregs.ldt.s) == (0xB, 2, 0, 0)
        assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x6000_0010, 0, 0)
        assert (sregs.gdt.limit, sregs.idt.limit) == (0xFFFF, 0xFFFF)
        assert sregs.apic_base == 0xFEE0_0900
        debug = vcpu.get_debugregs()
        assert (debug.dr6, debug.dr7) == (0xFFFF_0FF0, 0x400)
        assert vcpu.get_mp_state() == uapi.KVM_MP_STATE_RUNNABLE
        assert vcpu.get_xcrs().xcrs[0].value == 1

    def test_shared_is_the_buffer_under_kvm_run(self, guest: Guest) -> None:
        assert len(guest.vcpu.shared) == 12288
        guest.kvm_run.immediate_exit = 1
        assert guest.vcpu.shared[1] == 1

    def test_regs_round_trip(self, guest: Guest) -> None:
        names = [name for name, _ in uapi.KvmRegs._fields_]
        regs = uapi.KvmRegs(**{name: 0x1111 * at for at, name in enumerate(names)})
        regs.rflags = 0x202
        guest.vcpu.set_regs(regs)
        assert bytes(guest.vcpu.get_regs()) == bytes(regs)
        assert guest.gpr[:8] == [regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp,
                                 regs.rsi, regs.rdi]  # fmt: skip

    def test_sregs_round_trip_in_long_mode(self, guest: Guest) -> None:
        sregs = guest.vcpu.get_sregs()
        sregs.cr0 = Cr0.PE | Cr0.PG | Cr0.ET | Cr0.WP
        sregs.cr3, sregs.cr4 = 0x3000, Cr4.PAE | Cr4.PGE
        sregs.efer = Efer.LME | Efer.LMA | Efer.SCE
        sregs.cs = uapi.KvmSegment(0, 0xFFFF_FFFF, 8, 0xB, 1, 0, 0, 1, 1, 1)
        sregs.cr8 = 7
        sregs.gdt = uapi.KvmDtable(0x1234_5678_9000, 0x7F)
        sregs.interrupt_bitmap[1] = 1 << 5
        guest.vcpu.set_sregs(sregs)
        assert bytes(guest.vcpu.get_sregs()) == bytes(sregs)
        assert guest.inner.arch.interrupt.nr == 69
        assert guest.field(F.GUEST_IA32_EFER) == sregs.efer

    @pytest.mark.parametrize(
        "change",
        [
            {"efer": Efer.LMA},
            {"cr0": Cr0.PG | Cr0.PE, "efer": Efer.LME | Efer.LMA},
            {"cr0": Cr0.PG},
            {"cr4": Cr4.VMXE},
            {"efer": 2},
            {"cr8": 16},
            {"apic_base": 1 << 10},
        ],
        ids=str,
    )
    def test_sregs_that_contradict_each_other_are_einval(
        self, guest: Guest, change: dict[str, int]
    ) -> None:
        sregs = guest.vcpu.get_sregs()
        for name, value in change.items():
            setattr(sregs, name, value)
        assert refusal(guest.vcpu.set_sregs, sregs) == EINVAL

    def test_a_segment_that_is_not_present_is_unusable(self, guest: Guest) -> None:
        sregs = guest.vcpu.get_sregs()
        sregs.fs.present = 0
        guest.vcpu.set_sregs(sregs)
        assert guest.field(F.GUEST_FS_AR_BYTES) == 0x1_0000
        assert guest.vcpu.get_sregs().fs.unusable == 1

    def test_the_fpu_is_as_fninit_leaves_it(self, guest: Guest) -> None:
        fpu = guest.vcpu.get_fpu()
        assert (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr) == (0x37F, 0, 0, 0x1F80)

    def test_fpu_round_trip(self, guest: Guest) -> None:
        fpu = uapi.KvmFpu(fcw=0x37F, fsw=1, ftwx=0xFF, last_ip=5, last_dp=6, mxcsr=0x1F80)
        fpu.fpr[7][9], fpu.xmm[15][15] = 0xAA, 0xBB
        guest.vcpu.set_fpu(fpu)
        assert bytes(guest.vcpu.get_fpu()) == bytes(fpu)
        assert guest.processor.fx[24:28] == (0x1F80).to_bytes(4, "little")
        assert (guest.processor.fx[32 + 7 * 16 + 9], guest.processor.fx[415]) == (0xAA, 0xBB)

    def test_debugregs_round_trip(self, guest: Guest) -> None:
        debug = uapi.KvmDebugregs(dr6=0xFFFF_0FF1, dr7=0x401)
        debug.db[2] = 0x1234
        guest.vcpu.set_debugregs(debug)
        assert bytes(guest.vcpu.get_debugregs()) == bytes(debug)
        debug.dr7 = 1 << 32
        assert refusal(guest.vcpu.set_debugregs, debug) == EINVAL

    def test_events_round_trip(self, guest: Guest) -> None:
        events = guest.vcpu.get_vcpu_events()
        assert events.flags == 0xD
        events.exception.injected, events.exception.nr = 1, 13
        events.exception.has_error_code, events.exception.error_code = 1, 0x10
        events.interrupt.shadow = uapi.KVM_X86_SHADOW_INT_STI
        guest.vcpu.set_vcpu_events(events)
        assert guest.field(F.GUEST_INTERRUPTIBILITY_INFO) == 1
        assert bytes(guest.vcpu.get_vcpu_events()) == bytes(events)
        guest.run(HLT)
        assert guest.processor.injected == [0x8000_030D]

    @pytest.mark.parametrize(
        "change", [("flags", 0x80), ("nr", 2), ("nr", 40), ("smm", 1)], ids=str
    )
    def test_events_that_cannot_be(self, guest: Guest, change: tuple[str, int]) -> None:
        events = guest.vcpu.get_vcpu_events()
        name, value = change
        if name == "nr":
            events.exception.injected, events.exception.nr = 1, value
        elif name == "smm":
            events.smi.smm = value
        else:
            events.flags = value
        assert refusal(guest.vcpu.set_vcpu_events, events) == EINVAL

    def test_mp_state_without_the_irqchip_is_runnable(
        self, guest: Guest, irq_guest: Guest
    ) -> None:
        assert refusal(guest.vcpu.set_mp_state, uapi.KVM_MP_STATE_HALTED) == EINVAL
        irq_guest.vcpu.set_mp_state(uapi.KVM_MP_STATE_HALTED)
        assert irq_guest.vcpu.get_mp_state() == uapi.KVM_MP_STATE_HALTED
        assert refusal(irq_guest.vcpu.set_mp_state, uapi.KVM_MP_STATE_SIPI_RECEIVED) == EINVAL

    def test_a_waiting_vcpu_says_try_again_after_a_kick(self, irq_guest: Guest) -> None:
        irq_guest.vcpu.set_mp_state(uapi.KVM_MP_STATE_UNINITIALIZED)
        threading.Timer(0.05, irq_guest.vcpu.kick).start()
        with pytest.raises(KvmError):
            irq_guest.vcpu.run()
        assert irq_guest.log == []

    def test_xcr0(self, guest: Guest) -> None:
        xcrs = guest.vcpu.get_xcrs()
        xcrs.xcrs[0].value = 3
        guest.vcpu.set_xcrs(xcrs)
        assert guest.processor.xcr0 == 3
        xcrs.xcrs[0].value = 2
        assert refusal(guest.vcpu.set_xcrs, xcrs) == EINVAL

    def test_translate(self, guest: Guest) -> None:
        found = guest.vcpu.translate(0x1234)
        assert (found.valid, found.physical_address) == (1, 0x1234)
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr3 = 0x8000_0011, 0x4000
        guest.vcpu.set_sregs(sregs)
        assert guest.vcpu.translate(0x1234).valid == 0

    def test_two_vms_do_not_share_anything(self) -> None:
        first, second = Guest(), Guest()
        first.gpr[0] = 7
        first.run(HLT)
        assert second.gpr[0] == 0
        assert second.vcpu.stat.userspace_exits == {}
        assert second.log == []

    def test_registers_can_be_read_from_another_thread(self, guest: Guest) -> None:
        guest.set_rflags(Rflags.IF)
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.append(guest.vcpu.get_regs().rflags))
        thread.start()
        thread.join(5)
        assert got == [0x202]


@given(st.binary(min_size=312, max_size=312))
def test_any_bytes_as_sregs_are_taken_or_refused(data: bytes) -> None:
    guest = Guest()
    sregs = uapi.KvmSregs.from_buffer_copy(data)
    refused = 0
    try:
        guest.vcpu.set_sregs(sregs)
    except KvmError as error:
        refused = error.errno
    assert refused == EINVAL or guest.vcpu.get_sregs().cr3 == sregs.cr3
    guest.vm.close()
