"""Start states: the registers and tables a guest finds in real, protected or long mode.

    real        CS:IP at the entry, other segments 0, SP 0x7000, IDT the vector table at 0,
                interrupts off
    protected   CR0 0x11 (PE, ET), paging off; flat 32-bit CS 0x08, DS ES SS FS GS 0x10, as
                multiboot has it; ESP 0x90000
    long        the first 4 GB mapped to themselves with 2 MB pages, open to the supervisor only;
                CR0 0x80010033, CR4 0x620 (PAE, OSFXSR, OSXMMEXCPT), EFER 0xd00 (LME, LMA, NXE);
                64-bit CS 0x08, DS ES SS FS GS 0x10, TR 0x20; RSP 0x90000

General registers are 0, and protected and long mode start without an IDT: until the guest loads
one, an exception is a triple fault. What a mode needs in memory goes to the first low pages that
the image leaves free, counted from 0x1000:

    real        nothing
    protected   1 page    GDT: null, code 0x08, data 0x10, 64-bit code 0x18; TSS 0x20 at offset 0x80
    long        7 pages   the same with 64-bit code at 0x08 and 32-bit code at 0x18;
                          then PML4, PDPT, four page directories

A stack that would lie in the image is moved to the end of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from vmxsim.arch.registers import Cr0, Cr4, Efer, Rflags
from vmxsim.arch.segments import AccessRights, Descriptor, SystemType
from vmxsim.errors import InputError
from vmxsim.kvm.uapi import KvmDtable, KvmRegs, KvmSegment, KvmSregs
from vmxsim.vmm.config import Mode
from vmxsim.vmm.image import Image

PAGE = 4096
CODE, DATA, OTHER_CODE, TSS = 0x08, 0x10, 0x18, 0x20
TSS_OFFSET = 0x80
TSS_SIZE = 104
TABLES_OFFSET = PAGE
LOW_MEMORY_END = 0xA_0000
FIRST_TABLE = 0x1000
STACK_ROOM = 0x1000
REAL_STACK, FLAT_STACK = 0x7000, 0x9_0000
REAL_MODE_END = 0x10_FFF0

PRESENT_WRITABLE = 0x3
LARGE_PAGE = 0x80
LARGE_PAGE_SIZE = 2 << 20

LONG_CR0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
LONG_CR4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
LONG_EFER = Efer.LME | Efer.LMA | Efer.NXE

Write: TypeAlias = Callable[[int, bytes], None]
"""(guest-physical address, bytes) into the guest's memory."""


class StartState(NamedTuple):
    """Where things were put; what registers cannot show is for messages and tests."""

    regs: KvmRegs
    sregs: KvmSregs
    tables: int | None
    """Guest-physical address of the GDT and what follows it; None in real mode."""


def start_state(image: Image, memory: int, write: Write, sregs: KvmSregs) -> StartState:
    """Write the tables of the image's mode, and build its registers.

    `sregs` is what KVM_GET_SREGS gave after creation: what a mode does not care about stays.
    """
    build = {Mode.REAL: _real, Mode.PROTECTED: _protected, Mode.LONG: _long}[image.mode]
    regs = KvmRegs(rflags=Rflags.FIXED)
    tables = build(image, memory, write, regs, sregs)
    return StartState(regs, sregs, tables)


def _real(image: Image, memory: int, write: Write, regs: KvmRegs, sregs: KvmSregs) -> None:
    entry = image.entry
    if entry >= REAL_MODE_END:
        raise InputError(
            f"{image.name}: real mode cannot start at {entry:#x}: it reaches 0x0..0x10ffef"
        )
    selector = (
        0
        if entry < 1 << 16
        else min(entry >> 4, 0xFFFF) & 0xF000 | (0xFFF if entry >= 1 << 20 else 0)
    )
    code = AccessRights.REAL_CODE
    sregs.cs = kvm_segment(selector, selector << 4, 0xFFFF, code)
    for name in ("ds", "es", "ss", "fs", "gs"):
        setattr(sregs, name, kvm_segment(0, 0, 0xFFFF, AccessRights.REAL_DATA))
    sregs.ldt = kvm_segment(0, 0, 0xFFFF, AccessRights.LDT)
    sregs.tr = kvm_segment(0, 0, 0xFFFF, AccessRights.BUSY_TSS)
    sregs.gdt = KvmDtable(base=0, limit=0xFFFF)
    sregs.idt = KvmDtable(base=0, limit=0x3FF)
    sregs.cr0, sregs.cr4, sregs.efer = Cr0.ET, 0, 0
    regs.rip = entry - (selector << 4)
    regs.rsp = _stack(image, REAL_STACK, min(memory, 0xF000))


