"""One attempt at a lock on an open file: the only import of portalocker (17 ms), so reading verbs do not load it.

Its low-level call, because its ``Lock`` class opens the file itself, following links and with mode 0666.
"""

from portalocker import AlreadyLocked, LockException, LockFlags
from portalocker import lock as _lock


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
