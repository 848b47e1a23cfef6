"""Nothing of the working directory is run or imported by a process that this program starts.

Each is started in a directory full of files named like the modules and the programs that it could want. All of them
say that they were run, in a directory of their own.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from conftest import BIN, ROOT, SELFCHECK, TOOL, Result, lacking

from checkpoint import programs

SOURCES = sorted((ROOT / "checkpoint").rglob("*.py"))
# What starts a process, by file: who adds a place adds what is started there to the tests below.
STARTS = {
    "checkpoint/child.py": ["os.execve", "os.execvpe"],  # what the user names
    "checkpoint/crontab.py": ["subprocess.Popen", "subprocess.run"],
    "checkpoint/notify.py": ["subprocess.Popen"],
    "checkpoint/scheduler.py": ["subprocess.run", "subprocess.run"],  # one is the interpreter of a schedule, from /
}
STARTING = re.compile(
    r"(subprocess\.(run|Popen|call|check_\w+|get\w*output)|os\.(exec\w+|posix_spawn\w*|spawn\w+|system|popen))"
)
# A PATH and a PYTHONPATH with the working directory in them, by each of the ways to write it.
RELATIVE = ("", ".", "./", "bin/..")
SHADOWS = ("sitecustomize", "usercustomize", "checkpoint", "apprise", "requests", "yaml", "markdown", "certifi", "typer", "mcp")
MORE_PROGRAMS = ("sh", "env", "git", "python", "python3", "checkpoint-tool", "checkpoint-selfcheck", "cat", "flock")


class Trap:
    """A directory whose every file says that it was run."""

    def __init__(self, path: Path, *, without: Collection[str] = ()) -> None:
        self.path, self.marks = path / "workspace", path / "marks"
        self.home = path / "home"
        for made in (self.path, self.marks, self.home, self.path / "bin"):
            made.mkdir()
        names = set(sys.stdlib_module_names) | {path.stem for path in SOURCES} | set(SHADOWS)
        for name in sorted(names - set(without)):
            (self.path / f"{name}.py").write_text(f"open({str(self.marks / name)!r}, 'w')\n")
        for name in (*programs.PROGRAMS, *MORE_PROGRAMS):
            program = self.path / name
            program.write_text(f"#!/bin/sh\n: >{shlex.quote(str(self.marks / name))}-program\n")
            program.chmod(0o755)

    def run(self, *argv: str, input: str = "", **env: str) -> Result:
        # PYTHONPATH stays: it may lead to a copy of the program with a bug planted in it.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_")}
        environ = clean | {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state")} | env
        done = subprocess.run(
            argv, cwd=self.path, env=environ, input=input, capture_output=True, text=True, timeout=120, check=False
        )
        assert sorted(path.name for path in self.marks.iterdir()) == [], (argv, done)
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


def path_with(entry: str) -> str:
    return os.pathsep.join([entry, "/usr/local/bin", "/usr/bin", "/bin"])


def test_the_trap_works(trap: Trap) -> None:
    for argv in ([sys.executable, "-c", "import json"], [sys.executable, "-m", "checkpoint"], ["sendmail"]):
        environ = {"PATH": path_with(".")}
        subprocess.run(argv, cwd=trap.path, env=environ, check=False, capture_output=True)
        assert [path.unlink() for path in trap.marks.iterdir()], argv


def test_every_place_that_starts_a_process_is_known() -> None:
    found: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and STARTING.fullmatch(ast.unparse(node.func)):
                found.setdefault(str(path.relative_to(ROOT)), []).append(ast.unparse(node.func))
    assert {path: sorted(calls) for path, calls in found.items()} == STARTS
    interpreters = [path.name for path in SOURCES if re.search(r"sys\.executable(?!\))", path.read_text())]
    assert interpreters == ["programs.py"], "others ask it for the interpreter, with its options"


def test_every_program_of_ours_is_asked_for_by_name() -> None:
    """So that no other is started without being sought in the safe way."""
    text = "".join(path.read_text() for path in SOURCES if path.name != "programs.py")
    for name in programs.PROGRAMS:
        assert f'"{name}"' in text, name
    assert "shutil.which" not in text.replace("shutil.which(PROGRAM)", "").replace("shutil.which(sys.argv[0])", "")


@pytest.mark.parametrize("entry", RELATIVE)
def test_programs_are_not_sought_in_the_working_directory(trap: Trap, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.chdir(trap.path)
    monkeypatch.setenv("PATH", entry)
    monkeypatch.setattr(programs, "_SENDMAIL", ())
    for name in (*programs.PROGRAMS, *MORE_PROGRAMS):
        assert programs.find(name) is None
    monkeypatch.setenv("PATH", path_with(entry))
    assert programs.find("env") in ("/usr/bin/env", "/bin/env", "/usr/local/bin/env")
    assert entry not in programs.environ()["PATH"].split(os.pathsep)


@pytest.mark.parametrize("entry", RELATIVE)
def test_notices(trap: Trap, entry: str) -> None:
    """apprise in a Python of its own, and the programs of the host. Nobody takes a notice here; nothing may be run."""
    for address in ("slack://a/b/c", "json://127.0.0.1:1/", "mail:ops@localhost", "desktop:"):
        done = trap.run(
            SELFCHECK, "test-notify", "--notify", address, PATH=path_with(entry), DBUS_SESSION_BUS_ADDRESS="unix:path=/n"
        )
        assert done.code in (0, 2, 3), done


def test_notices_with_the_directory_in_pythonpath(trap: Trap) -> None:
    """It comes to the child of a program that itself was started without it."""
    for entry in ("", ".", str(trap.path), ":/nowhere", "sub:."):
        code = (
            f"import os, sys; os.environ['PYTHONPATH'] = {entry!r}\n"
            "sys.argv = ['checkpoint-selfcheck', 'test-notify', '--notify', 'json://127.0.0.1:1/']\n"
            "from checkpoint.selfcheck import script; script()"
        )
        done = trap.run(sys.executable, "-P", "-c", code)
        assert "apprise:json: apprise ended with exit status 1" in done.err, done


def test_the_path_of_modules_that_is_handed_on(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trap.path)
    monkeypatch.setenv("PYTHONPATH", ":sub:/opt/own:.")
    found = [str(trap.path), "", ".", f"{trap.path}/sub", "/opt/own", f"{trap.path}/.venv", str(trap.path / "bin/..")]
    monkeypatch.setattr(sys, "path", found)
    assert programs.module_path() == ["/opt/own", f"{trap.path}/.venv"]
    gone = trap.path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "/opt/own" in programs.module_path()


def test_apprise_is_found_where_this_process_finds_it(tmp_path: Path) -> None:
    """Also where the installation is reached by PYTHONPATH alone, as in a directory of vendored packages."""
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    (vendor / "apprise.py").write_text("import sys\nsys.exit(7)\n")
    code = (
        "import sys; sys.argv = ['checkpoint-selfcheck', 'test-notify', '--notify', 'json://127.0.0.1:1/']\n"
        "from checkpoint.selfcheck import script; script()"
    )
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{vendor}"}
    python = os.path.realpath(sys.executable)  # without the virtual environment and its packages
    probe = subprocess.run([python, "-P", "-c", "import apprise"], capture_output=True, check=False)
    if probe.returncode == 0:
        lacking("apprise is installed for all")
    argv = [python, "-P", "-c", code]
    done = subprocess.run(argv, cwd="/", env=environ, capture_output=True, text=True, check=False)
    assert "apprise ended with exit status 7" in done.stderr, done


def test_every_verb(trap: Trap) -> None:
    path = path_with("") + os.pathsep + str(BIN)
    for argv in (
        ["--version"],
        ["start", "deploy", "--steps", "a,b", "--data", "{}"],
        ["run", "deploy", "a", "--verify", ":", "--", "/bin/true"],
        ["exec", "nightly", "--", "/bin/true"],
        ["list"],
        ["agents", "brief"],
        ["agents", "brief", "--hook"],
        ["agents", "install", "--target", "claude"],
        ["schedule", "list", "--installed"],
        ["schedule", "doctor"],
        ["verify"],
        ["mcp"],
    ):
        done = trap.run(TOOL, *argv, PATH=path)
        assert "Traceback" not in done.err, done


def lines(trap: Trap, *argv: str) -> Iterator[list[str]]:
    """The commands that a scheduler is given."""
    shown = json.loads(trap.run(TOOL, "schedule", "install", *argv, "--print", "--json").out)
    for content in shown.values():
        for line in content.splitlines():
            if line.startswith("ExecStart="):
                yield shlex.split(line.removeprefix("ExecStart="))
            elif line.startswith("*"):
                yield ["/bin/sh", "-c", line.split(None, 5)[5].replace("\\%", "%")]


@pytest.mark.parametrize("entry", ["unset", "", ".", ":/nowhere"])
@pytest.mark.parametrize("scheduler", ["systemd", "cron"])
def test_what_a_scheduler_is_given(trap: Trap, scheduler: str, entry: str) -> None:
    commands = [*lines(trap, "--with", scheduler)]
    assert commands
    for argv in commands:
        env = {} if entry == "unset" else {"PYTHONPATH": entry}
        done = trap.run(*argv, PATH=path_with("."), **env)
        assert "checkpoint-selfcheck" in done.err + done.out or done.code in (0, 3), done


@pytest.mark.parametrize("entry", RELATIVE)
def test_the_functions_of_a_shell(trap: Trap, entry: str) -> None:
    """Where the name checkpoint-tool would mean a file of the working directory, they use the path."""
    name = shlex.quote(TOOL)
    script = f'eval "$({name} shell-init bash)"; ckpt_start deploy --steps a; ckpt_step a :; ckpt_complete'
    done = trap.run("/bin/bash", "-c", script, PATH=path_with(entry))
    assert done.code == 0, done


def test_typed_as_a_module(tmp_path: Path) -> None:
    """What `python -m` itself imports is sought there before a line of ours runs; nothing else is."""
    code = "import runpy, importlib.util, importlib.machinery, sys; print(*sys.modules)"
    before = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    trap = Trap(tmp_path, without=("checkpoint", *before.split()))
    assert {"json.py", "typing.py", "argparse.py", "datetime.py"} <= set(os.listdir(trap.path))
    done = trap.run(sys.executable, "-m", "checkpoint", "start", "deploy", "--steps", "a")
    assert done.code == 0, done
    assert trap.run(sys.executable, "-m", "checkpoint", "list").code == 0


def test_from_a_checkout(trap: Trap) -> None:
    for script in ("checkpoint_tool.py", "checkpoint_selfcheck.py"):
        assert trap.run(sys.executable, str(ROOT / "scripts" / script), "--version").code == 0


def test_scripts_start_their_modules_isolated() -> None:
    """`python -m pip` of scripts/setup would run a pip.py of the directory that it was typed in."""
    for path in sorted((ROOT / "scripts").rglob("*")):
        if not path.is_file() or path.suffix == ".pyc":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\s\"?-m\"? ?,? \"?(venv|pip|compileall)\b", line):
                assert '"-I", "-m"' in line or " -I -m" in line, f"{path}:{number}"
