"""Debug console, debug exit, diagnostic port, and the three ports that reset the machine."""

from __future__ import annotations

import pytest

from vmxsim.vmm.devices.base import Device, unconnected
from vmxsim.vmm.devices.debugcon import DebugCon
from vmxsim.vmm.devices.debugexit import DebugExit
from vmxsim.vmm.devices.port80 import Port80
from vmxsim.vmm.devices.reset import KeyboardController, Port92, ResetControl

DATA, COMMAND = 0, 4


class Button:
    """Counts how often it was pressed."""

    def __init__(self) -> None:
        self.pressed = 0

    def __call__(self) -> None:
        self.pressed += 1


@pytest.fixture
def button() -> Button:
    return Button()


def test_a_device_without_registers_reads_all_ones_and_ignores_writes() -> None:
    device = Device()
    device.write(0, 4, 5)
    device.reset()
    unconnected(1)
    assert [device.read(0, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]


def test_debugcon_prints_and_says_e9() -> None:
    said = bytearray()
    debugcon = DebugCon(said.extend)
    for letter in b"ok":
        debugcon.write(0, 1, letter)
    assert (said, debugcon.read(0, 1)) == (b"ok", 0xE9)


def test_debug_exit_hands_its_value_up() -> None:
    values: list[int] = []
    device = DebugExit(values.append)
    device.write(0, 1, 0x10)
    device.write(2, 2, 0x1234)
    assert (values, device.read(0, 4)) == ([0x10, 0x1234], 0)


def test_port_80_remembers_and_reads_high() -> None:
    port = Port80()
    port.write(0, 1, 0x42)
    assert (port.code, port.read(0, 1)) == (0x42, 0xFF)
    port.reset()
    assert port.code == 0


class TestKeyboardController:
    @pytest.fixture
    def chip(self, button: Button) -> KeyboardController:
        return KeyboardController(button)

    @pytest.mark.parametrize(
        ("command", "pressed"), [(0xFE, 1), (0xF0, 1), (0xFC, 1), (0xFF, 0), (0xFD, 0), (0xEE, 0)]
    )
    def test_pulsing_the_reset_line(
        self, chip: KeyboardController, button: Button, command: int, pressed: int
    ) -> None:
        chip.write(COMMAND, 1, command)
        assert button.pressed == pressed

    def test_status_says_empty_then_full(self, chip: KeyboardController) -> None:
        assert chip.read(COMMAND, 1) == 0x18
        chip.write(COMMAND, 1, 0xAA)
        assert chip.read(COMMAND, 1) == 0x19
        assert (chip.read(DATA, 1), chip.read(COMMAND, 1)) == (0x55, 0x18)
        chip.write(DATA, 1, 0xED)
        assert chip.read(COMMAND, 1) == 0x10
        assert chip.read(DATA, 1) == 0

    @pytest.mark.parametrize(("command", "answer"), [(0xAB, 0), (0xA9, 0), (0x20, 3), (0xD0, 0xCF)])
    def test_commands_that_answer(
        self, chip: KeyboardController, command: int, answer: int
    ) -> None:
        chip.write(COMMAND, 1, command)
        assert chip.read(COMMAND, 1) & 1
        assert chip.read(DATA, 1) == answer

    def test_the_command_byte(self, chip: KeyboardController) -> None:
        chip.write(COMMAND, 1, 0x60)
        chip.write(DATA, 1, 0x47)
        for command, mode in ((0xAD, 0x57), (0xA7, 0x77), (0xAE, 0x67), (0xA8, 0x47)):
            chip.write(COMMAND, 1, command)
            chip.write(COMMAND, 1, 0x20)
            assert chip.read(DATA, 1) == mode

    def test_a20_and_reset_in_the_output_port(
        self, chip: KeyboardController, button: Button
    ) -> None:
        values = []
        for command in (0xDD, 0xDF):
            chip.write(COMMAND, 1, command)
            chip.write(COMMAND, 1, 0xD0)
            values.append(chip.read(DATA, 1))
        assert values == [0xCD, 0xCF]
        chip.write(COMMAND, 1, 0xD1)
        chip.write(DATA, 1, 0xDF)
        assert (chip.output_port, button.pressed) == (0xDF, 0)
        chip.write(COMMAND, 1, 0xD1)
        chip.write(DATA, 1, 0xDE)
        assert button.pressed == 1

    def test_offsets_between_are_nobodys(self, chip: KeyboardController) -> None:
        chip.write(2, 1, 0xFE)
        assert chip.read(2, 1) == 0xFF

    def test_reset_forgets(self, chip: KeyboardController) -> None:
        chip.write(COMMAND, 1, 0xAA)
        chip.write(COMMAND, 1, 0xD1)
        chip.reset()
        chip.write(DATA, 1, 0x00)
        assert (chip.read(COMMAND, 1), chip.output_port) == (0x10, 0xCF)


def test_port_92_resets_on_a_rising_bit_0(button: Button) -> None:
    port = Port92(button)
    assert port.read(0, 1) == 0x02
    for value, pressed in ((0x00, 0), (0x02, 0), (0x03, 1), (0x03, 1), (0x02, 1), (0x01, 2)):
        port.write(0, 1, value)
        assert (button.pressed, port.read(0, 1)) == (pressed, value)
    port.reset()
    assert port.read(0, 1) == 0x02


def test_reset_control(button: Button) -> None:
    port = ResetControl(button)
    for value, pressed, back in ((0x02, 0, 2), (0x06, 1, 2), (0x04, 2, 0), (0x0E, 3, 2)):
        port.write(0, 1, value)
        assert (button.pressed, port.read(0, 1)) == (pressed, back)
    port.reset()
    assert port.read(0, 1) == 0
