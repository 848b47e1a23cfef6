"""`checkpoint-tool schedule` on real hosts: Debian's cron, `systemd --user` and a systemd that is the first process.

Each is in namespaces of its own (harness/). launchd exists on no machine that tests run on.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import ROOT, TOOL, Result, Workspace, lacking, need_program, need_root, unable

HARNESS = Path(__file__).resolve().parent / "harness"
NAMESPACES = {
    "cron.sh": ("--mount", "--pid"),
    "user-systemd.sh": ("--mount", "--pid", "--cgroup"),
    "system-systemd.sh": ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root"),
}


class Machine:
    """A scheduler that runs, with a home and a workspace of its own; ends with ``close``."""

    def __init__(self, script: str, folder: Path, *argv: str, zone: str = "UTC", clock: str = "") -> None:
        self.folder = folder
        self.home = folder / "home"
        self.workspace = Workspace(folder / "work")
        self.path = self.workspace.path
        self.home.mkdir(parents=True, exist_ok=True)
        self.workspace.store.mkdir(parents=True, mode=0o700)
        self.namespaces = NAMESPACES[script]
        unset = ("DBUS_", "XDG_", "CHECKPOINT_", "PYTEST_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        self.env |= {
            "HOME": str(self.home),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": zone,
            "CHECKPOINT_OWNER": "tester",
        }
        self.started = time.time()
        self.process = subprocess.Popen(
            [HARNESS / script, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env | {"CLOCK": clock},
        )
        assert self.process.stdout is not None
        self.init = self.process.stdout.readline().strip()
        if script == "user-systemd.sh":
            self.env["XDG_RUNTIME_DIR"] = "/run/user/0"
        if not self.init:
            self.close()
            unable(f"{script} does not come up here: it wants to make namespaces, and for systemd a cgroup")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def run(self, *argv: str, input: str | None = None, timeout: float = 100, **env: str) -> Result:
        words = [f"{name}={value}" for name, value in (self.env | env).items()]
        enter = ["nsenter", "--target", self.init, *self.namespaces, "--", "env", "-i", "-C", str(self.path), *words, *argv]
        done = subprocess.run(enter, input=input, capture_output=True, text=True, timeout=timeout, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def schedule(self, *argv: str, **more: Any) -> Result:
        return self.run(TOOL, "schedule", *argv, **more)

    def status(self, name: str, workspace: Path | None = None) -> int:
        """How `checkpoint-tool status` tells the last run of a command: its exit code."""
        return self.run(TOOL, "status", name, "--store", str((workspace or self.path) / "memory" / "checkpoints")).code

    def crontab(self) -> str:
        return self.run("crontab", "-l").out

    def units(self, folder: Path) -> dict[str, bytes | str]:
        """Everything in a folder of units. Files are read from outside: the folders are no others there."""
        return {
            str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    need_root()
    need_program("unshare")
    need_program("nsenter")
    made: list[Machine] = []

    def begin(script: str, *argv: str, name: str = "m", **more: str) -> Machine:
        need_program("cron" if script == "cron.sh" else "systemctl")
        if more.get("clock"):
            need_program("faketime")
        made.append(Machine(script, tmp_path / name, *argv, **more))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def ok(result: Result) -> Result:
    assert result.code == 0, result
    return result


def wait(what: Callable[[], object], seconds: float, pause: float = 0.2) -> Any:
    """Until ``what`` is true."""
    end = time.monotonic() + seconds
    while True:
        if found := what():
            return found
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(pause)


def stale(machine: Machine) -> None:
    """A checkpoint that has stood still for longer than it may."""
    store = str(machine.workspace.store)
    ok(machine.run(TOOL, "start", "deploy", "--steps", "a", "--stale-after", "1s", "--store", store))
    time.sleep(1.1)


def runs(log: Path) -> list[dict[str, Any]]:
    """The runs of the self-check that its log tells of."""
    if not log.exists():
        return []
    return [row for row in map(json.loads, log.read_text().splitlines()) if row["event"] == "run"]


def test_shellcheck_finds_nothing_in_the_harness() -> None:
    scripts = [str(path) for path in sorted(HARNESS.glob("*.sh"))]
    assert len(scripts) == 4
    argv = [need_program("shellcheck"), "--external-sources", "--severity", "warning", *scripts]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# cron


@pytest.fixture(scope="module")
def cron_in_real_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Begun before other tests wait for a minute too: one wait is enough for all."""
    need_root()
    for program in ("cron", "unshare", "nsenter"):
        need_program(program)
    host = Machine("cron.sh", tmp_path_factory.mktemp("cron"))
    log = str(host.folder / "log.jsonl")
    ok(host.run("crontab", "-", input='MAILTO=""\n# mine\n'))
    ok(host.schedule("install", "--with", "cron", "--every", "1m", "--", "--log", log))
    ok(host.schedule("add", ".", "* * * * *", "--name", "good", "--with", "cron", "--", "sh", "-c", 'echo "$PWD" >"100% out"'))
    ok(host.schedule("add", ".", "* * * * *", "--name", "bad", "--with", "cron", "--", "sh", "-c", "exit 3"))
    yield host
    host.close()


