"""checkpoint-selfcheck: says what was left unfinished for too long. No LLM, standard library only.

Exit status and first line are those of a monitoring plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. UNKNOWN is its own
failure, of any kind: a check that could not check never says OK. It writes nothing into checkpoints.

A run that reports anywhere else than to its caller (--state, --notify, --metrics, --html) keeps a record and goes on in
``followup``. One that somebody types by hand, with a threshold of their own, must not open or close anybody's incidents.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from checkpoint import __version__, apart, model, monitor, process
from checkpoint._load import load
from checkpoint.codec import timestamp
from checkpoint.config import directory, found_store, parse_duration, store_path
from checkpoint.errors import CheckpointError, NotFound, Usage
from checkpoint.liveness import Look
from checkpoint.monitor import Finding, Kind, Policy, Reason, Report, Severity
from checkpoint.render import text
from checkpoint.render.check import check_line, finding_document, finding_line
from checkpoint.store import DEFAULT_STORE, find_stores, is_foreign, open_store, utc_now
from checkpoint.store.disk import append_line

PROGRAM = "checkpoint-selfcheck"
VERBS = ("ack", "snooze", "silence", "unquiet", "forget", "incidents", "test-notify")
CONFIG_VARIABLE = "CHECKPOINT_SELFCHECK_CONFIG"
MOST_ON_PAGE = 50
RECENT_ON_PAGE = 20


class Parser(argparse.ArgumentParser):
    """Raises Usage where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise Usage(message, hint=f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """One check. ``argv``: the arguments without the program's name. Returns the exit status."""
    process.fill_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    json = "--json" in arguments
    try:
        if arguments and arguments[0] in VERBS:
            return load("checkpoint.oncall:main")(arguments, os.environ)  # type: ignore[no-any-return]
        return _run(arguments, os.environ)
    except CheckpointError as error:
        return _unknown(error.message + (f" (see {error.hint})" if error.hint else ""), json=json)
    except KeyboardInterrupt:
        return _unknown("interrupted", json=json)
    except Exception as error:  # noqa: BLE001 - whatever went wrong in here, it is UNKNOWN, and never silence
        load("traceback:print_exc")()
        return _unknown(f"a bug in the self-check: {type(error).__name__}: {error}", json=json)


def script() -> NoReturn:
    """The program: ``main``, and the end of the process."""
    process.leave(main())


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    options = configured(parser(), argv, environ)
    stores = stores_of(options, environ)
    recorded = any((options.state, options.notify, options.metrics, options.html))
    if recorded:
        # An incident is known by its store: named in another way, from another folder, it must be the same one.
        stores = [os.path.abspath(os.path.expanduser(store)) for store in stores]
    if options.check_monitor is not None:
        return _check_monitor(options, stores)
    began = time.monotonic()
    if options.ping is not None:
        _ping(options.ping, "/start", "", environ)
    policy = Policy(threshold_s=options.threshold, critical_s=options.critical)
    report = check(stores, policy, utc_now(), limit_s=options.timeout, remember=recorded)
    if not options.store and not options.root and store_path(None, environ) is None:
        report = _with_search(report)
    events: Sequence[Mapping[str, Any]] = ()
    if recorded:
        settings = load("checkpoint.oncall:settings")(options, stores)
        follow_up = load("checkpoint.followup:FollowUp")(
            report, settings, environ, lambda: time.monotonic() - began, _say, lambda: _material(report)
        )
        report, events = follow_up.run()
    if options.log is not None:
        lines_of_log = _log_lines(report, events, time.monotonic() - began)
        failure = apart.write_failure(lambda: append_line(options.log, lines_of_log), options.timeout)
        if failure is not None:
            words = f"the log {options.log} {failure}"
            _say(f"{PROGRAM}: {words}")
            report = monitor.failed(report, Reason.UNLOGGED, options.log, words)
    severity = report.severity
    # With channels the notices speak, once: this would say the same again at each run.
    if options.quiet and (severity is Severity.OK or options.notify):
        lines = []
    elif options.json:
        lines = [text.to_json(_document(report))]
    else:
        lines = [
            check_line(report),
            *(finding_line(finding, place=len(report.stores) > 1) for finding in report.findings),
        ]
    severity = write_result(lines, severity)
    if options.ping is not None:
        _ping(options.ping, "" if severity is Severity.OK else "/fail", check_line(report), environ)
    return int(severity)


def check(stores: Sequence[str], policy: Policy, now: datetime, *, limit_s: float = 10, remember: bool = False) -> Report:
    """Look at every unfinished checkpoint of the stores, and at nothing else. Raises nothing for a bad file or store.

    Each store is read by a process of its own; one that gives no sign for ``limit_s`` seconds is a finding, and silences
    no other. ``remember``: the report says which runs were seen.
    """
    findings: list[Finding] = []
    unfinished = 0
    idle_since: datetime | None = None
    seen: dict[str, list[bytes]] = {}
    blind: set[str] = set()
    works = [lambda send, store=store: _look(store, policy, now, remember, send) for store in stores]
    for position, item in apart.each(works, limit_s):
        store = stores[position]
        if isinstance(item, apart.NoAnswer):
            blind.add(store)
            findings = [finding for finding in findings if finding.store != store]
            words = f"the store {store} does not answer: no sign of it for {limit_s} s"
            findings.append(monitor.missing_store(store, words))
        elif isinstance(item, apart.Failed):
            blind.add(store)
            words = f"a bug in the self-check, or its end: the store {store} was not looked at: {item}"
            findings.append(monitor.missing_store(store, words))
        elif item[0] == "finding":
            findings.append(_received(item[1]))
        else:
            _, count, moved, lines = item
            unfinished += count
            if moved is not None:
                idle_since = min(idle_since or datetime.max.replace(tzinfo=UTC), datetime.fromisoformat(moved))
            seen.setdefault(store, []).append(lines)
    blind |= {finding.store for finding in findings if finding.kind is Kind.STORE}
    report = monitor.report(now, stores, monitor.last_runs(findings), unfinished, policy, idle_since)
    known = {store: b"".join(lines) for store, lines in seen.items() if store not in blind}
    return report._replace(seen=known if remember else {})


def _look(store: str, policy: Policy, now: datetime, remember: bool, send: apart.Send) -> None:
    """Read one store and send what is found: findings, then counts."""
    look = Look()

    def tell(finding: Finding) -> None:
        send(("finding", _sent(finding)))

    unfinished = 0
    idle_since: datetime | None = None
    foreign: list[str] = []
    lines: list[str] = []
    try:
        opened = open_store(store)
        for entry in opened.scan(failing=True):
            send(apart.ALIVE)
            checkpoint = entry.checkpoint
            if checkpoint is None:
                assert entry.error is not None
                if is_foreign(entry):
                    foreign.append(entry.place)
                else:
                    tell(monitor.judge_error(entry.name, entry.error, store))
                continue
            if not checkpoint.unfinished:
                tell(monitor.judge_last(checkpoint, now, policy, store))
                continue
            unfinished += 1
            if remember:
                lines.append(f"{checkpoint.id} {checkpoint.run_id}\n")
            moved = checkpoint.progress_at
            idle_since = moved if idle_since is None or moved < idle_since else idle_since
            standing = look.standing(checkpoint, opened, now)
            finding = monitor.judge(checkpoint, standing, now, policy, store)
            if finding is not None:
                tell(finding)
        if foreign:
            tell(monitor.foreign(store, foreign))
    except NotFound:
        tell(monitor.missing_store(store, f"there is no store at {store}"))
    except CheckpointError as error:
        tell(monitor.missing_store(store, error.message))
    send(("counts", unfinished, idle_since and idle_since.isoformat(), "".join(lines).encode()))


def _sent(finding: Finding) -> tuple[Any, ...]:
    plain = finding._replace(
        severity=int(finding.severity),  # type: ignore[arg-type]
        reason=str(finding.reason),  # type: ignore[arg-type]
        progress_at=finding.progress_at and finding.progress_at.isoformat(),  # type: ignore[arg-type]
    )
    return tuple(plain)


def _received(fields: Sequence[Any]) -> Finding:
    finding = Finding(*fields)
    moved: Any = finding.progress_at
    return finding._replace(
        severity=Severity(finding.severity),
        reason=Reason(finding.reason),
        progress_at=None if moved is None else datetime.fromisoformat(moved),
    )


def _with_search(report: Report) -> Report:
    """A store that is missing, where none was named: the finding says in which directories it was looked for."""
    looked = load("checkpoint.store.search:search")().looked
    if not looked:
        return report
    found = [
        finding._replace(detail=f"{finding.detail}, looked for in {', '.join(looked)}")
        if finding.reason is Reason.MISSING_STORE
        else finding
        for finding in report.findings
    ]
    return report._replace(findings=tuple(found))


def _material(report: Report) -> Any:
    """For the page: the runs with findings, the gravest first, then others; read again, as a check keeps none of them."""
    wanted = {(finding.store, finding.id): finding for finding in report.findings if finding.kind in (Kind.STALE, Kind.CLOCK)}
    chosen: dict[tuple[str, str], model.View] = {}
    recent: list[model.Checkpoint] = []
    look = Look()
    blind = {finding.store for finding in report.findings if finding.kind is Kind.STORE}
    for name in report.stores:
        if name in blind:
            continue  # one that does not answer must not hold up the page
        try:
            store = open_store(name)
            for entry in store.scan():
                key = (name, entry.name)
                if entry.checkpoint is not None and (key in wanted or len(chosen) < MOST_ON_PAGE):
                    standing = look.standing(entry.checkpoint, store, report.at)
                    chosen[key] = model.view(entry.checkpoint, standing)
            recent += [entry.checkpoint for entry in store.recent(RECENT_ON_PAGE) if entry.checkpoint is not None]
        except CheckpointError:
            continue  # it is a finding already
    order = {key: position for position, key in enumerate(wanted)}
    ranked = sorted(chosen, key=lambda key: order.get(key, len(order)))[:MOST_ON_PAGE]
    recent.sort(key=lambda checkpoint: checkpoint.finished_at or checkpoint.updated_at, reverse=True)
    return load("checkpoint.followup:Material")(
        unfinished=[(store, chosen[store, id], wanted.get((store, id))) for store, id in ranked],
        more=report.unfinished - len(ranked),
        recent=recent[:RECENT_ON_PAGE],
    )


def _check_monitor(options: argparse.Namespace, stores: Sequence[str]) -> int:
    """Whether a self-check ran lately, going by the stamps that it left: the oldest of them counts."""
    state, place = load("checkpoint.store.state:state_of"), load("checkpoint.store.state:record_place")
    last_run = load("checkpoint.store.state:last_run")
    now = utc_now()
    kept = bool(options.state or options.root)
    places = [place(options.state, options.root, stores).path] if kept else [state(store) for store in stores]

    def look(place: str, send: apart.Send) -> None:
        stamp = last_run(place)
        send((now - stamp.at).total_seconds() if stamp else "never")

    works = [lambda send, place=place: look(place, send) for place in places]
    found = dict(apart.each(works, options.timeout))
    # One that does not answer proves as little as one that is not there.
    ages = {place: age if isinstance(age := found[at], float) else None for at, place in enumerate(places)}
    never = [place for place, age in ages.items() if age is None]
    oldest_s = max((age for age in ages.values() if age is not None), default=0.0)
    # A stamp from the future proves nothing about the last minutes.
    future = any(age is not None and age < -options.check_monitor for age in ages.values())
    severity = Severity.CRITICAL if never or future or oldest_s > options.check_monitor else Severity.OK
    words = f"the self-check last ran {text.duration(max(0, int(oldest_s)))} ago"
    if never:
        words = f"no self-check that keeps a record has ever run: {', '.join(never)}"
    elif future:
        words = "the last self-check lies in the future: a clock is or was wrong"
    performance = f"last_run_age={oldest_s:.0f}s;;{options.check_monitor};0"
    line = f"CHECKPOINT {severity.name} - {text.escape(words).replace('|', '/')} | {performance}"
    if options.json:
        line = text.to_json({"status": severity.name, "exit_code": int(severity), "message": words, "age_s": round(oldest_s)})
    return int(write_result([line], severity))


def write_result(lines: Sequence[str], severity: Severity) -> Severity:
    """Print the result. Returns its severity: UNKNOWN, unless it is CRITICAL, where it could not be written."""
    try:
        process.write_stdout("".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))
    except OSError as error:
        _say(f"{PROGRAM}: the result cannot be written: {error.strerror}")
        return Severity.CRITICAL if severity is Severity.CRITICAL else Severity.UNKNOWN
    return severity


