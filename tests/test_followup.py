"""A self-check that keeps a record, run as a timer would run it: told once, nothing lost, and the rest still done."""

import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import receivers
import sweep
from conftest import SELFCHECK, Result, Workspace, need_program, need_root, powerless
from proof import WHOLE, tried

from checkpoint import notify

OK, WARNING, CRITICAL, UNKNOWN = range(4)
SHORT = ("--threshold", "1s")


def stale(workspace: Workspace, *ids: str) -> None:
    """Runs that have been without progress for longer than a second."""
    for id in ids or ("deploy",):
        assert workspace.tool("start", id, "--steps", "a,b").code == 0
    time.sleep(1.1)


def notices(workspace: Workspace, name: str = "notices") -> list[Any]:
    path = workspace.path / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(workspace: Workspace) -> list[tuple[str, str]]:
    """(what happened, to what) of all notices, in order."""
    return [(change["event"], change["id"]) for notice in notices(workspace) for change in notice["changes"]]


def check(workspace: Workspace, *more: str, **options: Any) -> Result:
    return workspace.selfcheck(*SHORT, "--notify", "log:notices", *more, **options)


def state(workspace: Workspace) -> Path:
    return workspace.store / ".selfcheck" / "state.json"


# --- told once ---------------------------------------------------------------------------------------------------------


def test_a_check_typed_by_hand_writes_nothing(workspace: Workspace) -> None:
    stale(workspace)
    before = workspace.snapshot()
    assert workspace.selfcheck(*SHORT).code == WARNING
    assert workspace.snapshot() == before


def test_each_thing_is_said_once_and_its_end_too(workspace: Workspace) -> None:
    stale(workspace)
    assert [check(workspace).code for _ in range(3)] == [WARNING] * 3
    assert events(workspace) == [("opened", "deploy")]
    stale(workspace, "other")
    check(workspace)
    assert [entry["id"] for entry in notices(workspace)[-1]["still_open"]] == ["deploy"]
    workspace.tool("complete", "deploy", "--force", "--reason", "x")
    workspace.tool("complete", "other", "--force", "--reason", "x")
    assert check(workspace).code == OK
    check(workspace)
    assert events(workspace) == [("opened", "deploy"), ("opened", "other"), ("resolved", "deploy"), ("resolved", "other")]
    assert len({notice["id"] for notice in notices(workspace)}) == 3


def test_an_incident_is_the_same_from_whatever_folder_it_is_seen(workspace: Workspace) -> None:
    stale(workspace)
    check(workspace)
    elsewhere = {"CHECKPOINT_STORE": str(workspace.store)}
    for more in ([], ["--store", str(workspace.store)], ["--store", "./memory/../memory/checkpoints"]):
        check(workspace, *more, env=elsewhere)
    assert events(workspace) == [("opened", "deploy")]
    for root in (".", str(workspace.path), "./"):
        workspace.selfcheck(*SHORT, "--notify", "log:rooted", "--root", root)
    assert len(notices(workspace, "rooted")) == 1


def test_with_channels_quiet_leaves_talking_to_the_notices(workspace: Workspace) -> None:
    """What cron would mail: one notice, then nothing, then the end."""
    stale(workspace)
    run = ("--quiet", "--notify", "stdout")
    said = [workspace.selfcheck(*SHORT, *run).out for _ in range(3)]
    assert "opened: WARNING deploy" in said[0]
    assert "| stale=" not in said[0]
    assert said[1:] == ["", ""]
    workspace.tool("complete", "deploy", "--force", "--reason", "x")
    assert "resolved: WARNING deploy" in workspace.selfcheck(*SHORT, *run).out
    gone = workspace.selfcheck(*run, "--store", "nowhere", "--state", "kept")
    assert gone.code == UNKNOWN
    assert "CHECKPOINT UNKNOWN" in gone.out


def test_a_missing_store_is_told_once_and_what_was_open_stays_so(workspace: Workspace) -> None:
    stale(workspace)
    with_state = ("--state", "kept")
    check(workspace, *with_state)
    workspace.store.rename(workspace.path / "away")
    assert [check(workspace, *with_state).code for _ in range(2)] == [UNKNOWN] * 2
    (workspace.path / "away").rename(workspace.store)
    check(workspace, *with_state)
    assert events(workspace) == [("opened", "deploy"), ("opened", ""), ("resolved", "")]


