"""The VMCS's bitmaps against the rule of the manual, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmxsim.arch.controls import PinBased
from vmxsim.arch.events import Event, EventType, Vector, fault
from vmxsim.vmx.bitmaps import HostPages, event_exits, msr_exits, port_exits
from vmxsim.vmx.vmcs import Vmcs

from .vmx_guests import REAL, cpu_in, vmcs_with

A, B, MSRS = 0x4000_0000, 0x4000_1000, 0x4000_2000
CPU = cpu_in(REAL)


def vmcs_with_ports(ports: Iterable[int]) -> Vmcs:
    bitmaps = bytearray(0x2000)
    for port in ports:
        bitmaps[port >> 3] |= 1 << (port & 7)
    vmcs = vmcs_with(IO_BITMAP_A=A, IO_BITMAP_B=B)
    vmcs.host_pages.register(A, bitmaps[:0x1000])
    vmcs.host_pages.register(B, bitmaps[0x1000:])
    return vmcs


edges = st.sampled_from([0, 7, 8, 0x7FFC, 0x7FFF, 0x8000, 0xFFFC, 0xFFFE, 0xFFFF])
ports = st.one_of(edges, st.integers(0, 0xFFFF))


@given(port=ports, size=st.sampled_from([1, 2, 4]), offsets=st.lists(st.integers(-9, 9)))
@example(port=0x7FFF, size=2, offsets=[1])
@example(port=0xFFFF, size=2, offsets=[])
def test_ports_as_the_manual_says_it(port: int, size: int, offsets: list[int]) -> None:
    wanted = {(port + offset) & 0xFFFF for offset in offsets}
    naive = port + size > 0x1_0000 or any(port + n in wanted for n in range(size))
    assert port_exits(vmcs_with_ports(wanted), CPU, port, size) == naive


msr_numbers = st.one_of(
    st.sampled_from([0, 0x1FFF, 0x2000, 0xBFFF_FFFF, 0xC000_0000, 0xC000_1FFF, 0xC000_2000]),
    st.integers(0, 0x2100),
    st.integers(0xC000_0000, 0xC000_2100),
    st.integers(0, 0xFFFF_FFFF),
)


@given(index=msr_numbers, write=st.booleans(), other=msr_numbers, set_bit=st.booleans())
def test_msrs_as_the_manual_says_it(index: int, write: bool, other: int, set_bit: bool) -> None:
    bits = set()
    quarters = {(False, False): 0, (True, False): 1024, (False, True): 2048, (True, True): 3072}
    for number, on in ((other, True), (index, set_bit)):
        low, high = number <= 0x1FFF, 0xC000_0000 <= number <= 0xC000_1FFF
        if low or high:
            bit = quarters[high, write] * 8 + (number & 0x1FFF)
            bits.add(bit) if on else bits.discard(bit)
    page = bytearray(4096)
    for bit in bits:
        page[bit // 8] |= 1 << bit % 8
    vmcs = vmcs_with(MSR_BITMAP=MSRS)
    vmcs.host_pages.register(MSRS, page)
    in_range = index <= 0x1FFF or 0xC000_0000 <= index <= 0xC000_1FFF
    assert msr_exits(vmcs, CPU, index, write) == (set_bit if in_range else True)
    if not in_range:
        return
    opposite = page[:2048] if write else page[2048:]
    assert not any(opposite)
    assert not msr_exits(vmcs, CPU, index, not write)


@given(
    vector=st.integers(0, 31),
    bitmap=st.integers(0, 0xFFFF_FFFF),
    mask=st.integers(0, 0x1F),
    match=st.integers(0, 0x1F),
    error_code=st.integers(0, 0x1F),
)
def test_exceptions_as_the_manual_says_it(
    vector: int, bitmap: int, mask: int, match: int, error_code: int
) -> None:
    vmcs = vmcs_with(
        EXCEPTION_BITMAP=bitmap,
        PAGE_FAULT_ERROR_CODE_MASK=mask,
        PAGE_FAULT_ERROR_CODE_MATCH=match,
    )
    bit = bool(bitmap >> vector & 1)
    if vector == Vector.PF:
        naive = bit if error_code & mask == match else not bit
        assert event_exits(vmcs, fault(vector, error_code, 0)) == naive
    else:
        assert event_exits(vmcs, fault(vector)) == bit


@pytest.mark.parametrize("kind", [EventType.EXTERNAL_INTERRUPT, EventType.SOFTWARE_INTERRUPT])
def test_interrupts_do_not_look_at_the_exception_bitmap(kind: EventType) -> None:
    vmcs = vmcs_with(EXCEPTION_BITMAP=0xFFFF_FFFF)
    assert not event_exits(vmcs, Event(kind, 14))
    assert not event_exits(vmcs, Event(kind, 0x80))


@pytest.mark.parametrize("kind", [EventType.SOFTWARE_EXCEPTION, EventType.HARDWARE_EXCEPTION])
def test_software_exceptions_do(kind: EventType) -> None:
    assert event_exits(vmcs_with(EXCEPTION_BITMAP=1 << 3), Event(kind, 3))
    assert not event_exits(vmcs_with(EXCEPTION_BITMAP=1 << 4), Event(kind, 3))


def test_nmis_have_a_control_of_their_own() -> None:
    nmi = Event(EventType.NMI, Vector.NMI)
    assert not event_exits(vmcs_with(EXCEPTION_BITMAP=0xFFFF_FFFF), nmi)
    assert event_exits(vmcs_with(PIN_BASED_VM_EXEC_CONTROL=PinBased.NMI_EXITING), nmi)


def test_a_page_nobody_registered_is_guest_memory() -> None:
    cpu = cpu_in(REAL)
    cpu.memory.write(0x6000, b"\x00" * 12 + b"\x10")
    vmcs = vmcs_with(IO_BITMAP_A=0x6000, IO_BITMAP_B=0x7000)
    assert port_exits(vmcs, cpu, 0x64, 1)
    assert not port_exits(vmcs, cpu, 0x65, 1)


def test_a_page_that_is_nowhere_reads_all_ones() -> None:
    assert port_exits(vmcs_with(IO_BITMAP_A=0x7F_FFFF_F000), CPU, 0x64, 1)


def test_a_registered_page_is_used_in_place() -> None:
    vmcs = vmcs_with_ports([])
    assert not port_exits(vmcs, CPU, 0x40, 1)
    vmcs.host_pages.pages[A][8] = 1
    assert port_exits(vmcs, CPU, 0x40, 1)
    vmcs.host_pages.forget(A)
    assert port_exits(vmcs, CPU, 0x41, 1)


@pytest.mark.parametrize(("address", "size"), [(0x1001, 4096), (0x1000, 4095)])
def test_only_whole_pages_can_be_registered(address: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"not a page: {size} bytes at {address:#x}"):
        HostPages().register(address, bytearray(size))
