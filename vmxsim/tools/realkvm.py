"""vmxsim.kvm.api over a real ``/dev/kvm``: the userspace floor runs on it unchanged.

Method for method the classes of vmxsim.kvm.api, each an ioctl. Linux on x86-64 only. VMX exit
reasons stay inside the kernel, so probes see nothing; what KVM_RUN returns is all there is. Guest
memory must begin on a page: use mmap, not bytearray.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

from vmxsim.errors import EngineError, KvmError
from vmxsim.kvm import uapi
from vmxsim.kvm.descriptor import Descriptor, Memory, writable_view

if TYPE_CHECKING:
    from vmxsim.arch.cpuid import CpuidEntry

DEVICE: Final = "/dev/kvm"
MAX_ENTRIES: Final = 256
KVM_IRQ_LINE_STATUS: Final = 0xC008_AE67
KVM_PIT_SPEAKER_DUMMY: Final = 1
TSS_ADDRESS: Final = 0xFFFB_D000
"""Three pages that Intel hosts need for real mode, below the BIOS as QEMU has them."""

S = TypeVar("S", bound=ctypes.Structure)


def why_not() -> str:
    """Why there is no usable /dev/kvm here; empty when there is one."""
    if not sys.platform.startswith("linux"):
        return f"{DEVICE} exists on Linux only"
    if not os.path.exists(DEVICE):
        return f"no {DEVICE}: load the kvm module, or enable virtualization for this machine"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"no permission to open {DEVICE}: join the kvm group"
    return ""


def library() -> Callable[[int, int, int], int]:
    """The C library's ioctl. Not fcntl's: that takes a signed 32-bit integer for an argument."""
    ioctl = ctypes.CDLL(None, use_errno=True).ioctl
    ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    call: Callable[[int, int, int], int] = ioctl
    return call


class File(Descriptor):
    """A file descriptor of KVM, and the ioctls on it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self._ioctl = library()

    def ioctl(self, number: int, argument: int | ctypes.Structure | bytearray = 0) -> int:
        """Do an ioctl; KvmError with the kernel's errno when it is refused."""
        self._check()
        if isinstance(argument, int):
            result = self._ioctl(self.fd, number, argument)
        elif isinstance(argument, bytearray):
            held = (ctypes.c_char * len(argument)).from_buffer(argument)
            result = self._ioctl(self.fd, number, ctypes.addressof(held))
        else:
            result = self._ioctl(self.fd, number, ctypes.addressof(argument))
        if result < 0:
            code = ctypes.get_errno()
            raise KvmError(code, f"ioctl 0x{number:x}: {os.strerror(code)}")
        return result

    def get(self, number: int, kind: type[S]) -> S:
        """Have the kernel fill in a structure."""
        found = kind()
        self.ioctl(number, found)
        return found

    def close(self) -> None:
        """Give the descriptor back. Closing twice does nothing."""
        if not self.closed:
            super().close()
            os.close(self.fd)


