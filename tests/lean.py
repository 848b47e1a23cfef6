"""The verbs without typer: a lean entry to the core, for sweeps that start a process for each point.

A start of the whole command line costs four times as much. Everything is imported before the store is touched, so that
what follows the first touch is the protocol alone. As a program: ``main(VERB, STORE, [KEY_OR_ID])``; in process: ``run``.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from checkpoint import codec, model, process  # noqa: F401 - loaded before the store is touched
from checkpoint.api import Checkpoints, Update, Workflow, owner
from checkpoint.errors import CheckpointError
from checkpoint.model import Outcome
from checkpoint.render import text
from checkpoint.store import disk, file, flock  # noqa: F401

OWNER = "tester"


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.code in (-9, 137)


def _damage(store: str, id: str) -> dict[str, object]:
    """As a person edits a record by hand: the digest no longer fits."""
    path = Path(store, f"{id}.json")
    path.write_bytes(path.read_bytes().replace(b'"build"', b'"built"', 1))
    return {"damaged": id}


def _told(run: Workflow) -> dict[str, object]:
    record = run.checkpoint
    return {"status": record.status, "token": record.token, "steps": [step.status for step in record.steps]}


def act(verb: str, store: str, key: str | None = None) -> dict[str, object]:
    """Do it as ``OWNER``, who holds by time; what it answered."""
    if verb == "abandon":  # by a process that ends with that
        return _told(Checkpoints(store).start("deploy", ["build", "publish"], key=key))
    who = "robber" if verb == "steal" else OWNER
    checkpoints = Checkpoints(store, owner=owner(who, time_held=True))
    if verb == "invoke":  # by a process that is gone a moment later
        return _told(Checkpoints(store).invoke("nightly"))
    if verb in ("end-bad", "end-well"):
        outcome = Outcome(exit_code=1 if verb == "end-bad" else 0)
        run = checkpoints.open("nightly", token=checkpoints.show("nightly").checkpoint.token)
        run.end("command", outcome, attempt=1, run_too=True)
        return _told(run)
    id = "deploy" if key is None else key
    if verb == "start":
        return _told(checkpoints.start("deploy", ["build", "publish"], key=key))
    if verb == "damage":
        return _damage(store, id)
    if verb == "resume":
        return _told(checkpoints.resume(id))
    if verb == "steal":
        return _told(checkpoints.resume(id, steal_reason="it hangs"))
    if verb == "prune":
        pruned = checkpoints.prune(older_than_s=0, apply=True)
        return {"removed": len(pruned.candidates), "unreadable": pruned.unreadable}
    if verb == "repair":
        return {"kept": bool(checkpoints.repair(id, accept=True).kept)}
    if verb == "quarantine":
        return {"kept": bool(checkpoints.repair(id, quarantine=True).kept)}
    if verb in ("pin", "unpin"):
        return {"pinned": checkpoints.pin(id, verb == "pin").checkpoint.pinned}
    run = checkpoints.open(id)
    if verb == "begin":
        run.begin("build")
    elif verb == "end":
        run.end("build", Outcome(exit_code=0))
    elif verb == "update":
        run.update(Update(complete=["build"]))
    elif verb == "finish-steps":
        run.update(Update(complete=["build", "publish"]))
    elif verb == "complete":
        run.complete()
    elif verb == "fail":
        run.fail("it broke")
    elif verb == "cancel":
        run.cancel("not wanted")
    elif verb == "heartbeat":
        run.heartbeat()
    elif verb == "release":
        run.release()
    elif verb == "hand-over":
        run.release(to="another")
    else:
        raise ValueError(f"no verb {verb}")
    return _told(run)


def run(verb: str, store: Path, key: str | None = None) -> Ended:
    """In this process, as the program would have ended."""
    try:
        return Ended(0, text.to_json(act(verb, str(store), key)) + "\n", "")
    except CheckpointError as error:
        return Ended(error.exit_code, "", text.escape(f"checkpoint-tool: {error.message}") + "\n")


def main(verb: str, store: str, key: str | None = None) -> None:
    ended = run(verb, Path(store), key)
    process.write_stdout(ended.out.encode())
    if ended.err:
        process.write_stderr(ended.err.rstrip("\n"))
    sys.exit(ended.code)


def adopted(store: Path) -> Path:
    """Let a copied store pass for the one that was copied: its lock files know the records by the ctime of their files."""
    for lock in store.glob(".locks/*.lock"):
        noted = disk._noted(lock.read_bytes())
        memory = noted.memory
        if memory is None:
            continue
        id = lock.stem
        places = (store / f"{id}.json", store / "done" / f"{id}.json", store / "done" / id / f"{memory.run}.json")
        found = next((place for place in places if place.exists()), None)
        if found is not None:
            line = disk._memory_line(memory._replace(changed_ns=found.stat().st_ctime_ns))
            with lock.open("r+b") as file:
                os.pwrite(file.fileno(), line, 32)
    return store
