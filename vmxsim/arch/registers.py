"""Register numbers and bits as plain integers, because the exit path does arithmetic on them.

SDM Vol. 1, "Basic Program Execution Registers"; Vol. 3, "Control Registers", "Debug Registers",
"Extended Feature Enable Register".
"""

from __future__ import annotations

from enum import IntEnum


class Gpr(IntEnum):
    """General-purpose registers in the order that instructions and exit qualifications encode."""

    RAX = 0
    RCX = 1
    RDX = 2
    RBX = 3
    RSP = 4
    RBP = 5
    RSI = 6
    RDI = 7
    R8 = 8
    R9 = 9
    R10 = 10
    R11 = 11
    R12 = 12
    R13 = 13
    R14 = 14
    R15 = 15


# fmt: off
class Rflags:
    """Bits of RFLAGS. Bit 1 (FIXED) always reads as 1."""

    CF    = 1 << 0
    FIXED = 1 << 1
    PF    = 1 << 2
    AF    = 1 << 4
    ZF    = 1 << 6
    SF    = 1 << 7
    TF    = 1 << 8
    IF    = 1 << 9
    DF    = 1 << 10
    OF    = 1 << 11
    IOPL  = 3 << 12
    IOPL_SHIFT = 12
    NT    = 1 << 14
    RF    = 1 << 16
    VM    = 1 << 17
    AC    = 1 << 18
    VIF   = 1 << 19
    VIP   = 1 << 20
    ID    = 1 << 21

    ARITHMETIC = CF | PF | AF | ZF | SF | OF
    DEFINED = (CF | FIXED | PF | AF | ZF | SF | TF | IF | DF | OF | IOPL | NT
               | RF | VM | AC | VIF | VIP | ID)


class Cr0:
    """Bits of CR0."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31

    DEFINED = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG
    RESET = CD | NW | ET


class Cr3:
    """Fields of CR3."""

    PWT = 1 << 3
    PCD = 1 << 4
    PCID = 0xFFF
    NO_FLUSH = 1 << 63


class Cr4:
    """Bits of CR4."""

    VME        = 1 << 0
    PVI        = 1 << 1
    TSD        = 1 << 2
    DE         = 1 << 3
    PSE        = 1 << 4
    PAE        = 1 << 5
    MCE        = 1 << 6
    PGE        = 1 << 7
    PCE        = 1 << 8
    OSFXSR     = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP       = 1 << 11
    LA57       = 1 << 12
    VMXE       = 1 << 13
    SMXE       = 1 << 14
    FSGSBASE   = 1 << 16
    PCIDE      = 1 << 17
    OSXSAVE    = 1 << 18
    KL         = 1 << 19
    SMEP       = 1 << 20
    SMAP       = 1 << 21
    PKE        = 1 << 22
    CET        = 1 << 23
    PKS        = 1 << 24
    UINTR      = 1 << 25
    LAM_SUP    = 1 << 28
    FRED       = 1 << 32

    DEFINED = (VME | PVI | TSD | DE | PSE | PAE | MCE | PGE | PCE | OSFXSR | OSXMMEXCPT | UMIP
               | LA57 | VMXE | SMXE | FSGSBASE | PCIDE | OSXSAVE | KL | SMEP | SMAP | PKE | CET
               | PKS | UINTR | LAM_SUP | FRED)


class Efer:
    """Bits of IA32_EFER."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11

    DEFINED = SCE | LME | LMA | NXE


class Xcr0:
    """State components of XCR0."""

    X87       = 1 << 0
    SSE       = 1 << 1
    AVX       = 1 << 2
    BNDREGS   = 1 << 3
    BNDCSR    = 1 << 4
    OPMASK    = 1 << 5
    ZMM_HI256 = 1 << 6
    HI16_ZMM  = 1 << 7
    PKRU      = 1 << 9


class Dr6:
    """Bits of DR6. FIXED are the bits that read as 1; RTM and BLD are active low."""

    B0  = 1 << 0
    B1  = 1 << 1
    B2  = 1 << 2
    B3  = 1 << 3
    BLD = 1 << 11
    BD  = 1 << 13
    BS  = 1 << 14
    BT  = 1 << 15
    RTM = 1 << 16

    FIXED = 0xFFFF_0FF0
    VOLATILE = B0 | B1 | B2 | B3 | BD | BS | BT


class Dr7:
    """Bits of DR7. FIXED is the bit that reads as 1."""

    L0 = 1 << 0
    G0 = 1 << 1
    L1 = 1 << 2
    G1 = 1 << 3
    L2 = 1 << 4
    G2 = 1 << 5
    L3 = 1 << 6
    G3 = 1 << 7
    LE = 1 << 8
    GE = 1 << 9
    FIXED = 1 << 10
    RTM = 1 << 11
    GD = 1 << 13

    ENABLED = 0xFF
    RESERVED_ZERO = 1 << 12 | 1 << 14 | 1 << 15
# fmt: on
