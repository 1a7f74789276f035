"""Modes and paging: what a guest does to get there exits; being there costs nothing."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

FIVE_LEVELS = """
; run: --mode protected --load-address 0x100000
; straight to 64-bit mode with LA57: PML5 0x10000, PML4 0x11000, PDPT 0x12000, directory 0x13000
  bytes                             guest         | VM exit                             | ends in
  c7 05 00 00 01 00 03 10 01 00     mov dword ptr [0x10000], 0x11003
  c7 05 00 10 01 00 03 20 01 00     mov dword ptr [0x11000], 0x12003
  c7 05 00 20 01 00 03 30 01 00     mov dword ptr [0x12000], 0x13003
  c7 05 00 30 01 00 83 00 00 00     mov dword ptr [0x13000], 0x000083
; the highest entry of the PML5 as well: a linear address with 57 bits
  c7 05 f8 0f 01 00 03 10 01 00     mov dword ptr [0x10ff8], 0x11003
  b8 00 00 01 00                    mov eax, 0x10000
  0f 22 d8                          mov cr3, eax
  b8 20 10 00 00                    mov eax, 0x1020              ; PAE, LA57
  0f 22 e0                          mov cr4, eax  | CR_ACCESS mov cr4 <- 1020           | kernel
  b9 80 00 00 c0                    mov ecx, 0xc0000080
  31 d2                             xor edx, edx
  b8 00 01 00 00                    mov eax, 0x100
  0f 30                             wrmsr         | MSR_WRITE 0xc0000080 <- 100         | kernel
  b8 11 00 00 80                    mov eax, 0x80000011
  0f 22 c0                          mov cr0, eax  | CR_ACCESS mov cr0 <- 80000011       | kernel
  0f 01 15 91 00 10 00              lgdt [gdt_pointer]
  ea 66 00 10 00 08 00              jmp 0x08:long
  .code64
long:
  48 bb 00 80 00 00 00 00 ff ff     mov rbx, 0xffff000000008000
  c7 04 25 00 80 00 00 34 12 00 00  mov dword ptr [0x8000], 0x1234
  8b 03                             mov eax, dword ptr [rbx]
  e7 80                             out 0x80, eax | IO_INSTRUCTION out 0x80 <- 00001234 | KVM_EXIT_IO out 0x80 <- 00001234
  e6 f4                             out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- 34       | KVM_EXIT_IO out 0xf4 <- 34
gdt:
  00 00 00 00 00 00 00 00           .quad 0
  ff ff 00 00 00 9a af 00           .quad 0x00af9a000000ffff
gdt_pointer:
  0f 00                             .word 0x0f
  81 00 10 00                       .long gdt
"""

PAGES_OF_4_MB_AND_USER_MODE = """
; run: --mode protected --load-address 0x100000
; 32-bit paging, ring 3, INT 0x30 back to ring 0: one exit for CR0, none for the rest
  bytes                          guest         | VM exit                             | ends in
  bc 00 00 09 00                 mov esp, 0x90000
  0f 01 15 da 00 10 00           lgdt [gdt_pointer]
  ea 13 00 10 00 08 00           jmp 0x08:loaded
loaded:
  b8 10 00 00 00                 mov eax, 0x10
  8e d0                          mov ss, eax
  c7 05 00 00 01 00 87 00 00 00  mov dword ptr [0x10000], 0x000087
  b8 10 00 00 00                 mov eax, 0x10                ; PSE
  0f 22 e0                       mov cr4, eax  | CR_ACCESS mov cr4 <- 10             | kernel
  b8 00 00 01 00                 mov eax, 0x10000
  0f 22 d8                       mov cr3, eax
  b8 11 00 00 80                 mov eax, 0x80000011
  0f 22 c0                       mov cr0, eax  | CR_ACCESS mov cr0 <- 80000011       | kernel
  c7 05 04 60 01 00 00 80 08 00  mov dword ptr [0x16004], 0x88000
  c7 05 08 60 01 00 10 00 00 00  mov dword ptr [0x16008], 0x10
  b8 28 00 00 00                 mov eax, 0x28
  0f 00 d8                       ltr ax
  b8 a0 00 10 00                 mov eax, offset back
  66 a3 80 51 01 00              mov word ptr [0x15180], ax
  c7 05 82 51 01 00 08 00 00 00  mov dword ptr [0x15182], 0x00000008
  66 c7 05 84 51 01 00 00 ee     mov word ptr [0x15184], 0xee00
  c1 e8 10                       shr eax, 16
  66 a3 86 51 01 00              mov word ptr [0x15186], ax
  0f 01 1d e0 00 10 00           lidt [idt_pointer]
  6a 1b                          push 0x1b
  68 00 00 08 00                 push 0x80000
  68 02 30 00 00                 push 0x3002                  ; IOPL 3
  6a 23                          push 0x23
  68 9a 00 10 00                 push offset user
  cf                             iretd
