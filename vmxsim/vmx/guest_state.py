"""Where each guest-state field lives in the processor: how VMREAD finds it, how VM entry loads it.

The guest's registers stay in the cpu between a VM exit and the next VM entry, so most exits and
entries move nothing. SDM Vol. 3, "Guest-State Area", "Saving Guest State", "Loading Guest State".
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from typing import NamedTuple, Protocol

from vmxsim.arch.bits import MASK_32
from vmxsim.arch.controls import EntryControls, ExitControls, Interruptibility, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Dr7, Efer, Gpr
from vmxsim.arch.segments import AccessRights, Segment, SegmentRegister, TableRegister
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.interface import Cpu
from vmxsim.vmx.vmcs import Vmcs

Reader = Callable[[], int]

ROOT_CR0 = Cr0.ET
CR0_KEPT = Cr0.ET | Cr0.NW | Cr0.CD | 0x1FF8_0000 | 1 << 17 | 0xFFC0
"""Bits of CR0 that VM entry leaves as they are in root mode, where ET alone is 1."""
SHADOW = Interruptibility.BLOCKING_BY_STI | Interruptibility.BLOCKING_BY_MOV_SS
_FIELD_GAP = 2
_BUSY = 2
PDPTRS = (F.GUEST_PDPTR0, F.GUEST_PDPTR1, F.GUEST_PDPTR2, F.GUEST_PDPTR3)


class Fields(Protocol):
    """Anything that gives a field's value."""

    def __getitem__(self, field: int) -> int:
        """The field's value."""
        ...


# ---- reading -----------------------------------------------------------------------------------


def guest_readers(cpu: Cpu, current: Callable[[], Vmcs]) -> dict[int, Reader]:
    """For each field that a loaded guest has in the cpu, a function that reads it there.

    ``current`` gives the VMCS whose guest it is.
    """
    readers: dict[int, Reader] = {
        F.GUEST_RIP: lambda: cpu.rip,
        F.GUEST_RFLAGS: lambda: cpu.rflags,
        F.GUEST_RSP: lambda: cpu.gpr[Gpr.RSP],
        F.GUEST_CR0: lambda: cpu.cr0,
        F.GUEST_CR3: lambda: cpu.cr3,
        F.GUEST_CR4: lambda: cpu.cr4,
        F.GUEST_GDTR_BASE: lambda: cpu.gdtr.base,
        F.GUEST_GDTR_LIMIT: lambda: cpu.gdtr.limit,
        F.GUEST_IDTR_BASE: lambda: cpu.idtr.base,
        F.GUEST_IDTR_LIMIT: lambda: cpu.idtr.limit,
        F.GUEST_SYSENTER_CS: lambda: cpu.msr(Msr.IA32_SYSENTER_CS) & MASK_32,
        F.GUEST_SYSENTER_ESP: lambda: cpu.msr(Msr.IA32_SYSENTER_ESP),
        F.GUEST_SYSENTER_EIP: lambda: cpu.msr(Msr.IA32_SYSENTER_EIP),
    }
    for segment in Segment:
        step = _FIELD_GAP * segment
        readers[F.GUEST_ES_SELECTOR + step] = partial(_selector, cpu, segment)
        readers[F.GUEST_ES_BASE + step] = partial(_base, cpu, segment)
        readers[F.GUEST_ES_LIMIT + step] = partial(_limit, cpu, segment)
        readers[F.GUEST_ES_AR_BYTES + step] = partial(_rights, cpu, segment)
    return readers | _conditional_readers(cpu, current)


