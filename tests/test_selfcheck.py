"""checkpoint-selfcheck as an operator's machine runs it: real processes, real stores, and every kind of bad file."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, SELFCHECK, Result, Workspace, lacking, need_program, need_root, powerless

HOUR = 3600
DAY = 24 * HOUR
OK, WARNING, CRITICAL, UNKNOWN = range(4)
EXIT_CODES = {"OK": OK, "WARNING": WARNING, "CRITICAL": CRITICAL, "UNKNOWN": UNKNOWN}

# Colours, a bell, a carriage return, C1, direction marks, a zero-width space, a line separator: and a line that would
# be taken for another result, with performance data of its own.
EVIL = "\x1b[31mred\x1b[0m\x07\r\t\x9b2J\u202eexe\u200b\u2028|evil=1;2\nCHECKPOINT OK - all is well | stale=0\n\x7f"

# --- the plugin's output, by the Monitoring Plugins development guidelines ----------------------------------------------

_NUMBER = r"-?\d+(?:\.\d+)?"
_RANGE = rf"@?(?:(?:{_NUMBER}|~):)?(?:{_NUMBER})?"
FIRST_LINE = re.compile(r"CHECKPOINT (OK|WARNING|CRITICAL|UNKNOWN) - ([^|\n]*[^|\s]) \| (\S[^|\n]*\S)")
PERFORMANCE = re.compile(
    rf"(?P<label>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>{_NUMBER})(?P<unit>s|ms|us|%|[KMGT]?B|c)?"
    rf"(?:;(?P<warn>{_RANGE})(?:;(?P<crit>{_RANGE})(?:;(?P<min>{_NUMBER})?(?:;(?P<max>{_NUMBER})?)?)?)?)?"
)
UNKNOWN_LINE = re.compile(r"CHECKPOINT UNKNOWN - [^|\n]+\n")


class Output(NamedTuple):
    """The lines of one check, taken apart."""

    state: str
    words: str
    performance: dict[str, dict[str, str | None]]
    findings: list[str]


def parsed(result: Result) -> Output:
    """Asserts that what was printed is what a monitoring system reads, and agrees with the exit status."""
    harmless(result)
    first, *findings = result.out.splitlines()
    match = FIRST_LINE.fullmatch(first)
    assert match, first
    performance = {}
    for item in match[3].split(" "):
        data = PERFORMANCE.fullmatch(item)
        assert data, item
        performance[str(data["label"])] = data.groupdict()
    assert list(performance) == ["stale", "oldest_age", "unfinished", "unreadable"]
    assert EXIT_CODES[match[1]] == result.code, f"exit {result.code}, yet: {first}"
    for line in findings:
        # What stands behind a bar on any line is performance data too.
        assert "|" not in line
    return Output(match[1], match[2], performance, findings)


def harmless(result: Result) -> None:
    """Nothing on either stream that a terminal would act on or that hides text."""
    for character in result.out + result.err:
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(character)


def found(workspace: Workspace, *argv: str, **more: Any) -> dict[str, dict[str, Any]]:
    """The findings by id."""
    result = workspace.selfcheck("--json", *argv, **more)
    document = result.json
    assert document["exit_code"] == result.code == EXIT_CODES[document["status"]]
    findings = {finding["id"]: finding for finding in document["findings"]}
    assert len(findings) == len(document["findings"]), "one finding for each"
    return findings


def reasons(workspace: Workspace, *argv: str, **more: Any) -> dict[str, str]:
    return {id: finding["reason"] for id, finding in found(workspace, *argv, **more).items()}


# --- stores in the state that a test needs ------------------------------------------------------------------------------


def sealed(record: dict[str, Any]) -> str:
    bare = {name: value for name, value in record.items() if name != "digest"}
    canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps(bare | {"digest": digest}, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def put(path: Path, text: str | bytes) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)


def edit(workspace: Workspace, change: Callable[[dict[str, Any]], object], id: str = "deploy") -> None:
    """Change a record by hand, and seal it anew: what a store would hold had it happened."""
    record = workspace.record(id)
    change(record)
    put(workspace.file(id), sealed(record))


def stamp(seconds_ago: float) -> str:
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def aged(record: dict[str, Any], seconds: float = HOUR) -> None:
    for name in ("created_at", "updated_at", "progress_at", "heartbeat_at"):
        record[name] = stamp(seconds)


def start(workspace: Workspace, id: str = "deploy", *more: str, age_s: float | None = None) -> Any:
    result = workspace.tool("start", id, "--steps", "build,push", "--json", *more)
    assert result.code == 0, result.err
    if age_s is not None:
        edit(workspace, lambda record: aged(record, age_s), id)
    # With a key the file is called after both.
    return workspace.record(result.json["id"])


def clone(record: dict[str, Any], id: str, store: Path, **changes: Any) -> None:
    """Another run with the same content: much faster than starting one."""
    put(store / f"{id}.json", sealed(record | {"id": id, "workflow": id} | changes))


def everything(folder: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """All that a write, a lock or a rename below ``folder`` would change."""
    seen = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 22 else b""
        seen[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, content)
    return seen


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns a run."""
    with subprocess.Popen([need_program("sleep"), "300"]) as running:
        yield running
        running.kill()


def killed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def open_workspace() -> Iterator[Workspace]:
    """A workspace in a folder that other users may enter (pytest's own are closed to them)."""
    with tempfile.TemporaryDirectory(prefix="selfcheck") as folder:
        path = Path(folder).resolve()
        path.chmod(0o755)
        yield Workspace(path)


def powerless_check(workspace: Workspace, *argv: str) -> Result:
    """The self-check as a user for whom permissions count."""
    return workspace.run(*powerless(), SELFCHECK, *argv)


def give_to_nobody(path: Path) -> None:
    need_root()
    for each in [path, *path.rglob("*")]:
        os.chown(each, 65534, 65534, follow_symlinks=False)


# --- exit status and the lines ------------------------------------------------------------------------------------------


def test_nothing_stale_is_ok(workspace: Workspace) -> None:
    start(workspace)
    result = workspace.selfcheck()
    output = parsed(result)
    assert (result.code, output.state, output.findings, result.err) == (OK, "OK", [], "")
    assert output.performance["unfinished"]["value"] == "1"
    assert output.performance["stale"]["value"] == output.performance["oldest_age"]["value"] == "0"


