"""The record of one run and every change of its state.

Each change is a pure function ``(checkpoint, ..., now) -> checkpoint``; one that changes nothing returns the very same
object, which is how the store knows that there is nothing to write. The clock and the question whether an owner still
lives come in as arguments.

Named tuples rather than dataclasses: the self-check runs every ten minutes for ever, and importing ``dataclasses``
(with ``inspect``) costs it 7 ms of a budget of 34.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from checkpoint.errors import (
    AttemptsExhausted,
    Conflict,
    InDoubt,
    InvalidTransition,
    Locked,
    NotFound,
    StaleToken,
    Usage,
    shown,
)

JsonObject = Mapping[str, Any]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Workflows and steps; used with fullmatch, so that a trailing newline is no name."""

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,76}")
"""A workflow's name, with a hyphen and 12 hex digits behind it where there is a key."""

RUN_ID = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A UUID, with a label before it where a schedule or the like began the run."""

KEYED = re.compile(r"-[0-9a-f]{12}")
"""What stands behind the workflow's name in the id of a run with a key."""

RECORD_LIMIT = 4 * 1024 * 1024
"""Bytes of a whole record."""

TEXT_LIMIT = 16 * 1024
"""Characters of one note, reason or error text."""

OUTPUT_LIMIT = 256 * 1024
"""Characters of recorded output in one run: beyond that the oldest is forgotten, or each step would cost more than the
last, and a run of some thousand would outgrow its record."""

DEFAULT_LEASE_S = 30 * 60


class Status(StrEnum):
    """Of a run. The last three are final."""

    IN_PROGRESS = "in_progress"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = frozenset({Status.IN_PROGRESS, Status.BLOCKED})


class StepStatus(StrEnum):
    """Of a step. "In doubt" is none of them: it is ``begun``, seen at a moment when nobody can end it."""

    PENDING = "pending"
    BEGUN = "begun"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


DONE = frozenset({StepStatus.COMPLETED, StepStatus.SKIPPED})


class OwnerState(StrEnum):
    """What is known of a lease's holder. Only ``alive`` and ``unknown`` hold; the others leave the checkpoint free."""

    ALIVE = "alive"
    UNKNOWN = "unknown"
    DEAD = "dead"
    EXPIRED = "expired"
    NONE = "none"


HELD = frozenset({OwnerState.ALIVE, OwnerState.UNKNOWN})


class Cause(StrEnum):
    """Why a command ended that did not end by itself."""

    TIMEOUT = "timeout"
    INTERRUPT = "interrupt"


class RunState(StrEnum):
    """The answer to "did the last run finish, or was it interrupted?"."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    BLOCKED = "blocked"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Note(NamedTuple):
    """What somebody wanted the next one to know."""

    at: datetime
    by: str
    text: str
    extra: JsonObject = {}


class StepProcess(NamedTuple):
    """Who carries a step out, and what finds the processes that outlive them.

    ``pid``: the step's command, None where the caller does the step itself (a shell function, Python); ``run_pid``: the
    caller, which will record the end of the step: ``run``, a script or its subshell, a Python process. While one of
    them lives, the step is at work. ``caller``: which handle of that process it is (a thread, a request): another one
    of the same owner is refused. ``group`` and ``session``: process group and session of the command, or of the caller;
    ``begun_ticks``: clock ticks from boot to the beginning of the step, by which a process that the step started is told
    from older ones.
    """

    host: str
    boot_id: str | None
    pid_ns: int | None
    pid: int | None
    pid_started: int | None
    run_pid: int | None
    run_pid_started: int | None
    time_ns: int | None = None
    caller: str | None = None
    group: int | None = None
    session: int | None = None
    begun_ticks: int | None = None
    extra: JsonObject = {}

    @property
    def run(self) -> "StepProcess":
        """The process that will record the end of the step, in place of its command."""
        return self._replace(pid=self.run_pid, pid_started=self.run_pid_started)


class Step(NamedTuple):
    """One step of the plan.

    ``token``: the fencing token under which it last began. ``added``: appended later, not part of the declared plan.
    ``once``: its effect must not be repeated blindly. ``reason``: why it was skipped. ``extra``: fields that a newer
    version wrote, kept as they are. ``claims``: under how many claims it began since it last ended well, which tells
    a crash loop from retries. ``process``: who carries it out, while it is begun. Of a command: ``exit_code``, or
    ``signal``, the name of the one that ended it; ``cause``; ``duration_ms``; ``output``: the last of what it printed;
    ``command_sha256``: of its arguments, by which another command under the same name is noticed.

    Begun with ``ended_at``: its command has ended without success, and whether it took effect is not known.
    """

    name: str
    status: StepStatus = StepStatus.PENDING
    attempts: int = 0
    once: bool = False
    added: bool = False
    token: int | None = None
    claims: int = 0
    begun_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: str | None = None
    cause: Cause | None = None
    duration_ms: int | None = None
    output: str | None = None
    process: StepProcess | None = None
    command_sha256: str | None = None
    result: Any = None
    error: str | None = None
    reason: str | None = None
    extra: JsonObject = {}


class Outcome(NamedTuple):
    """How a step's command ended. ``started``: False when it could not be run at all. ``in_place``: what a look at its
    effect said, None where nobody looked or it could not be told. ``error``: what went wrong, in words."""

    exit_code: int | None = None
    signal: str | None = None
    cause: Cause | None = None
    duration_ms: int | None = None
    output: str | None = None
    started: bool = True
    in_place: bool | None = None
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether the step is done: by its command's own word, unless a look at the effect says otherwise."""
        if self.in_place is not None:
            return self.in_place
        return self.exit_code == 0 and self.cause is None and self.error is None


class Owner(NamedTuple):
    """Who asks for a claim, or writes: a name for people, and where it can be proven, a process.

    ``lease_s``: seconds a claim holds after the last write; None where the process itself is the proof. ``uid``: the
    user. ``terminal``: pid of the leader of a terminal session, which started at ``pid_started``: the claim holds by
    time, and ends with that session at the latest.
    """

    name: str
    host: str
    boot_id: str | None
    pid_ns: int | None
    pid: int | None
    pid_started: int | None
    lease_s: int | None
    uid: int | None = None
    time_ns: int | None = None
    terminal: int | None = None


class Lease(NamedTuple):
    """The resume lock as data: from the claim to ``complete``, ``release`` or the owner's death. Fields as of Owner."""

    owner: str
    host: str
    boot_id: str | None
    pid_ns: int | None
    pid: int | None
    pid_started: int | None
    lease_s: int | None
    token: int
    acquired_at: datetime
    expires_at: datetime | None
    uid: int | None = None
    time_ns: int | None = None
    terminal: int | None = None
    extra: JsonObject = {}


