"""The scripts in scripts/examples as a user runs them: killed at random points, run again at once, and run to the end.

Each is killed CHECKPOINT_TEST_KILLS times (50), shared out over the parts of a test. A kill counts when it hit a living
script; where a run ended first, the next release or folder is begun. The order of things is drawn from
CHECKPOINT_TEST_SEED, which is printed; the machine's own timing is not.

What was done is counted by the log that the scripts write ($EFFECTS) and by the receiver of the notifications, and held
against the record as it stood on disk after each kill.
"""

import filecmp
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import BIN, ROOT, Workspace, lacking, need_program

KILLS = int(os.environ.get("CHECKPOINT_TEST_KILLS", "50"))
SEED = os.environ.get("CHECKPOINT_TEST_SEED") or uuid.uuid4().hex[:8]
# Stands in for a program, and is killed when it is called for the $KILL_AT-th time.
MORTAL = """#!/bin/sh
count=$COUNTS/${0##*/}
n=0
if [ -f "$count" ]; then read -r n <"$count"; fi
echo $((n + 1)) >"$count"
if [ "${0##*/} $((n + 1))" = "${KILL_AT-}" ]; then kill -9 $$; fi
exec %s "$@"
"""
VARIANTS = ("group", "script", "tool", "command", "descendants")
SERVICE = """#!/bin/sh
echo $$ >"$1/pid.new"
/bin/mv "$1/pid.new" "$1/pid"
exec /bin/sleep 600
"""


def share(part: int, parts: int) -> int:
    return KILLS // parts + (part < KILLS % parts)


def living(mark: str) -> dict[int, list[str]]:
    """Every process that was started with ``mark`` in its environment, with its command line. Zombies have none."""
    wanted = f"EXAMPLE_MARK={mark}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if wanted in Path("/proc", entry, "environ").read_bytes():
                    found[int(entry)] = os.fsdecode(Path("/proc", entry, "cmdline").read_bytes()).split("\0")[:-1]
            except OSError:
                continue  # ended, or another user's
    return found


def signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_tool(argv: list[str]) -> bool:
    return any(Path(part).name == "checkpoint-tool" for part in argv[:2])


def is_service(argv: list[str]) -> bool:
    return any(part.endswith("/bin/service") for part in argv) or argv == ["/bin/sleep", "600"]


