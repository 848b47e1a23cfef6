"""Runs one command as a shell would: its own process group, the terminal handed to it, signals passed on.

What a shell does not do: the command waits at a gate until its beginning is on the disk, the last bytes of what it
prints are kept, a timeout ends its whole group, and it does not outlive a killed parent unseen. For the last, a guard
(a fork in a process group of its own, so that no signal to ours reaches it) reads from a pipe that only we hold open;
when it ends without a word, the command's group is ended too.

Standard input is inherited. So are standard output and error where they are a terminal, or where no output is to be
kept; else a pipe stands in between, one for both if they lead to the same place, so that their order is kept.

The terminal is handed over at once only where all three streams are that terminal; else somebody in our own group may
need it, a pager behind a pipe for instance, and the command gets it when it asks for it.
"""

import errno
import fcntl
import functools
import os
import select
import signal
import stat
import struct
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, NoReturn

GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""

WATCH_S = 0.25

NOT_FOUND, NOT_EXECUTABLE, TIMED_OUT = 127, 126, 124
"""Exit statuses as shells and timeout(1) give them."""

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON = (*_INTERRUPTS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGTSTP)
# Sent from outside, as against those by which a program brings itself down.
_FROM_OUTSIDE = frozenset({*_INTERRUPTS, signal.SIGKILL})
_CHUNK = 64 * 1024
# What poll(2) says is writable to a pipe takes this much without blocking (PIPE_BUF).
_ATOMIC = 4096
_LARGEST_PIPE = 1024 * 1024
_GO = b"!"
_MOST_DESCRIPTORS = 1 << 16
_LONGEST_POLL_MS = 2**31 - 1


class Ending(NamedTuple):
    """How a command ended.

    ``exit_code``, or ``signal``, the number of the one that ended it. ``interrupted``: the signal that was sent to it, or
    to us for it, or why it was stopped; ``timed_out``: it was ended for taking too long. ``failure``: why it could not
    be run at all, or what became of its output. ``output``: the last bytes of it.
    """

    exit_code: int | None
    signal: int | None
    interrupted: str | None
    timed_out: bool
    started: bool
    failure: str | None
    duration_ms: int
    output: bytes

    @property
    def status(self) -> int:
        """As an exit status: the command's own, 128+n for a signal, 124 timed out."""
        if self.timed_out:
            return TIMED_OUT
        if self.signal is not None:
            return 128 + self.signal
        assert self.exit_code is not None
        if self.exit_code == 0 and self.interrupted is not None:
            # It ended well enough, but not because it was done.
            known = self.interrupted in signal.Signals.__members__
            return 128 + int(signal.Signals[self.interrupted] if known else signal.SIGTERM)
        return self.exit_code


