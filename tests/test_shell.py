"""The functions of `shell-init` in real shells, and the `session` they talk to: scripts as people write them, and abuse."""

import fcntl
import itertools
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
from conftest import BIN, TOOL, Result, Workspace, lacking, need_program
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from checkpoint.cli import COMMANDS

SHELLS = {
    "bash": ["bash"],
    "zsh": ["zsh", "-f"],
    "dash": ["dash"],
    "busybox": ["busybox", "sh"],
    "fish": ["fish", "--no-config"],
}
SESSION = ("bash", "zsh")
"""These talk to a session; the others call a process for each."""
every = pytest.mark.parametrize("shell", SHELLS)
most = pytest.mark.parametrize("shell", [name for name in SHELLS if name != "busybox"])  # what dash has shown already
posix = pytest.mark.parametrize("shell", [name for name in SHELLS if name != "fish"])
mostly_posix = pytest.mark.parametrize("shell", ["bash", "zsh", "dash"])
with_session = pytest.mark.parametrize("shell", SESSION)
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux proves life and death (/proc)")

# Bytes that a shell may trip over; NUL cannot be in an argument.
AWKWARD = [
    b"",
    b" two  spaces ",
    b"line\nline\n\n",
    b"--once",
    b"--verify",
    b"--",
    b"-n",
    b"\xff\xfe\x80",
    "größe ✓".encode(),
    b"* ? [a-z] ~ {a,b} !!",
    b'it\'s "quoted" `x` $(x) ${x} $x \\ \\n',
    b"; & | < > # % ^",
    b"\x01\x1b[31m\x7f\r\t",
    bytes(range(1, 256)),
]

STUBS = {
    # What a step does to the world outside: a line for each time.
    "effect": 'echo "$*" >> effects',
    # Say that we are here, and wait until the test lets us go on.
    "pause": 'touch "$1"; n=0; while ! [ -e "$1.go" ] && [ $n -lt 3000 ]; do n=$((n + 1)); sleep 0.01; done',
    "same": 'printf "%s\\n" "$*"',
    "fails": 'exit "$1"',
    "keep": 'import os, sys; open(sys.argv[1], "wb").write(b"\\0".join(os.fsencode(word) for word in sys.argv[2:]))',
}

Begin: TypeAlias = Callable[..., subprocess.Popen[bytes]]


def in_fish(text: str, strict: bool) -> str:
    """What these scripts have of POSIX syntax, in fish's; it has no set -e, so that a strict script looks for itself."""
    if strict:
        text = re.sub(r"(?m)^(ckpt_\w+\b[^|&;\n]*(?:\| cat)?)$", r"\1 || exit", text)
    text = re.sub(r"(?m)^(\w+)\(\) \{$", r"function \1", text)
    text = re.sub(r"(?m)^\}$", "end", text)
    text = re.sub(r"(?m)^( *)([A-Z]\w*)=(\S*)$", r"\1set -g \2 \3", text)
    for ours, its in (('"$@"', "$argv"), ("$?", "$status"), ("$$", "$fish_pid")):
        text = text.replace(ours, its)
    return text


def flavour(shell: str) -> str:
    return shell if shell in (*SESSION, "fish") else "sh"


def bring(shell: str) -> str:
    """The line that brings the functions into a script."""
    if shell == "fish":
        return "checkpoint-tool shell-init fish | source || exit"
    return f'eval "$(checkpoint-tool shell-init {flavour(shell)})"'


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def stubs(workspace: Workspace) -> None:
    for name, body in STUBS.items():
        if name == "keep":
            # A path in the first line of a script may have no spaces.
            body = f'exec {shlex.quote(sys.executable)} -I -c {shlex.quote(body)} "$@"'
        if not (workspace.path / name).exists():
            executable(workspace.path / name, f"#!/bin/sh\n{body}\n")


def script(workspace: Workspace, shell: str, text: str, mode: str = "set -eu", init: str | None = None) -> list[str]:
    """The command that runs ``text`` behind the functions of that shell, and ``mode`` in front of them."""
    stubs(workspace)
    init = bring(shell) if init is None else init
    # Each a file of its own: a shell reads its script as it goes.
    path = workspace.path / f"script-{len(list(workspace.path.glob('script-*')))}"
    path.write_text(in_fish(f"{init}\n{text}\n", "-e" in mode) if shell == "fish" else f"{mode}\n{init}\n{text}\n")
    program = [need_program(SHELLS[shell][0]), *SHELLS[shell][1:]]
    # Without CHECKPOINT_OWNER: the script itself is the owner. env turns into the shell: one process.
    return [need_program("env"), "-u", "CHECKPOINT_OWNER", *program, str(path)]


def surroundings(workspace: Workspace, more: dict[str, str] | None = None) -> dict[str, str]:
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(workspace.path)} | (more or {})


def play(
    workspace: Workspace,
    shell: str,
    text: str,
    *args: str | bytes,
    mode: str = "set -eu",
    init: str | None = None,
    env: dict[str, str] | None = None,
    input: str = "",
) -> Result:
    """Run ``text`` as a script of that shell, to its end."""
    argv = script(workspace, shell, text, mode, init)
    return workspace.run(*argv, *args, env=surroundings(workspace, env), input=input, timeout=60)


def passed(result: Result, out: str = "") -> None:
    """To the end, with this on standard output, and nothing to complain about."""
    assert (result.code, result.out, result.err) == (0, out, ""), result


def record(workspace: Workspace, id: str = "deploy", store: Path | None = None) -> Any:
    """The record of ``id`` as it stands on disk: unfinished, else finished with a key, else the newest of its history."""
    store = store or workspace.store
    history = sorted((store / "done" / id).glob("*.json"))[-1:]
    paths = [path for path in (store / f"{id}.json", store / "done" / f"{id}.json", *history) if path.exists()]
    assert paths, f"no record of {id}"
    return json.loads(paths[0].read_text())


def steps(workspace: Workspace, id: str = "deploy") -> dict[str, str]:
    return {step["name"]: step["status"] for step in record(workspace, id)["steps"]}


def completed(workspace: Workspace, names: str, id: str = "deploy") -> None:
    assert record(workspace, id)["status"] == "completed"
    assert steps(workspace, id) == dict.fromkeys(names.split(","), "completed")


def effects(workspace: Workspace) -> list[str]:
    path = workspace.path / "effects"
    return path.read_text().splitlines() if path.exists() else []


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def arrived(workspace: Workspace, name: str) -> None:
    until((workspace.path / name).exists, f"the script is at {name}")


def let_go(workspace: Workspace, *names: str) -> None:
    for name in names:
        (workspace.path / f"{name}.go").touch()


