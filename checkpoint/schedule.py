"""What is to run on this host and when, kept in a file per workspace, and making the schedulers of the host agree with it."""

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from checkpoint import cron, programs, secrets, worktree
from checkpoint._load import load
from checkpoint.api import Checkpoints
from checkpoint.codec import timestamp
from checkpoint.cron import Cron
from checkpoint.errors import CheckpointError, Damaged, NotFound, SchedulerUnavailable, Usage
from checkpoint.model import NAME
from checkpoint.scheduler import ORDER, Scheduler, State, SystemdScheduler, Thing, sha256, table
from checkpoint.store import DEFAULT_STORE, utc_now
from checkpoint.store.disk import Folder
from checkpoint.store.rights import as_user, name_of, other_owner_of_workspace, rightful_owner, strayed, sudo_name
from checkpoint.store.state import SCHEDULES_SCHEMA, StateFolder, last_check

SELFCHECK = "selfcheck"
EVERY_S = 600
NEXT = 5
_LOCK_WAIT_S = 120.0
_MAC_PROTECTED = ("Desktop", "Documents", "Downloads")


class Entry(NamedTuple):
    """One wanted schedule. ``command``: of the user's; for the self-check its further options. ``since``: when it was asked
    for, RFC 3339; ``sha256`` and ``python``: of what was written for it, and the interpreter in it; empty until then.
    ``allowed``: rules of secrets that were allowed in it."""

    name: str
    cron: str
    command: tuple[str, ...]
    scheduler: str
    since: str
    sha256: str = ""
    python: str = ""
    allowed: tuple[str, ...] = ()

    @property
    def selfcheck(self) -> bool:
        return self.name == SELFCHECK


class Listed(NamedTuple):
    """An entry with its place. ``installed``: whether the host has it as it was written."""

    workspace: str
    entry: Entry
    installed: bool


class Stands(NamedTuple):
    """How an entry stands, as its scheduler tells it."""

    workspace: str
    entry: Entry
    state: State


class Problem(NamedTuple):
    """What is wrong, and the command that mends it."""

    workspace: str
    name: str
    words: str
    mend: str