def _ping(address: str, end: str, body: str, environ: Mapping[str, str]) -> None:
    ping, failure = load("checkpoint.notify:ping"), load("checkpoint.notify:NotDelivered")
    try:
        ping(address, end, body, environ)
    except failure as error:
        _say(f"{PROGRAM}: the ping was not taken: {error}")


def parser() -> argparse.ArgumentParser:
    """The options of a check. Their defaults stand in DEFAULTS, below those of a configuration file."""
    made = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=plain_help,
        description="Says which unfinished checkpoints made no progress for too long, and why.",
        epilog="Exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (could not check). Durations: 90s 10m 2h 7d. "
        f"Verbs of their own, each with --help: {', '.join(VERBS)}.",
    )
    add_places(made)
    add = made.add_argument
    add("--threshold", type=seconds, metavar="D", help="without progress before it is stale (10m)")
    add("--critical", type=seconds, metavar="D", help="age from which stale is critical (24h)")
    add("--json", action="store_true", help="one JSON object instead of lines")
    add("--quiet", action="store_true", help="print nothing while all is well; with --notify leave talking to the notices")
    add("--log", metavar="FILE", help="append a JSON line for the run and one for each finding")
    add("--notify", action="append", metavar="URL", help="where notices go; may be given again (see docs/selfcheck.md)")
    add("--repeat", type=seconds, metavar="D", help="until what is unchanged is told again, doubling up to 24h (4h)")
    add("--hard-age", type=seconds, metavar="D", help="age past which no ack, snooze or silence counts (72h)")
    add("--no-recovery", dest="recovery", action="store_false", help="do not tell what is over")
    add("--metrics", metavar="FILE", help="metrics for the textfile collector of Prometheus")
    add("--html", metavar="FILE", help="a page")
    add("--every", type=seconds, metavar="D", help="how often this runs (10m): the page and others say when it does not")
    add("--ping", metavar="URL", help="watcher to be told URL/start, then URL or URL/fail")
    add("--timeout", type=seconds, metavar="D", help="for a store or file that gives no sign (10s)")
    add("--check-monitor", type=seconds, metavar="D", help="only say whether a self-check ran within this time: exit 0 or 2")
    add("--version", action="version", version=f"{PROGRAM} {__version__}")
    return made


