"""How scripts/bench measures: processes by their user+system time, steps by the clock, all contestants in turn."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = ROOT / ".venv" / "bin"
PEERS = ROOT / ".venv-bench" / "bin"
SCRIPTS = Path(__file__).resolve().parent / "peers"
TOOL, SELFCHECK, PYTHON = str(BIN / "checkpoint-tool"), str(BIN / "checkpoint-selfcheck"), str(BIN / "python")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "PYTHON"))} | {
    "CHECKPOINT_OWNER": "bench"
}


class Row(NamedTuple):
    """One line of a table, and one mark of a plot.

    ``against``: what the samples are divided by; without it the measure itself is the result. ``axis``: the panel of the
    plot, "" for none. ``series`` and ``size``: the line that it is a point of. ``extremes``: the spread is from the least
    to the most, where a single one counts.
    """

    what: str
    samples: Sequence[float]
    against: Sequence[float] = ()
    unit: str = "ms"
    budget: float | None = None
    note: str = ""
    axis: str = ""
    series: str = ""
    size: int = 0
    ours: bool = False
    extremes: bool = False

    @property
    def base(self) -> float:
        return statistics.median(self.against) if self.against else 1.0

    @property
    def measured(self) -> tuple[float, float, float]:
        """(low, median, high) in the unit: quartiles, or with ``extremes`` the least and the most."""
        middle = statistics.median(self.samples)
        if self.extremes or len(self.samples) < 2:
            return min(self.samples), middle, max(self.samples)
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, middle, high

    @property
    def result(self) -> tuple[float, float, float]:
        """The same as a multiple of what it is held against."""
        low, middle, high = self.measured
        return low / self.base, middle / self.base, high / self.base

    @property
    def over(self) -> bool:
        return self.budget is not None and self.result[1] > self.budget


class Group(NamedTuple):
    """One table and one plot."""

    name: str
    title: str
    text: str
    rows: Sequence[Row]
    left_out: Sequence[str] = ()


class Bench(NamedTuple):
    """What is to be measured, how thoroughly, and where. ``peers``: versions of the peers that are there."""

    place: Path
    rounds: int
    receipts: int
    unfinished: int
    quick: bool
    peers: Mapping[str, str]

    def lacking(self, peer: str, package: str) -> list[str]:
        return [] if package in self.peers else [f"{peer} is left out: it is not installed (`scripts/bench --peers`)"]

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place))


def cpu(*command: str, folder: Path | None = None) -> float:
    """User+system milliseconds of one process and of those that it waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int, burst: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(milliseconds of each step, what each says of itself) of programs that speak as peers/turns.py, A B C A B C ...

    Each is set up before the first step of any is measured, and waits while another is at work.
    """
    taken: dict[str, list[float]] = {name: [] for name in commands}
    running = {
        name: subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    try:
        facts = {name: _line(name, process) for name, process in running.items()}
        for name, fact in facts.items():
            if fact and "synchronous=2" not in fact:
                raise RuntimeError(f"{name} is not durable: {fact}")
        for number in range(rounds + 1):
            for name, process in running.items():
                assert process.stdin is not None
                process.stdin.write(f"{burst}\n")
                process.stdin.flush()
                seconds = json.loads(_line(name, process))
                if number:  # the first round fills caches
                    taken[name] += [second * 1000 for second in seconds]
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return taken, facts


def _line(name: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with {process.wait()}")
    return line.strip()


def peer_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the peers that the environment of scripts/bench --peers holds."""
    if not (PEERS / "python").exists():
        return {}
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions() if d.metadata['Name'] in sys.argv[1:]}))"
    )
    command = [str(PEERS / "python"), "-c", code, *packages]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(found.stdout)
    return versions


def install_peers() -> None:
    """In an environment of their own: what they draw in is no part of the house, and slows no start-up of it."""
    home = PEERS.parent
    if not (PEERS / "python").exists():
        subprocess.run([sys.executable, "-I", "-m", "venv", str(home)], check=True)
    (home / ".gitignore").write_text("*\n")
    pip = [str(PEERS / "python"), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--editable", f"{ROOT}[bench]"], check=True)


def file_system(place: Path) -> str:
    """As df calls it, or "unknown" where this df has no such answer."""
    found = subprocess.run(["df", "--output=fstype", str(place)], capture_output=True, text=True, check=False)
    return found.stdout.split()[-1] if found.stdout else "unknown"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)
