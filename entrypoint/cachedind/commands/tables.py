"""What the commands for people print: tables that fit the terminal, and whole lines without colours in a pipe."""

from __future__ import annotations

import json

from cachedind.base.sizes import format_bytes
from cachedind.base.typed import TYPE_CHECKING
from cachedind.commands.inventory import printable
from cachedind.start import daemon_plan
from cachedind.start.summary import describe_age

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table


ENDLESS = 1 << 16
"""The width of a pipe: nothing is wrapped or cut off there."""


def open_console(*, width: int | None = None) -> Console:
    """Standard output: as wide as its terminal, and without limit or colours where it is none."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=width)
    if width is None and not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=ENDLESS)
    return console


def print_table(console: Console, table: Table) -> None:
    """Without the blanks at the ends of lines, which rich fills up to the last column's width."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    console.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


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
    print_table(console, table)


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
    """What pool_status.read_status and seed_progress.read_status found, as a table for people."""
    told = {section: value for section, value in report.items() if value is not None}
    here = told.get("here")
    if isinstance(here, dict):
        ready = "not yet" if here["ready_s"] is None else f"{here['ready_s']:.1f} s after the start"
        told["here"] = {"key": here["key"], "slot": here["slot"], "ready": ready}
    elif "pool" in told:
        told["here"] = "this container holds no slot of this pool"
    filesystem = report.get("filesystem")
    if isinstance(filesystem, dict):
        told["filesystem"] = {name: value for name, value in filesystem.items() if value is not None}
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
        size = format_bytes(size_bytes) if size_bytes else "-"
        table.add_row(Text(printable(name)), Text(size), Text(verdict), Text(what, style="red" if why else ""))
    print_table(console, table)
