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


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as text with colour codes, as wide as the terminal. Cells are text, never markup."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        view.add_column(column, overflow="fold", no_wrap=position == 0)
    for row in rows:
        view.add_row(*(Text(escape(cell), style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    console = Console()
    with console.capture() as capture:
        console.print(view)
    return capture.get()
