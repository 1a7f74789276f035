from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

Info = MemoryAddress | VmxInstructionInfo | GdtrIdtrInfo | LdtrTrInfo | RandomInfo | StringIoInfo
GPR = st.integers(0, 15)
SEGMENT = st.integers(0, 5)
SIZE = st.sampled_from([2, 4, 8])
ADDRESSES = st.one_of(
    st.builds(MemoryAddress, SEGMENT, st.none() | GPR, GPR, st.sampled_from([1, 2, 4, 8]), SIZE),
    st.builds(MemoryAddress, SEGMENT, st.none() | GPR, st.none(), st.just(1), SIZE),
)
INFOS = st.one_of(
    ADDRESSES,
    st.builds(VmxInstructionInfo, ADDRESSES, st.just(0), GPR),
    st.builds(VmxInstructionInfo, st.none(), GPR, GPR),
    st.builds(GdtrIdtrInfo, st.sampled_from(TableInstruction), ADDRESSES, st.booleans()),
    st.builds(LdtrTrInfo, st.sampled_from(SystemSegmentInstruction), ADDRESSES, st.just(0)),
    st.builds(LdtrTrInfo, st.sampled_from(SystemSegmentInstruction), st.none(), GPR),
    st.builds(RandomInfo, GPR, SIZE),
    st.builds(StringIoInfo, SIZE, SEGMENT),
)


@given(INFOS)
def test_decode_undoes_encode(info: Info) -> None:
    assert type(info).decode(info.encode()) == info
    assert info.encode() < 1 << 32


@pytest.mark.parametrize(
    ("info", "number"),
    [
        # [rsp+8*rax], ds: no base and no index are bits of their own
        (MemoryAddress(base=4, index_reg=0, scale=8), 0x0201_8103),
        (MemoryAddress(base=None, index_reg=None), 0x0841_8100),
        (VmxInstructionInfo(None, reg1=3, reg2=1), 0x1000_0418),
        (GdtrIdtrInfo(TableInstruction.LIDT, MemoryAddress(base=0)), 0x3041_8900),
        (LdtrTrInfo(SystemSegmentInstruction.LTR, None, 1), 0x3000_0408),
        (RandomInfo(9, 8), 0x1048),
        (StringIoInfo(4, 3), 0x1_8080),
    ],
)
def test_known_information(info: Info, number: int) -> None:
    assert info.encode() == number
