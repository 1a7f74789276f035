"""The machine over a KVM that replays exits: how runs end, and who can stop and start them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vmxsim.errors import ConfigError, InputError, KvmError, PortConflict
from vmxsim.kvm import uapi
from vmxsim.vmm.config import Config, Mode
from vmxsim.vmm.devices.base import Device
from vmxsim.vmm.machine import Machine
from vmxsim.vmm.memory import UnclaimedAccess
from vmxsim.vmm.runstate import Stop

from .fake_kvm import Exit, FakeKvm, hlt, in_, mmio, out, plain, window

GUEST = bytes.fromhex("f4")


def started(*script: Exit, **options: object) -> tuple[Machine, FakeKvm]:
    kvm = FakeKvm(*script)
    machine = Machine(Config(**{"memory": 1 << 20, **options}), kvm=kvm)  # type: ignore[arg-type]
    machine.load(GUEST)
    return machine, kvm


def internal_error(vcpu: object) -> None:
    run = vcpu.kvm_run  # type: ignore[attr-defined]
    run.exit_reason = uapi.KVM_EXIT_INTERNAL_ERROR
    failure = run.emulation_failure
    failure.suberror, failure.ndata = uapi.KVM_INTERNAL_ERROR_EMULATION, 4
    failure.flags, failure.insn_size = 1, 2
    failure.insn_bytes[0:2] = [0x0F, 0xFF]


def fail_entry(vcpu: object) -> None:
    run = vcpu.kvm_run  # type: ignore[attr-defined]
    run.exit_reason = uapi.KVM_EXIT_FAIL_ENTRY
    run.fail_entry.hardware_entry_failure_reason = 0x8000_0021


def system_event(kind: int) -> Exit:
    def play(vcpu: object) -> None:
        run = vcpu.kvm_run  # type: ignore[attr-defined]
        run.exit_reason = uapi.KVM_EXIT_SYSTEM_EVENT
        run.system_event.type = kind

    return play


@pytest.mark.parametrize(
    ("last", "stop", "status", "text"),
    [
        (hlt(), Stop.HALTED, 0, "halted with interrupts off"),
        (hlt(interrupts=True), Stop.IDLE, 124, "nothing can wake it"),
        (out(0xF4, b"\x21"), Stop.DEBUG_EXIT, 0x43, "value 0x21"),
        (out(0xF4, b"\x21\x00\x00\x00", 4), Stop.DEBUG_EXIT, 0x43, "value 0x21"),
        (out(0xF4, b"\x00"), Stop.DEBUG_EXIT, 1, "value 0x0"),
        (out(0xF5, b"\xff\x01", 2), Stop.DEBUG_EXIT, 0xFF, "value 0x1"),
        (out(0x64, b"\xfe"), Stop.RESET, 0, "asked for a reset"),
        (out(0xCF9, b"\x06"), Stop.RESET, 0, "asked for a reset"),
        (out(0x92, b"\x01"), Stop.RESET, 0, "asked for a reset"),
        (plain(uapi.KVM_EXIT_SHUTDOWN), Stop.TRIPLE_FAULT, 3, "triple fault"),
        (internal_error, Stop.INTERNAL_ERROR, 2, "emulation failure at RIP 0x7c00: 0f ff"),
        (fail_entry, Stop.FAIL_ENTRY, 2, "hardware reason 0x80000021"),
        (plain(uapi.KVM_EXIT_UNKNOWN), Stop.UNKNOWN_EXIT, 2, "KVM_EXIT_UNKNOWN (0), hardware"),
        (plain(uapi.KVM_EXIT_NMI), Stop.UNKNOWN_EXIT, 2, "KVM_EXIT_NMI (16)"),
        (plain(999), Stop.UNKNOWN_EXIT, 2, "no KVM exit (999)"),
        (system_event(uapi.KVM_SYSTEM_EVENT_RESET), Stop.RESET, 0, "reset"),
        (system_event(uapi.KVM_SYSTEM_EVENT_SHUTDOWN), Stop.SHUTDOWN, 0, "shut down"),
        (system_event(uapi.KVM_SYSTEM_EVENT_CRASH), Stop.UNKNOWN_EXIT, 2, "system event 3"),
    ],
)
def test_how_a_run_ends(last: Exit, stop: Stop, status: int, text: str) -> None:
    machine, _ = started(out(0x3F8, b"a"), last)
    with machine:
        result = machine.run()
    assert (result.stop, result.status) == (stop, status)
    assert text in str(result)
    assert machine.serial_output == b"a"


def test_the_vm_is_built_in_kvms_order_and_taken_down_again() -> None:
    machine, kvm = started(hlt(), irqchip=True)
    machine.run()
    machine.close()
    assert kvm.calls == [
        "create_vm", "create_irqchip", "slot 0 at 0x0: 0x100000", "create_vcpu 0",
        "set_cpuid2 ['supported']", "set_sregs", "set_regs", "close vcpu", "close vm",
    ]  # fmt: skip
    assert kvm.vm.report_dead_halt
    assert kvm.vcpu.threads == {"CPU 0/KVM"}
    assert kvm.vcpu.regs.rip == 0x7C00
    assert bytes(kvm.vm.memory[0x7C00:0x7C01]) == GUEST


def test_a_vcpu_sleeps_until_vm_start() -> None:
    machine, kvm = started()
    with machine:
        time.sleep(0.02)
        assert kvm.vcpu.runs == 0
        machine.start()
        assert kvm.vcpu.asleep.wait(5)


def test_serial_debugcon_and_sinks() -> None:
    heard: list[bytes] = []
    script = (out(0x3F8, b"x"), out(0xE9, b"y"), out(0x402, b"z"), out(0xE9, b"abc"), hlt())
    machine, _ = started(*script, debugcon=heard.append)
    with machine:
        machine.run()
    assert b"".join(heard) == b"yzabc"
    assert (machine.serial_output, machine.debugcon_output) == (b"x", b"")


def test_in_answers_come_from_devices_and_float_high_elsewhere() -> None:
    script = (in_(0xE9), in_(0x3FD), in_(0x1234, 4), in_(0x64), in_(0x92), in_(0x3F8, count=3))
    machine, kvm = started(*script, hlt())
    with machine:
        machine.serial_input(b"hello")
        machine.run()
    assert kvm.vcpu.answers == [b"\xe9", b"\x61", b"\xff" * 4, b"\x18", b"\x02", b"hel"]


def test_a_word_at_the_cmos_index_writes_index_and_data() -> None:
    machine, kvm = started(out(0x70, b"\x40\x5a", 2), out(0x70, b"\x40"), in_(0x71), hlt())
    with machine:
        machine.run()
    assert kvm.vcpu.answers == [b"\x5a"]


class Recorder(Device):
    max_access = 8

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size))
        return 0x1122_3344_5566_7788

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))


def test_mmio_reaches_its_device_and_floats_high_elsewhere() -> None:
    script = (mmio(0xE000_0010, b"\x01\x02"), mmio(0xE000_0008, 8), mmio(0xF000_0000, 4), hlt())
    machine, kvm = started(*script)
    device = Recorder()
    machine.add_mmio_device("recorder", 0xE000_0000, 0x1000, device)
    with machine:
        machine.run()
    assert device.seen == [(0x10, 2, 0x201), (8, 8)]
    assert kvm.vcpu.answers == [bytes.fromhex("8877665544332211"), b"\xff" * 4]


@pytest.mark.parametrize(
    ("touch", "message"),
    [
        (out(0x1234, b"\x05"), "ports: 1-byte write of 0x5 at 0x1234, where no device is"),
        (in_(0x1234, 2), "ports: 2-byte read at 0x1234"),
        (mmio(0xD000_0000, 4), "memory: 4-byte read at 0xd0000000"),
    ],
)
def test_strict_turns_unclaimed_accesses_into_exceptions(touch: Exit, message: str) -> None:
    machine, _ = started(touch, hlt(), strict=True)
    with machine, pytest.raises(UnclaimedAccess, match=message):
        machine.run()


def test_a_broken_ioctl_is_raised_where_the_run_was_asked_for() -> None:
    def broken(vcpu: object) -> None:
        raise KvmError(14, "EFAULT")

    machine, _ = started(broken)
    with machine, pytest.raises(KvmError, match="EFAULT"):
        machine.run()


def test_timeout_then_on_again() -> None:
    machine, kvm = started(timeout_s=0.02)
    with machine:
        for _ in range(2):
            result = machine.run()
            assert (result.stop, result.status) == (Stop.TIMEOUT, 124)
            assert "0.02 s" in str(result)
    assert kvm.vcpu.runs >= 2


def test_max_exits_counts_userspace_exits_of_a_kvm_without_probes() -> None:
    machine, kvm = started(*[out(0x80, b"\x01")] * 9, hlt(), max_exits=4)
    with machine:
        result = machine.run()
        assert (result.stop, result.status) == (Stop.MAX_EXITS, 125)
        assert next(kvm.vcpu.script, None) is not None
        assert machine.run().stop is Stop.MAX_EXITS
        assert machine.run().stop is Stop.HALTED


def test_an_ended_guest_stays_ended_until_reset() -> None:
    machine, kvm = started(out(0x3F8, b"a"), hlt())
    with machine:
        assert machine.run().stop is Stop.HALTED
        runs = kvm.vcpu.runs
        assert machine.run().stop is Stop.HALTED
        assert kvm.vcpu.runs == runs
        machine.write_memory(0x5000, b"dirt")
        machine.reset()
        assert machine.read_memory(0x5000, 4) == bytes(4)
        assert machine.run().stop is Stop.HALTED
    assert machine.serial_output == b"aa"


def test_pause_keeps_the_guest_out_and_resume_lets_it_in() -> None:
    machine, kvm = started()
    with machine:
        machine.start()
        assert kvm.vcpu.asleep.wait(5)
        machine.pause()
        runs = kvm.vcpu.runs
        time.sleep(0.02)
        assert kvm.vcpu.runs == runs
        assert not kvm.vcpu.asleep.is_set()
        machine.resume()
        assert kvm.vcpu.asleep.wait(5)
        assert machine.wait(0.01) is None


def test_a_kick_makes_the_guest_leave_and_come_back() -> None:
    machine, kvm = started()
    with machine:
        machine.start()
        assert kvm.vcpu.asleep.wait(5)
        before = kvm.vcpu.runs
        machine.kick()
        deadline = time.monotonic() + 5
        while kvm.vcpu.runs <= before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert kvm.vcpu.runs > before


def test_shutdown_from_another_thread_ends_the_run() -> None:
    machine, kvm = started()
    with machine:
        timer = threading.Thread(target=lambda: kvm.vcpu.asleep.wait(5) and machine.shutdown())
        timer.start()
        result = machine.run()
        timer.join()
    assert (result.stop, result.status) == (Stop.SHUTDOWN, 0)


def test_reset_of_a_running_guest_lets_it_run_again() -> None:
    machine, kvm = started(out(0x3F8, b"r"))
    with machine:
        machine.start()
        assert kvm.vcpu.asleep.wait(5)
        machine.reset()
        assert kvm.vcpu.asleep.wait(5)
    assert machine.serial_output == b"rr"
    assert kvm.calls.count("create_vm") == 2


def test_registers_of_a_running_guest() -> None:
    machine, kvm = started()
    with machine:
        machine.start()
        assert kvm.vcpu.asleep.wait(5)
        regs, sregs = machine.registers()
        assert regs.rip == 0x7C00
        assert sregs.cs.selector == 0
        assert "EIP=00007c00" in machine.result().registers


def test_an_interrupt_waits_for_the_window() -> None:
    machine, kvm = started(out(0x80, b"\0"), window(), out(0x80, b"\0"), hlt())
    with machine:
        machine.interrupt(0x21)
        machine.run()
    assert [call for call in kvm.calls if call.startswith("interrupt")] == ["interrupt 0x21"]
    assert kvm.vcpu.kvm_run.request_interrupt_window == 0


def test_a_halted_guest_is_woken_by_an_interrupt() -> None:
    machine, kvm = started(hlt(interrupts=True), out(0x3F8, b"w"), hlt())
    with machine:
        machine.start()
        deadline = time.monotonic() + 5
        while not machine.system.cpus[0].halted and time.monotonic() < deadline:
            time.sleep(0.001)
        assert machine.wait(0.02) is None
        machine.interrupt(0x30)
        result = machine.wait(5)
        assert result is not None
        assert result.stop is Stop.HALTED
    assert machine.serial_output == b"w"
    assert "interrupt 0x30" in kvm.calls


def test_an_idle_guest_goes_on_after_an_interrupt() -> None:
    machine, _ = started(hlt(interrupts=True), out(0x3F8, b"w"), hlt())
    with machine:
        assert machine.run().stop is Stop.IDLE
        assert machine.run().stop is Stop.IDLE
        machine.interrupt(0x30)
        assert machine.run().stop is Stop.HALTED
    assert machine.serial_output == b"w"


def test_device_interrupts_go_to_the_irqchip_and_nowhere_without_one() -> None:
    enable = (out(0x3F9, b"\x01"), hlt())
    for irqchip, lines in ((True, ["irq 4 = 1"]), (False, [])):
        machine, kvm = started(*enable, irqchip=irqchip)
        with machine:
            machine.serial_input(b"k")
            machine.run()
            assert [call for call in kvm.calls if call.startswith("irq ")] == lines


def test_serial_input_from_another_thread_reaches_a_running_guest() -> None:
    machine, kvm = started(out(0x3F9, b"\x01"), irqchip=True)
    with machine:
        machine.start()
        assert kvm.vcpu.asleep.wait(5)
        machine.serial_input(b"k")
        assert kvm.calls[-1] == "irq 4 = 1"


def test_two_machines_do_not_know_of_each_other() -> None:
    first, _ = started(out(0x3F8, b"1"), hlt())
    second, _ = started(out(0x3F8, b"2"), out(0xF4, b"\x07"))
    with first, second:
        second.start()
        first.start()
        ends = [machine.wait(5) for machine in (first, second)]
    assert [end and end.stop for end in ends] == [Stop.HALTED, Stop.DEBUG_EXIT]
    assert (first.serial_output, second.serial_output) == (b"1", b"2")


def test_a_device_on_a_taken_port_is_refused_with_both_names() -> None:
    machine = Machine(Config(), kvm=FakeKvm())
    with pytest.raises(PortConflict, match="pump 0x3ff..0x400 overlaps serial port 0x3f8..0x3ff"):
        machine.add_device("pump", 0x3FF, 2, Device())


def test_mmio_over_ram_is_refused() -> None:
    machine, _ = started()
    with machine, pytest.raises(ConfigError, match="pump 0xff000..0x100fff overlaps RAM 0x0..0xf"):
        machine.add_mmio_device("pump", 0xFF000, 0x2000, Device())


@pytest.mark.parametrize(
    "call", [Machine.run, Machine.start, Machine.reset, Machine.registers, Machine.wait]
)
def test_nothing_runs_before_something_is_loaded(call: Callable[[Machine], object]) -> None:
    with Machine(Config(), kvm=FakeKvm()) as machine:
        with pytest.raises(ConfigError, match=r"call load\(\) first"):
            call(machine)
        machine.close()


def test_another_api_version_is_refused() -> None:
    machine = Machine(Config(memory=1 << 20), kvm=FakeKvm(version=11))
    with pytest.raises(ConfigError, match="KVM API version 11; this is for 12"):
        machine.load(GUEST)


def test_an_image_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    machine, kvm = started(hlt())
    with machine:
        with pytest.raises(InputError, match="does not fit into 0x100000 bytes of memory"):
            machine.load(bytes(2 << 20))
        with pytest.raises(InputError, match="nothing is loaded at the entry 0x10"):
            machine.load(machine.image._replace(entry=0x10))  # type: ignore[union-attr]
        assert machine.run().stop is Stop.HALTED
    assert kvm.calls.count("create_vm") == 1


def test_loading_again_starts_afresh() -> None:
    machine, kvm = started(hlt())
    with machine:
        machine.run()
        image = machine.load("\n  90  nop\n  f4  hlt\n")
        assert image.mode is Mode.REAL
        assert machine.run().stop is Stop.HALTED
        assert machine.read_memory(0x7C00, 3) == bytes.fromhex("90 f4 00")
    assert kvm.calls.count("close vm") == 2


def test_interrupts_are_checked() -> None:
    machine, _ = started(hlt(), irqchip=True)
    with machine:
        with pytest.raises(ConfigError, match="it is 0 to 255"):
            machine.interrupt(256)
        with pytest.raises(ConfigError, match="has an irqchip"):
            machine.interrupt(32)