class Checkpoint(NamedTuple):
    """The durable record of one run of a workflow. Times are aware datetimes in UTC, durations whole seconds.

    ``open_plan``: steps may be appended as they come. ``invoked``: it is one command, begun by ``exec``. ``token``: the
    last fencing token issued. ``reason``: why it is blocked, failed, cancelled or was completed by force. ``extra``:
    fields of a newer version, kept as they are.
    """

    id: str
    workflow: str
    run_id: str
    fingerprint: str
    created_at: datetime
    updated_at: datetime
    progress_at: datetime
    heartbeat_at: datetime
    idempotency_key: str | None = None
    status: Status = Status.IN_PROGRESS
    reason: str | None = None
    agent: str | None = None
    handoff_to: str | None = None
    notes: tuple[Note, ...] = ()
    data: JsonObject = {}
    data_schema: JsonObject | None = None
    data_schema_sha256: str | None = None
    open_plan: bool = False
    invoked: bool = False
    steps: tuple[Step, ...] = ()
    lease: Lease | None = None
    token: int = 0
    attempts: int = 1
    max_attempts: int | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    stale_after_s: int | None = None
    pinned: bool = False
    revision: int = 1
    extra: JsonObject = {}

    @property
    def unfinished(self) -> bool:
        return self.status in UNFINISHED

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)


class View(NamedTuple):
    """A checkpoint with what only the moment tells: who holds it and until when, what is in doubt, what comes next."""

    checkpoint: Checkpoint
    owner_state: OwnerState
    in_doubt: tuple[str, ...]
    next: str | None
    until: datetime | None = None


class Standing(NamedTuple):
    """What only the moment tells. ``owner``: of the lease's holder; ``working`` and ``vanished``: names of begun steps
    that are at work, or whose command is gone without a word; ``until``: when the claim ends, where time ends it."""

    owner: OwnerState
    working: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()
    until: datetime | None = None

    @property
    def held(self) -> bool:
        """Whether the run is taken: by the holder of the lease, or by a step that outlives its owner."""
        return self.owner in HELD or bool(self.working)


class PlanStep(NamedTuple):
    """A step as the caller declares it."""

    name: str
    once: bool = False


# --- questions ---------------------------------------------------------------------------------------------------


def check_name(name: str, what: str) -> str:
    """``name`` itself. Raises Usage unless it is 1 to 64 of a-z 0-9 _ - and starts with a letter or digit."""
    if NAME.fullmatch(name):
        return name
    raise Usage(
        f"{shown(name)} is no {what}: use 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit",
    )


class Kernel(Protocol):
    """What is asked of the system about processes: ``liveness.Look`` asks it."""

    def owner(self, checkpoint: Checkpoint) -> str:
        """Whether the process that the lease names lives: "alive", "dead", "unknown", or "elsewhere": unknown, and of
        another boot or host, so that nothing more can be learned from here."""

    def process(self, checkpoint: Checkpoint, process: StepProcess) -> str:
        """The same of the process of a step."""

    def has_orphans(self, checkpoint: Checkpoint, step: Step) -> bool:
        """Whether something that the step started outlives all who could record its end."""


def owner_state(checkpoint: Checkpoint, liveness: str, now: datetime) -> OwnerState:
    """``liveness``: what ``Kernel.owner`` says of the lease's process."""
    lease = checkpoint.lease
    if lease is None:
        return OwnerState.NONE
    if liveness in ("unknown", "elsewhere"):
        until = held_until(checkpoint, liveness)
        return OwnerState.EXPIRED if until is not None and until <= now else OwnerState.UNKNOWN
    return OwnerState(liveness)


def held_until(checkpoint: Checkpoint, liveness: str) -> datetime | None:
    """When a claim ends whose process cannot be looked at; None where only its process can end it.

    One of another boot or host would hold for ever: it ends 30 minutes after its last write.
    """
    lease = checkpoint.lease
    if lease is None or lease.expires_at is not None or liveness != "elsewhere":
        return None if lease is None else lease.expires_at
    return max(checkpoint.heartbeat_at, lease.acquired_at) + timedelta(seconds=DEFAULT_LEASE_S)


def standing(checkpoint: Checkpoint, kernel: Kernel, now: datetime) -> Standing:
    """Who holds the run, and which of its begun steps are at work or left behind, as ``kernel`` answers."""
    liveness = kernel.owner(checkpoint)
    owner = owner_state(checkpoint, liveness, now)
    until = held_until(checkpoint, liveness)
    begun_status = StepStatus.BEGUN  # to look it up for each of 10,000 steps takes longer than all the rest here
    working, vanished = set(), set()
    for step in checkpoint.steps:
        if step.status is not begun_status or step.ended_at is not None:
            continue
        lives = _lives(checkpoint, step, owner, kernel)
        # A process of unknown liveness counts as alive until its own claim ends. Under a later claim it
        # would refuse the step to the new owner for as long as that owner holds the run.
        claimed = step.token == checkpoint.token and until is not None and until > now
        in_time = claimed and bool(lives & {"unknown", "elsewhere"})
        orphaned = _may_leave_orphans(step, lives, owner) and kernel.has_orphans(checkpoint, step)
        if "alive" in lives or in_time or orphaned:
            working.add(step.name)
        elif step.process is not None and step.process.pid is not None and lives == {"dead"}:
            vanished.add(step.name)
    return Standing(owner, frozenset(working), frozenset(vanished), until)


def _lives(checkpoint: Checkpoint, step: Step, owner: OwnerState, kernel: Kernel) -> set[str]:
    """What is known of the processes that carry the step out; nothing where their life proves nothing."""
    process = step.process
    if process is None:
        return set()
    if process.pid is not None:
        return {kernel.process(checkpoint, process), kernel.process(checkpoint, process.run)}
    by_process = checkpoint.lease is not None and checkpoint.lease.pid is not None
    if step.token != checkpoint.token or not (owner in HELD or by_process):
        # Robbed of the run; or a shell in which it was typed, which lives on when the claim has run out.
        return set()
    return {kernel.process(checkpoint, process.run)}


def _may_leave_orphans(step: Step, lives: set[str], owner: OwnerState) -> bool:
    """Whether it is worth a search: while the claim holds, only a caller that has died leaves any behind. A claim that
    holds by time belongs to callers that end after each call."""
    if owner not in HELD:
        return not lives or lives == {"dead"}
    return lives == {"dead"} and step.process is not None


def next_step(checkpoint: Checkpoint) -> Step | None:
    """The first step that is neither completed nor skipped."""
    return next((step for step in checkpoint.steps if step.status not in DONE), None)


def in_doubt(checkpoint: Checkpoint, standing: Standing) -> tuple[str, ...]:
    """Names of the steps that began and never ended while nobody who could still end them lives."""
    return tuple(step.name for step in checkpoint.steps if _is_in_doubt(checkpoint, step, standing))


def view(checkpoint: Checkpoint, standing: Standing) -> View:
    """The checkpoint with what follows from its ``standing``."""
    following = next_step(checkpoint) if checkpoint.unfinished else None
    owner = OwnerState.ALIVE if standing.held and standing.owner not in HELD else standing.owner
    doubtful = in_doubt(checkpoint, standing)
    return View(checkpoint, owner, doubtful, following.name if following else None, standing.until)


