"""The verbs of checkpoint-tool as a user meets them: real processes, exit codes, files on disk."""

import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TOOL, Result, Workspace

from checkpoint import Checkpoints
from checkpoint.errors import StoreUnavailable, Usage

TERMINAL = [("complete", "completed"), ("fail", "failed"), ("cancel", "cancelled")]
FULL = Path("/dev/full")


def ok(workspace: Workspace, *argv: str, **more: Any) -> Result:
    result = workspace.tool(*argv, **more)
    assert result.code == 0, result
    return result


def record(workspace: Workspace, *argv: str, **more: Any) -> Any:
    """What a verb prints with --json."""
    return ok(workspace, *argv, "--json", **more).json


def refused(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.err.startswith("checkpoint-tool: "), result
    assert result.err.count("\n") == 1, result
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, result


def seal(content: dict[str, Any]) -> str:
    """The digest as anyone can compute it: jq -cS 'del(.digest)' | sha256sum."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def alter(path: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Change a record on disk as another version of the program would: with a digest that is right."""
    content = json.loads(path.read_text())
    change(content)
    content["digest"] = seal(content)
    path.write_text(json.dumps(content, sort_keys=True, ensure_ascii=False))
    return content


def steps(content: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in content["steps"]}


def finish(workspace: Workspace, workflow: str = "deploy", *argv: str) -> Any:
    begun = record(workspace, "start", workflow, *argv)
    return record(workspace, "complete", begun["id"], "--force", "--reason", "done enough")


@pytest.fixture
def process() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Processes that own runs; whatever a test leaves alive is ended here."""
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"]))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.wait()


# start


def test_start_creates_a_record_that_a_person_can_read(workspace: Workspace) -> None:
    result = ok(workspace, "start", "deploy", "--steps", "build,ship")
    assert "deploy" in result.out
    assert "build" in result.out
    content = workspace.record()
    assert content["schema"] == "checkpoint/v1"
    assert (content["id"], content["workflow"], content["status"]) == ("deploy", "deploy", "in_progress")
    assert (content["token"], content["attempts"]) == (1, 1)
    assert steps(content) == {"build": "pending", "ship": "pending"}
    assert content["digest"] == seal(content)
    text = workspace.file().read_text()
    assert text.endswith("\n")
    # One step a line, for diff and for eyes.
    assert sum('"name":"' in line for line in text.splitlines()) == 2


def test_start_json_holds_the_record_and_what_comes_next(workspace: Workspace) -> None:
    printed = record(workspace, "start", "deploy", "--steps", "build,ship")
    assert printed["created"] is True
    assert printed["next"] == "build"
    assert printed["in_doubt"] == []
    assert "owner_state" in printed
    assert printed["lease"]["owner"] == "tester"
    on_disk = workspace.record()
    for name in ("id", "workflow", "run_id", "token", "created_at", "status", "fingerprint", "lease"):
        assert printed[name] == on_disk[name]
    first = printed["steps"][0]
    assert (first["name"], first["status"], first["once"], first["result"]) == ("build", "pending", False, None)
    assert "result" not in on_disk["steps"][0], "defaults are left out on disk"


def test_start_takes_all_its_options(workspace: Workspace) -> None:
    printed = record(
        workspace,
        *("start", "deploy", "--steps", "a", "--agent", "bot", "--handoff", "ops", "--note", "first", "--ttl", "1h30m"),
        *("--stale-after", "1w", "--max-attempts", "3", "--data", '{"n": 1}', "--owner", "me", "--lease", "10m"),
    )
    assert (printed["agent"], printed["handoff_to"]) == ("bot", "ops")
    assert [note["text"] for note in printed["notes"]] == ["first"]
    assert (printed["stale_after_s"], printed["max_attempts"]) == (7 * 86400, 3)
    assert printed["data"] == {"n": 1}
    assert printed["lease"]["owner"] == "me"
    assert printed["lease"]["expires_at"] is not None
    assert printed["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n", [("a", False), ("b", False)]),
        ("a\nb", [("a", False), ("b", False)]),
        ('["a", {"name": "b", "once": true}]', [("a", False), ("b", True)]),
    ],
)
def test_plan_file(workspace: Workspace, text: str, expected: list[tuple[str, bool]]) -> None:
    (workspace.path / "plan").write_text(text)
    printed = record(workspace, "start", "deploy", "--plan", "plan")
    assert [(step["name"], step["once"]) for step in printed["steps"]] == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604800), ("1h30m", 5400), ("1w", 604800)]
)
def test_durations(workspace: Workspace, text: str, seconds: int) -> None:
    assert record(workspace, "start", "deploy", "--stale-after", text)["stale_after_s"] == seconds


def test_start_again_by_the_same_owner_is_the_same_run(workspace: Workspace) -> None:
    first = record(workspace, "start", "deploy", "--steps", "a,b")
    second = record(workspace, "start", "deploy", "--steps", "a,b")
    assert second["created"] is False
    assert (second["run_id"], second["token"], second["attempts"]) == (first["run_id"], 1, 1)


def test_same_key_and_input_after_the_end_gives_the_receipt(workspace: Workspace) -> None:
    (workspace.path / "input").write_text("one")
    argv = ("start", "deploy", "--key", "v1", "--steps", "a", "--input", "input")
    begun = record(workspace, *argv)
    assert begun["id"] != "deploy"
    assert begun["id"].startswith("deploy-")
    assert begun["id"] == "deploy-" + hashlib.sha256(b"v1").hexdigest()[:12]
    ok(workspace, "update", begun["id"], "--begin", "a")
    ok(workspace, "update", begun["id"], "--complete", "a", "--result", '{"url": "x"}')
    ok(workspace, "complete", begun["id"])
    before = workspace.snapshot()
    for _ in range(2):
        receipt = record(workspace, *argv)
        assert (receipt["created"], receipt["status"], receipt["run_id"]) == (False, "completed", begun["run_id"])
        assert receipt["steps"][0]["result"] == {"url": "x"}
    assert workspace.snapshot() == before
    assert (workspace.store / "done" / f"{begun['id']}.json").is_file()
    assert not workspace.file(begun["id"]).exists()


def test_another_key_is_another_run(workspace: Workspace) -> None:
    assert record(workspace, "start", "deploy", "--key", "a")["id"] != record(workspace, "start", "deploy", "--key", "b")["id"]


@pytest.mark.parametrize("finished", [False, True])
def test_same_key_other_plan_is_a_conflict_that_names_the_steps(workspace: Workspace, finished: bool) -> None:
    begun = record(workspace, "start", "deploy", "--key", "v1", "--steps", "build,test,ship")
    if finished:
        ok(workspace, "complete", begun["id"], "--force", "--reason", "x")
    before = workspace.snapshot()
    result = workspace.tool("start", "deploy", "--key", "v1", "--steps", "build,lint,ship")
    refused(result, 14, "'test'", "'lint'")
    assert "'build'" not in result.err, "what is the same is not named"
    assert workspace.snapshot() == before


def test_same_key_other_input_is_a_conflict(workspace: Workspace) -> None:
    (workspace.path / "input").write_text("one")
    ok(workspace, "start", "deploy", "--key", "v1", "--steps", "a", "--input", "input")
    (workspace.path / "input").write_text("two")
    refused(workspace.tool("start", "deploy", "--key", "v1", "--steps", "a", "--input", "input"), 14, "input")


def test_changed_plan_without_key_is_a_conflict(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b")
    refused(workspace.tool("start", "deploy", "--steps", "b,a"), 14)


def test_replan_keeps_what_is_completed(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b,c")
    ok(workspace, "update", "deploy", "--complete", "a", "--result", "7")
    printed = record(workspace, "start", "deploy", "--steps", "x,a,c", "--replan")
    assert [step["name"] for step in printed["steps"]] == ["x", "a", "c"]
    assert steps(printed) == {"x": "pending", "a": "completed", "c": "pending"}
    assert printed["steps"][1]["result"] == 7
    assert printed["next"] == "x"
    assert record(workspace, "start", "deploy", "--steps", "x,a,c")["created"] is False


@pytest.mark.parametrize(("verb", "status"), TERMINAL[1:])
def test_same_key_after_failure_is_refused(workspace: Workspace, verb: str, status: str) -> None:
    id = record(workspace, "start", "deploy", "--key", "v1", "--steps", "a")["id"]
    ok(workspace, verb, id, "--reason", "because")
    before = workspace.snapshot()
    refused(workspace.tool("start", "deploy", "--key", "v1", "--steps", "a"), 15, status)
    assert workspace.snapshot() == before


def test_new_run_after_the_end_has_a_higher_token(workspace: Workspace) -> None:
    old = finish(workspace)
    new = record(workspace, "start", "deploy")
    assert new["created"] is True
    assert new["run_id"] > old["run_id"], "run ids sort by time"
    assert new["token"] > old["token"]
    refused(workspace.tool("update", "deploy", "--note", "x", "--token", str(old["token"])), 19)


# ownership


def test_dead_owner_is_succeeded(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]) -> None:
    owner = process()
    argv = ("start", "deploy", "--steps", "a,b", "--owner", "script", "--owner-pid", str(owner.pid))
    begun = record(workspace, *argv)
    assert begun["owner_state"] == "alive"
    assert begun["lease"]["pid"] == owner.pid
    assert begun["lease"]["expires_at"] is None
    ok(workspace, "update", "deploy", "--complete", "a", "--owner", "script")
    owner.kill()
    # Not waited for yet: a zombie is dead, too.
    assert record(workspace, "show", "deploy")["owner_state"] == "dead"
    owner.wait()
    assert record(workspace, "show", "deploy")["owner_state"] == "dead"
    again = record(workspace, "start", "deploy", "--steps", "a,b", "--owner-pid", str(process().pid))
    assert (again["created"], again["attempts"], again["token"], again["next"]) == (False, 2, 2, "b")
    assert again["run_id"] == begun["run_id"]
    refused(workspace.tool("update", "deploy", "--complete", "b", "--token", "1"), 19, "2")


@pytest.mark.parametrize("verb", [("start", "deploy", "--steps", "a"), ("resume", "deploy")])
def test_live_owner_is_named(
    workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]], verb: tuple[str, ...]
) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice", "--owner-pid", str(process().pid))
    before = workspace.snapshot()
    refused(workspace.tool(*verb, "--owner", "bob"), 11, "alice", "since")
    assert workspace.snapshot() == before


def test_lease_by_time_holds_and_ends(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice", "--lease", "1s")
    refused(workspace.tool("resume", "deploy", "--owner", "bob"), 11, "alice", "until")
    time.sleep(1.1)
    taken = record(workspace, "resume", "deploy", "--owner", "bob")
    assert (taken["lease"]["owner"], taken["token"], taken["attempts"]) == ("bob", 2, 2)


def test_each_write_renews_the_lease(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")

    def expiry() -> str:
        return str(workspace.record()["lease"]["expires_at"])

    for argv in (("update", "deploy", "--note", "x"), ("heartbeat", "deploy")):
        before = expiry()
        time.sleep(0.01)
        ok(workspace, *argv)
        assert expiry() > before


@pytest.mark.parametrize(
    "argv",
    [
        ("update", "deploy", "--begin", "a"),
        ("update", "deploy", "--complete", "a"),
        ("update", "deploy", "--note", "x"),
        ("heartbeat", "deploy"),
        ("release", "deploy"),
        ("complete", "deploy", "--force", "--reason", "x"),
        ("fail", "deploy", "--reason", "x"),
        ("cancel", "deploy", "--reason", "x"),
    ],
    ids=" ".join,
)
def test_only_the_owner_writes_without_a_token(workspace: Workspace, argv: tuple[str, ...]) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice", "--lease", "1h")
    before = workspace.snapshot()
    result = workspace.tool(*argv, "--owner", "bob")
    assert result.code in (11, 19), result
    refused(result, result.code, "alice" if result.code == 11 else "token")
    assert workspace.snapshot() == before


def test_only_the_owner_writes_while_its_process_lives(
    workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice", "--owner-pid", str(process().pid))
    before = workspace.snapshot()
    refused(workspace.tool("update", "deploy", "--complete", "a", "--owner", "bob"), 11, "alice")
    assert workspace.snapshot() == before


def test_the_token_lets_anyone_write(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b", "--owner", "alice")
    ok(workspace, "update", "deploy", "--complete", "a", "--owner", "bob", "--token", "1")
    ok(workspace, "update", "deploy", "--complete", "b", "--owner", "bob", env={"CHECKPOINT_TOKEN": "1"})
    assert steps(workspace.record()) == {"a": "completed", "b": "completed"}


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"CHECKPOINT_TOKEN": "9"}, 19),
        ({"CHECKPOINT_TOKEN": "9", "CHECKPOINT_ID": "deploy"}, 19),
        ({"CHECKPOINT_TOKEN": "9", "CHECKPOINT_ID": "another"}, 0),
    ],
)
def test_token_of_the_environment_counts_for_its_own_id(workspace: Workspace, env: dict[str, str], code: int) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    assert workspace.tool("update", "deploy", "--note", "x", env=env).code == code


def test_steal(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice")
    before = workspace.snapshot()
    refused(workspace.tool("resume", "deploy", "--owner", "bob", "--steal"), 2, "--reason")
    assert workspace.snapshot() == before
    taken = record(workspace, "resume", "deploy", "--owner", "bob", "--steal", "--reason", "alice is on holiday")
    assert (taken["token"], taken["lease"]["owner"]) == (2, "bob")
    assert "alice is on holiday" in workspace.file().read_text()
    assert "alice is on holiday" in ok(workspace, "show", "deploy").out
    before = workspace.snapshot()
    refused(workspace.tool("update", "deploy", "--complete", "a", "--owner", "alice", "--token", "1"), 19)
    assert workspace.snapshot() == before
    ok(workspace, "update", "deploy", "--complete", "a", "--token", "2")


@pytest.mark.parametrize("verb", ["update", "heartbeat", "release", "complete", "fail", "cancel"])
def test_every_writing_verb_refuses_an_old_token(workspace: Workspace, verb: str) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice")
    ok(workspace, "resume", "deploy", "--owner", "bob", "--steal", "--reason", "x")
    before = workspace.snapshot()
    more = {"complete": ("--force", "--reason", "x"), "fail": ("--reason", "x"), "cancel": ("--reason", "x")}.get(verb, ())
    refused(workspace.tool(verb, "deploy", "--token", "1", *more), 19, "token 1")
    assert workspace.snapshot() == before


def test_resume_is_reentrant_for_its_owner(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "release", "deploy")
    first = record(workspace, "resume", "deploy")
    second = record(workspace, "resume", "deploy")
    assert first["token"] == second["token"] == 2
    assert first["attempts"] == second["attempts"]
    assert second["created"] is False


def test_resume_by_another_process_of_the_same_name_is_refused(
    workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    # Two copies of one script share the owner's name: only the pid tells them apart.
    ok(workspace, "start", "deploy", "--steps", "a", "--owner-pid", str(process().pid))
    for verb in (("resume", "deploy"), ("start", "deploy", "--steps", "a")):
        refused(workspace.tool(*verb, "--owner-pid", str(process().pid)), 11)


def test_resume_takes_the_oldest_that_is_free(workspace: Workspace) -> None:
    for name in ("zeta", "held", "alpha"):
        ok(workspace, "start", name, "--steps", "a")
    ok(workspace, "release", "zeta")
    ok(workspace, "release", "alpha")
    # "zeta" is the older of the two that are free.
    assert record(workspace, "resume", "--owner", "bob")["id"] == "zeta"
    assert record(workspace, "resume", "--owner", "carol")["id"] == "alpha"
    refused(workspace.tool("resume", "--owner", "dave"), 3)


def test_nothing_to_resume(workspace: Workspace) -> None:
    refused(workspace.tool("resume"), 3)
    assert workspace.snapshot() == {}, "asking makes no store"
    finish(workspace)
    refused(workspace.tool("resume"), 3)
    result = workspace.tool("resume", "--json")
    assert (result.code, result.out) == (3, "")
    assert json.loads(result.err)["error"]["code"] == 3


def test_wait_ends_when_the_owner_dies(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]) -> None:
    owner = process()
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice", "--owner-pid", str(owner.pid))
    waiting = subprocess.Popen(
        [TOOL, "resume", "deploy", "--owner", "bob", "--wait", "30s", "--json"],
        cwd=workspace.path,
        env=workspace.environ(),
        stdout=subprocess.PIPE,
    )
    time.sleep(0.4)
    assert waiting.poll() is None
    owner.kill()
    owner.wait()
    out, _ = waiting.communicate(timeout=20)
    assert waiting.returncode == 0
    assert json.loads(out)["lease"]["owner"] == "bob"


def test_wait_ends_when_the_owner_releases(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice")
    waiting = subprocess.Popen(
        [TOOL, "resume", "deploy", "--owner", "bob", "--wait", "30s"],
        cwd=workspace.path,
        env=workspace.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.4)
    assert waiting.poll() is None
    ok(workspace, "release", "deploy", "--owner", "alice")
    assert waiting.wait(timeout=20) == 0
    assert workspace.record()["lease"]["owner"] == "bob"


def test_wait_times_out(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice")
    began = time.monotonic()
    refused(workspace.tool("resume", "deploy", "--owner", "bob", "--wait", "1s"), 11, "alice")
    assert 0.9 < time.monotonic() - began < 20


def test_release_frees_at_once(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--owner", "alice")
    printed = record(workspace, "release", "deploy", "--owner", "alice")
    assert (printed["lease"], printed["status"]) == (None, "in_progress")
    assert record(workspace, "resume", "deploy", "--owner", "bob")["token"] == 2


def test_heartbeat_is_no_progress(workspace: Workspace) -> None:
    before = record(workspace, "start", "deploy", "--steps", "a")
    time.sleep(0.01)
    after = record(workspace, "heartbeat", "deploy")
    assert after["heartbeat_at"] > before["heartbeat_at"]
    assert after["progress_at"] == before["progress_at"]


def test_attempts_are_counted_and_end(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]) -> None:
    for attempt in (1, 2):
        owner = process()
        argv = ("start", "deploy", "--steps", "a", "--max-attempts", "2", "--owner-pid", str(owner.pid))
        assert record(workspace, *argv)["attempts"] == attempt
        owner.kill()
        owner.wait()
    before = workspace.snapshot()
    refused(workspace.tool("start", "deploy", "--steps", "a", "--max-attempts", "2"), 21, "2")
    refused(workspace.tool("resume", "deploy"), 21)
    assert workspace.snapshot() == before


def test_expired_run_is_not_gone_on_with_by_itself(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b", "--ttl", "1h")
    ok(workspace, "update", "deploy", "--complete", "a")
    ok(workspace, "release", "deploy")
    alter(workspace.file(), lambda content: content.update(expires_at="2020-01-01T00:00:00.000Z"))
    before = workspace.snapshot()
    refused(workspace.tool("resume", "deploy"), 15, "expired")
    refused(workspace.tool("start", "deploy", "--steps", "a,b"), 15, "expired", "--replan")
    refused(workspace.tool("resume"), 3)
    assert workspace.snapshot() == before
    again = record(workspace, "start", "deploy", "--steps", "a,b", "--replan")
    assert steps(again) == {"a": "completed", "b": "pending"}
    assert again["next"] == "b"
    ok(workspace, "resume", "deploy")


def test_expired_run_can_be_closed(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--ttl", "1h")
    alter(workspace.file(), lambda content: content.update(expires_at="2020-01-01T00:00:00.000Z"))
    ok(workspace, "cancel", "deploy", "--reason", "expired")


# update


def test_a_step_begins_and_ends(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b")
    printed = record(workspace, "update", "deploy", "--begin", "a")
    assert (printed["steps"][0]["status"], printed["steps"][0]["attempts"]) == ("begun", 1)
    assert printed["steps"][0]["begun_at"] is not None
    assert printed["in_doubt"] == [], "its owner lives"
    printed = record(workspace, "update", "deploy", "--complete", "a", "--result", '{"sum": 3}')
    assert (printed["steps"][0]["status"], printed["steps"][0]["result"]) == ("completed", {"sum": 3})
    assert printed["steps"][0]["ended_at"] is not None
    assert printed["next"] == "b"


def test_complete_one_and_begin_the_next(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b,c")
    ok(workspace, "update", "deploy", "--begin", "a")
    revision = workspace.record()["revision"]
    ok(workspace, "update", "deploy", "--complete", "a", "--step", "b", "--note", "half way")
    content = workspace.record()
    assert steps(content) == {"a": "completed", "b": "begun", "c": "pending"}
    assert content["revision"] == revision + 1, "one write"


def test_options_may_be_repeated(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b,c")
    ok(workspace, *("update", "deploy", "--complete", "a", "--complete", "b", "--note", "one", "--note", "two"))
    content = workspace.record()
    assert steps(content) == {"a": "completed", "b": "completed", "c": "pending"}
    assert [note["text"] for note in content["notes"]] == ["one", "two"]
    ok(workspace, "update", "deploy", "--add", "d", "--add", "e")
    assert list(steps(workspace.record())) == ["a", "b", "c", "d", "e"]


def test_all_changes_of_one_call_or_none(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b")
    before = workspace.snapshot()
    assert workspace.tool("update", "deploy", "--complete", "a", "--complete", "nope", "--note", "x").code == 10
    assert workspace.snapshot() == before


def test_completed_twice_is_done(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "update", "deploy", "--complete", "a", "--result", "1")
    first = workspace.record()["steps"]
    ok(workspace, "update", "deploy", "--complete", "a", "--result", "2")
    assert workspace.record()["steps"] == first, "the first result stands"


@pytest.mark.parametrize("change", ["--begin", "--retry", "--fail"])
def test_a_completed_step_is_not_undone(workspace: Workspace, change: str) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "update", "deploy", "--complete", "a")
    before = workspace.snapshot()
    refused(workspace.tool("update", "deploy", change, "a", *(("--error", "x") if change == "--fail" else ())), 15, "'a'")
    assert workspace.snapshot() == before


def test_a_failed_step_may_begin_again(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "update", "deploy", "--begin", "a")
    printed = record(workspace, "update", "deploy", "--fail", "a", "--error", "no route")
    assert (printed["steps"][0]["status"], printed["steps"][0]["error"], printed["next"]) == ("failed", "no route", "a")
    assert printed["status"] == "in_progress"
    printed = record(workspace, "update", "deploy", "--begin", "a")
    assert (printed["steps"][0]["status"], printed["steps"][0]["attempts"]) == ("begun", 2)


def test_skip_wants_a_reason(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b")
    refused(workspace.tool("update", "deploy", "--skip", "a"), 2, "--reason")
    printed = record(workspace, "update", "deploy", "--skip", "a", "--reason", "done by hand")
    assert (printed["steps"][0]["status"], printed["steps"][0]["reason"], printed["next"]) == ("skipped", "done by hand", "b")
    assert steps(record(workspace, "update", "deploy", "--retry", "a"))["a"] == "pending"


def test_declared_plan_refuses_unknown_steps_unless_added(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    before = workspace.snapshot()
    refused(workspace.tool("update", "deploy", "--begin", "b"), 10, "'b'", "--add")
    assert workspace.snapshot() == before
    ok(workspace, "update", "deploy", "--add", "b", "--begin", "b")
    assert steps(workspace.record()) == {"a": "pending", "b": "begun"}
    # Steps added on the way are no drift of the plan.
    assert record(workspace, "start", "deploy", "--steps", "a")["created"] is False


def test_open_plan_grows(workspace: Workspace) -> None:
    assert record(workspace, "start", "deploy")["steps"] == []
    ok(workspace, "update", "deploy", "--begin", "a")
    ok(workspace, "update", "deploy", "--complete", "a", "--step", "b")
    assert steps(workspace.record()) == {"a": "completed", "b": "begun"}
    ok(workspace, "update", "deploy", "--complete", "b")
    ok(workspace, "complete", "deploy")


def test_block_and_unblock(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    printed = record(workspace, "update", "deploy", "--block", "waits for the DNS")
    assert printed["status"] == "blocked"
    assert "waits for the DNS" in ok(workspace, "show", "deploy").out
    assert ok(workspace, "list", "--status", "blocked").out.startswith("deploy\t")
    refused(workspace.tool("update", "deploy", "--begin", "a"), 15, "waits for the DNS", "--unblock")
    assert record(workspace, "update", "deploy", "--unblock")["status"] == "in_progress"
    ok(workspace, "update", "deploy", "--begin", "a")


def test_handoff_is_told_to_who_resumes(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--agent", "main", "--handoff", "ops", "--note", "mind the gap")
    ok(workspace, "release", "deploy")
    result = ok(workspace, "resume", "deploy", "--agent", "ops")
    assert "ops" in result.out
    assert "mind the gap" in result.out
    assert workspace.record()["agent"] == "ops"


# in doubt


def crash_in(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]], *begin: str) -> None:
    """A run whose owner died inside step a."""
    owner = process()
    ok(workspace, "start", "deploy", "--steps", "a,b", "--owner", "script", "--owner-pid", str(owner.pid))
    ok(workspace, "update", "deploy", "--begin", "a", "--owner", "script", *begin)
    owner.kill()
    owner.wait()


def test_in_doubt_is_shown_everywhere(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]) -> None:
    crash_in(workspace, process)
    before = workspace.snapshot()
    assert record(workspace, "show", "deploy")["in_doubt"] == ["a"]
    assert "in doubt" in ok(workspace, "show", "deploy").out
    assert ok(workspace, "list", "--json").lines[0]["in_doubt"] == ["a"]
    # tsv: id, status, done, of, next, in doubt
    assert ok(workspace, "list").out.split("\t")[5] == "a"
    assert workspace.snapshot() == before
    result = ok(workspace, "resume", "deploy")
    assert "in doubt" in result.out
    assert "--retry" in result.out
    assert record(workspace, "resume", "deploy")["in_doubt"] == ["a"]


@pytest.mark.parametrize(("change", "status"), [("--complete", "completed"), ("--retry", "pending")])
@pytest.mark.parametrize("once", [(), ("--once",)])
def test_in_doubt_is_settled(
    workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]], once: tuple[str, ...], change: str, status: str
) -> None:
    crash_in(workspace, process, *once)
    ok(workspace, "resume", "deploy")
    printed = record(workspace, "update", "deploy", change, "a")
    assert printed["in_doubt"] == []
    assert steps(printed)["a"] == status


def test_a_repeatable_step_in_doubt_begins_again(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]) -> None:
    crash_in(workspace, process)
    assert record(workspace, "resume", "deploy")["next"] == "a"
    printed = record(workspace, "update", "deploy", "--begin", "a")
    assert (steps(printed)["a"], printed["steps"][0]["attempts"], printed["in_doubt"]) == ("begun", 2, [])


def test_a_step_that_may_not_be_repeated_is_refused(
    workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]
) -> None:
    crash_in(workspace, process, "--once")
    ok(workspace, "resume", "deploy")
    before = workspace.snapshot()
    refused(workspace.tool("update", "deploy", "--begin", "a"), 20, "'a'", "--retry")
    assert workspace.snapshot() == before
    ok(workspace, "update", "deploy", "--retry", "a")
    ok(workspace, "update", "deploy", "--begin", "a")


def test_once_from_the_plan(workspace: Workspace, process: Callable[[], subprocess.Popen[bytes]]) -> None:
    (workspace.path / "plan").write_text('[{"name": "pay", "once": true}]')
    owner = process()
    ok(workspace, "start", "deploy", "--plan", "plan", "--owner-pid", str(owner.pid))
    ok(workspace, "update", "deploy", "--begin", "pay")
    owner.kill()
    owner.wait()
    ok(workspace, "start", "deploy", "--plan", "plan")
    refused(workspace.tool("update", "deploy", "--begin", "pay"), 20)


# data


def test_data_is_merged(workspace: Workspace) -> None:
    # RFC 7386, section 3, but for the parts that are no object.
    ok(
        workspace,
        "start",
        "deploy",
        "--data",
        '{"title": "x", "author": {"given": "J", "family": "D"}, "tags": [1, 2], "n": 1}',
    )
    ok(
        workspace,
        "update",
        "deploy",
        "--data",
        '{"title": "y", "author": {"family": null}, "tags": [3], "new": {"z": null, "k": 0}}',
    )
    assert workspace.record()["data"] == {"title": "y", "author": {"given": "J"}, "tags": [3], "n": 1, "new": {"k": 0}}


def test_values_from_files_and_stdin(workspace: Workspace) -> None:
    (workspace.path / "data.json").write_text('{"a": "\u00e9"}')
    ok(workspace, "start", "deploy", "--steps", "s", "--data", "@data.json")
    ok(workspace, "update", "deploy", "--data", "-", input='{"b": 2}')
    ok(workspace, "update", "deploy", "--note", "@@x", "--note", "@data.json")
    ok(workspace, "update", "deploy", "--complete", "s", "--result", "@data.json")
    content = workspace.record()
    assert content["data"] == {"a": "\u00e9", "b": 2}
    assert [note["text"] for note in content["notes"]] == ["@x", '{"a": "\u00e9"}']
    assert content["steps"][0]["result"] == {"a": "\u00e9"}


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array", "items": {"type": "integer"}}},
    "required": ["n"],
}
BROKEN = '{"n": "one", "s": 1, "l": [1, "q"]}'


def test_data_schema_lists_every_violation(workspace: Workspace) -> None:
    (workspace.path / "schema.json").write_text(json.dumps(SCHEMA))
    argv = ("start", "deploy", "--data-schema", "schema.json", "--data")
    refused(workspace.tool(*argv, BROKEN), 13, "$.n", "$.s", "$.l[1]")
    assert not workspace.file().exists()
    printed = record(workspace, *argv, '{"n": 1}')
    assert len(printed["data_schema_sha256"]) == 64
    before = workspace.snapshot()
    refused(workspace.tool("update", "deploy", "--data", BROKEN), 13, "$.n", "$.s", "$.l[1]")
    refused(workspace.tool("update", "deploy", "--data", '{"n": null}'), 13, "$", "'n'")
    assert workspace.snapshot() == before
    # The schema's file is not needed any more: each update is checked against what the record keeps.
    (workspace.path / "schema.json").unlink()
    ok(workspace, "update", "deploy", "--data", '{"s": "x"}')
    refused(workspace.tool("update", "deploy", "--data", '{"s": 2}'), 13, "$.s")


@pytest.mark.parametrize(("text", "code"), [("[]", 2), ('{"type": "nope"}', 13), ("{", 2)])
def test_data_schema_that_is_none(workspace: Workspace, text: str, code: int) -> None:
    (workspace.path / "schema.json").write_text(text)
    refused(workspace.tool("start", "deploy", "--data-schema", "schema.json"), code, "schema")
    assert not workspace.file().exists()


# the end


@pytest.mark.parametrize(("verb", "status"), TERMINAL)
def test_the_end_is_sticky(workspace: Workspace, verb: str, status: str) -> None:
    begun = record(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "update", "deploy", "--complete", "a")
    why = ("--reason", "because") if verb != "complete" else ()
    printed = record(workspace, verb, "deploy", *why)
    assert (printed["status"], printed["lease"], printed["next"]) == (status, None, None)
    assert printed["finished_at"] is not None
    assert printed["reason"] == ("because" if why else None)
    before = workspace.snapshot()
    assert list(before) == ["memory", *(f"memory/{part}" for part in done_paths(begun))]
    assert ok(workspace, verb, "deploy", *why).code == 0, "the same end again is done"
    for other, _ in TERMINAL:
        if other != verb:
            refused(
                workspace.tool(other, "deploy", "--reason", "x", *(("--force",) if other == "complete" else ())), 15, status
            )
    for argv in (("update", "deploy", "--begin", "a"), ("heartbeat", "deploy"), ("release", "deploy"), ("resume", "deploy")):
        refused(workspace.tool(*argv), 15, status)
    assert workspace.snapshot() == before


def done_paths(begun: dict[str, Any]) -> list[str]:
    below = ["checkpoints", "checkpoints/done", "checkpoints/done/deploy"]
    return [*below, f"checkpoints/done/deploy/{begun['run_id']}.json"]


def test_complete_wants_every_step(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b,c")
    ok(workspace, "update", "deploy", "--complete", "a", "--skip", "b", "--reason", "x")
    before = workspace.snapshot()
    refused(workspace.tool("complete", "deploy"), 15, "c", "--force")
    refused(workspace.tool("complete", "deploy", "--force"), 2, "--reason")
    assert workspace.snapshot() == before
    printed = record(workspace, "complete", "deploy", "--force", "--reason", "c is not needed")
    assert (printed["status"], printed["reason"], steps(printed)["c"]) == ("completed", "c is not needed", "pending")


@pytest.mark.parametrize("key", [(), ("--key", "k")])
def test_an_open_plan_without_a_step_is_not_complete(workspace: Workspace, key: tuple[str, ...]) -> None:
    """Its step names may all have been refused: the key would be used up, and nothing done."""
    id = record(workspace, "start", "deploy", *key)["id"]
    refused(workspace.tool("update", id, "--begin", "No Name"), 2)
    before = workspace.snapshot()
    refused(workspace.tool("complete", id), 15, "no step", f"checkpoint-tool complete {id} --force --reason 'nothing to do'")
    assert workspace.snapshot() == before
    printed = record(workspace, "complete", id, "--force", "--reason", "nothing to do")
    assert (printed["status"], printed["steps"], printed["reason"]) == ("completed", [], "nothing to do")
    ok(workspace, "complete", id)


def test_an_open_plan_with_a_step_is_complete(workspace: Workspace) -> None:
    ok(workspace, "start", "one")
    ok(workspace, "update", "one", "--begin", "a")
    ok(workspace, "update", "one", "--complete", "a")
    ok(workspace, "complete", "one")
    ok(workspace, "start", "two", "--steps", "a,b")
    ok(workspace, "update", "two", "--skip", "a", "--skip", "b", "--reason", "not needed")
    ok(workspace, "complete", "two")
    ok(workspace, "start", "three")
    ok(workspace, "cancel", "three", "--reason", "not needed")


@pytest.mark.parametrize("verb", ["fail", "cancel"])
def test_a_bad_end_wants_a_reason(workspace: Workspace, verb: str) -> None:
    ok(workspace, "start", "deploy")
    before = workspace.snapshot()
    refused(workspace.tool(verb, "deploy"), 2, "--reason")
    assert workspace.snapshot() == before


# show, list


def test_history_and_receipts(workspace: Workspace) -> None:
    first = finish(workspace)
    second = finish(workspace)
    keyed = finish(workspace, "deploy", "--key", "k")
    third = record(workspace, "start", "deploy")
    assert [entry["run_id"] for entry in ok(workspace, "list", "--json").lines] == [third["run_id"]]
    found = {entry["run_id"]: entry["status"] for entry in ok(workspace, "list", "--all", "--json").lines}
    assert found == {run["run_id"]: "completed" for run in (first, second, keyed)} | {third["run_id"]: "in_progress"}
    completed = ok(workspace, "list", "--all", "--status", "completed", "--json").lines
    assert {entry["run_id"] for entry in completed} == {run["run_id"] for run in (first, second, keyed)}
    for run in (first, second):
        assert (workspace.store / "done" / "deploy" / f"{run['run_id']}.json").is_file()
        assert record(workspace, "show", run["run_id"])["status"] == "completed"
    assert (workspace.store / "done" / f"{keyed['id']}.json").is_file()
    assert record(workspace, "show", keyed["id"])["run_id"] == keyed["run_id"]
    assert record(workspace, "show", "deploy")["run_id"] == third["run_id"], "what is unfinished comes first"


def test_show_after_the_end_gives_the_newest(workspace: Workspace) -> None:
    finish(workspace)
    newest = finish(workspace)
    assert record(workspace, "show", "deploy")["run_id"] == newest["run_id"]


def test_list_formats(workspace: Workspace) -> None:
    workspace.store.mkdir(parents=True, mode=0o700)
    assert ok(workspace, "list").out == ""
    assert ok(workspace, "list", "--json").out == ""
    ok(workspace, "start", "two", "--steps", "a,b")
    ok(workspace, "start", "one", "--steps", "a")
    rows = [line.split("\t") for line in ok(workspace, "list").out.splitlines()]
    assert [row[0] for row in rows] == ["two", "one"], "oldest first"
    assert rows[0][1:5] == ["in_progress", "0", "2", "a"]
    assert ok(workspace, "list", "--format", "tsv").out == ok(workspace, "list").out
    assert [entry["id"] for entry in ok(workspace, "list", "--format", "jsonl").lines] == ["two", "one"]
    table = ok(workspace, "list", "--format", "table")
    assert "two" in table.out
    assert "\x1b" not in table.out, "no colour but on a terminal"
    assert [row.split("\t")[0] for row in ok(workspace, "list", "--workflow", "one").out.splitlines()] == ["one"]
    assert ok(workspace, "list", "--status", "blocked").out == ""


def test_list_format_json_is_json(workspace: Workspace) -> None:
    ok(workspace, "start", "one")
    ok(workspace, "start", "two")
    result = ok(workspace, "list", "--format", "json")
    # Either one array, or the JSON Lines that --json gives; never something in between.
    if result.out.lstrip().startswith("["):
        assert [entry["id"] for entry in result.json] == ["one", "two"]
    else:
        assert [entry["id"] for entry in result.lines] == ["one", "two"]


@pytest.mark.parametrize(
    "argv", [("show", "deploy"), ("list",), ("list", "--all"), ("verify",), ("repair", "deploy"), ("prune", "--keep", "0")]
)
def test_reading_verbs_write_nothing(workspace: Workspace, argv: tuple[str, ...]) -> None:
    finish(workspace, "other")
    ok(workspace, "start", "deploy", "--steps", "a")
    before = {path: path.stat().st_mtime_ns for path in workspace.store.rglob("*")}
    ok(workspace, *argv)
    ok(workspace, *argv, "--json")
    assert {path: path.stat().st_mtime_ns for path in workspace.store.rglob("*")} == before


def test_store_can_be_named(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--store", "one two")
    ok(workspace, "start", "deploy", env={"CHECKPOINT_STORE": "three"})
    assert (workspace.path / "one two" / "deploy.json").is_file()
    assert (workspace.path / "three" / "deploy.json").is_file()
    assert not workspace.store.exists()
    assert ok(workspace, "list", "--store", "one two", env={"CHECKPOINT_STORE": "three"}).out.startswith("deploy\t")
    refused(workspace.tool("show", "nope", "--store", "one two"), 10, "'one two'")


# json, env


@pytest.mark.parametrize(
    ("argv", "code", "name"),
    [
        (("show", "nope"), 10, "NotFound"),
        (("resume", "deploy", "--owner", "bob"), 11, "Locked"),
        (("start", "deploy", "--steps", "b"), 14, "Conflict"),
        (("complete", "deploy"), 15, "InvalidTransition"),
        (("heartbeat", "deploy", "--token", "9"), 19, "StaleToken"),
    ],
)
def test_errors_as_json(workspace: Workspace, argv: tuple[str, ...], code: int, name: str) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    result = workspace.tool(*argv, "--json")
    assert (result.code, result.out) == (code, "")
    error = json.loads(result.err)["error"]
    assert sorted(error) == ["code", "hint", "message", "name"]
    assert (error["code"], error["name"]) == (code, name)
    assert error["message"]
    assert error["hint"].startswith("checkpoint-tool ")
    plain = workspace.tool(*argv)
    assert plain.err == f"checkpoint-tool: {error['message']} (try: {error['hint']})\n"


@pytest.mark.parametrize("verb", ["start", "resume", "update", "show", "complete", "release", "heartbeat", "pin", "unpin"])
def test_json_is_one_object_on_stdout(workspace: Workspace, verb: str) -> None:
    ok(workspace, "start", "deploy")
    more = ("--force", "--reason", "nothing to do") if verb == "complete" else ()
    result = ok(workspace, verb, "deploy", "--json", *more)
    assert result.out.count("\n") == 1
    for name in ("id", "run_id", "status", "steps", "next", "in_doubt", "owner_state", "token"):
        assert name in result.json


@pytest.mark.parametrize("verb", ["start", "resume", "update"])
def test_format_json_is_json(workspace: Workspace, verb: str) -> None:
    ok(workspace, "start", "deploy")
    assert ok(workspace, verb, "deploy", "--format", "json").json["id"] == "deploy"


HOSTILE = "'; touch pwned; $(touch pwned) `touch pwned` \" \\ \n touch pwned"


@pytest.mark.parametrize("verb", ["start", "resume", "update"])
def test_env_is_safe_to_eval(workspace: Workspace, verb: str) -> None:
    env = {"CHECKPOINT_OWNER": HOSTILE}
    more = (
        "--steps",
        "a,b",
        "--note",
        HOSTILE,
        "--agent",
        HOSTILE,
        "--handoff",
        HOSTILE,
        "--data",
        json.dumps({HOSTILE: HOSTILE}),
    )
    ok(workspace, "start", "deploy", *more, env=env)
    ok(workspace, "update", "deploy", "--block", HOSTILE, env=env)
    argv = (*("start", "deploy"), *more) if verb == "start" else (verb, "deploy")
    names = '"$CHECKPOINT_ID" "$CHECKPOINT_TOKEN" "$CHECKPOINT_NEXT" "$CHECKPOINT_STATUS"'
    script = f'out=$("$@") && eval "$out" && printf "%s\\n" {names}'
    result = workspace.run("sh", "-euc", script, "sh", TOOL, *argv, "--format", "env", env=env)
    assert result.code == 0, result
    assert result.out.splitlines() == ["deploy", "1", "a", "blocked"]
    assert not (workspace.path / "pwned").exists()
    printed = ok(workspace, *argv, "--format", "env", env=env).out.splitlines()
    assert [line.split("=")[0] for line in printed] == [
        f"export CHECKPOINT_{name}"
        for name in ("RUN_STORE", "ID", "RUN_ID", "TOKEN", "ATTEMPT", "STATUS", "CREATED", "NEXT", "IN_DOUBT")
    ]


def test_a_script_goes_on_from_the_environment(workspace: Workspace) -> None:
    tool = shlex.quote(TOOL)
    script = f"""
    eval "$({tool} start deploy --steps a,b --owner-pid $$ --format env)"
    {tool} update "$CHECKPOINT_ID" --complete a --owner somebody-else
    {tool} update "$CHECKPOINT_ID" --complete b --owner somebody-else
    {tool} complete "$CHECKPOINT_ID" --owner somebody-else
    """
    result = workspace.run("sh", "-euc", script)
    assert result.code == 0, result
    assert record(workspace, "show", "deploy")["status"] == "completed"


# verify, repair


def test_verify_of_what_is_whole(workspace: Workspace) -> None:
    assert workspace.tool("verify").code in (0, 10), "no store yet"
    finish(workspace)
    ok(workspace, "start", "deploy")
    assert record(workspace, "verify") == {"checked": 2, "damaged": [], "leftovers": [], "foreign": []}
    assert record(workspace, "verify", "deploy")["damaged"] == []
    refused(workspace.tool("verify", "nope"), 10)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "edited": ("digest", lambda path: path.write_text(path.read_text().replace('"agent":null', '"agent":"eve"'))),
    "truncated": ("json", lambda path: os.truncate(path, 200)),
    "empty": ("json", lambda path: os.truncate(path, 0)),
    "utf-16": ("encoding", lambda path: path.write_bytes(path.read_text().encode("utf-16"))),
    "other id": ("id", lambda path: alter(path, lambda content: content.update(id="other"))),
    "no status": ("schema", lambda path: alter(path, lambda content: content.pop("status"))),
    "naive date": ("date", lambda path: alter(path, lambda content: content.update(created_at="2026-01-01T00:00:00"))),
    "key twice": ("duplicate-key", lambda path: path.write_text('{"id": "deploy", ' + path.read_text().lstrip()[1:])),
}


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_damage_by_kind_and_writes_nothing(workspace: Workspace, name: str, done: bool) -> None:
    kind, harm = DAMAGES[name]
    ok(workspace, "start", "other")
    run = finish(workspace) if done else record(workspace, "start", "deploy", "--steps", "a")
    place = f"done/deploy/{run['run_id']}.json" if done else "deploy.json"
    harm(workspace.store / place)
    before = workspace.snapshot()
    result = workspace.tool("verify")
    refused(result, 12, "1 of 2", "checkpoint-tool repair ")
    assert f"{place}: {kind}" in result.out
    result = workspace.tool("verify", "--json")
    assert result.code == 12
    assert result.json["checked"] == 2
    assert [(entry["place"], entry["kind"]) for entry in result.json["damaged"]] == [(place, kind)]
    assert workspace.snapshot() == before
    ok(workspace, "verify", "other")


def test_verify_sees_every_damaged_file(workspace: Workspace) -> None:
    for name in ("one", "two", "three"):
        ok(workspace, "start", name)
    for name in ("one", "three"):
        os.truncate(workspace.file(name), 50)
    result = workspace.tool("verify", "--json")
    assert result.code == 12
    assert sorted(entry["place"] for entry in result.json["damaged"]) == ["one.json", "three.json"]


def test_the_hint_of_verify_can_be_typed(workspace: Workspace) -> None:
    run = finish(workspace)
    os.truncate(workspace.store / "done" / "deploy" / f"{run['run_id']}.json", 50)
    hint = json.loads(workspace.tool("verify", "--json").err)["error"]["hint"]
    result = workspace.run("sh", "-c", f"{shlex.quote(TOOL)}{hint.removeprefix('checkpoint-tool')}")
    assert result.code in (0, 12), result


def test_repair_shows_first(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    DAMAGES["edited"][1](workspace.file())
    before = workspace.snapshot()
    result = workspace.tool("repair", "deploy")
    refused(result, 12, "checkpoint-tool repair deploy --accept")
    assert "digest" in result.out
    assert workspace.snapshot() == before


def test_repair_accept_seals_anew(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    DAMAGES["edited"][1](workspace.file())
    damaged = workspace.file().read_bytes()
    ok(workspace, "repair", "deploy", "--accept")
    assert record(workspace, "show", "deploy")["agent"] == "eve"
    assert workspace.record()["digest"] == seal(workspace.record())
    kept = list((workspace.store / "quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [damaged], "the old file is kept"
    assert kept[0].name.startswith("deploy.json.bad-")
    ok(workspace, "verify")


def test_repair_accept_takes_no_nonsense(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    DAMAGES["truncated"][1](workspace.file())
    before = workspace.snapshot()
    refused(workspace.tool("repair", "deploy", "--accept"), 12, "--quarantine")
    assert workspace.snapshot() == before


def test_repair_quarantine_sets_aside(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    DAMAGES["truncated"][1](workspace.file())
    damaged = workspace.file().read_bytes()
    ok(workspace, "repair", "deploy", "--quarantine")
    assert not workspace.file().exists()
    assert [path.read_bytes() for path in (workspace.store / "quarantine").iterdir()] == [damaged]
    assert ok(workspace, "list").out == ""
    ok(workspace, "verify")
    assert record(workspace, "start", "deploy", "--steps", "a")["created"] is True


def test_repair_leaves_what_is_whole(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy")
    before = workspace.snapshot()
    for more in ((), ("--accept",), ("--quarantine",)):
        result = workspace.tool("repair", "deploy", *more)
        assert result.code == 0, result
    assert workspace.snapshot() == before


def test_a_damaged_record_is_never_replaced(workspace: Workspace) -> None:
    # Beginning anew in its place would repeat the effects of the steps it knows.
    ok(workspace, "start", "deploy", "--steps", "a")
    DAMAGES["truncated"][1](workspace.file())
    before = workspace.snapshot()
    for argv in (
        ("start", "deploy", "--steps", "a"),
        ("start", "deploy", "--steps", "a", "--replan"),
        ("resume", "deploy"),
        ("update", "deploy", "--begin", "a"),
        ("cancel", "deploy", "--reason", "x"),
    ):
        refused(workspace.tool(*argv), 12, "checkpoint-tool repair deploy")
    assert workspace.snapshot() == before


# prune, pin


def age(workspace: Workspace, run: dict[str, Any], days: int) -> Path:
    """Finished so long ago. Ages come from the record, never from the file's times."""
    done = workspace.store / "done"
    path = done / (f"{run['id']}.json" if run["idempotency_key"] else f"{run['workflow']}/{run['run_id']}.json")
    when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - days * 86400))
    names = ("created_at", "updated_at", "progress_at", "heartbeat_at", "finished_at")
    alter(path, lambda content: content.update(dict.fromkeys(names, when)))
    return path


