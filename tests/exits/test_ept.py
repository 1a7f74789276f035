"""EPT violations: guest-physical memory that nobody backs is userspace's business, as MMIO."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

PROTECTED = """
; run: --mode protected --load-address 0x100000
  bytes              guest                         | VM exit                        | ends in
  bb b0 00 e0 fe     mov ebx, 0xfee000b0
  c7 03 00 00 00 00  mov dword ptr [ebx], 0        | EPT_VIOLATION write 0xfee000b0 | KVM_EXIT_MMIO write 0xfee000b0 <- 00000000
  8b 03              mov eax, dword ptr [ebx]      | EPT_VIOLATION read 0xfee000b0  | KVM_EXIT_MMIO read 0xfee000b0
  a2 00 00 00 d0     mov byte ptr [0xd0000000], al | EPT_VIOLATION write 0xd0000000 | KVM_EXIT_MMIO write 0xd0000000 <- ff
  a3 00 00 09 00     mov dword ptr [0x90000], eax
  e6 f4              out 0xf4, al                  | IO_INSTRUCTION out 0xf4 <- ff  | KVM_EXIT_IO out 0xf4 <- ff
"""

ACROSS_TWO_PAGES = """
; run: --mode protected --load-address 0x100000
; an access is cut at 8 bytes and at page borders
  bytes              guest                           | VM exit                             | ends in
  bb fe 0f 00 d0     mov ebx, 0xd0000ffe
  c7 03 11 22 33 44  mov dword ptr [ebx], 0x44332211 | EPT_VIOLATION write 0xd0000ffe      | KVM_EXIT_MMIO write 0xd0000ffe <- 2211, KVM_EXIT_MMIO write 0xd0001000 <- 4433
  8b 03              mov eax, dword ptr [ebx]        | EPT_VIOLATION read 0xd0000ffe       | KVM_EXIT_MMIO read 0xd0000ffe, KVM_EXIT_MMIO read 0xd0001000
  e7 80              out 0x80, eax                   | IO_INSTRUCTION out 0x80 <- ffffffff | KVM_EXIT_IO out 0x80 <- ffffffff
  e6 f4              out 0xf4, al                    | IO_INSTRUCTION out 0xf4 <- ff       | KVM_EXIT_IO out 0xf4 <- ff
"""

COPY = """
; run: --mode protected --load-address 0x100000
; from MMIO to MMIO: one EPT violation, a read and a write
  bytes           guest        | VM exit                       | ends in
  be 00 00 00 d0  mov esi, 0xd0000000
  bf 00 10 00 d0  mov edi, 0xd0001000
  a5              movsd        | EPT_VIOLATION read 0xd0000000 | KVM_EXIT_MMIO read 0xd0000000, KVM_EXIT_MMIO write 0xd0001000 <- ffffffff
  e6 f4           out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00 | KVM_EXIT_IO out 0xf4 <- 00
"""

LONG = """
; run: --mode long --load-address 0x100000
  bytes                          guest                         | VM exit                        | ends in
  bb 00 00 00 d0                 mov ebx, 0xd0000000
  48 b8 88 77 66 55 44 33 22 11  mov rax, 0x1122334455667788
  48 89 03                       mov qword ptr [rbx], rax      | EPT_VIOLATION write 0xd0000000 | KVM_EXIT_MMIO write 0xd0000000 <- 1122334455667788
  48 8b 03                       mov rax, qword ptr [rbx]      | EPT_VIOLATION read 0xd0000000  | KVM_EXIT_MMIO read 0xd0000000
  0f b6 4b 08                    movzx ecx, byte ptr [rbx + 8] | EPT_VIOLATION read 0xd0000008  | KVM_EXIT_MMIO read 0xd0000008
  e6 f4                          out 0xf4, al                  | IO_INSTRUCTION out 0xf4 <- ff  | KVM_EXIT_IO out 0xf4 <- ff
"""

FETCH = """
; run: --mode protected --load-address 0x100000
; nothing can be emulated that cannot be read
  bytes           guest | VM exit | ends in
  b8 00 00 00 d0  mov eax, 0xd0000000
  ff e0           jmp eax
"""


def test_protected_mode(machine: MakeMachine) -> None:
    assert annotate(PROTECTED, machine(irqchip=False)) == tidy(PROTECTED)


def test_across_two_pages(machine: MakeMachine) -> None:
    assert annotate(ACROSS_TWO_PAGES, machine(irqchip=False)) == tidy(ACROSS_TWO_PAGES)


def test_copy(machine: MakeMachine) -> None:
    assert annotate(COPY, machine(irqchip=False)) == tidy(COPY)


def test_long_mode(machine: MakeMachine) -> None:
    assert annotate(LONG, machine(irqchip=False)) == tidy(LONG)


def test_a_jump_into_nothing(machine: MakeMachine) -> None:
    guest = machine(irqchip=False)
    assert annotate(FETCH, guest) == tidy(FETCH)
