"""The rule and the start-up hooks in the files that agents read: put in, compared, taken out again, byte for byte.

Whatever was there before is somebody else's. So a section stands between two markers, a hook is inserted into the text
of a settings file and not written anew with it, and what taking them out must know (line ends and folders that came
with them) is written beside them. Everything is decided before anything is written.
"""

import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from checkpoint._load import data_path, load
from checkpoint.codec import parse
from checkpoint.errors import Conflict, InvalidTransition, StoreUnavailable, Usage

LIMIT = 4 * 1024 * 1024
"""Bytes of a file that is to be changed."""

SKILL = "restart-safe-workflow"
HOOK = "checkpoint-tool agents brief"
"""How every start-up hook of ours begins."""

# Whatever stands at the beginning of a line and looks like a marker: one that is not whole must not be passed over.
_MARK = re.compile(rb"(?m)^ {0,3}(<!--[ \t]*)?(BEGIN|END) checkpoint-tool rule")
_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_BOM = b"\xef\xbb\xbf"
_BEGIN = re.compile(rb"(?m)^<!-- BEGIN checkpoint-tool rule \((new|[0-2])\) -->\r?$")
_END = re.compile(rb"(?m)^<!-- END checkpoint-tool rule -->\r?$\n?")
_FOOTER = re.compile(rb"<!-- written by checkpoint-tool agents install; changes are lost \(([0-9])\) -->\n\Z")


class State(StrEnum):
    """Of one file against what is to stand in it."""

    CURRENT = "current"
    OUTDATED = "outdated"
    MISSING = "missing"


class Change(NamedTuple):
    """What is to become of one file. ``path``: below the folder; ``old`` and ``new``: None where there is no file;
    ``mode``: its permissions; ``folders``: above it, to be made or removed with it."""

    path: str
    state: State
    old: bytes | None
    new: bytes | None
    mode: int | None = None
    folders: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        return self.old != self.new


class _Part(NamedTuple):
    """How one kind of file is written. ``put(path, old, command, folders made)``; ``take(path, old)`` gives what is left,
    None for no file, and how many folders go with it."""

    put: Callable[[str, bytes | None, str, int], bytes]
    take: Callable[[str, bytes], tuple[bytes | None, int]]


def plan(folder: str, targets: Iterable[str], store: str | None, *, remove: bool = False) -> list[Change]:
    """What installing, or removing, changes in ``folder``; nothing is written.

    Raises Usage (no such folder; a store that cannot be named), StoreUnavailable (a link, a folder, or a file that may
    not be written, in the place of a file) and InvalidTransition (half a marker, no JSON, a lone carriage return at
    the end, a file of somebody else's).
    """
    if not os.path.isdir(folder):
        raise Usage(f"there is no folder {folder!r}: --dir names the one that the agent works in")
    if store is not None and (not store.isprintable() or "`" in store or "-->" in store):
        raise Usage("this --store cannot be written into a rule: give it a name without control characters and backquotes")
    command = HOOK + (f" --store {shlex.quote(store)}" if store else "")
    files: dict[str, _Part] = {}
    for name, part in [item for target in targets for item in TARGETS[target].items()]:
        path = _resolved(folder, name)
        if files.setdefault(path, part) is not part:
            raise StoreUnavailable(
                f"{name} is a link to {path}, which is written for another target: make one of them a file of its own",
                hint=f"ls -ld {shlex.quote(os.path.join(folder, name))}",
            )
    return [_change(folder, path, part, command, remove=remove) for path, part in files.items()]


def apply(folder: str, changes: Iterable[Change]) -> None:
    """Do what was planned, each file at once. Raises Conflict where a file was changed meanwhile, StoreUnavailable."""
    changes = list(changes)
    owner = load("checkpoint.store.rights:another_owner")(folder)
    if owner is not None and any(change.changes and change.old is None for change in changes):
        raise load("checkpoint.store.rights:refusal")(folder, owner)
    for change in changes:
        if not change.changes:
            continue
        path = os.path.join(folder, change.path)
        if _read(folder, change.path)[0] != change.old:
            raise Conflict(f"{path} was changed meanwhile: nothing is written to it", hint="checkpoint-tool agents install")
        try:
            if change.new is None:
                os.unlink(path)
                _remove_folders(folder, change.folders)
            else:
                _write(folder, change, change.new)
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be written: {error.strerror}", hint=_ls(path)) from error


