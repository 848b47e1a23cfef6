"""Who holds a run, and which part of its owner does a step: with real shells, threads, forks, terminals, namespaces."""

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import TOOL, Workspace, need_program, need_root, unable
from records import T0, at, run

from checkpoint import codec, liveness, model
from checkpoint.api import Checkpoints
from checkpoint.process import Processes, Running
from checkpoint.store.file import FileStore

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux proves life and death (/proc)")
SHELLS = {"bash": ["bash"], "zsh": ["zsh"], "dash": ["dash"], "busybox": ["busybox", "sh"]}
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def shell_init(shell: str) -> str:
    return f'eval "$({TOOL} shell-init {shell if shell in ("bash", "zsh") else "sh"})"\n'.replace(TOOL, f"'{TOOL}'")


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def started(workspace: Workspace) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts programs in the workspace, each in a session of its own; what still runs at the end is killed."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **more: Any) -> subprocess.Popen[bytes]:
        environ = workspace.environ({"CHECKPOINT_OWNER": "", "CHECKPOINT_TOOL": TOOL})
        process = subprocess.Popen(argv, cwd=workspace.path, env=environ, start_new_session=True, **more)
        running.append(process)
        return process

    yield start
    for process in running:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def log(workspace: Workspace) -> list[str]:
    path = workspace.path / "log"
    return path.read_text().split("\n")[:-1] if path.exists() else []


# --- one step, two parts of its owner -----------------------------------------------------------------------------------

SAME_KEY = """
load() { echo "$1 begins" >>log; sleep 1; echo "$1 ends" >>log; }
one() { ckpt_start import --key "$1" --steps load && ckpt_step load load "$1" && ckpt_complete; echo "$1 -> $?" >>log; }
for f in a b a; do one $f & done
wait
"""


@linux
@pytest.mark.parametrize("shell", SHELLS)
def test_a_step_that_one_subshell_does_is_refused_to_another(shell: str, workspace: Workspace) -> None:
    need_program(SHELLS[shell][0])
    (workspace.path / "script").write_text(shell_init(shell) + SAME_KEY)
    ended = workspace.run(*SHELLS[shell], "script", env={"CHECKPOINT_OWNER": ""})
    found = log(workspace)
    assert sorted(line for line in found if "->" in line) == ["a -> 0", "a -> 11", "b -> 0"], ended.err
    assert found.count("a begins") == found.count("a ends") == found.count("b begins") == 1
    assert "is at work" in ended.err


@linux
@pytest.mark.parametrize("shell", SHELLS)
def test_the_same_subshell_may_ask_again_and_another_after_it(shell: str, workspace: Workspace) -> None:
    """A step that failed in one subshell is begun by the next, under the same claim; so is one whose subshell was killed."""
    need_program(SHELLS[shell][0])
    script = """
    ckpt_start job --steps load,send
    ( ckpt_step load false ) ; echo "first $?" >>log
    ( ckpt_step load true ) ; echo "second $?" >>log
    ( ckpt_step send sh -c 'kill -9 $PPID; sleep 0.2' ) ; echo "killed" >>log
    sleep 0.5
    ( ckpt_step send true ) ; echo "again $?" >>log
    ckpt_complete ; echo "complete $?" >>log
    """
    (workspace.path / "script").write_text(shell_init(shell) + textwrap.dedent(script))
    ended = workspace.run(*SHELLS[shell], "script", env={"CHECKPOINT_OWNER": ""})
    assert log(workspace) == ["first 1", "second 0", "killed", "again 0", "complete 0"], ended.err


