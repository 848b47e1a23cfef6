"""The power is cut at any moment of a verb: nothing torn, nothing acknowledged lost, the same verb again converges.

First every state that POSIX allows to be left, by the model of ``crash_states``, of a verb that runs undisturbed and of
one that is tried again after it was killed or after a first cut. Then real file systems, whose power is cut by the
ioctl that their own developers test with: what is in memory is dropped, the journal not written.
"""

import copy
import fcntl
import functools
import gc
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import sweep
import test_kill
from conftest import need_program, need_root, unable
from crash_states import Disk, Tree, lay_out, moments, taken_in
from proof import WHOLE, tried
from test_kill import CASES, Bench, Case, report, wrong_owner

from checkpoint import Checkpoints
from checkpoint.errors import CheckpointError

# Not what begins with a record damaged by hand: that was never durable, and any state of it would be legal.
ENUMERATED = [name for name, case in CASES.items() if "damage" not in case.before]
ENUMERATED_BOUNDED = ["start", "start again", "start finished", "resume", "update", "complete", "complete keyed"]


def wrong_after_cut(bench: Bench, answer: str) -> list[str]:
    """What is wrong with what is left, and with what the same verb makes of it. ``answer``: given before the cut."""
    try:
        found = []
        if not bench.is_legal():
            found.append(f"neither the old state nor the new: {sweep.essence(sweep.records(bench.store))}")
        if answer and not is_kept(bench, answer):
            found.append(f"it had answered {answer.strip()}, and that is lost: {sweep.essence(sweep.records(bench.store))}")
        if bench.store.exists():
            found += [f"verify: {finding}" for finding in Checkpoints(bench.store).verify().findings]
        found += bench.unlike_undisturbed(bench.retry())
        found += wrong_owner(bench)
        tokens = [record["token"] for record in sweep.records(bench.store).values()]
        if len(set(tokens)) < len(tokens):
            found.append(f"one token was issued twice: {tokens}")
    except (AssertionError, ValueError, CheckpointError) as error:
        found = [f"torn: {error}"]
    return [problem.replace(str(bench.place), "") for problem in found]


def is_kept(bench: Bench, answer: str) -> bool:
    """Whether the store still says what was said."""
    told = json.loads(answer.splitlines()[-1])
    if told.get("removed") == 0:  # says nothing of what one before it removed, who was killed
        return True
    if "status" not in told:
        return bench.is_new()
    try:
        record = Checkpoints(bench.store).show(bench.case.id).checkpoint
    except CheckpointError:
        return False
    return (record.status, record.token, [step.status for step in record.steps]) == (
        told["status"],
        told["token"],
        told["steps"],
    )


# --- every state that POSIX allows -----------------------------------------------------------------------------------


