"""The engine's CPU state, live: where Unicorn 2.1.4 keeps it, found and checked at start-up.

No process map is read and nothing is searched blindly. The engine handle holds a table of function
pointers with the CPU pointer behind it; the CPU object holds the register file, which is recognised
by two planted registers. Then the layout is compared with the engine's own
context image, and one intercepted instruction is run. Any doubt is an EngineError.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import NamedTuple

from unicorn import x86_const as ux
from unicorn.unicorn import __version__ as unicorn_version
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.errors import EngineError

PINNED = "2.1.4"
CONTEXT_HEADER = 40
IMAGE_SIZE = 5568

# Offsets in CPUX86State.
REGS, EIP, EFLAGS, CC_SRC, CC_OP, DF, HFLAGS, HFLAGS2 = 0, 128, 136, 152, 168, 172, 176, 180
SEGS, LDT, TR, GDT, IDT, CR, EFER = 184, 328, 352, 376, 400, 424, 592
SEG_BASE, SEG_LIMIT, SEG_FLAGS, SEG_SIZE = 8, 16, 20, 24
ERROR_CODE, DR = IMAGE_SIZE - 184, IMAGE_SIZE - 168
OLD_EXCEPTION, VMCB, INTERCEPT = IMAGE_SIZE - 72, IMAGE_SIZE - 64, IMAGE_SIZE - 48
CR_READ, CR_WRITE, DR_READ, DR_WRITE = (IMAGE_SIZE - n for n in (40, 38, 36, 34))
INTERCEPT_EXCEPTIONS, NESTED_CR3, NESTED_MODE = IMAGE_SIZE - 32, IMAGE_SIZE - 24, IMAGE_SIZE - 16
NESTED_LONG_NX = 7
"""Nested tables of 4-level form with no-execute."""
VENDOR, FEATURES = IMAGE_SIZE + 48, IMAGE_SIZE + 64

# hflags: the translator's view of the mode. hflags2: what may interrupt.
HF_CPL, HF_INHIBIT_IRQ, HF_CS32, HF_SS32, HF_ADDSEG, HF_PE = (
    3,
    1 << 3,
    1 << 4,
    1 << 5,
    1 << 6,
    1 << 7,
)
HF_LMA, HF_CS64 = 1 << 14, 1 << 15
HF_GUEST, HF_OSFXSR, HF_SMAP, HF_IOBPT = 1 << 21, 1 << 22, 1 << 23, 1 << 24
HF2_GIF, HF2_HIF, HF2_VINTR, HF2_NPT = 1 << 0, 1 << 1, 1 << 3, 1 << 6

CC_OP_EFLAGS = 1
"""The lazy-flags state in which cc_src holds the arithmetic flags as they are."""

INTERRUPT_REQUEST = 36 if sys.platform == "win32" else 28
UC_ERR_EXCEPTION = 21
LIBRARY_SPAN = 1 << 28
FUNCTIONS = 35
PLANTED_MSRS = (0x175, 0x176, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102)
"""SYSENTER_ESP and _EIP, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE."""

PLANTED = (0x5EED0FACADE01234, 0xA55A5AA5C0FFEE99)


class Live(NamedTuple):
    """Addresses of the engine's live state in this process."""

    env: int
    exception_index: int
    interrupt_request: int
    icount_high: int
    no_exit_request: int
    msrs: dict[int, int]
    xmm: int
    handle: int


def check_version() -> None:
    """Raise EngineError unless the pinned Unicorn is installed."""
    found = unicorn_version
    if found != PINNED:
        raise EngineError(
            f"Unicorn {found} is installed, and vmxsim needs exactly {PINNED}: "
            f"pip install unicorn=={PINNED}"
        )


def unknown_layout(what: str) -> EngineError:
    """Build the error for a state image that is not where 2.1.4 has it."""
    return EngineError(
        f"the installed Unicorn {unicorn_version} keeps {what} elsewhere than release {PINNED} "
        f"does: reinstall it from its own wheel (pip install --force-reinstall unicorn=={PINNED})"
    )


def find(handle: int) -> Live:
    """Find the live state of the engine behind ``handle``; raise EngineError if it is not there."""
    lib = uclib
    cpu = _find_cpu(handle, ctypes.cast(lib.uc_emu_start, ctypes.c_void_p).value or 0)
    ids = (ux.UC_X86_REG_RAX, ux.UC_X86_REG_RCX)
    for number, value in zip(ids, PLANTED, strict=True):
        lib.uc_reg_write(handle, number, ctypes.byref(ctypes.c_uint64(value)))
    env, head = _find_env(cpu)
    pointer = head.find(struct.pack("<Q", env))
    back = head.find(struct.pack("<Q", handle))
    if pointer < 0 or back < 0:
        raise unknown_layout("its CPU object")
    (icount,) = struct.unpack_from("<Q", head, pointer + 8)
    if not cpu < icount < env:
        raise unknown_layout("its instruction counter")
    live = Live(
        env=env,
        exception_index=cpu + back - 8,
        interrupt_request=cpu + INTERRUPT_REQUEST,
        icount_high=icount + 2,
        no_exit_request=_find_no_exit_request(handle),
        msrs=_find_msrs(handle, env),
        xmm=_find_xmm(handle, env),
        handle=handle,
    )
    _check_image(live)
    for number in ids:
        lib.uc_reg_write(handle, number, ctypes.byref(ctypes.c_uint64(0)))
    return live


