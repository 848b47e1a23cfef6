"""What is stale, and why: pure judgement over what a scan found. Writes nothing, asks nobody, raises on no record."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import NamedTuple

from checkpoint import model
from checkpoint.errors import CheckpointError, Damaged
from checkpoint.model import Checkpoint, OwnerState, Standing, Status, StepStatus


class Severity(IntEnum):
    """The states of a monitoring plugin, and its exit codes (Monitoring Plugins development guidelines)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Reason(StrEnum):
    """Why there is a finding; docs/selfcheck.md tells what each means."""

    ABANDONED = "abandoned"
    SLOW = "slow"
    BLOCKED = "blocked"
    IN_DOUBT = "in_doubt"
    EXPIRED = "expired"
    FAILED = "failed"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    CLOCK = "clock"
    LOOPING = "looping"
    VANISHED = "vanished"
    FOREIGN = "foreign"
    MISSING_STORE = "missing_store"
    UNLOGGED = "unlogged"
    UNWRITTEN = "unwritten"


class Kind(StrEnum):
    """What a finding is about: of each kind a checkpoint has one at a time, and its reason may change meanwhile."""

    STALE = "stale"
    CLOCK = "clock"
    LAST_RUN = "last_run"
    VANISHED = "vanished"
    UNREADABLE = "unreadable"
    FOREIGN = "foreign"
    STORE = "store"
    MONITOR = "monitor"


_KINDS = {
    Reason.CLOCK: Kind.CLOCK,
    Reason.VANISHED: Kind.VANISHED,
    Reason.FOREIGN: Kind.FOREIGN,
    Reason.DAMAGED: Kind.UNREADABLE,
    Reason.UNREADABLE: Kind.UNREADABLE,
    Reason.MISSING_STORE: Kind.STORE,
    Reason.UNLOGGED: Kind.MONITOR,
    Reason.UNWRITTEN: Kind.MONITOR,
}
_OF_A_RUN = frozenset({Kind.STALE, Kind.CLOCK, Kind.LAST_RUN, Kind.VANISHED})
_WENT_WRONG = frozenset({Reason.FAILED, Reason.ABANDONED, Reason.LOOPING})
LOOP = 3
"""Under so many claims a step begins before it is called a loop."""
MOST_VANISHED = 20
_MOST_NAMED = 5
_LONGEST_LINE = 200
_CAUSES = {model.Cause.TIMEOUT: "timed out", model.Cause.INTERRUPT: "was interrupted"}


class Policy(NamedTuple):
    """Seconds. ``threshold_s``: without progress before an unfinished run is stale, unless it says so itself;
    ``critical_s``: age from which that is critical; ``critical_count``: more stale ones than this are critical too;
    ``skew_s``: how far in the future a date may lie before a clock must be wrong."""

    threshold_s: int = 600
    critical_s: int = 24 * 3600
    critical_count: int = 5
    skew_s: int = 300


class Finding(NamedTuple):
    """One thing to tell the operator. ``age_s``: seconds since the last progress, where it can be told;
    ``progress_at``: when that was; ``detail``: one sentence; ``run_id``: of the run that it is about, where one is known;
    ``invoked``: that run is one command, begun by ``exec``."""

    severity: Severity
    reason: Reason
    store: str
    id: str
    detail: str
    age_s: int | None = None
    progress_at: datetime | None = None
    owner: str | None = None
    next: str | None = None
    in_doubt: tuple[str, ...] = ()
    run_id: str | None = None
    invoked: bool = False

    @property
    def kind(self) -> Kind:
        # The next run of `exec` closes one that was cut short: for both it is "the last run went wrong", one incident.
        if self.invoked and self.reason in _WENT_WRONG:
            return Kind.LAST_RUN
        return _KINDS.get(self.reason, Kind.STALE)


