"""One attempt at a lock on an open file: the only import of portalocker (17 ms), so reading verbs do not load it.

Its low-level call, because its ``Lock`` class opens the file itself, following links and with mode 0666.
"""

import os
import tempfile

# When it is imported, portalocker asks for the directory of temporary files. Python then makes and removes a file there,
# outside the store, and fails where that disk is full. An answer that is there already is taken instead: the right one,
# because other threads may ask meanwhile.
_NAMED = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
_USABLE = [path for path in _NAMED if path and os.path.isabs(path) and os.access(path, os.W_OK | os.X_OK)]
_answer = [*_USABLE, "/tmp"][0]  # noqa: S108 - no file is made
_unset = tempfile.tempdir is None
if _unset:
    tempfile.tempdir = _answer

from portalocker import AlreadyLocked, LockException, LockFlags  # noqa: E402
from portalocker import lock as _lock  # noqa: E402

# By identity: a directory that another thread has set meanwhile is its own.
if _unset and tempfile.tempdir is _answer:
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
