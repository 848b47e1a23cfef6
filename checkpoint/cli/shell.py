"""For shell scripts: the functions that they source, and the session that those functions talk to."""

import re
import shutil
import sys
from collections.abc import Callable
from os import environ
from typing import Annotated

import typer

from checkpoint import process, programs
from checkpoint._load import data_path, load
from checkpoint.api import Workflow
from checkpoint.cli.options import Json, Store, emit, open_checkpoints
from checkpoint.config import run_store
from checkpoint.dialogue import Dialogue
from checkpoint.errors import CheckpointError, Usage
from checkpoint.model import RECORD_LIMIT

PROGRAM = "checkpoint-tool"

SHELLS = {
    "bash": ("ckpt.sh", "session.bash", "session.sh", "found.sh"),
    "zsh": ("ckpt.sh", "session.zsh", "session.sh", "found.sh"),
    "sh": ("ckpt.sh", "found.sh"),
    "fish": ("ckpt.fish",),
}

_BUILT_IN = re.compile(r"\\(:|\[|[a-z]+)(?=[ ;\n)])")

MOST_ARGUMENTS = 10_000


def shell_init(
    shell: Annotated[str, typer.Argument(metavar="|".join(SHELLS), help="Which shell.", show_default=False)],
    json: Json = False,
    store: Store = None,
) -> None:
    """Print functions for a shell script: eval "$(checkpoint-tool shell-init bash)"."""
    if shell not in SHELLS:
        raise Usage(f"{shell!r} is none of {', '.join(SHELLS)}")
    if json:
        raise Usage("shell-init prints a program for a shell; there is no JSON of it")
    if store is not None:
        raise Usage("the functions use $CHECKPOINT_STORE; or give --store to ckpt_start")
    # By name, so that a saved copy goes on with whatever version is on PATH; by path where it is not to be found there.
    # By path also where the name means a file of the working directory: PATH may have an empty entry or "." in it.
    found = programs.find(PROGRAM)
    by_name = found is not None and shutil.which(PROGRAM) == found
    name = PROGRAM if by_name else found or shutil.which(sys.argv[0]) or PROGRAM
    parts = []
    for file in SHELLS[shell]:
        with open(data_path(f"shell/{file}"), encoding="utf-8") as source:
            parts.append(source.read())
    functions = "".join(parts)
    if shell in ("bash", "zsh"):
        # There a function of the script comes before any built-in, and so its backslash alone does not keep it.
        functions = _BUILT_IN.sub(r"\\builtin \1", functions)
    emit(functions.replace("@TOOL@", _quoted(name)), changed=False)


def session(
    owner_pid: Annotated[
        int, typer.Option("--owner-pid", metavar="PID", help="The script; the session ends with it.", show_default=False)
    ],
    json: Json = False,
    store: Store = None,
) -> None:
    """Take commands from standard input and answer on standard output, for the shell functions.

    A request is a number, and so many arguments as checkpoint-tool takes them; an answer is the exit status, what went to
    standard output without its last newline, and what went to standard error. A NUL byte ends each of them.
    """
    if json or store is not None:
        raise Usage("a session takes --json and --store with each of its commands")
    owner = process.of(owner_pid)
    if owner is None:
        raise Usage(f"no process runs under the pid {owner_pid}, and the owner of a session must be running")
    main, verbs = load("checkpoint.cli:main"), load("checkpoint.cli:COMMANDS")
    with Dialogue(owner, largest=4 * RECORD_LIMIT) as dialogue:
        run = _claimed(owner_pid)  # after it has closed all that came from the script
        if run is not None and run.checkpoint.lease is not None and run.checkpoint.lease.lease_s is not None:
            dialogue.pulse, dialogue.every_s = _pulse(run), run.checkpoint.lease.lease_s / 4
        while (arguments := dialogue.ask(most=MOST_ARGUMENTS)) is not None:
            verb = next((argument for argument in arguments if not argument.startswith("-")), "")
            if verb in verbs and verbs[verb].own_streams:
                process.write_stderr(f"{PROGRAM}: {verb} cannot be used in a session")
                status = Usage.exit_code
            else:
                status = main(arguments)
            dialogue.answer(status)
        if dialogue.owner_ended(wait_s=1) and run is not None:
            _give_back(run)


def _claimed(owner_pid: int) -> Workflow | None:
    """The run that the script has claimed, with the proof that it lives: it stands for the script while that lives."""
    id, token = environ.get("CHECKPOINT_ID"), environ.get("CHECKPOINT_TOKEN", "")
    if not id or not token.isdigit():
        return None
    try:
        run = open_checkpoints(run_store(id, None, environ)).open(id, token=int(token))
    except CheckpointError:
        return None  # the first command says what is wrong
    run.attest(owner_pid)
    lease = run.checkpoint.lease
    return run if lease is not None and lease.pid == owner_pid else None


def _pulse(run: Workflow) -> Callable[[], None]:
    """Renews the claim while a step of the script takes its time: on another host only time can tell that it lives."""

    def pulse() -> None:
        try:
            run.heartbeat()
        except CheckpointError:
            pass  # finished, taken over, or a disk that is full: the next command of the script says so

    return pulse


def _give_back(run: Workflow) -> None:
    """Where the end of the script cannot be proven, its claim would hold until its time is over."""
    try:
        if run.checkpoint.lease is not None and run.checkpoint.lease.lease_s is not None:
            run.release()
    except CheckpointError:
        pass  # finished, or taken over: then it is not the script's to give


def _quoted(path: str) -> str:
    return path if path == PROGRAM else "'" + path.replace("'", "'\\''") + "'"
