"""The times of a cron expression: the only import of croniter (32 ms)."""

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter

from checkpoint.cron import Cron
from checkpoint.errors import Usage


def zone(name: str | None) -> tzinfo | None:
    """A zone by its name (``Europe/Berlin``); None for that of this host. Raises Usage."""
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Usage(f"there is no time zone {name!r}: they are called as Europe/Berlin or UTC") from None


def times(cron: Cron, after: datetime, place: tzinfo | None) -> Iterator[datetime]:
    """The times after ``after``, without end, in the zone ``place`` (None: the host's).

    Counted by the clock on the wall: a time that a change to summer time skips does not come, one that comes twice in the
    night back counts the first time, as with systemd.
    """
    wall = after.astimezone(place).replace(tzinfo=None)
    # As plain lists: of 59-59/59 croniter makes something else than a daemon.
    text = " ".join("*" if values is None else ",".join(map(str, values)) for values in cron[1:])
    for moment in croniter(text, wall, ret_type=datetime, max_years_between_matches=100):
        local = moment.replace(tzinfo=place) if place is not None else moment.astimezone()
        if local.astimezone(UTC).astimezone(place).replace(tzinfo=None) == moment and local > after:
            yield local
