"""Checkpoint <-> bytes: canonical JSON, the digest, the schema hash, and the formats of older versions.

The canonical form of a record is compact JSON with sorted keys, unescaped UTF-8 and one newline at the end; the digest
is the SHA-256 of that form without the field ``digest``, so ``jq -cS 'del(.digest)' FILE | sha256sum`` recomputes it.
On disk the same text stands with a line for each top-level field and each step. JSON strings hold no raw newline, so
taking the newlines out of a file that we laid out gives its canonical form without parsing it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

from checkpoint.errors import Damaged, SchemaMismatch, Usage, shown
from checkpoint.model import (
    ID,
    NAME,
    RECORD_LIMIT,
    RUN_ID,
    Cause,
    Checkpoint,
    Lease,
    Note,
    Status,
    Step,
    StepProcess,
    StepStatus,
    View,
)

SCHEMA = "checkpoint/v1"
SCHEMA_FILE = "schemas/checkpoint.v1.schema.json"
SCHEMA_SHA256 = "e735720d5ae115cdf5b7cebaf0a76ff366d2d6632709874560a509b275fa8d2a"
"""SHA-256 of the bytes of SCHEMA_FILE, as a literal because reading the file would cost every start; a test compares."""

EDITIONS = frozenset(
    {
        SCHEMA_SHA256,
        "3701830b75fc83cbfdcedec89d6f345b8d0c7b8b480b13d92f5e0fa9a3c3b0e1",
        "7bf7279d03e9be905073781931167ff2f920de29335d408259d27377ddae0496",
    }
)
"""Every published edition of the schema file, this one and earlier ones: records under any of them are read."""

MAX_DEPTH = 64

ANCESTOR_SCHEMA = "1.0"


class Encoded(NamedTuple):
    """A record with its bytes, and the text of its fields and steps, so that the next write encodes only what changed."""

    checkpoint: Checkpoint
    raw: bytes
    fields: Mapping[str, str] = {}
    steps: Sequence[str] = ()


# --- writing -----------------------------------------------------------------------------------------------------------


def encode(checkpoint: Checkpoint, previous: Encoded | None = None) -> Encoded:
    """The record as bytes, ready to be written. ``previous``: the version this one was made from, if at hand.

    Raises Usage for what JSON or UTF-8 cannot hold, and for a record over 4 MiB.
    """
    try:
        pieces, fields, steps = _pieces(checkpoint, previous or _NOTHING)
        raw = ("{\n" + ",\n".join([pieces[name] for name in sorted(pieces)]) + "\n}\n").encode()
    except UnicodeEncodeError:
        raise Usage("a text holds characters that UTF-8 cannot write (lone surrogates)") from None
    except RecursionError:
        raise Usage("the data is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise Usage(f"the data holds what JSON cannot write: {error}") from None
    if len(raw) > RECORD_LIMIT:
        raise Usage(
            f"the record would be {len(raw) / 1024 / 1024:.1f} MiB, and {RECORD_LIMIT // 1024 // 1024} MiB is the most:"
            " keep large data in a file of its own and put its path into the checkpoint"
        )
    return Encoded(checkpoint, raw, fields, steps)


def _pieces(checkpoint: Checkpoint, old: Encoded) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The text of every top-level field with the digest among them, those that ``old`` can be reused for, the steps."""
    old_steps = old.checkpoint.steps[: len(old.steps)]
    steps = [
        line if step is old_step else _compact(_step_record(step, sparse=True))
        for step, old_step, line in zip(checkpoint.steps, old_steps, old.steps, strict=False)
    ]
    steps += [_compact(_step_record(step, sparse=True)) for step in checkpoint.steps[len(steps) :]]
    fields = {
        name: old.fields[name] if value is old_value and name in old.fields else f'"{name}":{_compact(_plain(name, value))}'
        for name, value, old_value in zip(Checkpoint._fields, checkpoint, old.checkpoint, strict=True)
        if name not in ("steps", "extra")
    }
    pieces = fields | {name: f"{_compact(name)}:{_compact(value)}" for name, value in checkpoint.extra.items()}
    pieces["steps"] = '"steps":[\n' + ",\n".join(steps) + "\n]" if steps else '"steps":[]'
    pieces |= _ENVELOPE_PIECES
    canonical = "{" + ",".join([pieces[name] for name in sorted(pieces)]).replace("\n", "") + "}\n"
    pieces["digest"] = f'"digest":"{_sha256(canonical.encode())}"'
    return pieces, fields, steps


