"""vCPU threads: work done between entries, failures, and the end of a thread."""

from __future__ import annotations

import threading

import pytest

from vmxsim.clock import VirtualClock
from vmxsim.errors import ConfigError
from vmxsim.probes import Instrument, Probes
from vmxsim.vmm.config import Config
from vmxsim.vmm.cpus import (
    all_vcpus_paused,
    pause_all_vcpus,
    qemu_destroy_vcpus,
    qemu_init_vcpu,
    run_on_cpu,
    vm_start,
)
from vmxsim.vmm.kvm_all import kvm_init
from vmxsim.vmm.machine import Machine
from vmxsim.vmm.runstate import CPUState, Stop, SystemState, debug_exit, ending

from .fake_kvm import FakeKvm, hlt, in_, mmio, out


@pytest.fixture
def system() -> SystemState:
    return SystemState(VirtualClock(), Probes())


def plug(system: SystemState, kvm: FakeKvm) -> CPUState:
    system.kvm = kvm_init(kvm, irqchip=False)
    cpu = CPUState(system)
    qemu_init_vcpu(cpu)
    return cpu


def test_a_thread_lives_from_init_to_destroy(system: SystemState) -> None:
    kvm = FakeKvm()
    cpu = plug(system, kvm)
    assert cpu.created
    assert cpu.stopped
    assert cpu.thread is not None
    assert cpu.thread.is_alive()
    qemu_destroy_vcpus(system)
    assert not cpu.thread.is_alive()
    assert kvm.calls[-1] == "close vcpu"
    assert (system.cpus, system.failure) == ([], None)


def test_a_running_thread_can_be_destroyed(system: SystemState) -> None:
    kvm = FakeKvm()
    cpu = plug(system, kvm)
    vm_start(system)
    assert kvm.vcpu.asleep.wait(5)
    qemu_destroy_vcpus(system)
    assert cpu.thread is not None
    assert not cpu.thread.is_alive()


def test_without_a_vm_there_is_no_vcpu(system: SystemState) -> None:
    qemu_init_vcpu(CPUState(system))
    assert isinstance(system.failure, ConfigError)
    qemu_destroy_vcpus(system)


def test_work_is_done_in_the_vcpus_thread(system: SystemState) -> None:
    kvm = FakeKvm()
    cpu = plug(system, kvm)
    names: list[str] = []
    for start in (False, True):
        if start:
            vm_start(system)
            assert kvm.vcpu.asleep.wait(5)
        run_on_cpu(cpu, lambda: names.append(threading.current_thread().name))
    qemu_destroy_vcpus(system)
    run_on_cpu(cpu, lambda: names.append("here"))
    assert names == ["CPU 0/KVM", "CPU 0/KVM", "here"]


def test_what_work_raises_comes_back(system: SystemState) -> None:
    cpu = plug(system, FakeKvm())

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_on_cpu(cpu, fail)
    assert system.failure is None
    qemu_destroy_vcpus(system)


def test_pausing_twice_and_starting_twice_is_the_same_as_once(system: SystemState) -> None:
    kvm = FakeKvm()
    plug(system, kvm)
    for _ in range(2):
        for _ in range(2):
            vm_start(system)
        assert kvm.vcpu.asleep.wait(5)
        for _ in range(2):
            pause_all_vcpus(system)
        assert all_vcpus_paused(system)
    qemu_destroy_vcpus(system)


def test_the_first_reason_stands_but_the_guests_own_goes_first(system: SystemState) -> None:
    for reason, kept in (
        (ending(Stop.TIMEOUT), Stop.TIMEOUT),
        (ending(Stop.MAX_EXITS), Stop.TIMEOUT),
        (debug_exit(3), Stop.DEBUG_EXIT),
        (ending(Stop.HALTED), Stop.DEBUG_EXIT),
    ):
        system.request_stop(reason)
        assert system.ending is not None
        assert system.ending.stop is kept


@pytest.mark.parametrize(
    ("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 1), (0xFFFF_FFFF, 255)]
)
def test_status_of_a_debug_exit(value: int, status: int) -> None:
    assert debug_exit(value).status == status


def test_an_out_that_ends_the_run_is_completed_before_the_thread_parks() -> None:
    kvm = FakeKvm(out(0xF4, b"\x01"), hlt())
    with Machine(Config(memory=1 << 20), kvm=kvm) as machine:
        machine.load(b"\xf4")
        machine.run()
        assert kvm.vcpu.runs == 2
        assert kvm.vcpu.kvm_run.immediate_exit == 0


def test_unclaimed_accesses_are_probed() -> None:
    class Log(Instrument):
        def __init__(self) -> None:
            self.seen: list[tuple[object, ...]] = []

        def unclaimed(self, *record: object) -> None:  # type: ignore[override]
            self.seen.append(record)

    log, probes = Log(), Probes()
    probes.add(log)
    script = (out(0x1111, b"\x34\x12", 2), in_(0x2222), mmio(0xD000_0000, b"\x07"), hlt())
    kvm = FakeKvm(*script)
    with Machine(Config(memory=1 << 20), kvm=kvm, probes=probes) as machine:
        machine.load(b"\xf4")
        machine.run()
    assert log.seen == [
        (0, 0, True, True, 0x1111, 2, 0x1234),
        (0, 0, True, False, 0x2222, 1, 0xFF),
        (0, 0, False, True, 0xD000_0000, 1, 7),
    ]


def test_string_io_moves_every_item() -> None:
    script = (out(0x3F8, b"many"), in_(0x1234, 2, 3), out(0x1234, b"abcd", 2), hlt())
    kvm = FakeKvm(*script)
    with Machine(Config(memory=1 << 20), kvm=kvm) as machine:
        machine.load(b"\xf4")
        machine.run()
        assert machine.serial_output == b"many"
    assert kvm.vcpu.answers == [b"\xff" * 6]
