"""Every instruction the engine hands up: bytes in, one trap out, nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.cpu.interface import OPTIONAL_KINDS
from vmxsim.cpu.traps import ExceptionTrap, InsnTrap, IoTrap, MemoryTrap, TrapKind

Start = Callable[..., UnicornCpu]

# kind, bytes in real mode, in protected mode, in long mode ("" where it does not exist)
INSTRUCTIONS = [
    ("CPUID", "0fa2", "0fa2", "0fa2"),
    ("HLT", "f4", "f4", "f4"),
    ("INVD", "0f08", "0f08", "0f08"),
    ("WBINVD", "0f09", "0f09", "0f09"),
    ("INVLPG", "670f013b", "0f013b", "0f013b"),
    ("INVPCID", "67660f388203", "660f388203", "660f388203"),
    ("RDPMC", "0f33", "0f33", "0f33"),
    ("RDTSC", "0f31", "0f31", "0f31"),
    ("RDTSCP", "0f01f9", "0f01f9", "0f01f9"),
    ("RDRAND", "660fc7f0", "0fc7f0", "480fc7f0"),
    ("RDSEED", "660fc7f8", "0fc7f8", "480fc7f8"),
    ("RDMSR", "0f32", "0f32", "0f32"),
    ("WRMSR", "0f30", "0f30", "0f30"),
    ("MOV_TO_CR", "0f22c0", "0f22d8", "0f22e0"),
    ("MOV_TO_CR", "", "", "440f22c0"),
    ("MOV_FROM_CR", "0f20e0", "0f20e0", "0f20e0"),
    ("MOV_FROM_CR", "0f20c0", "0f20d8", "440f20c0"),
    ("CLTS", "0f06", "0f06", "0f06"),
    ("LMSW", "0f01f0", "0f01f0", "0f01f0"),
    ("SMSW", "0f01e0", "0f01e0", "0f01e0"),
    ("MOV_DR", "0f23c0", "0f21f8", "0f21f8"),
    ("LGDT", "670f0113", "0f0113", "0f0113"),
    ("LIDT", "670f011b", "0f011b", "0f011b"),
    ("SGDT", "670f0103", "0f0103", "0f0103"),
    ("SIDT", "670f010b", "0f010b", "0f010b"),
    ("LLDT", "", "0f00d0", "0f00d0"),
    ("LTR", "", "0f00d8", "0f00d8"),
    ("SLDT", "", "0f00c0", "0f00c0"),
    ("STR", "", "0f00c8", "0f00c8"),
    ("MONITOR", "0f01c8", "0f01c8", "0f01c8"),
    ("MWAIT", "0f01c9", "0f01c9", "0f01c9"),
    ("PAUSE", "f390", "f390", "f390"),
    ("XSETBV", "0f01d1", "0f01d1", "0f01d1"),
    ("XGETBV", "0f01d0", "0f01d0", "0f01d0"),
    ("VMCALL", "0f01c1", "0f01c1", "0f01c1"),
    ("VMCLEAR", "67660fc733", "660fc733", "660fc733"),
    ("VMLAUNCH", "0f01c2", "0f01c2", "0f01c2"),
    ("VMPTRLD", "670fc733", "0fc733", "0fc733"),
    ("VMPTRST", "670fc73b", "0fc73b", "0fc73b"),
    ("VMREAD", "0f78d8", "0f78d8", "0f78d8"),
    ("VMRESUME", "0f01c3", "0f01c3", "0f01c3"),
    ("VMWRITE", "0f79c3", "0f79c3", "0f79c3"),
    ("VMXOFF", "0f01c4", "0f01c4", "0f01c4"),
    ("VMXON", "67f30fc733", "f30fc733", "f30fc733"),
    ("INVEPT", "660f388007", "660f388003", "660f388003"),
    ("INVVPID", "67660f388103", "660f388103", "660f388103"),
    ("VMFUNC", "0f01d4", "0f01d4", "0f01d4"),
    ("RSM", "0faa", "0faa", "0faa"),
    ("INT_N", "cd21", "cd21", "cd80"),
    ("INT3", "cc", "cc", "cc"),
    ("ICEBP", "f1", "f1", "f1"),
    ("SYSCALL", "", "0f05", "0f05"),
    ("SYSENTER", "", "0f34", "0f34"),
    ("XSAVES", "", "0fc72b", "480fc72b"),
    ("XRSTORS", "", "0fc71b", "480fc71b"),
    ("CMPXCHG8B", "670fc70b", "0fc70b", "0fc70b"),
    ("CMPXCHG8B", "", "f00fc70b", "f0480fc70b"),
    ("GETSEC", "0f37", "0f37", "0f37"),
    ("RDPID", "", "f30fc7f8", "f30fc7f8"),
    ("ENCLS", "0f01cf", "0f01cf", "0f01cf"),
]
ROWS = [
    pytest.param(bits, TrapKind[name], code, id=f"{name}-{bits}-{code}")
    for name, *codes in INSTRUCTIONS
    for bits, code in zip((16, 32, 64), codes, strict=True)
    if code
]


@pytest.mark.parametrize(("bits", "kind", "code"), ROWS)
def test_an_instruction_traps_before_it_has_any_effect(
    start: Start, bits: int, kind: TrapKind, code: str
) -> None:
    cpu = start(bits, "31c0" + code)  # xor eax, eax first: it must not be the first of its block
    cpu.arm(OPTIONAL_KINDS)
    for number in (0, 2, 3):
        cpu.gpr[number] = 0x1111 * (number + 1)
    before = list(cpu.gpr), cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpu.gdtr, cpu.idtr
    trap = cpu.run()
    assert isinstance(trap, InsnTrap)
    assert (trap.kind, trap.rip, trap.insn.length) == (kind, 0x1002, len(code) // 2)
    assert trap.insn.bits == bits
    assert cpu.rip == 0x1002
    before[0][0] &= ~0xFFFF if bits == 16 else ~0xFFFFFFFF_FFFFFFFF
    assert (list(cpu.gpr), cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpu.gdtr, cpu.idtr) == before
    assert cpu.rflags & 0x40


@pytest.mark.parametrize(
    ("bits", "code"),
    [(bits, code) for bits in (16, 32, 64) for code in ("f390", "0f20c0", "0f01e0", "670f0103")],
)
def test_what_nobody_asked_for_runs_natively(start: Start, bits: int, code: str) -> None:
    cpu = start(bits, code + "f4")
    cpu.gpr[3] = 0x8000
    trap = cpu.run()
    assert (trap.kind, trap.rip) == (TrapKind.HLT, 0x1000 + len(code) // 2)


PORTS = [
    ("e460", True, 0x60, 1, False, False),
    ("ec", True, 0x3F8, 1, False, False),
    ("e680", False, 0x80, 1, False, False),
    ("ee", False, 0x3F8, 1, False, False),
    ("6c", True, 0x3F8, 1, True, False),
    ("f36c", True, 0x3F8, 1, True, True),
    ("6e", False, 0x3F8, 1, True, False),
    ("f36e", False, 0x3F8, 1, True, True),
]


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(("code", "is_in", "port", "size", "string", "rep"), PORTS)
def test_in_and_out_trap_exactly_on_the_instruction(
    start: Start, bits: int, code: str, is_in: bool, port: int, size: int, string: bool, rep: bool
) -> None:
    cpu = start(bits, code + "43" * 4 + "f4")
    cpu.gpr[0], cpu.gpr[1], cpu.gpr[2], cpu.gpr[6], cpu.gpr[7] = 0x77, 3, 0x3F8, 0x8000, 0x8010
    before = list(cpu.gpr)
    trap = cpu.run()
    assert isinstance(trap, IoTrap)
    assert trap[3:6] == (is_in, port, size)
    assert (trap.string, trap.rep) == (string, rep)
    assert trap.value == (0x77 if not is_in and not string else 0)
    assert (list(cpu.gpr), cpu.rip) == (before, 0x1000)
    cpu.rip += trap.insn.length
    assert cpu.run().kind is TrapKind.HLT


def test_every_size_of_port_access(start: Start) -> None:
    cpu = start(32, "ef66efee" + "f4")  # out dx, eax; out dx, ax; out dx, al
    cpu.gpr[0], cpu.gpr[2] = 0x11223344, 0x1F0
    seen = []
    for _ in range(3):
        trap = cpu.run()
        assert isinstance(trap, IoTrap)
        seen.append((trap.size, trap.value))
        cpu.rip += trap.insn.length
    assert seen == [(4, 0x11223344), (2, 0x3344), (1, 0x44)]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_exceptions_never_pile_up(start: Start, bits: int) -> None:
    cpu = start(bits, "0f0b" * 4)  # ud2
    for i in range(4):
        trap = cpu.run()
        assert isinstance(trap, ExceptionTrap)
        assert (trap.vector, trap.rip, cpu.rip) == (6, 0x1000 + 2 * i, 0x1000 + 2 * i)
        cpu.rip += 2


def test_divide_error(start: Start) -> None:
    cpu = start(32, "b300f6f3")  # mov bl, 0; div bl
    trap = cpu.run()
    assert isinstance(trap, ExceptionTrap)
    assert (trap.vector, trap.error_code, cpu.rip) == (0, 0, 0x1002)


def test_page_fault_has_address_and_code_and_leaves_cr2(start: Start) -> None:
    cpu = start(64, "48b80000008000000000" + "4889184889c3")  # mov rax, 2G; mov [rax], rbx
    cpu.cr2 = 0x1234
    trap = cpu.run()
    assert isinstance(trap, ExceptionTrap)
    assert (trap.vector, trap.error_code, trap.address) == (14, 2, 0x80000000)
    assert (cpu.rip, cpu.cr2) == (0x100A, 0x1234)


@pytest.mark.parametrize(
    ("code", "error_code"),
    [
        ("8b18", 0),  # mov ebx, [rax]
        ("0318", 0),  # add ebx, [rax]
        ("0118", 2),  # add [rax], ebx
        ("ff00", 2),  # inc dword [rax]
        ("f00fc118", 2),  # lock xadd [rax], ebx
        ("3918", 0),  # cmp [rax], ebx
    ],
)
def test_page_fault_of_one_who_reads_in_order_to_write(
    start: Start, code: str, error_code: int
) -> None:
    cpu = start(64, "48b80000008000000000" + code)  # mov rax, 2G
    trap = cpu.run()
    assert isinstance(trap, ExceptionTrap)
    assert (trap.vector, trap.error_code, trap.rip) == (14, error_code, 0x100A)


def test_sse_without_osfxsr_is_undefined_even_when_the_fpu_is_away(start: Start) -> None:
    cpu = start(64, "0f58c1")  # addps xmm0, xmm1
    cpu.cr0 |= 8
    vectors = []
    for cr4 in (cpu.cr4, cpu.cr4 & ~0x200):
        cpu.cr4 = cr4
        trap = cpu.run()
        assert isinstance(trap, ExceptionTrap)
        vectors.append(trap.vector)
    assert vectors == [7, 6]


def test_sysret_does_not_exist_in_real_mode(start: Start) -> None:
    trap = start(16, "0f07").run()
    assert isinstance(trap, ExceptionTrap)
    assert (trap.vector, trap.error_code) == (6, 0)


def test_single_step_is_a_debug_trap_behind_the_instruction(start: Start) -> None:
    cpu = start(32, "404040")
    cpu.rflags |= 0x100
    trap = cpu.run()
    assert isinstance(trap, ExceptionTrap)
    assert (trap.vector, trap.address, cpu.rip, cpu.gpr[0]) == (1, 0x4000, 0x1001, 1)


ACCESSES = [
    ("891d00002000", 1),  # mov [0x200000], ebx
    ("8b1d00002000", 0),  # mov ebx, [0x200000]
    ("ff0500002000", 0),  # inc dword [0x200000]: the read comes first
    ("bf00002000ab", 1),  # mov edi, 0x200000; stosd
]


@pytest.mark.parametrize(("code", "access"), ACCESSES)
def test_access_to_nothing_traps_before_it_has_any_effect(
    start: Start, code: str, access: int
) -> None:
    cpu = start(32, "41" + code + "42f4")  # inc ecx first, inc edx after: that must not run
    cpu.gpr[2] = 0
    trap = cpu.run()
    assert isinstance(trap, MemoryTrap)
    assert (trap.gpa, trap.size, trap.access, trap.present) == (0x200000, 4, access, False)
    assert trap.gva == 0x200000
    assert trap.rip == cpu.rip == (0x1006 if code.startswith("bf") else 0x1001)
    assert (cpu.gpr[1], cpu.gpr[2]) == (1, 0)


def test_fetch_from_nothing(start: Start) -> None:
    cpu = start(32, "b800002000ffe0")  # mov eax, 0x200000; jmp eax
    trap = cpu.run()
    assert isinstance(trap, MemoryTrap)
    assert (trap.gpa, trap.access, trap.gva, cpu.rip) == (0x200000, 2, 0x200000, 0x200000)


def test_read_only_memory(start: Start) -> None:
    cpu = start(32, "a100002000a300002000f4")  # mov eax, [0x200000]; mov [0x200000], eax
    rom = bytearray(b"\x11\x22\x33\x44" + bytes(4092))
    cpu.memory.map(0x200000, rom, readonly=True)
    trap = cpu.run()
    assert isinstance(trap, MemoryTrap)
    assert (trap.gpa, trap.access, trap.present, cpu.rip) == (0x200000, 1, True, 0x1005)
    assert cpu.gpr[0] == 0x44332211
    assert rom[:4] == b"\x11\x22\x33\x44"


def test_a_guest_page_table_in_any_memory_is_walked(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(64, "488b042500c01f00f4", ram)  # mov rax, [0x1fc000]
    cpu.memory.map(0x1FF000, bytearray(4096))
    trap = cpu.run()
    assert isinstance(trap, MemoryTrap)
    assert trap.gpa == 0x1FC000


@pytest.mark.parametrize("code", ["f00fa2", "f0ec", "f00f22c0", "f00f01c1"])
def test_a_lock_prefix_makes_it_undefined(start: Start, code: str) -> None:
    cpu = start(32, code)
    trap = cpu.run()
    assert isinstance(trap, ExceptionTrap)
    assert (trap.vector, trap.rip, cpu.rip) == (6, 0x1000, 0x1000)
