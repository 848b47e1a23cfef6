"""`checkpoint-tool schedule` as far as no scheduler has to fire: expressions, the crontab's bytes, what is printed, the doctor.

The crontab program is one of ours on PATH, so that it can fail in each way; test_schedule_hosts.py has the real ones.
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import jsonschema
import pytest
from conftest import TOOL, Result, Workspace, need_program
from croniter import croniter
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from checkpoint import cron
from checkpoint.codec import canonical_sha256
from checkpoint.schedule import Entry, Schedules

CRONTAB = """\
#!/bin/sh
# crontab(1), with its file in the folder of this program. Files beside it make it fail; `rival` is what another program does
# after a read, before a write takes its input, and after a write.
cd "${0%/*}" || exit 9
echo "$*" >>calls
case $1 in
-l)
    if [ -e refuse-list ]; then cat refuse-list >&2; exit 1; fi
    if [ ! -e tab ]; then
        if [ -e no-tab ]; then cat no-tab >&2; exit 1; fi
        case $LC_ALL in C) echo 'no crontab for tester' >&2 ;; *) echo 'pas de crontab pour tester' >&2 ;; esac
        exit 1
    fi
    cat tab
    if [ -e rival ]; then event=read; . ./rival; fi
    ;;
-r) rm -f tab ;;
-n | -T | -V) echo "crontab: invalid option -- '${1#-}'" >&2; exit 1 ;;
-*[!-]*) echo "crontab: invalid option" >&2; exit 1 ;;
*)
    if [ -e rival ]; then event=write; . ./rival; fi
    if [ "${1:--}" = - ]; then cat >new; else cat "$1" >new; fi
    if [ -e refuse-write ]; then cat refuse-write >&2; exit 1; fi
    if [ -e lose ]; then head -n 1 new >tab; else cat new >tab; fi
    if [ -e rival ]; then event=wrote; . ./rival; fi
    ;;
esac
"""

MANY = """
import json, os, sys, tempfile
from checkpoint.cli import main
real = os.dup(1), os.dup(2)
answers = []
for argv in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(real[0], 1)
        os.dup2(real[1], 2)
        out.seek(0)
        err.seek(0)
        answers.append([code, out.read().decode(), err.read().decode()])
for answer in answers:
    print(json.dumps(answer))
