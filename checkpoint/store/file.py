"""The default store: plain JSON files in a folder.

    <id>.json                        unfinished: the only files that the self-check reads
    done/<id>.json                   finished, with a key: the receipt
    done/<workflow>/<run_id>.json    finished, without a key: the history
    failing/<workflow>.json          a copy of the last run of an ``exec`` that went wrong, until a good one
    .locks/<id>.lock                 the update lock, and the last token issued
    quarantine/<id>.json.bad-<ms>    set aside by ``repair``

A run ends in two steps: its terminal record is written in place (from then on it is finished), then moved below
``done``. A process that dies between the two leaves a finished record among the unfinished ones; readers pass over it
and the next change of that id moves it.
"""

import errno
import os.path
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

from checkpoint import codec, model
from checkpoint._load import load
from checkpoint.errors import AlreadyExists, CheckpointError, Damaged, Locked, NotFound, StoreUnavailable
from checkpoint.model import RUN_ID, Checkpoint
from checkpoint.store import DEFAULT_STORE, Change, Entry, changed_meanwhile, checked, utc_now
from checkpoint.store.disk import Folder, LockFile

_R = TypeVar("_R")

LOCK_WAIT_S = 10.0
_SUFFIX = ".json"
_FAILING = "failing"


def _unavailable(place: str, error: Exception) -> StoreUnavailable:
    words = error.strerror if isinstance(error, OSError) else str(error)
    return StoreUnavailable(f"{place} cannot be read: {words}")


def find_stores(stores: Iterable[str], roots: Iterable[str]) -> list[str]:
    """``stores``, and of each workspace in ``roots`` its own store and those of its agents; each store once.

    What cannot be looked into is named too: opening it gives the error that it deserves. So is the store that a
    workspace without any should have. Raises nothing.
    """
    found = list(stores)
    for root in roots:
        found += _stores_of(root) or [os.path.join(root, DEFAULT_STORE)]
    # The last part of a path is not resolved: a store that is a link is refused, and must not hide behind its target.
    places: dict[str, str] = {}
    for store in found:
        above, name = os.path.split(os.path.abspath(store))
        places.setdefault(os.path.join(os.path.realpath(above), name), store)
    return list(places.values())


def _stores_of(root: str) -> list[str]:
    homes = [root]
    unlisted = []
    agents = os.path.join(root, "agents")
    try:
        homes += sorted(entry.path for entry in os.scandir(agents))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return []  # nothing can be below it: it is named once, as the store it should have
        if not _is_absent(error):
            unlisted = [agents]
    return [store for home in homes if _is_there(store := os.path.join(home, DEFAULT_STORE))] + unlisted


def _is_there(path: str) -> bool:
    """Whether anything stands there, or that cannot be found out."""
    try:
        os.lstat(path)
    except OSError as error:
        return not _is_absent(error)
    return True


