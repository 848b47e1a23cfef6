"""Every failure a caller can meet: what is wrong, the exit code it becomes, and the next command to type.

The numbers are a contract (README, "Exit codes"). 30 to 36 belong to a run's status.
"""

from typing import ClassVar


class CheckpointError(Exception):
    """Base of all errors. ``exit_code``: the process status; ``hint``: a complete command, or an empty string; ``as_user``:
    the user as whom the same command works, or an empty string."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", as_user: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.as_user = as_user

    @property
    def name(self) -> str:
        return type(self).__name__

    def preceded_by(self, done: str) -> None:
        """Say first what was done before it came to this, for an exit status alone reads as "nothing"."""
        self.message = f"{done}, then: {self.message}"
        self.args = (self.message,)


class Usage(CheckpointError):
    """An argument that cannot be taken as it is: nothing was read or written."""

    exit_code = 2


class NothingToResume(CheckpointError):
    """No unfinished checkpoint is free to be taken. ``worth_waiting``: one is held, and may come free."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", worth_waiting: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.worth_waiting = worth_waiting


class NotFound(CheckpointError):
    """No checkpoint, step or store of that name."""

    exit_code = 10


class Locked(CheckpointError):
    """Somebody else holds the lease, or the update lock did not come free in time. ``leaving``: only a command whose
    owner is gone stands in the way, and it is being ended."""

    exit_code = 11

    def __init__(self, message: str, *, hint: str = "", leaving: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.leaving = leaving


class Damaged(CheckpointError):
    """A file that is not a whole, unaltered checkpoint.

    ``kind`` says what is wrong with it, in one word that scripts may compare: one of DAMAGE_KINDS.
    """

    exit_code = 12

    def __init__(self, message: str, *, kind: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


DAMAGE_KINDS = {
    "symlink": "a symbolic link where a file belongs",
    "not-a-file": "a directory, socket, device or named pipe where a file belongs",
    "foreign-owner": "the file belongs to another user",
    "too-large": "larger than 4 MiB",
    "encoding": "not UTF-8 text",
    "json": "not JSON, or cut short",
    "duplicate-key": "one key stands twice in an object",
    "not-a-checkpoint": "JSON, but not a checkpoint record",
    "digest": "the content does not match its digest",
    "schema": "the content breaks the record's schema",
    "date": "a date without a time zone, or no date at all",
    "id": "the id inside is not the file's name",
    "name": "a file whose name cannot be a checkpoint's",
    "older": "the record is older than the last one that was acknowledged: an old file was put back",
    "returned": "unfinished, beside the finished record of the same run or key: an old file came back",
    "vanished": "the lock file remembers it, and neither the record nor its finished one is there",
}


class SchemaMismatch(CheckpointError):
    """Written under a schema this version does not know, or data that breaks the workflow's own schema."""

    exit_code = 13


class Conflict(CheckpointError):
    """The same run asked for with another plan, input or data schema."""

    exit_code = 14


class AlreadyExists(Conflict):
    """``Store.create`` found a record under that id."""


class InvalidTransition(CheckpointError):
    """The change does not fit the state the checkpoint or step is in."""

    exit_code = 15


class SecretFound(CheckpointError):
    """A text that looks like a credential where it would be written down in the clear. Names the rule and the place,
    never the value."""

    exit_code = 16


class StoreUnavailable(CheckpointError):
    """The file system refused: full, read-only, unreadable, unsafe, or failing.

    ``applied`` is true where the change is visible but its durability could not be confirmed.
    """

    exit_code = 17

    def __init__(self, message: str, *, hint: str = "", applied: bool = False, as_user: str = "") -> None:
        super().__init__(message, hint=hint, as_user=as_user)
        self.applied = applied


class SchedulerUnavailable(CheckpointError):
    """A scheduler of this host is not there, refused, or will not run what it was given."""

    exit_code = 18


class StaleToken(CheckpointError):
    """The fencing token is not the last one issued: another owner has taken over since."""

    exit_code = 19


class InDoubt(CheckpointError):
    """A step that must not be repeated blindly began, and nobody knows whether it ended."""

    exit_code = 20


class AttemptsExhausted(CheckpointError):
    """The run was taken over as often as its ``max_attempts`` allows."""

    exit_code = 21


class NotReported(CheckpointError):
    """The change is applied and durable, but its result could not be written to standard output."""

    exit_code = 22


def shown(value: object) -> str:
    """What was given, for an error: in one line, and whole or not at all. Half of a credential is not known for one when
    it is taken out of what is said, and in a file may stand megabytes."""
    text = repr(value)
    return text if len(text) <= 80 else f"a text of {len(text)} characters"
