"""Two verbs at once, and every order of their system calls with one preemption: one of the two serial orders comes out.

Process A is stopped (SIGSTOP) before each call that it makes on the store, process B runs to its end, A goes on. What both
answered and what they left behind must be what one after the other would have given. Where A was stopped with the update
lock in its hands, B must be refused with nothing changed, and B again afterwards be as if it had come second.

A server forks A and B with everything loaded. A stop is a SIGSTOP of the process by itself, before any function of os and
fcntl that is called on something in the store; that no call escapes these functions is held against what strace sees.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sweep
from conftest import ROOT, unable
from proof import WHOLE, tried

from checkpoint import Checkpoints

SERVER = '''
import fcntl, gc, json, os, pathlib, select, shutil, signal, sys, time

ROOT, FUNCTIONS, KEYED, PLANTED = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
CALLS = None
STOP = None
readlink, kill = os.readlink, os.kill

def place(first, more):
    """Where a call with these arguments goes, if it goes to the store."""
    folder = more.get("dir_fd") or more.get("src_dir_fd")
    try:
        path = readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fsdecode(first)
        path = os.path.join(readlink(f"/proc/self/fd/{folder}"), path) if folder else path
    except OSError:
        return None
    return path[len(ROOT):] or "/" if path.startswith(ROOT) else None

def stopping(name, call):
    def stop_before(*given, **more):
        if CALLS is not None and given and (at := place(given[0], more)):
            CALLS.append((name, at))
            if len(CALLS) == STOP:
                kill(os.getpid(), signal.SIGSTOP)
        return call(*given, **more)
    return stop_before

# Before anything is imported that may keep one of these functions for itself.
for module, names in FUNCTIONS.items():
    for name in names:
        setattr(sys.modules[module], name, stopping(name, getattr(sys.modules[module], name)))

from checkpoint import codec, model, process, validate
from checkpoint.api import Checkpoints, Update, owner
from checkpoint.errors import CheckpointError
from checkpoint.store import file, flock, rights, search, state
from lean import adopted

# B is to be refused at once: A will not let go before B has ended.
file.LOCK_WAIT_S = 0.0
validate.record_problems({}, codec.SCHEMA_FILE)

# The clock runs fast, so that no two writes fall into one millisecond: a lease is renewed once in that.
began, clock = time.time(), time.time
time.time = lambda: began + (clock() - began) * 1000
YEARS = 10 * 365 * 86400

def named(who):
    """The tester and thieves hold by time, the others by the life of their process."""
    by_time = who == "tester" or who.startswith("thief")
    return owner(who, time_held=by_time, lease_s=YEARS if by_time else None)

def act(verb, who, role, store, key, token):
    """What a verb answers."""
    checkpoints = Checkpoints(store, owner=named(who))
    id = "deploy" if key is None else KEYED
    if verb == "start":
        run = checkpoints.start("deploy", ["build", "publish"], key=key)
        return {"created": run.created, "token": run.token, "status": run.checkpoint.status}
    if verb == "resume":
        run = checkpoints.resume(id)
        return {"token": run.token}
    if verb == "steal":
        thief = Checkpoints(store, owner=named("thief " + who))
        return {"token": thief.resume(id, steal_reason="the owner sleeps").token}
    if verb == "pin":
        return {"pinned": checkpoints.pin(id).checkpoint.pinned}
    if verb in ("prune", "prune to 1"):
        pruned = checkpoints.prune(keep=int(verb == "prune to 1"), apply=True)
        return {"removed": len(pruned.candidates), "kept": pruned.kept}
    if verb in ("move all", "forget newest"):
        found = [one.checkpoint for one in checkpoints.store.scan(finished=True) if one.checkpoint]
        ended = sorted((run for run in found if not run.unfinished), key=lambda run: run.finished_at)
        for run in ended if verb == "move all" else ended[-1:]:
            checkpoints.store.archive(run.id, run.run_id)
            if verb == "forget newest":
                checkpoints.store.delete(id if key else run.run_id, run.run_id)
        return {}
    if verb in ("accept", "set aside"):
        done = checkpoints.repair(id, accept=verb == "accept", quarantine=verb == "set aside")
        return {"damaged": done.damage is not None, "kept": done.kept is not None}
    if verb == "verify":
        found = checkpoints.verify()
        return {"checked": found.checked, "findings": [[one.place, one.kind] for one in found.findings]}
    run = checkpoints.open(id, token=token)
    if verb == "update":
        run.update(Update(complete=["publish"], result=role))
    elif verb == "note":
        run.update(Update(notes=["noted by " + role]))
    elif verb == "finish-steps":
        run.update(Update(complete=["build", "publish"]))
    elif verb == "build":
        run.update(Update(complete=["build"]))
    elif verb == "complete":
        run.complete()
    elif verb == "complete-unmoved":
        run._archive = lambda: None
        run.complete()
    elif verb in ("fail", "cancel"):
        getattr(run, verb)("enough, says " + role)
    elif verb in ("heartbeat", "release"):
        getattr(run, verb)()
    else:
        raise SystemExit(f"no verb {verb}")
    record = run.checkpoint
    steps = [step.status for step in record.steps]
    return {"status": record.status, "token": record.token, "steps": steps, "notes": [note.text for note in record.notes]}

exec(PLANTED)
# A collection in a child would touch, and so copy, every page of the parent.
gc.disable()
gc.freeze()

class Actor:
    """A process that does verbs when told, and stands still at a call where it is to, and whenever it has answered."""

    def __init__(self):
        orders_out, self.orders = os.pipe()
        self.answers, answer_in = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            global CALLS, STOP
            while True:
                kill(os.getpid(), signal.SIGSTOP)
                STOP, what = json.loads(os.read(orders_out, 1 << 16))
                CALLS = []
                # One that waits in vain must not wait for ever.
                signal.alarm(60)
                try:
                    answer = act(*what)
                except CheckpointError as error:
                    busy = "is being changed by process" in error.message
                    answer = {"error": error.name, "exit": error.exit_code} | ({"busy": True} if busy else {})
                except BaseException as error:
                    answer = {"error": "bug: " + repr(error)}
                calls, CALLS = CALLS, None
                # What an error's traceback holds is a descriptor of the store, perhaps.
                gc.collect()
                # More than the pipe holds is read by no one: the alarm ends that, too.
                os.write(answer_in, json.dumps({"answer": answer, "calls": calls}).encode())
                signal.alarm(0)
        os.close(orders_out)
        os.close(answer_in)
        self.wait()

    def wait(self):
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended with {status}"

    def go_on(self):
        kill(self.pid, signal.SIGCONT)
        self.wait()

    def act(self, *what, stop=None):
        """Returns when it stands still."""
        os.write(self.orders, json.dumps([stop, what]).encode())
        self.go_on()

    def answer(self):
        return json.loads(os.read(self.answers, 1 << 16))

    def end(self):
        kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for fd in (self.orders, self.answers):
            os.close(fd)

def content():
    found = {}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name != ".locks"]
        for name in files:
            with open(os.path.join(folder, name), "rb") as opened:
                found[os.path.join(folder, name)] = opened.read()
    return found

def serve(order):
    """``turns``: verbs one after the other; with ``stop`` the second runs while the first is stopped at that call."""
    more = ROOT + "/memory/checkpoints", order["key"], order["token"]
    if order["template"] is None:
        (role, what), = order["turns"]
        mortal = Actor()
        mortal.act(*what, *more)
        told = {role: mortal.answer()}
        mortal.end()
        return told
    shutil.rmtree(ROOT, ignore_errors=True)
    shutil.copytree(order["template"], ROOT)
    adopted(pathlib.Path(ROOT, "memory", "checkpoints"))
    (first, what), *others = order["turns"]
    stop = order["stop"]
    actors[first].act(*what, *more, stop=stop)
    told = {}
    if not stop:
        told[first] = actors[first].answer()
    elif select.select([actors[first].answers], [], [], 0)[0]:
        sys.exit(f"{what[0]} has ended before its call {stop}: the counts wander")
    before = content()
    for role, what in others:
        actors[role].act(*what, *more)
        told[role] = actors[role].answer()
    if stop:
        told["changed"] = content() != before
        actors[first].go_on()
        told[first] = actors[first].answer()
        if "busy" in told[role]["answer"]:
            actors[role].act(*what, *more)
            told[role + " again"] = actors[role].answer()
    return told

actors = {role: Actor() for role in "AB"}
try:
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
finally:
    for actor in actors.values():
        actor.end()
'''

# All by which a process touches a file.
_OF_OS = """access chmod close copy_file_range fchmod fdatasync fstat fstatvfs fsync ftruncate link listdir lseek lstat
    mkdir open pread preadv pwrite pwritev read readlink readv remove rename renames replace rmdir scandir sendfile stat
    statvfs symlink sync truncate unlink utime write writev"""
FUNCTIONS = {"os": [name for name in _OF_OS.split() if hasattr(os, name)], "fcntl": ["fcntl", "flock", "ioctl", "lockf"]}

KEY = "release-1"
KEYED = f"deploy-{hashlib.sha256(KEY.encode()).hexdigest()[:12]}"

VERBS = (
    *("start", "resume", "steal", "update", "note", "complete", "fail", "cancel", "heartbeat", "release"),
    *("pin", "prune", "prune to 1", "accept", "set aside", "verify"),
)
CLAIMS = ("start", "resume", "steal")


class State(NamedTuple):
    """What is done before A and B: verbs, each by a process that has ended since, and who A and B are.

    ``damaged``: of this file one letter is changed; ``twice``: this one is copied to where it is moved next.
    """

    before: tuple[str, ...]
    by: tuple[str, str] = ("ann", "bob")
    key: str | None = None
    token: int | None = None
    damaged: str = ""
    twice: str = ""


FINISHED = ("start", "finish-steps", "complete")
STATES = {
    "no store": State(()),
    "held by both": State(("start", "build"), by=("tester", "tester"), token=1),
    "owner dead": State(("start", "build")),
    "held by time": State(("start", "finish-steps"), by=("tester", "bob")),
    "keyed": State(("start", "finish-steps"), key=KEY),
    "not moved": State((*FINISHED, "start", "finish-steps", "complete-unmoved")),
    "keyed, in both places": State(("start", "finish-steps", "complete-unmoved"), key=KEY, twice=f"done/{KEYED}.json"),
    "finished": State((*FINISHED, *FINISHED)),
    "receipt": State(FINISHED, key=KEY),
    "damaged": State((*FINISHED, "start", "build"), damaged="deploy.json"),
    "damaged receipt": State(FINISHED, key=KEY, damaged=f"done/{KEYED}.json"),
}


class Server:
    """Forks the two processes, in a workspace of its own."""

    def __init__(self, planted: str = "") -> None:
        # Where there is one, a file system in memory: what is shown is an order, and there an fsync costs nothing.
        self._above = Path(tempfile.mkdtemp(prefix="interleaving-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.workspace = self._above / "run"
        self.store = self.workspace / "memory" / "checkpoints"
        self._benches: dict[str, Bench] = {}
        arguments = [str(self.workspace), json.dumps(FUNCTIONS), KEYED, planted]
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *arguments],
            env={name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_")}
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        try:
            self._process.communicate(timeout=60)
        finally:
            shutil.rmtree(self._above)

    def ask(
        self, state: State, turns: Sequence[tuple[str, tuple[str, str, str]]], template: Path | None, stop: int | None
    ) -> Any:
        order = {"turns": turns, "template": template and str(template), "stop": stop, "key": state.key, "token": state.token}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has died"
        return json.loads(answer)

    def bench(self, name: str) -> "Bench":
        if name not in self._benches:
            self._benches[name] = Bench(self, name, self._above / f"template {name}")
        return self._benches[name]


MEMORY = "/dev/shm"


class Outcome(NamedTuple):
    """What A and B answered, and the essence of all that stands in the store, as JSON."""

    a: Any
    b: Any
    left: str


class Bench:
    """One state, and what verbs do in it."""

    def __init__(self, server: Server, name: str, template: Path) -> None:
        self.server, self.name, self.state, self.template = server, name, STATES[name], template
        self.damaged = b""
        self.verified: set[str] = set()  # what `verify` found clean: each essence once, as it takes longer than the rest
        self._alone: dict[str, tuple[int, Outcome]] = {}
        shutil.rmtree(server.workspace, ignore_errors=True)
        server.workspace.mkdir()
        for verb in self.state.before:
            told = server.ask(self.state, [("A", (verb, self.state.by[0], "S"))], None, None)
            assert "error" not in told["A"]["answer"], told
        if self.state.twice:
            (found,) = server.store.glob("*.json")
            (server.store / self.state.twice).parent.mkdir(mode=0o700)
            shutil.copy(found, server.store / self.state.twice)
        if self.state.damaged:
            path = server.store / self.state.damaged
            self.damaged = path.read_bytes().replace(b'"build"', b'"built"')
            path.write_bytes(self.damaged)
        shutil.copytree(server.workspace, template)
        self.initial = self.left()

    def run(self, *turns: tuple[str, str], stop: int | None = None) -> Any:
        """What is told of (role, verb) after (role, verb); with ``stop`` of the second within the first."""
        whole = [(role, (verb, self.state.by["AB".index(role)], role)) for role, verb in turns]
        return self.server.ask(self.state, whole, self.template, stop)

    def alone(self, verb: str, role: str = "A") -> tuple[int, Outcome]:
        """(how many calls it makes on the store, what comes out)"""
        if role + verb not in self._alone:
            told = self.run((role, verb))
            self._alone[role + verb] = len(told[role]["calls"]), self.outcome(told)
        return self._alone[role + verb]

    def does_something(self, verb: str) -> bool:
        return self.alone(verb)[1].left != self.initial

    def outcome(self, told: Any) -> Outcome:
        b = told.get("B again", told.get("B"))
        return Outcome(told.get("A", {}).get("answer"), b and b["answer"], self.left())

    def left(self) -> str:
        """The store as it stands; fails for a torn record."""
        found = []
        for place, raw in sweep.files(self.server.store).items() if self.server.store.exists() else ():
            if raw == self.damaged:
                content: Any = "damaged"
            elif place.endswith(".json"):
                content = json.loads(raw)
                bare = {name: value for name, value in content.items() if name != "digest"}
                canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
                assert hashlib.sha256(canonical.encode()).hexdigest() == content["digest"], f"{place} is torn"
                content = sweep.essence({"": content})[""]
            else:
                content = raw.decode()
            found.append((_anonymous(place), _anonymous(content)))
        return json.dumps(sorted(found, key=json.dumps))


class Pair:
    """Two verbs in one state: what may come out of them."""

    def __init__(self, bench: Bench, a: str, b: str) -> None:
        self.bench, self.a, self.b = bench, a, b
        self.broken: list[str] = []
        self._halves: list[Outcome] | None = None
        serial = []
        for turns in ((("A", a), ("B", b)), (("B", b), ("A", a))):
            serial.append(bench.outcome(bench.run(*turns)))
            words = " then ".join(verb for _, verb in turns)
            self.broken += [f"{bench.name}: {words}: {problem}" for problem in broken_promises(self, serial[-1])]
        self.serial = self.a_then_b, self.b_then_a = serial[0], serial[1]

    @property
    def halves(self) -> list[Outcome]:
        """B between two deletions of A, a prune: of two finished runs at most."""
        if self._halves is None:
            self._halves = []
            if self.bench.alone(self.a)[1].a.get("removed") == 2:
                told = self.bench.run(("A", "forget newest"), ("B", self.b), ("A", self.a))
                told["A"]["answer"]["removed"] += 1
                self._halves = [self.bench.outcome(told)]
        return self._halves

    def problems(self, stop: int) -> list[str]:
        bench = self.bench
        told = bench.run(("A", self.a), ("B", self.b), stop=stop)
        found = []
        try:
            outcome = bench.outcome(told)
        except (AssertionError, ValueError) as error:
            return [self._say(stop, told, f"torn: {error}")]
        # Taken and let go by one call each. The lock of a claim (``.owner``) keeps nobody from a change.
        calls = told["A"]["calls"][: stop - 1]
        held = sum(name == "flock" and str(place).endswith(".lock") for name, place in calls) % 2 == 1
        if held and told["changed"]:
            found.append("B has changed something while A had the lock")
        if not held and "B again" in told:
            found.append("B was refused, and A did not have the lock")
        found += broken_promises(self, outcome)
        in_order = outcome in ((self.a_then_b,) if "B again" in told else self.serial)
        # Last, because to find out what else is right others are run in the same place.
        if not in_order and not any(further.holds(self, outcome) for further in FURTHER):
            found.append(f"no order gives {self._words(outcome)}")
        return [self._say(stop, told, problem) for problem in found]

    def _words(self, outcome: Outcome) -> str:
        words = f"{outcome.a} and {outcome.b}, but {self.a_then_b[:2]} or {self.b_then_a[:2]}"
        if outcome.left not in [one.left for one in self.serial]:
            words += f"; what is left is {outcome.left}, but {self.a_then_b.left} or {self.b_then_a.left}"
        return words

    def _say(self, stop: int, told: Any, problem: str) -> str:
        calls = told["A"]["calls"]
        where = " ".join(calls[stop - 1]) if stop <= len(calls) else "its end"
        return f"{self.bench.name}: {self.a} stopped at {stop} ({where}), {self.b} meanwhile: {problem}"


def broken_promises(pair: Pair, outcome: Outcome) -> list[str]:
    """What must hold whatever the order was."""
    store = pair.bench.server.store
    # Nothing is wrong with the disk, and no mistake of ours has a name.
    errors = [answer.get("error", "") for answer in (outcome.a, outcome.b)]
    found = [f"the error is {error}" for error in errors if error.startswith(("bug", "StoreUnavailable"))]
    if not store.exists():
        return found
    found += [f"left behind: {place}" for place in sweep.temporaries(store)]
    if outcome.left not in pair.bench.verified:
        findings = [one for one in Checkpoints(store).verify().findings if one.place != pair.bench.state.damaged]
        found += [f"verify: {finding}" for finding in findings]
        if not findings:
            pair.bench.verified.add(outcome.left)
    raws = [raw for place, raw in sweep.files(store).items() if place.endswith(".json") and raw != pair.bench.damaged]
    records = [json.loads(raw) for raw in raws]
    for record in records:
        lease = record["lease"]
        if lease is not None and lease["token"] != record["token"]:
            found.append(f"the lease has token {lease['token']}, the record {record['token']}")
        memory = store / ".locks" / f"{record['id']}.lock"
        last = int(memory.read_bytes()[:20]) if memory.exists() else 0
        if last < record["token"]:
            found.append(f"token {record['token']} is out, and the last one known is {last}")
    claims = [answer.get("token") for verb, answer in ((pair.a, outcome.a), (pair.b, outcome.b)) if verb in CLAIMS]
    one_owner = pair.bench.state.by[0] == pair.bench.state.by[1] and (pair.a == "steal") == (pair.b == "steal")
    if len(claims) == 2 and claims[0] is not None and claims[0] == claims[1] and not one_owner:
        found.append(f"two owners under token {claims[0]}")
    for role, verb, answer, other in (("A", pair.a, outcome.a, pair.b), ("B", pair.b, outcome.b, pair.a)):
        if verb not in ACKNOWLEDGED or "error" in answer or (verb != "pin" and other in FORGETFUL):
            continue
        if not any(ACKNOWLEDGED[verb](record, role) for record in records):
            found.append(f"{verb} was acknowledged to {role}, and is lost")
    return found


FORGETFUL = ("prune", "prune to 1", "set aside")
ACKNOWLEDGED: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "update": lambda record, role: record["steps"][1]["status"] == "completed",
    "note": lambda record, role: any(note["text"] == f"noted by {role}" for note in record["notes"]),
    "complete": lambda record, role: record["status"] == "completed",
    "fail": lambda record, role: record["status"] == "failed",
    "cancel": lambda record, role: record["status"] == "cancelled",
    "pin": lambda record, role: bool(record.get("pinned")),
}


class Further(NamedTuple):
    """An outcome that no serial order gives, and that is right."""

    why: str
    holds: Callable[[Pair, Outcome], bool]


def between_two_deletions(pair: Pair, outcome: Outcome) -> bool:
    return pair.a in PRUNES and outcome in pair.halves


def moved_and_then_pinned(pair: Pair, outcome: Outcome) -> bool:
    if pair.a not in PRUNES or pair.b != "pin" or outcome[:2] != pair.b_then_a[:2]:
        return False
    pair.bench.run(("B", pair.b), ("A", pair.a), ("A", "move all"))
    return outcome.left == pair.bench.left()


def both_forget(pair: Pair, outcome: Outcome) -> bool:
    if not {pair.a, pair.b} <= PRUNES or outcome.left not in [serial.left for serial in pair.serial]:
        return False
    return all(
        min(one[name], other[name]) <= answer[name] <= max(one[name], other[name])
        for one, other, answer in zip(*pair.serial, outcome, strict=True)
        if isinstance(answer, dict)
        for name in ("removed", "kept")
    )


def repaired_meanwhile(pair: Pair, outcome: Outcome) -> bool:
    refused = {"error": "Conflict", "exit": 14}
    return {pair.a, pair.b} <= REPAIRS and outcome == pair.bench.alone(pair.b, "B")[1]._replace(a=refused)


def seen_file_by_file(pair: Pair, outcome: Outcome) -> bool:
    role = "a" if pair.a == "verify" else "b"
    answer, *serial = ({"checked": 0, "findings": [], **getattr(one, role)} for one in (outcome, *pair.serial))
    if "verify" not in (pair.a, pair.b) or "error" in answer:
        return False
    if outcome not in [one._replace(**{role: getattr(outcome, role)}) for one in pair.serial]:
        return False
    checked = [one["checked"] for one in serial]
    return answer["findings"] in [one["findings"] for one in serial] and min(checked) <= answer["checked"] <= max(checked) + 1


PRUNES = {"prune", "prune to 1"}
REPAIRS = {"accept", "set aside"}
FURTHER = [
    # None of these takes just any outcome: each holds it against what other runs gave.
    Further("a prune forgets one run after the other, and B may come between two of them", between_two_deletions),
    Further("a prune moves a run before it deletes it, and so also one that is pinned meanwhile", moved_and_then_pinned),
    Further("of two prunes each counts what was there when it looked: what the other has forgotten is gone", both_forget),
    Further("a repair judges before it has the lock: what another has repaired since it refuses to touch", repaired_meanwhile),
    Further("a verify looks at one file after the other, and meets twice a run that moves meanwhile", seen_file_by_file),
]


LOT = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=bad-)\d+|(?<=process )\d+|\d{4}-\d\d-\d\dT[0-9:.]+Z")


def _anonymous(value: Any) -> Any:
    """Without what is drawn by lot or read from the clock."""
    if isinstance(value, dict):
        return {name: _anonymous(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_anonymous(inner) for inner in value]
    if isinstance(value, str):
        return LOT.sub("*", value)
    return value


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@contextmanager
def serving(planted: str = "") -> Iterator[Server]:
    if not os.path.isdir("/proc/self/fd"):
        unable("without /proc nobody says which file a descriptor is")
    server = Server(planted)
    try:
        yield server
    finally:
        server.close()


def pairs(server: Server, a: str) -> Iterator[tuple[str, str]]:
    """(state, B): each in each, or each B in one state: where both change something, if there is one."""
    if WHOLE:
        yield from itertools.product(STATES, VERBS)
        return
    for number, b in enumerate(VERBS, VERBS.index(a)):
        benches = [server.bench(state) for state in STATES]
        either = [bench for bench in benches if bench.does_something(a) or bench.does_something(b)]
        both = [bench for bench in either if bench.does_something(a) and bench.does_something(b)]
        fitting = both or either or benches
        yield fitting[number % len(fitting)].name, b


@pytest.mark.proof("schedule")
@pytest.mark.parametrize("a", VERBS)
def test_another_verb_between_any_two_calls(a: str, server: Server) -> None:
    problems = []
    schedules = 0
    for number, (state, b) in enumerate(pairs(server, a)):
        bench = server.bench(state)
        pair = Pair(bench, a, b)
        problems += pair.broken
        calls, _ = bench.alone(a)
        step = 1 if WHOLE else max(1, calls // 4)
        for stop in range(1 + number % step, calls + 1, step):
            problems += pair.problems(stop)
            schedules += 1
    print(f"{a}: {schedules} schedules")
    assert schedules >= 3 * len(VERBS)
    tried("schedule", schedules, len(problems))
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems[:20])


# --- the stops are where they should be ------------------------------------------------------------------------------

# In the kernel some have other names, depending on the C library and the machine.
KERNEL = {
    "open": {"open", "openat"},
    "stat": {"stat", "newfstatat", "statx"},
    "lstat": {"lstat", "newfstatat", "statx"},
    "fstat": {"fstat", "newfstatat", "statx"},
    "mkdir": {"mkdir", "mkdirat"},
    "rename": {"rename", "renameat", "renameat2"},
    "unlink": {"unlink", "unlinkat"},
    "pread": {"pread64"},
    "pwrite": {"pwrite64"},
    "listdir": {"fcntl"},
}

ALL_IN_ONE = """
CALLS = []
store = ROOT + "/memory/checkpoints"
for verb in (
    "start,update,note,heartbeat,pin,steal,fail,release,resume,build,complete,start,finish-steps,complete,start,cancel,prune,"
    "start,damage,verify,set aside,start,finish-steps,complete,prune to 1,start,damage,accept,verify"
).split(","):
    if verb == "damage":
        fd = os.open(store + "/deploy.json", os.O_RDWR)
        os.pwrite(fd, b"true ", os.pread(fd, 4096, 0).index(b"false"))
        os.close(fd)
        continue
    try:
        act(verb, "tester", "A", store, None, None)
    except CheckpointError:
        pass
