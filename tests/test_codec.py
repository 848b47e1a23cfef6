"""The record on disk: golden files, the digest, what is refused and by which name."""

import copy
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import RUN_ID, T0, at, owner, run

from checkpoint import codec, model
from checkpoint.errors import DAMAGE_KINDS, Damaged, SchemaMismatch, Usage
from checkpoint.model import Cause, Checkpoint, Note, Outcome, OwnerState, Standing, Status
from checkpoint.validate import record_problems

GOLDEN = Path(__file__).parent / "golden"


def canonical(record: dict[str, Any]) -> bytes:
    """Written here a second time on purpose: what a stranger would write from the documentation."""
    bare = {key: value for key, value in record.items() if key != "digest"}
    return (json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def sealed(record: dict[str, Any]) -> bytes:
    return json.dumps(record | {"digest": hashlib.sha256(canonical(record)).hexdigest()}).encode()


def rich() -> Checkpoint:
    """A record with something in every field."""
    checkpoint = run(
        "fetch",
        model.PlanStep("build", once=True),
        "publish",
        "clean",
        idempotency_key="release 7 \u2192 prod",
        agent="ann",
        handoff_to="bob",
        data={"n": 1, "nested": {"list": [1.5, True, None, "caf\u00e9"]}},
        ttl_s=86400,
        stale_after_s=900,
        max_attempts=3,
    )
    checkpoint = model.complete_step(
        model.begin_step(checkpoint, "fetch", Standing(OwnerState.ALIVE), at(1)), "fetch", at(2), result=[1, {"a": None}]
    )
    checkpoint = model.begin_step(checkpoint, "build", Standing(OwnerState.ALIVE), at(3))
    checkpoint = model.fail_step(checkpoint, "publish", at(4), error="exit 1\nbecause")
    checkpoint = model.skip_step(checkpoint, "clean", at(5), reason="not here")
    return model.block(model.note(checkpoint, "a note\twith \x1b[31m and \u2028", "ann", at(6)), "waits for bob")


def finished() -> Checkpoint:
    return model.finish(run("a"), Status.CANCELLED, Standing(OwnerState.ALIVE), at(9), reason="not wanted")


def commands() -> Checkpoint:
    """Steps that are commands: one done, one failed, one in doubt, one that works."""
    checkpoint = run("fetch", "build", model.PlanStep("notify", once=True), "deploy", run_id=f"cron:{RUN_ID}")
    alive = Standing(OwnerState.ALIVE)
    process = model.StepProcess("h" * 16, "boot", 1, 77, 8, 76, 7, 2, "t1", 77, 70, 900)
    outcomes = {
        "fetch": Outcome(exit_code=0, duration_ms=1500, output="done\n"),
        "build": Outcome(signal="SIGTERM", cause=Cause.TIMEOUT, duration_ms=10, output="caf\u00e9 \x1b", error="timed out"),
        "notify": Outcome(exit_code=7, duration_ms=10, error="exit status 7"),
    }
    for name, outcome in outcomes.items():
        checkpoint = model.begin_step(checkpoint, name, alive, at(1), process=process)
        checkpoint = model.end_step(checkpoint, name, alive, at(2), outcome)
    return model.begin_step(checkpoint, "deploy", alive, at(3), process=process)


GOLDEN_RECORDS = {"fresh": run, "rich": rich, "finished": finished, "commands": commands}


@pytest.mark.parametrize("name", GOLDEN_RECORDS)
def test_golden_files_are_written_and_read_byte_for_byte(name: str) -> None:
    checkpoint = GOLDEN_RECORDS[name]()
    raw = (GOLDEN / f"{name}.json").read_bytes()
    assert codec.encode(checkpoint).raw == raw
    assert codec.decode(raw, "deploy").checkpoint == checkpoint


def earlier(checkpoint: Checkpoint) -> Checkpoint:
    """As a version wrote it that did not know the fields of the present edition."""
    nothing = {"time_ns": None, "caller": None, "group": None, "session": None, "begun_ticks": None}
    steps = [step._replace(claims=0, process=step.process and step.process._replace(**nothing)) for step in checkpoint.steps]
    return checkpoint._replace(steps=tuple(steps))


@pytest.mark.parametrize(("name", "record"), [("first", rich), ("second", commands)])
def test_records_of_an_earlier_edition_are_read_and_written_as_the_present_one(
    name: str, record: Callable[[], Checkpoint]
) -> None:
    raw = (GOLDEN / f"{name}-edition.json").read_bytes()
    assert codec.SCHEMA_SHA256.encode() not in raw
    read = codec.decode(raw, "deploy").checkpoint
    assert read == earlier(record())
    assert codec.encode(read).raw == codec.encode(earlier(record())).raw


def test_the_digest_is_what_the_documentation_says() -> None:
    record = json.loads((GOLDEN / "rich.json").read_text())
    assert record["digest"] == hashlib.sha256(canonical(record)).hexdigest()
    if shutil.which("jq"):
        flat = subprocess.run(["jq", "-cS", "del(.digest)", GOLDEN / "rich.json"], capture_output=True, check=True).stdout
        assert hashlib.sha256(flat).hexdigest() == record["digest"]


def test_the_layout_is_a_line_for_each_field_and_each_step() -> None:
    lines = (GOLDEN / "rich.json").read_text().removesuffix("\n").split("\n")
    record = json.loads((GOLDEN / "rich.json").read_text())
    assert len(lines) == 2 + len(record) + len(record["steps"]) + 1
    assert [json.loads("{" + line.rstrip(",") + "}") for line in lines if line.startswith('"token"')] == [{"token": 1}]


def test_encoding_anew_only_what_changed_gives_the_same_bytes() -> None:
    first = codec.encode(run("a", "b", "c"))
    second = model.begin_step(first.checkpoint, "b", Standing(OwnerState.ALIVE), at(1))
    assert codec.encode(second, first).raw == codec.encode(second).raw


def test_a_file_laid_out_by_another_tool_is_still_whole() -> None:
    record = json.loads((GOLDEN / "rich.json").read_text())
    assert codec.decode(json.dumps(record, indent=4).encode(), "deploy").checkpoint == rich()


def test_unknown_fields_of_a_newer_version_survive_a_rewrite() -> None:
    record = json.loads((GOLDEN / "rich.json").read_text())
    record["colour"] = {"x": [1]}
    record["steps"][0]["cost"] = 3
    record["lease"]["via"] = "bus"
    record["notes"][0]["lang"] = "en"
    read = codec.decode(sealed(record), "deploy").checkpoint
    again = json.loads(codec.encode(model.pin(read, True)).raw)
    assert again["colour"] == {"x": [1]}
    assert again["steps"][0]["cost"] == 3
    assert again["lease"]["via"] == "bus"
    assert again["notes"][0]["lang"] == "en"


def test_dates_with_another_zone_and_microseconds_keep_their_moment() -> None:
    record = json.loads((GOLDEN / "fresh.json").read_text())
    record["created_at"] = "2026-03-01T14:00:00.250001+02:00"
    read = codec.decode(sealed(record), "deploy").checkpoint
    assert read.created_at == T0.replace(microsecond=250_001)
    assert json.loads(codec.encode(read).raw)["created_at"] == "2026-03-01T12:00:00.250001Z"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b"[]", "not-a-checkpoint"),
        (b"{}", "not-a-checkpoint"),
        (b'{"schema": 1}', "not-a-checkpoint"),
        (b'{"schema": NaN}', "json"),
        (b'{"schema": 1e999}', "json"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "json"),
        (b'{"a": ' * 100_000, "json"),
        (b"\xff\xfe{\x00}\x00", "encoding"),
        (b"\xef\xbb\xbf{}", "json"),
        (b'{"schema": "checkpoint/v1", "schema": "checkpoint/v1"}', "duplicate-key"),
        (b'{"schema": "checkpoint/v1"}', "digest"),
        (b"\x00" * 4096, "json"),
        (b'{"schema": "checkpoint/v1", "digest": "\\ud800"}', "encoding"),
        (b'{"schemaVersion": "1.0", "workflowId": "x", "checkpointHash": []}', "schema"),
    ],
    ids=str,
)
def test_what_is_no_record_is_named_by_kind(raw: bytes, kind: str) -> None:
    assert kind in DAMAGE_KINDS
    with pytest.raises(Damaged) as caught:
        codec.decode(raw, "deploy")
    assert caught.value.kind == kind
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"id": "other"}, "id"),
        ({"created_at": "2026-03-01T12:00:00"}, "date"),
        ({"created_at": "2026-02-30T12:00:00Z"}, "date"),
        ({"created_at": "yesterday"}, "date"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "date"),
        ({"status": "done"}, "schema"),
        ({"token": True}, "schema"),
        ({"token": 2}, "schema"),
        ({"finished_at": "2026-03-01T12:00:00Z"}, "schema"),
        ({"workflow": "../evil"}, "schema"),
        ({"steps": [{"name": "a", "status": "pending"}] * 2}, "schema"),
        ({"steps": [{"name": "", "status": "pending"}]}, "schema"),
        ({"steps": {}}, "schema"),
        ({"data": []}, "schema"),
        ({"lease": {}}, "schema"),
    ],
    ids=str,
)
def test_a_sealed_record_that_breaks_the_rules_is_damaged(change: dict[str, Any], kind: str) -> None:
    record = json.loads((GOLDEN / "fresh.json").read_text()) | change
    with pytest.raises(Damaged) as caught:
        codec.decode(sealed(record), "deploy")
    assert caught.value.kind == kind