class Enumerated(Bench):
    """One case, recorded from an empty folder on: what the verbs before it left in the air is in the air here too."""

    def __init__(self, case: Case, path: Path, prelude: str = "") -> None:
        self.case = case
        self.place = path / "run"
        self.place.mkdir()
        self.store = self.place / "memory" / "checkpoints"
        self.in_process = True
        self.disk = Disk(str(self.place))
        leave_byte_code()
        for verb in case.before:
            ended, calls = sweep.record(case.argv(self.store, verb), self.place)
            assert ended.code == 0, ended
            for call in calls:
                self.disk.do(call)
        self.before = sweep.files(self.store)
        self.argv = case.argv(self.store, prelude=prelude)
        self.undisturbed, self.calls = sweep.record(self.argv, self.place)
        assert self.undisturbed.code == 0, self.undisturbed
        self.after = sweep.records(self.store)
        *_, end = moments(copy.deepcopy(self.disk), self.calls, self.undisturbed.out)
        assert end.answer
        assert end.disk.volatile() == taken_in(self.place), "the model has strayed from what was done"
        self.is_retried = False
        self.judged = 0
        self._seen: set[object] = set()

    def is_legal(self) -> bool:
        # One that is tried again may leave what it would make of what it found, too.
        return super().is_legal() or (self.is_retried and self.is_new(self.case.loose))

    def cut_everywhere(self) -> Iterator[str]:
        """The power is cut at any moment of the run."""
        yield from self._cut(self.disk, self.calls, self.undisturbed.out, "")

    def kill_and_cut_everywhere(self, part: slice = slice(None), *, after: str = "") -> Iterator[str]:
        """It is killed, tried again, and the power is cut at any moment of that. ``after``: only after such calls."""
        killed = []
        for moment in moments(copy.deepcopy(self.disk), self.calls, self.undisturbed.out):
            if not moment.answer and moment.call.name.startswith(after):
                killed.append((moment.call, copy.deepcopy(moment.disk)))
        for call, disk in killed[part]:
            lay_out(disk.volatile(), self.place)
            yield from self._try_again(disk, f"killed after {call}, ")

    def cut_twice_everywhere(self, part: slice) -> Iterator[str]:
        """The power is cut, it is tried again, and the power is cut at any moment of that."""
        left: dict[object, Tree] = {}
        for moment in moments(copy.deepcopy(self.disk), self.calls, self.undisturbed.out):
            left |= {identity(tree): tree for tree in moment.disk.states()}
        for tree in list(left.values())[part]:
            lay_out(tree, self.place)
            yield from self._try_again(Disk.holding(str(self.place), tree), "after another cut, ")

    def _try_again(self, disk: Disk, how: str) -> Iterator[str]:
        ended, calls = sweep.record(self.argv, self.place)
        assert ended.code == 0, ended
        self.is_retried = True
        yield from self._cut(disk, calls, ended.out, how)

    def _cut(self, disk: Disk, calls: Sequence[sweep.Call], answer: str, how: str) -> Iterator[str]:
        for moment in moments(copy.deepcopy(disk), calls, answer):
            for tree in moment.disk.states():
                key = identity(tree), moment.answer
                if key in self._seen:
                    continue
                self._seen.add(key)
                self.judged += 1
                lay_out(tree, self.place)
                for found in wrong_after_cut(self, moment.answer):
                    yield f"{how}cut after {moment.call}: {found}, of {shown(tree)}"


@functools.cache
def leave_byte_code() -> None:
    """So that not each recorded process compiles all anew."""
    with tempfile.TemporaryDirectory() as folder:
        sweep.run(sweep.lean("start", Path(folder, "store")), Path(folder), compile=True)


def identity(tree: Tree) -> object:
    return tuple(sorted(tree.items()))


def shown(tree: Tree) -> str:
    return ", ".join(name if data is None else f"{name} ({len(data)})" for name, data in sorted(tree.items()))


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what is cut is a model, or has its own file for a disk; the disk below it only
    makes that slow."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="power-loss-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def none_wrong(bench: Enumerated, found: Iterator[str], least: int) -> None:
    problems = list(found)
    print(f"{bench.case}: {bench.judged} states")
    tried("crash state", bench.judged, len(problems))
    # A model that holds everything for durable at once would find nothing.
    assert bench.judged >= least
    assert not problems, report(problems)


@pytest.mark.parametrize("name", ENUMERATED if WHOLE else ENUMERATED_BOUNDED)
@pytest.mark.proof("crash state")
def test_the_power_is_cut_at_any_moment(name: str, quick: Path) -> None:
    sweep.tracer()
    bench = Enumerated(CASES[name], quick)
    none_wrong(bench, bench.cut_everywhere(), {"start finished": 8, "prune": 12, "start the next": 40}.get(name, 75))


@pytest.mark.parametrize("name", ENUMERATED if WHOLE else ["complete"])
@pytest.mark.proof("crash state")
def test_the_power_is_cut_while_a_killed_one_is_tried_again(name: str, quick: Path) -> None:
    sweep.tracer()
    bench = Enumerated(CASES[name], quick)
    part = slice(None) if WHOLE else slice(5, None, 6)
    none_wrong(bench, bench.kill_and_cut_everywhere(part), {"start finished": 8, "prune": 40}.get(name, 50))


