"""Flat images and ELF files, and the one door that tells them and listings apart."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.errors import InputError
from vmxsim.vmm.config import Config, Mode
from vmxsim.vmm.image import Image, Segment
from vmxsim.vmm.loaders.elf import load_elf
from vmxsim.vmm.loaders.flat import load_flat
from vmxsim.vmm.loaders.listing import parse_listing
from vmxsim.vmm.loaders.load import load_image

CODE = b"\xfa\xf4"


def elf(
    *programs: tuple[int, int, int, bytes, int],
    bits: int = 32,
    entry: int = 0x10_0000,
    machine: int | None = None,
    kind: int = 2,
    order: int = 1,
) -> bytes:
    """An ELF file; a program is (type, vaddr, paddr, bytes, size in memory)."""
    wide = bits == 64
    ident = b"\x7fELF" + bytes((2 if wide else 1, order, 1)) + bytes(9)
    head, row = (64, 56) if wide else (52, 32)
    machine = (62 if wide else 3) if machine is None else machine
    layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    header = struct.pack(
        layout, kind, machine, 1, entry, head, 0, 0, head, row, len(programs), 0, 0, 0
    )
    rows, body, at = b"", b"", head + row * len(programs)
    for type_, vaddr, paddr, data, memsz in programs:
        start = at + len(body)
        if wide:
            rows += struct.pack("<IIQQQQQQ", type_, 7, start, vaddr, paddr, len(data), memsz, 1)
        else:
            rows += struct.pack("<IIIIIIII", type_, start, vaddr, paddr, len(data), memsz, 7, 1)
        body += data
    return ident + header + rows + body


LOAD = (1, 0x10_0000, 0x10_0000, CODE, 0x100)


class TestFlat:
    @pytest.mark.parametrize(
        ("mode", "gpa"),
        [(None, 0x7C00), (Mode.REAL, 0x7C00), (Mode.PROTECTED, 0x10_0000), (Mode.LONG, 0x10_0000)],
    )
    def test_default_addresses(self, mode: Mode | None, gpa: int) -> None:
        image = load_flat(CODE, mode=mode)
        assert image.segments == (Segment(gpa, CODE, 2),)
        assert (image.entry, image.mode) == (gpa, mode or Mode.REAL)

    def test_chosen_addresses(self) -> None:
        image = load_flat(CODE, load_address=0x1000, entry=0x1001)
        assert (image.segments[0].gpa, image.entry) == (0x1000, 0x1001)

    def test_nothing_is_no_image(self) -> None:
        with pytest.raises(InputError, match="x: the file is empty"):
            load_flat(b"", "x")


class TestElf:
    @pytest.mark.parametrize(("bits", "mode"), [(32, Mode.PROTECTED), (64, Mode.LONG)])
    def test_the_class_decides_the_mode(self, bits: int, mode: Mode) -> None:
        image = load_elf(elf(LOAD, (4, 0, 0, b"note", 4), bits=bits))
        assert image == Image("image", (Segment(0x10_0000, CODE, 0x100),), 0x10_0000, mode)
        assert load_elf(elf(LOAD, bits=bits), mode=Mode.REAL, entry=0x10_0001).mode is Mode.REAL

    def test_a_kernel_linked_high_starts_at_its_physical_entry(self) -> None:
        high = 0xFFFF_FFFF_8000_0000
        data = elf((1, high, 0x20_0000, CODE, 2), bits=64, entry=high + 1)
        assert load_elf(data).entry == 0x20_0001

    def test_an_entry_outside_of_all_segments_stays(self) -> None:
        assert load_elf(elf(LOAD, entry=0x5000)).entry == 0x5000

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (CODE, "not an ELF file"),
            (elf(LOAD)[:12], "truncated: 12 bytes are no ELF header"),
            (elf(LOAD)[:40], "truncated: 40 bytes, an ELF header has 52"),
            (elf(LOAD, bits=64)[:60], "truncated: 60 bytes, an ELF header has 64"),
            (elf(LOAD)[:60], "truncated: program headers end at byte 0x54"),
            (elf(LOAD)[:-1], "truncated: segment at 0x100000 ends at byte 0x56 of the file"),
            (elf(LOAD, machine=183), "for ELF machine 183; a 32-bit x86 file has 3"),
            (elf(LOAD, bits=64, machine=3), "for ELF machine 3; a 64-bit x86 file has 62"),
            (elf(LOAD, order=2), "byte order 2"),
            (elf(LOAD, kind=3), "position independent, not an executable"),
            (elf(LOAD, kind=1), "a relocatable object"),
            (elf(LOAD, kind=9), "ELF type 9"),
            (elf(LOAD, (3, 0, 0, b"/lib/ld.so\0", 11)), "wants a dynamic linker"),
            (elf(), "no PT_LOAD segment"),
            (elf((1, 0, 0, b"", 0)), "no PT_LOAD segment"),
            (elf((1, 0, 0x1000, CODE, 1)), "0x2 bytes in the file but only 0x1 in memory"),
        ],
    )
    def test_what_cannot_be_loaded(self, data: bytes, message: str) -> None:
        with pytest.raises(InputError) as caught:
            load_elf(data, "k.elf")
        assert str(caught.value).startswith("k.elf: ")
        assert message in str(caught.value)

    def test_small_program_headers(self) -> None:
        data = bytearray(elf(LOAD))
        data[42:44] = (8).to_bytes(2, "little")
        with pytest.raises(InputError, match="program headers of 8 bytes, they have 32"):
            load_elf(bytes(data))

    @given(st.binary(max_size=120), st.booleans())
    def test_rubbish_is_an_input_error(self, tail: bytes, wide: bool) -> None:
        head = elf(LOAD, bits=64 if wide else 32)[: 20 if tail else 7]
        segments, said = (), ""
        try:
            segments = load_elf(head + tail).segments
        except InputError as error:
            said = str(error)
        assert bool(segments) != bool(said)
        assert "\n" not in said


class TestDoor:
    def test_by_content_and_name(self, tmp_path: Path) -> None:
        for name, data, entry in (
            ("flat", CODE, 0x7C00),
            ("prog.lst", b"org 0x900\n  f4  hlt\n", 0x900),
            ("prog.txt", b"org 0x900\n  f4  hlt\n", 0x900),
            ("kernel", elf(LOAD), 0x10_0000),
        ):
            path = tmp_path / name
            path.write_bytes(data)
            assert load_image(path).entry == entry
            assert load_image(str(path)).name == str(path)
            assert load_image(data).entry == entry
            assert load_image(memoryview(data)).entry == entry

    def test_listings_and_images_at_hand(self) -> None:
        text = "org 0x900\n  f4  hlt\n"
        for source in (text, parse_listing(text), parse_listing(text).image()):
            image = load_image(source, Config(mode=Mode.LONG))
            assert (image.entry, image.mode) == (0x900, Mode.LONG)
        placed = parse_listing(text).image()
        assert load_image(placed, Config(load_address=5, entry=0x900)) == placed

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("empty", b"", "the file is empty"),
            ("empty.lst", b"", "the file is empty"),
            ("bad.lst", b"f4  hlt\n\xff\n", "bad.lst:2: not UTF-8 text"),
            ("bad.lst", b"f4  hlt\nwhat?\n", "bad.lst:2: cannot read 'what?'"),
            ("cut.elf", elf(LOAD)[:30], "truncated"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, name: str, data: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_image(path)
        assert str(path) in str(caught.value)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("path", "message"),
        [("nowhere.bin", "No such file"), (".", "Is a directory"), ("a\0b", "null")],
    )
    def test_files_that_cannot_be_read(
        self, tmp_path: Path, path: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=message):
            load_image(path)

    def test_an_elf_file_takes_no_load_address(self) -> None:
        with pytest.raises(InputError, match="an ELF file says itself where it goes"):
            load_image(elf(LOAD), Config(load_address=0x1000))


def test_an_image_knows_where_it_stands() -> None:
    image = Image("i", (Segment(0x1000, b"ab", 0x10), Segment(0x3000, b"c", 1)), 0x1000, Mode.REAL)
    assert image.describe() == "0x1000..0x100f, 0x3000..0x3000"
    assert image.overlaps(0x100F, 1)
    assert not image.overlaps(0x1010, 0x1FF0)
    image.check(0x3001)
    with pytest.raises(InputError, match=r"i: 0x3000..0x3000 does not fit into 0x3000 bytes"):
        image.check(0x3000)


def test_a_listing_may_begin_with_the_mark_of_a_windows_editor() -> None:
    data = b"\xef\xbb\xbf  fa  cli\r\n  f4  hlt\r\n"
    assert load_image(data, Config()).segments[0].code == b"\xfa\xf4"