class Report(NamedTuple):
    """One run of the self-check. ``idle_since``: the last progress of the unfinished one that has made none for longest.
    ``seen``: by store, a line ``id run_id`` for each unfinished run, for a check that keeps a record. ``vanished``: (store,
    id) of the runs of the last check that are gone without an end, also where one finding names many."""

    at: datetime
    stores: tuple[str, ...]
    findings: tuple[Finding, ...]
    unfinished: int
    policy: Policy
    idle_since: datetime | None = None
    seen: Mapping[str, bytes] = {}
    vanished: frozenset[tuple[str, str]] = frozenset()

    @property
    def stale(self) -> tuple[Finding, ...]:
        """All that is about a run: stale, the last one went wrong, vanished."""
        return tuple(f for f in self.findings if f.kind in _OF_A_RUN)

    @property
    def unreadable(self) -> int:
        return sum(finding.kind is Kind.UNREADABLE for finding in self.findings)

    @property
    def oldest(self) -> Finding | None:
        return max((f for f in self.stale if f.age_s is not None), key=lambda f: f.age_s or 0, default=None)

    @property
    def severity(self) -> Severity:
        """The worst of all. A store that could not be looked at outweighs a warning elsewhere, not what is critical."""
        found = {finding.severity for finding in self.findings}
        if len(self.stale) > self.policy.critical_count:
            found.add(Severity.CRITICAL)
        worst = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WARNING)
        return next((severity for severity in worst if severity in found), Severity.OK)


def judge(checkpoint: Checkpoint, standing: Standing, now: datetime, policy: Policy, store: str) -> Finding | None:
    """The finding about one checkpoint, or None when there is nothing to say.

    Stale is: unfinished and no progress for longer than its own ``stale_after_s``, else the policy's threshold. A
    heartbeat does not hide it: a process that hangs may well keep one going. These do not wait for the threshold: a date in
    the future, from which no age can be told; an expiry that has passed; a step that begins again and again; a run of
    ``exec`` that went wrong.
    """
    if not checkpoint.unfinished:
        return None
    idle_s = (now - checkpoint.progress_at).total_seconds()
    age_s = int(idle_s)

    def finding(
        severity: Severity,
        reason: Reason,
        detail: str,
        *,
        age: int | None = age_s,
        since: datetime = checkpoint.progress_at,
    ) -> Finding:
        next_step = model.next_step(checkpoint)
        return Finding(
            severity,
            reason,
            store,
            checkpoint.id,
            detail,
            age_s=age,
            progress_at=since,
            owner=checkpoint.lease.owner if checkpoint.lease else None,
            next=next_step.name if next_step else None,
            in_doubt=model.in_doubt(checkpoint, standing),
            run_id=checkpoint.run_id,
            invoked=checkpoint.invoked,
        )

    latest = max(checkpoint.created_at, checkpoint.updated_at, checkpoint.progress_at, checkpoint.heartbeat_at)
    severity = Severity.CRITICAL if idle_s >= policy.critical_s else Severity.WARNING
    if model.is_expired(checkpoint, now):
        assert checkpoint.expires_at is not None
        return finding(severity, Reason.EXPIRED, f"unfinished, and expired at {model.clock(checkpoint.expires_at)}")
    if latest > now + timedelta(seconds=policy.skew_s):
        dates = ("created_at", "updated_at", "progress_at", "heartbeat_at")
        latest_name = next(name for name in dates if getattr(checkpoint, name) == latest)
        detail = f"{latest_name} lies in the future ({model.clock(latest)}): a clock is or was wrong"
        return finding(severity, Reason.CLOCK, detail, age=age_s if age_s >= 0 else None)
    at_once = _at_once(checkpoint, standing)
    if at_once is not None:
        reason, detail, since = at_once
        age_s = int((now - since).total_seconds())
        severity = Severity.CRITICAL if age_s >= policy.critical_s else Severity.WARNING
        return finding(severity, reason, detail, age=age_s, since=since)
    if idle_s <= (checkpoint.stale_after_s or policy.threshold_s):
        return None
    reason, detail = _reason(checkpoint, standing, model.in_doubt(checkpoint, standing))
    return finding(severity, reason, detail)


