"""What the commands for people print: tables that fit the terminal, and whole lines without colours in a pipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, NamedTuple

from cachedind.base.sizes import format_bytes
from cachedind.commands.inventory import Condition, Row, label, printable
from cachedind.start import daemon_plan
from cachedind.start.summary import describe_age

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

ENDLESS = 1 << 16
"""The width of a pipe: nothing is wrapped or cut off there."""

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
_LEAST_IMPORTANT = ("HOST", "STORE", "DRIVER", "ENGINE", "READY", "SHARED", "UNIQUE", "LAST USED")
"""What is left out of a table that is too wide, in this order. HOST is the holder's host name."""
_LONG_STATE = 26
_GAP = 2


def open_console(*, width: int | None = None) -> Console:
    """Standard output: as wide as its terminal, and without limit or colours where it is none."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=width)
    if width is None and not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=ENDLESS)
    return console


def _print(console: Console, table: Table) -> None:
    """Without the blanks at the ends of lines, which rich fills up to the last column's width."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    console.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


# ---- ls --------------------------------------------------------------------------------------------------------------


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
    left_out = [] if sizes else ["UNIQUE", "SHARED"]
    if not console.is_terminal:
        _print(console, _draw(rows, _columns(rows, now, left_out), {}))
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
        _Column("SLOT", [_slot(row) for row in rows]),
        _Column("STATE", [_state(row, with_host="HOST" not in left_out) for row in rows]),
        _Column("LAST USED", [_last_used(row, now) for row in rows]),
        _Column("UNIQUE", [_size(row.unique_bytes) for row in rows], right=True),
        _Column("SHARED", [_size(row.shared_bytes) for row in rows], right=True),
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


# ---- sections: status, doctor ----------------------------------------------------------------------------------------


def print_report(report: Mapping[str, object], console: Console | None = None) -> None:
    """Sections of names and values, as a table for people."""
    from rich.table import Table
    from rich.text import Text

    console = console or open_console()
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for section, value in report.items():
        rows = list(value.items()) if isinstance(value, dict) else [("", value)]
        for position, (name, content) in enumerate(rows):
            style = "red" if section == "error" or name == "problem" else ""
            label = section if position == 0 else ""
            table.add_row(label.replace("_", " "), _label(name), Text(_cell(name, content), style=style))
    _print(console, table)


def _label(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _cell(name: str, content: object) -> str:
    if isinstance(content, dict) and set(content) == {"works", "why"}:
        return f"{'works' if content['works'] else 'does not work'}: {printable(str(content['why']))}"
    if name == "arguments" and isinstance(content, list):
        return daemon_plan.describe(content)
    if isinstance(content, list):
        return "\n".join(printable(str(item)) for item in content) or "none"
    if isinstance(content, bool) or content is None:
        return {True: "yes", False: "no", None: "none"}[content]
    if isinstance(content, (int, float)) and name.endswith("_bytes"):
        return format_bytes(content)
    if isinstance(content, (int, float)) and name.endswith("_s"):
        return f"{content:.1f} s" if content < 60 else describe_age(content)
    return printable(json.dumps(content) if isinstance(content, dict) else str(content))


def print_status(report: Mapping[str, object], now: float, console: Console | None = None) -> None:
    """What inventory.read_status and seed_progress.read_status found, as a table for people."""
    told = {section: value for section, value in report.items() if value is not None}
    here = told.get("here")
    if isinstance(here, dict):
        ready = "not yet" if here["ready_s"] is None else f"{here['ready_s']:.1f} s after the start"
        told["here"] = {"key": here["key"], "slot": here["slot"], "ready": ready}
    elif "pool" in told:
        told["here"] = "this container holds no slot of this pool"
    aside = report.get("aside")
    if isinstance(aside, list):
        told["aside"] = [f"aside/{item['id']}: {item['was']}: {item['why']}" for item in aside]
    seeds = told.pop("seeds", None)
    if isinstance(seeds, dict):
        told["seeds"] = describe_seeds(seeds, now)
    print_report(told, console)


def describe_seeds(progress: Mapping[str, object], now: float) -> dict[str, object]:
    """How far the seeds of this container's start are. Whatever is in the file: it is shown, and nothing else."""

    def listed(name: str) -> list[object]:
        value = progress.get(name)
        return value if isinstance(value, list) else []

    started, finished = progress.get("started_at"), progress.get("finished_at")
    if not isinstance(started, (int, float)):
        return {"state": "unknown"}
    ended = isinstance(finished, (int, float))
    until = finished if isinstance(finished, (int, float)) else now
    word = "done, after" if ended else "at work for"
    told: dict[str, object] = {
        "state": f"{word} {max(0.0, until - started):.1f} s: {progress.get('seeds_done')} of {progress.get('seeds')}",
        "images": listed("images"),
        "loaded_bytes": progress.get("bytes"),
    }
    if listed("now"):
        told["now"] = [_describe_step(step) for step in listed("now")]
    if listed("failed"):
        told["failed"] = listed("failed")
    return told


def _describe_step(step: object) -> str:
    match step:
        case {"what": str(what), "total_bytes": int(total), "done_bytes": int(done)}:
            return f"{what}: {format_bytes(done)} of {format_bytes(total)}"
    return "?"


# ---- seeds -----------------------------------------------------------------------------------------------------------


def print_seeds(rows: Sequence[tuple[str, str, Sequence[str], int, str]], console: Console | None = None) -> None:
    """What `seed --check` found: seed, verdict, names in it, size in bytes, and what is wrong with it."""
    from rich.table import Table
    from rich.text import Text

    console = console or open_console()
    if not rows:
        console.print("no seeds")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("SEED", overflow="fold")
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("IMAGES", overflow="fold")
    for name, verdict, images, size_bytes, why in rows:
        what = printable(why) if why else "\n".join(map(printable, images)) or "no names"
        table.add_row(
            Text(printable(name)), _size(size_bytes or None), Text(verdict), Text(what, style="red" if why else "")
        )
    _print(console, table)
