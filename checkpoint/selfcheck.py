"""checkpoint-selfcheck: says what was left unfinished for too long. No LLM, no network, standard library only.

Exit status and first line are those of a monitoring plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. UNKNOWN is its own
failure, of any kind: a check that could not check never says OK. It writes nothing into the stores.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from checkpoint import __version__, model, monitor, process
from checkpoint._load import load
from checkpoint.codec import timestamp
from checkpoint.config import parse_duration, store_path
from checkpoint.errors import CheckpointError, NotFound, Usage
from checkpoint.monitor import Finding, Policy, Report, Severity
from checkpoint.render import text
from checkpoint.store import find_stores, open_store
from checkpoint.store.disk import append_line

PROGRAM = "checkpoint-selfcheck"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (see {PROGRAM} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """One check. ``argv``: the arguments without the program's name. Returns the exit status."""
    process.fill_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    json = "--json" in arguments
    try:
        return _run(arguments, os.environ)
    except CheckpointError as error:
        return _unknown(error.message, json=json)
    except KeyboardInterrupt:
        return _unknown("interrupted", json=json)
    except Exception as error:  # noqa: BLE001 - whatever went wrong in here, it is UNKNOWN, and never silence
        load("traceback:print_exc")()
        return _unknown(f"a bug in the self-check: {type(error).__name__}: {error}", json=json)


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    options = _parser().parse_args(argv)
    began = time.monotonic()
    policy = Policy(threshold_s=options.threshold, critical_s=options.critical)
    report = check(_stores(options, environ), policy, datetime.now(UTC))
    if options.log is not None:
        try:
            append_line(options.log, _log_lines(report, time.monotonic() - began))
        except OSError as error:
            words = f"the log {options.log} cannot be written: {error.strerror}"
            _say(f"{PROGRAM}: {words}")
            report = monitor.unlogged(report, options.log, words)
    severity = report.severity
    if options.quiet and severity is Severity.OK:
        lines = []
    elif options.json:
        lines = [text.to_json(_document(report))]
    else:
        lines = [
            text.check_line(report),
            *(text.finding_line(finding, place=len(report.stores) > 1) for finding in report.findings),
        ]
    try:
        process.write_stdout("".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))
    except OSError as error:
        _say(f"{PROGRAM}: the result cannot be written: {error.strerror}")
        severity = Severity.CRITICAL if severity is Severity.CRITICAL else Severity.UNKNOWN
    return int(severity)


def check(stores: Sequence[str], policy: Policy, now: datetime) -> Report:
    """Look at every unfinished checkpoint of the stores, and at nothing else. Raises nothing for a bad file or store."""
    findings: list[Finding] = []
    unfinished = 0
    # Asked once for each process: a run judges one moment, and one agent may hold very many.
    liveness = functools.cache(process.liveness)
    for store in stores:
        try:
            for entry in open_store(store).scan():
                if entry.checkpoint is None:
                    assert entry.error is not None
                    findings.append(monitor.judge_error(entry.name, entry.error, store))
                    continue
                unfinished += 1
                standing = model.standing(entry.checkpoint, lambda holder: liveness(_process(holder)), now)
                finding = monitor.judge(entry.checkpoint, standing, now, policy, store)
                if finding is not None:
                    findings.append(finding)
        except NotFound:
            findings.append(monitor.missing_store(store, f"there is no store at {store}"))
        except CheckpointError as error:
            findings.append(monitor.missing_store(store, error.message))
    return monitor.report(now, stores, findings, unfinished, policy)


def _process(holder: model.Lease | model.StepProcess | None) -> process.Process | None:
    if holder is None:
        return None
    return process.Process(holder.host, holder.boot_id, holder.pid_ns, holder.pid, holder.pid_started)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Says which unfinished checkpoints made no progress for too long, and why.",
        epilog="Exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (could not check). Durations: 90s 10m 2h 7d.",
    )
    add = parser.add_argument
    add("--store", action="append", metavar="DIR", help="a store; may be given again ($CHECKPOINT_STORE)")
    add("--root", action="append", metavar="DIR", help="a workspace: memory/checkpoints and agents/*/memory/checkpoints in it")
    add("--threshold", type=_seconds, default=600, metavar="D", help="without progress before it is stale (10m)")
    add("--critical", type=_seconds, default=86400, metavar="D", help="age from which stale is critical (24h)")
    add("--json", action="store_true", help="one JSON object instead of lines")
    add("--quiet", action="store_true", help="print nothing while all is well")
    add("--log", metavar="FILE", help="append a JSON line for the run and one for each finding")
    add("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _seconds(value: str) -> int:
    try:
        return parse_duration(value)
    except Usage as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _stores(options: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    stores = [store_path(store, environ) for store in options.store or ()]
    if "" in (options.root or ()):
        raise Usage("--root is empty: name a folder")
    return find_stores(stores, options.root or ()) or [store_path(None, environ)]


def _document(report: Report) -> dict[str, Any]:
    return {
        "status": report.severity.name,
        "exit_code": int(report.severity),
        "checked_at": timestamp(report.at),
        "stores": list(report.stores),
        "unfinished": report.unfinished,
        "stale": len(report.stale),
        "unreadable": report.unreadable,
        "findings": [text.finding_document(finding) for finding in report.findings],
    }


def _log_lines(report: Report, took_s: float) -> bytes:
    run = _document(report)
    del run["findings"]
    at = run.pop("checked_at")
    lines = [{"at": at, "event": "run", **run, "duration_ms": round(took_s * 1000)}]
    lines += [{"at": at, "event": "finding", **text.finding_document(finding)} for finding in report.findings]
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
    sys.exit(main())