class Child:
    """A command that waits to be let go. ``argv``: program and arguments; ``environ``: its environment, to which ``run``
    adds; ``keep``: bytes of output to remember; ``stdin`` and ``stdout``: the file descriptors that these lead to.

    Either ``run`` or ``abandon`` must follow. Raises OSError where no process can be made.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], *, keep: int, stdin: int = 0, stdout: int = 1) -> None:
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the kernel would reap the command without telling us
        self._relays = _relays((stdout, 2), keep)
        self._tail = _Tail(keep)
        self._terminal = _open_terminal()
        self._interrupted: str | None = None
        self._signals_seen = 0
        self._timed_out = False
        self._ended = False
        gate, self._gate = os.pipe()
        self._report, report = os.pipe()
        self._guard_pid, self._lifeline = _guard(self._terminal)
        # A signal between fork and exec would run our own Python handlers in the child.
        with _blocked(_PASSED_ON) as mask:
            self.pid = os.fork()
            if self.pid == 0:
                self._become(argv, dict(environ), gate, report, (stdin, stdout), mask)
            _quietly(lambda: os.setpgid(self.pid, self.pid))
        for fd in (gate, report, *(end for relay in self._relays for end in relay.ends)):
            os.close(fd)
        os.write(self._lifeline, struct.pack("=q", self.pid))

    def abandon(self) -> None:
        """Let the command never begin."""
        os.close(self._gate)
        os.waitpid(self.pid, 0)
        self._close()

    def run(
        self,
        environ: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        watch: Callable[[], str | None] | None = None,
        watch_fd: int | None = None,
    ) -> Ending:
        """Let it begin, with ``environ`` added to its environment, and wait for its end.

        ``watch``: asked four times a second, and when ``watch_fd`` becomes readable; a reason to stop ends the command.
        """
        began = time.monotonic()
        with self._signals() as wakeup:
            try:
                if all(map(os.isatty, (0, 1, 2))):
                    self._give_terminal()
                told = b"".join(os.fsencode(f"{name}={value}\0") for name, value in environ.items())
                _quietly(lambda: os.write(self._gate, told + _GO))  # somebody may have killed it at its gate
                os.close(self._gate)
                failure = os.read(self._report, 4)
                status = self._wait(began, timeout_s, watch, [fd for fd in (wakeup, watch_fd) if fd is not None])
            finally:
                self._take_terminal()
        duration_ms = int((time.monotonic() - began) * 1000)
        lost = next((relay.lost for relay in self._relays if relay.lost), None)
        for relay in self._relays:
            relay.hand_over()
        self._close()
        if failure:
            problem = struct.unpack("=i", failure)[0]
            code = NOT_FOUND if problem in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
            return Ending(code, None, None, False, False, os.strerror(problem), duration_ms, b"")
        exit_code, number = (os.WEXITSTATUS(status), None) if os.WIFEXITED(status) else (None, os.WTERMSIG(status))
        interrupted = self._interrupted or (signal_name(number) if number in _FROM_OUTSIDE else None)
        if self._timed_out:
            interrupted = None
        return Ending(exit_code, number, interrupted, self._timed_out, True, lost, duration_ms, self._tail.bytes())

    def echo(self, ending: Ending) -> None:
        """Ctrl-C: end as it would have ended us, or a script goes on with its next line. Where it reached the command
        alone, which had the terminal, pass it on to our own group. May not return."""
        if self._terminal is None:
            return
        if self._terminal.shared and ending.signal in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(ending.signal, signal.SIG_DFL)
            os.killpg(os.getpgrp(), ending.signal)
        elif ending.interrupted == "SIGINT":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    # --- in the child ------------------------------------------------------------------------------------------------

    def _become(
        self,
        argv: Sequence[str],
        environ: dict[str, str],
        gate: int,
        report: int,
        streams: tuple[int, int],
        mask: set[int],
    ) -> NoReturn:
        try:
            os.setpgid(0, 0)
            for number in (*_PASSED_ON, signal.SIGPIPE, signal.SIGXFSZ):
                # What was ignored when we came (nohup) stays so; what Python ignores for itself does not.
                if signal.getsignal(number) is not signal.SIG_IGN or number in (signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(number, signal.SIG_DFL)
            os.close(self._gate)
            for relay in self._relays:
                for end, fd in relay.places:
                    os.dup2(end, fd)
            stdin, stdout = streams
            if stdin != 0:
                os.dup2(stdin, 0)
            if stdout != 1 and not self._relays:
                os.dup2(stdout, 1)
            told = _read_all(gate)
            if not told.endswith(_GO):
                os._exit(0)
            for item in os.fsdecode(told).split("\0")[:-1]:
                name, _, value = item.partition("=")
                environ[name] = value
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _execute(argv, environ)
        except OSError as error:
            os.write(report, struct.pack("=i", error.errno or errno.EIO))
        except ValueError:
            os.write(report, struct.pack("=i", errno.EINVAL))
        finally:
            os._exit(NOT_FOUND)

    # --- while it runs -----------------------------------------------------------------------------------------------

    def _wait(
        self, began: float, timeout_s: float | None, watch: Callable[[], str | None] | None, wakeups: Sequence[int]
    ) -> int:
        deadline = None if timeout_s is None else began + timeout_s
        kill_at: float | None = None
        next_watch = began
        ended: int | None = None
        seen = 0
        while True:
            now = time.monotonic()
            if ended is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
                if pid and os.WIFSTOPPED(status):
                    self._suspend(os.WSTOPSIG(status))
                    continue
                if pid:
                    ended, seen = status, self._signals_seen
                    self._ended = True
                    for relay in self._relays:
                        relay.ends_now()
                    if kill_at is not None and not _gone(self.pid, kill_at):
                        self._signal(signal.SIGKILL)
            if ended is not None and (self._signals_seen > seen or not any(relay.busy for relay in self._relays)):
                return ended  # a signal ends the wait for a reader that does not read
            if ended is None:
                if deadline is not None and now >= deadline:
                    deadline, kill_at, self._timed_out = None, now + GRACE_S, True
                    self._signal(signal.SIGTERM)
                if kill_at is not None and now >= kill_at:
                    self._signal(signal.SIGKILL)
                    kill_at = now + GRACE_S
            if watch is not None and now >= next_watch:
                # Also while the rest of the output is on its way: the lease is to be renewed until the end is recorded.
                next_watch = now + WATCH_S
                reason = watch()
                if reason is not None and ended is None and kill_at is None:
                    self._interrupted, kill_at = self._interrupted or reason, now + GRACE_S
                    self._signal(signal.SIGTERM)
            moments = [next_watch] if watch is not None else []
            if ended is None:
                moments += [moment for moment in (deadline, kill_at) if moment is not None]
            if self._poll(wakeups, max(0.0, min(moments) - now) if moments else None):
                next_watch = now
                wakeups = wakeups[:1]  # it has said what it had to say, and would say it for ever

    def _poll(self, wakeups: Sequence[int], wait_s: float | None) -> bool:
        """Move output along, until something happens. Returns whether the watched descriptor spoke."""
        poll = select.poll()
        for fd in wakeups:
            poll.register(fd, select.POLLIN)
        for relay in self._relays:
            relay.register(poll)
        ready = dict(poll.poll(None if wait_s is None else min(int(wait_s * 1000) + 1, _LONGEST_POLL_MS)))
        for relay in self._relays:
            data = relay.move(ready)
            if data:
                self._tail.add(data)
        if wakeups[0] in ready:
            _quietly(lambda: os.read(wakeups[0], 512))
        return any(fd in ready for fd in wakeups[1:])

    def _signal(self, number: int) -> None:
        """To the whole group; one that is stopped must run to receive it."""
        _quietly(lambda: os.killpg(self.pid, number))
        if number not in (signal.SIGCONT, signal.SIGKILL, signal.SIGTSTP):
            _quietly(lambda: os.killpg(self.pid, signal.SIGCONT))

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Pass signals on to the command's group while this lasts; gives a descriptor that becomes readable at each."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

        def pass_on(number: int, _frame: FrameType | None) -> None:
            self._signals_seen += number in _INTERRUPTS
            if self._ended:
                return  # its group may be that of a daemon by now, or of strangers; and what is done is done
            if number in _INTERRUPTS and self._interrupted is None:
                self._interrupted = signal_name(number)
            self._signal(number)

        handlers: dict[int, object] = {}
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for passed in _PASSED_ON:
            if signal.getsignal(passed) is not signal.SIG_IGN:  # nohup, or a background command of a plain shell
                handlers[passed] = signal.signal(passed, pass_on)
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        try:
            yield reader
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            signal.set_wakeup_fd(before)
            os.close(reader)
            os.close(writer)

    # --- the terminal ------------------------------------------------------------------------------------------------

    def _suspend(self, number: int) -> None:
        """Ctrl-Z stopped the command: stop our whole group, as the terminal would have done, and go on with it. If it
        was stopped for want of the terminal, and that is ours, it gets it."""
        if self._terminal is None or number == signal.SIGSTOP:
            return
        if number != signal.SIGTSTP and self._terminal.give(self.pid):
            self._signal(signal.SIGCONT)
            return
        self._take_terminal()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(os.getpgrp(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        if number != signal.SIGTSTP:
            # Where no shell looks after our group it cannot be stopped, and the command would ask for the terminal
            # again and again.
            time.sleep(0.2)
        if self._terminal.shared:
            self._give_terminal()
        self._signal(signal.SIGCONT)

    def _give_terminal(self) -> None:
        if self._terminal is not None:
            self._terminal.give(self.pid)

    def _take_terminal(self) -> None:
        if self._terminal is not None:
            self._terminal.take(self.pid)

    def _close(self) -> None:
        for relay in self._relays:
            relay.close()
        os.close(self._report)
        _quietly(lambda: os.write(self._lifeline, b"."))
        os.close(self._lifeline)
        _quietly(lambda: os.waitpid(self._guard_pid, 0))
        if self._terminal is not None:
            self._terminal.close()


class _Terminal:
    """The terminal that controls us. ``shared``: whether the command had it from us."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.shared = False
        self._ours = os.getpgrp()

    def give(self, group: int) -> bool:
        given = self._pass(self._ours, group)
        self.shared = given or self.shared
        return given

    def take(self, group: int) -> None:
        self._pass(group, self._ours)

    def close(self) -> None:
        os.close(self.fd)

    def _pass(self, holder: int, to: int) -> bool:
        # Whoever sets it from the background is stopped by SIGTTOU, unless that is blocked.
        with _blocked((signal.SIGTTOU,)):
            try:
                if os.tcgetpgrp(self.fd) != holder:
                    return False
                os.tcsetpgrp(self.fd, to)
            except OSError:  # it was hung up, or the group is gone
                return False
        return True


