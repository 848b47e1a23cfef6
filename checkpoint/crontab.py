"""One user's crontab: blocks of our own in it, and every other byte left as it is.

    # BEGIN checkpoint-tool NAME
    */10 * * * * ...
    # END checkpoint-tool NAME

crontab(1) has no way to change a part: it is read whole and replaced whole. So all of ours do that under one lock; an edit by
a person in between is found by reading again, right before and right after, and the change is made anew on top of it.
"""

import errno
import fcntl
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from checkpoint import programs
from checkpoint.cron import Cron
from checkpoint.errors import SchedulerUnavailable, Usage
from checkpoint.store.disk import Folder

LONGEST_LINE = 998
"""What Debian's cron reads of a line's command (MAX_COMMAND in its cron.h), with its end."""
_TRIES = 5
_KEPT = 10
_NO_CRONTAB = re.compile(rb"no crontab for ", re.IGNORECASE)
_ADDED = b"# the line above had no end before this block\n"
_LIMIT_S = 30


def line(cron: Cron, argv: tuple[str, ...], folder: str, environ: Mapping[str, str]) -> str:
    """One line of a crontab. Raises Usage for what none can hold."""
    settings = "".join(f"{name}={shlex.quote(value)} " for name, value in environ.items())
    command = f"cd {shlex.quote(folder)} && {settings}exec {shlex.join(argv)}"
    if re.search(r"[\n\r\0]", command):
        raise Usage("a crontab line cannot hold a line break or NUL: rename the folder, or put the command into a script")
    # % is a line break to cron, also in quotes (crontab(5)); and two backslashes are a pair to it, so that one of ours before
    # one of the user's would free his %. Words with a backslash stand in single quotes: closed and opened again between them.
    command = command.replace("\\%", "\\''%").replace("%", "\\%")
    if len(command.encode()) > LONGEST_LINE:
        raise Usage(f"the command is {len(command.encode())} bytes long, and cron reads {LONGEST_LINE}: put it into a script")
    return f"{cron.text} {command}"


def block(name: str, content: str) -> bytes:
    """The lines of one thing, with their markers."""
    begin, end = _markers(name)
    return begin + content.encode("utf-8", "surrogateescape") + b"\n" + end


def with_block(crontab: bytes, name: str, content: str | None) -> bytes:
    """The crontab with the block of ``name`` put in, replaced, or with ``content`` None taken out.

    Raises SchedulerUnavailable where a marker of it stands alone: what belongs to us cannot be told any more.
    """
    found = find(crontab, name)
    if content is None:
        if found is None:
            return crontab
        before, old, after = found
        if _ADDED not in old:
            return before + after
        # The line above gets its missing end back only if nothing follows it any more.
        return before + _with_added(after) if after else before[:-1]
    new = block(name, content)
    if found is not None:
        before, old, after = found
        return before + (_with_added(new) if _ADDED in old else new) + after
    if crontab and not crontab.endswith(b"\n"):
        return crontab + b"\n" + _with_added(new)
    return crontab + new


def find(crontab: bytes, name: str) -> tuple[bytes, bytes, bytes] | None:
    """(before, the block, after), or None. Raises SchedulerUnavailable for a marker that stands alone."""
    begin, end = _markers(name)
    starts = [match.start() for match in re.finditer(b"^" + re.escape(begin), crontab, re.MULTILINE)]
    ends = [match.end() for match in re.finditer(b"^" + re.escape(end), crontab, re.MULTILINE)]
    if not starts and not ends:
        return None
    if len(starts) != 1 or len(ends) != 1 or ends[0] < starts[0]:
        raise SchedulerUnavailable(
            f"the markers of {name} in the crontab are not one BEGIN and one END line: take out what is left of them",
            hint="crontab -e",
        )
    return crontab[: starts[0]], crontab[starts[0] : ends[0]], crontab[ends[0] :]


def names(crontab: bytes) -> list[str]:
    """Of what there are blocks."""
    return [match[1].decode() for match in re.finditer(rb"^# BEGIN checkpoint-tool ([a-z0-9_-]+)\n", crontab, re.MULTILINE)]


