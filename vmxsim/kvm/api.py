"""KVM for programs: the ioctls of /dev/kvm as methods, with its rules and its errors.

Refusals are KvmError with the errno the ioctl would give. `tools.realkvm` has the same methods over
a real /dev/kvm; what userspace needs of either is the Protocols in `vmm.accel`. Limits of this
implementation: one vCPU per VM ("SMP is not modelled yet"), no local APIC, no dirty logging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from errno import EEXIST, EINVAL, ENOSPC
from typing import TYPE_CHECKING

from vmxsim.arch.cpuid import CpuidEntry
from vmxsim.clock import TSC_KHZ, Clock, HostClock, VirtualClock
from vmxsim.errors import ConfigError, KvmError
from vmxsim.kvm import regs as ioctls
from vmxsim.kvm import uapi
from vmxsim.kvm.cpuid import kvm_dev_ioctl_get_supported_cpuid, kvm_vcpu_ioctl_set_cpuid2
from vmxsim.kvm.descriptor import Descriptor, Memory, writable_view
from vmxsim.kvm.fast_pio import install_bounces, install_fast_ports
from vmxsim.kvm.guest_memory import kvm_mmu_reload
from vmxsim.kvm.irq import kvm_create_irqchip, kvm_create_pit, kvm_vm_ioctl_irq_line
from vmxsim.kvm.kvm_host import KvmVcpu, KvmVm
from vmxsim.kvm.kvm_main import (
    KVM_USER_MEM_SLOTS,
    kvm_set_memory_region,
    kvm_vcpu_ioctl,
    kvm_vcpu_kick,
    vcpu_load,
    vcpu_put,
)
from vmxsim.kvm.msr import MSR_INDEX_LIST, kvm_vcpu_ioctl_get_msrs, kvm_vcpu_ioctl_set_msrs
from vmxsim.kvm.requests import SIGNAL_PENDING, kvm_make_request
from vmxsim.kvm.stat import VcpuStat
from vmxsim.kvm.timers import watch_alarms
from vmxsim.kvm.vmx import vmx_x86_ops
from vmxsim.kvm.x86 import complete_fast_pio_in, complete_fast_pio_out, kvm_arch_vcpu_ioctl_run
from vmxsim.probes import Probes
from vmxsim.vmx.processor import Processor

if TYPE_CHECKING:
    pass


MAX_VCPUS = 1

CAPABILITIES: dict[int, int] = {
    uapi.KVM_CAP_IRQCHIP: 1,
    uapi.KVM_CAP_HLT: 1,
    uapi.KVM_CAP_USER_MEMORY: 1,
    uapi.KVM_CAP_EXT_CPUID: 1,
    uapi.KVM_CAP_NR_VCPUS: MAX_VCPUS,
    uapi.KVM_CAP_NR_MEMSLOTS: KVM_USER_MEM_SLOTS,
    uapi.KVM_CAP_PIT: 1,
    uapi.KVM_CAP_MP_STATE: 1,
    uapi.KVM_CAP_SYNC_MMU: 1,
    uapi.KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1,
    uapi.KVM_CAP_IRQ_INJECT_STATUS: 1,
    uapi.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1,
    uapi.KVM_CAP_PIT2: 1,
    uapi.KVM_CAP_INTERNAL_ERROR_DATA: 1,
    uapi.KVM_CAP_VCPU_EVENTS: 1,
    uapi.KVM_CAP_INTR_SHADOW: 1,
    uapi.KVM_CAP_DEBUGREGS: 1,
    uapi.KVM_CAP_XCRS: 1,
    uapi.KVM_CAP_GET_TSC_KHZ: 1,
    uapi.KVM_CAP_MAX_VCPUS: MAX_VCPUS,
    uapi.KVM_CAP_READONLY_MEM: 1,
    uapi.KVM_CAP_MAX_VCPU_ID: MAX_VCPUS,
    uapi.KVM_CAP_IMMEDIATE_EXIT: 1,
}
"""KVM_CHECK_EXTENSION: what is here. Every other number is answered with 0."""


class Kvm(Descriptor):
    """/dev/kvm. Give it a clock to share with devices; each VM needs one of its own.

    Without a clock every VM gets a VirtualClock.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        probes: Probes | None = None,
        processor: Callable[[Clock], Processor] | None = None,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.probes = probes if probes is not None else Probes()
        self._processor = processor if processor is not None else Processor.create
        self._vm: Vm | None = None

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12."""
        return uapi.KVM_API_VERSION

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: the size of `Vcpu.shared`."""
        return uapi.VCPU_MMAP_SIZE

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 for what is not here."""
        return CAPABILITIES.get(capability, 0)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: everything the engine can do, and nothing it cannot."""
        return list(kvm_dev_ioctl_get_supported_cpuid())

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs with state worth saving."""
        return list(MSR_INDEX_LIST)

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM. A given clock drives one VM at a time: ConfigError for a second one."""
        self._check()
        if self.clock is not None and self._vm is not None and not self._vm.closed:
            raise ConfigError("one clock drives one VM: close the other, or give each a clock")
        clock = self.clock if self.clock is not None else VirtualClock()
        self._vm = Vm(clock, self.probes, self._processor)
        return self._vm