def test_forty_commands_added_at_once_are_kept(machine: Callable[..., Machine]) -> None:
    host = machine("cron.sh")
    ok(host.run("crontab", "-", input="0 0 1 1 * true\n"))
    before = host.crontab()

    def add(number: int) -> Result:
        return host.schedule("add", ".", f"{number} 4 1 1 *", "--name", f"n{number}", "--with", "cron", "--", "true")

    with ThreadPoolExecutor(40) as pool:
        results = list(pool.map(add, range(40)))
    assert [result for result in results if result.code != 0] == []
    names = {row["name"] for row in ok(host.schedule("list", str(host.path), "--json")).lines if row["installed"]}
    assert names == {f"n{number}" for number in range(40)}
    assert host.crontab().count("# BEGIN checkpoint-tool ") == 40
    ok(host.schedule("set", ".", "[]"))
    assert host.crontab() == before


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A folder for PATH in which crontab is that of BusyBox, where the BusyBox of this machine has one."""
    program = need_program("busybox")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    if "crontab" not in applets:
        lacking("this busybox has no crontab: install busybox-static")
    (tmp_path / "busybox").mkdir()
    (tmp_path / "busybox" / "crontab").symlink_to(program)
    return tmp_path / "busybox"


def test_busybox_keeps_what_is_installed(machine: Callable[..., Machine], busybox: Path) -> None:
    """From no crontab at all, and back to none."""
    host = machine("cron.sh")
    host.env["PATH"] = f"{busybox}:{host.env['PATH']}"
    assert "No such file or directory" in host.run("crontab", "-l").err
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "date", "+%F"))
    assert host.crontab().count("# BEGIN checkpoint-tool ") == 2
    assert {row["installed"] for row in ok(host.schedule("list", "--json")).lines} == {True}
    assert host.schedule("sync").out == ""
    ok(host.run("crontab", "-", input=host.crontab() + "0 0 1 1 * mine\n"))
    ok(host.schedule("set", ".", "[]"))
    ok(host.schedule("remove"))
    assert host.crontab() == "0 0 1 1 * mine\n"
    ok(host.run("crontab", "-r"))
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("undo"))
    assert "No such file or directory" in host.run("crontab", "-l").err
    # A spool that is not there is no empty crontab.
    ok(host.run("mv", "/var/spool/cron/crontabs", "/var/spool/cron/gone"))
    done = host.schedule("sync")
    assert (done.code, "can't change directory" in done.err) == (18, True), done


def test_a_crontab_that_is_written_by_others_all_the_time(machine: Callable[..., Machine]) -> None:
    """Each of our blocks stands once at the end, whenever another program wrote what it had read before."""
    host = machine("cron.sh")
    ok(host.run("crontab", "-", input="# mine\n"))
    again = "for n in $(seq 60); do crontab -l >/tmp/tab.$$; sleep 0.01; crontab /tmp/tab.$$; done; rm /tmp/tab.$$"
    rival = subprocess.Popen(["nsenter", "--target", host.init, "--mount", "--pid", "sh", "-c", again])
    for number in range(6):
        ok(host.schedule("add", ".", f"{number} 4 1 1 *", "--name", f"n{number}", "--with", "cron", "--", "true"))
    assert rival.wait(60) == 0
    assert host.crontab().startswith("# mine\n")
    ok(host.schedule("sync"))
    assert host.crontab().count("# BEGIN checkpoint-tool ") == 6
    ok(host.schedule("set", ".", "[]"))
    assert host.crontab() == "# mine\n"


def test_cron_goes_on_over_a_change_of_the_clock(machine: Callable[..., Machine]) -> None:
    """Every ten minutes of a clock that runs 120 times as fast, before a change and after it: forward, and back."""
    zone, speed = ZoneInfo("Europe/Berlin"), 120
    changes = {"2026-03-29 01:45:00": [2], "2026-10-25 02:45:00": []}
    hosts = {}
    for begin in changes:
        host = hosts[begin] = machine("cron.sh", name=begin[5:7], zone="Europe/Berlin", clock=f"@{begin} x{speed}")
        ok(host.schedule("install", "--with", "cron", "--", "--log", str(host.folder / "log.jsonl")))
        ok(host.schedule("add", ".", "*/10 * * * *", "--name", "often", "--with", "cron", "--", "sh", "-c", "echo >>out"))
    for begin, missing in changes.items():
        host, log = hosts[begin], hosts[begin].folder / "log.jsonl"
        wait(lambda log=log: len(runs(log)) >= 4, 40)
        wait(lambda host=host: host.status("often") == 0, 10)
        start = datetime.fromisoformat(begin).replace(tzinfo=zone).astimezone(UTC)
        # The daemon's clock when each began; what it starts has the real one.
        times = [datetime.fromisoformat(row["at"]).timestamp() - host.started for row in runs(log)]
        local = [(start + timedelta(seconds=seconds * speed)).astimezone(zone) for seconds in times]
        minutes = [(second - first) * speed / 60 for first, second in pairwise(times)]
        assert len({at.utcoffset() for at in local}) == 2, local
        assert [at for at in local if at.hour in missing] == []
        assert all(5 <= passed <= 16 for passed in minutes), (local, minutes)
        assert len((host.path / "out").read_text().splitlines()) >= 3


def test_cron_and_we_mean_the_same_days(machine: Callable[..., Machine]) -> None:
    """What the daemon starts on a Tuesday at midnight is what `schedule next` says comes then."""
    midnight = "2026-11-24T00:00:00+00:00"
    texts = [
        "0 0 * * 2",
        "0 0 * * 1",
        "0 0 13 * 2",
        "0 0 24 * 1",
        "0 0 13 * 1",
        "0 0 13 * 0-6",
        "0 0 1-31 * 1",
        "0 0 */1 * 1",
        "0 0 13 * */1",
        "0 0 *,13 * 1",
        "0 0 13,* * 1",
        "0 0 13 * 1,*",
        "0 0 * NOV TUE-FRI",
        "0 0 * jan *",
        "@daily",
        "@weekly",
    ]
    host = machine("cron.sh", clock="@2026-11-23 23:30:00 x60")
    wanted = set()
    for number, text in enumerate(texts):
        done = host.schedule("add", ".", text, "--name", f"n{number}", "--with", "cron", "--", "true")
        if done.code == 2:
            continue
        ok(done)
        after = ["--from", "2026-11-23T23:59:00+00:00", "--tz", "UTC", "--json"]
        if ok(host.schedule("next", text, *after)).lines[0]["at"] == midnight:
            wanted.add(text)
    assert time.time() - host.started < 29, "too slow to be there before midnight"
    time.sleep(max(0.0, host.started + 33 - time.time()))
    wait(lambda: not host.run("pgrep", "-f", "checkpoint exec").out, 20)
    assert {text for number, text in enumerate(texts) if host.status(f"n{number}") == 0} == wanted


# systemd as a user


def moment(text: str) -> datetime:
    """A time as systemd writes it, or as we do."""
    if text[0].isdigit():
        return datetime.fromisoformat(text)
    return datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)


def fired(host: Machine, name: str, *scope: str) -> str:
    """When systemd began the service last, in its own words; empty: never."""
    out = host.run("systemctl", *scope, "show", "--property=ExecMainStartTimestamp", "--value", f"{name}.service").out
    return out.strip()


def unit_of(host: Machine, entry: str, folder: Path) -> str:
    (timer,) = folder.glob(f"checkpoint-work-*-{entry}.timer")
    return timer.stem


def test_a_systemd_of_the_user_runs_what_is_installed(machine: Callable[..., Machine], cron_in_real_time: Machine) -> None:
    host = machine("user-systemd.sh")
    folder = host.home / ".config" / "systemd" / "user"
    folder.mkdir(parents=True)
    (folder / "mine.service").write_text("[Service]\nExecStart=/bin/true\n")
    before = host.units(folder)
    user = "--user"

    printed = ok(host.schedule("install", "--every", "1m", "--print", "--with", "systemd")).out
    ok(host.schedule("install", "--every", "1m", "--with", "systemd"))
    for path, text in re.findall(r"^# (/\S+)\n(.*?)(?=^# /|\Z)", printed, re.MULTILINE | re.DOTALL):
        assert Path(path).read_text() == text
    ok(
        host.schedule(
            "add",
            ".",
            "* * * * *",
            "--name",
            "good",
            "--with",
            "systemd",
            "--",
            "sh",
            "-c",
            'echo "$PWD" >>"100% out"',
        )
    )
    check, good = unit_of(host, "selfcheck", folder), unit_of(host, "good", folder)
    assert host.run("systemctl", user, "is-enabled", f"{check}.timer").out.strip() == "enabled"
    installed = host.units(folder)
    ok(host.schedule("install", "--every", "1m", "--with", "systemd"))
    assert host.units(folder) == installed, "installing again changes nothing"

    def all_with_a_time() -> list[dict[str, Any]]:
        found = ok(host.schedule("status", str(host.path), "--json")).lines
        return found if all(row["next"] for row in found) else []

    # While a unit runs, or is about to, systemd tells of no next time.
    rows = wait(all_with_a_time, 30)
    assert {row["name"] for row in rows} == {"selfcheck", "good"}
    for row in rows:
        assert (row["scheduler"], row["installed"]) == ("systemd", True)
        assert moment(row["next"]) - datetime.now(UTC) < timedelta(minutes=2.6)
    problems = host.schedule("doctor", "--json")
    assert [line for line in problems.out.splitlines() if "linger" not in line] == []
    assert "enable-linger" in problems.out, "reported, and never enabled"
    assert host.schedule("sync").out == ""

    before_that = fired(host, check, user)
    wait(lambda: host.status("good") == 0 and fired(host, check, user) != before_that, 160, 1)
    assert (host.path / "100% out").read_text().splitlines()[0] == str(host.path)
    row = next(row for row in ok(host.schedule("status", "--json")).lines if row["name"] == "good")
    assert datetime.now(UTC) - moment(row["last"]) < timedelta(minutes=3)
    assert row["result"] == "success"

    stamps = host.home / ".local" / "share" / "systemd" / "timers"
    assert list(stamps.glob("stamp-checkpoint-*"))
    ok(host.schedule("remove"))
    ok(host.schedule("remove", ".", "good"))
    assert host.units(folder) == before
    assert not (folder / "timers.target.wants").exists()
    assert list(stamps.glob("stamp-checkpoint-*")) == []
    assert host.run("systemctl", user, "list-units", "--all", "--plain", "--no-legend", f"{check}*", f"{good}*").out == ""


def test_cron_runs_what_is_installed_in_real_time(cron_in_real_time: Machine) -> None:
    """A real minute: the self-check, a command that succeeds, and one that fails."""
    host = cron_in_real_time
    wait(lambda: runs(host.folder / "log.jsonl") and (host.status("good"), host.status("bad")) == (0, 33), 75, 1)
    assert (host.path / "100% out").read_text() == f"{host.path}\n"
    for row in ok(host.schedule("status", str(host.path), "--json")).lines:
        assert row["installed"] is True
        assert moment(row["next"]) - datetime.now(UTC) <= timedelta(minutes=1)
    done = host.schedule("doctor")
    assert (done.code, done.out.count("\n")) == (18, 1), "cron runs, and nothing is wrong but what the crontab says of mail"
    assert "MAILTO is empty" in done.out
    assert host.schedule("sync").out == ""
    ok(host.schedule("remove"))
    ok(host.schedule("set", ".", "[]"))
    assert host.crontab() == 'MAILTO=""\n# mine\n'


def test_a_finding_leaves_the_unit_failed_until_the_next_good_run(machine: Callable[..., Machine]) -> None:
    host = machine("user-systemd.sh")
    ok(host.schedule("install", "--with", "systemd"))
    check = unit_of(host, "selfcheck", host.home / ".config" / "systemd" / "user")

    def failed() -> str:
        return host.run("systemctl", "--user", "--failed", "--plain", "--no-legend").out

    def result() -> Any:
        (row,) = ok(host.schedule("status", "--json")).lines
        return row["result"]

    assert failed() == ""
    stale(host)
    assert host.run("systemctl", "--user", "start", f"{check}.service").code != 0
    assert f"{check}.service" in failed()
    assert result() not in (None, "", "success")
    ok(host.run(TOOL, "cancel", "deploy", "--reason", "seen", "--store", str(host.workspace.store)))
    ok(host.run("systemctl", "--user", "start", f"{check}.service"))
    assert failed() == ""
    assert result() in (None, "success")
    # 2, critical, is no success either.
    host.workspace.file("broken").write_text("{")
    host.workspace.file("broken").chmod(0o600)
    assert host.run("systemctl", "--user", "start", f"{check}.service").code != 0
    assert f"{check}.service" in failed()


DETACHES = """\
#!/bin/sh
# Starts a service that is to stay, and with `long` here goes on itself.
setsid sh -c 'echo $$ >>detached; exec sleep 300' &
until [ -s detached ]; do sleep 0.05; done
if [ -e long ]; then
    echo $$ >group
    sleep 301 &
    sleep 302 | cat
