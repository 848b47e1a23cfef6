"""What all tests share: the installed commands in a workspace of their own, and skips that CI turns into failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import proof
import pytest
from hypothesis import settings

# The same examples at each run: a red CI must be about the change. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Started in the background or under nohup, all that the tests start would ignore these too.
for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, signal.default_int_handler if ignored is signal.SIGINT else signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
TOOL = str(BIN / "checkpoint-tool")
SELFCHECK = str(BIN / "checkpoint-selfcheck")


class Result(NamedTuple):
    """One finished process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Workspace:
    """A folder with a store in it, and the commands run there as a user would run them.

    Every call is a new process with an environment free of CHECKPOINT_* but for what is given. That a first call
    makes a store is taken out of its messages, or each test would have to expect it (``told_of_stores``).
    """

    told_of_stores = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "memory" / "checkpoints"

    def run(
        self, *argv: str | bytes, env: dict[str, str] | None = None, input: str | bytes | None = None, timeout: float = 60
    ) -> Result:
        """A command; ``argv[0]`` may be any program. ``env``: added to the environment."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            argv, cwd=self.path, env=self.environ(env), input=data, capture_output=True, timeout=timeout, check=False
        )
        messages = done.stderr.decode()
        if not self.told_of_stores:
            messages = re.sub(r"(?m)^checkpoint-tool: made a new store: .*\n", "", messages)
        return Result(done.returncode, done.stdout.decode(), messages)

    def tool(self, *argv: str | bytes, **more: Any) -> Result:
        """checkpoint-tool with these arguments."""
        return self.run(TOOL, *argv, **more)

    def selfcheck(self, *argv: str, **more: Any) -> Result:
        """checkpoint-selfcheck with these arguments."""
        return self.run(SELFCHECK, *argv, **more)

    def environ(self, more: dict[str, str] | None = None) -> dict[str, str]:
        # Workers of xdist are told a size of a terminal that they do not have.
        size = ("COLUMNS", "LINES")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_") and name not in size}
        return clean | {"CHECKPOINT_OWNER": "tester"} | (more or {})

    def file(self, id: str = "deploy") -> Path:
        return self.store / f"{id}.json"

    def record(self, id: str = "deploy") -> Any:
        """The unfinished record of ``id`` as it stands on disk."""
        return json.loads(self.file(id).read_text())

    def snapshot(self) -> dict[str, bytes | str | None]:
        """Everything below the workspace but the lock files and the store's .gitignore: to show that nothing was changed."""
        found: dict[str, bytes | str | None] = {}
        for path in sorted(self.path.rglob("*")):
            if ".locks" in path.parts or path.name == ".gitignore":
                continue
            name = str(path.relative_to(self.path))
            found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        return found

    def temporaries(self) -> list[str]:
        return sorted(path.name for path in self.store.rglob(".*.tmp")) if self.store.exists() else []


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    return lambda: Workspace(tmp_path_factory.mktemp("workspace"))


def lacking(reason: str) -> None:
    """Skip for want of a component of the machine; where everything is required (CI), fail instead."""
    if os.environ.get("CHECKPOINT_TEST_REQUIRE") == "all":
        pytest.fail(f"required here: {reason}")
    pytest.skip(reason)


def unable(reason: str) -> None:
    """Skip for want of what no package can give, such as namespaces of its own in a container: also where all else is
    required."""
    pytest.skip(reason)


def need_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        lacking(f"{name} is not installed")
        raise AssertionError
    return path


def need_root() -> None:
    if os.geteuid() != 0:
        lacking("needs root")


def powerless() -> tuple[str, ...]:
    """What to put before a command so that permissions count for it: root keeps its name and loses its powers.

    Not another user: that one could not enter a checkout, or run a Python, that stands in root's own folder.
    """
    if os.geteuid() != 0:
        return ()
    return (need_program("setpriv"), "--bounding-set=-all", "--inh-caps=-all")


# --- the proof: what all methods tried, added up (see proof.py) --------------------------------------------------------

_BEGAN = time.monotonic()
_took: dict[str, float] = {}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the workers of xdist add to the file of the process that started them
        tally = Path(tempfile.mkdtemp(prefix="proof-"), "tally")
        tally.touch()
        os.environ[proof.TALLY] = str(tally)
        for number in (signal.SIGTERM, signal.SIGHUP):  # as after Ctrl-C: what was tried is told, and nothing is left
            signal.signal(number, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With methods named (scripts/prove does that) only their tests: those marked with them."""
    wanted = set(filter(None, os.environ.get("CHECKPOINT_PROVE_METHODS", "").split(",")))
    if wanted:
        items[:] = [item for item in items if any(wanted & set(mark.args) for mark in item.iter_markers("proof"))]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _took[report.nodeid] = _took.get(report.nodeid, 0) + report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    tally = Path(os.environ.pop(proof.TALLY))
    methods = os.environ.get("CHECKPOINT_PROVE_METHODS", "").split(",")
    chosen = [name for name in proof.METHODS if name in methods or methods == [""]]
    summary, low = proof.table(proof.lines(tally), _took, chosen)
    shutil.rmtree(tally.parent, ignore_errors=True)  # with what a worker that was ended has left there
    session.config.stash[_PROOF] = summary, low
    if low and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_PROOF = pytest.StashKey[tuple[str, list[str]]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    summary, low = config.stash.get(_PROOF, ("", []))
    if summary.count("\n") > 1:
        terminalreporter.section("proof")
        terminalreporter.write_line(summary)
    if low:
        terminalreporter.write_line(f"\nbelow the floor: {', '.join(low)}", red=True)
    chosen = os.environ.get("CHECKPOINT_PROVE_METHODS")
    if chosen:
        minutes = (time.monotonic() - _BEGAN) / 60
        words = f"{len(chosen.split(','))} of {len(proof.METHODS)} methods in {minutes:.0f} min on {os.cpu_count()} cores"
        terminalreporter.write_line(f"{words}: {'NOT proven' if exitstatus else 'proven'}")