def test_an_empty_store_is_ok(workspace: Workspace) -> None:
    workspace.store.mkdir(parents=True, mode=0o700)
    assert parsed(workspace.selfcheck()).performance["unfinished"]["value"] == "0"


def test_a_stale_run_is_a_warning(workspace: Workspace) -> None:
    record = start(workspace)
    clone(record, "backup", workspace.store)
    edit(workspace, lambda record: aged(record, 3 * HOUR))
    result = workspace.selfcheck()
    output = parsed(result)
    assert result.code == WARNING
    assert len(output.findings) == 1
    assert "deploy" in output.words
    assert "3h" in output.words
    assert "deploy" in output.findings[0]
    assert "slow" in output.findings[0]
    stale, age = output.performance["stale"], output.performance["oldest_age"]
    assert (stale["value"], stale["warn"], stale["crit"], stale["min"]) == ("1", "0", "5", "0")
    assert (age["unit"], age["warn"], age["crit"], age["min"]) == ("s", "600", "86400", "0")
    assert 3 * HOUR <= int(str(age["value"])) <= 3 * HOUR + 60
    assert output.performance["unfinished"]["value"] == "2"


def test_the_thresholds_are_given_and_stand_in_the_performance_data(workspace: Workspace) -> None:
    start(workspace, age_s=3 * HOUR)
    for threshold, critical, code in (
        ("4h", "24h", OK),
        ("2h", "24h", WARNING),
        ("90m", "2h", CRITICAL),
        ("1s", "1d", WARNING),
    ):
        result = workspace.selfcheck("--threshold", threshold, "--critical", critical)
        assert result.code == code, (threshold, critical)
        parsed(result)
    age = parsed(workspace.selfcheck("--threshold", "2h", "--critical", "1w")).performance["oldest_age"]
    assert (age["warn"], age["crit"]) == ("7200", "604800")


def test_a_day_without_progress_is_critical(workspace: Workspace) -> None:
    start(workspace, age_s=DAY + 60)
    assert parsed(workspace.selfcheck()).state == "CRITICAL"


def test_its_own_threshold_comes_first(workspace: Workspace) -> None:
    record = start(workspace, "deploy", "--stale-after", "30m")
    aged(record, 20 * 60)
    clone(record, "patient", workspace.store)
    clone(record, "hasty", workspace.store, stale_after_s=60)
    clone(record, "usual", workspace.store, stale_after_s=None)
    edit(workspace, lambda record: aged(record, 31 * 60))
    assert set(found(workspace)) == {"deploy", "hasty", "usual"}


