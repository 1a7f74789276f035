"""The "does it exit?" table: each instruction with its control set and clear, in each mode."""

# One row, one line.
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import pytest

from vmxsim.arch.controls import CpuBased, ExitControls, PinBased, Secondary
from vmxsim.arch.events import Event, EventType, Vector, fault
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
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Gpr, Rflags
from vmxsim.arch.segments import Segment
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import EventTrap, ExceptionTrap, MemoryTrap, TrapKind
from vmxsim.vmx.intercept import event_exit, intercept, intercept_table
from vmxsim.vmx.records import VmExit

from .vmx_guests import (
    COMPATIBILITY,
    EVERY_MODE,
    KERNEL_MODES,
    LONG,
    PROTECTED,
    PROTECTED16,
    PROTECTED_MODES,
    RAM,
    REAL,
    RIP,
    TSS,
    V8086,
    VMX_MODES,
    cpu_in,
    trap_of,
    vmcs_with,
)

Described: TypeAlias = VmxInstructionInfo | GdtrIdtrInfo | LdtrTrInfo | RandomInfo
P, S = "CPU_BASED_VM_EXEC_CONTROL", "SECONDARY_VM_EXEC_CONTROL"


class Row(NamedTuple):
    """Bytes of an instruction, the control that makes it exit, and where it exists."""

    guest: str
    code: str
    reason: ExitReason
    word: str
    bit: int
    modes: tuple[str, ...]
    always: Mapping[str, int] = MappingProxyType({})
    """VMCS fields that stay set when the control is clear."""


# fmt: off
CONTROLLED = [
    Row("hlt",     "f4",       ExitReason.HLT, P, CpuBased.HLT_EXITING, KERNEL_MODES),
    Row("wbinvd",  "0f 09",    ExitReason.WBINVD, S, Secondary.WBINVD_EXITING, KERNEL_MODES),
    Row("rdpmc",   "0f 33",    ExitReason.RDPMC, P, CpuBased.RDPMC_EXITING, KERNEL_MODES),
    Row("rdtsc",   "0f 31",    ExitReason.RDTSC, P, CpuBased.RDTSC_EXITING, EVERY_MODE),
    Row("rdtscp",  "0f 01 f9", ExitReason.RDTSCP, P, CpuBased.RDTSC_EXITING, EVERY_MODE,
        {S: Secondary.ENABLE_RDTSCP}),
    Row("monitor", "0f 01 c8", ExitReason.MONITOR_INSTRUCTION, P, CpuBased.MONITOR_EXITING, KERNEL_MODES),
    Row("mwait",   "0f 01 c9", ExitReason.MWAIT_INSTRUCTION, P, CpuBased.MWAIT_EXITING, KERNEL_MODES),
    Row("pause",   "f3 90",    ExitReason.PAUSE_INSTRUCTION, P, CpuBased.PAUSE_EXITING, EVERY_MODE),
    Row("rdrand",  "0f c7 f1", ExitReason.RDRAND, S, Secondary.RDRAND_EXITING, EVERY_MODE),
    Row("rdseed",  "0f c7 f9", ExitReason.RDSEED, S, Secondary.RDSEED_EXITING, EVERY_MODE),
    Row("invlpg",  "0f 01 3f", ExitReason.INVLPG, P, CpuBased.INVLPG_EXITING, KERNEL_MODES),
    Row("invpcid", "66 0f 38 82 07", ExitReason.INVPCID, P, CpuBased.INVLPG_EXITING, KERNEL_MODES,
        {S: Secondary.ENABLE_INVPCID}),
    Row("mov cr3, eax", "0f 22 d8", ExitReason.CR_ACCESS, P, CpuBased.CR3_LOAD_EXITING, KERNEL_MODES),
    Row("mov eax, cr3", "0f 20 d8", ExitReason.CR_ACCESS, P, CpuBased.CR3_STORE_EXITING, KERNEL_MODES),
    Row("mov cr8, rax", "44 0f 22 c0", ExitReason.CR_ACCESS, P, CpuBased.CR8_LOAD_EXITING, (LONG,)),
    Row("mov rax, cr8", "44 0f 20 c0", ExitReason.CR_ACCESS, P, CpuBased.CR8_STORE_EXITING, (LONG,)),
    Row("mov dr7, eax", "0f 23 f8", ExitReason.DR_ACCESS, P, CpuBased.MOV_DR_EXITING, KERNEL_MODES),
    Row("mov eax, dr6", "0f 21 f0", ExitReason.DR_ACCESS, P, CpuBased.MOV_DR_EXITING, KERNEL_MODES),
    Row("in al, dx",    "ec",       ExitReason.IO_INSTRUCTION, P, CpuBased.UNCONDITIONAL_IO_EXITING, KERNEL_MODES),
    Row("out 0x20, al", "e6 20",    ExitReason.IO_INSTRUCTION, P, CpuBased.UNCONDITIONAL_IO_EXITING, KERNEL_MODES),
    Row("insb",         "6c",       ExitReason.IO_INSTRUCTION, P, CpuBased.UNCONDITIONAL_IO_EXITING, KERNEL_MODES),
    Row("outsb",        "6e",       ExitReason.IO_INSTRUCTION, P, CpuBased.UNCONDITIONAL_IO_EXITING, KERNEL_MODES),
    *(Row(name, code, ExitReason.GDTR_IDTR, S, Secondary.DESCRIPTOR_TABLE_EXITING, KERNEL_MODES)
      for name, code in [("sgdt", "0f 01 07"), ("sidt", "0f 01 0f"), ("lgdt", "0f 01 17"), ("lidt", "0f 01 1f")]),
    *(Row(name, code, ExitReason.LDTR_TR, S, Secondary.DESCRIPTOR_TABLE_EXITING, PROTECTED_MODES)
      for name, code in [("sldt", "0f 00 c1"), ("str", "0f 00 c9"), ("lldt", "0f 00 d1"), ("ltr", "0f 00 d9")]),
]

