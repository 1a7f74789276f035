"""Instructions that reach memory through the stack pointer or go where memory says."""

from __future__ import annotations

from vmxsim.kvm.emulate_operands import (
    DONE,
    MASK,
    RSP,
    VECTOR_GP,
    Decoded,
    EmulateContext,
    Emulation,
    address,
    drop,
    fault,
    get,
    load,
    modify,
    push,
    put,
    retire,
    top_of_stack,
)

RBP = 5


def _jump(context: EmulateContext, insn: Decoded, target: int) -> Emulation:
    context.rip = target & MASK[insn.size]
    return DONE


def _canonical(insn: Decoded, target: int) -> bool:
    """By the widest form there is (LA57): a narrower guest faults on the fetch instead."""
    return insn.bits != 64 or (target + (1 << 56)) & MASK[8] < 1 << 57


def push_rm(context: EmulateContext, insn: Decoded) -> Emulation:
    """PUSH r/m."""
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    failed = push(context, insn, value)
    return retire(context, insn) if failed is None else failed


def push_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """PUSH imm."""
    failed = push(context, insn, insn.immediate & MASK[insn.size])
    return retire(context, insn) if failed is None else failed


def pop_rm(context: EmulateContext, insn: Decoded) -> Emulation:
    """POP r/m: an address that uses RSP sees it already moved."""
    value = top_of_stack(context, insn, insn.size)
    if isinstance(value, tuple):
        return value
    if insn.rm >= 0:
        drop(context, insn.size)
        put(context.gpr, insn.rm, insn.size, value)
        return retire(context, insn)
    gva = address(context, insn, insn.size if insn.base == RSP else 0)
    failed = modify(context, insn, gva, value)
    if failed is not None:
        return failed
    drop(context, insn.size)
    return retire(context, insn)


def call_rm(context: EmulateContext, insn: Decoded) -> Emulation:
    """CALL r/m, near."""
    target = load(context, insn)
    return target if isinstance(target, tuple) else _call(context, insn, target)


def call_relative(context: EmulateContext, insn: Decoded) -> Emulation:
    """CALL rel, for a stack that is a device."""
    return _call(context, insn, context.rip + insn.length + insn.immediate & MASK[insn.size])


def _call(context: EmulateContext, insn: Decoded, target: int) -> Emulation:
    if not _canonical(insn, target):
        return fault(VECTOR_GP, 0)
    failed = push(context, insn, context.rip + insn.length & MASK[insn.size])
    return _jump(context, insn, target) if failed is None else failed


def jmp_rm(context: EmulateContext, insn: Decoded) -> Emulation:
    """JMP r/m, near."""
    target = load(context, insn)
    if isinstance(target, tuple):
        return target
    return _jump(context, insn, target) if _canonical(insn, target) else fault(VECTOR_GP, 0)


def ret(context: EmulateContext, insn: Decoded) -> Emulation:
    """RET, RET imm16, near."""
    target = top_of_stack(context, insn, insn.size)
    if isinstance(target, tuple):
        return target
    if not _canonical(insn, target):
        return fault(VECTOR_GP, 0)
    drop(context, insn.size + (insn.immediate & 0xFFFF))
    return _jump(context, insn, target)


def leave(context: EmulateContext, insn: Decoded) -> Emulation:
    """LEAVE: RSP from RBP, then POP RBP."""
    gpr, mask = context.gpr, MASK[context.stack_bits >> 3]
    before = gpr[RSP]
    gpr[RSP] = gpr[RBP] if mask > 0xFFFF else before & ~mask | get(gpr, RBP, 2)
    value = top_of_stack(context, insn, insn.size)
    if isinstance(value, tuple):
        gpr[RSP] = before
        return value
    drop(context, insn.size)
    put(gpr, RBP, insn.size, value)
    return retire(context, insn)
