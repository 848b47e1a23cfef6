"""What git does with a store, told without asking git: compared with git itself, on repositories of each kind."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import TOOL, Workspace, need_program

from checkpoint import worktree

STORE = "memory/checkpoints"


def git(place: Path, *argv: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"}
    command = [need_program("git"), "-c", "user.name=a", "-c", "user.email=a@b", *argv]
    done = subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done
    return done.stdout


def repository(place: Path, *argv: str) -> Path:
    git(place, "init", "-q", *argv)
    (place / STORE / "done").mkdir(parents=True)
    (place / STORE / "deploy.json").write_text("{}")
    (place / STORE / "done" / "old.json").write_text("{}")
    for number in range(40):
        (place / f"memory-{number}").mkdir()
        (place / f"memory-{number}" / ("x" * number * 20)[:200]).with_suffix(".txt").write_text("")
    return place


KINDS = {
    "version 2": [["update-index", "--index-version", "2"]],
    "version 3": [["add", "-N", "memory-1"], ["update-index", "--index-version", "3"]],
    "version 4": [["update-index", "--index-version", "4"]],
    "split": [["update-index", "--split-index"]],
    "untracked cache": [["update-index", "--untracked-cache"]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_tracked_files_are_counted_as_git_counts_them(tmp_path: Path, kind: str, object_format: str) -> None:
    place = repository(tmp_path, f"--object-format={object_format}")
    for argv in KINDS[kind]:
        git(place, *argv)
    assert worktree.look(str(place / STORE)) == (0, False)
    git(place, "add", "memory-2", "memory-3")
    for argv in KINDS[kind]:
        git(place, *argv)
    assert worktree.look(str(place / STORE)) == (0, False)
    git(place, "add", "-A")
    for argv in KINDS[kind]:
        git(place, *argv)
    assert worktree.look(str(place / STORE)) == (2, False)
    shutil.rmtree(place / "memory")
    assert worktree.look(str(place / STORE)) == (2, False), "also where it is gone"


def test_a_linked_work_tree_and_a_submodule(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = repository(tmp_path / "one")
    git(one, "add", "-A")
    git(one, "commit", "-qm", "x")
    git(one, "worktree", "add", "-q", "../two")
    assert worktree.look(str(tmp_path / "two" / STORE)) == (2, False)
    (one / ".git" / "info" / "exclude").write_text("memory/\n")
    assert worktree.look(str(tmp_path / "two" / STORE)) == (2, True)
    assert worktree.look(str(tmp_path / STORE)) is None


PATTERNS = [
    ["*"], ["memory"], ["memory/"], ["/memory"], ["/memory/checkpoints/"], ["checkpoints"], ["/checkpoints"], ["*.json"],
    ["memory/*"], ["memory/**"], ["**/checkpoints"], ["memory/checkpoints/*.json"], ["m?mory"], ["[m]emory"], ["[!m]emory"],
    ["memory/", "!memory/"],
    ["*", "!memory/", "!memory/checkpoints/"], ["*", "!*/", "!*.json"], ["#memory"], ["\\#x", "memory "],
    ["!memory"], ["memory/checkpoints/record.json"], ["a/**/memory"], ["**/memory/**"], ["MEMORY"], ["memor"], ["[", "memory"],
]  # fmt: skip


@pytest.mark.parametrize("place", [".gitignore", "memory/.gitignore", "memory/checkpoints/.gitignore", ".git/info/exclude"])
def test_what_is_ignored_is_what_git_ignores(tmp_path: Path, place: str) -> None:
    repository(tmp_path)
    for patterns in PATTERNS:
        (tmp_path / place).write_text("\n".join(patterns) + "\n")
        said = git(tmp_path, "check-ignore", f"{STORE}/record.json") != ""
        found = worktree.look(str(tmp_path / STORE))
        assert found is not None
        assert found.ignored == said, patterns


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_index_is_no_error(tmp_path: Path, seed: int) -> None:
    place = repository(tmp_path)
    git(place, "add", "-A")
    index = bytearray((place / ".git" / "index").read_bytes())
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 40)):
        index[chance.randrange(len(index))] = chance.randrange(256)
    (place / ".git" / "index").write_bytes(index[: chance.randrange(len(index))])
    worktree.look(str(place / STORE))


def test_what_a_repository_tells_git_to_run_is_not_run(workspace: Workspace) -> None:
    """A clone may come with a configuration that names programs, and with a store."""
    repository(workspace.path)
    git(workspace.path, "add", "-A")
    shutil.rmtree(workspace.store)
    mark = workspace.path / "PWNED"
    with open(workspace.path / ".git" / "config", "a") as config:
        config.write(f'[core]\n\tfsmonitor = "touch {mark}"\n\thooksPath = .\n\tpager = "touch {mark}"\n')
    assert workspace.tool("start", "deploy", "--steps", "a").code == 0
    for argv in (["agents", "brief"], ["agents", "install"], ["agents", "install", "--check"], ["schedule", "doctor", "."]):
        done = workspace.run(TOOL, *argv)
        assert "git tracks 2 files" in done.out + done.err, done
        assert "git rm -r --cached memory/checkpoints" in (done.out + done.err).replace(str(workspace.path) + "/", ""), done
    assert not mark.exists()