class RealKvm(File):
    """``/dev/kvm`` itself. Make it in the main thread: a kick needs a signal handler (SIGUSR1)."""

    def __init__(self) -> None:
        if reason := why_not():
            raise EngineError(reason)
        super().__init__(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, _wake)

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12."""
        return self.ioctl(uapi.KVM_GET_API_VERSION)

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: the size of `RealVcpu.shared`."""
        return self.ioctl(uapi.KVM_GET_VCPU_MMAP_SIZE)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when the kernel does not have it."""
        return self.ioctl(uapi.KVM_CHECK_EXTENSION, capability)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: what set_cpuid2 may be given on this host."""
        return _get_cpuid(self, uapi.KVM_GET_SUPPORTED_CPUID)

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs with state worth saving."""
        table = (ctypes.c_uint32 * (1 + 4 * MAX_ENTRIES))(4 * MAX_ENTRIES)
        buffer = bytearray(bytes(table))
        self.ioctl(uapi.KVM_GET_MSR_INDEX_LIST, buffer)
        words = memoryview(buffer).cast("I")
        return list(words[1 : 1 + words[0]])

    def create_vm(self) -> RealVm:
        """KVM_CREATE_VM, with the pages that Intel hosts need set aside."""
        size = self.get_vcpu_mmap_size()
        vm = RealVm(self.ioctl(uapi.KVM_CREATE_VM), size)
        vm.ioctl(uapi.KVM_SET_TSS_ADDR, TSS_ADDRESS)
        return vm


class RealVm(File):
    """A virtual machine of the kernel."""

    def __init__(self, fd: int, mmap_size: int) -> None:
        super().__init__(fd)
        self.mmap_size = mmap_size
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        """Held, since the kernel goes on using it."""

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on a VM."""
        return self.ioctl(uapi.KVM_CHECK_EXTENSION, capability)

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: Memory | None, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION. EINVAL when the memory does not begin on a page."""
        view = writable_view(slot, memory)
        size = len(view) if view is not None else 0
        held = (ctypes.c_char * size).from_buffer(view) if view is not None else None
        region = uapi.KvmUserspaceMemoryRegion(
            slot=slot,
            flags=flags,
            guest_phys_addr=guest_phys_addr,
            memory_size=size,
            userspace_addr=ctypes.addressof(held) if held is not None else 0,
        )
        self.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, region)
        self.memory.pop(slot, None)
        if held is not None:
            self.memory[slot] = held

    def create_irqchip(self, pit: bool = True) -> None:
        """KVM_CREATE_IRQCHIP, and KVM_CREATE_PIT2 with it. LAPIC and IOAPIC come along."""
        self.ioctl(uapi.KVM_CREATE_IRQCHIP)
        if pit:
            self.create_pit2()

    def create_pit2(self) -> None:
        """KVM_CREATE_PIT2 alone, with the speaker port."""
        self.ioctl(uapi.KVM_CREATE_PIT2, uapi.KvmPitConfig(flags=KVM_PIT_SPEAKER_DUMMY))

    def irq_line(self, irq: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS: 1 or more delivered, 0 coalesced, -1 masked."""
        line = uapi.KvmIrqLevel(irq=irq, level=level)
        self.ioctl(KVM_IRQ_LINE_STATUS, line)
        return ctypes.c_int32(line.irq).value

    def create_vcpu(self, id: int = 0) -> RealVcpu:
        """KVM_CREATE_VCPU, and its shared pages mapped."""
        return RealVcpu(self, self.ioctl(uapi.KVM_CREATE_VCPU, id), id)


