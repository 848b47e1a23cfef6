"""The verbs that look after a store: verify, repair, prune, pin, unpin."""

from typing import Annotated, Any

import typer

from checkpoint._load import load
from checkpoint.api import NEWER, Listed, Repair
from checkpoint.cli.options import Id, Json, Store, emit, emit_view, open_checkpoints, say, seconds
from checkpoint.errors import Damaged, SchemaMismatch, Usage
from checkpoint.model import RECORD_LIMIT, clock
from checkpoint.render import text


def verify(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Left out: every file.", show_default=False)
    ] = None,
    json: Json = False,
    store: Store = None,
) -> None:
    """Check every file, or some: whole, unaltered, true to its schema. Reads only. Exit 12 when one is not."""
    result = open_checkpoints(store).verify(ids or ())
    findings = [finding._asdict() for finding in result.findings]
    if json:
        summary = {
            "checked": result.checked,
            "damaged": findings,
            "leftovers": [*result.leftovers],
            "foreign": [*result.foreign],
        }
        if result.notes:
            summary["notes"] = [*result.notes]
        emit(text.to_json(summary) + "\n", changed=False)
    else:
        lines = [
            text.escape(f"{finding.place}: {finding.kind}: {problem}")
            for finding in result.findings
            for problem in finding.problems
        ]
        lines += [f"{place}: left over, harmless" for place in map(text.escape, result.leftovers)]
        lines += [f"WARNING: {note}" for note in map(text.escape, result.notes)]
        lines += [f"{place}: foreign, no file of the store" for place in map(text.escape, result.foreign)]
        lines.append(f"{result.checked} checked, {len(findings)} bad" if findings else f"{result.checked} checked, all whole")
        emit("\n".join(lines) + "\n", changed=False)
    if findings:
        damaged = [finding for finding in result.findings if finding.kind != NEWER]
        if not damaged:
            raise SchemaMismatch(
                f"{len(findings)} of {result.checked} files are of a newer version", hint="checkpoint-tool --version"
            )
        repairable = [finding.place for finding in damaged if finding.kind not in ("name", "unreadable")]
        first = repairable[0].rpartition("/")[2].removesuffix(".json") if repairable else None
        raise Damaged(
            f"{len(damaged)} of {result.checked} files are damaged",
            kind=damaged[0].kind,
            hint=f"checkpoint-tool repair {first}" if first else "checkpoint-tool verify --json",
        )


def repair(
    id: Id,
    accept: Annotated[bool, typer.Option("--accept", help="Take the content as it now is; seal it anew.")] = False,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Set the file aside.")] = False,
    json: Json = False,
    store: Store = None,
) -> None:
    """Show what is wrong with a damaged checkpoint, and mend it. The old file is kept in quarantine/ either way."""
    if accept and quarantine:
        raise Usage("--accept and --quarantine exclude each other")
    done = open_checkpoints(store).repair(id, accept=accept, quarantine=quarantine)
    difference = _difference(done)
    if json:
        fields: dict[str, Any] = {
            "id": id,
            "damage": None if done.damage is None else done.damage.message,
            "difference": difference,
            "can_accept": done.acceptable,
            "kept": done.kept,
        }
        emit(text.to_json(fields) + "\n", changed=done.kept is not None)
    elif done.damage is None:
        emit(f"{text.escape(id)} is whole: nothing to repair\n", changed=False)
    else:
        words = [text.escape(done.damage.message), *map(text.escape, difference)]
        if isinstance(done.damage, Damaged) and done.damage.kind == "digest" and done.kept is None:
            words.append("what was changed cannot be told from the file alone: read it before you accept it")
        if done.kept is not None:
            words.append(_done_words(done, accept=accept))
        emit("\n".join(words) + "\n", changed=done.kept is not None)
    if done.damage is not None and done.kept is None:
        way = "--accept" if done.acceptable else "--quarantine"
        raise Damaged(
            f"{id} is damaged and was left as it is",
            kind=done.damage.kind if isinstance(done.damage, Damaged) else "schema",
            hint=f"checkpoint-tool repair {id} {way}",
        )


def prune(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="D", help="Finished longer ago. [30d, unless --keep is given]", show_default=False),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the newest N of each workflow.", show_default=False)
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; else only say what would be done.")] = False,
    json: Json = False,
    store: Store = None,
) -> None:
    """Forget old finished runs. Never unfinished or pinned ones. A key that is forgotten begins a new run when used again."""
    if keep is not None and keep < 0:
        raise Usage("--keep must be 0 or more")
    checkpoints = open_checkpoints(store)
    result = checkpoints.prune(older_than_s=seconds(older_than), keep=keep, apply=apply)
    if json:
        removed = [_brief(listed) for listed in result.candidates]
        fields = {"applied": apply, "removed": removed, "kept": result.kept, "unreadable": result.unreadable}
        emit(text.to_json(fields) + "\n", changed=apply)
        return
    lines = []
    for listed in result.candidates:
        brief = _brief(listed)
        lines.append(text.to_tsv((brief["id"], brief["run_id"], brief["status"], brief["finished_at"])))
    emit("".join(line + "\n" for line in lines), changed=apply)
    count = len(result.candidates)
    say(f"{count} removed, {result.kept} kept" if apply else f"{count} would be removed (--apply does it), {result.kept} kept")
    if result.unreadable:
        say(f"{result.unreadable} could not be read, and are left alone: checkpoint-tool verify")


def pin(id: Id, json: Json = False, store: Store = None) -> None:
    """Keep a run from prune."""
    _pin(id, store, pinned=True, json=json)


def unpin(id: Id, json: Json = False, store: Store = None) -> None:
    """Let prune have it again."""
    _pin(id, store, pinned=False, json=json)


def _pin(id: str, store: str | None, *, pinned: bool, json: bool) -> None:
    emit_view(open_checkpoints(store).pin(id, pinned), json=json)


def _done_words(done: Repair, *, accept: bool) -> str:
    if isinstance(done.damage, Damaged) and done.damage.kind == "vanished":
        return "accepted that it is gone; the next start begins a new run"
    return f"{'accepted' if accept else 'set aside'}; the old file is {done.kept}"


def _difference(done: Repair) -> list[str]:
    """The stored text against the one that --accept would write; a field a line in both, so that it can be compared."""
    if done.new_text is None or len(done.old_text) > RECORD_LIMIT:
        return []
    unified = load("difflib:unified_diff")
    return [*unified(done.old_text.splitlines(), done.new_text.splitlines(), "stored", "accepted", lineterm="", n=1)]


def _brief(listed: Listed) -> dict[str, Any]:
    assert listed.view is not None
    checkpoint = listed.view.checkpoint
    finished = checkpoint.finished_at or checkpoint.updated_at
    return {
        "id": checkpoint.id,
        "run_id": checkpoint.run_id,
        "status": str(checkpoint.status),
        "finished_at": clock(finished),
    }
