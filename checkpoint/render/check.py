"""What the self-check prints: its first line, findings in words and as JSON. Apart from ``text``, which every command loads."""

from collections import Counter
from typing import Any

from checkpoint.codec import timestamp
from checkpoint.monitor import Finding, Kind, Report, Severity
from checkpoint.render.text import duration, escape

_WORDS = {Kind.VANISHED: "vanished", Kind.LAST_RUN: "failed"}


def check_line(report: Report) -> str:
    """The first line of the self-check, as monitoring plugins print it: words, a bar, performance data."""
    policy, oldest = report.policy, report.oldest
    if report.severity is Severity.OK:
        words = f"nothing stale, {report.unfinished} unfinished"
    else:
        parts = []
        counts = Counter(_WORDS.get(finding.kind, "stale") for finding in report.stale)
        parts += [f"{counts[word]} {word}" for word in ("vanished", "stale", "failed") if counts[word]]
        if parts and oldest:
            parts[-1] += f" (oldest {oldest.id or oldest.store}, {duration(oldest.age_s or 0)})"
        if report.unreadable:
            parts.append(f"{report.unreadable} unreadable")
        parts += [finding.detail for finding in report.findings if finding.kind is Kind.FOREIGN]
        missing = [finding for finding in report.findings if finding.severity is Severity.UNKNOWN]
        parts += [finding.detail for finding in missing]
        words = ", ".join(parts)
    performance = (
        f"stale={len(report.stale)};0;{policy.critical_count};0"
        f" oldest_age={max(oldest.age_s or 0, 0) if oldest else 0}s;{policy.threshold_s};{policy.critical_s};0"
        f" unfinished={report.unfinished};;;0 unreadable={report.unreadable};;0;0"
    )
    return f"CHECKPOINT {report.severity.name} - {escape(words).replace('|', '/')} | {performance}"


def finding_line(finding: Finding, *, place: bool) -> str:
    """One finding in words. ``place``: with the store's, where there are several."""
    name = (f"{finding.store}/{finding.id}" if place else finding.id) if finding.id else finding.store
    age = f" for {duration(finding.age_s)}" if finding.age_s is not None else ""
    following = f", next: {finding.next}" if finding.next else ""
    return escape(f"{finding.severity.name} {name}: {finding.reason}{age}: {finding.detail}{following}").replace("|", "/")


def finding_document(finding: Finding) -> dict[str, Any]:
    """One finding as JSON."""
    return finding._asdict() | {
        "severity": finding.severity.name,
        "reason": str(finding.reason),
        "progress_at": timestamp(finding.progress_at) if finding.progress_at else None,
        "in_doubt": list(finding.in_doubt),
    }
