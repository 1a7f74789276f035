"""A root-mode program in Python, short enough to read: VMXON, VMCLEAR, VMPTRLD.. VMLAUNCH.

It drives the real engine through ``vmx.Processor``: no KVM, no devices. The guest starts at CODE
in one of three modes, and every exception is an exit unless a test lets some through; then it
arrives at a handler that is nothing but VMCALL, as does the end of the code.

    0x00000 IVT   0x06000 stack of CPL 0   0x0c000 handlers, 4 bytes each    0x10000 page tables
    0x01000 GDT   0x08000 code             0x0d000 zeros                     0x20000 VMXON region
    0x02000 IDT   0x09000 data             0x0e000 ones                      0x21000 VMCS
    0x03000 TSS   0x0a000 stack of CPL 3                            0x200000 mapped, no memory
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from vmxsim.arch import capabilities
from vmxsim.arch.capabilities import adjust
from vmxsim.arch.controls import EntryControls, ExitControls, Secondary
from vmxsim.arch.msrs import Msr
from vmxsim.arch.vmcs_fields import VmcsField as F
from vmxsim.clock import VirtualClock
from vmxsim.cpu.cpu import UnicornCpu
from vmxsim.vmx.processor import Processor, VmExit, VmFail

REAL, PROTECTED, LONG = "real", "protected", "long"
ALL = (REAL, PROTECTED, LONG)
GDT, IDT, TSS, CODE, DATA = 0x1000, 0x2000, 0x3000, 0x8000, 0x9000
STACK0, STACK3, HANDLERS, ZEROS, ONES = 0x7000, 0xB000, 0xC000, 0xD000, 0xE000
PML4, PD32, VMXON_REGION, VMCS_REGION = 0x10000, 0x13000, 0x20000, 0x21000
MEMORY = NOWHERE = 0x20_0000
"""Mapped by the guest's page tables, backed by nothing."""

VMCALL = b"\x0f\x01\xc1"
CODE32, DATA32, CODE64, USER_DATA, USER_CODE64, USER_CODE32, TSS_SELECTOR, ABSENT = range(8, 72, 8)
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")


class Rights(NamedTuple):
    """Code, data and TSS access rights of a mode."""

    code: int
    data: int
    limit: int


RIGHTS = {
    REAL: Rights(0x9B, 0x93, 0xFFFF),
    PROTECTED: Rights(0xC09B, 0xC093, 0xFFFF_FFFF),
    LONG: Rights(0xA09B, 0xC093, 0xFFFF_FFFF),
}
CODE_SELECTOR = {REAL: 0, PROTECTED: CODE32, LONG: CODE64}
USER_CODE = {PROTECTED: USER_CODE32 | 3, LONG: USER_CODE64 | 3}
CR0 = {REAL: 0x30, PROTECTED: 0x31, LONG: 0x8000_0031}
CR4 = {REAL: 0x4_2600, PROTECTED: 0x4_2600, LONG: 0x4_2620}
"""VMXE, OSXSAVE, OSFXSR and OSXMMEXCPT; PAE."""

CONTROL_WORDS = {
    F.PIN_BASED_VM_EXEC_CONTROL: Msr.IA32_VMX_TRUE_PINBASED_CTLS,
    F.CPU_BASED_VM_EXEC_CONTROL: Msr.IA32_VMX_TRUE_PROCBASED_CTLS,
    F.SECONDARY_VM_EXEC_CONTROL: Msr.IA32_VMX_PROCBASED_CTLS2,
    F.VM_EXIT_CONTROLS: Msr.IA32_VMX_TRUE_EXIT_CTLS,
    F.VM_ENTRY_CONTROLS: Msr.IA32_VMX_TRUE_ENTRY_CTLS,
}

ADDED_TO = (F.GUEST_CR0, F.GUEST_CR4, F.GUEST_RFLAGS)

Fields = Mapping[F, int]


