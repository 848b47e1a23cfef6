"""The verbs about the schedulers of this host: schedule ..."""

import sys
from datetime import UTC, datetime
from os import environ
from os.path import abspath, expanduser, isdir, join
from typing import Annotated, Any

import typer

from checkpoint._load import load
from checkpoint.api import Checkpoints, json_value
from checkpoint.cli.options import AllowSecret, Json, emit, say, seconds
from checkpoint.errors import SchedulerUnavailable, Usage
from checkpoint.render import text

Workspace = Annotated[str, typer.Argument(metavar="WORKSPACE", help="Folder with memory/checkpoints in it.")]
AnyWorkspace = Annotated[
    str | None, typer.Argument(metavar="[WORKSPACE]", help="Left out: every one on this host.", show_default=False)
]
With = Annotated[
    str | None,
    typer.Option("--with", metavar="systemd|systemd-system|launchd|cron", help="Else the best there is.", show_default=False),
]
Command = Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND...", help="What to run.", show_default=False)]

schedule = typer.Typer(
    name="schedule",
    help="Run the self-check, and commands of your own, by the scheduler of this host.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@schedule.command()
def install(
    workspace: Workspace = ".",
    options: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS...", help="Of checkpoint-selfcheck.", show_default=False)
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="D", help="How often. [10m]", show_default=False)] = None,
    cron: Annotated[str | None, typer.Option(metavar="EXPR", help="When, as a cron expression.", show_default=False)] = None,
    with_: With = None,
    print_: Annotated[bool, typer.Option("--print", help="Show what would be written, and write nothing.")] = False,
    json: Json = False,
) -> None:
    """Have the self-check of a workspace run."""
    if every is not None and cron is not None:
        raise Usage("--every and --cron exclude each other")
    schedules = _schedules()
    if workspace.startswith("-"):  # `install -- OPTIONS`: what stands behind -- is not the workspace
        workspace, options = ".", [workspace, *(options or [])]
    _check_folder(workspace)
    load("checkpoint.oncall:check_options")(options or ())
    parse, of_seconds = load("checkpoint.cron:parse"), load("checkpoint.cron:every")
    when = parse(cron) if cron is not None else of_seconds(seconds(every) or 600)
    if print_:
        entry = schedules.self_check(workspace, when, options or (), with_, anywhere=True)
        written = schedules.preview(workspace, entry)
        lines = [f"# {path}\n{content}" if path != "crontab" else content for path, content in written.items()]
        emit(text.to_json(written) + "\n" if json else "".join(lines), changed=False)
        return
    entry = schedules.install(workspace, when, options or (), with_)
    _told(abspath(workspace), [entry], json=json)


@schedule.command()
def add(
    workspace: Workspace,
    expression: Annotated[str, typer.Argument(metavar="EXPR", help="Five fields of cron, or @daily.", show_default=False)],
    command: Command = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Else made of the command.", show_default=False)] = None,
    with_: With = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
) -> None:
    """Have a command run in a workspace, each time as a run of its own."""
    _check_folder(workspace)
    when = load("checkpoint.cron:parse")(expression)
    _screen(command, allow_secret)
    _told(abspath(workspace), [_schedules().add(workspace, when, command or (), name, with_)], json=json)


@schedule.command("set")
def set_(
    workspace: Workspace,
    expressions: Annotated[str, typer.Argument(metavar='["EXPR", ...]', help="A JSON list.", show_default=False)],
    command: Command = None,
    with_: With = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
) -> None:
    """Make the commands of a workspace exactly these; others are removed."""
    _check_folder(workspace)
    items = json_value(expressions, "the list of expressions")
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Usage('the expressions must be a JSON list of texts: \'["0 3 * * *", "@weekly"]\'')
    if items and not command:
        raise Usage("no command: write it behind --")
    _screen(command, allow_secret)
    parse = load("checkpoint.cron:parse")
    entries = _schedules().replace(workspace, [parse(item) for item in items], command or (), with_)
    _told(abspath(workspace), entries, json=json)


@schedule.command()
def remove(
    workspace: Workspace = ".",
    what: Annotated[
        str, typer.Argument(metavar="[EXPR|NAME]", help="Which command; left out: the self-check.", show_default=False)
    ] = "selfcheck",
    json: Json = False,
) -> None:
    """Take a schedule away, with all that it left on this host."""
    for entry in _schedules().remove(workspace, what):
        say(f"{abspath(workspace)}: {entry.name} is removed from {entry.scheduler}")
    if json:
        emit(text.to_json({"workspace": abspath(workspace), "removed": what}) + "\n", changed=True)


@schedule.command("list")
def list_(
    workspace: AnyWorkspace = None,
    installed: Annotated[bool, typer.Option("--installed", help="What this host has, wanted or not.")] = False,
    json: Json = False,
) -> None:
    """What is scheduled."""
    schedules = _schedules()
    rows: list[dict[str, Any]] = [
        {
            "workspace": listed.workspace,
            "name": listed.entry.name,
            "cron": listed.entry.cron,
            "command": list(listed.entry.command),
            "scheduler": listed.entry.scheduler,
            "installed": listed.installed,
        }
        for listed in schedules.wanted(workspace)
        if listed.installed or not installed
    ]
    if installed and workspace is None:
        nobody = {"workspace": None, "cron": None, "command": None, "installed": True}
        rows += [nobody | {"name": name, "scheduler": where} for where, name in schedules.strays()]
    _print(rows, ("workspace", "name", "cron", "scheduler", "installed"), json=json)
    _tell_unreadable(schedules)


