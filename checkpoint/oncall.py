"""For whoever is on duty: what is open, asking for quiet, and a test of the channels. Works with the state file alone, so
also while everything else is down.
"""

import argparse
import os
import pwd
import secrets as lots
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from os import uname
from os.path import abspath, dirname, expanduser, isdir, isfile, join, lexists
from typing import Any

from checkpoint import incident, notify, process, secrets
from checkpoint._load import load
from checkpoint.codec import timestamp
from checkpoint.errors import CheckpointError, NotFound, SecretFound, Usage
from checkpoint.followup import Settings
from checkpoint.incident import Ledger, Telling
from checkpoint.monitor import Kind, Severity
from checkpoint.notify import Message, NotDelivered
from checkpoint.render import notice as words
from checkpoint.render import text
from checkpoint.selfcheck import PROGRAM, Parser, add_places, configured, parser, plain_help, seconds, stores_of, write_result
from checkpoint.store import open_store, utc_now
from checkpoint.store.state import STATE_FOLDER, StateFolder, last_run, record_place

NOT_DONE = 3
_ACK_S = 4 * 3600
_MISSED = 3

_ABOUT = {
    "ack": "Say that you have an incident in hand: no notice of it until the time is over or the run moves on. The last run "
    "of an exec that failed is no finding any more until the next one fails.",
    "snooze": "Be told nothing of a checkpoint until the time is over or the checkpoint moves.",
    "silence": "Be told nothing of any checkpoint whose id fits the pattern (* and ?), also of those to come.",
    "unquiet": "End what ack, snooze or silence asked for.",
    "forget": "A store, or a run that vanished, is gone for good: do not miss it any longer.",
    "incidents": "List open incidents, and who asked for quiet about what.",
    "test-notify": "Send a test through each channel.",
}


def settings(options: argparse.Namespace, stores: Sequence[str]) -> Settings:
    """What the options of a check ask of its follow-up. Raises Usage."""
    return Settings(
        place=record_place(options.state, options.root, stores),
        roots=tuple(abspath(expanduser(root)) for root in options.root),
        channels=notify.parse(options.notify),
        telling=Telling(repeat_s=options.repeat, hard_s=options.hard_age, recovery=options.recovery),
        period_s=options.every,
        limit_s=options.timeout,
        metrics=options.metrics,
        html=options.html,
    )


def check_options(arguments: Sequence[str]) -> None:
    """Whether a check could be run with these. Raises Usage."""
    notify.parse(configured(parser(), arguments, {}).notify)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``argv``: the verb and its arguments. Returns the exit status: 0; 2 for bad usage, and of test-notify where a channel
    failed; 16 for a text that looks like a secret; 3 where it could not be done. None of them is a result of a check."""
    verb, *arguments = argv
    try:
        options = configured(_parser(verb), arguments, environ)
        if verb == "test-notify":
            return _test(options, environ)
        place = _kept_at(options, environ)
        if verb == "incidents":
            return _list(_ledger(place), as_json=options.json, every=options.all)
        _change(verb, options, place, environ)
    except CheckpointError as error:
        hint = error.hint or (f"{PROGRAM} {verb} --help" if isinstance(error, Usage) else "")
        if error.as_user:
            hint = load("checkpoint.store.rights:as_user")(error.as_user, [PROGRAM, *argv])
        words = f"{PROGRAM} {verb}: {secrets.redact(error.message)}" + (f" (try: {hint})" if hint else "")
        process.write_stderr(text.escape(words))
        return error.exit_code if isinstance(error, Usage | SecretFound) else NOT_DONE
    return 0


def _kept_at(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Where the check that runs here keeps its record: of the store, or of the workspace that the store is in."""
    stores = stores_of(options, environ)
    place = record_place(options.state, options.root, stores).path
    if options.state or options.root:
        return place
    around = join(dirname(dirname(place)), STATE_FOLDER)
    kept = [one for one in (place, around) if isfile(join(one, "state.json"))]
    # Where both are, one of them belongs to a check that runs no more.
    return max(kept, key=lambda one: stamp.at.timestamp() if (stamp := last_run(one)) else 0.0, default=place)


