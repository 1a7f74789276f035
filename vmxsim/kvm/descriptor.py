"""What every handle of the API has in common: it can be closed, and it takes writable buffers."""

from __future__ import annotations

from ctypes import Array
from errno import EBADF, EINVAL
from mmap import mmap
from types import TracebackType
from typing import TypeAlias, TypeVar

from vmxsim.errors import KvmError

D = TypeVar("D", bound="Descriptor")

Memory: TypeAlias = "bytearray | memoryview | mmap | Array[object]"
"""Any writable buffer: guest memory is this very buffer, never a copy."""


class Descriptor:
    """Something with close(), once; a `with` block closes it too."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        """Give it back. Closing twice does nothing."""
        self.closed = True

    def __enter__(self: D) -> D:
        """Use it for a `with` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _check(self) -> None:
        if self.closed:
            raise KvmError(EBADF, f"this {type(self).__name__} is closed")


def writable_view(slot: int, memory: Memory | None) -> memoryview | None:
    """The buffer as bytes; None for nothing. EFAULT's cousin, EINVAL, when it is read-only."""
    if memory is None:
        return None
    view = memoryview(memory)
    if view.readonly or not view.c_contiguous:
        raise KvmError(EINVAL, f"slot {slot}: guest memory must be a writable buffer")
    return view.cast("B") if view.nbytes else None
