"""Instructions no control asked to see: their effect, and the faults they raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmxsim.arch.capabilities import MAXPHYADDR
from vmxsim.arch.controls import Activity, CpuBased, Secondary
from vmxsim.arch.events import Event, EventType, Vector, fault
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Dr6, Dr7, Efer, Gpr, Rflags
from vmxsim.arch.segments import AccessRights, Segment, SegmentRegister, TableRegister
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.clock import VirtualClock
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import EventTrap, ExceptionTrap, MemoryTrap, TrapKind
from vmxsim.errors import EngineError
from vmxsim.vmx.execute import complete, complete_table
from vmxsim.vmx.vmcs import Vmcs

from .vmx_guests import (
    COMPATIBILITY,
    EVERY_MODE,
    GDT,
    KERNEL_MODES,
    LONG,
    PROTECTED,
    PROTECTED_MODES,
    RAM,
    REAL,
    RIP,
    V8086,
    cpu_in,
    trap_of,
    vmcs_with,
)

GP, UD = fault(Vector.GP, 0), fault(Vector.UD)
NOBODY = Vmcs()


def run(
    code: str, mode: str, cpu: ScriptedCpu, vmcs: Vmcs = NOBODY, clock: VirtualClock | None = None
) -> Event | MemoryTrap | None:
    """Complete one instruction."""
    return complete(trap_of(code, mode, cpu), vmcs, cpu, clock or VirtualClock())


def test_every_kind_has_a_row() -> None:
    assert complete_table.keys() == set(TrapKind)


@pytest.mark.parametrize("code", ["0f a2", "0f 08", "0f 01 c1"], ids=["cpuid", "invd", "vmcall"])
def test_what_always_exits_never_comes_here(code: str) -> None:
    with pytest.raises(EngineError, match="always exits"):
        run(code, LONG, cpu_in(LONG))


# -- what every instruction ends with -----------------------------------------------------------


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_rip_moves_on_and_the_shadow_goes(mode: str) -> None:
    cpu = cpu_in(mode, shadow=1)
    cpu.rflags |= Rflags.RF
    assert run("0f 09", mode, cpu) is None
    assert (cpu.rip, cpu.shadow, cpu.rflags) == (RIP + 2, 0, Rflags.FIXED)


@pytest.mark.parametrize(
    ("mode", "rip", "after"),
    [
        (REAL, 0xFFFF, 1),
        (PROTECTED, 0xFFFF_FFFF, 1),
        (LONG, 0xFFFF_FFFF, 0x1_0000_0001),
        (LONG, (1 << 64) - 1, 1),
    ],
)
def test_rip_wraps_at_the_code_size(mode: str, rip: int, after: int) -> None:
    cpu = cpu_in(mode, rip=rip)
    assert run("0f 09", mode, cpu) is None
    assert cpu.rip == after


@pytest.mark.parametrize("code", ["f4", "0f 09", "0f 31", "0f 06", "e6 80"])
def test_a_single_step_traps_after_the_instruction(code: str) -> None:
    cpu = cpu_in(LONG)
    cpu.rflags |= Rflags.TF
    assert run(code, LONG, cpu) == fault(Vector.DB, None, Dr6.BS)
    assert cpu.rip == RIP + len(bytes.fromhex(code))


@pytest.mark.parametrize("code", ["0f 22 c0", "0f 33"], ids=["mov cr0, bad", "rdpmc"])
def test_a_fault_leaves_rip_on_the_instruction(code: str) -> None:
    cpu = cpu_in(LONG, shadow=2)
    cpu.rflags |= Rflags.TF
    cpu.gpr[Gpr.RAX] = 1 << 40
    assert run(code, LONG, cpu) == GP
    assert (cpu.rip, cpu.shadow) == (RIP, 2)


def test_in_real_mode_a_fault_has_no_error_code() -> None:
    assert run("0f 33", REAL, cpu_in(REAL)) == fault(Vector.GP)


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_hlt_leaves_the_activity_state_to_the_caller(mode: str) -> None:
    cpu, vmcs = cpu_in(mode), vmcs_with()
    assert run("f4", mode, cpu, vmcs) is None
    assert vmcs.read(VmcsField.GUEST_ACTIVITY_STATE) == Activity.HLT
    assert cpu.rip == RIP + 1


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_pause_does_nothing(mode: str) -> None:
    cpu = cpu_in(mode)
    assert run("f3 90", mode, cpu) is None
    assert cpu.rip == RIP + 2


# -- control registers --------------------------------------------------------------------------

PG, PE, NE = Cr0.PG, Cr0.PE, Cr0.NE
UNRESTRICTED = {"SECONDARY_VM_EXEC_CONTROL": Secondary.UNRESTRICTED_GUEST}


def mov_cr0(cpu: ScriptedCpu, mode: str, value: int, **fields: int) -> Event | MemoryTrap | None:
    cpu.gpr[Gpr.RAX] = value
    return run("0f 22 c0", mode, cpu, vmcs_with(**{**UNRESTRICTED, **fields}))


def test_real_to_protected_mode() -> None:
    cpu = cpu_in(REAL)
    assert mov_cr0(cpu, REAL, PE | NE | Cr0.MP) is None
    assert cpu.cr0 == PE | NE | Cr0.MP | Cr0.ET


def test_reserved_bits_of_cr0_are_dropped() -> None:
    cpu = cpu_in(PROTECTED)
    assert mov_cr0(cpu, PROTECTED, 0xFFFF_FFFF & ~(PG | Cr0.NW)) is None
    assert cpu.cr0 == Cr0.DEFINED & ~(PG | Cr0.NW)


# fmt: off
CR0_FAULTS = [
    ("upper half",           LONG,      1 << 32 | PG | PE | NE),
    ("PG without PE",        PROTECTED, PG | NE),
    ("NW without CD",        PROTECTED, PE | NE | Cr0.NW),
    ("NE is fixed",          PROTECTED, PE),
    ("PG off in 64-bit code", LONG,     PE | NE),
]
# fmt: on


@pytest.mark.parametrize(
    ("mode", "value"), [r[1:] for r in CR0_FAULTS], ids=[r[0] for r in CR0_FAULTS]
)
def test_what_cr0_refuses(mode: str, value: int) -> None:
    cpu = cpu_in(mode)
    before = (cpu.cr0, cpu.efer)
    assert mov_cr0(cpu, mode, value) == GP
    assert (cpu.cr0, cpu.efer) == before


def test_without_unrestricted_guest_pe_and_pg_are_fixed() -> None:
    for value in (NE, NE | PE):
        cpu = cpu_in(COMPATIBILITY)
        assert mov_cr0(cpu, COMPATIBILITY, value, SECONDARY_VM_EXEC_CONTROL=0) == GP


def test_bits_the_hypervisor_owns_stay() -> None:
    cpu = cpu_in(PROTECTED)
    cpu.cr0 |= Cr0.WP
    fields = {"CR0_GUEST_HOST_MASK": NE | Cr0.WP, "CR0_READ_SHADOW": 0}
    assert mov_cr0(cpu, PROTECTED, PE | Cr0.TS, **fields) is None
    assert cpu.cr0 == PE | NE | Cr0.WP | Cr0.TS | Cr0.ET


def entering_ia32e(**state: object) -> ScriptedCpu:
    cpu = cpu_in(PROTECTED, cr4=Cr4.PAE, efer=Efer.LME)
    for name, value in state.items():
        setattr(cpu, name, value)
    return cpu


def test_paging_with_lme_enters_ia32e_mode_and_leaves_it() -> None:
    cpu = entering_ia32e()
    assert mov_cr0(cpu, PROTECTED, PG | PE | NE) is None
    assert cpu.efer == Efer.LME | Efer.LMA
    assert mov_cr0(cpu, COMPATIBILITY, PE | NE) is None
    assert cpu.efer == Efer.LME


def test_entering_ia32e_mode_needs_pae() -> None:
    assert mov_cr0(entering_ia32e(cr4=0), PROTECTED, PG | PE | NE) == GP


def test_entering_ia32e_mode_needs_32_bit_code() -> None:
    cpu = entering_ia32e()
    cs = cpu.segment(Segment.CS)
    cpu.set_segment(Segment.CS, cs._replace(access_rights=AccessRights.FLAT_CODE64))
    assert mov_cr0(cpu, PROTECTED, PG | PE | NE) == GP


def test_entering_ia32e_mode_needs_no_16_bit_tss() -> None:
    cpu = entering_ia32e()
    cpu.set_segment(Segment.TR, SegmentRegister(0x40, 0, 0x67, AccessRights.BUSY_TSS16))
    assert mov_cr0(cpu, PROTECTED, PG | PE | NE) == GP


@pytest.mark.parametrize(
    ("entry", "outcome"),
    [
        (0, None),
        (0x3001, None),
        (0x3002, None),  # not present: reserved bits do not count
        (0x3003, GP),
        (0x3001 | 1 << 63, GP),
        (0x3001 | 1 << MAXPHYADDR, GP),
        (0x3001 | 1 << 5, GP),
    ],
)
def test_pae_paging_looks_at_the_pdptes(entry: int, outcome: Event | None) -> None:
    cpu = cpu_in(PROTECTED, cr4=Cr4.PAE, cr3=0x4018)
    cpu.memory.write(0x4000, bytes(24) + entry.to_bytes(8, "little"))
    assert mov_cr0(cpu, PROTECTED, PG | PE | NE) == outcome
    cpu = cpu_in(PROTECTED, cr4=Cr4.PAE, cr3=0x6000)
    cpu.cr0 |= PG
    cpu.memory.write(0x4000, bytes(24) + entry.to_bytes(8, "little"))
    cpu.gpr[Gpr.RAX] = 0x4000
    assert run("0f 22 d8", PROTECTED, cpu) == outcome
    assert cpu.cr3 == (0x4000 if outcome is None else 0x6000)


def test_pdptes_outside_memory_are_an_access_that_left_it() -> None:
    cpu = cpu_in(PROTECTED, cr4=Cr4.PAE, cr3=RAM)
    outcome = mov_cr0(cpu, PROTECTED, PG | PE | NE)
    assert isinstance(outcome, MemoryTrap)
    assert outcome.gpa == RAM


@pytest.mark.parametrize(
    ("value", "outcome"), [(0x1234_5000, None), (1 << MAXPHYADDR, GP), (1 << 63, GP)]
)
def test_cr3_ends_at_maxphyaddr(value: int, outcome: Event | None) -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX] = value
    assert run("0f 22 d8", LONG, cpu) == outcome
    assert cpu.cr3 == (0 if outcome else value)


# fmt: off
CR4_CASES = [
    ("plain bits",             LONG,      Cr4.PAE | Cr4.VMXE | Cr4.OSFXSR | Cr4.PGE, None),
    ("a reserved bit",         LONG,      Cr4.PAE | Cr4.VMXE | 1 << 15, GP),
    ("a bit it does not have", LONG,      Cr4.PAE | Cr4.VMXE | Cr4.PKE, GP),
    ("the upper half",         LONG,      Cr4.PAE | Cr4.VMXE | 1 << 40, GP),
    ("VMXE is fixed",          LONG,      Cr4.PAE, GP),
    ("PAE off in IA-32e mode", LONG,      Cr4.VMXE, GP),
    ("LA57 in IA-32e mode",    LONG,      Cr4.PAE | Cr4.VMXE | Cr4.LA57, GP),
    ("LA57 before it",         PROTECTED, Cr4.PAE | Cr4.VMXE | Cr4.LA57, None),
    ("PCIDE outside it",       PROTECTED, Cr4.PAE | Cr4.VMXE | Cr4.PCIDE, GP),
]
# fmt: on


@pytest.mark.parametrize(
    ("mode", "value", "outcome"), [r[1:] for r in CR4_CASES], ids=[r[0] for r in CR4_CASES]
)
def test_what_cr4_takes(mode: str, value: int, outcome: Event | None) -> None:
    cpu = cpu_in(mode)
    before = cpu.cr4
    cpu.gpr[Gpr.RAX] = value
    assert run("0f 22 e0", mode, cpu) == outcome
    assert cpu.cr4 == (value if outcome is None else before)


def test_cr4_under_a_mask() -> None:
    cpu = cpu_in(LONG)
    cpu.cr4 |= Cr4.VMXE
    cpu.gpr[Gpr.RAX] = Cr4.PAE | Cr4.OSFXSR
    vmcs = vmcs_with(CR4_GUEST_HOST_MASK=Cr4.VMXE, CR4_READ_SHADOW=0)
    assert run("0f 22 e0", LONG, cpu, vmcs) is None
    assert cpu.cr4 == Cr4.PAE | Cr4.OSFXSR | Cr4.VMXE
    assert run("0f 20 e1", LONG, cpu, vmcs) is None
    assert cpu.gpr[Gpr.RCX] == Cr4.PAE | Cr4.OSFXSR


@pytest.mark.parametrize(("value", "outcome"), [(0, None), (15, None), (16, GP), (1 << 63, GP)])
def test_cr8_has_four_bits(value: int, outcome: Event | None) -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX] = value
    assert run("44 0f 22 c0", LONG, cpu) == outcome
    assert cpu.cr8 == (0 if outcome else value)


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_reading_control_registers(mode: str) -> None:
    cpu = cpu_in(mode, cr2=0x1_0000_1234, cr3=0x5000)
    vmcs = vmcs_with(CR0_GUEST_HOST_MASK=Cr0.NE | Cr0.PE, CR0_READ_SHADOW=Cr0.PE | Cr0.TS)
    cpu.cr0 |= Cr0.WP
    wide = mode == LONG
    for code, expected in (
        ("0f 20 d0", 0x1_0000_1234 if wide else 0x1234),
        ("0f 20 d8", 0x5000),
        ("0f 20 c0", (cpu.cr0 | Cr0.PE) & ~Cr0.NE),
    ):
        cpu.gpr[Gpr.RAX] = (1 << 64) - 1
        assert run(code, mode, cpu, vmcs) is None
        assert cpu.gpr[Gpr.RAX] == expected


def test_mov_to_cr2() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX] = 0xFFFF_8000_1234_5678
    assert run("0f 22 d0", LONG, cpu) is None
    assert cpu.cr2 == 0xFFFF_8000_1234_5678


@pytest.mark.parametrize(("mask", "left"), [(0, 0), (Cr0.TS, Cr0.TS)])
def test_clts_spares_a_bit_of_the_hypervisors(mask: int, left: int) -> None:
    cpu = cpu_in(LONG)
    cpu.cr0 |= Cr0.TS
    assert run("0f 06", LONG, cpu, vmcs_with(CR0_GUEST_HOST_MASK=mask)) is None
    assert cpu.cr0 & Cr0.TS == left


@pytest.mark.parametrize(
    ("mode", "source", "low"), [(REAL, 0xFFF9, 9), (PROTECTED, 0, 1), (PROTECTED, 0xE, 0xF)]
)
def test_lmsw(mode: str, source: int, low: int) -> None:
    cpu = cpu_in(mode)
    cpu.cr0 |= Cr0.NE
    rest = cpu.cr0 & ~0xF
    cpu.gpr[Gpr.RAX] = source
    assert run("0f 01 f0", mode, cpu, vmcs_with(**UNRESTRICTED)) is None
    assert cpu.cr0 == rest | low


@pytest.mark.parametrize(
    ("code", "mode", "expected"),
    [
        ("0f 01 e0", LONG, 0x8000_0039),
        ("48 0f 01 e0", LONG, 0x8000_0039),
        ("66 0f 01 e0", LONG, 0xFFFF_FFFF_FFFF_0039),
        ("0f 01 e0", PROTECTED, 0x8000_0039),
    ],
)
def test_smsw_to_a_register(code: str, mode: str, expected: int) -> None:
    cpu = cpu_in(mode)
    cpu.cr0 |= PG
    cpu.gpr[Gpr.RAX] = (1 << 64) - 1
    vmcs = vmcs_with(CR0_GUEST_HOST_MASK=Cr0.TS, CR0_READ_SHADOW=Cr0.TS)
    assert run(code, mode, cpu, vmcs) is None
    assert cpu.gpr[Gpr.RAX] == expected


def test_smsw_to_memory_stores_16_bits() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RDI] = 0x700
    cpu.memory.write(0x700, b"\xaa" * 8)
    assert run("48 0f 01 27", LONG, cpu) is None
    assert cpu.memory.read(0x700, 4) == b"\x31\x00\xaa\xaa"


# -- debug registers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "number", "value", "stored"),
    [
        ("0f 23 c0", 0, 0xFFFF_8000_0000_1000, 0xFFFF_8000_0000_1000),
        ("0f 23 f0", 6, 0xFFFF_FFFF, Dr6.FIXED | 0xE00F),
        ("0f 23 f0", 6, 0, Dr6.FIXED),
        ("0f 23 f8", 7, 0xFFFF_FFFF & ~Dr7.GD, 0xFFFF_07FF),
        ("0f 23 e8", 7, 0x1, 0x401),
        ("0f 23 e0", 6, 0x1, Dr6.FIXED | 1),
    ],
)
def test_mov_to_dr(code: str, number: int, value: int, stored: int) -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX] = value
    assert run(code, LONG, cpu) is None
    assert cpu.dr[number] == stored
    assert cpu.rip == RIP + 3


@pytest.mark.parametrize(
    ("code", "cr4", "dr7", "outcome"),
    [
        ("0f 23 e0", Cr4.DE, 0, UD),
        ("0f 21 e8", Cr4.DE, 0, UD),
        ("0f 21 e8", Cr4.DE, Dr7.GD, UD),
        ("0f 21 c0", 0, Dr7.GD, fault(Vector.DB, None, Dr6.BD)),
        ("0f 23 f8", 0, 0, GP),
        ("0f 23 f0", 0, 0, GP),
    ],
)
def test_what_mov_dr_refuses(code: str, cr4: int, dr7: int, outcome: Event) -> None:
    cpu = cpu_in(LONG)
    cpu.cr4 |= cr4
    cpu.dr[7] |= dr7
    cpu.gpr[Gpr.RAX] = 1 << 32
    before = list(cpu.dr)
    assert run(code, LONG, cpu) == outcome
    assert cpu.dr == before


def test_mov_from_dr() -> None:
    cpu = cpu_in(PROTECTED)
    cpu.dr[3] = 0xDEAD_0000
    assert run("0f 21 d9", PROTECTED, cpu) is None
    assert cpu.gpr[Gpr.RCX] == 0xDEAD_0000


# -- time, random numbers -----------------------------------------------------------------------


def clock_at(now_ns: int) -> VirtualClock:
    clock = VirtualClock()
    clock.charge(now_ns - clock.now())
    return clock


@pytest.mark.parametrize("mode", EVERY_MODE)
@pytest.mark.parametrize(
    ("control", "tsc"), [(0, 0x5_0000_1000), (CpuBased.USE_TSC_OFFSETTING, 0x4_0000_1000)]
)
def test_rdtsc_with_and_without_offset(mode: str, control: int, tsc: int) -> None:
    cpu, clock = cpu_in(mode), clock_at(0x5_0000_1000)
    cpu.gpr[Gpr.RAX] = cpu.gpr[Gpr.RDX] = (1 << 64) - 1
    cpu.set_msr(Msr.IA32_TSC_AUX, 7)
    vmcs = vmcs_with(CPU_BASED_VM_EXEC_CONTROL=control, TSC_OFFSET=(1 << 64) - 0x1_0000_0000)
    assert run("0f 31", mode, cpu, vmcs, clock) is None
    assert (cpu.gpr[Gpr.RDX], cpu.gpr[Gpr.RAX]) == (tsc >> 32, tsc & 0xFFFF_FFFF)
    assert run("0f 01 f9", mode, cpu, vmcs, clock) is None
    assert (cpu.gpr[Gpr.RCX], cpu.rip) == (7, RIP + 5)


def test_rdtsc_is_privileged_under_tsd() -> None:
    cpu = cpu_in(LONG, cpl=3)
    cpu.cr4 |= Cr4.TSD
    assert run("0f 31", LONG, cpu) == GP


def test_rdpid() -> None:
    cpu = cpu_in(LONG)
    cpu.set_msr(Msr.IA32_TSC_AUX, 0x1234)
    assert run("f3 0f c7 f9", LONG, cpu) is None
    assert cpu.gpr[Gpr.RCX] == 0x1234


@pytest.mark.parametrize(
    ("code", "bits"), [("0f c7 f1", 32), ("48 0f c7 f9", 64), ("66 0f c7 f1", 16)]
)
def test_random_numbers_are_repeatable_and_differ(code: str, bits: int) -> None:
    drawn: list[list[int]] = []
    for _ in range(2):
        cpu, clock = cpu_in(LONG), VirtualClock()
        cpu.rflags |= Rflags.OF | Rflags.ZF | Rflags.PF
        drawn.append([])
        for _ in range(8):
            cpu.gpr[Gpr.RCX] = 0xAAAA << 48
            cpu.rip = RIP
            assert run(code, LONG, cpu, clock=clock) is None
            drawn[-1].append(cpu.gpr[Gpr.RCX])
            clock.charge(1000)
        assert cpu.rflags == Rflags.FIXED | Rflags.CF
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 8
    top = {value >> bits for value in drawn[0]}
    assert top == ({0xAAAA << 48 >> 16} if bits == 16 else {0})


# -- MSRs ---------------------------------------------------------------------------------------


def wrmsr(cpu: ScriptedCpu, index: int, value: int) -> Event | MemoryTrap | None:
    cpu.gpr[Gpr.RCX], cpu.gpr[Gpr.RAX], cpu.gpr[Gpr.RDX] = index, value & 0xFFFF_FFFF, value >> 32
    return run("0f 30", LONG, cpu)


def rdmsr(cpu: ScriptedCpu, index: int) -> int | Event | MemoryTrap:
    cpu.gpr[Gpr.RCX] = index
    outcome = run("0f 32", LONG, cpu)
    return cpu.gpr[Gpr.RDX] << 32 | cpu.gpr[Gpr.RAX] if outcome is None else outcome


NONCANONICAL = 0x8000_0000_0000_0000

# fmt: off
MSR_CASES = [
    (Msr.IA32_LSTAR, 0xFFFF_8000_0000_1000, None),
    (Msr.IA32_LSTAR, NONCANONICAL, GP),
    (Msr.IA32_FS_BASE, 0x7FFF_FFFF_F000, None),
    (Msr.IA32_FS_BASE, 0x8000_0000_0000, GP),
    (Msr.IA32_GS_BASE, 0xFFFF_8880_0000_0000, None),
    (Msr.IA32_KERNEL_GS_BASE, NONCANONICAL, GP),
    (Msr.IA32_SYSENTER_EIP, NONCANONICAL, GP),
    (Msr.IA32_STAR, NONCANONICAL, None),
    (Msr.IA32_FMASK, 0x4_7700, None),
    (Msr.IA32_FMASK, 1 << 32, GP),
    (Msr.IA32_TSC_AUX, 1 << 32, GP),
    (Msr.IA32_PAT, 0x0007_0406_0007_0406, None),
    (Msr.IA32_PAT, 0x0002_0406_0007_0406, GP),
    (Msr.IA32_EFER, Efer.LME | Efer.LMA | Efer.NXE, None),
    (Msr.IA32_EFER, Efer.NXE, GP),
    (Msr.IA32_EFER, Efer.LME | 1 << 1, GP),
    (Msr.IA32_MISC_ENABLE, 1, GP),
    (Msr.IA32_TIME_STAMP_COUNTER, 1, GP),
]
# fmt: on


@pytest.mark.parametrize(
    ("index", "value", "outcome"), MSR_CASES, ids=lambda v: v.name if isinstance(v, Msr) else None
)
def test_wrmsr_and_back(index: Msr, value: int, outcome: Event | None) -> None:
    cpu = cpu_in(LONG)
    assert wrmsr(cpu, index, value) == outcome
    if outcome is None:
        assert rdmsr(cpu, index) == value


def test_lma_is_not_software_s() -> None:
    cpu = cpu_in(LONG)
    assert wrmsr(cpu, Msr.IA32_EFER, Efer.LME | Efer.SCE) is None
    assert cpu.efer == Efer.LME | Efer.LMA | Efer.SCE


def test_an_msr_nobody_has_cannot_be_read() -> None:
    assert rdmsr(cpu_in(LONG), 0xC001_1111) == GP


def test_the_tsc_msr_is_the_tsc() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RCX] = Msr.IA32_TIME_STAMP_COUNTER
    vmcs = vmcs_with(CPU_BASED_VM_EXEC_CONTROL=CpuBased.USE_TSC_OFFSETTING, TSC_OFFSET=5)
    assert run("0f 32", LONG, cpu, vmcs, clock_at(1000)) is None
    assert cpu.gpr[Gpr.RAX] == 1005


# -- system calls and software interrupts -------------------------------------------------------


def system_call_cpu(mode: str = LONG) -> ScriptedCpu:
    cpu = cpu_in(mode, cpl=3)
    cpu.set_msr(Msr.IA32_STAR, 0x0023_0010 << 32)
    cpu.set_msr(Msr.IA32_LSTAR, 0xFFFF_8000_0000_4000)
    cpu.set_msr(Msr.IA32_FMASK, Rflags.IF | Rflags.DF)
    cpu.set_msr(Msr.IA32_SYSENTER_CS, 0x13)
    cpu.set_msr(Msr.IA32_SYSENTER_ESP, 0xFFFF_9000_0000_0000)
    cpu.set_msr(Msr.IA32_SYSENTER_EIP, 0xFFFF_9000_0000_1000)
    cpu.rflags = Rflags.FIXED | Rflags.IF | Rflags.DF | Rflags.CF
    return cpu


FLAT_DATA = SegmentRegister(0x18, 0, 0xFFFF_FFFF, AccessRights.FLAT_DATA32)


def test_syscall() -> None:
    cpu = system_call_cpu()
    cpu.rflags |= Rflags.RF
    assert run("0f 05", LONG, cpu) is None
    assert cpu.gpr[Gpr.RCX] == RIP + 2
    assert cpu.gpr[Gpr.R11] == Rflags.FIXED | Rflags.IF | Rflags.DF | Rflags.CF
    assert (cpu.rip, cpu.rflags) == (0xFFFF_8000_0000_4000, Rflags.FIXED | Rflags.CF)
    code = SegmentRegister(0x10, 0, 0xFFFF_FFFF, AccessRights.FLAT_CODE64)
    assert (cpu.segment(Segment.CS), cpu.segment(Segment.SS)) == (code, FLAT_DATA)
    assert (cpu.cpl, cpu.mode_bits) == (0, 64)


@pytest.mark.parametrize("masked", [True, False])
def test_a_single_step_over_syscall_obeys_the_mask(masked: bool) -> None:
    cpu = system_call_cpu()
    cpu.rflags |= Rflags.TF
    cpu.set_msr(Msr.IA32_FMASK, Rflags.TF if masked else 0)
    assert run("0f 05", LONG, cpu) == (None if masked else fault(Vector.DB, None, Dr6.BS))
    assert cpu.rip == 0xFFFF_8000_0000_4000


def test_syscall_without_sce() -> None:
    cpu = system_call_cpu()
    cpu.efer &= ~Efer.SCE
    assert run("0f 05", LONG, cpu) == UD
    assert cpu.rip == RIP


@pytest.mark.parametrize("mode", [REAL, V8086, PROTECTED, COMPATIBILITY])
def test_syscall_is_for_64_bit_mode(mode: str) -> None:
    cpu = cpu_in(mode)
    cpu.efer |= Efer.SCE
    kind_and_insn = trap_of("0f 05", LONG, cpu)
    trap = kind_and_insn._replace(insn=kind_and_insn.insn._replace(bits=cpu.mode_bits))
    assert complete(trap, NOBODY, cpu, VirtualClock()) == UD


@pytest.mark.parametrize(
    ("mode", "rights", "mask"),
    [
        (PROTECTED, AccessRights.FLAT_CODE32, 0xFFFF_FFFF),
        (LONG, AccessRights.FLAT_CODE64, (1 << 64) - 1),
        (COMPATIBILITY, AccessRights.FLAT_CODE64, (1 << 64) - 1),
    ],
)
def test_sysenter(mode: str, rights: int, mask: int) -> None:
    cpu = system_call_cpu(mode)
    assert run("0f 34", mode, cpu) is None
    assert cpu.rip == 0xFFFF_9000_0000_1000 & mask
    assert cpu.gpr[Gpr.RSP] == 0xFFFF_9000_0000_0000 & mask
    assert cpu.rflags == Rflags.FIXED | Rflags.DF | Rflags.CF
    assert cpu.segment(Segment.CS) == SegmentRegister(0x10, 0, 0xFFFF_FFFF, rights)
    assert cpu.segment(Segment.SS) == FLAT_DATA


def test_sysenter_needs_protection_and_a_selector() -> None:
    assert run("0f 34", REAL, cpu_in(REAL)) == fault(Vector.GP)
    cpu = system_call_cpu(PROTECTED)
    cpu.set_msr(Msr.IA32_SYSENTER_CS, 3)
    assert run("0f 34", PROTECTED, cpu) == GP


# fmt: off
SOFTWARE = [
    ("int 0x80",  "cd 80", Event(EventType.SOFTWARE_INTERRUPT, 0x80, None, 2)),
    ("int 3",     "cd 03", Event(EventType.SOFTWARE_INTERRUPT, 3, None, 2)),
    ("int3",      "cc",    Event(EventType.SOFTWARE_EXCEPTION, Vector.BP, None, 1)),
    ("int1",      "f1",    Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, Vector.DB, None, 1)),
]
# fmt: on


@pytest.mark.parametrize("mode", [m for m in EVERY_MODE if m != V8086])
@pytest.mark.parametrize("row", SOFTWARE, ids=lambda row: row[0])
def test_software_interrupts_become_events(row: tuple[str, str, Event], mode: str) -> None:
    cpu = cpu_in(mode)
    assert run(row[1], mode, cpu) == row[2]
    assert cpu.rip == RIP


@pytest.mark.parametrize("mode", [REAL, PROTECTED, COMPATIBILITY])
def test_into_looks_at_of(mode: str) -> None:
    cpu = cpu_in(mode)
    assert run("ce", mode, cpu) is None
    assert cpu.rip == RIP + 1
    cpu.rflags |= Rflags.OF
    assert run("ce", mode, cpu) == Event(EventType.SOFTWARE_EXCEPTION, Vector.OF, None, 1)


@pytest.mark.parametrize(("iopl", "refused"), [(0, True), (2, True), (3, False)])
def test_in_virtual_8086_mode_int_n_needs_iopl_3(iopl: int, refused: bool) -> None:
    cpu = cpu_in(V8086)
    cpu.rflags |= iopl << 12
    outcome = run("cd 21", V8086, cpu)
    assert outcome == (GP if refused else Event(EventType.SOFTWARE_INTERRUPT, 0x21, None, 2))
    assert run("cc", V8086, cpu) == SOFTWARE[2][2]


# -- translations, extended states, monitoring --------------------------------------------------


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_invlpg(mode: str) -> None:
    cpu = cpu_in(mode)
    cpu.gpr[Gpr.RDI] = cpu.gpr[Gpr.RBX] = 0x1234
    assert run("0f 01 3f", mode, cpu) is None
    assert cpu.invalidated == [0x1234]


# fmt: off
INVPCID_CASES = [
    # type, PCID, address, outcome, flushes, invalidated
    (0, 0, 0x5000, None, 0, [0x5000]),
    (0, 1, 0x5000, GP, 0, []),
    (0, 0, 1 << 62, GP, 0, []),
    (1, 0, 1 << 62, None, 1, []),
    (1, 1, 0, GP, 0, []),
    (2, 1, 0, None, 1, []),
    (3, 0, 0, None, 1, []),
    (4, 0, 0, GP, 0, []),
    (2, 1 << 12, 0, GP, 0, []),
]
# fmt: on


@pytest.mark.parametrize("row", INVPCID_CASES, ids=str)
def test_invpcid(row: tuple[int, int, int, Event | None, int, list[int]]) -> None:
    kind, pcid, address, outcome, flushes, invalidated = row
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX], cpu.gpr[Gpr.RDI] = kind, 0x800
    cpu.memory.write(0x800, pcid.to_bytes(8, "little") + address.to_bytes(8, "little"))
    assert run("66 0f 38 82 07", LONG, cpu) == outcome
    assert (cpu.tlb_flushes, cpu.invalidated) == (flushes, invalidated)


@pytest.mark.parametrize(
    ("cr4", "index", "outcome"), [(0, 0, UD), (Cr4.OSXSAVE, 1, GP), (Cr4.OSXSAVE, 0, None)]
)
def test_xgetbv(cr4: int, index: int, outcome: Event | None) -> None:
    cpu = cpu_in(LONG, xcr0=7)
    cpu.cr4 |= cr4
    cpu.gpr[Gpr.RCX] = index
    assert run("0f 01 d0", LONG, cpu) == outcome
    if outcome is None:
        assert (cpu.gpr[Gpr.RDX], cpu.gpr[Gpr.RAX]) == (0, 7)


@pytest.mark.parametrize(
    ("code", "extensions", "outcome"),
    [("0f 01 c8", 0, None), ("0f 01 c8", 1, GP), ("0f 01 c9", 1, None), ("0f 01 c9", 2, GP)],
)
def test_monitor_and_mwait_are_hints(code: str, extensions: int, outcome: Event | None) -> None:
    cpu = cpu_in(PROTECTED)
    cpu.gpr[Gpr.RCX] = extensions
    assert run(code, PROTECTED, cpu) == outcome
    assert cpu.rip == (RIP if outcome else RIP + 3)


@pytest.mark.parametrize(
    "code", ["0f aa", "0f c7 2f", "0f c7 1f"], ids=["rsm", "xsaves", "xrstors"]
)
def test_what_this_processor_does_not_have(code: str) -> None:
    assert run(code, LONG, cpu_in(LONG)) == UD


# -- I/O ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("e4 60", 0x1122_3344_5566_77FF),
        ("66 e5 60", 0x1122_3344_5566_FFFF),
        ("ed", 0xFFFF_FFFF),
        ("ee", 0x1122_3344_5566_7788),
    ],
)
def test_a_bus_without_devices_reads_all_ones(code: str, expected: int) -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RAX] = 0x1122_3344_5566_7788
    assert run(code, LONG, cpu) is None
    assert cpu.gpr[Gpr.RAX] == expected


def test_rep_insw_goes_one_iteration_at_a_time() -> None:
    cpu = cpu_in(PROTECTED)
    cpu.gpr[Gpr.RCX], cpu.gpr[Gpr.RDI] = 2, 0x900
    assert run("f3 66 6d", PROTECTED, cpu) is None
    assert (cpu.rip, cpu.gpr[Gpr.RCX], cpu.gpr[Gpr.RDI]) == (RIP, 1, 0x902)
    assert run("f3 66 6d", PROTECTED, cpu) is None
    assert (cpu.rip, cpu.gpr[Gpr.RCX], cpu.gpr[Gpr.RDI]) == (RIP + 3, 0, 0x904)
    assert cpu.memory.read(0x900, 5) == b"\xff\xff\xff\xff\x00"
    assert run("f3 66 6d", PROTECTED, cpu) is None
    assert cpu.gpr[Gpr.RDI] == 0x904


def test_outsb_downwards_wraps_its_16_bit_index() -> None:
    cpu = cpu_in(REAL)
    cpu.rflags |= Rflags.DF
    cpu.gpr[Gpr.RSI] = 0xAB_0000
    assert run("6e", REAL, cpu) is None
    assert cpu.gpr[Gpr.RSI] == 0xAB_FFFF


def test_string_io_faults_on_memory_first() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RDI] = RAM + 8
    outcome = run("6c", LONG, cpu)
    assert isinstance(outcome, MemoryTrap)
    assert (outcome.gpa, outcome.access) == (RAM + 8, 1)
    assert cpu.rip == RIP


# -- descriptor tables --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "mode", "base"),
    [
        ("0f 01 17", PROTECTED, 0x1234_5678),
        ("66 0f 01 17", PROTECTED, 0x34_5678),
        ("0f 01 17", LONG, 0xFFFF_8000_1234_5678),
        ("0f 01 17", REAL, 0x34_5678),
    ],
)
def test_lgdt_and_sgdt(code: str, mode: str, base: int) -> None:
    cpu = cpu_in(mode)
    cpu.gpr[Gpr.RDI] = cpu.gpr[Gpr.RBX] = 0xA00
    cpu.memory.write(0xA00, b"\x7f\x00" + (0xFFFF_8000_1234_5678).to_bytes(8, "little"))
    assert run(code, mode, cpu) is None
    assert cpu.gdtr == TableRegister(base, 0x7F)
    size = 10 if mode == LONG else 6
    cpu.memory.write(0xA00, b"\xaa" * 12)
    assert run("0f 01 07", mode, cpu) is None
    stored = b"\x7f\x00" + base.to_bytes(8, "little")
    assert cpu.memory.read(0xA00, 12) == stored[:size] + b"\xaa" * (12 - size)


def test_lidt_and_sidt_are_the_other_table() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RDI] = 0xA00
    cpu.memory.write(0xA00, b"\xff\x0f" + (0x7000).to_bytes(8, "little"))
    gdtr = cpu.gdtr
    assert run("0f 01 1f", LONG, cpu) is None
    assert (cpu.idtr, cpu.gdtr) == (TableRegister(0x7000, 0xFFF), gdtr)
    cpu.gpr[Gpr.RDI] = 0xB00
    assert run("0f 01 0f", LONG, cpu) is None
    assert cpu.memory.read(0xB00, 10) == cpu.memory.read(0xA00, 10)


def test_lgdt_refuses_a_base_that_is_not_canonical() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RDI] = 0xA00
    cpu.memory.write(0xA00, b"\x7f\x00" + (1 << 62).to_bytes(8, "little"))
    assert run("0f 01 17", LONG, cpu) == GP


def system_descriptor(mode: str, rights: int) -> ScriptedCpu:
    """A descriptor at selector 0x28, of base 0x5000 and limit 0x67."""
    cpu = cpu_in(mode)
    low = 0x67 | 0x5000 << 16 | rights << 40
    raw = low.to_bytes(8, "little") + (0xFFFF_8000).to_bytes(8, "little")
    cpu.memory.write(GDT + 0x28, raw if mode == LONG else raw[:8])
    return cpu


@pytest.mark.parametrize("mode", PROTECTED_MODES)
def test_ltr_marks_the_tss_busy(mode: str) -> None:
    cpu = system_descriptor(mode, 0x89)
    cpu.gpr[Gpr.RCX] = 0x28
    assert run("0f 00 d9", mode, cpu) is None
    base = 0xFFFF_8000_0000_5000 if mode == LONG else 0x5000
    assert cpu.segment(Segment.TR) == SegmentRegister(0x28, base, 0x67, 0x8B)
    assert cpu.memory.read(GDT + 0x2D, 1) == b"\x8b"
    assert run("0f 00 c9", mode, cpu) is None
    assert cpu.gpr[Gpr.RCX] == 0x28


# fmt: off
SELECTOR_FAULTS = [
    ("ltr, null",              "0f 00 d9", 0x89, 0x03, GP),
    ("ltr, in the LDT",        "0f 00 d9", 0x89, 0x2C, fault(Vector.GP, 0x2C)),
    ("ltr, beyond the limit",  "0f 00 d9", 0x89, 0x80, fault(Vector.GP, 0x80)),
    ("ltr, busy",              "0f 00 d9", 0x8B, 0x28, fault(Vector.GP, 0x28)),
    ("ltr, not present",       "0f 00 d9", 0x09, 0x2B, fault(Vector.NP, 0x28)),
    ("ltr, an LDT",            "0f 00 d9", 0x82, 0x28, fault(Vector.GP, 0x28)),
    ("lldt, a TSS",            "0f 00 d1", 0x89, 0x28, fault(Vector.GP, 0x28)),
    ("lldt, a data segment",   "0f 00 d1", 0x92, 0x28, fault(Vector.GP, 0x28)),
    ("lldt, not present",      "0f 00 d1", 0x02, 0x28, fault(Vector.NP, 0x28)),
]
# fmt: on


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
@pytest.mark.parametrize("row", SELECTOR_FAULTS, ids=lambda row: row[0])
def test_what_ltr_and_lldt_refuse(row: tuple[str, str, int, int, Event], mode: str) -> None:
    _, code, rights, selector, outcome = row
    cpu = system_descriptor(mode, rights)
    cpu.gpr[Gpr.RCX] = selector
    before = list(cpu.segments)
    assert run(code, mode, cpu) == outcome
    assert cpu.segments == before


def test_lldt_and_sldt() -> None:
    cpu = system_descriptor(LONG, 0x82)
    cpu.gpr[Gpr.RCX] = 0x28
    assert run("0f 00 d1", LONG, cpu) is None
    expected = SegmentRegister(0x28, 0xFFFF_8000_0000_5000, 0x67, AccessRights.LDT)
    assert cpu.segment(Segment.LDTR) == expected
    cpu.gpr[Gpr.RCX] = (1 << 64) - 1
    assert run("66 0f 00 c1", LONG, cpu) is None
    assert cpu.gpr[Gpr.RCX] == 0xFFFF_FFFF_FFFF_0028
    cpu.gpr[Gpr.RCX] = 0
    assert run("0f 00 d1", LONG, cpu) is None
    assert cpu.segment(Segment.LDTR).unusable


# -- memory operands, events --------------------------------------------------------------------


def break_ds(cpu: ScriptedCpu, **changes: int) -> None:
    cpu.set_segment(Segment.DS, cpu.segment(Segment.DS)._replace(**changes))


@pytest.mark.parametrize(
    ("mode", "prepare"),
    [
        (PROTECTED, lambda cpu: break_ds(cpu, limit=0xA04)),
        (PROTECTED, lambda cpu: break_ds(cpu, access_rights=AccessRights.UNUSABLE)),
        (LONG, lambda cpu: cpu.gpr.__setitem__(Gpr.RDI, 1 << 47)),
    ],
    ids=["limit", "null", "not canonical"],
)
def test_a_bad_memory_operand(mode: str, prepare: Callable[[ScriptedCpu], None]) -> None:
    cpu = cpu_in(mode)
    cpu.gpr[Gpr.RDI] = 0xA00
    prepare(cpu)
    assert run("0f 01 17", mode, cpu) == GP


def test_through_the_stack_segment_it_is_a_stack_fault() -> None:
    cpu = cpu_in(LONG)
    cpu.gpr[Gpr.RDI] = 1 << 47
    assert run("36 0f 01 17", LONG, cpu) == fault(Vector.SS, 0)


def test_an_exception_is_handed_on() -> None:
    trap = ExceptionTrap(TrapKind.EXCEPTION, RIP, Vector.PF, 6, 0xDEAD, None)
    outcome = complete(trap, NOBODY, cpu_in(LONG), VirtualClock())
    assert outcome == fault(Vector.PF, 6, 0xDEAD)


@pytest.mark.parametrize("kind", [TrapKind.KICK, TrapKind.BUDGET, TrapKind.INTERRUPT_WINDOW])
def test_an_event_nobody_wants_changes_nothing(kind: TrapKind) -> None:
    cpu = cpu_in(LONG)
    assert complete(EventTrap(kind, RIP), NOBODY, cpu, VirtualClock()) is None
    assert cpu.rip == RIP


def test_without_an_ept_nobodys_memory_reads_all_ones() -> None:
    cpu = cpu_in(PROTECTED)
    trap = MemoryTrap(TrapKind.MEMORY, RIP, 0xFEE0_0020, 4, 0, 0, None, False)
    assert complete(trap, NOBODY, cpu, VirtualClock()) is None
    assert cpu.memory.read(0xFEE0_0020, 4) == b"\xff\xff\xff\xff"
    read_only = trap._replace(access=1, present=True)
    assert complete(read_only, NOBODY, cpu, VirtualClock()) == fault(Vector.MC)
