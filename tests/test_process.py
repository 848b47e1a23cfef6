"""Who runs, who is dead and who is nobody's to say, with real processes."""

import errno
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from conftest import ROOT, SELFCHECK, TOOL, Workspace, lacking, need_program, need_root, powerless, unable

from checkpoint import process
from checkpoint.process import Process

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux proves life and death (/proc)")
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"
OTHER_HOST = "f" * 16


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that does nothing for as long as a test may need it."""
    with subprocess.Popen([need_program("sleep"), "300"]) as running:
        yield running
        running.kill()


@pytest.fixture
def alive(sleeper: subprocess.Popen[bytes]) -> Process:
    found = process.of(sleeper.pid)
    assert found is not None
    return found


@pytest.fixture
def dead(sleeper: subprocess.Popen[bytes], alive: Process) -> Process:
    sleeper.kill()
    sleeper.wait()
    return alive


@pytest.fixture
def zombie(sleeper: subprocess.Popen[bytes], alive: Process) -> Process:
    sleeper.kill()
    # WNOWAIT: wait until it has ended, and leave it as the zombie that it is.
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    return alive


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def ask(expression: str, *before: str) -> str:
    """``expression`` in a new Python behind ``before`` (unshare, setpriv); its standard output."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from checkpoint import process; from checkpoint.process import Process"
    )
    argv = [*before, sys.executable, "-I", "-c", f"{code}; print({expression})"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def foreign() -> Iterator[Process]:
    """A process of another user, over whom a powerless one has no rights."""
    need_root()
    argv = [need_program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60"]
    with subprocess.Popen(argv) as running:
        while Path(f"/proc/{running.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        found = process.of(running.pid)
        assert found is not None
        yield found
        running.kill()


# --- of -------------------------------------------------------------------------------------------------------------


@linux
def test_a_process_is_named_by_host_boot_namespace_pid_and_start(sleeper: subprocess.Popen[bytes]) -> None:
    found = process.of(sleeper.pid)
    assert found is not None
    assert re.fullmatch("[0-9a-f]{16}", found.host)
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.pid_ns == Path("/proc/self/ns/pid").stat().st_ino
    assert (found.pid, found.pid_started) == (sleeper.pid, start_time(sleeper.pid))


def test_the_host_is_a_hash_and_not_the_machine_id_itself() -> None:
    host = process.this_boot().host
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        if os.path.exists(path):
            assert host not in Path(path).read_text()
    assert ask("process.this_boot().host") == host


def test_this_boot_names_no_process(alive: Process) -> None:
    assert process.this_boot() == alive._replace(pid=None, pid_started=None)


def test_there_is_no_process_that_is_gone(dead: Process) -> None:
    assert dead.pid is not None
    assert process.of(dead.pid) is None


@linux
def test_there_is_no_process_that_is_a_zombie(zombie: Process) -> None:
    assert zombie.pid is not None
    assert process.of(zombie.pid) is None


def test_a_process_of_another_user_is_there(foreign: Process) -> None:
    assert ask(f"process.of({foreign.pid}) == {foreign!r}", *powerless()) == "True"


@linux
def test_a_program_may_be_called_anything(tmp_path: Path) -> None:
    # The name stands in the middle of /proc/PID/stat, unescaped: this one looks like the end of it and a zombie's state.
    program = tmp_path / "x) Z 1 (y"
    shutil.copy(need_program("sleep"), program)
    with subprocess.Popen([program, "300"]) as running:
        found = process.of(running.pid)
        assert found is not None
        assert found.pid_started == start_time(running.pid)
        assert process.liveness(found) == "alive"
        running.kill()


# --- liveness ---------------------------------------------------------------------------------------------------------


@linux
def test_alive(alive: Process) -> None:
    assert process.liveness(alive) == "alive"


@linux
def test_a_stopped_process_lives(sleeper: subprocess.Popen[bytes], alive: Process) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    assert process.liveness(alive) == "alive"


@linux
def test_dead(dead: Process) -> None:
    assert process.liveness(dead) == "dead"


@linux
def test_a_zombie_is_dead(zombie: Process) -> None:
    assert zombie.pid is not None
    assert zombie.pid_started == start_time(zombie.pid)
    assert process.liveness(zombie) == "dead"


@linux
def test_a_reused_pid_is_dead(alive: Process) -> None:
    assert alive.pid_started is not None
    assert process.liveness(alive._replace(pid_started=alive.pid_started - 1)) == "dead"
    assert process.liveness(alive._replace(pid_started=alive.pid_started + 1)) == "dead"


def booted() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


@linux
def test_another_boot_of_this_host_is_dead_if_it_wrote_last_before_this_one_began(alive: Process) -> None:
    before = alive._replace(boot_id=OTHER_BOOT)
    assert process.liveness(before, booted() - 60) == "dead"
    # Machines that were copied from one image have one machine id, and may both be up.
    assert process.liveness(before, booted() + 60) == "elsewhere"
    assert process.liveness(before) == "elsewhere"


@linux
def test_a_boot_is_enough_to_be_dead_but_not_to_be_alive() -> None:
    assert process.liveness(process.this_boot()) == "unknown"
    assert process.liveness(process.this_boot()._replace(boot_id=OTHER_BOOT), booted() - 60) == "dead"


@linux
@pytest.mark.parametrize("machine", ["", "uninitialized", "0" * 32, "not an id"])
def test_without_a_valid_machine_id_a_reboot_proves_nothing(machine: str) -> None:
    need_root()
    empty = "mount -t tmpfs none /var/lib && mount -t tmpfs none /etc"
    place = ["unshare", "--mount", "sh", "-c", f'{empty} && echo "{machine}" >/etc/machine-id && exec "$@"', "sh"]
    asked = f"process.liveness(process.itself()._replace(boot_id={OTHER_BOOT!r}), 1.0), process.provable(process.itself())"
    assert ask(asked, *place) == "elsewhere False"


@linux
def test_a_machine_id_that_is_made_anew_at_each_boot_proves_nothing() -> None:
    need_root()
    transient = "mount -t tmpfs none /run && echo 0123456789abcdef0123456789abcdef >/run/machine-id"
    place = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'{transient} && mount --bind /run/machine-id /etc/machine-id && exec "$@"',
        "sh",
    ]
    assert ask("process.provable(process.itself())", *place) == "False"
    assert ask("process.provable(process.itself())") == "True"


@linux
def test_in_another_time_namespace_start_times_prove_nothing(alive: Process, sleeper: subprocess.Popen[bytes]) -> None:
    need_root()
    shifted = (need_program("unshare"), "--time", "--boottime", "86400", "--fork")
    if subprocess.run([*shifted, "true"], capture_output=True, check=False).returncode:
        unable("time namespaces cannot be made here")
    assert ask(f"process.liveness({alive!r})", *shifted) == "unknown"
    assert ask(f"process.liveness({alive._replace(boot_id=OTHER_BOOT)!r}, 1.0)", *shifted) == "elsewhere"
    sleeper.kill()
    sleeper.wait()
    assert ask(f"process.liveness({alive!r})", *shifted) == "dead", "its pid is gone, whatever the clock"


@linux
def test_the_proc_of_another_pid_namespace_proves_nothing() -> None:
    """Without --mount-proc: the numbers in /proc are those of other processes."""
    need_root()
    inside = (need_program("unshare"), "--pid", "--fork")
    named = "process.this_boot()._replace(pid=process.own_pid(), pid_started=1)"
    assert ask(f"process.own_pid(), process.liveness({named})", *inside) == "1 unknown"
    assert ask("process.processes().running", *inside) == "{}"


def test_nobody_is_unknown() -> None:
    assert process.liveness(None) == "unknown"


@linux
def test_the_questions_are_asked_in_order(alive: Process, sleeper: subprocess.Popen[bytes]) -> None:
    assert alive.pid_ns is not None
    elsewhere = {"host": OTHER_HOST}
    rebooted = {"boot_id": OTHER_BOOT}
    contained = {"pid_ns": alive.pid_ns + 1}
    reused = {"pid_started": 1}

    def ask(*differences: dict[str, object]) -> str:
        named = alive._replace(**{key: value for each in differences for key, value in each.items()})
        return process.liveness(named, booted() - 60)

    # Another host on this boot is a container of this kernel; on another boot it is another machine.
    for count in range(3):
        for some in combinations((contained, reused), count):
            assert ask(elsewhere, *some) == "unknown"
            assert ask(elsewhere, rebooted, *some) == "elsewhere"
            # Another boot of this host: dead, and the rest does not matter.
            assert ask(rebooted, *some) == "dead"
    # Another pid namespace: its pids mean other processes there.
    assert ask(contained) == ask(contained, reused) == "unknown"
    assert ask(reused) == "dead"

    sleeper.kill()
    sleeper.wait()
    assert ask(elsewhere) == ask(contained) == "unknown"
    assert ask(elsewhere, rebooted) == "elsewhere"
    assert ask() == ask(rebooted) == "dead"


@linux
def test_a_claim_that_leaves_out_what_would_prove_it_is_never_dead_while_the_pid_runs(alive: Process) -> None:
    assert process.liveness(alive._replace(pid_started=None)) == "unknown"
    assert process.liveness(alive._replace(pid_ns=None)) == "unknown"
    assert process.liveness(alive._replace(pid=None)) == "unknown"
    assert process.liveness(alive._replace(boot_id=None)) != "dead"


@linux
def test_a_process_of_another_user_lives(foreign: Process) -> None:
    assert ask(f"process.liveness({foreign!r})", *powerless()) == "alive"


@linux
def test_in_another_pid_namespace_nobody_is_dead(alive: Process, sleeper: subprocess.Popen[bytes]) -> None:
    need_root()
    inside = (need_program("unshare"), "--pid", "--fork", "--mount-proc")
    assert ask(f"process.liveness({alive!r})", *inside) == "unknown"
    sleeper.kill()
    sleeper.wait()
    assert ask(f"process.liveness({alive!r})", *inside) == "unknown"


@linux
def test_a_process_that_is_hidden_is_unknown(foreign: Process) -> None:
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        lacking("/proc cannot be mounted with hidepid")
    # hidepid does not hide from group 0.
    hide += ["setpriv", "--regid=65534", "--clear-groups"]
    assert ask(f"process.liveness({foreign!r})", *hide, *powerless()) == "unknown"


@linux
def test_without_proc_nobody_is_dead(alive: Process, sleeper: subprocess.Popen[bytes]) -> None:
    need_root()
    hide = [need_program("unshare"), "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    assert ask(f"process.liveness({alive!r})", *hide) == "unknown"
    # In that world its boot and namespace cannot be read, so neither can it be proven that it is gone.
    sleeper.kill()
    sleeper.wait()
    assert ask(f"process.liveness({alive!r})", *hide) == "unknown"


# --- owner_name -------------------------------------------------------------------------------------------------------


def test_the_owner_is_called_user_at_host_and_pid() -> None:
    prefix = f"{pwd.getpwuid(os.geteuid()).pw_name}@{os.uname().nodename}:"
    assert process.owner_name(4711) == prefix + "4711"
    assert process.parent() == process.of(os.getppid())


@linux
def test_who_was_adopted_by_init_is_not_known_by_its_name(workspace: Workspace) -> None:
    """Everything that init has adopted or started has the same parent: two of them would pass for one owner."""
    need_root()
    inside = (need_program("unshare"), "--pid", "--fork", "--mount-proc")
    assert workspace.run(*inside, TOOL, "start", "deploy", "--steps", "a", env={"CHECKPOINT_OWNER": ""}).code == 0
    assert workspace.run(*inside, TOOL, "start", "deploy", "--steps", "a", env={"CHECKPOINT_OWNER": ""}).code == 11


def test_a_user_without_an_entry_is_called_by_number() -> None:
    bare = [need_program("unshare"), "--user", "--map-user=54321"]
    if subprocess.run([*bare, "true"], capture_output=True, check=False).returncode:
        lacking("user namespaces cannot be made here")
    assert ask("process.owner_name(7)", *bare) == f"54321@{os.uname().nodename}:7"


def test_own_pid() -> None:
    assert process.own_pid() == os.getpid()


# --- standard streams ---------------------------------------------------------------------------------------------------

CLOSED = [some for count in (1, 2, 3) for some in combinations((0, 1, 2), count)]


def without(closed: tuple[int, ...], *argv: str) -> tuple[str, ...]:
    """``argv`` started with these file descriptors closed."""
    return ("sh", "-c", 'exec "$@" ' + " ".join(f"{fd}>&-" for fd in closed), "sh", *argv)


@pytest.mark.parametrize("closed", CLOSED)
def test_what_is_closed_is_filled_and_what_is_open_is_left(closed: tuple[int, ...], workspace: Workspace) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import os; from checkpoint import process\n"
        "before = {fd: os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2) if os.path.exists(f'/proc/self/fd/{fd}')}\n"
        "process.fill_standard_streams()\n"
        "after = {fd: os.stat(fd).st_rdev == os.stat('/dev/null').st_rdev for fd in (0, 1, 2)}\n"
        "kept = all(os.readlink(f'/proc/self/fd/{fd}') == name for fd, name in before.items())\n"
        "free = os.open('/', os.O_RDONLY)\n"
        f"open('result', 'w').write(repr((kept, all(after[fd] for fd in {closed!r}), free > 2)))\n"
    )
    if sys.platform != "linux":
        pytest.skip("looks into /proc/self/fd")
    workspace.run(*without(closed, sys.executable, "-I", "-c", code))
    assert (workspace.path / "result").read_text() == "(True, True, True)"


@linux
def test_a_process_that_ends_while_it_is_looked_at_is_none_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    told = process._told_step

    def ends(pid: int) -> tuple[tuple[str, str] | None, bool]:
        if pid != child.pid:
            return told(pid)
        child.kill()
        child.wait()
        return None, False

    assert child.pid in process.processes().running
    monkeypatch.setattr(process, "_told_step", ends)
    assert child.pid not in process.processes().running


@pytest.mark.parametrize("closed", CLOSED)
def test_messages_are_never_written_into_a_store(closed: tuple[int, ...], workspace: Workspace) -> None:
    assert workspace.tool("start", "deploy", "--steps", "build,push").code == 0
    before = workspace.file().read_bytes()

    refused = workspace.run(*without(closed, TOOL, "update", "deploy", "--complete", "no-such-step"))
    assert refused.code == 10
    assert workspace.file().read_bytes() == before

    applied = workspace.run(*without(closed, TOOL, "update", "deploy", "--complete", "build"))
    # 22: applied, and could not be reported.
    assert applied.code == (22 if 1 in closed else 0)
    assert workspace.record()["steps"][0]["status"] == "completed"

    after = workspace.file().read_bytes()
    workspace.run(*without(closed, SELFCHECK))
    assert workspace.file().read_bytes() == after
    assert workspace.tool("verify").code == 0
    lock = (workspace.store / ".locks" / "deploy.lock").read_bytes()
    assert re.fullmatch(rb"\d{20} \d{10}\n[0-9a-f-]{36} \d{20} \d{20} open \d{20} [0-9a-f]{8}\n", lock)


def test_a_result_that_cannot_be_written_raises(workspace: Workspace) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import errno, os; from checkpoint import process\n"
        "process.fill_standard_streams()\n"
        "try:\n    process.write_stdout(b'result')\n"
        "except OSError as error:\n    os._exit(error.errno)\n"
    )
    closed = workspace.run(*without((1,), sys.executable, "-I", "-c", code))
    assert closed.code == errno.EBADF
    full = workspace.run("sh", "-c", 'exec "$@" > /dev/full', "sh", sys.executable, "-I", "-c", code)
    assert full.code == errno.ENOSPC


def test_a_message_that_nobody_can_read_does_no_harm(workspace: Workspace) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from checkpoint import process\n"
        "process.fill_standard_streams()\nprocess.write_stderr('words')\nprocess.write_stdout(b'done')\n"
    )
    assert workspace.run(*without((2,), sys.executable, "-I", "-c", code)).out == "done"
    assert workspace.run("sh", "-c", 'exec "$@" 2> /dev/full', "sh", sys.executable, "-I", "-c", code).out == "done"