@pytest.mark.parametrize("name", ENUMERATED_BOUNDED if WHOLE else ["update"])
@pytest.mark.proof("crash state")
def test_the_power_is_cut_twice(name: str, quick: Path) -> None:
    sweep.tracer()
    bench = Enumerated(CASES[name], quick)
    part = slice(None) if name == "start finished" else slice(3, None, 6 if WHOLE else 50)
    none_wrong(bench, bench.cut_twice_everywhere(part), 8 if name == "start finished" else 500 if WHOLE else 50)


@pytest.mark.parametrize(
    ("name", "prelude", "problem"),
    [
        ("update", test_kill.NO_FILE_FSYNC, "torn"),
        ("update", test_kill.NO_FOLDER_FSYNC, "that is lost"),
        ("update", test_kill.IN_PLACE, "torn"),
        ("update", test_kill.ANSWER_FIRST, "that is lost"),
        ("start", test_kill.NO_PARENT_FSYNC, "that is lost"),
        ("complete", test_kill.NO_FSYNC_BELOW_DONE, "that is lost"),
        ("complete", test_kill.UNLINKED_BEFORE_KEPT, "that is lost"),
    ],
    ids=["no file fsync", "no folder fsync", "in place", "answer first", "no parent fsync", "no fsync below done", "unlinked"],
)
def test_planted_bug_is_found_in_a_crash_state(name: str, prelude: str, problem: str, quick: Path) -> None:
    sweep.tracer()
    bench = Enumerated(CASES[name], quick, prelude)
    assert any(problem in found for found in bench.cut_everywhere())


def test_planted_answer_from_an_unsynced_file_is_found_in_a_crash_state(quick: Path) -> None:
    """Killed between the rename and the fsync of the folder, tried again and told "done already", and the power goes."""
    sweep.tracer()
    bench = Enumerated(CASES["complete"], quick, test_kill.UNCONFIRMED_ANSWER)
    assert not any("that is lost" in found for found in bench.cut_everywhere())
    assert any("that is lost" in found for found in bench.kill_and_cut_everywhere(after="rename"))


# --- real file systems -----------------------------------------------------------------------------------------------

SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of Linux; XFS knows it as XFS_IOC_GOINGDOWN."""
NO_LOG_FLUSH = 2
"""Nothing more is written, not even the journal: for ext4 and XFS alike."""


class FileSystem(NamedTuple):
    """How one is made, and with which options it is mounted."""

    make: tuple[str, ...]
    options: str
    megabytes: int


_EXT4 = ("mkfs.ext4", "-q", "-F")
FILE_SYSTEMS = {
    "ext4 ordered": FileSystem(_EXT4, "data=ordered", 64),
    "ext4 writeback": FileSystem(_EXT4, "data=writeback", 64),
    "ext4 fast-commit": FileSystem((*_EXT4, "-O", "fast_commit"), "data=ordered", 64),
    "xfs": FileSystem(("mkfs.xfs", "-q", "-f"), "noquota", 320),
}
# How the state before came to be: written just now and acknowledged, no more; or long ago, and others are writing.
JUST_NOW = "just now"
LONG_AGO = "long ago"

CUT_FOR_REAL = ("start", "start again", "resume", "update", "complete", "complete keyed")
NO_KILLS = 1 << 20


class Volume:
    """A file system in a file, mounted at ``place``; its power can be cut."""

    def __init__(self, name: str, image: Path, place: Path) -> None:
        self.name = name
        self.place = place
        self.mended = 0
        self._image = image
        made = FILE_SYSTEMS[name]
        with open(image, "wb") as file:
            file.truncate(made.megabytes << 20)
        subprocess.run([*made.make, str(image)], check=True, stdin=subprocess.DEVNULL)
        place.mkdir(exist_ok=True)
        trouble = self.mount()
        if trouble:
            raise CannotMount(f"{name}: {trouble}")

    def mount(self) -> str:
        """What went wrong."""
        # The loop device lets go of the file by itself when nothing is mounted from it, also when we are killed.
        options = f"loop,{FILE_SYSTEMS[self.name].options}"
        done = subprocess.run(["mount", "-o", options, self._image, self.place], capture_output=True, text=True, check=False)
        return done.stderr.strip() if done.returncode else ""

    def unmount(self) -> None:
        if subprocess.run(["umount", self.place], stderr=subprocess.DEVNULL, check=False).returncode:
            gc.collect()  # a folder that is open in a cycle of objects
            subprocess.run(["umount", self.place], check=True)

    def cut(self) -> None:
        """The power goes, and comes back."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)
        self.unmount()
        if self.mount():
            # Kernels have been seen to stumble over fast commits that they wrote themselves. What a machine does when it
            # starts, once more where the first attempt leaves errors.
            self.mended += 1
            for _ in range(2):
                done = subprocess.run(["e2fsck", "-f", "-y", self._image], capture_output=True, text=True, check=False)
                if done.returncode in (0, 1):
                    break
            trouble = self.mount()
            assert not trouble, f"{trouble}; {done}"

    def said(self) -> str:
        """The line of the kernel on this mount, and for fast commits how many there were."""
        named = str(self.place).replace(" ", r"\040")  # proc_pid_mounts(5), as in fstab(5)
        (line,) = [line for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[1] == named]
        fast = Path("/proc/fs/ext4", Path(line.split()[0]).name, "fc_info")
        return line + (f" {fast.read_text().splitlines()[1]}" if fast.exists() else "")