def test_prune_by_age(workspace: Workspace) -> None:
    old = age(workspace, finish(workspace, "old"), 40)
    receipt = age(workspace, finish(workspace, "keyed", "--key", "k"), 40)
    new = age(workspace, finish(workspace, "new"), 20)
    ok(workspace, "start", "running")
    before = workspace.snapshot()
    result = ok(workspace, "prune")
    assert "old" in result.out
    assert record(workspace, "prune")["applied"] is False
    assert {entry["id"] for entry in record(workspace, "prune")["removed"]} == {"old", f"{receipt.stem}"}
    assert workspace.snapshot() == before, "without --apply it only says"
    printed = record(workspace, "prune", "--apply")
    assert printed["applied"] is True
    assert (old.exists(), receipt.exists(), new.exists(), workspace.file("running").exists()) == (False, False, True, True)
    assert record(workspace, "prune", "--older-than", "10d", "--apply")["removed"][0]["id"] == "new"
    assert not new.exists()


def test_prune_by_count(workspace: Workspace) -> None:
    runs = [finish(workspace) for _ in range(3)]
    other = finish(workspace, "other")
    printed = record(workspace, "prune", "--keep", "1", "--apply")
    assert {entry["run_id"] for entry in printed["removed"]} == {run["run_id"] for run in runs[:2]}
    left = {entry["run_id"] for entry in ok(workspace, "list", "--all", "--json").lines}
    assert left == {runs[2]["run_id"], other["run_id"]}, "the newest of each workflow"