def test_two_at_once_tell_it_once(workspace: Workspace) -> None:
    stale(workspace)
    argv = [SELFCHECK, *SHORT, "--notify", "log:notices"]
    running = [subprocess.Popen(argv, cwd=workspace.path, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [one.wait(30) for one in running] == [WARNING] * 6
    assert events(workspace) == [("opened", "deploy")]


def test_one_that_hangs_does_not_stop_the_next_from_judging(workspace: Workspace) -> None:
    stale(workspace)
    with receivers.web() as web:
        web.delay_s = 60
        argv = [SELFCHECK, *SHORT, "--notify", web.url]
        with subprocess.Popen(argv, cwd=workspace.path, stdout=subprocess.DEVNULL) as first:
            deadline = time.monotonic() + 20
            while not web.requests and time.monotonic() < deadline:
                time.sleep(0.02)
            second = check(workspace)
            first.kill()
    assert second.code == UNKNOWN
    assert "another process has been at work" in second.out
    assert "deploy: slow" in second.out


# --- channels that fail ------------------------------------------------------------------------------------------------


def test_a_channel_that_fails_stops_no_other_and_is_tried_again(workspace: Workspace) -> None:
    stale(workspace)
    with receivers.web() as web:
        web.answers = [404, 404]
        both = ("--notify", web.url, "--notify", "command:false")
        done = check(workspace, *both, "--log", "audit", "--metrics", "m.prom")
        assert done.code == WARNING, "a failing channel does not change the verdict"
        assert "http:127.0.0.1 did not take the notice: the server answered 404" in done.err
        assert events(workspace) == [("opened", "deploy")]
        assert check(workspace, *both).code == WARNING
        check(workspace, *both)
        assert len(web.requests) == 3
        assert web.requests[-1].json["attempt"] == 3
        assert len(set(web.keys)) == 1
        check(workspace, *both)
        assert len(web.requests) == 3
    assert events(workspace) == [("opened", "deploy")]
    metrics = (workspace.path / "m.prom").read_text()
    assert 'checkpoint_notify_failures_total{channel="http:127.0.0.1"} 1' in metrics
    audit = [json.loads(line) for line in (workspace.path / "audit").read_text().splitlines()]
    assert [entry["delivered"] for entry in audit if entry["event"] == "delivery"] == [True, False, False]
    assert [entry["change"] for entry in audit if entry["event"] == "incident"] == ["opened"]


def test_a_notifier_that_hangs_for_ever_is_ended_and_the_rest_done(workspace: Workspace) -> None:
    stale(workspace)
    with receivers.web() as web:
        web.delay_s = 100
        began = time.monotonic()
        done = workspace.selfcheck(*SHORT, "--notify", web.url, "--notify", "log:notices", timeout=60)
        assert time.monotonic() - began < 25
    assert done.code == WARNING
    assert "no answer within 5 s" in done.err
    assert events(workspace) == [("opened", "deploy")]


# --- ack, snooze, silence ----------------------------------------------------------------------------------------------


def test_ack_snooze_silence_and_their_end(workspace: Workspace) -> None:
    stale(workspace)
    asks = ("--for", "4h", "--by", "ann", "--reason", "known")
    nothing = workspace.selfcheck("ack", "deploy", *asks)
    assert nothing.code == 3
    assert "no self-check has kept a record" in nothing.err
    check(workspace)
    unknown = workspace.selfcheck("ack", "other", *asks)
    assert (unknown.code, "no incident of other is open" in unknown.err) == (3, True)
    assert workspace.selfcheck("ack", "deploy", *asks).code == 0
    (shown,) = workspace.selfcheck("incidents", "--json").json["incidents"]
    assert (shown["quiet"]["by"], shown["quiet"]["reason"]) == ("ann", "known")
    assert "acknowledged by ann until" in workspace.selfcheck("incidents").out
    workspace.tool("update", "deploy", "--complete", "a")
    time.sleep(1.1)
    check(workspace)
    assert events(workspace) == [("opened", "deploy"), ("loud again", "deploy")], "it moved, and stands still again"
    assert workspace.selfcheck("silence", "night*", *asks).code == 0
    stale(workspace, "nightly")
    check(workspace)
    assert ("opened", "nightly") not in events(workspace)
    assert workspace.selfcheck("unquiet", "night*").code == 0
    check(workspace)
    assert ("opened", "nightly") in events(workspace)
    workspace.selfcheck("snooze", "nightly", "--for", "1s", "--by", "ann", "--reason", "x")
    check(workspace)
    time.sleep(1.2)
    check(workspace)
    assert events(workspace)[-1] == ("loud again", "nightly")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("ack",), "ID"),
        (("ack", "deploy", "--from", "4h"), "--from"),
        (("snooze", "deploy"), "--for"),
        (("silence", "deploy", "--for", "4h"), "--reason"),
        (("snooze", "deploy", "--for", "4h", "--by", " ", "--reason", "b"), "--by"),
        (("snooze", "deploy", "--for", "31d", "--by", "a", "--reason", "b"), "30 days"),
        (("snooze", "deploy", "--for", "soon", "--by", "a", "--reason", "b"), "no duration"),
        (("incidents", "--nonsense"), "--nonsense"),
        (("forget",), "STORE"),
        (("test-notify",), "no channel"),
        (("test-notify", "--notify", "nonsense"), "no address"),
    ],
)
def test_what_cannot_be_meant(workspace: Workspace, args: tuple[str, ...], words: str) -> None:
    stale(workspace)
    check(workspace)
    done = workspace.selfcheck(*args)
    assert (done.code, done.out) == (2, ""), "no result of a monitoring plugin"
    assert words in done.err
    assert f"(try: checkpoint-selfcheck {args[0]} --help)" in done.err
    assert len(done.err.splitlines()) == 1


