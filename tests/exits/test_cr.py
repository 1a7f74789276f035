"""Control registers: writes that change what the kernel owns exit; reads come from the shadow."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

PROTECTED = """
; run: --mode protected --load-address 0x100000
  bytes           guest         | VM exit                             | ends in
  0f 20 c0        mov eax, cr0
  0d 00 00 01 00  or eax, 0x10000           ; WP
  0f 22 c0        mov cr0, eax  | CR_ACCESS mov cr0 <- 10011          | kernel
  0f 20 c0        mov eax, cr0
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 00010011 | KVM_EXIT_IO out 0x80 <- 00010011
  0f 20 c0        mov eax, cr0
  83 c8 08        or eax, 8                 ; TS
  0f 22 c0        mov cr0, eax
  0f 06           clts
  66 0f 01 e0     smsw ax
  66 e7 80        out 0x80, ax  | IO_INSTRUCTION out 0x80 <- 0011     | KVM_EXIT_IO out 0x80 <- 0011
  b8 00 00 01 00  mov eax, 0x10000
  0f 22 d8        mov cr3, eax
  0f 20 d8        mov eax, cr3
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 00010000 | KVM_EXIT_IO out 0x80 <- 00010000
  0f 20 e0        mov eax, cr4
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 00000000 | KVM_EXIT_IO out 0x80 <- 00000000
  83 c8 10        or eax, 0x10              ; PSE
  0f 22 e0        mov cr4, eax  | CR_ACCESS mov cr4 <- 10             | kernel
  0f 20 e0        mov eax, cr4
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 00000010 | KVM_EXIT_IO out 0x80 <- 00000010
  e6 f4           out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- 10       | KVM_EXIT_IO out 0xf4 <- 10
"""

LMSW = """
; run: --mode real --load-address 0x7c00
  bytes     guest        | VM exit                         | ends in
  0f 01 e0  smsw ax
  0c 02     or al, 2                  ; MP
  0f 01 f0  lmsw ax      | CR_ACCESS lmsw <- 12            | kernel
  0f 01 e0  smsw ax
  e7 80     out 0x80, ax | IO_INSTRUCTION out 0x80 <- 0012 | KVM_EXIT_IO out 0x80 <- 0012
  e6 f4     out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 12   | KVM_EXIT_IO out 0xf4 <- 12
"""

LONG = """
; run: --mode long --load-address 0x100000
  bytes           guest        | VM exit                       | ends in
  0f 20 d8        mov rax, cr3
  0f 22 d8        mov cr3, rax
  b8 05 00 00 00  mov eax, 5
  44 0f 22 c0     mov cr8, rax | CR_ACCESS mov cr8 <- 5        | kernel
  31 c0           xor eax, eax
  44 0f 20 c0     mov rax, cr8 | CR_ACCESS mov cr8 ->          | kernel
  e6 80           out 0x80, al | IO_INSTRUCTION out 0x80 <- 05 | KVM_EXIT_IO out 0x80 <- 05
  e6 f4           out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 05 | KVM_EXIT_IO out 0xf4 <- 05
"""

RESERVED = """
; run: --mode real --load-address 0x7c00
; bit 31 without bit 0: paging without protection
  bytes              guest        | VM exit                       | ends in
  c7 06 34 00 18 7c  mov word ptr [13 * 4], offset on_gp
  c7 06 36 00 00 00  mov word ptr [13 * 4 + 2], 0
  bc 00 7c           mov sp, 0x7c00
  66 b8 10 00 00 80  mov eax, 0x80000010
  0f 22 c0           mov cr0, eax | CR_ACCESS mov cr0 <- 80000010 | kernel #GP
on_gp:
  f4                 hlt          | HLT                           | KVM_EXIT_HLT
"""


def test_protected_mode(machine: MakeMachine) -> None:
    assert annotate(PROTECTED, machine(irqchip=False)) == tidy(PROTECTED)


def test_lmsw(machine: MakeMachine) -> None:
    assert annotate(LMSW, machine(irqchip=False)) == tidy(LMSW)


def test_long_mode(machine: MakeMachine) -> None:
    assert annotate(LONG, machine(irqchip=False)) == tidy(LONG)


def test_what_the_processor_would_refuse_the_kernel_refuses(machine: MakeMachine) -> None:
    assert annotate(RESERVED, machine(irqchip=False)) == tidy(RESERVED)
