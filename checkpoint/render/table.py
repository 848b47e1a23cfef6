"""The list as a table for terminals: the only import of rich."""

from collections.abc import Sequence

from rich.console import Console
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