def until(truth: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not truth():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def whole(path: Path) -> Any:
    """A record as it stands; fails for a torn one: the digest is computed as the documentation says."""
    content = json.loads(path.read_bytes())
    rest = {name: value for name, value in content.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == content["digest"], f"{path.name} is torn"
    return content


def same_tree(one: Path, other: Path) -> bool:
    files = [sorted(path.relative_to(top) for path in top.rglob("*")) for top in (one, other)]
    names = [str(path) for path in files[0] if (one / path).is_file()]
    return files[0] == files[1] and filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


class Example:
    """A script, what it works on, and what is known of its runs. One *life* is a run of the workflow, however often the
    script has to be started for it."""

    script = ""
    may_stop = False  # with exit 20, until somebody settles it
    settings: dict[str, str] = {}
    verified: tuple[str, ...] = ()  # steps whose effect is looked for, and which then need not end themselves

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.mark = uuid.uuid4().hex
        self.random = random.Random(f"{SEED}-{workspace.path.name}")
        self.life = 0
        self.runs = 0
        self.settled: set[int] = set()
        self.kept: list[Path] = []
        self.history: list[str] = []

    # --- what each of them says for itself

    def fresh(self) -> str:
        """Prepare the next life; gives its key."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def settle(self) -> None:
        raise AssertionError("nothing is to be settled here")

    def check_life(self) -> None:
        """The results of the life that has just ended."""
        raise NotImplementedError

    def steps(self) -> dict[str, str]:
        """The steps that log their beginning and end, by the name they log."""
        raise NotImplementedError

    # --- a life

    def begin_life(self) -> None:
        self.life += 1
        self.key = self.fresh()
        self.id = f"{self.script}-{hashlib.sha256(self.key.encode()).hexdigest()[:12]}"
        self.log = self.workspace.path / f"effects-{self.life}.txt"
        self.acknowledged: dict[str, tuple[int, int, int]] = {}
        self.cut: Counter[str] = Counter()

    def effects(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines()) if self.log.exists() else Counter()

    def record(self) -> Any:
        store = self.workspace.store
        for _ in range(2):  # it may be moved between the two looks
            for path in (store / f"{self.id}.json", store / "done" / f"{self.id}.json"):
                try:
                    return whole(path)
                except FileNotFoundError:
                    continue
        return None

    def witness(self, *, killed: bool = False) -> dict[str, str]:
        """Hold the record on disk, and the log, against what was acknowledged before. Gives the steps' states.

        ``killed``: the step that was in hand may have to begin again, and it alone. Whatever was asked for before the
        kill may still be written a moment after it, so in hand is the first step that is not completed, begun or not.
        """
        earlier = self.effects()
        record = self.record()
        later = self.effects()
        steps = {step["name"]: step for step in record["steps"]} if record else {}
        assert self.acknowledged.keys() <= steps.keys(), "completed steps are gone"
        for logged, name in self.steps().items():
            step = steps.get(name, {"status": "pending"})
            attempts = step.get("attempts", 0)
            assert earlier[f"{logged} begins"] <= attempts, f"{name} was begun more often than the record says: {step}"
            counts = (attempts, later[f"{logged} begins"], later[f"{logged} ends"])
            if step["status"] == "completed":
                assert self.acknowledged.setdefault(name, counts) == counts, f"{name} was completed, and was begun again"
            else:
                assert name not in self.acknowledged, f"{name} was completed, and is {step['status']}"
        if killed:
            self.cut.update([name for name in self.steps().values() if name not in self.acknowledged][:1])
        return {name: step["status"] for name, step in steps.items()}

    def end_life(self) -> None:
        """The script said that all is done."""
        states = self.witness()
        assert set(states.values()) == {"completed"}, states
        assert self.record()["status"] == "completed"
        assert not self.workspace.file(self.id).exists()
        for logged, name in self.steps().items():
            attempts, begins, ends = self.acknowledged[name]
            cut = self.cut[name]
            least = 0 if cut and name in self.verified else 1
            assert least <= ends <= 1 + cut, f"{logged} ended {ends} times, and was cut short {cut} times"
            assert begins == 0 or ends <= begins <= attempts, (logged, attempts, begins, ends)
            assert attempts <= 1 + cut, f"{logged} was begun {attempts} times, and cut short {cut} times"
        self.check_life()

    # --- a run

    def start(self) -> subprocess.Popen[bytes]:
        self.runs += 1
        self.output = self.workspace.path / "output.txt"
        environ = self.workspace.environ(
            {
                "EFFECTS": str(self.log),
                "EXAMPLE_MARK": f"{self.mark}-{self.runs}.",
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "no_proxy": "*",
            }
            | self.settings
        )
        del environ["CHECKPOINT_OWNER"]  # the script is its own owner
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [ROOT / "scripts" / "examples" / self.script, *self.arguments()],
                cwd=self.workspace.path,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run_to_end(self) -> None:
        for _ in range(2):
            self.ended(self.start().wait(60))
            if self.life_is_over:
                return
        raise AssertionError(f"it does not come to its end: {self.output.read_text()}")

    def ended(self, code: int) -> None:
        """A run that nothing disturbed has ended by itself."""
        self.history.append(f"run {self.runs} of life {self.life} ended with {code}")
        self.life_is_over = code == 0
        if code == 0:
            self.end_life()
        else:
            assert code == (20 if self.may_stop else 0), f"exit {code}: {self.output.read_text()}"
            self.settle()
            self.settled.add(self.life)

    def strike(self, script: subprocess.Popen[bytes], variant: str) -> bool:
        """Whether a living script was hit."""
        if variant in ("group", "script"):
            if script.poll() is not None:
                return False
            (os.killpg if variant == "group" else os.kill)(script.pid, signal.SIGKILL)
            return script.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 2
        while script.poll() is None and time.monotonic() < deadline:
            below = {
                pid: argv
                for pid, argv in living(f"{self.mark}-{self.runs}.").items()
                if pid != script.pid and not is_service(argv)
            }
            chosen = [pid for pid, argv in below.items() if variant == "descendants" or is_tool(argv) is (variant == "tool")]
            if not chosen:
                continue
            if variant != "descendants":
                chosen = [self.random.choice(chosen)]
            if script.poll() is not None:
                return False
            for pid in chosen:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    if variant != "descendants":
                        return False
            return True
        return False

    def keep(self) -> None:
        """A copy of the store as the kill left it, to be verified when there is time."""
        if not self.workspace.store.exists():
            return
        copy = self.workspace.path / "kept" / str(len(self.kept))
        # Who is still at work stands still: a record copied before a write and its lock file copied after it are a state
        # that no kill leaves.
        stopped: set[int] = set()
        while more := living(self.mark).keys() - stopped:
            stopped |= more
            signal_all(more, signal.SIGSTOP)
        try:
            shutil.copytree(self.workspace.store, copy)
        finally:
            signal_all(stopped, signal.SIGCONT)
        self.kept.append(copy)

    def kill(self, times: int) -> None:
        """Kill it so often, and then run it to the end."""
        self.begin_life()
        started = time.monotonic()
        self.run_to_end()
        duration = time.monotonic() - started
        self.begin_life()
        locked, locked_since = 0, None
        hits: Counter[str] = Counter()
        while hits.total() < times:
            variant = self.random.choice(VARIANTS)
            delay = self.random.uniform(0, duration)
            script = self.start()
            try:
                script.wait(delay)
            except subprocess.TimeoutExpired:
                hit = self.strike(script, variant)
            else:
                hit = False
            if hit:
                hits[variant] += 1
                self.history.append(f"run {self.runs} of life {self.life}: {variant} killed after {delay:.3f} s")
                self.witness(killed=True)
                self.keep()
                try:
                    code = script.wait(self.random.uniform(0, 3))
                except subprocess.TimeoutExpired:
                    # It goes on for want of nothing, or without its session: each question is a slow process then.
                    if self.strike(script, "group"):
                        hits["group"] += 1
                        self.history.append("which did not stop it, and then the group was killed")
                        self.witness(killed=True)
                        self.keep()
                    code = script.wait(30)
                self.witness()
                if code == 0:
                    self.history.append("which did not stop it")
                    self.end_life()
                    self.begin_life()
                continue
            code = script.wait(60)
            if code == 11:
                # A process that outlived its script is still at it: it ends within the 8 s that `start` waits, and more.
                now = time.monotonic()
                locked, locked_since = locked + 1, locked_since or now
                self.history.append(f"run {self.runs} of life {self.life}: exit 11")
                assert now - locked_since < 15, f"locked for good: {self.output.read_text()}"
                continue
            locked_since = None
            self.ended(code)
            if self.life_is_over:
                self.begin_life()
        self.run_to_end()
        print(f"{self.script}: {dict(hits)}, {self.life} lives, {self.runs} runs, one takes {duration:.2f} s, {locked} locked")

    def check(self) -> None:
        """When all is done: nothing is left of it, and each state that a kill left was whole."""
        assert until(lambda: not self.leftovers(), 12), self.leftovers()
        store = self.workspace.store
        assert [path for path in self.workspace.path.rglob("*.part") if "kept" not in path.parts] == []
        assert self.workspace.temporaries() == []
        assert [path.name for path in store.glob("*.json")] == []
        # All in one process: half of what this test would cost is the start of that program.
        asked = "".join(f"3\0verify\0--store\0{copy}\0" for copy in [*self.kept, store])
        answers = self.workspace.tool("session", "--owner-pid", str(os.getpid()), input=asked).out.split("\0")
        assert len(answers) == 3 * (len(self.kept) + 1) + 1
        assert set(answers[:-1:3]) == {"0"}, answers
        assert all("all whole" in said for said in answers[1::3]), answers

    def leftovers(self) -> list[list[str]]:
        return list(living(self.mark).values())

    def close(self) -> None:
        for pid in living(self.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        print(f"CHECKPOINT_TEST_SEED={SEED}", *self.history, sep="\n")


class Upgrade(Example):
    """Release after release of one application: what a step did twice would stay to be seen."""

    script = "upgrade"
    verified = ("start-service",)

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.app = workspace.path / "app"
        self.release(self.app, 0)
        self.lines = [f"row {number}" for number in range(5000)]
        (self.app / "app.conf").write_text("name=app\nversion=0\nport=80\n")
        (self.app / "data.txt").write_text("".join(f"{line}\n" for line in self.lines))

    def release(self, folder: Path, version: int) -> None:
        (folder / "bin" / "lib").mkdir(parents=True)
        (folder / "VERSION").write_text(f"{version}\n")
        (folder / "bin" / "service").write_text(f"{SERVICE}# {version}\n")
        (folder / "bin" / "service").chmod(0o755)
        for number in range(30):
            (folder / "bin" / "lib" / f"part-{number}").write_text(f"{version} {number}\n" * 200)

    def fresh(self) -> str:
        self.release(self.workspace.path / f"release-{self.life}", self.life)
        return str(self.life)

    def arguments(self) -> list[str]:
        return ["app", f"release-{self.life}"]

    def steps(self) -> dict[str, str]:
        return {
            name: name for name in ("backup", "check-backup", "stop", "patch-config", "install", "migrate", "start-service")
        }

    def migrated(self, times: int) -> str:
        return "".join(line + " (migrated)" * times + "\n" for line in self.lines)

    def check_life(self) -> None:
        before = f"version={self.life - 1}"
        assert (self.app / "VERSION").read_text() == f"{self.life}\n"
        assert (self.app / "app.conf").read_text() == f"name=app\nversion={self.life}\nport=80\n"
        assert (self.app / "data.txt").read_text() == self.migrated(self.life)
        assert same_tree(self.app / "bin", self.workspace.path / f"release-{self.life}" / "bin")
        # Each process that reads the archive wants it whole: tarfile checks the headers, `tar` the end too.
        backup = self.app / f"backup-before-{self.life}.tar"
        assert self.workspace.run("tar", "-tf", str(backup)).code == 0
        with tarfile.open(backup) as archive:
            content = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            files = {name: file.read().decode() for name, file in content.items() if file is not None}
        assert files["VERSION"] == f"{self.life - 1}\n"
        assert files["app.conf"] == f"name=app\n{before}\nport=80\n"
        assert files["data.txt"] == self.migrated(self.life - 1)
        assert files["bin/service"] == f"{SERVICE}# {self.life - 1}\n"
        assert len(files) == 34
        assert until(lambda: len(self.services()) == 1, 5), f"services {self.services()}: {self.origins()}"
        assert self.services() == [int((self.app / "pid").read_text())]

    def services(self) -> list[int]:
        return [pid for pid, argv in living(self.mark).items() if is_service(argv)]

    def origins(self) -> list[str]:
        environs = (Path(f"/proc/{pid}/environ").read_text() for pid in self.services())
        return [environ.partition(f"EXAMPLE_MARK={self.mark}-")[2].partition(".")[0] for environ in environs]

    def leftovers(self) -> list[list[str]]:
        """All but the service: that is to go on."""
        return [argv for argv in super().leftovers() if not is_service(argv)]


class Import(Example):
    """A folder of 200 files for each life."""

    script = "import"

    def fresh(self) -> str:
        folder = self.workspace.path / f"csv-{self.life}"
        folder.mkdir()
        for number in range(200):
            rows = (f"{self.life},{number},{row},{'x' * (number % 7)}" for row in range(20))
            (folder / f"file-{number:03}.csv").write_text("".join(f"{row}\n" for row in rows))
        return folder.name

    def arguments(self) -> list[str]:
        return [f"csv-{self.life}", f"table-{self.life}"]

    def steps(self) -> dict[str, str]:
        return {f"file-{number:03}.csv": f"file-{number:03}" for number in range(200)}

    def check_life(self) -> None:
        source, table = (self.workspace.path / name for name in self.arguments())
        files = {path.name: path.read_text() for path in table.iterdir()}
        assert files == {f"{path.name}.tsv": path.read_text().replace(",", "\t") for path in source.iterdir()}
        assert len(files) == 200


class Receiver(ThreadingHTTPServer):
    """What the deployment notifies: counts each release that is posted to it; GET /<release> says whether it had it.

    ``strike``: called in the middle of the next POST, ``before`` or ``after`` it is counted. Before: that one is lost.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.posts: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client was killed: nothing to say."""


class Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_GET(self) -> None:
        self.answer(200 if self.server.posts[self.path[1:]] else 404)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length).decode()
        if len(body) < length:
            return
        release = body.removeprefix("release=")
        self.server.keys.setdefault(release, set()).add(self.headers["Idempotency-Key"])
        before, self.server.before = self.server.before, None
        if before is not None:
            before()
            return
        self.server.posts[release] += 1
        after, self.server.after = self.server.after, None
        if after is not None:
            after()
        self.answer(200)

    def answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Deploy(Example):
    """Release after release to one target. ``verify``: the receiver can be asked whether it had the notification."""

    script = "deploy"

    def __init__(self, workspace: Workspace, receiver: Receiver, *, verify: bool) -> None:
        super().__init__(workspace)
        self.receiver = receiver
        self.verify = verify
        self.may_stop = not verify
        self.settings = {} if verify else {"VERIFY": "no"}

    def fresh(self) -> str:
        source = self.workspace.path / f"source-{self.life}"
        (source / "css").mkdir(parents=True)
        (source / "VERSION").write_text(f"r{self.life}\n")
        for number in range(40):
            (source / "css" / f"{number}.css").write_text(f"{self.life} {number}\n" * 500)
        return f"r{self.life}"

    def arguments(self) -> list[str]:
        return [f"source-{self.life}", str(self.workspace.path / "target"), self.receiver.url]

    def steps(self) -> dict[str, str]:
        return {"build": "build", "publish": "publish"}

    def settle(self) -> None:
        assert self.receiver.posts[self.key] <= 1
        done = self.workspace.tool("update", self.id, "--complete", "notify")
        assert done.code == 0, done

    def check_life(self) -> None:
        posts = self.receiver.posts[self.key]
        assert posts <= 1 if self.life in self.settled else posts == 1, f"{posts} notifications"
        assert len(self.receiver.keys.get(self.key, {"none"})) == 1, "another idempotency key in another attempt"
        assert same_tree(self.workspace.path / f"source-{self.life}", self.workspace.path / "target")
        with tarfile.open(self.workspace.path / "target.tar") as archive:
            assert sum(member.isfile() for member in archive) == 41


@pytest.fixture
def watch() -> Iterator[Callable[[Example], Example]]:
    """Whatever a test leaves alive is ended, and the story of a failure is told."""
    if not Path("/proc/self/environ").exists():
        lacking("processes are found in /proc")
    watched: list[Example] = []

    def begin(example: Example) -> Example:
        watched.append(example)
        return example

    yield begin
    for example in watched:
        example.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server
        server.shutdown()


Watch = Callable[[Example], Example]


@pytest.mark.parametrize("part", range(2))
def test_upgrade(part: int, workspace: Workspace, watch: Watch) -> None:
    need_program("bash")
    need_program("setsid")
    example = watch(Upgrade(workspace))
    example.kill(share(part, 2))
    example.check()


def test_upgrade_with_each_of_its_commands_killed(workspace: Workspace, watch: Watch) -> None:
    """Where one command is killed, and the script is not: what it did not say must not be taken for a no."""
    need_program("bash")
    example = watch(Upgrade(workspace))
    mortal = workspace.path / "mortal"
    mortal.mkdir()
    for name in ("cat", "cmp", "cp", "mv", "rm", "sed", "seq", "setsid", "tar"):
        (mortal / name).write_text(MORTAL % need_program(name))
        (mortal / name).chmod(0o755)
    example.begin_life()
    example.run_to_end()

    def run(kill_at: str) -> tuple[int, Counter[str]]:
        example.begin_life()
        counts = workspace.path / f"counts-{example.life}"
        counts.mkdir()
        path = os.pathsep.join([str(mortal), str(BIN), os.environ["PATH"]])
        example.settings = {"PATH": path, "KILL_AT": kill_at, "COUNTS": str(counts)}
        code = example.start().wait(60)
        example.settings = {}
        return code, Counter({count.name: int(count.read_text()) for count in counts.iterdir()})

    code, calls = run("none")
    assert code == 0
    example.end_life()
    points = [(name, nth) for name, count in calls.items() for nth in range(1, count + 1)]
    assert len(points) >= 15
    for name, nth in points:
        code, _ = run(f"{name} {nth}")
        example.history.append(f"life {example.life}: {name} killed when called for the {nth}th time: exit {code}")
        if code == 0:
            example.end_life()
        else:
            example.witness(killed=True)
            example.run_to_end()
    example.check()


@pytest.mark.parametrize("part", range(5))
def test_import(part: int, workspace: Workspace, watch: Watch) -> None:
    need_program("bash")
    example = watch(Import(workspace))
    example.kill(share(part, 5))
    example.check()


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("verify", [True, False], ids=["verify", "no-verify"])
def test_deploy(verify: bool, part: int, workspace: Workspace, receiver: Receiver, watch: Watch) -> None:
    need_program("curl")
    example = watch(Deploy(workspace, receiver, verify=verify))
    example.kill(share(part, 2))
    example.check()
    assert verify or max(receiver.posts.values()) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("verify", [True, False], ids=["verify", "no-verify"])
def test_deploy_killed_while_it_is_answered(
    verify: bool, moment: Literal["before", "after"], workspace: Workspace, receiver: Receiver, watch: Watch
) -> None:
    """The receiver kills the script's group: in doubt is what it is, whether it was counted or not."""
    need_program("curl")
    example = Deploy(workspace, receiver, verify=verify)
    watch(example)
    for _ in range(3):
        example.begin_life()
        script = example.start()
        setattr(receiver, moment, lambda group=script.pid: os.killpg(group, signal.SIGKILL))
        assert script.wait(30) == -signal.SIGKILL
        assert example.witness(killed=True) == {"build": "completed", "publish": "completed", "notify": "begun"}
        assert receiver.posts[example.key] == (moment == "after")
        example.keep()
        example.run_to_end()
        assert (example.life in example.settled) is not verify
        # Lost before it was counted, it is sent again only where somebody can be asked.
        assert receiver.posts[example.key] == (verify or moment == "after")
    example.check()


def test_there_are_tests_for_all_examples() -> None:
    assert {path.name for path in (ROOT / "scripts" / "examples").iterdir()} == {"upgrade", "import", "deploy"}
