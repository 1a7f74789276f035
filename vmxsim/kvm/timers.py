"""How the clock's alarms reach the vCPU: as a budget of guest blocks, or as a kick from a thread.

No Linux file: there the host's timer interrupt does it. With the virtual clock the engine is told
how many blocks may run until the next alarm, so a run repeats itself exactly. With the host's clock
a thread waits for the deadline and kicks the vCPU. Callbacks always run in the vCPU's thread.
"""

from __future__ import annotations

import threading

from vmxsim.clock import BLOCK_NS, NS_PER_S, Clock
from vmxsim.kvm.kvm_host import KvmVcpu, KvmVm
from vmxsim.kvm.kvm_main import kvm_vcpu_kick
from vmxsim.kvm.requests import KVM_REQ_PENDING_TIMER, kvm_clear_request, kvm_make_request

LATE_S = 0.02
"""How often a vCPU that stays in userspace is reminded of an alarm that is due."""

MAX_BUDGET = 1 << 31
"""Blocks; a longer wait is cut into several."""


def alarms_changed(vm: KvmVm) -> None:
    """The next deadline is another one: have the vCPU look before it goes on."""
    vcpu = vm.vcpu
    if vcpu is not None:
        kvm_make_request(KVM_REQ_PENDING_TIMER, vcpu)
        kvm_vcpu_kick(vcpu)


def run_timers(vcpu: KvmVcpu) -> None:
    """Call the alarms that are due, and note when the next one is."""
    clock = vcpu.clock
    clock.run_due()
    kvm_clear_request(KVM_REQ_PENDING_TIMER, vcpu)
    vcpu.deadline = clock.next_deadline()
    vcpu.timer_armed = clock.virtual and vcpu.deadline is not None
    if not vcpu.timer_armed:
        vcpu.processor.budget = 0


def arm_budget(vcpu: KvmVcpu) -> None:
    """Let the guest run no further than to the next alarm, by the virtual clock."""
    assert vcpu.deadline is not None
    left = (vcpu.deadline - vcpu.clock.now()) // BLOCK_NS + 1
    vcpu.processor.budget = min(max(left, 1), MAX_BUDGET)


class AlarmThread:
    """Waits for the host clock's next deadline, and kicks the vCPU then."""

    def __init__(self, vm: KvmVm) -> None:
        self.vm = vm
        self.condition = threading.Condition()
        self.closed = False
        self.thread: threading.Thread | None = None

    def changed(self) -> None:
        """The next deadline is another one."""
        with self.condition:
            if self.thread is None and not self.closed:
                self.thread = threading.Thread(
                    target=self.run, name="vmxsim-alarms", daemon=True
                )
                self.thread.start()
            self.condition.notify()

    def close(self) -> None:
        """End the thread."""
        with self.condition:
            self.closed = True
            self.condition.notify()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def run(self) -> None:
        """The thread."""
        clock = self.vm.clock
        with self.condition:
            while not self.closed:
                deadline = clock.next_deadline()
                left = None if deadline is None else (deadline - clock.now()) / NS_PER_S
                if left is None or left > 0:
                    self.condition.wait(left)
                    continue
                alarms_changed(self.vm)
                self.condition.wait(LATE_S)


def watch_alarms(vm: KvmVm, clock: Clock) -> AlarmThread | None:
    """Connect a VM to its clock; the thread to close later, if one is needed."""
    if clock.virtual:
        clock.on_alarm_change = lambda: alarms_changed(vm)
        return None
    alarms = AlarmThread(vm)
    clock.on_alarm_change = alarms.changed
    return alarms
