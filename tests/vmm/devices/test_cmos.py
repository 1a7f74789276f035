"""The real-time clock: the date in every format, its three interrupts in virtual time, memory."""

from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.clock import VirtualClock
from vmxsim.vmm.devices.calendar import Moment, from_seconds, to_seconds
from vmxsim.vmm.devices.cmos import Cmos

NS = 1_000_000_000
REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
DATE = (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00)


class Bench:
    """A chip, its clock, and a log of its interrupt line in nanoseconds."""

    def __init__(self, memory: int = 64 << 20) -> None:
        self.clock = VirtualClock()
        self.log: list[tuple[int, int]] = []
        self.chip = Cmos(self.clock, memory, lambda level: self.log.append((self.now, level)))

    @property
    def now(self) -> int:
        return self.clock.now()

    def get(self, index: int) -> int:
        self.chip.write(0, 1, index)
        return self.chip.read(1, 1)

    def set(self, index: int, value: int) -> None:
        self.chip.write(0, 1, index)
        self.chip.write(1, 1, value)

    def date(self) -> str:
        return " ".join(f"{self.get(index):02x}" for index in DATE)

    def pass_s(self, seconds: float) -> None:
        """Let time pass, alarms included, as a machine in HLT would."""
        end = self.now + round(seconds * NS)
        while (due := self.clock.next_deadline()) is not None and due <= end:
            self.clock.jump_to(due)
            self.clock.run_due()
        self.clock.jump_to(end)


@pytest.fixture
def rtc() -> Bench:
    return Bench()


class TestDate:
    def test_starts_at_the_clocks_date_in_bcd(self, rtc: Bench) -> None:
        assert rtc.date() == "20 00 01 01 00 00 00"
        assert rtc.get(0x06) == 7  # a Saturday

    def test_runs(self, rtc: Bench) -> None:
        rtc.pass_s(31 * 86_400 + 23 * 3600 + 59 * 60 + 58.5)
        assert rtc.date() == "20 00 02 01 23 59 58"
        rtc.pass_s(2)
        assert rtc.date() == "20 00 02 02 00 00 00"
        assert rtc.get(0x06) == 4

    def test_binary(self, rtc: Bench) -> None:
        rtc.set(REG_B, 0x06)
        rtc.pass_s(23 * 3600 + 45 * 60 + 12)
        assert rtc.date() == "14 00 01 01 17 2d 0c"

    @pytest.mark.parametrize(
        ("hour", "bcd", "binary"),
        [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (23, 0x91, 0x8B)],
    )
    def test_twelve_hours(self, rtc: Bench, hour: int, bcd: int, binary: int) -> None:
        rtc.pass_s(hour * 3600)
        rtc.set(REG_B, 0x00)
        assert rtc.get(0x04) == bcd
        rtc.set(REG_B, 0x04)
        assert rtc.get(0x04) == binary
        rtc.set(0x04, binary)
        rtc.set(REG_B, 0x06)
        assert rtc.get(0x04) == hour

    def test_set_holds_the_date_until_it_is_cleared(self, rtc: Bench) -> None:
        rtc.set(REG_B, 0x82)
        new = (0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x59)
        for index, value in zip(DATE, new, strict=True):
            rtc.set(index, value)
        rtc.pass_s(10)
        assert rtc.date() == "20 24 02 28 23 59 59"
        rtc.set(REG_B, 0x02)
        rtc.pass_s(1)
        assert rtc.date() == "20 24 02 29 00 00 00"
        rtc.pass_s(86_400)
        assert rtc.date() == "20 24 03 01 00 00 00"

    def test_setting_a_running_clock(self, rtc: Bench) -> None:
        rtc.pass_s(0.75)
        rtc.set(0x02, 0x34)
        assert rtc.date() == "20 00 01 01 00 34 00"
        rtc.pass_s(0.25)
        assert rtc.date() == "20 00 01 01 00 34 01"

    def test_the_divider_stops_it_and_starts_half_a_second_before_an_update(
        self, rtc: Bench
    ) -> None:
        rtc.set(REG_A, 0x76)
        rtc.pass_s(5)
        assert rtc.date() == "20 00 01 01 00 00 00"
        rtc.set(REG_A, 0x26)
        rtc.pass_s(0.5)
        assert rtc.date() == "20 00 01 01 00 00 01"

    def test_update_in_progress_before_the_seconds_change(self, rtc: Bench) -> None:
        assert rtc.get(REG_A) == 0x26
        rtc.pass_s(0.9999)
        assert rtc.get(REG_A) == 0xA6
        rtc.pass_s(0.0001)
        assert rtc.get(REG_A) == 0x26
        rtc.set(REG_B, 0x82)
        rtc.pass_s(0.9999)
        assert rtc.get(REG_A) == 0x26

    def test_nonsense_is_brought_into_range(self, rtc: Bench) -> None:
        rtc.set(REG_B, 0x82)
        rtc.set(0x08, 0x00)
        rtc.set(0x07, 0x00)
        rtc.set(REG_B, 0x02)
        assert rtc.date() == "20 00 01 01 00 00 00"

    @pytest.mark.parametrize("format", [0x02, 0x06])
    def test_a_year_beyond_the_registers_is_cut(self, rtc: Bench, format: int) -> None:
        rtc.set(REG_B, format)
        rtc.set(0x09, 0xFF)
        rtc.set(0x32, 0xFF)
        assert all(0 <= rtc.get(index) <= 0xFF for index in DATE)

    def test_the_day_of_week_follows_from_the_date(self, rtc: Bench) -> None:
        rtc.set(0x06, 0x03)
        assert rtc.get(0x06) == 7


