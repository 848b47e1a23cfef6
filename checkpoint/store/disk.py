"""The write protocol and the safe reads: what makes an acknowledged write survive, and a planted file harmless.

Everything goes through the descriptor of an opened folder, so that a path that is replaced meanwhile cannot lead us
elsewhere. Errors of the system come out as OSError; a file that is not what it should be as Damaged.
"""

import errno
import fcntl
import os
import re
import shlex
import stat
import time
from collections.abc import Iterator

from checkpoint.errors import DAMAGE_KINDS, Damaged, StoreUnavailable
from checkpoint.model import RECORD_LIMIT

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
TEMPORARY = re.compile(r"\.([a-z0-9][a-z0-9_-]*)\.[0-9a-f]{12}\.tmp")


class Folder:
    """An open folder that is ours alone. Closed by ``close`` or when it is collected."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._synced: set[str] = set()
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            self.close()
            raise StoreUnavailable(
                f"the folder {path} belongs to another user (uid {status.st_uid}); run as that user, or name another store",
                hint=f"ls -ld {shlex.quote(path)}",
            )
        if status.st_mode & 0o022:
            self.close()
            raise StoreUnavailable(
                f"others may write into the folder {path}, and could plant checkpoints: take that right away",
                hint=f"chmod go-w {shlex.quote(path)}",
            )

    @classmethod
    def open(cls, path: str) -> "Folder":
        """Raises OSError; FileNotFoundError where there is none; StoreUnavailable for a link or an unsafe one."""
        try:
            return cls(os.open(path, _FOLDER), path)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.islink(path):
                raise StoreUnavailable(
                    f"{path} is a symbolic link, and a store is not followed through one: name what it points to",
                    hint=f"readlink -f {shlex.quote(path)}",
                ) from None
            raise

    @classmethod
    def make(cls, path: str) -> "Folder":
        """Open, made first where it is missing, with each folder above it; durable once this returns.

        A folder's own entry is made durable before anything is made inside it, so one that exists with something in it
        needs no more care, and only the last one may still hang in the air from a run that died right here.
        """
        missing = []
        above = path
        while not os.path.exists(above):
            missing.append(above)
            above = os.path.dirname(above)
        if missing:
            _sync_folder(os.path.dirname(above))
        for folder in reversed(missing):
            _make_folder(folder)
            _sync_folder(os.path.dirname(folder))
        if not missing:
            _sync_folder(os.path.dirname(path))
        return cls.open(path)

    def child(self, name: str, *, make: bool = False, durable: bool = True) -> "Folder":
        """A folder inside. Raises FileNotFoundError unless ``make``; made, it is durable once this returns."""
        path = os.path.join(self.path, name)
        if make:
            _make_folder(name, self.fd)
            if durable and name not in self._synced:
                _flush(self.fd)
                self._synced.add(name)
        try:
            return Folder(os.open(name, _FOLDER, dir_fd=self.fd), path)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise StoreUnavailable(
                    f"{path} is no folder of ours: a link or a file stands in its place", hint=f"ls -ld {shlex.quote(path)}"
                ) from None
            raise

    def close(self) -> None:
        if self.fd >= 0:
            _close_quietly(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def names(self) -> list[str]:
        # Opened anew: the position in a listing belongs to the open file, and two threads that list through one
        # descriptor, or a listing that could not be wound back at its end, would miss entries.
        fd = os.open(".", _FOLDER, dir_fd=self.fd)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def has(self, name: str) -> bool:
        """Whether an entry of that name stands here, whatever it is."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def modified(self, name: str) -> int:
        """When the entry was last written, in ns; 0 where it is gone."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            return 0

    def is_folder(self, name: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def read(self, name: str, limit: int = RECORD_LIMIT) -> bytes:
        """The bytes of a regular file of ours, at most ``limit`` (4 MiB).

        Raises FileNotFoundError, OSError, and Damaged (of a kind that names what stands there instead).
        """
        fd, size = self._open(name, limit)
        try:
            # Whole with the first read, as a rule: nothing of ours is ever written in place.
            data = os.read(fd, size + 1)
            while len(data) != size and (chunk := os.read(fd, 1 << 20)) and len(data) <= limit:
                data += chunk
        finally:
            os.close(fd)
        if len(data) > limit:
            raise _damaged(name, "too-large")
        return data

    def sync(self, name: str) -> None:
        """Make an existing file and its entry durable: before an answer drawn from it is given."""
        fd, _ = self._open(name)
        try:
            _flush(fd)
        finally:
            os.close(fd)
        _flush(self.fd)

    def write(self, name: str, data: bytes, *, owner: str, into: "Folder | None" = None) -> None:
        """Put a file in place, whole and durable, or leave everything as it was.

        The temporary file stands in this folder and is called after ``owner`` (an id: whose lock protects it), the
        file in ``into`` or this folder. Raises OSError with the old state whole and no temporary file left, or
        StoreUnavailable with ``applied`` where the new one is visible but could not be confirmed.
        """
        target = into or self
        temporary = f".{owner}.{os.urandom(6).hex()}.tmp"
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=self.fd)
        try:
            try:
                os.fchmod(fd, 0o600)
                _fill(fd, data)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=target.fd)
        except BaseException:
            self._discard(temporary)
            raise
        target.confirm(f"{target.path}/{name} is written")

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self.fd)
        self.confirm(f"{self.path}/{name} is removed")

    def move(self, name: str, into: "Folder", new_name: str) -> None:
        """Whatever stands under ``name`` (a link is moved, not followed)."""
        os.rename(name, new_name, src_dir_fd=self.fd, dst_dir_fd=into.fd)
        into.confirm(f"{self.path}/{name} is moved to {into.path}/{new_name}")
        self.confirm(f"{self.path}/{name} is moved to {into.path}/{new_name}")

    def confirm(self, done: str) -> None:
        """Make the entries of this folder durable. ``done``: what is visible already, and is said where this fails."""
        try:
            _flush(self.fd)
        except OSError as error:
            raise StoreUnavailable(
                f"{done}, but whether that would survive a power cut could not be confirmed: {error.strerror}",
                applied=True,
                hint=f"ls -ld {shlex.quote(self.path)}",
            ) from error

    def temporaries(self, owner: str | None = None) -> Iterator[str]:
        """Temporary files left over by a process that died; of ``owner``, or all."""
        for name in self.names():
            match = TEMPORARY.fullmatch(name)
            if match and owner in (None, match[1]):
                yield name

    def discard_temporaries(self, owner: str) -> None:
        """Only under the lock of ``owner``: without it, one of them may be another's write in the making."""
        for name in self.temporaries(owner):
            self._discard(name)

    def _discard(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError:
            pass  # left for the next write of the same id, which looks for it

    def _open(self, name: str, limit: int = RECORD_LIMIT) -> tuple[int, int]:
        """(descriptor, size)"""
        try:
            fd = os.open(name, _READ, dir_fd=self.fd)
        except OSError as error:
            kind = {errno.ELOOP: "symlink", errno.ENXIO: "not-a-file", errno.EOPNOTSUPP: "not-a-file"}.get(error.errno or 0)
            if kind:
                raise _damaged(name, kind) from None
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(name, "not-a-file")
            if status.st_uid != os.geteuid():
                raise _damaged(name, "foreign-owner")
            # A reader without the lock may have opened a file that was replaced a moment later: no name left, no harm.
            if status.st_nlink > 1:
                raise _damaged(name, "hard-link")
            if status.st_size > limit:
                raise _damaged(name, "too-large")
        except BaseException:
            os.close(fd)
            raise
        return fd, status.st_size


class LockFile:
    """The side file of one id: a lock for the milliseconds of a change, and the memory of the last token issued.

    It is never unlinked while the store lives: a lock on a file that lost its name excludes nobody.
    """

    def __init__(self, folder: Folder, id: str) -> None:
        self._name = f"{id}.lock"
        self._folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self.fd = os.open(self._name, flags, 0o600, dir_fd=folder.fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise self._unsafe() from None
            raise
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            self.close()
            raise self._unsafe()
        # Only where a umask took rights from us: changed at each step, the file would be written at each step.
        if stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(self.fd, 0o600)

    def _unsafe(self) -> StoreUnavailable:
        path = f"{self._folder.path}/{self._name}"
        return StoreUnavailable(f"{path} is no lock file of ours: remove what stands there", hint=f"ls -ld {shlex.quote(path)}")

    def is_current(self) -> bool:
        """Whether the file still has its name: if not, somebody removed it and others lock another one."""
        try:
            named = os.stat(self._name, dir_fd=self._folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self.fd))

    def read(self) -> tuple[int, int]:
        """(last token issued, pid of the last holder); zeros where nothing whole is written."""
        match = _LOCK_TEXT.fullmatch(os.pread(self.fd, 64, 0))
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def sign(self) -> None:
        """Say who holds it, for those who wait in vain."""
        token, pid = self.read()
        if pid != os.getpid():
            self.write(token)

    def write(self, token: int, *, durable: bool = False) -> None:
        # One write of fixed width: a process that dies here leaves the old line or the new one.
        os.pwrite(self.fd, b"%020d %010d\n" % (token, os.getpid()), 0)
        if durable:
            _flush(self.fd)
            _flush(self._folder.fd)

    def close(self) -> None:
        if self.fd >= 0:
            try:
                # Closing is not enough: a child that was forked meanwhile holds the same lock until it ends.
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            except OSError:
                pass
            _close_quietly(self.fd)
            self.fd = -1


_LOCK_TEXT = re.compile(rb"(\d{20}) (\d{10})\n")


LOG_LIMIT = 10 << 20
LOGS_KEPT = 5
_LOG_WAIT_S = 5.0
_TAIL = 1 << 20


def append_line(path: str, line: bytes, *, unless: bytes | None = None) -> None:
    """Append to a private log file, made 0600 where missing, in one write. Raises OSError; ELOOP for a link.

    Past 10 MiB it becomes ``path.1``, that ``path.2``, up to 5. ``unless``: nothing is done where the last megabyte
    holds this already.
    """
    fd = _open_log(path)
    try:
        status = os.fstat(fd)
        if unless is not None and unless in os.pread(fd, _TAIL, max(0, status.st_size - _TAIL)):
            os.fsync(fd)
            return
        if status.st_size and os.pread(fd, 1, status.st_size - 1) != b"\n":
            line = b"\n" + line  # a line that a full disk cut short must not take this one with it
        written = os.write(fd, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(path: str, data: bytes, *, mode: int | None = None) -> None:
    """Replace a file that other programs read, whole and durable: they see the old one or the new one. Raises OSError.

    ``mode``: None keeps that of the file that is there, and makes a new one 0600. What is no regular file (a link, a pipe,
    /dev/null) is left alone, with EINVAL; the folder is the user's own choice and may be one that others write to.
    """
    above, name = os.path.split(os.path.abspath(path))
    folder = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{name}.{os.urandom(6).hex()}.tmp"
    try:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            kept = stat.S_IMODE(found.st_mode) & 0o666
        except FileNotFoundError:
            kept = 0o600
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
        try:
            try:
                os.fchmod(fd, kept if mode is None else mode)
                _fill(fd, data)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            try:
                os.unlink(temporary, dir_fd=folder)
            except OSError:
                pass
            raise
        _flush(folder)
    finally:
        os.close(folder)


def _open_log(path: str) -> int:
    """The log, locked against rotation by others until it is closed, and rotated where it is full."""
    while True:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_uid == os.geteuid():
                os.fchmod(fd, 0o600)
            _lock_in_time(fd)
            if not _is_named(path, fd):
                os.close(fd)  # another rotated it while we waited
                continue
            if status.st_size < LOG_LIMIT:
                return fd
            for number in range(LOGS_KEPT - 1, 0, -1):
                try:
                    os.rename(f"{path}.{number}", f"{path}.{number + 1}")
                except FileNotFoundError:
                    pass
            os.rename(path, f"{path}.1")
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock_in_time(fd: int) -> None:
    """Raises OSError where another process keeps the log locked: waited for without an end, it would silence a check."""
    deadline = time.monotonic() + _LOG_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise OSError(errno.EWOULDBLOCK, "another process keeps it locked") from None
        time.sleep(0.02)


def _is_named(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _close_quietly(fd: int) -> None:
    """For descriptors that carry no data of ours: an error here would deny a change that is done and durable."""
    try:
        os.close(fd)
    except OSError:
        pass


def _fill(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    # Never tried twice: after a failed fsync the kernel drops the dirty pages and the next one succeeds.
    _flush(fd)


def _flush(fd: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):
        # On macOS fsync(2) leaves the data in the drive's cache; this does not (fcntl(2)).
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def _make_folder(name: str, inside: int | None = None) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=inside)
    except FileExistsError:
        return
    # A umask can take rights from us too. Nobody else could have put a link in its place since: the folder above is ours.
    os.chmod(name, 0o700, dir_fd=inside)


def _sync_folder(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return  # a folder we may not read is none that we could have made something in
    try:
        _flush(fd)
    finally:
        os.close(fd)


def _damaged(name: str, kind: str) -> Damaged:
    id = name.removesuffix(".json")
    return Damaged(f"{name} is damaged ({kind}): {DAMAGE_KINDS[kind]}", kind=kind, hint=f"checkpoint-tool repair {id}")