class Schedules:
    """``root``: the folder where all is kept, made where it is missing; ``home`` and ``environ``: of the user."""

    def __init__(self, root: str, home: str, environ: Mapping[str, str]) -> None:
        self._root = root
        self._home = home
        self._unreadable: dict[str, Problem] = {}
        self.table: dict[str, Scheduler] = table(self._kept, home, environ)

    @property
    def unreadable(self) -> list[Problem]:
        """The schedule files that could not be read so far, each once."""
        return list(self._unreadable.values())

    # --- what is wanted ----------------------------------------------------------------------------------------------

    def install(
        self, workspace: str, when: Cron, options: Sequence[str], scheduler: str | None, allowed: Sequence[str] = ()
    ) -> Entry:
        """Have the self-check of a workspace run. Raises Usage, SchedulerUnavailable; then nothing is changed."""
        wanted = self._entry(workspace, SELFCHECK, when, tuple(options), scheduler)._replace(allowed=tuple(allowed))

        def put(entries: list[Entry]) -> list[Entry]:
            return [_kept_since(entries, wanted), *(entry for entry in entries if not entry.selfcheck)]

        return self._change(workspace, put)[0]

    def add(
        self,
        workspace: str,
        when: Cron,
        command: Sequence[str],
        name: str | None,
        scheduler: str | None,
        allowed: Sequence[str] = (),
    ) -> Entry:
        """Have a command run in a workspace. The same again changes nothing.

        Raises Usage, SchedulerUnavailable, Conflict (the name is taken); then nothing is changed.
        """
        if name == SELFCHECK:
            raise Usage("the name selfcheck is that of the self-check: checkpoint-tool schedule install")
        wanted = self._entry(workspace, name or _entry_name(when, command), when, _checked(command), scheduler)
        wanted = wanted._replace(allowed=tuple(allowed))

        def put(entries: list[Entry]) -> list[Entry]:
            for entry in entries:
                if (entry.cron, entry.command, entry.selfcheck) == (wanted.cron, wanted.command, False) and name in (
                    None,
                    entry.name,
                ):
                    return entries
                if entry.name == wanted.name:
                    raise Usage(
                        f"{wanted.name} is scheduled already, as {entry.cron} {shlex.join(entry.command)}: give another --name"
                    )
            return [*entries, wanted]

        entries = self._change(workspace, put)
        return next(e for e in entries if (e.cron, e.command) == (wanted.cron, wanted.command) and not e.selfcheck)

    def replace(
        self,
        workspace: str,
        times: Sequence[Cron],
        command: Sequence[str],
        scheduler: str | None,
        allowed: Sequence[str] = (),
    ) -> list[Entry]:
        """Make the commands of a workspace exactly these. Raises as ``add``."""
        wanted = {}
        for when in times:
            entry = self._entry(workspace, _entry_name(when, command), when, _checked(command), scheduler)
            wanted[when.text] = entry._replace(allowed=tuple(allowed))

        def put(entries: list[Entry]) -> list[Entry]:
            return [
                *(entry for entry in entries if entry.selfcheck),
                *(_kept_since(entries, entry) for entry in wanted.values()),
            ]

        return [entry for entry in self._change(workspace, put) if not entry.selfcheck]

    def remove(self, workspace: str, what: str) -> list[Entry]:
        """Take away the entry of that name, or all of that expression. Raises NotFound."""
        gone: list[Entry] = []

        def put(entries: list[Entry]) -> list[Entry]:
            found = [entry for entry in entries if entry.name == what]
            if not found:
                same = _text_of(what)
                found = [entry for entry in entries if entry.cron == same and not entry.selfcheck]
            if not found:
                raise NotFound(f"nothing called {what!r} is scheduled in {workspace}", hint="checkpoint-tool schedule list")
            gone.extend(found)
            return [entry for entry in entries if entry not in found]

        self._change(workspace, put)
        return gone

    def migrate(self, old: str, new: str) -> list[Entry]:
        """The workspace was moved: what ran in ``old`` runs in ``new``. Raises NotFound, Usage."""
        old, new = os.path.abspath(old), os.path.abspath(new)
        if not os.path.isdir(new):
            raise Usage(f"there is no folder {new}: move the workspace first")
        entries = self._entries(old)
        if not entries:
            raise NotFound(f"nothing is scheduled in {old}", hint="checkpoint-tool schedule list")
        moved = self._change(new, lambda present: [*present, *(e for e in entries if e.name not in {p.name for p in present})])
        self._change(old, lambda _: [])
        return moved

    def preview(self, workspace: str, entry: Entry) -> dict[str, str]:
        """Path -> content of what would be written for an entry. Raises Usage."""
        return self.table[entry.scheduler].written(_thing(os.path.abspath(workspace), entry, self.table[entry.scheduler]))

    def self_check(
        self, workspace: str, when: Cron, options: Sequence[str], scheduler: str | None, *, anywhere: bool = False
    ) -> Entry:
        """The entry that ``install`` would make. ``anywhere``: also for a scheduler that is not here."""
        if anywhere and scheduler in self.table:
            return Entry(SELFCHECK, when.text, tuple(options), scheduler, "")
        return self._entry(workspace, SELFCHECK, when, tuple(options), scheduler)

    # --- what there is -----------------------------------------------------------------------------------------------

    def wanted(self, workspace: str | None = None) -> list[Listed]:
        """Everything that is wanted, in one workspace or all."""
        return [
            Listed(place, entry, self._is_installed(place, entry))
            for place in self._workspaces(workspace)
            for entry in self._entries(place)
        ]

    def entries(self, workspace: str) -> list[Entry]:
        """What is wanted in a workspace. Raises Damaged."""
        return self._entries(os.path.abspath(workspace))

    def file_of(self, workspace: str) -> str:
        """Where that is kept, if anything is."""
        return os.path.join(self._root, _base(os.path.abspath(workspace)), "state.json")

    def installed(self) -> list[tuple[str, str]]:
        """(scheduler, name) of everything of ours that the host has, wanted or not."""
        found = []
        for scheduler in self.table.values():
            try:
                found += [(scheduler.name, name) for name in scheduler.names()]
            except SchedulerUnavailable:
                continue
        return found

    def strays(self) -> list[tuple[str, str]]:
        """(scheduler, name) of what the host has and nobody wants."""
        wanted = {(entry.scheduler, _name(place, entry)) for place in self._workspaces(None) for entry in self._entries(place)}
        return [there for there in self.installed() if there not in wanted]

    def status(self, workspace: str | None = None) -> list[Stands]:
        """How each stands: as its scheduler tells it; what cron does not tell comes from our own records."""
        found = []
        for place in self._workspaces(workspace):
            for entry in self._entries(place):
                scheduler = self.table[entry.scheduler]
                state = scheduler.state(_name(place, entry))
                if scheduler.name in ("cron", "launchd") and state.text is not None:
                    state = state._replace(next=timestamp(next(self.times(cron.parse(entry.cron)))))
                    state = _with_record(state, place, entry)
                found.append(Stands(place, entry, state))
        return found

    def times(self, when: Cron, after: datetime | None = None, zone: str | None = None) -> Iterator[datetime]:
        """The times that come, without end. Raises Usage for an unknown zone."""
        place = load("checkpoint.cron_times:zone")(zone)
        return load("checkpoint.cron_times:times")(when, after or datetime.now(UTC), place)  # type: ignore[no-any-return]

    def coming(self, texts: Sequence[str], after: datetime | None, zone: str | None) -> list[tuple[str, datetime]]:
        """The coming five times of each expression. Raises Usage."""
        return [(text, moment) for text in texts for moment in islice(self.times(cron.parse(text), after, zone), NEXT)]

    def sync(self, workspace: str | None = None) -> list[str]:
        """Make the host agree with what is wanted; what differed, a line each. Raises SchedulerUnavailable."""
        words = []
        for place in self._workspaces(workspace):
            differing: list[Entry] = []
            for entry in self._entries(place):
                differences = list(self._differences(place, entry))
                words += [f"{place}: {entry.name} {difference}" for difference in differences]
                differing += [entry] if differences else []
            names = {_name(place, entry) for entry in self._entries(place)}
            prefix = _base(place) + "-"
            for where, name in self.installed():
                if name.startswith(prefix) and name not in names:
                    self.table[where].disable(name)
                    words.append(f"{place}: {name} in {where} is wanted by nobody")
            if differing:
                self._change(place, lambda entries: entries, again=differing)
        return words

    def _differences(self, place: str, entry: Entry) -> Iterator[str]:
        state = self.table[entry.scheduler].state(_name(place, entry))
        if state.text is None:
            yield f"was missing in {entry.scheduler}"
        elif state.text != "".join(self.preview(place, entry).values()) or sha256(state.text) != entry.sha256:
            yield f"in {entry.scheduler} was not as it is wanted"
        elif not state.running:
            yield f"in {entry.scheduler} stood still"
        elsewhere = self._elsewhere(place, entry)
        if elsewhere:
            yield f"was in {', '.join(elsewhere)} as well"

    def undo(self) -> None:
        """Put the crontab back as it was before our last change. Raises SchedulerUnavailable."""
        load("checkpoint.crontab:undo")(self._kept())

    def doctor(self, workspace: str | None = None) -> list[Problem]:
        """Everything because of which something would not run. Raises nothing for what it finds."""
        problems: list[Problem] = []
        places = self._workspaces(workspace)
        here = os.path.abspath(".")
        if workspace is None and here not in places and os.path.isdir(os.path.join(here, DEFAULT_STORE)):
            places.append(here)
        for place in places:
            try:
                problems += self._problems(place)
            except Damaged as error:
                self._unreadable[_base(place)] = self._broken(os.path.join(self._root, _base(place)), error)
            except CheckpointError as error:
                problems.append(Problem(place, "", error.message, error.hint or "checkpoint-tool schedule list"))
        return problems + self.unreadable

    # --- inside ------------------------------------------------------------------------------------------------------

    def _kept(self) -> Folder:
        return StateFolder(self._root, SCHEDULES_SCHEMA).folder

    def _entry(self, workspace: str, name: str, when: Cron, command: tuple[str, ...], scheduler: str | None) -> Entry:
        if NAME.fullmatch(name) is None or len(name) > 40:
            raise Usage(f"{name!r} is no name: use 1 to 40 of a-z, 0-9, _ and -, beginning with a letter or digit")
        if scheduler is None:
            reasons = {known: self.table[known].unavailable() for known in ORDER}
            usable = [known for known in ORDER if reasons[known] is None]
            foreign = other_owner_of_workspace(workspace) is not None
            # For the workspace of another user first what runs as that user; else the refusal says how.
            usable.sort(key=lambda known: foreign and not self.table[known].as_owner)
            if not usable:
                why = "; ".join(f"{known}: {reason}" for known, reason in reasons.items())
                raise SchedulerUnavailable(f"this host has no scheduler that can be used ({why})")
            scheduler = usable[0]
        elif scheduler not in self.table:
            raise Usage(f"--with {scheduler!r} is none of {', '.join(self.table)}")
        elif (reason := self.table[scheduler].unavailable()) is not None:
            raise SchedulerUnavailable(f"{scheduler} cannot be used here: {reason}", hint="checkpoint-tool schedule doctor")
        return Entry(name, when.text, command, scheduler, timestamp(utc_now()))

    def _change(self, workspace: str, put: Callable[[list[Entry]], list[Entry]], *, again: Sequence[Entry] = ()) -> list[Entry]:
        """Change what is wanted in a workspace, then the host; if that fails, both are as they were. ``again``: entries that
        are written anew although they are there already."""
        place = os.path.abspath(workspace)
        folder = StateFolder(os.path.join(self._root, _base(place)), SCHEDULES_SCHEMA)
        with folder.locked(_LOCK_WAIT_S):
            before = _read(folder)
            wanted = put(list(before))
            names = [entry.name for entry in wanted]
            assert len(names) == len(set(names))
            for entry in wanted:
                if entry not in before or entry in again:
                    self.preview(place, entry)  # what cannot be said must not be half done
                    _refuse_as_another(place, self.table[entry.scheduler])
            folder.write(_document(place, wanted))
            try:
                after = [self._enable(place, entry) if entry not in before or entry in again else entry for entry in wanted]
            except CheckpointError:
                folder.write(_document(place, before))
                raise
            for entry in before:
                if entry.name not in names:
                    self._disable_everywhere(place, entry)
            folder.write(_document(place, after))
            return after

    def _enable(self, place: str, entry: Entry) -> Entry:
        scheduler = self.table[entry.scheduler]
        # The others first: twice at one time is worse than a moment of none.
        for other in self._elsewhere(place, entry):
            self.table[other].disable(_name(place, entry))
        scheduler.enable(_thing(place, entry, scheduler))
        return entry._replace(sha256=sha256("".join(self.preview(place, entry).values())), python=sys.executable)

    def _disable_everywhere(self, place: str, entry: Entry) -> None:
        for scheduler in self.table.values():
            if scheduler.name == entry.scheduler or scheduler.unavailable() is None:
                scheduler.disable(_name(place, entry))

    def _elsewhere(self, place: str, entry: Entry) -> list[str]:
        """Other schedulers that have the same."""
        found = []
        for other in self.table.values():
            try:
                if other.name != entry.scheduler and _name(place, entry) in other.names():
                    found.append(other.name)
            except SchedulerUnavailable:
                continue
        return found

    def _is_installed(self, place: str, entry: Entry) -> bool:
        try:
            text = self.table[entry.scheduler].state(_name(place, entry)).text
        except SchedulerUnavailable:
            return False
        return text is not None and sha256(text) == entry.sha256

    def _workspaces(self, only: str | None) -> list[str]:
        if only is not None:
            return [os.path.abspath(only)]
        found = []
        for name in sorted(os.listdir(self._root)) if os.path.isdir(self._root) else ():
            path = os.path.join(self._root, name)
            if not os.path.isfile(os.path.join(path, "state.json")):
                continue
            try:
                fields = StateFolder(path, SCHEDULES_SCHEMA).read()
                if fields is not None and _read(StateFolder(path, SCHEDULES_SCHEMA)):
                    found.append(str(fields["workspace"]))
            except CheckpointError as error:
                # One that cannot be read must not hide the others.
                self._unreadable[name] = self._broken(path, error)
        return found

    @staticmethod
    def _broken(path: str, error: CheckpointError) -> Problem:
        """About a schedule file that cannot be read. What it holds, which workspace too, is not known."""
        aside = f"mv {shlex.quote(path)}/state.json {shlex.quote(path)}/state.json.bad"
        mend = f"{aside} && checkpoint-tool schedule install WORKSPACE"
        return Problem("", os.path.basename(path), error.message, mend)

    def _entries(self, place: str) -> list[Entry]:
        path = os.path.join(self._root, _base(place))
        return _read(StateFolder(path, SCHEDULES_SCHEMA)) if os.path.isdir(path) else []

    def _problems(self, place: str) -> Iterator[Problem]:
        quoted = shlex.quote(place)
        sync = f"checkpoint-tool schedule sync {quoted}"
        entries = self._entries(place)
        if entries and not os.path.isdir(place):
            yield Problem(
                place, "", "the workspace is gone, or was moved", f"checkpoint-tool schedule migrate {quoted} NEW-PLACE"
            )
        yield from _tracked(place)
        inside = os.path.relpath(place, self._home).split(os.sep)[0]
        if sys.platform == "darwin" and inside in _MAC_PROTECTED:
            yield Problem(
                place,
                "",
                f"macOS keeps background programs out of ~/{inside}",
                f"mv {quoted} ~/ && checkpoint-tool schedule migrate {quoted} ~/{os.path.basename(quoted)}",
            )
        yield from _strayed(place)
        owner = other_owner_of_workspace(place)
        for entry in entries:
            scheduler = self.table[entry.scheduler]
            if owner is not None and not scheduler.as_owner:
                yield _as_another(place, entry, owner)
            reason = scheduler.unavailable()
            if reason is not None:
                again = f"checkpoint-tool schedule {'install' if entry.selfcheck else 'remove'} {quoted}"
                yield Problem(place, entry.name, f"{entry.scheduler} cannot be used: {reason}", again)
                continue
            try:
                state = scheduler.state(_name(place, entry))
            except SchedulerUnavailable as error:
                yield Problem(place, entry.name, error.message, error.hint)
                continue
            if state.text is None:
                yield Problem(place, entry.name, f"it is not in {entry.scheduler} any more", sync)
                continue
            if sha256(state.text) != entry.sha256:
                yield Problem(place, entry.name, f"what stands in {entry.scheduler} was changed since we wrote it", sync)
            elif not os.access(entry.python, os.X_OK):
                yield Problem(place, entry.name, f"the interpreter {entry.python} is gone", sync)
            elif state.text != "".join(self.preview(place, entry).values()):
                yield Problem(place, entry.name, "it runs another interpreter or version than this one", sync)
            if state.detail is not None:
                start = "service cron start" if entry.scheduler == "cron" else sync
                yield Problem(place, entry.name, state.detail, start)
            elif isinstance(scheduler, SystemdScheduler) and state.next is None and state.result != "activating":
                yield Problem(place, entry.name, "its timer has no next run", sync)
            for other in self._elsewhere(place, entry):
                yield Problem(place, entry.name, f"it is scheduled in {entry.scheduler}, and in {other} too", sync)
            yield from _exposed(place, entry, state.text)
            if entry.selfcheck:
                yield from _late(place, entry)
                if entry.scheduler == "cron" and "--notify stdout" in state.text and load("checkpoint.crontab:is_mute")():
                    words = "MAILTO is empty in the crontab, so nobody gets what the self-check prints"
                    mend = f"checkpoint-tool schedule install {quoted} -- --notify URL"
                    yield Problem(place, entry.name, words, mend)
        if any(entry.scheduler == "systemd" for entry in entries):
            user = self.table["systemd"]
            if isinstance(user, SystemdScheduler) and user.unavailable() is None and not user.lingers():
                yield Problem(place, "", "its timers stop when you log out (no lingering)", "loginctl enable-linger")