class Vm(Descriptor):
    """A virtual machine; made by Kvm.create_vm()."""

    def __init__(
        self, clock: Clock, probes: Probes, processor: Callable[[Clock], Processor]
    ) -> None:
        super().__init__()
        self._vm = KvmVm(clock, probes)
        self._processor = processor
        self._alarms = watch_alarms(self._vm, clock)
        self._vcpus: list[Vcpu] = []

    @property
    def clock(self) -> Clock:
        """The machine's time."""
        return self._vm.clock

    @property
    def report_dead_halt(self) -> bool:
        """Not in KVM: a HLT that no interrupt can end is KVM_EXIT_HLT, instead of for ever."""
        return self._vm.report_dead_halt

    @report_dead_halt.setter
    def report_dead_halt(self, value: bool) -> None:
        self._vm.report_dead_halt = value

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on a VM: the same answers as Kvm's."""
        return CAPABILITIES.get(capability, 0)

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: Memory | None, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: the buffer is the guest's memory from here on.

        None or an empty buffer deletes the slot. Address and size must be multiples of 4096
        (EINVAL); slots must not overlap (EEXIST); KVM_MEM_READONLY turns writes into MMIO.
        """
        self._check()
        kvm_set_memory_region(
            self._vm, slot, guest_phys_addr, writable_view(slot, memory), flags
        )

    def create_irqchip(self, pit: bool = True) -> None:
        """KVM_CREATE_IRQCHIP, and KVM_CREATE_PIT2 with it: i8259 pair, i8254, port 0x61.

        EEXIST when it is there, EINVAL after the vCPU.
        """
        self._check()
        kvm_create_irqchip(self._vm)
        if pit:
            kvm_create_pit(self._vm)

    def create_pit2(self) -> None:
        """KVM_CREATE_PIT2 alone, after create_irqchip(pit=False). EEXIST when it is there."""
        self._check()
        if self._vm.vcpu is not None:
            raise KvmError(EINVAL, "create the PIT before the vCPU")
        kvm_create_pit(self._vm)

    def irq_line(self, irq: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS, from any thread: 1 delivered, 0 coalesced, -1 masked."""
        self._check()
        return kvm_vm_ioctl_irq_line(self._vm, irq, level)

    def create_vcpu(self, id: int = 0) -> Vcpu:
        """KVM_CREATE_VCPU, in real mode at the reset vector. SMP is not modelled yet: only vCPU 0.

        EINVAL for another id, EEXIST for the same one twice.
        """
        self._check()
        if not 0 <= id < MAX_VCPUS:
            raise KvmError(EINVAL, f"vCPU {id}: SMP is not modelled yet, only vCPU 0 is")
        if self._vm.vcpu is not None:
            raise KvmError(EEXIST if self._vcpus[-1].id == id else ENOSPC, f"vCPU {id} exists")
        vcpu = Vcpu(self._vm, id, self._processor(self._vm.clock))
        self._vcpus.append(vcpu)
        return vcpu

    def close(self) -> None:
        """Give the machine back, its vCPU and its alarm thread with it."""
        if self.closed:
            return
        super().close()
        for vcpu in self._vcpus:
            vcpu.close()
        if self._vm.pit is not None:
            self._vm.pit.reset()  # or its alarms would outlive it in the clock
        self._vm.clock.on_alarm_change = None
        if self._alarms is not None:
            self._alarms.close()


