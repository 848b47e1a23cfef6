"""The schedulers of a host: systemd for a user or the system, launchd, cron. Each writes, takes away and looks."""

import hashlib
import os
import plistlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pwd import getpwuid
from typing import Any, NamedTuple, Protocol

from checkpoint import crontab, programs
from checkpoint._load import data_path
from checkpoint.cron import Cron, to_launchd, to_systemd
from checkpoint.errors import CheckpointError, SchedulerUnavailable, StoreUnavailable, Usage
from checkpoint.store.disk import Folder, publish
from checkpoint.store.rights import name_of, rightful_owner

_LIMIT_S = 60


class Thing(NamedTuple):
    """What is to be run and when. ``name``: as the host knows it; ``workspace``: the folder it runs in, absolute;
    ``selfcheck``: a check, which needs to write in its workspace alone, or a command of the user's, which may do anything."""

    name: str
    workspace: str
    cron: Cron
    argv: tuple[str, ...]
    selfcheck: bool


class State(NamedTuple):
    """What a scheduler tells of a thing. ``text``: what stands there, None where nothing does; ``next`` and ``last``: times,
    ``result``: of the last run, ``detail``: more, each as the scheduler says it."""

    text: str | None
    next: str | None = None
    last: str | None = None
    result: str | None = None
    detail: str | None = None
    running: bool = True


class Scheduler(Protocol):
    """``label``: what runs are labelled with; ``as_owner``: whether they run as the owner of the workspace, not as the user
    who schedules them. Every verb may raise SchedulerUnavailable."""

    name: str
    label: str
    as_owner: bool

    def unavailable(self) -> str | None:
        """Why it cannot be used here, or None."""

    def written(self, thing: Thing) -> dict[str, str]:
        """Path -> content of what ``enable`` would write. Raises Usage for what it cannot say."""

    def enable(self, thing: Thing) -> None:
        """Write it, start it, and see that it will run."""

    def disable(self, name: str) -> bool:
        """Take it away, with all that it left; whether there was anything."""

    def state(self, name: str) -> State:
        """What is there now."""

    def names(self) -> list[str]:
        """Everything of ours that is there."""


# --- cron --------------------------------------------------------------------------------------------------------------


class CronScheduler:
    """The user's crontab."""

    name = "cron"
    label = "cron"
    as_owner = False

    def __init__(self, kept: Callable[[], Folder]) -> None:
        self._kept = kept

    def unavailable(self) -> str | None:
        return None if programs.find("crontab") else "there is no crontab command"

    def written(self, thing: Thing) -> dict[str, str]:
        return {"crontab": crontab.block(thing.name, self._line(thing)).decode("utf-8", "surrogateescape")}

    def enable(self, thing: Thing) -> None:
        content = self._line(thing)
        crontab.change(self._kept(), lambda before: crontab.with_block(before, thing.name, content))

    def disable(self, name: str) -> bool:
        if crontab.find(crontab.read() or b"", name) is None:
            return False
        return crontab.change(self._kept(), lambda before: crontab.with_block(before, name, None))

    def state(self, name: str) -> State:
        found = crontab.find(crontab.read() or b"", name)
        if found is None:
            return State(None)
        text = found.replace(crontab._ADDED, b"").decode("utf-8", "surrogateescape")
        return State(text, detail=None if _cron_runs() else "no cron daemon is running")

    def names(self) -> list[str]:
        return crontab.names(crontab.read() or b"")

    def _line(self, thing: Thing) -> str:
        return crontab.line(thing.cron, thing.argv, thing.workspace, {} if thing.selfcheck else {"PATH": _path()})


def _cron_runs() -> bool:
    """Whether a cron daemon is seen among the processes; True where they cannot be seen."""
    try:
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return True
    for pid in pids:
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                if file.read().strip() in ("cron", "crond", "fcron", "anacron", "busybox"):
                    return True
        except OSError:
            continue
    return False


# --- systemd -----------------------------------------------------------------------------------------------------------


