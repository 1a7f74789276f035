"""MMIO: EPT violations become KVM_EXIT_MMIO in fragments, and instructions are finished later."""

from __future__ import annotations

import pytest

from vmxsim.arch.exit_reasons import ExitReason
from vmxsim.arch.registers import Cr0, Gpr, Rflags
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.errors import KvmError
from vmxsim.kvm import uapi
from vmxsim.probes import Probes
from vmxsim.vmx.records import VmExit

from .conftest import HLT, Everything, Guest

DEVICE = 0xE_0000
READ, WRITE, FETCH = 1, 2, 4


def violation(gpa: int = DEVICE, access: int = READ) -> VmExit:
    return VmExit(ExitReason.EPT_VIOLATION, access | 0x180, guest_physical_address=gpa)


@pytest.fixture
def flat(guest: Guest) -> Guest:
    """32-bit protected mode, flat, no paging, RBX at the device."""
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 = Cr0.PE | Cr0.ET
    for name in ("cs", "ds", "es", "ss"):
        segment = getattr(sregs, name)
        segment.base, segment.limit, segment.db, segment.g = 0, 0xFFFF_FFFF, 1, 1
    guest.vcpu.set_sregs(sregs)
    guest.gpr[Gpr.RBX] = DEVICE
    return guest


def code(guest: Guest, text: str) -> int:
    """Put code at RIP; its length."""
    data = bytes.fromhex(text)
    guest.ram[0x1000 : 0x1000 + len(data)] = data
    return len(data)


def test_a_read_asks_userspace_and_is_finished_by_the_next_run(flat: Guest) -> None:
    length = code(flat, "8b 03")  # mov eax, [ebx]
    assert flat.run(violation()) == uapi.KvmExitMmio(DEVICE, 4, None)
    assert flat.processor.rip == 0x1000
    flat.kvm_run.answer(b"\x78\x56\x34\x12")
    flat.run(HLT)
    assert flat.gpr[Gpr.RAX] == 0x1234_5678
    assert flat.processor.rip == 0x1000 + length + 1
    assert flat.vcpu.stat.mmio_exits == 1


def test_a_write_is_handed_out_with_the_instruction_done(flat: Guest) -> None:
    length = code(flat, "66 89 0b")  # mov [ebx], cx
    flat.gpr[Gpr.RCX] = 0xABCD
    assert flat.run(violation(access=WRITE)) == uapi.KvmExitMmio(DEVICE, 2, b"\xcd\xab")
    assert flat.processor.rip == 0x1000 + length
    flat.run(HLT)
    assert flat.processor.rip == 0x1000 + length + 1


def test_sixteen_bytes_are_two_fragments_each_way(flat: Guest) -> None:
    code(flat, "0f 10 0b")  # movups xmm1, [ebx]
    assert flat.run(violation()) == uapi.KvmExitMmio(DEVICE, 8, None)
    flat.kvm_run.answer(b"01234567")
    assert flat.run() == uapi.KvmExitMmio(DEVICE + 8, 8, None)
    flat.kvm_run.answer(b"89abcdef")
    flat.run(HLT)
    assert flat.processor.xmms[1] == b"0123456789abcdef"
    flat.processor.rip = 0x1000
    code(flat, "0f 11 0b")  # movups [ebx], xmm1
    assert flat.run(violation(access=WRITE)) == uapi.KvmExitMmio(DEVICE, 8, b"01234567")
    assert flat.run() == uapi.KvmExitMmio(DEVICE + 8, 8, b"89abcdef")
    flat.run(HLT)


def test_an_update_reads_and_then_writes(flat: Guest) -> None:
    code(flat, "80 0b 01")  # or byte [ebx], 1
    assert flat.run(violation(access=READ | WRITE)) == uapi.KvmExitMmio(DEVICE, 1, None)
    flat.kvm_run.answer(b"\x80")
    assert flat.run() == uapi.KvmExitMmio(DEVICE, 1, b"\x81")
    flat.run(HLT)
    assert flat.field(F.GUEST_RFLAGS) & (Rflags.SF | Rflags.ZF) == Rflags.SF


def test_an_access_over_a_page_border_takes_both_sides(flat: Guest) -> None:
    code(flat, "8b 03")
    flat.gpr[Gpr.RBX] = 0xFFFE
    flat.ram[0xFFFE:] = b"\x11\x22"
    assert flat.run(violation(0x1_0000)) == uapi.KvmExitMmio(0x1_0000, 2, None)
    flat.kvm_run.answer(b"\x33\x44")
    flat.run(HLT)
    assert flat.gpr[Gpr.RAX] == 0x4433_2211


def test_movs_between_two_devices(flat: Guest) -> None:
    code(flat, "a5")  # movsd
    flat.gpr[Gpr.RSI], flat.gpr[Gpr.RDI] = DEVICE, DEVICE + 0x100
    assert flat.run(violation()) == uapi.KvmExitMmio(DEVICE, 4, None)
    flat.kvm_run.answer(b"abcd")
    assert flat.run() == uapi.KvmExitMmio(DEVICE + 0x100, 4, b"abcd")
    flat.run(HLT)
    assert flat.gpr[Gpr.RSI] == DEVICE + 4


