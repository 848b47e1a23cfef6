"""`run` and `exec` killed before each system call that the tool itself makes, from the first touch of the store to its exit.

The effect is a line that the command appends to a file; so what the record says can be held against what happened. strace
follows the tool alone, not its command, its guard, or what else it forks: those must cope with its death by themselves.

Swept are the calls by which others could tell that it got so far: on files, pipes, processes. Between two of them lie
calls that touch nothing but the process itself (memory, signal masks, asking for its own pid, looking at a file); killed
there it leaves what it leaves at the next one. scripts/prove sweeps those too (twice the time).
"""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sweep
from proof import WHOLE, tried

from checkpoint import Checkpoints
from checkpoint.api import Update
from checkpoint.errors import NotFound

# As sweep.LEAN: without typer, and everything imported before the store is touched.
LEAN = """
import os, sys
from checkpoint import codec, model, process, secrets
from checkpoint.api import Checkpoints, owner
from checkpoint.command import Command, run_alone, run_step
from checkpoint.errors import CheckpointError
from checkpoint.store import file, flock

def main(verb, store, shell, verify="", once=""):
    command = Command(["/bin/sh", "-c", shell], dict(os.environ), verify=verify or None)
    try:
        checkpoints = Checkpoints(store)
        if verb == "start":
            checkpoints.start("deploy", ["build", "publish"]).release()
            return
        if verb == "exec":
            ran = run_alone(checkpoints, "nightly", command)
        else:
            run = checkpoints.open("deploy")
            claimed = run.hold(owner())
            try:
                ran = run_step(run, "build", command, once=bool(once))
            finally:
                if claimed:
                    run.release()
    except CheckpointError as error:
        process.write_stderr(f"checkpoint-tool: {error.message}\\n")
        sys.exit(error.exit_code)
    if ran.settle is not None:
        ran.settle()
    sys.exit(ran.status)

main(*sys.argv[1:])
"""

# Nobody outside can tell whether these were made.
_MEMORY = "brk mmap munmap mprotect mremap madvise futex sched_yield"
_SIGNALS = "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack"
_QUESTIONS = (
    "getpid getppid gettid getuid geteuid getgid getegid uname getrandom newfstatat fstat stat lstat statx lseek ioctl fcntl"
    " clock_gettime getdents64 readlink access prlimit64"
)
UNSEEN = frozenset(f"{_MEMORY} {_SIGNALS} {_QUESTIONS}".split())

EFFECT = "echo done >>effects"
PLACED = "test -s effects"

_LINE = re.compile(r"(\w+)\((.*)\) += (?:-?\d+|0x[0-9a-f]+|\?)")
_PATH = re.compile(r'<(/[^>]*|\w+:)|"((?:[^"\\]|\\.)*)"')
_LOT = re.compile(r"[0-9a-f]{12}\.tmp|[0-9a-f]{8}-[0-9a-f-]{27}|/proc/\d+")


class Call(NamedTuple):
    """One system call of the tool. ``nth`` of its name. ``target``: what it is made on, as far as that is known before."""

    name: str
    nth: int
    target: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}#{self.nth}({self.text[:120]})"


class Case(NamedTuple):
    verb: str
    once: bool = False
    verify: bool = False
    effect: str = EFFECT

    def argv(self, store: Path, verb: str | None = None, prelude: str = "") -> list[str]:
        more = [PLACED if self.verify else "", "once" if self.once else ""]
        return [sys.executable, "-S", "-c", prelude + LEAN, verb or self.verb, str(store), self.effect, *more]


CASES = {
    "run": Case("run"),
    "run once": Case("run", once=True),
    "run once verify": Case("run", once=True, verify=True),
    "exec": Case("exec"),
}


class Ended(NamedTuple):
    code: int
    err: str


