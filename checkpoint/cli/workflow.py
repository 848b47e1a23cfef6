"""The verbs that drive a run: start, update, resume, complete, fail, cancel, heartbeat, release, show, list."""

import shlex
import sys
from collections.abc import Sequence
from os import environ
from os.path import abspath, expanduser
from typing import Annotated, Any

import typer

from checkpoint import model
from checkpoint._load import load
from checkpoint.api import Listed, Update, Workflow, document, json_object, json_value
from checkpoint.cli.options import (
    Agent,
    AllowSecret,
    Id,
    Json,
    LeaseTime,
    OwnerName,
    OwnerPid,
    Reason,
    Store,
    Token,
    emit,
    emit_view,
    open_checkpoints,
    open_file,
    open_workflow,
    read_file,
    read_value,
    say,
    seconds,
    standard_input,
    warn_if_unwatched,
)
from checkpoint.config import RUN_STORE_VARIABLE, run_store
from checkpoint.errors import Usage
from checkpoint.model import PlanStep, Status, View
from checkpoint.render import text

Format = Annotated[
    str | None,
    typer.Option("--format", metavar="text|json|env", help="env: lines to eval in a shell.", show_default=False),
]
Steps = Annotated[list[str] | None, typer.Option(metavar="STEP", show_default=False)]


