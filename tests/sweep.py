"""Runs a verb under strace: every system call it makes on the store, and the same verb killed or failed at each of them.

One run is recorded; then, for each call on the store, one run is disturbed at exactly that call. strace counts calls per
name from the start of the process, so a point is (name, k), and the counts must not wander: PYTHONHASHSEED=0, no address
randomisation, and a copy of the program with byte code of its own, complete before the first count and not written to
after it (a module that another process compiles meanwhile takes fewer calls to import). Each disturbed run is held
against the record: the call that was hit must be the one that was meant.
"""

import atexit
import functools
import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conftest import ROOT, TOOL, lacking, need_program
from lean import OWNER, Ended, adopted
from proof import scratch

# Code that follows may come first, to plant a bug.
LEAN = """
import sys, lean
lean.main(*sys.argv[1:])
"""

# What the store's protocol is made of. Where a C library has two names for one call, both.
_WRITING = "openat mkdir mkdirat write pwrite64 fsync fdatasync rename renameat renameat2 unlink unlinkat fchmod flock close"
_OTHERS = "open link linkat fchmodat fcntl getdents64 newfstatat fstat stat lstat statx read pread64 lseek ftruncate"
WRITE_SIDE = frozenset(_WRITING.split())
NAMES = WRITE_SIDE | frozenset(_OTHERS.split()) | {"connect", "sendto", "recvfrom"}

_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)")
_FD = re.compile(r"(AT_FDCWD|\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Call(NamedTuple):
    """One system call. ``nth``: how many of that name the process had made, with this one. ``paths``: absolute."""

    name: str
    nth: int
    arguments: str
    result: int | None
    paths: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.result is not None and self.result >= 0

    @property
    def path(self) -> str:
        return self.paths[0] if self.paths else ""

    def __str__(self) -> str:
        return f"{self.name}#{self.nth}({self.arguments[:160]})"


@functools.cache
def tracer() -> tuple[str, ...]:
    """The command that strace runs under; skips where a process may not be traced."""
    need_program("strace")
    need_program("setarch")
    command = ("setarch", "-R", "strace", "-f", "-qq")
    probe = subprocess.run(
        [*command, "-o", os.devnull, "-e", "inject=getppid:error=EIO:when=1", "true"], capture_output=True, check=False
    )
    if probe.returncode != 0:
        lacking(f"strace cannot trace here: {probe.stderr.decode(errors='replace').strip()[:200]}")
    return command


@functools.cache
def _frozen() -> Path:
    """A copy of the program: somebody at work in the checkout while the sweep runs would change the counts."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-", dir=scratch()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for part in ("checkpoint", "schemas"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("lean.py"), folder)
    return folder


def environ(*, compile: bool = False) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "PYTHON"))}
    more = {
        "CHECKPOINT_OWNER": OWNER,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([str(_frozen()), *site.getsitepackages()]),
        "PYTHONPYCACHEPREFIX": str(_frozen() / "cache"),
    }
    return clean | more | ({} if compile else {"PYTHONDONTWRITEBYTECODE": "1"})


def lean(verb: str, store: Path, *more: str, prelude: str = "") -> list[str]:
    """A verb through the Python API. ``prelude``: code that runs first, to plant a bug."""
    return [sys.executable, "-S", "-c", prelude + LEAN, verb, str(store), *more]


def command_line(*arguments: str, store: Path) -> list[str]:
    """A verb through the installed program."""
    return [sys.executable, TOOL, *arguments, "--store", str(store)]


def run(argv: Sequence[str], cwd: Path, *, compile: bool = False) -> Ended:
    """Undisturbed. ``compile``: leave byte code behind for all that is imported; once, before anything is counted."""
    return _run(argv, cwd, environ(compile=compile))


def record(argv: Sequence[str], cwd: Path, *, forks: bool = True) -> tuple[Ended, list[Call]]:
    """Run to the end; all calls of the names above, in order. ``forks``: it may fork; else it finds that it cannot."""
    return _traced([], sorted(NAMES), argv, cwd, forks=forks)


def killed_at(call: Call, argv: Sequence[str], cwd: Path, *, forks: bool = True) -> Ended:
    """The same, killed as it enters ``call``. Not with --seccomp-bpf: there strace 6 drops the signal."""
    at = f"inject={call.name}:signal=SIGKILL:when={call.nth}"
    ended, calls = _traced(["-e", at], [call.name], argv, cwd, forks=forks)
    assert ended.killed, f"{call} was not hit: {ended}"
    _check_hit(call, calls)
    assert len(calls) == call.nth, f"{call} was not the last: {[str(one) for one in calls[call.nth - 1 :]]}"
    return ended


def failed_at(call: Call, error: str, argv: Sequence[str], cwd: Path) -> Ended:
    """The same, with ``call`` not made but answered with ``error``."""
    at = f"inject={call.name}:error={error}:when={call.nth}"
    ended, calls = _traced(["--seccomp-bpf", "-e", at], [call.name], argv, cwd)
    _check_hit(call, calls)
    return ended


_FORKS = ("clone", "fork", "vfork")


def _traced(
    options: Sequence[str], names: Sequence[str], argv: Sequence[str], cwd: Path, *, forks: bool = True
) -> tuple[Ended, list[Call]]:
    log = cwd.parent / f"{cwd.name}.strace"
    trace = "trace=" + ",".join(f"?{name}" for name in [*names, *([] if forks else _FORKS)])
    # Whole strings: a path that is cut short would not be recognised. Descriptors come with the path behind them.
    # strace counts for each process and thread: another one would be killed at its own call of that number.
    alone = [word for word in tracer() if word != "-f"] + ["-e", f"inject={','.join(_FORKS)}:error=EAGAIN"]
    command = tracer() if forks else alone
    ended = _run([*command, "-y", "-s", "4096", "-e", trace, *options, "-o", str(log), *argv], cwd, environ())
    counts: Counter[str] = Counter()
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, arguments, result, _ = match.groups()
        if name not in names:
            continue  # one that was refused
        counts[name] += 1
        number = int(result, 0) if result != "?" else None
        calls.append(Call(name, counts[name], arguments, number, _paths(name, arguments, cwd)))
    return ended, calls


def _check_hit(meant: Call, calls: Sequence[Call]) -> None:
    hit = calls[meant.nth - 1] if len(calls) >= meant.nth else None
    lot = re.compile(r"[0-9a-f]{12}\.tmp|[0-9a-f]{8}-[0-9a-f-]{27}|\[\d+\]|bad-\d+")
    assert hit is not None, f"{meant} was not reached"
    assert [lot.sub("*", path) for path in hit.paths] == [lot.sub("*", path) for path in meant.paths], (
        f"the counts wander: meant {meant}, hit {hit}"
    )


def points(calls: Sequence[Call], workspace: Path, *, answer: bool = True) -> list[Call]:
    """Those from the first touch of the store on that touch the workspace, and with ``answer`` those on stdout."""
    below = str(workspace)
    store = str(workspace / "memory")
    first = next((index for index, call in enumerate(calls) if any(path.startswith(store) for path in call.paths)), None)
    assert first is not None, "no call names the store: nothing would be swept"
    return [
        call
        for call in calls[first:]
        if any(path == below or path.startswith(below + "/") for path in call.paths) or (answer and is_answer(call))
    ]


def is_answer(call: Call) -> bool:
    return call.name == "write" and call.arguments.startswith("1<")


# --- the store, seen from outside ------------------------------------------------------------------------------------


def files(store: Path) -> dict[str, bytes]:
    """Every file in the store but the lock files and what tells git to leave it alone, by its place."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".locks" not in path.relative_to(store).parts and path.name != ".gitignore"
    }


