"""Which instructions the engine hands over: TCG's own AMD-V intercept words, and their exit codes.

With the guest bit set, an intercepted instruction leaves the engine before it has any effect;
every other instruction runs at full speed. The exit codes are those of AMD-V (APM volume 2, "SVM
Intercept Exit Codes"); what they mean to VMX is the next floor's business.
"""

from __future__ import annotations

from vmxsim.cpu.traps import TrapKind

EXIT_BASE = 0x100
"""The engine reports exit code N as exception number 0x100 + N."""

EXCEPTION_BASE = EXIT_BASE + 0x40
EXIT_INTR = EXIT_BASE + 0x60
EXIT_VINTR = EXIT_BASE + 0x64
EXIT_CPUID = EXIT_BASE + 0x72
EXIT_SHUTDOWN = EXIT_BASE + 0x7F
EXIT_NPF = EXIT_BASE + 0x400

FIRST = 0x60
"""The exit code of bit 0 of the intercept word."""

_ALWAYS = (
    0x60,  # a kick, as a physical interrupt
    0x64,  # interrupt window, as a virtual interrupt
    0x6E,  # RDTSC, RDTSCP
    0x6F,  # RDPMC
    0x72,  # CPUID
    0x73,  # RSM
    0x75,  # INT n, INT3, INTO
    0x76,  # INVD
    0x78,  # HLT
    0x79,  # INVLPG: the engine keeps its own note of where code is mapped
    0x7C,  # RDMSR, WRMSR
    0x7F,  # shutdown
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86,  # AMD-V instructions
    0x88,  # ICEBP
    0x89,  # INVD, WBINVD
    0x8A,  # MONITOR
    0x8B,  # MWAIT
)  # fmt: skip

_ARMED = {
    TrapKind.SIDT: 0x66,
    TrapKind.SGDT: 0x67,
    TrapKind.SLDT: 0x68,
    TrapKind.STR: 0x69,
    TrapKind.LIDT: 0x6A,
    TrapKind.LGDT: 0x6B,
    TrapKind.LLDT: 0x6C,
    TrapKind.LTR: 0x6D,
    TrapKind.PAUSE: 0x77,
}

CR_WRITES = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 8
CR_READS = 1 << 4 | 1 << 8


def intercept_word(armed: frozenset[TrapKind]) -> int:
    """Return the intercept word for the kinds that are armed."""
    word = 0
    for code in _ALWAYS:
        word |= 1 << (code - FIRST)
    for kind, code in _ARMED.items():
        if kind in armed:
            word |= 1 << (code - FIRST)
    return word


def control_register_reads(armed: frozenset[TrapKind]) -> int:
    """Return the intercept word for reads of control registers: CR4 and CR8 always trap."""
    reads = CR_READS
    if TrapKind.MOV_FROM_CR in armed:
        reads |= 1 << 0 | 1 << 3
    if TrapKind.SMSW in armed:
        reads |= 1 << 0
    return reads