# --- files -------------------------------------------------------------------------------------------------------------


def _change(folder: str, path: str, part: _Part, command: str, *, remove: bool) -> Change:
    old, mode = _read(folder, path)
    if old is None:
        missing = _missing_folders(folder, path)
        new = None if remove else part.put(path, None, command, len(missing))
        if new is not None:
            _check_room(folder, path, missing)
        return Change(path, State.MISSING, None, new, None, missing)
    left, made = part.take(path, old)
    wanted = part.put(path, old, command, 0)
    state = State.CURRENT if wanted == old else State.MISSING if left == old else State.OUTDATED
    new = left if remove else wanted
    folders = _above(path)[len(_above(path)) - made :] if new is None else ()
    if new != old and not (mode or 0) & stat.S_IWUSR:
        raise StoreUnavailable(f"{path} is read-only, and is left as it is", hint=f"chmod u+w {shlex.quote(path)}")
    if new != old and not os.access(os.path.join(folder, path), os.W_OK):
        raise StoreUnavailable(f"{path} may not be written by you", hint=_ls(os.path.join(folder, path)))
    if new != old:
        _check_room(folder, path, ())
    return Change(path, state, old, new, mode, folders)


def _resolved(folder: str, name: str) -> str:
    """Where a file really is, below ``folder``: a link may stand in its place, or above it, that the user has made and
    that stays inside of the folder. Raises StoreUnavailable for any other link."""
    root = os.path.realpath(folder)
    path = os.path.relpath(os.path.realpath(os.path.join(root, name)), root)
    for part in (*_above(name), name):
        place = os.path.join(folder, part)
        if not os.path.islink(place):
            continue
        real = os.path.realpath(place)
        if path.split("/")[0] == "..":
            copy = f"cp -RP {shlex.quote(real)} {shlex.quote(place)}"
            remove = f"rm {shlex.quote(place)}"
            raise StoreUnavailable(
                f"{place} is a symbolic link to {real}, outside of {folder}, and is not followed: put a copy in its place",
                hint=f"{remove} && {copy}" if os.path.exists(real) else remove,
            )
        if os.path.islink(real):
            raise StoreUnavailable(f"{place} is a symbolic link that leads back to itself", hint=f"rm {shlex.quote(place)}")
        if os.lstat(place).st_uid not in (os.geteuid(), os.stat(root).st_uid):
            raise StoreUnavailable(
                f"{place} is a symbolic link of another user, and is not followed", hint=f"rm {shlex.quote(place)}"
            )
    return path


def _check_room(folder: str, path: str, missing: tuple[str, ...]) -> None:
    """Before anything is written anywhere: whether a file can be made where this one belongs."""
    place = os.path.join(folder, os.path.dirname(missing[0] if missing else path))
    if not os.access(place, os.W_OK | os.X_OK):
        raise StoreUnavailable(f"{path} cannot be written: its folder may not be written by you", hint=_ls(place))


