"""RDMSR and WRMSR: the MSR bitmap lets a few through, the kernel answers the rest or raises #GP."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

KNOWN = """
; run: --mode long --load-address 0x100000
; FS_BASE is the guest's own, as in Linux: no exit
  bytes           guest         | VM exit                             | ends in
  b9 80 00 00 c0  mov ecx, 0xc0000080
  0f 32           rdmsr         | MSR_READ 0xc0000080                 | kernel
  0f 30           wrmsr         | MSR_WRITE 0xc0000080 <- d00         | kernel
  b9 00 01 00 c0  mov ecx, 0xc0000100
  b8 78 56 34 12  mov eax, 0x12345678
  31 d2           xor edx, edx
  0f 30           wrmsr
  31 c0           xor eax, eax
  0f 32           rdmsr
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 12345678 | KVM_EXIT_IO out 0x80 <- 12345678
  b9 1b 00 00 00  mov ecx, 0x1b
  0f 32           rdmsr         | MSR_READ 0x1b                       | kernel
  b9 77 02 00 00  mov ecx, 0x277
  0f 32           rdmsr         | MSR_READ 0x277                      | kernel
  0f 30           wrmsr         | MSR_WRITE 0x277 <- 7040600070406    | kernel
  e6 f4           out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- 06       | KVM_EXIT_IO out 0xf4 <- 06
"""

UNKNOWN = """
; run: --mode real --load-address 0x7c00
  bytes              guest        | VM exit                          | ends in
  c7 06 34 00 1a 7c  mov word ptr [13 * 4], offset on_gp
  c7 06 36 00 00 00  mov word ptr [13 * 4 + 2], 0
  bc 00 7c           mov sp, 0x7c00
  66 b9 45 23 01 00  mov ecx, 0x12345
  0f 32              rdmsr        | MSR_READ 0x12345                 | kernel #GP
  0f 30              wrmsr        | MSR_WRITE 0x12345 <- 47          | kernel #GP
  f4                 hlt          | HLT                              | KVM_EXIT_HLT
on_gp:
  b0 47              mov al, 'G'
  e6 80              out 0x80, al | IO_INSTRUCTION out 0x80 <- 47 x2 | KVM_EXIT_IO out 0x80 <- 47
  5b                 pop bx
  83 c3 02           add bx, 2
  53                 push bx
  cf                 iret
"""


def test_known_ones(machine: MakeMachine) -> None:
    assert annotate(KNOWN, machine(irqchip=False)) == tidy(KNOWN)


def test_unknown_ones_are_the_guests_fault(machine: MakeMachine) -> None:
    assert annotate(UNKNOWN, machine(irqchip=False)) == tidy(UNKNOWN)