class _Relay:
    """One pipe from the command, and where it leads. ``ends``: its writing end, until the command has it;
    ``places``: (that end, the descriptor of the command that it becomes)."""

    def __init__(self, target: int, fds: Sequence[int]) -> None:
        self._target = target
        self._source, end = os.pipe()
        self.ends = [end]
        self.places = [(end, fd) for fd in fds]
        self._pending = b""
        self._left: int | None = None
        self.lost: str | None = None
        # Anything else than a file may block half way through a large write.
        self._most = _CHUNK if stat.S_ISREG(os.fstat(target).st_mode) else _ATOMIC

    @property
    def busy(self) -> bool:
        """Whether there is anything to wait for, once the command has ended."""
        return self._source >= 0 and bool(self._pending or self._left)

    def ends_now(self) -> None:
        """The command has ended: what stands in the pipe now is the rest of its output. A child that it left behind
        may hold the pipe for ever, and is not waited for."""
        if self._source >= 0:
            self._left = min(_available(self._source), _LARGEST_PIPE)

    def register(self, poll: "select.poll") -> None:
        if self._source < 0:
            return
        if self._pending:
            poll.register(self._target, select.POLLOUT)
        elif self._left != 0:
            poll.register(self._source, select.POLLIN)

    def move(self, ready: Mapping[int, int]) -> bytes:
        """One step; what was read, to be remembered."""
        if self._source < 0:
            return b""
        if self._pending:
            if self._target in ready:
                self._push()
            return b""
        if self._source not in ready:
            return b""
        data = os.read(self._source, _CHUNK if self._left is None else min(_CHUNK, self._left))
        if not data:
            self.close()
            return b""
        if self._left is not None:
            self._left -= len(data)
        self._pending = data
        return data

    def _push(self) -> None:
        try:
            count = os.write(self._target, self._pending[: self._most])
            self._pending = self._pending[count:]
        except BlockingIOError:
            return
        except OSError as error:
            # Nobody reads any more: without us the command would have met the same at its next write.
            if error.errno not in (errno.EPIPE, errno.EBADF):
                self.lost = f"its output could not be written: {error.strerror}"
            self.close()

    def hand_over(self) -> None:
        """To a process of its own, while something that the command left behind still holds the pipe."""
        if self._source < 0:
            return
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        if any(event & select.POLLHUP and not event & select.POLLIN for _, event in poll.poll(0)):
            return
        if os.fork() == 0:
            try:
                os.setsid()
                close_all_but(self._source, self._target)
                while data := os.read(self._source, _CHUNK):
                    view = memoryview(data)
                    while view:
                        view = view[_write(self._target, view) :]
            finally:
                os._exit(0)

    def close(self) -> None:
        if self._source >= 0:
            os.close(self._source)
        self._source, self._pending = -1, b""


