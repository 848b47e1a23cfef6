"""The verbs for agents: agents brief, agents install."""

import os
import re
import select
import shlex
import sys
import time
import uuid
from os import environ
from typing import Annotated

import typer

from checkpoint._load import load
from checkpoint.api import json_object
from checkpoint.api import owner as make_owner
from checkpoint.cli.options import Agent, Json, Store, emit, say
from checkpoint.config import DEFAULT_STORE, found_store, store_path
from checkpoint.errors import Conflict, NotFound, StoreUnavailable, Usage
from checkpoint.render import text

agents = typer.Typer(
    name="agents",
    help="For sessions of agents: what is unfinished, and the rule that makes them ask.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

_HOOK_WAIT_S = 0.3
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@agents.command()
def brief(
    agent: Agent = None,
    owner: Annotated[
        str | None,
        typer.Option("--owner", metavar="NAME", help="Who asks. [$CHECKPOINT_OWNER, else a new name]", show_default=False),
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", metavar="N", help="Of the output, at most.")] = 4000,
    hook: Annotated[bool, typer.Option("--hook", help="Take the session's id from what a hook is given on stdin.")] = False,
    json: Json = False,
    store: Store = None,
) -> None:
    """What is unfinished, why, and the commands to go on; for the start of a session."""
    know = load("checkpoint.agents:Caller")
    least = load("checkpoint.agents:LEAST_BYTES")
    if max_bytes < least:
        raise Usage(f"--max-bytes {max_bytes} is too few: {least} is the least")
    for value, what in ((agent, "--agent"), (owner, "--owner"), (store, "--store")):
        if value is not None and not value.isprintable():
            raise Usage(f"{what} holds control characters, and has to be shown in commands")
        if value is not None and len(value) > 256 and what != "--store":
            raise Usage(f"{what} is longer than 256 characters, and has to be shown in commands")
    given = environ.get("CHECKPOINT_OWNER") or None
    name = owner or given or (_session() if hook else None) or f"agent-{uuid.uuid4().hex[:8]}"
    try:
        place = found_store(store, environ)
    except StoreUnavailable:
        place = DEFAULT_STORE  # the brief says why it cannot be read: a hook that fails would end the session
    found = load("checkpoint.agents:look")(place, make_owner(name, time_held=True), agent)
    caller = know(None if name == given else name, agent, store)
    write = load("checkpoint.agents:document" if json else "checkpoint.agents:text")
    emit(write(found, caller, max_bytes), changed=False)


@agents.command()
def install(
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="agents-md|claude|codex|cursor|openclaw|skill", help="[agents-md]", show_default=False),
    ] = None,
    dir: Annotated[str, typer.Option("--dir", metavar="DIR", help="Where the agent works.")] = ".",
    check: Annotated[bool, typer.Option("--check", help="Only say whether all is there and current.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take it out again.")] = False,
    print_: Annotated[bool, typer.Option("--print", help="Show what would be written, and write nothing.")] = False,
    json: Json = False,
    store: Store = None,
) -> None:
    """Write the restart-safe workflow rule, and start-up hooks, where agents read them."""
    known = load("checkpoint.agent_files:TARGETS")
    targets = target or ["agents-md"]
    for one in targets:
        if one not in known:
            raise Usage(f"--target {one!r} is none of {', '.join(known)}")
    if store is not None:
        store = store_path(store, {})
    if check + remove + print_ > 1:
        raise Usage("--check, --remove and --print exclude each other")
    changes = load("checkpoint.agent_files:plan")(dir, targets, store, remove=remove)
    if print_:
        shown = {change.path: (change.new or b"").decode() for change in changes}
        lines = [f"# {path}\n{content}" for path, content in shown.items()]
        emit(text.to_json(shown) + "\n" if json else "".join(lines), changed=False)
        return
    if not check:
        load("checkpoint.agent_files:apply")(dir, changes)
    rows = []
    for change in changes:
        done = "removed" if remove else "written"
        state = str(change.state) if check else done if change.changes else "unchanged"
        rows.append({"path": change.path, "state": state})
    lines = [text.to_json({"dir": dir, "files": rows})] if json else [text.to_tsv(row.values()) for row in rows]
    emit("".join(line + "\n" for line in lines), changed=not check)
    if not remove:
        _warn_of_git(os.path.join(dir, store_path(store, environ) or DEFAULT_STORE))
    if not check:
        if {"path": ".codex/hooks.json", "state": "written"} in rows:
            say("checkpoint-tool: Codex asks you to review and trust a new hook before it runs: type /hooks in it")
        return
    behind = [row for row in rows if row["state"] != "current"]
    if behind:
        mend = "checkpoint-tool agents install" + "".join(f" --target {one}" for one in targets)
        mend += "" if dir == "." else f" --dir {shlex.quote(dir)}"
        words = ", ".join(f"{row['path']} ({row['state']})" for row in behind)
        kind = NotFound if any(row["state"] == "missing" for row in behind) else Conflict
        raise kind(f"not as it should be in {dir}: {words}", hint=mend)


def _warn_of_git(place: str) -> None:
    """Say where git would take the records along that the rule is about."""
    place = os.path.normpath(os.path.expanduser(place))
    found = load("checkpoint.worktree:advice")(place, load("checkpoint.worktree:look")(place))
    if found is not None:
        say(f"checkpoint-tool: {place}: {found[0]} (try: {' && '.join(found[1])})")


def _session() -> str | None:
    """The id that an agent's program gives to a hook, as JSON on standard input; None where there is none in time."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    data, deadline = b"", time.monotonic() + _HOOK_WAIT_S
    fd = sys.stdin.fileno()
    while len(data) < 1 << 16 and select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        data += chunk
    try:
        session = json_object(data.decode(), "the hook's input").get("session_id")
    except (Usage, UnicodeDecodeError):
        return None
    return f"session-{session}" if isinstance(session, str) and _SESSION.fullmatch(session) else None
