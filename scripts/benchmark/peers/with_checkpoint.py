"""The contestant of the house, and the two that it is held against with its own bytes: with_checkpoint.py MODE PLACE SIZE

steps    a step of a run with SIZE steps, begun and completed
open     the same in an open plan, which grows
raw      the bytes of these two writes, written by the bare protocol
start    a run started under a new key, beside SIZE receipts
receipt  a run started again under the key of a finished one, beside SIZE receipts
"""

import os
import sys
from pathlib import Path

from turns import Turns

from checkpoint import Checkpoints


def steps(place: Path, size: int) -> None:
    def begin() -> None:
        nonlocal run, number
        run, number = Checkpoints(place).start("bench", names), 0

    names = [f"step-{number}" for number in range(size)]
    run, number = Checkpoints(place).start("bench", names), 0
    turn = Turns("")
    while turn():
        if number == size:
            run.complete()
            begin()
            turn.restart()
        run.begin(names[number])
        run.complete_step(names[number])
        number += 1


def open_plan(place: Path) -> None:
    run, number = Checkpoints(place).start("bench"), 0
    turn = Turns("")
    while turn():
        run.begin(f"step-{number}")
        run.complete_step(f"step-{number}")
        number += 1


def raw_write(folder: int, data: bytes) -> None:
    """The protocol and nothing else: temporary file, fsync, rename, fsync of the folder."""
    fd = os.open(".raw.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(".raw.tmp", "raw.json", src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def raw(place: Path, size: int) -> None:
    run = Checkpoints(place).start("bench", [f"step-{number}" for number in range(size)])
    for number in range(size // 2):
        run.begin(f"step-{number}")
        run.complete_step(f"step-{number}")
    run.begin(f"step-{size // 2}")
    begun = (place / "bench.json").read_bytes()
    run.complete_step(f"step-{size // 2}")
    completed = (place / "bench.json").read_bytes()
    apart = place.with_name(f"{place.name}-apart")
    apart.mkdir()
    folder = os.open(apart, os.O_RDONLY)
    turn = Turns("")
    while turn():
        raw_write(folder, begun)
        raw_write(folder, completed)


def keys(place: Path, size: int, again: bool) -> None:
    checkpoints = Checkpoints(place)
    checkpoints.start("bench", ["a"], key="first").complete(force_reason="bench")
    receipt = next((place / "done").glob("*.json")).read_bytes()
    for number in range(size - 1):
        (place / "done" / f"other-{number:012x}.json").write_bytes(receipt)
    assert len(list((place / "done").glob("*.json"))) == size
    os.sync()  # else the first timed fsync pays for these files
    number = 0
    turn = Turns("")
    while turn():
        checkpoints.start("bench", ["a"], key="first" if again else f"key-{number}")
        number += 1


def main(mode: str, place: Path, size: int) -> None:
    if mode == "steps":
        steps(place, size)
    elif mode == "open":
        open_plan(place)
    elif mode == "raw":
        raw(place, size)
    else:
        keys(place, size, again=mode == "receipt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