def record(checkpoint: Checkpoint) -> dict[str, Any]:
    """The record as a JSON object with every field of every step: what ``--json`` prints."""
    fields = {name: _plain(name, value) for name, value in zip(Checkpoint._fields, checkpoint, strict=True)}
    del fields["extra"]
    fields["steps"] = [_step_record(step, sparse=False) for step in checkpoint.steps]
    digest = _pieces(checkpoint, _NOTHING)[0]["digest"]
    envelope = {"schema": SCHEMA, "schema_sha256": SCHEMA_SHA256, **json.loads("{" + digest + "}")}
    return dict(sorted((fields | dict(checkpoint.extra) | envelope).items()))


def document(view: View) -> dict[str, Any]:
    """The record's fields with ``next``, ``in_doubt`` and ``owner_state`` behind them."""
    moment = {"next": view.next, "in_doubt": list(view.in_doubt), "owner_state": str(view.owner_state)}
    return record(view.checkpoint) | moment


def canonical_sha256(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form. Raises ValueError for NaN, infinities and lone surrogates."""
    return _sha256((_compact(value) + "\n").encode())


def copied(value: Any) -> Any:
    """The value as it comes back from JSON: with text for keys, lists for tuples, and nothing shared with the caller.

    Raises Usage for what JSON or UTF-8 cannot hold, and for more than 64 levels: a reader with less room on its stack
    must be able to take what a writer has put down.
    """
    try:
        text = _compact(value)
        text.encode()
        result = json.loads(text)
        if _is_deeper(result, MAX_DEPTH):
            raise RecursionError
        return result
    except UnicodeEncodeError:
        raise Usage("a text holds characters that UTF-8 cannot write (lone surrogates)") from None
    except RecursionError:
        raise Usage(f"the data is nested more than {MAX_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        raise Usage(f"the data holds what JSON cannot write: {error}") from None


def _is_deeper(value: Any, levels: int) -> bool:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in below)


def parse(text: str) -> Any:
    """A JSON value that a caller handed over. Raises ValueError, in the user's words."""
    try:
        return _decoder.decode(text)
    except _DuplicateKey as error:
        raise ValueError(f"the key {shown(error.args[0])} stands twice") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: str) -> dict[str, Any]:
    """The same for a JSON object."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"it is {_KINDS[type(value)]}, not an object")
    return value


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond unless it was read with more."""
    precision = "milliseconds" if moment.microsecond % 1000 == 0 else "microseconds"
    return moment.astimezone(UTC).isoformat(timespec=precision).removesuffix("+00:00") + "Z"


_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_compact = _encoder.encode
_DEFAULTS: dict[str, Any] = {"attempts": 0, "once": False, "added": False, "claims": 0}
_ENVELOPE_PIECES = {"schema": f'"schema":"{SCHEMA}"', "schema_sha256": f'"schema_sha256":"{SCHEMA_SHA256}"'}
_KINDS = {str: "a string", int: "a number", float: "a number", bool: "a boolean", list: "an array", type(None): "null"}


# What a first write is compared with: no field of it is kept, so nothing of it is ever reused.
_NOTHING = Encoded(Checkpoint(*([None] * len(Checkpoint._fields)))._replace(steps=()), b"")  # type: ignore[arg-type]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _optional_time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _plain(name: str, value: Any) -> Any:
    """The value of one field as JSON has it."""
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, Lease):
        return _lease_record(value)
    if name == "notes":
        return [{"at": timestamp(note.at), "by": note.by, "text": note.text, **note.extra} for note in value]
    return value


def _lease_record(lease: Lease) -> dict[str, Any]:
    fields = lease._asdict()
    del fields["extra"]
    fields["acquired_at"] = timestamp(lease.acquired_at)
    fields["expires_at"] = _optional_time(lease.expires_at)
    return fields | dict(lease.extra)


def _process_record(process: StepProcess) -> dict[str, Any]:
    fields = process._asdict()
    del fields["extra"]
    return fields | dict(process.extra)


def _step_record(step: Step, *, sparse: bool) -> dict[str, Any]:
    fields = step._asdict()
    del fields["extra"]
    fields["begun_at"] = _optional_time(step.begun_at)
    fields["ended_at"] = _optional_time(step.ended_at)
    if step.process is not None:
        fields["process"] = _process_record(step.process)
    if sparse:
        # A plan of 10,000 pending steps is read, hashed and written at each step: what says nothing is left out.
        fields = {key: value for key, value in fields.items() if value is not None and value is not _DEFAULTS.get(key)}
    return fields | dict(step.extra)


