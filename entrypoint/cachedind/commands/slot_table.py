"""The table of a pool's slots and goldens: on a terminal by key and no wider than that, in a pipe one line for each."""

from __future__ import annotations

from typing import Literal

from cachedind.base.sizes import format_bytes
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.commands.inventory import Condition, Row, label, printable
from cachedind.commands.tables import ENDLESS, open_console, print_table
from cachedind.start.summary import describe_age

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

_STYLES = {
    Condition.HELD: "green",
    Condition.GOLDEN: "yellow",
    Condition.PREVIOUS: "yellow",
    Condition.OTHER: "yellow",
    Condition.SUSPICIOUS: "red",
    Condition.UNREADABLE: "red",
    Condition.SUPERSEDED: "dim",
    Condition.THROW_AWAY: "dim",
}
_LEAST_IMPORTANT = ("HOST", "STORE", "DRIVER", "READY", "ENGINE", "UNUSED", "SHARED", "UNIQUE", "LAST USED")
"""What is left out of a table that is too wide, in this order. HOST is the holder's host name."""
_LONG_STATE = 26
_GAP = 2


class _Column(NamedTuple):
    title: str
    cells: list[str]
    right: bool = False


def print_rows(rows: Sequence[Row], now: float, *, sizes: bool, console: Console | None = None) -> None:
    """As a table for people: on a terminal by key and no wider than that, in a pipe one whole line for each."""
    console = console or open_console()
    if not rows:
        console.print("The pool is empty.")
        return
    left_out = [] if sizes else ["UNIQUE", "SHARED", "UNUSED"]
    if not any(row.scope for row in rows):
        left_out.append("SCOPE")
    if not console.is_terminal:
        print_table(console, _draw(rows, _columns(rows, now, left_out), {}))
        return
    too_much = [title for title in _LEAST_IMPORTANT if title not in left_out]
    dropped: list[str] = []
    columns = _columns(rows, now, ["KEY", *left_out])
    while too_much and _needed_width(columns) > console.width:
        dropped.append(too_much.pop(0))
        columns = _columns(rows, now, ["KEY", *left_out, *dropped])
    _print_grouped(console, rows, columns)
    if dropped:
        console.print(f"(no room for: {', '.join(dropped).lower()}; --json has everything)", style="dim")


def _print_grouped(console: Console, rows: Sequence[Row], columns: Sequence[_Column]) -> None:
    """All groups' columns are as wide as if they were one table; STATE takes what is left, and wraps."""
    from rich.text import Text

    widths = {column.title: _width(column) for column in columns}
    rest = sum(widths.values()) - widths["STATE"] + _GAP * (len(columns) - 1)
    widths["STATE"] = max(min(widths["STATE"], console.width - rest), 8)
    console.print(_draw([], columns, widths))
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and rows[end].directory == rows[start].directory:
            continue
        console.print(Text(label(rows[start].key), style="bold"), overflow="fold")
        part = [column._replace(cells=column.cells[start:end]) for column in columns]
        console.print(_draw(rows[start:end], part, widths, header=False))
        start = end


def _draw(rows: Sequence[Row], columns: Sequence[_Column], widths: Mapping[str, int], *, header: bool = True) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim", show_header=header)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, width=widths.get(column.title), overflow="fold")
    for index, row in enumerate(rows):
        style = _STYLES.get(row.condition, "")
        table.add_row(*(Text(column.cells[index], style if column.title == "STATE" else "") for column in columns))
    return table


def _width(column: _Column) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, [column.title, *column.cells]))


def _needed_width(columns: Sequence[_Column]) -> int:
    """STATE may wrap where it is a long story."""
    widths = (min(_width(column), _LONG_STATE if column.title == "STATE" else ENDLESS) for column in columns)
    return sum(widths) + _GAP * (len(columns) - 1)


def _columns(rows: Sequence[Row], now: float, left_out: Sequence[str]) -> list[_Column]:
    columns = [
        _Column("KEY", [label(row.key) for row in rows]),
        _Column("SCOPE", [printable(row.scope) or "-" for row in rows]),
        _Column("SLOT", [_slot(row) for row in rows]),
        _Column("STATE", [_state(row, with_host="HOST" not in left_out) for row in rows]),
        _Column("LAST USED", [_last_used(row, now) for row in rows]),
        _Column("UNIQUE", [_size(row.unique_bytes) for row in rows], right=True),
        _Column("SHARED", [_size(row.shared_bytes) for row in rows], right=True),
        _Column("UNUSED", [_size(row.unused_bytes) for row in rows], right=True),
        _Column("READY", ["-" if row.ready_s is None else f"{row.ready_s:.1f} s" for row in rows], right=True),
        _Column("ENGINE", [printable(row.engine or "-") for row in rows]),
        _Column("DRIVER", [printable(row.driver or "-") for row in rows]),
        _Column("STORE", [row.store or "-" for row in rows]),
    ]
    return [column for column in columns if column.title not in left_out]


def _slot(row: Row) -> str:
    return printable(row.id) if row.name.startswith("slots/") else "-"


def _state(row: Row, *, with_host: bool) -> str:
    words = str(row.condition)
    if row.held:
        words = "" if row.condition is Condition.HELD else f"{words}, "
        words += f"held by {_holder(row, with_host=with_host)}"
        if row.read_only:
            words += ", throw-away"
    elif (
        row.name and not row.name.startswith("slots/") and not row.trusted and row.condition is not Condition.UNREADABLE
    ):
        words += ", suspicious"
    return f"{words}: {printable(row.why)}" if row.why else words


def _holder(row: Row, *, with_host: bool) -> str:
    holder = row.holder
    if holder is None:
        return "?"
    name = holder.container or holder.hostname
    host = f" ({holder.hostname})" if with_host and not holder.hostname.startswith(name) else ""
    return printable(name + host) + (" (this one)" if row.here else "")


def _last_used(row: Row, now: float) -> str:
    if row.last_used is None:
        return "-"
    age = describe_age(now - row.last_used)
    return f"for {age}" if row.held else f"{age} ago"


def _size(count: int | None) -> str:
    return "-" if count is None else format_bytes(count)
