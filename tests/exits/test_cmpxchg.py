"""CMPXCHG8B and CMPXCHG16B, done in silicon's name: memory, registers, ZF and no other flag."""

from __future__ import annotations

import pytest

from tests.exits.harness import DATA, LONG, PROTECTED, REAL, Guest
from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.vmcs_fields import VmcsField as F

CODE = {REAL: "670fc70b", PROTECTED: "f00fc70b", LONG: "0fc70b"}  # cmpxchg8b [ebx]
RAX, RCX, RDX, RBX = range(4)
CF_PF_AF_SF_OF = 0x895


def run(guest: Guest, memory: bytes, *registers: int) -> bytes:
    guest.put(DATA, memory)
    guest.write(F.GUEST_RFLAGS, 2 | CF_PF_AF_SF_OF)
    for number, value in zip((RAX, RDX, RBX, RCX), registers, strict=True):
        guest.processor.gpr[number] = value
    guest.put(DATA - 8, DATA.to_bytes(8, "little"))
    assert guest.run().reason is ExitReason.VMCALL
    return guest.cpu.memory.read(DATA, len(memory))


@pytest.mark.parametrize("mode", [REAL, PROTECTED, LONG])
@pytest.mark.parametrize("equal", [True, False])
def test_eight_bytes(mode: str, equal: bool) -> None:
    # xchg esi, ebx first would disturb nothing; EBX is both address and new value.
    guest = Guest(mode, bytes.fromhex(CODE[mode]))
    memory = (0x1122334455667788).to_bytes(8, "little")
    low = 0x55667788 if equal else 0x55667789
    after = run(guest, memory, low, 0x11223344, DATA, 0xAABBCCDD)
    gpr = guest.processor.gpr
    assert after == ((0xAABBCCDD << 32 | DATA).to_bytes(8, "little") if equal else memory)
    assert (gpr[RAX], gpr[RDX]) == (0x55667788, 0x11223344)
    assert guest.read(F.GUEST_RFLAGS) == 2 | CF_PF_AF_SF_OF | (0x40 if equal else 0)


@pytest.mark.parametrize("equal", [True, False])
def test_sixteen_bytes(equal: bool) -> None:
    guest = Guest(LONG, bytes.fromhex("f0480fc70b"))
    memory = bytes(range(16))
    low, high = int.from_bytes(memory[:8], "little"), int.from_bytes(memory[8:], "little")
    after = run(guest, memory, low if equal else 5, high, DATA, 7)
    gpr = guest.processor.gpr
    assert after == (DATA.to_bytes(8, "little") + bytes([7] + [0] * 7) if equal else memory)
    assert (gpr[RAX], gpr[RDX]) == (low, high)
    assert guest.read(F.GUEST_RFLAGS) & 0x8D5 == CF_PF_AF_SF_OF | (0x40 if equal else 0)


def test_sixteen_bytes_must_be_aligned() -> None:
    guest = Guest(LONG, bytes.fromhex("480fc70b"))
    guest.processor.gpr[RBX] = DATA + 8
    exit = guest.run()
    assert (exit.reason, exit.intr_info & 0xFF) == (ExitReason.EXCEPTION_NMI, 13)


def test_nothing_behind_it_is_an_ept_violation_on_a_write() -> None:
    guest = Guest(PROTECTED, bytes.fromhex("0fc70b"))
    guest.processor.gpr[RBX] = 0x20_0000
    exit = guest.run()
    assert (exit.reason, exit.qualification & 7) == (ExitReason.EPT_VIOLATION, 2)
    assert exit.guest_physical_address == 0x20_0000
