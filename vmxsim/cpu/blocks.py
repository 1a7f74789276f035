"""Counting translated blocks at the engine's speed, so that virtual time passes in loops too.

The engine's own instruction counter is a C function called from a code hook. Put on a block hook
instead, it counts blocks, costs a few nanoseconds each, stops exactly before the block that is one
too many, and gives the same count on every host. It is installed when a budget is first asked for.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from unicorn import UC_HOOK_BLOCK
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.cpu import image

SLICE = 2_000_000
"""Blocks after which the engine comes up for air, so that Python can handle signals."""

_PROBE = 0x5A17C0DE
_HOOK_BEGIN = 24


class BlockCounter:
    """The budget of one engine. ``limit`` is what to pass as count: 0 while nothing is counted."""

    def __init__(self, live: image.Live, flush_code: Callable[[], None]) -> None:
        self._live = live
        self._flush_code = flush_code
        self._counter = ctypes.c_size_t(0)
        self.limit = 0
        self.budget = 0
        self.executed = 0
        self._continued = 0
        self._armed = False

    def set(self, budget: int) -> None:
        """Stop after so many blocks from now; 0 for never."""
        if budget > 0 and self.limit == 0:
            self._install()
        self.budget = max(budget, 0)
        self._armed = budget > 0
        if self.limit:
            self._choose_limit()

    def _choose_limit(self) -> None:
        self.limit = (min(self.budget, SLICE) if self._armed else SLICE) + self._continued

    def ran(self, stopped_at_block: bool) -> None:
        """Account for one run.

        A run stopped at a block has counted that block too. A run that a trap ended is in the
        middle of one, and the next run counts the rest of it again: that is not another block, so
        that time is the same whether a port is answered in the guest or by leaving it.
        """
        count = max(self._counter.value - self._continued - stopped_at_block, 0)
        self._continued = 0 if stopped_at_block else 1
        self._counter.value = 0
        self.executed += count
        if self._armed:
            self.budget = max(self.budget - count, 0)
            self._armed = self.budget > 0 or self._continued > 0
        self._choose_limit()

    def expired(self) -> bool:
        """Whether the run just ended because the whole budget was used up."""
        done = self._counter.value - self._continued - 1
        return self._armed and self.budget <= done

    def _install(self) -> None:
        """Take the engine's counting function from its code hook and put it on a block hook."""
        live = self._live
        handle = live.handle
        rip = ctypes.c_uint64.from_address(live.env + image.EIP)
        request = ctypes.c_uint8.from_address(live.interrupt_request)
        pending, request.value = request.value, 2
        uclib.uc_emu_start(
            handle, rip, ctypes.c_uint64(0), ctypes.c_uint64(0), ctypes.c_size_t(_PROBE)
        )
        request.value = pending
        address = self._find_emu_count(handle)
        counter = ctypes.c_size_t.from_address(address - 8)
        installed = ctypes.c_size_t.from_address(address - 16)
        function = self._find_function(installed.value)
        request.value = 2
        uclib.uc_emu_start(handle, rip, ctypes.c_uint64(0), ctypes.c_uint64(0), ctypes.c_size_t(0))
        request.value = pending
        hook = ctypes.c_size_t()
        uclib.uc_hook_add(
            handle, ctypes.byref(hook), UC_HOOK_BLOCK, ctypes.c_void_p(function), None,
            ctypes.c_uint64(1), ctypes.c_uint64(0),
        )  # fmt: skip
        installed.value = hook.value
        self._counter = counter
        self._flush_code()
        self.limit = SLICE

    @staticmethod
    def _find_emu_count(handle: int) -> int:
        """The address of the planted count in the engine's own structure."""
        pattern = struct.pack("<Q", _PROBE)
        blob = b""
        for offset in range(0, 0x1000, 0x100):
            blob += ctypes.string_at(handle + offset, 0x100)
            at = blob.find(pattern)
            if at >= 0:
                return handle + at
        raise image.unknown_layout("its instruction counter")

    @staticmethod
    def _find_function(hook: int) -> int:
        """The callback in the engine's hook record, behind a range that means "everywhere"."""
        begin, end, function = struct.unpack("<3Q", ctypes.string_at(hook + _HOOK_BEGIN, 24))
        if (begin, end) != (1, 0) or not function:
            raise image.unknown_layout("its counting hook")
        return int(function)
