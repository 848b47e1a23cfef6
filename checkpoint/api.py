"""The Python API: ``Checkpoints``, a store of checkpoints, and ``Workflow``, a handle on one run.

    with Checkpoints("memory/checkpoints").start("deploy", ["fetch", "build", "publish"]) as deploy:
        with deploy.step("fetch") as step:
            if not step.done:
                step.result = {"bytes": fetch()}
        ...
        deploy.complete()

All that the command line does goes through here. The decisions are the model's; what this module adds is the store,
and the answer to the question who is alive.
"""

import functools
import hashlib
import itertools
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, ParamSpec, TypeVar

from checkpoint import codec, liveness, model, process, secrets
from checkpoint._load import load
from checkpoint.errors import (
    AlreadyExists,
    AttemptsExhausted,
    CheckpointError,
    Conflict,
    Damaged,
    InvalidTransition,
    Locked,
    NotFound,
    NothingToResume,
    SchemaMismatch,
    SecretFound,
    StaleToken,
    StoreUnavailable,
    Usage,
)
from checkpoint.model import (
    RUN_ID,
    Cause,
    Checkpoint,
    JsonObject,
    Outcome,
    Owner,
    PlanStep,
    RunState,
    Standing,
    Status,
    Step,
    StepProcess,
    StepStatus,
    View,
)
from checkpoint.store import Attestation, Entry, MadeStore, Store, is_foreign, open_store

_P = ParamSpec("_P")
_R = TypeVar("_R")

NEWER = "newer"

WHOLE_KINDS = frozenset({"older", "returned"})
"""Kinds of damage of which the file itself is whole."""

POLL_S = 0.1
"""How often a waiting ``resume`` looks again."""

LEAVING_S = 8.0
"""How long ``start`` and ``resume`` wait for the command of a dead owner to go: it is being ended, within 5 s."""

_NEWEST = 20

EXEC_STEP = "command"
"""The one step of a run that is nothing but one command."""


def owner(name: str | None = None, *, pid: int | None = None, lease_s: int | None = None, time_held: bool = False) -> Owner:
    """Who claims and writes.

    ``pid``: the process whose life is the proof of ownership, by default this one. ``lease_s``: seconds that a claim
    holds after the last write wherever that proof cannot be had (from another host, in a container), and with
    ``time_held`` without any: for callers that end after each call. 30 minutes unless given; where the kernel's proof
    will do, no limit. With ``time_held`` alone the owner is the terminal session, if there is one: the claim ends with
    it, if not before. Raises Usage when no such process runs.
    """
    if name is not None:
        _check_text(name, "owner", 256)
    who: process.Process | None = process.this_boot()
    if pid is not None or not time_held:
        who = process.of(process.own_pid() if pid is None else pid)
        if who is None:
            raise Usage(f"no process runs under the pid {pid}, and an owner must be running")
    assert who is not None
    terminal = None
    if name is None:
        caller = who
        if who.pid is None:
            session = process.terminal_session() if lease_s is None else None
            terminal = session and session.pid
            caller = session or process.parent()
        name = process.owner_name(caller.pid or 0)
        # The name is made from a pid, and pids come again: the start time tells two of one name apart.
        who = who._replace(pid_started=caller.pid_started)
    if lease_s is None and not process.provable(who):
        # Held by a process alone it would be held for ever where nobody can see that process end.
        lease_s = model.DEFAULT_LEASE_S
    elif lease_s is not None:
        _check_number(lease_s, "lease")
    return Owner(
        name=name,
        host=who.host,
        boot_id=who.boot_id,
        pid_ns=who.pid_ns,
        pid=who.pid,
        pid_started=who.pid_started,
        lease_s=lease_s,
        uid=process.user(),
        time_ns=who.time_ns,
        terminal=terminal,
    )


class RunStatus(NamedTuple):
    """The answer to "did that run finish, or was it interrupted?"."""

    checkpoint: Checkpoint
    state: RunState


class Listed(NamedTuple):
    """One line of a list: a checkpoint, or the error that stands in its place."""

    name: str
    place: str
    view: View | None
    error: CheckpointError | None


class Finding(NamedTuple):
    """One bad file, as ``verify`` reports it. ``kind``: one of errors.DAMAGE_KINDS, ``data`` (breaks the workflow's own
    schema), ``unreadable``, or ``newer`` (whole, perhaps, but of a version that this one cannot judge)."""

    place: str
    kind: str
    problems: tuple[str, ...]


class Verified(NamedTuple):
    """What ``verify`` looked at. ``leftovers``: places of what dead processes and repairs left behind; ``foreign``: of files
    that are not the store's; ``notes``: what else is worth knowing, a sentence each. None of it is damage."""

    checked: int
    findings: tuple[Finding, ...]
    leftovers: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Repair(NamedTuple):
    """What ``repair`` found and did. ``kept``: where the old file stands now, or None when nothing was done.
    ``acceptable``: whether ``accept`` takes it."""

    name: str
    damage: CheckpointError | None
    old_text: str
    new_text: str | None
    kept: str | None
    acceptable: bool = False


class Pruned(NamedTuple):
    """What ``prune`` removed, or would remove. ``unreadable``: files that it could not judge, and left alone."""

    candidates: tuple[Listed, ...]
    kept: int
    applied: bool
    unreadable: int


class Update(NamedTuple):
    """What one ``update`` asks for, taken in the order of the fields, all or nothing."""

    add: Sequence[str] = ()
    retry: Sequence[str] = ()
    complete: Sequence[str] = ()
    fail: Sequence[str] = ()
    skip: Sequence[str] = ()
    begin: Sequence[str] = ()
    block: str | None = None
    unblock: bool = False
    notes: Sequence[str] = ()
    data: JsonObject | None = None
    result: Any = None
    error: str | None = None
    reason: str | None = None
    once: bool = False