THREADS = """
import threading, time
from checkpoint import Checkpoints
from checkpoint.errors import Locked
{shared}
meet, seen = threading.Barrier(2, timeout=30), []
def work():
    run = {run}
    meet.wait()
    try:
        with run.step("load") as step:
            if not step.done:
                open("log", "a").write("load\\n")
                time.sleep(0.5)
        seen.append("done")
    except Locked as error:
        assert "is at work" in error.message, error.message
        seen.append("locked")
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
open("log", "a").write(" ".join(sorted(seen)) + "\\n")
"""
FORKS = """
import os, time
from checkpoint import Checkpoints
from checkpoint.errors import Locked
run = Checkpoints().start("import", ["load"], key="a")
for _ in range(2):
    if os.fork() == 0:
        try:
            with run.step("load") as step:
                if not step.done:
                    open("log", "a").write("load\\n")
                    time.sleep(0.5)
            os._exit(0)
        except Locked:
            os._exit(11)
ends = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
open("log", "a").write(f"{ends}\\n")
"""
START = 'Checkpoints().start("import", ["load"], key="a")'


@linux
@pytest.mark.parametrize(
    ("program", "result"),
    {
        "a handle each": (THREADS.format(shared="", run=START), "done locked"),
        "a store for all": (
            THREADS.format(shared="all = Checkpoints()", run=START.replace("Checkpoints()", "all")),
            "done locked",
        ),
        "one handle": (THREADS.format(shared=f"one = {START}", run="one"), "done locked"),
        "forks": (FORKS, "[0, 11]"),
    }.values(),
    ids=["a-handle-each", "a-store-for-all", "one-handle", "forks"],
)
def test_a_step_that_one_thread_or_fork_does_is_refused_to_another(program: str, result: str, workspace: Workspace) -> None:
    ended = workspace.run(sys.executable, "-c", program)
    assert ended.code == 0, ended.err
    assert log(workspace) == ["load", result]


def test_a_block_that_was_interrupted_leaves_its_step_to_the_next_handle(workspace: Workspace) -> None:
    program = """
    from checkpoint import Checkpoints
    run = Checkpoints().start("import", ["load"])
    try:
        with run.step("load"):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    with run.step("load") as step:
        print("again", step.done)
    """
    ended = workspace.run(sys.executable, "-c", textwrap.dedent(program))
    assert (ended.code, ended.out) == (0, "again False\n"), ended.err


def test_by_hand_a_step_is_begun_once_and_the_same_shell_may_ask_again(workspace: Workspace) -> None:
    assert workspace.tool("start", "deploy", "--steps", "a,b").code == 0
    first = workspace.tool("update", "deploy", "--begin", "a")
    assert workspace.tool("update", "deploy", "--begin", "a").code == first.code == 0
    step = workspace.record()["steps"][0]
    assert (step["attempts"], step["process"]["run_pid"]) == (1, os.getpid())
    # A shell that was another and is gone, as that of each call of an agent, is in no way of the next.
    other = workspace.run("sh", "-c", f"'{TOOL}' update deploy --begin b; true")
    assert other.code == 0
    assert workspace.tool("update", "deploy", "--begin", "b").code == 0
    # One that lives is.
    assert workspace.tool("update", "deploy", "--retry", "b", "--begin", "b").code == 0
    refused = workspace.run("sh", "-c", f"'{TOOL}' update deploy --begin b; echo $?; true")
    assert refused.out.splitlines()[-1] == "11", refused.err


# --- what outlives a killed script --------------------------------------------------------------------------------------


