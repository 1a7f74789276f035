"""What an EPT violation comes to: always MMIO, because here the slots are mapped from the start.

Linux: arch/x86/kvm/mmu.c (newer: mmu/mmu.c), where most violations are first touches of memory that
is then mapped, and MMIO shows as EPT_MISCONFIG from the second touch on. Left out: all page tables
of the host's own, so dirty logging and large-page splitting with them.
"""

from __future__ import annotations

from vmxsim.arch.paging import ErrorCode
from vmxsim.kvm.guest_memory import is_mmio
from vmxsim.kvm.kvm_host import KvmVcpu
from vmxsim.kvm.run import Run


def kvm_mmu_page_fault(vcpu: KvmVcpu, gpa: int, error_code: int) -> Run:
    """Emulate an access that no slot takes; one that a slot takes by now is simply tried again."""
    if not is_mmio(vcpu, gpa, bool(error_code & ErrorCode.W)):
        return Run.REENTER_GUEST
    # Here and not above: most guests need no emulator, and it takes time to load.
    from vmxsim.kvm.emulator import x86_emulate_instruction

    return x86_emulate_instruction(vcpu)
