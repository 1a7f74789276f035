"""The emulator against the engine: every encoding it knows, in every mode it exists in.

A bare Unicorn runs the same bytes on the same registers and memory. Encodings are made from the
emulator's own opcode rows, so that none goes untested; were a row wrong about sizes or immediates,
the engine would end at another RIP.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import unicorn
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from vmxsim.arch.registers import Rflags
from vmxsim.kvm import emulate_bits, emulate_ops, emulate_sse, emulate_stack, emulate_string
from vmxsim.kvm.emulate import (
    Decoded,
    Fault,
    MmioNeeded,
    Outcome,
    Written,
    decode,
    emulate_instruction,
)
from vmxsim.kvm.emulate_flags import ARITHMETIC
from vmxsim.kvm.emulate_opcodes import MOFFS, NEAR, OPCODES, SSE_OPCODES, Row
from vmxsim.kvm.emulate_operands import RIP_RELATIVE, address

TARGET, STACK_TOP, LANDING = 0x6000, 0xA000, 0x2340
RAX, RCX, RDX, RSP, RBP, RSI, RDI = 0, 1, 2, 4, 5, 6, 7
SEGMENT_PREFIXES = {0: 0x26, 3: 0x3E, 4: 0x64, 5: 0x65}
SEGMENT_BASES = {
    16: {0: 0x100, 3: 0x200, 4: 0x300, 5: 0x400},
    32: {},
    64: {4: 0x300, 5: 0x400},
}
XMMS = tuple(bytes(range(i, i + 16)) for i in range(1, 17))
CORNERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 2**31 - 1, 2**31, 2**63, 2**64 - 1]
VALUE = st.sampled_from(CORNERS) | st.integers(0, 2**64 - 1) | st.integers(0, 255)
CODE, TOP = 0x1000, 0x10000
BACKGROUND = bytes((at * 37 + 11) & 0xFF for at in range(TOP))
NAMES_64 = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
    "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
]  # fmt: skip
NAMES_32 = ["EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI"]
SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS"]


class Encoding(NamedTuple):
    """One row of the tables with what is needed to write it down."""

    opcode: int
    group: int | None
    mandatory: int
    row: Row


def encodings() -> list[Encoding]:
    found = []
    for table in (OPCODES, SSE_OPCODES):
        for key, entry in table.items():
            mandatory, opcode = key >> 24, key & 0xFFFFFF
            rows = [(None, entry)] if isinstance(entry, Row) else list(enumerate(entry))
            found += [Encoding(opcode, group, mandatory, row) for group, row in rows if row]
    return found


class State(NamedTuple):
    """Everything that an instruction may change."""

    gpr: tuple[int, ...]
    rip: int
    rflags: int
    xmm: tuple[bytes, ...]
    memory: bytes


class Context:
    """The emulator's view of a State: flat RAM up to TOP."""

    def __init__(self, bits: int, state: State, bases: dict[int, int] | None = None) -> None:
        self.mode_bits = self.stack_bits = bits
        self.gpr = list(state.gpr)
        self.rip, self.rflags = state.rip, state.rflags
        self.xmms = list(state.xmm)
        self.memory = bytearray(state.memory)
        self.bases = bases or {}
        self.selectors = [0] * 6
        self.log: list[tuple[str, int, int]] = []

    def segment_base(self, segment: int) -> int:
        return self.bases.get(segment, 0)

    def segment_selector(self, segment: int) -> int:
        return self.selectors[segment]

    def xmm(self, index: int) -> bytes:
        return self.xmms[index]

    def set_xmm(self, index: int, value: bytes) -> None:
        assert len(value) == 16
        self.xmms[index] = value

    def fetch(self, length: int) -> bytes:
        at = self.rip + self.segment_base(1)
        return bytes(self.memory[at : at + length])

    def read(self, gva: int, length: int) -> bytes | Fault | MmioNeeded:
        assert 0 <= gva <= TOP - length, hex(gva)
        self.log.append(("read", gva, length))
        return bytes(self.memory[gva : gva + length])

    def write(self, gva: int, data: bytes) -> Fault | Written | None:
        assert 0 <= gva <= TOP - len(data), hex(gva)
        self.log.append(("write", gva, len(data)))
        self.memory[gva : gva + len(data)] = data
        return None

    def state(self) -> State:
        return State(tuple(self.gpr), self.rip, self.rflags, tuple(self.xmms), bytes(self.memory))


