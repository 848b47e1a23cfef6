"""Results as text: JSON, TSV, shell assignments, plain words. Whatever came out of a file is escaped."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from checkpoint import model
from checkpoint.codec import timestamp
from checkpoint.model import Checkpoint, RunState, Step, StepStatus, View

# Control characters (C0, DEL, C1), line separators, and what turns or hides text: direction marks, zero-width ones, tags.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_KEY_SUFFIX = re.compile(r"-[0-9a-f]{12}$")
_NAME_IN_WORDS = re.compile(r"(?<![\w./\"-])[a-z0-9][a-z0-9_-]*(?![\w./\"-])")
_WORD = re.compile(r"[a-z]{2,}")
_MOST_WORDS, _LONGEST_NAME = 4, 40
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape(text: str) -> str:
    """The text on one line, with nothing in it that a terminal would act on."""
    return _UNSAFE.sub(_escaped, text)


def is_wordy(name: str) -> bool:
    """Whether a name of a run or a step could be read as a sentence: an agent that reads it follows instructions."""
    name = _KEY_SUFFIX.sub("", name)
    return len(name) > _LONGEST_NAME or len(set(_WORD.findall(name))) > _MOST_WORDS


def argument(name: str, place: str) -> str:
    """The name as part of a command, or ``place`` (ID, STEP) where it is too long, a sentence, or not a plain name."""
    plain = model.NAME.fullmatch(name) or model.ID.fullmatch(name)
    return name if plain and not is_wordy(name) else place


def named(name: str) -> str:
    """The name among other words: in double quotes where it could pass for some of them."""
    return json.dumps(name) if is_wordy(name) else name


def without_sentences(words: str, *, command: bool = False) -> str:
    """The words with each name that could pass for a sentence in double quotes, or in a ``command`` as NAME."""
    return _NAME_IN_WORDS.sub(lambda match: "NAME" if command and is_wordy(match[0]) else named(match[0]), words)


def to_json(value: Any) -> str:
    """One line of pure ASCII: safe on any terminal and in any encoding."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def to_tsv(cells: Iterable[object]) -> str:
    """Cells between tabs; backslash, tab and newline inside a cell are escaped."""
    return "\t".join(escape(str("" if cell is None else cell).replace("\\", "\\\\")) for cell in cells)


def to_env(values: Mapping[str, object]) -> str:
    """Lines of ``export NAME='value'``, safe to ``eval`` in any POSIX shell whatever the values hold."""
    return "".join(f"export {name}={_quoted(value)}\n" for name, value in values.items())


def duration(seconds: int) -> str:
    """The two largest units: ``45s``, ``12m 5s``, ``3h``, ``2d 4h``."""
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return sign + (" ".join(parts) or "0s")