UNCONDITIONAL = [
    ("cpuid",    "0f a2",          ExitReason.CPUID,     EVERY_MODE),
    ("invd",     "0f 08",          ExitReason.INVD,      KERNEL_MODES),
    ("rdmsr",    "0f 32",          ExitReason.MSR_READ,  KERNEL_MODES),
    ("wrmsr",    "0f 30",          ExitReason.MSR_WRITE, KERNEL_MODES),
    ("xsetbv",   "0f 01 d1",       ExitReason.XSETBV,    KERNEL_MODES),
    ("getsec",   "0f 37",          ExitReason.GETSEC,    EVERY_MODE),
    ("vmcall",   "0f 01 c1",       ExitReason.VMCALL,    EVERY_MODE),
    ("vmlaunch", "0f 01 c2",       ExitReason.VMLAUNCH,  VMX_MODES),
    ("vmresume", "0f 01 c3",       ExitReason.VMRESUME,  VMX_MODES),
    ("vmxoff",   "0f 01 c4",       ExitReason.VMOFF,     VMX_MODES),
    ("vmxon",    "f3 0f c7 37",    ExitReason.VMON,      VMX_MODES),
    ("vmptrld",  "0f c7 37",       ExitReason.VMPTRLD,   VMX_MODES),
    ("vmptrst",  "0f c7 3f",       ExitReason.VMPTRST,   VMX_MODES),
    ("vmclear",  "66 0f c7 37",    ExitReason.VMCLEAR,   VMX_MODES),
    ("vmread",   "0f 78 c8",       ExitReason.VMREAD,    VMX_MODES),
    ("vmwrite",  "0f 79 c8",       ExitReason.VMWRITE,   VMX_MODES),
    ("invept",   "66 0f 38 80 07", ExitReason.INVEPT,    VMX_MODES),
    ("invvpid",  "66 0f 38 81 07", ExitReason.INVVPID,   VMX_MODES),
]
# fmt: on


@pytest.mark.parametrize(
    ("row", "mode"), [pytest.param(r, m, id=f"{r.guest}, {m}") for r in CONTROLLED for m in r.modes]
)
def test_a_control_decides(row: Row, mode: str) -> None:
    cpu = cpu_in(mode)
    trap = trap_of(row.code, mode, cpu)
    fields = dict(row.always)
    assert intercept(trap, vmcs_with(**fields), cpu) is None
    fields[row.word] = fields.get(row.word, 0) | row.bit
    vm_exit = intercept(trap, vmcs_with(**fields), cpu)
    assert isinstance(vm_exit, VmExit)
    assert vm_exit.reason is row.reason
    assert vm_exit.instruction_length == len(bytes.fromhex(row.code))


@pytest.mark.parametrize(
    ("code", "reason", "mode"),
    [pytest.param(c, r, m, id=f"{n}, {m}") for n, c, r, modes in UNCONDITIONAL for m in modes],
)
def test_no_control_is_needed(code: str, reason: ExitReason, mode: str) -> None:
    cpu = cpu_in(mode)
    cpu.cr4 |= Cr4.OSXSAVE | Cr4.SMXE | Cr4.VMXE
    vm_exit = intercept(trap_of(code, mode, cpu), vmcs_with(), cpu)
    assert isinstance(vm_exit, VmExit)
    assert (vm_exit.reason, vm_exit.instruction_length) == (reason, len(bytes.fromhex(code)))


def test_every_kind_has_a_row() -> None:
    assert intercept_table.keys() == set(TrapKind)


# -- faults that come before the exit -------------------------------------------------------------

UD, GP = fault(Vector.UD), fault(Vector.GP, 0)


@pytest.mark.parametrize("mode", [REAL, V8086, COMPATIBILITY])
@pytest.mark.parametrize(
    "code", [c for n, c, r, modes in UNCONDITIONAL if modes == VMX_MODES], ids=lambda c: c
)
def test_vmx_instructions_are_undefined_in_modes_without_them(code: str, mode: str) -> None:
    cpu = cpu_in(mode)
    cpu.cr4 |= Cr4.VMXE
    assert intercept(trap_of(code, mode, cpu), vmcs_with(), cpu) == UD


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
def test_vmx_instructions_exit_before_they_look_at_the_privilege_level(mode: str) -> None:
    cpu = cpu_in(mode, cpl=3)
    vm_exit = intercept(trap_of("0f 01 c3", mode, cpu), vmcs_with(), cpu)
    assert vm_exit == VmExit(ExitReason.VMRESUME, instruction_length=3)


