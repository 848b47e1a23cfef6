"""The Python API as a program uses it."""

import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import checkpoint
from checkpoint import Checkpoints, Status, Update, errors


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_run_from_start_to_end(store: Path) -> None:
    effects = []
    with Checkpoints(store).start("deploy", ["fetch", "build"]) as deploy:
        assert deploy.created
        assert deploy.next == "fetch"
        with deploy.step("fetch") as step:
            assert not step.done
            step.result = {"bytes": 3}

        @deploy.step("build")
        def build(what: str) -> str:
            effects.append(what)
            return "built " + what

        assert build("it") == "built it"
        assert build("it again") == "built it"
        deploy.complete()
    assert effects == ["it"]
    done = Checkpoints(store).show("deploy").checkpoint
    assert done.status is Status.COMPLETED
    assert [step.result for step in done.steps] == [{"bytes": 3}, "built it"]


def test_a_step_done_before_is_skipped_and_its_result_is_there(store: Path) -> None:
    with Checkpoints(store).start("deploy", ["fetch", "build"]) as deploy, deploy.step("fetch") as step:
        step.result = 7
    with Checkpoints(store).resume("deploy") as deploy, deploy.step("fetch") as step:
        assert step.done
        assert step.result == 7
    assert Checkpoints(store).show("deploy").next == "build"


def test_an_exception_fails_the_step_and_goes_on(store: Path) -> None:
    with (
        pytest.raises(ValueError, match="no such host"),
        Checkpoints(store).start("deploy", ["fetch"]) as deploy,
        deploy.step("fetch"),
    ):
        raise ValueError("no such host")
    step = Checkpoints(store).show("deploy").checkpoint.steps[0]
    assert (step.status, step.error) == ("failed", "ValueError: no such host")


def test_an_interrupt_leaves_the_step_in_doubt(store: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Checkpoints(store).start("deploy", ["fetch"]) as deploy,
        deploy.step("fetch"),
    ):
        raise KeyboardInterrupt
    assert Checkpoints(store).show("deploy").in_doubt == ("fetch",)


def test_the_context_gives_the_lease_back(store: Path) -> None:
    with Checkpoints(store).start("deploy", ["a"]):
        assert Checkpoints(store).show("deploy").owner_state == "alive"
    assert Checkpoints(store).show("deploy").owner_state == "none"


def test_a_result_that_json_cannot_hold_is_refused_and_the_step_stays_begun(store: Path) -> None:
    with Checkpoints(store).start("deploy", ["a"]) as deploy:
        with pytest.raises(errors.Usage), deploy.step("a") as step:
            step.result = object()
        assert deploy.view().checkpoint.steps[0].status == "begun"


def test_a_key_is_done_once_and_for_all(store: Path) -> None:
    first = Checkpoints(store).start("import", ["a"], key="2026-03", input=b"rows")
    first.complete_step("a", result="id-1")
    first.complete()
    again = Checkpoints(store).start("import", ["a"], key="2026-03", input=io.BytesIO(b"rows"))
    assert not again.created
    assert again.checkpoint.steps[0].result == "id-1"
    with pytest.raises(errors.Conflict, match="input differs"):
        Checkpoints(store).start("import", ["a"], key="2026-03", input=b"other rows")
    assert Checkpoints(store).start("import", ["a"], key="2026-04", input=b"rows").created


def test_a_key_whose_run_failed_needs_another_key(store: Path) -> None:
    Checkpoints(store).start("import", ["a"], key="k").fail("no disk")
    with pytest.raises(errors.InvalidTransition, match="no disk"):
        Checkpoints(store).start("import", ["a"], key="k")


CHILD = """
import os, sys, time
from checkpoint import Checkpoints
run = Checkpoints(sys.argv[1]).start("deploy", ["a", "b"])
run.begin("a")
print(run.token, flush=True)
time.sleep(60)
"""