class Guest:
    """A guest in one mode, ready for VMLAUNCH.

    ``fields`` add bits to control words, CR0, CR4 and RFLAGS, and set all others.
    """

    def __init__(
        self, mode: str, code: bytes, *fields: Fields, user: bool = False, memory: int = MEMORY
    ) -> None:
        self.mode, self.code = mode, code
        self.ram = bytearray(memory)
        self.cpu = UnicornCpu()
        self.cpu.memory.map(0, self.ram)
        self.processor = Processor(self.cpu, VirtualClock())
        self.entered = False
        self._fill_memory()
        self._start_vmx()
        self._write_controls(fields)
        self._write_host()
        self._write_guest(user)
        for more in fields:
            for field, value in more.items():
                if field in ADDED_TO:
                    self.write(field, self.read(field) | value)
                elif field not in CONTROL_WORDS:
                    self.write(field, value)

    # ---- what a test does with it

    def run(self) -> VmExit:
        """VMLAUNCH the first time, VMRESUME later."""
        entered, self.entered = self.entered, True
        outcome = self.processor.vmresume() if entered else self.processor.vmlaunch()
        assert not isinstance(outcome, VmFail), outcome
        return outcome

    def read(self, field: F) -> int:
        """VMREAD, which must succeed."""
        value = self.processor.vmread(field)
        assert isinstance(value, int), value
        return value

    def write(self, field: F, value: int) -> None:
        """VMWRITE, which must succeed."""
        assert self.processor.vmwrite(field, value) is None, field

    def put(self, gpa: int, data: bytes) -> None:
        """Store into guest memory."""
        self.cpu.memory.write(gpa, data)

    def stack(self, count: int) -> list[int]:
        """The top of the stack, in this mode's interrupt-frame words."""
        size = {REAL: 2, PROTECTED: 4, LONG: 8}[self.mode]
        data = self.cpu.memory.read(self.read(F.GUEST_RSP), size * count)
        return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]

    # ---- setting up

    def _fill_memory(self) -> None:
        put = self.put
        put(CODE, self.code + VMCALL)
        put(HANDLERS, (VMCALL + b"\xf4") * 256)
        put(ONES, b"\xff" * 4096)
        for vector in range(256):
            put(4 * vector, struct.pack("<HH", handler(vector), 0))
            put(IDT + 8 * vector, gate32(vector)) if self.mode == PROTECTED else None
        if self.mode == LONG:
            put(IDT, b"".join(gate64(vector) for vector in range(256)))
        put(GDT, b"".join(entry.to_bytes(8, "little") for entry in DESCRIPTORS))
        if self.mode == LONG:
            put(TSS + 4, STACK0.to_bytes(8, "little"))
        else:
            put(TSS + 4, struct.pack("<II", STACK0, DATA32))
        put(TSS + 102, struct.pack("<H", 0x68) + b"\xff" * 0x2001)
        put(PML4, (PML4 + 0x1000 | 7).to_bytes(8, "little"))
        put(PML4 + 0x1000, (PML4 + 0x2000 | 7).to_bytes(8, "little"))
        put(PML4 + 0x2000, struct.pack("<QQ", 0x87, NOWHERE | 0x87))
        put(PD32, (0x87).to_bytes(4, "little"))

    def _start_vmx(self) -> None:
        revision = capabilities.value(Msr.IA32_VMX_BASIC) & 0x7FFF_FFFF
        for region in (VMXON_REGION, VMCS_REGION):
            self.put(region, revision.to_bytes(4, "little"))
        assert self.processor.vmxon(VMXON_REGION) is None
        assert self.processor.vmclear(VMCS_REGION) is None
        assert self.processor.vmptrld(VMCS_REGION) is None

    def _write_controls(self, fields: tuple[Fields, ...]) -> None:
        wanted = {
            F.CPU_BASED_VM_EXEC_CONTROL: 1 << 31,
            F.SECONDARY_VM_EXEC_CONTROL: Secondary.ENABLE_EPT | Secondary.UNRESTRICTED_GUEST,
            F.VM_EXIT_CONTROLS: ExitControls.HOST_ADDRESS_SPACE_SIZE,
            F.VM_ENTRY_CONTROLS: EntryControls.LOAD_EFER
            | (EntryControls.IA32E_MODE_GUEST if self.mode == LONG else 0),
        }
        for field, msr in CONTROL_WORDS.items():
            value = wanted.get(field, 0)
            for more in fields:
                value |= more.get(field, 0)
            allowed = capabilities.value(msr)
            assert value & ~(allowed >> 32) == 0, f"{field.name} does not allow {value:#x}"
            self.write(field, adjust(allowed, value))
        self.write(F.EXCEPTION_BITMAP, 0xFFFF_FFFF)
        self.write(F.EPT_POINTER, 0x30000 | 3 << 3 | 6)
        self.write(F.MSR_BITMAP, ZEROS)
        self.write(F.IO_BITMAP_A, ZEROS)
        self.write(F.IO_BITMAP_B, ZEROS)

    def _write_host(self) -> None:
        for field, value in HOST_STATE.items():
            self.write(field, value)

    def _write_guest(self, user: bool) -> None:
        mode, rights = self.mode, RIGHTS[self.mode]
        ring = 0x60 if user else 0
        selector = {"CS": USER_CODE[mode] if user else CODE_SELECTOR[mode]}
        for name in SEGMENTS:
            data = 0 if mode == REAL else USER_DATA | 3 if user else DATA32
            self.write(F[f"GUEST_{name}_SELECTOR"], selector.get(name, data))
            self.write(F[f"GUEST_{name}_BASE"], 0)
            self.write(F[f"GUEST_{name}_LIMIT"], rights.limit)
            ar = rights.code if name == "CS" else rights.data
            self.write(F[f"GUEST_{name}_AR_BYTES"], ar | ring)
        values = {
            F.GUEST_LDTR_AR_BYTES: 0x10000,
            F.GUEST_TR_SELECTOR: TSS_SELECTOR, F.GUEST_TR_BASE: TSS, F.GUEST_TR_LIMIT: 0x2068,
            F.GUEST_TR_AR_BYTES: 0x8B,
            F.GUEST_GDTR_BASE: GDT, F.GUEST_GDTR_LIMIT: 8 * len(DESCRIPTORS) - 1,
            F.GUEST_IDTR_BASE: 0 if mode == REAL else IDT,
            F.GUEST_IDTR_LIMIT: {REAL: 0x3FF, PROTECTED: 0x7FF, LONG: 0xFFF}[mode],
            F.GUEST_CR0: CR0[mode], F.GUEST_CR3: PML4 if mode == LONG else 0,
            F.GUEST_CR4: CR4[mode], F.GUEST_DR7: 0x400, F.GUEST_RFLAGS: 2,
            F.GUEST_RIP: CODE, F.GUEST_RSP: STACK3 if user else STACK0,
            F.GUEST_IA32_EFER: 0xD01 if mode == LONG else 0,
            F.VMCS_LINK_POINTER: (1 << 64) - 1,
        }  # fmt: skip
        for field, value in values.items():
            self.write(field, value)