"""


class Host:
    """A host with nothing on it but a crontab program: a home and a workspace of its own."""

    def __init__(self, folder: Path, workspace: str = "work") -> None:
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.tab = self.bin / "tab"
        self.units = self.home / ".config" / "systemd" / "user"
        for path in (self.home, self.bin, folder / "run", folder / workspace):
            path.mkdir(parents=True, exist_ok=True)
        program = self.bin / "crontab"
        program.write_text(CRONTAB)
        program.chmod(0o755)
        self.workspace = Workspace(folder / workspace)
        self.path = self.workspace.path
        # No bus of this machine can be reached, whoever runs the tests.
        unset = (
            "DBUS_SESSION_BUS_ADDRESS",
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
            "XDG_DATA_HOME",
            "XDG_DATA_DIRS",
            "XDG_CONFIG_DIRS",
        )
        self.env = {
            name: value for name, value in os.environ.items() if name not in unset and not name.startswith("CHECKPOINT_")
        }
        self.env |= {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }

    def run(self, *argv: str, input: str | None = None, **env: str) -> Result:
        done = subprocess.run(
            argv, cwd=self.path, env=self.env | env, input=input, capture_output=True, text=True, timeout=100, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def schedule(self, *argv: str, **env: str) -> Result:
        return self.run(TOOL, "schedule", *argv, **env)

    def many(self, calls: list[list[str]], **env: str) -> list[Result]:
        """Many calls of `schedule` for the price of one process."""
        done = self.run(sys.executable, "-c", MANY, input=json.dumps([["schedule", *call] for call in calls]), **env)
        assert done.code == 0, done
        return [Result(*answer) for answer in done.lines]

    def name(self, entry: str = "selfcheck") -> str:
        return f"{self.prefix}-{entry}"

    @property
    def prefix(self) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", self.path.name.lower()).strip("-")
        return f"checkpoint-{slug}-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8]}"

    def remembered(self) -> list[Any]:
        return ok(self.schedule("list", str(self.path), "--json")).lines

    def problems(self, *argv: str, **env: str) -> list[dict[str, str]]:
        """What the doctor says, but for the daemon, which no test can count on here."""
        done = self.schedule("doctor", *argv, "--json", **env)
        assert done.code in (0, 18), done
        assert (done.code == 18) == (done.out != ""), done
        return [line for line in done.lines if "daemon" not in json.dumps(line)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def ok(result: Result) -> Result:
    assert result.code == 0, result
    return result


def refused(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.err.startswith("checkpoint-tool: "), result
    assert result.err.count("\n") == 1, result
    assert "(try: " in result.err, result
    for word in words:
        assert word in result.err, result


def files(printed: str) -> dict[str, str]:
    """What `--print` shows: path -> content."""
    parts = re.split(r"^# (/.*\.(?:service|timer|plist))$\n", printed, flags=re.MULTILINE)
    assert parts[0] == "", printed
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def line_of(printed: str) -> str:
    """The one line between the markers of a crontab block."""
    begin, line, end = printed.splitlines()
    assert begin.startswith("# BEGIN checkpoint-tool checkpoint-")
    assert end == begin.replace("BEGIN", "END")
    return line


def as_cron_runs(line: str) -> str:
    """The command of a crontab line as the daemon hands it to sh: it ends at the first % that is not escaped."""
    command = line.split(None, 5)[5]
    assert not re.search(r"(?<!\\)%", command), line
    return command.replace("\\%", "%")


# Expressions

GOOD = [
    "* * * * *",
    "*/10 * * * *",
    "0-30/5,45 * * * *",
    "00 09 * * *",
    "  5   4 * * *  ",
    "0\t0 * * *",
    "0 0 29 2 *",
    "0 0 * JAN,feb-Apr MON-fri",
    "0 0 * * 7",
    "0 0 * * 5-7",
    "0 0 13 * FRI",
    "0 0 1-31/2 * 1",
    "0 0 31 2 1",
    "*/59 * * * *",
    "1-5/7 * * * *",
    "@hourly",
    "@daily",
    "@midnight",
    "@weekly",
    "@monthly",
    "@yearly",
    "@annually",
]
BAD = [
    ("", "field"),
    ("* * * *", "4"),
    ("* * * * * *", "6"),
    ("0 0 * * * root", "6"),
    ("* * * * * * *", "7"),
    ("60 * * * *", "minute"),
    ("-1-5 * * * *", ""),
    ("1- * * * *", "minute"),
    ("1,,2 * * * *", "minute"),
    (",1 * * * *", "minute"),
    ("1, * * * *", "minute"),
    ("5-1 * * * *", "minute"),
    ("5/10 * * * *", "minute"),
    ("*/0 * * * *", "minute"),
    ("*/60 * * * *", "minute"),
    ("1-5/0 * * * *", "minute"),
    ("1-5/2-3 * * * *", "minute"),
    ("1.5 * * * *", "minute"),
    ("H * * * *", "minute"),
    ("0~5 * * * *", "minute"),
    ("\u0663 * * * *", "minute"),
    ("JAN * * * *", "minute"),
    ("* 24 * * *", "hour"),
    ("* * 0 * *", "day of month"),
    ("* * 32 * *", "day of month"),
    ("0 0 L * *", "day of month"),
    ("0 0 15W * *", "day of month"),
    ("0 0 ? * *", "day of month"),
    ("* * * 0 *", "month"),
    ("* * * 13 *", "month"),
    ("* * * JANUARY *", "month"),
    ("* * * MON *", "month"),
    ("* * * * 8", "day of week"),
    ("* * * * ?", "day of week"),
    ("0 0 * * 1#2", "day of week"),
    ("0 0 * * 5L", "day of week"),
    ("0 0 * * SAT-SUN", "day of week"),
    ("0 0 * * *\n", ""),
    ("0 0 * * *\n* * * * * true", ""),
    ("0 0 31 2 *", "never"),
    ("0 0 30 FEB *", "never"),
    ("0 0 31 4,6,9,11 *", "never"),
    ("0 0 */2 * 1", "day of week"),
    ("0 0 */2,5 * 1", "day of week"),
    ("0 0 1 * */2", "day of week"),
    ("@reboot", "@daily"),
    ("@every_minute", "@daily"),
    ("@", ""),
]


def test_good_expressions_are_taken(host: Host) -> None:
    for text, done in zip(GOOD, host.many([["next", text, "--json"] for text in GOOD]), strict=True):
        assert done.code == 0, (text, done)
        assert len(done.lines) == 5, text
        assert [sorted(line) for line in done.lines] == [["at", "cron"]] * 5


def test_bad_expressions_are_refused_with_the_field(host: Host) -> None:
    for (text, word), done in zip(BAD, host.many([["next", text] for text, _ in BAD]), strict=True):
        assert done.code == 2, (text, done)
        assert done.out == ""
        refused(done, 2, word)
    answers = host.many([["add", ".", text, "--with", "cron", "--", "true"] for text, _ in BAD])
    assert [(text, done.code) for (text, _), done in zip(BAD, answers, strict=True) if done.code != 2] == []
    answers = host.many([["install", "--cron", text, "--print"] for text, _ in BAD])
    assert [(text, done.code) for (text, _), done in zip(BAD, answers, strict=True) if done.code != 2] == []
    assert not host.tab.exists()


def test_the_command_itself_refuses_them_too(host: Host) -> None:
    refused(host.schedule("next", "61 * * * *"), 2, "minute", "61")
    done = host.schedule("next", "61 * * * *", "--json")
    assert done.code == 2
    assert json.loads(done.err)["error"]["code"] == 2


def test_a_star_with_a_step_of_one_is_a_star(host: Host) -> None:
    """Every cron daemon takes `*/1` beside a day of the week for `*`: Mondays, not every day."""
    pairs = [("0 0 */1 * 1", "0 0 * * 1"), ("0 0 1 * */1", "0 0 1 * *")]
    for one, other in pairs:
        first, second = host.many([["next", text, "--json", "--from", "2026-03-01T00:00:00Z"] for text in (one, other)])
        assert first.code == 2 or [line["at"] for line in first.lines] == [line["at"] for line in second.lines], one


# The coming times


MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


class Fields(NamedTuple):
    """An expression, as far as a test needs it: which minutes, hours, days, months and days of the week."""

    minutes: set[int]
    hours: set[int]
    days: set[int] | None
    months: set[int]
    weekdays: set[int] | None

    @classmethod
    def of(cls, text: str) -> "Fields":
        names = {name: str(number) for number, name in enumerate(MONTHS, 1)}
        names |= {name: str(number) for number, name in enumerate(WEEKDAYS)}
        text = re.sub(r"[A-Z]{3}", lambda found: names[found[0].upper()], text, flags=re.IGNORECASE)
        found = []
        for field, low, high in zip(text.split(), (0, 0, 1, 1, 0), (59, 23, 31, 12, 7), strict=True):
            numbers: set[int] = set()
            for item in field.split(","):
                span, _, step = item.partition("/")
                first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
                numbers |= set(range(int(first), int(last or first) + 1, int(step or 1)))
            found.append(numbers)
        minutes, hours, days, months, weekdays = found
        # A field that is a star does not take part in the choice between day of month and day of week.
        of_month = None if text.split()[2] == "*" else days
        of_week = None if text.split()[4] == "*" else {number % 7 for number in weekdays}
        return cls(minutes, hours, of_month, months, of_week)

    def on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_month = self.days is not None and day.day in self.days
        by_week = self.weekdays is not None and day.isoweekday() % 7 in self.weekdays
        if self.days is None and self.weekdays is None:
            return True
        return by_month or by_week

    def times(self, after: datetime) -> Iterator[datetime]:
        """Local times that exist, each once."""
        for count in range(40000):
            day = after.date() + timedelta(count)
            if not self.on(day):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    at = datetime.combine(day, time(hour, minute), after.tzinfo)
                    there = at.astimezone(UTC).astimezone(after.tzinfo).replace(tzinfo=None) == at.replace(tzinfo=None)
                    if there and at.astimezone(UTC) > after.astimezone(UTC):
                        yield at


def calendar(lines: list[str], base: str, zone: str = "UTC", count: int = 20) -> list[str]:
    """When systemd says that a timer with these OnCalendar lines elapses, in local time."""
    if not lines:
        return []
    argv = [need_program("systemd-analyze"), "calendar", f"--iterations={count}", f"--base-time={base}", *lines]
    out = subprocess.run(
        argv, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", "TZ": zone, "LC_ALL": "C"}
    ).stdout
    found = set(re.findall(r"^ *(?:Next elapse|Iteration #\d+|Iter\. #\d+): \w+ (\S+ \S+) \S+$", out, re.MULTILINE))
    return sorted(found)[:count]


CLOCK_CHANGES = [
    ("UTC", "2026-02-27T22:00:00"),
    ("Europe/Berlin", "2026-03-28T22:00:00"),
    ("Europe/Berlin", "2026-10-24T22:00:00"),
    ("America/New_York", "2026-03-07T22:00:00"),
    ("America/New_York", "2026-10-31T22:00:00"),
    ("Australia/Lord_Howe", "2026-04-04T22:00:00"),
    ("America/Santiago", "2026-09-05T20:00:00"),
]
OVER_CHANGES = ["30 2 * * *", "*/30 * * * *", "0 */2 * * *", "15 1-3 * * *", "0 0 * * *", "45 1 * * SUN", "@hourly"]


@pytest.mark.parametrize(("zone", "begin"), CLOCK_CHANGES)
def test_the_coming_times_are_right_over_a_change_of_the_clock(host: Host, zone: str, begin: str) -> None:
    """A local time that is skipped does not come, one that comes twice counts once."""
    start = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(zone))
    for text in OVER_CHANGES:
        fields = Fields.of({"@hourly": "0 * * * *"}.get(text, text))
        wanted = [at.isoformat() for at in islice(fields.times(start), 20)]
        told: list[str] = []
        # Twenty times, five by five: each call begins where the one before is due to end.
        calls = [["next", text, "--tz", zone, "--from", at, "--json"] for at in (start.isoformat(), *wanted[4:19:5])]
        for done in host.many(calls):
            assert done.code == 0, done
            told += [line["at"] for line in done.lines]
        assert told == wanted, text


@pytest.mark.parametrize(("zone", "begin"), CLOCK_CHANGES[:5])
def test_systemd_means_the_same_times(host: Host, zone: str, begin: str) -> None:
    start = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(zone))
    printed = host.many([["install", "--cron", text, "--print", "--with", "systemd"] for text in OVER_CHANGES])
    for text, done in zip(OVER_CHANGES, printed, strict=True):
        fields = Fields.of({"@hourly": "0 * * * *"}.get(text, text))
        wanted = [at.strftime("%Y-%m-%d %H:%M:%S") for at in islice(fields.times(start), 20)]
        assert calendar(on_calendar(ok(done).out), begin.replace("T", " "), zone) == wanted, text


def test_the_zone_is_that_of_the_host_unless_told(host: Host) -> None:
    start = ["--from", "2026-07-01T00:00:00+00:00", "--json"]
    here = ok(host.schedule("next", "0 12 * * *", *start, TZ="Asia/Kolkata")).lines
    there = ok(host.schedule("next", "0 12 * * *", *start, "--tz", "Asia/Kolkata")).lines
    assert here == there
    assert here[0] == {"cron": "0 12 * * *", "at": "2026-07-01T12:00:00+05:30"}
    refused(host.schedule("next", "0 12 * * *", "--tz", "Europe/Nowhere"), 2, "Europe/Nowhere")
    refused(host.schedule("next", "0 12 * * *", "--tz", "../../etc/passwd"), 2)
    refused(host.schedule("next", "0 12 * * *", "--from", "yesterday"), 2, "yesterday")


def test_the_coming_times_of_a_workspace(host: Host) -> None:
    refused(host.schedule("next", str(host.path)), 10)
    ok(host.schedule("add", ".", "30 4 * * *", "--with", "cron", "--", "true"))
    lines = ok(host.schedule("next", str(host.path), "--from", "2026-01-01T00:00:00Z", "--json")).lines
    assert [line["at"] for line in lines] == [f"2026-01-0{day}T04:30:00+00:00" for day in range(1, 6)]


# One expression, three schedulers


def on_calendar(printed: str) -> list[str]:
    (timer,) = [text for path, text in files(printed).items() if path.endswith(".timer")]
    return [line.partition("=")[2] for line in timer.splitlines() if line.startswith("OnCalendar=")]


LIMITS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
NAMES = {3: MONTHS, 4: WEEKDAYS}


@st.composite
def items(draw: st.DrawFn, place: int) -> str:
    low, high = LIMITS[place]
    first = draw(st.integers(low, high))
    if place in NAMES and draw(st.booleans()):
        return NAMES[place][first % 7 if place == 4 else first - 1]
    if draw(st.booleans()):
        return str(first)
    last = draw(st.integers(first, high))
    step = draw(st.integers(1, high - low))
    return f"{first}-{last}/{step}" if draw(st.booleans()) else f"{first}-{last}"


@st.composite
def field(draw: st.DrawFn, place: int) -> str:
    kind = draw(st.sampled_from(["star", "star", "step", "list", "list"]))
    _, high = LIMITS[place]
    if kind == "star":
        return "*"
    if kind == "step":
        return f"*/{draw(st.integers(2, min(high, 30)))}" if place != 4 else f"*/{draw(st.integers(2, 6))}"
    return ",".join(draw(st.lists(items(place), min_size=1, max_size=3)))


def misread(text: str) -> bool:
    """What croniter reads otherwise than cron daemons do: `1-1` is all to it, and 0-6 beside a day of the month a star."""
    found = Fields.of(text)
    either = found.days is not None and found.weekdays is not None
    return (
        re.search(r"\b(\w+)-\1\b", text) is not None
        or (either and found.days == set(range(1, 32)))
        or (either and found.weekdays == set(range(7)))
    )


EXPRESSIONS = st.tuples(*[field(place) for place in range(5)]).map(" ".join)
BASE = "2026-11-21 13:37:00"


def by_croniter(text: str) -> list[str]:
    times = croniter(text, datetime.fromisoformat(BASE), max_years_between_matches=200)
    return [times.get_next(datetime).strftime("%Y-%m-%d %H:%M:%S") for _ in range(20)]


def by_launchd(entries: list[dict[str, int]]) -> list[str]:
    """The coming times of a StartCalendarInterval: a missing key is any, Sunday is 0 and 7."""
    hours: dict[tuple[int | None, int | None, int | None], set[tuple[int, int]]] = {}
    for entry in entries:
        assert not {"Day", "Weekday"} <= set(entry), "launchd takes the two for either"
        weekday = entry["Weekday"] % 7 if "Weekday" in entry else None
        days = hours.setdefault((entry.get("Month"), entry.get("Day"), weekday), set())
        for hour in [entry["Hour"]] if "Hour" in entry else range(24):
            days |= {(hour, minute) for minute in ([entry["Minute"]] if "Minute" in entry else range(60))}
    start = datetime.fromisoformat(BASE)
    found: list[str] = []
    for count in range(40000):
        day = start.date() + timedelta(count)
        keys = [
            (month, number, week)
            for month in (None, day.month)
            for number in (None, day.day)
            for week in (None, day.isoweekday() % 7)
        ]
        for at in sorted({at for key in keys for at in hours.get(key, ())}):
            moment = datetime.combine(day, time(*at))
            if moment > start:
                found.append(moment.strftime("%Y-%m-%d %H:%M:%S"))
        if len(found) >= 20:
            return found[:20]
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


# Shrinking would take minutes; the message names the expression.
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(texts=st.lists(EXPRESSIONS, min_size=15, max_size=15))
def test_every_scheduler_means_the_same_times(shared: Host, texts: list[str]) -> None:
    need_program("systemd-analyze")
    start = datetime.fromisoformat(BASE).replace(tzinfo=UTC)
    timers = shared.many([["install", "--cron", text, "--print", "--with", "systemd"] for text in texts])
    plists = shared.many([["install", "--cron", text, "--print", "--with", "launchd"] for text in texts])
    coming = shared.many([["next", text, "--from", start.isoformat(), "--tz", "UTC", "--json"] for text in texts])
    for text, timer, plist, soon in zip(texts, timers, plists, coming, strict=True):
        of_month, of_week = text.split()[2], text.split()[4]
        either = of_month != "*" and of_week != "*"
        wanted = [at.strftime("%Y-%m-%d %H:%M:%S") for at in islice(Fields.of(text).times(start), 20)]
        if not wanted or (either and "*/" in of_month + of_week):
            refused(timer, 2)
            refused(plist, 2)
            assert soon.code == 2, (text, soon)
            continue
        if not misread(text):
            assert by_croniter(text) == wanted, text
        assert timer.code == 0, (text, timer)
        # 2199 is the last year that systemd knows.
        told = calendar(on_calendar(timer.out), BASE)
        assert told == wanted[: len(told)], text
        assert len(told) == 20 or len(wanted) < 20 or wanted[len(told)] > "2199", text
        assert soon.code == 0, (text, soon)
        assert [line["at"][:19].replace("T", " ") for line in soon.lines] == wanted[:5], text
        if plist.code == 0:
            ((_, content),) = files(plist.out).items()
            assert by_launchd(plistlib.loads(content.encode())["StartCalendarInterval"]) == wanted, text
        else:
            refused(plist, 2, "launchd")
            assert either or "entries" in plist.err, plist


def test_days_of_month_and_of_week_mean_either(host: Host) -> None:
    done = ok(host.schedule("install", "--cron", "0 0 13 * FRI", "--print", "--with", "systemd"))
    assert len(on_calendar(done.out)) == 2
    refused(host.schedule("install", "--cron", "0 0 13 * FRI", "--print", "--with", "launchd"), 2)


# What is printed

PLIST_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["Label", "ProgramArguments", "StartCalendarInterval", "ProcessType", "EnvironmentVariables"],
    "properties": {
        "Label": {"type": "string", "pattern": "^checkpoint-[a-z0-9-]+$"},
        "ProgramArguments": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "WorkingDirectory": {"type": "string", "pattern": "^/"},
        "EnvironmentVariables": {
            "type": "object",
            "required": ["PATH"],
            "additionalProperties": {"type": "string"},
        },
        "StartCalendarInterval": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "Minute": {"type": "integer", "minimum": 0, "maximum": 59},
                    "Hour": {"type": "integer", "minimum": 0, "maximum": 23},
                    "Day": {"type": "integer", "minimum": 1, "maximum": 31},
                    "Weekday": {"type": "integer", "minimum": 0, "maximum": 7},
                    "Month": {"type": "integer", "minimum": 1, "maximum": 12},
                },
            },
        },
        "RunAtLoad": {"type": "boolean"},
        "ProcessType": {"const": "Background"},
        "LowPriorityIO": {"const": True},
        "Nice": {"type": "integer", "minimum": -20, "maximum": 20},
        "Umask": {"const": 0o077},
        "AbandonProcessGroup": {"type": "boolean"},
        "StandardErrorPath": {"type": "string", "pattern": "^/"},
        "StandardOutPath": {"type": "string", "pattern": "^/"},
    },
}
"""The keys we use, with the types that launchd.plist(5) gives them."""


def test_the_property_list_is_one_that_launchd_knows(host: Host) -> None:
    ((path, text),) = files(ok(host.schedule("install", "--print", "--with", "launchd")).out).items()
    assert path == f"{host.home}/Library/LaunchAgents/{host.name()}.plist"
    plist = plistlib.loads(text.encode())
    jsonschema.validate(plist, PLIST_SCHEMA)
    assert [entry["Minute"] for entry in plist["StartCalendarInterval"]] == [0, 10, 20, 30, 40, 50]
    assert plist["RunAtLoad"] is True
    assert plist["Label"] == host.name()
    assert plist["ProgramArguments"][0] == sys.executable
    assert Path(plist["StandardErrorPath"]).is_absolute()


def test_a_command_may_leave_something_running(host: Host, tmp_path: Path) -> None:
    """The unit of a command ends with its process, that of the self-check with all that it started."""
    schedules = Schedules(str(tmp_path / "state"), str(host.home), {})
    entry = Entry("nightly", "5 4 * * *", ("./backup.sh",), "launchd", "")
    ((_, text),) = schedules.preview(str(host.path), entry).items()
    plist = plistlib.loads(text.encode())
    jsonschema.validate(plist, PLIST_SCHEMA)
    assert plist["AbandonProcessGroup"] is True
    for kind, scope in (("systemd", "--user"), ("systemd-system", "--system")):
        written = []
        for path, text in schedules.preview(str(host.path), entry._replace(scheduler=kind)).items():
            unit = tmp_path / kind / Path(path).name
            unit.parent.mkdir(exist_ok=True)
            unit.write_text(text)
            written.append(str(unit))
        (service,) = [Path(path).read_text() for path in written if path.endswith(".service")]
        assert "\nKillMode=process\n" in service
        argv = [need_program("systemd-analyze"), scope, "--man=no", "--recursive-errors=yes", "verify", *written]
        done = host.run(*argv)
        assert (done.code, [line for line in done.err.splitlines() if host.prefix in line]) == (0, []), done
    check = schedules.self_check(str(host.path), cron.every(600), (), "launchd", anywhere=True)
    for kind in ("launchd", "systemd", "systemd-system"):
        texts = schedules.preview(str(host.path), check._replace(scheduler=kind)).values()
        assert not any("KillMode" in text or "<key>AbandonProcessGroup</key>\n\t<true/>" in text for text in texts)


def test_what_runs_is_the_self_check_of_the_workspace(host: Host) -> None:
    """In each scheduler: by the interpreter that runs now, with the options after the two dashes."""
    outs = {
        kind: ok(host.schedule("install", "--every", "5m", "--print", "--with", kind, "--", "--threshold", "15m")).out
        for kind in ("cron", "systemd", "systemd-system", "launchd")
    }
    commands = [shlex.split(as_cron_runs(line_of(outs["cron"])))]
    for kind in ("systemd", "systemd-system"):
        (service,) = [text for path, text in files(outs[kind]).items() if path.endswith(".service")]
        (start,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
        commands.append(shlex.split(start))
    ((_, plist),) = files(outs["launchd"]).items()
    commands.append(plistlib.loads(plist.encode())["ProgramArguments"])
    for words in commands:
        assert sys.executable in words, words
        rest = words[words.index(sys.executable) :]
        assert rest[rest.index("-m") + 1 :][:3] == ["checkpoint.selfcheck", "--root", str(host.path)], words
        assert "--quiet" in rest
        assert rest[rest.index("--every") + 1] == "300s"
        assert rest[rest.index("--threshold") + 1] == "15m"
    assert set(files(outs["systemd"])) == {f"{host.units}/{host.name()}.{kind}" for kind in ("service", "timer")}
    assert set(files(outs["systemd-system"])) == {f"/etc/systemd/system/{host.name()}.{kind}" for kind in ("service", "timer")}
    assert line_of(outs["cron"]).startswith("*/5 * * * * ")


def test_printing_changes_nothing(host: Host) -> None:
    before = sorted(host.home.rglob("*"))
    for kind in ("cron", "systemd", "systemd-system", "launchd"):
        ok(host.schedule("install", "--print", "--with", kind))
    assert sorted(host.home.rglob("*")) == before
    assert not host.tab.exists()
    assert host.remembered() == []


def test_the_folders_of_the_xdg_base_directories_are_used(host: Host, tmp_path: Path) -> None:
    config, state = tmp_path / "config", tmp_path / "state"
    env = {"XDG_CONFIG_HOME": str(config), "XDG_STATE_HOME": str(state)}
    printed = ok(host.schedule("install", "--print", "--with", "systemd", **env)).out
    assert all(path.startswith(f"{config}/systemd/user/") for path in files(printed))
    ok(host.schedule("install", "--with", "cron", **env))
    assert (state / "checkpoint-tool" / "schedules").is_dir()
    assert not (host.home / ".local").exists()


@pytest.mark.parametrize("kind", ["systemd", "systemd-system"])
@pytest.mark.parametrize("times", ["*/10 * * * *", "0 0 13 * FRI"])
def test_systemd_finds_nothing_to_complain_of(host: Host, kind: str, times: str, tmp_path: Path) -> None:
    printed = ok(host.schedule("install", "--cron", times, "--print", "--with", kind)).out
    written = []
    for path, text in files(printed).items():
        unit = tmp_path / "units" / Path(path).name
        unit.parent.mkdir(exist_ok=True)
        unit.write_text(text)
        written.append(str(unit))
    scope = "--user" if kind == "systemd" else "--system"
    # Without --recursive-errors=yes unknown keys pass.
    argv = [need_program("systemd-analyze"), scope, "--man=no", "--recursive-errors=yes", "verify", *written]
    done = host.run(*argv)
    assert (done.code, [line for line in done.err.splitlines() if host.prefix in line]) == (0, []), done
    (service,) = [name for name in written if name.endswith(".service")]
    Path(service).write_text(Path(service).read_text() + "NoNewPriviliges=yes\n")
    assert host.run(*argv).code != 0, "a mistake would be found"


@pytest.mark.parametrize("kind", ["systemd", "systemd-system"])
def test_the_self_check_may_do_little(host: Host, kind: str, tmp_path: Path) -> None:
    printed = ok(host.schedule("install", "--print", "--with", kind)).out
    (text,) = [text for path, text in files(printed).items() if path.endswith(".service")]
    service = tmp_path / "checkpoint-test.service"
    argv = [need_program("systemd-analyze"), "security", "--offline=true", "--threshold=25", "--no-pager", str(service)]
    service.write_text(text)
    done = host.run(*argv)
    assert done.code == 0, done.out[-300:]
    service.write_text(text.replace("SystemCallFilter=", "#").replace("CapabilityBoundingSet=", "#"))
    assert host.run(*argv).code != 0, "more rights would be found"


# The crontab, byte for byte

TABS = {
    "none": None,
    "empty": b"",
    "plain": b"MAILTO=ann@example.org\n*/5 * * * * true\n",
    "no final newline": b"0 0 * * * true",
    "CRLF": b"0 0 * * * true\r\n\r\n# end\r\n",
    "invalid lines": b"this is no line\n99 99 * * * x\n\x00\x01\n",
    "not UTF-8": b"# caf\xe9\n0 0 * * * echo \xff\n",
    "blank lines": b"\n\n# a\n\n\n",
    "other line ends": b"# a\x0b\x0c\x1c\x85b\n# \xe2\x80\xa8 c\n0 0 * * * true\n",
    "markers of others": b"# BEGIN other NAME\n0 1 * * * a\n# END other NAME\n# BEGIN checkpoint-tool\n# END\n",
}


@pytest.mark.parametrize("case", TABS)
def test_nothing_but_our_lines_changes(host: Host, case: str) -> None:
    before = TABS[case]
    if before is not None:
        host.tab.write_bytes(before)
    ok(host.schedule("install", "--with", "cron"))
    first = host.tab.read_bytes()
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "echo", "100%"))
    ok(host.schedule("install", "--with", "cron", "--every", "5m"))
    after = host.tab.read_bytes()
    assert (before or b"") in first
    assert (before or b"") in after
    begin = f"# BEGIN checkpoint-tool {host.name()}\n".encode()
    assert after.count(begin) == 1
    assert after.count(f"# BEGIN checkpoint-tool {host.name('nightly')}\n".encode()) == 1
    # In front of our block stands a whole line.
    assert after.startswith(begin) or b"\n" + begin in after
    ok(host.schedule("remove"))
    ok(host.schedule("remove", ".", "nightly"))
    assert (host.tab.read_bytes() if host.tab.exists() else b"") == (before or b"")


def test_lines_that_others_add_after_ours_stay(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * a")
    ok(host.schedule("install", "--with", "cron"))
    host.tab.write_bytes(host.tab.read_bytes() + b"0 1 * * * b")
    ok(host.schedule("remove"))
    assert host.tab.read_bytes() == b"0 0 * * * a\n0 1 * * * b"


def test_what_is_printed_is_what_is_written(host: Host) -> None:
    printed = ok(host.schedule("install", "--print", "--with", "cron")).out
    ok(host.schedule("install", "--with", "cron"))
    assert host.tab.read_text() == printed


def test_installing_again_changes_nothing(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * a\n")
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "true"))
    before, listed = host.tab.read_bytes(), host.remembered()
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "true"))
    assert host.tab.read_bytes() == before
    assert host.remembered() == listed


@pytest.mark.parametrize(
    "message",
    ["crontab: you (tester) are not allowed to use this program (crontab)", "crontab: spool is not readable", "", "no crontab"],
)
def test_a_crontab_that_cannot_be_read_is_not_an_empty_one(host: Host, message: str) -> None:
    host.tab.write_bytes(b"0 0 * * * a\n")
    (host.bin / "refuse-list").write_text(message)
    refused(host.schedule("install", "--with", "cron"), 18)
    refused(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "true"), 18)
    (host.bin / "refuse-list").unlink()
    assert host.tab.read_bytes() == b"0 0 * * * a\n"
    assert host.remembered() == [], "what was refused is not wanted either"


def test_a_crontab_that_is_not_taken_is_said(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * a\n")
    (host.bin / "refuse-write").write_text("errors in crontab file, can't install.\n")
    refused(host.schedule("install", "--with", "cron"), 18, "errors in crontab file")
    assert host.tab.read_bytes() == b"0 0 * * * a\n"
    assert host.remembered() == []


def test_a_crontab_that_was_not_kept_is_said(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * a\n0 1 * * * b\n")
    (host.bin / "lose").touch()
    refused(host.schedule("install", "--with", "cron"), 18)


def test_no_crontab_program_is_a_missing_scheduler(host: Host) -> None:
    refused(host.schedule("install", "--with", "cron", PATH="/nowhere"), 18)
    refused(host.schedule("install", "--with", "systemd", PATH="/nowhere"), 18)
    refused(host.schedule("install", "--with", "launchd", PATH="/nowhere"), 18)
    refused(host.schedule("install", PATH="/nowhere"), 18)
    refused(host.schedule("install", "--with", "at"), 2, "at")
    assert host.remembered() == []
    assert not host.units.exists() or list(host.units.iterdir()) == []


LINES = b"0 0 * * * a\n0 1 * * * b\n"
ADDS = "echo '# rival' >>tab"
RIVALS = {
    # When another program writes -> what it does, and which lines of others stand then.
    "after our first read": ("if [ $event = read ]; then rm rival; " + ADDS + "; fi", LINES + b"# rival\n"),
    "after our last read but one": (
        "case $event in write) touch writing ;; read) if [ -e writing ]; then rm rival writing; " + ADDS + "; fi ;; esac",
        LINES + b"# rival\n",
    ),
    "while our write begins": ("if [ $event = write ]; then rm rival; " + ADDS + "; fi", LINES + b"# rival\n"),
    "after our write, from what it read before": (
        'case $event in write) cp tab old ;; wrote) rm rival; { cat old; echo "# rival"; } >tab ;; esac',
        LINES + b"# rival\n",
    ),
    "a moment after our write, from what it read before": (
        (
            "case $event in write) cp tab old; echo '# rival' >>old ;;"
            " wrote) rm rival; (sleep 0.03; cat old >tab) >/dev/null 2>&1 & ;; esac"
        ),
        LINES + b"# rival\n",
    ),
    "after our write, from what we wrote": ("if [ $event = wrote ]; then rm rival; " + ADDS + "; fi", LINES + b"# rival\n"),
    "a line is removed": ('if [ $event = write ]; then rm rival; echo "0 0 * * * a" >tab; fi', b"0 0 * * * a\n"),
    "a line is changed": (
        'if [ $event = write ]; then rm rival; printf "%s\\n" "0 0 * * * a" "9 9 * * * b" >tab; fi',
        b"0 0 * * * a\n9 9 * * * b\n",
    ),
    "it is written twice over": (
        "if [ $event = wrote ]; then rm rival; cat tab >old; cat old >>tab; fi",
        LINES + LINES,
    ),
    "the crontab is removed": ("if [ $event = write ]; then rm rival tab; fi", b""),
    "the crontab has CRLF now": (
        "if [ $event = wrote ]; then rm rival; sed 's/$/\\r/' tab >old; cat old >tab; fi",
        LINES.replace(b"\n", b"\r\n"),
    ),
}


def of_others(tab: bytes) -> bytes:
    """The crontab without our blocks."""
    return re.sub(rb"(?ms)^# BEGIN checkpoint-tool (\S+)\r?\n.*?^# END checkpoint-tool \1\r?\n", b"", tab)


@pytest.mark.parametrize("verb", ["install", "change", "remove"])
@pytest.mark.parametrize("case", RIVALS)
def test_what_another_program_writes_meanwhile_is_kept(host: Host, case: str, verb: str) -> None:
    script, wanted = RIVALS[case]
    host.tab.write_bytes(LINES)
    first = ["install", "--with", "cron"]
    if verb != "install":
        ok(host.schedule(*first))
    calls = {"install": first, "change": [*first, "--every", "5m"], "remove": ["remove"]}
    (host.bin / "rival").write_text(script + "\n")
    ok(host.schedule(*calls[verb]))
    assert not (host.bin / "rival").exists(), "it came to write"
    after = host.tab.read_bytes() if host.tab.exists() else b""
    assert of_others(after) == wanted
    assert after.count(b"# BEGIN checkpoint-tool") == after.count(b"# END checkpoint-tool") == (verb != "remove")
    if verb == "change":
        assert b"*/5 * * * * " in after
    # What another wrote since is not undone.
    undone = host.schedule("undo")
    assert undone.code in (0, 18), undone
    if "# rival" in wanted.decode():
        assert b"# rival" in host.tab.read_bytes()


def test_a_crontab_program_that_writes_in_place(host: Host) -> None:
    program = (host.bin / "crontab").read_text()
    (host.bin / "crontab").write_text(program.replace("then cat >new; else", "then cat >tab; exit; else"))
    host.tab.write_bytes(LINES)
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("set", ".", '["1 1 * * *", "2 2 * * *"]', "--with", "cron", "--", "true"))
    assert of_others(host.tab.read_bytes()) == LINES
    assert host.tab.read_bytes().count(b"# BEGIN") == 3
    ok(host.schedule("set", ".", "[]"))
    ok(host.schedule("remove"))
    assert host.tab.read_bytes() == LINES


def test_a_crontab_that_never_holds_still_is_left_alone(host: Host) -> None:
    host.tab.write_bytes(LINES)
    (host.bin / "rival").write_text('if [ $event = write ]; then echo "# $(wc -l <tab)" >>tab; fi\n')
    refused(host.schedule("install", "--with", "cron"), 18, "another program")
    assert b"checkpoint-tool" not in host.tab.read_bytes()
    assert host.tab.read_bytes().startswith(LINES)
    assert host.remembered() == []


def test_who_waited_long_for_the_lock_has_all_of_the_time_for_the_crontab(host: Host) -> None:
    """Another checkpoint-tool may hold it for as long as it may try."""
    host.tab.write_bytes(LINES)
    ok(host.schedule("install", "--with", "cron"))
    (lock,) = host.home.rglob("crontab.lock")
    held = lock.open()
    fcntl.flock(held, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(host.schedule, "add", "5 4 * * *", "--name", "late", "--with", "cron", "--", "true")
        sleep(21)
        held.close()
        ok(waits.result())
    assert b"-late" in host.tab.read_bytes()


NO_TABS = [
    "no crontab for ann",
    "crontab: no crontab for ann",
    "crontab: can't open 'ann': No such file or directory",
    "user ann has no fcrontab.",
]


@pytest.mark.parametrize("message", NO_TABS)
def test_each_cron_says_in_its_way_that_there_is_no_crontab(host: Host, message: str) -> None:
    (host.bin / "no-tab").write_text(message + "\n")
    ok(host.schedule("install", "--with", "cron"))
    assert host.tab.read_bytes().count(b"# BEGIN") == 1
    ok(host.schedule("remove"))
    assert not host.tab.exists()
    ok(host.schedule("doctor"))


@pytest.mark.parametrize("end", [b"\r\n", b" \t\n"])
def test_markers_that_an_editor_changed_are_ours_all_the_same(host: Host, end: bytes) -> None:
    """Taken for none of ours, the block would stand a second time, and the check run twice."""
    host.tab.write_bytes(LINES)
    ok(host.schedule("install", "--with", "cron"))
    edited = host.tab.read_bytes().replace(b"\n", end)
    host.tab.write_bytes(edited)
    (row,) = host.remembered()
    assert row["installed"] is False, "it is another one than was written"
    ok(host.schedule("sync"))
    assert of_others(host.tab.read_bytes()) == LINES.replace(b"\n", end)
    assert host.tab.read_bytes().count(b"# BEGIN") == 1
    host.tab.write_bytes(edited.removesuffix(end))
    ok(host.schedule("remove"))
    assert host.tab.read_bytes() == LINES.replace(b"\n", end)


def test_all_that_crontab_said_is_said(host: Host) -> None:
    reason = "You (ann) are not allowed to use this program (crontab)\nSee crontab(1) for more information\n"
    (host.bin / "refuse-list").write_text(reason)
    refused(host.schedule("install", "--with", "cron"), 18, "You (ann) are not allowed", "See crontab(1)")


def test_a_refusal_that_exits_with_0_is_one(host: Host) -> None:
    """BusyBox: a spool that cannot be written."""
    host.tab.write_bytes(LINES)
    program = (host.bin / "crontab").read_text()
    words = "crontab: can't create /var/spool/cron/crontabs/ann.new"
    (host.bin / "crontab").write_text(program.replace("*)\n", f'*)\n    cat >/dev/null; echo "{words}" >&2; exit 0\n', 1))
    refused(host.schedule("install", "--with", "cron"), 18, words)
    assert host.remembered() == []


def test_undo_restores_what_was_there(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * a\r\nno line")
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("undo"))
    assert host.tab.read_bytes() == b"0 0 * * * a\r\nno line"


def test_undo_is_of_the_last_change(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    before = host.tab.read_bytes()
    ok(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "true"))
    ok(host.schedule("undo"))
    assert host.tab.read_bytes() == before


def test_undo_refuses_when_somebody_else_changed_it(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    edited = host.tab.read_bytes() + b"0 1 * * * b\n"
    host.tab.write_bytes(edited)
    refused(host.schedule("undo"), 18)
    assert host.tab.read_bytes() == edited


def test_a_change_that_failed_is_none_to_undo(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * a\n")
    ok(host.schedule("install", "--with", "cron"))
    (host.bin / "refuse-write").write_text("no space left\n")
    refused(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "true"), 18)
    (host.bin / "refuse-write").unlink()
    ok(host.schedule("undo"))
    assert host.tab.read_bytes() == b"0 0 * * * a\n"


def test_what_was_in_the_crontab_is_kept_beside_the_state(host: Host) -> None:
    host.tab.write_bytes(b"0 0 * * * precious\n")
    ok(host.schedule("install", "--with", "cron"))
    state = host.home / ".local" / "state" / "checkpoint-tool" / "schedules"
    kept = [path for path in state.rglob("*") if path.is_file() and b"precious" in path.read_bytes()]
    assert kept
    assert {path.stat().st_mode & 0o077 for path in state.rglob("*") if path.is_file()} == {0}, "a crontab may hold secrets"


# Commands


def test_the_command_runs_under_exec(host: Host) -> None:
    """As cron would run the line: in another folder, with next to no environment."""
    command = ["sh", "-c", 'printf "%s\\n" "$PWD" "100%" >>out; exit 3']
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", *command))
    (line,) = [line for line in host.tab.read_text().splitlines() if not line.startswith("#")]
    env = {"HOME": str(host.home), "PATH": "/usr/bin:/bin", "LOGNAME": "tester", "SHELL": "/bin/sh"}
    subprocess.run(["/bin/sh", "-c", as_cron_runs(line)], cwd=host.home, env=env, check=False, capture_output=True)
    assert (host.path / "out").read_text().splitlines() == [str(host.path), "100%"]
    store = str(host.path / "memory" / "checkpoints")
    assert host.run(TOOL, "status", "nightly", "--store", store).code == 33
    for word in ("exec nightly", "--label cron", "--no-overlap", f"--store {store}"):
        assert word in line


def test_the_list_is_of_what_is_wanted(host: Host) -> None:
    assert host.remembered() == []
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "echo", "a b"))
    rows = host.remembered()
    assert [set(row) >= {"workspace", "name", "cron", "command", "scheduler", "installed"} for row in rows] == [True, True]
    assert {row["name"]: row["cron"] for row in rows} == {"selfcheck": "*/10 * * * *", "nightly": "5 4 * * *"}
    (nightly,) = [row for row in rows if row["name"] == "nightly"]
    assert nightly["command"] == ["echo", "a b"]
    assert nightly["workspace"] == str(host.path)
    assert {row["installed"] for row in rows} == {True}
    assert ok(host.schedule("list", "--json")).lines == rows
    assert ok(host.schedule("list", str(host.path), "--installed", "--json")).lines == rows
    assert ok(host.schedule("list", "--installed", "--json")).lines == rows
    # In a crontab that somebody emptied it is wanted and not installed.
    host.tab.write_bytes(b"")
    assert {row["installed"] for row in host.remembered()} == {False}
    assert ok(host.schedule("list", "--installed", "--json")).lines == []
    assert "nightly" in ok(host.schedule("list")).out


def test_names(host: Host) -> None:
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "true"))
    before = host.tab.read_bytes()
    for name in ("Nightly", "a b", "../x", "a" * 65, "x\n", "selfcheck"):
        done = host.schedule("add", ".", "5 4 * * *", "--name", name, "--with", "cron", "--", "true")
        refused(done, 2)
    # The same name for something else is no silent exchange.
    done = host.schedule("add", ".", "6 5 * * *", "--name", "nightly", "--with", "cron", "--", "false")
    assert done.code in (0, 2, 14), done
    if done.code:
        assert host.tab.read_bytes() == before
    else:
        assert [row["cron"] for row in host.remembered()] == ["6 5 * * *"]
    refused(host.schedule("add", ".", "5 4 * * *", "--with", "cron"), 2)
    assert host.schedule("add", "./nowhere", "5 4 * * *", "--with", "cron", "--", "true").code in (2, 10)


def test_one_command_at_two_times_is_two_entries(host: Host) -> None:
    ok(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "echo", "x"))
    ok(host.schedule("add", ".", "6 4 * * *", "--with", "cron", "--", "echo", "x"))
    ok(host.schedule("add", ".", "5 4 * * *", "--with", "cron", "--", "echo", "y"))
    rows = host.remembered()
    assert len({row["name"] for row in rows}) == 3
    ok(host.schedule("remove", ".", "5 4 * * *"))
    assert [(row["cron"], row["command"]) for row in host.remembered()] == [("6 4 * * *", ["echo", "x"])]


def test_removing_by_name_and_by_expression(host: Host) -> None:
    refused(host.schedule("remove"), 10)
    refused(host.schedule("remove", ".", "nightly"), 10, "nightly")
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "true"))
    ok(host.schedule("add", ".", "*/10 * * * *", "--name", "often", "--with", "cron", "--", "true"))
    refused(host.schedule("remove", ".", "nightl"), 10)
    refused(host.schedule("remove", ".", "1 1 1 1 *"), 10)
    # The self-check has the same expression, and is no command.
    ok(host.schedule("remove", ".", "*/10 * * * *"))
    assert {row["name"] for row in host.remembered()} == {"selfcheck", "nightly"}
    ok(host.schedule("remove", ".", "nightly"))
    ok(host.schedule("remove"))
    assert host.remembered() == []
    refused(host.schedule("remove"), 10)


def test_set_makes_the_list_exactly_this(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "old", "--with", "cron", "--", "true"))
    ok(host.schedule("set", ".", '["1 1 * * *", "2 2 * * *", "1 1 * * *"]', "--with", "cron", "--", "echo", "x"))
    rows = [row for row in host.remembered() if row["name"] != "selfcheck"]
    assert sorted(row["cron"] for row in rows) == ["1 1 * * *", "2 2 * * *"]
    assert {tuple(row["command"]) for row in rows} == {("echo", "x")}
    tab = host.tab.read_bytes()
    ok(host.schedule("set", ".", '["2 2 * * *", "1 1 * * *"]', "--with", "cron", "--", "echo", "x"))
    assert sorted(host.tab.read_bytes().splitlines()) == sorted(tab.splitlines())
    for text in ("not json", '"1 1 * * *"', "[1]", '["61 * * * *"]', '["1 1 * * *", "L * * * *"]', "{}"):
        refused(host.schedule("set", ".", text, "--with", "cron", "--", "echo", "x"), 2)
    assert sorted(host.tab.read_bytes().splitlines()) == sorted(tab.splitlines()), "all or nothing"
    ok(host.schedule("set", ".", "[]", "--with", "cron", "--", "echo", "x"))
    assert [row["name"] for row in host.remembered()] == ["selfcheck"]


@pytest.mark.parametrize("text", ["a\nb", "a\rb"])
def test_line_ends_in_a_command_are_refused(host: Host, text: str) -> None:
    for kind in ("cron", "systemd", "launchd"):
        refused(host.schedule("add", ".", "5 4 * * *", "--with", kind, "--", "echo", text), 2)
    refused(host.schedule("install", "--with", "cron", "--", "--log", text), 2)
    assert not host.tab.exists()
    assert host.remembered() == []


@pytest.mark.parametrize("folder", ["a\nb", "a\rb", "x\n* * * * * evil"])
def test_line_ends_in_a_path_are_refused(host: Host, folder: str) -> None:
    path = host.path / folder
    path.mkdir()
    for kind in ("cron", "systemd", "systemd-system", "launchd"):
        refused(host.schedule("install", str(path), "--with", kind, "--print"), 2)
    refused(host.schedule("install", str(path), "--with", "cron"), 2)
    refused(host.schedule("add", str(path), "5 4 * * *", "--with", "cron", "--", "true"), 2)
    assert not host.tab.exists()


HOSTILE = [
    "a b",
    "it's",
    'say "so"',
    "100%",
    "%h%%\\%",
    "caf\u00e9 \u65e5\u672c",
    "$HOME ${HOME} `id` $(id)",
    "back\\slash\\",
    "-dash",
    "#hash;semi&amp|<>()",
    "star*?[a]~!",
    "=+:,@",
]


@pytest.mark.parametrize("folder", HOSTILE)
def test_any_path_can_be_scheduled(tmp_path: Path, folder: str) -> None:
    host = Host(tmp_path, folder)
    host.workspace.store.mkdir(parents=True, mode=0o700)
    here, log = str(host.path), tmp_path / "log of 100% $x.jsonl"
    done = host.many(
        [
            ["install", here, "--with", "cron", "--", "--log", str(log)],
            ["add", here, "5 4 * * *", "--name", "n", "--with", "cron", "--", "touch", f"./{folder}!"],
        ]
    )
    assert [one.code for one in done] == [0, 0], done
    lines = [line for line in host.tab.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    env = {"HOME": str(host.home), "PATH": "/usr/bin:/bin"}
    for line in lines:
        ran = subprocess.run(["/bin/sh", "-c", as_cron_runs(line)], cwd="/", env=env, check=False, capture_output=True)
        assert ran.returncode == 0, (line, ran)
    assert [row["event"] for row in map(json.loads, log.read_text().splitlines())] == ["run"]
    assert (host.path / f"{folder}!").exists()
    listed, doctor, printed, *removed = host.many(
        [
            ["list", here, "--json"],
            ["doctor", "--json"],
            ["install", here, "--print", "--with", "launchd"],
            ["remove", here],
            ["remove", here, "n"],
        ]
    )
    assert [(row["installed"], row["workspace"]) for row in listed.lines] == [(True, here)] * 2
    assert [line for line in doctor.lines if "daemon" not in json.dumps(line)] == []
    ((_, plist),) = files(printed.out).items()
    assert here in plistlib.loads(plist.encode())["ProgramArguments"]
    assert [one.code for one in removed] == [0, 0], removed
    assert not host.tab.exists() or host.tab.read_bytes() == b""


def test_workspaces_with_one_name_stand_side_by_side(host: Host) -> None:
    for parent in ("a", "b"):
        (host.path / parent / "My Project").mkdir(parents=True)
        ok(host.schedule("install", str(host.path / parent / "My Project"), "--with", "cron"))
    names = re.findall(r"^# BEGIN checkpoint-tool (.*)$", host.tab.read_text(), re.MULTILINE)
    assert len(set(names)) == 2
    for name in names:
        assert fnmatch.fnmatch(name, "checkpoint-my-project-" + "[0-9a-f]" * 8 + "-selfcheck")
    ok(host.schedule("remove", str(host.path / "a" / "My Project")))
    assert names[1] in host.tab.read_text()


# Agreeing with the host


def test_sync_makes_the_host_agree(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "true"))
    whole = host.tab.read_bytes()
    host.tab.write_bytes(b"0 0 * * * mine\n" + re.sub(rb"(?m)^5 4", b"5 5", whole))
    told = [line for line in ok(host.schedule("sync")).out.splitlines() if "nightly" in line]
    assert len(told) == 1
    assert host.tab.read_bytes() == b"0 0 * * * mine\n" + whole
    host.tab.write_bytes(b"0 0 * * * mine\n")
    told = ok(host.schedule("sync", str(host.path))).out.splitlines()
    assert len(told) == 2, told
    assert sorted(host.tab.read_bytes().splitlines()) == sorted(b"0 0 * * * mine\n".splitlines() + whole.splitlines())
    # What is in the crontab under our markers and wanted by nobody goes.
    stray = whole.replace(b"-nightly", b"-stray")
    host.tab.write_bytes(host.tab.read_bytes() + stray[stray.index(b"# BEGIN", 1) :])
    ok(host.schedule("sync"))
    assert b"stray" not in host.tab.read_bytes()


def test_sync_says_nothing_when_they_agree(host: Host) -> None:
    ok(host.schedule("sync"))
    ok(host.schedule("install", "--with", "cron"))
    before = host.tab.read_bytes()
    assert ok(host.schedule("sync")).out == ""
    assert host.tab.read_bytes() == before
    writes = [line for line in (host.bin / "calls").read_text().splitlines() if line != "-l"]
    ok(host.schedule("sync"))
    assert [line for line in (host.bin / "calls").read_text().splitlines() if line != "-l"] == writes


def test_a_workspace_that_moved_is_followed(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron", "--", "--threshold", "15m"))
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "echo", "x"))
    old, new = host.path, host.path.with_name("moved")
    refused(host.schedule("migrate", str(host.path / "never"), str(old)), 10)
    old.rename(new)
    host.workspace, host.path = Workspace(new), new
    problems = host.problems()
    assert [problem for problem in problems if "migrate" in json.dumps(problem)], problems
    ok(host.schedule("migrate", str(old), str(new)))
    text = host.tab.read_text()
    assert str(old) not in text.replace(str(new), "")
    assert "--threshold 15m" in text
    assert {row["name"] for row in host.remembered()} == {"selfcheck", "nightly"}
    assert {row["workspace"] for row in ok(host.schedule("list", "--json")).lines} == {str(new)}
    assert host.problems() == []
    assert text.count("# BEGIN") == 2


# The doctor


def test_the_doctor_finds_nothing_where_nothing_is(host: Host) -> None:
    done = ok(host.schedule("doctor"))
    assert (done.out, done.err) == ("", "")
    ok(host.schedule("install", "--with", "cron"))
    assert host.problems() == []


def test_the_doctor_finds_lines_that_were_changed(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    good = host.tab.read_bytes()
    for bad in (good.replace(b"--quiet", b"--quiet --json"), good.replace(b"*/10 ", b"*/20 "), b""):
        host.tab.write_bytes(bad)
        (problem,) = host.problems()
        assert "schedule sync" in json.dumps(problem)
        assert problem["name"] == "selfcheck"
        ok(host.schedule("sync"))
        assert host.problems() == []
        assert host.tab.read_bytes() == good


def test_the_doctor_finds_a_workspace_that_is_gone(host: Host) -> None:
    gone = host.path / "gone"
    gone.mkdir()
    ok(host.schedule("install", str(gone), "--with", "cron"))
    gone.rmdir()
    done = host.schedule("doctor")
    refused(done, 18)
    (line,) = [line for line in done.out.splitlines() if "migrate" in line]
    assert str(gone) in line


def test_the_doctor_finds_an_interpreter_that_is_gone(host: Host, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (site / "all.pth").write_text(f"import site; site.addsitedir({host.run(sys.executable, '-c', code).out.strip()!r})\n")
    ok(host.run(str(python), "-m", "checkpoint", "schedule", "install", "--with", "cron"))
    assert str(python) in host.tab.read_text()
    done = host.run(str(python), "-m", "checkpoint", "schedule", "doctor")
    assert [line for line in done.out.splitlines() if "daemon" not in line] == []
    shutil.rmtree(tmp_path / "venv")
    problems = [problem for problem in host.problems() if "interpreter" in json.dumps(problem)]
    assert len(problems) == 1
    assert f"{python} " in json.dumps(problems[0]) + " "
    ok(host.schedule("sync"))
    assert host.problems() == []
    assert sys.executable in host.tab.read_text()


def test_the_doctor_finds_one_schedule_in_two_schedulers(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    for path, text in files(ok(host.schedule("install", "--print", "--with", "systemd")).out).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    wants = host.units / "timers.target.wants"
    wants.mkdir()
    (wants / f"{host.name()}.timer").symlink_to(host.units / f"{host.name()}.timer")
    problems = host.problems()
    assert [problem for problem in problems if "systemd" in json.dumps(problem)], problems


def test_the_doctor_finds_a_check_that_does_not_run(host: Host) -> None:
    program = need_program("faketime")
    host.workspace.store.mkdir(parents=True, mode=0o700)
    ok(host.schedule("install", "--with", "cron", "--every", "10m"))
    assert host.problems() == [], "it was only just installed"

    def later() -> list[str]:
        done = host.run(program, "-f", "+2h", TOOL, "schedule", "doctor", "--json")
        return [line for line in done.out.splitlines() if "daemon" not in line]

    (found,) = later()
    assert "selfcheck" in found
    # It ran, and has not since.
    (line,) = [line for line in host.tab.read_text().splitlines() if not line.startswith("#")]
    subprocess.run(["/bin/sh", "-c", as_cron_runs(line)], env=host.env, check=True)
    assert host.problems() == []
    assert len(later()) == 1
    subprocess.run([program, "-f", "+119m", "/bin/sh", "-c", as_cron_runs(line)], env=host.env, check=True)
    assert later() == []


def test_the_doctor_finds_a_scheduler_that_is_not_there(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    refused(host.schedule("doctor", PATH="/nowhere"), 18)
    (host.bin / "refuse-list").write_text("crontab: you are not allowed to use this program\n")
    done = host.schedule("doctor")
    refused(done, 18)
    assert "not allowed" in done.out


def test_the_state_as_the_scheduler_tells_it(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    (row,) = ok(host.schedule("status", str(host.path), "--json")).lines
    assert set(row) == {"workspace", "name", "scheduler", "installed", "next", "last", "result", "detail"}
    assert (row["name"], row["scheduler"], row["installed"]) == ("selfcheck", "cron", True)
    assert datetime.fromisoformat(row["next"]).minute % 10 == 0
    host.tab.write_bytes(b"")
    (row,) = ok(host.schedule("status", "--json")).lines
    assert (row["installed"], row["next"]) == (False, None)
    assert "selfcheck" in ok(host.schedule("status")).out


@pytest.mark.parametrize(
    "verb", ["install", "remove", "add", "set", "list", "sync", "migrate", "next", "status", "doctor", "undo"]
)
def test_every_verb_takes_json(host: Host, verb: str) -> None:
    assert "--json" in ok(host.schedule(verb, "--help")).out


def by_cron(command: bytes) -> bytes:
    """What Debian's cron makes of a line's command (do_command.c): % ends it, \\% is one, and \\\\ is a pair."""
    out = bytearray()
    escaped = False
    for byte in command:
        character = bytes([byte])
        if escaped:
            if character == b"%":
                out.pop()
            out += character
            escaped = False
            continue
        if character == b"%":
            return bytes(out)
        escaped = character == b"\\"
        out += character
    return bytes(out)


@pytest.mark.parametrize(
    "word", [r"date +\%F", r"a\\%b", "%", r"\%\%", r"it's 100\%", r"\\\%", "plain", "50%%", "'%'", "%'%", "\\'%"]
)
def test_cron_gives_the_shell_what_was_meant(host: Host, word: str) -> None:
    ok(host.schedule("add", ".", "0 3 * * *", "--name", "n", "--with", "cron", "--", "printf", "%s", word))
    line = next(line for line in host.tab.read_bytes().splitlines() if line.startswith(b"0 3 "))
    written = line.split(b" ", 5)[5]
    # BusyBox's crond leaves the line to the shell as it is.
    for command in (by_cron(written), written):
        words = shlex.split(command.decode())
        assert words[-3:] == ["printf", "%s", word], command


def test_options_that_no_check_could_run_with_are_refused(host: Host) -> None:
    for options in (["--notify", "htps:x"], ["--bogus", "1"], ["--threshold", "soon"]):
        refused(host.schedule("install", "--with", "cron", "--", *options), 2)
    assert not host.tab.exists()


def test_a_secret_in_a_command_is_refused(host: Host) -> None:
    secret = "ghp_" + "0123456789abcdefghijabcdefghij012345"
    command = ["curl", "-H", f"Authorization: Bearer {secret}"]
    for verb in (["add", ".", "@daily"], ["set", ".", '["@daily"]']):
        done = host.schedule(*verb, "--with", "cron", "--", *command)
        refused(done, 16)
        assert secret not in done.err
    assert not any(secret.encode() in path.read_bytes() for path in host.home.rglob("*") if path.is_file())
    rule = re.search(r"--allow-secret (\S+),", done.err)
    assert rule
    ok(host.schedule("add", ".", "@daily", "--with", "cron", "--allow-secret", rule[1], "--", *command))


def test_the_doctor_finds_that_nobody_gets_the_mail(host: Host) -> None:
    host.tab.write_text('MAILTO=""\n')
    ok(host.schedule("install", "--with", "cron"))
    assert "MAILTO is empty" in host.schedule("doctor").out
    ok(host.schedule("install", "--with", "cron", "--", "--notify", "syslog:"))
    assert "MAILTO" not in host.schedule("doctor").out


def test_one_damaged_record_hides_no_other(host: Host) -> None:
    other = host.path.parent / "other"
    other.mkdir()
    ok(host.schedule("install", "--with", "cron"))
    ok(host.schedule("install", str(other), "--with", "cron"))
    (damaged,) = host.home.rglob("*work-*/state.json")
    damaged.write_text("{")
    for verb in ("list", "status", "sync"):
        done = host.schedule(verb)
        assert done.code == 0, done
        assert "is damaged" in done.err
    assert str(other) in host.schedule("list").out
    doctor = host.schedule("doctor")
    assert doctor.code == 18
    assert "state.json.bad && checkpoint-tool schedule install" in doctor.out


def test_a_folder_that_no_unit_can_name_is_refused(host: Host) -> None:
    """At the end of a line systemd takes a backslash for its continuation."""
    (host.path / "end\\").mkdir()
    done = host.schedule("install", "end\\", "--print", "--with", "systemd")
    assert (done.code, "rename the folder" in done.err) == (2, True)


# The workspace left out, and words that may be either


def test_the_workspace_may_be_left_out(host: Host) -> None:
    cron = ["--with", "cron", "--name"]
    ok(host.schedule("add", "5 4 * * *", *cron, "nightly", "--", "echo", ".", "@daily"))
    ok(host.schedule("add", "6 4 * * *", ".", *cron, "swapped", "--", "true"))
    ok(host.schedule("add", "@daily", *cron, "daily", "--", "true"))
    rows = {row["name"]: (row["workspace"], row["cron"], row["command"]) for row in host.remembered()}
    here = str(host.path)
    assert rows == {
        "nightly": (here, "5 4 * * *", ["echo", ".", "@daily"]),
        "swapped": (here, "6 4 * * *", ["true"]),
        "daily": (here, "0 0 * * *", ["true"]),
    }
    for verb in ("list", "status", "next"):
        (row,) = {row.get("name") or row["cron"] for row in ok(host.schedule(verb, "nightly", "--json")).lines}
        assert row in ("nightly", "5 4 * * *")
        # Not the last column of a status: whether a cron daemon runs changes with the tests beside this one.
        full, short = (ok(host.schedule(verb, *which, "nightly")).out.rpartition("\t")[0] for which in (["."], []))
        assert full == short
    assert len(ok(host.schedule("next", "--json")).lines) == 15
    assert [row["name"] for row in ok(host.schedule("list", "6 4 * * *", "--json")).lines] == ["swapped"]
    ok(host.schedule("remove", "nightly"))
    ok(host.schedule("remove", "6 4 * * *"))
    ok(host.schedule("remove", "@daily"))
    assert host.remembered() == []
    ok(host.schedule("set", '["1 1 * * *", "@weekly"]', "--with", "cron", "--", "echo", "[]"))
    assert {row["cron"] for row in host.remembered()} == {"1 1 * * *", "0 0 * * 0"}
    ok(host.schedule("set", "[]"))
    ok(host.schedule("install", "--with", "cron", "--", "--threshold", "15m"))
    ok(host.schedule("remove", here))
    assert host.remembered() == []


def test_a_word_that_may_be_either_is_refused_naming_both(host: Host) -> None:
    ok(host.schedule("add", ".", "5 4 * * *", "--name", "nightly", "--with", "cron", "--", "true"))
    ok(host.schedule("add", ".", "@daily", "--name", "daily", "--with", "cron", "--", "true"))
    for name in ("nightly", "@daily"):
        (host.path / name).mkdir()
        for verb in ("remove", "list", "status", "next"):
            done = host.schedule(verb, name)
            refused(done, 2, f"schedule {verb} ./{name} for the directory", f"schedule {verb} . {name}")
    assert len(host.remembered()) == 2
    refused(host.schedule("remove", "./nightly"), 10)
    ok(host.schedule("remove", ".", "nightly"))
    # An EXPR is needed here, so that it can be nothing else.
    ok(host.schedule("add", "@daily", "--name", "x", "--with", "cron", "--", "echo"))
    assert {row["name"] for row in host.remembered()} == {"daily", "x"}
    ok(host.schedule("install", "@daily", "--with", "cron"))
    ok(host.schedule("remove", "./@daily"))


def test_words_that_are_neither_are_said(host: Host) -> None:
    for verb in ("list", "status", "sync", "doctor", "remove"):
        refused(host.schedule(verb, "nowhere"), 10, "nowhere")
    refused(host.schedule("next", "nowhere"), 2, "fields")
    refused(host.schedule("add", "61 * * * *", "--with", "cron", "--", "true"), 2, "minute")
    refused(host.schedule("add", ".", "--with", "cron", "--", "true"), 2, "EXPR is missing")
    refused(host.schedule("set", ".", "--with", "cron", "--", "true"), 2, "is missing")
    refused(host.schedule("add", ".", "@daily", "x", "--with", "cron", "--", "true"), 2, "stands before --")
    refused(host.schedule("install", "0 3 * * *"), 2, "schedule install --cron '0 3 * * *'")
    refused(host.schedule("list", "0", "3", "*"), 2, "quotes")
    assert not host.tab.exists()


# What differs, and only that


def test_sync_writes_only_what_differs(host: Host) -> None:
    other = host.path.parent / "other"
    other.mkdir()
    for place in (host.path, other):
        ok(host.schedule("install", str(place), "--with", "cron"))
        ok(host.schedule("add", str(place), "@daily", "--name", "n", "--with", "cron", "--", "true"))
    host.tab.write_bytes(host.tab.read_bytes().replace(b"*/10", b"*/20", 1))
    states = {path: path.stat().st_mtime_ns for path in host.home.rglob("state.json")}
    (host.bin / "calls").unlink()
    (line,) = ok(host.schedule("sync")).out.splitlines()
    assert line.startswith(f"{host.path}: selfcheck ")
    writes = [call for call in (host.bin / "calls").read_text().splitlines() if call != "-l"]
    assert writes == ["-"], "one entry in one workspace"
    changed = [path for path, at in states.items() if path.stat().st_mtime_ns != at]
    assert len(changed) == 1, "the record of the other workspace is left alone"
    assert ok(host.schedule("sync")).out == ""


def test_a_broken_schedule_file_is_said_once(host: Host) -> None:
    ok(host.schedule("install", "--with", "cron"))
    (damaged,) = host.home.rglob("*work-*/state.json")
    damaged.write_text("{")
    for argv in (["list"], ["list", "--installed"], ["status"], ["sync"]):
        done = ok(host.schedule(*argv))
        assert done.err.count("is damaged") == 1, done
    for argv in (["doctor"], ["doctor", "."]):
        done = host.schedule(*argv)
        assert (done.code, (done.out + done.err).count("is damaged")) == (18, 1), done
        assert "state.json.bad && checkpoint-tool schedule install" in done.out


# Secrets

TOKEN = "ghp_" + "0123456789abcdefghijabcdefghij012345"


def test_no_secret_is_written(host: Host, tmp_path: Path) -> None:
    url = "https://u:S3cretPassw0rd99@ops.example.org/x"
    secret_folder = host.path / TOKEN
    secret_folder.mkdir()
    cron = ["--with", "cron"]
    calls = [
        (["install", *cron, "--", "--notify", url], {}),
        (["install", "--print", *cron, "--", "--notify", url], {}),
        (["install", "--with", "systemd", "--", f"--notify={url}"], {}),
        (["install", *cron, "--", "--ping", url], {}),
        (["add", "@daily", *cron, "--", "curl", url], {}),
        (["add", ".", "@daily", *cron, "--", "env", f"GITHUB_TOKEN={TOKEN}", "true"], {}),
        (["add", ".", "@daily", "--name", TOKEN, *cron, "--", "true"], {}),
        (["add", ".", "@daily", *cron, "--", "true"], {"PATH": f"{host.env['PATH']}:/opt/{TOKEN}/bin"}),
        (["set", '["@daily"]', *cron, "--", "curl", url], {}),
        (["install", str(secret_folder), *cron], {}),
        (["migrate", ".", str(secret_folder)], {}),
    ]
    for argv, env in calls:
        done = host.schedule(*argv, **env)
        refused(done, 16)
        assert TOKEN not in done.out + done.err, argv
        assert "S3cret" not in done.out + done.err, argv
    assert not host.tab.exists()
    assert not host.units.exists()
    assert not any(path.is_file() for path in host.home.rglob("*"))
    assert "${file:PATH}" in host.schedule(*calls[0][0]).err
    # Where it is kept elsewhere, its place is named.
    (tmp_path / "url").write_text(url)
    for notify in ("https://${USER}:${PASSWORD}@ops.example.org/x", f"@{tmp_path}/url", "https://u:${file:/etc/p}@h/"):
        ok(host.schedule("install", *cron, "--", "--notify", notify))
    assert host.problems() == []


def test_an_allowed_secret_is_written_and_known_for_one(host: Host) -> None:
    url = "https://u:S3cretPassw0rd99@ops.example.org/x"
    ok(host.schedule("install", "--with", "cron", "--allow-secret", "url-password", "--", "--notify", url))
    assert url in host.tab.read_text()
    assert host.problems() == []
    (state,) = host.home.rglob("*work-*/state.json")
    allowed = json.loads(state.read_text())
    assert allowed["entries"][0]["allowed"] == ["url-password"]
    # As an older version wrote it, which screened nothing.
    fields = {name: value for name, value in allowed.items() if name != "digest"}
    del fields["entries"][0]["allowed"]
    fields["digest"] = canonical_sha256(fields)
    state.write_text(json.dumps(fields))
    (problem,) = host.problems()
    assert "url-password" in problem["words"]
    assert "S3cret" not in json.dumps(problem)
    ok(host.schedule(*problem["mend"].split()[2:]))
    assert host.problems() == []
