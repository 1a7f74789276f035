"""Bytes to Instruction: Capstone's answer in the project's own words, and the kind of trap it is.

Only what leaves the guest is decoded, and the caller keeps the result, so this runs once per
instruction of the guest that exits, not once per exit.
"""

from __future__ import annotations

import capstone
from capstone import x86

from vmxsim.cpu.traps import RIP_BASE, Instruction, Operand, OperandKind, TrapKind

_GPR64 = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
]
_GPR32 = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"]
_GPR16 = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]
_GPR8 = ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"]
_SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"]
MAX_LENGTH = 15


def _register_names() -> dict[str, tuple[OperandKind, int, int]]:
    """Every register name with its kind, size in bytes and number."""
    names: dict[str, tuple[OperandKind, int, int]] = {}
    for number in range(16):
        names[_GPR64[number]] = (OperandKind.GPR, 8, number)
        if number < 8:
            names[_GPR32[number]] = (OperandKind.GPR, 4, number)
            names[_GPR16[number]] = (OperandKind.GPR, 2, number)
            names[_GPR8[number]] = (OperandKind.GPR, 1, number)
        else:
            names[f"r{number}d"] = (OperandKind.GPR, 4, number)
            names[f"r{number}w"] = (OperandKind.GPR, 2, number)
            names[f"r{number}b"] = (OperandKind.GPR, 1, number)
        names[f"cr{number}"] = (OperandKind.CR, 8, number)
        names[f"dr{number}"] = (OperandKind.DR, 8, number)
        names[f"xmm{number}"] = (OperandKind.XMM, 16, number)
    for number, name in enumerate(("ah", "ch", "dh", "bh")):
        names[name] = (OperandKind.HIGH8, 1, number)
    for number, name in enumerate(_SEGMENTS):
        names[name] = (OperandKind.SEGMENT, 2, number)
    names["rip"] = names["eip"] = (OperandKind.GPR, 8, RIP_BASE)
    return names


_PLAIN = {
    "cpuid": TrapKind.CPUID,
    "hlt": TrapKind.HLT,
    "invd": TrapKind.INVD,
    "wbinvd": TrapKind.WBINVD,
    "invlpg": TrapKind.INVLPG,
    "invpcid": TrapKind.INVPCID,
    "rdpmc": TrapKind.RDPMC,
    "rdtsc": TrapKind.RDTSC,
    "rdtscp": TrapKind.RDTSCP,
    "rdrand": TrapKind.RDRAND,
    "rdseed": TrapKind.RDSEED,
    "rdmsr": TrapKind.RDMSR,
    "wrmsr": TrapKind.WRMSR,
    "clts": TrapKind.CLTS,
    "lmsw": TrapKind.LMSW,
    "smsw": TrapKind.SMSW,
    "lgdt": TrapKind.LGDT,
    "lidt": TrapKind.LIDT,
    "sgdt": TrapKind.SGDT,
    "sidt": TrapKind.SIDT,
    "lldt": TrapKind.LLDT,
    "ltr": TrapKind.LTR,
    "sldt": TrapKind.SLDT,
    "str": TrapKind.STR,
    "monitor": TrapKind.MONITOR,
    "mwait": TrapKind.MWAIT,
    "pause": TrapKind.PAUSE,
    "xsetbv": TrapKind.XSETBV,
    "xgetbv": TrapKind.XGETBV,
    "vmcall": TrapKind.VMCALL,
    "vmclear": TrapKind.VMCLEAR,
    "vmlaunch": TrapKind.VMLAUNCH,
    "vmptrld": TrapKind.VMPTRLD,
    "vmptrst": TrapKind.VMPTRST,
    "vmread": TrapKind.VMREAD,
    "vmresume": TrapKind.VMRESUME,
    "vmwrite": TrapKind.VMWRITE,
    "vmxoff": TrapKind.VMXOFF,
    "vmxon": TrapKind.VMXON,
    "invept": TrapKind.INVEPT,
    "invvpid": TrapKind.INVVPID,
    "vmfunc": TrapKind.VMFUNC,
    "rsm": TrapKind.RSM,
    "int": TrapKind.INT_N,
    "int3": TrapKind.INT3,
    "into": TrapKind.INTO,
    "int1": TrapKind.ICEBP,
    "syscall": TrapKind.SYSCALL,
    "sysenter": TrapKind.SYSENTER,
    "xsaves": TrapKind.XSAVES,
    "xsaves64": TrapKind.XSAVES,
    "xrstors": TrapKind.XRSTORS,
    "xrstors64": TrapKind.XRSTORS,
    "getsec": TrapKind.GETSEC,
    "rdpid": TrapKind.RDPID,
    "cmpxchg8b": TrapKind.CMPXCHG8B,
    "cmpxchg16b": TrapKind.CMPXCHG8B,
    "encls": TrapKind.ENCLS,
}
_STRING_IO = frozenset({"insb", "insw", "insd", "outsb", "outsw", "outsd"})

