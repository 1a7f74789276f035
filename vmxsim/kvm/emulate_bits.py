"""Exchanges, compare-and-exchange and single bits: what locks and device registers are made of."""

from __future__ import annotations

from vmxsim.kvm.emulate_flags import CF, ZF, add, signed, subtract
from vmxsim.kvm.emulate_operands import (
    MASK,
    VECTOR_GP,
    VECTOR_UD,
    Decoded,
    EmulateContext,
    Emulation,
    Outcome,
    address,
    fault,
    get,
    load,
    load_at,
    load_for_update,
    modify,
    put,
    retire,
    store_at,
)
from vmxsim.kvm.emulate_ops import finish

RAX, RCX, RDX, RBX = 0, 1, 2, 3
BT, BTS, BTR, BTC = range(4)


def xchg(context: EmulateContext, insn: Decoded) -> Emulation:
    """XCHG r/m, r."""
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    failed = modify(context, insn, place[1], get(context.gpr, insn.reg, insn.size))
    if failed is not None:
        return failed
    put(context.gpr, insn.reg, insn.size, place[0])
    return retire(context, insn)


def xadd(context: EmulateContext, insn: Decoded) -> Emulation:
    """XADD r/m, r. The sum wins when both operands are one register."""
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    size = insn.size
    result, flags = add(place[0], get(context.gpr, insn.reg, size), size)
    if insn.rm < 0 and (failed := store_at(context, place[1], size, result)) is not None:
        return failed
    put(context.gpr, insn.reg, size, place[0])
    if insn.rm >= 0:
        put(context.gpr, insn.rm, size, result)
    return finish(context, insn, flags)


def cmpxchg(context: EmulateContext, insn: Decoded) -> Emulation:
    """CMPXCHG r/m, r. Memory is written even when the comparison fails, with what was there."""
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    found, size = place[0], insn.size
    _, flags = subtract(get(context.gpr, RAX, size), found, size)
    equal = bool(flags & ZF)
    new = get(context.gpr, insn.reg, size) if equal else found
    # A register that compares unequal is left alone, upper half and all.
    failed = modify(context, insn, place[1], new) if equal or insn.rm < 0 else None
    if failed is not None:
        return failed
    if not equal:
        put(context.gpr, RAX, size, found)
    return finish(context, insn, flags)


def cmpxchg_pair(context: EmulateContext, insn: Decoded) -> Emulation:
    """CMPXCHG8B, CMPXCHG16B: only ZF changes."""
    if insn.rm >= 0:
        return fault(VECTOR_UD)
    gpr, half = context.gpr, insn.size
    gva = address(context, insn)
    if half == 8 and gva & 15:
        return fault(VECTOR_GP, 0)
    found = load_at(context, gva, 2 * half)
    if isinstance(found, tuple):
        return found
    expected = get(gpr, RDX, half) << 8 * half | get(gpr, RAX, half)
    new = get(gpr, RCX, half) << 8 * half | get(gpr, RBX, half)
    equal = found == expected
    failed = store_at(context, gva, 2 * half, new if equal else found)
    if failed is not None:
        return failed
    if equal:
        context.rflags |= ZF
    else:
        put(gpr, RAX, half, found & MASK[half])
        put(gpr, RDX, half, found >> 8 * half)
        context.rflags &= ~ZF
    return retire(context, insn)


def bit_register(context: EmulateContext, insn: Decoded) -> Emulation:
    """BT, BTS, BTR, BTC r/m, r: in memory the register reaches bits far from the operand."""
    offset = get(context.gpr, insn.reg, insn.size)
    extra = 0
    if insn.rm < 0:
        extra = (signed(offset, insn.size) >> 3) & -insn.size
    return _bit(context, insn, offset, extra)


def bit_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """BT, BTS, BTR, BTC r/m, imm8: the bit is within the operand."""
    return _bit(context, insn, insn.immediate, 0)


def _bit(context: EmulateContext, insn: Decoded, offset: int, extra: int) -> Emulation:
    place = load_for_update(context, insn, extra)
    if isinstance(place, Emulation):
        return place
    value, mask = place[0], 1 << (offset & 8 * insn.size - 1)
    if insn.what != BT:
        new = (value, value | mask, value & ~mask, value ^ mask)[insn.what]
        failed = modify(context, insn, place[1], new)
        if failed is not None:
            return failed
    context.rflags = context.rflags & ~CF | (CF if value & mask else 0)
    return retire(context, insn)


def bit_scan(context: EmulateContext, insn: Decoded) -> Emulation:
    """BSF and (`what` 1) BSR: only ZF is defined; of 0 the destination stays as it was.

    With a REP prefix they are TZCNT and LZCNT, which are not emulated.
    """
    if insn.rep == 0xF3:
        return Emulation(Outcome.UNHANDLED)
    value = load(context, insn)
    if isinstance(value, Emulation):
        return value
    if not value:
        return finish(context, insn, context.rflags | ZF)
    found = value.bit_length() - 1 if insn.what else (value & -value).bit_length() - 1
    put(context.gpr, insn.reg, insn.size, found)
    return finish(context, insn, context.rflags & ~ZF)