def living(mark: str) -> list[int]:
    """Every process with ``mark`` in its environment: the tool and all that it started."""
    wanted = f"RUN_MARK={mark}\0".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if wanted in Path("/proc", entry, "environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue  # ended, or another user's
    return found


def is_guard(pid: int) -> bool:
    """Of all that is started here only the guard goes to the root directory."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == "/"
    except OSError:
        return True  # ended


class Bench:
    """One case, and with ``undisturbed`` the points of such a run of it."""

    def __init__(self, case: Case, path: Path, prelude: str = "", *, undisturbed: bool = True) -> None:
        self.tracer = [part for part in sweep.tracer() if part != "-f"]
        self.case = case
        self.place = path / "run"
        self.log = path / "strace"
        self.template = path / "template"
        self.template.mkdir()
        self.reset()
        self.mark = uuid.uuid4().hex
        if case.verb == "run":
            assert self.run(case.argv(self.store, "start")) == Ended(0, "")
            self.place.rename(self.template)
        self.reset()
        self.argv = case.argv(self.store, prelude=prelude)
        if not undisturbed:
            return
        assert self.run(self.argv, compile=True).code == 0
        self.reset()
        ended = self.run([*self.tracer, "-y", "-s", "256", "-o", str(self.log), *self.argv])
        assert ended.code == 0, ended
        assert self.effects() == 1
        self.calls = self.traced()
        first = next(
            index
            for index, call in enumerate(self.calls)
            if call.name in ("clone", "clone3", "fork", "vfork") or str(self.store) in call.text
            if call.name != "execve"
        )
        self.points = [call for call in self.calls[first:] if WHOLE or not unseen(call)]

    @property
    def store(self) -> Path:
        return self.place / "memory" / "checkpoints"

    def reset(self) -> None:
        sweep.copy(self.template, self.place)

    def run(self, argv: Sequence[str], *, compile: bool = False) -> Ended:
        """To its end; in a session of its own, so that no terminal is in reach."""
        self.mark = uuid.uuid4().hex
        environ = sweep.environ(compile=compile) | {"RUN_MARK": self.mark}
        said = self.log.with_suffix(".err")
        with said.open("wb") as err:
            code = subprocess.run(
                argv,
                cwd=self.place,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
                timeout=60,
                check=False,
            ).returncode
        return Ended(code, said.read_text(errors="replace"))

    def traced(self) -> list[Call]:
        counts: Counter[str] = Counter()
        calls = []
        for line in self.log.read_text(errors="replace").splitlines():
            match = _LINE.match(line)
            if match is not None:
                name, arguments = match.groups()
                counts[name] += 1
                calls.append(Call(name, counts[name], target(name, arguments), arguments))
        return calls

    def killed_at(self, call: Call) -> Call | None:
        """Kill it as it enters ``call``. Gives the call that was hit: how often it looks for its command is not fixed."""
        at = ["-e", f"trace={call.name}", "-e", f"inject={call.name}:signal=SIGKILL:when={call.nth}"]
        ended = self.run([*self.tracer, "-y", "-s", "256", *at, "-o", str(self.log), *self.argv])
        if ended.code not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            assert ended.code == 0, ended
            return None
        return self.traced()[-1]

    def quiet(self, seconds: float = 2.0, guard_s: float = 8.0) -> bool:
        """Wait until nothing that the last run started is left; what is left after ``seconds`` is ended here.

        The guard alone may stay for ``guard_s``: it waits for its group (at most ``GRACE_S``), and some init processes
        take seconds to reap the last of it.
        """
        began = time.monotonic()
        while left := living(self.mark):
            waited = time.monotonic() - began
            if waited > guard_s or (waited > seconds and not all(map(is_guard, left))):
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return False
            time.sleep(0.005)
        return True

    def effects(self) -> int:
        file = self.place / "effects"
        return len(file.read_text().splitlines()) if file.exists() else 0


def target(name: str, arguments: str) -> str:
    """The paths that go into a call. What comes out of it is not known yet where it is killed."""
    if name in ("pipe2", "pipe", "clone", "clone3", "poll", "wait4", "exit_group"):
        return ""
    paths = [path or name for path, name in _PATH.findall(arguments)]
    named = name.startswith(("open", "rename", "unlink", "mkdir"))
    return _LOT.sub("*", " ".join(paths if named else paths[:1]))


def unseen(call: Call) -> bool:
    asked = call.name in ("openat", "read", "close") and re.search(r"/proc/|/etc/|/proc>", call.text) is not None
    return call.name in UNSEEN or asked or (call.name == "kill" and call.text.endswith(", 0"))


def kill_everywhere(bench: Bench, points: Sequence[Call]) -> list[str]:
    """What went wrong, point by point."""
    problems = []
    strayed = []
    for number, point in enumerate(points):
        for _ in range(4):
            bench.reset()
            hit = bench.killed_at(point)
            found = [] if bench.quiet() else ["something outlives the tool"]
            if hit is not None:
                try:
                    found += judge_exec(bench) if bench.case.verb == "exec" else judge_run(bench, resume=number % 2 == 0)
                except (AssertionError, ValueError) as error:
                    found.append(f"torn: {error}")
            problems += [f"killed before {hit or point}: {one}" for one in found]
            if hit is not None and (hit.name, hit.target) == (point.name, point.target):
                break
        else:
            strayed.append(f"{point} was not hit")
    # Between the command's start and its end the calls come in another order now and then; elsewhere never.
    if len(strayed) > max(4, len(points) // 8):
        problems += strayed
    return [problem.replace(str(bench.place), "") for problem in problems]


def step_of(bench: Bench) -> dict[str, Any]:
    """The step as it stands on disk, in a record that is whole."""
    records = sweep.records(bench.store)
    assert list(records) == ["deploy.json"], list(records)
    step, other = records["deploy.json"]["steps"]
    assert (other["name"], other["status"]) == ("publish", "pending")
    assert isinstance(step, dict)
    return step


def judge_run(bench: Bench, *, resume: bool) -> list[str]:
    """After the kill: is the record true, and does the same run converge? ``resume``: somebody looks in between."""
    case = bench.case
    status = step_of(bench)["status"]
    before = bench.effects()
    found = []
    if status not in ("pending", "begun", "completed"):
        found.append(f"the step is {status}")
    if before and status == "pending":
        found.append("the effect is there, and the step is pending")
    if not before and status == "completed":
        found.append("the effect is not there, and the step is completed")
    # The same as it is told: to one who looks, and to one who takes over.
    doubt = ("build",) if status == "begun" else ()
    following = "publish" if status == "completed" else "build"
    checkpoints = Checkpoints(bench.store)
    view = checkpoints.show("deploy")
    if (view.in_doubt, view.next) != (doubt, following) or view.owner_state == "alive":
        found.append(f"{status}, and the view says in doubt {view.in_doubt}, next {view.next}, owner {view.owner_state}")
    if resume:
        with checkpoints.resume("deploy") as run:
            if (run.in_doubt, run.next) != (doubt, following):
                found.append(f"{status}, and resume says in doubt {run.in_doubt}, next {run.next}")
    again = bench.run(bench.argv)
    after = bench.effects()
    if case.once and not case.verify and status == "begun":
        if again.code != 20 or after != before:
            found.append(f"in doubt, and run again: {again}, {after - before} more effects")
        if Checkpoints(bench.store).show("deploy").in_doubt != ("build",):
            found.append("refused, and no longer in doubt")
        Checkpoints(bench.store).open("deploy").update(Update(complete=["build"]) if after else Update(retry=["build"]))
        again = bench.run(bench.argv)
        after = bench.effects()
    if again.code != 0:
        found.append(f"the same run again: {again}")
    if after not in ((1,) if case.once or status != "begun" else (1, before + 1)):
        found.append(f"{status} with {before} effects, and after the same run again {after}")
    if step_of(bench)["status"] != "completed":
        found.append(f"after the same run again: {step_of(bench)}")
    return found + left_behind(bench)


def judge_exec(bench: Bench) -> list[str]:
    found = []
    before = bench.effects()
    checkpoints = Checkpoints(bench.store)
    sweep.records(bench.store)
    try:
        state = str(checkpoints.status("nightly").state)
    except NotFound:
        state = "none"
    allowed = {"none", "interrupted"} if not before else {"interrupted", "completed"}
    if state not in allowed:
        found.append(f"{before} effects, and its status is {state}")
    again = bench.run(bench.argv)
    if again.code != 0 or bench.effects() != before + 1:
        found.append(f"the next one: {again}, {bench.effects() - before} effects")
    if checkpoints.status("nightly").state != "completed":
        found.append(f"the next one is {checkpoints.status('nightly').state}")
    runs = sweep.records(bench.store)
    if len(runs) != 1 + (state != "none") or any("done/" not in place for place in runs):
        found.append(f"in the store: {list(runs)}")
    if state != "none" and checkpoints.status("nightly", previous=True).state != state:
        found.append(f"it was {state}, and is {checkpoints.status('nightly', previous=True).state}")
    return found + left_behind(bench)


def left_behind(bench: Bench) -> list[str]:
    found = [f"verify: {finding}" for finding in Checkpoints(bench.store).verify().findings]
    if sweep.temporaries(bench.store):
        found.append(f"left after the same run again: {sweep.temporaries(bench.store)}")
    if not bench.quiet():
        found.append("something outlives the same run again")
    return found


def report(problems: Sequence[str]) -> str:
    return f"{len(problems)} problems\n" + "\n".join(problems[:40])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.proof("kill")
def test_killed_before_any_call(name: str, tmp_path: Path) -> None:
    bench = Bench(CASES[name], tmp_path)
    names = {call.name for call in bench.points}
    print(f"{name}: killed at {len(bench.points)} points, of {len(bench.calls)} calls")
    # A sweep that begins too late, or knows the calls by other names, would pass without having tried anything.
    assert len(bench.points) >= 110, names
    assert {"openat", "flock", "fsync", "write", "close", "read", "wait4", "exit_group"} <= names
    assert names & {"clone", "clone3", "fork", "vfork"}
    assert names & {"rename", "renameat", "renameat2"}
    # The calls of all cases are nearly the same, but for what the record says: together they cover each of them.
    points = bench.points if WHOLE else bench.points[list(CASES).index(name) :: len(CASES)]
    problems = kill_everywhere(bench, points)
    tried("kill", len(points), len(problems))
    assert not problems, report(problems)


# --- killed while the command works ------------------------------------------------------------------------------

# Tells when another of its kind is alive, and no zombie. Only the first is slow.
SLOW = """
nap=6
[ -e quick ] && nap=0
for pid in $(cat pids 2>/dev/null); do
    grep -q . /proc/$pid/cmdline 2>/dev/null && echo overlap >>effects
done
echo $$ >>pids
echo begun >>effects
sleep $nap
echo done >>effects
"""
STUBBORN = "trap '' TERM" + SLOW.replace("nap=6", "nap=20")


def kill_at_work(bench: Bench, within: float) -> list[str]:
    """Kill the tool while its command works, and run the same again at once, for as long as it is refused. ``within``:
    so many seconds after the tool its command is to be gone."""
    effects = bench.place / "effects"
    mark = uuid.uuid4().hex
    tool = subprocess.Popen(
        bench.argv,
        cwd=bench.place,
        env=sweep.environ() | {"RUN_MARK": mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not effects.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (bench.place / "quick").touch()
    finally:
        tool.kill()
        tool.wait()
    codes = [11]

    def again() -> None:
        while codes[-1] == 11 and len(codes) < 100:
            codes.append(bench.run(bench.argv).code)

    found = []
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(again)
        deadline = time.monotonic() + within
        while living(mark) and time.monotonic() < deadline:
            time.sleep(0.01)
        if living(mark):
            found.append(f"the command outlives the tool by more than {within} s")
        second.result()
    lines = effects.read_text().splitlines()
    for pid in living(mark):
        os.kill(pid, signal.SIGKILL)
    if "overlap" in lines:
        found.append(f"two at a time: {lines}")
    expected = (20, ["begun"]) if bench.case.once else (0, ["begun", "begun", "done"])
    if not found and (codes[-1], lines) != expected:
        found.append(f"exits {codes}, effects {lines}")
    return found


@pytest.mark.parametrize("once", [False, True], ids=["repeatable", "once"])
@pytest.mark.parametrize(("effect", "within"), [(SLOW, 3), (STUBBORN, 9)], ids=["obedient", "stubborn"])
def test_killed_while_the_command_works(effect: str, within: float, once: bool, tmp_path: Path) -> None:
    """The guard ends the command, a stubborn one after 5 s; until it is gone nobody begins it a second time."""
    assert kill_at_work(Bench(Case("run", once=once, effect=effect), tmp_path, undisturbed=False), within) == []


# --- a check that cannot fail is no check ----------------------------------------------------------------------------

LET_GO_BEFORE_IT_IS_BEGUN = """
import time
from checkpoint import child
from checkpoint.api import Workflow
_become, _begin = child.Child._become, Workflow.begin
def _at_once(self, *more):
    child._read_all = lambda fd: child._GO
    _become(self, *more)
child.Child._become = _at_once
def _late(self, name, **more):
    time.sleep(0.1)
    return _begin(self, name, **more)
Workflow.begin = _late
"""
COMPLETED_BEFORE_IT_ENDS = """
from checkpoint.api import Workflow
from checkpoint.model import Outcome
_begin, _end = Workflow.begin, Workflow.end
def _early(self, name, process=None, **more):
    _begin(self, name, **more)
    return _end(self, name, Outcome(exit_code=0))
Workflow.begin = _early
Workflow.end = lambda self, name, outcome, **more: self.checkpoint
"""
NO_GUARD = """
import os
from checkpoint import child
def _no_guard(*_):
    _no_guard.reader, lifeline = os.pipe()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid, lifeline
child._guard = _no_guard
"""
NO_TRACE_OF_THE_COMMAND = """
from checkpoint.api import Workflow
_begin = Workflow.begin
Workflow.begin = lambda self, name, process=None, **more: _begin(self, name, **more)
from checkpoint import process
process.processes = lambda: process.Processes({}, frozenset())
"""


@pytest.mark.parametrize(
    ("prelude", "problem"),
    [
        (LET_GO_BEFORE_IT_IS_BEGUN, "the effect is there, and the step is pending"),
        (COMPLETED_BEFORE_IT_ENDS, "the effect is not there, and the step is completed"),
    ],
    ids=["let go before it is begun", "completed before it ends"],
)
def test_planted_false_record_is_found(prelude: str, problem: str, tmp_path: Path) -> None:
    bench = Bench(Case("run", once=True, effect=f"{EFFECT}; sleep 0.3"), tmp_path, prelude)
    crucial = [point for point in bench.points if point.name.startswith("rename") or point.name == "fsync"]
    assert len(crucial) >= 6
    assert any(problem in found for found in kill_everywhere(bench, crucial))


@pytest.mark.parametrize(
    ("prelude", "problem"),
    [(NO_GUARD, "the command outlives the tool"), (NO_GUARD + NO_TRACE_OF_THE_COMMAND, "two at a time")],
    ids=["no guard", "no guard and no trace"],
)
def test_planted_command_that_nobody_ends_is_found(prelude: str, problem: str, tmp_path: Path) -> None:
    bench = Bench(Case("run", effect=SLOW), tmp_path, prelude, undisturbed=False)
    assert any(problem in found for found in kill_at_work(bench, 3))
