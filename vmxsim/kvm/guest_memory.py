"""Guest memory from the kernel's side: slots, the guest's page tables, reads and writes.

Linux: the slot lookups of virt/kvm/kvm_main.c, the translation callbacks of arch/x86/kvm/x86.c and
paging_tmpl.h. The slots are mapped in the processor directly: there are no shadow or EPT tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vmxsim.arch.paging import Access, ErrorCode, PageFault, Translation, walk
from vmxsim.arch.registers import Rflags
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.kvm.kvm_host import KvmVcpu, MemorySlot
from vmxsim.kvm.requests import KVM_REQ_MMU_RELOAD, kvm_clear_request
from vmxsim.kvm.uapi import KVM_MEM_READONLY, PAGE_SIZE
from vmxsim.kvm.vmx_ops import vmcs_readl

_CR0 = VmcsField.GUEST_CR0
_CR3 = VmcsField.GUEST_CR3
_CR4 = VmcsField.GUEST_CR4
_EFER = VmcsField.GUEST_IA32_EFER
_RFLAGS = VmcsField.GUEST_RFLAGS
_SS_AR = VmcsField.GUEST_SS_AR_BYTES


class Mmio(NamedTuple):
    """Guest-physical addresses that no slot answers for."""

    gpa: int
    length: int


def kvm_mmu_reload(vcpu: KvmVcpu) -> None:
    """Map the VM's present slots in the processor, and unmap what is no more."""
    kvm_clear_request(KVM_REQ_MMU_RELOAD, vcpu)
    wanted, mapped, memory = vcpu.vm.slots, vcpu.slots, vcpu.processor.memory
    for number, slot in mapped.items():
        if wanted.get(number) is not slot:
            memory.unmap(slot.gpa, slot.size)
    for number, slot in wanted.items():
        if mapped.get(number) is not slot:
            memory.map(slot.gpa, slot.memory, readonly=bool(slot.flags & KVM_MEM_READONLY))
    with vcpu.wait_condition:
        vcpu.slots = wanted
        vcpu.wait_condition.notify_all()


def gfn_to_memslot(slots: dict[int, MemorySlot], gpa: int) -> MemorySlot | None:
    """The slot that backs an address. (Linux takes a frame number.)"""
    for slot in slots.values():
        if slot.gpa <= gpa < slot.gpa + slot.size:
            return slot
    return None


def is_mmio(vcpu: KvmVcpu, gpa: int, write: bool) -> bool:
    """Whether userspace must answer for the address."""
    slot = gfn_to_memslot(vcpu.slots, gpa)
    return slot is None or (write and slot.flags & KVM_MEM_READONLY != 0)


def kvm_mmu_gva_to_gpa(
    vcpu: KvmVcpu, gva: int, access: int, user: bool | None = None
) -> int | PageFault:
    """Walk the guest's page tables; `user` None means by CPL. Accessed and dirty flags are set."""
    memory = vcpu.processor.memory
    if user is None:
        user = vmcs_readl(vcpu, _SS_AR) >> 5 & 3 == 3

    def read(gpa: int, size: int) -> int:
        return int.from_bytes(memory.read(gpa, size), "little")

    def write(gpa: int, size: int, entry: int) -> None:
        if not is_mmio(vcpu, gpa, True):
            memory.write(gpa, entry.to_bytes(size, "little"))

    try:
        found = walk(
            read, vmcs_readl(vcpu, _CR0), vmcs_readl(vcpu, _CR3), vmcs_readl(vcpu, _CR4),
            vmcs_readl(vcpu, _EFER), bool(vmcs_readl(vcpu, _RFLAGS) & Rflags.AC), gva, access,
            user, write=write,
        )  # fmt: skip
    except LookupError:  # page tables in no slot: KVM reports the page as not present
        code = (ErrorCode.W if access == Access.WRITE else 0) | (ErrorCode.U if user else 0)
        return PageFault(gva, code)
    return found.gpa if isinstance(found, Translation) else found


def pages(gva: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut a linear range at page borders: (offset from the start, address, length)."""
    done = 0
    while done < length:
        part = min(length - done, PAGE_SIZE - (gva + done) % PAGE_SIZE)
        yield done, gva + done, part
        done += part


def kvm_read_guest_virt(
    vcpu: KvmVcpu, gva: int, length: int, access: int = Access.READ, user: bool | None = None
) -> bytes | PageFault | Mmio:
    """Read through the guest's page tables, up to the first byte that faults or is MMIO."""
    data = b""
    for _, address, part in pages(gva, length):
        gpa = kvm_mmu_gva_to_gpa(vcpu, address, access, user)
        if isinstance(gpa, PageFault):
            return gpa
        if is_mmio(vcpu, gpa, False):
            return Mmio(gpa, part)
        data += vcpu.processor.memory.read(gpa, part)
    return data


def kvm_write_guest_virt(
    vcpu: KvmVcpu, gva: int, data: bytes, user: bool | None = None
) -> PageFault | Mmio | None:
    """Write through the guest's page tables. Nothing is written when any page faults."""
    targets: list[tuple[int, bytes]] = []
    for start, address, part in pages(gva, len(data)):
        gpa = kvm_mmu_gva_to_gpa(vcpu, address, Access.WRITE, user)
        if isinstance(gpa, PageFault):
            return gpa
        if is_mmio(vcpu, gpa, True):
            return Mmio(gpa, part)
        targets.append((gpa, data[start : start + part]))
    for gpa, piece in targets:
        vcpu.processor.memory.write(gpa, piece)
    return None
