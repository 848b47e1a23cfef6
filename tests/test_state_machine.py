"""Owners that begin, die, come back late, rob and are robbed, in any order: what must hold after each of their calls.

Time and death are the machine's own; everything else is real: the model's decisions over each store.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from records import T0, owner, run

from checkpoint import errors, model
from checkpoint.model import Checkpoint, Status, StepStatus
from checkpoint.store import Store
from checkpoint.store.file import FileStore
from checkpoint.store.memory import MemoryStore

STEPS = ("a", "b", "c")
NAMES = ("ann", "bob", "bot")
Change = Callable[[Checkpoint], Checkpoint]


class Owners(RuleBasedStateMachine):
    store: Store

    def make_store(self) -> Store:
        return MemoryStore()

    @initialize(once=st.booleans())
    def begin(self, once: bool) -> None:
        self.store = self.make_store()
        self.now = T0
        self.lives = dict.fromkeys(NAMES, 0)
        self.tokens: dict[str, int] = {}
        self.issued = 0
        self.runs = 0
        self.once = once

    def who(self, name: str) -> model.Owner:
        """Two are processes, whose name outlives them; the third holds by time."""
        return owner(name, pid=None, lease_s=60) if name == "bot" else owner(name, pid=100 + self.lives[name])

    def state(self, checkpoint: Checkpoint) -> model.Standing:
        lease = checkpoint.lease
        liveness = "unknown"
        if lease is not None and lease.pid is not None:
            liveness = "alive" if lease.pid == self.who(lease.owner).pid else "dead"
        return model.Standing(model.owner_state(lease, liveness, self.now))

    # --- what owners do -----------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        plan = [model.PlanStep(step, self.once) for step in STEPS]
        fresh = run(*plan, by=self.who(name), now=self.now, run_id=f"019cab00-0000-7000-8000-{self.runs:012}")
        try:
            created = self.store.create(fresh)
        except errors.AlreadyExists:
            return
        self.runs += 1
        self.took(name, created)

    @rule(name=st.sampled_from(NAMES), steal=st.booleans())
    def resume(self, name: str, steal: bool) -> None:
        if not self.unfinished():
            return
        before = self.store.load("deploy")
        held_by_other = before.lease is not None and self.state(before).held and before.lease.owner != name

        def claim(checkpoint: Checkpoint, _now: object) -> Checkpoint:
            reason = "test" if steal else None
            return model.claim(checkpoint, self.who(name), self.state(checkpoint), self.now, steal_reason=reason)

        try:
            after = self.store.update("deploy", claim)
        except errors.Locked:
            assert held_by_other
            assert not steal
            return
        assert steal or not held_by_other, "a live owner was robbed without being asked for it"
        self.took(name, after)

    @rule(
        name=st.sampled_from(NAMES),
        step=st.sampled_from(STEPS),
        verb=st.sampled_from(["begin", "begin", "complete", "fail", "retry", "note"]),
        by_token=st.booleans(),
    )
    def write(self, name: str, step: str, verb: str, by_token: bool) -> None:
        if not self.unfinished() or (by_token and name not in self.tokens):
            return
        token = self.tokens[name] if by_token else None
        before = self.store.load("deploy")
        state = self.state(before)
        changes: dict[str, Change] = {
            "begin": lambda c: model.begin_step(c, step, state, self.now),
            "complete": lambda c: model.complete_step(c, step, self.now),
            "fail": lambda c: model.fail_step(c, step, self.now, error="e"),
            "retry": lambda c: model.retry_step(c, step, self.now),
            "note": lambda c: model.note(c, "n", name, self.now),
        }

        def change(checkpoint: Checkpoint, _now: object) -> Checkpoint:
            model.authorize(checkpoint, self.who(name), token, self.state(checkpoint))
            return model.renew(changes[verb](checkpoint), self.who(name), token, self.now)

        old = before.step(step)
        assert old is not None
        try:
            after = self.store.update("deploy", change)
        except errors.StaleToken:
            assert token != before.token
            return
        except errors.Locked:
            assert before.lease is not None
            assert (before.lease.owner, before.lease.pid) != (name, self.who(name).pid)
            return
        except errors.InDoubt:
            assert verb == "begin"
            assert self.once
            return
        except errors.InvalidTransition:
            assert old.status in model.DONE
            return
        if token is not None:
            assert token == self.issued, "a write under an old token was taken"
        elif state in model.HELD:
            assert before.lease is not None
            assert before.lease.owner == name, "a stranger's write was taken while the owner lives"
        new = after.step(step)
        assert new is not None
        if old.status is StepStatus.COMPLETED:
            assert new == old, "a completed step was changed"
        if verb == "begin" and old.status is StepStatus.BEGUN and old.token != before.token:
            assert new != old, "a step in doubt was not begun anew under the new token"
        if verb == "begin" and self.once and old.status is StepStatus.BEGUN:
            assert new == old, "a step that may not be repeated began twice"

    @precondition(lambda self: self.unfinished())
    @rule(step=st.sampled_from(STEPS), verb=st.sampled_from(["begin", "begin", "complete"]))
    def holder_writes(self, step: str, verb: str) -> None:
        """What happens most, and what most of the rest needs to have happened."""
        lease = self.store.load("deploy").lease
        if lease is not None:
            self.write(lease.owner, step, verb, False)

    @precondition(lambda self: self.unfinished())
    @rule(name=st.sampled_from(NAMES))
    def is_succeeded(self, name: str) -> None:
        """The holder dies, and somebody takes over."""
        lease = self.store.load("deploy").lease
        if lease is not None and lease.owner != "bot":
            self.die(lease.owner)
        self.resume(name, lease is not None and lease.owner == "bot")

    @rule(name=st.sampled_from(NAMES))
    def release(self, name: str) -> None:
        if self.unfinished() and self.tokens.get(name) == self.issued:
            self.store.update("deploy", lambda c, _now: model.release(c))

    @precondition(lambda self: self.unfinished())
    @rule(status=st.sampled_from([Status.COMPLETED, Status.FAILED]), moved=st.booleans(), really=st.integers(0, 3))
    def finish(self, status: Status, moved: bool, really: int) -> None:
        if really:
            return  # mostly not: what is interesting happens before the end
        done = self.store.update("deploy", lambda c, _now: model.finish(c, status, self.state(c), self.now, reason="r"))
        assert self.store.update("deploy", lambda c, _now: model.finish(c, status, self.state(c), self.now)) == done
        if moved:
            self.store.archive("deploy", self.store.load("deploy").run_id)

    @rule(name=st.sampled_from(["ann", "bob"]))
    def die(self, name: str) -> None:
        """From now on another process bears the name: it knows no token, and a lease still names the dead one."""
        self.lives[name] += 1
        self.tokens.pop(name, None)

    @rule(seconds=st.integers(1, 90))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def archive(self) -> None:
        if self.runs and not self.unfinished():
            self.store.archive("deploy", self.store.load("deploy").run_id)

    # --- what must hold -------------------------------------------------------------------------------------------------

    @invariant()
    def at_most_one_unfinished_and_nothing_damaged(self) -> None:
        if not self.runs_known():
            return
        entries = list(self.store.scan(finished=True))
        assert [entry.error for entry in entries if entry.error] == []
        assert len([entry for entry in entries if entry.checkpoint and entry.checkpoint.unfinished]) <= 1
        assert len(entries) == self.runs, "a run was lost or doubled"

    @invariant()
    def tokens_are_the_last_issued(self) -> None:
        if self.runs_known() and self.unfinished():
            assert self.store.load("deploy").token == self.issued

    @invariant()
    def nobody_but_the_live_holder_may_claim_or_write(self) -> None:
        if not self.runs_known() or not self.unfinished():
            return
        checkpoint = self.store.load("deploy")
        state = self.state(checkpoint)
        held = state.held
        for name in NAMES:
            me = self.who(name)
            mine = checkpoint.lease is not None and (checkpoint.lease.owner, checkpoint.lease.pid) == (name, me.pid)
            if held and not mine:
                with pytest.raises(errors.Locked):
                    model.claim(checkpoint, me, state, self.now)
                with pytest.raises(errors.Locked):
                    model.authorize(checkpoint, me, None, state)
            else:
                assert model.claim(checkpoint, me, state, self.now).lease is not None
            for token in range(checkpoint.token):
                with pytest.raises(errors.StaleToken):
                    model.authorize(checkpoint, me, token, state)

    # --- inside -----------------------------------------------------------------------------------------------------------

    def runs_known(self) -> bool:
        return getattr(self, "runs", 0) > 0

    def unfinished(self) -> bool:
        return self.runs > 0 and any(True for _ in self.store.scan())

    def took(self, name: str, checkpoint: Checkpoint) -> None:
        if checkpoint.token != self.tokens.get(name):
            assert checkpoint.token > self.issued, "a token was issued twice"
        self.tokens[name] = checkpoint.token
        self.issued = checkpoint.token


class OwnersOnFiles(Owners):
    def make_store(self) -> Store:
        self.folder = TemporaryDirectory()
        return FileStore(str(Path(self.folder.name) / "store"))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


Owners.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
OwnersOnFiles.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestOwners = Owners.TestCase
TestOwnersOnFiles = OwnersOnFiles.TestCase
