"""Many processes, one checkpoint: one winner, no update lost, and a lock that goes with the process that held it.

Also where half of the processes are killed while they claim, and how long it takes until a dead owner's work is taken over.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import quantiles
from typing import Any

import pytest
from conftest import ROOT, TOOL, Workspace, need_program
from proof import WHOLE, tried

from checkpoint import Checkpoints, owner

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

# Half of the contenders are killed at moments drawn by lot; in every third round whoever claims first is among them.
RAIDS = (
    FORKS
    + """
import fcntl, random, select, time

store, rounds, count, seed, planted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
if planted == "no lock":
    flock.try_lock = lambda fd: True
if planted == "all are dead":
    process.liveness = lambda who, written=None: "dead"
lot = random.Random(seed)
together(1, lambda number: Checkpoints(store).start("deploy", ["build"]).token)

def claim(number):
    # The kernel's word for it: this lock goes when its holder is dead, and no sooner.
    witness = os.open(store + "/../witness", os.O_RDWR | os.O_CREAT)
    try:
        token = Checkpoints(store, owner=owner(f"contender-{number}")).resume("deploy").token
        fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return token
    except Locked:
        return "Locked"
    except BlockingIOError:
        return "another live process holds it too"
    except Exception as error:
        return repr(error)

def raid(first_too):
    gate_out, gate_in = os.pipe()
    stay_out, stay_in = os.pipe()
    ready_out, ready_in = os.pipe()
    pipes, pids = [], []
    for number in range(count):
        answer_out, answer_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(gate_in)
                os.close(stay_in)
                os.write(ready_in, b".")
                os.read(gate_out, 1)
                os.write(answer_in, json.dumps(claim(number)).encode())
                os.close(answer_in)
                os.read(stay_out, 1)
            finally:
                os._exit(0)
        os.close(answer_in)
        pipes.append(answer_out)
        pids.append(pid)
    missing = count
    while missing:
        missing -= len(os.read(ready_out, missing))
    victims = lot.sample(range(count), count // 2 - first_too)
    span = lot.choice([0.01, 0.05, 0.2])
    due = sorted((lot.random() * span, number) for number in victims)
    os.close(gate_in)
    begun = time.monotonic()
    answers = {}
    while due or len(answers) < count:
        wait = max(0, due[0][0] - (time.monotonic() - begun)) if due else None
        open_pipes = [pipes[number] for number in range(count) if number not in answers]
        for fd in select.select(open_pipes, [], [], wait)[0]:
            number, text = pipes.index(fd), os.read(fd, 1000)
            answers[number] = json.loads(text) if text else None
            if first_too and isinstance(answers[number], int):
                first_too = False
                if number not in victims:
                    victims.append(number)
                    os.kill(pids[number], signal.SIGKILL)
        while due and time.monotonic() - begun >= due[0][0]:
            os.kill(pids[due.pop(0)[1]], signal.SIGKILL)
    killed = [os.waitpid(pids[number], 0)[1] for number in victims]
    standing = Checkpoints(store).show("deploy").checkpoint
    held_by = standing.lease.token if standing.lease else None
    (then,) = together(1, claim)
    for fd in (stay_in, stay_out, gate_out, ready_out, ready_in, *pipes):
        os.close(fd)
    assert [os.waitpid(pid, 0)[1] for number, pid in enumerate(pids) if number not in victims] == [0] * (count - len(victims))
    (at_last,) = together(1, claim)
    return {
        "victims": victims,
        "killed": killed,
        "answers": [answers[number] for number in range(count)],
        "lease": held_by,
        "then": then,
        "at_last": at_last,
        "left": [name for name in os.listdir(store) if name.endswith(".tmp")],
        "findings": [finding.kind for finding in Checkpoints(store).verify().findings],
    }

print(json.dumps([raid(number % 3 == 0) for number in range(rounds)]))
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
        for again in range(5):
            try:
                if turn % 2:
                    handle.update(Update(add=[f"step-{number}-{turn}"]))
                else:
                    handle.update(Update(notes=[f"note-{number}-{turn}"]))
                break
            except Locked as error:
                # Where the machine is very busy the lock may not come free in time; that is said, so nothing is lost.
                if again == 4:
                    failed.append(repr(error))
            except Exception as error:
                failed.append(repr(error))
                break
    return failed

print(json.dumps(together(count + 1, work)))
"""
)

# Takes over what it is told to, each time it is told, and gives it back.
HEIR = """
import sys
from checkpoint.api import Checkpoints

for line in sys.stdin:
    heir = Checkpoints(sys.argv[1]).resume(line.strip(), wait_s=30)
    print(heir.token, flush=True)
    heir.release()
"""

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


def broken(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """What went wrong in rounds of claims, half of whose contenders were killed."""
    problems = []
    last = 1
    for number, found in enumerate(rounds):
        answers, victims = found["answers"], found["victims"]
        lived = [answer for contender, answer in enumerate(answers) if contender not in victims]
        tokens = [answer for answer in answers if isinstance(answer, int)]
        winners = [answer for answer in lived if isinstance(answer, int)]
        after = [*tokens, found["then"], found["at_last"]]
        grown = [token for token in after if isinstance(token, int)]
        wrong = [
            not all(answer == "Locked" or isinstance(answer, int) for answer in lived) and "a claim failed",
            any(isinstance(answer, str) and answer != "Locked" for answer in answers) and "a claim failed, or two hold it",
            len(winners) > 1 and "two live winners",
            len(set(grown)) < len(grown) and "a token was issued twice",
            min(grown, default=0) <= last and "a token that is not above those of the round before",
            bool(winners) and found["lease"] != winners[0] and "the lease is not the winner's",
            bool(winners) and found["then"] != "Locked" and "a live winner was robbed",
            not winners and not isinstance(found["then"], int) and "nobody lives who holds it, and it was not to be had",
            not isinstance(found["at_last"], int) and "nobody is left, and it was not to be had",
            isinstance(found["at_last"], int) and found["at_last"] != max(grown) and "the last token is not the highest",
            bool(found["left"]) and "temporary files are left",
            bool(found["findings"]) and "damage",
        ]
        problems += [f"round {number}: {words}: {found}" for words in wrong if words]
        last = max(grown, default=last)
    return problems


@pytest.mark.parametrize("seed", range(8 if WHOLE else 2))
@pytest.mark.proof("claim")
def test_one_live_winner_where_half_of_32_are_killed_as_they_claim(workspace: Workspace, seed: int) -> None:
    count = 26 if WHOLE else 6
    rounds = python(workspace, RAIDS, str(workspace.store), str(count), str(PROCESSES), str(seed), "")
    problems = broken(rounds)
    tried("claim", len(rounds), len(problems))
    assert problems == []
    assert len(rounds) == count
    # Else the deaths would not have met the claims.
    died_as_winner = [number for found in rounds for number in found["victims"] if isinstance(found["answers"][number], int)]
    assert died_as_winner
    assert any(found["answers"][number] is None for found in rounds for number in found["victims"])
    assert all(len(found["victims"]) >= PROCESSES // 2 - 1 for found in rounds)


@pytest.mark.parametrize("planted", ["no lock", "all are dead"])
def test_planted_claims_without_a_lock_or_a_look_have_two_winners(workspace: Workspace, planted: str) -> None:
    assert broken(python(workspace, RAIDS, str(workspace.store), "3", str(PROCESSES), "0", planted))


@pytest.mark.proof("update")
def test_no_update_of_16_writers_is_lost(workspace: Workspace) -> None:
    each = 200 if WHOLE else 20
    answers = python(workspace, UPDATES, str(workspace.store), "16", str(each))
    record = workspace.record()
    wanted = {f"{'step' if turn % 2 else 'note'}-{writer}-{turn}" for writer in range(16) for turn in range(each)}
    found = [step["name"] for step in record["steps"]] + [note["text"] for note in record["notes"]]
    tried("update", len(wanted), len(wanted - set(found)))
    assert answers == [[]] * 17
    assert sorted(found) == sorted(wanted)
    assert record["revision"] == len(wanted) + 1
    assert Checkpoints(workspace.store).verify().findings == ()
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
        assert json.loads(err.splitlines()[-1])["error"]["name"] == "Locked"
        assert answer["lease"]["owner"] in json.loads(err.splitlines()[-1])["error"]["message"]
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


def report(what: str, seconds: Sequence[float]) -> None:
    """Said, not judged: a loaded machine is slow."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    tried("hand-over", len(seconds), figure=f"{what}: p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s of {len(seconds)}")


def dies(workspace: Workspace, id: str, after_s: float) -> tuple[subprocess.Popen[bytes], Callable[[], float]]:
    """An owner of a fresh run, and what kills it after some seconds and gives the moment."""
    running = subprocess.Popen([need_program("sleep"), "300"])
    Checkpoints(workspace.store, owner=owner("tester", pid=running.pid)).start(id, ["build"])

    def kill() -> float:
        time.sleep(after_s)
        moment = time.monotonic()
        running.kill()
        running.wait()
        return moment

    return running, kill


@pytest.mark.proof("hand-over")
def test_a_waiting_heir_has_it_soon_after_the_owner_died(workspace: Workspace) -> None:
    lot = random.Random(1)
    seconds = []
    heir = subprocess.Popen(
        [sys.executable, "-c", HEIR, str(workspace.store)],
        env=workspace.environ({"PYTHONPATH": str(ROOT)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert heir.stdin is not None
    assert heir.stdout is not None
    with heir:
        for number in range(100 if WHOLE else 5):
            running, kill = dies(workspace, f"w{number}", 0.15 + lot.random() * 0.1)
            with running:
                heir.stdin.write(b"w%d\n" % number)
                heir.stdin.flush()
                died = kill()
                assert heir.stdout.readline() == b"2\n"
                seconds.append(time.monotonic() - died)
        heir.stdin.close()
    assert heir.returncode == 0
    report("waiting in Python", seconds)
    assert max(seconds) < 10


@pytest.mark.proof("hand-over")
def test_resume_wait_has_it_soon_after_the_owner_died(workspace: Workspace) -> None:
    lot = random.Random(2)
    seconds = []
    for number in range(100 if WHOLE else 5):
        running, kill = dies(workspace, f"w{number}", 0.6 + lot.random() * 0.2)
        command = [TOOL, "resume", f"w{number}", "--wait", "30s", "--json", "--owner", "heir"]
        with running, subprocess.Popen(command, cwd=workspace.path, env=workspace.environ(), stdout=subprocess.PIPE) as waiting:
            died = kill()
            assert waiting.stdout is not None
            answer = waiting.stdout.readline()
            seconds.append(time.monotonic() - died)
        assert waiting.returncode == 0
        assert json.loads(answer)["token"] == 2
    report("resume --wait", seconds)
    assert max(seconds) < 10
