"""checkpoint-tool: the typer app, and the one place where errors become exit codes."""

import functools
import shlex
import sys
import traceback
from collections.abc import Sequence
from itertools import takewhile
from os import environ
from typing import Annotated, Any, NamedTuple

import typer

# Typer carries its own copy of click and shows no public name for the base of its usage errors; the window in
# pyproject.toml is the range of releases where it stands here.
from typer._click.exceptions import ClickException, NoArgsIsHelpError
from typer.core import TyperGroup

from checkpoint import __version__, process
from checkpoint._load import load
from checkpoint.cli.options import emit
from checkpoint.errors import CheckpointError, NotReported
from checkpoint.render.text import escape, to_json
from checkpoint.secrets import redact

PROGRAM = "checkpoint-tool"
INTERRUPTED = 130
_LONGEST_MESSAGE = 4000


class Verb(NamedTuple):
    """``target``: the function that does it, in a module of this package. ``own_streams``: it needs standard input and
    output for itself, and is refused in a session, where they carry questions and answers."""

    target: str
    own_streams: bool = False


COMMANDS = {
    "start": Verb("workflow:start"),
    "update": Verb("workflow:update"),
    "resume": Verb("workflow:resume"),
    "complete": Verb("workflow:complete"),
    "fail": Verb("workflow:fail"),
    "cancel": Verb("workflow:cancel"),
    "run": Verb("run:run", own_streams=True),
    "exec": Verb("run:exec_", own_streams=True),
    "status": Verb("run:status"),
    "begin": Verb("step:begin"),
    "end": Verb("step:end"),
    "heartbeat": Verb("workflow:heartbeat"),
    "release": Verb("workflow:release"),
    "show": Verb("workflow:show"),
    "list": Verb("workflow:list_"),
    "watch": Verb("live:watch", own_streams=True),
    "verify": Verb("admin:verify"),
    "repair": Verb("admin:repair"),
    "prune": Verb("admin:prune"),
    "pin": Verb("admin:pin"),
    "unpin": Verb("admin:unpin"),
    "schedule": Verb("host:schedule"),
    "agents": Verb("agents:agents"),
    "mcp": Verb("mcp:mcp", own_streams=True),
    "shell-init": Verb("shell:shell_init", own_streams=True),
    "session": Verb("shell:session", own_streams=True),
}
"""The one list of verbs."""


class _Commands(TyperGroup):
    """Builds only the verb that was typed: building all of them costs as much again as the work itself."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in COMMANDS else None


# A session runs many commands: built anew each time they would cost as much again as the durable writes.
@functools.cache
def _command(name: str) -> Any:
    target = load(f"checkpoint.cli.{COMMANDS[name].target}")
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(target)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=_Commands,
    name=PROGRAM,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a bug.")] = False,
) -> None:
    """Work that survives a restart: checkpoint, restart, wake, resume from file.

    Every verb takes --store DIR (else $CHECKPOINT_STORE, else the nearest memory/checkpoints from the working
    directory upwards) and --json. Durations read 90s 10m 2h 7d. A value `-` is read from standard input, `@FILE` from a file.
    """


@functools.cache
def _commands() -> Any:
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. ``argv``: the arguments without the program's name. Returns the exit status."""
    process.fill_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        if "--version" in takewhile(lambda argument: argument.startswith("-"), options):
            emit(f"{PROGRAM} {__version__}\n", changed=False)
            return 0
        # No variable of the environment makes this a request for shell completions.
        status = _commands()(args=arguments, prog_name=PROGRAM, complete_var="", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except NoArgsIsHelpError as error:
        process.write_stderr(error.format_message())
        return 2
    except ClickException as error:
        return _report(options, 2, "Usage", _clean(error.format_message(), arguments), _help(options))
    except CheckpointError as error:
        hint = error.hint or _help(options)
        store = _value(options, "--store")
        if error.hint.startswith(PROGRAM) and store is not None:
            hint += f" --store {shlex.quote(store)}"
        if error.as_user:
            hint = load("checkpoint.store.rights:as_user")(error.as_user, [PROGRAM, *arguments])
        return _report(options, error.exit_code, error.name, _clean(error.message, arguments), _clean(hint, arguments))
    except OSError as error:  # the store's are StoreUnavailable: this is --help, written where nothing can be
        return _report(options, NotReported.exit_code, "NotReported", f"nothing could be written: {error.strerror}", "")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: a bug is one line and exit 1, not a traceback
        if "--debug" in options or environ.get("CHECKPOINT_DEBUG"):
            traceback.print_exc()
        words = f"a bug: {type(error).__name__}: {error} (CHECKPOINT_DEBUG=1 shows where)"
        return _report(options, 1, "Bug", words, "")


def _report(options: Sequence[str], code: int, name: str, message: str, hint: str) -> int:
    # An argument that is repeated in it may have been of any length.
    message = message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 4] + " ..."
    if "--json" in options or (_value(options, "--format") or "").startswith("json"):
        process.write_stderr(to_json({"error": {"code": code, "name": name, "message": message, "hint": hint}}))
    else:
        words = f"{PROGRAM}: {message}" + (f" (try: {hint})" if hint else "")
        process.write_stderr(escape(words))
    return code


def _clean(words: str, arguments: Sequence[str]) -> str:
    """Without credentials: what was typed in the wrong place is repeated in an error, and that ends up in logs and in mail."""
    for argument in arguments:
        for typed in (argument, argument.partition("=")[2]):
            clean = redact(typed)
            if clean != typed:
                words = words.replace(repr(typed), repr(clean)).replace(typed, clean)
    return redact(words)


def _help(options: Sequence[str]) -> str:
    verb = next((argument for argument in options if argument in COMMANDS), None)
    return f"{PROGRAM} {verb} --help" if verb else f"{PROGRAM} --help"


def _value(options: Sequence[str], name: str) -> str | None:
    """The value of an option as typed: errors are reported also where the command line could not be read."""
    for position, argument in enumerate(options):
        if argument == name and position + 1 < len(options):
            return options[position + 1]
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
    return None
