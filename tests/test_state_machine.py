"""Owners that begin, die, come back late, rob and are robbed, in any order: what must hold after each of their calls.

Time, death and what the system answers are the machine's own: processes whose pid is taken by another, reboots after which
another has the same pid and start time, clocks that jump, hosts that cannot be looked at, and over files a call to the
system that fails, a disk that fails from there on, or a process that dies in it. All else is real: what tells the living
from the dead, the model's decisions, each store.
"""

import errno
import fcntl
import functools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from portalocker import LockException
from proof import WHOLE, tried
from records import T0, run

from checkpoint import codec, errors, liveness, model, process
from checkpoint.model import Checkpoint, OwnerState, Status, StepStatus
from checkpoint.store import Store, disk, flock
from checkpoint.store.file import FileStore
from checkpoint.store.memory import MemoryStore

_T = TypeVar("_T")

STEPS = ("a", "b", "c")
NAMES = ("ann", "bob", "bot", "far")
HERE, ELSEWHERE = "h" * 16, "e" * 16
EVENTS = ("death", "death", "far death", "stranger", "reboot", "time", "time", "clock set")
Change = Callable[[Checkpoint], Checkpoint]


def raised(call: Callable[[], object]) -> type[BaseException] | None:
    """A few hundred thousand times ``pytest.raises`` takes longer than all that it looks at."""
    try:
        call()
    except errors.CheckpointError as error:
        return type(error)
    return None


class Life:
    """The process that bears a name at present, if one does."""

    def __init__(self, pid: int | None, started: int | None) -> None:
        self.pid = pid
        self.started = started


class World:
    """What the kernel would say: the boot, and the processes with their start times."""

    def __init__(self) -> None:
        self.boot = 0
        self.processes: dict[int, int] = {}
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(process, "_host", lambda: HERE)
        self._patch.setattr(process, "_machine_id", lambda: "machine")
        self._patch.setattr(process, "_boot_id", lambda: f"boot-{self.boot}")
        self._patch.setattr(process, "_pid_namespace", lambda: 1)
        self._patch.setattr(process, "_time_namespace", lambda: None)
        self._patch.setattr(process, "_boot_began", lambda: float("inf"))
        self._patch.setattr(process, "processes", lambda: process.Processes({}, frozenset()))
        self._patch.setattr(process, "_gone", lambda pid: pid not in self.processes)
        self._patch.setattr(process, "_stat", lambda pid: (False, self.processes.get(pid)))

    def close(self) -> None:
        self._patch.undo()


