"""A step that is a command: begin it, run it, look at its effect, end it, try it again.

The beginning is on the disk before the command starts, with the process that will be the command in it: the command is
forked first and waits. So nobody can begin the step again while it runs, whoever else has died.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from checkpoint import process, secrets
from checkpoint.api import Checkpoints, Workflow
from checkpoint.child import Child, Ending, signal_name
from checkpoint.errors import (
    CheckpointError,
    InDoubt,
    InvalidTransition,
    NotFound,
    StaleToken,
    StoreUnavailable,
    Usage,
)
from checkpoint.model import DONE, Cause, Outcome, Step, StepProcess, StepStatus

TAIL = 4 * 1024
"""Bytes of output that are recorded, unless told otherwise."""

LARGEST_TAIL = 64 * 1024

BACKOFF_LIMIT_S = 10 * 60

# A secret that began before the tail can only be known from what stood before it.
_CONTEXT = 16 * 1024
_BEAT_S = 60.0


class Command(NamedTuple):
    """What is to be run, and how. ``argv``: program and arguments; ``environ``: its environment; ``verify``: a shell
    command that exits 0 where the effect is in place, and 1 where it is not; ``retries``: more attempts after a failure,
    ``backoff_s`` apart, doubling up to 10 minutes; ``tail``: bytes of output to record; ``stdout``: where its standard
    output goes."""

    argv: Sequence[str]
    environ: Mapping[str, str]
    verify: str | None = None
    timeout_s: int | None = None
    retries: int = 0
    backoff_s: int = 1
    tail: int = TAIL
    stdout: int = 1


class Ran(NamedTuple):
    """What became of it. ``status``: the exit status to give; ``skipped``: why it was not run; ``settle``: to be called
    last of all: passes a Ctrl-C on."""

    status: int
    run: Workflow
    step: Step
    skipped: str | None = None
    settle: Callable[[], None] | None = None


def check(command: Command, *, once: bool = False) -> None:
    """Raises Usage for what cannot be meant."""
    if not command.argv:
        raise Usage("no command: write it behind --")
    if command.verify is not None and not command.verify.strip():
        raise Usage("--verify wants a command that looks at the effect")
    if any("\0" in part for part in command.argv):
        raise Usage("a command cannot hold NUL")
    if not 0 <= command.tail <= LARGEST_TAIL:
        raise Usage(f"--tail must be from 0 to {LARGEST_TAIL} bytes")
    if command.retries < 0:
        raise Usage("--retries must be 0 or more")
    if once and command.retries and command.verify is None:
        raise Usage("--retries would repeat blindly what --once forbids: say with --verify CMD how to see the effect")


def run_step(run: Workflow, name: str, command: Command, *, once: bool = False, add: bool = False) -> Ran:
    """Run a step of ``run``, which must be held, unless it is done already.

    Raises Usage, NotFound (not in the plan), InDoubt, Locked (its command still runs), InvalidTransition, StaleToken,
    StoreUnavailable; none of them once the command has begun, but for those that its end could not be recorded.
    """
    step = run.checkpoint.step(name)
    done = run.done(name, command=command.argv) if step is not None and step.status in DONE else None
    if done is not None:
        return Ran(0, run, done, skipped=f"already {done.status}")
    once = once or (step is not None and step.once)
    check(command, once=once)
    if command.verify is not None and step is not None and step.status is StepStatus.BEGUN:
        run.ensure_free(name)
        in_place = _look(run, name, command).in_place
        if in_place is None:
            raise InDoubt(
                f"step {name!r} of {run.id} is in doubt, and --verify could not tell whether its effect is in place",
                hint=f"checkpoint-tool show {run.id}",
            )
        error = None if in_place else "its effect is not in place (--verify)"
        settled = _ended(run, name, Outcome(in_place=in_place, error=error))
        if in_place:
            return Ran(0, run, settled, skipped="its effect is in place")
    pause = float(command.backoff_s)
    for left in range(command.retries, -1, -1):
        child = _waiting(command)
        try:
            run.begin(name, once=once, add=add, process=_identity(child), command=command.argv)
        except BaseException as error:
            child.abandon()
            # Somebody else may have done it since we looked.
            done = run.done(name, command=command.argv) if isinstance(error, InvalidTransition) else None
            if done is not None:
                return Ran(0, run, done, skipped=f"already {done.status}")
            raise
        attempt = _step(run, name).attempts
        ending, outcome = _carry_out(run, name, child, command, once=once)
        ended = _ended(run, name, outcome, attempt=attempt)
        for_good = outcome.good or not outcome.started or outcome.cause is Cause.INTERRUPT or ended.status is StepStatus.BEGUN
        # It may well be in place: only the look failed, and doing it all again would not mend that.
        for_good = for_good or (outcome.exit_code == 0 and outcome.in_place is None and not outcome.good)
        if for_good or not left or _wait(_watch(run), pause) is not None:
            break
        pause = min(pause * 2, BACKOFF_LIMIT_S)
    return Ran(0 if outcome.good else _status(ending), run, ended, settle=lambda: child.echo(ending))


def run_alone(
    checkpoints: Checkpoints,
    workflow: str,
    command: Command,
    *,
    key: str | None = None,
    label: str | None = None,
    overlap: bool = True,
) -> Ran:
    """Run a command as a run of its own (``Checkpoints.invoke``), begun before it and ended after it.

    Raises what ``Checkpoints.invoke`` raises; then the command has not begun.
    """
    check(command)
    child = _waiting(command)
    try:
        run = checkpoints.invoke(
            workflow,
            key=key,
            label=label,
            overlap=overlap,
            process=_identity(child),
            command=command.argv,
        )
    except BaseException:
        child.abandon()
        raise
    (step,) = run.checkpoint.steps
    if not run.checkpoint.unfinished:
        child.abandon()
        return Ran(0, run, step, skipped="finished before")
    ending, outcome = _carry_out(run, step.name, child, command, once=False)
    step = _ended(run, step.name, outcome, attempt=step.attempts, run_too=True)
    return Ran(0 if outcome.good else _status(ending), run, step, settle=lambda: child.echo(ending))


def _carry_out(run: Workflow, name: str, child: Child, command: Command, *, once: bool) -> tuple[Ending, Outcome]:
    lease = run.checkpoint.lease
    watch_fd = process.watch_fd(lease) if lease is not None else None
    try:
        ending = child.run(_told(run, name), timeout_s=command.timeout_s, watch=_watch(run), watch_fd=watch_fd)
    finally:
        process.close_watch(watch_fd)
    outcome = Outcome(
        exit_code=ending.exit_code,
        signal=signal_name(ending.signal),
        cause=Cause.TIMEOUT if ending.timed_out else Cause.INTERRUPT if ending.interrupted else None,
        duration_ms=ending.duration_ms,
        output=_tail_text(ending.output, command.tail),
        started=ending.started,
        error=_words(ending, command),
    )
    if command.verify is None or not ending.started or not (outcome.good or once):
        return ending, outcome
    look = _look(run, name, command)
    if outcome.good and look.in_place is not True:
        why = "is not in place" if look.in_place is False else "could not be looked at"
        outcome = outcome._replace(error=f"exit status 0, but its effect {why} (--verify)")
    if look.interrupted:
        words = f"interrupted while its effect was looked at: {look.interrupted}"
        outcome = outcome._replace(cause=Cause.INTERRUPT, error=words)
        ending = ending._replace(interrupted=look.interrupted)
    return ending, outcome._replace(in_place=look.in_place)


def _ended(run: Workflow, name: str, outcome: Outcome, *, attempt: int | None = None, run_too: bool = False) -> Step:
    run.end(name, outcome, attempt=attempt, run_too=run_too)
    return _step(run, name)


def _step(run: Workflow, name: str) -> Step:
    step = run.checkpoint.step(name)
    assert step is not None
    return step


def _told(run: Workflow, name: str) -> dict[str, str]:
    """What the command is told in its environment."""
    step = _step(run, name)
    return {
        "CHECKPOINT_ID": run.id,
        "CHECKPOINT_RUN_ID": run.checkpoint.run_id,
        "CHECKPOINT_STEP": name,
        "CHECKPOINT_TOKEN": str(run.checkpoint.token),
        "CHECKPOINT_ATTEMPT": str(step.attempts),
        # The same in every attempt, and of no other step of any run: for services that take such a key.
        "CHECKPOINT_IDEMPOTENCY_KEY": f"{run.checkpoint.run_id}/{name}",
    }


def _watch(run: Workflow) -> Callable[[], str | None]:
    """A function that renews the lease when it is time, and says why the command must stop, if it must."""
    lease = run.checkpoint.lease
    every = _BEAT_S if lease is None or lease.lease_s is None else lease.lease_s / 4
    due = time.monotonic() + every

    def watch() -> str | None:
        nonlocal due
        lease = run.checkpoint.lease
        if lease is not None and lease.pid not in (None, process.own_pid()) and process.liveness(lease) == "dead":
            return "its owner has ended"
        if time.monotonic() < due:
            return None
        due = time.monotonic() + every
        try:
            run.heartbeat()
        except (StaleToken, InvalidTransition, NotFound):
            return "somebody else has taken it over"
        except CheckpointError:
            pass  # a full disk does not stop the work; whether it may be written down shows at its end
        return None

    return watch


def _wait(watch: Callable[[], str | None], seconds: float) -> str | None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        reason = watch()
        if reason is not None:
            return reason
        time.sleep(min(1.0, left))
    return None


class _Look(NamedTuple):
    """``in_place``: None where it could not be told."""

    in_place: bool | None
    interrupted: str | None


def _look(run: Workflow, name: str, command: Command) -> _Look:
    """Whether the effect is in place, by the exit status of ``verify``: 0 yes, 1 no, as of test(1), grep(1) and cmp(1).
    Any other means that the look failed: taken for "no", a typing error would repeat what must not be repeated."""
    # Its output goes to a file, then to standard error: an "echo" into a full or closed stream must not fail the look.
    argv = ["/bin/sh", "-c", f"exec 2>&1\n{command.verify}"]
    nothing, said = process.open_null(), process.open_memory()
    try:
        child = _child(argv, command.environ, keep=0, stdin=nothing, stdout=said)
        ending = child.run(_told(run, name), timeout_s=command.timeout_s, watch=_watch(run))
        process.write_stderr_from(said)
    finally:
        process.close(nothing, said)
    told = not (ending.interrupted or ending.timed_out) and ending.exit_code in (0, 1)
    return _Look(ending.exit_code == 0 if told else None, ending.interrupted)


def _waiting(command: Command) -> Child:
    return _child(command.argv, command.environ, keep=_kept(command), stdout=command.stdout)


def _child(argv: Sequence[str], environ: Mapping[str, str], *, keep: int, stdin: int = 0, stdout: int) -> Child:
    try:
        return Child(argv, environ, keep=keep, stdin=stdin, stdout=stdout)
    except OSError as error:
        raise StoreUnavailable(f"no process can be made for a command: {error.strerror}", hint="ulimit -a") from error


def _words(ending: Ending, command: Command) -> str | None:
    if not ending.started:
        return f"{command.argv[0]!r} cannot be run: {ending.failure}"
    if ending.timed_out:
        return f"timed out after {command.timeout_s} s"
    by = signal_name(ending.signal)
    if ending.interrupted not in (None, by):
        return f"interrupted: {ending.interrupted}"
    if by is not None:
        return f"ended by {by}"
    return f"exit status {ending.exit_code}" if ending.exit_code else ending.failure


def _status(ending: Ending) -> int:
    """Not 0: by whatever reason it is not done, a script must not go on."""
    return ending.status or 1


def _tail_text(output: bytes, tail: int) -> str | None:
    if not output or not tail:
        return None
    text = secrets.redact(output.decode("utf-8", "replace"))
    return text.encode()[-tail:].decode("utf-8", "ignore")


def _kept(command: Command) -> int:
    return command.tail + _CONTEXT if command.tail else 0


def _identity(child: Child) -> StepProcess:
    found, ours = process.of(child.pid), process.itself()
    assert found is not None, "it waits for us"
    return StepProcess(
        host=found.host,
        boot_id=found.boot_id,
        pid_ns=found.pid_ns,
        pid=found.pid,
        pid_started=found.pid_started,
        run_pid=ours.pid,
        run_pid_started=ours.pid_started,
        time_ns=found.time_ns,
        group=child.pid,
        session=process.group_of(child.pid)[1],
        begun_ticks=process.ticks(),
    )