def start(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Name: a-z, 0-9, _ and -.", show_default=False)],
    steps: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="The plan; left out: an open plan.", show_default=False)
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help='The plan, a step a line, or JSON: ["a", {"name": "b", "once": true}].', show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="K", help="Idempotency key: the same key is the same run.", show_default=False)
    ] = None,
    input: Annotated[
        str | None, typer.Option(metavar="FILE", help="Belongs to the run's identity; its hash is kept.", show_default=False)
    ] = None,
    agent: Agent = None,
    handoff: Annotated[str | None, typer.Option(metavar="AGENT", help="Who is to go on.", show_default=False)] = None,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help="A note.", show_default=False)] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="D", help="After that it is not gone on with by itself.", show_default=False)
    ] = None,
    stale_after: Annotated[
        str | None, typer.Option(metavar="D", help="Without progress before it is stale.", show_default=False)
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(metavar="N", help="How often it may be begun in all.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="JSON", help="A JSON object to keep.", show_default=False)] = None,
    data_schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON Schema that the data must satisfy.", show_default=False)
    ] = None,
    owner: OwnerName = None,
    owner_pid: OwnerPid = None,
    lease: LeaseTime = None,
    replan: Annotated[bool, typer.Option("--replan", help="Take the new plan, keep what is completed.")] = False,
    format: Format = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Begin a run, or go on with the one that is there."""
    form = _form(format, json)
    wanted = _plan(steps, plan)
    patch = None if data is None else json_object(read_value(data, "--data") or "", "--data")
    schema = None if data_schema is None else json_object(read_file(data_schema, "--data-schema"), "--data-schema")
    note = read_value(note, "--note")
    stream = None if input is None else standard_input("--input") if input == "-" else open_file(input, "--input")
    try:
        run = open_checkpoints(store, owner, owner_pid, lease, allow_secret=allow_secret).start(
            workflow,
            wanted,
            key=key,
            input=stream,
            agent=agent,
            handoff_to=handoff,
            note=note,
            data=patch,
            data_schema=schema,
            ttl_s=seconds(ttl),
            stale_after_s=seconds(stale_after),
            max_attempts=max_attempts,
            replan=replan,
        )
    except OSError as error:  # only reading the input lets one out
        raise Usage(f"--input cannot be read: {error.strerror}") from None
    finally:
        if stream is not None:
            stream.close()
    if run.created:
        words = "started"
    elif run.checkpoint.unfinished:
        words = "going on with the run that was left unfinished"
        if data is not None or handoff is not None:
            words += " (--data and --handoff count for a new run only)"
    else:
        words = "finished before: this is its receipt, nothing is to be done"
    _hand_over(run, form, words)


def resume(
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Left out: the oldest that is free.", show_default=False)
    ] = None,
    agent: Agent = None,
    owner: OwnerName = None,
    owner_pid: OwnerPid = None,
    lease: LeaseTime = None,
    wait: Annotated[str | None, typer.Option(metavar="D", help="Wait so long for its owner.", show_default=False)] = None,
    steal: Annotated[bool, typer.Option("--steal", help="Take it from a live owner; wants --reason.")] = False,
    reason: Reason = None,
    format: Format = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Take over an unfinished run, and say what comes next."""
    form = _form(format, json)
    if steal and reason is None:
        raise Usage("--steal takes work away from a live owner: say why with --reason TEXT")
    if reason is not None and not steal:
        raise Usage("--reason goes with --steal")
    if steal and id is None:
        raise Usage("--steal wants the ID of what is to be taken")
    store = store if id is None else run_store(id, store, environ)
    checkpoints = open_checkpoints(store, owner, owner_pid, lease, allow_secret=allow_secret)
    warn_if_unwatched(checkpoints)
    run = checkpoints.resume(id, agent=agent, wait_s=seconds(wait) or 0, steal_reason=read_value(reason, "--reason"))
    _hand_over(run, form, "yours now")


def update(
    id: Id,
    add: Annotated[list[str] | None, typer.Option(metavar="STEP", help="Append a step.", show_default=False)] = None,
    begin: Annotated[list[str] | None, typer.Option(metavar="STEP", help="It begins now.", show_default=False)] = None,
    complete: Annotated[list[str] | None, typer.Option(metavar="STEP", help="It is done.", show_default=False)] = None,
    fail: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="It failed; may begin again.", show_default=False)
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="Leave it out; wants --reason.", show_default=False)
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help="Back to pending: failed, skipped, or in doubt without effect.", show_default=False),
    ] = None,
    step: Annotated[str | None, typer.Option(metavar="NEXT", help="The same as --begin.", show_default=False)] = None,
    once: Annotated[bool, typer.Option("--once", help="With --begin or --add: must not be repeated blindly.")] = False,
    block: Annotated[
        str | None, typer.Option(metavar="REASON", help="The run waits for something outside.", show_default=False)
    ] = None,
    unblock: Annotated[bool, typer.Option("--unblock", help="It waits no longer.")] = False,
    note: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Add a note.", show_default=False)] = None,
    result: Annotated[str | None, typer.Option(metavar="JSON", help="With --complete: its result.", show_default=False)] = None,
    error: Annotated[str | None, typer.Option(metavar="TEXT", help="With --fail: what went wrong.", show_default=False)] = None,
    reason: Reason = None,
    data: Annotated[
        str | None, typer.Option(metavar="JSON", help="Merged into the data; null removes a key.", show_default=False)
    ] = None,
    token: Token = None,
    owner: OwnerName = None,
    format: Format = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Record progress: all changes of one call, or none."""
    form = _form(format, json)
    begins = tuple(dict.fromkeys([*(begin or ()), *([step] if step is not None else ())]))
    if result is not None and len(complete or ()) != 1:
        raise Usage("--result belongs to one --complete STEP")
    if error is not None and not fail:
        raise Usage("--error belongs to --fail STEP")
    if skip and reason is None:
        raise Usage("--skip leaves work out: say why with --reason TEXT")
    if reason is not None and not skip:
        raise Usage("--reason belongs to --skip STEP")
    if once and not (begins or add):
        raise Usage("--once belongs to --begin or --add")
    if block is not None and unblock:
        raise Usage("--block and --unblock exclude each other")
    wanted = Update(
        add=add or (),
        retry=retry or (),
        complete=complete or (),
        fail=fail or (),
        skip=skip or (),
        begin=begins,
        block=read_value(block, "--block"),
        unblock=unblock,
        notes=tuple(read_value(one, "--note") or "" for one in note or ()),
        data=None if data is None else json_object(read_value(data, "--data") or "", "--data"),
        result=None if result is None else json_value(read_value(result, "--result") or "", "--result"),
        error=read_value(error, "--error"),
        reason=read_value(reason, "--reason"),
        once=once,
    )
    run = open_workflow(id, store, owner, token, allow_secret=allow_secret)
    run.update(wanted)
    if form == "env":
        emit(_env(run), changed=True, errors="surrogateescape")
    else:
        emit_view(run.view(), json=form == "json")


def complete(
    id: Id,
    force: Annotated[bool, typer.Option("--force", help="With steps left; wants --reason.")] = False,
    reason: Reason = None,
    token: Token = None,
    owner: OwnerName = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Finish a run: every step must be completed or skipped."""
    if force and reason is None:
        raise Usage("--force leaves steps undone: say why with --reason TEXT")
    if reason is not None and not force:
        raise Usage("--reason goes with --force")
    run = open_workflow(id, store, owner, token, allow_secret=allow_secret)
    run.complete(force_reason=read_value(reason, "--reason"))
    emit_view(run.view(), json=json)