def _tracked(place: str) -> Iterator[Problem]:
    """What git would do to the store of a workspace."""
    store = os.path.join(place, DEFAULT_STORE)
    found = worktree.advice(store, worktree.look(store))
    if found is not None:
        yield Problem(place, "", found[0], " && ".join(found[1]))


def _refuse_as_another(place: str, scheduler: Scheduler) -> None:
    """Nothing is installed that can only fail. Raises SchedulerUnavailable with the user as whom it works."""
    uid = other_owner_of_workspace(place)
    if uid is None:
        return
    owner = name_of(uid)
    if not scheduler.as_owner:
        raise SchedulerUnavailable(
            f"{place} belongs to {owner}, and {scheduler.name} would run this as {name_of(os.geteuid())}, which can write"
            f" nothing there: schedule it as {owner}",
            hint="checkpoint-tool schedule list",
            as_user=sudo_name(uid),
        )
    python = programs.python()[0]
    if os.geteuid() == 0 and not load("checkpoint.scheduler:runs_as")(uid, python):
        raise SchedulerUnavailable(
            f"{owner} cannot run checkpoint-tool by {python}: install it where {owner} can",
            hint=as_user(sudo_name(uid), [python, "-P", "-m", "checkpoint", "--version"]),
        )


def _exposed(place: str, entry: Entry, text: str) -> Iterator[Problem]:
    """A credential in what is installed, by the names of the rules; others read a crontab and a unit."""
    hits = secrets.find({"text": text, "command": list(entry.command)}, "$")
    rules = [rule for rule in dict.fromkeys(hit.rule for hit in hits) if rule not in entry.allowed]
    if not rules:
        return
    words = f"what looks like a secret stands in it ({', '.join(rules)}): schedule it with ${{file:PATH}} or @FILE instead"
    what = () if entry.selfcheck else (entry.name,)
    yield Problem(place, entry.name, words, shlex.join(["checkpoint-tool", "schedule", "remove", place, *what]))