def records(store: Path) -> dict[str, dict[str, Any]]:
    """Every record by its place; fails for a torn one. Temporary files are no records."""
    found = {}
    for place, raw in files(store).items():
        if place.endswith(".json"):
            assert raw, f"{place} is empty: torn"
            found[place] = json.loads(raw)
            # The digest as the documentation tells to compute it, not by the code that is under test.
            bare = {name: value for name, value in found[place].items() if name != "digest"}
            canonical = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
            assert hashlib.sha256(canonical.encode()).hexdigest() == found[place]["digest"], f"{place} is torn: wrong digest"
    return found


def temporaries(store: Path) -> list[str]:
    return [str(path.relative_to(store)) for path in store.rglob("*.tmp")] if store.exists() else []


def essence(state: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What two runs of the same verb must agree on: not the clock, nor what is drawn by lot."""
    return {re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "RUN", place): _timeless(record) for place, record in state.items()}


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: (inner is not None) if name.endswith("_at") or name == "at" else _timeless(inner)
            for name, inner in value.items()
            if name not in ("digest", "run_id", "boot_id", "pid", "pid_started", "duration_ms")
        }
    if isinstance(value, str):
        return _MOMENT.sub("TIME", value)
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def copy(template: Path, target: Path) -> Path:
    """A workspace like ``template``, made anew at ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(template, target)
    return adopted(target / "memory" / "checkpoints")


# --- the protocol ------------------------------------------------------------------------------------------------


def violations(calls: Sequence[Call], store: Path, id: str = "deploy") -> list[str]:
    """Where a recorded run breaks the write protocol, one line each, beginning with the clause's name.

    ``calls`` in the order in which they were made; the answer is the first write to stdout.
    """
    top = str(store)
    unfinished = f"{top}/{id}.json"
    lock = f"{top}/.locks/{id}.lock"
    done = f"{top}/done"
    found: list[str] = []
    dirty: dict[str, int] = {}  # file -> index of its last write that no fsync followed
    unsynced: dict[str, str] = {}  # folder -> the entry in it that no fsync of the folder followed
    synced: set[str] = set()
    moved = False
    holding = False
    answered = False

    def below(path: str) -> bool:
        return path == top or path.startswith(top + "/")

    def is_record(path: str) -> bool:
        return below(path) and path.endswith(".json")

    for index, call in enumerate(calls):
        if not call.ok:
            continue
        if is_answer(call):
            if not answered:
                found += [f"file-fsync: {path} is not fsynced when the answer is given" for path in dirty if is_record(path)]
                found += [
                    f"dir-fsync: {folder} is not fsynced when the answer is given (for {entry})"
                    for folder, entry in unsynced.items()
                ]
                if os.path.dirname(top) not in synced:
                    found.append("parent-fsync: the folder above the store is not fsynced when the answer is given")
                if not moved and not any(is_record(path) and os.path.dirname(path) in synced for path in synced):
                    found.append("ack-fsync: an answer from a record that is not fsynced, file and folder")
            answered = True
            continue
        path = call.path
        if call.name == "flock" and path == lock and "LOCK_UN" not in call.arguments:
            holding = True
        elif call.name in ("close", "flock") and path == lock:
            holding = False
        elif call.name == "openat":
            writable = re.search(r"\bO_(WRONLY|RDWR|TRUNC|APPEND)\b", call.arguments)
            if writable and is_record(path):
                found.append(f"in-place: {path} is opened for writing")
            if "O_CREAT" in call.arguments and below(path) and path.endswith(".tmp"):
                dirty[path] = index
                if not holding:
                    found.append(f"lock: {path} is made without the update lock")
        elif call.name in ("write", "pwrite64", "ftruncate") and below(path):
            if path != lock:
                dirty[path] = index
            if not holding:
                found.append(f"lock: {path} is written without the update lock")
            if is_record(path):
                found.append(f"in-place: {path} is written in place")
        elif call.name in ("fsync", "fdatasync"):
            dirty.pop(path, None)
            unsynced.pop(path, None)
            synced.add(path)
        elif call.name in ("mkdir", "mkdirat"):
            if "/.locks" not in path:  # what is in there may be lost
                unsynced[os.path.dirname(path)] = path
                synced.discard(os.path.dirname(path))
        elif call.name.startswith("rename"):
            source, target = call.paths[0], call.paths[1]
            if source in dirty:
                found.append(f"file-fsync: {source} is renamed before its data is fsynced")
                dirty.pop(source)
            if not holding:
                found.append(f"lock: {target} is renamed without the update lock")
            if lock in (source, target):
                found.append("lock-file: the lock file is renamed")
            moved = True
            unsynced[os.path.dirname(target)] = target
            synced.discard(os.path.dirname(target))
            if source in synced:
                synced.add(target)
        elif call.name.startswith("unlink"):
            if path.endswith(".lock"):
                found.append(f"lock-file: {path} is unlinked")
            if path == unfinished:
                kept = [file for file in synced if file.startswith(done + "/") and file.endswith(".json")]
                if not kept:
                    found.append("archive: the unfinished record is unlinked before the one below done/ is fsynced")
                for file in kept:
                    folder = os.path.dirname(file)
                    while below(folder):
                        if folder not in synced:
                            found.append(f"archive: {folder} is not fsynced when the unfinished record is unlinked")
                        folder = os.path.dirname(folder)
            if below(path) and path.endswith(".json"):
                unsynced[os.path.dirname(path)] = f"the removal of {path}"
    if not answered:
        found.append("answer: none was given")
    return found


def _paths(name: str, arguments: str, cwd: Path) -> tuple[str, ...]:
    """The paths that a call names: a descriptor's own, or joined with the name that follows it."""
    if name in (
        "connect",
        "sendto",
        "recvfrom",
        "read",
        "pread64",
        "write",
        "pwrite64",
        "getdents64",
        "fsync",
        "fdatasync",
        "close",
        "flock",
        "fchmod",
    ):
        match = _FD.match(arguments)
        return (match[2],) if match else ()
    found = []
    base = str(cwd)
    position = 0
    pending = False
    while position < len(arguments):
        descriptor = _FD.match(arguments, position)
        text = None if descriptor else _TEXT.match(arguments, position)
        if descriptor:
            base, pending = descriptor[2], True
            position = descriptor.end()
        elif text:
            found.append(os.path.normpath(os.path.join(base, text[1])))
            base, pending = str(cwd), False
            position = text.end()
        else:
            position += 1
    return tuple(found) or ((base,) if pending else ())


def _run(argv: Sequence[str], cwd: Path, env: dict[str, str]) -> Ended:
    done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
