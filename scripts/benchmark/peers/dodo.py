"""For doit: a task that does nothing, and one that shows each run of it as a line of a file."""

import os
from typing import Any

from doit.tools import run_once


def task_nothing() -> dict[str, Any]:
    return {"actions": [lambda: None]}


def task_count() -> dict[str, Any]:
    def run() -> None:
        fd = os.open(os.environ["COUNT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b"ran\n")
        os.close(fd)

    return {"actions": [run], "uptodate": [run_once]}