@schedule.command()
def next(
    what: Annotated[str, typer.Argument(metavar="WORKSPACE|EXPR", help="Of what.", show_default=False)],
    tz: Annotated[str | None, typer.Option(metavar="ZONE", help="Else that of this host.", show_default=False)] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="TIME", help="RFC 3339; else now.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """The coming five times."""
    after = None
    if from_ is not None:
        try:
            after = datetime.fromisoformat(from_)
        except ValueError:
            raise Usage(f"--from {from_!r} is no time: write it as 2026-03-29T01:00:00Z") from None
        after = after if after.tzinfo else after.replace(tzinfo=UTC)
    rows = [{"cron": cron, "at": at.isoformat()} for cron, at in _schedules().coming(what, after, tz)]
    _print(rows, ("cron", "at"), json=json)


@schedule.command()
def status(workspace: AnyWorkspace = None, json: Json = False) -> None:
    """When each runs next, when it last ran, and how that went, as its scheduler tells it."""
    schedules = _schedules()
    rows = [
        {
            "workspace": stands.workspace,
            "name": stands.entry.name,
            "scheduler": stands.entry.scheduler,
            "installed": stands.state.text is not None,
            "next": stands.state.next,
            "last": stands.state.last,
            "result": stands.state.result,
            "detail": stands.state.detail,
        }
        for stands in schedules.status(workspace)
    ]
    _print(rows, ("workspace", "name", "scheduler", "installed", "next", "last", "result", "detail"), json=json)
    _tell_unreadable(schedules)


@schedule.command()
def sync(workspace: AnyWorkspace = None, json: Json = False) -> None:
    """Make this host agree with what is wanted, and say what differed."""
    schedules = _schedules()
    words = schedules.sync(workspace)
    _tell_unreadable(schedules)
    lines = [text.to_json({"difference": line}) if json else text.escape(line) for line in words]
    emit("".join(line + "\n" for line in lines), changed=bool(words))


@schedule.command()
def migrate(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Where the workspace was.", show_default=False)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Where it is.", show_default=False)],
    json: Json = False,
) -> None:
    """Follow a workspace that was moved."""
    _told(abspath(new), _schedules().migrate(old, new), json=json)


@schedule.command()
def undo(json: Json = False) -> None:
    """Put the crontab back as it was before our last change."""
    _schedules().undo()
    say("the crontab is as it was before; what was scheduled by it is not wanted any less: checkpoint-tool schedule sync")
    if json:
        emit(text.to_json({"undone": True}) + "\n", changed=True)


@schedule.command()
def doctor(workspace: AnyWorkspace = None, json: Json = False) -> None:
    """Find what would keep anything from running, with the command that mends it."""
    problems = _schedules().doctor(workspace)
    for problem in problems:
        place = ": ".join(part for part in (problem.workspace, problem.name) if part)
        line = f"{place}: {problem.words} (try: {problem.mend})"
        emit((text.to_json(problem._asdict()) if json else text.escape(line)) + "\n", changed=False)
    if problems:
        raise SchedulerUnavailable(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with what is scheduled on this host",
            hint=problems[0].mend,
        )


def _schedules() -> Any:
    home = environ.get("HOME") or expanduser("~")
    state = environ.get("XDG_STATE_HOME") or join(home, ".local/state")
    return load("checkpoint.schedule:Schedules")(join(state, "checkpoint-tool/schedules"), home, environ)


def _screen(command: list[str] | None, allow_secret: list[str] | None) -> None:
    """A crontab and a unit are read by others, and kept in backups. Raises SecretFound."""
    Checkpoints("memory:", allow_secrets=allow_secret or ()).screen({"command": command})


def _tell_unreadable(schedules: Any) -> None:
    for problem in schedules.unreadable:
        say(f"checkpoint-tool: {problem.words} (try: {problem.mend})")


def _check_folder(workspace: str) -> None:
    if not isdir(workspace):
        raise Usage(f"there is no folder {workspace!r}")


def _told(workspace: str, entries: Any, *, json: bool) -> None:
    for entry in entries:
        if json:
            fields = {"workspace": workspace, **entry._asdict(), "command": list(entry.command)}
            emit(text.to_json(fields) + "\n", changed=True)
        else:
            say(f"{workspace}: {entry.name} runs at {entry.cron} by {entry.scheduler}")


def _print(rows: list[dict[str, Any]], columns: tuple[str, ...], *, json: bool) -> None:
    if json:
        output = "".join(text.to_json(row) + "\n" for row in rows)
    elif rows and sys.stdout and sys.stdout.isatty():
        cells = [tuple("" if row[column] is None else str(row[column]) for column in columns) for row in rows]
        output = load("checkpoint.render.table:table")([column.upper() for column in columns], cells)
    else:
        output = "".join(text.to_tsv(row[column] for column in columns) + "\n" for row in rows)
    emit(output, changed=False)
