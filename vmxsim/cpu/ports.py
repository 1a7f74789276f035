"""IN and OUT: answered inside the engine's callback by a table, or stopped exactly there.

The engine has no I/O intercept and cannot be stopped inside a block. But an I/O breakpoint fires
within the same instruction: the callback notes the registers, points DR0 at the port, and the
breakpoint's #DB ends the run. Putting the noted registers back gives the state at the instruction.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from unicorn import UC_HOOK_INSN
from unicorn import x86_const as ux
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.cpu import image
from vmxsim.cpu.image import HF_CS64
from vmxsim.cpu.interface import FastIn, FastOut
from vmxsim.cpu.sites import MODE, PlainIo
from vmxsim.cpu.traps import IoTrap

IDLE = 0xFFFFFFFF0000
"""A DR0 that no port can match."""

DR7_IO_BREAKPOINT = 0x400 | 2 << 16 | 2
"""Breakpoint 0, global, on I/O, one byte long."""

NOTED_BYTES = 136
"""Sixteen registers and the instruction pointer."""

_OUT = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
)
_IN = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p
)
_SYSCALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


Noted = tuple[str, int, int, int, bytes]
"""What a callback saw: one of the words below, port, size, value, and the registers as bytes."""

IN, OUT, AFTER, SYSCALL, ERROR = "in", "out", "after", "syscall", "error"
"""AFTER: the access is done and the guest is to be left. ERROR: a callback raised."""


class Ports:
    """The port table of one engine, and the callbacks that obey it."""

    def __init__(self, live: image.Live, plain: dict[int, PlainIo]) -> None:
        self.fast_out: dict[int, FastOut] = {}
        self.fast_in: dict[int, FastIn] = {}
        self.enabled = False
        self.bounce_out: Callable[[int, int, int], None] | None = None
        self.bounce_in: Callable[[int, int], None] | None = None
        self.rax = 0
        """RAX at the last bounced IN: the engine has put the answer of nobody there."""
        self._plain = plain
        self.noted: Noted | IoTrap | None = None
        """An IoTrap, of kind BOUNCED, when a bounce function has seen the access."""
        self.error: BaseException | None = None
        self._registers = memoryview((ctypes.c_ubyte * NOTED_BYTES).from_address(live.env)).cast(
            "B"
        )
        self._dr0 = ctypes.c_uint64.from_address(live.env + image.DR)
        self._request = ctypes.c_uint8.from_address(live.interrupt_request)
        self._callbacks = (
            (_OUT(self._make_out(live)), ux.UC_X86_INS_OUT),
            (_IN(self._make_in(live)), ux.UC_X86_INS_IN),
            (_SYSCALL(self._on_syscall), ux.UC_X86_INS_SYSCALL),
            (_SYSCALL(self._on_syscall), ux.UC_X86_INS_SYSENTER),
        )
        for callback, instruction in self._callbacks:
            hook = ctypes.c_size_t()
            uclib.uc_hook_add(
                live.handle, ctypes.byref(hook), UC_HOOK_INSN, callback, None,
                ctypes.c_uint64(1), ctypes.c_uint64(0), ctypes.c_int(instruction),
            )  # fmt: skip
        self._dr0.value = IDLE
        ctypes.c_uint64.from_address(live.env + image.DR + 56).value = DR7_IO_BREAKPOINT

    def put_back(self, registers: bytes) -> None:
        """Restore the registers noted at the instruction, and disarm."""
        self._registers[:] = registers
        self._dr0.value = IDLE

    def disarm(self) -> None:
        """Take the breakpoint away, leaving the registers as they are."""
        self._dr0.value = IDLE

    def _fail(self, error: BaseException) -> None:
        """Keep what a callback raised for run() to raise again: the engine would lose it."""
        self.error = error
        self.noted = (ERROR, 0, 0, 0, b"")

    def _make_out(self, live: image.Live) -> Callable[[int, int, int, int, int], None]:
        """The OUT callback, with all it touches bound."""
        registers, dr0, fast, plain = self._registers, self._dr0, self.fast_out, self._plain
        hflags, rip, cs_base = _views(live)

        def on_out(_uc: int, port: int, size: int, value: int, _data: int) -> None:
            try:
                if self.enabled and not (mode := hflags.value) & 3:
                    if port in fast:
                        if not fast[port](port, size, value):
                            return
                        self.noted = (AFTER, port, size, value, bytes(registers))
                        dr0.value = port
                        return
                    site = plain.get(rip.value)
                    if (
                        site is not None
                        and site.port == port
                        and site.size == size
                        and site.word.value & site.mask == site.bytes
                        and mode & MODE == site.mode
                        and (mode & HF_CS64 or cs_base.value == site.cs_base)
                        and (bounce := self.bounce_out) is not None
                    ):
                        bounce(port, size, value)
                        self.noted = site.trap
                        dr0.value = port
                        return
                self.noted = (OUT, port, size, value, bytes(registers))
            except BaseException as error:
                self._fail(error)
            dr0.value = port

        return on_out

    def _make_in(self, live: image.Live) -> Callable[[int, int, int, int], int]:
        """The IN callback, with all it touches bound."""
        registers, dr0, fast, plain = self._registers, self._dr0, self.fast_in, self._plain
        hflags, rip, cs_base = _views(live)
        rax = ctypes.c_uint64.from_address(live.env)

        def on_in(_uc: int, port: int, size: int, _data: int) -> int:
            try:
                if self.enabled and not (mode := hflags.value) & 3:
                    if port in fast:
                        return fast[port](port, size)
                    site = plain.get(rip.value)
                    if (
                        site is not None
                        and site.port == port
                        and site.size == size
                        and site.word.value & site.mask == site.bytes
                        and mode & MODE == site.mode
                        and (mode & HF_CS64 or cs_base.value == site.cs_base)
                        and (bounce := self.bounce_in) is not None
                    ):
                        bounce(port, size)
                        self.rax = rax.value
                        self.noted = site.trap
                        dr0.value = port
                        return 0
                self.noted = (IN, port, size, 0, bytes(registers))
            except BaseException as error:
                self._fail(error)
            dr0.value = port
            return 0

        return on_in

    def _on_syscall(self, _uc: int, _data: int) -> None:
        """Note the registers at SYSCALL or SYSENTER, and ask for the end of the run.

        The instruction ends its block, and the pending interrupt ends the run there.
        """
        try:
            self.noted = (SYSCALL, 0, 0, 0, bytes(self._registers))
        except BaseException as error:
            self._fail(error)
        self._request.value = 2


def _views(live: image.Live) -> tuple[ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64]:
    """The engine's flags of the mode, RIP and the base of CS, live."""
    env = live.env
    cs_base = env + image.SEGS + image.SEG_SIZE + image.SEG_BASE
    return (
        ctypes.c_uint32.from_address(env + image.HFLAGS),
        ctypes.c_uint64.from_address(env + image.EIP),
        ctypes.c_uint64.from_address(cs_base),
    )
