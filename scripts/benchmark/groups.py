"""The groups of scripts/bench: for each, the same work by the house and by its peers, in turn."""

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from checkpoint import Checkpoints, codec
from checkpoint.store import utc_now
from scripts.benchmark.measure import ENVIRONMENT, PEERS, PYTHON, SCRIPTS, SELFCHECK, TOOL, Bench, Group, Row, cpu, in_turn

PROCESSES = 32
MEASURE_MEMORY = """
import resource, sys
import checkpoint.selfcheck
checkpoint.selfcheck.main(["--store", sys.argv[1], "--json"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
READ_ALL = "import json, pathlib, sys\nfor path in pathlib.Path(sys.argv[1]).glob('*.json'): json.loads(path.read_bytes())"
TIMED = """
set -eu
place=$1 steps=$2 tool=$3
before() { :; }
after() { :; }
%s
before
began=$EPOCHREALTIME
for ((n = 0; n < steps; n++)); do one; done
echo $((${EPOCHREALTIME/[.,]/} - ${began/[.,]/}))
after >/dev/null
"""
IN_BASH = {
    "session": """
CHECKPOINT_TOOL=$tool
before() { ckpt_start bench --store "$place"; ckpt_step first true; }
eval "$("$tool" shell-init bash)"
one() { ckpt_step "step-$n" true; }
after() { ckpt_complete; }
""",
    "run": """
before() { "$tool" start bench --store "$place" >/dev/null; }
one() { "$tool" run bench "step-$n" --store "$place" -- true; }
""",
    "sqlite3": """
db() { sqlite3 "$place.sqlite" "PRAGMA synchronous=FULL; $1"; }
before() { db "PRAGMA journal_mode=WAL; CREATE TABLE step (name TEXT PRIMARY KEY, status TEXT)" >/dev/null; }
one() {
    db "INSERT INTO step VALUES ('step-$n', 'begun')"
    true
    db "UPDATE step SET status = 'completed' WHERE name = 'step-$n'"
}
""",
    "marker": """
