"""What a power cut may leave of a recorded run, by what POSIX promises and no more: a model of a file system.

A change of a folder's entries (create, rename, unlink, mkdir) is whole or not there at all, and durable once a folder
that it touches is fsynced; until then it may survive or not, by itself, whatever was done before or after it. Of a file
that was renamed from one folder to another, the fsync of the folder that it left makes sure of no more than that it left.
The data of a file is durable once the file is fsynced; until then there may be any of what it has been, cut short, or
zeros. No file system in use is as bad as all that, and each is in some way.
"""

import ast
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import sweep
from sweep import Call

# Every path below the root: the bytes of a file, None for a folder.
Tree = Mapping[str, bytes | None]

_ROOT = 0
_QUOTED = re.compile(r'^\d+<[^>]*>, "((?:[^"\\]|\\.)*)", \d+(?:, (\d+))?$', re.DOTALL)
_NAMES = "openat mkdir mkdirat write pwrite64 rename renameat renameat2 unlink unlinkat fsync fdatasync ftruncate"
_CHANGING = frozenset(_NAMES.split())
_BEYOND = frozenset({"open", "link", "linkat"})


@dataclass
class File:
    """``versions``: what it held as of the last fsync, and after each change of its data since.

    ``is_mark``: it is read by comparing all of it (the lock of a claim), so that any part of it is as good as nothing.
    """

    versions: list[bytes] = field(default_factory=lambda: [b""])
    is_mark: bool = False

    @property
    def data(self) -> bytes:
        return self.versions[-1]

    def remains(self) -> list[bytes]:
        """Whatever may be read of it after a power cut."""
        if self.is_mark:
            return list(dict.fromkeys([self.data, b""]))
        found = list(self.versions)
        for old, new in itertools.pairwise(self.versions):
            half = max(len(new), len(old)) // 2
            # The first part written and the second not, or the other way round; the length told before the data was there.
            found += [new[:half] + old[half:], old[:half] + new[half:], bytes(len(new)), new[:half] + bytes(len(new[half:]))]
        return list(dict.fromkeys(found))


@dataclass
class Change:
    """One change of folders: ``entries`` says which name in which folder now stands for which inode, or for none."""

    entries: tuple[tuple[int, str, int | None], ...]
    durable: bool = False


