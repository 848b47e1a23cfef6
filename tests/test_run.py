"""`run`, `exec` and `status` with real commands: what runs, what is recorded, and what is true after a kill.

The commands are small shell scripts. One that is to be met while it runs writes its pid to the file ``pid`` first
(``HOLD``), and the tests poll for that: nothing here waits for a time that was guessed.
"""

import atexit
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import TOOL, Result, Workspace, lacking, need_program, need_root
from secret_samples import POSITIVES, Sample

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
FULL = Path("/dev/full")
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

# A command that says who it is, and stays.
HOLD = "echo $$ > new; mv new pid; exec sleep 60"
# One that SIGTERM does not end, nor its child.
STUBBORN = "trap '' TERM; echo $$ > new; mv new pid; sleep 60; sleep 60"

Begin = Callable[..., subprocess.Popen[bytes]]


def ok(workspace: Workspace, *argv: str | bytes, **more: Any) -> Result:
    result = workspace.tool(*argv, **more)
    assert result.code == 0, result
    return result


def refused(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.out == ""
    assert result.err.startswith("checkpoint-tool: "), result
    assert result.err.count("\n") == 1, result
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, result


@cache
def ground(released: bool, *argv: str) -> Path:
    """A store with a fresh run in it, made once for all tests that begin with the same."""
    workspace = Workspace(Path(tempfile.mkdtemp()))
    atexit.register(shutil.rmtree, workspace.path)
    ok(workspace, "start", *argv)
    if released:
        ok(workspace, "release", "deploy")
    return workspace.path


def start(workspace: Workspace, *argv: str) -> None:
    """`start deploy`; the owner is tester, by time, unless said otherwise."""
    if argv[:1] in ((), ("--steps",)) and len(argv) <= 2:
        shutil.copytree(ground(False, "deploy", *argv), workspace.path, dirs_exist_ok=True)
    else:
        ok(workspace, "start", "deploy", *argv)


def free(workspace: Workspace, *argv: str) -> None:
    """A run that nobody holds: `run` claims it for its own process."""
    shutil.copytree(ground(True, "deploy", *argv), workspace.path, dirs_exist_ok=True)


def run(workspace: Workspace, step: str, *argv: str | bytes, **more: Any) -> Result:
    return workspace.tool("run", "deploy", step, *argv, **more)


def sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


def step(workspace: Workspace, name: str = "a", id: str = "deploy") -> dict[str, Any]:
    """The step as it stands in the unfinished record on disk."""
    (found,) = (step for step in workspace.record(id)["steps"] if step["name"] == name)
    return found  # type: ignore[no-any-return]


def status(workspace: Workspace, name: str = "deploy", *argv: str) -> tuple[int, str]:
    result = workspace.tool("status", name, "--json", *argv)
    return result.code, result.json["status"]


def history(workspace: Workspace, workflow: str) -> list[dict[str, Any]]:
    return ok(workspace, "list", "--all", "--workflow", workflow, "--json").lines


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


def runs(pid: int) -> bool:
    """Neither gone nor a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return state != "" and not state.startswith("Z")


def ended(pid: int) -> bool:
    return not runs(pid)


def pid(workspace: Workspace, name: str = "pid") -> int:
    """What a command wrote into this file, once it has."""
    path = workspace.path / name
    until(path.exists)
    return int(path.read_text())


def children(process: int) -> list[int]:
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(child) for child, parent in rows if int(parent) == process]


def seal(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def alter(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record on disk as another boot, or another version of the program, would have left it."""
    content = json.loads(path.read_text())
    change(content)
    content["digest"] = seal(content)
    path.write_text(json.dumps(content, sort_keys=True, ensure_ascii=False))


@pytest.fixture(autouse=True, scope="module")
def signals_count() -> Iterator[None]:
    """Also where the tests themselves were started with signals ignored, by nohup or with & in a script: what has a
    handler here is back at its default in whatever program we start."""
    before = {name: signal.getsignal(name) for name in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)}
    for name in before:
        if before[name] is signal.SIG_IGN:
            signal.signal(name, lambda _number, _frame: None)
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def begin(workspace: Workspace) -> Iterator[Begin]:
    """The tool beside the test, from the moment on when its command has written its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **more: Any) -> subprocess.Popen[bytes]:
        (workspace.path / "pid").unlink(missing_ok=True)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        before = more.pop("before", ())
        more["env"] = workspace.environ(more.pop("env", None))
        started.append(subprocess.Popen([*before, TOOL, *argv], cwd=workspace.path, **(streams | more)))
        pid(workspace)
        return started[-1]

    yield start
    for one in started:
        # Its guard ends the command.
        one.kill()
        one.wait()
        for stream in (one.stdin, one.stdout, one.stderr):
            if stream:
                stream.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process to own a run: it stands for a script."""
    with subprocess.Popen(["sleep", "300"]) as running:
        yield running
        running.kill()


# --- run: the step and its record ---------------------------------------------------------------------------------------


def test_a_command_is_run_and_its_end_recorded(workspace: Workspace) -> None:
    start(workspace, "--steps", "a,b")
    result = run(workspace, "a", *sh("echo out; echo err >&2"))
    assert result == (0, "out\n", "err\n")
    recorded = step(workspace)
    assert (recorded["status"], recorded["exit_code"], recorded["attempts"]) == ("completed", 0, 1)
    assert sorted(recorded["output"].splitlines()) == ["err", "out"]
    assert recorded["begun_at"] <= recorded["ended_at"]
    assert 0 <= recorded["duration_ms"] < 20_000
    assert "process" not in recorded
    assert "error" not in recorded
    assert step(workspace, "b")["status"] == "pending"


def test_what_is_completed_is_not_run_again(workspace: Workspace) -> None:
    start(workspace, "--steps", "a,b")
    assert run(workspace, "a", *sh("echo once >> count")).code == 0
    before = workspace.snapshot()
    again = run(workspace, "a", *sh("echo once >> count"), input="not read")
    assert (again.code, again.out) == (0, "")
    assert re.fullmatch("deploy: step a: already completed.*\n", again.err)
    assert workspace.snapshot() == before


def test_what_was_skipped_is_not_run(workspace: Workspace) -> None:
    start(workspace, "--steps", "a")
    ok(workspace, "update", "deploy", "--skip", "a", "--reason", "by hand")
    again = run(workspace, "a", *sh("touch ran"))
    assert (again.code, again.out, again.err.count("\n")) == (0, "", 1)
    assert not (workspace.path / "ran").exists()


def test_a_step_of_a_finished_run_is_skipped_too(workspace: Workspace) -> None:
    start(workspace, "--steps", "a")
    assert run(workspace, "a", "--", "true").code == 0
    ok(workspace, "complete", "deploy")
    before = workspace.snapshot()
    assert run(workspace, "a", *sh("touch ran")).code == 0
    assert workspace.snapshot() == before


def test_a_step_that_is_skipped_leaves_its_input_to_the_next(workspace: Workspace) -> None:
    """`while read` is the common case: a program that eats the rest of the list ends the loop after its first line."""
    start(workspace)
    script = 'while read -r name; do "$0" run deploy "$name" -- echo "$name" < /dev/null; done'
    for _ in range(2):
        result = workspace.run("sh", "-c", script, TOOL, input="one\ntwo\n")
        assert result.code == 0
    result = workspace.run("sh", "-c", '"$0" run deploy one -- cat; cat', TOOL, input="rest\n")
    assert result.out == "rest\n"


def test_json_gives_one_object_and_the_output_goes_to_stderr(workspace: Workspace) -> None:
    start(workspace)
    for words in ("out\nerr\n", ""):
        result = run(workspace, "a", "--json", *sh("echo out; echo err >&2"))
        assert (result.code, result.err) == (0, words)
        assert (result.json["steps"][0]["status"], result.json["steps"][0]["output"]) == ("completed", "out\nerr\n")
        assert result.json["next"] is None
    failed = run(workspace, "b", "--json", *sh("exit 3"))
    assert (failed.code, failed.json["steps"][1]["exit_code"]) == (3, 3)