def test_a_missing_field_is_named() -> None:
    record = json.loads((GOLDEN / "fresh.json").read_text())
    del record["revision"]
    with pytest.raises(Damaged, match="revision"):
        codec.decode(sealed(record), "deploy")


@pytest.mark.parametrize("change", [{"schema": "checkpoint/v2"}, {"schema_sha256": "0" * 64}])
def test_a_newer_format_is_refused_never_guessed(change: dict[str, Any]) -> None:
    record = json.loads((GOLDEN / "fresh.json").read_text()) | change
    with pytest.raises(SchemaMismatch):
        codec.decode(sealed(record), "deploy")


def test_every_flipped_bit_and_every_truncation_is_noticed() -> None:
    raw = (GOLDEN / "fresh.json").read_bytes()
    same = codec.decode(raw, "deploy").checkpoint
    for position in range(len(raw)):
        for bit in range(8):
            broken = bytearray(raw)
            broken[position] ^= 1 << bit
            try:
                read = codec.decode(bytes(broken), "deploy").checkpoint
            except (Damaged, SchemaMismatch):
                continue
            # White space outside of strings is no content; nothing else may pass.
            assert read == same, (position, bit)
            assert json.loads(bytes(broken)) == json.loads(raw), (position, bit)
        # Without its last newline the record is still whole; anything shorter is not.
        if position < len(raw) - 1:
            with pytest.raises(Damaged):
                codec.decode(raw[:position], "deploy")


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"x": float("nan")}, "JSON"),
        ({"x": float("inf")}, "JSON"),
        ({"x": "\ud800"}, "UTF-8"),
        ({"x": object()}, "JSON"),
        ({"x": "y" * (5 << 20)}, "4 MiB"),
    ],
    ids=["nan", "inf", "surrogate", "object", "large"],
)
def test_what_cannot_be_written_is_refused_before_it_is(patch: dict[str, Any], words: str) -> None:
    with pytest.raises(Usage, match=words):
        codec.encode(model.merge_data(run(), patch))


