"""The table of slots and goldens fits: on terminals of any width, and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cachedind.base.model import Holder
from cachedind.commands.inventory import Condition, Row
from cachedind.commands.slot_table import print_rows
from cachedind.commands.tables import ENDLESS

NOW = 1_000_000.0


HOST = "runner-abcdefgh-project-4711-concurrent-0"


SIZES = ("unique_bytes", "shared_bytes", "unused_bytes")


def row(name: str, condition: Condition, **more: object) -> Row:
    known: dict[str, object] = {
        "engine": "28.5.2",
        "store": "containerd",
        "driver": "overlayfs",
        "ready_s": 0.84,
        "last_used": NOW - 300,
        "unique_bytes": 12 << 20,
        "shared_bytes": 3 << 30,
        "unused_bytes": 1 << 20,
        "trusted": True,
    }
    return Row(
        **{
            "key": "group/project",
            "directory": "group%2fproject",
            "name": name,
            "condition": condition,
            **known,
            **more,
        }  # type: ignore[arg-type]
    )


def held(slot_id: str, host: str = HOST, **more: object) -> Row:
    holder = Holder("0123456789ab", host, NOW - 90)
    return row(f"slots/{slot_id}", Condition.HELD, held=True, holder=holder, last_used=NOW - 90, **more)


ROWS = [
    row("golden", Condition.GOLDEN, ready_s=None),
    row("golden.other/26.1-graphdriver-overlay2-x86_64", Condition.OTHER, engine="26.1.5"),
    held("aaaaaaaaaaaa"),
    row(
        "slots/bbbbbbbbbbbb",
        Condition.SUPERSEDED,
        last_used=None,
        unique_bytes=None,
        shared_bytes=None,
        unused_bytes=None,
    ),
    row("slots/cccccccccccc", Condition.FREE, key="default", directory="default"),
]


BAD = row("slots/dddd", Condition.UNREADABLE, why="it is not as cachedind made it: Too many levels of symbolic links")


def draw(rows: list[Row], width: int | None, *, sizes: bool = True) -> list[str]:
    """The lines on a terminal of that width; None is a pipe."""
    console = Console(
        file=io.StringIO(), width=width or ENDLESS, force_terminal=width is not None, color_system=None, highlight=False
    )
    print_rows(rows, NOW, sizes=sizes, console=console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() if width else line for line in console.file.getvalue().splitlines()]


def cells(lines: list[str]) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in lines]


def test_a_pipe_gets_everything_on_one_line_each() -> None:
    rest = ["12.0 MiB", "3.0 GiB", "1.0 MiB", "0.8 s", "28.5.2", "overlayfs", "containerd"]
    assert cells(draw(ROWS, None)) == [
        ["KEY", "SLOT", "STATE", "LAST USED", "UNIQUE", "SHARED", "UNUSED", "READY", "ENGINE", "DRIVER", "STORE"],
        ["group/project", "-", "golden", "5 min ago", *rest[:3], "-", *rest[4:]],
        ["group/project", "-", "golden (other engine)", "5 min ago", *rest[:4], "26.1.5", *rest[5:]],
        ["group/project", "a" * 12, f"held by 0123456789ab ({HOST})", "for 90 s", *rest],
        ["group/project", "b" * 12, "superseded", "-", "-", "-", "-", *rest[3:]],
        ["default", "c" * 12, "free", "5 min ago", *rest],
    ]


def test_a_usual_terminal_gets_what_matters_by_key() -> None:
    assert draw(ROWS, 80) == [
        "SLOT          STATE                  LAST USED    UNIQUE   SHARED   UNUSED",
        "group/project",
        "-             golden                 5 min ago  12.0 MiB  3.0 GiB  1.0 MiB",
        "-             golden (other engine)  5 min ago  12.0 MiB  3.0 GiB  1.0 MiB",
        "aaaaaaaaaaaa  held by 0123456789ab   for 90 s   12.0 MiB  3.0 GiB  1.0 MiB",
        "bbbbbbbbbbbb  superseded             -                 -        -        -",
        "default",
        "cccccccccccc  free                   5 min ago  12.0 MiB  3.0 GiB  1.0 MiB",
        "(no room for: host, store, driver, ready, engine; --json has everything)",
    ]


def test_a_wide_one_gets_more() -> None:
    lines = draw(ROWS, 120)
    assert cells(lines)[0] == cells(draw(ROWS, None))[0][1:]
    assert lines[-1].startswith("cccc"), "with room for everything there is nothing to excuse"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("rows", [ROWS, [*ROWS, BAD], [BAD], [held("a" * 12, here=True, read_only=True)]])
def test_no_line_is_wider_than_the_terminal(rows: list[Row], width: int) -> None:
    lines = draw(rows, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines)
    for each in rows:
        assert not each.name.startswith("slots/") or each.id in words
    if BAD in rows:
        assert re.search(r"\blinks\b", words), "a long reason is wrapped and not cut off"


def test_a_long_word_is_broken_and_not_cut_off() -> None:
    words = [row(f"slots/{'s' * 70}", Condition.UNREADABLE, why="w" * 300, key="k" * 500)]
    for width in (40, 80, None):
        text = "".join(draw(words, width))
        assert [text.count(letter) >= count for letter, count in (("s", 70), ("w", 300), ("k", 500))] == [True] * 3


def test_without_sizes_there_are_no_columns_for_them() -> None:
    for width in (None, 80, 200):
        words = " ".join(draw(ROWS, width, sizes=False))
        assert "UNIQUE" not in words
        assert "SHARED" not in words
    assert "shared" not in draw(ROWS, 60, sizes=False)[-1]


def test_an_empty_pool_says_so() -> None:
    assert draw([], None) == draw([], 80) == ["The pool is empty."]


def test_nothing_steers_the_terminal() -> None:
    evil = "\x1b[2J\r\n\u202e[red]\udcff"
    rows = [
        held("x", host=evil, key=evil, directory="d", driver=evil, engine=evil),
        row(f"slots/{evil}", Condition.UNREADABLE, why=evil, key=evil, directory="d"),
    ]
    for width in (None, 80, 300):
        text = "\n".join(draw(rows, width))
        assert not set(text) - {"\n"} & set("\x1b\r\u202e\udcff")
    flat = "".join(draw(rows, 300)).replace(" ", "")
    assert r"\x1b[2J\r\n\u202e[red]\udcff" in flat, "it is shown, and no markup either"


def test_what_is_special_about_a_row_is_in_its_state() -> None:
    def state(each: Row) -> str:
        return cells(draw([each], None))[1][2]

    assert state(held("a", host="0123456789ab")) == "held by 0123456789ab", (
        "docker's default host name says nothing new"
    )
    assert state(held("a", host="0123456789ab", here=True)) == "held by 0123456789ab (this one)"
    assert state(held("a", host="0123456789ab", read_only=True)) == "held by 0123456789ab, throw-away"
    unknown = row("slots/a", Condition.HELD, held=True)
    assert state(unknown) == "held by ?"
    assert state(row("golden", Condition.GOLDEN, trusted=False)) == "golden, suspicious"
    bad = row("slots/a", Condition.UNREADABLE, why="not a JSON object", held=True, holder=Holder("", "box", NOW))
    assert state(bad) == "unreadable, held by box: not a JSON object"
