"""The verbs around a command: run, exec, status."""

from os import environ
from os.path import abspath, expanduser
from typing import Annotated

import typer

from checkpoint.api import document
from checkpoint.api import owner as make_owner
from checkpoint.cli.options import (
    AllowSecret,
    Id,
    Json,
    OwnerName,
    Store,
    Token,
    emit,
    open_checkpoints,
    open_workflow,
    say,
    seconds,
)
from checkpoint.cli.step import Add, Once, StepName
from checkpoint.command import TAIL, Command, Ran, run_alone, run_step
from checkpoint.config import RUN_STORE_VARIABLE, run_store
from checkpoint.errors import CheckpointError, Locked, Usage
from checkpoint.model import RunState, StepStatus
from checkpoint.process import own_pid
from checkpoint.render import text

Argv = Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND...", help="The command.", show_default=False)]
Timeout = Annotated[
    str | None, typer.Option(metavar="D", help="End it after that: SIGTERM, 5 s later SIGKILL; exit 124.", show_default=False)
]
Tail = Annotated[int, typer.Option(metavar="BYTES", help="How much of the end of its output is recorded.")]

STATUS_CODES = {
    RunState.COMPLETED: 0,
    RunState.RUNNING: 30,
    RunState.INTERRUPTED: 31,
    RunState.TIMED_OUT: 32,
    RunState.FAILED: 33,
    RunState.BLOCKED: 34,
    RunState.EXPIRED: 35,
    RunState.CANCELLED: 36,
}


def run(
    id: Id,
    step: StepName,
    command: Argv = None,
    once: Once = False,
    verify: Annotated[
        str | None,
        typer.Option(metavar="CMD", help="Shell command; exit 0: the effect is in place, 1: it is not.", show_default=False),
    ] = None,
    timeout: Timeout = None,
    retries: Annotated[int, typer.Option(metavar="N", help="Try again so often after a failure.")] = 0,
    backoff: Annotated[str, typer.Option(metavar="D", help="Before the first of them; doubles, up to 10 minutes.")] = "1s",
    tail: Tail = TAIL,
    add: Add = False,
    token: Token = None,
    owner: OwnerName = None,
    json: Json = False,
    store: Store = None,
) -> int:
    """Run a command as a step, unless it is done already. Exits as the command does."""
    workflow = open_workflow(id, store, owner, token)
    wanted = Command(
        argv=command or (),
        environ=_surroundings(workflow.location),
        verify=verify,
        timeout_s=seconds(timeout),
        retries=retries,
        backoff_s=seconds(backoff) or 1,
        tail=tail,
        stdout=2 if json else 1,
    )
    claimed = False
    if workflow.checkpoint.unfinished:
        # Under a name of its own: a second command of the same owner must not take this claim, which ends with us, for his.
        claimed = workflow.hold(make_owner(pid=own_pid()))
    try:
        ran = run_step(workflow, step, wanted, once=once, add=add)
    finally:
        if claimed:
            try:
                workflow.release()
            except CheckpointError:
                pass  # it ends with this process anyway
    return _told(ran, f"{workflow.id}: step {step}", json=json)


def exec_(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Name: a-z, 0-9, _ and -.", show_default=False)],
    command: Argv = None,
    key: Annotated[
        str | None, typer.Option(metavar="K", help="Idempotency key: run until it has succeeded once.", show_default=False)
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Before the run id, as in cron:<uuid>.", show_default=False)
    ] = None,
    timeout: Timeout = None,
    no_overlap: Annotated[bool, typer.Option("--no-overlap", help="Refuse (exit 11) while an earlier one is alive.")] = False,
    tail: Tail = TAIL,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> int:
    """Run a command as a run of its own, for cron lines and timers. Exits as the command does."""
    if label is not None and key is not None:
        raise Usage("--label names runs of their own, --key the run of that key: one of the two")
    checkpoints = open_checkpoints(store, None, own_pid(), allow_secret=allow_secret)
    wanted = Command(
        argv=command or (),
        environ=_surroundings(checkpoints.store.location),
        timeout_s=seconds(timeout),
        tail=tail,
        stdout=2 if json else 1,
    )
    try:
        ran = run_alone(checkpoints, workflow, wanted, key=key, label=label, overlap=not no_overlap)
    except Locked as error:
        # Not "resume it": that would take the run, and keep the next one out.
        raise Locked(error.message, hint=f"checkpoint-tool status {workflow}") from None
    return _told(ran, workflow, json=json)


def status(
    name: Annotated[str, typer.Argument(metavar="WORKFLOW|ID|RUN_ID", help="Which run.", show_default=False)],
    previous: Annotated[bool, typer.Option("--previous", help="The run before that one.")] = False,
    json: Json = False,
    store: Store = None,
) -> int:
    """Did the last run finish, or was it interrupted? The exit status says it too."""
    checkpoint, state = open_checkpoints(run_store(name, store, environ)).status(name, previous=previous)
    line = text.to_json(text.status_document(checkpoint, state)) if json else text.status_line(checkpoint, state)
    emit(line + "\n", changed=False)
    return STATUS_CODES[state]


def _surroundings(location: str) -> dict[str, str]:
    """The environment of a command that, from whatever folder, may ask about its own run."""
    return environ | {RUN_STORE_VARIABLE: abspath(expanduser(location))}


def _told(ran: Ran, what: str, *, json: bool) -> int:
    """The words or the JSON about a command that was run, or was not."""
    if json:
        emit(text.to_json(document(ran.run.view())) + "\n", changed=ran.skipped is None)
    elif ran.skipped is not None:
        say(f"{what}: {ran.skipped}, not run again")
    elif ran.step.status is StepStatus.BEGUN:
        say(f"{what} is in doubt: {ran.step.error}, and it may not be repeated blindly")
    elif ran.step.error is not None:
        say(f"{what}: {ran.step.error}")
    if ran.settle is not None:
        ran.settle()
    return ran.status