# fmt: off
FAULTS = [
    # guest, bytes, cpl, CR4, primary, secondary, outcome
    ("vmxon without CR4.VMXE",       "f3 0f c7 37",    0, 0, 0, 0, UD),
    ("xsetbv without CR4.OSXSAVE",   "0f 01 d1",       0, 0, 0, 0, UD),
    ("xsetbv above level 0",         "0f 01 d1",       3, Cr4.OSXSAVE, 0, 0, GP),
    ("getsec without CR4.SMXE",      "0f 37",          0, 0, 0, 0, UD),
    ("rdtscp not enabled",           "0f 01 f9",       0, 0, CpuBased.RDTSC_EXITING, 0, UD),
    ("rdtscp with TSD",              "0f 01 f9",       3, Cr4.TSD, CpuBased.RDTSC_EXITING, Secondary.ENABLE_RDTSCP, GP),
    ("rdpid not enabled",            "f3 0f c7 f8",    0, 0, 0, 0, UD),
    ("rdpmc above level 0",          "0f 33",          3, 0, CpuBased.RDPMC_EXITING, 0, GP),
    ("invpcid not enabled",          "66 0f 38 82 07", 0, 0, CpuBased.INVLPG_EXITING, 0, UD),
    ("invpcid above level 0",        "66 0f 38 82 07", 3, 0, CpuBased.INVLPG_EXITING, Secondary.ENABLE_INVPCID, GP),
    ("monitor above level 0",        "0f 01 c8",       3, 0, CpuBased.MONITOR_EXITING, 0, UD),
    ("mwait above level 0",          "0f 01 c9",       3, 0, CpuBased.MWAIT_EXITING, 0, UD),
    ("sgdt under UMIP",              "0f 01 07",       3, Cr4.UMIP, 0, Secondary.DESCRIPTOR_TABLE_EXITING, GP),
    ("sldt under UMIP",              "0f 00 c1",       3, Cr4.UMIP, 0, Secondary.DESCRIPTOR_TABLE_EXITING, GP),
    ("smsw under UMIP",              "0f 01 e0",       3, Cr4.UMIP, 0, 0, GP),
    ("vmfunc not enabled",           "0f 01 d4",       0, 0, 0, 0, UD),
    ("rsm outside SMM",              "0f aa",          0, 0, 0, 0, UD),
    ("xsaves without any IA32_XSS",  "0f c7 2f",       0, Cr4.OSXSAVE, 0, Secondary.ENABLE_XSAVES, UD),
]
# fmt: on


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row[0])
def test_a_fault_comes_first(row: tuple[str, str, int, int, int, int, Event], mode: str) -> None:
    _, code, cpl, cr4, primary, secondary, outcome = row
    cpu = cpu_in(mode, cpl=cpl)
    cpu.cr4 |= cr4
    vmcs = vmcs_with(**{P: primary, S: secondary})
    assert intercept(trap_of(code, mode, cpu), vmcs, cpu) == outcome


def test_in_real_mode_a_fault_has_no_error_code() -> None:
    cpu = cpu_in(REAL)
    cpu.cr4 |= Cr4.OSXSAVE
    cpu.set_segment(Segment.SS, cpu.segment(Segment.SS)._replace(access_rights=0x93 | 3 << 5))
    assert intercept(trap_of("0f 01 d1", REAL, cpu), vmcs_with(), cpu) == fault(Vector.GP)


# -- I/O -------------------------------------------------------------------------------------------

IO = {P: CpuBased.UNCONDITIONAL_IO_EXITING}

# fmt: off
IO_ROWS = [
    ("out 0x80, al", "e6 80",    IoQualification(1, Direction.OUT, immediate=True, port=0x80)),
    ("in al, 0x60",  "e4 60",    IoQualification(1, Direction.IN, immediate=True, port=0x60)),
    ("in eax, 0xee", "e5 ee",    IoQualification(4, Direction.IN, immediate=True, port=0xEE)),
    ("out dx, al",   "ee",       IoQualification(1, Direction.OUT, port=0xE4E5)),
    ("out dx, ax",   "66 ef",    IoQualification(2, Direction.OUT, port=0xE4E5)),
    ("in eax, dx",   "ed",       IoQualification(4, Direction.IN, port=0xE4E5)),
    ("insb",         "6c",       IoQualification(1, Direction.IN, string=True, port=0xE4E5)),
    ("rep outsd",    "f3 6f",    IoQualification(4, Direction.OUT, string=True, rep=True, port=0xE4E5)),
    ("rep insw",     "f3 66 6d", IoQualification(2, Direction.IN, string=True, rep=True, port=0xE4E5)),
]
# fmt: on


@pytest.mark.parametrize("mode", [PROTECTED, COMPATIBILITY, LONG])
@pytest.mark.parametrize("row", IO_ROWS, ids=lambda row: row[0])
def test_io_qualification(row: tuple[str, str, IoQualification], mode: str) -> None:
    _, code, expected = row
    cpu = cpu_in(mode)
    cpu.gpr[Gpr.RDX], cpu.gpr[Gpr.RCX] = 0xE4E5, 2
    trap = trap_of(code, mode, cpu)
    vm_exit = intercept(trap, vmcs_with(**IO), cpu)
    assert IoQualification.decode(vm_exit.qualification) == expected
    assert vm_exit.qualification == expected.encode()
    assert vm_exit.trap is trap


