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
LIVENESS, API = "checkpoint/liveness.py", "checkpoint/api.py"
LOAD, PROGRAMS = "checkpoint/_load.py", "checkpoint/programs.py"
CRONTAB, SCHEDULE, HOST = "checkpoint/crontab.py", "checkpoint/schedule.py", "checkpoint/cli/host.py"
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
    "two parts of an owner": ["tests/test_owners.py", "-k", "subshell_does and dash or one-handle or forks"],
    "orphans": ["tests/test_owners.py", "-k", "orphan or left_behind"],
    "containers": ["tests/test_owners.py", "-k", "container"],
    "wrong clocks": ["tests/test_owners.py", "-k", "clock"],
    "owners": ["tests/test_owners.py", "-k", "same_owner or terminal or half_an_hour or other_hosts or renamed"],
    "store contract": ["tests/test_store.py"],
    "put back": [
        "tests/test_put_back.py",
        "-k",
        "by_copy or record_that_is_accepted or came_back or answers_for_its_key or half or vanished_is_missed",
    ],
    "lost lock files": ["tests/test_put_back.py", "-k", "lost_lock_files"],
    "moved": [
        "tests/test_put_back.py",
        "-k",
        "handle or moved_in_the_middle or one_object or lock_files_that or run_id or git",
    ],
    "first calls": ["tests/test_first_calls.py", "-k", "eight_threads and (list or names)"],
    "store and git": ["tests/test_worktree.py", "-k", "counted or ignored"],
    "working directory": ["tests/test_working_directory.py", "-k", "handed or in_pythonpath or given or not_sought"],
    "crontab": ["tests/test_schedule_cli.py", "-k", "another_program or each_cron or gives_the_shell"],
    "schedule words": [
        "tests/test_schedule_cli.py",
        "-k",
        "may_be_either or only_what_differs or said_once or allowed_secret or no_secret_is",
    ],
    "rights": ["tests/test_rights.py", "-k", "one_directory or update or record_of_root or refused"],
    "units": ["tests/test_schedule_cli.py", "-k", "leave_something_running"],
    "which store": ["tests/test_search.py", "-k", "another_user_above or every_directory_below"],
    "one command": ["tests/test_run.py", "-k", "goes_with_one_command or not_joined or same_attempt"],
    "ends and addresses": ["tests/test_cli.py", "-k", "without_a_step_is_not or is_refused_and_not_shown"],
    "looks of the shell": ["tests/test_shell.py", "-k", "only_the_answer and bash or whatever_streams and bash and yes"],
    "failures in the shell": ["tests/test_shell.py", "-k", "ends_a_strict and dash"],
    "stores of inner scripts": ["tests/test_shell.py", "-k", "store_it_has_alone and (bash or dash)"],
    "refused steps": ["tests/test_shell.py", "-k", "what_was_refused and bash"],
    "incidents": ["tests/test_followup.py", "-k", "said_once or channel_that_fails or three_days"],
    "last runs": ["tests/test_last_run.py", "-k", "every_night or older_run or loop"],
    "runs that are missed": ["tests/test_vanished.py", "-k", "until_it_is_forgotten or pruned_between or hangs"],
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
        "                spot.place.sync(spot.file)\n",
        "",
    ),
    "the command of a key is not compared": Mutant(
        "exec --key: another command is a Conflict",
        "one command",
        "checkpoint/api.py",
        "                model.refuse_other_invocation(run.checkpoint, EXEC_STEP, command_sha256)\n",
        "                pass\n",
    ),
    "the words of a command are joined": Mutant(
        "exec --key: another command is a Conflict",
        "one command",
        "checkpoint/api.py",
        '"surrogateescape") + b"\\0" for part',
        '"surrogateescape") for part',
    ),
    "a completed step takes any command": Mutant(
        "a completed step refuses another command in the same attempt",
        "one command",
        MODEL,
        "    if same_claim and None not in (step",
        "    if not same_claim and None not in (step",
    ),
    "a changed command is refused after a restart": Mutant(
        "a completed step refuses another command in the same attempt",
        "one command",
        MODEL,
        "    same_claim = checkpoint.lease is not None and step.token == checkpoint.token\n",
        "    same_claim = True\n",
    ),
    "an open plan without a step is complete": Mutant(
        "complete: an open plan without a step is refused",
        "ends and addresses",
        MODEL,
        "checkpoint.open_plan and not checkpoint.steps and reason is None:",
        "checkpoint.open_plan and not checkpoint.steps and reason is not None:",
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
    "a unit ends all that its command left running": Mutant(
        "schedules: a service that a command starts goes on",
        "units",
        "systemd/checkpoint-command.service",
        "KillMode=process",
        "KillMode=control-group",
    ),
    "sync writes what did not differ": Mutant(
        "schedules: sync writes only what differs",
        "schedule words",
        SCHEDULE,
        "            if differing:\n                self._change(",
        "            if True:\n                self._change(",
    ),
    "a word that may be either is taken for one": Mutant(
        "schedules: what may be meant in two ways is refused",
        "schedule words",
        HOST,
        "    if place and (here or expression):",
        "    if False:",
    ),
    "options of a scheduled self-check are not screened": Mutant(
        "schedules: no secret is written",
        "schedule words",
        HOST,
        "_screen(workspace, allow_secret, options=options)",
        "_screen(workspace, allow_secret)",
    ),
    "root makes directories in the workspace of another": Mutant(
        "rights: nothing is made in the workspace of another user",
        "rights",
        DISK,
        '            load("checkpoint.store.rights:refuse_making")(path, above)\n',
        "",
    ),
    "root writes in the store of another": Mutant(
        "rights: nothing is made in the workspace of another user",
        "rights",
        DISK,
        "        if self.owner != os.geteuid():\n            raise load",
        "        if False:\n            raise load",
    ),
    "root's crontab runs in the workspace of another": Mutant(
        "rights: a schedule runs as the owner or is refused",
        "rights",
        SCHEDULE,
        "    if not scheduler.as_owner:\n        raise SchedulerUnavailable(",
        "    if False:\n        raise SchedulerUnavailable(",
    ),
    "the crontab is not read again before it is written": Mutant(
        "schedules: what another program writes meanwhile is kept",
        "crontab",
        CRONTAB,
        "if program.poll() is None and not (read() in expected and read() in expected):",
        "if False:",
    ),
    "the crontab is not read again after it is written": Mutant(
        "schedules: what another program writes meanwhile is kept",
        "crontab",
        CRONTAB,
        '    if (read() or b"") != crontab:\n        return False\n    time.sleep',
        "    return True\n    time.sleep",
    ),
    "no crontab is known in the words of one cron alone": Mutant(
        "schedules: each cron",
        "crontab",
        CRONTAB,
        "|has no f?crontab|^crontab: can't open '[^'/]+': No such file",
        "",
    ),
    "the store is not searched upwards": Mutant(
        "which store: searched upwards",
        "which store",
        "checkpoint/store/search.py",
        "        if found is _Found.STORE:\n            return Search(store)\n",
        "        if found is _Found.STORE:\n            break\n",
    ),
    "a store that another user planted is used": Mutant(
        "which store: never another user's",
        "which store",
        "checkpoint/store/search.py",
        "    return _Found.STORE if owners <= {os.geteuid()} else _Found.FOREIGN\n",
        "    return _Found.STORE\n",
    ),
    "an address becomes directories": Mutant(
        "which store: an unknown scheme is Usage",
        "ends and addresses",
        "checkpoint/store/__init__.py",
        "    elif scheme is not None:\n",
        "    elif scheme is not None and not path:\n",
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
    "a module that is half imported is used": Mutant(
        "what is loaded late is whole for each thread",
        "first calls",
        LOAD,
        "    return getattr(importlib.import_module(module), attribute)\n",
        "    import sys\n\n    return getattr(sys.modules.get(module) or importlib.import_module(module), attribute)\n",
    ),
    "decided before the lock is held": Mutant(
        "read, decide, write under the lock",
        "schedules",
        FILE,
        "        with self._errors(), self._located(name) as spot:\n            before, changed_ns = self._read_dated(spot.place, spot.file, spot.id)\n",
        "        folder = self._folder()\n        before, changed_ns = self._read_dated(*self._locate(folder, name))\n        with self._errors(), self._located(name) as spot:\n",
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
    "a lock file is written through its second name": Mutant(
        "a hard-linked copy is left as it was",
        "store contract",
        DISK,
        "        if not self._shared:\n            return\n",
        "        if not self._shared or self._shared:\n            return\n",
    ),
    "a file of another user is read": Mutant(
        "load: our uid",
        "store contract",
        DISK,
        '            if status.st_uid != self.owner:\n                raise _damaged(name, "foreign-owner")\n',
        "",
    ),
    "the digest is not compared": Mutant(
        "load: digest", "fuzzing", CODEC, "        if computed != digest:\n", '        if computed == "":\n'
    ),
    "tokens begin anew with each run": Mutant(
        "the lock file keeps the last token",
        "store contract",
        FILE,
        "model.after_run(model.above_token(checkpoint, last), memory and memory.run)",
        "model.after_run(checkpoint, memory and memory.run)",
    ),
    "lost lock files begin anew": Mutant(
        "without lock files tokens go on above the finished runs",
        "lost lock files",
        FILE,
        "            last = spot.noted.token or self._last_token(done, id)\n",
        "            last = spot.noted.token\n",
    ),
    "a restored store goes on counting": Mutant(
        "tokens of a time that was taken back stay invalid",
        "put back",
        FILE,
        "    return changed_ns not in (0, memory.changed_ns)\n",
        "    return changed_ns == memory.changed_ns == 0\n",
    ),
    "a claim does not look at the lock file": Mutant(
        "a claim counts above the record and the lock file",
        "put back",
        FILE,
        "                after = model.above_token(after, last)\n",
        "                pass\n",
    ),
    "the lock file knows of a write before it is durable": Mutant(
        "record, lock file, answer",
        "kill sweep",
        FILE,
        "        spot.place.write(spot.file, encoded.raw, owner=spot.id)\n        self._last = encoded\n",
        "        self._acknowledge(spot, checkpoint, OPEN, last, 0)\n        spot.place.write(spot.file, encoded.raw, owner=spot.id)\n        self._last = encoded\n",
    ),
    "half a line of a lock file is believed": Mutant(
        "a power cut in the lock file damages no record",
        "put back",
        DISK,
        "    if found is None or binascii.crc32(text[line.end() : found.start(6) - 1]) != int(found[6], 16):\n",
        "    if found is None:\n",
    ),
    "an older record is gone on with": Mutant(
        "older than what was acknowledged is damage",
        "put back",
        FILE,
        "    if memory is None or not memory.is_after(run, checkpoint.revision, checkpoint.token):\n",
        "    if memory is None or memory is not None:\n",
    ),
    "a record that came back is gone on with": Mutant(
        "the finished record wins",
        "put back",
        FILE,
        "    if _is_put_away(folder, checkpoint):\n        if not",
        "    if not checkpoint.unfinished and _is_put_away(folder, checkpoint):\n        if not",
    ),
    "the receipt is not looked for": Mutant(
        "start answers with the receipt beside an old record",
        "put back",
        API,
        "                finished = self.store.receipt(id) if key is not None else None\n",
        "                finished = None\n",
    ),
    "what vanished is not missed": Mutant(
        "a record that vanished is no reason to begin anew",
        "put back",
        FILE,
        "        if memory is None or memory.wants_nothing or folder.has(file):\n",
        "        if memory is None or memory is not None:\n",
    ),
    "a moved store is written to": Mutant(
        "the path leads to the directory that is held",
        "moved",
        FILE,
        "            if held.is_named(self._path):\n",
        "            if held.fd >= 0:\n",
    ),
    "what is moved in the middle is written to": Mutant(
        "looked at again before the write",
        "moved",
        FILE,
        "        if spot.folder.is_named(self._path) and spot.locks",
        "        if spot.folder.fd >= 0 or spot.locks",
    ),
    "a run id means a workflow that is called so": Mutant(
        "pin and prune go by the run", "moved", FILE, "        if said == name:\n", "        if said:\n"
    ),
    "git sees the store": Mutant(
        "a new store has a .gitignore",
        "moved",
        FILE,
        "            self._keep_from_git(folder, id)\n",
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
        "    if lease is not None and standing.owner in HELD and not _is_holder(lease, owner):\n        held = f",
        "    if lease is None and standing.owner in HELD:\n        held = f",
    ),
    "a step that may not be repeated is": Mutant(
        "once and begun is in doubt",
        "state machine",
        MODEL,
        "        if step.once or (once and doubtful):\n",
        "        if once and doubtful and not step.once:\n",
    ),
    "the handle that began a step is not recorded": Mutant(
        "a step that one part of an owner does is refused to another",
        "two parts of an owner",
        API,
        "            caller=handle if self._caller_pid is None else None,\n",
        "            caller=None,\n",
    ),
    "every caller is the same": Mutant(
        "a step that one part of an owner does is refused to another",
        "two parts of an owner",
        MODEL,
        "    if one is None or other is None or one.pid is not None or other.pid is not None:\n        return False\n",
        "    if one is not None or other is not None:\n        return True\n    assert one is not None\n    assert other is not None\n",
    ),
    "the tick of the beginning is not allowed for": Mutant(
        "orphans: started on the tick of the beginning or later",
        "orphans",
        PROCESS,
        "            seen, above = above, self.running.get(above.parent)\n        return seen.started >= since\n",
        "            seen, above = above, self.running.get(above.parent)\n        return seen.started > since\n",
    ),
    "orphans are known by their environment alone": Mutant(
        "orphans: by process group and session too",
        "orphans",
        PROCESS,
        '            if seen.step is None and self._is_stray(pid, "group", group, since):\n                return True\n',
        "",
    ),
    "the orphans of a command are not looked for": Mutant(
        "orphans: of a command whose run and guard were killed",
        "orphans",
        MODEL,
        '        return not lives or lives == {"dead"}\n',
        "        return not lives\n",
    ),
    "a boot id alone proves death": Mutant(
        "another boot: dead only if written before this one began",
        "processes",
        PROCESS,
        "        if written < began:\n",
        "        if began:\n",
    ),
    "an image's machine id before its first boot is one": Mutant(
        "another boot: dead only with a valid machine id",
        "processes",
        PROCESS,
        'if _MACHINE_ID.fullmatch(text)), "")',
        'if text), "")',
    ),
    "a machine id of this boot alone is kept": Mutant(
        "a claim that could not be recognised after a reboot holds by time",
        "processes",
        PROCESS,
        "    return seen and first and _keeps_its_machine_id()\n",
        "    return seen and first and bool(_machine_id())\n",
    ),
    "a claim of another host holds for ever": Mutant(
        "a foreign claim ends 30 minutes after its last write",
        "owners",
        MODEL,
        '    if lease is None or lease.expires_at is not None or liveness != "elsewhere":\n',
        "    if lease is None or lease.expires_at is not None or liveness:\n",
    ),
    "a shared store is as good as a local one": Mutant(
        "on a network file system every claim holds by time",
        "owners",
        API,
        "if who.lease_s is None and self.store.shared else who",
        "if who.lease_s is None and not self.store.now() else who",
    ),
    "the lock of a claim is not asked": Mutant(
        "the claim's flock: held, alive; free, dead",
        "containers",
        LIVENESS,
        '        return "alive" if attested else "dead"\n',
        "        return found\n",
    ),
    "another time namespace is no matter": Mutant(
        "another time namespace: unknown",
        "processes",
        PROCESS,
        "    if None in (started, process.pid_started) or process.time_ns not in (None, _time_namespace()):\n",
        "    if None in (started, process.pid_started):\n",
    ),
    "any /proc will do": Mutant(
        "the /proc of another pid namespace: unknown",
        "processes",
        PROCESS,
        '        return os.readlink("/proc/self") == str(own_pid)\n',
        '        return bool(os.readlink("/proc/self"))\n',
    ),
    "the first process is init everywhere": Mutant(
        "in a pid namespace PID 1 is a caller like any other",
        "containers",
        PROCESS,
        "    return pid == 1 and _pid_namespace() in (None, _FIRST_PID_NAMESPACE)\n",
        "    return pid == 1\n",
    ),
    "the clock orders the runs": Mutant(
        "order comes from tokens, not from clocks",
        "wrong clocks",
        MODEL,
        "            latest = min(latest, run.created_at)\n",
        "            latest = run.created_at\n",
    ),
    "the clock files the runs": Mutant(
        "a run is filed behind the one before",
        "wrong clocks",
        MODEL,
        "    if last is None or run > last:\n",
        "    if last is None or run:\n",
    ),
    "a made-up name counts": Mutant(
        "an owner is compared by uid, host, pid and start time",
        "owners",
        MODEL,
        "    return made_up[1]\n",
        "    return name\n",
    ),
    "a terminal that is closed holds on": Mutant(
        "a claim made in a terminal ends with its session",
        "owners",
        LIVENESS,
        '        return "unknown" if found == "alive" else found\n',
        '        return "unknown"\n',
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
        '        if written < began:\n            return "dead"\n',
        '        if written < began:\n            return "unknown"\n',
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
        "            run.begin(name, once=once, add=add, process=_identity(child), command=command.argv)\n",
        "            subprocess.run(command.argv, check=False)\n            run.begin(name, once=once, add=add, process=_identity(child), command=command.argv)\n",
    ),
    "the child for apprise imports what stands around": Mutant(
        "nothing of the working directory is imported",
        "working directory",
        PROGRAMS,
        'return (sys.executable, "-I", script)',
        'return (sys.executable, "-m", "checkpoint.apprise_send")',
    ),
    "a schedule imports what PYTHONPATH names there": Mutant(
        "nothing of the working directory is imported",
        "working directory",
        PROGRAMS,
        'return (sys.executable, "-P", "-E")',
        "return (sys.executable,)",
    ),
    "files that git tracks below the store are missed": Mutant(
        "a store that git tracks is named",
        "store and git",
        "checkpoint/worktree.py",
        'name.startswith(inside + b"/")',
        'name == inside + b"/"',
    ),
    "a program is sought in the working directory": Mutant(
        "no program of the working directory is run",
        "working directory",
        PROGRAMS,
        "for directory in os.get_exec_path() if os.path.isabs(directory)]",
        "for directory in os.get_exec_path()]",
    ),
    "a notice is sent before it is written down": Mutant(
        "outbox: recorded before it is sent",
        "kill sweep of the self-check",
        FOLLOWUP,
        "                folder.write(incident.to_document(ledger))\n                self._remember",
        "                self._remember",
    ),
    "a notice that was taken is not noted": Mutant(
        "outbox: sent once",
        "incidents",
        FOLLOWUP,
        "                    ledger = incident.delivered(ledger, notice.id, channel.name)\n",
        "                    pass\n",
    ),
    "a job that fails every night is fine": Mutant(
        "the last run that went wrong stays in sight",
        "last runs",
        MODEL,
        """    if not ended.invoked or ended.status is Status.CANCELLED:
        return mark
""",
        """    if True:
        return None
""",
    ),
    "an old run that ends well clears a newer failure": Mutant(
        "the last run that went wrong stays in sight",
        "last runs",
        MODEL,
        "return mark if mark is not None and not _began_after(ended, mark, now) else None",
        "return None",
    ),
    "a loop is not counted": Mutant(
        "looping: begun under three claims", "last runs", "checkpoint/monitor.py", "LOOP = 3\n", "LOOP = 300\n"
    ),
    "a run that vanished is resolved": Mutant(
        "vanished: until a person forgets it",
        "runs that are missed",
        FILE,
        "                self._is_known(folder, done, id, run_id) or ",
        "                True or ",
    ),
    "a run that was pruned has vanished": Mutant(
        "vanished: not what ended in order",
        "runs that are missed",
        FILE,
        "memory.run == model.bare(run_id) and memory.state == OVER\n",
        "False\n",
    ),
    "a store that hangs is waited for": Mutant(
        "each store has a limit",
        "runs that are missed",
        "checkpoint/apart.py",
        "silent = fd not in ready and time.monotonic() >= child.heard + limit_s",
        "silent = False",
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
    if mutant.file.endswith(".py"):
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
