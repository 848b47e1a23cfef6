"""What settings mean: durations, and which stores are meant. The values come from the command line and environment."""

import re
from collections.abc import Mapping

from checkpoint.errors import Usage
from checkpoint.store import DEFAULT_STORE as DEFAULT_STORE
from checkpoint.store import directory_of, open_store

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


def store_path(option: str | None, environ: Mapping[str, str]) -> str | None:
    """The directory that --store names, else $CHECKPOINT_STORE; None: the store is to be searched for.

    Raises Usage for an empty one, and for what names no directory.
    """
    store = option if option is not None else environ.get(STORE_VARIABLE) or None
    if store is None:
        return None
    if not store:
        raise Usage("--store is empty: name a directory")
    if store == "memory:":
        raise Usage("a store in memory ends with this command: name a directory")
    return directory_of(store)


def found_store(option: str | None, environ: Mapping[str, str]) -> str:
    """As ``store_path``; where neither names one, the store that is found from the working directory upwards, or
    where a new one belongs. Raises StoreUnavailable where the working directory is gone."""
    path = store_path(option, environ)
    return open_store(None).location if path is None else path


def directory(value: str, option: str) -> str:
    """A directory that ``option`` names. Raises Usage for an empty one, and for an address with a scheme."""
    if not value:
        raise Usage(f"{option} is empty: name a directory")
    if value.startswith(("file:", "memory:")):
        raise Usage(f"{option} takes the path of a directory, without a scheme")
    return directory_of(value)


def run_store(id: str, option: str | None, environ: Mapping[str, str]) -> str | None:
    """--store, else $CHECKPOINT_RUN_STORE where ``id`` is the run of the step that asks; None: as for any other run."""
    if option is not None or id not in (environ.get("CHECKPOINT_ID"), environ.get("CHECKPOINT_RUN_ID")):
        return option
    return environ.get(RUN_STORE_VARIABLE) or None


_LONGEST_S = 100 * 365 * 86400