def _read(folder: str, path: str) -> tuple[bytes | None, int | None]:
    """(the bytes of a file, its permissions), or (None, None) where there is none. Never through a link."""
    for above in _above(path):
        place = os.path.join(folder, above)
        if os.path.islink(place) or (os.path.lexists(place) and not os.path.isdir(place)):
            raise StoreUnavailable(f"{place} is no folder but a link or a file, and is not followed", hint=_ls(place))
    place = os.path.join(folder, path)
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise StoreUnavailable(f"{place} cannot be read: {error.strerror}", hint=_ls(place)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreUnavailable(f"{place} is no file: move away what stands there", hint=_ls(place))
        if status.st_nlink > 1:
            aside = shlex.quote(place + ".new")
            raise StoreUnavailable(
                f"{place} has a second name (a hard link), which would keep the old text: make it a file of its own",
                hint=f"cp -p {shlex.quote(place)} {aside} && mv {aside} {shlex.quote(place)}",
            )
        data = b""
        while len(data) <= LIMIT and (chunk := os.read(fd, 1 << 20)):
            data += chunk
    except OSError as error:
        raise StoreUnavailable(f"{place} cannot be read: {error.strerror}", hint=_ls(place)) from error
    finally:
        os.close(fd)
    if len(data) > LIMIT:
        raise StoreUnavailable(f"{place} is larger than {LIMIT // 1024 // 1024} MiB", hint=_ls(place))
    return data, stat.S_IMODE(status.st_mode)


def _write(folder: str, change: Change, data: bytes) -> None:
    path = os.path.join(folder, change.path)
    made: list[str] = []
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.urandom(6).hex()}.tmp")
    try:
        for above in change.folders:
            os.mkdir(os.path.join(folder, above))
            made.append(above)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(fd, "wb") as file:
            if change.mode is not None:
                before = os.stat(path, follow_symlinks=False)
                if (before.st_uid, before.st_gid) != (os.fstat(fd).st_uid, os.fstat(fd).st_gid):
                    os.fchown(fd, before.st_uid, before.st_gid)
                os.fchmod(fd, change.mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        _remove_folders(folder, made)
        raise


def _above(path: str) -> tuple[str, ...]:
    """The folders above ``path``, the outermost first."""
    parts = path.split("/")[:-1]
    return tuple("/".join(parts[: count + 1]) for count in range(len(parts)))


def _missing_folders(folder: str, path: str) -> tuple[str, ...]:
    return tuple(above for above in _above(path) if not os.path.lexists(os.path.join(folder, above)))


def _remove_folders(folder: str, folders: Iterable[str]) -> None:
    for above in sorted(folders, reverse=True):
        try:
            os.rmdir(os.path.join(folder, above))
        except OSError:
            return  # somebody keeps something in it by now


def _ls(path: str) -> str:
    return f"ls -ld {shlex.quote(path)}"


# --- a section of a text file ------------------------------------------------------------------------------------------


def _put_section(path: str, old: bytes | None, command: str, _folders: int) -> bytes:
    def section(note: str, newline: bytes) -> bytes:
        lines = f"<!-- BEGIN checkpoint-tool rule ({note}) -->\n{rule(command)}<!-- END checkpoint-tool rule -->\n"
        return lines.encode().replace(b"\n", newline)

    if old is None:
        return section("new", b"\n")
    found = _section(path, old)
    first = old.find(b"\n")
    newline = b"\r\n" if first > 0 and old[first - 1 : first] == b"\r" else b"\n"
    if found is not None:
        start, stop, note = found
        return old[:start] + section(note, newline) + old[stop:]
    open_at = _open_fence(old)
    if open_at is not None:
        # What is put behind it would be part of the code that it shows.
        raise InvalidTransition(
            f"{path}: the code fence that begins in line {open_at} is not closed: close it",
            hint=f"sed -n {open_at},\\$p {shlex.quote(path)}",
        )
    if old.endswith(b"\r"):
        # With the line end that is put behind it, it would be one line end, and could not be given back.
        raise InvalidTransition(f"{path} ends in a lone carriage return: end its last line", hint=f"file {shlex.quote(path)}")
    before = 0 if not old else 1 if old.endswith(b"\n") else 2
    return old + newline * before + section(str(before), newline)


def _take_section(path: str, old: bytes) -> tuple[bytes | None, int]:
    found = _section(path, old)
    if found is None:
        return old, 0
    start, stop, note = found
    before, after = old[:start], old[stop:]
    if note == "new":
        return (before + after) or None, 0
    # Something was added behind it since: then the line before it keeps its end.
    for _ in range(min(int(note), 1) if after else int(note)):
        before = before.removesuffix(b"\r\n") if before.endswith(b"\r\n") else before.removesuffix(b"\n")
    return before + after, 0


def _section(path: str, old: bytes) -> tuple[int, int, str] | None:
    """(where it begins, where it ends, what its marker notes), or None where there is none."""
    _check_text(path, old)
    # What a code fence shows is the user's text: a blank line of the same length stands for it.
    text = _without_code(old)
    begins, ends = [*_BEGIN.finditer(text)], [*_END.finditer(text)]
    marks = [*_MARK.finditer(text)]
    if not marks:
        return None
    if len(begins) == len(ends) == 1 and len(marks) == 2 and begins[0].end() <= ends[0].start():
        return begins[0].start(), ends[0].end(), begins[0][1].decode()
    lines = [str(old.count(b"\n", 0, match.start()) + 1) for match in marks]
    raise InvalidTransition(
        f"{path} holds markers of ours that do not belong together (line {', '.join(lines)}): where the rule begins and ends"
        " cannot be told, so delete what is left of it",
        hint=f"grep -n 'checkpoint-tool rule' {shlex.quote(path)}",
    )


def _check_text(path: str, data: bytes) -> None:
    """Raises InvalidTransition for what is no UTF-8 text, with the command that makes it one where that is known."""
    known = next((name for mark, name in _ENCODINGS if data.startswith(mark)), None)
    if known is None and b"\0" in data:
        known = "UTF-16BE" if data.startswith(b"\0") else "UTF-16LE"
    if known is not None:
        aside = shlex.quote(path + ".new")
        raise InvalidTransition(
            f"{path} is {known} text and must be UTF-8; it is left as it is",
            hint=f"iconv -f {known} -t UTF-8 {shlex.quote(path)} >{aside} && mv {aside} {shlex.quote(path)}",
        )
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidTransition(
            f"{path} is not UTF-8 text (line {line}), and is left as it is", hint=f"file {shlex.quote(path)}"
        ) from None


class _Fence(NamedTuple):
    """A code fence of Markdown (spec.commonmark.org, 4.5). ``first``: its line, from 0; ``indent``: the columns that a line
    of the list item or quotation has before it in which the fence stands, 0 where it stands in none."""

    first: int
    sign: bytes
    indent: int


_FENCE = re.compile(rb"((?: |>|(?:[-*+]|\d{1,9}[.)])(?= ))*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
_ITEM = re.compile(rb"[ >]*(?:[-*+]|\d{1,9}[.)]) +(?=[^ ])")


def _without_code(text: bytes) -> bytes:
    """The text with spaces in place of each line in a closed code fence (spec.commonmark.org, 4.5): of the same length."""
    lines = text.splitlines(keepends=True)
    for first, last in _fences(lines)[0]:
        for number in range(first, last + 1):
            bare = lines[number].rstrip(b"\r\n")
            lines[number] = b" " * len(bare) + lines[number][len(bare) :]
    return b"".join(lines)


def _open_fence(text: bytes) -> int | None:
    """The line, from 1, of a code fence that the text ends in."""
    return _fences(text.splitlines(keepends=True))[1]


def _fences(lines: list[bytes]) -> tuple[list[tuple[int, int]], int | None]:
    """(first and last line of each closed code fence; the line, from 1, of one that is still open at the end)."""
    found: list[tuple[int, int]] = []
    fence: _Fence | None = None
    item = 0  # columns before the text of the list item that a line stands in
    for number, line in enumerate(lines):
        bare = line.rstrip(b"\r\n").expandtabs(4)
        indent = len(bare) - len(bare.lstrip(b" >"))
        if fence is not None and bare.strip() and indent < fence.indent:
            fence = None  # the list item or quotation has ended, and the fence with it
        match = _FENCE.fullmatch(bare)
        if fence is not None:
            if match and match[2].startswith(fence.sign) and not (match[1].strip(b" >") or match[3].strip()):
                found.append((fence.first, number))
                fence = None
            continue
        if bare.strip():
            begun = _ITEM.match(bare)
            item = len(begun[0]) if begun else min(item, indent)
        if match is not None and (item or indent <= 3 or b">" in match[1]):
            fence = _Fence(number, match[2], item or (indent if b">" in match[1] else 0))
    return found, None if fence is None or fence.indent else fence.first + 1


def rule(command: str) -> str:
    """The section "Restart-safe workflow rule", with the command that a session begins with."""
    with open(data_path("agents/rule.md"), encoding="utf-8") as file:
        text = file.read()
    store = command.removeprefix(HOOK).strip()
    # What is begun without it would be kept elsewhere, and no later session would find it.
    all_of_them = f"   Every `checkpoint-tool` command here takes `{store}` as well.\n" if store else ""
    return text.replace("\n2. ", f"\n{all_of_them}2. ", 1).replace("@BRIEF@", command)


# --- a file of our own -------------------------------------------------------------------------------------------------


def _whole(template: str) -> _Part:
    def put(path: str, old: bytes | None, command: str, folders: int) -> bytes:
        if old is not None:
            folders = _ours(path, old)
        with open(data_path(f"agents/{template}"), encoding="utf-8") as file:
            head = file.read()
        footer = f"\n<!-- written by checkpoint-tool agents install; changes are lost ({folders}) -->\n"
        return (head + rule(command) + footer).encode()

    return _Part(put, lambda path, old: (None, _ours(path, old)))


def _ours(path: str, old: bytes) -> int:
    """How many folders were made for this file. Raises InvalidTransition for one that we have not written."""
    footer = _FOOTER.search(old)
    if footer is None:
        raise InvalidTransition(
            f"{path} is there and was not written by `agents install`: move it away, or install another target",
            hint="checkpoint-tool agents install --help",
        )
    return int(footer[1])


# --- a start-up hook in a JSON file ------------------------------------------------------------------------------------


def _put_hook(path: str, old: bytes | None, command: str, folders: int) -> bytes:
    entry = {"type": "command", "command": f"{command} --hook", "timeout": 10}
    if old is None:
        # Nothing but spaces can be noted in JSON: a line end more for each folder that is made.
        return _new_hook_file(entry, folders)
    text, data = _settings(path, old)
    found = _our_hooks(data)
    if found == [entry]:
        return old
    if found:
        left, made = _take_hook(path, old)
        if left is None:
            return _new_hook_file(entry, made)
        text, data = _settings(path, left)
    newline = "\r\n" if "\r\n" in text else "\n"
    start = text.index("{")
    hooks = _member(text, start, "hooks")
    groups = None if hooks is None else _member(text, hooks, "SessionStart")
    place, value, fragment = start, data, f'  "hooks": {{"SessionStart": [{_group(entry)}]}}'
    if hooks is not None and groups is None:
        place, value, fragment = hooks, data["hooks"], f'    "SessionStart": [{_group(entry)}]'
    elif groups is not None:
        place, value, fragment = groups, data["hooks"]["SessionStart"], f"      {_group(entry)}"
    inserted = newline + fragment + ("," if value else newline)
    return (text[: place + 1] + inserted + text[place + 1 :]).encode()


def _take_hook(path: str, old: bytes) -> tuple[bytes | None, int]:
    text, data = _settings(path, old)
    found = _our_hooks(data)
    if not found:
        return old, 0
    ends = len(text) - len(text.rstrip("\n"))
    if len(found) == 1:
        if ends and old == _new_hook_file(found[0], ends - 1):
            return None, ends - 1
        group = _group(found[0])
        for fragment in (f'  "hooks": {{"SessionStart": [{group}]}}', f'    "SessionStart": [{group}]', f"      {group}"):
            for newline in ("\r\n", "\n"):
                for behind in (",", newline):
                    inserted = newline + fragment + behind
                    left = text.replace(inserted, "")
                    if text.count(inserted) == 1 and _is_without(left):
                        return left.encode(), 0
    # Somebody has laid the file out anew since: what we put in is taken out of what it means.
    indent = re.search(r"\n([ \t]+)\"", text)
    laid = json.dumps(_without_ours(data), indent=indent[1] if indent else None, ensure_ascii="\\u" in text)
    return (laid + "\n" * min(ends, 1)).encode(), 0


def _settings(path: str, old: bytes) -> tuple[str, dict[str, Any]]:
    """(the text, what it means). Raises InvalidTransition for what is no settings file with hooks as documented."""
    hint = f"python3 -I -m json.tool {shlex.quote(path)}"
    _check_text(path, old)
    if old.startswith(_BOM):
        aside = shlex.quote(path + ".new")
        raise InvalidTransition(
            f"{path} begins with a byte order mark (BOM), which JSON does not allow; it is left as it is",
            hint=f"tail -c +4 {shlex.quote(path)} >{aside} && mv {aside} {shlex.quote(path)}",
        )
    try:
        text = old.decode()
        data = parse(text)
    except ValueError as error:
        raise InvalidTransition(f"{path} is no valid JSON, and is left as it is: {error}", hint=hint) from None
    hooks = data.get("hooks", {}) if isinstance(data, dict) else None
    groups = hooks.get("SessionStart", []) if isinstance(hooks, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise InvalidTransition(f"{path} holds no hooks as they are documented, and is left as it is", hint=hint)
    return text, data


def _our_hooks(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = data.get("hooks", {}).get("SessionStart", [])
    return [entry for group in groups for entry in _entries(group) if _is_ours(entry)]


def _entries(group: Mapping[str, Any]) -> list[Any]:
    entries = group.get("hooks")
    return entries if isinstance(entries, list) else []


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, dict) and str(entry.get("command", "")).startswith(HOOK)


def _is_without(text: str) -> bool:
    try:
        return not _our_hooks(parse(text))
    except ValueError:
        return False


def _without_ours(data: Mapping[str, Any]) -> dict[str, Any]:
    left = []
    for group in data["hooks"]["SessionStart"]:
        entries = [entry for entry in _entries(group) if not _is_ours(entry)]
        if len(entries) == len(_entries(group)):
            left.append(group)
        elif entries:
            left.append({**group, "hooks": entries})
    hooks = {**data["hooks"], "SessionStart": left}
    if not left:
        del hooks["SessionStart"]
    return {key: hooks if key == "hooks" else value for key, value in data.items() if key != "hooks" or hooks}


def _group(entry: Mapping[str, Any]) -> str:
    return json.dumps({"hooks": [entry]}, ensure_ascii=False)


def _new_hook_file(entry: Mapping[str, Any], folders: int) -> bytes:
    return (json.dumps({"hooks": {"SessionStart": [{"hooks": [entry]}]}}, indent=1) + "\n" * (folders + 1)).encode()


def _member(text: str, start: int, name: str) -> int | None:
    """Where the value of a member begins, in the object that begins at ``start`` of a valid JSON text."""
    decoder = json.JSONDecoder()
    place = _solid(text, start + 1)
    while text[place] != "}":
        key, place = decoder.raw_decode(text, place)
        place = _solid(text, _solid(text, place) + 1)
        if key == name:
            return place
        place = _solid(text, decoder.raw_decode(text, place)[1])
        if text[place] == ",":
            place = _solid(text, place + 1)
    return None


def _solid(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place


_SECTION = _Part(_put_section, _take_section)
_SKILL_FILE = _whole("skill.md")
_HOOK_FILE = _Part(_put_hook, _take_hook)

TARGETS: dict[str, dict[str, _Part]] = {
    "agents-md": {"AGENTS.md": _SECTION},
    "claude": {"CLAUDE.md": _SECTION, ".claude/settings.json": _HOOK_FILE},
    "codex": {"AGENTS.md": _SECTION, ".codex/hooks.json": _HOOK_FILE},
    "cursor": {f".cursor/rules/{SKILL}.mdc": _whole("cursor.mdc")},
    "openclaw": {"AGENTS.md": _SECTION, f"skills/{SKILL}/SKILL.md": _SKILL_FILE},
    "skill": {f".agents/skills/{SKILL}/SKILL.md": _SKILL_FILE},
}
"""Target -> the files that the agent's documentation names (docs/agents.md says which document)."""
