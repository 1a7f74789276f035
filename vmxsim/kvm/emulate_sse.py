"""SSE moves between XMM registers and memory: whole, low half, high half, one float.

Only moves: what compilers and kernels use to copy to and from device memory. Forms without a prefix
that would touch MMX registers are not handled.
"""

from __future__ import annotations

from vmxsim.kvm.emulate_operands import (
    VECTOR_GP,
    Decoded,
    EmulateContext,
    Emulation,
    Fault,
    Outcome,
    address,
    fault,
    get,
    put,
    retire,
    unread,
)

ANY, ALIGNED = 0, 1


def xmm_load(context: EmulateContext, insn: Decoded) -> Emulation:
    """A load that clears what it does not fill (a register source of MOVSS, MOVSD does not)."""
    width = insn.width
    if insn.rm >= 0:
        data = context.xmm(insn.rm)[:width]
    else:
        gva = address(context, insn)
        if insn.what == ALIGNED and gva & 15:
            return fault(VECTOR_GP, 0)
        answer = context.read(gva, width)
        if not isinstance(answer, bytes):
            return unread(answer)
        data = answer
    context.set_xmm(insn.reg, data.ljust(16, b"\0"))
    return retire(context, insn)


def xmm_load_scalar(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVSS, MOVSD: from memory it clears the rest, from a register it keeps it."""
    if insn.rm < 0:
        return xmm_load(context, insn)
    width = insn.width
    context.set_xmm(insn.reg, context.xmm(insn.rm)[:width] + context.xmm(insn.reg)[width:])
    return retire(context, insn)


def xmm_load_half(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVLPS, MOVHPS (`what` is the byte offset): the other half stays."""
    answer = context.read(address(context, insn), 8)
    if not isinstance(answer, bytes):
        return unread(answer)
    old = context.xmm(insn.reg)
    context.set_xmm(insn.reg, old[:8] + answer if insn.what else answer + old[8:])
    return retire(context, insn)


def xmm_store(context: EmulateContext, insn: Decoded) -> Emulation:
    """A store of the low `width` bytes."""
    data = context.xmm(insn.reg)[: insn.width]
    if insn.rm >= 0:
        rest = context.xmm(insn.rm)[insn.width :] if insn.what != ALIGNED else b""
        context.set_xmm(insn.rm, data + rest)
        return retire(context, insn)
    gva = address(context, insn)
    if insn.what == ALIGNED and gva & 15:
        return fault(VECTOR_GP, 0)
    return _write(context, insn, gva, data)


def xmm_store_low(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVQ xmm/m64, xmm: a register destination is cleared above."""
    data = context.xmm(insn.reg)[:8]
    if insn.rm >= 0:
        context.set_xmm(insn.rm, data.ljust(16, b"\0"))
        return retire(context, insn)
    return _write(context, insn, address(context, insn), data)


def xmm_store_half(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVLPS, MOVHPS to memory."""
    data = context.xmm(insn.reg)[insn.what : insn.what + 8]
    return _write(context, insn, address(context, insn), data)


def xmm_from_integer(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVD, MOVQ xmm, r/m."""
    if insn.rm < 0:
        return xmm_load(context, insn)
    value = get(context.gpr, insn.rm, insn.size)
    context.set_xmm(insn.reg, value.to_bytes(16, "little"))
    return retire(context, insn)


def xmm_to_integer(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVD, MOVQ r/m, xmm."""
    data = context.xmm(insn.reg)[: insn.size]
    if insn.rm >= 0:
        put(context.gpr, insn.rm, insn.size, int.from_bytes(data, "little"))
        return retire(context, insn)
    return _write(context, insn, address(context, insn), data)


def _write(context: EmulateContext, insn: Decoded, gva: int, data: bytes) -> Emulation:
    failed = context.write(gva, data)
    if isinstance(failed, Fault):
        return Emulation(Outcome.FAULT, failed)
    return retire(context, insn)
