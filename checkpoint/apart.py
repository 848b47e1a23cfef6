"""Work on files that may never answer, done by child processes.

A call on a network file system whose server is gone waits in the kernel: no signal ends it, no thread can be given up.
A child process can: it is killed, and never waited for, because it may not end before the file system answers.
"""

import marshal
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Send = Callable[[Any], None]
"""Takes what ``marshal`` can write; ALIVE says that the work goes on."""

ALIVE = None
_MOST = 8
_ALIVE_S = 1.0
_LENGTH = 8
_END, _ITEM, _BUG = 0, 1, 2


class NoAnswer(Exception):
    """The work gave no sign for too long."""


class Failed(Exception):
    """The work raised, or its process was killed."""


def call(work: Callable[[], Any], limit_s: float) -> Any:
    """What ``work`` returns (None, numbers, texts, bytes, tuples, lists, dicts).

    Raises NoAnswer after ``limit_s`` seconds, Failed for anything that ``work`` raises.
    """
    result = None
    for _, item in each([lambda send: send((work(),))], limit_s):
        if isinstance(item, Exception):
            raise item
        (result,) = item
    return result


def write_failure(write: Callable[[], None], limit_s: float) -> str | None:
    """Write a file so: None, or why it could not be written, in words that follow its name."""

    def attempt() -> str | None:
        try:
            write()
        except OSError as error:
            return f"cannot be written: {error.strerror}"
        return None

    try:
        return call(attempt, limit_s)  # type: ignore[no-any-return]
    except NoAnswer:
        return f"does not answer: it could not be written within {limit_s} s"
    except Failed as error:
        return f"could not be written: {error}"


def each(works: Sequence[Callable[[Send], None]], limit_s: float) -> Iterator[tuple[int, Any]]:
    """(position in ``works``, item) for each item that a work sends; at its end NoAnswer, where it gave no sign for
    ``limit_s`` seconds, or Failed. Up to eight work at once."""
    waiting = list(enumerate(works))
    running: dict[int, _Child] = {}
    poll = select.poll()
    try:
        while waiting or running:
            while waiting and len(running) < _MOST:
                position, work = waiting.pop(0)
                try:
                    child = _Child(position, work)
                except OSError:  # no more processes or descriptors: then without a limit
                    items: list[Any] = []
                    try:
                        work(items.append)
                    except Exception as error:  # noqa: BLE001 - as a child would say it
                        items.append(Failed(f"{type(error).__name__}: {error}"))
                    yield from ((position, item) for item in items if item is not ALIVE)
                    continue
                running[child.fd] = child
                poll.register(child.fd, select.POLLIN)
            due = min((child.heard + limit_s for child in running.values()), default=time.monotonic())
            ready = {fd for fd, _ in poll.poll(max(0.0, due - time.monotonic()) * 1000)}
            for fd, child in list(running.items()):
                silent = fd not in ready and time.monotonic() >= child.heard + limit_s
                if fd in ready:
                    yield from ((child.position, item) for item in child.received())
                if silent:
                    yield child.position, NoAnswer()
                if silent or child.ended:
                    poll.unregister(fd)
                    del running[fd]
                    child.close()
    finally:
        for child in running.values():
            child.close()


class _Child:
    """One work in a process of its own. ``heard``: when it last gave a sign (time.monotonic)."""

    def __init__(self, position: int, work: Callable[[Send], None]) -> None:
        self.position = position
        self.ended = False
        self._buffer = b""
        self.fd, out = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self.fd)
            os.close(out)
            raise
        if self._pid == 0:
            _work(work, out)
        os.close(out)
        self.heard = time.monotonic()

    def received(self) -> Iterator[Any]:
        """What has come."""
        data = os.read(self.fd, 1 << 20)
        self.heard = time.monotonic()
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._buffer[:_LENGTH], "big")
            if len(self._buffer) < end:
                break
            kind, item = marshal.loads(self._buffer[_LENGTH:end])  # noqa: S302 - from our own child
            self._buffer = self._buffer[end:]
            self.ended = kind != _ITEM
            if kind == _BUG:
                yield Failed(item)
            if kind == _ITEM and item is not ALIVE:
                yield item
        if not data and not self.ended:
            self.ended = True
            yield Failed("the process that looked ended without a word")

    def close(self) -> None:
        os.close(self.fd)
        if not self.ended:
            os.kill(self._pid, signal.SIGKILL)
        # One that hangs in the kernel ends when that does; init reaps it.
        for _ in range(20):
            try:
                if os.waitpid(self._pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            # Not sleep(3), which refuses a moment that a jump of the clock has made negative.
            select.poll().poll(1 if self.ended else 5)


def _work(work: Callable[[Send], None], out: int) -> None:
    """The child. Never returns."""
    told = 0.0

    def send(item: Any) -> None:
        nonlocal told
        if item is ALIVE and time.monotonic() < told + _ALIVE_S:
            return
        told = time.monotonic()
        tell((_ITEM, item))

    def tell(frame: tuple[int, Any]) -> None:
        data = marshal.dumps(frame)
        view = memoryview(len(data).to_bytes(_LENGTH, "big") + data)
        while view:
            view = view[os.write(out, view) :]

    try:
        # Left hanging with our standard output open, it would keep waiting whoever reads that to its end.
        null = os.open(os.devnull, os.O_RDONLY)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        work(send)
        tell((_END, None))
    except BaseException as error:  # noqa: BLE001 - the parent says it
        try:
            tell((_BUG, f"{type(error).__name__}: {error}"))
        except OSError:
            pass
    finally:
        os._exit(0)
