"""One SVG for a group: a panel for each of its axes, marks with their spread, the budgets in red.

Drawn by hand, so that a picture needs nothing installed and reads in light and dark.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from scripts.benchmark.measure import Group, Row

WIDTH = 860
LEFT, RIGHT = 300, 90
LINE_LEFT, LINE_RIGHT = 70, 250
ROW = 26
LINE_HEIGHT = 260
TIMES = "\N{MULTIPLICATION SIGN}"

STYLE = """
svg { --ground: #ffffff; --ink: #1f2328; --soft: #59636e; --grid: #e4e8ec; --budget: #cf222e;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #9a6700; --peer: #6e7781; }
@media (prefers-color-scheme: dark) {
  svg { --ground: #0d1117; --ink: #e6edf3; --soft: #9198a1; --grid: #262c36; --budget: #ff7b72;
    --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff; --c4: #d29922; --peer: #9198a1; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 16px; }
.soft { fill: var(--soft); font-size: 12px; }
.ours { font-weight: 600; }
.grid { stroke: var(--grid); }
.budget { stroke: var(--budget); stroke-width: 2; stroke-dasharray: 5 3; }
.budget-text { fill: var(--budget); font-size: 12px; paint-order: stroke; stroke: var(--ground); stroke-width: 4px; }
"""


class Scale:
    """A logarithmic axis: from a round number below the least to one above the most."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, room: float = 1.0) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        self.low, self.high = _round_down(min(positive) / room), _round_up(max(positive) * room)
        if self.low == self.high:
            self.low, self.high = _round_down(self.low * 0.7), _round_up(self.high * 1.5)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """1, 2, 5, 10 ..., and of a wide axis the tens alone: labels must not meet."""
        values = [step for step in _steps() if self.low * 0.999 <= step <= self.high * 1.001]
        if len(values) <= 9:
            return values
        return [value for value in values if math.isclose(math.log10(value) % 1, 0, abs_tol=1e-9)]


def _steps() -> Iterator[float]:
    for exponent in range(-3, 9):
        for digit in (1, 2, 5):
            yield float(f"{digit}e{exponent}")


def _round_down(value: float) -> float:
    return max(step for step in _steps() if step <= value * 1.0001)


def _round_up(value: float) -> float:
    return min(step for step in _steps() if step >= value * 0.9999)


def number(value: float) -> str:
    """Three digits, and no more of them behind the point than a measure bears."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(row: Row) -> str:
    """The result beside a mark. What is counted has no digits behind the point."""
    low, value, high = row.result
    if row.extremes:
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return number(value) + (TIMES if row.against else "")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", fill: str = "") -> str:
    style = f' style="fill: {fill}"' if fill else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "", stroke: str = "") -> str:
    style = f' style="stroke: {stroke}; stroke-width: 2"' if stroke else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{style}/>'


def _dots(rows: Sequence[Row], top: float) -> tuple[list[str], float]:
    """A row for each contestant: where it stands, its spread, and its number at the right."""
    left, right = LEFT, WIDTH - RIGHT
    values = [value for row in rows for value in (*row.result, row.budget or row.result[1])]
    scale = Scale(values, left, right)
    budgets = any(row.budget is not None for row in rows)
    first = top + (24 if budgets else 8)
    bottom = first + ROW * len(rows)
    out = []
    for tick in scale.ticks():
        out.append(_line(scale(tick), first, scale(tick), bottom, "grid"))
        out.append(_text(scale(tick), bottom + 18, f"{tick:,g}", "soft", "middle"))
    y = first
    said = set()
    for budget, run in groupby(rows, key=lambda row: row.budget):
        held = list(run)
        end = y + ROW * len(held)
        if budget is not None:
            out.append(_line(scale(budget), y + 2, scale(budget), end - 2, "budget"))
            above = y == first
            # Between two runs there is no room above: there the word stands on the side where the mark is not.
            beside = (scale(budget) - 8, "end") if held[0].over else (scale(budget) + 8, "start")
            place = (scale(budget), y - 6, "middle") if above else (beside[0], (y + end) / 2 + 4, beside[1])
            if (budget, y) not in said:
                out.append(_text(place[0], place[1], f"budget {budget:g}", "budget-text", place[2]))
            said.add((budget, y))
        y = end
    for index, row in enumerate(rows):
        middle = first + ROW * (index + 0.5)
        low, value, high = row.result
        colour = "var(--c0)" if row.ours else "var(--peer)"
        out.append(_text(left - 14, middle + 4, row.what, "ours" if row.ours else "", "end"))
        out.append(_line(scale(low), middle, scale(high), middle, stroke=colour))
        out.append(f'<circle cx="{scale(value):.1f}" cy="{middle:.1f}" r="5" style="fill: {colour}"/>')
        out.append(
            _text(
                WIDTH - 20,
                middle + 4,
                shown(row),
                "ours" if row.ours else "",
                "end",
                "var(--budget)" if row.over else "",
            )
        )
    out.append(_text((left + right) / 2, bottom + 38, f"{rows[0].axis} (logarithmic)", "soft", "middle"))
    return out, bottom + 50


def _lines(rows: Sequence[Row], top: float, along: str) -> tuple[list[str], float]:
    """A line for each series, named at its end."""
    left, right = LINE_LEFT, WIDTH - LINE_RIGHT
    first, bottom = top + 14, top + 14 + LINE_HEIGHT
    values = [value for row in rows for value in (*row.result, row.budget or row.result[1])]
    across, up = Scale([row.size for row in rows], left, right), Scale(values, bottom, first, room=1.1)
    # Sizes are few, and are their own ticks: an axis to the next round number would be half empty.
    sizes = sorted({row.size for row in rows})
    across.low, across.high = min(sizes) * 0.8, max(sizes) * 1.25
    out = []
    for tick in up.ticks():
        out.append(_line(left, up(tick), right, up(tick), "grid"))
        out.append(_text(left - 10, up(tick) + 4, f"{tick:,g}", "soft", "end"))
    for size in sizes:
        out.append(_line(across(size), first, across(size), bottom, "grid"))
        out.append(_text(across(size), bottom + 18, f"{size:,}", "soft", "middle"))
    ends: list[tuple[float, str, str, bool]] = []
    names = list(dict.fromkeys(row.series for row in rows))
    for index, series in enumerate(names):
        points = sorted((row for row in rows if row.series == series), key=lambda row: row.size)
        aside = 7 * (index - (len(names) - 1) / 2)  # else the spreads of one size lie on each other
        colour = f"var(--c{index % 5})"
        path = " ".join(f"{across(row.size) + aside:.1f},{up(row.result[1]):.1f}" for row in points)
        out.append(
            f'<polyline points="{path}" fill="none" style="stroke: {colour}; stroke-width: {3 if points[0].ours else 2}"/>'
        )
        for row in points:
            x, (low, value, high) = across(row.size) + aside, row.result
            out.append(_line(x, up(low), x, up(high), stroke=colour))
            out.append(f'<circle cx="{x:.1f}" cy="{up(value):.1f}" r="4" style="fill: {colour}"/>')
        last = points[-1]
        ends.append((up(last.result[1]), f"{series} {shown(last)}", colour, last.ours))
    # Drawn last: no line may run through their words.
    marks = sorted({(row.size, row.budget) for row in rows if row.budget is not None})
    levels = {budget for _, budget in marks}
    if len(levels) == 1:
        level = marks[0][1]
        assert level is not None
        out.append(_line(left, up(level), right, up(level), "budget"))
        ends.append((up(level), f"budget {level:g}", "var(--budget)", False))
    else:
        for size, level in marks:
            assert level is not None
            out.append(_line(across(size) - 24, up(level), across(size) + 24, up(level), "budget"))
            out.append(_text(across(size), up(level) - 7, f"budget {level:g}", "budget-text", "middle"))
    level_y = first - 100.0
    for y, name, colour, ours in sorted(ends):
        level_y = max(y + 4, level_y + 17)  # names of lines that end together are pushed apart
        out.append(_text(right + 12, level_y, name, "ours" if ours else "", fill=colour))
    out.append(_text(left, top, f"{rows[0].axis} (logarithmic)", "soft"))
    out.append(_text((left + right) / 2, bottom + 36, along, "soft", "middle"))
    return out, bottom + 48


def svg(group: Group, along: str) -> str:
    """The picture of a group. ``along``: what the sizes of its lines count."""
    body, y = [], 62.0
    for axis, run in groupby((row for row in group.rows if row.axis), key=lambda row: row.axis):
        rows = list(run)
        assert axis
        part, y = _lines(rows, y, along) if rows[0].size else _dots(rows, y - 16)
        body += part
        y += 26
    height = y - 16
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(group.title)}</title>",
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" style="fill: var(--ground)"/>',
        _text(20, 30, group.title, "title"),
    ]
    return "\n".join([*head, *body, "</svg>", ""])
