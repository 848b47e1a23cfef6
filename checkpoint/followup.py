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
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from checkpoint import incident, monitor, notify
from checkpoint._load import load
from checkpoint.apart import Failed, NoAnswer, call, write_failure
from checkpoint.codec import timestamp
from checkpoint.errors import CheckpointError, Damaged, StoreUnavailable
from checkpoint.incident import Change, Ledger, Notice, Telling
from checkpoint.model import ID, Checkpoint, View
from checkpoint.monitor import Finding, Kind, Reason, Report
from checkpoint.notify import Channel, Message, NotDelivered
from checkpoint.render import notice as words
from checkpoint.render.check import finding_document
from checkpoint.store import open_store
from checkpoint.store.disk import publish
from checkpoint.store.state import Place, StateFolder, state_of

_NO_RUN = "-"

Say = Callable[[str], None]
"""A line for people on standard error."""


class Settings(NamedTuple):
    """What was asked for. ``place``: where the record is kept; ``roots``: workspaces, in which stores are looked for;
    ``period_s``: how often this runs; ``limit_s``: how long a file may give no sign."""

    place: Place
    channels: tuple[Channel, ...]
    telling: Telling
    period_s: int
    metrics: str | None = None
    html: str | None = None
    roots: tuple[str, ...] = ()
    limit_s: float = 10


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
        self._seen: dict[str, list[bytes]] = {}
        self._silent: set[str] = set()

    def run(self) -> Followed:
        """Raises nothing."""
        answers = False
        try:
            self._probe()
            answers = True
            folder = StateFolder(self._place, within=self._settings.place.within)
            with folder.locked():
                self._before = self._read(folder)
                self._miss_runs(folder)
                ledger, changes = self._fold()
                folder.write(incident.to_document(ledger))
                self._remember(folder)
                ledger = self._tell(ledger, changes, save=folder)
        except CheckpointError as error:
            self._unrecorded(self._place, error)
            self._before = self._peek() if answers else Ledger()
            # That this was told cannot be remembered, so what is new is told at each run: better than never.
            ledger = self._tell(*self._fold(), save=None)
        if self._settings.metrics is not None:
            self._publish(self._settings.metrics, lambda: self._metrics(ledger), mode=0o644)
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
        if self._settings.html is not None and not self._publish(self._settings.html, lambda: self._page(ledger), mode=None):
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

    def _publish(self, path: str, text: Callable[[], str], *, mode: int | None) -> bool:
        def write() -> None:
            publish(path, text().encode("utf-8", "backslashreplace"), mode=mode)

        failure = write_failure(write, self._settings.limit_s)
        if failure is not None:
            self._fail(path, f"{path} {failure}")
        return failure is None

    def _stamp(self) -> None:
        blind = {finding.store for finding in self.report.findings if finding.kind is Kind.STORE}
        seen = [state_of(store) for store in self.report.stores if store not in blind]
        for place in dict.fromkeys([self._place, *seen]):
            if place in self._silent:
                continue
            within = self._settings.place.within if place == self._place else os.path.dirname(place)
            try:
                failure = self._apart(partial(self._stamp_in, place, within))
            except NoAnswer:
                failure = self._no_answer(place), ""
            except Failed as error:
                failure = f"{place} cannot be stamped: {error}", ""
            if failure is None:
                continue
            message, as_user = failure
            if place == self._place or not as_user:
                self._unrecorded(place, CheckpointError(message, as_user=as_user))

    def _stamp_in(self, place: str, within: str | None) -> tuple[str, str] | None:
        """(what went wrong, the user as whom it would work, if any); None: it is stamped."""
        try:
            StateFolder(place, within=within).stamp(self.report.at, self._settings.period_s)
        except CheckpointError as error:
            return error.message, error.as_user
        return None

    def _probe(self) -> None:
        """Whether the record's directory answers, asked by a process that may be given up. Raises StoreUnavailable."""

        def probe() -> None:
            try:
                StateFolder(self._place, within=self._settings.place.within).probe()
            except CheckpointError:
                pass  # it answers: what is wrong with it comes out where it is used

        try:
            self._apart(probe)
        except NoAnswer:
            self._silent.add(self._place)
            raise StoreUnavailable(self._no_answer(self._place)) from None
        except Failed:
            pass

    def _no_answer(self, path: str) -> str:
        return f"{path} does not answer: no sign of it for {self._settings.limit_s} s"

    def _apart(self, work: Callable[[], Any]) -> Any:
        return call(work, self._settings.limit_s)

    def _miss_runs(self, folder: StateFolder) -> None:
        """A run that was unfinished at the last check must be unfinished still, or have ended: else it vanished."""
        findings = list(self.report.findings)
        vanished: set[tuple[str, str]] = set()
        for store, data in self.report.seen.items():
            try:
                before = folder.seen(store)
            except CheckpointError as error:
                self._fail(self._place, error.message)
                before = []
            present = data.splitlines()
            gone, kept = self._gone(store, before, present)
            self._seen[store] = present + kept
            if gone:
                vanished |= {(store, id) for id, _, _ in gone}
                findings += self._vanished(store, gone)
        # What the store itself misses is a finding already.
        unique = {(f.store, f.id, f.kind, f.reason): f for f in findings}
        at, stores, _, unfinished, policy, idle_since, seen, _ = self.report
        report = monitor.report(at, stores, unique.values(), unfinished, policy, idle_since)
        self.report = report._replace(seen=seen, vanished=frozenset(vanished))

    def _gone(
        self, store: str, before: Sequence[bytes], present: Sequence[bytes]
    ) -> tuple[list[tuple[str, str, datetime]], list[bytes]]:
        """(runs of ``before`` that vanished, lines that are to be kept for the next check)."""
        now = set(present)
        unreadable = {f.id for f in self.report.findings if f.store == store and f.kind is Kind.UNREADABLE}
        missed = [line.split() for line in before if b" ".join(line.split()[:2]) not in now]
        asked: list[tuple[str, str, datetime]] = []
        kept: list[bytes] = []
        for fields in missed:
            if len(fields) not in (2, 3):
                continue
            id, run_id = (field.decode("utf-8", "replace") for field in fields[:2])
            if id in unreadable:
                kept.append(b" ".join(fields[:2]))  # damaged: whether the run is in there cannot be told
                unreadable.discard(id)
                continue
            asked.append((id, run_id.removeprefix(_NO_RUN), _since(fields[2:], self.report.at)))
        # One that was never seen whole is missed all the same when it goes.
        kept += [f"{id} {_NO_RUN}".encode() for id in sorted(unreadable) if ID.fullmatch(id)]
        if not asked:
            return [], kept
        try:
            ended = self._apart(lambda: open_store(store).ended([(id, run_id) for id, run_id, _ in asked]))
        except (NoAnswer, Failed):
            ended = [True] * len(asked)
            kept += [b" ".join(fields) for fields in missed]
        gone = [run for run, known in zip(asked, ended, strict=True) if not known]
        kept += [f"{id} {run_id or _NO_RUN} {since.isoformat()}".encode() for id, run_id, since in gone]
        return gone, kept

    def _vanished(self, store: str, gone: Sequence[tuple[str, str, datetime]]) -> list[Finding]:
        try:
            places = self._apart(lambda: open_store(store).leftovers())
        except (NoAnswer, Failed):
            places = []
        aside = [place for place in places if place.startswith("quarantine/")]
        set_aside = {place.removeprefix("quarantine/").partition(".json")[0]: place for place in aside}
        return monitor.vanished(store, gone, set_aside, self.report.at)

    def _remember(self, folder: StateFolder) -> None:
        for store, lines in self._seen.items():
            try:
                folder.remember(store, lines)
            except CheckpointError as error:
                self._fail(self._place, error.message)

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


def _since(fields: Sequence[bytes], now: datetime) -> datetime:
    """Since when a run is missed: as it is written, else from now on."""
    try:
        moment = datetime.fromisoformat(fields[0].decode()) if fields else now
    except ValueError:
        return now
    return moment if moment.tzinfo is not None else now
