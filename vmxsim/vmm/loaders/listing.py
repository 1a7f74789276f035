"""Listings (.lst): bytes on the left, assembly beside them, and what became of it on the right.

    ; run: --mode real --load-address 0x7c00 --no-irqchip
      bytes     guest            | VM exit                          | ends in
    start:
      e6 80     out 0x80, al     | IO_INSTRUCTION out 0x80 <- 2e x3 | KVM_EXIT_IO out 0x80 <- 2e
      f4        hlt

Only the bytes count: hexadecimal pairs with one space between, then two or more spaces (or a tab)
before the assembly. Comments begin with ``;`` or ``#``. Further lines: a label and a colon; an
assembler's directive (``.code32``), which does nothing; ``mode real|protected|long``, ``entry
ADDRESS-or-label``, ``org ADDRESS`` (where the program is loaded) and ``at ADDRESS`` (where the
following bytes go). A ``; run:`` comment holds options of ``vmxsim run``. What the caller asks for
overrules what the listing says.

The columns on the right are kept as they are written, so that annotate can fill them in anew
(`Listing.render`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from vmxsim.errors import InputError
from vmxsim.vmm.config import Mode
from vmxsim.vmm.image import Image, Segment
from vmxsim.vmm.loaders.options import DEFAULT_BASE, Wishes, parse_number, parse_wishes

ROW = re.compile(
    r"\s*(?P<code>[0-9a-fA-F]{2}(?: [0-9a-fA-F]{2})*)(?:\s*$|(?:\s{2,}|\t)(?P<rest>\S.*))"
)
LABEL = re.compile(r"\s*(?P<name>[A-Za-z_.$][\w.$]*):\s*(?:[;#].*)?")
HEADER = re.compile(r"\s*bytes\s+\S.*")
DIRECTIVE = re.compile(
    r"\s*(?P<word>org|at|mode|entry)\s+(?P<value>[^\s;#:]+):?\s*(?:[;#].*)?", re.IGNORECASE
)
RUN = re.compile(r"\s*[;#]\s*run:(?P<options>.*)")


class RowKind(Enum):
    """What a line of a listing is."""

    CODE = "bytes"
    HEADER = "the names of the columns"
    LABEL = "a name for the address"
    DIRECTIVE = "org, at, mode, entry"
    OTHER = "comments, blank lines, assembler directives"


class Row(NamedTuple):
    """One line. `source` is the line as it stands; the columns are stripped of blanks."""

    number: int
    kind: RowKind
    source: str
    address: int
    """Guest-physical address of its bytes, or of the next bytes to come."""
    code: bytes = b""
    guest: str = ""
    vm_exit: str = ""
    ends_in: str = ""

    @property
    def left(self) -> str:
        """The line up to its first column separator, without blanks at the end."""
        return split_columns(self.source)[0].rstrip()


class Listing(NamedTuple):
    """A parsed listing."""

    name: str
    rows: tuple[Row, ...]
    mode: Mode
    load_address: int
    entry: int
    irqchip: bool | None
    memory: int | None
    labels: Mapping[str, int]

    @property
    def code_rows(self) -> tuple[Row, ...]:
        """The rows that hold bytes, in the order of the text."""
        return tuple(row for row in self.rows if row.kind is RowKind.CODE)

    def image(self) -> Image:
        """The program, neighbouring rows joined into segments."""
        runs: list[tuple[int, bytearray]] = []
        for row in self.code_rows:
            if runs and runs[-1][0] + len(runs[-1][1]) == row.address:
                runs[-1][1].extend(row.code)
            else:
                runs.append((row.address, bytearray(row.code)))
        segments = tuple(Segment(gpa, bytes(code), len(code)) for gpa, code in runs)
        return Image(self.name, segments, self.entry, self.mode, self.irqchip, self.memory)

    def row_at(self, address: int) -> Row | None:
        """The code row that holds this address; the last one, where `at` lets two overlap."""
        for row in reversed(self.code_rows):
            if row.address <= address < row.address + len(row.code):
                return row
        return None

    def render(self, columns: Mapping[int, tuple[str, str]] | None = None) -> str:
        """The text with columns three and four written anew, aligned among the rows with exits.

        `columns` maps line numbers to (VM exit, ends in); rows it lacks get empty ones. None keeps
        what the text had. A listing without a header gets one before its first code row.
        """
        rows = self._with_header()
        cells: list[tuple[str, str, str] | None] = []
        for row in rows:
            if row.kind is RowKind.CODE:
                kept = (row.vm_exit, row.ends_in) if columns is None else ("", "")
                cells.append((row.left, *(columns or {}).get(row.number, kept)))
            elif row.kind is RowKind.HEADER:
                cells.append((row.left, "VM exit", "ends in"))
            else:
                cells.append(None)
        barred = [cell for cell in cells if cell is not None and (cell[1] or cell[2])]
        widths = [max((len(cell[i]) for cell in barred), default=0) for i in range(2)]
        lines = [
            row.source if cell is None else _line(cell, widths)
            for row, cell in zip(rows, cells, strict=True)
        ]
        return "\n".join(lines)

    def _with_header(self) -> list[Row]:
        rows = list(self.rows)
        if any(row.kind is RowKind.HEADER for row in rows):
            return rows
        first = next((i for i, row in enumerate(rows) if row.kind is RowKind.CODE), None)
        if first is None:
            return rows
        row = rows[first]
        indent = len(row.source) - len(row.source.lstrip())
        at = row.source.index(row.guest, indent + 2) if row.guest else indent + 10
        text = f"{' ' * indent}{'bytes':{max(7, at - indent)}}guest"
        return [*rows[:first], Row(0, RowKind.HEADER, text, row.address), *rows[first:]]


def _line(cell: tuple[str, str, str], widths: list[int]) -> str:
    left, vm_exit, ends_in = cell
    if not vm_exit and not ends_in:
        return left
    return f"{left:{widths[0]}} | {vm_exit:{widths[1]}} | {ends_in}".rstrip()


def split_columns(text: str) -> tuple[str, str, str]:
    """(bytes and assembly, VM exit, ends in): bars inside quotes are assembly, not separators."""
    left = _unquoted_bar(text)
    if left is None:
        return text, "", ""
    vm_exit, _, ends_in = text[left + 1 :].partition("|")
    return text[:left], vm_exit.strip(), ends_in.strip()


def _unquoted_bar(text: str) -> int | None:
    quote, comment = "", False
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter == "|":
            return at
        elif letter in ";#":
            comment = True
        elif letter in "'\"" and not comment and letter in text[at + 1 :]:
            quote = letter
    return None


def parse_listing(
    text: str,
    name: str = "listing",
    *,
    mode: Mode | None = None,
    load_address: int | None = None,
    entry: int | None = None,
) -> Listing:
    """Read a listing. InputError names the line that cannot be read, by its number."""
    lines = text.replace("\r\n", "\n").split("\n")
    wishes = _wishes(lines, name)
    mode = mode or wishes.mode or Mode.REAL
    base = load_address if load_address is not None else wishes.load_address
    base = DEFAULT_BASE[mode] if base is None else base
    rows = _rows(lines, base, name)
    first = next((row.address for row in rows if row.kind is RowKind.CODE), None)
    if first is None:
        raise InputError(f"{name}: no line with bytes in it")
    labels = {row.guest: row.address for row in rows if row.kind is RowKind.LABEL}
    if entry is None:
        entry = first if wishes.entry is None else wishes.entry
        entry = _entry(rows, labels, entry, name)
    return Listing(name, tuple(rows), mode, base, entry, wishes.irqchip, wishes.memory, labels)


def _rows(lines: list[str], base: int, name: str) -> list[Row]:
    rows, address = [], base
    for number, line in enumerate(lines, 1):
        row = _row(line, number, address, name)
        if row.kind is RowKind.DIRECTIVE and row.guest.startswith("at "):
            address = parse_number(row.guest[3:], f"{name}:{number}")
        rows.append(row)
        address += len(row.code)
    return rows


def _entry(rows: list[Row], labels: Mapping[str, int], entry: int, name: str) -> int:
    """Where the last ``entry`` directive points, or else what was given."""
    for row in rows:
        if row.kind is RowKind.DIRECTIVE and row.guest.startswith("entry "):
            value = row.guest[6:]
            known = labels.get(value)
            entry = parse_number(value, f"{name}:{row.number}") if known is None else known
    return entry


def _wishes(lines: list[str], name: str) -> Wishes:
    """What ``; run:`` comments, ``org`` and ``mode`` ask for; a later line overrules."""
    wishes = Wishes()
    for number, line in enumerate(lines, 1):
        if found := RUN.fullmatch(line):
            wishes = parse_wishes(found["options"], f"{name}:{number}", wishes)
        elif found := DIRECTIVE.fullmatch(line):
            word, value = found["word"].lower(), found["value"]
            if word == "mode":
                wishes = parse_wishes(f"--mode {value}", f"{name}:{number}", wishes)
            elif word == "org":
                wishes = parse_wishes(f"--load-address {value}", f"{name}:{number}", wishes)
    return wishes


def _row(line: str, number: int, address: int, name: str) -> Row:
    stripped = line.strip()
    if not stripped or stripped[0] in ";#":
        return Row(number, RowKind.OTHER, line, address)
    left, vm_exit, ends_in = split_columns(line)
    if found := ROW.fullmatch(left.rstrip()):
        code, guest = bytes.fromhex(found["code"]), (found["rest"] or "").strip()
        return Row(number, RowKind.CODE, line, address, code, guest, vm_exit, ends_in)
    if HEADER.fullmatch(line):
        return Row(number, RowKind.HEADER, line, address)
    if found := DIRECTIVE.fullmatch(line):
        words = f"{found['word'].lower()} {found['value']}"
        return Row(number, RowKind.DIRECTIVE, line, address, guest=words)
    if found := LABEL.fullmatch(line):
        return Row(number, RowKind.LABEL, line, address, guest=found["name"])
    if stripped[0] == ".":
        return Row(number, RowKind.OTHER, line, address)
    raise InputError(
        f"{name}:{number}: cannot read {stripped[:60]!r}: a line is hexadecimal bytes, two or more "
        "spaces, assembly; or a label:, a ; comment, org, at, mode or entry"
    )


def looks_like_listing(data: bytes) -> bool:
    """Whether these bytes are text of which some line has bytes and assembly side by side."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return "\0" not in text and any(
        (found := ROW.fullmatch(split_columns(line)[0].rstrip())) and found["rest"]
        for line in text.splitlines()
    )
