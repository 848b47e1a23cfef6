"""A check that cannot fail is no check: bugs planted in the program's own text, each caught by the method named for it.

For each a copy of the project is made, the bug put in, and the method's tests run on the copy; they must fail there, and
pass on a copy without it. That takes long, so CI only holds that every bug can still be planted where it is said to be,
and plants a few; `scripts/prove --mutants` plants them all.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from proof import WHOLE, scratch, tried

DISK, FILE, FLOCK = "checkpoint/store/disk.py", "checkpoint/store/file.py", "checkpoint/store/flock.py"
MODEL, CODEC, PROCESS = "checkpoint/model.py", "checkpoint/codec.py", "checkpoint/process.py"
FOLLOWUP, COMMAND, SECRETS = "checkpoint/followup.py", "checkpoint/command.py", "checkpoint/secrets.py"

# The methods, by the tests that a bug is shown to: arguments of pytest. Each takes less than a minute.
METHODS = {
    "order of the calls": ["tests/test_kill.py", "-k", "test_order_of_the_calls and not retry"],
    "kill sweep": ["tests/test_kill.py", "-k", "killed_before_any_call and (update or resume)"],
    "kill sweep of the end": ["tests/test_kill.py", "-k", "killed_before_any_call and complete and not keyed"],
    "kill sweep of run": ["tests/test_run_kill.py", "-k", "killed_before_any_call and run-once-verify or any_call[run]"],
    "kill sweep of the self-check": ["tests/test_followup.py", "-k", "killed_at_any_call"],
    "error sweep": ["tests/test_kill.py", "-k", "an_error_at_any_call and update"],
    "crash states": ["tests/test_power_loss.py", "-k", "power_is_cut"],
    "schedules": ["tests/test_interleaving.py"],
    "contention": ["tests/test_contention.py", "-k", "32 or no_update_is_lost"],
    "state machine": ["tests/test_state_machine.py"],
    "fuzzing": ["tests/test_fuzz.py", "-k", "flipped or whatever"],
    "hostile directory": ["tests/test_hostile.py", "-k", "planted_in_a_store and record"],
    "processes": ["tests/test_process.py"],
    "store contract": ["tests/test_store.py"],
    "looks of the shell": ["tests/test_shell.py", "-k", "only_the_answer and bash or whatever_streams and bash and yes"],
    "failures in the shell": ["tests/test_shell.py", "-k", "ends_a_strict and dash"],
    "stores of inner scripts": ["tests/test_shell.py", "-k", "store_it_has_alone and (bash or dash)"],
    "refused steps": ["tests/test_shell.py", "-k", "what_was_refused and bash"],
    "incidents": ["tests/test_followup.py", "-k", "said_once or channel_that_fails or three_days"],
}


class Mutant(NamedTuple):
    """``old`` stands exactly once in ``file`` and becomes ``new``."""

    clause: str
    method: str
    file: str
    old: str
    new: str


CKPT = "checkpoint/shell/ckpt.sh"

MUTANTS = {
    "a mistake of the shell is an answer of --verify": Mutant(
        "verify: only the command's own answer counts",
        "looks of the shell",
        "checkpoint/shell/session.bash",
        "    case $__ckpt_seen-$2 in -*__ckpt_ask*) ",
        "    case $__ckpt_seen-$2 in -*) ",
    ),
    "a function that ends the script is not recorded": Mutant(
        "set -e: failed, with the status", "failures in the shell", CKPT, '    __ckpt_leave "$@" || \\:\n', ""
    ),
    "the tool's own store is taken for the user's": Mutant(
        "CHECKPOINT_STORE is only the user's",
        "stores of inner scripts",
        "checkpoint/config.py",
        'RUN_STORE_VARIABLE = "CHECKPOINT_RUN_STORE"',
        'RUN_STORE_VARIABLE = "CHECKPOINT_STORE"',
    ),
    "a refused step is forgotten": Mutant(
        "complete: not while a step was refused", "refused steps", CKPT, "    __ckpt_refused=$__ckpt_refused/$1=$2/\n", ""
    ),
    "the file is not fsynced": Mutant(
        "write: fsync(file)", "order of the calls", DISK, "next one succeeds.\n    _flush(fd)\n", "next one succeeds.\n"
    ),
    "the folder is not fsynced": Mutant(
        "write: fsync(dir)",
        "crash states",
        DISK,
        '        try:\n            _flush(self.fd)\n        except OSError as error:\n            raise StoreUnavailable(\n                f"{done},',
        '        try:\n            pass\n        except OSError as error:\n            raise StoreUnavailable(\n                f"{done},',
    ),
    "renamed before it is fsynced": Mutant(
        "write: fsync before rename",
        "crash states",
        DISK,
        "                _fill(fd, data)\n            finally:\n                os.close(fd)\n            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=target.fd)\n",
        "                os.write(fd, data)\n                os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=target.fd)\n                _flush(fd)\n            finally:\n                os.close(fd)\n",
    ),
    "a failed fsync is tried again": Mutant(
        "write: fsync is never retried",
        "error sweep",
        DISK,
        "    os.fsync(fd)\n\n\ndef _make_folder",
        "    try:\n        os.fsync(fd)\n    except OSError:\n        os.fsync(fd)\n\n\ndef _make_folder",
    ),
    "written in place": Mutant(
        "write: never in place",
        "kill sweep",
        DISK,
        "        fd = os.open(temporary, _CREATE, 0o600, dir_fd=self.fd)\n        try:\n            try:\n                os.fchmod(fd, 0o600)\n",
        "        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=target.fd)\n        temporary = name\n        try:\n            try:\n                os.fchmod(fd, 0o600)\n",
    ),
    "the folder above the store is not fsynced": Mutant(
        "mkdir: fsync(parent) at every verb",
        "order of the calls",
        DISK,
        "        if not missing:\n            _sync_folder(os.path.dirname(path))\n",
        "",
    ),
    "already done, from a file that is not fsynced": Mutant(
        "an answer drawn from the file is an acknowledgement",
        "order of the calls",
        FILE,
        "                place.sync(file)\n                return after\n",
        "                return after\n",
    ),
    "resume is not re-entrant": Mutant(
        "resume gives the same owner the same token",
        "kill sweep",
        MODEL,
        "    if lease is not None and mine:\n        renewed = _renewed",
        "    if lease is not None and mine and False:\n        renewed = _renewed",
    ),
    "a temporary file of a dead process stays": Mutant(
        "left-over temps of this id are removed under its lock",
        "kill sweep",
        DISK,
        "        for name in self.temporaries(owner):\n            self._discard(name)\n",
        "",
    ),
    "a temporary file stays after an error": Mutant(
        "errors: no temp left",
        "error sweep",
        DISK,
        "        except BaseException:\n            self._discard(temporary)\n            raise\n",
        "        except BaseException:\n            raise\n",
    ),
    "an unconfirmed write is passed over": Mutant(
        "fsync(dir) failing after the rename is said as it is",
        "error sweep",
        DISK,
        '        try:\n            _flush(self.fd)\n        except OSError as error:\n            raise StoreUnavailable(\n                f"{done},',
        '        try:\n            _flush(self.fd)\n        except OSError as error:\n            return\n            raise StoreUnavailable(\n                f"{done},',
    ),
    "no lock is as good as busy": Mutant(
        "ENOLCK, EIO are StoreUnavailable, not busy",
        "error sweep",
        FLOCK,
        "        raise next((cause for cause in error.args if isinstance(cause, OSError)), OSError(str(error))) from error\n",
        "        return False\n",
    ),
    "there is no lock": Mutant(
        "under the update lock",
        "contention",
        FLOCK,
        "    try:\n        _lock(fd,",
        "    return True\n    try:\n        _lock(fd,",
    ),
    "the lock file is unlinked": Mutant(
        "lock files are never unlinked",
        "order of the calls",
        DISK,
        "                # Closing is not enough",
        "                os.unlink(self._name, dir_fd=self._folder.fd)\n                # Closing is not enough",
    ),
    "decided before the lock is held": Mutant(
        "read, decide, write under the lock",
        "schedules",
        FILE,
        "        with self._errors(), self._located(name) as (_, place, file, id, lock):\n            before = self._read(place, file, id)\n",
        "        folder = self._folder()\n        early = self._read(*self._locate(folder, name))\n        with self._errors(), self._located(name) as (_, place, file, id, lock):\n            before = early\n",
    ),
    "unlinked before the finished copy is there": Mutant(
        "a finished run is moved, never missing",
        "kill sweep of the end",
        FILE,
        "            model.check_finished(checkpoint)\n",
        "            model.check_finished(checkpoint)\n            os.unlink(file, dir_fd=folder.fd)\n            folder.remove = lambda name: None\n",
    ),
    "a link is followed": Mutant(
        "load: O_NOFOLLOW",
        "hostile directory",
        DISK,
        "_READ = os.O_RDONLY | os.O_NOFOLLOW |",
        "_READ = os.O_RDONLY |",
    ),
    "a second name is no matter": Mutant(
        "load: one link",
        "hostile directory",
        DISK,
        "            if status.st_nlink > 1:\n                raise _damaged",
        "            if status.st_nlink > 9:\n                raise _damaged",
    ),
    "the digest is not compared": Mutant(
        "load: digest", "fuzzing", CODEC, "        if computed != digest:\n", '        if computed == "":\n'
    ),
    "tokens begin anew with each run": Mutant(
        "the lock file keeps the last token",
        "store contract",
        FILE,
        "            checkpoint = model.above_token(checkpoint, lock.read()[0] or self._last_token(done, id))\n",
        "",
    ),
    "a live owner is robbed": Mutant(
        "one owner at a time",
        "contention",
        MODEL,
        "    if lease is not None and state in HELD and not mine and steal_reason is None:\n        raise Locked(",
        '    if lease is not None and state in HELD and not mine and steal_reason == "never":\n        raise Locked(',
    ),
    "a claim keeps the token": Mutant(
        "each claim gives token + 1",
        "state machine",
        MODEL,
        "        lease=_lease(owner, checkpoint.token + 1, now),\n        token=checkpoint.token + 1,\n        attempts=attempts,",
        "        lease=_lease(owner, checkpoint.token, now),\n        token=checkpoint.token,\n        attempts=attempts,",
    ),
    "a late writer is believed": Mutant(
        "a stale token is refused",
        "state machine",
        MODEL,
        "        if token != checkpoint.token:\n            why =",
        "        if token > checkpoint.token:\n            why =",
    ),
    "anybody may write": Mutant(
        "without a token only the lease's owner writes",
        "state machine",
        MODEL,
        '    if lease is not None and standing.owner in HELD and not _is_holder(lease, owner):\n        raise Locked(\n            f"{checkpoint.id} is held by {holder(lease)}; a write',
        '    if lease is None and standing.owner in HELD:\n        raise Locked(\n            f"{checkpoint.id} is held by ?; a write',
    ),
    "a step that may not be repeated is": Mutant(
        "once and begun is in doubt",
        "state machine",
        MODEL,
        "        if step.once or (once and doubtful):\n",
        "        if once and doubtful and not step.once:\n",
    ),
    "a reused pid is the owner": Mutant(
        "start time differs: dead",
        "processes",
        PROCESS,
        '    return "alive" if started == process.pid_started else "dead"\n',
        '    return "alive"\n',
    ),
    "a reboot is not noticed": Mutant(
        "another boot id: dead",
        "processes",
        PROCESS,
        '_boot_id()) or not _machine_id() else "dead"\n',
        '_boot_id()) or not _machine_id() else "unknown"\n',
    ),
    "what cannot be seen is dead": Mutant(
        "unreadable or another pid namespace: unknown",
        "processes",
        PROCESS,
        'process.pid_ns != _pid_namespace():\n        return "unknown"\n',
        'process.pid_ns != _pid_namespace():\n        return "dead"\n',
    ),
    "the command runs before its step is begun": Mutant(
        "run: begun durably before the command",
        "kill sweep of run",
        COMMAND,
        "            run.begin(name, once=once, add=add, process=_identity(child))\n",
        "            subprocess.run(command.argv, check=False)\n            run.begin(name, once=once, add=add, process=_identity(child))\n",
    ),
    "a notice is sent before it is written down": Mutant(
        "outbox: recorded before it is sent",
        "kill sweep of the self-check",
        FOLLOWUP,
        "                folder.write(incident.to_document(ledger))\n                ledger = self._tell",
        "                ledger = self._tell",
    ),
    "a notice that was taken is not noted": Mutant(
        "outbox: sent once",
        "incidents",
        FOLLOWUP,
        "                    ledger = incident.delivered(ledger, notice.id, channel.name)\n",
        "                    pass\n",
    ),
    "a notice that was refused is forgotten": Mutant(
        "outbox: tried again by channel",
        "incidents",
        FOLLOWUP,
        "                    ledger = incident.failed(ledger, channel.name)\n",
        "                    ledger = incident.delivered(incident.failed(ledger, channel.name), notice.id, channel.name)\n",
    ),
}
# Those that CI plants, in a few seconds each.
BOUNDED = ("a reboot is not noticed", "a reused pid is the owner", "tokens begin anew with each run")


def _copy(place: Path) -> Path:
    for part in ("checkpoint", "schemas", "systemd", "launchd", "agents", "scripts", "tests", "docs"):
        if (ROOT / part).exists():
            shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / file, place)
    return place


def _shown(place: Path, method: str) -> tuple[int, str]:
    """(pytest's exit status, what it said) for the method's tests on the copy at ``place``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *METHODS[method]]
    with tempfile.TemporaryDirectory() as temporary:
        environ = kept | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": temporary}
        done = subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout[-1500:]