def _as_another(place: str, entry: Entry, owner: int) -> Problem:
    """An entry that an older version installed in the workspace of another user."""
    again = ["install", place] if entry.selfcheck else ["add", place, entry.cron, "--name", entry.name, "--", *entry.command]
    remove = ["remove", place] if entry.selfcheck else ["remove", place, entry.name]
    mend = as_user(sudo_name(owner), ["checkpoint-tool", "schedule", *again])
    words = f"it runs as {name_of(os.geteuid())}, which can write nothing in the workspace of {name_of(owner)}"
    return Problem(place, entry.name, words, f"{shlex.join(['checkpoint-tool', 'schedule', *remove])} && {mend}")


def _strayed(place: str) -> Iterator[Problem]:
    found = strayed(place)
    owner = rightful_owner(place)
    if found is None or owner is None:
        return
    path, uid = found
    # The directory itself, where it is in one of an agent.
    inside = os.path.relpath(path, place).split(os.sep)
    top = os.path.join(place, *inside[: inside.index("memory") + 1])
    sudo = () if os.geteuid() == 0 else ("sudo",)
    words = f"{path} belongs to {name_of(uid)}, and {name_of(owner)}, to whom the workspace belongs, cannot change it"
    yield Problem(place, "", words, shlex.join([*sudo, "chown", "-R", f"{name_of(owner)}:", top]))