user:
  8c c8                          mov eax, cs
  e6 80                          out 0x80, al  | IO_INSTRUCTION out 0x80 <- 23       | KVM_EXIT_IO out 0x80 <- 23
  cd 30                          int 0x30
back:
  8c c8                          mov eax, cs
  e6 80                          out 0x80, al  | IO_INSTRUCTION out 0x80 <- 08       | KVM_EXIT_IO out 0x80 <- 08
  89 e0                          mov eax, esp
  e7 80                          out 0x80, eax | IO_INSTRUCTION out 0x80 <- 00087fec | KVM_EXIT_IO out 0x80 <- 00087fec
  e6 f4                          out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- ec       | KVM_EXIT_IO out 0xf4 <- ec
gdt:
  00 00 00 00 00 00 00 00        .quad 0
  ff ff 00 00 00 9a cf 00        .quad 0x00cf9a000000ffff    ; 0x08 kernel code
  ff ff 00 00 00 92 cf 00        .quad 0x00cf92000000ffff    ; 0x10 kernel data
  ff ff 00 00 00 f2 cf 00        .quad 0x00cff2000000ffff    ; 0x18 user data
  ff ff 00 00 00 fa cf 00        .quad 0x00cffa000000ffff    ; 0x20 user code
  67 00 00 60 01 89 00 00        .quad 0x0000890160000067    ; 0x28 TSS at 0x16000
gdt_pointer:
  2f 00                          .word 0x2f
  aa 00 10 00                    .long gdt
idt_pointer:
  ff 07                          .word 0x07ff
  00 50 01 00                    .long 0x15000
"""

NO_IO_FOR_USERS = """
; run: --mode long --load-address 0x100000
; at CPL 3 with IOPL 0 and no bitmap in the TSS: #GP comes before the exit, and there is no IDT
  bytes                                guest        | VM exit      | ends in
  48 c7 04 25 00 00 01 00 07 10 01 00  mov qword ptr [0x10000], 0x11007
  48 c7 04 25 00 10 01 00 07 20 01 00  mov qword ptr [0x11000], 0x12007
  48 c7 04 25 00 20 01 00 87 00 00 00  mov qword ptr [0x12000], 0x000087
  b8 00 00 01 00                       mov eax, 0x10000
  0f 22 d8                             mov cr3, rax
  0f 01 15 2f 00 00 00                 lgdt [rip + gdt_pointer]
  6a 0b                                push 0x0b
  68 00 00 08 00                       push 0x80000
  6a 02                                push 0x002
  6a 13                                push 0x13
  48 8d 05 03 00 00 00                 lea rax, [rip + user]
  50                                   push rax
  48 cf                                iretq
user:
  e6 80                                out 0x80, al | TRIPLE_FAULT | KVM_EXIT_SHUTDOWN
gdt:
  00 00 00 00 00 00 00 00              .quad 0
  ff ff 00 00 00 f2 cf 00              .quad 0x00cff2000000ffff    ; 0x08 user data
  ff ff 00 00 00 fa af 00              .quad 0x00affa000000ffff    ; 0x10 user code
gdt_pointer:
  17 00                                .word 0x17
  4a 00 10 00 00 00 00 00              .quad gdt
"""


def test_five_level_paging(machine: MakeMachine) -> None:
    assert annotate(FIVE_LEVELS, machine(irqchip=False)) == tidy(FIVE_LEVELS)


def test_large_pages_and_user_mode(machine: MakeMachine) -> None:
    listing = PAGES_OF_4_MB_AND_USER_MODE
    assert annotate(listing, machine(irqchip=False)) == tidy(listing)


def test_a_fault_comes_before_the_exit(machine: MakeMachine) -> None:
    assert annotate(NO_IO_FOR_USERS, machine(irqchip=False)) == tidy(NO_IO_FOR_USERS)
