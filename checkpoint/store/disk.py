"""The write protocol and the safe reads: what makes an acknowledged write survive, and a planted file harmless.

Everything goes through the descriptor of an opened folder, so that a path that is replaced meanwhile cannot lead us
elsewhere. Errors of the system come out as OSError; a file that is not what it should be as Damaged.
"""

import binascii
import errno
import fcntl
import os
import re
import shlex
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from checkpoint._load import load
from checkpoint.errors import DAMAGE_KINDS, Damaged, StoreUnavailable
from checkpoint.model import RECORD_LIMIT

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_BOTH = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
TEMPORARY = re.compile(r"\.([a-z0-9][a-z0-9_-]*)\.[0-9a-f]{12}\.tmp")


class Folder:
    """An open folder that is ours alone; for root also that of another user, to be read. Closed by ``close`` or when it is
    collected. ``owner``: the uid. ``within``: the uid of the folder that it is a part of."""

    def __init__(self, fd: int, path: str, within: int | None = None) -> None:
        self.fd = fd
        self.path = path
        self._synced: set[str] = set()
        self._status = status = os.fstat(fd)
        self.owner = status.st_uid
        if os.geteuid() not in (self.owner, 0):
            self.close()
            self.ensure_ours()
        if within not in (None, self.owner):
            # Its owner could plant receipts there: a key would count as used.
            self.close()
            raise load("checkpoint.store.rights:mixed")(path, self.owner)
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
            load("checkpoint.store.rights:refuse_making")(path, above)
            _sync_folder(os.path.dirname(above))
        for folder in reversed(missing):
            _make_folder(folder)
            _sync_folder(os.path.dirname(folder))
        if not missing:
            _sync_folder(os.path.dirname(path))
        return cls.open(path)

    def ensure_ours(self) -> None:
        """Before anything is made in it: raises StoreUnavailable where it belongs to another user."""
        if self.owner != os.geteuid():
            raise load("checkpoint.store.rights:refusal")(self.path, self.owner)

    def child(self, name: str, *, make: bool = False, durable: bool = True) -> "Folder":
        """A folder inside. Raises FileNotFoundError unless ``make``; made, it is durable once this returns."""
        path = os.path.join(self.path, name)
        if make:
            self.ensure_ours()
            _make_folder(name, self.fd)
            if durable and name not in self._synced:
                _flush(self.fd)
                self._synced.add(name)
        try:
            return Folder(os.open(name, _FOLDER, dir_fd=self.fd), path, within=self.owner)
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

    def is_named(self, path: str, inside: int | None = None) -> bool:
        """Whether ``path`` (in the folder ``inside``) still leads to this folder, and not to another or to none."""
        try:
            named = os.stat(path, dir_fd=inside, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(named, self._status)

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

    def changed(self, path: str) -> int:
        """When the file at ``path`` was last put in place or changed (ctime), in ns; 0 where there is none.

        No program can set it: a file that was copied or moved back has another one.
        """
        try:
            return os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_ctime_ns
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def has_second_name(self, name: str) -> bool:
        """Whether the entry is a file with another name somewhere (a hard link)."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_nlink > 1

    def is_folder(self, name: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def read(self, name: str, limit: int = RECORD_LIMIT) -> bytes:
        """The bytes of a regular file of ours, at most ``limit`` (4 MiB).

        Raises FileNotFoundError, OSError, and Damaged (of a kind that names what stands there instead).
        """
        return self.read_dated(name, limit)[0]

    def read_dated(self, name: str, limit: int = RECORD_LIMIT) -> tuple[bytes, int]:
        """The same, and the file's ctime in ns."""
        fd, status = self._open(name, limit)
        size = status.st_size
        try:
            # Whole with the first read, as a rule: nothing of ours is ever written in place.
            data = os.read(fd, size + 1)
            while len(data) != size and (chunk := os.read(fd, 1 << 20)) and len(data) <= limit:
                data += chunk
        finally:
            os.close(fd)
        if len(data) > limit:
            raise _damaged(name, "too-large")
        return data, status.st_ctime_ns

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
        self.ensure_ours()
        target.ensure_ours()
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
        self.ensure_ours()
        os.unlink(name, dir_fd=self.fd)
        self.confirm(f"{self.path}/{name} is removed")

    def move(self, name: str, into: "Folder", new_name: str) -> None:
        """Whatever stands under ``name`` (a link is moved, not followed)."""
        self.ensure_ours()
        into.ensure_ours()
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

    def touch(self, name: str) -> None:
        """Make an empty file, unless it is there. Not durable."""
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self.fd))

    def discard(self, name: str) -> None:
        """Remove an entry, if that can be done. Not durable."""
        self._discard(name)

    def _discard(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError:
            pass  # left for the next write of the same id, which looks for it

    def _open(self, name: str, limit: int = RECORD_LIMIT) -> tuple[int, os.stat_result]:
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
            if status.st_uid != self.owner:
                raise _damaged(name, "foreign-owner")
            # A second name (`cp -al`) does no harm: a write replaces the file, and leaves the other name as it was.
            if status.st_size > limit:
                raise _damaged(name, "too-large")
        except BaseException:
            os.close(fd)
            raise
        return fd, status


OPEN, KEPT, OVER, GONE = "open", "kept", "over", "gone"


class Memory(NamedTuple):
    """The last acknowledged record of an id, as its lock file remembers it.

    ``run``: the run id without its label. ``state``: OPEN, the record stands among the unfinished ones; KEPT, its
    receipt stands below ``done``; OVER, it ended in order and nothing has to be there; GONE, a person gave its record up.
    ``changed_ns``: ctime of the record's file.
    """

    run: str
    revision: int
    token: int
    state: str
    changed_ns: int

    @property
    def wants_nothing(self) -> bool:
        """Whether the store is whole without a record of this run."""
        return self.state in (OVER, GONE)

    def is_after(self, run: str, revision: int, token: int) -> bool:
        """Whether this was acknowledged later than that record was written."""
        return self.revision > revision if self.run == run else self.token >= token


class Noted(NamedTuple):
    """What a lock file says. ``token``: the last one known to be issued; ``pid``: of the last holder."""

    token: int
    pid: int
    memory: Memory | None


class LockFile:
    """The side file of one id: a lock for the milliseconds of a change, and the memory of what was acknowledged.

    The memory is written after the record is durable. It may lag behind (a kill, a power cut), never run ahead.
    The file is never unlinked while the store lives: a lock on a file that lost its name excludes no process.
    """

    def __init__(self, folder: Folder, id: str) -> None:
        self._name = f"{id}.lock"
        self.id = id
        self._folder = folder
        folder.ensure_ours()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self.fd = os.open(self._name, flags, 0o600, dir_fd=folder.fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise self._unsafe() from None
            raise
        status = os.fstat(self.fd)
        if not _is_safe(status):
            self.close()
            raise self._unsafe()
        self._shared = status.st_nlink > 1
        # Only where a umask took rights from us: changed at each step, the file would be written at each step.
        if stat.S_IMODE(status.st_mode) != 0o600 and not self._shared:
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

    def detach(self) -> None:
        """Replace a file that has a second name by a copy, still locked; only under the lock.

        Written through, the memory of the other store (`cp -al`) would run ahead of the records there.
        """
        if not self._shared:
            return
        self._folder.discard_temporaries(self.id)
        temporary = f".{self.id}.{os.urandom(6).hex()}.tmp"
        text = os.pread(self.fd, _LOCK_SIZE, 0)
        fd = os.open(temporary, _CREATE_BOTH, 0o600, dir_fd=self._folder.fd)
        try:
            os.fchmod(fd, 0o600)
            os.pwrite(fd, text if _noted(text).pid else b"", 0)
            fcntl.flock(fd, fcntl.LOCK_EX)  # before it has the name, so that none comes in between
            os.rename(temporary, self._name, src_dir_fd=self._folder.fd, dst_dir_fd=self._folder.fd)
        except BaseException:
            os.close(fd)
            self._folder._discard(temporary)
            raise
        self.close()
        self.fd, self._shared = fd, False

    def read(self) -> Noted:
        """Zeros and no memory where nothing whole is written."""
        return _noted(os.pread(self.fd, _LOCK_SIZE, 0))

    def sign(self) -> None:
        """Say who holds it, for those who wait in vain."""
        noted = self.read()
        if noted.pid != os.getpid():
            self.write(noted.token)

    def write(self, token: int, memory: Memory | None = None, *, durable: bool = False) -> None:
        """Note the last token issued and, if given, what was acknowledged."""
        # One write of fixed width: a process that dies here leaves the old lines or the new ones.
        line = b"%020d %010d\n" % (token, os.getpid())
        os.pwrite(self.fd, line if memory is None else line + _memory_line(memory), 0)
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


def peek(locks: Folder, id: str) -> Noted:
    """What the lock file of ``id`` says, read without the lock. Nothing where there is none that is safe to read."""
    try:
        fd = os.open(f"{id}.lock", _READ, dir_fd=locks.fd)
    except OSError:
        return _NOTHING_NOTED
    try:
        return _noted(os.pread(fd, _LOCK_SIZE, 0)) if _is_safe(os.fstat(fd)) else _NOTHING_NOTED
    except OSError:
        return _NOTHING_NOTED
    finally:
        _close_quietly(fd)


# The first line is all that version 0.1.0 wrote.
_LOCK_LINE = re.compile(rb"(\d{20}) (\d{10})\n")
_MEMORY_LINE = re.compile(rb"([0-9a-f-]{36}) (\d{20}) (\d{20}) (open|kept|over|gone) (\d{20}) ([0-9a-f]{8})\n")
_LOCK_SIZE = 256
_LARGEST_TOKEN = (1 << 63) - 1
_NOTHING_NOTED = Noted(0, 0, None)


def _is_safe(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _memory_line(memory: Memory) -> bytes:
    words = (memory.run.encode(), memory.revision, memory.token, memory.state.encode(), memory.changed_ns)
    text = b"%s %020d %020d %s %020d" % words
    # A power cut may leave half of it: a revision that was never written would make a whole record "older".
    return b"%s %08x\n" % (text, binascii.crc32(text))


def _noted(text: bytes) -> Noted:
    line = _LOCK_LINE.match(text)
    if line is None or int(line[1]) > _LARGEST_TOKEN:
        return _NOTHING_NOTED
    found = _MEMORY_LINE.match(text, line.end())
    if found is None or binascii.crc32(text[line.end() : found.start(6) - 1]) != int(found[6], 16):
        return Noted(int(line[1]), int(line[2]), None)
    memory = Memory(found[1].decode(), int(found[2]), int(found[3]), found[4].decode(), int(found[5]))
    return Noted(max(int(line[1]), memory.token), int(line[2]), memory)


class ClaimLock:
    """The side file of a claim, locked (flock(2)) by its holder for as long as it lives: the kernel lets go when it ends,
    and whoever shares the kernel can see that, from any container or namespace. ``text``: which claim."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, folder: Folder, id: str, text: bytes) -> "ClaimLock | None":
        """None while the holder of another claim has it. Raises OSError, and StoreUnavailable where nothing may be made."""
        folder.ensure_ours()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"{id}.owner", flags, 0o600, dir_fd=folder.fd)
        try:
            status = os.fstat(fd)
            is_safe = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
            if not is_safe or not _try_flock(fd, fcntl.LOCK_EX):
                os.close(fd)
                return None
            os.pwrite(fd, text, 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @staticmethod
    def is_held(folder: Folder, id: str, text: bytes) -> bool | None:
        """Whether the holder of this claim has it; None where it stands for another claim, or for none. Raises OSError."""
        fd = os.open(f"{id}.owner", _READ, dir_fd=folder.fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or os.pread(fd, len(text) + 1, 0) != text:
                return None
            return not _try_flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go in order: an empty file says nothing of any claim."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError:
                pass  # then it says that this claim is dead, and it is over
            _close_quietly(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _try_flock(fd: int, kind: int) -> bool:
    """Tried for some milliseconds: whoever asks whether it is held holds it for a moment, too."""
    deadline = time.monotonic() + 0.02
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if kind == fcntl.LOCK_SH or time.monotonic() >= deadline:
                return False
            time.sleep(0.002)


_LOCAL = frozenset(
    {"apfs", "bcachefs", "btrfs", "devtmpfs", "ecryptfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus"}
    | {"jffs2", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "tmpfs", "ubifs"}
    | {"udf", "vfat", "xfs", "zfs"}
)
"""Types of file systems (proc_filesystems(5)) that one kernel has to itself."""


def is_local(path: str) -> bool:
    """Whether only this kernel writes to the file system of ``path``; yes where the system does not tell (macOS)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split(" ") for line in file]
    except OSError:
        return True
    real = os.path.realpath(path) + "/"
    kind, longest = "", 0
    for fields in lines:  # proc_pid_mountinfo(5): the fifth field is where, the one behind the hyphen what
        where = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]).rstrip("/") + "/"
        if real.startswith(where) and len(where) >= longest:
            kind, longest = fields[fields.index("-") + 1], len(where)
    return kind in _LOCAL or not kind


_OCTAL = re.compile(r"\\([0-7]{3})")


LOG_LIMIT = 10 << 20
LOGS_KEPT = 5
_LOG_WAIT_S = 5.0
_TAIL = 1 << 20


def append_line(path: str, line: bytes, *, unless: bytes | None = None) -> None:
    """Append to a private log file, made 0600 where missing, in one write. Raises OSError; ELOOP for a link.

    Past 10 MiB it becomes ``path.1``, that ``path.2``, up to 5. ``unless``: nothing is done where the last megabyte
    holds this already.
    """
    _refuse_in_workspace_of_another(path)
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
    _refuse_in_workspace_of_another(path)
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


def _refuse_in_workspace_of_another(path: str) -> None:
    """Raises PermissionError."""
    above = os.path.dirname(os.path.abspath(path))
    if os.path.exists(above) and os.stat(above).st_uid != os.geteuid():
        load("checkpoint.store.rights:refuse_file")(path)


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
