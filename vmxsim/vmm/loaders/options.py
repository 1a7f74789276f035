"""What an image may wish of its machine, and the numbers and words such wishes are written in."""

from __future__ import annotations

from typing import NamedTuple

from vmxsim.errors import InputError
from vmxsim.vmm.config import Mode

DEFAULT_BASE = {Mode.REAL: 0x7C00, Mode.PROTECTED: 0x10_0000, Mode.LONG: 0x10_0000}
"""Where flat bytes and listings go when nobody says: where a BIOS puts a boot sector, and where
boot loaders put kernels."""

SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Wishes(NamedTuple):
    """Settings an image carries; None: it does not care."""

    mode: Mode | None = None
    load_address: int | None = None
    entry: int | None = None
    memory: int | None = None
    irqchip: bool | None = None


def parse_number(text: str, where: str) -> int:
    """4096 or 0x1000."""
    try:
        value = int(text, 0)
    except ValueError:
        raise InputError(f"{where}: {text!r} is not a number or a label") from None
    if not 0 <= value < 1 << 64:
        raise InputError(f"{where}: {text} is no 64-bit address")
    return value


def parse_size(text: str, where: str) -> int:
    """512K, 64M, 1G, or bytes."""
    unit = SUFFIXES.get(text[-1:].upper(), 1)
    return parse_number(text[:-1] if unit > 1 else text, where) * unit


def parse_mode(text: str, where: str) -> Mode:
    """The start mode: real, protected or long."""
    try:
        return Mode(text.lower())
    except ValueError:
        raise InputError(f"{where}: mode {text!r}: it is real, protected or long") from None


def parse_wishes(text: str, where: str, before: Wishes) -> Wishes:
    """Options as ``vmxsim run`` takes them; those that only concern the command line are skipped.

    `before` holds what was wished so far and is overruled.
    """
    words, wishes = text.split(), before
    while words:
        word, _, value = words.pop(0).partition("=")
        if word in ("--irqchip", "--no-irqchip"):
            wishes = wishes._replace(irqchip=word == "--irqchip")
            continue
        if word in ("--stat", "--quiet", "--verbose", "-q", "-v"):
            continue
        if not value and not words:
            raise InputError(f"{where}: option {word!r} needs a value")
        value = value or words.pop(0)
        if word == "--mode":
            wishes = wishes._replace(mode=parse_mode(value, where))
        elif word == "--load-address":
            wishes = wishes._replace(load_address=parse_number(value, where))
        elif word == "--entry":
            wishes = wishes._replace(entry=parse_number(value, where))
        elif word == "--memory":
            wishes = wishes._replace(memory=parse_size(value, where))
        elif word not in ("--clock", "--max-exits", "--timeout", "--trace"):
            raise InputError(f"{where}: unknown option {word!r}")
    return wishes
