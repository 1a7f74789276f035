"""What a VM-entry check is: one sentence of the manual, one function, one name, and what it reads.

The checks themselves are in ``checks_controls``, ``checks_host``, ``checks_guest`` and
``checks_segments``, in the manual's order (SDM Vol. 3, chapter "VM Entries"). A control that the
capability MSRs do not allow needs no check of its own: setting it fails the check of its word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from vmxsim.arch.bits import MASK_32, canonical, mask
from vmxsim.arch.capabilities import MAXPHYADDR
from vmxsim.arch.controls import CpuBased, EntryControls, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.registers import Cr0, Cr4, Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.cpu.interface import Cpu
from vmxsim.vmx.guest_state import PDPTRS, memory_pdpte

PHYSICAL_MASK = mask(MAXPHYADDR)
LINEAR_BITS = 57
"""Bases and MSRs are canonical by what the processor can do, whatever CR4.LA57 says."""

Reader = Callable[[], int]


class EntryState:
    """What checks may look at: the VMCS as VMREAD would show it, root mode, capabilities.

    ``live`` answers for the fields whose value is in the processor rather than in ``fields``.
    """

    __slots__ = ("capability", "cpu", "fields", "live", "region_revision", "root_lma")

    def __init__(
        self,
        fields: Mapping[int, int],
        live: Mapping[int, Reader],
        cpu: Cpu,
        capability: Callable[[int], int],
        region_revision: Callable[[int], int],
    ) -> None:
        self.fields, self.live = fields, live
        self.cpu, self.capability = cpu, capability
        self.region_revision = region_revision
        self.root_lma = True

    def __getitem__(self, field: int) -> int:
        reader = self.live.get(field)
        return reader() if reader is not None else self.fields[field]

    @property
    def secondary(self) -> int:
        """The secondary controls: 0 while the primary ones do not activate them."""
        activated = self[F.CPU_BASED_VM_EXEC_CONTROL] & CpuBased.ACTIVATE_SECONDARY_CONTROLS
        return self[F.SECONDARY_VM_EXEC_CONTROL] if activated else 0

    @property
    def unrestricted(self) -> bool:
        """Whether "unrestricted guest" is 1."""
        return self.secondary & Secondary.UNRESTRICTED_GUEST != 0

    @property
    def ia32e(self) -> bool:
        """Whether "IA-32e mode guest" is 1."""
        return self[F.VM_ENTRY_CONTROLS] & EntryControls.IA32E_MODE_GUEST != 0

    @property
    def v8086(self) -> bool:
        """Whether the guest will be in virtual-8086 mode."""
        return self[F.GUEST_RFLAGS] & Rflags.VM != 0

    @property
    def pae_paging(self) -> bool:
        """Whether the guest will use PAE paging, with PDPTEs in the processor."""
        if self.ia32e or not self[F.GUEST_CR0] & Cr0.PG:
            return False
        return self[F.GUEST_CR4] & Cr4.PAE != 0

    def pdptes(self) -> list[tuple[str, int]]:
        """The four PDPTEs, each with where it is: in the VMCS with EPT, else in memory."""
        if self.secondary & Secondary.ENABLE_EPT:
            return [(field.name, self[field]) for field in PDPTRS]
        cr3 = self[F.GUEST_CR3]
        return [(f"memory at CR3 {cr3:#x}", memory_pdpte(self.cpu, cr3, n)) for n in range(4)]


SECONDARY = (F.CPU_BASED_VM_EXEC_CONTROL, F.SECONDARY_VM_EXEC_CONTROL)
PAE_PAGING = (F.VM_ENTRY_CONTROLS, F.GUEST_CR0, F.GUEST_CR4)
"""What the properties of those names read."""


class Check(NamedTuple):
    """One check: ``run`` gives None, or what is wrong and what would be right.

    ``reads`` are the fields its answer depends on; ``qualification`` is the exit qualification when
    a check of the guest-state area fails. SDM Vol. 3, "VM-Entry Failures During or After Loading
    Guest State".
    """

    name: str
    reads: frozenset[int]
    run: Callable[[EntryState], str | None]
    qualification: int = 0


class Failure(NamedTuple):
    """The first check that failed."""

    check: str
    message: str
    qualification: int = 0


def check(
    *reads: int, qualification: int = 0
) -> Callable[[Callable[[EntryState], str | None]], Check]:
    """Make a function a check of the fields it reads."""

    def named(function: Callable[[EntryState], str | None]) -> Check:
        return Check(function.__name__, frozenset(reads), function, qualification)

    return named


def checks_in(module: Mapping[str, object]) -> tuple[Check, ...]:
    """A module's checks in the order in which it defines them."""
    return tuple(value for value in module.values() if isinstance(value, Check))


