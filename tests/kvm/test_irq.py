"""Interrupts by the in-kernel chips, HLT that sleeps, and time that passes meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from errno import EEXIST, EINTR, EINVAL, ENOENT, ENXIO

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import HostClock, VirtualClock
from vmxsim.errors import KvmError
from vmxsim.kvm import uapi
from vmxsim.probes import Probes
from vmxsim.vmx.records import VmExit

from .conftest import CPUID, HLT, KICKED, Everything, Guest, simple

VALID = 1 << 31
TRIPLE_FAULT = VmExit(ExitReason.TRIPLE_FAULT)
WINDOW = simple(ExitReason.INTERRUPT_WINDOW)


def program_pic(guest: Guest, masks: int = 0) -> None:
    pic = guest.inner.vm.pic
    assert pic is not None
    for chip, base, mask in ((pic.master, 0x20, masks & 0xFF), (pic.slave, 0x28, masks >> 8)):
        for offset, value in ((0, 0x11), (1, base), (1, 4), (1, 1), (1, mask)):
            chip.write(offset, 1, value)


def program_pit(guest: Guest, count: int) -> None:
    """Counter 0, mode 2."""
    pit = guest.inner.vm.pit
    assert pit is not None
    pit.write(3, 1, 0x34)
    pit.write(0, 1, count & 0xFF)
    pit.write(0, 1, count >> 8)


def eoi(then: VmExit) -> Callable[[object], VmExit]:
    """The guest ends its interrupt, then exits."""

    def step(processor: object) -> VmExit:
        processor.ports.fast_out[0x20](0x20, 1, 0x20)  # type: ignore[attr-defined]
        return then

    return step


@pytest.fixture
def ready(irq_guest: Guest) -> Guest:
    """Interrupts on, the PIC programmed."""
    program_pic(irq_guest)
    irq_guest.set_rflags(Rflags.IF)
    return irq_guest


class TestMaking:
    def test_twice_is_eexist(self, irq_guest: Guest) -> None:
        with pytest.raises(KvmError) as caught:
            irq_guest.vm.create_irqchip()
        assert caught.value.errno == EEXIST
        with pytest.raises(KvmError) as caught:
            irq_guest.vm.create_pit2()
        assert caught.value.errno == EINVAL

    def test_after_the_vcpu_is_einval(self, guest: Guest) -> None:
        with pytest.raises(KvmError, match="before the vCPUs") as caught:
            guest.vm.create_irqchip()
        assert caught.value.errno == EINVAL

    def test_the_pit_alone(self, guest: Guest) -> None:
        vm = type(guest.kvm)(processor=lambda _: guest.processor).create_vm()
        with pytest.raises(KvmError, match="needs the irqchip") as caught:
            vm.create_pit2()
        assert caught.value.errno == ENOENT
        vm.create_irqchip(pit=False)
        assert vm._vm.pit is None
        vm.create_pit2()
        with pytest.raises(KvmError) as caught:
            vm.create_pit2()
        assert caught.value.errno == EEXIST
        vm.close()

    def test_lines_need_the_chip_and_a_number(self, guest: Guest, irq_guest: Guest) -> None:
        with pytest.raises(KvmError) as caught:
            guest.vm.irq_line(1, 1)
        assert caught.value.errno == ENXIO
        with pytest.raises(KvmError) as caught:
            irq_guest.vm.irq_line(16, 1)
        assert caught.value.errno == EINVAL

    def test_interrupt_is_for_userspace_chips(self, guest: Guest, irq_guest: Guest) -> None:
        with pytest.raises(KvmError, match="use irq_line") as caught:
            irq_guest.vcpu.interrupt(0x20)
        assert caught.value.errno == ENXIO
        with pytest.raises(KvmError) as caught:
            guest.vcpu.interrupt(256)
        assert caught.value.errno == EINVAL


class TestDelivery:
    def test_a_line_becomes_a_vector(self, ready: Guest) -> None:
        assert ready.vm.irq_line(4, 1) == 1
        ready.run(TRIPLE_FAULT)
        assert ready.processor.injected == [VALID | 0x24]

    def test_a_masked_line_does_not(self, ready: Guest) -> None:
        program_pic(ready, masks=0x10)
        assert ready.vm.irq_line(4, 1) == -1
        ready.run(TRIPLE_FAULT)
        assert ready.processor.injected == [0]

    def test_with_interrupts_off_it_waits_for_the_window(self, ready: Guest) -> None:
        ready.set_rflags(0)
        ready.vm.irq_line(9, 1)

        def sti(processor: object) -> VmExit:
            assert ready.field(F.CPU_BASED_VM_EXEC_CONTROL) & 4
            ready.set_rflags(Rflags.IF)
            return WINDOW

        ready.run(CPUID, sti, TRIPLE_FAULT)
        assert ready.processor.injected == [0, 0, VALID | 0x29]
        assert not ready.field(F.CPU_BASED_VM_EXEC_CONTROL) & 4

    def test_a_lower_line_waits_for_the_end_of_the_higher(self, ready: Guest) -> None:
        ready.vm.irq_line(1, 1)
        ready.vm.irq_line(4, 1)
        ready.run(CPUID, eoi(CPUID), TRIPLE_FAULT)
        assert ready.processor.injected == [VALID | 0x21, 0, VALID | 0x24]

    def test_a_line_raised_from_another_thread_kicks(self, ready: Guest) -> None:
        def raised(processor: object) -> VmExit:
            thread = threading.Thread(target=ready.vm.irq_line, args=(3, 1))
            thread.start()
            thread.join()
            assert ready.processor.kicks == 1
            ready.processor.kicks = 0
            return KICKED

        ready.run(raised, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x23]

    def test_userspace_is_always_ready_with_an_irqchip(self, ready: Guest) -> None:
        ready.set_rflags(0)
        ready.run(TRIPLE_FAULT)
        assert ready.kvm_run.ready_for_interrupt_injection == 1


class TestHalt:
    def test_an_interrupt_that_is_pending_ends_it_at_once(self, ready: Guest) -> None:
        def just_too_late(processor: object) -> VmExit:
            ready.vm.irq_line(4, 1)
            return HLT

        ready.run(just_too_late, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x24]

    def test_another_thread_ends_it(self, ready: Guest) -> None:
        timer = threading.Timer(0.05, ready.vm.irq_line, (5, 1))
        timer.start()
        ready.run(HLT, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x25]
        assert ready.vcpu.stat.halt_exits == 1
        assert ready.vcpu.stat.halt_wakeup >= 1

    def test_a_kick_ends_the_run_but_not_the_halt(self, ready: Guest) -> None:
        threading.Timer(0.05, ready.vcpu.kick).start()
        ready.processor.script = [HLT]
        with pytest.raises(KvmError) as caught:
            ready.vcpu.run()
        assert caught.value.errno == EINTR
        assert ready.vcpu.get_mp_state() == uapi.KVM_MP_STATE_HALTED
        ready.vm.irq_line(5, 1)
        ready.run(TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x25]

    def test_sti_before_hlt_does_not_block_the_wake_up(self, ready: Guest) -> None:
        ready.processor.vmwrite(F.GUEST_INTERRUPTIBILITY_INFO, 1)
        threading.Timer(0.05, ready.vm.irq_line, (5, 1)).start()
        ready.run(HLT, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x25]

    def test_with_interrupts_off_it_can_be_reported(self, irq_guest: Guest) -> None:
        assert irq_guest.run(HLT) == uapi.KvmExitHlt()
        assert irq_guest.kvm_run.if_flag == 0

    def test_with_interrupts_off_it_sleeps_for_ever_as_in_kvm(self, irq_guest: Guest) -> None:
        irq_guest.vm.report_dead_halt = False
        threading.Timer(0.05, irq_guest.vcpu.kick).start()
        irq_guest.processor.script = [HLT]
        with pytest.raises(KvmError) as caught:
            irq_guest.vcpu.run()
        assert caught.value.errno == EINTR


class TestVirtualTime:
    def test_hlt_jumps_to_the_pits_next_tick(self, ready: Guest) -> None:
        program_pit(ready, 11932)  # 10 ms
        ready.run(HLT, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x20]
        assert 9_999_000 < ready.clock.now() < 10_010_000

    def test_ten_ticks_come_every_ten_milliseconds(self) -> None:
        probes, seen = Probes(), Everything()
        probes.add(seen)
        guest = Guest(irqchip=True, probes=probes)
        program_pic(guest)
        guest.set_rflags(Rflags.IF)
        program_pit(guest, 11932)
        guest.run(HLT, *[eoi(HLT)] * 9, TRIPLE_FAULT)
        times = [now for _, now, vector in seen.of("inj_virq")]
        assert len(times) == 10
        assert all(9_990_000 < b - a < 10_010_000 for a, b in zip(times, times[1:], strict=False))
        guest.vm.close()

    def test_a_running_guest_gets_a_budget_of_blocks(self, ready: Guest) -> None:
        program_pit(ready, 11932)

        def busy(processor: object) -> VmExit:
            assert 4_990_000 < ready.processor.budget <= 5_001_000
            ready.processor.blocks += ready.processor.budget
            return KICKED

        ready.run(busy, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x20]

    def test_the_budget_goes_when_the_last_alarm_goes(self, ready: Guest) -> None:
        alarm = ready.clock.call_at(1_000_000, lambda: None)
        ready.run(CPUID, TRIPLE_FAULT)
        assert ready.processor.budget > 0
        alarm.cancel()
        ready.run(TRIPLE_FAULT)
        assert ready.processor.budget == 0

    def test_exits_alone_make_an_alarm_due(self, guest: Guest) -> None:
        rang: list[int] = []
        guest.clock.call_at(guest.clock.now() + 3_500, lambda: rang.append(guest.clock.now()))
        guest.run(*[CPUID] * 6, HLT)
        assert len(rang) == 1

    def test_an_alarm_of_a_device_in_userspace_may_raise_a_line(self, ready: Guest) -> None:
        ready.clock.call_at(5_000_000, lambda: ready.vm.irq_line(8, 1))
        ready.run(HLT, TRIPLE_FAULT)
        assert ready.processor.injected == [0, VALID | 0x28]


@pytest.fixture
def host_guest() -> Iterator[Guest]:
    """A guest in real time."""
    guest = Guest(irqchip=True, clock=HostClock())
    guest.vm.report_dead_halt = True
    program_pic(guest)
    guest.set_rflags(Rflags.IF)
    yield guest
    guest.vm.close()


class TestHostTime:
    def test_hlt_waits_for_the_tick(self, host_guest: Guest) -> None:
        start = host_guest.clock.now()
        program_pit(host_guest, 23864)  # 20 ms
        host_guest.run(HLT, TRIPLE_FAULT)
        assert host_guest.clock.now() - start >= 19_000_000
        assert host_guest.processor.injected[-1] == VALID | 0x20

    def test_a_running_guest_is_kicked_at_the_deadline(self, host_guest: Guest) -> None:
        kicked = threading.Event()
        host_guest.processor.kick = kicked.set
        program_pit(host_guest, 23864)

        def busy(processor: object) -> VmExit:
            assert kicked.wait(5)
            return KICKED

        host_guest.run(busy, TRIPLE_FAULT)
        assert host_guest.processor.injected == [0, VALID | 0x20]

    def test_closing_ends_the_alarm_thread(self, host_guest: Guest) -> None:
        program_pit(host_guest, 23864)
        names = [thread.name for thread in threading.enumerate()]
        assert "vmxsim-alarms" in names
        host_guest.vm.close()
        names = [thread.name for thread in threading.enumerate()]
        assert "vmxsim-alarms" not in names


def test_the_same_script_gives_the_same_events_twice() -> None:
    def once() -> list[tuple[object, ...]]:
        probes, seen = Probes(), Everything()
        probes.add(seen)
        guest = Guest(irqchip=True, clock=VirtualClock(), probes=probes)
        program_pic(guest)
        guest.set_rflags(Rflags.IF)
        program_pit(guest, 1193)
        guest.run(CPUID, HLT, eoi(CPUID), CPUID, HLT, eoi(HLT), TRIPLE_FAULT)
        guest.vm.close()
        # These two tell host time, the one thing that may differ.
        return [event for event in seen.events if event[0] not in ("handled", "fast_pio")]

    assert once() == once()
