"""The judgement alone: which checkpoint is told about, why, how loudly, and in which order."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest

from checkpoint import model, monitor
from checkpoint.errors import DAMAGE_KINDS, CheckpointError, Damaged, SchemaMismatch, StoreUnavailable
from checkpoint.model import Checkpoint, Owner, OwnerState, PlanStep, Standing, Status
from checkpoint.monitor import Finding, Policy, Reason, Severity

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
POLICY = Policy()
STORE = "memory/checkpoints"
HOUR = 3600
DAY = 24 * HOUR
ALIVE, UNKNOWN, DEAD, EXPIRED, NONE = (
    Standing(OwnerState.ALIVE),
    Standing(OwnerState.UNKNOWN),
    Standing(OwnerState.DEAD),
    Standing(OwnerState.EXPIRED),
    Standing(OwnerState.NONE),
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def record(age_s: float = HOUR, *, id: str = "deploy", **more: Any) -> Checkpoint:
    """A run of two steps whose last progress was ``age_s`` ago."""
    return model.new(
        id=id,
        workflow="deploy",
        run_id="01a1fa71-4b4c-7eca-8eee-7c0f7dc82341",
        idempotency_key=None,
        fingerprint="0" * 64,
        plan=[PlanStep("build"), PlanStep("push")],
        owner=Owner("tester", "0" * 16, None, None, None, None, 1800),
        now=ago(age_s),
        **more,
    )


def judge(checkpoint: Checkpoint, state: Standing = DEAD, policy: Policy = POLICY) -> Finding | None:
    return monitor.judge(checkpoint, state, NOW, policy, STORE)


def told(checkpoint: Checkpoint, state: Standing = DEAD, policy: Policy = POLICY) -> Finding:
    finding = judge(checkpoint, state, policy)
    assert finding is not None
    return finding


def begun(step: str = "build", *, once: bool = False) -> Checkpoint:
    return model.begin_step(record(), step, ALIVE, ago(HOUR), once=once)


# --- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "state", "reason"),
    [
        (record, DEAD, Reason.ABANDONED),
        (record, EXPIRED, Reason.ABANDONED),
        (lambda: model.release(record()), NONE, Reason.ABANDONED),
        (record, ALIVE, Reason.SLOW),
        (record, UNKNOWN, Reason.SLOW),
        (lambda: begun(), ALIVE, Reason.SLOW),
        (lambda: model.block(record(), "waits for a signature"), ALIVE, Reason.BLOCKED),
        (lambda: model.block(record(), "waits for a signature"), DEAD, Reason.BLOCKED),
        (lambda: begun(once=True), DEAD, Reason.IN_DOUBT),
        (lambda: begun(once=True), EXPIRED, Reason.IN_DOUBT),
        # A step that may be repeated is simply run again: what the operator has to know is that nobody does it.
        (lambda: begun(), DEAD, Reason.ABANDONED),
        (lambda: model.fail_step(begun(), "build", ago(HOUR), error="disk full"), DEAD, Reason.FAILED),
        (lambda: model.fail_step(begun(), "build", ago(HOUR), error="disk full"), ALIVE, Reason.FAILED),
        (lambda: record(ttl_s=60), DEAD, Reason.EXPIRED),
        (lambda: record(ttl_s=60), ALIVE, Reason.EXPIRED),
        (lambda: record(-DAY), ALIVE, Reason.CLOCK),
        (lambda: record(-DAY), DEAD, Reason.CLOCK),
    ],
)
def test_the_reason_is_part_of_the_finding(make: Callable[[], Checkpoint], state: Standing, reason: Reason) -> None:
    assert told(make(), state).reason is reason


@pytest.mark.parametrize("kind", sorted(DAMAGE_KINDS))
def test_damage_is_critical_and_named_for_what_it_is(kind: str) -> None:
    finding = monitor.judge_error("deploy", Damaged("the words", kind=kind), STORE)
    assert finding.reason is {"date": Reason.CLOCK, "vanished": Reason.VANISHED}.get(kind, Reason.DAMAGED)
    assert (finding.store, finding.id, finding.detail) == (STORE, "deploy", "the words")
    assert finding.severity is Severity.CRITICAL


@pytest.mark.parametrize("error", [StoreUnavailable("no permission"), SchemaMismatch("checkpoint/v2")])
def test_what_cannot_be_read_is_unreadable(error: CheckpointError) -> None:
    finding = monitor.judge_error("deploy", error, STORE)
    assert (finding.reason, finding.severity, finding.detail) == (Reason.UNREADABLE, Severity.CRITICAL, error.message)


def test_a_missing_store_is_unknown() -> None:
    finding = monitor.missing_store(STORE, "there is none")
    assert (finding.reason, finding.severity, finding.store) == (Reason.MISSING_STORE, Severity.UNKNOWN, STORE)


def test_reasons_and_states_are_those_of_the_contract() -> None:
    about_runs = {"abandoned", "slow", "blocked", "in_doubt", "expired", "failed", "clock", "looping", "vanished"}
    assert set(Reason) == about_runs | {"damaged", "unreadable", "foreign", "missing_store", "unlogged", "unwritten"}
    assert {severity.name: int(severity) for severity in Severity} == {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


def test_the_finding_says_who_what_next_and_since_when() -> None:
    finding = told(begun(once=True), DEAD)
    assert (finding.store, finding.id, finding.owner, finding.next) == (STORE, "deploy", "tester", "build")
    assert (finding.age_s, finding.progress_at, finding.in_doubt) == (HOUR, ago(HOUR), ("build",))
    assert "build" in finding.detail


def test_a_step_in_doubt_is_named_whatever_the_reason() -> None:
    assert told(begun(), DEAD).in_doubt == ("build",)
    assert told(begun(), ALIVE).in_doubt == ()


def test_words_given_with_a_block_or_a_failure_are_passed_on() -> None:
    assert "waits for a signature" in told(model.block(record(), "waits for a signature")).detail
    assert "disk full" in told(model.fail_step(begun(), "build", ago(HOUR), error="disk full")).detail


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
@pytest.mark.parametrize("state", list(map(Standing, OwnerState)))
def test_a_finished_run_is_never_told(status: Status, state: Standing) -> None:
    finished = record(30 * DAY, ttl_s=60, stale_after_s=1)._replace(status=status, finished_at=ago(29 * DAY), lease=None)
    assert judge(finished, state) is None
    assert judge(finished._replace(updated_at=NOW + timedelta(days=1)), state) is None


# --- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "own", "stale"),
    [
        (0, None, False),
        (599, None, False),
        (600, None, False),
        (600.001, None, True),
        (601, None, True),
        # Its own comes first, whether it is shorter or longer than the policy's.
        (60, 60, False),
        (61, 60, True),
        (599, 7200, False),
        (601, 7200, False),
        (7200, 7200, False),
        (7201, 7200, True),
        (1, 1, False),
        (2, 1, True),
    ],
)
def test_stale_is_longer_than_the_threshold(age_s: float, own: int | None, stale: bool) -> None:
    for state in map(Standing, OwnerState):
        assert (judge(record(age_s, stale_after_s=own), state) is not None) is stale


@pytest.mark.parametrize(("threshold_s", "stale"), [(3599, True), (3600, False), (3601, False)])
def test_the_policy_sets_the_threshold(threshold_s: int, stale: bool) -> None:
    assert (judge(record(HOUR), policy=Policy(threshold_s=threshold_s)) is not None) is stale


@pytest.mark.parametrize("heartbeat_age_s", [0, 1, 599, -299])
def test_a_heartbeat_hides_nothing(heartbeat_age_s: int) -> None:
    beating = record(HOUR)._replace(heartbeat_at=ago(heartbeat_age_s), updated_at=ago(heartbeat_age_s))
    finding = told(beating, ALIVE)
    assert (finding.reason, finding.age_s) == (Reason.SLOW, HOUR)


def test_progress_counts_and_not_the_age_of_the_run() -> None:
    moved = model.complete_step(record(10 * DAY), "build", ago(60))
    assert judge(moved) is None


@pytest.mark.parametrize(
    ("age_s", "severity"),
    [(601, Severity.WARNING), (DAY - 1, Severity.WARNING), (DAY, Severity.CRITICAL), (DAY + 1, Severity.CRITICAL)],
)
@pytest.mark.parametrize("state", [ALIVE, DEAD])
def test_age_makes_critical(age_s: int, severity: Severity, state: Standing) -> None:
    assert told(record(age_s), state).severity is severity
    assert told(model.block(record(age_s), "waits"), state).severity is severity
    assert told(record(age_s, ttl_s=60), state).severity is severity


def test_the_policy_sets_what_is_critical() -> None:
    assert told(record(HOUR + 1), policy=Policy(critical_s=HOUR)).severity is Severity.CRITICAL
    assert told(record(HOUR - 1), policy=Policy(critical_s=HOUR)).severity is Severity.WARNING


def test_what_is_not_stale_yet_is_not_critical_either() -> None:
    assert judge(record(2 * DAY, stale_after_s=7 * DAY)) is None


@pytest.mark.parametrize(("left_s", "expired"), [(1, False), (0, True), (-1, True)])
def test_an_expiry_does_not_wait_for_the_threshold(left_s: int, expired: bool) -> None:
    checkpoint = record(60)._replace(expires_at=NOW + timedelta(seconds=left_s))
    finding = judge(checkpoint, ALIVE)
    assert (finding.reason if finding else None) == (Reason.EXPIRED if expired else None)


@pytest.mark.parametrize("field", ["created_at", "updated_at", "progress_at", "heartbeat_at"])
@pytest.mark.parametrize(("ahead_s", "clock"), [(299, False), (300, False), (301, True), (10 * DAY, True)])
def test_a_date_in_the_future_is_told_beyond_a_small_skew(field: str, ahead_s: int, clock: bool) -> None:
    checkpoint = record(1)._replace(**{field: NOW + timedelta(seconds=ahead_s)})
    finding = judge(checkpoint, ALIVE)
    assert (finding.reason if finding else None) == (Reason.CLOCK if clock else None)
    if finding:
        assert field in finding.detail


def test_a_run_that_may_live_long_lies_not_in_the_future() -> None:
    assert judge(record(1, ttl_s=365 * DAY), ALIVE) is None


# --- the whole -------------------------------------------------------------------------------------------------------


def finding(severity: Severity, *, age_s: int | None = HOUR, id: str = "deploy", store: str = STORE) -> Finding:
    reason = {
        Severity.WARNING: Reason.ABANDONED,
        Severity.CRITICAL: Reason.ABANDONED,
        Severity.UNKNOWN: Reason.MISSING_STORE,
    }[severity]
    return Finding(severity, reason, store, id, "words", age_s=age_s)


def summary(*findings: Finding, policy: Policy = POLICY) -> monitor.Report:
    return monitor.report(NOW, [STORE], findings, len(findings), policy)


WORST_FIRST = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WARNING)


@pytest.mark.parametrize("present", [some for count in range(4) for some in combinations(WORST_FIRST, count)])
def test_critical_outweighs_unknown_outweighs_warning(present: tuple[Severity, ...]) -> None:
    expected = next((severity for severity in WORST_FIRST if severity in present), Severity.OK)
    assert summary(*(finding(severity) for severity in present)).severity is expected
    assert summary(*(finding(severity) for severity in reversed(present))).severity is expected


@pytest.mark.parametrize(("count", "severity"), [(1, Severity.WARNING), (5, Severity.WARNING), (6, Severity.CRITICAL)])
def test_more_than_five_stale_ones_are_critical(count: int, severity: Severity) -> None:
    report = summary(*(finding(Severity.WARNING, id=f"run-{number}") for number in range(count)))
    assert report.severity is severity
    assert len(report.stale) == count


def test_stores_that_are_missing_are_not_counted_as_stale() -> None:
    missing = [monitor.missing_store(f"store-{number}", "there is none") for number in range(9)]
    report = summary(*missing)
    assert (report.severity, len(report.stale), report.unreadable) == (Severity.UNKNOWN, 0, 0)


def test_unreadable_files_are_counted_apart() -> None:
    errors: list[CheckpointError] = [Damaged("cut", kind="json"), StoreUnavailable("no permission")]
    report = summary(finding(Severity.WARNING), *(monitor.judge_error("bad", error, STORE) for error in errors))
    assert (report.severity, len(report.stale), report.unreadable) == (Severity.CRITICAL, 1, 2)


def test_the_worst_comes_first_then_the_oldest() -> None:
    ordered = [
        finding(Severity.CRITICAL, age_s=3 * DAY, id="a"),
        finding(Severity.CRITICAL, age_s=2 * DAY, id="b"),
        finding(Severity.CRITICAL, age_s=None, id="c"),
        finding(Severity.UNKNOWN, age_s=None, id="", store="missing"),
        finding(Severity.WARNING, age_s=5000, id="d"),
        finding(Severity.WARNING, age_s=4000, id="a", store="s1"),
        finding(Severity.WARNING, age_s=4000, id="b", store="s1"),
        finding(Severity.WARNING, age_s=4000, id="a", store="s2"),
    ]
    assert list(summary(*reversed(ordered)).findings) == ordered
    assert list(summary(*ordered[1::2], *ordered[::2]).findings) == ordered


def test_the_oldest_is_the_oldest_of_those_whose_age_is_known() -> None:
    report = summary(
        finding(Severity.WARNING, age_s=700, id="young"),
        finding(Severity.CRITICAL, age_s=None, id="damaged"),
        finding(Severity.WARNING, age_s=9000, id="old"),
    )
    assert report.oldest is not None
    assert report.oldest.id == "old"
    assert summary().oldest is None


def test_nothing_found_is_ok() -> None:
    report = monitor.report(NOW, [STORE], [], 4, POLICY)
    assert (report.severity, report.unfinished, report.stores) == (Severity.OK, 4, (STORE,))
