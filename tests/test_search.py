"""Which store is meant where nobody names one: found from subdirectories, made once, never another user's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SELFCHECK, TOOL, Result, Workspace, need_program, need_root, unable

OTHER = 12345
"""A user who is nobody here."""


def at(workspace: Workspace, place: str | Path, *argv: str, **env: str) -> Result:
    """checkpoint-tool in a directory of the workspace, which is the home directory."""
    inside = Workspace(workspace.path / place)
    inside.told_of_stores = True
    inside.path.mkdir(parents=True, exist_ok=True)
    program = argv if argv[0].startswith("/") else (TOOL, *argv)
    return inside.run(*program, env={"HOME": str(workspace.path)} | env)


def stores(workspace: Workspace) -> list[str]:
    found = workspace.path.rglob("memory/checkpoints")
    return sorted(str(path.relative_to(workspace.path)) for path in found)


def test_a_key_is_one_run_from_every_directory_below_the_store(workspace: Workspace) -> None:
    first = at(workspace, "p", "exec", "send", "--key", "k", "--", "sh", "-c", "echo sent")
    assert (first.code, first.out) == (0, "sent\n")
    for place in ("p", "p/x", "p/x/y/z"):
        again = at(workspace, place, "exec", "send", "--key", "k", "--", "sh", "-c", "echo sent")
        assert (again.code, again.out) == (0, ""), place
        assert at(workspace, place, "start", "send", "--key", "k", "--steps", "command", "--json").json["created"] is False
    assert stores(workspace) == ["p/memory/checkpoints"]


def test_the_nearest_store_counts(workspace: Workspace) -> None:
    for place in ("p", "p/x"):
        at(workspace, place, "start", "deploy", "--steps", "a", "--store", "memory/checkpoints")
    run_id = json.loads((workspace.path / "p/x/memory/checkpoints/deploy.json").read_text())["run_id"]
    assert at(workspace, "p/x/y", "show", "deploy", "--json").json["run_id"] == run_id
    assert at(workspace, "p/other", "show", "deploy", "--json").json["run_id"] != run_id


@pytest.mark.parametrize("verb", [("start", "deploy", "--steps", "a"), ("exec", "deploy", "--", "true")])
@pytest.mark.parametrize("json_too", [False, True])
def test_a_new_store_is_made_in_the_working_directory_and_said_once(
    workspace: Workspace, verb: tuple[str, ...], json_too: bool
) -> None:
    argv = (verb[0], "--json", *verb[1:]) if json_too else verb
    done = at(workspace, "p", *argv)
    said = f"checkpoint-tool: made a new store: {workspace.path}/p/memory/checkpoints\n"
    assert (done.code, done.err.count(said), done.err.count("new store")) == (0, 1, 1), done
    if json_too:
        assert done.json["workflow"] == "deploy"
    again = at(workspace, "p", *argv)
    assert "new store" not in again.err
    assert "new store" not in at(workspace, "p/x", *argv).err


def test_a_new_store_that_is_named_is_said_with_its_full_path(workspace: Workspace) -> None:
    named = at(workspace, "p", "start", "deploy", "--steps", "a", "--store", "../q")
    assert f"made a new store: {workspace.path}/q\n" in named.err
    variable = at(workspace, "p", "start", "deploy", "--steps", "a", CHECKPOINT_STORE="~/r")
    assert f"made a new store: {workspace.path}/r\n" in variable.err
    assert stores(workspace) == []


def test_nothing_is_made_or_said_by_a_start_that_is_refused(workspace: Workspace) -> None:
    done = at(workspace, "p", "start", "No Name", "--steps", "a")
    assert (done.code, "new store" in done.err) == (2, False)
    assert stores(workspace) == []


READS = {
    "list": 10,
    "list --all": 10,
    "list --json": 10,
    "list --format table": 10,
    "show deploy": 10,
    "status deploy": 10,
    "verify": 10,
    "prune": 10,
    "pin deploy": 10,
    "repair deploy": 10,
    "update deploy --begin a": 10,
    "begin deploy a": 10,
    "run deploy a -- true": 10,
    "complete deploy": 10,
    "heartbeat deploy": 10,
    "resume deploy": 10,
    "resume": 3,
}


@pytest.mark.parametrize("line", READS)
def test_without_a_store_the_directories_are_named_and_nothing_is_made(workspace: Workspace, line: str) -> None:
    done = at(workspace, "p/x", *line.split())
    assert done.code == READS[line], done
    assert done.out == ""
    message = done.err
    if "--json" in line:
        error = json.loads(done.err)["error"]
        assert (error["code"], error["name"]) == (10, "NotFound")
        message = error["message"]
    assert f"no memory/checkpoints in {workspace.path}/p/x, {workspace.path}/p, {workspace.path};" in message
    assert stores(workspace) == []


def test_the_self_check_finds_the_same_store(workspace: Workspace) -> None:
    none = at(workspace, "p/x", SELFCHECK)
    assert none.code == 3
    assert f"looked for in {workspace.path}/p/x, {workspace.path}/p, {workspace.path} |" in none.out
    at(workspace, "p", "start", "deploy", "--steps", "a")
    found = at(workspace, "p/x", SELFCHECK, "--json")
    assert (found.code, found.json["unfinished"]) == (0, 1)
    assert found.json["stores"] == [f"{workspace.path}/p/memory/checkpoints"]
    assert at(workspace, "p/x", SELFCHECK, "--json", CHECKPOINT_STORE="nowhere").code == 3


def test_the_brief_and_a_session_find_the_same_store(workspace: Workspace) -> None:
    at(workspace, "p", "start", "deploy", "--steps", "a")
    brief = at(workspace, "p/x", "agents", "brief", "--json").json
    assert [one["id"] for one in brief["checkpoints"]] == ["deploy"]
    assert brief["store"] == f"{workspace.path}/p/memory/checkpoints"


def test_python_finds_the_same_store(workspace: Workspace) -> None:
    at(workspace, "p", "start", "deploy", "--steps", "a")
    code = (
        "from checkpoint import Checkpoints\n"
        "found = Checkpoints()\n"
        "print(found.store.location, found.show('deploy').checkpoint.id)\n"
        "print(Checkpoints('memory/checkpoints').store.location)\n"
    )
    done = at(workspace, "p/x", sys.executable, "-c", code)
    assert done.out == f"{workspace.path}/p/memory/checkpoints deploy\nmemory/checkpoints\n", done
    code = "from checkpoint import Checkpoints\nCheckpoints(made=print).start('deploy', ['a'])\n"
    assert at(workspace, "q", sys.executable, "-c", code).out == f"{workspace.path}/q/memory/checkpoints ()\n"


def test_a_python_handle_stays_with_its_store_when_the_directory_changes(workspace: Workspace) -> None:
    code = (
        "import os\nfrom checkpoint import Checkpoints\n"
        "found = Checkpoints()\nos.mkdir('deep')\nos.chdir('deep')\nfound.start('deploy', ['a'])\n"
    )
    assert at(workspace, "p", sys.executable, "-c", code).code == 0
    assert stores(workspace) == ["p/memory/checkpoints"]


# --- how far ----------------------------------------------------------------------------------------------------------


def test_the_home_directory_is_the_last_one(workspace: Workspace) -> None:
    at(workspace, ".", "start", "above", "--steps", "a")
    home = workspace.path / "home"
    (home / "p").mkdir(parents=True)
    assert at(workspace, "home/p", "list", HOME=str(home)).code == 10
    assert at(workspace, "home/p", "list", HOME=f"{home}/").code == 10
    (home / "memory").mkdir()
    (workspace.path / "memory/checkpoints").rename(home / "memory/checkpoints")
    assert at(workspace, "home/p", "list", HOME=str(home)).out.startswith("above\t")


@pytest.mark.parametrize("given", ["link", "", "nowhere", "relative", "\udcff"])
def test_a_home_directory_of_any_kind(workspace: Workspace, given: str) -> None:
    at(workspace, "home", "start", "deploy", "--steps", "a")
    (workspace.path / "link").symlink_to(workspace.path / "home")
    home = str(workspace.path / "link") if given == "link" else given
    assert at(workspace, "home/p", "list", HOME=home).out.startswith("deploy\t")
    if given == "link":  # the same directory by another name
        (workspace.path / "home/memory").rename(workspace.path / "memory")
        assert at(workspace, "home/p", "list", HOME=home).code == 10


def test_without_home_in_the_environment(workspace: Workspace) -> None:
    at(workspace, "p", "start", "deploy", "--steps", "a")
    done = at(workspace, "p/x", need_program("env"), "-u", "HOME", TOOL, "list")
    assert done.out.startswith("deploy\t"), done


def test_a_mount_is_a_border(workspace: Workspace) -> None:
    need_root()
    unshare, mount = need_program("unshare"), need_program("mount")
    at(workspace, ".", "start", "deploy", "--steps", "a")
    (workspace.path / "disk").mkdir()
    script = (
        f"{mount} -t tmpfs none disk && mkdir disk/x && cd disk/x && '{TOOL}' list; echo $?; '{TOOL}' start b --steps a --json"
    )
    done = at(workspace, ".", unshare, "-m", "sh", "-c", script)
    if "10\n" not in done.out and "mount" in done.err:
        unable("no mounts here")
    assert done.out.startswith("10\n"), done
    assert f"in {workspace.path}/disk/x, {workspace.path}/disk;" in done.err
    assert f"made a new store: {workspace.path}/disk/x/memory/checkpoints" in done.err


def test_a_linked_working_directory_is_where_the_kernel_says(workspace: Workspace) -> None:
    """`cd link; bash ../k.sh` runs the k.sh beside the link's target: the store beside it is meant too."""
    at(workspace, "real", "start", "deploy", "--steps", "a")
    (workspace.path / "real/sub").mkdir()
    (workspace.path / "named").mkdir()
    (workspace.path / "named/link").symlink_to(workspace.path / "real/sub")
    script = f"cd named/link && '{TOOL}' list"
    assert at(workspace, ".", need_program("sh"), "-c", script).out.startswith("deploy\t")


