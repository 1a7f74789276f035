"""What the emulator promises its caller: nothing half done, writes last, reads asked for again."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vmxsim.kvm.emulate import (
    Emulation,
    Fault,
    MmioNeeded,
    Outcome,
    Written,
    decode,
    emulate_instruction,
)
from vmxsim.kvm.emulate_string import REP_LIMIT

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
PAGE_FAULT = Fault(14, 2, 0x5000)
DEVICE = 0xF000
"""Reads from here on need userspace unless `answers` has one."""


class Context:
    """Sparse memory with a device on top of it and a log of what was asked."""

    def __init__(self, code: str, bits: int = 64, **registers: int) -> None:
        self.mode_bits = self.stack_bits = bits
        self.code = bytes.fromhex(code)
        self.gpr = [0] * 16
        for name, value in registers.items():
            self.gpr[globals()[name]] = value
        self.rip, self.rflags = 0x1000, 2
        self.memory: dict[int, int] = {}
        self.faults: Mapping[int, Fault] = {}
        self.queued: set[int] = set()
        self.answers: list[bytes] = []
        self.xmms = [bytes(range(16))] * 16
        self.bases: dict[int, int] = {}
        self.log: list[str] = []

    def segment_base(self, segment: int) -> int:
        return self.bases.get(segment, 0)

    def segment_selector(self, segment: int) -> int:
        return 8 * segment

    def xmm(self, index: int) -> bytes:
        return self.xmms[index]

    def set_xmm(self, index: int, value: bytes) -> None:
        self.xmms[index] = value

    def fetch(self, length: int) -> bytes:
        return self.code[:length]

    def read(self, gva: int, length: int) -> bytes | Fault | MmioNeeded:
        self.log.append(f"read {gva:#x} {length}")
        if gva in self.faults:
            return self.faults[gva]
        if gva >= DEVICE:
            return self.answers.pop(0) if self.answers else MmioNeeded(gva, length)
        return bytes(self.memory.get(gva + at, 0) for at in range(length))

    def write(self, gva: int, data: bytes) -> Fault | Written | None:
        if gva in self.faults:
            return self.faults[gva]
        self.log.append(f"write {gva:#x} {data.hex()}")
        self.memory.update(enumerate(data, gva))
        return Written.QUEUED if gva in self.queued else None


def everything(context: Context) -> object:
    return list(context.gpr), context.rip, context.rflags, list(context.xmms), dict(context.memory)


# One of each kind that reads: code, and registers that lead to address 0x4000.
READERS = {
    "mov eax, [rsi]": "8b 06",
    "movzx eax, byte [rsi]": "0f b6 06",
    "add [rsi], eax": "01 06",
    "add eax, [rsi]": "03 06",
    "neg dword [rsi]": "f7 1e",
    "shl dword [rsi], 3": "c1 26 03",
    "test [rsi], eax": "85 06",
    "xchg [rsi], eax": "87 06",
    "lock xadd [rsi], eax": "f0 0f c1 06",
    "lock cmpxchg [rsi], ecx": "f0 0f b1 0e",
    "lock cmpxchg8b [rsi]": "f0 0f c7 0e",
    "lock bts [rsi], eax": "f0 0f ab 06",
    "bsf eax, [rsi]": "0f bc 06",
    "bsr eax, [rsi]": "0f bd 06",
    "cmovne eax, [rsi]": "0f 45 06",
    "push qword [rsi]": "ff 36",
    "call [rsi]": "ff 16",
    "jmp [rsi]": "ff 26",
    "lodsd": "ad",
    "cmpsd": "a7",
    "mul dword [rsi]": "f7 26",
    "div dword [rsi]": "f7 36",
    "movdqu xmm1, [rsi]": "f3 0f 6f 0e",
    "movss xmm1, [rsi]": "f3 0f 10 0e",
    "shld [rsi], eax, 4": "0f a4 06 04",
    "movbe eax, [rsi]": "0f 38 f0 06",
}


@pytest.mark.parametrize("code", READERS.values(), ids=READERS.keys())
class TestAReadThatIsNotThere:
    def test_needs_userspace_and_has_changed_nothing(self, code: str) -> None:
        context = Context(code, RSI=DEVICE, RDI=0x4000, RSP=0x8000)
        before = everything(context)
        ended = emulate_instruction(context)
        assert ended.outcome is Outcome.NEED_MMIO
        assert isinstance(ended.payload, MmioNeeded)
        assert ended.payload.gpa == DEVICE
        assert everything(context) == before

    def test_faults_and_has_changed_nothing(self, code: str) -> None:
        context = Context(code, RSI=0x5000, RDI=0x4000, RSP=0x8000)
        context.faults = {0x5000: PAGE_FAULT}
        before = everything(context)
        assert emulate_instruction(context) == Emulation(Outcome.FAULT, PAGE_FAULT)
        assert everything(context) == before

    def test_finishes_when_run_again_with_the_answer(self, code: str) -> None:
        context = Context(code, RSI=DEVICE, RDI=0x4000, RSP=0x8000)
        needed = emulate_instruction(context).payload
        assert isinstance(needed, MmioNeeded)
        context.answers = [(0x2000).to_bytes(16, "little")[: needed.length]]
        assert emulate_instruction(context).outcome is Outcome.DONE
        assert context.rip != 0x1000


WRITERS = {
    "mov [rdi], eax": "89 07",
    "mov dword [rdi], 5": "c7 07 05 00 00 00",
    "inc dword [rdi]": "ff 07",
    "xchg [rdi], eax": "87 07",
    "xadd [rdi], eax": "0f c1 07",
    "cmpxchg [rdi], ecx": "0f b1 0f",
    "cmpxchg8b [rdi]": "0f c7 0f",
    "btc [rdi], eax": "0f bb 07",
    "sete [rdi]": "0f 94 07",
    "stosd": "ab",
    "movsd": "a5",
    "pop qword [rdi]": "8f 07",
    "movups [rdi], xmm0": "0f 11 07",
    "mov [rdi], ds": "8c 1f",
    "ror dword [rdi], cl": "d3 0f",
}


@pytest.mark.parametrize("code", WRITERS.values(), ids=WRITERS.keys())
def test_a_write_that_faults_has_changed_nothing(code: str) -> None:
    context = Context(code, RAX=1, RCX=7, RSI=0x3000, RDI=0x5000, RSP=0x8000)
    context.faults = {0x5000: PAGE_FAULT}
    context.memory[0x5000] = 3

    def read(gva: int, length: int) -> bytes:
        return bytes([3] * length)

    context.read = read  # type: ignore[method-assign]
    before = everything(context)
    assert emulate_instruction(context) == Emulation(Outcome.FAULT, PAGE_FAULT)
    assert everything(context) == before


@pytest.mark.parametrize("code", ["50", "68 01 00 00 00", "6a 01", "e8 00 00 00 00", "ff d0"])
def test_a_push_that_faults_leaves_the_stack_pointer(code: str) -> None:
    context = Context(code, RSP=0x5008)
    context.faults = {0x5000: PAGE_FAULT}
    assert emulate_instruction(context).outcome is Outcome.FAULT
    assert (context.gpr[RSP], context.rip) == (0x5008, 0x1000)


@pytest.mark.parametrize("code", ["58", "c3", "c9"])
def test_a_pop_that_faults_leaves_the_stack_pointer(code: str) -> None:
    context = Context(code, RSP=0x5000, RBP=0x5000)
    context.faults = {0x5000: PAGE_FAULT}
    before = everything(context)
    assert emulate_instruction(context).outcome is Outcome.FAULT
    assert everything(context) == before


def test_a_device_sees_the_read_before_the_write() -> None:
    context = Context("f0 01 06", RAX=0x10, RSI=0x4000)
    context.memory[0x4000] = 2
    assert emulate_instruction(context).outcome is Outcome.DONE
    assert context.log == ["read 0x4000 4", "write 0x4000 12000000"]


def test_a_failed_compare_writes_back_what_it_found() -> None:
    context = Context("f0 0f b1 0e", RAX=1, RCX=9, RSI=0x4000)
    context.memory[0x4000] = 2
    emulate_instruction(context)
    assert context.log[-1] == "write 0x4000 02000000"
    assert context.gpr[RAX] == 2


class TestRep:
    def test_one_call_does_many_iterations(self) -> None:
        context = Context("f3 aa", RAX=0xAB, RCX=5, RDI=0x4000)
        assert emulate_instruction(context).outcome is Outcome.DONE
        assert (context.gpr[RCX], context.gpr[RDI], context.rip) == (0, 0x4005, 0x1002)
        assert len(context.log) == 5

    def test_a_count_of_zero_touches_nothing(self) -> None:
        context = Context("f3 a4")
        assert emulate_instruction(context).outcome is Outcome.DONE
        assert (context.log, context.rip) == ([], 0x1002)

    def test_a_long_one_comes_back_to_the_instruction(self) -> None:
        context = Context("f3 aa", RCX=REP_LIMIT + 10, RDI=0x4000)
        assert emulate_instruction(context).outcome is Outcome.DONE
        assert (context.gpr[RCX], context.rip) == (10, 0x1000)
        emulate_instruction(context)
        assert (context.gpr[RCX], context.rip) == (0, 0x1002)
        assert context.gpr[RDI] == 0x4000 + REP_LIMIT + 10

    def test_a_fault_keeps_the_iterations_before_it(self) -> None:
        context = Context("f3 a5", RCX=4, RSI=0x3000, RDI=0x4FF8)
        context.faults = {0x5000: PAGE_FAULT}
        assert emulate_instruction(context) == Emulation(Outcome.FAULT, PAGE_FAULT)
        assert (context.gpr[RCX], context.gpr[RSI], context.gpr[RDI]) == (2, 0x3008, 0x5000)
        assert context.rip == 0x1000

    def test_a_later_read_from_userspace_is_a_new_call(self) -> None:
        context = Context("f3 a4", RCX=2, RSI=DEVICE, RDI=0x4000)
        history = [emulate_instruction(context).outcome]
        for answer in (b"\x11", b"\x22"):
            context.answers = [answer]
            history.append(emulate_instruction(context).outcome)
            if context.gpr[RCX]:
                history.append(emulate_instruction(context).outcome)
        need, done = Outcome.NEED_MMIO, Outcome.DONE
        assert history == [need, done, need, done]
        assert (context.memory[0x4000], context.memory[0x4001]) == (0x11, 0x22)

    def test_a_queued_write_ends_the_call(self) -> None:
        context = Context("f3 ab", RCX=3, RDI=0x4000)
        context.queued = {0x4004}
        assert emulate_instruction(context).outcome is Outcome.DONE
        assert (context.gpr[RCX], context.rip) == (1, 0x1000)
        assert emulate_instruction(context).outcome is Outcome.DONE
        assert (context.gpr[RCX], context.rip) == (0, 0x1002)

    def test_a_search_stops_where_it_finds(self) -> None:
        context = Context("f2 ae", RAX=7, RCX=100, RDI=0x4000)
        context.memory[0x4003] = 7
        emulate_instruction(context)
        assert (context.gpr[RCX], context.gpr[RDI], context.rip) == (96, 0x4004, 0x1002)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("f0 8b 06", Fault(6)),
        ("f0 39 06", Fault(6)),
        ("f0 01 c0", Fault(6)),
        ("f0 a4", Fault(6)),
        ("8c 3e", Fault(6)),
        ("0f c7 c9", Fault(6)),
        ("0f 28 46 01", Fault(13, 0)),
        ("66 0f e7 46 08", Fault(13, 0)),
        ("48 0f c7 4e 08", Fault(13, 0)),
        ("f7 36", Fault(0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_processor_refuses(code: str, fault: Fault) -> None:
    context = Context(code, RSI=0x4000)
    before = everything(context)
    assert emulate_instruction(context) == Emulation(Outcome.FAULT, fault)
    assert everything(context) == before


def test_a_branch_to_a_non_canonical_address_faults_on_the_branch() -> None:
    context = Context("ff 26", RSI=0x4000)
    context.memory[0x4007] = 0x12
    assert emulate_instruction(context) == Emulation(Outcome.FAULT, Fault(13, 0))


@pytest.mark.parametrize(
    "code",
    ["0f 01 f8", "c5 f8 10 06", "0f 6f 06", "d9 06", "8e 06", "ff 1e", "0f", "", "8b", "81 06 01"],
)
def test_what_it_does_not_know_is_unhandled(code: str) -> None:
    context = Context(code)
    before = everything(context)
    assert emulate_instruction(context).outcome is Outcome.UNHANDLED
    assert everything(context) == before


def test_group_3_has_two_encodings_of_test() -> None:
    context = Context("f7 0e ff 00 00 00", RSI=0x4000)
    assert emulate_instruction(context).outcome is Outcome.DONE
    assert (context.rip, context.rflags & 0x40) == (0x1006, 0x40)


def test_movbe_in_16_bit_code() -> None:
    context = Context("0f 38 f0 04", bits=16, RSI=0x4000, RAX=0xFFFF_0000)
    context.memory.update({0x4000: 0x12, 0x4001: 0x34})
    emulate_instruction(context)
    assert context.gpr[RAX] == 0xFFFF_1234


def test_ret_takes_its_immediate_as_unsigned() -> None:
    context = Context("c2 00 80", bits=32, RSP=0x4000)
    emulate_instruction(context)
    assert context.gpr[RSP] == 0x4004 + 0x8000


def test_flags_of_a_locked_neg() -> None:
    context = Context("f0 f6 1e", RSI=0x4000)
    context.memory[0x4000] = 0x6F
    emulate_instruction(context)
    assert (context.memory[0x4000], context.rflags) == (0x91, 0x93)


def test_a_segment_has_a_base_outside_64_bit_code_only() -> None:
    for bits, address in ((64, "0x4000"), (32, "0x4100")):
        context = Context("8b 06", bits=bits, RSI=0x4000)
        context.bases = {3: 0x100}
        emulate_instruction(context)
        assert context.log == [f"read {address} 4"]


def test_linear_addresses_wrap_at_32_bits() -> None:
    context = Context("8b 06", bits=32, RSI=0xFFFF_F000)
    context.bases = {3: 0x2000}
    emulate_instruction(context)
    assert context.log == ["read 0x1000 4"]


def test_decoding_is_remembered() -> None:
    code = bytes.fromhex("8b 84 8b 78 56 34 12".replace(" ", ""))
    insn = decode(code, 64)
    assert insn is not None
    assert insn is decode(code, 64)
    assert (insn.mnemonic, insn.length, insn.size, insn.reg) == ("mov", 7, 4, 0)
    assert (insn.base, insn.index_reg, insn.scale, insn.disp) == (3, 1, 4, 0x12345678)
    assert decode(code, 16) is not insn


def test_an_unequal_compare_leaves_a_register_its_upper_half() -> None:
    context = Context("0f b1 cb", RAX=1 << 40 | 1, RCX=9, RBX=1 << 40 | 5)
    emulate_instruction(context)
    assert (context.gpr[RAX], context.gpr[RBX]) == (5, 1 << 40 | 5)


def test_a_branch_may_go_to_a_57_bit_address() -> None:
    context = Context("ff e0", RAX=0x0080_0000_0000_0000)
    assert emulate_instruction(context).outcome is Outcome.DONE
    assert context.rip == 0x0080_0000_0000_0000
