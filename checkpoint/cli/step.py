"""begin and end, by which the shell functions wrap what is no command. Apart from ``run``: each is a process, twice for a step
in a POSIX shell, and needs nothing of what runs commands."""

import os
from typing import Annotated

import typer

from checkpoint.cli.options import Id, Json, OwnerName, Store, Token, emit, open_workflow, standard_input
from checkpoint.errors import InvalidTransition, Usage
from checkpoint.model import DONE, Outcome, StepStatus
from checkpoint.render import text

StepName = Annotated[str, typer.Argument(metavar="STEP", help="Name of the step.", show_default=False)]
Once = Annotated[bool, typer.Option("--once", help="Must not be repeated blindly.")]
CallerPid = Annotated[
    int | None,
    typer.Option("--caller-pid", metavar="PID", help="The (sub)shell that does the step. [the caller]", show_default=False),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- COMMAND...]", help="What the caller will run.", show_default=False),
]
Add = Annotated[bool, typer.Option("--add", help="Append the step if the plan has none of that name.")]


def begin(
    id: Id,
    step: StepName,
    command: Words = None,
    command_stdin: Annotated[
        bool, typer.Option("--command-stdin", help="Read the command from stdin, a NUL behind each argument.")
    ] = False,
    once: Once = False,
    add: Add = False,
    ask: Annotated[bool, typer.Option("--ask", help="In doubt: say so, and do not begin.")] = False,
    absent: Annotated[bool, typer.Option("--absent", help="In doubt, and its effect was seen not to be in place.")] = False,
    caller_pid: CallerPid = None,
    token: Token = None,
    owner: OwnerName = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Begin a step, unless it is done already. Prints begun, done, or with --ask in_doubt.

    COMMAND is not run: by it, another command under the name of a completed step is noticed (exit 14).
    """
    words = _words(command, from_stdin=command_stdin)
    workflow = open_workflow(id, store, owner, token, caller_pid=caller_pid)
    stored = workflow.checkpoint.step(step)
    begun = stored is not None and stored.status is StepStatus.BEGUN
    if stored is not None and stored.status in DONE:
        workflow.done(step, command=words)
        answer = "done"
    elif begun and ask:
        workflow.ensure_free(step)
        answer = "in_doubt"
    else:
        if begun and absent:
            workflow.end(step, Outcome(in_place=False, error="its effect is not in place"))
        answer = "begun"
        try:
            workflow.begin(step, once=once, add=add, command=words)
        except InvalidTransition:
            if workflow.done(step, command=words) is None:
                raise
            answer = "done"  # by somebody else, since we looked
    emit((text.to_json({"answer": answer}) if json else answer) + "\n", changed=answer == "begun")


def _words(command: list[str] | None, *, from_stdin: bool) -> list[str] | None:
    if from_stdin and command:
        raise Usage("--command-stdin and -- COMMAND exclude each other")
    if not from_stdin:
        return command or None
    # All of it, however long: under pipefail a pipe that is closed early would fail the step.
    given = standard_input("--command-stdin").read()
    return [os.fsdecode(word) for word in given.removesuffix(b"\0").split(b"\0")] if given else None


def end(
    id: Id,
    step: StepName,
    exit_code: Annotated[int | None, typer.Option(metavar="N", help="How it ended.", show_default=False)] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Its effect was seen to be in place.")] = False,
    absent: Annotated[bool, typer.Option("--absent", help="Its effect was seen not to be in place.")] = False,
    unseen: Annotated[bool, typer.Option("--unseen", help="Its effect could not be looked at.")] = False,
    caller_pid: CallerPid = None,
    token: Token = None,
    owner: OwnerName = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """End a step by its exit status: completed, failed, or (once, and not successful) in doubt. Prints which."""
    if in_place + absent + unseen > 1:
        raise Usage("--in-place, --absent and --unseen exclude each other")
    if exit_code is None and not (in_place or absent):
        raise Usage("say how it ended: --exit-code N, --in-place or --absent")
    if exit_code is not None and not 0 <= exit_code <= 255:
        raise Usage("--exit-code must be from 0 to 255")
    error = f"exit status {exit_code}" if exit_code else None
    if (absent or unseen) and not exit_code:
        error = "its effect is not in place" if absent else "exit status 0, but its effect could not be looked at"
    workflow = open_workflow(id, store, owner, token, caller_pid=caller_pid)
    seen = True if in_place else False if absent else None
    workflow.end(step, Outcome(exit_code=exit_code, in_place=seen, error=error))
    ended = workflow.checkpoint.step(step)
    assert ended is not None
    answer = "in_doubt" if ended.status is StepStatus.BEGUN else str(ended.status)
    emit((text.to_json({"answer": answer}) if json else answer) + "\n", changed=True)