def _find_cpu(handle: int, function: int) -> int:
    """Return the CPU pointer, which stands behind 35 functions and three that x86 does not have.

    Heap may lie as near to the library as its own functions, so the whole pattern must match.
    """

    def near(value: int) -> bool:
        return abs(value - function) < LIBRARY_SPAN

    words: tuple[int, ...] = struct.unpack("<96Q", ctypes.string_at(handle, 0x300))
    for first in range(len(words) - FUNCTIONS - 5):
        after = first + FUNCTIONS
        if words[after : after + 3] != (0, 0, 0) or not words[after + 3]:
            continue
        rest = words[first:after] + words[after + 4 : after + 6]
        if all(near(value) for value in rest):
            return words[after + 3]
    raise unknown_layout("its CPU pointer")


def _find_env(cpu: int) -> tuple[int, bytes]:
    """Return the register file's address and the bytes of the CPU object before it."""
    pattern = struct.pack("<2Q", *PLANTED)
    head = b""
    for offset in range(0, 0x10000, 0x400):
        head += ctypes.string_at(cpu + offset, 0x400)
        at = head.find(pattern, max(0, offset - 16))
        if at >= 0:
            return cpu + at, head
    raise unknown_layout("its registers")


def _find_no_exit_request(handle: int) -> int:
    """Return the address of the switch between {context kind, image size} and {init_done}."""
    pattern = struct.pack("<ii", 1, IMAGE_SIZE)
    image = b""
    for offset in range(0, 0x1000, 0x100):
        image += ctypes.string_at(handle + offset, 0x100)
        at = image.find(pattern)
        if 0 <= at <= len(image) - 24:
            if image[at + 22] == 0 and image[at + 23] == 1:
                return handle + at + 22
            break
    raise unknown_layout("its exit switch")


class _Msr(ctypes.Structure):
    """uc_x86_msr: what the public API takes for UC_X86_REG_MSR."""

    _fields_ = (("index", ctypes.c_uint32), ("value", ctypes.c_uint64))


def _find_msrs(handle: int, env: int) -> dict[int, int]:
    """Return the address of each MSR the engine itself uses, by planting a value in it."""
    found = {0xC0000100: env + SEGS + 4 * SEG_SIZE + SEG_BASE}
    found[0xC0000101] = found[0xC0000100] + SEG_SIZE
    for index in PLANTED_MSRS:
        value = 0x00000ABC00000000 | index * 8
        msr = _Msr(index, value)
        uclib.uc_reg_write(handle, ux.UC_X86_REG_MSR, ctypes.byref(msr))
        at = ctypes.string_at(env, IMAGE_SIZE).find(struct.pack("<Q", value))
        if at < 0:
            raise unknown_layout(f"MSR {index:#x}")
        found[index] = env + at
        ctypes.c_uint64.from_address(env + at).value = 0
    found[0x174] = found[0x175] - 8
    return found


def _find_xmm(handle: int, env: int) -> int:
    """Return the address of XMM0; the others follow at 64 bytes each."""
    value = bytes(range(0x91, 0xA1))
    uclib.uc_reg_write(handle, ux.UC_X86_REG_XMM0, ctypes.create_string_buffer(value, 16))
    at = ctypes.string_at(env, IMAGE_SIZE).find(value)
    if at < 0:
        raise unknown_layout("its XMM registers")
    ctypes.memset(env + at, 0, 16)
    return env + at


def _check_image(live: Live) -> None:
    """Compare the live registers with the context image and with values set by the public API."""
    handle, lib = live.handle, uclib
    if lib.uc_context_size(handle) != CONTEXT_HEADER + IMAGE_SIZE:
        raise unknown_layout("a state image of another size")
    planted = {
        ux.UC_X86_REG_R15: REGS + 15 * 8,
        ux.UC_X86_REG_RIP: EIP,
        ux.UC_X86_REG_CR2: CR + 16,
        ux.UC_X86_REG_DR3: DR + 24,
    }
    for number, offset in planted.items():
        value = 0x1A2B3C00 + offset
        lib.uc_reg_write(handle, number, ctypes.byref(ctypes.c_uint64(value)))
        if ctypes.c_uint64.from_address(live.env + offset).value != value:
            raise unknown_layout("its registers")
        lib.uc_reg_write(handle, number, ctypes.byref(ctypes.c_uint64(0)))
    context = ctypes.c_void_p()
    lib.uc_context_alloc(handle, ctypes.byref(context))
    try:
        lib.uc_context_save(handle, context)
        saved = ctypes.string_at((context.value or 0) + CONTEXT_HEADER, IMAGE_SIZE)
    finally:
        lib.uc_context_free(context)
    if saved != ctypes.string_at(live.env, IMAGE_SIZE):
        raise unknown_layout("its state image")
    if ctypes.string_at(live.env + VENDOR, 12) not in (b"GenuineIntel", b"AuthenticAMD"):
        raise unknown_layout("its CPUID words")


def set_features(env: int) -> None:
    """Choose what the engine's decoder takes for an instruction.

    On: MONITOR, SMAP, ADX, CLFLUSHOPT, CLWB, LA57, 1-GByte pages. Off: RDRAND and RDSEED, which the
    engine would run by itself, and CMPXCHG8B and CMPXCHG16B, which it gets wrong; as undefined
    opcodes they trap. None of this is the guest's CPUID.
    """

    def word(number: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(env + FEATURES + 8 * number)

    word(0).value &= ~(1 << 8)
    word(1).value = (word(1).value | 1 << 3) & ~(1 << 30 | 1 << 13)
    word(2).value = (word(2).value | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24) & ~(1 << 18)
    word(3).value |= 1 << 16
    word(6).value |= 1 << 26
