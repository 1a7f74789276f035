"""What KVM does on every architecture: ioctls under the vCPU's mutex, slots, buses, sleep and wake.

Linux: virt/kvm/kvm_main.c. Left out: preemption notifiers, halt polling, dirty logging, RCU (memory
slots change through a request that the vCPU answers between two entries).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EINVAL
from threading import get_ident
from typing import Concatenate, ParamSpec, TypeVar

from vmxsim.errors import KvmError
from vmxsim.kvm.guest_memory import kvm_mmu_reload
from vmxsim.kvm.kvm_host import Device, IoRange, KvmVcpu, KvmVm, MemorySlot
from vmxsim.kvm.requests import (
    KVM_REQ_MMU_RELOAD,
    KVM_REQ_UNHALT,
    SIGNAL_PENDING,
    kvm_make_request,
    kvm_test_request,
)
from vmxsim.kvm.uapi import KVM_MEM_READONLY, PAGE_SIZE

KVM_USER_MEM_SLOTS = 509
MAX_GPA = 0x7F_FFFF_0000
"""End of guest-physical memory: below MAXPHYADDR (39 bits) and the host's own pages."""
WAIT_S = 0.1
"""Longest sleep in one go, so that Ctrl-C reaches a main thread that runs a halted vCPU."""

P = ParamSpec("P")
R = TypeVar("R")

# -- ioctls ----------------------------------------------------------------------------------------


