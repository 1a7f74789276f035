"""IN, OUT, INS, OUTS: which ports the kernel answers, and what userspace is told of the others."""
# ruff: noqa: E501  (a listing is as wide as its columns)

from vmxsim.tools.listing import annotate, tidy

from . import MakeMachine

IO_AND_CPUID = """
  bytes     guest        | VM exit                          | ends in
  b0 20     mov al, 0x20
  e6 20     out 0x20, al | IO_INSTRUCTION out 0x20 <- 20    | kernel
  0f a2     cpuid        | CPUID                            | kernel
  b9 03 00  mov cx, 3
  b0 2e     mov al, '.'
again:
  e6 80     out 0x80, al | IO_INSTRUCTION out 0x80 <- 2e x3 | KVM_EXIT_IO out 0x80 <- 2e
  e2 fc     loop again
  e6 f4     out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 2e    | KVM_EXIT_IO out 0xf4 <- 2e
"""

KERNEL_PORTS = """
; the interrupt controllers, the timer, the speaker: in the kernel, if it has an irqchip
  bytes     guest        | VM exit                       | ends in
  e4 20     in al, 0x20  | IO_INSTRUCTION in 0x20        | kernel
  e4 21     in al, 0x21  | IO_INSTRUCTION in 0x21        | kernel
  e4 a0     in al, 0xa0  | IO_INSTRUCTION in 0xa0        | kernel
  e4 a1     in al, 0xa1  | IO_INSTRUCTION in 0xa1        | kernel
  e4 40     in al, 0x40  | IO_INSTRUCTION in 0x40        | kernel
  e4 42     in al, 0x42  | IO_INSTRUCTION in 0x42        | kernel
  e4 61     in al, 0x61  | IO_INSTRUCTION in 0x61        | kernel
  ba d0 04  mov dx, 0x4d0
  ec        in al, dx    | IO_INSTRUCTION in 0x4d0       | kernel
  42        inc dx
  ec        in al, dx    | IO_INSTRUCTION in 0x4d1       | kernel
  b0 36     mov al, 0x36
  e6 43     out 0x43, al | IO_INSTRUCTION out 0x43 <- 36 | kernel
  e4 60     in al, 0x60  | IO_INSTRUCTION in 0x60        | KVM_EXIT_IO in 0x60
  e6 f4     out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00 | KVM_EXIT_IO out 0xf4 <- 00
"""

WITHOUT_IRQCHIP = """
  bytes  guest        | VM exit                       | ends in
  b0 20  mov al, 0x20
  e6 20  out 0x20, al | IO_INSTRUCTION out 0x20 <- 20 | KVM_EXIT_IO out 0x20 <- 20
  e4 61  in al, 0x61  | IO_INSTRUCTION in 0x61        | KVM_EXIT_IO in 0x61
  e6 f4  out 0xf4, al | IO_INSTRUCTION out 0xf4 <- ff | KVM_EXIT_IO out 0xf4 <- ff
"""

SIZES = """
; run: --mode protected --load-address 0x100000
  bytes           guest         | VM exit                               | ends in
  b8 44 33 22 11  mov eax, 0x11223344
  e6 80           out 0x80, al  | IO_INSTRUCTION out 0x80 <- 44         | KVM_EXIT_IO out 0x80 <- 44
  66 e7 80        out 0x80, ax  | IO_INSTRUCTION out 0x80 <- 3344       | KVM_EXIT_IO out 0x80 <- 3344
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- 11223344   | KVM_EXIT_IO out 0x80 <- 11223344
  ba 34 12 00 00  mov edx, 0x1234
  ee              out dx, al    | IO_INSTRUCTION out 0x1234 <- 44       | KVM_EXIT_IO out 0x1234 <- 44
  66 ef           out dx, ax    | IO_INSTRUCTION out 0x1234 <- 3344     | KVM_EXIT_IO out 0x1234 <- 3344
  ef              out dx, eax   | IO_INSTRUCTION out 0x1234 <- 11223344 | KVM_EXIT_IO out 0x1234 <- 11223344
  e4 80           in al, 0x80   | IO_INSTRUCTION in 0x80                | KVM_EXIT_IO in 0x80
  66 ed           in ax, dx     | IO_INSTRUCTION in 0x1234              | KVM_EXIT_IO in 0x1234
  ed              in eax, dx    | IO_INSTRUCTION in 0x1234              | KVM_EXIT_IO in 0x1234
  e7 80           out 0x80, eax | IO_INSTRUCTION out 0x80 <- ffffffff   | KVM_EXIT_IO out 0x80 <- ffffffff
  e6 f4           out 0xf4, al  | IO_INSTRUCTION out 0xf4 <- ff         | KVM_EXIT_IO out 0xf4 <- ff
"""

