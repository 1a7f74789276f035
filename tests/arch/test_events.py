from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmxsim.arch.events import (
    TRIPLE,
    Event,
    EventType,
    Triple,
    Vector,
    combine,
    exception_class,
    fault,
    has_error_code,
    interruption_info,
)

EVENTS = st.builds(
    Event,
    st.sampled_from(EventType),
    st.integers(0, 255),
    st.none() | st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 15),
    st.none(),
)


@given(EVENTS)
def test_an_event_survives_its_interruption_information(event: Event) -> None:
    info = interruption_info(event)
    assert info >> 31 == 1
    assert Event.from_interruption_info(info, event.error_code or 0, event.length) == event


@pytest.mark.parametrize(
    ("event", "info"),
    [
        (Event(EventType.EXTERNAL_INTERRUPT, 0x20), 0x8000_0020),
        (Event(EventType.NMI, 2), 0x8000_0202),
        (fault(Vector.PF, 2, 0x1000), 0x8000_0B0E),
        (fault(Vector.UD), 0x8000_0306),
        (Event(EventType.SOFTWARE_INTERRUPT, 0x80, length=2), 0x8000_0480),
        (Event(EventType.PRIVILEGED_SOFTWARE_EXCEPTION, 1, length=1), 0x8000_0501),
        (Event(EventType.SOFTWARE_EXCEPTION, 3, length=1), 0x8000_0603),
    ],
)
def test_known_interruption_information(event: Event, info: int) -> None:
    assert interruption_info(event) == info


def test_who_pushes_an_error_code() -> None:
    with_code = [vector for vector in range(32) if has_error_code(vector)]
    names = ["DF", "TS", "NP", "SS", "GP", "PF", "AC", "CP"]
    assert with_code == [Vector[name] for name in names]


# SDM Vol. 3, table "Conditions for Generating a Double Fault", row by row.
@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (Vector.DB, Vector.GP, Vector.GP),
        (Vector.UD, Vector.PF, Vector.PF),
        (Vector.GP, Vector.UD, Vector.UD),
        (Vector.GP, Vector.NP, Vector.DF),
        (Vector.DE, Vector.GP, Vector.DF),
        (Vector.GP, Vector.PF, Vector.PF),
        (Vector.PF, Vector.DB, Vector.DB),
        (Vector.PF, Vector.GP, Vector.DF),
        (Vector.PF, Vector.PF, Vector.DF),
        (Vector.DF, Vector.GP, TRIPLE),
        (Vector.DF, Vector.PF, TRIPLE),
        (Vector.DF, Vector.DB, Vector.DB),
    ],
)
def test_exceptions_combine(first: Vector, second: Vector, outcome: Vector | Triple) -> None:
    assert combine(fault(first), second) == outcome


@given(st.sampled_from([Vector.GP, Vector.PF, Vector.NP]))
def test_nothing_combines_with_an_interrupt(second: Vector) -> None:
    for kind in (EventType.EXTERNAL_INTERRUPT, EventType.SOFTWARE_INTERRUPT, EventType.NMI):
        assert combine(Event(kind, 13), second) == second


def test_software_events() -> None:
    assert [kind.name for kind in EventType if Event(kind, 3).software] == [
        "SOFTWARE_INTERRUPT",
        "PRIVILEGED_SOFTWARE_EXCEPTION",
        "SOFTWARE_EXCEPTION",
    ]


def test_classes() -> None:
    names = {kind: "" for kind in {exception_class(v) for v in Vector}}
    for vector in Vector:
        names[exception_class(vector)] += vector.name + " "
    assert sorted(names.values()) == [
        "DB NMI BP OF BR UD NM DF COPROCESSOR_OVERRUN MF AC MC XM HV VC SX ",
        "DE TS NP SS GP CP ",
        "PF VE ",
    ]
