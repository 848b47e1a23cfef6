"""Whether git would take a directory away: which files of it a work tree tracks, and whether it is ignored.

git itself is not asked: the configuration of a repository that came from elsewhere may name programs that it runs
(core.fsmonitor, also for ``ls-files``). The index and the ignore files are read here (gitformat-index(5),
gitignore(5)), in a bounded time, and nothing is written.
"""

import os
import re
import shlex
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

INDEX_LIMIT = 256 << 20
_IGNORE_LIMIT = 1 << 20
_ID_BYTES = (20, 32)
"""Of SHA-1 and SHA-256 repositories."""
_EXTENDED = 0x4000
_LONG_NAME = 0xFFF


class Standing(NamedTuple):
    """``tracked``: how many files of the directory git tracks; ``ignored``: whether it leaves the others alone."""

    tracked: int
    ignored: bool


def look(place: str, within_s: float = 0.5) -> Standing | None:
    """How git has a directory, which need not be there. None: it is in no work tree, or that cannot be told in time."""
    deadline = time.monotonic() + within_s
    try:
        above, name = os.path.split(os.path.abspath(os.path.expanduser(place)))
        place = os.path.join(os.path.realpath(above), name)
        found = _work_tree(place)
        if found is None:
            return None
        root, git = found
        inside = os.fsencode(os.path.relpath(place, root))
        tracked = sum(_tracked(index, inside, deadline) for index in _indexes(git))
        return Standing(tracked, _is_ignored(root, git, os.path.join(place, "record.json")))
    except (OSError, ValueError, struct.error, IndexError, TimeoutError):
        return None


def advice(place: str, found: Standing | None) -> tuple[str, tuple[str, ...]] | None:
    """(what git may do to the store at ``place``, the commands that prevent it), or None where there is nothing to say."""
    if found is None:
        return None
    directory = shlex.quote(place)
    ignore = f"echo '*' | tee {shlex.quote(os.path.join(place, '.gitignore'))}"
    if found.tracked:
        what = f"git tracks {found.tracked} file{'s' if found.tracked > 1 else ''} of the store"
        words = f"{what}: a checkout, stash or clone brings old records back, and their work runs again"
        return words, (f"git rm -r --cached {directory}", ignore)
    if not found.ignored and os.path.isdir(place):
        words = "the store is in a git work tree and not ignored: git stash -u, git clean and git add -A take its records along"
        return words, (ignore,)
    return None


# --- the index ---------------------------------------------------------------------------------------------------------


def _work_tree(place: str) -> tuple[str, str] | None:
    """(root of the work tree that holds ``place``, its git directory)."""
    root = os.path.dirname(place)
    while True:
        git = os.path.join(root, ".git")
        if os.path.isdir(git):
            return root, git
        if os.path.isfile(git):  # of a linked work tree, or a submodule
            line = _read(git, 4096).decode().strip()
            return root, os.path.join(root, line.removeprefix("gitdir:").strip())
        if root == os.path.dirname(root):
            return None
        root = os.path.dirname(root)


def _indexes(git: str) -> Iterator[bytes]:
    """The index, and the one that it shares entries with (split index)."""
    try:
        yield _read(os.path.join(git, "index"), INDEX_LIMIT)
    except FileNotFoundError:
        return  # nothing was added yet
    for name in sorted(os.listdir(git)):
        if re.fullmatch(r"sharedindex\.[0-9a-f]{40,64}", name):
            yield _read(os.path.join(git, name), INDEX_LIMIT)


def _tracked(index: bytes, inside: bytes, deadline: float) -> int:
    """How many entries stand below the directory ``inside``."""
    if inside + b"/" not in index and index[4:8] != struct.pack(">I", 4):
        return 0  # names stand there in full, but for version 4
    for size in _ID_BYTES:
        try:
            return sum(name.startswith(inside + b"/") for name in _names(index, size, deadline))
        except (ValueError, IndexError):
            continue  # not of this kind of repository
    raise ValueError("no index")


