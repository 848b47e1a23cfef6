"""Many processes, one checkpoint: one winner, no update lost, and a lock that goes with the process that held it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from conftest import ROOT, TOOL, Workspace

ROUNDS = int(os.environ.get("CHECKPOINT_TEST_ROUNDS", "15"))
PROCESSES = 32

# Forks its contenders with everything loaded, so that they meet at the lock and not in the import system.
FORKS = """
import json, os, signal, sys
from checkpoint import codec, model, process
from checkpoint.api import Checkpoints, Update, owner
from checkpoint.errors import CheckpointError, Locked
from checkpoint.store import file, flock

def together(count, work):
    "What `work(number)` gives in each of `count` processes let loose at once; all live until the last has answered."
    gate_out, gate_in = os.pipe()
    stay_out, stay_in = os.pipe()
    ready_out, ready_in = os.pipe()
    answers = []
    children = []
    for number in range(count):
        answer_out, answer_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(gate_in)
                os.close(stay_in)
                os.write(ready_in, b".")
                os.read(gate_out, 1)
                answer = json.dumps(work(number)).encode()
                while answer:
                    answer = answer[os.write(answer_in, answer):]
                os.close(answer_in)
                # A winner that ended here would leave its claim to the next one, rightly.
                os.read(stay_out, 1)
                status = 0
            finally:
                os._exit(status)
        os.close(answer_in)
        answers.append(os.fdopen(answer_out, "rb"))
        children.append(pid)
    missing = count
    while missing:
        missing -= len(os.read(ready_out, missing))
    os.close(gate_in)
    texts = [answer.read() for answer in answers]
    os.close(stay_in)
    for fd in (gate_out, stay_out, ready_out, ready_in):
        os.close(fd)
    for answer in answers:
        answer.close()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * count
    return [json.loads(text) for text in texts]

"""

CLAIMS = (
    FORKS
    + """
store, rounds, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
together(1, lambda number: Checkpoints(store).start("deploy", ["build"]).token)

def claim(number):
    try:
        return Checkpoints(store, owner=owner(f"contender-{number}")).resume("deploy").token
    except Locked:
        return "Locked"
    except Exception as error:
        return repr(error)

print(json.dumps([together(count, claim) for _ in range(rounds)]))
"""
)

UPDATES = (
    FORKS
    + """
store, count, each, planted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
if planted:
    flock.try_lock = lambda fd: True
run = Checkpoints(store).start("deploy")

def work(number):
    failed = []
    if number == count:
        # A reader takes no lock: it must never see half a record, nor none.
        for _ in range(4 * each):
            try:
                Checkpoints(store).show("deploy")
            except CheckpointError as error:
                failed.append(repr(error))
        return failed
    handle = Checkpoints(store, owner=owner(f"writer-{number}")).open("deploy", token=run.token)
    for turn in range(each):
        try:
            if turn % 2:
                handle.update(Update(add=[f"step-{number}-{turn}"]))
            else:
                handle.update(Update(notes=[f"note-{number}-{turn}"]))
        except Exception as error:
            failed.append(repr(error))
    return failed

print(json.dumps(together(count + 1, work)))
"""
)

# Stands still in the middle of a change, with the update lock held.
HOLDER = """
import os, signal, sys
from checkpoint.api import Checkpoints, owner

def stand_still(checkpoint, now):
    os.kill(os.getpid(), signal.SIGSTOP)
    return checkpoint._replace(agent="holder")

