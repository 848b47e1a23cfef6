"""JSON output is a contract: every verb is run, and what it prints is held against its schema in schemas/output.v1.schema.json.

The schemas allow fields that they do not name, as a newer version may write more. Here none is allowed: a field that is
printed and not described is an error.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import receivers
from conftest import ROOT, TOOL, Result, Workspace
from referencing import Registry, Resource
from test_house import error_classes, options_of, verbs

from checkpoint import codec, errors, incident, model, monitor

OUTPUT = json.loads((ROOT / "schemas" / "output.v1.schema.json").read_text())
RECORD = json.loads((ROOT / "schemas" / "checkpoint.v1.schema.json").read_text())
ANCHORS = {schema["$anchor"] for schema in OUTPUT["$defs"].values() if "$anchor" in schema}

# Verbs that speak something else, and refuse --json in JSON.
WITHOUT = {"shell-init", "session", "mcp"}
# What --json prints under an option is another document than without it.
VARIANTS = {
    "list-array",
    "schedule-install-print",
    "agents-install-print",
}
# Not of a verb of checkpoint-tool.
OTHERS = {"error", "notice", "selfcheck", "selfcheck-failed", "selfcheck-check-monitor", "selfcheck-incidents", "selfcheck-log"}

CRONTAB = """#!/bin/sh
cd "${0%/*}" || exit 9
case $1 in
-l) [ -e tab ] || { echo 'no crontab for tester' >&2; exit 1; }; cat tab ;;
-r) rm -f tab ;;
*) cat >tab ;;
esac
"""


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema in a schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from walk(item)
    elif isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from walk(value)


def closed() -> tuple[Any, Any]:
    """Both schemas with no room for fields that they do not name; what others add fields to is closed where it is used."""
    output, record = json.loads(json.dumps(OUTPUT)), json.loads(json.dumps(RECORD))
    bases = {one["$ref"] for one in walk(output) if "$ref" in one and "properties" in one}
    ours = {f"#/$defs/{name}": schema for name, schema in output["$defs"].items()}
    for schema in [*walk(output), *walk(record)]:
        is_base = schema is record or any(schema is ours.get(base) for base in bases)
        if isinstance(schema.get("properties"), dict) and "type" in schema and not is_base:
            schema["unevaluatedProperties"] = False
        if isinstance(schema.get("$ref"), str) and schema["$ref"] in bases and not is_base:
            schema["unevaluatedProperties"] = False
    return output, record


def validators(output: Any, record: Any) -> dict[str, jsonschema.Draft202012Validator]:
    registry: Any = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in (output, record)])
    return {
        anchor: jsonschema.Draft202012Validator({"$ref": f"{output['$id']}#{anchor}"}, registry=registry) for anchor in ANCHORS
    }


OPEN, CLOSED = validators(OUTPUT, RECORD), validators(*closed())


class Told:
    """Runs commands, and holds their output against the schemas. ``seen``: of which anchors there was any."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.seen: dict[str, list[Any]] = {}
        self.env: dict[str, str] = {}

    def value(self, anchor: str, value: Any) -> Any:
        assert [error.message for error in CLOSED[anchor].iter_errors(value)] == [], (anchor, value)
        assert OPEN[anchor].is_valid(value)
        self.seen.setdefault(anchor, []).append(value)
        return value

    def output(self, anchor: str, result: Result, *, code: int | None = 0) -> list[Any]:
        assert code in (None, result.code), result
        assert result.out.isascii()
        assert result.out.endswith("\n") or not result.out
        return [self.value(anchor, json.loads(line)) for line in result.out.splitlines()]

    def tool(self, anchor: str, *argv: str, code: int | None = 0, **more: Any) -> Any:
        """The one document of a command."""
        (one,) = self.lines(anchor, *argv, code=code, **more)
        return one

    def lines(self, anchor: str, *argv: str, code: int | None = 0, **more: Any) -> list[Any]:
        more["env"] = self.env | more.get("env", {})
        end = argv.index("--") if "--" in argv else len(argv)
        json_too = () if "--format" in argv else ("--json",)
        result = self.workspace.tool(*argv[:end], *json_too, *argv[end:], **more)
        found = self.output(anchor, result, code=code)
        if result.code in errors_by_code() and result.err:
            self.value("error", json.loads(result.err.splitlines()[-1]))
        return found

    def error(self, name: str, *argv: str, **more: Any) -> Any:
        more["env"] = self.env | more.get("env", {})
        result = self.workspace.tool(*argv, "--json", **more)
        error = self.value("error", json.loads(result.err.splitlines()[-1]))["error"]
        assert (error["name"], error["code"]) == (name, result.code), result
        return error


