"""The rules of the house that no linter knows: contracts between code, documents and packaging."""

import hashlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import BIN, ROOT, TOOL, Workspace, lacking

import checkpoint
from checkpoint import codec, errors, selfcheck
from checkpoint._load import data_path, load
from checkpoint.cli import COMMANDS, app
from checkpoint.monitor import Reason

README = (ROOT / "README.md").read_text()
DOCUMENTS = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(checkpoint.__path__, "checkpoint.")
    if not module.name.endswith("__main__")
]


def error_classes() -> list[type[errors.CheckpointError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.CheckpointError)]
    return [value for value in found if value not in (errors.CheckpointError, errors.AlreadyExists)]


def test_the_exit_code_table_is_that_of_the_code() -> None:
    table = README.split("## Exit codes")[1].split("##")[0]
    documented = {
        name.split(":")[0]: int(code) for code, name in re.findall(r"\| (\d+) \| ([A-Z][A-Za-z]+(?::[^|]*)?) (?=\|)", table)
    }
    assert documented == {kind.__name__: kind.exit_code for kind in error_classes()} | {"Bug": 1}


def test_no_two_errors_share_an_exit_code() -> None:
    codes = [kind.exit_code for kind in error_classes()]
    assert len(codes) == len(set(codes))


def verbs() -> dict[str, Any]:
    """Every command, those of a group as "schedule add"."""
    found = {}
    for name in COMMANDS:
        command = typer.main.get_command(app).get_command(None, name)  # type: ignore[attr-defined]
        inside = getattr(command, "commands", None)
        found |= {name: command} if inside is None else {f"{name} {one}": each for one, each in inside.items()}
    return found


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_is_in_the_readme(verb: str) -> None:
    assert f"`{verb}" in README


@pytest.mark.parametrize("verb", verbs())
def test_every_command_is_documented_and_takes_store_and_json(verb: str) -> None:
    assert re.search(rf"\b{verb}\b", DOCUMENTS["commands.md"] + DOCUMENTS["schedule.md"])
    # What is about this host, and not about a store, takes a workspace instead.
    wanted = {"--json"} if verb.startswith("schedule ") else {"--store", "--json"}
    assert wanted <= options_of(verbs()[verb])


def test_every_option_is_documented() -> None:
    text = " ".join(DOCUMENTS.values())
    missing = {name for command in verbs().values() for name in options_of(command) if not re.search(rf"{name}\b", text)}
    assert missing == set()


def test_every_option_and_verb_of_the_self_check_is_documented() -> None:
    text = DOCUMENTS["selfcheck.md"]
    options = [name for action in selfcheck.parser()._actions for name in action.option_strings if name.startswith("--")]
    assert len(options) > 15
    assert [name for name in options if name not in ("--help", "--version") and f"{name}" not in text] == []
    assert [verb for verb in selfcheck.VERBS if verb not in text] == []
    settings = {action.dest for action in selfcheck.parser()._actions} - {"help", "version", "config", "check_monitor"}
    assert settings == set(selfcheck.DEFAULTS) - {"check_monitor"}
    assert settings == load("checkpoint.settings:KNOWN")
    assert [name for name in settings if name not in text] == []


def test_every_channel_is_documented() -> None:
    for scheme in load("checkpoint.notify:SENDERS"):
        assert f"`{scheme}" in DOCUMENTS["selfcheck.md"]


def test_every_kind_of_damage_and_every_reason_is_documented() -> None:
    for kind in errors.DAMAGE_KINDS:
        assert f"`{kind}`" in DOCUMENTS["commands.md"]
    for reason in Reason:
        assert f"| `{reason}` |" in DOCUMENTS["selfcheck.md"]


def test_every_field_of_the_schema_is_one_of_the_model() -> None:
    schema = json.loads(Path(data_path(codec.SCHEMA_FILE)).read_text())
    fields = set(checkpoint.Checkpoint._fields) - {"extra"}
    assert set(schema["properties"]) == fields | {"schema", "schema_sha256", "digest"}
    assert set(schema["$defs"]["step"]["properties"]) == set(checkpoint.Step._fields) - {"extra"}
    assert set(schema["$defs"]["lease"]["properties"]) == set(checkpoint.Lease._fields) - {"extra"}


def test_the_schema_hash_is_that_of_the_file() -> None:
    assert hashlib.sha256(Path(data_path(codec.SCHEMA_FILE)).read_bytes()).hexdigest() == codec.SCHEMA_SHA256


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_have_docstrings(module: object) -> None:
    assert len(module.__doc__ or "") > 20
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_"):  # type: ignore[attr-defined]
            # A named tuple without a docstring of its own gets "Name(field, ...)".
            assert not (value.__doc__ or f"{name}(").startswith(f"{name}("), f"{module.__name__}.{name}"  # type: ignore[attr-defined]


