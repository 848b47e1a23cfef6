"""Who runs: this host, its boot, a process and its start time, and whether such a process still lives.

A process id alone proves nothing: ids are reused, and they mean other processes after a reboot or in another pid
namespace. So a process is named by host, boot id, pid namespace, pid and start time together (proc(5)).
What cannot be proven is "unknown", never "dead": a live owner that is declared dead gets its work done twice.
"""

import errno
import functools
import hashlib
import os
import pwd
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, NoReturn, Protocol

Liveness = Literal["alive", "dead", "unknown"]

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")


class Process(NamedTuple):
    """A process, or with ``pid`` None just a boot of a host.

    ``host``: 16 hex digits; ``boot_id``: the kernel's random id of this boot; ``pid_ns``: inode of the pid namespace;
    ``pid_started``: clock ticks from boot to the start of the process. Each is None where the system does not tell.
    """

    host: str
    boot_id: str | None
    pid_ns: int | None
    pid: int | None
    pid_started: int | None


class Identity(Protocol):
    """Anything that names a process by these five, such as a lease."""

    @property
    def host(self) -> str: ...
    @property
    def boot_id(self) -> str | None: ...
    @property
    def pid_ns(self) -> int | None: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def pid_started(self) -> int | None: ...


def this_boot() -> Process:
    """This host in its present boot, naming no process."""
    return Process(_host(), _boot_id(), _pid_namespace(), None, None)


def of(pid: int) -> Process | None:
    """The process with this pid as it runs now, or None when there is no such process."""
    # To kill(2), 0 and negative numbers are groups of processes.
    if not 0 < pid < 1 << 31 or _gone(pid):
        return None
    ended, started = _stat(pid)
    if ended:
        return None
    return this_boot()._replace(pid=pid, pid_started=started)


def liveness(process: Identity | None) -> Liveness:
    """Whether ``process`` still runs. The order matters: each question is only worth asking once the ones before agree."""
    if process is None:
        return "unknown"
    if process.host != _host():
        return "unknown"
    if process.boot_id != _boot_id():
        # One of the two unknown proves nothing, nor do two machines that only bear the same name; else it is two boots.
        return "unknown" if None in (process.boot_id, _boot_id()) or not _machine_id() else "dead"
    if process.pid is None or not 0 < process.pid < 1 << 31 or process.pid_ns != _pid_namespace():
        return "unknown"
    if process.pid == os.getpid():
        started = _own_start(process.pid)
    else:
        if _gone(process.pid):
            return "dead"
        ended, started = _stat(process.pid)
        if ended:
            return "dead"
    if started is None or process.pid_started is None:
        return "unknown"
    return "alive" if started == process.pid_started else "dead"


def watch_fd(process: Identity) -> int | None:
    """A descriptor that becomes readable when ``process`` ends, where the system has such a thing (pidfd_open(2))."""
    if process.pid is None or not hasattr(os, "pidfd_open") or liveness(process) != "alive":
        return None
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        return None