def judge_last(mark: Checkpoint, now: datetime, policy: Policy, store: str) -> Finding:
    """The finding about the last run of a workflow of ``exec``, which ended and went wrong."""
    since = model.failing_since(mark)
    age_s = max(0, int((now - since).total_seconds()))
    severity = Severity.CRITICAL if age_s >= policy.critical_s else Severity.WARNING
    runs = mark.extra["failing"]["runs"]
    often = f" ({runs} runs in a row)" if runs > 1 else ""
    words = f"its last run {_end_words(mark)}{often}"
    return Finding(
        severity,
        Reason.FAILED,
        store,
        mark.workflow,
        words,
        age_s=age_s,
        progress_at=since,
        run_id=mark.run_id,
        invoked=True,
    )


def last_runs(findings: Iterable[Finding]) -> list[Finding]:
    """Of two findings about the last run of one workflow, the one that ended and the one cut short since, the first alone
    is as old as the trouble: the second takes its age and its severity."""
    kept: dict[tuple[str, str, Kind], Finding] = {}
    for finding in findings:
        key = finding.store, finding.id, finding.kind
        other = kept.get(key)
        if other is not None and finding.kind is Kind.LAST_RUN:
            older = max(finding, other, key=lambda one: one.age_s or 0)
            finding = other._replace(
                severity=max(finding.severity, other.severity), age_s=older.age_s, progress_at=older.progress_at
            )
        kept[key] = finding
    return list(kept.values())


def foreign(store: str, places: Sequence[str]) -> Finding:
    """The finding about files in a store that other programs left there: a nuisance, and no damage."""
    words = f"{len(places)} foreign files: {_some(places)}; move them elsewhere"
    if len(places) == 1:
        words = f"1 foreign file: {places[0]}; move it elsewhere"
    return Finding(Severity.WARNING, Reason.FOREIGN, store, "", words)


def vanished(
    store: str, gone: Sequence[tuple[str, str, datetime]], set_aside: Mapping[str, str], now: datetime
) -> list[Finding]:
    """Findings about runs that were unfinished at an earlier check, of which neither a record nor an end is there.

    ``gone``: (id, run id or "", when they were first missed); ``set_aside``: id -> its place in quarantine. Of very many
    one finding names some, without an id.
    """
    if len(gone) > MOST_VANISHED:
        names = _some([id for id, _, _ in gone])
        words = f"{len(gone)} unfinished runs vanished, with no record of their end: {names}"
        return [_vanished(store, "", f"{words} (gone for good: checkpoint-selfcheck forget '*')", gone[0][2], None, now)]
    found = []
    for id, run_id, since in gone:
        what = f"run {run_id}" if run_id else "its run"
        words = f"{what} was unfinished, and neither its record nor its end is there"
        if id in set_aside:
            words = f"{what} was unfinished, and its damaged record was set aside as {set_aside[id]}"
        words += f" (gone for good: checkpoint-selfcheck forget {id})"
        found.append(_vanished(store, id, words, since, run_id or None, now))
    return found


def judge_error(name: str, error: CheckpointError, store: str) -> Finding:
    """The finding about a record that could not be read."""
    reason = Reason.UNREADABLE
    if isinstance(error, Damaged):
        reason = {"date": Reason.CLOCK, "vanished": Reason.VANISHED}.get(error.kind, Reason.DAMAGED)
    return Finding(Severity.CRITICAL, reason, store, name, error.message)


def missing_store(store: str, words: str) -> Finding:
    """The finding that says that nothing could be checked: never to be taken for "nothing is stale"."""
    return Finding(Severity.UNKNOWN, Reason.MISSING_STORE, store, "", words)


def failed(report: Report, reason: Reason, path: str, words: str) -> Report:
    """The report with a failure of the self-check's own: its log, its state, or another file could not be written."""
    return report._replace(findings=(*report.findings, Finding(Severity.UNKNOWN, reason, path, "", words)))


def report(
    at: datetime,
    stores: Iterable[str],
    findings: Iterable[Finding],
    unfinished: int,
    policy: Policy,
    idle_since: datetime | None = None,
) -> Report:
    """Findings in the order in which they are to be read: the worst first, then the oldest."""
    order = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WARNING)
    ranked = sorted(findings, key=lambda f: (order.index(f.severity), -(f.age_s or 0), f.store, f.id))
    return Report(at, tuple(stores), tuple(ranked), unfinished, policy, idle_since)


