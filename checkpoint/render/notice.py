"""Notices, incidents and metrics as text. Apart from ``text``, for what every command loads must be small."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from checkpoint import model
from checkpoint.codec import timestamp
from checkpoint.incident import Change, Event, Incident, Notice, Quiet
from checkpoint.monitor import Report
from checkpoint.render.check import finding_document, finding_line
from checkpoint.render.text import escape

_MOST_LINES = 20


def notice_subject(notice: Notice, host: str) -> str:
    """``CHECKPOINT WARNING www: 2 opened, 1 resolved, 3 open besides``: what a mail's subject shows."""
    counts = {event: sum(change.event is event for change in notice.changes) for event in Event}
    parts = [f"{count} {event}" for event, count in counts.items() if count]
    if notice.still:
        parts.append(f"{len(notice.still)} open besides" if parts else f"{len(notice.still)} still open")
    if notice.more:
        parts.append(f"{notice.more} more")
    return escape(f"CHECKPOINT {notice.severity.name} {host}: {', '.join(parts)}")


def notice_lines(notice: Notice) -> tuple[str, ...]:
    """A notice in words, what has changed first; with the places of stores where it is about several."""
    places = len({change.finding.store for change in (*notice.changes, *notice.still)}) > 1
    lines = [f"{change.event}: {finding_line(change.finding, place=places)}" for change in notice.changes]
    lines += [
        f"open since {model.clock(change.opened_at)}: {finding_line(change.finding, place=places)}" for change in notice.still
    ]
    left_out = len(lines) - _MOST_LINES + notice.more
    if left_out > 0:
        lines[_MOST_LINES:] = [f"and {left_out} more: checkpoint-selfcheck incidents"]
    if notice.attempts > 1:
        lines.append(f"(attempt {notice.attempts}, the first at {model.clock(notice.at)}; id {notice.id})")
    return tuple(lines)


def notice_document(notice: Notice, host: str) -> dict[str, Any]:
    """A notice as JSON: what commands and webhooks are given."""
    return {
        "schema": "checkpoint-notice/v1",
        "id": notice.id,
        "at": timestamp(notice.at),
        "host": host,
        "severity": notice.severity.name,
        "subject": notice_subject(notice, host),
        "attempt": notice.attempts,
        "changes": [_change_document(change) for change in notice.changes],
        "still_open": [_change_document(change) for change in notice.still],
        "more": notice.more,
    }


def incident_document(incident: Incident, quiet: Quiet | None) -> dict[str, Any]:
    """An incident as JSON. ``quiet``: the request under which nothing is told of it."""
    return {
        "state": str(incident.state),
        "opened_at": timestamp(incident.opened_at),
        "seen_at": timestamp(incident.seen_at),
        "told_at": timestamp(incident.told_at) if incident.told_at else None,
        "resolved_at": timestamp(incident.resolved_at) if incident.resolved_at else None,
        "quiet": quiet_document(quiet) if quiet else None,
        "finding": finding_document(incident.finding),
    }


def quiet_document(quiet: Quiet) -> dict[str, Any]:
    """A request for quiet as JSON."""
    return {
        "verb": quiet.verb,
        "pattern": quiet.pattern,
        "store": quiet.store,
        "by": quiet.by,
        "reason": quiet.reason,
        "at": timestamp(quiet.at),
        "until": timestamp(quiet.until),
    }


def incident_line(incident: Incident, quiet: Quiet | None, *, place: bool) -> str:
    """An incident in words."""
    words = f"{incident.state} since {model.clock(incident.opened_at)}: {finding_line(incident.finding, place=place)}"
    return words + (f" [{quiet_words(quiet)}]" if quiet else "")


def quiet_words(quiet: Quiet) -> str:
    """Who asked for quiet, until when, and why."""
    verb = {"ack": "acknowledged", "snooze": "snoozed", "silence": "silenced"}[quiet.verb]
    return escape(f"{verb} by {quiet.by} until {model.clock(quiet.until)}" + (f": {quiet.reason}" if quiet.reason else ""))


def metrics(report: Report, *, took_s: float, last_success_at: datetime | None, failures: Mapping[str, int]) -> str:
    """For the textfile collector of the Prometheus node exporter (exposition format 0.0.4; no timestamps, as it wants)."""
    stale = {(finding.severity.name.lower(), str(finding.reason)): 0 for finding in report.stale}
    for finding in report.stale:
        stale[finding.severity.name.lower(), str(finding.reason)] += 1
    success: list[tuple[float, dict[str, str]]] = [(last_success_at.timestamp(), {})] if last_success_at else []
    families: list[tuple[str, str, str, list[tuple[float, dict[str, str]]]]] = [
        ("checkpoint_unfinished", "gauge", "Unfinished checkpoints.", [(report.unfinished, {})]),
        (
            "checkpoint_stale",
            "gauge",
            "Unfinished checkpoints without progress for too long.",
            [(count, {"severity": severity, "reason": reason}) for (severity, reason), count in sorted(stale.items())],
        ),
        (
            "checkpoint_oldest_unfinished_age_seconds",
            "gauge",
            "Time since the last progress of the unfinished checkpoint that has made none for longest.",
            [(max(0.0, (report.at - report.idle_since).total_seconds()) if report.idle_since else 0.0, {})],
        ),
        ("checkpoint_unreadable", "gauge", "Checkpoint files that cannot be read.", [(report.unreadable, {})]),
        (
            "checkpoint_selfcheck_last_run_timestamp_seconds",
            "gauge",
            "When the self-check last ran.",
            [(report.at.timestamp(), {})],
        ),
        (
            "checkpoint_selfcheck_last_success_timestamp_seconds",
            "gauge",
            "When the self-check last could look at everything.",
            success,
        ),
        ("checkpoint_selfcheck_duration_seconds", "gauge", "How long the check took.", [(round(took_s, 6), {})]),
        (
            "checkpoint_notify_failures_total",
            "counter",
            "Notices that a channel did not take.",
            [(count, {"channel": channel}) for channel, count in sorted(failures.items())],
        ),
    ]
    lines = []
    for name, kind, words, samples in families:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        for value, labels in samples:
            pairs = ",".join(f'{label}="{_label(text)}"' for label, text in labels.items())
            lines.append(f"{name}{{{pairs}}} {value!r}" if pairs else f"{name} {value!r}")
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return escape(text).replace("\\", "\\\\").replace('"', '\\"')


def _change_document(change: Change) -> dict[str, Any]:
    return {"event": str(change.event), "opened_at": timestamp(change.opened_at), **finding_document(change.finding)}
