"""What is stale, and why: pure judgement over what a scan found. Writes nothing, asks nobody, raises on no record."""

from collections.abc import Iterable
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
    MISSING_STORE = "missing_store"
    UNLOGGED = "unlogged"
    UNWRITTEN = "unwritten"


class Kind(StrEnum):
    """What a finding is about: of each kind a checkpoint has one at a time, and its reason may change meanwhile."""

    STALE = "stale"
    CLOCK = "clock"
    UNREADABLE = "unreadable"
    STORE = "store"
    MONITOR = "monitor"


_KINDS = {
    Reason.CLOCK: Kind.CLOCK,
    Reason.DAMAGED: Kind.UNREADABLE,
    Reason.UNREADABLE: Kind.UNREADABLE,
    Reason.MISSING_STORE: Kind.STORE,
    Reason.UNLOGGED: Kind.MONITOR,
    Reason.UNWRITTEN: Kind.MONITOR,
}


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
    ``progress_at``: when that was; ``detail``: one sentence."""

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

    @property
    def kind(self) -> Kind:
        return _KINDS.get(self.reason, Kind.STALE)


class Report(NamedTuple):
    """One run of the self-check. ``idle_since``: the last progress of the unfinished one that has made none for longest."""

    at: datetime
    stores: tuple[str, ...]
    findings: tuple[Finding, ...]
    unfinished: int
    policy: Policy
    idle_since: datetime | None = None

    @property
    def stale(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.kind in (Kind.STALE, Kind.CLOCK))

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
    heartbeat does not hide it: a process that hangs may well keep one going. Two things do not wait for the threshold:
    a date in the future, from which no age can be told, and an expiry that has passed.
    """
    if not checkpoint.unfinished:
        return None
    idle_s = (now - checkpoint.progress_at).total_seconds()
    age_s = int(idle_s)

    def finding(severity: Severity, reason: Reason, detail: str, *, age: int | None = age_s) -> Finding:
        next_step = model.next_step(checkpoint)
        return Finding(
            severity,
            reason,
            store,
            checkpoint.id,
            detail,
            age_s=age,
            progress_at=checkpoint.progress_at,
            owner=checkpoint.lease.owner if checkpoint.lease else None,
            next=next_step.name if next_step else None,
            in_doubt=model.in_doubt(checkpoint, standing),
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
    if idle_s <= (checkpoint.stale_after_s or policy.threshold_s):
        return None
    reason, detail = _reason(checkpoint, standing, model.in_doubt(checkpoint, standing))
    return finding(severity, reason, detail)


def judge_error(name: str, error: CheckpointError, store: str) -> Finding:
    """The finding about a record that could not be read."""
    reason = Reason.UNREADABLE
    if isinstance(error, Damaged):
        reason = Reason.CLOCK if error.kind == "date" else Reason.DAMAGED
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