def run_lines(view: View, *, full: bool) -> list[str]:
    """A checkpoint in words. ``full``: everything that is known, else what one needs to go on."""
    checkpoint = view.checkpoint
    lines = [f"{named(checkpoint.id)}  {checkpoint.status}" + (f": {escape(checkpoint.reason)}" if checkpoint.reason else "")]

    def line(label: str, value: object) -> None:
        if value not in (None, "", ()):
            lines.append(f"  {label + ':':<12}{escape(str(value))}")

    line("run", checkpoint.run_id)
    line("key", checkpoint.idempotency_key)
    line("token", checkpoint.token)
    limit = f" of at most {checkpoint.max_attempts}" if checkpoint.max_attempts else ""
    line("attempt", f"{checkpoint.attempts}{limit}" if checkpoint.attempts > 1 or limit else None)
    if checkpoint.lease is not None:
        line("owner", f"{view.owner_state}: {model.holder(checkpoint.lease, view.owner_state, view.until)}")
    line("agent", checkpoint.agent)
    line("handoff to", checkpoint.handoff_to)
    line("done", _names(checkpoint.steps, model.DONE))
    line("failed", _names(checkpoint.steps, {StepStatus.FAILED}))
    line("in doubt", ", ".join(map(named, view.in_doubt)))
    line("next", view.next and named(view.next))
    if view.in_doubt and checkpoint.unfinished:
        lines.append("    a step in doubt began and never ended: see whether its effect is in place, then say")
        id = argument(checkpoint.id, "ID")
        lines.append(f"    checkpoint-tool update {id} --complete STEP    or    --retry STEP")
    if full:
        for step in checkpoint.steps:
            lines.append(_step_line(step, doubtful=step.name in view.in_doubt))
        line("created", model.clock(checkpoint.created_at))
        line("progress", model.clock(checkpoint.progress_at))
        line("expires", _moment(checkpoint.expires_at))
        line("finished", _moment(checkpoint.finished_at))
        line("stale after", duration(checkpoint.stale_after_s) if checkpoint.stale_after_s else None)
        line("pinned", "yes" if checkpoint.pinned else None)
    for note in checkpoint.notes:
        line("note", f"{model.clock(note.at)} {note.by}: {note.text}")
    if checkpoint.data:
        line("data", to_json(dict(checkpoint.data)))
    return lines


def brief(view: View) -> str:
    """A checkpoint in one line: what changed by the last command, and what comes next."""
    checkpoint = view.checkpoint
    done = sum(step.status in model.DONE for step in checkpoint.steps)
    words = [f"{named(checkpoint.id)}  {checkpoint.status}, {done} of {len(checkpoint.steps)} steps done"]
    if view.in_doubt:
        words.append(f"in doubt: {', '.join(map(named, view.in_doubt))}")
    if view.next:
        words.append(f"next: {named(view.next)}")
    return escape(", ".join(words))


def made(path: str, passed: Sequence[str]) -> str:
    """That a store is new, and where; ``passed``: stores of other users that the search passed over."""
    words = f"made a new store: {path}"
    return f"{words} (passed over, as another user owns it: {', '.join(passed)})" if passed else words


def status_line(checkpoint: Checkpoint, state: RunState) -> str:
    """How a run stands, in one line."""
    words = [f"{named(checkpoint.id)}  {state.replace('_', ' ')}", f"run {checkpoint.run_id}"]
    words.append(f"started {model.clock(checkpoint.created_at)}")
    if checkpoint.finished_at is not None:
        words.append(f"ended {model.clock(checkpoint.finished_at)}")
    if checkpoint.reason is not None:
        words.append(checkpoint.reason)
    return escape(", ".join(words))


def status_document(checkpoint: Checkpoint, state: RunState) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "run_id": checkpoint.run_id,
        "status": state,
        "started_at": timestamp(checkpoint.created_at),
        "completed_at": None if checkpoint.finished_at is None else timestamp(checkpoint.finished_at),
    }


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")


def _quoted(value: object) -> str:
    # Single quotes keep every byte as it is; NUL cannot stand in a shell's variable at all.
    return "'" + str("" if value is None else value).replace("\0", "").replace("'", "'\\''") + "'"


def _names(steps: Iterable[Step], statuses: Iterable[StepStatus]) -> str:
    return ", ".join(named(step.name) for step in steps if step.status in statuses)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else model.clock(moment)


def _step_line(step: Step, *, doubtful: bool) -> str:
    words = "in doubt" if doubtful else str(step.status)
    when = step.ended_at or step.begun_at
    parts = [f"  - {named(step.name):<24} {words:<10}", model.clock(when) if when else ""]
    if step.attempts > 1:
        parts.append(f"{step.attempts} attempts")
    if step.once:
        parts.append("once")
    if step.duration_ms is not None:
        parts.append(f"{step.duration_ms / 1000:.1f} s")
    parts += [text for text in (step.error, step.reason) if text]
    if step.result is not None:
        parts.append(to_json(step.result))
    return escape(" ".join(part for part in parts if part)).rstrip()