def test_what_cannot_be_done(workspace: Workspace) -> None:
    stale(workspace)
    check(workspace)
    done = workspace.selfcheck("unquiet", "deploy")
    assert (done.code, done.out, "nobody has asked" in done.err) == (3, "", True)


def test_ack_alone_works(workspace: Workspace) -> None:
    stale(workspace)
    check(workspace)
    assert workspace.selfcheck("ack", "deploy", env={"SUDO_USER": "ann"}).code == 0
    (asked,) = workspace.selfcheck("incidents", "--json").json["quiets"]
    lasts = datetime.fromisoformat(asked["until"]) - datetime.fromisoformat(asked["at"])
    assert (asked["by"], asked["reason"], lasts) == ("ann", "", timedelta(hours=4))
    said = workspace.selfcheck("ack", "deploy")
    assert said.code == 0
    assert f"acknowledged by {pwd.getpwuid(os.getuid()).pw_name} until" in said.err
    assert not said.err.rstrip().endswith(":")


@pytest.mark.parametrize("verb", ["ack", "snooze", "silence"])
@pytest.mark.parametrize("option", ["--by", "--reason", "ID"])
def test_what_looks_like_a_secret_is_not_written_down(workspace: Workspace, verb: str, option: str) -> None:
    stale(workspace)
    check(workspace)
    secret = "https://u:" + "hunter2hunter2" + "@host/x"
    asked = {"ID": "deploy", "--for": "4h", "--by": "ann", "--reason": "known"} | {option: secret}
    options = [word for name, value in asked.items() if name != "ID" for word in (name, value)]
    before = workspace.snapshot()
    done = workspace.selfcheck(verb, asked["ID"], *options)
    assert done.code == 16, done
    assert "hunter2" not in done.out + done.err
    assert workspace.snapshot() == before


def test_an_attempt_is_counted_in_words(workspace: Workspace) -> None:
    stale(workspace)
    with receivers.web() as web:
        web.answers = [500] * 3
        for _ in range(2):
            workspace.selfcheck(*SHORT, "--notify", web.url)
        assert "(attempt 2, the first at " in web.requests[-1].json["text"]


def test_what_is_open_is_listed_with_hostile_names_escaped(workspace: Workspace) -> None:
    stale(workspace)
    workspace.tool("update", "deploy", "--block", "\x1b[31mred|\nCHECKPOINT OK - fine")
    check(workspace)
    listed = workspace.selfcheck("incidents")
    assert listed.code == 0
    assert "\x1b" not in listed.out
    assert len(listed.out.splitlines()) == 1
    assert "\x1b" not in workspace.selfcheck("incidents", "--json").out


# --- what it keeps, damaged or out of reach ----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "json", "folder", "fifo", "link", "huge", "nonsense"])
def test_a_damaged_state_is_set_aside_and_said_and_checking_goes_on(workspace: Workspace, damage: str) -> None:
    stale(workspace)
    check(workspace)
    path = state(workspace)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "link":
        path.symlink_to("/etc/passwd")
    elif damage == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif damage == "nonsense":
        sealed = {"schema": "selfcheck-state/v1", "incidents": [1]}
        canonical = json.dumps(sealed, sort_keys=True, separators=(",", ":")) + "\n"
        digest = __import__("hashlib").sha256(canonical.encode()).hexdigest()
        path.write_text(json.dumps(sealed | {"digest": digest}))
    else:
        path.write_bytes(
            {"cut": whole[:-20], "flipped": whole.replace(b"deploy", b"deplox"), "empty": b"", "json": b"[]"}[damage]
        )
    if path.is_file() and not path.is_symlink():
        path.chmod(0o600)
    done = check(workspace)
    assert done.code == UNKNOWN, done
    assert "may be told again" in done.out
    assert "deploy: slow" in done.out
    assert len(list(path.parent.glob("state.json.bad-*"))) == 1
    assert check(workspace).code == WARNING
    assert Counter(events(workspace))["opened", "deploy"] == 2


def test_a_state_of_a_newer_version_is_left_alone(workspace: Workspace) -> None:
    stale(workspace)
    check(workspace)
    path = state(workspace)
    fields = json.loads(path.read_text()) | {"schema": "selfcheck-state/v9"}
    del fields["digest"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    fields["digest"] = __import__("hashlib").sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(fields))
    before = path.read_bytes()
    done = check(workspace)
    assert done.code == UNKNOWN
    assert "another version" in done.out
    assert path.read_bytes() == before