UNDEFINED_TO_THE_ENGINE = frozenset(
    {
        TrapKind.INVPCID, TrapKind.RDRAND, TrapKind.RDSEED, TrapKind.XSETBV, TrapKind.XGETBV,
        TrapKind.VMCALL, TrapKind.VMCLEAR, TrapKind.VMLAUNCH, TrapKind.VMPTRLD, TrapKind.VMPTRST,
        TrapKind.VMREAD, TrapKind.VMRESUME, TrapKind.VMWRITE, TrapKind.VMXOFF, TrapKind.VMXON,
        TrapKind.INVEPT, TrapKind.INVVPID, TrapKind.VMFUNC, TrapKind.RSM, TrapKind.XSAVES,
        TrapKind.XRSTORS, TrapKind.GETSEC, TrapKind.RDPID, TrapKind.ENCLS, TrapKind.ICEBP,
        TrapKind.SYSCALL, TrapKind.SYSENTER, TrapKind.CMPXCHG8B,
    }
)  # fmt: skip
"""What the engine answers with #UD although a processor has it: told apart by decoding."""


class Decoder:
    """One disassembler per code size, made when first needed."""

    def __init__(self) -> None:
        self._names = _register_names()
        self._disassemblers: dict[int, capstone.Cs] = {}

    def decode(self, code: bytes, bits: int) -> tuple[TrapKind | None, Instruction] | None:
        """Decode one instruction; None when the bytes are none. ``bits`` is the code size."""
        disassembler = self._disassemblers.get(bits)
        if disassembler is None:
            mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
            disassembler = capstone.Cs(capstone.CS_ARCH_X86, mode[bits])
            disassembler.detail = True
            self._disassemblers[bits] = disassembler
        for insn in disassembler.disasm(code[:MAX_LENGTH], 0, 1):
            decoded = self._convert(insn, code, bits)
            return _kind(decoded), decoded
        return self._decode_mandatory_prefix(code) if bits == 16 else None

    def _decode_mandatory_prefix(self, code: bytes) -> tuple[TrapKind | None, Instruction] | None:
        """INVEPT, INVVPID and INVPCID in 16-bit code, which Capstone does not know.

        They are read as 32-bit code with the address size turned round.
        """
        start = _prefix_length(code)
        prefixes, opcode = code[:start], code[start : start + 3]
        if 0x66 not in prefixes or opcode not in (
            b"\x0f\x38\x80",
            b"\x0f\x38\x81",
            b"\x0f\x38\x82",
        ):
            return None
        turned = prefixes.replace(b"\x67", b"") if 0x67 in prefixes else b"\x67" + prefixes
        decoded = self.decode(turned + code[start:], 32)
        if decoded is None:
            return None
        kind, insn = decoded
        length = insn.length + len(prefixes) - len(turned)
        return kind, insn._replace(bits=16, code=bytes(code[:length]), length=length)

    def _convert(self, insn: capstone.CsInsn, code: bytes, bits: int) -> Instruction:
        """Turn Capstone's record into ours."""
        raw = bytes(code[: insn.size])
        prefixes = raw[: _prefix_length(raw)]
        override = -1
        for byte in prefixes:
            if byte in _OVERRIDES:
                override = _OVERRIDES[byte]
        operand_size = 2 if bits == 16 else 4
        if 0x66 in prefixes:
            operand_size = 6 - operand_size
        if bits == 64 and insn.rex & 8:
            operand_size = 8
        rep = next((byte for byte in reversed(prefixes) if byte in (0xF2, 0xF3)), 0)
        mnemonic = insn.mnemonic.rsplit(" ", 1)[-1]
        if mnemonic == "vmptrld" and 0x66 in prefixes:
            mnemonic = "vmclear"  # in 16-bit code Capstone misses the mandatory prefix
        return Instruction(
            mnemonic=mnemonic,
            code=raw,
            length=insn.size,
            bits=bits,
            operand_size=operand_size,
            address_size=insn.addr_size,
            rep=rep,
            lock=0xF0 in prefixes,
            segment_override=override,
            operands=tuple(self._operand(insn, op, override) for op in insn.operands),
        )

    def _operand(self, insn: capstone.CsInsn, op: x86.X86Op, override: int) -> Operand:
        """Turn one of Capstone's operands into ours."""
        if op.type == x86.X86_OP_REG:
            kind, size, number = self._names.get(insn.reg_name(op.reg), (OperandKind.OTHER, 0, 0))
            if kind in (OperandKind.CR, OperandKind.DR):
                size = op.size
            return Operand(kind, size, number)
        if op.type == x86.X86_OP_IMM:
            return Operand(OperandKind.IMMEDIATE, op.size, value=op.imm)
        if op.type != x86.X86_OP_MEM:
            return Operand(OperandKind.OTHER, op.size)
        mem = op.mem
        base = self._number(insn, mem.base)
        index = self._number(insn, mem.index)
        if mem.segment:
            segment = _SEGMENTS.index(insn.reg_name(mem.segment))
        elif override >= 0:
            segment = override
        else:
            segment = 2 if base in (4, 5) else 3
        return Operand(
            OperandKind.MEMORY, op.size, segment,
            base=base, index_reg=index, scale=mem.scale, disp=mem.disp,
        )  # fmt: skip

    def _number(self, insn: capstone.CsInsn, register: int) -> int:
        """The number of a base or index register, -1 for none."""
        if not register:
            return -1
        return self._names.get(insn.reg_name(register), (OperandKind.OTHER, 0, -1))[2]