def kvm_vcpu_ioctl(
    vcpu: KvmVcpu, ioctl: Callable[Concatenate[KvmVcpu, P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run one vCPU ioctl under the vCPU's mutex: one at a time, from whatever thread."""
    with vcpu.mutex:
        return ioctl(vcpu, *args, **kwargs)


def vcpu_load(vcpu: KvmVcpu) -> None:
    """Make the calling thread the one that acts for this vCPU, and its VMCS the current one."""
    vcpu.thread = get_ident()
    if not vcpu.loaded:
        vcpu.x86_ops.vcpu_load(vcpu)


def vcpu_put(vcpu: KvmVcpu) -> None:
    """The thread acts for this vCPU no more. Its VMCS stays current: nobody else wants the CPU."""
    vcpu.thread = 0


# -- memory slots ----------------------------------------------------------------------------------


def kvm_set_memory_region(
    vm: KvmVm, slot: int, gpa: int, memory: memoryview | None, flags: int
) -> None:
    """Create, move, change or (without memory) delete a slot. The errors are KVM's.

    Returns when no vCPU uses the old mapping any more. Left out: KVM_MEM_LOG_DIRTY_PAGES.
    """
    size = len(memory) if memory is not None else 0
    check_memory_region(slot, gpa, size, flags)
    with vm.lock:
        slots = dict(vm.slots)
        old = slots.pop(slot, None)
        if memory is None or size == 0:
            if old is None:
                raise KvmError(EINVAL, f"slot {slot} does not exist")
        else:
            if old is not None:
                check_modification(old, memory, flags)
            for other in slots.values():
                if gpa < other.gpa + other.size and other.gpa < gpa + size:
                    raise KvmError(
                        EEXIST,
                        f"slot {slot} at {gpa:#x}..{gpa + size - 1:#x} overlaps slot {other.slot} "
                        f"at {other.gpa:#x}..{other.gpa + other.size - 1:#x}",
                    )
            slots[slot] = MemorySlot(slot, gpa, size, flags, memory)
        vm.slots = slots
    install_new_memslots(vm)


def check_memory_region(slot: int, gpa: int, size: int, flags: int) -> None:
    """Refuse what __kvm_set_memory_region refuses at first sight."""
    if gpa % PAGE_SIZE or size % PAGE_SIZE:
        raise KvmError(EINVAL, f"slot {slot}: {gpa:#x} and {size:#x} must be multiples of 0x1000")
    if not 0 <= slot < KVM_USER_MEM_SLOTS:
        raise KvmError(EINVAL, f"slot {slot} is not one of 0 to {KVM_USER_MEM_SLOTS - 1}")
    if gpa < 0 or gpa + size > MAX_GPA:
        raise KvmError(EINVAL, f"slot {slot} ends at {gpa + size:#x}, above {MAX_GPA:#x}")
    if flags & ~KVM_MEM_READONLY:
        raise KvmError(EINVAL, f"slot {slot}: flags {flags:#x}: only KVM_MEM_READONLY is modelled")


def check_modification(old: MemorySlot, memory: memoryview, flags: int) -> None:
    """An existing slot may move and change its flags, but not its size, buffer or READONLY."""
    same = old.memory == memory if old.memory.obj is memory.obj else False
    if old.size != len(memory) or not same or (old.flags ^ flags) & KVM_MEM_READONLY:
        raise KvmError(EINVAL, f"slot {old.slot} exists: delete it before giving it other memory")


def install_new_memslots(vm: KvmVm) -> None:
    """Have the vCPU map the new slots, and wait for it. Linux waits for SRCU readers here."""
    vcpu = vm.vcpu
    if vcpu is None:
        return
    wanted = vm.slots
    if vcpu.mutex.acquire(blocking=False):
        try:
            kvm_mmu_reload(vcpu)
        finally:
            vcpu.mutex.release()
        return
    kvm_make_request(KVM_REQ_MMU_RELOAD, vcpu)
    while vcpu.slots is not wanted and vm.slots is wanted and vcpu.running:
        kvm_vcpu_kick(vcpu)
        with vcpu.wait_condition:
            vcpu.wait_condition.wait(WAIT_S)


# -- buses -----------------------------------------------------------------------------------------


def kvm_io_bus_register_dev(
    bus: dict[int, IoRange], base: int, length: int, device: Device
) -> None:
    """Put a chip on a bus. A port that is taken is EEXIST."""
    ports = range(base, base + length)
    if taken := [port for port in ports if port in bus]:
        owner = type(bus[taken[0]].device).__name__
        raise KvmError(EEXIST, f"port {taken[0]:#x} is taken by {owner}")
    found = IoRange(base, length, device)
    for port in ports:
        bus[port] = found


def kvm_io_bus_write(bus: dict[int, IoRange], port: int, size: int, value: int) -> bool:
    """Give a write to the chip at this port; False when there is none (Linux: -EOPNOTSUPP).

    The chip is found by the first port alone; Linux asks that the whole access fits it.
    """
    found = bus.get(port)
    if found is None:
        return False
    found.device.write(port - found.base, size, value)
    return True


def kvm_io_bus_read(bus: dict[int, IoRange], port: int, size: int) -> int | None:
    """Ask the chip at this port; None when there is none."""
    found = bus.get(port)
    if found is None:
        return None
    return found.device.read(port - found.base, size)


# -- sleep and wake --------------------------------------------------------------------------------


def kvm_vcpu_block(vcpu: KvmVcpu, runnable: Callable[[KvmVcpu], bool]) -> None:
    """Sleep until the vCPU has something to run for, a signal, or an alarm of the clock.

    With the virtual clock an alarm is not waited for: time jumps to it. `runnable` is
    kvm_arch_vcpu_runnable. Left out: halt polling.
    """
    clock = vcpu.clock

    def cond_wait(timeout: float | None) -> None:
        with vcpu.wait_condition:
            if not vcpu.woken:
                vcpu.wait_condition.wait(WAIT_S if timeout is None else min(timeout, WAIT_S))

    while True:
        vcpu.woken = False
        if kvm_test_request(KVM_REQ_MMU_RELOAD, vcpu):
            kvm_mmu_reload(vcpu)
        if kvm_vcpu_check_block(vcpu, runnable):
            break
        clock.wait(cond_wait)
        clock.run_due()


def kvm_vcpu_check_block(vcpu: KvmVcpu, runnable: Callable[[KvmVcpu], bool]) -> bool:
    """Whether to stop sleeping; KVM_REQ_UNHALT says that HLT is over, not only interrupted."""
    if runnable(vcpu):
        kvm_make_request(KVM_REQ_UNHALT, vcpu)
        vcpu.stat.halt_wakeup += 1
        return True
    return kvm_test_request(SIGNAL_PENDING, vcpu)


def kvm_vcpu_wake_up(vcpu: KvmVcpu) -> None:
    """End the sleep of a vCPU in kvm_vcpu_block."""
    with vcpu.wait_condition:
        vcpu.woken = True
        vcpu.wait_condition.notify_all()


def kvm_vcpu_kick(vcpu: KvmVcpu) -> None:
    """Make the vCPU look at its requests: wake it, or have it leave the guest.

    From the vCPU's own thread there is nothing to do: it looks before the next entry.
    """
    if vcpu.thread == get_ident():
        return
    kvm_vcpu_wake_up(vcpu)
    if vcpu.in_guest:
        vcpu.processor.kick()
