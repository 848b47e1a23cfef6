"""The default store: plain JSON files in a folder.

    <id>.json                        unfinished: the only files that the self-check reads
    done/<id>.json                   finished, with a key: the receipt
    done/<workflow>/<run_id>.json    finished, without a key: the history
    failing/<workflow>.json          a copy of the last run of an ``exec`` that went wrong, until a good one
    .gitignore                       ``*``: git leaves a new store alone
    .locks/<id>.lock                 the update lock, and what was acknowledged last: token, run id, revision
    .locks/<id>.owner                locked by the holder of a claim for as long as it lives
    .locks/unfinished/<id>           empty: an index, by which a record that vanished is missed
    quarantine/<id>.json.bad-<ms>    set aside by ``repair``

A write goes in this order: record (durable), then lock file, then the answer. A process that dies in between leaves a
lock file that knows less than the record, which is no damage. One that knows more means that an old record was put back.
A power cut may take the lock file's last words; what it says is checked by a sum, and half a line counts as none.

A run ends in two steps: its terminal record is written in place (from then on it is finished), then moved below
``done``. A process that dies between the two leaves a finished record among the unfinished ones; readers pass over it
and the next change of that id moves it.
"""

import bisect
import errno
import functools
import os.path
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple, TypeVar

from checkpoint import codec, model
from checkpoint._load import load
from checkpoint.errors import AlreadyExists, CheckpointError, Damaged, Locked, NotFound, StoreUnavailable
from checkpoint.model import ID, RUN_ID, Checkpoint
from checkpoint.store import DEFAULT_STORE, Attestation, Change, Entry, MadeStore, changed_meanwhile, checked, utc_now
from checkpoint.store.disk import GONE, KEPT, OPEN, OVER, ClaimLock, Folder, LockFile, Memory, Noted, is_local, peek

_R = TypeVar("_R")

LOCK_WAIT_S = 10.0
_SUFFIX = ".json"
_IGNORE = ".gitignore"
_UNFINISHED = "unfinished"
_MOST_REMEMBERED = 10_000
_PROMPT_NS = 50_000_000
_YOUNG_NS = 10_000_000_000
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


def _claim_text(checkpoint: Checkpoint) -> bytes:
    # Always as long: it is written over that of the claim before, which is not taken away first.
    return f"{checkpoint.run_id} {checkpoint.token:020}\n".encode()


def _is_over(memory: Memory | None, run_id: str) -> bool:
    """Whether the run ended in order, by the memory of its lock file, though no record of it stands any more (prune)."""
    return memory is not None and memory.run == model.bare(run_id) and memory.state == OVER


class _Spot(NamedTuple):
    """Where a record stands, under its update lock. ``folder``: the store's; ``place``: the record's."""

    folder: Folder
    locks: Folder
    lock: LockFile
    noted: Noted
    place: Folder
    file: str
    id: str

    @property
    def at_top(self) -> bool:
        return self.place is self.folder