def _late(place: str, entry: Entry) -> Iterator[Problem]:
    period = timedelta(seconds=cron.period_s(cron.parse(entry.cron)))
    now = utc_now()
    if now - datetime.fromisoformat(entry.since) <= 2 * period:
        return
    stamp = last_check(os.path.join(place, DEFAULT_STORE))
    if stamp is None or now - stamp.at > 2 * period:
        last = "never" if stamp is None else timestamp(stamp.at)
        yield Problem(
            place, entry.name, f"the self-check last ran: {last}", f"checkpoint-selfcheck --root {shlex.quote(place)}"
        )


def _with_record(state: State, place: str, entry: Entry) -> State:
    """When it last ran and how that went, as our own records tell it."""
    store = os.path.join(place, DEFAULT_STORE)
    if entry.selfcheck:
        stamp = last_check(store)
        return state if stamp is None else state._replace(last=timestamp(stamp.at))
    try:
        found = Checkpoints(store).status(entry.name)
    except CheckpointError:
        return state
    return state._replace(last=timestamp(found.checkpoint.created_at), result=str(found.state))


def _thing(place: str, entry: Entry, scheduler: Scheduler) -> Thing:
    python = (*programs.python(), "-m")
    if entry.selfcheck:
        when = cron.parse(entry.cron)
        told = any(option.split("=")[0] in ("--notify", "--config") for option in entry.command)
        options = (*(() if told else ("--notify", "stdout")), *entry.command)
        argv = (*python, "checkpoint.selfcheck", "--root", place, "--quiet", "--every", f"{cron.period_s(when)}s", *options)
    else:
        store = os.path.join(place, DEFAULT_STORE)
        more = ("--label", scheduler.label, "--no-overlap", "--")
        argv = (*python, "checkpoint", "exec", entry.name, "--store", store, *more, *entry.command)
    return Thing(_name(place, entry), place, cron.parse(entry.cron), argv, entry.selfcheck)


