"""Flat images: bytes that go to one address and start with their first one."""

from __future__ import annotations

from vmxsim.errors import InputError
from vmxsim.vmm.config import Mode
from vmxsim.vmm.image import Image, Segment
from vmxsim.vmm.loaders.options import DEFAULT_BASE


def load_flat(
    data: bytes,
    name: str = "image",
    *,
    mode: Mode | None = None,
    load_address: int | None = None,
    entry: int | None = None,
) -> Image:
    """Place flat bytes. A boot sector is one of them: real mode's default address is 0x7c00."""
    if not data:
        raise InputError(f"{name}: the file is empty")
    mode = mode or Mode.REAL
    base = DEFAULT_BASE[mode] if load_address is None else load_address
    segment = Segment(base, data, len(data))
    return Image(name, (segment,), base if entry is None else entry, mode)
