"""The integer instructions: every read first, then the writes to memory, registers and flags last.

So an instruction that cannot finish has changed nothing and can be run again. Each function is the
`run` of a Decoded; `what` tells apart instructions that share one.
"""

from __future__ import annotations

from vmxsim.kvm.emulate_flags import (
    ALU,
    ARITHMETIC,
    CF,
    CMP,
    add,
    condition,
    divide,
    double_shift,
    logical_and,
    multiply,
    shift,
    signed,
    subtract,
)
from vmxsim.kvm.emulate_operands import (
    MASK,
    VECTOR_DE,
    VECTOR_UD,
    Decoded,
    EmulateContext,
    Emulation,
    address,
    fault,
    get,
    load,
    load_for_update,
    modify,
    put,
    retire,
    store_at,
)

RAX, RCX, RDX = 0, 1, 2
NOT, NEG, INC, DEC = range(4)


def undefined(context: EmulateContext, insn: Decoded) -> Emulation:
    """An encoding that is #UD by its prefixes or operands."""
    return fault(VECTOR_UD)


def finish(context: EmulateContext, insn: Decoded, flags: int) -> Emulation:
    """Retire with new arithmetic flags."""
    context.rflags = context.rflags & ~ARITHMETIC | flags & ARITHMETIC
    return retire(context, insn)


# Data movement


