"""MOVS, STOS, LODS, SCAS and CMPS, whose REP forms commit RCX, RSI and RDI after every iteration.

A call does at most REP_LIMIT iterations and leaves RIP on the instruction while some are left, so
that interrupts are not held up: the guest simply executes the rest again. The same happens when an
iteration after the first needs userspace, so reads asked for belong to the first iteration only.
"""

from __future__ import annotations

from vmxsim.arch.registers import Rflags
from vmxsim.kvm.emulate_flags import ARITHMETIC, ZF, subtract
from vmxsim.kvm.emulate_operands import (
    DONE,
    MASK,
    Decoded,
    EmulateContext,
    Emulation,
    Fault,
    Outcome,
    Written,
    get,
    linear,
    put,
    retire,
    unread,
)

REP_LIMIT = 1024
RAX, RCX, RSI, RDI = 0, 1, 6, 7
ES = 0
MOVS, STOS, LODS, SCAS, CMPS = range(5)
REPNE = 0xF2


def string(context: EmulateContext, insn: Decoded) -> Emulation:
    """One string instruction, with or without REP."""
    if not insn.rep:
        ended = _iterate(context, insn)
        return retire(context, insn) if ended is None or ended is Written.QUEUED else ended
    gpr, size = context.gpr, insn.address_size
    left = get(gpr, RCX, size)
    first = True
    for _ in range(min(left, REP_LIMIT)):
        ended = _iterate(context, insn)
        if isinstance(ended, Emulation):
            return ended if first or ended.outcome is not Outcome.NEED_MMIO else DONE
        first = False
        left -= 1
        put(gpr, RCX, size, left)
        if insn.what >= SCAS and bool(context.rflags & ZF) == (insn.rep == REPNE):
            left = 0
            break
        if ended is Written.QUEUED:
            break
    return DONE if left else retire(context, insn)


def _iterate(context: EmulateContext, insn: Decoded) -> Emulation | Written | None:
    """One iteration, pointers moved; anything but None or QUEUED has changed nothing."""
    gpr, size, what = context.gpr, insn.size, insn.what
    source: int | None = None
    if what in (MOVS, LODS, CMPS):
        answer = context.read(_source(context, insn), size)
        if not isinstance(answer, bytes):
            return unread(answer)
        source = int.from_bytes(answer, "little")
    written: Written | None = None
    if what <= STOS:
        data = source if source is not None else get(gpr, RAX, size)
        answered = context.write(_destination(context, insn), data.to_bytes(size, "little"))
        if isinstance(answered, Fault):
            return Emulation(Outcome.FAULT, answered)
        written = answered
    elif what >= SCAS:
        answer = context.read(_destination(context, insn), size)
        if not isinstance(answer, bytes):
            return unread(answer)
        left = source if source is not None else get(gpr, RAX, size)
        flags = subtract(left, int.from_bytes(answer, "little"), size)[1]
        context.rflags = context.rflags & ~ARITHMETIC | flags
    elif source is not None:
        put(gpr, RAX, size, source)
    _advance(context, insn)
    return written


def _source(context: EmulateContext, insn: Decoded) -> int:
    return linear(context, insn, insn.segment, context.gpr[RSI])


def _destination(context: EmulateContext, insn: Decoded) -> int:
    return linear(context, insn, -1 if insn.bits == 64 else ES, context.gpr[RDI])


def _advance(context: EmulateContext, insn: Decoded) -> None:
    gpr, size = context.gpr, insn.address_size
    step = -insn.size if context.rflags & Rflags.DF else insn.size
    mask = MASK[size]
    if insn.what in (MOVS, LODS, CMPS):
        put(gpr, RSI, size, (gpr[RSI] + step) & mask)
    if insn.what != LODS:
        put(gpr, RDI, size, (gpr[RDI] + step) & mask)