class Owners(RuleBasedStateMachine):
    store: Store
    calls: Counter[str]
    """What was called how often, over all runs of a test."""

    def make_store(self, lot: random.Random) -> Store:
        return MemoryStore()

    @initialize(once=st.booleans(), lot=st.integers(0, 1 << 32))
    def begin(self, once: bool, lot: int) -> None:
        self.store = self.make_store(random.Random(lot))
        self.world = World()
        self.now = T0
        self.lives = {"bot": Life(None, None)}
        self.born = 0
        for name in ("ann", "bob", "far"):
            self.bear(name)
        self.tokens: dict[str, int] = {}
        self.issued = 0
        self.runs = 0
        self.ever = 0
        self.once = once

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()

    def bear(self, name: str, pid: int | None = None) -> None:
        """From now on another process bears the name: ``pid``, or one that none had before."""
        self.born += 1
        self.lives[name] = life = Life(pid or 100 + self.born, self.born)
        if name != "far":
            assert life.pid is not None
            assert life.started is not None
            self.world.processes[life.pid] = life.started

    def who(self, name: str) -> model.Owner:
        """Two are processes, whose name outlives them; one holds by time; of one on another host nothing can be seen."""
        life = self.lives[name]
        if name == "far":
            return model.Owner(name, ELSEWHERE, "boot", 1, life.pid, life.started, 60)
        lease_s = 60 if name == "bot" else None
        return model.Owner(name, HERE, f"boot-{self.world.boot}", 1, life.pid, life.started, lease_s)

    def state(self, checkpoint: Checkpoint) -> model.Standing:
        return liveness.standing(checkpoint, self.store, self.now)

    def is_mine(self, checkpoint: Checkpoint, name: str) -> bool:
        lease, me = checkpoint.lease, self.who(name)
        return lease is not None and (lease.owner, lease.host, lease.boot_id, lease.pid, lease.pid_started) == (
            me.name,
            me.host,
            me.boot_id,
            me.pid,
            me.pid_started,
        )

    # --- what owners do -----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.open)
    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        self.calls["start"] += 1
        plan = [model.PlanStep(step, self.once) for step in STEPS]
        fresh = run(*plan, by=self.who(name), now=self.now, run_id=f"019cab00-0000-7000-8000-{self.ever:012}")
        try:
            created = self.store.create(fresh)
        except errors.AlreadyExists:
            return  # the last one is finished and not put away
        self.runs += 1
        self.ever += 1
        self.took(name, created)
        other = fresh._replace(run_id=f"019cab00-0000-7000-8000-{self.ever:012}")
        assert raised(lambda: self.store.create(other)) is errors.AlreadyExists

    @precondition(lambda self: self.open)
    @rule(name=st.sampled_from(NAMES), steal=st.booleans())
    def resume(self, name: str, steal: bool) -> None:
        self.calls["resume"] += 1
        before = self.store.load("deploy")
        held_by_other = self.state(before).held and not self.is_mine(before, name)

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

    @precondition(lambda self: self.open)
    @rule(
        name=st.sampled_from(NAMES),
        step=st.sampled_from(STEPS),
        verb=st.sampled_from(["begin", "begin", "complete", "fail", "retry", "note"]),
        by_token=st.booleans(),
    )
    def write(self, name: str, step: str, verb: str, by_token: bool) -> None:
        self.calls[verb] += 1
        token = self.tokens.get(name) if by_token else None
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
            assert not self.is_mine(before, name)
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
        elif state.held:
            assert self.is_mine(before, name), "a stranger's write was taken while the owner lives"
        new = after.step(step)
        assert new is not None
        if old.status is StepStatus.COMPLETED:
            assert new == old, "a completed step was changed"
        if verb == "begin" and old.status is StepStatus.BEGUN and old.token != before.token:
            assert new != old, "a step in doubt was not begun anew under the new token"
        if verb == "begin" and self.once and old.status is StepStatus.BEGUN:
            assert new == old, "a step that may not be repeated began twice"

    @precondition(lambda self: self.open)
    @rule(step=st.sampled_from(STEPS), verb=st.sampled_from(["begin", "begin", "complete"]))
    def holder_writes(self, step: str, verb: str) -> None:
        """What happens most, and what most of the rest needs to have happened."""
        lease = self.store.load("deploy").lease
        if lease is not None:
            self.write(lease.owner, step, verb, False)

    @precondition(lambda self: self.open)
    @rule(name=st.sampled_from(NAMES))
    def is_succeeded(self, name: str) -> None:
        """The holder dies, and somebody takes over."""
        lease = self.store.load("deploy").lease
        unseen = lease is not None and lease.owner in ("bot", "far")
        if lease is not None and not unseen:
            self.die(lease.owner, False)
        self.resume(name, unseen)

    @precondition(lambda self: self.open)
    @rule(name=st.sampled_from(NAMES))
    def release(self, name: str) -> None:
        if self.tokens.get(name) == self.issued:
            self.calls["release"] += 1
            self.store.update("deploy", lambda c, _now: model.release(c))

    @precondition(lambda self: self.open)
    @rule(status=st.sampled_from([Status.COMPLETED, Status.FAILED]), moved=st.booleans(), really=st.integers(0, 3))
    def finish(self, status: Status, moved: bool, really: int) -> None:
        if really:
            return  # mostly not: what is interesting happens before the end
        self.calls["finish"] += 1
        done = self.store.update("deploy", lambda c, _now: model.finish(c, status, self.state(c), self.now, reason="r"))
        assert self.store.update("deploy", lambda c, _now: model.finish(c, status, self.state(c), self.now)) == done
        if moved:
            self.store.archive("deploy", self.store.load("deploy").run_id)

    @precondition(lambda self: self.open)
    @rule(what=st.sampled_from(EVENTS), name=st.sampled_from(["ann", "bob"]), seconds=st.integers(1, 7200), same=st.booleans())
    def meanwhile(self, what: str, name: str, seconds: int, same: bool) -> None:
        self.calls[what] += 1
        if what == "death":
            self.die(name, same)
        elif what == "far death":
            self.die("far", same)
        elif what == "stranger":
            pid = self.lives[name].pid
            assert pid is not None
            self.die(name, False)
            self.born += 1
            self.world.processes[pid] = self.born
        elif what == "reboot":
            self.reboot(same)
        elif what == "time":
            self.now += timedelta(seconds=seconds % 90)
        else:
            self.now += timedelta(seconds=seconds if same else -seconds)

    def die(self, name: str, reused: bool) -> None:
        """From now on another process bears the name, ``reused``: under the same pid. It knows no token, and a lease still
        names the dead one."""
        pid = self.lives[name].pid
        assert pid is not None
        if name != "far":
            del self.world.processes[pid]
        self.tokens.pop(name, None)
        self.bear(name, pid if reused else None)

    def reboot(self, same: bool) -> None:
        """``same``: the processes of after have the pids and start times of before."""
        self.world.boot += 1
        old = dict(self.world.processes)
        self.world.processes.clear()
        for name in ("ann", "bob"):
            self.tokens.pop(name, None)
            pid = self.lives[name].pid
            if same and pid is not None:
                self.world.processes[pid] = old[pid]
            else:
                self.bear(name)

    @precondition(lambda self: self.runs > 0 and not self.open)
    @rule()
    def archive(self) -> None:
        self.calls["archive"] += 1
        self.store.archive("deploy", self.store.load("deploy").run_id)

    @precondition(lambda self: self.runs > 0 and not self.open)
    @rule()
    def forget(self) -> None:
        """Prune: what is finished, whether or not it was put away."""
        ended = [entry.checkpoint for entry in self.store.scan(finished=True) if entry.checkpoint]
        ended = [checkpoint for checkpoint in ended if not checkpoint.unfinished]
        if not ended:
            return
        self.calls["delete"] += 1
        self.store.delete(ended[0].run_id, ended[0].run_id)
        self.store.delete(ended[0].run_id, ended[0].run_id)
        self.runs -= 1

    # --- what must hold -------------------------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        if not self.runs_known():
            self.open = False
            return
        entries = list(self.store.scan(finished=True))
        assert [entry.error for entry in entries if entry.error] == []
        unfinished = [entry.checkpoint for entry in entries if entry.checkpoint and entry.checkpoint.unfinished]
        assert len(unfinished) <= 1
        assert len(entries) == self.runs, "a run was lost or doubled"
        self.open = bool(unfinished)
        if unfinished:
            assert unfinished[0].token == self.issued
            self.an_owner_holds_for_as_long_as_it_lives_or_has_time(unfinished[0])
            self.nobody_but_the_live_holder_may_claim_or_write(unfinished[0])

    def an_owner_holds_for_as_long_as_it_lives_or_has_time(self, checkpoint: Checkpoint) -> None:
        """By the machine's own books, not by what looks at processes."""
        lease = checkpoint.lease
        if lease is None:
            expected = OwnerState.NONE
        elif lease.host == HERE and lease.boot_id != f"boot-{self.world.boot}":
            expected = OwnerState.DEAD
        elif lease.host == HERE and lease.pid is not None:
            lives = self.world.processes.get(lease.pid) == lease.pid_started
            expected = OwnerState.ALIVE if lives else OwnerState.DEAD
        else:
            assert lease.expires_at is not None
            expected = OwnerState.EXPIRED if lease.expires_at <= self.now else OwnerState.UNKNOWN
        assert self.state(checkpoint).owner is expected

    def nobody_but_the_live_holder_may_claim_or_write(self, checkpoint: Checkpoint) -> None:
        state = self.state(checkpoint)
        for name in NAMES:
            me = self.who(name)
            if state.held and not self.is_mine(checkpoint, name):
                for refused in (
                    lambda me=me: model.claim(checkpoint, me, state, self.now),
                    lambda me=me: model.authorize(checkpoint, me, None, state),
                ):
                    assert raised(refused) is errors.Locked
            else:
                assert model.claim(checkpoint, me, state, self.now).lease is not None
            for token in {0, checkpoint.token - 1, checkpoint.token + 1}:
                assert raised(lambda me=me, token=token: model.authorize(checkpoint, me, token, state)) is errors.StaleToken

    # --- inside -----------------------------------------------------------------------------------------------------------

    def runs_known(self) -> bool:
        return getattr(self, "runs", 0) > 0

    def took(self, name: str, checkpoint: Checkpoint) -> None:
        if checkpoint.token != self.tokens.get(name):
            assert checkpoint.token > self.issued, "a token was issued twice"
        self.tokens[name] = checkpoint.token
        self.issued = checkpoint.token


