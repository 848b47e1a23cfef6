"""Where checkpoints are kept: the protocol that every backend fulfils, and ``open_store``.

Claiming, renewing and completing are all ``update`` with a pure function of the model, so the protocol has no verbs
for locks, and a backend needs no more than one atomic read-decide-write.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from os import PathLike
from typing import NamedTuple, Protocol

from checkpoint._load import load
from checkpoint.errors import CheckpointError, Conflict, Damaged, Usage, shown
from checkpoint.model import ID, NAME, RUN_ID, Checkpoint, bare

Change = Callable[[Checkpoint, datetime], Checkpoint]
"""(checkpoint as it stands, the store's clock) -> checkpoint as it is to stand; the same object for "no change"."""

MadeStore = Callable[[str, tuple[str, ...]], None]
"""(full path of a store that is new, stores of other users that the search for one passed over)"""

DEFAULT_STORE = "memory/checkpoints"

# Two characters at least: `a:b` and `C:` are directories to everyone who names them.
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+):", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(//)?[^/]*:[^/]*@")


class Entry(NamedTuple):
    """One thing found in a store: a checkpoint, or the error that stands in its place.

    ``name``: the id, or the run id where only that is unique; ``place``: where it stands, relative to the store.
    """

    name: str
    place: str
    checkpoint: Checkpoint | None
    error: CheckpointError | None


def is_foreign(entry: Entry) -> bool:
    """Whether it is a file of another program (``lost+found``, ``Thumbs.db``): it can never have been a checkpoint, nor
    stands it where a history belongs."""
    above, _, name = entry.place.rpartition("/")
    if above == "done" and NAME.fullmatch(name):
        return False
    return isinstance(entry.error, Damaged) and entry.error.kind == "name" and not entry.place.endswith(".json")


class Attestation(Protocol):
    """What the holder of a claim holds to show that it lives."""

    def close(self) -> None:
        """Let go, in order: what is left says nothing. Only a process that dies leaves it said that its claim is dead."""


class Store(Protocol):
    """``name`` is an id (``deploy``, ``deploy-1a2b3c4d5e6f``) or a run id.

    An id means the unfinished run, else the receipt of that key, else the last finished run of that workflow. A workflow
    may be called like a run id: with any label before it (``run:UUID``) only the run is meant.
    Every verb may raise StoreUnavailable; those that read one record Damaged and SchemaMismatch. Damaged is also a whole
    record that is older than the last one acknowledged, one of a run that is finished, and one that vanished.
    """

    location: str

    @property
    def shared(self) -> bool:
        """Whether other hosts may write to it, whose processes cannot be looked at."""

    def now(self) -> datetime:
        """The store's clock, in UTC, to the millisecond."""

    def create(self, checkpoint: Checkpoint) -> Checkpoint:
        """Keep a new run, its token raised above any that this id was ever issued. Raises AlreadyExists, and Damaged
        where an earlier record of the id vanished."""

    def issue(self, id: str) -> int:
        """A token above all that ``id`` was ever issued, for a run that begins beside the one of that id."""

    def load(self, name: str) -> Checkpoint:
        """Raises NotFound."""

    def receipt(self, id: str) -> Checkpoint | None:
        """The finished run of the key that ``id`` was made from, durable; None where there is none. Raises NotFound
        where there is no store."""

    def update(self, name: str, change: Change) -> Checkpoint:
        """One atomic read-decide-write; what ``change`` raises comes out and nothing is written. Raises NotFound.

        When it returns, the state is durable, also where nothing had to be written. A claim's token is raised above any
        that this id was ever issued.
        """

    def scan(
        self,
        *,
        finished: bool = False,
        workflow: str | None = None,
        newest: int | None = None,
        failing: bool = False,
    ) -> Iterator[Entry]:
        """Unfinished checkpoints in the order of their ids, or all. Never raises for one bad record.

        ``workflow``: only what may be a run of it, going by its id. ``newest``: no more than so many of each history.
        ``failing``: then, for each workflow of ``exec``, its last run if that went wrong and nobody has acknowledged it.
        """

    def recent(self, newest: int) -> Iterator[Entry]:
        """About so many of the runs that finished last, in no order, without reading all the others."""

    def archive(self, id: str, run_id: str) -> None:
        """Move a finished run out of the unfinished ones. Done already, also when another run follows: nothing happens."""

    def acknowledge(self, workflow: str, by: str | None, reason: str) -> Checkpoint:
        """Take the last failed run of ``workflow`` out of sight until the next one fails; ``by`` None: back into sight.

        Raises NotFound where none is in sight (or, for None, was acknowledged).
        """

    def ended(self, runs: Sequence[tuple[str, str]]) -> list[bool]:
        """For each (id, run id): whether a record of it is there, unfinished or finished. Without a run id ("") any
        record of that id counts."""

    def delete(self, name: str, run_id: str) -> None:
        """Forget a finished run, and no other that ``name`` may mean. Gone already: nothing happens. Raises
        InvalidTransition."""

    def attest(self, checkpoint: Checkpoint) -> Attestation | None:
        """Show that the holder of this claim lives, until it is closed or this process ends. None where that cannot be
        shown, or another claim of this id is still shown to live. Raises nothing."""

    def is_attested(self, checkpoint: Checkpoint) -> bool | None:
        """Whether the holder of this claim shows that it lives: False, it died; None, it never did, or that cannot be told
        from here. Raises nothing."""

    def raw(self, name: str, *, place: str | None = None) -> tuple[str, bytes]:
        """(id, the stored bytes, damaged or not). ``place``: of an Entry, where a name may mean two.

        Raises NotFound, Damaged where there is nothing to read.
        """

    def leftovers(self) -> list[str]:
        """What dead processes and repairs left behind, as places: no damage, only worth knowing."""

    def second_names(self) -> list[str]:
        """Places of records that have a second name somewhere (hard links, as of ``cp -al``): no damage either."""

    def repair(self, name: str, seen: bytes | None, reseal: Callable[[str, bytes], Checkpoint] | None) -> str:
        """Set a record aside and, with ``reseal(id, bytes)``, put what that makes of it in its place, held by nobody.

        ``seen``: the bytes that were judged (None: nothing could be read). Returns where the old bytes are kept. Where
        the record vanished, that is accepted, and the place of what remembered it is returned.
        Raises Conflict where something else stands there by now, NotFound, and what ``reseal`` raises.
        """