def test_the_kernel_says_who_lives(store: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, store], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "1\n"
    with pytest.raises(errors.Locked, match=str(child.pid)):
        Checkpoints(store).resume("deploy")
    with pytest.raises(errors.NothingToResume, match="1 held"):
        Checkpoints(store).resume()
    child.send_signal(signal.SIGKILL)
    # Not waited for: a zombie is as dead as its parent is careless.
    run = Checkpoints(store).resume(wait_s=10)
    assert (run.token, run.in_doubt, run.checkpoint.attempts) == (2, ("a",), 2)
    child.wait()


def test_a_robbed_owner_is_refused(store: Path) -> None:
    robbed = Checkpoints(store).start("deploy", ["a"])
    thief = Checkpoints(store, owner=checkpoint.owner("thief")).resume("deploy", steal_reason="it hangs")
    with pytest.raises(errors.StaleToken):
        robbed.begin("a")
    thief.begin("a")
    with pytest.raises(errors.StaleToken):
        robbed.complete()


def test_waiting_ends_when_the_owner_lets_go(store: Path) -> None:
    pid = os.fork()
    if pid == 0:
        run = Checkpoints(store).start("deploy", ["a"])
        (store / ".ready").touch()
        time.sleep(0.5)
        run.release()
        time.sleep(5)
        os._exit(0)
    while not (store / ".ready").exists():
        time.sleep(0.01)
    began = time.monotonic()
    run = Checkpoints(store).resume("deploy", wait_s=10)
    assert 0.1 < time.monotonic() - began < 4
    assert (run.token, run.checkpoint.attempts) == (2, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_lease_held_by_time_runs_out_and_each_write_renews_it(store: Path) -> None:
    agent = Checkpoints(store, owner=checkpoint.owner("agent", time_held=True, lease_s=2))
    run = agent.start("deploy", ["a", "b"])
    expires = run.checkpoint.lease
    time.sleep(0.05)
    run.begin("a")
    assert run.checkpoint.lease is not None
    assert expires is not None
    assert run.checkpoint.lease.expires_at > expires.expires_at  # type: ignore[operator]
    other = Checkpoints(store, owner=checkpoint.owner("other"))
    with pytest.raises(errors.Locked):
        other.resume("deploy")
    assert other.resume("deploy", wait_s=10).token == 2


def test_several_changes_are_one(store: Path) -> None:
    run = Checkpoints(store).start("deploy", ["a", "b"])
    before = run.checkpoint.revision
    run.update(Update(complete=["a"], begin=["b"], notes=["x"], data={"k": 1}))
    assert run.checkpoint.revision == before + 1
    with pytest.raises(errors.NotFound):
        run.update(Update(complete=["b"], begin=["nothing"]))
    assert Checkpoints(store).show("deploy").checkpoint.revision == before + 1


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n"]}


def test_data_must_satisfy_the_schema_of_the_workflow(store: Path) -> None:
    with pytest.raises(errors.SchemaMismatch, match="'n' is a required property"):
        Checkpoints(store).start("deploy", ["a"], data_schema=SCHEMA)
    assert not store.exists()
    run = Checkpoints(store).start("deploy", ["a"], data={"n": 1}, data_schema=SCHEMA)
    assert run.checkpoint.data_schema_sha256 is not None
    with pytest.raises(errors.SchemaMismatch, match=r"\$\.n: .*; \$\.s: "):
        run.update(Update(data={"n": "x", "s": 1}))
    assert run.update(Update(data={"s": "y"})).data == {"n": 1, "s": "y"}
    with pytest.raises(errors.Conflict, match="data schema"):
        Checkpoints(store).start("deploy", ["a"], data={"n": 1}, data_schema={"type": "object"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"properties": {"n": {"$ref": "https://example.org/schema"}}},
        {"properties": {"n": {"$ref": "#/$defs/no"}}},
        {"properties": {"n": {"pattern": "("}}},
    ],
    ids=["type", "remote", "nowhere", "pattern"],
)
def test_a_schema_that_cannot_be_used_admits_nothing(store: Path, schema: dict[str, object]) -> None:
    with pytest.raises(errors.SchemaMismatch):
        Checkpoints(store).start("deploy", ["a"], data={"n": "text"}, data_schema=schema)


