"""Finds out what an image is, a file or something at hand, and lets the right loader place it."""

from __future__ import annotations

import os

from vmxsim.errors import InputError
from vmxsim.vmm.config import Config
from vmxsim.vmm.image import Image
from vmxsim.vmm.loaders.elf import is_elf, load_elf
from vmxsim.vmm.loaders.flat import load_flat
from vmxsim.vmm.loaders.listing import Listing, looks_like_listing, parse_listing

Source = str | bytes | bytearray | memoryview | os.PathLike[str] | Listing | Image
"""A file's name; bytes (flat or ELF); a listing's text (a str of several lines) or the parsed
listing; or a placed image."""


def load_image(source: Source, config: Config | None = None) -> Image:
    """Place an image as the configuration says. InputError: one line that names the image."""
    config = config or Config()
    if isinstance(source, Image):
        return _overruled(source, config)
    if isinstance(source, Listing):
        source = "\n".join(row.source for row in source.rows)
    if isinstance(source, str) and "\n" in source:
        return _listing(source, "listing", config)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "image", config)
    return _from_bytes(read_file(source), os.fspath(source), config)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes; InputError for one that cannot be read or holds nothing."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{os.fspath(path)}: {reason}") from None
    if not data:
        raise InputError(f"{os.fspath(path)}: the file is empty")
    return data


def _from_bytes(data: bytes, name: str, config: Config) -> Image:
    if is_elf(data):
        if config.load_address is not None:
            raise InputError(f"{name}: an ELF file says itself where it goes; no load address")
        return load_elf(data, name, mode=config.mode, entry=config.entry)
    if name.endswith(".lst") or looks_like_listing(data):
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{name}:{line}: not UTF-8 text") from None
        return _listing(text, name, config)
    return load_flat(
        data, name, mode=config.mode, load_address=config.load_address, entry=config.entry
    )


def _listing(text: str, name: str, config: Config) -> Image:
    return parse_listing(
        text, name, mode=config.mode, load_address=config.load_address, entry=config.entry
    ).image()


def _overruled(image: Image, config: Config) -> Image:
    """A placed image stays where it is; mode and entry can still be chosen."""
    entry = image.entry if config.entry is None else config.entry
    return image._replace(mode=config.mode or image.mode, entry=entry)
