"""Interrupts: injected at an entry, delivered by the guest's own table; when, in virtual time."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmxsim.tools.listing import annotate, tidy
from vmxsim.vmm.loaders.listing import parse_listing

from . import MakeMachine

if TYPE_CHECKING:
    from ..conftest import Log

PROGRAMS = Path(__file__).resolve().parents[2] / "fixtures" / "programs"

PROTECTED = """
; run: --mode protected --load-address 0x100000 --irqchip
; one shot of the PIT through an interrupt gate, while the guest spins instead of halting
  bytes                       guest        | VM exit                       | ends in
  bc 00 00 09 00              mov esp, 0x90000
  b8 58 00 10 00              mov eax, offset tick
  66 a3 00 01 02 00           mov word ptr [0x20100], ax
  8c 0d 02 01 02 00           mov word ptr [0x20102], cs
  66 c7 05 04 01 02 00 00 8e  mov word ptr [0x20104], 0x8e00
  c1 e8 10                    shr eax, 16
  66 a3 06 01 02 00           mov word ptr [0x20106], ax
  0f 01 1d 5e 00 10 00        lidt [idt_pointer]
  b0 11                       mov al, 0x11
  e6 20                       out 0x20, al | IO_INSTRUCTION out 0x20 <- 11 | kernel
  b0 20                       mov al, 0x20
  e6 21                       out 0x21, al | IO_INSTRUCTION out 0x21 <- 20 | kernel
  b0 04                       mov al, 4
  e6 21                       out 0x21, al | IO_INSTRUCTION out 0x21 <- 04 | kernel
  b0 01                       mov al, 1
  e6 21                       out 0x21, al | IO_INSTRUCTION out 0x21 <- 01 | kernel
  b0 fe                       mov al, 0xfe
  e6 21                       out 0x21, al | IO_INSTRUCTION out 0x21 <- fe | kernel
  b0 30                       mov al, 0x30
  e6 43                       out 0x43, al | IO_INSTRUCTION out 0x43 <- 30 | kernel
  b0 64                       mov al, 100
  e6 40                       out 0x40, al | IO_INSTRUCTION out 0x40 <- 64 | kernel
  b0 00                       mov al, 0
  e6 40                       out 0x40, al | IO_INSTRUCTION out 0x40 <- 00 | kernel
  31 c9                       xor ecx, ecx
  fb                          sti
spin:
  85 c9                       test ecx, ecx
  74 fc                       jz spin
  e6 f4                       out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 20 | KVM_EXIT_IO out 0xf4 <- 20
tick:
  41                          inc ecx
  b0 20                       mov al, 0x20
  e6 20                       out 0x20, al | IO_INSTRUCTION out 0x20 <- 20 | kernel
  cf                          iretd
idt_pointer:
  07 01                       .word 0x107
  00 00 02 00                 .long 0x20000
"""

MASKED = """
; run: --mode real --load-address 0x7c00 --irqchip
; the timer is due long before STI: it waits in the interrupt controller
  bytes              guest        | VM exit                           | ends in
  fa                 cli
  bc 00 7c           mov sp, 0x7c00
  c7 06 20 00 3a 7c  mov word ptr [8 * 4], offset tick
  c7 06 22 00 00 00  mov word ptr [8 * 4 + 2], 0
  b0 11              mov al, 0x11
  e6 20              out 0x20, al | IO_INSTRUCTION out 0x20 <- 11     | kernel
  b0 08              mov al, 8
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- 08     | kernel
  b0 04              mov al, 4
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- 04     | kernel
  b0 01              mov al, 1
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- 01     | kernel
  b0 fe              mov al, 0xfe
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- fe     | kernel
  b0 30              mov al, 0x30
  e6 43              out 0x43, al | IO_INSTRUCTION out 0x43 <- 30     | kernel
  b0 05              mov al, 5
  e6 40              out 0x40, al | IO_INSTRUCTION out 0x40 <- 05     | kernel
  b0 00              mov al, 0
  e6 40              out 0x40, al | IO_INSTRUCTION out 0x40 <- 00     | kernel
  b9 14 00           mov cx, 20
pass:
  e6 80              out 0x80, al | IO_INSTRUCTION out 0x80 <- 00 x20 | KVM_EXIT_IO out 0x80 <- 00
  e2 fc              loop pass
  fb                 sti
  90                 nop
  f4                 hlt
tick:
  e6 f4              out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00     | KVM_EXIT_IO out 0xf4 <- 00
"""


def test_an_interrupt_in_a_loop_without_exits(machine: MakeMachine, log: Log) -> None:
    guest = machine(irqchip=True)
    guest.probes.add(log)
    assert annotate(PROTECTED, guest) == tidy(PROTECTED)
    assert [words for _, words in log.lines if "irq" in words] == ["irq 32"]


def test_an_interrupt_waits_for_sti(machine: MakeMachine, log: Log) -> None:
    guest = machine(irqchip=True)
    guest.probes.add(log)
    assert annotate(MASKED, guest) == tidy(MASKED)
    assert [words for _, words in log.lines if "irq" in words] == ["irq 8"]


def test_ten_ticks_are_ten_interrupts_a_millisecond_apart(machine: MakeMachine, log: Log) -> None:
    text = (PROGRAMS / "timer.lst").read_text()
    guest = machine()
    guest.probes.add(log)
    guest.load(parse_listing(text).image())
    guest.run()
    ticks = [now for now, words in log.lines if words == "irq 32"]
    gaps = [later - earlier for earlier, later in zip(ticks, ticks[1:], strict=False)]
    assert len(ticks) == 10
    assert all(990_000 < gap < 1_010_000 for gap in gaps), gaps
