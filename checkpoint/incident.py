"""Incidents: a finding over time. What is to be told, when again, and when it is over: decided here, sent elsewhere.

The ledger is all that a self-check remembers: open incidents, who has asked for quiet, the notices that some channel has
not taken yet, and counts. ``fold`` takes it from one check to the next. It is written down before anything is sent, so a
check that is killed while it sends loses nothing.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from checkpoint.errors import NotFound, Usage
from checkpoint.monitor import Finding, Kind, Reason, Report, Severity

MOST_INCIDENTS = 1000
MOST_NOTICES = 30
MOST_TOLD = 100
MOST_RESOLVED = 50
NOTICE_LIFE = timedelta(days=7)
LONGEST_QUIET_S = 30 * 86400
_SKEW = timedelta(minutes=5)
_URGENCY = {Severity.OK: 0, Severity.WARNING: 1, Severity.UNKNOWN: 2, Severity.CRITICAL: 3}
_MASKING = (Kind.UNREADABLE, Kind.CLOCK)
_ALWAYS_SEEN = (Kind.STORE, Kind.MONITOR)


class State(StrEnum):
    """Where an incident stands."""

    OPEN = "open"
    REPEATED = "repeated"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


class Event(StrEnum):
    """What a notice has to say about an incident."""

    OPENED = "opened"
    ESCALATED = "escalated"
    CHANGED = "changed"
    LOUD = "loud again"
    RESOLVED = "resolved"
    UNWATCHED = "no longer watched"


class Telling(NamedTuple):
    """When to tell. Seconds: ``repeat_s`` until what is unchanged is told again, doubling up to ``longest_s``;
    ``hard_s``: age past which no request for quiet counts. ``recovery``: whether the end is told too."""

    repeat_s: int = 4 * 3600
    longest_s: int = 24 * 3600
    hard_s: int = 72 * 3600
    recovery: bool = True


class Incident(NamedTuple):
    """One finding over time; which one is said by store, id and kind. ``finding``: as it was last seen;
    ``told``: the reasons that were told, with the gravest severity in ``told_severity``; ``told_at``: the last time;
    ``quiet``: whether it was passed over at the last check because somebody had asked for that."""

    finding: Finding
    state: State
    opened_at: datetime
    seen_at: datetime
    told: tuple[Reason, ...] = ()
    told_severity: Severity = Severity.OK
    told_at: datetime | None = None
    quiet: bool = False
    resolved_at: datetime | None = None

    @property
    def key(self) -> tuple[str, str, Kind]:
        return self.finding.store, self.finding.id, self.finding.kind


class Quiet(NamedTuple):
    """A request to be told nothing for a time. ``verb``: ack, snooze or silence; ``pattern``: an id, for silence also
    with ``*`` and ``?``; ``store``: None for all. ``progress_at``: of the checkpoint when it was asked; once that moves
    an ack or snooze is over. ``run_id``: of a run of ``exec`` that went wrong, which does not move: it is over when the
    next one does."""

    verb: str
    pattern: str
    store: str | None
    by: str
    reason: str
    at: datetime
    until: datetime
    progress_at: datetime | None = None
    run_id: str | None = None

    def covers(self, finding: Finding) -> bool:
        # What has no id is the failure of a store or of the self-check itself: nobody may silence that.
        if not finding.id or self.store not in (None, finding.store):
            return False
        if self.verb == "silence":
            return fnmatchcase(finding.id, self.pattern)
        if finding.id != self.pattern:
            return False
        if finding.kind is Kind.LAST_RUN and self.run_id is not None:
            return finding.run_id == self.run_id
        return self.progress_at is None or finding.progress_at == self.progress_at


class Change(NamedTuple):
    """One line of a notice."""

    event: Event
    finding: Finding
    opened_at: datetime


class Notice(NamedTuple):
    """What one check has to tell, all of it together. ``id``: the same at each attempt, for receivers that drop what they
    have; ``still``: what is open besides; ``more``: how much was left out of both; ``waiting``: channels that have not
    taken it; ``attempts``: how often sending was begun."""

    id: str
    at: datetime
    severity: Severity
    changes: tuple[Change, ...]
    still: tuple[Change, ...]
    more: int
    waiting: tuple[str, ...]
    attempts: int = 0


class Ledger(NamedTuple):
    """All that is remembered. ``told_at`` and ``interval_s``: the last notice, and how long it holds; ``overflow``:
    findings beyond the most that are followed one by one; ``failures``: deliveries that failed, by channel, ever;
    ``stores``: all that were looked at, until somebody says that one is gone for good."""

    incidents: tuple[Incident, ...] = ()
    resolved: tuple[Incident, ...] = ()
    quiets: tuple[Quiet, ...] = ()
    notices: tuple[Notice, ...] = ()
    told_at: datetime | None = None
    interval_s: int = 0
    overflow: int = 0
    last_run_at: datetime | None = None
    last_success_at: datetime | None = None
    failures: Mapping[str, int] = {}
    dropped: int = 0
    stores: tuple[str, ...] = ()


# --- from one check to the next ----------------------------------------------------------------------------------------


def fold(
    ledger: Ledger, report: Report, telling: Telling, channels: tuple[str, ...], notice_id: str
) -> tuple[Ledger, tuple[Change, ...]]:
    """The ledger after a check, with a notice to be sent if there is anything to tell; and what has changed.

    What could not be looked at is not over: incidents of a store that was missing stay as they are, and so does "stale"
    of a checkpoint that has become unreadable.
    """
    now = report.at
    ledger = _with_clock_set_right(ledger, now)
    found = {(finding.store, finding.id, finding.kind): finding for finding in report.findings}
    blind = {finding.store for finding in report.findings if finding.kind is Kind.STORE}
    quiets = tuple(quiet for quiet in ledger.quiets if now < quiet.until and not _is_over(quiet, found, blind))
    known = {incident.key: incident for incident in ledger.incidents}
    changes: list[Change] = []
    standing: list[Incident] = []
    resolved: list[Incident] = []
    for key, incident in known.items():
        if key not in found:
            store, id, kind = key
            masked = kind is Kind.STALE and any((store, id, other) in found for other in _MASKING)
            if masked or (store in blind and kind not in _ALWAYS_SEEN):
                standing.append(incident)
                continue
            resolved.append(incident._replace(state=State.RESOLVED, resolved_at=now))
            if kind is not Kind.VANISHED and (store, id) in report.vanished:
                continue  # it is not over: it goes on as "vanished"
            watched = store in report.stores or kind in _ALWAYS_SEEN
            if incident.told and telling.recovery:
                changes.append(Change(Event.RESOLVED if watched else Event.UNWATCHED, incident.finding, incident.opened_at))
            continue
        standing.append(incident._replace(finding=_cut(found[key]), seen_at=now))
    room = MOST_INCIDENTS - len(standing)
    fresh = [finding for key, finding in found.items() if key not in known]
    standing += [Incident(_cut(finding), State.OPEN, now, now) for finding in fresh[:room]]
    told = []
    for incident in standing:
        judged, event = _judged(incident, quiets, telling, now)
        if event is not None:
            changes.append(Change(event, judged.finding, judged.opened_at))
        told.append(judged)
    loud = [incident for incident in told if not incident.quiet]
    interval = timedelta(seconds=ledger.interval_s)
    # Other programs' files harm nothing: they are told once.
    repeated = [incident for incident in loud if incident.finding.kind is not Kind.FOREIGN]
    again = not changes and repeated and ledger.told_at is not None and now >= ledger.told_at + interval
    after = ledger._replace(
        incidents=tuple(told),
        resolved=(*resolved, *ledger.resolved)[:MOST_RESOLVED],
        quiets=quiets,
        overflow=max(0, len(fresh) - room),
        last_run_at=now,
        stores=tuple(dict.fromkeys((*ledger.stores, *report.stores)))[-MOST_INCIDENTS:],
        told_at=ledger.told_at if loud else None,
    )
    if not changes and not again:
        return after, ()
    if again:
        longest_s = max(telling.longest_s, telling.repeat_s)
        after = after._replace(
            told_at=now,
            interval_s=min(ledger.interval_s * 2, longest_s),
            incidents=tuple(i if i.quiet or i.state is State.ESCALATED else i._replace(state=State.REPEATED) for i in told),
        )
        # A channel that has not even taken the last notice is not helped by another one.
        behind = {channel for notice in ledger.notices for channel in notice.waiting}
        channels = tuple(channel for channel in channels if channel not in behind)
    else:
        after = after._replace(told_at=now, interval_s=telling.repeat_s)
    after = after._replace(incidents=tuple(i if i.quiet else _as_told(i, now) for i in after.incidents))
    if not channels:
        return after, tuple(changes)
    named = {(change.finding.store, change.finding.id, change.finding.kind) for change in changes}
    still = [Change(Event.OPENED, i.finding, i.opened_at) for i in loud if i.key not in named]
    notice = Notice(
        notice_id,
        now,
        max((i.finding.severity for i in loud), key=_URGENCY.__getitem__, default=Severity.OK),
        tuple(changes[:MOST_TOLD]),
        tuple(still[:MOST_TOLD]),
        max(0, len(changes) - MOST_TOLD) + max(0, len(still) - MOST_TOLD) + after.overflow,
        channels,
    )
    return after._replace(notices=(*after.notices, notice)), tuple(changes)


def attempted(ledger: Ledger, channels: Iterable[str]) -> Ledger:
    """The ledger as it is to be written before sending: each waiting notice with one attempt more, none for a channel
    that is gone, and none that is too old or too many to be worth it (``dropped`` counts those)."""
    present = set(channels)
    now = ledger.last_run_at
    kept = []
    dropped = 0
    for position, notice in enumerate(ledger.notices):
        waiting = tuple(channel for channel in notice.waiting if channel in present)
        if not waiting:
            continue
        if len(ledger.notices) - position > MOST_NOTICES or (now is not None and now - notice.at > NOTICE_LIFE):
            dropped += 1
            continue
        kept.append(notice._replace(waiting=waiting, attempts=notice.attempts + 1))
    return ledger._replace(notices=tuple(kept), dropped=ledger.dropped + dropped)


def delivered(ledger: Ledger, notice_id: str, channel: str) -> Ledger:
    """The channel has taken the notice."""
    notices = []
    for notice in ledger.notices:
        if notice.id == notice_id:
            notice = notice._replace(waiting=tuple(name for name in notice.waiting if name != channel))
        if notice.waiting:
            notices.append(notice)
    return ledger._replace(notices=tuple(notices))


def failed(ledger: Ledger, channel: str) -> Ledger:
    """The channel has not taken a notice: it waits for the next check."""
    return ledger._replace(failures=dict(ledger.failures) | {channel: ledger.failures.get(channel, 0) + 1})


def hush(
    ledger: Ledger, verb: str, pattern: str, *, store: str | None, for_s: int, by: str, reason: str, now: datetime
) -> Ledger:
    """Ask for quiet: ``ack`` an open incident, ``snooze`` a checkpoint, ``silence`` all whose id fits.

    A later request for the same replaces the earlier one. Raises NotFound for an ack of what is not open, and Usage.
    """
    if for_s > LONGEST_QUIET_S:
        raise Usage("quiet for more than 30 days would be forgotten: ask for less, and again then")
    if not by.strip() or (verb != "ack" and not reason.strip()):
        raise Usage("--by and --reason may not be empty: the next one on duty asks who, and why")
    matching = [i for i in ledger.incidents if i.finding.id == pattern and store in (None, i.finding.store)]
    if verb == "ack" and not matching:
        raise NotFound(f"no incident of {pattern} is open", hint="checkpoint-selfcheck incidents")
    # One for each store in which that id is open: each of them may move on by itself.
    about: list[Quiet] = []
    asked_for = Quiet(verb, pattern, store, by, reason, now, now + timedelta(seconds=for_s))
    if verb != "silence":
        about += [
            asked_for._replace(
                store=i.finding.store,
                progress_at=i.finding.progress_at,
                run_id=i.finding.run_id if i.finding.kind is Kind.LAST_RUN else None,
            )
            for i in matching
        ]
    asked = about or [asked_for]
    replaced = {(quiet.pattern, quiet.store, quiet.run_id) for quiet in asked}
    # From now on, not from the next check: should it be over by then, that is to be told.
    hushed = (i._replace(quiet=i.quiet or any(q.covers(i.finding) for q in asked)) for i in ledger.incidents)
    quiets = (*(q for q in ledger.quiets if (q.pattern, q.store, q.run_id) not in replaced), *asked)
    return ledger._replace(incidents=tuple(hushed), quiets=quiets)


def unhush(ledger: Ledger, pattern: str, *, store: str | None) -> Ledger:
    """End every request for quiet of that id or pattern. Raises NotFound."""
    left = tuple(q for q in ledger.quiets if q.pattern != pattern or (store is not None and q.store != store))
    if left == ledger.quiets:
        raise NotFound(f"nobody has asked for quiet about {pattern}", hint="checkpoint-selfcheck incidents")
    return ledger._replace(quiets=left)


def forget(ledger: Ledger, store: str) -> Ledger:
    """A store is gone for good: nobody is to be told that it is missing. Raises NotFound."""
    if store not in ledger.stores:
        raise NotFound(f"{store} is none of the stores that were looked at", hint="checkpoint-selfcheck incidents")
    return ledger._replace(stores=tuple(one for one in ledger.stores if one != store))


def without(ledger: Ledger, kind: Kind, names: Iterable[tuple[str, str]]) -> Ledger:
    """The ledger without the open incidents of that kind about these (store, id): a person has settled them, which is no
    news to tell."""
    settled = set(names)

    def is_settled(incident: Incident) -> bool:
        return incident.finding.kind is kind and (incident.finding.store, incident.finding.id) in settled

    return ledger._replace(incidents=tuple(one for one in ledger.incidents if not is_settled(one)))


def quiet_of(ledger: Ledger, incident: Incident) -> Quiet | None:
    """The request under which the incident is passed over, if any, until it is too old for that."""
    return next((quiet for quiet in ledger.quiets if quiet.covers(incident.finding)), None)


def _judged(incident: Incident, quiets: Iterable[Quiet], telling: Telling, now: datetime) -> tuple[Incident, Event | None]:
    """The incident at this check, and what there is to say about it."""
    finding = incident.finding
    asked = any(quiet.covers(finding) for quiet in quiets)
    age_s = finding.age_s if finding.age_s is not None else (now - incident.opened_at).total_seconds()
    overdue = age_s >= telling.hard_s
    if asked and not overdue:
        return incident._replace(quiet=True), None
    after = incident._replace(quiet=False)
    if not incident.told:
        return after, Event.OPENED
    if asked and incident.quiet:
        return after._replace(state=State.ESCALATED), Event.ESCALATED
    if _URGENCY[finding.severity] > _URGENCY[incident.told_severity]:
        return after._replace(state=State.ESCALATED), Event.ESCALATED
    if incident.quiet:
        return after, Event.LOUD
    if finding.reason not in incident.told:
        return after, Event.CHANGED
    return after, None


def _as_told(incident: Incident, now: datetime) -> Incident:
    finding = incident.finding
    reasons = incident.told if finding.reason in incident.told else (*incident.told, finding.reason)
    gravest = max(incident.told_severity, finding.severity, key=_URGENCY.__getitem__)
    return incident._replace(told=reasons, told_severity=gravest, told_at=now)


def _is_over(quiet: Quiet, found: Mapping[tuple[str, str, Kind], Finding], blind: set[str]) -> bool:
    """An ack or snooze of an incident ends by itself when the checkpoint moves, or is well again."""
    if quiet.verb == "silence" or quiet.store is None or quiet.store in blind:
        return False
    about = [finding for finding in found.values() if (finding.store, finding.id) == (quiet.store, quiet.pattern)]
    return not any(quiet.covers(finding) or finding.progress_at is None for finding in about)


def _with_clock_set_right(ledger: Ledger, now: datetime) -> Ledger:
    """Times of ours that lie in the future come from a clock that was wrong: they would keep us from telling anything, or
    somebody's "four hours" from ever ending. They count from now."""
    limit = now + _SKEW
    quiets = tuple(q._replace(at=now, until=now + (q.until - q.at)) if q.at > limit else q for q in ledger.quiets)
    told_at = now if ledger.told_at is not None and ledger.told_at > limit else ledger.told_at
    notices = tuple(n._replace(at=now) if n.at > limit else n for n in ledger.notices)
    # What was told by that clock to be critical may not be, and is to be told when it is.
    incidents = tuple(
        i._replace(
            opened_at=min(i.opened_at, now),
            told_at=now,
            told_severity=min(i.told_severity, Severity.WARNING, key=_URGENCY.__getitem__),
        )
        if max(i.opened_at, i.told_at or i.opened_at) > limit
        else i
        for i in ledger.incidents
    )
    return ledger._replace(quiets=quiets, told_at=told_at, notices=notices, incidents=incidents)


