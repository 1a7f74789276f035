"""Exceptions: KVM sees #UD, #DB, #AC and #MC; the others are between guest and processor."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

REAL = """
; run: --mode real --load-address 0x7c00
  bytes              guest        | VM exit                       | ends in
  bc 00 7c           mov sp, 0x7c00
  c7 06 00 00 24 7c  mov word ptr [0], offset skip2
  c7 06 0c 00 29 7c  mov word ptr [3 * 4], offset back
  c7 06 18 00 24 7c  mov word ptr [6 * 4], offset skip2
  31 c9              xor cx, cx
  f7 f1              div cx
  cc                 int3
  0f 0b              ud2          | EXCEPTION_NMI #UD             | kernel #UD
  cd 03              .byte 0xcd, 3                ; int 3 as INT n
  88 d8              mov al, bl
  e6 80              out 0x80, al | IO_INSTRUCTION out 0x80 <- 04 | KVM_EXIT_IO out 0x80 <- 04
  e6 f4              out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 04 | KVM_EXIT_IO out 0xf4 <- 04
skip2:
  58                 pop ax
  83 c0 02           add ax, 2
  50                 push ax
back:
  43                 inc bx
  cf                 iret
"""

SINGLE_STEP = """
; run: --mode real --load-address 0x7c00
; TF: a trap after each instruction, which the kernel sees and hands back to the guest
  bytes              guest        | VM exit                       | ends in
  bc 00 7c           mov sp, 0x7c00
  c7 06 04 00 18 7c  mov word ptr [1 * 4], offset on_db
  68 02 01           push 0x102
  9d                 popf
  90                 nop
  90                 nop          | EXCEPTION_NMI #DB             | kernel #DB
  6a 02              push 0x002   | EXCEPTION_NMI #DB             | kernel #DB
  9d                 popf         | EXCEPTION_NMI #DB             | kernel #DB
  88 d8              mov al, bl   | EXCEPTION_NMI #DB             | kernel #DB
  e6 80              out 0x80, al | IO_INSTRUCTION out 0x80 <- 04 | KVM_EXIT_IO out 0x80 <- 04
  e6 f4              out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 04 | KVM_EXIT_IO out 0xf4 <- 04
on_db:
  43                 inc bx
  cf                 iret
"""

TRIPLE_FAULT = """
; run: --mode protected --load-address 0x100000
; no IDT at all: the exception, then a double fault, then nothing is left
  bytes                 guest | VM exit      | ends in
  0f 01 1d 08 00 10 00  lidt [nothing]
  cc                    int3  | TRIPLE_FAULT | KVM_EXIT_SHUTDOWN
nothing:
  00 00                 .word 0
  00 00 00 00           .long 0
"""


def test_real_mode(machine: MakeMachine) -> None:
    assert annotate(REAL, machine(irqchip=False)) == tidy(REAL)


def test_single_step(machine: MakeMachine) -> None:
    assert annotate(SINGLE_STEP, machine(irqchip=False)) == tidy(SINGLE_STEP)


def test_triple_fault(machine: MakeMachine) -> None:
    assert annotate(TRIPLE_FAULT, machine(irqchip=False)) == tidy(TRIPLE_FAULT)
