"""CPUID: feature bits by name, and a default processor that claims only what the engine runs.

SDM Vol. 2, instruction reference "CPUID - CPU Identification". Feature names are Linux's.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from vmxsim.arch.capabilities import MAXPHYADDR

SIGNIFICANT_INDEX = 1
"""Flag of an entry that answers only for its own value of ECX (KVM_CPUID_FLAG_SIGNIFCANT_INDEX)."""


class CpuidEntry(NamedTuple):
    """One row of the table: what CPUID answers for EAX = function (and ECX = index)."""

    function: int
    index: int  # type: ignore[assignment]  # tuples have a method of that name
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


class Register(IntEnum):
    """Where a feature bit lives."""

    EAX = 0
    EBX = 1
    ECX = 2
    EDX = 3


class Feature(NamedTuple):
    """A feature bit of a leaf."""

    function: int
    index_ecx: int
    register: Register
    bit: int


_NAMES: tuple[tuple[int, int, Register, str], ...] = (
    (
        1,
        0,
        Register.EDX,
        "FPU VME DE PSE TSC MSR PAE MCE CX8 APIC - SEP MTRR PGE MCA CMOV PAT PSE36 PN CLFLUSH - DS"
        " ACPI MMX FXSR XMM XMM2 SELFSNOOP HT ACC IA64 PBE",
    ),
    (
        1,
        0,
        Register.ECX,
        "XMM3 PCLMULQDQ DTES64 MWAIT DSCPL VMX SMX EST TM2 SSSE3 CID SDBG FMA CX16 XTPR PDCM -"
        " PCID DCA XMM4_1 XMM4_2 X2APIC MOVBE POPCNT TSC_DEADLINE_TIMER AES XSAVE OSXSAVE AVX F16C"
        " RDRAND HYPERVISOR",
    ),
    (6, 0, Register.EAX, "DTHERM IDA ARAT"),
    (
        7,
        0,
        Register.EBX,
        "FSGSBASE TSC_ADJUST SGX BMI1 HLE AVX2 FDP_EXCPTN_ONLY SMEP BMI2 ERMS INVPCID RTM CQM"
        " ZERO_FCS_FDS MPX RDT_A AVX512F AVX512DQ RDSEED ADX SMAP AVX512IFMA - CLFLUSHOPT CLWB"
        " INTEL_PT AVX512PF AVX512ER AVX512CD SHA_NI AVX512BW AVX512VL",
    ),
    (
        7,
        0,
        Register.ECX,
        "PREFETCHWT1 AVX512VBMI UMIP PKU OSPKE WAITPKG AVX512_VBMI2 SHSTK GFNI VAES VPCLMULQDQ"
        " AVX512_VNNI AVX512_BITALG TME AVX512_VPOPCNTDQ - LA57 - - - - - RDPID - BUS_LOCK_DETECT"
        " CLDEMOTE - MOVDIRI MOVDIR64B ENQCMD SGX_LC PKS",
    ),
    (
        7,
        0,
        Register.EDX,
        "- - - - FSRM - - - - - MD_CLEAR - - - SERIALIZE - - - - - IBT - - - - - SPEC_CTRL"
        " INTEL_STIBP FLUSH_L1D ARCH_CAPABILITIES CORE_CAPABILITIES SPEC_CTRL_SSBD",
    ),
    (0xD, 1, Register.EAX, "XSAVEOPT XSAVEC XGETBV1 XSAVES XFD"),
    (
        0x8000_0001,
        0,
        Register.ECX,
        "LAHF_LM CMP_LEGACY SVM EXTAPIC CR8_LEGACY ABM SSE4A MISALIGNSSE PREFETCHW",
    ),
    (
        0x8000_0001,
        0,
        Register.EDX,
        "- - - - - - - - - - - SYSCALL - - - - - - - - NX - - - - - GBPAGES RDTSCP - LM",
    ),
    (0x8000_0007, 0, Register.EDX, "- - - - - - - - CONSTANT_TSC"),
)

FEATURES: dict[str, Feature] = {
    name: Feature(function, index, register, bit)
    for function, index, register, names in _NAMES
    for bit, name in enumerate(names.split())
    if name != "-"
}
"""Feature bits by Linux's X86_FEATURE_ name."""

_DEFAULT = """
    FPU DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR XMM XMM2
    SELFSNOOP XMM3 PCLMULQDQ SSSE3 CX16 XMM4_1 XMM4_2 MOVBE POPCNT AES RDRAND HYPERVISOR
    FSGSBASE BMI1 SMEP BMI2 ERMS RDSEED ADX SMAP CLFLUSHOPT LA57
    LAHF_LM ABM PREFETCHW SYSCALL NX GBPAGES RDTSCP LM CONSTANT_TSC
"""

