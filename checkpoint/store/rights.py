"""Whose a place is. Nothing is made in the workspace of another user: root may do so, but what it leaves there that user
can neither change nor read, and the user's own self-check fails from then on. Loaded only where an owner is not ours.
"""

import errno
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from glob import escape as glob_escape
from glob import glob
from itertools import islice
from pwd import getpwuid

from checkpoint import programs
from checkpoint.errors import StoreUnavailable

_PARTS = ("memory/checkpoints", "memory", ".")
_MOST_LOOKED_AT = 100_000
_OVERFLOW = 65534
"""What a user namespace shows for an owner that it has no number for (overflowuid in proc(5))."""


def refusal(path: str, uid: int) -> StoreUnavailable:
    """For a write to ``path``, which belongs to ``uid``. Its ``as_user`` is the user as whom the same command works."""
    return StoreUnavailable(
        f"{path} belongs to {name_of(uid)}, and nothing is written there as {name_of(os.geteuid())}: run this as"
        f" {name_of(uid)}, or name another store",
        hint=f"ls -ld {shlex.quote(path)}",
        as_user=sudo_name(uid),
    )


def mixed(path: str, uid: int) -> StoreUnavailable:
    """For a folder of a store, ``path``, that belongs to ``uid``, while the store belongs to another user."""
    return StoreUnavailable(
        f"{path} belongs to {name_of(uid)}, and the store around it to another user: nothing in it can be trusted",
        hint=f"ls -ld {shlex.quote(path)}",
    )


def sudo_name(uid: int) -> str:
    """As sudo takes it."""
    return name_of(uid) if name_of(uid) != str(uid) else f"#{uid}"


def as_user(user: str, argv: Sequence[str]) -> str:
    """The command line that runs ``argv`` as that user."""
    without_sudo = programs.find("sudo") is None and programs.find("runuser") is not None
    become = ["runuser", "-u", user, "--"] if without_sudo else ["sudo", "-u", user]
    return shlex.join([*become, *argv])


def refuse_making(path: str, above: str) -> None:
    """Whether the directory ``path`` may be made, ``above`` being the nearest that exists. Raises StoreUnavailable."""
    places = [above]
    place = path
    while (place := os.path.dirname(place)) != os.path.dirname(place):
        if os.path.basename(place) == "memory":
            places.append(os.path.dirname(place))
    for place in places:
        uid = another_owner(place)
        if uid is not None:
            raise refusal(place, uid)


def refuse_file(path: str) -> None:
    """Whether a file such as a log may be made there: not inside the workspace or the store of another user.

    Raises PermissionError. In any other directory it is the user's own choice, as with node_exporter's.
    """
    place = os.path.abspath(path)
    while (place := os.path.dirname(place)) != os.path.dirname(place):
        kept = any(os.path.isdir(os.path.join(place, name)) for name in ("memory", ".locks"))
        uid = another_owner(place) if kept else None
        if uid is not None:
            raise PermissionError(errno.EPERM, f"{place} belongs to {name_of(uid)}: run this as {name_of(uid)}")


def another_owner(path: str) -> int | None:
    """The owner of ``path``, where that is another user: not root, whose directories are for all, as are those that any
    user may write to and that are sticky, as /tmp. None where it cannot be told."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if status.st_uid in (os.geteuid(), 0):
        return None
    shared = stat.S_ISVTX | stat.S_IWOTH
    if status.st_mode & shared == shared or (status.st_uid == _OVERFLOW and not _is_mapped(_OVERFLOW)):
        return None
    return status.st_uid


def other_owner_of_workspace(workspace: str) -> int | None:
    """The other user to whom the store of a workspace, what is above it or the workspace itself belongs."""
    owners = (another_owner(os.path.join(workspace, part)) for part in _PARTS)
    return next((uid for uid in owners if uid is not None), None)


def rightful_owner(workspace: str) -> int | None:
    """The user to whom all in a workspace is to belong: that of the workspace, or where that is root's, of the store in it.
    None where nothing is there."""
    owners = []
    for part in reversed(_PARTS):
        try:
            owners.append(os.stat(os.path.join(workspace, part)).st_uid)
        except OSError:
            continue
    return next((uid for uid in owners if uid != 0), 0) if owners else None


def strayed(workspace: str) -> tuple[str, int] | None:
    """(path, uid) of something below ``memory`` of a workspace and of its agents that belongs to another user than the
    workspace. Looks at no more than so many."""
    owner = rightful_owner(workspace)
    tops = [os.path.join(workspace, "memory"), *glob(os.path.join(glob_escape(workspace), "agents", "*", "memory"))]
    for path in islice(_below(tops), _MOST_LOOKED_AT):
        try:
            uid = os.lstat(path).st_uid
        except OSError:
            continue
        if uid != owner:
            return path, uid
    return None


def _below(tops: Sequence[str]) -> Iterator[str]:
    for top in tops:
        for place, _, files in os.walk(top):
            yield place
            yield from (os.path.join(place, name) for name in files)


def name_of(uid: int) -> str:
    """Of a user, or the number where there is no name."""
    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_mapped(uid: int) -> bool:
    """Whether that is a user in our user namespace (user_namespaces(7))."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except (OSError, ValueError):
        return True
    return any(first <= uid < first + count for first, _, count in ranges)
