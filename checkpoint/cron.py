"""Cron expressions: a grammar of our own, and what other schedulers make of them.

A grammar of our own, because libraries and daemons take more than each other: six fields, ``L``, ``?``, ``5-1``. What is
taken here means the same to Debian's cron, to systemd and to launchd, or is refused with the reason.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from checkpoint.errors import Usage, shown

MOST_LAUNCHD = 500

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_DAYS_IN = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", re.ASCII)


class _Field(NamedTuple):
    name: str
    least: int
    most: int
    names: Sequence[str] = ()
    first_name: int = 0


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS, 1),
    _Field("day of week", 0, 7, _DAYS, 0),
)


class Cron(NamedTuple):
    """When something is due, in the zone of whoever asks. ``text``: five fields, as crontab(5) has them; each of the
    others the numbers that are meant (day of week: 0 is Sunday), None for all of them."""

    text: str
    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None


def parse(text: str) -> Cron:
    """``*/10 * * * *``, ``0 3 * * mon-fri``, ``@daily``. Raises Usage, naming the field."""
    typed = shown(text)
    whole = text.strip(" \t")
    if whole.startswith("@"):
        if whole.lower() not in _ALIASES:
            known = ", ".join(_ALIASES)
            raise Usage(f"{typed} is no time that comes again: there are {known}")
        whole = _ALIASES[whole.lower()]
    fields = re.split(r"[ \t]+", whole)
    if len(fields) != len(_FIELDS):
        raise Usage(f"{typed} has {len(fields) if whole else 0} fields; a cron expression has 5: {_names()}")
    sets = [_values(field, written, typed) for field, written in zip(_FIELDS, fields, strict=True)]
    minutes, hours, days, months, weekdays = (
        None if values is None else tuple(sorted(values)) for values in (*sets[:4], _from_sunday(sets[4]))
    )
    stepped = [field.name for field, written in zip(_FIELDS, fields, strict=True) if written[0] == "*" and written != "*"]
    if days is not None and weekdays is not None and {"day of month", "day of week"} & set(stepped):
        raise Usage(
            f"{typed}: */N as a day of month beside a day of week (or the other way round) means one thing to cron daemons"
            " and another to others: write the days out"
        )
    if days is not None and weekdays is None and not any(days[0] <= _DAYS_IN[m - 1] for m in months or range(1, 13)):
        raise Usage(f"{typed} never comes: there is no such day of month")
    if days is not None and weekdays is not None and (len(days) == 31 or len(weekdays) == 7):
        days = weekdays = None  # one or the other, and one of them is always
    # */1 is a star to daemons, and a restriction to croniter.
    plain = ["*" if values is None else written for written, values in zip(fields, sets, strict=True)]
    return Cron(" ".join(plain), minutes, hours, days, months, weekdays)


def every(seconds: int) -> Cron:
    """Every so many minutes or hours, where that divides the hour or the day. Raises Usage."""
    minutes, left = divmod(seconds, 60)
    if left == 0 and minutes < 60 and 60 % minutes == 0:
        return parse(f"*/{minutes} * * * *" if minutes > 1 else "* * * * *")
    hours, left = divmod(seconds, 3600)
    if left == 0 and 0 < hours < 24 and 24 % hours == 0:
        return parse(f"0 */{hours} * * *" if hours > 1 else "0 * * * *")
    if seconds == 86400:
        return parse("@daily")
    raise Usage("--every must divide an hour or a day: 1m 2m 5m 10m 15m 30m 1h 2h 6h 12h 1d ...; else --cron EXPR")


def period_s(cron: Cron) -> int:
    """About how long it is from one time to the next, at most: for whoever asks whether one was missed."""
    if cron.days is not None or cron.months is not None or cron.weekdays is not None:
        return (366 if cron.months is not None else 31 if cron.days is not None else 7) * 86400
    times = [hour * 60 + minute for hour in cron.hours or range(24) for minute in cron.minutes or range(60)]
    return max(later - earlier for earlier, later in zip(times, [*times[1:], times[0] + 24 * 60], strict=True)) * 60


def to_systemd(cron: Cron) -> list[str]:
    """OnCalendar= expressions (systemd.time(7)), any of which is due. Two where day of month and day of week are both
    given: cron means either, one expression would mean both."""
    clock = f"{_digits(cron.hours)}:{_digits(cron.minutes)}:00"
    names = [] if cron.weekdays is None else [_DAYS[day].capitalize() for day in cron.weekdays]
    by_date = f"*-{_digits(cron.months)}-{_digits(cron.days)} {clock}"
    if cron.weekdays is None:
        return [by_date]
    by_weekday = f"{','.join(names)} *-{_digits(cron.months)}-* {clock}"
    return [by_weekday] if cron.days is None else [by_date, by_weekday]


def to_launchd(cron: Cron) -> list[dict[str, int]]:
    """StartCalendarInterval dictionaries (launchd.plist(5)). Raises Usage for what would take too many, or an OR."""
    if cron.days is not None and cron.weekdays is not None:
        raise Usage(
            f"{cron.text!r}: day of month or day of week, either of them, cannot be said to launchd: make it two schedules"
        )
    keys = ("Minute", "Hour", "Day", "Month", "Weekday")
    given = [(key, values) for key, values in zip(keys, cron[1:], strict=True) if values is not None]
    count = 1
    for _, values in given:
        count *= len(values)
    if count > MOST_LAUNCHD:
        raise Usage(f"{cron.text!r} would be {count} entries of a launchd calendar; at most {MOST_LAUNCHD} are written")
    return [dict(zip((key for key, _ in given), chosen, strict=True)) for chosen in product(*(values for _, values in given))]


def _values(field: _Field, written: str, typed: str) -> set[int] | None:
    """None for ``*``."""
    if written == "*":
        return None
    values: set[int] = set()
    for part in written.split(","):
        values |= set(_range(field, part, typed))
    every_one = set(range(field.least, (6 if field.most == 7 else field.most) + 1))
    return None if values >= every_one and written.startswith("*") else values


def _range(field: _Field, part: str, typed: str) -> Iterator[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise Usage(f"{typed}: {field.name} {shown(part)} is no number, range, list or step of one")
    whole, first, last, step = match.groups()
    if step is not None and whole != "*" and last is None:
        raise Usage(f"{typed}: {field.name} {shown(part)}: a step wants * or a range before it")
    if step is not None and not (len(step) <= 4 and 0 < int(step) <= field.most):
        raise Usage(f"{typed}: {field.name} {shown(part)}: a step is from 1 to {field.most}")
    if whole == "*":
        least, most = field.least, 6 if field.most == 7 else field.most
    else:
        least = _number(field, first, typed)
        most = least if last is None else _number(field, last, typed)
        if least > most:
            raise Usage(f"{typed}: {field.name} {shown(part)} runs backwards")
    return iter(range(least, most + 1, int(step or 1)))


def _number(field: _Field, word: str, typed: str) -> int:
    if word.lower() in field.names:
        return field.names.index(word.lower()) + field.first_name
    if not word.isdecimal() or len(word) > 2 or not field.least <= int(word) <= field.most:
        names = f" or {field.names[0].upper()}-{field.names[-1].upper()}" if field.names else ""
        raise Usage(f"{typed}: {field.name} {shown(word)} is not from {field.least} to {field.most}{names}")
    return int(word)


def _from_sunday(days: set[int] | None) -> set[int] | None:
    if days is None:
        return None
    return {day % 7 for day in days}


def _digits(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02}" for value in values)


def _names() -> str:
    return ", ".join(field.name for field in _FIELDS)
