"""Files that were put back, lost, copied, linked or moved under the program: nothing acknowledged is done again unsaid."""

import hashlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TOOL, Result, Workspace, need_program

from checkpoint import Checkpoints, errors, owner
from checkpoint.model import Status
from checkpoint.store.file import FileStore

KEYED = f"deploy-{hashlib.sha256(b'k').hexdigest()[:12]}"


def ok(workspace: Workspace, *argv: str) -> Result:
    done = workspace.tool(*argv)
    assert done.code == 0, done
    return done


def refused(done: Result, code: int, *words: str) -> None:
    assert done.code == code, done
    for word in words:
        assert word in done.err, done


def token(workspace: Workspace, *argv: str) -> int:
    return int(ok(workspace, *argv, "--json").json["token"])


def taken_over(workspace: Workspace, who: str) -> int:
    return token(workspace, "resume", "deploy", "--owner", who)


def free_run(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a,b")
    ok(workspace, "release", "deploy")


# --- a token is never issued twice ---------------------------------------------------------------------------------------


def by_copy(store: Path, copy: Path) -> None:
    shutil.rmtree(store)
    shutil.copytree(copy, store)


def by_move(store: Path, copy: Path) -> None:
    shutil.rmtree(store)
    shutil.copytree(copy, copy.with_name("again"))
    copy.with_name("again").rename(store)


def over_it(store: Path, copy: Path) -> None:
    shutil.copytree(copy, store, dirs_exist_ok=True)


def by_tar(store: Path, copy: Path) -> None:
    subprocess.run(["tar", "-C", copy, "-cf", copy.with_name("archive.tar"), "."], check=True)
    shutil.rmtree(store)
    store.mkdir(mode=0o700)
    subprocess.run(["tar", "-C", store, "-xpf", copy.with_name("archive.tar")], check=True)


def by_rsync(store: Path, copy: Path) -> None:
    need_program("rsync")
    # A file of the same size and second counts as the same, and would stay as it is.
    subprocess.run(["rsync", "-a", "--ignore-times", "--delete", f"{copy}/", f"{store}/"], check=True)


@pytest.mark.parametrize("put_back", [by_copy, by_move, over_it, by_tar, by_rsync])
def test_a_token_of_the_time_that_was_taken_back_stays_invalid(
    workspace: Workspace, put_back: Callable[[Path, Path], None]
) -> None:
    free_run(workspace)
    copy = workspace.path / "copy"
    shutil.copytree(workspace.store, copy)
    alice = taken_over(workspace, "alice")
    put_back(workspace.store, copy)
    # What is written before the next claim must not hide that the store was put back.
    ok(workspace, "update", "deploy", "--note", "the disk was changed", "--owner", "carol")
    bob = taken_over(workspace, "bob")
    assert bob > alice + 1000
    refused(workspace.tool("update", "deploy", "--complete", "a", "--token", str(alice), "--owner", "alice"), 19)
    ok(workspace, "release", "deploy", "--owner", "bob", "--token", str(bob))
    put_back(workspace.store, copy)
    carol = taken_over(workspace, "carol")
    assert carol not in (alice, bob)
    refused(workspace.tool("update", "deploy", "--complete", "a", "--token", str(bob), "--owner", "bob"), 19)
    assert ok(workspace, "verify").code == 0


def test_a_token_of_a_run_that_was_taken_back_stays_invalid(workspace: Workspace) -> None:
    free_run(workspace)
    ok(workspace, "cancel", "deploy", "--reason", "x")
    copy = workspace.path / "copy"
    shutil.copytree(workspace.store, copy)
    alice = token(workspace, "start", "deploy", "--steps", "a", "--owner", "alice")
    by_copy(workspace.store, copy)
    assert token(workspace, "start", "deploy", "--steps", "a", "--owner", "bob") > alice
    refused(workspace.tool("update", "deploy", "--complete", "a", "--token", str(alice), "--owner", "alice"), 19)


def test_claims_of_an_undisturbed_run_are_counted_one_by_one(workspace: Workspace) -> None:
    free_run(workspace)
    for expected in (2, 3, 4):
        assert taken_over(workspace, "alice") == expected
        ok(workspace, "release", "deploy", "--owner", "alice")
    ok(workspace, "cancel", "deploy", "--reason", "x")
    assert token(workspace, "start", "deploy", "--steps", "a") == 5


@pytest.mark.parametrize("what", ["history", "receipt and history", "damaged receipt", "unfinished"])
def test_lost_lock_files_do_not_let_tokens_begin_anew(workspace: Workspace, what: str) -> None:
    store = workspace.store
    if "receipt" in what:
        # A workflow that is called like the id of a key: both are counted under one name.
        ok(workspace, "start", "deploy", "--key", "k")
        assert token(workspace, "resume", KEYED, "--steal", "--reason", "x", "--owner", "bob") == 2
        ok(workspace, "complete", KEYED, "--force", "--reason", "x", "--owner", "bob")
    name = KEYED if "receipt" in what else "deploy"
    if "history" in what:
        for _ in range(3):
            Checkpoints(store).start(name, ["a"]).complete(force_reason="x") if "receipt" not in what else None
    if what == "damaged receipt":
        receipt = store / "done" / f"{KEYED}.json"
        receipt.write_bytes(receipt.read_bytes().replace(b'"agent":null', b'"agent":"eve"'))
    if what == "unfinished":
        ok(workspace, "start", "deploy", "--steps", "a")
        ok(workspace, "resume", "deploy", "--steal", "--reason", "x", "--owner", "bob")
        ok(workspace, "release", "deploy", "--owner", "bob")
    shutil.rmtree(store / ".locks")
    if what == "unfinished":
        assert taken_over(workspace, "carol") == 3
    else:
        assert token(workspace, "start", name, "--steps", "a") == (4 if what == "history" else 3)


# --- a record that is older than what was acknowledged -----------------------------------------------------------------------


@pytest.fixture
def older(workspace: Workspace) -> Workspace:
    """The record was put back, the lock file was not."""
    free_run(workspace)
    kept = workspace.file().read_bytes()
    taken_over(workspace, "alice")
    ok(workspace, "update", "deploy", "--complete", "a", "--owner", "alice")
    workspace.file().write_bytes(kept)
    return workspace


@pytest.mark.parametrize(
    "argv",
    [
        ("show", "deploy"),
        ("status", "deploy"),
        ("verify", "deploy"),
        ("verify",),
        ("resume", "deploy"),
        ("resume",),
        ("start", "deploy", "--steps", "a,b"),
        ("update", "deploy", "--complete", "a"),
        ("update", "deploy", "--complete", "a", "--token", "2"),
        ("begin", "deploy", "a"),
        ("heartbeat", "deploy"),
        ("release", "deploy"),
        ("complete", "deploy", "--force", "--reason", "x"),
        ("cancel", "deploy", "--reason", "x"),
        ("pin", "deploy"),
        ("run", "deploy", "a", "--", "touch", "effect"),
    ],
    ids=" ".join,
)
def test_every_verb_refuses_an_older_record(older: Workspace, argv: tuple[str, ...]) -> None:
    before = older.snapshot()
    assert older.tool(*argv).code == 12
    assert older.snapshot() == before


def test_an_older_record_is_in_the_list_and_the_self_check(older: Workspace) -> None:
    listed = ok(older, "list", "--json")
    assert "older" in listed.out
    assert "revision 4 was acknowledged" in listed.out
    checked = older.selfcheck()
    assert (checked.code, "acknowledged since" in checked.out) == (2, True)


def test_an_older_record_that_was_put_back_long_ago_is_found_by_a_scan(older: Workspace) -> None:
    """Without the thorough look that a fresh file gets."""
    store = FileStore(str(older.store))
    time.sleep(0.1)
    from_now = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("checkpoint.store.file.time.time_ns", lambda: from_now() + 3600 * 10**9)
        (entry,) = store.scan()
    assert isinstance(entry.error, errors.Damaged)
    assert entry.error.kind == "older"


def test_an_older_record_that_is_accepted_goes_on_above_all_tokens(older: Workspace) -> None:
    refused(older.tool("repair", "deploy"), 12, "--accept")
    ok(older, "repair", "deploy", "--accept")
    assert ok(older, "verify").code == 0
    assert taken_over(older, "bob") == 3
    refused(older.tool("update", "deploy", "--complete", "a", "--token", "2", "--owner", "alice"), 19)
    ok(older, "update", "deploy", "--complete", ["a", "b"][0], "--owner", "bob")


def test_an_older_record_that_is_set_aside_frees_the_id(older: Workspace) -> None:
    ok(older, "repair", "deploy", "--quarantine")
    assert ok(older, "list").out == ""
    assert token(older, "start", "deploy", "--steps", "a") == 3


def test_the_record_of_an_earlier_run_is_older_too(workspace: Workspace) -> None:
    free_run(workspace)
    kept = workspace.file().read_bytes()
    ok(workspace, "cancel", "deploy", "--reason", "x")
    shutil.rmtree(workspace.store / "done")
    ok(workspace, "start", "deploy", "--steps", "a,b")
    workspace.file().write_bytes(kept)
    refused(workspace.tool("resume", "deploy"), 12, "was acknowledged since")
    ok(workspace, "repair", "deploy", "--accept")
    assert taken_over(workspace, "bob") > 2


def test_a_lock_file_of_version_0_1_0_is_read(workspace: Workspace) -> None:
    free_run(workspace)
    lock = workspace.store / ".locks" / "deploy.lock"
    lock.write_bytes(b"%020d %010d\n" % (7, 4711))
    assert ok(workspace, "verify").code == 0
    assert taken_over(workspace, "bob") == 8
    # And it writes over the first line alone.
    text = lock.read_bytes()
    lock.write_bytes(b"%020d %010d\n" % (0, 4711) + text[32:])
    ok(workspace, "release", "deploy", "--owner", "bob")
    assert taken_over(workspace, "carol") == 9


def test_half_a_memory_is_none(workspace: Workspace) -> None:
    free_run(workspace)
    lock = workspace.store / ".locks" / "deploy.lock"
    text = lock.read_bytes()
    # The second line: run id, revision, token, state, ctime, sum; here with a revision that was never written.
    lock.write_bytes(text[:69] + b"9" * 10 + text[79:])
    assert Checkpoints(workspace.store).show("deploy").checkpoint.token == 1
    for cut in range(33, len(text), 5):
        for torn in (text[:cut], text[:cut] + bytes(len(text) - cut), text[:cut] + b"9" * (len(text) - cut)):
            lock.write_bytes(torn)
            assert Checkpoints(workspace.store).show("deploy").checkpoint.token == 1


# --- an old record comes back beside its own receipt -------------------------------------------------------------------------


@pytest.fixture(params=["key", "no key"])
def returned(workspace: Workspace, request: pytest.FixtureRequest) -> tuple[Workspace, str]:
    """(workspace, id): finished, and the unfinished record was put back, with or without its lock files."""
    key = ("--key", "k") if request.param == "key" else ()
    id = KEYED if key else "deploy"
    ok(workspace, "start", "deploy", "--steps", "pay", *key)
    kept = workspace.file(id).read_bytes()
    ok(workspace, "update", id, "--complete", "pay")
    ok(workspace, "complete", id)
    workspace.file(id).write_bytes(kept)
    return workspace, id


@pytest.mark.parametrize("locks", ["kept", "lost"])
def test_every_verb_refuses_a_record_that_came_back(returned: tuple[Workspace, str], locks: str) -> None:
    workspace, id = returned
    if locks == "lost":
        shutil.rmtree(workspace.store / ".locks")
    before = workspace.snapshot()
    refused(workspace.tool("verify"), 12)
    for argv in (
        ("show", id),
        ("resume", id),
        ("update", id, "--complete", "pay"),
        ("begin", id, "pay"),
        ("run", id, "pay", "--", "touch", "paid"),
        ("complete", id, "--force", "--reason", "x"),
        ("fail", id, "--reason", "x"),
        ("pin", id),
    ):
        refused(workspace.tool(*argv), 12, f"checkpoint-tool repair {id} --quarantine")
    ok(workspace, "prune", "--keep", "0", "--apply")
    assert workspace.snapshot() == before
    assert "returned" in ok(workspace, "list", "--json").out
    assert workspace.selfcheck().code == 2
    refused(workspace.tool("repair", id, "--accept"), 12, "--quarantine")
    ok(workspace, "repair", id, "--quarantine")
    assert ok(workspace, "verify").code == 0
    assert ok(workspace, "status", id).out.startswith("completed") or workspace.tool("status", id).code == 0


def test_the_receipt_answers_for_its_key(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "pay", "--key", "k")
    kept = workspace.file(KEYED).read_bytes()
    ok(workspace, "update", KEYED, "--complete", "pay")
    ok(workspace, "complete", KEYED)
    receipt = (workspace.store / "done" / f"{KEYED}.json").read_bytes()
    for old in (kept, kept[:100], b""):
        workspace.file(KEYED).write_bytes(old)
        started = ok(workspace, "start", "deploy", "--steps", "pay", "--key", "k", "--json").json
        assert (started["created"], started["status"], started["next"]) == (False, "completed", None)
        refused(workspace.tool("start", "deploy", "--steps", "pay,again", "--key", "k"), 14)
        assert (workspace.store / "done" / f"{KEYED}.json").read_bytes() == receipt
    run = Checkpoints(workspace.store).start("deploy", ["pay"], key="k")
    assert (run.created, run.checkpoint.status) == (False, Status.COMPLETED)


def test_a_command_under_a_key_is_not_run_again(workspace: Workspace) -> None:
    command = ("exec", "deploy", "--key", "k", "--", "sh", "-c", f"cp {workspace.store}/*.json kept; echo x >>paid")
    assert workspace.tool(*command).code == 0
    shutil.copy(workspace.path / "kept", workspace.file(KEYED))
    assert workspace.tool(*command).code == 0
    assert (workspace.path / "paid").read_text() == "x\n"


def test_a_finished_record_that_was_not_yet_moved_is_no_damage(workspace: Workspace) -> None:
    """A process that died between the copy and the unlink leaves both."""
    for key in (None, "k"):
        run = Checkpoints(workspace.store).start("deploy", ["pay"], key=key)
        run.complete_step("pay")
        store = FileStore(str(workspace.store))
        place = workspace.file(run.id)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("checkpoint.store.disk.Folder.remove", lambda *_: None)
            run.complete()
        assert place.exists()
        assert {entry.error for entry in store.scan(finished=True)} == {None}
        assert ok(workspace, "verify").code == 0
        assert Checkpoints(workspace.store).start("deploy", ["pay"], key=key).created is (key is None)


# --- vanished --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "k"], ids=["no key", "key"])
def test_a_record_that_vanished_is_missed(workspace: Workspace, key: str | None) -> None:
    more = ("--key", "k") if key else ()
    id = KEYED if key else "deploy"
    ok(workspace, "start", "deploy", "--steps", "a", *more)
    workspace.file(id).unlink()
    refused(workspace.tool("start", "deploy", "--steps", "a", *more), 12, "vanished", "revision 1")
    listed = ok(workspace, "list")
    assert f"{id} vanished: its lock file knows run" in listed.err
    refused(workspace.tool("resume"), 12)
    for argv in (("verify",), ("verify", id), ("show", id), ("resume", id), ("update", id, "--complete", "a")):
        refused(workspace.tool(*argv), 12)
    checked = workspace.selfcheck()
    assert (checked.code, "vanished" in checked.out) == (2, True)
    refused(workspace.tool("repair", id), 12, f"checkpoint-tool repair {id} --accept")
    refused(workspace.tool("repair", id, "--quarantine"), 12, "--accept")
    ok(workspace, "repair", id, "--accept")
    assert ok(workspace, "verify").code == 0
    assert ok(workspace, "list").out == ""
    assert token(workspace, "start", "deploy", "--steps", "a", *more) == 2


def test_a_receipt_that_vanished_is_missed(workspace: Workspace) -> None:
    ok(workspace, "exec", "deploy", "--key", "k", "--", "touch", "paid")
    (workspace.path / "paid").unlink()
    (workspace.store / "done").rename(workspace.path / "done")
    refused(workspace.tool("exec", "deploy", "--key", "k", "--", "touch", "paid"), 12, "its receipt is not there")
    refused(workspace.tool("verify"), 12)
    assert not (workspace.path / "paid").exists()
    (workspace.path / "done").rename(workspace.store / "done")
    ok(workspace, "exec", "deploy", "--key", "k", "--", "touch", "paid")
    assert not (workspace.path / "paid").exists()


def test_what_was_put_away_on_purpose_is_not_missed(workspace: Workspace) -> None:
    ok(workspace, "exec", "deploy", "--key", "k", "--", "true")
    ok(workspace, "exec", "nightly", "--", "true")
    ok(workspace, "prune", "--keep", "0", "--apply")
    ok(workspace, "start", "broken", "--steps", "a")
    workspace.file("broken").write_text("{")
    ok(workspace, "repair", "broken", "--quarantine")
    assert ok(workspace, "verify").out.startswith("quarantine/broken")
    assert ok(workspace, "list", "--all").out == ""
    assert workspace.selfcheck().code == 0
    ok(workspace, "exec", "deploy", "--key", "k", "--", "true")
    ok(workspace, "start", "broken", "--steps", "a")


def test_a_store_that_a_self_check_watches_and_that_is_gone_is_said_to_be(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    assert workspace.selfcheck(
        "--root", str(workspace.path), "--state", str(workspace.path / "memory" / ".selfcheck"), "--metrics", "m"
    ).code in (0, 1)
    shutil.rmtree(workspace.store)
    for argv in (("list",), ("show", "deploy"), ("resume",)):
        done = workspace.tool(*argv, "--store", str(workspace.store))
        assert "a self-check watches it" in done.err, done


# --- git -------------------------------------------------------------------------------------------------------------------


def test_git_leaves_a_new_store_alone(workspace: Workspace) -> None:
    need_program("git")

    def git(*argv: str) -> str:
        own = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *argv]
        return subprocess.run(own, cwd=workspace.path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (workspace.path / "code").write_text("1")
    git("add", "code")
    git("commit", "-qm", "x")
    ok(workspace, "start", "deploy", "--steps", "a")
    before = workspace.file().read_bytes()
    (workspace.path / "code").write_text("2")
    git("stash", "-u")
    git("clean", "-fdq")
    git("add", "-A")
    assert git("status", "--short") == ""
    assert workspace.file().read_bytes() == before
    assert ok(workspace, "verify").out == "1 checked, all whole\n"
    assert (workspace.store / ".gitignore").read_text() == "*\n"


def test_a_store_that_is_there_is_given_no_gitignore(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    (workspace.store / ".gitignore").unlink()
    ok(workspace, "start", "other", "--steps", "a")
    assert not (workspace.store / ".gitignore").exists()


# --- the store is moved or replaced under a process ------------------------------------------------------------------------


def moved_and_copied(store: Path) -> None:
    store.rename(store.with_name("old"))
    shutil.copytree(store.with_name("old"), store)


def test_a_handle_goes_on_in_the_copy_that_took_the_place(tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = Checkpoints(store).start("deploy", ["a", "b"], key="k")
    run.complete_step("a")
    moved_and_copied(store)
    run.complete_step("b")
    run.complete()
    assert Checkpoints(store).start("deploy", ["a", "b"], key="k").checkpoint.status is Status.COMPLETED
    assert Checkpoints(tmp_path / "old").show(run.id).checkpoint.unfinished


def test_one_object_does_not_start_a_key_twice(tmp_path: Path) -> None:
    store = tmp_path / "store"
    ours, other = Checkpoints(store), Checkpoints(store)
    ours.start("other", ["a"])
    moved_and_copied(store)
    other.start("deploy", ["a"], key="k").complete(force_reason="x")
    assert not ours.start("deploy", ["a"], key="k").created


def test_an_older_copy_that_took_the_place_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    checkpoints = Checkpoints(store)
    run = checkpoints.start("deploy", ["a", "b"])
    shutil.copytree(store, tmp_path / "copy")
    run.complete_step("a")
    store.rename(tmp_path / "old")
    (tmp_path / "copy").rename(store)
    for change in (lambda: run.complete_step("b"), lambda: checkpoints.start("deploy", ["a", "b"])):
        with pytest.raises(errors.StoreUnavailable, match="while this process worked in it"):
            change()
    store.rename(tmp_path / "copy")
    (tmp_path / "old").rename(store)
    run.complete_step("b")
    run.complete()


@pytest.mark.parametrize("how", ["moved", "removed", "emptied"])
def test_a_store_that_is_gone_is_refused_by_who_worked_in_it(tmp_path: Path, how: str) -> None:
    store = tmp_path / "store"
    checkpoints = Checkpoints(store)
    run = checkpoints.start("deploy", ["a"])
    finished = checkpoints.start("pay", ["a"], key="k")
    finished.complete(force_reason="x")
    store.rename(tmp_path / "old") if how == "moved" else shutil.rmtree(store)
    if how == "emptied":
        store.mkdir(mode=0o700)
    for change in (
        lambda: run.complete_step("a"),
        lambda: checkpoints.start("deploy", ["a"]),
        lambda: checkpoints.start("pay", ["a"], key="k"),
    ):
        with pytest.raises(errors.StoreUnavailable):
            change()
    assert how == "emptied" or not store.exists()
    # Of this one nothing was there that could be lost.
    assert checkpoints.start("new", ["a"]).created


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_lock_files_that_are_gone_stop_no_later_write(tmp_path: Path, how: str) -> None:
    store = tmp_path / "store"
    run = Checkpoints(store).start("deploy", ["a", "b"])
    locks = store / ".locks"
    locks.rename(tmp_path / "locks") if how == "moved" else shutil.rmtree(locks)
    run.complete_step("a")
    run.complete_step("b")
    assert run.complete().status is Status.COMPLETED
    assert [*Checkpoints(store).verify().findings] == []


@pytest.mark.parametrize("what", ["", ".locks"], ids=["store", "locks"])
def test_what_is_moved_in_the_middle_of_a_change_is_not_written_to(tmp_path: Path, what: str) -> None:
    store = tmp_path / "store"
    files = FileStore(str(store))
    Checkpoints(files).start("deploy", ["a"])
    before = (store / "deploy.json").read_bytes()

    def change(checkpoint: Any, _: Any) -> Any:
        (store / what).rename(tmp_path / "old")
        if not what:
            shutil.copytree(tmp_path / "old", store)
        return checkpoint._replace(reason="x")

    with pytest.raises(errors.StoreUnavailable, match="in this very moment"):
        files.update("deploy", change)
    for place in (store, tmp_path / "old" if not what else store):
        assert (place / "deploy.json").read_bytes() == before
    assert files.update("deploy", lambda checkpoint, _: checkpoint._replace(reason="y")).revision == 2


INIT = f'eval "$({shlex.quote(TOOL)} shell-init bash)"'
RUN = "mv memory/checkpoints old && cp -a old memory/checkpoints"


@pytest.mark.parametrize("how", ["run", "exec", "session"])
def test_a_command_under_which_the_store_is_moved_ends_in_the_new_one(workspace: Workspace, how: str) -> None:
    if how == "run":
        ok(workspace, "start", "deploy")
        assert workspace.tool("run", "deploy", "step", "--", "sh", "-c", RUN).code == 0
        assert workspace.record()["steps"][0]["status"] == "completed"
    elif how == "exec":
        assert workspace.tool("exec", "deploy", "--", "sh", "-c", RUN).code == 0
        assert workspace.tool("status", "deploy").code == 0
    else:
        script = f"{INIT}; ckpt_start deploy; ckpt_step one true; {RUN}; ckpt_step two true; exit 0"
        assert workspace.run("bash", "-c", script).code == 0
        assert [step["status"] for step in workspace.record()["steps"]] == ["completed", "completed"]


@pytest.mark.parametrize("how", ["run", "session"])
def test_a_command_under_which_the_store_is_taken_away_says_so(workspace: Workspace, how: str) -> None:
    ok(workspace, "start", "deploy")
    away = "mv memory/checkpoints old"
    if how == "run":
        refused(workspace.tool("run", "deploy", "step", "--", "sh", "-c", away), 17, "ran (exit status 0)", "put it back")
    else:
        script = f"{INIT}; ckpt_start other; ckpt_step one true; {away}; ckpt_step two touch effect"
        # Each verb of a session opens the store anew, as a command of its own does.
        refused(workspace.run("bash", "-c", script), 10, "there is no store")
        assert not (workspace.path / "effect").exists()
    assert not workspace.store.exists()


# --- names that mean two things ---------------------------------------------------------------------------------------------


def test_a_workflow_that_is_called_like_a_run_id_takes_nothing_from_that_run(workspace: Workspace) -> None:
    begun = ok(workspace, "start", "deploy", "--steps", "a", "--json").json
    run_id = begun["run_id"]
    ok(workspace, "cancel", "deploy", "--reason", "x")
    ok(workspace, "start", run_id, "--steps", "b")
    history = workspace.store / "done" / "deploy" / f"{run_id}.json"
    assert ok(workspace, "verify").code == 0
    history.write_bytes(history.read_bytes().replace(b'"agent":null', b'"agent":"eve"'))
    refused(workspace.tool("verify"), 12)
    history.write_bytes(history.read_bytes().replace(b'"agent":"eve"', b'"agent":null'))
    assert ok(workspace, "pin", run_id, "--json").json["id"] == "deploy"
    assert ok(workspace, "prune", "--keep", "0", "--apply").out == ""
    assert ok(workspace, "unpin", f"run:{run_id}", "--json").json["id"] == "deploy"
    # Verbs that drive a run take the name for the id that it is.
    assert ok(workspace, "update", run_id, "--complete", "b", "--json").json["id"] == run_id
    assert ok(workspace, "show", f"run:{run_id}", "--json").json["id"] == "deploy"
    assert run_id in ok(workspace, "prune", "--keep", "0", "--apply").out
    assert not history.exists()
    assert workspace.record(run_id)["steps"][0]["status"] == "completed"


def test_a_workflow_that_is_called_like_the_id_of_a_key(workspace: Workspace) -> None:
    ok(workspace, "exec", "deploy", "--key", "k", "--", "true")
    ok(workspace, "exec", KEYED, "--", "true")
    assert ok(workspace, "verify").out == "2 checked, all whole\n"
    assert len(ok(workspace, "prune", "--keep", "0", "--apply").out.splitlines()) == 2
    assert ok(workspace, "list", "--all").out == ""


def test_handles_of_finished_runs_mean_their_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, owner=owner("ann", time_held=True))
    first = checkpoints.start("deploy", ["a"])
    first.complete(force_reason="x")
    checkpoints.start(first.checkpoint.run_id, ["b"])
    assert checkpoints.open("deploy").complete().id == "deploy"
    assert os.listdir(tmp_path / "done") == ["deploy"]