def test_a_working_directory_that_is_gone(workspace: Workspace) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; '{TOOL}' list; echo $?; '{TOOL}' start d --steps a; echo $?"
    done = at(workspace, "p", need_program("sh"), "-c", script)
    assert done.out == "17\n17\n", done
    assert "the working directory cannot be used" in done.err
    assert "Traceback" not in done.err
    named = f"mkdir gone; cd gone; rmdir ../gone; '{TOOL}' list --store {workspace.path}/p; echo $?"
    assert at(workspace, "p", need_program("sh"), "-c", named).out == "0\n"


def test_a_file_where_the_directory_above_should_be(workspace: Workspace) -> None:
    (workspace.path / "p/x").mkdir(parents=True)
    (workspace.path / "p/memory").write_text("notes\n")
    assert at(workspace, "p/x", "start", "deploy", "--steps", "a").code == 0
    assert stores(workspace) == ["p/x/memory/checkpoints"]
    (workspace.path / "q/memory").mkdir(parents=True)
    (workspace.path / "q/memory/checkpoints").write_text("")
    assert at(workspace, "q/x", "start", "deploy", "--steps", "a").code == 17


# --- whose ------------------------------------------------------------------------------------------------------------


def planted(workspace: Workspace, place: str) -> Path:
    store = workspace.path / place / "memory/checkpoints"
    store.mkdir(parents=True)
    for path in (store, store.parent):
        os.chown(path, OTHER, OTHER)
    return store


