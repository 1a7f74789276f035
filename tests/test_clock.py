from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.clock import BLOCK_NS, EXIT_NS, Clock, HostClock, VirtualClock


def never(timeout: float | None) -> None:
    raise AssertionError(f"waited {timeout}")


class TestVirtualTime:
    def test_is_made_of_exits_blocks_and_charges(self) -> None:
        clock = VirtualClock()
        assert clock.now() == 0
        clock.exits += 3
        clock.blocks = lambda: 7
        clock.charge(5)
        assert clock.now() == 3 * EXIT_NS + 7 * BLOCK_NS + 5
        assert clock.tsc() == clock.now()

    def test_jumps_forwards_only(self) -> None:
        clock = VirtualClock()
        clock.jump_to(100)
        clock.jump_to(50)
        assert clock.now() == 100

    def test_waiting_jumps_to_the_next_alarm(self) -> None:
        clock, log = VirtualClock(), []
        clock.call_at(54_925_401, lambda: log.append(clock.now()))
        clock.wait(never)
        assert clock.run_due()
        assert log == [54_925_401]

    def test_waiting_without_an_alarm_waits_for_somebody_else(self) -> None:
        waited: list[float | None] = []
        VirtualClock().wait(waited.append)
        assert waited == [None]

    def test_wall_clock_starts_with_the_year_2000(self) -> None:
        clock = VirtualClock()
        assert clock.wall() == (2000, 1, 1, 0, 0, 0)
        clock.charge((31 + 28) * 86_400 * 10**9 + 3_661 * 10**9)
        assert clock.wall() == (2000, 2, 29, 1, 1, 1)

    def test_is_virtual(self) -> None:
        assert VirtualClock.virtual
        assert not HostClock.virtual


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=20), st.integers(0, 60))
def test_alarms_run_in_order_of_deadline_then_of_setting(
    alarms: list[tuple[int, bool]], now: int
) -> None:
    clock, log = VirtualClock(), []
    for number, (deadline, cancelled) in enumerate(alarms):
        alarm = clock.call_at(deadline, lambda entry=(deadline, number): log.append(entry))
        if cancelled:
            alarm.cancel()
    kept = sorted((d, n) for n, (d, cancelled) in enumerate(alarms) if not cancelled)
    assert clock.next_deadline() == (kept[0][0] if kept else None)
    clock.charge(now)
    due = [entry for entry in kept if entry[0] <= now]
    assert clock.run_due() == bool(due)
    assert log == due
    later = [deadline for deadline, _ in kept if deadline > now]
    assert clock.next_deadline() == (later[0] if later else None)


class TestAlarms:
    def test_nothing_runs_before_its_time(self) -> None:
        clock = VirtualClock()
        clock.call_at(10, lambda: never(0))
        clock.charge(9)
        assert not clock.run_due()

    def test_an_alarm_set_by_an_alarm_runs_too_if_it_is_due(self) -> None:
        clock, log = VirtualClock(), []
        clock.charge(30)

        def tick() -> None:
            log.append(len(log))
            if len(log) < 3:
                clock.call_at(10 * len(log), tick)

        clock.call_at(0, tick)
        assert clock.run_due()
        assert log == [0, 1, 2]

    def test_an_alarm_can_cancel_another_that_is_due_at_once(self) -> None:
        clock = VirtualClock()
        second = clock.call_at(1, lambda: never(0))
        clock.call_at(0, second.cancel)
        clock.charge(5)
        assert clock.run_due()
        assert clock.next_deadline() is None

    def test_cancelling_twice_or_too_late_is_no_error(self) -> None:
        clock = VirtualClock()
        alarm = clock.call_at(0, lambda: None)
        assert alarm.deadline == 0
        assert clock.run_due()
        alarm.cancel()
        alarm.cancel()
        assert not clock.run_due()

    def test_changes_of_the_next_deadline_are_told_and_nothing_else(self) -> None:
        clock, log = VirtualClock(), []
        clock.on_alarm_change = lambda: log.append(clock.next_deadline())
        first = clock.call_at(10, lambda: None)
        clock.call_at(20, lambda: None)
        clock.call_at(5, lambda: None)
        first.cancel()
        clock.charge(6)
        clock.run_due()
        assert log == [10, 5, 20]

    def test_many_threads_may_set_alarms_while_one_runs_them(self) -> None:
        clock, count = VirtualClock(), []

        def set_some() -> None:
            for _ in range(200):
                clock.call_at(0, lambda: count.append(1))

        threads = [threading.Thread(target=set_some) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            clock.run_due()
        for thread in threads:
            thread.join()
        clock.run_due()
        assert len(count) == 800


class TestHostTime:
    def test_goes_on_by_itself(self) -> None:
        clock = HostClock()
        before = clock.now()
        assert 0 <= before <= clock.now()
        assert clock.wall().year >= 2024

    def test_waits_as_long_as_the_next_alarm_is_away(self) -> None:
        clock, waited = HostClock(), []
        clock.wait(waited.append)
        clock.call_at(clock.now() + 10**12, lambda: None)
        clock.wait(waited.append)
        assert waited[0] is None
        assert 900 < waited[1] <= 1000

    def test_does_not_wait_for_what_is_due(self) -> None:
        clock = HostClock()
        clock.call_at(0, lambda: None)
        clock.wait(never)
        assert clock.run_due()


def test_the_base_class_tells_no_time() -> None:
    with pytest.raises(NotImplementedError):
        Clock().now()