def test_a_heartbeat_does_not_hide_it(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    assert workspace.tool("heartbeat", "deploy").code == 0
    assert reasons(workspace) == {"deploy": "slow"}


def test_more_than_five_stale_ones_are_critical(workspace: Workspace) -> None:
    record = start(workspace, age_s=HOUR)
    for number in range(4):
        clone(record, f"run-{number}", workspace.store)
    assert parsed(workspace.selfcheck()).state == "WARNING"
    clone(record, "run-4", workspace.store)
    output = parsed(workspace.selfcheck())
    assert output.state == "CRITICAL"
    assert len(output.findings) == 6


def test_a_missing_store_is_unknown(workspace: Workspace) -> None:
    for argv in ((), ("--store", "nowhere"), ("--root", "nowhere"), ("--root", ".")):
        result = workspace.selfcheck(*argv)
        output = parsed(result)
        assert (result.code, len(output.findings)) == (UNKNOWN, 1)
        assert next(iter(found(workspace, *argv).values()))["reason"] == "missing_store"
    assert list(workspace.path.iterdir()) == []


def test_critical_outweighs_unknown_outweighs_warning(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    both = ("--store", "memory/checkpoints", "--store", "nowhere")
    assert parsed(workspace.selfcheck(*both)).state == "UNKNOWN"
    put(workspace.file("bad"), "{")
    assert parsed(workspace.selfcheck(*both)).state == "CRITICAL"


@pytest.mark.parametrize(
    "argv",
    [
        ("--no-such-option",),
        ("--thresh", "1h"),
        ("stray",),
        ("--store",),
        ("--store", ""),
        ("--threshold", "soon"),
        ("--threshold", "10"),
        ("--threshold", "0s"),
        ("--threshold", "-5m"),
        ("--critical", ""),
        ("--threshold", "9" * 9 + "w"),
        ("--quiet", "--nonsense"),
        (f"--{EVIL}",),
        ("--threshold", EVIL),
        ("\udcff\udc80",),
        ("--store", "\udcff", "--state", "state"),
    ],
)
def test_bad_usage_is_unknown(argv: tuple[str, ...], workspace: Workspace) -> None:
    start(workspace)
    result = workspace.selfcheck(*argv)
    assert result.code == UNKNOWN
    assert UNKNOWN_LINE.fullmatch(result.out), result.out
    harmless(result)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str, workspace: Workspace) -> None:
    result = workspace.selfcheck(option)
    assert result.code == 0
    assert "checkpoint-selfcheck" in result.out


def test_json(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    put(workspace.file("bad"), "{")
    result = workspace.selfcheck("--json")
    assert (result.code, result.out.count("\n"), result.err) == (CRITICAL, 1, "")
    document = result.json
    assert (document["status"], document["exit_code"]) == ("CRITICAL", CRITICAL)
    assert (document["unfinished"], document["stale"], document["unreadable"]) == (1, 1, 1)
    assert document["stores"] == ["memory/checkpoints"]
    assert datetime.fromisoformat(document["checked_at"]).tzinfo is not None
    bad, deploy = document["findings"]
    assert (bad["id"], bad["reason"], bad["severity"]) == ("bad", "damaged", "CRITICAL")
    assert (deploy["id"], deploy["reason"], deploy["severity"]) == ("deploy", "slow", "WARNING")
    assert (deploy["owner"], deploy["next"], deploy["in_doubt"]) == ("tester", "build", [])
    assert HOUR <= deploy["age_s"] < HOUR + 60


def test_json_while_all_is_well(workspace: Workspace) -> None:
    start(workspace)
    document = workspace.selfcheck("--json").json
    assert (document["status"], document["exit_code"], document["findings"]) == ("OK", 0, [])


def test_quiet_is_silent_only_while_all_is_well(workspace: Workspace) -> None:
    record = start(workspace)
    assert workspace.selfcheck("--quiet") == (OK, "", "")
    missing = workspace.selfcheck("--quiet", "--store", "nowhere")
    assert parsed(missing).state == "UNKNOWN"
    aged(record)
    clone(record, "stale", workspace.store)
    assert workspace.selfcheck("--quiet").out == workspace.selfcheck().out != ""


# --- which stores -------------------------------------------------------------------------------------------------------


def test_the_store_of_the_environment(workspace: Workspace) -> None:
    assert workspace.tool("start", "deploy", "--store", "elsewhere").code == 0
    assert workspace.selfcheck().code == UNKNOWN
    assert workspace.selfcheck(env={"CHECKPOINT_STORE": "elsewhere"}).code == OK


def test_several_stores(workspace: Workspace) -> None:
    record = start(workspace, age_s=HOUR)
    other = workspace.path / "other"
    other.mkdir(0o700)
    clone(record, "backup", other)
    findings = found(workspace, "--store", "memory/checkpoints", "--store", "other")
    assert {id: finding["store"] for id, finding in findings.items()} == {"deploy": "memory/checkpoints", "backup": "other"}
    output = parsed(workspace.selfcheck("--store", "memory/checkpoints", "--store", "other"))
    assert output.performance["unfinished"]["value"] == "2"


def agents(workspace: Workspace, *names: str) -> None:
    """A workspace with a stale run in its own store and in that of each agent, called after it."""
    record = start(workspace, "own", age_s=HOUR)
    for name in names:
        store = workspace.path / "agents" / name / "memory" / "checkpoints"
        store.mkdir(parents=True, mode=0o700)
        clone(record, name, store)


def test_root_finds_the_store_of_the_workspace_and_those_of_its_agents(workspace: Workspace) -> None:
    agents(workspace, "ann", "bob")
    (workspace.path / "agents" / "without-a-store").mkdir()
    (workspace.path / "agents" / "README").write_text("words")
    assert set(found(workspace, "--root", ".")) == {"own", "ann", "bob"}
    assert set(found(workspace, "--root", str(workspace.path))) == {"own", "ann", "bob"}
    assert set(found(workspace, "--root", "agents/ann", "--root", "agents/bob")) == {"ann", "bob"}
    assert set(found(workspace, "--root", "agents/ann", "--store", "memory/checkpoints")) == {"own", "ann"}


def test_root_with_agents_alone(workspace: Workspace) -> None:
    agents(workspace, "ann")
    shutil.rmtree(workspace.path / "memory")
    assert set(found(workspace, "--root", ".")) == {"ann"}


def test_one_root_that_is_missing_does_not_hide_the_other(workspace: Workspace) -> None:
    agents(workspace, "ann")
    result = workspace.selfcheck("--root", "nowhere", "--root", ".", "--json")
    assert result.code == UNKNOWN
    assert sorted(finding["reason"] for finding in result.json["findings"]) == ["missing_store", "slow", "slow"]


def test_one_root_that_cannot_be_listed_does_not_hide_the_other(workspace: Workspace) -> None:
    start(workspace, age_s=DAY + 60)
    result = workspace.selfcheck("--root", "x" * 5000, "--root", ".", "--json")
    assert result.code == CRITICAL
    assert sorted(finding["id"] for finding in result.json["findings"]) == ["", "deploy"]


def test_a_store_that_is_named_twice_is_counted_once(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    twice = ("--store", "memory/checkpoints", "--store", f"{workspace.path}/memory/../memory/checkpoints/", "--root", ".")
    output = parsed(workspace.selfcheck(*twice))
    assert (output.performance["stale"]["value"], output.performance["unfinished"]["value"]) == ("1", "1")
    assert len(output.findings) == 1


def test_a_store_of_an_agent_that_is_a_link_is_told(workspace: Workspace) -> None:
    agents(workspace, "ann")
    elsewhere = workspace.path / "agents" / "bob" / "memory"
    elsewhere.mkdir(parents=True)
    (elsewhere / "checkpoints").symlink_to(workspace.store)
    result = workspace.selfcheck("--root", ".", "--json")
    assert result.code == UNKNOWN
    assert {finding["id"] for finding in result.json["findings"]} == {"own", "ann", ""}


@pytest.mark.parametrize("closed", ["agents", "agents/bob", "agents/bob/memory", "agents/bob/memory/checkpoints", "memory"])
def test_a_folder_that_cannot_be_looked_into_is_no_empty_one(closed: str, open_workspace: Workspace) -> None:
    agents(open_workspace, "ann", "bob")
    (open_workspace.path / closed).chmod(0)
    result = powerless_check(open_workspace, "--root", ".", "--json")
    assert result.code == UNKNOWN
    seen = {"own", "ann", "bob"} - {"agents": {"ann", "bob"}, "memory": {"own"}}.get(closed, {"bob"})
    assert {finding["id"] for finding in result.json["findings"]} >= seen


# --- stores that cannot be looked at ------------------------------------------------------------------------------------


def _link(store: Path) -> None:
    store.rename(store.with_name("real"))
    store.symlink_to("real")


def _file(store: Path) -> None:
    shutil.rmtree(store)
    store.write_text("words")


UNSAFE = {
    "writable for all": lambda store: store.chmod(0o703),
    "writable for the group": lambda store: store.chmod(0o730),
    "world-writable and sticky": lambda store: store.chmod(0o1777),
    "a link": _link,
    "a file": _file,
}


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_unsafe_store_is_unknown_and_the_others_are_judged(unsafe: str, workspace: Workspace) -> None:
    record = start(workspace, age_s=HOUR)
    other = workspace.path / "other"
    other.mkdir(0o700)
    clone(record, "backup", other)
    UNSAFE[unsafe](workspace.store)
    result = workspace.selfcheck()
    assert (result.code, parsed(result).state) == (UNKNOWN, "UNKNOWN")
    both = workspace.selfcheck("--store", "memory/checkpoints", "--store", "other", "--json")
    assert both.code == UNKNOWN
    assert {finding["id"] for finding in both.json["findings"]} == {"", "backup"}


def test_an_unreadable_store_is_unknown(open_workspace: Workspace) -> None:
    start(open_workspace)
    assert parsed(powerless_check(open_workspace)).state == "OK"
    open_workspace.store.chmod(0)
    assert parsed(powerless_check(open_workspace)).state == "UNKNOWN"
    open_workspace.store.chmod(0o700)
    open_workspace.store.parent.chmod(0)
    assert parsed(powerless_check(open_workspace)).state == "UNKNOWN"


def test_a_store_of_another_user_is_unknown_to_all_but_root(open_workspace: Workspace) -> None:
    need_root()
    start(open_workspace)
    give_to_nobody(open_workspace.path / "memory")
    open_workspace.store.parent.chmod(0o755)
    assert parsed(powerless_check(open_workspace)).state == "UNKNOWN"
    assert parsed(open_workspace.selfcheck()).state == "OK"
    open_workspace.store.chmod(0o755)
    assert parsed(powerless_check(open_workspace)).state == "CRITICAL", "its files are closed"


@pytest.mark.parametrize("argv", [["--check-monitor", "25m"], ["incidents"], ["incidents", "--json"], []])
def test_a_result_that_cannot_be_written_is_unknown_in_one_line(workspace: Workspace, argv: list[str]) -> None:
    start(workspace)
    assert workspace.selfcheck("--notify", "log:notices").code in (OK, WARNING)
    for stream in (">/dev/full", ">&-"):
        done = workspace.run("/bin/sh", "-c", f"exec {shlex.join([SELFCHECK, *argv])} {stream}")
        assert (done.code, done.out, done.err.count("\n")) == (UNKNOWN, "", 1), done
        assert "the result cannot be written" in done.err


# --- bad files: one finding each, and the others are judged --------------------------------------------------------------


def _socket(path: Path, _: dict[str, Any]) -> None:
    listening = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    # The path of a socket must not be longer than 107 bytes.
    os.chdir(path.parent)
    try:
        listening.bind(path.name)
    finally:
        os.chdir(here)
        listening.close()


def _sparse(path: Path, _: dict[str, Any]) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def _flipped(path: Path, record: dict[str, Any]) -> None:
    data = bytearray(sealed(record).encode())
    data[data.index(b"tester")] ^= 1
    put(path, bytes(data))


def _twice(path: Path, record: dict[str, Any]) -> None:
    put(path, sealed(record).replace('"agent":null', '"agent":null,"agent":"ann"', 1))


def _foreign(path: Path, record: dict[str, Any]) -> None:
    need_root()
    put(path, sealed(record))
    os.chown(path, 65534, 65534)


def _device(path: Path, _: dict[str, Any]) -> None:
    need_root()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def _changed(**changes: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, record: put(path, sealed(record | changes))


def _text(make: Callable[[str], str | bytes]) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, record: put(path, make(sealed(record)))


def _dated(name: str, value: str) -> Callable[[Path, dict[str, Any]], None]:
    return _changed(**{name: value})


BAD = {
    "a link": (lambda path, _: path.symlink_to("../outside"), "damaged"),
    "a link to a good one": (lambda path, _: path.symlink_to("alpha.json"), "damaged"),
    "a directory": (lambda path, _: path.mkdir(), "damaged"),
    "a named pipe": (lambda path, _: os.mkfifo(path), "damaged"),
    "a socket": (_socket, "damaged"),
    "a device without end": (_device, "damaged"),
    "another user's": (_foreign, "damaged"),
    "a sparse gigabyte": (_sparse, "damaged"),
    "empty": (_text(lambda _: ""), "damaged"),
    "truncated": (_text(lambda text: text[: len(text) // 2]), "damaged"),
    "truncated by a byte or two": (_text(lambda text: text[:-2]), "damaged"),
    "a flipped bit": (_flipped, "damaged"),
    "zeros": (_text(lambda text: b"\0" * len(text)), "damaged"),
    "UTF-16": (_text(lambda text: text.encode("utf-16")), "damaged"),
    "UTF-16 without a mark": (_text(lambda text: text.encode("utf-16-le")), "damaged"),
    "Latin-1": (_text(lambda text: text.replace("tester", "t\xe9ster").encode("latin-1")), "damaged"),
    "a byte order mark": (_text(lambda text: b"\xef\xbb\xbf" + text.encode()), "damaged"),
    "a duplicate key": (_twice, "damaged"),
    "nested deeply": (_text(lambda _: "[" * 100_000 + "]" * 100_000), "damaged"),
    "nested deeply and cut": (_text(lambda _: '{"schema":' + '{"a":' * 100_000), "damaged"),
    "data nested deeply": (
        _text(lambda text: text.replace('"data":{}', '"data":{"a":' + "[" * 100_000 + "]" * 100_000 + "}")),
        "damaged",
    ),
    "a number without end": (_text(lambda text: text.replace('"attempts":1', '"attempts":' + "1" * 100_000)), "damaged"),
    "NaN": (_text(lambda text: text.replace('"data":{}', '"data":{"a":NaN}')), "damaged"),
    "no object": (_text(lambda _: "null\n"), "damaged"),
    "another thing": (_text(lambda _: '{"hello":"world"}\n'), "damaged"),
    "another id inside": (_changed(id="other"), "damaged"),
    "a field of another kind": (_changed(steps="build"), "damaged"),
    "no digest": (_text(lambda text: re.sub(r'"digest":"[0-9a-f]+",', "", text)), "damaged"),
    "a newer schema": (_changed(schema="checkpoint/v2"), "unreadable"),
    "another edition of the schema": (_changed(schema_sha256="0" * 64), "unreadable"),
    "a naive date": (_dated("progress_at", "2026-03-01T12:00:00"), "clock"),
    "a date in the future": (_dated("progress_at", "2999-03-01T12:00:00Z"), "clock"),
    "a heartbeat in the future": (_dated("heartbeat_at", "2999-03-01T12:00:00Z"), "clock"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_one_finding_and_hides_no_other(bad: str, workspace: Workspace) -> None:
    record = start(workspace, "alpha", age_s=HOUR)
    clone(record, "omega", workspace.store)
    make, reason = BAD[bad]
    make(workspace.file("bad"), record | {"id": "bad", "workflow": "bad"})
    before = everything(workspace.path)

    findings = found(workspace)
    assert {id: finding["reason"] for id, finding in findings.items()} == {"alpha": "slow", "bad": reason, "omega": "slow"}

    result = workspace.selfcheck()
    output = parsed(result)
    assert len(output.findings) == 3
    assert sum("bad" in line.split() or "bad:" in line.split() for line in output.findings) == 1
    # Nagios reads the same: any unreadable file is beyond the critical threshold (0).
    if reason != "clock":
        assert (output.state, output.performance["unreadable"]["value"]) == ("CRITICAL", "1")
    assert output.performance["unreadable"]["crit"] == "0"
    assert result.err == ""
    assert everything(workspace.path) == before


@pytest.mark.parametrize("name", ["notes.txt", "Deploy.json", "a b.json", ".json.json", "x" * 200 + ".json", "folder/"])
def test_what_does_not_belong_there_is_one_finding(name: str, workspace: Workspace) -> None:
    start(workspace, "alpha", age_s=HOUR)
    path = workspace.store / name
    path.mkdir() if name.endswith("/") else put(path, "words")
    # Names with a dot in front are the store's own affairs (locks, temporary files, the monitor's state).
    expected = 1 if name.startswith(".") else 2
    assert len(parsed(workspace.selfcheck()).findings) == expected


def test_every_flipped_bit_is_found(workspace: Workspace) -> None:
    start(workspace, "deploy")
    good = workspace.file().read_bytes()
    for position in range(0, len(good), len(good) // 12):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        put(workspace.file(), bytes(data))
        assert workspace.selfcheck("--quiet").code == CRITICAL, (position, position % 8)


def test_a_file_that_may_not_be_read_is_one_finding(open_workspace: Workspace) -> None:
    record = start(open_workspace, "alpha", age_s=HOUR)
    clone(record, "bad", open_workspace.store)
    clone(record, "omega", open_workspace.store)
    open_workspace.file("bad").chmod(0)
    result = powerless_check(open_workspace, "--json")
    assert result.code == CRITICAL
    findings = {finding["id"]: finding["reason"] for finding in result.json["findings"]}
    assert findings == {"alpha": "slow", "bad": "unreadable", "omega": "slow"}


def test_files_of_the_ancestor_are_judged(workspace: Workspace) -> None:
    workspace.store.mkdir(parents=True, mode=0o700)
    record = {
        "schemaVersion": "1.0",
        "workflowId": "deploy",
        "status": "in_progress",
        "currentStep": EVIL,
        "completedSteps": [],
        "remainingSteps": ["push"],
        "createdAt": stamp(3 * HOUR),
        "updatedAt": stamp(2 * HOUR),
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    record["checkpointHash"] = hashlib.sha256(text.encode()).hexdigest()
    put(workspace.file(), json.dumps(record))
    output = parsed(workspace.selfcheck())
    assert (output.state, len(output.findings)) == ("WARNING", 1)
    assert reasons(workspace) == {"deploy": "abandoned"}


# --- hostile text ---------------------------------------------------------------------------------------------------------


def _step_failed(record: dict[str, Any]) -> None:
    record["steps"][0] |= {"status": "failed", "error": EVIL, "attempts": 1}


HOSTILE = {
    "owner": lambda record: record["lease"].update(owner=EVIL),
    "dead owner": lambda record: record["lease"].update(owner=EVIL, boot_id="other"),
    "block": lambda record: record.update(status="blocked", reason=EVIL),
    "failed step": _step_failed,
    "step in doubt": lambda record: record.update(
        lease=None, steps=[{"name": EVIL, "status": "begun", "once": True, "attempts": 1, "token": 1}]
    ),
    "next step": lambda record: record.update(steps=[{"name": EVIL, "status": "pending"}]),
    "everything": lambda record: record.update(
        agent=EVIL, handoff_to=EVIL, data={EVIL: EVIL}, notes=[{"at": stamp(HOUR), "by": EVIL, "text": EVIL}]
    ),
    "schema": lambda record: record.update(schema=EVIL),
    "id": lambda record: record.update(id=EVIL),
    "date": lambda record: record.update(progress_at=EVIL),
    "status": lambda record: record.update(status=EVIL),
    "unknown field": lambda record: record.update({EVIL: EVIL}),
}


@pytest.mark.parametrize("where", HOSTILE)
def test_hostile_text_never_comes_out_raw(where: str, workspace: Workspace) -> None:
    record = start(workspace, age_s=HOUR)
    HOSTILE[where](record)
    put(workspace.file(), sealed(record))
    result = workspace.selfcheck("--log", "log")
    assert len(parsed(result).findings) == 1
    in_json = workspace.selfcheck("--json")
    harmless(in_json)
    assert len(in_json.json["findings"]) == 1
    log = (workspace.path / "log").read_text()
    harmless(Result(0, log, ""))
    assert log.count("\n") == 2


def test_half_characters_do_no_harm(workspace: Workspace) -> None:
    # JSON can escape half of a surrogate pair, which no encoding can print.
    record = start(workspace, age_s=HOUR)
    record["lease"]["owner"] = "half \ud83d"
    del record["digest"]
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256((text + "\n").encode()).hexdigest()
    put(workspace.file(), text.replace('"expires_at"', f'"digest":"{digest}","expires_at"', 1) + "\n")
    result = workspace.selfcheck()
    assert len(parsed(result).findings) == 1
    harmless(workspace.selfcheck("--json", "--log", "log"))


def test_hostile_file_names_never_come_out_raw(workspace: Workspace) -> None:
    start(workspace, "alpha", age_s=HOUR)
    for name in (EVIL.replace("/", "").encode() + b".json", b"\xff\xfe.json", EVIL.encode()):
        (workspace.store / os.fsdecode(name)).write_text("words")
    result = workspace.selfcheck("--log", "log")
    assert len(parsed(result).findings) == 4
    harmless(workspace.selfcheck("--json"))
    harmless(Result(0, (workspace.path / "log").read_text(), ""))


def test_hostile_arguments_never_come_out_raw(workspace: Workspace) -> None:
    for argv in (("--store", EVIL), ("--root", EVIL), ("--store", "\udcff"), ("--store", "x" * 5000), ("--root", "x" * 5000)):
        result = workspace.selfcheck(*argv)
        harmless(result)
        assert result.code == UNKNOWN
        assert result.out.startswith("CHECKPOINT UNKNOWN - ")
    start(workspace, age_s=HOUR)
    result = workspace.selfcheck("--log", f"nowhere/{EVIL}")
    harmless(result)
    assert result.code != OK


# --- owners ---------------------------------------------------------------------------------------------------------------


def test_an_owner_that_lives_is_slow_and_one_that_was_killed_has_abandoned_it(
    workspace: Workspace, sleeper: subprocess.Popen[bytes]
) -> None:
    start(workspace, "deploy", "--owner-pid", str(sleeper.pid))
    began = time.monotonic()
    assert workspace.selfcheck("--threshold", "1h").code == OK
    while workspace.selfcheck("--threshold", "1s").code == OK:
        assert time.monotonic() - began < 10
        time.sleep(0.1)
    assert reasons(workspace, "--threshold", "1s") == {"deploy": "slow"}
    killed(sleeper)
    assert reasons(workspace, "--threshold", "1s") == {"deploy": "abandoned"}
    assert reasons(workspace, "--threshold", "1h") == {}


def test_a_zombie_counts_as_dead(workspace: Workspace, sleeper: subprocess.Popen[bytes]) -> None:
    start(workspace, "deploy", "--owner-pid", str(sleeper.pid), age_s=HOUR)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert reasons(workspace) == {"deploy": "abandoned"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells boots, start times and pid namespaces")
@pytest.mark.parametrize(
    ("change", "living", "reason"),
    [
        ({}, True, "slow"),
        ({}, False, "abandoned"),
        ({"boot_id": "00000000-0000-4000-8000-000000000000"}, True, "abandoned"),
        ({"pid_started": 1}, True, "abandoned"),
        ({"pid_ns": 1}, True, "slow"),
        ({"pid_ns": 1}, False, "slow"),
        ({"host": "f" * 16}, True, "slow"),
        ({"host": "f" * 16}, False, "slow"),
        ({"host": "f" * 16, "boot_id": "other", "pid_ns": 1, "pid_started": 1}, False, "abandoned"),
        ({"host": "f" * 16, "lease_s": 1800, "expires_at": stamp(-HOUR)}, False, "slow"),
        ({"host": "f" * 16, "lease_s": 1800, "expires_at": stamp(60)}, False, "abandoned"),
        ({"pid_ns": 1, "lease_s": 1800, "expires_at": stamp(60)}, False, "abandoned"),
    ],
)
def test_who_is_dead(
    change: dict[str, Any], living: bool, reason: str, workspace: Workspace, sleeper: subprocess.Popen[bytes]
) -> None:
    record = start(workspace, "deploy", "--owner-pid", str(sleeper.pid), age_s=HOUR)
    record["lease"] |= change
    record["heartbeat_at"] = record["lease"]["acquired_at"] = "2020-01-01T00:00:00Z"
    put(workspace.file(), sealed(record))
    if not living:
        killed(sleeper)
    assert reasons(workspace) == {"deploy": reason}


def test_a_claim_held_by_time_is_abandoned_once_it_ran_out(workspace: Workspace) -> None:
    start(workspace, "deploy", "--lease", "1h", age_s=HOUR)
    assert reasons(workspace) == {"deploy": "slow"}
    edit(workspace, lambda record: record["lease"].update(expires_at=stamp(1)))
    assert reasons(workspace) == {"deploy": "abandoned"}


def test_a_released_run_is_abandoned(workspace: Workspace) -> None:
    start(workspace)
    assert workspace.tool("release", "deploy").code == 0
    edit(workspace, aged)
    assert reasons(workspace) == {"deploy": "abandoned"}


def test_from_another_pid_namespace_nobody_is_dead(workspace: Workspace, sleeper: subprocess.Popen[bytes]) -> None:
    need_root()
    inside = (need_program("unshare"), "--pid", "--fork", "--mount-proc")
    start(workspace, "deploy", "--owner-pid", str(sleeper.pid), age_s=HOUR)
    for _ in range(2):
        result = workspace.run(*inside, SELFCHECK, "--json")
        assert result.code == WARNING
        assert [finding["reason"] for finding in result.json["findings"]] == ["slow"]
        killed(sleeper)


def test_blocked_failed_expired_and_in_doubt(workspace: Workspace, sleeper: subprocess.Popen[bytes]) -> None:
    changes = {
        "blocked": ("--block", "waits for a signature"),
        "failed": ("--fail", "build", "--error", "disk full"),
        "doubtful": ("--begin", "build", "--once"),
        "repeatable": ("--begin", "build"),
    }
    for id, change in changes.items():
        start(workspace, id, "--owner-pid", str(sleeper.pid))
        assert workspace.tool("update", id, *change).code == 0
    start(workspace, "expired", "--owner-pid", str(sleeper.pid), "--ttl", "1s")
    for id in (*changes, "expired"):
        edit(workspace, lambda record: aged(record), id)
    edit(workspace, lambda record: record.update(expires_at=stamp(60)), "expired")
    killed(sleeper)
    findings = found(workspace)
    assert {id: finding["reason"] for id, finding in findings.items()} == {
        "blocked": "blocked",
        "failed": "failed",
        "doubtful": "in_doubt",
        "repeatable": "abandoned",
        "expired": "expired",
    }
    assert findings["doubtful"]["in_doubt"] == findings["repeatable"]["in_doubt"] == ["build"]
    lines = "\n".join(parsed(workspace.selfcheck()).findings)
    for words in ("waits for a signature", "disk full"):
        assert words in lines


# --- what is finished is no concern of it ---------------------------------------------------------------------------------


def _finish(workspace: Workspace, *verb: str, key: str | None = None) -> Path:
    """A run finished in this way; where its record stands now."""
    record = start(workspace, "deploy", *(("--key", key) if key else ()))
    assert workspace.tool(verb[0], record["id"], *verb[1:]).code == 0
    place = Path(record["id"]) if key else Path("deploy", record["run_id"])
    return workspace.store / "done" / place.with_suffix(".json")


@pytest.mark.parametrize(
    "verb",
    [("complete", "--force", "--reason", "done by hand"), ("fail", "--reason", "hopeless"), ("cancel", "--reason", "unwanted")],
)
@pytest.mark.parametrize("key", [None, "order-1"])
def test_finished_runs_never_alert(verb: tuple[str, ...], key: str | None, workspace: Workspace) -> None:
    path = _finish(workspace, *verb, key=key)
    record = json.loads(path.read_text())
    aged(record, 30 * DAY)
    put(path, sealed(record))
    assert parsed(workspace.selfcheck("--threshold", "1s")).performance["unfinished"]["value"] == "0"
    # A process that died between the last write and the move leaves it among the unfinished ones.
    put(workspace.file(record["id"]), sealed(record))
    output = parsed(workspace.selfcheck("--threshold", "1s"))
    assert (output.state, output.performance["unfinished"]["value"]) == ("OK", "0")
    path.unlink()
    assert workspace.selfcheck("--threshold", "1s").code == OK


def test_the_finished_ones_are_never_read(workspace: Workspace) -> None:
    path = _finish(workspace, "cancel", "--reason", "unwanted")
    put(path, "{")
    put(path.parent.parent / "receipt.json", "{")
    os.mkfifo(path.parent.parent / "pipe.json")
    assert workspace.selfcheck("--quiet") == (OK, "", "")
    shutil.rmtree(path.parent.parent)
    (workspace.store / "quarantine").mkdir(0o700)
    put(workspace.store / "quarantine" / "deploy.json.bad-1", "{")
    put(workspace.store / ".deploy.0123456789ab.tmp", "{")
    assert workspace.selfcheck("--quiet") == (OK, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="strace")
def test_it_opens_the_unfinished_ones_alone_and_nothing_for_writing(workspace: Workspace) -> None:
    strace = need_program("strace")
    _finish(workspace, "cancel", "--reason", "unwanted")
    start(workspace, age_s=HOUR)
    calls = "trace=openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,socket,connect,flock,execve"
    result = workspace.run(strace, "-f", "-qq", "-e", calls, "-o", "trace", SELFCHECK)
    if not (workspace.path / "trace").exists():
        lacking("strace cannot trace here")
    assert result.code == WARNING
    trace = (workspace.path / "trace").read_text()
    assert "deploy.json" in trace
    for line in trace.splitlines():
        assert "/done" not in line
        assert '"done"' not in line
        assert not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|rename|unlink|mkdir|creat\(", line), line
        # No network, and no program of others.
        assert not re.search(r"(socket|connect)\(", line), line
    # In a path with a space pip has the interpreter started by a shell.
    assert trace.count("execve(") == 1 + (" " in SELFCHECK)


# --- it leaves no trace ---------------------------------------------------------------------------------------------------


def test_it_writes_nothing_into_a_store(workspace: Workspace) -> None:
    record = start(workspace, "alpha", age_s=DAY)
    clone(record, "omega", workspace.store)
    put(workspace.file("bad"), "{")
    put(workspace.store / ".alpha.0123456789ab.tmp", "{")
    _finish(workspace, "cancel", "--reason", "unwanted")
    before = everything(workspace.path)
    for argv in ((), ("--json",), ("--quiet",), ("--root", "."), ("--threshold", "1s", "--critical", "1s")):
        assert workspace.selfcheck(*argv).code == CRITICAL
    assert everything(workspace.path) == before


def test_it_works_on_a_read_only_file_system(workspace: Workspace) -> None:
    need_root()
    start(workspace, "alpha", age_s=HOUR)
    put(workspace.file("bad"), "{")
    script = 'mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && ! touch probe 2>/dev/null && exec "$@"'
    result = workspace.run(need_program("unshare"), "--mount", "sh", "-c", script, "sh", SELFCHECK, "--json")
    assert result.code == CRITICAL
    assert {finding["id"] for finding in result.json["findings"]} == {"alpha", "bad"}


# --- the log ---------------------------------------------------------------------------------------------------------------


def test_the_log_has_a_line_for_the_run_and_one_for_each_finding(workspace: Workspace) -> None:
    record = start(workspace)
    log = workspace.path / "log"
    assert workspace.selfcheck("--log", "log").code == OK
    aged(record)
    clone(record, "stale", workspace.store)
    put(workspace.file("bad"), "{")
    first = log.read_text()
    assert workspace.selfcheck("--log", "log", "--json").code == CRITICAL
    assert log.read_text().startswith(first)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["run", "run", "finding", "finding"]
    assert [(line["status"], line["exit_code"]) for line in lines[:2]] == [("OK", OK), ("CRITICAL", CRITICAL)]
    assert [(line["id"], line["reason"]) for line in lines[2:]] == [("bad", "damaged"), ("stale", "slow")]
    assert lines[1]["at"] == lines[2]["at"] == lines[3]["at"] > lines[0]["at"]
    assert all(datetime.fromisoformat(line["at"]).tzinfo for line in lines)


@pytest.mark.parametrize("umask", ["0", "022", "077"])
def test_the_log_is_private(umask: str, workspace: Workspace) -> None:
    start(workspace)
    assert workspace.run("sh", "-c", f'umask {umask}; exec "$0" --quiet --log log', SELFCHECK) == (OK, "", "")
    assert stat.S_IMODE((workspace.path / "log").stat().st_mode) == 0o600


def test_quiet_still_writes_the_log(workspace: Workspace) -> None:
    start(workspace)
    assert workspace.selfcheck("--quiet", "--log", "log") == (OK, "", "")
    assert json.loads((workspace.path / "log").read_text())["status"] == "OK"


def test_a_missing_store_is_logged_too(workspace: Workspace) -> None:
    assert workspace.selfcheck("--log", "log").code == UNKNOWN
    run, finding = [json.loads(line) for line in (workspace.path / "log").read_text().splitlines()]
    assert (run["status"], finding["reason"]) == ("UNKNOWN", "missing_store")


def _no_log(kind: str, workspace: Workspace) -> str:
    path = workspace.path / "log"
    if kind == "a link":
        (workspace.path / "target").write_text("precious\n")
        path.symlink_to("target")
    elif kind == "a dangling link":
        path.symlink_to("target")
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a full device":
        return "/dev/full"
    elif kind == "no folder":
        return "nowhere/log"
    return "log"


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a directory", "a pipe", "a full device", "no folder"])
@pytest.mark.parametrize("mode", ["lines", "--quiet", "--json"])
def test_a_log_that_cannot_be_written_is_told_and_never_ok(kind: str, mode: str, workspace: Workspace) -> None:
    record = start(workspace)
    log = _no_log(kind, workspace)
    argv = () if mode == "lines" else (mode,)
    result = workspace.selfcheck("--log", log, *argv)
    assert result.code == UNKNOWN
    assert "log" in result.err
    harmless(result)
    if mode == "--json":
        assert (result.json["status"], result.json["exit_code"]) == ("UNKNOWN", UNKNOWN)
    else:
        parsed(result)
    if kind.endswith("link"):
        target = workspace.path / "target"
        assert (workspace.path / "log").is_symlink()
        assert (target.read_text() if target.exists() else None) == ("precious\n" if kind == "a link" else None)

    # What there is to tell is told all the same.
    aged(record)
    clone(record, "stale", workspace.store)
    result = workspace.selfcheck("--log", log, *argv)
    assert result.code in (WARNING, UNKNOWN)
    assert "stale" in result.out
    assert "log" in result.err


def test_a_log_that_does_not_fit_is_told(workspace: Workspace) -> None:
    start(workspace)
    result = workspace.run("sh", "-c", 'ulimit -f 0; exec "$@"', "sh", SELFCHECK, "--log", "log")
    assert result.code == UNKNOWN
    assert "log" in result.err


def test_a_log_line_cut_short_by_a_full_disk_spoils_no_later_one(workspace: Workspace) -> None:
    start(workspace)
    assert workspace.run(need_program("prlimit"), "--fsize=40", SELFCHECK, "--log", "log").code == UNKNOWN
    assert workspace.selfcheck("--log", "log").code == OK
    last = (workspace.path / "log").read_text().splitlines()[-1]
    assert json.loads(last)["status"] == "OK"


# --- a result that nobody gets is no OK -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
@pytest.mark.parametrize("argv", [(), ("--json",), ("--log", "log")])
@pytest.mark.parametrize("stale", [False, True])
def test_a_result_that_cannot_be_written_is_never_ok(
    where: str, argv: tuple[str, ...], stale: bool, workspace: Workspace
) -> None:
    start(workspace, age_s=HOUR if stale else 0)
    result = workspace.run("sh", "-c", f'exec "$@" {where}', "sh", SELFCHECK, *argv)
    assert result.code == UNKNOWN
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1


def test_bad_usage_is_json_where_json_was_asked_for(workspace: Workspace) -> None:
    result = workspace.selfcheck("--json", "--nonsense")
    assert result.code == result.json["exit_code"] == UNKNOWN
    assert "--nonsense" in result.json["error"]


def test_quiet_is_quiet_in_json_too(workspace: Workspace) -> None:
    start(workspace)
    assert workspace.selfcheck("--json", "--quiet") == Result(OK, "", "")


def test_a_finding_names_its_store_where_there_are_several(workspace: Workspace) -> None:
    agents(workspace, "ann", "bob")
    lines = workspace.selfcheck("--root", ".").out.splitlines()[1:]
    assert [line.split(": ")[0].split(" ", 1)[1] for line in lines if "/agents/" in line] == [
        "./agents/ann/memory/checkpoints/ann",
        "./agents/bob/memory/checkpoints/bob",
    ]


@pytest.mark.parametrize("where", [">&-", ">/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_an_error_that_cannot_be_written_is_unknown(where: str, workspace: Workspace) -> None:
    for argv in (("--nonsense",), ("--store", "nowhere")):
        assert workspace.run("sh", "-c", f'exec "$@" {where}', "sh", SELFCHECK, *argv).code == UNKNOWN


def test_a_reader_that_went_away_is_unknown(workspace: Workspace) -> None:
    start(workspace)
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [SELFCHECK], cwd=workspace.path, env=workspace.environ(), stdout=writing, stderr=subprocess.PIPE
    ) as run:
        os.close(writing)
        _, error = run.communicate(timeout=60)
    assert run.returncode == UNKNOWN
    assert b"Traceback" not in error


def test_without_stderr_or_stdin_all_is_well(workspace: Workspace) -> None:
    start(workspace)
    for where in ("2>&-", "2>/dev/full", "<&-", "<&- 2>&-"):
        result = workspace.run("sh", "-c", f'exec "$@" {where}', "sh", SELFCHECK)
        assert parsed(result).state == "OK"


# --- what it is made of -----------------------------------------------------------------------------------------------------

_IMPORTED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
before = set(sys.modules)
from checkpoint import selfcheck
try:
    code = selfcheck.main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print(*sorted(set(sys.modules) - before), sep="\\n", file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ((), CRITICAL),
        (("--json",), CRITICAL),
        (("--store", "good"), OK),
        (("--store", "good", "--log", "log", "--quiet"), OK),
        (("--root", "."), CRITICAL),
        (("--store", "nowhere"), UNKNOWN),
        (("--store", "good", "--log", "/dev/full"), UNKNOWN),
        (("--nonsense",), UNKNOWN),
        (("--help",), 0),
        (("--version",), 0),
    ],
)
def test_nothing_but_the_standard_library(argv: tuple[str, ...], code: int, workspace: Workspace) -> None:
    record = start(workspace, age_s=HOUR)
    put(workspace.file("bad"), "{")
    clone(record, "flipped", workspace.store)
    put(workspace.file("flipped"), workspace.file("flipped").read_bytes().replace(b"tester", b"tesser"))
    (workspace.path / "good").mkdir(0o700)
    # -S leaves the installed packages out: a module that needs one fails. Without it, one that is only tried shows up.
    for flags in (("-I", "-S"), ("-I",)):
        result = workspace.run(sys.executable, *flags, "-c", _IMPORTED, str(ROOT), *argv)
        assert result.code == code, result.err
        modules = [line for line in result.err.splitlines() if " " not in line]
        assert "checkpoint.selfcheck" in modules
        foreign = [name for name in modules if name.split(".")[0] not in {*sys.stdlib_module_names, "checkpoint"}]
        assert foreign == []
        assert not {"checkpoint.api", "checkpoint.cli", "checkpoint.validate", "socket", "subprocess"} & set(modules)


def test_it_runs_as_a_module_too(workspace: Workspace) -> None:
    start(workspace, age_s=HOUR)
    result = workspace.run(sys.executable, "-m", "checkpoint.selfcheck")
    assert parsed(result).state == "WARNING"


# --- many -------------------------------------------------------------------------------------------------------------------

# A process in between: a child that is started from this one would have our own size as its highest.
_PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in KiB on Linux")
@pytest.mark.parametrize(("age_s", "code"), [(0, OK), (HOUR, CRITICAL)])
def test_memory_is_flat(age_s: int, code: int, workspace: Workspace) -> None:
    record = start(workspace, "seed")
    aged(record, age_s)
    many = workspace.path / "many"
    few = workspace.path / "few"
    few.mkdir(0o700)
    many.mkdir(0o700)
    # 20 KB each, 40 MB in all: to hold them would show.
    record["data"] = {"text": "x" * 20_000}
    for number in range(2000):
        clone(record, f"run-{number}", many)

    def peak(store: str) -> tuple[int, int]:
        result = workspace.run(sys.executable, "-I", "-c", _PEAK, SELFCHECK, "--store", store, "--threshold", "10m")
        exit_code, kib = result.out.split()
        return int(exit_code), int(kib)

    empty_code, empty = peak("few")
    full_code, full = peak("many")
    assert (empty_code, full_code) == (OK, code)
    assert full - empty < 25 * 1024
