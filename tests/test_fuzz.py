"""Made-up input, by the million: damaged records for the loader, broken messages for a session, cron expressions.

A test that knows what may be wrong tests what its author thought of. Here the seeds are real and what is done to them is
drawn by lot, always the same lot. ``CHECKPOINT_PROVE=whole`` draws a hundred times as many.
"""

import hashlib
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import TOOL, Workspace
from proof import WHOLE, tried
from records import at, owner, run

from checkpoint import Checkpoints, codec, cron, cron_times, dialogue, model
from checkpoint.errors import CheckpointError, Damaged, SchemaMismatch, Usage
from checkpoint.model import Checkpoint, OwnerState, PlanStep, Standing, Status
from checkpoint.store.file import FileStore

GOLDEN = Path(__file__).parent / "golden"

LONGEST_ERROR = 1000
"""Characters. A message goes into logs, mails and the self-check's memory, whatever a file holds."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


# --- the loader: seeds -----------------------------------------------------------------------------------------------


def big() -> Checkpoint:
    """A long plan, half of it done."""
    checkpoint = run(*(f"step-{number}" for number in range(40)))
    alive = Standing(OwnerState.ALIVE)
    for number in range(20):
        checkpoint = model.begin_step(checkpoint, f"step-{number}", alive, at(number))
        checkpoint = model.complete_step(checkpoint, f"step-{number}", at(number + 0.5), result={"n": number})
    return checkpoint


def once() -> Checkpoint:
    """Steps that may not be repeated, one of them begun; held by time."""
    checkpoint = run(PlanStep("mail", True), PlanStep("pay", True), by=owner("bot", pid=None), idempotency_key="7")
    return model.begin_step(checkpoint, "mail", Standing(OwnerState.UNKNOWN), at(1))


def receipt() -> Checkpoint:
    """Finished, with a key."""
    done = model.complete_step(run("a", idempotency_key="release 7"), "a", at(1), result=[1])
    return model.finish(done, Status.COMPLETED, Standing(OwnerState.ALIVE), at(2))


def blocked() -> Checkpoint:
    return model.block(run(open_plan=True, data={"\u00e9": [1.5, None, {"": True}]}), "waits")


ANCESTOR = {
    "schemaVersion": "1.0",
    "workflowId": "deploy",
    "status": "in_progress",
    "createdAt": "2026-01-02T03:04:05Z",
    "updatedAt": "2026-01-02T03:05:05.5+01:00",
    "agentId": "ann",
    "currentStep": "Build it",
    "completedSteps": ["fetch"],
    "remainingSteps": ["publish", "tell"],
    "notes": ["caf\u00e9", "two"],
    "ticket": {"id": 7},
}


def ancestor(text: str) -> bytes:
    """The ancestor's seal over what ``text`` says, where it says anything."""
    fields = json.loads(text)
    del fields["checkpointHash"]
    flat = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps(fields | {"checkpointHash": hashlib.sha256(flat.encode()).hexdigest()}).encode()


def seeds() -> dict[str, bytes]:
    made = {"small": run("a"), "big": big(), "once": once(), "receipt": receipt(), "blocked": blocked()}
    golden = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.json"))}
    found = {name: codec.encode(checkpoint).raw for name, checkpoint in made.items()} | golden
    return found | {"ancestor": ancestor(json.dumps(ANCESTOR | {"checkpointHash": ""}))}


SEEDS = seeds()


# --- the loader: what must hold -----------------------------------------------------------------------------------------


def wrong_with(raw: bytes, meant: Checkpoint | None = None) -> str:
    """What broke a promise, in words; nothing where none did. ``meant``: all that ``raw`` may be taken for."""
    try:
        found = codec.decode(raw, "deploy").checkpoint
    except (Damaged, SchemaMismatch) as error:
        text = f"{error.message} {error.hint}"
        if len(text) > LONGEST_ERROR:
            return f"an error of {len(text)} characters: {text[:200]}"
        control = _CONTROL.search(text)
        return f"an error with {control[0]!r} in it: {text!r}" if control else ""
    except Exception as error:  # noqa: BLE001 - whatever else comes out is what is looked for
        return f"{type(error).__name__}: {error}"[:500]
    if meant is not None and found != meant:
        return "taken for a record that it is not"
    try:
        again = codec.decode(codec.encode(found).raw, "deploy").checkpoint
    except CheckpointError as error:
        return f"read, and cannot be written: {error.message}"[:500]
    return "" if again == found else "written and read again it is another one"