class Oracle:
    """One engine per mode, reused."""

    def __init__(self, bits: int) -> None:
        mode = {16: unicorn.UC_MODE_16, 32: unicorn.UC_MODE_32, 64: unicorn.UC_MODE_64}[bits]
        self.bits = bits
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        self.uc.ctl_set_cpu_model(x86.UC_CPU_X86_HASWELL)
        self.uc.mem_map(0, TOP)
        self.uc.reg_write(x86.UC_X86_REG_CR4, self.uc.reg_read(x86.UC_X86_REG_CR4) | 0x600)
        names = NAMES_64 if bits == 64 else NAMES_32
        self.gpr = [getattr(x86, f"UC_X86_REG_{name}") for name in names]
        self.xmm = [getattr(x86, f"UC_X86_REG_XMM{i}") for i in range(16 if bits == 64 else 8)]
        self.rip = x86.UC_X86_REG_RIP if bits == 64 else x86.UC_X86_REG_EIP

    def selectors(self) -> list[int]:
        return [self.uc.reg_read(getattr(x86, f"UC_X86_REG_{name}")) for name in SEGMENTS]

    def run(self, before: State, length: int, bases: dict[int, int], repeats: bool) -> State | None:
        """The state after one instruction, or None for an exception."""
        uc = self.uc
        uc.mem_write(0, before.memory)
        uc.ctl_remove_cache(CODE, CODE + 16)
        for segment, base in bases.items():
            if self.bits == 16:
                uc.reg_write(getattr(x86, f"UC_X86_REG_{SEGMENTS[segment]}"), base >> 4)
            else:
                uc.reg_write(getattr(x86, f"UC_X86_REG_{SEGMENTS[segment]}_BASE"), base)
        for register, value in zip(self.gpr, before.gpr, strict=False):
            uc.reg_write(register, value)
        for register, data in zip(self.xmm, before.xmm, strict=False):
            uc.reg_write(register, int.from_bytes(data, "little"))
        uc.reg_write(x86.UC_X86_REG_EFLAGS, before.rflags)
        try:
            uc.emu_start(before.rip, before.rip + length, count=0 if repeats else 1)
        except unicorn.UcError:
            return None
        gpr = [uc.reg_read(register) for register in self.gpr]
        xmm = [uc.reg_read(register).to_bytes(16, "little") for register in self.xmm]
        return State(
            (*gpr, *before.gpr[len(gpr) :]),
            uc.reg_read(self.rip),
            uc.reg_read(x86.UC_X86_REG_EFLAGS),
            (*xmm, *before.xmm[len(xmm) :]),
            bytes(uc.mem_read(0, TOP)),
        )


def undefined_flags(row: Row, count: int, size: int) -> int:
    """Flags on which the manual leaves the processor free."""
    cf, pf, af, zf, sf, of = (
        Rflags.CF, Rflags.PF, Rflags.AF, Rflags.ZF, Rflags.SF, Rflags.OF,
    )  # fmt: skip
    name, run = row.mnemonic, row.run
    if name in ("or", "and", "xor", "test"):
        return af
    if run in (emulate_ops.shift_cl, emulate_ops.shift_immediate, emulate_ops.shift_one):
        count = 1 if run is emulate_ops.shift_one else count & (63 if size == 8 else 31)
        loose = 0 if count <= 1 else of
        if count and row.what >= 4:
            loose |= af
        return loose | (cf if count >= 8 * size and name in ("shl", "shr", "sal") else 0)
    if name in ("shld", "shrd"):
        count &= 63 if size == 8 else 31
        return (af if count else 0) | (of if count != 1 else 0)
    if "mul" in name:
        return sf | zf | af | pf
    if "div" in name:
        return ARITHMETIC
    if run in (emulate_bits.bit_immediate, emulate_bits.bit_register):
        return of | sf | af | pf
    if run is emulate_bits.bit_scan:
        return ARITHMETIC & ~zf
    return 0


ENCODINGS = encodings()
MNEMONICS = sorted({encoding.row.mnemonic for encoding in ENCODINGS})


class Choice(NamedTuple):
    """What an encoding leaves open."""

    operand_prefix: bool
    address_prefix: bool
    segment: int
    lock: bool
    rep: int
    rex: int
    mod: int
    reg: int
    rm: int
    sib: int
    immediate: bytes
    registers: list[int]
    value: int
    equal: bool
    flags: int


CHOICES = st.builds(
    Choice,
    operand_prefix=st.booleans(),
    address_prefix=st.booleans(),
    segment=st.sampled_from([-1, -1, *SEGMENT_PREFIXES]),
    lock=st.booleans(),
    rep=st.sampled_from([0, 0xF2, 0xF3]),
    rex=st.sampled_from([0, *range(0x40, 0x50)]),
    mod=st.integers(0, 3),
    reg=st.integers(0, 7),
    rm=st.integers(0, 7),
    sib=st.integers(0, 255),
    immediate=st.binary(min_size=8, max_size=8),
    registers=st.lists(VALUE, min_size=16, max_size=16),
    value=VALUE,
    equal=st.booleans(),
    flags=st.sampled_from([0, ARITHMETIC]) | st.integers(0, 0xFFF),
)


