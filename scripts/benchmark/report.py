"""The tables of scripts/bench as Markdown: the budgets on the terminal, all of it with a picture for docs/bench."""

from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark.groups import CONTROL
from scripts.benchmark.measure import Group, Row
from scripts.benchmark.plot import number, svg

STEADY = 0.05
"""A budget of 1.15 cannot be judged by a run that finds more than this between a program and itself."""

ALONG = {"growth": "steps of the workflow", "selfcheck": "unfinished checkpoints", "keys": "finished runs in the store"}


def steady(groups: Sequence[Group]) -> bool:
    """Whether the control came out the same as itself; True without a control."""
    controls = [row.result for group in groups for row in group.rows if row.what == CONTROL]
    return all(abs(middle - 1) <= STEADY and high <= 2 * low for low, middle, high in controls)


def _verdict(row: Row, judged: bool) -> str:
    """A run that cannot tell a program from itself has no ratio to judge: "met" would be chance, and so would "over"."""
    if row.budget is None:
        return ""
    if row.against and not judged:
        return "not judged"
    return "**over**" if row.over else "met"


def noise(groups: Sequence[Group]) -> list[str]:
    """What the control says of a run: the same program twice has to come out the same."""
    for row in (row for group in groups for row in group.rows if row.what == CONTROL):
        low, middle, high = row.result
        verdict = "" if steady(groups) else ": **the machine was not steady: no ratio of this run is to be relied on**"
        return [f"control: the raw protocol against itself {middle:.2f} (quartiles {low:.2f} to {high:.2f}){verdict}"]
    return []


def budgets(groups: Sequence[Group]) -> str:
    lines = ["| what | measured | budget | |", "|---|---|---|---|"]
    for group in groups:
        for row in group.rows:
            if row.budget is not None:
                unit = "" if row.against else f" {row.unit}"
                verdict = _verdict(row, steady(groups))
                lines.append(f"| {group.title}: {row.what} | {row.result[1]:.2f}{unit} | {row.budget:g} | {verdict} |")
    return "\n".join(lines)


def _table(group: Group, judged: bool) -> list[str]:
    lines = ["| what | median | spread | ratio | budget | | what to know |", "|---|--:|--:|--:|--:|---|---|"]
    for row in group.rows:
        lines.append(_line(row, judged))
    return lines


def _line(row: Row, judged: bool) -> str:
    low, middle, high = row.measured
    digits = number if row.unit in ("ms", "MiB") else "{:g}".format
    spread = f"{digits(low)} to {digits(high)}" if len(row.samples) > 1 else ""
    ratio = f"{row.result[1]:.2f}" if row.against else ""
    budget = "" if row.budget is None else f"{row.budget:g}"
    what = f"**{row.what}**" if row.ours else row.what
    return f"| {what} | {digits(middle)} {row.unit} | {spread} | {ratio} | {budget} | {_verdict(row, judged)} | {row.note} |"


TITLE = "# Benchmarks"


def markdown(groups: Sequence[Group], header: Sequence[str]) -> str:
    lines = [
        TITLE,
        "",
        "Written by `scripts/bench --write docs/bench`, in one run: the same work by everybody, in turn, round after round",
        "(A, B, C, A, B, C, ...), the median and the spread (the quartiles; the least and the most where winners are counted).",
        "Ratios are what counts: the machine is in both sides of them. A budget holds for the median. Every store is set to",
        "durable (`synchronous=FULL`), and the log of each SQLite in WAL is at its full length, as it is after a while in use;",
        "what each promises with that is beside it.",
        "",
        *(f"* {line}" for line in header),
        "",
    ]
    for group in groups:
        lines += [
            f"## {group.title}",
            "",
            group.text,
            "",
            f"![{group.title}]({group.name}.svg)",
            "",
            *_table(group, steady(groups)),
            "",
        ]
        lines += [f"* {line}" for line in group.left_out] + [""] * bool(group.left_out)
    return "\n".join(lines)


def write(folder: Path, groups: Sequence[Group], header: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(markdown(groups, header))
    for group in groups:
        (folder / f"{group.name}.svg").write_text(svg(group, ALONG.get(group.name, "")))
