"""The three ways a PC resets itself by a port: keyboard controller, port 92, reset control.

Of the 8042 only what boot code uses is here: pulsing the reset line, the output port with A20,
self-tests, the command byte. There is no keyboard: the data port holds answers to commands only.
The A20 line can be read and written but masks nothing.
QEMU: hw/input/pckbd.c, port92 in hw/i386/pc.c, rcr in hw/pci-host/piix.c.
"""

from __future__ import annotations

from collections.abc import Callable

from vmxsim.vmm.devices.base import Device

A20 = 1 << 1
RESET_LINE = 1 << 0
"""Bit of the 8042's output port; the processor is reset while it is 0."""


class KeyboardController(Device):
    """8042: data at offset 0 (port 0x60), status and commands at offset 4 (port 0x64)."""

    OUTPUT_FULL = 1 << 0
    COMMAND = 1 << 3
    UNLOCKED = 1 << 4

    READ_MODE, WRITE_MODE = 0x20, 0x60
    DISABLE_AUX, ENABLE_AUX, TEST_AUX = 0xA7, 0xA8, 0xA9
    SELF_TEST, TEST_KEYBOARD, DISABLE_KEYBOARD, ENABLE_KEYBOARD = 0xAA, 0xAB, 0xAD, 0xAE
    READ_OUTPUT, WRITE_OUTPUT = 0xD0, 0xD1
    DISABLE_A20, ENABLE_A20 = 0xDD, 0xDF
    PULSE = 0xF0
    """0xf0 to 0xff: pulse the output lines whose bit is 0."""

    def __init__(self, request_reset: Callable[[], None]) -> None:
        self.request_reset = request_reset
        self.reset()

    def reset(self) -> None:
        """Power-on: A20 open, nothing to read."""
        self.mode = 0x03
        self.output_port = 0xCF
        self.answer: int | None = None
        self.awaiting = 0
        self.last_was_command = True

    def read(self, offset: int, size: int) -> int:
        """Data takes the answer away; status only looks."""
        if offset == 0:
            answer, self.answer = self.answer, None
            return answer or 0
        if offset != 4:
            return super().read(offset, size)
        status = self.UNLOCKED
        status |= self.OUTPUT_FULL if self.answer is not None else 0
        return status | (self.COMMAND if self.last_was_command else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """A command, or the data byte that a command waits for."""
        if offset == 0:
            self._data(value)
        elif offset == 4:
            self._command(value)

    def _data(self, value: int) -> None:
        command, self.awaiting, self.last_was_command = self.awaiting, 0, False
        if command == self.WRITE_MODE:
            self.mode = value
        elif command == self.WRITE_OUTPUT:
            self._set_output(value)

    def _command(self, value: int) -> None:
        self.last_was_command = True
        answers = {
            self.READ_MODE: self.mode,
            self.SELF_TEST: 0x55,
            self.TEST_KEYBOARD: 0x00,
            self.TEST_AUX: 0x00,
            self.READ_OUTPUT: self.output_port,
        }
        if value in answers:
            self.answer = answers[value]
        elif value in (self.WRITE_MODE, self.WRITE_OUTPUT):
            self.awaiting = value
        elif value in (self.DISABLE_A20, self.ENABLE_A20):
            self._set_output(self.output_port & ~A20 | (value & A20))
        elif value in (self.DISABLE_KEYBOARD, self.ENABLE_KEYBOARD):
            self.mode = self.mode & ~0x10 | (0x10 if value == self.DISABLE_KEYBOARD else 0)
        elif value in (self.DISABLE_AUX, self.ENABLE_AUX):
            self.mode = self.mode & ~0x20 | (0x20 if value == self.DISABLE_AUX else 0)
        elif value >= self.PULSE and not value & RESET_LINE:
            self.request_reset()

    def _set_output(self, value: int) -> None:
        self.output_port = value
        if not value & RESET_LINE:
            self.request_reset()


class Port92(Device):
    """System control port A: bit 0 resets when it is set, bit 1 is A20."""

    def __init__(self, request_reset: Callable[[], None]) -> None:
        self.request_reset = request_reset
        self.reset()

    def reset(self) -> None:
        """Power-on: A20 open."""
        self.value = A20

    def read(self, offset: int, size: int) -> int:
        """What was written."""
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        """Reset on bit 0 going up."""
        rising = value & ~self.value & 1
        self.value = value
        if rising:
            self.request_reset()


class ResetControl(Device):
    """Reset control register (port 0xcf9): setting bit 2 resets, bit 1 asks for a hard one."""

    def __init__(self, request_reset: Callable[[], None]) -> None:
        self.request_reset = request_reset
        self.reset()

    def reset(self) -> None:
        """Power-on."""
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        """The kind of reset; bit 2 always reads 0."""
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        """Remember the kind, and reset when asked to."""
        self.value = value & 0x02
        if value & 0x04:
            self.request_reset()