def _protected(image: Image, memory: int, write: Write, regs: KvmRegs, sregs: KvmSregs) -> int:
    base = _place(image, memory, PAGE)
    stack = _stack(image, FLAT_STACK, memory)
    write(base, _gdt(AccessRights.FLAT_CODE32, AccessRights.FLAT_CODE64, base))
    write(base + TSS_OFFSET, bytes(TSS_SIZE))
    _flat_segments(sregs, base, AccessRights.FLAT_CODE32)
    sregs.cr0, sregs.cr4, sregs.efer = Cr0.PE | Cr0.ET, 0, 0
    regs.rip, regs.rsp = image.entry, stack
    return base


def _long(image: Image, memory: int, write: Write, regs: KvmRegs, sregs: KvmSregs) -> int:
    base = _place(image, memory, 7 * PAGE)
    stack = _stack(image, FLAT_STACK, memory)
    write(base, _gdt(AccessRights.FLAT_CODE64, AccessRights.FLAT_CODE32, base))
    # RSP0 at offset 4; the I/O map at offset 102 lies behind the limit: no port is open to users.
    tss = bytes(4) + stack.to_bytes(8, "little") + bytes(90) + TSS_SIZE.to_bytes(2, "little")
    write(base + TSS_OFFSET, tss)
    write(base + TABLES_OFFSET, identity_map(base + TABLES_OFFSET))
    _flat_segments(sregs, base, AccessRights.FLAT_CODE64)
    sregs.cr0, sregs.cr4, sregs.efer = LONG_CR0, LONG_CR4, LONG_EFER
    sregs.cr3 = base + TABLES_OFFSET
    regs.rip, regs.rsp = image.entry, stack
    return base


def identity_map(base: int) -> bytes:
    """Six pages for address `base`: PML4, PDPT and four page directories of 2 MB pages."""
    pml4, pdpt, directories = base, base + PAGE, base + 2 * PAGE
    entries = [pdpt | PRESENT_WRITABLE, *[0] * 511]
    entries += [directories + i * PAGE | PRESENT_WRITABLE for i in range(4)] + [0] * 508
    entries += [i * LARGE_PAGE_SIZE | LARGE_PAGE | PRESENT_WRITABLE for i in range(4 * 512)]
    assert pml4 % PAGE == 0
    return b"".join(entry.to_bytes(8, "little") for entry in entries)


def _gdt(code: int, other_code: int, base: int) -> bytes:
    flat = (1 << 32) - 1
    tss = Descriptor(base + TSS_OFFSET, TSS_SIZE - 1, AccessRights.P | SystemType.TSS_BUSY)
    descriptors = (Descriptor(0, flat, rights) for rights in
                   (code, AccessRights.FLAT_DATA32, other_code))  # fmt: skip
    return bytes(8) + b"".join(d.to_bytes() for d in descriptors) + tss.to_bytes(16)


def _flat_segments(sregs: KvmSregs, base: int, code: int) -> None:
    flat = (1 << 32) - 1
    sregs.cs = kvm_segment(CODE, 0, flat, code)
    for name in ("ds", "es", "ss", "fs", "gs"):
        setattr(sregs, name, kvm_segment(DATA, 0, flat, AccessRights.FLAT_DATA32))
    sregs.ldt = kvm_segment(0, 0, 0, AccessRights.UNUSABLE)
    sregs.tr = kvm_segment(TSS, base + TSS_OFFSET, TSS_SIZE - 1, AccessRights.BUSY_TSS)
    sregs.gdt = KvmDtable(base=base, limit=0x2F)
    sregs.idt = KvmDtable(base=0, limit=0)


def kvm_segment(selector: int, base: int, limit: int, rights: int) -> KvmSegment:
    """A struct kvm_segment from access rights in the VMCS's layout."""
    return KvmSegment(
        base=base,
        limit=limit,
        selector=selector,
        type=rights & 0xF,
        s=rights >> 4 & 1,
        dpl=rights >> 5 & 3,
        present=rights >> 7 & 1,
        avl=rights >> 12 & 1,
        l=rights >> 13 & 1,
        db=rights >> 14 & 1,
        g=rights >> 15 & 1,
        unusable=rights >> 16 & 1,
    )


def _place(image: Image, memory: int, size: int) -> int:
    """The first free pages of low memory."""
    for base in range(FIRST_TABLE, min(memory, LOW_MEMORY_END) - size + 1, PAGE):
        if not image.overlaps(base, size):
            return base
    raise InputError(
        f"{image.name}: no {size // PAGE} free pages below {LOW_MEMORY_END:#x} for the tables of "
        f"{image.mode.value} mode (the image stands at {image.describe()})"
    )


def _stack(image: Image, usual: int, end: int) -> int:
    """The usual top of the stack, or the end of memory when the image or the end is in its way."""
    free = usual <= end and not image.overlaps(usual - STACK_ROOM, STACK_ROOM)
    return usual if free else end