def fail(
    id: Id,
    reason: Reason = None,
    token: Token = None,
    owner: OwnerName = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """End a run as failed, for good."""
    words = _wanted(reason, "fail")
    run = open_workflow(id, store, owner, token, allow_secret=allow_secret)
    run.fail(words)
    emit_view(run.view(), json=json)


def cancel(
    id: Id,
    reason: Reason = None,
    token: Token = None,
    owner: OwnerName = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """End a run that is no longer wanted, for good."""
    words = _wanted(reason, "cancel")
    run = open_workflow(id, store, owner, token, allow_secret=allow_secret)
    run.cancel(words)
    emit_view(run.view(), json=json)


def heartbeat(id: Id, token: Token = None, owner: OwnerName = None, json: Json = False, store: Store = None) -> None:
    """Say "alive" and renew the lease."""
    run = open_workflow(id, store, owner, token)
    run.heartbeat()
    emit_view(run.view(), json=json)


def release(
    id: Id,
    to: Annotated[str | None, typer.Option(metavar="AGENT", help="Who is to go on.", show_default=False)] = None,
    token: Token = None,
    owner: OwnerName = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Give the lease back; the run stays unfinished, free to be resumed."""
    run = open_workflow(id, store, owner, token, allow_secret=allow_secret)
    run.release(to=to)
    emit_view(run.view(), json=json)


def show(id: Id, json: Json = False, store: Store = None) -> None:
    """Everything about one checkpoint."""
    view = open_checkpoints(run_store(id, store, environ)).show(id)
    lines = [text.to_json(document(view))] if json else text.run_lines(view, full=True)
    emit("\n".join(lines) + "\n", changed=False)


def list_(
    all: Annotated[bool, typer.Option("--all", help="Finished ones too.")] = False,
    status: Annotated[str | None, typer.Option(metavar="|".join(Status), help="Only these.", show_default=False)] = None,
    workflow: Annotated[str | None, typer.Option(metavar="NAME", help="Only this workflow.", show_default=False)] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="table|json|jsonl|tsv", help="Else a table on a terminal, tsv elsewhere.", show_default=False),
    ] = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Unfinished checkpoints, oldest first, and the last run of an exec that failed, until the next good one."""
    form = "jsonl" if json else format or ("table" if sys.stdout and sys.stdout.isatty() else "tsv")
    if form not in ("table", "json", "jsonl", "tsv"):
        raise Usage(f"--format {form!r} is none of table, json, jsonl, tsv")
    if status is not None and status not in {*Status}:
        raise Usage(f"--status {status!r} is none of {', '.join(Status)}")
    checkpoints = open_checkpoints(store)
    wanted = None if status is None else Status(status)
    found = list(checkpoints.list(finished=all, status=wanted, workflow=workflow, failing=True))
    now = checkpoints.store.now()
    if form == "table":
        rows = [_cells(listed, now) for listed in found]
        output = load("checkpoint.render.table:table")(_COLUMNS, rows) if rows else ""
    elif form == "tsv":
        output = "".join(text.to_tsv(_tsv(listed)) + "\n" for listed in found)
    else:
        documents = [_document(listed) for listed in found]
        output = "".join(text.to_json(one) + "\n" for one in documents) if form == "jsonl" else text.to_json(documents) + "\n"
    emit(output, changed=False)
    warn_if_unwatched(checkpoints)
    for listed in found:
        if listed.view is not None and listed.place.startswith("failing/"):
            mark = listed.view.checkpoint
            words = f"the last run of {mark.workflow} failed: {mark.reason}"
            say(f"checkpoint-tool: {words} (try: checkpoint-tool show {mark.run_id})")
        if listed.error is not None:
            hint = listed.error.hint + (f" --store {shlex.quote(store)}" if store is not None else "")
            say(f"checkpoint-tool: {listed.error.message}" + (f" (try: {hint})" if listed.error.hint else ""))
    if form == "table" and not found:
        say(f"nothing unfinished in {checkpoints.store.location}" if not all else f"{checkpoints.store.location} is empty")


_COLUMNS = ("ID", "STATUS", "DONE", "NEXT", "IN DOUBT", "OWNER", "PROGRESS", "REASON")


def _cells(listed: Listed, now: Any) -> tuple[str, ...]:
    if listed.view is None:
        return (listed.name, "damaged", "", "", "", "", listed.place, "")
    view = listed.view
    checkpoint = view.checkpoint
    done = sum(step.status in model.DONE for step in checkpoint.steps)
    owner = f"{view.owner_state} ({checkpoint.lease.owner})" if checkpoint.lease else ""
    age = text.duration(int((now - checkpoint.progress_at).total_seconds()))
    doubt = ", ".join(view.in_doubt)
    count = f"{done}/{len(checkpoint.steps)}"
    reason = checkpoint.reason or ""
    return (checkpoint.id, checkpoint.status, count, view.next or "", doubt, owner, f"{age} ago", reason)


def _tsv(listed: Listed) -> tuple[object, ...]:
    if listed.view is None:
        return (listed.name, "damaged", "", "", "", "", "", "", "", listed.place)
    view = listed.view
    checkpoint = view.checkpoint
    done = sum(step.status in model.DONE for step in checkpoint.steps)
    return (
        checkpoint.id,
        checkpoint.status,
        done,
        len(checkpoint.steps),
        view.next,
        ",".join(view.in_doubt),
        view.owner_state,
        checkpoint.lease.owner if checkpoint.lease else "",
        model.clock(checkpoint.progress_at),
        checkpoint.run_id,
    )


def _document(listed: Listed) -> dict[str, Any]:
    if listed.view is not None:
        return document(listed.view)
    assert listed.error is not None
    error = listed.error
    return {
        "id": listed.name,
        "place": listed.place,
        "error": {"code": error.exit_code, "name": error.name, "message": error.message, "hint": error.hint},
    }


def _hand_over(run: Workflow, form: str, words: str) -> None:
    """What start and resume print: all that is needed to go on."""
    view = run.view()
    if form == "env":
        emit(_env(run), changed=True, errors="surrogateescape")
    elif form == "json":
        emit(text.to_json(document(view) | {"created": run.created}) + "\n", changed=True)
    else:
        say(f"{text.named(run.id)}: {words}")
        emit("\n".join(text.run_lines(view, full=False)) + "\n", changed=True)


def _env(run: Workflow) -> str:
    view: View = run.view()
    checkpoint = view.checkpoint
    return text.to_env(
        {
            # Absolute: the script may change its folder before it asks again. Not CHECKPOINT_STORE: a script that a step
            # calls would take it for the user's choice, and keep its own runs elsewhere than alone.
            RUN_STORE_VARIABLE: abspath(expanduser(run.location)),
            "CHECKPOINT_ID": checkpoint.id,
            "CHECKPOINT_RUN_ID": checkpoint.run_id,
            "CHECKPOINT_TOKEN": checkpoint.token,
            "CHECKPOINT_ATTEMPT": checkpoint.attempts,
            "CHECKPOINT_STATUS": checkpoint.status,
            "CHECKPOINT_CREATED": int(run.created),
            "CHECKPOINT_NEXT": view.next,
            "CHECKPOINT_IN_DOUBT": " ".join(view.in_doubt),
        }
    )


def _form(format: str | None, json: bool) -> str:
    if format not in (None, "text", "json", "env"):
        raise Usage(f"--format {format!r} is none of text, json, env")
    if json and format not in (None, "json"):
        raise Usage(f"--json and --format {format} exclude each other")
    return "json" if json else format or "text"


def _plan(steps: str | None, plan: str | None) -> Sequence[PlanStep] | None:
    if steps is not None and plan is not None:
        raise Usage("--steps and --plan exclude each other")
    if steps is not None:
        return [PlanStep(name.strip()) for name in steps.split(",")]
    if plan is None:
        return None
    content = read_file(plan, "--plan")
    if not content.lstrip().startswith(("[", "{")):
        lines = [line.strip() for line in content.splitlines()]
        found = [PlanStep(line) for line in lines if line and not line.startswith("#")]
    else:
        value = json_value(content, "--plan")
        items = value.get("steps") if isinstance(value, dict) else value
        found = [_parsed_step(item) for item in (items if isinstance(items, Sequence) else ())]
    if not found:
        raise Usage("--plan names no step; leave it out for an open plan")
    return found


def _parsed_step(item: Any) -> PlanStep:
    if isinstance(item, str):
        return PlanStep(item)
    if isinstance(item, dict) and item.keys() <= {"name", "once"} and isinstance(item.get("name"), str):
        once = item.get("once", False)
        if isinstance(once, bool):
            return PlanStep(item["name"], once)
    raise Usage('a step of --plan must be a name or {"name": ..., "once": true|false}')


def _wanted(reason: str | None, verb: str) -> str:
    words = read_value(reason, "--reason")
    if words is None:
        raise Usage(f"{verb} ends the run for good: say why with --reason TEXT")
    return words