def test_an_interrupted_run_keeps_the_fragments(flat: Guest) -> None:
    code(flat, "0f 11 0b")
    flat.processor.xmms[1] = b"0123456789abcdef"
    assert flat.run(violation(access=WRITE)) == uapi.KvmExitMmio(DEVICE, 8, b"01234567")
    flat.kvm_run.immediate_exit = 1
    assert flat.run() == uapi.KvmExitMmio(DEVICE + 8, 8, b"89abcdef")
    with pytest.raises(KvmError, match="immediate_exit"):
        flat.vcpu.run()
    flat.kvm_run.immediate_exit = 0
    assert flat.run(HLT) == uapi.KvmExitHlt()


def test_read_only_memory_can_be_read_but_not_written(flat: Guest) -> None:
    rom = bytearray(b"\x5a" * 4096)
    flat.vm.set_user_memory_region(1, 0x10_0000, rom, uapi.KVM_MEM_READONLY)
    flat.gpr[Gpr.RBX] = 0x10_0000
    code(flat, "80 0b 01")  # or byte [ebx], 1
    exit = VmExit(ExitReason.EPT_VIOLATION, WRITE | 0x1A8, guest_physical_address=0x10_0000)
    assert flat.run(exit) == uapi.KvmExitMmio(0x10_0000, 1, b"\x5b")
    assert rom[0] == 0x5A


def test_memory_that_has_come_meanwhile_is_simply_used(flat: Guest) -> None:
    flat.vm.set_user_memory_region(1, DEVICE, bytearray(4096))
    flat.run(violation(), HLT)
    assert flat.processor.rip == 0x1001


def test_a_page_fault_found_in_emulation_is_injected(flat: Guest) -> None:
    sregs = flat.vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4 = 0x8000_0011, 0x4000, 1 << 4
    flat.ram[0x4000:0x4004] = (0x83).to_bytes(4, "little")  # 4 MB at 0
    flat.vcpu.set_sregs(sregs)
    code(flat, "a5")
    flat.gpr[Gpr.RSI], flat.gpr[Gpr.RDI] = DEVICE, 0x0080_0000
    flat.run(violation())
    flat.kvm_run.answer(b"abcd")
    flat.run(HLT)
    assert flat.processor.injected[-1] == 0x8000_0B0E
    assert flat.field(F.VM_ENTRY_EXCEPTION_ERROR_CODE) == 2
    assert flat.processor.cr2 == 0x0080_0000
    assert flat.processor.rip == 0x1001


def test_an_interrupt_shadow_ends_with_the_instruction(flat: Guest) -> None:
    code(flat, "88 0b")
    flat.processor.vmwrite(F.GUEST_INTERRUPTIBILITY_INFO, 1)
    flat.run(violation(access=WRITE))
    assert flat.field(F.GUEST_INTERRUPTIBILITY_INFO) == 0


def test_a_single_stepped_guest_gets_its_trap(flat: Guest) -> None:
    code(flat, "88 0b")
    flat.set_rflags(Rflags.TF)
    flat.run(violation(access=WRITE))
    flat.run(HLT)
    assert flat.processor.injected[-1] == 0x8000_0301


class TestWhatCannotBeEmulated:
    def test_in_the_kernel_of_the_guest_it_is_an_error_with_the_bytes(self, flat: Guest) -> None:
        code(flat, "d9 03 90 90")  # fld dword [ebx]
        exit = flat.run(violation())
        assert isinstance(exit, uapi.KvmExitInternalError)
        assert exit.suberror == uapi.KVM_INTERNAL_ERROR_EMULATION
        assert exit.instruction[:2] == b"\xd9\x03"
        assert flat.processor.rip == 0x1000

    def test_in_user_code_it_is_undefined(self, flat: Guest) -> None:
        code(flat, "d9 03")
        flat.processor.vmwrite(F.GUEST_SS_AR_BYTES, 0xC0F3)
        flat.run(violation(), HLT)
        assert flat.processor.injected[-1] == 0x8000_0306

    def test_a_jump_into_nothing_has_no_bytes(self, flat: Guest) -> None:
        flat.processor.rip = 0x9000_0000
        exit = flat.run(violation(0x9000_0000, FETCH))
        assert exit == uapi.KvmExitInternalError(1, (), b"")


def test_the_mmio_probe_sees_fragments_with_their_values() -> None:
    probes, seen = Probes(), Everything()
    probes.add(seen)
    guest = Guest(probes=probes)
    guest.flat_real_mode()
    code(guest, "a0 00 00")  # mov al, [0]
    guest.processor.vmwrite(F.GUEST_DS_BASE, DEVICE)
    guest.run(violation())
    guest.kvm_run.answer(b"\x7f")
    guest.run(HLT)
    assert [event[2:] for event in seen.of("mmio")] == [(False, 1, DEVICE, 0x7F)]
    guest.vm.close()
