"""What the verbs share: option types, how values are read, who asks, and how results leave the program."""

import functools
import sys
from collections.abc import Sequence
from os import environ
from typing import Annotated, BinaryIO

import typer

from checkpoint import process
from checkpoint.api import Checkpoints, Workflow, document
from checkpoint.api import owner as make_owner
from checkpoint.config import parse_duration, run_store, store_path
from checkpoint.errors import NotReported, Usage
from checkpoint.model import RECORD_LIMIT, View
from checkpoint.render import text

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the checkpoint, or a run id.", show_default=False)]
Store = Annotated[str | None, typer.Option("--store", metavar="DIR", help="Folder of the store.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OwnerName = Annotated[
    str | None,
    typer.Option("--owner", metavar="NAME", help="Who asks. [$CHECKPOINT_OWNER, else user@host:ppid]", show_default=False),
]
OwnerPid = Annotated[
    int | None,
    typer.Option("--owner-pid", metavar="PID", help="The claim ends with this process ($$ in a script).", show_default=False),
]
LeaseTime = Annotated[
    str | None,
    typer.Option("--lease", metavar="D", help="The claim holds so long after the last write. [30m]", show_default=False),
]
Token = Annotated[
    int | None,
    typer.Option("--token", metavar="N", help="Fencing token. [$CHECKPOINT_TOKEN]", show_default=False),
]
Agent = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Agent that works on it.", show_default=False)]
AllowSecret = Annotated[
    list[str] | None,
    typer.Option("--allow-secret", metavar="RULE", help="Take what this rule refuses as a secret.", show_default=False),
]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why.", show_default=False)]


def open_checkpoints(
    store: str | None,
    owner: str | None = None,
    owner_pid: int | None = None,
    lease: str | None = None,
    *,
    allow_secret: list[str] | None = None,
    caller_pid: int | None = None,
) -> Checkpoints:
    """The store that is meant, and who asks. ``caller_pid``: the process that carries steps out, by default the one that
    called this program. Raises Usage."""
    caller = caller_pid or process.parent().pid
    return _checkpoints(store, owner, owner_pid, lease, tuple(allow_secret or ()), caller)


# A session opens each store once for all of its commands.
@functools.cache
def _checkpoints(
    store: str | None,
    owner: str | None,
    owner_pid: int | None,
    lease: str | None,
    allow_secret: tuple[str, ...],
    caller_pid: int | None,
) -> Checkpoints:
    who = make_owner(
        owner or environ.get("CHECKPOINT_OWNER") or None,
        pid=owner_pid,
        lease_s=seconds(lease),
        time_held=owner_pid is None,
    )
    place = store_path(store, environ)
    return Checkpoints(place, owner=who, allow_secrets=allow_secret, caller_pid=caller_pid, made=say_made)


def say_made(path: str, passed: Sequence[str]) -> None:
    """Say that a store is new, and where: a run that was expected to be known may stand in another."""
    say(f"checkpoint-tool: {text.made(path, passed)}")


def open_workflow(
    id: str,
    store: str | None,
    owner: str | None,
    token: int | None,
    *,
    allow_secret: list[str] | None = None,
    caller_pid: int | None = None,
) -> Workflow:
    """A handle for one write. $CHECKPOINT_TOKEN counts only for the run that $CHECKPOINT_RUN_ID or $CHECKPOINT_ID names,
    if they do: a script that drives two runs, or one of the same id in another store, would otherwise hand the token of
    one to the other."""
    place = run_store(id, store, environ)
    checkpoints = open_checkpoints(place, owner, allow_secret=allow_secret, caller_pid=caller_pid)
    run = checkpoints.open(id, token=token)
    given = environ.get("CHECKPOINT_TOKEN")
    named = environ.get("CHECKPOINT_RUN_ID") or environ.get("CHECKPOINT_ID")
    if token is None and given and named in (None, "", run.id, run.checkpoint.run_id):
        if not given.isascii() or not given.isdigit():
            raise Usage(f"$CHECKPOINT_TOKEN is {given!r}, and must be a number")
        run.token = int(given)
    lease = run.checkpoint.lease
    if run.token is None and process.is_ancestor(lease):
        # A subshell, make, a script in a script: what the owner's children do is its own doing.
        run.token = run.checkpoint.token
    return run


def warn_if_unwatched(checkpoints: Checkpoints) -> None:
    """Say that the self-check has stopped, where one used to run: nobody else would."""
    watched = checkpoints.watched()
    if watched is not None and watched[0] > 2 * watched[1]:
        since, period = (text.duration(int(time.total_seconds())) for time in watched)
        say(
            f"checkpoint-tool: the self-check last ran {since} ago, and is meant to run every {period}: nobody watches what is"
            " left unfinished here (try: checkpoint-selfcheck --check-monitor 30m)"
        )


def seconds(duration: str | None) -> int | None:
    return None if duration is None else parse_duration(duration)


def read_value(value: str | None, what: str) -> str | None:
    """The value itself, or with ``-`` standard input, with ``@FILE`` a file (``@@`` begins one with an ``@``)."""
    if value is None:
        return None
    if value == "-":
        return _decoded(_read(standard_input(what), what), what)
    if value.startswith("@@"):
        return value[1:]
    if value.startswith("@"):
        return read_file(value[1:], what)
    return value


def read_file(path: str, what: str) -> str:
    """The text of a file (``-``: standard input), without its last newline. Raises Usage."""
    if path == "-":
        return read_value("-", what) or ""
    with open_file(path, what) as file:
        return _decoded(_read(file, what), what)


def open_file(path: str, what: str) -> BinaryIO:
    """Raises Usage."""
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Usage(f"{what} cannot be read from {path!r}: {reason}") from None


def standard_input(what: str) -> BinaryIO:
    """Raises Usage where it is closed."""
    if sys.stdin is None:
        raise Usage(f"{what} is to be read from standard input, which is closed")
    return sys.stdin.buffer


def emit(data: str, *, changed: bool, errors: str = "backslashreplace") -> None:
    """Results to standard output, all or an error: by now the change is durable, and saying "failed" would be wrong.

    ``errors``: what becomes of bytes of a path that are no UTF-8; "surrogateescape" for a shell, which wants them back.

    Raises NotReported.
    """
    try:
        process.write_stdout(data.encode("utf-8", errors))
    except OSError as error:
        what = "applied, but the result" if changed else "nothing was changed; the result"
        words = f"{what} could not be written to standard output: {error.strerror}"
        raise NotReported(words, hint="checkpoint-tool list --all") from None


def emit_view(view: View, *, json: bool) -> None:
    """One line in words, or the record as JSON."""
    emit((text.to_json(document(view)) if json else text.brief(view)) + "\n", changed=True)


def say(words: str) -> None:
    """A word for people, on standard error."""
    process.write_stderr(text.escape(words))


def _read(file: BinaryIO, what: str) -> bytes:
    try:
        return file.read(RECORD_LIMIT + 1)
    except OSError as error:
        raise Usage(f"{what} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, what: str) -> str:
    if len(data) > RECORD_LIMIT:
        raise Usage(f"{what} is larger than {RECORD_LIMIT // 1024 // 1024} MiB; put its path into the checkpoint instead")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise Usage(f"{what} is not UTF-8 text") from None