fi
"""


def start_and_stop(host: Machine, folder: Path, *scope: str) -> None:
    """What a command leaves running on purpose outlives its unit; `systemctl stop` ends its process group."""
    script = host.path / "starts.sh"
    script.write_text(DETACHES)
    script.chmod(0o755)
    name = "systemd" if scope else "systemd-system"
    ok(host.schedule("add", ".", "5 4 1 1 *", "--name", "starts", "--with", name, "--", "./starts.sh"))
    unit = unit_of(host, "starts", folder) + ".service"

    def state() -> str:
        return host.run("systemctl", *scope, "show", "--property=ActiveState", "--value", unit).out.strip()

    def lives(pid: str) -> bool:
        return host.run("ps", "-o", "stat=", "-p", pid).out.strip()[:1] not in ("", "Z")

    def group() -> list[str]:
        leader = (host.path / "group").read_text().strip()
        rows = (line.split() for line in host.run("ps", "-A", "-o", "pgid=,pid=,stat=").out.splitlines())
        return [pid for pgid, pid, stat in rows if pgid == leader and not stat.startswith("Z")]

    def detached() -> list[str]:
        return (host.path / "detached").read_text().split()

    ok(host.run("systemctl", *scope, "start", unit))
    assert host.status("starts") == 0
    assert state() == "inactive"
    assert [lives(pid) for pid in detached()] == [True]
    # The next run ends by `systemctl stop`, and the one after that by the death of what started it.
    (host.path / "long").touch()
    for stop, left in (("stop", 2), ("kill", 3)):
        (host.path / "group").unlink(missing_ok=True)
        ok(host.run("systemctl", *scope, "start", "--no-block", unit))
        wait(lambda: (host.path / "group").exists() and len(group()) == 4, 20)
        wait(lambda: host.status("starts") == 30, 10)
        if stop == "stop":
            ok(host.run("systemctl", *scope, "stop", unit))
        else:
            ok(host.run("systemctl", *scope, "kill", "--kill-who=main", "--signal=KILL", unit))
        wait(lambda: not group(), 10)
        wait(lambda: state() in ("inactive", "failed"), 10)
        assert host.status("starts") == 31
        assert [lives(pid) for pid in detached()] == [True] * left
    # A removed schedule takes away what it runs, and no service that a run has started.
    (host.path / "group").unlink()
    ok(host.run("systemctl", *scope, "start", "--no-block", unit))
    wait(lambda: (host.path / "group").exists() and len(group()) == 4, 20)
    ok(host.schedule("remove", ".", "starts"))
    wait(lambda: not group(), 10)
    assert [lives(pid) for pid in detached()] == [True] * 4
    ok(host.run("kill", *detached()))


def test_what_a_command_left_running_outlives_the_unit(machine: Callable[..., Machine]) -> None:
    host = machine("user-systemd.sh")
    start_and_stop(host, host.home / ".config" / "systemd" / "user", "--user")


def test_what_a_command_left_running_outlives_the_unit_of_the_system(machine: Callable[..., Machine], tmp_path: Path) -> None:
    folders = [str(path) for path in (tmp_path, ROOT, Path(sys.prefix), Path(sys.base_prefix))]
    host = machine("system-systemd.sh", *folders)
    start_and_stop(host, Path(f"/proc/{host.init}/root/etc/systemd/system"))


def test_any_path_and_command_reaches_systemd_as_it_is(machine: Callable[..., Machine]) -> None:
    host = machine("user-systemd.sh")
    folder = host.home / ".config" / "systemd" / "user"
    for number, text in enumerate(['it\'s "100% %h" caf\u00e9', "$HOME ${HOME} $$ #;x", "back\\slash\\x20"]):
        path = host.path / text
        path.mkdir()
        absolute = str(path)
        log = path / "log.jsonl"
        (path / "memory" / "checkpoints").mkdir(parents=True, mode=0o700)
        ok(host.schedule("install", absolute, "--with", "systemd", "--", "--log", str(log)))
        words = [text, "", "-x", "%i", "${HOME}", ";", "'"]
        ok(
            host.schedule(
                "add", absolute, "5 4 * * *", "--name", f"n{number}", "--with", "systemd", "--", "printf", "%s\\n", *words
            )
        )
        (check,) = [name.stem for name in folder.glob("*-selfcheck.timer")]
        (command,) = [name.stem for name in folder.glob(f"*-n{number}.timer")]
        assert host.run("systemctl", "--user", "start", f"{check}.service").code == 0, (text, host.units(folder))
        assert runs(log), text
        assert host.run("systemctl", "--user", "start", f"{command}.service").code == 0, (text, host.units(folder))
        assert host.status(f"n{number}", path) == 0
        ok(host.schedule("remove", absolute))
        ok(host.schedule("remove", absolute, f"n{number}"))
    assert host.units(folder) == {}


def test_the_doctor_on_a_systemd(machine: Callable[..., Machine]) -> None:
    host = machine("user-systemd.sh")
    folder = host.home / ".config" / "systemd" / "user"
    ok(host.schedule("install", "--with", "systemd"))
    good = host.units(folder)
    check = unit_of(host, "selfcheck", folder)

    def problems() -> list[str]:
        return [line for line in host.schedule("doctor", "--json").out.splitlines() if "linger" not in line]

    assert problems() == []
    for kind in ("service", "timer"):
        unit = folder / f"{check}.{kind}"
        unit.write_text(unit.read_text() + "# edited\n")
        found = problems()
        assert len(found) == 1, found
        assert "schedule sync" in found[0]
        assert len(ok(host.schedule("sync")).out.splitlines()) == 1
        assert host.units(folder) == good
        assert problems() == []
    # Stopped by hand, it has no next run.
    ok(host.run("systemctl", "--user", "stop", f"{check}.timer"))
    assert len(problems()) == 1
    ok(host.schedule("sync"))
    assert problems() == []
    ok(host.run("systemctl", "--user", "disable", "--now", f"{check}.timer"))
    assert problems() != []
    ok(host.schedule("sync"))
    assert problems() == []
    assert host.units(folder) == good


def test_one_scheduler_at_a_time(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Installed with another, it is gone from the first."""
    host = machine("user-systemd.sh")
    program = tmp_path / "bin" / "crontab"
    program.parent.mkdir()
    tab = tmp_path / "bin" / "tab"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = -l ]; then cat {tab} 2>/dev/null && exit; echo "no crontab for root" >&2; exit 1; fi\n'
        f'if [ "$1" = -r ]; then rm {tab}; exit; fi\ncase $1 in -?*) exit 1 ;; esac\n'
        f"cat ${{1:-}} >{tab}.new && mv {tab}.new {tab}\n"
    )
    program.chmod(0o755)
    host.env["PATH"] = f"{program.parent}:{host.env['PATH']}"
    folder = host.home / ".config" / "systemd" / "user"
    ok(host.schedule("install", "--with", "cron"))
    block = tab.read_text()
    ok(host.schedule("install", "--with", "systemd"))
    assert "checkpoint" not in (tab.read_text() if tab.exists() else "")
    assert [path.name for path in folder.glob("*.timer")] == [unit_of(host, "selfcheck", folder) + ".timer"]
    # Put back by somebody, or by a restored backup: two of them.
    tab.write_text(block)
    found = [line for line in host.schedule("doctor", "--json").out.splitlines() if "linger" not in line]
    assert [line for line in found if "cron" in line], found
    ok(host.schedule("sync"))
    assert "checkpoint" not in (tab.read_text() if tab.exists() else "")
    ok(host.schedule("install", "--with", "cron"))
    assert host.units(folder) == {}
    assert tab.read_text() == block