def _conditional_readers(cpu: Cpu, current: Callable[[], Vmcs]) -> dict[int, Reader]:
    """The fields that a VM exit saves only under a control, or mixes with what it does not."""

    def saved(bit: int, field: int, read: Reader) -> Reader:
        def reader() -> int:
            vmcs = current()
            return read() if vmcs.exit_controls & bit else vmcs.fields[field]

        return reader

    def entry_controls() -> int:
        controls = current().fields[F.VM_ENTRY_CONTROLS] & ~EntryControls.IA32E_MODE_GUEST
        return controls | (EntryControls.IA32E_MODE_GUEST if cpu.efer & Efer.LMA else 0)

    def interruptibility() -> int:
        return current().fields[F.GUEST_INTERRUPTIBILITY_INFO] & ~SHADOW | cpu.shadow

    def pdpte(number: int) -> int:
        vmcs = current()
        ept = vmcs.secondary & Secondary.ENABLE_EPT
        if not ept or cpu.efer & Efer.LMA or not (cpu.cr0 & Cr0.PG and cpu.cr4 & Cr4.PAE):
            return vmcs.fields[PDPTRS[number]]
        return memory_pdpte(cpu, cpu.cr3, number)

    readers: dict[int, Reader] = {
        F.VM_ENTRY_CONTROLS: entry_controls,
        F.GUEST_INTERRUPTIBILITY_INFO: interruptibility,
        F.GUEST_DR7: saved(ExitControls.SAVE_DEBUG_CONTROLS, F.GUEST_DR7, lambda: cpu.dr[7]),
        F.GUEST_IA32_PAT: saved(
            ExitControls.SAVE_PAT, F.GUEST_IA32_PAT, lambda: cpu.msr(Msr.IA32_PAT)
        ),
        F.GUEST_IA32_EFER: saved(
            ExitControls.SAVE_EFER, F.GUEST_IA32_EFER, lambda: cpu.efer
        ),
    }  # fmt: skip
    for number, field in enumerate(PDPTRS):
        readers[field] = partial(pdpte, number)
    return readers


def _selector(cpu: Cpu, segment: int) -> int:
    return cpu.segment(segment).selector


def _base(cpu: Cpu, segment: int) -> int:
    return cpu.segment(segment).base


def _limit(cpu: Cpu, segment: int) -> int:
    return cpu.segment(segment).limit


def _rights(cpu: Cpu, segment: int) -> int:
    """Access rights with the bits that loading the register sets: accessed, and busy in TR."""
    rights = cpu.segment(segment).access_rights
    if rights & AccessRights.UNUSABLE:
        return rights
    if segment == Segment.TR:
        return rights | _BUSY
    return rights | AccessRights.ACCESSED if rights & AccessRights.S else rights


def memory_pdpte(cpu: Cpu, cr3: int, number: int) -> int:
    """A page-directory-pointer-table entry from memory; not present where nothing backs it."""
    gpa = (cr3 & 0xFFFF_FFE0) + 8 * number
    return int.from_bytes(cpu.memory.read(gpa, 8), "little") if cpu.memory.backed(gpa, 8) else 0


# ---- loading -----------------------------------------------------------------------------------


class Group(NamedTuple):
    """Fields that are loaded together, and how."""

    fields: frozenset[int]
    load: Callable[[Fields, Cpu], None]


def _load_efer(fields: Fields, cpu: Cpu) -> None:
    controls = fields[F.VM_ENTRY_CONTROLS]
    long_mode = controls & EntryControls.IA32E_MODE_GUEST != 0
    if controls & EntryControls.LOAD_EFER:
        cpu.efer = fields[F.GUEST_IA32_EFER]
        return
    changed = Efer.LMA | (Efer.LME if fields[F.GUEST_CR0] & Cr0.PG else 0)
    cpu.efer = cpu.efer | changed if long_mode else cpu.efer & ~changed


def _load_cr0(fields: Fields, cpu: Cpu) -> None:
    cpu.cr0 = fields[F.GUEST_CR0] & MASK_32 & ~CR0_KEPT | ROOT_CR0


def _load_cr3(fields: Fields, cpu: Cpu) -> None:
    cpu.cr3 = fields[F.GUEST_CR3]


def _load_cr4(fields: Fields, cpu: Cpu) -> None:
    cpu.cr4 = fields[F.GUEST_CR4]