def test_json_of_what_is_refused(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--once", "--", "false").code == 1
    result = run(workspace, "a", "--json", *sh("touch ran"))
    assert (result.code, result.out, json.loads(result.err)["error"]["code"]) == (20, "", 20)


def test_begun_is_on_disk_when_the_command_starts(workspace: Workspace) -> None:
    start(workspace, "--steps", "a")
    seen = json.loads(run(workspace, "a", "--", "cat", str(workspace.file())).out)
    assert seen["digest"] == seal(seen)
    assert (seen["steps"][0]["status"], seen["steps"][0]["attempts"]) == ("begun", 1)
    assert "ended_at" not in seen["steps"][0]


@linux
def test_the_record_names_the_process_of_the_command_while_it_runs(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    begin("run", "deploy", "a", *sh(HOLD))
    recorded = step(workspace)["process"]
    assert recorded["pid"] == pid(workspace)
    assert recorded["pid_started"] == int(Path(f"/proc/{recorded['pid']}/stat").read_text().rpartition(")")[2].split()[19])


@linux
def test_begun_is_durable_before_the_command_starts(workspace: Workspace) -> None:
    """The order of the system calls, since only a power cut would show it otherwise."""
    start(workspace)
    names = "fsync,fdatasync,rename,renameat,renameat2,execve"
    argv = (need_program("strace"), "-f", "-qq", "-o", "log", "-e", f"trace={names}", TOOL)
    if (result := workspace.run(*argv, "run", "deploy", "a", "--", "/bin/sh", "-c", "true")).code:
        lacking(f"strace cannot trace here: {result.err}")
    lines = [re.sub(r"^\d+ +", "", line) for line in (workspace.path / "log").read_text().splitlines()]
    calls = [line for line in lines if re.match(r"(fsync|fdatasync|rename\w*)\(|execve\(\"/bin/sh\"", line)]
    kinds = ["exec" if "exec" in call else "sync" if "sync" in call else "rename" for call in calls]
    assert kinds.count("exec") == 1
    # The file, its name, and the folder, before the command and after it.
    command = kinds.index("exec")
    assert kinds[command - 3 : command] == ["sync", "rename", "sync"]
    assert kinds[-3:] == ["sync", "rename", "sync"]
    assert len(kinds) > command + 3


def test_the_command_is_given_who_it_works_for(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--key", "v1")
    (id,) = (path.stem for path in workspace.store.glob("*.json"))
    content = workspace.record(id)
    print_names = sh("env | grep '^CHECKPOINT_' | grep -v OWNER | sort; exit $CHECKPOINT_ATTEMPT")
    first, second = (workspace.tool("run", id, "a", *print_names) for _ in range(2))
    assert (first.code, second.code) == (1, 2)
    given = dict(line.split("=", 1) for line in first.out.splitlines())
    key = given.pop("CHECKPOINT_IDEMPOTENCY_KEY")
    assert given == {
        "CHECKPOINT_ID": id,
        "CHECKPOINT_RUN_ID": content["run_id"],
        "CHECKPOINT_RUN_STORE": str(workspace.store),
        "CHECKPOINT_STEP": "a",
        "CHECKPOINT_TOKEN": "1",
        "CHECKPOINT_ATTEMPT": "1",
    }
    # For services that take one: the same at each retry, another for each step.
    assert dict(line.split("=", 1) for line in second.out.splitlines())["CHECKPOINT_IDEMPOTENCY_KEY"] == key
    other = workspace.tool("run", id, "b", *sh('printf %s "$CHECKPOINT_IDEMPOTENCY_KEY"')).out
    assert other not in ("", key)


def test_the_command_may_write_to_its_own_checkpoint(workspace: Workspace) -> None:
    free(workspace)
    note = '"$0" update "$CHECKPOINT_ID" --note half --data \'{"n": 1}\' > inner'
    result = run(workspace, "a", "--", "sh", "-c", note, TOOL, env={"CHECKPOINT_OWNER": "somebody"})
    assert result.code == 0, result
    content = workspace.record()
    assert ([note["text"] for note in content["notes"]], content["data"]) == (["half"], {"n": 1})
    assert step(workspace)["status"] == "completed"


def test_a_step_may_run_another_step(workspace: Workspace) -> None:
    free(workspace)
    inner = '"$0" run "$CHECKPOINT_ID" inner -- echo inner'
    assert run(workspace, "outer", "--", "sh", "-c", inner, TOOL).out == "inner\n"
    assert [step["status"] for step in workspace.record()["steps"]] == ["completed", "completed"]


def test_a_step_finds_the_store_that_was_named(workspace: Workspace) -> None:
    """And not one of the same name elsewhere, in which its step is done already."""
    ok(workspace, "start", "deploy", "--store", "other")
    start(workspace)
    assert run(workspace, "inner", "--", "true").code == 0
    inner = 'mkdir elsewhere; cd elsewhere; "$0" run "$CHECKPOINT_ID" inner -- echo inner'
    result = run(workspace, "outer", "--store", "other", "--", "sh", "-c", inner, TOOL)
    assert result == (0, "inner\n", ""), result


def test_a_whole_workflow_may_run_inside_a_step(workspace: Workspace) -> None:
    script = '"$0" start inner --owner-pid $$ > log && "$0" run inner a -- echo inner && "$0" complete inner >> log'
    result = workspace.tool("exec", "outer", "--", "sh", "-c", script, TOOL)
    assert (result.code, result.out) == (0, "inner\n"), result
    assert status(workspace, "inner") == status(workspace, "outer") == (0, "completed")


@pytest.mark.parametrize("code", [1, 3, 11, 20, 22, 124, 126, 127, 130, 255])
def test_exit_status_of_the_command(workspace: Workspace, code: int) -> None:
    start(workspace, "--steps", "a,b")
    result = run(workspace, "a", *sh(f"echo words; exit {code}"))
    assert (result.code, result.out) == (code, "words\n")
    assert result.err.count("\n") == 1
    recorded = step(workspace)
    assert (recorded["status"], recorded["exit_code"], recorded["output"]) == ("failed", code, "words\n")
    assert str(code) in recorded["error"]
    assert "signal" not in recorded
    assert "cause" not in recorded
    assert workspace.record()["status"] == "in_progress"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        *((name, "interrupt") for name in ("INT", "TERM", "HUP", "QUIT", "KILL")),
        *((name, None) for name in ("SEGV", "USR1", "PIPE")),
    ],
)
def test_a_command_that_is_ended_by_a_signal(workspace: Workspace, name: str, cause: str | None) -> None:
    start(workspace)
    number = signal.Signals[f"SIG{name}"].value
    result = run(workspace, "a", *sh(f"ulimit -c 0; kill -{name} $$; sleep 9"))
    assert result.code == 128 + number
    recorded = step(workspace)
    assert (recorded["status"], recorded["signal"], recorded.get("cause")) == ("failed", f"SIG{name}", cause)
    assert "exit_code" not in recorded


def test_a_failed_step_may_be_run_again(workspace: Workspace) -> None:
    start(workspace, "--steps", "a")
    assert run(workspace, "a", *sh("echo broken; exit 1")).code == 1
    assert ok(workspace, "show", "deploy", "--json").json["next"] == "a"
    assert run(workspace, "a", *sh("echo mended")).code == 0
    recorded = step(workspace)
    assert (recorded["status"], recorded["attempts"], recorded["exit_code"]) == ("completed", 2, 0)
    assert recorded["output"] == "mended\n"
    assert "error" not in recorded


def test_a_run_is_named_by_its_run_id_too(workspace: Workspace) -> None:
    start(workspace)
    result = workspace.tool("run", workspace.record()["run_id"], "a", *sh("echo $CHECKPOINT_ID"))
    assert result == (0, "deploy\n", "")


def test_two_at_once_run_a_step_once(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    begin("run", "deploy", "a", *sh(HOLD))
    for verb in (("run", "deploy", "a", *sh("touch ran")), ("update", "deploy", "--begin", "a"), ("begin", "deploy", "a")):
        refused(workspace.tool(*verb), 11, "'a'", str(pid(workspace)))
    assert not (workspace.path / "ran").exists()


def test_many_at_once_run_a_step_once(workspace: Workspace) -> None:
    free(workspace)
    argv = [TOOL, "run", "deploy", "a", *sh("echo ran >> count; sleep 0.2")]
    many = [subprocess.Popen(argv, cwd=workspace.path, env=workspace.environ(), stderr=subprocess.DEVNULL) for _ in range(6)]
    codes = [one.wait(timeout=60) for one in many]
    assert (workspace.path / "count").read_text() == "ran\n"
    assert 0 in codes
    assert set(codes) <= {0, 11}


@linux
def test_what_another_has_just_completed_is_done(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    # It has looked, and is about to begin.
    late = (need_program("strace"), "-qq", "-o", "log", "-e", "trace=clone,clone3,fork,vfork")
    late += ("-e", "inject=clone,clone3,fork,vfork:delay_enter=1500000:when=1")
    (workspace.path / "pid").write_text("0")
    argv = [*late, TOOL, "run", "deploy", "a", *sh("echo >> ran")]
    with subprocess.Popen(argv, cwd=workspace.path, env=workspace.environ(), stderr=subprocess.PIPE) as running:
        until(lambda: "(" in log.read_text() if (log := workspace.path / "log").exists() else "")
        assert run(workspace, "a", *sh("echo >> ran")).code == 0
        assert running.stderr
        words = running.stderr.read().decode()
    assert (running.returncode, words.count("\n")) == (0, 1), words
    assert (workspace.path / "ran").read_text() == "\n"


def test_two_steps_at_once_of_a_run_that_nobody_held(workspace: Workspace, begin: Begin) -> None:
    """The second may be refused; what it may not is run under the claim of the first, and be killed when that ends."""
    free(workspace)
    first = begin("run", "deploy", "a", *sh("echo $$ > new; mv new pid; until [ -e end ]; do sleep 0.02; done"))
    argv = [TOOL, "run", "deploy", "b", *sh("echo ran >> second; sleep 0.5")]
    second = subprocess.Popen(argv, cwd=workspace.path, env=workspace.environ(), stderr=subprocess.DEVNULL)
    until(lambda: second.poll() is not None or (workspace.path / "second").exists())
    (workspace.path / "end").touch()
    assert first.wait(timeout=20) == 0
    assert second.wait(timeout=20) == (0 if (workspace.path / "second").exists() else 11)


# --- run: whose it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["time", "process"])
def test_refused_while_somebody_else_holds_the_run(workspace: Workspace, by: str, sleeper: subprocess.Popen[bytes]) -> None:
    how = ("--lease", "1h") if by == "time" else ("--owner-pid", str(sleeper.pid))
    start(workspace, "--steps", "a", "--owner", "alice", *how)
    before = workspace.snapshot()
    refused(run(workspace, "a", *sh("touch ran"), env={"CHECKPOINT_OWNER": "bob"}), 11, "alice")
    assert workspace.snapshot() == before
    # The token is the key of the house.
    assert run(workspace, "a", "--token", "1", "--", "true", env={"CHECKPOINT_OWNER": "bob"}).code == 0


def test_refused_with_an_old_token(workspace: Workspace) -> None:
    start(workspace, "--owner", "alice")
    ok(workspace, "resume", "deploy", "--owner", "bob", "--steal", "--reason", "x")
    before = workspace.snapshot()
    refused(run(workspace, "a", "--token", "1", *sh("touch ran")), 19, "token 1")
    assert workspace.snapshot() == before


def test_who_finds_the_run_free_holds_it_while_the_command_runs(workspace: Workspace, begin: Begin) -> None:
    free(workspace)
    running = begin("run", "deploy", "a", *sh(HOLD))
    lease = workspace.record()["lease"]
    assert (lease["pid"], lease["expires_at"]) == (running.pid, None)
    refused(workspace.tool("resume", "deploy", "--owner", "bob"), 11)
    os.kill(pid(workspace), signal.SIGTERM)
    assert running.wait(timeout=20) == 143
    assert workspace.record()["lease"] is None


@pytest.mark.parametrize("code", [0, 1])
def test_who_holds_the_run_keeps_it(workspace: Workspace, code: int) -> None:
    start(workspace, "--lease", "1h")
    assert run(workspace, "a", *sh(f"exit {code}")).code == code
    lease = workspace.record()["lease"]
    assert (lease["owner"], lease["lease_s"], lease["token"]) == ("tester", 3600, 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [(("--block", "waits for the DNS"), "waits for the DNS"), (("--skip", "b", "--reason", "x", "--add", "c"), "")],
)
def test_a_blocked_run_is_not_worked_on(workspace: Workspace, change: tuple[str, ...], word: str) -> None:
    start(workspace, "--steps", "a,b")
    ok(workspace, "update", "deploy", *change)
    result = run(workspace, "a", *sh("touch ran"))
    assert (workspace.path / "ran").exists() == (not word)
    if word:
        refused(result, 15, word, "--unblock")


@pytest.mark.parametrize("seconds", [1, 2])
def test_the_lease_is_renewed_while_the_command_runs(workspace: Workspace, seconds: int, begin: Begin) -> None:
    start(workspace, "--lease", f"{seconds}s")
    running = begin("run", "deploy", "a", *sh(f"echo $$ > new; mv new pid; sleep {seconds + 0.8}"))
    seen = set()
    while running.poll() is None:
        content = workspace.record()
        if (step := content["steps"][0])["status"] == "begun":
            assert datetime.fromisoformat(content["lease"]["expires_at"]) > datetime.now(UTC), "it ran out"
            assert content["progress_at"] == step["begun_at"], "alive is no progress"
            seen.add(content["lease"]["expires_at"])
        time.sleep(0.005)
    assert running.returncode == 0
    assert len(seen) > 1
    assert workspace.record()["lease"]["token"] == 1


def test_nobody_takes_over_while_a_renewed_command_runs(workspace: Workspace, begin: Begin) -> None:
    start(workspace, "--lease", "1s")
    running = begin("run", "deploy", "a", *sh("echo $$ > new; mv new pid; sleep 2"))
    while running.poll() is None:
        result = workspace.tool("resume", "deploy", "--owner", "bob")
        assert result.code == 11 or step(workspace)["status"] == "completed", result
    assert running.returncode == 0


def test_a_command_does_not_outlive_the_script_that_owns_the_run(
    workspace: Workspace, begin: Begin, sleeper: subprocess.Popen[bytes]
) -> None:
    start(workspace, "--owner-pid", str(sleeper.pid))
    running = begin("run", "deploy", "a", *sh(HOLD))
    sleeper.kill()
    sleeper.wait()
    assert running.wait(timeout=20) == 143
    assert ended(pid(workspace))
    recorded = step(workspace)
    assert (recorded["status"], recorded["cause"]) == ("failed", "interrupt")
    assert "owner" in recorded["error"]
    assert status(workspace) == (31, "interrupted")
    assert run(workspace, "a", "--", "true").code == 0


def test_a_once_command_whose_script_dies_is_in_doubt(
    workspace: Workspace, begin: Begin, sleeper: subprocess.Popen[bytes]
) -> None:
    start(workspace, "--owner-pid", str(sleeper.pid))
    running = begin("run", "deploy", "a", "--once", *sh(HOLD))
    sleeper.kill()
    sleeper.wait()
    running.wait(timeout=20)
    assert ok(workspace, "show", "deploy", "--json").json["in_doubt"] == ["a"]
    refused(run(workspace, "a", *sh("touch ran")), 20)


def test_a_successor_waits_for_the_command_of_a_dead_script(
    workspace: Workspace, begin: Begin, sleeper: subprocess.Popen[bytes]
) -> None:
    start(workspace, "--owner-pid", str(sleeper.pid))
    begin("run", "deploy", "a", *sh("trap 'sleep 0.5; exit 0' TERM; echo $$ > new; mv new pid; while :; do sleep 0.1; done"))
    sleeper.kill()
    sleeper.wait()
    taken = ok(workspace, "resume", "deploy", "--owner", "bob", "--json").json
    assert ended(pid(workspace)), "two at once"
    assert (taken["lease"]["owner"], taken["next"]) == ("bob", "a")


def test_a_run_that_is_stolen_meanwhile_is_not_written_to(workspace: Workspace, begin: Begin) -> None:
    start(workspace, "--lease", "2s")
    running = begin("run", "deploy", "a", *sh(HOLD))
    ok(workspace, "resume", "deploy", "--owner", "bob", "--lease", "1h", "--steal", "--reason", "x")
    before = workspace.file().read_bytes()
    # It would renew the lease, and learns that it is not its own any more.
    assert running.wait(timeout=20) == 19
    assert ended(pid(workspace))
    assert workspace.file().read_bytes() == before
    assert ok(workspace, "show", "deploy", "--json").json["in_doubt"] == ["a"]


def test_the_end_of_a_command_whose_run_was_stolen_is_not_recorded(workspace: Workspace, begin: Begin) -> None:
    start(workspace, "--lease", "1h")
    running = begin("run", "deploy", "a", *sh("echo $$ > new; mv new pid; while ! [ -e end ]; do sleep 0.05; done"))
    ok(workspace, "resume", "deploy", "--owner", "bob", "--steal", "--reason", "x")
    before = workspace.file().read_bytes()
    # The thief has the run, and still may not run beside the command.
    refused(run(workspace, "a", "--owner", "bob", *sh("touch ran")), 11)
    (workspace.path / "end").touch()
    assert running.wait(timeout=20) == 19
    assert workspace.file().read_bytes() == before
    assert run(workspace, "a", "--owner", "bob", "--", "true").code == 0


def test_a_run_that_is_cancelled_meanwhile_stays_cancelled(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", *sh("echo $$ > new; mv new pid; while ! [ -e end ]; do sleep 0.05; done"))
    ok(workspace, "cancel", "deploy", "--reason", "no longer wanted")
    (workspace.path / "end").touch()
    assert running.wait(timeout=20) == 15
    assert status(workspace) == (36, "cancelled")


SCRIPT = """
set -e
"$TOOL" start deploy --steps a,b,c --owner-pid $$ > log
"$TOOL" run deploy a -- sh -c 'echo a >> effects'
"$TOOL" run deploy b -- sh -c 'echo b >> effects; [ -e second ] || { echo $$ > new; mv new pid; exec sleep 60; }'
"$TOOL" run deploy c -- sh -c 'echo c >> effects'
"$TOOL" complete deploy >> log
"""


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_a_script_that_is_killed_is_run_again_to_the_end(workspace: Workspace, signal: str) -> None:
    env = workspace.environ({"TOOL": TOOL, "CHECKPOINT_OWNER": ""})
    with subprocess.Popen(["sh", "-c", SCRIPT], cwd=workspace.path, env=env, stderr=subprocess.DEVNULL) as script:
        command = pid(workspace)
        assert status(workspace) == (30, "running")
        subprocess.run(["kill", f"-{signal}", str(script.pid)], check=True)
        script.wait(timeout=20)
    until(lambda: ended(command))
    assert status(workspace) == (31, "interrupted")
    (workspace.path / "second").touch()
    result = workspace.run("sh", "-c", SCRIPT, env={"TOOL": TOOL, "CHECKPOINT_OWNER": ""})
    assert result.code == 0, result
    assert (workspace.path / "effects").read_text().split() == ["a", "b", "b", "c"]
    assert status(workspace) == (0, "completed")


# --- run: streams and terminal --------------------------------------------------------------------------------------------

BINARY = bytes(range(256)) * 2000


def test_streams_pass_byte_for_byte(workspace: Workspace) -> None:
    start(workspace)
    argv = [TOOL, "run", "deploy", "a", *sh("tee copy; cat copy >&2")]
    done = subprocess.run(argv, cwd=workspace.path, env=workspace.environ(), input=BINARY, capture_output=True, check=False)
    assert (done.returncode, done.stdout == BINARY, done.stderr == BINARY) == (0, True, True)
    assert len(step(workspace)["output"].encode()) >= 4096
    assert ok(workspace, "verify").code == 0


BOTH = "i=0; while [ $i -lt 300 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done"


@pytest.mark.parametrize("where", ["file", "pipe"])
def test_order_of_stdout_and_stderr_that_go_to_one_place(workspace: Workspace, where: str) -> None:
    start(workspace)
    script = '"$0" "$@" > both 2>&1' if where == "file" else '"$0" "$@" 2>&1 | cat > both'
    assert workspace.run("sh", "-c", script, TOOL, "run", "deploy", "a", "--tail", "65536", *sh(BOTH)).code == 0
    expected = "".join(f"out{number}\nerr{number}\n" for number in range(300))
    assert (workspace.path / "both").read_text() == expected
    assert step(workspace)["output"] == expected


def test_a_file_that_is_appended_to_is_appended_to(workspace: Workspace) -> None:
    start(workspace)
    (workspace.path / "log").write_text("before\n")
    assert workspace.run("sh", "-c", '"$0" "$@" >> log 2>&1', TOOL, "run", "deploy", "a", *sh("echo a; echo b >&2")).code == 0
    assert (workspace.path / "log").read_text() == "before\na\nb\n"


def test_output_passes_while_the_command_runs(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", *sh(f"printf prompt; {HOLD}"), stdout=subprocess.PIPE)
    assert running.stdout
    # No line end, and no end of the command: a progress bar, a question.
    assert os.read(running.stdout.fileno(), 100) == b"prompt"


def test_input_passes_while_the_command_runs(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    dialog = "echo $$ > new; mv new pid; read -r a; echo $a; read -r b; echo $b"
    running = begin("run", "deploy", "a", *sh(dialog), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin
    assert running.stdout
    for words in (b"one\n", b"two\n"):
        os.write(running.stdin.fileno(), words)
        assert os.read(running.stdout.fileno(), 100) == words
    assert running.wait(timeout=20) == 0


@linux
@pytest.mark.parametrize("tail", [("--tail", "0"), ()])
def test_the_command_finds_everything_else_as_it_would_without_the_tool(workspace: Workspace, tail: tuple[str, ...]) -> None:
    start(workspace)
    code = """
import os, resource
print(os.getcwd(), oct(os.umask(0)), os.nice(0), sorted(os.listdir("/proc/self/fd"), key=int))
print([line for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn", "Uid", "Groups", "Cpus_allowed"))])
print([resource.getrlimit(number) for number in range(10)])
print(sorted((name, value) for name, value in os.environ.items() if not name.startswith("CHECKPOINT_")))
"""
    (workspace.path / "look.py").write_text(code)
    look = ("--", sys.executable, "-I", "look.py")
    set_up = 'umask 027; ulimit -n 500; cd .; exec "$@"'
    plain = workspace.run("sh", "-c", set_up, "sh", *look[1:])
    wrapped = workspace.run("sh", "-c", set_up, "sh", TOOL, "run", "deploy", "a", *tail, *look)
    assert (plain.code, wrapped.code) == (0, 0), wrapped
    assert wrapped.out == plain.out


def test_the_command_runs_in_a_process_group_of_its_own_and_in_the_session_of_the_tool(workspace: Workspace) -> None:
    start(workspace)
    group, own, session = run(workspace, "a", *sh("ps -o pgid=,pid=,sess= -p $$")).out.split()
    assert (group, int(session)) == (own, os.getsid(0))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_of_the_tool(workspace: Workspace, closed: str) -> None:
    start(workspace)
    argv = (TOOL, "run", "deploy", "a", *sh("touch ran; exit 3"))
    assert workspace.run("sh", "-c", f'"$@" {closed}', "sh", *argv).code == 3
    assert (workspace.path / "ran").exists()
    assert step(workspace)["exit_code"] == 3
    assert ok(workspace, "verify").code == 0


class Terminal:
    """A program on a pseudo-terminal, and what a person before it sees and types. It does not echo."""

    TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"

    def __init__(self, workspace: Workspace, *argv: str, env: dict[str, str] | None = None) -> None:
        self.screen = ""
        self.seen = 0
        self.fd, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[3] &= ~termios.ECHO
        settings[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\0\x84\0\0\0\0\0")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", self.TAKE, *argv],
            cwd=workspace.path,
            env=workspace.environ({"TOOL": TOOL, "PS1": "PROMPT> ", "TERM": "dumb"} | (env or {})),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read(self, seconds: float) -> bool:
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                # EIO: whoever had it open has ended.
                return False
            self.screen += data.decode(errors="replace")
            return bool(data)
        return True

    def expect(self, words: str) -> None:
        """``words`` come, after all that was expected before."""
        deadline = time.monotonic() + 20
        while (found := self.screen.find(words, self.seen)) < 0:
            assert time.monotonic() < deadline, self.screen
            assert self.read(0.1) or words in self.screen[self.seen :], self.screen
        self.seen = found + len(words)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.screen
            self.read(0.02)
        while select.select([self.fd], [], [], 0)[0] and self.read(0):
            pass
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(workspace: Workspace) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open(*argv: str, **more: Any) -> Terminal:
        opened.append(Terminal(workspace, *argv, **more))
        return opened[-1]

    yield open
    for one in opened:
        one.close()


TERMINALS = "for fd in 0 1 2; do if [ -t $fd ]; then echo tty$fd >&2; fi; done"


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ("", "tty0 tty1 tty2"),
        ("| cat", "tty0 tty2"),
        ("> log", "tty0 tty2"),
        ("2> log", "tty0 tty1"),
        ("< /dev/null", "tty1 tty2"),
    ],
)
def test_what_is_a_terminal_stays_one(
    workspace: Workspace, terminal: Callable[..., Terminal], redirect: str, expected: str
) -> None:
    start(workspace)
    script = f"\"$TOOL\" run deploy a -- sh -c '{TERMINALS}; stty size < /dev/tty > size' {redirect}"
    screen = terminal("sh", "-c", script)
    assert screen.end() == 0, screen.screen
    log = workspace.path / "log"
    seen = screen.screen + (log.read_text() if log.exists() else "")
    assert seen.split() == expected.split()
    assert (workspace.path / "size").read_text() == "24 132\n"
    assert "tty" not in step(workspace).get("output", "") or "2>" in redirect


def test_what_goes_to_a_terminal_is_not_recorded(workspace: Workspace, terminal: Callable[..., Terminal]) -> None:
    start(workspace)
    screen = terminal(TOOL, "run", "deploy", "a", *sh("echo seen; exit 3"))
    assert screen.end() == 3
    assert "seen\n" in screen.screen
    assert step(workspace).get("output", "") == ""
    assert step(workspace)["exit_code"] == 3


def test_a_dialog_on_a_terminal(workspace: Workspace, terminal: Callable[..., Terminal]) -> None:
    start(workspace)
    screen = terminal(TOOL, "run", "deploy", "a", *sh("printf 'Password: '; stty -echo; read -r word; echo $word > word"))
    screen.expect("Password: ")
    screen.type("geheim\n")
    assert screen.end() == 0
    assert (workspace.path / "word").read_text() == "geheim\n"


@pytest.mark.parametrize(("key", "name"), [("\x03", "SIGINT"), ("\x1c", "SIGQUIT")])
def test_a_key_that_interrupts(
    workspace: Workspace, terminal: Callable[..., Terminal], begin: Begin, key: str, name: str
) -> None:
    start(workspace)
    screen = terminal(TOOL, "run", "deploy", "a", *sh(f"ulimit -c 0; echo ready; {HOLD}"))
    command = pid(workspace)
    screen.expect("ready")
    screen.type(key)
    number = signal.Signals[name].value
    # Whoever waits for it sees either the signal itself or the exit status that a shell makes of it.
    assert screen.end() in (-number, 128 + number)
    assert ended(command)
    recorded = step(workspace)
    assert (recorded["status"], recorded["signal"], recorded["cause"]) == ("failed", name, "interrupt")


def test_what_a_command_makes_of_the_key_counts(workspace: Workspace, terminal: Callable[..., Terminal]) -> None:
    start(workspace)
    tidy = "trap 'echo tidied; exit 0' INT; echo ready; while :; do sleep 0.05; done"
    screen = terminal(TOOL, "run", "deploy", "a", *sh(tidy))
    screen.expect("ready")
    screen.type("\x03")
    code = screen.end()
    assert "tidied" in screen.screen
    assert step(workspace)["status"] == "completed"
    assert code == 0


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_the_key_ends_the_script_around_it_as_well(workspace: Workspace, terminal: Callable[..., Terminal], shell: str) -> None:
    start(workspace)
    screen = terminal(need_program(shell), "-c", '"$TOOL" run deploy a -- sh -c "echo ready; exec sleep 60"; echo went on')
    screen.expect("ready")
    screen.type("\x03")
    assert screen.end() in (-signal.SIGINT, 130)
    assert "went on" not in screen.screen


INTERACTIVE = {
    "bash": ("--norc", "--noprofile", "--noediting", "-i"),
    "zsh": ("-f", "+Z", "-i"),
}


@pytest.mark.parametrize("shell", INTERACTIVE)
def test_stopped_by_a_key_and_brought_back(workspace: Workspace, terminal: Callable[..., Terminal], shell: str) -> None:
    start(workspace)
    screen = terminal(need_program(shell), *INTERACTIVE[shell])
    screen.expect("PROMPT> ")
    screen.type("\"$TOOL\" run deploy a -- sh -c 'echo $$ > pid; echo read''y; read -r line; echo got-$line'\n")
    screen.expect("ready")
    screen.type("\x1a")
    screen.expect("PROMPT> ")
    command = pid(workspace)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(command)], capture_output=True, text=True, check=True).stdout
    assert state.startswith("T"), state
    assert step(workspace)["status"] == "begun"
    screen.type("fg\n")
    until(lambda: "T" not in subprocess.run(["ps", "-o", "stat=", "-p", str(command)], capture_output=True, text=True).stdout)
    screen.type("words\n")
    screen.expect("got-words")
    screen.type("echo status=$?\n")
    screen.expect("status=0")
    # The terminal is the shell's again.
    screen.type("exit\n")
    assert screen.end() == 0
    assert step(workspace)["status"] == "completed"


def test_stopped_by_a_key_and_sent_to_the_background(workspace: Workspace, terminal: Callable[..., Terminal]) -> None:
    start(workspace)
    # Nothing that forks: a shell that waits for vfork cannot be stopped, and the key is lost on it.
    os.mkfifo(workspace.path / "end")
    screen = terminal(need_program("bash"), *INTERACTIVE["bash"])
    screen.expect("PROMPT> ")
    screen.type("\"$TOOL\" run deploy a -- sh -c 'echo read''y; read -r code < end; exit $code'\n")
    screen.expect("ready")
    screen.type("\x1a")
    screen.expect("Stopped")
    screen.type("bg\n")
    screen.expect("&")
    # It must not have ended, and been told of, before the shell waits for it.
    screen.type("echo wait''ing; wait %1; echo status=$?\n")
    screen.expect("waiting")
    (workspace.path / "end").write_text("7\n")
    screen.expect("status=7")
    assert step(workspace)["exit_code"] == 7


def test_who_reads_the_terminal_from_the_background_is_stopped(workspace: Workspace, terminal: Callable[..., Terminal]) -> None:
    start(workspace)
    screen = terminal(need_program("bash"), *INTERACTIVE["bash"])
    screen.expect("PROMPT> ")
    screen.type("\"$TOOL\" run deploy a -- sh -c 'echo $$ > pid; read -r line; echo got-$line' &\n")
    command = pid(workspace)
    until(lambda: "T" in subprocess.run(["ps", "-o", "stat=", "-p", str(command)], capture_output=True, text=True).stdout)
    tool = children(screen.process.pid)
    until(
        lambda: any(
            "T" in subprocess.run(["ps", "-o", "stat=", "-p", str(one)], capture_output=True, text=True).stdout for one in tool
        )
    )
    screen.type("fg\n")
    screen.expect("run deploy a")
    screen.type("words\n")
    screen.expect("got-words")


# --- run: signals to the tool ---------------------------------------------------------------------------------------------

# The grandchild is in the foreground of its shell: what a shell starts with & ignores SIGINT.
FAMILY = """
python3 -c '
import os, signal, sys
def told(number, frame):
    open("told", "a").write(signal.Signals(number).name + "\\n")
    sys.exit(0)
for name in ("INT", "TERM", "HUP", "QUIT"):
    signal.signal(getattr(signal, "SIG" + name), told)
open("new", "w").write(str(os.getpid()))
os.rename("new", "pid")
signal.pause()'
exit 0
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_to_the_tool_reaches_the_grandchild(workspace: Workspace, begin: Begin, name: str) -> None:
    start(workspace)
    number = signal.Signals[name]
    running = begin("run", "deploy", "a", *sh(f"trap : INT TERM HUP QUIT; {FAMILY}"))
    running.send_signal(number)
    # The command itself exits 0: it was interrupted all the same.
    assert running.wait(timeout=20) == 128 + number
    assert (workspace.path / "told").read_text() == f"{name}\n", "once, and no other"
    assert ended(pid(workspace))
    recorded = step(workspace)
    assert (recorded["status"], recorded["cause"]) == ("failed", "interrupt")
    assert name in recorded["error"]
    assert status(workspace) == (30, "running")
    ok(workspace, "release", "deploy")
    assert status(workspace) == (31, "interrupted")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_the_tool_ends_a_plain_command(workspace: Workspace, begin: Begin, name: str) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", *sh(HOLD))
    running.send_signal(signal.Signals[name])
    assert running.wait(timeout=20) in (128 + signal.Signals[name], -signal.Signals[name])
    recorded = step(workspace)
    assert (recorded["status"], recorded["cause"]) == ("failed", "interrupt")
    assert ended(pid(workspace))


def test_a_signal_to_the_whole_group_as_a_supervisor_sends_it(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", *sh(HOLD), start_new_session=True)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(timeout=20) in (143, -signal.SIGTERM)
    assert step(workspace)["cause"] == "interrupt"
    assert ended(pid(workspace))


def test_a_command_that_ignores_the_signal_is_waited_for_and_not_completed(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    stay = "trap '' TERM; echo $$ > new; mv new pid; while ! [ -e end ]; do sleep 0.05; done; exit 0"
    running = begin("run", "deploy", "a", *sh(stay))
    running.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=0.3)
    assert step(workspace)["status"] == "begun"
    (workspace.path / "end").touch()
    assert running.wait(timeout=20) == 143
    assert (step(workspace)["status"], step(workspace)["cause"]) == ("failed", "interrupt")


@pytest.mark.parametrize("before", [("nohup",), ("sh", "-c", 'trap "" HUP INT; exec "$@"', "sh")], ids=["nohup", "trap"])
def test_a_signal_that_is_ignored_stays_ignored(workspace: Workspace, begin: Begin, before: tuple[str, ...]) -> None:
    start(workspace)
    stay = "echo $$ > new; mv new pid; while ! [ -e end ]; do sleep 0.05; done"
    running = begin("run", "deploy", "a", *sh(stay), before=before)
    for number in (signal.SIGHUP,) if before == ("nohup",) else (signal.SIGHUP, signal.SIGINT):
        running.send_signal(number)
        os.killpg(pid(workspace), number)
    (workspace.path / "end").touch()
    assert running.wait(timeout=20) == 0
    assert step(workspace)["status"] == "completed"


# --- run: --timeout -------------------------------------------------------------------------------------------------------


def test_a_command_that_takes_too_long_is_ended(workspace: Workspace) -> None:
    free(workspace)
    result = run(workspace, "a", "--timeout", "1s", *sh(f"{HOLD}"))
    assert result.code == 124
    assert "timed out" in result.err
    recorded = step(workspace)
    assert (recorded["status"], recorded["cause"], recorded["signal"]) == ("failed", "timeout", "SIGTERM")
    assert 1000 <= recorded["duration_ms"] < 5000
    assert ended(pid(workspace))
    assert status(workspace) == (32, "timed_out")


def test_a_command_that_ends_well_after_the_time_is_not_completed(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--timeout", "1s", *sh("trap 'exit 0' TERM; while :; do sleep 0.05; done")).code == 124
    assert (step(workspace)["status"], step(workspace)["cause"]) == ("failed", "timeout")


def test_a_command_and_its_child_that_ignore_sigterm_are_killed(workspace: Workspace) -> None:
    start(workspace)
    stay = "import os, signal; signal.signal(15, signal.SIG_IGN); open('child', 'w').write(str(os.getpid())); signal.pause()"
    began = time.monotonic()
    result = run(
        workspace, "a", "--timeout", "1s", "--", "sh", "-c", f'trap "" TERM; "$0" -c "{stay}"; sleep 60', sys.executable
    )
    assert result.code == 124
    assert 5 < time.monotonic() - began < 15, "a grace of five seconds"
    assert ended(pid(workspace, "child"))
    recorded = step(workspace)
    assert (recorded["status"], recorded["cause"], recorded["signal"]) == ("failed", "timeout", "SIGKILL")


def test_time_that_suffices(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--timeout", "1h", *sh("exit 3")).code == 3
    assert "cause" not in step(workspace)


@pytest.mark.parametrize("text", ["0s", "soon", "1"])
def test_no_such_time(workspace: Workspace, text: str) -> None:
    start(workspace)
    before = workspace.snapshot()
    refused(run(workspace, "a", f"--timeout={text}", *sh("touch ran")), 2)
    assert workspace.snapshot() == before


# --- run: --retries -------------------------------------------------------------------------------------------------------


def test_tried_again_until_it_succeeds(workspace: Workspace) -> None:
    start(workspace)
    attempt = (
        'echo "$CHECKPOINT_ATTEMPT $CHECKPOINT_IDEMPOTENCY_KEY" >> log; date +%s.%N >> times; [ "$CHECKPOINT_ATTEMPT" = 3 ]'
    )
    result = run(workspace, "a", "--retries", "5", "--backoff", "1s", *sh(attempt))
    assert result.code == 0
    numbers, keys = zip(*(line.split() for line in (workspace.path / "log").read_text().splitlines()), strict=True)
    assert numbers == ("1", "2", "3")
    assert len(set(keys)) == 1
    assert (step(workspace)["status"], step(workspace)["attempts"]) == ("completed", 3)
    first, second, third = (float(line) for line in (workspace.path / "times").read_text().split())
    assert 1 <= second - first < 1.9
    assert 2 <= third - second < 3.8, "twice as long"


def test_tried_no_more_often_than_said(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--retries", "1", *sh("echo x >> count; exit 3")).code == 3
    assert (workspace.path / "count").read_text() == "x\nx\n"
    assert (step(workspace)["status"], step(workspace)["exit_code"], step(workspace)["attempts"]) == ("failed", 3, 2)


def test_tried_again_after_it_took_too_long(workspace: Workspace) -> None:
    start(workspace)
    slow_at_first = '[ "$CHECKPOINT_ATTEMPT" = 2 ] || exec sleep 60'
    assert run(workspace, "a", "--retries", "1", "--timeout", "1s", *sh(slow_at_first)).code == 0
    assert step(workspace)["attempts"] == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_what_was_interrupted_is_not_tried_again(workspace: Workspace, begin: Begin, name: str) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", "--retries", "3", *sh(f"echo x >> count; {HOLD}"))
    running.send_signal(signal.Signals[name])
    assert running.wait(timeout=20) == 128 + signal.Signals[name]
    assert (workspace.path / "count").read_text() == "x\n"


def test_an_interrupt_ends_the_pause_between_two_tries(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    fail = "echo x >> count; echo $$ > new; mv new pid; exit 3"
    running = begin("run", "deploy", "a", "--retries", "3", "--backoff", "1h", *sh(fail))
    until(lambda: step(workspace)["status"] == "failed")
    running.send_signal(signal.SIGTERM)
    # Ended by the signal or with its status: a shell sees 143 either way.
    assert running.wait(timeout=10) in (143, -signal.SIGTERM)
    assert (workspace.path / "count").read_text() == "x\n"
    assert step(workspace)["status"] == "failed"


def test_the_run_stays_ours_between_two_tries(workspace: Workspace, begin: Begin) -> None:
    free(workspace)
    fail = "echo $$ > new; mv new pid; exit 3"
    running = begin("run", "deploy", "a", "--retries", "3", "--backoff", "1h", *sh(fail))
    until(lambda: step(workspace)["status"] == "failed")
    assert status(workspace) == (30, "running")
    refused(workspace.tool("resume", "deploy", "--owner", "bob"), 11)
    running.kill()
    running.wait()
    assert status(workspace)[0] in (31, 33)


def test_what_cannot_be_run_is_not_tried_again(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--retries", "3", "--backoff", "1h", "--", "no-such-program").code == 127


def test_retries_of_a_once_step_want_a_way_to_see(workspace: Workspace) -> None:
    start(workspace)
    before = workspace.snapshot()
    refused(run(workspace, "a", "--once", "--retries", "2", *sh("touch ran")), 2, "--verify")
    assert workspace.snapshot() == before


# --- run: --once ----------------------------------------------------------------------------------------------------------


def in_doubt(workspace: Workspace, name: str = "a") -> bool:
    return name in ok(workspace, "show", "deploy", "--json").json["in_doubt"]


def test_once_and_successful(workspace: Workspace) -> None:
    start(workspace)
    for _ in range(2):
        assert run(workspace, "a", "--once", *sh("echo x >> count")).code == 0
    assert (step(workspace)["status"], step(workspace)["once"]) == ("completed", True)
    assert (workspace.path / "count").read_text() == "x\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 3", 3),
        ("exit 127", 127),
        ("exit 126", 126),
        ("no-such-program", 127),
        ("kill -KILL $$", 137),
        ("kill -INT $$", 130),
    ],
)
def test_once_and_not_successful_is_in_doubt(workspace: Workspace, script: str, code: int) -> None:
    start(workspace)
    result = run(workspace, "a", "--once", *sh(f"echo x >> count; {script}"))
    assert result.code == code
    assert "in doubt" in result.err
    recorded = step(workspace)
    assert recorded["status"] == "begun"
    assert "ended_at" in recorded
    assert in_doubt(workspace)
    # Not by the same line, nor by one that forgets to say --once.
    for more in (("--once",), ()):
        before = workspace.snapshot()
        refused(run(workspace, "a", *more, *sh("echo x >> count")), 20, "'a'")
        assert workspace.snapshot() == before
    assert (workspace.path / "count").read_text() == "x\n"


def test_once_and_too_long_is_in_doubt(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--once", "--timeout", "1s", *sh("exec sleep 60")).code == 124
    assert step(workspace)["status"] == "begun"
    refused(run(workspace, "a", *sh("touch ran")), 20)


def test_once_and_interrupted_is_in_doubt(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", "--once", *sh(f"trap 'exit 0' TERM; {HOLD.replace('exec ', '')} & wait"))
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 143
    refused(run(workspace, "a", *sh("touch ran")), 20)


@pytest.mark.parametrize("held", [True, False])
def test_once_and_killed_with_the_tool_is_in_doubt(workspace: Workspace, begin: Begin, held: bool) -> None:
    (start if held else free)(workspace)
    running = begin("run", "deploy", "a", "--once", *sh(HOLD))
    running.kill()
    os.killpg(pid(workspace), signal.SIGKILL)
    running.wait()
    until(lambda: ended(pid(workspace)))
    # Its guard may live a moment longer, and counts as at work until then.
    until(lambda: in_doubt(workspace))
    refused(run(workspace, "a", *sh("touch ran")), 20)


@pytest.mark.parametrize("command", ["no-such-program", "/", "./plain"])
def test_once_and_never_started_is_no_doubt(workspace: Workspace, command: str) -> None:
    start(workspace)
    (workspace.path / "plain").write_text("#!/bin/sh\n")
    assert run(workspace, "a", "--once", "--", command).code in (126, 127)
    assert step(workspace)["status"] == "failed"
    assert not in_doubt(workspace)
    assert run(workspace, "a", "--once", "--", "true").code == 0


def test_once_of_the_plan_counts(workspace: Workspace) -> None:
    (workspace.path / "plan").write_text('[{"name": "a", "once": true}]')
    start(workspace, "--plan", "plan")
    assert run(workspace, "a", *sh("exit 3")).code == 3
    refused(run(workspace, "a", *sh("touch ran")), 20)
    assert not (workspace.path / "ran").exists()


def test_retries_of_a_step_that_the_plan_calls_once_want_a_way_to_see(workspace: Workspace) -> None:
    (workspace.path / "plan").write_text('[{"name": "a", "once": true}]')
    start(workspace, "--plan", "plan")
    result = run(workspace, "a", "--retries", "2", "--backoff", "1s", *sh("echo x >> count; exit 3"))
    assert result.code in (2, 3), result
    count = workspace.path / "count"
    assert not count.exists() or count.read_text() == "x\n", "repeated blindly"


@pytest.mark.parametrize(("how", "count"), [("--complete", "x\n"), ("--retry", "x\nx\n")])
def test_doubt_is_settled_by_a_person(workspace: Workspace, how: str, count: str) -> None:
    start(workspace)
    assert run(workspace, "a", "--once", *sh("echo x >> count; exit 3")).code == 3
    ok(workspace, "update", "deploy", how, "a")
    assert run(workspace, "a", "--once", *sh("echo x >> count")).code == 0
    assert step(workspace)["status"] == "completed"
    assert (workspace.path / "count").read_text() == count


# --- run: --verify --------------------------------------------------------------------------------------------------------


@pytest.fixture
def doubtful(workspace: Workspace) -> Workspace:
    """A once step that began, and nobody knows whether its effect is in place."""
    start(workspace)
    assert run(workspace, "a", "--once", *sh("exit 3")).code == 3
    return workspace


def test_in_place_is_completed_and_not_run(doubtful: Workspace) -> None:
    result = run(doubtful, "a", "--verify", "exit 0", *sh("touch ran"))
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)
    assert "in place" in result.err
    assert step(doubtful)["status"] == "completed"
    assert not (doubtful.path / "ran").exists()
    assert run(doubtful, "a", "--verify", "touch asked", *sh("touch ran")).code == 0
    assert not (doubtful.path / "asked").exists(), "what is completed is not looked at again"


def test_not_in_place_is_run_again(doubtful: Workspace) -> None:
    result = run(doubtful, "a", "--once", "--verify", "[ -e ran ]", *sh("echo words; touch ran"))
    assert (result.code, result.out) == (0, "words\n"), result
    assert (step(doubtful)["status"], step(doubtful)["attempts"]) == ("completed", 2)


@pytest.mark.parametrize("verify", ["exit 2", "exit 125", "exit 255", "kill -KILL $$", "kill -TERM $$", "no-such-program"])
def test_what_cannot_be_told_stays_in_doubt(doubtful: Workspace, verify: str) -> None:
    refused_after_words = run(doubtful, "a", "--verify", verify, *sh("touch ran"))
    assert refused_after_words.code == 20, refused_after_words
    assert "--verify" in refused_after_words.err
    assert not (doubtful.path / "ran").exists()
    assert in_doubt(doubtful)


def test_a_look_that_takes_too_long_tells_nothing(doubtful: Workspace) -> None:
    look = "echo $$ > new; mv new pid; exec sleep 60"
    assert run(doubtful, "a", "--timeout", "1s", "--verify", look, *sh("touch ran")).code == 20
    assert ended(pid(doubtful))
    assert in_doubt(doubtful)


def test_an_interrupt_while_looking(doubtful: Workspace, begin: Begin) -> None:
    running = begin("run", "deploy", "a", "--verify", HOLD, *sh("touch ran"))
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) in (20, 143)
    assert ended(pid(doubtful))
    assert in_doubt(doubtful)
    assert not (doubtful.path / "ran").exists()


def test_a_look_has_the_variables_and_keeps_off_stdin_and_stdout(doubtful: Workspace) -> None:
    look = 'cat > /dev/null; echo "$CHECKPOINT_ID $CHECKPOINT_STEP $CHECKPOINT_IDEMPOTENCY_KEY"; [ -e ran ]'
    result = run(doubtful, "a", "--verify", look, *sh("cat; touch ran"), input="for the command\n")
    assert result.code == 0
    assert result.out == "for the command\n"
    assert f"deploy a {doubtful.record()['run_id']}" in result.err


def test_a_look_without_a_command_is_refused(doubtful: Workspace) -> None:
    """`--verify "$CHECK"` with a variable that is not set would call everything in place."""
    refused(run(doubtful, "a", "--verify", "", *sh("touch ran")), 2, "--verify")
    assert in_doubt(doubtful)


def test_the_postcondition_holds(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--verify", "[ -e made ]", *sh("touch made")).code == 0
    assert step(workspace)["status"] == "completed"


@pytest.mark.parametrize("once", [(), ("--once",)])
def test_successful_but_not_in_place_is_failed(workspace: Workspace, once: tuple[str, ...]) -> None:
    start(workspace)
    result = run(workspace, "a", *once, "--verify", "[ -e made ]", *sh("exit 0"))
    assert result.code == 1
    assert "not in place" in result.err
    recorded = step(workspace)
    assert (recorded["status"], recorded["exit_code"]) == ("failed", 0)
    assert "not in place" in recorded["error"]
    # It is known not to be in place: no doubt, and it may be run again.
    assert run(workspace, "a", *once, "--verify", "[ -e made ]", *sh("touch made")).code == 0


def test_successful_and_nobody_can_look_is_not_completed(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--verify", "exit 127", *sh("exit 0")).code in (1, 20)
    assert step(workspace)["status"] == "failed"
    assert run(workspace, "b", "--once", "--verify", "exit 127", *sh("exit 0")).code in (1, 20)
    assert in_doubt(workspace, "b")


def test_once_failed_but_in_place_is_completed(workspace: Workspace) -> None:
    """The mail went out, and then the connection broke."""
    start(workspace)
    result = run(workspace, "a", "--once", "--verify", "[ -e sent ]", *sh("touch sent; exit 3"))
    assert result.code == 0
    assert step(workspace)["status"] == "completed"


def test_once_failed_and_not_in_place_is_plain_failed(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--once", "--verify", "[ -e sent ]", *sh("exit 3")).code == 3
    assert step(workspace)["status"] == "failed"
    assert not in_doubt(workspace)


@pytest.mark.parametrize("sent", [True, False])
def test_once_with_retries_looks_before_each(workspace: Workspace, sent: bool) -> None:
    start(workspace)
    send = "echo x >> count; exit 3" if sent else "echo x >> count; [ $CHECKPOINT_ATTEMPT = 2 ] && touch sent"
    look = "[ -e count ]" if sent else "[ -e sent ]"
    assert run(workspace, "a", "--once", "--retries", "3", "--verify", look, *sh(send)).code == 0
    assert (workspace.path / "count").read_text() == ("x\n" if sent else "x\nx\n")


def test_what_is_not_in_place_is_tried_again(workspace: Workspace) -> None:
    start(workspace)
    look = '[ "$(wc -l < count)" -ge 2 ]'
    assert run(workspace, "a", "--retries", "3", "--verify", look, *sh("echo x >> count")).code == 0
    assert (workspace.path / "count").read_text() == "x\nx\n"


def test_a_first_run_is_not_looked_at_before(workspace: Workspace) -> None:
    """The file may be there from the last release: only what began may be in place."""
    start(workspace)
    assert run(workspace, "a", "--once", "--verify", "true", *sh("touch ran")).code == 0
    assert (workspace.path / "ran").exists()


def test_a_killed_step_that_may_be_repeated_is_looked_at_first(workspace: Workspace, begin: Begin) -> None:
    free(workspace)
    running = begin("run", "deploy", "a", *sh(f"touch made; {HOLD}"))
    running.kill()
    running.wait()
    until(lambda: ended(pid(workspace)))
    assert run(workspace, "a", "--verify", "[ -e made ]", *sh("touch again")).code == 0
    assert step(workspace)["status"] == "completed"
    assert not (workspace.path / "again").exists()


def test_the_duration_of_what_was_only_looked_at_is_not_made_up(workspace: Workspace, begin: Begin) -> None:
    """A step that was killed, and looked at days later, did not run for days."""
    free(workspace)
    running = begin("run", "deploy", "a", "--once", *sh(HOLD))
    running.kill()
    os.killpg(pid(workspace), signal.SIGKILL)
    running.wait()
    until(lambda: ended(pid(workspace)))
    earlier = "2026-01-01T00:00:00.000Z"
    alter(workspace.file(), lambda content: content["steps"][0].update(begun_at=earlier))
    assert run(workspace, "a", "--verify", "true", "--", "true").code == 0
    assert step(workspace).get("duration_ms", 0) < 60_000


# --- run: the plan, and bad input -------------------------------------------------------------------------------------------


def test_a_step_that_is_not_in_the_plan(workspace: Workspace) -> None:
    start(workspace, "--steps", "a,b")
    before = workspace.snapshot()
    refused(run(workspace, "c", *sh("touch ran")), 10, "'c'", "a, b", "--add")
    assert workspace.snapshot() == before
    assert run(workspace, "c", "--add", *sh("touch ran")).code == 0
    content = workspace.record()
    assert [(step["name"], step["status"], step.get("added", False)) for step in content["steps"]] == [
        ("a", "pending", False),
        ("b", "pending", False),
        ("c", "completed", True),
    ]
    # What is there already is not added twice, and what was added is no other plan.
    assert run(workspace, "c", "--add", *sh("touch ran")).code == 0
    start(workspace, "--steps", "a,b")


def test_an_open_plan_grows(workspace: Workspace) -> None:
    start(workspace)
    for name in ("one", "two"):
        assert run(workspace, name, "--", "true").code == 0
    assert [step["name"] for step in workspace.record()["steps"]] == ["one", "two"]
    ok(workspace, "complete", "deploy")


@pytest.mark.parametrize("name", ["", "A", "-a", b"\xff", "x" * 65])
def test_no_step_can_be_called_so(workspace: Workspace, name: str | bytes) -> None:
    start(workspace)
    before = workspace.snapshot()
    result = workspace.tool("run", "deploy", "--add", *(("--",) if name == "-a" else ()), name, *sh("touch ran"))
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert workspace.snapshot() == before


def test_nothing_to_run_it_in(workspace: Workspace) -> None:
    refused(run(workspace, "a", *sh("touch ran")), 10, "no store")
    assert workspace.snapshot() == {}
    start(workspace)
    refused(workspace.tool("run", "other", "a", *sh("touch ran")), 10, "'other'")
    ok(workspace, "cancel", "deploy", "--reason", "x")
    before = workspace.snapshot()
    assert run(workspace, "a", *sh("touch ran")).code in (10, 15)
    assert workspace.snapshot() == before


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("no-such-program",), 127),
        (("./no-such-file",), 127),
        (("./no-such-folder/x",), 127),
        (("",), 127),
        (("./plain",), 126),
        (("./folder",), 126),
        (("./no-interpreter",), 127),
    ],
    ids=lambda argv: argv[0] or "empty" if isinstance(argv, tuple) else None,
)
@pytest.mark.parametrize("verb", [("run", "deploy", "a"), ("exec", "other")], ids=lambda verb: verb[0])
def test_what_cannot_be_run(workspace: Workspace, verb: tuple[str, ...], argv: tuple[str, ...], code: int) -> None:
    (workspace.path / "plain").write_text("#!/bin/sh\n")
    (workspace.path / "folder").mkdir()
    (workspace.path / "no-interpreter").write_text("#!/no/such/interpreter\n")
    (workspace.path / "no-interpreter").chmod(0o755)
    start(workspace, "--steps", "a")
    result = workspace.tool(*verb, "--", *argv)
    assert (result.code, result.out) == (code, ""), result
    assert result.err.count("\n") == 1
    assert repr(argv[0]) in result.err
    failed = step(workspace) if verb[0] == "run" else history(workspace, "other")[0]["steps"][0]
    assert (failed["status"], failed["exit_code"]) == ("failed", code)
    assert repr(argv[0]) in failed["error"]


def test_a_script_that_does_not_say_what_runs_it(workspace: Workspace) -> None:
    """As env, nice and nohup do: exec(3) gives it to sh."""
    start(workspace)
    (workspace.path / "plain").write_text('echo "ran $1"\n')
    (workspace.path / "plain").chmod(0o755)
    assert run(workspace, "a", "--", "./plain", "so") == (0, "ran so\n", "")


@pytest.mark.parametrize("verb", [("run", "deploy", "a"), ("exec", "other")], ids=lambda verb: verb[0])
@pytest.mark.parametrize("argv", [(), ("--",)], ids=["nothing", "--"])
def test_no_command(workspace: Workspace, verb: tuple[str, ...], argv: tuple[str, ...]) -> None:
    start(workspace, "--steps", "a")
    before = workspace.snapshot()
    refused(workspace.tool(*verb, *argv), 2, "command")
    assert workspace.snapshot() == before


@pytest.mark.parametrize("verb", [("run", "deploy", "a"), ("exec", "other")], ids=lambda verb: verb[0])
def test_ten_thousand_arguments_of_any_bytes(workspace: Workspace, verb: tuple[str, ...]) -> None:
    start(workspace)
    any = [bytes([number]) for number in range(1, 256)]
    any += [b"", b"\xff\xfe", b"a b", b"\n", b"$(id)", b"--json", b"--", b"--help", b"-", b"@/etc/passwd", b"--store", b"x"]
    argv = any + [b"%d" % number for number in range(10_000 - len(any))]
    code = "import os, sys; sys.stdout.buffer.write(b''.join(os.fsencode(a) + b'\\0' for a in sys.argv[1:]))"
    command = [TOOL, *verb, "--", sys.executable, "-c", code, *argv]
    done = subprocess.run(command, cwd=workspace.path, env=workspace.environ(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(argument + b"\0" for argument in argv)


@pytest.mark.parametrize("size", [1, 4096, 100_000])
def test_the_tail_is_the_end_of_the_output(workspace: Workspace, size: int) -> None:
    start(workspace)
    text = ("0123456789" * size)[:size]
    (workspace.path / "text").write_text(text)
    assert run(workspace, "a", "--", "cat", "text").out == text
    assert step(workspace)["output"] == text[-4096:]


@pytest.mark.parametrize("tail", [1, 10, 65_536])
def test_as_much_of_the_tail_as_was_said(workspace: Workspace, tail: int) -> None:
    start(workspace)
    text = "0123456789" * 7000
    (workspace.path / "text").write_text(text)
    assert run(workspace, "a", "--tail", str(tail), "--", "cat", "text").out == text
    assert step(workspace)["output"] == text[-tail:]


def test_no_tail(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--tail", "0", *sh("echo out; echo err >&2")) == (0, "out\n", "err\n")
    assert step(workspace).get("output", "") == ""


@pytest.mark.parametrize("text", ["-1", "65537", "x", "1.5"])
def test_no_such_tail(workspace: Workspace, text: str) -> None:
    start(workspace)
    refused(run(workspace, "a", f"--tail={text}", *sh("touch ran")), 2, "--tail")
    assert not (workspace.path / "ran").exists()


def test_a_tail_that_begins_inside_a_character(workspace: Workspace) -> None:
    start(workspace)
    (workspace.path / "text").write_text("ä€😀" * 3000)
    assert run(workspace, "a", "--tail", "4095", "--", "cat", "text").code == 0
    output = step(workspace)["output"]
    assert output.endswith("ä€😀" * 400)
    assert len(output.encode()) <= 4100
    assert ok(workspace, "verify").code == 0


def test_what_a_terminal_would_act_on_is_shown_harmless(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--", "printf", "\\033[2J\\a\\302\\233x\\0y; exit 3").code == 0
    assert run(workspace, "b", *sh("printf '\\033[2J'; exit 3")).code == 3
    for argv in (("show", "deploy"), ("resume", "deploy"), ("list",)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", ok(workspace, *argv).out)


@linux
def test_a_gigabyte_of_output_takes_no_memory(workspace: Workspace) -> None:
    start(workspace)
    peaks = []
    for name, size in (("small", 1), ("large", 1_000_000_000)):
        # The command looks at the tool when all is written, but for what the pipe holds.
        command = f"head -c {size} /dev/zero; sed -n 's/VmHWM:[ \\t]*//p' /proc/$(cat tool)/status > peak"
        script = 'echo $$ > tool; exec "$@" > /dev/null'
        result = workspace.run("sh", "-c", script, "sh", TOOL, "run", "deploy", name, *sh(command))
        assert result.code == 0, result
        peaks.append(int((workspace.path / "peak").read_text().split()[0]))
        assert len(step(workspace, name)["output"]) == min(size, 4096)
    assert peaks[1] - peaks[0] < 4096, f"{peaks} KiB"


def test_a_command_that_leaves_a_process_behind_is_not_waited_for(workspace: Workspace) -> None:
    start(workspace)
    leave = "sh -c 'echo $$ > new; mv new pid; exec sleep 60' & until [ -e pid ]; do sleep 0.01; done; echo started"
    with subprocess.Popen(
        [TOOL, "run", "deploy", "a", *sh(leave)], cwd=workspace.path, env=workspace.environ(), stdout=subprocess.PIPE
    ) as running:
        assert running.wait(timeout=20) == 0
        left = pid(workspace)
        try:
            assert runs(left), "it is meant to stay"
            assert running.stdout
            assert os.read(running.stdout.fileno(), 100) == b"started\n"
        finally:
            os.kill(left, signal.SIGKILL)
    recorded = step(workspace)
    assert (recorded["status"], recorded["output"]) == ("completed", "started\n")
    assert recorded["duration_ms"] < 20_000


def test_what_is_left_behind_may_go_on_writing(workspace: Workspace) -> None:
    start(workspace)
    late = "(until [ -e go ]; do sleep 0.02; done; echo late; echo $? > wrote) & echo started"
    result = workspace.run("sh", "-c", '"$@" > log; touch go', "sh", TOOL, "run", "deploy", "a", *sh(late))
    assert result.code == 0
    until((workspace.path / "wrote").exists)
    assert until(lambda: (workspace.path / "wrote").read_text()) == "0\n"
    until(lambda: (workspace.path / "log").read_text() == "started\nlate\n")
    assert step(workspace)["output"] == "started\n"


def test_a_left_process_and_the_next_step(workspace: Workspace) -> None:
    """A server that one step starts, and the next one asks."""
    free(workspace)
    assert run(workspace, "a", *sh("(echo $$ > /dev/null; exec sleep 60) > /dev/null 2>&1 & echo $! > pid")).code == 0
    try:
        assert run(workspace, "b", *sh('kill -0 "$(cat pid)"')).code == 0
    finally:
        os.kill(pid(workspace), signal.SIGKILL)


def test_a_command_that_closes_its_output_is_waited_for(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", *sh("echo last; exec >&- 2>&-; sleep 0.3; touch ran; exit 5")).code == 5
    assert (workspace.path / "ran").exists()
    assert step(workspace)["output"] == "last\n"


@pytest.mark.parametrize("tail", ["0", "4096"])
def test_a_reader_that_goes_away(workspace: Workspace, tail: str) -> None:
    start(workspace)
    script = '{ "$@"; echo $? > code; } | head -n 1'
    result = workspace.run("sh", "-c", script, "sh", TOOL, "run", "deploy", "a", "--tail", tail, "--", "yes")
    assert result.out == "y\n"
    assert (workspace.path / "code").read_text() == "141\n"
    assert (step(workspace)["status"], step(workspace)["signal"]) == ("failed", "SIGPIPE")


def test_a_reader_that_does_not_read_is_no_reason_to_stay_for_ever(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    # More than the pipe to the reader holds, and less than what the tool has in hand besides.
    talk = "echo $$ > new; mv new pid; head -c 100000 /dev/zero"
    running = begin("run", "deploy", "a", *sh(talk), stdout=subprocess.PIPE)
    until(lambda: ended(pid(workspace)))
    running.send_signal(signal.SIGTERM)
    code = running.wait(timeout=20)
    assert (code, step(workspace)["status"]) in ((0, "completed"), (143, "failed"))


def test_the_other_stream_lives_on_when_one_reader_is_gone(workspace: Workspace) -> None:
    start(workspace)
    command = "trap '' PIPE; yes 2> /dev/null; i=0; while [ $i -lt 500 ]; do echo err$i >&2; i=$((i+1)); done; exit 5"
    script = '{ "$@" 2>&3; echo $? > code; } 3> err | head -n 1'
    workspace.run("sh", "-c", script, "sh", TOOL, "run", "deploy", "a", *sh(command))
    assert (workspace.path / "code").read_text() == "5\n"
    lines = (workspace.path / "err").read_text().splitlines()
    assert lines[:500] == [f"err{number}" for number in range(500)]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("where", [">", "2>"])
@pytest.mark.parametrize("script", ["echo words; echo words >&2", "seq 100000; seq 100000 >&2"], ids=["few", "many"])
def test_output_that_cannot_be_written_is_no_success(workspace: Workspace, where: str, script: str) -> None:
    start(workspace)
    result = workspace.run("sh", "-c", f'"$@" {where} /dev/full', "sh", TOOL, "run", "deploy", "a", *sh(script))
    assert result.code != 0
    assert step(workspace)["status"] == "failed"
    assert "error" in step(workspace)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_the_tools_own_words_may_be_lost(workspace: Workspace) -> None:
    """What it says about a step that is done matters less than that it is done."""
    start(workspace)
    assert run(workspace, "a", "--", "true").code == 0
    assert workspace.run("sh", "-c", '"$@" 2> /dev/full', "sh", TOOL, "run", "deploy", "a", "--", "true").code == 0
    result = workspace.run("sh", "-c", '"$@" > /dev/full', "sh", TOOL, "run", "deploy", "b", "--json", "--", "true")
    assert result.code == 22, "applied, not reported"
    assert step(workspace, "b")["status"] == "completed"


# --- the record stays small and clean -------------------------------------------------------------------------------------


def test_a_thousand_steps_do_not_outgrow_the_record(workspace: Workspace) -> None:
    names = [f"s{number}" for number in range(1000)]
    start(workspace, "--steps", ",".join(names))
    done = {"status": "completed", "attempts": 1, "token": 1, "exit_code": 0, "duration_ms": 1, "output": "x" * 4096}
    moment = workspace.record()["created_at"]

    def most_are_done(content: dict[str, Any]) -> None:
        for step in content["steps"][:930]:
            step.update(done, begun_at=moment, ended_at=moment)

    alter(workspace.file(), most_are_done)
    assert workspace.file().stat().st_size > 3_900_000
    for name in names[930:932]:
        assert run(workspace, name, *sh("head -c 5000 /dev/zero | tr '\\0' y")).code == 0
    assert workspace.file().stat().st_size < 4 << 20
    assert step(workspace, names[931])["output"] == "y" * 4096, "the newest are kept"
    assert [step["status"] for step in workspace.record()["steps"][:932]] == ["completed"] * 932
    assert ok(workspace, "verify").code == 0


def test_output_that_is_written_long_does_not_outgrow_the_record(workspace: Workspace) -> None:
    """A control character takes six bytes in JSON. In all of a run 256 KiB of output are kept."""
    start(workspace)
    for number in range(6):
        assert run(workspace, f"s{number}", "--tail", "65536", *sh("head -c 65536 /dev/zero | tr '\\0' '\\1'")).code == 0
    kept = [len(step.get("output", "")) for step in workspace.record()["steps"]]
    assert kept[-1] == 65536, "the newest are kept"
    assert sum(kept) <= 256 * 1024
    assert workspace.file().stat().st_size < 6 * 256 * 1024 + 10_000
    assert ok(workspace, "verify").code == 0


SAMPLES = [sample for sample in POSITIVES if sample.name in ("aws-key-id", "github-classic", "slack-webhook", "jwt", "npmrc")]


@pytest.mark.parametrize(
    ("sample", "verb"),
    [*((sample, "run") for sample in SAMPLES), (SAMPLES[0], "exec")],
    ids=lambda part: getattr(part, "name", part),
)
def test_secrets_are_seen_on_the_terminal_and_not_in_the_record(workspace: Workspace, sample: Sample, verb: str) -> None:
    assert len(SAMPLES) == 5
    start(workspace)
    (workspace.path / "words").write_text(f"before\n{sample.text}\nafter\n")
    which = ("run", "deploy", "a") if verb == "run" else ("exec", "other")
    result = workspace.tool(*which, "--", "cat", "words")
    assert result == (0, f"before\n{sample.text}\nafter\n", ""), "the command's output is nobody else's business"
    kept = [path for path in workspace.store.rglob("*.json") if b"before" in path.read_bytes()]
    assert len(kept) == 1
    assert sample.secret not in kept[0].read_text()
    assert sample.rule in kept[0].read_text(), "and it says what was left out"
    assert "after" in kept[0].read_text()


@pytest.mark.parametrize("tail", [5, 20, 30, 60])
def test_no_piece_of_a_secret_is_left_where_the_tail_begins(workspace: Workspace, tail: int) -> None:
    start(workspace)
    (sample,) = (sample for sample in POSITIVES if sample.name == "github-classic")
    assert run(workspace, "a", "--tail", str(tail), "--", "printf", "%s", sample.text).out == sample.text
    output = step(workspace)["output"]
    assert not any(sample.secret[-length:] in output for length in range(5, 41))


def test_no_piece_of_a_private_key_is_left_where_the_tail_begins(workspace: Workspace) -> None:
    start(workspace)
    sample = next(sample for sample in POSITIVES if sample.rule == "private-key" and sample.text.count("\n") > 9)
    (workspace.path / "key").write_text(sample.text)
    assert run(workspace, "a", "--tail", "200", "--", "cat", "key").out == sample.text
    output = step(workspace)["output"]
    body = [line for line in sample.text.splitlines() if len(line) > 40 and "---" not in line]
    assert len(body) > 5
    assert not any(line[-20:] in output for line in body)


def test_a_secret_that_comes_in_pieces(workspace: Workspace) -> None:
    start(workspace)
    (sample,) = (sample for sample in POSITIVES if sample.name == "github-classic")
    half = len(sample.text) // 2
    script = 'printf %s "$0"; sleep 0.1; printf %s "$1"'
    result = run(workspace, "a", "--", "sh", "-c", script, sample.text[:half], sample.text[half:])
    assert result.out == sample.text
    assert sample.secret[-10:] not in workspace.file().read_text()


def test_a_secret_in_the_name_of_what_cannot_be_run(workspace: Workspace) -> None:
    start(workspace)
    (sample,) = (sample for sample in POSITIVES if sample.name == "github-classic")
    assert run(workspace, "a", "--", sample.secret).code == 127
    assert sample.secret not in workspace.file().read_text()


# --- killed ---------------------------------------------------------------------------------------------------------------


def test_the_tool_is_killed(workspace: Workspace, begin: Begin) -> None:
    free(workspace, "--steps", "a")
    running = begin("run", "deploy", "a", *sh(f"sh -c 'echo $$ > child; exec sleep 60' & {HOLD}"))
    grandchild = pid(workspace, "child")
    running.kill()
    running.wait()
    # Its guard ends the command and what that has started.
    until(lambda: ended(pid(workspace)))
    until(lambda: ended(grandchild))
    assert status(workspace) == (31, "interrupted")
    shown = ok(workspace, "show", "deploy", "--json").json
    assert (shown["owner_state"], shown["in_doubt"], shown["next"]) == ("dead", ["a"], "a")
    again = run(workspace, "a", *sh("echo again"))
    assert (again.code, again.out) == (0, "again\n")
    assert step(workspace)["attempts"] == 2


def test_the_tool_is_killed_and_the_command_ignores_sigterm(workspace: Workspace, begin: Begin) -> None:
    free(workspace)
    running = begin("run", "deploy", "a", *sh(STUBBORN))
    running.kill()
    running.wait()
    assert status(workspace) == (30, "running"), "the command still runs"
    refused(workspace.tool("update", "deploy", "--note", "x", "--owner", "bob"), 11, str(pid(workspace)))
    # Its guard gives it five seconds; who would take over waits for that.
    taken = ok(workspace, "resume", "deploy", "--owner", "bob", "--json").json
    assert (taken["next"], taken["in_doubt"]) == ("a", ["a"])
    assert ended(pid(workspace))


def test_the_command_is_killed(workspace: Workspace, begin: Begin) -> None:
    free(workspace)
    running = begin("run", "deploy", "a", *sh(HOLD))
    os.kill(pid(workspace), signal.SIGKILL)
    assert running.wait(timeout=20) == 137
    assert (step(workspace)["status"], step(workspace)["signal"], step(workspace)["cause"]) == (
        "failed",
        "SIGKILL",
        "interrupt",
    )
    assert status(workspace) == (31, "interrupted")


def test_both_are_killed(workspace: Workspace, begin: Begin) -> None:
    free(workspace)
    running = begin("run", "deploy", "a", *sh(HOLD))
    os.kill(running.pid, signal.SIGKILL)
    os.kill(pid(workspace), signal.SIGKILL)
    running.wait()
    until(lambda: ended(pid(workspace)))
    assert status(workspace) == (31, "interrupted")
    assert step(workspace)["status"] == "begun"


def survive(workspace: Workspace, begin: Begin, *argv: str) -> int:
    """The tool and its guard are killed; the pid of the command, which goes on."""
    running = begin(*argv, *sh(HOLD))
    command = pid(workspace)
    for one in (*(child for child in children(running.pid) if child != command), running.pid):
        os.kill(one, signal.SIGKILL)
    running.wait()
    assert runs(command)
    return command


def test_all_are_killed_but_the_command(workspace: Workspace, begin: Begin) -> None:
    """Nobody is left to end it: whoever comes next must not run beside it, and the truth is that it runs."""
    free(workspace)
    command = survive(workspace, begin, "run", "deploy", "a")
    try:
        assert status(workspace) == (30, "running")
        refused(run(workspace, "a", *sh("touch ran"), timeout=30), 11, str(command))
        assert not (workspace.path / "ran").exists()
    finally:
        os.kill(command, signal.SIGKILL)
    until(lambda: ended(command))
    assert status(workspace) == (31, "interrupted")
    assert run(workspace, "a", *sh("touch ran")).code == 0


def test_all_are_killed_but_the_command_of_exec(workspace: Workspace, begin: Begin) -> None:
    command = survive(workspace, begin, "exec", "backup")
    try:
        assert status(workspace, "backup") == (30, "running")
        assert workspace.tool("exec", "backup", "--", "true").code == 0
        assert [row["status"] for row in history(workspace, "backup")].count("in_progress") == 1, "it is not closed"
    finally:
        os.kill(command, signal.SIGKILL)
    until(lambda: ended(command))
    assert workspace.tool("exec", "backup", "--no-overlap", "--", "true").code == 0
    assert sorted(row["status"] for row in history(workspace, "backup")) == ["completed", "completed", "failed"]


def test_the_guard_is_killed(workspace: Workspace, begin: Begin) -> None:
    start(workspace)
    running = begin("run", "deploy", "a", *sh("echo $$ > new; mv new pid; until [ -e end ]; do sleep 0.02; done; exit 3"))
    for child in children(running.pid):
        if child != pid(workspace):
            os.kill(child, signal.SIGKILL)
    (workspace.path / "end").touch()
    assert running.wait(timeout=20) == 3
    assert step(workspace)["exit_code"] == 3


def no_process_is_left(workspace: Workspace) -> bool:
    done = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True)
    return not [line for line in done.stdout.splitlines() if str(workspace.store) in line]


def test_nobody_is_left_behind(workspace: Workspace) -> None:
    start(workspace)
    store = ("--store", str(workspace.store))
    for argv in (("true",), ("false",), ("no-such-program",)):
        run(workspace, "a", *store, "--", *argv)
    assert no_process_is_left(workspace)


def reboot(content: dict[str, Any]) -> None:
    for process in (content["lease"], *(step["process"] for step in content["steps"] if step.get("process"))):
        process["boot_id"] = OTHER_BOOT
    content["heartbeat_at"] = content["lease"]["acquired_at"] = "2020-01-01T00:00:00Z"


def reuse(content: dict[str, Any]) -> None:
    """The pids of the record live, and are others'."""
    for process in (content["lease"], *(step["process"] for step in content["steps"] if step.get("process"))):
        process.update({name: os.getpid() for name in ("pid", "run_pid") if name in process})


@linux
@pytest.mark.parametrize("verb", ["run", "exec"])
@pytest.mark.parametrize("change", [reboot, reuse], ids=lambda change: change.__name__)
def test_after_a_reboot_or_when_a_pid_was_reused(
    workspace: Workspace, begin: Begin, verb: str, change: Callable[[dict[str, Any]], None]
) -> None:
    free(workspace)
    which = ("run", "deploy", "a") if verb == "run" else ("exec", "other")
    name = which[1]
    running = begin(*which, *sh(HOLD))
    assert status(workspace, name) == (30, "running")
    # The processes live on, and are not those of the record any more.
    alter(workspace.file(name), change)
    # What the step started is known by its environment, but not as that of another boot.
    assert status(workspace, name) == ((31, "interrupted") if change is reboot else (30, "running"))
    running.kill()
    running.wait()
    until(lambda: ended(pid(workspace)))
    assert status(workspace, name) == (31, "interrupted")
    assert workspace.tool(*which, "--", "true").code == 0
    if verb == "exec":
        assert status(workspace, name) == (0, "completed")
        assert status(workspace, name, "--previous") == (31, "interrupted")


@linux
def test_a_run_held_by_time_is_interrupted_by_a_reboot(workspace: Workspace) -> None:
    start(workspace, "--lease", "1h")
    assert status(workspace) == (30, "running")
    alter(workspace.file(), reboot)
    assert status(workspace) == (31, "interrupted")


# In their order: the claim, the two processes, the begin, [the command], the end, the release.
POINTS = [
    *(("rename", number) for number in range(1, 5)),
    *(("sync", number) for number in range(3, 10)),
    *(("fork", number) for number in range(1, 3)),
    ("wait", 1),
]
CALLS = {
    "fork": ("clone", "clone3", "fork", "vfork"),
    "sync": ("fsync", "fdatasync"),
    "rename": ("rename", "renameat", "renameat2"),
    "wait": ("wait4", "waitid"),
}


@linux
@pytest.mark.parametrize(
    ("call", "number", "once"),
    [*((*point, True) for point in POINTS), *(("rename", number, False) for number in (2, 3)), ("sync", 5, False)],
)
def test_killed_between_begin_and_end_what_is_said_is_true(workspace: Workspace, call: str, number: int, once: bool) -> None:
    strace = need_program("strace")
    free(workspace, "--steps", "a")
    more = ("--once",) if once else ()
    names = ",".join(CALLS[call])
    tool = (TOOL, "run", "deploy", "a", *more, *sh("echo x >> count"))
    argv = (strace, "-qq", "-o", "log", "-e", f"trace={names}", "-e", f"inject={names}:signal=SIGKILL:when={number}", *tool)
    died = workspace.run(*argv)
    log = (workspace.path / "log").read_text()
    if died.code == 0:
        pytest.skip(f"it makes no {number} such calls")
    assert "SIGKILL" in log, died
    count = workspace.path / "count"

    # What was begun may still be on its way: the guard ends it, or it ends by itself.
    until(lambda: workspace.tool("status", "deploy").code != 30)
    ran = count.exists()
    recorded = step(workspace)
    shown = ok(workspace, "show", "deploy", "--json").json
    code, word = status(workspace)
    if recorded["status"] == "pending":
        assert not ran
        assert shown["in_doubt"] == []
    elif recorded["status"] == "begun":
        assert shown["in_doubt"] == ["a"]
    else:
        assert recorded["status"] == "completed"
        assert ran
        assert shown["in_doubt"] == []
    assert (code, word) == (31, "interrupted")
    assert shown["next"] == (None if recorded["status"] == "completed" else "a")
    resumed = ok(workspace, "resume", "deploy", "--json").json
    assert (resumed["in_doubt"], resumed["next"]) == (shown["in_doubt"], shown["next"])

    again = run(workspace, "a", *more, *sh("echo x >> count"))
    if recorded["status"] == "completed":
        assert again.code == 0
        assert count.read_text() == "x\n"
    elif recorded["status"] == "begun" and once:
        refused(again, 20)
        assert count.exists() == ran
    else:
        assert again.code == 0, again
        assert count.read_text() == ("x\nx\n" if ran else "x\n")


@linux
def test_the_end_that_cannot_be_written_leaves_the_step_in_doubt(workspace: Workspace) -> None:
    free(workspace, "--steps", "a")
    names = ",".join(CALLS["rename"])
    argv = (need_program("strace"), "-qq", "-o", "log", "-e", f"inject={names}:error=ENOSPC:when=3+", TOOL)
    result = workspace.run(*argv, "run", "deploy", "a", *sh("echo x >> count"))
    assert (result.code, (workspace.path / "count").read_text()) == (17, "x\n"), result
    assert "step 'a' of deploy ran (exit status 0), then: the store" in result.err
    assert "No space left" in result.err
    assert (step(workspace)["status"], status(workspace)) == ("begun", (31, "interrupted"))
    assert workspace.temporaries() == []


@linux
def test_a_begin_that_cannot_be_written_runs_nothing(workspace: Workspace) -> None:
    start(workspace, "--steps", "a")
    before = workspace.snapshot()
    names = ",".join(CALLS["rename"])
    argv = (need_program("strace"), "-qq", "-o", "/dev/null", "-e", f"inject={names}:error=ENOSPC:when=1+", TOOL)
    assert workspace.run(*argv, "run", "deploy", "a", *sh("touch ran")).code == 17
    assert workspace.snapshot() == before


# --- exec -----------------------------------------------------------------------------------------------------------------


def test_exec_is_a_run_of_its_own(workspace: Workspace) -> None:
    result = workspace.tool("exec", "backup", *sh("echo out; echo err >&2; env | grep '^CHECKPOINT_' | sort > given"))
    assert result == (0, "out\n", "err\n")
    (row,) = history(workspace, "backup")
    assert (row["status"], row["id"], row["idempotency_key"]) == ("completed", "backup", None)
    assert re.fullmatch(UUID, row["run_id"])
    (step,) = row["steps"]
    assert (step["name"], step["status"], step["exit_code"]) == ("command", "completed", 0)
    assert (workspace.store / "done" / "backup" / f"{row['run_id']}.json").is_file()
    given = dict(line.split("=", 1) for line in (workspace.path / "given").read_text().splitlines())
    assert (given["CHECKPOINT_ID"], given["CHECKPOINT_RUN_ID"], given["CHECKPOINT_STEP"]) == (
        "backup",
        row["run_id"],
        "command",
    )
    assert list(workspace.store.glob("*.json")) == [], "nothing is left unfinished"


def test_exec_is_recorded_before_the_command_starts(workspace: Workspace) -> None:
    seen = json.loads(workspace.tool("exec", "backup", *sh('cat "memory/checkpoints/$CHECKPOINT_ID.json"')).out)
    assert (seen["status"], seen["steps"][0]["status"]) == ("in_progress", "begun")
    assert seen["lease"]["pid"] is not None
    assert seen["run_id"] == history(workspace, "backup")[0]["run_id"]


@pytest.mark.parametrize("code", [1, 3, 11, 126, 127, 255])
def test_exec_fails_as_its_command_does(workspace: Workspace, code: int) -> None:
    result = workspace.tool("exec", "backup", *sh(f"echo words; exit {code}"))
    assert (result.code, result.out) == (code, "words\n")
    (row,) = history(workspace, "backup")
    assert (row["status"], row["steps"][0]["exit_code"], row["steps"][0]["output"]) == ("failed", code, "words\n")
    assert status(workspace, "backup") == (33, "failed")
    assert workspace.tool("resume").code == 3, "a run of cron's is nobody's to resume"


def test_each_exec_has_a_run_id_of_its_own_and_they_sort_by_time(workspace: Workspace) -> None:
    for code in (0, 1, 0):
        assert workspace.tool("exec", "backup", *sh(f"exit {code}")).code == code
    rows = history(workspace, "backup")
    assert [row["status"] for row in rows] == ["completed", "failed", "completed"]
    assert len({row["run_id"] for row in rows}) == 3
    assert sorted(row["run_id"] for row in rows) == [row["run_id"] for row in rows]


def test_exec_json(workspace: Workspace) -> None:
    result = workspace.tool("exec", "backup", "--json", *sh("echo out; exit 3"))
    assert (result.code, result.err) == (3, "out\n")
    assert (result.json["status"], result.json["steps"][0]["exit_code"]) == ("failed", 3)


def test_exec_times_out(workspace: Workspace) -> None:
    assert workspace.tool("exec", "backup", "--timeout", "1s", *sh("exec sleep 60")).code == 124
    assert status(workspace, "backup") == (32, "timed_out")
    assert history(workspace, "backup")[0]["status"] == "failed"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_exec_is_interrupted(workspace: Workspace, begin: Begin, name: str) -> None:
    running = begin("exec", "backup", *sh(HOLD))
    assert status(workspace, "backup") == (30, "running")
    running.send_signal(signal.Signals[name])
    assert running.wait(timeout=20) == 128 + signal.Signals[name]
    assert status(workspace, "backup") == (31, "interrupted")
    assert history(workspace, "backup")[0]["steps"][0]["cause"] == "interrupt"


def test_execs_that_overlap_go_on_beside_each_other(workspace: Workspace, begin: Begin) -> None:
    begin("exec", "backup", *sh(HOLD))
    assert workspace.tool("exec", "backup", "--", "true").code == 0
    rows = {row["status"]: row for row in history(workspace, "backup")}
    assert set(rows) == {"in_progress", "completed"}
    assert rows["in_progress"]["id"] == "backup"
    assert re.fullmatch("backup-[0-9a-f]{12}", rows["completed"]["id"])


def test_many_execs_at_once(workspace: Workspace) -> None:
    argv = [TOOL, "exec", "backup", *sh("echo x >> count; sleep 0.2")]
    many = [subprocess.Popen(argv, cwd=workspace.path, env=workspace.environ()) for _ in range(6)]
    assert [one.wait(timeout=60) for one in many] == [0] * 6
    rows = history(workspace, "backup")
    assert [row["status"] for row in rows] == ["completed"] * 6
    assert len({row["run_id"] for row in rows}) == 6
    assert (workspace.path / "count").read_text() == "x\n" * 6


def test_no_overlap(workspace: Workspace, begin: Begin) -> None:
    running = begin("exec", "backup", *sh("echo $$ > new; mv new pid; until [ -e end ]; do sleep 0.02; done"))
    before = workspace.snapshot()
    refused(workspace.tool("exec", "backup", "--no-overlap", *sh("touch ran")), 11, str(running.pid))
    assert workspace.snapshot() == before
    (workspace.path / "end").touch()
    assert running.wait(timeout=20) == 0
    assert workspace.tool("exec", "backup", "--no-overlap", *sh("touch ran")).code == 0


@pytest.mark.parametrize("later", [(), ("--key", "k")], ids=["plain", "keyed"])
def test_no_overlap_with_one_that_has_an_id_of_its_own(workspace: Workspace, begin: Begin, later: tuple[str, ...]) -> None:
    """One that began beside another has another id, and is one of the same workflow all the same."""
    first = begin("exec", "backup", *sh("echo $$ > new; mv new pid; until [ -e end ]; do sleep 0.02; done"))
    second = begin("exec", "backup", *sh(HOLD))
    (workspace.path / "end").touch()
    assert first.wait(timeout=20) == 0
    assert second.poll() is None
    refused(workspace.tool("exec", "backup", "--no-overlap", *later, *sh("touch ran")), 11)
    assert not (workspace.path / "ran").exists()


def test_one_of_many_at_once_runs_without_overlap(workspace: Workspace) -> None:
    argv = [TOOL, "exec", "backup", "--no-overlap", *sh("echo x >> count; until [ -e end ]; do sleep 0.02; done")]
    null = subprocess.DEVNULL
    many = [subprocess.Popen(argv, cwd=workspace.path, env=workspace.environ(), stderr=null) for _ in range(5)]
    until(lambda: sum(one.poll() is not None for one in many) == 4)
    (workspace.path / "end").touch()
    assert sorted(one.wait(timeout=20) for one in many) == [0, 11, 11, 11, 11]
    assert (workspace.path / "count").read_text() == "x\n"


@pytest.mark.parametrize("more", [(), ("--no-overlap",)], ids=["plain", "no-overlap"])
def test_the_next_exec_closes_one_that_was_killed(workspace: Workspace, begin: Begin, more: tuple[str, ...]) -> None:
    running = begin("exec", "backup", *sh(HOLD))
    running.kill()
    running.wait()
    until(lambda: ended(pid(workspace)))
    assert status(workspace, "backup") == (31, "interrupted")
    assert workspace.tool("exec", "backup", *more, "--", "true").code == 0
    assert status(workspace, "backup") == (0, "completed")
    assert status(workspace, "backup", "--previous") == (31, "interrupted")
    assert [row["status"] for row in history(workspace, "backup")] == ["failed", "completed"]
    assert list(workspace.store.glob("*.json")) == []


def test_the_next_exec_closes_one_that_had_an_id_of_its_own(workspace: Workspace, begin: Begin) -> None:
    begin("exec", "backup", *sh(HOLD))
    second = begin("exec", "backup", *sh(HOLD))
    second.kill()
    second.wait()
    until(lambda: ended(pid(workspace)))
    assert workspace.tool("exec", "backup", "--", "true").code == 0
    assert [row["status"] for row in history(workspace, "backup")].count("in_progress") == 1


def test_exec_with_a_key_runs_until_it_has_succeeded_once(workspace: Workspace) -> None:
    attempt = sh('echo "$CHECKPOINT_IDEMPOTENCY_KEY" >> count; exit $((CHECKPOINT_ATTEMPT < 3))')
    codes = [workspace.tool("exec", "mail", "--key", "may", *attempt).code for _ in range(5)]
    assert codes == [1, 1, 0, 0, 0]
    keys = (workspace.path / "count").read_text().splitlines()
    assert len(keys) == 3
    assert len(set(keys)) == 1
    (row,) = history(workspace, "mail")
    assert (row["status"], row["idempotency_key"], row["steps"][0]["attempts"]) == ("completed", "may", 3)
    assert workspace.tool("exec", "mail", "--key", "june", "--", "true").code == 0
    assert len(history(workspace, "mail")) == 2


def test_exec_with_a_key_that_failed_is_unfinished_and_free(workspace: Workspace) -> None:
    assert workspace.tool("exec", "mail", "--key", "may", *sh("exit 3")).code == 3
    (row,) = history(workspace, "mail")
    assert (row["status"], row["lease"]) == ("in_progress", None)
    assert status(workspace, "mail") == (33, "failed")


def test_exec_with_a_key_says_that_it_is_done(workspace: Workspace) -> None:
    assert workspace.tool("exec", "mail", "--key", "may", "--", "true").code == 0
    before = workspace.snapshot()
    again = workspace.tool("exec", "mail", "--key", "may", "--", "true")
    assert (again.code, again.out, again.err.count("\n")) == (0, "", 1)
    assert workspace.snapshot() == before


def test_a_key_of_exec_goes_with_one_command(workspace: Workspace) -> None:
    assert workspace.tool("exec", "ops", "--key", "r7", "--", "echo", "staging").out == "staging\n"
    before = workspace.snapshot()
    for other in (["echo", "PRODUCTION"], ["echo"], ["echo", "staging", ""], ["echo staging"]):
        refused(workspace.tool("exec", "ops", "--key", "r7", "--", *other), 14, "key 'r7'", "another command", "another key")
    secret = workspace.tool("exec", "ops", "--key", "r7", "--", "deploy", "--password=hunter2pw")
    refused(secret, 14)
    assert "hunter2pw" not in secret.err
    assert workspace.snapshot() == before
    assert workspace.tool("exec", "ops", "--key", "r7", "--", "echo", "staging").code == 0
    assert workspace.tool("exec", "ops", "--key", "r8", "--", "echo", "PRODUCTION").out == "PRODUCTION\n"


def test_words_of_a_command_are_not_joined(workspace: Workspace) -> None:
    words = [("a b",), ("a", "b"), ("a\nb",), ("a", "", "b"), (b"a\xffb",), ("a\ufffdb",)]
    for number, one in enumerate(words):
        assert workspace.tool("exec", "ops", "--key", str(number), "--", "true", *one).code == 0
        for other in words:
            code = workspace.tool("exec", "ops", "--key", str(number), "--", "true", *other).code
            assert code == (0 if other == one else 14), (one, other)


def test_a_failed_command_of_a_key_is_changed_by_taking_it_back(workspace: Workspace) -> None:
    assert workspace.tool("exec", "ops", "--key", "r7", *sh("exit 3")).code == 3
    (row,) = history(workspace, "ops")
    other = workspace.tool("exec", "ops", "--key", "r7", *sh("touch ran"))
    refused(other, 14, "unfinished", f"checkpoint-tool update {row['id']} --retry command")
    assert not (workspace.path / "ran").exists()
    (row,) = history(workspace, "ops")
    assert (row["status"], row["lease"]) == ("in_progress", None), "the refused one does not keep it"
    assert workspace.tool("exec", "ops", "--key", "r7", *sh("exit 3")).code == 3, "the same one is tried again"
    assert workspace.tool("update", row["id"], "--retry", "command").code == 0
    assert workspace.tool("exec", "ops", "--key", "r7", *sh("touch ran")).code == 0
    assert (workspace.path / "ran").exists()


def test_a_killed_command_of_a_key_is_not_followed_by_another(workspace: Workspace, begin: Begin) -> None:
    running = begin("exec", "mail", "--key", "may", *sh(HOLD))
    refused(workspace.tool("exec", "mail", "--key", "may", "--", "true"), 11)
    running.kill()
    running.wait()
    until(lambda: ended(pid(workspace)))
    refused(workspace.tool("exec", "mail", "--key", "may", *sh("touch ran")), 14, "another command")
    assert not (workspace.path / "ran").exists()


def without_command(path: Path) -> None:
    """As version 0.1.0 wrote it."""
    content = json.loads(path.read_text())
    content.pop("invoked", None)
    for one in content["steps"]:
        one.pop("command_sha256", None)
    del content["digest"]
    raw = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_text(json.dumps(content | {"digest": hashlib.sha256(raw + b"\n").hexdigest()}))


def test_a_receipt_of_a_version_that_recorded_no_command(workspace: Workspace) -> None:
    assert workspace.tool("exec", "ops", "--key", "r7", "--", "true").code == 0
    (receipt,) = (workspace.store / "done").glob("ops-*.json")
    without_command(receipt)
    assert workspace.tool("verify").code == 0
    assert workspace.tool("exec", "ops", "--key", "r7", *sh("touch ran")).code == 0
    assert not (workspace.path / "ran").exists()
    # One that was left unfinished then goes on, and from now on its command is known.
    assert workspace.tool("exec", "ops", "--key", "r9", "--", "false").code == 1
    (unfinished,) = workspace.store.glob("ops-*.json")
    without_command(unfinished)
    assert workspace.tool("exec", "ops", "--key", "r9", *sh("exit 4")).code == 4
    refused(workspace.tool("exec", "ops", "--key", "r9", "--", "true"), 14)


def test_without_a_key_each_exec_may_be_another_command(workspace: Workspace) -> None:
    for text in ("exit 0", "exit 3", "exit 4"):
        workspace.tool("exec", "backup", *sh(text))
    rows = history(workspace, "backup")
    assert sorted(row["steps"][0]["exit_code"] for row in rows) == [0, 3, 4]
    assert {row["invoked"] for row in rows} == {True}
    assert len({row["steps"][0]["command_sha256"] for row in rows}) == 3


def test_what_exec_begins_is_marked_so(workspace: Workspace) -> None:
    workspace.tool("exec", "ops", "--key", "r7", "--", "true")
    workspace.tool("exec", "ops", "--key", "r8", "--", "false")
    assert [row["invoked"] for row in history(workspace, "ops")] == [True, True]
    start(workspace)
    assert workspace.record()["invoked"] is False


def test_a_completed_step_refuses_another_command_in_the_same_attempt(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", *sh("echo one >> ran")).code == 0
    assert run(workspace, "a", *sh("echo one >> ran")).code == 0
    before = workspace.snapshot()
    refused(run(workspace, "a", *sh("echo two >> ran")), 14, "'a'", "another command", "a name of its own")
    assert workspace.snapshot() == before
    refused(workspace.tool("begin", "deploy", "a", "--", "other"), 14)
    assert workspace.tool("begin", "deploy", "a").out == "done\n", "a caller who names none"
    # A later claim: the script was changed since.
    assert workspace.tool("release", "deploy").code == 0
    assert workspace.tool("resume", "deploy").code == 0
    assert run(workspace, "a", *sh("echo two >> ran")).code == 0
    assert (workspace.path / "ran").read_text() == "one\n"


def test_another_command_may_try_what_one_has_failed(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--", "false").code == 1
    assert run(workspace, "a", "--", "true").code == 0
    refused(run(workspace, "a", "--", "false"), 14)


def test_a_step_that_a_person_settled_takes_any_command(workspace: Workspace) -> None:
    start(workspace)
    assert run(workspace, "a", "--", "false").code == 1
    assert workspace.tool("update", "deploy", "--complete", "a").code == 0
    assert run(workspace, "a", "--", "true").code == 0


def test_a_finished_run_takes_any_command_as_done(workspace: Workspace) -> None:
    start(workspace, "--steps", "a", "--key", "k")
    (row,) = history(workspace, "deploy")
    assert workspace.tool("run", row["id"], "a", "--", "true").code == 0
    assert workspace.tool("complete", row["id"]).code == 0
    assert workspace.tool("run", row["id"], "a", "--", "false").code == 0


def test_exec_with_a_key_twice_at_once(workspace: Workspace, begin: Begin) -> None:
    begin("exec", "mail", "--key", "may", *sh(HOLD))
    refused(workspace.tool("exec", "mail", "--key", "may", *sh("touch ran")), 11)
    assert not (workspace.path / "ran").exists()


def test_exec_with_a_key_that_was_killed_is_tried_again(workspace: Workspace, begin: Begin) -> None:
    command = sh(f"[ $CHECKPOINT_ATTEMPT = 1 ] || {{ echo $CHECKPOINT_ATTEMPT; exit 0; }}; {HOLD}")
    running = begin("exec", "mail", "--key", "may", *command)
    running.kill()
    running.wait()
    until(lambda: ended(pid(workspace)))
    assert status(workspace, "mail") == (31, "interrupted")
    assert workspace.tool("exec", "mail", "--key", "may", *command).out == "2\n"
    assert status(workspace, "mail") == (0, "completed")


def test_a_label_is_put_before_the_run_id(workspace: Workspace) -> None:
    given = workspace.tool("exec", "backup", "--label", "cron", *sh("echo $CHECKPOINT_RUN_ID")).out.strip()
    assert re.fullmatch(f"cron:{UUID}", given)
    assert history(workspace, "backup")[0]["run_id"] == given
    assert workspace.tool("exec", "backup", "--", "false").code == 1
    for name in (given, given.removeprefix("cron:")):
        assert status(workspace, name) == (0, "completed")
        assert ok(workspace, "show", name, "--json").json["run_id"] == given
    assert ok(workspace, "status", given, "--json").json["run_id"] == given


def test_a_labelled_run_is_found_while_it_runs(workspace: Workspace, begin: Begin) -> None:
    begin("exec", "backup", "--label", "cron", *sh(HOLD))
    given = workspace.record("backup")["run_id"]
    assert given.startswith("cron:")
    assert status(workspace, given) == (30, "running")


@pytest.mark.parametrize("label", ["", "a:b", "../x", "x" * 65])
def test_no_such_label(workspace: Workspace, label: str) -> None:
    refused(workspace.tool("exec", "backup", "--label", label, *sh("touch ran")), 2, "label")
    assert workspace.snapshot() == {}


def test_a_label_and_a_key_are_two_names_for_one_thing(workspace: Workspace) -> None:
    refused(workspace.tool("exec", "mail", "--label", "cron", "--key", "may", *sh("touch ran")), 2, "--label", "--key")
    assert workspace.snapshot() == {}


@pytest.mark.parametrize("name", ["Backup", ".."])
def test_no_such_workflow(workspace: Workspace, name: str) -> None:
    refused(workspace.tool("exec", name, *sh("touch ran")), 2)
    assert workspace.snapshot() == {}


def test_exec_does_not_meddle_with_a_workflow_of_the_same_name(workspace: Workspace) -> None:
    free(workspace, "--steps", "a,b")
    before = workspace.snapshot()
    refused(workspace.tool("exec", "deploy", *sh("touch ran")), 14, "deploy")
    assert workspace.snapshot() == before


def test_exec_from_a_line_of_cron(workspace: Workspace) -> None:
    """Hardly any environment, no terminal, no input, and whatever is printed becomes a mail."""
    line = f"{shlex.quote(TOOL)} exec backup --label cron --no-overlap -- sh -c 'cat; true' < /dev/null"
    done = workspace.run("env", "-i", "/bin/sh", "-c", f"cd {shlex.quote(str(workspace.path))} && {line}")
    assert done == (0, "", "")


# --- status ---------------------------------------------------------------------------------------------------------------


def expire(content: dict[str, Any]) -> None:
    content["expires_at"] = "2020-01-01T00:00:00.000Z"


SITUATIONS: list[tuple[int, str, tuple[tuple[str, ...], ...], Callable[[dict[str, Any]], None] | None]] = [
    (30, "running", (), None),
    (31, "interrupted", (("release", "deploy"),), None),
    (0, "completed", (("run", "deploy", "a", "--", "true"), ("complete", "deploy")), None),
    (0, "completed", (("complete", "deploy", "--force", "--reason", "x"),), None),
    (33, "failed", (("fail", "deploy", "--reason", "x"),), None),
    (33, "failed", (("run", "deploy", "a", "--", "false"), ("release", "deploy")), None),
    (30, "running", (("run", "deploy", "a", "--", "false"),), None),
    (31, "interrupted", (("run", "deploy", "a", *sh("kill -TERM $$")), ("release", "deploy")), None),
    (31, "interrupted", (("run", "deploy", "a", "--once", "--", "false"), ("release", "deploy")), None),
    (31, "interrupted", (("run", "deploy", "a", "--", "true"), ("release", "deploy")), None),
    (32, "timed_out", (("run", "deploy", "a", "--timeout", "1s", "--", "sleep", "9"), ("release", "deploy")), None),
    (34, "blocked", (("update", "deploy", "--block", "x"),), None),
    (34, "blocked", (("update", "deploy", "--block", "x"), ("release", "deploy")), None),
    (35, "expired", (("release", "deploy"),), expire),
    (36, "cancelled", (("cancel", "deploy", "--reason", "x"),), None),
]


@pytest.mark.parametrize(("code", "word", "verbs", "change"), SITUATIONS)
def test_status(
    workspace: Workspace,
    code: int,
    word: str,
    verbs: tuple[tuple[str, ...], ...],
    change: Callable[[dict[str, Any]], None] | None,
) -> None:
    start(workspace, "--steps", "a,b" if ("complete", "deploy") not in verbs else "a")
    begun = workspace.record()
    for verb in verbs:
        workspace.tool(*verb)
    if change:
        alter(workspace.file(), change)
    before = workspace.snapshot()
    result = workspace.tool("status", begun["run_id"], "--json")
    assert (result.code, result.json["status"], result.err) == (code, word, "")
    assert set(result.json) == {"run_id", "status", "started_at", "completed_at"}
    assert (result.json["run_id"], result.json["started_at"]) == (begun["run_id"], begun["created_at"])
    finished = bool(verbs) and verbs[-1][0] in ("complete", "fail", "cancel")
    assert (result.json["completed_at"] is not None) == finished
    text = workspace.tool("status", "deploy")
    assert (text.code, text.out.count("\n")) == (code, 1)
    assert word.replace("_", " ") in text.out.replace("_", " ")
    assert begun["run_id"] in text.out
    assert workspace.snapshot() == before, "asking changes nothing"


def test_status_of_nothing(workspace: Workspace) -> None:
    refused(workspace.tool("status", "deploy"), 10, "no store")
    result = workspace.tool("status", "deploy", "--json")
    assert (result.code, result.out, json.loads(result.err)["error"]["code"]) == (10, "", 10)
    assert workspace.snapshot() == {}, "asking makes no store"
    start(workspace)
    for name in ("other", "019cab00-0000-7000-8000-000000000001", "cron:019cab00-0000-7000-8000-000000000001"):
        refused(workspace.tool("status", name), 10, name.removeprefix("cron:"))


@pytest.mark.parametrize("name", ["", "../x", "x:y"])
def test_status_of_what_is_no_name(workspace: Workspace, name: str) -> None:
    start(workspace)
    refused(workspace.tool("status", name), 2)


def test_status_of_a_damaged_record_is_not_made_up(workspace: Workspace) -> None:
    start(workspace)
    workspace.file().write_text(workspace.file().read_text().replace('"status":"in_progress"', '"status":"completed"'))
    refused(workspace.tool("status", "deploy"), 12, "deploy")


def test_status_of_a_workflow_is_that_of_its_last_run(workspace: Workspace) -> None:
    for code, expected in ((0, (0, "completed")), (1, (33, "failed")), (0, (0, "completed"))):
        assert workspace.tool("exec", "backup", *sh(f"exit {code}")).code == code
        assert status(workspace, "backup") == expected


def test_status_of_the_run_before(workspace: Workspace) -> None:
    workspace.tool("exec", "backup", "--", "true")
    assert workspace.tool("status", "backup", "--previous").code == 10
    workspace.tool("exec", "backup", "--", "false")
    assert status(workspace, "backup", "--previous") == (0, "completed")
    workspace.tool("exec", "backup", "--", "true")
    assert status(workspace, "backup", "--previous") == (33, "failed")


def test_status_of_the_run_before_one_that_runs(workspace: Workspace, begin: Begin) -> None:
    workspace.tool("exec", "backup", "--", "false")
    begin("exec", "backup", *sh(HOLD))
    assert status(workspace, "backup") == (30, "running")
    assert status(workspace, "backup", "--previous") == (33, "failed")


def test_status_of_the_run_before_a_certain_one(workspace: Workspace) -> None:
    for code in (0, 1, 0):
        workspace.tool("exec", "backup", *sh(f"exit {code}"))
    newest = history(workspace, "backup")[-1]["run_id"]
    result = workspace.tool("status", newest, "--previous", "--json")
    assert (result.code, result.json["run_id"]) == (33, history(workspace, "backup")[1]["run_id"])


def test_workflows_whose_names_begin_alike_are_told_apart(workspace: Workspace) -> None:
    workspace.tool("exec", "backup", "--", "true")
    workspace.tool("exec", "backup-123456789012", "--", "false")
    workspace.tool("exec", "backup-db", "--", "false")
    assert status(workspace, "backup") == (0, "completed")
    assert [row["workflow"] for row in history(workspace, "backup")] == ["backup"]


def test_status_of_keyed_runs(workspace: Workspace) -> None:
    workspace.tool("exec", "mail", "--key", "may", "--", "true")
    workspace.tool("exec", "mail", "--key", "june", "--", "false")
    assert status(workspace, "mail") == (33, "failed")
    assert status(workspace, "mail", "--previous") == (0, "completed")
    for row in history(workspace, "mail"):
        assert status(workspace, row["id"])[0] == (0 if row["idempotency_key"] == "may" else 33)


def test_history_and_prune(workspace: Workspace, begin: Begin) -> None:
    for code in (0, 1, 0, 1):
        workspace.tool("exec", "backup", *sh(f"exit {code}"))
    workspace.tool("exec", "other", "--", "true")
    begin("exec", "backup", *sh(HOLD))
    everything = history(workspace, "backup")
    assert sorted(row["status"] for row in everything) == ["completed", "completed", "failed", "failed", "in_progress"]
    finished = [row["run_id"] for row in everything if row["status"] != "in_progress"]
    before = workspace.snapshot()
    ok(workspace, "prune", "--keep", "2")
    assert workspace.snapshot() == before, "it only says what would be done"
    ok(workspace, "prune", "--keep", "2", "--apply")
    left = {row["run_id"]: row["status"] for row in history(workspace, "backup")}
    assert sorted(left.values()) == ["completed", "failed", "in_progress"], "the running one is never forgotten"
    assert [run_id for run_id in finished if run_id in left] == finished[-2:]
    assert status(workspace, "backup") == (30, "running")
    assert workspace.tool("status", finished[0]).code == 10
    assert len(history(workspace, "other")) == 1


def test_history_of_one_workflow_in_every_format(workspace: Workspace) -> None:
    workspace.tool("exec", "backup", "--label", "cron", "--", "true")
    workspace.tool("exec", "other", "--", "true")
    run_id = history(workspace, "backup")[0]["run_id"]
    for form in ("tsv", "jsonl", "json", "table"):
        out = ok(workspace, "list", "--all", "--workflow", "backup", "--format", form).out
        assert "other" not in out
        assert "completed" in out
        assert run_id in out or form == "table"


def test_what_the_owner_starts_needs_no_token(workspace: Workspace) -> None:
    """Subshells, make, scripts in scripts: the owner is an ancestor of them all."""
    tool = shlex.quote(TOOL)
    (workspace.path / "Makefile").write_text(f"all:\n\t{tool} run deploy b -- echo made\n")
    text = f"""
{tool} start deploy --steps a,b,c --owner-pid $$ >/dev/null
( {tool} run deploy a -- echo sub; true )
make -s
bash -c {shlex.quote(tool + " run deploy c -- echo inner; true")}
{tool} run deploy a -- echo sub
"""
    (workspace.path / "s").write_text(text)
    done = workspace.run("bash", "-e", "s")
    assert (done.code, done.out) == (0, "sub\nmade\ninner\n"), done


def test_a_sibling_of_the_owner_is_refused(workspace: Workspace) -> None:
    with subprocess.Popen(["sleep", "30"]) as owner:
        assert workspace.tool("start", "deploy", "--steps", "a", "--owner-pid", str(owner.pid)).code == 0
        assert workspace.tool("run", "deploy", "a", "--", "true", env={"CHECKPOINT_OWNER": "other"}).code == 11
        owner.kill()


def test_a_look_that_fails_is_no_reason_to_do_it_again(workspace: Workspace) -> None:
    workspace.tool("start", "deploy", "--steps", "a")
    done = workspace.tool("run", "deploy", "a", "--retries", "2", "--verify", "exit 2", "--", "sh", "-c", "echo ran >> n")
    assert done.code == 1
    assert (workspace.path / "n").read_text() == "ran\n"
    assert workspace.record()["steps"][0]["status"] == "failed"


def test_a_refused_exec_does_not_send_anybody_to_resume(workspace: Workspace) -> None:
    with subprocess.Popen(
        [TOOL, "exec", "job", "--key", "1", "--", "sleep", "30"], cwd=workspace.path, env=workspace.environ()
    ) as first:
        deadline = time.monotonic() + 20
        while not list(workspace.store.glob("job-*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        for more in (["--key", "1"], ["--no-overlap"]):
            refused = workspace.tool("exec", "job", *more, "--", "true")
            assert refused.code == 11
            assert "checkpoint-tool status job" in refused.err
            assert "resume" not in refused.err
        first.terminate()


SECRET = "ghp_" + "0123456789abcdefghijabcdefghij012345"


@pytest.mark.parametrize(
    "args",
    [
        ("start", SECRET, "--steps", "a"),
        ("start", "deploy", "--steps", f"a,{SECRET}"),
        ("start", "deploy", "--owner", SECRET),
        ("exec", SECRET, "--", "true"),
        ("exec", "job", "--label", SECRET, "--", "true"),
    ],
)
def test_a_name_that_looks_like_a_secret_is_refused(workspace: Workspace, args: tuple[str, ...]) -> None:
    refused = workspace.tool(*args)
    assert refused.code == 16, refused
    assert SECRET not in refused.err
    assert not list(workspace.path.rglob("*.json"))


def test_exec_takes_what_it_is_told_is_no_secret(workspace: Workspace) -> None:
    key = "password=hunter22hunter"
    assert workspace.tool("exec", "job", "--key", key, "--", "true").code == 16
    rule = "password-assignment"
    assert workspace.tool("exec", "job", "--key", key, "--allow-secret", rule, "--", "true").code == 0


def test_standard_output_that_is_non_blocking_is_written_whole(workspace: Workspace) -> None:
    """A pipe that holds 64 KiB, and a reader that comes late."""
    workspace.tool("start", "deploy", "--steps", "a", "--data", "-", input=json.dumps({"much": "x" * 300_000}))
    for argv in (["show", "deploy", "--json"], ["list", "--json"]):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        tool = subprocess.Popen([TOOL, *argv], cwd=workspace.path, env=workspace.environ(), stdout=writer)
        os.close(writer)
        time.sleep(0.3)
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        assert tool.wait(30) == 0
        assert len(json.loads(data)["data"]["much"]) == 300_000


@pytest.mark.parametrize("proc", [True, False])
def test_without_dev_fd(workspace: Workspace, proc: bool) -> None:
    """A chroot, an initramfs: also without /dev/null, and without /proc."""
    need_root()
    bare = "mount -t tmpfs none /dev" + ("" if proc else " && mount -t tmpfs none /proc")
    tool = shlex.quote(TOOL)
    often = f"for n in 1 2 3 4 5 6 7 8; do {tool} exec nightly -- true || exit; done"
    step = f"{tool} start d --steps a && {tool} run d a -- true"
    argv = [need_program("unshare"), "-m", "sh", "-c", f"{bare} && {{ {often}; {step}; }}"]
    result = workspace.run(*argv)
    assert result.code == 0, result