def _cut(finding: Finding) -> Finding:
    """Short enough that a thousand of them, and the notices about them, fit into one file."""
    cut = {name: text[:300] for name in ("detail", "owner", "next") if (text := getattr(finding, name)) is not None}
    return finding._replace(**cut, in_doubt=finding.in_doubt[:10])


# --- as JSON -----------------------------------------------------------------------------------------------------------


def to_document(ledger: Ledger) -> dict[str, Any]:
    """The ledger as JSON values."""
    return {name: _plain(value) for name, value in ledger._asdict().items()}


def from_document(fields: Mapping[str, Any]) -> Ledger:
    """Raises KeyError, TypeError, ValueError or AttributeError for what no ledger was ever written as."""
    return Ledger(
        incidents=tuple(_incident(item) for item in fields["incidents"]),
        resolved=tuple(_incident(item) for item in fields["resolved"]),
        quiets=tuple(
            Quiet(**item | {name: _moment(item[name]) for name in ("at", "until", "progress_at")}) for item in fields["quiets"]
        ),
        notices=tuple(_notice(item) for item in fields["notices"]),
        told_at=_moment(fields["told_at"]),
        interval_s=int(fields["interval_s"]),
        overflow=int(fields["overflow"]),
        last_run_at=_moment(fields["last_run_at"]),
        last_success_at=_moment(fields["last_success_at"]),
        failures={str(name): int(count) for name, count in fields["failures"].items()},
        dropped=int(fields["dropped"]),
        stores=tuple(str(store) for store in fields["stores"]),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Severity):
        return value.name
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(inner) for name, inner in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _moment(text: str | None) -> datetime | None:
    return None if text is None else _time(text)


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC)


