"""The state of all stores as one static page: no script but its own, nothing loaded from elsewhere, nothing to click.

A page lies around where nobody looks for days, and shows "OK" long after the self-check has died. So it knows from when
on it is old, and says so itself. All that comes out of records is text, and only ever stands where text stands.
"""

import base64
import hashlib
import html
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from checkpoint import model
from checkpoint.incident import Incident, Quiet
from checkpoint.model import Checkpoint, OwnerState, Status, Step, StepStatus, View
from checkpoint.monitor import Finding, Kind, Report, Severity
from checkpoint.render.text import duration, escape

MOST_ROWS = 100
"""Findings, incidents and the like in one section."""

MOST_BARS = 40
"""Steps in the picture of one run; fewer where there are many runs."""

_MOST_BARS_IN_ALL = 1500
_FEWEST_BARS = 6
_LONGEST = 400
_T = TypeVar("_T")


class PageRun(NamedTuple):
    """One unfinished run, with the finding about it if there is one."""

    store: str
    view: View
    finding: Finding | None


class Page(NamedTuple):
    """All that the page shows. ``old_at``: from then on it says of itself that it is old; ``more``: unfinished runs that
    were left out; ``recent``: runs that have finished, the newest first."""

    report: Report
    old_at: datetime
    unfinished: tuple[PageRun, ...]
    more: int
    recent: tuple[Checkpoint, ...]
    incidents: tuple[Incident, ...]
    resolved: tuple[Incident, ...]
    quiets: tuple[Quiet, ...]


