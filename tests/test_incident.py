"""Incidents over time: what is told when, with the clock in the test's hands."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import at

from checkpoint import incident, monitor
from checkpoint.errors import NotFound, Usage
from checkpoint.incident import Change, Event, Ledger, State, Telling
from checkpoint.monitor import Finding, Policy, Reason, Report, Severity

HOUR = 3600
MAIL = ("mail",)
TELLING = Telling()


def finding(id: str = "deploy", reason: Reason = Reason.ABANDONED, *, critical: bool = False, **more: Any) -> Finding:
    severity = Severity.CRITICAL if critical else Severity.WARNING
    return Finding(severity, reason, more.pop("store", "store"), id, "words", **({"age_s": 900, "progress_at": at(0)} | more))


def report(seconds: float, *findings: Finding, stores: tuple[str, ...] = ("store",)) -> Report:
    return monitor.report(at(seconds), stores, findings, len(findings), Policy())


class Duty:
    """A series of checks, and what was told at each."""

    def __init__(self, telling: Telling = TELLING, channels: tuple[str, ...] = MAIL) -> None:
        self.ledger = Ledger()
        self.telling = telling
        self.channels = channels
        self.notices: list[tuple[float, incident.Notice]] = []

    def check(self, hours: float, *findings: Finding, **more: Any) -> list[Event]:
        """Events of this check; every notice is delivered at once."""
        before = {notice.id for notice in self.ledger.notices}
        name = f"n{hours}"
        self.ledger, changes = incident.fold(
            self.ledger, report(hours * HOUR, *findings, **more), self.telling, self.channels, name
        )
        # What is kept must come back from what is written.
        assert incident.from_document(incident.to_document(self.ledger)) == self.ledger
        self.notices += [(hours, notice) for notice in self.ledger.notices if notice.id not in before]
        for channel in self.channels:
            self.ledger = incident.delivered(self.ledger, name, channel)
        return [change.event for change in changes]

    def told(self) -> list[float]:
        return [hours for hours, _ in self.notices]

    def hush(self, verb: str, pattern: str, hours: float, now: float) -> None:
        self.ledger = incident.hush(
            self.ledger, verb, pattern, store=None, for_s=int(hours * HOUR), by="ann", reason="known", now=at(now * HOUR)
        )


def test_each_thing_is_said_once_then_repeated_at_growing_distance() -> None:
    duty = Duty()
    for tenths in range(800):
        duty.check(tenths / 10, finding())
    assert duty.told() == [0, 4, 12, 28, 52, 76]
    assert {i.state for i in duty.ledger.incidents} == {State.REPEATED}


def test_the_repeat_may_be_longer_than_a_day() -> None:
    duty = Duty(Telling(repeat_s=48 * HOUR))
    for hours in range(200):
        duty.check(hours, finding())
    assert duty.told() == [0, 48, 96, 144, 192]


def test_a_change_of_the_set_is_told_at_once_and_starts_the_clock_again() -> None:
    duty = Duty()
    assert duty.check(0, finding("a")) == [Event.OPENED]
    assert duty.check(1, finding("a"), finding("b")) == [Event.OPENED]
    notice = duty.notices[-1][1]
    assert [change.finding.id for change in notice.changes] == ["b"]
    assert [change.finding.id for change in notice.still] == ["a"]
    assert duty.check(4.5, finding("a"), finding("b")) == []
    assert duty.check(5, finding("a"), finding("b")) == []
    assert duty.told() == [0, 1, 5]


def test_the_end_is_told_once_and_only_if_the_beginning_was() -> None:
    duty = Duty()
    duty.check(0, finding())
    assert duty.check(1) == [Event.RESOLVED]
    assert duty.check(2) == []
    assert duty.notices[-1][1].severity is Severity.OK
    assert [entry.state for entry in duty.ledger.resolved] == [State.RESOLVED]
    duty.hush("silence", "*", 4, now=2)
    duty.check(3, finding())
    assert duty.check(4) == []
    silent = Duty(Telling(recovery=False))
    silent.check(0, finding())
    assert silent.check(1) == []
    assert silent.told() == [0]


def test_growing_worse_is_told_at_once() -> None:
    duty = Duty()
    duty.check(0, finding())
    assert duty.check(1, finding(critical=True)) == [Event.ESCALATED]
    assert duty.ledger.incidents[0].state is State.ESCALATED
    assert duty.check(2, finding(critical=True)) == []
    assert duty.check(3, finding()) == [], "it grew better: nothing to be got up for"
    assert duty.check(3.5, finding(critical=True)) == [], "and worse again, which was told before"


def test_another_reason_is_told_once_however_often_it_comes_back() -> None:
    duty = Duty()
    events = [duty.check(n / 10, finding(reason=Reason.SLOW if n % 2 else Reason.ABANDONED)) for n in range(20)]
    assert events == [[Event.OPENED], [Event.CHANGED], *([[]] * 18)]


def test_what_could_not_be_looked_at_is_not_over() -> None:
    duty = Duty()
    duty.check(0, finding())
    missing = monitor.missing_store("store", "gone")
    assert duty.check(1, missing) == [Event.OPENED]
    assert {i.finding.reason for i in duty.ledger.incidents} == {Reason.ABANDONED, Reason.MISSING_STORE}
    assert duty.check(2, finding()) == [Event.RESOLVED]
    damaged = finding(reason=Reason.DAMAGED, age_s=None, progress_at=None)
    assert duty.check(3, damaged) == [Event.OPENED], "stale is not over because the file cannot be read"
    assert duty.check(4) == [Event.RESOLVED, Event.RESOLVED]


def test_a_store_that_is_no_longer_watched_is_said_to_be_that() -> None:
    duty = Duty()
    duty.check(0, finding(store="other"), stores=("store", "other"))
    assert duty.check(1) == [Event.UNWATCHED]
    assert duty.check(9) == []


@pytest.mark.parametrize("verb", ["ack", "snooze"])
def test_quiet_holds_for_its_time_and_then_it_is_told_again(verb: str) -> None:
    duty = Duty()
    duty.check(0, finding())
    duty.hush(verb, "deploy", 10, now=1)
    for hours in range(1, 11):
        assert duty.check(hours, finding()) == []
    assert duty.check(11, finding()) == [Event.LOUD]
    assert duty.told() == [0, 11]
    assert duty.ledger.quiets == ()


@pytest.mark.parametrize("verb", ["ack", "snooze"])
def test_quiet_ends_when_the_checkpoint_moves_or_is_well(verb: str) -> None:
    duty = Duty()
    duty.check(0, finding())
    duty.hush(verb, "deploy", 20, now=0)
    duty.check(1, finding())
    assert duty.check(2, finding(progress_at=at(1.5 * HOUR))) == [Event.LOUD]
    duty.hush(verb, "deploy", 20, now=2)
    assert duty.check(3) == [Event.RESOLVED]
    assert duty.check(4, finding(progress_at=at(1.5 * HOUR))) == [Event.OPENED], "a new one is not covered by the old request"


def test_quiet_ends_at_the_hard_age_and_is_told_as_grown_worse() -> None:
    duty = Duty(Telling(hard_s=24 * HOUR))
    duty.check(0, finding(age_s=HOUR))
    duty.hush("ack", "deploy", 24 * 29, now=0)
    assert [duty.check(hours, finding(age_s=hours * HOUR + HOUR)) for hours in range(1, 23)] == [[]] * 22
    assert duty.check(23, finding(age_s=24 * HOUR)) == [Event.ESCALATED]
    assert duty.check(24, finding(age_s=25 * HOUR)) == []


def test_silence_covers_what_is_yet_to_come_but_not_the_monitor_itself() -> None:
    duty = Duty()
    duty.hush("silence", "nightly-*", 8, now=0)
    assert duty.check(1, finding("nightly-1")) == []
    assert duty.check(2, finding("nightly-1"), finding("daily")) == [Event.OPENED]
    assert duty.check(8, finding("nightly-1"), finding("daily")) == [Event.OPENED]
    everything = Duty()
    everything.hush("silence", "*", 8, now=0)
    assert everything.check(1, monitor.missing_store("store", "gone")) == [Event.OPENED]


def test_requests_that_cannot_be_meant() -> None:
    with pytest.raises(NotFound, match="no incident of deploy"):
        Duty().hush("ack", "deploy", 1, now=0)
    with pytest.raises(Usage, match="30 days"):
        Duty().hush("snooze", "deploy", 24 * 31, now=0)
    with pytest.raises(Usage, match="--by"):
        incident.hush(Ledger(), "snooze", "a", store=None, for_s=60, by=" ", reason="x", now=at(0))
    with pytest.raises(NotFound):
        incident.unhush(Ledger(), "deploy", store=None)


def test_an_ack_of_an_id_in_two_stores_holds_for_each_by_itself() -> None:
    stores = ("one", "two")
    one, two = finding(store="one"), finding(store="two", progress_at=at(-50))
    duty = Duty()
    duty.check(0, one, two, stores=stores)
    duty.hush("ack", "deploy", 20, now=0)
    assert duty.check(1, one, two, stores=stores) == []
    assert duty.check(2, one, two._replace(progress_at=at(HOUR)), stores=stores) == [Event.LOUD]
    duty.ledger = incident.unhush(duty.ledger, "deploy", store=None)
    assert duty.check(3, one, two._replace(progress_at=at(HOUR)), stores=stores) == [Event.LOUD]


def test_a_clock_that_jumps_back_makes_no_storm_and_no_silence() -> None:
    duty = Duty()
    duty.check(1000, finding())
    duty.hush("ack", "deploy", 4, now=1000)
    for tenths in range(100):
        duty.check(tenths / 10, finding())
    # Quiet for its four hours by the clock as it is now, then told, then repeated four hours later.
    assert duty.told()[1:] == [4, 8]


def test_a_long_sleep_is_told_once() -> None:
    duty = Duty()
    duty.check(0, finding())
    assert duty.check(30, finding()) == []
    duty.check(30.2, finding())
    assert duty.told() == [0, 30]


def test_a_channel_that_is_down_is_not_heaped_with_repeats() -> None:
    ledger = Ledger()
    for hours in range(100):
        ledger, _ = incident.fold(ledger, report(hours * HOUR, finding()), TELLING, MAIL, f"n{hours}")
        ledger = incident.attempted(ledger, MAIL)
    assert [notice.id for notice in ledger.notices] == ["n0"]
    assert ledger.notices[0].attempts == 100
    ledger, _ = incident.fold(ledger, report(101 * HOUR), TELLING, MAIL, "end")
    assert [notice.id for notice in ledger.notices] == ["n0", "end"], "what happened meanwhile is kept, in order"


def test_a_channel_that_is_gone_keeps_nothing_waiting() -> None:
    ledger, _ = incident.fold(Ledger(), report(0, finding()), TELLING, ("mail", "log"), "n")
    ledger = incident.attempted(incident.delivered(ledger, "n", "log"), ("log",))
    assert ledger.notices == ()


def test_notices_that_nobody_takes_are_given_up_and_counted() -> None:
    ledger = Ledger()
    for number in range(80):
        found = (finding(f"w{number}"),)
        ledger, _ = incident.fold(ledger, report(number * 60, *found), TELLING, MAIL, f"n{number}")
        ledger = incident.attempted(ledger, MAIL)
    assert len(ledger.notices) == incident.MOST_NOTICES
    assert ledger.dropped == 80 - incident.MOST_NOTICES
    ledger, _ = incident.fold(ledger, report(8 * 24 * HOUR), TELLING, MAIL, "late")
    assert [notice.id for notice in incident.attempted(ledger, MAIL).notices] == ["late"]


def test_very_many_findings_are_bounded_and_counted() -> None:
    many = [finding(f"w{number:04}") for number in range(5000)]
    ledger, changes = incident.fold(Ledger(), report(0, *many), TELLING, MAIL, "n")
    assert len(ledger.incidents) == len(changes) == incident.MOST_INCIDENTS
    assert ledger.overflow == 5000 - incident.MOST_INCIDENTS
    (notice,) = ledger.notices
    assert (len(notice.changes), notice.more) == (incident.MOST_TOLD, 5000 - incident.MOST_TOLD)
    again, changes = incident.fold(ledger, report(60, *many), TELLING, MAIL, "m")
    assert changes == ()
    # Those that were followed stay followed; room goes to others only when one of them is over.
    less, changes = incident.fold(again, report(120, *many[10:]), TELLING, MAIL, "m")
    assert [change.event for change in changes].count(Event.RESOLVED) == 10
    assert len(less.incidents) == incident.MOST_INCIDENTS


_findings = st.lists(
    st.builds(
        finding,
        st.sampled_from(["a", "b"]),
        st.sampled_from([Reason.ABANDONED, Reason.SLOW, Reason.CLOCK, Reason.DAMAGED]),
        critical=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda one: (one.id, one.kind),
)


@given(st.lists(_findings, max_size=30))
def test_told_and_resolved_agree_whatever_comes(checks: list[list[Finding]]) -> None:
    """Each incident is opened before it is anything else, and resolved at most once for each time."""
    ledger = Ledger()
    open_now: set[tuple[str, str, str]] = set()
    for number, findings in enumerate(checks):
        ledger, changes = incident.fold(ledger, report(number * 600, *findings), TELLING, MAIL, f"n{number}")
        for change in changes:
            key = (change.finding.store, change.finding.id, change.finding.kind)
            if change.event is Event.OPENED:
                assert key not in open_now
                open_now.add(key)
            else:
                assert key in open_now
                if change.event is Event.RESOLVED:
                    open_now.remove(key)
        assert {entry.key for entry in ledger.incidents} == open_now
        assert all(isinstance(change, Change) for change in changes)
        ledger = incident.from_document(incident.to_document(ledger))


def test_times_keep_their_precision_when_written() -> None:
    ledger, _ = incident.fold(Ledger(), report(0.123, finding()), TELLING, MAIL, "n")
    assert incident.from_document(incident.to_document(ledger)) == ledger
    assert ledger.incidents[0].opened_at == at(0.123)
    assert at(0.123) - at(0) == timedelta(seconds=0.123)