_INVPCID = bytes.fromhex("660f3882")
_ADDRESS_SIZE = b"\x67"
_OVERRIDES = {0x26: 0, 0x2E: 1, 0x36: 2, 0x3E: 3, 0x64: 4, 0x65: 5}
_LEGACY = frozenset(_OVERRIDES) | {0x66, 0x67, 0xF0, 0xF2, 0xF3}


def _prefix_length(raw: bytes) -> int:
    """How many bytes before the opcode are legacy prefixes."""
    for position, byte in enumerate(raw):
        if byte not in _LEGACY:
            return position
    return len(raw)


def _kind(insn: Instruction) -> TrapKind | None:
    """The kind of trap an instruction can be, or None."""
    mnemonic = insn.mnemonic
    if mnemonic == "mov":
        for position, operand in enumerate(insn.operands):
            if operand.kind is OperandKind.CR:
                return TrapKind.MOV_FROM_CR if position else TrapKind.MOV_TO_CR
            if operand.kind is OperandKind.DR:
                return TrapKind.MOV_DR
        return None
    if mnemonic in ("in", "out") or (mnemonic in _STRING_IO and _is_string_io(insn)):
        return TrapKind.IO
    return _PLAIN.get(mnemonic)


def _is_string_io(insn: Instruction) -> bool:
    """Tell INSD and OUTSD from SSE instructions of like names."""
    return insn.code[_prefix_length(insn.code) :][-1] in (0x6C, 0x6D, 0x6E, 0x6F)