def plain_help(prog: str) -> argparse.HelpFormatter:
    """Of a fixed width: to ask the terminal for its own, argparse loads 4 ms of modules for each option that is added."""
    return argparse.HelpFormatter(prog, width=100)


DEFAULTS: Mapping[str, Any] = {
    "store": (),
    "root": (),
    "state": None,
    "threshold": 600,
    "critical": 86400,
    "json": False,
    "quiet": False,
    "log": None,
    "notify": (),
    "repeat": 4 * 3600,
    "hard_age": 72 * 3600,
    "recovery": True,
    "metrics": None,
    "html": None,
    "every": 600,
    "ping": None,
    "timeout": 10,
    "check_monitor": None,
}


def add_places(made: argparse.ArgumentParser) -> None:
    """The options that say which stores are meant, and where the record of them is kept."""
    add = made.add_argument
    add("--config", metavar="FILE", help=f"settings, as TOML; options win (${CONFIG_VARIABLE})")
    add("--store", action="append", metavar="DIR", help="a store; may be given again ($CHECKPOINT_STORE)")
    add("--root", action="append", metavar="DIR", help="a workspace: memory/checkpoints and agents/*/memory/checkpoints in it")
    add("--state", metavar="DIR", help="where incidents are kept (.selfcheck in the first store)")