def test_a_state_that_cannot_be_written_is_said_and_the_rest_done(workspace: Workspace) -> None:
    need_root()
    stale(workspace)
    check(workspace)
    stale(workspace, "other")
    state(workspace).parent.chmod(0o500)
    argv = [*powerless(), SELFCHECK, *SHORT, "--notify", "log:notices", "--metrics", "m.prom", "--html", "p.html"]
    for _ in range(2):
        done = workspace.run(*argv)
        assert done.code == UNKNOWN, done
        assert "cannot be used" in done.out
    state(workspace).parent.chmod(0o700)
    assert Counter(events(workspace)) == {("opened", "deploy"): 1, ("opened", "other"): 2, ("opened", ""): 2}
    assert (workspace.path / "m.prom").exists()
    assert (workspace.path / "p.html").exists()
    check(workspace)
    assert events(workspace)[-1] == ("opened", "other"), "what could not be remembered is told, in the end for good"


def test_a_full_disk(workspace: Workspace) -> None:
    need_root()
    stale(workspace)
    full = workspace.path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", str(full)], check=True)
    try:
        (full / "fill").write_bytes(b"x" * 12288)
        done = check(workspace, "--state", str(full / "state"), "--metrics", str(full / "m.prom"), "--log", str(full / "log"))
    finally:
        subprocess.run(["umount", str(full)], check=True)
    assert done.code == UNKNOWN, done
    assert "Traceback" not in done.err
    assert "deploy: slow" in done.out
    assert ("opened", "deploy") in events(workspace)


def test_a_log_that_is_a_link_is_refused_and_the_rest_done(workspace: Workspace) -> None:
    stale(workspace)
    (workspace.path / "audit").symlink_to(workspace.path / "target")
    done = check(workspace, "--log", "audit")
    assert done.code == UNKNOWN
    assert not (workspace.path / "target").exists()
    assert events(workspace) == [("opened", "deploy")]


def test_very_many_files_of_which_many_are_damaged(workspace: Workspace) -> None:
    stale(workspace)
    whole = workspace.file().read_bytes()
    for number in range(1500):
        path = workspace.store / f"w{number:04}.json"
        path.write_bytes(whole[: number % 200])
        path.chmod(0o600)
    os.mkfifo(workspace.store / "pipe.json")
    with (workspace.store / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    done = check(workspace, "--html", "p.html", "--metrics", "m.prom", timeout=120)
    assert done.code == CRITICAL
    (notice,) = notices(workspace)
    assert len(notice["changes"]) == 100
    assert notice["more"] == 1503 - 100
    assert "and 1483 more" in workspace.selfcheck(*SHORT, "--state", "other", "--notify", "stdout").out
    assert "checkpoint_unreadable 1502" in (workspace.path / "m.prom").read_text()
    again = check(workspace)
    assert again.code == CRITICAL
    assert len(notices(workspace)) == 1


# --- configuration -----------------------------------------------------------------------------------------------------


def test_the_configuration_holds_what_options_do_and_options_win(workspace: Workspace) -> None:
    stale(workspace)
    (workspace.path / "c.toml").write_text(
        f'root = "{workspace.path}"\nthreshold = "1s"\nnotify = ["log:notices"]\nno_such = 1\n'.replace("no_such = 1\n", "")
        + 'metrics = "m.prom"\nrecovery = false\nhard-age = "100h"\n'
    )
    assert workspace.selfcheck("--config", "c.toml").code == WARNING
    assert events(workspace) == [("opened", "deploy")]
    assert (workspace.path / "m.prom").exists()
    assert workspace.selfcheck(env={"CHECKPOINT_SELFCHECK_CONFIG": "c.toml"}).code == WARNING
    assert workspace.selfcheck("--config", "c.toml", "--threshold", "1h").code == OK
    assert events(workspace) == [("opened", "deploy")], "no recovery is told"
    assert workspace.selfcheck("incidents", "--config", "c.toml").out == "no incident is open\n"
    assert workspace.selfcheck("test-notify", "--config", "c.toml").code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('threshold = "1s"\nthreshhold = "2s"', "c.toml line 2: there is no setting 'threshhold'"),
        ('\n\nthreshold = "soon"', "c.toml line 3: threshold: 'soon' is no duration"),
        ("threshold = 10", 'c.toml line 1: threshold must be a text, in "quotes"'),
        ('quiet = "yes"', "c.toml line 1: quiet must be true or false"),
        ("notify = [1]", "c.toml line 1: notify must be a text, or a list of texts"),
        ("notify = []", "c.toml line 1: notify must be a text"),
        ("a = = 1", "line 1"),
        ("[table]\nx = 1", "c.toml line 1: there is no setting 'table'"),
        ('state = ""', "c.toml line 1: state must be a text"),
        ('notify = ["nonsense"]', "no address"),
    ],
)
def test_a_configuration_that_is_wrong_names_line_and_key(workspace: Workspace, text: str, words: str) -> None:
    workspace.tool("start", "deploy")
    (workspace.path / "c.toml").write_text(text)
    done = workspace.selfcheck("--config", "c.toml")
    assert done.code == UNKNOWN
    assert words in done.out, done
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["missing", "folder", "binary"])
def test_a_configuration_that_cannot_be_read(workspace: Workspace, name: str) -> None:
    (workspace.path / "folder").mkdir()
    (workspace.path / "binary").write_bytes(b"\xff\xfe")
    done = workspace.selfcheck("--config", name)
    assert (done.code, "cannot be read" in done.out) == (UNKNOWN, True)


