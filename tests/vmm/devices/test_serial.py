"""The serial port: registers, FIFO, loopback, interrupts by priority, and input that waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.vmm.devices.serial import Lsr, Serial

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FIFO_ON, FIFO_CLEAR = 0x01, 0x02


class Line:
    """An interrupt line that remembers every change."""

    def __init__(self) -> None:
        self.changes: list[int] = []

    def __call__(self, level: int) -> None:
        self.changes.append(level)

    @property
    def level(self) -> int:
        return self.changes[-1] if self.changes else 0


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def sent() -> bytearray:
    return bytearray()


@pytest.fixture
def serial(sent: bytearray, line: Line) -> Serial:
    return Serial(sent.extend, line)


def read(serial: Serial, offset: int) -> int:
    return serial.read(offset, 1)


def write(serial: Serial, offset: int, value: int) -> None:
    serial.write(offset, 1, value)


def test_after_power_on(serial: Serial) -> None:
    assert [read(serial, offset) for offset in range(8)] == [0, 0, 0x01, 0, 0x08, 0x60, 0xB0, 0]


def test_what_is_written_is_out_at_once(serial: Serial, sent: bytearray) -> None:
    for letter in b"Hi":
        assert read(serial, LSR) & Lsr.THRE
        write(serial, RBR, letter)
    assert sent == b"Hi"
    assert read(serial, LSR) == Lsr.THRE | Lsr.TEMT


def test_the_divisor_hides_behind_dlab(serial: Serial, sent: bytearray) -> None:
    assert serial.divisor == 12
    write(serial, LCR, 0x83)
    write(serial, RBR, 0x34)
    write(serial, IER, 0x12)
    assert (read(serial, RBR), read(serial, IER)) == (0x34, 0x12)
    write(serial, LCR, 0x03)
    assert (serial.divisor, read(serial, IER), read(serial, LCR)) == (0x1234, 0, 0x03)
    assert sent == b""


def test_scratch_and_read_only_registers(serial: Serial) -> None:
    for offset in (LSR, MSR, SCR):
        write(serial, offset, 0xA5)
    assert (read(serial, LSR), read(serial, MSR), read(serial, SCR)) == (0x60, 0xB0, 0xA5)


def test_unused_bits_of_ier_and_mcr_read_zero(serial: Serial) -> None:
    write(serial, IER, 0xF0)
    write(serial, MCR, 0xE0)
    assert (read(serial, IER), read(serial, MCR)) == (0, 0)


class TestInput:
    def test_one_byte_at_a_time_without_fifo(self, serial: Serial) -> None:
        serial.receive(b"abc")
        assert list(serial.waiting) == list(b"bc")
        assert bytes(read(serial, RBR) for _ in range(3)) == b"abc"
        assert not read(serial, LSR) & (Lsr.DR | Lsr.OE)
        assert read(serial, RBR) == 0

    @given(st.binary(max_size=100), st.booleans())
    def test_nothing_is_lost(self, data: bytes, fifo: bool) -> None:
        serial = Serial(bytearray().extend)
        serial.receive(data[:7])
        write(serial, IIR, FIFO_ON | FIFO_CLEAR if fifo else 0)
        serial.receive(data[7:])
        got = bytearray()
        while read(serial, LSR) & Lsr.DR:
            got.append(read(serial, RBR))
        assert got == data
        assert not read(serial, LSR) & Lsr.OE

    def test_input_before_the_guest_sets_its_port_up_waits(self, serial: Serial) -> None:
        serial.receive(b"early")
        for offset, value in ((LCR, 0x83), (RBR, 1), (LCR, 3), (IIR, 0x07), (MCR, 0x0B)):
            write(serial, offset, value)
        assert bytes(read(serial, RBR) for _ in range(5)) == b"early"
        assert not read(serial, LSR) & Lsr.DR

    def test_the_fifo_holds_sixteen(self, serial: Serial) -> None:
        write(serial, IIR, FIFO_ON)
        serial.receive(bytes(range(20)))
        assert (len(serial.received), len(serial.waiting)) == (16, 4)


class TestInterrupts:
    def test_received_data(self, serial: Serial, line: Line) -> None:
        serial.receive(b"x")
        assert line.changes == []
        write(serial, IER, 0x01)
        assert (line.level, read(serial, IIR)) == (1, 0x04)
        read(serial, RBR)
        assert (line.level, read(serial, IIR)) == (0, 0x01)

    def test_each_byte_that_waited_comes_with_an_edge_of_its_own(
        self, serial: Serial, line: Line
    ) -> None:
        write(serial, IER, 0x01)
        serial.receive(b"abc")
        assert bytes(read(serial, RBR) for _ in range(3)) == b"abc"
        assert line.changes == [1, 0, 1, 0, 1, 0]

    @pytest.mark.parametrize(("fcr", "level"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
    def test_trigger_levels_and_timeout(self, serial: Serial, fcr: int, level: int) -> None:
        write(serial, IIR, fcr)
        write(serial, IER, 0x01)
        causes = []
        for _ in range(level):
            serial.receive(b".")
            causes.append(read(serial, IIR))
        assert causes == [0xCC] * (level - 1) + [0xC4]

    def test_transmitter_empty_comes_when_enabled_and_after_each_byte(
        self, serial: Serial, line: Line
    ) -> None:
        write(serial, IER, 0x02)
        assert read(serial, IIR) == 0x02
        assert read(serial, IIR) == 0x01
        assert line.changes == [1, 0]
        write(serial, RBR, 0x41)
        assert line.changes == [1, 0, 1]
        write(serial, RBR, 0x42)
        assert line.changes == [1, 0, 1, 0, 1]
        write(serial, IER, 0x00)
        assert line.level == 0

    def test_by_priority(self, serial: Serial) -> None:
        write(serial, IER, 0x0F)
        write(serial, MCR, 0x10)
        write(serial, RBR, 0x41)
        write(serial, RBR, 0x42)
        causes = [read(serial, IIR)]
        assert read(serial, LSR) & (Lsr.OE | Lsr.DR) == Lsr.OE | Lsr.DR
        causes.append(read(serial, IIR))
        assert read(serial, RBR) == 0x42
        causes += [read(serial, IIR), read(serial, IIR)]
        assert causes == [0x06, 0x04, 0x02, 0x01]

    def test_modem_status_change(self, serial: Serial, line: Line) -> None:
        write(serial, IER, 0x08)
        serial.msr |= 0x01
        write(serial, IER, 0x08)
        assert (line.level, read(serial, IIR)) == (1, 0x00)
        assert read(serial, MSR) == 0xB1
        assert (line.level, read(serial, MSR)) == (0, 0xB0)

    def test_reset_lowers_the_line(self, serial: Serial, line: Line) -> None:
        write(serial, IER, 0x02)
        serial.reset()
        assert line.changes == [1, 0]


class TestLoopback:
    def test_what_is_sent_comes_back(self, serial: Serial, sent: bytearray) -> None:
        write(serial, MCR, 0x1E)
        write(serial, RBR, 0xAE)
        assert read(serial, LSR) & Lsr.DR
        assert read(serial, RBR) == 0xAE
        assert sent == b""

    @pytest.mark.parametrize(
        ("mcr", "msr"), [(0x10, 0), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80)]
    )
    def test_modem_lines_come_back(self, serial: Serial, mcr: int, msr: int) -> None:
        write(serial, MCR, mcr)
        assert read(serial, MSR) == msr

    def test_input_waits_until_loopback_is_off(self, serial: Serial) -> None:
        serial.receive(b"ab")
        write(serial, MCR, 0x10)
        serial.receive(b"c")
        assert not read(serial, LSR) & Lsr.DR
        write(serial, MCR, 0x00)
        assert bytes(read(serial, RBR) for _ in range(3)) == b"abc"

    def test_the_fifo_overruns_at_seventeen(self, serial: Serial) -> None:
        write(serial, IIR, FIFO_ON)
        write(serial, MCR, 0x10)
        for value in range(17):
            write(serial, RBR, value)
        assert read(serial, LSR) & Lsr.OE
        assert [read(serial, RBR) for _ in range(16)] == list(range(16))
