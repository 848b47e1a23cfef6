"""SQLite as the keeper of steps, by hand: with_sqlite.py MODE PLACE SIZE [JOURNAL]

once     one process that completes one step
steps    a step of a run with SIZE steps, begun and completed: two transactions
start    a run started under a new key, beside SIZE finished ones
fill     a table with the records of the folder `crowd` in PLACE, which are SIZE
scan     all SIZE records of that table read, and json.loads of each
"""

import json
import sqlite3
import sys
from pathlib import Path

from turns import Turns, full_length

TABLES = """
CREATE TABLE IF NOT EXISTS step (run TEXT, name TEXT, status TEXT, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, status TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS record (id TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID;
"""


def opened(place: Path, journal: str) -> sqlite3.Connection:
    place.mkdir(exist_ok=True)
    db = sqlite3.connect(place / "bench.sqlite", isolation_level=None)
    db.execute(f"PRAGMA journal_mode={journal}")
    db.execute("PRAGMA synchronous=FULL")
    db.executescript(TABLES)
    return db


def facts(db: sqlite3.Connection) -> str:
    (journal,), (synchronous,) = db.execute("PRAGMA journal_mode").fetchone(), db.execute("PRAGMA synchronous").fetchone()
    return f"journal_mode={journal} synchronous={synchronous}"


def steps(db: sqlite3.Connection, size: int) -> None:
    db.execute("BEGIN")
    db.executemany("INSERT INTO step VALUES ('bench', ?, 'pending')", [(f"step-{number}",) for number in range(size)])
    db.execute("COMMIT")
    number = 0
    full_length(db)
    turn = Turns(facts(db))
    while turn():
        name = f"step-{number % size}"
        db.execute("UPDATE step SET status = 'begun' WHERE run = 'bench' AND name = ?", (name,))
        db.execute("UPDATE step SET status = 'completed' WHERE run = 'bench' AND name = ?", (name,))
        number += 1


def start(db: sqlite3.Connection, size: int) -> None:
    db.execute("BEGIN")
    db.executemany("INSERT INTO run VALUES (?, 'completed')", ((f"other-{number:012x}",) for number in range(size)))
    db.execute("COMMIT")
    number = 0
    full_length(db)
    turn = Turns(facts(db))
    while turn():
        db.execute("INSERT OR IGNORE INTO run VALUES (?, 'in_progress')", (f"key-{number}",))
        number += 1


def main(mode: str, place: Path, size: int, journal: str = "WAL") -> None:
    db = opened(place, journal)
    if mode == "steps":
        steps(db, size)
    elif mode == "start":
        start(db, size)
    elif mode == "fill":
        records = [(path.stem, path.read_text()) for path in (place / "crowd").glob("*.json")]
        assert len(records) == size, f"{len(records)} records instead of {size}"
        db.execute("BEGIN")
        db.executemany("INSERT INTO record VALUES (?, ?)", records)
        db.execute("COMMIT")
    elif mode == "scan":
        read = sum(bool(json.loads(body)) for (body,) in db.execute("SELECT body FROM record"))
        assert read == size, f"{read} records instead of {size}"  # nothing is read the fastest
    else:
        db.execute("INSERT OR REPLACE INTO step VALUES ('bench', 'a', 'completed')")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
