"""struct kvm and struct kvm_vcpu: the state that the files of this floor share.

Linux: include/linux/kvm_host.h and arch/x86/include/asm/kvm_host.h. Only data stands here, and
nothing here acts. `KvmVm` is Linux's ``struct kvm``; the class `api.Kvm` is /dev/kvm itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from vmxsim.arch.registers import Dr6
from vmxsim.clock import Clock, VirtualClock
from vmxsim.kvm.stat import VcpuStat
from vmxsim.kvm.uapi import KVM_MP_STATE_RUNNABLE, VCPU_MMAP_SIZE, KvmRun
from vmxsim.probes import Probes

if TYPE_CHECKING:
    from vmxsim.arch.cpuid import CpuidEntry
    from vmxsim.kvm.emulator import Emulation
    from vmxsim.kvm.i8254 import I8254, SpeakerPort
    from vmxsim.kvm.i8259 import I8259Pair
    from vmxsim.kvm.run import Run
    from vmxsim.vmx.processor import Processor
    from vmxsim.vmx.records import VmExit, VmFail


CpuidLeaf: TypeAlias = "tuple[int, int, int, int] | dict[int, tuple[int, int, int, int]]"
"""What CPUID answers to a function: EAX, EBX, ECX, EDX, or those by index."""


class Device(Protocol):
    """A chip in the kernel, as the buses see it: offsets from its base, sizes in bytes."""

    def read(self, offset: int, size: int) -> int:
        """Answer an access."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Take an access."""
        ...


class IoRange(NamedTuple):
    """A device on a bus. Linux: struct kvm_io_range."""

    base: int
    length: int
    device: Device


class MemorySlot(NamedTuple):
    """Guest-physical memory backed by the caller's buffer. Linux: struct kvm_memory_slot."""

    slot: int
    gpa: int
    size: int
    flags: int
    memory: memoryview


class PioRequest:
    """The port access under way, kept while userspace answers. Linux: struct kvm_pio_request.

    A `count` other than zero says that one is under way.
    """

    __slots__ = ("count", "is_in", "port", "size")

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self.port = 0
        self.is_in = False


class QueuedException:
    """The exception to inject. Linux: vcpu->arch.exception.

    `pending` waits for its turn; `injected` was put into the VMCS, and must be put there again
    when its delivery was cut short.
    """

    __slots__ = ("error_code", "injected", "nr", "pending")

    def __init__(self) -> None:
        self.pending = False
        self.injected = False
        self.nr = 0
        self.error_code: int | None = None


class QueuedInterrupt:
    """The interrupt to inject, soft for INT n. Linux: vcpu->arch.interrupt."""

    __slots__ = ("injected", "length", "nr", "soft")

    def __init__(self) -> None:
        self.injected = False
        self.soft = False
        self.nr = 0
        self.length = 0