class RealVcpu(File):
    """A virtual processor of the kernel; ``kvm_run`` lies over the kernel's own page."""

    def __init__(self, vm: RealVm, fd: int, id: int) -> None:
        super().__init__(fd)
        self.vm = vm
        """Held, as the kernel holds it: the guest's memory must outlive its processors."""
        self.id = id
        self.shared = memoryview(mmap.mmap(fd, vm.mmap_size))
        self.kvm_run = uapi.KvmRun.over(self.shared)
        self._thread = 0
        self._kicked = False

    def run(self) -> None:
        """KVM_RUN; kvm_run says why it returned. KvmError(EINTR) after a kick or immediate_exit.

        The kernel leaves exit_reason alone when immediate_exit ends it before the guest ran.
        """
        self._thread = threading.get_ident()
        try:
            self.ioctl(uapi.KVM_RUN)
        except KvmError as error:
            if error.errno == errno.EINTR and self._kicked:
                self._kicked = False
                self.kvm_run.immediate_exit = 0
            raise
        finally:
            self._thread = 0

    def kick(self) -> None:
        """Have run() return with EINTR, now or as soon as it is called. From any thread."""
        self._kicked = True
        self.kvm_run.immediate_exit = 1
        thread = self._thread
        if thread:
            signal.pthread_kill(thread, signal.SIGUSR1)

    def get_regs(self) -> uapi.KvmRegs:
        """KVM_GET_REGS."""
        return self.get(uapi.KVM_GET_REGS, uapi.KvmRegs)

    def set_regs(self, regs: uapi.KvmRegs) -> None:
        """KVM_SET_REGS."""
        self.ioctl(uapi.KVM_SET_REGS, regs)

    def get_sregs(self) -> uapi.KvmSregs:
        """KVM_GET_SREGS."""
        return self.get(uapi.KVM_GET_SREGS, uapi.KvmSregs)

    def set_sregs(self, sregs: uapi.KvmSregs) -> None:
        """KVM_SET_SREGS."""
        self.ioctl(uapi.KVM_SET_SREGS, sregs)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: as many as the kernel gave before the first it does not know."""
        table, entries = _msrs((index, 0) for index in indices)
        done = self.ioctl(uapi.KVM_GET_MSRS, table)
        return {entry.index: entry.data for entry in entries[:done]}

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were set before the first that was refused."""
        table, _entries = _msrs(values)
        return self.ioctl(uapi.KVM_SET_MSRS, table)

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""
        rows = [bytes(uapi.KvmCpuidEntry2(**entry._asdict())) for entry in entries]
        head = bytes(uapi.KvmCpuid2(nent=len(rows)))
        self.ioctl(uapi.KVM_SET_CPUID2, bytearray(head + b"".join(rows)))

    def get_cpuid2(self) -> list[CpuidEntry]:
        """KVM_GET_CPUID2."""
        return _get_cpuid(self, uapi.KVM_GET_CPUID2)

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: only without the in-kernel irqchip."""
        self.ioctl(uapi.KVM_INTERRUPT, uapi.KvmInterrupt(irq=vector))

    def get_fpu(self) -> uapi.KvmFpu:
        """KVM_GET_FPU."""
        return self.get(uapi.KVM_GET_FPU, uapi.KvmFpu)

    def set_fpu(self, fpu: uapi.KvmFpu) -> None:
        """KVM_SET_FPU."""
        self.ioctl(uapi.KVM_SET_FPU, fpu)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE."""
        return self.get(uapi.KVM_GET_MP_STATE, uapi.KvmMpState).mp_state

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE."""
        self.ioctl(uapi.KVM_SET_MP_STATE, uapi.KvmMpState(mp_state=mp_state))

    def get_vcpu_events(self) -> uapi.KvmVcpuEvents:
        """KVM_GET_VCPU_EVENTS."""
        return self.get(uapi.KVM_GET_VCPU_EVENTS, uapi.KvmVcpuEvents)

    def set_vcpu_events(self, events: uapi.KvmVcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self.ioctl(uapi.KVM_SET_VCPU_EVENTS, events)

    def get_debugregs(self) -> uapi.KvmDebugregs:
        """KVM_GET_DEBUGREGS."""
        return self.get(uapi.KVM_GET_DEBUGREGS, uapi.KvmDebugregs)

    def set_debugregs(self, debug: uapi.KvmDebugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        self.ioctl(uapi.KVM_SET_DEBUGREGS, debug)

    def get_xcrs(self) -> uapi.KvmXcrs:
        """KVM_GET_XCRS."""
        return self.get(uapi.KVM_GET_XCRS, uapi.KvmXcrs)

    def set_xcrs(self, xcrs: uapi.KvmXcrs) -> None:
        """KVM_SET_XCRS."""
        self.ioctl(uapi.KVM_SET_XCRS, xcrs)

    def translate(self, linear_address: int) -> uapi.KvmTranslation:
        """KVM_TRANSLATE: where a linear address leads."""
        found = uapi.KvmTranslation(linear_address=linear_address)
        self.ioctl(uapi.KVM_TRANSLATE, found)
        return found

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ."""
        return self.ioctl(uapi.KVM_GET_TSC_KHZ)


def _get_cpuid(file: File, number: int) -> list[CpuidEntry]:
    """Ask for a table of CPUID leaves."""
    from vmxsim.arch.cpuid import CpuidEntry

    head = ctypes.sizeof(uapi.KvmCpuid2)
    row = ctypes.sizeof(uapi.KvmCpuidEntry2)
    table = bytearray(head + MAX_ENTRIES * row)
    uapi.KvmCpuid2.from_buffer(table).nent = MAX_ENTRIES
    file.ioctl(number, table)
    rows = uapi.KvmCpuid2.from_buffer(table).nent
    entries = (uapi.KvmCpuidEntry2.from_buffer(table, head + i * row) for i in range(rows))
    return [CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]


def _msrs(values: Iterable[tuple[int, int]]) -> tuple[bytearray, list[uapi.KvmMsrEntry]]:
    """A struct kvm_msrs with its entries, and views of them."""
    rows = [uapi.KvmMsrEntry(index=index, data=data) for index, data in values]
    table = bytearray(bytes(uapi.KvmMsrs(nmsrs=len(rows))) + b"".join(map(bytes, rows)))
    head, row = ctypes.sizeof(uapi.KvmMsrs), ctypes.sizeof(uapi.KvmMsrEntry)
    views = [uapi.KvmMsrEntry.from_buffer(table, head + i * row) for i in range(len(rows))]
    return table, views


def _wake(number: int, frame: FrameType | None) -> None:
    """Nothing: that a signal came is what ends KVM_RUN."""