def first_failure(checks: Iterable[Check], state: EntryState) -> Failure | None:
    """The first check that does not hold."""
    for each in checks:
        message = each.run(state)
        if message is not None:
            return Failure(each.name, message, each.qualification)
    return None


def wrong(field: F, value: int, wanted: str) -> str:
    """The message of a failed check."""
    return f"{field.name} is {value:#x}: {wanted}"


def bit_list(bits: int) -> str:
    """Bit numbers in words: "bit 3", "bits 5, 7"."""
    numbers = [str(number) for number in range(bits.bit_length()) if bits >> number & 1]
    return f"bit{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def must_be_zero(state: EntryState, field: F, bits: int) -> str | None:
    """Complain about bits that must be 0."""
    value = state[field]
    if not value & bits:
        return None
    return wrong(field, value, f"{bit_list(value & bits)} must be 0")


def allowed_bits(state: EntryState, field: F, capability: Msr) -> str | None:
    """Complain about control bits that a capability MSR does not let be as they are."""
    value, allowed = state[field], state.capability(capability)
    if missing := ~value & allowed & MASK_32:
        return wrong(field, value, f"{bit_list(missing)} must be 1 ({capability.name})")
    if extra := value & ~(allowed >> 32) & MASK_32:
        return wrong(field, value, f"{bit_list(extra)} must be 0 ({capability.name})")
    return None


def fixed_bits(state: EntryState, field: F, msrs: tuple[Msr, Msr], free: int = 0) -> str | None:
    """Complain about CR0 or CR4 bits that VMX operation fixes otherwise, ``free`` ones excepted."""
    value = state[field]
    ones, zeros = state.capability(msrs[0]) & ~free, ~state.capability(msrs[1]) & ~free
    if missing := ones & ~value:
        return wrong(field, value, f"{bit_list(missing)} must be 1 ({msrs[0].name})")
    if extra := value & zeros:
        return wrong(field, value, f"{bit_list(extra)} must be 0 ({msrs[1].name})")
    return None


def physical_address(state: EntryState, field: F, alignment: int) -> str | None:
    """Complain about an address that is not aligned, or wider than the processor's."""
    value = state[field]
    if value & (alignment - 1):
        return wrong(field, value, f"must be a multiple of {alignment:#x}")
    if value > PHYSICAL_MASK:
        return wrong(field, value, f"must be below 2^{MAXPHYADDR}")
    return None


def canonical_address(state: EntryState, field: F, width: int = LINEAR_BITS) -> str | None:
    """Complain about an address that is not canonical."""
    value = state[field]
    if canonical(value, width):
        return None
    return wrong(field, value, f"must be canonical, bits 63:{width - 1} all equal")


def msr_area(state: EntryState, address: F, count: F) -> str | None:
    """Complain about where an MSR area lies; an empty area may lie anywhere."""
    entries = state[count]
    if not entries:
        return None
    first = state[address]
    if first & 0xF:
        return wrong(address, first, "must be a multiple of 16, as the area is not empty")
    last = first + 16 * entries - 1
    if last > PHYSICAL_MASK:
        wanted = f"{entries} entries end at {last:#x}, which must be below"
        return wrong(address, first, f"{wanted} 2^{MAXPHYADDR}")
    return None