def _finding(fields: Mapping[str, Any]) -> Finding:
    return Finding(
        **dict(fields)
        | {
            "severity": Severity[fields["severity"]],
            "reason": Reason(fields["reason"]),
            "progress_at": _moment(fields["progress_at"]),
            "in_doubt": tuple(fields["in_doubt"]),
        }
    )


def _incident(fields: Mapping[str, Any]) -> Incident:
    return Incident(
        **dict(fields)
        | {
            "finding": _finding(fields["finding"]),
            "state": State(fields["state"]),
            "opened_at": _time(fields["opened_at"]),
            "seen_at": _time(fields["seen_at"]),
            "told": tuple(Reason(reason) for reason in fields["told"]),
            "told_severity": Severity[fields["told_severity"]],
            "told_at": _moment(fields["told_at"]),
            "resolved_at": _moment(fields["resolved_at"]),
        }
    )


def _change(fields: Mapping[str, Any]) -> Change:
    return Change(Event(fields["event"]), _finding(fields["finding"]), _time(fields["opened_at"]))


def _notice(fields: Mapping[str, Any]) -> Notice:
    return Notice(
        **dict(fields)
        | {
            "at": _time(fields["at"]),
            "severity": Severity[fields["severity"]],
            "changes": tuple(_change(item) for item in fields["changes"]),
            "still": tuple(_change(item) for item in fields["still"]),
            "waiting": tuple(fields["waiting"]),
        }
    )
