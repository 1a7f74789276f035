"""CPUID always exits, in every mode, and never leaves the kernel."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

REAL = """
; the vendor's first four letters go to port 0x80
  bytes              guest         | VM exit                             | ends in
  66 31 c0           xor eax, eax
  0f a2              cpuid         | CPUID                               | kernel
  66 89 d8           mov eax, ebx
  66 e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 756e6547 | KVM_EXIT_IO out 0x80 <- 756e6547
  66 b8 00 00 00 40  mov eax, 0x40000000
  0f a2              cpuid         | CPUID                               | kernel
  66 b8 01 00 00 00  mov eax, 1
  0f a2              cpuid         | CPUID                               | kernel
  e6 f4              out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- c3       | KVM_EXIT_IO out 0xf4 <- c3
"""

PROTECTED = """
; run: --mode protected --load-address 0x100000
  bytes           guest        | VM exit                       | ends in
  bf 03 00 00 00  mov edi, 3
again:
  b8 01 00 00 80  mov eax, 0x80000001
  0f a2           cpuid        | CPUID x3                      | kernel
  4f              dec edi
  75 f6           jnz again
  e6 f4           out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00 | KVM_EXIT_IO out 0xf4 <- 00
"""

LONG = """
; run: --mode long --load-address 0x100000
; the upper halves of all four registers become 0
  bytes                          guest        | VM exit                       | ends in
  48 b8 00 00 00 00 44 55 66 77  mov rax, 0x7766554400000000
  0f a2                          cpuid        | CPUID                         | kernel
  48 c1 e8 20                    shr rax, 32
  e6 80                          out 0x80, al | IO_INSTRUCTION out 0x80 <- 00 | KVM_EXIT_IO out 0x80 <- 00
  e6 f4                          out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00 | KVM_EXIT_IO out 0xf4 <- 00
"""


def test_real_mode(machine: MakeMachine) -> None:
    assert annotate(REAL, machine(irqchip=False)) == tidy(REAL)


def test_protected_mode(machine: MakeMachine) -> None:
    assert annotate(PROTECTED, machine(irqchip=False)) == tidy(PROTECTED)


def test_long_mode(machine: MakeMachine) -> None:
    assert annotate(LONG, machine(irqchip=False)) == tidy(LONG)
