"""The list as a table for terminals, printed once or drawn again and again: the only import of rich."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from checkpoint.render.text import escape

_STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
    "blocked": "yellow",
    "damaged": "bold red",
    "dead": "red",
    "expired": "yellow",
    "alive": "green",
}


_SHORT = 14
_LONGEST = 80


def _cut(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else cell[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as text with colour codes, as wide as the terminal. Cells are text, never markup.

    Columns that are empty in every row are left out. Short ones keep to one line; long ones are folded within a third
    of the width and long cells cut, so that one of them does not push the others from the screen.
    """
    console = Console()
    shown = [position for position in range(len(columns)) if any(row[position] for row in rows)]
    view = Table(box=None, pad_edge=False, header_style="bold")
    for position in shown:
        widest = max(len(row[position]) for row in rows)
        short = widest <= _SHORT
        view.add_column(
            columns[position],
            overflow="fold",
            no_wrap=short,
            min_width=min(widest, 10),
            max_width=None if short else max(_SHORT, console.width // 3),
        )
    for row in rows:
        cells = [escape(row[position]) for position in shown]
        view.add_row(*(Text(_cut(cell), style=_STYLES.get(cell.split(" ")[0], "")) for cell in cells))
    with console.capture() as capture:
        console.print(view)
    return capture.get()


class ScreenRow(NamedTuple):
    """One run on the screen, or with ``damage`` what is wrong with the file in its place."""

    id: str
    status: str
    done: int
    steps: int
    next: str
    in_doubt: str
    owner: str
    age: str
    damage: str = ""


_WIDE = 100
_BAR = 16


def screen(title: str, words: str, rows: Sequence[ScreenRow], width: int, height: int) -> list[str]:
    """Lines with colour codes that fill no more than the terminal: a title, ``words`` if any, and the rows that fit."""
    # Behind a character in the last column terminals differ in where the cursor stands.
    console = Console(width=max(1, width - 1), height=height)
    wide = width >= _WIDE
    parts: list[RenderableType] = [_line(title, "bold")]
    if words:
        parts.append(_line(words, "yellow"))
    parts.append(_line("", ""))
    room = height - len(parts) - 2
    fitting = rows[: max(1, room if wide else room // 3)]
    if wide and fitting:
        parts += _wide(fitting, console.width)
    elif fitting:
        parts += [part for row in fitting for part in _narrow(row, console.width)]
    if len(fitting) < len(rows):
        parts.append(_line(f"{len(rows) - len(fitting)} more below: the terminal is too small for them", "dim"))
    with console.capture() as capture:
        for part in parts:
            console.print(part, no_wrap=True, overflow="ellipsis")
    return capture.get().removesuffix("\n").split("\n")[:height]


def _line(text: str, style: str) -> Text:
    return Text(escape(text), style=style, no_wrap=True, overflow="ellipsis")


def _word(text: str) -> Text:
    return _line(_cut(text), _STYLES.get(text.split(" ")[0], ""))


def _wide(rows: Sequence[ScreenRow], width: int) -> list[RenderableType]:
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    sound = [row for row in rows if not row.damage]
    texts = [(row.id, row.next, row.in_doubt, row.owner) for row in sound]
    counts = [f"{row.done}/{row.steps}" for row in sound]
    fixed = [_longest("STATUS", (row.status for row in sound)), _BAR + 2 + _longest("", counts)]
    fixed.append(_longest("PROGRESS", (row.age for row in sound)))
    heads = ("ID", "NEXT", "IN DOUBT", "OWNER")
    wanted = [_longest(head, cells) for head, cells in zip(heads, zip(*texts, strict=True), strict=True)] if sound else []
    # The longest gives way first, so that a short one beside it is never cut.
    while sum(wanted) > max(width - sum(fixed) - 2 * 7, 4 * len(wanted)):
        wanted[wanted.index(max(wanted))] -= 1
    order = ("ID", "STATUS", "DONE", "", "NEXT", "IN DOUBT", "OWNER", "PROGRESS")
    given = dict(zip(heads, wanted, strict=True)) if sound else {}
    for head in order:
        view.add_column(head, no_wrap=True, overflow="ellipsis", width=given.get(head))
    for row, count in zip(sound, counts, strict=True):
        view.add_row(
            _word(row.id),
            _word(row.status),
            _bar(row, _BAR),
            count,
            _word(row.next),
            _line(row.in_doubt, "bold yellow"),
            _word(row.owner),
            row.age,
        )
    damaged = [_line(f"{row.id}  {row.status}  {row.damage}", "bold red") for row in rows if row.damage]
    return [*([view] if sound else []), *damaged]


def _longest(head: str, cells: Iterable[str]) -> int:
    return max([cell_len(head), *(cell_len(_cut(escape(cell))) for cell in cells)])


def _narrow(row: ScreenRow, width: int) -> list[RenderableType]:
    head = Text.assemble((escape(_cut(row.id)), "bold"), "  ", _word(row.status), no_wrap=True, overflow="ellipsis")
    if row.damage:
        return [head, _line(f"  {row.damage}", "red"), _line("", "")]
    middle = Table.grid(padding=(0, 1))
    middle.add_column(width=min(_BAR, max(4, width // 4)))
    middle.add_column(no_wrap=True, overflow="ellipsis")
    told = Text.assemble(f"{row.done}/{row.steps}  {row.age}  ", _word(row.owner), no_wrap=True, overflow="ellipsis")
    middle.add_row(_bar(row, min(_BAR, max(4, width // 4))), told)
    doubt = f"in doubt: {row.in_doubt}  " if row.in_doubt else ""
    following = f"next: {row.next}" if row.next else ""
    return [head, middle, Text.assemble((escape(doubt), "bold yellow"), escape(following), no_wrap=True, overflow="ellipsis")]


def _bar(row: ScreenRow, width: int) -> RenderableType:
    # Of nothing at all the bar would show a moving light.
    return (
        ProgressBar(total=row.steps, completed=row.done, width=width, complete_style="green", finished_style="green")
        if row.steps
        else ""
    )
