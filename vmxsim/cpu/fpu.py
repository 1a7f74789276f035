"""x87 and SSE state in FXSAVE's form. SDM Vol. 1, "Legacy Region of an XSAVE Area"."""

from __future__ import annotations

import ctypes
import struct

from unicorn import x86_const as ux
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.cpu import image

FXSAVE_SIZE = 512
MXCSR_MASK = 0xFFFF
_TOP, _STATUS, _CONTROL, _TAGS, _REGISTERS = 604, 608, 610, 612, 624
_OPCODE, _IP, _DP = 752, 760, 768
_MXCSR_BEFORE_XMM = 8


def fxsave(live: image.Live) -> bytes:
    """Return the 512 bytes of FXSAVE64."""
    env = live.env
    (top,) = struct.unpack("<I", ctypes.string_at(env + _TOP, 4))
    status, control = struct.unpack("<HH", ctypes.string_at(env + _STATUS, 4))
    status = status & ~0x3800 | (top & 7) << 11
    tags = ctypes.string_at(env + _TAGS, 8)
    abridged = sum(1 << i for i in range(8) if not tags[i])
    (opcode,) = struct.unpack("<H", ctypes.string_at(env + _OPCODE, 2))
    ip, dp = struct.unpack("<QQ", ctypes.string_at(env + _IP, 16))
    (mxcsr,) = struct.unpack("<I", ctypes.string_at(live.xmm - _MXCSR_BEFORE_XMM, 4))
    saved = struct.pack(
        "<HHBBHQQII", control, status, abridged, 0, opcode, ip, dp, mxcsr, MXCSR_MASK
    )
    for i in range(8):
        saved += ctypes.string_at(env + _REGISTERS + 16 * ((top + i) & 7), 10) + bytes(6)
    for i in range(16):
        saved += ctypes.string_at(live.xmm + 64 * i, 16)
    return saved.ljust(FXSAVE_SIZE, b"\0")


def fxrstor(live: image.Live, saved: bytes) -> None:
    """Load the 512 bytes of FXSAVE64."""
    env, handle = live.env, live.handle
    control, status, abridged, _, opcode, ip, dp, mxcsr, _ = struct.unpack_from("<HHBBHQQII", saved)
    top = status >> 11 & 7
    ctypes.c_uint32.from_address(env + _TOP).value = top
    ctypes.c_uint16.from_address(env + _STATUS).value = status & ~0x3800
    ctypes.memmove(env + _TAGS, bytes(0 if abridged >> i & 1 else 1 for i in range(8)), 8)
    ctypes.memmove(env + _OPCODE, struct.pack("<H", opcode), 2)
    ctypes.memmove(env + _IP, struct.pack("<QQ", ip, dp), 16)
    for i in range(8):
        value = saved[32 + 16 * i : 42 + 16 * i]
        ctypes.memmove(env + _REGISTERS + 16 * ((top + i) & 7), value, 10)
    for i in range(16):
        ctypes.memmove(live.xmm + 64 * i, saved[160 + 16 * i : 176 + 16 * i], 16)
    uclib.uc_reg_write(handle, ux.UC_X86_REG_FPCW, ctypes.byref(ctypes.c_uint16(control)))
    masked = ctypes.c_uint32(mxcsr & MXCSR_MASK)
    uclib.uc_reg_write(handle, ux.UC_X86_REG_MXCSR, ctypes.byref(masked))
