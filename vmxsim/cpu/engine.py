"""One Unicorn engine, opened, switched into its guest mode and tested before it is used.

Everything the run needs is here as a live view of the engine's own memory: why it stopped, what is
asked of it, where the guest faulted. The engine's pages (VMCB, MSR bitmap, nested page tables) lie
above every guest-physical address.
"""

from __future__ import annotations

import ctypes
import mmap

from unicorn import (
    UC_ARCH_X86,
    UC_CTL_TLB_TYPE,
    UC_CTL_UC_USE_EXITS,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_TLB_CPU,
)
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.cpu import image, intercepts
from vmxsim.cpu.memory import GPA_LIMIT
from vmxsim.cpu.nested import LARGE, NestedPages
from vmxsim.cpu.traps import TrapKind
from vmxsim.errors import EngineError

HOST_PAGES = GPA_LIMIT
KICK_BIT, WINDOW_BIT = 2, 1

_HOST_BYTES = 0x5000
_TEST_CODE, _MSR_BITMAP = 0x800, 0x1000
_VMCB_MSR_BITMAP, _VMCB_EXIT_INFO_2 = 0x48, 0x80
_UC_CTL_WRITE, _ONE_ARGUMENT = 1 << 30, 1 << 26
_u16, _u32, _u64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


def _control(handle: int, kind: int, value: int) -> None:
    """Call uc_ctl with one argument."""
    uclib.uc_ctl(handle, kind | _ONE_ARGUMENT | _UC_CTL_WRITE, ctypes.c_int(value))


def _open() -> int:
    """Open a 64-bit x86 engine with the guest's own page tables; return its handle."""
    image.check_version()
    handle = ctypes.c_void_p()
    error = uclib.uc_open(UC_ARCH_X86, UC_MODE_64, ctypes.byref(handle))
    if error or not handle.value:
        raise EngineError(f"Unicorn could not start (error {error})")
    _control(handle.value, UC_CTL_TLB_TYPE, UC_TLB_CPU)
    _control(handle.value, UC_CTL_UC_USE_EXITS, 1)
    return handle.value


class Engine:
    """The engine's handle and the views of its state that a run needs."""

    def __init__(self) -> None:
        self.handle = _open()
        self.live = live = image.find(self.handle)
        env = live.env
        self.exception = ctypes.c_int32.from_address(live.exception_index)
        self.request = ctypes.c_uint8.from_address(live.interrupt_request)
        self.window = ctypes.c_uint8.from_address(live.interrupt_request + 1)
        self.stop = _u16.from_address(live.icount_high)
        self.error_code = _u32.from_address(env + image.ERROR_CODE)
        self.hflags = _u32.from_address(env + image.HFLAGS)
        self.rip = _u64.from_address(env + image.EIP)
        self.nested = NestedPages(self.handle, HOST_PAGES + LARGE)
        self.fault_address = self._set_up_pages()
        self._switch_on(env)
        self.start = uclib["uc_emu_start"]
        zero = _u64(0)
        self.arguments = (ctypes.c_void_p(self.handle), self.rip, zero, zero)
        self.count = ctypes.c_size_t(0)
        self._self_test()

    def close(self) -> None:
        """Free the engine."""
        uclib.uc_close(self.handle)

    def arm(self, kinds: frozenset[TrapKind]) -> None:
        """Choose which of the optional kinds leave the guest (interface.OPTIONAL_KINDS)."""
        env = self.live.env
        _u64.from_address(env + image.INTERCEPT).value = intercepts.intercept_word(kinds)
        reads = intercepts.control_register_reads(kinds)
        _u16.from_address(env + image.CR_READ).value = reads

    def interrupt(self) -> None:
        """End the run at the next block; asked for outside of a run, end the next one at once."""
        self.request.value = KICK_BIT
        self.stop.value = 0xFFFF

    def _set_up_pages(self) -> ctypes.c_uint64:
        """Map the engine's own pages; return the view of the address it reports faults at."""
        self._host = mmap.mmap(-1, _HOST_BYTES)
        self._view = (ctypes.c_char * _HOST_BYTES).from_buffer(self._host)
        base = ctypes.addressof(self._view)
        error = uclib.uc_mem_map_ptr(
            self.handle, _u64(HOST_PAGES), ctypes.c_size_t(_HOST_BYTES), UC_PROT_ALL,
            ctypes.c_void_p(base),
        )  # fmt: skip
        if error:
            raise EngineError(f"Unicorn refused the engine's own pages ({error})")
        ctypes.memset(base + _MSR_BITMAP, 0xFF, _HOST_BYTES - _MSR_BITMAP)
        _u64.from_address(base + _VMCB_MSR_BITMAP).value = HOST_PAGES + _MSR_BITMAP
        return _u64.from_address(base + _VMCB_EXIT_INFO_2)

    def _switch_on(self, env: int) -> None:
        """Switch on the intercepts, nested paging and the safe way to stop."""
        ctypes.c_uint8.from_address(self.live.no_exit_request).value = 1
        _u64.from_address(env + image.VMCB).value = HOST_PAGES
        _u32.from_address(env + image.INTERCEPT_EXCEPTIONS).value = 0xFFFFFFFF
        for offset in (image.DR_READ, image.DR_WRITE):
            _u16.from_address(env + offset).value = 0xFFFF
        _u16.from_address(env + image.CR_WRITE).value = intercepts.CR_WRITES
        _u32.from_address(env + image.OLD_EXCEPTION).value = 0xFFFFFFFF
        hflags2 = image.HF2_GIF | image.HF2_HIF | image.HF2_VINTR | image.HF2_NPT
        _u32.from_address(env + image.HFLAGS2).value = hflags2
        _u64.from_address(env + image.NESTED_CR3).value = self.nested.root
        _u32.from_address(env + image.NESTED_MODE).value = image.NESTED_LONG_NX
        self.hflags.value |= image.HF_GUEST | image.HF_IOBPT
        image.set_features(env)
        self.arm(frozenset())

    def _self_test(self) -> None:
        """Run one intercepted CPUID and one kick; raise EngineError if they do not come out.

        The code lies in the engine's own page, reached in 64-bit mode without paging.
        """
        hflags2 = _u32.from_address(self.live.env + image.HFLAGS2)
        hflags2.value &= ~image.HF2_NPT
        # jmp $+2; cpuid: the engine reports new blocks only once a block has ended by itself.
        self._host[_TEST_CODE : _TEST_CODE + 4] = b"\xeb\x00\x0f\xa2"
        always = image.HF_GUEST | image.HF_IOBPT
        mode = image.HF_PE | image.HF_LMA | image.HF_CS64 | image.HF_CS32 | image.HF_SS32
        self.hflags.value = always | mode
        self.rip.value = HOST_PAGES + _TEST_CODE
        for request, expected in ((0, intercepts.EXIT_CPUID), (KICK_BIT, intercepts.EXIT_INTR)):
            self.request.value = request
            self.exception.value = -1
            error = self.start(*self.arguments, self.count)
            if (error, self.exception.value) != (image.UC_ERR_EXCEPTION, expected):
                raise image.unknown_layout("its intercepts")
        self.request.value = 0
        self.hflags.value = always
        hflags2.value |= image.HF2_NPT