class FileStore:
    """See the module. ``path``: the store's folder; it is made by the first ``create``, which calls ``made``.

    Where it was searched for: ``looked``, the directories without one, and ``passed``, stores of other users.
    """

    def __init__(
        self, path: str, *, looked: Sequence[str] = (), passed: Sequence[str] = (), made: MadeStore | None = None
    ) -> None:
        self.location = path
        self._looked, self._passed, self._made = tuple(looked), tuple(passed), made
        with self._errors():  # the working folder may be gone
            self._path = os.path.abspath(os.path.expanduser(path))
        self._opened: Folder | None = None
        self._locks: Folder | None = None
        self._durable = False
        self._swept: set[str] = set()
        self._last: codec.Encoded | None = None
        self._acknowledged: dict[str, Memory] = {}
        """What this object has answered for, by id: a store that takes its place must know at least as much."""

    def now(self) -> datetime:
        return utc_now()

    # --- changes ---------------------------------------------------------------------------------------------------

    def create(self, checkpoint: Checkpoint) -> Checkpoint:
        id = checked(checkpoint.id)
        codec.encode(checkpoint)  # what cannot be written must not leave an empty store behind
        file = id + _SUFFIX
        with self._errors(), self._locked(id, make=True) as (folder, locks, lock):
            spot = _Spot(folder, locks, lock, lock.read(), folder, file, id)
            if folder.has(file):
                raise AlreadyExists(f"{id} exists")
            done = self._done(folder)
            if checkpoint.idempotency_key is not None and done is not None and done.has(file):
                raise AlreadyExists(f"{id} exists and is finished")
            memory, own = self._remembered(spot)
            vanished = self._vanished(folder, done, id, memory)
            if vanished is not None:
                raise self._lost(id) if own else vanished
            last = spot.noted.token or self._last_token(done, id)
            if memory is not None and done is not None and _was_copied(memory, done.changed(f"{id}/{memory.run}{_SUFFIX}")):
                last += _leap()
            checkpoint = model.after_run(model.above_token(checkpoint, last), memory and memory.run)
            encoded = codec.encode(checkpoint)
            self._keep_from_git(folder, id)
            self._put(spot, encoded, last)
            return checkpoint

    def issue(self, id: str) -> int:
        with self._errors(), self._located(id) as spot:
            token = max(spot.noted.token, self._read(spot.place, spot.file, spot.id).checkpoint.token) + 1
            spot.lock.write(token)
            return token

    def update(self, name: str, change: Change) -> Checkpoint:
        with self._errors(), self._located(name) as spot:
            before, changed_ns = self._read_dated(spot.place, spot.file, spot.id)
            self._refuse(spot, before.checkpoint)
            after = change(before.checkpoint, self.now())
            last = _known_token(spot.noted, before.checkpoint, changed_ns)
            if after is before.checkpoint:
                # The answer "nothing to do" is an acknowledgement too: whoever wrote this state may have died before
                # it was durable, and the power may go the moment after we have said "already done".
                self._check_held(spot)
                spot.place.sync(spot.file)
                self._acknowledge_again(spot, after, last, changed_ns)
                return after
            if after.token != before.checkpoint.token:
                after = model.above_token(after, last)
            after = model.stamped(after, self.now())
            self._put(spot, codec.encode(after, before), last)
            return after

    def archive(self, id: str, run_id: str) -> None:
        checked(id)
        file = id + _SUFFIX
        with self._errors(), self._locked(id) as (folder, locks, lock):
            if not folder.has(file):
                return
            spot = _Spot(folder, locks, lock, lock.read(), folder, file, id)
            finished = self._read(folder, file, id)
            checkpoint = finished.checkpoint
            if checkpoint.run_id != run_id:
                return  # another process moved it and began the next
            self._refuse(spot, checkpoint)
            model.check_finished(checkpoint)
            self._check_held(spot)
            keyed = checkpoint.idempotency_key is not None
            with folder.child("done", make=True) as done:
                if keyed:
                    self._put_away(folder, done, file, finished)
                else:
                    with done.child(checkpoint.workflow, make=True) as history:
                        self._put_away(folder, history, model.bare(checkpoint.run_id) + _SUFFIX, finished)
                changed_ns = done.changed(_finished_place(checkpoint))
            if checkpoint.invoked:
                self._mark(folder, id, checkpoint)
            # The next run of this id goes on counting from here, also when this one is pruned.
            state = KEPT if keyed else OVER
            self._acknowledge(spot, checkpoint, state, checkpoint.token, changed_ns, durable=True)
            folder.remove(file)
            self._unmark(locks, id)

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
            with self._errors(), self._located(name, run_id) as spot:
                checkpoint = self._read(spot.place, spot.file, spot.id).checkpoint
                if checkpoint.run_id == run_id:
                    model.check_deletable(checkpoint)
                    self._check_held(spot)
                    # Durable first: a lock file that still wants the receipt would call it vanished.
                    self._expect_nothing(spot, OVER, model.bare(run_id))
                    spot.place.remove(spot.file)
                    if spot.at_top:
                        self._unmark(spot.locks, spot.id)
        except NotFound:
            return

    def repair(self, name: str, seen: bytes | None, reseal: Callable[[str, bytes], Checkpoint] | None) -> str:
        with self._errors():
            lost = self._accept_loss(name) if seen is None and reseal is None else None
            if lost is not None:
                return lost
        with self._errors(), self._located(name) as spot:
            try:
                found: bytes | None = spot.place.read(spot.file)
            except Damaged:
                found = None
            if found != seen:
                # A whole and perhaps living run may stand here by now: another repair, and a start after it.
                raise changed_meanwhile(name)
            self._check_held(spot)
            set_aside = f"{spot.file}.bad-{time.time_ns() // 1_000_000}"
            # What was damaged may be the only other place that knew which tokens are out.
            last = spot.noted.token or _tokens_in(found or b"")
            with spot.folder.child("quarantine", make=True) as quarantine:
                if reseal is None or found is None:
                    spot.lock.write(last, durable=True)
                    if spot.at_top or spot.file == spot.id + _SUFFIX:
                        self._expect_nothing(spot, GONE)
                    spot.place.move(spot.file, quarantine, set_aside)
                    if spot.at_top:
                        self._unmark(spot.locks, spot.id)
                else:
                    checkpoint = self._accepted(spot, reseal(spot.id, found), last)
                    encoded = codec.encode(checkpoint)
                    spot.lock.write(max(last, checkpoint.token), durable=True)
                    spot.folder.write(set_aside, found, owner=spot.id, into=quarantine)
                    self._put(spot, encoded, last)
            return f"quarantine/{set_aside}"

    # --- reads -------------------------------------------------------------------------------------------------------

    def load(self, name: str) -> Checkpoint:
        checked(name)  # a bad name is said to be one also where there is no store yet
        with self._errors():
            return self._look(name, self._judged)

    def receipt(self, id: str) -> Checkpoint | None:
        file = checked(id) + _SUFFIX
        with self._errors():
            done = self._done(self._folder())
            if done is None or not done.has(file):
                return None
            found = self._read(done, file, id).checkpoint
            done.sync(file)
            return found

    def raw(self, name: str, *, place: str | None = None) -> tuple[str, bytes]:
        checked(name)
        with self._errors():
            if place is not None:
                return self._at(self._folder(), place, lambda folder, file, id: (id, folder.read(file)))
            return self._look(name, lambda _, folder, file, id: (id, folder.read(file)))

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
            locks = _child_if_safe(folder, ".locks")
            files = sorted(folder.names())
            check = self._check_of(folder, locks, thorough=finished)
            for entry in self._scan_files(folder, "", files, workflow=workflow, check=check):
                checkpoint = entry.checkpoint
                if checkpoint is None or checkpoint.unfinished or (finished and not _is_put_away(folder, checkpoint)):
                    yield entry
                elif checkpoint.invoked:
                    ended.append(checkpoint)
            if failing:
                yield from self._failing(folder, workflow, ended)
            if locks is not None:
                yield from self._scan_vanished(folder, locks, files, workflow, thorough=finished)
            if not finished:
                return
            if done is None:
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

    # --- proof of life ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def shared(self) -> bool:
        return not is_local(self._path)

    def attest(self, checkpoint: Checkpoint) -> Attestation | None:
        if self.shared or checkpoint.lease is None:
            return None
        try:
            locks = self._locks or self._folder().child(".locks")
            return ClaimLock.take(locks, checkpoint.id, _claim_text(checkpoint))
        except (OSError, CheckpointError):
            return None

    def is_attested(self, checkpoint: Checkpoint) -> bool | None:
        if self.shared or checkpoint.lease is None:
            return None
        try:
            locks = self._locks or self._folder().child(".locks")
            return ClaimLock.is_held(locks, checkpoint.id, _claim_text(checkpoint))
        except (OSError, CheckpointError):
            return None

    def ended(self, runs: Sequence[tuple[str, str]]) -> list[bool]:
        with self._errors():
            folder = self._folder()
            done = self._done(folder)
            locks = _child_if_safe(folder, ".locks")
            return [
                self._is_known(folder, done, id, run_id) or (locks is not None and _is_over(peek(locks, id).memory, run_id))
                for id, run_id in runs
            ]

    def leftovers(self) -> list[str]:
        with self._errors():
            folder = self._folder()
            names = sorted(folder.temporaries())
            if folder.is_folder("quarantine"):
                with folder.child("quarantine") as quarantine:
                    names += [f"quarantine/{name}" for name in sorted(quarantine.names())]
            return names

    def second_names(self) -> list[str]:
        with self._errors():
            folder = self._folder()
            places = [("", folder)]
            done = _child_if_safe(folder, "done")
            if done is not None:
                places.append(("done/", done))
                for name in sorted(done.names()):
                    history = _child_if_safe(done, name) if model.NAME.fullmatch(name) else None
                    if history is not None:
                        places.append((f"done/{name}/", history))
            return [
                prefix + file
                for prefix, place in places
                for file in sorted(place.names())
                if file.endswith(_SUFFIX) and place.has_second_name(file)
            ]

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
        """The store's folder, as its path leads to it now: it may have been moved, or another put in its place."""
        held = self._opened
        if held is not None:
            if held.is_named(self._path):
                return held
            self._opened, self._locks, self._durable = None, None, False
            self._swept.clear()
        try:
            opened = self._opened = Folder.open(self._path)
        except FileNotFoundError:
            raise self._missing() from None
        return opened

    def _missing(self) -> NotFound:
        state = os.path.join(os.path.dirname(self._path), ".selfcheck")
        known = load("checkpoint.store.state:StateFolder").peek(state)
        stamp = load("checkpoint.store.state:last_run")(state)
        if known is not None and self._path in known.get("stores", ()):
            last = f", last at {model.clock(stamp.at)}" if stamp else ""
            return NotFound(
                f"there is no store at {self.location}, but a self-check watches it{last}: it was moved, removed or cleaned"
                " away, and what it held is not finished for that",
                hint="checkpoint-selfcheck incidents",
            )
        words = f"there is no store at {self.location}"
        if self._looked:
            words = f"there is no store: no {self.location} in {', '.join(self._looked)}"
        if self._passed:
            words += f" (passed over, as another user owns it: {', '.join(self._passed)})"
        return NotFound(
            f"{words}; `start` makes one, --store or $CHECKPOINT_STORE names another", hint="checkpoint-tool start --help"
        )

    def _ready(self, id: str, *, make: bool) -> Folder:
        """The store's folder, durable, for a change of ``id``. Raises NotFound unless ``make``."""
        try:
            folder = self._folder()
        except NotFound:
            self._refuse_lost(id, None)
            if not make:
                raise
            new = not os.path.lexists(self._path)
            folder = self._opened = Folder.make(self._path)
            self._durable = True
            if new and self._made is not None:
                self._made(self._path, self._passed)
        if not self._durable:
            # A run that made this folder may have died before its entry was durable: not to be found out from here.
            Folder.make(self._path).close()
            self._durable = True
        return folder

    def _lock_folder(self, folder: Folder) -> Folder:
        locks = self._locks
        if locks is None or not locks.is_named(".locks", folder.fd):
            locks = self._locks = folder.child(".locks", make=True, durable=False)
        return locks

    def _keep_from_git(self, folder: Folder, id: str) -> None:
        """In a new store: what git does not see, it neither stashes nor cleans away nor takes back to an older version."""
        if folder.has(_IGNORE) or any(not name.startswith(".") for name in folder.names()):
            return
        try:
            folder.write(_IGNORE, b"*\n", owner=id)
        except StoreUnavailable as error:
            # Of the run nothing is written yet, and "is written" would be taken for that.
            raise error.__cause__ or error from None

    # What was acknowledged, and whether the store still says so.

    def _remembered(self, spot: _Spot) -> tuple[Memory | None, bool]:
        """(what was acknowledged last, whether only this object knows of it)."""
        memory, own = spot.noted.memory, self._acknowledged.get(spot.id)
        if own is not None and (memory is None or (own != memory and own.is_after(memory.run, memory.revision, memory.token))):
            return own, True
        return memory, False

    def _refuse(self, spot: _Spot, checkpoint: Checkpoint) -> None:
        """Raises Damaged for a record that is not the last one acknowledged; StoreUnavailable where this object wrote
        that one, and another store stands in its place."""
        if not spot.at_top:
            return
        memory, own = self._remembered(spot)
        problem = _problem(checkpoint, memory, spot.folder)
        if problem is not None:
            raise self._lost(spot.id) if own and problem.kind == "older" else problem

    def _refuse_lost(self, id: str, noted: Noted | None) -> None:
        """Raises StoreUnavailable where this object has answered for a record of ``id`` that must still be there."""
        own = self._acknowledged.get(id)
        if own is None or own.wants_nothing:
            return
        memory = noted.memory if noted is not None else None
        if memory is None or own.is_after(memory.run, memory.revision, memory.token):
            raise self._lost(id)

    def _lost(self, id: str) -> StoreUnavailable:
        own = self._acknowledged[id]
        return StoreUnavailable(
            f"the store {self.location} was moved, removed or replaced while this process worked in it: what it wrote of"
            f" {id} (run {own.run}, revision {own.revision}) is not there; put it back",
            hint=f"ls -ld {shlex.quote(self._path)}",
        )

    def _check_held(self, spot: _Spot) -> None:
        """Raises StoreUnavailable where the paths no longer lead to what is locked: others would write beside us."""
        if spot.folder.is_named(self._path) and spot.locks.is_named(".locks", spot.folder.fd) and spot.lock.is_current():
            return
        raise StoreUnavailable(
            f"the store {self.location} or its .locks was moved or replaced in this very moment: nothing is changed, try again",
            hint=f"ls -ld {shlex.quote(self._path)}",
        )

    def _put(self, spot: _Spot, encoded: codec.Encoded, last: int) -> None:
        """Write the record, durable, and note in the lock file what is acknowledged by that."""
        checkpoint, memory = encoded.checkpoint, spot.noted.memory
        run = model.bare(checkpoint.run_id)
        is_last = memory is not None and memory.run == run
        self._check_held(spot)
        if spot.at_top and not (is_last and memory is not None and memory.state == OPEN):
            with spot.locks.child(_UNFINISHED, make=True, durable=False) as marks:
                marks.touch(spot.id)
        spot.place.write(spot.file, encoded.raw, owner=spot.id)
        self._last = encoded
        if not spot.at_top and not is_last:
            return  # an older run of the history
        state = OPEN if spot.at_top or memory is None else memory.state
        try:
            self._acknowledge(spot, checkpoint, state, last, spot.place.changed(spot.file))
        except OSError as error:
            raise StoreUnavailable(
                f"{spot.place.path}/{spot.file} is written, but its lock file could not be: {error.strerror}",
                applied=True,
                hint=f"checkpoint-tool show {spot.id}",
            ) from error

    def _acknowledge(
        self, spot: _Spot, checkpoint: Checkpoint, state: str, last: int, changed_ns: int, *, durable: bool = False
    ) -> None:
        memory = Memory(model.bare(checkpoint.run_id), checkpoint.revision, checkpoint.token, state, changed_ns)
        spot.lock.write(max(last, checkpoint.token, spot.noted.token), memory, durable=durable)
        self._own(spot.id, memory)

    def _acknowledge_again(self, spot: _Spot, checkpoint: Checkpoint, last: int, changed_ns: int) -> None:
        """The writer of this state may have died before the lock file knew of it."""
        memory, run = spot.noted.memory, model.bare(checkpoint.run_id)
        if memory is not None and (memory.run, memory.revision) == (run, checkpoint.revision):
            self._own(spot.id, memory)
        elif spot.at_top:
            self._acknowledge(spot, checkpoint, OPEN, last, changed_ns)

    def _own(self, id: str, memory: Memory) -> None:
        self._acknowledged.pop(id, None)
        self._acknowledged[id] = memory
        if len(self._acknowledged) > _MOST_REMEMBERED:
            del self._acknowledged[next(iter(self._acknowledged))]

    def _expect_nothing(self, spot: _Spot, state: str, run: str | None = None) -> None:
        """Note, durable, that the record or receipt of this id (of ``run``, if given) is meant to be gone."""
        memory = spot.noted.memory
        if memory is None or memory.wants_nothing or run not in (None, memory.run):
            return
        if spot.at_top and memory.state == KEPT:
            return  # what goes is an old file that came back, and the receipt stays
        memory = memory._replace(state=state)
        spot.lock.write(spot.noted.token, memory, durable=True)
        self._own(spot.id, memory)

    def _accepted(self, spot: _Spot, checkpoint: Checkpoint, last: int) -> Checkpoint:
        """The record that a person took in, as the last one acknowledged."""
        memory = spot.noted.memory
        if (
            memory is not None
            and spot.at_top
            and memory.is_after(model.bare(checkpoint.run_id), checkpoint.revision, checkpoint.token)
        ):
            if memory.run != model.bare(checkpoint.run_id):
                last += 1
            checkpoint = checkpoint._replace(revision=max(checkpoint.revision, memory.revision + 1))
        return model.resealed(checkpoint, last)

    def _accept_loss(self, name: str) -> str | None:
        """Take it that the record is gone, where it vanished: the place of what knew of it."""
        id = checked(name)
        seen = _child_if_safe(self._folder(), ".locks")
        if seen is None or self._vanished(self._folder(), None, id, peek(seen, id).memory) is None:
            return None
        with self._locked(id) as (folder, locks, lock):
            noted = lock.read()
            if self._vanished(folder, self._done(folder), id, noted.memory) is None:
                return None
            self._expect_nothing(_Spot(folder, locks, lock, noted, locks, f"{id}.lock", id), GONE)
            self._unmark(locks, id)
            return f".locks/{id}.lock"

    def _unmark(self, locks: Folder, id: str) -> None:
        marks = _child_if_safe(locks, _UNFINISHED)
        if marks is not None:
            marks.discard(id)

    def _vanished(self, folder: Folder, done: Folder | None, id: str, memory: Memory | None) -> Damaged | None:
        """The error of an id whose lock file remembers a record or receipt that is not there."""
        file = id + _SUFFIX
        if memory is None or memory.wants_nothing or folder.has(file):
            return None
        if done is not None and (done.has(file) or done.changed(f"{id}/{memory.run}{_SUFFIX}")):
            return None
        what = "its receipt" if memory.state == KEPT else "the record"
        return Damaged(
            f"{id} vanished: its lock file knows run {memory.run}, revision {memory.revision}, and {what} is not there;"
            " put it back, or accept that it is gone",
            kind="vanished",
            hint=f"checkpoint-tool repair {id}",
        )

    def _vanished_now(self, folder: Folder, locks: Folder, id: str) -> Damaged | None:
        """The same without the lock: a run that ends or begins while we look has not vanished."""
        memory = peek(locks, id).memory
        if memory is None or memory.wants_nothing:
            return None
        found = self._vanished(folder, self._done(folder), id, memory)
        return found if found is not None and peek(locks, id).memory == memory else None

    def _scan_vanished(
        self, folder: Folder, locks: Folder, files: Sequence[str], workflow: str | None, *, thorough: bool
    ) -> Iterator[Entry]:
        if thorough:
            ids = [name.removesuffix(".lock") for name in locks.names() if name.endswith(".lock")]
        else:
            marks = _child_if_safe(locks, _UNFINISHED)
            ids = [] if marks is None else marks.names()
        for id in sorted(ids):
            at = bisect.bisect_left(files, id + _SUFFIX)
            if (at < len(files) and files[at] == id + _SUFFIX) or ID.fullmatch(id) is None:
                continue
            if workflow is not None and not model.may_be_of(id, workflow):
                continue
            try:
                error: CheckpointError | None = self._vanished_now(folder, locks, id)
            except StoreUnavailable:
                continue  # what stands in place of ``done`` is an error of its own
            if error is not None:
                yield Entry(id, id + _SUFFIX, None, error)

    def _check_of(self, folder: Folder, locks: Folder | None, *, thorough: bool) -> "_Check":
        """What else must be true of an unfinished record than that its file is whole.

        To read each lock file would be a tenth of the self-check's time over many records. Unless ``thorough``, only those
        are read whose record was not put in place in the moment that it says it was written, or a moment ago: a file that
        was copied or moved back has another ctime than that, and no program can set one. A change reads them always.
        """
        now_ns = time.time_ns()
        has_done = folder.has("done")  # without it, no look for each record

        def check(checkpoint: Checkpoint, changed_ns: int) -> Damaged | None:
            written_ns = int(checkpoint.updated_at.timestamp() * 1e9)
            odd = thorough or changed_ns > now_ns - _YOUNG_NS or abs(changed_ns - written_ns) > _PROMPT_NS
            memory = peek(locks, checkpoint.id).memory if odd and locks is not None else None
            return _problem(checkpoint, memory, folder) if memory is not None or has_done else None

        return check

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
    def _locked(self, id: str, *, make: bool = False) -> Iterator[tuple[Folder, Folder, LockFile]]:
        """(the store's folder, durable; that of the locks; the update lock of ``id``, for the length of one change)."""
        # First, because it opens files: once the store is open there may be no more descriptors to be had.
        try_lock: Callable[[int], bool] = load("checkpoint.store.flock:try_lock")
        folder = self._ready(id, make=make)
        locks = self._lock_folder(folder)
        lock = self._wait(locks, id, try_lock)
        try:
            lock.detach()
            lock.sign()
            if id not in self._swept:
                folder.discard_temporaries(id)
                self._swept.add(id)
            yield folder, locks, lock
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
                        f"{id} is being changed by process {lock.read().pid}, which has not let go for {LOCK_WAIT_S:.0f} s",
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
    def _located(self, name: str, run_id: str | None = None) -> Iterator[_Spot]:
        """The record that is meant, looked up again under its lock. Raises NotFound.

        ``run_id``: that run and no other, whatever else ``name`` may mean.
        """
        id = checked(name)
        try:
            id = self._locate(self._folder(), name, run_id)[2]
            with self._locked(id) as (folder, locks, lock):
                place, file, _ = self._locate(folder, name, run_id, lock)
                yield _Spot(folder, locks, lock, lock.read(), place, file, id)
        except NotFound:
            locks_now = _child_if_safe(self._opened, ".locks") if self._opened is not None else None
            self._refuse_lost(id, peek(locks_now, id) if locks_now is not None else None)
            raise

    def _look(self, name: str, read: Callable[[Folder, Folder, str, str], _R]) -> _R:
        """What ``read(store's folder, record's folder, file name, id)`` gives of the record that ``name`` means, without
        its lock."""
        folder = self._folder()
        while True:
            place, file, id = self._locate(folder, name)
            try:
                return read(folder, place, file, id)
            except FileNotFoundError:
                continue  # moved or removed between the look and the read: found elsewhere now, or NotFound

    def _judged(self, folder: Folder, place: Folder, file: str, id: str) -> Checkpoint:
        found = self._read(place, file, id)
        if place is folder:
            locks = _child_if_safe(folder, ".locks")
            memory = peek(locks, id).memory if locks is not None else None
            problem = _problem(found.checkpoint, memory, folder)
            if problem is not None:
                # Without the lock: what was read may have been replaced before we looked at the rest.
                if place.read(file) != found.raw:
                    return self._judged(folder, place, file, id)
                raise problem
        return found.checkpoint

    def _at(self, folder: Folder, place: str, read: Callable[[Folder, str, str], _R]) -> _R:
        """What ``read(folder, file name, id)`` gives of the record at ``place``, as an Entry names it. Raises NotFound."""
        *above, file = place.split("/")
        id = above[1] if len(above) > 1 else file.removesuffix(_SUFFIX)
        try:
            for name in above:
                folder = folder.child(name)
            return read(folder, file, id)
        except FileNotFoundError:
            raise NotFound(f"there is no {place} in {self.location}", hint="checkpoint-tool list --all") from None

    def _locate(
        self, folder: Folder, name: str, run_id: str | None = None, lock: LockFile | None = None
    ) -> tuple[Folder, str, str]:
        """(folder, file name, id) of the record that ``name`` means. Raises NotFound; Damaged where it vanished.

        A run id with a label before it means that run alone, a bare one perhaps a workflow that is called so.
        """
        if run_id is not None:
            exact = self._locate_exactly(folder, checked(name), run_id)
            if exact is not None:
                return exact
            if checked(name) != model.bare(run_id):
                raise self._no_such(name)
            name = f"run:{model.bare(run_id)}"
        said, name = name, checked(name)
        file = name + _SUFFIX
        closed: Exception | None = None
        done: Folder | None = None
        if said == name:
            if folder.has(file):
                return folder, file, name
            done = self._done(folder)
            if done is not None and done.has(file):
                return done, file, name
            if lock is not None and lock.id == name:
                vanished = self._vanished(folder, done, name, lock.read().memory)
            else:
                locks = _child_if_safe(folder, ".locks")
                vanished = self._vanished_now(folder, locks, name) if locks is not None else None
            if vanished is not None:
                raise vanished
            if done is not None and done.is_folder(name):
                history = done.child(name)
                runs = [run for run in history.names() if RUN_ID.fullmatch(run.removesuffix(_SUFFIX))]
                if runs:
                    return history, max(runs), name
        if RUN_ID.fullmatch(name):
            done = done or self._done(folder)
            for workflow in done.names() if done is not None else ():
                try:
                    if done is not None and done.is_folder(workflow):
                        history = done.child(workflow)
                        if history.has(file):
                            return history, file, workflow
                except (OSError, StoreUnavailable) as error:
                    closed = error  # of another workflow, as a rule: it must not hide the runs of all
            places = [(folder, "")] if done is None else [(folder, ""), (done, "done/")]
            for place, prefix in places:
                for entry in self._scan_folder(place, prefix):
                    if entry.checkpoint is not None and model.bare(entry.checkpoint.run_id) == name:
                        return place, entry.checkpoint.id + _SUFFIX, entry.checkpoint.id
        if closed is not None:
            raise closed
        raise self._no_such(said)

    def _no_such(self, name: str) -> NotFound:
        return NotFound(f"there is no checkpoint {name!r} in {self.location}", hint="checkpoint-tool list --all")

    def _locate_exactly(self, folder: Folder, id: str, run_id: str) -> tuple[Folder, str, str] | None:
        """Where ``run_id`` of ``id`` stands, if that is one of the three places where it can."""
        done = self._done(folder)
        file = model.bare(run_id) + _SUFFIX
        if done is not None and done.is_folder(id) and (history := done.child(id)).has(file):
            return history, file, id
        file = id + _SUFFIX
        for place in (done, folder):
            try:
                if place is not None and place.has(file) and self._read(place, file, id).checkpoint.run_id == run_id:
                    return place, file, id
            except CheckpointError:
                continue  # whatever that is, it is not known to be the run that is meant
        return None

    def _done(self, folder: Folder) -> Folder | None:
        """The folder of finished runs, or None where there is none yet. A link or a file in its place is an error: taken
        for "nothing finished" it would let every key run again."""
        try:
            return folder.child("done")
        except FileNotFoundError:
            return None

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

    def _last_token(self, done: Folder | None, id: str) -> int:
        """The highest token of the finished runs: for a store that came back from a backup without its lock files."""
        if done is None:
            return 0
        tokens = [self._token_of(done, id + _SUFFIX, id)] if done.has(id + _SUFFIX) else []
        if done.is_folder(id):
            with done.child(id) as history:
                runs = [name for name in history.names() if RUN_ID.fullmatch(name.removesuffix(_SUFFIX))]
                tokens += [self._token_of(history, name, id) for name in runs]
        return max(tokens, default=0)

    def _token_of(self, place: Folder, file: str, id: str) -> int:
        try:
            raw = place.read(file)
        except (CheckpointError, OSError):
            return 0
        try:
            return codec.decode(raw, id, name=file.removesuffix(_SUFFIX)).checkpoint.token
        except CheckpointError:
            return _tokens_in(raw)

    def _read(self, place: Folder, file: str, id: str) -> codec.Encoded:
        return self._read_dated(place, file, id)[0]

    def _read_dated(self, place: Folder, file: str, id: str) -> tuple[codec.Encoded, int]:
        """The record, and its file's ctime in ns."""
        raw, changed_ns = place.read_dated(file)
        last = self._last
        if last is not None and last.raw == raw and last.checkpoint.id == id:
            return last, changed_ns  # byte for byte what we checked or wrote last
        self._last = last = codec.decode(raw, id, name=file.removesuffix(_SUFFIX))
        return last, changed_ns

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
        self,
        folder: Folder,
        prefix: str,
        files: Iterable[str],
        *,
        id: str | None = None,
        workflow: str | None = None,
        check: "_Check | None" = None,
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
                checkpoint = _checked_record(folder, file, id or name, name, check)
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