def hold(inputs: Iterable[tuple[bytes, Checkpoint | None]]) -> None:
    """Each of them keeps the promises."""
    count = 0
    problems: list[str] = []
    for raw, meant in inputs:
        count += 1
        wrong = wrong_with(raw, meant)
        if wrong:
            problems.append(f"{wrong}\n    in {raw[:3000]!r}")
    tried("loader", count, len(problems))
    assert problems == [], f"{len(problems)} of {count}:\n" + "\n".join(problems[:5])


# --- the loader: what is done to a record -------------------------------------------------------------------------------


def cuts_and_flips(name: str, *, all_bits: bool) -> Iterator[tuple[bytes, Checkpoint]]:
    """Every truncation; every bit, or of every byte one bit after the other, flipped."""
    raw = SEEDS[name]
    meant = codec.decode(raw, "deploy").checkpoint
    for size in range(len(raw)):
        yield raw[:size], meant
    changed = bytearray(raw)
    for position in range(len(raw)):
        for bit in range(8) if all_bits else (position % 8,):
            changed[position] ^= 1 << bit
            yield bytes(changed), meant
            changed[position] ^= 1 << bit


_TOKENS = rb"""\0 " "" \ \u \ud800 { } [ ] , : null -1 1e999 NaN"""
_BYTES = [b"", b"\n", b" ", b"\0", b"9" * 30, b"\x1b[31m", *_TOKENS.split()]
_BYTES += [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80"]
"""The last: what is no UTF-8, or no character."""


def bytes_edited(lot: random.Random) -> tuple[bytes, None]:
    raw = SEEDS[lot.choice(_OFTEN)]
    for _ in range(1 if lot.random() < 0.6 else 3):
        start = int(lot.random() * len(raw))
        end = start + int(lot.random() * 4) if lot.random() < 0.8 else int(start + lot.random() * (len(raw) - start))
        how = lot.random()
        if how < 0.3:
            between = bytes([int(lot.random() * 256)])
        elif how < 0.7:
            between = lot.choice(_BYTES)
        elif how < 0.85:
            between = lot.randbytes(int(lot.random() * 6))
        else:
            between = raw[start:end] * 2
        raw = raw[:start] + between + raw[end:]
    return raw, None


def spliced(lot: random.Random) -> tuple[bytes, None]:
    """The beginning of one and the end of another, often at the end of a line."""
    one, other = SEEDS[lot.choice(_OFTEN)], SEEDS[lot.choice(_OFTEN)]
    start, end = int(lot.random() * len(one)), int(lot.random() * len(other))
    if lot.random() < 0.5:
        start, end = one.find(b"\n", start) + 1, other.find(b"\n", end) + 1
    return one[:start] + other[end:], None


class Laid(NamedTuple):
    """A record as one line without its seal, and where its values and members (``"key":value``) stand in it."""

    text: str
    values: list[tuple[int, int]]
    members: list[tuple[int, int]]
    keys: list[tuple[int, int]]


def laid(raw: bytes) -> Laid:
    fields = {key: value for key, value in json.loads(raw).items() if key != "digest"}
    found = Laid("", [], [], [])
    return found._replace(text=_lay(fields, 0, found))


def _lay(value: Any, start: int, found: Laid) -> str:
    parts: list[str] = []
    position = start + 1
    if isinstance(value, dict):
        for key in sorted(value):
            head = json.dumps(key, ensure_ascii=False)
            text = f"{head}:" + _lay(value[key], position + len(head) + 1, found)
            found.keys.append((position, position + len(head)))
            found.members.append((position, position + len(text)))
            parts.append(text)
            position += len(text) + 1
    elif isinstance(value, list):
        for item in value:
            parts.append(_lay(item, position, found))
            position += len(parts[-1]) + 1
    plain = json.dumps(value, ensure_ascii=False)
    text = f"{plain[0]}{','.join(parts)}{plain[-1]}" if isinstance(value, dict | list) else plain
    found.values.append((start, start + len(text)))
    return text


LAID = {name: laid(raw) for name, raw in SEEDS.items()}
_OFTEN = [name for name in SEEDS if name != "big"] * 4 + ["big"]
"""The long one is read ten times as slowly as the others, and holds nothing that they do not."""
_WORDS = sorted({laid.text[start:end] for laid in LAID.values() for start, end in laid.keys})
_VALUES = sorted({laid.text[start:end] for laid in LAID.values() for start, end in laid.values if end - start < 200})

_NUMBERS = """0 -0 -1 1 2 1.0 1.5 -0.0 5e-324 1e308 1e309 -1e309 NaN Infinity -Infinity 00 2147483648 9223372036854775807
    9223372036854775808 18446744073709551616 -9223372036854775809"""
# As they stand in the file, where they are escapes.
_ESCAPED = r"""x deploy Deploy ../x deploy\n \u0000 \u001b[31m \ud800 \udc00\ud800 \ud83d\ude00 \u001b]0;x\u0007
    completed begun blocked cancelled in_progress checkpoint/v1 checkpoint/v2 1.0 0.9 019cab00-0000-7000-8000-000000000001
    cron:019cab00-0000-7000-8000-00000000000a 019CAB00-0000-7000-8000-000000000001"""
_TIMES = """2026-03-01T12:00:00.25Z 2026-03-01T12:00:00 2026-02-30T00:00:00Z 2026-13-01T00:00:00Z 0000-01-01T00:00:00Z
    0001-01-01T00:00:00+14:00 9999-12-31T23:59:59.999999-14:00 2026-03-01T24:00:00Z 2016-12-31T23:59:60Z 0001-01-01T00:00:00Z
    2026-03-01T12:00:00.123456+05:30 2026-03-01T12:00:00+99:99 2026-03-01T12:00:00-00:00 2026-03-01T12:00:00.1234567Z
    1969-12-31T23:59:59Z \u0662\u0660\u0662\u0666-03-01T12:00:00Z"""
_OTHERS = """null true false [] {} [null] [[]] {"a":1,"a":2} {"a":1} {"digest":"x"} ["a","a"] {"":""}"""
_TEXTS = ["", "\ud800", "\x00", "\n", "\u202e", "\u2028", "\ufeff", "\u0663", "ab" * 32, "AB" * 32, "a" * 65, "x" * 300]
_TEXTS += _ESCAPED.split()
HOSTILE = [*_NUMBERS.split(), *(f'"{text}"' for text in (*_TEXTS, *_TIMES.split())), *_OTHERS.split()]
HUGE = ["9" * 4300, "9" * 4301, "-" + "9" * 5000, "1" * 5000 + ".5", "1" * 5000 + "e999", '"' + "x" * 20_000 + '"']
HUGE += [
    '{"' + "k" * 20_000 + '":1,"' + "k" * 20_000 + '":2}',
    '"\\u001b' + "y" * 5000 + '"',
    '"2026-03-01T' + "0" * 9000 + '"',
]
HUGE += [opening * depth + "1" + closing * depth for opening, closing in ("[]", ('{"a":', "}")) for depth in (10, 60, 65, 200)]
HUGE += ["[" * 100_000]


def restructured(lot: random.Random, *, sealed: bool) -> tuple[bytes, None]:
    """Fields dropped, doubled, renamed, added, or given another value; sealed anew, so that the fields decide, or not."""
    name = lot.choice(_OFTEN)
    text, values, members, keys = LAID[name]
    times = 1 if lot.random() < 0.7 else 3
    edits: list[tuple[int, int, str]] = []
    for _ in range(times):
        how = lot.random()
        if how < 0.55:
            start, end = lot.choice(values)
            which = lot.random()
            new = lot.choice(HOSTILE) if which < 0.6 else lot.choice(_VALUES) if which < 0.99 else lot.choice(HUGE)
        elif how < 0.7:
            start, end = lot.choice(members)
            # With the comma before or behind it, so that only its want is wrong.
            new = ""
            if text[end] == ",":
                end += 1
            elif text[start - 1] == ",":
                start -= 1
        elif how < 0.75:
            start, end = lot.choice(members)
            new = f"{text[start:end]},{text[start:end]}"
        elif how < 0.9:
            start, end = lot.choice(keys)
            new = lot.choice(_WORDS) if lot.random() < 0.7 else f'"{lot.choice(_TEXTS)}"'
        elif how < 0.995:
            start, end = (begin := lot.choice(members)[0]), begin
            new = f"{lot.choice(_WORDS)}:{lot.choice(HOSTILE)},"
        else:
            start, end = lot.choice(members)
            new = f'"{lot.choice(_TEXTS)}":{lot.choice(HUGE)}'
        edits.append((start, end, new))
    edits.sort(reverse=True)
    last = len(text)
    for start, end, new in edits:
        if end <= last:
            text = text[:start] + new + text[end:]
            last = start
    # A lone surrogate as bytes is one of the things that a file may hold.
    flat = text.encode("utf-8", "surrogatepass")
    if name == "ancestor":
        try:
            return ancestor(text) if sealed else flat, None
        except (ValueError, KeyError, TypeError, RecursionError):
            return flat, None
    digest = hashlib.sha256(flat + b"\n").hexdigest() if sealed else "0" * 64
    return b'{"digest":"' + digest.encode() + b'",' + flat[1:] + b"\n", None


def drawn(seed: int, count: int) -> Iterator[tuple[bytes, Checkpoint | None]]:
    lot = random.Random(seed)
    for _ in range(count):
        which = lot.random()
        if which < 0.45:
            yield bytes_edited(lot)
        elif which < 0.6:
            yield spliced(lot)
        else:
            yield restructured(lot, sealed=which < 0.95)


# --- the loader: tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.proof("loader")
def test_a_flipped_bit_or_a_cut_is_never_taken_for_another_record(name: str) -> None:
    hold(cuts_and_flips(name, all_bits=WHOLE))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.proof("loader")
def test_whatever_a_file_holds_is_a_record_or_damage(seed: int) -> None:
    hold(drawn(seed, 250_000 if WHOLE else 2_500))


def test_the_inputs_are_not_all_refused_for_one_reason() -> None:
    """Refused by the digest alone, none would reach the checks of the fields."""
    kinds: dict[str, int] = {}
    for raw, _ in drawn(1000, 10_000):
        try:
            codec.decode(raw, "deploy")
            kind = "accepted"
        except Damaged as error:
            kind = error.kind
        except SchemaMismatch:
            kind = "newer"
        kinds[kind] = kinds.get(kind, 0) + 1
    wanted = {"accepted", "json", "encoding", "duplicate-key", "not-a-checkpoint", "digest", "schema", "date", "id", "newer"}
    assert {kind for kind, count in kinds.items() if count >= 5} >= wanted, kinds


def test_no_input_takes_more_work_than_its_size_explains() -> None:
    """Calls are counted, not time: what is planted must not keep the self-check busy."""
    for raw, _ in itertools.chain(drawn(2000, 1500), ((text.encode(), None) for text in HUGE)):
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            codec.decode(raw, "deploy")
        except CheckpointError:
            pass
        finally:
            sys.setprofile(None)
        assert calls <= 300 + len(raw), (calls, raw[:500])


@pytest.mark.proof("loader")
def test_each_file_of_a_store_full_of_damage_is_one_entry(workspace: Workspace) -> None:
    history = workspace.store / "done" / "deploy"
    history.mkdir(parents=True, mode=0o700)
    workspace.store.chmod(0o700)
    inputs = [raw for raw, _ in drawn(3000, 20_000 if WHOLE else 600)]
    for number, raw in enumerate(inputs):
        # Below done/deploy the id of each is deploy, so that whole ones among them are read to the end.
        place = (
            workspace.store / f"m{number}.json" if number % 4 == 0 else history / f"019cab00-0000-7000-8000-{number:012}.json"
        )
        place.write_bytes(raw)
    entries = list(FileStore(str(workspace.store)).scan(finished=True))
    assert sorted(entry.place for entry in entries) == sorted(
        str(path.relative_to(workspace.store)) for path in workspace.store.rglob("*.json")
    )
    assert all((entry.checkpoint is None) != (entry.error is None) for entry in entries)
    assert 0 < sum(entry.error is None for entry in entries) < len(entries)
    checkpoints = Checkpoints(workspace.store)
    assert len(checkpoints.verify().findings) >= sum(entry.error is not None for entry in entries)
    assert len(list(checkpoints.list(finished=True))) == len(entries)
    tried("loader", len(inputs))


@pytest.mark.parametrize("planted", ["unsealed", "any JSON", "leaks", "shouts"])
def test_planted_weak_loaders_are_found(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the digest a flipped bit is another record; without strict JSON a record cannot be written again."""
    if planted == "unsealed":
        monkeypatch.setattr(codec, "_check_seal", lambda *_: None)
        inputs: Iterable[tuple[bytes, Checkpoint | None]] = cuts_and_flips("small", all_bits=False)
    else:
        inputs = drawn(1, 3000)
    if planted == "any JSON":
        monkeypatch.setattr(codec, "_parse", lambda raw, id: json.loads(raw.decode("utf-8", "surrogatepass")))
    elif planted == "leaks":
        monkeypatch.setattr(codec, "_is_time", re.compile(r"()?(.*)").fullmatch)
    elif planted == "shouts":
        monkeypatch.setattr(codec, "_kind", lambda value: repr(value) + "\x1b")
    assert any(wrong_with(raw, meant) for raw, meant in inputs)


# --- a session: what it understands --------------------------------------------------------------------------------------

MOST = 10_000
LARGEST = 200_000
"""Of the reader alone: less than a real session takes, so that too much is not megabytes."""

REAL_LARGEST = 4 * model.RECORD_LIMIT


def request(*words: str | bytes) -> bytes:
    texts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"".join(text + b"\0" for text in (str(len(texts)).encode(), *texts))


def understood(data: bytes, largest: int = LARGEST) -> tuple[list[list[str]], bool]:
    """The questions in ``data``, up to the first that is none or is too large; whether there is such a one."""
    *texts, rest = data.split(b"\0")
    found = []
    position = 0
    while position < len(texts):
        head = texts[position]
        room = largest - len(head)
        if room < 0 or not re.fullmatch(rb"[0-9]{1,5}", head) or not 1 <= int(head) <= MOST:
            return found, True
        question = texts[position + 1 : position + 1 + int(head)]
        if sum(map(len, question)) + (len(rest) if len(question) < int(head) else 0) > room:
            return found, True
        if len(question) < int(head):
            return found, False
        found.append([os.fsdecode(text) for text in question])
        position += 1 + int(head)
    return found, len(rest) > largest


def taken(data: bytes, kind: type[dialogue.Dialogue] = dialogue.Dialogue) -> tuple[list[list[str]], bool]:
    """What a session makes of it: its reader alone, for the whole takes over the descriptors of its process."""
    found: list[list[str]] = []
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        file.seek(0)
        asked = kind.__new__(kind)
        asked._from, asked._largest, asked._owner, asked._read = file.fileno(), LARGEST, None, b""
        try:
            while (question := asked.ask(most=MOST)) is not None:
                found.append(question)
        except Usage:
            return found, True
    return found, False


# Verbs that change nothing of what is counted at the end, also where they succeed, and that write nowhere else.
_VERBS = "show list heartbeat begin status verify start run exec session shell-init frobnicate"
_SHORT = "deploy other a b nope - -- = 1 a,b k env json"
_OPTIONS = "--json --help --version --all -h --steps --key --note --format --debug --token"
_ARGUMENTS = ["", "\x1b[31m", "\u00fc", "x" * 300, "9" * 30, *_SHORT.split(), *_OPTIONS.split()]
_COUNTS = b"0 -1 +1 1.0 01 00001 000001 10001 0x1 1_0"
_HEADS = [
    b" 1",
    b"",
    b"\xff",
    b"\n",
    b"9" * 5000,
    b"GET / HTTP/1.1\r\n\r\n",
    "\N{FULLWIDTH DIGIT ONE}".encode(),
    *_COUNTS.split(),
]


def invented(lot: random.Random) -> bytes:
    words: list[str | bytes] = [lot.choice(_VERBS.split()) if lot.random() < 0.7 else lot.choice(_ARGUMENTS)]
    for _ in range(lot.randrange(5)):
        # No NUL: that is how one text ends, in what is asked as in the arguments of a process.
        raw = lot.randbytes(lot.randrange(9)).replace(b"\0", b"")
        words.append(lot.choice(_ARGUMENTS) if lot.random() < 0.8 else raw)
    return request(*words)


def broken(lot: random.Random, message: bytes, largest: int) -> bytes:
    how = lot.random()
    head, _, rest = message.partition(b"\0")
    if how < 0.35:
        return message[: lot.randrange(len(message))]
    if how < 0.55:
        return lot.choice(_HEADS) + b"\0" + rest
    if how < 0.7:
        return str(int(head) + lot.choice([-1, 1, 2, 300])).encode() + b"\0" + rest
    if how < 0.95:
        return lot.randbytes(lot.randrange(40))
    return message[:-1] + b"x" * (largest + 100_000) + (b"\0" if lot.random() < 0.5 else b"")


@pytest.mark.proof("session")
def test_a_session_understands_whole_questions_and_nothing_else() -> None:
    lot = random.Random(4)
    count = 0
    while count < (50_000 if WHOLE else 2_000):
        messages = [invented(lot) for _ in range(lot.randrange(1, 9))]
        messages = [broken(lot, message, LARGEST) if lot.random() < 0.15 else message for message in messages]
        data = b"".join(messages)
        assert taken(data) == understood(data), data[:3000]
        count += len(messages)
    tried("session", count)


class Obedient(dialogue.Dialogue):
    """Takes what stands there at the end of the input for a text."""

    def _text(self) -> bytes | None:
        text = super()._text()
        text, self._read = (self._read or None, b"") if text is None else (text, self._read)
        return text


class Trusting(dialogue.Dialogue):
    def ask(self, *, most: int) -> list[str] | None:
        return super().ask(most=most * 10)


@pytest.mark.parametrize("planted", [Obedient, Trusting])
def test_planted_readers_that_take_too_much_are_found(planted: type[dialogue.Dialogue]) -> None:
    lot = random.Random(4)
    inputs = [invented(lot) + broken(lot, invented(lot), LARGEST) for _ in range(1000)]
    assert any(taken(data, planted) != understood(data) for data in inputs)


def script(lot: random.Random, largest: int) -> bytes:
    """A run with steps that begin and end, and what does not belong there between."""
    messages = [request("start", "deploy", "--steps", "a,b,c,d")]
    for step in lot.sample("abcd", 3):
        messages.append(request("begin", "deploy", step))
        messages.append(invented(lot))
        messages.append(request("end", "deploy", step, "--exit-code", lot.choice(["0", "0", "0", "1"])))
        messages.append(invented(lot))
    if lot.random() < 0.7:
        place = lot.randrange(len(messages))
        messages[place] = broken(lot, messages[place], largest)
    return b"".join(messages)


@pytest.mark.parametrize("seed", range(20 if WHOLE else 2))
@pytest.mark.proof("session")
def test_a_session_answers_each_question_or_says_why_not(seed: int, make_workspace: Callable[[], Workspace]) -> None:
    lot = random.Random(seed)
    count = 0
    for _ in range(10 if WHOLE else 4):
        workspace = make_workspace()
        data = script(lot, REAL_LARGEST)
        questions, refused = understood(data, REAL_LARGEST)
        argv = [TOOL, "session", "--owner-pid", str(os.getpid())]
        done = subprocess.run(
            argv, cwd=workspace.path, env=workspace.environ(), input=data, capture_output=True, timeout=120, check=False
        )
        assert b"Traceback" not in done.stdout + done.stderr, done
        parts = done.stdout.split(b"\0")
        assert parts.pop() == b"", "no half answers"
        answers = list(zip(*[iter(parts)] * 3, strict=True))
        assert len(answers) == len(questions), data[:3000]
        assert 1 not in [int(code) for code, _, _ in answers], "a bug"
        assert done.returncode == (2 if refused else 0), (done, data[:3000])
        assert done.stderr.startswith(b"checkpoint-tool: ") if refused else done.stderr == b"", done
        ended = {
            question[2]
            for question, (code, out, _) in zip(questions, answers, strict=True)
            if question[0] == "end" and question[-1] == "0" and (code, out) == (b"0", b"completed")
        }
        if workspace.file().exists():
            assert {step["name"] for step in workspace.record()["steps"] if step["status"] == "completed"} == ended
        else:
            assert ended == set()
        if workspace.store.exists():
            assert Checkpoints(workspace.store).verify().findings == ()
            assert workspace.temporaries() == []
        count += len(questions) + refused
    tried("session", count)


# --- cron expressions ------------------------------------------------------------------------------------------------------

_Sets = tuple[set[int], set[int], set[int], set[int], set[int]]
"""Minutes, hours, days of the month, months, days of the week (0 is Sunday)."""

_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
_WEEKDAYS = "sun mon tue wed thu fri sat"
CRON_FIELDS: list[tuple[str, int, int, list[str]]] = [
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of month", 1, 31, []),
    ("month", 1, 12, _MONTHS.split()),
    ("day of week", 0, 7, _WEEKDAYS.split()),
]
_BAD = ", 1, ,1 - 1- -1 9-1 */0 */-1 */ /5 5/2 */99 100 L ? 1W H 1.5 *-5 ** 1--2 1-2-3 */2/2 0~5 mond"
_BAD_PARTS = ["", "\u0663", "x" * 200, "9" * 5000, "*/" + "9" * 5000, "1-2/" + "9" * 5000, *_BAD.split()]


def field(lot: random.Random, number: int) -> tuple[str, set[int]]:
    """One field of an expression, and what it means."""
    _, least, most, names = CRON_FIELDS[number]

    def shown(value: int) -> str:
        if names and lot.random() < 0.4 and value - (number == 3) < len(names):
            name = names[value - (number == 3)]
            return lot.choice([name, name.upper(), name.capitalize()])
        return f"{value:02}" if lot.random() < 0.1 else str(value)

    last = 6 if number == 4 else most
    how = lot.random()
    if how < 0.35:
        return "*", set(range(least, last + 1))
    if how < 0.45:
        step = lot.randint(1, most)
        return f"*/{step}", set(range(least, last + 1, step))
    parts, meant = [], set()
    for _ in range(lot.choice([1, 1, 1, 2, 3, 4])):
        first = lot.randint(least, most)
        until = lot.randint(first, most)
        which = lot.random()
        if which < 0.5:
            parts.append(shown(first))
            meant.add(first)
        elif which < 0.8:
            parts.append(f"{shown(first)}-{shown(until)}")
            meant.update(range(first, until + 1))
        else:
            step = lot.randint(1, most)
            parts.append(f"{shown(first)}-{shown(until)}/{step}")
            meant.update(range(first, until + 1, step))
    return ",".join(parts), {value % 7 for value in meant} if number == 4 else meant


def first_after(after: datetime, rules: list[_Sets]) -> datetime | None:
    """The next minute that one of the rules means, day by day; None where none comes in nine years."""
    for number in range(9 * 366):
        day = (after + timedelta(days=number)).replace(hour=0, minute=0)
        weekday = day.isoweekday() % 7
        times = [
            moment
            for minutes, hours, days, months, weekdays in rules
            if day.month in months and day.day in days and weekday in weekdays
            for moment in first_of_day(day, after, minutes, hours)
        ]
        if times:
            return min(times)
    return None


def first_of_day(day: datetime, after: datetime, minutes: set[int], hours: set[int]) -> Iterator[datetime]:
    for hour in sorted(hours):
        for minute in sorted(minutes):
            moment = day.replace(hour=hour, minute=minute)
            if moment > after:
                yield moment
                return


def crontab_rules(texts: list[str], sets: _Sets) -> list[_Sets]:
    """crontab(5): where day of month and day of week are both restricted, either will do."""
    minutes, hours, days, months, weekdays = sets
    if texts[2].startswith("*") or texts[4].startswith("*"):
        return [sets]
    every_day, all_week = set(range(1, 32)), set(range(7))
    return [(minutes, hours, days, months, all_week), (minutes, hours, every_day, months, weekdays)]


_ON_CALENDAR = re.compile(r"(?:([A-Za-z,]+) )?\*-(\*|[\d,]+)-(\*|[\d,]+) (\*|[\d,]+):(\*|[\d,]+):00")


def systemd_rules(expressions: list[str]) -> list[_Sets]:
    def numbers(text: str, least: int, most: int) -> set[int]:
        return set(range(least, most + 1)) if text == "*" else {int(part) for part in text.split(",")}

    rules = []
    for expression in expressions:
        match = _ON_CALENDAR.fullmatch(expression)
        assert match, expression
        names, months, days, hours, minutes = match.groups()
        days_of = names.lower().split(",") if names else _WEEKDAYS.split()
        weekdays = {_WEEKDAYS.split().index(name) for name in days_of}
        one = (numbers(minutes, 0, 59), numbers(hours, 0, 23), numbers(days, 1, 31), numbers(months, 1, 12), weekdays)
        rules.append(one)
    return rules


def launchd_rules(entries: list[dict[str, int]]) -> list[_Sets]:
    """Every combination is there once, so they are as one."""
    ranges = {"Minute": range(60), "Hour": range(24), "Day": range(1, 32), "Month": range(1, 13), "Weekday": range(7)}
    assert 0 < len(entries) <= cron.MOST_LAUNCHD
    assert len({tuple(sorted(entry.items())) for entry in entries}) == len(entries)
    assert len({tuple(entry) for entry in entries}) == 1
    sets = {key: {entry[key] for entry in entries} if key in entries[0] else set(span) for key, span in ranges.items()}
    assert len(entries) == math.prod(len(sets[key]) for key in entries[0])
    assert all(sets[key] <= set(span) for key, span in ranges.items())
    minutes, hours, days, months, weekdays = sets.values()
    return [(minutes, hours, days, months, weekdays)]


def refusal(text: str, parse: Callable[[str], cron.Cron] = cron.parse) -> str | None:
    """Why it is refused; None where it is accepted. Anything but Usage comes out."""
    try:
        parse(text)
    except Usage as error:
        words = error.message
    else:
        return None
    assert len(words) < LONGEST_ERROR
    assert not _CONTROL.search(words)
    return words


def check_cron(lot: random.Random, parse: Callable[[str], cron.Cron] = cron.parse) -> None:
    """One expression, whole or with one bad part."""
    drawn_fields = [field(lot, number) for number in range(5)]
    texts = [text for text, _ in drawn_fields]
    minutes, hours, days, months, weekdays = (meant for _, meant in drawn_fields)
    if lot.random() < 0.3:
        number = lot.randrange(5)
        bad = lot.choice(_BAD_PARTS)
        if bad == "*/99" or (bad == "9-1" and number == 4):
            bad = "x"
        texts[number] = bad if lot.random() < 0.5 or bad == "" else f"1,{bad}"
        refused = refusal(" ".join(texts), parse)
        assert refused is not None, texts
        name = CRON_FIELDS[number][0]
        assert name in refused or "fields" in refused, (texts, refused)
        return
    text = lot.choice([" ", "  ", "\t"]).join(texts)
    sets = (minutes, hours, days, months, weekdays)
    rules = crontab_rules(texts, sets)
    after = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=lot.randrange(4 * 365 * 24 * 60))
    expected = first_after(after, rules)
    # With a star that is stepped beside a restricted field daemons do not agree, so it is refused.
    everyday, all_week = len(days) == 31, len(weekdays) == 7
    odd = (texts[2].startswith("*/") and not everyday and not all_week) or (
        texts[4].startswith("*/") and not everyday and not all_week
    )
    refused = refusal(text, parse)
    if refused is not None:
        assert odd or expected is None or (texts[2] != "*" and texts[4] != "*" and "*/" in texts[2] + texts[4]), (text, refused)
        assert "day of month" in refused, (text, refused)
        return
    assert not odd, text
    assert expected is not None, text
    parsed = parse(text)
    assert parse(parsed.text) == parsed
    assert cron.period_s(parsed) > 0
    assert next(cron_times.times(parsed, after, UTC)) == expected, (text, after)
    assert first_after(after, systemd_rules(cron.to_systemd(parsed))) == expected, (text, after)
    try:
        entries = cron.to_launchd(parsed)
    except Usage as error:
        words = error.message
    else:
        assert first_after(after, launchd_rules(entries)) == expected, (text, after)
        return
    assert "launchd" in words


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.proof("cron")
def test_cron_expressions_mean_what_they_say_or_are_refused_by_the_field(seed: int) -> None:
    lot = random.Random(seed)
    count = 11_000 if WHOLE else 200
    for _ in range(count):
        check_cron(lot)
    tried("cron", count)


@pytest.mark.proof("cron")
def test_no_text_is_more_than_refused_as_a_cron_expression() -> None:
    lot = random.Random(9)
    count = 15_000 if WHOLE else 600
    names = "".join(itertools.chain.from_iterable(names for *_, names in CRON_FIELDS))
    alphabet = "0123456789**//--,,   @LWH?#.~\t\n\0\x1b\u0663\u2028\ud800" + names
    accepted = 0
    for _ in range(count):
        if lot.random() < 0.3:
            text = lot.choice(["@daily", "@Hourly", " @weekly ", "@reboot", "@", "@daily\n", "@every 5m"])
        else:
            text = "".join(lot.choices(alphabet, k=lot.randrange(24)))
        if lot.random() < 0.5:
            text += " *" * lot.randrange(6)
        if refusal(text) is None:
            accepted += 1
            assert next(cron_times.times(cron.parse(text), at(0), UTC)) > at(0), text
    assert 0 < accepted < count
    tried("cron", count)


def sunday_is_seven(text: str) -> cron.Cron:
    found = cron.parse(text)
    return found._replace(weekdays=found.weekdays and tuple(day or 6 for day in found.weekdays))


def either_is_both(text: str) -> cron.Cron:
    found = cron.parse(text)
    return found._replace(weekdays=None) if found.days and found.weekdays else found


def takes_what_it_can(text: str) -> cron.Cron:
    return cron.parse(re.sub(r"[^0-9a-z*/, -]", "", text[:60]))


@pytest.mark.parametrize("planted", [sunday_is_seven, either_is_both, takes_what_it_can])
def test_planted_misreadings_of_cron_are_found(planted: Callable[[str], cron.Cron]) -> None:
    lot = random.Random(1)

    def all_hold() -> None:
        for _ in range(500):
            check_cron(lot, planted)

    with pytest.raises(AssertionError):
        all_hold()
