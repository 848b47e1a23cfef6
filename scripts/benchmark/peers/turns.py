"""How scripts/bench lets many programs work in turn: each waits for a number on stdin and makes that many steps.

    turn = Turns("what was set, for the report")
    while turn():
        make_one_step()

The seconds of each step are the time between two calls; they go to stdout as one line of JSON. At the end of stdin the
process ends at once: what a peer does to shut down is no part of a step.
"""

import json
import os
import sqlite3
import sys
import time


def full_length(db: sqlite3.Connection) -> None:
    """Bring the log of a WAL database to the length that it keeps, and to the disk.

    While it still grows, each sync waits for the journal of the file system too: a store with a history would look
    faster than a fresh one, and one that writes more pages faster than one that writes few.
    """
    db.execute("PRAGMA synchronous=FULL")
    if db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        return
    db.execute("CREATE TABLE filler (body BLOB)")
    db.execute("INSERT INTO filler VALUES (zeroblob(6000000))")
    db.commit()
    db.execute("DROP TABLE filler")
    db.commit()
    db.execute("PRAGMA wal_checkpoint(RESTART)")


class Turns:
    def __init__(self, facts: str) -> None:
        self.left = 0
        self.taken: list[float] = []
        self.began = 0.0
        print(facts, flush=True)

    def __call__(self) -> bool:
        if self.left:
            self.taken.append(time.perf_counter() - self.began)
            self.left -= 1
            if not self.left:
                print(json.dumps(self.taken), flush=True)
                self.taken = []
        if not self.left:
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            self.left = int(line)
        self.began = time.perf_counter()
        return True

    def restart(self) -> None:
        """What came before in this step is not counted."""
        self.began = time.perf_counter()