def sessions(owner: int) -> list[int]:
    """The processes that are a session of this owner."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended while we looked
            continue
        if b"session" in words and b"--owner-pid" in words and str(owner).encode() in words:
            found.append(int(pid))
    return found


def no_session(owner: int, seconds: float = 5) -> None:
    until(lambda: not sessions(owner), "its session has ended", seconds)


def error(workspace: Workspace) -> str:
    """What the scripts in the background wrote to standard error, but for the word of a new store."""
    lines = (workspace.path / "err").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if "made a new store" not in line)


@pytest.fixture
def background(workspace: Workspace) -> Iterator[Begin]:
    """Scripts that run beside the test; what they leave behind is ended here."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(shell: str, text: str, mode: str = "set -eu") -> subprocess.Popen[bytes]:
        argv = script(workspace, shell, text, mode)
        env = workspace.environ(surroundings(workspace))
        with (workspace.path / "out").open("ab") as out, (workspace.path / "err").open("ab") as err:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            started.append(subprocess.Popen(argv, cwd=workspace.path, env=env, start_new_session=True, **streams))
        return started[-1]

    yield begin
    for one in started:
        try:
            os.killpg(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        one.wait()


# What every shell can do


@every
def test_two_steps_from_start_to_end(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy --steps a,b\nckpt_step a echo one\nckpt_step b echo two\nckpt_complete"
    passed(play(workspace, shell, text), "one\ntwo\n")
    completed(workspace, "a,b")
    assert [(step["attempts"], step["exit_code"]) for step in record(workspace)["steps"]] == [(1, 0), (1, 0)]
    assert workspace.temporaries() == []


@most
def test_without_a_key_a_finished_workflow_begins_anew(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start daily --steps a\nckpt_step a ./effect a\nckpt_complete"
    passed(play(workspace, shell, text))
    passed(play(workspace, shell, text))
    assert effects(workspace) == ["a", "a"]
    assert len(list((workspace.store / "done" / "daily").iterdir())) == 2


@most
def test_with_a_key_a_finished_run_does_nothing_more(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --key r7 --steps a,b
ckpt_step a ./effect a
ckpt_once b ./effect b
ckpt_complete
"""
    passed(play(workspace, shell, text))

    def kept() -> dict[str, Any]:
        return {name: data for name, data in workspace.snapshot().items() if name.startswith("memory")}

    before = kept()
    again = play(workspace, shell, text)
    assert (again.code, again.out) == (0, "")
    assert effects(workspace) == ["a", "b"]
    assert kept() == before


@every
def test_completed_steps_are_left_out_and_the_failed_one_is_run_again(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a,b,c
ckpt_step a ./effect a
ckpt_step b sh -c 'test -e ready'
ckpt_step c ./effect c
ckpt_complete
"""
    first = play(workspace, shell, text)
    assert (first.code, first.out) == (1, "")
    assert steps(workspace) == {"a": "completed", "b": "failed", "c": "pending"}
    assert record(workspace)["steps"][1]["exit_code"] == 1
    (workspace.path / "ready").touch()
    second = play(workspace, shell, text)
    assert (second.code, second.out, second.err.count("\n")) == (0, "", 1)
    assert re.search(r"\ba\b", second.err), "says what it left out"
    assert effects(workspace) == ["a", "c"]
    completed(workspace, "a,b,c")


@every
def test_a_step_that_is_a_function_keeps_variables_and_folder(workspace: Workspace, shell: str) -> None:
    (workspace.path / "inner").mkdir()
    text = """
increase() {
    N=1$N
}
move() {
    cd inner
    SEEN=yes
}
N=0
ckpt_start deploy --steps a,b,c,d
ckpt_step a increase
ckpt_step b increase
ckpt_step c move
ckpt_step d cd ..
cd inner
echo $N $SEEN
pwd
ckpt_complete
"""
    passed(play(workspace, shell, text), f"110 yes\n{workspace.path / 'inner'}\n")
    completed(workspace, "a,b,c,d")
    assert list((workspace.path / "inner").iterdir()) == []


@posix
def test_steps_that_are_built_ins(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy
ckpt_step --add a export GREETING=hello
ckpt_step --add b set -f
ckpt_step --add c umask 027
ckpt_step --add d read -r line < input
ckpt_step --add e eval 'deep="$line" two=2'
ckpt_step --add f . ./more
ckpt_step --add g :
ckpt_step --add h unset two
echo "$GREETING $- $(umask) $line $deep $more ${two-unset}"
ckpt_complete
"""
    (workspace.path / "input").write_text("from a file\n")
    (workspace.path / "more").write_text("more=sourced\n")
    result = play(workspace, shell, text)
    assert re.fullmatch(r"hello \w*[fF]\w* 0?027 from a file from a file sourced unset\n", result.out), result
    completed(workspace, "a,b,c,d,e,f,g,h")


@most
def test_exit_statuses_pass_through_and_are_recorded(workspace: Workspace, shell: str) -> None:
    codes = [1, 11, 20, 124, 126, 127, 137, 255]
    lines = [f"ckpt_step --add s{code} ./fails {code}\necho $?" for code in codes]
    result = play(workspace, shell, "\n".join(["ckpt_start deploy", *lines]), mode="set -u")
    assert result.out.split() == [str(code) for code in codes]
    found = {step["name"]: (step["status"], step["exit_code"]) for step in record(workspace)["steps"]}
    assert found == {f"s{code}": ("failed", code) for code in codes}


@every
def test_a_command_that_cannot_be_run(workspace: Workspace, shell: str) -> None:
    (workspace.path / "plain").write_text("no program\n")
    executable(workspace.path / "killed", "#!/bin/sh\nkill -9 $$\n")
    text = """
ckpt_start deploy --steps a,b,c
ckpt_step a no-such-command
echo $?
ckpt_step b ./plain
echo $?
ckpt_step c ./killed
echo $?
"""
    result = play(workspace, shell, text, mode="")
    assert result.out.split() == ["127", "126", "137"], result
    assert steps(workspace) == {"a": "pending", "b": "pending", "c": "failed"}, "what was never begun is not"


@every
def test_a_step_that_is_not_in_the_plan_is_refused_and_not_run(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy --steps a\nckpt_step b ./effect b\necho $?\nckpt_step --add b ./effect b\necho $?"
    result = play(workspace, shell, text, mode="set -u")
    assert result.out.split() == ["10", "0"], result
    assert "'b'" in result.err
    assert effects(workspace) == ["b"]


@most
def test_wrong_usage_is_refused_and_nothing_is_run(workspace: Workspace, shell: str) -> None:
    lines = [
        *("ckpt_step", "ckpt_step a", "ckpt_step --once a", "ckpt_step --verify", "ckpt_once a", "ckpt_step '' ./effect no"),
        *("ckpt_step --frobnicate a ./effect no", "ckpt_step --verify '' a ./effect no", "ckpt_step --verify true a"),
        *("ckpt_start", "ckpt_start 'No Such Name!'", "ckpt_start other --frobnicate", "ckpt_complete --frobnicate"),
        *(f"ckpt_step --add {shlex.quote(name)} ./effect no" for name in ("it is\na", "größe", "$(touch pwned)", "x" * 65)),
        "ckpt_step --add -x ./effect no",
    ]
    # A start that was refused leaves no run behind.
    again = "ckpt_start deploy --steps a\n"
    text = again + "\n".join(f"{line}\necho $?" + f"\n{again}" * line.startswith("ckpt_start") for line in lines)
    result = play(workspace, shell, text, mode="set -u")
    assert result.out.split() == ["2"] * len(lines), list(zip(lines, result.out.split(), strict=False))
    assert len(result.err.splitlines()) >= len(lines)
    assert effects(workspace) == []
    assert steps(workspace) == {"a": "pending"}
    assert not (workspace.path / "pwned").exists()


@most
def test_without_a_start_nothing_is_run(workspace: Workspace, shell: str) -> None:
    for line in ("ckpt_step a ./effect a", "ckpt_once a ./effect a", "ckpt_complete"):
        result = play(workspace, shell, line)
        assert result.code == 2
        assert "ckpt_start" in result.err
    assert effects(workspace) == []
    assert not workspace.store.exists()


@every
def test_arguments_of_any_bytes(workspace: Workspace, shell: str) -> None:
    text = """
function_keeps() {
    ./keep "$@"
}
ckpt_start deploy --steps a,b
ckpt_step a function_keeps "$@"
ckpt_step b ./keep second "$@"
ckpt_complete
"""
    # The first names a file, also because fish takes options of its own from in front of the first.
    passed(play(workspace, shell, text, "first", *AWKWARD))
    assert (workspace.path / "first").read_bytes().split(b"\0") == AWKWARD
    assert (workspace.path / "second").read_bytes().split(b"\0") == [b"first", *AWKWARD]


@mostly_posix
def test_ten_thousand_arguments(workspace: Workspace, shell: str) -> None:
    text = 'tell() { echo "$#"; }\nckpt_start deploy --steps a\nckpt_step a tell "$@"\nckpt_complete'
    passed(play(workspace, shell, text, *(f"argument {number}" for number in range(10_000))), "10000\n")


@every
def test_options_of_start_are_passed_as_they_are(workspace: Workspace, shell: str) -> None:
    words = "line one\nline 'two' \"three\" \\ $HOME $(x) ✓ \t*"
    text = """
ckpt_start deploy --steps a --key "$@" --note "$@" --data '{"n": [1, 2]}'
ckpt_step a true
ckpt_complete --note "$@"
ckpt_start deploy --steps a --key "$@"
ckpt_complete
"""
    # fish joins no words: what its $argv and "$@" have in common is one argument.
    result = play(workspace, shell, text.replace(' --note "$@"\n', "\n"), words)
    assert (result.code, result.out) == (0, ""), result
    found = json.loads(next((workspace.store / "done").glob("deploy-*.json")).read_text())
    assert [note["text"] for note in found["notes"]] == [words]
    assert (found["idempotency_key"], found["data"]) == (words, {"n": [1, 2]})


@every
def test_the_script_itself_is_the_owner(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a
echo $$
checkpoint-tool update deploy --note "between steps"
ckpt_step a checkpoint-tool update deploy --note "within a step"
"""
    result = play(workspace, shell, text)
    assert result.code == 0, result
    lease = record(workspace)["lease"]
    assert str(lease["pid"]) == result.out.split()[0]
    assert lease["expires_at"] is None, "the kernel knows; no time has to pass"
    assert [note["text"] for note in record(workspace)["notes"]] == ["between steps", "within a step"]


@every
def test_another_script_gets_11_and_runs_nothing(workspace: Workspace, shell: str, background: Begin) -> None:
    text = "ckpt_start deploy --steps a,b\nckpt_step a ./pause here\nckpt_step b ./effect b\nckpt_complete"
    first = background(shell, text)
    arrived(workspace, "here")
    if shell != "fish":
        strict = play(workspace, shell, f"ckpt_start deploy --steps a,b\n./effect no\n{text}")
        assert strict.code == 11, strict
        assert str(first.pid) in strict.err, "says who"
    # A script that does not look at the outcome goes on, but none of its steps is run.
    loose = play(workspace, shell, text, mode="")
    assert loose.code != 0, loose
    assert effects(workspace) == []
    let_go(workspace, "here")
    assert first.wait(20) == 0
    completed(workspace, "a,b")
    assert effects(workspace) == ["b"]


@most
def test_two_scripts_of_one_owner_name_are_still_two(workspace: Workspace, shell: str, background: Begin) -> None:
    """An agent exports CHECKPOINT_OWNER, and both of its scripts inherit it."""
    text = "export CHECKPOINT_OWNER=me\nckpt_start deploy --steps a\nckpt_step a ./pause here\nckpt_complete"
    first = background(shell, text)
    arrived(workspace, "here")
    let_go(workspace, "here")
    second = play(workspace, shell, text)
    first.wait(20)
    # If the first ended before the second looked, the second had a run of its own.
    assert second.code == 11 or len(list((workspace.store / "done" / "deploy").iterdir())) == 2, second


@mostly_posix
def test_of_four_scripts_at_once_one_runs(workspace: Workspace, shell: str, background: Begin) -> None:
    text = "./pause ready\nckpt_start deploy --key k --steps a\nckpt_step a ./effect a\n./pause end\nckpt_complete"
    runs = [background(shell, text) for _ in range(4)]
    arrived(workspace, "ready")
    let_go(workspace, "ready")
    arrived(workspace, "end")
    until(lambda: sum(run.poll() is not None for run in runs) == 3, "three are refused")
    let_go(workspace, "end")
    assert sorted(run.wait(20) for run in runs) == [0, 11, 11, 11]
    assert effects(workspace) == ["a"]


@most
def test_a_changed_plan_is_a_conflict_that_stops_the_script(workspace: Workspace, shell: str) -> None:
    play(workspace, shell, "ckpt_start deploy --key k --steps a,b\nckpt_step a ./effect a")
    text = "ckpt_start deploy --key k --steps a,c,b\n./effect on\nckpt_step c ./effect c\nckpt_complete"
    strict = play(workspace, shell, text)
    assert strict.code == 14, strict
    assert "c" in strict.err
    assert effects(workspace) == ["a"]
    loose = play(workspace, shell, text, mode="")
    assert loose.code == 2, "its last command fails for want of a run"
    assert effects(workspace) == ["a", "on"]


@most
def test_one_workflow_after_the_other(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start first --steps a
ckpt_step a ./effect 1a
ckpt_complete
ckpt_start second --steps a
ckpt_step a ./effect 2a
ckpt_complete
"""
    passed(play(workspace, shell, text))
    assert effects(workspace) == ["1a", "2a"]
    completed(workspace, "a", "first")
    completed(workspace, "a", "second")


@every
def test_complete_without_a_step_is_refused(workspace: Workspace, shell: str) -> None:
    """A script without set -e whose step names were all refused must not use its key up."""
    text = """
ckpt_start deploy --key k
ckpt_step 'No Name' ./effect 1
echo $?
ckpt_complete
echo $?
"""
    result = play(workspace, shell, text, mode="set -u")
    assert (result.code, result.out) == (0, "2\n15\n"), result
    assert "is no step name" in result.err
    text = """
ckpt_start deploy --key k
ckpt_complete --force --reason 'nothing to do'
"""
    assert play(workspace, shell, text).code == 0
    assert effects(workspace) == []


@every
def test_another_command_under_a_completed_name_is_refused(workspace: Workspace, shell: str) -> None:
    """Two file names that are made into one step name: the second file would be left out in silence."""
    text = """
ckpt_start deploy --key k
ckpt_step load ./effect 'a b.csv'
ckpt_step load ./effect 'a b.csv'
echo $?
ckpt_step load ./effect a b.csv
echo $?
ckpt_step load ./effect 'a b.csv' ''
echo $?
ckpt_step load ./same 'a b.csv'
echo $?
ckpt_complete
echo $?
"""
    result = play(workspace, shell, text, mode="set -u")
    assert result.out == "0\n14\n14\n14\n15\n", result
    assert result.err.count("another command") == 3
    assert effects(workspace) == ["a b.csv"]


@every
def test_another_command_ends_a_strict_script(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy
for file in 'a b' a-b; do
    ckpt_step load ./effect "$file"
done
ckpt_complete
"""
    if shell == "fish":
        text = text.replace("; do", "").replace("done", "end").replace('"$file"', '"$file"; or exit')
    result = play(workspace, shell, text)
    assert (result.code, effects(workspace), record(workspace)["status"]) == (14, ["a b"], "in_progress"), result


@every
def test_after_a_restart_a_changed_command_leaves_the_step_done(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --key k
ckpt_step load ./effect 1
ckpt_step next test -e go
ckpt_complete
"""
    assert play(workspace, shell, text).code == 1
    (workspace.path / "go").touch()
    again = play(workspace, shell, text.replace("./effect 1", "./effect 2"))
    assert again.code == 0, again
    assert effects(workspace) == ["1"]
    assert play(workspace, shell, text.replace("./effect 1", "./effect 3")).code == 0, "nor is its receipt asked"
    assert effects(workspace) == ["1"]


@every
def test_another_command_may_try_what_one_has_failed(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy
ckpt_step load ./fails 3 || ckpt_step load ./effect 1
ckpt_complete
"""
    if shell == "fish":
        text = text.replace("||", "; or")
    assert play(workspace, shell, text, mode="set -u").code == 0
    assert effects(workspace) == ["1"]


@posix
def test_a_session_and_a_subshell_know_a_command_as_the_same(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy
ckpt_step load ./effect "$@"
(ckpt_step load ./effect "$@")
ckpt_step load ./effect "$@" | cat
checkpoint-tool run "$CHECKPOINT_ID" load -- ./effect "$@"
(ckpt_step next ./effect "$@")
ckpt_step next ./effect "$@"
"""
    assert play(workspace, shell, text, *AWKWARD).code == 0
    assert len((workspace.path / "effects").read_bytes().split(b" two  spaces ")) == 3, "two effects, one for each name"


@every
def test_a_command_of_any_length(workspace: Workspace, shell: str) -> None:
    """A function takes more than the system lets a program have: in words, and in one of them."""
    big, many = workspace.path / "big", workspace.path / "many"
    big.write_text("x" * 300_000)
    many.write_text("\n".join(str(number) for number in range(12_000)))
    text = """
count() { echo $# >> effects; }
ckpt_start deploy
ckpt_step one count "$(cat big)"
ckpt_step two count $(cat many)
ckpt_step two count $(cat many)
ckpt_step two count $(cat many) x
echo $?
"""
    if shell == "fish":
        text = text.replace("count() { echo $# >> effects; }", "function counted; builtin count $argv >> effects; end")
        text = (
            re.sub(r"(one|two) count ", r"\1 counted ", text)
            .replace('"$(cat big)"', "(cat big)")
            .replace("$(cat many)", "(cat many)")
        )
        text = text.replace("$?", "$status")
    if shell == "zsh":
        text = "setopt sh_word_split\n" + text
    result = play(workspace, shell, text, mode="set -u")
    assert (result.code, result.out) == (0, "14\n"), result
    assert effects(workspace) == ["1", "12000"]


@every
def test_the_words_of_a_command_are_in_no_list_of_processes(workspace: Workspace, shell: str) -> None:
    """A function may be given a password: it never stood in the arguments of any program."""
    tool = workspace.path / "watched"
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> seen\nexec {shlex.quote(TOOL)} "$@"\n')
    tool.chmod(0o755)
    text = """
login() { :; }
ckpt_start deploy
ckpt_step login login hunter2pw
"""
    if shell in SESSION:
        text = text.replace("ckpt_step login login hunter2pw", "( ckpt_step login login hunter2pw )")
    if shell == "fish":
        text = text.replace("login() { :; }", "function login; true; end")
    result = play(workspace, shell, text, env={"CHECKPOINT_TOOL": str(tool)})
    assert result.code == 0, result
    seen = (workspace.path / "seen").read_text()
    assert "begin\n" in seen
    assert "hunter2pw" not in seen


@every
def test_a_script_that_is_called_from_a_directory_below_finds_its_run(workspace: Workspace, shell: str) -> None:
    text = f"""
ckpt_start send --key k
ckpt_step send {workspace.path}/effect 1
ckpt_complete
"""
    argv = script(workspace, shell, text)
    below = Workspace(workspace.path / "x/y")
    below.path.mkdir(parents=True)
    env = surroundings(workspace)
    assert workspace.run(*argv, env=env).code == 0
    again = below.run(*argv, env=env)
    assert again.code == 0, again
    assert effects(workspace) == ["1"]
    assert not (below.path / "effects").exists()
    assert not (below.path / "memory").exists()


@most
def test_complete_with_steps_left_is_refused(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a,b
ckpt_step a true
ckpt_complete
echo $?
ckpt_complete --force --reason 'good enough'
"""
    result = play(workspace, shell, text, mode="set -u")
    assert (result.code, result.out) == (0, "15\n"), result
    assert "b" in result.err
    assert record(workspace)["status"] == "completed"


@every
def test_the_store_of_the_run_is_kept_when_the_script_moves(workspace: Workspace, shell: str) -> None:
    (workspace.path / "one" / "two").mkdir(parents=True)
    text = """
cd one
ckpt_start deploy --steps a,b,c
cd two
ckpt_step a ../../effect x
cd /
ckpt_step b true
cd "$@"
ckpt_step c true
cd one/two
ckpt_complete
"""
    passed(play(workspace, shell, text, str(workspace.path)))
    stores = [str(path.relative_to(workspace.path)) for path in workspace.path.rglob("checkpoints")]
    assert stores == ["one/memory/checkpoints"]
    assert record(workspace, store=workspace.path / "one/memory/checkpoints")["status"] == "completed"


@most
@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize("name", ["two words", 'it\'s "odd" $HOME \\ `x`', "a\nb"])
def test_the_store_may_be_named(workspace: Workspace, shell: str, how: str, name: str) -> None:
    option = '--store "$@"' if how == "option" else ""
    text = f"""
ckpt_start deploy --steps a,b {option}
cd /
ckpt_step a true
ckpt_step b true | cat
ckpt_complete
"""
    passed(play(workspace, shell, text, name, env={"CHECKPOINT_STORE": name} if how == "environment" else None))
    assert record(workspace, store=workspace.path / name)["status"] == "completed"
    assert not workspace.store.exists()


@most
def test_a_second_start_reads_files_and_settings_as_they_are_then(workspace: Workspace, shell: str) -> None:
    (workspace.path / "there").mkdir()
    (workspace.path / "there" / "plan").write_text("x\ny\n")
    text = """
ckpt_start first --steps a
ckpt_step a true
ckpt_complete
cd there
export CHECKPOINT_STORE="$@"
ckpt_start second --plan plan
ckpt_step x true
"""
    passed(play(workspace, shell, text, str(workspace.path / "moved")))
    assert [step["name"] for step in record(workspace, "second", workspace.path / "moved")["steps"]] == ["x", "y"]


@mostly_posix
def test_a_value_of_start_may_come_from_standard_input(workspace: Workspace, shell: str) -> None:
    (workspace.path / "data").write_text('{"n": 7}')
    passed(play(workspace, shell, "ckpt_start deploy --steps a --data - < data\nckpt_step a true"))
    assert record(workspace)["data"] == {"n": 7}


@most
def test_a_script_within_a_step_has_a_run_of_its_own(workspace: Workspace, shell: str) -> None:
    inner = script(workspace, shell, "ckpt_start inner --steps a\nckpt_step a ./effect inner\nckpt_complete")
    text = f"""
ckpt_start outer --steps a,b
ckpt_step a {" ".join(inner)}
ckpt_step b ./effect outer
ckpt_complete
"""
    passed(play(workspace, shell, text))
    assert effects(workspace) == ["inner", "outer"]
    completed(workspace, "a", "inner")
    completed(workspace, "a,b", "outer")


@most
def test_the_other_commands_work_within_a_step(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a,b
ckpt_step a checkpoint-tool exec sync -- ./effect synced
ckpt_step b checkpoint-tool status sync
ckpt_complete
"""
    result = play(workspace, shell, text)
    assert result.code == 0, result
    assert effects(workspace) == ["synced"]
    completed(workspace, "a,b")


@every
def test_the_input_of_a_loop_is_not_eaten(workspace: Workspace, shell: str) -> None:
    (workspace.path / "list").write_text("a\nb\nc\n")
    loop = 'while read -r name; do\n    ckpt_step --add "$name" ./same did "$name"\ndone < list'
    if shell == "fish":
        loop = "while read -l name\n    ckpt_step --add $name ./same did $name\nend < list"
    for expected in ("did a\ndid b\ndid c\n", ""):
        result = play(workspace, shell, f"ckpt_start load --key k\n{loop}\nckpt_complete", input="not for you\n")
        assert (result.code, result.out) == (0, expected), result


@every
def test_the_streams_are_the_steps_alone(workspace: Workspace, shell: str) -> None:
    (workspace.path / "list").write_text("12345")
    text = """
ckpt_start deploy --steps a,b,c,d,e
ckpt_step a ./same out
ckpt_step b ./same err >&2
ckpt_step c ./same file > file
ckpt_step d cat
ckpt_step e cat < list
"""
    assert play(workspace, shell, text, input="from outside\n") == (0, "out\nfrom outside\n12345", "err\n")
    assert (workspace.path / "file").read_text() == "file\n"


# Steps in the middle of other things


@every
def test_nested_steps(workspace: Workspace, shell: str) -> None:
    text = """
inner() {
    echo inner "$@"
}
outer() {
    echo before
    ckpt_step b inner 1
    ckpt_step --once c inner 2
    echo after "$@"
}
ckpt_start deploy --steps a,b,c
ckpt_step a outer x 'y  z'
ckpt_complete
"""
    passed(play(workspace, shell, text, mode="set -u"), "before\ninner 1\ninner 2\nafter x y  z\n")
    completed(workspace, "a,b,c")
    assert [step.get("once", False) for step in record(workspace)["steps"]] == [False, False, True]


@most
def test_a_nested_step_fails_for_itself(workspace: Workspace, shell: str) -> None:
    text = """
outer() {
    ckpt_step b ./fails 7
    echo $?
    true
}
ckpt_start deploy --steps a,b
ckpt_step a outer
echo $?
"""
    result = play(workspace, shell, text, mode="set -u")
    assert result.out.split() == ["7", "0"], result
    assert steps(workspace) == {"a": "completed", "b": "failed"}


@most
def test_options_of_a_nested_step_are_not_those_of_the_outer_one(workspace: Workspace, shell: str) -> None:
    text = """
outer() {
    ckpt_step --once --verify "test -e seen" b touch seen
    ./effect outer
    false
}
ckpt_start deploy --steps a,b
ckpt_step a outer
"""
    play(workspace, shell, text, mode="set -u")
    assert steps(workspace) == {"a": "failed", "b": "completed"}, "a may be repeated: failed, not in doubt"
    play(workspace, shell, text, mode="set -u")
    assert effects(workspace) == ["outer", "outer"]


@mostly_posix
def test_recursion(workspace: Workspace, shell: str) -> None:
    text = """
down() {
    if [ "$1" -gt 0 ]; then
        ckpt_step --add "level-$1" down "$(($1 - 1))"
    else
        echo bottom
    fi
}
ckpt_start deploy
down 5
ckpt_complete
"""
    passed(play(workspace, shell, text), "bottom\n")
    completed(workspace, "level-5,level-4,level-3,level-2,level-1")


@posix
def test_a_function_that_fails_in_the_middle_is_never_completed(workspace: Workspace, shell: str) -> None:
    text = """
half() {
    ./effect first
    false
    ./effect second
}
ckpt_start deploy --steps a,b
ckpt_step a half
./effect beyond
"""
    for turn in (1, 2):
        result = play(workspace, shell, text)
        assert result.code == 1, result
        assert effects(workspace) == ["first"] * turn
        assert steps(workspace)["a"] in ("begun", "failed")


@posix
def test_a_function_that_fails_in_the_middle_of_a_nested_step_completes_neither(workspace: Workspace, shell: str) -> None:
    text = """
half() { ./effect first; false; ./effect second; }
outer() { ckpt_step b half; ./effect third; }
ckpt_start deploy --steps a,b
ckpt_once a outer
./effect beyond
"""
    assert play(workspace, shell, text).code == 1
    assert effects(workspace) == ["first"]
    assert "completed" not in steps(workspace).values()


@with_session
def test_pipefail_within_a_step(workspace: Workspace, shell: str) -> None:
    text = """
half() {
    ./fails 3 | cat
    ./effect second
}
ckpt_start deploy --steps a
ckpt_step a half
./effect beyond
"""
    result = play(workspace, shell, text, mode="set -euo pipefail")
    assert result.code == 3, result
    assert effects(workspace) == []
    assert steps(workspace)["a"] != "completed"


@mostly_posix
@pytest.mark.parametrize("command", ["./fails 42", "sh -c 'exit 42'"])
def test_a_program_that_fails_ends_a_strict_script_with_its_status(workspace: Workspace, shell: str, command: str) -> None:
    """And it is written down that it failed: what ran to its end is not in doubt."""
    result = play(workspace, shell, f"ckpt_start deploy --steps a\nckpt_step a {command}\n./effect beyond")
    assert result.code == 42, result
    assert effects(workspace) == []
    assert steps(workspace) == {"a": "failed"}


@posix
def test_a_failure_that_is_taken_care_of(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a,b,c
ckpt_step a false || ./effect or
if ckpt_step b ./fails 9; then ./effect no; else ./effect "else $?"; fi
! ckpt_step c false
./effect on
"""
    passed(play(workspace, shell, text))
    assert effects(workspace) == ["or", "else 9", "on"]
    assert set(steps(workspace).values()) == {"failed"}


@mostly_posix
@pytest.mark.parametrize("how", ["return 4", "exit 4", "(exit 4)"])
def test_a_function_that_returns_or_exits(workspace: Workspace, shell: str, how: str) -> None:
    text = f"leave() {{ ./effect in; {how}; }}\nckpt_start deploy --steps a\nckpt_step a leave\n./effect beyond"
    result = play(workspace, shell, text)
    assert result.code == 4, result
    assert effects(workspace) == ["in"]
    assert steps(workspace)["a"] in ("begun", "failed")


@posix
def test_a_function_that_exits_with_0_is_not_completed(workspace: Workspace, shell: str) -> None:
    """The script ended within the step: whether that was its end is not known."""
    text = "leave() { ./effect in; exit 0; }\nckpt_start deploy --steps a\nckpt_step a leave\nckpt_complete"
    assert play(workspace, shell, text).code == 0
    assert effects(workspace) == ["in"]
    assert steps(workspace)["a"] == "begun"


@posix
def test_nothing_set_in_the_environment(workspace: Workspace, shell: str) -> None:
    argv = script(workspace, shell, "ckpt_start deploy --steps a\nckpt_step a echo hi\nckpt_complete")[3:]
    passed(workspace.run(need_program("env"), "-i", f"PATH={BIN}:/usr/bin:/bin", *argv), "hi\n")


@posix
@pytest.mark.parametrize("mode", ["", "set -eu", "set -f", "set -C", "set -eufCa"])
def test_shell_options(workspace: Workspace, shell: str, mode: str) -> None:
    text = """
[ "$before" = "$-" ] || echo "not $- any more"
ckpt_start deploy --steps a,b,c
ckpt_step a echo '*' x
ckpt_once --verify true b echo two
(ckpt_step c true)
ckpt_complete
[ "$before" = "$-" ] || echo "not $- any more"
"""
    passed(play(workspace, shell, text, mode=f"{mode}\nbefore=$-"), "* x\ntwo\n")
    completed(workspace, "a,b,c")


@mostly_posix
def test_other_separators(workspace: Workspace, shell: str) -> None:
    lines = ["ckpt_start deploy"]
    separators = [":", "", "0123456789", "abcdefghijklmnopqrstuvwxyz_-/", "\n"]
    for number, ifs in enumerate(separators):
        lines += [f"IFS={shlex.quote(ifs)}", f"ckpt_step --add s{number} ./same 'a b' c:d > out-{number}"]
        lines += [f"ckpt_once --add --verify true o{number} true", f'printf "%s" "$IFS" > ifs-{number}']
    passed(play(workspace, shell, "\n".join([*lines, "ckpt_complete"])))
    for number, ifs in enumerate(separators):
        assert (workspace.path / f"out-{number}").read_text() == "a b c:d\n"
        assert (workspace.path / f"ifs-{number}").read_text() == ifs
    assert record(workspace)["status"] == "completed"


@mostly_posix
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_locales(workspace: Workspace, shell: str, locale: str) -> None:
    text = 'ckpt_start deploy --note "größe"\nckpt_step --add a echo "größe"\nckpt_complete'
    passed(play(workspace, shell, text, env={"LC_ALL": locale}), "größe\n")
    assert record(workspace)["notes"][0]["text"] == "größe"


@pytest.mark.parametrize(
    ("shell", "mode"),
    [
        ("bash", "set -o posix"),
        ("bash", "shopt -s nullglob dotglob extglob lastpipe failglob"),
        ("bash", "set -euET -o pipefail; shopt -s inherit_errexit"),
        ("bash", "set -m"),
        ("bash", "TMOUT=1"),
        ("zsh", "emulate sh"),
        ("zsh", "emulate ksh"),
        ("zsh", "setopt err_exit err_return no_unset pipe_fail"),
        ("zsh", "setopt sh_word_split ksh_arrays null_glob glob_subst extended_glob rc_expand_param"),
        ("zsh", "setopt warn_create_global"),
        ("zsh", "setopt all_export no_clobber"),
        ("zsh", "setopt ignore_braces"),
    ],
)
def test_options_of_bash_and_zsh(workspace: Workspace, shell: str, mode: str) -> None:
    text = """
f() {
    echo "$#" "$1"
}
ckpt_start deploy --steps a,b,c
ckpt_step a f '*' 'b c'
ckpt_step b ./same x
(ckpt_step c ./same y)
ckpt_complete
"""
    passed(play(workspace, shell, text, mode=mode), "2 *\nx\ny\n")
    completed(workspace, "a,b,c")


@mostly_posix
def test_tracing_changes_nothing(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy --steps a,b\nckpt_step a echo hi\n(ckpt_step b true)\nckpt_complete"
    result = play(workspace, shell, text, mode="set -eux")
    assert (result.code, result.out) == (0, "hi\n"), result
    completed(workspace, "a,b")


@posix
def test_steps_in_subshells_and_pipelines(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy
step() { ckpt_step --add "$@"; }
(step a ./same a)
( (step b ./same b) )
x=$(step c ./same c)
echo "$x"
step d ./same d | cat
echo e | step e cat
step f ./same f | step g cat
echo h | step h cat | cat
{ step i ./same i; } | { cat; }
step j ./same j &
wait $!
outer() { (step l ./same k); }
step k outer
inner() { step n ./same m; }
(step m inner)
(step o ./same o && step p ./same p)
set -- $(step q ./same q)
echo "$1"
step r true
ckpt_complete
"""
    passed(play(workspace, shell, text), "".join(f"{name}\n" for name in "abcdefhijkmopq"))
    assert record(workspace)["status"] == "completed"
    assert "".join(sorted(steps(workspace))) == "abcdefghijklmnopqr"


def test_steps_in_pipelines_of_fish(workspace: Workspace) -> None:
    text = """
ckpt_start deploy --steps a,b,c,d,e
ckpt_step a ./same a | cat
echo b | ckpt_step b cat
echo (ckpt_step c ./same c)
begin; ckpt_step d ./same d; end | cat
ckpt_step e true
ckpt_complete
"""
    passed(play(workspace, "fish", text), "a\nb\nc\nd\n")
    completed(workspace, "a,b,c,d,e")


@posix
def test_a_failure_in_a_subshell_is_seen_outside(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a,b
(ckpt_step a sh -c 'exit 5') || echo $?
x=$(ckpt_step b sh -c 'exit 6') || echo $?
"""
    passed(play(workspace, shell, text), "5\n6\n")
    assert steps(workspace) == {"a": "failed", "b": "failed"}


@posix
def test_steps_in_parallel(workspace: Workspace, shell: str) -> None:
    """All at once, beside one in front; each waits for all the others. A plain wait waits for the steps alone."""
    text = """
meet() { touch "met-$1"; n=0; while [ "$(echo met-*)" != "met-a met-b met-c" ]; do
    n=$((n + 1)); [ $n -lt 1000 ] || return 99; sleep 0.01; done; }
ckpt_start deploy --steps a,b,c,d
for step in a b c; do
    ckpt_step "$step" meet "$step" &
done
ckpt_step d ./effect d
wait
ckpt_complete
"""
    passed(play(workspace, shell, text))
    completed(workspace, "a,b,c,d")


@posix
def test_the_status_of_a_step_in_the_background_arrives(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy --steps a,b
ckpt_step a ./fails 0 &
one=$!
ckpt_step b sh -c 'exit 7' &
two=$!
wait $one
wait $two || echo $?
"""
    passed(play(workspace, shell, text), "7\n")
    assert steps(workspace) == {"a": "completed", "b": "failed"}


@posix
def test_the_scripts_own_jobs_are_all_there_is(workspace: Workspace, shell: str) -> None:
    """A plain wait does not wait for a session, and no step changes $!; only the start, in bash and zsh, is a job too."""
    text = """
wait
sleep 0.01 &
ckpt_start deploy --steps a,b
mine=$!
ckpt_step a true
[ "$!" = "$mine" ] || echo "\\$! was $mine and is $!"
ckpt_step b wait
jobs
jobs -p
wait
ckpt_complete
wait
"""
    passed(play(workspace, shell, text))


@posix
def test_the_scripts_own_variables_are_not_touched(workspace: Workspace, shell: str) -> None:
    names = (
        "a b c i n x y id pid rc code out err name step line count status_ once verify add from to tool reply arg args cmd opt"
    )
    text = f"""
for v in {names}; do eval "$v=kept"; done
set -- one 'two three'
ckpt_start deploy --steps a,b,c
ckpt_step a true
ckpt_once --verify true b true
(ckpt_step c true)
ckpt_complete
for v in {names}; do eval "[ \\"\\$$v\\" = kept ]" || echo "$v changed"; done
echo "$#" "$2"
"""
    passed(play(workspace, shell, text), "2 two three\n")


# Traps


@mostly_posix
@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_trap_with_a_step_in_it(workspace: Workspace, shell: str, code: int) -> None:
    text = f"""
trap 'echo "trap $?"
ckpt_step --add cleanup ./same cleaned; echo "and $?"
ckpt_step --add again ./fails 5; echo "and $?"' EXIT
ckpt_start deploy --steps a
ckpt_step a true
exit {code}
"""
    result = play(workspace, shell, text, mode="set -u")
    assert (result.code, result.out) == (code, f"trap {code}\ncleaned\nand 0\nand 5\n"), result
    assert steps(workspace) == {"a": "completed", "cleanup": "completed", "again": "failed"}


@mostly_posix
@pytest.mark.parametrize("code", [0, 3])
def test_a_step_that_is_refused_in_a_trap_is_not_run(workspace: Workspace, shell: str, code: int) -> None:
    """A bare "return" in a trap gives the status from before the trap."""
    crash(workspace, shell, "--once")
    text = f"""
trap 'ckpt_step --once a ./effect again; echo $?; ckpt_step nope ./effect nope; echo $?' EXIT
ckpt_start deploy --steps a,b
exit {code}
"""
    result = play(workspace, shell, text, mode="set -u")
    assert effects(workspace) == ["died"]
    assert (result.code, result.out) == (code, "20\n10\n"), result


@mostly_posix
def test_an_exit_trap_that_completes_the_run(workspace: Workspace, shell: str) -> None:
    passed(play(workspace, shell, "trap 'ckpt_complete' EXIT\nckpt_start deploy --steps a\nckpt_step a true"))
    completed(workspace, "a")


@posix
def test_the_scripts_exit_trap_is_neither_lost_nor_run_in_a_step(workspace: Workspace, shell: str) -> None:
    text = """
trap 'echo bye' EXIT
ckpt_start deploy --steps a,b,c
ckpt_step a true
(ckpt_step b true)
ckpt_step --verify true c true
ckpt_complete
echo end
"""
    passed(play(workspace, shell, text), "end\nbye\n")


@with_session
def test_an_err_trap_with_a_step_in_it(workspace: Workspace, shell: str) -> None:
    text = """
trap 'ckpt_step --add "note-$n" ./effect "$n"; n=$((n + 1))' ERR
n=1
ckpt_start deploy --steps a,b
ckpt_step a ./fails 3
false
ckpt_step b true
"""
    passed(play(workspace, shell, text, mode="set -u"))
    found = steps(workspace)
    assert (found.pop("a"), found.pop("b")) == ("failed", "completed")
    # zsh runs it also for the lines within a function, ours too.
    assert len(found) >= 2
    assert set(found.values()) == {"completed"}
    assert effects(workspace) == [str(number) for number in range(1, len(found) + 1)]


@mostly_posix
@pytest.mark.parametrize("verb", ["begin", "end"])
@pytest.mark.parametrize("command", ["./same did", "./fails 3"])
def test_a_signal_trap_with_a_step_in_it_between_question_and_answer(
    workspace: Workspace, shell: str, verb: str, command: str
) -> None:
    """The step in the trap succeeds, or was done before; the outer one has its own outcome."""
    tool = executable(
        workspace.path / "tool",
        f'#!/bin/sh\nif [ "$1" = {verb} ] && [ "$3" = a ]; then kill -USR1 "$SCRIPT"; fi\nexec {shlex.quote(TOOL)} "$@"\n',
    )
    text = f"""
SCRIPT=$$; export SCRIPT
trap 'ckpt_step trapped true' USR1
ckpt_start deploy --steps trapped,a
ckpt_step a {command}
echo $?
ckpt_step trapped true
"""
    # The functions for sh, in all of them: there each call is a process, and so the moment is known.
    init = 'eval "$("$CHECKPOINT_TOOL" shell-init sh)"'
    result = play(workspace, shell, text, mode="set -u", init=init, env={"CHECKPOINT_TOOL": str(tool)})
    assert result.out == ("did\n0\n" if "same" in command else "3\n"), result
    assert steps(workspace) == {"trapped": "completed", "a": "completed" if "same" in command else "failed"}


@with_session
def test_a_signal_trap_with_a_step_in_it_at_any_moment(workspace: Workspace, shell: str, background: Begin) -> None:
    # The trap counts and begins its step in one command: bash runs it within itself, and between two the count is another's.
    text = """
n=0
trap 'ckpt_step --add "trap-$((n += 1))" true' USR1
ckpt_start deploy
./pause ready
i=0
while [ $i -lt 150 ] && ! [ -e enough ]; do
    i=$((i + 1))
    ckpt_step --add "step-$i" echo "$i"
done
ckpt_complete
echo "$i $n"
"""
    run = background(shell, text, mode="set -u")
    arrived(workspace, "ready")
    let_go(workspace, "ready")
    for _ in range(60):
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGUSR1)
        time.sleep(0.011)
    (workspace.path / "enough").touch()
    assert run.wait(30) == 0, error(workspace)
    *out, last = (workspace.path / "out").read_text().splitlines()
    count, traps = map(int, last.split())
    # zsh runs a trap at any moment, also between two of its own variables: the step that it came into may then be refused.
    refused = error(workspace).count("an unexpected answer") if shell == "zsh" else 0
    assert len(out) == count - refused, error(workspace)
    ended = steps(workspace)
    assert {name for name, status in ended.items() if status == "completed"} == {
        *(f"step-{number}" for number in out),
        *(f"trap-{number}" for number in range(1, traps + 1)),
    }, "what was not run is not completed"


@mostly_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_trapped_signal_to_the_whole_group_fails_the_step_and_spares_the_script(
    workspace: Workspace, shell: str, number: signal.Signals, background: Begin
) -> None:
    """Ctrl-C reaches everything in the terminal, the session too."""
    text = f"""
trap 'echo got' {number.name.removeprefix("SIG")}
ckpt_start deploy --steps a,b,c
ckpt_step a true
ckpt_step b sh -c './pause here' || echo $?
ckpt_step c ./same c
echo end
"""
    run = background(shell, text)
    arrived(workspace, "here")
    os.killpg(run.pid, number)
    assert run.wait(20) == 0, error(workspace)
    assert (workspace.path / "out").read_text().splitlines() == ["got", str(128 + number), "c", "end"]
    assert steps(workspace) == {"a": "completed", "b": "failed", "c": "completed"}
    assert error(workspace).count("\n") <= 1, "at most what the shell itself says of it"


@most
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_script_that_is_interrupted_leaves_a_step_that_is_not_completed(
    workspace: Workspace, shell: str, number: signal.Signals, background: Begin
) -> None:
    text = "ckpt_start deploy --steps a,b\nckpt_step a ./pause here\nckpt_step b ./effect b\nckpt_complete"
    run = background(shell, text)
    arrived(workspace, "here")
    os.killpg(run.pid, number)
    assert run.wait(20) != 0
    assert steps(workspace)["a"] in ("begun", "failed")
    assert effects(workspace) == []
    no_session(run.pid)
    let_go(workspace, "here")
    assert play(workspace, shell, text).code == 0
    assert effects(workspace) == ["b"]


# Coprocesses and descriptors


@pytest.mark.parametrize("first", ["coprocess", "start"])
def test_a_coprocess_of_the_bash_scripts_own(workspace: Workspace, first: str) -> None:
    begin = ["coproc { while read -r line; do echo $((line)); done; }", "ckpt_start deploy --steps a,b,c\nckpt_step a true"]
    text = f"""
ask() {{ echo "$1" >&"${{COPROC[1]}}"; read -r answer <&"${{COPROC[0]}}"; echo "$answer"; }}
{begin[first == "start"]}
{begin[first != "start"]}
ckpt_step b ask 1+1
ask 2+2
(ckpt_step c ./same x)
ask 3+3
ckpt_complete
"""
    result = play(workspace, "bash", text, mode="set -euo pipefail")
    assert (result.code, result.out) == (0, "2\n4\nx\n6\n"), result
    assert all("execute_coproc" in line for line in result.err.splitlines()), "bash says that there are two"
    completed(workspace, "a,b,c")


@mostly_posix
def test_the_scripts_own_descriptors(workspace: Workspace, shell: str) -> None:
    text = """
exec 3> three 4> four 5> five 6> six 7> seven 8> eight 9> nine
ckpt_start deploy --steps a,b
ckpt_step a echo x
for n in 3 4 5 6 7 8 9; do eval "echo $n >&$n"; done
ckpt_step b ./same y >&3
ckpt_complete
"""
    passed(play(workspace, shell, text), "x\n")
    found = [(workspace.path / name).read_text() for name in ("three", "four", "five", "six", "seven", "eight", "nine")]
    assert found == ["3\ny\n", "4\n", "5\n", "6\n", "7\n", "8\n", "9\n"]


@mostly_posix
@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_a_script_whose_streams_are_closed(workspace: Workspace, shell: str, closed: str) -> None:
    text = "ckpt_start deploy --steps a,b\nckpt_step a ./effect a\n(ckpt_step b ./effect b)\nckpt_complete"
    argv = shlex.join(script(workspace, shell, text))
    result = workspace.run("/bin/sh", "-c", f"{argv} {closed}", env=surroundings(workspace))
    assert result.code == 0, result
    assert effects(workspace) == ["a", "b"]
    completed(workspace, "a,b")
    assert workspace.tool("verify").code == 0


# --once and --verify

SEEN = {"in place": "true", "absent": "false", "unknown by 2": "./fails 2", "unknown": "./fails 126", "unfound": "no-such"}


def crash(workspace: Workspace, shell: str, *options: str) -> None:
    """A script that died inside of step a, its effect done."""
    text = f"""
work() {{
    ./effect died
    kill -9 $$
}}
ckpt_start deploy --steps a,b
ckpt_step {" ".join(options)} a work
"""
    died = play(workspace, shell, text)
    assert died.code == -9, died
    assert effects(workspace) == ["died"]
    assert steps(workspace)["a"] == "begun"


@every
def test_once_in_doubt_is_not_run_again(workspace: Workspace, shell: str) -> None:
    crash(workspace, shell, "--once")
    text = "ckpt_start deploy --steps a,b\nckpt_step {} a ./effect again\nckpt_step b ./effect b"
    # Nor where the script has forgotten that it is one.
    for option in ("--once", ""):
        result = play(workspace, shell, text.format(option))
        assert result.code == 20, result
        assert result.err != ""
        assert effects(workspace) == ["died"]
    assert workspace.tool("update", "deploy", "--retry", "a").code == 0
    assert play(workspace, shell, text.format("--once")).code == 0
    assert effects(workspace) == ["died", "again", "b"]


@every
def test_a_repeatable_step_in_doubt_is_run_again(workspace: Workspace, shell: str) -> None:
    crash(workspace, shell)
    passed(play(workspace, shell, "ckpt_start deploy --steps a,b\nckpt_step a ./effect again\nckpt_step b ./effect b"))
    assert effects(workspace) == ["died", "again", "b"]
    assert record(workspace)["steps"][0]["attempts"] == 2


@most
@pytest.mark.parametrize(
    ("seen", "option"),
    [("in place", "--once"), ("in place", ""), ("absent", "--once"), ("absent", ""), ("unknown", "--once"), ("unfound", "")],
)
def test_verify_settles_a_step_in_doubt(workspace: Workspace, shell: str, seen: str, option: str) -> None:
    crash(workspace, shell, option)
    text = f"""
is_there() {{
    ./effect looked
    test -e later && return 0
    {SEEN[seen]}
}}
work() {{
    ./effect again
    touch later
}}
ckpt_start deploy --steps a,b
ckpt_step {option} --verify is_there a work
ckpt_step b ./effect b
"""
    result = play(workspace, shell, text)
    if seen.startswith("un"):
        assert result.code == 20, result
        assert result.err != ""
        assert effects(workspace) == ["died", "looked"]
        assert steps(workspace) == {"a": "begun", "b": "pending"}
        return
    assert result.code == 0, result
    # Absent: looked at before, to know, and afterwards, as the postcondition.
    again = [] if seen == "in place" else ["again", "looked"]
    assert effects(workspace) == ["died", "looked", *again, "b"]
    assert steps(workspace) == {"a": "completed", "b": "completed"}


@every
def test_verify_is_the_postcondition_of_a_success(workspace: Workspace, shell: str) -> None:
    functions = "\n".join(f"{name.replace(' ', '_')}() {{\n    ./effect looked\n    {line}\n}}" for name, line in SEEN.items())
    cases = [(name.replace(" ", "-"), name.replace(" ", "_"), option) for name in SEEN for option in ("", "--once")]
    lines = [f"ckpt_step --add {option} --verify {look} {name}{option} ./effect did\necho $?" for name, look, option in cases]
    result = play(workspace, shell, "\n".join([functions, "ckpt_start deploy", *lines]), mode="set -u")
    assert effects(workspace) == ["did", "looked"] * len(cases)
    assert result.out.split() == ["0" if name == "in-place" else "1" for name, *_ in cases]
    found = steps(workspace)
    assert {name: status for name, status in found.items() if not name.startswith("un")} == {
        **dict.fromkeys(["in-place", "in-place--once"], "completed"),
        **dict.fromkeys(["absent", "absent--once"], "failed"),
    }
    # It cannot be told: failed where it may be repeated, in doubt where it may not.
    unknown = ("unknown", "unknown-by-2", "unfound")
    assert [found[name] for name in unknown] == ["failed"] * 3
    assert [found[f"{name}--once"] for name in unknown] == ["begun"] * 3
    for name in ("absent", "absent--once", "unknown", "unknown--once"):
        assert re.search(rf"step {name}\b(?!-)", result.err), f"why {name} failed is said: {result.err}"


@most
def test_a_once_step_that_failed_is_in_doubt(workspace: Workspace, shell: str) -> None:
    first = play(workspace, shell, "ckpt_start deploy --steps a\nckpt_step --once a ./fails 3", mode="set -u")
    assert first.code == 3, first
    step = record(workspace)["steps"][0]
    assert (step["status"], step["exit_code"]) == ("begun", 3)
    assert step["ended_at"]
    again = play(workspace, shell, "ckpt_start deploy --steps a\nckpt_step --once a ./effect again", mode="set -u")
    assert again.code == 20, again
    assert effects(workspace) == []


@most
@pytest.mark.parametrize(("code", "command"), [(126, "./plain"), (127, "no-such-command")])
def test_a_once_step_whose_program_never_started_may_be_begun_again(
    workspace: Workspace, shell: str, code: int, command: str
) -> None:
    (workspace.path / "plain").write_text("no program\n")
    first = play(workspace, shell, f"ckpt_start deploy --steps a\nckpt_step --once a {command}", mode="set -u")
    assert first.code == code, first
    assert steps(workspace)["a"] in ("pending", "failed"), "it is known not to have begun"
    again = play(workspace, shell, "ckpt_start deploy --steps a\nckpt_step --once a ./effect again", mode="set -u")
    assert again.code == 0, again


@most
@pytest.mark.parametrize("command", ["work", "./work"])
def test_a_once_step_that_exits_with_127_itself_has_started(workspace: Workspace, shell: str, command: str) -> None:
    """Its last line was not found: what the lines before it did is done."""
    executable(workspace.path / "work", "#!/bin/sh\n./effect sent\nno-such-command\n")
    text = f"""
work() {{
    ./effect sent
    no-such-command
}}
ckpt_start deploy --steps a
ckpt_once a {command}
"""
    assert play(workspace, shell, text, mode="set -u").code == 127
    assert play(workspace, shell, text, mode="set -u").code == 20
    assert effects(workspace) == ["sent"]


@most
@pytest.mark.parametrize("seen", ["in place", "absent", "unknown"])
def test_a_once_step_that_failed_is_settled_by_verify(workspace: Workspace, shell: str, seen: str) -> None:
    text = f"""
is_there() {{
    test -e later && return 0
    {SEEN[seen]}
}}
work() {{
    ./effect did
    test -e second || return 3
    touch later
}}
ckpt_start deploy --steps a
ckpt_step --once --verify is_there a work
"""
    first = play(workspace, shell, text, mode="set -u")
    # In place: it may be seen at once, or by the next run.
    assert first.code in ((0, 3) if seen == "in place" else (3,)), first
    (workspace.path / "second").touch()
    second = play(workspace, shell, text, mode="set -u")
    assert second.code == (20 if seen == "unknown" else 0), second
    assert effects(workspace) == ["did"] * (2 if seen == "absent" else 1)
    assert steps(workspace) == {"a": "begun" if seen == "unknown" else "completed"}


@every
def test_verify_is_a_line_of_shell(workspace: Workspace, shell: str) -> None:
    lines = ["test -e made", "test -e 'made' && true", "cat made | grep -q x", "! test -e unmade", "sh -c 'exit 0'", "cat made"]
    wanted = [f'ckpt_step --add --verify "{line}" s{number} make' for number, line in enumerate(lines)]
    text = "\n".join(["make() {\n    echo x > made\n}", "ckpt_start deploy", *wanted, "ckpt_complete"])
    result = play(workspace, shell, text, mode="set -u", input="not for it\n")
    assert (result.code, result.out) == (0, ""), result
    assert record(workspace)["status"] == "completed"


@mostly_posix
def test_verify_sees_the_scripts_variables_and_changes_none(workspace: Workspace, shell: str) -> None:
    text = """
make() { made=$1; }
is_made() { [ "$made" = "$expected" ] && made=changed; }
made= expected='x y'
ckpt_start deploy --steps a
ckpt_once --verify is_made a make 'x y'
ckpt_complete
echo "$made"
"""
    passed(play(workspace, shell, text), "x y\n")
    completed(workspace, "a")


@mostly_posix
def test_verify_that_fails_ends_a_strict_script_after_the_record_is_written(workspace: Workspace, shell: str) -> None:
    text = """
is_there() { ./effect looked; false; }
ckpt_start deploy --steps a
ckpt_step --verify is_there a ./effect did
./effect beyond
"""
    result = play(workspace, shell, text)
    assert result.code == 1, result
    assert effects(workspace) == ["did", "looked"]
    assert steps(workspace) == {"a": "failed"}


@most
def test_once_is_the_same_as_step_once(workspace: Workspace, shell: str) -> None:
    passed(
        play(workspace, shell, "ckpt_start deploy --steps a,b\nckpt_once a true\nckpt_once --verify true b true\nckpt_complete")
    )
    assert [step["once"] for step in record(workspace)["steps"]] == [True, True]


# Death


@linux
@pytest.mark.parametrize("place", ["between", "inside"])
@pytest.mark.parametrize(
    ("shell", "victims"),
    [(shell, "script") for shell in SHELLS] + list(itertools.product(SESSION, ("session", "session script", "script session"))),
)
def test_killed_and_run_again(workspace: Workspace, shell: str, victims: str, place: str, background: Begin) -> None:
    text = """
hold() {
    ./effect "$@"
    ./pause inside
}
ckpt_start deploy --key r7 --steps a,b,c
ckpt_step a ./effect a
./pause between
ckpt_step b hold b
ckpt_step c ./effect c
ckpt_complete
"""
    let_go(workspace, {"between": "inside", "inside": "between"}[place])
    run = background(shell, text)
    arrived(workspace, place)
    found = sessions(run.pid)
    assert len(found) == (1 if shell in SESSION else 0)
    for victim in victims.split():
        if victim == "script":
            run.kill()
            run.wait()
        else:
            try:
                os.kill(found[0], signal.SIGKILL)
            except ProcessLookupError:
                pass
    no_session(run.pid)
    if "script" not in victims:
        let_go(workspace, place)
        assert run.wait(20) == 0, error(workspace)
        assert effects(workspace) == ["a", "b", "c"]
    else:
        id = next(workspace.store.glob("deploy-*.json")).stem
        # The command of a killed script is still at work, until it is let go.
        assert workspace.tool("status", id).code == (30 if place == "inside" else 31)
        assert steps(workspace, id) == {"a": "completed", "b": "begun" if place == "inside" else "pending", "c": "pending"}
        let_go(workspace, place)
        until(lambda: workspace.tool("status", id).code == 31, "the command has ended")
        again = play(workspace, shell, text, mode="set -u")
        assert (again.code, again.out) == (0, ""), again
        assert effects(workspace) == (["a", "b", "b", "c"] if place == "inside" else ["a", "b", "c"])
    assert next((workspace.store / "done").glob("deploy-*.json"))


@linux
@every
def test_killed_again_and_again(workspace: Workspace, shell: str, background: Begin) -> None:
    """At moments spread over the whole script. What was completed is never run again; in the end all is done."""
    names = ["s1", "s2", "s3"]
    lines = [f"ckpt_step {name} ./effect {name}" for name in names]
    text = "\n".join([f"ckpt_start deploy --key k --steps {','.join(names)}", *lines, "ckpt_complete"])
    began = time.monotonic()
    passed(play(workspace, shell, text.replace("--key k", "--key warm")))
    whole = time.monotonic() - began
    (workspace.path / "effects").unlink()
    finished = workspace.store / "done"
    done: set[str] = set()
    for turn in range(6):
        before = len(effects(workspace))
        run = background(shell, text)
        time.sleep(whole * (turn + 1) / 7)
        run.kill()
        run.wait()
        no_session(run.pid)
        assert done.isdisjoint(effects(workspace)[before:])
        for path in workspace.store.glob("deploy-*.json"):
            done = {name for name, status in steps(workspace, path.stem).items() if status == "completed"}
        if len(list(finished.glob("*.json"))) == 2:
            done = set(names)
    result = play(workspace, shell, text)
    assert (result.code, result.out) == (0, ""), result
    assert set(effects(workspace)) == set(names)
    assert len(list(finished.glob("*.json"))) == 2
    assert workspace.temporaries() == []
    assert workspace.tool("verify").code == 0


@linux
@with_session
def test_the_session_is_killed_again_and_again(workspace: Workspace, shell: str, background: Begin) -> None:
    """Whenever it dies, also between a question and its answer, the script goes on and each step is run once."""
    text = """
ckpt_start deploy
i=0
while [ $i -lt 30 ]; do
    i=$((i + 1))
    ckpt_step --once --add s$i ./effect $i
done
ckpt_complete
"""
    run = background(shell, text)
    killed = 0
    while run.poll() is None:
        time.sleep(0.02 + 0.013 * (killed % 7))
        for pid in sessions(run.pid):
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    assert run.wait() == 0, error(workspace)
    assert killed > 0
    assert effects(workspace) == [str(number) for number in range(1, 31)]
    assert record(workspace)["status"] == "completed"


SESSIONS = {
    "is not there": "exit 1",
    "ends while it is asked": "head -c 3 >/dev/null; exit 0",
    # Does as it is told, and dies before it can say so.
    "dies before its answer": (
        "python3 -c \"import os,sys; n=b''\nwhile n[-1:] != b'\\\\0': n += os.read(0, 1)\n"
        "t=[]\nwhile len(t) < int(n[:-1]):\n w=b''\n while w[-1:] != b'\\\\0': w += os.read(0, 1)\n t.append(w[:-1])\n"
        "os.close(0); null=os.open('/dev/null', os.O_RDWR); os.dup2(null, 1)\n"
        "sys.exit(__import__('subprocess').run([os.environ['REAL'], *t], stdout=null, stderr=null).returncode)\""
    ),
}


@with_session
@pytest.mark.parametrize("how", SESSIONS)
def test_a_session_that_fails(workspace: Workspace, shell: str, how: str) -> None:
    """Each question may have been answered or not, and is asked again: no step is lost, none is run twice."""
    tool = executable(
        workspace.path / "tool",
        f'#!/bin/sh\nif [ "$1" = session ]; then\n{SESSIONS[how]}\nelse\nexec {shlex.quote(TOOL)} "$@"\nfi\n',
    )
    text = """
f() { ./effect "$1"; }
ckpt_start deploy --steps a,b,c,d
ckpt_step a f a
ckpt_once b ./effect b
ckpt_once --verify true c ./effect c
ckpt_step d ./fails 3 || ./effect $?
ckpt_step d ./effect d
ckpt_complete
"""
    passed(play(workspace, shell, text, env={"CHECKPOINT_TOOL": str(tool), "REAL": TOOL}))
    assert effects(workspace) == ["a", "b", "c", "3", "d"]
    completed(workspace, "a,b,c,d")


@linux
@most
def test_ownership_ends_with_the_script(workspace: Workspace, shell: str, background: Begin) -> None:
    run = background(shell, "ckpt_start deploy --steps a,b\nckpt_step a ./pause here")
    arrived(workspace, "here")
    assert workspace.tool("start", "deploy", "--steps", "a,b").code == 11
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    began = time.monotonic()
    taken = workspace.tool("start", "deploy", "--steps", "a,b", "--json")
    assert taken.code == 0, taken
    assert taken.json["token"] == 2
    assert time.monotonic() - began < 5, "at once: there is nothing to wait for"
    no_session(run.pid)


@linux
@most
@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$"])
def test_a_child_that_outlives_the_script_keeps_nothing_alive(
    workspace: Workspace, shell: str, end: str, background: Begin
) -> None:
    """It may hold every descriptor that the script had, those of the session too."""
    executable(workspace.path / "daemon", "#!/bin/sh\n./pause daemon &\n")
    run = background(shell, f"ckpt_start deploy --steps a,b\nckpt_step a ./daemon\n./pause outlives &\n{end}")
    arrived(workspace, "daemon")
    assert run.wait(20) in (0, -9)
    no_session(run.pid)
    assert workspace.tool("start", "deploy", "--steps", "a,b").code == 0


@linux
@mostly_posix
def test_a_subshell_that_outlives_the_script_is_not_its_owner(workspace: Workspace, shell: str, background: Begin) -> None:
    text = """
ckpt_start deploy --steps a,b
( ./pause later; ckpt_step b ./effect late; echo "late $?" > late ) &
ckpt_step a true
exit 0
"""
    run = background(shell, text, mode="")
    assert run.wait(20) == 0
    no_session(run.pid)
    assert workspace.tool("start", "deploy", "--steps", "a,b").code == 0
    let_go(workspace, "later")
    late = workspace.path / "late"
    until(lambda: late.exists() and late.read_text().endswith("\n"), "the subshell has tried")
    assert effects(workspace) == [], "somebody else owns the run now"
    assert late.read_text() != "late 0\n"


@linux
@with_session
@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$"])
def test_the_session_does_not_hold_the_output_of_the_script(workspace: Workspace, shell: str, end: str) -> None:
    """Or $(the script) would wait for it."""
    argv = shlex.join(script(workspace, shell, f"ckpt_start deploy --steps a\nckpt_step a echo $$\n{end}"))
    began = time.monotonic()
    result = workspace.run("/bin/sh", "-c", f'x=$({argv} 2>&1); echo "$x"', env=surroundings(workspace))
    assert time.monotonic() - began < 10
    pid = next(line for line in result.out.splitlines() if line.isdigit())
    no_session(int(pid))


@most
def test_a_run_taken_over_is_not_written_to_any_more(workspace: Workspace, shell: str, background: Begin) -> None:
    text = """
ckpt_start deploy --steps a,b
ckpt_step a ./pause here
./effect $?
ckpt_step b ./effect b
./effect $?
"""
    run = background(shell, text, mode="set -u")
    arrived(workspace, "here")
    assert workspace.tool("resume", "deploy", "--steal", "--reason", "test").code == 0
    let_go(workspace, "here")
    run.wait(20)
    assert effects(workspace) == ["19", "19"]
    assert steps(workspace)["a"] != "completed"
    assert steps(workspace)["b"] == "pending"


# Without the program, or with it in an odd place


@every
@pytest.mark.parametrize("mode", ["", "set -eu"])
def test_without_the_program_no_step_is_run(workspace: Workspace, shell: str, mode: str) -> None:
    """The functions were kept in a file, and checkpoint-tool is not to be found."""
    (workspace.path / "functions").write_text(workspace.tool("shell-init", flavour(shell), env=surroundings(workspace)).out)
    (workspace.path / "empty").mkdir()
    text = "ckpt_start deploy --steps a\necho ran > ran\nckpt_step a echo ran\nckpt_complete\necho end"
    result = workspace.run(*script(workspace, shell, text, mode, ". ./functions"), env={"PATH": str(workspace.path / "empty")})
    assert result.code == 127, result
    assert "checkpoint-tool" in result.err
    assert "PATH" in result.err, "says what to do"
    assert result.out == ""
    assert not (workspace.path / "ran").exists()


@most
@pytest.mark.parametrize("mode", ["", "set -eu"])
def test_without_the_program_the_usual_line_brings_no_function(workspace: Workspace, shell: str, mode: str) -> None:
    (workspace.path / "empty").mkdir()
    init = bring(shell).removesuffix("")
    text = "ckpt_start deploy --steps a\nckpt_step a echo ran\nckpt_complete"
    result = workspace.run(*script(workspace, shell, text, mode, init), env={"PATH": str(workspace.path / "empty")})
    assert result.code == 127, result
    assert result.out == ""
    assert "checkpoint-tool" in result.err


@most
def test_the_program_goes_missing_while_the_script_runs(workspace: Workspace, shell: str) -> None:
    """It is being replaced, say."""
    (workspace.path / "bin").mkdir()
    executable(workspace.path / "bin" / "checkpoint-tool", f'#!/bin/sh\nexec {shlex.quote(TOOL)} "$@"\n')
    text = """
ckpt_start deploy --steps a,b
ckpt_step a ./effect a
rm bin/checkpoint-tool
ckpt_step b ./effect b
./effect end
"""
    result = play(workspace, shell, text, env={"PATH": f"{workspace.path / 'bin'}:/usr/bin:/bin"})
    if shell in SESSION:
        passed(result)
        assert effects(workspace) == ["a", "b", "end"], "the session runs already"
    else:
        assert result.code == 127, result
        assert effects(workspace) == ["a"]


@mostly_posix
def test_a_path_that_the_script_sets_afterwards(workspace: Workspace, shell: str) -> None:
    """Either it works, or no step is run."""
    text = "PATH=/usr/bin:/bin\nckpt_start deploy --steps a,b\nckpt_step a ./effect a\n(ckpt_step b ./effect b)\nckpt_complete"
    result = play(workspace, shell, text, mode="")
    if result.code == 0:
        assert effects(workspace) == ["a", "b"]
        completed(workspace, "a,b")
    else:
        assert effects(workspace) == []
        assert "checkpoint-tool" in result.err


@most
@pytest.mark.parametrize("how", ["PATH", "CHECKPOINT_TOOL"])
def test_the_program_in_an_odd_folder(workspace: Workspace, shell: str, how: str) -> None:
    folder = workspace.path / 'it\'s a "folder" $HOME `x` ; *'
    folder.mkdir()
    tool = executable(folder / "checkpoint-tool", f'#!/bin/sh\necho called >> "$CALLS"\nexec {shlex.quote(TOOL)} "$@"\n')
    calls = workspace.path / "calls"
    env = {"CALLS": str(calls), "PATH": f"{folder}:/usr/bin:/bin"}
    init = None
    if how == "CHECKPOINT_TOOL":
        env |= {"CHECKPOINT_TOOL": str(tool), "PATH": "/usr/bin:/bin"}
        init = bring(shell).replace("checkpoint-tool", "$CHECKPOINT_TOOL" if shell == "fish" else '"$CHECKPOINT_TOOL"')
    text = "ckpt_start deploy --steps a,b\nckpt_step a ./same hi\nckpt_step b true | cat\nckpt_complete"
    passed(play(workspace, shell, text, env=env, init=init), "hi\n")
    completed(workspace, "a,b")
    assert len(calls.read_text().splitlines()) > 1


@most
def test_a_variable_that_names_no_program(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy --steps a\nckpt_step a ./effect a\nckpt_complete"
    result = play(workspace, shell, text, mode="", env={"CHECKPOINT_TOOL": str(workspace.path / "not there")})
    assert result.code != 0, result
    assert "not there" in result.err
    assert effects(workspace) == []
    assert not workspace.store.exists()


# The text itself


@pytest.mark.parametrize(
    ("shell", "check"),
    [
        *(("bash", "bash -n"), ("bash", "bash --posix -n"), ("zsh", "zsh -n"), ("fish", "fish --no-execute")),
        *(("sh", f"{shell} -n") for shell in ("dash", "busybox sh", "bash", "zsh")),
    ],
)
def test_the_shell_can_parse_it(workspace: Workspace, shell: str, check: str) -> None:
    program, *options = check.split()
    text = workspace.tool("shell-init", shell)
    assert text.code == 0
    (workspace.path / "functions").write_text(text.out)
    passed(workspace.run(need_program(program), *options, "functions"))


def test_shellcheck_finds_nothing(workspace: Workspace) -> None:
    program = need_program("shellcheck")
    for shell in ("sh", "bash"):
        text = workspace.tool("shell-init", shell).out
        passed(workspace.run(program, "--shell", shell, "--severity", "warning", "-", input=text))


@most
def test_to_bring_the_functions_prints_and_makes_nothing(workspace: Workspace, shell: str) -> None:
    again = f"{bring(shell)}\n" * 2
    passed(play(workspace, shell, again, mode="set -eu"))
    passed(play(workspace, shell, again, mode=""))
    assert not (workspace.path / "memory").exists()


@most
def test_to_bring_the_functions_again_changes_nothing(workspace: Workspace, shell: str) -> None:
    text = f"ckpt_start deploy --steps a,b\nckpt_step a echo 1\n{bring(shell)}\nckpt_step b echo 2\necho $$\nckpt_complete"
    result = play(workspace, shell, text)
    assert (result.code, result.out[:4], result.err) == (0, "1\n2\n", "")
    no_session(int(result.out.split()[2]))


@pytest.mark.parametrize("shell", ["bash", "zsh", "busybox"])
def test_the_functions_for_sh_work_in_all_of_them(workspace: Workspace, shell: str) -> None:
    lines = [
        "ckpt_start deploy --steps a,b,c",
        "ckpt_step a echo 1",
        "(ckpt_step b echo 2)",
        "ckpt_once --verify true c echo 3",
    ]
    text = "\n".join([*lines, "ckpt_complete"])
    passed(play(workspace, shell, text, init=bring("dash")), "1\n2\n3\n")


@pytest.mark.parametrize("shell", ["tcsh", "", "BASH", "/bin/bash"])
def test_other_shells_are_refused(workspace: Workspace, shell: str) -> None:
    result = workspace.tool("shell-init", shell)
    assert (result.code, result.out) == (2, "")


@mostly_posix
def test_a_script_that_is_read_from_standard_input(workspace: Workspace, shell: str) -> None:
    """Neither the functions nor a session may read on in it."""
    steps_ = "ckpt_step a echo 1\n(ckpt_step b echo 2)\nckpt_once --verify cat c echo 3"
    text = f"set -eu\n{bring(shell)}\nckpt_start deploy --steps a,b,c\n{steps_}\nckpt_complete\necho end\n"
    argv = [need_program(SHELLS[shell][0]), *SHELLS[shell][1:]]
    passed(workspace.run(*argv, env=surroundings(workspace), input=text), "1\n2\n3\nend\n")


@with_session
def test_a_step_in_a_session_starts_no_process(workspace: Workspace, shell: str) -> None:
    """200 steps start as many processes as 20."""
    counts = []
    for number in (20, 200):
        text = f"""
f() {{ :; }}
ckpt_start w{number}
i=0
while [ $i -lt {number} ]; do i=$((i + 1)); ckpt_step --add s$i f; done
ckpt_complete
"""
        traced = [
            need_program("strace"),
            *("-f", "-qq", "-e", "trace=clone,clone3,fork,vfork", "-e", "signal=none", "-o", "log"),
        ]
        passed(workspace.run(*traced, *script(workspace, shell, text), env=surroundings(workspace)))
        assert len(record(workspace, f"w{number}")["steps"]) == number
        counts.append(len(re.findall(r"(?m) = \d+$", (workspace.path / "log").read_text())))
    assert counts[0] == counts[1]


# At a terminal


class Terminal(NamedTuple):
    """An interactive shell on a pseudo-terminal."""

    process: subprocess.Popen[bytes]
    master: int

    def say(self, line: str) -> None:
        os.write(self.master, line.encode())

    def expect(self, text: str) -> str:
        seen = b""
        deadline = time.monotonic() + 20
        while text.encode() not in seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not seen: {seen.decode(errors='replace')}"
            try:
                seen += os.read(self.master, 65536)
            except OSError:
                raise AssertionError(f"the shell ended before {text!r}: {seen.decode(errors='replace')}") from None
        return seen.decode(errors="replace")

    def run(self, line: str) -> str:
        """Type a line; what is shown until it is done."""
        # What is typed is shown as well, but with the quotes in it.
        self.say(f"{line}; echo DO''NE\r")
        return self.expect("DONE")


@pytest.fixture
def terminal(workspace: Workspace) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def begin(shell: str, env: dict[str, str] | None = None) -> Terminal:
        stubs(workspace)
        program = [need_program(SHELLS[shell][0]), *SHELLS[shell][1:], *(["--norc"] if shell == "bash" else []), "-i"]
        master, slave = os.openpty()
        argv = [need_program("setsid"), "-c", "env", "-u", "CHECKPOINT_OWNER", *program]
        environ = workspace.environ(surroundings(workspace, {"TERM": "dumb", "PS1": "$ "} | (env or {})))
        process = subprocess.Popen(argv, cwd=workspace.path, env=environ, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        opened.append(Terminal(process, master))
        return opened[-1]

    yield begin
    for one in opened:
        try:
            os.killpg(one.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(one.master)
        one.process.wait()


@every
def test_at_a_terminal(workspace: Workspace, shell: str, terminal: Callable[..., Terminal]) -> None:
    shown = terminal(shell)
    shown.run(bring(shell))
    shown.run("ckpt_start deploy --steps a,b,c")
    assert "hello" in shown.run("ckpt_step a ./same hel''lo")
    # Ctrl-C ends the step; not the shell, nor what it owns.
    shown.say("ckpt_step b ./pause here\r")
    arrived(workspace, "here")
    shown.say("\x03")
    shown.run("true")
    assert steps(workspace)["b"] != "completed"
    assert workspace.tool("start", "deploy", "--steps", "a,b,c").code == 11
    let_go(workspace, "here")
    shown.run("ckpt_step b ./pause here")
    shown.run("ckpt_step c true")
    shown.run("ckpt_complete")
    completed(workspace, "a,b,c")
    shown.say("exit\r")
    assert shown.process.wait(10) == 0, "no job stands in the way"


@most
def test_at_a_terminal_a_mistake_does_not_end_the_shell(
    workspace: Workspace, shell: str, terminal: Callable[..., Terminal]
) -> None:
    shown = terminal(shell)
    shown.run(bring(shell).removesuffix(""))
    for line in ("ckpt_step", "ckpt_complete", "ckpt_start 'No!'", "ckpt_start deploy --steps a", "ckpt_step x true"):
        shown.run(line)
    shown.run("ckpt_step a ./fails 3")
    assert steps(workspace) == {"a": "failed"}


@most
def test_at_a_terminal_a_missing_program_does_not_end_the_shell(
    workspace: Workspace, shell: str, terminal: Callable[..., Terminal]
) -> None:
    """Else a line in a start-up file could lock a person out."""
    (workspace.path / "functions").write_text(workspace.tool("shell-init", flavour(shell), env=surroundings(workspace)).out)
    shown = terminal(shell, {"PATH": "/usr/bin:/bin"})
    assert "checkpoint-tool" in shown.run(". ./functions")
    assert "alive" in shown.run("printf 'al%s\\n' ive")


@linux
@most
def test_closing_the_terminal_ends_the_ownership(workspace: Workspace, shell: str, terminal: Callable[..., Terminal]) -> None:
    shown = terminal(shell)
    shown.run(bring(shell))
    shown.run("ckpt_start deploy --steps a,b")
    shown.run("ckpt_step a true")
    assert workspace.tool("start", "deploy", "--steps", "a,b").code == 11
    shown.process.send_signal(signal.SIGHUP)
    shown.process.wait(10)
    no_session(shown.process.pid)
    assert workspace.tool("start", "deploy", "--steps", "a,b").code == 0


# The session, through pipes


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def request(*args: str | bytes) -> bytes:
    words = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    return b"".join(word + b"\0" for word in (str(len(words)).encode(), *words))


def answers(data: bytes) -> list[Answer]:
    """What a session printed, which must be whole answers."""
    parts = data.split(b"\0")
    assert parts.pop() == b"", data[-1000:]
    assert len(parts) % 3 == 0, data[:1000]
    return [Answer(int(code), out.decode(), err.decode()) for code, out, err in zip(*[iter(parts)] * 3, strict=True)]


def talk(workspace: Workspace, data: bytes, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """All requests at once, then the end of the input."""
    argv = [TOOL, "session", "--owner-pid", str(os.getpid())]
    done = subprocess.run(
        argv, cwd=workspace.path, env=workspace.environ(env), input=data, capture_output=True, timeout=20, check=False
    )
    assert b"Traceback" not in done.stdout + done.stderr, done
    assert done.returncode in (0, 2), done
    return done


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """The process that a session belongs to."""
    with subprocess.Popen([need_program("sleep"), "300"]) as running:
        yield running
        running.kill()


def unread(pipe: Any) -> int:
    """How many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)


class Session:
    """A session that is talked to step by step."""

    def __init__(self, workspace: Workspace, owner: int) -> None:
        argv = [TOOL, "session", "--owner-pid", str(owner)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(argv, cwd=workspace.path, env=workspace.environ(), bufsize=0, **pipes)
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.input, self.output, self.error = self.process.stdin, self.process.stdout, self.process.stderr
        self.seen = b""

    def ask(self, *args: str | bytes) -> Answer:
        self.send(request(*args))
        return self.read()

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.input.write(view) :]

    def read(self) -> Answer:
        deadline = time.monotonic() + 20
        while self.seen.count(b"\0") < 3:
            ready, _, _ = select.select([self.output], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no answer: {self.seen!r}"
            part = os.read(self.output.fileno(), 65536)
            assert part, f"it ended: {self.seen!r} {self.error.read()!r}"
            self.seen += part
        *first, self.seen = self.seen.split(b"\0", 3)
        return answers(b"\0".join([*first, b""]))[0]

    def ended(self, seconds: float = 5) -> str:
        """What it said at its end, which has come or is to come by itself."""
        self.process.wait(seconds)
        return self.error.read().decode()


@pytest.fixture
def session(workspace: Workspace, owner: subprocess.Popen[bytes]) -> Iterator[Session]:
    one = Session(workspace, owner.pid)
    yield one
    one.process.kill()
    one.process.wait()
    for stream in (one.input, one.output, one.error):
        stream.close()


def test_a_run_from_start_to_end_in_one_session(workspace: Workspace, session: Session, owner: subprocess.Popen[bytes]) -> None:
    started = session.ask("start", "deploy", "--steps", "a,b", "--owner-pid", str(owner.pid), "--json")
    assert (started.code, started.err) == (0, f"checkpoint-tool: made a new store: {workspace.store}")
    assert not started.out.endswith("\n"), "without its last newline"
    assert json.loads(started.out)["next"] == "a"
    assert workspace.record()["lease"]["pid"] == owner.pid
    assert session.ask("begin", "deploy", "a") == (0, "begun", "")
    assert workspace.record()["steps"][0]["status"] == "begun", "written when the answer comes"
    assert session.ask("end", "deploy", "a", "--exit-code", "0") == (0, "completed", "")
    assert session.ask("begin", "deploy", "a").out == "done"
    assert session.ask("begin", "deploy", "b", "--once") == (0, "begun", "")
    assert session.ask("end", "deploy", "b", "--exit-code", "3").out == "in_doubt"
    assert session.ask("begin", "deploy", "b", "--ask").out == "in_doubt"
    assert session.ask("end", "deploy", "b", "--in-place").out == "completed"
    assert session.ask("complete", "deploy").code == 0
    assert session.ask("status", "deploy").code == 0
    assert "deploy" in session.ask("list", "--all").out
    session.input.close()
    assert session.ended() == ""
    assert session.process.returncode == 0


def test_requests_in_a_row_are_answered_in_order(workspace: Workspace) -> None:
    names = [f"w{number}" for number in range(50)]
    done = talk(workspace, b"".join(request("start", name) + request("show", name, "--json") for name in names))
    found = answers(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [one.code for one in found] == [0] * 100
    assert [json.loads(one.out)["id"] for one in found[1::2]] == names


def test_a_request_that_comes_byte_by_byte(session: Session) -> None:
    for byte in request("start", "größe", "--note", "größe") + request("start", "deploy", "--note", "größe"):
        session.send(bytes([byte]))
    assert [session.read().code, session.read().code] == [2, 0]


def test_errors_are_answers_and_the_session_goes_on(workspace: Workspace, session: Session) -> None:
    session.ask("start", "deploy", "--steps", "a")
    cases: list[tuple[tuple[str | bytes, ...], int]] = [
        (("begin", "deploy", "nope"), 10),
        (("show", "nope"), 10),
        (("begin",), 2),
        (("begin", "deploy", "a", "--frobnicate"), 2),
        (("complete", "deploy"), 15),
        (("frobnicate",), 2),
        (("",), 2),
        ((b"\xff",), 2),
        (("start", b"\xff\xfe"), 2),
        (("start", "Über"), 2),
        (("--nope",), 2),
        (("end", "deploy", "a", "--exit-code", "many"), 2),
        (("resume", "deploy", "--wait", "x"), 2),
        (("start", "x", "--data", "{"), 2),
        (("start", "x", "--plan", "no-such-file"), 2),
    ]
    for args, code in cases:
        answer = session.ask(*args)
        assert answer.code == code, (args, answer)
        assert answer.err.startswith("checkpoint-tool: "), (args, answer)
        assert "Traceback" not in answer.err
        assert answer.out == ""
        assert session.ask("show", "deploy", "--json").code == 0, args
    assert sorted(path.name for path in workspace.store.glob("*.json")) == ["deploy.json"]


@pytest.mark.parametrize("args", [("--help",), ("begin", "--help"), ("--version",), ("-h",)])
def test_help_is_an_answer(session: Session, args: tuple[str, ...]) -> None:
    answer = session.ask(*args)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out != ""
    assert session.ask("--version").code == 0


@pytest.mark.parametrize(
    "args",
    [
        ("run", "deploy", "a", "--", "touch", "ran"),
        ("run", "deploy", "a", "--json", "--", "touch", "ran"),
        ("exec", "other", "--", "touch", "ran"),
        ("session", "--owner-pid", "1"),
        ("--debug", "run", "deploy", "a", "--", "touch", "ran"),
        ("--debug", "exec", "other", "--", "touch", "ran"),
        ("--debug", "session", "--owner-pid", str(os.getpid())),
        ("--", "run", "deploy", "a", "--", "touch", "ran"),
    ],
)
def test_verbs_that_need_the_streams_are_refused(workspace: Workspace, session: Session, args: tuple[str, ...]) -> None:
    session.ask("start", "deploy", "--steps", "a")
    answer = session.ask(*args)
    assert answer.code == 2, answer
    assert answer.err != ""
    assert not (workspace.path / "ran").exists()
    assert [path.name for path in workspace.store.glob("*.json")] == ["deploy.json"]
    assert session.ask("begin", "deploy", "a").out == "begun"


@pytest.mark.parametrize(
    "args", [("update", "deploy", "--note", "-"), ("start", "other", "--data", "-"), ("start", "x", "--plan", "-")]
)
def test_a_value_from_standard_input_is_not_taken_from_the_requests(workspace: Workspace, args: tuple[str, ...]) -> None:
    found = answers(talk(workspace, request("start", "deploy") + request(*args) + request("show", "deploy", "--json")).stdout)
    assert len(found) == 3
    assert found[1].code in (0, 2), found[1]
    assert json.loads(found[2].out)["notes"] == []


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"abc\0",
            b"-1\0",
            b"+1\0start\0",
            b"1.0\0list\0",
            b"1e0\0list\0",
            b" 1\0list\0",
            b"0x1\0list\0",
            b"1_0\0" + b"x\0" * 10,
        ),
        *("\N{FULLWIDTH DIGIT ONE}\0list\0".encode(), b"\xff\0list\0", b"\0", b"\0\0\0\0", b"\n\0", b"1\n\0list\0", b"0\0"),
        *(b"GET / HTTP/1.1\r\n\r\n\0", b"99999999999999999999\0list\0", b"9" * 4301 + b"\0list\0", b"9" * 100_000),
        *(b"\xff" * 10_000, b"1" * 2_000_000 + b"\0"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_garbage_ends_the_session_and_is_not_obeyed(workspace: Workspace, data: bytes) -> None:
    done = talk(workspace, data + request("start", "deploy"))
    assert all(answer.code == 2 for answer in answers(done.stdout)), done
    assert done.returncode == 2 or done.stdout, "said by its exit status, or in an answer"
    assert not workspace.store.exists()


def test_a_truncated_request_is_not_carried_out(workspace: Workspace) -> None:
    """The script died while it wrote: half a request may mean anything, "--steps a" of "--steps ab" too."""
    whole = request("start", "deploy", "--steps", "ab")
    for kept in (1, 2, 5, 8, 15, len(whole) - 3, len(whole) - 2, len(whole) - 1):
        assert talk(workspace, whole[:kept]).stdout == b""
    assert not workspace.store.exists()


@pytest.mark.parametrize("count", [b"10001", b"1000000000", b"18446744073709551616", b"9" * 4299])
def test_a_huge_count_takes_no_memory_and_ends(workspace: Workspace, count: bytes) -> None:
    done = talk(workspace, count + b"\0" + b"x\0" * 1000)
    assert done.stdout == b""


def test_a_huge_argument_is_refused_and_the_session_goes_on(workspace: Workspace, session: Session) -> None:
    session.ask("start", "deploy", "--steps", "a")
    huge = "x" * (5 << 20)
    for args in (("update", "deploy", "--note", huge), ("begin", "deploy", huge), ("show", huge), (huge,)):
        answer = session.ask(*args)
        assert answer.code not in (0, 1), answer.code
        assert len(answer.err) < 10_000, f"words for people, not five megabytes: {answer.err[:200]}"
    assert session.ask("begin", "deploy", "a").out == "begun"
    assert workspace.record()["notes"] == []


def test_many_arguments_in_one_request(session: Session) -> None:
    assert session.ask("start", "deploy", *("x" for _ in range(9_000))).code == 2
    assert session.ask("--version").code == 0


def test_text_comes_back_as_it_was_given(workspace: Workspace, session: Session) -> None:
    texts = ["größe ✓", "line\nline", "tab\t\x1b[31m", "'\"`$(x)\\"]
    assert session.ask("start", "deploy").code == 0
    for text in texts:
        assert session.ask("update", "deploy", "--note", text).code == 0
    found = json.loads(session.ask("show", "deploy", "--json").out)
    assert [note["text"] for note in found["notes"]] == [note["text"] for note in workspace.record()["notes"]] == texts


def test_invalid_utf8_is_not_written(workspace: Workspace, session: Session) -> None:
    assert session.ask("start", "deploy", "--note", b"\xff\xfe").code == 2
    assert not workspace.file().exists()
    assert session.ask("--version").code == 0


def test_no_input_at_all(workspace: Workspace) -> None:
    done = talk(workspace, b"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not workspace.store.exists()


@pytest.mark.parametrize("options", [[], *(["--owner-pid", pid] for pid in ("0", "-1", "x", "99999999", "9" * 30))])
def test_a_session_wants_an_owner_that_lives(workspace: Workspace, options: list[str]) -> None:
    result = workspace.tool("session", *options, input=request("start", "deploy"))
    assert (result.code, result.out) == (2, ""), result
    assert result.err.startswith("checkpoint-tool: ")
    assert not workspace.store.exists()


@linux
def test_a_session_ends_with_its_owner_though_its_pipe_is_open(
    workspace: Workspace, session: Session, owner: subprocess.Popen[bytes]
) -> None:
    assert session.ask("start", "deploy", "--owner-pid", str(owner.pid)).code == 0
    # Not waited for yet: a zombie is no owner.
    owner.kill()
    session.process.wait(5)
    assert workspace.tool("start", "deploy").code == 0


@linux
def test_a_session_ends_with_its_owner_in_the_middle_of_a_request(session: Session, owner: subprocess.Popen[bytes]) -> None:
    assert session.ask("--version").code == 0
    session.send(b"3\0start\0dep")
    owner.kill()
    assert session.ended() == ""


@linux
def test_a_session_ends_with_its_owner_when_nobody_reads_its_answers(session: Session, owner: subprocess.Popen[bytes]) -> None:
    """It stands in a write to a pipe that is full, and some child of the script holds the other end."""
    assert session.ask("--version").code == 0
    session.send(request("start", "--help") * 100)
    until(lambda: unread(session.output) > 30_000, "the pipe is filling")
    time.sleep(0.5)
    owner.kill()
    assert session.ended() == ""


def test_an_owner_that_dies_before_the_session_looks(workspace: Workspace) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    one = Session(workspace, dead.pid)
    assert "Traceback" not in one.ended(10)
    assert one.process.returncode == 2
    for stream in (one.input, one.output, one.error):
        stream.close()


def test_answers_that_nobody_can_read(workspace: Workspace, session: Session) -> None:
    assert session.ask("start", "deploy", "--steps", "a").code == 0
    session.output.close()
    session.send(request("begin", "deploy", "a"))
    until(lambda: workspace.record()["steps"][0]["status"] == "begun", "it is done all the same")
    session.input.close()
    assert "Traceback" not in session.ended()


def test_standard_output_that_is_full(workspace: Workspace) -> None:
    full = Path("/dev/full")
    if not full.exists():
        lacking("no /dev/full")
    argv = [TOOL, "session", "--owner-pid", str(os.getpid())]
    with full.open("wb") as out:
        done = subprocess.run(
            argv,
            cwd=workspace.path,
            input=request("start", "deploy"),
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=20,
            check=False,
        )
    assert b"Traceback" not in done.stderr
    assert workspace.file().exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_session_quietly_if_at_all(session: Session, number: signal.Signals) -> None:
    assert session.ask("--version").code == 0
    session.process.send_signal(number)
    time.sleep(0.05)
    session.input.close()
    assert session.ended() == ""


def test_the_store_may_be_named_in_each_request(workspace: Workspace, session: Session) -> None:
    assert session.ask("start", "deploy", "--store", "elsewhere").code == 0
    assert (workspace.path / "elsewhere" / "deploy.json").exists()
    assert not workspace.store.exists()
    assert session.ask("show", "deploy").code == 10


def test_two_sessions_contend_like_two_programs(workspace: Workspace, session: Session, owner: subprocess.Popen[bytes]) -> None:
    second = Session(workspace, os.getpid())
    assert session.ask("start", "deploy", "--owner", "one", "--owner-pid", str(owner.pid)).code == 0
    assert second.ask("start", "deploy", "--owner", "two", "--owner-pid", str(os.getpid())).code == 11
    assert session.ask("release", "deploy", "--owner", "one").code == 0
    assert second.ask("start", "deploy", "--owner", "two", "--owner-pid", str(os.getpid())).code == 0
    second.process.communicate()


def test_a_session_sees_what_others_wrote(workspace: Workspace, session: Session) -> None:
    assert session.ask("start", "deploy", "--steps", "a,b", "--owner", "tester").code == 0
    assert workspace.tool("update", "deploy", "--complete", "a").code == 0
    assert session.ask("begin", "deploy", "a").out == "done"
    damaged = workspace.file()
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert session.ask("begin", "deploy", "b").code == 12


@linux
def test_a_session_keeps_neither_memory_nor_descriptors(session: Session) -> None:
    def held() -> tuple[int, int]:
        text = Path(f"/proc/{session.process.pid}/status").read_text()
        descriptors = len(list(Path(f"/proc/{session.process.pid}/fd").iterdir()))
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]), descriptors

    session.ask("start", "deploy", "--steps", "a")
    marks = []
    for _ in range(2):
        for _ in range(150):
            session.ask("show", "deploy", "--json")
            session.ask("begin", "deploy", "nope")
        marks.append(held())
    assert marks[1][0] - marks[0][0] < 4096, "kilobytes"
    assert marks[1][1] == marks[0][1]


WORDS = st.one_of(
    st.sampled_from(
        b"start deploy begin end complete list --steps a,b a --exit-code 0 --json --help -- - @x prune repair resume".split()
    ),
    st.binary(max_size=20).map(lambda word: word.replace(b"\0", b"")),
)
FRAMES = st.lists(WORDS, max_size=6).map(lambda words: request(*words))
NOISE = st.one_of(st.binary(max_size=40), st.sampled_from([b"1\0", b"0\0", b"-1\0", b"99\0list\0", b"\0\0"]))


# Not made smaller when it fails: each example is a process.
@settings(max_examples=60, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(FRAMES, max_size=8), noise=st.one_of(st.just(b""), NOISE), rest=st.lists(FRAMES, max_size=2))
def test_whatever_it_is_sent_it_ends_and_touches_no_other_store(
    make_workspace: Callable[[], Workspace], workspace: Workspace, requests: list[bytes], noise: bytes, rest: list[bytes]
) -> None:
    if not workspace.store.exists():
        assert workspace.tool("start", "mine", "--steps", "a").code == 0
    before = workspace.snapshot()
    told = make_workspace().path / "told"
    done = talk(workspace, b"".join([*requests, noise, *rest]), {"CHECKPOINT_STORE": str(told)})
    found = answers(done.stdout)
    assert all(answer.code != 1 for answer in found), found
    if not noise:
        assert len(found) >= len(requests) or b"0\0" in requests, "an answer to each"
    assert workspace.snapshot() == before
    assert list(told.parent.iterdir()) in ([], [told])


# What a killed script leaves behind


@linux
@every
def test_the_command_of_a_killed_script_is_not_run_beside_itself(workspace: Workspace, shell: str, background: Begin) -> None:
    text = "ckpt_start deploy --steps a\nckpt_step a ./pause here\nckpt_complete"
    first = background(shell, text)
    arrived(workspace, "here")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    (workspace.path / "here").unlink()
    second = background(shell, text)
    time.sleep(1.5)
    assert not (workspace.path / "here").exists(), "the step runs twice at once"
    assert second.poll() is None, "it waits for what is left"
    let_go(workspace, "here")
    assert second.wait(20) == 0, error(workspace)


@linux
def test_the_command_of_a_killed_script_that_stays_is_an_error(workspace: Workspace, background: Begin) -> None:
    text = "ckpt_start deploy --steps a\nckpt_step a ./pause here"
    first = background("bash", text)
    arrived(workspace, "here")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    result = play(workspace, "bash", text)
    assert result.code == 11, result
    assert "it or what it started still runs, though its owner is gone" in result.err
    stale = workspace.selfcheck("--threshold", "1s")
    assert "slow" in stale.out
    let_go(workspace, "here")


@linux
def test_a_part_of_a_killed_script_is_not_run_beside_itself(workspace: Workspace, background: Begin) -> None:
    """A subshell: its environment is the script's own, from before the step."""
    work = "work() { ( touch here; read -r _ < fifo; echo effect >> effects ) | cat; }"
    text = f"ckpt_start deploy --steps a\n{work}\nckpt_step a work"
    os.mkfifo(workspace.path / "fifo")
    first = background("bash", text)
    arrived(workspace, "here")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = background("bash", text.replace("read -r _ < fifo; ", ""))
    time.sleep(1.5)
    assert not (workspace.path / "effects").exists(), "the step runs twice at once"
    (workspace.path / "fifo").write_text("go\n")
    assert second.wait(20) == 0, error(workspace)
    assert (workspace.path / "effects").read_text() == "effect\n" * 2


@linux
def test_what_an_earlier_step_left_running_is_in_nobodys_way(workspace: Workspace) -> None:
    text = "ckpt_start deploy --steps serve,b\nckpt_step serve ./serve\nckpt_step b kill -9 $$"
    executable(workspace.path / "serve", "#!/bin/sh\nsleep 20 >/dev/null 2>&1 </dev/null & echo $! > pid\n")
    assert play(workspace, "bash", text).code in (-9, 137)
    began = time.monotonic()
    result = play(workspace, "bash", text.replace("kill -9 $$", "true"))
    os.kill(int((workspace.path / "pid").read_text()), signal.SIGKILL)
    assert result.code == 0, result
    assert time.monotonic() - began < 6


@every
def test_a_command_is_told_its_step_and_key(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy --steps a,b\nckpt_step a ./told\nckpt_step b ./told\n./told\nckpt_complete"
    executable(workspace.path / "told", '#!/bin/sh\necho "${CHECKPOINT_STEP-none} ${CHECKPOINT_IDEMPOTENCY_KEY-none}"\n')
    result = play(workspace, shell, text)
    assert result.code == 0, result
    run_id = workspace.tool("list", "--all", "--json").lines[0]["run_id"]
    assert result.out.splitlines() == [f"a {run_id}/a", f"b {run_id}/b", "none none"]


@linux
def test_a_daemon_that_a_killed_step_has_started_is_in_nobodys_way(workspace: Workspace, background: Begin) -> None:
    """It has a session of its own, and so have its children."""
    executable(workspace.path / "serve", "#!/bin/sh\n(sleep 30; :) & echo $$ > pid; wait\n")
    first = background("bash", "ckpt_start deploy --steps a\nstart() { setsid ./serve & ./pause here; }\nckpt_step a start")
    arrived(workspace, "here")
    until(lambda: (workspace.path / "pid").exists(), "it serves")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    let_go(workspace, "here")
    again = play(workspace, "bash", "ckpt_start deploy --steps a\nckpt_step a true\nckpt_complete")
    os.killpg(int((workspace.path / "pid").read_text()), signal.SIGKILL)
    assert again.code == 0, again


# What ends a script within a step, and what the step is then

ENDS = {
    "a line": ("fail() { ./effect in; ./fails 7; ./effect beyond; }", "fail", 7),
    "return": ("fail() { ./effect in; return 9; }", "fail", 9),
    "exit": ("fail() { ./effect in; exit 3; }", "fail", 3),
    "a subshell": ("fail() { ./effect in; (exit 4); ./effect beyond; }", "fail", 4),
    "a child that was killed": ("fail() { ./effect in; sh -c 'kill -9 $$'; ./effect beyond; }", "fail", 137),
    "a built-in": ("", "eval './effect in; false; ./effect beyond'", 1),
}


@posix
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("trap", ["trap 'echo \"bye $?\"' EXIT", ""])
def test_a_function_that_ends_a_strict_script_has_failed(workspace: Workspace, shell: str, end: str, trap: str) -> None:
    """With its status; and the script's own EXIT trap runs once, as if nothing were around it."""
    function, command, code = ENDS[end]
    text = f"{function}\n{trap}\nckpt_start deploy --steps a,b\nckpt_step a true\nckpt_step b {command}\n./effect on"
    result = play(workspace, shell, text)
    assert (result.code, result.out) == (code, f"bye {code}\n" if trap else ""), result
    assert effects(workspace) == ["in"]
    step = record(workspace)["steps"][1]
    if (shell, end) == ("zsh", "exit"):
        assert step["status"] == "begun", "zsh runs nothing of ours then"
        return
    assert (step["status"], step["exit_code"]) == ("failed", code)
    assert workspace.tool("status", "deploy").code == 33


@posix
def test_a_variable_that_is_not_set_ends_the_script_and_the_step(workspace: Workspace, shell: str) -> None:
    text = "trap 'echo bye' EXIT\nfail() { echo \"$nope\"; }\nckpt_start deploy --steps a\nckpt_step a fail\necho on"
    result = play(workspace, shell, text)
    assert result.code != 0
    assert result.out == ("" if shell == "zsh" else "bye\n"), "zsh runs no EXIT trap there"
    step = record(workspace)["steps"][0]
    if shell == "zsh":
        assert step["status"] != "completed"
    else:
        assert (step["status"], step["exit_code"]) == ("failed", result.code)


@posix
def test_a_nested_step_that_ends_a_strict_script_fails_with_the_outer_one(workspace: Workspace, shell: str) -> None:
    text = """
trap 'echo "bye $?"' EXIT
inner() { ./fails 5; ./effect no; }
outer() { ckpt_step b inner; ./effect no; }
ckpt_start deploy
ckpt_once a outer
"""
    result = play(workspace, shell, text)
    assert (result.code, result.out) == (5, "bye 5\n"), result
    assert effects(workspace) == []
    found = {step["name"]: (step["status"], step["exit_code"]) for step in record(workspace)["steps"]}
    assert found == {"a": ("begun", 5), "b": ("failed", 5)}
    assert "may have taken effect" in result.err


@posix
def test_a_step_that_ends_a_strict_subshell_has_failed(workspace: Workspace, shell: str) -> None:
    text = """
trap 'echo "bye $?"' EXIT
fail() { ./fails 6; ./effect no; }
ckpt_start deploy --steps a
( trap 'echo "inner $?"' EXIT; ckpt_step a fail; ./effect no ) &
wait $!
"""
    result = play(workspace, shell, text)
    assert (result.code, result.out) == (6, "inner 6\nbye 6\n"), result
    assert steps(workspace) == {"a": "failed"}


@posix
def test_an_exit_trap_that_a_step_sets_stays(workspace: Workspace, shell: str) -> None:
    text = """
trap 'echo first' EXIT
set_one() { trap 'echo "second"
echo lines' EXIT; }
ckpt_start deploy --steps a,b
ckpt_step a set_one
ckpt_step b eval :
ckpt_complete
"""
    result = play(workspace, shell, text)
    # In zsh an EXIT trap that a function sets is that function's own.
    assert (result.code, result.out) == (0, "second\nlines\nfirst\n" if shell == "zsh" else "second\nlines\n"), result


@posix
def test_once_that_ends_a_strict_script_is_settled_by_verify(workspace: Workspace, shell: str) -> None:
    for seen, status in (("true", "completed"), ("false", "failed"), ("./fails 2", "begun")):
        text = f"fail() {{ ./effect in; ./fails 5; }}\nckpt_start {status}\nckpt_once --verify '{seen}' a fail"
        assert play(workspace, shell, text).code == 5
        assert steps(workspace, status) == {"a": status}


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_script_leaves_the_step_begun(
    workspace: Workspace, shell: str, number: signal.Signals, background: Begin
) -> None:
    run = background(shell, "work() { false || ./pause here; }\nckpt_start deploy --steps a\nckpt_step a work")
    arrived(workspace, "here")
    os.killpg(run.pid, number)
    run.wait(20)
    until(lambda: workspace.tool("status", "deploy").code == 31, "it is interrupted")
    assert steps(workspace) == {"a": "begun"}


@with_session
def test_an_err_trap_of_the_script_runs_once_within_a_step(workspace: Workspace, shell: str) -> None:
    text = "trap './effect err' ERR\nfail() { ./fails 3; }\nckpt_start deploy --steps a\nckpt_step a fail"
    result = play(workspace, shell, text, mode="set -euE" if shell == "bash" else "set -eu")
    assert result.code == 3, result
    assert effects(workspace) == ["err"]
    assert steps(workspace) == {"a": "failed"}


# What a look may answer

LOOKS = {
    "in place": ("true", 0),
    "in place, by exit": ("exit 0", 0),
    "in place, and it says so": ("true && echo yes", 0),
    "not in place": ("false", 1),
    "not in place, by exit": ("false || exit 1", 1),
    "not in place, and it says so": ("echo no; false", 1),
    "a variable that is not set": ('test -e "$nope/x"', 20),
    "a function that uses one": ("broken", 20),
    "a value that must be set": (": ${nope:?}", 20),
    "no shell at all": ("if", 20),
    "an open quote": ("echo 'x", 20),
    "no such command": ("no-such-command", 20),
    "not executable": ("./outbox", 20),
    "killed": ("sh -c 'kill -9 $PPID'", 20),
    "a number that is none": ("test 1 -eq x", 20),
}
STREAMS = ["", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>&1"]


def looked(workspace: Workspace, shell: str, look: str, streams: str) -> tuple[int, int]:
    """The status of a script whose ``ckpt_once`` is in doubt, and how often its effect was had."""
    text = f"""
broken() {{ test -e "$nope/x"; }}
send() {{ ./effect sent; kill -9 $$; }}
again() {{ ./effect again; }}
ckpt_start deploy --steps a
if test -e effects; then work=again; else work=send; fi
ckpt_once --verify {shlex.quote(look)} a $work
"""
    (workspace.path / "outbox").touch(0o644)
    argv = shlex.join(script(workspace, shell, text, mode="set -u"))
    if not effects(workspace):
        assert workspace.run("/bin/sh", "-c", f"exec {argv}", env=surroundings(workspace)).code == -9
    code = workspace.run("/bin/sh", "-c", f"exec {argv} {streams}", env=surroundings(workspace), timeout=20).code
    return code, len(effects(workspace))


@posix
@pytest.mark.parametrize("look", LOOKS)
def test_only_the_answer_of_the_command_itself_counts(workspace: Workspace, shell: str, look: str) -> None:
    command, answer = LOOKS[look]
    # Not in place: it is done, and the look after it says again that it is not.
    assert looked(workspace, shell, command, "") == (answer, 2 if answer == 1 else 1)


@posix
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("look", ["in place, and it says so", "not in place, and it says so", "a function that uses one"])
def test_a_look_is_the_same_whatever_streams_are_lost(workspace: Workspace, shell: str, look: str, streams: str) -> None:
    command, answer = LOOKS[look]
    assert looked(workspace, shell, command, streams) == (answer, 2 if answer == 1 else 1)


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("look", ["true", "true && echo yes", "echo no; false", "exit 1", "if", "no-such", "echo x >&2; true"])
def test_run_looks_the_same_whatever_streams_are_lost(workspace: Workspace, look: str, streams: str) -> None:
    stubs(workspace)
    workspace.tool("start", "deploy", "--steps", "a")
    workspace.tool("update", "deploy", "--begin", "a", "--once")
    argv = shlex.join([TOOL, "run", "deploy", "a", "--verify", look, "--", "./effect", "sent"])
    code = workspace.run("/bin/sh", "-c", f"exec {argv} {streams}").code
    expected = (20, 0) if look in ("if", "no-such") else (0, 0) if "true" in look else (1, 1)
    assert (code, len(effects(workspace))) == expected


@pytest.mark.parametrize("streams", ["", "2>&-", ">&- 2>&-", "<&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("look", "answer"), [("true && echo yes", 0), ("echo no; false", 1), ("foo(", 20), ("no-such", 20), ("./outbox", 20)]
)
def test_a_look_in_fish(workspace: Workspace, look: str, answer: int, streams: str) -> None:
    stubs(workspace)
    (workspace.path / "outbox").touch(0o644)
    workspace.tool("start", "deploy", "--steps", "a")
    workspace.tool("update", "deploy", "--begin", "a", "--once")
    workspace.tool("release", "deploy")
    text = f"ckpt_start deploy --steps a\nckpt_once --verify {shlex.quote(look)} a ./effect sent\nexit $status"
    argv = shlex.join(script(workspace, "fish", text, mode=""))
    code = workspace.run("/bin/sh", "-c", f"exec {argv} {streams}", env=surroundings(workspace)).code
    assert (code, len(effects(workspace))) == (answer, int(answer == 1))


# Which store is whose

INNER = "ckpt_start pay --key k --steps a\nckpt_step a ./effect paid\nckpt_complete"


@every
@pytest.mark.parametrize("caller", ["a step", "run", "exec"])
def test_a_script_that_a_step_calls_works_in_the_store_it_has_alone(workspace: Workspace, shell: str, caller: str) -> None:
    inner = shlex.join(script(workspace, shell, INNER))
    if caller == "a step":
        passed(play(workspace, shell, f"ckpt_start outer --store named --steps a\nckpt_step a {inner}\nckpt_complete"))
    else:
        verb = ["exec", "outer"] if caller == "exec" else ["run", "outer", "a"]
        if caller == "run":
            workspace.tool("start", "outer", "--steps", "a", "--store", "named")
        argv = [*verb, "--store", "named", "--", *shlex.split(inner)]
        assert workspace.tool(*argv, env=surroundings(workspace)).code == 0
    assert effects(workspace) == ["paid"]
    assert workspace.run(*shlex.split(inner), env=surroundings(workspace)).code == 0
    assert effects(workspace) == ["paid"], "once, also alone"
    found = workspace.tool("list", "--all", "--json", "--store", "named").lines
    assert {one["workflow"] for one in found} == {"outer"}


@every
def test_a_store_of_the_users_choice_is_that_of_both(workspace: Workspace, shell: str) -> None:
    inner = shlex.join(script(workspace, shell, INNER))
    text = f"ckpt_start outer --steps a\nckpt_step a {inner}\nckpt_complete"
    passed(play(workspace, shell, text, env={"CHECKPOINT_STORE": str(workspace.path / "chosen")}))
    found = workspace.tool("list", "--all", "--json", "--store", "chosen").lines
    assert {one["workflow"] for one in found} == {"outer", "pay"}


@every
@pytest.mark.parametrize("store", ["", "--store named"])
def test_a_step_finds_its_own_run_from_any_folder(workspace: Workspace, shell: str, store: str) -> None:
    ask = 'cd /; checkpoint-tool update "$CHECKPOINT_ID" --data {\\"n\\":1}; checkpoint-tool show "$CHECKPOINT_RUN_ID"'
    executable(workspace.path / "ask", f"#!/bin/sh -e\n{ask}\n")
    text = f"ckpt_start deploy --steps a {store}\ncd /\nckpt_step a $DIR/ask >/dev/null\nckpt_complete"
    passed(play(workspace, shell, text, env={"DIR": str(workspace.path)}))
    where = workspace.path / "named" if store else workspace.store
    assert record(workspace, store=where)["data"] == {"n": 1}


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_command_finds_its_own_run_from_any_folder(workspace: Workspace, verb: str) -> None:
    workspace.tool("start", "deploy", "--steps", "a", "--store", "named")
    ask = f'cd /; {shlex.quote(TOOL)} show "$CHECKPOINT_ID" --json; echo "${{CHECKPOINT_STORE-unset}}"'
    step = ["a"] if verb == "run" else []
    name = "deploy" if verb == "run" else "nightly"
    result = workspace.tool(verb, name, *step, "--store", "named", "--", "sh", "-c", ask)
    assert result.out.splitlines()[-1] == "unset", result
    assert json.loads(result.out.splitlines()[0])["steps"][0]["status"] == "begun"


def test_a_token_counts_for_the_run_it_was_given_for(workspace: Workspace) -> None:
    """Not for one of the same id in another store."""
    for store, claims in (("one", 2), ("two", 1)):
        for _ in range(claims):
            workspace.tool("start", "deploy", "--steps", "a", "--store", store)
            workspace.tool("release", "deploy", "--store", store)
    one = workspace.tool("start", "deploy", "--steps", "a", "--store", "one", "--json").json
    workspace.tool("start", "deploy", "--steps", "a", "--store", "two")
    told = {"CHECKPOINT_ID": "deploy", "CHECKPOINT_RUN_ID": one["run_id"], "CHECKPOINT_TOKEN": str(one["token"])}
    told["CHECKPOINT_RUN_STORE"] = str(workspace.path / "one")
    assert workspace.tool("update", "deploy", "--note", "two", "--store", "two", env=told).code == 0
    assert workspace.tool("update", "deploy", "--note", "one", env=told).code == 0
    assert workspace.tool("show", "deploy", "--json", env=told).json["notes"][0]["text"] == "one"


# A step that was refused


@every
@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("ckpt_step 'A b' true", 2),
        ("ckpt_step a no-such", 127),
        ("ckpt_step a ./plain", 126),
        ("ckpt_step a", 2),
        ("ckpt_step --verify '' a true", 2),
        ("ckpt_step --never a true", 2),
    ],
)
def test_what_was_refused_is_not_completed(workspace: Workspace, shell: str, step: str, code: int) -> None:
    (workspace.path / "plain").touch()
    text = f"ckpt_start deploy\nckpt_step ok true\n{step}\necho $?\nckpt_complete\necho $?"
    result = play(workspace, shell, text, mode="")
    assert result.out == f"{code}\n15\n", result
    assert "refused" in result.err.splitlines()[-1]
    assert record(workspace)["status"] == "in_progress"


@every
def test_what_was_refused_and_then_run_is_completed(workspace: Workspace, shell: str) -> None:
    text = """
ckpt_start deploy
ckpt_step a ./later
echo $?
ckpt_step b ./later
cp same later
ckpt_complete
ckpt_step a ./later 1
ckpt_complete
echo $?
ckpt_step b ./later 2
ckpt_complete
echo $?
"""
    result = play(workspace, shell, text, mode="")
    assert result.out == "127\n1\n15\n2\n0\n", result
    completed(workspace, "a,b")


@every
def test_what_was_refused_may_be_left_out(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy\nckpt_step b true\nckpt_step a no-such\nckpt_complete --force --reason why\necho $?"
    assert play(workspace, shell, text, mode="").out == "0\n"
    completed(workspace, "b")


# Names of built-ins

BUILTINS = "printf read command kill test echo type false true cd local declare disown"
SPECIAL = "eval trap return set shift unset export exec exit break continue ["


@posix
@pytest.mark.parametrize("name", [*BUILTINS.split(), *SPECIAL.split()])
def test_functions_of_the_script_named_like_built_ins(workspace: Workspace, shell: str, name: str) -> None:
    """In dash and busybox a special built-in is no name for a function."""
    if shell not in SESSION and name in ["local", *SPECIAL.split()]:
        return
    text = f"""
work() {{ ./effect work; }}
half() {{ ./fails 3; ./effect no; }}
ckpt_start deploy
{name}() {{ :; }}
ckpt_step a work
ckpt_once --verify ./same b work
(ckpt_step c work)
ckpt_step d work | cat
ckpt_step e half
"""
    result = play(workspace, shell, text, mode="set -eu" if name not in ("set", "exit") else "set -e")
    assert result.code == 3, result
    assert effects(workspace) == ["work"] * 4
    assert steps(workspace) == dict.fromkeys("abcd", "completed") | {"e": "failed"}


@most
@pytest.mark.parametrize("name", ["printf", "echo", "type", "read", "test", "set", "return", "trap"])
def test_aliases_of_the_script_named_like_built_ins(workspace: Workspace, shell: str, name: str) -> None:
    if shell == "fish" and name not in ("printf", "echo", "type"):
        return  # there an alias is a function, and may not be named so
    text = "ckpt_start deploy\nckpt_step a ./effect a\nckpt_once --verify true b ./effect b\nckpt_complete"
    expand = "shopt -s expand_aliases\n" if shell == "bash" else ""
    passed(play(workspace, shell, text, init=f"{expand}alias {name}=no-such\n{bring(shell)}"))
    assert effects(workspace) == ["a", "b"]


@pytest.mark.parametrize("name", ["printf", "count", "echo", "type", "false", "true", "cd", "contains", "export", "functions"])
def test_functions_of_a_fish_script_named_like_built_ins(workspace: Workspace, name: str) -> None:
    """Others are no names for a function there."""
    text = "ckpt_start deploy\nckpt_step a ./effect a\nckpt_once --verify 'test -e effects' b ./effect b\nckpt_complete"
    init = f"function {name}\n    return 1\nend\n{bring('fish')}"
    passed(play(workspace, "fish", text, init=init))
    assert effects(workspace) == ["a", "b"]


@with_session
def test_a_function_named_builtin_is_refused(workspace: Workspace, shell: str) -> None:
    text = "ckpt_start deploy\nbuiltin() { :; }\nckpt_step a ./effect a\necho $?\nckpt_complete\necho $?"
    result = play(workspace, shell, text, mode="")
    assert (result.out, effects(workspace)) == ("2\n2\n", []), result
    assert "builtin" in result.err


# Subshells


@every
def test_who_carries_a_step_out_is_told(workspace: Workspace, shell: str) -> None:
    """The pid of the very subshell, and in fish, which has none, of the script."""
    real = workspace.run("sh", "-c", "command -v checkpoint-tool", env=surroundings(workspace)).out.strip()
    executable(workspace.path / "tool", f'#!/bin/sh\necho "$*" >> calls\nexec {shlex.quote(real)} "$@"\n')
    own = {"bash": "echo $BASHPID", "zsh": "echo $sysparams[pid]", "fish": "echo $fish_pid"}
    ask = own.get(shell, "sh -c 'echo $PPID'")
    before, after = ("begin", "end") if shell == "fish" else ("(", ")")
    text = f"ckpt_start deploy\n{before}\n{ask}\nckpt_step a true\n{after}"
    result = play(workspace, shell, text, env={"CHECKPOINT_TOOL": "./tool"})
    calls = [line for line in (workspace.path / "calls").read_text().splitlines() if line.split()[0] in ("begin", "end")]
    assert len(calls) == 2
    assert all(f"--caller-pid {result.out.strip()}" in line for line in calls), (result, calls)


@with_session
def test_a_subshell_starts_no_session(workspace: Workspace, shell: str) -> None:
    text = "(ckpt_start deploy --steps a; ckpt_step a true; ckpt_complete; ./count)"
    executable(workspace.path / "count", "#!/bin/sh\nps -eo args | grep -c '[s]ession --owner-pid '\"$PPID\" || :\n")
    result = play(workspace, shell, text)
    assert result.code == 0, result
    completed(workspace, "a")
    assert result.out == "0\n"


# Where things are odd


@every
def test_a_folder_that_is_no_utf8(workspace: Workspace, shell: str) -> None:
    folder = os.fsencode(workspace.path) + b"/\xff\xfe \xe9"
    os.mkdir(folder)
    argv = script(
        workspace, shell, "ckpt_start deploy --steps a,b\nckpt_step a echo one\ncd /\nckpt_step b echo two\nckpt_complete"
    )
    env = workspace.environ(surroundings(workspace))
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")
    assert [line for line in done.stderr.splitlines() if b"made a new store" not in line] == []
    assert os.listdir(folder + b"/memory/checkpoints/done/deploy")


@every
def test_a_request_for_completions_is_none(workspace: Workspace, shell: str) -> None:
    env = {"_CHECKPOINT_TOOL_COMPLETE": "complete_bash", "COMP_WORDS": "x", "COMP_CWORD": "1"}
    passed(play(workspace, shell, "ckpt_start deploy --steps a\nckpt_step a true\nckpt_complete", env=env))


OWN_STREAMS = [name for name, verb in COMMANDS.items() if verb.own_streams]


def test_the_verbs_that_need_their_streams() -> None:
    assert OWN_STREAMS == ["run", "exec", "watch", "mcp", "shell-init", "session"]


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("more", [[], ["--json"], ["-"], ["deploy", "--note", "-"]])
def test_no_verb_hangs_a_session(session: Session, verb: str, more: list[str]) -> None:
    answer = session.ask(verb, *more)
    if verb in OWN_STREAMS:
        assert answer.code == 2
        assert "cannot be used in a session" in answer.err
    assert session.ask("--version").code == 0


@pytest.mark.parametrize("args", [("--data", "-"), ("--input", "-"), ("--plan", "-"), ("--note", "-")])
def test_a_value_from_standard_input_is_refused_in_a_session(session: Session, args: tuple[str, ...]) -> None:
    answer = session.ask("start", "deploy", *args)
    assert answer.code == 2, answer
    assert "standard input" in answer.err
