"""The guest programs that are timed: 64-bit code, counted by R8, which ends at its HLT."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

CODE: Final = 0x20_0000
STACK: Final = 0x28_0000
BUFFER: Final = 0x40_0000
MEMORY: Final = 0x80_0000
PAGE_TABLES: Final = 0x1000
NO_EXECUTE: Final = 1 << 63


class Guest(NamedTuple):
    """A loop: ``turns`` times, ``instructions`` each; the listing is what runs after MOV R8."""

    name: str
    turns: int
    instructions: int
    listing: str

    @property
    def code(self) -> bytes:
        """MOV R8, turns; then column one of the listing."""
        rows = (line.split("  ")[1] for line in self.listing.split("\n") if line.startswith("  "))
        body = bytes.fromhex("".join(row for row in rows if row != "bytes"))
        return b"\x49\xc7\xc0" + struct.pack("<I", self.turns) + body


ALU: Final = Guest("ALU", 20_000_000, 6, """
; run: --mode long --load-address 0x200007
  bytes           guest
again:
  48 01 d8        add rax, rbx
  48 31 c2        xor rdx, rax
  48 8d 5c 50 01  lea rbx, [rax + rdx * 2 + 1]
  48 c1 c2 03     rol rdx, 3
  49 ff c8        dec r8
  75 ec           jnz again
  f4              hlt
""")  # fmt: skip

BRANCHES: Final = Guest("branches", 6_000_000, 9, """
; run: --mode long --load-address 0x200007
; a linear congruential generator decides two of the three branches
  bytes              guest
again:
  69 c0 0d 66 19 00  imul eax, eax, 1664525
  05 5f f3 6e 3c     add eax, 1013904223
  78 03              js one
  48 ff c3           inc rbx
one:
  a9 00 00 10 00     test eax, 0x100000
  74 03              jz two
  48 ff c2           inc rdx
two:
  49 ff c8           dec r8
  75 e1              jnz again
  f4                 hlt
""")  # fmt: skip

CALLS: Final = Guest("call and ret", 1_500_000, 4, """
; run: --mode long --load-address 0x200007
  bytes           guest
again:
  e8 06 00 00 00  call leaf
  49 ff c8        dec r8
  75 f6           jnz again
  f4              hlt
leaf:
  c3              ret
""")  # fmt: skip

MEMORY_WALK: Final = Guest("sequential memory", 1_000, 5 * 4096, """
; run: --mode long --load-address 0x200007
; reads and writes 64 KB from one end to the other
  bytes           guest
again:
  bf 00 00 40 00  mov edi, 0x400000
  b9 00 10 00 00  mov ecx, 4096
next:
  48 8b 07        mov rax, qword ptr [rdi]
  48 01 47 08     add qword ptr [rdi + 8], rax
  48 83 c7 10     add rdi, 16
  ff c9           dec ecx
  75 f1           jnz next
  49 ff c8        dec r8
  75 e2           jnz again
  f4              hlt
""")  # fmt: skip

STRINGS: Final = Guest("string moves", 200, 16384, """
; run: --mode long --load-address 0x200007
; REP MOVSD of 32 KB and REP STOSD of 32 KB
  bytes           guest
again:
  be 00 00 40 00  mov esi, 0x400000
  bf 00 00 41 00  mov edi, 0x410000
  b9 00 20 00 00  mov ecx, 8192
  f3 a5           rep movsd
  bf 00 00 41 00  mov edi, 0x410000
  b9 00 20 00 00  mov ecx, 8192
  f3 ab           rep stosd
  49 ff c8        dec r8
  75 de           jnz again
  f4              hlt
""")  # fmt: skip

CPUID: Final = Guest("CPUID", 60_000, 4, """
; run: --mode long --load-address 0x200007
  bytes     guest
again:
  31 c0     xor eax, eax
  0f a2     cpuid
  49 ff c8  dec r8
  75 f7     jnz again
  f4        hlt
""")  # fmt: skip

OUT: Final = Guest("OUT", 60_000, 3, """
; run: --mode long --load-address 0x200007
; DX and AL are set before the guest starts
  bytes     guest
again:
  ee        out dx, al
  49 ff c8  dec r8
  75 fa     jnz again
  f4        hlt
""")  # fmt: skip

LOOPS: Final = (ALU, BRANCHES, CALLS, MEMORY_WALK, STRINGS)


def page_tables() -> bytes:
    """PML4, PDPT and one page directory of 2 MB pages, to be stored at PAGE_TABLES.

    Data is no-execute from 4 MB on, as every kernel maps it.
    """
    tables = bytearray(3 * 4096)
    struct.pack_into("<Q", tables, 0, PAGE_TABLES + 0x1000 | 3)
    struct.pack_into("<Q", tables, 0x1000, PAGE_TABLES + 0x2000 | 3)
    for entry in range(512):
        no_execute = NO_EXECUTE if entry > 1 else 0
        struct.pack_into("<Q", tables, 0x2000 + 8 * entry, entry << 21 | 0x83 | no_execute)
    return bytes(tables)
