"""ELF executables, 32 and 64 bit, placed by the physical addresses of their PT_LOAD segments.

System V ABI, "ELF Header" and "Program Header". Sections, symbols and relocations are not looked
at: only static, position-dependent executables can be loaded. A guest starts with paging off or
identity-mapped, so the entry, which is a virtual address, is moved with its segment.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vmxsim.errors import InputError
from vmxsim.vmm.config import Mode
from vmxsim.vmm.image import Image, Segment

MAGIC = b"\x7fELF"
CLASS32, CLASS64 = 1, 2
LITTLE_ENDIAN = 1
ET_EXEC = 2
ET_NAMES = {1: "a relocatable object", 3: "position independent", 4: "a core dump"}
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_INTERP = 1, 3

# after e_ident: type machine version entry phoff shoff flags ehsize phentsize phnum shentsize ...
HEADER32 = struct.Struct("<16xHHIIIIIHHHHHH")
HEADER64 = struct.Struct("<16xHHIQQQIHHHHHH")
PROGRAM32 = struct.Struct("<IIIIIIII")
"""type offset vaddr paddr filesz memsz flags align"""
PROGRAM64 = struct.Struct("<IIQQQQQQ")
"""type flags offset vaddr paddr filesz memsz align"""


class _Program(NamedTuple):
    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class _Header(NamedTuple):
    machine: int
    entry: int
    programs: tuple[_Program, ...]
    wide: bool


def is_elf(data: bytes) -> bool:
    """Whether these bytes say they are an ELF file."""
    return data[:4] == MAGIC


def load_elf(
    data: bytes, name: str = "image", *, mode: Mode | None = None, entry: int | None = None
) -> Image:
    """Place an executable. The class decides the mode: 32 bit protected, 64 bit long."""
    header = _header(data, name)
    loads = [program for program in header.programs if program.type == PT_LOAD and program.memsz]
    if not loads:
        raise InputError(f"{name}: no PT_LOAD segment: there is nothing to load")
    segments = tuple(_segment(program, data, name) for program in loads)
    start = _physical(header.entry, loads) if entry is None else entry
    default = Mode.LONG if header.wide else Mode.PROTECTED
    return Image(name, segments, start, mode or default)


def _physical(entry: int, loads: list[_Program]) -> int:
    for program in loads:
        if program.vaddr <= entry < program.vaddr + program.memsz:
            return entry - program.vaddr + program.paddr
    return entry


def _segment(program: _Program, data: bytes, name: str) -> Segment:
    if program.filesz > program.memsz:
        raise InputError(
            f"{name}: segment at {program.paddr:#x} has {program.filesz:#x} bytes in the file but "
            f"only {program.memsz:#x} in memory"
        )
    end = program.offset + program.filesz
    if end > len(data):
        raise InputError(
            f"{name}: truncated: segment at {program.paddr:#x} ends at byte {end:#x} of the file, "
            f"which has {len(data):#x}"
        )
    return Segment(program.paddr, data[program.offset : end], program.memsz)


def _header(data: bytes, name: str) -> _Header:
    if not is_elf(data):
        raise InputError(f"{name}: not an ELF file")
    if len(data) < 20:
        raise InputError(f"{name}: truncated: {len(data)} bytes are no ELF header")
    kind, order = data[4], data[5]
    if kind not in (CLASS32, CLASS64) or order != LITTLE_ENDIAN:
        raise InputError(f"{name}: ELF class {kind}, byte order {order}: x86 has 1 or 2, and 1")
    layout = HEADER64 if kind == CLASS64 else HEADER32
    if len(data) < layout.size:
        raise InputError(f"{name}: truncated: {len(data)} bytes, an ELF header has {layout.size}")
    elf_type, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = layout.unpack_from(data)
    wanted = EM_X86_64 if kind == CLASS64 else EM_386
    if machine != wanted:
        raise InputError(
            f"{name}: for ELF machine {machine}; a {32 * kind}-bit x86 file has {wanted}"
        )
    if elf_type != ET_EXEC:
        what = ET_NAMES.get(elf_type, f"ELF type {elf_type}")
        raise InputError(f"{name}: {what}, not an executable: link it statically with -no-pie")
    programs = _programs(data, name, kind == CLASS64, phoff, phentsize, phnum)
    if any(program.type == PT_INTERP for program in programs):
        raise InputError(f"{name}: wants a dynamic linker: link it with -static")
    return _Header(machine, entry, programs, kind == CLASS64)


def _programs(
    data: bytes, name: str, wide: bool, offset: int, size: int, count: int
) -> tuple[_Program, ...]:
    layout = PROGRAM64 if wide else PROGRAM32
    if count and size < layout.size:
        raise InputError(f"{name}: program headers of {size} bytes, they have {layout.size}")
    if offset + size * count > len(data):
        raise InputError(
            f"{name}: truncated: program headers end at byte {offset + size * count:#x} of the "
            f"file, which has {len(data):#x}"
        )
    found = []
    for number in range(count):
        fields = layout.unpack_from(data, offset + size * number)
        if wide:
            kind, _, at, vaddr, paddr, filesz, memsz, _ = fields
        else:
            kind, at, vaddr, paddr, filesz, memsz, _, _ = fields
        found.append(_Program(kind, at, vaddr, paddr, filesz, memsz))
    return tuple(found)
