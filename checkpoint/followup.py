"""What follows a check that keeps a record: incidents are brought up to date, notices sent, and the files written that
others read.

The order is what makes it safe: the state with the notice in it is durable before the first channel is tried, and after
each channel it is written again. A kill at any point loses nothing; at most the one notice that was just being sent is
sent twice, with the same id.
"""

import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from checkpoint import incident, monitor, notify
from checkpoint._load import load
from checkpoint.codec import timestamp
from checkpoint.errors import CheckpointError, Damaged, StoreUnavailable
from checkpoint.incident import Change, Ledger, Notice, Telling
from checkpoint.model import Checkpoint, View
from checkpoint.monitor import Finding, Kind, Reason, Report
from checkpoint.notify import Channel, Message, NotDelivered
from checkpoint.render import notice as words
from checkpoint.render.check import finding_document
from checkpoint.store.disk import publish
from checkpoint.store.state import Place, StateFolder, state_of

Say = Callable[[str], None]
"""A line for people on standard error."""


class Settings(NamedTuple):
    """What was asked for. ``place``: where the record is kept; ``roots``: workspaces, in which stores are looked for;
    ``period_s``: how often this runs."""

    place: Place
    channels: tuple[Channel, ...]
    telling: Telling
    period_s: int
    metrics: str | None = None
    html: str | None = None
    roots: tuple[str, ...] = ()


class Material(NamedTuple):
    """For the page: unfinished runs as (store, view, finding), how many were left out, and finished runs."""

    unfinished: Sequence[tuple[str, View, Finding | None]] = ()
    more: int = 0
    recent: Sequence[Checkpoint] = ()


class Followed(NamedTuple):
    """``report``: with what went wrong in here; ``events``: for the log, each a JSON object."""

    report: Report
    events: tuple[Mapping[str, Any], ...]


