"""Every change of state, as tables: what is allowed, what it gives, what is refused and by which error."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from records import FINGERPRINT, T0, at, owner, run

from checkpoint import errors, model
from checkpoint.model import (
    Cause,
    Checkpoint,
    Outcome,
    OwnerState,
    PlanStep,
    RunState,
    Standing,
    Status,
    StepStatus,
)

ALIVE, DEAD, NONE, EXPIRED, UNKNOWN = (
    Standing(OwnerState.ALIVE),
    Standing(OwnerState.DEAD),
    Standing(OwnerState.NONE),
    Standing(OwnerState.EXPIRED),
    Standing(OwnerState.UNKNOWN),
)


def step_in(status: str, *, once: bool = False) -> Checkpoint:
    """A run whose step ``a`` stands in ``status``; "doubt" is begun under a token that is no longer the last."""
    checkpoint = run(PlanStep("a", once=once), "b")
    if status in ("begun", "doubt"):
        checkpoint = model.begin_step(checkpoint, "a", ALIVE, at(1))
    if status == "completed":
        checkpoint = model.complete_step(checkpoint, "a", at(1), result=1)
    if status == "failed":
        checkpoint = model.fail_step(checkpoint, "a", at(1), error="e")
    if status == "skipped":
        checkpoint = model.skip_step(checkpoint, "a", at(1), reason="r")
    if status == "doubt":
        checkpoint = model.claim(checkpoint, owner("bob", pid=42), DEAD, at(2))
    return checkpoint


CHANGES: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "begin": lambda c: model.begin_step(c, "a", ALIVE, at(3)),
    "complete": lambda c: model.complete_step(c, "a", at(3), result=2),
    "fail": lambda c: model.fail_step(c, "a", at(3), error="e"),
    "skip": lambda c: model.skip_step(c, "a", at(3), reason="r"),
    "retry": lambda c: model.retry_step(c, "a", at(3)),
}
REFUSED = errors.InvalidTransition
SAME = "no change"
TABLE: dict[str, dict[str, Any]] = {
    # from        begin      complete     fail       skip       retry
    "pending": {"begin": "begun", "complete": "completed", "fail": "failed", "skip": "skipped", "retry": SAME},
    "begun": {"begin": SAME, "complete": "completed", "fail": "failed", "skip": "skipped", "retry": "pending"},
    "doubt": {"begin": "begun", "complete": "completed", "fail": "failed", "skip": "skipped", "retry": "pending"},
    "completed": {"begin": REFUSED, "complete": SAME, "fail": REFUSED, "skip": REFUSED, "retry": REFUSED},
    "failed": {"begin": "begun", "complete": "completed", "fail": SAME, "skip": "skipped", "retry": "pending"},
    "skipped": {"begin": REFUSED, "complete": REFUSED, "fail": REFUSED, "skip": SAME, "retry": "pending"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("status", TABLE)
def test_steps(status: str, change: str) -> None:
    before, wanted = step_in(status), TABLE[status][change]
    if wanted is REFUSED:
        with pytest.raises(REFUSED):
            CHANGES[change](before)
        return
    after = CHANGES[change](before)
    if wanted == SAME:
        assert after is before
        return
    step = after.step("a")
    assert step is not None
    assert step.status == wanted
    assert after.progress_at == at(3)
    assert after.steps[1] is before.steps[1]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("status", [s for s in TABLE if s != "doubt"])
def test_a_finished_run_takes_no_change_but_what_is_none(status: str, change: str) -> None:
    finished = model.finish(step_in(status), Status.CANCELLED, ALIVE, at(2), reason="r")
    if TABLE[status][change] == SAME and (status, change) != ("begun", "begin"):
        assert CHANGES[change](finished) is finished
    else:
        with pytest.raises(errors.InvalidTransition):
            CHANGES[change](finished)


def test_a_completed_step_keeps_its_first_result() -> None:
    assert model.complete_step(step_in("completed"), "a", at(9), result="other").steps[0].result == 1


def test_attempts_are_counted_and_survive_a_retry() -> None:
    checkpoint = CHANGES["begin"](step_in("failed"))
    assert checkpoint.steps[0].attempts == 2
    assert model.retry_step(checkpoint, "a", at(4)).steps[0].attempts == 2


@pytest.mark.parametrize("state", [DEAD, NONE, EXPIRED])
def test_a_begun_step_is_in_doubt_once_nobody_can_end_it(state: Standing) -> None:
    begun = step_in("begun")
    assert model.in_doubt(begun, ALIVE) == model.in_doubt(begun, UNKNOWN) == ()
    assert model.in_doubt(begun, state) == ("a",)


def test_a_step_begun_under_an_earlier_token_stays_in_doubt_under_the_new_owner() -> None:
    doubt = step_in("doubt")
    assert model.in_doubt(doubt, ALIVE) == ("a",)
    assert model.in_doubt(CHANGES["begin"](doubt), ALIVE) == ()


def test_a_step_marked_once_is_never_begun_again_blindly() -> None:
    doubt = step_in("doubt", once=True)
    with pytest.raises(errors.InDoubt, match="repeated blindly"):
        CHANGES["begin"](doubt)
    assert CHANGES["begin"](CHANGES["retry"](doubt)).steps[0].status is StepStatus.BEGUN
    with pytest.raises(errors.InDoubt):  # also under the token it began with: its session may have died inside
        CHANGES["begin"](step_in("begun", once=True))
    with pytest.raises(errors.InDoubt):  # also when only the one who comes back says that it is so
        model.begin_step(step_in("doubt"), "a", ALIVE, at(3), once=True)


def test_plans_declared_and_open() -> None:
    with pytest.raises(errors.NotFound, match="--add"):
        model.begin_step(run("a"), "x", ALIVE, at(1))
    added = model.add_step(run("a"), "x")
    assert added.steps[1].added
    assert model.add_step(added, "x") is added
    opened = model.begin_step(run(open_plan=True), "x", ALIVE, at(1), once=True)
    assert opened.steps[0].once
    assert not opened.steps[0].added
    with pytest.raises(errors.Usage):
        model.begin_step(run(open_plan=True), "Bad Name", ALIVE, at(1))


@pytest.mark.parametrize("name", ["", "A", "a b", "a" * 65, "-a", "a\n", "a\0", "../a", "ä", "a.b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(errors.Usage):
        model.check_name(name, "workflow name")


def test_a_step_twice_in_a_plan_is_refused() -> None:
    with pytest.raises(errors.Usage, match="twice"):
        run("a", "a")


# --- ownership ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [DEAD, EXPIRED])
def test_what_a_dead_owner_left_is_taken_with_the_next_token(state: Standing) -> None:
    taken = model.claim(run(), owner("bob", pid=42), state, at(5))
    assert taken.lease is not None
    assert (taken.token, taken.lease.token, taken.lease.owner, taken.attempts) == (2, 2, "bob", 2)


def test_what_was_given_back_is_no_failed_attempt() -> None:
    taken = model.claim(model.release(run()), owner("bob", pid=42), NONE, at(5))
    assert (taken.token, taken.attempts) == (2, 1)


@pytest.mark.parametrize("state", [ALIVE, UNKNOWN])
def test_a_live_owner_is_not_robbed_without_a_reason(state: Standing) -> None:
    with pytest.raises(errors.Locked, match=r"ann .*token 1"):
        model.claim(run(), owner("bob", pid=42), state, at(5))
    stolen = model.claim(run(), owner("bob", pid=42), state, at(5), steal_reason="ann is on holiday")
    assert stolen.token == 2
    assert "ann is on holiday" in stolen.notes[-1].text
    assert stolen.notes[-1].by == "bob"


def test_the_same_owner_gets_the_same_token_again() -> None:
    assert model.claim(run(), owner(), ALIVE, at(5)).token == 1
    by_time = run(by=owner(pid=None))
    again = model.claim(by_time, owner(pid=None), UNKNOWN, at(5))
    assert again.lease is not None
    assert (again.token, again.lease.expires_at) == (1, at(5 + 1800))
    assert model.claim(by_time, owner(pid=None), EXPIRED, at(5000)).token == 1


def test_a_pid_that_came_again_is_not_the_same_owner() -> None:
    """Names are made from pids; the start time of the process that bears one tells it from the one before."""
    first = owner(pid=None)._replace(pid_started=7)
    with pytest.raises(errors.Locked):
        model.claim(run(by=first), first._replace(pid_started=8), UNKNOWN, at(5))
    assert model.claim(run(by=first), first, UNKNOWN, at(5)).token == 1


@pytest.mark.parametrize(
    "other",
    [owner(pid=42), owner(started=8), owner()._replace(boot_id="later"), owner()._replace(host="g" * 16), owner("bob")],
    ids=["pid", "reused pid", "boot", "host", "name"],
)
def test_who_is_not_the_same_owner(other: model.Owner) -> None:
    with pytest.raises(errors.Locked):
        model.claim(run(), other, ALIVE, at(5))


def test_a_process_that_died_is_not_the_same_owner_even_under_its_name() -> None:
    assert model.claim(run(), owner(), DEAD, at(5)).token == 2


def test_attempts_run_out() -> None:
    checkpoint = run(max_attempts=2)
    checkpoint = model.claim(checkpoint, owner("bob", pid=42), DEAD, at(1))
    with pytest.raises(errors.AttemptsExhausted, match="2 times"):
        model.claim(checkpoint, owner("eve", pid=43), DEAD, at(2))
    more = model.enter(
        checkpoint, owner("eve", pid=43), DEAD, at(2), plan=_plan("a", "b", "c"), fingerprint=FINGERPRINT, max_attempts=3
    )
    assert more.attempts == 3


def test_an_expired_run_is_gone_on_with_only_on_request() -> None:
    checkpoint = run(ttl_s=60)
    with pytest.raises(errors.InvalidTransition, match="expired"):
        model.claim(checkpoint, owner(), DEAD, at(60))
    with pytest.raises(errors.InvalidTransition, match="expired"):
        model.enter(checkpoint, owner(), DEAD, at(60), plan=_plan("a", "b", "c"), fingerprint=FINGERPRINT, ttl_s=60)
    again = model.enter(
        checkpoint, owner(), DEAD, at(60), plan=_plan("a", "b", "c"), fingerprint=FINGERPRINT, ttl_s=60, replan=True
    )
    assert again.expires_at == at(120)


@pytest.mark.parametrize(
    ("token", "name", "state", "error"),
    [
        (1, "bob", ALIVE, None),
        (2, "ann", ALIVE, errors.StaleToken),
        (0, "ann", DEAD, errors.StaleToken),
        (None, "ann", ALIVE, None),
        (None, "bob", ALIVE, errors.Locked),
        (None, "bob", UNKNOWN, errors.Locked),
        (None, "bob", DEAD, None),
        (None, "bob", EXPIRED, None),
    ],
)
def test_who_may_write(token: int | None, name: str, state: Standing, error: type[Exception] | None) -> None:
    writer = owner(name, pid=41 if name == "ann" else 42)
    if error is None:
        model.authorize(run(), writer, token, state)
    else:
        with pytest.raises(error):
            model.authorize(run(), writer, token, state)


def test_time_runs_out_only_where_life_cannot_be_seen() -> None:
    held = run(by=owner(lease_s=60))
    assert model.owner_state(held, "alive", at(90)) is ALIVE.owner
    assert model.owner_state(held, "unknown", at(90)) is EXPIRED.owner
    assert model.owner_state(held, "unknown", at(30)) is UNKNOWN.owner
    assert model.owner_state(held, "dead", at(30)) is DEAD.owner


def test_a_claim_of_another_boot_or_host_ends_by_time_and_one_of_this_boot_by_its_process_alone() -> None:
    held = run(by=owner())
    for seconds, state in ((1799, UNKNOWN), (1800, EXPIRED)):
        assert model.owner_state(held, "elsewhere", at(seconds)) is state.owner
    later = model.renew(held, owner(), 1, at(600))
    assert model.owner_state(later, "elsewhere", at(2399)) is UNKNOWN.owner, "30 minutes after its last write"
    assert model.owner_state(later, "elsewhere", at(2400)) is EXPIRED.owner
    assert model.owner_state(held, "unknown", at(1 << 30)) is UNKNOWN.owner


def test_replan_does_not_make_a_step_in_doubt_repeatable() -> None:
    doubt = step_in("begun", once=True)
    after = model.enter(doubt, owner("bob"), DEAD, at(4), plan=_plan("a", "b"), fingerprint="cd" * 32, replan=True)
    assert after.steps[0].once


def test_only_the_holder_renews() -> None:
    checkpoint = run(by=owner(pid=None, lease_s=60))
    renewed = model.renew(checkpoint, owner("bob"), 1, at(30))
    assert renewed.lease is not None
    assert (renewed.lease.expires_at, renewed.heartbeat_at, renewed.progress_at) == (at(90), at(30), T0)
    assert model.renew(checkpoint, owner("bob"), None, at(30)) is checkpoint
    with pytest.raises(errors.InvalidTransition):
        model.heartbeat(checkpoint, owner("bob"), None, at(30))


def test_a_new_run_counts_on_from_the_tokens_of_the_runs_before() -> None:
    raised = model.above_token(run(), 7)
    assert raised.lease is not None
    assert (raised.token, raised.lease.token) == (8, 8)


# --- plans that changed ---------------------------------------------------------------------------------------------------


def _plan(*names: str) -> list[PlanStep]:
    return [PlanStep(name) for name in names]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (_plan("a", "b", "c"), []),
        (_plan("a", "b"), ["step 3 'c' is gone"]),
        (_plan("a", "b", "c", "d"), ["step 4 'd' is new"]),
        (_plan("b", "a", "c"), ["step 2 'a' was step 1", "step 1 'b' was step 2"]),
        ([PlanStep("a", once=True), *_plan("b", "c")], ["step 1 'a' is now marked once"]),
        (None, ["the run began with a declared plan"]),
    ],
    ids=["same", "gone", "new", "order", "once", "open"],
)
def test_drift_is_named_step_by_step(plan: list[PlanStep] | None, words: list[str]) -> None:
    assert model.drift(run(), plan) == words
    assert model.drift(model.add_step(run(), "extra"), plan) == words, "added steps are not part of the declared plan"


def test_another_plan_or_input_is_a_conflict() -> None:
    def enter(plan: list[PlanStep]) -> Checkpoint:
        return model.enter(run(), owner(), ALIVE, at(1), plan=plan, fingerprint="cd" * 32)

    with pytest.raises(errors.Conflict, match="'d' is new"):
        enter(_plan("a", "b", "c", "d"))
    with pytest.raises(errors.Conflict, match="the input differs"):
        enter(_plan("a", "b", "c"))


def test_replan_keeps_what_is_completed() -> None:
    checkpoint = model.complete_step(model.complete_step(run(), "a", at(1), result=1), "b", at(2))
    checkpoint = model.fail_step(checkpoint, "c", at(3), error="e")
    after = model.enter(checkpoint, owner(), ALIVE, at(4), plan=_plan("x", "a"), fingerprint="cd" * 32, replan=True)
    assert [(step.name, str(step.status), step.added) for step in after.steps] == [
        ("b", "completed", True),
        ("x", "pending", False),
        ("a", "completed", False),
    ]
    assert model.drift(after, _plan("x", "a")) == []


def test_replan_does_not_lose_a_step_in_doubt() -> None:
    with pytest.raises(errors.InDoubt, match="'a'"):
        model.enter(step_in("begun"), owner("bob"), DEAD, at(4), plan=_plan("b"), fingerprint="cd" * 32, replan=True)


# --- the run as a whole -----------------------------------------------------------------------------------------------------


def test_completing_wants_every_step_or_a_reason() -> None:
    checkpoint = model.skip_step(model.complete_step(run("a", "b"), "a", at(1)), "b", at(1), reason="r")
    done = model.finish(checkpoint, Status.COMPLETED, ALIVE, at(2))
    assert (done.status, done.lease, done.finished_at) == (Status.COMPLETED, None, at(2))
    with pytest.raises(errors.InvalidTransition, match=r"a \(in doubt\), b \(pending\)"):
        model.finish(step_in("doubt"), Status.COMPLETED, ALIVE, at(2))
    assert model.finish(step_in("doubt"), Status.COMPLETED, ALIVE, at(2), reason="seen to").reason == "seen to"


@pytest.mark.parametrize("first", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
@pytest.mark.parametrize("second", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_the_end_is_final(first: Status, second: Status) -> None:
    ended = model.finish(run("a"), first, ALIVE, at(1), reason="r")
    if first is second:
        assert model.finish(ended, second, NONE, at(2), reason="again") is ended
    else:
        with pytest.raises(errors.InvalidTransition):
            model.finish(ended, second, NONE, at(2), reason="again")
    with pytest.raises(errors.InvalidTransition):
        model.claim(ended, owner(), NONE, at(2))


def test_blocked_work_does_not_begin() -> None:
    blocked = model.block(run(), "waits")
    with pytest.raises(errors.InvalidTransition, match="waits"):
        model.begin_step(blocked, "a", ALIVE, at(1))
    assert model.complete_step(blocked, "a", at(1)).status is Status.BLOCKED
    assert model.unblock(blocked, at(1)).reason is None


def test_pinned_or_unfinished_work_is_not_deleted() -> None:
    with pytest.raises(errors.InvalidTransition):
        model.check_deletable(run())
    with pytest.raises(errors.InvalidTransition, match="pinned"):
        model.check_deletable(model.pin(model.finish(run(), Status.FAILED, ALIVE, at(1), reason="r"), True))


# The examples of RFC 7386, appendix A, whose patch is an object.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]) -> None:
    assert model.merged(target, patch) == result


# --- steps that are commands ------------------------------------------------------------------------------------------

PROCESS = model.StepProcess("h" * 16, "boot", 1, 77, 8, 76, 7)
GOOD = Outcome(exit_code=0)
BAD = Outcome(exit_code=3, error="exit status 3")


def command(*, once: bool = False) -> Checkpoint:
    return model.begin_step(run(PlanStep("a", once=once), "b"), "a", ALIVE, at(1), process=PROCESS)


@pytest.mark.parametrize(
    ("outcome", "once", "status"),
    [
        (GOOD, False, "completed"),
        (GOOD, True, "completed"),
        (GOOD._replace(in_place=True), True, "completed"),
        (GOOD._replace(in_place=False), False, "failed"),
        (GOOD._replace(in_place=False), True, "failed"),
        (GOOD._replace(error="its effect could not be looked at"), False, "failed"),
        (GOOD._replace(error="its effect could not be looked at"), True, "begun"),
        (GOOD._replace(cause=Cause.INTERRUPT), False, "failed"),
        (GOOD._replace(cause=Cause.TIMEOUT), True, "begun"),
        (BAD, False, "failed"),
        (BAD, True, "begun"),
        (BAD._replace(in_place=True), True, "completed"),
        (BAD._replace(in_place=False), True, "failed"),
        (Outcome(exit_code=127, started=False, error="not found"), True, "failed"),
        (Outcome(signal="SIGKILL", cause=Cause.INTERRUPT), True, "begun"),
    ],
)
def test_how_a_command_ended_decides(outcome: Outcome, once: bool, status: str) -> None:
    after = model.end_step(command(once=once), "a", ALIVE, at(4), outcome)
    step = after.step("a")
    assert step is not None
    assert step.status == status
    assert (step.ended_at, step.process) == (at(4), None)
    assert step.duration_ms == (None if outcome.exit_code is None else 3000), "it is known only where the end was seen"
    assert (step.exit_code, step.signal) == (outcome.exit_code, outcome.signal)
    assert model.in_doubt(after, ALIVE) == (("a",) if status == "begun" else ())
    if status == "begun":
        with pytest.raises(errors.InDoubt):
            model.begin_step(after, "a", ALIVE, at(5), process=PROCESS)
    elif status == "failed":
        again = model.begin_step(after, "a", ALIVE, at(5)).step("a")
        assert again is not None
        assert (again.attempts, again.exit_code, again.signal, again.cause, again.output) == (2, None, None, None, None)


def test_a_command_that_works_keeps_others_out_and_one_that_vanished_is_in_doubt() -> None:
    working = Standing(OwnerState.DEAD, working=frozenset({"a"}))
    vanished = Standing(OwnerState.ALIVE, vanished=frozenset({"a"}))
    assert working.held
    assert model.in_doubt(command(), working) == ()
    with pytest.raises(errors.Locked, match="still at work") as caught:
        model.claim(command(), owner("bob"), working, at(2))
    assert caught.value.leaving
    with pytest.raises(errors.Locked, match="still at work"):
        model.authorize(command(), owner("bob"), None, working)
    with pytest.raises(errors.Locked, match="still at work"):
        model.begin_step(command(), "a", working._replace(owner=OwnerState.ALIVE), at(2))
    assert model.claim(command(), owner("bob"), working, at(2), steal_reason="it hangs").token == 2
    assert model.in_doubt(command(), vanished) == ("a",)
    again = model.begin_step(command(), "a", vanished, at(2), process=PROCESS).step("a")
    assert again is not None
    assert again.attempts == 2


class Answers(NamedTuple):
    """A kernel that knows these pids, and whether there are orphans."""

    lives: dict[int, str]
    orphans: bool = False

    def owner(self, checkpoint: Checkpoint) -> str:
        assert checkpoint.lease is not None
        return self.lives[checkpoint.lease.pid or 0]

    def process(self, checkpoint: Checkpoint, process: model.StepProcess) -> str:
        return self.lives[process.pid or 0]

    def has_orphans(self, checkpoint: Checkpoint, step: model.Step) -> bool:
        return self.orphans


def test_standing_is_what_the_processes_say() -> None:
    def standing(lease: str, step: str, run: str, *, lease_s: int | None = None) -> Standing:
        found = {41: lease, 77: step, 76: run}
        by = owner(lease_s=lease_s)
        begun = model.begin_step(model.claim(command(), by, ALIVE, at(1)), "a", ALIVE, at(1), process=PROCESS)
        return model.standing(begun, Answers(found), at(2))

    working, vanished = frozenset({"a"}), frozenset({"a"})
    assert standing("dead", "alive", "dead") == Standing(OwnerState.DEAD, working=working)
    assert standing("dead", "dead", "alive") == Standing(OwnerState.DEAD, working=working), "its end is not recorded yet"
    assert standing("alive", "dead", "dead") == Standing(OwnerState.ALIVE, vanished=vanished)
    assert standing("dead", "unknown", "unknown") == Standing(OwnerState.DEAD)
    assert not standing("dead", "unknown", "unknown").held


def test_an_end_is_that_of_the_attempt_that_began_and_of_nobody_elses() -> None:
    with pytest.raises(errors.StaleToken, match="again since"):
        model.end_step(command(), "a", ALIVE, at(2), GOOD, attempt=7)
    working = Standing(OwnerState.ALIVE, working=frozenset({"a"}))
    with pytest.raises(errors.Locked, match="still at work"):
        model.end_step(command(), "a", working, at(2), GOOD)
    ended = model.end_step(command(), "a", working, at(2), BAD, attempt=1)
    assert model.end_step(ended, "a", ALIVE, at(3), BAD) is ended, "said again"
    for status in ("pending", "failed"):
        with pytest.raises(errors.InvalidTransition, match="has not begun"):
            model.end_step(step_in(status), "a", ALIVE, at(3), GOOD)


def test_begun_without_once_and_then_with_it_is_marked() -> None:
    begun = model.begin_step(run(), "a", ALIVE, at(1))
    again = model.begin_step(begun, "a", ALIVE, at(2), once=True).step("a")
    assert again is not None
    assert (again.once, again.attempts) == (True, 1)


@pytest.mark.parametrize(
    ("outcome", "standing", "state"),
    [
        (None, ALIVE, RunState.RUNNING),
        (None, UNKNOWN, RunState.RUNNING),
        (None, DEAD, RunState.INTERRUPTED),
        (None, Standing(OwnerState.DEAD, working=frozenset({"a"})), RunState.RUNNING),
        (GOOD, DEAD, RunState.INTERRUPTED),
        (BAD, ALIVE, RunState.RUNNING),
        (BAD, NONE, RunState.FAILED),
        (BAD._replace(cause=Cause.TIMEOUT), NONE, RunState.TIMED_OUT),
        (BAD._replace(cause=Cause.INTERRUPT), EXPIRED, RunState.INTERRUPTED),
    ],
)
def test_how_an_unfinished_run_stands(outcome: Outcome | None, standing: Standing, state: RunState) -> None:
    checkpoint = command() if outcome is None else model.end_step(command(), "a", ALIVE, at(2), outcome)
    assert model.run_state(checkpoint, standing, at(3)) is state
    assert model.run_state(model.block(checkpoint, "r"), standing, at(3)) is RunState.BLOCKED
    late = checkpoint._replace(expires_at=at(3))
    assert model.run_state(late, standing, at(3)) is (RunState.RUNNING if standing.held else RunState.EXPIRED)


@pytest.mark.parametrize(
    ("cause", "state"),
    [(None, RunState.FAILED), (Cause.TIMEOUT, RunState.TIMED_OUT), (Cause.INTERRUPT, RunState.INTERRUPTED)],
)
def test_how_a_finished_run_stands(cause: Cause | None, state: RunState) -> None:
    ended = model.end_step(command(), "a", ALIVE, at(2), BAD._replace(cause=cause))
    assert model.run_state(model.finish(ended, Status.FAILED, ALIVE, at(3), reason="r"), NONE, at(4)) is state
    assert model.run_state(model.finish(ended, Status.CANCELLED, ALIVE, at(3)), NONE, at(4)) is RunState.CANCELLED
    done = model.finish(ended, Status.COMPLETED, ALIVE, at(3), reason="r")
    assert model.run_state(done, NONE, at(4)) is RunState.COMPLETED


def test_the_oldest_output_is_forgotten_first_and_that_of_failures_last() -> None:
    names = [f"s{number}" for number in range(6)]
    checkpoint = run(*names)
    for number, name in enumerate(names):
        begun = model.begin_step(checkpoint, name, ALIVE, at(number))
        outcome = (BAD if number == 0 else GOOD)._replace(output="x" * (model.OUTPUT_LIMIT // 4))
        checkpoint = model.end_step(begun, name, ALIVE, at(number), outcome)
    assert [step.name for step in checkpoint.steps if step.output] == ["s0", "s3", "s4", "s5"]


@pytest.mark.parametrize(
    ("id", "mine"),
    [("deploy", True), ("deploy-0123456789ab", True), ("deploy-0123456789a", False), ("deploy-x", False), ("deploys", False)],
)
def test_ids_of_a_workflow(id: str, mine: bool) -> None:
    assert model.may_be_of(id, "deploy") is mine