@dataclass
class Disk:
    """All that was done below ``root``, and how much of it is durable."""

    root: str
    changes: list[Change] = field(default_factory=list)
    files: dict[int, File] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    last: int = _ROOT

    @classmethod
    def holding(cls, root: str, tree: Tree) -> "Disk":
        """All of ``tree``, durable."""
        disk = cls(root)
        for name, data in sorted(tree.items()):
            inode = disk._inode()
            if data is not None:
                disk.files[inode] = File([data])
            disk.changes.append(Change(((*disk._place(f"{root}/{name}"), inode),), durable=True))
        return disk

    def do(self, call: Call) -> bool:
        """Follow a call. Says whether anything else may be left after it than before it."""
        if not call.ok or not self._is_below(call.path):
            return False
        assert call.name not in _BEYOND, f"{call} is not in the model"
        if call.name not in _CHANGING:
            return False
        if call.name == "openat":
            return self._open(call)
        if call.name in ("mkdir", "mkdirat"):
            self._change((*self._place(call.path), self._inode()))
        elif call.name.startswith("rename"):
            source, target = call.paths
            self._change((*self._place(source), None), (*self._place(target), self._lookup(source)))
        elif call.name.startswith("unlink"):
            self._change((*self._place(call.path), None))
        elif call.name in ("fsync", "fdatasync"):
            self._sync(self._lookup(call.path))
        elif call.name == "ftruncate":
            return self._truncate(call)
        else:
            self._write(call)
        return True

    def volatile(self) -> Tree:
        """As it stands for all who live: what is left when only processes die."""
        return self._tree(self.changes, {inode: file.data for inode, file in self.files.items()})

    def states(self) -> Iterator[Tree]:
        """Each state that a power cut may leave now, once."""
        loose = [number for number, change in enumerate(self.changes) if not change.durable]
        seen = set()
        for lost in itertools.product((False, True), repeat=len(loose)):
            gone = {number for number, is_lost in zip(loose, lost, strict=True) if is_lost}
            kept = [change for number, change in enumerate(self.changes) if number not in gone]
            torn = [inode for inode in self._reachable(kept) if inode in self.files and len(self.files[inode].versions) > 1]
            for contents in itertools.product(*(self.files[inode].remains() for inode in torn)):
                whole = {inode: file.data for inode, file in self.files.items()}
                tree = self._tree(kept, whole | dict(zip(torn, contents, strict=True)))
                identity = tuple(sorted(tree.items()))
                if identity not in seen:
                    seen.add(identity)
                    yield tree

    # --- inside ------------------------------------------------------------------------------------------------------

    def _is_below(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + "/")

    def _inode(self) -> int:
        self.last += 1
        return self.last

    def _change(self, *entries: tuple[int, str, int | None]) -> None:
        self.changes.append(Change(entries))

    def _names(self, changes: Sequence[Change]) -> dict[int, dict[str, int]]:
        folders: dict[int, dict[str, int]] = {}
        for change in changes:
            for folder, name, inode in change.entries:
                if inode is None:
                    folders.setdefault(folder, {}).pop(name, None)
                else:
                    folders.setdefault(folder, {})[name] = inode
        return folders

    def _find(self, path: str) -> int | None:
        names = self._names(self.changes)
        inode: int | None = _ROOT
        for part in Path(path).relative_to(self.root).parts:
            inode = None if inode is None else names.get(inode, {}).get(part)
        return inode

    def _lookup(self, path: str) -> int:
        inode = self._find(path)
        assert inode is not None, f"the model knows no {path}"
        return inode

    def _place(self, path: str) -> tuple[int, str]:
        return self._lookup(os.path.dirname(path)), os.path.basename(path)

    def _open(self, call: Call) -> bool:
        assert call.result is not None
        self.offsets[call.result] = 0
        inode = self._find(call.path)
        if inode is None:
            inode = self._inode()
            self.files[inode] = File(is_mark=call.path.endswith(".owner"))
            self._change((*self._place(call.path), inode))
            return True
        if "O_TRUNC" in call.arguments and self.files[inode].data:
            self.files[inode].versions.append(b"")
            return True
        return False

    def _write(self, call: Call) -> None:
        match = _QUOTED.match(call.arguments)
        assert match is not None, f"{call} is not in the model"
        assert call.result is not None
        data = ast.literal_eval(f'b"{match[1]}"')[: call.result]
        assert len(data) == call.result, f"{call} is not recorded whole"
        descriptor = int(call.arguments.partition("<")[0])
        offset = self.offsets.get(descriptor, 0) if match[2] is None else int(match[2])
        if match[2] is None:
            self.offsets[descriptor] = offset + len(data)
        file = self.files[self._lookup(call.path)]
        before = file.data.ljust(offset, b"\0")
        file.versions.append(before[:offset] + data + before[offset + len(data) :])

    def _truncate(self, call: Call) -> bool:
        length = int(call.arguments.rpartition(", ")[2])
        file = self.files[self._lookup(call.path)]
        if len(file.data) == length:
            return False
        file.versions.append(file.data[:length].ljust(length, b"\0"))
        return True

    def _sync(self, inode: int) -> None:
        if inode in self.files:
            self.files[inode].versions = [self.files[inode].data]
            return
        changes: list[Change] = []
        for change in self.changes:
            left = tuple(entry for entry in change.entries if entry[0] == inode and entry[2] is None)
            other = tuple(entry for entry in change.entries if entry not in left)
            if change.durable or not left or not other or any(entry[0] == inode for entry in other):
                durable = change.durable or any(entry[0] == inode for entry in change.entries)
                changes.append(Change(change.entries, durable))
            else:
                changes += [Change(left, durable=True), Change(other)]
        settled: set[tuple[int, str]] = set()
        for change in reversed(changes):
            places = {(folder, name) for folder, name, _ in change.entries}
            # What a later durable change has overwritten cannot come back.
            change.durable = change.durable or places <= settled
            if change.durable:
                settled |= places
        self.changes = changes

    def _reachable(self, changes: Sequence[Change]) -> set[int]:
        names = self._names(changes)
        found = {_ROOT}
        open_ends = [_ROOT]
        while open_ends:
            inside = set(names.get(open_ends.pop(), {}).values()) - found
            found |= inside
            open_ends += inside
        return found

    def _tree(self, changes: Sequence[Change], data: Mapping[int, bytes]) -> dict[str, bytes | None]:
        names = self._names(changes)
        tree: dict[str, bytes | None] = {}
        open_ends = [(_ROOT, "")]
        while open_ends:
            folder, above = open_ends.pop()
            for name, inode in names.get(folder, {}).items():
                tree[above + name] = data.get(inode)
                if inode not in data:
                    open_ends.append((inode, f"{above}{name}/"))
        return tree


def lay_out(tree: Tree, place: Path) -> None:
    """Make ``place`` hold that and nothing else."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, data in sorted(tree.items()):
        path = place / name
        if data is None:
            path.mkdir(0o700)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, data)
            os.close(fd)
    sweep.adopted(place / "memory" / "checkpoints")


def taken_in(place: Path) -> Tree:
    """What ``place`` holds."""
    return {str(path.relative_to(place)): None if path.is_dir() else path.read_bytes() for path in place.rglob("*")}


class Moment(NamedTuple):
    """After ``call``; ``answer``: what had been answered by then. ``disk`` is valid until the next one is asked for."""

    call: Call
    answer: str
    disk: Disk


def moments(disk: Disk, calls: Sequence[Call], answer: str) -> Iterator[Moment]:
    """Each moment of a run on ``disk`` at which a power cut may leave something else than before."""
    answered = ""
    for call in calls:
        changed = disk.do(call)
        if sweep.is_answer(call) and not answered:
            answered, changed = answer, True
        if changed:
            yield Moment(call, answered, disk)