class FollowUp:
    """Everything after the check itself. What fails in here is a finding of the report.

    ``took_s``: seconds since the check began; ``say``: a line for people; ``material``: asked for only if there is a page.
    """

    def __init__(
        self,
        report: Report,
        settings: Settings,
        environ: Mapping[str, str],
        took_s: Callable[[], float],
        say: Say,
        material: Callable[[], Material],
    ) -> None:
        self.report = report
        self._settings = settings
        self._environ = environ
        self._took_s = took_s
        self._say = say
        self._material = material
        self._events: list[Mapping[str, Any]] = []
        self._told_unrecorded = False
        self._host = os.uname().nodename
        self._names = tuple(channel.name for channel in settings.channels)
        self._place = settings.place.path
        self._before = Ledger()
        self._notice_id = secrets.token_hex(16)

    def run(self) -> Followed:
        """Raises nothing."""
        try:
            folder = StateFolder(self._place, within=self._settings.place.within)
            with folder.locked():
                self._before = self._read(folder)
                ledger, changes = self._fold()
                folder.write(incident.to_document(ledger))
                ledger = self._tell(ledger, changes, save=folder)
        except CheckpointError as error:
            self._unrecorded(self._place, error)
            self._before = self._peek()
            # That this was told cannot be remembered, so what is new is told at each run: better than never.
            ledger = self._tell(*self._fold(), save=None)
        if self._settings.metrics is not None:
            self._publish(self._settings.metrics, self._metrics(ledger), mode=0o644)
        self._stamp()
        return Followed(self.report, tuple(self._events))

    def _peek(self) -> Ledger:
        """What is known without the right to change it. What waits in it is for whoever has that right to send."""
        try:
            fields = StateFolder.peek(self._place)
            return Ledger() if fields is None else incident.from_document(fields)._replace(notices=())
        except (KeyError, TypeError, ValueError, AttributeError):
            return Ledger()

    def _read(self, folder: StateFolder) -> Ledger:
        try:
            fields = folder.read()
            return Ledger() if fields is None else incident.from_document(fields)
        except Damaged as error:
            damage = error.message
        except (KeyError, TypeError, ValueError, AttributeError):
            damage = f"{self._place}/state.json holds what was never written"
        kept = folder.set_aside()
        self._fail(self._place, f"{damage}; it is kept as {kept}, and what was told before may be told again")
        return Ledger()

    def _fold(self) -> tuple[Ledger, tuple[Change, ...]]:
        """The ledger to be written before anything is sent. The page shows it, so a page that cannot be written is found
        out only now, and counts for a second try."""
        self._miss_stores()
        ledger, changes = self._folded()
        if self._settings.html is not None and not self._publish(self._settings.html, self._page(ledger), mode=None):
            ledger, changes = self._folded()
        ledger = incident.attempted(ledger, self._names)
        if ledger.dropped > self._before.dropped:
            self._say(f"{ledger.dropped - self._before.dropped} notices were given up: no channel took them in time")
        return ledger, changes

    def _miss_stores(self) -> None:
        """A store that was found in a workspace before, and is not now, was taken away or is not mounted: nobody looked."""
        for store in self._before.stores:
            inside = any(store.startswith(os.path.join(root, "")) for root in self._settings.roots)
            if inside and store not in self.report.stores:
                words = (
                    f"the store {store} was there, and is not (gone for good: checkpoint-selfcheck forget {shlex.quote(store)})"
                )
                report = self.report._replace(stores=(*self.report.stores, store))
                self.report = report._replace(findings=(*report.findings, monitor.missing_store(store, words)))

    def _folded(self) -> tuple[Ledger, tuple[Change, ...]]:
        ledger, changes = incident.fold(self._before, self.report, self._settings.telling, self._names, self._notice_id)
        looked = not any(finding.kind in (Kind.STORE, Kind.MONITOR) for finding in self.report.findings)
        return (ledger._replace(last_success_at=self.report.at) if looked else ledger), changes

    def _tell(self, ledger: Ledger, changes: Sequence[Change], *, save: StateFolder | None) -> Ledger:
        """Send what waits, oldest first; a channel that fails is left alone until the next check."""
        at = timestamp(self.report.at)
        for change in changes:
            self._events.append({"at": at, "event": "incident", "change": change.event, **finding_document(change.finding)})
        down: set[str] = set()
        for notice in ledger.notices:
            for channel in self._settings.channels:
                if channel.name not in notice.waiting or channel.name in down:
                    continue
                event = {"at": at, "event": "delivery", "channel": channel.name, "notice": notice.id}
                try:
                    notify.deliver(channel, self._message(notice), self._environ)
                except NotDelivered as error:
                    down.add(channel.name)
                    self._say(f"{channel.name} did not take the notice: {error}; the next check tries again")
                    self._events.append(event | {"delivered": False, "error": str(error)})
                    ledger = incident.failed(ledger, channel.name)
                else:
                    self._events.append(event | {"delivered": True})
                    ledger = incident.delivered(ledger, notice.id, channel.name)
                if save is not None:
                    try:
                        save.write(incident.to_document(ledger))
                    except StoreUnavailable as error:
                        self._fail(self._place, error.message)
        return ledger

    def _message(self, notice: Notice) -> Message:
        return Message(
            notice.id,
            notice.severity.name,
            words.notice_subject(notice, self._host),
            words.notice_lines(notice),
            words.notice_document(notice, self._host),
            notice.attempts,
        )

    def _metrics(self, ledger: Ledger) -> str:
        return words.metrics(
            self.report, took_s=self._took_s(), last_success_at=ledger.last_success_at, failures=ledger.failures
        )

    def _page(self, ledger: Ledger) -> str:
        page, run = load("checkpoint.render.html:Page"), load("checkpoint.render.html:PageRun")
        material = self._material()
        return load("checkpoint.render.html:render")(  # type: ignore[no-any-return]
            page(
                report=self.report,
                old_at=self.report.at + timedelta(seconds=2 * self._settings.period_s),
                unfinished=tuple(run(store, view, finding) for store, view, finding in material.unfinished),
                more=material.more,
                recent=tuple(material.recent),
                incidents=ledger.incidents,
                resolved=ledger.resolved,
                quiets=ledger.quiets,
            )
        )

    def _publish(self, path: str, text: str, *, mode: int | None) -> bool:
        try:
            publish(path, text.encode("utf-8", "backslashreplace"), mode=mode)
        except OSError as error:
            self._fail(path, f"{path} cannot be written: {error.strerror}")
            return False
        return True

    def _stamp(self) -> None:
        blind = {finding.store for finding in self.report.findings if finding.kind is Kind.STORE}
        seen = [state_of(store) for store in self.report.stores if store not in blind]
        for place in dict.fromkeys([self._place, *seen]):
            try:
                within = self._settings.place.within if place == self._place else os.path.dirname(place)
                StateFolder(place, within=within).stamp(self.report.at, self._settings.period_s)
            except CheckpointError as error:
                if place == self._place or not error.as_user:
                    self._unrecorded(place, error)

    def _unrecorded(self, path: str, error: CheckpointError) -> None:
        """A record that could not be kept is a finding; in the workspace of another user it is not to be kept."""
        if not error.as_user:
            self._fail(path, error.message)
        elif not self._told_unrecorded:
            self._told_unrecorded = True
            option, places = ("--root", self._settings.roots) if self._settings.roots else ("--store", self.report.stores)
            argv = ["checkpoint-selfcheck", *(word for place in places for word in (option, place))]
            command = load("checkpoint.store.rights:as_user")(error.as_user, argv)
            self._say(f"no record is kept: {error.message} (try: {command}; or --state names a directory of your own)")

    def _fail(self, path: str, detail: str) -> None:
        self._say(detail)
        if not any((finding.reason, finding.store) == (Reason.UNWRITTEN, path) for finding in self.report.findings):
            self.report = monitor.failed(self.report, Reason.UNWRITTEN, path, detail)
