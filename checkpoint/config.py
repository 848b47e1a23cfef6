"""What settings mean: durations, and which stores are meant. The values come from the command line and environment."""

import re
from collections.abc import Mapping

from checkpoint.errors import Usage
from checkpoint.store import DEFAULT_STORE

STORE_VARIABLE = "CHECKPOINT_STORE"

RUN_STORE_VARIABLE = "CHECKPOINT_RUN_STORE"
"""Where the run stands that CHECKPOINT_ID names: set for the commands of its steps, unlike CHECKPOINT_STORE, which is
the user's alone."""

_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(text: str) -> int:
    """Seconds of ``90s``, ``10m``, ``2h``, ``7d`` or ``1w``, also joined as in ``1h30m``. Raises Usage."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Usage(f"{text!r} is no duration: write it as 90s, 10m, 2h or 7d")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= _LONGEST_S:
        raise Usage(f"{text!r} must be longer than 0 and at most 100 years")
    return seconds


def store_path(option: str | None, environ: Mapping[str, str]) -> str:
    """--store, else $CHECKPOINT_STORE, else memory/checkpoints in the working folder. Raises Usage for an empty one."""
    store = option if option is not None else environ.get(STORE_VARIABLE) or DEFAULT_STORE
    if not store:
        raise Usage("--store is empty: name a folder")
    if store == "memory:":
        raise Usage("a store in memory ends with this command: name a folder")
    return store


def run_store(id: str, option: str | None, environ: Mapping[str, str]) -> str | None:
    """--store, else $CHECKPOINT_RUN_STORE where ``id`` is the run of the step that asks; None: as for any other run."""
    if option is not None or id not in (environ.get("CHECKPOINT_ID"), environ.get("CHECKPOINT_RUN_ID")):
        return option
    return environ.get(RUN_STORE_VARIABLE) or None


_LONGEST_S = 100 * 365 * 86400
