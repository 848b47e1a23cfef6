"""Where the store is when nobody names one: searched upwards from the working directory.

As git searches its own: up to the home directory or a mount, whichever comes first. The path is the
kernel's, not $PWD: `../k.sh` in a linked directory means the same to both.
"""

import errno
import os
from enum import Enum
from typing import NamedTuple

from checkpoint.errors import StoreUnavailable
from checkpoint.store import DEFAULT_STORE


class Search(NamedTuple):
    """``path``: of the store that was found, else where a new one belongs. ``looked``: the directories that
    were looked at, the nearest first. ``passed``: stores of other users, which were passed over."""

    path: str
    looked: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


class _Found(Enum):
    NOTHING = 0
    STORE = 1
    FOREIGN = 2


def search() -> Search:
    """Raises StoreUnavailable where the working directory is gone."""
    try:
        here = os.getcwd()
        device = os.stat(here).st_dev
    except OSError as error:
        raise StoreUnavailable(
            f"the working directory cannot be used: {error.strerror}; go to one that exists,"
            " or name the store with --store or $CHECKPOINT_STORE",
            hint="cd ~",
        ) from error
    if _look(here) is not _Found.NOTHING:
        return Search(DEFAULT_STORE)  # also an unsafe one: opening it says why it cannot be used
    home = _identity(os.path.expanduser("~"))
    looked, passed = [here], []
    directory = here
    while _identity(directory) != home and (above := os.path.dirname(directory)) != directory:
        identity = _identity(above)
        if identity is None or identity[0] != device:
            break
        directory = above
        looked.append(directory)
        store = os.path.join(directory, DEFAULT_STORE)
        found = _look(directory)
        if found is _Found.STORE:
            return Search(store)
        if found is _Found.FOREIGN:
            passed.append(store)
    return Search(DEFAULT_STORE, tuple(looked), tuple(passed))


def _look(directory: str) -> _Found:
    """A store of another user does not count: in /tmp anyone can plant one above our work.

    One that is ours and unsafe does, and so does one that cannot be looked at: opening it gives the error.
    Passed over, a second store would be made below it, and a key would run in both.
    """
    store = os.path.join(directory, DEFAULT_STORE)
    owners = set()
    for path in (os.path.dirname(store), store):
        try:
            owners.add(os.lstat(path).st_uid)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return _Found.NOTHING
    return _Found.STORE if owners <= {os.geteuid()} else _Found.FOREIGN


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