def open_store(url: "str | PathLike[str] | None", *, made: MadeStore | None = None) -> Store:
    """``memory:``, or the directory of a file store as a path or ``file:PATH``; None: the one that is found from
    the working directory upwards (``search``). ``made`` is called when a directory had to be made.

    Raises Usage for another scheme; StoreUnavailable where the working directory is gone.
    """
    if url is None:
        found = load("checkpoint.store.search:search")()
        return load("checkpoint.store.file:FileStore")(  # type: ignore[no-any-return]
            found.path, looked=found.looked, passed=found.passed, made=made
        )
    text = str(url)
    if text == "memory:":
        return load("checkpoint.store.memory:MemoryStore")()  # type: ignore[no-any-return]
    return load("checkpoint.store.file:FileStore")(directory_of(text), made=made)  # type: ignore[no-any-return]


def directory_of(address: str) -> str:
    """The directory that ``address`` names: a path, or ``file:PATH``. Raises Usage for any other scheme.

    The error repeats no more of it than the scheme: what stands behind may hold a password.
    """
    scheme = _SCHEME.match(address)
    path = address
    if scheme is not None and scheme[0].lower() == "file:":
        path = address[scheme.end() :].removeprefix("//")
        if path != address[scheme.end() :] and not path.startswith("/"):
            raise Usage("file://HOST/PATH names another host: write file:PATH")
    elif scheme is not None:
        raise Usage(
            f"there are no stores of the scheme {scheme[1].lower()}: name a directory (one with a colon in its name as ./NAME)"
        )
    elif _CREDENTIALS.match(address):
        raise Usage("a user and a password do not name a store: name a directory (one with such a name as ./NAME)")
    if not path or "\0" in path:
        raise Usage(f"{shown(address)} is no path of a store")
    return path


def find_stores(stores: Iterable[str], roots: Iterable[str]) -> list[str]:
    """``stores``, and those of each workspace in ``roots`` (its own and its agents'), each once. Raises nothing."""
    return load("checkpoint.store.file:find_stores")(stores, roots)  # type: ignore[no-any-return]


def utc_now() -> datetime:
    """The clock of this host, in UTC, to the millisecond: what a record can hold."""
    now = datetime.fromtimestamp(time.time(), UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def changed_meanwhile(name: str) -> Conflict:
    return Conflict(f"{name} is no longer what was looked at: look again", hint=f"checkpoint-tool repair {name}")


def checked(name: str) -> str:
    """``name`` as records are filed: an id, or a run id without its label. Raises Usage for what is neither."""
    if ID.fullmatch(name):
        return name
    if RUN_ID.fullmatch(name):
        return bare(name)
    raise Usage(f"{shown(name)} is no id of a checkpoint: an id holds a-z, 0-9, _ and -", hint="checkpoint-tool list --all")
