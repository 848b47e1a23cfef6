"""The last run of a workflow of ``exec`` that went wrong stays in sight; a step that begins again and again is a loop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sweep
from conftest import SELFCHECK, TOOL, Result, Workspace
from proof import WHOLE, tried
from records import at, run
from test_selfcheck import CRITICAL, DAY, OK, WARNING, edit, parsed, put, sealed, stamp

from checkpoint import model
from checkpoint.api import Checkpoints, owner
from checkpoint.model import Checkpoint, Outcome
from checkpoint.store import open_store

BAD = ("sh", "-c", "echo first; echo boom; exit 3")


def night(workspace: Workspace, *command: str, options: tuple[str, ...] = (), name: str = "nightly") -> Result:
    return workspace.tool("exec", name, *options, "--", *(command or ("false",)))


def listed(workspace: Workspace, *argv: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in workspace.tool("list", "--json", *argv).out.splitlines()]


def findings(workspace: Workspace, *argv: str) -> list[dict[str, Any]]:
    return list(workspace.selfcheck("--json", *argv).json["findings"])


def mark(workspace: Workspace, name: str = "nightly") -> Path:
    return workspace.store / "failing" / f"{name}.json"


def in_sight(workspace: Workspace) -> bool:
    told = workspace.selfcheck().code != OK
    assert told is bool(listed(workspace))
    return told


def test_a_job_that_fails_every_night_stays_in_sight_until_a_good_run(workspace: Workspace) -> None:
    for nights in (1, 2, 3):
        assert night(workspace, *BAD).code == 3
        (finding,) = findings(workspace)
        assert (finding["id"], finding["reason"], finding["severity"]) == ("nightly", "failed", "WARNING")
        assert "exit status 3" in finding["detail"]
        assert "boom" in finding["detail"]
        assert "first" not in finding["detail"]
        assert (f"{nights} runs in a row" in finding["detail"]) is (nights > 1)
        assert finding["invoked"] is True
        (line,) = listed(workspace)
        assert (line["id"], line["status"], line["run_id"]) == ("nightly", "failed", finding["run_id"])
        assert workspace.tool("list").code == 0
        assert "exit status 3" in workspace.tool("list", "--format", "tsv").err
    output = parsed(workspace.selfcheck())
    assert (output.state, output.performance["unfinished"]["value"]) == ("WARNING", "0")
    assert "1 failed" in output.words
    assert night(workspace, "true").code == 0
    assert not in_sight(workspace)
    assert not mark(workspace).exists()


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (("sleep", "9"), ("--timeout", "1s"), "timed out"),
        (("sh", "-c", "kill -9 $$"), (), "SIGKILL"),
        (("/nowhere/at/all",), (), "failed"),
        (("sh", "-c", "exit 7"), ("--label", "cron"), "exit status 7"),
    ],
)
def test_however_it_went_wrong(workspace: Workspace, command: tuple[str, ...], options: tuple[str, ...], words: str) -> None:
    assert night(workspace, *command, options=options).code != 0
    (finding,) = findings(workspace)
    assert finding["reason"] == "failed"
    assert words in finding["detail"]


def test_it_is_critical_from_the_first_failure_on(workspace: Workspace) -> None:
    night(workspace, *BAD)
    assert workspace.selfcheck("--critical", "1h").code == WARNING
    record = json.loads(mark(workspace).read_text())
    record["failing"]["since"] = stamp(DAY + 60)
    put(mark(workspace), sealed(record))
    assert workspace.selfcheck().code == CRITICAL
    # Each night replaces the run, and must not make the trouble young again.
    night(workspace, *BAD)
    assert workspace.selfcheck().code == CRITICAL
    night(workspace, "true")
    night(workspace, *BAD)
    assert workspace.selfcheck().code == WARNING


def test_while_the_next_run_is_under_way_it_stays(workspace: Workspace) -> None:
    night(workspace, *BAD)
    with subprocess.Popen([TOOL, "exec", "nightly", "--", "sleep", "30"], cwd=workspace.path) as running:
        wait_for(workspace.file("nightly"))
        try:
            assert [one["reason"] for one in findings(workspace)] == ["failed"]
            assert {one["status"] for one in listed(workspace)} == {"failed", "in_progress"}
        finally:
            running.send_signal(signal.SIGTERM)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def killed_night(workspace: Workspace, *options: str) -> None:
    """A run whose process and guard are gone, as after a power cut."""
    code = "import os, signal, sys; from checkpoint import Checkpoints; from checkpoint.api import EXEC_STEP;"
    code += "c = Checkpoints('memory/checkpoints'); c.invoke('nightly', key=(sys.argv[1:] or [None])[0]);"
    code += "os.kill(os.getpid(), signal.SIGKILL)"
    assert workspace.run(sys.executable, "-c", code, *options).code == -9


def test_a_killed_job_is_told_at_once_and_stays_one_incident(workspace: Workspace) -> None:
    channel = ("--notify", "log:notices")
    killed_night(workspace)
    (finding,) = findings(workspace)
    assert (finding["id"], finding["reason"], finding["severity"]) == ("nightly", "abandoned", "WARNING")
    assert "interrupted" in finding["detail"]
    workspace.selfcheck(*channel)
    night(workspace, *BAD)
    workspace.selfcheck(*channel)
    killed_night(workspace)
    workspace.selfcheck(*channel)
    notices = [json.loads(line) for line in (workspace.path / "notices").read_text().splitlines()]
    events = [change["event"] for notice in notices for change in notice["changes"]]
    assert events[0] == "opened"
    assert events.count("opened") == 1
    assert "resolved" not in events
    assert len(findings(workspace)) == 1


def test_with_a_key_it_is_in_sight_without_waiting(workspace: Workspace) -> None:
    night(workspace, *BAD, options=("--key", "2026-11-28"))
    (finding,) = findings(workspace)
    assert finding["reason"] == "failed"
    assert "boom" in finding["detail"]
    assert len(listed(workspace)) == 1
    night(workspace, "true", options=("--key", "other"))
    assert len(findings(workspace)) == 1, "another key is other work"
    night(workspace, *BAD, options=("--key", "2026-11-28"))
    assert len(findings(workspace)) == 1
    # Given up for good by a person, who has seen it.
    assert workspace.tool("cancel", finding["id"], "--reason", "not wanted").code == 0
    assert not in_sight(workspace)


def test_an_ack_takes_it_out_of_sight_until_the_next_one_fails(workspace: Workspace) -> None:
    night(workspace, *BAD)
    assert workspace.selfcheck("ack", "other").code == 3
    done = workspace.selfcheck("ack", "nightly")
    assert done.code == 0, done
    assert not in_sight(workspace)
    assert workspace.tool("status", "nightly").code == 33
    assert [one["status"] for one in listed(workspace, "--all")] == ["failed"]
    assert workspace.selfcheck("ack", "nightly").code == 3, "there is nothing left to be seen"
    assert workspace.selfcheck("unquiet", "nightly").code == 0
    assert in_sight(workspace)
    assert workspace.selfcheck("ack", "nightly", "--by", "ann", "--reason", "disk is full").code == 0
    seen = json.loads(mark(workspace).read_text())["failing"]["acknowledged"]
    assert (seen["by"], seen["reason"]) == ("ann", "disk is full")
    night(workspace, *BAD)
    assert in_sight(workspace)


@pytest.mark.parametrize("before", [[], ["false"]], ids=["the first", "after one that failed"])
def test_an_ack_takes_the_last_run_though_it_was_killed(workspace: Workspace, before: list[str]) -> None:
    for command in before:
        night(workspace, command)
    workspace.tool("exec", "nightly", "--", "sh", "-c", "kill -9 $PPID")
    deadline = time.monotonic() + 10
    while workspace.tool("status", "nightly").code != 31:
        assert time.monotonic() < deadline
    assert workspace.selfcheck().code == 1
    done = workspace.selfcheck("ack", "nightly")
    assert done.code == 0, done
    assert workspace.selfcheck().code == 0
    assert workspace.tool("list").out == ""
    (last, *_) = listed(workspace, "--all")[::-1]
    assert last["run_id"] in done.err
    night(workspace, "false")
    assert workspace.selfcheck().code == 1


def test_an_ack_leaves_a_run_with_a_key_and_one_that_lives(workspace: Workspace) -> None:
    workspace.tool("exec", "nightly", "--key", "k", "--", "sh", "-c", "kill -9 $PPID")
    workspace.selfcheck("ack", "nightly")
    assert [one["status"] for one in listed(workspace)] == ["in_progress"]
    assert workspace.tool("exec", "nightly", "--key", "k", "--", "sh", "-c", "kill -9 $PPID").code != 0


def test_an_ack_is_no_news(workspace: Workspace) -> None:
    channel = ("--notify", "log:notices")
    night(workspace, *BAD)
    assert workspace.selfcheck(*channel).code == WARNING
    assert workspace.selfcheck("ack", "nightly").code == 0
    assert workspace.selfcheck(*channel).code == OK
    assert len((workspace.path / "notices").read_text().splitlines()) == 1
    assert workspace.selfcheck("incidents").out == "no incident is open\n"


def test_prune_keeps_what_is_in_sight(workspace: Workspace) -> None:
    night(workspace, *BAD)
    (line,) = listed(workspace)
    assert workspace.tool("prune", "--keep", "0", "--apply").code == 0
    assert workspace.tool("show", line["run_id"]).code == 0
    workspace.selfcheck("ack", "nightly")
    assert workspace.tool("prune", "--keep", "0", "--apply").code == 0
    assert workspace.tool("show", line["run_id"]).code == 10
    assert not in_sight(workspace)


def test_pin_and_resume_leave_it_alone(workspace: Workspace) -> None:
    night(workspace, *BAD)
    assert workspace.tool("pin", "nightly").code == 0
    assert workspace.tool("resume").code == 3
    assert in_sight(workspace)
    assert workspace.tool("cancel", "nightly", "--reason", "x").code == 15
    assert in_sight(workspace)


def test_a_script_of_the_same_name_is_no_run_of_exec(workspace: Workspace) -> None:
    assert workspace.tool("start", "deploy", "--steps", "a").code == 0
    assert workspace.tool("fail", "deploy", "--reason", "a person saw it").code == 0
    assert not in_sight(workspace)


def test_damaged_it_is_a_finding_and_the_next_run_replaces_it(workspace: Workspace) -> None:
    night(workspace, *BAD)
    whole = mark(workspace).read_bytes()
    for bad in (b"{", whole.replace(b"boom", b"doom"), b"", b"\xff", whole.replace(b'"since"', b'"sinse"')):
        put(mark(workspace), bad)
        assert [one["reason"] for one in findings(workspace)] == ["damaged"]
        assert workspace.tool("list").code == 0
        assert night(workspace, *BAD).code == 3
        assert [one["reason"] for one in findings(workspace)] == ["failed"]
    put(mark(workspace), b"{")
    assert night(workspace, "true").code == 0
    assert not in_sight(workspace)


def test_the_cost_does_not_grow_with_the_history(workspace: Workspace) -> None:
    for _ in range(3):
        night(workspace, *BAD)
    calls = workspace.run("strace", "-f", "-qq", "-e", "trace=openat", "-o", "trace", SELFCHECK)
    assert calls.code == WARNING, calls
    trace = (workspace.path / "trace").read_text()
    assert '"failing"' in trace
    assert '"done"' not in trace
    assert "done/" not in trace


# --- overlapping runs, and the order ------------------------------------------------------------------------------------


def ended(number: int, good: bool, *, id: str = "nightly", day: float | None = None, **more: Any) -> Checkpoint:
    """The ``number``-th run, by its token and, unless ``day`` says otherwise, by its date."""
    began = at(3600 * (number if day is None else day))
    made = run("command", id=id, workflow="nightly", run_id=f"019cab00-0000-7000-8000-{number:012}", now=began)
    status = model.Status.COMPLETED if good else model.Status.FAILED
    made = made._replace(invoked=True, token=number, status=status, finished_at=began, lease=None)
    return made._replace(**more)


NOW = at(10 * 86400)
OTHER = "nightly-0123456789ab"


def after(*runs: Checkpoint) -> Checkpoint | None:
    found: Checkpoint | None = None
    for one in runs:
        found = model.failing_after(found, one, NOW)
    return found


def test_an_older_run_that_ends_well_after_a_newer_one_failed_does_not_clear_it() -> None:
    for id in ("nightly", OTHER):
        assert after(ended(2, False), ended(1, True, id=id)) is not None
        assert after(ended(2, False, id=id), ended(1, True)) is not None
        assert after(ended(1, False), ended(2, True, id=id)) is None
        assert after(ended(1, False, id=id), ended(2, True)) is None
    newest = after(ended(3, False), ended(2, False))
    assert newest is not None
    assert newest.token == 3


def test_a_clock_that_was_wrong_once_does_not_decide() -> None:
    # Of one id the token decides, whatever the dates say.
    assert after(ended(1, False, day=9000), ended(2, True, day=2)) is None
    assert after(ended(1, False, day=2), ended(2, True, day=-9000)) is None
    # Of two ids a date in the future is the oldest.
    assert after(ended(1, False, day=9000), ended(2, True, id=OTHER)) is None


def test_cancelled_and_keyed_runs_say_nothing() -> None:
    failing = ended(1, False)
    cancelled = ended(2, False, status=model.Status.CANCELLED)
    assert model.failing_after(None, cancelled, NOW) is None
    assert after(failing, cancelled) is not None
    assert model.failing_after(None, ended(2, False, idempotency_key="k"), NOW) is None
    assert model.failing_after(None, ended(2, False, invoked=False), NOW) is None
    assert after(failing, ended(2, True, idempotency_key="k", id=OTHER)) is None


def test_overlapping_runs(workspace: Workspace) -> None:
    first = Checkpoints(workspace.store, owner=owner("a")).invoke("nightly")
    second = Checkpoints(workspace.store, owner=owner("b")).invoke("nightly")
    assert second.id != first.id
    second.end("command", Outcome(exit_code=1), run_too=True)
    first.end("command", Outcome(exit_code=0), run_too=True)
    assert [one["id"] for one in findings(workspace)] == ["nightly"]
    night(workspace, "true")
    assert not in_sight(workspace)


# --- killed at any call -------------------------------------------------------------------------------------------------


@pytest.mark.proof("kill")
@pytest.mark.parametrize("verb", ["end-bad", "end-well"])
def test_killed_at_any_call_of_its_end(verb: str, tmp_path: Path) -> None:
    """Bad: from its first durable word on it is in sight, whatever is killed. Well: it is gone with the next look."""
    place, template = tmp_path / "run", tmp_path / "template"
    store = template / "memory" / "checkpoints"
    template.mkdir()
    if verb == "end-well":
        for before in ("invoke", "end-bad"):
            assert sweep.run(sweep.lean(before, store), template).code == 0
    assert sweep.run(sweep.lean("invoke", store), template).code == 0
    store = sweep.copy(template, place)
    argv = sweep.lean(verb, store)
    sweep.run(argv, place, compile=True)
    sweep.copy(template, place)
    done, calls = sweep.record(argv, place)
    assert done.code == 0, done
    names = sweep.WRITE_SIDE - ({"close"} if WHOLE else {"close", "openat", "flock", "write", "pwrite64", "fchmod"})
    points = [point for point in sweep.points(calls, place) if point.name in names]
    assert len(points) > 10
    problems = []
    for point in points:
        sweep.copy(template, place)
        died = sweep.killed_at(point, argv, place)
        found = [entry for entry in open_store(store).scan(failing=True) if entry.place != "nightly.json"]
        ends = [entry.checkpoint for entry in open_store(store).scan(failing=True) if entry.checkpoint]
        if [entry for entry in open_store(store).scan(failing=True) if entry.error]:
            problems.append(f"{point}: an error")
        if verb == "end-bad" and not ends:
            problems.append(f"{point}: out of sight")
        if verb == "end-well" and died.out and found:
            problems.append(f"{point}: answered, and still in sight")
        # The next run converges: it moves what was left, and decides alone.
        assert os.access(store, os.W_OK)
        for good in (False, True):
            following = Checkpoints(store).invoke("nightly")
            following.end("command", Outcome(exit_code=0 if good else 1), run_too=True)
            seen = [entry.checkpoint for entry in open_store(store).scan(failing=True)]
            if bool(seen) is good:
                problems.append(f"{point}: after a {'good' if good else 'bad'} run {len(seen)} in sight")
        if sweep.temporaries(store):
            problems.append(f"{point}: left {sweep.temporaries(store)}")
    tried("kill", len(points), len(problems))
    assert problems == []


# --- loops --------------------------------------------------------------------------------------------------------------

BEGIN = f"'{TOOL}' start deploy --steps a,b --owner-pid $$ >/dev/null 2>&1; '{TOOL}' update deploy --begin a"


def begin_and_die(workspace: Workspace) -> None:
    workspace.run("bash", "-c", f"{BEGIN} >/dev/null 2>&1; kill -9 $$")


def test_a_crash_loop_is_told_at_once(workspace: Workspace) -> None:
    for rounds in (1, 2, 3):
        begin_and_die(workspace)
        assert workspace.selfcheck().code == (WARNING if rounds == 3 else OK), rounds
    (finding,) = findings(workspace)
    assert (finding["id"], finding["reason"]) == ("deploy", "looping")
    begin_and_die(workspace)
    assert "4 claims" in findings(workspace)[0]["detail"]
    edit(workspace, lambda record: record.update(created_at=stamp(DAY + 60)))
    assert workspace.selfcheck().code == CRITICAL
    assert workspace.tool("update", "deploy", "--complete", "a").code == 0
    assert workspace.selfcheck().code == OK


def test_an_ack_of_a_loop_holds_through_its_rounds(workspace: Workspace) -> None:
    channel = ("--notify", "log:notices")
    for _ in range(3):
        begin_and_die(workspace)
    workspace.selfcheck(*channel)
    assert workspace.selfcheck("ack", "deploy").code == 0
    for _ in range(2):
        begin_and_die(workspace)
        workspace.selfcheck(*channel)
    assert len((workspace.path / "notices").read_text().splitlines()) == 1


def test_retries_under_one_claim_are_no_loop(workspace: Workspace) -> None:
    workspace.tool("start", "deploy", "--steps", "a,b")
    assert workspace.tool("run", "deploy", "a", "--retries", "4", "--backoff", "1s", "--", "false", timeout=60).code == 1
    assert workspace.record("deploy")["steps"][0]["attempts"] == 5
    assert workspace.selfcheck().code == OK


def test_a_script_that_fails_at_the_same_step_three_times_is_a_loop(workspace: Workspace) -> None:
    script = f"{BEGIN} >/dev/null 2>&1; '{TOOL}' update deploy --fail a --error full >/dev/null 2>&1"
    for rounds in (1, 2, 3):
        workspace.run("bash", "-c", script)
        assert (workspace.selfcheck().code == WARNING) is (rounds == 3)
    assert "last: full" in findings(workspace)[0]["detail"]