class VcpuArch:
    """What is special to x86. Linux: struct kvm_vcpu_arch."""

    __slots__ = (
        "apic_base", "complete_userspace_io", "cpuid", "cpuid_entries", "cr0", "cr4", "cr8",
        "dr_wont_exit", "efer", "emulation", "event_exit_inst_len", "exception", "guest_xcr0",
        "injecting", "interrupt", "mp_state", "msrs", "nmi_injected", "nmi_pending", "pio",
        "pio_done", "rip_moved", "singlestep", "tsc_offset",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mp_state = KVM_MP_STATE_RUNNABLE
        self.cr0 = 0
        self.cr4 = 0
        self.cr8 = 0
        self.efer = 0
        self.apic_base = 0
        self.guest_xcr0 = 1
        self.tsc_offset = 0
        self.msrs: dict[int, int] = {}
        self.cpuid_entries: tuple[CpuidEntry, ...] = ()
        self.cpuid: dict[int, CpuidLeaf] = {}
        self.exception = QueuedException()
        self.interrupt = QueuedInterrupt()
        self.nmi_pending = False
        self.nmi_injected = False
        self.injecting = False
        self.event_exit_inst_len = 0
        self.pio = PioRequest()
        self.rip_moved = False
        self.pio_done = False
        self.emulation: Emulation | None = None
        self.complete_userspace_io: Callable[[KvmVcpu], Run] | None = None
        self.dr_wont_exit = False
        self.singlestep = False


class KvmX86Ops(NamedTuple):
    """What the vendor module offers the rest. Linux: struct kvm_x86_ops; vmx.py fills it."""

    vcpu_load: Callable[[KvmVcpu], None]
    run: Callable[[KvmVcpu], VmExit | VmFail]
    prepare_switch_to_guest: Callable[[KvmVcpu], None]
    handle_exit: Callable[[KvmVcpu, VmExit], Run]
    interrupt_allowed: Callable[[KvmVcpu], bool]
    queue_exception: Callable[[KvmVcpu], None]
    set_irq: Callable[[KvmVcpu], None]
    set_nmi: Callable[[KvmVcpu], None]
    enable_irq_window: Callable[[KvmVcpu], None]
    sync_dirty_debug_regs: Callable[[KvmVcpu], None]
    set_cr0: Callable[[KvmVcpu, int], None]
    set_cr4: Callable[[KvmVcpu, int], None]
    set_efer: Callable[[KvmVcpu, int], None]
    get_msr: Callable[[KvmVcpu, int], int | None]
    set_msr: Callable[[KvmVcpu, int, int, bool], bool]
    cpuid_update: Callable[[KvmVcpu], None]


class KvmVm:
    """One virtual machine: memory slots, buses, in-kernel chips. Linux: struct kvm."""

    def __init__(self, clock: Clock, probes: Probes) -> None:
        self.clock = clock
        self.probes = probes
        self.lock = threading.RLock()
        self.slots: dict[int, MemorySlot] = {}
        self.pio_bus: dict[int, IoRange] = {}
        self.pic: I8259Pair | None = None
        self.pit: I8254 | None = None
        self.speaker: SpeakerPort | None = None
        self.vcpu: KvmVcpu | None = None
        self.report_dead_halt = False
        self.closed = False

    @property
    def irqchip_in_kernel(self) -> bool:
        """Whether KVM_CREATE_IRQCHIP was called. Linux: irqchip_in_kernel, lapic_in_kernel."""
        return self.pic is not None


class KvmVcpu:
    """One virtual processor. Linux: struct kvm_vcpu.

    `mutex` is held through every ioctl. `in_guest` is Linux's IN_GUEST_MODE: while it is set a
    kick has to reach the processor.
    """

    __slots__ = (
        "arch", "clock", "deadline", "enter_from_host", "exec_control", "exit", "exit_counter",
        "exits", "fast_ports_watched", "guest_state_loaded", "id", "in_guest", "irqchip",
        "kvm_run", "launched", "leave_to_host", "loaded", "mutex", "probes", "probes_seen",
        "processor", "requests", "requests_lock", "running", "saved_apic_base", "saved_cr8",
        "shared", "slots", "stat", "thread", "timer_armed", "vm", "wait_condition", "want_window",
        "woken", "x86_ops",
    )  # fmt: skip

    def __init__(
        self, vm: KvmVm, vcpu_id: int, processor: Processor, x86_ops: KvmX86Ops
    ) -> None:
        self.vm = vm
        self.x86_ops = x86_ops
        self.id = vcpu_id
        self.processor = processor
        self.clock = vm.clock
        self.probes = vm.probes
        # With a host clock nobody looks at this one's count, and the run loop needs no branch.
        self.exit_counter = vm.clock if isinstance(vm.clock, VirtualClock) else VirtualClock()
        self.stat = VcpuStat()
        self.exits = self.stat.exits
        self.arch = VcpuArch()
        self.shared = memoryview(bytearray(VCPU_MMAP_SIZE))
        self.kvm_run = KvmRun.over(self.shared)
        self.mutex = threading.RLock()
        self.thread = 0
        self.running = False
        self.loaded = False
        self.launched = False
        self.guest_state_loaded = False
        self.exec_control = 0
        self.exit: VmExit | None = None
        self.requests = 0
        self.requests_lock = threading.Lock()
        self.in_guest = False
        self.wait_condition = threading.Condition()
        self.woken = False
        self.deadline: int | None = None
        self.timer_armed = False
        self.want_window = False
        self.fast_ports_watched = False
        self.probes_seen = -1
        self.saved_cr8 = self.saved_apic_base = -1
        self.irqchip = vm.pic is not None
        self.enter_from_host = processor.enter_from_host
        self.leave_to_host = processor.leave_to_host
        self.slots: dict[int, MemorySlot] = {}


def dr6_with(dr6: int, causes: int) -> int:
    """DR6 after a debug exception: B0 to B3 are this one's, the other causes accumulate."""
    return dr6 & ~0xF | Dr6.FIXED | causes