# --- reading -----------------------------------------------------------------------------------------------------------


def decode(raw: bytes, id: str, *, name: str | None = None, sealed: bool = True) -> Encoded:
    """The record in ``raw``, which stands in the file of ``id``. ``name``: what it is called in errors, if not so.

    With ``sealed`` False neither digest nor schema hash is compared (``repair --accept``).
    Raises Damaged, its kind naming what is wrong, and SchemaMismatch for a newer format; nothing else.
    """
    name = name or id
    try:
        fields = _parse(raw, name)
        schema = fields.get("schema")
        if schema is None and "schemaVersion" in fields:
            checkpoint = _from_ancestor(fields, name, sealed=sealed)
        elif not isinstance(schema, str):
            raise _damaged(name, "not-a-checkpoint", "it has no field 'schema'")
        elif schema != SCHEMA:
            raise SchemaMismatch(
                f"{name} is written in the format {shown(schema)}, and this version knows {SCHEMA!r}: upgrade checkpoint-tool",
                hint="checkpoint-tool --version",
            )
        else:
            if sealed:
                _check_seal(fields, raw, name)
            checkpoint = _from_record(fields)
    except _Invalid as error:
        raise _damaged(name, error.kind, f"${error.path}: {error.words}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # Whatever a file can hold, one bad one must not end the look at the others.
        raise _damaged(name, "schema", f"{type(error).__name__}: {error}") from None
    if checkpoint.id != id:
        raise _damaged(name, "id", f"the record inside is that of {checkpoint.id!r}")
    return Encoded(checkpoint, raw)


class _Invalid(Exception):
    """``path``: where in the record, put together on the way out. Handed down to each field instead, it was a quarter of
    the self-check's time over many files."""

    def __init__(self, words: str, kind: str = "schema", path: str = "") -> None:
        super().__init__(words)
        self.words, self.kind, self.path = words, kind, path

    def within(self, place: str | int) -> None:
        self.path = (f"[{place}]" if isinstance(place, int) else f".{place}") + self.path


class _DuplicateKey(Exception):
    pass


def _damaged(id: str, kind: str, words: str) -> Damaged:
    return Damaged(f"{id} is damaged ({kind}): {words}", kind=kind, hint=f"checkpoint-tool repair {id}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return fields


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]!r} is too large a number")
    return number


# Made once: json.loads makes one for each text.
_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)