def mov_store(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOV r/m, r; MOV moffs, A; MOVNTI."""
    failed = modify(
        context,
        insn,
        0 if insn.rm >= 0 else address(context, insn),
        get(context.gpr, insn.reg, insn.size),
    )
    return retire(context, insn) if failed is None else failed


def mov_load(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOV r, r/m; MOV A, moffs; MOVZX."""
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    put(context.gpr, insn.reg, insn.size, value)
    return retire(context, insn)


def mov_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOV r/m, imm."""
    gva = 0 if insn.rm >= 0 else address(context, insn)
    failed = modify(context, insn, gva, insn.immediate & MASK[insn.size])
    return retire(context, insn) if failed is None else failed


def mov_from_segment(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOV r/m, Sreg: 16 bits to memory, zero-extended to a register."""
    if insn.reg & 7 > 5:
        return fault(VECTOR_UD)
    selector = context.segment_selector(insn.reg & 7)
    if insn.rm >= 0:
        put(context.gpr, insn.rm, insn.size, selector)
    elif (failed := store_at(context, address(context, insn), 2, selector)) is not None:
        return failed
    return retire(context, insn)


def mov_sign_extended(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVSX, MOVSXD."""
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    put(context.gpr, insn.reg, insn.size, signed(value, insn.width) & MASK[insn.size])
    return retire(context, insn)


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def movbe_load(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVBE r, m."""
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    put(context.gpr, insn.reg, insn.size, _swapped(value, insn.size))
    return retire(context, insn)


def movbe_store(context: EmulateContext, insn: Decoded) -> Emulation:
    """MOVBE m, r."""
    value = _swapped(get(context.gpr, insn.reg, insn.size), insn.size)
    failed = store_at(context, address(context, insn), insn.size, value)
    return retire(context, insn) if failed is None else failed


def cmov(context: EmulateContext, insn: Decoded) -> Emulation:
    """CMOVcc: memory is read, and a 32-bit destination cleared above, whatever the condition."""
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    if not condition(insn.what, context.rflags):
        value = get(context.gpr, insn.reg, insn.size)
    put(context.gpr, insn.reg, insn.size, value)
    return retire(context, insn)


def setcc(context: EmulateContext, insn: Decoded) -> Emulation:
    """SETcc r/m8."""
    gva = 0 if insn.rm >= 0 else address(context, insn)
    failed = modify(context, insn, gva, int(condition(insn.what, context.rflags)))
    return retire(context, insn) if failed is None else failed


# Arithmetic and logic


def alu_store(context: EmulateContext, insn: Decoded) -> Emulation:
    """ADD to CMP with the r/m operand on the left, a register on the right."""
    return _alu_to_rm(context, insn, get(context.gpr, insn.reg, insn.size))


def alu_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """ADD to CMP r/m, imm."""
    return _alu_to_rm(context, insn, insn.immediate & MASK[insn.size])


def _alu_to_rm(context: EmulateContext, insn: Decoded, right: int) -> Emulation:
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    result, flags = ALU[insn.what](place[0], right, insn.size, context.rflags & CF)
    if insn.what != CMP:
        failed = modify(context, insn, place[1], result)
        if failed is not None:
            return failed
    return finish(context, insn, flags)


def alu_load(context: EmulateContext, insn: Decoded) -> Emulation:
    """ADD to CMP with a register on the left, the r/m operand on the right."""
    right = load(context, insn)
    if isinstance(right, tuple):
        return right
    left = get(context.gpr, insn.reg, insn.size)
    result, flags = ALU[insn.what](left, right, insn.size, context.rflags & CF)
    if insn.what != CMP:
        put(context.gpr, insn.reg, insn.size, result)
    return finish(context, insn, flags)


def test_register(context: EmulateContext, insn: Decoded) -> Emulation:
    """TEST r/m, r."""
    left = load(context, insn)
    if isinstance(left, tuple):
        return left
    right = get(context.gpr, insn.reg, insn.size)
    return finish(context, insn, logical_and(left, right, insn.size)[1])


def test_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """TEST r/m, imm."""
    left = load(context, insn)
    if isinstance(left, tuple):
        return left
    right = insn.immediate & MASK[insn.size]
    return finish(context, insn, logical_and(left, right, insn.size)[1])


def unary(context: EmulateContext, insn: Decoded) -> Emulation:
    """NOT (no flags), NEG, INC and DEC (which keep CF)."""
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    value, size = place[0], insn.size
    if insn.what == NOT:
        failed = modify(context, insn, place[1], value ^ MASK[size])
        return retire(context, insn) if failed is None else failed
    if insn.what == NEG:
        result, flags = subtract(0, value, size)
    else:
        result, flags = (add if insn.what == INC else subtract)(value, 1, size)
        flags = flags & ~CF | context.rflags & CF
    failed = modify(context, insn, place[1], result)
    return finish(context, insn, flags) if failed is None else failed


def shift_one(context: EmulateContext, insn: Decoded) -> Emulation:
    """Shifts and rotates by one."""
    return _shift(context, insn, 1)


def shift_cl(context: EmulateContext, insn: Decoded) -> Emulation:
    """Shifts and rotates by CL."""
    return _shift(context, insn, context.gpr[RCX])


def shift_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """Shifts and rotates by an immediate."""
    return _shift(context, insn, insn.immediate)


def _shift(context: EmulateContext, insn: Decoded, count: int) -> Emulation:
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    count &= 63 if insn.size == 8 else 31
    result, flags = shift(insn.what, place[0], count, insn.size, context.rflags)
    failed = modify(context, insn, place[1], result)
    return finish(context, insn, flags) if failed is None else failed


def double_shift_cl(context: EmulateContext, insn: Decoded) -> Emulation:
    """SHLD, SHRD by CL."""
    return _double_shift(context, insn, context.gpr[RCX])


def double_shift_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """SHLD, SHRD by an immediate."""
    return _double_shift(context, insn, insn.immediate)


def _double_shift(context: EmulateContext, insn: Decoded, count: int) -> Emulation:
    place = load_for_update(context, insn)
    if isinstance(place, Emulation):
        return place
    count &= 63 if insn.size == 8 else 31
    filler = get(context.gpr, insn.reg, insn.size)
    left, flags = insn.what, context.rflags
    result, flags = double_shift(left, place[0], filler, count, insn.size, flags)
    failed = modify(context, insn, place[1], result)
    return finish(context, insn, flags) if failed is None else failed


def multiply_accumulator(context: EmulateContext, insn: Decoded) -> Emulation:
    """MUL and IMUL r/m: into AX, DX:AX, EDX:EAX or RDX:RAX."""
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    gpr, size = context.gpr, insn.size
    wide, flags = multiply(value, get(gpr, RAX, size), size, bool(insn.what))
    if size == 1:
        put(gpr, RAX, 2, wide)
    else:
        put(gpr, RAX, size, wide & MASK[size])
        put(gpr, RDX, size, wide >> 8 * size)
    return finish(context, insn, flags)


def multiply_register(context: EmulateContext, insn: Decoded) -> Emulation:
    """IMUL r, r/m."""
    return _multiply_into(context, insn, get(context.gpr, insn.reg, insn.size))


def multiply_immediate(context: EmulateContext, insn: Decoded) -> Emulation:
    """IMUL r, r/m, imm."""
    return _multiply_into(context, insn, insn.immediate & MASK[insn.size])


def _multiply_into(context: EmulateContext, insn: Decoded, other: int) -> Emulation:
    value = load(context, insn)
    if isinstance(value, tuple):
        return value
    wide, flags = multiply(value, other, insn.size, True)
    put(context.gpr, insn.reg, insn.size, wide & MASK[insn.size])
    return finish(context, insn, flags)


def divide_accumulator(context: EmulateContext, insn: Decoded) -> Emulation:
    """DIV and IDIV r/m. All flags are undefined after it; they stay."""
    divisor = load(context, insn)
    if isinstance(divisor, tuple):
        return divisor
    gpr, size = context.gpr, insn.size
    if size == 1:
        dividend = get(gpr, RAX, 2)
    else:
        dividend = get(gpr, RDX, size) << 8 * size | get(gpr, RAX, size)
    answer = divide(dividend, divisor, size, bool(insn.what))
    if answer is None:
        return fault(VECTOR_DE)
    quotient, remainder = answer
    if size == 1:
        put(gpr, RAX, 2, remainder << 8 | quotient)
    else:
        put(gpr, RAX, size, quotient)
        put(gpr, RDX, size, remainder)
    return retire(context, insn)