# --- over files, and a system that fails ---------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing may catch this."""


class Kernel:
    """Stands between the store and the system: the call chosen by ``arm`` fails, all from it on, or the process dies in it.

    ``locks``: descriptors of lock files.
    """

    def __init__(self) -> None:
        self.left = 0
        self.how: str | int = ""
        self.sticky = False
        self.failing = False
        self.hits: Counter[str] = Counter()
        self.locks: set[int] = set()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(disk, "os", Gate(self, os))
        self._patch.setattr(disk, "fcntl", Gate(self, fcntl))
        self._patch.setattr(flock, "_lock", functools.partial(self.call, "lock", flock._lock))

    def arm(self, nth: int, how: str | int, sticky: bool) -> None:
        self.left, self.how, self.sticky = nth, how, sticky

    def disarm(self) -> None:
        self.left, self.how, self.failing = 0, "", False

    def call(self, name: str, real: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        if name == "close" and self.how == "kill":
            # What a process does as it dies changes nothing; and errors of objects that go away are only printed.
            self.locks.discard(arguments[0])
            return real(*arguments)
        if self.failing:
            self._refuse(name, real, arguments)
        if self.left:
            self.left -= 1
            if not self.left:
                self.hits["kill" if self.how == "kill" else name] += 1
                self.failing = self.how == "kill" or self.sticky
                if self.how == "kill" and name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                self._refuse(name, real, arguments)
        result = real(*arguments, **more)
        if name == "open" and arguments[0].endswith(".lock"):
            self.locks.add(result)
        elif name == "close":
            self.locks.discard(arguments[0])
        return result

    def _refuse(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if name == "close":  # closed it is, whatever is said of it
            real(*arguments)
            self.locks.discard(arguments[0])
        if self.how == "kill":
            raise Killed
        assert isinstance(self.how, int)
        error = OSError(self.how, os.strerror(self.how))
        raise LockException(error) if name == "lock" else error

    def bury(self) -> None:
        """The system frees the locks of a dead process; its folders close themselves."""
        for fd in self.locks:
            os.close(fd)
        self.locks.clear()

    def close(self) -> None:
        self._patch.undo()


class Gate:
    """A module whose functions go by way of the kernel."""

    def __init__(self, kernel: Kernel, module: Any) -> None:
        self._kernel = kernel
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name in CALLS:
            return functools.partial(self._kernel.call, name, value)
        return value


FAULTS: tuple[str | int, ...] = ("kill", "kill", "kill", errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT)
MOST_CALLS = 30
"""About as many as a change makes of the system."""

_CALLS = "open close read write pread pwrite fstat stat fchmod chmod mkdir rename unlink fsync listdir flock"
CALLS = frozenset(_CALLS.split())
_State = dict[str, Checkpoint | bytes]


class FailingStore:
    """A store of files. After an operation that failed or died the old state stands or the new, and a retry converges."""

    def __init__(self, path: str, kernel: Kernel, lot: random.Random) -> None:
        self.location = path
        self._kernel = kernel
        self._real = FileStore(path)
        self.shared, self.attest, self.is_attested = self._real.shared, self._real.attest, self._real.is_attested
        self.scan, self.load, self.raw, self.now = self._real.scan, self._real.load, self._real.raw, self._real.now
        self._lot = lot

    def create(self, checkpoint: Checkpoint) -> Checkpoint:
        before = self.state()

        def again() -> Checkpoint:
            try:
                return self._real.create(checkpoint)
            except errors.AlreadyExists:
                found = self._real.load(checkpoint.id)
                if found.run_id != checkpoint.run_id:
                    raise
                return found

        def new() -> list[_State]:
            made = self.state().get("deploy.json")
            last = made.token - 1 if isinstance(made, Checkpoint) else 0
            return [before | {"deploy.json": timeless(model.above_token(checkpoint, last))}]

        return self._try(before, new, lambda: self._real.create(checkpoint), again)

    def update(self, name: str, change: Callable[[Checkpoint, datetime], Checkpoint]) -> Checkpoint:
        before = self.state()
        meant: list[_State] = []

        def told(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
            place = next(place for place, old in before.items() if old == timeless(checkpoint))
            after = change(checkpoint, now)
            meant.append(before | {place: timeless(after)})
            return after

        return self._try(before, lambda: meant, lambda: self._real.update(name, told), lambda: self._real.update(name, change))

    def archive(self, id: str, run_id: str) -> None:
        before = self.state()
        put_away = {f"done/deploy/{run_id}.json": before[f"{id}.json"]} if f"{id}.json" in before else {}
        both = before | put_away
        new = {place: old for place, old in both.items() if place != f"{id}.json"}
        self._try(before, lambda: [both, new], lambda: self._real.archive(id, run_id), lambda: self._real.archive(id, run_id))

    def delete(self, name: str, run_id: str) -> None:
        before = self.state()
        new = {place: old for place, old in before.items() if not isinstance(old, Checkpoint) or old.run_id != run_id}
        self._try(before, lambda: [new], lambda: self._real.delete(name, run_id), lambda: self._real.delete(name, run_id))

    def repair(self, name: str, seen: bytes | None, reseal: Callable[[str, bytes], Checkpoint] | None) -> str:
        before = self.state()
        assert reseal is not None
        assert seen is not None
        repaired = reseal(name, seen)._replace(lease=None)
        new = before | {f"{name}.json": timeless(repaired)}

        def again() -> str:
            try:
                return self._real.repair(name, seen, reseal)
            except errors.Conflict:
                assert self.state() == new
                return ""

        return self._try(before, lambda: [new], lambda: self._real.repair(name, seen, reseal), again)

    def state(self) -> _State:
        """Every record, whole or not."""
        found: _State = {}
        for folder in ("", "done/deploy/"):
            try:
                names = os.listdir(f"{self.location}/{folder}")
            except FileNotFoundError:
                continue
            for name in names:
                if name.endswith(".json"):
                    found[folder + name] = read(Path(f"{self.location}/{folder}{name}").read_bytes())
        return found

    def _try(
        self,
        before: _State,
        new: Callable[[], list[_State]],
        first: Callable[[], _T],
        again: Callable[[], _T],
    ) -> _T:
        if self._lot.random() < 0.4:
            return first()
        self._kernel.arm(self._lot.randint(1, MOST_CALLS), self._lot.choice(FAULTS), self._lot.random() < 0.3)
        killed = False
        try:
            return first()
        except errors.StoreUnavailable:
            pass
        except Killed:
            killed = True
        except errors.CheckpointError:
            self._kernel.disarm()
            assert self.state() == before, "refused, and something was changed"
            raise
        finally:
            self._kernel.disarm()
        if killed:
            self._kernel.bury()
            self._real = FileStore(self.location)
            self.scan, self.load, self.raw = self._real.scan, self._real.load, self._real.raw
        assert self.state() in (before, *new()), "neither the old state nor the new"
        result = again()
        left = [path.name for path in Path(self.location).rglob("*.tmp")]
        assert left == [], "a temporary file is left after the retry"
        return result


@functools.lru_cache(maxsize=100)
def read(raw: bytes) -> Checkpoint | bytes:
    try:
        return timeless(codec.decode(raw, "deploy").checkpoint)
    except errors.CheckpointError:
        return raw


def timeless(checkpoint: Checkpoint) -> Checkpoint:
    """But for what the store itself stamps."""
    return checkpoint._replace(updated_at=T0, revision=0)


class OwnersOnFiles(Owners):
    def make_store(self, lot: random.Random) -> Store:
        # Nothing here is about what survives a power cut, so the syncs need not wait for a disk.
        self.folder = TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.kernel = Kernel()
        self.failing = FailingStore(str(Path(self.folder.name) / "store"), self.kernel, lot)
        return self.failing  # type: ignore[return-value]

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.calls.update({f"fault: {name}": count for name, count in self.kernel.hits.items()})
            self.kernel.close()
            self.folder.cleanup()

    @precondition(lambda self: self.open)
    @rule(really=st.integers(0, 2))
    def is_edited_by_hand_and_repaired(self, really: int) -> None:
        if really:
            return  # mostly not: a repair takes the lease away
        self.calls["repair"] += 1
        path = Path(self.failing.location) / "deploy.json"
        raw = path.read_bytes().replace(b'"data":{}', b'"data":{"by":"hand"}').replace(b'"attempts":1', b'"attempts":2')
        if raw == path.read_bytes():
            return
        path.write_bytes(raw)
        assert [entry.error.name for entry in self.store.scan() if entry.error] == ["Damaged"]
        assert raised(lambda: self.store.update("deploy", lambda checkpoint, _now: checkpoint)) is not None
        assert path.read_bytes() == raw, "what is damaged is not replaced by a change"
        self.store.repair("deploy", raw, lambda id, seen: codec.decode(seen, id, sealed=False).checkpoint)
        repaired = self.store.load("deploy")
        assert repaired.lease is None
        assert repaired.token == self.issued


def go(machine: type[Owners], number: int, examples: int) -> Counter[str]:
    """So many runs of up to 40 calls, drawn by the lot of that number; what was called."""
    calls: Counter[str] = Counter()
    drawn = seed(number)(type(machine.__name__, (machine,), {"calls": calls}))
    phases = [Phase.generate]  # what fails is shown as it came: to make it shorter takes minutes
    bounds = settings(max_examples=examples, stateful_step_count=40, deadline=None, phases=phases, database=None)
    run_state_machine_as_test(drawn, settings=bounds)
    return calls


def over_files(number: int) -> Counter[str]:
    return go(OwnersOnFiles, number, 300 if WHOLE else 130)


VERBS = ("start", "resume", "begin", "complete", "fail", "retry", "note", "release", "finish", "archive", "delete")


@pytest.mark.parametrize("number", range(8 if WHOLE else 1))
@pytest.mark.proof("state machine")
def test_owners_over_memory(number: int) -> None:
    calls = go(Owners, number, 460)
    tried("state machine", calls.total())
    assert calls.total() > 5000
    assert {name for name, count in calls.items() if count > 20} >= {*EVENTS, *VERBS}, calls


@pytest.mark.parametrize("number", range(8 if WHOLE else 1))
@pytest.mark.proof("state machine")
def test_owners_over_files_and_a_system_that_fails(number: int) -> None:
    calls = over_files(number)
    faults = Counter({name: calls.pop(name) for name in list(calls) if name.startswith("fault: ")})
    tried("state machine", calls.total())
    assert calls.total() > 3000
    assert faults.total() > 300
    assert len([name for name, count in faults.items() if count]) > 10, "the faults hit few kinds of calls"


def robs(checkpoint: Checkpoint, *arguments: Any, **more: Any) -> Checkpoint:
    return _claim(checkpoint, *arguments, **{"steal_reason": "because", **{k: v for k, v in more.items() if v}})


def knows_only_pids(found: process.Identity | None, written: float | None = None) -> process.Liveness:
    return "dead" if found is not None and found.host == HERE and found.pid and process._gone(found.pid) else "unknown"


def forgets_tokens(lock: disk.LockFile, token: int, memory: disk.Memory | None = None, *, durable: bool = False) -> None:
    pass


def writes_in_place(folder: disk.Folder, name: str, data: bytes, *, owner: str, into: disk.Folder | None = None) -> None:
    fd = disk.os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=(into or folder).fd)
    disk.os.write(fd, data)
    disk.os.close(fd)


def leaves_temporaries(folder: disk.Folder, owner: str | None = None) -> Iterator[str]:
    return iter(())


_claim = model.claim

PLANTED: dict[str, tuple[object, str, object, type[Owners]]] = {
    "a claim that robs": (model, "claim", robs, Owners),
    "a pid is taken for a process": (process, "liveness", knows_only_pids, Owners),
    "tokens are not remembered": (disk.LockFile, "write", forgets_tokens, OwnersOnFiles),
    "written in place": (disk.Folder, "write", writes_in_place, OwnersOnFiles),
    "what the dead left is left": (disk.Folder, "temporaries", leaves_temporaries, OwnersOnFiles),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, planted, machine = PLANTED[name]
    monkeypatch.setattr(place, attribute, planted)
    with pytest.raises((AssertionError, errors.CheckpointError, pytest.fail.Exception)):
        go(machine, 0, 200)