def _at_once(checkpoint: Checkpoint, standing: Standing) -> tuple[Reason, str, datetime] | None:
    """(reason, words, since when) of what an unfinished run is told of without waiting for the threshold."""
    if checkpoint.status is Status.BLOCKED:
        return None
    loops = [step for step in checkpoint.steps if step.claims >= LOOP and step.status not in model.DONE]
    if loops:
        step = loops[0]
        words = f"step {step.name} began under {step.claims} claims and never ended well"
        error = f", last: {step.error}" if step.error else ""
        # Not since its last beginning: that moves with each round.
        ended = [one.ended_at for one in checkpoint.steps if one.status in model.DONE and one.ended_at]
        return Reason.LOOPING, words + error, max(ended, default=checkpoint.created_at)
    if not checkpoint.invoked or checkpoint.status is not Status.IN_PROGRESS:
        return None
    following = model.next_step(checkpoint)
    if following is None:
        return None
    if standing.held:
        if following.claims < 2:
            return None
        words = f"attempt {following.attempts} is under way, those before went wrong"
        return Reason.FAILED, words, checkpoint.created_at
    if following.status is StepStatus.FAILED:
        return Reason.FAILED, f"its last attempt {_end_words(checkpoint)}", checkpoint.created_at
    owner = checkpoint.lease.owner if checkpoint.lease else "its owner"
    return Reason.ABANDONED, f"its last run was interrupted: {owner} is gone", checkpoint.created_at


def _end_words(checkpoint: Checkpoint) -> str:
    """How the command of a run of ``exec`` ended, with the last line of its output."""
    step = next((step for step in reversed(checkpoint.steps) if step.status is StepStatus.FAILED), None)
    if step is None:
        return f"failed: {checkpoint.reason or 'no reason given'}"
    verb = _CAUSES[step.cause] if step.cause else "failed"
    status = f"exit status {step.exit_code}" if step.exit_code is not None else step.signal
    how = step.error or status or checkpoint.reason or "no reason given"
    if status and status not in how:
        how += f", {status}"
    lines = (step.output or "").strip().splitlines()
    return f"{verb}: {how}" + (f", last line: {lines[-1].strip()[:_LONGEST_LINE]}" if lines else "")


def _vanished(store: str, id: str, words: str, since: datetime, run_id: str | None, now: datetime) -> Finding:
    age_s = max(0, int((now - since).total_seconds()))
    return Finding(Severity.CRITICAL, Reason.VANISHED, store, id, words, age_s=age_s, run_id=run_id)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _reason(checkpoint: Checkpoint, standing: Standing, doubtful: tuple[str, ...]) -> tuple[Reason, str]:
    held = standing.held
    who = checkpoint.lease.owner if checkpoint.lease else "nobody"
    if checkpoint.status is Status.BLOCKED:
        return Reason.BLOCKED, f"blocked: {checkpoint.reason}"
    undecided = [step.name for step in checkpoint.steps if step.name in doubtful and step.once]
    if undecided or (held and doubtful):
        names = ", ".join(undecided or doubtful)
        return Reason.IN_DOUBT, f"began and never ended, to be settled before it goes on: {names}"
    failed = [step for step in checkpoint.steps if step.status is StepStatus.FAILED]
    if failed:
        return Reason.FAILED, f"step {failed[0].name} failed: {failed[0].error or 'no reason given'}"
    if held:
        sign = f"last sign of life {model.clock(checkpoint.heartbeat_at)}"
        if standing.working:
            names = ", ".join(step.name for step in checkpoint.steps if step.name in standing.working)
            return Reason.SLOW, f"the command of step {names} still runs, {sign}"
        return Reason.SLOW, f"{who} holds it without progress, {sign}"
    words = {
        OwnerState.DEAD: f"its owner {who} is dead",
        OwnerState.EXPIRED: f"the lease of {who} ran out",
        OwnerState.NONE: "nobody holds it",
    }[standing.owner]
    return Reason.ABANDONED, words + (f", in doubt: {', '.join(doubtful)}" if doubtful else "")
