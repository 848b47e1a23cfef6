"""The verb that goes on looking: watch."""

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from datetime import datetime
from os import environ
from types import FrameType, TracebackType
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from checkpoint import model, process
from checkpoint._load import load
from checkpoint.api import Checkpoints, Listed
from checkpoint.cli.options import Json, Store, open_checkpoints
from checkpoint.cli.workflow import _document as listed_document
from checkpoint.config import parse_duration
from checkpoint.errors import CheckpointError, NotFound, Usage
from checkpoint.render import text

_LONGEST_S = 86400
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SHOW = b"\x1b[?1049h\x1b[?25l\x1b[2J"
_HIDE = b"\x1b[0m\x1b[?25h\x1b[?1049l"
_T = TypeVar("_T")


class Seen(NamedTuple):
    """What one look found. ``error``: why there was nothing to be seen."""

    at: datetime
    found: list[Listed]
    error: CheckpointError | None


def watch(
    interval: Annotated[str, typer.Option("--interval", metavar="D", help="How often to look, from 1s to 1d.")] = "2s",
    all: Annotated[bool, typer.Option("--all", help="Finished ones too.")] = False,
    workflow: Annotated[str | None, typer.Option(metavar="NAME", help="Only this workflow.", show_default=False)] = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Unfinished checkpoints, live in the terminal; q ends it. With --json a line for each look."""
    pause_s = parse_duration(interval)
    if pause_s > _LONGEST_S:
        raise Usage(f"--interval {interval} is longer than a day")
    if not json:
        _refuse_what_cannot_be_drawn_on()
    named = open_checkpoints(store)
    location = named.store.location

    def look() -> Seen:
        # Opened each time: a store that was moved away, or removed and made again, is another folder under that name.
        checkpoints = Checkpoints(location, owner=named.owner)
        try:
            return Seen(checkpoints.store.now(), list(checkpoints.list(finished=all, workflow=workflow, failing=True)), None)
        except CheckpointError as error:
            return Seen(checkpoints.store.now(), [], error)

    if json:
        _print(look, pause_s, location)
        return
    ended_by = _draw(look, pause_s, lambda seen, size: _frame(seen, size, location, pause_s))
    if ended_by not in (0, signal.SIGINT):
        # Whoever sent it is told by the status that it was heard, not that this ended by itself.
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)


def _refuse_what_cannot_be_drawn_on() -> None:
    if not sys.stdout or not sys.stdout.isatty():
        words = "watch draws on a terminal, and standard output is none: `list` prints once, `watch --json` again and again"
        raise Usage(words, hint="checkpoint-tool list")
    if environ.get("TERM", "") in ("", "dumb", "unknown"):
        raise Usage(
            "watch cannot draw on this terminal ($TERM does not say what it can): `list` prints", hint="checkpoint-tool list"
        )


def _print(look: Callable[[], Seen], pause_s: int, location: str) -> None:
    """One line for each look, until nobody reads them any more."""
    reader = select.poll()
    reader.register(1, 0)
    try:
        while True:
            seen = look()
            line = {
                "at": model.clock(seen.at),
                "store": location,
                "checkpoints": [listed_document(listed) for listed in seen.found],
                "error": None if seen.error is None else _error_document(seen.error),
            }
            process.write_stdout(text.to_json(line).encode() + b"\n")
            if reader.poll(pause_s * 1000):
                return
    except (BrokenPipeError, KeyboardInterrupt):
        return


def _error_document(error: CheckpointError) -> dict[str, Any]:
    return {"code": error.exit_code, "name": error.name, "message": error.message, "hint": error.hint}


def _draw(look: Callable[[], Seen], pause_s: int, frame: Callable[[Seen, os.terminal_size], list[str]]) -> int:
    """Look and draw until it is ended: by a key (0), or by the signal that is returned."""
    with _Screen() as screen:
        seen: Seen | None = None
        next_look = time.monotonic()
        while True:
            if time.monotonic() >= next_look:
                seen = screen.interruptible(look) or seen
                next_look = time.monotonic() + pause_s
            if seen is not None:
                screen.draw(frame(seen, shutil.get_terminal_size()))
            ended_by = screen.wait(max(0.0, next_look - time.monotonic()))
            if ended_by is not None:
                return ended_by


def _frame(seen: Seen, size: os.terminal_size, location: str, pause_s: int) -> list[str]:
    damaged = sum(listed.view is None for listed in seen.found)
    unfinished = sum(listed.view is not None and listed.view.checkpoint.unfinished for listed in seen.found)
    counts = f"{unfinished} unfinished" + (f", {damaged} damaged" if damaged else "")
    title = f"{counts}  q ends  {model.clock(seen.at)}  every {text.duration(pause_s)}  {location}"
    words = ""
    if seen.error is not None:
        words = seen.error.message + (": waiting for it" if isinstance(seen.error, NotFound) else "")
    rows = [_row(listed, seen.at) for listed in seen.found]
    lines: list[str] = load("checkpoint.render.table:screen")(title, words, rows, size.columns, size.lines)
    return lines


def _row(listed: Listed, now: datetime) -> Any:
    row = load("checkpoint.render.table:ScreenRow")
    if listed.view is None:
        damage = f"{listed.place}: {listed.error.message}" if listed.error is not None else listed.place
        return row(listed.name, "damaged", 0, 0, "", "", "", "", damage)
    view = listed.view
    checkpoint = view.checkpoint
    moved = checkpoint.progress_at if checkpoint.finished_at is None else checkpoint.finished_at
    return row(
        checkpoint.id,
        str(checkpoint.status),
        sum(step.status in model.DONE for step in checkpoint.steps),
        len(checkpoint.steps),
        view.next or "",
        ", ".join(view.in_doubt),
        f"{view.owner_state} ({checkpoint.lease.owner})" if checkpoint.lease else "",
        f"{text.duration(int((now - moved).total_seconds()))} ago",
    )


class _Screen:
    """The alternate screen of the terminal, the keys typed there, and the signals meanwhile. Leaves all as it was."""

    def __init__(self) -> None:
        self._keys = os.isatty(0)
        self._busy = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Screen":
        self._settings = termios.tcgetattr(0) if self._keys else None
        self._heard, self._tell = os.pipe()
        for fd in (self._heard, self._tell):
            os.set_blocking(fd, False)
        self._woken = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGTSTP, signal.SIGWINCH):
            # Under nohup, or behind a shell's "&", it was meant to be ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        try:
            self._show()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()

    def interruptible(self, look: Callable[[], _T]) -> _T | None:
        """What ``look`` gives, or None when a signal came: a large store is not read to its end first."""
        try:
            try:
                self._busy = True
                return look()
            finally:
                self._busy = False
        except KeyboardInterrupt:  # it may also come between the two lines above
            return None

    def draw(self, lines: list[str]) -> None:
        # Each line is written over the one before and not erased first, which would flicker.
        data = "\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J"
        try:
            process.write_stdout(data.encode(sys.stdout.encoding or "utf-8", "replace"))
        except OSError:
            os.write(self._tell, bytes([signal.SIGHUP]))  # the terminal is gone

    def wait(self, seconds: float) -> int | None:
        """None when it is time to look or to draw again; 0 for the key that ends it, else the signal that did."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([self._heard, *([0] if self._keys else [])], [], [], left)[0]
            if self._heard in ready:
                numbers = os.read(self._heard, 1024)
                ending = next((number for number in numbers if number in _ENDING), None)
                if ending is not None:
                    return ending
                if signal.SIGTSTP in numbers:
                    self._pause()
                return None
            if 0 in ready:
                try:
                    typed = os.read(0, 1024)
                except OSError:
                    typed = b""
                if not typed:
                    return signal.SIGHUP
                if b"q" in typed.lower() or b"\x03" in typed:
                    return 0
                continue
            return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The number itself goes through the pipe; this only ends a long look.
        if self._busy and number in _ENDING:
            self._busy = False
            raise KeyboardInterrupt

    def _pause(self) -> None:
        self._hide()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._show()

    def _show(self) -> None:
        if self._keys:
            tty.setcbreak(0, termios.TCSANOW)
        process.write_stdout(_SHOW)

    def _hide(self) -> None:
        try:
            process.write_stdout(_HIDE)
        except OSError:
            pass  # the terminal is gone
        if self._settings is not None:
            try:
                termios.tcsetattr(0, termios.TCSANOW, self._settings)
            except termios.error:
                pass

    def _leave(self) -> None:
        self._hide()
        signal.set_wakeup_fd(self._woken)
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._heard)
        os.close(self._tell)