def test_prune_never_touches_unfinished_or_pinned(workspace: Workspace) -> None:
    pinned = finish(workspace)
    assert record(workspace, "pin", "deploy")["pinned"] is True
    path = age(workspace, pinned, 400)
    ok(workspace, "start", "deploy")
    ok(workspace, "update", "deploy", "--block", "for years")
    names = ("created_at", "updated_at", "progress_at", "heartbeat_at")
    alter(workspace.file(), lambda content: content.update(dict.fromkeys(names, "2020-01-01T00:00:00.000Z")))
    before = workspace.snapshot()
    for argv in (("--older-than", "1s"), ("--keep", "0"), ("--older-than", "1s", "--keep", "0")):
        assert record(workspace, "prune", "--apply", *argv)["removed"] == []
    assert workspace.snapshot() == before
    ok(workspace, "unpin", pinned["run_id"])
    assert len(record(workspace, "prune", "--apply")["removed"]) == 1
    assert not path.exists()


def test_a_damaged_file_does_not_stop_prune(workspace: Workspace) -> None:
    old = age(workspace, finish(workspace, "old"), 40)
    bad = age(workspace, finish(workspace, "bad"), 40)
    os.truncate(bad, 100)
    result = ok(workspace, "prune", "--apply")
    assert (old.exists(), bad.exists()) == (False, True)
    assert "1 could not be read, and are left alone: checkpoint-tool verify" in result.err
    assert record(workspace, "prune")["unreadable"] == 1


