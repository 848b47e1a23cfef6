"""Root in the workspace of another user: it reads there, and leaves nothing of its own."""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SELFCHECK, TOOL, Result, Workspace, need_program, need_root
from test_schedule_cli import Host

NOBODY, UNNAMED = 65534, 54321


@pytest.fixture(autouse=True)
def as_root() -> None:
    need_root()


def ok(result: Result) -> Result:
    assert result.code == 0, result
    return result


def hand_over(path: Path, uid: int = NOBODY) -> None:
    for one in (path, *path.rglob("*")):
        os.chown(one, uid, uid, follow_symlinks=False)


def owners(path: Path) -> set[int]:
    return {one.lstat().st_uid for one in (path, *path.rglob("*"))}


def files(path: Path) -> dict[str, bytes | None]:
    return {str(one): one.read_bytes() if one.is_file() else None for one in sorted(path.rglob("*"))}


def as_nobody(workspace: Workspace, *argv: str) -> Result:
    """As that user, who may look into the directory that this Python and this checkout stand in."""
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    user = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *rights]
    return workspace.run(need_program("setpriv"), *user, *argv)


def called(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"'#{uid}'"


@pytest.fixture
def theirs(tmp_path: Path) -> Workspace:
    """A workspace of nobody's with a run in it that stands still, one that is finished, and the record of a self-check."""
    workspace = Workspace(tmp_path / "theirs")
    workspace.path.mkdir()
    ok(workspace.tool("exec", "nightly", "--", "true"))
    ok(workspace.tool("start", "deploy", "--steps", "a,b", "--stale-after", "1s"))
    ok(workspace.tool("start", "other", "--steps", "a", "--key", "k"))
    ok(workspace.tool("release", "deploy"))
    time.sleep(1.1)
    workspace.selfcheck("--root", str(workspace.path), "--notify", "stdout")
    hand_over(workspace.path)
    return workspace


READS = [
    ["list", "--all"],
    ["show", "deploy"],
    ["verify"],
    ["status", "nightly"],
    ["agents", "brief"],
    ["list", "--json"],
]
WRITES = [
    ["start", "deploy", "--steps", "a,b"],
    ["start", "new"],
    ["resume", "deploy"],
    ["resume"],
    ["update", "deploy", "--note", "x"],
    ["complete", "deploy", "--force", "--reason", "x"],
    ["fail", "deploy", "--reason", "x"],
    ["cancel", "deploy", "--reason", "x"],
    ["heartbeat", "deploy"],
    ["release", "deploy"],
    ["begin", "deploy", "a"],
    ["run", "deploy", "a", "--", "touch", "ran"],
    ["exec", "nightly", "--", "touch", "ran"],
    ["pin", "deploy"],
    ["agents", "install"],
]


@pytest.mark.parametrize("argv", READS, ids=" ".join)
def test_root_reads_what_belongs_to_another(theirs: Workspace, argv: list[str]) -> None:
    before = files(theirs.path)
    done = ok(theirs.tool(*argv))
    assert done.out
    assert files(theirs.path) == before
    assert owners(theirs.path) == {NOBODY}


@pytest.mark.parametrize("argv", WRITES, ids=" ".join)
def test_root_writes_nothing_there(theirs: Workspace, argv: list[str]) -> None:
    before = files(theirs.path)
    done = theirs.tool(*argv)
    assert done.code == 17, done
    assert "belongs to nobody" in done.err
    become = "sudo -u nobody" if shutil.which("sudo") else "runuser -u nobody --"
    assert f"(try: {become} checkpoint-tool {argv[0]}" in done.err
    assert files(theirs.path) == before
    assert owners(theirs.path) == {NOBODY}


@pytest.mark.parametrize("uid", [NOBODY, UNNAMED])
@pytest.mark.parametrize("have", ["", "memory", "memory/checkpoints"])
@pytest.mark.parametrize("argv", [["start", "x"], ["exec", "x", "--", "touch", "ran"]], ids=lambda argv: argv[0])
def test_no_store_is_made_there(tmp_path: Path, argv: list[str], have: str, uid: int) -> None:
    workspace = Workspace(tmp_path / "w")
    (workspace.path / have).mkdir(parents=True, mode=0o700)
    hand_over(workspace.path, uid)
    before = files(workspace.path)
    done = workspace.tool(*argv)
    assert (done.code, f"-u {called(uid)} " in done.err) == (17, True), done
    for more in ([], ["--notify", "stdout"], ["--metrics", str(workspace.path / "m")] if have else ["--quiet"]):
        assert workspace.selfcheck("--root", str(workspace.path), *more).code in (0, 3)
    assert files(workspace.path) == before


@pytest.mark.parametrize("foreign", [".", "memory", "memory/checkpoints"])
def test_one_directory_of_another_user_is_enough(tmp_path: Path, foreign: str) -> None:
    """The workspace, memory or the store: what is missing below is not made."""
    workspace = Workspace(tmp_path / "w")
    (workspace.path / foreign).mkdir(parents=True, mode=0o700)
    os.chown(workspace.path / foreign, NOBODY, NOBODY)
    if foreign == ".":
        (workspace.path / "memory").mkdir()  # of root's, by an older version
    before = files(workspace.path)
    assert workspace.tool("start", "x").code == 17
    assert files(workspace.path) == before


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_directory_for_all_is_nobody_s_workspace(tmp_path: Path, mode: int) -> None:
    """As /srv and /tmp: to make something there is right."""
    place = tmp_path / "for-all"
    place.mkdir()
    place.chmod(mode)
    if mode == 0o1777:
        os.chown(place, NOBODY, NOBODY)
    workspace = Workspace(place)
    ok(workspace.tool("start", "x", "--store", str(place / "store")))
    if mode == 0o755:
        place.chmod(0o777)
        ok(as_nobody(workspace, TOOL, "start", "x", "--store", str(place / "theirs")))


def test_the_self_check_looks_and_keeps_no_record(theirs: Workspace) -> None:
    before = files(theirs.path)
    root = str(theirs.path)
    told = []
    for more in ([], ["--notify", "stdout"], ["--store", str(theirs.store)], ["--html", str(theirs.path / "page.html")]):
        argv = more if "--store" in more else ["--root", root, *more]
        done = theirs.selfcheck(*argv, "--threshold", "1s")
        assert "deploy" in done.out, done
        told.append((done.code, "no record is kept" in done.err and "-u nobody checkpoint-selfcheck --root" in done.err))
    # A page in there is not written either, and that is a failure of the check.
    assert told == [(1, False), (1, True), (1, False), (3, True)]
    log = theirs.selfcheck("--root", root, "--log", str(theirs.path / "memory" / "log"))
    assert (log.code, "belongs to nobody" in log.err) == (3, True)
    assert theirs.selfcheck("ack", "deploy", "--for", "1h", "--by", "me", "--reason", "x", "--root", root).code == 3
    assert theirs.selfcheck("incidents", "--root", root).code == 0
    assert files(theirs.path) == before
    assert owners(theirs.path) == {NOBODY}
    ok(as_nobody(theirs, TOOL, "update", "deploy", "--note", "x", "--owner", "tester"))
    done = as_nobody(theirs, SELFCHECK, "--root", root, "--notify", "stdout", "--quiet")
    assert (done.code in (0, 1), done.err) == (True, ""), "nothing of root's stands in its way"


def test_a_record_of_root_s_own_is_kept_elsewhere(theirs: Workspace, tmp_path: Path) -> None:
    before = files(theirs.path)
    state, metrics, log = tmp_path / "state", tmp_path / "m.prom", tmp_path / "log"
    argv = [
        "--root",
        str(theirs.path),
        "--threshold",
        "1s",
        "--state",
        str(state),
        "--metrics",
        str(metrics),
        "--log",
        str(log),
    ]
    done = theirs.selfcheck(*argv)
    assert (done.code, done.err) == (1, ""), done
    assert (state / "state.json").exists()
    assert metrics.exists()
    assert log.exists()
    ok(theirs.selfcheck("--root", str(theirs.path), "--state", str(state), "--check-monitor", "10m"))
    assert files(theirs.path) == before


def test_in_python_too(theirs: Workspace) -> None:
    code = "from checkpoint import Checkpoints; r = Checkpoints('memory/checkpoints').start('x', steps=['a'])"
    done = theirs.run(os.path.join(os.path.dirname(TOOL), "python"), "-c", code)
    assert (done.code, "StoreUnavailable" in done.err, "belongs to nobody" in done.err) == (1, True, True), done
    assert owners(theirs.path) == {NOBODY}


def test_another_user_reads_nothing(tmp_path: Path) -> None:
    """Only root does: a store that others could write to, or that is another user's, is no store of ours."""
    workspace = Workspace(tmp_path / "w")
    workspace.path.mkdir()
    ok(workspace.tool("start", "x"))
    for path in (tmp_path, workspace.path, workspace.path / "memory", workspace.store):
        path.chmod(0o755)
    for argv in (["list"], ["start", "x"], ["show", "x"]):
        done = as_nobody(workspace, TOOL, *argv)
        assert (done.code, "belongs to root" in done.err) == (17, True), done


# Schedules


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_schedule_for_another_user_is_refused(host: Host) -> None:
    hand_over(host.path)
    for verb in (["install"], ["add", ".", "@daily"], ["set", ".", '["@daily"]']):
        command = [] if verb == ["install"] else ["--", "true"]
        for more in (["--with", "cron"], []):
            done = host.schedule(*verb, *more, *command)
            assert done.code == 18, done
            assert "belongs to nobody" in done.err
            assert f"-u nobody checkpoint-tool schedule {verb[0]}" in done.err
    assert not host.tab.exists()
    assert host.remembered() == []
    assert owners(host.path) == {NOBODY}


def test_the_owner_schedules_it(host: Host) -> None:
    hand_over(host.path.parent)
    words = [f"{name}={value}" for name, value in host.env.items()]
    done = as_nobody(host.workspace, "env", "-i", *words, TOOL, "schedule", "install", "--with", "cron")
    assert done.code == 0, done
    assert owners(host.home) == {NOBODY}
    assert host.tab.read_text().count("# BEGIN") == 1


def test_the_doctor_sees_what_root_left(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "@daily", "--name", "nightly", "--with", "cron", "--", "true"))
    ok(host.workspace.tool("start", "x"))
    assert host.problems() == []
    # As an older version left it: the workspace is another user's, and root runs it.
    hand_over(host.path)
    problems = host.problems()
    assert [problem["name"] for problem in problems] == ["selfcheck", "nightly"], problems
    for problem in problems:
        assert "-u nobody checkpoint-tool schedule" in problem["mend"]
        assert "it runs as root" in problem["words"]
    remove = problems[0]["mend"].partition(" && ")[0].split()[2:]
    ok(host.schedule(*remove))
    ok(host.schedule("remove", ".", "nightly"))
    assert host.problems() == []
    # Something of root's in there: seen also where nothing is scheduled.
    (host.workspace.store / ".selfcheck").mkdir()
    (problem,) = host.problems()
    assert problem["words"].startswith(f"{host.workspace.store}/.selfcheck belongs to root, and nobody")
    assert problem["mend"] == f"chown -R nobody: {host.path}/memory"
    subprocess.run(problem["mend"], shell=True, check=True)
    assert host.problems() == []
    agent = host.path / "agents" / "ann" / "memory" / "checkpoints"
    agent.mkdir(parents=True)
    (problem,) = host.problems()
    assert problem["mend"] == f"chown -R nobody: {host.path}/agents/ann/memory"


def test_the_doctor_of_the_user_sees_it_too(host: Host, make_workspace: Callable[[], Workspace]) -> None:
    ok(host.workspace.tool("start", "x"))
    hand_over(host.path.parent)
    (host.workspace.store / "left.json").write_text("{}")
    words = [f"{name}={value}" for name, value in host.env.items()]
    done = as_nobody(host.workspace, "env", "-i", *words, TOOL, "schedule", "doctor")
    assert done.code == 18, done
    assert f"(try: sudo chown -R nobody: {host.path}/memory)" in done.out