def close_watch(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


class Remnants(NamedTuple):
    """What still runs, whoever started it. ``steps``: (run id, step) as the environment of processes names them, with the
    sessions they are in, 0 for one whose leader lives; ``groups``: process group -> when its youngest member started, in
    seconds since 1970."""

    steps: Mapping[tuple[str, str], set[int]]
    groups: Mapping[int, float]

    def of(self, run_id: str, step: str, group: int | None, since: float) -> bool:
        """Whether something runs of this step, begun at ``since`` by a script that led ``group`` if it led any.

        A part of the script itself, as a subshell is, has the script's environment, from before the step: of those, what
        was started since, in a group whose number no other can have had meanwhile.
        """
        if self.steps.get((run_id, step), set()) & {0, group}:
            return True
        return group is not None and self.groups.get(group, 0.0) > since


def remnants() -> Remnants:
    """Of all processes that we may look at, but for us and our ancestors; nothing where there is no /proc."""
    steps: dict[tuple[str, str], set[int]] = {}
    groups: dict[int, float] = {}
    ours = set(_ancestors()) | {os.getpid()}
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        ticks = os.sysconf("SC_CLK_TCK")
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return Remnants({}, {})
    for pid in pids:
        fields = _fields(pid)
        if pid in ours or not fields or fields[0] in "ZXx":
            continue
        group, session = int(fields[2]), int(fields[3])
        groups[group] = max(groups.get(group, 0.0), booted + int(fields[19]) / ticks)
        step = _told_step(pid)
        # A daemon has made a session of its own (setsid(2)), and what it starts is in it: a service that the step was to
        # start is not the step's command.
        if step is not None and session != pid and _told_step(session) != step:
            steps.setdefault(step, set()).add(session if _gone(session) else 0)
    return Remnants(steps, groups)


def _told_step(pid: int) -> tuple[str, str] | None:
    """(run id, step) in the environment that the process was started with."""
    pairs = (pair.split("=", 1) for pair in _read(f"/proc/{pid}/environ", 1 << 22).split("\0") if pair.startswith(_TOLD))
    told = dict(pairs)
    return (told["CHECKPOINT_RUN_ID"], told["CHECKPOINT_STEP"]) if len(told) == len(_TOLD) else None


def is_ancestor(process: Identity | None) -> bool:
    """Whether ``process`` lives, and started what started ... us: what we do is its doing."""
    return process is not None and liveness(process) == "alive" and process.pid in tuple(_ancestors())


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 1:
        yield pid
        fields = _fields(pid)
        pid = int(fields[1]) if fields else 0


def parent() -> Process:
    """The process that called us; ourselves where that is init, the adoptive parent of everybody."""
    pid = os.getppid() if os.getppid() > 1 else os.getpid()
    return of(pid) or this_boot()._replace(pid=pid)


def owner_name(pid: int) -> str:
    """``user@host:pid``: who asks, when nobody says it. ``pid``: the process that owns the work."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    name = f"{user}@{os.uname().nodename}:{pid}"
    # In containers of one host the same small pids stand for different processes, often under one host name.
    return name if _pid_namespace() in (None, _FIRST_NAMESPACE) else f"{name}@{_pid_namespace()}"


def provable(process: Process) -> bool:
    """Whether its death will be provable, now and after a restart of whatever it runs in.

    Not in a container: the next one has another pid namespace, and cannot tell that this one is gone.
    """
    return None not in (process.boot_id, process.pid, process.pid_started) and process.pid_ns == _FIRST_NAMESPACE


def own_pid() -> int:
    """The pid of this process."""
    return os.getpid()


def fill_standard_streams() -> None:
    """Put /dev/null where standard input, output or error is closed.

    Otherwise the next file opened, a checkpoint, gets number 1 or 2, and messages are written into it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # Read-only on purpose: a result written to a closed stdout must fail, not vanish.
            null = open_null()
            if null != fd:
                os.dup2(null, fd)
                os.close(null)


def open_null() -> int:
    """A descriptor from which nothing can be read, also where there is no /dev/null."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        reader, writer = os.pipe()
        os.close(writer)
        return reader


def open_memory() -> int:
    """A new file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("checkpoint")
    name = f"/tmp/checkpoint-{os.urandom(16).hex()}"  # noqa: S108 - opened exclusively, and gone at once
    memory = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.unlink(name)
    return memory


def write_stdout(data: bytes) -> None:
    """All of ``data`` to file descriptor 1, with nothing left in a buffer that could fail at exit. Raises OSError."""
    _write_all(1, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # a pipe that another process made non-blocking, and that is full
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()


def write_stderr(text: str) -> None:
    """A line for people. Where nobody can read it, it is not worth failing over."""
    try:
        _write_all(2, text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass


def write_stderr_from(fd: int) -> None:
    """What stands in a file that was written to, as it is, to standard error; where nobody can read it, nothing."""
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        while data := os.read(fd, 65536):
            _write_all(2, data)
    except OSError:
        pass


def close(*fds: int) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def leave(status: int) -> NoReturn:
    """End this process with ``status`` at once.

    An interpreter that takes itself apart first costs a tenth of a short command, and of one that forked (``run``) more.
    Nothing of ours waits for that: what was written was written without a buffer, what is locked the kernel lets go.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()  # a library's words: --help, a traceback
        except (OSError, ValueError):
            status = status or 1
    os._exit(status)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on; nothing where it cannot be read (hidepid, macOS)."""
    # The second field is the program's name in brackets and may itself hold brackets and spaces.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields if len(fields) >= 20 else []


def _stat(pid: int) -> tuple[bool, int | None]:
    """(whether it has ended, start time); (False, None) where it cannot be told."""
    fields = _fields(pid)
    if not fields:
        return False, None
    # State, number of threads, start time: fields 3, 20 and 22. A process whose first thread has ended looks like a
    # zombie while its other threads still work.
    return fields[0] in "ZXx" and int(fields[17]) <= 1, int(fields[19])


@functools.cache
def _own_start(pid: int) -> int | None:
    """When this process started, which is ``pid``: whoever asks lives. Kept, because it is asked at every step."""
    return _stat(pid)[1]


_FIRST_NAMESPACE = 0xEFFFFFFC
"""Inode of the pid namespace that the kernel boots with (PROC_PID_INIT_INO in linux/proc_ns.h)."""


@functools.cache
def _machine_id() -> str:
    return next((text for text in map(_read, _MACHINE_ID_FILES) if text), "")


@functools.cache
def _host() -> str:
    machine = _machine_id() or os.uname().nodename
    # machine-id(5) asks that the id itself is not handed around, only a hash keyed by the application.
    return hashlib.sha256(b"checkpoint-tool\0" + machine.encode()).hexdigest()[:16]


@functools.cache
def _boot_id() -> str | None:
    return _read("/proc/sys/kernel/random/boot_id") or None


@functools.cache
def _pid_namespace() -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


_TOLD = ("CHECKPOINT_RUN_ID=", "CHECKPOINT_STEP=")


def _read(path: str, most: int = 4096) -> str:
    # Not open(): this stands in the way of every write, and the layers of a text file cost three times the read.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, most).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