@pytest.mark.parametrize(
    ("guest", "code", "mode", "info", "address"),
    [
        ("insb, ES", "6c", LONG, StringIoInfo(8), 0x1_2345_6000),
        ("insb, 32-bit address", "67 6c", LONG, StringIoInfo(4), 0x2345_6000),
        ("outsb, DS", "6e", PROTECTED, StringIoInfo(4, Segment.DS), 0x7777_0000),
        ("fs outsb", "64 6e", LONG, StringIoInfo(8, Segment.FS), 0x1_7777_0400),
        ("es outsb, 16-bit address", "26 67 6e", PROTECTED, StringIoInfo(2, Segment.ES), 0),
        ("insb", "6c", REAL, StringIoInfo(2), 0x6000),
    ],
)
def test_string_io_says_where_in_memory(
    guest: str, code: str, mode: str, info: StringIoInfo, address: int
) -> None:
    cpu = cpu_in(mode)
    cpu.gpr[Gpr.RDI], cpu.gpr[Gpr.RSI] = 0x1_2345_6000, 0x1_7777_0000
    cpu.set_segment(Segment.FS, cpu.segment(Segment.FS)._replace(base=0x400))
    vm_exit = intercept(trap_of(code, mode, cpu), vmcs_with(**IO), cpu)
    assert vm_exit.instruction_info == info.encode()
    assert vm_exit.guest_linear_address == address


def test_string_io_with_a_count_of_zero_does_no_io() -> None:
    cpu = cpu_in(PROTECTED)
    cpu.gpr[Gpr.RCX] = 0
    assert intercept(trap_of("f3 6c", PROTECTED, cpu), vmcs_with(**IO), cpu) is None
    assert intercept(trap_of("6c", PROTECTED, cpu), vmcs_with(**IO), cpu) is not None


def test_io_bitmaps_replace_unconditional_exiting() -> None:
    vmcs = vmcs_with(
        CPU_BASED_VM_EXEC_CONTROL=CpuBased.USE_IO_BITMAPS | CpuBased.UNCONDITIONAL_IO_EXITING,
        IO_BITMAP_A=0x10_0000,
        IO_BITMAP_B=0x10_1000,
    )
    bitmap = bytearray(4096)
    bitmap[0x60 >> 3] |= 1 << (0x60 & 7)
    vmcs.host_pages.register(0x10_0000, bitmap)
    vmcs.host_pages.register(0x10_1000, bytearray(4096))
    cpu = cpu_in(REAL)
    assert intercept(trap_of("e4 60", REAL, cpu), vmcs, cpu).reason is ExitReason.IO_INSTRUCTION
    assert intercept(trap_of("e4 61", REAL, cpu), vmcs, cpu) is None


def user_io(
    iopl: int, allowed: int | None = None, mode: str = PROTECTED, limit: int = 0x2068
) -> ScriptedCpu:
    """A user program doing OUT 0x80, with a permission bitmap at offset 0x68 of its TSS."""
    cpu = cpu_in(mode, cpl=3)
    cpu.rflags |= iopl << 12
    cpu.set_segment(Segment.TR, cpu.segment(Segment.TR)._replace(limit=limit))
    cpu.memory.write(TSS + 102, (0x68).to_bytes(2, "little"))
    bitmap = bytearray(b"\xff" * 0x2001)
    if allowed is not None:
        bitmap[allowed >> 3] &= ~(1 << (allowed & 7))
    cpu.memory.write(TSS + 0x68, bytes(bitmap))
    return cpu


# fmt: off
PERMISSION = [
    ("IOPL suffices",                user_io(3), True),
    ("IOPL too low, bit set",        user_io(0), False),
    ("IOPL too low, bit clear",      user_io(0, allowed=0x80), True),
    ("another port's bit clear",     user_io(0, allowed=0x81), False),
    ("bitmap beyond the limit",      user_io(0, allowed=0x80, limit=0x68 + 0x10), False),
    ("no room for a bitmap at all",  user_io(0, allowed=0x80, limit=0x66), False),
    ("virtual-8086 ignores IOPL",    user_io(3, mode=V8086), False),
    ("virtual-8086, bit clear",      user_io(0, allowed=0x80, mode=V8086), True),
    ("64-bit TSS",                   user_io(0, allowed=0x80, mode=LONG), True),
]
# fmt: on


@pytest.mark.parametrize("row", PERMISSION, ids=lambda row: row[0])
def test_port_permission_comes_before_the_exit(row: tuple[str, ScriptedCpu, bool]) -> None:
    _, cpu, permitted = row
    mode = V8086 if cpu.rflags & Rflags.VM else LONG if cpu.efer else PROTECTED
    outcome = intercept(trap_of("e6 80", mode, cpu), vmcs_with(**IO), cpu)
    if permitted:
        assert outcome.reason is ExitReason.IO_INSTRUCTION
    else:
        assert outcome == GP


def test_a_16_bit_tss_has_no_permission_bitmap() -> None:
    cpu = user_io(0, allowed=0x80)
    cpu.set_segment(Segment.TR, cpu.segment(Segment.TR)._replace(access_rights=0x83))
    assert intercept(trap_of("e6 80", PROTECTED, cpu), vmcs_with(**IO), cpu) == GP


