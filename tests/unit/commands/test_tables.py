"""Sections of names and values, as people read them."""

from __future__ import annotations

import io
import re

from rich.console import Console

from cachedind.commands.tables import ENDLESS, print_report, print_status


def cells(lines: list[str]) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in lines]


def sections(draw_it: object, report: dict[str, object]) -> list[str]:
    console = Console(file=io.StringIO(), width=ENDLESS, color_system=None, highlight=False)
    draw_it(report, console)  # type: ignore[operator]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_report_says_sizes_and_times_for_people() -> None:
    report: dict[str, object] = {
        "engine": "28.5.2",
        "space": {"total_bytes": 5 << 30, "free_inodes": None, "max_age_s": 14 * 86400.0, "ready_s": 0.84},
        "trials": {"overlay2": {"works": False, "why": "a\nb"}},
        "plan": {"notes": ["one", "two\x1b"], "tls": True},
    }
    assert cells(sections(print_report, report)) == [
        ["engine", "28.5.2"],
        ["space", "total", "5.0 GiB"],
        ["", "free inodes", "none"],
        ["", "max age", "14 d"],
        ["", "ready", "0.8 s"],
        ["trials", "overlay2", r"does not work: a\nb"],
        ["plan", "notes", "one"],
        ["", r"two\x1b"],
        ["", "tls", "yes"],
    ]


def test_a_status_leaves_out_what_is_not_there() -> None:
    def told(report: dict[str, object], console: Console) -> None:
        print_status(report, 100.0, console)

    report: dict[str, object] = {
        "pool": {"path": "/cachedind"},
        "image": None,
        "aside": [{"id": "1", "was": "slots/x", "why": "bad", "at": 1.0}],
        "here": None,
    }
    assert cells(sections(told, report)) == [
        ["pool", "path", "/cachedind"],
        ["aside", "aside/1: slots/x: bad"],
        ["here", "this container holds no slot of this pool"],
    ]
    report["here"] = {"key": "k", "slot": "s", "ready": False, "ready_s": None}
    assert cells(sections(told, report))[-1] == ["", "ready", "not yet"]
    report["here"] = {"key": "k", "slot": "s", "ready": True, "ready_s": 2.14}
    assert cells(sections(told, report))[-1] == ["", "ready", "2.1 s after the start"]
