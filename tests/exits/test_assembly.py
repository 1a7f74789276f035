"""Column two cannot lie: where there is GNU as, every listing is assembled again and compared."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from vmxsim.vmm.loaders.listing import parse_listing

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((ROOT / "fixtures" / "programs").glob("*.lst")),
    *sorted((ROOT / "tests" / "exits").glob("test_*.py")),
    ROOT / "benchmarks" / "guests.py",
]


def assembler() -> ModuleType:
    """fixtures/assemble.py, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "fixtures" / "assemble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ASSEMBLER = assembler()


def listings(path: Path) -> list[tuple[str, str]]:
    """Every listing in a file, with a name for the test."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".lst":
        return [(path.name, text)]
    found = [(match.start(), match[2]) for match in ASSEMBLER.LISTING.finditer(text)]
    names = [re.findall(r"^(\w+)\b.*=", text[:start], re.MULTILINE)[-1] for start, _ in found]
    return [(f"{path.stem}.{name}", text) for name, (_, text) in zip(names, found, strict=True)]


LISTINGS = [pair for path in SOURCES for pair in listings(path)]


def test_the_listings_are_found() -> None:
    names = [name for name, _ in LISTINGS]
    assert {"hello.lst", "test_io.IO_AND_CPUID", "guests.ALU"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.skipif(not ASSEMBLER.available(), reason="needs GNU as, ld, objcopy and nm for x86")
@pytest.mark.parametrize(("name", "listing"), LISTINGS, ids=[name for name, _ in LISTINGS])
def test_column_one_is_column_two_assembled(name: str, listing: str) -> None:
    rows = parse_listing(listing, name).code_rows
    written = [(row.code.hex(" "), row.guest) for row in rows]
    assembled = [code.hex(" ") for code in ASSEMBLER.assemble(listing)]
    assert written == list(zip(assembled, (row.guest for row in rows), strict=True))