def _parse(raw: bytes, id: str) -> dict[str, Any]:
    try:
        value = _decoder.decode(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise _damaged(id, "encoding", "it is not UTF-8 text") from None
    except _DuplicateKey as error:
        raise _damaged(id, "duplicate-key", f"the key {shown(error.args[0])} stands twice in one object") from None
    except RecursionError:
        raise _damaged(id, "json", "it is nested too deeply") from None
    except ValueError as error:
        raise _damaged(id, "json", str(error) if raw else "the file is empty") from None
    if not isinstance(value, dict):
        raise _damaged(id, "not-a-checkpoint", f"it is {_KINDS[type(value)]}, not an object")
    if b"\\u" in raw:
        try:
            _compact(value).encode()
        except UnicodeEncodeError:
            raise _damaged(id, "encoding", "a text holds lone surrogates, which are no characters") from None
    return value


def _check_seal(fields: dict[str, Any], raw: bytes, id: str) -> None:
    digest = fields.get("digest")
    if not isinstance(digest, str):
        raise _damaged(id, "digest", "it has no digest")
    # Taking the line out of our own layout is much cheaper than encoding the record anew; a file that somebody has
    # laid out otherwise (jq, an editor) without changing it is still found whole by the second way.
    flat = raw.replace(b"\n", b"") + b"\n"
    own = f'"digest":"{digest}",'.encode(errors="replace")
    if flat.count(own) == 1 and _sha256(flat.replace(own, b"")) == digest:
        pass
    else:
        try:
            computed = canonical_sha256({key: value for key, value in fields.items() if key != "digest"})
        except (ValueError, RecursionError):
            computed = ""
        if computed != digest:
            raise _damaged(id, "digest", "its content does not match its digest: it was changed by hand or by the disk")
    if str(fields.get("schema_sha256")) not in EDITIONS:
        raise SchemaMismatch(
            f"{id} is written under another edition of {SCHEMA} (sha256 {str(fields.get('schema_sha256'))[:12]!r}, known:"
            f" {SCHEMA_SHA256[:12]}): upgrade checkpoint-tool",
            hint="checkpoint-tool --version",
        )


# Each reader gives a value as the model has it, or raises _Invalid.
_Reader = Callable[[Any], Any]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?")
_is_time = _TIME.fullmatch
_HEX64 = re.compile(r"[0-9a-f]{64}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Invalid(f"must be a string, is {_kind(value)}")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> _Reader:
    fits = pattern.fullmatch

    def read(value: Any) -> str:
        if not isinstance(value, str):
            _text(value)
        elif fits(value):
            return value
        raise _Invalid(f"must be {what}")

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Invalid(f"must be true or false, is {_kind(value)}")
    return value


def _whole(least: int) -> _Reader:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
            raise _Invalid(f"must be a whole number of at least {least}")
        return value

    return read


def _time(value: Any) -> datetime:
    match = _is_time(value if isinstance(value, str) else _text(value))
    if match is None:
        raise _Invalid("must be a date and time as in RFC 3339", "date")
    if match[2] is None:
        raise _Invalid(f"the date {value} has no time zone", "date")
    try:
        moment = datetime.fromisoformat(value)
        return moment if match[2] == "Z" else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Invalid(f"{value} is no date", "date") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Invalid(f"must be an object, is {_kind(value)}")
    return value


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Invalid(f"must be an array, is {_kind(value)}")
    return value


def _member(kind: type[Status] | type[StepStatus] | type[Cause]) -> _Reader:
    members = {member.value: member for member in kind}

    def read(value: Any) -> Status | StepStatus | Cause:
        found = members.get(_text(value))
        if found is None:
            raise _Invalid(f"must be one of {', '.join(kind)}")
        return found

    return read


def _anything(value: Any) -> Any:
    return value


class _OrNull(NamedTuple):
    """A reader of what may be null. Not a reader around another: of the fields of a record half are null, and the call for
    each was a tenth of the self-check's time over many files."""

    read: _Reader


def _or_null(read: _Reader) -> _OrNull:
    return _OrNull(read)


def _at(place: str | int, reader: _Reader, value: Any) -> Any:
    """What ``reader`` gives; an error of it names the place."""
    try:
        return reader(value)
    except _Invalid as error:
        error.within(place)
        raise


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else _KINDS[type(value)]


_Readers: TypeAlias = "dict[str, Any]"  # of _Reader and _OrNull

_name = _matching(NAME, "a name of a-z, 0-9, _ and -")
_hash = _matching(_HEX64, "a SHA-256 in hex")

_PROCESS: _Readers = {
    "host": _text,
    "boot_id": _or_null(_text),
    "pid_ns": _or_null(_whole(0)),
    "pid": _or_null(_whole(1)),
    "pid_started": _or_null(_whole(0)),
}
_PROCESS_REQUIRED = frozenset(_PROCESS) | {"run_pid", "run_pid_started"}
_STEP_PROCESS: _Readers = _PROCESS | {
    "run_pid": _or_null(_whole(1)),
    "run_pid_started": _or_null(_whole(0)),
    "time_ns": _or_null(_whole(0)),
    "caller": _or_null(_text),
    "group": _or_null(_whole(1)),
    "session": _or_null(_whole(1)),
    "begun_ticks": _or_null(_whole(0)),
}


def _process(value: Any) -> StepProcess:
    known, extra = _read(value, _STEP_PROCESS, required=_PROCESS_REQUIRED)
    return StepProcess(**known, extra=extra)


_STEP: _Readers = {
    # Wider than what a new step may be called: the ancestor allowed any text, and its runs can be gone on with.
    "name": _matching(re.compile(r"(?s).{1,256}"), "a text of 1 to 256 characters"),
    "status": _member(StepStatus),
    "attempts": _whole(0),
    "once": _flag,
    "added": _flag,
    "token": _or_null(_whole(0)),
    "claims": _whole(0),
    "begun_at": _or_null(_time),
    "ended_at": _or_null(_time),
    "exit_code": _or_null(_whole(0)),
    "signal": _or_null(_text),
    "cause": _or_null(_member(Cause)),
    "duration_ms": _or_null(_whole(0)),
    "output": _or_null(_text),
    "process": _or_null(_process),
    "command_sha256": _or_null(_hash),
    "result": _anything,
    "error": _or_null(_text),
    "reason": _or_null(_text),
}
_STEP_REQUIRED = frozenset({"name", "status"})
_LEASE: _Readers = _PROCESS | {
    "owner": _text,
    "lease_s": _or_null(_whole(1)),
    "token": _whole(1),
    "acquired_at": _time,
    "expires_at": _or_null(_time),
    "uid": _or_null(_whole(0)),
    "time_ns": _or_null(_whole(0)),
    "terminal": _or_null(_whole(1)),
}
# Fields that came later are not required: records of earlier editions are read.
_LEASE_REQUIRED = frozenset(_LEASE) - {"uid", "time_ns", "terminal"}
_NOTE: _Readers = {"at": _time, "by": _text, "text": _text}


def _note(value: Any) -> Note:
    known, extra = _read(value, _NOTE)
    return Note(**known, extra=extra)


def _notes(value: Any) -> tuple[Note, ...]:
    return tuple(_at(position, _note, item) for position, item in enumerate(_array(value)))


def _one_step(value: Any) -> Step:
    known, extra = _read(value, _STEP, required=_STEP_REQUIRED)
    return Step(**known, extra=extra)


def _steps(value: Any) -> tuple[Step, ...]:
    steps = tuple(_at(position, _one_step, item) for position, item in enumerate(_array(value)))
    if len({step.name for step in steps}) != len(steps):
        raise _Invalid("one step stands twice")
    return steps


def _lease(value: Any) -> Lease:
    known, extra = _read(value, _LEASE, required=_LEASE_REQUIRED)
    return Lease(**known, extra=extra)


_CHECKPOINT: _Readers = {
    "id": _matching(ID, "an id of a-z, 0-9, _ and -"),
    "workflow": _name,
    "run_id": _matching(RUN_ID, "a UUID in lower case, perhaps with a label before it"),
    "idempotency_key": _or_null(_text),
    "fingerprint": _hash,
    "status": _member(Status),
    "reason": _or_null(_text),
    "agent": _or_null(_text),
    "handoff_to": _or_null(_text),
    "notes": _notes,
    "data": _object,
    "data_schema": _or_null(_object),
    "data_schema_sha256": _or_null(_hash),
    "open_plan": _flag,
    "invoked": _flag,
    "steps": _steps,
    "lease": _or_null(_lease),
    "token": _whole(0),
    "attempts": _whole(1),
    "max_attempts": _or_null(_whole(1)),
    "created_at": _time,
    "updated_at": _time,
    "progress_at": _time,
    "heartbeat_at": _time,
    "finished_at": _or_null(_time),
    "expires_at": _or_null(_time),
    "stale_after_s": _or_null(_whole(1)),
    "pinned": _flag,
    "revision": _whole(1),
}
_CHECKPOINT_REQUIRED = frozenset(_CHECKPOINT) - {"invoked"}
_ENVELOPE = ("schema", "schema_sha256", "digest")


def _read(value: Any, readers: _Readers, required: Set[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The known fields as the model has them, and the unknown ones as they are."""
    fields = _object(value)
    wanted = readers.keys() if required is None else required
    if not wanted <= fields.keys():
        missing = next(name for name in readers if name in wanted and name not in fields)
        raise _Invalid(f"the field {missing!r} is missing")
    known = {}
    extra = {}
    try:
        for name, item in fields.items():
            reader = readers.get(name)
            if reader is None:
                extra[name] = item
            elif type(reader) is not _OrNull:
                known[name] = reader(item)
            else:
                known[name] = None if item is None else reader.read(item)
    except _Invalid as error:
        error.within(name)
        raise
    return known, extra


def _from_record(fields: dict[str, Any]) -> Checkpoint:
    known, extra = _read(fields, _CHECKPOINT, required=_CHECKPOINT_REQUIRED)
    for name in _ENVELOPE:
        extra.pop(name, None)
    checkpoint = Checkpoint(**known, extra=extra)
    if checkpoint.lease is not None and checkpoint.lease.token != checkpoint.token:
        raise _Invalid("must be the last token issued ($.token)", path=".lease.token")
    if checkpoint.unfinished != (checkpoint.finished_at is None):
        raise _Invalid(f"must {'be null' if checkpoint.unfinished else 'stand'}: {checkpoint.status}", path=".finished_at")
    return checkpoint


# --- the ancestor's files ("schemaVersion": "1.0", camelCase) -----------------------------------------------------------

_ANCESTOR_STATUS = {
    "in_progress": Status.IN_PROGRESS,
    "in-progress": Status.IN_PROGRESS,
    "active": Status.IN_PROGRESS,
    "running": Status.IN_PROGRESS,
    "blocked": Status.BLOCKED,
    "completed": Status.COMPLETED,
    "complete": Status.COMPLETED,
    "done": Status.COMPLETED,
    "failed": Status.FAILED,
    "cancelled": Status.CANCELLED,
    "canceled": Status.CANCELLED,
}
_ANCESTOR_KNOWN = frozenset(
    {
        "schemaVersion",
        "workflowId",
        "status",
        "currentStep",
        "completedSteps",
        "remainingSteps",
        "agentId",
        "agent",
        "handoffTo",
        "createdAt",
        "updatedAt",
        "notes",
        "checkpointHash",
    }
)


def _from_ancestor(fields: dict[str, Any], id: str, *, sealed: bool) -> Checkpoint:
    if fields["schemaVersion"] != ANCESTOR_SCHEMA:
        raise SchemaMismatch(
            f"{id} has schemaVersion {shown(fields['schemaVersion'])}; of the older formats only {ANCESTOR_SCHEMA!r} is known",
            hint=f"checkpoint-tool repair {id}",
        )
    if sealed:
        bare = {key: value for key, value in fields.items() if key != "checkpointHash"}
        hashes = {
            _sha256(json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=ascii_only).encode())
            for ascii_only in (True, False)
        }
        if fields.get("checkpointHash") not in hashes:
            raise _damaged(id, "digest", "its content does not match its checkpointHash")
    return _upgraded(fields)


def _upgraded(fields: dict[str, Any]) -> Checkpoint:
    """The ancestor's record as one of v1.

    It had no runs, so the run id is made from what never changes in it, and no leases, so a step that is current may
    have begun: it is in doubt. What v1 has no field for is kept in the data, under its own name.
    """
    id = _at("workflowId", _name, fields.get("workflowId"))
    created = _at("createdAt", _time, fields.get("createdAt", fields.get("updatedAt")))
    updated = _at("updatedAt", _time, fields.get("updatedAt", fields.get("createdAt")))
    status_text = _at("status", _text, fields.get("status", "in_progress"))
    if status_text not in _ANCESTOR_STATUS:
        raise _Invalid(f"must be one of {', '.join(_ANCESTOR_STATUS)}", path=".status")
    status = _ANCESTOR_STATUS[status_text]
    steps: dict[str, Step] = {}
    for field, step_status in (
        ("completedSteps", StepStatus.COMPLETED),
        ("currentStep", StepStatus.BEGUN),
        ("remainingSteps", StepStatus.PENDING),
    ):
        value = fields.get(field)
        names = value if isinstance(value, list) else [] if value in (None, "") else [value]
        for position, item in enumerate(names):
            name = _at(f"{field}[{position}]" if isinstance(value, list) else field, _STEP["name"], item)
            moment = None if step_status is StepStatus.PENDING else updated
            steps.setdefault(
                name,
                Step(
                    name=name,
                    status=step_status,
                    attempts=0 if step_status is StepStatus.PENDING else 1,
                    begun_at=moment if step_status is StepStatus.BEGUN else None,
                    ended_at=moment if step_status is StepStatus.COMPLETED else None,
                ),
            )
    notes = fields.get("notes")
    texts = [item for item in notes if isinstance(item, str)] if isinstance(notes, list) else [notes] if notes else []
    agent = fields.get("agentId", fields.get("agent"))
    seed = _sha256(_compact([id, timestamp(created)]).encode())
    # What `start` makes of an open plan without input, so that it goes on with such a run.
    fingerprint = canonical_sha256({"plan": None, "input": None})
    milliseconds = f"{max(int(created.timestamp() * 1000), 0):012x}"[-12:]
    return Checkpoint(
        id=id,
        workflow=id,
        # Sorts by time as the others do, in the form of a UUIDv8 (RFC 9562: custom), which none that we give out has.
        run_id=f"{milliseconds[:8]}-{milliseconds[8:]}-8{seed[13:16]}-8{seed[17:20]}-{seed[20:32]}",
        fingerprint=fingerprint,
        status=status,
        agent=None if agent is None else _at("agentId", _text, agent),
        handoff_to=None if (heir := fields.get("handoffTo")) is None else _at("handoffTo", _text, heir),
        notes=tuple(Note(updated, "ancestor", _at("notes", _text, text)) for text in texts),
        data={key: value for key, value in fields.items() if key not in _ANCESTOR_KNOWN},
        open_plan=True,
        steps=tuple(steps.values()),
        created_at=created,
        updated_at=updated,
        progress_at=updated,
        heartbeat_at=updated,
        finished_at=None if status in (Status.IN_PROGRESS, Status.BLOCKED) else updated,
    )