Checkpoints(sys.argv[1], owner=owner("tester", time_held=True)).store.update("deploy", stand_still)
"""


def python(workspace: Workspace, code: str, *arguments: str) -> Any:
    done = workspace.run(sys.executable, "-c", code, *arguments, env={"PYTHONPATH": str(ROOT)}, timeout=240)
    assert done.code == 0, done.err
    return done.json


def test_one_of_32_claims_wins(workspace: Workspace) -> None:
    rounds = python(workspace, CLAIMS, str(workspace.store), str(ROUNDS), str(PROCESSES))
    assert len(rounds) == ROUNDS
    tokens = []
    for number, answers in enumerate(rounds):
        won = [answer for answer in answers if isinstance(answer, int)]
        assert len(won) == 1, f"round {number}: {answers}"
        assert answers.count("Locked") == PROCESSES - 1, f"round {number}: {answers}"
        tokens += won
    # 1 went to the owner that died before the first round.
    assert tokens == list(range(2, ROUNDS + 2))
    record = workspace.record()
    assert record["token"] == record["lease"]["token"] == tokens[-1]
    assert record["attempts"] == ROUNDS + 1
    assert workspace.temporaries() == []


def test_no_update_is_lost(workspace: Workspace) -> None:
    answers = python(workspace, UPDATES, str(workspace.store), "8", "100")
    assert answers == [[]] * 9
    record = workspace.record()
    turns = [(writer, turn) for writer in range(8) for turn in range(100)]
    assert sorted(step["name"] for step in record["steps"]) == sorted(f"step-{w}-{t}" for w, t in turns if t % 2)
    assert sorted(note["text"] for note in record["notes"]) == sorted(f"note-{w}-{t}" for w, t in turns if not t % 2)
    assert record["revision"] == 801
    assert workspace.tool("verify").code == 0
    assert workspace.temporaries() == []


def test_planted_missing_lock_loses_updates(workspace: Workspace) -> None:
    """The test above would notice: without the lock, the same writers lose each other's work or find it gone."""
    answers = python(workspace, UPDATES, str(workspace.store), "8", "30", "planted")
    record = workspace.record()
    kept = len(record["steps"]) + len(record["notes"])
    assert kept < 8 * 30 or any(answers)


def starts(workspace: Workspace, owners: tuple[str, str]) -> list[tuple[int, Any, str]]:
    """`start` of one key by two processes at once: (exit code, answer, stderr)."""
    command = [TOOL, "start", "deploy", "--steps", "build", "--key", "release-1", "--json", "--owner"]
    running = [
        subprocess.Popen(
            [*command, name],
            cwd=workspace.path,
            env=workspace.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in owners
    ]
    ended = []
    for process in running:
        out, err = process.communicate(timeout=60)
        ended.append((process.returncode, json.loads(out) if out else None, err))
    return ended


def test_two_owners_start_one_key(make_workspace: Callable[[], Workspace]) -> None:
    for _ in range(8):
        workspace = make_workspace()
        ended = sorted(starts(workspace, ("one", "other")), key=lambda one: one[0])
        assert [code for code, _, _ in ended] == [0, 11], ended
        (_, answer, _), (_, refused, err) = ended
        assert answer["created"] is True
        assert answer["token"] == 1
        assert refused is None
        assert json.loads(err)["error"]["name"] == "Locked"
        assert answer["lease"]["owner"] in json.loads(err)["error"]["message"]
        assert [path.name for path in workspace.store.glob("*.json")] == [f"{answer['id']}.json"]


def test_one_owner_starts_one_key_twice(make_workspace: Callable[[], Workspace]) -> None:
    for _ in range(8):
        workspace = make_workspace()
        ended = starts(workspace, ("one", "one"))
        assert [code for code, _, _ in ended] == [0, 0], ended
        assert sorted(answer["created"] for _, answer, _ in ended) == [False, True]
        assert [answer["token"] for _, answer, _ in ended] == [1, 1]
        assert len({answer["run_id"] for _, answer, _ in ended}) == 1


@contextmanager
def standing_still(workspace: Workspace) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the update lock of ``deploy`` and is stopped."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.store)],
        cwd=workspace.path,
        env=workspace.environ({"PYTHONPATH": str(ROOT)}),
    )
    try:
        _, status = os.waitpid(holder.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_a_lock_that_is_not_let_go(workspace: Workspace) -> None:
    assert workspace.tool("start", "deploy", "--steps", "build").code == 0
    before = workspace.snapshot()
    with standing_still(workspace) as holder:
        # Reading waits for nobody.
        assert workspace.tool("show", "deploy", timeout=5).code == 0
        begun = time.monotonic()
        refused = workspace.tool("update", "deploy", "--note", "waits", "--json", timeout=30)
        waited = time.monotonic() - begun
        assert refused.code == 11, refused
        error = json.loads(refused.err)["error"]
        assert error["name"] == "Locked"
        assert str(holder.pid) in error["message"].replace(",", " ").split()
        assert 9 < waited < 20
        assert workspace.snapshot() == before

        waiting = subprocess.Popen(
            [TOOL, "update", "deploy", "--note", "waited"],
            cwd=workspace.path,
            env=workspace.environ(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(1)
        assert waiting.poll() is None
        holder.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        _, err = waiting.communicate(timeout=5)
        assert waiting.returncode == 0, err
        assert time.monotonic() - begun < 2
    record = workspace.record()
    assert [note["text"] for note in record["notes"]] == ["waited"]
    assert record["agent"] is None
