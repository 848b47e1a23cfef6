"""``watch`` on real pseudo-terminals: what it draws, how it ends, and that it leaves the terminal as it was."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import TOOL, Workspace

SHOW, HIDE = "\x1b[?1049h", "\x1b[?1049l"
# As a shell would: the child leads a session of its own, with the terminal in its foreground.
TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Watched:
    """``watch`` on a terminal of a given size, and what has been written there."""

    def __init__(
        self, workspace: Workspace, *argv: str, size: tuple[int, int] = (30, 140), env: dict[str, str] | None = None
    ) -> None:
        self.written = ""
        self.master, self.slave = pty.openpty()
        self.resize(*size, tell=False)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", TAKE, TOOL, "watch", "--interval", "1s", *argv],
            cwd=workspace.path,
            env=workspace.environ({"TERM": "xterm-256color"} | (env or {})),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def resize(self, lines: int, columns: int, *, tell: bool = True) -> None:
        size = lines.to_bytes(2, sys.byteorder) + columns.to_bytes(2, sys.byteorder) + bytes(4)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.written += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                pass

    def frame(self) -> str:
        """The last whole frame, without its colours."""
        frames = [part for part in self.written.split("\x1b[H")[1:] if "\x1b[J" in part]
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", frames[-1].split("\x1b[J")[0]) if frames else ""

    def until(self, words: str, *, gone: bool = False) -> str:
        """The frame in which ``words`` are seen, or no longer."""
        deadline = time.monotonic() + 30
        while (words in self.frame()) == gone or not self.frame():
            assert time.monotonic() < deadline, (words, self.written[-3000:])
            assert self.process.poll() is None, self.written
            self.read(0.1)
        return self.frame()

    def end(self) -> int:
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.written[-3000:]
            self.read(0.02)
        while select.select([self.master], [], [], 0)[0]:
            before = len(self.written)
            self.read(0)
            if len(self.written) == before:
                break
        return self.process.returncode

    def check_left_as_it_was(self) -> None:
        assert self.written.count(SHOW) == self.written.count(HIDE) > 0
        assert self.written.rindex(HIDE) > self.written.rindex(SHOW)
        assert self.written.rindex("\x1b[?25h") > self.written.rindex("\x1b[?25l")
        assert termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for fd in (self.master, self.slave):
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def watched(workspace: Workspace) -> Iterator[Callable[..., Watched]]:
    opened: list[Watched] = []

    def open(*argv: str, **more: Any) -> Watched:
        opened.append(Watched(workspace, *argv, **more))
        return opened[-1]

    yield open
    for one in opened:
        one.close()


def begin(workspace: Workspace, id: str = "deploy", *, owner: str = "ann") -> None:
    pid = str(os.getpid())
    assert workspace.tool("start", id, "--steps", "fetch,build,publish", "--owner", owner, "--owner-pid", pid).code == 0
    assert workspace.tool("update", id, "--complete", "fetch", "--begin", "build", "--owner", owner).code == 0


def abandon(workspace: Workspace, id: str = "nightly") -> None:
    script = f'"$TOOL" start {id} --steps a,b --owner-pid $$ --owner bob && "$TOOL" update {id} --begin a --owner bob'
    assert workspace.run("sh", "-c", script, env={"TOOL": TOOL}).code == 0


def test_it_shows_what_moves(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    abandon(workspace)
    screen = watched()
    frame = screen.until("nightly")
    deploy = next(line for line in frame.splitlines() if line.startswith("deploy"))
    assert re.search(r"in_progress .*\u2501.* 1/3 +build +alive \(ann\) +\d+s ago", deploy)
    nightly = next(line for line in frame.splitlines() if line.startswith("nightly"))
    assert re.search(r" 0/2 +a +a +dead \(bob\)", nightly)
    assert "2 unfinished" in frame
    workspace.tool("update", "deploy", "--complete", "build", "--owner", "ann")
    screen.until("2/3")
    workspace.tool("cancel", "nightly", "--reason", "enough")
    screen.until("nightly", gone=True)
    os.write(screen.master, b"x")
    os.write(screen.master, b"q")
    assert screen.end() == 0
    screen.check_left_as_it_was()
    assert "Traceback" not in screen.written


def test_it_changes_nothing_on_disk(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    before = workspace.snapshot()
    screen = watched()
    screen.until("deploy")
    os.write(screen.master, b"q")
    assert screen.end() == 0
    assert workspace.snapshot() == before


@pytest.mark.parametrize("how", ["q", "key", "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_however_it_ends_the_terminal_is_as_it_was(how: str, workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    screen = watched()
    screen.until("deploy")
    assert termios.tcgetattr(screen.slave) != screen.before
    if how in ("q", "key"):
        os.write(screen.master, b"q" if how == "q" else b"\x03")
    else:
        screen.process.send_signal(getattr(signal, how))
    expected = 0 if how in ("q", "key", "SIGINT") else -getattr(signal, how)
    assert screen.end() == expected
    screen.check_left_as_it_was()


def test_it_ends_when_the_terminal_closes(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    screen = watched()
    screen.until("deploy")
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.process.wait(20) == -signal.SIGHUP


def test_it_ends_when_the_terminal_closes_under_nohup(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        screen = watched()
    finally:
        signal.signal(signal.SIGHUP, before)
    screen.until("deploy")
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.process.wait(20) == -signal.SIGHUP, "nothing can be seen or typed any more"


def test_it_can_be_stopped_and_goes_on(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    screen = watched()
    screen.until("deploy")
    screen.process.send_signal(signal.SIGTSTP)
    deadline = time.monotonic() + 20
    while os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < deadline
        screen.read(0.02)
    screen.read(0.1)
    screen.check_left_as_it_was()
    screen.process.send_signal(signal.SIGCONT)
    while screen.written.count(SHOW) < 2:
        assert time.monotonic() < deadline
        screen.read(0.1)
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 0
    screen.check_left_as_it_was()


@pytest.mark.parametrize("size", [(30, 200), (24, 80), (12, 40), (5, 20), (2, 8), (1, 1)])
def test_it_fits_into_any_terminal(size: tuple[int, int], workspace: Workspace, watched: Callable[..., Watched]) -> None:
    for number in range(12):
        begin(workspace, f"a-rather-long-name-of-a-workflow-{number}", owner="somebody@a-host-with-a-long-name:4711")
    (workspace.store / "torn.json").write_text("{")
    screen = watched(size=size)
    screen.until("12"[: size[1] - 1] if size[1] > 2 else "")
    lines = screen.frame().split("\r\n")
    assert len(lines) <= size[0]
    assert max(map(len, lines)) <= size[1]
    if size[0] > 10:
        assert "more below" in screen.frame() or "torn  damaged" in screen.frame()
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 0


def test_it_follows_the_size_of_the_terminal(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    screen = watched("--interval", "1h")
    assert "IN DOUBT" in screen.until("deploy")
    screen.resize(12, 40)
    frame = screen.until("IN DOUBT", gone=True)
    assert "next: build" in frame
    assert max(map(len, frame.split("\r\n"))) <= 40
    screen.resize(30, 140)
    screen.until("IN DOUBT")


def test_a_damaged_file_is_a_row(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    screen = watched()
    screen.until("deploy")
    (workspace.store / "torn.json").write_text('{"a":')
    frame = screen.until("torn.json")
    assert "torn  damaged" in frame
    assert "1 unfinished, 1 damaged" in frame
    assert "deploy" in frame
    assert workspace.tool("cancel", "deploy", "--reason", "enough").code == 0
    assert "torn  damaged" in screen.until("0 unfinished, 1 damaged")


def test_it_waits_for_a_store(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    screen = watched()
    assert "waiting for it" in screen.until("there is no store at memory/checkpoints")
    begin(workspace)
    assert "waiting" not in screen.until("deploy")
    workspace.store.rename(workspace.path / "away")
    screen.until("waiting for it")
    begin(workspace, "another")
    screen.until("another")


def test_looking_again_and_again_opens_no_more_files(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    screen = watched()
    counts = []
    for done in ("1/3", "2/3", "3/3"):
        screen.until(done)
        counts.append(len(os.listdir(f"/proc/{screen.process.pid}/fd")) if sys.platform == "linux" else 0)
        for step in ("build", "publish")[int(done[0]) - 1 :][:1]:
            assert workspace.tool("update", "deploy", "--complete", step, "--owner", "ann").code == 0
    assert len(set(counts)) == 1


def test_all_and_workflow(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    begin(workspace)
    begin(workspace, "other")
    workspace.tool("cancel", "deploy", "--reason", "enough")
    assert "deploy" not in watched().until("other")
    assert "other" not in watched("--all", "--workflow", "deploy").until("cancelled")


def test_what_comes_from_a_record_is_neither_markup_nor_a_command_to_the_terminal(
    workspace: Workspace, watched: Callable[..., Watched]
) -> None:
    begin(workspace, owner="[red]x[/red]\x1b]0;title\x07\u202e")
    screen = watched()
    frame = screen.until("deploy")
    assert "alive ([red]x[/red]\\x1b]0;title\\x07\\u202e)" in frame
    assert "\x1b]0;" not in screen.written
    assert "\u202e" not in screen.written


def test_without_a_terminal_it_names_list(workspace: Workspace, watched: Callable[..., Watched]) -> None:
    done = workspace.tool("watch")
    assert (done.code, done.out) == (2, "")
    assert "checkpoint-tool list" in done.err
    screen = watched(env={"TERM": "dumb"})
    assert screen.end() == 2
    assert "checkpoint-tool list" in screen.written
    assert SHOW not in screen.written


@pytest.mark.parametrize("interval", ["0s", "2", "soon", "25h", ""])
def test_an_interval_that_is_none(interval: str, workspace: Workspace) -> None:
    done = workspace.tool("watch", "--json", "--interval", interval)
    assert (done.code, done.out) == (2, "")


@contextmanager
def streaming(workspace: Workspace, *argv: str) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        [TOOL, "watch", "--json", "--interval", "1s", *argv],
        cwd=workspace.path,
        env=workspace.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_snapshots_for_programs(workspace: Workspace) -> None:
    with streaming(workspace) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["checkpoints"], first["error"]["name"], first["store"]) == ([], "NotFound", "memory/checkpoints")
        begin(workspace)
        (workspace.store / "torn.json").write_text("{")
        while not (snapshot := json.loads(process.stdout.readline()))["checkpoints"] or len(snapshot["checkpoints"]) < 2:
            pass
        assert snapshot["error"] is None
        assert snapshot["checkpoints"] == workspace.tool("list", "--json").lines
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", snapshot["at"])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_reader_that_goes_away_ends_it(workspace: Workspace) -> None:
    begin(workspace)
    with streaming(workspace, "--interval", "1h") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_full_disk_is_said(workspace: Workspace) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [TOOL, "watch", "--json"],
            cwd=workspace.path,
            env=workspace.environ(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
        )
    assert done.returncode == 22
    assert b"NotReported" in done.stderr