class TestInterrupts:
    def test_periodic(self, rtc: Bench) -> None:
        rtc.set(REG_A, 0x26)  # 1024 Hz
        rtc.set(REG_B, 0x42)
        for _ in range(3):
            rtc.pass_s(0.0015)
            assert rtc.get(REG_C) == 0xC0
        assert rtc.log[::2] == [(976_563, 1), (1_953_125, 1), (3_906_250, 1)]
        assert [level for _, level in rtc.log] == [1, 0] * 3

    @pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
    def test_rates(self, rtc: Bench, rate: int, hertz: int) -> None:
        rtc.set(REG_A, 0x20 | rate)
        rtc.set(REG_B, 0x42)
        rtc.pass_s(1)
        assert rtc.log == [(-(-NS // hertz), 1)]

    def test_rate_zero_is_off(self, rtc: Bench) -> None:
        rtc.set(REG_A, 0x20)
        rtc.set(REG_B, 0x42)
        rtc.pass_s(3)
        assert rtc.log == []
        assert rtc.get(REG_C) & 0x40 == 0

    def test_update_ended(self, rtc: Bench) -> None:
        rtc.pass_s(0.3)
        rtc.set(REG_B, 0x12)
        rtc.pass_s(1.5)
        assert rtc.get(REG_C) & 0x90 == 0x90
        assert rtc.log == [(NS, 1), (1_800_000_000, 0)]

    def test_alarm(self, rtc: Bench) -> None:
        for index, value in ((0x01, 0x05), (0x03, 0x01), (0x05, 0x00)):
            rtc.set(index, value)
        rtc.set(REG_B, 0x22)
        rtc.pass_s(100)
        assert rtc.log == [(65 * NS, 1)]
        assert rtc.get(REG_C) & 0xA0 == 0xA0
        rtc.pass_s(86_400)
        assert rtc.log[2] == ((86_400 + 65) * NS, 1)

    @pytest.mark.parametrize(
        ("hour", "minute", "second", "due_s"),
        [
            (0xC0, 0xFF, 0xC5, [11, 12, 13]),
            (0xFF, 0xFF, 0x30, [30, 90, 150]),
            (0xFF, 0x01, 0x10, [70, 3670, 7270]),
            (0xFF, 0x01, 0xFF, [60, 61, 62]),
            (0x99, 0xFF, 0xFF, []),
        ],
    )
    def test_alarm_fields_that_do_not_care(
        self, rtc: Bench, hour: int, minute: int, second: int, due_s: list[int]
    ) -> None:
        for index, value in ((0x01, second), (0x03, minute), (0x05, hour)):
            rtc.set(index, value)
        rtc.pass_s(10.5)
        rtc.get(REG_C)
        rtc.set(REG_B, 0x22)
        for _ in range(3):
            if (due := rtc.clock.next_deadline()) is not None:
                rtc.pass_s((due - rtc.now) / NS)
                rtc.get(REG_C)
        assert [now // NS for now, level in rtc.log if level] == due_s

    def test_flags_are_set_for_those_who_poll_too(self, rtc: Bench) -> None:
        assert rtc.get(REG_C) == 0
        rtc.pass_s(1)
        assert rtc.get(REG_C) & 0xD0 == 0x50
        assert rtc.get(REG_C) == 0
        assert rtc.log == []

    def test_enabling_an_interrupt_that_is_pending_raises_it(self, rtc: Bench) -> None:
        rtc.pass_s(1)
        rtc.set(REG_B, 0x12)
        assert rtc.log == [(NS, 1)]
        rtc.set(REG_B, 0x02)
        assert rtc.log == [(NS, 1), (NS, 0)]

    def test_set_stops_updates_but_not_the_periodic_interrupt(self, rtc: Bench) -> None:
        rtc.set(REG_A, 0x2F)
        rtc.set(REG_B, 0xD2)
        assert rtc.get(REG_B) == 0xC2
        rtc.pass_s(1)
        assert rtc.get(REG_C) == 0xC0

    def test_reset_turns_interrupts_off_and_keeps_the_date(self, rtc: Bench) -> None:
        rtc.set(REG_B, 0x72)
        rtc.set(0x40, 0xA5)
        rtc.pass_s(2)
        rtc.chip.reset()
        assert rtc.log[-1][1] == 0
        assert rtc.clock.next_deadline() is None
        assert (rtc.get(REG_B), rtc.get(REG_C), rtc.get(0x40)) == (0x02, 0, 0xA5)
        assert rtc.date() == "20 00 01 01 00 00 02"


class TestMemory:
    def test_bytes_stay(self, rtc: Bench) -> None:
        rtc.set(0x7F, 0x5A)
        assert rtc.get(0x7F) == 0x5A

    def test_bit_7_of_the_index_is_the_nmi_mask(self, rtc: Bench) -> None:
        rtc.set(0x40, 0x77)
        assert rtc.get(0xC0) == 0x77

    def test_index_and_status_registers(self, rtc: Bench) -> None:
        assert rtc.chip.read(0, 1) == 0xFF
        rtc.set(REG_C, 0xFF)
        rtc.set(REG_D, 0x00)
        assert (rtc.get(REG_C), rtc.get(REG_D)) == (0, 0x80)

    @pytest.mark.parametrize(
        ("memory", "base", "above_1m", "above_16m", "above_4g"),
        [
            (1 << 19, 512, 0, 0, 0),
            (1 << 20, 640, 0, 0, 0),
            (8 << 20, 640, 7168, 0, 0),
            (64 << 20, 640, 64512, 768, 0),
            (1 << 30, 640, 65535, 16128, 0),
            (5 << 30, 640, 65535, 48896, 16384),
        ],
    )
    def test_memory_sizes(
        self, memory: int, base: int, above_1m: int, above_16m: int, above_4g: int
    ) -> None:
        rtc = Bench(memory)
        words = [rtc.get(at) | rtc.get(at + 1) << 8 for at in (0x15, 0x17, 0x30, 0x34, 0x5B)]
        assert words == [base, above_1m, above_1m, above_16m, above_4g]


@given(st.integers(min_value=-62_167_219_200, max_value=253_402_300_799))
def test_calendar_agrees_with_pythons(seconds: int) -> None:
    at = from_seconds(seconds)
    assert to_seconds(at) == seconds
    if seconds >= 0:
        assert at == Moment(*time.gmtime(seconds)[:6])
        assert to_seconds(at) == calendar.timegm((*at, 0, 0, 0))