def name_of(pid: str) -> str:
    """Of the program; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


ORPHANS = {
    "a program": "sleep 60",
    "an empty environment": "env -i sleep 60",
    "another user": "setpriv --reuid=65534 --regid=65534 --clear-groups sleep 60",
    "another user namespace": "unshare --user sleep 60",
}


@linux
@pytest.mark.parametrize("leads", [True, False], ids=["leads its group", "in another's group"])
@pytest.mark.parametrize("kind", ORPHANS)
def test_what_a_step_left_behind_is_found(
    kind: str, leads: bool, workspace: Workspace, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    need_root()
    if "--user" in ORPHANS[kind] and subprocess.run(["unshare", "--user", "true"], check=False).returncode:
        unable("user namespaces cannot be made here")
    script = shell_init("dash") + f"ckpt_start job --steps a,b\nckpt_step a {ORPHANS[kind]}\n"
    (workspace.path / "script").write_text(script)
    argv = ("dash", "script") if leads else ("dash", "-c", "dash script & wait; sleep 60")
    started(*argv)
    wait_for(lambda: workspace.file("job").exists() and workspace.record("job")["steps"][0]["status"] == "begun")
    script_pid = workspace.record("job")["lease"]["pid"]
    command = Path(f"/proc/{script_pid}/task/{script_pid}/children")
    wait_for(lambda: any(name_of(pid) == "sleep" for pid in command.read_text().split()))
    os.kill(script_pid, signal.SIGKILL)
    wait_for(lambda: is_gone(script_pid))
    refused = workspace.tool("begin", "job", "a")
    assert refused.code == 11
    assert "still runs" in refused.err
    # The same process of another step, begun later by another script of the same group, is in nobody's way there.
    assert workspace.tool("start", "other", "--steps", "a").code == 0
    assert workspace.tool("begin", "other", "a").code == 0


IN_PYTHON = """
import subprocess
from checkpoint import Checkpoints
with Checkpoints().start("job", ["a", "b"]).step("a"):
    subprocess.run(["timeout", "60", "sleep", "61"])
"""
ALONE = {
    "a script": ["dash", "script"],
    "run": [TOOL, "run", "job", "a", "--", "sh", "-c", "env -i timeout 60 sleep 61; true"],
    "Python": [sys.executable, "-c", IN_PYTHON],
}


@linux
@pytest.mark.parametrize("kind", ALONE)
def test_what_has_another_group_and_no_mark_is_found_by_the_session_of_the_dead(
    kind: str, workspace: Workspace, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """timeout(1) makes a group of its own."""
    script = shell_init("dash") + "ckpt_start job --steps a,b\nckpt_step a env -i timeout 60 sleep 61\n"
    (workspace.path / "script").write_text(script)
    if kind == "run":
        assert workspace.tool("start", "job", "--steps", "a,b").code == 0
        assert workspace.tool("release", "job").code == 0
    first = started(*ALONE[kind])
    wait_for(lambda: in_session(first.pid, "sleep"))
    (left,) = in_session(first.pid, "sleep")
    try:
        for pid in (first.pid, *in_session(first.pid, "")):
            if pid != left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        first.wait()
        assert workspace.tool("begin", "job", "a").code == 11
    finally:
        os.kill(left, signal.SIGKILL)
    wait_for(lambda: workspace.tool("begin", "job", "a").code == 0)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def in_session(session: int, name: str) -> list[int]:
    """The processes of that session which are called so, all where it is empty."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError):
            if os.getsid(pid) == session and name in ("", Path(f"/proc/{pid}/comm").read_text().strip()):
                found.append(pid)
    return found


@linux
def test_what_a_command_left_behind_is_found_where_run_and_its_guard_are_killed(
    workspace: Workspace, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    assert workspace.tool("start", "job", "--steps", "a").code == 0
    assert workspace.tool("release", "job").code == 0
    run = started(TOOL, "run", "job", "a", "--", "sh", "-c", "sleep 60 & env -i sleep 61")
    wait_for(lambda: workspace.record("job")["steps"][0].get("process", {}).get("pid"))
    command = workspace.record("job")["steps"][0]["process"]["pid"]
    wait_for(lambda: len(Path(f"/proc/{command}/task/{command}/children").read_text().split()) == 2)
    children = [int(pid) for pid in Path(f"/proc/{command}/task/{command}/children").read_text().split()]
    guards = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split() if int(pid) != command]
    try:
        for pid in (*guards, run.pid, command):  # the guard first: it would end them all when `run` ends
            os.kill(pid, signal.SIGKILL)
        run.wait()
        wait_for(lambda: is_gone(command))
        assert workspace.tool("run", "job", "a", "--", "true").code == 11
        os.kill(children[0], signal.SIGKILL)
        assert workspace.tool("run", "job", "a", "--", "true").code == 11, "the one without an environment"
    finally:
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    wait_for(lambda: workspace.tool("run", "job", "a", "--", "true").code == 0)


