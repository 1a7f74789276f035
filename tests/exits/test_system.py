"""System instructions: those KVM never sees, those it emulates, and those it gives back as #UD."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

NO_EXITS = """
; run: --mode protected --load-address 0x100000
; with KVM's controls the processor does all of these by itself
  bytes                 guest        | VM exit                       | ends in
  0f 01 05 00 80 00 00  sgdt [0x8000]
  0f 01 0d 08 80 00 00  sidt [0x8008]
  0f 01 1d 08 80 00 00  lidt [0x8008]
  66 0f 00 c0           sldt ax
  66 0f 00 c8           str ax
  66 0f 01 e0           smsw ax
  0f 20 c0              mov eax, cr0
  0f 20 d0              mov eax, cr2
  0f 20 d8              mov eax, cr3
  0f 22 d8              mov cr3, eax
  0f 20 e0              mov eax, cr4
  0f 01 3d 00 80 00 00  invlpg [0x8000]
  0f 31                 rdtsc
  0f 01 f9              rdtscp
  0f c7 f0              rdrand eax
  0f c7 f9              rdseed ecx
  f3 90                 pause
  0f 06                 clts
  9c                    pushfd
  9d                    popfd
  0f ae e8              lfence
  31 c0                 xor eax, eax
  e6 f4                 out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00 | KVM_EXIT_IO out 0xf4 <- 00
"""

IN_THE_KERNEL = """
; run: --mode protected --load-address 0x100000
; caches, sleeping and debug registers: KVM does nothing, or does it for the guest
  bytes           guest         | VM exit                             | ends in
  0f 08           invd          | INVD                                | kernel
  0f 09           wbinvd        | WBINVD                              | kernel
  31 c9           xor ecx, ecx
  31 d2           xor edx, edx
  b8 00 80 00 00  mov eax, 0x8000
  0f 01 c8        monitor       | MONITOR_INSTRUCTION                 | kernel
  31 c0           xor eax, eax
  0f 01 c9        mwait         | MWAIT_INSTRUCTION                   | kernel
  b8 34 12 00 00  mov eax, 0x1234
  0f 23 c0        mov dr0, eax  | DR_ACCESS mov dr0 <-                | kernel
  0f 21 c3        mov ebx, dr0
  39 c3           cmp ebx, eax
  75 0c           jne wrong
  b8 05 00 00 00  mov eax, 5
  0f 01 c1        vmcall        | VMCALL                              | kernel
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- fffffc18 | KVM_EXIT_IO out 0x80 <- fffffc18
  e6 f4           out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- 18       | KVM_EXIT_IO out 0xf4 <- 18
wrong:
  f4              hlt
"""

UNDEFINED = """
; run: --mode real --load-address 0x7c00
; real mode has no VMX instructions, and RSM is for SMM. VMLAUNCH, VMCLEAR and RSM, each 4 bytes
; long with the NOPs behind it; the handler counts them and goes on behind them
  bytes              guest                        | VM exit                       | ends in
  c7 06 18 00 19 7c  mov word ptr [6 * 4], offset on_ud
  bc 00 7c           mov sp, 0x7c00
  0f 01 c2 90        .byte 0x0f, 0x01, 0xc2, 0x90 | EXCEPTION_NMI #UD             | kernel #UD
  66 0f c7 37        .byte 0x66, 0x0f, 0xc7, 0x37 | EXCEPTION_NMI #UD             | kernel #UD
  0f aa 90 90        .byte 0x0f, 0xaa, 0x90, 0x90 | EXCEPTION_NMI #UD             | kernel #UD
  88 d8              mov al, bl
  e6 f4              out 0xf4, al                 | IO_INSTRUCTION out 0xf4 <- 03 | KVM_EXIT_IO out 0xf4 <- 03
on_ud:
  43                 inc bx
  58                 pop ax
  83 c0 04           add ax, 4
  50                 push ax
  cf                 iret
"""

NESTED = """
; run: --mode protected --load-address 0x100000
; in protected mode they have exit reasons of their own; without an IDT that ends the guest
  bytes     guest  | VM exit             | ends in
  0f 01 c4  vmxoff | VMOFF, TRIPLE_FAULT | kernel #UD, KVM_EXIT_SHUTDOWN
"""


def test_what_kvm_never_sees(machine: MakeMachine) -> None:
    assert annotate(NO_EXITS, machine(irqchip=False)) == tidy(NO_EXITS)


def test_what_the_kernel_does_itself(machine: MakeMachine) -> None:
    assert annotate(IN_THE_KERNEL, machine(irqchip=False)) == tidy(IN_THE_KERNEL)


def test_what_is_undefined_for_this_guest(machine: MakeMachine) -> None:
    assert annotate(UNDEFINED, machine(irqchip=False)) == tidy(UNDEFINED)


def test_vmx_instructions_have_reasons_of_their_own(machine: MakeMachine) -> None:
    assert annotate(NESTED, machine(irqchip=False)) == tidy(NESTED)