class Checkpoints:
    """A store of checkpoints, and who asks.

    ``store``: a directory (made by the first ``start``), ``"memory:"``, or a Store; left out, the nearest
    ``memory/checkpoints`` from the working directory upwards, as the command line finds it. ``owner``: who claims and
    writes, by default this process: the kernel proves whether it lives, and a claim ends with it. ``allow_secrets``:
    rules (docs/secrets.md) by which a text may look like a credential and is taken all the same; a note says so.
    ``caller_pid``: the process that carries steps out, by default this one, each of its handles and threads for itself.
    ``made``: called with the full path when a directory had to be made, and with the stores of other users that the
    search passed over.

    Raises Usage (an address that is no directory), StoreUnavailable (the working directory is gone).
    """

    def __init__(
        self,
        store: str | Path | Store | None = None,
        *,
        owner: Owner | None = None,
        allow_secrets: Collection[str] = (),
        caller_pid: int | None = None,
        made: MadeStore | None = None,
    ) -> None:
        if store is None or isinstance(store, str | Path):
            store = open_store(store, made=made)
        self.store: Store = store
        self.owner = owner if owner is not None else _owner()
        unknown = sorted(set(allow_secrets) - set(secrets.RULES))
        if unknown:
            raise Usage(f"there is no rule {unknown[0]!r} for secrets; the rules are {', '.join(secrets.RULES)}")
        self.allow_secrets = frozenset(allow_secrets)
        self._caller_pid = caller_pid

    # --- begin and take over -----------------------------------------------------------------------------------------

    def start(
        self,
        workflow: str,
        steps: Iterable[str | PlanStep] | None = None,
        *,
        key: str | None = None,
        input: bytes | BinaryIO | None = None,
        agent: str | None = None,
        handoff_to: str | None = None,
        note: str | None = None,
        data: JsonObject | None = None,
        data_schema: JsonObject | None = None,
        ttl_s: int | None = None,
        stale_after_s: int | None = None,
        max_attempts: int | None = None,
        replan: bool = False,
        _invoked: bool = False,
    ) -> "Workflow":
        """Begin a run, or go on with the one that is there.

        ``steps``: the plan in order; None for an open plan. ``key``: names the run for ever: once it is finished,
        ``start`` gives its receipt (``created`` False, status ``completed``) and does nothing. Without a key a
        workflow has one unfinished run, and after it a new one. ``input``: bytes or an open file that belong to the
        identity of the run; only their hash is kept. Durations in seconds.

        Raises Usage, SecretFound, Locked, Conflict (other plan or input; ``replan`` takes the new plan and keeps what is
        completed), InvalidTransition (expired; or the key's run failed or was cancelled), AttemptsExhausted, InDoubt,
        SchemaMismatch (``data`` breaks ``data_schema``), Damaged, StoreUnavailable.
        """
        model.check_name(workflow, "workflow name")
        plan = None if steps is None else model.checked_plan(_plan_step(step) for step in steps)
        for value, what in ((key, "key"), (agent, "agent"), (handoff_to, "handoff")):
            if value is not None:
                _check_text(value, what, 256)
        for number, what in ((ttl_s, "ttl"), (stale_after_s, "stale-after"), (max_attempts, "max-attempts")):
            if number is not None:
                _check_number(number, what)
        data = None if data is None else codec.copied(data)
        data_schema = None if data_schema is None else codec.copied(data_schema)
        names = {"workflow": workflow, "steps": [step.name for step in plan or ()], "owner": self.owner.name}
        texts = {**names, "idempotency_key": key, "agent": agent, "handoff_to": handoff_to, "note": note}
        allowed = self.screen(texts | {"data": data, "data_schema": data_schema})
        schema_sha256 = None
        if data_schema is not None:
            problem = load("checkpoint.validate:schema_problem")(data_schema)
            if problem is not None:
                raise SchemaMismatch(f"the data schema is no JSON Schema: {problem}")
            schema_sha256 = codec.canonical_sha256(data_schema)
            _check_data(data_schema, data or {})
        id = workflow if key is None else f"{workflow}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        fingerprint = _fingerprint(plan, input)

        def fresh(now: datetime) -> Checkpoint:
            checkpoint = model.new(
                id=id,
                workflow=workflow,
                run_id=_run_id(now),
                idempotency_key=key,
                fingerprint=fingerprint,
                plan=plan,
                owner=self._claimant(),
                now=now,
                agent=agent,
                handoff_to=handoff_to,
                data=data,
                data_schema=data_schema,
                data_schema_sha256=schema_sha256,
                ttl_s=ttl_s,
                stale_after_s=stale_after_s,
                max_attempts=max_attempts,
            )
            return self._noted(checkpoint._replace(invoked=_invoked), (note, allowed), now)

        def reenter(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
            if (checkpoint.workflow, checkpoint.idempotency_key) != (workflow, key):
                # A workflow that is called like another's id, or two keys with the same first 48 bits of their hash.
                raise Conflict(
                    f"the id {id} belongs to another run: workflow {checkpoint.workflow}, key {checkpoint.idempotency_key!r}",
                    hint=f"checkpoint-tool show {id}",
                )
            if not checkpoint.unfinished:
                return checkpoint
            entered = model.enter(
                checkpoint,
                self._claimant(),
                self._standing(checkpoint, now),
                now,
                plan=plan,
                fingerprint=fingerprint,
                data_schema=data_schema,
                data_schema_sha256=schema_sha256,
                replan=replan,
                agent=agent,
                max_attempts=max_attempts,
                ttl_s=ttl_s,
                stale_after_s=stale_after_s,
            )
            if entered.data_schema is not checkpoint.data_schema and entered.data_schema is not None:
                _check_data(entered.data_schema, entered.data)
            return entered if entered.token == checkpoint.token else self._noted(entered, (note, allowed), now)

        while True:
            try:
                created = self.store.create(fresh(self.store.now()))
                return Workflow(self, created, created=True, token=created.token)
            except AlreadyExists:
                pass
            try:
                checkpoint = _once_gone(lambda: self.store.update(id, reenter))
            except NotFound:
                continue  # finished and moved, or removed, since we looked
            except Damaged:
                # What was done under this key is not done again because an old record of it came back.
                finished = self.store.receipt(id) if key is not None else None
                if finished is None:
                    raise
                return Workflow(self, _receipt(reenter(finished, self.store.now()), fingerprint, plan))
            if checkpoint.unfinished:
                return Workflow(self, checkpoint, token=checkpoint.token)
            self.store.archive(id, checkpoint.run_id)
            if key is not None:
                return Workflow(self, _receipt(checkpoint, fingerprint, plan))

    def resume(
        self,
        id: str | None = None,
        *,
        agent: str | None = None,
        wait_s: float = 0,
        steal_reason: str | None = None,
    ) -> "Workflow":
        """Take over an unfinished run: ``id``, or the oldest that is free, not blocked and not handed to another agent,
        what is handed to ``agent`` before all others.

        ``wait_s``: how long to wait for its owner to finish, let go or die. ``steal_reason``: take it even from a live
        owner, who is refused from then on; the reason is recorded. Asked again by the same owner it gives the same
        token. Raises NothingToResume, NotFound, Locked, InvalidTransition, AttemptsExhausted, Damaged, SchemaMismatch.
        """
        if steal_reason is not None:
            _check_text(steal_reason, "reason")
            self.screen({"reason": steal_reason})
            if id is None:
                raise Usage("to take work from a live owner, name it")
        if agent is not None:
            _check_text(agent, "agent", 256)
            self.screen({"agent": agent})
        self.screen({"owner": self.owner.name})
        deadline = time.monotonic() + wait_s
        while True:
            try:
                if id is not None:
                    return _once_gone(lambda: self._claim(id, agent, steal_reason))
                return self._resume_oldest(agent)
            except (Locked, NothingToResume) as error:
                left = deadline - time.monotonic()
                if left <= 0 or (isinstance(error, NothingToResume) and not error.worth_waiting):
                    raise
                time.sleep(min(POLL_S, left))

    def invoke(
        self,
        workflow: str,
        *,
        key: str | None = None,
        label: str | None = None,
        overlap: bool = True,
        process: StepProcess | None = None,
        command: Sequence[str] | None = None,
    ) -> "Workflow":
        """Begin a run that is one command, its step EXEC_STEP begun by ``process``.

        ``command``: its arguments; a key goes with one command, and another one under it raises Conflict. Only their
        hash is kept.

        Without ``key`` it is a run of its own, its run id behind ``label`` and a colon; one that was cut short before is
        closed first, as interrupted, and one that is alive goes on beside it, or with ``overlap`` False raises Locked.
        With ``key`` it is the run of that key: completed, there is nothing to do (the handle's run is finished); else
        it is tried again. Raises what ``start`` raises.
        """
        model.check_name(workflow, "workflow name")
        plan = (PlanStep(EXEC_STEP),)
        command_sha256 = _command_sha256(command)
        if not overlap:
            for other in self._unfinished(workflow):
                if other.idempotency_key is None or other.idempotency_key != key:
                    # Refused like any claim; but where only the rest of a dead run is in the way, that is waited for.
                    _once_gone(lambda id=other.id: self._refuse_held(id))  # type: ignore[misc]
        if key is not None:
            run = self.start(workflow, plan, key=key, _invoked=True)
            try:
                model.refuse_other_invocation(run.checkpoint, EXEC_STEP, command_sha256)
            except Conflict:
                if run.checkpoint.unfinished:
                    run.release()
                raise
            if run.checkpoint.unfinished:
                run._write(
                    lambda checkpoint, standing, now: model.invoke_step(
                        checkpoint, EXEC_STEP, standing, now, process, command_sha256
                    )
                )
            return run
        self.screen({"workflow": workflow, "label": label})
        if label is not None:
            _check_label(label)
        while True:
            now = self.store.now()
            run_id = _run_id(now) if label is None else f"{label}:{_run_id(now)}"
            fresh = _fresh_command(workflow, run_id, plan, self._claimant(), now, process, command_sha256)
            taken = False
            for earlier in self._unfinished(workflow):
                if earlier.id == workflow and earlier.fingerprint != fresh.fingerprint:
                    raise model.plan_conflict(earlier, plan)
                if earlier.idempotency_key not in (None, earlier.run_id):
                    continue  # under a key of the caller's, and tried again under that key
                if not self._standing(earlier, now).held:
                    self._close_interrupted(earlier)
                elif earlier.id == workflow and not overlap:
                    self._refuse_held(workflow)  # it began since we looked
                elif earlier.id == workflow:
                    taken = True
            if taken:
                # Its own run id is the key: an id that no other run has, and no file that another run could take.
                id = f"{workflow}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"
                fresh = fresh._replace(id=id, idempotency_key=run_id)
                # The runs of a workflow count their tokens together: by these the last one is known.
                try:
                    fresh = model.above_token(fresh, self.store.issue(workflow) - 1)
                except NotFound:
                    continue  # it has ended since, and was pruned
            try:
                created = self.store.create(fresh)
                return Workflow(self, created, created=True, token=created.token)
            except AlreadyExists:
                self._put_away(workflow)

    def status(self, name: str, *, previous: bool = False) -> RunStatus:
        """How the last run of the workflow ``name`` stands, or that run if it is a run id; ``previous``: the one before.

        Raises NotFound where there is none, Damaged where it cannot be told which was the last.
        """
        wanted = self.store.load(name) if RUN_ID.fullmatch(name) else None
        if wanted is not None and not previous:
            return self._run_status(wanted)
        workflow = name if wanted is None else wanted.workflow
        # Of the history the newest would do, and some more: by their names they are in the order of a clock, which may
        # have been wrong. A run that is named may be anywhere in it.
        newest = _NEWEST if wanted is None else None
        found: dict[str, Checkpoint] = {}
        for entry in self.store.scan(finished=True, workflow=workflow, newest=newest):
            if entry.error is not None:
                raise entry.error
            if entry.checkpoint is not None and entry.checkpoint.workflow == workflow:
                # One that ends while we look may be met in both places; the later look is the truer one.
                found[entry.checkpoint.run_id] = entry.checkpoint
        runs = model.newest_first(found.values())
        if wanted is not None:
            runs = runs[[run.run_id for run in runs].index(wanted.run_id) :]
        elif not runs and not previous:
            return self._run_status(self.store.load(name))  # the id of a run with a key
        if len(runs) <= previous:
            what = "earlier run" if previous else "run"
            raise NotFound(f"there is no {what} of {name} in {self.store.location}", hint="checkpoint-tool list --all")
        return self._run_status(runs[previous])

    def open(self, id: str, *, token: int | None = None) -> "Workflow":
        """A handle without a claim: writes are taken with the last ``token``, or while nobody else holds the run, and
        only by that run, not by one that follows it under the same id."""
        return Workflow(self, self.store.load(id), token=token)

    # --- look --------------------------------------------------------------------------------------------------------

    def show(self, name: str) -> View:
        """One checkpoint by id or run id. Raises NotFound, Damaged, SchemaMismatch."""
        return self._view(self.store.load(name), self.store.now())

    def list(
        self,
        *,
        finished: bool = False,
        status: Status | None = None,
        workflow: str | None = None,
        failing: bool = False,
    ) -> Iterator[Listed]:
        """Unfinished checkpoints, oldest first, or with ``finished`` all. Damaged ones come as lines with an error.

        ``failing``: also the last run of each workflow of ``exec`` that went wrong, until the next good one or an
        acknowledgement. Raises NotFound where there is no store.
        """
        now = self.store.now()
        every = finished or _is_final(status)
        entries = self.store.scan(finished=every, workflow=workflow, failing=failing and not every)
        found = [self._listed(entry, now) for entry in entries if not is_foreign(entry)]
        for listed in sorted(found, key=_by_age):
            if listed.view is not None:
                checkpoint = listed.view.checkpoint
                if status not in (None, checkpoint.status) or workflow not in (None, checkpoint.workflow):
                    continue
            yield listed

    def verify(self, names: Sequence[str] = ()) -> Verified:
        """Check every file, or those of ``names``: digest, schema hash, schema, the data against its own schema.

        Reads only. Raises NotFound for a name that is none.
        """
        problems_of = load("checkpoint.validate:record_problems")
        findings = []
        checked = 0
        wanted = {name: self._entry(name) for name in names}
        foreign = []
        for entry in wanted.values() if names else self.store.scan(finished=True):
            if is_foreign(entry):
                foreign.append(entry.place)
                continue
            checked += 1
            if entry.error is not None:
                kind = entry.error.kind if isinstance(entry.error, Damaged) else _VERIFY_KINDS[type(entry.error)]
                findings.append(Finding(entry.place, kind, (entry.error.message,)))
                continue
            assert entry.checkpoint is not None
            try:
                place = None if names else entry.place
                raw = codec.parse_object(self.store.raw(entry.name, place=place)[1].decode())
            except NotFound:
                continue  # finished and moved, or pruned, since it was listed
            problems = problems_of(raw, codec.SCHEMA_FILE) if raw.get("schema") == codec.SCHEMA else []
            kind = "schema"
            if not problems and entry.checkpoint.data_schema is not None:
                problems = load("checkpoint.validate:data_problems")(entry.checkpoint.data_schema, entry.checkpoint.data)
                kind = "data"
            if problems:
                findings.append(Finding(entry.place, kind, tuple(problems)))
        leftovers = () if names else tuple(self.store.leftovers())
        linked = () if names else self.store.second_names()
        notes = (_second_names(linked),) if linked else ()
        return Verified(checked, tuple(findings), leftovers, tuple(foreign), notes)

    # --- housekeeping ------------------------------------------------------------------------------------------------

    def repair(self, name: str, *, accept: bool = False, quarantine: bool = False) -> Repair:
        """Look at a damaged record; ``quarantine`` sets it aside, ``accept`` takes its content as it now is.

        Accepting writes it anew with a fresh digest; the old bytes are kept in quarantine either way. A record that is
        older than what was acknowledged is made the last one; where one vanished, that is accepted. An old record of a run
        that is finished can only be set aside.
        Raises NotFound, and Damaged where the content cannot be accepted.
        """
        try:
            self.store.load(name)
        except SchemaMismatch as error:
            if not quarantine:
                raise  # of a newer version, and perhaps whole: not for this one to judge
            damage: CheckpointError = error
        except Damaged as error:
            damage = error
        else:
            return Repair(name, None, "", None, None)
        kind = damage.kind if isinstance(damage, Damaged) else ""
        if kind == "vanished":
            if quarantine:
                raise Damaged(damage.message, kind=kind, hint=f"checkpoint-tool repair {name} --accept")
            return Repair(name, damage, "", None, self.store.repair(name, None, None) if accept else None, acceptable=True)
        try:
            id, old = self.store.raw(name)
        except Damaged as error:  # a link, a folder, a second name: there is nothing to read
            if accept:
                error.hint = f"checkpoint-tool repair {name} --quarantine"
                raise
            return Repair(name, damage, "", None, self.store.repair(name, None, None) if quarantine else None)
        try:
            codec.decode(old, id)
            if kind not in WHOLE_KINDS:
                return Repair(name, None, "", None, None)  # another process repaired it since we looked, and works on it
        except (Damaged, SchemaMismatch):
            pass
        old_text = old.decode("utf-8", "backslashreplace")
        new_text: str | None = None
        try:
            if kind == "returned":
                raise damage
            new_text = codec.encode(self._reseal(id, old)).raw.decode()
        except CheckpointError as error:
            if accept:
                raise Damaged(
                    f"{name} cannot be accepted as it is: {error.message}",
                    kind=damage.kind if isinstance(damage, Damaged) else "schema",
                    hint=f"checkpoint-tool repair {name} --quarantine",
                ) from error
        kept = None
        if accept or quarantine:
            kept = self.store.repair(name, old, self._reseal if accept else None)
        return Repair(name, damage, old_text, new_text, kept, acceptable=new_text is not None)

    def prune(self, *, older_than_s: int | None = None, keep: int | None = None, apply: bool = False) -> Pruned:
        """Forget finished runs that are older than ``older_than_s`` and not among the ``keep`` newest of their workflow.

        One of the two may be left out; with neither, 30 days count. Never unfinished, pinned or damaged ones, nor the last
        run of a workflow of ``exec`` while it is in sight as failed. A key
        whose receipt is forgotten starts a new run when it is used again. Without ``apply`` only says what it would do.
        Where it has to stop halfway (Locked, StoreUnavailable), the message says how many are gone.
        """
        if older_than_s is None and keep is None:
            older_than_s = 30 * 24 * 3600
        now = self.store.now()
        found: dict[str, Listed] = {}
        unreadable = 0
        # Without the unfinished runs of that list: prune would keep one that ends while it looks.
        views = [listed.view for listed in self.list(failing=True) if listed.view is not None]
        in_sight = {view.checkpoint.run_id for view in views if not view.checkpoint.unfinished}
        for listed in (self._listed(entry, now) for entry in self.store.scan(finished=True) if not is_foreign(entry)):
            if listed.view is None:
                unreadable += 1
            elif not listed.view.checkpoint.unfinished:
                # One that is moved while we look is met in both places. Counted twice it would be one too many to keep.
                found[listed.view.checkpoint.run_id] = listed
        workflows: dict[str, list[Checkpoint]] = {}
        for checkpoint in (listed.view.checkpoint for listed in found.values() if listed.view is not None):
            workflows.setdefault(checkpoint.workflow, []).append(checkpoint)
        ranks = {run.run_id: rank for runs in workflows.values() for rank, run in enumerate(model.newest_first(runs), 1)}
        finished = sorted(found.values(), key=lambda listed: _finished_at(listed), reverse=True)
        candidates = []
        for listed in finished:
            assert listed.view is not None
            checkpoint = listed.view.checkpoint
            rank = ranks[checkpoint.run_id]
            old = older_than_s is None or now - _finished_at(listed) >= timedelta(seconds=older_than_s)
            if old and (keep is None or rank > keep) and not checkpoint.pinned and checkpoint.run_id not in in_sight:
                candidates.append(listed)
        removed: list[Listed] = []
        for listed in candidates:
            assert listed.view is not None
            checkpoint = listed.view.checkpoint
            try:
                if apply:
                    # One that still stands among the unfinished ones (its process died in between) goes first to where
                    # it belongs, so that the tokens it was issued are remembered.
                    self.store.archive(checkpoint.id, checkpoint.run_id)
                    self.store.delete(checkpoint.id, checkpoint.run_id)
            except InvalidTransition:
                continue  # pinned since we looked
            except Damaged:
                unreadable += 1
                continue
            except CheckpointError as error:
                if removed:
                    error.preceded_by(f"{len(removed)} of {len(candidates)} runs are removed")
                raise
            removed.append(listed)
        return Pruned(tuple(removed), len(finished) - len(removed), apply, unreadable)

    def pin(self, name: str, pinned: bool = True) -> View:
        """Keep a run from ``prune``, or no longer. Anybody may: it changes nothing about the work.

        A run id means that run, also where a workflow is called so.
        """

        def change(checkpoint: Checkpoint, _: datetime) -> Checkpoint:
            return model.pin(checkpoint, bool(pinned))

        try:
            stored = self.store.update(_run_alone(name) if RUN_ID.fullmatch(name) else name, change)
        except NotFound:
            if not RUN_ID.fullmatch(name):
                raise
            stored = self.store.update(name, change)
        return self._view(stored, self.store.now())

    # --- inside ------------------------------------------------------------------------------------------------------

    def _claim(self, id: str, agent: str | None, steal_reason: str | None) -> "Workflow":
        def change(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
            standing = self._standing(checkpoint, now)
            return model.claim(checkpoint, self._claimant(), standing, now, agent=agent, steal_reason=steal_reason)

        claimed = self.store.update(id, change)
        return Workflow(self, claimed, token=claimed.token)

    def _resume_oldest(self, agent: str | None) -> "Workflow":
        passed: dict[str, int] = {}
        try:
            unfinished = [*self.list()]
        except NotFound as error:
            raise NothingToResume(error.message, hint=error.hint) from None
        if agent is not None:
            unfinished.sort(key=lambda listed: listed.view is None or listed.view.checkpoint.handoff_to != agent)
        for listed in unfinished:
            if listed.view is None:
                passed["damaged"] = passed.get("damaged", 0) + 1
                continue
            checkpoint = listed.view.checkpoint
            if checkpoint.status is Status.BLOCKED:
                passed["blocked"] = passed.get("blocked", 0) + 1
                continue
            if checkpoint.handoff_to not in (None, agent):
                passed["handed to another agent"] = passed.get("handed to another agent", 0) + 1
                continue
            try:
                return self._claim(checkpoint.id, agent, None)
            except Locked:
                why = "held by somebody else"
            except (InvalidTransition, NotFound):
                why = "expired or just finished"
            except (AttemptsExhausted, Damaged, SchemaMismatch) as error:
                why = f"refused ({error.name})"
            passed[why] = passed.get(why, 0) + 1
        if not passed:
            raise NothingToResume(f"nothing is unfinished in {self.store.location}", hint="checkpoint-tool list --all")
        if passed.keys() == {"damaged"}:
            raise Damaged(
                f"all that is unfinished is damaged: {passed['damaged']} files", kind="json", hint="checkpoint-tool verify"
            )
        words = ", ".join(f"{count} {why}" for why, count in passed.items())
        raise NothingToResume(
            f"nothing can be resumed: {words}",
            hint="checkpoint-tool list",
            worth_waiting="held by somebody else" in passed,
        )

    def _claimant(self, owner: Owner | None = None) -> Owner:
        """Who claims: ``owner``, by default the one of all. Where other hosts write too, its claim holds by time: they
        cannot see whether its process lives."""
        who = owner or self.owner
        return who._replace(lease_s=model.DEFAULT_LEASE_S) if who.lease_s is None and self.store.shared else who

    def _caller(self, handle: str) -> StepProcess | None:
        """Who carries a step out: the process, and unless that is another one, which ``handle`` of it."""
        who = process.itself() if self._caller_pid is None else process.of(self._caller_pid)
        if who is None or who.pid is None:
            return None
        group, session = process.group_of(who.pid)
        return StepProcess(
            host=who.host,
            boot_id=who.boot_id,
            pid_ns=who.pid_ns,
            pid=None,
            pid_started=None,
            run_pid=who.pid,
            run_pid_started=who.pid_started,
            time_ns=who.time_ns,
            caller=handle if self._caller_pid is None else None,
            group=group,
            session=session,
            begun_ticks=process.ticks(),
        )

    def _standing(self, checkpoint: Checkpoint, now: datetime) -> Standing:
        return liveness.standing(checkpoint, self.store, now)

    def _listed(self, entry: Entry, now: datetime) -> Listed:
        view = None if entry.checkpoint is None else self._view(entry.checkpoint, now)
        return Listed(entry.name, entry.place, view, entry.error)

    def _view(self, checkpoint: Checkpoint, now: datetime) -> View:
        return model.view(checkpoint, self._standing(checkpoint, now))

    def _entry(self, name: str) -> Entry:
        try:
            return Entry(name, name, self.store.load(name), None)
        except (Damaged, SchemaMismatch) as error:
            return Entry(name, name, None, error)

    def watched(self) -> tuple[timedelta, timedelta] | None:
        """(since the last self-check that keeps a record, how often one is meant to run), or None where none ever ran."""
        stamp = load("checkpoint.store.state:last_check")(self.store.location)
        return None if stamp is None else (self.store.now() - stamp.at, timedelta(seconds=stamp.period_s))

    def screen(self, fields: Mapping[str, Any]) -> str | None:
        """What is to be written, looked at before it is. Raises SecretFound; gives the words of a note where something
        that looks like a secret is allowed."""
        hits = [hit for name, value in fields.items() if value is not None for hit in secrets.find(value, f"$.{name}")]
        refused = [hit for hit in hits if hit.rule not in self.allow_secrets]
        if refused:
            places = ", ".join(dict.fromkeys(f"{hit.path} ({hit.rule})" for hit in refused))
            raise SecretFound(
                f"this looks like a secret, and is not written down: {places}; keep it elsewhere and name the place"
                f" (or --allow-secret {refused[0].rule}, if it is none)",
                hint="checkpoint-tool update --help",
            )
        if not hits:
            return None
        return "allowed what looks like a secret: " + ", ".join(dict.fromkeys(f"{hit.path} ({hit.rule})" for hit in hits))

    def _noted(self, checkpoint: Checkpoint, notes: Iterable[str | None], now: datetime) -> Checkpoint:
        for note in notes:
            if note is not None:
                checkpoint = model.note(checkpoint, _check_text(note, "note"), self.owner.name, now)
        return checkpoint

    def _run_status(self, checkpoint: Checkpoint) -> RunStatus:
        now = self.store.now()
        return RunStatus(checkpoint, model.run_state(checkpoint, self._standing(checkpoint, now), now))

    def _unfinished(self, workflow: str) -> Sequence[Checkpoint]:
        """The unfinished runs of ``workflow``. Raises Damaged or SchemaMismatch for the one without a key."""
        found = []
        try:
            entries = [*self.store.scan(workflow=workflow, failing=True)]
        except NotFound:
            return ()  # the first one makes the store
        for entry in entries:
            if "/" in entry.place:
                continue
            if entry.error is not None and entry.name == workflow:
                raise entry.error
            checkpoint = entry.checkpoint
            if checkpoint is None or checkpoint.workflow != workflow:
                continue
            if checkpoint.unfinished:
                found.append(checkpoint)
            else:
                # Its process died before it could: later it would be taken for newer than runs that ended well since.
                self.store.archive(checkpoint.id, checkpoint.run_id)
        return found

    def _refuse_held(self, id: str) -> None:
        def refuse(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
            standing = self._standing(checkpoint, now)
            if checkpoint.unfinished and standing.held:
                model.claim(checkpoint, self.owner, standing, now)
            return checkpoint

        try:
            self.store.update(id, refuse)
        except NotFound:
            pass  # it has ended since

    def _put_away(self, id: str) -> None:
        """Move a finished run whose process died before it could."""
        try:
            found = self.store.load(id)
        except NotFound:
            return
        if not found.unfinished:
            self.store.archive(id, found.run_id)

    def close_interrupted(self, workflow: str) -> None:
        """End the runs that ``exec`` began of this workflow and whose process is gone.

        Runs with a key of the caller's stay: the next call with that key retries them.
        Raises NotFound (no store), Locked (a command still runs), StoreUnavailable.
        """
        now = self.store.now()
        for run in self._unfinished(workflow):
            without_key = run.idempotency_key in (None, run.run_id)
            if run.invoked and without_key and not self._standing(run, now).held:
                self._close_interrupted(run)

    def _close_interrupted(self, checkpoint: Checkpoint) -> None:
        """End a run whose process is gone, so that the next of its workflow can begin."""
        words = "its process ended without a word"

        def change(checkpoint: Checkpoint, standing: Standing, now: datetime) -> Checkpoint:
            following = model.next_step(checkpoint)
            if following is None:  # somebody saw that its effect is in place, and said so
                return model.finish(checkpoint, Status.COMPLETED, standing, now)
            if following.status is StepStatus.BEGUN:
                outcome = Outcome(cause=Cause.INTERRUPT, error=words)
                checkpoint = model.end_step(checkpoint, following.name, standing, now, outcome)
            return model.finish(checkpoint, Status.FAILED, standing, now, reason=words)

        run = Workflow(self, checkpoint)
        try:
            run._write(change, renew=False)
            run._archive()
        except (InvalidTransition, NotFound, StaleToken):
            pass  # somebody else was faster

    def _reseal(self, id: str, raw: bytes) -> Checkpoint:
        return codec.decode(raw, id, sealed=False).checkpoint


class Workflow:
    """A handle on one run. ``created``: whether this ``start`` began it. As a context manager it releases the lease."""

    def __init__(
        self, checkpoints: Checkpoints, checkpoint: Checkpoint, *, created: bool = False, token: int | None = None
    ) -> None:
        self._checkpoints = checkpoints
        self.checkpoint = checkpoint
        self.created = created
        self._name = _name_of(checkpoint)
        self.token = token
        """The fencing token that every write carries; None for a handle that claimed nothing."""
        self._handle = next(_handles)
        self._proof: Attestation | None = None
        self.attest(process.own_pid())

    @property
    def id(self) -> str:
        return self.checkpoint.id

    def attest(self, pid: int) -> None:
        """Hold a lock for as long as this handle holds the claim, if that is one of process ``pid``: by it the claim is
        known to be alive, or dead, also where that process cannot be seen (another container of this kernel)."""
        lease = self.checkpoint.lease
        if self._proof is None and lease is not None and lease.token == self.token and lease.pid == pid:
            self._proof = self._checkpoints.store.attest(self.checkpoint)

    @property
    def location(self) -> str:
        """Of the store, as it was named."""
        return self._checkpoints.store.location

    @property
    def next(self) -> str | None:
        """Name of the first step that is neither completed nor skipped."""
        return self.view().next

    @property
    def in_doubt(self) -> tuple[str, ...]:
        """Names of the steps that began, and never ended, under an owner who is gone or gave the lease back."""
        return self.view().in_doubt

    def view(self) -> View:
        """The record as this handle knows it, with what only the moment tells."""
        return self._checkpoints._view(self.checkpoint, self._checkpoints.store.now())

    def step(self, name: str, *, once: bool = False) -> "StepRun":
        """A step as a context manager or decorator. ``once``: its effect must not be repeated blindly."""
        return StepRun(self, name, once)

    def update(self, update: Update) -> Checkpoint:
        """Several changes as one. Raises what the changes raise, SecretFound, StaleToken or Locked; then nothing is
        changed."""
        for text, what in ((update.block, "reason"), (update.error, "error"), (update.reason, "reason")):
            if text is not None:
                _check_text(text, what)
        for text in update.notes:
            _check_text(text, "note")
        data = None if update.data is None else codec.copied(update.data)
        result = codec.copied(update.result)
        allowed = self._checkpoints.screen(
            {
                "notes": list(update.notes),
                "steps": list(update.add),
                "data": data,
                "result": result,
                "error": update.error,
                "reason": [update.block, update.reason],
            }
        )

        caller = self.caller()

        def change(checkpoint: Checkpoint, standing: Standing, now: datetime) -> Checkpoint:
            after = checkpoint
            for name in update.add:
                after = model.add_step(after, name, once=update.once)
            for name in update.retry:
                after = model.retry_step(after, name, now)
            for name in update.complete:
                after = model.complete_step(after, name, now, result=result)
            for name in update.fail:
                after = model.fail_step(after, name, now, error=update.error)
            for name in update.skip:
                after = model.skip_step(after, name, now, reason=update.reason or "")
            if update.unblock:
                after = model.unblock(after, now)
            for name in update.begin:
                after = model.begin_step(after, name, standing, now, once=update.once, process=caller)
            if update.block is not None:
                after = model.block(after, update.block)
            for text in update.notes:
                after = model.note(after, text, self._checkpoints.owner.name, now)
            if data is not None:
                after = model.merge_data(after, data)
                if after.data is not checkpoint.data and after.data_schema is not None:
                    _check_data(after.data_schema, after.data)
            return after if after is checkpoint else self._checkpoints._noted(after, (allowed,), now)

        return self._write(change)

    def hold(self, by: Owner) -> bool:
        """Make sure that this handle writes as the holder of the lease; where nobody holds it, claim it for ``by``.

        Returns whether it had to be claimed: such a claim is to be released. Raises Locked, StaleToken, and what
        ``resume`` raises.
        """
        owner, token = self._checkpoints.owner, self.token
        claimed = False

        def change(checkpoint: Checkpoint, standing: Standing, now: datetime) -> Checkpoint:
            nonlocal claimed
            claimed = not model.is_held_by(checkpoint, owner, token, standing)
            return model.claim(checkpoint, self._checkpoints._claimant(by), standing, now) if claimed else checkpoint

        now = self._checkpoints.store.now()
        if model.is_held_by(self.checkpoint, owner, token, self._checkpoints._standing(self.checkpoint, now)):
            self.token = self.checkpoint.token
            return False
        self.token = _once_gone(lambda: self._write(change, renew=False)).token
        self.attest(process.own_pid())
        return claimed

    def done(self, name: str, *, command: Sequence[str] | None = None) -> Step | None:
        """The step, if it is completed or skipped; that it is, is durable then: whoever wrote it may have died before.

        ``command``: arguments of the command that would be run. Raises Conflict where the step was completed by another
        command under the present claim: two things share one name.
        """
        checkpoint = self._checkpoints.store.load(self._name)
        step = checkpoint.step(name)
        if step is None or step.status not in model.DONE:
            return None
        model.refuse_other_command(checkpoint, name, _command_sha256(command))
        self._checkpoints.store.update(self._name, lambda checkpoint, _: checkpoint)
        return step

    def begin(
        self,
        name: str,
        *,
        once: bool = False,
        add: bool = False,
        process: StepProcess | None = None,
        command: Sequence[str] | None = None,
    ) -> Checkpoint:
        """Mark a step begun; in an open plan, or with ``add``, it is appended first.

        ``once``: its effect must not be repeated blindly. ``process``: the command that does it, or else this thread
        with this handle does; while that lives, no other can begin the step. ``command``: its arguments; only their
        hash is kept. Raises NotFound (not in a declared plan),
        InDoubt, InvalidTransition (done before, or the run blocked or finished), SecretFound, StaleToken, Locked.
        """
        self._checkpoints.screen({"step": name})
        process = process or self.caller()
        caller = process if process is None or process.pid is None else self.caller()
        command_sha256 = _command_sha256(command)

        def change(checkpoint: Checkpoint, standing: Standing, now: datetime) -> Checkpoint:
            after = model.add_step(checkpoint, name, once=once) if add else checkpoint
            return model.begin_step(
                after, name, standing, now, once=once, process=process, command_sha256=command_sha256, caller=caller
            )

        return self._write(change)

    def end(self, name: str, outcome: Outcome, *, attempt: int | None = None, run_too: bool = False) -> Checkpoint:
        """How the step's command ended: the step is completed, failed, or in doubt.

        ``attempt``: which attempt it was, where the caller ran it; else nobody may be at it.
        Secrets in ``outcome.output`` and ``outcome.error`` are redacted. ``run_too``: the run is nothing but this
        command, and ends with it: completed or failed; one with a key is given back instead, to be tried again.
        Raises NotFound, InvalidTransition; StaleToken, Locked, StoreUnavailable with how the command ended.
        """
        output, error = (text and secrets.redact(text) for text in (outcome.output, outcome.error))
        told = outcome._replace(output=output, error=error)
        caller = self.caller()

        def change(checkpoint: Checkpoint, standing: Standing, now: datetime) -> Checkpoint:
            after = model.end_step(checkpoint, name, standing, now, told, attempt=attempt, caller=caller)
            if not run_too:
                return after
            if told.good:
                return model.finish(after, Status.COMPLETED, standing, now)
            if after.idempotency_key not in (None, after.run_id):
                return model.release(after)
            return model.finish(after, Status.FAILED, standing, now, reason=told.error)

        try:
            try:
                self._write(change, renew=not run_too)
            except Usage:  # the record is full: what happened matters more than what was printed
                told = told._replace(output=None)
                self._write(change, renew=not run_too)
            if not self.checkpoint.unfinished:
                self._archive()
        except (StaleToken, Locked, StoreUnavailable) as failure:
            how = f"exit status {outcome.exit_code}" if outcome.exit_code is not None else outcome.signal
            if how and outcome.started:
                failure.preceded_by(f"step {name!r} of {self.id} ran ({how})")
            raise
        return self.checkpoint

    def complete_step(self, name: str, result: Any = None) -> Checkpoint:
        """Mark a step completed, with anything that JSON can hold; done before: nothing changes, the first result stays.

        Raises NotFound, InvalidTransition, Usage (no JSON, too large), StaleToken, Locked.
        """
        return self.update(Update(complete=[name], result=result))

    def fail_step(self, name: str, error: str) -> Checkpoint:
        """Mark a step failed: it ended without its effect, and may begin again. Raises what ``complete_step`` raises."""
        return self.update(Update(fail=[name], error=error))

    def complete(self, *, force_reason: str | None = None) -> Checkpoint:
        """Finish the run. Every step must be completed or skipped, unless ``force_reason`` says why not.

        Raises InvalidTransition (steps left; ended otherwise before), StaleToken, Locked.
        """
        return self._finish(Status.COMPLETED, force_reason)

    def fail(self, reason: str) -> Checkpoint:
        """End the run as failed, for good. Raises InvalidTransition (ended otherwise before), StaleToken, Locked."""
        return self._finish(Status.FAILED, reason)

    def cancel(self, reason: str) -> Checkpoint:
        """End a run that is no longer wanted, for good. Raises what ``fail`` raises."""
        return self._finish(Status.CANCELLED, reason)

    def heartbeat(self) -> Checkpoint:
        """Say "alive" and renew the lease, without progress."""
        owner, token = self._checkpoints.owner, self.token
        return self._write(lambda checkpoint, _, now: model.heartbeat(checkpoint, owner, token, now), renew=False)

    def release(self, *, to: str | None = None) -> Checkpoint:
        """Give the lease back; the run stays unfinished and free to be taken. ``to``: the agent who is to go on; a
        ``resume`` that does not name the run leaves it to that one."""
        if to is not None:
            _check_text(to, "agent", 256)
            self._checkpoints.screen({"handoff_to": to})
        return self._write(lambda checkpoint, _, __: model.release(checkpoint, to), renew=False)

    def __enter__(self) -> "Workflow":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        lease = self.checkpoint.lease
        if not self.checkpoint.unfinished or lease is None or lease.token != self.token:
            return
        try:
            self.release()
        except CheckpointError:
            # Taken over by somebody else, or the disk is gone: either way it is no longer ours to give back, and an
            # error here would hide the one that ended the block.
            if kind is None:
                raise

    def ensure_free(self, name: str) -> None:
        """Raises Locked while another part of the owner, or a command, is at work on the step."""
        standing = self._checkpoints._standing(self.checkpoint, self._checkpoints.store.now())
        model.ensure_free(self.checkpoint, name, standing, self.caller())

    def leave(self, name: str) -> None:
        """Give a step up that was begun and not ended: it stays begun, and another handle of the owner may begin it."""
        self._write(lambda checkpoint, _, __: model.leave_step(checkpoint, name), renew=False)

    def caller(self, handle: str | None = None) -> StepProcess | None:
        """Who carries a step out, by default this thread with this handle. None for a process that is no part of the
        owner: that one lives proves nothing of the work."""
        found = self._checkpoints._caller(handle or f"{self._handle}.{process.thread_id()}")
        lease = self.checkpoint.lease
        if found is None or found.run_pid is None or lease is None or lease.pid is None:
            return found
        return found if process.belongs_to(found.run_pid, lease) else None

    def _write(self, change: Callable[[Checkpoint, Standing, datetime], Checkpoint], *, renew: bool = True) -> Checkpoint:
        owner, token = self._checkpoints.owner, self.token

        def authorized(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
            if checkpoint.run_id != self.checkpoint.run_id:
                raise StaleToken(
                    f"the run {self.checkpoint.run_id} of {self.id} has ended, and {checkpoint.run_id} has begun since",
                    hint=f"checkpoint-tool show {self.checkpoint.run_id}",
                )
            standing = self._checkpoints._standing(checkpoint, now)
            model.authorize(checkpoint, owner, token, standing)
            after = change(checkpoint, standing, now)
            held_by_time = checkpoint.lease is not None and checkpoint.lease.lease_s is not None
            if renew and checkpoint.unfinished and (held_by_time or after is not checkpoint):
                return model.renew(after, owner, token, now)
            return after

        self.checkpoint = self._checkpoints.store.update(self._name, authorized)
        if self.checkpoint.lease is None and self._proof is not None:
            self._proof.close()
            self._proof = None
        return self.checkpoint

    def _finish(self, status: Status, reason: str | None) -> Checkpoint:
        allowed = None
        if reason is not None:
            _check_text(reason, "reason")
            allowed = self._checkpoints.screen({"reason": reason})

        def change(checkpoint: Checkpoint, standing: Standing, now: datetime) -> Checkpoint:
            noted = checkpoint if checkpoint.status is status else self._checkpoints._noted(checkpoint, (allowed,), now)
            return model.finish(noted, status, standing, now, reason=reason)

        self._write(change, renew=False)
        self._archive()
        return self.checkpoint

    def _archive(self) -> None:
        try:
            self._checkpoints.store.archive(self.checkpoint.id, self.checkpoint.run_id)
        except CheckpointError as error:
            raise StoreUnavailable(
                f"{self.id} is {self.checkpoint.status}, and that is durable, but it could not be moved to the finished"
                f" runs yet (the next change of it does that): {error.message}",
                applied=True,
                hint=f"checkpoint-tool show {self.id}",
            ) from error


class StepRun:
    """One step, run under its checkpoint.

    As a context manager: begins the step; the end of the block completes it with ``result`` (anything JSON can hold),
    an exception fails it and goes on. A step that was completed before is not begun: ask ``done`` and leave the work
    out. One that another thread or process of the owner is at work on is refused (Locked). A block that is interrupted
    (KeyboardInterrupt, SystemExit) leaves the step begun: in doubt as soon as the lease is released or its owner dead,
    and never begun again by itself when it is marked ``once``.

    As a decorator: the function runs until it has once returned; after that, also after a restart, a call gives the
    recorded result.
    """

    def __init__(self, workflow: Workflow, name: str, once: bool) -> None:
        self._workflow = workflow
        self._once = once
        self.name = name
        self.done = False
        self.result: Any = None

    def __enter__(self) -> "StepRun":
        step = self._workflow.done(self.name) or self._begun()
        self.done = step is not None
        if step is not None:
            self.result = codec.copied(step.result)
        return self

    def _begun(self) -> Step | None:
        """Begin the step, by a handle of its own; the step, if another was faster and has done it."""
        caller = self._workflow.caller(str(next(_handles)))
        try:
            self._workflow.begin(self.name, once=self._once, process=caller)
        except InvalidTransition:
            step = self._workflow.done(self.name)
            if step is None:
                raise
            return step
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.done:
            return
        if error is not None and not isinstance(error, Exception):
            self._leave()
            return
        if error is None:
            try:
                self._workflow.complete_step(self.name, self.result)
            except CheckpointError:
                self._leave()  # held on, it would lock out this very process
                raise
            return
        try:
            words = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()
            self._workflow.fail_step(self.name, secrets.redact(words)[: model.TEXT_LIMIT])
        except CheckpointError as second:
            self._leave()
            error.add_note(f"and the failure of step {self.name!r} could not be recorded: {second}")

    def _leave(self) -> None:
        try:
            self._workflow.leave(self.name)
        except CheckpointError:
            pass  # the error goes on; where the process ends with it, that says the same

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with StepRun(self._workflow, self.name, self._once) as step:
                if not step.done:
                    step.result = function(*args, **kwargs)
            return step.result  # type: ignore[no-any-return]

        return run


_handles = itertools.count(1)
"""Numbers of the handles of this process."""

_owner = owner  # ``Checkpoints.__init__`` has a parameter of that name


def _once_gone(attempt: Callable[[], _R]) -> _R:
    """The result of ``attempt``, made again while only the command of a dead owner stands in its way."""
    deadline = time.monotonic() + LEAVING_S
    while True:
        try:
            return attempt()
        except Locked as error:
            if not error.leaving or time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)


def _fresh_command(
    workflow: str,
    run_id: str,
    plan: Sequence[PlanStep],
    owner: Owner,
    now: datetime,
    process: StepProcess | None,
    command_sha256: str | None,
) -> Checkpoint:
    run = model.new(
        id=workflow,
        workflow=workflow,
        run_id=run_id,
        idempotency_key=None,
        fingerprint=_fingerprint(plan, None),
        plan=plan,
        owner=owner,
        now=now,
    )._replace(invoked=True)
    return model.invoke_step(run, EXEC_STEP, Standing(model.OwnerState.ALIVE), now, process, command_sha256)


def _receipt(checkpoint: Checkpoint, fingerprint: str, plan: Sequence[PlanStep] | None) -> Checkpoint:
    if checkpoint.fingerprint != fingerprint:
        raise model.plan_conflict(checkpoint, plan)
    if checkpoint.status is not Status.COMPLETED:
        raise InvalidTransition(
            f"the run of this key {checkpoint.status} at {model.clock(checkpoint.finished_at or checkpoint.updated_at)}"
            f" ({checkpoint.reason}); another try needs another key",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )
    return checkpoint


def _plan_step(step: str | PlanStep) -> PlanStep:
    return PlanStep(step.name, bool(step.once)) if isinstance(step, PlanStep) else PlanStep(step)


def _fingerprint(plan: Sequence[PlanStep] | None, input: bytes | BinaryIO | None) -> str:
    given = None
    if input is not None:
        digest = hashlib.sha256()
        stream = BytesIO(input) if isinstance(input, bytes) else input
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        given = digest.hexdigest()
    steps = None if plan is None else [[step.name, step.once] for step in plan]
    return codec.canonical_sha256({"plan": steps, "input": given})


def _command_sha256(command: Sequence[str] | None) -> str | None:
    """Of the arguments as bytes, each ended by NUL, which none of them can hold."""
    if command is None:
        return None
    encoding = sys.getfilesystemencoding()
    words = (part.encode(encoding, "surrogateescape") + b"\0" for part in command)
    return hashlib.sha256(b"".join(words)).hexdigest()


def _run_id(now: datetime) -> str:
    """A UUIDv7 (RFC 9562, 5.7): 48 bits of milliseconds, then random: names sort by time."""
    random = uuid.uuid4().int & ((1 << 80) - 1)
    milliseconds = int(now.timestamp() * 1000) & ((1 << 48) - 1)
    value = milliseconds << 80 | random
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=value))


def _check_data(schema: JsonObject, data: JsonObject) -> None:
    problems = load("checkpoint.validate:data_problems")(schema, data)
    if problems:
        raise SchemaMismatch(f"the data breaks the workflow's data schema: {'; '.join(problems)}")


def _check_text(text: str, what: str, limit: int = model.TEXT_LIMIT) -> str:
    if not text.strip():
        raise Usage(f"the {what} is empty")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise Usage(f"the {what} is not UTF-8 text")
    if len(text) > limit:
        raise Usage(f"the {what} has {len(text)} characters, and {limit} is the most")
    return text


def document(view: View) -> dict[str, Any]:
    """A view as the JSON object that ``--json`` prints: the record's fields, ``next``, ``in_doubt``, ``owner_state``."""
    return codec.document(view)


def json_value(text: str, what: str) -> Any:
    """A JSON value from a caller's text. Raises Usage: no JSON, NaN or infinities, a key twice."""
    try:
        return codec.parse(text)
    except ValueError as error:
        raise Usage(f"{what} is no JSON: {error}") from None


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object from a caller's text. Raises Usage."""
    value = json_value(text, what)
    if not isinstance(value, dict):
        raise Usage(f"{what} must be a JSON object, as in '{{\"name\": 1}}'")
    return value


def _check_label(label: str) -> None:
    if not RUN_ID.fullmatch(f"{label}:{uuid.UUID(int=0)}"):
        raise Usage(f"{label!r} is no label: use 1 to 32 of a-z, 0-9, _ and -, beginning with a letter or digit")


def _check_number(number: int, what: str) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _LARGEST:
        raise Usage(f"{what} must be a whole number from 1 to {_LARGEST}, is {number!r}")


def _name_of(checkpoint: Checkpoint) -> str:
    """How the store finds this run and no other, as far as names can tell."""
    by_run = not checkpoint.unfinished and checkpoint.idempotency_key is None
    return _run_alone(checkpoint.run_id) if by_run else checkpoint.id


def _run_alone(run_id: str) -> str:
    """A name that means this run, and never a workflow that is called like it."""
    return f"run:{model.bare(run_id)}"


def _second_names(places: Sequence[str]) -> str:
    count = "1 record has" if len(places) == 1 else f"{len(places)} records have"
    return (
        f"{count} a second name somewhere (a hard link, as `cp -al` makes them; the first is {places[0]}): a change replaces"
        " the file here and leaves the other name as it was"
    )


def _is_final(status: Status | None) -> bool:
    return status is not None and status not in model.UNFINISHED


def _by_age(listed: Listed) -> tuple[datetime, str]:
    if listed.view is None:
        return _LAST, listed.place
    return listed.view.checkpoint.created_at, listed.place


def _finished_at(listed: Listed) -> datetime:
    assert listed.view is not None
    return listed.view.checkpoint.finished_at or listed.view.checkpoint.updated_at


_LARGEST = 100 * 365 * 86400
"""100 years in seconds; also more attempts than anybody needs."""
_VERIFY_KINDS: dict[type[CheckpointError], str] = {SchemaMismatch: NEWER, StoreUnavailable: "unreadable"}
_LAST = datetime.fromisoformat("9999-12-31T00:00:00Z")

__all__ = [
    "Checkpoints",
    "Finding",
    "Listed",
    "Pruned",
    "Repair",
    "RunStatus",
    "StepRun",
    "Update",
    "Verified",
    "Workflow",
    "document",
    "json_object",
    "json_value",
    "owner",
]
