"""What this floor needs of KVM, as Protocols: kvm.api has it all, and so has a real /dev/kvm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmxsim.arch.cpuid import CpuidEntry
    from vmxsim.kvm.uapi import KvmRegs, KvmRun, KvmSregs


class Vcpu(Protocol):
    """A virtual processor: a descriptor of KVM_CREATE_VCPU and its shared pages."""

    kvm_run: KvmRun

    def run(self) -> None:
        """KVM_RUN; KvmError(EINTR) after a kick or with immediate_exit set."""

    def kick(self) -> None:
        """End run() from another thread, or the next one at once."""

    def get_regs(self) -> KvmRegs:
        """KVM_GET_REGS."""

    def set_regs(self, regs: KvmRegs) -> None:
        """KVM_SET_REGS."""

    def get_sregs(self) -> KvmSregs:
        """KVM_GET_SREGS."""

    def set_sregs(self, sregs: KvmSregs) -> None:
        """KVM_SET_SREGS."""

    def set_cpuid2(self, entries: Sequence[CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT; only without the in-kernel irqchip."""

    def close(self) -> None:
        """Close the descriptor."""


class Vm(Protocol):
    """A virtual machine: a descriptor of KVM_CREATE_VM."""

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: memoryview, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION."""

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2."""

    def irq_line(self, irq: int, level: int) -> object:
        """KVM_IRQ_LINE; from any thread. What became of it is not looked at."""

    def create_vcpu(self, id: int) -> Vcpu:
        """KVM_CREATE_VCPU."""

    def close(self) -> None:
        """Close the descriptor, after those of its vCPUs."""


class Kvm(Protocol):
    """/dev/kvm itself."""

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION."""

    def get_supported_cpuid(self) -> Sequence[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID."""

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM."""
