"""The register dump, line by line."""

from __future__ import annotations

from vmxsim.kvm.uapi import KvmRegs, KvmSregs
from vmxsim.vmm.boot import kvm_segment
from vmxsim.vmm.dump import dump_registers


def test_32_bit_names_outside_of_long_mode() -> None:
    sregs = KvmSregs(cr0=0x11)
    sregs.cs = kvm_segment(8, 0, 0xFFFF_FFFF, 0xC09B)
    regs = KvmRegs(rax=0x1234, rsp=0x7000, rip=0x7C00, rflags=0x246)
    lines = dump_registers(regs, sregs).splitlines()
    assert lines[0] == "EAX=00001234 EBX=00000000 ECX=00000000 EDX=00000000"
    assert lines[1] == "ESI=00000000 EDI=00000000 EBP=00000000 ESP=00007000"
    assert lines[2] == "EIP=00007c00 EFL=00000246 [---Z-P-] CPL=0 II=0"
    assert lines[4] == "CS =0008 00000000 ffffffff 00c09b00"
    assert lines[-2] == "CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000"


def test_64_bit_names_in_long_mode() -> None:
    sregs = KvmSregs(efer=0xD00)
    sregs.ldt = kvm_segment(0, 0, 0, 1 << 16)
    text = dump_registers(KvmRegs(r15=5, rip=0xFFFF_FFFF_8000_0000, rflags=0xCD7), sregs)
    assert "R15=0000000000000005\n" in text
    assert "RIP=ffffffff80000000 RFL=00000cd7 [DOSZAPC] CPL=0 II=1" in text
    assert "LDT=0000 0000000000000000 00000000 00000000 unusable\n" in text
    assert text.endswith("EFER=0000000000000d00\n")
