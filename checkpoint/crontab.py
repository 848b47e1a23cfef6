"""One user's crontab: blocks of our own in it, and every other byte left as it is.

    # BEGIN checkpoint-tool NAME
    */10 * * * * ...
    # END checkpoint-tool NAME

crontab(1) reads and replaces the whole crontab and locks nothing. So every checkpoint-tool changes it under one lock of its
own, and an edit by another program is found by reading the crontab again: while the crontab program already waits for its
input, so that the time in which an edit could be lost is only that of its last write, and again after it.
"""

import errno
import fcntl
import os
import re
import shlex
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from checkpoint import programs
from checkpoint.cron import Cron
from checkpoint.errors import SchedulerUnavailable, Usage
from checkpoint.store.disk import Folder

LONGEST_LINE = 998
"""What Debian's cron reads of a line's command (MAX_COMMAND in its cron.h), with its end."""
_KEPT = 10
# vixie-cron, cronie, dcron and macOS; fcron; BusyBox, which names the file that it looked for in its spool directory.
_NO_CRONTAB = re.compile(rb"no crontab for |has no f?crontab|^crontab: can't open '[^'/]+': No such file", re.I | re.M)
_SETTLE_S = 0.1
_READY_S = 2.0
_ADDED = b"# the line above had no end before this block\n"
_LIMIT_S = 30
# Less than another checkpoint-tool waits for the lock. A program that rewrites the crontab for seconds outlasts ten tries.
_PERSIST_S = 20.0
_LONGEST_WORDS = 300


def line(cron: Cron, argv: tuple[str, ...], folder: str, environ: Mapping[str, str]) -> str:
    """One line of a crontab. Raises Usage for what none can hold."""
    settings = "".join(f"{name}={_quoted(value)} " for name, value in environ.items())
    words = " ".join(map(_quoted, argv))
    command = f"cd {_quoted(folder)} && {settings}exec {words}"
    if re.search(r"[\n\r\0]", command):
        raise Usage("a crontab line cannot hold a line break or NUL: rename the folder, or put the command into a script")
    if len(command.encode()) > LONGEST_LINE:
        raise Usage(f"the command is {len(command.encode())} bytes long, and cron reads {LONGEST_LINE}: put it into a script")
    return f"{cron.text} {command}"


def _quoted(word: str) -> str:
    """A word for sh. An unescaped % ends the command (crontab(5)); BusyBox leaves \\% to the shell. Outside of all quotes it
    is a % to both. A quote always stands between it and a backslash of the word: two backslashes would be a pair."""
    if "%" not in word:
        return shlex.quote(word)
    return "\\%".join(shlex.quote(part) if part else "" for part in word.split("%"))


def block(name: str, content: str) -> bytes:
    """The lines of one thing, with their markers."""
    lines = f"# BEGIN checkpoint-tool {name}\n{content}\n# END checkpoint-tool {name}\n"
    return lines.encode("utf-8", "surrogateescape")


def with_block(crontab: bytes, name: str, content: str | None) -> bytes:
    """The crontab with the block of ``name`` put in, replaced, or with ``content`` None taken out.

    Where the block stands several times it stands once afterwards. Raises SchedulerUnavailable where a marker of it stands
    alone: what belongs to us cannot be told any more.
    """
    spans = _spans(crontab, name)
    if not spans:
        if content is None:
            return crontab
        if crontab and not crontab.endswith(b"\n"):
            return crontab + b"\n" + _with_added(block(name, content))
        return crontab + block(name, content)
    first, last = spans[0]
    old = crontab[first:last]
    after = crontab[last:]
    for begin, end in reversed(spans[1:]):
        after = after[: begin - last] + after[end - last :]
    before = crontab[:first]
    if content is not None:
        new = block(name, content)
        return before + (_with_added(new) if _ADDED in old else new) + after
    if _ADDED not in old:
        return before + after
    # The line above gets its missing end back only if nothing follows it any more.
    return before + _with_added(after) if after else before[:-1]


def find(crontab: bytes, name: str) -> bytes | None:
    """What stands there under the markers of ``name``, markers included. Raises SchedulerUnavailable as ``with_block``."""
    spans = _spans(crontab, name)
    return b"".join(crontab[first:last] for first, last in spans) if spans else None