def test_deep_data_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    with pytest.raises(Usage, match="nested"):
        codec.encode(run()._replace(data=deep))
    while deep:  # taken apart by hand: the interpreter would do it by recursion
        deep = deep["x"]


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{", '{"a":1,"a":2}', '{"a":NaN}', "{'a':1}", "[" * 100_000])
def test_parse_object_refuses_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        codec.parse_object(text)


# --- the schema file and the reader are two statements of one thing ---------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(0, 2)
    | st.sampled_from(["", "a", "A", "a b", "é", "pending", "2026-03-01T12:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "status", "at", "token", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_SEMANTIC = ("one step stands twice", "$.lease.token", "$.finished_at", "is no date", "the record inside")


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, item in below for found in _paths(item, (*path, key))]


_RECORDS = [json.loads((GOLDEN / f"{name}.json").read_text()) for name in ("fresh", "rich", "finished")]


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_reader_and_schema_file_agree(data: st.DataObject) -> None:
    record = copy.deepcopy(data.draw(st.sampled_from(_RECORDS)))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(_paths(record)))
        if path[0] in ("schema", "schema_sha256", "digest"):
            continue
        target: Any = record
        for key in path[:-1]:
            target = target[key]
        if data.draw(st.booleans()) and isinstance(target, dict):
            target.pop(path[-1])
        else:
            target[path[-1]] = data.draw(_JSON)
    raw = sealed(record)
    problems = record_problems(json.loads(raw), codec.SCHEMA_FILE)
    try:
        codec.decode(raw, "deploy")
    except Damaged as error:
        assert problems or any(words in error.message for words in _SEMANTIC), error.message  # noqa: PT017
    else:
        assert not problems


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with pytest.raises((Damaged, SchemaMismatch)):
        codec.decode(raw, "deploy")


# --- the ancestor's files -----------------------------------------------------------------------------------------------


def ancestor(**more: Any) -> bytes:
    record = {
        "schemaVersion": "1.0",
        "workflowId": "deploy",
        "status": "in_progress",
        "createdAt": "2026-01-02T03:04:05Z",
        "updatedAt": "2026-01-02T03:05:05Z",
        "agentId": "ann",
        "currentStep": "Build it",
        "completedSteps": ["fetch"],
        "remainingSteps": ["publish"],
        "notes": "caf\u00e9",
        "ticket": {"id": 7},
        **more,
    }
    flat = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return json.dumps(record | {"checkpointHash": hashlib.sha256(flat.encode()).hexdigest()}, indent=2).encode()


def test_an_ancestors_file_is_read_as_v1() -> None:
    read = codec.decode(ancestor(), "deploy").checkpoint
    assert [(step.name, step.status) for step in read.steps] == [
        ("fetch", "completed"),
        ("Build it", "begun"),
        ("publish", "pending"),
    ]
    assert model.in_doubt(read, Standing(OwnerState.NONE)) == ("Build it",)
    assert read.agent == "ann"
    assert read.data == {"ticket": {"id": 7}}
    assert [note.text for note in read.notes] == ["caf\u00e9"]
    assert read == codec.decode(ancestor(), "deploy").checkpoint, "the run id must be the same at each read"
    rewritten = codec.decode(codec.encode(model.pin(read, True)).raw, "deploy").checkpoint
    assert rewritten == read._replace(pinned=True)


def test_an_ancestors_file_that_was_changed_is_damaged() -> None:
    with pytest.raises(Damaged) as caught:
        codec.decode(ancestor().replace(b"publish", b"perish!"), "deploy")
    assert caught.value.kind == "digest"


@pytest.mark.parametrize(
    ("more", "kind"),
    [({"createdAt": "2026-01-02T03:04:05"}, "date"), ({"status": "odd"}, "schema"), ({"workflowId": "Deploy"}, "schema")],
)
def test_an_ancestors_file_that_breaks_its_rules(more: dict[str, Any], kind: str) -> None:
    with pytest.raises(Damaged) as caught:
        codec.decode(ancestor(**more), "deploy")
    assert caught.value.kind == kind


def test_another_ancestor_version_is_refused() -> None:
    with pytest.raises(SchemaMismatch):
        codec.decode(ancestor(schemaVersion="0.9"), "deploy")


def test_the_run_of_an_ancestor_sorts_before_those_that_follow() -> None:
    read = codec.decode(ancestor(), "deploy").checkpoint
    assert int(read.run_id.replace("-", "")[:12], 16) == int(read.created_at.timestamp() * 1000)


def test_a_duplicate_key_among_very_many_is_found_at_once() -> None:
    raw = ("{" + ",".join(f'"k{number}":0' for number in range(100_000)) + ',"k0":0}').encode()
    with pytest.raises(Damaged, match="'k0'"):
        codec.decode(raw, "deploy")


@pytest.mark.parametrize("step", [{"exit_code": 0}, {"error": ""}, {"result": False}, {"result": 0}, {"token": 0}])
def test_what_is_empty_but_said_is_kept(step: dict[str, Any]) -> None:
    checkpoint = run("a")
    checkpoint = checkpoint._replace(steps=(checkpoint.steps[0]._replace(**step),))
    assert codec.decode(codec.encode(checkpoint).raw, "deploy").checkpoint == checkpoint


def test_values_are_taken_as_they_will_come_back() -> None:
    given = {2: (1, 2), 10: [{"y": None}]}
    copy = codec.copied(given)
    assert copy == {"2": [1, 2], "10": [{"y": None}]}
    assert copy["10"] is not given[10]


def test_a_note_may_hold_anything_that_json_can() -> None:
    checkpoint = run()._replace(notes=(Note(T0, "x", "\x00\x1b]0;evil\x07\u202e"),))
    raw = codec.encode(checkpoint).raw
    assert b"\x1b" not in raw
    assert codec.decode(raw, "deploy").checkpoint == checkpoint


def test_an_owner_without_a_process_has_a_lease_that_ends() -> None:
    checkpoint = run(by=owner(pid=None, lease_s=60))
    assert json.loads(codec.encode(checkpoint).raw)["lease"]["expires_at"] == "2026-03-01T12:01:00.250Z"


if __name__ == "__main__":
    # Writes the golden files anew: after a wanted change of the format, whose diff is then to be read.
    for _name, _make in GOLDEN_RECORDS.items():
        (GOLDEN / f"{_name}.json").write_bytes(codec.encode(_make()).raw)
