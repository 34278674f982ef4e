"""Tables for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from refinedet.errors import printable


@dataclass(frozen=True)
class Table:
    """``texts``: how many columns, from the left, hold words; the others hold numbers. ``note``: a line below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    note: str = ""

    def text(self, most: int | None = None) -> str:
        """In columns, and no more than the first ``most`` rows."""
        shown = [self.header, *([printable(cell) for cell in row] for row in self.rows[:most])]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = [self.title, *("  ".join(self._place(row, widths)).rstrip() for row in shown)]
        if most is not None and len(self.rows) > most:
            lines.append(f"... and {len(self.rows) - most} more")
        return "\n".join([*lines, self.note] if self.note else lines)

    def _place(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        cells = zip(row, widths, strict=True)
        return [f"{cell:<{width}}" if i < self.texts else f"{cell:>{width}}" for i, (cell, width) in enumerate(cells)]

    def html(self) -> str:
        """All of it."""
        header = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        rows = "\n".join(f"<tr>{''.join(map(self._cell, range(len(row)), row))}</tr>" for row in self.rows)
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return f"<h2>{escape(self.title)}</h2>\n<table>\n<tr>{header}</tr>\n{rows}\n</table>{note}"

    def _cell(self, column: int, cell: str) -> str:
        kind = "" if column < self.texts else ' class="number"'
        return f"<td{kind}>{escape(printable(cell))}</td>"