# --- containers ---------------------------------------------------------------------------------------------------------

HOLDERS = {
    "a script": ["bash", "script"],
    "Python": [
        sys.executable,
        "-c",
        'import time; from checkpoint import Checkpoints as C; r = C().start("job", ["a"]); time.sleep(60)',
    ],
    "run": [TOOL, "run", "job", "a", "--", "sleep", "60"],
    "exec": [TOOL, "exec", "job", "--", "sleep", "60"],
}


@linux
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_container_that_is_restarted_goes_on_at_once_and_a_live_one_is_left_alone(
    holder: str, workspace: Workspace, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    need_root()
    (workspace.path / "script").write_text(shell_init("bash") + "ckpt_start job --steps a\nckpt_step a sleep 60\n")
    if holder == "run":
        assert workspace.tool("start", "job", "--steps", "a").code == 0
        assert workspace.tool("release", "job").code == 0
    first = started(*CONTAINER, *HOLDERS[holder])
    proof = workspace.store / ".locks" / "job.owner"
    wait_for(lambda: proof.exists() and proof.read_text())
    seen = workspace.run(*CONTAINER, TOOL, "resume", "job", env={"CHECKPOINT_OWNER": ""})
    assert seen.code == 11
    assert "while process" not in seen.err, "of a process that cannot be seen from there"
    assert " alive: " in workspace.run(*CONTAINER, TOOL, "show", "job").out
    # Held, or the next container gets the same number, in which the process is seen to be gone.
    namespace = os.open(f"/proc/{first.pid}/ns/pid_for_children", os.O_RDONLY)
    first.kill()
    first.wait()
    wait_for(lambda: workspace.run(*CONTAINER, TOOL, "status", "job").code == 31, 8)
    again = {"run": ("run", "job", "a", "--", "true"), "exec": ("exec", "job", "--no-overlap", "--", "true")}
    argv = again.get(holder, ("resume", "job"))
    gone_on = workspace.run(*CONTAINER, TOOL, *argv, env={"CHECKPOINT_OWNER": ""})
    os.close(namespace)
    assert gone_on.code == 0, gone_on.err


LED_FROM_OUTSIDE = """
dash script & script=$!
until [ -e began ]; do sleep 0.02; done
kill -9 $script
wait
'{tool}' status job; '{tool}' begin job a; echo $?
"""


@linux
def test_what_a_step_left_behind_is_found_in_a_session_that_is_led_from_outside(workspace: Workspace) -> None:
    """As in a virtual machine whose init made no session, and after nsenter(1): all have session and group 0."""
    need_root()
    script = shell_init("dash") + "ckpt_start job --steps a\nckpt_step a sh -c 'echo >began; sleep 60; :'\n"
    (workspace.path / "script").write_text(script)
    ended = workspace.run(*CONTAINER, "sh", "-c", LED_FROM_OUTSIDE.format(tool=TOOL), env={"CHECKPOINT_OWNER": ""})
    assert ended.out.splitlines()[-1] == "11", ended.err
    assert "still runs" in ended.err


@linux
def test_the_first_process_of_a_container_is_a_caller_like_any_other(workspace: Workspace) -> None:
    need_root()
    for options in ("", "--owner-pid $$"):
        script = (
            f"'{TOOL}' start d --steps a {options} && '{TOOL}' update d --begin a && '{TOOL}' cancel d --reason over; echo $?"
        )
        ended = workspace.run(*CONTAINER, "bash", "-c", f"{script}; true", env={"CHECKPOINT_OWNER": ""})
        assert ended.out.splitlines()[-1] == "0", ended.err


# --- terminals, names, hosts --------------------------------------------------------------------------------------------


class Terminal:
    """A shell with a terminal of its own, as a person has one."""

    def __init__(self, workspace: Workspace) -> None:
        self._status = workspace.path / "status"
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(workspace.path)
            os.execvpe(
                "bash", ["bash", "--norc", "--noprofile", "-i"], workspace.environ({"CHECKPOINT_OWNER": "", "HISTFILE": ""})
            )

    def type(self, *words: str) -> tuple[int, str]:
        """(exit status, output) of a command."""
        self._status.unlink(missing_ok=True)
        os.write(self._fd, f"{' '.join(words)} >out 2>&1; echo $? >status.new; mv status.new status\n".encode())
        wait_for(self._status.exists)
        return int(self._status.read_text()), (self._status.parent / "out").read_text()

    def close(self) -> None:
        os.close(self._fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@linux
def test_a_terminal_is_an_owner_and_ends_with_its_session(workspace: Workspace) -> None:
    first, second = Terminal(workspace), Terminal(workspace)
    assert first.type(f"'{TOOL}'", "start deploy --steps a,b")[0] == 0
    # From whatever it starts: another shell, make, a script.
    assert first.type("sh -c", f"\"'{TOOL}' update deploy --begin a; exit \\$?\"")[0] == 0
    assert first.type("sh -c", f"\"'{TOOL}' start deploy --steps a,b; exit \\$?\"")[0] == 0
    code, said = second.type(f"'{TOOL}'", "update deploy --begin b")
    assert code == 11
    assert "--steal" in said or "--wait" in said
    first.close()
    assert second.type(f"'{TOOL}'", "resume deploy")[0] == 0
    assert workspace.record()["token"] == 2
    second.close()


@linux
def test_a_host_that_is_renamed_and_a_user_database_that_is_away_lock_nobody_out(workspace: Workspace) -> None:
    need_root()
    script = f"""
    export CHECKPOINT_OWNER=
    '{TOOL}' start deploy --steps a,b >/dev/null 2>&1
    hostname another
    '{TOOL}' update deploy --begin a
    mount -t tmpfs none /root 2>/dev/null
    mount --bind /dev/null /etc/passwd
    '{TOOL}' update deploy --complete a
    """.replace("    mount -t tmpfs none /root 2>/dev/null\n", "")
    ended = workspace.run("unshare", "--uts", "--mount", "sh", "-e", "-c", textwrap.dedent(script))
    assert ended.code == 0, ended.err


def by(name: str, *, pid: int | None = 41, started: int | None = 7, uid: int = 1, host: str = "h" * 16) -> model.Owner:
    return model.Owner(name, host, "boot", 1, pid, started, None if pid else 1800, uid=uid)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (by("ann@www:41"), by("ann@renamed:41"), True),
        (by("ann@www:41"), by("1000@www:41"), True),
        (by("ann@www:41"), by("ann@www:41", uid=2), False),
        (by("ann@www:41"), by("ann@www:41", started=8), False),
        (by("ann@www:41"), by("ann@www:41", host="x" * 16), False),
        (by("ann@www:9", pid=None), by("ann@renamed:9", pid=None), True),
        (by("ann@www:9", pid=None), by("ann@www:8", pid=None), False),
        # Names that were given are names, even where they look as if they were made up.
        (by("agent@a:1", pid=None, started=None), by("agent@b:1", pid=None, started=None), False),
        (by("one"), by("two"), False),
        (by("one", pid=None, started=None), by("one", pid=None, started=None), True),
    ],
)
def test_who_is_the_same_owner(one: model.Owner, other: model.Owner, same: bool) -> None:
    assert model._is_holder(model._lease(one, 1, T0), other) is same