def read() -> bytes | None:
    """The crontab of this user, None where there is none. Raises SchedulerUnavailable."""
    done = _run("-l")
    if done.returncode == 0:
        return done.stdout
    if done.returncode == 1 and _NO_CRONTAB.search(done.stderr):
        return None
    # Anything else taken for "empty" would replace somebody's crontab by ours.
    raise SchedulerUnavailable(f"crontab -l failed: {_words(done)}", hint="crontab -l")


def is_mute() -> bool:
    """Whether the crontab says that nobody is to get what its commands print."""
    return re.search(rb"""^[ \t]*MAILTO[ \t]*=[ \t]*(""|'')?[ \t]*$""", read() or b"", re.MULTILINE) is not None


def change(kept: Folder, edit: Callable[[bytes], bytes]) -> bool:
    """Replace the crontab by ``edit`` of it; whether that made a difference. What was there is kept in ``kept`` first.

    Raises what ``edit`` raises, and SchedulerUnavailable; then the crontab is as it was.
    """
    with _locked(kept):
        for _ in range(_TRIES):
            before = read()
            after = edit(before or b"")
            if after == (before or b""):
                return False
            if read() != before:
                continue  # somebody has edited it since
            unmake = not after and kept.has("crontab.made")
            backup = _back_up(kept, before)
            try:
                _write(after, remove=unmake)
            except SchedulerUnavailable:
                kept.remove(backup)
                raise
            if unmake:
                kept.remove("crontab.made")
            found = read()
            if (found or b"") == after:
                kept.write("crontab.ours", after, owner="crontab")
                if before is None:
                    kept.write("crontab.made", b"", owner="crontab")
                return True
        raise SchedulerUnavailable("somebody else keeps changing the crontab: nothing was changed", hint="crontab -l")


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
                f"the crontab was changed since by somebody else; what was there before is {path}",
                hint=f"diff {shlex.quote(path)} <(crontab -l)",
            )
        before = kept.read(backups[-1])
        _write(before, remove=not before and backups[-1].endswith("-none"))
        if (read() or b"") != before:
            raise SchedulerUnavailable("the crontab is not what was written to it", hint="crontab -l")
        kept.remove(backups[-1])
        kept.write("crontab.ours", before, owner="crontab")


def _with_added(block: bytes) -> bytes:
    """A block of ours that remembers that the line above it had no end; anything else as it is."""
    return block.replace(b"\n", b"\n" + _ADDED, 1) if block.startswith(b"# BEGIN checkpoint-tool ") else block


def _markers(name: str) -> tuple[bytes, bytes]:
    return f"# BEGIN checkpoint-tool {name}\n".encode(), f"# END checkpoint-tool {name}\n".encode()


def _back_up(kept: Folder, before: bytes | None) -> str:
    backup = f"crontab.bak-{time.time_ns() // 1_000_000}" + ("-none" if before is None else "")
    kept.write(backup, before or b"", owner="crontab")
    for name in sorted(name for name in kept.names() if name.startswith("crontab.bak-"))[:-_KEPT]:
        kept.remove(name)
    return backup


def _write(crontab: bytes, *, remove: bool) -> None:
    if remove:
        done = _run("-r")
        if done.returncode and not _NO_CRONTAB.search(done.stderr):
            raise SchedulerUnavailable(f"crontab -r failed: {_words(done)}", hint="crontab -l")
        return
    done = _run("-", data=crontab)
    if done.returncode:
        raise SchedulerUnavailable(f"crontab did not take it: {_words(done)}; nothing was changed", hint="crontab -l")


def _run(*arguments: str, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            [programs.find("crontab") or "/usr/bin/crontab", *arguments],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env=programs.environ() | {"LC_ALL": "C"},
            timeout=_LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SchedulerUnavailable("there is no crontab command: install cron, or use another scheduler (--with)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerUnavailable(f"crontab cannot be run: {type(error).__name__}", hint="crontab -l") from None


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


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
