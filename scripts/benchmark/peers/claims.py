"""Many processes claim one thing at the same moment: claims.py WHO PLACE ROUNDS PROCESSES

Prints, for each round, the number of winners and the milliseconds from the signal to the last answer. The processes are
forked with everything loaded, so that they meet at the lock and not in the import system; all of a round live until the
last has answered, since a winner's end would free its claim.
"""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checkpoint import Checkpoints
from checkpoint.api import owner
from checkpoint.errors import Locked


def by_checkpoint(place: Path, number: int, contender: int) -> bool:
    try:
        Checkpoints(place, owner=owner(f"contender-{contender}")).resume(f"bench-{number}")
    except Locked:
        return False
    return True


def by_sqlite(place: Path, number: int, contender: int) -> bool:
    db = sqlite3.connect(place / "claims.sqlite", isolation_level=None, timeout=60)
    db.execute("PRAGMA synchronous=FULL")
    changed = db.execute("UPDATE claim SET owner = ? WHERE id = ? AND owner IS NULL", (contender, number)).rowcount
    db.close()
    return changed == 1


def prepared(who: str, place: Path, number: int) -> None:
    if who == "checkpoint":
        Checkpoints(place).start(f"bench-{number}", ["a"]).release()
        return
    place.mkdir(exist_ok=True)
    db = sqlite3.connect(place / "claims.sqlite", isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS claim (id INTEGER PRIMARY KEY, owner INTEGER)")
    db.execute("INSERT INTO claim VALUES (?, NULL)", (number,))
    db.close()


def one_round(processes: int, claim: Callable[[int], bool]) -> tuple[int, float]:
    ready_out, ready_in = os.pipe()
    gate_out, gate_in = os.pipe()
    stay_out, stay_in = os.pipe()
    answer_out, answer_in = os.pipe()
    children = []
    for contender in range(processes):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(gate_in)
                os.close(stay_in)
                os.write(ready_in, b".")
                os.read(gate_out, 1)
                os.write(answer_in, b"y" if claim(contender) else b"n")
                os.read(stay_out, 1)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(answer_in)
    waiting = processes
    while waiting:
        waiting -= len(os.read(ready_out, waiting))
    began = time.perf_counter()
    os.close(gate_in)
    answers = b""
    while len(answers) < processes:
        more = os.read(answer_out, processes)
        if not more:
            break
        answers += more
    took = time.perf_counter() - began
    os.close(stay_in)
    ended = [os.waitpid(pid, 0)[1] for pid in children]
    for fd in (ready_out, ready_in, gate_out, stay_out, answer_out):
        os.close(fd)
    if any(ended):
        raise SystemExit(f"{sum(map(bool, ended))} of {processes} processes failed")
    return answers.count(b"y"), took * 1000


def main(who: str, place: Path, rounds: int, processes: int) -> None:
    claim = by_checkpoint if who == "checkpoint" else by_sqlite
    answers = []
    for number in range(rounds):
        prepared(who, place, number)
        answers.append(one_round(processes, lambda contender, number=number: claim(place, number, contender)))
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
