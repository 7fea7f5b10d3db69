"""What holds for every lane: nothing is skipped, and a failed test shows the logs of the containers it started."""

from __future__ import annotations

import signal
from collections.abc import Generator
from types import FrameType

import pytest

pytest.register_assert_rewrite("helpers")

TIMEOUT_S = {"unit": 20, "system": 60, "image": 300}


def pytest_sessionstart() -> None:
    """A run that is told to end cleans up like any other: containers and loop devices do not go with a process."""

    def end(number: int, frame: FrameType | None) -> None:
        pytest.exit(f"ended by {signal.Signals(number).name}", returncode=128 + number)

    signal.signal(signal.SIGTERM, end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        lane = next((part for part in item.path.parts[::-1] if part in TIMEOUT_S), None)
        if lane and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[lane]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as failed here: {report.longrepr}"
    if report.failed and call.when in ("setup", "call"):
        # Only the image lane has an engine, and it may be what failed.
        engine = getattr(item, "funcargs", {}).get("engine")
        for dind in getattr(engine, "dinds", []):
            report.sections.append((f"container {dind.name}", dind.describe()))
    return report