def test_one_folder_of_finished_runs_that_is_unsafe_hides_no_other(workspace: Workspace) -> None:
    runs = [finish(workspace, f"w{number}") for number in range(3)]
    ok(workspace, "start", "live")
    workspace.file("live").write_text(workspace.file("live").read_text().replace("in_progress", "in_progressS"))
    (workspace.store / "done" / "w1").chmod(0o777)
    result = workspace.tool("verify")
    assert result.code == 12, result
    assert "done/w1" in result.out
    assert "live.json" in result.out
    for run in (runs[0], runs[2]):
        assert record(workspace, "show", run["run_id"])["status"] == "completed"
    result = workspace.tool("show", runs[1]["run_id"])
    assert result.code == 17, result
    assert "others may write into the folder" in result.err, "not: there is none"
    assert workspace.tool("show", "01a1ff83-08fc-71c7-bffa-803e2b767dd6").code == 17, "it may stand in what cannot be read"
    result = ok(workspace, "prune", "--keep", "0", "--apply")
    assert "2 removed" in result.err
    assert "2 could not be read" in result.err
    assert sorted(path.name for path in (workspace.store / "done").glob("*/*.json")) == [f"{runs[1]['run_id']}.json"]


def test_prune_that_has_to_stop_says_how_far_it_came(workspace: Workspace) -> None:
    for number in range(3):
        finish(workspace, f"w{number}")
    checkpoints = Checkpoints(workspace.store)
    store, stop = checkpoints.store, StoreUnavailable("the disk is full")
    delete, calls = store.delete, iter([None, stop])

    def failing(name: str, run_id: str) -> None:
        if error := next(calls):
            raise error
        delete(name, run_id)

    store.delete = failing  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match=r"^1 of 3 runs are removed, then: the disk is full$"):
        checkpoints.prune(keep=0, apply=True)
    assert len([*(workspace.store / "done").glob("*/*.json")]) == 2


