"""Listings: what each line is, where its bytes go, and that rendering gives the text back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.errors import InputError
from vmxsim.vmm.config import Mode
from vmxsim.vmm.loaders.listing import (
    RowKind,
    looks_like_listing,
    parse_listing,
    split_columns,
)

STYLE = """
  bytes     guest            | VM exit                          | ends in
  b0 20     mov al, 0x20
  e6 20     out 0x20, al     | IO_INSTRUCTION out 0x20 <- 20    | kernel
  b0 7c     mov al, '|'      ; a bar | CPUID | kernel
done:
  f4        hlt
"""


def test_rows_have_addresses_bytes_text_and_columns() -> None:
    listing = parse_listing(STYLE)
    rows = [(row.number, row.address, row.code.hex(), row.guest, row.vm_exit, row.ends_in)
            for row in listing.code_rows]  # fmt: skip
    assert rows == [
        (3, 0x7C00, "b020", "mov al, 0x20", "", ""),
        (4, 0x7C02, "e620", "out 0x20, al", "IO_INSTRUCTION out 0x20 <- 20", "kernel"),
        (5, 0x7C04, "b07c", "mov al, '|'      ; a bar", "CPUID", "kernel"),
        (7, 0x7C06, "f4", "hlt", "", ""),
    ]
    assert listing.labels == {"done": 0x7C06}
    assert [row.kind for row in listing.rows[:2]] == [RowKind.OTHER, RowKind.HEADER]


def test_the_program_is_one_segment() -> None:
    image = parse_listing(STYLE).image()
    (segment,) = image.segments
    assert (segment.gpa, segment.code.hex(), segment.size) == (0x7C00, "b020e620b07cf4", 7)
    assert (image.entry, image.mode, image.irqchip) == (0x7C00, Mode.REAL, None)


@pytest.mark.parametrize(
    ("text", "mode", "entry"),
    [
        ("f4  hlt", Mode.REAL, 0x7C00),
        ("mode long\nf4  hlt", Mode.LONG, 0x100000),
        ("mode Protected ; comment\nf4  hlt", Mode.PROTECTED, 0x100000),
        ("org 0x1000\nf4  hlt", Mode.REAL, 0x1000),
        ("f4  hlt\norg 4096", Mode.REAL, 0x1000),
        ("; run: --mode long --load-address 0x2000 --irqchip\nf4  hlt", Mode.LONG, 0x2000),
        ("# run: --mode=long --load-address=0x2000\nf4  hlt", Mode.LONG, 0x2000),
        ("90  nop\nstart:\nf4  hlt\nentry start", Mode.REAL, 0x7C01),
        ("entry 0x7c02\n90  nop\n90  nop\nf4  hlt", Mode.REAL, 0x7C02),
        ("; run: --entry 0x7c01\n90  nop\nf4  hlt", Mode.REAL, 0x7C01),
        ("at 0x9000\nf4  hlt", Mode.REAL, 0x9000),
        ("AT 0x9000:\nf4", Mode.REAL, 0x9000),
    ],
)
def test_directives(text: str, mode: Mode, entry: int) -> None:
    image = parse_listing(text).image()
    assert (image.mode, image.entry) == (mode, entry)


def test_at_makes_segments() -> None:
    listing = parse_listing("90  nop\nat 0x8000\nf4  hlt\n90  nop\nat 0x8002\n90  nop\n")
    segments = [(part.gpa, part.code.hex()) for part in listing.image().segments]
    assert segments == [(0x7C00, "90"), (0x8000, "f49090")]
    assert listing.row_at(0x8001) == listing.rows[3]
    assert listing.row_at(0x8003) is None


def test_the_caller_overrules() -> None:
    text = "; run: --mode long --load-address 0x2000 --no-irqchip --memory 2M\nf4  hlt\nentry 0"
    listing = parse_listing(text, mode=Mode.REAL, load_address=0x500, entry=0x500)
    assert (listing.mode, listing.load_address, listing.entry) == (Mode.REAL, 0x500, 0x500)
    assert (listing.irqchip, listing.memory) == (False, 2 << 20)


def test_options_of_the_command_line_alone_are_skipped() -> None:
    text = "; run: --stat --clock host --max-exits 5 --timeout 1 --trace x -q --irqchip\nf4  hlt"
    assert parse_listing(text).irqchip is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f4  hlt\nhello there", "p.lst:2: cannot read 'hello there'"),
        ("f4 hlt", "p.lst:1: cannot read 'f4 hlt'"),
        ("f  hlt", "p.lst:1: cannot read"),
        ("..  hlt", "no line with bytes in it"),
        ("f4f4  hlt", "p.lst:1: cannot read"),
        ("; only words\n", "p.lst: no line with bytes in it"),
        ("", "p.lst: no line with bytes in it"),
        ("f4  hlt\norg here", "p.lst:2: 'here' is not a number"),
        ("f4  hlt\nat there", "p.lst:2: 'there' is not a number"),
        ("f4  hlt\nentry nowhere", "p.lst:2: 'nowhere' is not a number or a label"),
        ("mode 16\nf4  hlt", "p.lst:1: mode '16': it is real, protected or long"),
        ("; run: --mode\nf4  hlt", "p.lst:1: option '--mode' needs a value"),
        ("; run: --speed 3\nf4  hlt", "p.lst:1: unknown option '--speed'"),
        ("; run: --memory 6X\nf4  hlt", "p.lst:1: '6X' is not a number"),
        ("at -1\nf4", "p.lst:1: -1 is no 64-bit address"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_listing(text, "p.lst")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("f4  hlt", ("f4  hlt", "", "")),
        ("f4  hlt | HLT | kernel", ("f4  hlt ", "HLT", "kernel")),
        ("b0  mov al, '|' | A | B", ("b0  mov al, '|' ", "A", "B")),
        ('b0  mov al, "\'" | A', ('b0  mov al, "\'" ', "A", "")),
        ("b0  nop ; it's so | A | B", ("b0  nop ; it's so ", "A", "B")),
        ("b0  mov al, ' | A", ("b0  mov al, ' ", "A", "")),
    ],
)
def test_bars_in_quotes_are_assembly(text: str, columns: tuple[str, str, str]) -> None:
    assert split_columns(text) == columns


class TestRender:
    def test_new_columns_are_aligned_and_old_ones_gone(self) -> None:
        assert parse_listing(STYLE).render({3: ("CPUID", "kernel"), 7: ("HLT x2", "KVM")}) == (
            "\n"
            "  bytes     guest        | VM exit | ends in\n"
            "  b0 20     mov al, 0x20 | CPUID   | kernel\n"
            "  e6 20     out 0x20, al\n"
            "  b0 7c     mov al, '|'      ; a bar\n"
            "done:\n"
            "  f4        hlt          | HLT x2  | KVM\n"
        )

    def test_without_a_header_one_is_written(self) -> None:
        text = parse_listing("; x\n  b0 20    mov al, 0x20\n  f4       hlt").render(
            {3: ("HLT", "k")}
        )
        assert text == (
            "; x\n"
            "  bytes    guest | VM exit | ends in\n"
            "  b0 20    mov al, 0x20\n"
            "  f4       hlt   | HLT     | k"
        )

    def test_rendering_what_is_rendered_changes_nothing(self) -> None:
        once = parse_listing(STYLE).render()
        assert parse_listing(once).render() == once


code = st.binary(min_size=1, max_size=10).map(lambda raw: raw.hex(" "))
word = st.text("abcxyz[]+, 0123456789'\"", min_size=1, max_size=20).filter(
    lambda text: text == text.strip() and "  " not in text
)
column = st.sampled_from(["", "CPUID", "IO_INSTRUCTION out 0x80 <- 2e x3", "kernel"])
line = st.one_of(
    st.builds("  {}    {} | {} | {}".format, code, word, column, column),
    st.builds("  {}    {}".format, code, word),
    st.sampled_from(["", "; comment", "label_1:", "  .code32", "at 0x9000", "# | odd | one"]),
)


@given(st.lists(line, max_size=12))
def test_a_listing_survives_rendering(lines: list[str]) -> None:
    text = "\n".join(["  90    nop", *lines])
    before = parse_listing(text)
    after = parse_listing(before.render())
    for name in ("address", "code", "guest", "vm_exit", "ends_in"):
        assert [getattr(row, name) for row in after.code_rows] == [
            getattr(row, name) for row in before.code_rows
        ]
    assert (after.entry, after.labels, after.image()) == (
        before.entry, before.labels, before.image(),
    )  # fmt: skip
    assert after.render() == before.render()


@given(st.text(max_size=200))
def test_any_text_is_a_listing_or_an_input_error(text: str) -> None:
    said = ""
    try:
        rows = parse_listing(text).code_rows
    except InputError as error:
        rows, said = (), str(error)
    assert bool(rows) != bool(said)
    assert "\n" not in said


def test_what_looks_like_a_listing() -> None:
    assert looks_like_listing(STYLE.encode())
    assert not looks_like_listing(b"f4")
    assert not looks_like_listing(b"\xff\xfe")
    assert not looks_like_listing(b"f4  hlt\n\0")
