"""Bad input: the right exit code, one line that says what is wrong and what to type next, and nothing changed on disk."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import TOOL, Result, Workspace, lacking, need_program, need_root, powerless
from proof import tried

NOBODY = 65534
MEBIBYTE = 1 << 20
# What a terminal would act on: C0 but for the ends of lines and the tabs of tsv, DEL, C1 (0x9b is an escape by itself).
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NEXT = re.compile(r"\(try: (?:checkpoint-tool|chmod|chown) .*\)$")


def ok(workspace: Workspace, *argv: str, **more: Any) -> Result:
    result = workspace.tool(*argv, **more)
    assert result.code == 0, result
    return result


def refused(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result
    assert result.err.startswith("checkpoint-tool: "), result
    assert result.err.count("\n") == 1, result
    assert result.err.endswith("\n")
    assert "Traceback" not in result.err
    assert not CONTROL.search(result.err), result
    # A line that nobody reads to its end is no help either.
    assert len(result.err) < 1000
    for word in words:
        assert word in result.err, result


def alter(path: Path, **fields: Any) -> None:
    """Change a record with a digest that is right: the content itself is what is bad."""
    content = json.loads(path.read_text()) | fields
    content.pop("digest")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))


def ground(workspace: Workspace) -> None:
    """What the cases need: an unfinished run, a finished one, one that was taken over, and files to read values from."""
    ok(workspace, "start", "deploy", "--steps", "build,ship")
    ok(workspace, "start", "ended", "--steps", "a")
    ok(workspace, "complete", "ended", "--force", "--reason", "x")
    ok(workspace, "start", "robbed", "--steps", "a", "--owner", "alice")
    ok(workspace, "resume", "robbed", "--owner", "bob", "--steal", "--reason", "x")
    for name, content in FILES.items():
        (workspace.path / name).write_bytes(content)
    (workspace.path / "folder").mkdir()


FILES = {
    "big.json": json.dumps({"x": "y" * (10 * MEBIBYTE)}).encode(),
    "utf16.json": '{"a": 1}'.encode("utf-16"),
    "latin1.json": '{"a": "\u00e9"}'.encode("latin-1"),
    "cut.json": b'{"a": [1, 2',
    "empty": b"",
    "nul.plan": b"build\0ship\n",
    "evil.plan": b"build\n../../evil\n",
    "twice.plan": b"build\nbuild\n",
    "nan.plan": b'["build", NaN]',
    "object.plan": b'{"build": 1}',
    "number.plan": b'["build", 1]',
    "deep.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits.json": b'{"a": ' + b"9" * 10_000 + b"}",
    "surrogate.json": b'{"a": "\\ud800"}',
}


class Case(NamedTuple):
    """One refusal."""

    argv: tuple[str | bytes, ...]
    code: int
    word: str


def case(code: int, word: str, *argv: str | bytes) -> Any:
    shown = " ".join(part if isinstance(part, str) else ascii(part) for part in argv)
    return pytest.param(Case(argv, code, word), id=ascii(shown)[1:-1][:60])


NAMES = ["../../evil", "", "a" * 300, "a" * 65, "Deploy", "a\nb", "a b", "a.b", "_a", "\u00e9", "a/b", ".locks", "a\x1b[31m"]
VALUES = [
    ("object", "[1]"),
    ("object", "1"),
    ("object", '"x"'),
    ("object", "null"),
    ("NaN", '{"a": NaN}'),
    ("Infinity", '{"a": Infinity}'),
    ("Infinity", '{"a": -Infinity}'),
    ("JSON", '{"a": 1e999}'),
    ("JSON", "{"),
    ("JSON", ""),
    ("JSON", "{'a': 1}"),
    ("twice", '{"a": 1, "a": 2}'),
    ("twice", '{"a": {"b": 1, "b": 2}}'),
    ("4 MiB", "@big.json"),
    ("UTF-8", "@utf16.json"),
    ("UTF-8", "@latin1.json"),
    ("JSON", "@cut.json"),
    ("JSON", "@empty"),
    ("missing.json", "@missing.json"),
    ("folder", "@folder"),
    ("JSON", "@deep.json"),
    ("--data", "@digits.json"),
    ("surrogate", "@surrogate.json"),
]
CASES = [
    # Names.
    *(case(2, "name", "start", name) for name in NAMES),
    case(2, "name", "start", b"\xff\xfe"),
    *(case(2, "step", "start", "new", "--steps", f"a,{name}") for name in ("../../evil", "", "a" * 300, "B", "b\nc")),
    case(2, "'build'", "start", "new", "--steps", "build,build"),
    case(2, "step", "start", "new", "--plan", "nul.plan"),
    case(2, "../../evil", "start", "new", "--plan", "evil.plan"),
    case(2, "twice", "start", "new", "--plan", "twice.plan"),
    case(2, "NaN", "start", "new", "--plan", "nan.plan"),
    case(2, "--plan", "start", "new", "--plan", "object.plan"),
    case(2, "--plan", "start", "new", "--plan", "number.plan"),
    case(2, "--plan", "start", "new", "--plan", "missing.plan"),
    case(2, "--plan", "start", "new", "--plan", "folder"),
    case(2, "UTF-8", "start", "new", "--plan", "utf16.json"),
    case(2, "--steps", "start", "new", "--steps", "a", "--plan", "twice.plan"),
    case(2, "--input", "start", "new", "--key", "k", "--input", "missing"),
    case(2, "key", "start", "new", "--key", ""),
    *(case(2, "step", "update", "deploy", "--begin", name) for name in ("../../evil", "", "B", "b\nc")),
    # Ids, steps.
    *(case(10, "nope", verb, "nope") for verb in ("show", "resume", "update", "complete", "heartbeat", "release", "repair")),
    *(case(10, "nope", verb, "nope") for verb in ("verify", "pin", "unpin")),
    *(case(10, "nope", verb, "nope", "--reason", "x") for verb in ("fail", "cancel")),
    *(case(2, "id", "show", name) for name in ("../../evil", "", "A", "a\nb", "deploy.json", "done/ended")),
    *(case(2, "id", verb, "../../evil") for verb in ("resume", "update", "complete", "verify", "repair", "pin")),
    *(
        case(10, "'nope'", "update", "deploy", change, "nope", *more)
        for change, *more in (
            ("--begin",),
            ("--complete",),
            ("--retry",),
            ("--fail", "--error", "x"),
            ("--skip", "--reason", "x"),
        )
    ),
    case(10, "'nope'", "update", "deploy", "--complete", "build", "--step", "nope"),
    # Finished, robbed.
    case(15, "completed", "update", "ended", "--begin", "a"),
    case(15, "completed", "update", "ended", "--note", "x"),
    case(15, "completed", "resume", "ended"),
    case(15, "completed", "heartbeat", "ended"),
    case(15, "completed", "release", "ended"),
    case(15, "completed", "fail", "ended", "--reason", "x"),
    case(15, "left", "complete", "deploy"),
    case(19, "token 1", "update", "robbed", "--complete", "a", "--token", "1"),
    case(19, "token 99", "heartbeat", "robbed", "--token", "99"),
    case(11, "bob", "resume", "robbed", "--owner", "alice"),
    # Values.
    *(case(2, word, "start", "new", "--data", value) for word, value in VALUES),
    *(case(2, word, "update", "deploy", "--data", value) for word, value in VALUES[4:6]),
    case(2, "object", "update", "deploy", "--data", "[1]"),
    case(2, "4 MiB", "update", "deploy", "--data", "@big.json"),
    case(2, "NaN", "update", "deploy", "--complete", "build", "--result", "NaN"),
    case(2, "JSON", "update", "deploy", "--complete", "build", "--result", "{"),
    case(2, "4 MiB", "update", "deploy", "--note", "@big.json"),
    case(2, "UTF-8", "update", "deploy", "--note", "@utf16.json"),
    case(2, "UTF-8", "update", "deploy", "--note", b"\xff"),
    *(case(2, "duration", "start", "new", "--ttl", text) for text in ("x", "", "5", "5x", "-1s", "1.5.2h", "9" * 400 + "d")),
    *(
        case(2, "longer", option, *rest)
        for option, *rest in (("start", "new", "--lease", "0s"), ("start", "new", "--ttl", "0s"))
    ),
    case(2, "max-attempts", "start", "new", "--max-attempts", "0"),
    case(2, "max-attempts", "start", "new", "--max-attempts", "-1"),
    case(2, "999999999", "start", "new", "--owner-pid", "999999999"),
    case(2, "pid", "start", "new", "--owner-pid", "0"),
    case(2, "pid", "start", "new", "--owner-pid", "-1"),
    case(2, "pid", "start", "new", "--owner-pid", "9" * 40),
    case(2, "pid", "resume", "robbed", "--steal", "--reason", "x", "--owner-pid", "0"),
    case(2, "--token", "update", "deploy", "--token", "x"),
    case(2, "--format", "list", "--format", "xml"),
    case(2, "--format", "start", "new", "--format", "xml"),
    case(2, "--status", "list", "--status", "sleeping"),
    case(2, "--keep", "prune", "--keep", "-1"),
    # Options, arguments.
    case(2, "--bogus", "start", "new", "--bogus"),
    case(2, "bogus", "bogus"),
    case(2, "extra", "start", "new", "extra"),
    case(2, "--data", "start", "new", "--data"),
    *(
        case(2, "ID", verb)
        for verb in ("update", "complete", "fail", "cancel", "heartbeat", "release", "show", "repair", "pin")
    ),
    case(2, "WORKFLOW", "start"),
    case(2, "--reason", "fail", "deploy"),
    case(2, "--reason", "resume", "robbed", "--steal"),
    case(2, "--accept", "repair", "deploy", "--accept", "--quarantine"),
]


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("common"))
    ground(workspace)
    return workspace


@pytest.fixture
def common(grounded: Workspace) -> Iterator[Workspace]:
    """One ground for all refusals, because each must leave it as it was; made anew after one that did not."""
    before = grounded.snapshot()
    yield grounded
    if grounded.snapshot() != before:
        for path in grounded.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        ground(grounded)


@pytest.mark.parametrize("bad", CASES)
def test_refused(common: Workspace, bad: Case) -> None:
    before = common.snapshot()
    result = common.tool(*bad.argv)
    # Not the contents: a difference of megabytes is no message.
    assert [name for name, content in common.snapshot().items() if before.get(name) != content] == []
    assert common.temporaries() == []
    refused(result, bad.code, bad.word)
    assert result.out == ""


@pytest.mark.parametrize(
    "argv",
    [
        ("start", "../../evil"),
        ("start", "Deploy"),
        ("start", "new", "--steps", "a,B"),
        ("start", "new", "--data", "[1]"),
        ("start", "new", "--data", '{"a": NaN}'),
        ("start", "new", "--data", "@big.json"),
        ("start", "new", "--ttl", "x"),
        ("start", "new", "--bogus"),
        ("start",),
        ("bogus",),
        ("show", "nope"),
        ("show", "../../evil"),
        ("update", "deploy", "--begin", "nope"),
        ("update", "ended", "--begin", "a"),
        ("update", "robbed", "--begin", "a", "--token", "1"),
        ("fail", "deploy"),
        ("resume", "robbed", "--steal"),
    ],
    ids=" ".join,
)
def test_a_refusal_names_the_next_command(common: Workspace, argv: tuple[str, ...]) -> None:
    result = common.tool(*argv)
    assert NEXT.search(result.err.rstrip("\n")), result
    error = json.loads(common.tool(*argv, "--json").err)["error"]
    assert error["code"] == result.code
    assert error["hint"]


def test_a_refusal_makes_no_store(workspace: Workspace) -> None:
    for argv in (
        ("start", "Bad"),
        ("start", "new", "--data", "["),
        ("show", "x"),
        ("list",),
        ("resume",),
        ("verify",),
        ("prune",),
    ):
        workspace.tool(*argv)
        assert workspace.snapshot() == {}, argv


def test_bad_input_on_stdin(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy")
    before = workspace.snapshot()
    for text, word in (
        ("[]", "object"),
        ("", "JSON"),
        ('{"a": NaN}', "NaN"),
        (b"\xff\xfe{", "UTF-8"),
        (b"x" * (10 * MEBIBYTE), "4 MiB"),
    ):
        refused(workspace.tool("update", "deploy", "--data", "-", input=text), 2, word)
    assert workspace.snapshot() == before


def test_many_small_values_do_not_outgrow_the_limit(workspace: Workspace) -> None:
    # What is written must be readable: a record over 4 MiB would be damage of our own making.
    half = workspace.path / "half.json"
    ok(workspace, "start", "deploy", "--steps", "a")
    for name in ("one", "two"):
        half.write_text(json.dumps({name: "x" * (3 * MEBIBYTE)}))
        before = workspace.snapshot()
        result = workspace.tool("update", "deploy", "--data", "@half.json")
    refused(result, 2, "4 MiB")
    assert workspace.snapshot() == before
    ok(workspace, "show", "deploy")


# Files that are not what they should be


def put_symlink(path: Path) -> None:
    target = path.parent.parent / "elsewhere.json"
    path.rename(target)
    path.symlink_to(target)


def put_socket(path: Path) -> None:
    path.unlink()
    here = os.open(path.parent, os.O_RDONLY)
    # Through the folder's descriptor: a socket's path may hold no more than 107 characters.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b'"in_progress"') + 3] ^= 0x04
    path.write_bytes(content)


def edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1)) and None


def own(path: Path) -> None:
    need_root()
    os.chown(path, NOBODY, NOBODY)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "directory": ("directory", put_folder),
    "socket": ("socket", put_socket),
    "fifo": ("pipe", put_fifo),
    "symlink": ("symbolic link", put_symlink),
    "dangling symlink": ("symbolic link", lambda path: (path.unlink(), path.symlink_to("nowhere"))),
    "file of another user": ("another user", own),
    "empty": ("empty", lambda path: os.truncate(path, 0)),
    "truncated": ("damaged", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "last byte lost": ("damaged", lambda path: os.truncate(path, path.stat().st_size - 2)),
    "flipped bit": ("damaged", flip),
    "UTF-16": ("UTF-8", lambda path: path.write_bytes(path.read_text().encode("utf-16"))),
    "binary": ("damaged", lambda path: path.write_bytes(bytes(range(256)))),
    "zeros": ("damaged", lambda path: path.write_bytes(bytes(4096))),
    "too large": ("4 MiB", lambda path: path.write_bytes(b" " * (5 * MEBIBYTE))),
    "no object": ("damaged", lambda path: path.write_text("[]\n")),
    "NaN": ("NaN", edit('"data":{}', '"data":{"a":NaN}')),
    "duplicate key": ("twice", edit('"agent":null', '"agent":null,"agent":"x"')),
    "deep": ("damaged", lambda path: path.write_text('{"a":' * 100_000)),
    "another's record": ("'other'", lambda path: alter(path, id="other")),
    "date without zone": ("zone", lambda path: alter(path, updated_at="2026-01-01T00:00:00")),
    "date that is none": ("date", lambda path: alter(path, progress_at="2026-02-30T00:00:00Z")),
    "date of the lease without zone": (
        "zone",
        lambda path: alter(path, lease=json.loads(path.read_text())["lease"] | {"expires_at": "2026-01-01T00:00:00"}),
    ),
    "token that is no number": ("token", lambda path: alter(path, token="1")),
    "steps that are no list": ("steps", lambda path: alter(path, steps={"a": 1})),
    "escape sequence": ("status", lambda path: alter(path, status="\x1b[31mred\x9b")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file(workspace: Workspace, name: str) -> None:
    word, harm = BAD_FILES[name]
    ok(workspace, "start", "deploy", "--steps", "a")
    ok(workspace, "start", "good", "--steps", "a")
    harm(workspace.file())
    before = workspace.snapshot()
    for argv in (
        ("show", "deploy"),
        ("start", "deploy", "--steps", "a"),
        ("resume", "deploy"),
        ("update", "deploy", "--complete", "a"),
        ("complete", "deploy"),
    ):
        result = workspace.tool(*argv, timeout=10)
        refused(result, 12, word, "checkpoint-tool repair deploy")
        assert result.out == ""
    # One bad entry hides nothing else.
    result = workspace.tool("list", timeout=10)
    refused(result, 0, word)
    assert [line.split("\t")[:2] for line in result.out.splitlines()] == [["good", "in_progress"], ["deploy", "damaged"]]
    entries = workspace.tool("list", "--json", timeout=10).lines
    assert [(entry["id"], "error" in entry) for entry in entries] == [("good", False), ("deploy", True)]
    result = workspace.tool("verify", timeout=10)
    assert result.code == 12
    assert "deploy.json" in result.out
    assert workspace.snapshot() == before
    resumed = ok(workspace, "resume", "--json", timeout=10)
    assert resumed.json["id"] == "good"
    ok(workspace, "update", "good", "--complete", "a")
    ok(workspace, "complete", "good")


def test_dates_in_the_future_are_told(workspace: Workspace) -> None:
    # A clock that was set back must not stop the work, but must not pass unseen either.
    ok(workspace, "start", "deploy", "--steps", "a")
    future = "2099-01-01T00:00:00.000Z"
    alter(workspace.file(), created_at=future, updated_at=future, progress_at=future, heartbeat_at=future)
    before = workspace.snapshot()
    for argv in (("show", "deploy"), ("list",), ("list", "--format", "table"), ("verify",)):
        result = workspace.tool(*argv)
        assert result.code in (0, 12), result
        assert "Traceback" not in result.err
    report = workspace.selfcheck()
    assert report.code in (1, 2), report
    assert "future" in report.out
    assert workspace.snapshot() == before


def test_a_lock_file_that_is_a_link_is_not_followed(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy", "--steps", "a")
    lock = workspace.store / ".locks" / "deploy.lock"
    victim = workspace.path / "victim"
    victim.write_text("precious")
    lock.unlink()
    lock.symlink_to(victim)
    before = workspace.snapshot()
    result = workspace.tool("update", "deploy", "--complete", "a")
    assert result.code in (12, 17), result
    refused(result, result.code, "lock")
    assert workspace.snapshot() == before


@pytest.mark.parametrize("what", ["file", "link", "dangling"])
def test_a_store_that_is_no_folder(workspace: Workspace, what: str) -> None:
    workspace.store.parent.mkdir()
    if what == "file":
        workspace.store.write_text("x")
    else:
        target = workspace.path / "elsewhere"
        if what == "link":
            target.mkdir(mode=0o700)
        workspace.store.symlink_to(target)
    before = workspace.snapshot()
    for argv in (("start", "deploy"), ("list",), ("show", "deploy")):
        result = workspace.tool(*argv)
        assert result.code == 17 or (what == "dangling" and argv[0] != "start"), result
        if result.code:
            refused(result, result.code, "memory/checkpoints")
    assert workspace.snapshot() == before


def test_a_store_that_others_may_write(workspace: Workspace) -> None:
    ok(workspace, "start", "deploy")
    workspace.store.chmod(0o777)
    before = workspace.snapshot()
    for argv in (("start", "deploy"), ("list",), ("update", "deploy", "--note", "x")):
        result = workspace.tool(*argv)
        refused(result, 17, "chmod")
        assert NEXT.search(result.err.rstrip("\n")), result
    assert workspace.snapshot() == before


# Stores that cannot be used


@pytest.fixture
def stranger() -> Iterator[Workspace]:
    """A workspace whose commands run as a user for whom permissions count."""
    drop = powerless()
    path = Path(tempfile.mkdtemp(prefix="checkpoint-"))

    class Stranger(Workspace):
        def run(self, *argv: str | bytes, **more: Any) -> Result:
            return super().run(*drop, *argv, **more)

    yield Stranger(path)
    shutil.rmtree(path)


WRITES = [
    ("start", "new"),
    ("resume", "deploy"),
    ("update", "deploy", "--complete", "a"),
    ("complete", "deploy", "--force", "--reason", "x"),
    ("heartbeat", "deploy"),
]


def test_a_store_without_write_permission(stranger: Workspace) -> None:
    ok(stranger, "start", "deploy", "--steps", "a")
    for folder in (stranger.store, stranger.store / ".locks"):
        folder.chmod(0o500)
    before = stranger.snapshot()
    for argv in WRITES:
        refused(stranger.tool(*argv), 17, "ermission denied")
    assert ok(stranger, "list").out.startswith("deploy\t")
    ok(stranger, "show", "deploy")
    ok(stranger, "verify")
    assert stranger.snapshot() == before
    assert stranger.temporaries() == []


def test_a_store_that_cannot_be_read(stranger: Workspace) -> None:
    ok(stranger, "start", "deploy", "--steps", "a")
    stranger.store.chmod(0)
    before = stranger.snapshot()
    for argv in (*WRITES, ("list",), ("show", "deploy"), ("verify",), ("resume",)):
        refused(stranger.tool(*argv), 17, "ermission denied")
    assert stranger.snapshot() == before


def test_a_file_that_cannot_be_read(stranger: Workspace) -> None:
    ok(stranger, "start", "deploy", "--steps", "a")
    ok(stranger, "start", "good", "--steps", "a")
    stranger.file().chmod(0)
    before = stranger.snapshot()
    result = stranger.tool("show", "deploy")
    assert result.code in (12, 17)
    refused(result, result.code, "ermission denied")
    result = ok(stranger, "list")
    assert "good\tin_progress" in result.out
    assert ok(stranger, "resume", "--json").json["id"] == "good"
    assert stranger.snapshot()["memory/checkpoints/deploy.json"] == before["memory/checkpoints/deploy.json"]


def test_a_store_of_another_user(stranger: Workspace) -> None:
    need_root()
    ok(stranger, "start", "deploy", "--steps", "a")
    os.chown(stranger.store, NOBODY, NOBODY)
    stranger.store.chmod(0o755)
    before = stranger.snapshot()
    refused(stranger.tool("start", "deploy", "--steps", "a"), 17, "memory/checkpoints")
    assert stranger.snapshot() == before


def mounted(workspace: Workspace, script: str) -> dict[str, str]:
    """Run ``script`` in a mount namespace of its own; what its ``say NAME COMMAND...`` calls recorded, by name."""
    need_root()
    unshare = need_program("unshare")
    if subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode:
        lacking("mount namespaces are not allowed here")
    for name in ("said", "store"):
        (workspace.path / name).mkdir()
    prelude = """
    tool() { "$TOOL" "$@" --store store; }
    say() { name=$1; shift; code=0; "$@" >said/$name.out 2>said/$name.err || code=$?; echo $code >said/$name.code; }
    """
    result = workspace.run(unshare, "-m", "--propagation", "private", "sh", "-eu", "-c", prelude + script, env={"TOOL": TOOL})
    if result.code == 32:
        lacking("mounting is not allowed here")
    assert result.code == 0, result
    return {path.name: path.read_text() for path in (workspace.path / "said").iterdir()}


def said(found: dict[str, str], name: str) -> Result:
    return Result(int(found[f"{name}.code"]), found[f"{name}.out"], found[f"{name}.err"])


@pytest.mark.parametrize("lack", ["space", "inodes"])
@pytest.mark.proof("limit")
def test_full_disk(workspace: Workspace, lack: str) -> None:
    size, inodes = ("64k", "100") if lack == "space" else ("1m", "12")
    fill = "dd if=/dev/zero of=store/fill bs=1k 2>/dev/null || true"
    if lack == "inodes":
        fill = "mkdir store/fill; n=0; while touch store/fill/$n; do n=$((n + 1)); done 2>/dev/null || true"
    found = mounted(
        workspace,
        f"""
        mount -t tmpfs -o size={size},nr_inodes={inodes},mode=0700 none store || exit 32
        say start tool start deploy --steps a
        say hold tool update deploy --begin a
        cp store/deploy.json before
        ls -A store store/.locks >names-before
        ({fill})
        say update tool update deploy --complete a
        say new tool start new
        say end tool complete deploy --force --reason x
        say show tool show deploy --json
        cmp before store/deploy.json
        rm -r store/fill
        # The lock of the new id may be left: locks are never unlinked. Nothing else may.
        rm -f store/.locks/new.lock
        ls -A store store/.locks >names-after
        say again tool update deploy --complete a
        say ended tool complete deploy
        """,
    )
    for name in ("start", "hold", "show", "again", "ended"):
        assert said(found, name).code == 0, said(found, name)
    for name in ("update", "new", "end"):
        refused(said(found, name), 17, "No space left")
    tried("limit", 3)
    after = [name for name in (workspace.path / "names-after").read_text().splitlines() if name != "done"]
    assert after == (workspace.path / "names-before").read_text().splitlines()


@pytest.mark.proof("limit")
def test_a_file_system_that_is_read_only(workspace: Workspace) -> None:
    found = mounted(
        workspace,
        """
        chmod 700 store
        tool start deploy --steps a >/dev/null 2>&1
        mount --bind store store || exit 32
        mount -o remount,bind,ro store || exit 32
        say update tool update deploy --complete a
        say start tool start new
        say list tool list
        say show tool show deploy
        say verify tool verify
        """,
    )
    for name in ("update", "start"):
        refused(said(found, name), 17, "ead-only file system")
    tried("limit", 2)
    for name in ("list", "show", "verify"):
        assert said(found, name).code == 0, said(found, name)


# What a terminal must never be told

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\x08\x7f\nsecond\tline"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Escape sequences wherever free text is taken."""
    workspace = Workspace(tmp_path_factory.mktemp("hostile"))
    env = {"CHECKPOINT_OWNER": ESCAPES}
    text = ("--note", ESCAPES, "--agent", ESCAPES, "--handoff", ESCAPES, "--data", json.dumps({ESCAPES: ESCAPES}))
    ok(workspace, "start", "deploy", "--steps", "a,b,c", *text, env=env)
    more = ("--complete", "a", "--result", json.dumps(ESCAPES), "--fail", "b", "--error", ESCAPES, "--block", ESCAPES)
    ok(workspace, "update", "deploy", *more, "--skip", "c", "--reason", ESCAPES, env=env)
    ok(workspace, "start", "keyed", "--key", ESCAPES, env=env)
    ok(workspace, "start", "ended", env=env)
    ok(workspace, "fail", "ended", "--reason", ESCAPES, env=env)
    ok(workspace, "start", "bad")
    (workspace.store / "bad.json").write_text('{"\\u001b[31m": 1, "\\u001b[31m": "\x1b"}')
    return workspace


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize(
    "argv",
    [
        ("show", "deploy"),
        ("show", "ended"),
        ("show", "bad"),
        ("list",),
        ("list", "--all"),
        ("list", "--format", "table"),
        ("resume", "deploy"),
        ("resume", "deploy", "--owner", "other"),
        ("start", "deploy", "--steps", "x"),
        ("start", "keyed", "--key", ESCAPES, "--steps", "x"),
        ("update", "deploy", "--begin", "b"),
        ("update", "deploy", "--begin", ESCAPES),
        ("update", "ended", "--note", "x"),
        ("show", ESCAPES),
        ("start", ESCAPES),
        ("start", "new", "--ttl", ESCAPES),
        ("start", "new", "--data", ESCAPES),
        ("start", "new", "--plan", ESCAPES),
        ("start", "new", f"--{ESCAPES}"),
        (ESCAPES,),
        ("list", "--store", f"{ESCAPES}/x"),
        ("list", "--format", ESCAPES),
        ("verify",),
        ("repair", "bad"),
        ("prune", "--keep", "0"),
    ],
    ids=lambda argv: ascii(" ".join(argv))[1:-1][:40],
)
def test_escape_sequences_are_never_raw(hostile: Workspace, argv: tuple[str, ...], form: tuple[str, ...]) -> None:
    result = hostile.tool(*argv, *form, env={"CHECKPOINT_OWNER": ESCAPES})
    assert result.code != 1, result
    for stream in (result.out, result.err):
        assert not CONTROL.search(stream), result
    if form and result.out and "--format" not in argv:
        assert all(isinstance(entry, dict) for entry in result.lines)
    assert "\nsecond" not in result.out, "free text makes no lines of its own"
    assert "\nsecond" not in result.err


def test_free_text_breaks_no_row(hostile: Workspace) -> None:
    rows = [line.split("\t") for line in ok(hostile, "list").out.splitlines()]
    assert sorted(row[0] for row in rows) == sorted(
        ["bad", "deploy", next(row[0] for row in rows if row[0].startswith("keyed-"))]
    )
    assert len({len(row) for row in rows}) == 1, "as many columns in each row"


def test_what_was_written_is_what_is_read(hostile: Workspace) -> None:
    shown = ok(hostile, "show", "deploy", "--json").json
    assert shown["notes"][0]["text"] == ESCAPES
    assert shown["data"] == {ESCAPES: ESCAPES}


def test_on_a_terminal_too(hostile: Workspace) -> None:
    # Colour is ours there; what comes from the record is not.
    code = "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:], lambda fd: os.read(fd, 65536))))"
    result = hostile.run(sys.executable, "-c", code, TOOL, "list", env={"CHECKPOINT_OWNER": ESCAPES, "TERM": "xterm"}, input="")
    assert "deploy" in result.out, result
    for raw in ("\x1b[31mred", "\x1b]0;", "\x07", "\x9b", "\x08", "\x7f"):
        assert raw not in result.out, ascii(result.out)