def _spans(crontab: bytes, name: str) -> list[tuple[int, int]]:
    """Where each block of ``name`` begins and ends. Editors add a CR, and leave out the last line end."""
    found = re.finditer(
        rb"^# (BEGIN|END) checkpoint-tool " + re.escape(name.encode()) + rb"[ \t\r]*(?:\n|\Z)", crontab, re.MULTILINE
    )
    markers = [(match[1], match.start(), match.end()) for match in found]
    kinds = [kind for kind, _, _ in markers]
    if kinds != [b"BEGIN", b"END"] * (len(kinds) // 2):
        raise SchedulerUnavailable(
            f"the markers of {name} in the crontab are not a BEGIN and an END line in turn: take out what is left of them",
            hint="crontab -e",
        )
    return [(begin[1], end[2]) for begin, end in zip(markers[::2], markers[1::2], strict=True)]


def names(crontab: bytes) -> list[str]:
    """Of what there are blocks, each name once."""
    found = re.finditer(rb"^# BEGIN checkpoint-tool ([a-z0-9_-]+)[ \t\r]*$", crontab, re.MULTILINE)
    return list(dict.fromkeys(match[1].decode() for match in found))


def read() -> bytes | None:
    """The crontab of this user, None where there is none. Raises SchedulerUnavailable."""
    done = _run("-l")
    if done.returncode == 0:
        return done.stdout
    if _NO_CRONTAB.search(done.stderr):
        return None
    # Anything else taken for "empty" would replace the user's crontab by ours.
    raise SchedulerUnavailable(f"crontab -l failed: {_words(done)}", hint="crontab -l")


def is_mute() -> bool:
    """Whether the crontab says that nobody is to get what its commands print."""
    return re.search(rb"""^[ \t]*MAILTO[ \t]*=[ \t]*(""|'')?[ \t]*$""", read() or b"", re.MULTILINE) is not None


def change(kept: Folder, edit: Callable[[bytes], bytes]) -> bool:
    """Replace the crontab by ``edit`` of it; whether that made a difference. What was there is kept in ``kept`` first.

    ``edit`` is made anew on each crontab that another program puts in its place meanwhile. Raises what ``edit`` raises, and
    SchedulerUnavailable; then the crontab is as it was.
    """
    # The backup of a write that another program undid: a new one for each try would push out the older ones.
    lost = None
    with _locked(kept):
        # From here: the wait for the lock may have taken longer.
        deadline = time.monotonic() + _PERSIST_S
        while time.monotonic() < deadline:
            before = read()
            after = edit(before or b"")
            if after == (before or b""):
                return lost is not None
            unmake = not after and kept.has("crontab.made")
            backup = _back_up(kept, before)
            try:
                replaced = _replace(before, after, remove=unmake)
            except SchedulerUnavailable:
                kept.remove(backup)
                raise
            if not replaced:
                kept.remove(backup)
                continue
            if lost is not None:
                kept.remove(lost)
            lost = backup
            kept.write("crontab.ours", after, owner="crontab")
            if unmake:
                kept.remove("crontab.made")
            elif before is None:
                kept.write("crontab.made", b"", owner="crontab")
            if _stays(after):
                return True
        raise SchedulerUnavailable(
            "the crontab is not what was written to it: another program keeps changing it, or it was not kept",
            hint="crontab -l",
        )


def undo(kept: Folder) -> None:
    """Put back what was there before our last change. Raises SchedulerUnavailable where it was changed since."""
    with _locked(kept):
        backups = sorted(name for name in kept.names() if name.startswith("crontab.bak-"))
        if not backups:
            raise SchedulerUnavailable("there is nothing to undo: we have changed no crontab", hint="crontab -l")
        try:
            ours = kept.read("crontab.ours")
        except FileNotFoundError:
            ours = b""
        if (read() or b"") != ours:
            path = f"{kept.path}/{backups[-1]}"
            raise SchedulerUnavailable(
                f"the crontab was changed since by another program; what was there before is {path}",
                hint=f"diff {shlex.quote(path)} <(crontab -l)",
            )
        before = kept.read(backups[-1])
        none = not before and backups[-1].endswith("-none")
        if not _replace(read(), before, remove=none) or (read() or b"") != before:
            raise SchedulerUnavailable("the crontab is not what was written to it", hint="crontab -l")
        kept.remove(backups[-1])
        kept.write("crontab.ours", before, owner="crontab")


def _with_added(block: bytes) -> bytes:
    """A block of ours that remembers that the line above it had no end; anything else as it is."""
    return block.replace(b"\n", b"\n" + _ADDED, 1) if block.startswith(b"# BEGIN checkpoint-tool ") else block


def _back_up(kept: Folder, before: bytes | None) -> str:
    backup = f"crontab.bak-{time.time_ns() // 1_000_000}" + ("-none" if before is None else "")
    kept.write(backup, before or b"", owner="crontab")
    for name in sorted(name for name in kept.names() if name.startswith("crontab.bak-"))[:-_KEPT]:
        kept.remove(name)
    return backup


def _replace(before: bytes | None, after: bytes, *, remove: bool) -> bool:
    """Put ``after`` in the place of ``before``; False, with nothing changed, where another program has changed it since.

    Raises SchedulerUnavailable.
    """
    if remove:
        if read() != before:
            return False
        done = _run("-r")
        if done.returncode and not _NO_CRONTAB.search(done.stderr):
            raise SchedulerUnavailable(f"crontab -r failed: {_words(done)}", hint="crontab -l")
        return True
    written = _write(after, before)
    if written is not None and written.returncode and not after.endswith(b"\n") and b"newline" in written.stderr:
        written = _write(after + b"\n", before)  # cron wants the last line to have an end
    if written is None:
        return False
    # BusyBox says that it could not write, and exits with 0.
    if written.returncode or (written.stderr and read() == before):
        raise SchedulerUnavailable(f"crontab did not take it: {_words(written)}; nothing was changed", hint="crontab -l")
    return True


def _write(crontab: bytes, before: bytes | None) -> "subprocess.CompletedProcess[bytes] | None":
    """Have the crontab program replace it; None, with nothing changed, unless ``before`` stands there twice in a row.

    The program is started first and asked last: its start takes a hundred times as long as its write, and what another
    program writes meanwhile would be lost.
    """
    argv = [_program(), "-"]
    with _errors():
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=_environ()) as program:
            try:
                assert program.stdin is not None
                first, rest = crontab[:1], crontab[1:]
                _feed(program.stdin.fileno(), first)
                # A program that writes in place shows what it has of ours by now: called off, it would leave no more than that.
                expected = (before, first, b"")
                if program.poll() is None and not (read() in expected and read() in expected):
                    _call_off(program)
                    return None
                _, errors = program.communicate(rest, timeout=_LIMIT_S)
            except BaseException:
                _call_off(program)
                raise
            return subprocess.CompletedProcess(argv, program.returncode, b"", errors)


