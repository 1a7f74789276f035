"""The Gregorian calendar as arithmetic on whole days, since a device may not ask the host's."""

from __future__ import annotations

from typing import NamedTuple

EPOCH_DAYS = 719_468
"""Days from 0000-03-01 to 1970-01-01."""
DAYS_IN_400_YEARS = 146_097


class Moment(NamedTuple):
    """A date and a time of day."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int


def to_seconds(at: Moment) -> int:
    """Seconds since 1970. A day, hour, minute or second too large runs over into the next."""
    # Years begin in March, so that the leap day is their last.
    year = at.year - (at.month <= 2)
    era, of_era = divmod(year, 400)
    of_year = (153 * ((at.month + 9) % 12) + 2) // 5 + at.day - 1
    days = era * DAYS_IN_400_YEARS + of_era * 365 + of_era // 4 - of_era // 100 + of_year
    return ((days - EPOCH_DAYS) * 24 + at.hour) * 3600 + at.minute * 60 + at.second


def from_seconds(seconds: int) -> Moment:
    """The date and time so many seconds after 1970-01-01 00:00:00."""
    days, of_day = divmod(seconds, 86_400)
    era, day = divmod(days + EPOCH_DAYS, DAYS_IN_400_YEARS)
    year = (day - day // 1460 + day // 36_524 - day // (DAYS_IN_400_YEARS - 1)) // 365
    of_year = day - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    of_month = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    year += era * 400 + (month <= 2)
    return Moment(year, month, of_month, of_day // 3600, of_day // 60 % 60, of_day % 60)
