"""HLT: without an irqchip userspace hears of it; with one the kernel waits itself."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

WITHOUT_IRQCHIP = """
  bytes  guest | VM exit | ends in
  fa     cli
  f4     hlt   | HLT     | KVM_EXIT_HLT
"""

DEAD = """
; no interrupt can end it: real KVM would wait for ever, Machine asks to be told
  bytes  guest | VM exit | ends in
  fa     cli
  f4     hlt   | HLT     | KVM_EXIT_HLT
"""

WITH_IRQCHIP = """
; run: --mode real --load-address 0x7c00 --irqchip
; the timer ends it; userspace hears nothing of the waiting
  bytes              guest        | VM exit                          | ends in
  bc 00 7c           mov sp, 0x7c00
  c7 06 20 00 33 7c  mov word ptr [8 * 4], offset tick
  c7 06 22 00 00 00  mov word ptr [8 * 4 + 2], 0
  b0 11              mov al, 0x11
  e6 20              out 0x20, al | IO_INSTRUCTION out 0x20 <- 11    | kernel
  b0 08              mov al, 8
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- 08    | kernel
  b0 04              mov al, 4
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- 04    | kernel
  b0 01              mov al, 1
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- 01    | kernel
  b0 fe              mov al, 0xfe
  e6 21              out 0x21, al | IO_INSTRUCTION out 0x21 <- fe    | kernel
  b0 34              mov al, 0x34
  e6 43              out 0x43, al | IO_INSTRUCTION out 0x43 <- 34    | kernel
  b0 00              mov al, 0
  e6 40              out 0x40, al | IO_INSTRUCTION out 0x40 <- 00    | kernel
  e6 40              out 0x40, al | IO_INSTRUCTION out 0x40 <- 00    | kernel
  fb                 sti
  f4                 hlt          | HLT                              | kernel
  f4                 hlt          | HLT                              | kernel
  f4                 hlt          | HLT                              | kernel
  e6 f4              out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 20    | KVM_EXIT_IO out 0xf4 <- 20
tick:
  b0 20              mov al, 0x20
  e6 20              out 0x20, al | IO_INSTRUCTION out 0x20 <- 20 x3 | kernel
  cf                 iret
"""

PROTECTED = """
; run: --mode protected --load-address 0x100000
  bytes  guest | VM exit | ends in
  f4     hlt   | HLT     | KVM_EXIT_HLT
"""

LONG = """
; run: --mode long --load-address 0x100000
  bytes  guest | VM exit | ends in
  f4     hlt   | HLT     | KVM_EXIT_HLT
"""


def test_without_an_irqchip_it_ends_in_userspace(machine: MakeMachine) -> None:
    assert annotate(WITHOUT_IRQCHIP, machine(irqchip=False)) == tidy(WITHOUT_IRQCHIP)


def test_with_interrupts_off_it_is_the_end(machine: MakeMachine) -> None:
    assert annotate(DEAD, machine(irqchip=True)) == tidy(DEAD)


def test_with_an_irqchip_it_waits_in_the_kernel(machine: MakeMachine) -> None:
    assert annotate(WITH_IRQCHIP, machine(irqchip=True)) == tidy(WITH_IRQCHIP)


def test_protected_mode(machine: MakeMachine) -> None:
    assert annotate(PROTECTED, machine(irqchip=False)) == tidy(PROTECTED)


def test_long_mode(machine: MakeMachine) -> None:
    assert annotate(LONG, machine(irqchip=False)) == tidy(LONG)