STRINGS = """
; run: --mode real --load-address 0x7c00
; OUTS goes out one element at a time; INS comes back in one piece
  bytes                    guest        | VM exit                                          | ends in
  be 27 7c                 mov si, offset text
  bf 2e 7c                 mov di, offset room
  ba 34 12                 mov dx, 0x1234
  6e                       outsb        | IO_INSTRUCTION outs 0x1234 <- 61                 | KVM_EXIT_IO out 0x1234 <- 61
  6f                       outsw        | IO_INSTRUCTION outs 0x1234 <- 6362               | KVM_EXIT_IO out 0x1234 <- 6362
  b9 04 00                 mov cx, 4
  f3 6e                    rep outsb    | IO_INSTRUCTION rep outs 0x1234 <- 64 65 66 67 x4 | KVM_EXIT_IO out 0x1234 <- 64 65 66 67
  6c                       insb         | IO_INSTRUCTION ins 0x1234                        | KVM_EXIT_IO in 0x1234
  b9 03 00                 mov cx, 3
  f3 6c                    rep insb     | IO_INSTRUCTION rep ins 0x1234                    | KVM_EXIT_IO in 0x1234 *3
  b9 00 00                 mov cx, 0
  f3 6e                    rep outsb
  a0 31 7c                 mov al, byte ptr [room + 3]
  e6 80                    out 0x80, al | IO_INSTRUCTION out 0x80 <- ff                    | KVM_EXIT_IO out 0x80 <- ff
  a0 32 7c                 mov al, byte ptr [room + 4]
  e6 80                    out 0x80, al | IO_INSTRUCTION out 0x80 <- 00                    | KVM_EXIT_IO out 0x80 <- 00
  e6 f4                    out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 00                    | KVM_EXIT_IO out 0xf4 <- 00
text:
  61 62 63 64 65 66 67     .ascii "abcdefg"
room:
  00 00 00 00 00 00 00 00  .quad 0
"""

LONG_MODE = """
; run: --mode long --load-address 0x100000
  bytes                 guest        | VM exit                                   | ends in
  48 c7 c0 ff ff ff ff  mov rax, -1
  e5 80                 in eax, 0x80 | IO_INSTRUCTION in 0x80                    | KVM_EXIT_IO in 0x80
  ba f8 03 00 00        mov edx, 0x3f8
  b0 21                 mov al, '!'
  ee                    out dx, al   | IO_INSTRUCTION out 0x3f8 <- 21            | KVM_EXIT_IO out 0x3f8 <- 21
  48 8d 35 09 00 00 00  lea rsi, [rip + text]
  b9 02 00 00 00        mov ecx, 2
  f3 6e                 rep outsb    | IO_INSTRUCTION rep outs 0x3f8 <- 6f 6b x2 | KVM_EXIT_IO out 0x3f8 <- 6f 6b
  e6 f4                 out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 21             | KVM_EXIT_IO out 0xf4 <- 21
text:
  6f 6b                 .ascii "ok"
"""

SAME_PORT_DIFFERENT_VALUES = """
  bytes     guest        | VM exit                                      | ends in
  b9 06 00  mov cx, 6
again:
  88 c8     mov al, cl
  e6 80     out 0x80, al | IO_INSTRUCTION out 0x80 <- 06 05 04 03 .. x6 | KVM_EXIT_IO out 0x80 <- 06 05 04 03 ..
  e2 fa     loop again
  e6 f4     out 0xf4, al | IO_INSTRUCTION out 0xf4 <- 01                | KVM_EXIT_IO out 0xf4 <- 01
"""


def test_the_pic_is_in_the_kernel_and_port_80_is_not(machine: MakeMachine) -> None:
    assert annotate(IO_AND_CPUID, machine(irqchip=True)) == tidy(IO_AND_CPUID)


def test_ports_of_the_kernel(machine: MakeMachine) -> None:
    assert annotate(KERNEL_PORTS, machine(irqchip=True)) == tidy(KERNEL_PORTS)


def test_without_an_irqchip_the_kernel_has_no_ports(machine: MakeMachine) -> None:
    assert annotate(WITHOUT_IRQCHIP, machine(irqchip=False)) == tidy(WITHOUT_IRQCHIP)


def test_sizes(machine: MakeMachine) -> None:
    assert annotate(SIZES, machine(irqchip=False)) == tidy(SIZES)


def test_strings(machine: MakeMachine) -> None:
    assert annotate(STRINGS, machine(irqchip=False)) == tidy(STRINGS)


def test_long_mode(machine: MakeMachine) -> None:
    guest = machine(irqchip=False)
    assert annotate(LONG_MODE, guest) == tidy(LONG_MODE)
    assert guest.serial_output == b"!ok"


def test_values_that_differ_are_listed(machine: MakeMachine) -> None:
    listing = SAME_PORT_DIFFERENT_VALUES
    assert annotate(listing, machine(irqchip=False)) == tidy(listing)
