"""Questions and answers over a pair of pipes: how the shell functions talk to a session."""

import os
import select
import signal
import sys
from collections.abc import Callable

from checkpoint import process
from checkpoint.child import close_all_but
from checkpoint.errors import Usage


class Dialogue:
    """Questions on standard input, answers on standard output, while ``owner`` lives and asks.

    Texts end with a NUL byte: a question is their number and so many, an answer is an exit status, and what was written
    meanwhile to descriptors 1 and 2, which are kept in memory. ``largest``: bytes of one question. ``pulse`` is called
    every ``every_s`` seconds in which no question comes (None: never).
    """

    pulse: Callable[[], None]
    every_s: float | None = None

    def __init__(self, owner: process.Process, *, largest: int) -> None:
        # Ctrl-C and the end of a terminal reach us with the script; what they mean is for the script to say.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._largest = largest
        self._from, self._to = os.dup(0), os.dup(1)
        self._owner = process.watch_fd(owner)
        null = process.open_null()
        os.dup2(null, 0)
        os.close(null)
        # "-" as a value would be taken for empty; so it is refused.
        sys.stdin = None
        self._messages = os.dup(2)
        # A lock or a pipe of the script that came with us would be held open by us, after the script has let go.
        kept = (0, 1, 2, self._from, self._to, self._messages)
        close_all_but(*kept, *(() if self._owner is None else (self._owner,)))
        self._said = [_memory(fd) for fd in (1, 2)]
        self._read = b""

    def __enter__(self) -> "Dialogue":
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._messages, 2)
        os.dup2(2, 1)
        for fd in (self._from, self._to, self._messages):
            os.close(fd)
        process.close_watch(self._owner)

    def owner_ended(self, wait_s: float) -> bool:
        """Whether the owner is gone, which may take until its last child has let go of us."""
        if self._owner is None:
            return False
        poll = select.poll()
        poll.register(self._owner, select.POLLIN)
        return bool(poll.poll(int(wait_s * 1000)))

    def ask(self, *, most: int) -> list[str] | None:
        """The next question, at most ``most`` texts; None when there is no more, or the owner has ended.

        Raises Usage for what is no question, or too large a one: nothing that follows can be understood.
        """
        self._room = self._largest
        count = self._text()
        if count is None:
            return None
        # Its length first: Python refuses to read a number of thousands of digits.
        if not count.isdigit() or len(count) > len(str(most)) or not 0 < int(count) <= most:
            raise Usage(f"this is no question of a session: it begins with a number, from 1 to {most}")
        texts = [self._text() for _ in range(int(count))]
        return None if None in texts else [os.fsdecode(text) for text in texts if text is not None]

    def answer(self, status: int) -> None:
        """To the last question. That nobody is there any more to read it shows at the next ``ask``."""
        sys.stdout.flush()
        parts = [str(status).encode()]
        for fd in self._said:
            size = os.lseek(fd, 0, os.SEEK_CUR)
            parts.append(os.pread(fd, size, 0).removesuffix(b"\n").replace(b"\0", b""))
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        view = memoryview(b"\0".join(parts) + b"\0")
        try:
            # In pieces that a pipe with room takes whole: a write that waits would outlive the owner.
            while view and self._is_ready(self._to, select.POLLOUT):
                view = view[os.write(self._to, view[: select.PIPE_BUF]) :]
        except OSError:
            pass

    def _is_ready(self, fd: int, event: int) -> bool:
        """Wait for ``event``; False where the owner has ended first."""
        poll = select.poll()
        poll.register(fd, event)
        if self._owner is not None:
            poll.register(self._owner, select.POLLIN)
        while not (ready := dict(poll.poll(None if self.every_s is None else self.every_s * 1000))):
            self.pulse()
        return fd in ready

    def _text(self) -> bytes | None:
        while (end := self._read.find(b"\0")) < 0 and len(self._read) <= self._room:
            data = os.read(self._from, 65536) if self._is_ready(self._from, select.POLLIN) else b""
            if not data:
                return None
            self._read += data
        if not 0 <= end <= self._room:
            raise Usage(f"this is no question of a session: it is larger than {self._largest >> 10} KiB")
        self._room -= end
        text, _, self._read = self._read.partition(b"\0")
        return text


def _memory(fd: int) -> int:
    """``fd``, from now on a file that has no name."""
    memory = process.open_memory()
    os.dup2(memory, fd)
    os.close(memory)
    return fd