_Check = Callable[[Checkpoint, int], Damaged | None]
"""(checkpoint, ctime of its file in ns) -> what is wrong with it, or None."""

_TOKEN = re.compile(rb'"token":\s*(\d{1,15})(?!\d)')


def _checked_record(folder: Folder, file: str, id: str, name: str, check: _Check | None) -> Checkpoint:
    raw, changed_ns = folder.read_dated(file)
    checkpoint = codec.decode(raw, id, name=name).checkpoint
    problem = check(checkpoint, changed_ns) if check is not None else None
    if problem is None:
        return checkpoint
    # It may have been replaced after it was read, and before what it was compared with.
    if folder.read(file) != raw:
        return _checked_record(folder, file, id, name, check)
    raise problem


def _child_if_safe(folder: Folder, name: str) -> Folder | None:
    try:
        return folder.child(name)
    except (OSError, StoreUnavailable):
        return None


def _is_put_away(folder: Folder, checkpoint: Checkpoint) -> bool:
    """Whether a run that stands among the unfinished ones is below ``done`` too; for one with a key, any run of it."""
    return folder.changed(f"done/{_finished_place(checkpoint)}") != 0


def _finished_place(checkpoint: Checkpoint) -> str:
    """Where the record belongs once it is finished, relative to ``done``."""
    if checkpoint.idempotency_key is not None:
        return checkpoint.id + _SUFFIX
    return f"{checkpoint.workflow}/{model.bare(checkpoint.run_id)}{_SUFFIX}"


