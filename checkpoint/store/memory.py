"""A store that lasts as long as its process: the same contract over a dictionary, for tests and trials."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from checkpoint import codec, model
from checkpoint.errors import AlreadyExists, CheckpointError, NotFound
from checkpoint.model import RUN_ID, Checkpoint
from checkpoint.store import Attestation, Change, Entry, changed_meanwhile, checked, utc_now


class MemoryStore:
    """Keeps encoded records, so that the codec is part of every test. Safe for threads of one process."""

    location = "memory:"
    shared = False

    def __init__(self) -> None:
        self._unfinished: dict[str, bytes] = {}
        self._finished: dict[str, bytes] = {}
        """Receipts by id, history by run id."""
        self._tokens: dict[str, int] = {}
        self._failing: dict[str, Checkpoint] = {}
        """The last run of a workflow of ``exec``, where it went wrong, by workflow."""
        self._set_aside: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def now(self) -> datetime:
        return utc_now()

    def create(self, checkpoint: Checkpoint) -> Checkpoint:
        id = checked(checkpoint.id)
        with self._lock:
            if id in self._unfinished or (checkpoint.idempotency_key is not None and id in self._finished):
                raise AlreadyExists(f"{id} exists")
            before = max((key for key, raw in self._finished.items() if self._decode_id(raw) == id and key != id), default=None)
            checkpoint = model.after_run(model.above_token(checkpoint, self._tokens.get(id, 0)), before)
            self._unfinished[id] = codec.encode(checkpoint).raw
            self._tokens[id] = checkpoint.token
            return checkpoint

    def issue(self, id: str) -> int:
        with self._lock:
            self._tokens[id] = token = self._tokens.get(id, 0) + 1
            return token

    def load(self, name: str) -> Checkpoint:
        with self._lock:
            place, key = self._locate(name)
            return self._decode(place[key])

    def receipt(self, id: str) -> Checkpoint | None:
        with self._lock:
            raw = self._finished.get(checked(id))
            return None if raw is None else self._decode(raw)

    def update(self, name: str, change: Change) -> Checkpoint:
        with self._lock:
            place, key = self._locate(name)
            before = self._decode(place[key])
            after = change(before, self.now())
            if after is not before:
                if after.token != before.token:
                    after = model.above_token(after, max(before.token, self._tokens.get(after.id, 0)))
                after = model.stamped(after, self.now())
                place[key] = codec.encode(after).raw
                self._tokens[after.id] = max(after.token, self._tokens.get(after.id, 0))
            return after

    def scan(
        self,
        *,
        finished: bool = False,
        workflow: str | None = None,
        newest: int | None = None,
        failing: bool = False,
    ) -> Iterator[Entry]:
        with self._lock:
            marks = dict(self._failing) if failing else {}
            places = {f"{key}.json": (key, raw) for key, raw in self._unfinished.items()}
            if finished:
                places |= {f"done/{key}.json": (key, raw) for key, raw in self._finished.items()}
        ordered = sorted(places.items(), key=lambda item: (item[0].count("/"), item[0]))
        histories: dict[str, list[str]] = {}
        for key, raw in self._finished.items():
            if RUN_ID.fullmatch(key):
                histories.setdefault(self._decode_id(raw), []).append(key)
        old = {key for keys in histories.values() for key in sorted(keys)[: -newest if newest else 0]}
        for place, (key, raw) in ordered:
            if key in old:
                continue
            try:
                checkpoint = self._decode(raw)
            except CheckpointError as error:
                yield Entry(key, place, None, error)
            else:
                mine = workflow is None or checkpoint.workflow == workflow
                if mine and (finished or checkpoint.unfinished):
                    yield Entry(key, place, checkpoint, None)
        for name, mark in marks.items():
            if workflow in (None, name) and not model.is_acknowledged(mark):
                yield Entry(mark.id, f"failing/{name}.json", mark, None)

    def recent(self, newest: int) -> Iterator[Entry]:
        ended = [
            (entry.checkpoint.finished_at, entry)
            for entry in self.scan(finished=True)
            if entry.checkpoint is not None and entry.checkpoint.finished_at is not None
        ]
        yield from (entry for _, entry in sorted(ended, key=lambda item: item[0], reverse=True)[:newest])

    def archive(self, id: str, run_id: str) -> None:
        with self._lock:
            raw = self._unfinished.get(checked(id))
            if raw is None:
                return
            checkpoint = self._decode(raw)
            if checkpoint.run_id != run_id:
                return
            model.check_finished(checkpoint)
            key = id if checkpoint.idempotency_key is not None else model.bare(checkpoint.run_id)
            self._finished.setdefault(key, raw)
            mark = model.failing_after(self._failing.get(checkpoint.workflow), checkpoint, self.now())
            if mark is None:
                self._failing.pop(checkpoint.workflow, None)
            else:
                self._failing[checkpoint.workflow] = mark
            del self._unfinished[id]

    def acknowledge(self, workflow: str, by: str | None, reason: str) -> Checkpoint:
        with self._lock:
            mark = self._failing.get(checked(workflow))
            if mark is None or (by is None) is not model.is_acknowledged(mark):
                raise NotFound(f"no failed run of {workflow} is in sight", hint="checkpoint-tool list")
            self._failing[workflow] = model.acknowledged(mark, by, reason, self.now())
            return self._failing[workflow]

    def ended(self, runs: Sequence[tuple[str, str]]) -> list[bool]:
        known = [entry.checkpoint for entry in self.scan(finished=True) if entry.checkpoint is not None]
        found = {(checkpoint.id, checkpoint.run_id) for checkpoint in known}
        ids = {checkpoint.id for checkpoint in known}
        return [(id, run_id) in found if run_id else id in ids for id, run_id in runs]

    def delete(self, name: str, run_id: str) -> None:
        with self._lock:
            try:
                exact = self._locate_exactly(checked(name), run_id)
                if exact is None and checked(name) != model.bare(run_id):
                    return
                place, key = exact or self._locate(f"run:{model.bare(run_id)}")
            except NotFound:
                return
            checkpoint = self._decode(place[key])
            if checkpoint.run_id == run_id:
                model.check_deletable(checkpoint)
                del place[key]

    def attest(self, checkpoint: Checkpoint) -> Attestation | None:
        return None

    def is_attested(self, checkpoint: Checkpoint) -> bool | None:
        return None

    def raw(self, name: str, *, place: str | None = None) -> tuple[str, bytes]:
        with self._lock:
            records, key = self._locate(name)
            if place is not None:
                records = self._finished if place.startswith("done/") else self._unfinished
                key = place.removeprefix("done/").removesuffix(".json")
            if key not in records:
                raise NotFound(f"there is no {place} in {self.location}", hint="checkpoint-tool list --all")
            return self._decode_id(records[key]), records[key]

    def leftovers(self) -> list[str]:
        return sorted(self._set_aside)

    def second_names(self) -> list[str]:
        return []

    def repair(self, name: str, seen: bytes | None, reseal: Callable[[str, bytes], Checkpoint] | None) -> str:
        with self._lock:
            place, key = self._locate(name)
            aside = f"quarantine/{key}.json.bad-{time.time_ns() // 1_000_000}"
            old = place[key]
            if old != seen:
                raise changed_meanwhile(name)
            if reseal is None:
                del place[key]
            else:
                id = self._decode_id(old)
                place[key] = codec.encode(model.resealed(reseal(id, old), self._tokens.get(id, 0))).raw
            self._set_aside[aside] = old
            return aside

    def _locate(self, name: str) -> tuple[dict[str, bytes], str]:
        said, name = name, checked(name)
        for place in (self._unfinished, self._finished) if said == name else ():
            if name in place and not (place is self._finished and self._decode_id(place[name]) != name):
                return place, name
        for place in (self._unfinished, self._finished):
            for key in sorted(place, reverse=True):
                checkpoint = self._decode(place[key])
                if name == model.bare(checkpoint.run_id) or (said == name and name == checkpoint.id):
                    return place, key
        raise NotFound(f"there is no checkpoint {said!r} in {self.location}", hint="checkpoint-tool list --all")

    def _locate_exactly(self, id: str, run_id: str) -> tuple[dict[str, bytes], str] | None:
        for place in (self._finished, self._unfinished):
            for key in (model.bare(run_id), id):
                if key in place:
                    checkpoint = self._decode(place[key])
                    if (checkpoint.id, checkpoint.run_id) == (id, run_id):
                        return place, key
        return None

    def _decode(self, raw: bytes) -> Checkpoint:
        return codec.decode(raw, self._decode_id(raw)).checkpoint

    def _decode_id(self, raw: bytes) -> str:
        return str(codec.parse_object(raw.decode())["id"])