def configured(made: argparse.ArgumentParser, argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """The options as given, else as the configuration file has them, else the defaults. Raises Usage."""
    given = vars(made.parse_args(argv))
    path = given.pop("config", None) or environ.get(CONFIG_VARIABLE)
    file = load("checkpoint.settings:read")(path) if path else {}
    if {"store", "root"} & given.keys():
        file = {name: value for name, value in file.items() if name not in ("store", "root")}
    options = argparse.Namespace(**{**DEFAULTS, **file, **given})
    options.store = [store_path(store, {}) for store in options.store]
    options.root = [directory(root, "--root") for root in options.root]
    if options.state:
        options.state = directory(options.state, "--state")
    for name in ("state", "log", "metrics", "html", "ping"):
        if getattr(options, name) == "":
            raise Usage(f"--{name} is empty")
    return options


def seconds(value: str) -> int:
    """A duration, for argparse."""
    try:
        return parse_duration(value)
    except Usage as error:
        raise argparse.ArgumentTypeError(error.message) from None


def stores_of(options: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    """The stores that are meant, each once. Raises Usage."""
    found = _found(options.store, options.root, options.timeout) or [found_store(None, environ)]
    for store in found:
        try:
            store.encode()
        except UnicodeEncodeError:
            raise Usage(f"{store!r} is no UTF-8, and could be named in no record: give it another name") from None
    return found


def _found(stores: Sequence[str], roots: Sequence[str], limit_s: float) -> list[str]:
    """``find_stores``; a workspace that does not answer is named by the store that it should have."""
    if not roots and len(stores) < 2:
        return list(stores)
    try:
        return apart.call(lambda: find_stores(stores, roots), limit_s)  # type: ignore[no-any-return]
    except apart.NoAnswer:
        pass
    found = list(stores)
    works = [lambda send, root=root: send(find_stores((), [root])) for root in roots]
    for at, stores_of_root in apart.each(works, limit_s):
        silent = isinstance(stores_of_root, apart.NoAnswer)
        found += [os.path.join(roots[at], DEFAULT_STORE)] if silent else stores_of_root
    return list({os.path.abspath(store): store for store in found}.values())


def _document(report: Report) -> dict[str, Any]:
    return {
        "status": report.severity.name,
        "exit_code": int(report.severity),
        "checked_at": timestamp(report.at),
        "stores": list(report.stores),
        "unfinished": report.unfinished,
        "stale": len(report.stale),
        "unreadable": report.unreadable,
        "findings": [finding_document(finding) for finding in report.findings],
    }


def _log_lines(report: Report, events: Sequence[Mapping[str, Any]], took_s: float) -> bytes:
    run = _document(report)
    del run["findings"]
    at = run.pop("checked_at")
    lines = [{"at": at, "event": "run", **run, "duration_ms": round(took_s * 1000)}]
    lines += [{"at": at, "event": "finding", **finding_document(finding)} for finding in report.findings]
    lines += [dict(event) for event in events]
    return "".join(text.to_json(line) + "\n" for line in lines).encode()


def _unknown(words: str, *, json: bool) -> int:
    line = f"CHECKPOINT UNKNOWN - {text.escape(words)}".replace("|", "/")
    if json:
        line = text.to_json({"status": "UNKNOWN", "exit_code": int(Severity.UNKNOWN), "error": words})
    try:
        process.write_stdout(line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        _say(line)
    return int(Severity.UNKNOWN)


def _say(words: str) -> None:
    process.write_stderr(text.escape(words))


if __name__ == "__main__":
    script()
