"""Killed before, or failed at, each system call on the store: nothing torn, nothing acknowledged lost, the retry converges."""

import hashlib
import itertools
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lean
import pytest
import sweep
from conftest import Workspace
from lean import Ended
from proof import WHOLE, tried
from sweep import Call

from checkpoint import Checkpoints, owner
from checkpoint.errors import Locked

# How a failed verb may say that its change stands all the same.
APPLIED = re.compile(r"could not be confirmed|\b(applied|is written|is (completed|failed|cancelled|finished)|are removed)\b")

ERRORS = {
    "openat": "ENOSPC EIO EROFS EMFILE EDQUOT EINTR",
    "mkdir": "ENOSPC EIO EROFS EDQUOT",
    "mkdirat": "ENOSPC EIO EROFS EDQUOT",
    "write": "ENOSPC EIO EROFS EDQUOT EINTR",
    "pwrite64": "ENOSPC EIO EROFS EDQUOT EINTR",
    "fsync": "ENOSPC EIO EROFS EDQUOT EINTR",
    "rename": "ENOSPC EIO EROFS EDQUOT",
    "renameat": "ENOSPC EIO EROFS EDQUOT",
    "renameat2": "ENOSPC EIO EROFS EDQUOT",
    "unlink": "EIO EROFS",
    "unlinkat": "EIO EROFS",
    "fchmod": "EIO EROFS",
    "flock": "ENOLCK EIO EINTR",
    # A network file system reports at close what it could not write.
    "close": "EIO EDQUOT EINTR",
}

# An error here may be passed over only where it is no error (EINTR): the answer would rest on what was not done.
MUST_HOLD = ("write", "pwrite64", "fsync", "rename", "renameat", "renameat2", "flock")


class Case(NamedTuple):
    """A verb, and what is done in a fresh workspace before it. ``loose``: the fields in which a retry may differ."""

    verb: str
    before: tuple[str, ...]
    key: str | None = None
    loose: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return "deploy" if self.key is None else f"deploy-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"

    def names(self, verb: str) -> tuple[str, ...]:
        """The key, for the verbs that take it; else the id."""
        return () if self.key is None else (self.key,) if verb in ("start", "abandon") else (self.id,)

    def argv(self, store: Path, verb: str | None = None, prelude: str = "") -> list[str]:
        verb = verb or self.verb
        return sweep.lean(verb, store, *self.names(verb), prelude=prelude)

    def prepare(self, workspace: Path) -> None:
        store = workspace / "memory" / "checkpoints"
        for verb in self.before:
            # An owner who is dead has to have been a process of its own.
            done = sweep.run(self.argv(store, verb), workspace) if verb == "abandon" else self.here(store, verb)
            assert done.code == 0, done

    def here(self, store: Path, verb: str | None = None) -> Ended:
        """In this process, which is much faster than in one of its own."""
        verb = verb or self.verb
        return lean.run(verb, store, *self.names(verb))


# A claim whose lock file was written and whose record was not may skip a token, and be written once more.
_CLAIMED = ("token", "revision", "lease", "notes", "heartbeat_at")
# A lease that is held by time is renewed also where there is nothing else to change.
_RENEWED = ("revision",)
_STEPS_DONE = ("start", "finish-steps")

CASES = {
    "start": Case("start", (), loose=_CLAIMED),
    "start again": Case("start", ("abandon",), loose=_CLAIMED),
    "start the next": Case("start", (*_STEPS_DONE, "complete"), loose=_CLAIMED),
    "start finished": Case("start", (*_STEPS_DONE, "complete"), key="release-1"),
    "resume": Case("resume", ("abandon",), loose=_CLAIMED),
    "resume again": Case("resume", ("start",), loose=_CLAIMED),
    "steal": Case("steal", ("start",), loose=_CLAIMED),
    "begin": Case("begin", ("start",), loose=_RENEWED),
    "update": Case("update", ("start",), loose=_RENEWED),
    "heartbeat": Case("heartbeat", ("start",), loose=_RENEWED),
    "release": Case("release", ("start",), loose=_RENEWED),
    "hand over": Case("hand-over", ("start",), loose=_RENEWED),
    "end": Case("end", ("start", "begin"), loose=_RENEWED),
    "pin": Case("pin", ("start",)),
    "unpin": Case("unpin", ("start", "pin")),
    "complete": Case("complete", _STEPS_DONE),
    "complete keyed": Case("complete", _STEPS_DONE, key="release-1"),
    "fail": Case("fail", ("start",)),
    "cancel": Case("cancel", ("start",)),
    "prune": Case("prune", (*_STEPS_DONE, "complete", "start", "cancel")),
    "repair": Case("repair", ("start", "damage"), loose=_RENEWED),
    "quarantine": Case("quarantine", ("start", "damage")),
}
# What CI sweeps: the others go through the same write, and are swept by scripts/prove.
BOUNDED = ("start", "start again", "resume", "update", "complete", "complete keyed", "quarantine")
SWEPT = tuple(CASES) if WHOLE else BOUNDED
FAILED = tuple(CASES) if WHOLE else ("start", "resume", "update", "complete", "complete keyed")