HOST_STATE = {
    F.HOST_CR0: 0x8000_0031, F.HOST_CR3: 0x40000, F.HOST_CR4: 0x2020,
    F.HOST_ES_SELECTOR: 0, F.HOST_CS_SELECTOR: 0x10, F.HOST_SS_SELECTOR: 0x18,
    F.HOST_DS_SELECTOR: 0, F.HOST_FS_SELECTOR: 0, F.HOST_GS_SELECTOR: 0, F.HOST_TR_SELECTOR: 0x40,
    F.HOST_RSP: 0x50000, F.HOST_RIP: 0x60000,
}  # fmt: skip

DESCRIPTORS = (
    0,
    0x00CF_9B00_0000_FFFF,  # 0x08 code, 32-bit
    0x00CF_9300_0000_FFFF,  # 0x10 data
    0x00AF_9B00_0000_FFFF,  # 0x18 code, 64-bit
    0x00CF_F300_0000_FFFF,  # 0x20 user data
    0x00AF_FB00_0000_FFFF,  # 0x28 user code, 64-bit
    0x00CF_FB00_0000_FFFF,  # 0x30 user code, 32-bit
    0x0000_8900_3000_2068,  # 0x38 TSS, available, with an I/O bitmap that refuses every port
    0x0000_1300_0000_FFFF,  # 0x40 data, not present; in long mode the TSS's upper half
)


def handler(vector: int) -> int:
    """Where the guest arrives when an event is delivered."""
    return HANDLERS + 4 * vector


def gate32(vector: int, dpl: int = 3) -> bytes:
    """An interrupt gate of protected mode."""
    return struct.pack("<HHHH", handler(vector), CODE32, 0x8E00 | dpl << 13, 0)


def gate64(vector: int, dpl: int = 3, ist: int = 0) -> bytes:
    """An interrupt gate of long mode."""
    return struct.pack("<HHHHQ", handler(vector), CODE64, 0x8E00 | dpl << 13 | ist, 0, 0)


def parse(guest: str) -> bytes:
    """Bytes of ``"0f a2  cpuid"``: what stands before the first double blank."""
    return bytes.fromhex(guest.split("  ")[0])