def age(workspace: Workspace, seconds: int, **lease: object) -> None:
    """Make the claim one of another host or boot, last written some seconds ago."""
    path = workspace.file()
    found = codec.decode(path.read_bytes(), "deploy").checkpoint
    assert found.lease is not None
    then = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=seconds)
    aged = found.lease._replace(acquired_at=then, expires_at=None, lease_s=None, **lease)  # type: ignore[arg-type]
    path.write_bytes(codec.encode(found._replace(lease=aged, heartbeat_at=then)).raw)


@linux
@pytest.mark.parametrize("where", [{"host": "f" * 16, "boot_id": "b"}, {"boot_id": "b"}], ids=["another host", "another boot"])
def test_a_claim_that_nothing_can_be_learned_of_ends_half_an_hour_after_its_last_write(
    where: dict[str, object], workspace: Workspace
) -> None:
    assert workspace.tool("start", "deploy", "--steps", "a", "--owner-pid", str(os.getpid())).code == 0
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    recent = int(min(1700, since_boot - 1))
    age(workspace, recent, **where)
    refused = workspace.tool("resume", "deploy")
    assert refused.code == 11
    assert "resume deploy --steal --reason" in refused.err
    assert "while process" not in refused.err
    age(workspace, 1900, **where)
    assert workspace.tool("resume", "deploy").code == 0