def test_names_say_what_a_thing_is() -> None:
    banned = re.compile(r"manager|handler|helper|utils?\b", re.IGNORECASE)
    for path in (ROOT / "checkpoint").rglob("*.py"):
        assert not banned.search(path.name), path
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r"\s*(?:async def|def|class) (\w+)", line)
            assert not (match and banned.search(match[1])), f"{path}:{number}"


def test_the_hot_path_loads_nothing_heavy(workspace: Workspace) -> None:
    workspace.tool("start", "deploy", "--steps", "a,b")
    for argv in (["list", "--json"], ["update", "deploy", "--complete", "a"], ["show", "deploy"]):
        code = "import sys; from checkpoint.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
        loaded = workspace.run(sys.executable, "-c", code, *argv).err.split()
        assert {"rich", "jsonschema", "croniter", "dataclasses_json", "importlib.metadata"} & set(loaded) == set()
        assert ("portalocker" in loaded) == (argv[0] == "update")


def test_every_name_that_is_loaded_late_exists() -> None:
    late = set()
    for path in (ROOT / "checkpoint").rglob("*.py"):
        late |= set(re.findall(r'load\("([\w.]+:\w+)"\)', path.read_text()))
    assert len(late) > 5
    for target in late | {f"checkpoint.cli.{verb.target}" for verb in COMMANDS.values()}:
        assert load(target)


def test_the_wheel_holds_schemas_and_units(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for folder in ("schemas", "systemd", "launchd", "checkpoint/shell"):
        for path in (ROOT / folder).iterdir():
            assert f"checkpoint/{folder.removeprefix('checkpoint/')}/{path.name}" in names
    # The installed package finds them beside itself, not in a checkout.
    code = "import checkpoint._load as l; print(l.data_path('schemas/checkpoint.v1.schema.json'))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.startswith(str(tmp_path / "site"))


def test_version(workspace: Workspace) -> None:
    assert workspace.tool("--version").out == f"checkpoint-tool {checkpoint.__version__}\n"
    assert workspace.run(sys.executable, "-m", "checkpoint", "--version").out == f"checkpoint-tool {checkpoint.__version__}\n"
    assert workspace.selfcheck("--version").out == f"checkpoint-selfcheck {checkpoint.__version__}\n"


def test_the_scripts_run_from_a_checkout(workspace: Workspace) -> None:
    assert workspace.run(str(ROOT / "scripts" / "checkpoint_tool.py"), "--version", env=_path()).code == 0
    done = workspace.run(sys.executable, "-S", str(ROOT / "scripts" / "checkpoint_selfcheck.py"), "--version")
    assert done.code == 0, "the self-check needs nothing but Python: not even site-packages"


def test_the_demo(workspace: Workspace) -> None:
    if (BIN / "checkpoint-tool") != ROOT / ".venv" / "bin" / "checkpoint-tool":
        lacking("the demo uses the .venv of this checkout")
    done = workspace.run(str(ROOT / "scripts" / "demo"), timeout=300)
    assert done.code == 0, done
    assert "abandoned" in done.out
    assert "Everything that had ended ran exactly once." in done.out


def test_the_drill(workspace: Workspace) -> None:
    if (BIN / "checkpoint-tool") != ROOT / ".venv" / "bin" / "checkpoint-tool":
        lacking("the drill uses the .venv of this checkout")
    done = workspace.run(str(ROOT / "scripts" / "drill"), "--seed", "7", timeout=300)
    assert (done.code, done.out.count("| 12 of 12 |")) == (0, 1), done
    assert "| sessions killed | 20 |" in done.out
    if os.geteuid() == 0:
        assert "| reboots | 2 |" in done.out


def test_the_session_of_the_readme(workspace: Workspace) -> None:
    session = re.findall(r"^    \$ (checkpoint-\S+.*)$", README, re.MULTILINE)
    assert len(session) == 10
    for line in session:
        done = workspace.run("sh", "-c", line, env=_path())
        assert done.code in ((0, 1) if "selfcheck" in line else (0,)), (line, done)
    assert "completed" in workspace.tool("list", "--all").out


def test_the_python_of_the_readme(workspace: Workspace) -> None:
    block = README.split("## In Python")[1].split("More in")[0]
    code = "def fetch(): return 1\ndef make(): return 'made'\n" + re.sub(r"^    ", "", block, flags=re.MULTILINE)
    done = workspace.run(sys.executable, "-c", code)
    assert done.code == 0, done
    assert [row["status"] for row in workspace.tool("list", "--all", "--json").lines] == ["completed"]


def test_no_path_of_a_machine_and_no_stub_is_left() -> None:
    left = re.compile(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplemented|/root/|/home/\w")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked:
        if name.startswith(("checkpoint/", "scripts/", "docs/", "systemd/", "launchd/")) or name == "README.md":
            assert not left.search((ROOT / name).read_text()), name


def _path() -> dict[str, str]:
    return {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TOOL": TOOL}