def test_pin_of_an_unfinished_run_lasts(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy")
    ok(workspace, "pin", "deploy")
    ok(workspace, "complete", "deploy", "--force", "--reason", "nothing to do")
    assert record(workspace, "prune", "--keep", "0", "--apply")["removed"] == []
    ok(workspace, "unpin", "deploy")
    assert len(record(workspace, "prune", "--keep", "0", "--apply")["removed"]) == 1


# other versions


def ancestor(workspace: Workspace, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schemaVersion": "1.0",
        "workflowId": "deploy",
        "status": "in_progress",
        "currentStep": "b",
        "completedSteps": ["a"],
        "remainingSteps": ["b", "c"],
        "createdAt": "2026-01-01T10:00:00Z",
        "updatedAt": "2026-01-01T11:00:00Z",
    } | more
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["checkpointHash"] = hashlib.sha256(text.encode()).hexdigest()
    workspace.store.mkdir(parents=True, mode=0o700)
    workspace.file().write_text(json.dumps(content, indent=2))
    return content


def test_a_file_of_the_ancestor_is_read_and_left(workspace: Workspace) -> None:
    ancestor(workspace)
    before = workspace.snapshot()
    printed = record(workspace, "show", "deploy")
    assert list(steps(printed)) == ["a", "b", "c"]
    assert (steps(printed)["a"], steps(printed)["c"], printed["next"]) == ("completed", "pending", "b")
    assert ok(workspace, "list").out.startswith("deploy\tin_progress\t1\t3\tb\t")
    ok(workspace, "verify")
    assert workspace.snapshot() == before


def test_a_file_of_the_ancestor_is_resumed_and_upgraded(workspace: Workspace) -> None:
    ancestor(workspace)
    resumed = record(workspace, "resume", "deploy")
    assert (resumed["next"], steps(resumed)["a"]) == ("b", "completed")
    content = workspace.record()
    assert content["schema"] == "checkpoint/v1"
    assert content["digest"] == seal(content)
    assert "schemaVersion" not in content
    assert "checkpointHash" not in content
    ok(workspace, "update", "deploy", "--complete", "b", "--complete", "c")
    ok(workspace, "complete", "deploy")
    assert ok(workspace, "list", "--all").out.startswith("deploy\tcompleted\t3\t3\t")


def test_a_file_of_the_ancestor_is_checked(workspace: Workspace) -> None:
    ancestor(workspace)
    workspace.file().write_text(workspace.file().read_text().replace('"b",', '"x",', 1))
    before = workspace.snapshot()
    refused(workspace.tool("resume", "deploy"), 12, "checkpointHash")
    assert workspace.snapshot() == before


def test_unknown_fields_survive(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b")

    def newer(content: dict[str, Any]) -> None:
        content["colour"] = {"deep": [1, {"\u00fc": None}]}
        content["steps"][1]["colour"] = "red"

    alter(workspace.file(), newer)
    ok(workspace, "update", "deploy", "--complete", "a", "--complete", "b")
    content = workspace.record()
    assert content["colour"] == {"deep": [1, {"\u00fc": None}]}
    assert content["steps"][1]["colour"] == "red"
    assert content["digest"] == seal(content)
    run = record(workspace, "complete", "deploy")
    assert json.loads((workspace.store / "done" / "deploy" / f"{run['run_id']}.json").read_text())["colour"]


@pytest.mark.parametrize("schema", ["checkpoint/v2", "checkpoint/v10"])
def test_a_newer_schema_is_refused_not_guessed(workspace: Workspace, schema: str) -> None:
    ok(workspace, "start", "other")
    ok(workspace, "start", "deploy", "--steps", "a")
    alter(workspace.file(), lambda content: content.update(schema=schema))
    before = workspace.snapshot()
    for argv in (("show", "deploy"), ("resume", "deploy"), ("update", "deploy", "--begin", "a"), ("start", "deploy")):
        refused(workspace.tool(*argv), 13, schema)
    result = ok(workspace, "list")
    assert "other\tin_progress" in result.out
    assert workspace.snapshot() == before


# stdout and files


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
@pytest.mark.parametrize("form", ["", "--json"])
@pytest.mark.parametrize("verb", ["start", "resume", "update", "complete"])
def test_applied_but_not_reported(workspace: Workspace, verb: str, form: str, redirect: str) -> None:
    if not FULL.exists() and "full" in redirect:
        pytest.skip("no /dev/full here")
    if verb != "start":
        ok(workspace, "start", "deploy", "--steps", "a")
        ok(workspace, "update", "deploy", "--begin", "a")
    if verb == "resume":
        ok(workspace, "release", "deploy")
    argv = {
        "start": "start deploy --steps a",
        "resume": "resume deploy",
        "update": "update deploy --complete a",
        "complete": "complete deploy --force --reason x",
    }[verb]
    result = workspace.run("sh", "-c", f'"$0" {argv} {form} {redirect}', TOOL)
    assert result.code == 22, result
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith(("checkpoint-tool: ", '{"error"'))]
    assert len(errors) == 1, result
    assert "Exception ignored" not in result.err
    shown = record(workspace, "show", "deploy")
    if verb == "update":
        assert steps(shown) == {"a": "completed"}
    elif verb == "resume":
        assert shown["token"] == 2
        assert record(workspace, "resume", "deploy")["token"] == 2, "the retry gets the token that was not printed"
    else:
        assert shown["status"] == ("completed" if verb == "complete" else "in_progress")


def test_a_reader_that_goes_away_is_no_traceback(workspace: Workspace) -> None:
    for number in range(30):
        ok(workspace, "start", f"w{number}", "--data", json.dumps({"x": "y" * 4000}))
    result = workspace.run("sh", "-c", '"$0" list --json | head -c 10', TOOL)
    assert "Traceback" not in result.err
    assert "Exception" not in result.err
    assert "BrokenPipe" not in result.err


@pytest.mark.parametrize("mask", ["000", "022", "077"])
def test_files_are_private_whatever_the_umask(workspace: Workspace, mask: str) -> None:
    script = f'umask {mask}; "$0" start deploy --key k && "$0" start plain && "$0" complete plain --force --reason x'
    result = workspace.run("sh", "-euc", script, TOOL)
    assert result.code == 0, result
    for path in [workspace.store, *workspace.store.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


def test_no_temporary_is_left(workspace: Workspace) -> None:
    finish(workspace)
    ok(workspace, "start", "deploy")
    ok(workspace, "update", "deploy", "--note", "x")
    assert workspace.temporaries() == []


def test_left_over_temporaries_of_this_id_go(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy")
    ok(workspace, "start", "deploy-2")
    for name in (".deploy.0123456789ab.tmp", ".deploy-2.0123456789ab.tmp"):
        (workspace.store / name).write_text("half")
    assert ok(workspace, "list").code == 0
    ok(workspace, "update", "deploy", "--note", "x")
    assert workspace.temporaries() == [".deploy-2.0123456789ab.tmp"]


# the whole program


VERBS = [
    *("start", "update", "resume", "complete", "fail", "cancel", "heartbeat", "release"),
    *("show", "list", "verify", "repair", "prune", "pin", "unpin"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_explained(workspace: Workspace, verb: str) -> None:
    result = ok(workspace, verb, "--help")
    for option in ("--store", "--json"):
        assert option in result.out
    assert verb in ok(workspace, "--help").out
    assert workspace.snapshot() == {}


def test_version(workspace: Workspace) -> None:
    assert ok(workspace, "--version").out.strip().split()[-1][0].isdigit()


def test_a_run_id_means_that_run_and_no_other(workspace: Workspace) -> None:
    first = ok(workspace, "start", "deploy", "--steps", "a", "--json").json["run_id"]
    ok(workspace, "complete", "deploy", "--force", "--reason", "x")
    ok(workspace, "start", "deploy", "--steps", "a")
    assert ok(workspace, "complete", first, "--json").json["run_id"] == first
    assert ok(workspace, "show", "deploy", "--json").json["status"] == "in_progress"
    refused(workspace.tool("update", first, "--complete", "a"), 15)


def test_a_stale_token_counts_by_whatever_name_the_run_is_called(workspace: Workspace) -> None:
    run = ok(workspace, "start", "deploy", "--steps", "a", "--owner", "ann", "--json").json
    ok(workspace, "resume", "deploy", "--steal", "--reason", "x", "--owner", "bob")
    ok(workspace, "release", "deploy", "--owner", "bob")
    robbed = {"CHECKPOINT_ID": "deploy", "CHECKPOINT_TOKEN": "1"}
    for name in ("deploy", run["run_id"]):
        refused(workspace.tool("update", name, "--complete", "a", env=robbed), 19)


def test_an_update_that_changes_nothing_still_renews_the_lease(workspace: Workspace) -> None:
    before = ok(workspace, "start", "deploy", "--steps", "a", "--json").json["lease"]["expires_at"]
    time.sleep(0.01)
    assert ok(workspace, "update", "deploy", "--json").json["lease"]["expires_at"] > before


@pytest.mark.parametrize("argv", [("--input", "-"), ("--data", "-"), ("--plan", "-")])
def test_a_closed_standard_input_is_said(workspace: Workspace, argv: tuple[str, str]) -> None:
    done = workspace.run("sh", "-c", '"$@" <&-', "sh", TOOL, "start", "deploy", *argv)
    assert done.code == 2
    assert "closed" in done.err or "cannot be read" in done.err or "no JSON" in done.err, done


def test_a_working_folder_that_is_gone_is_said(workspace: Workspace) -> None:
    done = workspace.run("sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && "$@"', "sh", TOOL, "list")
    # In a path with a space the program is started by a shell, which has something to say of its own.
    said = [line for line in done.err.splitlines() if not line.startswith("sh: ")]
    assert (done.code, len(said)) == (17, 1), done


def test_a_store_that_is_not_there_is_said(workspace: Workspace) -> None:
    for argv in (("list",), ("list", "--store", "nowhere")):
        refused(workspace.tool(*argv), 10, "no store")
    refused(workspace.tool("resume"), 3, "no store")


ADDRESSES = [
    "postgresql://user:hunter2pw@db/ops",
    "POSTGRESQL://user:hunter2pw@db/ops",
    "postgresql:user:hunter2pw@db",
    " mysql://user:hunter2pw@db/ops",
    "sqlite:///ops.db?key=hunter2pw",
    "https://user:hunter2pw@example.org/ops",
    "jdbc:postgresql://user:hunter2pw@db/ops",
    "user:hunter2pw@db/ops",
    "u:hunter2pw@db/ops",
    "//user:hunter2pw@db/ops",
    "file://user:hunter2pw@db/ops",
    "memory:hunter2pw",
]


def hidden(done: Result, code: int) -> None:
    assert done.code == code, done
    assert "hunter2pw" not in done.out + done.err, done
    assert "Traceback" not in done.err


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_no_directory_is_refused_and_not_shown(workspace: Workspace, address: str) -> None:
    argv = ["start", "deploy", "--steps", "a"]
    refused(workspace.tool(*argv, "--store", address), 2)
    for done in (
        workspace.tool(*argv, f"--store={address}", "--json"),
        workspace.tool(*argv, env={"CHECKPOINT_STORE": address}),
    ):
        hidden(done, 2)
    hidden(workspace.selfcheck("--root", address), 3)
    with pytest.raises(Usage) as raised:
        Checkpoints(address)
    assert "hunter2pw" not in raised.value.message
    assert workspace.snapshot() == {}, "nothing is made"


def test_every_way_to_name_a_store_refuses_an_address(workspace: Workspace) -> None:
    address = ADDRESSES[0]
    for done in (
        workspace.tool("list", "--store", address),
        workspace.tool("resume", env={"CHECKPOINT_STORE": address}),
        workspace.tool("exec", "deploy", "--store", address, "--", "true"),
        workspace.tool("watch", "--json", "--store", address),
        workspace.tool("mcp", "--store", address, input=""),
        workspace.tool("agents", "brief", "--store", address),
        workspace.tool("agents", "install", "--store", address),
        workspace.tool("schedule", "install", address),
    ):
        hidden(done, 2)
    hidden(workspace.tool("schedule", "install", "--print", "--", "--store", address), 16)
    files = {"store.toml": address, "root.toml": [address], "state.toml": address}
    for file, value in files.items():
        (workspace.path / file).write_text(f"{Path(file).stem} = {json.dumps(value)}\n")
        hidden(workspace.selfcheck("--config", file), 3)
    for argv in (
        ["--store", address],
        ["--state", address],
        ["incidents", "--store", address],
        ["incidents", "--state", address],
        ["ack", "deploy", "--for", "1h", "--by", "me", "--reason", "x", "--root", address],
    ):
        hidden(workspace.selfcheck(*argv), 2 if argv[0] in ("incidents", "ack") else 3)
    hidden(workspace.selfcheck(env={"CHECKPOINT_STORE": address}), 3)
    assert sorted(workspace.snapshot()) == sorted(files), "nothing is made"


@pytest.mark.parametrize("name", ["a:b", "C:", "C:\\ops", "./team:ops", "x/http://y", "2026-01-01T10:00", "größe:ops"])
def test_a_directory_with_a_colon_in_its_name(workspace: Workspace, name: str) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--store", name)
    assert (workspace.path / name / "deploy.json").is_file()
    assert workspace.selfcheck("--store", name).code == 0


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "FILE:{}"])
def test_a_directory_as_a_file_address(workspace: Workspace, form: str) -> None:
    place = workspace.path / "ops"
    address = form.format(place)
    ok(workspace, "start", "deploy", "--steps", "a", "--store", address)
    assert (place / "deploy.json").is_file()
    ok(workspace, "list", env={"CHECKPOINT_STORE": address})
    assert workspace.selfcheck("--store", address).code == 0
    resumed = ok(workspace, "resume", "--format", "env", "--store", address).out
    assert f"CHECKPOINT_RUN_STORE={place}\n" in resumed.replace("'", "")
    shown = ok(workspace, "run", "deploy", "a", "--store", address, "--", "sh", "-c", "echo $CHECKPOINT_RUN_STORE").out
    assert shown == f"{place}\n"
    assert sorted(workspace.path.glob("*")) == [place], "and nothing else is made"


def test_when_all_is_damaged_that_is_not_nothing_to_resume(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    workspace.file().write_text("{")
    refused(workspace.tool("resume"), 12, "damaged")


def test_a_newer_version_is_not_for_repair_to_judge(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    workspace.file().write_text(workspace.file().read_text().replace("checkpoint/v1", "checkpoint/v2"))
    before = workspace.snapshot()
    for option in ((), ("--accept",)):
        refused(workspace.tool("repair", "deploy", *option), 13, "upgrade")
    assert workspace.snapshot() == before
    ok(workspace, "repair", "deploy", "--quarantine")


def test_a_copy_of_hard_links_is_left_as_it_was(workspace: Workspace) -> None:
    """`cp -al` as a backup: work goes on, the copy stays as it was, and `verify` says once that there is one."""
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "start", "other", "--steps", "a")
    backup = workspace.path / "backup"
    assert workspace.run("cp", "-al", str(workspace.store), str(backup)).code == 0
    before = {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()}
    said = ok(workspace, "verify")
    assert (said.out.count("WARNING"), "2 records have a second name" in said.out) == (1, True)
    (note,) = record(workspace, "verify")["notes"]
    assert "deploy.json" in note
    ok(workspace, "update", "deploy", "--complete", "a")
    ok(workspace, "complete", "deploy")
    assert {path: path.read_bytes() for path in backup.rglob("*") if path.is_file()} == before
    assert workspace.store.joinpath(".locks/deploy.lock").stat().st_nlink == 1
    assert ok(workspace, "show", "deploy", "--store", str(backup), "--json").json["next"] == "a"
    ok(workspace, "update", "deploy", "--complete", "a", "--store", str(backup))


def test_who_holds_it_is_said_before_that_it_expired(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a", "--ttl", "1s", "--owner", "ann")
    time.sleep(1.1)
    refused(workspace.tool("start", "deploy", "--steps", "a", "--replan", "--owner", "bob"), 11, "ann")
    refused(workspace.tool("resume", "deploy", "--owner", "bob"), 11, "ann")


def test_a_token_that_was_never_issued_is_told_from_one_that_was_overtaken(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    refused(workspace.tool("update", "deploy", "--complete", "a", "--token", "99"), 19, "never issued")


def test_tokens_are_found_again_when_the_lock_files_are_lost(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "resume", "deploy", "--steal", "--reason", "x", "--owner", "bob")
    ok(workspace, "complete", "deploy", "--force", "--reason", "x", "--owner", "bob")
    shutil.rmtree(workspace.store / ".locks")
    assert ok(workspace, "start", "deploy", "--steps", "a", "--json").json["token"] == 3


def test_a_full_terminal_is_no_bug(workspace: Workspace) -> None:
    for argv in ("--version", "--help", "list --help"):
        done = workspace.run("sh", "-c", f'"$@" {argv} >/dev/full', "sh", TOOL)
        assert (done.code, done.err.count("\n")) == (22, 1), done


def test_a_claim_that_nobody_named_holds_for_thirty_minutes(workspace: Workspace) -> None:
    """As it is typed in a terminal: no --owner, no $CHECKPOINT_OWNER, no --lease."""
    lease = ok(workspace, "start", "deploy", "--steps", "a", "--json", env={"CHECKPOINT_OWNER": ""}).json["lease"]
    assert lease["owner"].endswith(f":{os.getpid()}")
    assert (lease["pid"], lease["lease_s"]) == (None, 1800)
    assert lease["expires_at"] > lease["acquired_at"]