# systemd as the first process


def test_root_schedules_for_the_owner_of_the_workspace(machine: Callable[..., Machine], tmp_path: Path) -> None:
    folders = [str(path) for path in (tmp_path, ROOT, Path(sys.prefix), Path(sys.base_prefix))]
    host = machine("system-systemd.sh", *folders)
    folder = Path(f"/proc/{host.init}/root/etc/systemd/system")
    units = host.units(folder)
    for place in (tmp_path.parent.parent.parent, tmp_path.parent.parent, tmp_path.parent, tmp_path, host.folder):
        ok(host.run("chmod", "a+x", str(place)))
    ok(host.run("chown", "-R", "nobody:", str(host.path)))
    # This Python stands in the home of root: nobody cannot run it.
    if Path(sys.base_prefix).is_relative_to("/root"):
        for verb in (["install"], ["add", ".", "@yearly", "--name", "nightly", "--", "true"]):
            done = host.schedule(*verb)
            assert (done.code, "nobody cannot run checkpoint-tool by" in done.err) == (18, True), done
        assert host.units(folder) == units
        ok(host.run("chmod", "711", "/root"))  # of the copy that this machine has
    ok(host.schedule("install"))
    ok(host.schedule("add", ".", "@yearly", "--name", "nightly", "--", "sh", "-c", "id -un >out"))
    assert {row["scheduler"] for row in ok(host.schedule("list", "--json")).lines} == {"systemd-system"}
    done = host.schedule("doctor")
    assert (done.code, done.out) == (0, ""), done
    nightly = unit_of(host, "nightly", folder)
    assert "\nUser=nobody\n" in (folder / f"{nightly}.service").read_text()
    ok(host.run("systemctl", "start", f"{nightly}.service"))
    assert (host.path / "out").read_text() == "nobody\n"
    assert host.status("nightly") == 0
    assert {path.stat().st_uid for path in host.path.rglob("*")} == {65534}
    ok(host.schedule("remove"))
    ok(host.schedule("remove", ".", "nightly"))
    assert host.units(folder) == units