def errors_by_code() -> dict[int, str]:
    return {kind.exit_code: kind.__name__ for kind in error_classes()}


Scenario = Callable[[Told, Path], None]
SCENARIOS: dict[Scenario, set[str]] = {}


def shows(*anchors: str) -> Callable[[Scenario], Scenario]:
    """Of which outputs a scenario has examples."""

    def add(scenario: Scenario) -> Scenario:
        SCENARIOS[scenario] = set(anchors)
        return scenario

    return add


# --- the outputs ---------------------------------------------------------------------------------------------------------


@shows("start", "update", "resume", "heartbeat", "show", "release", "complete", "fail", "cancel", "pin", "unpin", "error")
def a_run(told: Told, folder: Path) -> None:
    schema = folder / "data.json"
    schema.write_text('{"required": ["n"]}')
    full = ("--key", "k", "--agent", "a", "--handoff", "b", "--note", "\x1b[31m", "--ttl", "7d", "--max-attempts", "3")
    full += ("--data", '{"n": [null, 1.5, true]}', "--data-schema", str(schema), "--stale-after", "30m")
    id = told.tool("start", "start", "deploy", "--steps", "a,b,c", *full, "--owner-pid", str(os.getpid()))["id"]
    told.tool(
        "update", "update", id, "--complete", "a", "--result", '{"x": null}', "--begin", "b", "--note", "n", "--data", "{}"
    )
    told.tool(
        "update", "update", id, "--fail", "b", "--error", "e", "--skip", "c", "--reason", "r", "--add", "d", "--block", "w"
    )
    told.tool("show", "show", id)
    told.tool("heartbeat", "heartbeat", id)
    told.tool("release", "release", id)
    told.tool("resume", "resume", id, "--lease", "1m")
    told.tool("update", "update", id, "--unblock", "--complete", "b", "--complete", "d")
    told.tool("complete", "complete", id)
    assert told.tool("start", "start", "deploy", "--steps", "a,b,c", *full)["created"] is False
    assert told.tool("pin", "pin", id)["pinned"] is True
    told.tool("unpin", "unpin", id)
    for verb in ("fail", "cancel"):
        told.tool("start", "start", verb, "--format", "json")
        told.tool(verb, verb, verb, "--reason", "r")
        told.tool("show", "show", verb)


@shows("list", "list-array", "watch", "verify", "repair", "prune", "error")
def a_store(told: Told, folder: Path) -> None:
    workspace = told.workspace
    assert told.lines("list", "list", code=10) == []
    for id in ("good", "bad", "late", "done"):
        workspace.tool("start", id, "--steps", "a")
    workspace.tool("cancel", "done", "--reason", "r")
    workspace.file("bad").write_text(workspace.file("bad").read_text().replace('"a"', '"z"'))
    workspace.file("late").write_text(workspace.file("late").read_text().replace("checkpoint/v1", "checkpoint/v9"))
    assert len(told.lines("list", "list", "--all")) == 4
    (rows,) = told.lines("list-array", "list", "--format", "json")
    assert [row["error"]["name"] for row in rows if "error" in row] == ["Damaged", "SchemaMismatch"]
    with subprocess.Popen(
        [TOOL, "watch", "--json"], cwd=workspace.path, env=workspace.environ(), stdout=subprocess.PIPE
    ) as watch:
        assert watch.stdout
        assert told.value("watch", json.loads(watch.stdout.readline()))["error"] is None
        watch.terminate()
    missing = [TOOL, "watch", "--json", "--store", "nowhere"]
    with subprocess.Popen(missing, cwd=workspace.path, env=workspace.environ(), stdout=subprocess.PIPE) as watch:
        assert watch.stdout
        assert told.value("watch", json.loads(watch.stdout.readline()))["error"]["name"] == "NotFound"
        watch.terminate()
    (workspace.store / ".good.0123456789ab.tmp").write_text("")
    assert told.tool("verify", "verify", code=12)["checked"] == 4
    told.tool("repair", "repair", "bad", code=12)
    told.tool("repair", "repair", "bad", "--accept")
    told.tool("repair", "repair", "bad")
    assert told.tool("verify", "verify", code=13)["damaged"][0]["kind"] == "newer"
    told.tool("repair", "repair", "late", "--quarantine")
    assert told.tool("verify", "verify")["damaged"] == []
    assert [one["id"] for one in told.tool("prune", "prune", "--keep", "0")["removed"]] == ["done"]
    assert told.tool("prune", "prune", "--keep", "0", "--apply")["applied"] is True