def test_the_oldest_that_is_free_is_resumed_first(store: Path) -> None:
    # Not by name: the later name was begun first.
    for name in ("zulu", "alpha", "mike"):
        Checkpoints(store).start(name, ["a"]).release()
        time.sleep(0.002)
    Checkpoints(store).open("zulu").update(Update(block="waits"))
    assert Checkpoints(store).resume().id == "alpha"


def test_a_hand_over_is_not_taken_by_another(store: Path) -> None:
    Checkpoints(store).start("deploy", ["a"], handoff_to="bob").release()
    with pytest.raises(errors.NothingToResume, match="handed"):
        Checkpoints(store).resume(agent="eve")
    run = Checkpoints(store).resume(agent="bob")
    assert (run.checkpoint.agent, run.checkpoint.handoff_to) == ("bob", None)


def test_one_damaged_file_does_not_stop_the_others(store: Path) -> None:
    Checkpoints(store).start("deploy", ["a"]).release()
    (store / "broken.json").write_text("{")
    assert [listed.name for listed in Checkpoints(store).list()] == ["deploy", "broken"]
    assert Checkpoints(store).resume().id == "deploy"
    with pytest.raises(errors.Damaged):
        Checkpoints(store).start("broken", ["a"])


def test_run_ids_sort_by_time(store: Path) -> None:
    before = datetime.now(UTC)
    runs = []
    for _ in range(3):
        run = Checkpoints(store).start("deploy", ["a"])
        run.complete(force_reason="test")
        runs.append(run.checkpoint.run_id)
        time.sleep(0.002)
    assert runs == sorted(runs)
    assert all(run[14] == "7" and run[19] in "89ab" for run in runs)
    assert abs(int(runs[0].replace("-", "")[:12], 16) / 1000 - before.timestamp()) < 5


def test_a_name_that_means_another_run_by_now_is_not_written_to(store: Path) -> None:
    first = Checkpoints(store).start("deploy", ["a"])
    looked = Checkpoints(store).open("deploy")
    first.complete(force_reason="test")
    second = Checkpoints(store).start("deploy", ["a"])
    second.release()
    for late in (looked, first):
        with pytest.raises(errors.StaleToken, match="has ended"):
            late.begin("a")
    by_run = Checkpoints(store).open(first.checkpoint.run_id)
    by_run.complete()
    assert Checkpoints(store).show("deploy").checkpoint.unfinished
    assert Checkpoints(store).show("deploy").checkpoint.run_id == second.checkpoint.run_id


def test_what_the_caller_changes_later_is_not_what_is_recorded(store: Path) -> None:
    run = Checkpoints(store).start("deploy", ["a"])
    files = ["one"]
    run.update(Update(data={"files": files}))
    files.append("two")
    run.update(Update(data={"files": files}))
    assert Checkpoints(store).show("deploy").checkpoint.data == {"files": ["one", "two"]}
    with run.step("a") as step:
        step.result = result = [1]
    result.append(2)
    with run.step("a") as step:
        assert step.result == [1]
        step.result.append(3)
    with run.step("a") as step:
        assert step.result == [1]


def test_a_step_marked_once_that_was_interrupted_does_not_run_again(store: Path) -> None:
    run = Checkpoints(store).start("deploy", ["pay"])
    with pytest.raises(KeyboardInterrupt), run.step("pay", once=True):
        raise KeyboardInterrupt
    with pytest.raises(errors.InDoubt), run.step("pay", once=True):
        raise AssertionError("paid twice")


def test_looking_is_not_releasing(store: Path) -> None:
    run = Checkpoints(store).start("deploy", ["a"])
    with Checkpoints(store, owner=checkpoint.owner("other")).open("deploy"):
        pass
    assert Checkpoints(store).show("deploy").checkpoint.lease == run.checkpoint.lease


def test_a_failure_that_is_no_text_is_recorded(store: Path) -> None:
    with pytest.raises(OSError, match="no file"), Checkpoints(store).start("deploy", ["a"]) as run, run.step("a"):
        raise OSError("no file \udcff")
    assert Checkpoints(store).show("deploy").checkpoint.steps[0].error == "OSError: no file \\udcff"


