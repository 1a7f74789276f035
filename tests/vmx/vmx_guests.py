"""Processors in every mode, and traps made from instruction bytes, for the tests of this floor."""

from __future__ import annotations

from vmxsim.arch.registers import Cr0, Cr4, Efer, Gpr, Rflags
from vmxsim.arch.segments import AccessRights, Segment, SegmentRegister, TableRegister
from vmxsim.arch.vmcs_fields import VmcsField
from vmxsim.cpu.decode import Decoder
from vmxsim.cpu.scripted import ScriptedCpu
from vmxsim.cpu.traps import InsnTrap, Instruction, IoTrap, OperandKind, TrapKind
from vmxsim.vmx.vmcs import Vmcs

RAM = 0x20000
RIP = 0x1000
GDT, IDT, TSS, STACK, KERNEL_STACK = 0x2000, 0x3000, 0x5000, 0x8000, 0x9000

CODE16, CODE32, CODE64, USER32, USER64, DATA, USER_DATA = 0x08, 0x10, 0x18, 0x23, 0x2B, 0x30, 0x3B
TASK = 0x40

REAL, V8086, PROTECTED16, PROTECTED, COMPATIBILITY, LONG = (
    "real", "virtual-8086", "16-bit protected", "protected", "compatibility", "long",
)  # fmt: skip
EVERY_MODE = (REAL, V8086, PROTECTED16, PROTECTED, COMPATIBILITY, LONG)
KERNEL_MODES = (REAL, PROTECTED16, PROTECTED, COMPATIBILITY, LONG)
PROTECTED_MODES = (PROTECTED16, PROTECTED, COMPATIBILITY, LONG)
VMX_MODES = (PROTECTED16, PROTECTED, LONG)

_RIGHTS = {
    REAL: AccessRights.REAL_CODE,
    V8086: 0xF3,
    PROTECTED16: 0x9B,
    PROTECTED: AccessRights.FLAT_CODE32,
    COMPATIBILITY: AccessRights.FLAT_CODE32,
    LONG: AccessRights.FLAT_CODE64,
}
_BITS = {REAL: 16, V8086: 16, PROTECTED16: 16, PROTECTED: 32, COMPATIBILITY: 32, LONG: 64}


def cpu_in(mode: str, cpl: int = 0, **state: object) -> ScriptedCpu:
    """A processor in a mode, with 128 KB of zeroed memory; ``state`` as ScriptedCpu takes it."""
    cpu = ScriptedCpu()
    cpu.memory.map(0, bytearray(RAM))
    cpu.rip = RIP
    cpu.gpr[Gpr.RSP] = STACK
    if mode != REAL:
        cpu.cr0 |= Cr0.PE | Cr0.NE
    if mode in (COMPATIBILITY, LONG):
        cpu.cr0 |= Cr0.PG
        cpu.cr4 |= Cr4.PAE
        cpu.efer = Efer.LME | Efer.LMA | Efer.SCE
    if mode == V8086:
        cpl = 3
        cpu.rflags |= Rflags.VM
        for segment in range(6):
            cpu.set_segment(segment, SegmentRegister(0, 0, 0xFFFF, 0xF3))
    elif mode != REAL:
        limit = 0xFFFF if mode == PROTECTED16 else 0xFFFF_FFFF
        selectors = {PROTECTED16: CODE16, LONG: USER64 if cpl else CODE64}
        selector = selectors.get(mode, USER32 if cpl else CODE32)
        cpu.set_segment(Segment.CS, SegmentRegister(selector, 0, limit, _RIGHTS[mode] | cpl << 5))
        data = SegmentRegister(
            USER_DATA if cpl else DATA, 0, 0xFFFF_FFFF, AccessRights.FLAT_DATA32 | cpl << 5
        )
        for segment in (Segment.SS, Segment.DS, Segment.ES, Segment.FS, Segment.GS):
            cpu.set_segment(segment, data)
        cpu.gdtr, cpu.idtr = TableRegister(GDT, 0x7F), TableRegister(IDT, 0xFFF)
    cpu.set_segment(Segment.TR, SegmentRegister(TASK, TSS, 0x67, AccessRights.BUSY_TSS))
    for name, value in state.items():
        assert hasattr(cpu, name), name
        setattr(cpu, name, value)
    return cpu


def decode(code: str, mode: str) -> tuple[TrapKind, Instruction]:
    """The instruction that bytes in hexadecimal are in a mode."""
    bits = _BITS[mode]
    # Capstone takes a mandatory 66 for an operand-size prefix in 16-bit code.
    mandatory = bits == 16 and code.startswith(("66 0f 38", "66 0f c7 3"))
    decoded = Decoder().decode(bytes.fromhex(code), 32 if mandatory else bits)
    assert decoded is not None, f"{code} is no instruction in {mode} mode"
    kind, insn = decoded
    assert kind is not None, f"{insn.mnemonic} does not trap"
    assert insn.length == len(bytes.fromhex(code))
    return kind, insn._replace(bits=bits)


def trap_of(code: str, mode: str, cpu: ScriptedCpu) -> InsnTrap | IoTrap:
    """What the engine hands up for an instruction at RIP."""
    kind, insn = decode(code, mode)
    if kind is not TrapKind.IO:
        return InsnTrap(kind, cpu.rip, insn)
    opcode = insn.code[-2] if len(insn.code) > 1 and insn.code[-2] in range(0xE4, 0xE8) else 0
    string = insn.mnemonic.startswith(("ins", "outs"))
    last = opcode or insn.code[-1]
    is_in = not last & 2
    size = 1 if not last & 1 else min(insn.operand_size, 4)
    immediate = [o.value for o in insn.operands if o.kind is OperandKind.IMMEDIATE]
    port = immediate[0] if immediate else cpu.gpr[Gpr.RDX] & 0xFFFF
    value = 0 if is_in or string else cpu.gpr[Gpr.RAX] & (1 << 8 * size) - 1
    return IoTrap(kind, cpu.rip, insn, is_in, port, size, value, string, insn.rep != 0)


def vmcs_with(**fields: int) -> Vmcs:
    """A VMCS with fields of the given names set; secondary controls are activated when named."""
    vmcs = Vmcs()
    if "SECONDARY_VM_EXEC_CONTROL" in fields:
        word = fields.get("CPU_BASED_VM_EXEC_CONTROL", 0)
        fields["CPU_BASED_VM_EXEC_CONTROL"] = word | 1 << 31
    for name, value in fields.items():
        vmcs.write(VmcsField[name], value)
    return vmcs