calls, CALLS = CALLS, None
os.write(1, json.dumps(calls).encode())
os._exit(0)
"""


def test_no_call_escapes_the_stops(tmp_path: Path) -> None:
    """strace sees the same calls on the store in the same order, and none besides."""
    workspace = tmp_path / "run"
    workspace.mkdir()
    argv = [sys.executable, "-c", SERVER, str(workspace), json.dumps(FUNCTIONS), KEYED, ALL_IN_ONE]
    ended, calls = sweep.record(argv, workspace)
    assert ended.code == 0, ended
    # What os.chmod becomes the sweeps do not record everywhere: chmod(2) here, fchmodat(2) there.
    stops = [name for name, _ in json.loads(ended.out) if name != "chmod"]
    made = iter([call for call in sweep.points(calls, workspace, answer=False) if not call.name.startswith("fchmodat")])
    for number, name in enumerate(stops):
        call = next(made)
        assert call.name in KERNEL.get(name, {name}), f"stop {number} is before {name}, and strace saw {call}"
        while name == "listdir" and call.name != "close":  # one to us: its descriptor is copied, read to the end, closed
            call = next(made)
            assert call.name in {"fcntl", "fstat", "newfstatat", "statx", "getdents64", "lseek", "close"}
    assert [str(call) for call in made] == []
    assert len(stops) > 500


# --- a check that cannot fail is no check ----------------------------------------------------------------------------

NO_LOCK = """
flock.try_lock = lambda fd: True
"""
LOCK_FILE_UNLINKED = """
from checkpoint.store.disk import LockFile
_close = LockFile.close
def _unlink(self):
    if self.fd >= 0:
        os.unlink(self._name, dir_fd=self._folder.fd)
    _close(self)