@shows("run", "exec", "status", "begin", "end", "error")
def commands(told: Told, folder: Path) -> None:
    workspace = told.workspace
    workspace.tool("start", "deploy", "--steps", "a,b,c,d,e,f")
    for _ in range(2):
        told.tool("run", "run", "deploy", "a", "--", "sh", "-c", "echo out; echo err >&2")
    told.tool("run", "run", "deploy", "b", "--", "false", code=1)
    told.tool("run", "run", "deploy", "c", "--timeout", "1s", "--", "sleep", "9", code=124)
    told.tool("run", "run", "deploy", "d", "--once", "--", "sh", "-c", "kill -9 $$", code=137)
    assert told.tool("status", "status", "deploy", code=None)["status"] == "running"
    assert told.tool("begin", "begin", "deploy", "e")["answer"] == "begun"
    assert told.tool("begin", "begin", "deploy", "e", "--ask")["answer"] == "in_doubt"
    assert told.tool("end", "end", "deploy", "e", "--exit-code", "1")["answer"] == "failed"
    told.tool("begin", "begin", "deploy", "e")
    assert told.tool("end", "end", "deploy", "e", "--in-place")["answer"] == "completed"
    assert told.tool("begin", "begin", "deploy", "e")["answer"] == "done"
    told.tool("begin", "begin", "deploy", "f", "--once")
    assert told.tool("end", "end", "deploy", "f", "--exit-code", "1")["answer"] == "in_doubt"
    workspace.tool("update", "deploy", "--block", "r")
    assert told.tool("status", "status", "deploy", code=34)["status"] == "blocked"
    workspace.tool("cancel", "deploy", "--reason", "r")
    assert told.tool("status", "status", "deploy", code=36)["status"] == "cancelled"
    told.tool("exec", "exec", "good", "--label", "cron", "--", "true")
    told.tool("exec", "exec", "bad", "--", "false", code=1)
    told.tool("exec", "exec", "slow", "--timeout", "1s", "--", "sleep", "9", code=124)
    for name, code, status in (("good", 0, "completed"), ("bad", 33, "failed"), ("slow", 32, "timed_out")):
        assert told.tool("status", "status", name, code=code)["status"] == status
    workspace.tool("start", "old", "--ttl", "1s")
    workspace.tool("start", "gone")
    for name in ("old", "gone"):
        workspace.tool("release", name)
    time.sleep(1.1)
    assert told.tool("status", "status", "old", code=35)["status"] == "expired"
    assert told.tool("status", "status", "gone", code=31)["status"] == "interrupted"
    seen = {one["status"] for one in told.seen["status"]}
    assert seen == set(model.RunState)


@shows("error")
def failures(told: Told, folder: Path) -> None:
    workspace, other = told.workspace, {"CHECKPOINT_OWNER": "other"}
    named = set()

    def error(name: str, *argv: str, **more: Any) -> None:
        named.add(told.error(name, *argv, **more)["name"])

    error("NothingToResume", "resume")
    workspace.tool("start", "deploy", "--steps", "a,b", "--max-attempts", "1")
    workspace.tool("update", "deploy", "--begin", "a", "--once")
    error("Usage", "start", "No Name")
    error("NotFound", "show", "nothing")
    error("Locked", "resume", "deploy", env=other)
    error("SchemaMismatch", "start", "s", "--data-schema", "-", "--data", "{}", input='{"required": ["n"]}')
    error("Conflict", "start", "deploy", "--steps", "c")
    error("InvalidTransition", "complete", "deploy")
    error("SecretFound", "update", "deploy", "--note", "AKIA" + "QWERTYUIOPASDFGH")
    error("StoreUnavailable", "list", "--store", "/dev/null")
    error("StaleToken", "update", "deploy", "--begin", "b", "--token", "9")
    error("InDoubt", "update", "deploy", "--begin", "a")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [TOOL, "show", "deploy", "--json"], cwd=workspace.path, env=workspace.environ(), stdout=full, stderr=subprocess.PIPE
        )
    named.add(told.value("error", json.loads(done.stderr))["error"]["name"])
    process = subprocess.Popen(["sleep", "60"])
    workspace.tool("start", "dies", "--max-attempts", "1", "--owner-pid", str(process.pid))
    process.kill()
    process.wait()
    error("AttemptsExhausted", "resume", "dies")
    workspace.file("dies").write_text("{}")
    error("Damaged", "show", "dies")
    nothing = {"PATH": str(folder), "HOME": str(folder)}
    error("SchedulerUnavailable", "schedule", "install", "--with", "cron", env=nothing)
    code = (
        "import sys; from checkpoint.cli import main, options, workflow; workflow.open_checkpoints = None; main(sys.argv[1:])"
    )
    done = workspace.run(sys.executable, "-c", code, "show", "x", "--json")  # type: ignore[assignment]
    named.add(told.value("error", json.loads(done.err))["error"]["name"])  # type: ignore[attr-defined]
    assert named == {kind.__name__ for kind in error_classes()} | {"Bug"}