def test_a_tss_outside_memory_is_an_ept_violation() -> None:
    cpu = user_io(0)
    cpu.set_segment(Segment.TR, cpu.segment(Segment.TR)._replace(base=RAM + 0x1000))
    vm_exit = intercept(trap_of("e6 80", PROTECTED, cpu), vmcs_with(**IO), cpu)
    assert vm_exit.reason is ExitReason.EPT_VIOLATION
    assert vm_exit.guest_physical_address == RAM + 0x1000 + 102


# -- MSRs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "offset"), [("0f 32", 0), ("0f 30", 2048)], ids=["rdmsr", "wrmsr"]
)
def test_msr_bitmaps_let_an_msr_through(code: str, offset: int) -> None:
    bitmap = bytearray(b"\xff" * 4096)
    bitmap[offset + 1024 + (0x82 >> 3)] &= ~(1 << (0x82 & 7))
    vmcs = vmcs_with(CPU_BASED_VM_EXEC_CONTROL=CpuBased.USE_MSR_BITMAPS, MSR_BITMAP=0x7000)
    vmcs.host_pages.register(0x7000, bitmap)
    cpu = cpu_in(LONG)
    trap = trap_of(code, LONG, cpu)
    cpu.gpr[Gpr.RCX] = 0xFFFF_FFFF_C000_0082
    assert intercept(trap, vmcs, cpu) is None
    cpu.gpr[Gpr.RCX] = 0xC000_0083
    assert isinstance(intercept(trap, vmcs, cpu), VmExit)


# -- control registers ------------------------------------------------------------------------------

CR0_CASES = [
    # mask, shadow, written, exits
    (0, 0, 0xFFFF, False),
    (Cr0.TS, 0, Cr0.TS, True),
    (Cr0.TS, Cr0.TS, Cr0.TS, False),
    (Cr0.TS, Cr0.TS, 0, True),
    (Cr0.PE | Cr0.NE, Cr0.PE, Cr0.PE | Cr0.MP, False),
    (Cr0.PE | Cr0.NE, Cr0.PE, Cr0.PE | Cr0.NE, True),
]


@pytest.mark.parametrize("mode", KERNEL_MODES)
@pytest.mark.parametrize(("mask", "shadow", "value", "exits"), CR0_CASES)
def test_cr0_and_cr4_by_mask_and_shadow(
    mask: int, shadow: int, value: int, exits: bool, mode: str
) -> None:
    for number, code in ((0, "0f 22 c3"), (4, "0f 22 e3")):
        cpu = cpu_in(mode)
        cpu.gpr[Gpr.RBX] = value | 1 << 40
        fields = {f"CR{number}_GUEST_HOST_MASK": mask, f"CR{number}_READ_SHADOW": shadow}
        outcome = intercept(trap_of(code, mode, cpu), vmcs_with(**fields), cpu)
        if not exits:
            assert outcome is None
            continue
        expected = CrQualification(number, CrAccess.MOV_TO, gpr=Gpr.RBX)
        assert CrQualification.decode(outcome.qualification) == expected


@pytest.mark.parametrize(
    ("count", "exits"), [(0, True), (1, True), (2, False), (4, False)], ids=lambda v: str(v)
)
def test_cr3_targets_do_not_exit(count: int, exits: bool) -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX] = 0x8000
    vmcs = vmcs_with(
        CPU_BASED_VM_EXEC_CONTROL=CpuBased.CR3_LOAD_EXITING,
        CR3_TARGET_COUNT=count,
        CR3_TARGET_VALUE1=0x8000,
    )
    outcome = intercept(trap_of("0f 22 d8", LONG, cpu), vmcs, cpu)
    assert (outcome is not None) == exits


# fmt: off
CR_QUALIFICATIONS = [
    ("mov cr3, r9",  "41 0f 22 d9", CrQualification(3, CrAccess.MOV_TO, gpr=Gpr.R9)),
    ("mov r15, cr3", "41 0f 20 df", CrQualification(3, CrAccess.MOV_FROM, gpr=Gpr.R15)),
    ("mov cr8, rcx", "44 0f 22 c1", CrQualification(8, CrAccess.MOV_TO, gpr=Gpr.RCX)),
    ("mov rdx, cr8", "44 0f 20 c2", CrQualification(8, CrAccess.MOV_FROM, gpr=Gpr.RDX)),
]
# fmt: on


@pytest.mark.parametrize("row", CR_QUALIFICATIONS, ids=lambda row: row[0])
def test_cr_qualification(row: tuple[str, str, CrQualification]) -> None:
    _, code, expected = row
    cpu = cpu_in(LONG)
    every = (1 << 32) - 1 & ~CpuBased.ACTIVATE_SECONDARY_CONTROLS
    vm_exit = intercept(trap_of(code, LONG, cpu), vmcs_with(**{P: every}), cpu)
    assert vm_exit.qualification == expected.encode()


@pytest.mark.parametrize(
    ("mask", "shadow", "exits"),
    [(0, 0, False), (0, Cr0.TS, False), (Cr0.TS, 0, False), (Cr0.TS, Cr0.TS, True)],
)
@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_clts(mask: int, shadow: int, exits: bool, mode: str) -> None:
    cpu = cpu_in(mode)
    vmcs = vmcs_with(CR0_GUEST_HOST_MASK=mask, CR0_READ_SHADOW=shadow)
    outcome = intercept(trap_of("0f 06", mode, cpu), vmcs, cpu)
    expected = VmExit(ExitReason.CR_ACCESS, CrQualification(0, CrAccess.CLTS).encode(), 2)
    assert (outcome and outcome._replace(trap=None)) == (expected if exits else None)


