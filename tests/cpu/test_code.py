"""Code that changes under the engine: by the guest, by the host, through other mappings."""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.cpu.traps import InsnTrap, TrapKind

Start = Callable[..., UnicornCpu]


def rerun(cpu: UnicornCpu) -> TrapKind:
    cpu.rip = 0x1000
    return cpu.run().kind


def test_host_writes_through_memory_take_effect(start: Start) -> None:
    cpu = start(64, "90909090f4")
    assert rerun(cpu) is TrapKind.HLT
    cpu.memory.write(0x1002, b"\x0f\xa2")
    assert rerun(cpu) is TrapKind.CPUID


def test_host_writes_into_the_buffer_take_effect_at_the_next_check(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(64, "90909090f4", ram)
    assert rerun(cpu) is TrapKind.HLT
    cpu.code.seal()
    ram[0x1002:0x1004] = b"\x0f\xa2"
    cpu.code.check()
    assert rerun(cpu) is TrapKind.CPUID


def test_data_between_code_may_change_for_free(start: Start) -> None:
    # mov [0x1010], eax; jmp 0x1020 ... 0x1020: hlt
    code = "89042510100000" + "eb17" + "00" * 23 + "f4"
    ram = bytearray(1 << 20)
    cpu = start(64, code, ram)
    cpu.gpr[0] = 1
    assert rerun(cpu) is TrapKind.HLT
    cpu.code.seal()
    flushes = []
    cpu.code._flush = lambda: flushes.append(1)  # type: ignore[method-assign]
    ram[0x1010] = 99
    cpu.code.check()
    assert flushes == []


def test_the_guest_may_rewrite_itself(start: Start) -> None:
    # mov byte [0x1009], 0xf4; nop; nop -> hlt; ud2
    cpu = start(32, "c60509100000f49090" + "90" + "0f0b")
    trap = cpu.run()
    assert (trap.kind, trap.rip) == (TrapKind.HLT, 0x1009)


def test_a_site_is_decoded_again_when_its_bytes_change(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(64, "0fa2f4", ram)
    assert rerun(cpu) is TrapKind.CPUID
    cpu.memory.write(0x1000, b"\x0f\x31")
    assert rerun(cpu) is TrapKind.RDTSC


def test_the_same_rip_in_another_mode_is_another_instruction(start: Start) -> None:
    cpu = start(32, "48cd21")  # dec eax; int 0x21 -- or with REX.W, int 0x21
    first = cpu.run()
    assert isinstance(first, InsnTrap)
    assert (first.rip, first.insn.length) == (0x1001, 2)
    cpu = start(64, "48cd21")
    second = cpu.run()
    assert isinstance(second, InsnTrap)
    assert (second.rip, second.insn.length) == (0x1000, 3)


def test_first_block_of_an_engine_is_watched_too(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(64, "0fa2", ram)
    assert rerun(cpu) is TrapKind.CPUID
    cpu.code.seal()
    ram[0x1000:0x1001] = b"\xf4"
    cpu.code.check()
    assert rerun(cpu) is TrapKind.HLT


def test_a_data_page_becomes_code_and_changes_again(start: Start) -> None:
    """Stores to a page, a call into it, a store over the code, a call again."""
    # mov edi, 0x8000; mov byte [edi], 0x40; mov byte [edi+1], 0xc3; call edi (inc eax; ret);
    # mov byte [edi], 0x43; call edi (inc ebx; ret); hlt
    code = "bf00800000" + "c60740" + "c64701c3" + "ffd7" + "c60743" + "ffd7" + "f4"
    cpu = start(32, code)
    assert cpu.run().kind is TrapKind.HLT
    assert (cpu.gpr[0], cpu.gpr[3]) == (1, 1)


def test_switching_paging_on_lets_every_page_execute(start: Start) -> None:
    ram = bytearray(1 << 20)
    cpu = start(32, "f4", ram)
    assert cpu.run().kind is TrapKind.HLT
    ram[0x20000:0x20004] = (0x83).to_bytes(4, "little")  # one 4-MByte page, present, writable
    ram[0x8000] = 0xF4
    cpu.cr4 = 0x10
    cpu.cr3 = 0x20000
    cpu.cr0 = 0x80000011
    cpu.rip = 0x8000
    trap = cpu.run()
    assert (trap.kind, trap.rip) == (TrapKind.HLT, 0x8000)
