"""Requests: what other threads, or earlier steps, want done before the guest runs again.

Linux: include/linux/kvm_host.h. A request is a bit of `vcpu.requests`; setting and clearing take a
lock, because Python's ``|=`` is not atomic; the run loop's "is there any?" is one look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmxsim.kvm.kvm_host import KvmVcpu

KVM_REQ_TLB_FLUSH: Final = 0
KVM_REQ_MMU_RELOAD: Final = 1
"""The memory slots changed: map them anew. Nearest Linux relative: kvm_mmu_reload."""
KVM_REQ_PENDING_TIMER: Final = 2
"""An alarm of the clock is due, or another alarm is the next one now."""
KVM_REQ_UNHALT: Final = 3
KVM_REQ_TRIPLE_FAULT: Final = 5
KVM_REQ_EVENT: Final = 6
"""Look for events to inject before the next entry."""
SIGNAL_PENDING: Final = 31
"""Not a request in Linux: the thread's TIF_SIGPENDING, set by Vcpu.kick(), rides along."""

REQ_SIGNAL: Final = 1 << SIGNAL_PENDING
REQ_EVENT: Final = 1 << KVM_REQ_EVENT


def kvm_make_request(request: int, vcpu: KvmVcpu) -> None:
    """Ask for something before the next entry. Does not stop the guest: kvm_vcpu_kick does."""
    with vcpu.requests_lock:
        vcpu.requests |= 1 << request


def kvm_request_pending(vcpu: KvmVcpu) -> bool:
    """Whether anything at all is asked for."""
    return vcpu.requests != 0


def kvm_test_request(request: int, vcpu: KvmVcpu) -> bool:
    """Whether this is asked for, without taking the request away."""
    return vcpu.requests >> request & 1 != 0


def kvm_clear_request(request: int, vcpu: KvmVcpu) -> None:
    """Take a request away unanswered."""
    with vcpu.requests_lock:
        vcpu.requests &= ~(1 << request)


def kvm_check_request(request: int, vcpu: KvmVcpu) -> bool:
    """Whether this is asked for; the caller answers it, so the bit is cleared."""
    if not vcpu.requests >> request & 1:
        return False
    kvm_clear_request(request, vcpu)
    return True