# --- the watcher, watched ----------------------------------------------------------------------------------------------


def test_each_run_stamps_every_store_and_others_look_at_it(workspace: Workspace) -> None:
    stale(workspace)
    never = workspace.selfcheck("--check-monitor", "25m")
    assert never.code == CRITICAL
    assert "no self-check that keeps a record has ever run" in never.out
    assert workspace.tool("list").err == "", "who has no self-check is not told that it stopped"
    agent = workspace.path / "agents" / "a" / "memory" / "checkpoints"
    assert workspace.tool("start", "other", "--store", str(agent)).code == 0
    check(workspace, "--root", ".")
    assert workspace.selfcheck("--check-monitor", "25m", "--root", ".").code == OK
    assert (agent / ".selfcheck" / "last-run.json").exists()
    assert workspace.tool("list").err == ""
    for store in (workspace.store, agent, workspace.store.parent):
        path = store / ".selfcheck" / "last-run.json"
        past = (datetime.now(UTC) - timedelta(minutes=26)).isoformat()
        path.write_text(json.dumps({"at": past, "period_s": 600}))
    late = workspace.selfcheck("--check-monitor", "25m", "--root", ".")
    assert late.code == CRITICAL
    assert "last ran 26m ago" in late.out
    assert workspace.selfcheck("--check-monitor", "25m", "--json").json["exit_code"] == CRITICAL
    for verb in (["list"], ["list", "--json"], ["resume", "deploy"]):
        assert "the self-check last ran 26m" in workspace.tool(*verb).err
    future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    (workspace.store / ".selfcheck" / "last-run.json").write_text(json.dumps({"at": future, "period_s": 600}))
    assert workspace.selfcheck("--check-monitor", "25m").code == CRITICAL
    (workspace.store / ".selfcheck" / "last-run.json").write_text("nonsense")
    assert workspace.selfcheck("--check-monitor", "25m").code == CRITICAL
    assert workspace.tool("list").code == 0


def test_a_ping_says_start_and_how_it_went(workspace: Workspace) -> None:
    with receivers.web() as web:
        ping = ("--ping", web.url + "/${UUID}?x=1")
        workspace.tool("start", "deploy")
        assert workspace.selfcheck(*ping, env={"UUID": "abc"}).code == OK
        time.sleep(1.1)
        assert workspace.selfcheck(*SHORT, *ping, env={"UUID": "abc"}).code == WARNING
        assert workspace.selfcheck("--store", "nowhere", *ping, env={"UUID": "abc"}).code == UNKNOWN
        paths = [request.path for request in web.requests]
        assert paths == [f"/abc{end}?x=1" for end in ("/start", "", "/start", "/fail", "/start", "/fail")]
        assert web.requests[3].body.startswith(b"CHECKPOINT WARNING")
        web.answers = [500, 500]
        refused = workspace.selfcheck(*ping, env={"UUID": "abc"})
        assert (refused.code, refused.err.count("the ping was not taken")) == (OK, 2)


# --- metrics, page -----------------------------------------------------------------------------------------------------


def test_metrics_are_what_prometheus_reads(workspace: Workspace) -> None:
    promtool = need_program("promtool")
    stale(workspace, "deploy", "other")
    workspace.file("other").write_text("torn")
    assert workspace.selfcheck(*SHORT, "--metrics", "m.prom", "--notify", "command:false").code == CRITICAL
    text = (workspace.path / "m.prom").read_text()
    checked = workspace.run(promtool, "check", "metrics", input=text)
    assert (checked.code, checked.out, checked.err) == (0, "", "")
    values = dict(re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", text, re.MULTILINE))
    assert values["checkpoint_unfinished"] == "1"
    assert values['checkpoint_stale{severity="warning",reason="slow"}'] == "1"
    assert values["checkpoint_unreadable"] == "1"
    assert 1 < float(values["checkpoint_oldest_unfinished_age_seconds"]) < 100
    assert abs(float(values["checkpoint_selfcheck_last_run_timestamp_seconds"]) - time.time()) < 60
    assert values['checkpoint_notify_failures_total{channel="command:false"}'] == "1"
    assert (workspace.path / "m.prom").stat().st_mode & 0o777 == 0o644
    workspace.selfcheck("--metrics", "m.prom", "--store", "nowhere", "--state", str(state(workspace).parent))
    later = (workspace.path / "m.prom").read_text()
    name = "checkpoint_selfcheck_last_success_timestamp_seconds"
    assert re.search(f"^{name} (.*)$", later, re.MULTILINE)[1] == values[name], "that was no success"  # type: ignore[index]
    assert sorted(path.name for path in workspace.path.iterdir() if path.name.startswith(".")) == []


def test_a_file_that_others_read_is_replaced_whole_and_nothing_else(workspace: Workspace) -> None:
    workspace.tool("start", "deploy")
    (workspace.path / "target").write_text("theirs")
    (workspace.path / "link").symlink_to("target")
    os.mkfifo(workspace.path / "pipe")
    (workspace.path / "p.html").write_text("old")
    (workspace.path / "p.html").chmod(0o644)
    assert workspace.selfcheck("--metrics", "m.prom", "--html", "p.html").code == OK
    for name in ("link", "pipe"):
        done = workspace.selfcheck("--metrics", name, "--html", name)
        assert (done.code, "not a regular file" in done.out) == (UNKNOWN, True)
    assert (workspace.path / "target").read_text() == "theirs"
    assert (workspace.path / "pipe").is_fifo()
    assert (workspace.path / "p.html").stat().st_mode & 0o777 == 0o644, "who lets others read it has said so"
    nowhere = workspace.selfcheck("--metrics", "no/m.prom", "--html", "no/p.html", "--notify", "log:notices")
    assert nowhere.code == UNKNOWN
    assert nowhere.out.count("cannot be written") >= 2
    assert ("opened", "") in events(workspace), "a page that cannot be written is told as well"


def test_the_healthy_path_loads_no_third_party_module(workspace: Workspace) -> None:
    workspace.tool("start", "deploy")
    code = "import sys; from checkpoint.selfcheck import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    plain = workspace.run(sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}").err.split()
    third = {"typer", "rich", "portalocker", "jsonschema", "croniter", "apprise", "click"}
    assert third & set(plain) == set()
    assert {"urllib.request", "smtplib", "subprocess", "socket", "checkpoint.followup"} & set(plain) == set()
    recorded = workspace.run(sys.executable, "-c", code, "--notify", "log:n", "--metrics", "m").err.split()
    assert third & set(recorded) == set()
    assert {"urllib.request", "smtplib", "tomllib"} & set(recorded) == set(), "nothing is sent, nothing is loaded to send"