DEFAULT_FEATURES = frozenset(_DEFAULT.split())
"""What the default processor has. Not: AVX and XSAVE (the engine has no such state), PCID, PKU."""

SIGNATURE = 0x0003_06C3
"""Family 6, model 60, stepping 3: a Haswell, whose guests expect none of what came later."""

BRAND = b"vmxsim virtual processor"
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"
TSC_HZ = 1_000_000_000


def default_model(
    features: Iterable[str] = DEFAULT_FEATURES, hypervisor: bytes | None = KVM_SIGNATURE
) -> tuple[CpuidEntry, ...]:
    """The CPUID table of a processor with these features; KeyError for an unknown name.

    APIC and OSXSAVE follow the machine and CR4, so they are the kernel's to set.
    """
    features = frozenset(features)
    rows = [*_basic_leaves("XSAVE" in features), *_extended_leaves("LA57" in features)]
    if hypervisor is not None:
        rows += ((0x4000_0000, None, (0x4000_0001, *_words(hypervisor))), (0x4000_0001, None, ()))
    bits: dict[tuple[int, int, Register], int] = {}
    for name in features:
        function, index, register, bit = FEATURES[name]
        bits[function, index, register] = bits.get((function, index, register), 0) | 1 << bit
    return tuple(
        CpuidEntry(
            function,
            index or 0,
            0 if index is None else SIGNIFICANT_INDEX,
            *(
                fixed | bits.get((function, index or 0, register), 0)
                for register, fixed in zip(Register, (*values, 0, 0, 0, 0), strict=False)
            ),
        )
        for function, index, values in rows
    )


_Row = tuple[int, "int | None", tuple[int, ...]]
"""Function, index if it matters, and the values of EAX, EBX, ECX, EDX that are no features."""


def _words(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4))


def _cache(kind: int, level: int, ways: int, sets: int) -> tuple[int, ...]:
    """A row of leaf 4 with lines of 64 bytes; kind is 1 for data, 2 for code, 3 for both."""
    return kind | level << 5 | 1 << 8, 63 | ways - 1 << 22, sets - 1


def _basic_leaves(xsave: bool) -> list[_Row]:
    genu, inei, ntel = _words(b"GenuineIntel")
    leaves: list[_Row] = [
        (0, None, (0x16, genu, ntel, inei)),
        (1, None, (SIGNATURE, 1 << 16 | 8 << 8)),
        (2, None, (0xFF01,)),
        (4, 0, _cache(1, 1, 8, 64)),
        (4, 1, _cache(2, 1, 8, 64)),
        (4, 2, _cache(3, 2, 8, 512)),
        (4, 3, ()),
        (6, None, ()),
        (7, 0, ()),
        (0xA, None, ()),
        (0xB, 0, (0, 1, 1 << 8)),
        (0xB, 1, (0, 1, 2 << 8 | 1)),
        (0xB, 2, (0, 0, 2)),
        (0x15, None, (1, 1, TSC_HZ)),
        (0x16, None, (TSC_HZ // 1_000_000, TSC_HZ // 1_000_000, 100)),
    ]
    if xsave:  # x87 and SSE: the legacy area and the header
        leaves += ((0xD, 0, (3, 576, 576)), (0xD, 1, ()))
    return leaves


def _extended_leaves(la57: bool) -> list[_Row]:
    brand = _words(BRAND.ljust(48, b"\0"))
    return [
        (0x8000_0000, None, (0x8000_0008,)),
        (0x8000_0001, None, ()),
        (0x8000_0002, None, brand[0:4]),
        (0x8000_0003, None, brand[4:8]),
        (0x8000_0004, None, brand[8:12]),
        (0x8000_0006, None, (0, 0, 256 << 16 | 6 << 12 | 64)),
        (0x8000_0007, None, ()),
        (0x8000_0008, None, (MAXPHYADDR | (57 if la57 else 48) << 8,)),
    ]


def find(table: Iterable[CpuidEntry], function: int, index: int = 0) -> CpuidEntry | None:
    """The entry that answers EAX = function, ECX = index; None if the table has none."""
    for entry in table:
        if entry.function == function and (
            not entry.flags & SIGNIFICANT_INDEX or entry.index == index
        ):
            return entry
    return None


def has(table: Iterable[CpuidEntry], name: str) -> bool:
    """Whether a CPUID table claims a feature; KeyError for an unknown name."""
    function, index, register, bit = FEATURES[name]
    entry = find(table, function, index)
    return entry is not None and bool(entry[3 + register] >> bit & 1)
