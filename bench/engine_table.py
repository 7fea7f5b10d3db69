"""`scripts/engine-check`: what pytest's report says of each subject, as a table."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Case(NamedTuple):
    """A test: its file ("test_pool"), its name, whether it passed, and its time in seconds."""

    subject: str
    name: str
    passed: bool
    seconds: float


def read(report: str) -> list[Case]:
    """The tests in a JUnit report."""
    cases = []
    for case in ET.fromstring(report).iter("testcase"):  # pytest has just written it
        failed = any(child.tag in ("failure", "error", "skipped") for child in case)
        subject = case.get("classname", "").rpartition(".")[2]
        cases.append(Case(subject, case.get("name", ""), not failed, float(case.get("time", "0"))))
    return cases


def table(version: str, cases: Sequence[Case]) -> str:
    """A row for each subject, and the names of what failed. Pure."""
    rows = [f"{'engine ' + version:<28}{'passed':>8}{'failed':>8}{'seconds':>10}"]
    for subject in dict.fromkeys(case.subject for case in cases):
        own = [case for case in cases if case.subject == subject]
        passed = sum(case.passed for case in own)
        rows.append(
            f"{subject.removeprefix('test_'):<28}{passed:>8}{len(own) - passed:>8}{sum(c.seconds for c in own):>10.0f}"
        )
    rows += [f"  failed: {case.subject}::{case.name}" for case in cases if not case.passed]
    return "\n".join(rows)


if __name__ == "__main__":
    found: list[Case] = []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as report:
            found += read(report.read())
    print(table(sys.argv[1], found))
