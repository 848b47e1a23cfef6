"""For whoever is on duty: what is open, asking for quiet, and a test of the channels. Works with the state file alone, so
also while everything else is down.
"""

import argparse
import secrets
from collections.abc import Mapping, Sequence
from os import uname
from os.path import abspath, dirname, expanduser, isdir, isfile, join
from typing import Any

from checkpoint import incident, notify, process
from checkpoint._load import load
from checkpoint.codec import timestamp
from checkpoint.errors import CheckpointError, NotFound, Usage
from checkpoint.followup import Settings
from checkpoint.incident import Ledger, Telling
from checkpoint.notify import Message, NotDelivered
from checkpoint.render import notice as words
from checkpoint.render import text
from checkpoint.selfcheck import PROGRAM, Parser, add_places, configured, parser, plain_help, seconds, stores_of
from checkpoint.store import utc_now
from checkpoint.store.state import STATE_FOLDER, StateFolder, last_run, record_place

_ABOUT = {
    "ack": "Say that somebody has an incident in hand: nothing is told of it until the time is over or the checkpoint moves.",
    "snooze": "Be told nothing of a checkpoint until the time is over or the checkpoint moves.",
    "silence": "Be told nothing of any checkpoint whose id fits the pattern (* and ?), also of those to come.",
    "unquiet": "End what ack, snooze or silence asked for.",
    "forget": "A store that was found in a workspace is gone for good: do not miss it any longer.",
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
        metrics=options.metrics,
        html=options.html,
    )


def check_options(arguments: Sequence[str]) -> None:
    """Whether a check could be run with these. Raises Usage."""
    notify.parse(configured(parser(), arguments, {}).notify)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``argv``: the verb and its arguments. Returns the exit status: 0, or 3 where it could not be done; of test-notify 2
    where a channel failed."""
    verb, *arguments = argv
    options = configured(_parser(verb), arguments, environ)
    try:
        if verb == "test-notify":
            return _test(options, environ)
        place = _kept_at(options, environ)
        if verb == "incidents":
            _list(_ledger(place), as_json=options.json, every=options.all)
        else:
            _change(verb, options, place)
    except CheckpointError as error:
        hint = error.hint
        if error.as_user:
            hint = load("checkpoint.store.rights:as_user")(error.as_user, [PROGRAM, *argv])
        process.write_stderr(text.escape(f"{PROGRAM} {verb}: {error.message}" + (f" (try: {hint})" if hint else "")))
        return 3
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
        made.add_argument("id", metavar={"silence": "PATTERN", "forget": "STORE"}.get(verb, "ID"))
        if verb not in ("unquiet", "forget"):
            made.add_argument("--for", dest="for_s", type=seconds, required=True, metavar="D", help="how long; at most 30d")
            made.add_argument("--by", required=True, metavar="NAME", help="who asks")
            made.add_argument("--reason", required=True, metavar="TEXT", help="why")
    return made


def _change(verb: str, options: argparse.Namespace, place: str) -> None:
    if not isdir(place):
        raise _nothing(place)
    folder = StateFolder(place)
    store, id = abspath(expanduser(options.store[0])) if options.store else None, options.id
    if "/" in id and verb != "forget":
        store, _, id = id.rpartition("/")  # as `incidents` names one of several stores
    with folder.locked():
        ledger = _read(folder)
        if verb == "unquiet":
            after = incident.unhush(ledger, id, store=store)
        elif verb == "forget":
            after = incident.forget(ledger, abspath(expanduser(id)))
        else:
            after = incident.hush(
                ledger,
                verb,
                id,
                store=store,
                for_s=options.for_s,
                by=options.by,
                reason=options.reason,
                now=utc_now(),
            )
        folder.write(incident.to_document(after))
    for quiet in after.quiets:
        if quiet not in ledger.quiets:
            what = f"{quiet.store}/{quiet.pattern}" if quiet.store else quiet.pattern
            process.write_stderr(f"{text.escape(what)}: {words.quiet_words(quiet)}")


def _list(ledger: Ledger, *, as_json: bool, every: bool) -> None:
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
    process.write_stdout("".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))


def _test(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    channels = notify.parse(options.notify)
    if not channels:
        raise Usage("no channel is named: --notify URL, or notify in the configuration")
    id, host = secrets.token_hex(16), uname().nodename
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