def _parser(verb: str) -> Parser:
    made = Parser(
        prog=f"{PROGRAM} {verb}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=plain_help,
        description=_ABOUT[verb],
    )
    add_places(made)
    if verb == "incidents":
        made.add_argument("--all", action="store_true", default=False, help="the last resolved ones too")
        made.add_argument("--json", action="store_true", help="one JSON object")
    elif verb == "test-notify":
        made.add_argument("--notify", action="append", metavar="URL", help="where notices go; may be given again")
    else:
        made.add_argument("id", metavar={"silence": "PATTERN", "forget": "ID|PATTERN|STORE"}.get(verb, "ID"))
        if verb not in ("unquiet", "forget"):
            # Whoever acknowledges at night has it in hand: a form to fill in would only keep the pager going.
            bare = verb == "ack"
            made.add_argument(
                "--for",
                dest="for_s",
                type=seconds,
                required=not bare,
                metavar="D",
                help="how long; at most 30d" + (" (4h)" if bare else ""),
            )
            made.add_argument("--by", metavar="NAME", help="who asks (you)")
            made.add_argument("--reason", required=not bare, metavar="TEXT", help="why" + (" (none)" if bare else ""))
    return made


def _change(verb: str, options: argparse.Namespace, place: str, environ: Mapping[str, str]) -> None:
    asked = vars(options)
    by, reason = asked.get("by") or _user(), asked.get("reason", "")
    _refuse_secrets({"id": options.id, "by": by, "reason": reason})
    store, id = abspath(expanduser(options.store[0])) if options.store else None, options.id
    if "/" in id and verb != "forget":
        store, _, id = id.rpartition("/")  # as `incidents` names one of several stores
    settled: list[str] = []
    if verb in ("ack", "unquiet"):
        places = [store] if store else stores_of(options, environ)
        settled = _settle(id, places, by if verb == "ack" else None, reason)
    if settled and not isfile(join(place, "state.json")):
        return
    if not isdir(place):
        raise _nothing(place)
    folder = StateFolder(place)
    with folder.locked():
        ledger = _read(folder)
        if verb == "forget":
            after = _forgotten(ledger, folder, id, store)
        else:
            after = _asked(ledger, verb, id, store, options, by, reason, settled)
        folder.write(incident.to_document(after))
    for quiet in after.quiets:
        if quiet not in ledger.quiets:
            what = f"{quiet.store}/{quiet.pattern}" if quiet.store else quiet.pattern
            process.write_stderr(f"{text.escape(what)}: {words.quiet_words(quiet)}")


def _asked(
    ledger: Ledger,
    verb: str,
    id: str,
    store: str | None,
    options: argparse.Namespace,
    by: str,
    reason: str,
    settled: Sequence[str],
) -> Ledger:
    """The ledger with what is asked for; ``settled``: stores in which a failed run was just acknowledged."""
    before = ledger
    if verb == "ack":
        ledger = incident.without(ledger, Kind.LAST_RUN, ((one, id) for one in settled))
    try:
        if verb == "unquiet":
            return incident.unhush(ledger, id, store=store)
        for_s = vars(options).get("for_s", _ACK_S)
        return incident.hush(ledger, verb, id, store=store, for_s=for_s, by=by, reason=reason, now=utc_now())
    except NotFound:
        if not settled:
            raise
        return ledger if verb == "ack" else before


def _settle(id: str, stores: Sequence[str], by: str | None, reason: str) -> list[str]:
    """Acknowledge the last run of a workflow of ``exec``, where that failed; ``by`` None: take that back. Returns the stores
    in which there was one. Raises StoreUnavailable."""
    settled = []
    for store in stores:
        try:
            if by is not None:
                # The last run of a workflow that was killed is closed by the next one, or else here.
                load("checkpoint.api:Checkpoints")(store).close_interrupted(id)
            mark = open_store(store).acknowledge(id, by, reason)
        except (NotFound, Usage):
            continue
        settled.append(abspath(expanduser(store)))
        said = "in sight again" if by is None else f"acknowledged by {by}, until the next run fails"
        process.write_stderr(text.escape(f"{id}: {said} (run {mark.run_id})"))
    return settled