class SystemdScheduler:
    """Units of the user, or of the system."""

    label = "systemd"

    def __init__(self, *, user: bool, home: str, environ: Mapping[str, str]) -> None:
        self.name = "systemd" if user else "systemd-system"
        self._user = user
        self.as_owner = not user
        config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        data = environ.get("XDG_DATA_HOME") or os.path.join(home, ".local/share")
        self._units = os.path.join(config, "systemd/user") if user else "/etc/systemd/system"
        self._stamps = os.path.join(data, "systemd/timers") if user else "/var/lib/systemd/timers"

    def unavailable(self) -> str | None:
        if programs.find("systemctl") is None:
            return "there is no systemd"
        if self._user:
            done = self._systemctl("show-environment")
            return None if done.returncode == 0 else f"no systemd runs for this user: {_words(done)}"
        if os.geteuid() != 0:
            return "units of the system are for root"
        return None if os.path.isdir("/run/systemd/system") else "this system was not started by systemd"

    def written(self, thing: Thing) -> dict[str, str]:
        template = "checkpoint-selfcheck.service" if thing.selfcheck else "checkpoint-command.service"
        places = {
            "NAME": thing.name,
            "WORKSPACE": _specified(thing.workspace),
            "WORKSPACE_QUOTED": _quoted(thing.workspace),
            "EXEC": " ".join(_quoted(word, command=True) for word in thing.argv),
            "PATH": _quoted(f"PATH={_path()}"),
            "USER": "" if self._user else f"User={_owner(thing.workspace)}\n",
            "CALENDAR": "\n".join(f"OnCalendar={when}" for when in to_systemd(thing.cron)),
            "DELAY": "30" if thing.selfcheck else "0",
            "ACCURACY": "1min" if thing.selfcheck else "1s",
        }
        return {
            os.path.join(self._units, f"{thing.name}.service"): _filled(template, places),
            os.path.join(self._units, f"{thing.name}.timer"): _filled("checkpoint.timer", places),
        }

    def enable(self, thing: Thing) -> None:
        for path, content in self.written(thing).items():
            _publish(path, content)
        try:
            self._must("daemon-reload")
            self._must("enable", "--quiet", f"{thing.name}.timer")
            self._must("restart", f"{thing.name}.timer")
            if thing.selfcheck:
                self._try(thing.name)
            self._see_next(thing.name)
        except CheckpointError:
            self.disable(thing.name)
            raise

    def _try(self, name: str) -> None:
        """Run it once: a sandbox that cannot be made here shows only then, by an exit status from 200 on (systemd.exec(5))."""
        self._must("start", "--no-block", f"{name}.service")
        status = int(self._settled(name).get("ExecMainStatus") or 0)
        if status >= 200:
            raise SchedulerUnavailable(
                f"systemd cannot start {name}.service here (status {status}, of systemd.exec(5)); --with cron needs no sandbox",
                hint=self._command("status", f"{name}.service"),
            )

    def _see_next(self, name: str) -> None:
        # While the service runs, a timer has no next time yet.
        self._settled(name)
        if self.state(name).next is None:
            raise SchedulerUnavailable(
                f"systemd took {name}.timer, and has no next run for it", hint=self._command("status", f"{name}.timer")
            )

    def _settled(self, name: str) -> dict[str, str]:
        """The service, once it has ended, or after 10 s."""
        for _ in range(100):
            shown = self._shown(f"{name}.service", "ActiveState", "ExecMainStatus")
            if shown.get("ActiveState") not in ("activating", "deactivating"):
                break
            time.sleep(0.1)
        return shown

    def disable(self, name: str) -> bool:
        paths = [os.path.join(self._units, f"{name}.{kind}") for kind in ("timer", "service")]
        there = any(os.path.lexists(path) for path in paths)
        if there and self.unavailable() is None:
            self._systemctl("disable", "--quiet", "--now", f"{name}.timer")
            self._systemctl("stop", f"{name}.service")
            self._systemctl("clean", "--what=state", f"{name}.timer")
            self._systemctl("reset-failed", f"{name}.service", f"{name}.timer")
        # Persistent=yes leaves a stamp, by which a timer of the same name would think that it has a run to catch up on.
        links = [os.path.join(self._units, "timers.target.wants", f"{name}.timer"), f"{self._stamps}/stamp-{name}.timer"]
        for path in [*paths, *links]:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise SchedulerUnavailable(f"{path} cannot be removed: {error.strerror}") from error
        if there:
            _remove_if_empty(os.path.join(self._units, "timers.target.wants"))
            if self.unavailable() is None:
                self._must("daemon-reload")
        return there

    def state(self, name: str) -> State:
        contents = []
        for kind in ("service", "timer"):
            try:
                with open(os.path.join(self._units, f"{name}.{kind}"), encoding="utf-8", errors="surrogateescape") as file:
                    contents.append(file.read())
            except OSError:
                continue
        if not contents:
            return State(None)
        timer = self._shown(f"{name}.timer", "NextElapseUSecRealtime", "LastTriggerUSec", "ActiveState")
        service = self._shown(f"{name}.service", "Result", "ExecMainStatus", "ActiveState", "ExecMainStartTimestamp")
        # Also of a run that somebody started by hand.
        last = service.get("ExecMainStartTimestamp") or timer.get("LastTriggerUSec") or None
        result = None
        if last is not None:
            result = service.get("ActiveState", "")
            if result != "activating":
                result = service.get("Result", "")
                result += f" (exit status {service['ExecMainStatus']})" if service.get("ExecMainStatus", "0") != "0" else ""
        return State(
            "".join(contents),
            timer.get("NextElapseUSecRealtime") or None,
            last if last != "n/a" else None,
            result or None,
            None
            if timer.get("ActiveState") == "active"
            else f"the timer is {timer.get('ActiveState') or 'not known to systemd'}",
            timer.get("ActiveState") == "active",
        )

    def names(self) -> list[str]:
        try:
            files = os.listdir(self._units)
        except OSError:
            return []
        return sorted(name.removesuffix(".timer") for name in files if re.fullmatch(r"checkpoint-[a-z0-9_-]+\.timer", name))

    def lingers(self) -> bool:
        """Whether the user's units run while nobody is logged in."""
        return not self._user or os.path.exists(f"/var/lib/systemd/linger/{getpwuid(os.geteuid()).pw_name}")

    def _shown(self, unit: str, *properties: str) -> dict[str, str]:
        done = self._systemctl("show", unit, *(f"--property={name}" for name in properties))
        pairs = (line.partition("=") for line in done.stdout.decode(errors="replace").splitlines())
        return {name: value for name, _, value in pairs}

    def _must(self, *arguments: str) -> None:
        done = self._systemctl(*arguments)
        if done.returncode != 0:
            raise SchedulerUnavailable(f"systemctl {arguments[0]} failed: {_words(done)}", hint=self._command(*arguments))

    def _systemctl(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return _run(["systemctl", *(["--user"] if self._user else []), *arguments])

    def _command(self, *arguments: str) -> str:
        return shlex.join(["systemctl", *(["--user"] if self._user else []), *arguments])


def _filled(template: str, places: Mapping[str, str]) -> str:
    with open(data_path(f"systemd/{template}"), encoding="utf-8") as file:
        lines = [line for line in file if not line.startswith("#:")]
    return re.sub(r"@([A-Z_]+)@", lambda match: places[match[1]], "".join(lines))


def _specified(text: str) -> str:
    """For where specifiers are expanded (systemd.unit(5)) and nothing is quoted."""
    if text.endswith("\\"):
        raise Usage("systemd takes a backslash at the end of a line for its continuation: rename the folder")
    return _escaped(text)


def _escaped(text: str) -> str:
    return _printable(text).replace("%", "%%")


def _quoted(text: str, *, command: bool = False) -> str:
    """For where words are quoted (systemd.syntax(7)), in a command (systemd.service(5)) with variables."""
    word = _escaped(text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + (word.replace("$", "$$") if command else word) + '"'


def _printable(text: str) -> str:
    if re.search(r"[\n\r\0]", text):
        raise Usage("a unit cannot hold a line break or NUL: rename the folder, or put the command into a script")
    return text


# --- launchd -----------------------------------------------------------------------------------------------------------


class LaunchdScheduler:
    """Agents of the user on a Mac. Never run on one: checked as property lists."""

    name = "launchd"
    label = "launchd"
    as_owner = False

    def __init__(self, *, home: str) -> None:
        self._agents = os.path.join(home, "Library/LaunchAgents")
        self._logs = os.path.join(home, "Library/Logs/checkpoint-tool")

    def unavailable(self) -> str | None:
        return None if sys.platform == "darwin" and programs.find("launchctl") else "there is no launchd"

    def written(self, thing: Thing) -> dict[str, str]:
        with open(data_path("launchd/checkpoint.plist"), "rb") as file:
            plist: dict[str, Any] = plistlib.load(file)
        plist |= {
            "Label": thing.name,
            "ProgramArguments": [_printable(word) for word in thing.argv],
            "WorkingDirectory": _printable(thing.workspace),
            "StartCalendarInterval": to_launchd(thing.cron),
            "RunAtLoad": thing.selfcheck,
            # launchd would end what is left in the process group when the command ends.
            "AbandonProcessGroup": not thing.selfcheck,
            "EnvironmentVariables": {"PATH": _path()},
            "StandardOutPath": os.path.join(self._logs, f"{thing.name}.out"),
            "StandardErrorPath": os.path.join(self._logs, f"{thing.name}.err"),
        }
        return {os.path.join(self._agents, f"{thing.name}.plist"): plistlib.dumps(plist, sort_keys=False).decode()}

    def enable(self, thing: Thing) -> None:
        ((path, content),) = self.written(thing).items()
        os.makedirs(self._logs, mode=0o700, exist_ok=True)
        self._boot_out(thing.name)
        _publish(path, content)
        # In a session by ssh there is no "gui" domain (launchctl(1)).
        done = [_run(["launchctl", "bootstrap", domain, path]) for domain in self._domains()[:1]]
        if done[0].returncode != 0:
            done.append(_run(["launchctl", "bootstrap", self._domains()[1], path]))
        if done[-1].returncode != 0:
            os.unlink(path)
            raise SchedulerUnavailable(
                f"launchctl bootstrap failed: {_words(done[-1])}", hint=f"plutil -lint {shlex.quote(path)}"
            )

    def disable(self, name: str) -> bool:
        path = os.path.join(self._agents, f"{name}.plist")
        if not os.path.lexists(path):
            return False
        self._boot_out(name)
        os.unlink(path)
        return True

    def state(self, name: str) -> State:
        try:
            with open(os.path.join(self._agents, f"{name}.plist"), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            return State(None)
        for domain in self._domains():
            done = _run(["launchctl", "print", f"{domain}/{name}"])
            if done.returncode == 0:
                shown = done.stdout.decode(errors="replace")
                code = re.search(r"last exit code = (.*)", shown)
                return State(text, result=code[1].strip() if code else None)
        return State(text, detail="launchd does not know it", running=False)

    def names(self) -> list[str]:
        try:
            files = os.listdir(self._agents)
        except OSError:
            return []
        return sorted(name.removesuffix(".plist") for name in files if re.fullmatch(r"checkpoint-[a-z0-9_-]+\.plist", name))

    def _domains(self) -> list[str]:
        return [f"gui/{os.getuid()}", f"user/{os.getuid()}"]

    def _boot_out(self, name: str) -> None:
        for domain in self._domains():
            _run(["launchctl", "bootout", f"{domain}/{name}"])


# --- the table ---------------------------------------------------------------------------------------------------------

ORDER = ("launchd", "systemd", "systemd-system", "cron")
"""The best first, as far as a host has it."""


def table(kept: Callable[[], Folder], home: str, environ: Mapping[str, str]) -> dict[str, Scheduler]:
    """All schedulers by name. ``kept``: opens, or makes, the folder for backups of the crontab."""
    return {
        "launchd": LaunchdScheduler(home=home),
        "systemd": SystemdScheduler(user=True, home=home, environ=environ),
        "systemd-system": SystemdScheduler(user=False, home=home, environ=environ),
        "cron": CronScheduler(kept),
    }


def sha256(text: str) -> str:
    """By which it is known whether something was changed since it was written."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def runs_as(uid: int, python: str) -> bool:
    """Whether that user can run this program by that interpreter. For root to ask."""
    try:
        group = getpwuid(uid).pw_gid
    except KeyError:
        group = uid
    argv = [python, "-P", "-c", "import checkpoint"]
    try:
        done = subprocess.run(
            argv,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
            user=uid,
            group=group,
            extra_groups=[],
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _path() -> str:
    return os.environ.get("PATH") or os.defpath


def _owner(workspace: str) -> str:
    uid = rightful_owner(workspace)
    return name_of(os.geteuid() if uid is None else uid)


def _publish(path: str, content: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        publish(path, content.encode("utf-8", "surrogateescape"), mode=0o644)
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be written: {error.strerror}") from error


def _remove_if_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # others have something in it


def _run(argv: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    program = programs.find(argv[0])
    if program is None:
        return subprocess.CompletedProcess(argv, 127, b"", f"there is no {argv[0]}".encode())
    try:
        return subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=programs.environ() | {"LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(argv, 126, b"", f"{argv[0]}: {type(error).__name__}".encode())


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