@linux
def test_the_kind_of_a_file_system_is_that_of_the_mount_which_the_path_is_on(tmp_path: Path) -> None:
    need_root()
    code = "import sys; from checkpoint.store.disk import is_local; print(*(is_local(path) for path in sys.argv[1:]))"
    inside = tmp_path / "a space" / "inside"
    inside.mkdir(parents=True)
    paths = ["/proc", "/proc/self", str(inside), str(inside / "not yet" / "there"), "/dev/shm"]
    asked = [sys.executable, "-c", code, *paths]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "False False True True True\n"
    # A mount in the path, with a space in its name, and another one below that hides it again.
    mount = f"mount -t proc none '{inside.parent}' && "
    hidden = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount + 'exec "$@"', "sh", *asked], capture_output=True, text=True
    )
    assert hidden.stdout == "False False False False True\n", hidden.stderr


@linux
def test_where_other_hosts_write_every_claim_holds_by_time(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "store"))
    store.shared = True  # as on NFS
    run = Checkpoints(store).start("deploy", ["a"])
    assert run.checkpoint.lease is not None
    assert run.checkpoint.lease.expires_at is not None
    assert store.is_attested(run.checkpoint) is None, "flock(2) may not reach the other host"
    elsewhere = run.checkpoint._replace(lease=run.checkpoint.lease._replace(boot_id="b"), heartbeat_at=T0)
    now = run.checkpoint.updated_at
    assert liveness.standing(elsewhere, store, now).owner is model.OwnerState.UNKNOWN, "never dead, never over before its time"
    assert liveness.standing(elsewhere, store, now + timedelta(seconds=1801)).owner is model.OwnerState.EXPIRED


RUNNING = {
    1: Running(0, 1, 1, 0, None, True),
    50: Running(1, 50, 40, 100, None, True),  # a tool, which leads its group
    60: Running(50, 50, 40, 300, None, True),  # another script of that group
    61: Running(60, 50, 40, 310, None, True),  # and what that one started
}
SHELL = {40: Running(1, 40, 40, 10, None, True)}  # of the terminal


def test_in_a_terminal_the_work_of_others_is_no_orphan() -> None:
    for readable in (True, False):
        stray = {99: Running(1, 70, 40, 250, None, readable)}
        assert Processes(RUNNING | SHELL | stray, frozenset({50})).outlive("run", "step", 50, 40, 200) is not readable