class Bench:
    """One case: the state before, the state after an undisturbed run, and the points in between."""

    def __init__(self, case: Case, path: Path, prelude: str = "", argv: Callable[[Path], list[str]] | None = None) -> None:
        self.case = case
        self.place = path / "run"
        self._template = path / "template"
        self._template.mkdir()
        case.prepare(self._template)
        self.store = self.reset()
        self.before = sweep.files(self.store)
        self.argv = argv(self.store) if argv else case.argv(self.store, prelude=prelude)
        self.in_process = argv is None and not prelude
        sweep.run(self.argv, self.place, compile=True)
        self.reset()
        self.undisturbed, self.calls = sweep.record(self.argv, self.place)
        assert self.undisturbed.code == 0, self.undisturbed
        assert self.undisturbed.out
        self.after = sweep.records(self.store)
        self.points = sweep.points(self.calls, self.place)

    def reset(self) -> Path:
        return sweep.copy(self._template, self.place)

    def retry(self) -> Ended:
        """The same verb once more, by one who cannot know how the first try ended."""
        return self.case.here(self.store) if self.in_process else sweep.run(self.argv, self.place)

    def untouched(self) -> bool:
        # A damaged record is copied into quarantine before it is mended.
        now = {place: raw for place, raw in sweep.files(self.store).items() if not place.endswith(".tmp")}
        return {place: raw for place, raw in now.items() if not place.startswith("quarantine/")} == self.before

    def is_legal(self) -> bool:
        """Whether a process may leave the store as it stands: old, new, or finished and not yet moved."""
        if self.untouched() or self.is_new():
            return True
        state = sweep.essence(sweep.records(self.store))
        new = sweep.essence(self.after)
        if self.case.verb in ("complete", "fail", "cancel"):
            ((place, finished),) = new.items()
            unfinished = f"{self.case.id}.json"
            return state in ({unfinished: finished}, {unfinished: finished, place: finished})
        if self.case.verb == "prune":  # one run after the other
            return sweep.files(self.store).items() <= self.before.items()
        return False

    def is_new(self, loose: Sequence[str] = ()) -> bool:
        return self._essence(sweep.records(self.store), loose) == self._essence(self.after, loose)

    def _essence(self, records: dict[str, dict[str, Any]], loose: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {
            place: {name: value for name, value in record.items() if name not in loose}
            for place, record in sweep.essence(records).items()
        }

    def unlike_undisturbed(self, ended: Ended) -> list[str]:
        """Where the state after a retry is not that of a run that nothing disturbed."""
        state = sweep.records(self.store)
        found = []
        # What is set aside is no longer there to be set aside.
        set_aside = self.case.verb == "quarantine" and ended.code == 10
        # The command line has words for people on stderr, and of a prune that finds nothing left there is nothing to say.
        speechless = self.in_process and (not ended.out or bool(ended.err))
        if not set_aside and (ended.code != 0 or speechless):
            found.append(f"the retry ended with {ended}")
        if not self.is_new(self.case.loose):
            found.append(f"the retry gave {sweep.essence(state)}, an undisturbed run {sweep.essence(self.after)}")
        if sweep.temporaries(self.store):
            found.append(f"left after the retry: {sweep.temporaries(self.store)}")
        found += [f"verify: {finding}" for finding in Checkpoints(self.store).verify().findings]
        return found


def wrong_after_kill(bench: Bench, ended: Ended, loose: Sequence[str] = ()) -> list[str]:
    """What is wrong with what a killed process left, before anybody touches it."""
    found = []
    if not bench.is_legal() and not bench.is_new(loose):
        found.append(f"neither the old state nor the new: {sweep.essence(sweep.records(bench.store))}")
    if ended.out and not bench.is_new(loose):
        found.append(f"it had answered {ended.out}, and the state is not the new one")
    if bench.store.exists() and "damage" not in bench.case.before:
        found += [f"verify: {finding}" for finding in Checkpoints(bench.store).verify().findings]
    return found


def kill_everywhere(bench: Bench, points: Sequence[Call] | None = None) -> list[str]:
    """What went wrong, point by point."""
    problems = []
    points = bench.points if points is None else points
    for point in points:
        bench.reset()
        ended = sweep.killed_at(point, bench.argv, bench.place)
        try:
            found = wrong_after_kill(bench, ended)
            found += bench.unlike_undisturbed(bench.retry())
            found += wrong_owner(bench)
        except (AssertionError, ValueError) as error:
            found = [f"torn: {error}"]
        problems += [f"killed before {point}: {one}" for one in found]
    return [problem.replace(str(bench.place), "") for problem in problems]


def kill_twice_everywhere(bench: Bench, first: slice, then: slice) -> tuple[int, list[str]]:
    """(pairs, what went wrong): killed at a point, tried again and killed at a point of that, tried again."""
    pairs = 0
    problems = []
    saved = bench.place.with_name("killed")
    for point in bench.points[first]:
        bench.reset()
        sweep.killed_at(point, bench.argv, bench.place)
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(bench.place, saved)
        _, calls = sweep.record(bench.argv, bench.place)
        for second in sweep.points(calls, bench.place)[then]:
            pairs += 1
            sweep.copy(saved, bench.place)
            ended = sweep.killed_at(second, bench.argv, bench.place)
            try:
                found = wrong_after_kill(bench, ended, bench.case.loose)
                found += bench.unlike_undisturbed(bench.retry())
                found += wrong_owner(bench)
            except (AssertionError, ValueError) as error:
                found = [f"torn: {error}"]
            problems += [f"killed before {point}, then before {second}: {one}" for one in found]
    tried("double kill", pairs, len(problems))
    return pairs, [problem.replace(str(bench.place), "") for problem in problems]


def wrong_owner(bench: Bench) -> list[str]:
    """After a claim: one owner, under one token however often it asks, and nobody beside it."""
    if bench.case.verb not in ("start", "resume", "steal") or bench.case.key is not None:
        return []
    me = "robber" if bench.case.verb == "steal" else sweep.OWNER
    record = sweep.records(bench.store)[f"{bench.case.id}.json"]
    lease = record["lease"]
    if lease is None or lease["owner"] != me or lease["token"] != record["token"]:
        return [f"the lease is {lease} with token {record['token']}"]
    if bench.case.verb == "resume" and record["token"] != (2 if "abandon" in bench.case.before else 1):
        return [f"two resumes of one owner used up token {record['token']}"]
    try:
        run = Checkpoints(bench.store, owner=owner("another", time_held=True)).resume(bench.case.id)
    except Locked:
        pass
    else:
        return [f"another owner was given token {run.token} beside {lease}"]
    again = Checkpoints(bench.store, owner=owner(me, time_held=True)).resume(bench.case.id)
    return [] if again.token == lease["token"] else [f"the same owner was given {again.token} after {lease['token']}"]


def fail_everywhere(bench: Bench, points: Sequence[tuple[Call, str]]) -> list[str]:
    """What went wrong, point by point."""
    problems = []
    for point, error in points:
        bench.reset()
        ended = sweep.failed_at(point, error, bench.argv, bench.place)
        found = []
        untouched = bench.untouched()
        if ended.code == 17:
            if ended.err.count("\n") != 1 or not ended.err.startswith("checkpoint-tool: "):
                found.append(f"not one line: {ended.err!r}")
            if ended.out:
                found.append(f"failed, and yet it answered {ended.out}")
            if not bench.is_legal():
                found.append(f"neither the old state nor the new: {sweep.essence(sweep.records(bench.store))}")
            elif not untouched and not sweep.temporaries(bench.store) and not APPLIED.search(ended.err):
                found.append(f"the change is applied, and the message does not say so: {ended.err!r}")
            # A repair that was refused may have put the damaged bytes aside already, and says so.
            elif untouched and APPLIED.search(ended.err) and "/quarantine/" not in ended.err:
                found.append(f"nothing is changed, and the message says it may be: {ended.err!r}")
        elif ended.code == 0:
            # Letting go of the lock may fail: closing the file does it too. EACCES is a lock that another holds (fcntl(2)).
            held = (point.name, error) == ("flock", "EACCES")
            if error != "EINTR" and point.name in MUST_HOLD and "LOCK_UN" not in point.arguments and not held:
                found.append("passed over")
            # A prune leaves alone what it cannot read, and says how many that are.
            left_alone = '"unreadable":1' in ended.out.replace(" ", "") and bench.is_legal()
            if not bench.is_new() and not left_alone:
                found.append(f"exit 0 and the state is {sweep.essence(sweep.records(bench.store))}")
            if ended.err:
                found.append(f"exit 0 and on stderr: {ended.err!r}")
        else:
            found.append(f"exit {ended.code}: {ended.err!r}")
        if sweep.temporaries(bench.store):
            found.append(f"left behind: {sweep.temporaries(bench.store)}")
        found += bench.unlike_undisturbed(bench.retry())
        problems += [f"{error} at {point}: {one}" for one in found]
    return [problem.replace(str(bench.place), "") for problem in problems]


EVERY_ERROR = ["ENOSPC", "EIO", "EINTR", "EDQUOT", "EMFILE", "EACCES", "EROFS", "ENOLCK", "EXDEV"]


def error_points(bench: Bench) -> list[tuple[Call, str]]:
    """The errors that a call can really give; in the whole run every one at every call, as a network or a user's own
    file system may give it."""
    if WHOLE:
        return [(point, error) for point in bench.points if not sweep.is_answer(point) for error in EVERY_ERROR]
    found = []
    for point in bench.points:
        errors = ERRORS.get(point.name, "").split()
        if point.name == "openat" and "O_CREAT" not in point.arguments:
            errors = ["EIO", "EMFILE", "EINTR"]
        if not sweep.is_answer(point):
            found += [(point, error) for error in errors]
    return found


def report(problems: Sequence[str]) -> str:
    return f"{len(problems)} problems\n" + "\n".join(problems[:40])


def names_of(points: Sequence[Call]) -> set[str]:
    return {point.name for point in points}


# --- killed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.proof("kill")
def test_killed_before_any_call(name: str, tmp_path: Path) -> None:
    bench = Bench(CASES[name], tmp_path)
    print(f"{name}: killed at {len(bench.points)} points")
    # A sweep that begins too late, or knows the calls by other names, would pass without having tried anything.
    assert len(bench.points) >= (75 if name.startswith("complete") else 25)
    assert {"openat", "flock", "fsync", "close", "write"} <= names_of(bench.points)
    assert any(point.startswith(("rename", "unlink")) for point in names_of(bench.points)) or name == "start finished"
    problems = kill_everywhere(bench)
    tried("kill", len(bench.points), len(problems))
    assert not problems, report(problems)


@pytest.mark.parametrize("name", ["update", "resume", "start again"] if WHOLE else ["update", "resume"])
@pytest.mark.parametrize("part", range(4) if WHOLE else [0])
@pytest.mark.proof("double kill")
def test_killed_killed_again_and_tried_again(name: str, part: int, tmp_path: Path) -> None:
    bench = Bench(CASES[name], tmp_path)
    first, then = (slice(part, None, 4), slice(None)) if WHOLE else (slice(3, None, 9), slice(2, None, 8))
    pairs, problems = kill_twice_everywhere(bench, first, then)
    print(f"{name}: {pairs} pairs")
    assert pairs >= (500 if WHOLE else 20)
    assert not problems, report(problems)


# The whole command line for what the lean verbs do.
PROGRAM = {
    "start": ("start", "deploy", "--steps", "build,publish", "--owner", sweep.OWNER, "--json"),
    "resume": ("resume", "deploy", "--json"),
    "steal": ("resume", "deploy", "--steal", "--reason", "it hangs", "--owner", "robber", "--json"),
    "begin": ("update", "deploy", "--add", "build", "--begin", "build"),
    "update": ("update", "deploy", "--complete", "build"),
    "end": ("end", "deploy", "build", "--exit-code", "0"),
    "heartbeat": ("heartbeat", "deploy"),
    "release": ("release", "deploy"),
    "hand over": ("release", "deploy", "--to", "another"),
    "pin": ("pin", "deploy"),
    "unpin": ("unpin", "deploy"),
    "complete": ("complete", "deploy"),
    "fail": ("fail", "deploy", "--reason", "it broke"),
    "cancel": ("cancel", "deploy", "--reason", "not wanted"),
    "prune": ("prune", "--keep", "0", "--apply"),
    "repair": ("repair", "deploy", "--accept"),
    "quarantine": ("repair", "deploy", "--quarantine"),
}
VERBS = {name: PROGRAM[name] for name in ("update", "complete")}


@pytest.mark.parametrize("verb", PROGRAM if WHOLE else VERBS)
@pytest.mark.proof("kill")
def test_the_program_itself_killed(verb: str, tmp_path: Path) -> None:
    """The same by the whole command line; judged by `verify` as a user would run it. In CI at each call that writes."""
    bench = Bench(CASES[verb], tmp_path, argv=lambda store: sweep.command_line(*PROGRAM[verb], store=store))
    points = [point for point in bench.points if WHOLE or point.name in sweep.WRITE_SIDE - {"openat", "close"}]
    print(f"{verb}: killed at {len(points)} points")
    assert len(points) >= 9
    problems = kill_everywhere(bench, points)
    tried("kill", len(points), len(problems))
    verified = sweep.run(sweep.command_line("verify", store=bench.store), bench.place)
    assert verified.code == 0, verified
    assert not problems, report(problems)


# --- failed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAILED)
@pytest.mark.proof("error")
def test_an_error_at_any_call(name: str, tmp_path: Path) -> None:
    bench = Bench(CASES[name], tmp_path)
    points = error_points(bench)
    print(f"{name}: failed at {len(points)} points")
    assert len(points) >= (130 if bench.case.verb == "complete" else 70)
    assert {error for _, error in points} >= {"ENOSPC", "EIO", "EROFS", "EMFILE", "EDQUOT", "ENOLCK", "EINTR"}
    problems = fail_everywhere(bench, points)
    tried("error", len(points), len(problems))
    assert not problems, report(problems)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.proof("error")
def test_an_error_as_the_program_says_it(verb: str, tmp_path: Path) -> None:
    """One error each at the calls that write, by the whole command line."""
    bench = Bench(CASES[verb], tmp_path, argv=lambda store: sweep.command_line(*VERBS[verb], store=store))
    errors = {"write": "ENOSPC", "pwrite64": "EDQUOT", "fsync": "EIO", "flock": "ENOLCK", "mkdirat": "EROFS"}
    points = [
        (point, errors.get(point.name, "EIO"))
        for point in bench.points
        if point.name in sweep.WRITE_SIDE - {"openat", "close"} and not sweep.is_answer(point)
    ]
    print(f"{verb}: failed at {len(points)} points")
    assert len(points) >= 8
    problems = fail_everywhere(bench, points)
    tried("error", len(points), len(problems))
    assert not problems, report(problems)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.proof("error")
def test_an_answer_that_cannot_be_written(verb: str, tmp_path: Path) -> None:
    bench = Bench(CASES[verb], tmp_path, argv=lambda store: sweep.command_line(*VERBS[verb], store=store))
    (point,) = [point for point in bench.points if sweep.is_answer(point)]
    for error in ("ENOSPC", "EIO", "EPIPE"):
        bench.reset()
        ended = sweep.failed_at(point, error, bench.argv, bench.place)
        tried("error", 1)
        assert ended.code == 22, ended
        assert ended.err.count("\n") == 1
        assert sweep.essence(sweep.records(bench.store)) == sweep.essence(bench.after)


LIMITED = """
import resource, sys, lean
limit = getattr(resource, sys.argv.pop(1))
resource.setrlimit(limit, (int(sys.argv[1]), resource.getrlimit(limit)[1]))
del sys.argv[1]
lean.main(*sys.argv[1:])
"""


@pytest.mark.parametrize(("limit", "values"), [("RLIMIT_NOFILE", range(3, 10)), ("RLIMIT_FSIZE", (0, 16, 32, 100, 500, 2000))])
@pytest.mark.parametrize("name", ["start", "update", "complete", "resume"])
@pytest.mark.proof("limit")
def test_a_limit_of_the_process(name: str, limit: str, values: Sequence[int], tmp_path: Path) -> None:
    """Files left open, or too large a file: refused with nothing changed, or done; the same without the limit converges."""
    bench = Bench(CASES[name], tmp_path)
    codes = []
    for value in values:
        bench.reset()
        command = [sys.executable, "-S", "-c", LIMITED, limit, str(value), bench.case.verb, str(bench.store)]
        ended = sweep.run(command, bench.place)
        codes.append(ended.code)
        assert ended.code in (0, 17), (value, ended)
        assert ended.err.count("\n") == (1 if ended.code else 0)
        assert bench.is_new() if ended.code == 0 else bench.is_legal(), (value, ended)
        assert bench.untouched() or ended.code == 0 or APPLIED.search(ended.err), (value, ended)
        assert not sweep.temporaries(bench.store)
        assert not bench.unlike_undisturbed(bench.retry()), (value, ended)
    tried("limit", len(codes))
    assert codes[0] == 17
    assert codes[-1] == 0


# --- the order of the calls ------------------------------------------------------------------------------------------


def recorded(path: Path, verbs: Sequence[str], *, key: str | None = None, prelude: str = "", id: str = "") -> list[str]:
    """The violations of the last of ``verbs``; the earlier ones run undisturbed and as they are."""
    case = Case(verbs[-1], tuple(verbs[:-1]), key)
    store = path / "memory" / "checkpoints"
    case.prepare(path)
    ended, calls = sweep.record(case.argv(store, prelude=prelude), path)
    assert ended.code == 0, ended
    return sweep.violations(calls, store, id or case.id)


@pytest.mark.parametrize("key", [None, "release-1"], ids=["plain", "keyed"])
@pytest.mark.parametrize(
    "verbs",
    [
        ["start"],
        ["start", "start"],
        ["abandon", "start"],
        ["start", "update"],
        ["start", "update", "update"],
        ["start", "finish-steps", "complete"],
        ["start", "finish-steps", "complete", "complete"],
    ],
    ids=" ".join,
)
def test_order_of_the_calls(verbs: list[str], key: str | None, tmp_path: Path) -> None:
    sweep.tracer()
    assert recorded(tmp_path, verbs, key=key) == []


@pytest.mark.parametrize("verbs", [["abandon", "resume"], ["abandon", "resume", "resume"]], ids=" ".join)
def test_order_of_the_calls_of_resume(verbs: list[str], tmp_path: Path) -> None:
    sweep.tracer()
    assert recorded(tmp_path, verbs) == []


def test_order_of_the_calls_of_a_retry_after_each_crash(tmp_path: Path) -> None:
    """A retry that finds the work of a process that died is bound by the same clauses, wherever it died."""
    for name in ("update", "complete"):
        path = tmp_path / name
        path.mkdir()
        bench = Bench(CASES[name], path)
        crucial = some(bench, "fsync", "rename", "renameat", "unlink", "unlinkat", "mkdirat")
        assert len(crucial) >= 4
        for point in crucial:
            bench.reset()
            sweep.killed_at(point, bench.argv, bench.place)
            ended, calls = sweep.record(bench.argv, bench.place)
            assert ended.code == 0, ended
            assert sweep.violations(calls, bench.store) == [], f"retry after a kill before {point}"


@pytest.mark.parametrize("verb", VERBS)
def test_order_of_the_calls_of_the_program_itself(verb: str, workspace: Workspace) -> None:
    sweep.tracer()
    assert workspace.tool("start", "deploy", "--steps", "build").code == 0
    if verb == "complete":
        assert workspace.tool("update", "deploy", "--complete", "build").code == 0
    argv = sweep.command_line(*VERBS[verb], store=workspace.store)
    for _ in range(2):
        ended, calls = sweep.record(argv, workspace.path)
        assert ended.code == 0, ended
        assert sweep.violations(calls, workspace.store) == []


# --- a check that cannot fail is no check ----------------------------------------------------------------------------

NO_FILE_FSYNC = """
import os, stat
_fsync = os.fsync
os.fsync = lambda fd: _fsync(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else None
"""
NO_FOLDER_FSYNC = """
import os, stat
_fsync = os.fsync
os.fsync = lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else _fsync(fd)
"""
NO_FSYNC_BELOW_DONE = """
import os
_fsync = os.fsync
os.fsync = lambda fd: None if "/done" in os.readlink(f"/proc/self/fd/{fd}") else _fsync(fd)
"""
NO_PARENT_FSYNC = """
from checkpoint.store import disk
disk._sync_folder = lambda path: None
"""
IN_PLACE = """
import os
from checkpoint.store.disk import Folder
def _write(self, name, data, *, owner, into=None):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=(into or self).fd)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.fsync((into or self).fd)
Folder.write = _write
"""
UNCONFIRMED_ANSWER = """
from checkpoint.store.disk import Folder
Folder.sync = lambda self, name: None
"""
LOCK_FILE_UNLINKED = """
import os
from checkpoint.store.disk import LockFile
_close = LockFile.close
def _unlink(self):
    if self.fd >= 0:
        os.unlink(self._name, dir_fd=self._folder.fd)
    _close(self)
LockFile.close = _unlink
"""
NO_LOCK = """
from checkpoint.store import flock
flock.try_lock = lambda fd: True
"""
UNLINKED_BEFORE_KEPT = """
from checkpoint.store.file import FileStore
FileStore._put_away = lambda self, folder, into, file, finished: None
"""
NO_SWEEPING = """
from checkpoint.store.disk import Folder
Folder._discard = lambda self, name: None
"""
SWALLOWED = """
import os
_write = os.write
def _short(fd, data):
    try:
        return _write(fd, data)
    except OSError:
        return len(data)
os.write = _short
"""
ANSWER_FIRST = """
from checkpoint import process
from checkpoint.store.disk import Folder
_write = Folder.write
def _early(self, name, data, **more):
    process.write_stdout(b"done\\n")
    _write(self, name, data, **more)
Folder.write = _early
"""

FINISH = ("start", "finish-steps", "complete")


@pytest.mark.parametrize(
    ("clause", "prelude", "verbs"),
    [
        ("file-fsync", NO_FILE_FSYNC, ("start", "update")),
        ("dir-fsync", NO_FOLDER_FSYNC, ("start", "update")),
        ("dir-fsync", NO_FOLDER_FSYNC, FINISH),
        ("parent-fsync", NO_PARENT_FSYNC, ("start", "update")),
        ("in-place", IN_PLACE, ("start", "update")),
        ("ack-fsync", UNCONFIRMED_ANSWER, (*FINISH, "complete")),
        ("lock-file", LOCK_FILE_UNLINKED, ("start", "update")),
        ("lock", NO_LOCK, ("start", "update")),
        ("archive", UNLINKED_BEFORE_KEPT, FINISH),
        ("archive", NO_FSYNC_BELOW_DONE, FINISH),
        ("ack-fsync", ANSWER_FIRST, ("start", "update")),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_planted_bugs_break_a_clause(clause: str, prelude: str, verbs: Sequence[str], tmp_path: Path) -> None:
    sweep.tracer()
    found = recorded(tmp_path, verbs, prelude=prelude)
    assert clause in {violation.partition(":")[0] for violation in found}, found


def some(bench: Bench, *names: str) -> list[Call]:
    found = [point for point in bench.points if point.name in names]
    assert found
    return found


def test_planted_write_in_place_is_torn_by_a_kill(tmp_path: Path) -> None:
    bench = Bench(CASES["update"], tmp_path, IN_PLACE)
    assert any("torn" in problem for problem in kill_everywhere(bench, some(bench, "write")))


def test_planted_early_answer_is_lost_by_a_kill(tmp_path: Path) -> None:
    bench = Bench(CASES["update"], tmp_path, ANSWER_FIRST)
    assert any("it had answered" in problem for problem in kill_everywhere(bench, some(bench, "renameat", "rename")))


def test_planted_litter_is_found_after_a_kill(tmp_path: Path) -> None:
    bench = Bench(CASES["update"], tmp_path, NO_SWEEPING)
    assert any("left after the retry" in problem for problem in kill_everywhere(bench, some(bench, "renameat", "rename")))


def test_planted_litter_is_found_after_an_error(tmp_path: Path) -> None:
    bench = Bench(CASES["update"], tmp_path, NO_SWEEPING)
    points = list(itertools.product(some(bench, "renameat", "rename"), ["ENOSPC"]))
    assert any("left behind" in problem for problem in fail_everywhere(bench, points))


def test_planted_swallowed_error_is_found(tmp_path: Path) -> None:
    bench = Bench(CASES["update"], tmp_path, SWALLOWED)
    points = [(point, "ENOSPC") for point in some(bench, "write") if not sweep.is_answer(point)]
    with pytest.raises(AssertionError, match="torn"):
        fail_everywhere(bench, points)