def _base(place: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", os.path.basename(place).lower()).strip("-")[:20].strip("-") or "workspace"
    return f"checkpoint-{slug}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"


def _name(place: str, entry: Entry) -> str:
    return f"{_base(place)}-{entry.name}"


def _entry_name(when: Cron, command: Sequence[str]) -> str:
    program = os.path.basename(command[0]) if command else ""
    slug = re.sub(r"[^a-z0-9]+", "-", program.lower()).strip("-")[:24].strip("-") or "command"
    lot = hashlib.sha256("\0".join((when.text, *command)).encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{slug}-{lot}"


def _checked(command: Sequence[str]) -> tuple[str, ...]:
    if not command or not command[0]:
        raise Usage("no command: write it behind --")
    if any(re.search(r"[\n\r\0]", word) for word in command):
        raise Usage("a scheduled command cannot hold a line break or NUL: put it into a script")
    return tuple(command)


def _text_of(expression: str) -> str:
    try:
        return cron.parse(expression).text
    except Usage:
        return expression


def _kept_since(entries: Sequence[Entry], wanted: Entry) -> Entry:
    """The entry that is there already, where it is the same: it is not written anew."""
    return next((entry for entry in entries if entry[:4] == wanted[:4]), wanted)


def _read(folder: StateFolder) -> list[Entry]:
    fields = folder.read()
    if fields is None:
        return []
    try:
        return [
            Entry(**dict(item) | {"command": tuple(item["command"]), "allowed": tuple(item.get("allowed", ()))})
            for item in fields["entries"]
        ]
    except (KeyError, TypeError) as error:
        raise Damaged(f"{folder.path}/state.json holds what was never written", kind="schema") from error


def _document(place: str, entries: Sequence[Entry]) -> dict[str, Any]:
    items = [entry._asdict() | {"command": list(entry.command), "allowed": list(entry.allowed)} for entry in entries]
    for item in items:
        if not item["allowed"]:
            del item["allowed"]  # versions that do not know it read the others
    return {"workspace": place, "entries": items}
