"""One row per instruction that can exit: its bytes, the control that asks for it, what is recorded.

Every register that addresses memory holds DATA, so that ModRM 7 means [bx], [edi] or [rdi] and the
same bytes serve in every mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vmxsim.arch.controls import CpuBased, Secondary
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.instruction_info import (
    GdtrIdtrInfo,
    LdtrTrInfo,
    MemoryAddress,
    RandomInfo,
    StringIoInfo,
    SystemSegmentInstruction,
    TableInstruction,
    VmxInstructionInfo,
)
from vmxsim.arch.qualifications import (
    CrAccess,
    CrQualification,
    Direction,
    DrQualification,
    IoQualification,
)
from vmxsim.arch.vmcs_fields import VmcsField as F

from .harness import ALL, CR0, CR4, DATA, GDT, LONG, ONES, PROTECTED, REAL, ZEROS, Guest

EXIT, GP, UD, NOT = "exit", 13, 6, None
"""What happens at CPL 3: the exit all the same, a fault that comes first, or not tried."""

NOTHING: Mapping[F, int] = {}
PM = (PROTECTED, LONG)
PRIMARY, SECONDARY = F.CPU_BASED_VM_EXEC_CONTROL, F.SECONDARY_VM_EXEC_CONTROL

PerMode = int | Callable[[str], int]
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
ALL_ONES = (1 << 64) - 1


class Case(NamedTuple):
    """``guest`` is bytes and text; ``clear`` says what the instruction did when nobody asked."""

    guest: str
    reason: ExitReason
    control: Mapping[F, int] = NOTHING
    modes: tuple[str, ...] = ALL
    qualification: PerMode = 0
    info: PerMode | None = None
    user: str | int | None = GP
    base: Mapping[F, int] = NOTHING
    registers: Mapping[int, int] = {}
    clear: Callable[[Guest], bool] | None = None


def primary(bits: int) -> Mapping[F, int]:
    return {PRIMARY: bits}


def secondary(bits: int) -> Mapping[F, int]:
    return {SECONDARY: bits}


def data_operand(mode: str) -> MemoryAddress:
    """[bx], [edi] or [rdi], as instruction information has it."""
    if mode == REAL:
        return MemoryAddress(segment=3, base=RBX, address_size=2)
    return MemoryAddress(segment=3, base=RDI, address_size=8 if mode == LONG else 4)


def vmx_memory(mode: str, reg2: int = 0) -> int:
    return VmxInstructionInfo(data_operand(mode), reg2=reg2).encode()


def table(instruction: TableInstruction) -> Callable[[str], int]:
    """Operand size: 16 bits in real mode without a prefix; in 64-bit mode the bit is undefined."""

    def info(mode: str) -> int:
        return GdtrIdtrInfo(instruction, data_operand(mode), mode != REAL).encode()

    return info


def register(instruction: SystemSegmentInstruction) -> int:
    return LdtrTrInfo(instruction, None, RAX).encode()


def cr(number: int, access: CrAccess = CrAccess.MOV_TO, source: int = 0) -> int:
    return CrQualification(number, access, lmsw_source=source).encode()


def io(size: int, direction: Direction, port: int = 0x60, **more: bool) -> int:
    return IoQualification(size, direction, port=port, **more).encode()


def wide(mode: str) -> int:
    """The operand size without a prefix, in bytes."""
    return 2 if mode == REAL else 4


def strings(mode: str, segment: int = 0) -> int:
    return StringIoInfo({REAL: 2, PROTECTED: 4, LONG: 8}[mode], segment).encode()


def low(guest: Guest, number: int) -> int:
    return guest.cpu.gpr[number] & 0xFFFF_FFFF


def time_went_on(guest: Guest) -> bool:
    """The offset is in EDX, and the upper halves are gone."""
    return guest.cpu.gpr[RDX] == 0x1234 and guest.cpu.gpr[RAX] <= 0xFFFF_FFFF


def stayed(guest: Guest) -> bool:
    """Nothing to see but that the guest went on."""
    return low(guest, RDI) == DATA


IN, OUT = Direction.IN, Direction.OUT
IO_ALWAYS = primary(CpuBased.UNCONDITIONAL_IO_EXITING)
TABLES = secondary(Secondary.DESCRIPTOR_TABLE_EXITING)
OFFSET = {PRIMARY: CpuBased.USE_TSC_OFFSETTING, F.TSC_OFFSET: 0x1234 << 32}
TS, MP = 8, 2

UNCONDITIONAL = [
    Case("0f a2       cpuid",                ExitReason.CPUID, user=EXIT),
    Case("0f 08       invd",                 ExitReason.INVD),
    Case("0f 01 d1    xsetbv",               ExitReason.XSETBV, registers={RAX: 1}),
    Case("0f 37       getsec",               ExitReason.GETSEC, user=EXIT,
         base={F.GUEST_CR4: 1 << 14}),
    Case("0f 01 c1    vmcall",               ExitReason.VMCALL, user=EXIT),
    Case("66 0f c7 37  vmclear [rdi]",         ExitReason.VMCLEAR, modes=PM,
         info=vmx_memory, user=EXIT),
    Case("0f 01 c2    vmlaunch",             ExitReason.VMLAUNCH, modes=PM, user=EXIT),
    Case("0f c7 37    vmptrld [rdi]",        ExitReason.VMPTRLD, modes=PM, info=vmx_memory,
         user=EXIT),
    Case("0f c7 77 10  vmptrld [rdi + 16]",  ExitReason.VMPTRLD, modes=PM, info=vmx_memory,
         qualification=0x10, user=EXIT),
    Case("0f c7 77 f0  vmptrld [rdi - 16]",  ExitReason.VMPTRLD, modes=PM, info=vmx_memory,
         qualification=lambda mode: ALL_ONES - 15 if mode == LONG else 0xFFFF_FFF0, user=EXIT),
    Case("0f c7 3f    vmptrst [rdi]",        ExitReason.VMPTRST, modes=PM, info=vmx_memory,
         user=EXIT),
    Case("0f 78 0f    vmread [rdi], rcx",    ExitReason.VMREAD, modes=PM, user=EXIT,
         info=lambda mode: vmx_memory(mode, reg2=RCX)),
    Case("0f 78 cb    vmread rbx, rcx",      ExitReason.VMREAD, modes=PM, user=EXIT,
         info=VmxInstructionInfo(None, RBX, RCX).encode()),
    Case("0f 01 c3    vmresume",             ExitReason.VMRESUME, modes=PM, user=EXIT),
    Case("0f 79 0f    vmwrite rcx, [rdi]",   ExitReason.VMWRITE, modes=PM, user=EXIT,
         info=lambda mode: vmx_memory(mode, reg2=RCX)),
    Case("0f 79 cb    vmwrite rcx, rbx",     ExitReason.VMWRITE, modes=PM, user=EXIT,
         info=VmxInstructionInfo(None, RBX, RCX).encode()),
    Case("0f 01 c4    vmxoff",               ExitReason.VMOFF, modes=PM, user=EXIT),
    Case("f3 0f c7 37  vmxon [rdi]",         ExitReason.VMON, modes=PM, info=vmx_memory, user=EXIT),
    Case("66 0f 38 80 0f  invept rcx, [rdi]", ExitReason.INVEPT, modes=PM, user=EXIT,
         info=lambda mode: vmx_memory(mode, reg2=RCX)),
    Case("66 0f 38 81 0f  invvpid rcx, [rdi]", ExitReason.INVVPID, modes=PM, user=EXIT,
         info=lambda mode: vmx_memory(mode, reg2=RCX)),
]  # fmt: skip

CONDITIONAL = [
    Case("0f 31       rdtsc",                ExitReason.RDTSC, primary(CpuBased.RDTSC_EXITING),
         user=EXIT, base=OFFSET, registers={RAX: ALL_ONES, RDX: ALL_ONES}, clear=time_went_on),
    Case("0f 01 f9    rdtscp",               ExitReason.RDTSCP, primary(CpuBased.RDTSC_EXITING),
         user=EXIT, base={**OFFSET, **secondary(Secondary.ENABLE_RDTSCP)},
         registers={RCX: ALL_ONES},
         clear=lambda guest: time_went_on(guest) and guest.cpu.gpr[RCX] == 0),
    Case("0f 33       rdpmc",                ExitReason.RDPMC, primary(CpuBased.RDPMC_EXITING),
         registers={RCX: 0}),
    Case("0f 01 3f    invlpg [rdi]",         ExitReason.INVLPG, primary(CpuBased.INVLPG_EXITING),
         qualification=DATA, clear=stayed),
    Case("66 0f 38 82 0f  invpcid rcx, [rdi]", ExitReason.INVPCID,
         primary(CpuBased.INVLPG_EXITING), base=secondary(Secondary.ENABLE_INVPCID),
         info=lambda mode: vmx_memory(mode, reg2=RCX), registers={RCX: 2}, clear=stayed),
    Case("0f 09       wbinvd",               ExitReason.WBINVD, secondary(Secondary.WBINVD_EXITING),
         clear=stayed),
    Case("0f c7 f0    rdrand eax",           ExitReason.RDRAND, secondary(Secondary.RDRAND_EXITING),
         user=EXIT, info=lambda mode: RandomInfo(RAX, wide(mode)).encode(),
         clear=lambda guest: guest.cpu.rflags & 1 == 1),
    Case("0f c7 f9    rdseed ecx",           ExitReason.RDSEED, secondary(Secondary.RDSEED_EXITING),
         user=EXIT, info=lambda mode: RandomInfo(RCX, wide(mode)).encode(),
         clear=lambda guest: guest.cpu.rflags & 1 == 1),
    Case("f3 90       pause",                ExitReason.PAUSE_INSTRUCTION,
         primary(CpuBased.PAUSE_EXITING), user=EXIT, clear=stayed),
    Case("0f 01 c8    monitor",              ExitReason.MONITOR_INSTRUCTION,
         primary(CpuBased.MONITOR_EXITING), user=UD, registers={RAX: DATA, RCX: 0, RDX: 0},
         clear=stayed),
    Case("0f 01 c9    mwait",                ExitReason.MWAIT_INSTRUCTION,
         primary(CpuBased.MWAIT_EXITING), user=UD, registers={RAX: 0, RCX: 0}, clear=stayed),
    # -- control registers
    Case("0f 22 c0    mov cr0, eax",         ExitReason.CR_ACCESS, {F.CR0_GUEST_HOST_MASK: TS},
         qualification=cr(0), registers={RAX: 0x39},
         clear=lambda guest: guest.cpu.cr0 & TS == TS, modes=(PROTECTED,)),
    Case("0f 06       clts",                 ExitReason.CR_ACCESS,
         {F.CR0_GUEST_HOST_MASK: TS, F.CR0_READ_SHADOW: TS}, qualification=cr(0, CrAccess.CLTS),
         base={F.GUEST_CR0: TS}, clear=lambda guest: guest.cpu.cr0 & TS == 0),
    Case("0f 01 f0    lmsw ax",              ExitReason.CR_ACCESS,
         {F.CR0_GUEST_HOST_MASK: MP}, qualification=cr(0, CrAccess.LMSW, 3), registers={RAX: 3},
         modes=PM, clear=lambda guest: guest.cpu.cr0 & MP == MP),
    Case("0f 22 d8    mov cr3, eax",         ExitReason.CR_ACCESS,
         primary(CpuBased.CR3_LOAD_EXITING), qualification=cr(3), registers={RAX: 0x10000},
         clear=lambda guest: guest.cpu.cr3 == 0x10000),
    Case("0f 20 d9    mov ecx, cr3",         ExitReason.CR_ACCESS,
         primary(CpuBased.CR3_STORE_EXITING), modes=PM,
         qualification=CrQualification(3, CrAccess.MOV_FROM, gpr=RCX).encode(),
         registers={RCX: ALL_ONES}, clear=lambda guest: guest.cpu.gpr[RCX] == guest.cpu.cr3),
    Case("0f 22 e0    mov cr4, eax",         ExitReason.CR_ACCESS, {F.CR4_GUEST_HOST_MASK: 8},
         qualification=cr(4), registers={RAX: CR4[PROTECTED] | 8}, modes=(REAL, PROTECTED),
         clear=lambda guest: guest.cpu.cr4 & 8 == 8),
    Case("0f 22 e0    mov cr4, rax",         ExitReason.CR_ACCESS, {F.CR4_GUEST_HOST_MASK: 8},
         qualification=cr(4), registers={RAX: CR4[LONG] | 8}, modes=(LONG,),
         clear=lambda guest: guest.cpu.cr4 & 8 == 8),
    Case("44 0f 22 c2  mov cr8, rdx",        ExitReason.CR_ACCESS,
         primary(CpuBased.CR8_LOAD_EXITING), modes=(LONG,),
         qualification=CrQualification(8, CrAccess.MOV_TO, gpr=RDX).encode(), registers={RDX: 5},
         clear=lambda guest: guest.cpu.cr8 == 5),
    Case("44 0f 20 c2  mov rdx, cr8",        ExitReason.CR_ACCESS,
         primary(CpuBased.CR8_STORE_EXITING), modes=(LONG,),
         qualification=CrQualification(8, CrAccess.MOV_FROM, gpr=RDX).encode(),
         registers={RDX: 5}, clear=lambda guest: guest.cpu.gpr[RDX] == 0),
    # -- debug registers
    Case("0f 23 c1    mov dr0, ecx",         ExitReason.DR_ACCESS,
         primary(CpuBased.MOV_DR_EXITING), qualification=DrQualification(0, False, RCX).encode(),
         registers={RCX: 0x1234}, user=EXIT, clear=lambda guest: guest.cpu.dr[0] == 0x1234),
    Case("0f 21 fa    mov edx, dr7",         ExitReason.DR_ACCESS,
         primary(CpuBased.MOV_DR_EXITING), qualification=DrQualification(7, True, RDX).encode(),
         registers={RDX: ALL_ONES}, user=EXIT, clear=lambda guest: low(guest, RDX) == 0x400),
    # -- descriptor tables
    Case("0f 01 07    sgdt [rdi]",           ExitReason.GDTR_IDTR, TABLES, user=EXIT,
         info=table(TableInstruction.SGDT),
         clear=lambda guest: guest.cpu.memory.read(DATA + 2, 2) == GDT.to_bytes(2, "little")),
    Case("0f 01 0f    sidt [rdi]",           ExitReason.GDTR_IDTR, TABLES, user=EXIT,
         info=table(TableInstruction.SIDT),
         clear=lambda guest: guest.cpu.memory.read(DATA, 1) == b"\xff"),
    Case("0f 01 17    lgdt [rdi]",           ExitReason.GDTR_IDTR, TABLES,
         info=table(TableInstruction.LGDT), clear=lambda guest: guest.cpu.gdtr == (0, 0)),
    Case("0f 01 1f    lidt [rdi]",           ExitReason.GDTR_IDTR, TABLES,
         info=table(TableInstruction.LIDT), clear=lambda guest: guest.cpu.idtr == (0, 0)),
    Case("0f 00 c0    sldt eax",             ExitReason.LDTR_TR, TABLES, modes=PM, user=EXIT,
         info=register(SystemSegmentInstruction.SLDT), registers={RAX: ALL_ONES},
         clear=lambda guest: low(guest, RAX) == 0),
    Case("0f 00 c8    str eax",              ExitReason.LDTR_TR, TABLES, modes=PM, user=EXIT,
         info=register(SystemSegmentInstruction.STR), registers={RAX: ALL_ONES},
         clear=lambda guest: low(guest, RAX) == 0x38),
    Case("0f 00 0f    str [rdi]",            ExitReason.LDTR_TR, TABLES, modes=PM, user=EXIT,
         info=lambda mode: LdtrTrInfo(SystemSegmentInstruction.STR, data_operand(mode)).encode(),
         clear=lambda guest: guest.cpu.memory.read(DATA, 4) == b"\x38\0\0\0"),
    Case("0f 00 d0    lldt ax",              ExitReason.LDTR_TR, TABLES, modes=PM,
         info=register(SystemSegmentInstruction.LLDT), registers={RAX: 0},
         clear=lambda guest: guest.cpu.segment(6).unusable),
    Case("0f 00 d8    ltr ax",               ExitReason.LDTR_TR, TABLES, modes=(PROTECTED,),
         info=register(SystemSegmentInstruction.LTR), registers={RAX: 0x38},
         clear=lambda guest: guest.cpu.memory.read(GDT + 0x3D, 1) == b"\x8b"),
    # -- MSRs
    Case("0f 32       rdmsr",                ExitReason.MSR_READ, {F.MSR_BITMAP: ONES},
         base={**primary(CpuBased.USE_MSR_BITMAPS), F.GUEST_SYSENTER_ESP: 0x8765_4321},
         registers={RCX: 0x175, RAX: ALL_ONES, RDX: ALL_ONES},
         clear=lambda guest: guest.cpu.gpr[RAX] == 0x8765_4321 and guest.cpu.gpr[RDX] == 0),
    Case("0f 30       wrmsr",                ExitReason.MSR_WRITE, {F.MSR_BITMAP: ONES},
         base=primary(CpuBased.USE_MSR_BITMAPS), registers={RCX: 0x175, RAX: 0x1234, RDX: 0},
         clear=lambda guest: guest.read(F.GUEST_SYSENTER_ESP) == 0x1234),
    Case("0f 32       rdmsr",                ExitReason.MSR_READ, registers={RCX: 0x175}),
    Case("0f 30       wrmsr",                ExitReason.MSR_WRITE, registers={RCX: 0x175}),
    # -- ports
    Case("e4 60       in al, 0x60",          ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, IN, immediate=True), registers={RAX: 0},
         clear=lambda guest: guest.cpu.gpr[RAX] == 0xFF),
    Case("e5 60       in eax, 0x60",         ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=lambda mode: io(wide(mode), IN, immediate=True), registers={RAX: 0},
         clear=lambda guest: guest.cpu.gpr[RAX] in (0xFFFF, 0xFFFF_FFFF)),
    Case("ec          in al, dx",            ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, IN), registers={RAX: 0, RDX: 0x60},
         clear=lambda guest: guest.cpu.gpr[RAX] == 0xFF),
    Case("66 ed       in ax, dx",            ExitReason.IO_INSTRUCTION, IO_ALWAYS, modes=PM,
         qualification=io(2, IN), registers={RAX: 0, RDX: 0x60},
         clear=lambda guest: guest.cpu.gpr[RAX] == 0xFFFF),
    Case("e6 60       out 0x60, al",         ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, OUT, immediate=True), clear=stayed),
    Case("e7 60       out 0x60, eax",        ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=lambda mode: io(wide(mode), OUT, immediate=True), clear=stayed),
    Case("ee          out dx, al",           ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, OUT, 0xFFFF), registers={RDX: 0xFFFF}, clear=stayed),
    Case("ef          out dx, eax",          ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=lambda mode: io(wide(mode), OUT), registers={RDX: 0x60}, clear=stayed),
    Case("6c          insb",                 ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, IN, string=True), info=strings, registers={RDX: 0x60},
         clear=lambda guest: guest.cpu.memory.read(DATA, 2) == b"\xff\0"
         and low(guest, RDI) == DATA + 1),
    Case("f3 6d       rep insd",             ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=lambda mode: io(wide(mode), IN, string=True, rep=True), info=strings,
         registers={RDX: 0x60, RCX: 3},
         clear=lambda guest: low(guest, RCX) == 0
         and low(guest, RDI) == DATA + 3 * wide(guest.mode)),
    Case("6e          outsb",                ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, OUT, string=True), info=lambda mode: strings(mode, 3),
         registers={RDX: 0x60}, clear=lambda guest: low(guest, RSI) == DATA + 1),
    Case("f3 6e       rep outsb",            ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         qualification=io(1, OUT, string=True, rep=True), info=lambda mode: strings(mode, 3),
         registers={RDX: 0x60, RCX: 3},
         clear=lambda guest: low(guest, RCX) == 0 and low(guest, RSI) == DATA + 3),
    Case("26 6e       outsb es:",            ExitReason.IO_INSTRUCTION, IO_ALWAYS,
         modes=(REAL, PROTECTED), qualification=io(1, OUT, string=True),
         info=lambda mode: strings(mode, 0), registers={RDX: 0x60},
         clear=lambda guest: low(guest, RSI) == DATA + 1),
]  # fmt: skip

CASES = UNCONDITIONAL + CONDITIONAL
ROWS = [(case, mode) for case in CASES for mode in case.modes]
USER_ROWS = [
    (case, mode) for case in CASES for mode in case.modes if mode != REAL and case.user is not NOT
]


def name(row: Case | str) -> str:
    return row if isinstance(row, str) else row.guest.split("  ")[-1].strip().replace(" ", "-")


__all__ = ["CASES", "CR0", "EXIT", "ROWS", "USER_ROWS", "ZEROS", "Case", "name"]
