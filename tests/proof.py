"""What is done to break the promises of docs/guarantees.md: the methods, how much each must try, and how much it tried.

A test says ``tried("kill", points)`` for what it has tried; the table at the end of a test run adds that up over all
tests. ``CHECKPOINT_PROVE`` says how far to go, and that a method which tried less than its floor is a failure:
``bounded`` in CI, ``whole`` by scripts/prove. Without it the tests do the bounded part and no floor is held.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

WHOLE = os.environ.get("CHECKPOINT_PROVE") == "whole"

# Where each test adds its lines: one file for all processes of a test run, named by conftest.
TALLY = "CHECKPOINT_PROOF_TALLY"


class Method(NamedTuple):
    """``bounded``, ``whole``: the least number of points that a run of that size must try."""

    what: str
    bounded: int
    whole: int


METHODS = {
    "kill": Method("SIGKILL before a system call, of a verb, of `run`, of the self-check", 260, 1_000),
    "double kill": Method("killed, tried again and killed again, tried again", 40, 5_000),
    "error": Method("a system call answered with an error", 600, 10_000),
    "limit": Method("a file system that is full, read-only or without inodes; RLIMIT_FSIZE, RLIMIT_NOFILE", 5, 10),
    "crash state": Method("states that a power cut may leave by POSIX, enumerated", 600, 3_300),
    "ext4 ordered": Method("killed, then the power cut, on a real ext4 data=ordered", 1, 500),
    "ext4 writeback": Method("the same with data=writeback", 1, 500),
    "ext4 fast-commit": Method("the same with fast commits", 1, 500),
    "xfs": Method("the same on XFS", 1, 500),
    "schedule": Method("one verb stopped at a system call while another runs to its end", 100, 4_000),
    "claim": Method("rounds of 32 processes that claim one checkpoint, half of them killed", 10, 200),
    "update": Method("updates of one checkpoint by 16 processes at once", 320, 3_200),
    "hand-over": Method("owners killed while another waits for what they hold", 10, 200),
    "state machine": Method("calls of owners that die, come back late, rob and are robbed", 15_000, 100_000),
    "loader": Method("damaged, cut, flipped or invented records read", 50_000, 5_000_000),
    "session": Method("messages to a session, whole, broken or invented", 2_000, 50_000),
    "cron": Method("cron expressions, made up or broken", 2_000, 100_000),
    "hostile": Method("things planted in a store, or in what names a file", 40, 40),
    "credential": Method("made-up credentials, looked for in all that is written", 200, 200),
    "mutant": Method("planted bugs, each caught by the method named for it", 3, 20),
}


class Line(NamedTuple):
    method: str
    points: int
    failures: int
    test: str
    figure: str


def tried(method: str, points: int, failures: int = 0, figure: str = "") -> None:
    """Note that ``points`` were tried, of which ``failures`` broke a promise. The test fails by itself for those.

    ``figure``: what was measured on the way, for a line below the table.
    """
    assert method in METHODS, method
    tally = os.environ.get(TALLY)
    if tally:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        line = json.dumps(Line(method, points, failures, test, figure)._asdict()) + "\n"
        fd = os.open(tally, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line.encode())
        os.close(fd)


def scratch() -> str | None:
    """A folder that goes when the test run ends, however its workers do; None: that of all temporary files."""
    tally = os.environ.get(TALLY)
    return os.path.dirname(tally) if tally else None


def lines(tally: Path) -> list[Line]:
    return [Line(**json.loads(line)) for line in tally.read_text().splitlines()]


def floor(method: str) -> int | None:
    size = os.environ.get("CHECKPOINT_PROVE")
    return None if size is None else getattr(METHODS[method], size)


def table(tallied: Iterable[Line], seconds: Mapping[str, float], methods: Collection[str]) -> tuple[str, list[str]]:
    """(the summary in Markdown, the methods below their floor). ``seconds``: how long each test took."""
    rows = ["| method | what is done | tried | floor | failures | s |", "|---|---|---:|---:|---:|---:|"]
    low = []
    tallied = list(tallied)
    for name in methods:
        mine = [line for line in tallied if line.method == name]
        points = sum(line.points for line in mine)
        least = floor(name)
        if not mine and not least:
            continue
        if least is not None and points < least:
            low.append(name)
        failures = sum(line.failures for line in mine)
        took = sum(seconds.get(test, 0) for test in {line.test for line in mine})
        least_text = "" if least is None else f"{least:,}" + (" **below**" if name in low else "")
        rows.append(f"| {name} | {METHODS[name].what} | {points:,} | {least_text} | {failures} | {took:.0f} |")
    figures = sorted(f"\n{line.method}: {line.figure}" for line in tallied if line.figure and line.method in methods)
    return "\n".join(rows) + "".join(figures), low
