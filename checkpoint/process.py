"""Who runs: this host, its boot, a process and its start time, and whether such a process still lives.

A process id alone proves nothing: ids are reused, and they mean other processes after a reboot or in another pid
namespace. So a process is named by host, boot id, pid namespace, pid and start time together (proc(5)).
What cannot be proven is "unknown", never "dead": a live owner that is declared dead gets its work done twice.
"""

import _thread  # threading would cost each start 1 ms
import errno
import functools
import hashlib
import os
import pwd
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, NoReturn, Protocol

Liveness = Literal["alive", "dead", "unknown", "elsewhere"]
"""``elsewhere``: unknown, and not of this boot of this kernel, so that nothing can be learned about it later either."""

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MACHINE_ID = re.compile("(?!0{32})[0-9a-fA-F]{32}")


class Process(NamedTuple):
    """A process, or with ``pid`` None just a boot of a host.

    ``host``: 16 hex digits; ``boot_id``: the kernel's random id of this boot; ``pid_ns``: inode of the pid namespace;
    ``pid_started``: clock ticks from boot to the start of the process, as the time namespace ``time_ns`` (an inode)
    counts them. Each is None where the system does not tell.
    """

    host: str
    boot_id: str | None
    pid_ns: int | None
    pid: int | None
    pid_started: int | None
    time_ns: int | None = None


class Identity(Protocol):
    """Anything that names a process by these six, such as a lease."""

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
    @property
    def time_ns(self) -> int | None: ...


def this_boot() -> Process:
    """This host in its present boot, naming no process."""
    return Process(_host(), _boot_id(), _pid_namespace(), None, None, _time_namespace())


def of(pid: int) -> Process | None:
    """The process with this pid as it runs now, or None when there is no such process."""
    # To kill(2), 0 and negative numbers are groups of processes.
    if not 0 < pid < 1 << 31 or _gone(pid):
        return None
    ended, started = _stat(pid)
    if ended:
        return None
    return this_boot()._replace(pid=pid, pid_started=started)


def itself() -> Process:
    """This process."""
    pid = os.getpid()
    return this_boot()._replace(pid=pid, pid_started=_own_start(pid))


def liveness(process: Identity | None, written: float | None = None) -> Liveness:
    """Whether ``process`` still runs. The order matters: each question is only worth asking once the ones before agree.

    ``written``: when its last sign of life was written, in seconds since 1970. Without that another boot proves
    nothing: machines that were copied from one image share their machine id, and may both be up.
    """
    if process is None:
        return "unknown"
    # Where Linux does not tell its boot, as without /proc, it does not tell its namespaces either.
    if process.boot_id != _boot_id() or (process.boot_id is None and sys.platform == "linux"):
        return _liveness_in_another_boot(process, written)
    if process.host != _host():
        return "unknown"  # a container of this kernel, with a machine id of its own
    if process.pid is None or not 0 < process.pid < 1 << 31 or process.pid_ns != _pid_namespace():
        return "unknown"
    if process.pid != os.getpid() and _gone(process.pid):
        return "dead"
    ended, started = (False, _own_start(process.pid)) if process.pid == os.getpid() else _stat(process.pid)
    if ended:
        return "dead"
    if None in (started, process.pid_started) or process.time_ns not in (None, _time_namespace()):
        return "unknown"
    return "alive" if started == process.pid_started else "dead"


def _liveness_in_another_boot(process: Identity, written: float | None) -> Liveness:
    if None in (process.boot_id, _boot_id()) and process.host == _host():
        return "unknown"  # where boots cannot be told apart (macOS, no /proc)
    began = _boot_began()
    if process.host == _host() and _machine_id() and None not in (written, began):
        assert written is not None
        assert began is not None
        if written < began:
            return "dead"
    return "elsewhere"


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


class Running(NamedTuple):
    """A process, as a search for orphans sees it. ``step``: (run id, step) in the environment that it was started with;
    ``is_readable``: whether that environment could be read."""

    parent: int
    group: int
    session: int
    started: int
    step: tuple[str, str] | None
    is_readable: bool