class Vcpu(Descriptor):
    """A virtual processor; made by Vm.create_vcpu().

    `shared` is the buffer that userspace maps: kvm_run, then the port data page.
    """

    def __init__(self, vm: KvmVm, id: int, processor: Processor) -> None:
        super().__init__()
        self.id = id
        self._vcpu = vcpu = KvmVcpu(vm, id, processor, vmx_x86_ops)
        if isinstance(vm.clock, VirtualClock):
            vm.clock.blocks = lambda: processor.blocks
        vcpu_load(vcpu)
        vcpu_put(vcpu)
        install_fast_ports(vcpu)
        install_bounces(vcpu, complete_fast_pio_out, complete_fast_pio_in)
        vm.vcpu = vcpu
        kvm_mmu_reload(vcpu)
        self.kvm_run = vcpu.kvm_run
        self.shared = vcpu.shared

    @property
    def stat(self) -> VcpuStat:
        """Counters of exits, of what went to userspace, of accesses by port. Always on."""
        return self._vcpu.stat

    def run(self) -> None:
        """KVM_RUN. When it returns, kvm_run says why: `kvm_run.exit`.

        KvmError(EINTR) after kick(), or with kvm_run.immediate_exit set; what userspace was asked
        for before is completed first even then.
        """
        if self.closed:
            self._check()
        kvm_vcpu_ioctl(self._vcpu, kvm_arch_vcpu_ioctl_run)

    def kick(self) -> None:
        """Make run() raise KvmError(EINTR): the one under way, or the next. From any thread.

        What a signal to the vCPU's thread is for a real KVM.
        """
        kvm_make_request(SIGNAL_PENDING, self._vcpu)
        kvm_vcpu_kick(self._vcpu)

    def get_regs(self) -> uapi.KvmRegs:
        """KVM_GET_REGS."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_get_regs)

    def set_regs(self, regs: uapi.KvmRegs) -> None:
        """KVM_SET_REGS."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_set_regs, regs)

    def get_sregs(self) -> uapi.KvmSregs:
        """KVM_GET_SREGS."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_get_sregs)

    def set_sregs(self, sregs: uapi.KvmSregs) -> None:
        """KVM_SET_SREGS. EINVAL when control registers contradict each other."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_set_sregs, sregs)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: as many as could be read before the first unknown one."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, kvm_vcpu_ioctl_get_msrs, list(indices))

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were set before the first that was refused."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, kvm_vcpu_ioctl_set_msrs, list(values))

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """KVM_SET_CPUID2. Without it the guest reads zeros, and has no optional feature."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, kvm_vcpu_ioctl_set_cpuid2, list(entries))

    def get_cpuid2(self) -> list[CpuidEntry]:
        """KVM_GET_CPUID2."""
        self._check()
        return list(self._vcpu.arch.cpuid_entries)

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: inject at the next entry. ENXIO with the in-kernel irqchip."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_interrupt, vector)

    def get_fpu(self) -> uapi.KvmFpu:
        """KVM_GET_FPU."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_get_fpu)

    def set_fpu(self, fpu: uapi.KvmFpu) -> None:
        """KVM_SET_FPU."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_set_fpu, fpu)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_get_mpstate)

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE. EINVAL for anything but RUNNABLE without the irqchip."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_arch_vcpu_ioctl_set_mpstate, mp_state)

    def get_vcpu_events(self) -> uapi.KvmVcpuEvents:
        """KVM_GET_VCPU_EVENTS."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_x86_get_vcpu_events)

    def set_vcpu_events(self, events: uapi.KvmVcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_x86_set_vcpu_events, events)

    def get_debugregs(self) -> uapi.KvmDebugregs:
        """KVM_GET_DEBUGREGS."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_x86_get_debugregs)

    def set_debugregs(self, debug: uapi.KvmDebugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_x86_set_debugregs, debug)

    def get_xcrs(self) -> uapi.KvmXcrs:
        """KVM_GET_XCRS."""
        self._check()
        return kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_x86_get_xcrs)

    def set_xcrs(self, xcrs: uapi.KvmXcrs) -> None:
        """KVM_SET_XCRS."""
        self._check()
        kvm_vcpu_ioctl(self._vcpu, ioctls.kvm_vcpu_ioctl_x86_set_xcrs, xcrs)

    def translate(self, linear_address: int) -> uapi.KvmTranslation:
        """KVM_TRANSLATE: where a linear address leads."""
        self._check()
        return kvm_vcpu_ioctl(
            self._vcpu, ioctls.kvm_arch_vcpu_ioctl_translate, linear_address
        )

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ."""
        return TSC_KHZ

    def close(self) -> None:
        """Give the processor back; run() in another thread is ended first."""
        if self.closed:
            return
        super().close()
        if self._vcpu.running:
            self.kick()


__all__ = ["CAPABILITIES", "HostClock", "Kvm", "Vcpu", "VirtualClock", "Vm"]
