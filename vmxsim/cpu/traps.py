"""The frozen records the engine hands up: one trap per stop, state exactly at the instruction.

Every record is a NamedTuple whose first field is its kind, so that callers dispatch on ``trap[0]``
and compare or print records as they are.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias


class TrapKind(IntEnum):
    """Why the engine stopped: an instruction by its mnemonic, or an event."""

    CPUID = 1
    HLT = 2
    INVD = 3
    WBINVD = 4
    INVLPG = 5
    INVPCID = 6
    RDPMC = 7
    RDTSC = 8
    RDTSCP = 9
    RDRAND = 10
    RDSEED = 11
    RDMSR = 12
    WRMSR = 13
    MOV_TO_CR = 14
    MOV_FROM_CR = 15
    CLTS = 16
    LMSW = 17
    SMSW = 18
    MOV_DR = 19
    IO = 20
    LGDT = 21
    LIDT = 22
    SGDT = 23
    SIDT = 24
    LLDT = 25
    LTR = 26
    SLDT = 27
    STR = 28
    MONITOR = 29
    MWAIT = 30
    PAUSE = 31
    XSETBV = 32
    VMCALL = 33
    VMCLEAR = 34
    VMLAUNCH = 35
    VMPTRLD = 36
    VMPTRST = 37
    VMREAD = 38
    VMRESUME = 39
    VMWRITE = 40
    VMXOFF = 41
    VMXON = 42
    INVEPT = 43
    INVVPID = 44
    VMFUNC = 45
    RSM = 46
    INT_N = 47
    INT3 = 48
    INTO = 49
    ICEBP = 50
    SYSCALL = 51
    SYSENTER = 52
    XSAVES = 53
    XRSTORS = 54
    XGETBV = 55
    GETSEC = 56
    RDPID = 57
    ENCLS = 58
    EXCEPTION = 59
    MEMORY = 60
    KICK = 61
    INTERRUPT_WINDOW = 62
    BUDGET = 63
    BOUNCED = 64
    CMPXCHG8B = 65


class OperandKind(IntEnum):
    """What an instruction's operand names."""

    GPR = 0
    HIGH8 = 1  # AH CH DH BH: index 0..3
    SEGMENT = 2
    CR = 3
    DR = 4
    XMM = 5
    MEMORY = 6
    IMMEDIATE = 7
    OTHER = 8


RIP_BASE = 16


class Operand(NamedTuple):
    """One operand: ``size`` in bytes; for memory ``index`` is the segment, ``base`` 16 is RIP."""

    kind: OperandKind
    size: int
    index: int = 0  # type: ignore[assignment]  # shadows tuple.index, which nobody needs
    value: int = 0
    base: int = -1
    index_reg: int = -1
    scale: int = 1
    disp: int = 0


class Instruction(NamedTuple):
    """One decoded instruction: lengths and sizes in bytes, ``bits`` 16, 32 or 64."""

    mnemonic: str
    code: bytes
    length: int
    bits: int
    operand_size: int
    address_size: int
    rep: int
    lock: bool
    segment_override: int
    operands: tuple[Operand, ...]


class InsnTrap(NamedTuple):
    """An instruction the engine will not run by itself."""

    kind: TrapKind
    rip: int
    insn: Instruction


class IoTrap(NamedTuple):
    """IN, OUT, INS or OUTS: ``size`` in bytes; ``value`` is what OUT would write, 0 otherwise.

    Of kind BOUNCED: a plain IN or OUT that the port table's bounce function has seen already;
    ``value`` is 0, since that function has it.
    """

    kind: TrapKind
    rip: int
    insn: Instruction
    is_in: bool
    port: int
    size: int
    value: int
    string: bool
    rep: bool


class ExceptionTrap(NamedTuple):
    """A hardware exception: ``address`` is a #PF's linear address, or a #DB's DR6 bits."""

    kind: TrapKind
    rip: int
    vector: int
    error_code: int
    address: int
    insn: Instruction | None


class MemoryTrap(NamedTuple):
    """A guest-physical access to nothing, or a write to read-only memory (``present``).

    ``access`` is 0 for a read, 1 for a write, 2 for an instruction fetch; ``size`` is in bytes;
    ``gva`` is None when unknown.
    """

    kind: TrapKind
    rip: int
    gpa: int
    size: int
    access: int
    value: int
    gva: int | None
    present: bool


class EventTrap(NamedTuple):
    """The guest stopped between two instructions: KICK, INTERRUPT_WINDOW or BUDGET."""

    kind: TrapKind
    rip: int


Trap: TypeAlias = InsnTrap | IoTrap | ExceptionTrap | MemoryTrap | EventTrap
