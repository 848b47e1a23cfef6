"""For agents that speak MCP: the verbs as tools."""

import signal
import sys
from os import environ
from os.path import abspath, expanduser

from checkpoint import process
from checkpoint._load import load
from checkpoint.api import owner as make_owner
from checkpoint.cli.options import Json, LeaseTime, OwnerName, Store, say, seconds
from checkpoint.config import found_store
from checkpoint.errors import Usage
from checkpoint.model import DEFAULT_LEASE_S


def mcp(owner: OwnerName = None, lease: LeaseTime = None, json: Json = False, store: Store = None) -> None:
    """Serve start, update, resume, list and so on as MCP tools, on standard input and output."""
    if json:
        raise Usage("mcp speaks a protocol of its own, which is JSON")
    try:
        serve = load("checkpoint.mcp_server:serve")
    except ImportError as error:
        raise Usage(
            f"the MCP server needs the package mcp ({error})", hint="python -m pip install 'checkpoint-tool[mcp]'"
        ) from None
    # Absolute: the commands in errors are typed in whatever folder the agent's shell is.
    place = abspath(expanduser(found_store(store, environ)))
    name = owner or environ.get("CHECKPOINT_OWNER") or None
    who = make_owner(name or process.owner_name(process.own_pid()), lease_s=seconds(lease) or DEFAULT_LEASE_S, time_held=True)
    if name is None:
        # The name holds our pid, and pids come again.
        own = process.of(process.own_pid())
        who = who._replace(pid_started=own.pid_started if own else None)
    if sys.stdin.isatty():
        say("checkpoint-tool: this waits for an MCP client on standard input; it is meant to be started by one")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # As an exception it would wait for whoever reads standard input, and that for the next line.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(place, who, give_back=name is None)
