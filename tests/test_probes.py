from __future__ import annotations

import inspect

from vmxsim.probes import Instrument, Probes

EVENTS = [name for name in vars(Instrument) if not name.startswith("_")]


class Pio(Instrument):
    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def pio(
        self, vcpu_id: int, now: int, is_write: bool, port: int, size: int, count: int, value: int
    ) -> None:
        self.log.append((now, is_write, port, size, count, value))


def test_every_event_has_a_tuple_that_is_empty_while_nobody_watches() -> None:
    probes = Probes()
    assert sorted(vars(probes)) == sorted([*EVENTS, "generation", "watching"])
    assert all(getattr(probes, event) == () for event in EVENTS)


def test_only_what_is_overridden_is_called() -> None:
    probes, pio = Probes(), Pio()
    probes.add(pio)
    assert [event for event in EVENTS if getattr(probes, event)] == ["pio"]
    for probe in probes.pio:
        probe(0, 1000, True, 0x3F8, 1, 1, 0x48)
    assert pio.log == [(1000, True, 0x3F8, 1, 1, 0x48)]


def test_a_subclass_that_overrides_further_up_counts() -> None:
    class Inherited(Pio):
        pass

    probes = Probes()
    probes.add(Inherited())
    assert len(probes.pio) == 1


def test_instruments_are_called_in_the_order_they_were_added_and_can_leave() -> None:
    probes, first, second = Probes(), Pio(), Pio()
    probes.add(first)
    probes.add(second)
    assert [probe.__self__ for probe in probes.pio] == [first, second]
    probes.remove(first)
    probes.remove(first)
    assert [probe.__self__ for probe in probes.pio] == [second]


def test_an_instrument_that_overrides_nothing_costs_nothing() -> None:
    probes = Probes()
    probes.add(Instrument())
    assert not any(getattr(probes, event) for event in EVENTS)


def test_all_methods_name_the_vcpu_and_the_time_first() -> None:
    for event in EVENTS:
        parameters = list(inspect.signature(getattr(Instrument, event)).parameters)
        # Asking for the time would cost as much as what these tell of.
        timeless = event in ("fast_pio", "handled", "to_userspace", "from_userspace")
        first = ["self", "vcpu_id"] if timeless else ["self", "vcpu_id", "now"]
        assert parameters[: len(first)] == first