@shows(
    "schedule-install",
    "schedule-install-print",
    "schedule-add",
    "schedule-set",
    "schedule-list",
    "schedule-next",
    "schedule-status",
    "schedule-sync",
    "schedule-undo",
    "schedule-remove",
    "schedule-migrate",
    "schedule-doctor",
    "error",
)
def schedules(told: Told, folder: Path) -> None:
    program = folder / "bin" / "crontab"
    program.parent.mkdir()
    program.write_text(CRONTAB)
    program.chmod(0o755)
    # No systemd of this machine can be reached: neither its program nor its bus.
    for name in ("sh", "cat", "rm"):
        (program.parent / name).symlink_to(shutil.which(name) or "")
    told.env = {"PATH": str(program.parent), "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "TZ": "UTC"}
    here = str(told.workspace.path)
    (told.workspace.path / "memory").mkdir()
    told.tool("schedule-install-print", "schedule", "install", "--with", "cron", "--print")
    told.tool("schedule-install", "schedule", "install", "--with", "cron")
    told.tool("schedule-add", "schedule", "add", here, "@daily", "--name", "one", "--", "true")
    assert len(told.lines("schedule-set", "schedule", "set", here, '["@daily", "0 3 * * 1"]', "--", "true", "x")) == 2
    assert len(told.lines("schedule-list", "schedule", "list")) == 3
    assert len(told.lines("schedule-list", "schedule", "list", here, "--installed")) == 3
    block = "# BEGIN checkpoint-tool {0}\n@daily true\n# END checkpoint-tool {0}\n".format("checkpoint-gone-01234567-x")
    with open(program.parent / "tab", "a") as tab:
        tab.write(block)
    assert [one["workspace"] for one in told.lines("schedule-list", "schedule", "list", "--installed")].count(None) == 1
    assert len(told.lines("schedule-next", "schedule", "next", "@daily", "--tz", "Europe/Berlin")) == 5
    assert len(told.lines("schedule-next", "schedule", "next", here)) == 15
    assert len(told.lines("schedule-status", "schedule", "status")) == 3
    (program.parent / "tab").unlink()
    assert told.lines("schedule-doctor", "schedule", "doctor", code=18)
    assert len(told.lines("schedule-sync", "schedule", "sync")) == 3
    assert told.lines("schedule-sync", "schedule", "sync") == []
    told.tool("schedule-remove", "schedule", "remove", here, "@daily")
    told.tool("schedule-undo", "schedule", "undo")
    moved = folder / "moved"
    moved.mkdir()
    assert told.lines("schedule-migrate", "schedule", "migrate", here, str(moved))
    told.error("NotFound", "schedule", "remove", here, "nothing")


@shows("agents-brief", "agents-install", "agents-install-print", "error")
def agents(told: Told, folder: Path) -> None:
    workspace = told.workspace
    told.env = {"HOME": str(folder)}
    assert told.tool("agents-brief", "agents", "brief")["checkpoints"] == []
    workspace.tool("start", "deploy", "--steps", "a,b", "--note", "n", "--handoff", "bot")
    workspace.tool("update", "deploy", "--begin", "a", "--once")
    workspace.tool("release", "deploy")
    workspace.tool("start", "mine", "--steps", "a")
    workspace.tool("start", "other", "--steps", "a", env={"CHECKPOINT_OWNER": "other"})
    (workspace.store / "bad.json").write_text("{}")
    assert told.tool("agents-brief", "agents", "brief", "--agent", "bot")["unfinished"] == 3
    told.tool("agents-brief", "agents", "brief", "--store", "/dev/null")
    told.tool("agents-install-print", "agents", "install", "--print")
    told.tool("agents-install", "agents", "install", "--check", code=None)
    told.tool("agents-install", "agents", "install")
    told.tool("agents-install", "agents", "install", "--check")
    told.tool("agents-install", "agents", "install", "--remove")


@shows("selfcheck", "selfcheck-failed", "selfcheck-check-monitor", "selfcheck-incidents", "selfcheck-log", "notice")
def the_self_check(told: Told, folder: Path) -> None:
    workspace = told.workspace
    short = ("--threshold", "1s", "--json")

    def check(anchor: str, *argv: str, code: int | None = None) -> Any:
        (one,) = told.output(anchor, workspace.selfcheck(*argv), code=code)
        return one

    check("selfcheck-failed", "--json", "--no-such-option", code=3)
    assert check("selfcheck", "--json", code=3)["findings"][0]["reason"] == "missing_store"
    assert check("selfcheck-check-monitor", "--check-monitor", "1h", "--json", code=2)["age_s"] == 0
    for id, more in (
        ("slow", ()),
        ("left", ()),
        ("stopped", ("--block", "r")),
        ("doubt", ("--begin", "a", "--once")),
        ("sad", ("--fail", "a", "--error", "e")),
        ("ill", ()),
        ("far", ()),
    ):
        workspace.tool("start", id, "--steps", "a,b")
        workspace.tool("update", id, *more)
        if id not in ("slow", "far"):
            workspace.tool("release", id)
    workspace.tool("start", "old", "--ttl", "1s")
    workspace.file("ill").write_text("{}")
    far = codec.decode(workspace.file("far").read_bytes(), "far").checkpoint
    workspace.file("far").write_bytes(codec.encode(far._replace(progress_at=far.progress_at + timedelta(days=1))).raw)
    (workspace.store / "newer.json").write_text(workspace.file("old").read_text().replace("checkpoint/v1", "checkpoint/v9"))
    time.sleep(1.1)
    (workspace.path / "full").symlink_to("/dev/full")
    (workspace.store / "Thumbs.db").write_text("x")
    report = check("selfcheck", *short, "--log", "full", code=2)
    elsewhere = {"missing_store", "unwritten", "looping", "vanished"}
    assert {finding["reason"] for finding in report["findings"]} | elsewhere == set(monitor.Reason)

    command = f"command:{shlex.quote(sys.executable)} -c \"import sys; open('noticed', 'a').write(sys.stdin.read() + chr(10))\""
    with receivers.web() as web:
        channels = ("--notify", "log:notices", "--notify", command, "--notify", web.url, "--notify", "syslog:/nowhere")
        check("selfcheck", *short, "--log", "log", "--metrics", "/dev/full/m", *channels, code=2)
        ack = ("--for", "1h", "--by", "ann", "--reason", "r")
        assert workspace.selfcheck("ack", "slow", *ack).code == 0
        assert workspace.selfcheck("silence", "left*", *ack).code == 0
        assert workspace.selfcheck("snooze", "nothing", *ack).code == 0
        listed = check("selfcheck-incidents", "incidents", "--json", code=0)
        assert {one["quiet"]["verb"] for one in listed["incidents"] if one["quiet"]} == {"ack", "silence"}
        assert listed["undelivered"]
        workspace.tool("cancel", "sad", "--reason", "r")
        workspace.tool("cancel", "doubt", "--reason", "r")
        check("selfcheck", *short, "--log", "log", *channels)
        assert check("selfcheck-incidents", "incidents", "--all", "--json", code=0)["incidents"]
        assert check("selfcheck-check-monitor", "--check-monitor", "1h", "--json", code=0)["status"] == "OK"
        workspace.selfcheck("test-notify", "--notify", web.url, "--notify", command)
        for request in web.requests:
            assert "text" in told.value("notice", request.json)
    lines = [told.value("selfcheck-log", json.loads(line)) for line in (workspace.path / "log").read_text().splitlines()]
    assert {line["event"] for line in lines} == {"run", "finding", "incident", "delivery"}
    assert {line["delivered"] for line in lines if line["event"] == "delivery"} == {True, False}
    for name in ("notices", "noticed"):
        found = [told.value("notice", json.loads(line)) for line in (workspace.path / name).read_text().splitlines()]
        assert len(found) == (2 if name == "notices" else 3)
        assert {change["event"] for notice in found for change in notice["changes"]} >= {"opened", "resolved"}


# --- the tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_what_is_printed_is_what_the_schema_says(scenario: Scenario, workspace: Workspace, tmp_path_factory: Any) -> None:
    told = Told(workspace)
    scenario(told, tmp_path_factory.mktemp("beside"))
    assert SCENARIOS[scenario] == set(told.seen) | (SCENARIOS[scenario] & {"error"})
    # A schema that takes anything is none.
    optional = {"notice": {"test", "text", "event"}, "selfcheck-log": {"error"}}
    for anchor, values in told.seen.items():
        value = values[0]
        if anchor.endswith("-print"):
            assert not OPEN[anchor].is_valid(value | {"path": 1})
            continue
        if anchor == "list-array":
            (value, *_), anchor = value, "list"
        assert not CLOSED[anchor].is_valid(value | {"unheard_of": 1})
        assert OPEN[anchor].is_valid(value | {"unheard_of": 1})
        for name in value.keys() - optional.get(anchor, set()):
            assert not OPEN[anchor].is_valid({key: value[key] for key in value if key != name}), (anchor, name)


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_reports_its_errors_as_json(verb: str, workspace: Workspace) -> None:
    Told(workspace).error("Usage", *verb.split(), "--no-such-option")


@pytest.mark.parametrize("verb", sorted(WITHOUT))
def test_verbs_without_json_say_so_in_json(verb: str, workspace: Workspace) -> None:
    argument = {"shell-init": ["bash"], "session": ["--owner-pid", "1"], "mcp": []}[verb]
    assert "Json" in Told(workspace).error("Usage", verb, *argument)["message"].title()


def test_every_verb_that_takes_json_has_a_schema() -> None:
    taking = {verb.replace(" ", "-") for verb, command in verbs().items() if "--json" in options_of(command)}
    assert taking - WITHOUT == ANCHORS - VARIANTS - OTHERS


def test_every_schema_is_used_by_a_test() -> None:
    assert set().union(*SCENARIOS.values()) == ANCHORS
    for schema in (OUTPUT, RECORD):
        jsonschema.Draft202012Validator.check_schema(schema)
    names = {f"#/$defs/{name}" for name, schema in OUTPUT["$defs"].items() if "$anchor" not in schema}
    assert names == {one["$ref"] for one in walk(OUTPUT) if "$ref" in one and one["$ref"].startswith("#")}
    assert all(name == schema["$anchor"] for name, schema in OUTPUT["$defs"].items() if "$anchor" in schema)


def test_the_words_of_the_schema_are_those_of_the_code() -> None:
    def words(*path: str) -> set[Any]:
        schema: Any = OUTPUT["$defs"]
        for name in path:
            schema = schema[name]
        return set(schema["enum"])

    assert words("checkpoint", "properties", "owner_state") == set(model.OwnerState)
    assert words("status", "properties", "status") == set(model.RunState)
    assert words("finding", "properties", "reason") == set(monitor.Reason)
    assert words("severity") == {severity.name for severity in monitor.Severity}
    assert words("event") == set(incident.Event)
    assert words("incident", "properties", "state") == set(incident.State)
    kinds = set(errors.DAMAGE_KINDS) | {"data", "unreadable", "newer"}
    assert words("verify", "properties", "damaged", "items", "properties", "kind") == kinds


def test_every_output_is_documented() -> None:
    text = (ROOT / "docs" / "json.md").read_text()
    assert [anchor for anchor in ANCHORS if f"`{anchor}`" not in text] == []


def test_the_documented_way_to_validate(workspace: Workspace) -> None:
    text = (ROOT / "docs" / "json.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    workspace.tool("start", "deploy", "--steps", "a")
    (workspace.path / "validate.py").write_text(code)
    shown = workspace.tool("show", "deploy", "--json").out
    done = workspace.run(sys.executable, "validate.py", "show", input=shown)
    assert (done.code, done.out) == (0, ""), done
    done = workspace.run(sys.executable, "validate.py", "show", input=shown.replace('"in_doubt": []', '"in_doubt": 3'))
    assert done.code == 1
    assert "3 is not of type 'array'" in done.out


def test_what_older_versions_wrote_is_printed_as_the_schema_says(tmp_path: Path) -> None:
    for path in sorted((ROOT / "tests" / "golden").glob("*.json")):
        store = tmp_path / path.stem
        store.mkdir(mode=0o700)
        target = store / f"{json.loads(path.read_text())['id']}.json"
        shutil.copyfile(path, target)
        target.chmod(0o600)
        (line,) = Workspace(tmp_path).tool("list", "--all", "--json", "--store", str(store)).lines
        assert "error" not in line
        assert [error.message for error in OPEN["list"].iter_errors(line)] == []
