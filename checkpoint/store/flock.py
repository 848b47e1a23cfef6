"""One attempt at a lock on an open file: the only import of portalocker (17 ms), so reading verbs do not load it.

Its low-level call, because its ``Lock`` class opens the file itself, following links and with mode 0666.
"""

import tempfile

# portalocker asks for the folder of temporary files when it is imported, which makes and removes a file in it: outside
# the store, and an error where that disk is full. An answer that is there already is taken instead.
_unset = tempfile.tempdir is None
tempfile.tempdir = tempfile.tempdir or "/tmp"  # noqa: S108 - no file is made

from portalocker import AlreadyLocked, LockException, LockFlags  # noqa: E402
from portalocker import lock as _lock  # noqa: E402

if _unset:
    tempfile.tempdir = None


def try_lock(fd: int) -> bool:
    """Take the exclusive lock (flock(2)) on ``fd`` now, or say that another holds it.

    Raises OSError where the file system cannot lock at all (ENOLCK, EIO, EOPNOTSUPP): that is not "busy".
    """
    try:
        _lock(fd, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
    except AlreadyLocked:
        return False
    except LockException as error:
        raise next((cause for cause in error.args if isinstance(cause, OSError)), OSError(str(error))) from error
    return True