@pytest.mark.parametrize(
    ("mask", "shadow", "source", "exits"),
    [
        (0xF, 0, 0, False),
        (0xF, 0, 1, True),  # sets PE
        (0xF, 1, 0, False),  # cannot clear PE
        (0xF, 1, 1, False),
        (0xE, 0, 1, False),  # PE is the guest's own
        (0xF, 0, 8, True),
        (0xF, 8, 0, True),
        (0x7, 8, 0, False),
        (0xF0, 0, 0xFFFF, False),  # only bits 3:0 count
    ],
)
def test_lmsw_from_a_register_and_from_memory(
    mask: int, shadow: int, source: int, exits: bool
) -> None:
    for mode in KERNEL_MODES:
        cpu = cpu_in(mode)
        cpu.gpr[Gpr.RAX] = 0x5A_0000 | source
        cpu.gpr[Gpr.RBX] = cpu.gpr[Gpr.RDI] = 0x600
        cpu.memory.write(0x600, source.to_bytes(2, "little"))
        vmcs = vmcs_with(CR0_GUEST_HOST_MASK=mask, CR0_READ_SHADOW=shadow)
        from_register = intercept(trap_of("0f 01 f0", mode, cpu), vmcs, cpu)
        from_memory = intercept(trap_of("0f 01 37", mode, cpu), vmcs, cpu)
        if not exits:
            assert from_register is None
            assert from_memory is None
            continue
        expected = CrQualification(0, CrAccess.LMSW, lmsw_source=source)
        assert from_register.qualification == expected.encode()
        assert from_register.guest_linear_address == 0
        assert from_memory.qualification == expected._replace(lmsw_memory=True).encode()
        assert from_memory.guest_linear_address == 0x600


def test_lmsw_reads_its_operand_before_it_can_exit() -> None:
    cpu = cpu_in(PROTECTED)
    cpu.gpr[Gpr.RDI] = RAM + 0x10
    trap = trap_of("0f 01 37", PROTECTED, cpu)
    vm_exit = intercept(trap, vmcs_with(CR0_GUEST_HOST_MASK=0xF), cpu)
    assert vm_exit.reason is ExitReason.EPT_VIOLATION


# fmt: off
DR_ROWS = [
    ("mov dr7, rax", "0f 23 f8",    DrQualification(7, from_dr=False, gpr=Gpr.RAX)),
    ("mov rax, dr6", "0f 21 f0",    DrQualification(6, from_dr=True, gpr=Gpr.RAX)),
    ("mov r12, dr0", "41 0f 21 c4", DrQualification(0, from_dr=True, gpr=Gpr.R12)),
]
# fmt: on


@pytest.mark.parametrize("row", DR_ROWS, ids=lambda row: row[0])
@pytest.mark.parametrize("vector", [None, Vector.GP, Vector.UD], ids=["trap", "#GP", "#UD"])
def test_mov_dr_exits_before_its_own_faults(
    row: tuple[str, str, DrQualification], vector: int | None
) -> None:
    _, code, expected = row
    cpu = cpu_in(LONG)
    trap = trap_of(code, LONG, cpu)
    if vector is not None:
        trap = ExceptionTrap(TrapKind.EXCEPTION, RIP, vector, 0, 0, trap.insn)
    vmcs = vmcs_with(CPU_BASED_VM_EXEC_CONTROL=CpuBased.MOV_DR_EXITING)
    vm_exit = intercept(trap, vmcs, cpu)
    assert (vm_exit.reason, vm_exit.qualification) == (ExitReason.DR_ACCESS, expected.encode())
    assert not isinstance(intercept(trap, vmcs_with(), cpu), VmExit)


# -- qualification and instruction information -----------------------------------------------------

