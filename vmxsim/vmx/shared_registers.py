"""What VM entries and VM exits do not switch: root mode finds the guest's values and sets them.

General registers, XMM and x87, CR2, CR8, XCR0, DR0 to DR6, and the MSRs without a VMCS field.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence

from vmxsim.cpu.interface import Cpu, Memory, PortTable


class SharedRegisters:
    """The cpu's registers that are the guest's and root mode's alike."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.gpr: MutableSequence[int] = cpu.gpr
        self.dr: list[int] = cpu.dr
        self.memory: Memory = cpu.memory
        self.ports: PortTable = cpu.ports
        self.kick: Callable[[], None] = cpu.kick
        self.enter_from_host: Callable[[], None] = cpu.enter_from_host
        self.leave_to_host: Callable[[], None] = cpu.leave_to_host

    def keep_interruptible(self) -> None:
        """Let signals through while this thread runs the guest: for the main thread's use."""
        self.cpu.keep_interruptible()

    def close(self) -> None:
        """Free the cpu; the guest must not run again."""
        self.cpu.close()

    def msr(self, index: int) -> int:
        """STAR, KERNEL_GS_BASE and the like; KeyError for an MSR that the cpu does not hold."""
        return self.cpu.msr(index)

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR; KeyError for one that the cpu does not hold."""
        self.cpu.set_msr(index, value)

    @property
    def cr2(self) -> int:
        """CR2."""
        return self.cpu.cr2

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.cpu.cr2 = value

    @property
    def cr8(self) -> int:
        """CR8."""
        return self.cpu.cr8

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.cpu.cr8 = value

    @property
    def xcr0(self) -> int:
        """XCR0."""
        return self.cpu.xcr0

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self.cpu.xcr0 = value

    def xmm(self, number: int) -> bytes:
        """The sixteen bytes of an XMM register."""
        return self.cpu.xmm(number)

    def set_xmm(self, number: int, value: bytes) -> None:
        """Set the sixteen bytes of an XMM register."""
        self.cpu.set_xmm(number, value)

    def fxsave(self) -> bytes:
        """The 512 bytes of FXSAVE."""
        return self.cpu.fxsave()

    def fxrstor(self, image: bytes) -> None:
        """Load x87 and SSE state."""
        self.cpu.fxrstor(image)

    @property
    def budget(self) -> int:
        """Translated blocks until the host's timer interrupts; 0 for never."""
        return self.cpu.budget

    @budget.setter
    def budget(self, value: int) -> None:
        self.cpu.budget = value

    @property
    def blocks(self) -> int:
        """Translated blocks executed, counted once a budget was ever set."""
        return self.cpu.blocks