def restrict(encoding: Encoding, choice: Choice, bits: int) -> Choice:
    """Leave out what the encoding cannot have, and what the engine does in its own way."""
    row = encoding.row
    if bits != 64:
        choice = choice._replace(rex=0)
    if bits == 32:
        choice = choice._replace(segment=-1)
    if row.run is emulate_ops.mov_from_segment:
        choice = choice._replace(reg=choice.reg % 6, rex=choice.rex & ~4)
    if encoding.group is not None:
        choice = choice._replace(reg=encoding.group, rex=choice.rex & ~4)
    if row.memory_only or row.run is emulate_bits.cmpxchg_pair:
        choice = choice._replace(mod=choice.mod % 3)
    # The engine's flags after LOCK NEG are of the negated value.
    if not row.lock or choice.mod == 3 or row.mnemonic == "neg":
        choice = choice._replace(lock=False)
    if row.run is not emulate_string.string:
        choice = choice._replace(rep=0)
    sse = row.run in vars(emulate_sse).values()
    if sse or row.size == NEAR or row.mnemonic in ("movnti", "cmpxchg8b", "movbe"):
        choice = choice._replace(operand_prefix=False)
    return choice


def encode(encoding: Encoding, choice: Choice, bits: int) -> bytes:
    """Bytes; a displacement of four or two bytes is TARGET, so that baseless forms lead there."""
    row = encoding.row
    code = bytes([SEGMENT_PREFIXES[choice.segment]]) if choice.segment >= 0 else b""
    code += b"\x67" * choice.address_prefix + b"\x66" * choice.operand_prefix
    code += b"\xf0" * choice.lock + (bytes([choice.rep]) if choice.rep else b"")
    code += bytes([encoding.mandatory]) if encoding.mandatory else b""
    code += bytes([choice.rex]) if choice.rex else b""
    opcode = encoding.opcode | (choice.rm if row.reg_is_low_bits else 0)
    code += opcode.to_bytes(3, "big").lstrip(b"\0") or b"\0"
    if row.imm == MOFFS:
        return code + TARGET.to_bytes(8, "little")
    if row.modrm:
        code += bytes([choice.mod << 6 | choice.reg << 3 | choice.rm])
        short = bits == (32 if choice.address_prefix else 16)
        sized = (0, 1, 2 if short else 4, 0)[choice.mod]
        if short:
            sized = 2 if choice.mod == 0 and choice.rm == 6 else sized
        else:
            if choice.mod != 3 and choice.rm == 4:
                code += bytes([choice.sib])
            base = choice.sib & 7 if choice.rm == 4 else choice.rm
            sized = 4 if choice.mod == 0 and base == 5 else sized
        code += TARGET.to_bytes(4, "little")[:sized] if sized != 1 else choice.immediate[:1]
    if row.run is emulate_stack.call_relative:
        return code + choice.immediate[:1] + bytes(3)
    if row.run is emulate_stack.ret:  # the engine takes it as signed
        return code + choice.immediate[:1] + bytes(1)
    return code + choice.immediate


def aim(insn: Decoded, registers: list[int]) -> None:
    """Have the address registers lead to TARGET or not far above."""
    base, index = insn.base, insn.index_reg
    if index >= 0 and base < 0:
        registers[index] &= 0xFF
    elif base == index and base >= 0:
        registers[base] = (TARGET - insn.disp) // (1 + insn.scale)
    elif 0 <= base < RIP_RELATIVE:
        mask = (1 << 8 * insn.address_size) - 1
        rest = registers[index] * insn.scale if index >= 0 else 0
        wanted = (TARGET - insn.disp - rest) & mask
        registers[base] = registers[base] & ~mask | wanted