def run_state(checkpoint: Checkpoint, standing: Standing, now: datetime) -> RunState:
    """Whether the run finished, goes on, or how it was cut short."""
    if checkpoint.status in (Status.COMPLETED, Status.CANCELLED, Status.BLOCKED):
        return RunState(checkpoint.status)
    failed = [step for step in checkpoint.steps if step.status is StepStatus.FAILED]
    if checkpoint.unfinished:
        if standing.held:
            return RunState.RUNNING
        if is_expired(checkpoint, now):
            return RunState.EXPIRED
        following = next_step(checkpoint)
        if following is None or following.status is not StepStatus.FAILED:
            return RunState.INTERRUPTED
        failed = [following]
    last = max(failed, key=lambda step: step.ended_at or checkpoint.created_at, default=None)
    causes = {Cause.TIMEOUT: RunState.TIMED_OUT, Cause.INTERRUPT: RunState.INTERRUPTED}
    return RunState.FAILED if last is None or last.cause is None else causes[last.cause]


def newest_first(runs: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Runs of one workflow in the order in which they began, the last one first.

    Runs that count their tokens together are in the order of these: a clock that was wrong for a while must not make an
    old run the last one. Beside runs of other keys, which count for themselves, a run counts as begun at the latest when
    its successor did.
    """
    families: dict[str, list[Checkpoint]] = {}
    for run in runs:
        families.setdefault(_counts_with(run), []).append(run)
    dated: list[tuple[datetime, int, Checkpoint]] = []
    for family in families.values():
        latest = max(run.created_at for run in family)
        for run in sorted(family, key=lambda run: (run.token, run.created_at, run.run_id), reverse=True):
            latest = min(latest, run.created_at)
            dated.append((latest, run.token, run))
    return [run for _, _, run in sorted(dated, key=lambda item: item[:2], reverse=True)]


def _counts_with(run: Checkpoint) -> str:
    """The id whose tokens it counts: that of the workflow, also where an ``exec`` began beside another, or of its key."""
    return run.workflow if run.idempotency_key in (None, run.run_id) else run.id


def bare(run_id: str) -> str:
    """The run id without its label: what its file is called, and by which runs sort in time."""
    return run_id.rpartition(":")[2]


def may_be_of(id: str, workflow: str) -> bool:
    """Whether a run of ``workflow`` can have this id, going by its name alone."""
    return id == workflow or (id.startswith(workflow) and KEYED.fullmatch(id, len(workflow)) is not None)


def is_expired(checkpoint: Checkpoint, now: datetime) -> bool:
    return checkpoint.expires_at is not None and checkpoint.expires_at <= now


def holder(lease: Lease, state: OwnerState, until: datetime | None) -> str:
    """Who holds it, since when and until when: for messages."""
    ends = "whether it lives cannot be checked from here"
    if until is not None:
        ends = f"until {clock(until)}"
    elif state is not OwnerState.UNKNOWN:
        ends = f"while process {lease.pid} lives"
    return f"{lease.owner} (token {lease.token}) since {clock(lease.acquired_at)}, {ends}"


def way_to_claim(checkpoint: Checkpoint, standing: Standing) -> str:
    """The command that helps whoever is refused: wait for an owner that lives, take it from one that nothing proves."""
    if standing.owner is OwnerState.UNKNOWN:
        return f"checkpoint-tool resume {checkpoint.id} --steal --reason 'its owner is gone'"
    return f"checkpoint-tool resume {checkpoint.id} --wait 30s"


def clock(moment: datetime) -> str:
    """RFC 3339 in UTC to the second, for messages."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def drift(checkpoint: Checkpoint, plan: Sequence[PlanStep] | None) -> list[str]:
    """What differs between the plan the run began with and ``plan`` (None: an open plan), step by step, in words."""
    if plan is None or checkpoint.open_plan:
        if plan is None and checkpoint.open_plan:
            return []
        return ["the run began with an open plan" if checkpoint.open_plan else "the run began with a declared plan"]
    before = [PlanStep(step.name, step.once) for step in checkpoint.steps if not step.added]
    names_before, names_now = [step.name for step in before], [step.name for step in plan]
    words = []
    for position, step in enumerate(before, 1):
        if step.name not in names_now:
            words.append(f"step {position} {step.name!r} is gone")
    for position, step in enumerate(plan, 1):
        if step.name not in names_before:
            words.append(f"step {position} {step.name!r} is new")
            continue
        old = before[names_before.index(step.name)]
        if old.once != step.once:
            words.append(f"step {position} {step.name!r} is {'now' if step.once else 'no longer'} marked once")
    kept_before = [name for name in names_before if name in names_now]
    kept_now = [name for name in names_now if name in names_before]
    for old_name, new_name in zip(kept_before, kept_now, strict=True):
        if old_name != new_name:
            words.append(f"step {names_now.index(old_name) + 1} {old_name!r} was step {names_before.index(old_name) + 1}")
    return words


# --- beginning and ownership ---------------------------------------------------------------------------------------


def new(
    *,
    id: str,
    workflow: str,
    run_id: str,
    idempotency_key: str | None,
    fingerprint: str,
    plan: Sequence[PlanStep] | None,
    owner: Owner,
    now: datetime,
    agent: str | None = None,
    handoff_to: str | None = None,
    data: JsonObject | None = None,
    data_schema: JsonObject | None = None,
    data_schema_sha256: str | None = None,
    ttl_s: int | None = None,
    stale_after_s: int | None = None,
    max_attempts: int | None = None,
) -> Checkpoint:
    """A fresh run, owned by ``owner`` under token 1."""
    return Checkpoint(
        id=id,
        workflow=check_name(workflow, "workflow name"),
        run_id=run_id,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
        agent=agent,
        handoff_to=handoff_to,
        data=merged({}, data or {}),
        data_schema=data_schema,
        data_schema_sha256=data_schema_sha256,
        open_plan=plan is None,
        steps=tuple(Step(name=step.name, once=step.once) for step in checked_plan(plan or ())),
        lease=_lease(owner, 1, now),
        token=1,
        max_attempts=max_attempts,
        created_at=now,
        updated_at=now,
        progress_at=now,
        heartbeat_at=now,
        expires_at=now + timedelta(seconds=ttl_s) if ttl_s is not None else None,
        stale_after_s=stale_after_s,
    )


def checked_plan(plan: Iterable[PlanStep]) -> tuple[PlanStep, ...]:
    """The plan itself. Raises Usage for a name that is none, or one that stands twice."""
    steps = tuple(plan)
    seen: set[str] = set()
    for step in steps:
        check_name(step.name, "step name")
        if step.name in seen:
            raise Usage(f"step {step.name!r} stands twice in the plan")
        seen.add(step.name)
    return steps


def above_token(checkpoint: Checkpoint, last: int) -> Checkpoint:
    """A new run or claim whose token is higher than ``last``, the highest that this id is known to have been issued.

    Without it a writer that slept through the end of its own run, or whose record was replaced by an older one, would
    hold a valid token for the next.
    """
    token = max(checkpoint.token, last + 1)
    if token == checkpoint.token:
        return checkpoint
    # A step that this very claim has begun belongs to it; under the old token it would be in doubt at once.
    steps = tuple(step._replace(token=token) if step.token == checkpoint.token else step for step in checkpoint.steps)
    lease = checkpoint.lease and checkpoint.lease._replace(token=token)
    return checkpoint._replace(token=token, lease=lease, steps=steps)


def after_run(checkpoint: Checkpoint, last: str | None) -> Checkpoint:
    """A new run whose run id sorts behind ``last``, that of the run before (RFC 9562, 6.2, "Monotonicity").

    Runs are filed by their ids. After a clock that was wrong for a while the new run would be filed before an old one,
    which would then pass for the last.
    """
    label, colon, run = checkpoint.run_id.rpartition(":")
    if last is None or run > last:
        return checkpoint
    milliseconds = f"{int(last[:8] + last[9:13], 16) + 1 & 0xFFFF_FFFF_FFFF:012x}"
    return checkpoint._replace(run_id=f"{label}{colon}{milliseconds[:8]}-{milliseconds[8:]}{run[13:]}")


def resealed(checkpoint: Checkpoint, last: int) -> Checkpoint:
    """A record that was taken in as a person left it: held by nobody, and no token of it valid that was overtaken."""
    return checkpoint._replace(lease=None, token=max(checkpoint.token, last))


def claim(
    checkpoint: Checkpoint,
    owner: Owner,
    standing: Standing,
    now: datetime,
    *,
    agent: str | None = None,
    steal_reason: str | None = None,
) -> Checkpoint:
    """Give ``owner`` the lease: its own again under the same token, or a free or stolen one under the next token.

    Raises InvalidTransition (finished, expired), Locked, AttemptsExhausted.
    """
    _refuse_finished(checkpoint)
    lease, state = checkpoint.lease, standing.owner
    mine = lease is not None and _is_holder(lease, owner) and state is not OwnerState.DEAD
    if standing.working and state not in HELD and not mine and steal_reason is None:
        raise Locked(
            f"{_still_working(checkpoint, standing)}, though its owner is gone",
            hint=f"checkpoint-tool resume {checkpoint.id} --wait 30s",
            leaving=True,
        )
    if lease is not None and state in HELD and not mine and steal_reason is None:
        raise Locked(
            f"{checkpoint.id} is held by {holder(lease, standing.owner, standing.until)}",
            hint=way_to_claim(checkpoint, standing),
        )
    if is_expired(checkpoint, now):
        assert checkpoint.expires_at is not None
        raise InvalidTransition(
            f"{checkpoint.id} expired at {clock(checkpoint.expires_at)}: it is not gone on with unless you say so"
            " (start it with --replan), or close it",
            hint=f"checkpoint-tool cancel {checkpoint.id} --reason expired",
        )
    if lease is not None and mine:
        renewed = _renewed(lease, owner, now)
        if renewed == lease and agent in (None, checkpoint.agent):
            return checkpoint
        return checkpoint._replace(lease=renewed, agent=agent or checkpoint.agent, heartbeat_at=now)
    notes = checkpoint.notes
    if lease is not None and state in HELD:
        notes = (
            *notes,
            Note(now, owner.name, f"took the lease from {holder(lease, standing.owner, standing.until)}: {steal_reason}"),
        )
    attempts = checkpoint.attempts
    if lease is not None:
        # A lease that was given back in order is no failed attempt; one whose owner died, or was robbed, is.
        if checkpoint.max_attempts is not None and attempts >= checkpoint.max_attempts:
            raise AttemptsExhausted(
                f"{checkpoint.id} was begun {attempts} times and may be begun no more than {checkpoint.max_attempts}:"
                " start it with a higher --max-attempts, or close it",
                hint=f"checkpoint-tool fail {checkpoint.id} --reason 'attempts exhausted'",
            )
        attempts += 1
    return checkpoint._replace(
        lease=_lease(owner, checkpoint.token + 1, now),
        token=checkpoint.token + 1,
        attempts=attempts,
        agent=agent or checkpoint.agent,
        handoff_to=None if agent and agent == checkpoint.handoff_to else checkpoint.handoff_to,
        notes=notes,
        heartbeat_at=now,
    )


def enter(
    checkpoint: Checkpoint,
    owner: Owner,
    standing: Standing,
    now: datetime,
    *,
    plan: Sequence[PlanStep] | None,
    fingerprint: str,
    data_schema: JsonObject | None = None,
    data_schema_sha256: str | None = None,
    replan: bool = False,
    agent: str | None = None,
    max_attempts: int | None = None,
    ttl_s: int | None = None,
    stale_after_s: int | None = None,
) -> Checkpoint:
    """``start`` on a run that exists unfinished: the same plan and input go on, others are a Conflict unless ``replan``.

    ``max_attempts`` and ``stale_after_s`` take effect on re-entry, because they are how a person lets a run go on;
    ``ttl_s`` only with ``replan``, or a script that is started daily would never let its run expire.
    Raises what ``claim`` raises, Conflict, and InDoubt where a step in doubt is not in the new plan.
    """
    if standing.held and (checkpoint.lease is None or not _is_holder(checkpoint.lease, owner)):
        return claim(checkpoint, owner, standing, now)  # raises: says who holds it, before any word about plans
    same_schema = data_schema_sha256 in (None, checkpoint.data_schema_sha256)
    if not replan and (checkpoint.fingerprint != fingerprint or not same_schema):
        raise plan_conflict(checkpoint, plan, same_schema=same_schema)
    if max_attempts is not None and max_attempts != checkpoint.max_attempts:
        checkpoint = checkpoint._replace(max_attempts=max_attempts)
    if stale_after_s is not None and stale_after_s != checkpoint.stale_after_s:
        checkpoint = checkpoint._replace(stale_after_s=stale_after_s)
    if replan:
        checkpoint = _replanned(checkpoint, plan, fingerprint, now)
        expires_at = now + timedelta(seconds=ttl_s) if ttl_s is not None else None
        checkpoint = checkpoint._replace(expires_at=expires_at)
        if data_schema is not None:
            checkpoint = checkpoint._replace(data_schema=data_schema, data_schema_sha256=data_schema_sha256)
    return claim(checkpoint, owner, standing, now, agent=agent)


def plan_conflict(checkpoint: Checkpoint, plan: Sequence[PlanStep] | None, *, same_schema: bool = True) -> Conflict:
    """The error that names what differs from the run as it began."""
    words = drift(checkpoint, plan)
    if not same_schema:
        words.append("the data schema differs")
    if not words:
        words.append("the plan is the same, the input differs")
    what = "key" if checkpoint.idempotency_key is not None else "workflow"
    way_out = "start with --replan to take the new plan, keeping what is completed"
    if not checkpoint.unfinished:
        way_out = "it is finished: use another key"
    return Conflict(
        f"this {what} already names a run of {checkpoint.workflow} that began otherwise: {'; '.join(words)} ({way_out})",
        hint=f"checkpoint-tool show {checkpoint.id}",
    )


def authorize(checkpoint: Checkpoint, owner: Owner, token: int | None, standing: Standing) -> None:
    """Whether a write may be taken: the last token, or no token from the lease's own owner, or no live lease at all.

    Raises StaleToken or Locked.
    """
    if token is not None:
        if token != checkpoint.token:
            why = "somebody else has taken it over; stop working on it"
            if token > checkpoint.token:
                why = "it was never issued here: it belongs to another checkpoint, or this store was restored from a backup"
            raise StaleToken(
                f"token {token} is not the last one issued for {checkpoint.id} (that is {checkpoint.token}): {why}",
                hint=f"checkpoint-tool show {checkpoint.id}",
            )
        return
    lease = checkpoint.lease
    if standing.working and standing.owner not in HELD:
        raise Locked(_still_working(checkpoint, standing), hint=f"checkpoint-tool show {checkpoint.id}", leaving=True)
    if lease is not None and standing.owner in HELD and not _is_holder(lease, owner):
        held = f"{checkpoint.id} is held by {holder(lease, standing.owner, standing.until)}"
        raise Locked(f"{held}; a write needs its token (--token or $CHECKPOINT_TOKEN)", hint=way_to_claim(checkpoint, standing))


def is_held_by(checkpoint: Checkpoint, owner: Owner, token: int | None, standing: Standing) -> bool:
    """Whether whoever writes with this ``token``, or as this ``owner``, holds the lease at this moment."""
    return standing.owner in HELD and _writes_as_holder(checkpoint, owner, token)


def renew(checkpoint: Checkpoint, owner: Owner, token: int | None, now: datetime) -> Checkpoint:
    """A write by the lease's holder is a sign of life: the heartbeat moves, and a lease held by time begins anew."""
    lease = checkpoint.lease
    if lease is None or not _writes_as_holder(checkpoint, owner, token):
        return checkpoint
    return checkpoint._replace(lease=_extended(lease, now), heartbeat_at=now)


def heartbeat(checkpoint: Checkpoint, owner: Owner, token: int | None, now: datetime) -> Checkpoint:
    """Say "alive" without progress. Raises InvalidTransition when the writer holds no lease."""
    _refuse_finished(checkpoint)
    if not _writes_as_holder(checkpoint, owner, token):
        raise InvalidTransition(
            f"{checkpoint.id} is not yours to keep alive: nobody holds it",
            hint=f"checkpoint-tool resume {checkpoint.id}",
        )
    return renew(checkpoint, owner, token, now)


def release(checkpoint: Checkpoint, to: str | None = None) -> Checkpoint:
    """Give the lease back; the work stays unfinished and free to be taken: by anybody, or with ``to`` by that agent."""
    _refuse_finished(checkpoint)
    handoff_to = checkpoint.handoff_to if to is None else to
    if checkpoint.lease is None and handoff_to == checkpoint.handoff_to:
        return checkpoint
    left = [step.name for step in checkpoint.steps if _without_caller(step) is not step]
    for name in left:
        checkpoint = leave_step(checkpoint, name)
    return checkpoint._replace(lease=None, handoff_to=handoff_to)


def ensure_free(checkpoint: Checkpoint, name: str, standing: Standing, caller: StepProcess | None) -> None:
    """Raises Locked while another part of the owner, or its command, is at work on the step."""
    step = _step(checkpoint, name)
    if name in standing.working and not _is_same_caller(step.process, caller):
        raise Locked(_at_work(checkpoint, step), hint=f"checkpoint-tool show {checkpoint.id}")


def leave_step(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The caller gives the step up without an end of it: it stays begun, and no handle is in the way of the next."""
    step = _step(checkpoint, name)
    left = _without_caller(step)
    return checkpoint if left is step else _with_step(checkpoint, left)


def _without_caller(step: Step) -> Step:
    """A caller that gave the run back is not at work on the step, however long its process lives."""
    by_caller = step.status is StepStatus.BEGUN and step.process is not None and step.process.pid is None
    return step._replace(process=None) if by_caller else step


# --- steps -----------------------------------------------------------------------------------------------------------


def add_step(checkpoint: Checkpoint, name: str, *, once: bool = False) -> Checkpoint:
    """Append a step. One that is there already is left alone, so that a retry does no harm."""
    if checkpoint.step(name) is not None:
        return checkpoint
    _refuse_finished(checkpoint)
    step = Step(name=check_name(name, "step name"), once=once, added=not checkpoint.open_plan)
    return checkpoint._replace(steps=(*checkpoint.steps, step))


def begin_step(
    checkpoint: Checkpoint,
    name: str,
    standing: Standing,
    now: datetime,
    *,
    once: bool = False,
    process: StepProcess | None = None,
    command_sha256: str | None = None,
    caller: StepProcess | None = None,
) -> Checkpoint:
    """Mark the step begun under the present token, by ``process``: its command, or the caller that does it.

    ``caller``: who has the command run, by default ``process`` itself.

    ``command_sha256``: hash of the arguments of that command, where it is known.

    A repeatable step in doubt begins again; so does a failed one; the same caller may ask again. Raises InDoubt for one
    marked once that has begun, InvalidTransition for one that is completed or skipped (or the run blocked), NotFound
    outside a declared plan, Locked while another caller or its command is at work on it, under whatever token.
    """
    if checkpoint.open_plan and checkpoint.step(name) is None:
        checkpoint = add_step(checkpoint, name, once=once)
    step = _step(checkpoint, name)
    _refuse_finished(checkpoint)
    if step.status in DONE:
        raise InvalidTransition(
            f"step {name!r} of {checkpoint.id} is already {step.status}: beginning it would do it twice",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )
    if checkpoint.status is Status.BLOCKED:
        raise InvalidTransition(
            f"{checkpoint.id} is blocked: {checkpoint.reason}",
            hint=f"checkpoint-tool update {checkpoint.id} --unblock",
        )
    if step.status is StepStatus.BEGUN:
        caller = caller or process
        mine = _is_same_caller(step.process, caller)
        ensure_free(checkpoint, name, standing, caller)
        by_command = process is not None and process.pid is not None
        doubtful = by_command or _is_in_doubt(checkpoint, step, standing)
        if step.once or (once and doubtful):
            # Also under the same token: a session that died inside comes back under its old name and token.
            raise InDoubt(
                f"step {name!r} of {checkpoint.id} began at {clock(step.begun_at) if step.begun_at else 'some time'} and"
                " nobody knows whether it ended; it may not be repeated blindly: look, then say --complete or --retry",
                hint=f"checkpoint-tool show {checkpoint.id}",
            )
        if not doubtful:
            taken = step._replace(once=step.once or once, process=step.process if mine else process)
            return checkpoint if taken == step else _with_step(checkpoint, taken)
    begun = step._replace(
        status=StepStatus.BEGUN,
        attempts=step.attempts + 1,
        once=step.once or once,
        token=checkpoint.token,
        claims=step.claims + (step.token != checkpoint.token),
        begun_at=now,
        ended_at=None,
        result=None,
        error=None,
        **_UNTOLD,
    )
    begun = begun._replace(process=process, command_sha256=command_sha256)
    return _moved(checkpoint, begun, now)


def refuse_other_command(checkpoint: Checkpoint, name: str, command_sha256: str | None) -> None:
    """Raises Conflict where the step was completed by another command under the present claim: two things share its
    name, and the second would be left out. Under a later claim it may be another: the script was changed since. So it
    may be where no command completed it, but a person, or a look at its effect."""
    step = checkpoint.step(name)
    if step is None or step.status is not StepStatus.COMPLETED or not checkpoint.unfinished or step.exit_code is None:
        return
    same_claim = checkpoint.lease is not None and step.token == checkpoint.token
    if same_claim and None not in (step.command_sha256, command_sha256) and step.command_sha256 != command_sha256:
        raise Conflict(
            f"step {name!r} of {checkpoint.id} was completed in this attempt by another command, and this one was not"
            " run: give each of the two a name of its own",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )


def invoke_step(
    checkpoint: Checkpoint,
    name: str,
    standing: Standing,
    now: datetime,
    process: StepProcess | None,
    command_sha256: str | None,
) -> Checkpoint:
    """The run is one command, and its step ``name`` begins. Raises what ``begin_step`` raises."""
    invoked = checkpoint._replace(invoked=True)
    return begin_step(invoked, name, standing, now, process=process, command_sha256=command_sha256)


def refuse_other_invocation(checkpoint: Checkpoint, name: str, command_sha256: str | None) -> None:
    """Raises Conflict where the key names a run of another command: its receipt says nothing about this one."""
    step = checkpoint.step(name)
    # Version 0.1.0 recorded no command: what it ran is taken for the same.
    if step is None or None in (step.command_sha256, command_sha256) or step.command_sha256 == command_sha256:
        return
    key = shown(checkpoint.idempotency_key)
    if checkpoint.unfinished:
        raise Conflict(
            f"key {key} belongs to a run of {checkpoint.workflow} with another command, which is unfinished: use another key;"
            " or, if that command is not to be tried again, take its step back",
            hint=f"checkpoint-tool update {checkpoint.id} --retry {name}",
        )
    raise Conflict(
        f"key {key} belongs to a finished run of {checkpoint.workflow} with another command: use another key",
        hint=f"checkpoint-tool show {checkpoint.id}",
    )


def end_step(
    checkpoint: Checkpoint,
    name: str,
    standing: Standing,
    now: datetime,
    outcome: Outcome,
    *,
    attempt: int | None = None,
    caller: StepProcess | None = None,
) -> Checkpoint:
    """How the step's command ended: completed, or failed; one marked once that did not succeed stays in doubt, unless
    it never started or its effect is known not to be in place.

    ``attempt``: the one that ended, where the caller ran it. ``caller``: who says so. Raises StaleToken if another
    attempt has begun since, Locked while another caller is at work on it, InvalidTransition if it has not begun.
    """
    step = _step(checkpoint, name)
    if step.status is StepStatus.COMPLETED or (step.status is StepStatus.FAILED and step.exit_code == outcome.exit_code):
        return checkpoint
    _refuse_finished(checkpoint)
    _refuse_done(checkpoint, step, "ended")
    if attempt not in (None, step.attempts):
        raise StaleToken(
            f"step {name!r} of {checkpoint.id} was begun again since: this end is that of attempt {attempt}",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )
    if attempt is None:
        ensure_free(checkpoint, name, standing, caller)
    if step.status is not StepStatus.BEGUN:
        raise InvalidTransition(
            f"step {name!r} of {checkpoint.id} has not begun: it is {step.status}",
            hint=f"checkpoint-tool begin {checkpoint.id} {shlex.quote(name)}",
        )
    duration_ms = outcome.duration_ms
    if duration_ms is None and outcome.exit_code is not None and step.begun_at is not None:
        duration_ms = max(0, int((now - step.begun_at).total_seconds() * 1000))
    status = StepStatus.COMPLETED if outcome.good else StepStatus.FAILED
    if status is StepStatus.FAILED and step.once and outcome.started and outcome.in_place is None:
        status = StepStatus.BEGUN
    ended = step._replace(
        status=status,
        attempts=step.attempts or 1,
        ended_at=now,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        cause=None if outcome.good else outcome.cause,
        duration_ms=duration_ms,
        output=outcome.output,
        process=None,
        error=None if outcome.good else outcome.error,
    )
    return _thinned(_moved(checkpoint, ended, now))


def complete_step(checkpoint: Checkpoint, name: str, now: datetime, *, result: Any = None) -> Checkpoint:
    """Mark the step completed. Already completed: nothing changes, the first result stays."""
    step = _step(checkpoint, name)
    if step.status is StepStatus.COMPLETED:
        return checkpoint
    _refuse_finished(checkpoint)
    if step.status is StepStatus.SKIPPED:
        raise InvalidTransition(
            f"step {name!r} of {checkpoint.id} was skipped; take that back first",
            hint=f"checkpoint-tool update {checkpoint.id} --retry {shlex.quote(name)}",
        )
    ended = step._replace(status=StepStatus.COMPLETED, attempts=step.attempts or 1, ended_at=now, result=result, error=None)
    return _moved(checkpoint, ended._replace(**_UNTOLD), now)


def fail_step(checkpoint: Checkpoint, name: str, now: datetime, *, error: str | None = None) -> Checkpoint:
    """Mark the step failed: it ended, its effect is not in place, and it may begin again."""
    step = _step(checkpoint, name)
    if step.status is StepStatus.FAILED and step.error == error:
        return checkpoint
    _refuse_finished(checkpoint)
    _refuse_done(checkpoint, step, "failed")
    ended = step._replace(status=StepStatus.FAILED, attempts=step.attempts or 1, ended_at=now, error=error)
    return _moved(checkpoint, ended._replace(**_UNTOLD), now)


def skip_step(checkpoint: Checkpoint, name: str, now: datetime, *, reason: str) -> Checkpoint:
    """Leave the step out, with the reason: it counts as done."""
    step = _step(checkpoint, name)
    if step.status is StepStatus.SKIPPED:
        return checkpoint
    _refuse_finished(checkpoint)
    _refuse_done(checkpoint, step, "skipped")
    skipped = step._replace(status=StepStatus.SKIPPED, ended_at=now, reason=reason, **_UNTOLD)
    return _moved(checkpoint, skipped, now)


def retry_step(checkpoint: Checkpoint, name: str, now: datetime) -> Checkpoint:
    """Back to pending: it failed, was skipped, or is in doubt and somebody found that its effect is not in place."""
    step = _step(checkpoint, name)
    if step.status is StepStatus.PENDING:
        return checkpoint
    _refuse_finished(checkpoint)
    _refuse_done(checkpoint, step, "tried again", allow=StepStatus.SKIPPED)
    fresh = Step(name=step.name, attempts=step.attempts, once=step.once, added=step.added, extra=step.extra)
    return _moved(checkpoint, fresh, now)


# --- the run as a whole ----------------------------------------------------------------------------------------------


def block(checkpoint: Checkpoint, reason: str) -> Checkpoint:
    """The run waits for something outside: no step may begin until it is unblocked."""
    if checkpoint.status is Status.BLOCKED and checkpoint.reason == reason:
        return checkpoint
    _refuse_finished(checkpoint)
    return checkpoint._replace(status=Status.BLOCKED, reason=reason)


def unblock(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
    """It waits no longer. Counts as progress, or the run would be stale the moment it may go on."""
    if checkpoint.status is Status.IN_PROGRESS:
        return checkpoint
    _refuse_finished(checkpoint)
    return checkpoint._replace(status=Status.IN_PROGRESS, reason=None, progress_at=now)


def note(checkpoint: Checkpoint, text: str, by: str, now: datetime) -> Checkpoint:
    """Add a note. Raises InvalidTransition on a finished run."""
    _refuse_finished(checkpoint)
    return checkpoint._replace(notes=(*checkpoint.notes, Note(now, by, text)))


def merge_data(checkpoint: Checkpoint, patch: JsonObject) -> Checkpoint:
    """Merge ``patch`` into the data (JSON Merge Patch, RFC 7386: null removes a key)."""
    data = merged(checkpoint.data, patch)
    if data == checkpoint.data:
        return checkpoint
    _refuse_finished(checkpoint)
    return checkpoint._replace(data=data)


def finish(
    checkpoint: Checkpoint,
    status: Status,
    standing: Standing,
    now: datetime,
    *,
    reason: str | None = None,
) -> Checkpoint:
    """End the run for good. ``completed`` wants every step done, or a reason to do without.

    Raises InvalidTransition: steps left, or already finished in another way.
    """
    if checkpoint.status is status:
        return checkpoint
    _refuse_finished(checkpoint)
    if status is Status.COMPLETED and checkpoint.open_plan and not checkpoint.steps and reason is None:
        # All of its step names may have been refused: completed, the key would be used up with nothing done.
        raise InvalidTransition(
            f"{checkpoint.id} has no step: nothing was begun that could be complete. Begin a step, or cancel the run;"
            " if there was nothing to do, complete it with --force --reason TEXT",
            hint=f"checkpoint-tool complete {checkpoint.id} --force --reason 'nothing to do'",
        )
    left = [step for step in checkpoint.steps if step.status not in DONE]
    if status is Status.COMPLETED and left and reason is None:
        doubtful = in_doubt(checkpoint, standing)
        names = ", ".join(f"{step.name} ({'in doubt' if step.name in doubtful else step.status})" for step in left)
        raise InvalidTransition(
            f"{checkpoint.id} has {len(left)} of {len(checkpoint.steps)} steps left: {names}"
            " (complete or skip them, or use --force --reason TEXT)",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )
    return checkpoint._replace(status=status, reason=reason, lease=None, finished_at=now, handoff_to=None)


def is_keyed(checkpoint: Checkpoint) -> bool:
    """Whether the caller named the run by a key; a run of ``exec`` beside another has its own run id for a key."""
    return checkpoint.idempotency_key not in (None, checkpoint.run_id)


def failing_after(mark: Checkpoint | None, ended: Checkpoint, now: datetime) -> Checkpoint | None:
    """The last run of a workflow that went wrong, once ``ended`` has ended. ``mark``: the one before; None: none.

    Only runs of ``exec`` count. A run that a person cancelled says nothing about the workflow, and neither does a keyed
    run that a person closed as failed. An older run that ends well leaves the mark of a newer one.
    """
    if not ended.invoked or ended.status is Status.CANCELLED:
        return mark
    if ended.status is Status.COMPLETED:
        return mark if mark is not None and not _began_after(ended, mark, now) else None
    if is_keyed(ended):
        return mark
    if mark is not None and (mark.run_id == ended.run_id or not _began_after(ended, mark, now)):
        return mark
    before = None if mark is None or is_acknowledged(mark) else mark.extra.get("failing")
    since = before["since"] if before else (ended.finished_at or ended.updated_at).isoformat()
    runs = before["runs"] + 1 if before else 1
    failing = {"since": since, "runs": runs, "acknowledged": None}
    return ended._replace(extra={**ended.extra, "failing": failing})


def acknowledged(mark: Checkpoint, by: str | None, reason: str, now: datetime) -> Checkpoint:
    """The mark as somebody has seen it, which takes it out of sight; ``by`` None: in sight again."""
    seen = None if by is None else {"at": now.isoformat(), "by": by, "reason": reason}
    return mark._replace(extra={**mark.extra, "failing": {**mark.extra["failing"], "acknowledged": seen}})


def is_acknowledged(mark: Checkpoint) -> bool:
    return mark.extra["failing"]["acknowledged"] is not None


def failing_since(mark: Checkpoint) -> datetime:
    """When the first of the runs failed that went wrong one after the other."""
    return datetime.fromisoformat(mark.extra["failing"]["since"])


def check_mark(checkpoint: Checkpoint) -> None:
    """Raises KeyError, TypeError or ValueError for what was never written as a mark."""
    failing = checkpoint.extra["failing"]
    if failing_since(checkpoint).tzinfo is None or not isinstance(failing["runs"], int):
        raise ValueError("no mark of a failed run")
    if not isinstance(failing["acknowledged"], Mapping | None):
        raise TypeError("no acknowledgement")


def _began_after(run: Checkpoint, mark: Checkpoint, now: datetime) -> bool:
    if _counts_with(run) == _counts_with(mark) and run.token != mark.token:
        return run.token > mark.token
    # Tokens of two keys say nothing about each other. A date in the future is that of a clock that was wrong.
    return mark.created_at > now or (run.created_at, bare(run.run_id)) > (mark.created_at, bare(mark.run_id))


def check_finished(checkpoint: Checkpoint) -> None:
    """Raises InvalidTransition for an unfinished run."""
    if checkpoint.unfinished:
        raise InvalidTransition(f"{checkpoint.id} is unfinished", hint=f"checkpoint-tool show {checkpoint.id}")


def check_deletable(checkpoint: Checkpoint) -> None:
    """Raises InvalidTransition for unfinished work and for what is pinned."""
    check_finished(checkpoint)
    if checkpoint.pinned:
        raise InvalidTransition(f"{checkpoint.id} is pinned", hint=f"checkpoint-tool unpin {checkpoint.id}")


def pin(checkpoint: Checkpoint, pinned: bool) -> Checkpoint:
    """Keep it from ``prune``, or no longer."""
    return checkpoint if checkpoint.pinned == pinned else checkpoint._replace(pinned=pinned)


def stamped(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
    """As it is to be written: the next revision, at ``now``."""
    return checkpoint._replace(revision=checkpoint.revision + 1, updated_at=now)


def merged(target: JsonObject, patch: JsonObject) -> dict[str, Any]:
    """JSON Merge Patch (RFC 7386) of two objects."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


# --- inside ----------------------------------------------------------------------------------------------------------


# What only the command that has ended could tell; it is not true of the next, nor of a step settled by a person.
_UNTOLD: dict[str, Any] = dict.fromkeys(("exit_code", "signal", "cause", "duration_ms", "output", "process"))


def _is_in_doubt(checkpoint: Checkpoint, step: Step, standing: Standing) -> bool:
    if step.status is not StepStatus.BEGUN or step.name in standing.working:
        return False
    overtaken = standing.owner not in HELD or step.token != checkpoint.token
    return overtaken or step.ended_at is not None or step.name in standing.vanished


def _still_working(checkpoint: Checkpoint, standing: Standing) -> str:
    return _at_work(checkpoint, next(step for step in checkpoint.steps if step.name in standing.working))


def _at_work(checkpoint: Checkpoint, step: Step) -> str:
    which = f"step {step.name!r} of {checkpoint.id}"
    process = step.process
    if process is None:
        return f"a process that {which} started is still at work"
    if process.pid is None:
        since = f" since {clock(step.begun_at)}" if step.begun_at else ""
        return f"{which} is at work{since}: process {process.run_pid} began it, and it or what it started still runs"
    return f"the command of {which} is still at work (process {process.pid}, run by {process.run_pid})"


def _is_same_caller(one: StepProcess | None, other: StepProcess | None) -> bool:
    """Whether both name one handle of one process, which does the step itself: it may ask again."""
    if one is None or other is None or one.pid is not None or other.pid is not None:
        return False
    same = ("host", "boot_id", "pid_ns", "run_pid", "run_pid_started", "caller")
    return all(getattr(one, name) == getattr(other, name) for name in same)


def _is_holder(lease: Lease, owner: Owner) -> bool:
    """The same owner asks again: the same process, or where it holds by time the same name, of one user on one boot.

    A name that was made up counts by the process in it: the host may be renamed, the user database be away.
    """
    if (lease.host, lease.boot_id) != (owner.host, owner.boot_id):
        return False
    if lease.uid != owner.uid and None not in (lease.uid, owner.uid):
        return False
    if _name_that_counts(lease.owner, lease) != _name_that_counts(owner.name, owner):
        return False
    if lease.pid is None or owner.pid is None:
        return None in (lease.pid_started, owner.pid_started) or lease.pid_started == owner.pid_started
    return (lease.pid, lease.pid_started, lease.pid_ns) == (owner.pid, owner.pid_started, owner.pid_ns)


_MADE_UP = re.compile(r"[^@:]*@[^@:]*:((\d+)(@\d+)?)")
"""As ``process.owner_name`` makes it: user@host:pid, and the pid namespace where that is not the first."""


def _name_that_counts(name: str, claimant: Lease | Owner) -> str:
    made_up = _MADE_UP.fullmatch(name)
    if made_up is None or claimant.pid_started is None or claimant.pid not in (None, int(made_up[2])):
        return name  # one that was given; only one that is made up comes with a start time
    return made_up[1]


def _writes_as_holder(checkpoint: Checkpoint, owner: Owner, token: int | None) -> bool:
    lease = checkpoint.lease
    if lease is None:
        return False
    return _is_holder(lease, owner) if token is None else token == lease.token


def _lease(owner: Owner, token: int, now: datetime) -> Lease:
    lease = Lease(
        owner=owner.name,
        host=owner.host,
        boot_id=owner.boot_id,
        pid_ns=owner.pid_ns,
        pid=owner.pid,
        pid_started=owner.pid_started,
        lease_s=owner.lease_s,
        token=token,
        acquired_at=now,
        expires_at=None,
        uid=owner.uid,
        time_ns=owner.time_ns,
        terminal=owner.terminal,
    )
    return _extended(lease, now)


def _renewed(lease: Lease, owner: Owner, now: datetime) -> Lease:
    """The same claim again: a process newly named is taken as the proof, a newly asked time as the time."""
    if owner.pid is not None and lease.pid is None:
        lease = lease._replace(pid=owner.pid, pid_started=owner.pid_started, pid_ns=owner.pid_ns, time_ns=owner.time_ns)
        lease = lease._replace(lease_s=owner.lease_s, terminal=None)
    elif lease.lease_s is not None and owner.lease_s is not None:
        lease = lease._replace(lease_s=owner.lease_s)
    return _extended(lease, now)


def _extended(lease: Lease, now: datetime) -> Lease:
    if lease.lease_s is None:
        return lease if lease.expires_at is None else lease._replace(expires_at=None)
    return lease._replace(expires_at=now + timedelta(seconds=lease.lease_s))


def _replanned(checkpoint: Checkpoint, plan: Sequence[PlanStep] | None, fingerprint: str, now: datetime) -> Checkpoint:
    wanted = checked_plan(plan or ())
    names = {step.name for step in wanted}
    kept_outside = []
    for step in checkpoint.steps:
        if step.name in names:
            continue
        if step.status is StepStatus.BEGUN:
            raise InDoubt(
                f"step {step.name!r} of {checkpoint.id} began, has not ended, and is not in the new plan: settle it first",
                hint=f"checkpoint-tool show {checkpoint.id}",
            )
        if step.status in DONE or plan is None:
            kept_outside.append(step._replace(added=plan is not None))
    old = {step.name: step for step in checkpoint.steps}
    steps = (
        *kept_outside,
        *(_kept(old[step.name], step) if step.name in old else Step(step.name, once=step.once) for step in wanted),
    )
    if steps == checkpoint.steps and fingerprint == checkpoint.fingerprint:
        return checkpoint
    return checkpoint._replace(steps=steps, open_plan=plan is None, fingerprint=fingerprint, progress_at=now)


def _kept(step: Step, wanted: PlanStep) -> Step:
    # While it may have taken effect, no new plan makes it repeatable.
    once = wanted.once or (step.once and step.status is StepStatus.BEGUN)
    return step._replace(once=once, added=False)


def _step(checkpoint: Checkpoint, name: str) -> Step:
    step = checkpoint.step(name)
    if step is None:
        check_name(name, "step name")
        known = ", ".join(step.name for step in checkpoint.steps[:20]) or "none"
        raise NotFound(
            f"{checkpoint.id} has no step {name!r} (its steps: {known}); --add appends one",
            hint=f"checkpoint-tool update {checkpoint.id} --add {name}",
        )
    return step


def _moved(checkpoint: Checkpoint, step: Step, now: datetime) -> Checkpoint:
    return _with_step(checkpoint, step)._replace(progress_at=now)


def _with_step(checkpoint: Checkpoint, step: Step) -> Checkpoint:
    steps = checkpoint.steps
    at = next(at for at, old in enumerate(steps) if old.name == step.name)
    return checkpoint._replace(steps=(*steps[:at], step, *steps[at + 1 :]))


def _thinned(checkpoint: Checkpoint) -> Checkpoint:
    excess = sum(len(step.output) for step in checkpoint.steps if step.output) - OUTPUT_LIMIT
    if excess <= 0:
        return checkpoint
    forgotten = set()
    told = [step for step in checkpoint.steps if step.output]
    for step in sorted(told, key=lambda step: (step.status not in DONE, step.ended_at or checkpoint.created_at)):
        if excess > 0:
            excess -= len(step.output or "")
            forgotten.add(step.name)
    return checkpoint._replace(
        steps=tuple(step._replace(output=None) if step.name in forgotten else step for step in checkpoint.steps)
    )


def _refuse_finished(checkpoint: Checkpoint) -> None:
    if not checkpoint.unfinished:
        raise InvalidTransition(
            f"{checkpoint.id} is already {checkpoint.status}: a finished run does not change",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )


def _refuse_done(checkpoint: Checkpoint, step: Step, what: str, *, allow: StepStatus | None = None) -> None:
    if step.status in DONE and step.status is not allow:
        raise InvalidTransition(
            f"step {step.name!r} of {checkpoint.id} is already {step.status} and cannot be {what}",
            hint=f"checkpoint-tool show {checkpoint.id}",
        )
