"""The verbs about the schedulers of this host: schedule ..."""

import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from os import environ
from os.path import abspath, exists, expanduser, isdir, join
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from checkpoint._load import load
from checkpoint.api import Checkpoints, json_value
from checkpoint.cli.options import AllowSecret, Json, emit, say, seconds
from checkpoint.errors import NotFound, SchedulerUnavailable, SecretFound, Usage
from checkpoint.render import text

AnyWorkspace = Annotated[
    str | None, typer.Argument(metavar="[WORKSPACE]", help="Left out: every one on this host.", show_default=False)
]
With = Annotated[
    str | None,
    typer.Option("--with", metavar="systemd|systemd-system|launchd|cron", help="Else the best there is.", show_default=False),
]


def _words(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, show_default=False)


class _Dashed(TyperCommand):
    """What stands behind ``--`` is told from what stands before it: with the workspace left out, the words before it are
    fewer, and a word of the command must not be taken for one of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            position = args.index("--")
            ctx.meta[_BEHIND] = args[position + 1 :]
            args = args[:position]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


_BEHIND = "checkpoint.behind"

Which = Annotated[list[str] | None, _words("[WORKSPACE] [EXPR|NAME]", "Left out: everything on this host.")]

schedule = typer.Typer(
    name="schedule",
    help="Run the self-check, and commands of your own, by the scheduler of this host.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@schedule.command(cls=_Dashed)
def install(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        _words("[WORKSPACE] -- OPTIONS...", "Directory with memory/checkpoints; options of checkpoint-selfcheck."),
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="D", help="How often. [10m]", show_default=False)] = None,
    cron: Annotated[str | None, typer.Option(metavar="EXPR", help="When, as a cron expression.", show_default=False)] = None,
    with_: With = None,
    print_: Annotated[bool, typer.Option("--print", help="Show what would be written, and write nothing.")] = False,
    allow_secret: AllowSecret = None,
    json: Json = False,
) -> None:
    """Have the self-check of a workspace run."""
    if every is not None and cron is not None:
        raise Usage("--every and --cron exclude each other")
    schedules = _schedules()
    workspace, *more = words or ["."]
    options = [*more, *context.meta.get(_BEHIND, ())]
    if not isdir(workspace) and _is_expression(workspace):
        hint = shlex.join(["checkpoint-tool", "schedule", "install", "--cron", workspace])
        raise Usage(f"there is no directory {workspace!r}; --cron takes an expression", hint=hint)
    _check_folder(workspace)
    _screen(workspace, allow_secret, options=options)
    load("checkpoint.oncall:check_options")(options)
    parse, of_seconds = load("checkpoint.cron:parse"), load("checkpoint.cron:every")
    when = parse(cron) if cron is not None else of_seconds(seconds(every) or 600)
    if print_:
        entry = schedules.self_check(workspace, when, options, with_, anywhere=True)
        written = schedules.preview(workspace, entry)
        lines = [f"# {path}\n{content}" if path != "crontab" else content for path, content in written.items()]
        emit(text.to_json(written) + "\n" if json else "".join(lines), changed=False)
        return
    entry = schedules.install(workspace, when, options, with_, allow_secret or ())
    _told(abspath(workspace), [entry], json=json)


@schedule.command(cls=_Dashed)
def add(
    context: typer.Context,
    words: Annotated[
        list[str], _words("[WORKSPACE] EXPR -- COMMAND...", "Where; five fields of cron, or @daily; what to run.")
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Else made of the command.", show_default=False)] = None,
    with_: With = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
) -> None:
    """Have a command run in a workspace, each time as a run of its own."""
    workspace, expression, command = _where_and_what(context, words, _is_expression, "EXPR")
    _screen(workspace, allow_secret, command=command, name=name)
    _check_folder(workspace)
    when = load("checkpoint.cron:parse")(expression)
    entry = _schedules().add(workspace, when, command, name, with_, allow_secret or ())
    _told(abspath(workspace), [entry], json=json)


@schedule.command("set", cls=_Dashed)
def set_(
    context: typer.Context,
    words: Annotated[
        list[str], _words("[WORKSPACE] '[\"EXPR\", ...]' -- COMMAND...", "Where; a JSON list of expressions; what to run.")
    ],
    with_: With = None,
    allow_secret: AllowSecret = None,
    json: Json = False,
) -> None:
    """Make the commands of a workspace exactly these; others are removed."""
    workspace, expressions, command = _where_and_what(context, words, _is_list, "a JSON list of expressions")
    _screen(workspace, allow_secret, command=command)
    _check_folder(workspace)
    items = json_value(expressions, "the list of expressions")
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Usage('the expressions must be a JSON list of texts: \'["0 3 * * *", "@weekly"]\'')
    if items and not command:
        raise Usage("no command: write it behind --")
    parse = load("checkpoint.cron:parse")
    entries = _schedules().replace(workspace, [parse(item) for item in items], command, with_, allow_secret or ())
    _told(abspath(workspace), entries, json=json)


@schedule.command()
def remove(
    words: Annotated[
        list[str] | None, _words("[WORKSPACE] [EXPR|NAME]", "Where, and which command; left out: here, the self-check.")
    ] = None,
    json: Json = False,
) -> None:
    """Take a schedule away, with all that it left on this host."""
    schedules = _schedules()
    workspace, what = _meant(schedules, words or [], "remove")
    what = what or "selfcheck"
    workspace = workspace or "."
    for entry in schedules.remove(workspace, what):
        say(f"{abspath(workspace)}: {entry.name} is removed from {entry.scheduler}")
    if json:
        emit(text.to_json({"workspace": abspath(workspace), "removed": what}) + "\n", changed=True)


@schedule.command("list")
def list_(
    words: Which = None,
    installed: Annotated[bool, typer.Option("--installed", help="What this host has, wanted or not.")] = False,
    json: Json = False,
) -> None:
    """What is scheduled."""
    schedules = _schedules()
    workspace, what = _meant(schedules, words or [], "list")
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
        if (listed.installed or not installed) and _is_called(listed.entry, what)
    ]
    if installed and workspace is None:
        nobody = {"workspace": None, "cron": None, "command": None, "installed": True}
        rows += [nobody | {"name": name, "scheduler": where} for where, name in schedules.strays()]
    _print(rows, ("workspace", "name", "cron", "scheduler", "installed"), json=json)
    _tell_unreadable(schedules)


@schedule.command()
def next(
    words: Annotated[
        list[str] | None,
        _words("[WORKSPACE] [EXPR|NAME]", "Of what is scheduled there, or any expression; left out: here, all of it."),
    ] = None,
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
    schedules = _schedules()
    workspace, what = _meant(schedules, words or [], "next")
    texts = [entry.cron for entry in schedules.entries(workspace or ".") if _is_called(entry, what)]
    if not texts and what is not None:
        texts = [load("checkpoint.cron:parse")(what).text]
    if not texts:
        raise NotFound(f"nothing is scheduled in {abspath(workspace or '.')}", hint="checkpoint-tool schedule list")
    rows = [{"cron": cron, "at": at.isoformat()} for cron, at in schedules.coming(texts, after, tz)]
    _print(rows, ("cron", "at"), json=json)


@schedule.command()
def status(words: Which = None, json: Json = False) -> None:
    """When each runs next, when it last ran, and how that went, as its scheduler tells it."""
    schedules = _schedules()
    workspace, what = _meant(schedules, words or [], "status")
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
        if _is_called(stands.entry, what)
    ]
    _print(rows, ("workspace", "name", "scheduler", "installed", "next", "last", "result", "detail"), json=json)
    _tell_unreadable(schedules)


@schedule.command()
def sync(workspace: AnyWorkspace = None, json: Json = False) -> None:
    """Make this host agree with what is wanted, and say what differed."""
    schedules = _schedules()
    _check_known(schedules, workspace)
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
    _screen(new, None)
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
    schedules = _schedules()
    _check_known(schedules, workspace)
    problems = schedules.doctor(workspace)
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


def _where_and_what(
    context: typer.Context, words: list[str], is_what: Callable[[str], bool], what: str
) -> tuple[str, str, list[str]]:
    """(workspace, what, command). The workspace may be left out: it is a directory that exists. Raises Usage."""
    behind = context.meta.get(_BEHIND)
    first, *rest = words
    workspace, chosen = ".", first
    if not rest and isdir(first) and not is_what(first):
        raise Usage(f"{first!r} is the workspace, and {what} is missing")
    if rest and behind is not None and is_what(first) and isdir(rest[0]):
        workspace, *rest = rest
    elif rest and (isdir(first) or behind is not None or not is_what(first)):
        workspace = first
        chosen, *rest = rest
    if rest and behind is not None:
        raise Usage(f"{shlex.join(rest)} stands before --; a command is written behind it")
    return workspace, chosen, rest if behind is None else behind


def _meant(schedules: Any, words: list[str], verb: str) -> tuple[str | None, str | None]:
    """(workspace, EXPR or NAME), each None where it is left out. Raises Usage where one word may be either, NotFound where
    it is neither."""
    if not words:
        return None, None
    if len(words) > 2:
        raise Usage(f"{shlex.join(words[2:])} is one word too many: [WORKSPACE] [EXPR|NAME]; an expression wants quotes")
    if len(words) == 2:
        workspace, what = words
        is_swapped = not _is_place(schedules, workspace) and isdir(what) and _is_in(schedules, what, workspace)
        return (what, workspace) if is_swapped else (workspace, what)
    (word,) = words
    place = _is_place(schedules, word)
    here = "/" not in word and word not in (".", "..") and _is_in(schedules, ".", word)
    expression = not here and verb == "next" and _is_expression(word)
    if place and (here or expression):
        command = ["checkpoint-tool", "schedule", verb]
        directory, entry = shlex.join([*command, f"./{word}"]), shlex.join([*command, ".", word])
        raise Usage(
            f"{word!r} is a directory, and {'an expression' if expression else 'something scheduled here'}: write"
            f" {directory} for the directory, or {entry}",
            hint=entry,
        )
    if place:
        return word, None
    if here or expression or _is_expression(word) or verb == "next":
        return ".", word
    raise NotFound(
        f"{word!r} is no directory, and nothing is scheduled in {abspath('.')} under that name",
        hint="checkpoint-tool schedule list",
    )


def _check_known(schedules: Any, workspace: str | None) -> None:
    """Raises NotFound for a workspace that is no directory, and in which nothing is scheduled."""
    if workspace is not None and not _is_place(schedules, workspace):
        raise NotFound(f"there is no directory {workspace!r}", hint="checkpoint-tool schedule list")


def _is_place(schedules: Any, word: str) -> bool:
    """Also one that is gone, as long as something is scheduled in it."""
    return isdir(word) or exists(schedules.file_of(word))


def _is_in(schedules: Any, workspace: str, word: str) -> bool:
    return any(_is_called(entry, word) for entry in schedules.entries(workspace))


def _is_called(entry: Any, what: str | None) -> bool:
    """Whether the entry has that name, or is a command with that expression."""
    if what is None or entry.name == what:
        return True
    try:
        return bool(entry.cron == load("checkpoint.cron:parse")(what).text and not entry.selfcheck)
    except Usage:
        return False


def _is_expression(word: str) -> bool:
    """Whether it can only be meant as one, right or wrong."""
    return word.startswith("@") or len(word.split()) > 1


def _is_list(word: str) -> bool:
    return word.lstrip().startswith("[")


def _screen(
    workspace: str,
    allow_secret: list[str] | None,
    *,
    command: list[str] | None = None,
    options: list[str] | None = None,
    name: str | None = None,
) -> None:
    """Everything that would be written: others read a crontab and a unit, and backups keep them. Raises SecretFound."""
    fields = {"workspace": abspath(workspace), "name": name, "command": command, "options": options}
    try:
        Checkpoints("memory:", allow_secrets=allow_secret or ()).screen(fields | {"environment": {"PATH": environ.get("PATH")}})
    except SecretFound as error:
        instead = "${NAME} (of the environment), ${file:PATH} or @FILE in an option" if options else "a script that reads it"
        hint = "checkpoint-selfcheck --help" if options else "checkpoint-tool schedule add --help"
        raise SecretFound(f"{error.message}; write {instead}", hint=hint) from None


def _tell_unreadable(schedules: Any) -> None:
    for problem in schedules.unreadable:
        say(f"checkpoint-tool: {problem.words} (try: {problem.mend})")


def _check_folder(workspace: str) -> None:
    if not isdir(workspace):
        raise Usage(f"there is no directory {workspace!r}")


def _told(workspace: str, entries: Any, *, json: bool) -> None:
    for entry in entries:
        if json:
            fields = {"workspace": workspace, **entry._asdict(), "command": list(entry.command)}
            del fields["allowed"]
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
