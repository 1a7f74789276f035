"""Registers as text, in the layout of QEMU's `info registers`."""

from __future__ import annotations

from vmxsim.arch.registers import Efer
from vmxsim.kvm.uapi import KvmRegs, KvmSegment, KvmSregs

GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
FLAGS = (("D", 10), ("O", 11), ("S", 7), ("Z", 6), ("A", 4), ("P", 2), ("C", 0))


def dump_registers(regs: KvmRegs, sregs: KvmSregs) -> str:
    """General, segment, table and control registers; 32-bit names outside of long mode."""
    wide = bool(sregs.efer & Efer.LMA)
    digits = 16 if wide else 8
    lines = [
        " ".join(_general(regs, name, wide) for name in row)
        for row in (GENERAL if wide else GENERAL[:2])
    ]
    flags = "".join(letter if regs.rflags >> bit & 1 else "-" for letter, bit in FLAGS)
    ip = "RIP" if wide else "EIP"
    lines.append(
        f"{ip}={regs.rip:0{digits}x} {ip[0]}FL={regs.rflags:08x} [{flags}] CPL={sregs.ss.dpl} "
        f"II={int(not regs.rflags >> 9 & 1)}"
    )
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"):
        lines.append(_segment(name, getattr(sregs, name), digits))
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        lines.append(f"{name.upper()}=     {table.base:0{digits}x} {table.limit:08x}")
    lines.append(
        f"CR0={sregs.cr0:08x} CR2={sregs.cr2:0{digits}x} CR3={sregs.cr3:0{digits}x} "
        f"CR4={sregs.cr4:08x}"
    )
    lines.append(f"EFER={sregs.efer:016x}")
    return "\n".join(lines) + "\n"


def _general(regs: KvmRegs, name: str, wide: bool) -> str:
    value = getattr(regs, name)
    if wide:
        return f"{name.upper():3}={value:016x}"
    return f"E{name[1:].upper()}={value & 0xFFFF_FFFF:08x}"


def _segment(name: str, segment: KvmSegment, digits: int) -> str:
    rights = (
        segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
        | segment.avl << 12 | segment.l << 13 | segment.db << 14 | segment.g << 15
    )  # fmt: skip
    unusable = " unusable" if segment.unusable else ""
    return (
        f"{name.upper():3}={segment.selector:04x} {segment.base:0{digits}x} "
        f"{segment.limit:08x} {rights << 8:08x}{unusable}"
    )