def render(page: Page) -> str:
    """The page as one HTML document, well formed as XML too. The same page gives the same text."""
    report = page.report
    places = len(report.stores) > 1
    apart = [finding for finding in report.findings if _concerns_no_run(finding)]
    bars = max(_FEWEST_BARS, min(MOST_BARS, _MOST_BARS_IN_ALL // max(1, len(page.unfinished))))
    runs = "".join(_run(run, report, number, bars, place=places) for number, run in enumerate(page.unfinished, 1))
    if page.more:
        runs += (
            f'<p class="more">{_count(page.more, "more unfinished run")} left out here: <code>checkpoint-tool list</code></p>'
        )
    covering = [_quiet_of(incident, page.quiets) for incident in page.incidents]
    idle = [quiet for quiet in page.quiets if quiet not in covering]
    sections = (
        _section("Stores, files and the self-check itself", _rows(apart, _finding), "All could be read and written."),
        _section("Unfinished runs", runs, "None."),
        _section(
            "Open incidents",
            _rows(list(zip(page.incidents, covering, strict=True)), lambda pair: _open_incident(*pair, report.at))
            + (f"<h3>Other requests for quiet</h3>{_rows(idle, _quiet)}" if idle else ""),
            "None.",
        ),
        _section("Recently resolved", _rows(page.resolved, _resolved), "None."),
        _section("Recently finished", _rows(page.recent, _finished), "None."),
    )
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n<meta name="referrer" content="no-referrer"/>\n'
        '<noscript><meta http-equiv="refresh" content="60"/></noscript>\n'
        f"<title>{report.severity.name} - checkpoints</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{_header(page)}<main>\n{''.join(sections)}</main>\n"
        "<footer><p>Ages are those at the time of the check. Times are UTC.</p></footer>\n"
        f"{_HATCH}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


# --- the verdict ---------------------------------------------------------------------------------------------------------


def _header(page: Page) -> str:
    report = page.report
    severity = report.severity
    checked, old = _time(report.at), _time(page.old_at)
    stores = "".join(f"<li>{_code(store)}</li>" for store in report.stores[:MOST_ROWS])
    if len(report.stores) > MOST_ROWS:
        stores += f"<li>and {len(report.stores) - MOST_ROWS:,} more</li>"
    if not stores:
        stores = "<li>none</li>"
    until = f'<time id="old-at" datetime="{_iso(page.old_at)}">{_words(page.old_at)}</time>'
    return (
        '<header>\n<div id="old" role="alert" hidden="hidden"><p><strong>This page is old:</strong> the self-check has not run'
        f" since {checked}. What stands below may have changed.</p></div>\n"
        f'<noscript><p class="note">Scripts are off, so this page cannot say by itself that it is old. If it is later than'
        f" {old}, the self-check has not run since {checked}.</p></noscript>\n"
        f'<div class="verdict {_CLASS[severity]}">\n<p class="what">Checkpoint self-check</p>\n'
        f'<h1><span class="sign" aria-hidden="true">{_SIGN[severity]}</span>{severity.name}</h1>\n'
        f'<p class="sum">{_summary(report)}</p>\n'
        f"<dl><dt>Checked</dt><dd>{checked}</dd><dt>Old from</dt><dd>{until}</dd>"
        f'<dt>Looked at</dt><dd><ul class="plain">{stores}</ul></dd></dl>\n'
        '<p id="refresh" hidden="hidden"><label><input type="checkbox" checked="checked"/>'
        " Load again every minute</label></p>\n"
        "</div>\n</header>\n"
    )


def _summary(report: Report) -> str:
    stale = len(report.stale)
    own = sum(finding.kind in (Kind.STORE, Kind.MONITOR) for finding in report.findings)
    words = [f"{_count(stale, 'stale run')}" if stale else "Nothing is stale"]
    if report.unreadable:
        words.append(_count(report.unreadable, "unreadable file"))
    if own:
        words.append(_count(own, "thing") + " the self-check could not look at or write")
    words.append(f"{report.unfinished:,} unfinished in all")
    return ", ".join(words) + "."


def _concerns_no_run(finding: Finding) -> bool:
    # A record whose dates cannot be read has a finding about its clock, and no run that could be shown.
    return finding.kind not in (Kind.STALE, Kind.CLOCK) or finding.progress_at is None


def _finding(finding: Finding) -> str:
    name = f"{finding.store}/{finding.id}" if finding.id else finding.store
    return f"<h3>{_code(name)}</h3><p>{_badge(finding.severity)} {_reason(finding)}: {_text(finding.detail)}</p>"


# --- unfinished runs -----------------------------------------------------------------------------------------------------


def _run(run: PageRun, report: Report, number: int, bars: int, *, place: bool) -> str:
    checkpoint, finding = run.view.checkpoint, run.finding
    idle = f"{_ago(report.at - checkpoint.progress_at)} ago"
    if finding is not None:
        age = f" for {duration(finding.age_s)}" if finding.age_s is not None else ""
        why = f"{_badge(finding.severity)} <strong>{_reason(finding)}{age}</strong>: {_text(finding.detail)}"
    elif checkpoint.status is Status.BLOCKED:
        why = f"{_mark('none', '-', 'blocked')} not yet for long: {_text(checkpoint.reason or 'no reason given')}"
    else:
        why = f"{_badge(Severity.OK)} All is well: last progress {idle}."
    done = sum(step.status in model.DONE for step in checkpoint.steps)
    facts = [
        ("Owner", _owner(run.view)),
        ("Next step", _code(run.view.next) if run.view.next else "none: every step is done"),
        ("In doubt", _names(run.view.in_doubt)),
        ("Steps", f"{done:,} of {len(checkpoint.steps):,} done, last progress {_time(checkpoint.progress_at)}"),
        ("Handed to", _text(checkpoint.handoff_to) if checkpoint.handoff_to else ""),
        ("Store", _code(run.store) if place else ""),
        ("Run", _code(checkpoint.run_id)),
    ]
    return (
        f'<article class="card">\n<h3>{_code(checkpoint.id)}</h3>\n<p>{why}</p>\n<dl>'
        + "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in facts if value)
        + f"</dl>\n{_timeline(run.view, report.at, number, bars)}</article>\n"
    )


def _owner(view: View) -> str:
    lease = view.checkpoint.lease
    if lease is None:
        return "nobody"
    words = {
        OwnerState.ALIVE: "alive",
        OwnerState.DEAD: "dead",
        OwnerState.EXPIRED: "its lease ran out",
        OwnerState.UNKNOWN: "cannot be seen from here, counts as alive",
    }.get(view.owner_state, "")
    return f"{_text(lease.owner)} ({words})" if words else _text(lease.owner)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(_code(name) for name in names[:10])
    return shown + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


# --- the picture of one run ------------------------------------------------------------------------------------------------


class _Bar(NamedTuple):
    """One row of the picture: what the step is called, how it stands in words, and where its bar lies."""

    name: str
    kind: str
    words: str
    more: str
    begin: datetime | None
    end: datetime | None


_ROW = 42
_MIN_WIDTH = 1.6
_ACTIVE = 84.0
_PENDING = (88.0, 11.6)
_WIDE, _NARROW = 60, 26


def _timeline(view: View, now: datetime, number: int, most: int) -> str:
    steps = view.checkpoint.steps
    if not steps:
        return '<p class="more">No step has been named yet.</p>\n'
    doubtful = frozenset(view.in_doubt)
    shown = _telling(steps, view.next, most)
    bars = [_bar(step, step.name in doubtful, now) for step in shown]
    moments = [moment for bar in bars for moment in (bar.begin, bar.end) if moment is not None]
    first = min(moments, default=view.checkpoint.created_at)
    last = max(moments, default=first)
    if any(bar.kind == "doubt" and bar.end is None for bar in bars):
        # Nobody knows when it ended; it must not look like the shortest of all.
        last += max(timedelta(seconds=1), (last - first) * 0.12)
    width = _ACTIVE if moments and any(bar.kind == "wait" for bar in bars) else 100.0
    marks = (0, width / 2, width) if moments else ()
    height = len(bars) * _ROW + (26 if moments else 0)
    left_out = ""
    if len(shown) < len(steps):
        among = {step.name for step in shown}
        kinds = Counter(_kind(step, step.name in doubtful) for step in steps if step.name not in among)
        counts = ", ".join(f"{count:,} {_KIND_WORDS[kind]}" for kind, count in kinds.items())
        left_out = (
            f"<figcaption>{len(shown):,} of {len(steps):,} steps are shown, those around the next one and"
            f" what is open or went wrong; left out: {counts}.</figcaption>\n"
        )
    described = _plain("; ".join(f"{bar.name}: {bar.words}" for bar in bars), 4000)
    return (
        f'<figure>\n<svg role="img" aria-labelledby="t{number} d{number}" width="100%" height="{height}">'
        f'<title id="t{number}">Steps of {_plain(view.checkpoint.id, 100)} over time</title>'
        f'<desc id="d{number}">{described}</desc>'
        + ("".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="{height - 20}"/>' for x in marks))
        + "".join(_row(bar, row, first, last, width) for row, bar in enumerate(bars))
        + (_axis(first, last, width, height) if moments else "")
        + f"</svg>\n{left_out}</figure>\n"
    )


def _telling(steps: Sequence[Step], following: str | None, most: int) -> list[Step]:
    """The steps worth a bar, in the order of the plan: what is open or went wrong and the next one, then their neighbours."""
    if len(steps) <= most:
        return list(steps)
    here = next((place for place, step in enumerate(steps) if step.name == following), len(steps) - 1)
    open_or_failed = (StepStatus.BEGUN, StepStatus.FAILED)
    telling = [place for place, step in enumerate(steps) if place == here or step.status in open_or_failed]

    def rank(place: int) -> tuple[int, int]:
        after = bisect_left(telling, place)
        return min(abs(place - near) for near in telling[max(0, after - 1) : after + 1]), abs(place - here)

    return [steps[place] for place in sorted(sorted(range(len(steps)), key=rank)[:most])]


def _kind(step: Step, doubtful: bool) -> str:
    return "doubt" if doubtful else _KINDS[step.status]


def _bar(step: Step, doubtful: bool, now: datetime) -> _Bar:
    kind = _kind(step, doubtful)
    begin, end = step.begun_at or step.ended_at, step.ended_at
    if kind == "wait":
        begin = end = None
    elif kind == "runs" and begin is not None:
        end = max(now, begin)
    took = ""
    if kind != "doubt" and begin is not None and end is not None and step.begun_at is not None:
        spent = timedelta(milliseconds=step.duration_ms) if step.duration_ms is not None else end - begin
        took = f" {_ago(spent)}"
    parts = [f"{what} {_words(moment)}" for what, moment in (("begun", step.begun_at), ("ended", step.ended_at)) if moment]
    if step.attempts > 1:
        parts.append(f"{step.attempts} attempts")
    if step.once:
        parts.append("must not be repeated blindly")
    parts.append(step.error or step.reason or "")
    return _Bar(step.name, kind, _KIND_WORDS[kind] + took, ", ".join(part for part in parts if part), begin, end)


def _row(bar: _Bar, row: int, first: datetime, last: datetime, width: float) -> str:
    top = row * _ROW
    if bar.begin is None:
        x, wide = (_PENDING if width < 100 else (0.0, 100.0)) if bar.kind == "wait" else (0.0, _MIN_WIDTH)
    else:
        span = max((last - first).total_seconds(), 0.001)
        x = (bar.begin - first).total_seconds() / span * width
        until = ((bar.end or last) - first).total_seconds() / span * width
        wide = min(max(until - x, _MIN_WIDTH), width)
        # What begins at the very end of the axis still has to be seen.
        x = max(0.0, min(x, width - wide))
    looks = {
        "doubt": ' fill="url(#hatch)"',
        "skip": ' fill="none" stroke-dasharray="4 3"',
        "wait": ' fill="none"',
    }.get(bar.kind, "")
    about = _plain(": ".join(part for part in (bar.name, bar.words, bar.more) if part), 240)
    mark = ""
    if bar.kind == "fail":
        end = min(x + wide, 96.5)
        mark = f'<svg class="cross" x="{end:.2f}%" y="{top + 19}" width="12" height="12"><path d="M2 2 10 10M10 2 2 10"/></svg>'
    return (
        f"<g><title>{about}</title>{_label(bar.name, top + 15)}"
        f'<text class="how" x="100%" y="{top + 15}" text-anchor="end">{_plain(bar.words, 40)}</text>'
        f'<rect class="{bar.kind}" x="{x:.2f}%" y="{top + 20}" width="{wide:.2f}%" height="10" rx="2"{looks}/>{mark}</g>'
    )


def _label(name: str, y: int) -> str:
    # Text in a picture does not wrap: a phone gets a shorter one.
    wide, narrow = _plain(name, _WIDE), _plain(name, _NARROW)
    if wide == narrow:
        return f'<text x="0" y="{y}">{wide}</text>'
    return f'<text class="wide" x="0" y="{y}">{wide}</text><text class="narrow" x="0" y="{y}">{narrow}</text>'


def _axis(first: datetime, last: datetime, width: float, height: int) -> str:
    return (
        f'<line class="axis" x1="0" x2="{width}%" y1="{height - 20}" y2="{height - 20}"/>'
        f'<text class="tick" x="0" y="{height - 5}">{_words(first)}</text>'
        f'<text class="tick" x="{width}%" y="{height - 5}" text-anchor="end">+ {_ago(last - first)}</text>'
    )


# --- incidents and what has finished ---------------------------------------------------------------------------------------


def _quiet_of(incident: Incident, quiets: Iterable[Quiet]) -> Quiet | None:
    return next((quiet for quiet in quiets if quiet.covers(incident.finding)), None)


def _incident_head(incident: Incident) -> str:
    finding = incident.finding
    words = f"{_badge(finding.severity)} {_reason(finding)}: {_text(finding.detail)}"
    return f"<h3>{_code(finding.id or finding.store)}</h3><p>{words}</p>"


def _open_incident(incident: Incident, quiet: Quiet | None, now: datetime) -> str:
    told = "not told yet"
    if incident.told_at is not None:
        reasons = ", then ".join(reason.replace("_", " ") for reason in incident.told)
        told = f"told as {reasons}, last {_time(incident.told_at)}"
    hushed = ""
    if quiet is not None:
        overruled = "" if incident.quiet else " (not kept at this check)"
        hushed = f'<p class="meta">{_asked(quiet)}{overruled}</p>'
    since = f"{str(incident.state).capitalize()}, since {_time(incident.opened_at)} ({_ago(now - incident.opened_at)})"
    return f'{_incident_head(incident)}<p class="meta">{since}; {told}.</p>{hushed}'


def _asked(quiet: Quiet) -> str:
    return f"Quiet until {_time(quiet.until)} ({_plain(quiet.verb)} by {_text(quiet.by)}): {_text(quiet.reason)}"


def _quiet(quiet: Quiet) -> str:
    where = f" in {_code(quiet.store)}" if quiet.store is not None else ""
    return f'<h4>{_code(quiet.pattern)}{where}</h4><p class="meta">{_asked(quiet)}</p>'


def _resolved(incident: Incident) -> str:
    end = incident.resolved_at or incident.seen_at
    lasted = _ago(end - incident.opened_at)
    return f'{_incident_head(incident)}<p class="meta">Resolved {_time(end)}, after {lasted}.</p>'


def _finished(checkpoint: Checkpoint) -> str:
    good = checkpoint.status is Status.COMPLETED
    kind, sign = ("ok", _SIGN[Severity.OK]) if good else ("crit", _SIGN[Severity.CRITICAL])
    if checkpoint.status is Status.CANCELLED:
        kind, sign = "none", "-"
    end = checkpoint.finished_at or checkpoint.updated_at
    reason = f": {_text(checkpoint.reason)}" if checkpoint.reason else ""
    took = _ago(end - checkpoint.created_at)
    return (
        f"<h3>{_code(checkpoint.id)}</h3><p>{_mark(kind, sign, str(checkpoint.status))} after {took}{reason}</p>"
        f'<p class="meta">{_time(end)}</p>'
    )


# --- pieces ----------------------------------------------------------------------------------------------------------------


def _section(title: str, content: str, empty: str) -> str:
    name = title.lower().replace(" ", "-").replace(",", "")
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{content or f"<p>{empty}</p>"}\n</section>\n'


def _rows(items: Sequence[_T], one: Callable[[_T], str]) -> str:
    if not items:
        return ""
    more = f'<p class="more">{len(items) - MOST_ROWS:,} more left out here.</p>' if len(items) > MOST_ROWS else ""
    return '<ul class="rows">' + "".join(f"<li>{one(item)}</li>\n" for item in items[:MOST_ROWS]) + f"</ul>{more}"


def _plain(text: str, longest: int = _LONGEST) -> str:
    """Text of a record as the content of an element or of a quoted attribute."""
    safe = escape(text).translate(_NO_CHARACTERS)
    return html.escape(safe if len(safe) <= longest else safe[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}", quote=True)


def _text(text: str) -> str:
    # Letters written from right to left would else turn around what stands beside them.
    return f"<bdi>{_plain(text)}</bdi>"


def _code(text: str) -> str:
    return f"<code><bdi>{_plain(text)}</bdi></code>"


def _reason(finding: Finding) -> str:
    return finding.reason.replace("_", " ")


def _badge(severity: Severity) -> str:
    return _mark(_CLASS[severity], _SIGN[severity], severity.name)


def _mark(kind: str, sign: str, words: str) -> str:
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span> {words}</span>'


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _ago(span: timedelta) -> str:
    seconds = span.total_seconds()
    return "less than 1s" if 0 < seconds < 1 else duration(int(seconds))


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _words(moment: datetime) -> str:
    return _iso(moment).replace("T", " ").replace("Z", " UTC")


def _time(moment: datetime) -> str:
    return f'<time datetime="{_iso(moment)}">{_words(moment)}</time>'


_CLASS = {Severity.OK: "ok", Severity.WARNING: "warn", Severity.CRITICAL: "crit", Severity.UNKNOWN: "unkn"}
_SIGN = {
    Severity.OK: "\N{CHECK MARK}",
    Severity.WARNING: "!",
    Severity.CRITICAL: "\N{MULTIPLICATION X}",
    Severity.UNKNOWN: "?",
}
_KINDS = {
    StepStatus.PENDING: "wait",
    StepStatus.BEGUN: "runs",
    StepStatus.COMPLETED: "good",
    StepStatus.FAILED: "fail",
    StepStatus.SKIPPED: "skip",
}
_KIND_WORDS = {"wait": "pending", "runs": "running", "good": "done", "fail": "failed", "skip": "skipped", "doubt": "in doubt"}

# Code points that are no characters: an error to parsers of HTML, and not allowed in XML at all.
_NO_CHARACTERS = {
    code: f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    for code in (*range(0xFDD0, 0xFDF0), *(plane * 0x10000 + end for plane in range(17) for end in (0xFFFE, 0xFFFF)))
}

_HATCH = (
    '<svg class="away" width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" width="6" height="6"'
    ' patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="under" width="6" height="6"/>'
    '<line class="over" x1="0" y1="0" x2="0" y2="6"/></pattern></defs></svg>\n'
)

# Neither "<" nor "&" stands in them, so that the page is XML too.
_SCRIPT = """
"use strict";
(function () {
  var old = document.getElementById("old");
  var limit = Date.parse(document.getElementById("old-at").dateTime);
  var refresh = document.getElementById("refresh");
  var wanted = refresh.querySelector("input");
  var title = document.title;
  function look() {
    var late = Date.now() >= limit;
    if (late === old.hidden) {
      old.hidden = !late;
      document.documentElement.classList.toggle("old", late);
      document.title = late ? "OLD - " + title : title;
    }
  }
  wanted.checked = true;
  refresh.hidden = false;
  look();
  setInterval(look, 5000);
  setInterval(function () { if (wanted.checked) { location.reload(); } }, 60000);
}());
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #fff; --text: #1c2024; --soft: #565e67; --line: #d9dce0; --link: #2f5d8a;
  --ok: #1a6b3c; --ok-bg: #e6f3ea; --warn: #815000; --warn-bg: #fcf0d9;
  --crit: #ab2119; --crit-bg: #fce9e7; --unkn: #5a3ea8; --unkn-bg: #efebfa; --none: #565e67; --none-bg: #ebedef;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121518; --card: #1a1e22; --text: #e7e9eb; --soft: #a7afb8; --line: #343a41; --link: #7fb2e5;
    --ok: #74d09a; --ok-bg: #15291d; --warn: #f0bc62; --warn-bg: #2d2412;
    --crit: #ff958b; --crit-bg: #351b19; --unkn: #bdaaf6; --unkn-bg: #251f38; --none: #a7afb8; --none-bg: #262b31;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 54rem; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem;
  background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
h1, h2, h3, h4, p, dl, dd, ul, figure { margin: 0; padding: 0; }
code { font: .925em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
time { white-space: nowrap; font-variant-numeric: tabular-nums; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; line-height: 1.3; letter-spacing: -.01em; }
h3 { font-size: 1rem; font-weight: 600; }
h3 code { font-weight: 600; }
h4 { font-size: .9375rem; font-weight: 600; }
section > h3 { margin: 1.25rem 0 .5rem; }
section > p, .meta, .more, figcaption, footer { color: var(--soft); font-size: .9375rem; }
.more { margin-top: .5rem; }
#old, .note { margin-bottom: 1rem; padding: .75rem 1rem; border: 2px solid var(--crit); border-radius: .5rem;
  background: var(--crit-bg); }
#old { color: var(--crit); font-size: 1.0625rem; }
.note { border: 1px solid var(--line); background: var(--card); }
.verdict { padding: 1.25rem clamp(1rem, 3vw, 1.75rem); border-radius: .75rem; border: 1px solid var(--tone);
  background: var(--tint); }
.ok { --tone: var(--ok); --tint: var(--ok-bg); }
.warn { --tone: var(--warn); --tint: var(--warn-bg); }
.crit { --tone: var(--crit); --tint: var(--crit-bg); }
.unkn { --tone: var(--unkn); --tint: var(--unkn-bg); }
.none { --tone: var(--none); --tint: var(--none-bg); }
.old .verdict { --tone: var(--none); --tint: var(--none-bg); }
.what { font-size: .9375rem; }
h1 { display: flex; align-items: center; gap: .6rem; margin: .15rem 0 .35rem; color: var(--tone);
  font-size: clamp(1.75rem, 6vw, 2.25rem); font-weight: 700; line-height: 1.2; letter-spacing: -.02em; }
.sign { flex: none; width: 1.35em; height: 1.35em; border-radius: 50%; background: var(--tone); color: var(--tint);
  font-size: .7em; line-height: 1.35em; text-align: center; letter-spacing: 0; }
.sum { font-size: 1.0625rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin-top: .75rem;
  font-size: .9375rem; }
dt { color: var(--soft); }
.verdict dt { color: var(--text); }
#refresh { margin-top: .75rem; font-size: .9375rem; }
input { width: 1.1rem; height: 1.1rem; margin: 0 .25rem 0 0; vertical-align: -.2rem; accent-color: var(--tone); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.plain, .rows { list-style: none; }
.card, .rows { background: var(--card); border: 1px solid var(--line); border-radius: .625rem; contain: paint; }
.card { padding: 1rem clamp(.875rem, 3vw, 1.25rem); }
.card + .card { margin-top: .875rem; }
.card h3 { margin-bottom: .25rem; font-size: 1.0625rem; }
.rows li { padding: .75rem clamp(.875rem, 3vw, 1.25rem); contain: paint; }
.rows li + li { border-top: 1px solid var(--line); }
.badge { display: inline-block; margin-right: .2rem; padding: 0 .5rem; border-radius: 1rem; white-space: nowrap;
  background: var(--tint); color: var(--tone); font-size: .8125rem; font-weight: 600; line-height: 1.6; }
figure { margin-top: 1rem; }
figure svg { display: block; font-size: 13px; }
figcaption { margin-top: .35rem; }
text { fill: var(--text); unicode-bidi: isolate; }
.how, .tick { fill: var(--soft); font-variant-numeric: tabular-nums; }
.tick { font-size: 12px; }
.grid { stroke: var(--line); stroke-dasharray: 1 3; }
.axis { stroke: var(--soft); }
.good { fill: var(--ok); }
.runs { fill: var(--link); }
.fail { fill: var(--crit); }
.doubt { stroke: var(--warn); }
.wait, .skip { stroke: var(--soft); }
.cross path { fill: none; stroke: var(--crit); stroke-width: 2.5; stroke-linecap: round; paint-order: stroke; }
.under { fill: var(--warn-bg); }
.over { stroke: var(--warn); stroke-width: 5; }
.away { position: absolute; }
.narrow { display: none; }
footer { margin-top: 2.5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  .narrow { display: inline; }
  .wide { display: none; }
  .card dl { gap: .15rem .75rem; }
}
@media print { #refresh { display: none; } .card { break-inside: avoid; } }
"""


def _hashed(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_POLICY = f"default-src 'none'; style-src {_hashed(_STYLE)}; script-src {_hashed(_SCRIPT)}; base-uri 'none'; form-action 'none'"