# fmt: off
MEMORY = MemoryAddress(segment=Segment.DS, base=Gpr.RDI, address_size=8)
INDEXED = MemoryAddress(Segment.FS, Gpr.R13, Gpr.R12, 8, 8)
RIP_RELATIVE = MemoryAddress(Segment.DS, None, None, 1, 8)
DESCRIBED = [
    # guest, bytes, displacement, information
    ("vmptrld [rdi]",                  "0f c7 37", 0, VmxInstructionInfo(MEMORY)),
    ("vmclear fs:[r13+r12*8-4]",       "64 66 43 0f c7 74 e5 fc", (1 << 64) - 4, VmxInstructionInfo(INDEXED)),
    ("vmptrst [rip+0x10]",             "0f c7 3d 10 00 00 00", RIP + 7 + 0x10, VmxInstructionInfo(RIP_RELATIVE)),
    ("vmread rax, rcx",                "0f 78 c8", 0, VmxInstructionInfo(None, Gpr.RAX, Gpr.RCX)),
    ("vmread [rdi], rcx",              "0f 78 0f", 0, VmxInstructionInfo(MEMORY, 0, Gpr.RCX)),
    ("vmwrite rcx, rax",               "0f 79 c8", 0, VmxInstructionInfo(None, Gpr.RAX, Gpr.RCX)),
    ("vmwrite rcx, [rdi+0x12345678]",  "0f 79 8f 78 56 34 12", 0x1234_5678, VmxInstructionInfo(MEMORY, 0, Gpr.RCX)),
    ("invept rax, [rdi]",              "66 0f 38 80 07", 0, VmxInstructionInfo(MEMORY, 0, Gpr.RAX)),
    ("invvpid r9, [rdi]",              "66 44 0f 38 81 0f", 0, VmxInstructionInfo(MEMORY, 0, Gpr.R9)),
    ("invpcid rdx, [rdi]",             "66 0f 38 82 17", 0, VmxInstructionInfo(MEMORY, 0, Gpr.RDX)),
    ("sgdt [rdi]",                     "0f 01 07", 0, GdtrIdtrInfo(TableInstruction.SGDT, MEMORY)),
    ("lidt [rdi+1]",                   "0f 01 5f 01", 1, GdtrIdtrInfo(TableInstruction.LIDT, MEMORY)),
    ("str [rdi]",                      "0f 00 0f", 0, LdtrTrInfo(SystemSegmentInstruction.STR, MEMORY)),
    ("ltr r10w",                       "41 0f 00 da", 0, LdtrTrInfo(SystemSegmentInstruction.LTR, None, Gpr.R10)),
    ("rdrand cx",                      "66 0f c7 f1", 0, RandomInfo(Gpr.RCX, 2)),
    ("rdrand r8d",                     "41 0f c7 f0", 0, RandomInfo(Gpr.R8, 4)),
    ("rdseed rdx",                     "48 0f c7 fa", 0, RandomInfo(Gpr.RDX, 8)),
]
# fmt: on
EVERYTHING = {
    P: CpuBased.INVLPG_EXITING,
    S: Secondary.DESCRIPTOR_TABLE_EXITING
    | Secondary.ENABLE_INVPCID
    | Secondary.RDRAND_EXITING
    | Secondary.RDSEED_EXITING,
}


@pytest.mark.parametrize("row", DESCRIBED, ids=lambda row: row[0])
def test_displacement_and_instruction_information(row: tuple[str, str, int, Described]) -> None:
    _, code, displacement, information = row
    cpu = cpu_in(LONG)
    vm_exit = intercept(trap_of(code, LONG, cpu), vmcs_with(**EVERYTHING), cpu)
    described = (vm_exit.qualification, type(information).decode(vm_exit.instruction_info))
    assert described == (displacement, information)


def test_16_bit_addressing_in_the_instruction_information() -> None:
    cpu = cpu_in(REAL)
    vm_exit = intercept(trap_of("0f 01 50 fe", REAL, cpu), vmcs_with(**EVERYTHING), cpu)
    address = MemoryAddress(Segment.DS, Gpr.RBX, Gpr.RSI, 1, 2)
    expected = GdtrIdtrInfo(TableInstruction.LGDT, address, operand_32=False)
    assert GdtrIdtrInfo.decode(vm_exit.instruction_info) == expected
    assert vm_exit.qualification == 0xFFFE


@pytest.mark.parametrize(
    ("code", "mode", "address"),
    [
        ("0f 01 bf 00 10 00 00", PROTECTED, 0x8000_5000),
        ("65 0f 01 3f", LONG, 0xFFFF_8000_0000_4001),
        ("0f 01 3d 00 00 00 00", LONG, RIP + 7),
    ],
)
def test_invlpg_reports_the_linear_address(code: str, mode: str, address: int) -> None:
    cpu = cpu_in(mode)
    cpu.gpr[Gpr.RDI] = 0x8000_4000 if mode == PROTECTED else 0xFFFF_8000_0000_4000
    cpu.set_segment(Segment.GS, cpu.segment(Segment.GS)._replace(base=1))
    vm_exit = intercept(trap_of(code, mode, cpu), vmcs_with(**EVERYTHING), cpu)
    assert (vm_exit.reason, vm_exit.qualification) == (ExitReason.INVLPG, address)


# -- events -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_software_interrupts_and_system_calls_never_exit(mode: str) -> None:
    cpu = cpu_in(mode)
    codes = ["cd 80", "cc", "f1"] + (["0f 05", "0f 34"] if mode == LONG else ["ce"])
    everything = vmcs_with(EXCEPTION_BITMAP=0xFFFF_FFFF)
    assert [intercept(trap_of(code, mode, cpu), everything, cpu) for code in codes] == [None] * len(
        codes
    )


@pytest.mark.parametrize(
    ("vector", "error_code", "address", "event"),
    [
        (Vector.DE, 0, 0, fault(Vector.DE)),
        (Vector.GP, 0x18, 0, fault(Vector.GP, 0x18)),
        (Vector.PF, 2, 0xABC, fault(Vector.PF, 2, 0xABC)),
        (Vector.DB, 0, Dr6.BS, fault(Vector.DB, None, Dr6.BS)),
    ],
)
def test_an_exception_becomes_its_event(
    vector: int | None, error_code: int, address: int, event: Event
) -> None:
    cpu = cpu_in(PROTECTED)
    trap = ExceptionTrap(TrapKind.EXCEPTION, RIP, vector, error_code, address, None)
    assert intercept(trap, vmcs_with(), cpu) == event