@pytest.mark.parametrize(
    ("orphan", "found"),
    [
        (Running(1, 50, 40, 200, None, True), True),  # on the very tick of the beginning
        (Running(1, 50, 40, 199, None, True), False),  # a job from before the step
        (Running(1, 50, 40, 250, ("run", "step"), True), True),
        (Running(1, 50, 40, 250, ("run", "other"), True), False),
        (Running(1, 70, 40, 250, None, False), True),  # of another user, in a group of its own
        (Running(1, 70, 40, 250, None, True), True),  # where the leader of the session is gone
        (Running(1, 70, 40, 150, None, True), False),
        (Running(1, 70, 40, 250, ("run", "other"), True), False),
        (Running(1, 70, 70, 250, None, False), False),  # a daemon
        (Running(1, 70, 40, 150, ("run", "step"), True), True),
    ],
)
def test_what_counts_as_an_orphan(orphan: Running, found: bool) -> None:
    processes = Processes(RUNNING | {99: orphan}, frozenset({50, 60}))
    assert processes.outlive("run", "step", 50, 40, 200) is found
    younger = RUNNING | {50: RUNNING[50]._replace(started=400), 99: orphan}
    reused = Processes(younger, frozenset())
    assert not reused.outlive("none", "none", 50, None, 200), "a group that got the number since"


# --- clocks -------------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("wrong", ["+1 hour", "-1 hour"])
def test_a_clock_that_was_wrong_once_makes_no_old_run_the_last(wrong: str, workspace: Workspace) -> None:
    fake = (need_program("faketime"), wrong)
    assert workspace.tool("exec", "backup", "--", "true").code == 0
    assert workspace.run(*fake, TOOL, "exec", "backup", "--", "sh", "-c", "exit 7").code == 7
    assert workspace.tool("exec", "backup", "--", "sh", "-c", "exit 8").code == 8
    assert workspace.tool("exec", "backup", "--", "true").code == 0
    ids = [json.loads(workspace.tool("status", "backup", "--json", *more).out)["run_id"] for more in ((), ("--previous",))]
    history = sorted((workspace.store / "done" / "backup").iterdir())
    tokens = [json.loads(path.read_text())["token"] for path in history]
    assert tokens == sorted(tokens), "filed in the order in which they began"
    assert ids == [history[-1].stem, history[-2].stem]
    assert json.loads(workspace.tool("show", "backup", "--json").out)["token"] == max(tokens)
    assert workspace.tool("prune", "--keep", "2", "--older-than", "1s", "--apply").code == 0
    assert sorted((workspace.store / "done" / "backup").iterdir())[-2:] == history[-2:]


@linux
def test_runs_beside_each_other_are_in_one_order_whatever_the_clock_says(
    workspace: Workspace, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    def last() -> int:
        return int(
            json.loads(workspace.tool("show", workspace.tool("status", "job", "--json").out[12:48], "--json").out)["token"]
        )

    need_program("faketime")
    started("faketime", "+1 hour", TOOL, "exec", "job", "--", "sleep", "60")
    wait_for(lambda: workspace.file("job").exists())
    for token in (2, 3):
        assert workspace.tool("exec", "job", "--", "true").code == 0
        assert last() == token
    os.kill(workspace.record("job")["steps"][0]["process"]["pid"], signal.SIGKILL)
    wait_for(lambda: not workspace.file("job").exists())
    assert workspace.tool("exec", "job", "--", "false").code == 1
    assert last() == 4
    assert workspace.tool("status", "job").code == 33


def test_the_order_of_runs_does_not_come_from_a_clock() -> None:
    def began(token: int, seconds: int, **more: Any) -> model.Checkpoint:
        return run("a", run_id=f"019cab00-0000-7000-8000-{token:012}", now=at(seconds), **more)._replace(token=token)

    history = [began(1, 10), began(2, 5000), began(3, 20), began(4, -300), began(5, 30)]
    keyed = began(9, 25, id="deploy-0123456789ab", idempotency_key="k")
    found = model.newest_first([keyed, *history])
    assert [each.token for each in found if each is not keyed] == [5, 4, 3, 2, 1]
    assert found[:2] == [history[4], keyed], "another key counts for itself, and has only its clock"
