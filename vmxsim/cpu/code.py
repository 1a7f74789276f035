"""Which bytes of guest memory have been translated, so that the host's writes to them take effect.

The engine notices the guest's own writes to code. Writes by the host it cannot see: those that go
through GuestMemory are told to it, and those made straight into the caller's buffer are found by
comparing translated bytes when the guest is entered from outside (``check``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from unicorn import UC_HOOK_EDGE_GENERATED
from unicorn.unicorn_py3.unicorn import uclib

from vmxsim.cpu import image
from vmxsim.cpu.memory import PAGE, GuestMemory

CHECKED_AT_ONCE = 64
"""Spans compared at each check; with more spans of code, they take turns."""

_EDGE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p, ctypes.c_void_p
)


class TranslatedCode:
    """The translated spans of each guest-physical page, and what they held."""

    def __init__(
        self,
        live: image.Live,
        memory: GuestMemory,
        locate: Callable[[int], int],
        flush: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._locate = locate
        self._flush = flush
        self._spans: dict[int, list[tuple[int, int]]] = {}
        self._watched: list[tuple[ctypes.Array[ctypes.c_char], bytes]] = []
        self._stale = False
        self._turn = 0
        self._callback = _EDGE(self._on_block)
        hook = ctypes.c_size_t()
        uclib.uc_hook_add(
            live.handle, ctypes.byref(hook), UC_HOOK_EDGE_GENERATED, self._callback, None,
            ctypes.c_uint64(1), ctypes.c_uint64(0),
        )  # fmt: skip
        memory.on_write = self.written

    def _on_block(self, _uc: int, block: ctypes._Pointer[ctypes.c_uint64], *_rest: int) -> None:
        """Note a freshly translated block. It runs inside the engine, so it must not raise."""
        try:
            size = block[1] >> 16 & 0xFFFF
            pc = block[0]
            first = min(size, PAGE - pc % PAGE)
            self._note(pc, first)
            if first < size:
                self._note(pc + first, size - first)
        except Exception:
            # Without the note, a host write to this block would go unseen: start over.
            self._spans.clear()

    def _note(self, pc: int, size: int) -> None:
        """Add a span to its page, merged with those it touches."""
        gpa = self._locate(pc)
        if gpa < 0:
            return
        low = gpa % PAGE
        high = low + size
        page = gpa - low
        spans = self._spans.setdefault(page, [])
        for start, end in spans:
            if start <= low and high <= end:
                self._stale = True
                return
        apart = [span for span in spans if span[1] < low or high < span[0]]
        joined = [span for span in spans if not (span[1] < low or high < span[0])]
        low = min([low, *(span[0] for span in joined)])
        high = max([high, *(span[1] for span in joined)])
        self._spans[page] = sorted([*apart, (low, high)])
        self._stale = True

    def written(self, gpa: int, size: int) -> None:
        """Drop the translations if a host write touches translated bytes."""
        end = gpa + size
        for page in range(gpa - gpa % PAGE, end, PAGE):
            for low, high in self._spans.get(page, ()):
                if page + low < end and gpa < page + high:
                    self.forget()
                    return

    def forget(self) -> None:
        """Drop every translation, and all notes with them."""
        self._spans.clear()
        self._watched.clear()
        self._stale = False
        self._flush()

    def seal(self) -> None:
        """Copy the translated bytes before the host gets its turn; cheap when nothing is new."""
        if not self._stale:
            return
        self._stale = False
        self._watched = []
        for page, spans in self._spans.items():
            address = self._memory.host_address(page)
            if address:
                for low, high in spans:
                    span = (ctypes.c_char * (high - low)).from_address(address + low)
                    self._watched.append((span, span.raw))

    def check(self) -> None:
        """Compare translated bytes with the copies; drop the translations on a difference."""
        watched = self._watched
        if len(watched) > CHECKED_AT_ONCE:
            self._turn = (self._turn + CHECKED_AT_ONCE) % len(watched)
            watched = (watched + watched)[self._turn : self._turn + CHECKED_AT_ONCE]
        for span, copy in watched:
            if span.raw != copy:
                self.forget()
                return