def test_in_real_mode_exceptions_have_no_error_code() -> None:
    cpu = cpu_in(REAL)
    trap = ExceptionTrap(TrapKind.EXCEPTION, RIP, Vector.GP, 0, 0, None)
    event = intercept(trap, vmcs_with(), cpu)
    assert event == fault(Vector.GP)
    vm_exit = event_exit(fault(Vector.GP, 0), vmcs_with(EXCEPTION_BITMAP=1 << Vector.GP), cpu)
    assert vm_exit.intr_info == 0x8000_030D


# fmt: off
EVENT_EXITS = [
    (fault(Vector.PF, 0x6, 0xFFFF_8000_0000_1234), 0xFFFF_8000_0000_1234, 0x8000_0B0E, 6, 0),
    (fault(Vector.DB, None, Dr6.BS | Dr6.B2),      Dr6.BS | Dr6.B2,       0x8000_0301, 0, 0),
    (fault(Vector.UD),                             0,                     0x8000_0306, 0, 0),
    (fault(Vector.GP, 0x42),                       0,                     0x8000_0B0D, 0x42, 0),
    (Event(EventType.SOFTWARE_EXCEPTION, Vector.BP, None, 1), 0,          0x8000_0603, 0, 1),
    (Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, Vector.DB, None, 1), 0, 0x8000_0501, 0, 1),
]
# fmt: on


@pytest.mark.parametrize("row", EVENT_EXITS, ids=lambda row: str(row[0]))
def test_exception_exits_carry_their_information(row: tuple[Event, int, int, int, int]) -> None:
    event, qualification, info, error_code, length = row
    cpu = cpu_in(LONG)
    vm_exit = event_exit(event, vmcs_with(EXCEPTION_BITMAP=1 << event.vector), cpu)
    assert vm_exit == VmExit(
        ExitReason.EXCEPTION_NMI, qualification, length, intr_info=info, intr_error_code=error_code
    )
    if event.vector != Vector.PF:
        others = vmcs_with(EXCEPTION_BITMAP=0xFFFF_FFFF & ~(1 << event.vector))
        assert event_exit(event, others, cpu) is None


def test_an_exception_that_exits_leaves_cr2_and_dr6_alone() -> None:
    cpu = cpu_in(LONG, cr2=0x1111)
    before = cpu.dr[6]
    vmcs = vmcs_with(EXCEPTION_BITMAP=0xFFFF_FFFF)
    assert event_exit(fault(Vector.PF, 0, 0x2222), vmcs, cpu) is not None
    assert event_exit(fault(Vector.DB, None, Dr6.BS), vmcs, cpu) is not None
    assert (cpu.cr2, cpu.dr[6]) == (0x1111, before)


@pytest.mark.parametrize(("kind", "vector"), [(TrapKind.KICK, 0xFD), (TrapKind.BUDGET, 0xEC)])
def test_the_hosts_interrupts(kind: TrapKind, vector: int | None) -> None:
    cpu, trap = cpu_in(LONG), EventTrap(kind, RIP)
    exiting = {"PIN_BASED_VM_EXEC_CONTROL": PinBased.EXTERNAL_INTERRUPT_EXITING}
    assert intercept(trap, vmcs_with(), cpu) is None
    assert intercept(trap, vmcs_with(**exiting), cpu) == VmExit(ExitReason.EXTERNAL_INTERRUPT)
    exiting["VM_EXIT_CONTROLS"] = ExitControls.ACKNOWLEDGE_INTERRUPT_ON_EXIT
    acknowledged = intercept(trap, vmcs_with(**exiting), cpu)
    assert acknowledged.intr_info == 0x8000_0000 | vector


def test_interrupt_window() -> None:
    cpu, trap = cpu_in(LONG), EventTrap(TrapKind.INTERRUPT_WINDOW, RIP)
    assert intercept(trap, vmcs_with(), cpu) is None
    vmcs = vmcs_with(CPU_BASED_VM_EXEC_CONTROL=CpuBased.INTERRUPT_WINDOW_EXITING)
    assert intercept(trap, vmcs, cpu) == VmExit(ExitReason.INTERRUPT_WINDOW)


def test_memory_is_an_ept_violation_when_there_is_an_ept() -> None:
    cpu = cpu_in(LONG)
    trap = MemoryTrap(TrapKind.MEMORY, RIP, 0xFEE0_0020, 4, 0, 0, 0x7FFF_F020, False)
    assert intercept(trap, vmcs_with(), cpu) is None
    vm_exit = intercept(trap, vmcs_with(**{S: Secondary.ENABLE_EPT}), cpu)
    assert vm_exit.reason is ExitReason.EPT_VIOLATION
    assert vm_exit.trap is trap


def test_intercept_changes_nothing() -> None:
    cpu = cpu_in(PROTECTED)
    before = (list(cpu.gpr), cpu.rip, cpu.rflags, cpu.cr0, list(cpu.segments), cpu.shadow)
    for row in CONTROLLED:
        intercept(trap_of(row.code, PROTECTED16 if "cr8" not in row.guest else LONG, cpu),
                  vmcs_with(**{row.word: row.bit}), cpu)  # fmt: skip
    assert before == (list(cpu.gpr), cpu.rip, cpu.rflags, cpu.cr0, cpu.segments, cpu.shadow)