def _load_dr7(fields: Fields, cpu: Cpu) -> None:
    if fields[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_DEBUG_CONTROLS:
        cpu.dr[7] = fields[F.GUEST_DR7] & MASK_32 & ~Dr7.RESERVED_ZERO | Dr7.FIXED


def _load_sysenter(fields: Fields, cpu: Cpu) -> None:
    cpu.set_msr(Msr.IA32_SYSENTER_CS, fields[F.GUEST_SYSENTER_CS])
    cpu.set_msr(Msr.IA32_SYSENTER_ESP, fields[F.GUEST_SYSENTER_ESP])
    cpu.set_msr(Msr.IA32_SYSENTER_EIP, fields[F.GUEST_SYSENTER_EIP])


def _load_pat(fields: Fields, cpu: Cpu) -> None:
    if fields[F.VM_ENTRY_CONTROLS] & EntryControls.LOAD_PAT:
        cpu.set_msr(Msr.IA32_PAT, fields[F.GUEST_IA32_PAT])


def _load_segment(segment: int, fields: Fields, cpu: Cpu) -> None:
    step = _FIELD_GAP * segment
    cpu.set_segment(
        segment,
        SegmentRegister(
            fields[F.GUEST_ES_SELECTOR + step],
            fields[F.GUEST_ES_BASE + step],
            fields[F.GUEST_ES_LIMIT + step],
            fields[F.GUEST_ES_AR_BYTES + step],
        ),
    )


def _load_gdtr(fields: Fields, cpu: Cpu) -> None:
    cpu.gdtr = TableRegister(fields[F.GUEST_GDTR_BASE], fields[F.GUEST_GDTR_LIMIT])


def _load_idtr(fields: Fields, cpu: Cpu) -> None:
    cpu.idtr = TableRegister(fields[F.GUEST_IDTR_BASE], fields[F.GUEST_IDTR_LIMIT])


def _load_rsp(fields: Fields, cpu: Cpu) -> None:
    cpu.gpr[Gpr.RSP] = fields[F.GUEST_RSP]


def _load_rip(fields: Fields, cpu: Cpu) -> None:
    cpu.rip = fields[F.GUEST_RIP]


def _load_rflags(fields: Fields, cpu: Cpu) -> None:
    cpu.rflags = fields[F.GUEST_RFLAGS]


def _load_interruptibility(fields: Fields, cpu: Cpu) -> None:
    cpu.shadow = fields[F.GUEST_INTERRUPTIBILITY_INFO] & SHADOW


def _group(load: Callable[[Fields, Cpu], None], *fields: int) -> Group:
    return Group(frozenset(int(field) for field in fields), load)


def _segment_group(segment: int) -> Group:
    firsts = (F.GUEST_ES_SELECTOR, F.GUEST_ES_BASE, F.GUEST_ES_LIMIT, F.GUEST_ES_AR_BYTES)
    fields = (first + _FIELD_GAP * segment for first in firsts)
    return _group(partial(_load_segment, segment), *fields)


GROUPS: tuple[Group, ...] = (
    # "Loading Guest Control Registers, Debug Registers, and MSRs"
    _group(_load_cr0, F.GUEST_CR0),
    _group(_load_cr4, F.GUEST_CR4),
    _group(_load_cr3, F.GUEST_CR3),
    _group(_load_dr7, F.GUEST_DR7, F.VM_ENTRY_CONTROLS),
    _group(_load_sysenter, F.GUEST_SYSENTER_CS, F.GUEST_SYSENTER_ESP, F.GUEST_SYSENTER_EIP),
    _group(_load_pat, F.GUEST_IA32_PAT, F.VM_ENTRY_CONTROLS),
    _group(_load_efer, F.GUEST_IA32_EFER, F.VM_ENTRY_CONTROLS, F.GUEST_CR0),
    # "Loading Guest Segment Registers and Descriptor-Table Registers"
    *(_segment_group(segment) for segment in Segment),
    _group(_load_gdtr, F.GUEST_GDTR_BASE, F.GUEST_GDTR_LIMIT),
    _group(_load_idtr, F.GUEST_IDTR_BASE, F.GUEST_IDTR_LIMIT),
    # "Loading Guest RIP, RSP, RFLAGS, and SSP"
    _group(_load_rsp, F.GUEST_RSP),
    _group(_load_rip, F.GUEST_RIP),
    _group(_load_rflags, F.GUEST_RFLAGS),
    # "Updating Non-Register State"
    _group(_load_interruptibility, F.GUEST_INTERRUPTIBILITY_INFO),
)
LOADED: frozenset[int] = frozenset().union(*(group.fields for group in GROUPS))


def load_guest_state(fields: Fields, cpu: Cpu, changed: Set[int]) -> None:
    """Load the registers whose fields changed, in the manual's order."""
    for group in GROUPS:
        if not group.fields.isdisjoint(changed):
            group.load(fields, cpu)