@functools.cache
def _sound(method: str) -> str:
    """Nothing, or what the method says of the program as it is: then it would be no wonder that it fails."""
    with tempfile.TemporaryDirectory(prefix="mutant-", dir=scratch()) as place:
        code, said = _shown(_copy(Path(place)), method)
    return "" if code == 0 else said


@pytest.mark.parametrize("name", MUTANTS)
def test_each_bug_can_be_planted(name: str) -> None:
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, f"{mutant.file} does not hold the text once"
    compile((ROOT / mutant.file).read_text().replace(mutant.old, mutant.new), mutant.file, "exec")


@pytest.mark.parametrize("name", MUTANTS if WHOLE else BOUNDED)
@pytest.mark.proof("mutant")
def test_a_planted_bug_is_caught_by_its_method(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    assert not _sound(mutant.method), f"{mutant.method} fails without a bug: {_sound(mutant.method)}"
    place = _copy(tmp_path)
    path = place / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    code, said = _shown(place, mutant.method)
    tried("mutant", 1, 0 if code == pytest.ExitCode.TESTS_FAILED else 1)
    print(f"| {name} | {mutant.clause} | {mutant.method} |")
    assert code == pytest.ExitCode.TESTS_FAILED, f"{mutant.method} did not catch it: {said}"
    assert " failed" in said