def _names(index: bytes, id_bytes: int, deadline: float) -> Iterator[bytes]:
    """The paths in an index, in order. Raises ValueError, IndexError, TimeoutError."""
    magic, version, count = struct.unpack_from(">4sII", index)
    if magic != b"DIRC" or version not in (2, 3, 4):
        raise ValueError("no index")
    place, name = 12, b""
    for number in range(count):
        if number % 1024 == 0 and time.monotonic() > deadline:
            raise TimeoutError
        start = place
        place += 40 + id_bytes
        flags = index[place] << 8 | index[place + 1]
        place += 4 if flags & _EXTENDED else 2
        cut = 0
        if version == 4:
            cut, place = _number(index, place)
        end = index.index(b"\0", place)
        name = (name[: len(name) - cut] if version == 4 else b"") + index[place:end]
        if flags & _LONG_NAME not in (_LONG_NAME, len(name)):
            raise ValueError("not an entry")
        # Filled with 1 to 8 NUL bytes, so that the next one begins at a multiple of eight; not so in version 4.
        place = end + 1 if version == 4 else start + ((end - start) // 8 + 1) * 8
        yield name


def _number(index: bytes, place: int) -> tuple[int, int]:
    """(a number of variable width, where it ends): as offsets in packs (gitformat-pack(5))."""
    value = index[place] & 127
    while index[place] & 128:
        place += 1
        value = (value + 1) << 7 | index[place] & 127
    return value, place + 1


# --- what is ignored ---------------------------------------------------------------------------------------------------


def _is_ignored(root: str, git: str, path: str) -> bool:
    """Whether git would leave the untracked file ``path`` alone."""
    parts = os.path.relpath(path, root).split("/")
    rules = [*_rules(os.path.expanduser("~/.config/git/ignore"), 0), *_rules(os.path.join(_common(git), "info/exclude"), 0)]
    for depth in range(len(parts)):
        rules += _rules(os.path.join(root, *parts[:depth], ".gitignore"), depth)
        is_directory = depth < len(parts) - 1
        ignored = False
        for rule in rules:
            if rule.matches(parts[: depth + 1], is_directory=is_directory):
                ignored = not rule.negated
        if ignored:
            return True  # what is below an ignored directory cannot be taken in again
    return False


def _common(git: str) -> str:
    """The git directory of the repository, for that of a linked work tree."""
    try:
        return os.path.join(git, _read(os.path.join(git, "commondir"), 4096).decode().strip())
    except FileNotFoundError:
        return git


class _Rule(NamedTuple):
    """A line of an ignore file. ``depth``: how many directories below the root it stands."""

    pattern: "re.Pattern[str]"
    negated: bool
    only_directories: bool
    depth: int

    def matches(self, parts: Sequence[str], *, is_directory: bool) -> bool:
        if self.only_directories and not is_directory:
            return False
        return self.pattern.fullmatch("/".join(parts[self.depth :])) is not None


def _rules(path: str, depth: int) -> list[_Rule]:
    try:
        lines = _read(path, _IGNORE_LIMIT).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    found = [_rule(line, depth) for line in lines]
    return [rule for rule in found if rule is not None]


def _rule(line: str, depth: int) -> _Rule | None:
    line = re.sub(r"(?<!\\) +$", "", line)
    if not line or line.startswith("#"):
        return None
    negated = line.startswith("!")
    line = line[1:] if negated else line
    only_directories = line.endswith("/")
    line = line.rstrip("/")
    anchored = "/" in line
    pattern = _translated(line.lstrip("/"))
    try:
        return _Rule(re.compile(pattern if anchored else f"(?:.*/)?{pattern}"), negated, only_directories, depth)
    except re.error:
        return None


_PIECE = re.compile(r"^\*\*/|/\*\*/|/\*\*$|\*+|\?|\[[!^]?\]?[^\]]*\]|\\.|.", re.DOTALL)
_WILD = {"**/": "(?:.*/)?", "/**/": "/(?:.*/)?", "/**": "/.*", "?": "[^/]"}


def _translated(pattern: str) -> str:
    """A pattern of gitignore(5) as a regular expression."""
    pieces = []
    for match in _PIECE.finditer(pattern):
        piece = match[0]
        if piece in _WILD:
            pieces.append(_WILD[piece])
        elif piece.startswith("*"):
            pieces.append("[^/]*")
        elif piece.startswith("[") and len(piece) > 1:
            pieces.append("[^" + piece[2:] if piece[1] in "!^" else piece)
        else:
            pieces.append(re.escape(piece[1:] if len(piece) > 1 else piece))
    return "".join(pieces)


def _read(path: str, limit: int) -> bytes:
    """A regular file. Raises OSError, ValueError for anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not os.path.isfile(path) or os.fstat(fd).st_size > limit:
            raise ValueError(f"{path} is no file of git")
        return file.read(limit)
