"""The instruction emulator: does by hand what the engine could not, because memory was a device.

Linux: arch/x86/kvm/emulate.c (x86_emulate_instruction's core). Restartable: when a read needs
userspace, nothing has changed, and the instruction is run again once the answer is there. It
trusts that the processor has checked segments and privilege, as it trapped after those checks;
left out are far branches, segment loads, BCD and x87 instructions, MMX, AVX.
"""

from __future__ import annotations

from vmxsim.kvm.emulate_decode import decode
from vmxsim.kvm.emulate_operands import (
    UNHANDLED,
    Decoded,
    EmulateContext,
    Emulation,
    Fault,
    MmioNeeded,
    Outcome,
    Written,
)

__all__ = [
    "Decoded",
    "EmulateContext",
    "Emulation",
    "Fault",
    "MmioNeeded",
    "Outcome",
    "Written",
    "decode",
    "emulate_instruction",
]

MAX_LENGTH = 15


def emulate_instruction(context: EmulateContext) -> Emulation:
    """Execute the instruction at RIP. Outcomes other than DONE leave the registers as they were.

    The exception is REP: iterations that were finished before a fault stay finished.
    """
    insn = decode(context.fetch(MAX_LENGTH), context.mode_bits)
    if insn is None:
        return UNHANDLED
    return insn.run(context, insn)