LockFile.close = _unlink
"""
READ_OUTSIDE_THE_LOCK = """
_read = file.FileStore._read_dated
def _stale(self, *what):
    last = self._last
    found = _read(self, *what)
    if last is None or sys._getframe(1).f_code.co_name != "update":
        return found
    self._last = last
    return last, found[1]
file.FileStore._read_dated = _stale
"""
DELETED_UNSEEN = """
model.check_deletable = lambda checkpoint: None
"""
CLAIMED_TWICE = """
_claim = model.claim
def _again(checkpoint, *more, **other):
    claimed = _claim(checkpoint, *more, **other)
    return claimed._replace(token=1, lease=claimed.lease._replace(token=1))
model.claim = _again
"""


@pytest.mark.parametrize(
    ("planted", "state", "a", "b", "problem"),
    [
        (NO_LOCK, "held by both", "update", "note", "note was acknowledged to B, and is lost"),
        (NO_LOCK, "owner dead", "resume", "resume", "two owners under token 2"),
        (NO_LOCK, "no store", "start", "start", "no order gives"),
        (LOCK_FILE_UNLINKED, "held by both", "note", "note", "the last one known is 0"),
        # The lock file remembers what was acknowledged: it is not lost, and A is told of damage that no order has.
        (READ_OUTSIDE_THE_LOCK, "held by both", "note", "update", "no order gives {'error': 'Damaged', 'exit': 12}"),
        (DELETED_UNSEEN, "finished", "prune", "pin", "pin was acknowledged to B, and is lost"),
        (CLAIMED_TWICE, "owner dead", "steal", "resume", "two owners under token 1"),
    ],
    ids=["lock-update", "lock-resume", "lock-start", "unlinked", "outside", "unseen", "token"],
)
def test_planted_bugs_are_found(planted: str, state: str, a: str, b: str, problem: str) -> None:
    with serving(planted) as server:
        pair = Pair(server.bench(state), a, b)
        calls, _ = pair.bench.alone(a)
        found = [problem for stop in range(1, calls + 1) for problem in pair.problems(stop)]
        assert any(problem in one for one in found), "\n".join(found[:5])
