"""DBOS on SQLite: with_dbos.py MODE PLACE SIZE

once     one process that runs a workflow of one no-op step
steps    a step of a workflow that has done SIZE steps
start    a no-op workflow under a new id, beside SIZE finished ones
"""

import sqlite3
import sys
import uuid
from pathlib import Path

import sqlalchemy
from dbos import DBOS, SetWorkflowID
from sqlalchemy import event
from turns import Turns

synchronous = "FULL"


@event.listens_for(sqlalchemy.engine.Engine, "connect")
def durable(connection: sqlite3.Connection, _: object) -> None:
    connection.execute(f"PRAGMA synchronous={synchronous}")


@DBOS.step()
def step() -> None:
    pass


@DBOS.workflow()
def once() -> None:
    step()


def full_again() -> str:
    """New connections, durable ones; what they are set to."""
    global synchronous
    synchronous = "FULL"
    engine = instance._sys_db.engine
    engine.dispose()
    with engine.connect() as connection:
        journal = connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar()
        number = connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar()
    return f"journal_mode={journal} synchronous={number}"


@DBOS.workflow()
def steps(size: int) -> None:
    for _ in range(size):
        step()
    turn = Turns(full_again())
    while turn():
        step()


def start(place: Path, size: int) -> None:
    with SetWorkflowID("first"):
        once()
    db = sqlite3.connect(place / "dbos.sqlite", timeout=60)
    columns = [row[1] for row in db.execute("PRAGMA table_info(workflow_status)") if row[1] != "workflow_uuid"]
    names = ", ".join(f'"{column}"' for column in columns)
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        f"INSERT INTO workflow_status (workflow_uuid, {names}) "
        f"SELECT printf('other-%012x', n.i), {names} FROM n, workflow_status WHERE workflow_uuid = 'first' AND n.i < ?",
        (size, size),
    )
    db.commit()
    (finished,) = db.execute("SELECT count(*) FROM workflow_status WHERE status = 'SUCCESS'").fetchone()
    assert finished == size, f"{finished} finished workflows instead of {size}"
    db.close()
    number = 0
    turn = Turns(full_again())
    while turn():
        with SetWorkflowID(f"key-{number}"):
            once()
        number += 1


if __name__ == "__main__":
    mode, place, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    place.mkdir(exist_ok=True)
    if mode == "steps":
        synchronous = "OFF"  # only until the history is there
    instance = DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{place}/dbos.sqlite",
            "log_level": "ERROR",
            "console_log_level": "ERROR",
        }
    )
    DBOS.launch()
    if mode == "once":
        with SetWorkflowID(str(uuid.uuid4())):
            once()
        DBOS.destroy()
    elif mode == "steps":
        with SetWorkflowID("bench"):
            steps(size)
    else:
        start(place, size)