class CannotMount(Exception):
    """Not here, or not this kind."""


class Real(Bench):
    """One case on a volume that is mounted where it runs."""

    def __init__(self, case: Case, path: Path, prelude: str = "") -> None:
        self.how = LONG_AGO
        super().__init__(case, path, prelude)
        self.in_process = True

    def reset(self) -> Path:
        for found in self.place.iterdir():
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()
        if self.how == LONG_AGO:
            shutil.copytree(self._template, self.place, dirs_exist_ok=True)
            sweep.adopted(self.place / "memory" / "checkpoints")
        # Also what was removed must not come back with the power.
        subprocess.run(["sync", "--file-system", self.place], check=True)
        if self.how == LONG_AGO:
            (self.place / "noise").write_bytes(bytes(1 << 20))
        else:
            self.case.prepare(self.place)
        store = self.place / "memory" / "checkpoints"
        self.before = sweep.files(store)
        return store


class Cuts(NamedTuple):
    """What to do on one file system: kills at ``points[first::step]``, and ``whole`` runs that are not killed, each
    followed by a cut."""

    system: str
    case: str
    how: str
    first: int = 0
    step: int = 1
    whole: int = 1
    prelude: str = ""


class Found(NamedTuple):
    runs: int
    problems: list[str]
    forgotten: int
    """How often a file that was not fsynced was gone after the cut: what shows that the power was cut at all."""
    mended: int
    """How often it could be mounted again only after it was checked."""
    said: str


def cut_everywhere(volume: Volume, bench: Real, cuts: Cuts) -> Found:
    problems = []
    forgotten = 0
    said = ""
    bench.how = cuts.how
    points = [*bench.points[cuts.first :: cuts.step], *[None] * cuts.whole]
    for point in points:
        bench.reset()
        ended = sweep.run(bench.argv, bench.place) if point is None else sweep.killed_at(point, bench.argv, bench.place)
        (bench.place / "unsynced").touch()
        said = volume.said()
        volume.cut()
        forgotten += not (bench.place / "unsynced").exists()
        when = "ended" if point is None else f"killed before {point}"
        problems += [f"{when}, then cut: {one}" for one in wrong_after_cut(bench, ended.out)]
    return Found(len(points), problems, forgotten, volume.mended, said)


def work(path: Path, wanted: Sequence[Cuts]) -> Iterator[Found]:
    """All of ``wanted``. The calls of a case are recorded once, on the first file system that it is for."""
    benches: dict[tuple[str, str], Real] = {}
    for cuts in wanted:
        key = cuts.case, cuts.prelude
        home = path / str(list(benches).index(key) if key in benches else len(benches))
        home.mkdir(exist_ok=True)
        image = path / "image"
        try:
            volume = Volume(cuts.system, image, home / "run")
        except CannotMount as error:
            yield Found(0, [], 0, 0, str(error))
            continue
        if key not in benches:
            benches[key] = Real(CASES[cuts.case], home, cuts.prelude)
        yield cut_everywhere(volume, benches[key], cuts)
        volume.unmount()
        image.unlink()