class _Tail:
    """The last bytes of all that was added, in flat memory."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        self._kept += data[-self._keep :]
        if len(self._kept) > 2 * self._keep:
            del self._kept[: -self._keep]

    def bytes(self) -> bytes:
        return bytes(self._kept[-self._keep :])


def _relays(targets: tuple[int, int], keep: int) -> list[_Relay]:
    """Pipes for standard output and error, where output is to be kept and is no terminal."""
    if not keep:
        return []
    both = zip(targets, (1, 2), strict=True)
    wanted = [(target, fd) for target, fd in both if not os.isatty(target) and _is_writable(target)]
    if len(wanted) == 2 and _same(wanted[0][0], wanted[1][0]):
        return [_Relay(wanted[0][0], (1, 2))]
    return [_Relay(target, (fd,)) for target, fd in wanted]


def _same(one: int, other: int) -> bool:
    first, second = os.fstat(one), os.fstat(other)
    return one == other or (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _is_writable(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _available(fd: int) -> int:
    found = fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("=i", found)[0])


def _open_terminal() -> _Terminal | None:
    try:
        return _Terminal(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return None


def _guard(terminal: _Terminal | None) -> tuple[int, int]:
    """(pid of the guard, the pipe that keeps it waiting)."""
    reader, lifeline = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reader)
        return pid, lifeline
    try:
        os.setpgid(0, 0)
        os.chdir("/")
        close_all_but(reader, *(() if terminal is None else (terminal.fd,)))
        for number in (*_PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        told = _read_all(reader)
        if len(told) == 8:  # a group, and no word that all went well
            group = struct.unpack("=q", told)[0]
            if terminal is not None:
                terminal.take(group)  # or whoever reads from it next would be stopped
            for number in (signal.SIGTERM, signal.SIGCONT):
                _quietly(functools.partial(os.killpg, group, number))
            if not _gone(group, time.monotonic() + GRACE_S):
                os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)


def _gone(group: int, until: float) -> bool:
    """Whether nothing is left of a process group, which is waited for."""
    while True:
        try:
            os.killpg(group, 0)
        except OSError:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.01)


def _execute(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become that program, found on PATH; a script that does not say what runs it is run by /bin/sh (exec(3))."""
    if not argv[0]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        os.execvpe(argv[0], list(argv), environ)  # noqa: S606 - no shell is the point
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    folders = [""] if "/" in argv[0] else os.get_exec_path(dict(environ))
    found = [path for folder in folders if os.access(path := os.path.join(folder, argv[0]), os.X_OK)]
    os.execve("/bin/sh", ["sh", *found[:1], *argv[1:]], dict(environ))  # noqa: S606


def close_all_but(*kept: int) -> None:
    """Close every other descriptor: one of them may be a lock or a pipe of the script that called us."""
    for fd in _descriptors():
        if fd not in kept:
            _quietly(functools.partial(os.close, fd))


def _descriptors() -> Sequence[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            found = [int(name) for name in os.listdir(folder)]
        except OSError:  # a chroot, an initramfs
            continue
        if found:
            return found
    return range(min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS))


def _write(fd: int, data: memoryview) -> int:
    """Bytes written; waits where a descriptor is non-blocking and full."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.poll()
        return 0


def _read_all(fd: int) -> bytes:
    told = b""
    while data := os.read(fd, _CHUNK):
        told += data
    return told


@contextmanager
def _blocked(signals: Sequence[int]) -> Iterator[set[int]]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield {int(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quietly(act: Callable[[], object]) -> None:
    """Where it fails, what it acts on is already gone."""
    try:
        act()
    except OSError:
        pass


def signal_name(number: int | None) -> str | None:
    """As in ``SIGTERM``."""
    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"
