"""Where a self-check keeps what it remembers, and the stamps that say when one last ran.

    <state>/state.json               incidents and undelivered notices, written as checkpoints are
    <state>/state.lock               held while a self-check runs, or somebody asks for quiet
    <store>/.selfcheck/last-run.json the stamp, in each store that was looked at; in the state folder too

Standard library only: the lock is flock(2) by way of fcntl.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from checkpoint.codec import canonical_sha256, parse_object, timestamp
from checkpoint.errors import CheckpointError, Damaged, Locked, SchemaMismatch, StoreUnavailable
from checkpoint.store.disk import Folder, LockFile

STATE_FOLDER = ".selfcheck"
SCHEMA = "selfcheck-state/v1"
SCHEDULES_SCHEMA = "schedules/v1"
_STATE = "state.json"
_NAME = "state"
_STAMP = "last-run.json"
_STAMP_NAME = "last-run"
_LOCK_WAIT_S = 5.0
_PROBE = "probe"
_SEEN_LIMIT = 256 << 20


class Stamp(NamedTuple):
    """When a self-check last ran, and how often it is meant to (seconds)."""

    at: datetime
    period_s: int


class Place(NamedTuple):
    """Where a record is kept, and the folder that must be there for it, if any."""

    path: str
    within: str | None = None


def record_place(state: str | None, roots: Sequence[str], stores: Sequence[str]) -> Place:
    """``state`` if it is given; in the first workspace, which stays the same whatever stores come and go in it; else in the
    first store."""
    if state is not None:
        return Place(os.path.abspath(state))
    if roots:
        root = os.path.abspath(os.path.expanduser(roots[0]))
        return Place(os.path.join(root, "memory", STATE_FOLDER), root)
    return Place(state_of(stores[0]), os.path.dirname(state_of(stores[0])))


def state_of(store: str) -> str:
    """The state folder inside a store."""
    return os.path.join(os.path.abspath(os.path.expanduser(store)), STATE_FOLDER)


class StateFolder:
    """The folder ``path``, made 0700 where it is missing. Raises StoreUnavailable.

    ``schema``: of what is kept in it; ``within``: a folder that must be there, as a store, and is not ours to make.
    """

    def __init__(self, path: str, schema: str = SCHEMA, *, within: str | None = None) -> None:
        self.path = path
        self._schema = schema
        with _errors(path):
            # What is kept inside a store is bound by its rules: not followed through a link.
            if within is not None and os.path.dirname(path) == within and os.path.islink(within):
                raise StoreUnavailable(f"{within} is a symbolic link, and nothing is remembered through one")
            if within is not None and not os.path.isdir(within):
                raise StoreUnavailable(f"there is no {within}, so nothing can be remembered in it: --state names a folder")
            self.folder = Folder.make(os.path.abspath(path))

    @contextmanager
    def locked(self, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
        """Alone with the state. Raises Locked where another holds it for longer than that, and StoreUnavailable."""
        with _errors(self.path):
            lock = LockFile(self.folder, _NAME)
            try:
                deadline = time.monotonic() + wait_s
                while not _try_lock(lock.fd):
                    if time.monotonic() >= deadline:
                        raise Locked(f"another process has been at work in {self.path} for {wait_s:.0f} s and more")
                    time.sleep(0.05)
                self.folder.discard_temporaries(_NAME)
                yield
            finally:
                lock.close()

    def read(self) -> dict[str, Any] | None:
        """What was written last, or None. Raises Damaged, SchemaMismatch for a newer version's, StoreUnavailable."""
        with _errors(self.path):
            try:
                raw = self.folder.read(_STATE)
            except FileNotFoundError:
                return None
            try:
                fields = parse_object(raw.decode())
                digest = fields.pop("digest", None)
                if digest == canonical_sha256(fields):
                    if fields.pop("schema") != self._schema:
                        raise SchemaMismatch(f"{self.path}/{_STATE} was written by another version of checkpoint-tool")
                    return fields
            except (ValueError, KeyError):
                pass
            raise Damaged(f"{self.path}/{_STATE} is damaged", kind="digest")

    @classmethod
    def peek(cls, path: str, schema: str = SCHEMA) -> dict[str, Any] | None:
        """What was written last, read without the lock and without making anything; None where nothing can be had."""
        found = cls.__new__(cls)
        found.path, found._schema = path, schema
        try:
            with Folder.open(os.path.abspath(path)) as found.folder:
                return found.read()
        except (CheckpointError, OSError):
            return None

    def write(self, fields: Mapping[str, Any]) -> None:
        """Replace the state, whole and durable; only under the lock. Raises StoreUnavailable."""
        sealed = {"schema": self._schema, **fields}
        sealed["digest"] = canonical_sha256(sealed)
        with _errors(self.path):
            self.folder.write(_STATE, _json(sealed), owner=_NAME)

    def probe(self) -> None:
        """Write and remove a file, to find out whether this folder answers. Raises StoreUnavailable."""
        name = f".{_PROBE}.{os.urandom(6).hex()}.tmp"
        with _errors(self.path):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.folder.fd)
            try:
                os.write(fd, b"?")
                os.fsync(fd)
            finally:
                os.close(fd)
                self.folder.discard_temporaries(_PROBE)

    def seen(self, store: str) -> list[bytes]:
        """The lines that ``remember`` was given last for ``store``. Raises StoreUnavailable, Damaged."""
        with _errors(self.path):
            try:
                return self.folder.read(_seen_name(store), _SEEN_LIMIT).splitlines()[1:]
            except FileNotFoundError:
                return []

    def remember(self, store: str, lines: Iterable[bytes]) -> None:
        """Keep a line ``id run_id`` for each unfinished run of ``store``, with the time behind it since when it is missed;
        only under the lock. Raises StoreUnavailable."""
        name = _seen_name(store)
        data = b"\n".join([f"# {store}".encode("utf-8", "backslashreplace").replace(b"\n", b" "), *lines]) + b"\n"
        with _errors(self.path):
            if not self.folder.has(name) or self.folder.read(name, _SEEN_LIMIT) != data:
                self.folder.write(name, data, owner=_NAME)

    def set_aside(self) -> str:
        """Put a damaged state where it can be looked at, and say where; only under the lock. Raises StoreUnavailable."""
        name = f"{_STATE}.bad-{time.time_ns() // 1_000_000}"
        with _errors(self.path):
            self.folder.move(_STATE, self.folder, name)
        return f"{self.path}/{name}"

    def stamp(self, now: datetime, period_s: int) -> None:
        """Say that a self-check has run. Raises StoreUnavailable."""
        with _errors(self.path):
            lock = LockFile(self.folder, _STAMP_NAME)
            try:
                if _try_lock(lock.fd):  # else somebody else is saying the same right now
                    self.folder.discard_temporaries(_STAMP_NAME)
                    stamp = {"at": timestamp(now), "period_s": period_s}
                    self.folder.write(_STAMP, _json(stamp), owner=_STAMP_NAME)
            finally:
                lock.close()


def _seen_name(store: str) -> str:
    return f"unfinished-{hashlib.sha256(store.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.txt"


def last_check(store: str) -> Stamp | None:
    """The stamp that a self-check left in a store."""
    return None if store == "memory:" else last_run(state_of(store))


def last_run(path: str) -> Stamp | None:
    """The stamp in a state folder; None where there is none, or none that can be read."""
    try:
        with Folder.open(path) as folder:
            fields = parse_object(folder.read(_STAMP).decode())
        at = datetime.fromisoformat(fields["at"])
        return Stamp(at, int(fields["period_s"])) if at.tzinfo is not None else None
    except (OSError, CheckpointError, ValueError, KeyError, TypeError):
        return None


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode() + b"\n"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "does not lock files" if error.errno == errno.ENOLCK else error.strerror or str(error)
        raise StoreUnavailable(f"the state in {path} cannot be used: {what}") from error