def cut_for_real(path: Path, wanted: Sequence[Cuts]) -> list[Found]:
    """In a process that has its mounts for itself: they go with it, however it ends."""
    need_root()
    makers = {FILE_SYSTEMS[cuts.system].make[0] for cuts in wanted}
    for program in ("unshare", "mount", "umount", "sync", "e2fsck", *sorted(makers)):
        need_program(program)
    sweep.tracer()
    alone = ["unshare", "--mount", "--propagation", "private"]
    probe = subprocess.run([*alone, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        unable(f"no mount namespace of its own: {probe.stderr.strip()}")
    argv = [*alone, sys.executable, __file__, str(path), json.dumps(wanted)]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3600, check=False)
    finally:
        (path / "image").unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    found = [Found(*json.loads(line)) for line in done.stdout.splitlines()]
    if not any(one.runs for one in found):
        unable(f"no file system can be mounted from a file: {found[0].said}")
    return found


def parts() -> Iterator[tuple[str, list[Cuts]]]:
    """What is done by one process, by name: in the whole run each call of each case on each file system, and each
    second one of what was written long ago."""
    if not WHOLE:
        yield "all", [Cuts(system, "complete", JUST_NOW, first=30, step=15) for system in FILE_SYSTEMS]
        return
    for system, (how, step) in itertools.product(FILE_SYSTEMS, ((JUST_NOW, 1), (LONG_AGO, 2))):
        yield f"{system}, written {how}", [Cuts(system, name, how, step=step, whole=5) for name in CUT_FOR_REAL]


@pytest.mark.parametrize(
    "wanted",
    [pytest.param(part, id=name, marks=pytest.mark.proof(*{cuts.system for cuts in part})) for name, part in parts()],
)
def test_the_power_of_a_real_file_system_is_cut(wanted: list[Cuts], quick: Path) -> None:
    problems = []
    unmounted = []
    for cuts, found in zip(wanted, cut_for_real(quick, wanted), strict=True):
        if not found.runs:
            unmounted.append(found.said)
            continue
        print(f"{cuts.system}, {cuts.case}, written {cuts.how}: {found._replace(problems=[])}")
        tried(cuts.system, found.runs, len(found.problems))
        assert found.runs >= (20 if WHOLE else 4)
        # A cut that everything survives is none. Now and then the journal is written just before it, as it always may be.
        assert found.forgotten > found.runs // 2
        assert f" {cuts.system.split()[0]} " in found.said
        assert ("data=writeback" in found.said) is (cuts.system == "ext4 writeback")
        if cuts.system == "ext4 fast-commit":
            assert re.search(r" [1-9][0-9]* commits$", found.said)
        problems += [f"{cuts.system}: {one}" for one in found.problems]
    assert not problems, report(problems)
    if unmounted:
        unable(f"all others were cut, but {unmounted}")


def test_planted_bugs_lose_data_on_real_file_systems(quick: Path) -> None:
    """So neither fsync is for show, whatever a file system makes of a rename."""
    planted = {
        "start": (test_kill.NO_FILE_FSYNC, "torn"),  # a new name: of one that is replaced ext4 writes the data by itself
        "update": (test_kill.NO_FOLDER_FSYNC, "that is lost"),
    }
    systems = FILE_SYSTEMS if WHOLE else ("ext4 ordered", "xfs")
    wanted = [
        Cuts(system, name, JUST_NOW, first=NO_KILLS, prelude=prelude)
        for name, (prelude, _) in planted.items()
        for system in systems
    ]
    for cuts, found in zip(wanted, cut_for_real(quick, wanted), strict=True):
        assert not found.runs or any(planted[cuts.case][1] in problem for problem in found.problems), (cuts, found)


if __name__ == "__main__":
    for result in work(Path(sys.argv[1]), [Cuts(*each) for each in json.loads(sys.argv[2])]):
        print(json.dumps(result), flush=True)