def prepare(encoding: Encoding, insn: Decoded, choice: Choice, code: bytes) -> State:
    """Registers and memory that make the instruction interesting and keep it within memory."""
    row, bits = encoding.row, insn.bits
    word = 2**64 - 1 if bits == 64 else 2**32 - 1
    registers = [value & word for value in choice.registers]
    registers[RSP] = STACK_TOP
    if row.run is emulate_bits.cmpxchg and insn.size == 4:
        # The engine clears the upper half of RAX even when it does not write EAX.
        registers = [value & 0xFFFF_FFFF for value in registers]
    if row.run is emulate_ops.double_shift_immediate:
        assume(insn.base != RIP_RELATIVE)  # the engine forgets the immediate's length there
    if row.run is emulate_stack.leave:
        registers[RBP] = STACK_TOP - 64
    if row.run is emulate_bits.bit_register:
        assume(insn.reg not in (insn.base, insn.index_reg))
        registers[insn.reg] = (registers[insn.reg] & 0x7FFF) - 0x4000 & word
    if row.run is emulate_string.string:
        registers[RSI], registers[RDI] = (TARGET + registers[at] % 64 for at in (RSI, RDI))
        if choice.rep:
            registers[RCX] %= 40
        if choice.equal:
            registers[RAX] = 0
    aim(insn, registers)
    memory = bytearray(BACKGROUND)
    if choice.equal:
        memory[TARGET - 0x200 : TARGET + 0x420] = bytes(0x620)
    memory[CODE : CODE + 16] = code.ljust(16, b"\x90")[:16]
    value, size = choice.value, insn.size
    if row.run in (emulate_stack.call_rm, emulate_stack.jmp_rm, emulate_stack.ret):
        value = LANDING
        memory[STACK_TOP : STACK_TOP + 8] = value.to_bytes(8, "little")
        if insn.rm >= 0 and insn.rm != RSP:
            registers[insn.rm] = value
    elif choice.equal and "cmpxchg" in row.mnemonic:
        mask = (1 << 8 * size) - 1
        value = registers[RAX] & mask
        if row.run is emulate_bits.cmpxchg_pair:
            value |= (registers[RDX] & mask) << 8 * size
    if row.run is not emulate_string.string:
        probe = Context(bits, State(tuple(registers), CODE, 2, XMMS, b""), SEGMENT_BASES[bits])
        gva = address(probe, insn) if insn.rm < 0 and row.modrm else TARGET
        memory[gva : gva + 16] = value.to_bytes(16, "little")
        if row.what == emulate_sse.ALIGNED or "cmpxchg8b" in row.mnemonic:
            assume(gva % 16 == 0)
    flags = choice.flags & (ARITHMETIC | Rflags.DF) | Rflags.FIXED
    return State(tuple(registers), CODE, flags, XMMS, bytes(memory))


@pytest.fixture(scope="module")
def oracles() -> dict[int, Oracle]:
    return {bits: Oracle(bits) for bits in (16, 32, 64)}


@pytest.mark.parametrize("mnemonic", MNEMONICS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
@given(data=st.data(), bits=st.sampled_from([16, 32, 64]), choice=CHOICES)
def test_every_encoding_does_what_the_engine_does(
    oracles: dict[int, Oracle], mnemonic: str, data: st.DataObject, bits: int, choice: Choice
) -> None:
    mine = [encoding for encoding in ENCODINGS if encoding.row.mnemonic == mnemonic]
    # Not the engine's: group 3 /1, and operand sizes of MOVBE in 16-bit code.
    mine = [e for e in mine if not (e.row.mnemonic == "test" and e.group == 1)]
    assume(mnemonic != "movbe" or bits != 16)
    encoding = data.draw(st.sampled_from(mine))
    assume(bits == 64 or not encoding.row.long_only)
    choice = restrict(encoding, choice, bits)
    code = encode(encoding, choice, bits)
    assume(len(code) - 8 <= 11)
    insn = decode(code, bits)
    assert insn is not None, code.hex()
    before = prepare(encoding, insn, choice, code)
    context = Context(bits, before, SEGMENT_BASES[bits])
    count = insn.immediate if insn.immediate else before.gpr[RCX]
    free = undefined_flags(encoding.row, count, insn.size)
    if insn.mnemonic in ("shld", "shrd"):
        assume(count & (63 if insn.size == 8 else 31) <= 8 * insn.size)

    expected = oracles[bits].run(before, insn.length, context.bases, bool(insn.rep))
    context.selectors = oracles[bits].selectors()
    ended = emulate_instruction(context)

    # The engine may take #DE through the IVT at once.
    if expected is None or ("div" in mnemonic and expected.rip != CODE + insn.length):
        assert ended.outcome is Outcome.FAULT
        assert context.state() == before
        return
    assert ended.outcome is Outcome.DONE
    found = context.state()
    assert [hex(x) for x in found.gpr] == [hex(x) for x in expected.gpr]
    assert hex(found.rip) == hex(expected.rip)
    compared = (ARITHMETIC | Rflags.DF) & ~free
    assert hex(found.rflags & compared) == hex(expected.rflags & compared)
    assert found.xmm == expected.xmm
    differ = (
        [hex(at) for at in range(TOP) if found.memory[at] != expected.memory[at]]
        if (found.memory != expected.memory)
        else []
    )
    assert differ == []