def _problem(checkpoint: Checkpoint, memory: Memory | None, folder: Folder) -> Damaged | None:
    """Why a whole record among the unfinished ones is not the one to go on with, or None."""
    id, run = checkpoint.id, model.bare(checkpoint.run_id)
    if _is_put_away(folder, checkpoint):
        if not checkpoint.unfinished:
            return None  # its process died before it could remove it
        return Damaged(
            f"{id} is damaged (returned): run {run} of it is finished, and an old record from before that came back;"
            " the finished one counts",
            kind="returned",
            hint=f"checkpoint-tool repair {id} --quarantine",
        )
    if memory is None or not memory.is_after(run, checkpoint.revision, checkpoint.token):
        return None
    then = f"revision {memory.revision}"
    if memory.run != run:
        then = f"run {memory.run} (token {memory.token})"
    return Damaged(
        f"{id} is damaged (older): it is revision {checkpoint.revision} of run {run}, and {then} was acknowledged since:"
        " an old file was put back",
        kind="older",
        hint=f"checkpoint-tool repair {id}",
    )


def _was_copied(memory: Memory, changed_ns: int) -> bool:
    """Whether the file that ``memory`` is about was put back since: from there on, tokens may be out that none here knows."""
    return changed_ns not in (0, memory.changed_ns)


def _known_token(noted: Noted, checkpoint: Checkpoint, changed_ns: int) -> int:
    """The highest token that may have been issued: of the record, the lock file, and of a time that was taken back."""
    last = max(checkpoint.token, noted.token)
    memory = noted.memory
    if memory is None or (memory.run, memory.revision) != (model.bare(checkpoint.run_id), checkpoint.revision):
        return last
    return last + _leap() if _was_copied(memory, changed_ns) else last


def _leap() -> int:
    """By how much tokens go on after a restore: more than were issued meanwhile, and another number after each."""
    return (1 << 20) + int.from_bytes(os.urandom(3), "big")


def _tokens_in(raw: bytes) -> int:
    """The highest number that a damaged record calls a token."""
    return max((int(found) for found in _TOKEN.findall(raw)), default=0)