def _is_absent(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


class FileStore:
    """See the module. ``path``: the store's folder; it is made by the first ``create``."""

    def __init__(self, path: str) -> None:
        self.location = path
        with self._errors():  # the working folder may be gone
            self._path = os.path.abspath(os.path.expanduser(path))
        self._opened: Folder | None = None
        self._locks: Folder | None = None
        self._durable = False
        self._swept: set[str] = set()
        self._last: codec.Encoded | None = None

    def now(self) -> datetime:
        return utc_now()

    # --- changes ---------------------------------------------------------------------------------------------------

    def create(self, checkpoint: Checkpoint) -> Checkpoint:
        id = checked(checkpoint.id)
        codec.encode(checkpoint)  # what cannot be written must not leave an empty store behind
        with self._errors(), self._locked(id, make=True) as (folder, lock):
            if folder.has(id + _SUFFIX):
                raise AlreadyExists(f"{id} exists")
            done = self._done(folder)
            if checkpoint.idempotency_key is not None and done is not None and done.has(id + _SUFFIX):
                raise AlreadyExists(f"{id} exists and is finished")
            checkpoint = model.above_token(checkpoint, lock.read()[0] or self._last_token(done, id))
            encoded = codec.encode(checkpoint)
            lock.write(checkpoint.token)
            folder.write(id + _SUFFIX, encoded.raw, owner=id)
            self._last = encoded
            return checkpoint

    def update(self, name: str, change: Change) -> Checkpoint:
        with self._errors(), self._located(name) as (_, place, file, id, lock):
            before = self._read(place, file, id)
            after = change(before.checkpoint, self.now())
            if after is before.checkpoint:
                # The answer "nothing to do" is an acknowledgement too: whoever wrote this state may have died before
                # it was durable, and the power may go the moment after we have said "already done".
                place.sync(file)
                return after
            after = model.stamped(after, self.now())
            encoded = codec.encode(after, before)
            if after.token != before.checkpoint.token:
                lock.write(max(after.token, lock.read()[0]))
            place.write(file, encoded.raw, owner=id)
            self._last = encoded
            return after

    def archive(self, id: str, run_id: str) -> None:
        checked(id)
        with self._errors(), self._locked(id) as (folder, lock):
            file = id + _SUFFIX
            if not folder.has(file):
                return
            finished = self._read(folder, file, id)
            checkpoint = finished.checkpoint
            if checkpoint.run_id != run_id:
                return  # somebody else moved ours and began the next
            model.check_finished(checkpoint)
            with folder.child("done", make=True) as done:
                if checkpoint.idempotency_key is not None:
                    self._put_away(folder, done, file, finished)
                else:
                    with done.child(checkpoint.workflow, make=True) as history:
                        self._put_away(folder, history, model.bare(checkpoint.run_id) + _SUFFIX, finished)
            if checkpoint.invoked:
                self._mark(folder, id, checkpoint)
            # The next run of this id goes on counting from here, also when this one is pruned.
            lock.write(max(checkpoint.token, lock.read()[0]), durable=True)
            folder.remove(file)

    def acknowledge(self, workflow: str, by: str | None, reason: str) -> Checkpoint:
        checked(workflow)
        nothing = NotFound(f"no failed run of {workflow} is in sight", hint="checkpoint-tool list")
        with self._errors():
            # Looked at first without the lock, which leaves a file behind.
            if not self._folder().has(f"{_FAILING}/{workflow}{_SUFFIX}"):
                raise nothing
            with self._locked(workflow) as (folder, *_), folder.child(_FAILING) as place:
                mark = self._read_mark(place, workflow)
                if (by is None) is not model.is_acknowledged(mark):
                    raise nothing
                seen = model.acknowledged(mark, by, reason, self.now())
                folder.write(workflow + _SUFFIX, codec.encode(seen).raw, owner=workflow, into=place)
                return seen

    def delete(self, name: str, run_id: str) -> None:
        try:
            with self._errors(), self._located(name) as (_, place, file, id, _lock):
                checkpoint = self._read(place, file, id).checkpoint
                if checkpoint.run_id == run_id:
                    model.check_deletable(checkpoint)
                    place.remove(file)
        except NotFound:
            return

    def repair(self, name: str, seen: bytes | None, reseal: Callable[[str, bytes], Checkpoint] | None) -> str:
        with self._errors(), self._located(name) as (folder, place, file, id, lock):
            try:
                found: bytes | None = place.read(file)
            except Damaged:
                found = None
            if found != seen:
                # A whole and perhaps living run may stand here by now: another repair, and a start after it.
                raise changed_meanwhile(name)
            set_aside = f"{file}.bad-{time.time_ns() // 1_000_000}"
            # What was damaged may be the only other place that knew which tokens are out.
            last = lock.read()[0]
            with folder.child("quarantine", make=True) as quarantine:
                if reseal is None or found is None:
                    lock.write(last, durable=True)
                    place.move(file, quarantine, set_aside)
                else:
                    checkpoint = model.resealed(reseal(id, found), last)
                    encoded = codec.encode(checkpoint)
                    lock.write(checkpoint.token, durable=True)
                    folder.write(set_aside, found, owner=id, into=quarantine)
                    place.write(file, encoded.raw, owner=id)
            return f"quarantine/{set_aside}"

    # --- reads -------------------------------------------------------------------------------------------------------

    def load(self, name: str) -> Checkpoint:
        checked(name)  # a bad name is said to be one also where there is no store yet
        with self._errors():
            return self._look(name, lambda place, file, id: self._read(place, file, id).checkpoint)

    def raw(self, name: str) -> tuple[str, bytes]:
        checked(name)
        with self._errors():
            return self._look(name, lambda place, file, id: (id, place.read(file)))

    def scan(
        self,
        *,
        finished: bool = False,
        workflow: str | None = None,
        newest: int | None = None,
        failing: bool = False,
    ) -> Iterator[Entry]:
        # Of runs whose process died between their end and their move below ``done``.
        ended: list[Checkpoint] = []
        with self._errors():
            folder = self._folder()
            done = self._done(folder) if finished else None
            for entry in self._scan_folder(folder, "", workflow=workflow):
                checkpoint = entry.checkpoint
                if checkpoint is None or checkpoint.unfinished or (finished and not self._is_put_away(done, checkpoint)):
                    yield entry
                elif checkpoint.invoked:
                    ended.append(checkpoint)
            if failing:
                yield from self._failing(folder, workflow, ended)
            if done is None and finished:
                done = self._done(folder)  # the first run of all to finish may have done so while we looked
            if done is None:
                return
            yield from self._scan_folder(done, "done/", workflow=workflow)
            for name in sorted(done.names()) if workflow is None else [workflow]:
                if model.NAME.fullmatch(name) and done.is_folder(name):
                    try:
                        history = done.child(name)
                        yield from self._scan_folder(history, f"done/{name}/", id=name, newest=newest)
                    except OSError as error:
                        words = f"done/{name} cannot be read: {error.strerror}"
                        yield Entry(name, f"done/{name}", None, StoreUnavailable(words))
                    except StoreUnavailable as error:
                        yield Entry(name, f"done/{name}", None, error)

    def recent(self, newest: int) -> Iterator[Entry]:
        with self._errors():
            done = self._done(self._folder())
            if done is None:
                return
            # Only to choose which of very many to read: what is said of them comes from the records.
            receipts = sorted(
                (name for name in done.names() if name.endswith(_SUFFIX)), key=lambda name: done.modified(name), reverse=True
            )
            yield from self._scan_files(done, "done/", receipts[:newest])
            for name in done.names():
                if model.NAME.fullmatch(name) and done.is_folder(name):
                    yield from self._scan_folder(done.child(name), f"done/{name}/", id=name, newest=newest)

    def ended(self, runs: Sequence[tuple[str, str]]) -> list[bool]:
        with self._errors():
            folder = self._folder()
            done = self._done(folder)
            return [self._is_known(folder, done, id, run_id) for id, run_id in runs]

    def leftovers(self) -> list[str]:
        with self._errors():
            folder = self._folder()
            names = sorted(folder.temporaries())
            if folder.is_folder("quarantine"):
                with folder.child("quarantine") as quarantine:
                    names += [f"quarantine/{name}" for name in sorted(quarantine.names())]
            return names

    # --- the last run of a workflow, where it went wrong ---------------------------------------------------------------

    def _mark(self, folder: Folder, id: str, ended: Checkpoint) -> None:
        """Bring the mark of a workflow up to date, under the lock of ``id``; before the record leaves the store's root, so
        that a process that dies here leaves one of the two to be seen."""
        workflow = ended.workflow
        if ended.status is not model.Status.FAILED and not folder.has(f"{_FAILING}/{workflow}{_SUFFIX}"):
            return
        if id == workflow:
            self._mark_locked(folder, ended)
            return
        with self._locked(workflow):
            self._mark_locked(folder, ended)

    def _mark_locked(self, folder: Folder, ended: Checkpoint) -> None:
        file = ended.workflow + _SUFFIX
        with folder.child(_FAILING, make=True) as place:
            try:
                mark: Checkpoint | None = self._read_mark(place, ended.workflow)
            except FileNotFoundError:
                mark = None
            except CheckpointError:
                mark = None
                with folder.child("quarantine", make=True) as quarantine:
                    place.move(file, quarantine, f"{file}.bad-{time.time_ns() // 1_000_000}")
            after = model.failing_after(mark, ended, self.now())
            if after is None and mark is not None:
                place.remove(file)
            elif after is not None and after is not mark:
                folder.write(file, codec.encode(after).raw, owner=ended.workflow, into=place)

    def _read_mark(self, place: Folder, workflow: str) -> Checkpoint:
        """Raises FileNotFoundError, OSError, Damaged, SchemaMismatch."""
        raw = place.read(workflow + _SUFFIX)
        name = f"{_FAILING}/{workflow}"
        try:
            id = codec.parse_object(raw.decode())["id"]
            # Of a run beside another the id is longer than the workflow's name.
            mark = codec.decode(raw, id if model.may_be_of(id, workflow) else workflow, name=name).checkpoint
            model.check_mark(mark)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"{name} is damaged (schema): {error}", kind="schema") from None
        return mark

    def _failing(self, folder: Folder, workflow: str | None, ended: Iterable[Checkpoint]) -> Iterator[Entry]:
        marks: dict[str, tuple[str, Checkpoint | None]] = {}
        names: list[str] = []
        place: Folder | None = None
        try:
            place = folder.child(_FAILING)
            names = sorted(name.removesuffix(_SUFFIX) for name in place.names() if name.endswith(_SUFFIX))
        except FileNotFoundError:
            pass
        except (OSError, StoreUnavailable) as error:
            yield Entry(_FAILING, _FAILING, None, _unavailable(_FAILING, error))
        for name in names:
            if workflow not in (None, name) or place is None or not model.NAME.fullmatch(name):
                continue
            at = f"{_FAILING}/{name}{_SUFFIX}"
            try:
                marks[name] = at, self._read_mark(place, name)
            except FileNotFoundError:
                continue  # a good run has ended since
            except CheckpointError as error:
                yield Entry(name, at, None, error)
            except OSError as error:
                yield Entry(name, at, None, _unavailable(at, error))
        now = self.now()
        for checkpoint in ended:
            at, mark = marks.get(checkpoint.workflow, ("", None))
            after = model.failing_after(mark, checkpoint, now)
            if after is not mark:
                marks[checkpoint.workflow] = checkpoint.id + _SUFFIX, after
        for at, mark in marks.values():
            if mark is not None and not model.is_acknowledged(mark):
                yield Entry(mark.id, at, mark, None)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _folder(self) -> Folder:
        if self._opened is None:
            try:
                self._opened = Folder.open(self._path)
            except FileNotFoundError:
                raise NotFound(
                    f"there is no store at {self.location}; `start` makes one, --store or $CHECKPOINT_STORE names another",
                    hint="checkpoint-tool start --help",
                ) from None
        return self._opened

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise StoreUnavailable(f"the path {self.location} is too long") from error
            at = f" ({error.filename})" if isinstance(error.filename, str) else ""
            look = "df" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "ls -ld"
            raise StoreUnavailable(
                f"the store {self.location} cannot be used: {error.strerror or error}{at}",
                hint=f"{look} {shlex.quote(self.location)}",
            ) from error

    @contextmanager
    def _locked(self, id: str, *, make: bool = False) -> Iterator[tuple[Folder, LockFile]]:
        """The update lock of ``id``, for the length of one change, and the store's folder, durable."""
        # First, because it opens files: once the store is open there may be no more descriptors to be had.
        try_lock: Callable[[int], bool] = load("checkpoint.store.flock:try_lock")
        if self._opened is None and make:
            self._opened = Folder.make(self._path)
            self._durable = True
        folder = self._folder()
        if not self._durable:
            # A run that made this folder may have died before its entry was durable: not to be found out from here.
            Folder.make(self._path).close()
            self._durable = True
        if self._locks is None:
            self._locks = folder.child(".locks", make=True, durable=False)
        lock = self._wait(self._locks, id, try_lock)
        try:
            lock.sign()
            if id not in self._swept:
                folder.discard_temporaries(id)
                self._swept.add(id)
            yield folder, lock
        except OSError:
            # On a failing disk its temporary file could not be removed either: the next change is to look for it.
            self._swept.discard(id)
            raise
        finally:
            lock.close()

    def _wait(self, locks: Folder, id: str, try_lock: Callable[[int], bool]) -> LockFile:
        deadline = time.monotonic() + LOCK_WAIT_S
        pause = 0.0005
        lock = LockFile(locks, id)
        try:
            while True:
                taken = try_lock(lock.fd)
                if taken and lock.is_current():
                    return lock
                if time.monotonic() >= deadline:
                    raise Locked(
                        f"{id} is being changed by process {lock.read()[1]}, which has not let go for {LOCK_WAIT_S:.0f} s",
                        hint=f"checkpoint-tool show {id}",
                    )
                if taken:  # a file that somebody removed: others lock another one
                    lock.close()
                    lock = LockFile(locks, id)
                    continue
                # Of different length for each waiter, so that they do not all come back at the same moment.
                time.sleep(pause * (0.5 + time.perf_counter_ns() % 1000 / 1000))
                pause = min(pause * 1.5, 0.02)
        except BaseException:
            lock.close()
            raise

    @contextmanager
    def _located(self, name: str) -> Iterator[tuple[Folder, Folder, str, str, LockFile]]:
        """(store folder, folder of the record, file name, id, its lock), looked up again under the lock."""
        checked(name)
        folder = self._folder()
        id = self._locate(folder, name)[2]
        with self._locked(id) as (folder, lock):
            place, file, _ = self._locate(folder, name)
            yield folder, place, file, id, lock

    def _look(self, name: str, read: Callable[[Folder, str, str], _R]) -> _R:
        """What ``read(folder, file name, id)`` gives of the record that ``name`` means, without its lock."""
        folder = self._folder()
        while True:
            place, file, id = self._locate(folder, name)
            try:
                return read(place, file, id)
            except FileNotFoundError:
                continue  # moved or removed between the look and the read: found elsewhere now, or NotFound

    def _locate(self, folder: Folder, name: str) -> tuple[Folder, str, str]:
        """(folder, file name, id) of the record that ``name`` means. Raises NotFound."""
        said, name = name, checked(name)
        file = name + _SUFFIX
        if folder.has(file):
            return folder, file, name
        closed: Exception | None = None
        done = self._done(folder)
        if done is not None:
            if done.has(file):
                return done, file, name
            if done.is_folder(name):
                history = done.child(name)
                runs = [run for run in history.names() if RUN_ID.fullmatch(run.removesuffix(_SUFFIX))]
                if runs:
                    return history, max(runs), name
            if RUN_ID.fullmatch(name):
                for workflow in done.names():
                    try:
                        if done.is_folder(workflow):
                            history = done.child(workflow)
                            if history.has(file):
                                return history, file, workflow
                    except (OSError, StoreUnavailable) as error:
                        closed = error  # of another workflow, as a rule: it must not hide the runs of all
        if RUN_ID.fullmatch(name):
            for entry in self.scan(finished=True):
                if entry.checkpoint is not None and model.bare(entry.checkpoint.run_id) == name:
                    return self._locate(folder, entry.checkpoint.id)
        if closed is not None:
            raise closed
        raise NotFound(f"there is no checkpoint {said!r} in {self.location}", hint="checkpoint-tool list --all")

    def _done(self, folder: Folder) -> Folder | None:
        """The folder of finished runs, or None where there is none yet. A link or a file in its place is an error: taken
        for "nothing finished" it would let every key run again."""
        try:
            return folder.child("done")
        except FileNotFoundError:
            return None

    def _last_token(self, done: Folder | None, id: str) -> int:
        """The token of the last finished run: for a store that came back from a backup without its lock files."""
        if done is None or not done.is_folder(id):
            return 0
        with done.child(id) as history:
            runs = [name for name in history.names() if RUN_ID.fullmatch(name.removesuffix(_SUFFIX))]
            try:
                return self._read(history, max(runs), id).checkpoint.token if runs else 0
            except CheckpointError:
                return 0

    def _is_known(self, folder: Folder, done: Folder | None, id: str, run_id: str) -> bool:
        """Whether a record of the run stands anywhere it may; one that cannot be read counts, and is a finding itself."""
        file = id + _SUFFIX
        for place in (folder, done):
            if place is None or not place.has(file):
                continue
            try:
                if run_id in ("", self._read(place, file, id).checkpoint.run_id):
                    return True
            except FileNotFoundError:
                continue  # it ends while we look
            except (CheckpointError, OSError):
                return True
        if done is None:
            return False
        return done.has(f"{id}/{model.bare(run_id)}{_SUFFIX}" if run_id else id)

    def _is_put_away(self, done: Folder | None, checkpoint: Checkpoint) -> bool:
        """Whether a finished run that still stands among the unfinished ones is below ``done`` too."""
        if done is None:
            return False
        if checkpoint.idempotency_key is not None:
            return done.has(checkpoint.id + _SUFFIX)
        if not done.is_folder(checkpoint.workflow):
            return False
        return done.child(checkpoint.workflow).has(model.bare(checkpoint.run_id) + _SUFFIX)

    def _read(self, place: Folder, file: str, id: str) -> codec.Encoded:
        raw = place.read(file)
        last = self._last
        if last is not None and last.raw == raw and last.checkpoint.id == id:
            return last  # byte for byte what we checked or wrote last
        self._last = last = codec.decode(raw, id, name=file.removesuffix(_SUFFIX))
        return last

    def _scan_folder(
        self,
        folder: Folder,
        prefix: str,
        *,
        id: str | None = None,
        workflow: str | None = None,
        newest: int | None = None,
    ) -> Iterator[Entry]:
        files = sorted(folder.names())
        if newest is not None:
            files = files[-newest:]
        yield from self._scan_files(folder, prefix, files, id=id, workflow=workflow)

    def _scan_files(
        self, folder: Folder, prefix: str, files: Iterable[str], *, id: str | None = None, workflow: str | None = None
    ) -> Iterator[Entry]:
        for file in files:
            if workflow is not None and not model.may_be_of(file.removesuffix(_SUFFIX), workflow):
                continue
            if file.startswith(".") or (not prefix and file in ("done", "quarantine", _FAILING)):
                continue
            if prefix == "done/" and model.NAME.fullmatch(file) and folder.is_folder(file):
                continue
            name = file.removesuffix(_SUFFIX)
            try:
                if not file.endswith(_SUFFIX) or model.ID.fullmatch(name) is None:
                    # What is no UTF-8 could not be written down by any that report it.
                    file = file.encode("utf-8", "backslashreplace").decode()
                    name = file.removesuffix(_SUFFIX)
                    words = f"{prefix}{file} is no checkpoint's file (name): move it elsewhere"
                    raise Damaged(words, kind="name")
                checkpoint = codec.decode(folder.read(file), id or name, name=name).checkpoint
            except FileNotFoundError:
                continue  # finished or removed since we listed the folder
            except CheckpointError as error:
                yield Entry(name, prefix + file, None, error)
            except OSError as error:
                unreadable = StoreUnavailable(f"{prefix}{file} cannot be read: {error.strerror}")
                yield Entry(name, prefix + file, None, unreadable)
            else:
                yield Entry(name, prefix + file, checkpoint, None)

    def _put_away(self, folder: Folder, into: Folder, file: str, finished: codec.Encoded) -> None:
        """Write a finished record to where it belongs, from where it stands whole."""
        id = finished.checkpoint.id
        if into.has(file):
            try:
                stored = self._read(into, file, id).checkpoint
            except Damaged:
                with folder.child("quarantine", make=True) as quarantine:
                    into.move(file, quarantine, f"{file}.bad-{time.time_ns() // 1_000_000}")
            else:
                if stored.run_id != finished.checkpoint.run_id:
                    raise Damaged(
                        f"{into.path}/{file} holds another run of {id}: it will not be overwritten",
                        kind="id",
                        hint=f"checkpoint-tool show {stored.run_id}",
                    )
                # From a run that died before the unlink, or whose unlink was lost with the power. Either of the two may
                # have been pinned since: the one that was changed last stays.
                if stored.revision >= finished.checkpoint.revision:
                    into.sync(file)
                    return
        folder.write(file, finished.raw, owner=id, into=into)