before() { mkdir "$place"; }
one() { [ -e "$place/step-$n" ] || { true; : >"$place/step-$n"; sync "$place/step-$n" "$place"; }; }
""",
}
STEP_BUDGET = 1.15
CONTROL = "raw protocol, measured again"
DURABLE = {
    "raw": "one file, replaced: no lock, no owner, no check of what is read",
    "sqlite": "a row per step: no owner, no plan, no fingerprint, none of it readable without sqlite3",
    "dbos": "a row at the end of the step, nothing at its begin: what was interrupted is run again unasked",
    "langgraph": "the state after the step: what was interrupted is run again unasked; one writer is taken for granted",
}


def startup(bench: Bench) -> Group:
    place, axis = bench.scratch(), "times `python -c pass`, user+system"
    store, peer = str(place / "store"), str(PEERS / "python")
    cpu(TOOL, "start", "bench", "--steps", "a,b,c", "--store", store)
    cpu(TOOL, "start", "open", "--store", store)
    forced = ("--force", "--reason", "bench", "--json", "--store", store)
    update = "INSERT OR REPLACE INTO step VALUES ('bench', 'a', 'completed')"
    ours: dict[str, Callable[[int], Sequence[str]]] = {
        "list --json": lambda _: (TOOL, "list", "--json", "--store", store),
        "start --json": lambda n: (TOOL, "start", f"bench-{n}", "--steps", "a,b,c", "--json", "--store", store),
        "update --json": lambda n: (TOOL, "update", "bench", "--note", str(n), "--json", "--store", store),
        "resume --json": lambda _: (TOOL, "resume", "bench", "--json", "--store", store),
        "complete --json": lambda n: (TOOL, "complete", f"bench-{n}", *forced),
        "begin": lambda n: (TOOL, "begin", "open", f"step-{n}", "--store", store),
        "end": lambda n: (TOOL, "end", "open", f"step-{n}", "--exit-code", "0", "--store", store),
        "run ... -- true": lambda n: (TOOL, "run", "open", f"run-{n}", "--store", store, "--", "true"),
        "checkpoint-selfcheck": lambda _: (SELFCHECK, "--store", store),
    }
    peers: dict[str, tuple[str, str, Sequence[str]]] = {
        "sqlite3 command, one row": (
            "",
            DURABLE["sqlite"],
            ("sqlite3", str(place / "bench.sqlite"), f"PRAGMA synchronous=FULL; {update}"),
        ),
        "Python with sqlite3, one row": (
            "",
            DURABLE["sqlite"],
            (PYTHON, str(SCRIPTS / "with_sqlite.py"), "once", str(place), "0"),
        ),
        "a typer app that does nothing": ("", "keeps nothing", (PYTHON, str(SCRIPTS / "typer_app.py"))),
        "doit, a no-op task": (
            "doit",
            "keeps its state at the end of the run only",
            (
                str(PEERS / "doit"),
                "-f",
                str(SCRIPTS / "dodo.py"),
                "--dir",
                str(place),
                "--db-file",
                str(place / "doit"),
                "nothing",
            ),
        ),
        "DBOS, a workflow of one step": (
            "dbos",
            DURABLE["dbos"],
            (peer, str(SCRIPTS / "with_dbos.py"), "once", str(place), "0"),
        ),
        "LangGraph, a graph of one step": (
            "langgraph-checkpoint-sqlite",
            DURABLE["langgraph"],
            (peer, str(SCRIPTS / "with_langgraph.py"), "once", str(place), "0"),
        ),
    }
    left_out = bench.lacking("doit", "doit") + bench.lacking("DBOS", "dbos")
    left_out += bench.lacking("LangGraph", "langgraph-checkpoint-sqlite")
    if shutil.which("sqlite3") is None:
        left_out.append("the sqlite3 command is left out: it is not installed (on Debian: apt install sqlite3)")
        del peers["sqlite3 command, one row"]
    peers = {name: entry for name, entry in peers.items() if not entry[0] or entry[0] in bench.peers}
    cpu(PYTHON, str(SCRIPTS / "with_sqlite.py"), "once", str(place), "0")
    nothing: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    for number in range(bench.rounds + 1):
        taken = {name: cpu(*command(number)) for name, command in ours.items()}
        taken |= {name: cpu(*command, folder=place) for name, (_, _, command) in peers.items()}
        idle = cpu(PYTHON, "-c", "pass")
        if number:  # the first round fills caches
            nothing.append(idle)
            for name, each in taken.items():
                samples[name].append(each)
    rows = [
        Row(
            name if name.startswith("checkpoint") else f"checkpoint-tool {name}",
            samples[name],
            nothing,
            budget=4 if name == "checkpoint-selfcheck" else 9,
            axis=axis,
            ours=True,
            note="with nothing stale" if name == "checkpoint-selfcheck" else "",
        )
        for name in ours
    ]
    rows += [Row(name, samples[name], nothing, axis=axis, note=note) for name, (_, note, _) in peers.items()]
    text = (
        "What one process costs from its start to its end, user+system, held against an interpreter that does nothing. "
        "The clock is not asked here: the waits for the disk are in the next group."
    )
    return Group("startup", "Start-up", text, rows, left_out)


def contestants(bench: Bench, place: Path, size: int) -> dict[str, Sequence[str]]:
    """Who can make a step in process, as commands that speak peers/turns.py."""
    peer = str(PEERS / "python")
    found: dict[str, Sequence[str]] = {
        "checkpoint": (PYTHON, str(SCRIPTS / "with_checkpoint.py"), "steps", str(place / f"ours-{size}"), str(size)),
        "sqlite3, WAL": (PYTHON, str(SCRIPTS / "with_sqlite.py"), "steps", str(place / f"wal-{size}"), str(size), "WAL"),
    }
    if "dbos" in bench.peers:
        found["DBOS"] = (peer, str(SCRIPTS / "with_dbos.py"), "steps", str(place / f"dbos-{size}"), str(size))
    if "langgraph-checkpoint-sqlite" in bench.peers:
        found["LangGraph"] = (peer, str(SCRIPTS / "with_langgraph.py"), "steps", str(place / f"langgraph-{size}"), str(size))
    return found


def step(bench: Bench) -> Group:
    place, axis = bench.scratch(), "times the raw protocol"
    commands: dict[str, Sequence[str]] = {
        "raw": (PYTHON, str(SCRIPTS / "with_checkpoint.py"), "raw", str(place / "raw"), "10"),
        "delete": (PYTHON, str(SCRIPTS / "with_sqlite.py"), "steps", str(place / "delete"), "10", "DELETE"),
    } | contestants(bench, place, 10)
    commands["again"] = (PYTHON, str(SCRIPTS / "with_checkpoint.py"), "raw", str(place / "again"), "10")
    taken, facts = in_turn(commands, 6 if bench.quick else 60, 5)
    raw = taken["raw"]
    shown = {
        "checkpoint": ("checkpoint, begin and complete", "two writes; lock, owner, token, digest"),
        "raw": ("raw protocol, twice the same bytes", f"two writes; {DURABLE['raw']}"),
        "again": (CONTROL, "the control: what it is off 1.00 is noise of this run, not a difference"),
        "delete": ("sqlite3, DELETE + FULL", f"two transactions; {DURABLE['sqlite']}"),
        "sqlite3, WAL": ("sqlite3, WAL + FULL", f"two transactions of one sync each; {DURABLE['sqlite']}"),
        "DBOS": ("DBOS, a step", f"one transaction; {DURABLE['dbos']}"),
        "LangGraph": ("LangGraph, a step", f"two transactions of one sync each; {DURABLE['langgraph']}"),
    }
    own = statistics.median(taken["checkpoint"]) - statistics.median(raw)
    rows = []
    for name, (what, note) in shown.items():
        if name in taken:
            ours = name == "checkpoint"
            said = f"{note} ({facts[name]})" if facts[name] else note
            rows.append(Row(what, taken[name], raw, budget=STEP_BUDGET if ours else None, note=said, axis=axis, ours=ours))
    text = (
        "A step in a process that runs already, of a workflow of 10 steps, from before its begin to when its end is durable. "
        "The raw protocol is: temporary file, fsync, rename, fsync of the folder; twice, with the bytes of our two records. "
        f"What ours takes beyond that, {own:.2f} ms, is work of the processor, not of the disk: the slower the disk, the "
        f"nearer to 1. The budget of {STEP_BUDGET} is met where the raw protocol takes {own / (STEP_BUDGET - 1):.1f} ms."
    )
    left_out = bench.lacking("DBOS", "dbos") + bench.lacking("LangGraph", "langgraph-checkpoint-sqlite")
    return Group("step", "One durable step", text, rows, left_out)


def growth(bench: Bench) -> Group:
    place, axis = bench.scratch(), "times a step of the same in a workflow of 10 steps"
    sizes = (10, 100, 1_000) if bench.quick else (10, 100, 1_000, 10_000)
    budgets = {1_000: 2.0, 10_000: 6.0}
    notes = {
        "checkpoint": "the record names every step, and is written whole",
        "sqlite3, WAL": "a row per step",
        "DBOS": "a row per step",
        "LangGraph": "a graph of one node that goes round; a state that keeps a list grows with it",
    }
    commands = {f"{name} {size}": each for size in sizes for name, each in contestants(bench, place, size).items()}
    taken, _ = in_turn(commands, 4 if bench.quick else 30, 4)
    rows = [
        Row(
            f"{name}, {size:,} steps",
            taken[f"{name} {size}"],
            taken[f"{name} 10"],
            budget=budgets.get(size) if name == "checkpoint" else None,
            note=note if size == 10 else "",
            axis=axis,
            series=name,
            size=size,
            ours=name == "checkpoint",
        )
        for name, note in notes.items()
        for size in sizes
        if f"{name} {size}" in taken
    ]
    text = (
        "The same step in longer workflows: planned to that length, or, where there is no plan, with that many steps behind "
        "it. doit is not here: it keeps nothing before the end of its run."
    )
    left_out = bench.lacking("DBOS", "dbos") + bench.lacking("LangGraph", "langgraph-checkpoint-sqlite")
    return Group("growth", "Growth with the workflow", text, rows, left_out)


def clone_unfinished(place: Path, first: int, count: int) -> None:
    """Copies of one record under other names, each with its own digest."""
    record = codec.decode((place / "bench.json").read_bytes(), "bench").checkpoint
    for number in range(first, count):
        id = f"bench-{number}"
        # As it would have been written: put in place in the moment that it names.
        own = record._replace(id=id, workflow=id, updated_at=utc_now())
        (place / f"{id}.json").write_bytes(codec.encode(own).raw)


def selfcheck(bench: Bench) -> Group:
    place, axis = bench.scratch(), "times read and `json.loads` of each"
    crowd = place / "crowd"
    Checkpoints(crowd).start("bench", ["a", "b", "c"])
    sizes = sorted({*(size for size in (1_000, 10_000) if size < bench.unfinished), bench.unfinished})
    rows, memory, there = [], [], 1
    for size in sizes:
        clone_unfinished(crowd, there, size)
        there = size
        by_rows = (PYTHON, str(SCRIPTS / "with_sqlite.py"))
        (place / "bench.sqlite").unlink(missing_ok=True)
        cpu(*by_rows, "fill", str(place), str(size), "DELETE")
        commands = {
            "checkpoint-selfcheck": (SELFCHECK, "--store", str(crowd)),
            "as rows of SQLite": (*by_rows, "scan", str(place), str(size), "DELETE"),
            "plain": (PYTHON, "-c", READ_ALL, str(crowd)),
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(3 if bench.quick or size > 10_000 else 5):
            for name, command in commands.items():
                taken[name].append(cpu(*command))
        measured = (PYTHON, "-c", MEASURE_MEMORY, str(crowd))
        told = subprocess.run(measured, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
        rows += [
            Row(
                f"{name}, {size:,}",
                samples,
                taken["plain"],
                budget=3 if name == "checkpoint-selfcheck" and size >= 10_000 else None,
                axis=axis,
                series=name,
                size=size,
                ours=name == "checkpoint-selfcheck",
                note="the same records, read and `json.loads` of each: nothing judged" if name.startswith("as rows") else "",
            )
            for name, samples in taken.items()
            if name != "plain"
        ]
        memory.append(
            Row(
                f"memory of checkpoint-selfcheck, {size:,}",
                [float(told.split()[-1])],
                unit="MiB",
                budget=64,
                axis="resident memory, MiB",
                series="checkpoint-selfcheck",
                size=size,
                ours=True,
            )
        )
    text = (
        "The self-check over many unfinished checkpoints, as a whole process, held against one that reads every file and "
        "parses it, and does no more: no digest, no judgement, no finding."
    )
    return Group("selfcheck", "The self-check", text, rows + memory)


def shell(bench: Bench) -> Group:
    place, axis = bench.scratch(), "times the two durable writes of a step in Python"
    many, few = (200, 10) if bench.quick else (1_000, 50)
    notes = {
        "session": ("ckpt_step, with a session", many, "one process beside the script, for all its steps"),
        "run": ("checkpoint-tool run, for each step", few, "one process for each step"),
        "sqlite3": ("sqlite3 command, twice for each step", few, f"two processes; {DURABLE['sqlite']}"),
        "marker": ("marker file and sync", few, "one process; a step that was interrupted is run again unasked; no owner"),
    }
    left_out = []
    if shutil.which("sqlite3") is None:
        left_out.append("the sqlite3 command is left out: it is not installed (on Debian: apt install sqlite3)")
        del notes["sqlite3"]
    if subprocess.run(["sync", "--version"], capture_output=True, check=False).returncode:
        left_out.append("marker files are left out: this sync takes no file names")
        del notes["marker"]
    taken: dict[str, list[float]] = {name: [] for name in notes}
    plain: list[float] = []
    for number in range(1 if bench.quick else 3):
        for name, (_, steps, _) in notes.items():
            script = TIMED % IN_BASH[name]
            argv = ["bash", "-c", script, "bash", str(place / f"{name}-{number}"), str(steps), TOOL]
            told = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
            taken[name].append(int(told.split()[-1]) / 1000 / steps)
        command = (PYTHON, str(SCRIPTS / "with_checkpoint.py"), "open", str(place / f"python-{number}"), "0")
        plain.append(statistics.fmean(in_turn({"python": command}, 1, many // 2)[0]["python"]))
    rows = [
        Row(
            what,
            taken[name],
            plain,
            budget=2.5 if name == "session" else None,
            axis=axis,
            ours=name in ("session", "run"),
            note=f"mean of {steps:,} steps; {note}",
        )
        for name, (what, steps, note) in notes.items()
    ]
    text = "A step `true` in a bash script, by the clock, held against begin and complete of a step in a Python process."
    return Group("shell", "A step in bash", text, rows, left_out)


def keys(bench: Bench) -> Group:
    place, axis = bench.scratch(), "times the same beside 1 finished run"
    sizes = sorted({1, min(20_000, bench.receipts), bench.receipts})
    notes = {
        "start --key": "a new key: no receipt, a new run",
        "start --key, finished": "the key of a finished run: its receipt, synced before it is shown",
        "sqlite3, WAL": "INSERT OR IGNORE of a row",
        "DBOS": "SetWorkflowID with a no-op workflow, to its end",
    }
    commands: dict[str, Sequence[str]] = {}
    for size in sizes:
        ours, rows_of = (PYTHON, str(SCRIPTS / "with_checkpoint.py")), (PYTHON, str(SCRIPTS / "with_sqlite.py"))
        commands[f"start --key {size}"] = (*ours, "start", str(place / f"start-{size}"), str(size))
        commands[f"start --key, finished {size}"] = (*ours, "receipt", str(place / f"receipt-{size}"), str(size))
        commands[f"sqlite3, WAL {size}"] = (*rows_of, "start", str(place / f"wal-{size}"), str(size))
        if "dbos" in bench.peers:
            peer = (str(PEERS / "python"), str(SCRIPTS / "with_dbos.py"))
            commands[f"DBOS {size}"] = (*peer, "start", str(place / f"dbos-{size}"), str(size))
    taken, _ = in_turn(commands, 5 if bench.quick else 40, 5)
    rows = [
        Row(
            f"{name}, {size:,}",
            taken[f"{name} {size}"],
            taken[f"{name} 1"],
            budget=1.15 if name.startswith("start") and size > 1 else None,
            note=note if size == 1 else "",
            axis=axis,
            series=name,
            size=size,
            ours=name.startswith("start"),
        )
        for name, note in notes.items()
        for size in sizes
        if f"{name} {size}" in taken
    ]
    text = "A run started under a key, in process, beside this many finished ones."
    return Group("keys", "Starting under a key", text, rows, bench.lacking("DBOS", "dbos"))


def doit_round(place: Path, number: int) -> int:
    """How often a task that is to run once was run by many doits started together."""
    count = place / f"count-{number}"
    database = str(place / f"doit-{number}")
    argv = [
        str(PEERS / "doit"),
        "-f",
        str(SCRIPTS / "dodo.py"),
        "--dir",
        str(place),
        "--backend",
        "sqlite3",
        "--db-file",
        database,
    ]
    environment = ENVIRONMENT | {"COUNT": str(count)}
    quiet = subprocess.DEVNULL
    running = [subprocess.Popen([*argv, "count"], env=environment, stdout=quiet, stderr=quiet) for _ in range(PROCESSES)]
    for process in running:
        process.wait()
    return len(count.read_text().splitlines()) if count.exists() else 0


def claims(bench: Bench) -> Group:
    place, axis = bench.scratch(), "winners in a round, where one is right"
    rounds, by_doit = (10, 2) if bench.quick else (200, 5)
    found: dict[str, list[tuple[int, float]]] = {"checkpoint": [], "sqlite": []}
    part = 5 if bench.quick else 20
    for number in range(rounds // part):
        for who, answers in found.items():
            argv = [PYTHON, str(SCRIPTS / "claims.py"), who, str(place / f"{who}-{number}"), str(part), str(PROCESSES)]
            told = subprocess.run(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout
            answers += [(winners, milliseconds) for winners, milliseconds in json.loads(told)]
    names = {"checkpoint": "checkpoint, resume", "sqlite": "sqlite3, UPDATE where free"}
    notes = {
        "checkpoint": "a claim ends with its owner's process",
        "sqlite": "what a dead owner held stays held, until something of your own frees it",
    }
    rows = []
    for who, answers in found.items():
        winners, ours = [float(count) for count, _ in answers], who == "checkpoint"
        note = f"{len(answers)} rounds; {notes[who]}"
        rows.append(Row(names[who], winners, unit="winners", axis=axis, ours=ours, extremes=True, note=note))
    if "doit" in bench.peers:
        runs = [float(doit_round(place, number)) for number in range(by_doit)]
        note = f"{by_doit} rounds; claims nothing, nor says so: how often a task that is to run once ran"
        rows.append(Row("doit, a task that is to run once", runs, unit="runs", axis=axis, extremes=True, note=note))
    wrong = float(sum(count != 1 for count, _ in found["checkpoint"]))
    rows.append(Row("checkpoint, rounds without exactly one winner", [wrong], unit="rounds", budget=0, ours=True))
    for who, answers in found.items():
        rows.append(Row(f"{names[who]}: until all have their answer", [each for _, each in answers], ours=who == "checkpoint"))
    text = (
        f"{PROCESSES} processes claim one checkpoint at the same moment; they are forked with everything loaded, and live "
        "until the last has its answer. DBOS is not here: that many of its processes need half a minute to start."
    )
    return Group("claims", "Many claim one", text, rows, bench.lacking("doit", "doit"))


GROUPS: Mapping[str, Callable[[Bench], Group]] = {
    "startup": startup,
    "step": step,
    "growth": growth,
    "selfcheck": selfcheck,
    "shell": shell,
    "keys": keys,
    "claims": claims,
}
