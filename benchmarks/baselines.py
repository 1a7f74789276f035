"""The other side of every ratio: bare Unicorn, and the raw engine loop under it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_64, Uc
from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import (
    UC_X86_INS_OUT,
    UC_X86_REG_RAX,
    UC_X86_REG_RDX,
    UC_X86_REG_RSP,
)

from benchmarks.guests import CODE, CPUID, MEMORY, OUT, STACK, Guest

HLT_SIZE = 1


def bare(guest: Guest) -> Uc:
    """An engine as the binding gives it: one mapping, readable, writable and executable."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0, MEMORY)
    uc.mem_write(CODE, guest.code)
    uc.reg_write(UC_X86_REG_RSP, STACK)
    return uc


def hlt_of(guest: Guest) -> int:
    """Where the program ends: its first HLT (no other byte of these programs is 0xf4)."""
    return CODE + guest.code.index(b"\xf4")


def loop_seconds(guest: Guest) -> float:
    """The whole loop on bare Unicorn."""
    uc, end = bare(guest), hlt_of(guest)
    start = perf_counter()
    uc.emu_start(CODE, end)
    return perf_counter() - start


def out_hook_seconds() -> float:
    """One OUT with an empty Python callback."""

    def on_out(uc: Uc, port: int, size: int, value: int, data: object) -> None:
        pass

    uc, end = bare(OUT), hlt_of(OUT)
    uc.hook_add(UC_HOOK_INSN, on_out, None, 1, 0, UC_X86_INS_OUT)
    uc.reg_write(UC_X86_REG_RDX, 0x21)
    uc.reg_write(UC_X86_REG_RAX, 0xFF)
    start = perf_counter()
    uc.emu_start(CODE, end)
    return (perf_counter() - start) / OUT.turns


# Where CPUX86State keeps what the raw loop needs: from its start, and from its end.
HEADER, EIP, HFLAGS = 40, 128, 176
HF_GUEST = 1 << 21
VMCB_FROM_END, INTERCEPT_FROM_END = 64, 48
VMCB = (1 << 40) - 0x20_0000
CPUID_BIT, HLT_BIT = 1 << 18, 1 << 24
EXIT_CPUID, EXIT_HLT = 0x172, 0x178


def raw_cpuid_seconds() -> float:
    """One CPUID intercept: emu_start through ctypes, a callback that records, one context save.

    Nothing else is done: RIP moves past the instruction and the guest goes on.
    """
    uc = bare(CPUID)
    uc.mem_map(VMCB, 0x10_0000)
    handle, context = uc._uch, ctypes.c_void_p()
    uclib.uc_context_alloc(handle, ctypes.byref(context))
    uclib.uc_context_size.restype = ctypes.c_size_t
    size, state = uclib.uc_context_size(handle) - HEADER, context.value + HEADER
    save, start, stop = uclib.uc_context_save, uclib.uc_emu_start, uclib.uc_emu_stop

    save(handle, context)
    ctypes.c_uint32.from_address(state + HFLAGS).value |= HF_GUEST
    ctypes.c_uint64.from_address(state + size - VMCB_FROM_END).value = VMCB
    ctypes.c_uint64.from_address(state + size - INTERCEPT_FROM_END).value = CPUID_BIT | HLT_BIT
    uclib.uc_context_restore(handle, context)

    seen = 0

    def on_interrupt(_uc: int, number: int, _data: int) -> None:
        nonlocal seen
        seen = number
        stop(handle)

    shape = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
    callback, hook = shape(on_interrupt), ctypes.c_size_t()
    uclib.uc_hook_add(
        handle, ctypes.byref(hook), UC_HOOK_INTR, callback, None, ctypes.c_uint64(1),
        ctypes.c_uint64(0),
    )  # fmt: skip

    eip = ctypes.c_uint64.from_address(state + EIP)
    none, zero = ctypes.c_uint64(0), ctypes.c_size_t(0)
    rip, exits, began = CODE, 0, perf_counter()
    while True:
        start(handle, ctypes.c_uint64(rip), none, none, zero)
        save(handle, context)
        if seen != EXIT_CPUID:
            break
        rip = eip.value + 2
        exits += 1
    spent = perf_counter() - began
    if seen != EXIT_HLT or exits != CPUID.turns:
        raise RuntimeError(f"the raw loop ended with {seen:#x} after {exits} exits at {rip:#x}")
    return spent / exits


class FreshPython:
    """Starts Python processes whose modules are all compiled, as after an installation.

    The bytecode lies in a directory of its own, filled by one run of each program beforehand.
    """

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.environment = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        }
        root = str(Path(__file__).resolve().parent.parent)
        self.environment.update(PYTHONPYCACHEPREFIX=self.directory.name, PYTHONPATH=root)
        self.warm: set[str] = set()

    def seconds(self, program: str) -> float:
        """Run a program in a process of its own, from its start to its end."""
        if program not in self.warm:
            self.warm.add(program)
            self.seconds(program)
        began = perf_counter()
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            stdout=subprocess.DEVNULL,
            env=self.environment,
        )
        return perf_counter() - began