def _feed(fd: int, data: bytes) -> None:
    """Write this and wait until the program has read it, and so waits for the rest."""
    try:
        os.write(fd, data)
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline and struct.unpack("=i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]:
            time.sleep(0.001)
    except OSError:
        pass  # it has ended and says why, or cannot be asked


def _call_off(program: "subprocess.Popen[bytes]") -> None:
    """End it before it has seen the end of its input: it would take what it has for the whole crontab."""
    program.send_signal(signal.SIGHUP)  # the one that makes vixie-cron remove its temporary file
    try:
        program.wait(2)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def _stays(crontab: bytes) -> bool:
    """Whether it stands there, and still does when a program that read the one before has had the time to write."""
    if (read() or b"") != crontab:
        return False
    time.sleep(_SETTLE_S)
    return (read() or b"") == crontab


def _program() -> str:
    return programs.find("crontab") or "/usr/bin/crontab"


def _environ() -> dict[str, str]:
    return programs.environ() | {"LC_ALL": "C"}


def _run(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    with _errors():
        return subprocess.run(
            [_program(), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environ(),
            timeout=_LIMIT_S,
            check=False,
        )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SchedulerUnavailable("there is no crontab command: install cron, or use another scheduler (--with)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerUnavailable(f"crontab cannot be run: {type(error).__name__}", hint="crontab -l") from None


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    """All that it said: the reason may stand in any of the lines."""
    lines = done.stderr.decode(errors="replace").split("\n")
    words = "; ".join(line.strip() for line in lines if line.strip())
    return words[:_LONGEST_WORDS] or f"exit status {done.returncode}"


@contextmanager
def _locked(kept: Folder) -> Iterator[None]:
    fd = os.open("crontab.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=kept.fd)
    try:
        deadline = time.monotonic() + _LIMIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > deadline:
                    raise SchedulerUnavailable(
                        "another checkpoint-tool has been changing the crontab for a long time"
                    ) from None
                time.sleep(0.05)
        kept.discard_temporaries("crontab")
        yield
    finally:
        os.close(fd)
