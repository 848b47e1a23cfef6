"""The first calls of a process, made at once: what is loaded late must be whole for each of them."""

import asyncio
import json
import sys
from collections import Counter

import pytest
from conftest import Workspace
from test_mcp import scenario, serving

THREADS = 8
ROUNDS = 4

# Eight threads of a fresh process. Each one's first act is the call; the import of checkpoint is part of it.
AT_ONCE = """
import collections, json, sys, threading
sys.setswitchinterval(1e-5)
ready = threading.Barrier(8)
ended = []

def call(number):
    ready.wait()
    try:
        CALL
        ended.append("ok")
    except BaseException as error:
        ended.append(f"{type(error).__name__}: {error}")

threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(collections.Counter(ended)))
"""
CALLS = {
    "start": "from checkpoint import Checkpoints; Checkpoints('new').start('w', ['a'], key=str(number))",
    "start of one handle": "import checkpoint; one.start('w', ['a'], key=str(number))",
    "start with a schema": "import checkpoint; checkpoint.Checkpoints('new').start("
    "'w', ['a'], key=str(number), data={}, data_schema={'type': 'object'})",
    "list": "from checkpoint import Checkpoints; assert len(list(Checkpoints('store').list())) == 8",
    "status": "from checkpoint import Checkpoints; Checkpoints('store').status(f'w{number}')",
    "resume": "from checkpoint import Checkpoints; Checkpoints('store').resume(f'w{number}')",
    "update": "from checkpoint import Checkpoints, Update\n"
    "        Checkpoints('store').open(f'w{number}').update(Update(notes=['a']))",
    "names": "from checkpoint import Checkpoint, Lease, Owner, StepStatus, View, Workflow, owner; owner('me')",
    "load": "from checkpoint._load import load; load('checkpoint.cli.workflow:start'); load('checkpoint.monitor:judge')",
}


@pytest.mark.parametrize("call", CALLS)
def test_the_first_calls_of_eight_threads_succeed(workspace: Workspace, call: str) -> None:
    begin = "with Checkpoints('store').start(f'w{number}', ['a']) as run: run.release()"
    prepare = f"from checkpoint import Checkpoints\nfor number in range({THREADS}):\n    {begin}"
    assert workspace.run(sys.executable, "-c", prepare).code == 0
    code = AT_ONCE.replace("CALL", CALLS[call])
    if call == "start of one handle":
        code = "from checkpoint import Checkpoints; one = Checkpoints('new')\n" + code
    ended: Counter[str] = Counter()
    for _ in range(ROUNDS):
        done = workspace.run(sys.executable, "-c", code)
        assert done.code == 0, done
        ended.update(json.loads(done.out))
    assert ended == {"ok": THREADS * ROUNDS}


def test_a_thread_that_asks_for_temporary_files_meanwhile_gets_them_where_it_should(workspace: Workspace) -> None:
    """What the lock's library would ask is answered for it: for other threads the answer must be the right one."""
    (workspace.path / "tmp").mkdir()
    code = """
import sys, tempfile, threading
sys.setswitchinterval(1e-5)
seen, ended = set(), threading.Event()

def look():
    while not ended.is_set():
        seen.add(tempfile.tempdir)

looking = threading.Thread(target=look)
looking.start()
from checkpoint import Checkpoints
Checkpoints("store").start("w", ["a"])
ended.set()
looking.join()
print(sorted(map(str, seen)), tempfile.tempdir)
"""
    place = str(workspace.path / "tmp")
    seen = workspace.run(sys.executable, "-c", code, env={"TMPDIR": place})
    assert seen.out in (f"['{place}', 'None'] None\n", "['None'] None\n"), seen
    kept = code.replace("looking = ", "tempfile.tempdir = '/var/tmp'\nlooking = ")
    assert workspace.run(sys.executable, "-c", kept, env={"TMPDIR": place}).out == "['/var/tmp'] /var/tmp\n"


@scenario
async def test_the_first_calls_of_a_server_at_once_succeed(workspace: Workspace) -> None:
    for tool in ("start", "resume", "update", "list"):
        for round in range(2 if tool == "start" else 1):
            names = [f"{tool}-{round}-{number}" for number in range(3)]
            for name in [] if tool == "start" else names:
                workspace.tool("start", name, "--steps", "a", "--lease", "1s")
                workspace.tool("release", name)
            given = [{"start": {"workflow": name, "steps": ["a"]}, "list": {}}.get(tool, {"id": name}) for name in names]
            async with serving(workspace) as server:
                results = await asyncio.gather(*(server.raw(tool, **arguments) for arguments in given))
            assert [result.structured_content for result in results if result.is_error] == []