class Processes(NamedTuple):
    """All processes that can be seen, by pid. ``ours``: this one and its ancestors, which are no orphans."""

    running: Mapping[int, Running]
    ours: frozenset[int]

    def outlive(self, run_id: str, step: str, group: int | None, session: int | None, since: int) -> bool:
        """Whether something still runs that this step started, all who could record its end being gone.

        ``group`` and ``session``: of the step; ``since``: clock ticks from boot to its beginning. A process is known by
        its environment, or (a subshell, ``env -i``, ``sudo``, a program of another user or user namespace: their
        environment is another one, or cannot be read) by its process group or session, if it started since.
        In a session whose leader lives, such as a terminal, a process whose environment can be read and
        names no step may be any other work: there the session counts for unreadable processes only. A
        process with a session of its own is a daemon and no orphan (setsid(2)).
        """
        step_of_run = (run_id, step)
        is_left = session is not None and session not in self.running
        for pid, seen in self.running.items():
            if pid in self.ours:
                continue
            if seen.step == step_of_run and self._is_no_daemon(pid, group if session is None else session):
                return True
            if seen.step is None and self._is_stray(pid, "group", group, since):
                return True
            if seen.step is None and (is_left or not seen.is_readable) and self._is_stray(pid, "session", session, since):
                return True
        return False

    def _is_no_daemon(self, pid: int, session: int | None) -> bool:
        seen = self.running[pid]
        leader = self.running.get(seen.session)
        if leader is None:
            # Another session: it has forked twice, and its first process is gone. Session 0: the leader
            # is outside of this pid namespace, or init made no session; a daemon has left that one.
            return seen.session in (session, 0)
        return seen.session != pid and leader.step != seen.step

    def _is_stray(self, pid: int, kind: Literal["group", "session"], number: int | None, since: int) -> bool:
        """Whether ``pid`` is in that group or session, and so is no older process that it descends from: others, who are
        at work in the same group, descend from its leader, or from a script that was there before."""
        seen = self.running[pid]
        leader = self.running.get(number or 0)
        if getattr(seen, kind) != number or (leader is not None and leader.started > since):
            return False  # or the number has come to another group since, whose leader is younger
        above = self.running.get(seen.parent)
        while above is not None and getattr(above, kind) == number:
            seen, above = above, self.running.get(above.parent)
        return seen.started >= since


def processes() -> Processes:
    """All that we may look at; nothing where there is no /proc of our own pid namespace."""
    running: dict[int, Running] = {}
    if not _is_own_proc(os.getpid()):
        return Processes(running, frozenset())
    for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
        fields = _fields(pid)
        if not _is_running(fields):
            continue
        parent, group, session = map(int, fields[1:4])
        step, is_readable = _told_step(pid)
        # A process that has ended since cannot be read either: not to be taken for another user's.
        if is_readable or _is_running(_fields(pid)):
            running[pid] = Running(parent, group, session, int(fields[19]), step, is_readable)
    return Processes(running, frozenset({os.getpid(), *_ancestors()}))


def _is_running(fields: list[str]) -> bool:
    return bool(fields) and fields[0] not in "ZXx"


def ticks(moment: float | None = None) -> int | None:
    """Clock ticks from boot to ``moment`` (seconds since 1970) or now, as start times are counted (proc(5)).

    A moment is taken two ticks too early: it was written with another clock, and a process that is older than it looks
    must not be passed over. None where the system does not tell.
    """
    try:
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        per_second = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    if moment is None:
        return int(since_boot * per_second)
    return int((since_boot - time.time() + moment) * per_second) - 2


def group_of(pid: int) -> tuple[int | None, int | None]:
    """(process group, session) of a process; None where it is gone, or they are of another pid namespace."""
    try:
        return os.getpgid(pid) or None, os.getsid(pid) or None
    except OSError:
        return None, None


def _told_step(pid: int) -> tuple[tuple[str, str] | None, bool]:
    """((run id, step) in the environment that the process was started with, whether that could be read)."""
    text = _read_text(f"/proc/{pid}/environ", 1 << 22)
    pairs = (pair.split("=", 1) for pair in (text or "").split("\0") if pair.startswith(_TOLD))
    told = dict(pairs)
    step = (told["CHECKPOINT_RUN_ID"], told["CHECKPOINT_STEP"]) if len(told) == len(_TOLD) else None
    return step, text is not None


def is_ancestor(process: Identity | None) -> bool:
    """Whether ``process`` lives, and started what started ... this one: what this one does is its doing."""
    return process is not None and liveness(process) == "alive" and process.pid in tuple(_ancestors())


def belongs_to(pid: int, owner: Identity) -> bool:
    """Whether ``pid`` is the process ``owner``, or descends from it."""
    descends = pid == owner.pid or any(above == owner.pid for above in _ancestors(pid))
    return descends and liveness(owner) == "alive"


def _ancestors(pid: int | None = None) -> Iterator[int]:
    """Pids of the parent of ``pid`` (by default this process), its parent, and so on, without init."""
    above = os.getppid() if pid is None else _parent_of(pid)
    while above > 0 and not _is_init(above):
        yield above
        above = _parent_of(above)


def _parent_of(pid: int) -> int:
    fields = _fields(pid) if _is_own_proc(os.getpid()) else []
    return int(fields[1]) if fields else 0


def parent() -> Process:
    """The process that called this one; this one itself where init did, which adopts every orphan."""
    pid = os.getppid()
    if pid == 0 or _is_init(pid):
        pid = os.getpid()
    return of(pid) or this_boot()._replace(pid=pid)


def _is_init(pid: int) -> bool:
    """In a pid namespace of its own, as in a container, the first process is a caller like any other."""
    return pid == 1 and _pid_namespace() in (None, _FIRST_PID_NAMESPACE)


