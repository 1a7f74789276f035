"""The kvm.api Protocol over a real ``/dev/kvm``: the userspace floor runs on it unchanged.

Method for method the classes of vmxsim.kvm.api, each an ioctl. Linux on x86-64 only. What KVM calls
the same is the same here; VMX exit reasons stay inside the kernel, so probes see only userspace's
half. Guest memory must begin on a page: use mmap, not bytearray.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final

from vmxsim.errors import EngineError, KvmError
from vmxsim.kvm import uapi

if TYPE_CHECKING:
    from vmxsim.arch.cpuid import CpuidEntry

DEVICE: Final = "/dev/kvm"
MAX_CPUID: Final = 256
KICK_SIGNAL: Final = "SIGUSR1"


def why_not() -> str:
    """Why there is no usable /dev/kvm here; empty when there is one."""
    if not sys.platform.startswith("linux"):
        return f"{DEVICE} exists on Linux only"
    if not os.path.exists(DEVICE):
        return f"no {DEVICE}: load the kvm module, or enable virtualization for this machine"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"no permission to open {DEVICE}: join the kvm group"
    return ""


class Descriptor:
    """A file descriptor of KVM, and the ioctls on it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # Not fcntl.ioctl: its integer argument is a signed 32-bit one.
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

    def ioctl(self, number: int, argument: int | ctypes.Structure | bytearray = 0) -> int:
        """Do an ioctl; KvmError with the kernel's errno when it is refused."""
        if isinstance(argument, int):
            result: int = self._ioctl(self.fd, number, argument)
        elif isinstance(argument, bytearray):
            held = (ctypes.c_char * len(argument)).from_buffer(argument)
            result = self._ioctl(self.fd, number, ctypes.addressof(held))
        else:
            result = self._ioctl(self.fd, number, ctypes.addressof(argument))
        if result < 0:
            code = ctypes.get_errno()
            raise KvmError(code, f"ioctl 0x{number:x}: {os.strerror(code)}")
        return result

    def close(self) -> None:
        """Give the descriptor back. Closing twice does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RealKvm(Descriptor):
    """``/dev/kvm`` itself. Make it in the main thread: a kick needs a signal handler."""

    def __init__(self) -> None:
        if reason := why_not():
            raise EngineError(reason)
        super().__init__(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        if threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, KICK_SIGNAL), _wake)

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12."""
        return self.ioctl(uapi.KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when the kernel does not have it."""
        return self.ioctl(uapi.KVM_CHECK_EXTENSION, capability)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: what set_cpuid2 may be given on this host."""
        from vmxsim.arch.cpuid import CpuidEntry

        head = ctypes.sizeof(uapi.KvmCpuid2)
        row = ctypes.sizeof(uapi.KvmCpuidEntry2)
        table = bytearray(head + MAX_CPUID * row)
        uapi.KvmCpuid2.from_buffer(table).nent = MAX_CPUID
        self.ioctl(uapi.KVM_GET_SUPPORTED_CPUID, table)
        rows = uapi.KvmCpuid2.from_buffer(table).nent
        entries = (uapi.KvmCpuidEntry2.from_buffer(table, head + i * row) for i in range(rows))
        return [
            CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries
        ]

    def create_vm(self) -> RealVm:
        """KVM_CREATE_VM, with the pages that Intel hosts need set aside below 4 GB."""
        size = self.ioctl(uapi.KVM_GET_VCPU_MMAP_SIZE)
        return RealVm(self.ioctl(uapi.KVM_CREATE_VM), size)


class RealVm(Descriptor):
    """A virtual machine of the kernel."""

    def __init__(self, fd: int, mmap_size: int) -> None:
        super().__init__(fd)
        self.mmap_size = mmap_size
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.ioctl(uapi.KVM_SET_TSS_ADDR, 0xFFFB_D000)

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: mmap.mmap | memoryview, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION. EINVAL when the memory does not begin on a page."""
        held = (ctypes.c_char * len(memory)).from_buffer(memory)
        region = uapi.KvmUserspaceMemoryRegion(
            slot=slot,
            flags=flags,
            guest_phys_addr=guest_phys_addr,
            memory_size=len(memory),
            userspace_addr=ctypes.addressof(held) if len(memory) else 0,
        )
        self.ioctl(uapi.KVM_SET_USER_MEMORY_REGION, region)
        self.memory[slot] = held

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2, with the speaker port."""
        self.ioctl(uapi.KVM_CREATE_IRQCHIP)
        self.ioctl(uapi.KVM_CREATE_PIT2, uapi.KvmPitConfig(flags=1))

    def irq_line(self, irq: int, level: int) -> None:
        """KVM_IRQ_LINE."""
        self.ioctl(uapi.KVM_IRQ_LINE, uapi.KvmIrqLevel(irq=irq, level=level))

    def create_vcpu(self, id: int) -> RealVcpu:
        """KVM_CREATE_VCPU, and its shared pages mapped."""
        return RealVcpu(self, self.ioctl(uapi.KVM_CREATE_VCPU, id), id)

    def close(self) -> None:
        """Give the machine back to the kernel. Close its vCPUs first."""
        super().close()
        self.memory.clear()


class RealVcpu(Descriptor):
    """A virtual processor of the kernel; ``kvm_run`` lies over the kernel's own page."""

    def __init__(self, vm: RealVm, fd: int, id: int) -> None:
        super().__init__(fd)
        self.vm = vm
        """Held, as the kernel holds it: the guest's memory must outlive its processors."""
        self.id = id
        self.shared = mmap.mmap(fd, vm.mmap_size)
        self.kvm_run = uapi.KvmRun.over(self.shared)
        self._thread = 0
        self._kicked = False

    def run(self) -> None:
        """KVM_RUN; kvm_run says why it returned. KvmError(EINTR) after a kick or immediate_exit."""
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
            signal.pthread_kill(thread, getattr(signal, KICK_SIGNAL))

    def get_regs(self) -> uapi.KvmRegs:
        """KVM_GET_REGS."""
        regs = uapi.KvmRegs()
        self.ioctl(uapi.KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: uapi.KvmRegs) -> None:
        """KVM_SET_REGS."""
        self.ioctl(uapi.KVM_SET_REGS, regs)

    def get_sregs(self) -> uapi.KvmSregs:
        """KVM_GET_SREGS."""
        sregs = uapi.KvmSregs()
        self.ioctl(uapi.KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: uapi.KvmSregs) -> None:
        """KVM_SET_SREGS."""
        self.ioctl(uapi.KVM_SET_SREGS, sregs)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """KVM_GET_MSRS: as many as the kernel gave before the first it does not know."""
        table, entries = _msrs([(index, 0) for index in indices])
        done = self.ioctl(uapi.KVM_GET_MSRS, table)
        return {entry.index: entry.data for entry in entries[:done]}

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were set before the first that was refused."""
        table, _entries = _msrs(list(values))
        return self.ioctl(uapi.KVM_SET_MSRS, table)

    def set_cpuid2(self, entries: Sequence[CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""
        rows = [
            uapi.KvmCpuidEntry2(**entry._asdict())
            for entry in entries
        ]
        head = bytes(uapi.KvmCpuid2(nent=len(rows)))
        self.ioctl(uapi.KVM_SET_CPUID2, bytearray(head + b"".join(map(bytes, rows))))

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: only without the in-kernel irqchip."""
        self.ioctl(uapi.KVM_INTERRUPT, uapi.KvmInterrupt(irq=vector))

    def close(self) -> None:
        """Give the processor back. The shared pages go when nobody looks at them any more."""
        super().close()


def _msrs(values: Sequence[tuple[int, int]]) -> tuple[bytearray, list[uapi.KvmMsrEntry]]:
    """A struct kvm_msrs with its entries, and views of them."""
    rows = [uapi.KvmMsrEntry(index=index, data=data) for index, data in values]
    table = bytearray(bytes(uapi.KvmMsrs(nmsrs=len(rows))) + b"".join(map(bytes, rows)))
    head, row = ctypes.sizeof(uapi.KvmMsrs), ctypes.sizeof(uapi.KvmMsrEntry)
    views = [uapi.KvmMsrEntry.from_buffer(table, head + i * row) for i in range(len(rows))]
    return table, views


def _wake(number: int, frame: FrameType | None) -> None:
    """Nothing: that a signal came is what ends KVM_RUN."""
