"""Model-specific registers: what there is, what may be written, and #GP for the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Efer, Gpr
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.errors import KvmError, VmxsimError
from vmxsim.kvm.msr import MSR_INDEX_LIST
from vmxsim.kvm.vmcs_setup import PASSED_THROUGH, msr_bitmap

from .conftest import HLT, Guest, simple

RDMSR, WRMSR = simple(ExitReason.MSR_READ, 2), simple(ExitReason.MSR_WRITE, 2)
GP = 0x8000_030D


def read(guest: Guest, index: int) -> int | None:
    """What the guest's RDMSR gives; None for #GP."""
    guest.gpr[Gpr.RCX] = index
    guest.run(RDMSR, HLT)
    if guest.processor.injected[-1] == GP:
        return None
    assert guest.processor.injected[-1] == 0
    return guest.gpr[Gpr.RDX] << 32 | guest.gpr[Gpr.RAX]


def write(guest: Guest, index: int, value: int) -> bool:
    """Whether the guest's WRMSR was taken."""
    guest.gpr[:3] = [value & 0xFFFF_FFFF, index, value >> 32]
    guest.run(WRMSR, HLT)
    return guest.processor.injected[-1] == 0


@pytest.mark.parametrize(
    "index",
    [0x4567_8989, Msr.IA32_VMX_BASIC, Msr.KVM_SYSTEM_TIME_NEW, 0x802, Msr.IA32_TSC_AUX,
     Msr.IA32_SPEC_CTRL, Msr.IA32_XSS, Msr.HV_GUEST_OS_ID, Msr.IA32_MC0_STATUS],
)  # fmt: skip
def test_unknown_ones_fault(guest: Guest, index: int) -> None:
    assert read(guest, index) is None
    assert not write(guest, index, 0)
    assert guest.processor.rip == 0x1000 + 2  # only the two HLTs were passed


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (Msr.IA32_APIC_BASE, 0xFEE0_0900),
        (Msr.IA32_PAT, 0x0007_0406_0007_0406),
        (Msr.IA32_MTRRCAP, 0x508),
        (Msr.IA32_MISC_ENABLE, 1),
        (Msr.IA32_PLATFORM_ID, 0),
        (Msr.IA32_EFER, 0),
        (Msr.IA32_MCG_CAP, 0),
        (Msr.MSR_FSB_FREQ, 3),
    ],
)
def test_values_after_reset(guest: Guest, index: int, value: int) -> None:
    assert read(guest, index) == value


@pytest.mark.parametrize(
    ("index", "field"),
    [
        (Msr.IA32_FS_BASE, F.GUEST_FS_BASE),
        (Msr.IA32_GS_BASE, F.GUEST_GS_BASE),
        (Msr.IA32_SYSENTER_EIP, F.GUEST_SYSENTER_EIP),
        (Msr.IA32_PAT, F.GUEST_IA32_PAT),
    ],
)
def test_some_live_in_the_vmcs(guest: Guest, index: int, field: F) -> None:
    assert write(guest, index, 0x0606_0606_0606_0606 if index == Msr.IA32_PAT else 0x1234)
    assert guest.field(field) == read(guest, index) != 0


@pytest.mark.parametrize("index", [Msr.IA32_STAR, Msr.IA32_LSTAR, Msr.IA32_KERNEL_GS_BASE])
def test_some_live_in_the_processor(guest: Guest, index: int) -> None:
    assert write(guest, index, 0x7FFF_0000_1111)
    assert guest.processor.msrs[index] == 0x7FFF_0000_1111


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (Msr.IA32_LSTAR, 1 << 47),
        (Msr.IA32_FS_BASE, 1 << 60),
        (Msr.IA32_PAT, 2),
        (Msr.IA32_MTRR_DEF_TYPE, 2),
        (Msr.IA32_MTRR_DEF_TYPE, 1 << 12),
        (Msr.IA32_MTRR_FIX64K_00000, 0x0200),
        (Msr.IA32_MTRR_PHYSBASE0, 1 << 40),
        (Msr.IA32_MTRR_PHYSMASK0, 0x400),
        (Msr.IA32_MTRRCAP, 0x508),
        (Msr.IA32_EFER, 1 << 1),
        (Msr.IA32_APIC_BASE, 1 << 10),
        (Msr.IA32_DEBUGCTL, 1),
        (Msr.MSR_PLATFORM_INFO, 0),
    ],
)
def test_what_may_not_be_written(guest: Guest, index: int, value: int) -> None:
    guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
    before = read(guest, index)
    assert not write(guest, index, value)
    assert read(guest, index) == before


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (Msr.IA32_MTRR_DEF_TYPE, 0xC06),
        (Msr.IA32_MTRR_PHYSBASE0, 0xC000_0000),
        (Msr.IA32_MTRR_PHYSMASK0, 0x7F_C000_0800),
        (Msr.IA32_MTRR_FIX4K_F8000, 0x0606_0606_0606_0606),
        (Msr.IA32_MISC_ENABLE, 0x1001),
        (Msr.IA32_APIC_BASE, 0xFEC0_0900),
    ],
)
def test_what_is_written_stays(guest: Guest, index: int, value: int) -> None:
    assert write(guest, index, value)
    assert read(guest, index) == value