@pytest.mark.parametrize("what", ["ttl_s", "stale_after_s", "max_attempts"])
@pytest.mark.parametrize("number", [0, -1, 1.5, True, 10**12])
def test_what_could_not_be_read_back_is_not_written(store: Path, what: str, number: object) -> None:
    with pytest.raises(errors.Usage, match="whole number"):
        Checkpoints(store).start("deploy", ["a"], **{what: number})
    with pytest.raises(errors.Usage, match="whole number"):
        checkpoint.owner("x", lease_s=number)  # type: ignore[arg-type]
    assert not store.exists()


def test_data_too_deep_to_be_read_back_is_refused(store: Path) -> None:
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"x": deep}
    with pytest.raises(errors.Usage, match="64 levels"):
        Checkpoints(store).start("deploy", ["a"], data=deep)


def test_an_id_that_two_could_have_belongs_to_the_first(store: Path) -> None:
    first = Checkpoints(store).start("deploy", ["a"], key="k")
    first.complete(force_reason="test")
    Checkpoints(store).start(first.id, ["a"])
    with pytest.raises(errors.Conflict, match="another run"):
        Checkpoints(store).start("deploy", ["a"], key="k")


def test_a_repair_never_takes_away_what_was_mended_meanwhile(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(store).start("deploy", ["a"])
    (store / "deploy.json").write_text("{")
    late = Checkpoints(store)
    # Between the look of one operator and his word another one repairs and starts anew.
    look = late.store.raw

    def raw(name: str) -> tuple[str, bytes]:
        found = look(name)
        Checkpoints(store).repair("deploy", quarantine=True)
        Checkpoints(store).start("deploy", ["a"]).complete_step("a")
        return found

    monkeypatch.setattr(late.store, "raw", raw)
    with pytest.raises(errors.Conflict, match="no longer"):
        late.repair("deploy", quarantine=True)
    assert Checkpoints(store).show("deploy").checkpoint.steps[0].status == "completed"


def test_a_store_that_fails_is_not_nothing_to_resume(store: Path) -> None:
    Checkpoints(store).start("deploy", ["a"]).release()
    (store / ".locks" / "deploy.lock").unlink()
    (store / ".locks" / "deploy.lock").mkdir()
    with pytest.raises(errors.StoreUnavailable):
        Checkpoints(store).resume()


@pytest.mark.parametrize("result", [{1, 2}, float("nan"), "x" * 5_000_000, "AKIA" + "QWERTYUIOPASDFGH"])
def test_a_step_whose_result_cannot_be_kept_may_begin_again(store: Path, result: object) -> None:
    run = Checkpoints(store).start("deploy", ["a"])
    with pytest.raises((errors.Usage, errors.SecretFound)), run.step("a") as step:
        step.result = result
    with run.step("a") as step:
        assert not step.done
        step.result = "kept"
    assert run.checkpoint.steps[0].result == "kept"


def test_an_error_that_holds_a_secret_fails_its_step_without_it(store: Path) -> None:
    key = "AKIA" + "QWERTYUIOPASDFGH"
    run = Checkpoints(store).start("deploy", ["a"])
    for _ in range(2):
        with pytest.raises(ValueError, match=key), run.step("a"):
            raise ValueError(f"refused for {key}")
        step = Checkpoints(store).show("deploy").checkpoint.steps[0]
        assert step.status == "failed"
        assert step.error is not None
        assert "refused for" in step.error
        assert key not in step.error


def test_every_public_name_is_there() -> None:
    for name in checkpoint.__all__:
        assert getattr(checkpoint, name)
    with pytest.raises(AttributeError):
        checkpoint.nothing  # noqa: B018


def test_durations_must_be_positive(store: Path) -> None:
    with pytest.raises(errors.Usage, match="ttl"):
        Checkpoints(store).start("deploy", ["a"], ttl_s=0)
    with pytest.raises(errors.Usage, match="running"):
        checkpoint.owner(pid=2**22 + 5)
