from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch import cpuid
from vmxsim.arch.cpuid import DEFAULT_FEATURES, FEATURES, default_model


@given(st.sets(st.sampled_from(sorted(FEATURES))))
def test_the_model_claims_exactly_what_was_asked_for(features: set[str]) -> None:
    if any(FEATURES[name].function == 0xD for name in features):
        features.add("XSAVE")  # leaf 0xd exists with XSAVE only
    table = default_model(features)
    assert {name for name in FEATURES if cpuid.has(table, name)} == features


def test_no_two_features_share_a_bit() -> None:
    assert len(set(FEATURES.values())) == len(FEATURES)


@pytest.mark.parametrize(
    ("name", "function", "register", "bit"),
    [
        ("SEP", 1, 3, 11),
        ("FXSR", 1, 3, 24),
        ("VMX", 1, 2, 5),
        ("XSAVE", 1, 2, 26),
        ("HYPERVISOR", 1, 2, 31),
        ("SMEP", 7, 1, 7),
        ("INVPCID", 7, 1, 10),
        ("SMAP", 7, 1, 20),
        ("LA57", 7, 2, 16),
        ("RDPID", 7, 2, 22),
        ("SYSCALL", 0x8000_0001, 3, 11),
        ("NX", 0x8000_0001, 3, 20),
        ("RDTSCP", 0x8000_0001, 3, 27),
        ("LM", 0x8000_0001, 3, 29),
        ("ARCH_CAPABILITIES", 7, 3, 29),
        ("AVX512VL", 7, 1, 31),
    ],
)
def test_features_stand_where_the_manual_puts_them(
    name: str, function: int, register: int, bit: int
) -> None:
    assert FEATURES[name] == (function, 0, register, bit)


def test_the_default_processor_is_intels_and_claims_nothing_the_engine_lacks() -> None:
    table = default_model()
    leaf = table[0]
    vendor = b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.edx, leaf.ecx))
    assert vendor == b"GenuineIntel"
    assert not DEFAULT_FEATURES & {"AVX", "AVX2", "XSAVE", "PCID", "PKU", "VMX", "X2APIC"}
    brand = b"".join(
        word.to_bytes(4, "little")
        for function in (0x8000_0002, 0x8000_0003, 0x8000_0004)
        for word in cpuid.find(table, function)[3:]
    )
    assert brand.rstrip(b"\0") == cpuid.BRAND


def test_leaves_up_to_the_maximum_and_addresses() -> None:
    table = default_model()
    assert max(row.function for row in table if row.function < 0x4000_0000) <= table[0].eax
    assert cpuid.find(table, 0x8000_0008).eax == 39 | 57 << 8
    without = default_model(DEFAULT_FEATURES - {"LA57"})
    assert cpuid.find(without, 0x8000_0008).eax == 39 | 48 << 8


def test_finding_respects_the_index_where_it_counts() -> None:
    table = default_model()
    assert cpuid.find(table, 4, 2).eax & 0x1F == 3
    assert cpuid.find(table, 4, 9) is None
    assert cpuid.find(table, 1, 77) == cpuid.find(table, 1)
    assert cpuid.find(table, 0x1234) is None


def test_the_hypervisor_signature_can_be_left_out() -> None:
    assert cpuid.find(default_model(), 0x4000_0000).ebx == int.from_bytes(b"KVMK", "little")
    assert cpuid.find(default_model(hypervisor=None), 0x4000_0000) is None


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(KeyError, match="SEE5"):
        default_model(["SEE5"])