def test_a_systemd_of_the_system_catches_up_and_recovers(machine: Callable[..., Machine], tmp_path: Path) -> None:
    folders = [str(path) for path in (tmp_path, ROOT, Path(sys.prefix), Path(sys.base_prefix))]
    host = machine("system-systemd.sh", *folders)
    folder = Path(f"/proc/{host.init}/root/etc/systemd/system")
    stamps = Path(f"/proc/{host.init}/root/var/lib/systemd/timers")
    before = host.units(folder)
    ok(host.schedule("install", "--every", "4h", "--with", "systemd-system"))
    ok(host.schedule("add", ".", "0 */4 * * *", "--name", "good", "--with", "systemd-system", "--", "sh", "-c", "echo >>out"))
    check, good = unit_of(host, "selfcheck", folder), unit_of(host, "good", folder)
    rows = ok(host.schedule("status", str(host.path), "--json")).lines
    assert {row["scheduler"] for row in rows} == {"systemd-system"}
    done = host.schedule("doctor")
    assert (done.code, done.out) == (0, "")
    assert host.schedule("sync").out == ""

    # Off for a day: what was missed is made up for, once, and soon.
    ran = fired(host, check)
    for unit in (check, good):
        ok(host.run("systemctl", "stop", f"{unit}.timer"))
        yesterday = time.time() - 86400
        os.utime(stamps / f"stamp-{unit}.timer", (yesterday, yesterday))
    stale(host)
    for unit in (check, good):
        ok(host.run("systemctl", "start", f"{unit}.timer"))
    wait(lambda: host.status("good") == 0 and fired(host, check) not in ("", ran), 100, 1)
    assert (host.path / "out").read_text() == "\n"
    wait(lambda: f"{check}.service" in host.run("systemctl", "--failed", "--plain", "--no-legend").out, 10)
    (row,) = [row for row in ok(host.schedule("status", "--json")).lines if row["name"] == "selfcheck"]
    assert row["result"] not in (None, "", "success"), row
    ok(host.run(TOOL, "cancel", "deploy", "--reason", "seen", "--store", str(host.workspace.store)))
    ok(host.run("systemctl", "start", f"{check}.service"))
    assert host.run("systemctl", "--failed", "--plain", "--no-legend").out == ""

    ok(host.schedule("remove"))
    ok(host.schedule("remove", ".", "good"))
    assert host.units(folder) == before
    assert list(stamps.glob("stamp-checkpoint-*")) == []
