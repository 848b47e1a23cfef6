"""One contract for every backend, then what is true of files alone."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import lacking
from records import RUN_ID, owner, run

from checkpoint import Checkpoints, errors, model
from checkpoint.model import Checkpoint, OwnerState, Standing, Status
from checkpoint.store import Store, open_store
from checkpoint.store.file import FileStore


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store("memory:" if request.param == "memory" else tmp_path / "store")


def keyed(name: str = "deploy-0123456789ab", **more: object) -> Checkpoint:
    return run(id=name, idempotency_key="k", **more)


def end(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
    return model.finish(checkpoint, Status.COMPLETED, Standing(OwnerState.ALIVE), now, reason="r")


def finish(store: Store, name: str) -> None:
    store.archive(name, store.update(name, end).run_id)


def test_what_is_created_is_loaded(store: Store) -> None:
    created = store.create(run())
    assert store.load("deploy") == created
    assert store.load(created.run_id) == created
    assert [entry.checkpoint for entry in store.scan()] == [created]


def test_create_is_exclusive(store: Store) -> None:
    store.create(run())
    with pytest.raises(errors.AlreadyExists):
        store.create(run())


def test_a_run_id_with_a_label_is_filed_and_found_by_its_uuid(store: Store) -> None:
    labelled = f"cron:{RUN_ID}"
    store.create(run(run_id=labelled))
    for name in (labelled, RUN_ID, f"other:{RUN_ID}"):
        assert store.load(name).run_id == labelled
    finish(store, "deploy")
    assert store.load(labelled).status is Status.COMPLETED
    assert [entry.place for entry in store.scan(finished=True)] in (
        [f"done/deploy/{RUN_ID}.json"],
        [f"done/{RUN_ID}.json"],
    )
    store.delete(labelled, labelled)
    with pytest.raises(errors.NotFound):
        store.load(labelled)


def test_a_scan_for_one_workflow_and_its_newest(store: Store) -> None:
    ids = [f"019cab00-0000-7000-8000-{number:012}" for number in range(4)]
    for number, id in enumerate(ids):
        store.create(run(run_id=f"cron:{id}" if number % 2 else id))
        finish(store, "deploy")
    store.create(run(run_id="019cab00-0000-7000-8000-000000000009"))
    store.create(keyed(run_id="019cab00-0000-7000-8000-00000000000a"))
    store.create(run(id="other", workflow="other", run_id="019cab00-0000-7000-8000-00000000000b"))

    def found(**more: object) -> set[str]:
        entries = store.scan(workflow="deploy", **more)  # type: ignore[arg-type]
        return {model.bare(entry.checkpoint.run_id)[-1] for entry in entries if entry.checkpoint}

    assert found() == {"9", "a"}
    assert found(finished=True) == {"0", "1", "2", "3", "9", "a"}
    assert found(finished=True, newest=2) == {"2", "3", "9", "a"}


def test_a_finished_key_stays_taken_a_finished_workflow_does_not(store: Store) -> None:
    store.create(keyed())
    finish(store, keyed().id)
    with pytest.raises(errors.AlreadyExists):
        store.create(keyed())
    store.create(run())
    finish(store, "deploy")
    store.create(run(run_id="019cab00-0000-7000-8000-000000000002"))


def test_tokens_of_an_id_grow_over_its_runs(store: Store) -> None:
    store.create(run())
    stolen = store.update("deploy", lambda c, now: model.claim(c, owner("bob"), Standing(OwnerState.DEAD), now))
    assert stolen.token == 2
    finish(store, "deploy")
    store.delete(stolen.run_id, stolen.run_id)
    assert store.create(run()).token == 3


def test_update_writes_a_revision_and_no_change_writes_none(store: Store) -> None:
    store.create(run())
    changed = store.update("deploy", lambda c, now: model.note(c, "hello", "ann", now))
    assert changed.revision == 2
    assert store.update("deploy", lambda c, now: c) == changed
    assert store.load("deploy").revision == 2
    assert changed.updated_at <= datetime.now(UTC)


def test_an_update_that_raises_changes_nothing(store: Store) -> None:
    created = store.create(run())
    with pytest.raises(errors.Locked):
        store.update("deploy", lambda c, now: model.claim(c, owner("bob"), Standing(OwnerState.ALIVE), now))
    with pytest.raises(errors.Usage):
        store.update("deploy", lambda c, now: model.merge_data(c, {"x": "y" * (5 << 20)}))
    assert store.load("deploy") == created


@pytest.mark.parametrize("name", ["nothing", "019cab00-0000-7000-8000-00000000ffff"])
def test_what_is_not_there(store: Store, name: str) -> None:
    store.create(run())
    with pytest.raises(errors.NotFound):
        store.load(name)
    with pytest.raises(errors.NotFound):
        store.update(name, lambda c, now: c)
    store.archive(name, RUN_ID)
    store.delete(name, RUN_ID)


@pytest.mark.parametrize("name", ["../evil", "", "a/b", "A", ".hidden", "a\0", "a\n", "x" * 300])
def test_names_that_are_none(store: Store, name: str) -> None:
    for verb in (store.load, store.raw):
        with pytest.raises(errors.Usage):
            verb(name)
    for ending in (store.archive, store.delete):
        with pytest.raises(errors.Usage):
            ending(name, RUN_ID)


def test_finished_runs_leave_the_unfinished_ones(store: Store) -> None:
    store.create(run())
    store.create(keyed())
    finish(store, "deploy")
    finish(store, keyed().id)
    assert list(store.scan()) == []
    assert {entry.name for entry in store.scan(finished=True)} == {run().run_id, keyed().id}
    assert store.load("deploy").status is Status.COMPLETED
    assert store.load(run().run_id).status is Status.COMPLETED
    store.archive("deploy", RUN_ID)


def test_a_finished_record_that_was_not_yet_moved_is_passed_over(store: Store) -> None:
    store.create(run())
    store.update("deploy", end)
    assert list(store.scan()) == []
    assert [entry.name for entry in store.scan(finished=True)] == ["deploy"]


def test_the_last_run_is_the_one_that_is_meant_by_the_name(store: Store) -> None:
    for number in range(3):
        store.create(run(run_id=f"019cab00-0000-7000-8000-00000000000{number}"))
        finish(store, "deploy")
    assert store.load("deploy").run_id.endswith("2")


def test_only_finished_and_unpinned_runs_are_deleted(store: Store) -> None:
    store.create(run())
    with pytest.raises(errors.InvalidTransition):
        store.delete("deploy", RUN_ID)
    with pytest.raises(errors.InvalidTransition):
        store.archive("deploy", RUN_ID)
    finish(store, "deploy")
    store.update("deploy", lambda c, now: model.pin(c, True))
    with pytest.raises(errors.InvalidTransition):
        store.delete(RUN_ID, RUN_ID)
    store.update("deploy", lambda c, now: model.pin(c, False))
    store.delete(RUN_ID, RUN_ID)
    assert list(store.scan(finished=True)) == []


def test_what_another_run_stands_for_is_left_alone(store: Store) -> None:
    store.create(run())
    finish(store, "deploy")
    store.create(run(run_id="019cab00-0000-7000-8000-000000000002"))
    store.archive("deploy", RUN_ID)
    store.delete("other", RUN_ID)
    store.delete("deploy", "019cab00-0000-7000-8000-000000000003")
    assert store.load("deploy").unfinished
    assert store.load(RUN_ID).status is Status.COMPLETED
    store.delete("deploy", RUN_ID)
    assert store.load("deploy").unfinished
    with pytest.raises(errors.NotFound):
        store.load(RUN_ID)


def test_repair_sets_aside_and_reseals(store: Store) -> None:
    store.create(run())
    stolen = store.update("deploy", lambda c, now: model.claim(c, owner("bob"), Standing(OwnerState.DEAD), now))
    id, raw = store.raw("deploy")
    assert id == "deploy"
    kept = store.repair("deploy", raw, lambda id, raw: model.pin(run(), True))
    mended = store.load("deploy")
    assert mended.pinned
    assert (mended.token, mended.lease) == (stolen.token, None), "a token that was overtaken came to life again"
    assert kept in store.leftovers()
    with pytest.raises(errors.Conflict):
        store.repair("deploy", raw, None)
    store.repair("deploy", store.raw("deploy")[1], None)
    with pytest.raises(errors.NotFound):
        store.load("deploy")
    assert store.create(run()).token == stolen.token + 1


def test_threads_that_list_at_once_see_all(store: Store) -> None:
    for number in range(200):
        store.create(run(id=f"run-{number}", workflow=f"run-{number}"))
    seen: list[int] = []

    def work() -> None:
        for _ in range(15):
            seen.append(len([*store.scan()]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [200] * 60


def test_threads_lose_no_update(store: Store) -> None:
    store.create(run(open_plan=True))

    def work(number: int) -> None:
        for count in range(10):
            store.update("deploy", lambda c, now, name=f"s-{number}-{count}": model.add_step(c, name))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.load("deploy").steps) == 40
    assert store.load("deploy").revision == 41


# --- files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path / "memory" / "checkpoints"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.usefixtures("open_umask")
def test_everything_is_private_whatever_the_umask(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    files.create(keyed())
    finish(files, "deploy")
    finish(files, keyed().id)
    for path in tmp_path.joinpath("memory").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o700


def test_reading_makes_nothing(files: FileStore, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        files.load("deploy")
    with pytest.raises(errors.NotFound):
        list(files.scan())
    assert list(tmp_path.iterdir()) == []


def test_leftover_temporaries_of_this_id_go_those_of_others_stay(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    folder = tmp_path / "memory" / "checkpoints"
    mine, other = folder / ".deploy.0123456789ab.tmp", folder / ".deploy-two.0123456789ab.tmp"
    mine.write_text("x")
    other.write_text("x")
    assert [entry.name for entry in files.scan()] == ["deploy"]
    FileStore(str(folder)).update("deploy", lambda c, now: model.note(c, "x", "ann", now))
    assert (mine.exists(), other.exists()) == (False, True)
    assert FileStore(str(folder)).leftovers() == [other.name]


def test_a_second_store_object_sees_what_the_first_wrote(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    other = FileStore(str(tmp_path / "memory" / "checkpoints"))
    other.update("deploy", lambda c, now: model.note(c, "x", "ann", now))
    assert files.update("deploy", lambda c, now: model.note(c, "y", "ann", now)).revision == 3
    assert [note.text for note in other.load("deploy").notes] == ["x", "y"]


def test_a_second_name_keeps_what_it_had(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    place = tmp_path / "memory" / "checkpoints"
    second, lock = tmp_path / "second", tmp_path / "lock"
    os.link(place / "deploy.json", second)
    os.link(place / ".locks" / "deploy.lock", lock)
    before = second.read_bytes(), lock.read_bytes()
    assert files.second_names() == ["deploy.json"]
    assert files.update("deploy", lambda c, now: model.note(c, "x", "ann", now)).revision == 2
    assert (second.read_bytes(), lock.read_bytes()) == before
    assert files.second_names() == []
    assert FileStore(str(place)).load("deploy").revision == 2


def test_a_lock_file_with_a_second_name_still_excludes(files: FileStore, tmp_path: Path) -> None:
    files.create(run(open_plan=True))
    lock = tmp_path / "memory" / "checkpoints" / ".locks" / "deploy.lock"

    def work(number: int) -> None:
        other = FileStore(files._path)
        for count in range(20):
            if count % 5 == number:
                lock.with_name(f"second-{number}-{count}").hardlink_to(lock)
            other.update("deploy", lambda c, now, name=f"s-{number}-{count}": model.add_step(c, name))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files.load("deploy").steps) == 80


def test_a_record_of_another_user_is_refused_however_it_came(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    if os.geteuid() != 0:
        lacking("only root can give a file away")
    place = tmp_path / "memory" / "checkpoints"
    (tmp_path / "planted").write_bytes((place / "deploy.json").read_bytes())
    os.chown(tmp_path / "planted", 65534, 65534)
    (place / "deploy.json").unlink()
    os.link(tmp_path / "planted", place / "deploy.json")
    with pytest.raises(errors.Damaged) as caught:
        files.load("deploy")
    assert caught.value.kind == "foreign-owner"


def test_a_reader_that_opened_a_file_which_is_then_replaced_is_not_alarmed(files: FileStore) -> None:
    files.create(run(open_plan=True))
    stop = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        other = FileStore(files._path)
        while not stop.is_set():
            try:
                other.load("deploy")
            except errors.CheckpointError as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for count in range(200):
        files.update("deploy", lambda c, now, name=f"s{count}": model.add_step(c, name))
    stop.set()
    thread.join()
    assert failures == []


def test_the_lock_is_taken_anew_when_its_file_was_removed(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    (tmp_path / "memory" / "checkpoints" / ".locks" / "deploy.lock").unlink()
    assert files.update("deploy", lambda c, now: model.note(c, "x", "ann", now)).revision == 2


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_a_planted_lock_file_is_refused(files: FileStore, tmp_path: Path, what: str) -> None:
    files.create(run())
    lock = tmp_path / "memory" / "checkpoints" / ".locks" / "deploy.lock"
    lock.unlink()
    target = tmp_path / "target"
    if what == "link":
        lock.symlink_to(target)
    elif what == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(errors.StoreUnavailable, match="lock file"):
        files.update("deploy", lambda c, now: model.note(c, "x", "ann", now))
    assert not target.exists()


@pytest.mark.parametrize("folder", [".locks", "done"])
def test_a_planted_link_in_place_of_a_folder_is_refused(files: FileStore, tmp_path: Path, folder: str) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    place = tmp_path / "memory" / "checkpoints"
    files.create(run())
    if folder == ".locks":
        shutil.rmtree(place / ".locks")
    (place / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.StoreUnavailable, match="link"):
        finish(FileStore(str(place)), "deploy")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_store_is_not_followed_through_a_link(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    (tmp_path / "link").symlink_to(tmp_path / "memory" / "checkpoints")
    with pytest.raises(errors.StoreUnavailable, match="link"):
        FileStore(str(tmp_path / "link")).load("deploy")


def test_a_store_of_another_user_or_open_to_others_is_refused(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    place = tmp_path / "memory" / "checkpoints"
    place.chmod(0o770)
    with pytest.raises(errors.StoreUnavailable, match="others may write"):
        FileStore(str(place)).load("deploy")
    place.chmod(0o700)
    if os.geteuid() != 0:
        lacking("only root can give a folder away")
    os.chown(place, 65534, 65534)
    os.chown(place / "deploy.json", 65534, 65534)
    assert FileStore(str(place)).load("deploy").id == "deploy", "root may read"
    with pytest.raises(errors.StoreUnavailable, match="belongs to nobody"):
        FileStore(str(place)).update("deploy", lambda checkpoint, _: model.pin(checkpoint, True))


def test_odd_things_in_the_store_are_one_entry_each(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    place = tmp_path / "memory" / "checkpoints"
    (place / "link.json").symlink_to(place / "deploy.json")
    (place / "folder.json").mkdir()
    os.mkfifo(place / "pipe.json")
    (place / "README.md").write_text("x")
    (place / "Bad Name.json").write_text("x")
    (place / "empty.json").touch()
    with (place / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    (place / ".hidden").write_text("x")
    found = {entry.place: entry.error.kind if isinstance(entry.error, errors.Damaged) else None for entry in files.scan()}
    assert found == {
        "Bad Name.json": "name",
        "README.md": "name",
        "deploy.json": None,
        "empty.json": "json",
        "folder.json": "not-a-file",
        "huge.json": "too-large",
        "link.json": "symlink",
        "pipe.json": "not-a-file",
    }


def test_a_second_run_is_never_written_over_a_receipt(files: FileStore, tmp_path: Path) -> None:
    files.create(keyed())
    finish(files, keyed().id)
    receipt = tmp_path / "memory" / "checkpoints" / "done" / f"{keyed().id}.json"
    kept = receipt.read_bytes()
    receipt.rename(tmp_path / "aside")
    shutil.rmtree(tmp_path / "memory" / "checkpoints" / ".locks")  # else the receipt is missed
    other = FileStore(files._path)
    other.create(keyed(run_id="019cab00-0000-7000-8000-000000000009"))
    other.update(keyed().id, end)
    receipt.write_bytes(kept)
    with pytest.raises(errors.Damaged, match="another run"):
        other.archive(keyed().id, "019cab00-0000-7000-8000-000000000009")
    assert receipt.read_bytes() == kept
    assert other.load(keyed().id).run_id.endswith("9")


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_stands_in_place_of_the_finished_runs_is_never_taken_for_nothing(
    files: FileStore, tmp_path: Path, what: str
) -> None:
    files.create(keyed())
    finish(files, keyed().id)
    done = tmp_path / "memory" / "checkpoints" / "done"
    done.rename(tmp_path / "elsewhere")
    done.symlink_to(tmp_path / "elsewhere") if what == "link" else done.touch()
    with pytest.raises(errors.StoreUnavailable, match="no folder of ours"):
        FileStore(files._path).create(keyed())
    with pytest.raises(errors.StoreUnavailable, match="no folder of ours"):
        list(FileStore(files._path).scan(finished=True))


def test_a_run_that_stands_in_both_places_is_listed_once(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    files.update("deploy", end)
    place = tmp_path / "memory" / "checkpoints"
    before = (place / "deploy.json").read_bytes()
    files.archive("deploy", RUN_ID)
    (place / "deploy.json").write_bytes(before)
    assert [entry.place for entry in FileStore(str(place)).scan(finished=True)] == [f"done/deploy/{RUN_ID}.json"]


def test_a_damaged_copy_below_done_gives_way_to_the_whole_one(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    files.update("deploy", end)
    place = tmp_path / "memory" / "checkpoints"
    (place / "done" / "deploy").mkdir(parents=True, mode=0o700)
    (place / "done").chmod(0o700)
    (place / "done" / "deploy" / f"{RUN_ID}.json").write_text("{")
    files.archive("deploy", RUN_ID)
    assert files.load("deploy").status is Status.COMPLETED
    assert len(files.leftovers()) == 1


def test_one_bad_folder_of_the_history_hides_no_other(files: FileStore, tmp_path: Path) -> None:
    files.create(run())
    finish(files, "deploy")
    other = tmp_path / "memory" / "checkpoints" / "done" / "other"
    other.mkdir()
    other.chmod(0o770)
    entries = list(files.scan(finished=True))
    assert [(entry.name, type(entry.error)) for entry in entries] == [
        (RUN_ID, type(None)),
        ("other", errors.StoreUnavailable),
    ]


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(files: FileStore) -> None:
    files.create(run())
    children: list[int] = []

    def fork(checkpoint: Checkpoint, now: datetime) -> Checkpoint:
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        children.append(pid)
        return model.note(checkpoint, "x", "ann", now)

    try:
        files.update("deploy", fork)
        began = time.monotonic()
        FileStore(files._path).update("deploy", lambda c, now: model.note(c, "y", "ann", now))
        assert time.monotonic() - began < 5
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_what_cannot_be_written_leaves_no_store_behind(tmp_path: Path) -> None:
    with pytest.raises(errors.Usage):
        FileStore(str(tmp_path / "store")).create(run(data={"x": "y" * (5 << 20)}))
    assert list(tmp_path.iterdir()) == []


COUNT_LISTINGS = """
import os, sys
from checkpoint import Checkpoints
listed = []
def hook(event, arguments):
    if event in ("os.listdir", "os.scandir"):
        listed.append(os.readlink(f"/proc/self/fd/{arguments[0]}") if isinstance(arguments[0], int) else arguments[0])
sys.addaudithook(hook)
runs = [Checkpoints(sys.argv[1]).start("deploy", ["a"], key=key) for key in ("old", "new")]
Checkpoints(sys.argv[1]).start("daily", ["a"])
print([run.created for run in runs], any("done" in str(path) for path in listed), len(listed) > 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which folder a descriptor means")
def test_starting_never_lists_what_is_finished(tmp_path: Path) -> None:
    for key in (None, "old"):
        Checkpoints(tmp_path).start("daily" if key is None else "deploy", ["a"], key=key).complete(force_reason="test")
    out = subprocess.run([sys.executable, "-c", COUNT_LISTINGS, tmp_path], capture_output=True, text=True, check=True).stdout
    assert out == "[False, True] False True\n"