def _forgotten(ledger: Ledger, folder: StateFolder, named: str, store: str | None) -> Ledger:
    """The ledger without a store, or without the runs that vanished and fit ``named``. Raises NotFound."""
    path = abspath(expanduser(named))
    if path in ledger.stores:
        folder.remember(path, ())
        return incident.forget(ledger, path)
    pattern = named
    if "/" in named:
        above, _, pattern = named.rpartition("/")
        store = abspath(expanduser(above))
    names = set()
    for one in ledger.stores if store is None else (store,):
        seen = [line.split() for line in folder.seen(one)]
        # A line with a time behind it is that of a run that is missed.
        gone = {fields[0].decode() for fields in seen if len(fields) == _MISSED and fnmatchcase(fields[0].decode(), pattern)}
        if gone:
            kept = [b" ".join(fields) for fields in seen if len(fields) != _MISSED or fields[0].decode() not in gone]
            folder.remember(one, kept)
            names |= {(one, id) for id in gone} | {(one, "")}
            for id in gone:
                _accept_loss(one, id)
    if not names:
        missing = f"{named} is no run that vanished, and none of the stores that were looked at"
        raise NotFound(missing, hint=f"{PROGRAM} incidents")
    count = sum(id != "" for _, id in names)
    process.write_stderr(f"forgotten: {count} {'run' if count == 1 else 'runs'}")
    return incident.without(ledger, Kind.VANISHED, names)


def _accept_loss(store: str, id: str) -> None:
    """Tell the store too, which may miss the record by itself."""
    if lexists(join(store, f"{id}.json")):
        return
    try:
        open_store(store).repair(id, None, None)
    except CheckpointError:
        pass  # it does not miss it


def _user() -> str:
    """Who types this; behind sudo, who called that."""
    caller = os.environ.get("SUDO_USER")
    if caller:
        return caller
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _refuse_secrets(fields: Mapping[str, str]) -> None:
    """Raises SecretFound: what is asked for is kept, shown and sent."""
    hits = [hit for name, value in fields.items() for hit in secrets.find(value, f"--{name}")]
    if hits:
        places = ", ".join(dict.fromkeys(f"{hit.path} ({hit.rule})" for hit in hits))
        raise SecretFound(f"this looks like a secret, and would be written down and sent: {places}")


def _list(ledger: Ledger, *, as_json: bool, every: bool) -> int:
    shown = [*ledger.incidents, *(ledger.resolved if every else ())]
    quiet = {entry: incident.quiet_of(ledger, entry) for entry in shown}
    if as_json:
        document = {
            "incidents": [words.incident_document(entry, quiet[entry]) for entry in shown],
            "quiets": [words.quiet_document(entry) for entry in ledger.quiets],
            "undelivered": [{"id": entry.id, "waiting": list(entry.waiting)} for entry in ledger.notices],
            "more": ledger.overflow,
        }
        lines = [text.to_json(document)]
    else:
        several = len({entry.finding.store for entry in shown}) > 1
        lines = [words.incident_line(entry, quiet[entry], place=several) for entry in shown]
        used = set(quiet.values())
        lines += [f"{text.escape(entry.pattern)}: {words.quiet_words(entry)}" for entry in ledger.quiets if entry not in used]
        lines += [f"not delivered yet to {', '.join(entry.waiting)}: notice {entry.id}" for entry in ledger.notices]
        if ledger.overflow:
            lines.append(f"and {ledger.overflow} more findings, beyond those that are followed one by one")
        lines = lines or ["no incident is open"]
    return int(write_result(lines, Severity.OK))


def _test(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    channels = notify.parse(options.notify)
    if not channels:
        raise Usage("no channel is named: --notify URL, or notify in the configuration")
    id, host = lots.token_hex(16), uname().nodename
    subject = f"CHECKPOINT OK {host}: a test of this channel"
    document: dict[str, Any] = {"schema": "checkpoint-notice/v1", "id": id, "host": host, "severity": "OK", "test": True}
    document |= {
        "at": timestamp(utc_now()),
        "subject": subject,
        "attempt": 1,
        "changes": [],
        "still_open": [],
        "more": 0,
    }
    message = Message(id, "OK", text.escape(subject), ("nothing is wrong: somebody asked for this test",), document)
    failed = 0
    for channel in channels:
        try:
            notify.deliver(channel, message, environ)
        except NotDelivered as error:
            failed += 1
            process.write_stderr(text.escape(f"{channel.name}: {error}"))
        else:
            process.write_stderr(f"{channel.name}: delivered")
    return 2 if failed else 0


def _ledger(place: str) -> Ledger:
    if not isdir(place):
        raise _nothing(place)
    return _read(StateFolder(place))


def _read(folder: StateFolder) -> Ledger:
    fields = folder.read()
    if fields is None:
        raise _nothing(folder.path)
    return incident.from_document(fields)


def _nothing(place: str) -> NotFound:
    words = f"no self-check has kept a record in {place}: it does with --notify, --metrics, --html or --state"
    return NotFound(words, hint=f"{PROGRAM} --help")