# --- three days --------------------------------------------------------------------------------------------------------


def test_three_days_count_exactly(workspace: Workspace) -> None:
    """A check every ten minutes by a clock that runs fast: one run that stands still, and grows critical after a day; one
    that is acknowledged; one that comes and goes; a clock that jumps back two hours; a suspend of eight."""
    faketime = need_program("faketime")
    begin = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    workspace.tool("start", "still", "--steps", "a")
    workspace.tool("start", "known", "--steps", "a")
    code = """
import os, sys, time
from datetime import UTC, datetime
from checkpoint import selfcheck
from checkpoint.store import utc_now
sys.exit(selfcheck.main(sys.argv[1:]))
"""

    def at(hours: float, *args: str) -> Result:
        moment = (begin + timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S")
        env = {"TZ": "UTC", "NO_FAKE_STAT": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return workspace.run(faketime, "-f", moment, sys.executable, "-c", code, *(args or run), env=env)

    run = ("--notify", "log:notices", "--quiet")
    hours = [number / 6 for number in range(6 * 24 * 3 + 1)]
    hours = [hour for hour in hours if not 40 < hour < 48]
    for hour in hours:
        if hour == 2:
            asks = ("--for", "30h", "--by", "ann", "--reason", "on it")
            assert at(hour, "ack", "known", *asks).code == 0
        if hour == 30:
            assert at(28, *run).code in (WARNING, CRITICAL), "two hours back, for one check"
        assert at(hour).code in (OK, WARNING, CRITICAL)
    began = datetime.fromisoformat(notices(workspace)[0]["at"])
    told = [
        (
            round((datetime.fromisoformat(notice["at"]) - began).total_seconds() / 3600, 1),
            [(change["event"], change["id"]) for change in notice["changes"]],
        )
        for notice in notices(workspace)
    ]
    assert [entry[1] for entry in told[:1]] == [[("opened", "known"), ("opened", "still")]] or told[0][1] == [
        ("opened", "still"),
        ("opened", "known"),
    ]
    changes = [(hour, change) for hour, what in told for change in what]
    # After half an hour their leases run out: "slow" becomes "abandoned". The ack outlasts the day after which a run that
    # stands still is critical, so its end tells that.
    assert Counter(change for _, change in changes) == {
        ("opened", "known"): 1,
        ("opened", "still"): 1,
        ("changed", "known"): 1,
        ("changed", "still"): 1,
        ("escalated", "still"): 1,
        ("escalated", "known"): 1,
    }, changes
    found = {change: hour for hour, change in changes}
    assert found["escalated", "still"] == pytest.approx(24, abs=0.4)
    assert found["escalated", "known"] == pytest.approx(32, abs=0.4)
    # From each change 4 hours, then 8, 16: what would have come in the hours asleep comes once, after them.
    repeats = [hour for hour, what in told if not what]
    assert repeats == pytest.approx([4.5, 12.5, 28, 36, 48, 64], abs=0.4)
    assert len({notice["id"] for notice in notices(workspace)}) == len(notices(workspace))


# --- kills -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[receivers.Web]:
    with receivers.web() as web:
        yield web


@pytest.mark.proof("kill")
def test_killed_at_any_call_no_notice_is_lost_or_doubled(tmp_path: Path, receiver: receivers.Web) -> None:
    """The check that tells of an incident, killed before each of its calls on its files and on the network; then one that
    is not. It cannot fork: what its children would do is done, and killed, in one process. The log holds the notice once;
    the receiver, going by its key, too."""
    place, template = tmp_path / "run", tmp_path / "template"
    template.mkdir()
    store = template / "memory" / "checkpoints"
    done = sweep.run(sweep.lean("abandon", store), template)
    assert done.code == 0, done

    def argv(root: Path) -> list[str]:
        paths = ("--store", str(root / "memory" / "checkpoints"), "--metrics", str(root / "m.prom"))
        log = ("--notify", f"log:{root}/memory/notices", "--notify", receiver.url)
        return [sys.executable, "-S", "-m", "checkpoint.selfcheck", "--threshold", "1s", *paths, *log]

    time.sleep(1.1)
    sweep.copy(template, place)
    sweep.run(argv(place), place, compile=True)
    sweep.copy(template, place)
    ended, calls = sweep.record(argv(place), place, forks=False)
    assert ended.code == WARNING, ended
    below = str(place)
    points = [
        call
        for call in calls
        if (call.name in sweep.WRITE_SIDE and any(path.startswith(below) for path in call.paths))
        or call.name in ("connect", "sendto", "recvfrom")
    ]
    assert len(points) > 100
    points = points if WHOLE else points[::2]
    problems, doubled = [], 0
    for point in points:
        sweep.copy(template, place)
        receiver.requests.clear()
        sweep.killed_at(point, argv(place), place, forks=False)
        again = sweep.run(argv(place), place)
        last = sweep.run(argv(place), place)
        lines = (place / "memory" / "notices").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        keys = set(receiver.keys)
        if again.code != WARNING or last.code != WARNING:
            problems.append(f"{point}: {again} {last}")
        if [notice["changes"][0]["event"] for notice in told] != ["opened"]:
            problems.append(f"{point}: the log holds {len(told)} notices")
        if keys != {told[0]["id"]}:
            problems.append(f"{point}: the receiver counts {keys}")
        if len(receiver.requests) > 2:
            problems.append(f"{point}: sent {len(receiver.requests)} times")
        doubled += len(receiver.requests) == 2
        left = [path.name for path in place.rglob("*.tmp") if ".m.prom" not in path.name]
        if left:
            problems.append(f"{point}: left {left}")
    tried("kill", len(points), len(problems))
    assert problems == []
    # Sent again only where it was killed between the answer and the note of it.
    assert doubled < len(points) / 3


def test_terminated_while_a_channel_is_slow_it_tells_the_next_time(workspace: Workspace, receiver: receivers.Web) -> None:
    stale(workspace)
    receiver.delay_s = 30
    with subprocess.Popen([SELFCHECK, *SHORT, "--notify", receiver.url], cwd=workspace.path) as running:
        deadline = time.monotonic() + 20
        while not receiver.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == -signal.SIGTERM
    receiver.released.set()
    receiver.delay_s = 0
    workspace.selfcheck(*SHORT, "--notify", receiver.url)
    assert len(set(receiver.keys)) == 1
    assert receiver.requests[-1].json["attempt"] == 2


def test_nothing_is_left_to_delete(make_workspace: Callable[[], Workspace]) -> None:
    """A run writes into the state folder and what it was told to write, and nowhere else."""
    workspace = make_workspace()
    stale(workspace)
    check(workspace, "--metrics", "m.prom", "--html", "p.html", "--log", "audit")
    found = {str(path.relative_to(workspace.path)) for path in workspace.path.rglob("*") if path.is_file()}
    inside = {
        f"memory/checkpoints/.selfcheck/{name}" for name in ("state.json", "state.lock", "last-run.json", "last-run.lock")
    }
    (seen,) = [path for path in found if re.fullmatch(r".*/\.selfcheck/unfinished-[0-9a-f]{16}\.txt", path)]
    inside.add(seen)
    names = ("deploy.json", ".gitignore", ".locks/deploy.lock", ".locks/unfinished/deploy")
    kept = {f"memory/checkpoints/{name}" for name in names}
    assert found == inside | kept | {"m.prom", "p.html", "audit", "notices"}
    shutil.rmtree(workspace.path)


# --- what an operator found --------------------------------------------------------------------------------------------


def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the answer never: retries must not take the end of time for a time-out of theirs."""
    monkeypatch.setattr(notify, "_NETWORK_LIMIT_S", 3)

    def trickle(one: socket.socket) -> None:
        with one:
            try:
                one.sendall(b"HTTP/1.1 200 OK\r\n220-hi\r\n")
                while True:
                    one.sendall(b"X-A: b\r\n")
                    time.sleep(0.4)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    accepted = server.accept()[0]
                except OSError:
                    return
                threading.Thread(target=trickle, args=(accepted,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        message = notify.Message("id", "OK", "subject", (), {"at": "now"})
        for address in (f"http://127.0.0.1:{port}/x", f"smtp://127.0.0.1:{port}/?to=a@example.org"):
            (channel,) = notify.parse([address])
            began = time.monotonic()
            with pytest.raises(notify.NotDelivered):
                notify.deliver(channel, message, {})
            assert time.monotonic() - began < 6
        with pytest.raises(notify.NotDelivered):
            notify.ping(f"http://127.0.0.1:{port}/x", "", "", {})


def test_while_the_record_is_held_what_is_new_is_told_all_the_same(workspace: Workspace) -> None:
    stale(workspace)
    check(workspace)
    stale(workspace, "other")
    with (state(workspace).parent / "state.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert check(workspace).code == UNKNOWN
    found = Counter(events(workspace))
    assert (found["opened", "deploy"], found["opened", "other"]) == (1, 1)


def test_a_store_that_vanishes_from_a_workspace_is_missed_until_it_is_forgotten(workspace: Workspace) -> None:
    one, two = (workspace.path / "agents" / name / "memory" / "checkpoints" for name in ("a1", "a2"))
    for store in (one, two):
        workspace.tool("start", "deploy", "--steps", "a", "--store", str(store))
    time.sleep(1.1)
    root = ("--root", ".")
    assert check(workspace, *root).code == WARNING
    two.parent.rename(workspace.path / "away")
    gone = check(workspace, *root)
    assert gone.code == UNKNOWN
    assert f"{two} was there, and is not" in gone.out
    check(workspace, *root)
    assert Counter(events(workspace)) == {("opened", "deploy"): 2, ("opened", ""): 1}
    forgotten = workspace.selfcheck("forget", str(two), *root)
    assert forgotten.code == 0, forgotten
    assert check(workspace, *root).code == WARNING
    assert {("resolved", ""), ("no longer watched", "deploy")} <= set(events(workspace))
    assert workspace.selfcheck("forget", "nothing", *root).code == 3


def test_the_record_of_a_workspace_stays_where_it_is(workspace: Workspace) -> None:
    """An agent whose store comes first by its name must not make all that is known, asked and undelivered be forgotten."""
    later = workspace.path / "agents" / "b1" / "memory" / "checkpoints"
    workspace.tool("start", "deploy", "--steps", "a", "--store", str(later))
    time.sleep(1.1)
    root = ("--root", ".")
    check(workspace, *root)
    quiet = workspace.selfcheck("silence", "dep*", "--for", "1h", "--by", "ann", "--reason", "x", *root)
    assert quiet.code == 0, quiet
    for store in (workspace.path / "agents" / "a0" / "memory" / "checkpoints", workspace.store):
        workspace.tool("start", "other", "--steps", "a", "--stale-after", "1h", "--store", str(store))
        check(workspace, *root)
    assert events(workspace) == [("opened", "deploy")]
    assert "silenced by ann" in workspace.selfcheck("incidents", *root).out
    assert "silenced by ann" in workspace.selfcheck("incidents").out, "also without saying which: it stands in the workspace"
    assert workspace.selfcheck("--check-monitor", "25m", *root).code == OK


def test_an_ack_goes_by_any_spelling_of_the_store(workspace: Workspace) -> None:
    asks = ("--for", "4h", "--by", "ann", "--reason", "known")
    for name in ("x", "y"):
        workspace.tool("start", "deploy", "--steps", "a", "--store", f"st/{name}")
    time.sleep(1.1)
    both = ("--store", "st/x", "--store", "st/y")
    check(workspace, *both)
    assert workspace.selfcheck("ack", "deploy", *asks, "--state", "st/x/.selfcheck", "--store", "st/x").code == 0
    listed = workspace.selfcheck("incidents", *both).out.splitlines()
    assert ["acknowledged" in line for line in listed] == ["/st/x/" in line for line in listed]
    named = workspace.selfcheck("ack", f"{workspace.path}/st/y/deploy", *asks, *both)
    assert named.code == 0, named
    assert f"{workspace.path}/st/y/deploy: acknowledged" in named.err


def test_acks_hold_on_a_disk_that_is_read_only(workspace: Workspace) -> None:
    need_root()
    stale(workspace)
    check(workspace)
    workspace.selfcheck("ack", "deploy", "--for", "4h", "--by", "ann", "--reason", "known")
    subprocess.run(["mount", "--bind", str(workspace.store), str(workspace.store)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(workspace.store)], check=True)
        for _ in range(2):
            assert check(workspace).code == UNKNOWN
    finally:
        subprocess.run(["umount", str(workspace.store)], check=True)
    assert Counter(events(workspace))["opened", "deploy"] == 1


def test_a_configuration_that_is_a_pipe_is_not_waited_for(workspace: Workspace) -> None:
    os.mkfifo(workspace.path / "pipe")
    done = workspace.selfcheck("--config", "pipe", timeout=10)
    assert (done.code, "cannot be read" in done.out) == (UNKNOWN, True)
    workspace.tool("start", "deploy")
    (workspace.path / "bom.toml").write_bytes(b'\xef\xbb\xbfthreshold = "1h"\n')
    assert workspace.selfcheck("--config", "bom.toml").code == OK
