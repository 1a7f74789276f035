"""The timer, told as histories in virtual nanoseconds and CLK pulses."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.clock import VirtualClock
from vmxsim.kvm.i8254 import I8254, SpeakerPort
from vmxsim.kvm.i8254_counter import PIT_HZ, pulse_at, time_of


class Bench:
    """A timer, its clock, and the log of IRQ 0: (ns, level)."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.log: list[tuple[int, int]] = []
        self.pit = I8254(self.clock, lambda level: self.log.append((self.clock.now(), level)))
        self.speaker = SpeakerPort(self.pit)

    def at_pulse(self, pulse: int) -> None:
        """Move on to a CLK pulse, giving alarms at their time."""
        end = time_of(pulse)
        while (due := self.clock.next_deadline()) is not None and due <= end:
            self.clock.jump_to(due)
            self.clock.run_due()
        self.clock.jump_to(end)

    def program(self, counter: int, mode: int, count: int, bcd: int = 0) -> None:
        self.pit.write(3, 1, counter << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(counter, 1, count & 0xFF)
        self.pit.write(counter, 1, count >> 8)

    def latched(self, counter: int) -> int:
        self.pit.write(3, 1, counter << 6)
        return self.pit.read(counter, 1) | self.pit.read(counter, 1) << 8

    def wave(self, counter: int, pulses: range) -> str:
        text = ""
        for pulse in pulses:
            self.at_pulse(pulse)
            text += "_-"[self.pit.out(counter)]
        return text

    def values(self, counter: int, pulses: range) -> list[int]:
        found = []
        for pulse in pulses:
            self.at_pulse(pulse)
            found.append(self.latched(counter))
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def rises(bench: Bench) -> list[int]:
    return [ns for ns, level in bench.log if level]


def test_the_pc_tick_does_not_drift(bench: Bench) -> None:
    bench.program(0, 2, 0)
    bench.at_pulse(1 + 65536 * 1000)
    ticks = rises(bench)
    assert ticks[:2] == [54_926_240, 109_851_641], "65536 pulses, one pulse after the write"
    assert len(ticks) == 1000
    exact = Fraction((1 + 65536 * 1000) * 10**9, PIT_HZ)
    assert 0 <= ticks[-1] - exact < 1
    assert bench.log[:2] == [(ticks[0], 1), (ticks[0], 0)], "a pulse"


def test_mode_0_counts_once(bench: Bench) -> None:
    bench.program(0, 0, 5)
    assert bench.wave(0, range(12)) == "______------"
    assert rises(bench) == [time_of(6)]
    assert bench.values(0, range(12, 14)) == [0xFFFA, 0xFFF9], "it wraps and goes on"


def test_mode_0_stops_between_the_two_bytes(bench: Bench) -> None:
    bench.program(0, 0, 100)
    bench.at_pulse(11)
    bench.pit.write(0, 1, 50)
    assert bench.values(0, range(12, 20)) == [90] * 8
    bench.at_pulse(200)
    assert rises(bench) == []
    bench.pit.write(0, 1, 0)
    bench.at_pulse(260)
    assert rises(bench) == [time_of(251)]


def test_mode_2_is_low_for_one_pulse(bench: Bench) -> None:
    bench.program(0, 2, 4)
    assert bench.wave(0, range(1, 14)) == "---_---_---_-"
    assert rises(bench) == [time_of(5), time_of(9), time_of(13)]
    assert bench.values(0, range(13, 18)) == [4, 3, 2, 1, 4]


@pytest.mark.parametrize(
    ("count", "wave", "values"),
    [
        (4, "--__--__--", [4, 2, 4, 2, 4, 2, 4, 2, 4, 2]),
        (5, "---__---__", [4, 2, 0, 4, 2, 4, 2, 0, 4, 2]),
    ],
)
def test_mode_3_is_square(bench: Bench, count: int, wave: str, values: list[int]) -> None:
    bench.program(0, 3, count)
    assert bench.wave(0, range(1, 11)) == wave
    assert bench.values(0, range(1 + 4 * count, 11 + 4 * count)) == values
    assert rises(bench)[:2] == [time_of(1 + count), time_of(1 + 2 * count)]


def test_mode_4_strobes_and_interrupts_on_the_way_up(bench: Bench) -> None:
    bench.program(0, 4, 3)
    assert bench.wave(0, range(1, 8)) == "---_---"
    assert rises(bench) == [time_of(5)]


def test_mode_1_is_a_one_shot_started_by_its_gate(bench: Bench) -> None:
    bench.program(2, 1, 3)
    assert bench.wave(2, range(1, 5)) == "----"
    bench.speaker.write(0, 1, 1)
    assert bench.wave(2, range(5, 11)) == "___---"
    bench.speaker.write(0, 1, 0)
    bench.speaker.write(0, 1, 1)
    bench.at_pulse(12)
    bench.speaker.write(0, 1, 0)
    bench.speaker.write(0, 1, 1)
    assert bench.wave(2, range(13, 18)) == "___--", "retriggered"


def test_mode_1_on_counter_0_never_ticks(bench: Bench) -> None:
    bench.program(0, 1, 3)
    bench.at_pulse(1000)
    assert (bench.log, bench.clock.next_deadline()) == ([], None)


def test_mode_5_strobes_after_its_trigger(bench: Bench) -> None:
    bench.program(2, 5, 3)
    assert bench.wave(2, range(1, 5)) == "----"
    bench.speaker.write(0, 1, 1)
    assert bench.wave(2, range(5, 11)) == "---_--"


def test_a_low_gate_holds_mode_0(bench: Bench) -> None:
    bench.speaker.write(0, 1, 1)
    bench.program(2, 0, 10)
    assert bench.values(2, range(1, 4)) == [10, 9, 8]
    bench.speaker.write(0, 1, 0)
    assert bench.values(2, range(4, 7)) == [8, 8, 8]
    bench.speaker.write(0, 1, 1)
    assert bench.values(2, range(7, 9)) == [7, 6]


def test_a_rising_gate_restarts_mode_2_and_3(bench: Bench) -> None:
    bench.speaker.write(0, 1, 1)
    bench.program(2, 3, 4)
    assert bench.wave(2, range(1, 4)) == "--_"
    bench.speaker.write(0, 1, 0)
    assert bench.wave(2, range(4, 7)) == "---", "OUT is high at once"
    bench.speaker.write(0, 1, 1)
    assert bench.wave(2, range(7, 12)) == "--__-"


def test_a_new_count_waits_for_the_end_of_the_period(bench: Bench) -> None:
    bench.program(0, 2, 10)
    bench.at_pulse(4)
    bench.pit.write(0, 1, 3)
    bench.pit.write(0, 1, 0)
    bench.pit.write(3, 1, 0xE2)
    assert bench.pit.read(0, 1) == 0xF4, "null count: the new one is not in yet"
    bench.at_pulse(18)
    assert rises(bench) == [time_of(11), time_of(14), time_of(17)]


def test_a_new_count_waits_for_half_a_square_wave(bench: Bench) -> None:
    bench.program(0, 3, 8)
    bench.at_pulse(2)
    bench.pit.write(0, 1, 2)
    bench.pit.write(0, 1, 0)
    assert bench.wave(0, range(2, 12)) == "---_-_-_-_"
    assert rises(bench)[:2] == [time_of(6), time_of(8)]


def test_a_control_word_stops_the_ticks(bench: Bench) -> None:
    bench.program(0, 2, 10)
    bench.at_pulse(5)
    bench.pit.write(3, 1, 0x30)
    bench.at_pulse(100)
    assert (bench.log, bench.pit.out(0), bench.clock.next_deadline()) == ([], 0, None)


def test_bcd_counts_in_decimals(bench: Bench) -> None:
    bench.program(0, 0, 0x1000, bcd=1)
    assert bench.values(0, range(1, 4)) == [0x1000, 0x0999, 0x0998]
    bench.at_pulse(1010)
    assert rises(bench) == [time_of(1001)]
    assert bench.latched(0) == 0x9991
    bench.program(0, 2, 0, bcd=1)
    start = pulse_at(bench.clock.now()) + 1
    bench.at_pulse(start + 10_000)
    assert rises(bench)[1:] == [time_of(start + 10_000)]


def test_a_latch_holds_until_it_is_read(bench: Bench) -> None:
    bench.program(0, 2, 0x1234)
    bench.at_pulse(1)
    bench.pit.write(3, 1, 0x00)
    bench.at_pulse(0x34)
    bench.pit.write(3, 1, 0x00)
    assert [bench.pit.read(0, 1), bench.pit.read(0, 1)] == [0x34, 0x12]
    assert bench.pit.read(0, 1) == 0x01, "after that the counter itself, low byte first"


def test_one_byte_access(bench: Bench) -> None:
    bench.pit.write(3, 1, 0x54)
    bench.pit.write(1, 1, 0x12)
    bench.at_pulse(3)
    assert [bench.pit.read(1, 1), bench.pit.read(1, 1)] == [0x10, 0x10]
    bench.pit.write(3, 1, 0x64)
    bench.pit.write(1, 1, 0x12)
    bench.at_pulse(5)
    assert bench.pit.read(1, 1) == 0x11
    bench.pit.write(3, 1, 0x40)
    assert [bench.pit.read(1, 1), bench.pit.read(1, 1)] == [0x11, 0x11]


def test_read_back_gives_status_then_count(bench: Bench) -> None:
    bench.program(0, 2, 100)
    bench.program(2, 7, 100, bcd=1)
    bench.at_pulse(11)
    bench.pit.write(3, 1, 0xC2 | 0x08)
    assert [bench.pit.read(0, 1) for _ in range(3)] == [0xB4, 90, 0]
    assert [bench.pit.read(2, 1) for _ in range(1)] == [0xB7], "mode 7 is mode 3"
    bench.pit.write(3, 1, 0xD2)
    assert [bench.pit.read(0, 1) for _ in range(2)] == [90, 0]
    assert bench.pit.read(3, 1) == 0xFF


def test_port_61(bench: Bench) -> None:
    bench.speaker.write(0, 1, 0xFF)
    bench.program(2, 0, 5)
    seen = []
    for pulse in (1, 5, 6, 18, 35, 36):
        bench.at_pulse(pulse)
        seen.append(bench.speaker.read(0, 1))
    assert seen == [0x03, 0x03, 0x23, 0x33, 0x33, 0x23]
    bench.speaker.write(0, 1, 0)
    assert bench.speaker.read(0, 1) == 0x20


def test_late_ticks_coalesce(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.clock.jump_to(time_of(1 + 3500))
    bench.clock.run_due()
    assert len(rises(bench)) == 1
    assert bench.clock.next_deadline() == time_of(1 + 4000), "the next one is on the grid"


def test_reinjection_gives_every_missed_tick_after_an_end_of_interrupt(bench: Bench) -> None:
    bench.pit.reinject = True
    bench.program(0, 2, 1000)
    bench.at_pulse(1 + 3500)
    assert len(rises(bench)) == 1, "the guest has not ended the first"
    history = []
    for _ in range(4):
        bench.pit.acked()
        history.append(len(rises(bench)))
    assert history == [2, 3, 3, 3]
    bench.at_pulse(1 + 9500)
    bench.pit.unmasked()
    bench.pit.acked()
    assert len(rises(bench)) == 4, "unmasking forgets the backlog"


def test_state_goes_out_and_comes_back(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.speaker.write(0, 1, 3)
    bench.program(2, 3, 77)
    bench.at_pulse(500)
    other = Bench()
    other.at_pulse(500)
    other.pit.set_state(bench.pit.get_state())
    assert other.clock.next_deadline() == bench.clock.next_deadline()
    assert other.values(2, range(500, 700)) == bench.values(2, range(500, 700))
    assert other.pit.get_state() == bench.pit.get_state()
    other.pit.reset()
    assert other.clock.next_deadline() is None


@given(st.integers(2, 65536), st.lists(st.integers(1, 10**9), min_size=1, max_size=20))
def test_ticks_lie_on_the_grid_whenever_someone_looks(count: int, steps: list[int]) -> None:
    bench = Bench()
    bench.program(0, 2, count & 0xFFFF)
    total = 0
    for step in steps:
        total += step
        bench.clock.jump_to(total)
        bench.clock.run_due()
        next_tick = bench.clock.next_deadline()
        assert next_tick is not None
        assert next_tick > total
        assert (pulse_at(next_tick) - 1) % count == 0


@given(
    st.sampled_from([2, 3]), st.integers(2, 40), st.integers(2, 40), st.integers(0, 90)
)
def test_alarms_are_where_out_rises(mode: int, first: int, second: int, when: int) -> None:
    bench = Bench()
    bench.program(0, mode, first)
    bench.at_pulse(when)
    bench.pit.write(0, 1, second)
    bench.pit.write(0, 1, 0)
    wave = bench.wave(0, range(when, when + 200))
    by_wave = [time_of(when + at + 1) for at, two in enumerate(zip(wave, wave[1:], strict=False))
               if two == ("_", "-")]
    assert [ns for ns in rises(bench) if ns > time_of(when)] == by_wave