def terminal_session() -> Process | None:
    """The leader of the session that this process belongs to, a shell as a rule, where that has a terminal."""
    fields = _fields(os.getpid())
    if not fields or fields[4] == "0":
        return None
    found = of(os.getsid(0))  # 0 where the leader is outside of this pid namespace
    if found is None or found.pid_started is None or group_of(found.pid or 0)[1] != found.pid:
        return None
    return found


def thread_id() -> int:
    """Of the thread that asks; no other that lives has it."""
    return _thread.get_ident()


def user() -> int:
    """The effective user id of this process."""
    return os.geteuid()


def owner_name(pid: int) -> str:
    """``user@host:pid``: who asks, when nobody says it. ``pid``: the process that owns the work."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    name = f"{user}@{os.uname().nodename}:{pid}"
    # In containers of one host the same small pids stand for different processes, often under one host name.
    return name if _pid_namespace() in (None, _FIRST_PID_NAMESPACE) else f"{name}@{_pid_namespace()}"


def provable(process: Process) -> bool:
    """Whether its death will be provable, now and after a restart of whatever it runs in.

    Not in a container: the next one has another pid namespace, and cannot tell that this one is gone. Nor where the
    machine has no id that it keeps: after a reboot it would not know itself.
    """
    seen = None not in (process.boot_id, process.pid, process.pid_started)
    first = process.pid_ns == _FIRST_PID_NAMESPACE and process.time_ns in (None, _FIRST_TIME_NAMESPACE)
    return seen and first and _keeps_its_machine_id()


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
    fields = _fields(pid) if _is_own_proc(os.getpid()) else []
    if not fields:
        return False, None
    # State, number of threads, start time: fields 3, 20 and 22. A process whose first thread has ended looks like a
    # zombie while its other threads still work.
    return fields[0] in "ZXx" and int(fields[17]) <= 1, int(fields[19])


@functools.cache
def _is_own_proc(own_pid: int) -> bool:
    """Whether /proc shows the pid namespace of this process, whose pid is ``own_pid``. In another one's, as after
    ``unshare --pid`` without ``--mount-proc``, the numbers are those of other processes."""
    try:
        return os.readlink("/proc/self") == str(own_pid)
    except OSError:
        return False


@functools.cache
def _own_start(pid: int) -> int | None:
    """When this process started, which is ``pid``: whoever asks lives. Kept, because it is asked at every step."""
    return _stat(pid)[1]


_FIRST_PID_NAMESPACE, _FIRST_TIME_NAMESPACE = 0xEFFFFFFC, 0xEFFFFFFA
"""Inodes of the namespaces that the kernel boots with (PROC_PID_INIT_INO, PROC_TIME_INIT_INO in linux/proc_ns.h)."""


@functools.cache
def _machine_id() -> str:
    """The id of this installation (machine-id(5)); empty where there is none. ``uninitialized`` is what an image holds
    before its first boot."""
    return next((text for text in map(_read, _MACHINE_ID_FILES) if _MACHINE_ID.fullmatch(text)), "")


@functools.cache
def _keeps_its_machine_id() -> bool:
    """Whether the machine id is there, and not made anew at each boot: where /etc cannot be written, systemd puts a file
    of /run in its place (machine-id(5), "transient")."""
    try:
        return bool(_machine_id()) and not os.path.samefile(_MACHINE_ID_FILES[0], "/run/machine-id")
    except OSError:
        return bool(_machine_id())


@functools.cache
def _host() -> str:
    machine = _machine_id() or os.uname().nodename
    # machine-id(5) asks that the id itself is not handed around, only a hash keyed by the application.
    return hashlib.sha256(b"checkpoint-tool\0" + machine.encode()).hexdigest()[:16]


@functools.cache
def _boot_id() -> str | None:
    return _read("/proc/sys/kernel/random/boot_id") or None


def _boot_began() -> float | None:
    """When this boot began, in seconds since 1970 as the clock stands now (proc_uptime(5)); None where that is not known."""
    if _time_namespace() not in (None, _FIRST_TIME_NAMESPACE):
        return None
    try:
        return time.time() - float(_read("/proc/uptime").split()[0])
    except (IndexError, ValueError):
        return None


@functools.cache
def _pid_namespace() -> int | None:
    return _namespace("pid")


@functools.cache
def _time_namespace() -> int | None:
    return _namespace("time")


def _namespace(kind: str) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return None


_TOLD = ("CHECKPOINT_RUN_ID=", "CHECKPOINT_STEP=")


def _read(path: str) -> str:
    """The text of a small file; nothing where it cannot be read."""
    return (_read_text(path, 4096) or "").strip()


def _read_text(path: str, most: int) -> str | None:
    # Not open(): this stands in the way of every write, and the layers of a text file cost three times the read.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, most).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)
