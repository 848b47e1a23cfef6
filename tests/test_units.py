"""The unit templates: what systemd and plistlib say of them. (launchd itself exists on no machine that tests run on.)"""

import json
import plistlib
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT, Workspace, need_program

PLIST_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["Label", "ProgramArguments", "StartCalendarInterval"],
    "properties": {
        "Label": {"type": "string"},
        "ProgramArguments": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "StartCalendarInterval": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"Minute": {"type": "integer", "minimum": 0, "maximum": 59}},
            },
        },
        "RunAtLoad": {"type": "boolean"},
        "ProcessType": {"enum": ["Background", "Standard", "Adaptive", "Interactive"]},
        "LowPriorityIO": {"type": "boolean"},
        "StandardErrorPath": {"type": "string"},
        "StandardOutPath": {"type": "string"},
    },
}
"""The keys we use, with the types that launchd.plist(5) gives them."""


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The systemd units, filled in as docs/selfcheck.md says, under an instance of their own."""
    made = []
    for kind in ("service", "timer"):
        text = (ROOT / "systemd" / f"checkpoint-selfcheck@.{kind}").read_text().replace("@PYTHON@", sys.executable)
        unit = tmp_path / f"checkpoint-selfcheck@tmp-a\\x20b.{kind}"
        unit.write_text(text)
        made.append(unit)
    return made


@pytest.mark.parametrize("scope", ["--user", "--system"])
def test_systemd_finds_nothing_to_complain_of(units: list[Path], scope: str, tmp_path: Path) -> None:
    # Without --recursive-errors=yes unknown keys pass.
    argv = [need_program("systemd-analyze"), scope, "--man=no", "--recursive-errors=yes", "verify", *map(str, units)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    complaints = [line for line in done.stderr.splitlines() if "checkpoint-selfcheck" in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


def test_a_mistake_in_a_unit_would_be_found(units: list[Path], tmp_path: Path) -> None:
    units[0].write_text(units[0].read_text() + "NoNewPriviliges=yes\n")
    argv = [need_program("systemd-analyze"), "--system", "--man=no", "--recursive-errors=yes", "verify", *map(str, units)]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0


def test_the_timer_fires_every_ten_minutes() -> None:
    text = (ROOT / "systemd" / "checkpoint-selfcheck@.timer").read_text()
    (calendar,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("OnCalendar=")]
    argv = [need_program("systemd-analyze"), "calendar", "--iterations=4", calendar]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    minutes = [line.split()[-2].split(":")[1] for line in out.splitlines() if "Next elapse" in line or "Iter" in line]
    assert len(minutes) == 4
    assert all(int(minute) % 10 == 0 for minute in minutes)
    assert len(set(minutes)) == 4


def test_the_command_of_the_service_runs(workspace: Workspace) -> None:
    workspace.tool("start", "deploy", "--steps", "a")
    text = (ROOT / "systemd" / "checkpoint-selfcheck@.service").read_text()
    (command,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart=")]
    command = (
        command.replace("@PYTHON@", sys.executable)
        .replace("%f", str(workspace.path))
        .replace("%S/checkpoint-selfcheck/%i", "log")
    )
    done = workspace.run("sh", "-c", command)
    assert done.code == 0, done
    assert json.loads((workspace.path / "log.jsonl").read_text())["event"] == "run"


def test_the_property_list_is_one_that_launchd_knows() -> None:
    text = (ROOT / "launchd" / "checkpoint-selfcheck.plist").read_bytes()
    plist = plistlib.loads(text)
    jsonschema.validate(plist, PLIST_SCHEMA)
    assert [entry["Minute"] for entry in plist["StartCalendarInterval"]] == [0, 10, 20, 30, 40, 50]


def test_the_command_of_the_property_list_runs(workspace: Workspace) -> None:
    workspace.tool("start", "deploy", "--steps", "a")
    plist = plistlib.loads((ROOT / "launchd" / "checkpoint-selfcheck.plist").read_bytes())
    places = {"@PYTHON@": sys.executable, "@WORKSPACE@": str(workspace.path), "@LOGS@": str(workspace.path)}
    argv = []
    for argument in plist["ProgramArguments"]:
        for mark, place in places.items():
            argument = argument.replace(mark, place)
        argv.append(argument)
    assert workspace.run(*argv).code == 0
    assert (workspace.path / "checkpoint-selfcheck.jsonl").exists()
