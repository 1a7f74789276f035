from __future__ import annotations

import pytest

from vmxsim.arch.vmcs_fields import RESERVED_BITS, Area, VmcsField, Width

FULL = [field for field in VmcsField if not field.high]
NAMED_WIDTHS = {
    "_SELECTOR": Width.W16,
    "_LIMIT": Width.W32,
    "_AR_BYTES": Width.W32,
    "_BASE": Width.NATURAL,
    "_COUNT": Width.W32,
    "_PAT": Width.W64,
    "_EFER": Width.W64,
    "_ADDR": Width.W64,
    "_BITMAP": Width.W64,
}
EXIT_INFO = """
    GUEST_PHYSICAL_ADDRESS MSR_DATA ORIGINAL_EVENT_DATA VM_INSTRUCTION_ERROR VM_EXIT_REASON
    VM_EXIT_INTR_INFO VM_EXIT_INTR_ERROR_CODE IDT_VECTORING_INFO_FIELD IDT_VECTORING_ERROR_CODE
    VM_EXIT_INSTRUCTION_LEN VMX_INSTRUCTION_INFO EXIT_QUALIFICATION EXIT_IO_RCX EXIT_IO_RSI
    EXIT_IO_RDI EXIT_IO_RIP GUEST_LINEAR_ADDRESS
"""


@pytest.mark.parametrize("field", VmcsField, ids=lambda field: field.name)
class TestNameAgainstBits:
    def test_host_and_guest_state(self, field: VmcsField) -> None:
        in_guest_area = field.area is Area.GUEST_STATE
        in_host_area = field.area is Area.HOST_STATE
        assert field.name.startswith("HOST_") == in_host_area
        exceptions = ("VMCS_LINK_POINTER", "VMX_PREEMPTION_TIMER_VALUE")
        if in_guest_area and not field.name.startswith(exceptions):
            assert field.name.startswith("GUEST_")

    def test_exit_information_is_read_only(self, field: VmcsField) -> None:
        expected = field.full.name in EXIT_INFO.split()
        assert field.read_only == expected == (field.area is Area.EXIT_INFO)

    def test_width(self, field: VmcsField) -> None:
        for ending, width in NAMED_WIDTHS.items():
            if field.full.name.endswith(ending) and field is not VmcsField.EXCEPTION_BITMAP:
                assert field.width is width

    def test_reserved_bits(self, field: VmcsField) -> None:
        assert not field & RESERVED_BITS

    def test_high_half(self, field: VmcsField) -> None:
        assert field.high == field.name.endswith("_HIGH") == bool(field & 1)
        if field.high:
            assert field.name == field.full.name + "_HIGH"
            assert field.mask == 0xFFFF_FFFF
        else:
            assert field.mask == (1 << field.width.bits) - 1

    def test_encoding_is_made_of_its_parts(self, field: VmcsField) -> None:
        assert field.width << 13 | field.area << 10 | field.index << 1 | field.high == field


def test_every_64_bit_field_and_no_other_has_a_high_half() -> None:
    halves = {field.full for field in VmcsField if field.high}
    assert halves == {field for field in FULL if field.width is Width.W64}


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("VIRTUAL_PROCESSOR_ID", 0x0000),
        ("GUEST_ES_SELECTOR", 0x0800),
        ("HOST_TR_SELECTOR", 0x0C0C),
        ("MSR_BITMAP", 0x2004),
        ("EPT_POINTER", 0x201A),
        ("TERTIARY_VM_EXEC_CONTROL", 0x2034),
        ("GUEST_PHYSICAL_ADDRESS", 0x2400),
        ("VMCS_LINK_POINTER", 0x2800),
        ("HOST_IA32_EFER", 0x2C02),
        ("VM_EXIT_REASON", 0x4402),
        ("GUEST_ACTIVITY_STATE", 0x4826),
        ("VMX_PREEMPTION_TIMER_VALUE", 0x482E),
        ("CR4_READ_SHADOW", 0x6006),
        ("EXIT_QUALIFICATION", 0x6400),
        ("GUEST_RIP", 0x681E),
        ("HOST_RIP", 0x6C16),
    ],
)
def test_known_encodings(name: str, encoding: int) -> None:
    assert VmcsField[name] == encoding
