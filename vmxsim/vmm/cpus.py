"""vCPU threads: born asleep, woken by vm_start, parked and kicked from outside.

QEMU: cpus.c (4.1; now softmmu/cpus.c and accel/kvm/kvm-accel-ops.c). Left out: TCG, SIGBUS,
hot-unplug other than at the end, the global virtual clock of vm_start (the machine's Clock runs
with the guest anyway).

    vm_start ------------> resume_all_vcpus -- broadcast on halt_cond --.
                                                                        v
    qemu_kvm_cpu_thread_fn: kvm_init_vcpu, then for ever  [ qemu_kvm_wait_io_event, kvm_cpu_exec ]
                                                                        ^
    qemu_cpu_kick -------------- exit_request, halt_cond, Vcpu.kick ----'
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmxsim.vmm.kvm_all import kvm_cpu_exec, kvm_destroy_vcpu, kvm_init_vcpu
from vmxsim.vmm.runstate import CPUState, Stop, SystemState, ending

JOIN_S = 10.0
"""How long a vCPU's thread may take to end before that is an error."""


def qemu_init_vcpu(cpu: CPUState) -> None:
    """Start the vCPU's thread and wait until it has created its vCPU; it does not run yet."""
    system = cpu.system
    with system.bql:
        cpu.halt_cond = threading.Condition(system.bql)
        cpu.stopped = True
        system.cpus.append(cpu)
        name = f"CPU {cpu.index}/KVM"
        cpu.thread = threading.Thread(
            target=qemu_kvm_cpu_thread_fn, args=(cpu,), name=name, daemon=True
        )
        cpu.thread.start()
        system.pause_cond.wait_for(lambda: cpu.created or system.failure is not None)


def qemu_kvm_cpu_thread_fn(cpu: CPUState) -> None:
    """A vCPU's life. Called kvm_vcpu_thread_fn since QEMU 5.2.

    What it raises ends the run, and is raised again by whoever waits for the machine.
    """
    system = cpu.system
    with system.bql:
        try:
            kvm_init_vcpu(cpu)
            cpu.created = True
            system.pause_cond.notify_all()
            while not (cpu.unplug and not cpu_can_run(cpu)):
                if cpu_can_run(cpu):
                    kvm_cpu_exec(cpu)
                qemu_kvm_wait_io_event(cpu)
        except BaseException as error:
            system.failure = error
            system.request_stop(ending(Stop.STOPPED, "a vCPU thread failed"))
        finally:
            cpu.created, cpu.stop, cpu.stopped = False, False, True
            kvm_destroy_vcpu(cpu)
            system.pause_cond.notify_all()


def cpu_can_run(cpu: CPUState) -> bool:
    """Whether the vCPU may enter the guest."""
    return not (cpu.stop or cpu.stopped)


def cpu_thread_is_idle(cpu: CPUState) -> bool:
    """Whether the vCPU's thread has nothing to do but sleep on halt_cond."""
    if cpu.stop or cpu.work or (cpu.stopped and cpu.unplug):
        return False
    if cpu.stopped:
        return True
    return cpu.halted and not cpu.interrupts


def qemu_kvm_wait_io_event(cpu: CPUState) -> None:
    """Sleep on halt_cond while idle, then do what others asked of this thread."""
    while cpu_thread_is_idle(cpu):
        cpu.halt_cond.wait()
    if cpu.interrupts:
        cpu.halted = False
    qemu_wait_io_event_common(cpu)


def qemu_wait_io_event_common(cpu: CPUState) -> None:
    """Stop when asked to; do queued work."""
    if cpu.stop:
        cpu.stop = False
        cpu.stopped = True
        cpu.exit_request = False
        cpu.system.pause_cond.notify_all()
    while cpu.work:
        cpu.work.popleft()()
        cpu.system.pause_cond.notify_all()


def qemu_cpu_kick(cpu: CPUState) -> None:
    """Get a vCPU's thread out of the guest, or out of its sleep. From any thread."""
    with cpu.system.bql:
        cpu.kick()


def run_on_cpu(cpu: CPUState, work: Callable[[], None]) -> None:
    """Have the vCPU's thread do something between two entries, and wait until it is done.

    What it raises is raised here. When the thread has ended there is nobody to do it.
    """
    done: list[BaseException | None] = []

    def recorded() -> None:
        try:
            work()
        except BaseException as error:
            done.append(error)
        else:
            done.append(None)

    system = cpu.system
    with system.bql:
        if cpu.thread is threading.current_thread() or not cpu.created:
            work()
            return
        cpu.work.append(recorded)
        cpu.kick()
        system.pause_cond.wait_for(lambda: done or not cpu.created)
    if done and done[0] is not None:
        raise done[0]


def vm_start(system: SystemState) -> None:
    """Let the guest run: wake every vCPU's thread. QEMU: vm_start in softmmu/cpus.c."""
    with system.bql:
        system.ending = None
        resume_all_vcpus(system)


def resume_all_vcpus(system: SystemState) -> None:
    """Clear stop and stopped everywhere, and broadcast on halt_cond."""
    with system.bql:
        for cpu in system.cpus:
            cpu.stop = False
            cpu.stopped = False
            cpu.halt_cond.notify_all()


def all_vcpus_paused(system: SystemState) -> bool:
    """Whether no vCPU is in the guest, nor will be before vm_start."""
    return all(cpu.stopped for cpu in system.cpus)


def pause_all_vcpus(system: SystemState) -> None:
    """Get every vCPU out of the guest and keep it out; returns when the last one is.

    A vCPU that stops itself (a device's write handler pausing the machine) is stopped after its
    instruction.
    """
    with system.bql:
        for cpu in system.cpus:
            if not cpu.stopped:
                cpu.stop = True
                cpu.kick()
        here = threading.current_thread()
        if all(cpu.thread is not here for cpu in system.cpus):
            system.pause_cond.wait_for(lambda: all_vcpus_paused(system))


def vm_stop(system: SystemState) -> None:
    """Pause. QEMU: vm_stop, without the run states."""
    pause_all_vcpus(system)


def qemu_destroy_vcpus(system: SystemState) -> None:
    """End every vCPU's thread, each closing its vCPU."""
    with system.bql:
        cpus, system.cpus = system.cpus, []
        for cpu in cpus:
            cpu.unplug = cpu.stop = True
            cpu.kick()
    for cpu in cpus:
        if cpu.thread is not None and cpu.thread is not threading.current_thread():
            cpu.thread.join(JOIN_S)
