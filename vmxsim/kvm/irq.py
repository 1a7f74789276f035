"""Interrupts on their way to the vCPU: the in-kernel PIC's, or the one userspace has queued.

Linux: arch/x86/kvm/irq.c and irq_comm.c. Left out: LAPIC, IOAPIC, MSIs, routing tables.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENOENT, ENXIO

from vmxsim.errors import KvmError
from vmxsim.kvm.i8254 import I8254, SpeakerPort
from vmxsim.kvm.i8259 import I8259Pair
from vmxsim.kvm.kvm_host import KvmVcpu, KvmVm
from vmxsim.kvm.kvm_main import kvm_io_bus_register_dev, kvm_vcpu_kick
from vmxsim.kvm.requests import KVM_REQ_EVENT, kvm_make_request

PIC_LINES = 16


def kvm_cpu_has_interrupt(vcpu: KvmVcpu) -> bool:
    """Whether an interrupt is pending for this vCPU, deliverable now or not."""
    pic = vcpu.vm.pic
    return vcpu.arch.interrupt.injected if pic is None else pic.output


def kvm_cpu_has_injectable_intr(vcpu: KvmVcpu) -> bool:
    """Whether an interrupt waits to be injected. Without the irqchip: one queued by userspace."""
    return kvm_cpu_has_interrupt(vcpu)


def kvm_cpu_get_interrupt(vcpu: KvmVcpu) -> int:
    """Acknowledge the interrupt and get its vector."""
    pic = vcpu.vm.pic
    return vcpu.arch.interrupt.nr if pic is None else pic.intack()


def kvm_vm_ioctl_irq_line(vm: KvmVm, irq: int, level: int) -> int:
    """KVM_IRQ_LINE: drive one of the PIC's sixteen lines. ENXIO without an irqchip."""
    if vm.pic is None:
        raise KvmError(ENXIO, "no in-kernel irqchip: create_irqchip() comes first")
    if not 0 <= irq < PIC_LINES:
        raise KvmError(EINVAL, f"irq {irq} is not one of 0 to {PIC_LINES - 1}")
    return int(vm.pic.set_irq(irq, 1 if level else 0))


def pic_irq_request(vm: KvmVm, level: bool) -> None:
    """The PIC's INT output has changed: have the vCPU look at it."""
    vcpu = vm.vcpu
    if vcpu is not None and level:
        kvm_make_request(KVM_REQ_EVENT, vcpu)
        kvm_vcpu_kick(vcpu)


def kvm_create_irqchip(vm: KvmVm) -> None:
    """KVM_CREATE_IRQCHIP: the i8259 pair. Once, and before the vCPUs."""
    if vm.pic is not None:
        raise KvmError(EEXIST, "the irqchip exists already")
    if vm.vcpu is not None:
        raise KvmError(EINVAL, "the irqchip must be created before the vCPUs")
    pic = I8259Pair(lambda level: pic_irq_request(vm, level))
    kvm_io_bus_register_dev(vm.pio_bus, 0x20, 2, pic.master)
    kvm_io_bus_register_dev(vm.pio_bus, 0xA0, 2, pic.slave)
    kvm_io_bus_register_dev(vm.pio_bus, 0x4D0, 2, pic.elcr)
    vm.pic = pic


def kvm_create_pit(vm: KvmVm) -> None:
    """KVM_CREATE_PIT2: the i8254 and port 0x61, wired to the PIC. Needs the irqchip."""
    pic = vm.pic
    if vm.pit is not None:
        raise KvmError(EEXIST, "the PIT exists already")
    if pic is None:
        raise KvmError(ENOENT, "the PIT needs the irqchip: create_irqchip() comes first")
    pit = I8254(vm.clock, lambda level: pic.set_irq(0, level))
    speaker = SpeakerPort(pit)
    kvm_io_bus_register_dev(vm.pio_bus, 0x40, 4, pit)
    kvm_io_bus_register_dev(vm.pio_bus, 0x61, 1, speaker)
    pit.reinject = True
    pic.on_eoi = lambda line: pit.acked() if line == 0 else None
    pic.on_mask = lambda line, masked: pit.unmasked() if line == 0 and not masked else None
    vm.pit, vm.speaker = pit, speaker