def test_a_store_of_another_user_above_is_not_used(workspace: Workspace) -> None:
    need_root()
    store = planted(workspace, "tmp")
    done = at(workspace, "tmp/x", "exec", "pay", "--key", "k", "--", "true")
    assert done.code == 0, done
    assert f"made a new store: {workspace.path}/tmp/x/memory/checkpoints" in done.err
    assert f"another user owns it: {store}" in done.err
    assert list(store.iterdir()) == []
    assert f"another user owns it: {store}" in at(workspace, "tmp/y", "list").err


def test_a_directory_of_another_user_with_a_store_of_ours_in_it_is_not_used(workspace: Workspace) -> None:
    """Who may rename in `memory` can put any store of ours there: a run would count in the wrong project."""
    need_root()
    at(workspace, "mine", "start", "deploy", "--steps", "a")
    planted(workspace, "tmp").rmdir()
    (workspace.path / "mine/memory/checkpoints").rename(workspace.path / "tmp/memory/checkpoints")
    assert at(workspace, "tmp/x", "list").code == 10
    (workspace.path / "tmp2").mkdir()
    (workspace.path / "tmp2/memory").symlink_to(workspace.path / "tmp/memory")
    os.chown(workspace.path / "tmp2/memory", OTHER, OTHER, follow_symlinks=False)
    assert at(workspace, "tmp2/x", "list").code == 10


def test_a_store_of_another_user_in_the_working_directory_is_refused(workspace: Workspace) -> None:
    need_root()
    planted(workspace, "tmp")
    done = at(workspace, "tmp", "start", "deploy", "--steps", "a")
    assert (done.code, f"belongs to {OTHER}, and nothing is written there as root" in done.err) == (17, True), done


def test_a_store_of_ours_that_others_may_write_is_refused_not_passed_over(workspace: Workspace) -> None:
    at(workspace, "p", "exec", "pay", "--key", "k", "--", "true")
    (workspace.path / "p/memory/checkpoints").chmod(0o770)
    done = at(workspace, "p/x", "exec", "pay", "--key", "k", "--", "true")
    assert (done.code, f"chmod go-w {workspace.path}/p/memory/checkpoints" in done.err) == (17, True), done
    assert stores(workspace) == ["p/memory/checkpoints"]


def test_a_store_above_that_is_a_link_is_refused(workspace: Workspace) -> None:
    at(workspace, "real", "start", "deploy", "--steps", "a")
    (workspace.path / "p/memory").mkdir(parents=True)
    (workspace.path / "p/memory/checkpoints").symlink_to(workspace.path / "real/memory/checkpoints")
    assert at(workspace, "p/x", "list").code == 17


def test_starts_at_once_in_two_directories_use_the_store_above(workspace: Workspace) -> None:
    at(workspace, "p", "start", "deploy", "--steps", "a")
    env = workspace.environ({"HOME": str(workspace.path)})
    running = []
    for number in range(4):
        place = workspace.path / f"p/{number}"
        place.mkdir()
        argv = [TOOL, "exec", "pay", "--key", "k", "--", "sh", "-c", "echo paid >> ../paid"]
        running.append(subprocess.Popen(argv, cwd=place, env=env, stderr=subprocess.DEVNULL))
    assert {one.wait(60) for one in running} <= {0, 11}
    assert (workspace.path / "p/paid").read_text() == "paid\n"
    assert stores(workspace) == ["p/memory/checkpoints"]