def test_writing_the_microcode_revision_asks_for_it_again(guest: Guest) -> None:
    revision = read(guest, Msr.IA32_BIOS_SIGN_ID)
    assert write(guest, Msr.IA32_BIOS_SIGN_ID, 0)
    assert read(guest, Msr.IA32_BIOS_SIGN_ID) == revision != 0


class TestEfer:
    def test_needs_the_features_it_switches_on(self, guest: Guest) -> None:
        assert not write(guest, Msr.IA32_EFER, Efer.LME)
        guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
        assert write(guest, Msr.IA32_EFER, Efer.LME | Efer.NXE | Efer.SCE)
        assert guest.field(F.GUEST_IA32_EFER) == Efer.LME | Efer.NXE | Efer.SCE

    def test_lma_is_not_written(self, guest: Guest) -> None:
        guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
        assert write(guest, Msr.IA32_EFER, Efer.LME | Efer.LMA)
        assert read(guest, Msr.IA32_EFER) == Efer.LME

    def test_lme_cannot_change_under_paging(self, guest: Guest) -> None:
        guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr4 = Cr0.PE | Cr0.PG | Cr0.ET, Cr4.PSE
        guest.vcpu.set_sregs(sregs)
        guest.gpr[:3] = [Efer.LME, Msr.IA32_EFER, 0]
        guest.run(WRMSR, HLT)
        assert guest.processor.injected[-1] == GP | 1 << 11


class TestTimeStampCounter:
    def test_starts_at_zero_and_follows_the_clock(self) -> None:
        guest = Guest()
        guest.clock.charge(1_000_000)
        assert 1_000_000 <= read(guest, Msr.IA32_TIME_STAMP_COUNTER) < 1_010_000

    def test_writing_moves_the_offset_and_tsc_adjust(self, guest: Guest) -> None:
        now = guest.clock.tsc()
        assert guest.vcpu.set_msrs([(Msr.IA32_TIME_STAMP_COUNTER, 10**12)]) == 1
        assert guest.field(F.TSC_OFFSET) == 10**12 - now
        got = guest.vcpu.get_msrs([Msr.IA32_TIME_STAMP_COUNTER, Msr.IA32_TSC_ADJUST])
        assert got == {0x10: 10**12, 0x3B: 10**12 - now}

    def test_tsc_adjust_moves_the_counter(self, guest: Guest) -> None:
        assert guest.vcpu.set_msrs([(Msr.IA32_TSC_ADJUST, 500)]) == 1
        now = guest.clock.tsc()
        assert guest.vcpu.get_msrs([0x10])[0x10] == now + 500


class TestIoctls:
    def test_stop_at_the_first_that_is_refused(self, guest: Guest) -> None:
        assert guest.vcpu.get_msrs([Msr.IA32_PAT, 0x4567_8989, Msr.IA32_EFER]) == {
            Msr.IA32_PAT: 0x0007_0406_0007_0406
        }
        assert guest.vcpu.set_msrs([(Msr.IA32_STAR, 1), (0x4567_8989, 1), (Msr.IA32_PAT, 0)]) == 1
        assert guest.vcpu.get_msrs([Msr.IA32_STAR]) == {Msr.IA32_STAR: 1}

    def test_the_whole_list_can_be_read_and_written_back(self, guest: Guest) -> None:
        values = guest.vcpu.get_msrs(MSR_INDEX_LIST)
        assert list(values) == guest.kvm.get_msr_index_list()
        assert guest.vcpu.set_msrs(values.items()) == len(values)

    def test_65_bits_are_no_value(self, guest: Guest) -> None:
        with pytest.raises(KvmError, match="does not fit 64 bits"):
            guest.vcpu.set_msrs([(Msr.IA32_STAR, 1 << 64)])


def test_the_bitmap_exits_for_all_but_the_passed_through() -> None:
    page = msr_bitmap()
    clear = {
        (half * 8 // 2048 // 8, quarter, bit)
        for half, quarter in ((0, 0), (0, 1), (2048, 0), (2048, 1))
        for bit in range(0x2000)
        if not page[half + 1024 * quarter + (bit >> 3)] >> (bit & 7) & 1
    }
    wanted = {(half, int(msr >= 0xC000_0000), msr & 0x1FFF)
              for msr in PASSED_THROUGH for half in (0, 1)}  # fmt: skip
    assert clear == wanted


@given(st.integers(0, 0xFFFF_FFFF) | st.sampled_from(list(Msr)), st.integers(0, (1 << 64) - 1))
def test_no_access_raises_anything_in_the_host(index: int, value: int) -> None:
    guest = Guest()
    try:
        guest.vcpu.set_msrs([(index, value)])
        assert guest.vcpu.get_msrs([index]).keys() <= {index}
        write(guest, index, value)
        assert read(guest, index) is None or read(guest, index) >= 0
    except VmxsimError as error:
        pytest.fail(f"{error!r}")
    finally:
        guest.vm.close()


def test_hwcr_takes_only_the_bits_that_linux_forgets(guest: Guest) -> None:
    assert write(guest, Msr.AMD_HWCR, 1 << 3 | 1 << 18)
    assert read(guest, Msr.AMD_HWCR) == 0
    assert not write(guest, Msr.AMD_HWCR, 1 << 1)
