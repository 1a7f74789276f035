"""The engine's second level of translation: which guest-physical pages exist and may be written.

Nested paging makes an access to nothing, or a write to read-only memory, abort before it has any
effect. While the guest does not page, a page may not execute before the first fetch from it: stores
to pages that cannot execute need no look for translated code and are several times faster. Once the
guest pages, all may execute, because Unicorn 2.1.4 crashes when a page table of the guest lies in a
page that is no-execute here; its own no-execute bits then have the same effect.

        38:30 PDPT   29:21 PD   20:12 PT   11:0 offset      one PML4 entry: addresses have 39 bits
"""

from __future__ import annotations

import ctypes
import mmap

from unicorn import UC_PROT_ALL
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.errors import EngineError

PAGE, LARGE = 4096, 1 << 21
TABLE_BYTES = 64 << 20
"""Room for page tables; the host gives memory only to those that are used."""

PRESENT, WRITABLE, USER, PAGE_SIZE, NO_EXECUTE = 1, 2, 4, 1 << 7, 1 << 63
_LINK = PRESENT | WRITABLE | USER
_ADDRESS = (1 << 52) - PAGE


class NestedPages:
    """Nested page tables at ``base``, a host-physical address above the guest's."""

    def __init__(self, handle: int, base: int) -> None:
        self._base = base
        self._memory = mmap.mmap(-1, TABLE_BYTES)
        self._words = (ctypes.c_uint64 * (TABLE_BYTES // 8)).from_buffer(self._memory)
        error = uclib.uc_mem_map_ptr(
            handle, ctypes.c_uint64(base), ctypes.c_size_t(TABLE_BYTES), UC_PROT_ALL,
            ctypes.c_void_p(ctypes.addressof(self._words)),
        )  # fmt: skip
        if error:
            raise EngineError(f"Unicorn refused the nested page tables ({error})")
        self._free: list[int] = []
        self._next = 2
        self._words[0] = base + PAGE | _LINK
        self._no_execute = NO_EXECUTE

    @property
    def root(self) -> int:
        """The address of the top table."""
        return self._base

    def _new_table(self) -> int:
        """The number of an empty table page, or 0 when there is no room left."""
        if self._free:
            table = self._free.pop()
            ctypes.memset(ctypes.addressof(self._words) + table * PAGE, 0, PAGE)
            return table
        if self._next * PAGE >= TABLE_BYTES:
            return 0
        self._next += 1
        return self._next - 1

    def _table_of(self, entry: int) -> int:
        return (entry & _ADDRESS) - self._base >> 12

    def _directory(self, gpa: int, create: bool) -> int:
        """The word index of the PD entry for an address, 0 if there is none."""
        at = 512 + (gpa >> 30)
        if not self._words[at]:
            table = self._new_table() if create else 0
            if not table:
                return 0
            self._words[at] = self._base + table * PAGE | _LINK
        return self._table_of(self._words[at]) * 512 + (gpa >> 21 & 511)

    def _split(self, at: int) -> bool:
        """Turn a 2-MByte entry into 4-KByte entries; False when there is no room for them."""
        table = self._new_table()
        if not table:
            return False
        entry = self._words[at] & ~PAGE_SIZE
        if entry:
            for i in range(512):
                self._words[table * 512 + i] = entry + i * PAGE
        self._words[at] = self._base + table * PAGE | _LINK
        return True

    def map(self, gpa: int, size: int, readonly: bool) -> None:
        """Make a range exist."""
        flags = PRESENT | USER | self._no_execute | (0 if readonly else WRITABLE)
        end = gpa + size
        while gpa < end:
            at = self._directory(gpa, create=True)
            if not at:
                raise EngineError("guest memory is too scattered: no room for its page tables")
            if gpa % LARGE == 0 and end - gpa >= LARGE and not self._words[at]:
                self._words[at] = gpa | flags | PAGE_SIZE
                gpa += LARGE
                continue
            if not self._words[at] and not self._split(at):
                raise EngineError("guest memory is too scattered: no room for its page tables")
            table = self._table_of(self._words[at]) * 512
            stop = min(end, (gpa | LARGE - 1) + 1)
            while gpa < stop:
                self._words[table + (gpa >> 12 & 511)] = gpa | flags
                gpa += PAGE

    def unmap(self, gpa: int, size: int) -> None:
        """Make a range not exist."""
        end = gpa + size
        while gpa < end:
            at = self._directory(gpa, create=False)
            entry = self._words[at] if at else 0
            if not entry:
                gpa = (gpa | LARGE - 1) + 1
            elif entry & PAGE_SIZE:
                if gpa % LARGE == 0 and end - gpa >= LARGE:
                    self._words[at] = 0
                    gpa += LARGE
                elif not self._split(at):
                    raise EngineError("guest memory is too scattered: no room for its page tables")
            else:
                table = self._table_of(entry) * 512
                stop = min(end, (gpa | LARGE - 1) + 1)
                while gpa < stop:
                    self._words[table + (gpa >> 12 & 511)] = 0
                    gpa += PAGE

    def allow_execute(self, gpa: int) -> bool:
        """Let the page of an address execute; False if it could all along."""
        at = self._directory(gpa, create=False)
        entry = self._words[at] if at else 0
        if entry & PAGE_SIZE and not (entry & NO_EXECUTE and self._split(at)):
            self._words[at] = entry & ~NO_EXECUTE
            return entry & NO_EXECUTE != 0
        if not entry:
            return False
        at = self._table_of(self._words[at]) * 512 + (gpa >> 12 & 511)
        before = self._words[at]
        self._words[at] = before & ~NO_EXECUTE
        return before & NO_EXECUTE != 0

    def allow_execute_everywhere(self) -> None:
        """Let every page execute from now on: the guest is about to page."""
        if not self._no_execute:
            return
        self._no_execute = 0
        for word in range(1024, self._next * 512):
            if self._words[word] & NO_EXECUTE:
                self._words[word] &= ~NO_EXECUTE
