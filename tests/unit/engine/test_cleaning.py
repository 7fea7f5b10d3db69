"""Cleaning whose private daemon does not come up: what can wait is put off and told, what cannot ends the cleaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedind.base.errors import DaemonEnd, PrivateDaemonError
from cachedind.base.log import Level, Log
from cachedind.base.model import ImageStore, StoragePlan
from cachedind.base.trace import NOWHERE
from cachedind.engine import cleaning
from cachedind.engine.cleaning import Job, Pruning
from cachedind.engine.leftovers import Leftovers

NOTHING = Leftovers()
VOLUME = Leftovers(volumes=("data",))


def a_job(root: Path) -> Job:
    storage = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
    wanted = Pruning(1, None, frozenset())
    return Job(str(root), storage, frozenset(), -1, {}, Log(level=Level.ERROR), NOWHERE, wanted=wanted)


def fails_with(end: DaemonEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        error = PrivateDaemonError("the private daemon did not answer", "")
        error.end = end
        raise error

    monkeypatch.setattr(cleaning, "_clean_by_daemon", fail)


@pytest.mark.parametrize("end", [DaemonEnd.SILENT, DaemonEnd.BY_A_SIGNAL])
def test_pruning_alone_is_put_off_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: DaemonEnd) -> None:
    fails_with(end, monkeypatch)
    cleaned = cleaning.clean(a_job(tmp_path), NOTHING)
    assert cleaned.problems == (
        "the private daemon did not answer; old images stay, and nothing is pruned, until another start",
    )


@pytest.mark.parametrize(
    ("end", "leftovers"),
    [(DaemonEnd.BY_ITSELF, NOTHING), (DaemonEnd.BY_ITSELF, VOLUME), (DaemonEnd.SILENT, VOLUME)],
    ids=["speaks against the data", "both", "a job would see what is left"],
)
def test_what_cannot_wait_ends_the_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: DaemonEnd, leftovers: Leftovers
) -> None:
    fails_with(end, monkeypatch)
    with pytest.raises(PrivateDaemonError):
        cleaning.clean(a_job(tmp_path), leftovers)
