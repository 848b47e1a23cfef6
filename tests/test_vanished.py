"""A run that is gone without an end is missed until a person forgets it; a file system that is gone silences no other."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SELFCHECK, TOOL, Result, Workspace, lacking, need_program, need_root
from test_last_run import wait_for
from test_selfcheck import CRITICAL, HOUR, OK, UNKNOWN, WARNING, clone, put, start

CHANNEL = ("--notify", "log:notices")


def check(workspace: Workspace, *more: str) -> Result:
    return workspace.selfcheck(*CHANNEL, *more)


def told(workspace: Workspace) -> list[tuple[str, str, str]]:
    """(event, id, reason) of all notices."""
    path = workspace.path / "notices"
    notices = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(one["event"], one["id"], one["reason"]) for notice in notices for one in notice["changes"]]


def found(workspace: Workspace, *more: str) -> list[dict[str, Any]]:
    return list(check(workspace, "--json", *more).json["findings"])


def rm(workspace: Workspace) -> None:
    workspace.file().unlink()


def mv(workspace: Workspace) -> None:
    workspace.file().rename(workspace.path / "aside.json")


def quarantine(workspace: Workspace) -> None:
    put(workspace.file(), "{")
    assert workspace.tool("repair", "deploy", "--quarantine").code == 0


def begun_anew(workspace: Workspace) -> None:
    workspace.file().unlink()
    shutil.rmtree(workspace.store / ".locks")
    assert workspace.tool("start", "deploy", "--steps", "a").code == 0


@pytest.mark.parametrize("age_s", [HOUR, 1], ids=["an incident", "not stale yet"])
@pytest.mark.parametrize("take_away", [rm, mv, quarantine, begun_anew])
def test_what_vanishes_is_critical_until_it_is_forgotten(workspace: Workspace, take_away: Any, age_s: int) -> None:
    start(workspace, age_s=age_s)
    assert check(workspace).code == (WARNING if age_s == HOUR else OK)
    take_away(workspace)
    for _ in range(3):
        assert check(workspace).code == CRITICAL
    assert [one["reason"] for one in found(workspace)] == ["vanished"]
    assert ("resolved", "deploy", "slow") not in told(workspace)
    assert told(workspace).count(("opened", "deploy", "vanished")) == 1
    assert workspace.selfcheck("forget", "other").code == 3
    assert workspace.selfcheck("forget", "deploy").code == 0
    assert check(workspace).code == OK
    assert not [event for event, *_ in told(workspace) if event == "resolved"]
    assert workspace.selfcheck("forget", "deploy").code == 3


def test_the_words_say_where_a_damaged_record_was_set_aside(workspace: Workspace) -> None:
    start(workspace)
    check(workspace)
    quarantine(workspace)
    assert "quarantine/deploy.json.bad-" in found(workspace)[0]["detail"]


def test_one_that_was_damaged_from_the_beginning_is_missed_too(workspace: Workspace) -> None:
    start(workspace, "other")
    put(workspace.file(), "{")
    check(workspace)
    rm(workspace)
    assert [(one["id"], one["reason"], one["run_id"]) for one in found(workspace)] == [("deploy", "vanished", None)]


def test_damage_is_not_vanishing_and_hides_no_run(workspace: Workspace) -> None:
    start(workspace)
    check(workspace)
    whole = workspace.file().read_bytes()
    put(workspace.file(), "{")
    assert [one["reason"] for one in found(workspace)] == ["damaged"]
    put(workspace.file(), whole)
    assert check(workspace).code == OK


def test_put_back_it_is_over(workspace: Workspace) -> None:
    start(workspace)
    check(workspace)
    mv(workspace)
    assert check(workspace).code == CRITICAL
    (workspace.path / "aside.json").rename(workspace.file())
    assert check(workspace).code == OK
    assert told(workspace)[-1] == ("resolved", "deploy", "vanished")


@pytest.mark.parametrize("options", [(), ("--key", "k")], ids=["plain", "keyed"])
@pytest.mark.parametrize("end", [("complete", "--force"), ("cancel",), ("fail",)], ids=" ".join)
def test_what_ends_has_not_vanished(workspace: Workspace, end: tuple[str, ...], options: tuple[str, ...]) -> None:
    record = start(workspace, "deploy", *options)
    check(workspace)
    assert workspace.tool(end[0], record["id"], "--reason", "x", *end[1:]).code == 0
    assert check(workspace).code == OK
    if not options:
        start(workspace)
        assert check(workspace).code == OK
    assert told(workspace) == []


def test_a_run_of_exec_that_ends_has_not_vanished(workspace: Workspace) -> None:
    command = [TOOL, "exec", "nightly", "--", "sleep", "30"]
    with subprocess.Popen(command, cwd=workspace.path) as running:
        wait_for(workspace.file("nightly"))
        assert check(workspace).code == OK
        running.send_signal(signal.SIGTERM)
    assert [one["reason"] for one in found(workspace)] == ["failed"]


def test_pruning_what_has_ended_is_not_vanishing(workspace: Workspace) -> None:
    start(workspace)
    check(workspace)
    workspace.tool("cancel", "deploy", "--reason", "x")
    check(workspace)
    assert workspace.tool("prune", "--keep", "0", "--apply").code == 0
    assert check(workspace).code == OK


def test_ten_thousand_at_once_are_one_finding_and_one_notice(workspace: Workspace) -> None:
    record = start(workspace, "seed")
    for number in range(10_000):
        clone(record, f"run-{number}", workspace.store)
    workspace.file("seed").unlink()
    shutil.rmtree(workspace.store / ".locks")  # which would miss it
    assert check(workspace).code == OK
    for path in workspace.store.glob("run-*.json"):
        path.unlink()
    began = time.monotonic()
    gone = check(workspace)
    assert time.monotonic() - began < 30
    assert gone.code == CRITICAL
    assert len(gone.out) < 2000
    assert "10000 unfinished runs vanished" in gone.out
    check(workspace)
    lines = (workspace.path / "notices").read_text().splitlines()
    assert len(lines) == 1
    assert len(lines[0]) < 5000
    assert workspace.selfcheck("forget", "run-9*").code == 0
    assert check(workspace).code == CRITICAL
    assert workspace.selfcheck("forget", f"{workspace.store}/*").code == 0
    assert check(workspace).code == OK


def test_a_store_that_is_away_forgets_nothing(workspace: Workspace) -> None:
    start(workspace)
    state = ("--state", "state")
    check(workspace, *state)
    workspace.store.rename(workspace.path / "away")
    assert check(workspace, *state).code == UNKNOWN
    (workspace.path / "away").rename(workspace.store)
    rm(workspace)
    assert [one["reason"] for one in found(workspace, *state)] == ["vanished"]


# --- what does not answer -----------------------------------------------------------------------------------------------

DEAD = str(Path(__file__).with_name("dead_server.py"))


@pytest.fixture
def dead(workspace: Workspace) -> Any:
    """Runs the self-check where ``dead`` is a mount whose server never answers."""
    need_root()
    need_program("unshare")
    if not os.path.exists("/dev/fuse"):
        lacking("there is no /dev/fuse")
    (workspace.path / "dead").mkdir()
    start(workspace, age_s=HOUR)

    def run(*argv: str) -> Result:
        mounted = ("unshare", "-m", "--propagation", "private", sys.executable, DEAD, "dead")
        done = workspace.run(*mounted, SELFCHECK, "--timeout", "1s", *argv, timeout=100)
        if done.code == 77:
            lacking(f"no file system can be mounted here: {done.err}")
        return done

    return run


@pytest.mark.parametrize(
    "places",
    [
        ("--store", "dead", "--store", "memory/checkpoints"),
        ("--store", "memory/checkpoints", "--store", "dead/memory/checkpoints"),
        ("--root", "dead", "--root", "."),
        ("--root", ".", "--store", "dead/x"),
    ],
)
def test_a_store_that_hangs_silences_no_other(dead: Any, places: tuple[str, ...]) -> None:
    began = time.monotonic()
    done = dead("--json", *places)
    assert time.monotonic() - began < 20
    assert done.code == UNKNOWN
    findings = {one["id"]: one for one in done.json["findings"]}
    assert findings["deploy"]["reason"] == "slow"
    assert findings[""]["reason"] == "missing_store"
    assert "does not answer" in findings[""]["detail"]


def test_many_stores_that_hang_are_waited_for_together(dead: Any) -> None:
    began = time.monotonic()
    done = dead("--json", *[word for number in range(8) for word in ("--store", f"dead/{number}")])
    assert time.monotonic() - began < 15
    assert len(done.json["findings"]) == 8


def test_a_file_that_hangs_silences_nothing(dead: Any, workspace: Workspace) -> None:
    """Each in its place: the record, the log, the metrics, the page, a channel."""
    files = ("--state", "dead/s", "--log", "dead/log", "--metrics", "dead/m", "--html", "dead/p", "--notify", "log:dead/n")
    done = dead(*files, "--notify", "log:notices", "--store", "memory/checkpoints")
    assert done.code == UNKNOWN
    for path in ("dead/s", "dead/log", "dead/m", "dead/p"):
        assert f"{path} does not answer" in done.out
    assert ("opened", "deploy", "slow") in told(workspace)


def test_the_stamp_of_a_store_that_hangs(dead: Any) -> None:
    done = dead("--check-monitor", "25m", "--store", "dead/x", "--store", "memory/checkpoints")
    assert done.code == CRITICAL
    assert "CHECKPOINT CRITICAL" in done.out


def test_a_log_that_another_process_keeps_locked(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    with (workspace.path / "log").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = workspace.selfcheck("--log", "log", timeout=30)
        assert done.code == UNKNOWN
        assert "keeps it locked" in done.out
        assert "WARNING deploy" in done.out
        delivered = workspace.selfcheck("--notify", "log:log", "--notify", "log:notices", timeout=30)
        assert "keeps it locked" in delivered.err
    assert ("opened", "deploy", "slow") in told(workspace)


# --- files of other programs --------------------------------------------------------------------------------------------

FOREIGN = (
    "lost+found/",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir/",
    "deploy.json~",
    "deploy.json.orig",
    "x.bak",
    "y.rej",
    "#recycle/",
)


def plant(workspace: Workspace) -> None:
    for name in (*FOREIGN, ".DS_Store", ".deploy.json.swp"):
        path = workspace.store / name
        path.mkdir() if name.endswith("/") else put(path, "x")


def test_files_of_other_programs_are_a_warning_once(workspace: Workspace) -> None:
    start(workspace)
    plant(workspace)
    for _ in range(2):
        (finding,) = found(workspace)
        assert (finding["reason"], finding["severity"], finding["id"]) == ("foreign", "WARNING", "")
        assert f"{len(FOREIGN)} foreign files" in finding["detail"]
    assert told(workspace) == [("opened", "", "foreign")]
    for name in FOREIGN:
        path = workspace.store / name
        path.rmdir() if name.endswith("/") else path.unlink()
    assert check(workspace).code == OK


def test_foreign_files_are_told_once_and_not_again(workspace: Workspace) -> None:
    start(workspace)
    plant(workspace)
    for _ in range(3):
        check(workspace, "--repeat", "1s")
        time.sleep(1.2)
    assert len((workspace.path / "notices").read_text().splitlines()) == 1


def test_verify_and_list_pass_over_them(workspace: Workspace) -> None:
    start(workspace)
    plant(workspace)
    verified = workspace.tool("verify")
    assert verified.code == 0
    assert "Thumbs.db: foreign" in verified.out
    assert sorted(workspace.tool("verify", "--json").json["foreign"]) == sorted(name.rstrip("/") for name in FOREIGN)
    listed = workspace.tool("list", "--json")
    assert [json.loads(line)["id"] for line in listed.out.splitlines()] == ["deploy"]
    assert workspace.tool("prune").code == 0
    put(workspace.store / "Deploy.json", "x")
    assert workspace.tool("verify").code == 12, "a record that was renamed is none of them"
    assert workspace.selfcheck().code == CRITICAL


def test_a_run_that_ended_and_was_pruned_between_two_checks_has_not_vanished(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    assert check(workspace).code == WARNING
    assert workspace.tool("complete", "deploy", "--force", "--reason", "done by hand").code == 0
    assert workspace.tool("prune", "--keep", "0", "--apply").code == 0
    assert workspace.tool("list", "--finished").out == ""
    assert check(workspace).code == OK
    assert told(workspace)[-1] == ("resolved", "deploy", "slow")
